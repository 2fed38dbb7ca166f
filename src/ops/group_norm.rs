//! Group normalization: statistics of groups of channels, in each sample by itself.

use rayon::prelude::*;

use crate::autograd::{Op, apply};
use crate::cpu::rows::{self, Affine};
use crate::cuda::columns::{self, Columns};
use crate::cuda::{self, Arg, Gpu, kernels};
use crate::device::Device;
use crate::dtype::{DType, Real};
use crate::error::{Error, Result};
use crate::ops::check::{Case, Input};
use crate::ops::{Formula, one_dtype};
use crate::shape::{IntoShape, Layout, Shape};
use crate::tensor::Tensor;
use crate::with_real;
use crate::workers::Parallel;

const NAME: &str = "group_norm";

/// y = (x - mean) / sqrt(var + eps) weight + bias, mean and biased variance over each of `groups`
/// groups of neighbouring channels of each sample, all positions together (Wu and He 2018). Inputs
/// x of (n, c, ..), weight and bias of (c).
struct GroupNorm {
    groups: usize,
    eps: f64,
}

struct Saved {
    /// Lying in memory with the channels last.
    x: Tensor,
    weight: Tensor,
    /// (n, groups, 2) in f64: mean and 1 / sqrt(var + eps) of each group of a sample.
    stats: Tensor,
}

/// The same elements with the channels last in memory, as images have them.
fn channels_last(x: &Tensor) -> Result<Tensor> {
    let rank = x.rank();
    let mut dims = *x.shape();
    dims[1..].rotate_left(1);
    let order: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    x.laid_out(Layout::contiguous(dims).permute(&order))
}

/// The sizes: samples, rows of channels in each, channels, groups and channels of a group.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    m: usize,
    c: usize,
    groups: usize,
    width: usize,
}

impl Sizes {
    fn of(x: &Tensor, groups: usize) -> Self {
        let [n, c] = [x.shape()[0], x.shape()[1]];
        let m = x.shape()[2..].iter().product();
        Sizes {
            n,
            m,
            c,
            groups,
            width: c / groups,
        }
    }

    /// Elements of a group in a sample.
    fn count(&self) -> f64 {
        (self.m * self.width) as f64
    }

    /// (n, groups, 2).
    fn pairs(&self) -> Result<Layout> {
        Ok(Layout::contiguous(Shape::new(&[self.n, self.groups, 2])?))
    }
}

impl Op<3> for GroupNorm {
    const NAME: &'static str = NAME;
    const HALF_ON_CUDA: bool = true;
    type Saved = Saved;

    fn forward(&self, [x, weight, bias]: [&Tensor; 3]) -> Result<(Tensor, Saved)> {
        one_dtype(NAME, [x, weight, bias])?;
        let (x, weight, bias) = (channels_last(x)?, weight.packed()?, bias.packed()?);
        let sizes = Sizes::of(&x, self.groups);
        match x.device() {
            Device::Cuda(gpu) => self.forward_on(gpu, sizes, x, weight, &bias),
            Device::Cpu => with_real!(NAME, x.dtype(), T => {
                let stats = statistics::<T>(x.dense_slice(NAME)?, sizes, self.eps);
                let stats = Tensor::from_vec(stats, sizes.pairs()?.shape())?;
                let saved = Saved { x, weight, stats };
                Ok((saved.normalize::<T>(sizes, bias.dense_slice(NAME)?)?, saved))
            }),
        }
    }

    /// With g = dy weight and xhat = (x - mean) invstd:
    /// dx = invstd (g - mean(g) - xhat mean(g xhat)), the means over a group of a sample;
    /// dweight = sum dy xhat, dbias = sum dy, over samples and positions.
    fn backward(&self, saved: Saved, dy: Tensor, _: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        let (sizes, dy) = (Sizes::of(&dy, self.groups), channels_last(&dy)?);
        match dy.device() {
            Device::Cuda(gpu) => saved.backward_on(gpu, sizes, &dy),
            Device::Cpu => with_real!(NAME, dy.dtype(), T => saved.backward::<T>(sizes, &dy)),
        }
    }
}

