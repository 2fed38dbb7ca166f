//! Brightness, contrast, saturation, hue, grey and blur: what happens to a pixel's colour.

use super::ops::{Op, With};
use super::transform::Draw;

/// Brightness, contrast, saturation and hue, each by a number of its range, in a random order.
pub(super) fn jitter(draw: &mut Draw<'_>, ranges: [[f32; 2]; 4]) {
    let order = draw.rng.permutation(4);
    // all four are drawn in one order, whatever the order that they come in
    let drawn = ranges.map(|range| draw.between(range) as f32);
    let grey = draw.shape[0] == 1;
    for which in order {
        let factor = drawn[which];
        let with = match which {
            0 => With::Black,
            1 => With::Mean,
            _ if grey => continue,
            2 => With::Grey,
            _ => {
                if factor != 0.0 {
                    draw.push(Op::Hue { turn: factor });
                }
                continue;
            }
        };
        if factor != 1.0 {
            draw.push(Op::Blend { with, factor });
        }
    }
}

pub(super) fn grayscale(draw: &mut Draw<'_>, channels: usize) {
    if draw.shape[0] != 1 || channels != 1 {
        draw.push(Op::Grey { channels });
    }
}

/// A Gaussian's values at the whole pixels, which sum to 1, along each axis.
pub(super) fn blur(draw: &mut Draw<'_>, kernel_size: usize, sigma: f64) {
    let middle = (kernel_size / 2) as f64;
    let at = |i: usize| (-0.5 * ((i as f64 - middle) / sigma).powi(2)).exp();
    let sum: f64 = (0..kernel_size).map(at).sum();
    let taps: Vec<f32> = (0..kernel_size).map(|i| (at(i) / sum) as f32).collect();
    // a single tap, or others too small to count
    if taps.iter().filter(|&&t| t != 0.0).count() > 1 {
        draw.push(Op::Blur {
            down: false,
            taps: taps.clone(),
        });
        draw.push(Op::Blur { down: true, taps });
    }
}
