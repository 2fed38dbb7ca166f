//! Batch normalization, with the ReLU after it fused where asked for.

use std::sync::{Arc, OnceLock};

use crate::autograd::{Op, apply};
use crate::cpu::rows;
use crate::dtype::{DType, Real};
use crate::error::{Error, Result};
use crate::ops::check::{Case, Input};
use crate::shape::Layout;
use crate::tensor::Tensor;
use crate::with_real;

const NAME: &str = "batch_norm";

/// Settings of [`Tensor::batch_norm`].
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct BatchNorm {
    /// Normalize by the batch's own statistics; else by the running ones.
    pub training: bool,
    /// How much of the batch's statistics goes into the running ones.
    pub momentum: f64,
    /// Added to the variance.
    pub eps: f64,
    /// Apply max(y, 0) in the same pass.
    pub relu: bool,
}

impl Default for BatchNorm {
    /// PyTorch's: training, momentum 0.1, eps 1e-5, no ReLU.
    fn default() -> Self {
        BatchNorm {
            training: true,
            momentum: 0.1,
            eps: 1e-5,
            relu: false,
        }
    }
}

/// Mean and biased variance of each channel.
#[derive(Clone)]
struct Moments {
    mean: Vec<f64>,
    var: Vec<f64>,
}

/// y = (x - mean) / sqrt(var + eps) weight + bias for each channel, mean and variance over all
/// other axes (Ioffe and Szegedy 2015). Inputs x, weight, bias.
struct Normalize {
    settings: BatchNorm,
    /// The running statistics when evaluating; when training, where forward leaves the batch's.
    moments: Arc<OnceLock<Moments>>,
}

struct Saved {
    /// As rows of channels in memory.
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Vec<f64>,
    /// 1 / sqrt(var + eps).
    invstd: Vec<f64>,
}

impl Saved {
    /// y = x scale + shift: (scale, shift) of each channel.
    fn affine<T: Real>(&self) -> Result<[Vec<T>; 2]> {
        let (w, b) = (self.weight.to_vec::<T>()?, self.bias.to_vec::<T>()?);
        let scale = |c: usize| w[c].to_f64() * self.invstd[c];
        let channels = 0..w.len();
        Ok([
            channels.clone().map(|c| T::of(scale(c))).collect(),
            channels
                .map(|c| T::of(b[c].to_f64() - self.mean[c] * scale(c)))
                .collect(),
        ])
    }
}

/// The tensor lying in memory as rows of channels.
fn as_rows(x: &Tensor) -> Result<Tensor> {
    match x.rank() {
        4 => x.channels_last(),
        _ => x.packed(),
    }
}

fn rows_layout(x: &Tensor) -> Layout {
    match x.rank() {
        4 => Layout::channels_last(*x.shape()),
        _ => Layout::contiguous(*x.shape()),
    }
}

impl Op<3> for Normalize {
    const NAME: &'static str = NAME;
    type Saved = Saved;

    fn forward(&self, [x, weight, bias]: [&Tensor; 3]) -> Result<(Tensor, Saved)> {
        let x = as_rows(x)?;
        let c = x.shape()[1];
        with_real!(NAME, x.dtype(), T => {
            let v = x.dense_slice::<T>(NAME)?;
            let Moments { mean, var } = self.moments.get_or_init(|| moments(v, c)).clone();
            let invstd = var.iter().map(|v| 1.0 / (v + self.settings.eps).sqrt()).collect();
            let (weight, bias) = (weight.clone(), bias.clone());
            let saved = Saved { x: x.clone(), weight, bias, mean, invstd };
            let [scale, shift] = saved.affine::<T>()?;
            let y = Tensor::build::<T>(rows_layout(&x), x.device(), |y| {
                if self.settings.relu {
                    rows::map([v, v], [&scale, &shift], c, y, |x, _, [a, b]| (x * a + b).nan_max(T::ZERO));
                } else {
                    rows::map([v, v], [&scale, &shift], c, y, |x, _, [a, b]| x * a + b);
                }
            })?;
            Ok((y, saved))
        })
    }

    fn backward(&self, saved: Saved, dy: Tensor, _: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        with_real!(NAME, saved.x.dtype(), T => {
            if self.settings.relu {
                // the mask is forward's own sign, computed again by the same formula
                backward::<T>(&saved, &dy, self.settings.training, |x, dy, [a, b]| {
                    if x * a + b > T::ZERO { dy } else { T::ZERO }
                })
            } else {
                backward::<T>(&saved, &dy, self.settings.training, |_, dy, _| dy)
            }
        })
    }
}

