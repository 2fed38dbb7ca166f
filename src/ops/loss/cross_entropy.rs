//! The cross entropy of logits with labels or class probabilities, softmax included.

use crate::autograd::{Op, apply};
use crate::cpu::rows::rows2;
use crate::cpu::strided::{row_max, row_sum, rows};
use crate::cuda::{Arg, Gpu, kernels};
use crate::device::Device;
use crate::dtype::{DType, Real};
use crate::error::{Error, Result};
use crate::ops::check::{Case, Input};
use crate::ops::loss::{
    Reduction, Rows, check_constant, check_probabilities, labels, optional, sizes,
};
use crate::ops::precision::widened;
use crate::ops::{Formula, one_dtype};
use crate::shape::Layout;
use crate::tensor::Tensor;
use crate::with_real;

const NAME: &str = "cross_entropy";

kernels! {
    /// A team a sample.
    FORWARD = "cross_entropy" [F32, F64];
    /// A team a sample.
    BACKWARD = "cross_entropy_backward" [F32, F64];
    /// A team a sample.
    SHARES = "cross_entropy_shares" [F32, F64];
    /// A team a sample.
    SHARES_BACKWARD = "cross_entropy_shares_backward" [F32, F64];
}

/// Settings of [`Tensor::cross_entropy`]; by default the mean, and nothing special.
#[derive(Clone, Debug, Default)]
pub struct CrossEntropy {
    /// The share of the target that is spread evenly over all classes, 0 to 1.
    pub label_smoothing: f64,
    /// What becomes of the samples' losses.
    pub reduction: Reduction,
    /// A factor for each class (C): of the loss of samples that have its label, or of the class's
    /// part in the loss where the target is probabilities. It gets no gradient.
    pub weight: Option<Tensor>,
    /// Samples of this label have the loss 0 and do not count in the mean. It may lie outside of the
    /// classes (PyTorch's own is -100). Only with labels.
    pub ignore_index: Option<i64>,
}

/// loss = -sum_j q_j ln p_j with p = softmax(x), q = (1 - s) [j = label] + s / C (Szegedy et al.
/// 2016). Inputs logits, labels.
struct OfLabels {
    smoothing: f64,
    reduction: Reduction,
}

impl Op<2> for OfLabels {
    const NAME: &'static str = NAME;
    /// The logits, the labels, and each row's maximum and 1 / sum e^(x - maximum), (n, 2) on the CPU
    /// and (2, n) on a GPU: backward's exponentials cost less than to keep p.
    type Saved = (Tensor, Tensor, Tensor);

