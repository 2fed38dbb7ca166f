//! The update rules by CS231n's names, and how their settings make an optimizer.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::optim::{
    Adam, AdamConfig, AdamW, AdamWConfig, Optimizer, RmsProp, RmsPropConfig, Sgd, SgdConfig,
};

/// CS231n's names of the update rules, and AdamW.
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
}

impl FromStr for UpdateRule {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Ok(match s {
            "sgd" => UpdateRule::Sgd,
            "sgd_momentum" => UpdateRule::SgdMomentum,
            "rmsprop" => UpdateRule::RmsProp,
            "adam" => UpdateRule::Adam,
            "adamw" => UpdateRule::AdamW,
            _ => {
                let why = format!("{s:?}; expected sgd, sgd_momentum, rmsprop, adam or adamw");
                return Err(Error::config("update_rule", why));
            }
        })
    }
}

/// Settings of an update rule, by CS231n's names. What is left out has the rule's default; what
/// the rule does not use is ignored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// The learning rate.
    pub learning_rate: Option<f64>,
    /// Of `sgd_momentum` and `rmsprop`.
    pub momentum: Option<f64>,
    /// Nesterov's look ahead, of `sgd_momentum`.
    pub nesterov: bool,
    /// Of `rmsprop`.
    pub decay_rate: Option<f64>,
    /// Of `adam` and `adamw`.
    pub beta1: Option<f64>,
    /// Of `adam` and `adamw`.
    pub beta2: Option<f64>,
    /// Of `rmsprop`, `adam` and `adamw`.
    pub epsilon: Option<f64>,
    /// An L2 penalty inside the rule, on every parameter; of `adamw`, the decoupled one.
    pub weight_decay: Option<f64>,
}

impl OptimConfig {
    /// The optimizer; an [`Error::Config`] where a setting makes no sense.
    pub fn build(&self, rule: UpdateRule) -> Result<Box<dyn Optimizer>> {
        let lr = |default| self.learning_rate.unwrap_or(default);
        let betas = |[b1, b2]: [f64; 2]| [self.beta1.unwrap_or(b1), self.beta2.unwrap_or(b2)];
        let or = |value: Option<f64>, default| value.unwrap_or(default);
        Ok(match rule {
            UpdateRule::Sgd | UpdateRule::SgdMomentum => {
                let with = rule == UpdateRule::SgdMomentum;
                Box::new(Sgd::new(SgdConfig {
                    lr: lr(1e-2),
                    momentum: if with { or(self.momentum, 0.9) } else { 0.0 },
                    nesterov: with && self.nesterov,
                    weight_decay: or(self.weight_decay, 0.0),
                    ..SgdConfig::default()
                })?)
            }
            UpdateRule::RmsProp => {
                let d = RmsPropConfig::default();
                Box::new(RmsProp::new(RmsPropConfig {
                    lr: lr(1e-2),
                    alpha: or(self.decay_rate, d.alpha),
                    eps: or(self.epsilon, d.eps),
                    momentum: or(self.momentum, d.momentum),
                    weight_decay: or(self.weight_decay, d.weight_decay),
                    ..d
                })?)
            }
            UpdateRule::Adam => {
                let d = AdamConfig::default();
                Box::new(Adam::new(AdamConfig {
                    lr: lr(1e-3),
                    betas: betas(d.betas),
                    eps: or(self.epsilon, d.eps),
                    weight_decay: or(self.weight_decay, d.weight_decay),
                })?)
            }
            UpdateRule::AdamW => {
                let d = AdamWConfig::default();
                Box::new(AdamW::new(AdamWConfig {
                    lr: lr(1e-3),
                    betas: betas(d.betas),
                    eps: or(self.epsilon, d.eps),
                    weight_decay: or(self.weight_decay, d.weight_decay),
                })?)
            }
        })
    }
}
