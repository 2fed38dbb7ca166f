//! The input gradient of a convolution with few input channels, as of a transposed convolution to RGB.
//! Called through [`conv`](super::conv).
//!
//! Three channels alone fill three lanes of a vector. So each pixel of dy is multiplied with the whole
//! weight at once, whose taps times channels lie side by side in memory: a matrix of what every tap
//! gives to every pixel. Then each pixel of dx sums the taps that reach it (col2im).
use rayon::prelude::*;

use super::conv::ConvShape;
use super::gemm::{Matrix, balanced, gemm_at};
use super::micro::Kernel;
use super::scratch::Scratch;
use super::simd::Level;
use super::workers::Parallel;

/// Elements of a task's matrix, those at its edges aside: it stays in L2.
const MOST: usize = 1 << 16;

/// Whether it takes the place of the general way, which fills a vector with channels.
pub(super) fn pays(shape: &ConvShape) -> bool {
    shape.groups == 1 && shape.ci < 16 && shape.taps() > 1
}

/// The taps that reach a place along an axis, each with the output's place that it comes from.
fn reach(shape: &ConvShape, axis: usize, place: usize) -> Vec<(usize, usize)> {
    let (window, out) = (&shape.window, [shape.oh, shape.ow][axis]);
    let from = |tap: usize| {
        let at = (place + window.padding[axis]).checked_sub(tap * window.dilation[axis])?;
        let o = at / window.stride[axis];
        (at % window.stride[axis] == 0 && o < out).then_some((tap, o))
    };
    (0..window.kernel[axis]).filter_map(from).collect()
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
    let columns = ci * taps;
    let all = |axis, size| (0..size).map(move |i| reach(shape, axis, i));
    let (rows, cols): (Vec<_>, Vec<_>) = (all(0, shape.h).collect(), all(1, shape.w).collect());
    let bias = |c: usize| bias.map_or(T::ZERO, |b| b[c]);
    // an image is cut into bands of rows, each with the rows of dy that it needs: of a band lower than a
    // window most of them would be its neighbours' too
    let window = (shape.window.kernel[0] - 1) * shape.window.dilation[0] + 1;
    let most = (shape.h / window).max(1);
    let bands = (shape.oh * shape.ow * columns).div_ceil(MOST).min(most);
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
        let mut matrix = Scratch::<T>::new(pixels * columns);
        let dy = &dy[(image * shape.oh + first) * shape.ow * co..];
        let (a, b) = (Matrix::new(dy, (co, 1)), Matrix::new(weight, (columns, 1)));
        let (size, end) = ([pixels, columns, co], (None, false));
        gemm_at(level, size, a, b, &mut matrix, columns, end, 1, None);
        for (dx, taps_y) in dx.chunks_exact_mut(row).zip(rows) {
            for (dx, taps_x) in dx.chunks_exact_mut(ci).zip(&cols) {
                for (c, dx) in dx.iter_mut().enumerate() {
                    *dx = bias(c);
                }
                for &(ty, oy) in taps_y {
                    for &(tx, ox) in taps_x {
                        let tap = ty * shape.window.kernel[1] + tx;
                        let from = &matrix[((oy - first) * shape.ow + ox) * columns + tap..];
                        for (dx, &x) in dx.iter_mut().zip(from.iter().step_by(taps)) {
                            *dx += x;
                        }
                    }
                }
            }
        }
    });
}