/// Mean and 1 / sqrt(var + eps) of each group of a sample, in one pass. A group is shifted by its
/// first element, in f64: neither numbers far from 0 nor a first element far from the others costs
/// digits.
fn statistics<T: Real>(x: &[T], s: Sizes, eps: f64) -> Vec<f64> {
    if x.is_empty() {
        return vec![0.0; 2 * s.n * s.groups];
    }
    let of_sample = |x: &[T]| {
        let shift: Vec<T> = (0..s.c).map(|c| x[c / s.width * s.width]).collect();
        let [sum, square] = rows::shifted_sums(x, &shift, s.c);
        let group = |g: usize| {
            let channels = g * s.width..(g + 1) * s.width;
            let d = sum[channels.clone()].iter().sum::<f64>() / s.count();
            let square = square[channels.clone()].iter().sum::<f64>() / s.count();
            // NaN stays NaN, where max would drop it
            let var = Real::nan_max(square - d * d, 0.0);
            [shift[channels.start].to_f64() + d, 1.0 / (var + eps).sqrt()]
        };
        (0..s.groups).flat_map(group).collect::<Vec<f64>>()
    };
    let samples = x.par_chunks(s.m * s.c).map(of_sample);
    samples.gather().concat()
}

/// In each channel of a sample, from its `stats`.
fn affine<T: Real>(stats: &[f64], weight: &[T], bias: Option<&[T]>, width: usize) -> Affine<T> {
    let of_group = |c: usize| [stats[c / width * 2], stats[c / width * 2 + 1]];
    Affine::new(of_group, weight, bias)
}

/// On the CPU.
impl Saved {
    fn normalize<T: Real>(&self, s: Sizes, bias: &[T]) -> Result<Tensor> {
        let (x, w) = (
            self.x.dense_slice::<T>(NAME)?,
            self.weight.dense_slice(NAME)?,
        );
        let stats = self.stats.dense_slice::<f64>(NAME)?;
        Tensor::build::<T>(*self.x.layout(), self.x.device(), |y| {
            let size = (s.m * s.c).max(1);
            let samples = y.par_chunks_mut(size).zip(x.par_chunks(size));
            let stats = stats.par_chunks(2 * s.groups);
            samples.zip(stats).each(|((y, x), stats)| {
                let kab = affine(stats, w, Some(bias), s.width).kab;
                let kab = kab.each_ref().map(|k| &k[..]);
                rows::map(
                    [(x, s.c)],
                    kab,
                    s.c,
                    y,
                    #[inline(always)]
                    |[x], k| Affine::at(x, k),
                );
            })
        })
    }

