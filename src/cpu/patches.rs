//! Convolution of windows that lie side by side, as in a layer that halves the maps by 2 x 2 taps in steps
//! of 2: kernel and stride are equal. Called through [`conv`](super::conv).
//!
//! Each element of the image belongs to one window. So the windows, copied one after another in the
//! weight's own order, are a matrix no larger than the image, and all three directions are its products
//! with the weight or the gradient, which are read as they lie.
use rayon::prelude::*;

use super::conv::{ConvShape, TASKS};
use super::gemm::{Matrix, gemm_at};
use super::micro::Kernel;
use super::scratch::{Scratch, Shared};
use super::simd::Level;
use crate::shape::Window;
use crate::workers::Parallel;

/// Channels from which on the copies go along whole vectors of them.
const CHANNELS: usize = 16;

/// Whether it takes the place of the general way.
pub(super) fn pays(shape: &ConvShape) -> bool {
    let Window {
        kernel,
        stride,
        padding,
        dilation,
    } = shape.window;
    let beside = kernel == stride && padding == [0, 0] && dilation == [1, 1];
    beside && shape.groups == 1 && shape.taps() > 1 && shape.ci >= CHANNELS
}

/// Windows, and elements of each.
fn size(shape: &ConvShape) -> (usize, usize) {
    (shape.n * shape.oh * shape.ow, shape.ci * shape.taps())
}

/// Elements from pixel to pixel, from an image's row of windows to the next, and from image to image.
struct Steps {
    pixel: usize,
    row: usize,
    image: usize,
}

impl Steps {
    fn new(shape: &ConvShape) -> Self {
        let row = shape.w * shape.ci;
        Steps {
            pixel: shape.ci,
            row: shape.window.kernel[0] * row,
            image: shape.h * row,
        }
    }
}

/// Where each tap of a row of windows begins, in the order of the weight.
fn taps(shape: &ConvShape) -> Vec<usize> {
    let [height, width] = shape.window.kernel;
    let tap = |y: usize, x: usize| (y * shape.w + x) * shape.ci;
    (0..height)
        .flat_map(|y| (0..width).map(move |x| tap(y, x)))
        .collect()
}

/// The matrix of all windows, \[window\]\[channel\]\[tap\].
fn gather<T: Kernel>(level: Level, shape: &ConvShape, x: &[T]) -> Scratch<T> {
    assert_eq!(x.len(), shape.input());
    let ((windows, depth), steps, taps) = (size(shape), Steps::new(shape), taps(shape));
    let mut matrix = Scratch::new(windows * depth);
    let rows = matrix.par_chunks_mut(shape.ow * depth).enumerate();
    rows.each(|(i, to)| {
        let x = &x[i / shape.oh * steps.image + i % shape.oh * steps.row..];
        level.run(
            #[inline(always)]
            || {
                for (to, o) in to.chunks_exact_mut(depth).zip(0..) {
                    let x = &x[o * shape.window.kernel[1] * steps.pixel..];
                    let tap = |t: usize| &x[taps[t]..][..shape.ci];
                    if let [_, _, _, _] = taps[..] {
                        interleave(std::array::from_fn::<_, 4, _>(tap), to);
                        continue;
                    }
                    for t in 0..taps.len() {
                        let to = to[t..].iter_mut().step_by(taps.len());
                        to.zip(tap(t)).for_each(|(to, x)| *to = *x);
                    }
                }
            },
        );
    });
    matrix
}

/// The first of each, the second of each, and so on. Here and in [`part`] the compiler sees that all are
/// as long, and shuffles whole vectors.
#[inline(always)]
fn interleave<T: Kernel, const N: usize>(from: [&[T]; N], to: &mut [T]) {
    let len = from[0].len();
    let from = from.map(|x| &x[..len]);
    let to = &mut to.as_chunks_mut::<N>().0[..len];
    for i in 0..len {
        to[i] = from.map(|x| x[i]);
    }
}

/// Every N-th element from `t` on.
#[inline(always)]
fn part<T: Kernel, const N: usize>(from: &[T], t: usize, to: &mut [T]) {
    let from = &from.as_chunks::<N>().0[..to.len()];
    for i in 0..to.len() {
        to[i] = from[i][t];
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
    let ((m, k), n) = (size(shape), shape.co);
    let windows = gather(level, shape, x);
    let (a, b) = (Matrix::new(&windows, (k, 1)), Matrix::new(weight, (1, k)));
    gemm_at(level, [m, n, k], a, b, y, n, (bias, relu), TASKS, None);
}

/// As [`conv::weight_grad`](super::conv::weight_grad).
pub(super) fn weight_grad<T: Kernel>(
    level: Level,
    shape: &ConvShape,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) {
    let ((k, n), m) = (size(shape), shape.co);
    let windows = gather(level, shape, x);
    let (a, b) = (Matrix::new(dy, (1, m)), Matrix::new(&windows, (n, 1)));
    gemm_at(level, [m, n, k], a, b, dw, n, (None, false), TASKS, None);
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
    assert_eq!(dx.len(), shape.input());
    let ((m, n), k) = (size(shape), shape.co);
    let mut windows = Scratch::new(m * n);
    let (a, b) = (Matrix::new(dy, (k, 1)), Matrix::new(weight, (n, 1)));
    let end = (None, false);
    gemm_at(level, [m, n, k], a, b, &mut windows, n, end, TASKS, None);

    let (steps, taps, windows) = (Steps::new(shape), taps(shape), &windows[..]);
    let [covered_h, covered_w] = [0, 1].map(|i| [shape.oh, shape.ow][i] * shape.window.kernel[i]);
    let dx = Shared::new(dx);
    (0..shape.n * shape.oh).into_par_iter().each(|i| {
        let (image, row) = (i / shape.oh, i % shape.oh);
        let at = image * steps.image + row * steps.row;
        // the last row of windows, and those below it that no window reaches
        let end = if row + 1 == shape.oh {
            (image + 1) * steps.image
        } else {
            at + steps.row
        };
        // SAFETY: these rows are the task's own.
        let dx = unsafe { dx.slice(at, end - at) };
        let from = &windows[i * shape.ow * n..][..shape.ow * n];
        level.run(
            #[inline(always)]
            || {
                for (from, o) in from.chunks_exact(n).zip(0..) {
                    let dx = &mut dx[o * shape.window.kernel[1] * steps.pixel..];
                    for (t, &tap) in taps.iter().enumerate() {
                        let dx = &mut dx[tap..][..shape.ci];
                        match taps.len() {
                            4 => part::<T, 4>(from, t, dx),
                            n => dx
                                .iter_mut()
                                .zip(from[t..].iter().step_by(n))
                                .for_each(|(dx, x)| *dx = *x),
                        }
                    }
                }
            },
        );
        for (y, dx) in dx.chunks_exact_mut(shape.w * shape.ci).enumerate() {
            let reached = row * shape.window.kernel[0] + y < covered_h;
            let from = if reached { covered_w } else { 0 };
            dx[from * shape.ci..].fill(T::ZERO);
        }
        if let Some(bias) = bias {
            let pixels = dx.chunks_exact_mut(bias.len());
            pixels.for_each(|dx| dx.iter_mut().zip(bias).for_each(|(dx, b)| *dx += *b));
        }
    });
}
