//! Convolution of 1 x 1 taps, a product of a tall matrix, the pixels, with a small one, the weight.
//!
//! [`gemm`](super::gemm) copies both operands first, since it reads them many times. Here a pixel's
//! channels are read by one or two panels of the small matrix and lie side by side already: the
//! copy would cost as much as the product. So tiles read the pixels where they are, and ask for the
//! ones after next, as memory brings them no faster than they are multiplied. The sum over pixels
//! of the weight's gradient needs no order of its own either: each pixel adds the outer product of
//! its two rows.
//!
//! Tasks are cut by the shape alone and sums are added in a fixed order.
use rayon::prelude::*;

use super::gemm::{balanced, padded_bias};
use super::micro::{Job, Kernel, add_to, prefetch, step};
use super::scratch::Scratch;
use super::simd::{Level, Simd, fence};
use super::strided;
use crate::workers::Parallel;

/// Vectors side by side in a tile at most. With 8 rows 24 sums stay in registers, as many as 12 x 2
/// have, and a loaded number of the tall matrix serves three.
const WIDE: usize = 3;
/// Rows of the result that are made in L1 before they go to memory, as whole cache lines.
const BLOCK: usize = 16;
/// Elements of the small matrix at most: more would not stay in L2 beside what passes by.
const SMALL: usize = 5 << 12;
/// Columns of a product's result at most: two panels of 16 lanes.
const COLUMNS: usize = 96;
/// Pixels of the weight's gradient for which the sums stay in registers.
const PIXELS: usize = 64;
/// Pixels of a task of the weight's gradient at least, and tasks at most: each has its own sums.
const TASK: (usize, usize) = (512, 16);

/// Rows of a tile of vectors with so many lanes: 8 where a vector has 64 bytes and there are 32
/// registers, else 4.
const fn rows<T>(lanes: usize) -> usize {
    if lanes * size_of::<T>() == 64 { 8 } else { 4 }
}

/// What a task does, by tiles of P rows.
trait Tiled<T> {
    /// # Safety
    /// The slices have the sizes that their owner says, and `V` is of the machine.
    unsafe fn blocks<V: Simd<T = T>, const P: usize>(self);
}

/// The task with as many rows as the vectors allow.
struct ByRows<B>(B);

impl<T: Kernel, B: Tiled<T>> Job<T> for ByRows<B> {
    #[inline(always)]
    unsafe fn run<V: Simd<T = T>>(self) {
        // SAFETY: the caller's promise.
        unsafe {
            match rows::<T>(V::LANES) {
                8 => self.0.blocks::<V, 8>(),
                _ => self.0.blocks::<V, 4>(),
            }
        }
    }
}

/// Whether it pays: the small matrix is small, and there are tiles of pixels and channels.
pub(super) fn pays(pixels: usize, ci: usize, co: usize) -> bool {
    ci * co <= SMALL && ci.min(co) >= 8 && pixels >= 4 * BLOCK
}

/// Whether a product pays. A wider result is visited by more panels than one copy would have served.
pub(super) fn product_pays(m: usize, [n, k]: [usize; 2]) -> bool {
    n <= COLUMNS && pays(m, k, n)
}

/// Panels of at most WIDE vectors: start and length, in vectors.
fn panels(columns: usize, lanes: usize) -> Vec<(usize, usize)> {
    let vectors = columns.div_ceil(lanes);
    balanced(vectors, vectors.div_ceil(WIDE)).collect()
}

