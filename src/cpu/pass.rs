//! What the convolution kernels compute: a convolution, or an interleaved part of an input
//! gradient, as places in memory.
use std::ops::Range;

use super::conv::ConvShape;
use super::gemm::balanced;
use super::micro::{DEPTH, Kernel, Micro};
use crate::shape::Window;

/// Where a tap reads: `row` input rows from the output row's, in the plane's columns.
#[derive(Clone, Copy)]
pub(super) struct Tap {
    pub(super) row: isize,
    pub(super) plane: usize,
}

/// A convolution of one stride as the core sees it:
/// out\[y, x, j\] = sum over taps and k < depth of
/// in\[(y * row_step + tap.row) * in_row + x * pixel_step + plane + k\] * w\[tap, k, j\],
/// where an element outside its row counts as zero.
pub(super) struct Pass {
    pub(super) in_height: usize,
    pub(super) in_row: usize,
    pub(super) row_step: usize,
    pub(super) pixel_step: usize,
    /// Where a window's columns begin, in elements from the output pixel's place.
    pub(super) planes: Vec<isize>,
    pub(super) taps: Vec<Tap>,
    pub(super) depth: usize,

    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) columns: usize,
    pub(super) out_start: usize,
    pub(super) out_pixel: usize,
    pub(super) out_row: usize,
    pub(super) out_image: usize,

    /// The weight of (group, j, k, tap) is at group * weight_group + j * weight_column +
    /// weight_depth\[k\] + weight_tap\[tap\].
    pub(super) weight_group: usize,
    pub(super) weight_column: usize,
    pub(super) weight_depth: Vec<usize>,
    pub(super) weight_tap: Vec<usize>,
}

impl Pass {
    /// The row offsets of the topmost and the lowest tap.
    fn tap_rows(&self) -> (isize, isize) {
        let rows = || self.taps.iter().map(|t| t.row);
        (rows().min().unwrap_or(0), rows().max().unwrap_or(0))
    }

    /// Whether a tap's row lies inside of the image for this output row.
    pub(super) fn reads(&self, row: usize, tap: isize) -> bool {
        let row = (row * self.row_step) as isize + tap;
        (0..self.in_height as isize).contains(&row)
    }

    /// The number of blocks of DEPTH channels.
    pub(super) fn blocks(&self) -> usize {
        self.depth.div_ceil(DEPTH)
    }

    /// The channels of a block.
    pub(super) fn block(&self, i: usize) -> Range<usize> {
        i * DEPTH..((i + 1) * DEPTH).min(self.depth)
    }

    /// Where a band's pixels lie in the output.
    pub(super) fn out_pixels(&self, band: &Band) -> Vec<usize> {
        let mut out = Vec::with_capacity(band.pixels(self));
        for image in band.images.clone() {
            for row in band.rows.clone() {
                let row = self.out_start + image * self.out_image + row * self.out_row;
                out.extend((0..self.width).map(|x| row + x * self.out_pixel));
            }
        }
        out
    }

    /// The row offsets of taps modulo `row_step`, from the topmost tap's on, and the rows of each
    /// that a slab has beyond the output's.
    pub(super) fn phases(&self) -> (Vec<isize>, usize) {
        let (first, last) = self.tap_rows();
        let mut phases = Vec::new();
        for tap in &self.taps {
            let phase = first + (tap.row - first) % self.row_step as isize;
            if !phases.contains(&phase) {
                phases.push(phase);
            }
        }
        (phases, (last - first) as usize / self.row_step)
    }

    /// Which of the phases has a tap's row, and as which of its rows.
    pub(super) fn in_phases(&self, phases: &[isize], row: isize) -> (usize, usize) {
        let step = self.row_step as isize;
        let below = |phase: &isize| (row - phase) % step == 0;
        let index = phases.iter().position(below).unwrap_or(0);
        (index, ((row - phases[index]) / step) as usize)
    }

    /// The panels that hold the output channels of a group.
    pub(super) fn panels<T: Kernel>(&self, micro: &Micro<T>) -> usize {
        self.columns.div_ceil(micro.width())
    }
}

/// Whether the window's columns and the channels are taken as one run: few channels, which lie
/// side by side.
pub(super) fn joins(s: &ConvShape) -> bool {
    s.ci < 16 && s.groups == 1 && s.window.dilation[1] == 1
}

