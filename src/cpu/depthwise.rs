//! Depthwise convolution: each channel has its own window. Called through [`conv`](super::conv).
//!
//! A task takes one vector of channels of some rows. It copies them, with the zeros around them,
//! so that neighbouring output pixels read neighbouring vectors whatever the stride and the number
//! of channels: then the window slides along a row in registers (`slide.rs`). A row is copied just
//! before the first output that reads it, and serves all of the kernel's rows from L1.
use rayon::prelude::*;

use super::conv::{ConvShape, TASKS};
use super::gemm::{balanced, padded_bias};
use super::micro::{Kernel, Micro};
use super::pass::{Band, Pass, Tap, bands, forward_pass, input_grad_passes};
use super::scratch::{Scratch, Shared};
use super::simd::Level;
use super::slab::copy_pixels;
use super::slide::{Lines, Run, Strip, TAPS};
use crate::workers::Parallel;

/// Output pixels of a task: more, and the rows above and below them are copied for less; fewer,
/// and the copy stays in L2.
const PIXELS: usize = 1024;
/// Output rows between two visits of the weight gradient's sums.
const ROWS: usize = 4;

/// The shape as the passes should see it: all channels side by side.
fn merged(shape: &ConvShape) -> ConvShape {
    ConvShape {
        groups: 1,
        ..*shape
    }
}

/// Pixels of an input row that neighbouring taps read, side by side in the slab.
struct Stretch {
    /// The input column of the first.
    first: isize,
    /// How many of them taps read.
    pixels: usize,
    /// Where they begin in a row of the slab.
    offset: usize,
}

/// How a slab lies in memory: \[phase\]\[row\]\[stretch\]\[pixel\]\[lanes\], where row j of a phase
/// is input row (first output row + j) * row_step + phase. Only what taps read is there, however
/// far a dilation sets them apart.
struct Slab<'a, T: 'static> {
    micro: &'static Micro<T>,
    pass: &'a Pass,
    channels: usize,
    /// Input columns from output pixel to output pixel.
    step: usize,
    stretches: Vec<Stretch>,
    /// Elements of a row.
    row: usize,
    phases: Vec<isize>,
    /// Elements of a phase, and its rows beyond the output rows.
    phase: usize,
    extra: usize,
    /// The taps, those runs that have as many taps one after another.
    runs: Vec<Run>,
    /// How many input rows below the output row each run reads.
    rows: Vec<isize>,
    /// The weight's place of each tap in the order of the runs.
    order: Vec<usize>,
}

impl<'a, T: Kernel> Slab<'a, T> {
    /// Room for any of `bands`.
    fn new(micro: &'static Micro<T>, pass: &'a Pass, channels: usize, bands: &[Band]) -> Self {
        let step = (pass.pixel_step / channels) as isize;
        // a tap's column as (remainder by the step, place among the columns of that remainder)
        let column = |plane: usize| {
            let column = pass.planes[plane] / channels as isize;
            (column.rem_euclid(step), column.div_euclid(step))
        };
        let next = |a: (isize, isize), b: (isize, isize)| (a.0, a.1 + 1) == b;
        // taps that no output pixel finds inside of the image are left out: small maps have many
        let in_width = (pass.in_row / channels) as isize;
        let inside = |plane: usize| {
            let mut read =
                (0..pass.width as isize).map(|x| pass.planes[plane] / channels as isize + x * step);
            read.any(|x| (0..in_width).contains(&x))
        };
        let below = |tap: &Tap| (0..pass.height).any(|y| pass.reads(y, tap.row));
        let planes = (0..pass.planes.len()).filter(|&p| inside(p));
        let mut columns: Vec<_> = planes.map(column).collect();
        columns.sort_unstable();
        // a strip computes more pixels than it writes: they are read beyond the last
        let room = pass.width + micro.slide.strip[0].0;
        let (mut stretches, mut places, mut row) = (Vec::new(), Vec::new(), 0);
        for near in columns.chunk_by(|a, b| next(*a, *b)) {
            stretches.push(Stretch {
                first: near[0].1 * step + near[0].0,
                pixels: pass.width + near.len() - 1,
                offset: row,
            });
            places.extend((0..near.len()).map(|i| row + i * micro.lanes));
            row += (room + near.len() - 1) * micro.lanes;
        }
        let (phases, extra) = pass.phases();
        let most = bands.iter().map(|b| b.rows.len()).max().unwrap_or(0);
        let phase = (most + extra) * row;

        // each tap as (row, column, place in the weight)
        let pairs = pass.taps.iter().zip(&pass.weight_tap);
        let mut taps: Vec<_> = pairs
            .filter(|(tap, _)| inside(tap.plane) && below(tap))
            .map(|(tap, &weight)| (tap.row, column(tap.plane), weight))
            .collect();
        taps.sort_unstable();
        let mut runs = Vec::new();
        for near in taps.chunk_by(|a, b| a.0 == b.0 && next(a.1, b.1)) {
            for (start, len) in balanced(near.len(), near.len().div_ceil(TAPS)) {
                let (y, column, _) = near[start];
                let (index, shift) = pass.in_phases(&phases, y);
                let place = columns.binary_search(&column).map_or(0, |i| places[i]);
                let run = Run {
                    offset: index * phase + shift * row + place,
                    taps: len,
                };
                runs.push((run, &near[start..start + len]));
            }
        }
        runs.sort_by_key(|(run, _)| run.taps);
        Slab {
            micro,
            pass,
            channels,
            step: step as usize,
            stretches,
            row,
            phases,
            phase,
            extra,
            order: runs
                .iter()
                .flat_map(|(_, t)| t.iter().map(|t| t.2))
                .collect(),
            rows: runs.iter().map(|(_, t)| t[0].0).collect(),
            runs: runs.into_iter().map(|(run, _)| run).collect(),
        }
    }

