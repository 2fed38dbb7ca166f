//! Pointwise functions of two tensors, broadcast by PyTorch's rules, comparisons and `where`.

use std::marker::PhantomData;

use crate::autograd::{Op, apply};
use crate::cpu::strided;
use crate::cuda::{Arg, Gpu, Kernels, Walk, float_kernels, kernels};
use crate::device::Device;
use crate::dtype::{DType, Element, Real};
use crate::error::{Error, Result};
use crate::ops::check::{Case, Input};
use crate::ops::{Formula, one_dtype};
use crate::shape::{self, Layout, Shape};
use crate::tensor::Tensor;
use crate::{with_element, with_real};

/// A function of two numbers with its two derivatives.
trait Pair: Copy + Send + Sync + 'static {
    const NAME: &'static str;
    /// Whether the derivatives depend on the inputs, so that backward must keep them.
    const KEEP: bool;
    /// The same formulas of `kernels/binary.cu`: f, da, db. The derivatives are there only of what
    /// keeps its inputs.
    fn kernels() -> [&'static Kernels; 3];
    fn f<T: Real>(a: T, b: T) -> T;
    fn da<T: Real>(a: T, b: T) -> T;
    fn db<T: Real>(a: T, b: T) -> T;
}

struct Binary<P>(PhantomData<fn() -> P>);

impl<P: Pair> Op<2> for Binary<P> {
    const NAME: &'static str = P::NAME;
    const HALF_ON_CUDA: bool = true;
    type Saved = Option<[Tensor; 2]>;

    fn forward(&self, [a, b]: [&Tensor; 2]) -> Result<(Tensor, Self::Saved)> {
        let y = match a.device() {
            Device::Cpu => {
                with_real!(P::NAME, a.dtype(), T => zip::<T, T, T>(P::NAME, a, b, P::f))?
            }
            Device::Cuda(gpu) => {
                let packs = 256 * 16 / a.dtype().size();
                launch(P::NAME, gpu, P::kernels()[0], [a, b], a.dtype(), packs)?
            }
        };
        Ok((y, P::KEEP.then(|| [a.clone(), b.clone()])))
    }

    fn backward(
        &self,
        saved: Self::Saved,
        dy: Tensor,
        needs: [bool; 2],
    ) -> Result<[Option<Tensor>; 2]> {
        // the engine sums a gradient down to its input's shape
        let side = |kernel: usize, constant: f64| -> Result<Tensor> {
            match (&saved, dy.device()) {
                (None, _) if constant == 1.0 => Ok(dy.clone()),
                (None, _) => dy.mul_scalar(constant),
                (Some([a, b]), Device::Cuda(gpu)) => launch(
                    P::NAME,
                    gpu,
                    P::kernels()[kernel],
                    [a, b, &dy],
                    dy.dtype(),
                    BLOCK,
                ),
                // a factor's derivative is the other one: nobody has to write it out
                (Some([a, b]), Device::Cpu) if P::NAME == Mul::NAME => {
                    dy.mul(if kernel == 1 { b } else { a })
                }
                (Some([a, b]), Device::Cpu) => with_real!(P::NAME, dy.dtype(), T => {
                    let d = if kernel == 1 { P::da::<T> } else { P::db::<T> };
                    dy.mul(&zip::<T, T, T>(P::NAME, a, b, d)?)
                }),
            }
        };
        Ok([
            if needs[0] {
                Some(side(1, P::da(0.0, 0.0))?)
            } else {
                None
            },
            if needs[1] {
                Some(side(2, P::db(0.0, 0.0))?)
            } else {
                None
            },
        ])
    }
}

/// Elements that a block owns of what is not written in packs.
const BLOCK: usize = 1024;

/// A new tensor of `dtype` from a kernel that takes `inputs` (the first two of one dtype), all
/// broadcast; it lies in memory as an input that has its shape. A block owns `each` elements.
fn launch<const K: usize>(
    op: &'static str,
    gpu: Gpu,
    kernel: &'static Kernels,
    inputs: [&Tensor; K],
    dtype: DType,
    each: usize,
) -> Result<Tensor> {
    let (a, b) = (inputs[0], inputs[1]);
    one_dtype(op, [a, b])?;
    let join = |s: Shape, t: &&Tensor| shape::broadcast(op, &s, t.shape());
    let shape = inputs[1..].iter().try_fold(*a.shape(), join)?;
    let same = inputs.iter().find(|t| *t.shape() == shape);
    let layout = same.map_or(Layout::contiguous(shape), |t| t.layout().dense_like());
    let y = Tensor::empty(layout, dtype, a.device())?;
    let expanded = inputs.map(|t| t.layout().expand(shape));
    let walk = Walk::new(y.layout(), expanded.each_ref())?;
    let mut args: Vec<Arg<'_>> = inputs.iter().map(|t| t.input()).collect();
    args.extend([y.output(), walk.arg()]);
    gpu.launch_over(kernel.of(a.dtype())?, y.numel(), each, &args)?;
    Ok(y)
}

