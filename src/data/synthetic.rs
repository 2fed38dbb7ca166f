//! The embedded data set: ten shapes and textures of random place, size, tilt and colours among
//! clutter and noise. What tells the classes apart is form alone: the two colours of an image are
//! drawn alike, so that a class's mean image is flat and a linear model has little to go by.

use rayon::prelude::*;

use super::bytes::Bytes;
use super::{Dataset, Purpose, Splits, stream};
use crate::random::{Generator, block};

/// Training, validation and test images of [`synthetic_splits`].
pub const SYNTHETIC_SIZES: [usize; 3] = [10_000, 1_000, 2_000];

const SIDE: usize = 32;
const PIXELS: usize = 3 * SIDE * SIDE;
const CLASSES: [&str; 10] = [
    "disc",
    "ring",
    "square",
    "triangle",
    "cross",
    "star",
    "horizontal stripes",
    "vertical stripes",
    "checkerboard",
    "dots",
];

/// The embedded data set in its usual sizes.
pub fn synthetic_splits(seed: u64) -> Splits {
    let [train, val, test] = SYNTHETIC_SIZES;
    Splits {
        train: synthetic(seed, 0, train),
        val: synthetic(seed, train as u64, val),
        test: synthetic(seed, (train + val) as u64, test),
        source: format!("embedded synthetic shapes, seed {seed}"),
    }
}

/// Images `first..first + n` of the endless sequence of `seed`, 3x32x32. Image i has class i % 10
/// and depends on `seed` and i alone.
pub fn synthetic(seed: u64, first: u64, n: usize) -> Dataset {
    let mut images = vec![0; n * PIXELS];
    images
        .par_chunks_mut(PIXELS)
        .enumerate()
        .for_each(|(i, image)| draw(seed, first + i as u64, image));
    let labels: Vec<u8> = (first..first + n as u64).map(|i| (i % 10) as u8).collect();
    Dataset {
        name: "synthetic shapes".into(),
        classes: CLASSES.map(String::from).to_vec(),
        shape: [3, SIDE, SIDE],
        index: (0..n as u32).collect(),
        images: Bytes::Owned(images).into(),
        labels: labels.into(),
    }
}

type Color = [f32; 3];

/// Something to paint: a class's form, tilted and scaled about its centre.
struct Figure {
    class: usize,
    center: [f32; 2],
    radius: f32,
    /// Cosine and sine of the angle over the radius: one step from image to figure coordinates.
    turn: [f32; 2],
    color: Color,
}

impl Figure {
    fn new(class: usize, center: [f32; 2], radius: f32, angle: f32, color: Color) -> Self {
        Figure {
            class,
            center,
            radius,
            turn: [angle.cos() / radius, angle.sin() / radius],
            color,
        }
    }

    fn covers(&self, x: f32, y: f32) -> bool {
        let (x, y) = (x - self.center[0], y - self.center[1]);
        let [c, s] = self.turn;
        inside(self.class, c * x + s * y, c * y - s * x)
    }
}

/// Whether (u, v) is inside of a class's form, which fills the unit disc about the origin.
fn inside(class: usize, u: f32, v: f32) -> bool {
    let r2 = u * u + v * v;
    if r2 > 1.0 {
        return false;
    }
    // stripes and squares a third of the radius wide
    let odd = |t: f32| (t * 3.0 + 0.5).floor().rem_euclid(2.0) == 1.0;
    match class {
        0 => true,
        1 => r2 > 0.35,
        2 => u.abs().max(v.abs()) < 0.707,
        3 => v < 0.5 && 1.732 * u.abs() - v < 1.0,
        4 => u.abs().min(v.abs()) < 0.25,
        // five rays: each side runs straight from an inner corner to the tip
        5 => {
            let (inner, half) = (0.38, std::f32::consts::PI / 5.0);
            let off_ray = half - (v.atan2(u).rem_euclid(2.0 * half) - half).abs();
            let (x, y) = (r2.sqrt() * off_ray.cos(), r2.sqrt() * off_ray.sin());
            let corner = (inner * half.cos(), inner * half.sin());
            (x - 1.0) * corner.1 < y * (corner.0 - 1.0)
        }
        6 => odd(v),
        7 => odd(u),
        8 => odd(u) != odd(v),
        // six dots about a seventh
        _ => {
            let half = std::f32::consts::PI / 6.0;
            let off_dot = v.atan2(u).rem_euclid(2.0 * half) - half;
            let (x, y) = (r2.sqrt() * off_dot.cos() - 0.72, r2.sqrt() * off_dot.sin());
            x * x + y * y < 0.06 || r2 < 0.06
        }
    }
}

