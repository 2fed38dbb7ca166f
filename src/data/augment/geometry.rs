//! Crops, flips, rotations, affine maps and other sizes: where each pixel comes from.

use super::ops::{Line, Op, Span};
use super::transform::{Draw, Fill, InterpolationMode};

/// A rectangle of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub top: usize,
    pub left: usize,
    pub height: usize,
    pub width: usize,
}

fn crop(draw: &mut Draw<'_>, [h, w]: [usize; 2], top: isize, left: isize, fill: Vec<f32>) {
    let line = |n, start: isize| Line {
        n,
        step: 1,
        start: start as i32,
    };
    let [_, old_h, old_w] = draw.shape;
    if ([h, w], top, left) != ([old_h, old_w], 0, 0) {
        let (y, x) = (line(h, top), line(w, left));
        draw.push(Op::Move { y, x, fill });
    }
}

pub(super) fn random_crop(draw: &mut Draw<'_>, size: [usize; 2], padding: usize, fill: &Fill) {
    let [_, h, w] = draw.shape;
    let fill = draw.colour(fill).unwrap_or_default();
    let [top, left] = [(h, size[0]), (w, size[1])]
        .map(|(n, part)| draw.up_to(n + 2 * padding - part) as isize - padding as isize);
    crop(draw, size, top, left, fill);
}

pub(super) fn center_crop(draw: &mut Draw<'_>, size: [usize; 2]) {
    let [c, h, w] = draw.shape;
    let middle = |n: usize, part: usize| ((n - part) as f64 / 2.0).round_ties_even() as isize;
    let (top, left) = (middle(h, size[0]), middle(w, size[1]));
    crop(draw, size, top, left, vec![0.0; c]);
}

pub(super) fn flip(draw: &mut Draw<'_>, upside_down: bool) {
    let [c, h, w] = draw.shape;
    let line = |n: usize, turned: bool| Line {
        n,
        step: if turned { -1 } else { 1 },
        start: if turned { n as i32 - 1 } else { 0 },
    };
    let (y, x) = (line(h, upside_down), line(w, !upside_down));
    let fill = vec![0.0; c];
    draw.push(Op::Move { y, x, fill });
}

pub(super) fn resize(
    draw: &mut Draw<'_>,
    size: [usize; 2],
    how: InterpolationMode,
    antialias: bool,
) {
    let [_, height, width] = draw.shape;
    let all = Part {
        top: 0,
        left: 0,
        height,
        width,
    };
    resize_part(draw, all, size, how, antialias);
}

/// A part of the image at another size. Nothing of the rest shines through at its edges: it is as
/// if the image had been cropped before.
pub(super) fn resize_part(
    draw: &mut Draw<'_>,
    part: Part,
    size: [usize; 2],
    how: InterpolationMode,
    antialias: bool,
) {
    if size == [part.height, part.width] {
        let c = draw.shape[0];
        let (top, left) = (part.top as isize, part.left as isize);
        return crop(draw, size, top, left, vec![0.0; c]);
    }
    let bilinear = how == InterpolationMode::Bilinear;
    let span = |n: usize, first: usize, from: usize| {
        let scale = from as f32 / n as f32;
        let radius = if antialias { scale.max(1.0) } else { 1.0 };
        Span {
            n,
            first,
            from,
            scale,
            radius,
        }
    };
    let y = span(size[0], part.top, part.height);
    let x = span(size[1], part.left, part.width);
    draw.push(Op::Resize { y, x, bilinear });
}

/// The part of `RandomResizedCrop`.
pub(super) fn random_part(draw: &mut Draw<'_>, scale: [f32; 2], ratio: [f32; 2]) -> Part {
    let [_, h, w] = draw.shape;
    for _ in 0..10 {
        let (height, width) = random_size(draw, scale, ratio, |ratio| 1.0 / ratio);
        if (1.0..=h as f64).contains(&height) && (1.0..=w as f64).contains(&width) {
            return place(draw, height as usize, width as usize);
        }
    }
    let is = w as f64 / h as f64;
    let [least, most] = ratio.map(f64::from);
    let fit = |x: f64, n: usize| (x.round_ties_even() as usize).clamp(1, n);
    let (height, width) = if is < least {
        (fit(w as f64 / least, h), w)
    } else if is > most {
        (h, fit(h as f64 * most, w))
    } else {
        (h, w)
    };
    Part {
        top: (h - height) / 2,
        left: (w - width) / 2,
        height,
        width,
    }
}

/// A height and width in whole pixels: an area from `scale` of the image's, and a ratio, uniform in
/// its logarithm, of which `tall` makes the height over the width.
pub(super) fn random_size(
    draw: &mut Draw<'_>,
    scale: [f32; 2],
    ratio: [f32; 2],
    tall: impl Fn(f64) -> f64,
) -> (f64, f64) {
    let [_, h, w] = draw.shape;
    let area = (h * w) as f64 * draw.between(scale);
    let [lo, hi] = ratio.map(|r| (r as f64).ln());
    let tall = tall((lo + (hi - lo) * draw.rng.uniform()).exp());
    let side = |square: f64| square.sqrt().round_ties_even();
    (side(area * tall), side(area / tall))
}

/// A place for a rectangle that fits into the image.
pub(super) fn place(draw: &mut Draw<'_>, height: usize, width: usize) -> Part {
    let [_, h, w] = draw.shape;
    Part {
        top: draw.up_to(h - height),
        left: draw.up_to(w - width),
        height,
        width,
    }
}

/// Sine and cosine of degrees; those of right angles without rounding.
fn sin_cos(degrees: f64) -> (f64, f64) {
    let turn = degrees.rem_euclid(360.0);
    match turn {
        0.0 | 360.0 => (0.0, 1.0),
        90.0 => (1.0, 0.0),
        180.0 => (0.0, -1.0),
        270.0 => (-1.0, 0.0),
        _ => turn.to_radians().sin_cos(),
    }
}

/// The map from places in the output to places in the input, both from the middle, x before y:
/// torchvision's `_get_inverse_affine_matrix`. The image is turned clockwise by `angle`, sheared,
/// scaled, then moved.
pub(super) fn inverse_affine(
    angle: f64,
    translate: [f64; 2],
    scale: f64,
    shear: [f64; 2],
) -> [f64; 6] {
    let ((sin, cos), (sin_y, cos_y)) = (sin_cos(angle), sin_cos(shear[1]));
    let (sin_x, cos_x) = sin_cos(shear[0]);
    let tan_x = sin_x / cos_x;
    // of the angle less the shear along y
    let (s, c) = (sin * cos_y - cos * sin_y, cos * cos_y + sin * sin_y);
    let m = [
        c / cos_y,
        -c * tan_x / cos_y - sin,
        s / cos_y,
        cos - s * tan_x / cos_y,
    ];
    // its determinant is 1
    let [a, b, c, d] = [m[3], -m[1], -m[2], m[0]].map(|x| x / scale);
    let [x, y] = translate;
    [a, b, -a * x - b * y, c, d, -c * x - d * y]
}

pub(super) fn warp(draw: &mut Draw<'_>, matrix: [f64; 6], how: InterpolationMode, fill: &Fill) {
    let matrix = matrix.map(|x| x as f32);
    if matrix != [1.0, 0.0, 0.0, 0.0, 1.0, 0.0] {
        let fill = draw.colour(fill).unwrap_or_default();
        let bilinear = how == InterpolationMode::Bilinear;
        draw.push(Op::Warp {
            matrix,
            bilinear,
            fill,
        });
    }
}