/// A new tensor of f(a, b), broadcast; it lies in memory as the input that has its shape.
fn zip<T: Element, S: Element, U: Element>(
    op: &'static str,
    a: &Tensor,
    b: &Tensor,
    f: impl Fn(T, S) -> U + Sync,
) -> Result<Tensor> {
    let shape = shape::broadcast(op, a.shape(), b.shape())?;
    let layout = if *a.shape() == shape {
        a.layout().dense_like()
    } else if *b.shape() == shape {
        b.layout().dense_like()
    } else {
        Layout::contiguous(shape)
    };
    let (x, y) = (a.storage_slice::<T>(op)?, b.storage_slice::<S>(op)?);
    let (lx, ly) = (a.layout().expand(shape), b.layout().expand(shape));
    Tensor::build::<U>(layout, a.device(), |out| {
        strided::zip((x, &lx), (y, &ly), out, &layout, f)
    })
}

macro_rules! pairs {
    ($($(#[$doc:meta])* $name:ident $method:ident $keep:literal, $f:expr, $da:expr, $db:expr;)*) => {
        $(
            #[derive(Clone, Copy)]
            struct $name;
            impl Pair for $name {
                const NAME: &'static str = stringify!($method);
                const KEEP: bool = $keep;
                fn kernels() -> [&'static Kernels; 3] {
                    static F: Kernels = float_kernels!(stringify!($method));
                    static DA: Kernels = float_kernels!(concat!(stringify!($method), "_da"));
                    static DB: Kernels = float_kernels!(concat!(stringify!($method), "_db"));
                    [&F, &DA, &DB]
                }
                #[inline(always)]
                fn f<T: Real>(a: T, b: T) -> T { let f: fn(T, T) -> T = $f; f(a, b) }
                #[inline(always)]
                fn da<T: Real>(a: T, b: T) -> T { let f: fn(T, T) -> T = $da; f(a, b) }
                #[inline(always)]
                fn db<T: Real>(a: T, b: T) -> T { let f: fn(T, T) -> T = $db; f(a, b) }
            }
        )*
        impl Tensor {
            $(
                $(#[$doc])*
                pub fn $method(&self, other: &Tensor) -> Result<Tensor> {
                    apply(Binary::<$name>(PhantomData), [self, other])
                }
            )*
        }
    };
}

pairs! {
    /// a + b, broadcast.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let y = Tensor::ones([2, 1], DType::F32)?.add(&Tensor::ones([3], DType::F32)?)?;
    /// assert_eq!(y.shape()[..], [2, 3]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    Add add false, |a, b| a + b, |_, _| T::ONE, |_, _| T::ONE;
    /// a - b, broadcast.
    Sub sub false, |a, b| a - b, |_, _| T::ONE, |_, _| -T::ONE;
    /// a b, element by element, broadcast.
    Mul mul true, |a, b| a * b, |_, b| b, |a, _| a;
    /// a / b, broadcast.
    Div div true, |a, b| a / b, |_, b| T::ONE / b, |a, b| -a / (b * b);
    /// The greater; where both are equal each gets half of the gradient, as PyTorch has it.
    Maximum maximum true, |a, b| a.nan_max(b), |a, b| share(a > b, a, b), |a, b| share(b > a, a, b);
    /// The lesser; where both are equal each gets half of the gradient, as PyTorch has it.
    Minimum minimum true, |a, b| a.nan_min(b), |a, b| share(a < b, a, b), |a, b| share(b < a, a, b);
    /// a^b.
    Pow pow true, |a, b| a.powf(b),
        |a, b| if b == T::ZERO { T::ZERO } else { b * a.powf(b - T::ONE) },
        // 0^b is constantly 0 for b > 0
        |a, b| if a == T::ZERO && b >= T::ZERO { T::ZERO } else { a.powf(b) * a.ln() };
}

#[inline(always)]
fn share<T: Real>(wins: bool, a: T, b: T) -> T {
    if a == b {
        T::of(0.5)
    } else if wins {
        T::ONE
    } else {
        T::ZERO
    }
}

macro_rules! compare {
    ($($(#[$doc:meta])* $method:ident $op:tt;)*) => {
        impl Tensor {
            $(
                $(#[$doc])*
                pub fn $method(&self, other: &Tensor) -> Result<Tensor> {
                    let op = stringify!($method);
                    if self.device() != other.device() {
                        return Err(Error::devices(op, self.device(), other.device()));
                    }
                    if let Device::Cuda(gpu) = self.device() {
                        static KERNELS: Kernels = Kernels::new(
                            stringify!($method),
                            &[
                                (DType::F32, concat!(stringify!($method), "_f32")),
                                (DType::F64, concat!(stringify!($method), "_f64")),
                                (DType::BF16, concat!(stringify!($method), "_bf16")),
                                (DType::F16, concat!(stringify!($method), "_f16")),
                                (DType::I64, concat!(stringify!($method), "_i64")),
                                (DType::U8, concat!(stringify!($method), "_u8")),
                            ],
                        );
                        return launch(op, gpu, &KERNELS, [self, other], DType::U8, BLOCK);
                    }
                    with_element!(self.dtype(), T => zip::<T, T, u8>(op, self, other, |a, b| (a $op b) as u8))
                }
            )*
        }
    };
}

compare! {
    /// a = b as U8, broadcast; both of one dtype.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let (a, b) = (Tensor::from_vec(vec![1i64, 2], [2])?, Tensor::scalar(2i64)?);
    /// assert_eq!(a.eq(&b)?.to_vec::<u8>()?, [0, 1]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    eq ==;
    /// a != b as U8.
    ne !=;
    /// a > b as U8.
    gt >;
    /// a >= b as U8.
    ge >=;
    /// a < b as U8.
    lt <;
    /// a <= b as U8.
    le <=;
}

kernels! {
    /// A block owns 1024 elements.
    WHERE = "where" [F32, F64, BF16, F16];
}

/// y = a where the mask is set, else b.
struct Where;
impl Op<3> for Where {
    const NAME: &'static str = "where";
    const HALF_ON_CUDA: bool = true;
    type Saved = Tensor;

    fn forward(&self, [mask, a, b]: [&Tensor; 3]) -> Result<(Tensor, Tensor)> {
        if mask.dtype() != DType::U8 {
            return Err(Error::DType {
                op: Self::NAME,
                expected: "a u8 mask",
                got: mask.dtype(),
            });
        }
        let shape = shape::broadcast(Self::NAME, a.shape(), b.shape())?;
        let shape = shape::broadcast(Self::NAME, mask.shape(), &shape)?;
        if let Device::Cuda(gpu) = a.device() {
            let y = launch(Self::NAME, gpu, &WHERE, [a, b, mask], a.dtype(), BLOCK)?;
            return Ok((y, mask.clone()));
        }
        let y = with_real!(Self::NAME, a.dtype(), T => {
            let [mask, a, b] = [mask, a, b].map(|t| t.view_as(t.layout().expand(shape)).packed());
            let (mask, a, b) = (mask?, a?, b?);
            let device = a.device();
            let (a, b) = (a.dense_slice::<T>(Self::NAME)?, b.dense_slice::<T>(Self::NAME)?);
            let mask = mask.dense_slice::<u8>(Self::NAME)?;
            Tensor::build::<T>(Layout::contiguous(shape), device, |out| {
                for (i, o) in out.iter_mut().enumerate() {
                    *o = if mask[i] != 0 { a[i] } else { b[i] };
                }
            })
        })?;
        Ok((y, mask.clone()))
    }

    fn backward(&self, mask: Tensor, dy: Tensor, _: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        if let Device::Cuda(gpu) = dy.device() {
            let zero = Tensor::zeros((), dy.options())?;
            let side = |a, b| launch(Self::NAME, gpu, &WHERE, [a, b, &mask], dy.dtype(), BLOCK);
            return Ok([None, Some(side(&dy, &zero)?), Some(side(&zero, &dy)?)]);
        }
        with_real!(Self::NAME, dy.dtype(), T => {
            let da = zip::<T, u8, T>(Self::NAME, &dy, &mask, |dy, m| if m != 0 { dy } else { T::ZERO })?;
            let db = zip::<T, u8, T>(Self::NAME, &dy, &mask, |dy, m| if m != 0 { T::ZERO } else { dy })?;
            Ok([None, Some(da), Some(db)])
        })
    }
}

impl Tensor {
    /// `a` where this U8 mask is not 0, else `b`; all three broadcast.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let x = Tensor::from_vec(vec![-1f32, 2.0], [2])?;
    /// let zero = Tensor::scalar(0f32)?;
    /// assert_eq!(x.gt(&zero)?.select_where(&x, &zero)?.to_vec::<f32>()?, [0.0, 2.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn select_where(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        apply(Where, [self, a, b])
    }
}

/// `a + b` and the like, for formulas that a reader checks by eye. They panic where the method
/// returns an error, with its text.
macro_rules! operators {
    ($($trait:ident $fn:ident $scalar:expr;)*) => {$(
        impl std::ops::$trait for &Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $fn(self, other: &Tensor) -> Tensor {
                Tensor::$fn(self, other).unwrap_or_else(|e| panic!("{e}"))
            }
        }
        impl std::ops::$trait<f64> for &Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $fn(self, value: f64) -> Tensor {
                let f: fn(&Tensor, f64) -> Result<Tensor> = $scalar;
                f(self, value).unwrap_or_else(|e| panic!("{e}"))
            }
        }
    )*};
}
operators! {
    Add add |x, v| x.add_scalar(v);
    Sub sub |x, v| x.add_scalar(-v);
    Mul mul |x, v| x.mul_scalar(v);
    Div div |x, v| x.mul_scalar(1.0 / v);
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[
    ("add", "a + b"),
    ("sub", "a - b"),
    ("mul", "a b"),
    ("div", "a / b"),
    ("maximum", "max(a, b)"),
    ("minimum", "min(a, b)"),
    ("pow", "a^b"),
    ("select_where", "a where the mask is set, else b"),
];

macro_rules! cases {
    ($($op:ident $a:ident $b:ident;)*) => {
        &[$(
            Case { op: stringify!($op), name: "same shape", inputs: &[Input::$a(&[3, 4]), Input::$b(&[3, 4])], run: |x| x[0].$op(&x[1]) },
            Case { op: stringify!($op), name: "row", inputs: &[Input::$a(&[2, 3, 4]), Input::$b(&[4])], run: |x| x[0].$op(&x[1]) },
            Case { op: stringify!($op), name: "both broadcast", inputs: &[Input::$a(&[5, 1, 2, 1]), Input::$b(&[3, 1, 4])], run: |x| x[0].$op(&x[1]) },
            Case { op: stringify!($op), name: "scalar", inputs: &[Input::$a(&[]), Input::$b(&[2, 3])], run: |x| x[0].$op(&x[1]) },
            Case { op: stringify!($op), name: "empty", inputs: &[Input::$a(&[0, 3]), Input::$b(&[3])], run: |x| x[0].$op(&x[1]) },
        )*]
    };
}

/// Every function of two, in every way to broadcast.
pub const CASES: &[Case] = cases! {
    add Normal Normal; sub Normal Normal; mul Normal Normal; div Normal NonZero;
    maximum Normal Normal; minimum Normal Normal; pow Positive Normal;
};

/// The same tensor fed twice, and masks.
pub const MORE_CASES: &[Case] = &[
    Case {
        op: "mul",
        name: "x with itself",
        inputs: &[Input::Normal(&[3, 4])],
        run: |x| x[0].mul(&x[0]),
    },
    Case {
        op: "div",
        name: "x by itself plus 4",
        inputs: &[Input::Positive(&[3])],
        run: |x| x[0].div(&x[0].add_scalar(4.0)?),
    },
    Case {
        op: "add",
        name: "x and its transpose",
        inputs: &[Input::Normal(&[3, 3])],
        run: |x| x[0].add(&x[0].transpose(0, 1)?),
    },
    Case {
        op: "select_where",
        name: "same shape",
        inputs: &[
            Input::Mask(&[3, 4]),
            Input::Normal(&[3, 4]),
            Input::Normal(&[3, 4]),
        ],
        run: |x| x[0].select_where(&x[1], &x[2]),
    },
    Case {
        op: "select_where",
        name: "broadcast",
        inputs: &[
            Input::Mask(&[3, 1]),
            Input::Normal(&[4]),
            Input::Normal(&[]),
        ],
        run: |x| x[0].select_where(&x[1], &x[2]),
    },
];
/// More than a block, broadcast on either side.
pub const LARGE: &[Case] = &[
    Case {
        op: "mul",
        name: "several blocks",
        inputs: &[Input::Normal(&[4099]), Input::Normal(&[4099])],
        run: |x| x[0].mul(&x[1]),
    },
    Case {
        op: "add",
        name: "rows and a bias",
        inputs: &[Input::Normal(&[67, 129]), Input::Normal(&[129])],
        run: |x| x[0].add(&x[1]),
    },
    Case {
        op: "div",
        name: "columns and channels",
        inputs: &[Input::Normal(&[3, 33, 5, 7]), Input::Positive(&[33, 1, 1])],
        run: |x| x[0].div(&x[1]),
    },
    Case {
        op: "select_where",
        name: "several blocks, the mask the widest",
        inputs: &[
            Input::Mask(&[3, 33, 35]),
            Input::Normal(&[33, 1]),
            Input::Normal(&[35]),
        ],
        run: |x| x[0].select_where(&x[1], &x[2]),
    },
];
