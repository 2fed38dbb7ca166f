//! e^x and its kin in f32, without branches, table lookups or calls: loops of them become vector
//! code of whatever width. The polynomials are those of Cephes, by Stephen Moshier, but for Phi's.
//!
//! Polynomials are sums of fused multiply-adds, one instruction and one rounding each. Every width
//! gives the same bits: where the instruction is missing (x86-64 before 2013) the C library computes
//! what it would have given, correctly and slowly.

/// ln 2 in two parts, of which the first has so few bits that n times it is exact.
const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// 1.5 2^23: a small number added to it is rounded to a whole one, in the lowest bits.
const ROUND: f32 = 12_582_912.0;

/// The polynomial with these coefficients, the highest first.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, c: [f32; N]) -> f32 {
    c[1..].iter().fold(c[0], |sum, &c| sum.mul_add(x, c))
}

/// e^x = 2^n (1 + p), |x - n ln 2| < 0.35, for |x| below 2^22.
#[inline(always)]
fn reduced(x: f32) -> (i32, f32) {
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2[1], n.mul_add(-LN2[0], x));
    let p = [
        1.987_569_1e-4,
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_6e-1,
        0.5,
    ];
    // wraps where x is NaN: then p is NaN too
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    (n, polynomial(r, p).mul_add(r * r, r))
}

/// 2^n, for n from -126 to 127.
#[inline(always)]
fn power_of_2(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// e^x = a b (1 + p) for any x, a and b powers of 2: beyond the range of f32 their product is
/// infinite, or rounded once to a denormal number.
#[inline(always)]
fn scaled(x: f32) -> [f32; 3] {
    // comparisons that leave NaN where it is
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let (n, p) = reduced(x);
    [power_of_2(n >> 1), power_of_2(n.wrapping_sub(n >> 1)), p]
}

/// e^x, to 1 ulp.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let [a, b, p] = scaled(x);
    (p + 1.0) * a * b
}

/// e^x - 1, to 2 ulp.
#[inline(always)]
pub fn exp_m1(x: f32) -> f32 {
    // from -30 on it is -1: no denormal numbers, which are slow, for the sake of nothing
    let [a, b, p] = scaled(if x < -30.0 { -30.0 } else { x });
    let near = (p * a).mul_add(b, a * b - 1.0);
    // where a b may be infinite, 1 is nothing
    let y = if x > 30.0 { (p + 1.0) * a * b } else { near };
    // -0 stays
    if x == 0.0 { x } else { y }
}

/// ln x, to 1 ulp.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    // x = 2^e (1 + f), 1 + f from sqrt(1/2) on; a denormal number is made normal first
    const ROOT: i32 = 0x3f35_04f3;
    let denormal = x < f32::MIN_POSITIVE;
    let normal = if denormal { x * 8_388_608.0 } else { x };
    let above = (normal.to_bits() as i32).wrapping_sub(ROOT);
    let e = (above >> 23) as f32 - if denormal { 23.0 } else { 0.0 };
    let f = f32::from_bits(((above & 0x7f_ffff) + ROOT) as u32) - 1.0;
    let square = f * f;
    let p = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let y = (f * square).mul_add(polynomial(f, p), e * LN2[1]);
    let y = e.mul_add(LN2[0], f + square.mul_add(-0.5, y));
    let y = if x < f32::INFINITY { y } else { x };
    let of_none = if x == 0.0 {
        f32::NEG_INFINITY
    } else {
        f32::NAN
    };
    if x > 0.0 { y } else { of_none }
}

/// ln(1 + x), to 2 ulp.
#[inline(always)]
pub fn ln_1p(x: f32) -> f32 {
    let u = 1.0 + x;
    let y = ln(u);
    // what 1 + x lost by rounding, to first order
    let exact = y + (x - (u - 1.0)) / u;
    let exact = if x == 0.0 { x } else { exact };
    if u > 0.0 && u < f32::INFINITY {
        exact
    } else {
        y
    }
}

/// Hyperbolic tangent, to 3 ulp.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let t = exp_m1(-2.0 * x.abs());
    (-t / (t + 2.0)).copysign(x)
}

