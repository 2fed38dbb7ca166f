//! Images of bytes in another size, to the bit as Pillow's `Image.resize(size, BILINEAR)` makes them,
//! which is what torchvision's `Resize` does to a PIL image.
//!
//! Bilinear with antialiasing: where the image shrinks, the triangle widens to all pixels that the
//! new one covers, so that nothing between the samples is lost (Tiny-ImageNet's 64 to 56); where it
//! grows, it is the plain interpolation between two. An area average would be as good for shrinking
//! but leaves blocks where 64 becomes 192.

use crate::error::{Error, Result};

/// Fractional bits of a weight, as in Pillow: 8 bits of the pixel and 2 to spare in 32.
const BITS: u32 = 32 - 8 - 2;

/// Refuse a height and width that no image is made to have.
pub(super) fn check(size: usize) -> Result<()> {
    match (8..=512).contains(&size) {
        true => Ok(()),
        false => Err(Error::config("size", format!("{size}; expected 8 to 512"))),
    }
}

/// What one new pixel along an axis is made of.
struct Span {
    first: usize,
    weights: Vec<i32>,
}

/// From images of one height and width to those of another; the proportions may change.
pub(super) struct Resize {
    from: [usize; 2],
    to: [usize; 2],
    down: Vec<Span>,
    across: Vec<Span>,
}

/// What each of `to` new pixels along an axis of `from` is made of.
fn spans(from: usize, to: usize) -> Vec<Span> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    let span = |i: usize| {
        let center = (i as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let triangle = |k: usize| {
            let x = (k as f64 - center + 0.5) * (1.0 / support);
            (1.0 - x.abs()).max(0.0)
        };
        let weights: Vec<f64> = (first..end).map(triangle).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |w: &f64| (0.5 + w / sum * (1u32 << BITS) as f64) as i32;
        Span {
            first,
            weights: weights.iter().map(fixed).collect(),
        }
    };
    (0..to).map(span).collect()
}

impl Resize {
    /// Heights and widths, all over 0.
    pub(super) fn new(from: [usize; 2], to: [usize; 2]) -> Self {
        Resize {
            from,
            to,
            down: spans(from[0], to[0]),
            across: spans(from[1], to[1]),
        }
    }

    /// Append `plane`, row-major, in the new size: one axis after the other, rounded to bytes in
    /// between.
    pub(super) fn append(&self, plane: &[u8], out: &mut Vec<u8>) {
        if self.from == self.to {
            return out.extend_from_slice(plane);
        }
        let ([height, width], [new_height, new_width]) = (self.from, self.to);
        let mut between = Vec::new();
        // Pillow 13's order, which its rounding makes visible: the axis that loses more is first, half as
        // many rows as columns
        let lost = |from: usize, to: usize| from as i64 - to as i64;
        let rows = lost(height, new_height);
        if rows > 0 && rows > 2 * lost(width, new_width) {
            between.reserve(new_height * width);
            stack(plane, width, &self.down, &mut between);
            stretch(&between, width, &self.across, out);
        } else {
            between.reserve(height * new_width);
            stretch(plane, width, &self.across, &mut between);
            stack(&between, new_width, &self.down, out);
        }
    }
}

/// Append new columns: each row of `width` pixels in a new width.
fn stretch(plane: &[u8], width: usize, spans: &[Span], out: &mut Vec<u8>) {
    for row in plane.chunks_exact(width) {
        out.extend(spans.iter().map(|span| {
            let pixels = row[span.first..].iter().zip(&span.weights);
            byte(pixels.map(|(&p, &w)| p as i32 * w).sum())
        }));
    }
}

/// Append new rows, of rows of `width` pixels.
fn stack(plane: &[u8], width: usize, spans: &[Span], out: &mut Vec<u8>) {
    let mut sums = vec![0i32; width];
    for span in spans {
        sums.fill(0);
        let rows = plane[span.first * width..].chunks_exact(width);
        for (row, &w) in rows.zip(&span.weights) {
            let pairs = sums.iter_mut().zip(row);
            pairs.for_each(|(s, &p)| *s += p as i32 * w);
        }
        out.extend(sums.iter().map(|&s| byte(s)));
    }
}

/// A weighted sum, rounded.
fn byte(sum: i32) -> u8 {
    ((sum + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pixels with edges, a ramp and noise.
    fn picture([h, w]: [u32; 2]) -> Vec<u8> {
        let pixel = |i: u32| {
            let (y, x) = (i / w, i % w);
            let noise = i.wrapping_mul(2_654_435_761) >> 27;
            (x * 3 + noise + if (x / 8 + y / 8) % 2 == 0 { 32 } else { 0 }).min(255) as u8
        };
        (0..h * w).map(pixel).collect()
    }

    fn resized(from: [usize; 2], to: [usize; 2]) -> Vec<u8> {
        let mut out = Vec::new();
        let image = picture(from.map(|side| side as u32));
        Resize::new(from, to).append(&image, &mut out);
        assert_eq!(out.len(), to[0] * to[1]);
        out
    }

    /// By `Image.fromarray(picture).resize((to, to), Image.BILINEAR)` of Pillow 13.0.
    #[test]
    fn the_bytes_are_those_of_pillow() {
        let known: [(usize, u32, [u8; 4]); 5] = [
            (8, 0x95b6f027, [52, 61, 96, 108]),
            (56, 0xdac909ed, [38, 51, 55, 61]),
            (63, 0x17cbe985, [33, 54, 46, 67]),
            (128, 0x4cbe120e, [32, 38, 49, 52]),
            (192, 0x24ca300a, [32, 32, 39, 47]),
        ];
        for (to, sum, first) in known {
            let bytes = resized([64; 2], [to; 2]);
            assert_eq!((&bytes[..4], crc32fast::hash(&bytes)), (&first[..], sum));
        }
        // 50 wide and 30 high
        let known: [([usize; 2], u32, [u8; 4]); 4] = [
            ([30, 20], 0xf8f67d31, [46, 58, 61, 51]),
            ([64, 50], 0x7e2a8775, [32, 54, 45, 68]),
            ([17, 99], 0xd4b5b619, [45, 47, 50, 50]),
            ([8, 8], 0x3e44ebd9, [57, 53, 75, 105]),
        ];
        for (to, sum, first) in known {
            let bytes = resized([30, 50], to);
            assert_eq!((&bytes[..4], crc32fast::hash(&bytes)), (&first[..], sum));
        }
    }

    #[test]
    fn the_same_size_is_the_same_image_and_a_flat_one_stays_flat() {
        assert_eq!(resized([30, 50], [30, 50]), picture([30, 50]));
        for (to, value) in [(8, 255), (56, 0), (63, 200), (128, 255), (192, 1)] {
            let mut out = Vec::new();
            Resize::new([64; 2], [to; 2]).append(&[value; 64 * 64], &mut out);
            assert!(out.iter().all(|&p| p == value), "{to}");
        }
    }
}
