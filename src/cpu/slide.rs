//! Depthwise convolution's innermost loops: windows that slide along a row.
//!
//! A slab holds one vector of channels of each pixel, and the pixels that neighbouring outputs
//! read side by side. So a loaded pixel meets all the taps of a kernel's row while it is in a
//! register: a load feeds up to seven multiply-adds, where one load for each would be as slow as
//! the memory.
use super::simd::Simd;
use crate::dtype::Real;

/// The most taps of a run.
pub const TAPS: usize = 7;

/// Neighbouring taps of one row of the kernel: tap t of output pixel p reads the slab's vector
/// p + t from `offset` on.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Elements from the first output pixel's place.
    pub offset: usize,
    /// Taps, at most [`TAPS`].
    pub taps: usize,
}

/// c\[p\]\[j\] = bias\[j\] + sum over runs and their taps t of
/// a\[offset + (p + t) * lanes + j\] * w\[t\]\[j\]; w lies as the runs one after another.
pub struct Strip<'a, T> {
    /// The slab, at the first output pixel.
    pub a: *const T,
    /// What to sum over.
    pub runs: &'a [Run],
    /// A vector for each tap.
    pub w: *const T,
    /// A vector.
    pub bias: *const T,
    /// The result.
    pub c: *mut T,
    /// Elements between the result's pixels.
    pub step: usize,
    /// Pixels to write. The kernel computes all of its own, from whatever lies in the slab.
    pub pixels: usize,
    /// Whether the result is max(sum, 0).
    pub relu: bool,
}

/// acc\[r\]\[t\]\[j\] += sum over lines l and their pixels p of
/// a\[offsets\[r\] + l * line + (p + t) * lanes + j\] * b\[l * pixels + p\]\[j\].
pub struct Lines<'a, T> {
    /// The slab, at the first output pixel.
    pub a: *const T,
    /// Where each run begins.
    pub offsets: &'a [usize],
    /// Elements of the slab from line to line.
    pub line: usize,
    /// Lines.
    pub lines: usize,
    /// Pixels of a line.
    pub pixels: usize,
    /// A vector for each pixel.
    pub b: *const T,
    /// The sums, a vector for each tap of each run.
    pub acc: *mut T,
}

/// A kernel of [`Strip`].
pub type StripKernel<T> = unsafe fn(&Strip<T>);
/// A kernel of [`Lines`].
pub type LinesKernel<T> = unsafe fn(&Lines<T>);

/// The kernels of one vector; all need valid pointers and that vector's CPU.
pub struct Slide<T: 'static> {
    /// The kernels of a strip with their pixels, the widest first.
    pub strip: &'static [(usize, StripKernel<T>)],
    /// The kernels of lines by taps - 1 and runs - 1.
    pub lines: [&'static [LinesKernel<T>]; TAPS],
}

/// `$body` for each literal in turn, written out: the compiler leaves loops of that length rolled
/// and what they index in memory.
macro_rules! unrolled {
    (|$i:ident| $body:block $($literal:literal)*) => {$({
        const $i: usize = $literal;
        $body
    })*};
}

#[inline(always)]
pub unsafe fn strip<V: Simd, const P: usize>(s: &Strip<V::T>) {
    // SAFETY: the caller gives pointers valid for P pixels of all runs.
    unsafe {
        let mut acc = [V::load(s.bias); P];
        let mut w = s.w;
        for run in s.runs {
            let a = s.a.add(run.offset);
            // the choice within the loop: the sums stay in registers from run to run
            match run.taps {
                1 => slide::<V, P, 1>(a, w, &mut acc),
                2 => slide::<V, P, 2>(a, w, &mut acc),
                3 => slide::<V, P, 3>(a, w, &mut acc),
                4 => slide::<V, P, 4>(a, w, &mut acc),
                5 => slide::<V, P, 5>(a, w, &mut acc),
                6 => slide::<V, P, 6>(a, w, &mut acc),
                _ => slide::<V, P, 7>(a, w, &mut acc),
            }
            w = w.add(run.taps * V::LANES);
        }
        if s.relu {
            for v in &mut acc {
                *v = v.nan_max(V::splat(V::T::ZERO));
            }
        }
        if s.pixels == P {
            for (p, v) in acc.into_iter().enumerate() {
                v.store(s.c.add(p * s.step));
            }
        } else {
            for (p, v) in acc.into_iter().enumerate() {
                if p < s.pixels {
                    v.store(s.c.add(p * s.step));
                }
            }
        }
    }
}

