//! CS231n's sanity checks of a model before it is trained: initial loss, gradients, overfitting.

use std::fmt;

use crate::autograd::no_grad;
use crate::data::{Augment, Dataset, Normalize};
use crate::dtype::DType;
use crate::error::Result;
use crate::nn::{self, Activation, Fan, Init, Mode, Module};
use crate::ops::check::Report;
use crate::random::Generator;
use crate::tensor::Tensor;
use crate::train::checkpoint::{generators, set_generators};
use crate::train::l2::l2_loss;
use crate::train::loss::{LossFn, softmax_loss};
use crate::train::solver::{Solver, SolverConfig, SolverData};
use crate::train::{OptimConfig, UpdateRule};

/// How far the initial loss may be from ln C, relative.
const INITIAL_LOSS: f64 = 0.1;
/// What a gradient's error may be: a nudge of 1e-5 may carry a ReLU across its kink, which shows
/// as an error of that size; a wrong formula shows as a far greater one.
const GRADIENT: f64 = 1e-5;
/// The regularization that must raise the loss.
const REG: f64 = 0.5;

/// Settings of [`sanity_checks`].
#[derive(Clone, Debug)]
pub struct SanityConfig {
    /// Images for the initial loss and for overfitting.
    pub images: usize,
    /// Images for the gradient check.
    pub gradient_images: usize,
    /// Elements of each parameter for the gradient check.
    pub gradient_samples: usize,
    /// Epochs to reach 100 %.
    pub epochs: usize,
    /// Learning rate of Adam while overfitting.
    pub learning_rate: f64,
    /// Of the random images and labels.
    pub seed: u64,
}

impl Default for SanityConfig {
    fn default() -> Self {
        SanityConfig {
            images: 50,
            gradient_images: 3,
            gradient_samples: 4,
            epochs: 60,
            learning_rate: 1e-3,
            seed: 0,
        }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq)]
pub struct SanityCheck {
    /// What is checked.
    pub name: &'static str,
    /// What should be.
    pub expected: String,
    /// What is.
    pub found: String,
    /// Whether that is well.
    pub passed: bool,
}

/// What [`sanity_checks`] found; displays as a table.
#[derive(Clone, Debug, PartialEq)]
pub struct SanityReport {
    /// In the order of the course.
    pub checks: Vec<SanityCheck>,
}

impl SanityReport {
    /// Whether all is well.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|c| c.passed)
    }
}

impl fmt::Display for SanityReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |of: fn(&SanityCheck) -> &str| {
            let widths = self.checks.iter().map(|c| of(c).chars().count());
            widths.max().unwrap_or(0)
        };
        let (name, expected) = (width(|c| c.name), width(|c| &c.expected));
        for c in &self.checks {
            let verdict = if c.passed { "ok  " } else { "FAIL" };
            let (n, e, found) = (c.name, &c.expected, &c.found);
            writeln!(
                f,
                "{verdict}  {n:name$}  expected {e:expected$}  found {found}"
            )?;
        }
        Ok(())
    }
}

/// Run the checks on a fresh model with the softmax loss: on random data the loss is near ln C
/// and regularization raises it, backward agrees with differences in f64, and a few images of
/// `train` can be learned by heart. The model is left as it was.
pub fn sanity_checks(
    model: &mut dyn Module,
    train: &Dataset,
    normalize: &Normalize,
    config: &SanityConfig,
) -> Result<SanityReport> {
    let (state, streams) = (nn::state_dict(model), generators(model));
    let checks = all(model, train, normalize, config);
    nn::load_state_dict(model, &state)?;
    set_generators(model, &streams);
    Ok(SanityReport { checks: checks? })
}

