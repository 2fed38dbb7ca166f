//! Walks over a matrix of rows: two outputs a row, maps with constants for each column, and sums
//! down the columns.

use rayon::prelude::*;

use super::strided::{self, PARALLEL};
use crate::dtype::Real;
use crate::level::{self, array};

/// Call `f(row of a, row of b, index)` for each row, `a` and `b` having rows of these lengths; in
/// parallel if `work` a row makes it worth it, by [`level::run`].
pub fn rows2<A: Send, B: Send>(
    (a, la): (&mut [A], usize),
    (b, lb): (&mut [B], usize),
    work: usize,
    f: impl Fn(&mut [A], &mut [B], usize) + Sync,
) {
    if a.is_empty() || b.is_empty() {
        return;
    }
    let some = (PARALLEL / 4).div_ceil(work.max(1));
    let parts = a.par_chunks_mut(some * la).zip(b.par_chunks_mut(some * lb));
    parts.enumerate().for_each(|(c, (a, b))| {
        level::run(
            #[inline(always)]
            || {
                for (i, (a, b)) in a.chunks_mut(la).zip(b.chunks_mut(lb)).enumerate() {
                    f(a, b, c * some + i);
                }
            },
        )
    });
}

/// `out[r][c] = f(x[r][c], y[r][c], constants of c)`.
pub fn map<T: Real, const K: usize>(
    [x, y]: [&[T]; 2],
    columns: [&[T]; K],
    width: usize,
    out: &mut [T],
    f: impl Fn(T, T, [T; K]) -> T + Sync,
) {
    strided::rows(
        out,
        width,
        width,
        #[inline(always)]
        |out, r| {
            let here = r * width..(r + 1) * width;
            let (x, y) = (&x[here.clone()], &y[here]);
            // all of one length, known here: no bounds checks in the loop
            let k: [&[T]; K] = array(|j| &columns[j][..width]);
            let out = &mut out[..width];
            for c in 0..width {
                out[c] = f(x[c], y[c], array(|j| k[j][c]));
            }
        },
    );
}

/// A normalization of each column, y = (x - k) a + b. k is the mean rounded to T and `rest` what the
/// rounding added, so that numbers far from 0 keep their digits.
pub struct Affine<T> {
    /// k, a and b.
    pub kab: [Vec<T>; 3],
    /// k - mean.
    pub rest: Vec<f64>,
    /// 1 / sqrt(var + eps).
    pub invstd: Vec<f64>,
}

impl<T: Real> Affine<T> {
    /// From column c's `mean_invstd(c)`; without `bias` it is 0.
    pub fn new(mean_invstd: impl Fn(usize) -> [f64; 2], weight: &[T], bias: Option<&[T]>) -> Self {
        let (mean, invstd): (Vec<f64>, Vec<f64>) =
            (0..weight.len()).map(|c| mean_invstd(c).into()).unzip();
        let rounded = |v: &[f64]| -> Vec<T> { v.iter().map(|&x| T::of(x)).collect() };
        let each = |f: &dyn Fn(usize) -> f64| -> Vec<f64> { (0..weight.len()).map(f).collect() };
        let k = rounded(&mean);
        let rest = each(&|c| k[c].to_f64() - mean[c]);
        let scale = each(&|c| weight[c].to_f64() * invstd[c]);
        let b = each(&|c| bias.map_or(0.0, |b| b[c].to_f64()) + rest[c] * scale[c]);
        Affine {
            kab: [k, rounded(&scale), rounded(&b)],
            rest,
            invstd,
        }
    }

    /// y.
    #[inline(always)]
    pub fn at(x: T, [k, a, b]: [T; 3]) -> T {
        (x - k) * a + b
    }
}

/// Rows that are summed in T before the sum goes on in f64.
const SHORT: usize = 32;
/// Columns whose running sums stay in registers.
const LANES: usize = 16;

/// For each column c the two sums over rows r of `f(r, x[r][c], y[r][c], constants of c)`: short
/// sums in T, their sums in f64, over blocks that depend on the shape alone.
pub fn column_sums<T: Real, const K: usize>(
    [x, y]: [&[T]; 2],
    columns: [&[T]; K],
    width: usize,
    f: impl Fn(usize, T, T, [T; K]) -> [T; 2] + Sync,
) -> [Vec<f64>; 2] {
    sums::<T, K, false>([x, y], columns, width, f)
}

