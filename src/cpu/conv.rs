//! Convolution of channels-last images, its input gradient and its weight gradient.
//!
//! All three rest on one copy: a slab, a few rows of output pixels at a time, holds for each tap
//! and output pixel the input channels that the tap multiplies, 32 channels apart, so that
//! neighbouring output pixels are neighbours in the slab whatever the stride, dilation and
//! padding (zeros, here). Only the columns of a window are unrolled; taps of different rows share
//! the slab's rows. A few input channels (the first layer's three) are taken together with the
//! columns of the window as one run of `kernel width * channels` numbers, which lie side by side
//! in the image.
//!
//! Forward, the slab is multiplied with packed weights by [`gemm`](super::gemm)'s tiles. The
//! input gradient is the same convolution with exchanged channels and mirrored taps; with stride
//! s it falls into s x s interleaved ones, each with its own taps. The weight gradient multiplies
//! the slab, transposed, with the output's gradient. Where 3 x 3 taps at stride 1 pay for
//! `winograd`'s transforms it takes their place. Tasks are cut by the shape alone and sums
//! are added in a fixed order: the same bits on any number of threads.
use std::ops::Range;

use rayon::prelude::*;

use super::col2im;
use super::depthwise;
use super::gemm::{balanced, gemm, padded_bias, run_tile};
use super::micro::{DEPTH, Kernel, Micro, Outer, Start, Term, Tile};
use super::pack::{pack, unpack};
use super::pass::{Band, Pass, bands, forward_pass, input_grad_passes, joins};
use super::patches;
use super::pointwise;
use super::scratch::{Scratch, Shared};
use super::simd::{Level, level};
use super::slab::Slab;
use super::small_maps;
use super::winograd;
use crate::level;
use crate::shape::Window;
use crate::workers::Parallel;

/// Output pixels of a task: its slab, its part of the output and a panel of weights stay in L2.
const PIXELS: usize = 256;
/// Output pixels of a slab of the weight gradient, less because all of it should stay in L1.
const GRADIENT_PIXELS: usize = 128;
/// Tasks to have at least, if the shape gives them.
pub(super) const TASKS: usize = 8;
/// Terms between two visits of the output: so many rows of a panel stay in L1.
const TERMS: usize = 9;
/// Elements of a task of a bias gradient.
const PART: usize = 1 << 15;
/// Panels of a task of the weight gradient: its sums stay in L2.
const GRADIENT_PANELS: usize = 4;

/// The sizes of a convolution: x \[n, h, w, ci\], weight \[co, ci / groups, kernel\] and
/// y \[n, oh, ow, co\]. No size but `n` is 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConvShape {
    /// Images.
    pub n: usize,
    /// Input height.
    pub h: usize,
    /// Input width.
    pub w: usize,
    /// Input channels.
    pub ci: usize,
    /// Output channels.
    pub co: usize,
    /// Output height, at most what [`Window::output`] gives.
    pub oh: usize,
    /// Output width.
    pub ow: usize,
    /// Kernel, stride, padding and dilation.
    pub window: Window,
    /// Groups, which divide `ci` and `co`.
    pub groups: usize,
}

impl ConvShape {
    /// Elements of x.
    pub fn input(&self) -> usize {
        self.n * self.h * self.w * self.ci
    }

    /// Elements of y.
    pub fn output(&self) -> usize {
        self.n * self.oh * self.ow * self.co
    }

    /// Elements of the weight.
    pub fn weight(&self) -> usize {
        self.co * self.ci / self.groups * self.taps()
    }

    /// Whether each channel has its own window and no other channel's part: what
    /// [`depthwise`](super::depthwise) does.
    pub fn is_depthwise(&self) -> bool {
        self.groups == self.ci && self.groups == self.co && self.groups > 1
    }

    /// Whether it is a product of the matrix of x's pixels with the weight.
    fn is_product(&self) -> bool {
        let whole = [self.oh, self.ow] == [self.h, self.w];
        self.window == Window::new([1, 1]) && self.groups == 1 && whole
    }

    /// Pixels of x.
    fn pixels(&self) -> usize {
        self.n * self.h * self.w
    }

    /// Elements of the window.
    pub fn taps(&self) -> usize {
        self.window.kernel[0] * self.window.kernel[1]
    }
}

/// A weight copied into the order in which [`forward_packed`] or [`input_grad_packed`] reads it.
pub struct Packed<T: 'static> {
    shape: ConvShape,
    micro: &'static Micro<T>,
    /// With each pass its panels, \[group\]\[panel\]\[channel block\]\[tap\]\[channel\]\[panel width\].
    passes: Vec<(Pass, Scratch<T>)>,
}

