//! Matrix product, blocked for the caches, for matrices of any strides.
//!
//! C is cut into blocks, a task each. A task walks the summation in pieces: it copies
//! its rows of A into tiles and its columns of B into panels, then multiplies all pairs of a tile
//! and a panel. The cut depends on the sizes alone and each element of C is summed in one order,
//! so the bits are the same on any number of threads.
use rayon::prelude::*;

use super::micro::{self, DEPTH, Kernel, Micro, Start, Term, Tile, TileKernel, VECTORS};
use super::scratch::{Scratch, Shared};
use super::simd::{Level, level};

/// Elements of the summation between two visits of C: a panel and a tile stay in L1 meanwhile.
const SUM: usize = 256;
/// Rows and columns of the largest block of C: its operands stay in L2.
const BLOCK: usize = 256;
/// Blocks to have at least, if they do not become too small to pay for their copies.
const TASKS: usize = 8;
/// Multiplications below which a product is computed by the calling thread alone.
const PARALLEL: usize = 1 << 17;

/// A matrix in memory: element (i, j) at `data[i * strides.0 + j * strides.1]`.
#[derive(Clone, Copy)]
struct Matrix<'a, T> {
    data: &'a [T],
    strides: (usize, usize),
}

/// C = A B + bias, C \[m, n\] with rows `c_stride` apart and overwritten, A \[m, k\] and
/// B \[k, n\] with any (row, column) strides, bias \[n\] added to every row. With k = 0 it is the
/// bias.
///
/// # Panics
/// If a slice is too short for its matrix.
#[allow(clippy::too_many_arguments)] // BLAS's signature
pub fn gemm<T: Kernel>(
    m: usize,
    n: usize,
    k: usize,
    a: &[T],
    a_strides: (usize, usize),
    b: &[T],
    b_strides: (usize, usize),
    c: &mut [T],
    c_stride: usize,
    bias: Option<&[T]>,
) {
    let a = Matrix {
        data: a,
        strides: a_strides,
    };
    let b = Matrix {
        data: b,
        strides: b_strides,
    };
    gemm_at(level(), [m, n, k], a, b, c, c_stride, bias);
}

fn gemm_at<T: Kernel>(
    level: Level,
    [m, n, k]: [usize; 3],
    a: Matrix<T>,
    b: Matrix<T>,
    c: &mut [T],
    c_stride: usize,
    bias: Option<&[T]>,
) {
    if m == 0 || n == 0 {
        return;
    }
    let micro = T::micro(level);
    let last = |i: usize, j: usize, s: (usize, usize)| (i - 1) * s.0 + (j - 1) * s.1;
    assert!(last(m, n, (c_stride, 1)) < c.len() && (c_stride >= n || m == 1));
    assert!(k == 0 || last(m, k, a.strides) < a.data.len() && last(k, n, b.strides) < b.data.len());
    let bias = padded_bias(bias, n, micro);

    let blocks = |size: usize, block: usize| size.div_ceil(block);
    let (mut rows, mut columns) = (BLOCK, BLOCK.max(micro.width()));
    while blocks(m, rows) * blocks(n, columns) < TASKS {
        if n > columns / 2 && columns / 2 >= 2 * micro.width() {
            columns /= 2;
        } else if m > rows / 2 && rows / 2 >= 64 {
            rows /= 2;
        } else {
            break;
        }
    }
    let row_blocks = blocks(m, rows);
    rows = m.div_ceil(row_blocks); // equal blocks

    let c = Shared::new(c);
    let task = |i: usize| {
        let (i, j) = (i % row_blocks * rows, i / row_blocks * columns);
        let block = Block {
            micro,
            a,
            b,
            rows: i..(i + rows).min(m),
            columns: j..(j + columns).min(n),
            sum: k,
        };
        block.run(c, c_stride, &bias);
    };
    let tasks = row_blocks * blocks(n, columns);
    if tasks == 1 || m * n * k < PARALLEL {
        (0..tasks).for_each(task);
    } else {
        (0..tasks).into_par_iter().with_max_len(1).for_each(task);
    }
}

/// The bias, or zeros, filled up to whole panels.
pub(super) fn padded_bias<T: Kernel>(bias: Option<&[T]>, n: usize, micro: &Micro<T>) -> Scratch<T> {
    let mut padded = Scratch::zeros(n.next_multiple_of(micro.width()));
    if let Some(bias) = bias {
        padded[..n].copy_from_slice(bias);
    }
    padded
}

