//! Layer normalization over the last axes.

use crate::autograd::{Op, apply};
use crate::cpu::rows;
use crate::cpu::strided::row_sum;
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

const NAME: &str = "layer_norm";

/// y = (x - mean) / sqrt(var + eps) weight + bias for each row of `width` elements, mean and
/// biased variance over the row (Ba et al. 2016). Inputs x, weight, bias.
struct LayerNorm {
    width: usize,
    eps: f64,
}

struct Saved {
    x: Tensor,
    weight: Tensor,
    /// (rows, 2): mean and 1 / sqrt(var + eps) of each row.
    stats: Tensor,
}

impl Op<3> for LayerNorm {
    const NAME: &'static str = NAME;
    const HALF_ON_CUDA: bool = true;
    type Saved = Saved;

    fn forward(&self, [x, weight, bias]: [&Tensor; 3]) -> Result<(Tensor, Saved)> {
        one_dtype(NAME, [x, weight, bias])?;
        let (x, weight, bias) = (x.packed()?, weight.packed()?, bias.packed()?);
        let d = self.width;
        if let Device::Cuda(gpu) = x.device() {
            return self.forward_on(gpu, x, weight, bias);
        }
        let pairs = Layout::contiguous(Shape::new(&[x.numel() / d.max(1), 2])?);
        with_real!(NAME, x.dtype(), T => {
            let v = x.dense_slice::<T>(NAME)?;
            let (w, b) = (weight.dense_slice::<T>(NAME)?, bias.dense_slice::<T>(NAME)?);
            let mut stats = Tensor::build::<T>(pairs, x.device(), |_| {})?;
            let stats_of = stats.make_mut::<T>()?;
            let n = T::of(d as f64);
            let y = Tensor::build::<T>(Layout::contiguous(*x.shape()), x.device(), |y| {
                rows::rows2((y, d), (stats_of, 2), 4 * d, #[inline(always)] |y, stats, r| {
                    let x = &v[r * d..][..d];
                    let mean = T::of(row_sum([x], |[x]| x)) / n;
                    let var = T::of(row_sum([x], |[x]| (x - mean) * (x - mean))) / n;
                    let rstd = T::ONE / (var + T::of(self.eps)).sqrt();
                    stats.copy_from_slice(&[mean, rstd]);
                    for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(w).zip(b) {
                        *y = (x - mean) * rstd * w + b;
                    }
                })
            })?;
            Ok((y, Saved { x: x.clone(), weight, stats }))
        })
    }

    /// With g = dy weight and xhat = (x - mean) rstd:
    /// dx = rstd (g - mean(g) - xhat mean(g xhat)), dweight = sum dy xhat, dbias = sum dy.
    fn backward(&self, saved: Saved, dy: Tensor, _: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        if let Device::Cuda(gpu) = dy.device() {
            return self.backward_on(gpu, saved, dy.packed()?);
        }
        let (Saved { x, weight, stats }, dy, d) = (saved, dy.packed()?, self.width);
        with_real!(NAME, x.dtype(), T => {
            let (v, g) = (x.dense_slice::<T>(NAME)?, dy.dense_slice::<T>(NAME)?);
            let w = weight.dense_slice::<T>(NAME)?;
            let (stats, _) = stats.dense_slice::<T>(NAME)?.as_chunks::<2>();
            let n = T::of(d as f64);
            let mut sums = [Vec::new(), Vec::new()];
            let dx = Tensor::build::<T>(Layout::contiguous(*x.shape()), x.device(), |dx| {
                sums = rows::map_and_sums([v, g], d, dx, #[inline(always)] |r, x, g, dx, sums| {
                    let [mean, rstd] = stats[r];
                    let level = T::of(row_sum([g, w], |[g, w]| g * w)) / n;
                    let slope = T::of(row_sum([g, w, x], |[g, w, x]| g * w * (x - mean)));
                    let slope = slope * rstd * rstd / n;
                    let [dweight, dbias] = sums;
                    let sums = dweight.iter_mut().zip(dbias);
                    let inputs = g.iter().zip(w).zip(x);
                    for ((dx, (dweight, dbias)), ((&g, &w), &x)) in dx.iter_mut().zip(sums).zip(inputs) {
                        *dx = rstd * (g * w - level - (x - mean) * slope);
                        *dweight += g * (x - mean) * rstd;
                        *dbias += g;
                    }
                });
            })?;
            let [dweight, dbias] = sums;
            let like_weight = |v: Vec<f64>| {
                Tensor::from_vec(v.into_iter().map(T::of).collect(), weight.shape())
            };
            Ok([Some(dx), Some(like_weight(dweight)?), Some(like_weight(dbias)?)])
        })
    }
}