impl<T: Kernel> Packed<T> {
    fn new(level: Level, shape: &ConvShape, passes: Vec<Pass>, weight: &[T]) -> Self {
        assert_eq!(weight.len(), shape.weight());
        let micro = T::micro(level);
        let pack = |pass: Pass| {
            let panels = pack(micro, &pass, shape.groups, weight);
            (pass, panels)
        };
        Packed {
            shape: *shape,
            micro,
            passes: passes.into_iter().map(pack).collect(),
        }
    }
}

/// The weight \[co, ci / groups, kernel\] packed for [`forward_packed`].
pub fn pack_forward<T: Kernel>(shape: &ConvShape, weight: &[T]) -> Packed<T> {
    Packed::new(
        level(),
        shape,
        vec![forward_pass(shape, joins(shape))],
        weight,
    )
}

/// The weight \[co, ci / groups, kernel\] packed for [`input_grad_packed`].
pub fn pack_input_grad<T: Kernel>(shape: &ConvShape, weight: &[T]) -> Packed<T> {
    Packed::new(level(), shape, input_grad_passes(shape), weight)
}

/// y = x * weight + bias, x \[n, h, w, ci\], bias \[co\], y \[n, oh, ow, co\], overwritten; with
/// `relu` the maximum of that and 0.
///
/// # Panics
/// If a slice's length is not its shape's.
pub fn forward<T: Kernel>(
    shape: &ConvShape,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    relu: bool,
    y: &mut [T],
) {
    if shape.is_depthwise() && small_maps::pays(shape) {
        small_maps::forward(level(), shape, x, weight, bias, relu, y);
    } else if shape.is_depthwise() {
        depthwise::forward(level(), shape, x, weight, bias, relu, y);
    } else if patches::pays(shape) {
        patches::forward(level(), shape, x, weight, bias, relu, y);
    } else if shape.is_product() {
        assert_eq!((x.len(), y.len()), (shape.input(), shape.output()));
        let (n, ci, co) = (shape.pixels(), shape.ci, shape.co);
        product([n, co, ci], x, weight, (1, ci), (bias, relu), y);
    } else if let Some(size) = winograd::choose(shape) {
        winograd::forward(level(), size, shape, x, weight, bias, relu, y);
    } else {
        forward_packed(&pack_forward(shape, weight), shape.n, x, bias, relu, y);
    }
}

/// [`forward`] of `n` images with a packed weight, which does not depend on `n`.
pub fn forward_packed<T: Kernel>(
    weight: &Packed<T>,
    n: usize,
    x: &[T],
    bias: Option<&[T]>,
    relu: bool,
    y: &mut [T],
) {
    let shape = ConvShape { n, ..weight.shape };
    assert_eq!((x.len(), y.len()), (shape.input(), shape.output()));
    run(weight, n, x, bias, relu, y);
}

/// dx \[n, h, w, ci\] of dy \[n, oh, ow, co\]: all of it written, zeros where no window reaches. With
/// `bias` \[ci\], which is then added everywhere, it is a transposed convolution.
///
/// # Panics
/// If a slice's length is not its shape's.
pub fn input_grad<T: Kernel>(
    shape: &ConvShape,
    dy: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    dx: &mut [T],
) {
    if shape.is_depthwise() && small_maps::pays(shape) {
        small_maps::input_grad(level(), shape, dy, weight, bias, dx);
    } else if shape.is_depthwise() {
        depthwise::input_grad(level(), shape, dy, weight, bias, dx);
    } else if patches::pays(shape) {
        patches::input_grad(level(), shape, dy, weight, bias, dx);
    } else if shape.is_product() {
        assert_eq!((dy.len(), dx.len()), (shape.output(), shape.input()));
        let (n, ci, co) = (shape.pixels(), shape.ci, shape.co);
        product([n, ci, co], dy, weight, (ci, 1), (bias, false), dx);
    } else if col2im::pays(shape) {
        col2im::input_grad(level(), shape, dy, weight, bias, dx);
    } else if let Some(size) = winograd::choose(shape) {
        winograd::input_grad(level(), size, shape, dy, weight, bias, dx);
    } else {
        input_grad_packed(&pack_input_grad(shape, weight), shape.n, dy, bias, dx);
    }
}

/// [`input_grad`] of `n` images with a packed weight, which does not depend on `n`.
pub fn input_grad_packed<T: Kernel>(
    weight: &Packed<T>,
    n: usize,
    dy: &[T],
    bias: Option<&[T]>,
    dx: &mut [T],
) {
    let shape = ConvShape { n, ..weight.shape };
    assert_eq!((dy.len(), dx.len()), (shape.output(), shape.input()));
    run(weight, n, dy, bias, false, dx);
}