/// One run: each pixel of the slab is loaded once and feeds the outputs that it reaches.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
unsafe fn slide<V: Simd, const P: usize, const K: usize>(
    a: *const V::T,
    w: *const V::T,
    acc: &mut [V; P],
) {
    // SAFETY: the caller gives P + K - 1 pixels and K taps.
    unsafe {
        let mut weight = [V::splat(V::T::ZERO); K];
        for t in 0..K {
            weight[t] = V::load(w.add(t * V::LANES));
        }
        unrolled!(|I| {
            if I < P + K - 1 {
                let x = V::load(a.add(I * V::LANES));
                for t in 0..K {
                    let p = I.wrapping_sub(t);
                    if p < P {
                        acc[p] = x.mul_add(weight[t], acc[p]);
                    }
                }
            }
        } 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21);
    }
}

/// Pixels of a line taken at once.
const AT_ONCE: usize = 4;

#[inline(always)]
#[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
pub unsafe fn lines<V: Simd, const K: usize, const R: usize>(s: &Lines<V::T>) {
    debug_assert!(s.offsets.len() >= R);
    // SAFETY: the caller gives pointers valid for all lines and pixels, R runs and K taps.
    unsafe {
        let mut acc = [[V::splat(V::T::ZERO); K]; R];
        let mut b = s.b;
        for l in 0..s.lines {
            let mut a = [s.a; R];
            for r in 0..R {
                a[r] = s.a.add(*s.offsets.get_unchecked(r) + l * s.line);
            }
            for _ in 0..s.pixels / AT_ONCE {
                few::<V, K, R, AT_ONCE>(&mut a, &mut b, &mut acc);
            }
            for _ in 0..s.pixels % AT_ONCE {
                few::<V, K, R, 1>(&mut a, &mut b, &mut acc);
            }
        }
        for r in 0..R {
            for t in 0..K {
                let sum = s.acc.add((r * K + t) * V::LANES);
                acc[r][t].add(V::load(sum)).store(sum);
            }
        }
    }
}

/// The next P pixels of a line.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
unsafe fn few<V: Simd, const K: usize, const R: usize, const P: usize>(
    a: &mut [*const V::T; R],
    b: &mut *const V::T,
    acc: &mut [[V; K]; R],
) {
    // SAFETY: the caller gives P pixels of b and P + K - 1 of each run.
    unsafe {
        let mut y = [V::splat(V::T::ZERO); P];
        for p in 0..P {
            y[p] = V::load(b.add(p * V::LANES));
        }
        *b = b.add(P * V::LANES);
        for r in 0..R {
            unrolled!(|I| {
                if I < P + K - 1 {
                    let x = V::load(a[r].add(I * V::LANES));
                    for t in 0..K {
                        let p = I.wrapping_sub(t);
                        if p < P {
                            acc[r][t] = x.mul_add(y[p], acc[r][t]);
                        }
                    }
                }
            } 0 1 2 3 4 5 6 7 8 9);
            a[r] = a[r].add(P * V::LANES);
        }
    }
}

/// The [`Slide`] of one vector type, its functions compiled with the vector's instruction set:
/// the pixels of its strips, and for each number of taps the numbers of runs.
macro_rules! slides {
    ($t:ty, $v:ty, [$($features:meta)?] [$($p:literal)*] $([$k:literal: $($r:literal)*])*) => {{
        use $crate::cpu::slide::{Lines, Slide, Strip, lines, strip};
        // SAFETY of the bodies: the table's contract is the functions' own.
        #[allow(clippy::undocumented_unsafe_blocks)]
        $(#[$features])?
        unsafe fn strips<const P: usize>(s: &Strip<$t>) {
            unsafe { strip::<$v, P>(s) }
        }
        #[allow(clippy::undocumented_unsafe_blocks)]
        $(#[$features])?
        unsafe fn all_lines<const K: usize, const R: usize>(s: &Lines<$t>) {
            unsafe { lines::<$v, K, R>(s) }
        }
        Slide {
            strip: &[$(($p, strips::<$p>)),*],
            lines: [$(&[$(all_lines::<$k, $r>),*]),*],
        }
    }};
}
pub(super) use slides;
