//! The instruction sets that loops and kernels are compiled for, and which of them runs.

use std::sync::OnceLock;

/// An instruction set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Whatever the target guarantees; the compiler vectorizes.
    Portable,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// 512-bit vectors.
    Avx512,
}

impl Level {
    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let (avx2, avx512) = (
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq"),
        );
        #[cfg(not(target_arch = "x86_64"))]
        let (avx2, avx512) = (false, false);
        match self {
            Level::Portable => true,
            Level::Avx2 => avx2,
            Level::Avx512 => avx2 && avx512,
        }
    }

    /// The levels that this machine can run, the slowest first.
    pub fn available() -> impl Iterator<Item = Level> {
        [Level::Portable, Level::Avx2, Level::Avx512]
            .into_iter()
            .filter(|l| l.is_available())
    }

    /// [`run`] at this level, or at [`Level::Portable`] where the machine has not got it.
    #[inline(always)]
    pub fn run<R>(self, f: impl FnOnce() -> R) -> R {
        let usable = if self.is_available() {
            self
        } else {
            Level::Portable
        };
        // SAFETY: the machine has that level.
        unsafe { usable.call(f) }
    }

    /// # Safety
    /// The machine has this level.
    #[inline(always)]
    unsafe fn call<R>(self, f: impl FnOnce() -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            fn avx512<R>(f: impl FnOnce() -> R) -> R {
                f()
            }
            #[target_feature(enable = "avx2,fma")]
            fn avx2<R>(f: impl FnOnce() -> R) -> R {
                f()
            }
            match self {
                // SAFETY: the caller's promise.
                Level::Avx512 => return unsafe { avx512(f) },
                // SAFETY: the caller's promise.
                Level::Avx2 => return unsafe { avx2(f) },
                Level::Portable => {}
            }
        }
        f()
    }
}

/// The best level of this machine, found once; `COTANGENT_SIMD=avx2` or `portable` lowers it.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let wanted = match std::env::var("COTANGENT_SIMD").as_deref() {
            Ok("portable") => Level::Portable,
            Ok("avx2") => Level::Avx2,
            _ => Level::Avx512,
        };
        let usable = Level::available().filter(|&l| l <= wanted);
        usable.last().unwrap_or(Level::Portable)
    })
}

/// Call `f` compiled for the best level, so that its plain loops become the widest vectors: the
/// crate itself is compiled for any x86-64, which has 128-bit ones.
///
/// A function gets the instructions of another only where it is inlined into it. So the closure,
/// and all that its loops call, is `#[inline(always)]`, and loops are `for` loops, since std's
/// `for_each` may stay a call. Results are the same bits at all levels:
/// the compiler neither fuses nor reorders float arithmetic by itself, and `mul_add` is fused at all.
#[inline(always)]
pub fn run<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: `level` gives what the machine has.
    unsafe { level().call(f) }
}

/// [`std::array::from_fn`], and what `map` of an array does, for what is called by [`run`]: those of
/// std may stay calls, of functions without the level's instructions.
#[inline(always)]
pub fn array<T: Copy + Default, const N: usize>(f: impl Fn(usize) -> T) -> [T; N] {
    let mut a = [T::default(); N];
    for (i, a) in a.iter_mut().enumerate() {
        *a = f(i);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_give_the_same_bits() {
        let x: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.37).sin() * 30.0).collect();
        let at = |level: Level| {
            let mut y = vec![0f32; x.len()];
            let mut sums = [0f32; 16];
            level.run(
                #[inline(always)]
                || {
                    for (y, &x) in y.iter_mut().zip(&x) {
                        // what a compiler would fuse if it were let
                        *y = (x * 1.7 + 0.3) / (x * x + 0.1) - x.sqrt();
                    }
                    for y in x.chunks_exact(16) {
                        for (s, &y) in sums.iter_mut().zip(y) {
                            *s += y * y;
                        }
                    }
                },
            );
            y.extend(sums);
            y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        for level in Level::available() {
            assert_eq!(at(level), at(Level::Portable), "{level:?}");
        }
    }
}
