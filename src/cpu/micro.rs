//! The innermost loops: tiles of a product held in registers, and the copies that feed them.
//!
//! All convolutions and matrix products end here. An operand is first copied into a scratch
//! where its rows (pixels) lie [`DEPTH`] elements apart: the stride is a constant of the
//! compiled code, which a run-time stride would slow down by a third.
use super::simd::{Level, Portable, Simd};
use super::slide::{Slide, slides};
use crate::dtype::Real;

/// Elements between the rows of a scratch, and the most that one row holds.
pub const DEPTH: usize = 32;

/// The most elements of a product's sum between two visits of its result.
pub const SUM: usize = 256;

/// Elements between the rows of a product's tile: a constant, so that they are reached from one
/// pointer, and no power of two, or they would fall on the same few places of a cache.
pub const ROW: usize = SUM + 16;

/// How A lies in memory for a product's kernel: packed in rows [`ROW`] apart,
pub const PACKED: usize = 0;
/// the rows side by side for each k,
pub const BESIDE: usize = 1;
/// or in rows as far apart as the matrix has them.
pub const IN_PLACE: usize = 2;

/// Vectors side by side in a tile: a panel of the other operand is this many vectors wide.
pub const VECTORS: usize = 2;

/// A stretch of the summation: `len` elements of every row, from `offset` on.
#[derive(Clone, Copy, Debug)]
pub struct Term {
    /// Elements from the tile's first row.
    pub offset: usize,
    /// Elements to sum over, at most [`DEPTH`].
    pub len: usize,
}

/// What a tile starts from.
#[derive(Clone, Copy)]
pub enum Start<T> {
    /// The vectors at this address, in every row.
    Bias(*const T),
    /// What the result holds.
    Load,
}

/// c\[rows\[p\] + j\] (+)= sum over terms and k of a\[offset + p * DEPTH + k\] * b\[k\]\[j\]; b
/// lies as the terms one after another, a row of vectors for each k.
pub struct Tile<'a, T> {
    /// The scratch, at the tile's first row.
    pub a: *const T,
    /// What to sum over.
    pub terms: &'a [Term],
    /// The packed panel.
    pub b: *const T,
    /// What to add to.
    pub start: Start<T>,
    /// The result.
    pub c: *mut T,
    /// Where each row of the result begins.
    pub rows: &'a [usize],
    /// Whether the result is max(sum, 0): for the last visit of an op that ends with ReLU, while
    /// the sums are still in registers.
    pub relu: bool,
}

/// c\[p * c_stride + j\] = start + sum over k < sum of a\[p, k\] * b\[k * b_stride + j\] for P
/// rows. Those of A lie [`ROW`] apart ([`PACKED`]), side by side for each k ([`BESIDE`]), as they
/// come without a transposition, or where they are ([`IN_PLACE`]). A single loop runs over the sum:
/// leaving an inner loop every 32 elements would be mispredicted, a twentieth again.
pub struct Product<T> {
    /// A tile of A.
    pub a: *const T,
    /// Elements between the k of a tile whose rows lie side by side, or between rows in place.
    pub a_stride: usize,
    /// The panel.
    pub b: *const T,
    /// Elements between the rows of the panel.
    pub b_stride: usize,
    /// What to ask for into L2 meanwhile: a cache line for every [`STEP`] elements of the sum, and
    /// how many elements apart they lie. They need not be valid.
    pub ask: (*const T, usize),
    /// Elements to sum over, at most [`SUM`].
    pub sum: usize,
    /// What to add to; nothing is zero.
    pub start: Option<Start<T>>,
    /// The result.
    pub c: *mut T,
    /// Elements between the rows of the result.
    pub c_stride: usize,
    /// Whether the result is max(sum, 0).
    pub relu: bool,
    /// Whether the result is written past the caches: it is aligned to the vectors and not loaded.
    pub stream: bool,
}