/// C = A B + bias for A \[m, k\] and C \[m, n\] without gaps and B \[k, n\] with any (row, column)
/// strides; with `relu` the greater of that and 0.
pub(super) fn product<T: Kernel>(
    level: Level,
    [n, k]: [usize; 2],
    a: &[T],
    b: &[T],
    (rs, cs): (usize, usize),
    (bias, relu): (Option<&[T]>, bool),
    c: &mut [T],
) {
    let (micro, m) = (T::micro(level), c.len() / n);
    assert_eq!((a.len(), c.len()), (m * k, m * n));
    let panels = panels(n, micro.lanes);
    let mut packed = Scratch::zeros(k * n.next_multiple_of(micro.lanes));
    for &(start, vectors) in &panels {
        let (first, width) = (start * micro.lanes, vectors * micro.lanes);
        let panel = packed[first * k..][..width * k].chunks_exact_mut(width);
        for (i, row) in panel.enumerate() {
            for (j, x) in row[..width.min(n - first)].iter_mut().enumerate() {
                *x = b[i * rs + (first + j) * cs];
            }
        }
    }
    let bias = padded_bias(bias, n, micro);
    let large = strided::is_large(c);
    let task = m.div_ceil(64).max(128).next_multiple_of(BLOCK);
    let strips = c.par_chunks_mut(task * n).zip(a.par_chunks(task * k));
    strips.each(|(c, a)| {
        let strip = Strip {
            size: [n, k],
            a,
            b: &packed,
            panels: &panels,
            bias: &bias,
            relu,
            large,
            c,
        };
        // SAFETY: the strip's slices have its sizes, checked above.
        unsafe { T::job(level, ByRows(strip)) };
    });
}

/// Some rows of a product.
struct Strip<'a, T> {
    size: [usize; 2],
    a: &'a [T],
    b: &'a [T],
    panels: &'a [(usize, usize)],
    bias: &'a [T],
    relu: bool,
    large: bool,
    c: &'a mut [T],
}

impl<T: Kernel> Tiled<T> for Strip<'_, T> {
    #[inline(always)]
    unsafe fn blocks<V: Simd<T = T>, const P: usize>(self) {
        let [n, k] = self.size;
        let mut made = Scratch::<T>::new(BLOCK * n + WIDE * V::LANES);
        let blocks = self.c.chunks_mut(BLOCK * n).zip(self.a.chunks(BLOCK * k));
        for (c, a) in blocks {
            let rows = c.len() / n;
            // a row's last vector may reach into the next row, whose first panel comes later
            for &(start, vectors) in self.panels.iter().rev() {
                let column = start * V::LANES;
                for row in (0..rows).step_by(P) {
                    let tile = Tile {
                        a: a[row * k..].as_ptr(),
                        k,
                        last: rows - row - 1,
                        b: self.b[column * k..].as_ptr(),
                        next: a.as_ptr().wrapping_add((row + BLOCK) * k),
                        bias: self.bias[column..].as_ptr(),
                        relu: self.relu,
                        c: made[row * n + column..].as_mut_ptr(),
                        n,
                    };
                    // SAFETY: `a` has the rows up to `last`, the panel is packed, and `made` has
                    // room for P rows and a panel beyond.
                    unsafe {
                        match vectors {
                            1 => tile.run::<V, P, 1>(),
                            2 => tile.run::<V, P, 2>(),
                            _ => tile.run::<V, P, WIDE>(),
                        }
                    }
                }
            }
            if self.large {
                strided::stream(&made[..c.len()], c);
            } else {
                c.copy_from_slice(&made[..c.len()]);
            }
        }
        fence();
    }
}

/// A tile of a product: P rows of A by a panel of B.
struct Tile<T> {
    a: *const T,
    k: usize,
    /// The last row there is: those beyond are computed as it is, for nobody.
    last: usize,
    b: *const T,
    /// As many rows as the tile's to be asked for.
    next: *const T,
    bias: *const T,
    relu: bool,
    c: *mut T,
    n: usize,
}

impl<T: Kernel> Tile<T> {
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
    unsafe fn run<V: Simd<T = T>, const P: usize, const N: usize>(self) {
        // SAFETY: the caller gives pointers valid for the rows up to the last and N vectors.
        unsafe {
            let mut bias = [V::splat(T::ZERO); N];
            let mut rows = [self.a; P];
            for j in 0..N {
                bias[j] = V::load(self.bias.add(j * V::LANES));
            }
            for p in 0..P {
                rows[p] = self.a.add(p.min(self.last) * self.k);
            }
            let (mut acc, mut b, mut next) = ([bias; P], self.b, self.next);
            for k in 0..self.k {
                step(
                    &mut acc,
                    b,
                    #[inline(always)]
                    |p| rows[p].add(k),
                );
                prefetch::<_, false>(next);
                (b, next) = (b.add(N * V::LANES), next.wrapping_add(P));
            }
            for p in 0..P {
                for j in 0..N {
                    if self.relu {
                        acc[p][j] = acc[p][j].nan_max(V::splat(T::ZERO));
                    }
                    acc[p][j].store(self.c.add(p * self.n + j * V::LANES));
                }
            }
        }
    }
}