/// C = A B + bias over the pixels of a convolution of 1 x 1 taps, A \[m, k\] and C \[m, n\] without
/// gaps, B \[k, n\] the weight; with `relu` the greater of that and 0.
fn product<T: Kernel>(
    [m, n, k]: [usize; 3],
    a: &[T],
    b: &[T],
    b_strides: (usize, usize),
    (bias, relu): (Option<&[T]>, bool),
    c: &mut [T],
) {
    if pointwise::product_pays(m, [n, k]) {
        pointwise::product(level(), [n, k], a, b, b_strides, (bias, relu), c);
    } else {
        gemm(m, n, k, a, (k, 1), b, b_strides, c, n, bias, relu);
    }
}

/// All passes of a convolution.
fn run<T: Kernel>(
    weight: &Packed<T>,
    n: usize,
    x: &[T],
    bias: Option<&[T]>,
    relu: bool,
    y: &mut [T],
) {
    let (micro, groups) = (weight.micro, weight.shape.groups);
    let y = Shared::new(y);
    // each group's bias begins at a panel's width; all passes have the same columns
    let columns = weight.passes.first().map_or(0, |(pass, _)| pass.columns);
    let bias: Vec<Scratch<T>> = (0..groups)
        .map(|g| {
            let own = bias.map(|b| &b[g * columns..][..columns]);
            padded_bias(own, columns, micro)
        })
        .collect();
    let cut: Vec<_> = (weight.passes.iter())
        .map(|(pass, packed)| (pass, packed, bands(pass, n, PIXELS)))
        .collect();
    let slabs: Vec<_> = (cut.iter())
        .map(|(pass, _, bands)| Slab::new(micro, pass, bands))
        .collect();
    // the tasks of all passes: the interleaved ones of a stride write different pixels
    let mut tasks = Vec::new();
    for ((pass, packed, bands), slab) in cut.iter().zip(&slabs) {
        let panels = pass.panels(micro);
        let mut splits = 1;
        while bands.len() * groups * splits * cut.len() < TASKS && panels / splits >= 4 {
            splits *= 2;
        }
        for (band, group) in bands.iter().flat_map(|b| (0..groups).map(move |g| (b, g))) {
            tasks.extend(balanced(panels, splits).map(|(start, len)| Task {
                slab,
                packed,
                bias: &bias[group],
                band,
                group,
                panels: start..start + len,
                relu,
            }));
        }
    }
    tasks.par_iter().with_max_len(1).each(|task| task.run(x, y));
}

/// The output of a band in some panels of a group.
struct Task<'a, T: 'static> {
    slab: &'a Slab<'a, T>,
    packed: &'a [T],
    bias: &'a [T],
    band: &'a Band,
    group: usize,
    panels: Range<usize>,
    relu: bool,
}

impl<T: Kernel> Task<'_, T> {
    fn run(&self, x: &[T], y: Shared<T>) {
        let (slab, pass, micro) = (self.slab, self.slab.pass, self.slab.micro);
        let taps = pass.taps.len();
        let out = pass.out_pixels(self.band);
        if taps == 0 {
            // a stride above the kernel's size: the result is the bias
            let start = self.panels.start * micro.width();
            let end = (self.panels.end * micro.width()).min(pass.columns);
            for pixel in out {
                let at = pixel + self.group * pass.columns + start;
                // SAFETY: these outputs are the task's own.
                let to = unsafe { y.slice(at, end - start) };
                to.copy_from_slice(&self.bias[start..end]);
            }
            return;
        }
        // channel blocks at once: few taps alone would not pay for visiting the output
        let at_once = (TERMS / taps).clamp(1, pass.blocks());
        let mut scratch = Scratch::new(at_once * slab.block);
        let (segments, pixels) = slab.segments(self.band);
        let tiles = pixels.div_ceil(micro.rows());
        let panel_size = pass.depth * taps * micro.width();

        for first in (0..pass.blocks()).step_by(at_once) {
            let blocks = first..(first + at_once).min(pass.blocks());
            slab.fill(
                self.band,
                x,
                self.group * pass.depth,
                blocks.clone(),
                &mut scratch,
            );
            let terms: Vec<Term> = blocks
                .clone()
                .enumerate()
                .flat_map(|(i, block)| {
                    pass.taps.iter().map(move |&tap| Term {
                        offset: i * slab.block + slab.offset(tap),
                        len: pass.block(block).len(),
                    })
                })
                .collect();
            for panel in self.panels.clone() {
                let column = panel * micro.width();
                let columns = (pass.columns - column).min(micro.width());
                let width = micro.vectors(columns) * micro.lanes;
                let panel = (self.group * pass.panels(micro) + panel) * panel_size;
                let mut b = panel + first * DEPTH * taps * width;
                let parts = terms.len().div_ceil(TERMS);
                for (part, (start, len)) in balanced(terms.len(), parts).enumerate() {
                    let terms = &terms[start..start + len];
                    for segment in 0..segments {
                        for (pixel, p) in balanced(pixels, tiles) {
                            let tile = Tile {
                                a: scratch[segment * slab.image + pixel * DEPTH..].as_ptr(),
                                terms,
                                b: self.packed[b..].as_ptr(),
                                start: if first == 0 && part == 0 {
                                    Start::Bias(self.bias[column..].as_ptr())
                                } else {
                                    Start::Load
                                },
                                // SAFETY: the channel is one of a pixel's.
                                c: unsafe { y.ptr().add(self.group * pass.columns + column) },
                                rows: &out[segment * pixels + pixel..][..p],
                                // with the last terms the sum is whole
                                relu: self.relu && blocks.end == pass.blocks() && part + 1 == parts,
                            };
                            // SAFETY: the slab holds the tile's pixels for all taps, the packed
                            // weight the terms, and these outputs are the task's own.
                            unsafe { run_tile(micro, tile, columns) };
                        }
                    }
                    b += terms.iter().map(|t| t.len).sum::<usize>() * width;
                }
            }
        }
    }
}