/// The normal distribution's Phi, to within 2e-7, and its density, sharing one e^(-x^2 / 2): below 0
/// Phi(x) is that times m(|x|), and m, which falls slowly from 1/2, a polynomial fitted so that the
/// error of the product is even, and below 1 % where Phi is tiny. Above 0 it is 1 less that of -x.
#[inline(always)]
#[allow(clippy::approx_constant)] // fitted: not quite ln 2
pub fn normal(x: f32) -> [f32; 2] {
    const FAR: f32 = 5.6;
    let m = [
        -1.838_784_9e-7,
        5.126_488e-6,
        -6.344_938e-5,
        4.667_635_7e-4,
        -2.324_213e-3,
        8.548_96e-3,
        -2.498_835e-2,
        6.161_604e-2,
        -0.132_697_43,
        0.249_954_85,
        -0.398_939_8,
        0.5,
    ];
    // 2^f on [-1/2, 1/2]
    let power = [
        1.326_473_7e-3,
        9.671_517e-3,
        5.550_733_6e-2,
        2.402_224_2e-1,
        6.931_47e-1,
        1.0,
    ];
    let t = x.abs();
    let near = if t > FAR { FAR } else { t };
    let y = near * near * (-0.5 * std::f32::consts::LOG2_E);
    let shifted = y + ROUND;
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let e = polynomial(y - (shifted - ROUND), power) * power_of_2(n);
    // Phi is less than half of what 1 is rounded by
    let e = if t > FAR { 0.0 } else { e };
    let below = polynomial(near, m) * e;
    let phi = if x > 0.0 { 1.0 - below } else { below };
    [phi, e * 0.398_942_3]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Real;
    use crate::level::Level;

    type Function = (&'static str, fn(f32) -> f32, fn(f64) -> f64, f64);

    /// With the greatest error that is let pass, in units of the last place.
    const FUNCTIONS: [Function; 5] = [
        ("exp", exp, f64::exp, 0.95),
        ("exp_m1", exp_m1, f64::exp_m1, 1.6),
        ("ln", ln, f64::ln, 0.8),
        ("ln_1p", ln_1p, f64::ln_1p, 1.5),
        ("tanh", tanh, f64::tanh, 2.5),
    ];

    /// All of f32's range, infinities and NaN included, by steps that no power of 2 divides.
    fn sweep() -> impl Iterator<Item = f32> {
        let some = (0..=f32::INFINITY.to_bits())
            .step_by(8009)
            .map(f32::from_bits);
        let special = [
            f32::INFINITY,
            f32::NAN,
            f32::MAX,
            f32::MIN_POSITIVE,
            1.0,
            89.0,
            104.0,
        ];
        some.chain(special).flat_map(|x| [x, -x])
    }

    #[test]
    fn errors_in_units_of_the_last_place() {
        for (name, f, exact, most) in FUNCTIONS {
            let mut worst = (0.0, 0.0);
            for x in sweep() {
                let (y, want) = (f(x), exact(x as f64));
                let rounded = want as f32;
                if !rounded.is_finite() || rounded as f64 == want {
                    let same = y == rounded && y.is_sign_negative() == rounded.is_sign_negative();
                    assert!(same || y.is_nan() && want.is_nan(), "{name}({x}) = {y}");
                    continue;
                }
                let exponent = ((rounded.to_bits() >> 23) & 255).max(1) as i32 - 150;
                let ulps = (y as f64 - want).abs() / 2f64.powi(exponent);
                if ulps > worst.0 {
                    worst = (ulps, x);
                }
            }
            assert!(worst.0 < most, "{name}({}): {} ulp", worst.1, worst.0);
        }
    }

    #[test]
    fn normal_is_that_of_f64() {
        let steps = (-8000..=8000).map(|i| i as f32 / 1000.0);
        for x in sweep().chain(steps) {
            for (y, want) in normal(x).into_iter().zip((x as f64).normal()) {
                let y = y as f64;
                let close = (y - want).abs() < 2e-7 || x.is_nan() && y.is_nan();
                assert!(close, "normal({x}) has {y}, not {want}");
                let tiny = (-5.6..-3.0).contains(&x);
                assert!(!tiny || (y / want - 1.0).abs() < 0.01, "{x}: {y}, {want}");
            }
        }
        let phis = [0.0, f32::INFINITY, f32::NEG_INFINITY].map(|x| normal(x)[0]);
        assert_eq!(phis, [0.5, 1.0, 0.0]);
    }

    #[test]
    fn all_levels_give_the_same_bits() {
        let x: Vec<f32> = sweep().collect();
        fn at(level: Level, x: &[f32], f: impl Fn(f32) -> f32) -> Vec<u32> {
            let mut y = vec![0f32; x.len()];
            level.run(
                #[inline(always)]
                || y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x)),
            );
            // NaN is NaN, whatever its bits
            let one_nan = |y: f32| if y.is_nan() { u32::MAX } else { y.to_bits() };
            y.into_iter().map(one_nan).collect()
        }
        let (phi, density) = (|x| normal(x)[0], |x| normal(x)[1]);
        let all = |level| [exp, exp_m1, ln, ln_1p, tanh, phi, density].map(|f| at(level, &x, f));
        for level in Level::available() {
            // the functions by name, so that they are inlined
            let here = [
                at(level, &x, exp),
                at(level, &x, exp_m1),
                at(level, &x, ln),
                at(level, &x, ln_1p),
                at(level, &x, tanh),
                at(level, &x, phi),
                at(level, &x, density),
            ];
            assert!(here == all(Level::Portable), "{level:?}");
        }
    }
}