/// dw \[co, ci\] = the sum over pixels of dy's row times x's, x \[m, ci\] and dy \[m, co\].
pub(super) fn weight_grad<T: Kernel>(
    level: Level,
    [ci, co]: [usize; 2],
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) {
    let (lanes, m) = (T::micro(level).lanes, x.len() / ci);
    assert_eq!((x.len(), dy.len(), dw.len()), (m * ci, m * co, ci * co));
    // groups of channels in, the last one beginning earlier where they are no multiple
    let rows = rows::<T>(lanes);
    let groups: Vec<usize> = (0..ci).step_by(rows).map(|g| g.min(ci - rows)).collect();
    let panels = panels(co, lanes);
    let size = groups.len() * rows * co.next_multiple_of(lanes);
    let (least, most) = TASK;
    let tasks: Vec<(usize, usize)> = balanced(m, (m / least).clamp(1, most)).collect();
    let mut sums = Scratch::<T>::zeros(tasks.len() * size);
    let parts = sums.par_chunks_mut(size).zip(&tasks);
    parts.with_max_len(1).each(|(sums, &(start, len))| {
        let part = Part {
            channels: [ci, co],
            x: &x[start * ci..][..len * ci],
            dy: &dy[start * co..][..len * co],
            groups: &groups,
            panels: &panels,
            sums,
        };
        // SAFETY: the slices have their sizes, checked above.
        unsafe { T::job(level, ByRows(part)) };
    });
    let (first, others) = sums.split_at_mut(size);
    for other in others.chunks_exact(size) {
        first.iter_mut().zip(other).for_each(|(s, x)| *s += *x);
    }
    // from [panel][group][row][column]
    let mut from = &first[..];
    for &(start, vectors) in &panels {
        let (column, width) = (start * lanes, vectors * lanes);
        for &group in &groups {
            let (sums, rest) = from.split_at(rows * width);
            from = rest;
            for (channel, sums) in (group..).zip(sums.chunks_exact(width)) {
                for (c, sum) in (column..co).zip(sums) {
                    dw[c * ci + channel] = *sum;
                }
            }
        }
    }
}

/// The sums over some pixels of the weight's gradient.
struct Part<'a, T> {
    channels: [usize; 2],
    x: &'a [T],
    dy: &'a [T],
    groups: &'a [usize],
    panels: &'a [(usize, usize)],
    sums: &'a mut [T],
}

impl<T: Kernel> Tiled<T> for Part<'_, T> {
    #[inline(always)]
    unsafe fn blocks<V: Simd<T = T>, const P: usize>(self) {
        let [ci, co] = self.channels;
        // rows of whole vectors
        let whole = co.next_multiple_of(V::LANES);
        let mut rows = Scratch::<T>::zeros(PIXELS * whole);
        let blocks = self.x.chunks(PIXELS * ci).zip(self.dy.chunks(PIXELS * co));
        for (x, dy) in blocks {
            for (to, from) in rows.chunks_exact_mut(whole).zip(dy.chunks_exact(co)) {
                strided::copy_short(from, &mut to[..co]);
            }
            let pixels = x.len() / ci;
            let mut sums = self.sums.as_mut_ptr();
            for &(start, vectors) in self.panels {
                for (g, &group) in self.groups.iter().enumerate() {
                    let outer = Outer {
                        x: x[group..].as_ptr(),
                        ci,
                        y: rows[start * V::LANES..].as_ptr(),
                        whole,
                        pixels,
                        next: x.as_ptr().wrapping_add(x.len() + g * P * pixels),
                        sums,
                    };
                    // SAFETY: each pixel has P channels from the group on and the panel's vectors;
                    // the sums are as many as panels and groups.
                    unsafe {
                        match vectors {
                            1 => outer.run::<V, P, 1>(),
                            2 => outer.run::<V, P, 2>(),
                            _ => outer.run::<V, P, WIDE>(),
                        }
                        sums = sums.add(P * vectors * V::LANES);
                    }
                }
            }
        }
    }
}

