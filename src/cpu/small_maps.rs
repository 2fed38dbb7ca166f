//! Depthwise convolution of small maps, those of a deep network's last stages. Called through
//! [`conv`](super::conv).
//!
//! Of 7 x 7 taps two thirds lie outside of a 4 x 4 map. So the products that there are, of an input
//! pixel, an output pixel and a tap, are listed once for a shape, and a kernel follows the list: it
//! knows nothing of rows, strides and borders. What a product costs beside its multiply-add, reading
//! the list and the weight, several images share.
use rayon::prelude::*;

use super::conv::{ConvShape, TASKS};
use super::gemm::{balanced, padded_bias};
use super::micro::{Copy, Job, Kernel, Micro};
use super::scratch::{Scratch, Shared};
use super::simd::{Level, Simd};
use crate::workers::Parallel;

/// Images that are taken together, if there are as many and L1 holds their maps.
const IMAGES: usize = 8;
/// Vectors of the input and of the output that are taken together at most: 16 KB each.
const VECTORS: usize = 256;
/// Pixels of a map that still is a small one.
const PIXELS: usize = 64;

/// Whether it takes the place of the windows that slide over rows.
pub(super) fn pays(shape: &ConvShape) -> bool {
    let maps = [shape.h * shape.w, shape.oh * shape.ow];
    maps.iter().all(|pixels| *pixels <= PIXELS) && shape.taps() <= usize::from(u16::MAX)
}

/// What is summed into each of some results: the places of both factors, pixels or taps.
struct Lists {
    factors: Vec<[u16; 2]>,
    /// Where each result's begin, and where the last one's end.
    starts: Vec<usize>,
}

impl Lists {
    /// From (result, factor, factor) in any order, the factors below 2^16.
    fn new(products: impl Iterator<Item = (usize, usize, usize)> + Clone, results: usize) -> Self {
        let mut starts = vec![0; results + 1];
        products.clone().for_each(|(r, ..)| starts[r + 1] += 1);
        for r in 0..results {
            starts[r + 1] += starts[r];
        }
        let (mut at, mut factors) = (starts.clone(), vec![[0; 2]; starts[results]]);
        for (r, a, b) in products {
            factors[at[r]] = [a as u16, b as u16];
            at[r] += 1;
        }
        Lists { factors, starts }
    }

    /// The factors of each result.
    fn iter(&self) -> impl Iterator<Item = &[[u16; 2]]> {
        self.starts
            .windows(2)
            .map(|ends| &self.factors[ends[0]..ends[1]])
    }
}

/// The products of a window that lie inside of the map: (input pixel, output pixel, tap).
fn products(shape: &ConvShape) -> impl Iterator<Item = (usize, usize, usize)> + Clone {
    let window = shape.window;
    // along an axis
    let axis = move |axis: usize, size: usize, out: usize| {
        let inside = move |o: usize, t: usize| {
            let at = o * window.stride[axis] + t * window.dilation[axis];
            let i = at.checked_sub(window.padding[axis]).filter(|i| *i < size)?;
            Some((i, o, t))
        };
        let taps = window.kernel[axis];
        (0..out).flat_map(move |o| (0..taps).filter_map(move |t| inside(o, t)))
    };
    let [w, ow, taps] = [shape.w, shape.ow, window.kernel[1]];
    axis(0, shape.h, shape.oh).flat_map(move |(i, o, t)| {
        axis(1, w, ow).map(move |(j, p, u)| (i * w + j, o * ow + p, t * taps + u))
    })
}

/// The images in groups of a kernel's size, (first, how many), whose maps L1 holds.
fn groups(shape: &ConvShape) -> Vec<(usize, usize)> {
    let pixels = (shape.h * shape.w).max(shape.oh * shape.ow);
    let most = (VECTORS / pixels).clamp(1, IMAGES);
    let (mut groups, mut at) = (Vec::new(), 0);
    while at < shape.n {
        let size = 1 << most.min(shape.n - at).ilog2();
        groups.push((at, size));
        at += size;
    }
    groups
}

