//! Losses of a classifier from its logits and labels, and its accuracy.

use crate::autograd::{Op, apply, scaled_sum_axes};
use crate::cpu::rows::rows2;
use crate::cpu::strided::rows;
use crate::cuda::{self, Arg, Gpu, kernels};
use crate::device::Device;
use crate::dtype::{DType, Real};
use crate::error::{Error, Result};
use crate::ops::check::{Case, Input};
use crate::ops::precision::widened;
use crate::shape::{Layout, Shape};
use crate::tensor::Tensor;
use crate::tensor::fold::Team;
use crate::with_real;

kernels! {
    /// A team a sample.
    CROSS_ENTROPY = "cross_entropy" [F32, F64];
    /// A team a sample.
    CROSS_ENTROPY_BACKWARD = "cross_entropy_backward" [F32, F64];
    /// A team a sample.
    SVM_LOSS = "svm_loss" [F32, F64];
    /// A team a sample.
    SVM_LOSS_BACKWARD = "svm_loss_backward" [F32, F64];
    /// A team a sample.
    CORRECT = "correct" [F32, F64];
}

/// What becomes of the losses of a batch's samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Reduction {
    /// They stay: shape (N).
    None,
    /// Their mean; NaN of none, as PyTorch has it.
    #[default]
    Mean,
    /// Their sum.
    Sum,
}

/// Settings of [`Tensor::cross_entropy`]; by default no smoothing, and the mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct CrossEntropy {
    /// The share of the target that is spread evenly over all classes, 0 to 1.
    pub label_smoothing: f64,
    /// What becomes of the samples' losses.
    pub reduction: Reduction,
}

impl Reduction {
    /// The losses reduced.
    fn apply<T: Real>(self, losses: Vec<T>) -> Result<Tensor> {
        let sum = || losses.iter().map(|x| x.to_f64()).sum::<f64>();
        match self {
            Reduction::None => {
                let n = losses.len();
                Tensor::from_vec(losses, n)
            }
            Reduction::Mean => Tensor::scalar(T::of(sum() / losses.len() as f64)),
            Reduction::Sum => Tensor::scalar(T::of(sum())),
        }
    }

    /// What a sample's loss counts of the reduced one.
    fn scale(self, n: usize) -> f64 {
        match self {
            Reduction::Mean => 1.0 / n as f64,
            Reduction::None | Reduction::Sum => 1.0,
        }
    }

    /// The losses (N) of a GPU reduced there.
    fn on_device(self, losses: Tensor) -> Result<Tensor> {
        match self {
            Reduction::None => Ok(losses),
            _ => scaled_sum_axes(&losses, &[true], self.scale(losses.numel()))?.reshape(()),
        }
    }

    /// The gradient of each of `n` samples' losses.
    fn spread<T: Real>(self, dy: &Tensor, n: usize) -> Result<Vec<T>> {
        match self {
            Reduction::None => dy.to_vec::<T>(),
            _ => Ok(vec![T::of(dy.item()? * self.scale(n)); n]),
        }
    }
}

/// N and C, of logits (N, C) and labels (N).
fn sizes(op: &'static str, logits: &Tensor, target: &Tensor) -> Result<[usize; 2]> {
    let [n, classes] = logits.dims(op, "logits (N, C)")?;
    if target.shape()[..] != [n] {
        return Err(Error::shape(
            op,
            &[*logits.shape(), *target.shape()],
            format!(
                "logits {:?} want labels [{n}] but got {:?}",
                logits.shape(),
                target.shape()
            ),
        ));
    }
    if target.dtype() != DType::I64 {
        return Err(Error::DType {
            op,
            expected: "i64 labels",
            got: target.dtype(),
        });
    }
    Ok([n, classes])
}

/// The labels (N) of logits (N, C), each below C.
fn labels(op: &'static str, logits: &Tensor, target: &Tensor) -> Result<Vec<i64>> {
    let [_, classes] = sizes(op, logits, target)?;
    let labels = target.to_vec::<i64>()?;
    match labels.iter().find(|&&t| t < 0 || t as usize >= classes) {
        Some(&index) => Err(Error::Index {
            op,
            index,
            size: classes,
        }),
        None => Ok(labels),
    }
}

