//! Softmax and its logarithm along an axis.

use crate::autograd::{Op, apply, folded, folded_for_teams};
use crate::cpu::scratch::Scratch;
use crate::cpu::strided::{Fold, row_max, row_sum, rows};
use crate::cuda::{Arg, Gpu, Kernels, kernels};
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::Formula;
use crate::ops::check::{Case, Input};
use crate::ops::precision::widened;
use crate::tensor::Tensor;
use crate::tensor::fold::Team;
use crate::with_real;

kernels! {
    /// A team a row.
    SOFTMAX = "softmax" [F32, F64];
    /// A team a row.
    SOFTMAX_BACKWARD = "softmax_backward" [F32, F64];
}

/// y_i = e^(x_i) / sum_j e^(x_j) along an axis, or its logarithm x_i - ln sum_j e^(x_j). The
/// maximum is subtracted first, so that nothing overflows.
struct Softmax {
    axis: usize,
    log: bool,
}

impl Softmax {
    fn name_of(log: bool) -> &'static str {
        if log { "log_softmax" } else { "softmax" }
    }

    /// The tensor in an order of memory where the axis is one stride, and the walk along it.
    fn walk(&self, x: &Tensor) -> Result<(Tensor, Fold)> {
        let axes: Vec<bool> = (0..x.rank()).map(|a| a == self.axis).collect();
        let (x, fold, _) = match x.device() {
            Device::Cpu => folded(x, &axes)?,
            Device::Cuda(_) => folded_for_teams(x, &axes)?,
        };
        Ok((x, fold))
    }

    /// A kernel from some inputs of one memory order to an output of the same.
    fn launch(
        &self,
        gpu: Gpu,
        kernels: &'static Kernels,
        inputs: &[&Tensor],
        fold: Fold,
    ) -> Result<Tensor> {
        let x = inputs[0];
        let y = Tensor::empty(x.layout().dense_like(), x.dtype(), x.device())?;
        let Fold {
            outer,
            reduced,
            inner,
        } = fold;
        let team = if inner == 1 {
            Team::of(reduced)
        } else {
            Team::ALONE
        };
        let [grid, block] = team.launch(outer * inner);
        let sizes = [outer * inner, reduced, inner, team.lanes, self.log as usize];
        let mut args: Vec<Arg> = inputs.iter().map(|x| x.input()).collect();
        args.push(y.output());
        args.extend(sizes.map(|n| Arg::I32(n as i32)));
        gpu.launch(kernels.of(x.dtype())?, grid, block, 0, &args)?;
        Ok(y)
    }
}

impl Op<1> for Softmax {
    const NAME: &'static str = "softmax";
    type Saved = Tensor;

    fn name(&self) -> &'static str {
        Self::name_of(self.log)
    }

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, Tensor)> {
        let (x, fold) = self.walk(x)?;
        if let Device::Cuda(gpu) = x.device() {
            let y = self.launch(gpu, &SOFTMAX, &[&x], fold)?;
            return Ok((y.clone(), y));
        }
        let y = with_real!(self.name(), x.dtype(), T => {
            let v = x.dense_slice::<T>(self.name())?;
            Tensor::build::<T>(x.layout().dense_like(), x.device(), |y| {
                each_column([v, v], fold, y, #[inline(always)] |x, _, y| self.column(x, y))
            })
        })?;
        Ok((y.clone(), y))
    }

    /// dx = y (dy - sum dy y); of the logarithm dx = dy - e^y sum dy.
    fn backward(&self, y: Tensor, dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let (y, fold) = self.walk(&y)?;
        let layout = y.layout().dense_like();
        let dy = dy.laid_out(layout)?;
        if let Device::Cuda(gpu) = y.device() {
            let dx = self.launch(gpu, &SOFTMAX_BACKWARD, &[&y, &dy], fold)?;
            return Ok([Some(dx)]);
        }
        let dx = with_real!(self.name(), y.dtype(), T => {
            let (v, g) = (y.dense_slice::<T>(self.name())?, dy.dense_slice::<T>(self.name())?);
            Tensor::build::<T>(layout, y.device(), |dx| {
                each_column([v, g], fold, dx, #[inline(always)] |y, g, dx| self.column_gradient(y, g, dx))
            })
        })?;
        Ok([Some(dx)])
    }
}

impl Softmax {
    #[inline(always)]
    fn column<T: Real>(&self, x: &[T], y: &mut [T]) {
        let max = row_max(x);
        if self.log {
            let ln = T::of(row_sum([x], |[x]| (x - max).exp())).ln();
            for (y, &x) in y.iter_mut().zip(x) {
                *y = x - max - ln;
            }
        } else {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = (x - max).exp();
            }
            let sum = T::of(row_sum([y], |[y]| y));
            for y in y {
                *y = *y / sum;
            }
        }
    }

    #[inline(always)]
    fn column_gradient<T: Real>(&self, y: &[T], g: &[T], dx: &mut [T]) {
        let all = dx.iter_mut().zip(y).zip(g);
        if self.log {
            let sum = T::of(row_sum([g], |[g]| g));
            for ((dx, &y), &g) in all {
                *dx = g - y.exp() * sum;
            }
        } else {
            let sum = T::of(row_sum([y, g], |[y, g]| y * g));
            for ((dx, &y), &g) in all {
                *dx = y * (g - sum);
            }
        }
    }
}

