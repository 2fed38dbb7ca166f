//! Element types: what a tensor can hold, and the arithmetic that CPU code is generic over.

mod math;

use half::{bf16, f16};

/// The type of a tensor's elements.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum DType {
    /// 32-bit float, the default.
    #[default]
    F32,
    /// 64-bit float, for gradient checks.
    F64,
    /// bfloat16, for mixed precision.
    BF16,
    /// IEEE half precision, for mixed precision.
    F16,
    /// 64-bit signed integer: labels, indices.
    I64,
    /// Byte: images, masks, the results of comparisons.
    U8,
}

impl DType {
    /// Bytes an element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F64 | DType::I64 => 8,
            DType::BF16 | DType::F16 => 2,
            DType::U8 => 1,
        }
    }

    /// Whether it is a floating-point type, hence whether it can carry a gradient.
    pub const fn is_float(self) -> bool {
        !matches!(self, DType::I64 | DType::U8)
    }

    /// Whether it is one of the two 16-bit floats, which the CPU computes in f32.
    pub const fn is_half(self) -> bool {
        matches!(self, DType::BF16 | DType::F16)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::I64 => "i64",
            DType::U8 => "u8",
        })
    }
}

/// A Rust type that a tensor can hold.
pub trait Element:
    bytemuck::Pod + Send + Sync + PartialOrd + std::fmt::Debug + Default + 'static
{
    /// Its runtime name.
    const DTYPE: DType;
    /// The nearest f64.
    fn to_f64(self) -> f64;
    /// The nearest value of this type; floats are truncated and saturated by integers.
    fn from_f64(x: f64) -> Self;
    /// The sum, rounded once.
    #[inline(always)]
    fn plus(self, o: Self) -> Self {
        Self::from_f64(self.to_f64() + o.to_f64())
    }
}

macro_rules! element {
    ($($t:ty => $d:ident, $to:expr, $from:expr;)*) => {$(
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            #[inline(always)]
            fn to_f64(self) -> f64 { ($to)(self) }
            #[inline(always)]
            fn from_f64(x: f64) -> Self { ($from)(x) }
        }
    )*};
}
element! {
    f32 => F32, |x| x as f64, |x| x as f32;
    f64 => F64, |x| x, |x| x;
    bf16 => BF16, bf16::to_f64, bf16::from_f64;
    f16 => F16, f16::to_f64, f16::from_f64;
    i64 => I64, |x| x as f64, |x| x as i64;
    u8 => U8, |x| x as f64, |x| x as u8;
}

/// f32 or f64: what float ops are written over.
pub trait Real:
    Element
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::MulAssign
    + std::iter::Sum
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Minus infinity, the start of a maximum.
    const NEG_INFINITY: Self;
    /// Small enough to be 0 wherever it is added, far enough from the smallest normal number that
    /// products with it stay normal.
    const TINY: Self;
    /// From a constant in a formula.
    #[inline(always)]
    fn of(x: f64) -> Self {
        Self::from_f64(x)
    }
    /// e^x.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// ln(1 + x), exact near 0.
    fn ln_1p(self) -> Self;
    /// e^x - 1, exact near 0.
    fn exp_m1(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// Sine.
    fn sin(self) -> Self;
    /// Cosine.
    fn cos(self) -> Self;
    /// The normal distribution's density at x, 1/sqrt(2 pi) exp(-x^2 / 2), behind its integral from
    /// minus infinity to x, which is Phi.
    fn normal(self) -> [Self; 2];
    /// self^y.
    fn powf(self, y: Self) -> Self;
    /// The greater; NaN if either is NaN.
    #[inline(always)]
    #[allow(clippy::eq_op, reason = "NaN differs from itself")]
    fn nan_max(self, o: Self) -> Self {
        if self > o || self != self { self } else { o }
    }
    /// The lesser; NaN if either is NaN.
    #[inline(always)]
    #[allow(clippy::eq_op, reason = "NaN differs from itself")]
    fn nan_min(self, o: Self) -> Self {
        if self < o || self != self { self } else { o }
    }
    /// Whether it is neither NaN nor infinite.
    fn is_finite(self) -> bool;
}

