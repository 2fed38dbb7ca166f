//! Mixed precision in training: which type products run in, and the dynamic scale that keeps the
//! gradients of F16 above its smallest numbers.
//!
//! | autocast | products and their activations | losses, softmax, norms | weights, gradients, optimizer |
//! |---|---|---|---|
//! | `none` | F32 | F32 | F32 |
//! | `bf16` | BF16: F32's range, 8 bits of precision | F32 | F32 |
//! | `f16` | F16: 11 bits, 6e-8 to 65504 | F32 | F32, the loss scaled in backward |
//!
//! [`autocast`](crate::autograd::autocast()) says it op by op. A gradient below F16's smallest number
//! would be 0: so the loss is multiplied by a scale before backward and the gradients are divided by
//! it before the update. Where one of them has become infinite or NaN, the step is left out and the
//! scale is halved; after 2000 good steps it is doubled (Micikevicius et al. 2018). BF16 needs none.
//!
//! On a GPU products run on its matrix units, and activations that products keep take half the
//! memory. On the CPU each element is rounded as there, and nothing is faster.

use serde::{Deserialize, Serialize};

use crate::autograd::Gradients;
use crate::device::Device;
use crate::dtype::{DType, Real};
use crate::error::{Error, Result};
use crate::nn::{self, Module};
use crate::optim::{self, Optimizer};
use crate::tensor::Tensor;
use crate::with_real;

/// The type that products of a training run in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// That of the parameters.
    #[default]
    None,
    /// BF16.
    Bf16,
    /// F16, with a [`GradScaler`].
    F16,
}

impl Precision {
    /// What [`autocast`](crate::autograd::autocast()) takes.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Precision::None => None,
            Precision::Bf16 => Some(DType::BF16),
            Precision::F16 => Some(DType::F16),
        }
    }
}

impl std::str::FromStr for Precision {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Ok(match s {
            "none" => Precision::None,
            "bf16" => Precision::Bf16,
            "f16" => Precision::F16,
            _ => {
                let why = format!("{s:?}; expected none, bf16 or f16");
                return Err(Error::config("autocast", why));
            }
        })
    }
}

/// Settings of a [`GradScaler`], with PyTorch's names and defaults.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossScale {
    /// The scale at first.
    pub init_scale: f64,
    /// What it is multiplied by after `growth_interval` good steps, above 1.
    pub growth_factor: f64,
    /// What it is multiplied by after a bad step, between 0 and 1.
    pub backoff_factor: f64,
    /// Good steps in a row until the scale grows.
    pub growth_interval: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        LossScale {
            init_scale: 65536.0,
            growth_factor: 2.0,
            backoff_factor: 0.5,
            growth_interval: 2000,
        }
    }
}

/// The least and the greatest scale: F32 can hold both and their inverses.
const LEAST: f64 = 1.0 / MOST;
const MOST: f64 = (1u128 << 126) as f64;

impl LossScale {
    /// An [`Error::Config`] where a setting makes no sense.
    pub fn validate(&self) -> Result<()> {
        let check = |key, value: f64, ok: bool, expected: &str| match ok {
            true => Ok(()),
            false => Err(Error::config(key, format!("{value}; expected {expected}"))),
        };
        let LossScale {
            init_scale,
            growth_factor,
            backoff_factor,
            growth_interval,
        } = *self;
        let scale = (LEAST..=MOST).contains(&init_scale);
        check(
            "init_scale",
            init_scale,
            scale,
            "a number from 2^-126 to 2^126",
        )?;
        let grows = growth_factor > 1.0 && growth_factor.is_finite();
        check("growth_factor", growth_factor, grows, "a number above 1")?;
        let backs = backoff_factor > 0.0 && backoff_factor < 1.0;
        check(
            "backoff_factor",
            backoff_factor,
            backs,
            "a number between 0 and 1",
        )?;
        let interval = growth_interval as f64;
        check("growth_interval", interval, interval > 0.0, "at least 1")
    }
}

