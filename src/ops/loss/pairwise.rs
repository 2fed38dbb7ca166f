//! Losses of an input and a target element by element: squared and absolute differences and what
//! lies between, and the binary cross entropy.

use std::marker::PhantomData;

use crate::autograd::{Op, apply};
use crate::cpu::strided::rows;
use crate::cuda::{Arg, Kernels};
use crate::device::Device;
use crate::dtype::{DType, Real};
use crate::error::{Error, Result};
use crate::ops::check::{Case, Input};
use crate::ops::loss::{Reduction, check_constant, optional};
use crate::ops::precision::widened;
use crate::ops::unary::{sigmoid, sign, softplus};
use crate::ops::{Formula, one_dtype};
use crate::shape::{self, Layout};
use crate::tensor::Tensor;
use crate::with_real;

/// A loss of two numbers x and t with its two derivatives; p is a setting.
trait Pair: Send + Sync + 'static {
    const NAME: &'static str;
    /// The same formulas of `kernels/pairwise_loss.cu`: the loss, dx, and dt where it is not dx with
    /// x and t exchanged.
    fn kernels() -> [Option<&'static Kernels>; 3];
    fn f<T: Real>(x: T, t: T, p: T) -> T;
    fn dx<T: Real>(x: T, t: T, p: T) -> T;
    /// By default that of a loss of |x - t|.
    fn dt<T: Real>(x: T, t: T, p: T) -> T {
        Self::dx(t, x, p)
    }
}

/// [`Kernels`] of the two types that the engine hands in.
macro_rules! real_kernels {
    ($base:expr) => {{
        static KERNELS: Kernels = Kernels::new(
            $base,
            &[
                (DType::F32, concat!($base, "_f32")),
                (DType::F64, concat!($base, "_f64")),
            ],
        );
        Some(&KERNELS)
    }};
}

/// (x - t)^2.
struct Mse;
impl Pair for Mse {
    const NAME: &'static str = "mse_loss";
    fn kernels() -> [Option<&'static Kernels>; 3] {
        [
            real_kernels!("mse_loss"),
            real_kernels!("mse_loss_dx"),
            None,
        ]
    }
    fn f<T: Real>(x: T, t: T, _: T) -> T {
        (x - t) * (x - t)
    }
    fn dx<T: Real>(x: T, t: T, _: T) -> T {
        T::of(2.0) * (x - t)
    }
}

/// |x - t|; the derivative at 0 is 0.
struct L1;
impl Pair for L1 {
    const NAME: &'static str = "l1_loss";
    fn kernels() -> [Option<&'static Kernels>; 3] {
        [real_kernels!("l1_loss"), real_kernels!("l1_loss_dx"), None]
    }
    fn f<T: Real>(x: T, t: T, _: T) -> T {
        (x - t).abs()
    }
    fn dx<T: Real>(x: T, t: T, _: T) -> T {
        sign(x - t)
    }
}

/// d^2 / (2 p) where d = |x - t| < p, else d - p / 2 (Girshick 2015).
struct SmoothL1;
impl Pair for SmoothL1 {
    const NAME: &'static str = "smooth_l1_loss";
    fn kernels() -> [Option<&'static Kernels>; 3] {
        [
            real_kernels!("smooth_l1_loss"),
            real_kernels!("smooth_l1_loss_dx"),
            None,
        ]
    }
    fn f<T: Real>(x: T, t: T, p: T) -> T {
        let d = (x - t).abs();
        if d < p {
            T::of(0.5) * d * d / p
        } else {
            d - T::of(0.5) * p
        }
    }
    fn dx<T: Real>(x: T, t: T, p: T) -> T {
        let d = x - t;
        if d.abs() < p { d / p } else { sign(d) }
    }
}