/// A vector of channels of the maps of a group's images.
struct Block {
    /// Pixels of a map.
    pixels: usize,
    /// Channels of a pixel.
    channels: usize,
    /// The first channel, and how many there are.
    first: usize,
    columns: usize,
}

impl Block {
    /// Copy a map's channels, its pixels as far apart as the strides say. What fills up the last
    /// vector of `to` is unspecified: it stays in its own lanes, which nobody reads.
    ///
    /// # Safety
    /// Both hold a vector for each pixel, or as many channels as there are.
    unsafe fn copy<T: Kernel>(
        &self,
        micro: &Micro<T>,
        (from, from_stride): (*const T, usize),
        (to, to_stride): (*mut T, usize),
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.columns == micro.lanes {
                let rows = Copy {
                    from,
                    from_stride,
                    to,
                    to_stride,
                    vectors: 1,
                    rows: self.pixels,
                };
                (micro.copy)(&rows);
                return;
            }
            for pixel in 0..self.pixels {
                let (from, to) = (from.add(pixel * from_stride), to.add(pixel * to_stride));
                std::ptr::copy_nonoverlapping(from, to, self.columns);
            }
        }
    }

    /// From x \[n, pixels, channels\] to \[pixel\]\[image\]\[lanes\].
    fn read<T: Kernel>(
        &self,
        micro: &Micro<T>,
        x: &[T],
        (image, images): (usize, usize),
    ) -> Scratch<T> {
        let (lanes, map) = (micro.lanes, self.pixels * self.channels);
        let mut to = Scratch::new(self.pixels * images * lanes);
        for (p, x) in x[image * map..][..images * map]
            .chunks_exact(map)
            .enumerate()
        {
            let to = (to[p * lanes..].as_mut_ptr(), images * lanes);
            // SAFETY: the map has its pixels' channels, the scratch a vector for each.
            unsafe { self.copy(micro, (x[self.first..].as_ptr(), self.channels), to) };
        }
        to
    }

    /// Back to y \[n, pixels, channels\].
    ///
    /// # Safety
    /// These channels of the images are nobody else's.
    unsafe fn write<T: Kernel>(
        &self,
        micro: &Micro<T>,
        from: &[T],
        (image, images): (usize, usize),
        y: Shared<T>,
    ) {
        let (lanes, map) = (micro.lanes, self.pixels * self.channels);
        assert_eq!(from.len(), self.pixels * images * lanes);
        for p in 0..images {
            let from = (from[p * lanes..].as_ptr(), images * lanes);
            // SAFETY: as above, and the caller's promise.
            unsafe {
                let to = y.ptr().add((image + p) * map + self.first);
                self.copy(micro, from, (to, self.channels));
            }
        }
    }
}

/// What a task does with the maps of P images.
trait Grouped<T> {
    /// # Safety
    /// The slices have the sizes that their owner says, and `V` is of the machine.
    unsafe fn with<V: Simd<T = T>, const P: usize>(self);
}

/// The task with as many images as a group of [`groups`] has.
struct ByImages<B>(usize, B);

impl<T: Kernel, B: Grouped<T>> Job<T> for ByImages<B> {
    #[inline(always)]
    unsafe fn run<V: Simd<T = T>>(self) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.0 {
                8 => self.1.with::<V, 8>(),
                4 => self.1.with::<V, 4>(),
                2 => self.1.with::<V, 2>(),
                _ => self.1.with::<V, 1>(),
            }
        }
    }
}

/// Results of their own for each image: c\[r\]\[p\] = bias + sum of a\[pixel\]\[p\] * w\[tap\].
struct Correlate<'a, T> {
    lists: &'a Lists,
    a: &'a [T],
    w: &'a [T],
    bias: &'a [T],
    relu: bool,
    c: &'a mut [T],
}

