//! Walks over a matrix of rows: two outputs a row, maps with constants for each column, and sums
//! down the columns.

use rayon::prelude::*;

use super::strided::{self, PARALLEL};
use crate::dtype::Real;
use crate::level::{self, array};
use crate::workers::Parallel;

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
    parts.enumerate().each(|(c, (a, b))| {
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

/// `out[r][c] = f([input[r][c] of each], constants of c)`. An input is its numbers and how many of
/// them lie from row to row.
pub fn map<T: Real, const I: usize, const K: usize>(
    inputs: [(&[T], usize); I],
    columns: [&[T]; K],
    width: usize,
    out: &mut [T],
    f: impl Fn([T; I], [T; K]) -> T + Sync,
) {
    strided::fresh_rows(
        out,
        width,
        width,
        #[inline(always)]
        |out, r| {
            // all of one length, known here: no bounds checks in the loop
            let x: [&[T]; I] = array(|i| &inputs[i].0[r * inputs[i].1..][..width]);
            let k: [&[T]; K] = array(|j| &columns[j][..width]);
            let out = &mut out[..width];
            for x in x {
                strided::ask(x);
            }
            for c in 0..width {
                out[c] = f(array(|i| x[i][c]), array(|j| k[j][c]));
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
/// Numbers of a vector, or of several.
const LANES: usize = 16;
/// Rows that are added before the sums go back to L1.
const TOGETHER: usize = 4;

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
    total(partial.gather(), width)
}

/// Add short sums to the long ones, and begin anew.
#[inline(always)]
fn widen<T: Real>(short: &mut [Vec<T>; 2], sums: &mut [Vec<f64>; 2]) {
    for (sums, short) in sums.iter_mut().zip(short) {
        for (sum, s) in sums.iter_mut().zip(&*short) {
            *sum += s.to_f64();
        }
        short.fill(T::ZERO);
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
///
/// Memory is read in its own order, which the CPU foresees, and the sums of all columns lie in L1.
/// They are whole vectors: a row's last one reaches into the next row, and what it sums there
/// nobody reads.
fn sums<T: Real, const K: usize, const SHIFT: bool>(
    [x, y]: [&[T]; 2],
    columns: [&[T]; K],
    width: usize,
    f: impl Fn(usize, T, T, [T; K]) -> [T; 2] + Sync,
) -> [Vec<f64>; 2] {
    if x.is_empty() {
        return total(Vec::new(), width);
    }
    let (rows, padded) = (x.len() / width, width.next_multiple_of(LANES));
    let xy = [x, y].map(|x| Rows::new(x, width));
    let columns = columns.map(|k| {
        let mut k = k[..width].to_vec();
        k.resize(padded, T::ZERO);
        k
    });
    let block = block_of(x.len(), width);
    let partial = (0..rows.div_ceil(block)).into_par_iter().map(|b| {
        let mut sums = [vec![0f64; width], vec![0f64; width]];
        let mut own: [Vec<T>; K] = columns.clone();
        let mut short = [vec![T::ZERO; padded], vec![T::ZERO; padded]];
        level::run(
            #[inline(always)]
            || {
                for first in (b * block..rows.min((b + 1) * block)).step_by(SHORT) {
                    let n = SHORT.min(rows - first);
                    if SHIFT {
                        let of: [&[T]; 3] = array(|i| xy[0].row(first + [0, n / 2, n - 1][i]));
                        let of = of[0].iter().zip(of[1]).zip(of[2]);
                        for (k, ((a, b), c)) in own[0].iter_mut().zip(of) {
                            *k = median([*a, *b, *c]);
                        }
                    }
                    let k: [&[T]; K] = array(|j| &own[j][..]);
                    let whole = n / TOGETHER * TOGETHER;
                    for r in (0..whole).step_by(TOGETHER) {
                        add_rows::<T, K, TOGETHER>(&xy, first + r, k, &mut short, &f);
                    }
                    for r in whole..n {
                        add_rows::<T, K, 1>(&xy, first + r, k, &mut short, &f);
                    }
                    if SHIFT {
                        move_sums(&mut short, &mut sums, n, [&own[0], &columns[0]]);
                    } else {
                        widen(&mut short, &mut sums);
                    }
                }
            },
        );
        sums
    });
    total(partial.gather(), width)
}

/// Rows of a matrix, each with as many numbers behind it as fill its last vector.
struct Rows<'a, T> {
    x: &'a [T],
    width: usize,
    padded: usize,
    /// The last rows, behind which there may be no memory, and which is their first.
    edge: Vec<T>,
    from: usize,
}

impl<'a, T: Real> Rows<'a, T> {
    fn new(x: &'a [T], width: usize) -> Self {
        let padded = width.next_multiple_of(LANES);
        let from = (x.len() / width).saturating_sub(padded / width);
        let mut edge = x[from * width..].to_vec();
        edge.resize(edge.len() + padded, T::ZERO);
        Rows {
            x,
            width,
            padded,
            edge,
            from,
        }
    }

    #[inline(always)]
    fn row(&self, r: usize) -> &[T] {
        let (rows, r) = match r.checked_sub(self.from) {
            None => (self.x, r),
            Some(r) => (&self.edge[..], r),
        };
        &rows[r * self.width..][..self.padded]
    }
}

/// Add N rows from row r on.
#[inline(always)]
fn add_rows<T: Real, const K: usize, const N: usize>(
    [x, y]: &[Rows<T>; 2],
    r: usize,
    k: [&[T]; K],
    short: &mut [Vec<T>; 2],
    f: &impl Fn(usize, T, T, [T; K]) -> [T; 2],
) {
    let x: [&[[T; LANES]]; N] = array(|i| x.row(r + i).as_chunks().0);
    let y: [&[[T; LANES]]; N] = array(|i| y.row(r + i).as_chunks().0);
    let k: [&[[T; LANES]]; K] = array(|j| k[j].as_chunks().0);
    let [s, t] = short;
    let (s, t) = (s.as_chunks_mut::<LANES>().0, t.as_chunks_mut::<LANES>().0);
    // all of one length, known here: no bounds checks in the loop
    let n = s.len();
    let (x, y) = (
        array::<&[_], N>(|i| &x[i][..n]),
        array::<&[_], N>(|i| &y[i][..n]),
    );
    let (k, t) = (array::<&[_], K>(|j| &k[j][..n]), &mut t[..n]);
    for v in 0..n {
        let (mut a, mut b) = (s[v], t[v]);
        for i in 0..N {
            for l in 0..LANES {
                let [p, q] = f(r + i, x[i][v][l], y[i][v][l], array(|j| k[j][v][l]));
                a[l] += p;
                b[l] += q;
            }
        }
        (s[v], t[v]) = (a, b);
    }
}

/// Add the short sums of n rows about `own` to the long ones about `shift`, and begin anew.
#[inline(always)]
fn move_sums<T: Real>(
    [s, t]: &mut [Vec<T>; 2],
    [sums, squares]: &mut [Vec<f64>; 2],
    n: usize,
    [own, shift]: [&[T]; 2],
) {
    for c in 0..sums.len() {
        let (a, b) = (s[c].to_f64(), t[c].to_f64());
        let e = own[c].to_f64() - shift[c].to_f64();
        let rise = n as f64 * e;
        squares[c] += b + e * (2.0 * a + rise);
        sums[c] += a + rise;
    }
    s.fill(T::ZERO);
    t.fill(T::ZERO);
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
    use crate::workers::on_threads;

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
            let sums = || column_sums([&x, &x], [], 3, |_, x, y, []| [x, x * y]);
            on_threads(threads, sums)
        };
        assert_eq!(on(1), on(3));
    }
}
