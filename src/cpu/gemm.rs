//! Matrix product, blocked for the caches, for matrices of any strides, after Goto and van de Geijn,
//! "Anatomy of High-Performance Matrix Multiplication" (2008).
//!
//! An FMA unit wants two new operands each half cycle, which no cache delivers. So every number
//! that is loaded must be used often, and the more often, the farther away it comes from:
//!
//! - **Registers** hold a tile of C, 12 rows x 2 vectors: a step of k loads two vectors of B and 12
//!   numbers of A, and feeds 24 multiply-adds with them.
//! - **L1** holds a panel of B, SUM x 2 vectors (32 KB of f32), while all tiles of A pass by: with a
//!   longer sum it would not fit, with a shorter one C would come and go more often.
//! - **L2** holds the tiles of A, at most OWN rows x SUM (256 KB), while all panels pass by. A tile
//!   costs 4 bytes a cycle from there.
//! - **L3** holds the packed operand that all tasks share. A panel of it is asked for into L2 while
//!   the tiles multiply the one before.
//! - **Memory** holds the operands themselves. While a task multiplies, it asks for what it will
//!   pack next, the next piece of the sum or the block after its own: packed at the speed of
//!   memory, small products would wait a fifth of their time.
//!
//! Both operands are first packed, copied into the order in which the kernel reads them: lines of
//! a matrix that lie a power of two apart fall on the same few places of a cache and drive each
//! other out, and each lies on a page of its own. Packing B (k x n) costs as much for 10 rows of A
//! as for 1000. So the operand that all tasks need is packed once, by all of them; the other one
//! by each task, its own part. Where C is small and the sum long, the sum is cut instead, and the
//! parts are added up in order.
//!
//! A is read where it lies, without a copy, where the next numbers are near: if its rows lie side by
//! side, since each k's are near the last one's, and if C is narrow, so that few panels read a row.
//!
//! The cut depends on the sizes alone and each element of C is summed in one order, so the bits
//! are the same on any number of threads.
use std::ops::Range;

use rayon::prelude::*;

use super::micro::{
    self, BESIDE, DEPTH, IN_PLACE, Kernel, LINE, Micro, PACKED, Product, ROW, STEP, SUM, Start,
    Tile,
};
use super::scratch::{Scratch, Shared};
use super::simd::{Level, fence, level};
use crate::workers::Parallel;

/// Rows of A that a task packs for itself at most, or columns of B.
const OWN: usize = 256;
/// Columns of the shared B, or rows of the shared A, that a task takes at most: its part of C
/// stays in L2.
const SHARED: usize = 1024;
/// Blocks to have at least, if they do not become too small to pay for their copies.
const TASKS: usize = 8;
/// Multiplications of a block to have at least.
const WORK: usize = 1 << 18;
/// Elements of the shared operand above which each task packs its part of both for itself.
const MOST: usize = 1 << 26;
/// Elements of the shared operand that the calling thread packs alone.
const ALONE: usize = 1 << 15;

/// Bytes of C above which it would not be found in a cache anyway.
const STREAMED: usize = 8 << 20;
/// Bytes of memory with one address translation.
const PAGE: usize = 4096;
/// Columns of C for which tiles of A are read where they lie, row by row: if they are read more often
/// than that, a copy pays.
const FEW: usize = 256;
/// Bytes from one load to the next that the CPU still recognizes as a stream and fetches ahead.
const STREAM: usize = 2048;

/// A matrix in memory: element (i, j) at `data[i * strides.0 + j * strides.1]`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    data: &'a [T],
    strides: (usize, usize),
}

impl<'a, T> Matrix<'a, T> {
    pub(super) fn new(data: &'a [T], strides: (usize, usize)) -> Self {
        Matrix { data, strides }
    }
}

/// C = A B + bias, C \[m, n\] with rows `c_stride` apart and overwritten, A \[m, k\] and
/// B \[k, n\] with any (row, column) strides, bias \[n\] added to every row; with `relu` the
/// greater of that and 0. With k = 0 it is the bias.
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
    relu: bool,
) {
    let (a, b) = (Matrix::new(a, a_strides), Matrix::new(b, b_strides));
    let (size, end) = ([m, n, k], (bias, relu));
    gemm_at(level(), size, a, b, c, c_stride, end, TASKS, None);
}

