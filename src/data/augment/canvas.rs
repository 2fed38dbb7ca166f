//! The operations on the CPU. Each sum has one order, which `kernels/augment.cu` keeps.

use super::geometry::Part;
use super::ops::{Line, Op, Span, With};
use crate::data::PIXEL_SCALE;
use crate::random::{block, unit};

/// The weights of red, green and blue in grey (ITU-R BT.601, to torchvision's digits).
const GREY: [f32; 3] = [0.2989, 0.587, 0.114];

/// Partial sums of the mean: as many as the kernel has threads.
const PARTS: usize = 256;

/// An image under way, and room for the next.
pub(super) struct Canvas {
    shape: [usize; 3],
    now: Vec<f32>,
    next: Vec<f32>,
}

impl Canvas {
    /// For images of up to `most` numbers on their way.
    pub fn new(most: usize) -> Self {
        Canvas {
            shape: [0; 3],
            now: vec![0.0; most],
            next: vec![0.0; most],
        }
    }

    /// What `ops` make of an image (C, H, W) of bytes: numbers, on a scale of 1.
    pub fn run(&mut self, image: &[u8], shape: [usize; 3], ops: &[Op]) -> &[f32] {
        self.shape = shape;
        for (o, &x) in self.now.iter_mut().zip(image) {
            *o = x as f32 * PIXEL_SCALE;
        }
        self.go_on(ops)
    }

    /// What more `ops` make of the image.
    pub fn go_on(&mut self, ops: &[Op]) -> &[f32] {
        for op in ops {
            self.apply(op);
        }
        &self.now[..self.shape.iter().product()]
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Move { y, x, fill } => self.step(op, |c, planes| planes.shift(y, x, fill[c])),
            Op::Warp {
                matrix,
                bilinear,
                fill,
            } => self.step(op, |c, planes| planes.warp(matrix, *bilinear, fill[c])),
            Op::Resize { y, x, bilinear } => {
                let (rows, columns) = (taps(y, *bilinear), taps(x, *bilinear));
                self.step(op, |_, planes| planes.resize(&rows, &columns));
            }
            Op::Blur { down, taps } => self.step(op, |_, planes| planes.blur(*down, taps)),
            Op::Blend { with, factor } => self.blend(*with, *factor),
            Op::Hue { turn } => {
                let [r, g, b] = self.colours();
                for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
                    [*r, *g, *b] = turned([*r, *g, *b], *turn);
                }
            }
            Op::Grey { channels } => self.grey(*channels),
            Op::Erase { part, colour } => self.overwrite(part, |c, _| colour[c]),
            Op::Noise { part, seed } => {
                self.overwrite(part, |_, i| unit(block(*seed, i as u64)[0]));
            }
            Op::Normalize { mean, std } => {
                let [_, h, w] = self.shape;
                let planes = self.now.chunks_exact_mut(h * w);
                for ((plane, &mean), &std) in planes.zip(mean).zip(std) {
                    plane.iter_mut().for_each(|x| *x = (*x - mean) / std);
                }
            }
        }
    }

    /// An operation that makes each plane of the next image from its own.
    fn step(&mut self, op: &Op, f: impl Fn(usize, Planes<'_>)) {
        let [c, h, w] = self.shape;
        let out = op.shape(self.shape);
        let from = self.now.chunks_exact(h * w).take(c);
        let to = self.next.chunks_exact_mut(out[1] * out[2]);
        for (c, (from, to)) in from.zip(to).enumerate() {
            let (size, width) = ([h, w], out[2]);
            f(
                c,
                Planes {
                    from,
                    size,
                    to,
                    width,
                },
            );
        }
        std::mem::swap(&mut self.now, &mut self.next);
        self.shape = out;
    }

    /// The three planes.
    fn colours(&mut self) -> [&mut [f32]; 3] {
        let [_, h, w] = self.shape;
        let (r, rest) = self.now.split_at_mut(h * w);
        let (g, rest) = rest.split_at_mut(h * w);
        [r, g, &mut rest[..h * w]]
    }

    /// The grey of pixel `i`.
    fn grey_at(&self, i: usize) -> f32 {
        let [c, h, w] = self.shape;
        match c {
            1 => self.now[i],
            _ => grey([0, 1, 2].map(|c| self.now[c * h * w + i])),
        }
    }

    fn blend(&mut self, with: With, factor: f32) {
        let [c, h, w] = self.shape;
        let mean = if with == With::Mean { self.mean() } else { 0.0 };
        let rest = 1.0 - factor;
        if with == With::Grey {
            for i in 0..h * w {
                let grey = rest * self.grey_at(i);
                for c in 0..c {
                    let x = &mut self.now[c * h * w + i];
                    *x = cut(factor * *x + grey);
                }
            }
        } else {
            let other = rest * mean;
            let numbers = &mut self.now[..c * h * w];
            numbers
                .iter_mut()
                .for_each(|x| *x = cut(factor * *x + other));
        }
    }

    /// The mean of the grey.
    fn mean(&self) -> f32 {
        let [_, h, w] = self.shape;
        let mut parts = [0f32; PARTS];
        for i in 0..h * w {
            parts[i % PARTS] += self.grey_at(i);
        }
        let mut half = PARTS / 2;
        while half > 0 {
            for i in 0..half {
                parts[i] += parts[i + half];
            }
            half /= 2;
        }
        parts[0] / (h * w) as f32
    }

    fn grey(&mut self, channels: usize) {
        let [_, h, w] = self.shape;
        for i in 0..h * w {
            let grey = self.grey_at(i);
            (0..channels).for_each(|c| self.next[c * h * w + i] = grey);
        }
        std::mem::swap(&mut self.now, &mut self.next);
        self.shape[0] = channels;
    }

    /// A rectangle of `f(channel, place in the image)`.
    fn overwrite(&mut self, part: &Part, f: impl Fn(usize, usize) -> f32) {
        let [channels, h, w] = self.shape;
        for c in 0..channels {
            for y in part.top..part.top + part.height {
                for x in part.left..part.left + part.width {
                    let i = (c * h + y) * w + x;
                    self.now[i] = f(c, i);
                }
            }
        }
    }
}

