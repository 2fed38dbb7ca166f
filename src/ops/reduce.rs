//! Reductions over axes: sum, mean, var, amax, argmax, logsumexp.

use crate::autograd::{Op, apply, folded, folded_for_teams, scaled_sum_axes, sum_axes};
use crate::cpu::strided::{self, Fold};
use crate::cuda::{Arg, Gpu, kernels};
use crate::device::Device;
use crate::dtype::{DType, Element, Real};
use crate::error::{Error, Result};
use crate::ops::Formula;
use crate::ops::check::{Case, Input};
use crate::ops::unary;
use crate::shape::{Layout, Shape};
use crate::tensor::Tensor;
use crate::tensor::fold::{self, Reduce, Team};
use crate::{with_element, with_real};

kernels! {
    /// A team a row.
    ARGMAX = "argmax" [F32, F64, BF16, F16, I64, U8];
    /// A team a part of a row.
    LOGSUMEXP = "logsumexp" [F32, F64];
}

/// Which axes, from a user's list (empty: all), each at most once.
fn marks(op: &'static str, x: &Tensor, axes: &[isize]) -> Result<Vec<bool>> {
    let mut reduce = vec![axes.is_empty(); x.rank()];
    for &axis in axes {
        let a = x.shape().axis(op, axis)?;
        if x.rank() == 0 {
            continue;
        }
        if std::mem::replace(&mut reduce[a], true) {
            return Err(Error::argument(
                op,
                format!("axis {axis} is named twice in {axes:?}"),
            ));
        }
    }
    Ok(reduce)
}

/// How many elements each result is made of.
fn count(x: &Tensor, reduce: &[bool]) -> usize {
    x.shape()
        .iter()
        .zip(reduce)
        .filter(|r| *r.1)
        .map(|r| r.0)
        .product()
}

/// Without the reduced axes (all of size 1 now), unless they are to be kept.
fn finish(y: Tensor, reduce: &[bool], keepdim: bool) -> Result<Tensor> {
    if keepdim {
        return Ok(y);
    }
    let dims: Vec<usize> = y
        .shape()
        .iter()
        .zip(reduce)
        .filter(|r| !*r.1)
        .map(|r| *r.0)
        .collect();
    y.reshape(dims)
}

/// y = scale sum x; dx = scale dy, repeated. The mean is a sum with scale 1 / n, in one op so that
/// 16-bit floats round once.
struct Sum {
    reduce: Vec<bool>,
    scale: f64,
}
impl Op<1> for Sum {
    const NAME: &'static str = "sum";
    type Saved = Shape;

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, Shape)> {
        let y = scaled_sum_axes(x, &self.reduce, self.scale)?;
        Ok((y, *x.shape()))
    }

    fn backward(&self, shape: Shape, dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let dx = if self.scale == 1.0 {
            dy
        } else {
            dy.mul_scalar(self.scale)?
        };
        Ok([Some(dx.expand(shape)?)])
    }
}

/// var = sum (x - mean)^2 / (n - correction); dx = 2 (x - mean) / (n - correction) dy.
struct Var {
    reduce: Vec<bool>,
    correction: usize,
}
impl Op<1> for Var {
    const NAME: &'static str = "var";
    type Saved = (Tensor, f64);

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, (Tensor, f64))> {
        let n = count(x, &self.reduce) as f64;
        let scale = 1.0 / (n - self.correction as f64).max(0.0);
        let mean = scaled_sum_axes(x, &self.reduce, 1.0 / n)?;
        let centred = x.sub(&mean)?;
        let y = scaled_sum_axes(&centred.square()?, &self.reduce, scale)?;
        Ok((y, (centred, scale)))
    }

    fn backward(
        &self,
        (centred, scale): (Tensor, f64),
        dy: Tensor,
        _: [bool; 1],
    ) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(centred.mul(&dy.mul_scalar(2.0 * scale)?)?)])
    }
}