    fn forward(&self, [x, target]: [&Tensor; 2]) -> Result<(Tensor, Self::Saved)> {
        if let Device::Cuda(gpu) = x.device() {
            sizes(NAME, x, target)?;
            let (rows, target) = (Rows::new(NAME, gpu, x)?, target.packed()?);
            let (losses, moments) = (rows.empty(&[rows.n])?, rows.empty(&[2, rows.n])?);
            let [fault, op] = rows.fault(NAME)?;
            rows.launch(
                &FORWARD,
                &[target.input(), losses.output(), moments.output()],
                &[Arg::F64(self.smoothing), fault, op],
            )?;
            let loss = self.reduction.apply(losses)?;
            return Ok((loss, (rows.logits, target, moments)));
        }
        let labels = labels(NAME, x, target, None)?;
        let (x, n, c) = (x.packed()?, labels.len(), x.shape()[1]);
        with_real!(NAME, x.dtype(), T => {
            let v = x.dense_slice::<T>(NAME)?;
            let (mut losses, mut moments) = (vec![T::ZERO; n], vec![T::ZERO; 2 * n]);
            let (hit, even) = (T::of(1.0 - self.smoothing), T::of(self.smoothing / c as f64));
            rows2((&mut losses, 1), (&mut moments, 2), 4 * c, #[inline(always)] |loss, pair, r| {
                let x = &v[r * c..][..c];
                let max = row_max(x);
                // by name, since T stands for f32 or f64 here, whose own exp is another
                let sum = T::of(row_sum([x], |[x]| Real::exp(x - max)));
                // without smoothing a logit of minus infinity elsewhere costs nothing
                let level = match self.smoothing {
                    0.0 => T::ZERO,
                    _ => even * T::of(row_sum([x], |[x]| x - max)),
                };
                loss[0] = sum.ln() - hit * (x[labels[r] as usize] - max) - level;
                pair.copy_from_slice(&[max, T::ONE / sum]);
            });
            let loss = self.reduction.apply(Tensor::from_vec(losses, n)?)?;
            let moments = Tensor::from_vec(moments, [n, 2])?;
            Ok((loss, (x.clone(), target.clone(), moments)))
        })
    }

    /// dx = (p - q) dy.
    fn backward(
        &self,
        (x, target, moments): Self::Saved,
        dy: Tensor,
        _: [bool; 2],
    ) -> Result<[Option<Tensor>; 2]> {
        let ([n, c], smoothing) = (sizes(NAME, &x, &target)?, self.smoothing);
        let scale = self.reduction.scale(n);
        if let Device::Cuda(gpu) = x.device() {
            let rows = Rows::new(NAME, gpu, &x)?;
            let (dy, dx) = (dy.packed()?, rows.empty(&[n, c])?);
            let [each, scale] = self.reduction.spread_args(scale);
            let tensors = [target.input(), moments.input(), dy.input(), dx.output()];
            rows.launch(&BACKWARD, &tensors, &[Arg::F64(smoothing), each, scale])?;
            return Ok([Some(dx), None]);
        }
        let labels = target.to_vec::<i64>()?;
        let dx = with_real!(NAME, x.dtype(), T => {
            let v = x.dense_slice::<T>(NAME)?;
            let (moments, _) = moments.dense_slice::<T>(NAME)?.as_chunks::<2>();
            let g = self.reduction.spread::<T>(&dy, scale)?;
            let (hit, even) = (T::of(1.0 - smoothing), T::of(smoothing / c as f64));
            Tensor::build::<T>(*x.layout(), x.device(), |dx| {
                rows(dx, c, 4 * c, #[inline(always)] |dx, r| {
                    let (x, [max, share], g) = (&v[r * c..][..c], moments[r], g(r));
                    for (dx, &x) in dx.iter_mut().zip(x) {
                        *dx = (Real::exp(x - max) * share - even) * g;
                    }
                    dx[labels[r] as usize] += -hit * g;
                })
            })
        })?;
        Ok([Some(dx), None])
    }
}

/// loss = -sum_j v_j ln p_j with p = softmax(x), v_j = w_j ((1 - s) q_j + s / C), where q is
/// [j = label] or given; 0 for ignored labels. The mean is over the samples, of labels over the sum
/// of their weights. Inputs logits, labels or probabilities.
struct OfShares(CrossEntropy);

struct Saved {
    /// The logits on a GPU, p on the CPU.
    x: Tensor,
    target: Tensor,
    weight: Option<Tensor>,
    /// On a GPU (4, n): each row's maximum, 1 / sum e^(x - maximum), sum v, and part in the mean.
    moments: Option<Tensor>,
    /// What the mean was over, if not the number of samples.
    total: Option<Tensor>,
}

impl Op<2> for OfShares {
    const NAME: &'static str = NAME;
    type Saved = Saved;

    fn forward(&self, [x, target]: [&Tensor; 2]) -> Result<(Tensor, Saved)> {
        let CrossEntropy {
            label_smoothing,
            reduction,
            ignore_index,
            ..
        } = self.0;
        let of_labels = target.dtype() == DType::I64;
        if !of_labels {
            one_dtype(NAME, [x, target])?;
        }
        let weight = self.0.weight.as_ref();
        let weight = weight.map(|w| w.cast(x.dtype())?.packed()).transpose()?;
        let target = target.packed()?;
        let (losses, parts, mut saved) = if let Device::Cuda(gpu) = x.device() {
            let rows = Rows::new(NAME, gpu, x)?;
            let (losses, moments) = (rows.empty(&[rows.n])?, rows.empty(&[4, rows.n])?);
            let [labels, shares, weight_arg] = inputs(gpu, &target, weight.as_ref(), x.dtype());
            let [ignoring, ignored] = ignore_args(ignore_index);
            let [fault, op] = rows.fault(NAME)?;
            rows.launch(
                &SHARES,
                &[
                    labels,
                    shares,
                    weight_arg,
                    losses.output(),
                    moments.output(),
                ],
                &[Arg::F64(label_smoothing), ignoring, ignored, fault, op],
            )?;
            let parts = moments.narrow(0, 3, 1)?;
            let x = rows.logits;
            (
                losses,
                parts,
                Saved {
                    x,
                    target,
                    weight,
                    moments: Some(moments),
                    total: None,
                },
            )
        } else {
            let x = x.packed()?;
            with_real!(NAME, x.dtype(), T => {
                let (losses, parts, p) = forward::<T>(&x, &self.shares(&x, &target, &weight)?)?;
                Ok((losses, parts, Saved { x: p, target, weight, moments: None, total: None }))
            })?
        };
        if reduction != Reduction::Mean || !of_labels {
            return Ok((reduction.apply(losses)?, saved));
        }
        let total = Reduction::Sum.apply(parts)?;
        let loss = Reduction::Sum.apply(losses)?.div(&total)?;
        saved.total = Some(total);
        Ok((loss, saved))
    }