fn all(
    model: &mut dyn Module,
    train: &Dataset,
    normalize: &Normalize,
    config: &SanityConfig,
) -> Result<Vec<SanityCheck>> {
    let (classes, loss) = (train.classes().len(), softmax_loss(0.0));
    let mut rng = Generator::new(config.seed);
    let mut random = |n: usize, dtype: DType| -> Result<(Tensor, Tensor)> {
        let [c, h, w] = train.shape();
        let images = Tensor::randn([n, c, h, w], &mut rng, dtype)?;
        let labels = (0..n).map(|_| rng.below(classes as u64) as i64).collect();
        Ok((images, Tensor::from_vec(labels, [n])?))
    };

    let (images, labels) = random(config.images, DType::F32)?;
    let bare = {
        let _quiet = no_grad();
        loss(&model.forward(&images, Mode::Train)?, &labels)?.item()?
    };
    let regular = bare + l2_loss(model, REG)?;
    let chance = (classes as f64).ln();
    let (images, labels) = random(config.gradient_images, DType::F64)?;
    // the assignment's weights are so small that every gradient but the last layer's is nearly 0,
    // where a wrong one could not be told from a right one: check at Kaiming's
    let state = nn::state_dict(model);
    Init::KaimingNormal(Fan::In, Activation::Relu)
        .apply(model, &mut Generator::new(config.seed))?;
    let gradients = check_gradients(model, &images, &labels, &loss, config.gradient_samples)?;
    nn::load_state_dict(model, &state)?;
    drop(state);
    let accuracy = overfit(model, train, normalize, config)?;
    Ok(vec![
        SanityCheck {
            name: "initial loss",
            expected: format!("ln {classes} = {chance:.3}, within 10 %"),
            found: format!("{bare:.3}"),
            passed: (bare - chance).abs() <= INITIAL_LOSS * chance,
        },
        SanityCheck {
            name: "regularization",
            expected: format!("above {bare:.3} with reg {REG}"),
            found: format!("{regular:.3}"),
            passed: regular > bare,
        },
        SanityCheck {
            name: "gradients",
            expected: format!("error at most {GRADIENT:.0e} in f64"),
            found: format!(
                "{:.1e} over {} elements",
                gradients.error, gradients.checked
            ),
            passed: gradients.error <= GRADIENT,
        },
        SanityCheck {
            name: "overfitting",
            expected: format!(
                "100 % of {} images in {} epochs",
                config.images, config.epochs
            ),
            found: format!("{:.0} %", 100.0 * accuracy),
            passed: accuracy == 1.0,
        },
    ])
}

/// The whole model's gradients against central differences, in f64 and training mode, at
/// `samples` random elements of each parameter. `images` is (N, C, H, W) of F64. The model's
/// parameters and buffers come back as they were.
pub fn check_gradients(
    model: &mut dyn Module,
    images: &Tensor,
    labels: &Tensor,
    loss: &LossFn,
    samples: usize,
) -> Result<Report> {
    nn::gradcheck_of(model, &[], samples, |model, _| {
        loss(&model.forward(images, Mode::Train)?, labels)
    })
}