/// The greatest element; where several are, each gets an equal share of the gradient, as PyTorch
/// has it.
struct Amax {
    reduce: Vec<bool>,
}
impl Op<1> for Amax {
    const NAME: &'static str = "amax";
    type Saved = (Tensor, Tensor);

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, (Tensor, Tensor))> {
        let y = amax_axes(x, &self.reduce)?;
        Ok((y.clone(), (x.clone(), y)))
    }

    fn backward(
        &self,
        (x, y): (Tensor, Tensor),
        dy: Tensor,
        _: [bool; 1],
    ) -> Result<[Option<Tensor>; 1]> {
        let winners = x.eq(&y)?.cast(x.dtype())?;
        let share = dy.div(&sum_axes(&winners, &self.reduce)?)?;
        Ok([Some(winners.mul(&share)?)])
    }
}

/// y = m + ln sum e^(x - m) with m = max x; dx = e^(x - y) dy.
struct LogSumExp {
    reduce: Vec<bool>,
}
impl Op<1> for LogSumExp {
    const NAME: &'static str = "logsumexp";
    type Saved = (Tensor, Tensor);

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, (Tensor, Tensor))> {
        some("logsumexp", x, &self.reduce)?;
        if let Device::Cuda(gpu) = x.device() {
            let (v, fold, out) = folded_for_teams(x, &self.reduce)?;
            let y = logsumexp(gpu, &v, fold, out)?;
            return Ok((y.clone(), (x.clone(), y)));
        }
        // an infinite maximum would make inf - inf
        let m = with_real!(Self::NAME, x.dtype(), T => unary::map::<T>(&amax_axes(x, &self.reduce)?, Self::NAME, |m| if m.is_finite() { m } else { T::ZERO }))?;
        let y = sum_axes(&x.sub(&m)?.exp()?, &self.reduce)?.log()?.add(&m)?;
        Ok((y.clone(), (x.clone(), y)))
    }

    fn backward(
        &self,
        (x, y): (Tensor, Tensor),
        dy: Tensor,
        _: [bool; 1],
    ) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(x.sub(&y)?.exp()?.mul(&dy)?)])
    }
}

/// An error where each result would be made of no elements.
fn some(op: &'static str, x: &Tensor, reduce: &[bool]) -> Result<()> {
    if count(x, reduce) == 0 {
        return Err(Error::shape(
            op,
            &[*x.shape()],
            format!("{:?} has no elements to take the greatest of", x.shape()),
        ));
    }
    Ok(())
}

/// The kernel: long rows in parts, whose results are of the same kind as their elements.
fn logsumexp(gpu: Gpu, x: &Tensor, fold: Fold, out: Layout) -> Result<Tensor> {
    let Fold {
        outer,
        reduced,
        inner,
    } = fold;
    // a block of 1024 threads holds 8192 elements
    let parts = if inner == 1 {
        256usize.div_ceil(outer.max(1)).min(reduced / 8192).max(1)
    } else {
        1
    };
    let chunk = reduced.div_ceil(parts);
    let layout = if parts == 1 {
        out
    } else {
        Layout::contiguous(Shape::new(&[outer, parts])?)
    };
    let y = Tensor::empty(layout, x.dtype(), x.device())?;
    let team = if inner == 1 {
        Team::of(chunk)
    } else {
        Team::ALONE
    };
    let [grid, block] = team.launch(outer * inner * parts);
    let sizes = [outer * inner, reduced, inner, chunk, team.lanes].map(|n| Arg::I32(n as i32));
    let [rows, n, stride, chunk, lanes] = sizes;
    let args = [x.input(), y.output(), rows, n, stride, chunk, lanes];
    gpu.launch(LOGSUMEXP.of(x.dtype())?, grid, block, 0, &args)?;
    if parts == 1 {
        return Ok(y);
    }
    let rest = Fold {
        reduced: parts,
        ..fold
    };
    logsumexp(gpu, &y, rest, out)
}

