//! Augmentation: random changes of training images, and what of it is fit for evaluation.
//!
//! The way of a batch: bytes -> [`Transform`]s of each image, on a scale of 1 -> normalization with
//! a flip and a crop -> [`Mix`] over the batch. Every number is drawn on the host, from the epoch's
//! seed and the image's (or the batch's) number alone; what is left are a few operations, which the
//! CPU and a CUDA device do with the same results to the bit.

mod canvas;
mod color;
mod erase;
mod geometry;
mod mix;
mod ops;
mod pipeline;
mod transform;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::random::{block, unit};

pub use mix::Mix;
pub(super) use pipeline::{Pipeline, Raw};
pub use transform::{Fill, InterpolationMode, Transform};

/// Random changes of training images, drawn anew each epoch. The stored images stay as they are.
///
/// ```
/// use cotangent::data::{Augment, Mix, Transform};
///
/// let augment = Augment {
///     transforms: vec![
///         Transform::random_crop([32, 32], 4),
///         Transform::RandomHorizontalFlip { p: 0.5 },
///         Transform::color_jitter(0.2, 0.2, 0.2, 0.05),
///         Transform::cutout(1, 8),
///     ],
///     mix: vec![Mix::CutMix { alpha: 1.0 }],
///     ..Augment::none()
/// };
/// assert_ne!(augment, Augment::standard());
/// ```
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Each image's transforms, one after another, on a scale of 1 and before normalization. They
    /// decide the size of what the model sees.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub transforms: Vec<Transform>,
    /// The probability of a mirror image.
    pub flip: f32,
    /// Mirror all images in every other epoch: an image's flip is drawn once, for epoch 0, and each
    /// epoch turns it. Two epochs in a row then show every image both ways, which random flips do
    /// for half of them only (airbench94, Jordan 2024).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub alternating_flip: bool,
    /// The image moves by up to so many pixels, up or down and left or right, each distance
    /// equally likely: a crop from an image padded by as many.
    pub crop_padding: usize,
    /// What the image is padded with.
    #[serde(skip_serializing_if = "PaddingMode::is_constant")]
    pub padding_mode: PaddingMode,
    /// One of them, drawn anew for each batch, each equally likely; none for labels as they are.
    /// A loss that takes the shares of classes is then needed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mix: Vec<Mix>,
    /// The images themselves as targets, in place of labels; none for labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconstruct: Option<Reconstruct>,
}

/// How images are their own targets, for a model that learns without labels: it gets an image with
/// holes in it and is to give back the image before the holes, but after all other changes.
///
/// ```
/// # use cotangent::data::{Augment, Loader, Normalize, Reconstruct, synthetic};
/// let data = synthetic(0, 0, 8);
/// let augment = Augment {
///     reconstruct: Some(Reconstruct { holes: 1, ..Reconstruct::default() }),
///     ..Augment::none()
/// };
/// let normalize = Normalize::per_channel(&data)?;
/// let loader = Loader::new(data, &normalize, augment, 4, 0, false, false)?;
/// let batch = loader.epoch(0).next().unwrap()?;
/// assert_eq!(batch.targets.unwrap().len(), batch.images.len());
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reconstruct {
    /// Squares of the mean colour in each image; 0 for the image as it is.
    pub holes: usize,
    /// Their side in pixels, less where a hole sticks out of the image: [`Transform::Cutout`].
    pub hole_size: usize,
    /// Each image twice an epoch: once as it is, and once after the transforms, flip and crop, which
    /// then keep its shape. Both have holes.
    pub doubled: bool,
}

impl Default for Reconstruct {
    fn default() -> Self {
        Reconstruct {
            holes: 0,
            hole_size: 16,
            doubled: false,
        }
    }
}

impl Reconstruct {
    /// What hides parts of an image.
    fn mask(&self) -> Option<Transform> {
        (self.holes > 0).then(|| Transform::cutout(self.holes, self.hole_size))
    }
}