/// Mean and biased variance of each of `c` channels, in one pass. Each channel is shifted by its
/// first element: the variance of numbers far from 0 does not cancel.
fn moments<T: Real>(x: &[T], c: usize) -> Moments {
    let m = (x.len() / c.max(1)) as f64;
    let shift = &x[..c];
    let [mut mean, mut var] = rows::column_sums([x, x], [shift], c, |_, x, _, [k]| {
        let d = x - k;
        [d, d * d]
    });
    for ((mean, var), k) in mean.iter_mut().zip(&mut var).zip(shift) {
        let d = *mean / m;
        // NaN stays NaN, where max would drop it
        *var = Real::nan_max(*var / m - d * d, 0.0);
        *mean = d + k.to_f64();
    }
    Moments { mean, var }
}

/// With g the gradient through the mask and xhat = (x - mean) invstd:
/// dbias = sum g, dweight = sum g xhat, and
/// dx = weight invstd (g - dbias / m - xhat dweight / m) when training, weight invstd g else.
fn backward<T: Real>(
    saved: &Saved,
    dy: &Tensor,
    training: bool,
    mask: impl Fn(T, T, [T; 2]) -> T + Sync,
) -> Result<[Option<Tensor>; 3]> {
    let (x, dy) = (&saved.x, as_rows(dy)?);
    let c = x.shape()[1];
    let m = (x.numel() / c.max(1)) as f64;
    let (v, g) = (x.dense_slice::<T>(NAME)?, dy.dense_slice::<T>(NAME)?);
    let mean: Vec<T> = saved.mean.iter().map(|&x| T::of(x)).collect();
    let [scale, shift] = saved.affine::<T>()?;
    let [dbias, mut dweight] =
        rows::column_sums([v, g], [&mean, &scale, &shift], c, |_, x, dy, [k, a, b]| {
            let g = mask(x, dy, [a, b]);
            [g, g * (x - k)]
        });
    for (d, s) in dweight.iter_mut().zip(&saved.invstd) {
        *d *= s;
    }
    let dx = Tensor::build::<T>(rows_layout(x), x.device(), |dx| {
        if training {
            // dx = scale g + slope (x - mean) + level
            let slope: Vec<T> = (0..c)
                .map(|c| T::of(-scale[c].to_f64() * saved.invstd[c] * dweight[c] / m))
                .collect();
            let level: Vec<T> = (0..c)
                .map(|c| T::of(-scale[c].to_f64() * dbias[c] / m))
                .collect();
            let k = [&mean[..], &scale, &shift, &slope, &level];
            rows::map([v, g], k, c, dx, |x, dy, [k, a, b, slope, level]| {
                a * mask(x, dy, [a, b]) + (slope * (x - k) + level)
            });
        } else {
            rows::map([v, g], [&scale, &shift], c, dx, |x, dy, [a, b]| {
                a * mask(x, dy, [a, b])
            });
        }
    })?;
    let channel = |v: Vec<f64>| Tensor::from_vec(v.into_iter().map(T::of).collect(), c);
    Ok([Some(dx), Some(channel(dweight)?), Some(channel(dbias)?)])
}