/// Call `f(a's column, b's, the output's)` for each column along the middle axis of
/// `[outer][reduced][inner]`.
fn each_column<T: Real>(
    [a, b]: [&[T]; 2],
    Fold { reduced, inner, .. }: Fold,
    out: &mut [T],
    f: impl Fn(&[T], &[T], &mut [T]) + Sync,
) {
    let slab = reduced * inner;
    rows(
        out,
        slab,
        4 * slab,
        #[inline(always)]
        |out, r| {
            let here = r * slab..(r + 1) * slab;
            let (a, b) = (&a[here.clone()], &b[here]);
            if inner == 1 {
                return f(a, b, out);
            }
            // columns lie apart: each is worked on as a row of its own
            let mut beside = [(); 3].map(|()| Scratch::<T>::new(reduced));
            let [x, y, z] = &mut beside;
            for i in 0..inner {
                let lie = a[i..]
                    .iter()
                    .step_by(inner)
                    .zip(b[i..].iter().step_by(inner));
                for ((x, y), (&a, &b)) in x.iter_mut().zip(y.iter_mut()).zip(lie) {
                    (*x, *y) = (a, b);
                }
                f(x, y, z);
                out[i..]
                    .iter_mut()
                    .step_by(inner)
                    .zip(&**z)
                    .for_each(|(o, &z)| *o = z);
            }
        },
    );
}

impl Tensor {
    /// Along `axis` (negative counts from the end), positive numbers that sum to 1.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let y = Tensor::from_vec(vec![1e9f32, 1e9], [2])?.softmax(0)?;
    /// assert_eq!(y.to_vec::<f32>()?, [0.5, 0.5]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn softmax(&self, axis: isize) -> Result<Tensor> {
        softmax(self, axis, false)
    }

    /// The logarithm of [`Tensor::softmax`], exact where that underflows.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let y = Tensor::from_vec(vec![0f32, 1000.0], [2])?.log_softmax(0)?;
    /// assert_eq!(y.to_vec::<f32>()?, [-1000.0, 0.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn log_softmax(&self, axis: isize) -> Result<Tensor> {
        softmax(self, axis, true)
    }
}

fn softmax(x: &Tensor, axis: isize, log: bool) -> Result<Tensor> {
    let axis = x.shape().axis(Softmax::name_of(log), axis)?;
    apply(Softmax { axis, log }, [&widened(x)?])
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[
    ("softmax", "e^(x - max) / sum e^(x - max)"),
    ("log_softmax", "x - max - ln sum e^(x - max)"),
];

macro_rules! cases {
    ($($name:literal $shape:expr, $axis:literal;)*) => {
        &[$(
            Case { op: "softmax", name: $name, inputs: &[Input::Normal(&$shape)], run: |x| x[0].softmax($axis) },
            Case { op: "log_softmax", name: $name, inputs: &[Input::Normal(&$shape)], run: |x| x[0].log_softmax($axis) },
        )*]
    };
}

/// Every axis, degenerate sizes.
pub const CASES: &[Case] = cases! {
    "last axis" [5, 7], -1;
    "first axis" [5, 7], 0;
    "middle axis" [3, 4, 5], 1;
    "channels" [2, 3, 2, 2], 1;
    "one class" [3, 1], 1;
    "scalar" [], 0;
    "no row" [0, 3], 1;
    "no class" [3, 0], 1;
};

/// Several teams, rows of several stretches, columns.
pub const LARGE: &[Case] = cases! {
    "rows of 10" [67, 10], 1;
    "rows of 200" [13, 200], 1;
    "rows of 1000" [5, 1000], 1;
    "rows of 5000" [2, 5000], 1;
    "rows beyond a block's registers" [2, 8500], 1;
    "few long columns" [300, 7], 0;
    "columns" [2, 37, 150], 1;
    "channels of images" [2, 67, 5, 7], 1;
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::check::devices;

    #[test]
    fn known_values() -> Result<()> {
        let x = Tensor::from_vec(vec![0f64, 0.0, 3f64.ln(), 0.0], [2, 2])?;
        let close = |y: Tensor, v: [f64; 4]| -> Result<()> {
            let y = y.to_vec::<f64>()?;
            assert!(y.iter().zip(v).all(|(y, v)| (y - v).abs() < 1e-15), "{y:?}");
            Ok(())
        };
        close(x.softmax(1)?, [0.5, 0.5, 0.75, 0.25])?;
        close(x.softmax(0)?, [0.25, 0.5, 0.75, 0.5])?;
        close(x.log_softmax(-1)?.exp()?, [0.5, 0.5, 0.75, 0.25])
    }

    #[test]
    fn special_values_follow_pytorch() -> Result<()> {
        let inf = f32::INFINITY;
        let x = Tensor::from_vec(vec![-inf, 0.0, -inf, -inf, f32::NAN, 0.0], [3, 2])?;
        for device in devices()? {
            let y = x.to(device)?.softmax(1)?.to_vec::<f32>()?;
            assert_eq!(y[..2], [0.0, 1.0]);
            assert!(y[2..].iter().all(|y| y.is_nan()));
            // a thread's whole stretch may be minus infinity, another's not
            let mut row = vec![-inf; 9001];
            row[8999] = 5.0;
            row[17] = 5.0;
            let y = Tensor::from_vec(row, [9001])?.to(device)?;
            let y = y.softmax(0)?.to_vec::<f32>()?;
            assert_eq!((y[17], y[8999], y.iter().sum::<f32>()), (0.5, 0.5, 1.0));
        }
        Ok(())
    }

    #[test]
    fn errors() -> Result<()> {
        let x = Tensor::ones([2, 3], DType::F32)?;
        assert_eq!(
            x.log_softmax(2).unwrap_err().to_string(),
            "log_softmax: axis 2 is out of range for rank 2"
        );
        assert!(x.to_dtype(DType::I64)?.softmax(0).is_err());
        Ok(())
    }
}