/// Logits and labels on a GPU, and the threads of their rows.
struct Rows {
    gpu: Gpu,
    logits: Tensor,
    labels: Tensor,
    n: usize,
    classes: usize,
    team: Team,
}

impl Rows {
    fn new(op: &'static str, gpu: Gpu, logits: &Tensor, labels: &Tensor) -> Result<Self> {
        let [n, classes] = sizes(op, logits, labels)?;
        Ok(Rows {
            gpu,
            logits: logits.packed()?,
            labels: labels.packed()?,
            n,
            classes,
            team: Team::of(classes),
        })
    }

    /// A kernel of logits, labels, `tensors`, the sizes and `rest`.
    fn launch(&self, kernels: &'static cuda::Kernels, tensors: &[Arg], rest: &[Arg]) -> Result<()> {
        let [grid, block] = self.team.launch(self.n);
        let sizes = [self.n, self.classes, self.team.lanes].map(|n| Arg::I32(n as i32));
        let own = [self.logits.input(), self.labels.input()];
        let args = [&own, tensors, &sizes, rest].concat();
        let kernel = kernels.of(self.logits.dtype())?;
        self.gpu.launch(kernel, grid, block, 0, &args)
    }

    /// An uninitialized tensor beside the logits.
    fn empty(&self, dims: &[usize]) -> Result<Tensor> {
        let layout = Layout::contiguous(Shape::new(dims)?);
        Tensor::empty(layout, self.logits.dtype(), self.logits.device())
    }

    /// What a kernel reports a label outside of the classes with.
    fn fault(&self, op: &'static str) -> Result<[Arg<'_>; 2]> {
        Ok([self.gpu.fault()?, cuda::op_number(op)])
    }
}

/// loss = -sum_j q_j ln p_j with p = softmax(x), q = (1 - s) [j = label] + s / C (Szegedy et al.
/// 2016). Inputs logits, labels.
struct SoftmaxLoss(CrossEntropy);

impl Op<2> for SoftmaxLoss {
    const NAME: &'static str = "cross_entropy";
    /// On the CPU p, whose exponentials cost more than its memory; on a GPU, where they cost less,
    /// the logits and each row's maximum and 1 / sum e^(x - maximum). And the labels.
    type Saved = (Tensor, Tensor, Option<Tensor>);

    fn forward(&self, [x, target]: [&Tensor; 2]) -> Result<(Tensor, Self::Saved)> {
        if let Device::Cuda(gpu) = x.device() {
            let rows = Rows::new(Self::NAME, gpu, x, target)?;
            let (losses, moments) = (rows.empty(&[rows.n])?, rows.empty(&[2, rows.n])?);
            let [fault, op] = rows.fault(Self::NAME)?;
            rows.launch(
                &CROSS_ENTROPY,
                &[losses.output(), moments.output()],
                &[Arg::F64(self.0.label_smoothing), fault, op],
            )?;
            let loss = self.0.reduction.on_device(losses)?;
            return Ok((loss, (rows.logits, rows.labels, Some(moments))));
        }
        let labels = labels(Self::NAME, x, target)?;
        let (x, c, smoothing) = (x.packed()?, x.shape()[1], self.0.label_smoothing);
        with_real!(Self::NAME, x.dtype(), T => {
            let v = x.dense_slice::<T>(Self::NAME)?;
            let mut losses = vec![T::ZERO; labels.len()];
            let (hit, even) = (T::of(1.0 - smoothing), T::of(smoothing / c as f64));
            let layout = Layout::contiguous(*x.shape());
            let p = Tensor::build::<T>(layout, x.device(), |p| {
                rows2((p, c), (&mut losses, 1), 16 * c, |p, loss, r| {
                    let x = &v[r * c..][..c];
                    let max = x.iter().fold(T::NEG_INFINITY, |m, &x| Real::nan_max(m, x));
                    let (mut sum, mut level) = (T::ZERO, T::ZERO);
                    for (p, &x) in p.iter_mut().zip(x) {
                        *p = (x - max).exp();
                        sum += *p;
                        level += x - max;
                    }
                    let share = T::ONE / sum;
                    p.iter_mut().for_each(|p| *p *= share);
                    // without smoothing a logit of minus infinity elsewhere costs nothing
                    let level = if smoothing == 0.0 { T::ZERO } else { even * level };
                    loss[0] = sum.ln() - hit * (x[labels[r] as usize] - max) - level;
                })
            })?;
            Ok((self.0.reduction.apply(losses)?, (p, target.clone(), None)))
        })
    }

