//! What happens to an image between its bytes and a batch: normalization, and for training a
//! random flip and crop.

use std::sync::Mutex;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Dataset;
use crate::cuda::{Arg, Gpu, kernels};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::random::{block, unit};
use crate::tensor::Tensor;

kernels! {
    /// One thread a pixel of the batch.
    AUGMENT = "augment" [F32];
}

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

    /// Both kinds in one form, `x / 255 - mean` times `scale`; an [`Error::Config`] where the
    /// numbers do not fit images of `shape` = [C, H, W].
    fn affine(&self, shape: [usize; 3]) -> Result<Affine> {
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
struct Affine {
    mean: Vec<f32>,
    scale: Vec<f32>,
}

/// Random changes of training images, drawn anew each epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Augment {
    /// The probability of a mirror image.
    pub flip: f32,
    /// The image moves by up to so many pixels, up or down and left or right, each distance
    /// equally likely: a crop from an image padded by as many. The padding is 0 after
    /// normalization, thus of the mean colour.
    pub crop_padding: usize,
}

impl Augment {
    /// No change: for validation and test images.
    pub fn none() -> Self {
        Augment {
            flip: 0.0,
            crop_padding: 0,
        }
    }

    /// What is usual for CIFAR-10: a flip every other time and a crop of 4 pixels' padding.
    pub fn standard() -> Self {
        Augment {
            flip: 0.5,
            crop_padding: 4,
        }
    }

    fn check(&self, [_, h, w]: [usize; 3]) -> Result<()> {
        if !(0.0..=1.0).contains(&self.flip) {
            let why = format!("{}; expected a probability, 0 to 1", self.flip);
            return Err(Error::config("flip", why));
        }
        if self.crop_padding >= h.min(w) {
            let why = format!(
                "{}; expected less than the image's {h}x{w}",
                self.crop_padding
            );
            return Err(Error::config("crop_padding", why));
        }
        Ok(())
    }

    /// What happens to image `i`: block i of the epoch's stream, so that neither the order of
    /// the images nor the number of threads plays a part.
    fn draw(&self, epoch_seed: u64, i: usize) -> Change {
        let r = block(epoch_seed, i as u64);
        let places = 2 * self.crop_padding as u64 + 1;
        let shift = |r: u32| ((r as u64 * places) >> 32) as isize - self.crop_padding as isize;
        Change {
            flip: unit(r[0]) < self.flip,
            dy: shift(r[1]),
            dx: shift(r[2]),
        }
    }
}

/// One image's flip, then pixel (y, x) taken from (y + dy, x + dx).
struct Change {
    flip: bool,
    dy: isize,
    dx: isize,
}

/// Normalization and augmentation of images of one shape, checked and ready.
#[derive(Debug)]
pub(super) struct Transform {
    shape: [usize; 3],
    affine: Affine,
    augment: Augment,
    /// The means, then the scales, on each GPU that has asked for them.
    on: Mutex<Vec<(Gpu, Tensor)>>,
}

impl Transform {
    pub fn new(shape: [usize; 3], normalize: &Normalize, augment: Augment) -> Result<Self> {
        augment.check(shape)?;
        let affine = normalize.affine(shape)?;
        Ok(Transform {
            shape,
            affine,
            augment,
            on: Mutex::default(),
        })
    }

    /// The images `indices` of `data` as (N, C, H, W), each changed by its own random numbers of
    /// the epoch's stream `epoch_seed`.
    pub fn gather(&self, data: &Dataset, indices: &[usize], epoch_seed: u64) -> Vec<f32> {
        let pixels = data.pixels();
        let mut out = vec![0.0; indices.len() * pixels];
        out.par_chunks_mut(pixels)
            .zip(indices)
            .with_min_len(8)
            .for_each(|(out, &i)| {
                let change = self.augment.draw(epoch_seed, i);
                self.write(data.image(i), &change, out);
            });
        out
    }