/// d^2 / 2 where d = |x - t| < p, else p (d - p / 2) (Huber 1964).
struct Huber;
impl Pair for Huber {
    const NAME: &'static str = "huber_loss";
    fn kernels() -> [Option<&'static Kernels>; 3] {
        [
            real_kernels!("huber_loss"),
            real_kernels!("huber_loss_dx"),
            None,
        ]
    }
    fn f<T: Real>(x: T, t: T, p: T) -> T {
        let d = (x - t).abs();
        if d < p {
            T::of(0.5) * d * d
        } else {
            p * (d - T::of(0.5) * p)
        }
    }
    fn dx<T: Real>(x: T, t: T, p: T) -> T {
        let d = x - t;
        if d.abs() < p { d } else { p * sign(d) }
    }
}

/// -(p t ln s + (1 - t) ln(1 - s)) with s = sigmoid(x), as p t softplus(-x) + (1 - t) softplus(x),
/// which neither overflows nor cancels.
struct Bce;
impl Pair for Bce {
    const NAME: &'static str = "bce_with_logits";
    fn kernels() -> [Option<&'static Kernels>; 3] {
        [
            real_kernels!("bce_with_logits"),
            real_kernels!("bce_with_logits_dx"),
            real_kernels!("bce_with_logits_dt"),
        ]
    }
    fn f<T: Real>(x: T, t: T, p: T) -> T {
        p * t * softplus(-x) + (T::ONE - t) * softplus(x)
    }
    fn dx<T: Real>(x: T, t: T, p: T) -> T {
        (T::ONE - t) * sigmoid(x) - p * t * sigmoid(-x)
    }
    fn dt<T: Real>(x: T, _: T, p: T) -> T {
        p * softplus(-x) - softplus(x)
    }
}

/// Inputs x and t of one shape.
struct Pairwise<P> {
    p: f64,
    /// In the place of p, for each element; it broadcasts to x.
    weight: Option<Tensor>,
    reduction: Reduction,
    formula: PhantomData<fn() -> P>,
}

struct Saved {
    x: Tensor,
    t: Tensor,
    weight: Option<Tensor>,
}

impl<P: Pair> Op<2> for Pairwise<P> {
    const NAME: &'static str = P::NAME;
    type Saved = Saved;

    fn forward(&self, [x, t]: [&Tensor; 2]) -> Result<(Tensor, Saved)> {
        one_dtype(P::NAME, [x, t])?;
        let (x, t) = (x.packed()?, t.packed()?);
        let layout = Layout::contiguous(*x.shape());
        let weight = self.weight.as_ref();
        let weight = weight
            .map(|w| w.cast(x.dtype())?.expand(x.shape())?.packed())
            .transpose()?;
        let saved = Saved { x, t, weight };
        let Saved { x, t, weight } = &saved;
        let losses = match x.device() {
            Device::Cpu => with_real!(P::NAME, x.dtype(), T => {
                let [u, v] = [x, t].map(|t| t.dense_slice::<T>(P::NAME));
                let (u, v, p) = (u?, v?, self.setting::<T>(weight)?);
                Tensor::build::<T>(layout, x.device(), |y| {
                    each(y, |i| P::f(u[i], v[i], p(i)));
                })
            })?,
            Device::Cuda(_) => self.launch(P::kernels()[0], [x, t], weight, &[])?,
        };
        Ok((self.reduction.apply(losses)?, saved))
    }

    fn backward(
        &self,
        Saved { x, t, weight }: Saved,
        dy: Tensor,
        needs: [bool; 2],
    ) -> Result<[Option<Tensor>; 2]> {
        let (scale, dy) = (self.reduction.scale(x.numel()), dy.packed()?);
        let side = |of_target: bool| -> Result<Tensor> {
            if let Device::Cuda(_) = x.device() {
                let [each, scale] = self.reduction.spread_args(scale);
                let [_, dx, dt] = P::kernels();
                let (kernels, pair) = match (of_target, dt) {
                    (false, _) => (dx, [&x, &t]),
                    (true, None) => (dx, [&t, &x]),
                    (true, dt) => (dt, [&x, &t]),
                };
                return self.launch(kernels, pair, &weight, &[dy.input(), each, scale]);
            }
            with_real!(P::NAME, x.dtype(), T => {
                let [u, v] = [&x, &t].map(|t| t.dense_slice::<T>(P::NAME));
                let (u, v, p) = (u?, v?, self.setting::<T>(&weight)?);
                let g = self.reduction.spread::<T>(&dy, scale)?;
                let d = if of_target { P::dt::<T> } else { P::dx::<T> };
                Tensor::build::<T>(*x.layout(), x.device(), |dx| {
                    each(dx, |i| d(u[i], v[i], p(i)) * g(i));
                })
            })
        };
        let [dx, dt] = needs;
        Ok([
            dx.then(|| side(false)).transpose()?,
            dt.then(|| side(true)).transpose()?,
        ])
    }
}