/// The accuracy on the first `images` training images after learning from them alone.
fn overfit(
    model: &mut dyn Module,
    train: &Dataset,
    normalize: &Normalize,
    config: &SanityConfig,
) -> Result<f64> {
    let few = train.range(0..config.images.min(train.len()))?;
    let solver_config = SolverConfig {
        update_rule: UpdateRule::Adam,
        optim_config: OptimConfig {
            learning_rate: Some(config.learning_rate),
            ..OptimConfig::default()
        },
        batch_size: few.len().div_ceil(2),
        num_epochs: config.epochs,
        num_train_samples: Some(1),
        verbose: false,
        seed: config.seed,
        ..SolverConfig::default()
    };
    // they are their own validation images: the best epoch is the best on them
    let data = SolverData {
        train: few.clone(),
        val: few,
        normalize: normalize.clone(),
        augment: Augment::none(),
    };
    let mut solver = Solver::new(model, data, solver_config)?;
    solver.train()?;
    Ok(solver.history().best_val_acc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::synthetic;
    use crate::error::Error;
    use crate::nn::Visitor;
    use crate::random::Generator;

    /// A hidden layer with dropout and a buffer.
    struct Net {
        w1: Tensor,
        w2: Tensor,
        b2: Tensor,
        mean: Tensor,
        noise: Generator,
        /// Multiplies w1's gradient: 1 unless the model is broken.
        broken: f64,
    }

    impl Net {
        fn new(scale: f64) -> Result<Self> {
            let mut rng = Generator::new(1);
            let mut weight = |shape: [usize; 2], scale: f64| -> Result<Tensor> {
                let w = Tensor::randn(shape, &mut rng, DType::F32)?;
                Ok(w.mul_scalar(scale)?.requires_grad())
            };
            Ok(Net {
                w1: weight([24, 3 * 32 * 32], 0.02)?,
                w2: weight([10, 24], scale)?,
                b2: Tensor::zeros([10], DType::F32)?.requires_grad(),
                mean: Tensor::zeros([10], DType::F32)?,
                noise: Generator::new(3),
                broken: 1.0,
            })
        }
    }

    impl Module for Net {
        fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
            let h = x.flatten(1)?.linear(&self.w1, None)?.relu()?;
            let h = match mode {
                Mode::Train => h.dropout(0.1, &mut self.noise)?,
                Mode::Eval => h,
            };
            let broken = self.broken;
            h.register_hook(move |g| Ok(Some(g.mul_scalar(broken)?)));
            let y = h.linear(&self.w2, Some(&self.b2))?;
            if mode == Mode::Train {
                self.mean = self.mean.add(&y.detach().mean(&[0], false)?)?;
            }
            Ok(y)
        }
        fn visit(&mut self, v: &mut Visitor<'_>) {
            v.parameter("w1", &mut self.w1);
            v.parameter("w2", &mut self.w2);
            v.parameter("b2", &mut self.b2);
            v.buffer("mean", &mut self.mean);
            v.generator("noise", &mut self.noise);
        }
        fn describe(&self) -> String {
            "Net()".into()
        }
    }

    fn run(net: &mut Net, epochs: usize) -> SanityReport {
        let train = synthetic(0, 0, 50);
        let normalize = Normalize::mean_image(&train).unwrap();
        let config = SanityConfig {
            epochs,
            ..SanityConfig::default()
        };
        sanity_checks(net, &train, &normalize, &config).unwrap()
    }

    #[test]
    fn a_sound_model_passes_and_stays_as_it_was() -> Result<()> {
        let mut net = Net::new(1e-2)?;
        let (before, noise) = (nn::state_dict(&mut net), net.noise);
        let report = run(&mut net, 60);
        assert!(report.passed(), "{report}");
        assert_eq!(report.to_string().lines().count(), 4);
        for ((name, a), (_, b)) in before.iter().zip(nn::state_dict(&mut net)) {
            assert_eq!(a.to_vec::<f32>()?, b.to_vec::<f32>()?, "{name}");
        }
        assert_eq!(net.noise, noise);
        assert!(net.w1.is_tracked());
        Ok(())
    }

    #[test]
    fn a_wrong_gradient_a_high_loss_and_no_time_are_seen() -> Result<()> {
        let mut net = Net::new(1.0)?;
        net.broken = 1.01;
        let report = run(&mut net, 1);
        let passed: Vec<bool> = report.checks.iter().map(|c| c.passed).collect();
        assert_eq!(passed, [false, true, false, false], "{report}");
        assert!(report.to_string().starts_with("FAIL  initial loss"));
        Ok(())
    }

    #[test]
    fn an_error_leaves_the_model_too() -> Result<()> {
        let mut net = Net::new(1e-2)?;
        let mono = Dataset::new("mono", vec![0; 8], vec![0, 1], [1, 2, 2], &["a", "b"])?;
        let normalize = Normalize::mean_image(&mono)?;
        let e = sanity_checks(&mut net, &mono, &normalize, &SanityConfig::default());
        assert!(matches!(e, Err(Error::Shape { .. })), "{e:?}");
        assert_eq!(net.mean.to_vec::<f32>()?, [0.0; 10]);
        Ok(())
    }
}
