//! Pointwise functions of one tensor. Each is a formula, its derivative, and which of x and y
//! backward keeps.

use std::marker::PhantomData;

use crate::autograd::{Op, apply};
use crate::cpu::strided;
use crate::cuda::{Arg, Gpu, Kernels, Walk, float_kernels};
use crate::device::Device;
use crate::dtype::{DType, Real};
use crate::error::{Error, Result};
use crate::ops::Formula;
use crate::ops::check::{Case, Input};
use crate::tensor::Tensor;
use crate::with_real;

/// What a pointwise function's derivative is written in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    X,
    Y,
    Nothing,
}

/// A function of one number with its derivative.
trait Pointwise: Copy + Send + Sync + 'static {
    const NAME: &'static str;
    const KEEP: Keep;
    /// The name in messages; for one formula that serves several methods.
    fn name(self) -> &'static str {
        Self::NAME
    }
    /// The same formulas in `kernels/unary.cu` or `kernels/transcendental.cu`, and the numbers that they take as p and q.
    fn kernels() -> [&'static Kernels; 2];
    fn settings(self) -> [f64; 2] {
        [0.0; 2]
    }
    fn f<T: Real>(self, x: T) -> T;
    /// df/dx, from x or from y = f(x), as `KEEP` says.
    fn df<T: Real>(self, kept: T) -> T;
}

struct Unary<P>(P, PhantomData<fn() -> P>);

impl<P: Pointwise> Op<1> for Unary<P> {
    const NAME: &'static str = P::NAME;
    const HALF_ON_CUDA: bool = true;
    type Saved = Option<Tensor>;

    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, Option<Tensor>)> {
        let p = self.0;
        let y = match x.device() {
            Device::Cpu => {
                with_real!(p.name(), x.dtype(), T => map::<T>(x, p.name(), #[inline(always)] |x| p.f(x)))?
            }
            Device::Cuda(gpu) => launch(gpu, P::kernels()[0], [x], p.settings())?,
        };
        let kept = match P::KEEP {
            Keep::X => Some(x.clone()),
            Keep::Y => Some(y.clone()),
            Keep::Nothing => None,
        };
        Ok((y, kept))
    }

    fn backward(
        &self,
        kept: Option<Tensor>,
        dy: Tensor,
        _: [bool; 1],
    ) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(backward(self.0, kept, &dy)?)])
    }
}