impl Tensor {
    /// Batch normalization of (N, C) or (N, C, H, W) over all axes but C. `weight`, `bias` and the
    /// `running` mean and variance have shape (C); without weight and bias y is not rescaled.
    ///
    /// Training moves the running statistics towards the batch's: r = (1 - momentum) r +
    /// momentum s, with the unbiased variance. An error for a single value a channel when
    /// training, and for no running statistics when not.
    ///
    /// ```
    /// # use cotangent::{ops::BatchNorm, DType, Tensor};
    /// let x = Tensor::from_vec(vec![1f32, 3.0], [2, 1])?;
    /// let (mut mean, mut var) = (Tensor::zeros([1], DType::F32)?, Tensor::ones([1], DType::F32)?);
    /// let y = x.batch_norm(None, None, Some((&mut mean, &mut var)), &BatchNorm::default())?;
    /// assert!((y.to_vec::<f32>()?[1] - 1.0).abs() < 1e-4);
    /// assert!((mean.item()? - 0.2).abs() < 1e-6);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn batch_norm(
        &self,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        running: Option<(&mut Tensor, &mut Tensor)>,
        settings: &BatchNorm,
    ) -> Result<Tensor> {
        if !matches!(self.rank(), 2 | 4) {
            return Err(Error::shape(
                NAME,
                &[*self.shape()],
                format!("expected (N, C) or (N, C, H, W) but got {:?}", self.shape()),
            ));
        }
        let c = self.shape()[1];
        let m = self.numel() / c.max(1);
        let stats = running.as_ref().map(|(m, v)| (&**m, &**v)).unzip();
        for (name, t) in [
            ("weight", weight),
            ("bias", bias),
            ("running mean", stats.0),
            ("running variance", stats.1),
        ] {
            if let Some(t) = t
                && t.shape()[..] != [c]
            {
                return Err(Error::shape(
                    NAME,
                    &[*self.shape(), *t.shape()],
                    format!(
                        "input {:?} wants {name} [{c}] but got {:?}",
                        self.shape(),
                        t.shape()
                    ),
                ));
            }
        }
        let cell = Arc::new(OnceLock::new());
        if settings.training {
            if m < 2 {
                return Err(Error::shape(
                    NAME,
                    &[*self.shape()],
                    format!(
                        "expected more than 1 value per channel when training, got input {:?}",
                        self.shape()
                    ),
                ));
            }
        } else {
            let (Some(mean), Some(var)) = stats else {
                return Err(Error::argument(
                    NAME,
                    "evaluation needs the running mean and variance",
                ));
            };
            let read = |t: &Tensor| t.cast(DType::F64)?.to_vec::<f64>();
            let (mean, var) = (read(mean)?, read(var)?);
            cell.get_or_init(|| Moments { mean, var });
        }
        let options = (self.dtype(), self.device());
        let (one, zero) = (Tensor::ones(c, options)?, Tensor::zeros(c, options)?);
        let op = Normalize {
            settings: *settings,
            moments: cell.clone(),
        };
        let inputs = [self, weight.unwrap_or(&one), bias.unwrap_or(&zero)];
        let y = apply(op, inputs)?;
        if settings.training
            && let (Some((mean, var)), Some(batch)) = (running, cell.get())
        {
            let unbiased = m as f64 / (m - 1) as f64;
            move_towards(mean, &batch.mean, 1.0, settings.momentum)?;
            move_towards(var, &batch.var, unbiased, settings.momentum)?;
        }
        Ok(y)
    }
}

/// r = (1 - momentum) r + momentum factor s.
fn move_towards(running: &mut Tensor, s: &[f64], factor: f64, momentum: f64) -> Result<()> {
    let mut r = running.cast(DType::F64)?.to_vec::<f64>()?;
    for (r, s) in r.iter_mut().zip(s) {
        *r = (1.0 - momentum) * *r + momentum * factor * s;
    }
    running.copy_(&Tensor::from_vec(r, running.shape())?)
}

/// Train on the inputs x, weight, bias.
fn train(x: &[Tensor], relu: bool) -> Result<Tensor> {
    let settings = BatchNorm {
        relu,
        ..BatchNorm::default()
    };
    x[0].batch_norm(x.get(1), x.get(2), None, &settings)
}

/// Evaluate the inputs x, weight, bias with running statistics of 0.1 and 0.8.
fn evaluate(x: &[Tensor], relu: bool) -> Result<Tensor> {
    let settings = BatchNorm {
        training: false,
        relu,
        ..BatchNorm::default()
    };
    let c = x[0].shape()[1];
    let (mut mean, mut var) = (
        Tensor::full(c, 0.1, x[0].dtype())?,
        Tensor::full(c, 0.8, x[0].dtype())?,
    );
    x[0].batch_norm(x.get(1), x.get(2), Some((&mut mean, &mut var)), &settings)
}

macro_rules! cases {
    ($($name:literal $run:ident $relu:literal [$($input:ident $shape:expr),*];)*) => {
        &[$(Case { op: NAME, name: $name, inputs: &[$(Input::$input(&$shape)),*], run: |x| $run(x, $relu) }),*]
    };
}