/// `out[i] = f(i)`.
fn each<T: Real>(out: &mut [T], f: impl Fn(usize) -> T + Sync) {
    const ROW: usize = 256;
    rows(out, ROW, 16 * ROW, |out, r| {
        for (k, out) in out.iter_mut().enumerate() {
            *out = f(r * ROW + k);
        }
    });
}

impl<P: Pair> Pairwise<P> {
    /// p of each element on the CPU.
    fn setting<'a, T: Real>(&self, weight: &'a Option<Tensor>) -> Result<impl Fn(usize) -> T + 'a> {
        let one = T::of(self.p);
        let each = weight.as_ref().map(|w| w.dense_slice::<T>(P::NAME));
        let each = each.transpose()?;
        Ok(move |i: usize| each.map_or(one, |w| w[i]))
    }

    /// A new tensor from a kernel of `pair` and p; `rest` is dy and how it is spread.
    fn launch(
        &self,
        kernels: Option<&'static Kernels>,
        pair: [&Tensor; 2],
        weight: &Option<Tensor>,
        rest: &[Arg<'_>],
    ) -> Result<Tensor> {
        let x = pair[0];
        let (Device::Cuda(gpu), Some(kernels)) = (x.device(), kernels) else {
            return Err(Error::devices(P::NAME, x.device(), "cuda"));
        };
        let (n, dtype) = (x.numel(), x.dtype());
        let y = Tensor::empty(Layout::contiguous(*x.shape()), dtype, x.device())?;
        let [a, b] = pair.map(Tensor::input);
        let weight = optional(weight.as_ref(), dtype, gpu);
        let args = [
            a,
            b,
            weight,
            y.output(),
            Arg::U32(n as u32),
            Arg::F64(self.p),
        ];
        gpu.launch_over(kernels.of(dtype)?, n, 256, &[&args, rest].concat())?;
        Ok(y)
    }
}

/// The loss, if the target has the input's shape.
fn pairwise<P: Pair>(
    _: P,
    [x, t]: [&Tensor; 2],
    p: f64,
    weight: Option<Tensor>,
    reduction: Reduction,
) -> Result<Tensor> {
    if x.shape() != t.shape() {
        return Err(Error::shape(
            P::NAME,
            &[*x.shape(), *t.shape()],
            format!(
                "input {:?} wants a target of its shape but got {:?}; expand it",
                x.shape(),
                t.shape()
            ),
        ));
    }
    let op = Pairwise::<P> {
        p,
        weight,
        reduction,
        formula: PhantomData,
    };
    apply(op, [&widened(x)?, &widened(t)?])
}

/// Refuses a weight that does not broadcast to the input, or lies elsewhere.
fn check_weight(name: &str, x: &Tensor, weight: &Tensor) -> Result<()> {
    let op = Bce::NAME;
    let fits = shape::broadcast(op, x.shape(), weight.shape()).is_ok_and(|s| s == *x.shape());
    if !fits {
        return Err(Error::shape(
            op,
            &[*x.shape(), *weight.shape()],
            format!(
                "input {:?} wants a {name} that broadcasts to it but got {:?}",
                x.shape(),
                weight.shape()
            ),
        ));
    }
    if !weight.dtype().is_float() {
        return Err(Error::DType {
            op,
            expected: "a float weight",
            got: weight.dtype(),
        });
    }
    if weight.device() != x.device() {
        return Err(Error::devices(op, x.device(), weight.device()));
    }
    Ok(())
}