/// A stack of products of one size, C's after one another; `at` gives where A and B of one begin.
///
/// # Panics
/// If a slice is too short for a matrix.
#[allow(clippy::too_many_arguments)] // as above
pub fn gemm_batch<T: Kernel>(
    [m, n, k]: [usize; 3],
    a: &[T],
    a_strides: (usize, usize),
    b: &[T],
    b_strides: (usize, usize),
    c: &mut [T],
    at: impl Fn(usize) -> [usize; 2] + Sync,
) {
    if m * n == 0 {
        return;
    }
    // many products are the tasks themselves, small ones several together; a few large ones come one
    // after another, each on all threads
    let count = c.len() / (m * n);
    let together = (WORK / (m * n).saturating_mul(k).max(1)).clamp(1, count.max(1));
    let few = count < TASKS && m.saturating_mul(n).saturating_mul(k) >= TASKS * WORK;
    let tasks = if few { TASKS } else { 1 };
    let run = |(i, c): (usize, &mut [T])| {
        let matrices = |i: usize| {
            let [at_a, at_b] = at(i);
            let (a, b) = (&a[at_a.min(a.len())..], &b[at_b.min(b.len())..]);
            [Matrix::new(a, a_strides), Matrix::new(b, b_strides)]
        };
        for (i, c) in (i * together..).zip(c.chunks_exact_mut(m * n)) {
            let [a, b] = matrices(i);
            let next = (i + 1 < count).then(|| matrices(i + 1));
            gemm_at(level(), [m, n, k], a, b, c, n, (None, false), tasks, next);
        }
    };
    if few || count <= together {
        (0..).zip(c.chunks_mut(m * n * together)).for_each(run);
    } else {
        c.par_chunks_mut(m * n * together)
            .enumerate()
            .with_max_len(1)
            .each(run);
    }
}

/// A product in at most about `tasks` tasks; `next` are the matrices of the one that follows, of
/// the same size and strides.
#[allow(clippy::too_many_arguments)] // as above
pub(super) fn gemm_at<T: Kernel>(
    level: Level,
    [m, n, k]: [usize; 3],
    a: Matrix<T>,
    b: Matrix<T>,
    c: &mut [T],
    c_stride: usize,
    (bias, relu): (Option<&[T]>, bool),
    tasks: usize,
    next: Option<[Matrix<T>; 2]>,
) {
    if m == 0 || n == 0 {
        return;
    }
    let last = |i: usize, j: usize, s: (usize, usize)| (i - 1) * s.0 + (j - 1) * s.1;
    assert!(last(m, n, (c_stride, 1)) < c.len() && (c_stride >= n || m == 1));
    assert!(k == 0 || last(m, k, a.strides) < a.data.len() && last(k, n, b.strides) < b.data.len());
    assert!(bias.is_none_or(|b| b.len() >= n));
    let micro = T::micro(level);
    let pieces = k.div_ceil(SUM).max(1); // at least once: an empty sum is the bias
    let depth = k.div_ceil(pieces);
    let tiles = m.div_ceil(micro.rows());
    let problem = Problem {
        micro,
        size: [m, n, k],
        a,
        b,
        next,
        bias,
        relu,
        tiles,
        tile_rows: (m / tiles, m % tiles),
        panels: n.div_ceil(micro.width()),
        pieces,
        tile_size: if by_rows(a) {
            micro.rows() * ROW
        } else {
            // the stores of a tile may run over its end by a vector
            (micro.rows() * depth + micro.lanes).next_multiple_of(16)
        },
        panel_size: micro.width() * depth,
        in_place: k > 0
            && match a.strides {
                (1, stride) => stride * size_of::<T>() <= STREAM,
                (stride, 1) => stride * size_of::<T>() <= STREAM && n <= FEW,
                _ => false,
            },
        // B is the larger one only where few rows leave it to be packed once anyway
        shares_b: m >= n.min(512),
    };
    let work = m.saturating_mul(n).saturating_mul(k);
    problem.run(tasks.min(work / WORK), c, c_stride);
}

