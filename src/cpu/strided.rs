//! Walking strided layouts: copy, map, zip and sum, in parallel, whatever order memory has.

use rayon::prelude::*;

use super::micro::{LINE, prefetch};
use super::scratch::Scratch;
use super::simd::fence;
use crate::dtype::{Element, Real};
use crate::level::{self, array};
use crate::shape::{Layout, Loops, Shape};
use crate::workers::Parallel;

/// Elements below which a loop stays on one thread.
pub const PARALLEL: usize = 1 << 15;

/// What a walk does with one stretch: (output, where each operand starts, its stride).
type Row<'a, U, const K: usize> = &'a (dyn Fn(&mut [U], [usize; K], [usize; K]) + Sync);

impl<const K: usize> Loops<K> {
    /// Call `row(out, offsets, strides)` for each stretch of the innermost axis. The row is behind
    /// a pointer so that the walk and its threads are compiled once, not once a formula.
    fn run<U: Send>(&self, out: &mut [U], row: Row<'_, U, K>) {
        let last = self.dims.len() - 1;
        let (len, inner) = (self.dims[last], self.strides[last]);
        if out.is_empty() {
            return;
        }
        let task = |first_row: usize, out: &mut [U], skip: usize| {
            // where the first row is; from there on it is counted, as division is slow
            let (mut index, mut rest, mut at) = (vec![0; last], first_row, self.base);
            for d in (0..last).rev() {
                index[d] = rest % self.dims[d];
                rest /= self.dims[d];
                for (at, s) in at.iter_mut().zip(self.strides[d]) {
                    *at += index[d] * s;
                }
            }
            for (at, s) in at.iter_mut().zip(inner) {
                *at += skip * s;
            }
            for out in out.chunks_mut(len) {
                row(out, at, inner);
                for d in (0..last).rev() {
                    index[d] += 1;
                    let around = index[d] == self.dims[d];
                    for (at, s) in at.iter_mut().zip(self.strides[d]) {
                        *at += s;
                        *at -= if around { index[d] * s } else { 0 };
                    }
                    if !around {
                        break;
                    }
                    index[d] = 0;
                }
            }
        };
        if out.len() < PARALLEL {
            task(0, out, 0);
        } else if len >= PARALLEL {
            // few long rows: split each
            for (r, out) in out.chunks_mut(len).enumerate() {
                out.par_chunks_mut(PARALLEL / 2)
                    .enumerate()
                    .each(|(i, o)| task(r, o, i * (PARALLEL / 2)));
            }
        } else {
            let rows = (PARALLEL / 2).div_ceil(len);
            out.par_chunks_mut(rows * len)
                .enumerate()
                .each(|(i, o)| task(i * rows, o, 0));
        }
    }
}

/// `out[i] = f(x[i])`, where `out` is dense and starts at the first element of `lo`.
pub fn map<T: Element, U: Element>(
    x: &[T],
    lx: &Layout,
    out: &mut [U],
    lo: &Layout,
    f: impl Fn(T) -> U + Sync,
) {
    update(
        x,
        lx,
        out,
        lo,
        #[inline(always)]
        |o, x| *o = f(x),
    );
}

/// `f(out[i], x[i])`, where `out` is dense and starts at the first element of `lo`.
fn update<T: Element, U: Element>(
    x: &[T],
    lx: &Layout,
    out: &mut [U],
    lo: &Layout,
    f: impl Fn(&mut U, T) + Sync,
) {
    Loops::new(lo, [lx]).run(out, &|out: &mut [U], [a], [s]| {
        if s == 1 {
            let x = &x[a..a + out.len()];
            level::run(
                #[inline(always)]
                || {
                    for (o, &x) in out.iter_mut().zip(x) {
                        f(o, x);
                    }
                },
            );
        } else {
            for (i, o) in out.iter_mut().enumerate() {
                f(o, x[a + i * s]);
            }
        }
    });
}

