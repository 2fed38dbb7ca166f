//! The update rules by CS231n's names, and how their settings make an optimizer.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::optim::{
    AdadeltaConfig, AdagradConfig, AdamConfig, AdamWConfig, AsgdConfig, Elementwise, Ema,
    EmaConfig, Lookahead, LookaheadConfig, Muon, MuonConfig, MuonOther, Optimizer, RmsPropConfig,
    Rule, SgdConfig,
};

/// The update rules, by CS231n's names where it has one and PyTorch's where not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateRule {
    /// Plain gradient descent, learning rate 1e-2.
    #[default]
    Sgd,
    /// With momentum 0.9, learning rate 1e-2.
    SgdMomentum,
    /// RMSprop with decay rate 0.99, learning rate 1e-2.
    #[serde(rename = "rmsprop")]
    RmsProp,
    /// Adam, learning rate 1e-3.
    Adam,
    /// AdamW, learning rate 1e-3, weight decay 1e-2.
    #[serde(rename = "adamw")]
    AdamW,
    /// Adam with AMSGrad, learning rate 1e-3.
    #[serde(rename = "amsgrad")]
    AmsGrad,
    /// Adadelta, learning rate 1.
    Adadelta,
    /// Averaged SGD, learning rate 1e-2.
    Asgd,
    /// Adagrad, learning rate 1e-2.
    Adagrad,
    /// Muon for the weights of two axes or more, learning rate 2e-2, weight decay 0; AdamW,
    /// learning rate 1e-3, for norms and biases.
    Muon,
}

/// All rules by name.
const NAMES: [(&str, UpdateRule); 10] = [
    ("sgd", UpdateRule::Sgd),
    ("sgd_momentum", UpdateRule::SgdMomentum),
    ("rmsprop", UpdateRule::RmsProp),
    ("adam", UpdateRule::Adam),
    ("adamw", UpdateRule::AdamW),
    ("amsgrad", UpdateRule::AmsGrad),
    ("adadelta", UpdateRule::Adadelta),
    ("asgd", UpdateRule::Asgd),
    ("adagrad", UpdateRule::Adagrad),
    ("muon", UpdateRule::Muon),
];

impl FromStr for UpdateRule {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        if let Some((_, rule)) = NAMES.iter().find(|(name, _)| *name == s) {
            return Ok(*rule);
        }
        let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        let why = format!("{s:?}; expected one of {}", names.join(", "));
        Err(Error::config("update_rule", why))
    }
}

/// Settings of an update rule, by CS231n's names and PyTorch's where CS231n has none. What is left
/// out has the rule's default; what the rule does not have is an [`Error::Config`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// The learning rate.
    pub learning_rate: Option<f64>,
    /// Of `sgd_momentum`, `rmsprop` and `muon`.
    pub momentum: Option<f64>,
    /// How much of the gradient does not enter the velocity of `sgd_momentum`.
    pub dampening: Option<f64>,
    /// Nesterov's look ahead, of `sgd_momentum`; `muon` always has it.
    pub nesterov: bool,
    /// Of `rmsprop`; the rho of `adadelta`.
    pub decay_rate: Option<f64>,
    /// Divide by the deviation about the mean, in `rmsprop`.
    pub centered: bool,
    /// Of `adam`, `adamw` and `amsgrad`, and of `muon`'s AdamW.
    pub beta1: Option<f64>,
    /// Of `adam`, `adamw` and `amsgrad`, and of `muon`'s AdamW.
    pub beta2: Option<f64>,
    /// Of `rmsprop`, `adam`, `adamw`, `amsgrad`, `adadelta` and `adagrad`, and of `muon`'s AdamW.
    pub epsilon: Option<f64>,
    /// An L2 penalty inside the rule, on every parameter; of `adamw` and `muon`, the decoupled one.
    pub weight_decay: Option<f64>,
    /// No weight decay for norms and biases.
    pub no_decay: bool,
    /// How fast `adagrad`'s learning rate falls.
    pub lr_decay: Option<f64>,
    /// What `adagrad`'s sums of squares begin with.
    pub initial_accumulator_value: Option<f64>,
    /// How fast the parameters and the steps of `asgd` shrink.
    pub lambd: Option<f64>,
    /// The power with which the steps of `asgd` shrink.
    pub alpha: Option<f64>,
    /// The step at which `asgd` begins to average. The average is kept and saved
    /// ([`Optimizer::averaged`]); a Solver judges by the weights, as PyTorch's users do.
    pub t0: Option<f64>,
    /// The learning rate of `muon`'s AdamW, for norms and biases.
    pub other_learning_rate: Option<f64>,
    /// Slow weights that the rule's steps lead. A Solver judges by the fast ones.
    pub lookahead: Option<LookaheadConfig>,
    /// An exponential average of the weights: a Solver judges epochs by it, and the best parameters
    /// are its own. Training goes on with the weights themselves.
    pub ema: Option<EmaConfig>,
}