/// The maximum over the marked axes, keeping them with size 1.
fn amax_axes(x: &Tensor, reduce: &[bool]) -> Result<Tensor> {
    some("amax", x, reduce)?;
    let (x, fold, layout) = folded(x, reduce)?;
    if let Device::Cuda(gpu) = x.device() {
        return fold::reduce(gpu, &x, fold, layout, Reduce::Amax);
    }
    let Fold { reduced, inner, .. } = fold;
    with_real!("amax", x.dtype(), T => {
        let v = x.dense_slice::<T>("amax")?;
        Tensor::build::<T>(layout, x.device(), |out| {
            strided::rows(out, inner, reduced * inner, #[inline(always)] |o, i| {
                let rows = &v[i * reduced * inner..(i + 1) * reduced * inner];
                o.copy_from_slice(&rows[..inner]);
                for row in rows.chunks_exact(inner).skip(1) {
                    for (o, &x) in o.iter_mut().zip(row) {
                        *o = o.nan_max(x);
                    }
                }
            })
        })
    })
}

impl Tensor {
    /// The sum over `axes` (negative count from the end; none named: all). `keepdim` keeps them
    /// with size 1. Integers sum to I64.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let x = Tensor::ones([2, 3], DType::F32)?;
    /// assert_eq!(x.sum(&[1], false)?.to_vec::<f32>()?, [3.0, 3.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn sum(&self, axes: &[isize], keepdim: bool) -> Result<Tensor> {
        self.scaled_sum(marks("sum", self, axes)?, 1.0, keepdim)
    }

    /// The sum of all elements, a scalar.
    pub fn sum_all(&self) -> Result<Tensor> {
        self.sum(&[], false)
    }

    /// The mean over `axes`, as [`Tensor::sum`] takes them; NaN of nothing.
    pub fn mean(&self, axes: &[isize], keepdim: bool) -> Result<Tensor> {
        let reduce = marks("mean", self, axes)?;
        let n = count(self, &reduce);
        self.scaled_sum(reduce, 1.0 / n as f64, keepdim)
    }

    fn scaled_sum(&self, reduce: Vec<bool>, scale: f64, keepdim: bool) -> Result<Tensor> {
        if !self.dtype().is_float() && scale == 1.0 {
            // whole numbers are exact in f64 up to 2^53
            let sum = sum_axes(&self.cast(DType::F64)?, &reduce)?.cast(DType::I64)?;
            return finish(sum, &reduce, keepdim);
        }
        let op = Sum {
            reduce: reduce.clone(),
            scale,
        };
        finish(apply(op, [self])?, &reduce, keepdim)
    }

    /// The mean of all elements, a scalar.
    pub fn mean_all(&self) -> Result<Tensor> {
        self.mean(&[], false)
    }

    /// The variance over `axes`: squared deviations summed, over n - `correction` (1: unbiased,
    /// 0: biased).
    pub fn var(&self, axes: &[isize], correction: usize, keepdim: bool) -> Result<Tensor> {
        let reduce = marks("var", self, axes)?;
        finish(
            apply(
                Var {
                    reduce: reduce.clone(),
                    correction,
                },
                [self],
            )?,
            &reduce,
            keepdim,
        )
    }

    /// The greatest element over `axes`.
    pub fn amax(&self, axes: &[isize], keepdim: bool) -> Result<Tensor> {
        let reduce = marks("amax", self, axes)?;
        finish(
            apply(
                Amax {
                    reduce: reduce.clone(),
                },
                [self],
            )?,
            &reduce,
            keepdim,
        )
    }

    /// ln sum e^x over `axes`, without overflow.
    pub fn logsumexp(&self, axes: &[isize], keepdim: bool) -> Result<Tensor> {
        let reduce = marks("logsumexp", self, axes)?;
        finish(
            apply(
                LogSumExp {
                    reduce: reduce.clone(),
                },
                [self],
            )?,
            &reduce,
            keepdim,
        )
    }

    /// The I64 index of the greatest element of an axis, the first where several are; NaN counts
    /// as the greatest.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let x = Tensor::from_vec(vec![1f32, 5.0, 2.0, 7.0, 7.0, 0.0], [2, 3])?;
    /// assert_eq!(x.argmax(1, false)?.to_vec::<i64>()?, [1, 0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn argmax(&self, axis: isize, keepdim: bool) -> Result<Tensor> {
        let a = self.shape().axis("argmax", axis)?;
        if self.rank() == 0 {
            return Tensor::zeros((), (DType::I64, self.device()));
        }
        let n = self.shape()[a];
        if n == 0 {
            return Err(Error::shape(
                "argmax",
                &[*self.shape()],
                format!("axis {axis} of {:?} has no elements", self.shape()),
            ));
        }
        // the axis last, then row by row
        let mut order: Vec<isize> = (0..self.rank() as isize).collect();
        order.remove(a);
        order.push(a as isize);
        let rows = self.detach().permute(&order)?.packed()?;
        let layout = Layout::contiguous(self.shape().without(a));
        let index = if let Device::Cuda(gpu) = self.device() {
            let index = Tensor::empty(layout, DType::I64, self.device())?;
            let (count, team) = (index.numel(), Team::of(n));
            let [grid, block] = team.launch(count);
            let [count, n, lanes] = [count, n, team.lanes].map(|n| Arg::I32(n as i32));
            let args = [rows.input(), index.output(), count, n, lanes];
            gpu.launch(ARGMAX.of(self.dtype())?, grid, block, 0, &args)?;
            index
        } else {
            with_element!(self.dtype(), T => {
                let v = rows.dense_slice::<T>("argmax")?;
                Tensor::build::<i64>(layout, self.device(), |out| {
                    out.iter_mut().zip(v.chunks_exact(n)).for_each(|(o, row)| *o = first_greatest(row) as i64);
                })
            })?
        };
        if keepdim {
            index.unsqueeze(a as isize)
        } else {
            Ok(index)
        }
    }
}