/// Paint image `i` of `seed` into `out` (3, 32, 32).
fn draw(seed: u64, i: u64, out: &mut [u8]) {
    let class = (i % 10) as usize;
    let g = &mut stream(seed, Purpose::Synthetic, i);
    let (ground, ink) = loop {
        let (a, b) = (color(g), color(g));
        let distance: f32 = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).sum();
        // what a person tells apart at a glance
        if distance > 1.0 {
            break (a, b);
        }
    };
    let side = SIDE as f32;
    let radius = between(g, 9.0, 14.0);
    let center = [(); 2].map(|_| between(g, radius - 1.0, side - radius + 1.0));
    // a tilt only: stripes are told apart by their direction
    let angle = between(g, -0.4, 0.4);
    let figures = [
        speck(g),
        speck(g),
        Figure::new(class, center, radius, angle, ink),
        speck(g),
    ];
    // the light falls off across the image
    let slope = [(); 2].map(|_| between(g, -0.2, 0.2) / side);
    let noise = between(g, 0.02, 0.1);

    let mut grains = Grains::new(g);
    for y in 0..SIDE {
        // uppermost first, and only what reaches this row: most specks do not
        let reaches = |f: &&Figure| (y as f32 + 0.5 - f.center[1]).abs() < f.radius + 0.5;
        let near: Vec<&Figure> = figures.iter().rev().filter(reaches).collect();
        for x in 0..SIDE {
            let light = slope[0] * (x as f32 - side / 2.0) + slope[1] * (y as f32 - side / 2.0);
            let mut sum = [0.0; 3];
            // four samples a pixel, so that edges are smooth
            for (dx, dy) in [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)] {
                let (px, py) = (x as f32 + dx, y as f32 + dy);
                let top = near.iter().find(|f| f.covers(px, py));
                let c = top.map_or(&ground, |f| &f.color);
                sum.iter_mut().zip(c).for_each(|(s, c)| *s += c / 4.0);
            }
            for (c, s) in sum.into_iter().enumerate() {
                let value = s + light + noise * grains.next();
                // the cast cuts off the fraction and saturates
                out[(c * SIDE + y) * SIDE + x] = (value * 255.0 + 0.5) as u8;
            }
        }
    }
}

fn between(g: &mut Generator, low: f32, high: f32) -> f32 {
    low + (high - low) * g.uniform() as f32
}

fn color(g: &mut Generator) -> Color {
    [(); 3].map(|_| g.uniform() as f32)
}

/// A small disc or square of any colour, anywhere.
fn speck(g: &mut Generator) -> Figure {
    let class = 2 * g.below(2) as usize;
    let center = [(); 2].map(|_| between(g, 0.0, SIDE as f32));
    let (radius, angle) = (between(g, 1.0, 2.0), between(g, 0.0, 1.5));
    Figure::new(class, center, radius, angle, color(g))
}

/// Noise, uniform in [-1, 1], sixteen grains from a block: a byte is fine enough.
struct Grains {
    g: Generator,
    bytes: [u8; 16],
    used: usize,
}

impl Grains {
    fn new(g: &Generator) -> Self {
        Grains {
            g: *g,
            bytes: [0; 16],
            used: 16,
        }
    }