/// acc\[i\]\[j\] += sum over segments s and pixels p of
/// a\[s * stride + p * DEPTH + i\] * b\[s * pixels + p\]\[j\].
pub struct Outer<T> {
    /// The scratch, at the first pixel and channel.
    pub a: *const T,
    /// Elements of `a` between segments.
    pub stride: usize,
    /// Number of segments.
    pub segments: usize,
    /// Pixels of a segment.
    pub pixels: usize,
    /// A row of vectors for each pixel.
    pub b: *const T,
    /// The sums, a row of vectors for each i.
    pub acc: *mut T,
}

/// `rows` rows of `vectors` whole vectors, copied.
pub struct Copy<T> {
    /// The source.
    pub from: *const T,
    /// Elements between the source's rows.
    pub from_stride: usize,
    /// The destination.
    pub to: *mut T,
    /// Elements between the destination's rows.
    pub to_stride: usize,
    /// Vectors a row.
    pub vectors: usize,
    /// Number of rows.
    pub rows: usize,
}

/// A kernel of [`Tile`].
pub type TileKernel<T> = unsafe fn(&Tile<T>);
/// A kernel of [`Product`].
pub type ProductKernel<T> = unsafe fn(&Product<T>);
/// A kernel of [`Outer`].
pub type OuterKernel<T> = unsafe fn(&Outer<T>);