impl OptimConfig {
    /// The optimizer; an [`Error::Config`] where a setting makes no sense.
    pub fn build(&self, rule: UpdateRule) -> Result<Box<dyn Optimizer>> {
        self.check_used(rule)?;
        let mut optimizer = self.rule(rule)?;
        if let Some(config) = self.lookahead {
            optimizer = Box::new(Lookahead::new(optimizer, config)?);
        }
        if let Some(config) = self.ema {
            optimizer = Box::new(Ema::new(optimizer, config)?);
        }
        Ok(optimizer)
    }

    /// Refuse what `rule` does not have: a setting that changes nothing misleads.
    fn check_used(&self, rule: UpdateRule) -> Result<()> {
        use UpdateRule::*;
        let adams = [Adam, AdamW, AmsGrad, Muon];
        let set: [(&'static str, bool, &[UpdateRule]); 14] = [
            (
                "momentum",
                self.momentum.is_some(),
                &[SgdMomentum, RmsProp, Muon],
            ),
            ("dampening", self.dampening.is_some(), &[SgdMomentum]),
            ("nesterov", self.nesterov, &[SgdMomentum]),
            (
                "decay_rate",
                self.decay_rate.is_some(),
                &[RmsProp, Adadelta],
            ),
            ("centered", self.centered, &[RmsProp]),
            ("beta1", self.beta1.is_some(), &adams),
            ("beta2", self.beta2.is_some(), &adams),
            (
                "epsilon",
                self.epsilon.is_some(),
                &[RmsProp, Adam, AdamW, AmsGrad, Adadelta, Adagrad, Muon],
            ),
            ("lr_decay", self.lr_decay.is_some(), &[Adagrad]),
            (
                "initial_accumulator_value",
                self.initial_accumulator_value.is_some(),
                &[Adagrad],
            ),
            ("lambd", self.lambd.is_some(), &[Asgd]),
            ("alpha", self.alpha.is_some(), &[Asgd]),
            ("t0", self.t0.is_some(), &[Asgd]),
            (
                "other_learning_rate",
                self.other_learning_rate.is_some(),
                &[Muon],
            ),
        ];
        let name = |rule: &UpdateRule| {
            let found = NAMES.iter().find(|(_, r)| r == rule);
            found.map_or("", |(name, _)| *name)
        };
        for (key, given, of) in set {
            if given && !of.contains(&rule) {
                let have: Vec<&str> = of.iter().map(name).collect();
                let (rule, have) = (name(&rule), have.join(", "));
                let why = format!("{rule} has none; expected with {have}");
                return Err(Error::config(key, why));
            }
        }
        Ok(())
    }

    fn rule(&self, rule: UpdateRule) -> Result<Box<dyn Optimizer>> {
        let or = |value: Option<f64>, default| value.unwrap_or(default);
        let lr = |default| or(self.learning_rate, default);
        let decay = |default| or(self.weight_decay, default);
        match rule {
            UpdateRule::Sgd | UpdateRule::SgdMomentum => {
                let with = rule == UpdateRule::SgdMomentum;
                self.elementwise(SgdConfig {
                    lr: lr(1e-2),
                    momentum: if with { or(self.momentum, 0.9) } else { 0.0 },
                    dampening: if with { or(self.dampening, 0.0) } else { 0.0 },
                    nesterov: with && self.nesterov,
                    weight_decay: decay(0.0),
                })
            }
            UpdateRule::RmsProp => {
                let d = RmsPropConfig::default();
                let config = RmsPropConfig {
                    lr: lr(1e-2),
                    alpha: or(self.decay_rate, d.alpha),
                    eps: or(self.epsilon, d.eps),
                    momentum: or(self.momentum, d.momentum),
                    weight_decay: decay(d.weight_decay),
                    centered: self.centered,
                };
                self.elementwise(config)
                    .map_err(named("alpha", "decay_rate"))
            }
            UpdateRule::Adam | UpdateRule::AmsGrad => {
                let d = AdamConfig::default();
                self.elementwise(AdamConfig {
                    lr: lr(1e-3),
                    betas: self.betas(d.betas),
                    eps: or(self.epsilon, d.eps),
                    weight_decay: decay(d.weight_decay),
                    amsgrad: rule == UpdateRule::AmsGrad,
                })
            }
            UpdateRule::AdamW => {
                let d = AdamWConfig::default();
                self.elementwise(AdamWConfig {
                    weight_decay: decay(d.weight_decay),
                    ..self.adamw(lr(1e-3))
                })
            }
            UpdateRule::Adadelta => {
                let d = AdadeltaConfig::default();
                let config = AdadeltaConfig {
                    lr: lr(d.lr),
                    rho: or(self.decay_rate, d.rho),
                    eps: or(self.epsilon, d.eps),
                    weight_decay: decay(d.weight_decay),
                };
                self.elementwise(config).map_err(named("rho", "decay_rate"))
            }
            UpdateRule::Asgd => {
                let d = AsgdConfig::default();
                self.elementwise(AsgdConfig {
                    lr: lr(d.lr),
                    lambd: or(self.lambd, d.lambd),
                    alpha: or(self.alpha, d.alpha),
                    t0: or(self.t0, d.t0),
                    weight_decay: decay(d.weight_decay),
                })
            }
            UpdateRule::Adagrad => {
                let d = AdagradConfig::default();
                self.elementwise(AdagradConfig {
                    lr: lr(d.lr),
                    lr_decay: or(self.lr_decay, d.lr_decay),
                    weight_decay: decay(d.weight_decay),
                    initial_accumulator_value: or(
                        self.initial_accumulator_value,
                        d.initial_accumulator_value,
                    ),
                    eps: or(self.epsilon, d.eps),
                })
            }
            UpdateRule::Muon => {
                let d = MuonConfig::default();
                let free = if self.no_decay { 0.0 } else { decay(0.0) };
                let other = self.adamw(or(self.other_learning_rate, 1e-3));
                other
                    .validate()
                    .map_err(named("learning_rate", "other_learning_rate"))?;
                Ok(Box::new(Muon::new(MuonConfig {
                    lr: lr(2e-2),
                    momentum: or(self.momentum, d.momentum),
                    weight_decay: decay(0.0),
                    // what is not Muon's is norms and biases
                    other: MuonOther::AdamW(AdamWConfig {
                        weight_decay: free,
                        ..other
                    }),
                    ..d
                })?))
            }
        }
    }

    fn betas(&self, [b1, b2]: [f64; 2]) -> [f64; 2] {
        [self.beta1.unwrap_or(b1), self.beta2.unwrap_or(b2)]
    }

    fn adamw(&self, lr: f64) -> AdamWConfig {
        let d = AdamWConfig::default();
        AdamWConfig {
            lr,
            betas: self.betas(d.betas),
            eps: self.epsilon.unwrap_or(d.eps),
            ..d
        }
    }

    fn elementwise<R: Rule + Clone + 'static>(&self, config: R) -> Result<Box<dyn Optimizer>> {
        let optimizer = Elementwise::new(config)?;
        Ok(Box::new(match self.no_decay {
            true => optimizer.no_decay_on_norms_and_biases(),
            false => optimizer,
        }))
    }
}