/// A product and how it is cut.
struct Problem<'a, T: 'static> {
    micro: &'static Micro<T>,
    size: [usize; 3],
    a: Matrix<'a, T>,
    b: Matrix<'a, T>,
    next: Option<[Matrix<'a, T>; 2]>,
    bias: Option<&'a [T]>,
    relu: bool,
    /// Tiles of rows, panels of columns, pieces of the summation.
    tiles: usize,
    panels: usize,
    pieces: usize,
    /// Rows of a tile, and how many tiles have one more.
    tile_rows: (usize, usize),
    /// Elements of a packed tile and panel.
    tile_size: usize,
    panel_size: usize,
    /// Whether a task reads its part of A where it lies: each k, or each row, near the last.
    in_place: bool,
    /// Whether B is packed once for all tasks, and A by each for itself; or the other way.
    shares_b: bool,
}

/// A task's part of a product.
struct Block {
    tiles: Range<usize>,
    panels: Range<usize>,
    pieces: Range<usize>,
}

/// Lines of memory that will be read soon: `lines` next to each other in each of `runs`.
struct Ahead<T> {
    at: *const T,
    runs: usize,
    /// Elements between the starts of runs.
    stride: usize,
    lines: usize,
    /// The run and the line from which on none has been asked for.
    from: (usize, usize),
}

impl<T: Kernel> Ahead<T> {
    /// A part of a matrix, along its rows or columns as they lie in memory.
    fn new(m: Matrix<T>, rows: Range<usize>, columns: Range<usize>) -> Self {
        let line = LINE / size_of::<T>();
        let at = rows.start * m.strides.0 + columns.start * m.strides.1;
        let (runs, len, stride) = if by_rows(m) {
            (rows.len(), columns.len(), m.strides.0)
        } else {
            (columns.len(), rows.len(), m.strides.1)
        };
        // runs without gaps are one run, which is asked for line after line
        let (runs, stride, lines) = if len == stride {
            ((runs * len).div_ceil(line), line, 1)
        } else {
            (runs, stride, len.div_ceil(line))
        };
        Ahead {
            at: m.data.as_ptr().wrapping_add(at),
            runs,
            stride,
            lines,
            from: (0, 0),
        }
    }

    /// The next `n` lines to ask for, if there are any: the first, and the elements between them.
    fn ask(&mut self, n: usize) -> Option<(*const T, usize)> {
        let (run, line) = self.from;
        if self.runs == 0 || line >= self.lines {
            return None;
        }
        self.from = if run + n < self.runs {
            (run + n, line)
        } else {
            (0, line + 1)
        };
        let at = run * self.stride + line * (LINE / size_of::<T>());
        Some((self.at.wrapping_add(at), self.stride))
    }
}

/// Whether the rows of A lie one after another in a packed tile, or side by side for each k: as
/// they do in memory, so that packing is copying.
fn by_rows<T: Kernel>(a: Matrix<T>) -> bool {
    a.strides.0 != 1
}

/// All of 0..n, by all threads or by this one.
fn each(n: usize, parallel: bool, f: impl Fn(usize) + Sync + Send) {
    if parallel && n > 1 {
        (0..n).into_par_iter().with_max_len(1).each(f);
    } else {
        (0..n).for_each(f);
    }
}

/// Range `i` of `total` cut into `parts` that differ by at most one.
fn part(total: usize, parts: usize, i: usize) -> Range<usize> {
    i * total / parts..(i + 1) * total / parts
}

impl<T: Kernel> Problem<'_, T> {
    /// All tiles have `tile_rows` rows, the first ones one more.
    fn rows(&self, tile: usize) -> Range<usize> {
        let (rows, more) = self.tile_rows;
        let start = tile * rows + tile.min(more);
        start..start + rows + usize::from(tile < more)
    }

    fn columns(&self, panel: usize) -> Range<usize> {
        let width = self.micro.width();
        panel * width..((panel + 1) * width).min(self.size[1])
    }