    /// dx = (p sum v - v) dy.
    fn backward(&self, saved: Saved, dy: Tensor, _: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        let Saved {
            x,
            target,
            weight,
            moments,
            total,
        } = saved;
        let [n, c] = x.dims(NAME, "logits (N, C)")?;
        let (dy, scale) = match total {
            Some(total) => (dy.div(&total)?, 1.0),
            None => (dy, self.0.reduction.scale(n)),
        };
        if let (Device::Cuda(gpu), Some(moments)) = (x.device(), moments) {
            let rows = Rows::new(NAME, gpu, &x)?;
            let (dy, dx) = (dy.packed()?, rows.empty(&[n, c])?);
            let [labels, shares, weight] = inputs(gpu, &target, weight.as_ref(), x.dtype());
            let [ignoring, ignored] = ignore_args(self.0.ignore_index);
            let [each, scale] = self.0.reduction.spread_args(scale);
            rows.launch(
                &SHARES_BACKWARD,
                &[
                    labels,
                    shares,
                    weight,
                    moments.input(),
                    dy.input(),
                    dx.output(),
                ],
                &[
                    Arg::F64(self.0.label_smoothing),
                    ignoring,
                    ignored,
                    each,
                    scale,
                ],
            )?;
            return Ok([Some(dx), None]);
        }
        let dx = with_real!(NAME, x.dtype(), T => {
            let p = x.dense_slice::<T>(NAME)?;
            let g = self.0.reduction.spread::<T>(&dy, scale)?;
            let shares = self.shares::<T>(&x, &target, &weight)?;
            Tensor::build::<T>(*x.layout(), x.device(), |dx| {
                rows(dx, c, 4 * c, #[inline(always)] |dx, r| {
                    if shares.write(r, dx).is_none() {
                        return dx.fill(T::ZERO);
                    }
                    let (sum, g) = (T::of(row_sum([dx], |[v]| v)), g(r));
                    for (dx, &p) in dx.iter_mut().zip(&p[r * c..]) {
                        *dx = (p * sum - *dx) * g;
                    }
                })
            })
        })?;
        Ok([Some(dx), None])
    }
}

/// Labels, probabilities and weight for a kernel; null what is not there.
fn inputs(gpu: Gpu, target: &Tensor, weight: Option<&Tensor>, dtype: DType) -> [Arg<'static>; 3] {
    let of_labels = target.dtype() == DType::I64;
    [
        optional(of_labels.then_some(target), DType::I64, gpu),
        optional((!of_labels).then_some(target), dtype, gpu),
        optional(weight, dtype, gpu),
    ]
}

/// Whether a label is ignored, and which.
fn ignore_args(ignored: Option<i64>) -> [Arg<'static>; 2] {
    [
        Arg::I32(ignored.is_some() as i32),
        Arg::I64(ignored.unwrap_or(0)),
    ]
}

