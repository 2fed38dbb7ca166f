//! Optimizers: from gradients to new parameters. What all update rules share lives here; a rule
//! itself is a configuration and a loop over elements.

mod adadelta;
mod adagrad;
mod adam;
mod asgd;
mod clip;
mod elementwise;
mod ema;
mod lookahead;
mod muon;
mod rmsprop;
mod rows;
pub mod schedule;
mod sgd;
mod shadow;

use crate::autograd::Gradients;
use crate::cuda::Kernels;
use crate::dtype::{DType, Real};
use crate::error::{Error, Result};
use crate::nn::Module;
use crate::shape::Shape;
use crate::tensor::Tensor;

pub use adadelta::{Adadelta, AdadeltaConfig};
pub use adagrad::{Adagrad, AdagradConfig};
pub use adam::{Adam, AdamConfig, AdamW, AdamWConfig};
pub use asgd::{Asgd, AsgdConfig};
pub use clip::{clip_grad_norm, clip_grad_value};
pub(crate) use clip::{each_gradient, gradient_squares, over_elements};
pub use elementwise::{Elementwise, Group, Selection};
pub use ema::{Ema, EmaConfig, with_averaged};
pub use lookahead::{Lookahead, LookaheadConfig};
pub use muon::{Muon, MuonConfig, MuonOther, newton_schulz};
pub use rmsprop::{RmsProp, RmsPropConfig};
pub use rows::global_norm;
pub(crate) use rows::{Rows, axpy, beside, scale, sum_squares};
pub use schedule::{
    Anneal, Cyclic, CyclicMode, OneCycle, Plateau, PlateauMode, Position, Schedule, ScheduleState,
    ThresholdMode, Unit,
};
pub use sgd::{Sgd, SgdConfig};

/// An update rule with its state, one set of tensors a parameter, by the parameter's name.
///
/// Parameters are F32 or F64; one of 16 bits is an [`Error::DType`], as what a step adds to it
/// would mostly be rounded away.
pub trait Optimizer: Send {
    /// Update every parameter of `model` that has a gradient, in place where nobody else holds
    /// its storage.
    ///
    /// On a CUDA device the step can be captured once it has been made once before (the first one
    /// makes the states): its numbers then are the capture's scalars, and each replay wants those
    /// of [`replayed`](Self::replayed).
    fn step(&mut self, model: &mut dyn Module, grads: &Gradients) -> Result<()>;
    /// For a replay of the last [`step`](Self::step) on a CUDA device: count one more step for
    /// each parameter that it updated, and give the scalars that `step` would have taken, in its
    /// order and with the learning rate of now. Empty where the last step was not on such a device.
    fn replayed(&mut self) -> Vec<u64> {
        Vec::new()
    }
    /// The learning rate of the next step.
    fn learning_rate(&self) -> f64;
    /// Set the learning rate of the next step.
    fn set_learning_rate(&mut self, lr: f64);
    /// What schedules that cycle the momentum set, PyTorch's rule: the momentum of SGD and RMSprop
    /// where they have one, beta1 of the Adams. `None` where there is nothing of the kind.
    fn momentum(&self) -> Option<f64> {
        None
    }
    /// Set the [`momentum`](Self::momentum) of the next step; nothing where it is `None`.
    fn set_momentum(&mut self, _momentum: f64) {}
    /// Averaged weights to evaluate with, by the names of the model's parameters and buffers, as
    /// copies; `None` from an optimizer that averages nothing, or has not yet. Where a name is
    /// missing, the model's own is meant. See [`with_averaged`].
    fn averaged(&self) -> Result<Option<Vec<(String, Tensor)>>> {
        Ok(None)
    }
    /// The state by name, to be saved: `exp_avg.conv1.weight`, ..., and the number of the
    /// parameter's steps, `step.conv1.weight`.
    fn state(&self) -> Result<Vec<(String, Tensor)>>;
    /// Go on from a saved state of the same rule for `model`. An entry that is missing, unknown
    /// or of another shape is an [`Error::Checkpoint`], and nothing is changed.
    fn load_state(&mut self, model: &mut dyn Module, state: &[(String, Tensor)]) -> Result<()>;
}

/// The numbers of one step: what a rule's loop multiplies with, and flags as 0 or 1.
pub type Scalars = [f64; 8];

