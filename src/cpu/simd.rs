//! SIMD vectors of f32 and f64: AVX-512, AVX2 and a portable one.
use crate::dtype::Real;

pub use crate::level::{Level, level, run};

/// A register of `LANES` numbers.
///
/// # Safety
/// Every method needs a CPU that has the vector's instruction set; `load` and `store` need a
/// pointer that is valid for `LANES` elements, of any alignment.
#[allow(clippy::missing_safety_doc)] // said once, above
pub trait Simd: Copy {
    /// What a lane holds.
    type T: Real;
    /// The number of lanes, a power of two.
    const LANES: usize;
    /// `x` in every lane.
    unsafe fn splat(x: Self::T) -> Self;
    /// The `LANES` elements at `p`.
    unsafe fn load(p: *const Self::T) -> Self;
    /// Write the lanes to `p`.
    unsafe fn store(self, p: *mut Self::T);
    /// Write the lanes to `p`, which is aligned to the vector, past the caches; [`fence`] makes
    /// them seen by other threads.
    unsafe fn stream(self, p: *mut Self::T);
    /// self + o.
    unsafe fn add(self, o: Self) -> Self;
    /// The greater of self and o, NaN where either is, as [`Real::nan_max`] has it.
    unsafe fn nan_max(self, o: Self) -> Self;
    /// self * b + c.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// The lanes of two vectors interleaved: (a0 b0 a1 b1 .., the rest).
    unsafe fn zip(self, o: Self) -> (Self, Self);
}

/// Before other threads read what [`Simd::stream`] has written.
pub fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: of every x86-64 CPU.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// Four numbers that the compiler may put into a register.
#[derive(Clone, Copy)]
pub struct Portable<T>([T; 4]);

