//! The input gradient of a convolution with few input channels, as of a transposed convolution to RGB.
//! Called through [`conv`](super::conv).
//!
//! Three channels alone fill three lanes of a vector. So the whole weight is multiplied with dy at once: a
//! matrix of what every tap gives, \[channel\]\[tap\]\[pixel of dy\]. Then each pixel of dx sums the taps
//! that reach it (col2im). Neighbours in a row of dy lie side by side there, and in dx they are `stride`
//! apart. With dx sorted by the remainders of that they lie side by side too, and what a tap gives to a row
//! is added by whole vectors; each row is put in its own order at the end.
use rayon::prelude::*;

use super::conv::ConvShape;
use super::gemm::{Matrix, balanced, gemm_at};
use super::micro::Kernel;
use super::scratch::Scratch;
use super::simd::Level;
use crate::workers::Parallel;

/// Elements of a task's matrix, those at its edges aside: it stays in L2.
const MOST: usize = 1 << 16;

/// Whether it takes the place of the general way, which fills a vector with channels.
pub(super) fn pays(shape: &ConvShape) -> bool {
    shape.groups == 1 && shape.ci < 16 && shape.taps() > 1
}

/// The rows of the kernel that reach a row of dx, each with the row of dy that it comes from.
fn reach(shape: &ConvShape, y: usize) -> Vec<(usize, usize)> {
    let window = &shape.window;
    let from = |tap: usize| {
        let at = (y + window.padding[0]).checked_sub(tap * window.dilation[0])?;
        let o = at / window.stride[0];
        (at % window.stride[0] == 0 && o < shape.oh).then_some((tap, o))
    };
    (0..window.kernel[0]).filter_map(from).collect()
}

/// A row of dx sorted by remainders, \[remainder by stride\]\[quotient\], with room on both sides for what
/// falls outside: what a tap gives to a row is as long as dy's row then, wherever it belongs.
struct Sorted {
    /// The stride, or less where dy's rows have one pixel: theirs may be anything.
    stride: usize,
    /// Where the taps of a row of the kernel begin.
    starts: Vec<usize>,
    /// Elements of a remainder, and those before its first pixel.
    pitch: usize,
    before: usize,
}

impl Sorted {
    fn new(shape: &ConvShape) -> Self {
        let window = &shape.window;
        let stride = match (window.stride[1], shape.ow) {
            (stride, 0 | 1) => stride.min(shape.w).max(1),
            (stride, _) => stride,
        };
        // pixel o of dy reaches o * stride + offset, quotient o + the offset's
        let split = |tap: usize| {
            let (offset, padding) = (tap * window.dilation[1], window.padding[1]);
            let before = padding.saturating_sub(offset).div_ceil(stride);
            let offset = offset + before * stride - padding;
            let (quotient, remainder) = (offset / stride, offset % stride);
            (quotient, before, remainder)
        };
        let taps: Vec<_> = (0..window.kernel[1]).map(split).collect();
        let before = taps.iter().map(|t| t.1).max().unwrap_or(0);
        let after = taps.iter().map(|t| t.0 + shape.ow).max().unwrap_or(0);
        let pitch = before + after.max(shape.w.div_ceil(stride));
        let start = |&(quotient, less, remainder): &(usize, usize, usize)| {
            remainder * pitch + before + quotient - less
        };
        Sorted {
            stride,
            starts: taps.iter().map(start).collect(),
            pitch,
            before,
        }
    }
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
    assert_eq!((dy.len(), dx.len()), (shape.output(), shape.input()));
    assert_eq!(weight.len(), shape.weight());
    let (ci, co, taps) = (shape.ci, shape.co, shape.taps());
    if dx.is_empty() {
        return;
    }
    let (m, order) = (ci * taps, Sorted::new(shape));
    let stride = order.stride;
    let rows: Vec<_> = (0..shape.h).map(|y| reach(shape, y)).collect();
    // an image is cut into bands of rows, each with the rows of dy that it needs: of a band lower than a
    // window most of them would be its neighbours' too
    let window = (shape.window.kernel[0] - 1) * shape.window.dilation[0] + 1;
    let most = (shape.h / window).max(1);
    let bands = (shape.oh * shape.ow * m).div_ceil(MOST).min(most);
    let bands: Vec<_> = balanced(shape.h, bands).collect();
    let row = shape.w * ci;
    // the bands of all images, in their order
    let mut parts = Vec::with_capacity(shape.n * bands.len());
    let mut rest = dx;
    for (image, &(start, len)) in (0..shape.n).flat_map(|i| bands.iter().map(move |b| (i, b))) {
        let (part, others) = rest.split_at_mut(len * row);
        parts.push((image, start, part));
        rest = others;
    }
    parts.into_par_iter().each(|(image, start, dx)| {
        let rows = &rows[start..start + dx.len() / row];
        let read = || rows.iter().flatten().map(|&(_, o)| o);
        let (first, end) = (read().min().unwrap_or(0), read().max().map_or(0, |o| o + 1));
        let pixels = (end - first) * shape.ow;
        let mut given = Scratch::<T>::new(m * pixels);
        let dy = &dy[(image * shape.oh + first) * shape.ow * co..];
        let (a, b) = (Matrix::new(weight, (1, m)), Matrix::new(dy, (1, co)));
        let (size, end) = ([m, pixels, co], (None, false));
        gemm_at(level, size, a, b, &mut given, pixels, end, 1, None);
        let mut sorted = Scratch::<T>::new(ci * stride * order.pitch);
        let of_channel = |c: usize| c * stride * order.pitch..(c + 1) * stride * order.pitch;
        for (dx, taps_y) in dx.chunks_exact_mut(row).zip(rows) {
            level.run(
                #[inline(always)]
                || {
                    for c in 0..ci {
                        let to = &mut sorted[of_channel(c)];
                        to.fill(bias.map_or(T::ZERO, |b| b[c]));
                        for &(ty, oy) in taps_y {
                            let tap = c * taps + ty * order.starts.len();
                            for (i, &start) in order.starts.iter().enumerate() {
                                let at = (tap + i) * pixels + (oy - first) * shape.ow;
                                let (to, from) = (&mut to[start..], &given[at..]);
                                let pairs = to[..shape.ow].iter_mut().zip(&from[..shape.ow]);
                                pairs.for_each(|(to, x)| *to += *x);
                            }
                        }
                    }
                },
            );
            for (q, dx) in dx.chunks_mut(stride * ci).enumerate() {
                for (remainder, dx) in dx.chunks_exact_mut(ci).enumerate() {
                    let from = &sorted[remainder * order.pitch + order.before + q..];
                    let from = from.iter().step_by(stride * order.pitch);
                    dx.iter_mut().zip(from).for_each(|(dx, x)| *dx = *x);
                }
            }
        }
    });
}