/// What lies around an image that is moved, by torchvision's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaddingMode {
    /// 0 after normalization, thus the mean colour.
    #[default]
    Constant,
    /// The image itself, mirrored at its outermost pixels, which are not repeated.
    Reflect,
}

impl PaddingMode {
    fn is_constant(&self) -> bool {
        *self == PaddingMode::Constant
    }
}

/// What is not used is not told, so that the text of a flip and a crop is what it always was:
/// checkpoints hold it.
impl fmt::Debug for Augment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Augment");
        text.field("flip", &self.flip);
        text.field("crop_padding", &self.crop_padding);
        if self.alternating_flip {
            text.field("alternating_flip", &true);
        }
        if !self.padding_mode.is_constant() {
            text.field("padding_mode", &self.padding_mode);
        }
        if !self.transforms.is_empty() {
            text.field("transforms", &self.transforms);
        }
        if !self.mix.is_empty() {
            text.field("mix", &self.mix);
        }
        if let Some(reconstruct) = &self.reconstruct {
            text.field("reconstruct", reconstruct);
        }
        text.finish()
    }
}

impl Augment {
    /// No change: for validation and test images.
    pub fn none() -> Self {
        Augment::default()
    }

    /// What is usual for CIFAR-10: a flip every other time and a crop of 4 pixels' padding.
    pub fn standard() -> Self {
        Augment {
            flip: 0.5,
            crop_padding: 4,
            ..Augment::none()
        }
    }

    /// The transforms of images that a model is judged by. A random one is an [`Error::Config`]:
    /// the figure would be of other images than the data's.
    pub fn evaluation(transforms: &[Transform]) -> Result<Self> {
        if let Some(t) = transforms.iter().find(|t| t.is_random()) {
            let why = format!("{t:?}; expected transforms that draw nothing");
            return Err(Error::config("evaluation", why));
        }
        Ok(Augment {
            transforms: transforms.to_vec(),
            ..Augment::none()
        })
    }

    /// [C, H, W] of what the network sees of images of that shape: a crop makes them smaller.
    /// Settings that do not fit the images are an [`Error::Config`].
    ///
    /// ```
    /// # use cotangent::data::{Augment, Transform};
    /// let transforms = vec![Transform::random_crop([56, 56], 0)];
    /// let augment = Augment { transforms, ..Augment::none() };
    /// assert_eq!(augment.shape([3, 64, 64])?, [3, 56, 56]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn shape(&self, stored: [usize; 3]) -> Result<[usize; 3]> {
        Ok(self.check(stored)?.0)
    }

    /// The shape of what the transforms make of images of a shape, and the most numbers that an
    /// image has on its way.
    fn check(&self, stored: [usize; 3]) -> Result<([usize; 3], usize)> {
        let mut most = stored.iter().product();
        let shape = transform::check_all(&self.transforms, stored, &mut most)?;
        let [_, h, w] = shape;
        transform::probability("flip", self.flip)?;
        if self.crop_padding >= h.min(w) {
            let why = format!(
                "{}; expected less than the image's {h}x{w}",
                self.crop_padding
            );
            return Err(Error::config("crop_padding", why));
        }
        self.mix.iter().try_for_each(Mix::check)?;
        if let Some(reconstruct) = &self.reconstruct {
            if !self.mix.is_empty() {
                let why = format!("{:?}; expected none of images to reconstruct", self.mix);
                return Err(Error::config("mix", why));
            }
            if let Some(mask) = reconstruct.mask() {
                mask.check(shape, &mut most)?;
            }
            if reconstruct.doubled && shape != stored {
                let why = format!(
                    "true, and the transforms turn {stored:?} into {shape:?}; expected one shape"
                );
                return Err(Error::config("doubled", why));
            }
        }
        Ok((shape, most))
    }

    /// What happens to image `i`: block i of the epoch's stream, so that neither the order of
    /// the images nor the number of threads plays a part.
    fn draw(&self, epoch: EpochSeed, i: usize) -> Change {
        let r = block(epoch.own, i as u64);
        let flips = |r: [u32; 4]| unit(r[0]) < self.flip;
        let places = 2 * self.crop_padding as u64 + 1;
        let shift = |r: u32| ((r as u64 * places) >> 32) as isize - self.crop_padding as isize;
        Change {
            flip: match self.alternating_flip {
                false => flips(r),
                true => flips(block(epoch.first, i as u64)) != epoch.odd,
            },
            dy: shift(r[1]),
            dx: shift(r[2]),
        }
    }
}