kernels! {
    FORWARD = "layer_norm" [F32, F64, BF16, F16];
    BACKWARD = "layer_norm_backward" [F32, F64, BF16, F16];
    /// Sums over blocks of rows, for the gradients of weight and bias.
    GRADIENT_SUMS = "layer_norm_gradient_sums" [F32, F64, BF16, F16];
    /// The sums of those.
    PARAMETERS = "layer_norm_parameters" [F32, F64, BF16, F16];
}

/// Threads of a block, and the warps that they are.
const BLOCK: [u32; 3] = [256, 1, 1];
const WARPS: usize = 8;
/// Groups of elements of a row that a thread keeps: `KEPT` of `kernels/layer_norm.cu`.
const KEPT: usize = 8;

/// On a GPU.
impl LayerNorm {
    fn forward_on(
        &self,
        gpu: Gpu,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> Result<(Tensor, Saved)> {
        let cut = Rows::new(self.width, &[&x, &weight, &bias]);
        let wide = match x.dtype() {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        let pairs = Layout::contiguous([cut.rows, 2].into_shape()?);
        let stats = Tensor::empty(pairs, wide, x.device())?;
        let y = Tensor::empty(Layout::contiguous(*x.shape()), x.dtype(), x.device())?;
        let tensors = [
            x.input(),
            weight.input(),
            bias.input(),
            y.output(),
            stats.output(),
        ];
        let [rows, d, kept, grouped] = cut.args();
        let args = [&tensors[..], &[rows, d, Arg::F64(self.eps), kept, grouped]].concat();
        gpu.launch(FORWARD.of(x.dtype())?, cut.grid(), BLOCK, 0, &args)?;
        Ok((y, Saved { x, weight, stats }))
    }

    fn backward_on(&self, gpu: Gpu, saved: Saved, dy: Tensor) -> Result<[Option<Tensor>; 3]> {
        let (Saved { x, weight, stats }, d) = (saved, self.width);
        let (dtype, rows) = (x.dtype(), Rows::new(d, &[&x, &dy, &weight]));
        let dx = Tensor::empty(Layout::contiguous(*x.shape()), dtype, x.device())?;
        let (v, g, stats) = (x.input(), dy.input(), stats.input());
        let args = [
            &[v, g, weight.input(), stats, dx.output()][..],
            &rows.args(),
        ]
        .concat();
        gpu.launch(BACKWARD.of(dtype)?, rows.grid(), BLOCK, 0, &args)?;

        let group = columns::group(dtype, d, &[x.layout(), dy.layout()]);
        let cut = Columns::new(rows.rows, d, group)?;
        let partial = Layout::contiguous([2, d, cut.blocks()].into_shape()?);
        let sums = Tensor::empty(partial, DType::F64, x.device())?;
        let args = [cut.arg(), v, g, stats, sums.output()];
        gpu.launch(
            GRADIENT_SUMS.of(dtype)?,
            cut.grid(),
            cut.threads(),
            0,
            &args,
        )?;
        let like_weight = || Tensor::empty(Layout::contiguous(*weight.shape()), dtype, x.device());
        let (dweight, dbias) = (like_weight()?, like_weight()?);
        let [d, blocks] = [d, cut.blocks()].map(|n| Arg::I32(n as i32));
        let args = [sums.input(), dweight.output(), dbias.output(), d, blocks];
        let grid = [cuda::blocks(self.width, WARPS), 1, 1];
        gpu.launch(PARAMETERS.of(dtype)?, grid, BLOCK, 0, &args)?;
        Ok([Some(dx), Some(dweight), Some(dbias)])
    }
}

/// How kernels walk rows: narrow ones a warp each, in registers, wide ones a block each.
struct Rows {
    rows: usize,
    width: usize,
    kept: bool,
    group: usize,
}

impl Rows {
    /// Of the first tensor; all have rows of this width.
    fn new(width: usize, tensors: &[&Tensor]) -> Self {
        let layouts: Vec<&Layout> = tensors.iter().map(|t| t.layout()).collect();
        let group = columns::group(tensors[0].dtype(), width, &layouts);
        Rows {
            rows: tensors[0].numel() / width.max(1),
            width,
            kept: width <= 32 * KEPT * group,
            group,
        }
    }

    fn grid(&self) -> [u32; 3] {
        [
            cuda::blocks(self.rows, if self.kept { WARPS } else { 1 }),
            1,
            1,
        ]
    }

    /// Rows, width, and which way.
    fn args(&self) -> [Arg<'static>; 4] {
        let [kept, grouped] = [self.kept, self.group > 1].map(|b| Arg::I32(b as i32));
        [
            Arg::I32(self.rows as i32),
            Arg::I32(self.width as i32),
            kept,
            grouped,
        ]
    }
}

impl Tensor {
    /// Layer normalization over the last axes, whose sizes are `normalized_shape`; `weight` and
    /// `bias` have that shape.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let x = Tensor::from_vec(vec![1f64, 3.0, 10.0, 30.0], [2, 2])?;
    /// let y = x.layer_norm(&[2], None, None, 0.0)?;
    /// assert_eq!(y.to_vec::<f64>()?, [-1.0, 1.0, -1.0, 1.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn layer_norm(
        &self,
        normalized_shape: &[usize],
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<Tensor> {
        if normalized_shape.is_empty() || !self.shape().ends_with(normalized_shape) {
            return Err(Error::shape(
                NAME,
                &[*self.shape()],
                format!(
                    "input {:?} does not end with the normalized shape {normalized_shape:?}",
                    self.shape()
                ),
            ));
        }
        for (name, t) in [("weight", weight), ("bias", bias)] {
            if let Some(t) = t
                && t.shape()[..] != *normalized_shape
            {
                return Err(Error::shape(
                    NAME,
                    &[*self.shape(), *t.shape()],
                    format!(
                        "input {:?} wants {name} {normalized_shape:?} but got {:?}",
                        self.shape(),
                        t.shape()
                    ),
                ));
            }
        }
        let options = (self.dtype(), self.device());
        let one = Tensor::ones(normalized_shape, options)?;
        let zero = Tensor::zeros(normalized_shape, options)?;
        let width = normalized_shape.iter().product();
        let inputs = [self, weight.unwrap_or(&one), bias.unwrap_or(&zero)];
        apply(LayerNorm { width, eps }, inputs)
    }
}

macro_rules! cases {
    ($($name:literal $axes:literal [$($shape:expr),*];)*) => {
        &[$(Case { op: NAME, name: $name, inputs: &[$(Input::Normal(&$shape)),*], run: |x| {
            let shape = &x[0].shape()[x[0].rank() - $axes..];
            x[0].layer_norm(shape, x.get(1), x.get(2), 1e-6)
        } }),*]
    };
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[(
    "layer_norm",
    "(x - mean) / sqrt(var + eps) weight + bias, mean and biased var over the last axes",
)];

/// One and two axes, with and without weight and bias, degenerate sizes.
pub const CASES: &[Case] = cases! {
    "rows" 1 [[3, 7], [7], [7]];
    "37 wide" 1 [[2, 37], [37], [37]];
    "two axes" 2 [[2, 3, 4], [3, 4], [3, 4]];
    "images" 1 [[2, 3, 2, 5], [5], [5]];
    "vector" 1 [[5], [5], [5]];
    "no bias" 1 [[3, 7], [7]];
    "no weight and bias" 1 [[3, 7]];
    "many rows" 1 [[200, 3], [3], [3]];
    "width 1" 1 [[3, 1], [1], [1]];
    "no row" 1 [[0, 4], [4], [4]];
};

/// Rows that a warp keeps, rows of blocks, several blocks of rows, widths around each border.
pub const LARGE: &[Case] = cases! {
    "2001 rows of 8" 1 [[2001, 8], [8], [8]];
    "300 rows of 1" 1 [[300, 1], [1], [1]];
    "37 rows of 100" 1 [[37, 100], [100], [100]];
    "70 rows of 384" 1 [[70, 384], [384], [384]];
    "257 wide" 1 [[9, 257], [257], [257]];
    "1024 wide" 1 [[9, 1024], [1024], [1024]];
    "1028 wide" 1 [[3, 1028], [1028], [1028]];
    "3000 wide" 1 [[1, 3000], [3000], [3000]];
    "3001 wide" 1 [[2, 3001], [3001], [3001]];
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn rows_have_mean_bias_and_deviation_weight() -> Result<()> {
        let x = Tensor::arange(0.0, 3000.0, 1.0, DType::F32)?.reshape([30, 100])?;
        let (w, b) = (
            Tensor::full(100, 2.0, DType::F32)?,
            Tensor::full(100, 5.0, DType::F32)?,
        );
        let y = x
            .layer_norm(&[100], Some(&w), Some(&b), 1e-6)?
            .to_vec::<f32>()?;
        for row in y.chunks(100) {
            let mean = row.iter().sum::<f32>() / 100.0;
            let var = row.iter().map(|y| (y - mean).powi(2)).sum::<f32>() / 100.0;
            assert!(
                (mean - 5.0).abs() < 1e-4 && (var - 4.0).abs() < 1e-3,
                "{mean} {var}"
            );
        }
        Ok(())
    }

    #[test]
    fn errors_name_the_shapes() -> Result<()> {
        let x = Tensor::ones([2, 3], DType::F32)?;
        let e = |r: Result<Tensor>| r.unwrap_err().to_string();
        assert_eq!(
            e(x.layer_norm(&[2], None, None, 0.0)),
            "layer_norm: input [2, 3] does not end with the normalized shape [2]"
        );
        assert_eq!(
            e(x.layer_norm(&[3], Some(&x), None, 0.0)),
            "layer_norm: input [2, 3] wants weight [3] but got [2, 3]"
        );
        assert!(x.layer_norm(&[], None, None, 0.0).is_err());
        Ok(())
    }
}