/// `out[i] = f(x[i], y[i])`, where `out` is dense and `x`, `y` are already expanded to its shape.
pub fn zip<T: Element, S: Element, U: Element>(
    (x, lx): (&[T], &Layout),
    (y, ly): (&[S], &Layout),
    out: &mut [U],
    lo: &Layout,
    f: impl Fn(T, S) -> U + Sync,
) {
    Loops::new(lo, [lx, ly]).run(out, &|out: &mut [U], [a, b], [s, t]| match (s, t) {
        (1, 1) => {
            let (x, y) = (&x[a..a + out.len()], &y[b..b + out.len()]);
            level::run(
                #[inline(always)]
                || {
                    for ((o, &x), &y) in out.iter_mut().zip(x).zip(y) {
                        *o = f(x, y);
                    }
                },
            );
        }
        (1, 0) => {
            let (x, y) = (&x[a..a + out.len()], y[b]);
            level::run(
                #[inline(always)]
                || {
                    for (o, &x) in out.iter_mut().zip(x) {
                        *o = f(x, y);
                    }
                },
            );
        }
        (0, 1) => {
            let (x, y) = (x[a], &y[b..b + out.len()]);
            level::run(
                #[inline(always)]
                || {
                    for (o, &y) in out.iter_mut().zip(y) {
                        *o = f(x, y);
                    }
                },
            );
        }
        _ => {
            for (i, o) in out.iter_mut().enumerate() {
                *o = f(x[a + i * s], y[b + i * t]);
            }
        }
    });
}

/// Copy into `out` in the order of `lo`.
pub fn copy<T: Element>(x: &[T], lx: &Layout, out: &mut [T], lo: &Layout) {
    Loops::new(lo, [lx]).run(out, &|out: &mut [T], [a], [s]| match s {
        0 => out.fill(x[a]),
        1 => copy_short(&x[a..a + out.len()], out),
        _ => {
            for (o, x) in out.iter_mut().zip(x[a..].iter().step_by(s)) {
                *o = *x;
            }
        }
    });
}

/// Add to `out` in the order of `lo`.
pub fn add<T: Element>(x: &[T], lx: &Layout, out: &mut [T], lo: &Layout) {
    update(
        x,
        lx,
        out,
        lo,
        #[inline(always)]
        |o, x| *o = o.plus(x),
    );
}

/// How a reduction walks dense memory: `[outer][reduced][inner]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fold {
    /// Kept, slow.
    pub outer: usize,
    /// Reduced.
    pub reduced: usize,
    /// Kept, fast.
    pub inner: usize,
}

/// The walk that reduces the axes marked in `reduce`, and the layout (all axes there, reduced
/// ones of size 1) of its result; `None` if `l` is not dense or the kept axes lie in more than
/// two groups.
pub fn fold(l: &Layout, reduce: &[bool]) -> Option<(Fold, Layout)> {
    if l.numel() == 0 {
        // nothing to walk: each result is a sum of none
        let mut shape = *l.shape();
        shape
            .iter_mut()
            .zip(reduce)
            .filter(|r| *r.1)
            .for_each(|(d, _)| *d = 1);
        let fold = Fold {
            outer: shape.numel(),
            reduced: 0,
            inner: 1,
        };
        return Some((fold, Layout::contiguous(shape)));
    }
    if !l.is_dense() {
        return None;
    }
    let order = {
        let dense = l.dense_like();
        let mut o: Vec<usize> = (0..l.shape().len()).collect();
        o.sort_by_key(|&a| std::cmp::Reverse(dense.strides()[a]));
        o
    };
    // kept before, reduced, kept after: an axis of size 1 fits anywhere
    let (mut sizes, mut phase) = ([1, 1, 1], 0);
    for &a in &order {
        if l.shape()[a] == 1 {
            continue;
        }
        phase = match (phase, reduce[a]) {
            (0 | 1, true) => 1,
            (0, false) => 0,
            (1 | 2, false) => 2,
            _ => return None,
        };
        sizes[phase] *= l.shape()[a];
    }
    let mut shape: Shape = *l.shape();
    for (a, d) in shape.iter_mut().enumerate() {
        if reduce[a] {
            *d = 1;
        }
    }
    // the result keeps its axes in memory order: build it permuted, then undo the permutation
    let mut dims = shape;
    for (i, &a) in order.iter().enumerate() {
        dims[i] = shape[a];
    }
    let mut back = vec![0; order.len()];
    for (i, &a) in order.iter().enumerate() {
        back[a] = i;
    }
    let out = Layout::contiguous(dims).permute(&back);
    Some((
        Fold {
            outer: sizes[0],
            reduced: sizes[1],
            inner: sizes[2],
        },
        out,
    ))
}