    /// What [`finish`](Self::finish) makes the same images of: four numbers an image (label, flip,
    /// dy, dx), then the images' bytes, as one stretch of words to be copied at once.
    pub fn raw(&self, data: &Dataset, indices: &[usize], epoch_seed: u64) -> Vec<i64> {
        let (n, pixels) = (indices.len(), data.pixels());
        let mut words = vec![0; 4 * n + (n * pixels).div_ceil(8)];
        let (changes, images) = words.split_at_mut(4 * n);
        for (words, &i) in changes.chunks_exact_mut(4).zip(indices) {
            let c = self.augment.draw(epoch_seed, i);
            let label = data.label(i) as i64;
            words.copy_from_slice(&[label, c.flip as i64, c.dy as i64, c.dx as i64]);
        }
        let images: &mut [u8] = bytemuck::cast_slice_mut(images);
        for (bytes, &i) in images.chunks_exact_mut(pixels).zip(indices) {
            bytes.copy_from_slice(data.image(i));
        }
        words
    }

    /// The images of [`raw`](Self::raw), which lies on `gpu`, as `gather` would give them, written
    /// to `images` (F32, row-major or channels-last) and their labels to `labels`.
    pub fn finish(&self, gpu: Gpu, raw: &Tensor, images: &Tensor, labels: &Tensor) -> Result<()> {
        let [c, h, w] = self.shape;
        let sizes = [labels.numel(), c, h, w].map(|n| Arg::I32(n as i32));
        let last = Arg::I32(!images.is_contiguous() as i32);
        let affine = self.affine_on(gpu)?;
        let tensors = [
            raw.input(),
            affine.input(),
            images.output(),
            labels.output(),
        ];
        let args = [&tensors[..], &sizes[..], &[last]].concat();
        gpu.launch_over(AUGMENT.of(DType::F32)?, images.numel(), 256, &args)
    }

    fn affine_on(&self, gpu: Gpu) -> Result<Tensor> {
        // a panic elsewhere cannot leave the list half written: poisoning does not matter
        let mut on = self.on.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((_, affine)) = on.iter().find(|(g, _)| *g == gpu) {
            return Ok(affine.clone());
        }
        let numbers = [&self.affine.mean[..], &self.affine.scale].concat();
        let n = numbers.len();
        let affine = Tensor::from_vec(numbers, n)?.moved(Device::Cuda(gpu))?;
        on.push((gpu, affine.clone()));
        Ok(affine)
    }

    /// One image into `out`, which is all zeros: what the crop does not reach stays so.
    fn write(&self, image: &[u8], change: &Change, out: &mut [f32]) {
        let [channels, h, w] = self.shape;
        let (ys, xs) = (kept(h, change.dy), kept(w, change.dx));
        // where the row's first kept pixel comes from; in a mirror image the stretch lies mirrored
        let from = xs.start.saturating_add_signed(change.dx);
        let from = if change.flip {
            w - from - xs.len()
        } else {
            from
        };
        for c in 0..channels {
            let scale = self.affine.scale[c];
            let normal = |(o, (&x, &m)): (&mut f32, (&u8, &f32))| {
                *o = (x as f32 * PIXEL_SCALE - m) * scale;
            };
            for y in ys.clone() {
                let source = (c * h + y.saturating_add_signed(change.dy)) * w + from;
                let pixels = image[source..][..xs.len()].iter();
                let pixels = pixels.zip(&self.affine.mean[source..][..xs.len()]);
                let out = out[(c * h + y) * w..][xs.clone()].iter_mut();
                if change.flip {
                    out.zip(pixels.rev()).for_each(normal);
                } else {
                    out.zip(pixels).for_each(normal);
                }
            }
        }
    }
}