    fn ks(&self, piece: usize) -> Range<usize> {
        part(self.size[2], self.pieces, piece)
    }

    /// All of it, in about as many tasks.
    fn run(&self, tasks: usize, c: &mut [T], c_stride: usize) {
        let [m, n, _] = self.size;
        let (height, width) = (self.micro.rows(), self.micro.width());
        let (most_rows, most_columns) = if self.shares_b {
            (OWN, SHARED)
        } else {
            (SHARED, OWN)
        };
        // how many parts each of rows, columns and the summation gives
        let mut rows = m.div_ceil(most_rows);
        let mut columns = n.div_ceil(most_columns);
        let mut parts = 1;
        while rows * columns * parts < tasks {
            // a block of so many rows and columns pays for packing its operands
            let (tall, wide) = (m >= rows * 2 * 8 * height, n >= columns * 2 * 8 * width);
            if tall && (self.shares_b || !wide) {
                rows *= 2; // which packs nothing twice
            } else if wide {
                columns *= 2;
            } else if self.pieces >= parts * 2 {
                parts *= 2;
            } else if self.shares_b && m >= rows * 2 * 4 * height {
                rows *= 2;
            } else if n >= columns * 2 * 2 * width {
                columns *= 2;
            } else if m >= rows * 2 * 4 * height {
                rows *= 2;
            } else {
                break;
            }
        }
        (rows, columns) = (rows.min(self.tiles), columns.min(self.panels));

        let (own, count) = if self.shares_b {
            (self.panel_size, self.panels)
        } else {
            (self.tile_size, self.tiles)
        };
        let parallel = tasks > 1;
        let size = self.pieces.saturating_mul(count * own);
        // a block that is alone packs both operands piece by piece, in its own cache
        let shares = rows * columns > 1 && size <= MOST && (self.shares_b || !self.in_place);
        let mut shared = Scratch::<T>::new(if shares { size } else { 0 });
        if shares {
            let to = Shared::new(&mut shared);
            let strips = count.div_ceil(8);
            each(strips * self.pieces, parallel && size > ALONE, |i| {
                let (strip, piece) = (part(count, strips, i % strips), i / strips);
                let (at, len) = ((piece * count + strip.start) * own, strip.len() * own);
                // SAFETY: each piece and strip is packed by one task.
                self.pack(self.shares_b, strip, self.ks(piece), unsafe {
                    to.slice(at, len)
                });
            });
        }
        let shared = shares.then_some(&shared[..]);

        // the sums over the first part of the pieces are made in C, the others aside
        let mut aside = Scratch::<T>::new((parts - 1) * m * n);
        let (c, rest) = (Shared::new(c), Shared::new(&mut aside));
        let whole = parts == 1;
        let blocks = rows * columns * parts;
        let block = |i: usize| Block {
            tiles: part(self.tiles, rows, i % rows),
            panels: part(self.panels, columns, i / rows % columns),
            pieces: part(self.pieces, parts, i / rows / columns),
        };
        each(blocks, parallel, |i| {
            // most often the thread's next one too
            let next = if i + 1 < blocks {
                Some((block(i + 1), [self.a, self.b]))
            } else {
                self.next.map(|matrices| (block(0), matrices))
            };
            let (to, stride) = match i / rows / columns {
                0 => (c.ptr(), c_stride),
                // SAFETY: the part's sums lie in the scratch.
                i => (unsafe { rest.ptr().add((i - 1) * m * n) }, n),
            };
            // SAFETY: the block of C is the task's own.
            unsafe { self.block(block(i), next, shared, to, stride, whole) };
        });
        if !whole {
            each(m, parallel && m * n >= 1 << 14, |i| {
                // SAFETY: a row is one task's.
                let row = unsafe { c.slice(i * c_stride, n) };
                for part in 0..parts - 1 {
                    let from = &aside[(part * m + i) * n..][..n];
                    row.iter_mut().zip(from).for_each(|(c, &x)| *c += x);
                }
                if let Some(bias) = self.bias {
                    row.iter_mut().zip(bias).for_each(|(c, &x)| *c += x);
                }
                if self.relu {
                    row.iter_mut().for_each(|c| *c = c.nan_max(T::ZERO));
                }
            });
        }
    }