/// The pass of a convolution itself, the window's columns joined with the channels or not.
pub(super) fn forward_pass(s: &ConvShape, joined: bool) -> Pass {
    let Window {
        kernel,
        stride,
        padding,
        dilation,
    } = s.window;
    let (depth, taps) = (s.ci / s.groups, s.taps());
    let at = |t: usize, i: usize| (t * dilation[i]) as isize - padding[i] as isize;
    let columns = if joined { 1 } else { kernel[1] };
    let tap = |y, x| Tap {
        row: at(y, 0),
        plane: x,
    };
    Pass {
        in_height: s.h,
        in_row: s.w * s.ci,
        row_step: stride[0],
        pixel_step: stride[1] * s.ci,
        planes: (0..columns).map(|x| at(x, 1) * s.ci as isize).collect(),
        taps: (0..kernel[0])
            .flat_map(|y| (0..columns).map(move |x| tap(y, x)))
            .collect(),
        depth: if joined { depth * kernel[1] } else { depth },
        height: s.oh,
        width: s.ow,
        columns: s.co / s.groups,
        out_start: 0,
        out_pixel: s.co,
        out_row: s.ow * s.co,
        out_image: s.oh * s.ow * s.co,
        weight_group: s.weight() / s.groups,
        weight_column: depth * taps,
        weight_depth: if joined {
            (0..kernel[1] * depth)
                .map(|k| k % depth * taps + k / depth)
                .collect()
        } else {
            (0..depth).map(|k| k * taps).collect()
        },
        weight_tap: (0..kernel[0] * columns)
            .map(|t| t / columns * kernel[1] + t % columns)
            .collect(),
    }
}

/// The passes of the input gradient. Output row o reads input row i through tap t if
/// o * stride = i + padding - t * dilation: the rows i of one remainder by the stride are a
/// convolution of the output's gradient with those taps t that leave none.
pub(super) fn input_grad_passes(s: &ConvShape) -> Vec<Pass> {
    let window = s.window;
    // the taps along an axis that reach remainder r, and where they read
    let reach = |axis: usize, r: usize| -> Vec<(usize, isize)> {
        let [kernel, stride, padding, dilation] = [
            window.kernel[axis],
            window.stride[axis],
            window.padding[axis],
            window.dilation[axis],
        ];
        (0..kernel)
            .map(|t| (t, (r + padding) as isize - (t * dilation) as isize))
            .filter(|(_, at)| at.rem_euclid(stride as isize) == 0)
            .map(|(t, at)| (t, at / stride as isize))
            .collect()
    };
    let (depth, columns) = (s.co / s.groups, s.ci / s.groups);
    let mut passes = Vec::new();
    for y in 0..window.stride[0].min(s.h) {
        for x in 0..window.stride[1].min(s.w) {
            let (rows, cols) = (reach(0, y), reach(1, x));
            let pairs = || {
                rows.iter()
                    .flat_map(|&r| cols.iter().enumerate().map(move |(i, &c)| (r, i, c)))
            };
            passes.push(Pass {
                in_height: s.oh,
                in_row: s.ow * s.co,
                row_step: 1,
                pixel_step: s.co,
                planes: cols.iter().map(|&(_, at)| at * s.co as isize).collect(),
                taps: pairs()
                    .map(|((_, row), plane, _)| Tap { row, plane })
                    .collect(),
                depth,
                height: (s.h - y).div_ceil(window.stride[0]),
                width: (s.w - x).div_ceil(window.stride[1]),
                columns,
                out_start: (y * s.w + x) * s.ci,
                out_pixel: window.stride[1] * s.ci,
                out_row: window.stride[0] * s.w * s.ci,
                out_image: s.h * s.w * s.ci,
                weight_group: s.weight() / s.groups,
                weight_column: s.taps(),
                weight_depth: (0..depth).map(|k| k * columns * s.taps()).collect(),
                weight_tap: pairs()
                    .map(|((r, _), _, (c, _))| r * window.kernel[1] + c)
                    .collect(),
            });
        }
    }
    passes
}

/// The part of one task: images, output rows.
#[derive(Clone)]
pub(super) struct Band {
    pub(super) images: Range<usize>,
    pub(super) rows: Range<usize>,
}

impl Band {
    pub(super) fn pixels(&self, pass: &Pass) -> usize {
        self.images.len() * self.rows.len() * pass.width
    }
}

/// All bands of about `pixels` output pixels: some rows of an image, or some images.
pub(super) fn bands(pass: &Pass, n: usize, pixels: usize) -> Vec<Band> {
    let image = (pass.height * pass.width).max(1);
    let cut = (image as f64 / pixels as f64).round() as usize;
    let row_parts = cut.clamp(1, pass.height.max(1));
    let images = if row_parts > 1 {
        1
    } else {
        (pixels / image).max(1)
    };
    let mut bands = Vec::new();
    for (i, images) in balanced(n, n.div_ceil(images)) {
        for (r, rows) in balanced(pass.height, row_parts) {
            bands.push(Band {
                images: i..i + images,
                rows: r..r + rows,
            });
        }
    }
    bands
}