impl Tensor {
    /// The squared error (x - target)^2; the target has this tensor's shape, and so have the losses
    /// by [`Reduction::None`].
    ///
    /// ```
    /// # use cotangent::{ops::Reduction, Tensor};
    /// let (x, t) = (Tensor::from_vec(vec![1f32, 5.0], [2])?, Tensor::from_vec(vec![1f32, 3.0], [2])?);
    /// assert_eq!(x.mse_loss(&t, Reduction::Mean)?.item()?, 2.0);
    /// assert_eq!(x.l1_loss(&t, Reduction::Sum)?.item()?, 2.0);
    /// assert_eq!(x.smooth_l1_loss(&t, 1.0, Reduction::Sum)?.item()?, 1.5);
    /// assert_eq!(x.huber_loss(&t, 0.5, Reduction::None)?.to_vec::<f32>()?, [0.0, 0.875]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn mse_loss(&self, target: &Tensor, reduction: Reduction) -> Result<Tensor> {
        pairwise(Mse, [self, target], 0.0, None, reduction)
    }

    /// The absolute error |x - target|, else as [`Tensor::mse_loss`].
    pub fn l1_loss(&self, target: &Tensor, reduction: Reduction) -> Result<Tensor> {
        pairwise(L1, [self, target], 0.0, None, reduction)
    }

    /// With d = |x - target|: d^2 / (2 `beta`) where d < `beta`, else d - `beta` / 2 (Girshick
    /// 2015), else as [`Tensor::mse_loss`]. `beta` is at least 0; PyTorch's default is 1.
    pub fn smooth_l1_loss(
        &self,
        target: &Tensor,
        beta: f64,
        reduction: Reduction,
    ) -> Result<Tensor> {
        if !(beta >= 0.0 && beta.is_finite()) {
            let why = format!("beta is {beta}, expected a number of at least 0");
            return Err(Error::argument(SmoothL1::NAME, why));
        }
        pairwise(SmoothL1, [self, target], beta, None, reduction)
    }

    /// With d = |x - target|: d^2 / 2 where d < `delta`, else `delta` (d - `delta` / 2) (Huber
    /// 1964), else as [`Tensor::mse_loss`]. `delta` is above 0; PyTorch's default is 1.
    pub fn huber_loss(&self, target: &Tensor, delta: f64, reduction: Reduction) -> Result<Tensor> {
        if !(delta > 0.0 && delta.is_finite()) {
            let why = format!("delta is {delta}, expected a number above 0");
            return Err(Error::argument(Huber::NAME, why));
        }
        pairwise(Huber, [self, target], delta, None, reduction)
    }

    /// The binary cross entropy of logits and targets of their shape, from 0 to 1, sigmoid
    /// included: PyTorch's `binary_cross_entropy_with_logits`. `weight` multiplies each loss (the
    /// mean is still over all), `pos_weight` the part of the positive, `target` ln sigmoid(x); both
    /// broadcast to the logits, and `pos_weight` gets no gradient.
    ///
    /// ```
    /// # use cotangent::{ops::Reduction, DType, Tensor};
    /// let (x, t) = (Tensor::zeros([2, 3], DType::F32)?, Tensor::ones([2, 3], DType::F32)?);
    /// let loss = x.bce_with_logits(&t, None, None, Reduction::Mean)?;
    /// assert!((loss.item()? - 2f64.ln()).abs() < 1e-6);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn bce_with_logits(
        &self,
        target: &Tensor,
        weight: Option<&Tensor>,
        pos_weight: Option<&Tensor>,
        reduction: Reduction,
    ) -> Result<Tensor> {
        for (name, w) in [("weight", weight), ("pos_weight", pos_weight)] {
            w.map_or(Ok(()), |w| check_weight(name, self, w))?;
        }
        if let Some(w) = pos_weight {
            check_constant(Bce::NAME, "pos_weight", w)?;
        }
        let run = |reduction| pairwise(Bce, [self, target], 1.0, pos_weight.cloned(), reduction);
        let Some(weight) = weight else {
            return run(reduction);
        };
        let losses = run(Reduction::None)?.mul(weight)?;
        match reduction {
            Reduction::None => Ok(losses),
            Reduction::Mean => losses.mean_all(),
            Reduction::Sum => losses.sum_all(),
        }
    }
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[
    ("mse_loss", "(x - t)^2"),
    ("l1_loss", "|x - t|"),
    (
        "smooth_l1_loss",
        "d^2 / (2 beta) where d = |x - t| < beta, else d - beta / 2",
    ),
    (
        "huber_loss",
        "d^2 / 2 where d = |x - t| < delta, else delta (d - delta / 2)",
    ),
    (
        "bce_with_logits",
        "-w (pos_weight t ln s + (1 - t) ln(1 - s)), s = sigmoid(x)",
    ),
];