/// dx = df(kept) dy.
fn backward<P: Pointwise>(p: P, kept: Option<Tensor>, dy: &Tensor) -> Result<Tensor> {
    if let Device::Cuda(gpu) = dy.device() {
        let kept = kept.as_ref().unwrap_or(dy);
        return launch(gpu, P::kernels()[1], [kept, dy], p.settings());
    }
    with_real!(P::NAME, dy.dtype(), T => match kept {
        Some(kept) => zip::<T>(&kept, dy, P::NAME, #[inline(always)] |k, dy| p.df(k) * dy),
        None => map::<T>(dy, P::NAME, #[inline(always)] |dy| p.df(T::ZERO) * dy),
    })
}

/// A new tensor from a kernel that takes `inputs` of one shape, in the first one's memory order.
fn launch<const K: usize>(
    gpu: Gpu,
    kernel: &'static Kernels,
    inputs: [&Tensor; K],
    [p, q]: [f64; 2],
) -> Result<Tensor> {
    let x = inputs[0];
    let layout = x.layout().dense_like();
    let y = Tensor::empty(layout, x.dtype(), x.device())?;
    let walk = Walk::new(y.layout(), inputs.map(Tensor::layout))?;
    let mut args: Vec<Arg<'_>> = inputs.iter().map(|t| t.input()).collect();
    args.extend([y.output(), walk.arg(), Arg::F64(p), Arg::F64(q)]);
    let pack = 256 * 16 / y.dtype().size();
    gpu.launch_over(kernel.of(x.dtype())?, y.numel(), pack, &args)?;
    Ok(y)
}

/// The kernels of a formula, forward and backward.
macro_rules! formula_kernels {
    ($base:expr) => {
        fn kernels() -> [&'static Kernels; 2] {
            static FORWARD: Kernels = float_kernels!($base);
            static BACKWARD: Kernels = float_kernels!(concat!($base, "_backward"));
            [&FORWARD, &BACKWARD]
        }
    };
}

/// A new tensor of f(x), in x's memory order.
pub(crate) fn map<T: Real>(
    x: &Tensor,
    op: &'static str,
    f: impl Fn(T) -> T + Sync,
) -> Result<Tensor> {
    let layout = x.layout().dense_like();
    let v = x.storage_slice::<T>(op)?;
    Tensor::build::<T>(layout, x.device(), |out| {
        strided::map(v, x.layout(), out, &layout, f)
    })
}

/// A new tensor of f(x, y), both of one shape, in x's memory order.
pub(crate) fn zip<T: Real>(
    x: &Tensor,
    y: &Tensor,
    op: &'static str,
    f: impl Fn(T, T) -> T + Sync,
) -> Result<Tensor> {
    let layout = x.layout().dense_like();
    let (a, b) = (x.storage_slice::<T>(op)?, y.storage_slice::<T>(op)?);
    Tensor::build::<T>(layout, x.device(), |out| {
        strided::zip((a, x.layout()), (b, y.layout()), out, &layout, f)
    })
}

/// `Name "pytorch_name" Keep, f, df;` for functions without settings.
macro_rules! pointwise {
    ($(
        $(#[$doc:meta])*
        $name:ident $method:ident $keep:ident, |$x:ident| $f:expr, |$k:pat_param| $df:expr;
    )*) => {
        $(
            #[derive(Clone, Copy)]
            struct $name;
            impl Pointwise for $name {
                const NAME: &'static str = stringify!($method);
                const KEEP: Keep = Keep::$keep;
                formula_kernels!(stringify!($method));
                #[inline(always)]
                fn f<T: Real>(self, $x: T) -> T { $f }
                #[inline(always)]
                fn df<T: Real>(self, $k: T) -> T { $df }
            }
        )*
        impl Tensor {
            $(
                $(#[$doc])*
                pub fn $method(&self) -> Result<Tensor> {
                    apply(Unary($name, PhantomData), [self])
                }
            )*
        }
    };
}

pointwise! {
    /// -x.
    Neg neg Nothing, |x| -x, |_| -T::ONE;
    /// |x|; the derivative at 0 is 0, as PyTorch has it.
    Abs abs X, |x| x.abs(), |x| sign(x);
    /// x^2.
    Square square X, |x| x * x, |x| x + x;
    /// 1 / x.
    Reciprocal reciprocal Y, |x| T::ONE / x, |y| -y * y;
    /// The square root.
    Sqrt sqrt Y, |x| x.sqrt(), |y| T::of(0.5) / y;
    /// 1 / sqrt(x).
    Rsqrt rsqrt Y, |x| T::ONE / x.sqrt(), |y| T::of(-0.5) * y * y * y;
    /// e^x.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// assert_eq!(Tensor::scalar(0f32)?.exp()?.item()?, 1.0);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    Exp exp Y, |x| x.exp(), |y| y;
    /// The natural logarithm.
    Log log X, |x| x.ln(), |x| T::ONE / x;
    /// The sine.
    Sin sin X, |x| x.sin(), |x| x.cos();
    /// The cosine.
    Cos cos X, |x| x.cos(), |x| -x.sin();
    /// The hyperbolic tangent.
    Tanh tanh Y, |x| x.tanh(), |y| T::ONE - y * y;
    /// 1 / (1 + e^-x).
    Sigmoid sigmoid Y, |x| sigmoid(x), |y| y * (T::ONE - y);
    /// max(x, 0); the derivative at 0 is 0.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let y = Tensor::from_vec(vec![-1f32, 2.0], [2])?.relu()?;
    /// assert_eq!(y.to_vec::<f32>()?, [0.0, 2.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    Relu relu Y, |x| x.nan_max(T::ZERO), |y| if y > T::ZERO { T::ONE } else { T::ZERO };
    /// x Phi(x), with the normal distribution's Phi (Hendrycks and Gimpel 2016).
    Gelu gelu X, |x| x * x.normal()[0], |x| {
        let [phi, density] = x.normal();
        phi + x * density
    };
    /// GELU's approximation by tanh (the same paper).
    GeluTanh gelu_tanh X, |x| T::of(0.5) * x * (T::ONE + gelu_inner(x).tanh()), |x| {
        let t = gelu_inner(x).tanh();
        let inner = T::of(GELU_SCALE) * (T::ONE + T::of(3.0 * GELU_CUBE) * x * x);
        T::of(0.5) * (T::ONE + t + x * (T::ONE - t * t) * inner)
    };
    /// x sigmoid(x) (Elfwing et al. 2017).
    Silu silu X, |x| x * sigmoid(x), |x| { let s = sigmoid(x); s * (T::ONE + x * (T::ONE - s)) };
    /// x tanh(softplus(x)) (Misra 2019).
    Mish mish X, |x| x * tanh_softplus(x), |x| {
        let t = tanh_softplus(x);
        t + x * (T::ONE - t * t) * sigmoid(x)
    };
    /// ln(1 + e^x); x itself above 20, as PyTorch has it.
    Softplus softplus X, |x| if x > T::of(20.0) { x } else { softplus(x) },
        |x| if x > T::of(20.0) { T::ONE } else { sigmoid(x) };
}

const GELU_SCALE: f64 = 0.797_884_560_802_865_4; // sqrt(2 / pi)
const GELU_CUBE: f64 = 0.044_715;

#[inline(always)]
pub(crate) fn sign<T: Real>(x: T) -> T {
    if x > T::ZERO {
        T::ONE
    } else if x < T::ZERO {
        -T::ONE
    } else {
        T::ZERO
    }
}

#[inline(always)]
pub(crate) fn sigmoid<T: Real>(x: T) -> T {
    // e^-|x| cannot overflow
    let e = (-x.abs()).exp();
    (if x < T::ZERO { e } else { T::ONE }) / (T::ONE + e)
}

#[inline(always)]
pub(crate) fn softplus<T: Real>(x: T) -> T {
    x.nan_max(T::ZERO) + (-x.abs()).exp().ln_1p()
}

/// tanh(ln(1 + e^x)) = ((1 + e^x)^2 - 1) / ((1 + e^x)^2 + 1), over e^2x above 0. Besides being
/// faster, it spares the compiler's vectorizer one function inside another inside a third, of which
/// it follows each way from the result to x.
#[inline(always)]
fn tanh_softplus<T: Real>(x: T) -> T {
    let two = T::of(2.0);
    let e = (-x.abs()).exp();
    let (over, more) = if x < T::ZERO {
        (e * (e + two), two)
    } else {
        (T::ONE + two * e, two * e * e)
    };
    over / (over + more)
}

#[inline(always)]
fn gelu_inner<T: Real>(x: T) -> T {
    T::of(GELU_SCALE) * (x + T::of(GELU_CUBE) * x * x * x)
}

/// The backward of [`Tensor::relu`], from its output: with it begins that of an op that ends with
/// ReLU.
pub(crate) fn relu_grad(y: Tensor, dy: &Tensor) -> Result<Tensor> {
    backward(Relu, Some(y), dy)
}

/// max(x, 0) + slope min(x, 0).
#[derive(Clone, Copy)]
struct LeakyRelu(f64);
impl Pointwise for LeakyRelu {
    const NAME: &'static str = "leaky_relu";
    const KEEP: Keep = Keep::X;
    formula_kernels!("leaky_relu");
    fn settings(self) -> [f64; 2] {
        [self.0, 0.0]
    }
    #[inline(always)]
    fn f<T: Real>(self, x: T) -> T {
        if x > T::ZERO { x } else { T::of(self.0) * x }
    }
    #[inline(always)]
    fn df<T: Real>(self, x: T) -> T {
        if x > T::ZERO { T::ONE } else { T::of(self.0) }
    }
}

#[derive(Clone, Copy)]
struct Elu(f64);
impl Pointwise for Elu {
    const NAME: &'static str = "elu";
    const KEEP: Keep = Keep::X;
    formula_kernels!("elu");
    fn settings(self) -> [f64; 2] {
        [self.0, 0.0]
    }
    #[inline(always)]
    fn f<T: Real>(self, x: T) -> T {
        if x > T::ZERO {
            x
        } else {
            T::of(self.0) * x.exp_m1()
        }
    }
    #[inline(always)]
    fn df<T: Real>(self, x: T) -> T {
        if x > T::ZERO {
            T::ONE
        } else {
            T::of(self.0) * x.exp()
        }
    }
}

#[derive(Clone, Copy)]
struct PowScalar(f64);
impl Pointwise for PowScalar {
    const NAME: &'static str = "pow_scalar";
    const KEEP: Keep = Keep::X;
    formula_kernels!("pow_scalar");
    fn settings(self) -> [f64; 2] {
        [self.0, 0.0]
    }
    #[inline(always)]
    fn f<T: Real>(self, x: T) -> T {
        x.powf(T::of(self.0))
    }
    #[inline(always)]
    fn df<T: Real>(self, x: T) -> T {
        // x^0 is constant: 0 even where x^-1 is infinite
        if self.0 == 0.0 {
            T::ZERO
        } else {
            T::of(self.0) * x.powf(T::of(self.0 - 1.0))
        }
    }
}

/// a x + b: every op with a number.
#[derive(Clone, Copy)]
struct Linear(f64, f64, &'static str);
impl Pointwise for Linear {
    const NAME: &'static str = "linear";
    const KEEP: Keep = Keep::Nothing;
    fn name(self) -> &'static str {
        self.2
    }
    formula_kernels!("linear");
    fn settings(self) -> [f64; 2] {
        [self.0, self.1]
    }
    #[inline(always)]
    fn f<T: Real>(self, x: T) -> T {
        T::of(self.0) * x + T::of(self.1)
    }
    #[inline(always)]
    fn df<T: Real>(self, _: T) -> T {
        T::of(self.0)
    }
}

#[derive(Clone, Copy)]
struct Clamp(f64, f64);
impl Pointwise for Clamp {
    const NAME: &'static str = "clamp";
    const KEEP: Keep = Keep::X;
    formula_kernels!("clamp");
    fn settings(self) -> [f64; 2] {
        [self.0, self.1]
    }
    #[inline(always)]
    fn f<T: Real>(self, x: T) -> T {
        x.nan_max(T::of(self.0)).nan_min(T::of(self.1))
    }
    #[inline(always)]
    fn df<T: Real>(self, x: T) -> T {
        if x >= T::of(self.0) && x <= T::of(self.1) {
            T::ONE
        } else {
            T::ZERO
        }
    }
}

fn unary<P: Pointwise>(p: P, x: &Tensor) -> Result<Tensor> {
    apply(Unary(p, PhantomData), [x])
}

impl Tensor {
    /// x where x > 0, else `negative_slope` x (Maas et al. 2013).
    pub fn leaky_relu(&self, negative_slope: f64) -> Result<Tensor> {
        unary(LeakyRelu(negative_slope), self)
    }

    /// x where x > 0, else `alpha` (e^x - 1) (Clevert et al. 2015).
    pub fn elu(&self, alpha: f64) -> Result<Tensor> {
        unary(Elu(alpha), self)
    }

    /// x^`exponent`.
    pub fn pow_scalar(&self, exponent: f64) -> Result<Tensor> {
        unary(PowScalar(exponent), self)
    }

    /// x + `value`.
    pub fn add_scalar(&self, value: f64) -> Result<Tensor> {
        unary(Linear(1.0, value, "add_scalar"), self)
    }

    /// x `factor`.
    pub fn mul_scalar(&self, factor: f64) -> Result<Tensor> {
        unary(Linear(factor, 0.0, "mul_scalar"), self)
    }

    /// x held between `min` and `max`; the gradient passes where x lies within.
    pub fn clamp(&self, min: f64, max: f64) -> Result<Tensor> {
        // also refuses NaN
        if !matches!(
            min.partial_cmp(&max),
            Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)
        ) {
            return Err(Error::argument(
                "clamp",
                format!("min {min} is not at most max {max}"),
            ));
        }
        unary(Clamp(min, max), self)
    }

    /// The elements as another type. The gradient is cast back.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let x = Tensor::from_vec(vec![1.9f32, -1.9], [2])?.to_dtype(DType::I64)?;
    /// assert_eq!(x.to_vec::<i64>()?, [1, -1]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        if dtype == self.dtype() {
            return Ok(self.clone());
        }
        if !dtype.is_float() || !self.is_tracked() {
            return self.cast(dtype);
        }
        apply(ToDType(dtype), [self])
    }
}

impl Tensor {
    /// The elements on another device; itself if they are there already. The gradient goes back.
    ///
    /// ```
    /// # use cotangent::{Device, DType, Tensor};
    /// let device = Device::cuda(0).unwrap_or_default();
    /// let x = Tensor::ones([2], DType::F32)?.to(device)?;
    /// assert_eq!(x.device(), device);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn to(&self, device: Device) -> Result<Tensor> {
        if device == self.device() {
            return Ok(self.clone());
        }
        apply(To(device), [self])
    }
}