/// 0 to 1, NaN as it is.
fn cut(x: f32) -> f32 {
    x.clamp(0.0, 1.0)
}

fn grey([r, g, b]: [f32; 3]) -> f32 {
    GREY[0] * r + GREY[1] * g + GREY[2] * b
}

/// A colour with its hue turned: to hue, saturation and value (Smith 1978), and back.
fn turned([r, g, b]: [f32; 3], turn: f32) -> [f32; 3] {
    let greater = |a: f32, b: f32| if a > b { a } else { b };
    let less = |a: f32, b: f32| if a < b { a } else { b };
    let (max, min) = (greater(greater(r, g), b), less(less(r, g), b));
    let range = max - min;
    let (s, divisor) = if range == 0.0 {
        (0.0, 1.0)
    } else {
        (range / max, range)
    };
    let [rc, gc, bc] = [r, g, b].map(|x| (max - x) / divisor);
    let sixth = if max == r {
        bc - gc
    } else if max == g {
        2.0 + rc - bc
    } else {
        4.0 + gc - rc
    };
    let whole = sixth / 6.0 + 1.0;
    let hue = (whole - whole.floor()) + turn;
    let six = (hue - hue.floor()) * 6.0;
    let (side, f) = (six.floor(), six - six.floor());
    let p = cut(max * (1.0 - s));
    let q = cut(max * (1.0 - s * f));
    let t = cut(max * (1.0 - s * (1.0 - f)));
    match side as i32 {
        1 => [q, max, p],
        2 => [p, max, t],
        3 => [p, q, max],
        4 => [t, p, max],
        5 => [max, p, q],
        // 0, and a hue that was rounded up to the whole circle
        _ => [max, t, p],
    }
}

/// For each row (or column) of the output the first of the input and the weights from there on.
fn taps(span: &Span, bilinear: bool) -> Vec<(usize, Vec<f32>)> {
    let one = |i: usize| {
        if !bilinear {
            let at = (i as f32 * span.scale).floor() as usize;
            return (span.first + at.min(span.from - 1), vec![1.0]);
        }
        let center = span.scale * (i as f32 + 0.5);
        let start = (center - span.radius + 0.5) as usize;
        let end = ((center + span.radius + 0.5) as usize).min(span.from);
        let inverse = 1.0 / span.radius;
        let weight = |j: usize| {
            let far = ((j as f32 - center + 0.5) * inverse).abs();
            if far < 1.0 { 1.0 - far } else { 0.0 }
        };
        let mut sum = 0.0;
        (start..end).for_each(|j| sum += weight(j));
        let weights = (start..end).map(|j| weight(j) / sum).collect();
        (span.first + start, weights)
    };
    (0..span.n).map(one).collect()
}