/// dw \[co, ci / groups, kernel\] of x \[n, h, w, ci\] and dy \[n, oh, ow, co\], overwritten.
///
/// # Panics
/// If a slice's length is not its shape's.
pub fn weight_grad<T: Kernel>(shape: &ConvShape, x: &[T], dy: &[T], dw: &mut [T]) {
    if shape.is_depthwise() && small_maps::pays(shape) {
        small_maps::weight_grad(level(), shape, x, dy, dw);
    } else if shape.is_depthwise() {
        depthwise::weight_grad(level(), shape, x, dy, dw);
    } else if patches::pays(shape) {
        patches::weight_grad(level(), shape, x, dy, dw);
    } else if shape.is_product() && pointwise::pays(shape.pixels(), shape.ci, shape.co) {
        pointwise::weight_grad(level(), [shape.ci, shape.co], x, dy, dw);
    } else if let Some(size) = winograd::choose(shape) {
        winograd::weight_grad(level(), size, shape, x, dy, dw);
    } else {
        weight_grad_at(level(), shape, x, dy, dw);
    }
}

fn weight_grad_at<T: Kernel>(level: Level, shape: &ConvShape, x: &[T], dy: &[T], dw: &mut [T]) {
    assert_eq!((x.len(), dy.len()), (shape.input(), shape.output()));
    assert_eq!(dw.len(), shape.weight());
    let micro = T::micro(level);
    let pass = &forward_pass(shape, joins(shape));
    let bands = bands(pass, shape.n, GRADIENT_PIXELS);
    let slab = Slab::new(micro, pass, &bands);

    // a part of the sums: some panels, one block of channels, one group; bands in chunks, as many
    // as make enough tasks, each with its own sums
    let panels = pass.panels(micro);
    let splits: Vec<(usize, usize)> = balanced(panels, panels.div_ceil(GRADIENT_PANELS)).collect();
    let parts = splits.len() * pass.blocks() * shape.groups;
    let chunks = TASKS.div_ceil(parts).min(bands.len()).max(1);
    let size = pass.taps.len() * pass.depth.min(DEPTH) * micro.width();
    let total = shape.groups * pass.blocks() * panels * size;
    let mut sums = Scratch::new(chunks * total);
    let shared = Shared::new(&mut sums);
    let chunk_bands: Vec<(usize, usize)> = balanced(bands.len(), chunks).collect();
    (0..chunks * parts)
        .into_par_iter()
        .with_max_len(1)
        .each(|i| {
            let (start, len) = splits[i % splits.len()];
            let block = i / splits.len() % pass.blocks();
            let group = i / splits.len() / pass.blocks() % shape.groups;
            let (chunk, chunk_len) = chunk_bands[i / parts];
            let first = (group * pass.blocks() + block) * panels + start;
            // SAFETY: each (chunk, group, block, split) is one task's.
            let sums = unsafe { shared.slice(i / parts * total + first * size, len * size) };
            let part = Part {
                slab: &slab,
                group,
                block,
                panels: start..start + len,
            };
            part.run(&bands[chunk..chunk + chunk_len], x, dy, sums);
        });

    // chunks in their order, then into the weight's own order
    let (first, others) = sums.split_at_mut(total);
    first.par_chunks_mut(size).enumerate().each(|(i, to)| {
        for other in others.chunks_exact(total) {
            level::run(
                #[inline(always)]
                || add(to, &other[i * size..]),
            );
        }
    });
    unpack(micro, pass, shape.groups, first, size, dw);
}

/// A part of the weight gradient: a block of a group's input channels times some panels of its
/// output channels.
struct Part<'a, T: 'static> {
    slab: &'a Slab<'a, T>,
    group: usize,
    block: usize,
    panels: Range<usize>,
}

