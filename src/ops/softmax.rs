//! softmax and log_softmax over any axis.

use crate::autograd::{Op, apply, folded};
use crate::cpu::strided::{self, Fold};
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::check::{Case, Input};
use crate::tensor::Tensor;
use crate::with_real;

/// y = e^(x - max) / sum e^(x - max); dx = y (dy - sum y dy). Each line along the axis is one
/// distribution.
struct Softmax {
    axis: usize,
}

/// y = x - max - ln sum e^(x - max); dx = dy - e^y sum dy.
struct LogSoftmax {
    axis: usize,
}

/// Run `line(out, x, second, stride)` on each line along `axis`: a new tensor of x's shape. The
/// lines lie `inner` elements apart where the axis is not the fastest in memory.
fn lines<T: Real>(
    op: &'static str,
    x: &Tensor,
    second: Option<&Tensor>,
    axis: usize,
    line: impl Fn(&mut [T], &[T], &[T], usize) + Sync,
) -> Result<Tensor> {
    let marks: Vec<bool> = (0..x.rank()).map(|a| a == axis).collect();
    let (x, Fold { reduced, inner, .. }, _) = folded(x, &marks)?;
    let second = second.map(|s| s.laid_out(*x.layout())).transpose()?;
    let layout = x.layout().dense_like();
    let a = x.dense_slice::<T>(op)?;
    let b = second.as_ref().map_or(Ok(a), |s| s.dense_slice::<T>(op))?;
    Tensor::build::<T>(layout, x.device(), |out| {
        let plane = reduced * inner;
        if plane > 0 {
            strided::rows(out, plane, plane, |o, i| {
                let (a, b) = (
                    &a[i * plane..(i + 1) * plane],
                    &b[i * plane..(i + 1) * plane],
                );
                for k in 0..inner {
                    line(&mut o[k..], &a[k..], &b[k..], inner);
                }
            });
        }
    })
}

/// The greatest of a line and the sum of e^(x - greatest).
fn normalizer<T: Real>(x: &[T], stride: usize) -> (T, T) {
    let values = || x.iter().step_by(stride).copied();
    let max = values().fold(T::NEG_INFINITY, |m, x| m.nan_max(x));
    (max, values().map(|x| (x - max).exp()).sum())
}

impl Op<1> for Softmax {
    const NAME: &'static str = "softmax";
    type Saved = Tensor;

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, Tensor)> {
        let y = with_real!(Self::NAME, x.dtype(), T => lines::<T>(Self::NAME, x, None, self.axis, |y, x, _, s| {
            let (max, sum) = normalizer(x, s);
            for (y, &x) in y.iter_mut().step_by(s).zip(x.iter().step_by(s)) {
                *y = (x - max).exp() / sum;
            }
        }))?;
        Ok((y.clone(), y))
    }

    fn backward(&self, y: Tensor, dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let dx = with_real!(Self::NAME, dy.dtype(), T => lines::<T>(Self::NAME, &y, Some(&dy), self.axis, |dx, y, dy, s| {
            let pairs = || y.iter().step_by(s).zip(dy.iter().step_by(s));
            let dot: T = pairs().map(|(&y, &dy)| y * dy).sum();
            for (dx, (&y, &dy)) in dx.iter_mut().step_by(s).zip(pairs()) {
                *dx = y * (dy - dot);
            }
        }))?;
        Ok([Some(dx)])
    }
}

impl Op<1> for LogSoftmax {
    const NAME: &'static str = "log_softmax";
    type Saved = Tensor;

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, Tensor)> {
        let y = with_real!(Self::NAME, x.dtype(), T => lines::<T>(Self::NAME, x, None, self.axis, |y, x, _, s| {
            let (max, sum) = normalizer(x, s);
            for (y, &x) in y.iter_mut().step_by(s).zip(x.iter().step_by(s)) {
                *y = x - max - sum.ln();
            }
        }))?;
        Ok((y.clone(), y))
    }

    fn backward(&self, y: Tensor, dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let dx = with_real!(Self::NAME, dy.dtype(), T => lines::<T>(Self::NAME, &y, Some(&dy), self.axis, |dx, y, dy, s| {
            let sum: T = dy.iter().step_by(s).copied().sum();
            for (dx, (&y, &dy)) in dx.iter_mut().step_by(s).zip(y.iter().step_by(s).zip(dy.iter().step_by(s))) {
                *dx = dy - y.exp() * sum;
            }
        }))?;
        Ok([Some(dx)])
    }
}

impl Tensor {
    /// e^x over its sum along `axis`: positive, adds to 1.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let y = Tensor::from_vec(vec![0f32, 0.0, 1000.0, 1000.0], [2, 2])?.softmax(-1)?;
    /// assert_eq!(y.to_vec::<f32>()?, [0.5; 4]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn softmax(&self, axis: isize) -> Result<Tensor> {
        let axis = self.shape().axis(Softmax::NAME, axis)?;
        apply(Softmax { axis }, [self])
    }

    /// ln softmax(x) along `axis`, without underflow.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let y = Tensor::from_vec(vec![0f32, -1000.0], [2])?.log_softmax(0)?;
    /// assert_eq!(y.to_vec::<f32>()?, [0.0, -1000.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn log_softmax(&self, axis: isize) -> Result<Tensor> {
        let axis = self.shape().axis(LogSoftmax::NAME, axis)?;
        apply(LogSoftmax { axis }, [self])
    }
}

macro_rules! cases {
    ($($op:ident)*) => {&[$(
        Case { op: stringify!($op), name: "last axis", inputs: &[Input::Normal(&[3, 5])], run: |x| x[0].$op(-1) },
        Case { op: stringify!($op), name: "first axis", inputs: &[Input::Normal(&[3, 4, 2])], run: |x| x[0].$op(0) },
        Case { op: stringify!($op), name: "channels of images", inputs: &[Input::Normal(&[2, 3, 2, 3])], run: |x| x[0].$op(1) },
        Case { op: stringify!($op), name: "one element", inputs: &[Input::Normal(&[2, 1])], run: |x| x[0].$op(1) },
        Case { op: stringify!($op), name: "no rows", inputs: &[Input::Normal(&[0, 3])], run: |x| x[0].$op(1) },
        Case { op: stringify!($op), name: "scalar", inputs: &[Input::Normal(&[])], run: |x| x[0].$op(0) },
    )*]};
}

/// Both functions along every kind of axis.
pub const CASES: &[Case] = cases! { softmax log_softmax };