    /// One task: a block of C, or of a part of its sums. `next` is the block after it, of these
    /// matrices.
    ///
    /// # Safety
    /// `c` is where C would begin, its rows `stride` apart, and nobody else uses the block.
    unsafe fn block(
        &self,
        block: Block,
        next: Option<(Block, [Matrix<T>; 2])>,
        shared: Option<&[T]>,
        c: *mut T,
        stride: usize,
        whole: bool,
    ) {
        let micro = self.micro;
        let (tiles, panels) = (&block.tiles, &block.panels);
        let [shared_a, shared_b] = [!self.shares_b, self.shares_b].map(|s| shared.filter(|_| s));
        let room = |shared: Option<_>, size| Scratch::<T>::new(shared.map_or(size, |_| 0));
        let room_a = if self.in_place {
            0
        } else {
            tiles.len() * self.tile_size
        };
        let mut own_a = room(shared_a, room_a);
        // a panel of its own is packed just before its use, while it is in L1; several together
        // where B's rows are so far apart that each would cost a look-up of its address
        let apart = self.b.strides.0 * size_of::<T>() >= PAGE && self.b.strides.1 == 1;
        let group = if apart { 8 } else { 1 };
        let mut own_b = room(shared_b, group * self.panel_size);
        let Range { start, end } = block.pieces;
        // a large result that is written once goes past the caches, or each line of it would first
        // be read
        let aligned = [c as usize, stride * size_of::<T>()]
            .iter()
            .all(|x| x.is_multiple_of(LINE));
        let [m, n, _] = self.size;
        let stream = aligned && end - start == 1 && m * n * size_of::<T>() >= STREAMED;
        for piece in start..end {
            let ks = self.ks(piece);
            let a = match shared_a {
                Some(a) => &a[(piece * self.tiles + tiles.start) * self.tile_size..],
                None if self.in_place => &self.a.data[ks.start * self.a.strides.1..],
                None => {
                    self.pack(false, tiles.clone(), ks.clone(), &mut own_a);
                    &own_a[..]
                }
            };
            let next = match &next {
                _ if piece + 1 < end => Some((&block, piece + 1, [self.a, self.b])),
                Some((next, matrices)) => Some((next, next.pieces.start, *matrices)),
                None => None,
            };
            // of what the task packs itself
            let ahead = next.map(|(block, piece, [a, b])| {
                let ks = self.ks(piece);
                let rows = self.rows(block.tiles.start).start..self.rows(block.tiles.end - 1).end;
                let columns = self.columns(block.panels.start).start;
                let columns = columns..self.columns(block.panels.end - 1).end;
                let a = shared_a.is_none().then(|| Ahead::new(a, rows, ks.clone()));
                [a, shared_b.is_none().then(|| Ahead::new(b, ks, columns))]
            });
            let mut ahead = ahead.unwrap_or_default();
            let steps = ks.len() / STEP;
            for (i, panel) in panels.clone().enumerate() {
                let b = match shared_b {
                    Some(b) => &b[(piece * self.panels + panel) * self.panel_size..],
                    None if i % group > 0 => &own_b[i % group * self.panel_size..],
                    None => {
                        let panels = panel..(panel + group).min(panels.end);
                        self.pack(true, panels, ks.clone(), &mut own_b);
                        &own_b[..]
                    }
                };
                let columns = self.columns(panel);
                let start = match self.bias {
                    _ if piece > start => Some(Start::Load),
                    Some(bias) if whole => Some(Start::Bias(bias[columns.start..].as_ptr())),
                    _ => None,
                };
                for (j, tile) in tiles.clone().enumerate() {
                    let rows = self.rows(tile);
                    let ((rs, cs), packed) = (self.a.strides, j * self.tile_size);
                    let (at, a_stride, lie) = match (self.in_place, by_rows(self.a)) {
                        (true, true) => (rows.start * rs, rs, IN_PLACE),
                        (true, false) => (rows.start, cs, BESIDE),
                        (false, true) => (packed, ROW, PACKED),
                        (false, false) => (packed, rows.len(), BESIDE),
                    };
                    // the next panel that is packed already, then what is not yet
                    let asked = j * steps * (LINE / size_of::<T>());
                    let ask = match shared_b {
                        Some(_) if asked < self.panel_size => {
                            let at = b.as_ptr().wrapping_add(self.panel_size + asked);
                            Some((at, LINE / size_of::<T>()))
                        }
                        _ => ahead.iter_mut().flatten().find_map(|a| a.ask(steps)),
                    };
                    let product = Product {
                        a: a[at..].as_ptr(),
                        a_stride,
                        b: b.as_ptr(),
                        // or what is there anyway
                        ask: ask.unwrap_or((b.as_ptr(), 0)),
                        b_stride: micro.vectors(columns.len()) * micro.lanes,
                        sum: ks.len(),
                        start,
                        // SAFETY: the tile lies in C.
                        c: unsafe { c.add(rows.start * stride + columns.start) },
                        c_stride: stride,
                        relu: self.relu && whole && piece + 1 == end,
                        stream,
                    };
                    let (p, columns) = (rows.len(), columns.len());
                    // SAFETY: the scratches hold the tile and the panel, the caller gives C.
                    unsafe { run_product(micro, lie, product, p, columns) };
                }
            }
        }
        if stream {
            fence();
        }
    }