impl<T: Kernel> Part<'_, T> {
    /// Sum over `bands` into \[panel\]\[tap\]\[channel\]\[panel width\], which is overwritten.
    fn run(&self, bands: &[Band], x: &[T], dy: &[T], sums: &mut [T]) {
        let (slab, pass, micro) = (self.slab, self.slab.pass, self.slab.micro);
        sums.fill(T::ZERO);
        let size = sums.len() / self.panels.len();
        let channels = pass.block(self.block).len();
        let most = bands.iter().map(|b| b.pixels(pass)).max().unwrap_or(0);
        let mut a = Scratch::new(slab.block);
        let mut b = Scratch::new(most * micro.width());
        for band in bands {
            let blocks = self.block..self.block + 1;
            slab.fill(band, x, self.group * pass.depth, blocks, &mut a);
            let (segments, pixels) = slab.segments(band);
            for (panel, sums) in self.panels.clone().zip(sums.chunks_exact_mut(size)) {
                let column = panel * micro.width();
                let columns = (pass.columns - column).min(micro.width());
                let channel = self.group * pass.columns + column;
                let vectors = slab.copy_panel(band, channel, columns, dy, &mut b);
                let width = vectors * micro.lanes;
                for (t, &tap) in pass.taps.iter().enumerate() {
                    for (k, p) in balanced(channels, channels.div_ceil(micro.rows())) {
                        let outer = Outer {
                            a: a[slab.offset(tap) + k..].as_ptr(),
                            stride: slab.image,
                            segments,
                            pixels,
                            b: b.as_ptr(),
                            acc: sums[(t * channels + k) * width..][..p * width].as_mut_ptr(),
                        };
                        // SAFETY: the slab holds the band's pixels for each tap, `b` as many
                        // rows, and `acc` was cut to the size.
                        unsafe { micro.outer[vectors - 1][p - 1](&outer) };
                    }
                }
            }
        }
    }
}

/// The sum over the rows of dy \[pixels, co\], co = `db.len()`, in a fixed order.
///
/// # Panics
/// If `dy` is not whole rows.
pub fn bias_grad<T: Kernel>(dy: &[T], db: &mut [T]) {
    let part = part(dy, db);
    sum_parts(
        dy.par_chunks(part),
        db,
        #[inline(always)]
        |sum, dy| {
            for row in dy.chunks(sum.len()) {
                add(sum, row);
            }
        },
    );
}

/// The backward of ReLU, from its output y: dy becomes 0 where y is not above 0. In the same pass
/// over memory [`bias_grad`] of that.
///
/// # Panics
/// If `dy` is not whole rows, or not as long as `y`.
pub fn relu_bias_grad<T: Kernel>(y: &[T], dy: &mut [T], db: &mut [T]) {
    assert_eq!(y.len(), dy.len());
    let part = part(dy, db);
    let parts = dy.par_chunks_mut(part).zip(y.par_chunks(part));
    sum_parts(
        parts,
        db,
        #[inline(always)]
        |sum, (dy, y)| {
            let rows = dy.chunks_mut(sum.len());
            for (dy, y) in rows.zip(y.chunks(sum.len())) {
                for ((sum, dy), y) in sum.iter_mut().zip(dy).zip(y) {
                    *dy *= if *y > T::ZERO { T::ONE } else { T::ZERO };
                    *sum += *dy;
                }
            }
        },
    );
}

/// Elements of dy whose rows are summed by one task.
fn part<T>(dy: &[T], db: &[T]) -> usize {
    let co = db.len().max(1);
    assert_eq!(dy.len() % co, 0);
    (PART / co).max(1) * co
}

/// Elements of the sums that are made side by side at least, so that narrow rows fill a register too.
const SUMS: usize = 64;

/// db = the sum of what `add_part` adds up of each part, the parts in their order. It is given the
/// sums of some rows side by side, and adds as many rows at a time.
fn sum_parts<T: Kernel, P: Send>(
    parts: impl IndexedParallelIterator<Item = P>,
    db: &mut [T],
    add_part: impl Fn(&mut [T], P) + Sync,
) {
    db.fill(T::ZERO);
    if db.is_empty() {
        return;
    }
    let size = SUMS.div_ceil(db.len()) * db.len();
    let mut sums = Scratch::<T>::zeros(parts.len() * size);
    sums.par_chunks_mut(size).zip(parts).each(|(sum, part)| {
        level::run(
            #[inline(always)]
            || add_part(sum, part),
        )
    });
    for sum in sums.chunks_exact(db.len()) {
        add(db, sum);
    }
}