/// The kernels of one level for one element type; all need valid pointers and that level's CPU.
pub struct Micro<T: 'static> {
    /// Elements of a vector.
    pub lanes: usize,
    /// The kernels of a tile by vectors - 1 and rows - 1.
    pub tile: [&'static [TileKernel<T>]; VECTORS],
    /// The kernels of a product by the layout of A, vectors - 1 and rows - 1.
    pub product: [[&'static [ProductKernel<T>]; VECTORS]; 3],
    /// The kernels of an outer product by vectors - 1 and rows - 1.
    pub outer: [&'static [OuterKernel<T>]; VECTORS],
    /// The kernels of depthwise convolution.
    pub slide: Slide<T>,
    /// Copies rows.
    pub copy: unsafe fn(&Copy<T>),
    /// Transposes a block of lanes x lanes, of which it writes `rows` rows.
    pub transpose: unsafe fn(&Copy<T>),
}

impl<T: 'static> Micro<T> {
    /// The most rows of a tile.
    pub fn rows(&self) -> usize {
        self.tile[0].len()
    }

    /// The width of a panel, in elements.
    pub fn width(&self) -> usize {
        VECTORS * self.lanes
    }

    /// How many vectors hold the last `columns` columns, at most a panel.
    pub fn vectors(&self, columns: usize) -> usize {
        columns.div_ceil(self.lanes).min(VECTORS)
    }
}

/// The rows of a tile's result, or what it starts from.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
unsafe fn start<V: Simd, const P: usize, const N: usize>(t: &Tile<V::T>) -> [[V; N]; P] {
    debug_assert!(t.rows.len() >= P);
    // SAFETY: the caller gives pointers valid for P rows and N vectors.
    unsafe {
        let mut acc = [[V::splat(V::T::ZERO); N]; P];
        for p in 0..P {
            let from = match t.start {
                Start::Bias(bias) => bias,
                Start::Load => t.c.add(*t.rows.get_unchecked(p)).cast_const(),
            };
            acc[p] = row(from);
        }
        acc
    }
}

/// N vectors.
#[inline(always)]
unsafe fn row<V: Simd, const N: usize>(from: *const V::T) -> [V; N] {
    // SAFETY: the caller gives N readable vectors.
    unsafe {
        let mut row = [V::splat(V::T::ZERO); N];
        for (j, v) in row.iter_mut().enumerate() {
            *v = V::load(from.add(j * V::LANES));
        }
        row
    }
}

/// One step of the sums: the numbers at `a(0)` to `a(P - 1)` times the N vectors at `b`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
pub(super) unsafe fn step<V: Simd, const P: usize, const N: usize>(
    acc: &mut [[V; N]; P],
    b: *const V::T,
    a: impl Fn(usize) -> *const V::T,
) {
    // SAFETY: the caller gives N readable vectors and P numbers.
    unsafe {
        let row: [V; N] = row(b);
        for p in 0..P {
            let x = V::splat(*a(p));
            for j in 0..N {
                acc[p][j] = x.mul_add(row[j], acc[p][j]);
            }
        }
    }
}

/// Write a tile's rows. By indices: an iterator over all sums would keep them in memory throughout
/// the tile.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
unsafe fn finish<V: Simd, const P: usize, const N: usize>(t: &Tile<V::T>, acc: [[V; N]; P]) {
    // SAFETY: the caller gives pointers valid for P rows and N vectors.
    unsafe {
        for p in 0..P {
            let to = t.c.add(*t.rows.get_unchecked(p));
            for j in 0..N {
                let mut v = acc[p][j];
                if t.relu {
                    v = v.nan_max(V::splat(V::T::ZERO));
                }
                v.store(to.add(j * V::LANES));
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
unsafe fn tile<V: Simd, const P: usize, const N: usize>(t: &Tile<V::T>) {
    // SAFETY: the caller gives pointers valid for P rows, N vectors and all terms.
    unsafe {
        let mut acc: [[V; N]; P] = start(t);
        let mut b = t.b;
        for term in t.terms {
            let a = t.a.add(term.offset);
            for k in 0..term.len {
                step(
                    &mut acc,
                    b,
                    #[inline(always)]
                    |p| a.add(p * DEPTH + k),
                );
                b = b.add(N * V::LANES);
            }
        }
        finish(t, acc);
    }
}

/// Ask for the cache line at `p`, which need not be valid, to come into L1, or into L2 alone.
#[inline(always)]
pub(super) fn prefetch<T, const L2: bool>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it reads nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        if L2 {
            _mm_prefetch::<_MM_HINT_T1>(p.cast());
        } else {
            _mm_prefetch::<_MM_HINT_T0>(p.cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Bytes of a cache line.
pub const LINE: usize = 64;
/// Elements of the summation that a product's loop takes at once. Measured: a loop of 4 is slower by
/// a twentieth, too long for the CPU to repeat it at full speed, one of 1 has too much beside it.
pub const STEP: usize = 2;

#[inline(always)]
#[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
unsafe fn product<V: Simd, const P: usize, const N: usize, const LIE: usize>(t: &Product<V::T>) {
    // SAFETY: the caller gives pointers valid for P rows, N vectors and the sum.
    unsafe {
        // a C that is added to is needed at the end: asked for now, it comes while the sums are made
        let load = matches!(t.start, Some(Start::Load));
        for p in 0..if load { P } else { 0 } {
            prefetch::<_, false>(t.c.add(p * t.c_stride));
            prefetch::<_, false>(t.c.add(p * t.c_stride + N * V::LANES - 1));
        }
        let mut acc = [[V::splat(V::T::ZERO); N]; P];
        // A's elements between rows, and between the k of a row
        let (apart, along) = match LIE {
            PACKED => (ROW, 1),
            BESIDE => (1, t.a_stride),
            _ => (t.a_stride, 1),
        };
        let (mut a, mut b, (mut ask, next)) = (t.a, t.b, t.ask);
        // rows in place have a pointer each, of which the compiler must not know that they are as far
        // apart: it would compute each from the one before, and have no registers left for A
        let (mut rows, mut at) = ([t.a; P], 0);
        if LIE == IN_PLACE {
            for p in 0..P {
                rows[p] = std::hint::black_box(t.a.wrapping_add(p * apart));
            }
        }
        // A's lines lie as they are read, so that the CPU itself fetches them from L2 in time
        for _ in 0..t.sum / STEP {
            for k in 0..STEP {
                step(
                    &mut acc,
                    b,
                    #[inline(always)]
                    |p| match LIE {
                        IN_PLACE => rows[p].add(at + k),
                        _ => a.add(p * apart + k * along),
                    },
                );
                b = b.add(t.b_stride);
            }
            prefetch::<_, true>(ask);
            // after the last there may be no memory
            (a, ask) = (a.wrapping_add(STEP * along), ask.wrapping_add(next));
            at += STEP;
        }
        for k in 0..t.sum % STEP {
            step(
                &mut acc,
                b,
                #[inline(always)]
                |p| match LIE {
                    IN_PLACE => rows[p].add(at + k),
                    _ => a.add(p * apart + k * along),
                },
            );
            b = b.add(t.b_stride);
        }
        let (start, stride) = match t.start {
            Some(Start::Bias(bias)) => (bias, 0),
            Some(Start::Load) => (t.c.cast_const(), t.c_stride),
            None => (std::ptr::null(), 0),
        };
        if !start.is_null() {
            for p in 0..P {
                let row: [V; N] = row(start.add(p * stride));
                for j in 0..N {
                    acc[p][j] = acc[p][j].add(row[j]);
                }
            }
        }
        if t.relu {
            for p in 0..P {
                for j in 0..N {
                    acc[p][j] = acc[p][j].nan_max(V::splat(V::T::ZERO));
                }
            }
        }
        for p in 0..P {
            for j in 0..N {
                let c = t.c.add(p * t.c_stride + j * V::LANES);
                if t.stream {
                    acc[p][j].stream(c);
                } else {
                    acc[p][j].store(c);
                }
            }
        }
    }
}

/// Add to the sums in memory.
#[inline(always)]
pub(super) unsafe fn add_to<V: Simd, const P: usize, const N: usize>(
    to: *mut V::T,
    acc: [[V; N]; P],
) {
    for (i, row) in acc.iter().enumerate() {
        for (j, v) in row.iter().enumerate() {
            // SAFETY: the caller gives P rows of N vectors.
            unsafe {
                let sum = to.add((i * N + j) * V::LANES);
                v.add(V::load(sum)).store(sum);
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
unsafe fn outer<V: Simd, const P: usize, const N: usize>(o: &Outer<V::T>) {
    // SAFETY: the caller gives pointers valid for all pixels, P rows and N vectors.
    unsafe {
        let mut acc = [[V::splat(V::T::ZERO); N]; P];
        let mut b = o.b;
        for s in 0..o.segments {
            let mut a = o.a.add(s * o.stride);
            for _ in 0..o.pixels {
                step(
                    &mut acc,
                    b,
                    #[inline(always)]
                    |i| a.add(i),
                );
                (a, b) = (a.add(DEPTH), b.add(N * V::LANES));
            }
        }
        add_to(o.acc, acc);
    }
}

#[inline(always)]
unsafe fn copy<V: Simd>(c: &Copy<V::T>) {
    // SAFETY: the caller gives pointers valid for all rows and vectors.
    unsafe {
        // most rows are so short that a loop over their vectors would cost more than the copy
        match c.vectors {
            1 => copy_rows::<V>(c, 1),
            2 => copy_rows::<V>(c, 2),
            n => copy_rows::<V>(c, n),
        }
    }
}

#[inline(always)]
unsafe fn copy_rows<V: Simd>(c: &Copy<V::T>, vectors: usize) {
    let (mut from, mut to) = (c.from, c.to);
    for _ in 0..c.rows {
        for j in 0..vectors {
            let j = j * V::LANES;
            // SAFETY: the caller gives pointers valid for all rows and vectors.
            unsafe { V::load(from.add(j)).store(to.add(j)) };
        }
        // beyond the last row there may be no memory
        from = from.wrapping_add(c.from_stride);
        to = to.wrapping_add(c.to_stride);
    }
}

/// By perfect shuffles: interleaving rows i and i + LANES / 2 rotates the bits of (row, column)
/// by one place; log2(LANES) times exchange row and column.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
unsafe fn transpose<V: Simd>(c: &Copy<V::T>) {
    // SAFETY: the caller gives pointers valid for LANES rows read and c.rows rows written.
    unsafe {
        let mut m = [V::splat(V::T::ZERO); 16];
        for i in 0..V::LANES {
            let from = c.from.add(i * c.from_stride);
            m[i] = V::load(from);
            // whoever transposes goes on along the rows, more streams than the CPU recognizes; into
            // L2, since rows a power of two apart would drive each other out of L1
            prefetch::<_, true>(from.wrapping_add(8 * LINE / size_of::<V::T>()));
        }
        for _ in 0..V::LANES.ilog2() {
            let old = m;
            for i in 0..V::LANES / 2 {
                (m[2 * i], m[2 * i + 1]) = old[i].zip(old[i + V::LANES / 2]);
            }
        }
        for i in 0..V::LANES {
            if i < c.rows {
                m[i].store(c.to.add(i * c.to_stride));
            }
        }
    }
}

/// Work of its own kind that is compiled for each vector.
pub trait Job<T> {
    /// Do it; always inlined, so that it is compiled with the instruction set of its caller.
    ///
    /// # Safety
    /// The CPU has the vector's instruction set, and what the job itself asks for.
    unsafe fn run<V: Simd<T = T>>(self);
}

/// f32 or f64: what the kernels are compiled for.
pub trait Kernel: Real {
    /// The kernels of a level, or the portable ones where the machine lacks it.
    fn micro(level: Level) -> &'static Micro<Self>;

    /// Run a job with the vectors of a level, or the portable ones where the machine lacks it.
    ///
    /// # Safety
    /// What the job asks for.
    unsafe fn job<J: Job<Self>>(level: Level, job: J);
}

/// The table of one vector type, its functions compiled with the vector's instruction set.
macro_rules! table {
    ($name:ident, $t:ty, $v:ty, $(#[$features:meta])? [$($p:literal)*] $($slide:tt)*) => {
        static $name: Micro<$t> = {
            // SAFETY of the bodies: the table's contract is the functions' own.
            #[allow(clippy::undocumented_unsafe_blocks)]
            $(#[$features])?
            unsafe fn tiles<const P: usize, const N: usize>(t: &Tile<$t>) {
                unsafe { tile::<$v, P, N>(t) }
            }
            #[allow(clippy::undocumented_unsafe_blocks)]
            $(#[$features])?
            unsafe fn products<const P: usize, const N: usize, const L: usize>(t: &Product<$t>) {
                unsafe { product::<$v, P, N, L>(t) }
            }
            #[allow(clippy::undocumented_unsafe_blocks)]
            $(#[$features])?
            unsafe fn outers<const P: usize, const N: usize>(o: &Outer<$t>) {
                unsafe { outer::<$v, P, N>(o) }
            }
            #[allow(clippy::undocumented_unsafe_blocks)]
            $(#[$features])?
            unsafe fn copies(c: &Copy<$t>) {
                unsafe { copy::<$v>(c) }
            }
            #[allow(clippy::undocumented_unsafe_blocks)]
            $(#[$features])?
            unsafe fn transposes(c: &Copy<$t>) {
                unsafe { transpose::<$v>(c) }
            }
            Micro {
                lanes: <$v as Simd>::LANES,
                tile: [&[$(tiles::<$p, 1>),*], &[$(tiles::<$p, 2>),*]],
                product: [
                    [&[$(products::<$p, 1, PACKED>),*], &[$(products::<$p, 2, PACKED>),*]],
                    [&[$(products::<$p, 1, BESIDE>),*], &[$(products::<$p, 2, BESIDE>),*]],
                    [&[$(products::<$p, 1, IN_PLACE>),*], &[$(products::<$p, 2, IN_PLACE>),*]],
                ],
                outer: [&[$(outers::<$p, 1>),*], &[$(outers::<$p, 2>),*]],
                copy: copies,
                transpose: transposes,
                slide: slides!($t, $v, [$($features)?] $($slide)*),
            }
        };
    };
}

macro_rules! kernel {
    ($t:ty, $wide:ident, $narrow:ident) => {
        impl Kernel for $t {
            fn micro(level: Level) -> &'static Micro<Self> {
                // accumulators, a panel's row and a broadcast fill 32, 16 and 16 registers
                table!(PORTABLE, $t, Portable<$t>, [1 2 3 4]
                    [4] [1: 1 2 3 4] [2: 1 2 3 4] [3: 1 2 3] [4: 1 2] [5: 1 2] [6: 1] [7: 1]);
                #[cfg(target_arch = "x86_64")]
                {
                    use super::simd::{$narrow, $wide};
                    table!(AVX2, $t, $narrow, #[target_feature(enable = "avx2,fma")] [1 2 3 4 5 6]
                        [8 4] [1: 1 2 3 4] [2: 1 2 3 4] [3: 1 2 3] [4: 1 2] [5: 1 2] [6: 1] [7: 1]);
                    table!(AVX512, $t, $wide, #[target_feature(enable = "avx512f")]
                        [1 2 3 4 5 6 7 8 9 10 11 12]
                        [16 12 8 4] [1: 1 2 3 4] [2: 1 2 3 4] [3: 1 2 3 4] [4: 1 2 3 4]
                        [5: 1 2 3] [6: 1 2 3] [7: 1 2 3]);
                    match level {
                        Level::Avx512 if level.is_available() => &AVX512,
                        Level::Avx2 if level.is_available() => &AVX2,
                        _ => &PORTABLE,
                    }
                }
                #[cfg(not(target_arch = "x86_64"))]
                {
                    let _ = level;
                    &PORTABLE
                }
            }

            // SAFETY of the bodies: the vectors are of the features or the level found available;
            // the rest is the caller's promise.
            #[allow(clippy::undocumented_unsafe_blocks)]
            unsafe fn job<J: Job<$t>>(level: Level, job: J) {
                #[cfg(target_arch = "x86_64")]
                {
                    use super::simd::{$narrow, $wide};
                    #[target_feature(enable = "avx2,fma")]
                    unsafe fn narrow<J: Job<$t>>(job: J) {
                        unsafe { job.run::<$narrow>() }
                    }
                    #[target_feature(enable = "avx512f")]
                    unsafe fn wide<J: Job<$t>>(job: J) {
                        unsafe { job.run::<$wide>() }
                    }
                    match level {
                        Level::Avx512 if level.is_available() => return unsafe { wide(job) },
                        Level::Avx2 if level.is_available() => return unsafe { narrow(job) },
                        _ => {}
                    }
                }
                let _ = level;
                unsafe { job.run::<Portable<$t>>() }
            }
        }
    };
}
kernel!(f32, F32x16, F32x8);
kernel!(f64, F64x8, F64x4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transpose_exchanges_rows_and_columns() {
        fn check<T: Kernel>() {
            for level in Level::available() {
                let micro = T::micro(level);
                let n = micro.lanes;
                let from: Vec<T> = (0..n * n).map(|i| T::of(i as f64)).collect();
                let mut to = vec![T::ZERO; n * n];
                let block = Copy {
                    from: from.as_ptr(),
                    from_stride: n,
                    to: to.as_mut_ptr(),
                    to_stride: n,
                    vectors: 1,
                    rows: n - 1,
                };
                // SAFETY: both hold n x n elements, and the level is available.
                unsafe { (micro.transpose)(&block) };
                for i in 0..n * n {
                    let expected = if i / n < n - 1 {
                        from[i % n * n + i / n]
                    } else {
                        T::ZERO
                    };
                    assert_eq!(to[i], expected, "{level:?}");
                }
            }
        }
        check::<f32>();
        check::<f64>();
    }
}