/// An error about a rule's own key `theirs`, which is `ours` here.
fn named(theirs: &'static str, ours: &'static str) -> impl Fn(Error) -> Error {
    move |e| match e {
        Error::Config { key, why } if key == theirs => Error::Config { key: ours, why },
        e => e,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Gradients;
    use crate::dtype::DType;
    use crate::nn::{self, Linear, Slot};
    use crate::random::Generator;
    use crate::tensor::Tensor;

    #[test]
    fn every_rule_has_one_name_in_text_and_in_json() {
        for (name, rule) in NAMES {
            assert_eq!(name.parse::<UpdateRule>().unwrap(), rule);
            let json = format!("{name:?}");
            assert_eq!(serde_json::to_string(&rule).unwrap(), json);
            assert_eq!(serde_json::from_str::<UpdateRule>(&json).unwrap(), rule);
            assert!(OptimConfig::default().build(rule).is_ok());
            let config = OptimConfig {
                learning_rate: Some(-1.0),
                ..OptimConfig::default()
            };
            let e = config.build(rule).map(|_| ()).unwrap_err().to_string();
            let text = "configuration: learning_rate: -1; expected a number of at least 0";
            assert_eq!(e, text, "{name}");
        }
        assert_eq!(
            "momentum".parse::<UpdateRule>().unwrap_err().to_string(),
            "configuration: update_rule: \"momentum\"; expected one of sgd, sgd_momentum, rmsprop, \
             adam, adamw, amsgrad, adadelta, asgd, adagrad, muon"
        );
        let config = r#"{"lookahead": {"k": 3}, "ema": {"decay": 0.9}, "no_decay": true}"#;
        let config: OptimConfig = serde_json::from_str(config).unwrap();
        assert_eq!(config.lookahead.unwrap().k, 3);
        assert!(config.build(UpdateRule::Muon).is_ok());
        assert!(serde_json::from_str::<OptimConfig>(r#"{"betas": 3}"#).is_err());
    }

    #[test]
    fn a_setting_that_the_rule_does_not_have_is_refused() {
        for (rule, json, text) in [
            (
                "rmsprop",
                r#"{"alpha": 0.9}"#,
                "alpha: rmsprop has none; expected with asgd",
            ),
            (
                "sgd",
                r#"{"momentum": 0.9}"#,
                "momentum: sgd has none; expected with sgd_momentum, rmsprop, muon",
            ),
            (
                "adam",
                r#"{"nesterov": true}"#,
                "nesterov: adam has none; expected with sgd_momentum",
            ),
            (
                "rmsprop",
                r#"{"decay_rate": 1.5}"#,
                "decay_rate: 1.5; expected at least 0 and below 1",
            ),
            (
                "adadelta",
                r#"{"decay_rate": 1.5}"#,
                "decay_rate: 1.5; expected at least 0 and at most 1",
            ),
            (
                "muon",
                r#"{"other_learning_rate": -1}"#,
                "other_learning_rate: -1; expected a number of at least 0",
            ),
            (
                "sgd_momentum",
                r#"{"dampening": 5}"#,
                "dampening: 5; expected 0 to 1",
            ),
        ] {
            let config: OptimConfig = serde_json::from_str(json).unwrap();
            let e = config.build(rule.parse().unwrap()).map(|_| ()).unwrap_err();
            assert_eq!(e.to_string(), format!("configuration: {text}"));
        }
    }

    #[test]
    fn norms_and_biases_are_free_of_decay_where_asked() -> Result<()> {
        for (name, rule) in NAMES {
            for no_decay in [false, true] {
                let config = OptimConfig {
                    learning_rate: Some(0.1),
                    other_learning_rate: (rule == UpdateRule::Muon).then_some(0.1),
                    weight_decay: Some(0.5),
                    lambd: (rule == UpdateRule::Asgd).then_some(0.0),
                    no_decay,
                    ..OptimConfig::default()
                };
                let mut optimizer = config.build(rule)?;
                let mut net = Linear::new(2, 3, true, &mut Generator::new(0))?;
                let mut grads = Gradients::default();
                // decay alone moves what has no gradient
                nn::try_visit(&mut net, |_, slot| {
                    if let Slot::Parameter(p) = slot {
                        *p = Tensor::ones(*p.shape(), DType::F64)?.requires_grad();
                        grads.insert(p, p.zeros_like()?);
                    }
                    Ok(())
                })?;
                optimizer.step(&mut net, &grads)?;
                let moved = |t: &Tensor| t.to_vec::<f64>().unwrap()[0] != 1.0;
                assert!(moved(&net.weight), "{name}");
                let bias = net.bias.as_ref().unwrap();
                assert_eq!(moved(bias), !no_decay, "{name}");
            }
        }
        Ok(())
    }
}