    fn backward<T: Real>(&self, s: Sizes, dy: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let (x, g) = (self.x.dense_slice::<T>(NAME)?, dy.dense_slice::<T>(NAME)?);
        let w = self.weight.dense_slice::<T>(NAME)?;
        let stats = self.stats.dense_slice::<f64>(NAME)?;
        let size = (s.m * s.c).max(1);
        let samples = || {
            let pairs = x.par_chunks(size).zip(g.par_chunks(size));
            pairs.zip(stats.par_chunks(2 * s.groups))
        };
        // of each sample and channel: sum dy and sum dy (x - mean)
        let sums: Vec<[Vec<f64>; 2]> = samples()
            .map(|((x, g), stats)| {
                let f = affine(stats, w, None, s.width);
                let [sum, mut dot] = rows::column_sums(
                    [x, g],
                    [&f.kab[0]],
                    s.c,
                    #[inline(always)]
                    |_, x, g, [k]| [g, g * (x - k)],
                );
                for ((dot, sum), rest) in dot.iter_mut().zip(&sum).zip(&f.rest) {
                    *dot += sum * rest;
                }
                [sum, dot]
            })
            .gather();
        let dx = Tensor::build::<T>(*self.x.layout(), self.x.device(), |dx| {
            let samples = samples().zip(&sums).zip(dx.par_chunks_mut(size));
            samples.each(|((((x, g), stats), [sum, dot]), dx)| {
                let f = affine(stats, w, None, s.width);
                // the mean over a channel's group, weighted
                let mean = |v: &[f64], c: usize| {
                    let channels = c / s.width * s.width..(c / s.width + 1) * s.width;
                    let sum: f64 = channels.map(|c| w[c].to_f64() * v[c]).sum();
                    sum / s.count()
                };
                // dx = a dy + slope (x - k) + level
                let (mut slope, mut level) = (vec![T::ZERO; s.c], vec![T::ZERO; s.c]);
                for first in (0..s.c).step_by(s.width) {
                    let invstd = f.invstd[first];
                    let tilt = -invstd.powi(3) * mean(dot, first);
                    let lift = tilt * f.rest[first] - invstd * mean(sum, first);
                    slope[first..first + s.width].fill(T::of(tilt));
                    level[first..first + s.width].fill(T::of(lift));
                }
                let [k, a, _] = f.kab.each_ref().map(|k| &k[..]);
                let constants = [k, a, &slope, &level];
                rows::map(
                    [(x, s.c), (g, s.c)],
                    constants,
                    s.c,
                    dx,
                    #[inline(always)]
                    |[x, dy], [k, a, slope, level]| a * dy + (slope * (x - k) + level),
                );
            })
        })?;
        let (mut dweight, mut dbias) = (vec![0.0; s.c], vec![0.0; s.c]);
        for ([sum, dot], stats) in sums.iter().zip(stats.chunks(2 * s.groups)) {
            for c in 0..s.c {
                dbias[c] += sum[c];
                dweight[c] += dot[c] * stats[c / s.width * 2 + 1];
            }
        }
        let channel = |v: Vec<f64>| Tensor::from_vec(v.into_iter().map(T::of).collect(), s.c);
        Ok([Some(dx), Some(channel(dweight)?), Some(channel(dbias)?)])
    }
}

kernels! {
    /// Sums of the shifted elements and their squares.
    SUMS = "group_norm_sums" [F32, F64, BF16, F16];
    /// The statistics from the sums.
    MOMENTS = "group_norm_moments" [F32, F64, BF16, F16];
    NORMALIZE = "group_norm" [F32, F64, BF16, F16];
    /// Sums of the gradient and its product with the input.
    GRADIENT_SUMS = "group_norm_gradient_sums" [F32, F64, BF16, F16];
    /// What the input's gradient takes of the sums.
    TOTALS = "group_norm_totals" [F32, F64, BF16, F16];
    /// The gradients of weight and bias from the sums.
    PARAMETERS = "group_norm_parameters" [F32, F64, BF16, F16];
    BACKWARD = "group_norm_backward" [F32, F64, BF16, F16];
}

/// Samples that a launch takes at once, of the 65,535 that a grid has: enough to fill any card.
const MOST_SAMPLES: usize = 2048;

/// How kernels walk a batch: a matrix (m, c) a sample.
struct Cut {
    columns: Columns,
    sizes: Sizes,
}

impl Cut {
    fn new(sizes: Sizes, dtype: DType, tensors: &[&Tensor]) -> Result<Self> {
        let layouts: Vec<&Layout> = tensors.iter().map(|t| t.layout()).collect();
        let group = columns::group(dtype, sizes.c, &layouts);
        Ok(Cut {
            columns: Columns::of_batch(sizes.n, sizes.m, sizes.c, group)?,
            sizes,
        })
    }

    /// Two sums of each sample, channel and block of rows.
    fn partial_sums(&self, x: &Tensor) -> Result<Tensor> {
        let s = self.sizes;
        let layout = Layout::contiguous([s.n, 2, s.c, self.columns.blocks()].into_shape()?);
        Tensor::empty(layout, DType::F64, x.device())
    }

    /// Tiles of channels by blocks of rows by samples; a block takes several samples where they
    /// are more than these.
    fn grid(&self) -> [u32; 3] {
        let [tiles, blocks, _] = self.columns.grid();
        [tiles, blocks, self.sizes.n.min(MOST_SAMPLES) as u32]
    }
}

/// A grid with a warp for each of `n`.
fn warps(n: usize) -> [u32; 3] {
    [cuda::blocks(n, 8), 1, 1]
}