/// The losses (N), each row's part in a mean over labels (N), and p (N, C).
fn forward<T: Real>(x: &Tensor, shares: &Shares<'_, T>) -> Result<(Tensor, Tensor, Tensor)> {
    let [n, c] = x.dims(NAME, "logits (N, C)")?;
    let v = x.dense_slice::<T>(NAME)?;
    let mut found = vec![T::ZERO; 2 * n];
    let p = Tensor::build::<T>(Layout::contiguous(*x.shape()), x.device(), |p| {
        rows2(
            (p, c),
            (&mut found, 2),
            4 * c,
            #[inline(always)]
            |p, found, r| {
                let x = &v[r * c..][..c];
                let (max, part) = (row_max(x), shares.write(r, p));
                let all = T::of(row_sum([p], |[v]| v));
                // a class without a share may have a logit of minus infinity
                let cost = |v: T, x: T| if v == T::ZERO { T::ZERO } else { v * (x - max) };
                let level = T::of(row_sum([p, x], |[v, x]| cost(v, x)));
                for (p, &x) in p.iter_mut().zip(x) {
                    *p = (x - max).exp();
                }
                let sum = T::of(row_sum([p], |[p]| p));
                let share = T::ONE / sum;
                for p in p {
                    *p *= share;
                }
                if let Some(part) = part {
                    found.copy_from_slice(&[all * sum.ln() - level, part]);
                }
            },
        )
    })?;
    let column = |i: usize| Tensor::from_vec(found.iter().skip(i).step_by(2).copied().collect(), n);
    Ok((column(0)?, column(1)?, p))
}

/// What the targets ask of each class, on the CPU.
struct Shares<'a, T> {
    labels: Vec<i64>,
    /// (N, C), if there are no labels.
    probabilities: Option<&'a [T]>,
    weight: Option<&'a [T]>,
    ignored: Option<i64>,
    hit: T,
    even: T,
}

impl OfShares {
    fn shares<'a, T: Real>(
        &self,
        logits: &Tensor,
        target: &'a Tensor,
        weight: &'a Option<Tensor>,
    ) -> Result<Shares<'a, T>> {
        let (smoothing, ignored) = (self.0.label_smoothing, self.0.ignore_index);
        let of_labels = target.dtype() == DType::I64;
        let values = |t: &'a Tensor| t.dense_slice::<T>(NAME);
        Ok(Shares {
            labels: if of_labels {
                labels(NAME, logits, target, ignored)?
            } else {
                Vec::new()
            },
            probabilities: if of_labels {
                None
            } else {
                Some(values(target)?)
            },
            weight: weight.as_ref().map(values).transpose()?,
            ignored,
            hit: T::of(1.0 - smoothing),
            even: T::of(smoothing / logits.shape()[1] as f64),
        })
    }
}

impl<T: Real> Shares<'_, T> {
    /// v of row r, and its part in a mean over labels; `None` for a row that is ignored.
    #[inline(always)]
    fn write(&self, r: usize, v: &mut [T]) -> Option<T> {
        let mut part = T::ONE;
        if let Some(q) = self.probabilities {
            let q = &q[r * v.len()..];
            for (v, &q) in v.iter_mut().zip(q) {
                *v = self.hit * q + self.even;
            }
        } else {
            v.fill(self.even);
            if Some(self.labels[r]) == self.ignored {
                return None;
            }
            let label = self.labels[r] as usize;
            v[label] += self.hit;
            part = self.weight.map_or(part, |w| w[label]);
        }
        if let Some(w) = self.weight {
            for (v, &w) in v.iter_mut().zip(w) {
                *v *= w;
            }
        }
        Some(part)
    }
}