    /// Elements of a slab.
    fn len(&self) -> usize {
        self.phases.len() * self.phase
    }

    /// The runs without the first and the last ones that read no row of the image for this output
    /// row, and how many taps come before them.
    fn reached(&self, row: usize) -> (&[Run], usize) {
        let reads = |run: &isize| self.pass.reads(row, *run);
        let start = self.rows.iter().position(reads).unwrap_or(0);
        let end = self.rows.iter().rposition(reads).map_or(start, |i| i + 1);
        let before = self.runs[..start].iter().map(|run| run.taps).sum();
        (&self.runs[start..end], before)
    }

    /// The blocks of channels: (first, how many).
    fn blocks(&self) -> Vec<(usize, usize)> {
        let lanes = self.micro.lanes;
        let first = (0..self.channels).step_by(lanes);
        first.map(|c| (c, (self.channels - c).min(lanes))).collect()
    }

    /// Copy the rows that output rows up to `end`, counted from `first`, read, except those that
    /// rows up to `start` have read.
    fn fill(
        &self,
        image: &[T],
        [first, start, end]: [usize; 3],
        (channel, columns): (usize, usize),
        to: &mut [T],
    ) {
        let (pass, lanes) = (self.pass, self.micro.lanes);
        let filled = if start == 0 { 0 } else { start + self.extra };
        let (width, step) = ((pass.in_row / self.channels) as isize, self.step as isize);
        let rows = (filled..end + self.extra)
            .flat_map(|j| self.phases.iter().enumerate().map(move |p| (j, p)));
        for (j, (index, phase)) in rows {
            let to = &mut to[index * self.phase + j * self.row..][..self.row];
            let row = ((first + j) * pass.row_step) as isize + phase;
            if row < 0 || row >= pass.in_height as isize {
                to.fill(T::ZERO);
                continue;
            }
            let x = &image[row as usize * pass.in_row..];
            for stretch in &self.stretches {
                let to = &mut to[stretch.offset..][..stretch.pixels * lanes];
                // the pixels that lie within the row
                let below = |column: isize| {
                    let pixels = (column - stretch.first + step - 1).div_euclid(step);
                    pixels.clamp(0, stretch.pixels as isize) as usize
                };
                let (left, right) = (below(0), below(width));
                to[..left * lanes].fill(T::ZERO);
                if left < right {
                    let column = (stretch.first + left as isize * step) as usize;
                    let from = &x[column * self.channels + channel..];
                    let to = &mut to[left * lanes..right * lanes];
                    copy_pixels(self.micro, from, self.step * self.channels, columns, to);
                }
                to[right * lanes..].fill(T::ZERO);
            }
        }
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
    assert_eq!((x.len(), y.len()), (shape.input(), shape.output()));
    let pass = forward_pass(&merged(shape), false);
    run(T::micro(level), shape, &pass, x, weight, bias, relu, y);
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
    for pass in &input_grad_passes(&merged(shape)) {
        run(T::micro(level), shape, pass, dy, weight, bias, false, dx);
    }
}

#[allow(clippy::too_many_arguments)] // a convolution's, and its pass
fn run<T: Kernel>(
    micro: &'static Micro<T>,
    shape: &ConvShape,
    pass: &Pass,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    relu: bool,
    y: &mut [T],
) {
    assert_eq!(weight.len(), shape.weight());
    let lanes = micro.lanes;
    let bias = padded_bias(bias, shape.ci, micro);
    let bands = bands(pass, shape.n, PIXELS);
    let slab = Slab::new(micro, pass, shape.ci, &bands);
    let packed = pack(&slab, shape, weight);
    let blocks = slab.blocks();
    // strips of equal width, and the kernel that is just wide enough
    let most = micro.slide.strip[0].0;
    let strips = pass.width.div_ceil(most);
    let strips: Vec<(usize, usize)> = balanced(pass.width, strips).collect();
    let widest = strips.iter().map(|s| s.1).max().unwrap_or(0);
    let mut kernels = micro.slide.strip.iter().rev();
    let Some(&(_, kernel)) = kernels.find(|k| k.0 >= widest) else {
        return;
    };
    let y = Shared::new(y);
    let task = |i: usize| {
        let (band, b) = (&bands[i / blocks.len()], i % blocks.len());
        let (channel, columns) = blocks[b];
        let mut a = Scratch::new(slab.len());
        for image in band.images.clone() {
            let from = &x[image * pass.in_height * pass.in_row..];
            for (o, row) in band.rows.clone().enumerate() {
                let rows = [band.rows.start, o, o + 1];
                slab.fill(from, rows, blocks[b], &mut a);
                let (runs, before) = slab.reached(row);
                let out = pass.out_start + image * pass.out_image + row * pass.out_row + channel;
                for &(pixel, pixels) in &strips {
                    let mut strip = Strip {
                        // without taps the slab is empty and unread
                        a: a.as_ptr().wrapping_add(o * slab.row + pixel * lanes),
                        runs,
                        w: packed[(b * slab.order.len() + before) * lanes..].as_ptr(),
                        bias: bias[channel..].as_ptr(),
                        // SAFETY: the pixel is one of the output's.
                        c: unsafe { y.ptr().add(out + pixel * pass.out_pixel) },
                        step: pass.out_pixel,
                        pixels,
                        relu,
                    };
                    if columns == lanes {
                        // SAFETY: the slab holds what a strip's pixels read, and room for those
                        // that are not written; these outputs are the task's own.
                        unsafe { kernel(&strip) };
                        continue;
                    }
                    // ragged channels go through whole vectors aside
                    let mut aside = [T::ZERO; 16 * 16];
                    (strip.c, strip.step) = (aside.as_mut_ptr(), lanes);
                    // SAFETY: as above; no kernel has more than 16 pixels and 16 lanes.
                    unsafe { kernel(&strip) };
                    for p in 0..pixels {
                        // SAFETY: this pixel's channels are the task's own.
                        let to = unsafe { y.slice(out + (pixel + p) * pass.out_pixel, columns) };
                        to.copy_from_slice(&aside[p * lanes..][..columns]);
                    }
                }
            }
        }
    };
    (0..bands.len() * blocks.len())
        .into_par_iter()
        .with_max_len(1)
        .each(task);
}

/// The weight \[channels, kernel\] as \[block\]\[tap\]\[lanes\], filled up with zeros.
fn pack<T: Kernel>(slab: &Slab<T>, shape: &ConvShape, weight: &[T]) -> Scratch<T> {
    let (lanes, taps) = (slab.micro.lanes, slab.order.len());
    let mut packed = Scratch::zeros(shape.ci.next_multiple_of(lanes) * taps);
    for (c, weight) in weight.chunks_exact(shape.taps()).enumerate() {
        for (t, &tap) in slab.order.iter().enumerate() {
            packed[(c / lanes * taps + t) * lanes + c % lanes] = weight[tap];
        }
    }
    packed
}

/// As [`conv::weight_grad`](super::conv::weight_grad).
pub(super) fn weight_grad<T: Kernel>(
    level: Level,
    shape: &ConvShape,
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) {
    assert_eq!((x.len(), dy.len()), (shape.input(), shape.output()));
    assert_eq!(dw.len(), shape.weight());
    let micro = T::micro(level);
    let (lanes, taps) = (micro.lanes, shape.taps());
    let pass = &forward_pass(&merged(shape), false);
    let bands = bands(pass, shape.n, PIXELS);
    let slab = Slab::new(micro, pass, shape.ci, &bands);
    let blocks = slab.blocks();
    // the runs that a kernel takes together: as many taps in each
    let mut visits: Vec<&[Run]> = Vec::new();
    for same in slab.runs.chunk_by(|a, b| a.taps == b.taps) {
        let parts = same
            .len()
            .div_ceil(micro.slide.lines[same[0].taps - 1].len());
        visits.extend(balanced(same.len(), parts).map(|(start, len)| &same[start..start + len]));
    }
    let offsets: Vec<usize> = slab.runs.iter().map(|r| r.offset).collect();

    // each chunk of bands has its own sums, [channel block][tap][lanes]; a task takes all channels
    // of an image one after another, which share cache lines and pages, unless tasks are few
    let chunks = TASKS.min(bands.len()).max(1);
    let chunk_bands: Vec<(usize, usize)> = balanced(bands.len(), chunks).collect();
    let splits = TASKS.div_ceil(chunks).min(blocks.len());
    let splits: Vec<(usize, usize)> = balanced(blocks.len(), splits).collect();
    let size = slab.order.len() * lanes;
    let total = blocks.len() * size;
    let mut sums = Scratch::zeros(chunks * total);
    let shared = Shared::new(&mut sums);
    let task = |i: usize| {
        let (chunk, (first, count)) = (i / splits.len(), splits[i % splits.len()]);
        let (start, len) = chunk_bands[chunk];
        // SAFETY: each (chunk, split) is one task's.
        let sums = unsafe { shared.slice(chunk * total + first * size, count * size) };
        let mut a = Scratch::new(slab.len());
        let mut b = Scratch::new(ROWS * pass.width * lanes);
        let images = bands[start..start + len]
            .iter()
            .flat_map(|band| band.images.clone().map(move |image| (band, image)));
        for (band, image) in images {
            let x = &x[image * pass.in_height * pass.in_row..];
            let dy = &dy[image * pass.out_image + band.rows.start * pass.out_row..];
            let blocks = &blocks[first..first + count];
            for (block, sums) in blocks.iter().zip(sums.chunks_exact_mut(size.max(1))) {
                for o in (0..band.rows.len()).step_by(ROWS) {
                    let rows = ROWS.min(band.rows.len() - o);
                    slab.fill(x, [band.rows.start, o, o + rows], *block, &mut a);
                    let b = &mut b[..rows * pass.width * lanes];
                    let dy = &dy[o * pass.out_row + block.0..];
                    copy_pixels(micro, dy, pass.out_pixel, block.1, b);
                    let (mut run, mut tap) = (0, 0);
                    for visit in &visits {
                        let (k, r) = (visit[0].taps, visit.len());
                        // without the lines for which all of these runs lie outside
                        let reads = |line: &usize| {
                            let row = band.rows.start + o + line;
                            slab.rows[run..run + r]
                                .iter()
                                .any(|&tap| pass.reads(row, tap))
                        };
                        let start = (0..rows).find(reads).unwrap_or(rows);
                        let end = (0..rows).rfind(reads).map_or(start, |line| line + 1);
                        let lines = Lines {
                            a: a[(o + start) * slab.row..].as_ptr(),
                            offsets: &offsets[run..run + r],
                            line: slab.row,
                            lines: end - start,
                            pixels: pass.width,
                            b: b[start * pass.width * lanes..].as_ptr(),
                            acc: sums[tap * lanes..][..k * r * lanes].as_mut_ptr(),
                        };
                        // SAFETY: the slab holds the rows' pixels for each tap, `b` as many
                        // vectors, and `acc` was cut to the size.
                        unsafe { micro.slide.lines[k - 1][r - 1](&lines) };
                        run += r;
                        tap += k * r;
                    }
                }
            }
        }
    };
    (0..chunks * splits.len())
        .into_par_iter()
        .with_max_len(1)
        .each(task);

    for (c, dw) in dw.chunks_exact_mut(taps).enumerate() {
        dw.fill(T::ZERO);
        for (t, &tap) in slab.order.iter().enumerate() {
            let place = c / lanes * size + t * lanes + c % lanes;
            let parts = sums[place..].iter().step_by(total);
            dw[tap] = parts.copied().sum();
        }
    }
}