/// sums\[i\]\[j\] += the sum over pixels of x\[i\] y\[j\] for P channels in and N vectors out.
struct Outer<T> {
    x: *const T,
    ci: usize,
    y: *const T,
    whole: usize,
    pixels: usize,
    /// What to ask for, P numbers a pixel.
    next: *const T,
    sums: *mut T,
}

impl<T: Kernel> Outer<T> {
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
    unsafe fn run<V: Simd<T = T>, const P: usize, const N: usize>(self) {
        // SAFETY: the caller gives pointers valid for all pixels, P rows and N vectors.
        unsafe {
            let mut acc = [[V::splat(T::ZERO); N]; P];
            let (mut x, mut y, mut next) = (self.x, self.y, self.next);
            for _ in 0..self.pixels {
                step(
                    &mut acc,
                    y,
                    #[inline(always)]
                    |p| x.add(p),
                );
                prefetch::<_, false>(next);
                // beyond the last pixel there may be no memory
                (x, y) = (x.wrapping_add(self.ci), y.wrapping_add(self.whole));
                next = next.wrapping_add(P);
            }
            add_to(self.sums, acc);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conv::{ConvShape, tests::definition};
    use super::super::gemm::tests::{assert_close, numbers, tolerance};
    use super::*;
    use crate::shape::Window;
    use crate::workers::on_threads;

    fn check<T: Kernel>() {
        for (i, [m, ci, co]) in [
            [64, 8, 8],
            [67, 24, 48],
            [129, 61, 49],
            [80, 48, 97],
            [1100, 9, 35],
        ]
        .into_iter()
        .enumerate()
        {
            let s = ConvShape {
                n: 1,
                h: m,
                w: 1,
                ci,
                co,
                oh: m,
                ow: 1,
                window: Window::new([1, 1]),
                groups: 1,
            };
            assert!(pays(m, ci, co));
            let x = numbers::<T>(s.input(), i as u64 + 1);
            let dy = numbers::<T>(s.output(), i as u64 + 2);
            let weight = numbers::<T>(s.weight(), i as u64 + 3);
            let bias = numbers::<T>(co, i as u64 + 4);
            let (bias, relu) = ((i % 2 == 0).then_some(&bias[..]), i % 3 == 0);
            let expected = definition(&s, [&x, &dy, &weight], [bias, None], relu);
            for level in Level::available() {
                let run = || {
                    let nan = T::of(f64::NAN);
                    let mut y = vec![nan; s.output()];
                    product(level, [co, ci], &x, &weight, (1, ci), (bias, relu), &mut y);
                    let mut dx = vec![nan; s.input()];
                    let none = (None, false);
                    product(level, [ci, co], &dy, &weight, (ci, 1), none, &mut dx);
                    let mut dw = vec![nan; s.weight()];
                    weight_grad(level, [ci, co], &x, &dy, &mut dw);
                    [y, dx, dw]
                };
                let results = run();
                for ((got, expected), name) in results.iter().zip(&expected).zip(["y", "dx", "dw"])
                {
                    let what = format!("{name} at {level:?} of {m} x {ci} x {co}");
                    assert_close(got, expected, tolerance::<T>(), &what);
                }
                assert!(on_threads(1, run) == results && on_threads(3, run) == results);
            }
        }
    }

    #[test]
    fn all_three_are_the_definition_f32() {
        check::<f32>();
    }

    #[test]
    fn all_three_are_the_definition_f64() {
        check::<f64>();
    }

    /// A result so large that it goes past the caches is the same.
    #[test]
    fn large_results_are_whole() {
        let [m, n, k] = [30_011, 36, 8];
        let (a, b) = (numbers::<f32>(m * k, 1), numbers::<f32>(k * n, 2));
        let mut c = vec![f32::NAN; m * n];
        assert!(strided::is_large(&c));
        let none = (None, false);
        product(
            super::super::simd::level(),
            [n, k],
            &a,
            &b,
            (n, 1),
            none,
            &mut c,
        );
        for (a, c) in a.chunks(k * 1000).zip(c.chunks(n * 1000)) {
            let mut part = vec![f32::NAN; c.len()];
            product(
                super::super::simd::level(),
                [n, k],
                a,
                &b,
                (n, 1),
                none,
                &mut part,
            );
            assert!(part == c);
        }
    }
}