macro_rules! cases {
    ($($op:literal $x:ident $t:ident => $run:expr;)*) => {
        &[$(
            Case { op: $op, name: "mean", inputs: &[Input::$x(&[5, 7]), Input::$t(&[5, 7])], run: |x| $run(x, Reduction::Mean) },
            Case { op: $op, name: "sum", inputs: &[Input::$x(&[2, 3, 2, 2]), Input::$t(&[2, 3, 2, 2])], run: |x| $run(x, Reduction::Sum) },
            Case { op: $op, name: "none", inputs: &[Input::$x(&[4, 3]), Input::$t(&[4, 3])], run: |x| $run(x, Reduction::None) },
            Case { op: $op, name: "one element", inputs: &[Input::$x(&[]), Input::$t(&[])], run: |x| $run(x, Reduction::Mean) },
            Case { op: $op, name: "sum of nothing", inputs: &[Input::$x(&[0, 3]), Input::$t(&[0, 3])], run: |x| $run(x, Reduction::Sum) },
        )*]
    };
}

type Run = fn(&[Tensor], Reduction) -> Result<Tensor>;
const MSE: Run = |x, r| x[0].mse_loss(&x[1], r);
const L1_LOSS: Run = |x, r| x[0].l1_loss(&x[1], r);
const SMOOTH_L1: Run = |x, r| x[0].smooth_l1_loss(&x[1], 0.7, r);
const HUBER: Run = |x, r| x[0].huber_loss(&x[1], 0.7, r);
const BCE: Run = |x, r| x[0].bce_with_logits(&x[1], None, None, r);
const WEIGHTED_BCE: Run = |x, r| {
    let pos_weight = Tensor::linspace(0.5, 2.0, 7, x[0].options())?;
    x[0].bce_with_logits(&x[1], Some(&x[2]), Some(&pos_weight), r)
};

/// Each loss, each reduction, degenerate sizes.
pub const CASES: &[Case] = cases! {
    "mse_loss" Normal Normal => MSE;
    "l1_loss" Normal Normal => L1_LOSS;
    "smooth_l1_loss" Normal Normal => SMOOTH_L1;
    "huber_loss" Normal Normal => HUBER;
    "bce_with_logits" Normal Positive => BCE;
};

/// Weights of the binary cross entropy.
pub const WEIGHTED: &[Case] = &[
    Case {
        op: "bce_with_logits",
        name: "weight a row, pos_weight a class",
        inputs: &[
            Input::Normal(&[5, 7]),
            Input::Positive(&[5, 7]),
            Input::Positive(&[5, 1]),
        ],
        run: |x| WEIGHTED_BCE(x, Reduction::Mean),
    },
    Case {
        op: "bce_with_logits",
        name: "weight and pos_weight, none",
        inputs: &[
            Input::Normal(&[2, 7]),
            Input::Positive(&[2, 7]),
            Input::Positive(&[2, 7]),
        ],
        run: |x| WEIGHTED_BCE(x, Reduction::None),
    },
];