    /// Pack tiles of A, or panels of B.
    fn pack(&self, panels: bool, which: Range<usize>, ks: Range<usize>, to: &mut [T]) {
        if panels {
            let columns = self.columns(which.start).start..self.columns(which.end - 1).end;
            self.pack_b(columns, &ks, to);
        } else {
            self.pack_a(which, &ks, to);
        }
    }

    /// Tiles of A.
    fn pack_a(&self, tiles: Range<usize>, ks: &Range<usize>, to: &mut [T]) {
        // neighbours in memory after one another
        let depth = if by_rows(self.a) { SUM } else { DEPTH };
        for k in ks.clone().step_by(depth) {
            for tile in tiles.clone() {
                let (rows, some) = (self.rows(tile), k..(k + depth).min(ks.end));
                let place = (tile - tiles.start) * self.tile_size + (k - ks.start) * rows.len();
                self.pack_block(rows, some, &mut to[place..]);
            }
        }
    }

    /// Elements of a tile's rows.
    fn pack_block(&self, rows: Range<usize>, ks: Range<usize>, to: &mut [T]) {
        let (data, (rs, cs)) = (self.a.data, self.a.strides);
        let (row, p, k, len) = (rows.start, rows.len(), ks.start, ks.len());
        let by_rows = by_rows(self.a);
        // (lines, the elements of each, how far apart they lie in `to`)
        let (lines, size, stride) = if by_rows { (p, len, ROW) } else { (len, p, p) };
        let (apart, along) = if by_rows { (rs, cs) } else { (cs, rs) };
        let from = row * rs + k * cs;
        let vectors = size.div_ceil(self.micro.lanes);
        let whole = vectors * self.micro.lanes;
        if along == 1 && from + (lines - 1) * apart + whole <= data.len() {
            // whole vectors: after a row is room, and what a line of k writes too much the next
            // overwrites, in the order of memory
            let block = micro::Copy {
                from: data[from..].as_ptr(),
                from_stride: apart,
                to: to[..(lines - 1) * stride + whole].as_mut_ptr(),
                to_stride: stride,
                vectors,
                rows: lines,
            };
            // SAFETY: the last line's vectors end in `data` and in `to`.
            unsafe { (self.micro.copy)(&block) };
            return;
        }
        for i in 0..lines {
            for j in 0..size {
                to[i * stride + j] = data[from + i * apart + j * along];
            }
        }
    }

