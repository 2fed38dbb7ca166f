//! Layer normalization over the last axes.

use crate::autograd::{Op, apply};
use crate::cpu::rows;
use crate::cpu::strided::{self, row_sum};
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::ops::check::{Case, Input};
use crate::shape::{Layout, Shape};
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
    type Saved = Saved;

    fn forward(&self, [x, weight, bias]: [&Tensor; 3]) -> Result<(Tensor, Saved)> {
        let (x, weight, bias) = (x.packed()?, weight.packed()?, bias.packed()?);
        let d = self.width;
        let pairs = Layout::contiguous(Shape::new(&[x.numel() / d.max(1), 2])?);
        with_real!(NAME, x.dtype(), T => {
            let v = x.dense_slice::<T>(NAME)?;
            let (w, b) = (weight.dense_slice::<T>(NAME)?, bias.dense_slice::<T>(NAME)?);
            let mut stats = Tensor::build::<T>(pairs, x.device(), |_| {})?;
            let stats_of = stats.make_mut::<T>()?;
            let n = T::of(d as f64);
            let y = Tensor::build::<T>(Layout::contiguous(*x.shape()), x.device(), |y| {
                rows::rows2((y, d), (stats_of, 2), 4 * d, |y, stats, r| {
                    let x = &v[r * d..][..d];
                    let mean = T::of(row_sum(x, &|x| x)) / n;
                    let var = T::of(row_sum(x, &|x| (x - mean) * (x - mean))) / n;
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
        let (Saved { x, weight, stats }, dy, d) = (saved, dy.packed()?, self.width);
        with_real!(NAME, x.dtype(), T => {
            let (v, g) = (x.dense_slice::<T>(NAME)?, dy.dense_slice::<T>(NAME)?);
            let w = weight.dense_slice::<T>(NAME)?;
            let (stats, _) = stats.dense_slice::<T>(NAME)?.as_chunks::<2>();
            let n = T::of(d as f64);
            let dx = Tensor::build::<T>(Layout::contiguous(*x.shape()), x.device(), |dx| {
                strided::rows(dx, d, 4 * d, |dx, r| {
                    let (x, g, [mean, rstd]) = (&v[r * d..][..d], &g[r * d..][..d], stats[r]);
                    // dx holds g for the while
                    for ((dx, &g), &w) in dx.iter_mut().zip(g).zip(w) {
                        *dx = g * w;
                    }
                    let level = T::of(row_sum(dx, &|g| g)) / n;
                    let slope = dot(dx, x, mean) * rstd * rstd / n;
                    for (dx, &x) in dx.iter_mut().zip(x) {
                        *dx = rstd * (*dx - level - (x - mean) * slope);
                    }
                })
            })?;
            let [dweight, dbias] = rows::column_sums([v, g], [], d, |r, x, g, []| {
                let [mean, rstd] = stats[r];
                [g * (x - mean) * rstd, g]
            });
            let like_weight = |v: Vec<f64>| {
                Tensor::from_vec(v.into_iter().map(T::of).collect(), weight.shape())
            };
            Ok([Some(dx), Some(like_weight(dweight)?), Some(like_weight(dbias)?)])
        })
    }
}

/// sum g (x - mean), in 16 running sums.
fn dot<T: Real>(g: &[T], x: &[T], mean: T) -> T {
    let mut acc = [T::ZERO; 16];
    for (g, x) in g.chunks(16).zip(x.chunks(16)) {
        for ((a, &g), &x) in acc.iter_mut().zip(g).zip(x) {
            *a += g * (x - mean);
        }
    }
    acc.into_iter().sum()
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