/// Sum the middle axis of `[outer][reduced][inner]` into `out` (`[outer][inner]`), in an order
/// that depends on the shape alone.
pub fn sum<T: Real>(x: &[T], f: Fold, out: &mut [T]) {
    let Fold {
        outer,
        reduced,
        inner,
    } = f;
    if out.is_empty() {
        return;
    }
    if x.is_empty() {
        out.fill(T::ZERO);
        return;
    }
    if inner == 1 {
        if outer == 1 {
            out[0] = T::from_f64(parallel_sum(x));
        } else {
            rows(
                out,
                1,
                reduced,
                #[inline(always)]
                |o, i| o[0] = T::from_f64(row_sum([&x[i * reduced..(i + 1) * reduced]], |[x]| x)),
            );
        }
    } else if outer == 1 && x.len() >= PARALLEL {
        // columns: a fixed number of row blocks, each summed apart, then added in order
        let block = reduced.div_ceil(16).max(1);
        let partial: Vec<Vec<T>> = x
            .par_chunks(block * inner)
            .map(|x| {
                let mut acc = vec![T::ZERO; inner];
                level::run(
                    #[inline(always)]
                    || add_rows(x, &mut acc),
                );
                acc
            })
            .gather();
        out.fill(T::ZERO);
        for p in partial {
            add_rows(&p, out);
        }
    } else {
        rows(
            out,
            inner,
            reduced * inner,
            #[inline(always)]
            |o, i| {
                o.fill(T::ZERO);
                add_rows(&x[i * reduced * inner..(i + 1) * reduced * inner], o);
            },
        );
    }
}

/// Call `f(row, index)` for each row of `len` outputs, in parallel if `work` a row makes it worth
/// it, by [`level::run`]: an `f` that is `#[inline(always)]` has the widest vectors.
pub fn rows<T: Send>(out: &mut [T], len: usize, work: usize, f: impl Fn(&mut [T], usize) + Sync) {
    if out.is_empty() {
        return;
    }
    let n = out.len() / len;
    let some = (PARALLEL / 4).div_ceil(work.max(1));
    let each = |(c, out): (usize, &mut [T])| {
        level::run(
            #[inline(always)]
            || {
                for (i, o) in out.chunks_mut(len).enumerate() {
                    f(o, c * some + i);
                }
            },
        )
    };
    if n * work < PARALLEL {
        each((0, out));
    } else {
        out.par_chunks_mut(some * len).enumerate().each(each);
    }
}

/// Bytes of a result above which no cache would still hold it when it is read.
const STREAMED: usize = 4 << 20;
/// Bytes of it that are made in L1 before they go to memory.
const MADE: usize = 4 << 10;
/// Times that a task does so.
const BLOCKS: usize = 32;
/// Bytes from what is read to what is asked for: further than the CPU itself looks ahead where
/// stretches are short.
const AHEAD: usize = 4 << 10;