impl Tensor {
    /// The cross entropy of logits (N, C) and I64 labels (N) or class probabilities (N, C), softmax
    /// included: a scalar, or (N) by [`Reduction::None`]. A label outside of the classes is an
    /// [`Error::Index`]. Probabilities, as mixup makes them, get no gradient: one that is required
    /// is an [`Error::Argument`]. They need not sum to 1.
    ///
    /// ```
    /// # use cotangent::{ops::CrossEntropy, DType, Tensor};
    /// let labels = Tensor::from_vec(vec![3i64, 7], [2])?;
    /// let logits = Tensor::zeros([2, 10], DType::F32)?;
    /// let loss = logits.cross_entropy(&labels, &CrossEntropy::default())?;
    /// assert!((loss.item()? - 10f64.ln()).abs() < 1e-6);
    /// let half = Tensor::full([2, 10], 0.05, DType::F32)?;
    /// let loss = logits.cross_entropy(&half, &CrossEntropy::default())?;
    /// assert!((loss.item()? - 0.5 * 10f64.ln()).abs() < 1e-6);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn cross_entropy(&self, target: &Tensor, settings: &CrossEntropy) -> Result<Tensor> {
        let smoothing = settings.label_smoothing;
        if !(0.0..=1.0).contains(&smoothing) {
            let why = format!("label_smoothing is {smoothing}, expected 0 to 1");
            return Err(Error::argument(NAME, why));
        }
        if let Some(weight) = &settings.weight {
            settings.check_weight(self, weight)?;
        }
        if target.dtype().is_float() {
            check_probabilities(NAME, self, target)?;
            check_constant(NAME, "the target", target)?;
            if settings.ignore_index.is_some() {
                let why = "ignore_index wants a target of labels, not of probabilities";
                return Err(Error::argument(NAME, why));
            }
        } else {
            sizes(NAME, self, target)?;
            if settings.weight.is_none() && settings.ignore_index.is_none() {
                let op = OfLabels {
                    smoothing,
                    reduction: settings.reduction,
                };
                return apply(op, [&widened(self)?, target]);
            }
        }
        apply(OfShares(settings.clone()), [&widened(self)?, target])
    }
}