/// `parts` sizes that differ by at most one and sum to `total`, with their starts.
pub(super) fn balanced(total: usize, parts: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..parts).map(move |i| {
        let start = i * total / parts;
        (start, (i + 1) * total / parts - start)
    })
}

/// One task: a block of C.
struct Block<'a, T: 'static> {
    micro: &'static Micro<T>,
    a: Matrix<'a, T>,
    b: Matrix<'a, T>,
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
    sum: usize,
}

impl<T: Kernel> Block<'_, T> {
    fn run(&self, c: Shared<T>, c_stride: usize, bias: &[T]) {
        let (micro, m, n) = (self.micro, self.rows.len(), self.columns.len());
        let (height, width) = (micro.rows(), micro.width());
        let depth = self.sum.min(SUM);
        let (tiles, panels) = (m.div_ceil(height), n.div_ceil(width));
        let tile_size = height * depth.next_multiple_of(DEPTH);
        let mut a = Scratch::new(tiles * tile_size);
        let mut b = Scratch::new(panels * width * depth);
        let c_rows: Vec<usize> = (0..height).map(|p| p * c_stride).collect();

        // at least once: an empty sum is the bias
        let mut k0 = 0;
        loop {
            let ks = k0..(k0 + SUM).min(self.sum);
            let terms: Vec<Term> = (0..ks.len().div_ceil(DEPTH))
                .map(|t| Term {
                    offset: t * height * DEPTH,
                    len: (ks.len() - t * DEPTH).min(DEPTH),
                })
                .collect();
            for (t, (row, p)) in balanced(m, tiles).enumerate() {
                self.pack_a(row, p, &ks, &mut a[t * tile_size..][..tile_size]);
            }
            self.pack_b(&ks, &mut b);
            for panel in 0..panels {
                let column = self.columns.start + panel * width;
                let columns = (n - panel * width).min(width);
                for (t, (row, p)) in balanced(m, tiles).enumerate() {
                    let tile = Tile {
                        a: a[t * tile_size..].as_ptr(),
                        terms: &terms,
                        b: b[panel * width * ks.len()..].as_ptr(),
                        start: if k0 == 0 {
                            Start::Bias(bias[column..].as_ptr())
                        } else {
                            Start::Load
                        },
                        // SAFETY: the block lies in C.
                        c: unsafe { c.ptr().add((self.rows.start + row) * c_stride + column) },
                        rows: &c_rows[..p],
                        relu: false,
                    };
                    // SAFETY: the scratch holds the tile and the panel, the rows of C are the
                    // task's own.
                    unsafe { run_tile(micro, &micro.tile, tile, columns) };
                }
            }
            k0 += SUM;
            if k0 >= self.sum {
                break;
            }
        }
    }

    /// `p` rows of A from `row` of the block on, as \[k / DEPTH\]\[tile height\]\[DEPTH\].
    fn pack_a(&self, row: usize, p: usize, ks: &std::ops::Range<usize>, to: &mut [T]) {
        let (data, (rs, cs)) = (self.a.data, self.a.strides);
        let lanes = self.micro.lanes;
        let row = self.rows.start + row;
        for (t, k) in ks.clone().step_by(DEPTH).enumerate() {
            let len = (ks.end - k).min(DEPTH);
            let to = &mut to[t * self.micro.rows() * DEPTH..][..self.micro.rows() * DEPTH];
            let vectors = len.div_ceil(lanes);
            if cs == 1 && (row + p - 1) * rs + k + vectors * lanes <= data.len() {
                let rows = micro::Copy {
                    from: data[row * rs + k..].as_ptr(),
                    from_stride: rs,
                    to: to.as_mut_ptr(),
                    to_stride: DEPTH,
                    vectors,
                    rows: p,
                };
                // SAFETY: the last vector of the last row ends in `data`; `to` has height rows.
                unsafe { (self.micro.copy)(&rows) };
                continue;
            }
            for p0 in (0..p).step_by(lanes) {
                for k1 in (0..len).step_by(lanes) {
                    let from = (row + p0) * rs + (k + k1) * cs;
                    let rows = (p - p0).min(lanes);
                    let whole = k1 + lanes <= len && from + (lanes - 1) * cs + lanes <= data.len();
                    if rs == 1 && whole {
                        let block = micro::Copy {
                            from: data[from..].as_ptr(),
                            from_stride: cs,
                            to: to[p0 * DEPTH + k1..].as_mut_ptr(),
                            to_stride: DEPTH,
                            vectors: 1,
                            rows,
                        };
                        // SAFETY: the last of the lanes x lanes ends in `data`; `to` as above.
                        unsafe { (self.micro.transpose)(&block) };
                    } else {
                        for r in 0..rows {
                            for k in 0..lanes.min(len - k1) {
                                to[(p0 + r) * DEPTH + k1 + k] = data[from + r * rs + k * cs];
                            }
                        }
                    }
                }
            }
        }
    }

    /// The block's columns of B as \[panel\]\[k\]\[width\]; the last panel is as many vectors wide
    /// as its columns need, and filled up with zeros.
    fn pack_b(&self, ks: &std::ops::Range<usize>, to: &mut [T]) {
        let (data, (rs, cs)) = (self.b.data, self.b.strides);
        let (lanes, width) = (self.micro.lanes, self.micro.width());
        // a few rows of all panels at a time: they are neighbours in memory
        for k in ks.clone().step_by(lanes) {
            let rows = (ks.end - k).min(lanes);
            for (panel, j) in self.columns.clone().step_by(width).enumerate() {
                let columns = (self.columns.end - j).min(width);
                let vectors = self.micro.vectors(columns);
                let panel = panel * width * ks.len() + (k - ks.start) * vectors * lanes;
                let to = &mut to[panel..][..rows * vectors * lanes];
                if cs == 1 && columns == vectors * lanes {
                    let block = micro::Copy {
                        from: data[k * rs + j..].as_ptr(),
                        from_stride: rs,
                        to: to.as_mut_ptr(),
                        to_stride: columns,
                        vectors,
                        rows,
                    };
                    // SAFETY: all of the columns are B's; `to` was cut to the size.
                    unsafe { (self.micro.copy)(&block) };
                    continue;
                }
                for v in 0..vectors {
                    let from = k * rs + (j + v * lanes) * cs;
                    let columns = (columns - v * lanes).min(lanes);
                    if rs == 1 && columns == lanes && rows == lanes {
                        let block = micro::Copy {
                            from: data[from..].as_ptr(),
                            from_stride: cs,
                            to: to[v * lanes..].as_mut_ptr(),
                            to_stride: vectors * lanes,
                            vectors: 1,
                            rows,
                        };
                        // SAFETY: lanes x lanes elements of B; `to` was cut to the size.
                        unsafe { (self.micro.transpose)(&block) };
                        continue;
                    }
                    for r in 0..rows {
                        let row = &mut to[(r * vectors + v) * lanes..][..lanes];
                        for (c, x) in row[..columns].iter_mut().enumerate() {
                            *x = data[from + r * rs + c * cs];
                        }
                        row[columns..].fill(T::ZERO);
                    }
                }
            }
        }
    }
}