/// The elementwise part of an optimizer; its configuration is the rule.
pub trait Rule: Send + Sync {
    /// The state tensors that this configuration keeps, by PyTorch's names.
    fn state_names(&self) -> &'static [&'static str];
    /// The learning rate.
    fn learning_rate(&self) -> f64;
    /// Set the learning rate.
    fn set_learning_rate(&mut self, lr: f64);
    /// The momentum, or what goes by that name, where this configuration has one; see
    /// [`Optimizer::momentum`].
    fn momentum(&self) -> Option<f64> {
        None
    }
    /// Set the momentum where there is one.
    fn set_momentum(&mut self, _momentum: f64) {}
    /// Set the weight decay.
    fn set_weight_decay(&mut self, weight_decay: f64);
    /// What the states begin with.
    fn state_start(&self) -> f64 {
        0.0
    }
    /// Which of the states is an average of the parameter's values.
    fn averaged(&self) -> Option<usize> {
        None
    }
    /// The name, to save it, of a number that a parameter's step leaves for its next one.
    fn carried_name(&self) -> Option<&'static str> {
        None
    }
    /// That number after step `step`; with 0, before the first one.
    fn carried(&self, _step: u64) -> f64 {
        0.0
    }
    /// An [`Error::Config`] where a setting makes no sense.
    fn validate(&self) -> Result<()>;
    /// The numbers of step `step`, which counts from 1, with what the step before left.
    fn scalars(&self, step: u64, carried: f64) -> Scalars;
    /// Update one stretch of a parameter's elements `p` from the gradient's `g` and the states',
    /// which come in the order of [`state_names`](Self::state_names). `c` is the step's
    /// [`scalars`](Self::scalars). `#[inline(always)]`, for [`level::run`](crate::level::run).
    fn update<T: Real>(&self, c: [T; 8], p: &mut [T], g: &[T], state: &mut [&mut [T]]);
    /// The same as kernels of `kernels/optimizer.cu`: rows of (p, g, states), then the scalars.
    fn kernels(&self) -> &'static Kernels;
}

/// Round what has all but vanished to 0. The weights of a unit that no image reaches decay by the
/// penalty alone, through all of f32's range into its denormal numbers, which a CPU computes a
/// hundred times slower: whole training steps took ten times as long.
#[inline(always)]
fn flush<T: Real>(x: &mut [T]) {
    for x in x {
        *x = if x.abs() < T::TINY { T::ZERO } else { *x };
    }
}

fn refuse(name: &str, why: String) -> Error {
    Error::Checkpoint {
        path: "optimizer state".into(),
        name: name.into(),
        why,
    }
}

const FOREIGN: &str = "does not belong to this rule and model";

/// Why a saved tensor is not the one that was expected.
fn differs(t: &Tensor, dtype: DType, shape: &Shape) -> String {
    let (got, of) = (t.shape(), t.dtype());
    format!("is {got:?} of {of}; expected {shape:?} of {dtype}")
}

/// An [`Error::Config`] unless `ok`.
fn check(key: &'static str, value: f64, ok: bool, expected: &str) -> Result<()> {
    match ok {
        true => Ok(()),
        false => Err(Error::config(key, format!("{value}; expected {expected}"))),
    }
}

fn check_not_negative(key: &'static str, value: f64) -> Result<()> {
    let ok = value >= 0.0 && value.is_finite();
    check(key, value, ok, "a number of at least 0")
}

/// A momentum that is set from step to step never is 0, so that a velocity that the state keeps
/// stays in use; this is as good as 0.
fn momentum_in_use(momentum: f64) -> f64 {
    momentum.max(1e-30)
}

fn check_fraction(key: &'static str, value: f64) -> Result<()> {
    let ok = (0.0..1.0).contains(&value);
    check(key, value, ok, "at least 0 and below 1")
}

#[cfg(test)]
mod testing {
    use super::*;
    use crate::nn::{Mode, Visitor};

    /// Parameters and nothing else.
    pub struct Bag(pub Vec<Tensor>);