/// Where an epoch's random numbers come from.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EpochSeed {
    /// The seed of what is drawn anew.
    pub own: u64,
    /// That of epoch 0, for what is drawn once.
    pub first: u64,
    /// Whether the epoch's number is odd.
    pub odd: bool,
}

/// One image's flip, then pixel (y, x) taken from (y + dy, x + dx).
#[derive(Default)]
struct Change {
    flip: bool,
    dy: isize,
    dx: isize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_even() {
        let (n, augment) = (10_000, Augment::standard());
        let (mut flips, mut rows, mut columns) = (0, [0; 9], [0; 9]);
        let epoch = |number: u64| EpochSeed {
            own: 5 + number,
            first: 5,
            odd: number % 2 == 1,
        };
        for i in 0..n {
            let c = augment.draw(epoch(0), i);
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
            ..Augment::none()
        };
        let draw = |augment: &Augment, number, i| augment.draw(epoch(number), i);
        assert!((0..n).all(|i| draw(&always, 0, i).flip && !draw(&Augment::none(), 0, i).flip));
        // drawn in epoch 0, the other way in each epoch after; crops are as they were
        let turns = Augment {
            alternating_flip: true,
            ..Augment::standard()
        };
        for i in 0..n {
            let before = draw(&turns, 0, i);
            assert_eq!(before.flip, draw(&augment, 0, i).flip);
            for number in 1..4 {
                let (now, plain) = (draw(&turns, number, i), draw(&augment, number, i));
                assert_eq!(now.flip, before.flip != (number % 2 == 1));
                assert_eq!((now.dy, now.dx), (plain.dy, plain.dx));
            }
        }
    }

    #[test]
    fn a_flip_and_a_crop_are_written_as_they_always_were() {
        let (text, json) = (
            "Augment { flip: 0.5, crop_padding: 4 }",
            r#"{"flip":0.5,"crop_padding":4}"#,
        );
        let standard = Augment::standard();
        assert_eq!(format!("{standard:?}"), text);
        assert_eq!(serde_json::to_string(&standard).unwrap(), json);
        assert_eq!(serde_json::from_str::<Augment>(json).unwrap(), standard);
        let mixed = Augment {
            transforms: vec![Transform::random_erasing(0.5), Transform::cutout(1, 2)],
            mix: vec![Mix::CutMix { alpha: 1.0 }],
            ..standard
        };
        let json = serde_json::to_string(&mixed).unwrap();
        assert_eq!(serde_json::from_str::<Augment>(&json).unwrap(), mixed);
        let text = format!("{mixed:?}");
        assert!(text.ends_with("mix: [CutMix { alpha: 1.0 }] }"), "{text}");
        let airbench = Augment {
            flip: 0.5,
            alternating_flip: true,
            crop_padding: 2,
            padding_mode: PaddingMode::Reflect,
            ..Augment::none()
        };
        let (text, json) = (
            "Augment { flip: 0.5, crop_padding: 2, alternating_flip: true, padding_mode: Reflect }",
            r#"{"flip":0.5,"alternating_flip":true,"crop_padding":2,"padding_mode":"reflect"}"#,
        );
        assert_eq!(format!("{airbench:?}"), text);
        assert_eq!(serde_json::to_string(&airbench).unwrap(), json);
        assert_eq!(serde_json::from_str::<Augment>(json).unwrap(), airbench);
    }
}