/// Each element of `x` to its own in `sum`.
#[inline(always)]
fn add<T: Kernel>(sum: &mut [T], x: &[T]) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += *x;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::gemm::tests::{assert_close, numbers, tolerance};
    use super::*;
    use crate::workers::on_threads;

    /// A shape from (n, [h, w], ci, co, kernel, stride, padding, dilation, groups).
    type Row = (
        usize,
        [usize; 2],
        usize,
        usize,
        [usize; 2],
        [usize; 2],
        [usize; 2],
        [usize; 2],
        usize,
    );

    /// A way's forward, input gradient and weight gradient.
    type Way<T> = (
        fn(Level, &ConvShape, &[T], &[T], Option<&[T]>, bool, &mut [T]),
        fn(Level, &ConvShape, &[T], &[T], Option<&[T]>, &mut [T]),
        fn(Level, &ConvShape, &[T], &[T], &mut [T]),
    );

    fn shapes() -> Vec<ConvShape> {
        let table: Vec<Row> = vec![
            (1, [1, 1], 1, 1, [1, 1], [1, 1], [0, 0], [1, 1], 1),
            (2, [1, 1], 5, 17, [3, 3], [1, 1], [1, 1], [1, 1], 1),
            (3, [5, 5], 3, 5, [3, 3], [1, 1], [1, 1], [1, 1], 1),
            (2, [8, 8], 3, 33, [7, 7], [1, 1], [3, 3], [1, 1], 1),
            (2, [9, 7], 3, 32, [3, 3], [2, 2], [1, 1], [1, 1], 1),
            (1, [6, 6], 1, 3, [2, 2], [1, 1], [0, 0], [1, 1], 1),
            (2, [6, 5], 17, 33, [3, 3], [1, 1], [1, 1], [1, 1], 1),
            (1, [4, 4], 64, 70, [3, 3], [1, 1], [1, 1], [1, 1], 1),
            (5, [4, 4], 33, 64, [3, 3], [1, 1], [1, 1], [1, 1], 1),
            (2, [4, 4], 70, 64, [1, 1], [1, 1], [0, 0], [1, 1], 1),
            (3, [5, 6], 64, 17, [1, 1], [2, 2], [0, 0], [1, 1], 1),
            (2, [8, 8], 16, 16, [3, 3], [2, 2], [1, 1], [1, 1], 1),
            (2, [7, 9], 17, 5, [3, 3], [3, 3], [1, 1], [1, 1], 1),
            (1, [9, 9], 5, 5, [3, 3], [1, 1], [2, 2], [2, 2], 1),
            (1, [9, 10], 33, 17, [3, 2], [2, 1], [2, 1], [2, 3], 1),
            (1, [11, 11], 3, 5, [3, 3], [2, 2], [2, 2], [2, 2], 1),
            (2, [6, 6], 6, 4, [3, 3], [1, 1], [1, 1], [1, 1], 2),
            (2, [6, 6], 66, 34, [3, 3], [2, 2], [1, 1], [1, 1], 2),
            (1, [5, 5], 9, 15, [3, 3], [1, 1], [1, 1], [1, 1], 3),
            (1, [5, 5], 6, 6, [3, 3], [1, 1], [1, 1], [1, 1], 6),
            (2, [5, 5], 4, 12, [2, 3], [2, 1], [1, 0], [1, 1], 4),
            (1, [3, 3], 5, 3, [3, 3], [1, 1], [4, 4], [1, 1], 1),
            (1, [2, 3], 17, 3, [1, 1], [1, 1], [2, 3], [1, 1], 1),
            (1, [7, 12], 5, 17, [1, 7], [1, 1], [0, 3], [1, 1], 1),
            (1, [12, 7], 17, 5, [7, 1], [1, 2], [3, 0], [1, 1], 1),
            (1, [8, 8], 20, 7, [5, 5], [1, 1], [2, 2], [1, 1], 1),
            (1, [8, 9], 20, 7, [6, 4], [3, 2], [2, 1], [1, 1], 1),
            (1, [10, 10], 3, 8, [4, 4], [4, 4], [0, 0], [1, 1], 1),
            (1, [9, 9], 18, 8, [1, 1], [4, 3], [0, 0], [1, 1], 1),
            (1, [20, 33], 17, 18, [3, 3], [1, 1], [1, 1], [1, 1], 1),
            (4, [16, 16], 3, 32, [3, 3], [1, 1], [1, 1], [1, 1], 1),
            (1, [3, 40], 40, 40, [3, 3], [1, 1], [1, 1], [1, 1], 1),
            (2, [7, 6], 5, 5, [3, 3], [1, 1], [1, 1], [1, 1], 5),
            (2, [8, 8], 33, 33, [3, 3], [2, 2], [1, 1], [1, 1], 33),
            (1, [9, 7], 70, 70, [5, 3], [1, 3], [2, 2], [2, 1], 70),
            (3, [4, 4], 24, 24, [7, 7], [1, 1], [3, 3], [1, 1], 24),
            (1, [16, 24], 40, 40, [7, 7], [1, 1], [3, 3], [1, 1], 40),
            (2, [5, 5], 8, 8, [1, 1], [2, 2], [0, 0], [1, 1], 8),
            (1, [20, 37], 20, 20, [9, 11], [1, 1], [4, 5], [1, 1], 20),
            (2, [13, 40], 17, 17, [7, 7], [2, 2], [3, 3], [1, 1], 17),
            (1, [30, 9], 18, 18, [3, 5], [5, 1], [1, 2], [1, 2], 18),
            (3, [4, 4], 33, 17, [2, 2], [2, 2], [0, 0], [1, 1], 1),
            (2, [7, 11], 18, 20, [2, 3], [2, 3], [0, 0], [1, 1], 1),
            (2, [8, 8], 3, 4, [3, 3], [9, 1 << 30], [1, 1], [1, 1], 1),
            (11, [2, 2], 33, 33, [7, 7], [1, 1], [3, 3], [1, 1], 33),
            (5, [8, 8], 18, 18, [7, 7], [1, 1], [3, 3], [1, 1], 18),
            (0, [4, 4], 16, 2, [2, 2], [2, 2], [0, 0], [1, 1], 1),
            (0, [3, 3], 2, 2, [3, 3], [1, 1], [1, 1], [1, 1], 2),
            (0, [3, 3], 2, 2, [3, 3], [1, 1], [1, 1], [1, 1], 1),
        ];
        let shape = |(n, [h, w], ci, co, kernel, stride, padding, dilation, groups): Row| {
            let window = Window {
                kernel,
                stride,
                padding,
                dilation,
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
                groups,
            }
        };
        table.into_iter().map(shape).collect()
    }

    /// Calls `f(x, y, w)` with the places of the factors of every product in the convolution.
    fn products(s: &ConvShape, mut f: impl FnMut(usize, usize, usize)) {
        let (cig, cog) = (s.ci / s.groups, s.co / s.groups);
        let [kh, kw] = s.window.kernel;
        let inside = |o: usize, t: usize, axis: usize, size: usize| {
            let at = o * s.window.stride[axis] + t * s.window.dilation[axis];
            at.checked_sub(s.window.padding[axis]).filter(|&i| i < size)
        };
        for n in 0..s.n {
            for (oy, ox) in (0..s.oh).flat_map(|y| (0..s.ow).map(move |x| (y, x))) {
                for (ty, tx) in (0..kh).flat_map(|y| (0..kw).map(move |x| (y, x))) {
                    let (Some(iy), Some(ix)) = (inside(oy, ty, 0, s.h), inside(ox, tx, 1, s.w))
                    else {
                        continue;
                    };
                    for c in 0..s.co {
                        for k in 0..cig {
                            f(
                                ((n * s.h + iy) * s.w + ix) * s.ci + c / cog * cig + k,
                                ((n * s.oh + oy) * s.ow + ox) * s.co + c,
                                ((c * cig + k) * kh + ty) * kw + tx,
                            );
                        }
                    }
                }
            }
        }
    }

    /// y, dx and dw of x, dy and the weight, the first two from their biases on, by the definition.
    pub fn definition<T: Kernel>(
        s: &ConvShape,
        inputs: [&[T]; 3],
        biases: [Option<&[T]>; 2],
        relu: bool,
    ) -> [Vec<f64>; 3] {
        let [x, dy, w] = inputs.map(to_f64);
        let start = |bias: Option<&[T]>, len: usize| -> Vec<f64> {
            let at = |j: usize| bias.map_or(0.0, |b| b[j % b.len()].to_f64());
            (0..len).map(at).collect()
        };
        let mut expected = [
            start(biases[0], s.output()),
            start(biases[1], s.input()),
            vec![0.0; s.weight()],
        ];
        products(s, |i, o, k| {
            expected[0][o] += x[i] * w[k];
            expected[1][i] += dy[o] * w[k];
            expected[2][k] += dy[o] * x[i];
        });
        if relu {
            expected[0].iter_mut().for_each(|y| *y = y.max(0.0));
        }
        expected
    }

    fn check<T: Kernel>() {
        for (i, s) in shapes().iter().enumerate() {
            let x = numbers::<T>(s.input(), i as u64 + 1);
            let dy = numbers::<T>(s.output(), i as u64 + 2);
            let weight = numbers::<T>(s.weight(), i as u64 + 3);
            let bias = numbers::<T>(s.co, i as u64 + 4);
            let bias = (i % 2 == 0).then_some(&bias[..]);
            // a transposed convolution's
            let below = numbers::<T>(s.ci, i as u64 + 5);
            let below = (i % 3 == 1).then_some(&below[..]);
            let relu = i % 3 == 0;
            let expected = definition(s, [&x, &dy, &weight], [bias, below], relu);
            for level in Level::available() {
                let run = || {
                    let nan = T::of(f64::NAN);
                    let mut y = vec![nan; s.output()];
                    let packed = Packed::new(level, s, vec![forward_pass(s, joins(s))], &weight);
                    forward_packed(&packed, s.n, &x, bias, relu, &mut y);
                    let mut dx = vec![nan; s.input()];
                    let packed = Packed::new(level, s, input_grad_passes(s), &weight);
                    input_grad_packed(&packed, s.n, &dy, below, &mut dx);
                    let mut dw = vec![nan; s.weight()];
                    weight_grad_at(level, s, &x, &dy, &mut dw);
                    [y, dx, dw]
                };
                // one of the special ways, all three directions
                let by = |(forward, input_grad, weight_grad): Way<T>| {
                    let nan = T::of(f64::NAN);
                    let mut y = vec![nan; s.output()];
                    forward(level, s, &x, &weight, bias, relu, &mut y);
                    let mut dx = vec![nan; s.input()];
                    input_grad(level, s, &dy, &weight, below, &mut dx);
                    let mut dw = vec![nan; s.weight()];
                    weight_grad(level, s, &x, &dy, &mut dw);
                    [y, dx, dw]
                };
                let check = |run: &(dyn Fn() -> [Vec<T>; 3] + Sync), kernels: &str| {
                    let results = run();
                    for ((got, expected), name) in
                        results.iter().zip(&expected).zip(["y", "dx", "dw"])
                    {
                        let what = format!("{kernels} {name} at {level:?} of {s:?}");
                        assert_close(got, expected, tolerance::<T>(), &what);
                    }
                    if i % 4 == 0 {
                        assert!(on_threads(1, run) == results && on_threads(3, run) == results);
                    }
                };
                check(&run, "general");
                if s.is_depthwise() {
                    let way: Way<T> = (
                        depthwise::forward,
                        depthwise::input_grad,
                        depthwise::weight_grad,
                    );
                    check(&|| by(way), "depthwise");
                    let way: Way<T> = (
                        small_maps::forward,
                        small_maps::input_grad,
                        small_maps::weight_grad,
                    );
                    check(&|| by(way), "small maps");
                }
                if patches::pays(s) {
                    let way: Way<T> = (patches::forward, patches::input_grad, patches::weight_grad);
                    check(&|| by(way), "patches");
                }
                let columns = || {
                    let mut dx = vec![T::of(f64::NAN); s.input()];
                    col2im::input_grad(level, s, &dy, &weight, below, &mut dx);
                    let [y, _, dw] = run();
                    [y, dx, dw]
                };
                if col2im::pays(s) {
                    check(&columns, "col2im");
                }
                let product = || {
                    let nan = T::of(f64::NAN);
                    let (mut y, mut dx) = (vec![nan; s.output()], vec![nan; s.input()]);
                    forward(s, &x, &weight, bias, relu, &mut y);
                    input_grad(s, &dy, &weight, below, &mut dx);
                    [y, dx, run()[2].clone()]
                };
                if s.is_product() {
                    check(&product, "product");
                }
            }
        }
    }

    pub fn to_f64<T: Kernel>(x: &[T]) -> Vec<f64> {
        x.iter().map(|x| x.to_f64()).collect()
    }

    /// [`weight_grad`] without tiles.
    pub fn direct_weight_grad<T: Kernel>(s: &ConvShape, x: &[T], dy: &[T], dw: &mut [T]) {
        weight_grad_at(level(), s, x, dy, dw);
    }

    #[test]
    fn all_three_are_the_definition_f32() {
        check::<f32>();
    }

    #[test]
    fn all_three_are_the_definition_f64() {
        check::<f64>();
    }

    #[test]
    fn bias_gradient_is_the_column_sum() {
        for (pixels, co) in [(0, 3), (1, 1), (5, 17), (13000, 6)] {
            let dy = numbers::<f64>(pixels * co, 1);
            let mut expected = vec![0.0; co];
            for (i, x) in dy.iter().enumerate() {
                expected[i % co] += x;
            }
            let mut db = vec![f64::NAN; co];
            bias_grad(&dy, &mut db);
            assert_close(&db, &expected, 1e-12, "db");

            // the same of what ReLU passes
            let mut y = numbers::<f64>(pixels * co, 2);
            y.iter_mut().step_by(3).for_each(|y| *y = f64::NAN);
            let passed: Vec<f64> = (dy.iter().zip(&y))
                .map(|(dy, y)| if *y > 0.0 { *dy } else { 0.0 })
                .collect();
            let mut expected = vec![0.0; co];
            bias_grad(&passed, &mut expected);
            let mut dy = dy;
            relu_bias_grad(&y, &mut dy, &mut db);
            assert_eq!((dy, db), (passed, expected));
        }
    }
}