impl CrossEntropy {
    /// Refuses a weight that is not (C), a float, constant, and beside the logits.
    fn check_weight(&self, logits: &Tensor, weight: &Tensor) -> Result<()> {
        let [_, classes] = logits.dims(NAME, "logits (N, C)")?;
        if weight.shape()[..] != [classes] {
            return Err(Error::shape(
                NAME,
                &[*logits.shape(), *weight.shape()],
                format!(
                    "logits {:?} want weight [{classes}] but got {:?}",
                    logits.shape(),
                    weight.shape()
                ),
            ));
        }
        if !weight.dtype().is_float() {
            return Err(Error::DType {
                op: NAME,
                expected: "a float weight",
                got: weight.dtype(),
            });
        }
        if weight.device() != logits.device() {
            return Err(Error::devices(NAME, logits.device(), weight.device()));
        }
        check_constant(NAME, "the weight", weight)
    }
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[(
    NAME,
    "-sum_j w_j ((1 - s) q_j + s / C) ln softmax(x)_j, q_j = [j = label] or given; mean over sum of w_label",
)];

macro_rules! cases {
    ($($name:literal $n:literal $c:literal $smoothing:literal $reduction:ident;)*) => {
        &[$(Case { op: NAME, name: $name, inputs: &[Input::Normal(&[$n, $c]), Input::Index(&[$n], $c)],
            run: |x| x[0].cross_entropy(&x[1], &CrossEntropy {
                label_smoothing: $smoothing, reduction: Reduction::$reduction, ..Default::default()
            }) }),*]
    };
}

/// Labels: reductions, smoothing, degenerate sizes.
pub const CASES: &[Case] = cases! {
    "mean" 5 7 0.0 Mean;
    "sum" 5 7 0.0 Sum;
    "none" 5 7 0.0 None;
    "smoothing" 5 7 0.1 Mean;
    "smoothing, none" 4 10 0.3 None;
    "all smoothing" 4 3 1.0 Sum;
    "one sample" 1 10 0.1 Mean;
    "one class" 3 1 0.1 Mean;
    "200 classes" 3 200 0.1 Mean;
    "sum of no samples" 0 3 0.1 Sum;
};

/// Several teams, rows of several stretches.
pub const LARGE: &[Case] = cases! {
    "rows of 10" 131 10 0.0 Mean;
    "rows of 200" 37 200 0.1 Mean;
    "rows of 1000" 5 1000 0.1 None;
    "rows of 8500" 2 8500 0.1 Sum;
};

/// A factor from 0.5 to 2 for each class.
fn weights(logits: &Tensor) -> Result<Tensor> {
    Tensor::linspace(0.5, 2.0, logits.shape()[1], logits.options())
}

/// Two one-hot targets mixed 7 to 3.
fn mixed(logits: &Tensor, labels: [&Tensor; 2]) -> Result<Tensor> {
    let [a, b] = labels.map(|l| l.one_hot(logits.shape()[1], logits.dtype()));
    a?.mul_scalar(0.7)?.add(&b?.mul_scalar(0.3)?)
}

macro_rules! weighted {
    ($($name:literal $n:literal $c:literal $smoothing:literal $reduction:ident $weighted:literal $ignored:expr;)*) => {
        &[$(Case { op: NAME, name: $name, inputs: &[Input::Normal(&[$n, $c]), Input::Index(&[$n], $c)],
            run: |x| x[0].cross_entropy(&x[1], &CrossEntropy {
                label_smoothing: $smoothing,
                reduction: Reduction::$reduction,
                weight: $weighted.then(|| weights(&x[0])).transpose()?,
                ignore_index: $ignored,
            }) }),*]
    };
}

macro_rules! probabilities {
    ($($name:literal $n:literal $c:literal $smoothing:literal $reduction:ident $weighted:literal;)*) => {
        &[$(Case { op: NAME, name: $name,
            inputs: &[Input::Normal(&[$n, $c]), Input::Index(&[$n], $c), Input::Index(&[$n], $c)],
            run: |x| x[0].cross_entropy(&mixed(&x[0], [&x[1], &x[2]])?, &CrossEntropy {
                label_smoothing: $smoothing,
                reduction: Reduction::$reduction,
                weight: $weighted.then(|| weights(&x[0])).transpose()?,
                ignore_index: None,
            }) }),*]
    };
}

/// Weights of the classes and ignored labels.
pub const WEIGHTED: &[Case] = weighted! {
    "weight" 5 7 0.0 Mean true None;
    "weight, smoothing" 5 7 0.1 Mean true None;
    "weight, smoothing, none" 4 3 0.3 None true None;
    "one label ignored" 9 2 0.0 Mean false Some(1);
    "one label ignored, weight, smoothing" 9 3 0.1 Mean true Some(1);
    "one label ignored, sum" 9 3 0.1 Sum false Some(2);
    "one label ignored, none" 9 3 0.0 None true Some(0);
    "weight, sum of no samples" 0 3 0.0 Sum true None;
};

/// [`WEIGHTED`] of several teams, rows of several stretches.
pub const WEIGHTED_LARGE: &[Case] = weighted! {
    "weight, rows of 10" 131 10 0.1 Mean true Some(3);
    "weight, rows of 300" 9 300 0.1 Mean true None;
    "weight, rows of 8500" 2 8500 0.0 Sum true None;
};

/// Class probabilities.
pub const PROBABILITIES: &[Case] = probabilities! {
    "probabilities" 5 7 0.0 Mean false;
    "probabilities, smoothing, weight" 5 7 0.1 Mean true;
    "probabilities, smoothing, sum" 4 3 0.3 Sum false;
    "probabilities, weight, none" 4 3 0.0 None true;
    "probabilities of one sample" 1 10 0.0 Mean false;
    "probabilities of one class" 3 1 0.1 Mean false;
    "probabilities, sum of no samples" 0 3 0.0 Sum false;
};

/// [`PROBABILITIES`] of several teams, rows of several stretches.
pub const PROBABILITIES_LARGE: &[Case] = probabilities! {
    "probabilities, rows of 10" 131 10 0.0 Mean false;
    "probabilities, rows of 300" 9 300 0.1 None true;
    "probabilities, rows of 8500" 2 8500 0.1 Sum false;
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::devices;

    fn logits() -> Result<(Tensor, Tensor)> {
        let x = Tensor::from_vec(vec![2f64.ln(), 0.0, 0.0, 0.0, 1000.0, 0.0], [2, 3])?;
        Ok((x, Tensor::from_vec(vec![0i64, 0], [2])?))
    }

    #[test]
    fn known_values() -> Result<()> {
        for device in devices()? {
            let (x, t) = logits()?;
            let (x, t) = (x.to(device)?, t.to(device)?);
            let mut settings = CrossEntropy {
                reduction: Reduction::None,
                ..CrossEntropy::default()
            };
            // p = (1/2, 1/4, 1/4); far apart the loss is the difference
            let y = x.cross_entropy(&t, &settings)?.to_vec::<f64>()?;
            assert!((y[0] - 2f64.ln()).abs() < 1e-15 && y[1] == 1000.0, "{y:?}");
            settings.label_smoothing = 0.3;
            // q = (0.8, 0.1, 0.1)
            let y = x.cross_entropy(&t, &settings)?.to_vec::<f64>()?;
            assert!((y[0] - 1.2 * 2f64.ln()).abs() < 1e-15, "{y:?}");
            let settings = CrossEntropy::default();
            let none = Tensor::zeros([0, 3], (DType::F64, device))?;
            let no_label = Tensor::zeros([0], (DType::I64, device))?;
            assert!(none.cross_entropy(&no_label, &settings)?.item()?.is_nan());
            assert!(none.cross_entropy(&none, &settings)?.item()?.is_nan());
        }
        Ok(())
    }

    /// `F.cross_entropy(x, target, weight, ignore_index=.., reduction=.., label_smoothing=..)` of
    /// PyTorch 2.11 in float64, and the gradient of x by `torch.autograd.grad`.
    #[test]
    fn weights_ignored_labels_and_probabilities_as_pytorch_has_them() -> Result<()> {
        let x = Tensor::from_slice(&[1.0, 2.0, 0.5, 0.1, -0.3, 0.7, 2.0, 1.0, 1.0], [3, 3])?;
        let p = Tensor::from_slice(&[0.2, 0.5, 0.3, 0.0, 1.0, 0.0, 0.6, 0.6, 0.1], [3, 3])?;
        let w = Tensor::from_slice(&[0.5, 2.0, 1.0], [3])?;
        let labels = Tensor::from_slice(&[2i64, 0, 1], [3])?;
        let none = [1.737587223313342, 0.895420211417248, 2.665028249381089];
        let weighted = [1.2026104828635666, 2.7685505285431202, 2.020623729480115];
        use Reduction::{Mean, None as Each, Sum};
        // of labels or shares, weighted, ignore_index, label_smoothing, reduction, the losses
        type Row<'a> = (bool, bool, Option<i64>, f64, Reduction, &'a [f64]);
        #[rustfmt::skip]
        let table: [Row<'_>; 11] = [
            (true, true, None, 0.3, Each, &none),
            (true, true, None, 0.0, Mean, &[1.626445246566962]),
            (true, true, None, 0.3, Mean, &[1.5137244811747654]),
            (true, true, Some(0), 0.3, Mean, &[1.4675384908981437]),
            (true, true, Some(0), 0.0, Each, &[1.964368784107945, 0.0, 3.102889427864102]),
            (true, true, Some(0), 0.3, Sum, &[4.402615472694431]),
            (true, true, Some(-100), 0.3, Sum, &[5.298035684111679]),
            (false, false, None, 0.0, Mean, &[1.3939490714147507]),
            (false, false, None, 0.3, Mean, &[1.3457390633301223]),
            (false, true, None, 0.3, Mean, &[1.9972615802956006]),
            (false, true, None, 0.3, Each, &weighted),
        ];
        let near = |a: &[f64], b: &[f64], what: &str| {
            let differs = |(a, b): (&f64, &f64)| (a - b).abs() > 1e-14 || a.is_nan() != b.is_nan();
            assert_eq!(a.len(), b.len(), "{what}");
            assert!(!a.iter().zip(b).any(differs), "{what}: {a:?} not {b:?}");
        };
        for device in devices()? {
            let [x, p, w, labels] = [&x, &p, &w, &labels].map(|t| t.to(device));
            let (x, p, w, labels) = (x?.requires_grad(), p?, w?, labels?);
            let settings =
                |weighted: bool, ignore_index, label_smoothing, reduction| CrossEntropy {
                    label_smoothing,
                    reduction,
                    weight: weighted.then(|| w.clone()),
                    ignore_index,
                };
            for (of_labels, weighted, ignored, s, reduction, expected) in table {
                let target = if of_labels { &labels } else { &p };
                let y = x.cross_entropy(target, &settings(weighted, ignored, s, reduction))?;
                let what = format!("{of_labels} {weighted} {ignored:?} {s} {reduction:?} {device}");
                near(&y.to_vec::<f64>()?, expected, &what);
            }
            let gradient = |target: &Tensor, ignored, s| -> Result<(f64, Vec<f64>)> {
                let y = x.cross_entropy(target, &settings(true, ignored, s, Mean))?;
                let grads = y.backward()?;
                let dx = grads.get(&x).map(Tensor::to_vec::<f64>).transpose()?;
                Ok((y.item()?, dx.unwrap_or_default()))
            };
            #[rustfmt::skip]
            let of_labels = [
                0.06426169750108549, 0.15331943505745016, -0.2175811325585357, 0.0, 0.0, 0.0,
                0.31940151611340034, -0.40970075805670014, 0.09029924194329984,
            ];
            near(&gradient(&labels, Some(0), 0.3)?.1, &of_labels, "labels");
            #[rustfmt::skip]
            let of_probabilities = [
                0.06250926127915273, -0.021350937816118645, -0.04115832346303412,
                0.15036083445343587, -0.4213714510932883, 0.2710106166398523,
                0.1956306068685896, -0.2428153034342948, 0.04718469656570521,
            ];
            near(
                &gradient(&p, None, 0.3)?.1,
                &of_probabilities,
                "probabilities",
            );
            let zeros = Tensor::zeros([3], (DType::I64, device))?;
            let (mean, dx) = gradient(&zeros, Some(0), 0.0)?;
            assert!(mean.is_nan() && dx == [0.0; 9], "{mean} {dx:?}");
        }
        Ok(())
    }