impl<T: Kernel> Grouped<T> for Correlate<'_, T> {
    /// # Safety
    /// The slices hold P vectors for each pixel and a vector for each tap.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
    unsafe fn with<V: Simd<T = T>, const P: usize>(self) {
        let (a, w, mut c) = (self.a.as_ptr(), self.w.as_ptr(), self.c.as_mut_ptr());
        // SAFETY: the caller's promise.
        unsafe {
            for factors in self.lists.iter() {
                let mut acc = [V::load(self.bias.as_ptr()); P];
                for &[pixel, tap] in factors {
                    let w = V::load(w.add(usize::from(tap) * V::LANES));
                    let a = a.add(usize::from(pixel) * P * V::LANES);
                    for p in 0..P {
                        acc[p] = V::load(a.add(p * V::LANES)).mul_add(w, acc[p]);
                    }
                }
                for p in 0..P {
                    if self.relu {
                        acc[p] = acc[p].nan_max(V::splat(T::ZERO));
                    }
                    acc[p].store(c.add(p * V::LANES));
                }
                c = c.add(P * V::LANES);
            }
        }
    }
}

/// Results of all images together: sums\[r\] += sum of a\[pixel\]\[p\] * b\[pixel\]\[p\].
struct Sum<'a, T> {
    lists: &'a Lists,
    a: &'a [T],
    b: &'a [T],
    sums: &'a mut [T],
}

impl<T: Kernel> Grouped<T> for Sum<'_, T> {
    /// # Safety
    /// The slices hold P vectors for each pixel, the sums a vector for each result.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // indices of registers, constants once unrolled
    unsafe fn with<V: Simd<T = T>, const P: usize>(self) {
        let (a, b, mut to) = (self.a.as_ptr(), self.b.as_ptr(), self.sums.as_mut_ptr());
        // SAFETY: the caller's promise.
        unsafe {
            for factors in self.lists.iter() {
                let mut acc = [V::splat(T::ZERO); P];
                for &[i, o] in factors {
                    let a = a.add(usize::from(i) * P * V::LANES);
                    let b = b.add(usize::from(o) * P * V::LANES);
                    for p in 0..P {
                        let b = V::load(b.add(p * V::LANES));
                        acc[p] = V::load(a.add(p * V::LANES)).mul_add(b, acc[p]);
                    }
                }
                let mut sum = V::load(to);
                for p in 0..P {
                    sum = sum.add(acc[p]);
                }
                sum.store(to);
                to = to.add(V::LANES);
            }
        }
    }
}

/// How the work is cut, by the shape alone: blocks of channels, and the images in parts.
struct Tasks {
    blocks: usize,
    parts: Vec<Vec<(usize, usize)>>,
}

impl Tasks {
    fn new(shape: &ConvShape, lanes: usize) -> Self {
        let (blocks, groups) = (shape.ci.div_ceil(lanes), groups(shape));
        let parts = TASKS.div_ceil(blocks).min(groups.len()).max(1);
        Tasks {
            blocks,
            parts: balanced(groups.len(), parts)
                .map(|(start, len)| groups[start..start + len].to_vec())
                .collect(),
        }
    }

    /// `f(block, part, its groups of images)` of all.
    fn each(&self, f: impl Fn(usize, usize, &[(usize, usize)]) + Sync + Send) {
        let task = |i: usize| {
            let part = i / self.blocks;
            f(i % self.blocks, part, &self.parts[part]);
        };
        (0..self.blocks * self.parts.len())
            .into_par_iter()
            .with_max_len(1)
            .each(task);
    }
}

/// A block of channels of maps of `pixels`.
fn block(shape: &ConvShape, lanes: usize, pixels: usize, block: usize) -> Block {
    let first = block * lanes;
    Block {
        pixels,
        channels: shape.ci,
        first,
        columns: lanes.min(shape.ci - first),
    }
}

/// As [`conv::forward`](super::conv::forward).
pub(super) fn forward<T: Kernel>(
    level: Level,
    shape: &ConvShape,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    relu: bool,
    y: &mut [T],
) {
    let maps = [shape.h * shape.w, shape.oh * shape.ow];
    let lists = Lists::new(products(shape).map(|(i, o, t)| (o, i, t)), maps[1]);
    correlate(level, shape, &lists, maps, x, weight, (bias, relu), y);
}