    /// dx = (p - q) dy.
    fn backward(
        &self,
        (p, target, moments): Self::Saved,
        dy: Tensor,
        _: [bool; 2],
    ) -> Result<[Option<Tensor>; 2]> {
        let (c, smoothing) = (p.shape()[1], self.0.label_smoothing);
        if let (Device::Cuda(gpu), Some(moments)) = (p.device(), moments) {
            let rows = Rows::new(Self::NAME, gpu, &p, &target)?;
            let (dy, dx) = (dy.packed()?, rows.empty(&[rows.n, c])?);
            let each = (self.0.reduction == Reduction::None) as i32;
            let scale = self.0.reduction.scale(rows.n);
            rows.launch(
                &CROSS_ENTROPY_BACKWARD,
                &[moments.input(), dy.input(), dx.output()],
                &[Arg::F64(smoothing), Arg::I32(each), Arg::F64(scale)],
            )?;
            return Ok([Some(dx), None]);
        }
        let labels = target.to_vec::<i64>()?;
        let dx = with_real!(Self::NAME, p.dtype(), T => {
            let v = p.dense_slice::<T>(Self::NAME)?;
            let g = self.0.reduction.spread::<T>(&dy, labels.len())?;
            let (hit, even) = (T::of(1.0 - smoothing), T::of(smoothing / c as f64));
            Tensor::build::<T>(*p.layout(), p.device(), |dx| {
                rows(dx, c, c, |dx, r| {
                    let (p, g) = (&v[r * c..][..c], g[r]);
                    for (dx, &p) in dx.iter_mut().zip(p) {
                        *dx = (p - even) * g;
                    }
                    dx[labels[r] as usize] += -hit * g;
                })
            })
        })?;
        Ok([Some(dx), None])
    }
}

/// loss = mean over samples of sum over wrong classes j of max(0, x_j - x_label + 1), the
/// multi-class hinge of Weston and Watkins (1999) as CS231n has it. Inputs logits, labels.
struct SvmLoss;

impl Op<2> for SvmLoss {
    const NAME: &'static str = "svm_loss";
    type Saved = (Tensor, Tensor);

    fn forward(&self, [x, target]: [&Tensor; 2]) -> Result<(Tensor, Self::Saved)> {
        if let Device::Cuda(gpu) = x.device() {
            let rows = Rows::new(Self::NAME, gpu, x, target)?;
            let losses = rows.empty(&[rows.n])?;
            let fault = rows.fault(Self::NAME)?;
            rows.launch(&SVM_LOSS, &[losses.output()], &fault)?;
            let loss = Reduction::Mean.on_device(losses)?;
            return Ok((loss, (rows.logits, rows.labels)));
        }
        let labels = labels(Self::NAME, x, target)?;
        let (x, c) = (x.packed()?, x.shape()[1]);
        with_real!(Self::NAME, x.dtype(), T => {
            let v = x.dense_slice::<T>(Self::NAME)?;
            let losses = labels.iter().enumerate().map(|(r, &label)| {
                let x = &v[r * c..][..c];
                let hinge = |&x_j: &T| Real::nan_max(x_j - x[label as usize] + T::ONE, T::ZERO);
                // the label's own term is max(0, 1)
                x.iter().map(hinge).sum::<T>() - T::ONE
            });
            let loss = Reduction::Mean.apply(losses.collect::<Vec<T>>())?;
            Ok((loss, (x.clone(), target.clone())))
        })
    }