/// Call `row(r, x[r], y[r], out[r], sums)` for each row, which writes its output and adds to two sums
/// of each column: short sums in T, their sums in f64, as [`column_sums`] has them. For what needs
/// whole rows: x and y are read once.
pub fn map_and_sums<T: Real>(
    [x, y]: [&[T]; 2],
    width: usize,
    out: &mut [T],
    row: impl Fn(usize, &[T], &[T], &mut [T], &mut [Vec<T>; 2]) + Sync,
) -> [Vec<f64>; 2] {
    if x.is_empty() {
        return total(Vec::new(), width);
    }
    let block = block_of(x.len(), width);
    let size = block * width;
    let parts = x.par_chunks(size).zip(y.par_chunks(size));
    let parts = parts.zip(out.par_chunks_mut(size)).enumerate();
    let partial = parts.map(|(b, ((x, y), out))| {
        let mut sums = [vec![0f64; width], vec![0f64; width]];
        let mut short = [vec![T::ZERO; width], vec![T::ZERO; width]];
        level::run(
            #[inline(always)]
            || {
                let rows = x
                    .chunks(width)
                    .zip(y.chunks(width))
                    .zip(out.chunks_mut(width));
                for (r, ((x, y), out)) in rows.enumerate() {
                    row(b * block + r, x, y, out, &mut short);
                    if (r + 1) % SHORT == 0 {
                        widen(&mut short, &mut sums);
                    }
                }
                widen(&mut short, &mut sums);
            },
        );
        sums
    });
    total(partial.collect(), width)
}

/// Add short sums to the long ones, and begin anew.
#[inline(always)]
fn widen<T: Real>(short: &mut [Vec<T>; 2], sums: &mut [Vec<f64>; 2]) {
    for (sums, short) in sums.iter_mut().zip(short) {
        for (sum, s) in sums.iter_mut().zip(short) {
            *sum += s.to_f64();
            *s = T::ZERO;
        }
    }
}

/// Rows of a parallel task, by the shape alone.
fn block_of(len: usize, width: usize) -> usize {
    let rows = (len / width).div_ceil(64);
    rows.max(PARALLEL / 4 / width).next_multiple_of(SHORT)
}

/// The blocks' sums, added in order.
fn total(partial: Vec<[Vec<f64>; 2]>, width: usize) -> [Vec<f64>; 2] {
    let mut total = [vec![0f64; width], vec![0f64; width]];
    for p in partial {
        for (total, p) in total.iter_mut().zip(p) {
            total.iter_mut().zip(p).for_each(|(t, p)| *t += p);
        }
    }
    total
}

/// For each column c the sums over its rows of x - shift and of (x - shift)^2, in one pass. A short
/// sum in T is about a number of its own rows, so that it cancels nowhere, and moves to `shift` in
/// f64: sum (d + e) = s + n e and sum (d + e)^2 = q + 2 e s + n e^2.
pub fn shifted_sums<T: Real>(x: &[T], shift: &[T], width: usize) -> [Vec<f64>; 2] {
    sums::<T, 1, true>(
        [x, x],
        [shift],
        width,
        #[inline(always)]
        |_, x, _, [k]| {
            let d = x - k;
            [d, d * d]
        },
    )
}

/// `SHIFT`: the first constant is a column's shift, and `f` gives powers of x minus it.
fn sums<T: Real, const K: usize, const SHIFT: bool>(
    [x, y]: [&[T]; 2],
    columns: [&[T]; K],
    width: usize,
    f: impl Fn(usize, T, T, [T; K]) -> [T; 2] + Sync,
) -> [Vec<f64>; 2] {
    if x.is_empty() {
        return total(Vec::new(), width);
    }
    let block = block_of(x.len(), width);
    let parts = x.par_chunks(block * width).zip(y.par_chunks(block * width));
    let partial = parts.enumerate().map(|(b, (x, y))| {
        let mut sums = [vec![0f64; width], vec![0f64; width]];
        let short = x.chunks(SHORT * width).zip(y.chunks(SHORT * width));
        level::run(
            #[inline(always)]
            || {
                for (s, xy) in short.enumerate() {
                    let first = b * block + s * SHORT;
                    add_rows::<T, K, SHIFT>(xy, columns, width, first, &mut sums, &f);
                }
            },
        );
        sums
    });
    total(partial.collect(), width)
}