struct To(Device);
impl Op<1> for To {
    const NAME: &'static str = "to";
    const ANY_DTYPE: bool = true;
    /// Where it came from.
    type Saved = Device;

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, Device)> {
        Ok((x.moved(self.0)?, x.device()))
    }

    fn backward(&self, from: Device, dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(dy.moved(from)?)])
    }
}

struct ToDType(DType);
impl Op<1> for ToDType {
    const NAME: &'static str = "to_dtype";
    const ANY_DTYPE: bool = true;
    type Saved = ();

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, ())> {
        Ok((x.cast(self.0)?, ()))
    }

    fn backward(&self, _: (), dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        // the engine casts to the input's dtype
        Ok([Some(dy)])
    }
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[
    ("neg", "-x"),
    ("abs", "|x|"),
    ("square", "x^2"),
    ("reciprocal", "1 / x"),
    ("sqrt", "sqrt(x)"),
    ("rsqrt", "1 / sqrt(x)"),
    ("exp", "e^x"),
    ("log", "ln x"),
    ("sin", "sin x"),
    ("cos", "cos x"),
    ("tanh", "tanh x"),
    ("sigmoid", "1 / (1 + e^-x)"),
    ("relu", "max(x, 0)"),
    ("gelu", "x Phi(x), Phi of the normal distribution"),
    (
        "gelu_tanh",
        "x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))",
    ),
    ("silu", "x sigmoid(x)"),
    ("mish", "x tanh(softplus(x))"),
    ("softplus", "ln(1 + e^x)"),
    ("leaky_relu", "x where x > 0, else a x"),
    ("elu", "x where x > 0, else a (e^x - 1)"),
    ("pow_scalar", "x^a"),
    ("mul_scalar", "a x"),
    ("add_scalar", "x + a"),
    ("clamp", "min(max(x, low), high)"),
    ("to_dtype", "x in another type"),
];

