//! Winograd's convolution: 3 x 3 taps, stride 1, with a fraction of the multiplications.
//!
//! In one dimension, F(m, 3) gives m outputs of 3 taps from n = m + 2 inputs by n products instead
//! of 3 m: y = A^T ((G g) . (B^T d)), where G evaluates the taps as a polynomial at n points, B^T the
//! inputs and A^T puts the products together again. In two dimensions each matrix is applied to
//! both axes: a tile of 4 x 4 outputs takes 36 products instead of 144, one of 2 x 2 takes 16
//! instead of 36 (Lavin and Gray 2015, arXiv:1509.09308). Summed over channels, the products of
//! each of the n^2 points are a matrix product, V \[tile, ci\] U \[ci, co\] with V = B^T d B and
//! U = G g G^T. The input gradient is the same with exchanged channels and rotated taps; the
//! weight gradient is the transpose of it all, dg = G^T (sum over tiles of V^T (A dy A^T)) G.
//!
//! The points 0, 1, -1, 2, -2 and infinity keep the constants small: the f32 error of a 4 x 4 tile
//! is about ten times the direct kernels', which a larger tile would multiply again. (An infinite
//! input makes all of its tile NaN: the transforms subtract.) The transforms work on vectors of
//! channels. A task's tiles, transformed, and their products stay in L2 from the first transform to
//! the last; only images and weights are read from memory and only results written. Tasks are cut
//! by the shape alone and sums are added in a fixed order: the same bits on any number of threads.
use std::marker::PhantomData;

use rayon::prelude::*;

use super::conv::{ConvShape, TASKS};
use super::gemm::{balanced, padded_bias};
use super::micro::{self, DEPTH, Job, Kernel, Micro, Outer, Start, Term, Tile, VECTORS};
use super::scratch::{Scratch, Shared};
use super::simd::{Level, Simd};
use crate::dtype::Real;
use crate::workers::Parallel;

/// Tiles side by side in a scratch: the rows of the largest register tile.
const GROUP: usize = 12;
/// Tiles of a task: with CHUNK channels in and out, V, U and the products take 1.5 MB of L2.
const BLOCK: usize = 48;
/// Channels in and out at a time.
const CHUNK: usize = 64;
/// Elements between the points of a scratch beyond what they hold: without, the same place of all
/// points would fall into few sets of L1.
const PAD: usize = 16;
/// The most elements of a transformed weight that is computed once, before the tasks, and not by
/// each of them: a larger one comes from memory more slowly than it is computed again.
const KEPT: usize = 1 << 20;
/// Taps of the window.
const TAPS: usize = 9;
/// Depths of a weight gathered at a time: their taps stay in L1.
const GATHER: usize = 16;

/// The tiles' size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Size {
    /// 2 x 2 outputs.
    Two,
    /// 4 x 4 outputs.
    Four,
}

/// Which tiles pay for a shape, if any.
///
/// Everything is counted in multiply-adds: the direct kernels take 9 for each output pixel and pair
/// of channels; tiles take one a point for each tile and pair, and beside them the transforms: one
/// of a vector costs as much time as about LOAD multiply-adds of it for each point, mostly for
/// bringing the cache lines. Each input is transformed once for CHUNK output channels.
pub(super) fn choose(s: &ConvShape) -> Option<Size> {
    const LOAD: f64 = 15.0;
    let window = s.window;
    let fits = window.kernel == [3, 3]
        && window.stride == [1, 1]
        && window.dilation == [1, 1]
        && window.padding.iter().all(|&p| p <= 2)
        && s.groups == 1;
    if !fits || s.n == 0 {
        return None;
    }
    let (ci, co) = (s.ci as f64, s.co as f64);
    let cost = |m: usize| {
        let tiles = (s.n * s.oh.div_ceil(m) * s.ow.div_ceil(m)) as f64;
        let transforms = tiles * (ci * (co / CHUNK as f64).ceil() + co) + ci * co;
        ((m + 2) * (m + 2)) as f64 * (tiles * ci * co + LOAD * transforms)
    };
    let direct = TAPS as f64 * (s.n * s.oh * s.ow) as f64 * ci * co;
    let (two, four) = (cost(2), cost(4));
    if direct <= two.min(four) {
        None
    } else if two < four {
        Some(Size::Two)
    } else {
        Some(Size::Four)
    }
}

/// The one-dimensional transforms of F(M, 3) with N = M + 2 points.
///
/// # Safety
/// Every method needs a CPU that has the vector's instruction set.
#[allow(clippy::missing_safety_doc)] // said once, above
trait Points<const M: usize, const N: usize> {
    /// B^T d.
    unsafe fn input<V: Simd>(d: [V; N]) -> [V; N];
    /// G g.
    unsafe fn weight<V: Simd>(g: [V; 3]) -> [V; N];
    /// A^T m.
    unsafe fn output<V: Simd>(m: [V; N]) -> [V; M];
    /// A y, the transpose of `output`.
    unsafe fn output_grad<V: Simd>(y: [V; M]) -> [V; N];
    /// G^T u, the transpose of `weight`.
    unsafe fn weight_grad<V: Simd>(u: [V; N]) -> [V; 3];
}

/// c + k x.
#[inline(always)]
unsafe fn fma<V: Simd>(k: f64, x: V, c: V) -> V {
    // SAFETY: the caller's promise.
    unsafe { x.mul_add(V::splat(V::T::of(k)), c) }
}

/// k x.
#[inline(always)]
unsafe fn scale<V: Simd>(k: f64, x: V) -> V {
    // SAFETY: the caller's promise.
    unsafe { fma(k, x, V::splat(V::T::ZERO)) }
}

/// F(4, 3).
struct Four;