/// Add a few rows, of which `first` is the first.
#[inline(always)]
fn add_rows<T: Real, const K: usize, const SHIFT: bool>(
    xy: (&[T], &[T]),
    columns: [&[T]; K],
    width: usize,
    first: usize,
    sums: &mut [Vec<f64>; 2],
    f: &impl Fn(usize, T, T, [T; K]) -> [T; 2],
) {
    let whole = width / LANES * LANES;
    for c in (0..whole).step_by(LANES) {
        add_lanes::<T, K, SHIFT, LANES>(xy, columns, width, first, c, sums, f);
    }
    for c in whole..width {
        add_lanes::<T, K, SHIFT, 1>(xy, columns, width, first, c, sums, f);
    }
}

/// Add columns c to c + L of them.
#[inline(always)]
fn add_lanes<T: Real, const K: usize, const SHIFT: bool, const L: usize>(
    (x, y): (&[T], &[T]),
    columns: [&[T]; K],
    width: usize,
    first: usize,
    c: usize,
    sums: &mut [Vec<f64>; 2],
    f: &impl Fn(usize, T, T, [T; K]) -> [T; 2],
) {
    let mut k = [[T::ZERO; L]; K];
    for (k, column) in k.iter_mut().zip(columns) {
        k.copy_from_slice(&column[c..c + L]);
    }
    let (shift, n) = (k, x.len() / width);
    if SHIFT {
        let [a, b, d]: [&[T]; 3] = array(|i| &x[[0, n / 2, n - 1][i] * width + c..][..L]);
        k[0] = array(|l| median([a[l], b[l], d[l]]));
    }
    let (mut s, mut t) = ([T::ZERO; L], [T::ZERO; L]);
    let rows = x.chunks_exact(width).zip(y.chunks_exact(width));
    for (r, (x, y)) in rows.enumerate() {
        let (x, y) = (&x[c..c + L], &y[c..c + L]);
        for l in 0..L {
            let [a, b] = f(first + r, x[l], y[l], array(|j| k[j][l]));
            s[l] += a;
            t[l] += b;
        }
    }
    for l in 0..L {
        let (mut a, mut b) = (s[l].to_f64(), t[l].to_f64());
        if SHIFT {
            let e = k[0][l].to_f64() - shift[0][l].to_f64();
            let rise = n as f64 * e;
            b += e * (2.0 * a + rise);
            a += rise;
        }
        sums[0][c + l] += a;
        sums[1][c + l] += b;
    }
}

/// Of three rows: one that lies far from the others does not become the shift of its run.
#[inline(always)]
fn median<T: Real>([a, b, c]: [T; 3]) -> T {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    match c {
        c if c < low => low,
        c if c > high => high,
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_sums_agree_with_a_plain_loop() {
        for (rows, width) in [(1, 1), (3, 5), (70, 16), (2100, 19), (40_000, 2)] {
            let x: Vec<f64> = (0..rows * width).map(|i| (i % 13) as f64).collect();
            let k: Vec<f64> = (0..width).map(|c| c as f64).collect();
            let [s, t] = column_sums([&x, &x], [&k], width, |r, x, y, [k]| {
                [x + k, y * (r % 3) as f64]
            });
            for c in 0..width {
                let column = || x.iter().skip(c).step_by(width).enumerate();
                let plain: f64 = column().map(|(_, x)| x + k[c]).sum();
                let by_row: f64 = column().map(|(r, x)| x * (r % 3) as f64).sum();
                assert_eq!(
                    (s[c], t[c]),
                    (plain, by_row),
                    "{rows} x {width}, column {c}"
                );
            }
        }
        assert_eq!(
            column_sums::<f64, 0>([&[], &[]], [], 2, |_, x, y, _| [x, y]),
            [[0.0; 2], [0.0; 2]]
        );
    }

    #[test]
    fn column_sums_have_the_same_bits_on_any_number_of_threads() {
        let x: Vec<f32> = (0..60_000 * 3).map(|i| (i as f32).sin()).collect();
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let sums = || column_sums([&x, &x], [], 3, |_, x, y, []| [x, x * y]);
            pool.build().unwrap().install(sums)
        };
        assert_eq!(on(1), on(3));
    }
}