    impl Module for Bag {
        fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
            Ok(x.clone())
        }
        fn visit(&mut self, v: &mut Visitor<'_>) {
            for (i, t) in self.0.iter_mut().enumerate() {
                v.parameter(&i.to_string(), t);
            }
        }
        fn describe(&self) -> String {
            "Bag".into()
        }
    }

    /// A step whose gradients are `value` everywhere.
    pub fn constant_step(optimizer: &mut dyn Optimizer, bag: &mut Bag, value: f64) -> Result<()> {
        let mut grads = Gradients::default();
        for t in &bag.0 {
            grads.insert(t, Tensor::full(t.shape(), value, t.dtype())?);
        }
        optimizer.step(bag, &grads)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Bag, constant_step};
    use super::*;
    use crate::shape::Layout;

    #[test]
    fn updates_are_in_place_and_leave_clones_alone() -> Result<()> {
        let mut bag = Bag(vec![Tensor::ones([3], DType::F32)?.requires_grad()]);
        let mut sgd = Sgd::new(SgdConfig {
            lr: 0.5,
            ..SgdConfig::default()
        })?;
        let place = bag.0[0].make_mut::<f32>()?.as_ptr();
        constant_step(&mut sgd, &mut bag, 1.0)?;
        assert_eq!(bag.0[0].make_mut::<f32>()?.as_ptr(), place);
        let kept = bag.0[0].clone();
        constant_step(&mut sgd, &mut bag, 1.0)?;
        assert_eq!(kept.to_vec::<f32>()?, [0.5; 3]);
        assert_eq!(bag.0[0].to_vec::<f32>()?, [0.0; 3]);
        assert!(bag.0[0].is_tracked());
        Ok(())
    }

    #[test]
    fn what_decays_becomes_zero_and_not_denormal() -> Result<()> {
        // no gradient but the decay's, for more steps than f32 has powers of two
        let mut bag = Bag(vec![Tensor::ones([5], DType::F32)?.requires_grad()]);
        let mut sgd = Sgd::new(SgdConfig {
            lr: 0.5,
            weight_decay: 1.0,
            momentum: 0.1,
            ..SgdConfig::default()
        })?;
        for _ in 0..400 {
            constant_step(&mut sgd, &mut bag, 0.0)?;
            let state = sgd.state()?;
            let all = state.iter().map(|(_, t)| t).chain(&bag.0);
            for t in all.filter(|t| t.dtype() == DType::F32) {
                assert!(t.to_vec::<f32>()?.iter().all(|x| !x.is_subnormal()));
            }
        }
        assert_eq!(bag.0[0].to_vec::<f32>()?, [0.0; 5]);
        Ok(())
    }

    #[test]
    fn big_and_channels_last_parameters_agree_with_small_ones() -> Result<()> {
        // over several stretches, in two memory orders and element by element
        let shape = [3, 50, 20, 20];
        let mut rng = crate::random::Generator::new(3);
        let p = Tensor::randn(shape, &mut rng, DType::F64)?;
        let g = Tensor::randn(shape, &mut rng, DType::F64)?;
        let turned = p.laid_out(Layout::channels_last(*p.shape()))?;
        let mut bag = Bag(vec![p.requires_grad(), turned.requires_grad()]);
        let mut adam = Adam::new(AdamConfig::default())?;
        for _ in 0..2 {
            let mut all = Gradients::default();
            all.insert(&bag.0[0], g.clone());
            all.insert(&bag.0[1], g.clone());
            adam.step(&mut bag, &all)?;
        }
        assert!(bag.0[1].layout().is_channels_last());
        let (a, b) = (bag.0[0].to_vec::<f64>()?, bag.0[1].to_vec::<f64>()?);
        assert_eq!(a, b);
        let (p, g) = (p.to_vec::<f64>()?, g.to_vec::<f64>()?);
        for i in [0, 16_383, 16_384, 59_999] {
            // with a constant gradient both corrected means are exact
            let step = 1e-3 * g[i] / (g[i].abs() + 1e-8);
            assert!((a[i] - (p[i] - 2.0 * step)).abs() < 1e-12);
        }
        Ok(())
    }

    #[test]
    fn a_saved_state_goes_on_and_a_wrong_one_changes_nothing() -> Result<()> {
        let new = || Adam::new(AdamConfig::default());
        let bag = || -> Result<Bag> {
            let a = Tensor::ones([2, 2], DType::F32)?.requires_grad();
            Ok(Bag(vec![
                a,
                Tensor::zeros([3], DType::F32)?.requires_grad(),
            ]))
        };
        let (mut straight, mut whole) = (new()?, bag()?);
        for value in [1.0, -2.0, 0.25] {
            constant_step(&mut straight, &mut whole, value)?;
        }
        let (mut first, mut parts) = (new()?, bag()?);
        constant_step(&mut first, &mut parts, 1.0)?;
        let saved = first.state()?;
        let names: Vec<&str> = saved.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names[..3], ["exp_avg.0", "exp_avg_sq.0", "step.0"]);
        let mut second = new()?;
        second.load_state(&mut parts, &saved)?;
        for value in [-2.0, 0.25] {
            constant_step(&mut second, &mut parts, value)?;
        }
        for (a, b) in whole.0.iter().zip(&parts.0) {
            assert_eq!(a.to_vec::<f32>()?, b.to_vec::<f32>()?);
        }

        let mut missing = saved.clone();
        missing.remove(1);
        let mut unknown = saved.clone();
        unknown.push(("exp_avg.7".into(), Tensor::zeros([2], DType::F32)?));
        let mut shape = saved.clone();
        shape[0].1 = Tensor::zeros([4], DType::F32)?;
        let mut dtype = saved;
        dtype[0].1 = Tensor::zeros([2, 2], DType::F64)?;
        for (wrong, name) in [
            (missing, "exp_avg_sq.0"),
            (unknown, "exp_avg.7"),
            (shape, "exp_avg.0"),
            (dtype, "exp_avg.0"),
        ] {
            let e = second.load_state(&mut parts, &wrong).unwrap_err();
            assert!(
                matches!(&e, Error::Checkpoint { name: n, .. } if n == name),
                "{e}"
            );
        }
        assert_eq!(second.state()?[2].1.item()?, 3.0);
        Ok(())
    }

    #[test]
    fn settings_without_sense_are_refused() {
        let sgd = |change: fn(&mut SgdConfig)| {
            let mut c = SgdConfig::default();
            change(&mut c);
            Sgd::new(c).unwrap_err().to_string()
        };
        assert_eq!(
            sgd(|c| c.momentum = -0.5),
            "configuration: momentum: -0.5; expected a number of at least 0"
        );
        assert!(sgd(|c| c.lr = f64::NAN).contains("learning_rate"));
        assert!(sgd(|c| c.nesterov = true).contains("nesterov"));
        let betas = AdamConfig {
            betas: [0.9, 1.0],
            ..AdamConfig::default()
        };
        assert!(Adam::new(betas).unwrap_err().to_string().contains("beta2"));
        fn refused<R: Rule + Default + std::fmt::Debug>(change: fn(&mut R)) -> String {
            let mut c = R::default();
            change(&mut c);
            Elementwise::new(c).unwrap_err().to_string()
        }
        let at_least_0 = "; expected a number of at least 0";
        for (got, key) in [
            (refused::<RmsPropConfig>(|c| c.eps = -1.0), "epsilon: -1"),
            (
                refused::<AdamWConfig>(|c| c.weight_decay = -2.0),
                "weight_decay: -2",
            ),
            (
                refused::<AdagradConfig>(|c| c.lr_decay = -3.0),
                "lr_decay: -3",
            ),
            (
                refused::<AdagradConfig>(|c| c.initial_accumulator_value = f64::INFINITY),
                "initial_accumulator_value: inf",
            ),
            (
                refused::<AdadeltaConfig>(|c| c.lr = f64::NAN),
                "learning_rate: NaN",
            ),
            (refused::<AsgdConfig>(|c| c.lambd = -0.5), "lambd: -0.5"),
            (refused::<AsgdConfig>(|c| c.alpha = -0.5), "alpha: -0.5"),
            (refused::<AsgdConfig>(|c| c.t0 = -1.0), "t0: -1"),
        ] {
            assert_eq!(got, format!("configuration: {key}{at_least_0}"));
        }
        let rho = refused::<AdadeltaConfig>(|c| c.rho = 1.5);
        assert!(
            rho.contains("rho: 1.5; expected at least 0 and at most 1"),
            "{rho}"
        );
    }
}
