//! Batch normalization, with the ReLU after it fused where asked for.

use std::sync::{Arc, OnceLock};

use crate::autograd::{Op, apply};
use crate::cpu::rows::{self, Affine};
use crate::cuda::columns::{self, Columns};
use crate::cuda::{self, Arg, Gpu, kernels};
use crate::device::Device;
use crate::dtype::{DType, Real};
use crate::error::{Error, Result};
use crate::ops::check::{Case, Input};
use crate::ops::{Formula, one_dtype};
use crate::shape::{IntoShape, Layout};
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

/// Mean and biased variance of each channel: (C), in f64.
#[derive(Clone)]
struct Moments {
    mean: Tensor,
    var: Tensor,
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
    moments: Moments,
    settings: BatchNorm,
}

/// The tensor lying in memory as rows of channels.
fn as_rows(x: &Tensor) -> Result<Tensor> {
    match x.rank() {
        4 => x.channels_last(),
        _ => x.packed(),
    }
}

impl Op<3> for Normalize {
    const NAME: &'static str = NAME;
    const HALF_ON_CUDA: bool = true;
    type Saved = Saved;

    fn forward(&self, [x, weight, bias]: [&Tensor; 3]) -> Result<(Tensor, Saved)> {
        one_dtype(NAME, [x, weight, bias])?;
        let x = as_rows(x)?;
        let moments = match self.moments.get() {
            Some(running) => running.clone(),
            None => {
                let batch = match x.device() {
                    Device::Cpu => with_real!(NAME, x.dtype(), T => moments::<T>(&x))?,
                    Device::Cuda(gpu) => Moments::on(gpu, &x)?,
                };
                self.moments.get_or_init(|| batch).clone()
            }
        };
        let saved = Saved {
            x,
            weight: weight.packed()?,
            bias: bias.packed()?,
            moments,
            settings: self.settings,
        };
        let y = match saved.x.device() {
            Device::Cpu => with_real!(NAME, saved.x.dtype(), T => saved.normalize::<T>())?,
            Device::Cuda(gpu) => saved.normalize_on(gpu)?,
        };
        Ok((y, saved))
    }

    /// With g the gradient through the ReLU and xhat = (x - mean) invstd:
    /// dbias = sum g, dweight = sum g xhat, and
    /// dx = weight invstd (g - dbias / m - xhat dweight / m) when training, weight invstd g else.
    fn backward(&self, saved: Saved, dy: Tensor, needs: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        self.backward_onto(saved, dy, needs, &mut None)
    }