    fn backward(
        &self,
        (x, target): Self::Saved,
        dy: Tensor,
        _: [bool; 2],
    ) -> Result<[Option<Tensor>; 2]> {
        let c = x.shape()[1];
        if let Device::Cuda(gpu) = x.device() {
            let rows = Rows::new(Self::NAME, gpu, &x, &target)?;
            let dx = rows.empty(&[rows.n, c])?;
            let scale = Arg::F64(Reduction::Mean.scale(rows.n));
            rows.launch(&SVM_LOSS_BACKWARD, &[dy.input(), dx.output()], &[scale])?;
            return Ok([Some(dx), None]);
        }
        let labels = target.to_vec::<i64>()?;
        let dx = with_real!(Self::NAME, x.dtype(), T => {
            let v = x.dense_slice::<T>(Self::NAME)?;
            let g = T::of(dy.item()? / labels.len() as f64);
            Tensor::build::<T>(Layout::contiguous(*x.shape()), x.device(), |dx| {
                rows(dx, c, c, |dx, r| {
                    let (x, label) = (&v[r * c..][..c], labels[r] as usize);
                    for (dx, &x_j) in dx.iter_mut().zip(x) {
                        *dx = if x_j - x[label] + T::ONE > T::ZERO { g } else { T::ZERO };
                    }
                    dx[label] = T::ZERO;
                    dx[label] = -dx.iter().copied().sum::<T>();
                })
            })
        })?;
        Ok([Some(dx), None])
    }
}

impl Tensor {
    /// The cross entropy of logits (N, C) and I64 labels (N), softmax included. A label outside
    /// of the classes is an [`Error::Index`].
    ///
    /// ```
    /// # use cotangent::{ops::CrossEntropy, DType, Tensor};
    /// let labels = Tensor::from_vec(vec![3i64, 7], [2])?;
    /// let loss = Tensor::zeros([2, 10], DType::F32)?.cross_entropy(&labels, &CrossEntropy::default())?;
    /// assert!((loss.item()? - 10f64.ln()).abs() < 1e-6);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn cross_entropy(&self, labels: &Tensor, settings: &CrossEntropy) -> Result<Tensor> {
        if !(0.0..=1.0).contains(&settings.label_smoothing) {
            let s = settings.label_smoothing;
            return Err(Error::argument(
                <SoftmaxLoss as Op<2>>::NAME,
                format!("label_smoothing is {s}, expected 0 to 1"),
            ));
        }
        apply(SoftmaxLoss(*settings), [&widened(self)?, labels])
    }

    /// The multi-class hinge loss of logits (N, C) and I64 labels (N) with margin 1: a scalar,
    /// the mean over the samples.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let scores = Tensor::from_vec(vec![3.0f32, 2.5, 0.0], [1, 3])?;
    /// assert_eq!(scores.svm_loss(&Tensor::from_vec(vec![0i64], [1])?)?.item()?, 0.5);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn svm_loss(&self, labels: &Tensor) -> Result<Tensor> {
        apply(SvmLoss, [&widened(self)?, labels])
    }
}

/// The share of samples whose greatest logit (the first of equals) is at the label; logits
/// (N, C), I64 labels (N). NaN of no samples.
///
/// ```
/// # use cotangent::{ops::accuracy, Tensor};
/// let logits = Tensor::from_vec(vec![0f32, 1.0, 5.0, 2.0], [2, 2])?;
/// assert_eq!(accuracy(&logits, &Tensor::from_vec(vec![1i64, 1], [2])?)?, 0.5);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn accuracy(logits: &Tensor, labels: &Tensor) -> Result<f64> {
    Ok(correct(logits, labels)? as f64 / labels.numel() as f64)
}

/// How many samples have their greatest logit (the first of equals) at the label; logits (N, C),
/// I64 labels (N). NaN is never the greatest.
pub fn correct(logits: &Tensor, labels: &Tensor) -> Result<usize> {
    Ok(correct_tensor(logits, labels)?.item()? as usize)
}