/// A dynamic loss scale (PyTorch's `GradScaler`): with it the gradients of F16 neither vanish nor
/// stay infinite.
///
/// ```
/// # use cotangent::{DType, Result, Tensor, autograd::autocast, random::Generator};
/// # use cotangent::nn::{Linear, Mode, Module};
/// # use cotangent::optim::{Sgd, SgdConfig};
/// use cotangent::train::{GradScaler, LossScale};
///
/// let mut layer = Linear::new(3, 1, true, &mut Generator::new(0))?;
/// let mut sgd = Sgd::new(SgdConfig { lr: 0.1, ..SgdConfig::default() })?;
/// let mut scaler = GradScaler::new(LossScale::default())?;
/// let loss = {
///     let _half = autocast(DType::F16)?;
///     let y = layer.forward(&Tensor::ones([2, 3], DType::F32)?, Mode::Train)?;
///     y.to_dtype(DType::F32)?.square()?.mean_all()?
/// };
/// let mut grads = scaler.backward(&loss)?;
/// let stepped = scaler.step(&mut sgd, &mut layer, &mut grads)?;
/// assert_eq!(scaler.scale(), if stepped { 65536.0 } else { 32768.0 });
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GradScaler {
    config: LossScale,
    scale: f64,
    /// Good steps since the scale last changed.
    growth_tracker: u64,
    /// Steps left out so far.
    skipped: u64,
    /// Whether the gradients of this step are divided already.
    #[serde(skip)]
    unscaled: bool,
}

impl GradScaler {
    /// At its first scale; an [`Error::Config`] where a setting makes no sense.
    pub fn new(config: LossScale) -> Result<Self> {
        config.validate()?;
        Ok(GradScaler {
            config,
            scale: config.init_scale,
            growth_tracker: 0,
            skipped: 0,
            unscaled: false,
        })
    }

    /// What losses are multiplied by now.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Steps left out so far, because a gradient was not finite.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The gradients of the scaled loss, a scalar.
    pub fn backward(&self, loss: &Tensor) -> Result<Gradients> {
        let seed = Tensor::full(loss.shape(), self.scale, (DType::F64, loss.device()))?;
        loss.backward_from(&seed)
    }

    /// Divide the gradients by the scale, for what looks at them before [`step`](Self::step): clipping.
    /// That then takes them as they are (PyTorch's `unscale_`).
    pub fn unscale(&mut self, model: &mut dyn Module, grads: &mut Gradients) -> Result<()> {
        if !std::mem::replace(&mut self.unscaled, true) {
            let inverse = factor(1.0 / self.scale, nn::device(model))?;
            unscale(model, grads, &inverse)?;
        }
        Ok(())
    }

    /// Divide the gradients by the scale, unless [`unscale`](Self::unscale) did, and step with them
    /// where all are finite; then set the scale of the next step. Whether it stepped. Waits for a
    /// CUDA device, to know.
    pub fn step(
        &mut self,
        optimizer: &mut dyn Optimizer,
        model: &mut dyn Module,
        grads: &mut Gradients,
    ) -> Result<bool> {
        let finite = sum_squares(model, grads)?.item()?.is_finite();
        if finite {
            self.unscale(model, grads)?;
            optimizer.step(model, grads)?;
        }
        self.unscaled = false;
        self.update(finite);
        Ok(finite)
    }

    /// The scale of the next step, after one whose gradients were all finite or not.
    pub(super) fn update(&mut self, finite: bool) {
        let LossScale {
            growth_factor,
            backoff_factor,
            growth_interval,
            ..
        } = self.config;
        if !finite {
            self.skipped += 1;
            self.growth_tracker = 0;
            self.scale = (self.scale * backoff_factor).max(LEAST);
            return;
        }
        self.growth_tracker += 1;
        if self.growth_tracker >= growth_interval {
            self.growth_tracker = 0;
            self.scale = (self.scale * growth_factor).min(MOST);
        }
    }
}

/// A number on a device as (1) of F64. In a captured step a replay rewrites it.
pub(super) fn factor(value: f64, device: Device) -> Result<Tensor> {
    match device {
        Device::Cpu => Tensor::from_vec(vec![value], [1]),
        Device::Cuda(gpu) => Tensor::factor(gpu, value),
    }
}

/// The sum of the squares of all gradients, an F64 scalar: it is finite where they all are.
pub(super) fn sum_squares(model: &mut dyn Module, grads: &Gradients) -> Result<Tensor> {
    optim::gradient_squares("grad_scaler", grads, model, false)?.to(nn::device(model))
}