/// The place of the first greatest element, or of the first NaN.
fn first_greatest<T: Element>(row: &[T]) -> usize {
    let nan = |x: T| x.partial_cmp(&x).is_none();
    let mut best = 0;
    for (i, &x) in row.iter().enumerate() {
        if !nan(row[best]) && (x > row[best] || nan(x)) {
            best = i;
        }
    }
    best
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[
    ("sum", "sum x"),
    ("mean", "sum x / n"),
    ("var", "sum (x - mean)^2 / (n - correction)"),
    ("amax", "max x, equals sharing the gradient"),
    ("logsumexp", "m + ln sum e^(x - m), m = max x"),
];

macro_rules! cases {
    ($($op:literal $input:ident $call:expr;)*) => {&[$(
        Case { op: $op, name: "last axis", inputs: &[Input::$input(&[3, 4, 5])], run: |x| { let f: fn(&Tensor, &[isize], bool) -> Result<Tensor> = $call; f(&x[0], &[-1], false) } },
        Case { op: $op, name: "first axis kept", inputs: &[Input::$input(&[3, 4, 5])], run: |x| { let f: fn(&Tensor, &[isize], bool) -> Result<Tensor> = $call; f(&x[0], &[0], true) } },
        Case { op: $op, name: "outer axes", inputs: &[Input::$input(&[3, 4, 5])], run: |x| { let f: fn(&Tensor, &[isize], bool) -> Result<Tensor> = $call; f(&x[0], &[0, 2], false) } },
        Case { op: $op, name: "all", inputs: &[Input::$input(&[3, 4])], run: |x| { let f: fn(&Tensor, &[isize], bool) -> Result<Tensor> = $call; f(&x[0], &[], false) } },
        Case { op: $op, name: "images, a value a channel", inputs: &[Input::$input(&[2, 3, 2, 2])], run: |x| { let f: fn(&Tensor, &[isize], bool) -> Result<Tensor> = $call; f(&x[0], &[0, 2, 3], false) } },
        Case { op: $op, name: "scalar", inputs: &[Input::$input(&[])], run: |x| { let f: fn(&Tensor, &[isize], bool) -> Result<Tensor> = $call; f(&x[0], &[], false) } },
    )*]};
}

/// Every reduction over every kind of axes.
pub const CASES: &[Case] = cases! {
    "sum" Normal |x, a, k| x.sum(a, k);
    "mean" Normal |x, a, k| x.mean(a, k);
    "var" Normal |x, a, k| x.var(a, 0, k);
    "amax" Distinct |x, a, k| x.amax(a, k);
    "logsumexp" Normal |x, a, k| x.logsumexp(a, k);
};

/// Long and empty axes.
pub const MORE_CASES: &[Case] = &[
    Case {
        op: "var",
        name: "unbiased",
        inputs: &[Input::Normal(&[4, 5])],
        run: |x| x[0].var(&[1], 1, false),
    },
    Case {
        op: "sum",
        name: "over nothing",
        inputs: &[Input::Normal(&[0, 3])],
        run: |x| x[0].sum(&[0], false),
    },
    Case {
        op: "sum",
        name: "a row longer than a block",
        inputs: &[Input::Normal(&[2, 5003])],
        run: |x| x[0].sum(&[1], false)?.mul_scalar(0.1),
    },
];

macro_rules! large {
    ($($op:literal $input:ident $call:expr;)*) => {&[$(
        Case { op: $op, name: "short rows", inputs: &[Input::$input(&[1003, 5])], run: |x| { let f: fn(&Tensor, &[isize]) -> Result<Tensor> = $call; f(&x[0], &[1]) } },
        Case { op: $op, name: "rows", inputs: &[Input::$input(&[67, 203])], run: |x| { let f: fn(&Tensor, &[isize]) -> Result<Tensor> = $call; f(&x[0], &[1]) } },
        Case { op: $op, name: "long rows", inputs: &[Input::$input(&[3, 5003])], run: |x| { let f: fn(&Tensor, &[isize]) -> Result<Tensor> = $call; f(&x[0], &[1]) } },
        Case { op: $op, name: "all of many", inputs: &[Input::$input(&[311, 331])], run: |x| { let f: fn(&Tensor, &[isize]) -> Result<Tensor> = $call; f(&x[0], &[]) } },
        Case { op: $op, name: "columns", inputs: &[Input::$input(&[515, 75])], run: |x| { let f: fn(&Tensor, &[isize]) -> Result<Tensor> = $call; f(&x[0], &[0]) } },
        Case { op: $op, name: "columns by fours", inputs: &[Input::$input(&[1001, 64])], run: |x| { let f: fn(&Tensor, &[isize]) -> Result<Tensor> = $call; f(&x[0], &[0]) } },
        Case { op: $op, name: "two columns", inputs: &[Input::$input(&[20011, 2])], run: |x| { let f: fn(&Tensor, &[isize]) -> Result<Tensor> = $call; f(&x[0], &[0]) } },
        Case { op: $op, name: "middle axis", inputs: &[Input::$input(&[7, 97, 39])], run: |x| { let f: fn(&Tensor, &[isize]) -> Result<Tensor> = $call; f(&x[0], &[1]) } },
        Case { op: $op, name: "images, a value a channel", inputs: &[Input::$input(&[3, 19, 23, 17])], run: |x| { let f: fn(&Tensor, &[isize]) -> Result<Tensor> = $call; f(&x[0], &[0, 2, 3]) } },
    )*]};
}

/// Several blocks in each direction, sums in parts, ragged sizes.
pub const LARGE: &[Case] = large! {
    "sum" Normal |x, a| x.sum(a, false)?.mul_scalar(0.01);
    "amax" Distinct |x, a| x.amax(a, false);
    "logsumexp" Normal |x, a| x.logsumexp(a, false);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::devices;

    #[test]
    fn large_sums_are_exact_enough_and_steady() -> Result<()> {
        for device in devices()? {
            // 3 million times 0.1 in f32: a naive sum is off by percents
            let x = Tensor::full([1000, 3000], 0.1, (DType::F32, device))?;
            assert!((x.sum_all()?.item()? / 300_000.0 - 1.0).abs() < 1e-6);
            let columns = x.sum(&[0], false)?.to_vec::<f32>()?;
            assert!(columns.iter().all(|c| (c / 100.0 - 1.0).abs() < 1e-5));
        }
        Ok(())
    }

    #[test]
    fn edge_values() -> Result<()> {
        for device in devices()? {
            let float = (DType::F32, device);
            let inf = f32::INFINITY;
            let x = Tensor::from_vec(vec![-inf, -inf, 1000.0, 1000.0, 0.0, inf], [3, 2])?;
            let x = x.to(device)?;
            let y = x.logsumexp(&[1], false)?.to_vec::<f32>()?;
            assert_eq!((y[0], y[2]), (-inf, inf));
            assert!((y[1] - 1000.693).abs() < 1e-3);
            assert_eq!(x.logsumexp(&[], false)?.item()?, inf as f64);
            let n = Tensor::from_vec(vec![1f32, f32::NAN, 3.0], [3])?.to(device)?;
            assert_eq!(n.argmax(0, false)?.item()?, 1.0);
            assert!(n.amax(&[], false)?.item()?.is_nan());
            assert!(n.logsumexp(&[], false)?.item()?.is_nan());
            let ones = Tensor::ones([70000], (DType::F16, device))?;
            assert_eq!(ones.mean_all()?.item()?, 1.0);
            let nothing = Tensor::zeros([0, 3, 2, 2], float)?;
            assert_eq!(nothing.sum(&[0, 2, 3], false)?.to_vec::<f32>()?, [0.0; 3]);
            assert_eq!(nothing.amax(&[1], false)?.shape()[..], [0, 2, 2]);
            assert_eq!(nothing.logsumexp(&[1], false)?.shape()[..], [0, 2, 2]);
            let three = n.gt(&Tensor::zeros([3], float)?)?.sum_all()?;
            assert_eq!(three.to_vec::<i64>()?, [2]);
            let none = Tensor::zeros([2, 0], float)?;
            assert!(none.mean_all()?.item()?.is_nan());
            assert!(none.amax(&[1], false).is_err() && none.argmax(1, false).is_err());
            assert!(none.logsumexp(&[1], false).is_err());
            assert!(x.sum(&[0, -2], false).is_err() && x.sum(&[2], false).is_err());
        }
        Ok(())
    }

    #[test]
    fn argmax_is_the_first_on_any_device() -> Result<()> {
        let nan = f64::NAN;
        for (n, greatest, expected) in [
            (3, vec![(1, 1.0), (2, 1.0)], 1),
            (45, vec![(44, 1.0), (13, 1.0), (40, 0.5)], 13),
            (700, vec![(699, 2.0), (690, 2.0), (3, 1.0)], 690),
            (700, vec![(650, nan), (600, nan), (3, 9.0)], 600),
            (5000, vec![(0, -0.5), (4097, 3.0), (4999, 3.0)], 4097),
        ] {
            let mut row = vec![0.0; n];
            greatest.iter().for_each(|&(i, x)| row[i] = x);
            // the same row thrice, between others
            let rows = [vec![0.0; n], row.clone(), vec![0.0; n], row.clone(), row].concat();
            let x = Tensor::from_vec(rows, [5, n])?;
            for device in devices()? {
                let floats = [DType::F32, DType::F64, DType::BF16, DType::F16];
                let whole = [DType::I64, DType::U8];
                let exact = greatest.iter().all(|g| g.1 >= 1.0);
                for dtype in floats.iter().chain(whole.iter().filter(|_| exact)) {
                    let x = x.to_dtype(*dtype)?.to(device)?;
                    let y = x.argmax(1, false)?.to_vec::<i64>()?;
                    assert_eq!(
                        y,
                        [0, expected, 0, expected, expected],
                        "{n} {dtype} {device}"
                    );
                    let turned = x.t()?.argmax(0, true)?;
                    assert_eq!(turned.shape()[..], [1, 5]);
                    assert_eq!(turned.to_vec::<i64>()?, y);
                }
            }
        }
        Ok(())
    }
}