#[allow(clippy::undocumented_unsafe_blocks)]
impl Points<4, 6> for Four {
    #[inline(always)]
    unsafe fn input<V: Simd>(d: [V; 6]) -> [V; 6] {
        unsafe {
            let (a, b) = (fma(-4.0, d[2], d[4]), fma(-4.0, d[1], d[3]));
            let (c, e) = (fma(-1.0, d[2], d[4]), fma(-1.0, d[1], d[3]));
            [
                fma(4.0, d[0], fma(-5.0, d[2], d[4])),
                a.add(b),
                fma(-1.0, b, a),
                fma(2.0, e, c),
                fma(-2.0, e, c),
                fma(4.0, d[1], fma(-5.0, d[3], d[5])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn weight<V: Simd>(g: [V; 3]) -> [V; 6] {
        unsafe {
            let (a, b) = (scale(-1.0 / 6.0, g[0].add(g[2])), scale(1.0 / 6.0, g[1]));
            let c = fma(1.0 / 24.0, g[0], scale(1.0 / 6.0, g[2]));
            let e = scale(1.0 / 12.0, g[1]);
            [
                scale(0.25, g[0]),
                fma(-1.0, b, a),
                a.add(b),
                c.add(e),
                fma(-1.0, e, c),
                g[2],
            ]
        }
    }
    #[inline(always)]
    unsafe fn output<V: Simd>(m: [V; 6]) -> [V; 4] {
        unsafe {
            let (a, b) = (m[1].add(m[2]), m[3].add(m[4]));
            let (c, e) = (fma(-1.0, m[2], m[1]), fma(-1.0, m[4], m[3]));
            [
                m[0].add(a).add(b),
                fma(2.0, e, c),
                fma(4.0, b, a),
                fma(8.0, e, c).add(m[5]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn output_grad<V: Simd>(y: [V; 4]) -> [V; 6] {
        unsafe {
            let (a, b) = (y[0].add(y[2]), y[1].add(y[3]));
            let (c, e) = (fma(4.0, y[2], y[0]), fma(8.0, y[3], scale(2.0, y[1])));
            [
                y[0],
                a.add(b),
                fma(-1.0, b, a),
                c.add(e),
                fma(-1.0, e, c),
                y[3],
            ]
        }
    }
    #[inline(always)]
    unsafe fn weight_grad<V: Simd>(u: [V; 6]) -> [V; 3] {
        unsafe {
            let (a, b) = (u[1].add(u[2]), u[3].add(u[4]));
            let (c, e) = (fma(-1.0, u[1], u[2]), fma(-1.0, u[4], u[3]));
            let a = scale(-1.0 / 6.0, a);
            [
                fma(0.25, u[0], fma(1.0 / 24.0, b, a)),
                fma(1.0 / 6.0, c, scale(1.0 / 12.0, e)),
                fma(1.0 / 6.0, b, a).add(u[5]),
            ]
        }
    }
}

/// F(2, 3).
struct Two;

#[allow(clippy::undocumented_unsafe_blocks)]
impl Points<2, 4> for Two {
    #[inline(always)]
    unsafe fn input<V: Simd>(d: [V; 4]) -> [V; 4] {
        unsafe {
            [
                fma(-1.0, d[2], d[0]),
                d[1].add(d[2]),
                fma(-1.0, d[1], d[2]),
                fma(-1.0, d[3], d[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn weight<V: Simd>(g: [V; 3]) -> [V; 4] {
        unsafe {
            let (a, b) = (scale(0.5, g[0].add(g[2])), scale(0.5, g[1]));
            [g[0], a.add(b), fma(-1.0, b, a), g[2]]
        }
    }
    #[inline(always)]
    unsafe fn output<V: Simd>(m: [V; 4]) -> [V; 2] {
        unsafe {
            [
                m[0].add(m[1]).add(m[2]),
                fma(-1.0, m[3], fma(-1.0, m[2], m[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn output_grad<V: Simd>(y: [V; 2]) -> [V; 4] {
        unsafe {
            [
                y[0],
                y[0].add(y[1]),
                fma(-1.0, y[1], y[0]),
                scale(-1.0, y[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn weight_grad<V: Simd>(u: [V; 4]) -> [V; 3] {
        unsafe {
            let (a, b) = (scale(0.5, u[1].add(u[2])), fma(-1.0, u[2], u[1]));
            [u[0].add(a), scale(0.5, b), a.add(u[3])]
        }
    }
}

/// A transform of both axes: the function down the columns of what `load` gives at (row, column),
/// then along the rows, each result to `store`. A macro: a closure that is not inlined would not be
/// compiled with its caller's instruction set.
macro_rules! both {
    ($f:path: $from:expr => $to:expr, |$r:ident, $c:ident| $load:expr,
     |$y:ident, $x:ident, $v:ident| $store:expr $(,)?) => {{
        let zero = V::splat(T::ZERO);
        let mut half = [[zero; $from]; $to];
        for $c in 0..$from {
            let mut column = [zero; $from];
            for $r in 0..$from {
                column[$r] = $load;
            }
            let column = $f(column);
            for r in 0..$to {
                half[r][$c] = column[r];
            }
        }
        for $y in 0..$to {
            let row = $f(half[$y]);
            for $x in 0..$to {
                let $v = row[$x];
                $store;
            }
        }
    }};
}

/// Images whose pixels are read in whole vectors.
struct Image<'a, T> {
    data: &'a [T],
    size: [usize; 2],
    channels: usize,
    /// A pixel of zeros, the last pixel's worth of the data, and as much to fill up.
    edge: Scratch<T>,
    pixel: usize,
}

impl<'a, T: Kernel> Image<'a, T> {
    fn new(data: &'a [T], size: [usize; 2], channels: usize, lanes: usize) -> Self {
        let pixel = channels.next_multiple_of(lanes);
        let mut edge = Scratch::zeros(3 * pixel);
        let end = pixel.min(data.len());
        edge[2 * pixel - end..2 * pixel].copy_from_slice(&data[data.len() - end..]);
        Image {
            data,
            size,
            channels,
            edge,
            pixel,
        }
    }

    /// Where `len` channels, whole vectors, from `channel` on of a pixel lie, or as many zeros for
    /// one outside. Channels beyond the last are another pixel's: their sums are never read.
    #[inline(always)]
    fn pixel(&self, image: usize, y: isize, x: isize, channel: usize, len: usize) -> *const T {
        let [height, width] = self.size;
        // a negative place is a huge one
        if y as usize >= height || x as usize >= width {
            return self.edge.as_ptr();
        }
        let at = ((image * height + y as usize) * width + x as usize) * self.channels + channel;
        if at + len <= self.data.len() {
            self.data[at..].as_ptr()
        } else {
            self.edge[2 * self.pixel - (self.data.len() - at)..].as_ptr()
        }
    }
}

/// A convolution of 3 x 3 taps as tiles see it: out\[y, x, j\] = sum over taps and k of
/// in\[y + tap y - origin y, x + tap x - origin x, k\] * w\[tap, k, j\].
struct Pass {
    n: usize,
    input: [usize; 2],
    output: [usize; 2],
    origin: [isize; 2],
    depth: usize,
    columns: usize,
}

impl Pass {
    fn forward(s: &ConvShape) -> Self {
        Pass {
            n: s.n,
            input: [s.h, s.w],
            output: [s.oh, s.ow],
            origin: s.window.padding.map(|p| p as isize),
            depth: s.ci,
            columns: s.co,
        }
    }

    /// Input i takes part in output i + padding - tap: rotated, tap 2 - tap reads from
    /// i + tap - (2 - padding).
    fn input_grad(s: &ConvShape) -> Self {
        Pass {
            n: s.n,
            input: [s.oh, s.ow],
            output: [s.h, s.w],
            origin: s.window.padding.map(|p| 2 - p as isize),
            depth: s.co,
            columns: s.ci,
        }
    }

    /// Tiles of m x m outputs.
    fn tiles(&self, m: usize) -> usize {
        self.n * self.output[0].div_ceil(m) * self.output[1].div_ceil(m)
    }

    /// The image and first output of a tile.
    #[inline(always)]
    fn place(&self, tile: usize, m: usize) -> (usize, usize, usize) {
        let (rows, columns) = (self.output[0].div_ceil(m), self.output[1].div_ceil(m));
        let (row, column) = (tile / columns, tile % columns);
        (row / rows, row % rows * m, column * m)
    }
}

/// A stretch of tiles or channels: start and length.
type Part = (usize, usize);

/// Parts of `size` of at most `most`, cut at multiples of `unit`.
fn parts(size: usize, unit: usize, most: usize) -> Vec<Part> {
    let units = size.div_ceil(unit);
    balanced(units, units.div_ceil(most / unit))
        .map(|(start, len)| (start * unit, (len * unit).min(size - start * unit)))
        .collect()
}

/// The longest part.
fn longest(parts: &[Part]) -> usize {
    parts.iter().map(|p| p.1).max().unwrap_or(0)
}

/// Transforms some channels of some tiles: of the input to \[group of ROWS tiles\]\[block of DEPTH
/// channels\]\[point\]\[tile\]\[DEPTH\], or, with GRAD, of the output's gradient to
/// \[group\]\[panel\]\[point\]\[tile\]\[panel width\]. Strides are constants of the compiled code, so
/// that all points are stored from one register.
struct Read<'a, P, T, const M: usize, const N: usize, const ROWS: usize, const GRAD: bool> {
    of: PhantomData<P>,
    pass: &'a Pass,
    image: &'a Image<'a, T>,
    tiles: Part,
    channels: Part,
    to: *mut T,
    /// Elements between groups.
    group: usize,
}

impl<P, T, const M: usize, const N: usize, const ROWS: usize, const GRAD: bool> Job<T>
    for Read<'_, P, T, M, N, ROWS, GRAD>
where
    P: Points<M, N>,
    T: Kernel,
{
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
    unsafe fn run<V: Simd<T = T>>(self) {
        let Read { pass, image, .. } = self;
        let block = if GRAD { VECTORS * V::LANES } else { DEPTH };
        let stride = ROWS * block + PAD;
        let (origin, size) = if GRAD { ([0; 2], M) } else { (pass.origin, N) };
        let whole = self.channels.1.next_multiple_of(V::LANES);
        for t in 0..self.tiles.1 {
            let (n, y, x) = pass.place(self.tiles.0 + t, M);
            let (y, x) = (y as isize - origin[0], x as isize - origin[1]);
            // the edges by address alone: no branch and no copy
            let mut from = [[std::ptr::null(); N]; N];
            for r in 0..size {
                for c in 0..size {
                    let (y, x) = (y + r as isize, x + c as isize);
                    from[r][c] = image.pixel(n, y, x, self.channels.0, whole);
                }
            }
            for first in (0..whole).step_by(block) {
                // a panel is as wide as its vectors
                let len = block.min(whole - first);
                let row = if GRAD { len } else { block };
                let to = t / ROWS * self.group + first / block * (N * N * stride) + t % ROWS * row;
                for c in (0..len).step_by(V::LANES) {
                    // SAFETY: each pixel has `whole` channels, and `to` room for the tiles.
                    unsafe {
                        let to = self.to.add(to + c);
                        if GRAD {
                            both!(P::output_grad: M => N,
                                |y, x| V::load(from[y][x].add(first + c)),
                                |y, x, v| v.store(to.add((y * N + x) * stride)));
                        } else {
                            both!(P::input: N => N,
                                |y, x| V::load(from[y][x].add(first + c)),
                                |y, x, v| v.store(to.add((y * N + x) * stride)));
                        }
                    }
                }
            }
        }
    }
}

/// Transforms products, \[group\]\[panel\]\[point\]\[tile\]\[panel width\], to the output.
struct Write<'a, P, T, const M: usize, const N: usize> {
    of: PhantomData<P>,
    pass: &'a Pass,
    tiles: Part,
    channels: Part,
    from: *const T,
    /// Elements between groups.
    group: usize,
    bias: &'a [T],
    relu: bool,
    y: Shared<T>,
}

impl<P: Points<M, N>, T: Kernel, const M: usize, const N: usize> Job<T> for Write<'_, P, T, M, N> {
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
    unsafe fn run<V: Simd<T = T>>(self) {
        let Write { pass, y: out, .. } = self;
        let [height, width] = pass.output;
        let block = VECTORS * V::LANES;
        let stride = GROUP * block + PAD;
        let mut aside = [T::ZERO; 16];
        for t in 0..self.tiles.1 {
            let (n, y, x) = pass.place(self.tiles.0 + t, M);
            let corner = ((n * height + y) * width + x) * pass.columns + self.channels.0;
            let (rows, columns) = (height - y, width - x);
            for c in (0..self.channels.1).step_by(V::LANES) {
                let panel = c / block * block;
                let row = block.min(self.channels.1.next_multiple_of(V::LANES) - panel);
                let from = t / GROUP * self.group + c / block * (N * N * stride) + t % GROUP * row;
                let lanes = self.channels.1 - c;
                // SAFETY: `from` holds the tiles, the bias is filled up to whole vectors, and the
                // outputs inside the image are the task's own.
                unsafe {
                    let from = self.from.add(from + c - panel);
                    let bias = V::load(self.bias[self.channels.0 + c..].as_ptr());
                    both!(P::output: N => M,
                    |y, x| V::load(from.add((y * N + x) * stride)),
                    |y, x, v| if y < rows && x < columns {
                        let at = corner + (y * width + x) * pass.columns + c;
                        let mut v = v.add(bias);
                        if self.relu {
                            v = v.nan_max(V::splat(T::ZERO));
                        }
                        if lanes >= V::LANES {
                            v.store(out.ptr().add(at));
                        } else {
                            v.store(aside.as_mut_ptr());
                            out.slice(at, lanes).copy_from_slice(&aside[..lanes]);
                        }
                    });
                }
            }
        }
    }
}

/// How a weight is read: w\[tap, k, j\] is at j * column + k * depth + tap, or + 8 - tap.
#[derive(Clone, Copy)]
struct Weights<'a, T> {
    data: &'a [T],
    column: usize,
    depth: usize,
    rotated: bool,
}

/// Transforms weights to \[panel\]\[point\]\[depth\]\[panel width\].
struct Weigh<'a, P, T: 'static, const M: usize, const N: usize> {
    of: PhantomData<P>,
    micro: &'static Micro<T>,
    weights: Weights<'a, T>,
    columns: Part,
    depths: Part,
    to: *mut T,
}

impl<P: Points<M, N>, T: Kernel, const M: usize, const N: usize> Job<T> for Weigh<'_, P, T, M, N> {
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
    unsafe fn run<V: Simd<T = T>>(self) {
        let block = VECTORS * V::LANES;
        let stride = CHUNK * block + PAD;
        let rotated = self.weights.rotated;
        let mut taps = [T::ZERO; GATHER * TAPS * 16];
        for c in (0..self.columns.1).step_by(V::LANES) {
            for k0 in (0..self.depths.1).step_by(GATHER) {
                let depths = GATHER.min(self.depths.1 - k0);
                let panel = c / block * block;
                let row = block.min(self.columns.1.next_multiple_of(V::LANES) - panel);
                self.gather(V::LANES, c, (self.depths.0 + k0, depths), &mut taps);
                for k in 0..depths {
                    let to = c / block * (N * N * stride) + (k0 + k) * row + c - panel;
                    // SAFETY: `taps` holds the depths, `to` has room for the panels.
                    unsafe {
                        let from = taps[k * TAPS * V::LANES..].as_ptr();
                        let to = self.to.add(to);
                        both!(P::weight: 3 => N,
                            |y, x| {
                                let tap = if rotated { 8 - y * 3 - x } else { y * 3 + x };
                                V::load(from.add(tap * V::LANES))
                            },
                            |y, x, v| v.store(to.add((y * N + x) * stride)));
                    }
                }
            }
        }
    }
}

impl<P, T: Kernel, const M: usize, const N: usize> Weigh<'_, P, T, M, N> {
    /// The taps of a vector of columns and some depths as \[depth\]\[tap\]\[lane\], zeros beyond the
    /// columns.
    fn gather(&self, lanes: usize, column: usize, (depth, depths): Part, taps: &mut [T]) {
        let w = &self.weights;
        let columns = lanes.min(self.columns.1 - column);
        let start = (self.columns.0 + column) * w.column + depth * w.depth;
        // depths that lie side by side are one run
        let (runs, run) = if w.depth == TAPS {
            (1, depths * TAPS)
        } else {
            (depths, TAPS)
        };
        for r in 0..runs {
            for q in (0..run).step_by(lanes) {
                let from = start + r * w.depth + q;
                let rows = lanes.min(run - q);
                let to = &mut taps[(r * TAPS + q) * lanes..][..rows * lanes];
                if columns == lanes && from + (lanes - 1) * w.column + lanes <= w.data.len() {
                    let block = micro::Copy {
                        from: w.data[from..].as_ptr(),
                        from_stride: w.column,
                        to: to.as_mut_ptr(),
                        to_stride: lanes,
                        vectors: 1,
                        rows,
                    };
                    // SAFETY: the last row's vector ends in the data; `to` was cut to the rows.
                    unsafe { (self.micro.transpose)(&block) };
                    continue;
                }
                for (i, to) in to.chunks_exact_mut(lanes).enumerate() {
                    for (j, to) in to[..columns].iter_mut().enumerate() {
                        *to = w.data[from + i + j * w.column];
                    }
                    to[columns..].fill(T::ZERO);
                }
            }
        }
    }
}

/// Transforms the sums of a weight gradient, \[panel\]\[point\]\[depth\]\[panel width\], back to
/// \[panel\]\[depth\]\[tap\]\[panel width\].
struct Unweigh<P, T, const M: usize, const N: usize> {
    of: PhantomData<P>,
    columns: usize,
    depths: usize,
    from: *const T,
    to: *mut T,
}

impl<P: Points<M, N>, T: Kernel, const M: usize, const N: usize> Job<T> for Unweigh<P, T, M, N> {
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
    unsafe fn run<V: Simd<T = T>>(self) {
        let block = VECTORS * V::LANES;
        let stride = CHUNK * block + PAD;
        for c in (0..self.columns).step_by(V::LANES) {
            let panel = c / block * block;
            let row = block.min(self.columns.next_multiple_of(V::LANES) - panel);
            for k in 0..self.depths {
                let from = c / block * (N * N * stride) + k * row + c - panel;
                let to = (panel * self.depths + k * row) * TAPS + c - panel;
                // SAFETY: both hold the panels.
                unsafe {
                    let (from, to) = (self.from.add(from), self.to.add(to));
                    both!(P::weight_grad: N => 3,
                        |y, x| V::load(from.add((y * N + x) * stride)),
                        |y, x, v| v.store(to.add((y * 3 + x) * row)));
                }
            }
        }
    }
}

/// A convolution by tiles. Tasks take fewer tiles where there are few, and where the weight is
/// kept: more of it stays in L2 then; one that is computed in each task asks for more tiles.
fn convolve<P: Points<M, N>, T: Kernel, const M: usize, const N: usize>(
    level: Level,
    pass: &Pass,
    x: &[T],
    weights: Weights<T>,
    bias: Option<&[T]>,
    relu: bool,
    y: &mut [T],
) {
    let micro = T::micro(level);
    let (lanes, width) = (micro.lanes, micro.width());
    let bias = padded_bias(bias, pass.columns, micro);
    let image = Image::new(x, pass.input, pass.depth, lanes);
    let depths = parts(pass.depth, DEPTH, CHUNK);
    let keep = N * N * pass.depth * pass.columns <= KEPT;
    let columns = parts(pass.columns, width, CHUNK);
    let wanted = TASKS.div_ceil(columns.len());
    let tiles = pass.tiles(M);
    let most = (tiles / wanted / GROUP * GROUP).clamp(GROUP, if keep { BLOCK / 2 } else { BLOCK });
    let tiles = parts(tiles, GROUP, most);

    let (panels, blocks) = (
        longest(&columns).div_ceil(width),
        longest(&depths).div_ceil(DEPTH),
    );
    let groups = longest(&tiles).div_ceil(GROUP);
    let (v_stride, m_stride) = (GROUP * DEPTH + PAD, GROUP * width + PAD);
    let (v_group, m_group) = (N * N * v_stride * blocks, N * N * m_stride * panels);
    let u_stride = CHUNK * width + PAD;
    let u_size = N * N * u_stride * panels;
    let weigh = |depths: Part, columns: Part, to: &mut [T]| {
        let job: Weigh<'_, P, T, M, N> = Weigh {
            of: PhantomData,
            micro,
            weights,
            columns,
            depths,
            to: to.as_mut_ptr(),
        };
        // SAFETY: `to` has `u_size` elements.
        unsafe { T::job(level, job) };
    };
    let all = depths.len() * columns.len() * u_size;
    let mut kept = Scratch::new(if keep { all } else { 0 });
    let chunks = kept.par_chunks_mut(u_size).with_max_len(1).enumerate();
    chunks.each(|(i, to)| {
        weigh(depths[i % depths.len()], columns[i / depths.len()], to);
    });

    let y = Shared::new(y);
    let zeros = [T::ZERO; 32];
    let task = |i: usize| {
        let (tiles, c) = (tiles[i / columns.len()], i % columns.len());
        let mut v = Scratch::new(groups * v_group);
        let mut m = Scratch::new(groups * m_group);
        let mut u = Scratch::new(if keep { 0 } else { u_size });
        for (d, &depth) in depths.iter().enumerate() {
            let read: Read<'_, P, T, M, N, GROUP, false> = Read {
                of: PhantomData,
                pass,
                image: &image,
                tiles,
                channels: depth,
                to: v.as_mut_ptr(),
                group: v_group,
            };
            // SAFETY: `v` has room for the groups.
            unsafe { T::job(level, read) };
            let u = if keep {
                &kept[(c * depths.len() + d) * u_size..]
            } else {
                weigh(depth, columns[c], &mut u);
                &u
            };
            let terms: Vec<Term> = (0..depth.1)
                .step_by(DEPTH)
                .map(|k| Term {
                    offset: k / DEPTH * N * N * v_stride,
                    len: DEPTH.min(depth.1 - k),
                })
                .collect();
            for (point, panel) in (0..N * N).flat_map(|n| (0..panels).map(move |p| (n, p))) {
                let left = columns[c].1.saturating_sub(panel * width);
                if left == 0 {
                    continue;
                }
                let vectors = micro.vectors(left);
                let row = vectors * lanes;
                let rows: [usize; GROUP] = std::array::from_fn(|p| p * row);
                for first in (0..tiles.1).step_by(GROUP) {
                    let here = GROUP.min(tiles.1 - first);
                    let (v_at, m_at) = (first / GROUP * v_group, first / GROUP * m_group);
                    for (r, p) in balanced(here, here.div_ceil(micro.rows())) {
                        let m_at = m_at + (panel * N * N + point) * m_stride + r * row;
                        let tile = Tile {
                            a: v[v_at + point * v_stride + r * DEPTH..].as_ptr(),
                            terms: &terms,
                            b: u[(panel * N * N + point) * u_stride..].as_ptr(),
                            start: if d == 0 {
                                Start::Bias(zeros.as_ptr())
                            } else {
                                Start::Load
                            },
                            c: m[m_at..].as_mut_ptr(),
                            rows: &rows[..p],
                            relu: false,
                        };
                        // SAFETY: each scratch holds whole groups and panels.
                        unsafe { micro.tile[vectors - 1][p - 1](&tile) };
                    }
                }
            }
        }
        let write: Write<'_, P, T, M, N> = Write {
            of: PhantomData,
            pass,
            tiles,
            channels: columns[c],
            from: m.as_ptr(),
            group: m_group,
            bias: &bias,
            relu,
            y,
        };
        // SAFETY: `m` holds the tiles, whose outputs in these columns are this task's alone.
        unsafe { T::job(level, write) };
    };
    (0..tiles.len() * columns.len())
        .into_par_iter()
        .with_max_len(1)
        .each(task);
}

/// As [`conv::forward`](super::conv::forward), with tiles of a size.
#[allow(clippy::too_many_arguments)] // conv::forward's, with how
pub(super) fn forward<T: Kernel>(
    level: Level,
    size: Size,
    s: &ConvShape,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    relu: bool,
    y: &mut [T],
) {
    assert_eq!((x.len(), y.len()), (s.input(), s.output()));
    assert_eq!(weight.len(), s.weight());
    let weights = Weights {
        data: weight,
        column: s.ci * TAPS,
        depth: TAPS,
        rotated: false,
    };
    let by = match size {
        Size::Two => convolve::<Two, T, 2, 4>,
        Size::Four => convolve::<Four, T, 4, 6>,
    };
    by(level, &Pass::forward(s), x, weights, bias, relu, y);
}

/// As [`conv::input_grad`](super::conv::input_grad), with tiles of a size.
pub(super) fn input_grad<T: Kernel>(
    level: Level,
    size: Size,
    s: &ConvShape,
    dy: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    dx: &mut [T],
) {
    assert_eq!((dy.len(), dx.len()), (s.output(), s.input()));
    assert_eq!(weight.len(), s.weight());
    let weights = Weights {
        data: weight,
        column: TAPS,
        depth: s.ci * TAPS,
        rotated: true,
    };
    let by = match size {
        Size::Two => convolve::<Two, T, 2, 4>,
        Size::Four => convolve::<Four, T, 4, 6>,
    };
    by(level, &Pass::input_grad(s), dy, weights, bias, false, dx);
}

/// As [`conv::weight_grad`](super::conv::weight_grad), with tiles of a size.
pub(super) fn weight_grad<T: Kernel>(
    level: Level,
    size: Size,
    s: &ConvShape,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) {
    assert_eq!((x.len(), dy.len()), (s.input(), s.output()));
    assert_eq!(dw.len(), s.weight());
    let pass = Pass::forward(s);
    match size {
        Size::Two => sum_weight_grad::<Two, T, 2, 4>(level, &pass, x, dy, dw),
        Size::Four => sum_weight_grad::<Four, T, 4, 6>(level, &pass, x, dy, dw),
    }
}

/// A task takes CHUNK channels in and out and a share of the tiles; its sums stay in L2.
fn sum_weight_grad<P: Points<M, N>, T: Kernel, const M: usize, const N: usize>(
    level: Level,
    pass: &Pass,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) {
    let micro = T::micro(level);
    let (lanes, width) = (micro.lanes, micro.width());
    let image = Image::new(x, pass.input, pass.depth, lanes);
    let dy = Image::new(dy, pass.output, pass.columns, lanes);
    let depths = parts(pass.depth, DEPTH, CHUNK);
    let columns = parts(pass.columns, width, CHUNK);
    let pairs = depths.len() * columns.len();
    let tiles = parts(pass.tiles(M), 1, BLOCK);
    // shares of the tiles, as many as make enough tasks, each with its own sums
    let shares = TASKS.div_ceil(pairs).min(tiles.len()).max(1);
    let shares: Vec<Part> = balanced(tiles.len(), shares).collect();

    let (panels, blocks) = (
        longest(&columns).div_ceil(width),
        longest(&depths).div_ceil(DEPTH),
    );
    let (v_stride, y_stride) = (BLOCK * DEPTH + PAD, BLOCK * width + PAD);
    let u_stride = CHUNK * width + PAD;
    let size = longest(&depths) * TAPS * panels * width;
    let mut sums = Scratch::new(shares.len() * pairs * size);
    let task = |(i, sums): (usize, &mut [T])| {
        let (depth, column) = (
            depths[i % depths.len()],
            columns[i / depths.len() % columns.len()],
        );
        let (share, len) = shares[i / pairs];
        let mut v = Scratch::new(N * N * v_stride * blocks);
        let mut y = Scratch::new(N * N * y_stride * panels);
        let mut u = Scratch::zeros(N * N * u_stride * panels);
        for &tiles in &tiles[share..share + len] {
            let read_x: Read<'_, P, T, M, N, BLOCK, false> = Read {
                of: PhantomData,
                pass,
                image: &image,
                tiles,
                channels: depth,
                to: v.as_mut_ptr(),
                group: 0, // one group
            };
            let read_dy: Read<'_, P, T, M, N, BLOCK, true> = Read {
                of: PhantomData,
                pass,
                image: &dy,
                tiles,
                channels: column,
                to: y.as_mut_ptr(),
                group: 0,
            };
            // SAFETY: `v` and `y` have room for BLOCK tiles.
            unsafe {
                T::job(level, read_x);
                T::job(level, read_dy);
            }
            for (point, first) in (0..N * N).flat_map(|n| {
                let panels = (0..column.1).step_by(width);
                panels.map(move |first| (n, first))
            }) {
                let vectors = micro.vectors(column.1 - first);
                let row = vectors * lanes;
                let panel = first / width * N * N + point;
                for k0 in (0..depth.1).step_by(DEPTH) {
                    let here = DEPTH.min(depth.1 - k0);
                    for (k, p) in balanced(here, here.div_ceil(micro.rows())) {
                        let outer = Outer {
                            a: v[(k0 / DEPTH * N * N + point) * v_stride + k..].as_ptr(),
                            stride: 0,
                            segments: 1,
                            pixels: tiles.1,
                            b: y[panel * y_stride..].as_ptr(),
                            acc: u[panel * u_stride + (k0 + k) * row..].as_mut_ptr(),
                        };
                        // SAFETY: each scratch holds whole blocks and panels.
                        unsafe { micro.outer[vectors - 1][p - 1](&outer) };
                    }
                }
            }
        }
        let unweigh: Unweigh<P, T, M, N> = Unweigh {
            of: PhantomData,
            columns: column.1,
            depths: depth.1,
            from: u.as_ptr(),
            to: sums.as_mut_ptr(),
        };
        // SAFETY: `u` and `sums` have room for the panels.
        unsafe { T::job(level, unweigh) };
    };
    sums.par_chunks_mut(size)
        .with_max_len(1)
        .enumerate()
        .each(task);

    // shares in their order, then into the weight's own order
    let (first, others) = sums.split_at_mut(pairs * size);
    let dw = Shared::new(dw);
    let pairs = first.par_chunks_mut(size).with_max_len(1).enumerate();
    pairs.each(|(i, sums)| {
        for other in others.chunks_exact(depths.len() * columns.len() * size) {
            for (to, x) in sums.iter_mut().zip(&other[i * size..]) {
                *to += *x;
            }
        }
        let (depth, column) = (depths[i % depths.len()], columns[i / depths.len()]);
        let (run, pitch) = (depth.1 * TAPS, pass.depth * TAPS);
        for c in (0..column.1).step_by(lanes) {
            let panel = c / width * width;
            let row = micro.vectors(column.1 - panel) * lanes;
            let rows = lanes.min(column.1 - c);
            let from = &sums[panel * run + c - panel..];
            let at = (column.0 + c) * pitch + depth.0 * TAPS;
            for q in (0..run).step_by(lanes) {
                let from = &from[q * row..];
                if q + lanes <= run {
                    let block = micro::Copy {
                        from: from.as_ptr(),
                        from_stride: row,
                        // SAFETY: the weights of these columns and depths are this task's alone.
                        to: unsafe { dw.ptr().add(at + q) },
                        to_stride: pitch,
                        vectors: 1,
                        rows,
                    };
                    // SAFETY: `lanes` of the run are left, in the sums and in each row of dw.
                    unsafe { (micro.transpose)(&block) };
                    continue;
                }
                for j in 0..rows {
                    // SAFETY: as above.
                    let to = unsafe { dw.slice(at + j * pitch + q, run - q) };
                    for (to, from) in to.iter_mut().zip(from[j..].iter().step_by(row)) {
                        *to = *from;
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::conv;
    use super::super::conv::tests::{definition, to_f64};
    use super::super::gemm::tests::{assert_close, numbers, tolerance};
    use super::*;
    use crate::shape::Window;
    use crate::workers::on_threads;

    fn shape(n: usize, [h, w]: [usize; 2], ci: usize, co: usize, padding: [usize; 2]) -> ConvShape {
        let window = Window {
            padding,
            ..Window::new([3, 3])
        };
        let [oh, ow] = window.output("conv2d", [h, w]).unwrap();
        ConvShape {
            n,
            h,
            w,
            ci,
            co,
            oh,
            ow,
            window,
            groups: 1,
        }
    }

    fn shapes() -> Vec<ConvShape> {
        vec![
            shape(1, [1, 1], 1, 1, [1, 1]),
            shape(5, [1, 1], 33, 70, [1, 1]),
            shape(1, [5, 7], 3, 5, [1, 1]),
            shape(5, [5, 7], 33, 70, [0, 0]),
            shape(2, [6, 6], 70, 33, [2, 2]),
            shape(1, [6, 6], 32, 32, [1, 1]),
            shape(5, [4, 4], 64, 64, [1, 1]),
            shape(1, [4, 4], 130, 100, [1, 1]),
            shape(5, [2, 2], 40, 17, [1, 1]),
            shape(1, [2, 2], 96, 64, [1, 1]),
            shape(2, [3, 3], 17, 33, [0, 0]),
            shape(1, [4, 33], 33, 16, [1, 1]),
            shape(1, [33, 4], 5, 40, [2, 0]),
            shape(3, [9, 10], 48, 32, [0, 2]),
            shape(5, [16, 16], 8, 12, [1, 1]),
            shape(0, [6, 6], 33, 5, [1, 1]),
        ]
    }

    fn check<T: Kernel>() {
        for (i, s) in shapes().iter().enumerate() {
            let x = numbers::<T>(s.input(), i as u64 + 1);
            let dy = numbers::<T>(s.output(), i as u64 + 2);
            let weight = numbers::<T>(s.weight(), i as u64 + 3);
            let biases = [s.co, s.ci].map(|n| numbers::<T>(n, i as u64 + 4));
            let bias = |c: usize| (i % 2 == 0).then_some(&biases[c][..]);
            let relu = i % 3 == 0;
            let expected = definition(s, [&x, &dy, &weight], [bias(0), bias(1)], relu);
            for (level, size) in
                Level::available().flat_map(|l| [Size::Two, Size::Four].map(|s| (l, s)))
            {
                let run = || {
                    let nan = T::of(f64::NAN);
                    let mut y = vec![nan; s.output()];
                    forward(level, size, s, &x, &weight, bias(0), relu, &mut y);
                    let mut dx = vec![nan; s.input()];
                    input_grad(level, size, s, &dy, &weight, bias(1), &mut dx);
                    let mut dw = vec![nan; s.weight()];
                    weight_grad(level, size, s, &x, &dy, &mut dw);
                    [y, dx, dw]
                };
                let results = run();
                for ((got, expected), name) in results.iter().zip(&expected).zip(["y", "dx", "dw"])
                {
                    let what = format!("{name} by {size:?} at {level:?} of {s:?}");
                    let tolerance = tolerance::<T>().max(1e-11);
                    assert_close(got, expected, tolerance, &what);
                }
                if i % 2 == 0 {
                    assert!(on_threads(1, run) == results && on_threads(3, run) == results);
                }
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

    /// The greatest error in units of the greatest result: tiles of 4 x 4 about 1e-5, direct 1e-6 to
    /// 4e-6.
    #[test]
    fn f32_error_is_bounded() {
        for (channels, size) in [(64, 16), (512, 4)] {
            let s = shape(2, [size, size], channels, channels, [1, 1]);
            let x = numbers::<f32>(s.input(), 1);
            let weight = numbers::<f32>(s.weight(), 2);
            let dy = numbers::<f32>(s.output(), 3);
            let wide = |x: &[f32]| to_f64(x);
            let (xs, ws, dys) = (wide(&x), wide(&weight), wide(&dy));
            let mut exact = [s.output(), s.input(), s.weight()].map(|n| vec![0.0; n]);
            // the direct kernels in f64, which their own tests compare with the definition
            let packed = conv::pack_forward(&s, &ws);
            conv::forward_packed(&packed, s.n, &xs, None, false, &mut exact[0]);
            let packed = conv::pack_input_grad(&s, &ws);
            conv::input_grad_packed(&packed, s.n, &dys, None, &mut exact[1]);
            conv::tests::direct_weight_grad(&s, &xs, &dys, &mut exact[2]);
            let mut tiles = [s.output(), s.input(), s.weight()].map(|n| vec![0f32; n]);
            let level = super::super::simd::level();
            forward(
                level,
                Size::Four,
                &s,
                &x,
                &weight,
                None,
                false,
                &mut tiles[0],
            );
            input_grad(level, Size::Four, &s, &dy, &weight, None, &mut tiles[1]);
            weight_grad(level, Size::Four, &s, &x, &dy, &mut tiles[2]);
            let mut direct = [s.output(), s.input(), s.weight()].map(|n| vec![0f32; n]);
            conv::forward_packed(
                &conv::pack_forward(&s, &weight),
                s.n,
                &x,
                None,
                false,
                &mut direct[0],
            );
            let packed = conv::pack_input_grad(&s, &weight);
            conv::input_grad_packed(&packed, s.n, &dy, None, &mut direct[1]);
            conv::tests::direct_weight_grad(&s, &x, &dy, &mut direct[2]);
            for (i, exact) in exact.iter().enumerate() {
                let greatest = exact.iter().fold(0f64, |m, x| m.max(x.abs()));
                let error = |got: &[f32]| {
                    let each = got.iter().zip(exact).map(|(g, e)| (*g as f64 - e).abs());
                    each.fold(0.0, f64::max) / greatest
                };
                let (tiles, direct) = (error(&tiles[i]), error(&direct[i]));
                println!("{channels} channels, result {i}: tiles {tiles:.1e}, direct {direct:.1e}");
                assert!(
                    direct < 1e-5,
                    "{channels} channels, result {i}: direct {direct:e}"
                );
                assert!(
                    tiles < 3e-5,
                    "{channels} channels, result {i}: tiles {tiles:e}"
                );
            }
        }
    }

    #[test]
    fn tiles_are_chosen_where_they_pay() {
        let four = |n, size, ci, co| choose(&shape(n, [size; 2], ci, co, [1, 1]));
        for (n, size, ci, co) in [(32, 32, 16, 16), (32, 4, 512, 512), (100, 32, 32, 64)] {
            assert_eq!(four(n, size, ci, co), Some(Size::Four));
        }
        // an output of 2 x 2 would leave most of a larger tile unused
        assert_eq!(four(32, 2, 512, 512), Some(Size::Two));
        // few channels do not pay for the transforms
        for (ci, co) in [(3, 64), (8, 8), (4, 16), (64, 4)] {
            assert_eq!(four(32, 32, ci, co), None, "{ci} -> {co}");
        }
        // few tiles do not pay for the weight's
        assert_eq!(four(1, 4, 128, 128), None);
        assert_eq!(four(0, 32, 64, 64), None);
        let s = shape(32, [32, 32], 64, 64, [1, 1]);
        for window in [
            Window {
                stride: [1, 2],
                ..s.window
            },
            Window {
                dilation: [2, 1],
                ..s.window
            },
            Window {
                padding: [3, 1],
                ..s.window
            },
            Window {
                kernel: [3, 5],
                ..s.window
            },
        ] {
            assert_eq!(choose(&ConvShape { window, ..s }), None);
        }
        assert_eq!(choose(&ConvShape { groups: 2, ..s }), None);
    }
}