    /// Panels of B, a row of whole vectors for each k; the last panel is as many vectors wide as
    /// its columns need, and filled up with zeros.
    fn pack_b(&self, columns: Range<usize>, ks: &Range<usize>, to: &mut [T]) {
        let (lanes, width) = (self.micro.lanes, self.micro.width());
        let mut steps = |j: usize, k: usize| {
            let strip = j..(j + width).min(columns.end);
            let rows = (ks.end - k).min(lanes);
            let row = self.micro.vectors(strip.len()) * lanes;
            let to = &mut to[(j - columns.start) / width * self.panel_size..];
            self.pack_columns(
                strip,
                k..k + rows,
                &mut to[(k - ks.start) * row..][..rows * row],
            );
        };
        if self.b.strides.1 == 1 {
            for k in ks.clone().step_by(lanes) {
                columns.clone().step_by(width).for_each(|j| steps(j, k));
            }
        } else {
            for j in columns.clone().step_by(width) {
                ks.clone().step_by(lanes).for_each(|k| steps(j, k));
            }
        }
    }

    /// At most as many rows as a vector has lanes of at most a panel's columns.
    fn pack_columns(&self, columns: Range<usize>, ks: Range<usize>, to: &mut [T]) {
        let (data, (rs, cs)) = (self.b.data, self.b.strides);
        let (j, k, rows, lanes) = (columns.start, ks.start, ks.len(), self.micro.lanes);
        let vectors = self.micro.vectors(columns.len());
        if cs == 1 && columns.len() == vectors * lanes {
            let block = micro::Copy {
                from: data[k * rs + j..].as_ptr(),
                from_stride: rs,
                to: to.as_mut_ptr(),
                to_stride: columns.len(),
                vectors,
                rows,
            };
            // SAFETY: all of the columns are B's; `to` has the size.
            unsafe { (self.micro.copy)(&block) };
            return;
        }
        for v in 0..vectors {
            let from = k * rs + (j + v * lanes) * cs;
            let columns = (columns.len() - v * lanes).min(lanes);
            if rs == 1 && columns == lanes && from + (lanes - 1) * cs + lanes <= data.len() {
                let block = micro::Copy {
                    from: data[from..].as_ptr(),
                    from_stride: cs,
                    to: to[v * lanes..].as_mut_ptr(),
                    to_stride: vectors * lanes,
                    vectors: 1,
                    rows,
                };
                // SAFETY: the last of lanes x lanes ends in `data`; `to` has the size.
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
        let part = part(total, parts, i);
        (part.start, part.len())
    })
}

/// Compute a tile of which only `columns` columns exist in C.
///
/// # Safety
/// The pointers of `t` are valid as [`Tile`] says, those to C for `columns` columns.
pub(super) unsafe fn run_tile<T: Kernel>(micro: &Micro<T>, t: Tile<T>, columns: usize) {
    const MOST: usize = 32;
    let vectors = micro.vectors(columns);
    let (p, width) = (t.rows.len(), vectors * micro.lanes);
    let kernel = micro.tile[vectors - 1][p - 1];
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

/// Compute a product's tile of `p` rows of which only `columns` columns exist in C.
///
/// # Safety
/// The pointers of `t` are valid as [`Product`] says, those to C and the bias for `columns` columns.
unsafe fn run_product<T: Kernel>(
    micro: &Micro<T>,
    lie: usize,
    t: Product<T>,
    p: usize,
    columns: usize,
) {
    const MOST: usize = 32;
    let vectors = micro.vectors(columns);
    let kernel = micro.product[lie][vectors - 1][p - 1];
    if columns == vectors * micro.lanes {
        // SAFETY: the caller's promise.
        unsafe { kernel(&t) };
        return;
    }
    // a ragged panel goes through a whole tile aside
    let mut aside = [[T::ZERO; MOST]; 16];
    // SAFETY: each row of C has `columns` columns, each row aside MOST, which no panel exceeds.
    unsafe {
        for (r, aside) in aside[..p].iter_mut().enumerate() {
            let from = match t.start {
                None => break,
                Some(Start::Bias(bias)) => bias,
                Some(Start::Load) => t.c.add(r * t.c_stride).cast_const(),
            };
            aside[..columns].copy_from_slice(std::slice::from_raw_parts(from, columns));
        }
        kernel(&Product {
            c: aside.as_mut_ptr().cast(),
            c_stride: MOST,
            start: t.start.map(|_| Start::Load),
            stream: false,
            ..t
        });
        for (r, aside) in aside[..p].iter().enumerate() {
            let c = std::slice::from_raw_parts_mut(t.c.add(r * t.c_stride), columns);
            c.copy_from_slice(&aside[..columns]);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::workers::on_threads;

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
            // the sum in parts, A shared, B shared, B's rows far apart
            [20, 30, 3000],
            [30, 600, 100],
            [530, 40, 90],
            [9, 1100, 70],
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
                let relu = layout % 3 == 1;
                let mut expected = vec![9.0; m * c_stride];
                for i in 0..m {
                    for j in 0..n {
                        let mut sum = bias.map_or(0.0, |b| b[j].to_f64());
                        for l in 0..k {
                            sum +=
                                a[i * sa.0 + l * sa.1].to_f64() * b[l * sb.0 + j * sb.1].to_f64();
                        }
                        expected[i * c_stride + j] = if relu { sum.max(0.0) } else { sum };
                    }
                }
                for level in Level::available() {
                    let run = || {
                        let mut c = vec![T::of(9.0); m * c_stride];
                        let (a, b) = (Matrix::new(&a, sa), Matrix::new(&b, sb));
                        let end = (bias, relu);
                        gemm_at(level, [m, n, k], a, b, &mut c, c_stride, end, TASKS, None);
                        c
                    };
                    let c = run();
                    assert_close(
                        &c,
                        &expected,
                        tolerance::<T>(),
                        &format!("{level:?} {m} {n} {k} {layout}"),
                    );
                    if m * n * k >= WORK {
                        assert!(on_threads(1, run) == c && on_threads(3, run) == c);
                    }
                }
            }
        }
    }

    #[test]
    fn a_large_result_goes_past_the_caches() {
        let [m, n, k] = [1030, 2064, 3];
        assert!(m * n * size_of::<f32>() >= STREAMED);
        let (a, b) = (numbers::<f32>(m * k, 1), numbers::<f32>(k * n, 2));
        for level in Level::available() {
            let run = || {
                let mut c = Scratch::<f32>::new(m * n); // aligned
                let (a, b) = (Matrix::new(&a, (k, 1)), Matrix::new(&b, (n, 1)));
                gemm_at(level, [m, n, k], a, b, &mut c, n, (None, true), TASKS, None);
                c.to_vec()
            };
            let c = run();
            let sum = |i: usize| {
                (0..k)
                    .map(|l| a[i / n * k + l] * b[l * n + i % n])
                    .sum::<f32>()
            };
            let right = |(i, c): (usize, &f32)| (sum(i).max(0.0) - c).abs() < 1e-5;
            assert!(c.iter().enumerate().all(right), "{level:?}");
            assert!(on_threads(1, run) == c && on_threads(3, run) == c);
        }
    }

    #[test]
    fn a_stack_is_its_products() {
        // many small ones, few large ones, one, and none
        for (count, [m, n, k]) in [
            (70, [5, 9, 20]),
            (3, [90, 100, 80]),
            (1, [7, 7, 7]),
            (0, [2, 3, 4]),
        ] {
            let (a, b) = (numbers::<f32>(count * m * k, 1), numbers::<f32>(k * n, 2));
            let run = || {
                let mut c = vec![9.0; count * m * n];
                let at = |i: usize| [i * m * k, 0];
                gemm_batch([m, n, k], &a, (k, 1), &b, (n, 1), &mut c, at);
                c
            };
            let mut expected = vec![0.0; count * m * n];
            for (i, c) in expected.chunks_exact_mut(m * n).enumerate() {
                gemm(
                    m,
                    n,
                    k,
                    &a[i * m * k..],
                    (k, 1),
                    &b,
                    (n, 1),
                    c,
                    n,
                    None,
                    false,
                );
            }
            let c = run();
            assert_close(
                &c,
                &expected.iter().map(|&x| x.into()).collect::<Vec<_>>(),
                1e-6,
                "stack",
            );
            assert!(on_threads(1, run) == c && on_threads(3, run) == c);
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
