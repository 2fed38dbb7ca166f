//! How bytes become numbers about zero.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::augment::{EpochSeed, Pipeline};
use super::{Augment, Dataset};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// A byte times this is a number from 0 to 1; both normalizations work on such numbers.
pub const PIXEL_SCALE: f32 = 1.0 / 255.0;

/// How bytes become numbers about zero. Computed from the training images, used on all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Normalize {
    /// `x / 255 - mean`, with a mean for each pixel (C, H, W): CS231n's, on a scale of 1.
    MeanImage(Vec<f32>),
    /// `(x / 255 - mean[c]) / std[c]`, with one of each for a channel (C).
    PerChannel {
        /// The channels' means, on a scale of 1.
        mean: Vec<f32>,
        /// The channels' standard deviations, on a scale of 1.
        std: Vec<f32>,
    },
}

impl Normalize {
    /// The mean image of `train`; an [`Error::Config`] where it is empty.
    pub fn mean_image(train: &Dataset) -> Result<Self> {
        let sums = sums(train, train.pixels(), |sums, image| {
            sums.iter_mut()
                .zip(image)
                .for_each(|(s, &x)| *s += x as u64);
        })?;
        let scale = 1.0 / (255.0 * train.len() as f64);
        Ok(Normalize::MeanImage(
            sums.iter().map(|&s| (s as f64 * scale) as f32).collect(),
        ))
    }

    /// Mean and standard deviation of each channel of `train`; 1 for the deviation of a channel
    /// without any. An [`Error::Config`] where it is empty.
    pub fn per_channel(train: &Dataset) -> Result<Self> {
        let [channels, h, w] = train.shape();
        let sums = sums(train, 2 * channels, |sums, image| {
            for (s, plane) in sums.chunks_exact_mut(2).zip(image.chunks_exact(h * w)) {
                s[0] += plane.iter().map(|&x| x as u64).sum::<u64>();
                s[1] += plane.iter().map(|&x| x as u64 * x as u64).sum::<u64>();
            }
        })?;
        let n = (train.len() * h * w) as f64;
        let moments = sums.chunks_exact(2).map(|s| {
            let mean = s[0] as f64 / n;
            let variance = (s[1] as f64 / n - mean * mean).max(0.0);
            let std = if variance > 0.0 {
                variance.sqrt() / 255.0
            } else {
                1.0
            };
            ((mean / 255.0) as f32, std as f32)
        });
        let (mean, std) = moments.unzip();
        Ok(Normalize::PerChannel { mean, std })
    }

    /// All images of `data` (N, C, H, W) as a model gets them without augmentation: for statistics of
    /// some thousands, say [`whitening`](crate::nn::init::whitening).
    ///
    /// ```
    /// # use cotangent::data::{Normalize, synthetic};
    /// let data = synthetic(0, 0, 20);
    /// let images = Normalize::per_channel(&data)?.images(&data)?;
    /// assert_eq!(images.shape()[..], [20, 3, 32, 32]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn images(&self, data: &Dataset) -> Result<Tensor> {
        let all: Vec<usize> = (0..data.len()).collect();
        let pipeline = Pipeline::new(data, self, Augment::none())?;
        let batch = pipeline.batch(data, &all, EpochSeed::default(), 0);
        Tensor::from_vec(batch.images, batch.shape)
    }

    /// What images (N, C, H, W) of `shape` = [C, H, W] were before they were normalized, on a scale
    /// of 1: for pictures.
    ///
    /// ```
    /// # use cotangent::data::{Normalize, PIXEL_SCALE, synthetic};
    /// let data = synthetic(0, 0, 2);
    /// let normalize = Normalize::per_channel(&data)?;
    /// let pixels = normalize.undo(&normalize.images(&data)?.to_vec::<f32>()?, data.shape())?;
    /// assert!((pixels[0] - data.image(0)[0] as f32 * PIXEL_SCALE).abs() < 1e-6);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn undo(&self, images: &[f32], shape: [usize; 3]) -> Result<Vec<f32>> {
        let Affine { mean, scale } = self.affine(shape)?;
        let plane = shape[1] * shape[2];
        let pixels = images.iter().zip(mean.iter().enumerate().cycle());
        let undone = pixels.map(|(x, (i, mean))| x / scale[i / plane] + mean);
        Ok(undone.collect())
    }

    /// Both kinds in one form, `x / 255 - mean` times `scale`; an [`Error::Config`] where the
    /// numbers do not fit images of `shape` = [C, H, W].
    pub(super) fn affine(&self, shape: [usize; 3]) -> Result<Affine> {
        let [channels, h, w] = shape;
        let error = |why| Err(Error::config("normalize", why));
        let (mean, scale): (Vec<f32>, Vec<f32>) = match self {
            Normalize::MeanImage(mean) => (mean.clone(), vec![1.0; channels]),
            Normalize::PerChannel { mean, std } if mean.len() == channels => (
                mean.iter()
                    .flat_map(|&m| std::iter::repeat_n(m, h * w))
                    .collect(),
                std.iter().map(|s| 1.0 / s).collect(),
            ),
            Normalize::PerChannel { mean, .. } => {
                return error(format!("{} means for {channels} channels", mean.len()));
            }
        };
        if mean.len() != channels * h * w || scale.len() != channels {
            let (m, s) = (mean.len(), scale.len());
            return error(format!("{m} means and {s} scales for images of {shape:?}"));
        }
        if !mean.iter().chain(&scale).all(|x| x.is_finite()) || scale.iter().any(|&s| s <= 0.0) {
            return error("a mean is not finite or a deviation is not above 0".into());
        }
        Ok(Affine { mean, scale })
    }
}