macro_rules! cases {
    ($($op:ident $input:ident;)*) => {
        &[$(Case { op: stringify!($op), name: "(3, 5)", inputs: &[Input::$input(&[3, 5])], run: |x| x[0].$op() }),*]
    };
}

/// Every function without settings.
pub const CASES: &[Case] = cases! {
    neg Normal; abs NonZero; square Normal; reciprocal NonZero; sqrt Positive; rsqrt Positive;
    exp Normal; log Positive; sin Normal; cos Normal; tanh Normal; sigmoid Normal; relu NonZero; gelu Normal;
    gelu_tanh Normal; silu Normal; mish Normal; softplus Normal;
};

/// Functions with settings, and shapes that are special.
pub const MORE_CASES: &[Case] = &[
    Case {
        op: "leaky_relu",
        name: "slope 0.01",
        inputs: &[Input::NonZero(&[3, 5])],
        run: |x| x[0].leaky_relu(0.01),
    },
    Case {
        op: "elu",
        name: "alpha 1",
        inputs: &[Input::NonZero(&[3, 5])],
        run: |x| x[0].elu(1.0),
    },
    Case {
        op: "elu",
        name: "alpha 0.5",
        inputs: &[Input::NonZero(&[3, 5])],
        run: |x| x[0].elu(0.5),
    },
    Case {
        op: "softplus",
        name: "on both sides of 20",
        inputs: &[Input::Normal(&[3, 5])],
        run: |x| x[0].add_scalar(20.0)?.softplus(),
    },
    Case {
        op: "pow_scalar",
        name: "cube",
        inputs: &[Input::Normal(&[3, 5])],
        run: |x| x[0].pow_scalar(3.0),
    },
    Case {
        op: "pow_scalar",
        name: "-1.5",
        inputs: &[Input::Positive(&[3, 5])],
        run: |x| x[0].pow_scalar(-1.5),
    },
    Case {
        op: "pow_scalar",
        name: "0",
        inputs: &[Input::Normal(&[3])],
        run: |x| x[0].pow_scalar(0.0),
    },
    Case {
        op: "mul_scalar",
        name: "-2",
        inputs: &[Input::Normal(&[3, 5])],
        run: |x| x[0].mul_scalar(-2.0),
    },
    Case {
        op: "add_scalar",
        name: "3",
        inputs: &[Input::Normal(&[3, 5])],
        run: |x| x[0].add_scalar(3.0),
    },
    Case {
        op: "clamp",
        name: "-0.1 to 0.1",
        inputs: &[Input::NonZero(&[3, 5])],
        run: |x| x[0].clamp(-0.1, 0.1),
    },
    Case {
        op: "clamp",
        name: "-9 to 9",
        inputs: &[Input::Normal(&[3, 5])],
        run: |x| x[0].clamp(-9.0, 9.0),
    },
    Case {
        op: "to_dtype",
        name: "f64 to f64",
        inputs: &[Input::Normal(&[3])],
        run: |x| x[0].to_dtype(x[0].dtype()),
    },
    Case {
        op: "tanh",
        name: "scalar",
        inputs: &[Input::Normal(&[])],
        run: |x| x[0].tanh(),
    },
    Case {
        op: "tanh",
        name: "empty",
        inputs: &[Input::Normal(&[0, 3])],
        run: |x| x[0].tanh(),
    },
    Case {
        op: "gelu",
        name: "images",
        inputs: &[Input::Normal(&[2, 3, 2, 2])],
        run: |x| x[0].gelu(),
    },
];

/// More than a block, not a whole number of packs, with and without gaps.
pub const LARGE: &[Case] = &[
    Case {
        op: "gelu",
        name: "several blocks",
        inputs: &[Input::Normal(&[5003])],
        run: |x| x[0].gelu(),
    },
    Case {
        op: "relu",
        name: "a strided view",
        inputs: &[Input::NonZero(&[37, 2, 71])],
        run: |x| x[0].select(1, 1)?.t()?.relu(),
    },
    Case {
        op: "tanh",
        name: "an unaligned view",
        inputs: &[Input::Normal(&[6001])],
        run: |x| x[0].narrow(0, 1, 5555)?.tanh(),
    },
];