    fn backward_onto(
        &self,
        saved: Saved,
        dy: Tensor,
        _: [bool; 3],
        sum: &mut Option<Tensor>,
    ) -> Result<[Option<Tensor>; 3]> {
        let dy = as_rows(&dy)?;
        match saved.x.device() {
            Device::Cpu => with_real!(NAME, saved.x.dtype(), T => if self.settings.relu {
                // the mask is forward's own sign, computed again by the same formula
                saved.backward::<T>(&dy, sum, #[inline(always)] |x, dy, k| if Affine::at(x, k) > T::ZERO { dy } else { T::ZERO })
            } else {
                saved.backward::<T>(&dy, sum, #[inline(always)] |_, dy, _| dy)
            }),
            Device::Cuda(gpu) => saved.backward_on(gpu, &dy),
        }
    }
}

/// Mean and biased variance of each channel, in one pass. Each channel is shifted by its first
/// element, in f64: neither numbers far from 0 nor a first element far from the others costs digits.
fn moments<T: Real>(x: &Tensor) -> Result<Moments> {
    let (x, c) = (x.dense_slice::<T>(NAME)?, x.shape()[1]);
    let m = (x.len() / c.max(1)) as f64;
    let shift = &x[..c];
    let [mut mean, mut var] = rows::shifted_sums(x, shift, c);
    for ((mean, var), k) in mean.iter_mut().zip(&mut var).zip(shift) {
        let d = *mean / m;
        // NaN stays NaN, where max would drop it
        *var = Real::nan_max(*var / m - d * d, 0.0);
        *mean = d + k.to_f64();
    }
    Ok(Moments {
        mean: Tensor::from_vec(mean, c)?,
        var: Tensor::from_vec(var, c)?,
    })
}

/// dx = a g + slope (x - k) + level.
#[inline(always)]
fn input_grad<T: Real>(x: T, g: T, [k, a, _, slope, level]: [T; 5]) -> T {
    a * g + (slope * (x - k) + level)
}

/// On the CPU.
impl Saved {
    fn affine<T: Real>(&self) -> Result<Affine<T>> {
        let (w, b) = (
            self.weight.dense_slice::<T>(NAME)?,
            self.bias.dense_slice::<T>(NAME)?,
        );
        let mean = self.moments.mean.dense_slice::<f64>(NAME)?;
        let var = self.moments.var.dense_slice::<f64>(NAME)?;
        let invstd = |c: usize| 1.0 / (var[c] + self.settings.eps).sqrt();
        Ok(Affine::new(|c| [mean[c], invstd(c)], w, Some(b)))
    }

    fn normalize<T: Real>(&self) -> Result<Tensor> {
        let v = self.x.dense_slice::<T>(NAME)?;
        let f = self.affine::<T>()?;
        let (kab, c) = (f.kab.each_ref().map(|k| &k[..]), self.x.shape()[1]);
        Tensor::build::<T>(*self.x.layout(), self.x.device(), |y| {
            if self.settings.relu {
                rows::map(
                    [(v, c)],
                    kab,
                    c,
                    y,
                    #[inline(always)]
                    |[x], k| Affine::at(x, k).nan_max(T::ZERO),
                );
            } else {
                rows::map(
                    [(v, c)],
                    kab,
                    c,
                    y,
                    #[inline(always)]
                    |[x], k| Affine::at(x, k),
                );
            }
        })
    }

    fn backward<T: Real>(
        &self,
        dy: &Tensor,
        sum: &mut Option<Tensor>,
        mask: impl Fn(T, T, [T; 3]) -> T + Sync,
    ) -> Result<[Option<Tensor>; 3]> {
        let (x, c) = (&self.x, self.x.shape()[1]);
        let m = (x.numel() / c.max(1)) as f64;
        let (v, g) = (x.dense_slice::<T>(NAME)?, dy.dense_slice::<T>(NAME)?);
        let Affine { kab, rest, invstd } = self.affine::<T>()?;
        let [k, a, b] = kab.each_ref().map(|k| &k[..]);
        let [dbias, mut dweight] = rows::column_sums(
            [v, g],
            [k, a, b],
            c,
            #[inline(always)]
            |_, x, dy, k| {
                let g = mask(x, dy, k);
                [g, g * (x - k[0])]
            },
        );
        for c in 0..c {
            dweight[c] = (dweight[c] + rest[c] * dbias[c]) * invstd[c];
        }
        // a sum that lies in rows of channels too, which may be a part of wider ones, is added here
        let apart = |sum: &Tensor| sum.layout().rows_apart(x.layout(), c);
        let sum = match sum.as_ref().and_then(apart) {
            Some(apart) if self.settings.training => sum.take().map(|sum| (sum, apart)),
            _ => None,
        };
        let sum = match &sum {
            Some((sum, apart)) => {
                let start = sum.layout().offset();
                Some((&sum.storage_slice::<T>(NAME)?[start..], *apart))
            }
            None => None,
        };
        let dx = Tensor::build::<T>(*x.layout(), x.device(), |dx| {
            if !self.settings.training {
                rows::map(
                    [(v, c), (g, c)],
                    [k, a, b],
                    c,
                    dx,
                    #[inline(always)]
                    |[x, dy], k| k[1] * mask(x, dy, k),
                );
                return;
            }
            let tilt = |c: usize| -a[c].to_f64() / m * invstd[c] * dweight[c];
            let level = |c: usize| -a[c].to_f64() / m * dbias[c] + tilt(c) * rest[c];
            let slope: Vec<T> = (0..c).map(|c| T::of(tilt(c))).collect();
            let level: Vec<T> = (0..c).map(|c| T::of(level(c))).collect();
            let constants = [k, a, b, &slope, &level];
            match sum {
                None => rows::map(
                    [(v, c), (g, c)],
                    constants,
                    c,
                    dx,
                    #[inline(always)]
                    |[x, dy], k| input_grad(x, mask(x, dy, [k[0], k[1], k[2]]), k),
                ),
                Some(sum) => rows::map(
                    [(v, c), (g, c), sum],
                    constants,
                    c,
                    dx,
                    #[inline(always)]
                    |[x, dy, sum], k| sum + input_grad(x, mask(x, dy, [k[0], k[1], k[2]]), k),
                ),
            }
        })?;
        let channel = |v: Vec<f64>| Tensor::from_vec(v.into_iter().map(T::of).collect(), c);
        Ok([Some(dx), Some(channel(dweight)?), Some(channel(dbias)?)])
    }
}

kernels! {
    /// Sums of the shifted elements and their squares.
    SUMS = "batch_norm_sums" [F32, F64, BF16, F16];
    /// The moments from the sums.
    MOMENTS = "batch_norm_moments" [F32, F64, BF16, F16];
    NORMALIZE = "batch_norm" [F32, F64, BF16, F16];
    /// Sums of the gradient and its product with the input.
    GRADIENT_SUMS = "batch_norm_gradient_sums" [F32, F64, BF16, F16];
    /// The gradients of weight and bias from the sums.
    PARAMETERS = "batch_norm_parameters" [F32, F64, BF16, F16];
    BACKWARD = "batch_norm_backward" [F32, F64, BF16, F16];
    /// A running statistic's step.
    RUNNING = "batch_norm_running" [F32, F64, BF16, F16];
    INCREMENT = "increment" [I64];
}

/// On a GPU.
impl Moments {
    fn on(gpu: Gpu, x: &Tensor) -> Result<Self> {
        let cut = columns(&[x])?;
        let sums = partial_sums(&cut, x)?;
        let args = [cut.arg(), x.input(), sums.output()];
        gpu.launch(SUMS.of(x.dtype())?, cut.grid(), cut.threads(), 0, &args)?;
        let channel = || channels(x, DType::F64);
        let (mean, var) = (channel()?, channel()?);
        let [m, c] = matrix(x).map(|n| Arg::I32(n as i32));
        let blocks = Arg::I32(cut.blocks() as i32);
        let args = [
            x.input(),
            sums.input(),
            mean.output(),
            var.output(),
            m,
            c,
            blocks,
        ];
        gpu.launch(MOMENTS.of(x.dtype())?, warps(x), cut.threads(), 0, &args)?;
        Ok(Moments { mean, var })
    }
}

/// Rows and columns.
fn matrix(x: &Tensor) -> [usize; 2] {
    let c = x.shape()[1];
    [x.numel() / c.max(1), c]
}

/// How kernels walk these tensors, which lie alike.
fn columns(tensors: &[&Tensor]) -> Result<Columns> {
    let (x, [m, c]) = (tensors[0], matrix(tensors[0]));
    let layouts: Vec<&Layout> = tensors.iter().map(|t| t.layout()).collect();
    Columns::new(m, c, columns::group(x.dtype(), c, &layouts))
}

/// A number for each channel.
fn channels(x: &Tensor, dtype: DType) -> Result<Tensor> {
    let layout = Layout::contiguous(x.shape()[1].into_shape()?);
    Tensor::empty(layout, dtype, x.device())
}

/// Two sums of each channel and block of rows.
fn partial_sums(cut: &Columns, x: &Tensor) -> Result<Tensor> {
    let layout = Layout::contiguous([2, x.shape()[1], cut.blocks()].into_shape()?);
    Tensor::empty(layout, DType::F64, x.device())
}

/// A grid with a warp for each channel.
fn warps(x: &Tensor) -> [u32; 3] {
    [cuda::blocks(x.shape()[1], 8), 1, 1]
}

/// On a GPU.
impl Saved {
    fn normalize_on(&self, gpu: Gpu) -> Result<Tensor> {
        let (x, Moments { mean, var }) = (&self.x, &self.moments);
        let (cut, y) = (
            columns(&[x])?,
            Tensor::empty(*x.layout(), x.dtype(), x.device())?,
        );
        let args = [
            cut.arg(),
            x.input(),
            self.weight.input(),
            self.bias.input(),
            mean.input(),
            var.input(),
            y.output(),
            Arg::F64(self.settings.eps),
            Arg::I32(self.settings.relu as i32),
        ];
        gpu.launch(
            NORMALIZE.of(x.dtype())?,
            cut.grid(),
            cut.threads(),
            0,
            &args,
        )?;
        Ok(y)
    }

    fn backward_on(&self, gpu: Gpu, dy: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let (x, Moments { mean, var }) = (&self.x, &self.moments);
        let (dtype, cut) = (x.dtype(), columns(&[x, dy])?);
        let (eps, relu) = (
            Arg::F64(self.settings.eps),
            Arg::I32(self.settings.relu as i32),
        );
        let sums = partial_sums(&cut, x)?;
        let (dweight, dbias) = (channels(x, dtype)?, channels(x, dtype)?);
        let totals = Tensor::empty(
            Layout::contiguous([2, x.shape()[1]].into_shape()?),
            DType::F64,
            x.device(),
        )?;
        let dx = Tensor::empty(*x.layout(), dtype, x.device())?;
        let (weight, bias) = (self.weight.input(), self.bias.input());
        let (mean, var) = (mean.input(), var.input());
        let inputs = [cut.arg(), x.input(), dy.input(), weight, bias, mean, var];
        let args = [&inputs[..], &[sums.output(), eps, relu]].concat();
        gpu.launch(
            GRADIENT_SUMS.of(dtype)?,
            cut.grid(),
            cut.threads(),
            0,
            &args,
        )?;
        let (c, blocks) = (Arg::I32(x.shape()[1] as i32), Arg::I32(cut.blocks() as i32));
        let args = [
            sums.input(),
            mean,
            var,
            totals.output(),
            dweight.output(),
            dbias.output(),
            c,
            blocks,
            eps,
        ];
        gpu.launch(PARAMETERS.of(dtype)?, warps(x), cut.threads(), 0, &args)?;
        let training = Arg::I32(self.settings.training as i32);
        let args = [
            &inputs[..],
            &[totals.input(), dx.output(), eps, relu, training],
        ]
        .concat();
        gpu.launch(BACKWARD.of(dtype)?, cut.grid(), cut.threads(), 0, &args)?;
        Ok([Some(dx), Some(dweight), Some(dbias)])
    }
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
            let read = |t: &Tensor| t.cast(DType::F64)?.packed();
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

/// r = (1 - momentum) r + momentum factor s, in place.
fn move_towards(running: &mut Tensor, s: &Tensor, factor: f64, momentum: f64) -> Result<()> {
    if let Device::Cuda(gpu) = running.device() {
        running.make_unique()?;
        let c = Arg::I32(s.numel() as i32);
        let args = [
            s.input(),
            running.output(),
            c,
            Arg::F64(momentum),
            Arg::F64(factor),
        ];
        return gpu.launch_over(RUNNING.of(running.dtype())?, s.numel(), 256, &args);
    }
    let mut r = running.cast(DType::F64)?.to_vec::<f64>()?;
    for (r, s) in r.iter_mut().zip(s.dense_slice::<f64>(NAME)?) {
        *r = (1.0 - momentum) * *r + momentum * factor * s;
    }
    running.copy_(&Tensor::from_vec(r, running.shape())?)
}

/// Count one more, in place: an I64 scalar, which a GPU's host does not read.
pub(crate) fn increment(count: &mut Tensor) -> Result<()> {
    if let Device::Cuda(gpu) = count.device() {
        count.make_unique()?;
        return gpu.launch(
            INCREMENT.of(count.dtype())?,
            [1; 3],
            [32, 1, 1],
            0,
            &[count.output()],
        );
    }
    count.make_mut::<i64>()?[0] += 1;
    Ok(())
}

/// Train on the inputs x, weight, bias.
fn train(x: &[Tensor], relu: bool) -> Result<Tensor> {
    let settings = BatchNorm {
        relu,
        ..BatchNorm::default()
    };
    x[0].batch_norm(x.get(1), x.get(2), None, &settings)
}

/// Train on 1000 + x, weight, bias.
fn far(x: &[Tensor], relu: bool) -> Result<Tensor> {
    train(
        &[x[0].add_scalar(1000.0)?, x[1].clone(), x[2].clone()],
        relu,
    )
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
        Tensor::full(c, 0.1, x[0].options())?,
        Tensor::full(c, 0.8, x[0].options())?,
    );
    x[0].batch_norm(x.get(1), x.get(2), Some((&mut mean, &mut var)), &settings)
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[(
    "batch_norm",
    "(x - mean) / sqrt(var + eps) weight + bias, then max(., 0) if asked; mean and biased var of a channel over the batch, or the running ones",
)];

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

/// Several blocks and tiles, ragged, and numbers far from 0.
pub const LARGE: &[Case] = cases! {
    "1 channel, 3001 rows" train false [Normal [3001, 1], Normal [1], Normal [1]];
    "3 channels, large images" train true [Normal [2, 3, 41, 39], Normal [3], Normal [3]];
    "20 channels, images" train true [Normal [3, 20, 13, 17], Normal [20], Normal [20]];
    "100 channels" train true [Normal [211, 100], Normal [100], Normal [100]];
    "260 channels" train false [Normal [131, 260], Normal [260], Normal [260]];
    "261 channels" train true [Normal [67, 261], Normal [261], Normal [261]];
    "260 channels, evaluation" evaluate true [Normal [131, 260], Normal [260], Normal [260]];
    "mean 1000, deviation 1" far false [Normal [5, 8, 11, 11], Normal [8], Normal [8]];
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::devices;

    #[test]
    fn running_statistics_follow_pytorch() -> Result<()> {
        for device in devices()? {
            // batch mean 3, biased variance 2, unbiased 2.5
            let x = Tensor::arange(1.0, 6.0, 1.0, (DType::F32, device))?.reshape([5, 1])?;
            let (mut mean, mut var) = (
                Tensor::full(1, 1.0, (DType::F64, device))?,
                Tensor::ones(1, (DType::F64, device))?,
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
        }
        Ok(())
    }

    #[test]
    fn numbers_far_from_zero_keep_their_variance() -> Result<()> {
        for device in devices()? {
            // a third of the rows 1 above the others: deviation sqrt(2) / 3, whose square an
            // unshifted f32 sum would lose; the mean ends between two f32
            let v: Vec<f32> = (0..3999).map(|i| 1e6 + (i % 3 / 2) as f32).collect();
            let x = Tensor::from_vec(v, [3999, 1])?.to(device)?;
            let y = x.batch_norm(None, None, None, &BatchNorm::default())?;
            let y = y.to_vec::<f32>()?;
            assert!(
                (y[0] + 0.5f32.sqrt()).abs() < 1e-4 && (y[2] - 2f32.sqrt()).abs() < 1e-4,
                "{} {}",
                y[0],
                y[2]
            );
        }
        Ok(())
    }

    #[test]
    fn no_number_costs_the_others_their_variance() -> Result<()> {
        for (v, mean, var) in crate::ops::check::hard_channels() {
            for device in devices()? {
                let x = Tensor::from_vec(v.clone(), [v.len(), 1])?.to(device)?;
                let moments = match device {
                    Device::Cpu => moments::<f32>(&x)?,
                    Device::Cuda(gpu) => Moments::on(gpu, &x)?,
                };
                for (found, wanted) in [(moments.mean, mean), (moments.var, var)] {
                    let error = found.item()? / wanted - 1.0;
                    assert!(error.abs() < 1e-5, "{device}: {wanted} is off by {error}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn nan_stays() -> Result<()> {
        for device in devices()? {
            let x = Tensor::from_vec(vec![1f32, f32::NAN, 2.0], [3, 1])?.to(device)?;
            let y = train(&[x], true)?.to_vec::<f32>()?;
            assert!(y.iter().all(|y| y.is_nan()));
        }
        Ok(())
    }

    #[test]
    fn what_others_found_of_the_gradient_is_added() -> Result<()> {
        let rng = &mut crate::random::Generator::new(1);
        for shape in [&[4, 3, 2, 5][..], &[6, 3]] {
            let x = Tensor::randn(shape, rng, DType::F64)?;
            let x = as_rows(&x)?.requires_grad();
            let dy = Tensor::randn([shape, &[2]].concat(), rng, DType::F64)?;
            let norm = |x: &Tensor| x.batch_norm(None, None, None, &BatchNorm::default());
            let part = |i| dy.select(-1, i);
            let of = |loss: Tensor| -> Result<Vec<f64>> {
                let grads = loss.sum_all()?.backward()?;
                grads.get(&x).map_or(Ok(Vec::new()), Tensor::to_vec)
            };
            let (own, others) = (norm(&x)?.mul(&part(0)?)?, x.mul(&part(1)?)?);
            let apart = of(own)?.into_iter().zip(of(others)?);
            let expected: Vec<f64> = apart.map(|(a, b)| a + b).collect();
            let weights = Tensor::cat(&[&part(1)?, &part(0)?], 1)?;
            // a part of wider rows, and rows alone
            let joined = Tensor::cat(&[&x, &norm(&x)?], 1)?.mul(&weights)?;
            let added = norm(&x)?.mul(&part(0)?)?.add(&x.mul(&part(1)?)?)?;
            assert_eq!(of(joined)?, expected);
            assert_eq!(of(added)?, expected);
        }
        Ok(())
    }

    /// A captured step knows the running statistics by their address and is never read back.
    #[test]
    #[cfg(feature = "emulator")]
    fn a_replay_moves_the_running_statistics() -> Result<()> {
        let device = Device::cuda_emulated()?;
        let Device::Cuda(gpu) = device else {
            return Err(Error::argument(NAME, "no GPU"));
        };
        let x = Tensor::randn([6, 3], &mut crate::random::Generator::new(1), DType::F32)?;
        let settings = BatchNorm::default();
        let step = |x: &Tensor, stats: &mut [Tensor; 3]| -> Result<Tensor> {
            let [mean, var, count] = stats;
            let y = x.batch_norm(None, None, Some((mean, var)), &settings)?;
            increment(count)?;
            let grads = y.mul(&y)?.mul(&y)?.sum_all()?.backward()?;
            grads
                .get(x)
                .cloned()
                .ok_or_else(|| Error::argument(NAME, "no gradient"))
        };
        let start = |device| -> Result<[Tensor; 3]> {
            Ok([
                Tensor::zeros(3, (DType::F32, device))?,
                Tensor::ones(3, (DType::F32, device))?,
                Tensor::zeros((), (DType::I64, device))?,
            ])
        };
        let on_gpu = x.to(device)?.requires_grad();
        // kernels are compiled at the first look, which a capture refuses
        step(&on_gpu, &mut start(device)?)?;
        let mut stats = start(device)?;
        let (graph, dx) = gpu.capture(|| step(&on_gpu, &mut stats))?;
        let mut expected = start(Device::Cpu)?;
        let x = x.requires_grad();
        for _ in 0..3 {
            graph.replay(graph.scalars())?;
            let wanted = step(&x, &mut expected)?;
            assert!(close(&dx, &wanted)?);
        }
        for (a, b) in stats.iter().zip(&expected) {
            assert!(close(a, b)?, "{a:?} {b:?}");
        }
        assert_eq!(stats[2].item()?, 3.0);
        Ok(())
    }

    #[cfg(feature = "emulator")]
    fn close(a: &Tensor, b: &Tensor) -> Result<bool> {
        let read = |t: &Tensor| t.cast(DType::F64)?.to_vec::<f64>();
        Ok(read(a)?
            .iter()
            .zip(read(b)?)
            .all(|(a, b)| (a - b).abs() < 1e-5))
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
        let w = Tensor::ones(3, DType::F64)?;
        assert_eq!(
            e(x.batch_norm(Some(&w), None, None, &settings)),
            "batch_norm: expected tensors of one dtype but got f64"
        );
        let settings = BatchNorm {
            training: false,
            ..settings
        };
        assert!(e(x.batch_norm(None, None, None, &settings)).contains("running mean"));
        Ok(())
    }
}