/// As [`conv::input_grad`](super::conv::input_grad).
pub(super) fn input_grad<T: Kernel>(
    level: Level,
    shape: &ConvShape,
    dy: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    dx: &mut [T],
) {
    let maps = [shape.oh * shape.ow, shape.h * shape.w];
    let lists = Lists::new(products(shape), maps[1]);
    correlate(level, shape, &lists, maps, dy, weight, (bias, false), dx);
}

/// From maps of as many pixels to maps of as many, by the list of each of their pixels.
#[allow(clippy::too_many_arguments)] // a convolution's, and its lists
fn correlate<T: Kernel>(
    level: Level,
    shape: &ConvShape,
    lists: &Lists,
    maps: [usize; 2],
    x: &[T],
    weight: &[T],
    (bias, relu): (Option<&[T]>, bool),
    y: &mut [T],
) {
    let (micro, taps) = (T::micro(level), shape.taps());
    let lanes = micro.lanes;
    assert_eq!(
        [x.len(), y.len()],
        maps.map(|pixels| shape.n * pixels * shape.ci)
    );
    assert_eq!(weight.len(), shape.weight());
    let bias = padded_bias(bias, shape.ci, micro);
    let y = Shared::new(y);
    Tasks::new(shape, lanes).each(|b, _, groups| {
        let [from, to] = maps.map(|pixels| block(shape, lanes, pixels, b));
        let mut w = Scratch::new(taps * lanes);
        let weight = &weight[from.first * taps..][..from.columns * taps];
        for (c, weight) in weight.chunks_exact(taps).enumerate() {
            let to = w[c..].iter_mut().step_by(lanes);
            to.zip(weight).for_each(|(to, w)| *to = *w);
        }
        for &(image, images) in groups {
            let a = from.read(micro, x, (image, images));
            let mut c = Scratch::new(to.pixels * images * lanes);
            let job = Correlate {
                lists,
                a: &a,
                w: &w,
                bias: &bias[from.first..],
                relu,
                c: &mut c,
            };
            // SAFETY: the scratches have the size; the channels are the task's own.
            unsafe {
                T::job(level, ByImages(images, job));
                to.write(micro, &c, (image, images), y);
            }
        }
    });
}

/// As [`conv::weight_grad`](super::conv::weight_grad).
pub(super) fn weight_grad<T: Kernel>(
    level: Level,
    shape: &ConvShape,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) {
    let (micro, taps) = (T::micro(level), shape.taps());
    let lanes = micro.lanes;
    let maps = [shape.h * shape.w, shape.oh * shape.ow];
    assert_eq!((x.len(), dy.len()), (shape.input(), shape.output()));
    assert_eq!(dw.len(), shape.weight());
    let lists = Lists::new(products(shape).map(|(i, o, t)| (t, i, o)), taps);
    let tasks = Tasks::new(shape, lanes);
    // each part of the images has its own sums, [block][tap][lanes]
    let size = taps * lanes;
    let total = tasks.blocks * size;
    let mut sums = Scratch::zeros(tasks.parts.len() * total);
    let shared = Shared::new(&mut sums);
    tasks.each(|b, part, groups| {
        let maps = maps.map(|pixels| block(shape, lanes, pixels, b));
        // SAFETY: each block of a part is one task's.
        let sums = unsafe { shared.slice(part * total + b * size, size) };
        for group in groups {
            let job = Sum {
                lists: &lists,
                a: &maps[0].read(micro, x, *group),
                b: &maps[1].read(micro, dy, *group),
                sums,
            };
            // SAFETY: the scratches have the size.
            unsafe { T::job(level, ByImages(group.1, job)) };
        }
    });
    // the parts in their order, into the weight's own
    let blocks = dw.par_chunks_mut(lanes * taps).enumerate();
    blocks.each(|(b, dw)| {
        for (c, dw) in dw.chunks_exact_mut(taps).enumerate() {
            for (t, dw) in dw.iter_mut().enumerate() {
                let parts = sums[b * size + t * lanes + c..].iter().step_by(total);
                *dw = parts.copied().sum();
            }
        }
    });
}