/// The places of `0..n` that are still in `0..n` after moving by `d`, which is less than n.
fn kept(n: usize, d: isize) -> std::ops::Range<usize> {
    let d = d.clamp(-(n as isize), n as isize);
    (-d).max(0) as usize..n - d.max(0) as usize
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

    #[test]
    fn settings_that_do_not_fit_are_errors() {
        let shape = [2, 3, 4];
        let plain = Normalize::MeanImage(vec![0.0; 24]);
        let key = |n: &Normalize, flip, crop_padding| {
            let augment = Augment { flip, crop_padding };
            match Transform::new(shape, n, augment) {
                Err(Error::Config { key, .. }) => key,
                other => panic!("{other:?}"),
            }
        };
        for flip in [-0.1, 1.1, f32::NAN] {
            assert_eq!(key(&plain, flip, 0), "flip");
        }
        assert_eq!(key(&plain, 0.5, 3), "crop_padding");
        let channels = |mean: Vec<f32>, std: Vec<f32>| Normalize::PerChannel { mean, std };
        for wrong in [
            Normalize::MeanImage(vec![0.0; 23]),
            Normalize::MeanImage(vec![f32::NAN; 24]),
            channels(vec![0.0; 3], vec![1.0; 2]),
            channels(vec![0.0; 2], vec![1.0; 3]),
            channels(vec![0.0; 2], vec![1.0, 0.0]),
            channels(vec![0.0; 2], vec![1.0, -1.0]),
        ] {
            assert_eq!(key(&wrong, 0.0, 0), "normalize");
        }
    }

    #[test]
    fn a_change_is_flip_then_shift_with_zeros_around() {
        let d = counting(1);
        let normalize = Normalize::MeanImage((0..24).map(|p| p as f32 * 0.01).collect());
        let t = Transform::new(d.shape(), &normalize, Augment::none()).unwrap();
        for flip in [false, true] {
            for dy in -2..=2 {
                for dx in -2..=2 {
                    let mut out = vec![0.0; 24];
                    t.write(d.image(0), &Change { flip, dy, dx }, &mut out);
                    for (p, &got) in out.iter().enumerate() {
                        let (c, y, x) = (p / 12, p / 4 % 3, p % 4);
                        let (sy, sx) = (y as isize + dy, x as isize + dx);
                        let seen = (0..3).contains(&sy) && (0..4).contains(&sx);
                        let expected = if seen {
                            let sx = if flip { 3 - sx } else { sx };
                            let source = c * 12 + sy as usize * 4 + sx as usize;
                            d.image(0)[source] as f32 * PIXEL_SCALE - source as f32 * 0.01
                        } else {
                            0.0
                        };
                        assert_eq!(got, expected, "flip {flip} dy {dy} dx {dx} at {p}");
                    }
                }
            }
        }
    }

    #[test]
    fn per_channel_divides_by_the_deviation() {
        let d = counting(2);
        let normalize = Normalize::PerChannel {
            mean: vec![0.25, 0.5],
            std: vec![0.5, 0.25],
        };
        let t = Transform::new(d.shape(), &normalize, Augment::none()).unwrap();
        let out = t.gather(&d, &[1], 0);
        assert_eq!(out[3], (d.image(1)[3] as f32 * PIXEL_SCALE - 0.25) * 2.0);
        assert_eq!(out[13], (d.image(1)[13] as f32 * PIXEL_SCALE - 0.5) * 4.0);
    }

    #[test]
    fn draws_are_even() {
        let (n, augment) = (10_000, Augment::standard());
        let (mut flips, mut rows, mut columns) = (0, [0; 9], [0; 9]);
        for i in 0..n {
            let c = augment.draw(5, i);
            flips += usize::from(c.flip);
            rows[(c.dy + 4) as usize] += 1;
            columns[(c.dx + 4) as usize] += 1;
        }
        assert!((4_850..5_150).contains(&flips), "{flips}");
        for count in rows.into_iter().chain(columns) {
            assert!((1_000..1_222).contains(&count), "{rows:?} {columns:?}");
        }
        let always = Augment {
            flip: 1.0,
            crop_padding: 0,
        };
        assert!((0..n).all(|i| always.draw(5, i).flip && !Augment::none().draw(5, i).flip));
    }
}
