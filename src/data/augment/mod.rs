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
    /// The image moves by up to so many pixels, up or down and left or right, each distance
    /// equally likely: a crop from an image padded by as many. The padding is 0 after
    /// normalization, thus of the mean colour.
    pub crop_padding: usize,
    /// One of them, drawn anew for each batch, each equally likely; none for labels as they are.
    /// A loss that takes the shares of classes is then needed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mix: Vec<Mix>,
}

/// What is not used is not told, so that the text of a flip and a crop is what it always was:
/// checkpoints hold it.
impl fmt::Debug for Augment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Augment");
        text.field("flip", &self.flip);
        text.field("crop_padding", &self.crop_padding);
        if !self.transforms.is_empty() {
            text.field("transforms", &self.transforms);
        }
        if !self.mix.is_empty() {
            text.field("mix", &self.mix);
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
        Ok((shape, most))
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

#[cfg(test)]
mod tests {
    use super::*;

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
            ..Augment::none()
        };
        assert!((0..n).all(|i| always.draw(5, i).flip && !Augment::none().draw(5, i).flip));
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
    }
}
