//! Mixup and CutMix: each image of a batch with another of the same batch, and so their labels.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::random::{Generator, philox4x32_10};

/// A mixing of the images of a batch, of which labels become shares of classes.
///
/// The partners are a random permutation of the batch, so that an image may meet itself. A batch
/// has one lambda, from Beta(alpha, alpha), as torchvision has it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Mix {
    /// `lambda image + (1 - lambda) partner` (Zhang et al. 2017).
    Mixup {
        /// Above 0: 1 makes all lambdas equally likely, less those near 0 and 1 likelier.
        alpha: f32,
    },
    /// A rectangle of `1 - lambda` of the area is the partner's; lambda is then the share that the
    /// image has kept, as the rectangle is cut off at its edges (Yun et al. 2019).
    CutMix {
        /// As [`Mixup`](Self::Mixup) has it.
        alpha: f32,
    },
}

/// A batch's mixing, drawn.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mixing {
    /// The image's own share, a multiple of 2^-24, so that 1 less it is exact.
    pub lambda: f32,
    /// Top, left, bottom, right of what comes from the partner; `None` to mix all of it.
    pub rectangle: Option<[usize; 4]>,
    /// Of each image.
    pub partners: Vec<usize>,
}

impl Mix {
    pub(super) fn check(&self) -> Result<()> {
        let (key, alpha) = match *self {
            Mix::Mixup { alpha } => ("Mixup.alpha", alpha),
            Mix::CutMix { alpha } => ("CutMix.alpha", alpha),
        };
        if alpha > 0.0 && alpha.is_finite() {
            return Ok(());
        }
        let why = format!("{alpha}; expected a number above 0");
        Err(Error::config(key, why))
    }
}

impl Mixing {
    /// One of `mixes` for batch `number` of the epoch, of `n` images of `h` x `w`; `None` where
    /// there are none.
    pub fn draw(
        mixes: &[Mix],
        epoch_seed: u64,
        number: usize,
        n: usize,
        [h, w]: [usize; 2],
    ) -> Option<Self> {
        // images have 0 and 1 in the third counter word
        let counter = [number as u32, (number as u64 >> 32) as u32, 2, 0];
        let r = philox4x32_10(counter, [epoch_seed as u32, (epoch_seed >> 32) as u32]);
        let mut rng = Generator::new((r[0] as u64) << 32 | r[1] as u64);
        let which = rng.below(mixes.len().max(1) as u64) as usize;
        let mix = mixes.get(which)?;
        let partners = rng.permutation(n);
        let (lambda, rectangle) = match *mix {
            Mix::Mixup { alpha } => (beta(&mut rng, alpha as f64), None),
            Mix::CutMix { alpha } => {
                let half = 0.5 * (1.0 - beta(&mut rng, alpha as f64)).sqrt();
                let [(top, bottom), (left, right)] = [h, w].map(|n| {
                    let middle = rng.below(n as u64) as usize;
                    let half = (half * n as f64) as usize;
                    (middle.saturating_sub(half), (middle + half).min(n))
                });
                let share = ((bottom - top) * (right - left)) as f64 / (h * w) as f64;
                (1.0 - share, Some([top, left, bottom, right]))
            }
        };
        const STEPS: f64 = (1 << 24) as f64;
        Some(Mixing {
            lambda: ((lambda * STEPS).round() / STEPS) as f32,
            rectangle,
            partners,
        })
    }

    /// What it makes of `images` (N, C, H, W).
    pub fn images(&self, images: &[f32], [c, h, w]: [usize; 3]) -> Vec<f32> {
        let (lambda, pixels) = (self.lambda, c * h * w);
        let rest = 1.0 - lambda;
        let mut out = images.to_vec();
        for (out, &p) in out.chunks_exact_mut(pixels).zip(&self.partners) {
            let partner = &images[p * pixels..][..pixels];
            match self.rectangle {
                None => out
                    .iter_mut()
                    .zip(partner)
                    .for_each(|(o, p)| *o = *o * lambda + p * rest),
                Some([top, left, bottom, right]) => {
                    for plane in 0..c {
                        for y in top..bottom {
                            let row = (plane * h + y) * w;
                            let row = row + left..row + right;
                            out[row.clone()].copy_from_slice(&partner[row]);
                        }
                    }
                }
            }
        }
        out
    }

    /// The shares of `classes` (N, classes) that `labels` become.
    pub fn targets(&self, labels: &[i64], classes: usize) -> Vec<f32> {
        let mut out = vec![0.0; labels.len() * classes];
        let rows = out.chunks_exact_mut(classes);
        for ((row, &label), &p) in rows.zip(labels).zip(&self.partners) {
            row[label as usize] += self.lambda;
            row[labels[p] as usize] += 1.0 - self.lambda;
        }
        out
    }
}

/// A number from Beta(a, a): x / (x + y) of two from Gamma(a). Their logarithms are kept, since
/// with a small `a` both would be 0.
fn beta(rng: &mut Generator, a: f64) -> f64 {
    let (x, y) = (ln_gamma_variate(rng, a), ln_gamma_variate(rng, a));
    1.0 / (1.0 + (y - x).exp())
}

/// The logarithm of a number from Gamma(a), by Marsaglia and Tsang (2000).
fn ln_gamma_variate(rng: &mut Generator, a: f64) -> f64 {
    let uniform = |rng: &mut Generator| 1.0 - rng.uniform();
    // theirs is for a of 1 and above
    let (a, lift) = if a < 1.0 {
        (a + 1.0, uniform(rng).ln() / a)
    } else {
        (a, 0.0)
    };
    let d = a - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = rng.normal();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && uniform(rng).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d.ln() + v.ln() + lift;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beta_has_its_moments() {
        let mut rng = Generator::new(3);
        for a in [0.2, 1.0, 4.0] {
            let n = 20_000;
            let x: Vec<f64> = (0..n).map(|_| beta(&mut rng, a)).collect();
            let mean = x.iter().sum::<f64>() / n as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            let expected = 0.25 / (2.0 * a + 1.0);
            assert!((mean - 0.5).abs() < 0.01, "{a}: mean {mean}");
            assert!((variance / expected - 1.0).abs() < 0.05, "{a}: {variance}");
        }
        // all at the ends, and all in the middle
        for (a, expected) in [(f32::MIN_POSITIVE, [0.0, 1.0]), (f32::MAX, [0.5, 0.5])] {
            for _ in 0..100 {
                let x = beta(&mut rng, a as f64);
                assert!(expected.iter().any(|e| (x - e).abs() < 1e-9), "{a}: {x}");
            }
        }
    }

    #[test]
    fn a_share_of_one_changes_nothing() {
        let images: Vec<f32> = (0..24).map(|i| i as f32 / 7.0).collect();
        let mut mixing = Mixing {
            lambda: 1.0,
            rectangle: None,
            partners: vec![1, 0],
        };
        assert_eq!(mixing.images(&images, [3, 2, 2]), images);
        assert_eq!(mixing.targets(&[1, 0], 2), [0.0, 1.0, 1.0, 0.0]);
        mixing.rectangle = Some([1, 1, 1, 2]);
        assert_eq!(mixing.images(&images, [3, 2, 2]), images);
    }
}