    fn next(&mut self) -> f32 {
        if self.used == 16 {
            self.bytes = bytemuck::cast(block(self.g.seed, self.g.take(1)).map(u32::to_le));
            self.used = 0;
        }
        self.used += 1;
        self.bytes[self.used - 1] as f32 / 127.5 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_depend_on_seed_and_number_alone() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| synthetic(3, 0, 40))
        };
        let (a, b) = (run(1), run(3));
        assert_eq!(a.images, b.images);
        let later = synthetic(3, 17, 5);
        assert_eq!(later.image(2), a.image(19));
        assert_eq!(later.label(2), 9);
        assert_ne!(synthetic(4, 0, 40).images, a.images);
    }

    #[test]
    fn classes_are_balanced_and_images_differ() {
        let d = synthetic(0, 0, 200);
        assert_eq!(d.class_counts(), [20; 10]);
        for i in 0..d.len() {
            for j in 0..i {
                let pairs = d.image(i).iter().zip(d.image(j));
                let apart: u32 = pairs.map(|(&a, &b)| a.abs_diff(b) as u32).sum();
                assert!(apart > 5 * PIXELS as u32, "images {i} and {j} are alike");
            }
        }
    }

    #[test]
    fn forms_have_the_areas_of_geometry() {
        let area = |class| {
            let n = 400;
            let at = |i: usize| (i as f32 + 0.5) / n as f32 * 2.0 - 1.0;
            let hits = (0..n * n).filter(|i| inside(class, at(i % n), at(i / n)));
            hits.count() as f32 * 4.0 / (n * n) as f32
        };
        let pi = std::f32::consts::PI;
        let tenth = pi / 5.0;
        let expected = [
            (0, pi),
            (1, pi * 0.65),
            (2, 2.0),
            (3, 1.299),
            (5, 10.0 * 0.5 * 0.38 * tenth.sin()),
            (8, pi / 2.0),
            (9, 7.0 * pi * 0.06),
        ];
        for (class, expected) in expected {
            let got = area(class);
            assert!(
                (got - expected).abs() < 0.06,
                "{}: {got} {expected}",
                CLASSES[class]
            );
        }
        assert!((area(6) - area(7)).abs() < 1e-3);
    }

    /// Softmax regression on the pixels, plain stochastic gradient descent; accuracy on new
    /// images.
    fn linear_accuracy(train: usize, epochs: usize) -> f64 {
        let test = 1_000;
        let d = synthetic(1, 0, train + test);
        let pixels = |i: usize| d.image(i).iter().map(|&p| p as f32 / 127.5 - 1.0);
        let mut w = vec![0f32; 10 * PIXELS];
        let scores = |w: &[f32], x: &[f32]| -> Vec<f32> {
            let rows = w.chunks_exact(PIXELS);
            rows.map(|r| r.iter().zip(x).map(|(a, b)| a * b).sum())
                .collect()
        };
        for step in 0..epochs * train {
            let i = step % train;
            let x: Vec<f32> = pixels(i).collect();
            let s = scores(&w, &x);
            let top = s.iter().copied().fold(f32::MIN, f32::max);
            let e: Vec<f32> = s.iter().map(|s| (s - top).exp()).collect();
            let sum: f32 = e.iter().sum();
            for (k, row) in w.chunks_exact_mut(PIXELS).enumerate() {
                let gradient = e[k] / sum - f32::from(k == d.label(i));
                row.iter_mut()
                    .zip(&x)
                    .for_each(|(w, x)| *w -= 1e-4 * gradient * x);
            }
        }
        let right = (train..train + test).filter(|&i| {
            let s = scores(&w, &pixels(i).collect::<Vec<_>>());
            (0..10).all(|k| s[k] <= s[d.label(i)])
        });
        right.count() as f64 / test as f64
    }

    #[test]
    fn a_linear_model_fails() {
        let accuracy = linear_accuracy(3_000, 3);
        assert!(accuracy < 0.4, "{accuracy}");
    }
}