/// A plane of the image (H, W), and the same one of the next.
struct Planes<'a> {
    from: &'a [f32],
    size: [usize; 2],
    to: &'a mut [f32],
    /// Of `to`.
    width: usize,
}

impl Planes<'_> {
    fn shift(self, y: &Line, x: &Line, fill: f32) {
        let [h, w] = self.size;
        let place = |line: &Line, i: usize, n: usize| {
            let at = line.start + line.step * i as i32;
            usize::try_from(at).ok().filter(|&at| at < n)
        };
        for (i, row) in self.to.chunks_exact_mut(self.width).enumerate() {
            match place(y, i, h) {
                None => row.fill(fill),
                Some(at) => {
                    let from = &self.from[at * w..][..w];
                    for (j, o) in row.iter_mut().enumerate() {
                        *o = place(x, j, w).map_or(fill, |at| from[at]);
                    }
                }
            }
        }
    }

    fn warp(self, m: &[f32; 6], bilinear: bool, fill: f32) {
        let [h, w] = self.size;
        let (middle_y, middle_x) = (0.5 * (h - 1) as f32, 0.5 * (w - 1) as f32);
        let (height, width) = (h as f32, w as f32);
        let pixel = |y: i32, x: i32| {
            let seen = (0..h as i32).contains(&y) && (0..w as i32).contains(&x);
            if seen {
                self.from[y as usize * w + x as usize]
            } else {
                fill
            }
        };
        for (i, o) in self.to.iter_mut().enumerate() {
            let (y, x) = ((i / w) as f32 - middle_y, (i % w) as f32 - middle_x);
            let sx = m[0] * x + m[1] * y + m[2] + middle_x;
            let sy = m[3] * x + m[4] * y + m[5] + middle_y;
            // so that what is far away, or not a number, never becomes an integer
            if !(sx > -1.0 && sx < width && sy > -1.0 && sy < height) {
                *o = fill;
            } else if bilinear {
                let (left, top) = (sx.floor(), sy.floor());
                let (fx, fy) = (sx - left, sy - top);
                let (gx, gy) = (1.0 - fx, 1.0 - fy);
                let (x, y) = (left as i32, top as i32);
                *o = pixel(y, x) * (gx * gy)
                    + pixel(y, x + 1) * (fx * gy)
                    + pixel(y + 1, x) * (gx * fy)
                    + pixel(y + 1, x + 1) * (fx * fy);
            } else {
                *o = pixel(sy.round_ties_even() as i32, sx.round_ties_even() as i32);
            }
        }
    }

    fn resize(self, rows: &[(usize, Vec<f32>)], columns: &[(usize, Vec<f32>)]) {
        let w = self.size[1];
        for (out, (top, down)) in self.to.chunks_exact_mut(self.width).zip(rows) {
            for (o, (left, along)) in out.iter_mut().zip(columns) {
                *o = 0.0;
                for (y, weight) in down.iter().enumerate() {
                    let from = &self.from[(top + y) * w + left..];
                    let mut row = 0.0;
                    along.iter().zip(from).for_each(|(a, x)| row += a * x);
                    *o += weight * row;
                }
            }
        }
    }

    fn blur(self, down: bool, taps: &[f32]) {
        let [h, w] = self.size;
        self.to.fill(0.0);
        let half = taps.len() / 2;
        // the edge itself is not repeated
        let place = |i: usize, n: usize| {
            let at = i.abs_diff(half);
            if i >= half && at >= n {
                2 * (n - 1) - at
            } else {
                at
            }
        };
        for (y, row) in self.to.chunks_exact_mut(w).enumerate() {
            for (k, &tap) in taps.iter().enumerate() {
                if down {
                    let from = &self.from[place(y + k, h) * w..][..w];
                    row.iter_mut().zip(from).for_each(|(o, x)| *o += tap * x);
                } else {
                    let from = &self.from[y * w..][..w];
                    let at = |x: usize| from[place(x + k, w)];
                    row.iter_mut()
                        .enumerate()
                        .for_each(|(x, o)| *o += tap * at(x));
                }
            }
        }
    }
}
