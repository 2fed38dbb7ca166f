//! Depthwise convolution: each channel has its own window. Called through [`conv`](super::conv).
//!
//! The slab is the same as every convolution's, one block of channels at a time; a tile's rows are
//! multiplied by the weights lane by lane instead of summed over channels.
use rayon::prelude::*;

use super::conv::{
    ConvShape, GRADIENT_PIXELS, PIXELS, Pass, Slab, TASKS, bands, forward_pass, input_grad_passes,
};
use super::gemm::{balanced, padded_bias, run_tile};
use super::micro::{DEPTH, Kernel, Micro, Start, Taps, Term, Tile};
use super::scratch::{Scratch, Shared};
use super::simd::Level;

/// Taps whose sums are taken at once: their addresses fit the general registers.
const TAPS: usize = 7;

/// The shape as the passes should see it: all channels side by side.
fn merged(shape: &ConvShape) -> ConvShape {
    ConvShape {
        groups: 1,
        ..*shape
    }
}

/// As [`conv::forward`](super::conv::forward).
pub(super) fn forward<T: Kernel>(
    level: Level,
    shape: &ConvShape,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) {
    assert_eq!((x.len(), y.len()), (shape.input(), shape.output()));
    let pass = forward_pass(&merged(shape), false);
    run(T::micro(level), shape, &pass, x, weight, bias, y);
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
        run(T::micro(level), shape, pass, dy, weight, bias, dx);
    }
}

fn run<T: Kernel>(
    micro: &'static Micro<T>,
    shape: &ConvShape,
    pass: &Pass,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) {
    assert_eq!(weight.len(), shape.weight());
    let (width, taps) = (micro.width(), pass.taps.len());
    let bias = padded_bias(bias, shape.co, micro);
    let packed = pack(micro, pass, shape, weight);
    let bands = bands(pass, shape.n, PIXELS);
    let slab = Slab::new(micro, pass, &bands);
    let terms: Vec<Term> = pass
        .taps
        .iter()
        .map(|&tap| Term {
            offset: slab.offset(tap),
            len: 1,
        })
        .collect();
    let y = Shared::new(y);
    let task = |i: usize| {
        let (band, block) = (&bands[i / pass.blocks()], i % pass.blocks());
        let mut scratch = Scratch::new(slab.block);
        slab.fill(band, x, 0, block..block + 1, &mut scratch);
        let out = pass.out_pixels(band);
        let (segments, pixels) = slab.segments(band);
        let channels = pass.block(block);
        for channel in channels.clone().step_by(width) {
            let columns = (channels.end - channel).min(width);
            for segment in 0..segments {
                for (pixel, p) in balanced(pixels, pixels.div_ceil(micro.rows())) {
                    let place = segment * slab.image + pixel * DEPTH + channel - channels.start;
                    let tile = Tile {
                        // without taps the slab is empty and unread
                        a: scratch.as_ptr().wrapping_add(place),
                        terms: &terms,
                        b: packed[channel * taps..].as_ptr(),
                        start: Start::Bias(bias[channel..].as_ptr()),
                        // SAFETY: the channel is one of a pixel's.
                        c: unsafe { y.ptr().add(channel) },
                        rows: &out[segment * pixels + pixel..][..p],
                        relu: false,
                    };
                    // SAFETY: the slab holds the tile's pixels for all taps, and these outputs are
                    // the task's own.
                    unsafe { run_tile(micro, &micro.lanewise, tile, columns) };
                }
            }
        }
    };
    (0..bands.len() * pass.blocks())
        .into_par_iter()
        .with_max_len(1)
        .for_each(task);
}

/// The weight \[channels, kernel\] as \[panel\]\[tap\]\[panel width\], filled up with zeros.
fn pack<T: Kernel>(micro: &Micro<T>, pass: &Pass, shape: &ConvShape, weight: &[T]) -> Scratch<T> {
    let (width, taps) = (micro.width(), pass.taps.len());
    let mut packed = Scratch::zeros(shape.ci.next_multiple_of(width) * taps);
    for (c, weight) in weight.chunks_exact(shape.taps()).enumerate() {
        // the last panel is as wide as its vectors
        let panel = c / width * width;
        let width = micro.vectors((shape.ci - panel).min(width)) * micro.lanes;
        for (t, &tap) in pass.weight_tap.iter().enumerate() {
            packed[panel * taps + t * width + c - panel] = weight[tap];
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
    let pass = &forward_pass(&merged(shape), false);
    let bands = bands(pass, shape.n, GRADIENT_PIXELS);
    let slab = Slab::new(micro, pass, &bands);
    let (width, taps) = (micro.width(), pass.taps.len());
    let most = bands.iter().map(|b| b.pixels(pass)).max().unwrap_or(0);
    let offsets: Vec<usize> = pass.taps.iter().map(|&tap| slab.offset(tap)).collect();

    // each chunk of bands has its own sums, [channel block][panel][tap][panel width]
    let chunks = TASKS.div_ceil(pass.blocks()).min(bands.len()).max(1);
    let size = taps * DEPTH;
    let total = pass.blocks() * size;
    let mut sums = Scratch::zeros(chunks * total);
    let chunk_bands: Vec<(usize, usize)> = balanced(bands.len(), chunks).collect();
    sums.par_chunks_mut(size)
        .with_max_len(1)
        .enumerate()
        .for_each(|(i, sums)| {
            let (start, len) = chunk_bands[i / pass.blocks()];
            let block = i % pass.blocks();
            let channels = pass.block(block);
            let mut a = Scratch::new(slab.block);
            let mut b = Scratch::new(most * width);
            for band in &bands[start..start + len] {
                slab.fill(band, x, 0, block..block + 1, &mut a);
                let (segments, pixels) = slab.segments(band);
                for channel in channels.clone().step_by(width) {
                    let columns = (channels.end - channel).min(width);
                    let vectors = slab.copy_panel(band, channel, columns, dy, &mut b);
                    let row = vectors * micro.lanes;
                    let sums = &mut sums[(channel - channels.start) * taps..];
                    for (t, p) in balanced(taps, taps.div_ceil(micro.rows().min(TAPS))) {
                        let part = Taps {
                            a: a[channel - channels.start..].as_ptr(),
                            offsets: &offsets[t..t + p],
                            stride: slab.image,
                            segments,
                            pixels,
                            b: b.as_ptr(),
                            acc: sums[t * row..][..p * row].as_mut_ptr(),
                        };
                        // SAFETY: the slab holds the band's pixels for each tap, `b` as many
                        // rows, and `acc` was cut to the size.
                        unsafe { micro.taps[vectors - 1][p - 1](&part) };
                    }
                }
            }
        });

    for (c, dw) in dw.chunks_exact_mut(taps).enumerate() {
        let (panel, lane) = (c / width * width, c % width);
        let row = micro.vectors((shape.ci - panel).min(width)) * micro.lanes;
        for (t, dw) in dw.iter_mut().enumerate() {
            let place = panel * taps + t * row + lane;
            *dw = sums[place..].iter().step_by(total).copied().sum();
        }
    }
}