    #[test]
    fn impossible_classes_cost_nothing_without_smoothing() -> Result<()> {
        let x = Tensor::from_vec(vec![0f32, f32::NEG_INFINITY], [1, 2])?;
        let t = Tensor::from_vec(vec![0i64], [1])?;
        for device in devices()? {
            let (x, t) = (x.to(device)?, t.to(device)?);
            let weight = Some(Tensor::ones([2], device)?);
            for target in [&t, &t.one_hot(2, DType::F32)?] {
                for weight in [None, weight.clone()] {
                    let settings = CrossEntropy {
                        weight,
                        ..CrossEntropy::default()
                    };
                    assert_eq!(x.cross_entropy(target, &settings)?.item()?, 0.0);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn errors() -> Result<()> {
        let (x, t) = logits()?;
        let e = |r: Result<Tensor>| r.unwrap_err().to_string();
        let settings = CrossEntropy::default();
        assert_eq!(
            e(x.cross_entropy(&t.to_dtype(DType::F32)?, &settings)),
            "cross_entropy: logits [2, 3] want i64 labels [2] or probabilities [2, 3] but got [2] of f32"
        );
        assert_eq!(
            e(x.cross_entropy(&t.to_dtype(DType::U8)?, &settings)),
            "cross_entropy: expected i64 labels but got u8"
        );
        assert_eq!(
            e(x.cross_entropy(&x.to_dtype(DType::F32)?, &settings)),
            "cross_entropy: expected tensors of one dtype but got f32"
        );
        assert_eq!(
            e(t.cross_entropy(&t, &settings)),
            "cross_entropy: expected logits (N, C) but got [2]"
        );
        assert_eq!(
            e(x.cross_entropy(&x.requires_grad(), &settings)),
            "cross_entropy: the target requires a gradient but gets none; detach it"
        );
        let with = |change: fn(&mut CrossEntropy), target: &Tensor| {
            let mut settings = CrossEntropy::default();
            change(&mut settings);
            e(x.cross_entropy(target, &settings))
        };
        assert_eq!(
            with(|s| s.label_smoothing = 1.5, &t),
            "cross_entropy: label_smoothing is 1.5, expected 0 to 1"
        );
        assert_eq!(
            with(|s| s.ignore_index = Some(0), &x),
            "cross_entropy: ignore_index wants a target of labels, not of probabilities"
        );
        assert_eq!(
            with(|s| s.weight = Tensor::ones([2], DType::F64).ok(), &t),
            "cross_entropy: logits [2, 3] want weight [3] but got [2]"
        );
        assert_eq!(
            with(|s| s.weight = Tensor::ones([3], DType::I64).ok(), &t),
            "cross_entropy: expected a float weight but got i64"
        );
        let tracked: fn(&mut CrossEntropy) = |s| {
            let weight = Tensor::ones([3], DType::F64).ok();
            s.weight = weight.map(|w| w.requires_grad());
        };
        assert_eq!(
            with(tracked, &t),
            "cross_entropy: the weight requires a gradient but gets none; detach it"
        );
        Ok(())
    }
}