/// Compute a tile of which only `columns` columns exist in C, with one of `kernels`.
///
/// # Safety
/// The pointers of `t` are valid as [`Tile`] says, those to C for `columns` columns.
pub(super) unsafe fn run_tile<T: Kernel>(
    micro: &Micro<T>,
    kernels: &[&[TileKernel<T>]; VECTORS],
    t: Tile<T>,
    columns: usize,
) {
    const MOST: usize = 32;
    let vectors = micro.vectors(columns);
    let (p, width) = (t.rows.len(), vectors * micro.lanes);
    let kernel = kernels[vectors - 1][p - 1];
    if columns == width {
        // SAFETY: the caller's promise.
        unsafe { kernel(&t) };
        return;
    }
    // a ragged panel goes through a whole tile aside
    let mut aside = [T::ZERO; 16 * MOST];
    let rows: [usize; 16] = std::array::from_fn(|r| r * MOST);
    // SAFETY: each row of C has `columns` columns, each row aside MOST, which no panel exceeds.
    unsafe {
        if matches!(t.start, Start::Load) {
            for r in 0..p {
                let c = std::slice::from_raw_parts(t.c.add(t.rows[r]), columns);
                aside[rows[r]..][..columns].copy_from_slice(c);
            }
        }
        kernel(&Tile {
            c: aside.as_mut_ptr(),
            rows: &rows[..p],
            ..t
        });
        for r in 0..p {
            let c = std::slice::from_raw_parts_mut(t.c.add(t.rows[r]), columns);
            c.copy_from_slice(&aside[rows[r]..][..columns]);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Numbers in (-1, 1) from a fixed sequence.
    pub fn numbers<T: Kernel>(n: usize, seed: u64) -> Vec<T> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
        };
        (0..n).map(|_| T::of(next())).collect()
    }

    /// Whether the elements agree to `tolerance`, relative to 1 or the greatest.
    pub fn assert_close<T: Kernel>(got: &[T], expected: &[f64], tolerance: f64, what: &str) {
        assert_eq!(got.len(), expected.len(), "{what}");
        let scale = expected.iter().fold(1f64, |m, x| m.max(x.abs()));
        for (i, (g, e)) in got.iter().zip(expected).enumerate() {
            let error = (g.to_f64() - e).abs();
            assert!(
                error <= tolerance * scale,
                "{what}: [{i}] is {g:?}, expected {e}"
            );
        }
    }

    /// 1e-12 in f64; in f32 what a sum of a few hundred terms may lose.
    pub fn tolerance<T: Kernel>() -> f64 {
        if size_of::<T>() == 8 { 1e-12 } else { 2e-5 }
    }

    /// What `f` gives on a pool of `threads`.
    pub fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(f)
    }

    fn check<T: Kernel>() {
        let sizes = [
            [1, 1, 1],
            [1, 5, 3],
            [3, 1, 7],
            [4, 16, 8],
            [12, 32, 32],
            [13, 33, 33],
            [5, 17, 0],
            [25, 70, 40],
            [31, 64, 257],
            [100, 10, 256],
            [3, 300, 600],
            [130, 100, 27],
            [257, 257, 64],
            [0, 3, 2],
        ];
        for (case, [m, n, k]) in sizes.into_iter().enumerate() {
            // row-major, column-major, and with gaps, for A and for B
            for layout in 0..9 {
                let strides = |rows: usize, columns: usize, layout: usize| match layout {
                    0 => (columns, 1),
                    1 => (1, rows),
                    _ => (2 * columns + 1, 2),
                };
                let (sa, sb) = (strides(m, k, layout % 3), strides(k, n, layout / 3));
                let need = |rows: usize, columns: usize, s: (usize, usize)| {
                    if rows * columns == 0 {
                        0
                    } else {
                        (rows - 1) * s.0 + (columns - 1) * s.1 + 1
                    }
                };
                let a = numbers::<T>(need(m, k, sa), case as u64 + 1);
                let b = numbers::<T>(need(k, n, sb), case as u64 + 100);
                let bias = numbers::<T>(n, 7);
                let bias = (layout % 2 == 0).then_some(&bias[..]);
                let c_stride = n + layout % 2;
                let mut expected = vec![9.0; m * c_stride];
                for i in 0..m {
                    for j in 0..n {
                        let mut sum = bias.map_or(0.0, |b| b[j].to_f64());
                        for l in 0..k {
                            sum +=
                                a[i * sa.0 + l * sa.1].to_f64() * b[l * sb.0 + j * sb.1].to_f64();
                        }
                        expected[i * c_stride + j] = sum;
                    }
                }
                for level in Level::available() {
                    let run = || {
                        let mut c = vec![T::of(9.0); m * c_stride];
                        let a = Matrix {
                            data: &a,
                            strides: sa,
                        };
                        let b = Matrix {
                            data: &b,
                            strides: sb,
                        };
                        gemm_at(level, [m, n, k], a, b, &mut c, c_stride, bias);
                        c
                    };
                    let c = run();
                    assert_close(
                        &c,
                        &expected,
                        tolerance::<T>(),
                        &format!("{level:?} {m} {n} {k} {layout}"),
                    );
                    if m * n * k >= PARALLEL {
                        assert!(on_threads(1, run) == c && on_threads(3, run) == c);
                    }
                }
            }
        }
    }

    #[test]
    fn any_sizes_and_strides_f32() {
        check::<f32>();
    }

    #[test]
    fn any_sizes_and_strides_f64() {
        check::<f64>();
    }
}