/// On a GPU.
impl GroupNorm {
    fn forward_on(
        &self,
        gpu: Gpu,
        s: Sizes,
        x: Tensor,
        weight: Tensor,
        bias: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let (dtype, cut) = (x.dtype(), Cut::new(s, x.dtype(), &[&x])?);
        let stats = Tensor::empty(s.pairs()?, DType::F64, x.device())?;
        let y = Tensor::empty(*x.layout(), dtype, x.device())?;
        if x.numel() > 0 {
            let (grid, block) = (cut.grid(), cut.columns.threads());
            let blocks = cut.columns.blocks();
            let [n, groups, width, m, blocks] =
                [s.n, s.groups, s.width, s.m, blocks].map(|n| Arg::I32(n as i32));
            let sums = cut.partial_sums(&x)?;
            let args = [cut.columns.arg(), x.input(), sums.output(), n, width];
            gpu.launch(SUMS.of(dtype)?, grid, block, 0, &args)?;
            let tensors = [x.input(), sums.input(), stats.output()];
            let numbers = [n, groups, width, m, blocks, Arg::F64(self.eps)];
            let args = [&tensors[..], &numbers].concat();
            gpu.launch(MOMENTS.of(dtype)?, warps(s.n * s.groups), block, 0, &args)?;
            let args = [
                cut.columns.arg(),
                x.input(),
                weight.input(),
                bias.input(),
                stats.input(),
                y.output(),
                n,
                width,
            ];
            gpu.launch(NORMALIZE.of(dtype)?, grid, block, 0, &args)?;
        }
        Ok((y, Saved { x, weight, stats }))
    }
}

/// On a GPU.
impl Saved {
    fn backward_on(&self, gpu: Gpu, s: Sizes, dy: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let (x, weight, stats) = (&self.x, &self.weight, self.stats.input());
        let (dtype, cut) = (x.dtype(), Cut::new(s, x.dtype(), &[x, dy])?);
        let (grid, block) = (cut.grid(), cut.columns.threads());
        let blocks = cut.columns.blocks();
        let [n, groups, width, m, blocks] =
            [s.n, s.groups, s.width, s.m, blocks].map(|n| Arg::I32(n as i32));
        let sums = cut.partial_sums(x)?;
        let columns = cut.columns.arg();
        let args = [
            columns,
            x.input(),
            dy.input(),
            stats,
            sums.output(),
            n,
            width,
        ];
        gpu.launch(GRADIENT_SUMS.of(dtype)?, grid, block, 0, &args)?;

        let totals = Tensor::empty(s.pairs()?, DType::F64, x.device())?;
        let tensors = [sums.input(), stats, weight.input(), totals.output()];
        let args = [&tensors[..], &[n, groups, width, m, blocks]].concat();
        gpu.launch(TOTALS.of(dtype)?, warps(s.n * s.groups), block, 0, &args)?;

        let channels = || Tensor::empty(*weight.layout(), dtype, x.device());
        let (dweight, dbias) = (channels()?, channels()?);
        let tensors = [sums.input(), stats, dweight.output(), dbias.output()];
        let args = [&tensors[..], &[n, groups, width, blocks]].concat();
        gpu.launch(PARAMETERS.of(dtype)?, warps(s.c), block, 0, &args)?;

        let dx = Tensor::empty(*x.layout(), dtype, x.device())?;
        let tensors = [
            x.input(),
            dy.input(),
            weight.input(),
            stats,
            totals.input(),
            dx.output(),
        ];
        let args = [&[columns][..], &tensors, &[n, width]].concat();
        gpu.launch(BACKWARD.of(dtype)?, grid, block, 0, &args)?;
        Ok([Some(dx), Some(dweight), Some(dbias)])
    }
}