/// Multiply all gradients by `factor`, (1) of F64, in place: on a CUDA device in one launch.
pub(super) fn unscale(
    model: &mut dyn Module,
    grads: &mut Gradients,
    factor: &Tensor,
) -> Result<()> {
    let op = "grad_scaler";
    let rows = optim::each_gradient(op, grads, model, |g| {
        with_real!(op, g.dtype(), T => {
            let by = T::of(factor.item()?);
            optim::over_elements::<T>(g, |x| x * by)
        })
    })?;
    optim::scale(rows, factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Linear, Mode};
    use crate::optim::{Sgd, SgdConfig};
    use crate::random::Generator;

    #[test]
    fn the_scale_halves_at_once_and_doubles_in_time() -> Result<()> {
        let mut scaler = GradScaler::new(LossScale {
            growth_interval: 3,
            ..LossScale::default()
        })?;
        let mut seen = Vec::new();
        for finite in [true, false, true, true, true, true, false] {
            scaler.update(finite);
            seen.push(scaler.scale() / 65536.0);
        }
        assert_eq!(seen, [1.0, 0.5, 0.5, 0.5, 1.0, 1.0, 0.5]);
        assert_eq!(scaler.skipped(), 2);
        // it stays a number whose inverse is one too
        for finite in [false, true] {
            (0..1000).for_each(|_| scaler.update(finite));
            let (a, b) = (scaler.scale() as f32, (1.0 / scaler.scale()) as f32);
            assert!(a.is_normal() && b.is_normal(), "{a} {b}");
        }
        let json = serde_json::to_string(&scaler).unwrap();
        assert_eq!(serde_json::from_str::<GradScaler>(&json).unwrap(), scaler);
        Ok(())
    }

    #[test]
    fn gradients_are_divided_once() -> Result<()> {
        let run = |first: bool| {
            let mut layer = Linear::new(2, 1, false, &mut Generator::new(0))?;
            let mut sgd = Sgd::new(SgdConfig {
                lr: 1.0,
                ..SgdConfig::default()
            })?;
            let mut scaler = GradScaler::new(LossScale::default())?;
            for _ in 0..2 {
                let x = Tensor::from_vec(vec![3f32, 4.0], [1, 2])?;
                let loss = layer.forward(&x, Mode::Train)?.sum_all()?;
                let mut grads = scaler.backward(&loss)?;
                if first {
                    scaler.unscale(&mut layer, &mut grads)?;
                    let norm = optim::clip_grad_norm(&mut grads, &mut layer, 1e3)?;
                    assert!((norm.item()? - 5.0).abs() < 1e-6);
                }
                assert!(scaler.step(&mut sgd, &mut layer, &mut grads)?);
            }
            layer.weight.to_vec::<f32>()
        };
        let before = Linear::new(2, 1, false, &mut Generator::new(0))?.weight;
        let before = before.to_vec::<f32>()?;
        let after = [before[0] - 6.0, before[1] - 8.0];
        for first in [false, true] {
            let found = run(first)?;
            assert!(found.iter().zip(after).all(|(a, b)| (a - b).abs() < 1e-5));
        }
        Ok(())
    }

    #[test]
    fn settings_without_sense() {
        let refused = |change: fn(&mut LossScale)| {
            let mut c = LossScale::default();
            change(&mut c);
            GradScaler::new(c).err().unwrap().to_string()
        };
        for (e, wanted) in [
            (
                refused(|c| c.init_scale = 0.0),
                "init_scale: 0; expected a number from 2^-126 to 2^126",
            ),
            (
                refused(|c| c.growth_factor = 1.0),
                "growth_factor: 1; expected a number above 1",
            ),
            (
                refused(|c| c.backoff_factor = 1.0),
                "backoff_factor: 1; expected a number between 0 and 1",
            ),
            (
                refused(|c| c.growth_interval = 0),
                "growth_interval: 0; expected at least 1",
            ),
        ] {
            assert!(e.contains(wanted), "{e}");
        }
        let e = "fp16".parse::<Precision>().unwrap_err().to_string();
        assert!(e.contains("\"fp16\"; expected none, bf16 or f16"), "{e}");
    }
}