/// Several blocks with a ragged end.
pub const LARGE: &[Case] = &[
    Case {
        op: "smooth_l1_loss",
        name: "several blocks",
        inputs: &[Input::Normal(&[37, 101]), Input::Normal(&[37, 101])],
        run: |x| SMOOTH_L1(x, Reduction::None),
    },
    Case {
        op: "bce_with_logits",
        name: "several blocks",
        inputs: &[Input::Normal(&[37, 101]), Input::Positive(&[37, 101])],
        run: |x| BCE(x, Reduction::Mean),
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::devices;

    fn near(a: &Tensor, b: &[f64]) -> Result<()> {
        let a = a.to_vec::<f64>()?;
        let far = |(a, b): (&f64, &f64)| (a - b).abs() > 1e-14 || a.is_nan();
        assert_eq!(a.len(), b.len());
        assert!(!a.iter().zip(b).any(far), "{a:?} not {b:?}");
        Ok(())
    }

    /// `F.binary_cross_entropy_with_logits(x, t, weight, pos_weight=..)`, `F.smooth_l1_loss(x, t,
    /// beta=0.5)` and `F.huber_loss(x, t, delta=0.5)` of PyTorch 2.11 in float64, and the gradients
    /// by `torch.autograd.grad`.
    #[test]
    fn weights_and_gradients_of_targets_as_pytorch_has_them() -> Result<()> {
        let x = Tensor::from_slice(&[1.0, 2.0, 0.5, 0.1, -0.3, 0.7, 2.0, 1.0, 1.0], [3, 3])?;
        let t = Tensor::from_slice(&[0.2, 0.5, 0.3, 0.0, 1.0, 0.0, 0.6, 0.6, 0.1], [3, 3])?;
        let w = Tensor::from_slice(&[2.0, 0.5, 1.0], [3, 1])?;
        let pos = Tensor::from_slice(&[0.5, 2.0, 1.0], [3])?;
        for device in devices()? {
            let [x, t, w, pos] = [&x, &t, &w, &pos].map(|t| t.to(device));
            let (x, t, w, pos) = (x?.requires_grad(), t?.requires_grad(), w?, pos?);
            let bce = |r| x.bce_with_logits(&t, Some(&w), Some(&pos), r);
            #[rustfmt::skip]
            near(&bce(Reduction::None)?, &[
                2.163871037532801, 2.3807840331289176, 1.6481539683602133,
                0.37219833003678543, 0.8543552444685272, 0.551593024442729,
                0.8888496077300808, 0.9012187000291566, 1.213261687518223,
            ])?;
            let mean = bce(Reduction::Mean)?;
            near(&mean, &[1.2193650703608259])?;
            let of = |y: &Tensor, leaf: &Tensor, expected: &[f64]| -> Result<()> {
                let grads = y.backward()?;
                let grad = grads.get(leaf).ok_or(Error::NoGraph)?;
                near(grad, expected)
            };
            #[rustfmt::skip]
            of(&mean, &x, &[
                0.12398949350377879, 0.07137680377040523, 0.07165762915596768,
                0.029165510415496667, -0.06382694631240654, 0.037121542898231455,
                0.03517310606494641, -0.0033673637991102406, 0.07011761984777833,
            ])?;
            #[rustfmt::skip]
            of(&bce(Reduction::Mean)?, &t, &[
                -0.2570290763909136, -0.4162382197682284, -0.1111111111111111,
                -0.023455462779821412, 0.06413084691491817, -0.03888888888888889,
                -0.22927377839127627, -0.07630425694241967, -0.1111111111111111,
            ])?;
            let smooth = x.smooth_l1_loss(&t, 0.5, Reduction::Mean)?;
            near(&smooth, &[0.59])?;
            let [a, b, c, d] = [1.0 / 9.0, 0.4 / 9.0, 0.2 / 9.0, 0.8 / 9.0];
            of(&smooth, &t, &[-a, -a, -b, -c, a, -a, -a, -d, -a])?;
            let huber = x.huber_loss(&t, 0.5, Reduction::Mean)?;
            near(&huber, &[0.295])?;
            let half = [a, a, b, c, -a, a, a, d, a].map(|g| g / 2.0);
            of(&huber, &x, &half)?;
            // without a quadratic part it is the absolute error
            let sharp = x.smooth_l1_loss(&t, 0.0, Reduction::None)?;
            near(&sharp, &x.l1_loss(&t, Reduction::None)?.to_vec::<f64>()?)?;
        }
        Ok(())
    }

    #[test]
    fn far_logits_neither_overflow_nor_vanish() -> Result<()> {
        for device in devices()? {
            let x = Tensor::from_slice(&[800f32, -800.0, 800.0, -30.0], [4])?.to(device)?;
            let t = Tensor::from_slice(&[0f32, 1.0, 1.0, 0.0], [4])?.to(device)?;
            let x = x.requires_grad();
            let y = x.bce_with_logits(&t, None, None, Reduction::None)?;
            let tiny = (-30f32).exp();
            assert_eq!(y.to_vec::<f32>()?, [800.0, 800.0, 0.0, tiny]);
            let grads = y.sum_all()?.backward()?;
            let dx = grads.get(&x).ok_or(Error::NoGraph)?.to_vec::<f32>()?;
            assert_eq!(dx[..3], [1.0, -1.0, 0.0]);
        }
        Ok(())
    }

    #[test]
    fn the_mean_of_nothing_is_nan_and_equal_inputs_have_no_slope() -> Result<()> {
        for device in devices()? {
            let none = Tensor::zeros([0, 3], device)?;
            let x = Tensor::ones([2], device)?.requires_grad();
            let losses: [fn(&Tensor, &Tensor) -> Result<Tensor>; 4] = [
                |x, t| x.mse_loss(t, Reduction::Mean),
                |x, t| x.l1_loss(t, Reduction::Mean),
                |x, t| x.smooth_l1_loss(t, 0.0, Reduction::Mean),
                |x, t| x.huber_loss(t, 1.0, Reduction::Mean),
            ];
            for loss in losses {
                assert!(loss(&none, &none)?.item()?.is_nan());
                let grads = loss(&x, &x.detach())?.backward()?;
                let dx = grads.get(&x).ok_or(Error::NoGraph)?;
                assert_eq!(dx.to_vec::<f32>()?, [0.0, 0.0]);
            }
        }
        Ok(())
    }

    #[test]
    fn errors() -> Result<()> {
        let x = Tensor::zeros([2, 3], DType::F32)?;
        let row = Tensor::zeros([3], DType::F32)?;
        let e = |r: Result<Tensor>| r.unwrap_err().to_string();
        let none = Reduction::None;
        assert_eq!(
            e(x.mse_loss(&row, none)),
            "mse_loss: input [2, 3] wants a target of its shape but got [3]; expand it"
        );
        assert_eq!(
            e(x.l1_loss(&x.to_dtype(DType::F64)?, none)),
            "l1_loss: expected tensors of one dtype but got f64"
        );
        assert_eq!(
            e(x.to_dtype(DType::I64)?
                .l1_loss(&x.to_dtype(DType::I64)?, none)),
            "l1_loss: expected a float tensor (to_dtype converts) but got i64"
        );
        assert_eq!(
            e(x.smooth_l1_loss(&x, -1.0, none)),
            "smooth_l1_loss: beta is -1, expected a number of at least 0"
        );
        assert_eq!(
            e(x.huber_loss(&x, 0.0, none)),
            "huber_loss: delta is 0, expected a number above 0"
        );
        let two = Tensor::ones([2], DType::F32)?;
        assert_eq!(
            e(x.bce_with_logits(&x, Some(&two), None, none)),
            "bce_with_logits: input [2, 3] wants a weight that broadcasts to it but got [2]"
        );
        assert_eq!(
            e(x.bce_with_logits(&x, None, Some(&two), none)),
            "bce_with_logits: input [2, 3] wants a pos_weight that broadcasts to it but got [2]"
        );
        assert_eq!(
            e(x.bce_with_logits(&x, None, Some(&row.requires_grad()), none)),
            "bce_with_logits: pos_weight requires a gradient but gets none; detach it"
        );
        Ok(())
    }
}