impl Tensor {
    /// Group normalization of (n, c, ..): the channels of each sample fall into `groups` groups of
    /// neighbours, each with a mean and variance of its own over all positions. `weight` and
    /// `bias` have shape (c); without them y is not rescaled. An error where `groups` does not
    /// divide the channels.
    ///
    /// One group is layer norm over a whole sample (but for the shape of weight and bias), as many
    /// groups as channels are instance norm.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let x = Tensor::from_vec(vec![1f64, 3.0, 10.0, 30.0], [1, 4])?;
    /// let y = x.group_norm(2, None, None, 0.0)?.to_vec::<f64>()?;
    /// assert!(y.iter().zip([-1.0, 1.0, -1.0, 1.0]).all(|(y, w)| (y - w).abs() < 1e-12));
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn group_norm(
        &self,
        groups: usize,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<Tensor> {
        let fail = |shapes: &[Shape], why: String| Err(Error::shape(NAME, shapes, why));
        let shape = *self.shape();
        let Some(&c) = shape.get(1) else {
            return fail(&[shape], format!("expected (n, c, ..) but got {shape:?}"));
        };
        if groups == 0 || !c.is_multiple_of(groups) {
            let why = format!("groups {groups} does not divide the {c} channels of {shape:?}");
            return fail(&[shape], why);
        }
        for (name, t) in [("weight", weight), ("bias", bias)] {
            if let Some(t) = t
                && t.shape()[..] != [c]
            {
                let why = format!("input {shape:?} wants {name} [{c}] but got {:?}", t.shape());
                return fail(&[shape, *t.shape()], why);
            }
        }
        let options = (self.dtype(), self.device());
        let (one, zero) = (Tensor::ones(c, options)?, Tensor::zeros(c, options)?);
        let inputs = [self, weight.unwrap_or(&one), bias.unwrap_or(&zero)];
        apply(GroupNorm { groups, eps }, inputs)
    }
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[(
    "group_norm",
    "(x - mean) / sqrt(var + eps) weight + bias, mean and biased var over a group of a sample's channels",
)];

macro_rules! cases {
    ($($name:literal $groups:literal [$($shape:expr),*] $prepare:expr;)*) => {
        &[$(Case { op: NAME, name: $name, inputs: &[$(Input::Normal(&$shape)),*], run: |x| {
            let prepare: fn(&Tensor) -> Result<Tensor> = $prepare;
            prepare(&x[0])?.group_norm($groups, x.get(1), x.get(2), 1e-5)
        } }),*]
    };
}

/// As the case has it.
fn plain(x: &Tensor) -> Result<Tensor> {
    Ok(x.clone())
}

/// Images that lie in memory as (n, h, w, c).
fn images(x: &Tensor) -> Result<Tensor> {
    x.permute(&[0, 3, 1, 2])
}

/// Groups of one, several and all channels, any number of axes, degenerate sizes.
pub const CASES: &[Case] = cases! {
    "two groups" 2 [[2, 4, 3, 2], [4], [4]] plain;
    "one group" 1 [[2, 3, 2, 3], [3], [3]] plain;
    "a group a channel" 3 [[2, 3, 2, 3], [3], [3]] plain;
    "channels-last" 2 [[2, 3, 2, 6], [6], [6]] images;
    "no bias" 2 [[2, 4, 3], [4]] plain;
    "no weight and bias" 2 [[2, 4, 3]] plain;
    "(n, c)" 2 [[3, 6], [6], [6]] plain;
    "five axes" 2 [[2, 4, 2, 1, 3], [4], [4]] plain;
    "one sample, one pixel" 2 [[1, 4, 1, 1], [4], [4]] plain;
    "one channel" 1 [[3, 1, 2, 2], [1], [1]] plain;
    "no sample" 2 [[0, 4, 2, 2], [4], [4]] plain;
    "no position" 2 [[2, 4, 0], [4], [4]] plain;
};

/// Several tiles of channels and blocks of rows, groups that end within a thread's channels.
pub const LARGE: &[Case] = cases! {
    "37 x 19 positions" 4 [[3, 37, 19, 8], [8], [8]] images;
    "132 channels in threes" 44 [[2, 9, 11, 132], [132], [132]] images;
    "150 channels, two tiles" 2 [[2, 13, 7, 150], [150], [150]] images;
    "far from 0" 2 [[2, 4, 3, 3], [4], [4]] |x| x.add_scalar(1000.0);
    "row-major images" 3 [[5, 6, 9, 31], [6], [6]] plain;
    "100 samples of (c)" 5 [[100, 20], [20], [20]] plain;
    "an unaligned part" 2 [[253]] |x| x.narrow(0, 1, 252)?.reshape([3, 7, 12])?.permute(&[0, 2, 1]);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::devices;
    use crate::random::Generator;

    #[test]
    fn each_group_has_mean_0_and_variance_1() -> Result<()> {
        let x = Tensor::randn([3, 6, 4, 5], &mut Generator::new(0), DType::F32)?;
        let x = x.mul_scalar(7.0)?.add_scalar(5000.0)?;
        for device in devices()? {
            let y = x.to(device)?.group_norm(2, None, None, 1e-5)?;
            assert!(y.layout().is_channels_last());
            for group in y.to_vec::<f32>()?.chunks(60) {
                let mean = group.iter().sum::<f32>() / 60.0;
                let var = group.iter().map(|y| (y - mean).powi(2)).sum::<f32>() / 60.0;
                assert!(
                    mean.abs() < 1e-3 && (var - 1.0).abs() < 1e-3,
                    "{mean} {var}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn no_number_costs_the_others_their_variance() -> Result<()> {
        for (v, mean, var) in crate::ops::check::hard_channels() {
            for device in devices()? {
                let x = Tensor::from_vec(v.clone(), [1, 2, v.len() / 2])?.to(device)?;
                let (one, zero) = (
                    Tensor::ones(2, x.options())?,
                    Tensor::zeros(2, x.options())?,
                );
                let op = GroupNorm {
                    groups: 1,
                    eps: 0.0,
                };
                let stats = op.forward([&x, &one, &zero])?.1.stats.to_vec::<f64>()?;
                for (found, wanted) in [(stats[0], mean), (stats[1].powi(-2), var)] {
                    let error = found / wanted - 1.0;
                    assert!(error.abs() < 1e-5, "{device}: {wanted} is off by {error}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn more_samples_than_a_launch_takes_at_once() -> Result<()> {
        let x = Tensor::randn([MOST_SAMPLES + 2, 2], &mut Generator::new(0), DType::F64)?;
        let numbers = x.to_vec::<f64>()?;
        for device in devices()? {
            let x = x.to(device)?.requires_grad();
            let weight = Tensor::ones([2], (DType::F64, device))?.requires_grad();
            let y = x.group_norm(1, Some(&weight), None, 0.0)?;
            // of two numbers the greater becomes 1, the other -1, whatever they are
            for (x, y) in numbers.chunks(2).zip(y.to_vec::<f64>()?.chunks(2)) {
                assert!((y[0] - (x[0] - x[1]).signum()).abs() < 1e-6, "{x:?} {y:?}");
            }
            let grads = y.backward_from(&y.detach())?;
            let dx = grads.get(&x).unwrap().to_vec::<f64>()?;
            assert!(dx.iter().all(|d| d.abs() < 1e-6));
            for dweight in grads.get(&weight).unwrap().to_vec::<f64>()? {
                assert!((dweight - (MOST_SAMPLES + 2) as f64).abs() < 1e-6);
            }
        }
        Ok(())
    }

    #[test]
    fn errors_name_the_shapes() -> Result<()> {
        let x = Tensor::ones([2, 4, 3], DType::F32)?;
        let e = |r: Result<Tensor>| r.unwrap_err().to_string();
        for groups in [0, 3, 8] {
            assert_eq!(
                e(x.group_norm(groups, None, None, 0.0)),
                format!("group_norm: groups {groups} does not divide the 4 channels of [2, 4, 3]")
            );
        }
        assert_eq!(
            e(x.group_norm(2, None, Some(&x), 0.0)),
            "group_norm: input [2, 4, 3] wants bias [4] but got [2, 4, 3]"
        );
        assert_eq!(
            e(x.flatten(0)?.group_norm(1, None, None, 0.0)),
            "group_norm: expected (n, c, ..) but got [24]"
        );
        Ok(())
    }
}