/// Sums over all images, `len` of them, as `add` takes an image in. Whole numbers, so that the
/// order of the threads cannot change them.
fn sums(data: &Dataset, len: usize, add: impl Fn(&mut [u64], &[u8]) + Sync) -> Result<Vec<u64>> {
    if data.is_empty() {
        return Err(Error::config(
            "normalize",
            "no training images to take the mean of",
        ));
    }
    let add_image = |mut sums: Vec<u64>, i| {
        add(&mut sums, data.image(i));
        sums
    };
    let zeros = || vec![0; len];
    let parts = (0..data.len()).into_par_iter().with_min_len(256);
    Ok(parts.fold(zeros, add_image).reduce(zeros, |mut a, b| {
        a.iter_mut().zip(&b).for_each(|(a, b)| *a += b);
        a
    }))
}

/// `(x / 255 - mean[c, y, x]) * scale[c]`.
#[derive(Debug)]
pub(super) struct Affine {
    pub mean: Vec<f32>,
    pub scale: Vec<f32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2 channels of 3x4, pixels 0, 1, 2..
    fn counting(n: usize) -> Dataset {
        let images = (0..n * 24).map(|i| (i * 7 % 256) as u8).collect();
        Dataset::new("counting", images, vec![0; n], [2, 3, 4], &["a"]).unwrap()
    }

    #[test]
    fn mean_image_and_channel_moments_are_the_definition() {
        let d = counting(700);
        let n = d.len() as f64;
        let Normalize::MeanImage(mean) = Normalize::mean_image(&d).unwrap() else {
            panic!()
        };
        for (p, mean) in mean.iter().enumerate() {
            let expected = (0..d.len()).map(|i| d.image(i)[p] as f64).sum::<f64>() / n / 255.0;
            assert!((*mean as f64 - expected).abs() < 1e-7);
        }
        let Normalize::PerChannel { mean, std } = Normalize::per_channel(&d).unwrap() else {
            panic!()
        };
        for c in 0..2 {
            let all: Vec<f64> = (0..d.len())
                .flat_map(|i| d.image(i)[c * 12..][..12].iter().map(|&x| x as f64 / 255.0))
                .collect();
            let m = all.iter().sum::<f64>() / all.len() as f64;
            let v = all.iter().map(|x| (x - m).powi(2)).sum::<f64>() / all.len() as f64;
            assert!((mean[c] as f64 - m).abs() < 1e-7 && (std[c] as f64 - v.sqrt()).abs() < 1e-7);
        }
    }

    #[test]
    fn a_flat_channel_has_deviation_one_and_an_empty_set_is_an_error() {
        let d = Dataset::new("flat", vec![51; 4], vec![0], [1, 2, 2], &["a"]).unwrap();
        let expected = Normalize::PerChannel {
            mean: vec![0.2],
            std: vec![1.0],
        };
        assert_eq!(Normalize::per_channel(&d).unwrap(), expected);
        let none = d.range(0..0).unwrap();
        assert!(Normalize::per_channel(&none).is_err() && Normalize::mean_image(&none).is_err());
    }
}