/// [`rows`] for an `f` that writes all of its row and reads nothing of it. A large result goes past
/// the caches: a line that is stored to is else read first, a third of a copy's traffic.
pub fn fresh_rows<T: Element>(
    out: &mut [T],
    len: usize,
    work: usize,
    f: impl Fn(&mut [T], usize) + Sync,
) {
    if !is_large(out) || len * size_of::<T>() > 4 * MADE {
        return rows(out, len, work, f);
    }
    // so many rows begin and end at whole cache lines
    let some = (MADE / (len * size_of::<T>())).next_multiple_of(64 / size_of::<T>());
    let each = |(c, out): (usize, &mut [T])| {
        let mut made = Scratch::<T>::new(some * len);
        for (b, out) in out.chunks_mut(some * len).enumerate() {
            let (made, first) = (&mut made[..out.len()], (c * BLOCKS + b) * some);
            level::run(
                #[inline(always)]
                || {
                    for (i, o) in made.chunks_mut(len).enumerate() {
                        f(o, first + i);
                    }
                },
            );
            stream(made, out);
        }
        fence();
    };
    out.par_chunks_mut(BLOCKS * some * len)
        .enumerate()
        .each(each);
}

/// Whether a result should go past the caches.
pub fn is_large<T>(out: &[T]) -> bool {
    size_of_val(out) >= STREAMED
}