impl<T: Real> Simd for Portable<T> {
    type T = T;
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn splat(x: T) -> Self {
        Portable([x; 4])
    }
    #[inline(always)]
    unsafe fn load(p: *const T) -> Self {
        // SAFETY: the caller gives LANES readable elements.
        Portable(unsafe { p.cast::<[T; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut T) {
        // SAFETY: the caller gives LANES writable elements.
        unsafe { p.cast::<[T; 4]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, p: *mut T) {
        // SAFETY: the caller's promise.
        unsafe { self.store(p) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (self.0, o.0);
        Portable([a + e, b + f, c + g, d + h])
    }
    #[inline(always)]
    unsafe fn nan_max(self, o: Self) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (self.0, o.0);
        Portable([a.nan_max(e), b.nan_max(f), c.nan_max(g), d.nan_max(h)])
    }
    // not fused: without the instruction a fused multiply-add is a slow library call
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        let (a, b, c) = (self.0, b.0, c.0);
        Portable([
            a[0] * b[0] + c[0],
            a[1] * b[1] + c[1],
            a[2] * b[2] + c[2],
            a[3] * b[3] + c[3],
        ])
    }
    #[inline(always)]
    unsafe fn zip(self, o: Self) -> (Self, Self) {
        let (a, b) = (self.0, o.0);
        (
            Portable([a[0], b[0], a[1], b[1]]),
            Portable([a[2], b[2], a[3], b[3]]),
        )
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{F32x8, F32x16, F64x4, F64x8};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    macro_rules! vector {
        ($(#[$doc:meta])* $name:ident($reg:ty), $t:ty, $lanes:literal, $splat:ident, $load:ident,
         $store:ident, $stream:ident, $add:ident, $mul_add:ident, |$x:ident, $o:ident| $max:expr, |$a:ident, $b:ident| $zip:expr) => {
            $(#[$doc])*
            #[derive(Clone, Copy)]
            pub struct $name($reg);

            // SAFETY of every block: the trait's contract gives the instruction set and valid pointers.
            #[allow(clippy::undocumented_unsafe_blocks)]
            impl Simd for $name {
                type T = $t;
                const LANES: usize = $lanes;
                #[inline(always)]
                unsafe fn splat(x: $t) -> Self {
                    unsafe { Self($splat(x)) }
                }
                #[inline(always)]
                unsafe fn load(p: *const $t) -> Self {
                    unsafe { Self($load(p)) }
                }
                #[inline(always)]
                unsafe fn store(self, p: *mut $t) {
                    unsafe { $store(p, self.0) }
                }
                #[inline(always)]
                unsafe fn stream(self, p: *mut $t) {
                    unsafe { $stream(p, self.0) }
                }
                #[inline(always)]
                unsafe fn add(self, o: Self) -> Self {
                    unsafe { Self($add(self.0, o.0)) }
                }
                #[inline(always)]
                unsafe fn nan_max(self, o: Self) -> Self {
                    let ($x, $o) = (self.0, o.0);
                    unsafe { Self($max) }
                }
                #[inline(always)]
                unsafe fn mul_add(self, b: Self, c: Self) -> Self {
                    unsafe { Self($mul_add(self.0, b.0, c.0)) }
                }
                #[inline(always)]
                unsafe fn zip(self, o: Self) -> (Self, Self) {
                    let ($a, $b) = (self.0, o.0);
                    unsafe {
                        let (low, high) = $zip;
                        (Self(low), Self(high))
                    }
                }
            }
        };
    }

    // the instruction max gives its second operand where one is NaN: it would forget the first's
    vector!(
        /// 16 f32 of AVX-512.
        F32x16(__m512), f32, 16, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_stream_ps, _mm512_add_ps,
        _mm512_fmadd_ps,
        |x, o| {
            let is_x = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, o) | _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            _mm512_mask_mov_ps(o, is_x, x)
        }, |a, b| {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            (_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b))
        }
    );
    vector!(
        /// 8 f64 of AVX-512.
        F64x8(__m512d), f64, 8, _mm512_set1_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_stream_pd, _mm512_add_pd,
        _mm512_fmadd_pd,
        |x, o| {
            let is_x = _mm512_cmp_pd_mask::<_CMP_GT_OQ>(x, o) | _mm512_cmp_pd_mask::<_CMP_UNORD_Q>(x, x);
            _mm512_mask_mov_pd(o, is_x, x)
        }, |a, b| {
            let low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
            let high = _mm512_add_epi64(low, _mm512_set1_epi64(4));
            (_mm512_permutex2var_pd(a, low, b), _mm512_permutex2var_pd(a, high, b))
        }
    );
    vector!(
        /// 8 f32 of AVX2.
        F32x8(__m256), f32, 8, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_stream_ps, _mm256_add_ps,
        _mm256_fmadd_ps,
        |x, o| {
            let greater = _mm256_cmp_ps::<_CMP_GT_OQ>(x, o);
            let is_x = _mm256_or_ps(greater, _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
            _mm256_blendv_ps(o, x, is_x)
        }, |a, b| {
            let (even, odd) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            (_mm256_permute2f128_ps(even, odd, 0x20), _mm256_permute2f128_ps(even, odd, 0x31))
        }
    );
    vector!(
        /// 4 f64 of AVX2.
        F64x4(__m256d), f64, 4, _mm256_set1_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_stream_pd, _mm256_add_pd,
        _mm256_fmadd_pd,
        |x, o| {
            let greater = _mm256_cmp_pd::<_CMP_GT_OQ>(x, o);
            let is_x = _mm256_or_pd(greater, _mm256_cmp_pd::<_CMP_UNORD_Q>(x, x));
            _mm256_blendv_pd(o, x, is_x)
        }, |a, b| {
            let (even, odd) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
            (_mm256_permute2f128_pd(even, odd, 0x20), _mm256_permute2f128_pd(even, odd, 0x31))
        }
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_max_is_that_of_numbers() {
        /// The vector's answers and the numbers' own, as text: it tells -0 from 0.
        unsafe fn check<V: Simd>() {
            let ends = [f64::NAN, 0.0, -0.0, 1.5, -1.5, f64::INFINITY];
            for x in ends {
                for o in ends {
                    let (x, o) = (V::T::of(x), V::T::of(o));
                    let mut got = [V::T::ZERO; 16];
                    // SAFETY: the caller's CPU has the vector; no vector exceeds 16 lanes.
                    unsafe { V::splat(x).nan_max(V::splat(o)).store(got.as_mut_ptr()) };
                    let expected = format!("{:?}", x.nan_max(o));
                    assert!(got[..V::LANES].iter().all(|g| format!("{g:?}") == expected));
                }
            }
        }
        // SAFETY: each level's vectors where it is available.
        unsafe {
            check::<Portable<f32>>();
            check::<Portable<f64>>();
            #[cfg(target_arch = "x86_64")]
            for level in Level::available() {
                match level {
                    Level::Portable => {}
                    Level::Avx2 => {
                        check::<F32x8>();
                        check::<F64x4>();
                    }
                    Level::Avx512 => {
                        check::<F32x16>();
                        check::<F64x8>();
                    }
                }
            }
        }
    }
}