/// [`correct`] as an I64 scalar where the logits lie: on a GPU nothing waits for it.
pub(crate) fn correct_tensor(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    const OP: &str = "accuracy";
    if let Device::Cuda(gpu) = logits.device() {
        // 16-bit floats are exact in f32
        let dtype = match logits.dtype() {
            d if d.is_half() => DType::F32,
            d if !d.is_float() => DType::F64,
            d => d,
        };
        let rows = Rows::new(OP, gpu, &logits.cast(dtype)?, labels)?;
        let right = Tensor::zeros((), (DType::I64, logits.device()))?;
        rows.launch(&CORRECT, &[right.output()], &rows.fault(OP)?)?;
        return Ok(right);
    }
    let labels = self::labels(OP, logits, labels)?;
    let (v, c) = (logits.cast(DType::F64)?.to_vec::<f64>()?, logits.shape()[1]);
    let right = labels.iter().enumerate().filter(|&(r, &label)| {
        let (x, label) = (&v[r * c..][..c], label as usize);
        // nothing before is as great, nothing after is greater
        x[..label].iter().all(|&o| o < x[label]) && x[label..].iter().all(|&o| o <= x[label])
    });
    Tensor::scalar(right.count() as i64)
}

macro_rules! cases {
    ($($name:literal $n:literal $c:literal $smoothing:literal $reduction:ident;)*) => {
        &[$(Case { op: "cross_entropy", name: $name, inputs: &[Input::Normal(&[$n, $c]), Input::Index(&[$n], $c)],
            run: |x| x[0].cross_entropy(&x[1], &CrossEntropy { label_smoothing: $smoothing, reduction: Reduction::$reduction }) }),*]
    };
}

/// Cross entropy: reductions, smoothing, degenerate sizes.
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
pub const LARGE: &[Case] = &[
    Case {
        op: "svm_loss",
        name: "rows of 200",
        inputs: &[Input::Normal(&[37, 200]), Input::Index(&[37], 200)],
        run: |x| x[0].svm_loss(&x[1]),
    },
    Case {
        op: "svm_loss",
        name: "rows of 8500",
        inputs: &[Input::Normal(&[2, 8500]), Input::Index(&[2], 8500)],
        run: |x| x[0].svm_loss(&x[1]),
    },
];

/// [`LARGE`] of the cross entropy.
pub const MORE_LARGE: &[Case] = cases! {
    "rows of 10" 131 10 0.0 Mean;
    "rows of 200" 37 200 0.1 Mean;
    "rows of 1000" 5 1000 0.1 None;
    "rows of 8500" 2 8500 0.1 Sum;
};