macro_rules! real {
    ($($t:ident, $tiny:expr, [$exp:expr, $ln:expr, $ln_1p:expr, $exp_m1:expr, $tanh:expr, $normal:expr];)*) => {$(
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;
            const TINY: Self = $tiny;
            #[inline(always)] fn exp(self) -> Self { ($exp)(self) }
            #[inline(always)] fn ln(self) -> Self { ($ln)(self) }
            #[inline(always)] fn ln_1p(self) -> Self { ($ln_1p)(self) }
            #[inline(always)] fn exp_m1(self) -> Self { ($exp_m1)(self) }
            #[inline(always)] fn sqrt(self) -> Self { $t::sqrt(self) }
            #[inline(always)] fn tanh(self) -> Self { ($tanh)(self) }
            #[inline(always)] fn abs(self) -> Self { $t::abs(self) }
            #[inline(always)] fn sin(self) -> Self { $t::sin(self) }
            #[inline(always)] fn cos(self) -> Self { $t::cos(self) }
            #[inline(always)] fn normal(self) -> [Self; 2] { ($normal)(self) }
            #[inline(always)] fn powf(self, y: Self) -> Self { $t::powf(self, y) }
            #[inline(always)] fn is_finite(self) -> bool { $t::is_finite(self) }
        }
    )*};
}
// f32 is what networks run in: functions that loops are vectorized with. f64 checks them: exact ones
real! {
    f32, 1e-30, [math::exp, math::ln, math::ln_1p, math::exp_m1, math::tanh, math::normal];
    f64, 1e-290, [f64::exp, f64::ln, f64::ln_1p, f64::exp_m1, f64::tanh, normal];
}

fn normal(x: f64) -> [f64; 2] {
    use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};
    let density = (-0.5 * x * x).exp() * (0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
    [0.5 * (1.0 + erf(x * FRAC_1_SQRT_2)), density]
}

/// The error function to within 1e-15: its Maclaurin series below 3, the continued fraction
/// of erfc above (Abramowitz and Stegun, 7.1.6 and 7.1.14).
fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a < 3.0 {
        // erf x = 2/sqrt(pi) exp(-x^2) sum_n 2^n x^(2n+1) / (2n+1)!!: all terms positive, no cancellation
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term > sum * 1e-17 {
            n += 1.0;
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
        }
        (std::f64::consts::FRAC_2_SQRT_PI * (-a * a).exp() * sum).copysign(x)
    } else if a < 6.0 {
        let mut f = a;
        for k in (1..=60).rev() {
            f = a + k as f64 / 2.0 / f;
        }
        let erfc = (-a * a).exp() / f * std::f64::consts::FRAC_2_SQRT_PI / 2.0;
        (1.0 - erfc).copysign(x)
    } else if x.is_nan() {
        x
    } else {
        1f64.copysign(x)
    }
}

/// Run `$body` with `$T` bound to the Rust type of a real dtype; other dtypes are an error of `$op`.
#[macro_export]
#[doc(hidden)]
macro_rules! with_real {
    ($op:expr, $dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::dtype::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::dtype::DType::F64 => {
                type $T = f64;
                $body
            }
            got => Err($crate::error::Error::DType {
                op: $op,
                expected: "a float tensor (to_dtype converts)",
                got,
            }),
        }
    };
}

/// Run `$body` with `$T` bound to the Rust type of any dtype.
#[macro_export]
#[doc(hidden)]
macro_rules! with_element {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::dtype::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::dtype::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::dtype::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            $crate::dtype::DType::F16 => {
                type $T = half::f16;
                $body
            }
            $crate::dtype::DType::I64 => {
                type $T = i64;
                $body
            }
            $crate::dtype::DType::U8 => {
                type $T = u8;
                $body
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_known_values() {
        // Abramowitz and Stegun, table 7.1, and the continuity of the two branches at 3
        for (x, y) in [
            (0.0, 0.0),
            (0.5, 0.5204998778130465),
            (1.0, 0.8427007929497149),
            (2.0, 0.9953222650189527),
            (-1.0, -0.8427007929497149),
            (4.0, 0.9999999845827421),
        ] {
            assert!((erf(x) - y).abs() < 1e-15, "erf({x}) = {} but {y}", erf(x));
        }
        assert!((erf(3.0 - 1e-13) - erf(3.0 + 1e-13)).abs() < 1e-15);
    }
}
