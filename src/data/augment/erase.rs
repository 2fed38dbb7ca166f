//! Random erasing and cutout: rectangles that are overwritten.

use super::geometry::{Part, place, random_size};
use super::ops::Op;
use super::transform::{Draw, Fill};

/// The rectangle of `RandomErasing`, smaller than the image both ways.
pub(super) fn random_rectangle(
    draw: &mut Draw<'_>,
    scale: [f32; 2],
    ratio: [f32; 2],
) -> Option<Part> {
    let [_, h, w] = draw.shape;
    for _ in 0..10 {
        let (height, width) = random_size(draw, scale, ratio, |ratio| ratio);
        if height < h as f64 && width < w as f64 {
            return Some(place(draw, height as usize, width as usize));
        }
    }
    None
}

/// A square about a random pixel, cut off at the image's edges.
pub(super) fn hole(draw: &mut Draw<'_>, length: usize, value: &Fill) {
    let [_, h, w] = draw.shape;
    let half = length / 2;
    let [(top, height), (left, width)] = [h, w].map(|n| {
        let middle = draw.up_to(n - 1);
        let start = middle.saturating_sub(half);
        (start, (middle + half).min(n) - start)
    });
    let part = Part {
        top,
        left,
        height,
        width,
    };
    rectangle(draw, part, value);
}

pub(super) fn rectangle(draw: &mut Draw<'_>, part: Part, value: &Fill) {
    let colour = draw.colour(value);
    let seed = (draw.rng.below(1 << 32)) << 32 | draw.rng.below(1 << 32);
    draw.push(match colour {
        Some(colour) => Op::Erase { part, colour },
        None => Op::Noise { part, seed },
    });
}