/// The hinge loss.
pub const MORE_CASES: &[Case] = &[
    Case {
        op: "svm_loss",
        name: "(5, 7)",
        inputs: &[Input::Normal(&[5, 7]), Input::Index(&[5], 7)],
        run: |x| x[0].svm_loss(&x[1]),
    },
    Case {
        op: "svm_loss",
        name: "one sample",
        inputs: &[Input::Normal(&[1, 10]), Input::Index(&[1], 10)],
        run: |x| x[0].svm_loss(&x[1]),
    },
];

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
            assert!(none.svm_loss(&no_label)?.item()?.is_nan());
            assert!(accuracy(&none, &no_label)?.is_nan());
        }
        Ok(())
    }

    #[test]
    fn impossible_classes_cost_nothing_without_smoothing() -> Result<()> {
        let x = Tensor::from_vec(vec![0f32, f32::NEG_INFINITY], [1, 2])?;
        let t = Tensor::from_vec(vec![0i64], [1])?;
        for device in devices()? {
            let loss = x
                .to(device)?
                .cross_entropy(&t.to(device)?, &Default::default())?;
            assert_eq!(loss.item()?, 0.0);
        }
        Ok(())
    }

    #[test]
    fn accuracy_takes_the_first_of_equals() -> Result<()> {
        let x = Tensor::from_vec(vec![1f32, 1.0, 0.0, 0.0, 2.0, 2.0], [2, 3])?;
        for device in devices()? {
            for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16, DType::I64] {
                let x = x.to_dtype(dtype)?.to(device)?;
                let score = |t: [i64; 2]| accuracy(&x, &Tensor::from_slice(&t, [2])?.to(device)?);
                assert_eq!(
                    (score([0, 1])?, score([1, 2])?, score([0, 2])?),
                    (1.0, 0.0, 0.5)
                );
            }
            let nan = Tensor::from_vec(vec![f32::NAN, 1.0], [1, 2])?.to(device)?;
            for label in [0i64, 1] {
                assert_eq!(
                    correct(&nan, &Tensor::from_vec(vec![label], [1])?.to(device)?)?,
                    0
                );
            }
        }
        Ok(())
    }

    #[test]
    fn many_answers_are_counted_alike_everywhere() -> Result<()> {
        let mut rng = crate::random::Generator::new(3);
        for (n, c) in [(1, 1), (1000, 3), (37, 200), (9, 2000)] {
            let x = Tensor::randn([n, c], &mut rng, DType::F32)?;
            // right, but for every third
            let mut t = x.argmax(1, false)?.to_vec::<i64>()?;
            t.iter_mut()
                .skip(1)
                .step_by(3)
                .for_each(|t| *t = (*t + 1) % c as i64);
            let t = Tensor::from_vec(t, [n])?;
            let right = n - n.saturating_sub(1).div_ceil(3);
            for device in devices()? {
                assert_eq!(
                    correct(&x.to(device)?, &t.to(device)?)?,
                    right,
                    "{n} x {c} {device}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn labels_out_of_range_are_errors_by_the_next_read() -> Result<()> {
        let x = logits()?.0;
        for device in devices()? {
            let x = x.to(device)?;
            for (bad, at) in [(3i64, 1), (-1, 0), (i64::MAX, 1), (1 << 32, 0)] {
                let mut t = [0i64; 2];
                t[at] = bad;
                let t = Tensor::from_slice(&t, [2])?.to(device)?;
                let says = |op: &str, r: Result<f64>| {
                    let expected =
                        format!("{op}: index {bad} is out of range for an axis of size 3");
                    assert_eq!(r.unwrap_err().to_string(), expected, "{device}");
                };
                let settings = CrossEntropy::default();
                says(
                    "cross_entropy",
                    x.cross_entropy(&t, &settings).and_then(|l| l.item()),
                );
                says("svm_loss", x.svm_loss(&t).and_then(|l| l.item()));
                says("accuracy", accuracy(&x, &t));
                if device == Device::Cpu {
                    continue;
                }
                // what was reported once is not again; the sample has no loss and no gradient
                let losses: [fn(&Tensor, &Tensor) -> Result<Tensor>; 2] = [
                    |x, t| x.cross_entropy(t, &CrossEntropy::default()),
                    |x, t| x.svm_loss(t),
                ];
                for loss in losses {
                    let leaf = x.requires_grad();
                    let y = loss(&leaf, &t)?;
                    let grads = y.backward()?;
                    assert!(y.item().is_err() && y.item()?.is_nan());
                    let dx = grads.get(&leaf).map(Tensor::to_vec::<f64>).transpose()?;
                    let dx = dx.unwrap_or_default();
                    let rows: Vec<bool> =
                        dx.chunks(3).map(|r| r.iter().all(|x| *x == 0.0)).collect();
                    assert!(rows[at], "{dx:?}");
                    assert!(dx.iter().all(|x| x.is_finite()));
                }
            }
        }
        Ok(())
    }

    #[test]
    fn errors() -> Result<()> {
        let (x, t) = logits()?;
        let settings = CrossEntropy::default();
        let e = |r: Result<Tensor>| r.unwrap_err().to_string();
        assert_eq!(
            e(x.svm_loss(&Tensor::zeros([3], DType::I64)?)),
            "svm_loss: logits [2, 3] want labels [2] but got [3]"
        );
        assert_eq!(
            e(x.cross_entropy(&t.to_dtype(DType::F32)?, &settings)),
            "cross_entropy: expected i64 labels but got f32"
        );
        assert_eq!(
            e(t.cross_entropy(&t, &settings)),
            "cross_entropy: expected logits (N, C) but got [2]"
        );
        let settings = CrossEntropy {
            label_smoothing: 1.5,
            ..settings
        };
        assert_eq!(
            e(x.cross_entropy(&t, &settings)),
            "cross_entropy: label_smoothing is 1.5, expected 0 to 1"
        );
        Ok(())
    }
}