/// `to.copy_from_slice(from)` past the caches; before other threads read it comes a [`fence`].
pub fn stream<T: Element>(from: &[T], to: &mut [T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        // SAFETY: plain numbers may be seen as others
        let (head, body, tail) = unsafe { to.align_to_mut::<__m128i>() };
        let (first, rest) = from.split_at(head.len());
        let (middle, last) = rest.split_at(rest.len() - tail.len());
        head.copy_from_slice(first);
        tail.copy_from_slice(last);
        let middle = middle.as_ptr().cast::<__m128i>();
        // vectors of any CPU: memory is the limit
        for (i, to) in body.iter_mut().enumerate() {
            // SAFETY: of every x86-64 CPU; `middle` has the bytes of `body`, which is aligned
            unsafe { _mm_stream_si128(to, _mm_loadu_si128(middle.add(i))) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    to.copy_from_slice(from);
}

/// Ask for what lies some way behind this stretch.
#[inline(always)]
pub fn ask<T>(from: &[T]) {
    for i in (0..from.len()).step_by(LINE / size_of::<T>()) {
        prefetch::<_, false>(from.as_ptr().wrapping_byte_add(AHEAD).wrapping_add(i));
    }
}

/// `to.copy_from_slice(from)`, without a call where there are few: the last vector overlaps the one
/// before.
#[inline(always)]
pub fn copy_short<T: Element>(from: &[T], to: &mut [T]) {
    #[inline(always)]
    fn vectors<T: Element, const L: usize>(from: &[T], to: &mut [T]) {
        let whole = to.as_chunks_mut::<L>().0.iter_mut();
        for (to, from) in whole.zip(from.as_chunks::<L>().0) {
            *to = *from;
        }
        if let (Some(to), Some(from)) = (to.last_chunk_mut::<L>(), from.last_chunk::<L>()) {
            *to = *from;
        }
    }
    let from = &from[..to.len()];
    match to.len() {
        0 => {}
        1..4 => vectors::<T, 1>(from, to),
        4..16 => vectors::<T, 4>(from, to),
        16..512 => vectors::<T, 16>(from, to),
        _ => to.copy_from_slice(from),
    }
}

#[inline(always)]
fn add_rows<T: Real>(x: &[T], acc: &mut [T]) {
    for row in x.chunks_exact(acc.len()) {
        for (a, &x) in acc.iter_mut().zip(row) {
            *a += x;
        }
    }
}

/// Numbers that fill a vector register or two.
const LANES: usize = 16;

/// Sum of `g` over a row's elements, beside those of other rows: short sums in `g`'s type, of eight
/// registers each, and theirs in f64, since to convert a number costs more than to add it.
#[inline(always)]
pub fn row_sum<T: Real, R: Real, const K: usize>(rows: [&[T]; K], g: impl Fn([T; K]) -> R) -> f64 {
    let n = rows[0].len();
    let rows: [&[T]; K] = array(|j| &rows[j][..n]);
    let mut sums = [0f64; LANES];
    let whole = n / LANES * LANES;
    for first in (0..whole).step_by(8 * LANES) {
        let mut run = [R::ZERO; LANES];
        for at in (first..whole.min(first + 8 * LANES)).step_by(LANES) {
            let values = values(rows, at, &g);
            for l in 0..LANES {
                run[l] += values[l];
            }
        }
        widen(&mut sums, run);
    }
    if n > whole {
        // the rest with what precedes it, or among zeros, whose values do not count: one by one,
        // exponentials cost as much as all others together
        let few = n - whole;
        let mut short = [[T::ZERO; LANES]; K];
        let (mut last, counted) = if whole > 0 {
            (values(rows, n - LANES, &g), LANES - few..LANES)
        } else {
            for (short, x) in short.iter_mut().zip(rows) {
                short[..n].copy_from_slice(x);
            }
            (values(array(|j| &short[j][..]), 0, &g), 0..few)
        };
        for (l, last) in last.iter_mut().enumerate() {
            *last = if counted.contains(&l) { *last } else { R::ZERO };
        }
        widen(&mut sums, last);
    }
    halved(sums, |a, b| a + b)
}

/// `g` of a register's elements from `at` on.
#[inline(always)]
fn values<T: Real, R: Real, const K: usize>(
    rows: [&[T]; K],
    at: usize,
    g: &impl Fn([T; K]) -> R,
) -> [R; LANES] {
    let part: [&[T]; K] = array(|j| &rows[j][at..at + LANES]);
    let mut values = [R::ZERO; LANES];
    for (l, value) in values.iter_mut().enumerate() {
        *value = g(array(|j| part[j][l]));
    }
    values
}

#[inline(always)]
fn widen<R: Real>(sums: &mut [f64; LANES], values: [R; LANES]) {
    for l in 0..LANES {
        sums[l] += values[l].to_f64();
    }
}

/// The greatest of a row, of the numbers beside NaN. Sums over the row show that there was one.
#[inline(always)]
pub fn row_max<T: Real>(x: &[T]) -> T {
    let mut most = [T::NEG_INFINITY; LANES];
    let Some(last) = x.last_chunk::<LANES>() else {
        return x.iter().fold(T::NEG_INFINITY, |m, &x| greater(x, m));
    };
    // the last ones once more, where the length is no multiple
    for c in x.as_chunks::<LANES>().0.iter().chain([last]) {
        for (m, &x) in most.iter_mut().zip(c) {
            *m = greater(x, *m);
        }
    }
    halved(most, greater)
}

#[inline(always)]
fn greater<T: Real>(a: T, b: T) -> T {
    if a > b { a } else { b }
}

/// All of an array by `f`, half with half: four steps, not fifteen that wait for one another.
#[inline(always)]
fn halved<T: Real>(mut a: [T; LANES], f: impl Fn(T, T) -> T) -> T {
    let mut n = LANES;
    while n > 1 {
        n /= 2;
        for l in 0..n {
            a[l] = f(a[l], a[l + n]);
        }
    }
    a[0]
}

/// [`row_sum`] with its blocks on all threads; the partition is fixed by the length.
fn parallel_sum<T: Real>(x: &[T]) -> f64 {
    let part = |x: &[T]| {
        level::run(
            #[inline(always)]
            || row_sum([x], |[x]| x),
        )
    };
    if x.len() < PARALLEL {
        return part(x);
    }
    let parts: Vec<f64> = x.par_chunks(PARALLEL / 2).map(part).gather();
    parts.iter().sum()
}