/// Both ranks, training and evaluation, with and without ReLU, weight and bias.
pub const CASES: &[Case] = cases! {
    "features" train false [Normal [6, 4], Normal [4], Normal [4]];
    "images" train false [Normal [3, 5, 2, 3], Normal [5], Normal [5]];
    "images, relu" train true [Normal [3, 5, 2, 3], Normal [5], Normal [5]];
    "features, relu" train true [Normal [7, 3], Normal [3], Normal [3]];
    "19 channels" train true [Normal [2, 19, 2, 2], Normal [19], Normal [19]];
    "no weight and bias" train false [Normal [4, 3, 2, 2]];
    "one image" train false [Normal [1, 3, 2, 2], Normal [3], Normal [3]];
    "1x1 images" train false [Normal [3, 2, 1, 1], Normal [2], Normal [2]];
    "many rows" train false [Normal [3, 2, 9, 9], Normal [2], Normal [2]];
    "evaluation" evaluate false [Normal [3, 5, 2, 3], Normal [5], Normal [5]];
    "evaluation, relu" evaluate true [Normal [3, 5, 2, 3], Normal [5], Normal [5]];
    "evaluation of one" evaluate true [Normal [1, 3], Normal [3], Normal [3]];
    "evaluation, no weight and bias" evaluate false [Normal [4, 3]];
    "evaluation of none" evaluate false [Normal [0, 3, 2, 2], Normal [3], Normal [3]];
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_statistics_follow_pytorch() -> Result<()> {
        // batch mean 3, biased variance 2, unbiased 2.5
        let x = Tensor::arange(1.0, 6.0, 1.0, DType::F32)?.reshape([5, 1])?;
        let (mut mean, mut var) = (
            Tensor::full(1, 1.0, DType::F64)?,
            Tensor::ones(1, DType::F64)?,
        );
        let settings = BatchNorm::default();
        x.batch_norm(None, None, Some((&mut mean, &mut var)), &settings)?;
        assert!((mean.item()? - 1.2).abs() < 1e-12 && (var.item()? - 1.15).abs() < 1e-12);
        // evaluation reads them and leaves them
        let before = var.to_vec::<f64>()?;
        let settings = BatchNorm {
            training: false,
            eps: 0.0,
            ..settings
        };
        let y = x.batch_norm(None, None, Some((&mut mean, &mut var)), &settings)?;
        assert!((y.to_vec::<f32>()?[4] as f64 - 3.8 / 1.15f64.sqrt()).abs() < 1e-6);
        assert_eq!(var.to_vec::<f64>()?, before);
        Ok(())
    }

    #[test]
    fn numbers_far_from_zero_keep_their_variance() -> Result<()> {
        // around 4096 the square's last bit is 1: an unshifted f32 sum would lose the variance
        let v: Vec<f32> = (0..4000).map(|i| 4096.0 + (i % 2) as f32).collect();
        let y =
            Tensor::from_vec(v, [4000, 1])?.batch_norm(None, None, None, &BatchNorm::default())?;
        let y = y.to_vec::<f32>()?;
        assert!(
            (y[0] + 1.0).abs() < 2e-3 && (y[1] - 1.0).abs() < 2e-3,
            "{} {}",
            y[0],
            y[1]
        );
        Ok(())
    }

    #[test]
    fn nan_stays() -> Result<()> {
        let x = Tensor::from_vec(vec![1f32, f32::NAN, 2.0], [3, 1])?;
        let y = train(&[x], true)?.to_vec::<f32>()?;
        assert!(y.iter().all(|y| y.is_nan()));
        Ok(())
    }

    #[test]
    fn errors_name_the_shapes() -> Result<()> {
        let x = Tensor::ones([2, 3, 4, 4], DType::F32)?;
        let w = Tensor::ones(4, DType::F32)?;
        let settings = BatchNorm::default();
        let e = |r: Result<Tensor>| r.unwrap_err().to_string();
        assert_eq!(
            e(x.batch_norm(Some(&w), None, None, &settings)),
            "batch_norm: input [2, 3, 4, 4] wants weight [3] but got [4]"
        );
        assert_eq!(
            e(Tensor::ones([1, 3], DType::F32)?.batch_norm(None, None, None, &settings)),
            "batch_norm: expected more than 1 value per channel when training, got input [1, 3]"
        );
        assert_eq!(
            e(w.batch_norm(None, None, None, &settings)),
            "batch_norm: expected (N, C) or (N, C, H, W) but got [4]"
        );
        let settings = BatchNorm {
            training: false,
            ..settings
        };
        assert!(e(x.batch_norm(None, None, None, &settings)).contains("running mean"));
        Ok(())
    }
}
