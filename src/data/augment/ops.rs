//! What a draw comes to: operations with every number decided, for the CPU as they are and for a
//! CUDA device as words.
//!
//! Logarithms, exponentials and angles are behind them: what is left is sums, products, quotients
//! and comparisons, which any device rounds alike.

use super::geometry::Part;

/// Where the `n` rows (or columns) of an output come from: i from `start + step * i`; beyond the
/// image from nowhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    pub n: usize,
    pub step: i32,
    pub start: i32,
}

impl Line {
    /// Whether all of it comes from within `0..size`.
    fn within(&self, size: usize) -> bool {
        let end = self.start + self.step * (self.n as i32 - 1);
        let size = size as i32;
        (0..size).contains(&self.start) && (0..size).contains(&end)
    }

    /// This one, then `next`.
    fn then(&self, next: &Line) -> Line {
        Line {
            n: next.n,
            step: self.step * next.step,
            start: self.start + self.step * next.start,
        }
    }
}

/// How the `from` rows (or columns) from `first` on become `n`: the middle of i lies at
/// `scale * (i + 0.5)`, and pixels weigh less with their distance until it is `radius`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    pub n: usize,
    pub first: usize,
    pub from: usize,
    pub scale: f32,
    pub radius: f32,
}

/// What an image is blended with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum With {
    Black,
    /// The mean of its grey.
    Mean,
    /// Each pixel's grey.
    Grey,
}

/// One change of an image (C, H, W) with no random number left in it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Op {
    /// Pixels go elsewhere as they are.
    Move { y: Line, x: Line, fill: Vec<f32> },
    /// Pixel (x, y) from the middle comes from `matrix` (2 x 3, row-major) times (x, y, 1).
    Warp {
        matrix: [f32; 6],
        bilinear: bool,
        fill: Vec<f32>,
    },
    /// Another size.
    Resize { y: Span, x: Span, bilinear: bool },
    /// `factor` image + (1 - factor) other, cut to 0..1.
    Blend { with: With, factor: f32 },
    /// The colour wheel turned by a share of it.
    Hue { turn: f32 },
    /// The grey of each pixel in so many channels.
    Grey { channels: usize },
    /// A weighted mean along an axis, the image reflected at its edges.
    Blur { down: bool, taps: Vec<f32> },
    /// A rectangle of one colour.
    Erase { part: Part, colour: Vec<f32> },
    /// A rectangle of uniform noise: number i of the image is the first of block i.
    Noise { part: Part, seed: u64 },
    /// `(x - mean[c]) / std[c]`.
    Normalize { mean: Vec<f32>, std: Vec<f32> },
}

impl Op {
    /// The shape of what it makes of [C, H, W].
    pub fn shape(&self, [c, h, w]: [usize; 3]) -> [usize; 3] {
        match self {
            Op::Move { y, x, .. } => [c, y.n, x.n],
            Op::Resize { y, x, .. } => [c, y.n, x.n],
            Op::Grey { channels } => [*channels, h, w],
            _ => [c, h, w],
        }
    }

    /// One operation that does this one, whose output is `between`, and then `next`.
    pub fn then(&self, next: &Op, between: [usize; 3]) -> Option<Op> {
        let (Op::Move { y, x, fill }, Op::Move { y: y2, x: x2, .. }) = (self, next) else {
            return None;
        };
        // what is filled is then filled by this one
        (y2.within(between[1]) && x2.within(between[2])).then(|| Op::Move {
            y: y.then(y2),
            x: x.then(x2),
            fill: fill.clone(),
        })
    }

    /// Append it as `kernels/augment.cu` reads it: a code, the number of words that follow, then
    /// those, 32 bits each.
    pub fn encode(&self, words: &mut Vec<u32>) {
        let at = words.len();
        words.extend([0, 0]);
        let floats = |words: &mut Vec<u32>, x: &[f32]| words.extend(x.iter().map(|x| x.to_bits()));
        let part = |words: &mut Vec<u32>, p: &Part| {
            words.extend([p.top, p.left, p.height, p.width].map(|n| n as u32));
        };
        words[at] = match self {
            Op::Move { y, x, fill } => {
                for line in [y, x] {
                    words.extend([line.n as u32, line.step as u32, line.start as u32]);
                }
                floats(words, fill);
                0
            }
            Op::Warp {
                matrix,
                bilinear,
                fill,
            } => {
                words.push(*bilinear as u32);
                floats(words, matrix);
                floats(words, fill);
                1
            }
            Op::Resize { y, x, bilinear } => {
                words.push(*bilinear as u32);
                for span in [y, x] {
                    words.extend([span.n, span.first, span.from].map(|n| n as u32));
                    floats(words, &[span.scale, span.radius]);
                }
                2
            }
            Op::Blend { with, factor } => {
                words.push(*with as u32);
                floats(words, &[*factor]);
                3
            }
            Op::Hue { turn } => {
                floats(words, &[*turn]);
                4
            }
            Op::Grey { channels } => {
                words.push(*channels as u32);
                5
            }
            Op::Blur { down, taps } => {
                words.push(*down as u32);
                floats(words, taps);
                6
            }
            Op::Erase { part: p, colour } => {
                part(words, p);
                floats(words, colour);
                7
            }
            Op::Noise { part: p, seed } => {
                part(words, p);
                words.extend([*seed as u32, (*seed >> 32) as u32]);
                8
            }
            Op::Normalize { mean, std } => {
                floats(words, mean);
                floats(words, std);
                9
            }
        };
        words[at + 1] = (words.len() - at - 2) as u32;
    }
}
