//! Data sets of labelled images, their splits, and how they become batches.
//!
//! The way of an image: file (or [`synthetic()`] generator) -> [`Dataset`], bytes in memory or in a
//! mapped file -> [`Loader`], which shuffles, normalizes, augments and gathers -> [`Batch`] of
//! floats.

mod augment;
mod bytes;
mod cifar;
mod fetch;
mod idx;
mod image;
mod loader;
mod locate;
mod normalize;
mod published;
mod resize;
mod synthetic;
mod tiny_imagenet;
mod verify;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::random::{Generator, philox4x32_10};
use bytes::Bytes;
use resize::Resize;

pub use augment::{Augment, Fill, InterpolationMode, Mix, PaddingMode, Reconstruct, Transform};
pub use cifar::{CIFAR10_FILES, RECORD_BYTES, RECORDS_PER_FILE, TRAIN_SAMPLES, load_cifar10};
pub use fetch::{FetchBar, FetchEvent, fetch};
pub use idx::{load_fashion_mnist, load_mnist, read_idx};
pub use image::read_image;
pub use loader::{Batch, Epoch, Feed, Loader};
pub use locate::{
    find_cifar10, find_fashion_mnist, find_mnist, find_tiny_imagenet, load_cifar10_or_synthetic,
};
pub use normalize::{Normalize, PIXEL_SCALE};
pub use published::PublishedSet;
pub use synthetic::{SYNTHETIC_SIZES, synthetic, synthetic_splits};
pub use tiny_imagenet::{ImageCache, TinyImageNetConfig, load_tiny_imagenet};
pub use verify::{Verified, verify};

/// Labelled images of one size, kept as bytes, in memory or in a mapped file. A clone or a subset
/// shares them.
#[derive(Clone, Debug)]
pub struct Dataset {
    name: String,
    classes: Vec<String>,
    shape: [usize; 3],
    images: Arc<Bytes>,
    labels: Arc<Vec<u8>>,
    /// Sample i is the stored image `index[i]`.
    index: Arc<[u32]>,
}

impl Dataset {
    /// `images` is (N, C, H, W) row-major with `shape` = [C, H, W], `labels` is (N), each below
    /// the number of classes. An [`Error::Data`] names `name` where these do not fit.
    pub fn new(
        name: impl Into<String>,
        images: Vec<u8>,
        labels: Vec<u8>,
        shape: [usize; 3],
        classes: &[&str],
    ) -> Result<Self> {
        Self::of(name.into(), Bytes::Owned(images), labels, shape, classes)
    }

    /// As [`new`](Self::new), of bytes wherever they lie.
    fn of(
        name: String,
        images: Bytes,
        labels: Vec<u8>,
        shape: [usize; 3],
        classes: &[&str],
    ) -> Result<Self> {
        let pixels = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let expected = pixels.and_then(|n| n.checked_mul(labels.len()));
        if pixels == Some(0) || expected != Some(images.len()) || labels.len() > u32::MAX as usize {
            let (bytes, n) = (images.len(), labels.len());
            let why = format!("{bytes} bytes do not make {n} labelled images of shape {shape:?}");
            return Err(Error::data(name, why));
        }
        if let Some(i) = labels.iter().position(|&l| l as usize >= classes.len()) {
            let (label, n) = (labels[i], classes.len());
            let why = format!("image {i} has label {label} but there are {n} classes");
            return Err(Error::data(name, why));
        }
        Ok(Dataset {
            name,
            classes: classes.iter().map(|c| c.to_string()).collect(),
            shape,
            index: (0..labels.len() as u32).collect(),
            images: Arc::new(images),
            labels: Arc::new(labels),
        })
    }

    /// The number of images.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Where the images come from, in a few words.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The classes' names; a label is an index into them.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// An image's [C, H, W].
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The bytes (C, H, W) of image `i`; panics where `i` is not below [`len`](Self::len), as a
    /// slice does.
    pub fn image(&self, i: usize) -> &[u8] {
        let pixels = self.pixels();
        &self.images[self.index[i] as usize * pixels..][..pixels]
    }

    /// The label of image `i`; panics where `i` is not below [`len`](Self::len).
    pub fn label(&self, i: usize) -> usize {
        self.labels[self.index[i] as usize] as usize
    }

    /// How many images each class has.
    pub fn class_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        (0..self.len()).for_each(|i| counts[self.label(i)] += 1);
        counts
    }

    /// The images of `range`, without copying them.
    pub fn range(&self, range: Range<usize>) -> Result<Self> {
        let size = self.len();
        let index = self.index.get(range.clone()).ok_or(Error::Index {
            op: "range",
            index: range.end.max(range.start) as i64,
            size,
        })?;
        Ok(self.with_index(index.into()))
    }

    /// The images `indices`, in that order and as often as named, without copying them.
    pub fn subset(&self, indices: &[usize]) -> Result<Self> {
        let pick = |&i: &usize| {
            self.index.get(i).copied().ok_or(Error::Index {
                op: "subset",
                index: i as i64,
                size: self.len(),
            })
        };
        let index: Result<Vec<u32>> = indices.iter().map(pick).collect();
        Ok(self.with_index(index?.into()))
    }

    /// These images and then those of `other`, which has the same shape and classes, as one set with
    /// bytes of its own: PyTorch's `ConcatDataset`. An [`Error::Data`] names what differs.
    pub fn concat(&self, other: &Dataset) -> Result<Self> {
        if self.shape != other.shape || self.classes != other.classes {
            let show = |d: &Dataset| format!("{} classes of {:?}", d.classes.len(), d.shape);
            let why = format!(
                "{} do not join {} of {:?}",
                show(other),
                show(self),
                self.name
            );
            return Err(Error::data(&other.name, why));
        }
        let both = || {
            [self, other]
                .into_iter()
                .flat_map(|d| (0..d.len()).map(move |i| (d, i)))
        };
        let mut images = Vec::with_capacity((self.len() + other.len()) * self.pixels());
        both().for_each(|(d, i)| images.extend_from_slice(d.image(i)));
        let labels = both().map(|(d, i)| d.label(i) as u8).collect();
        let classes: Vec<&str> = self.classes.iter().map(String::as_str).collect();
        Dataset::new(&self.name, images, labels, self.shape, &classes)
    }

    /// A share of each class's images for which labels are taken to be known, in the order of the
    /// data set: `fraction` of them, rounded, but at least one of a class that has any. The choice is
    /// the seed's; with the same seed, a smaller fraction's images are among a larger one's. A
    /// fraction that is not over 0 and at most 1 is an [`Error::Config`].
    pub fn with_label_fraction(&self, fraction: f64, seed: u64) -> Result<Self> {
        if !(fraction > 0.0 && fraction <= 1.0) {
            let why = format!("{fraction}; expected over 0, at most 1");
            return Err(Error::config("label_fraction", why));
        }
        let mut chosen = Vec::new();
        for (class, images) in self.by_class().into_iter().enumerate() {
            let share = (images.len() as f64 * fraction).round() as usize;
            let order = stream(seed, Purpose::Labels, class as u64).permutation(images.len());
            chosen.extend(order.iter().take(share.max(1)).map(|&k| images[k]));
        }
        chosen.sort_unstable();
        self.subset(&chosen)
    }

    /// The images in another height and width, 8 to 512, with bytes of their own: bilinear with
    /// antialiasing, to the bit as torchvision's `Resize` of a PIL image. Another size is an
    /// [`Error::Config`]; images that are no squares, or more of them than memory holds, are an
    /// [`Error::Data`].
    ///
    /// ```
    /// let images = cotangent::data::synthetic(0, 0, 2).resized(64)?;
    /// assert_eq!(images.shape(), [3, 64, 64]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn resized(&self, size: usize) -> Result<Self> {
        resize::check(size)?;
        let [c, h, w] = self.shape;
        if h != w {
            let why = format!("images of {:?}; expected squares to be resized", self.shape);
            return Err(Error::data(&self.name, why));
        }
        let resize = Resize::new([h, w], [size; 2]);
        let (n, pixels) = (self.len(), c * size * size);
        let mut bytes = Vec::new();
        if bytes.try_reserve_exact(n.saturating_mul(pixels)).is_err() {
            let why = format!("{n} images of {size}x{size} are more than memory holds");
            return Err(Error::data(&self.name, why));
        }
        bytes.resize(n * pixels, 0);
        let images = bytes.par_chunks_exact_mut(pixels).enumerate();
        images.for_each(|(i, out)| {
            let mut image = Vec::with_capacity(pixels);
            let planes = self.image(i).chunks_exact(h * w);
            planes.for_each(|plane| resize.append(plane, &mut image));
            out.copy_from_slice(&image);
        });
        let labels = (0..n).map(|i| self.label(i) as u8).collect();
        let classes: Vec<&str> = self.classes.iter().map(String::as_str).collect();
        Dataset::new(&self.name, bytes, labels, [c, size, size], &classes)
    }

    /// The images of each class, in order.
    fn by_class(&self) -> Vec<Vec<usize>> {
        let mut images = vec![Vec::new(); self.classes.len()];
        (0..self.len()).for_each(|i| images[self.label(i)].push(i));
        images
    }

    fn with_index(&self, index: Arc<[u32]>) -> Self {
        Dataset {
            index,
            ..self.clone()
        }
    }

    /// The same under another name.
    fn named(self, name: &str) -> Self {
        Dataset {
            name: name.into(),
            ..self
        }
    }

    /// Each image twice, all of them and then all again.
    fn twice(&self) -> Self {
        let index: Vec<u32> = self.index.iter().chain(&*self.index).copied().collect();
        self.with_index(index.into())
    }

    /// The bytes of one image.
    fn pixels(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A data set's three parts: to learn from, to choose by, and to report on once. Displays as one
/// line for people.
#[derive(Clone, Debug)]
pub struct Splits {
    /// To learn from.
    pub train: Dataset,
    /// To choose settings and the best epoch by.
    pub val: Dataset,
    /// For the final figure alone.
    pub test: Dataset,
    /// Where the images come from, and how to get the real ones where these are not.
    pub source: String,
}

impl Splits {
    /// The same with the first `n` training images only; an [`Error::Config`] where `n` is 0 or
    /// more than there are.
    pub fn with_train_samples(mut self, n: usize) -> Result<Self> {
        let most = self.train.len();
        if n == 0 || n > most {
            let why = format!("{n} of {most} training images; expected 1 to {most}");
            return Err(Error::config("train_samples", why));
        }
        self.train = self.train.range(0..n)?;
        Ok(self)
    }

    /// The same with all images in another height and width: [`Dataset::resized`].
    pub fn resized(self, size: usize) -> Result<Self> {
        Ok(Splits {
            train: self.train.resized(size)?,
            val: self.val.resized(size)?,
            test: self.test.resized(size)?,
            source: self.source,
        })
    }

    /// The same with a class-balanced `fraction` of the training images, those whose labels a
    /// semi-supervised task knows: [`Dataset::with_label_fraction`]. What is learnt without labels
    /// still has all of them in a clone of the former `train`, which shares their bytes.
    pub fn with_label_fraction(mut self, fraction: f64, seed: u64) -> Result<Self> {
        self.train = self.train.with_label_fraction(fraction, seed)?;
        Ok(self)
    }
}

impl fmt::Display for Splits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [c, h, w] = self.train.shape();
        let [train, val, test] = [&self.train, &self.val, &self.test].map(Dataset::len);
        let source = &self.source;
        write!(
            f,
            "{train} train, {val} val and {test} test images of {c}x{h}x{w}: {source}"
        )
    }
}

/// What a stream of random numbers is for, so that no two uses of a seed share numbers.
#[derive(Clone, Copy)]
enum Purpose {
    Shuffle = 1,
    Augment,
    Synthetic,
    /// Which training images a data set's own validation images are.
    Split,
    /// Which labels are known.
    Labels,
}

/// The random numbers of `purpose` in epoch, or of image, `number`.
fn stream(seed: u64, purpose: Purpose, number: u64) -> Generator {
    // the upper counter words are 0 in every Generator, so this block is in none of their streams
    let counter = [number as u32, (number >> 32) as u32, purpose as u32, 0];
    let r = philox4x32_10(counter, [seed as u32, (seed >> 32) as u32]);
    Generator::new((r[0] as u64) << 32 | r[1] as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four() -> Dataset {
        let images = (0..8).collect();
        Dataset::new("four", images, vec![0, 1, 1, 0], [2, 1, 1], &["a", "b"]).unwrap()
    }

    #[test]
    fn a_data_set_of_misfitting_parts_is_an_error() {
        let new = |bytes: usize, labels: Vec<u8>, shape| {
            Dataset::new("it", vec![0; bytes], labels, shape, &["a", "b"])
        };
        assert!(new(7, vec![0, 1], [2, 2, 1]).is_err());
        assert!(new(0, vec![], [0, 1, 1]).is_err());
        assert!(new(1, vec![0], [usize::MAX, 2, 1]).is_err());
        let e = new(2, vec![0, 2], [1, 1, 1]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "it: image 1 has label 2 but there are 2 classes"
        );
    }

    #[test]
    fn subsets_name_the_right_images_and_share_the_bytes() {
        let d = four();
        let s = d.subset(&[3, 1, 3]).unwrap().range(1..3).unwrap();
        assert_eq!(
            (s.len(), s.image(0), s.image(1)),
            (2, &[2, 3][..], &[6, 7][..])
        );
        assert_eq!((s.label(0), s.label(1)), (1, 0));
        assert_eq!(s.class_counts(), [1, 1]);
        assert!(Arc::ptr_eq(&d.images, &s.images));
        assert!(matches!(d.subset(&[4]), Err(Error::Index { index: 4, .. })));
        assert!(matches!(d.range(2..5), Err(Error::Index { index: 5, .. })));
        #[expect(clippy::reversed_empty_ranges)]
        let reversed = d.range(3..1);
        assert!(reversed.is_err());
    }

    #[test]
    fn joined_sets_hold_the_images_of_both_in_order() {
        let d = four();
        let (first, rest) = (d.range(0..1).unwrap(), d.range(1..4).unwrap());
        let both = rest.concat(&first).unwrap();
        assert_eq!((both.len(), both.name()), (4, "four"));
        for (i, from) in [1, 2, 3, 0].into_iter().enumerate() {
            assert_eq!(
                (both.image(i), both.label(i)),
                (d.image(from), d.label(from))
            );
        }
        let other = Dataset::new("other", vec![0], vec![0], [1, 1, 1], &["a", "b"]).unwrap();
        assert_eq!(
            d.concat(&other).unwrap_err().to_string(),
            "other: 2 classes of [1, 1, 1] do not join 2 classes of [2, 1, 1] of \"four\""
        );
    }

    #[test]
    fn resized_images_keep_their_labels_and_order() {
        let d = synthetic(3, 0, 5).subset(&[4, 1]).unwrap();
        let big = d.resized(48).unwrap();
        assert_eq!((big.shape(), big.len()), ([3, 48, 48], 2));
        assert_eq!((big.label(0), big.label(1)), (4, 1));
        assert_eq!(big.classes(), d.classes());
        // an image alone, plane by plane
        let mut first = Vec::new();
        let planes = d.image(0).chunks_exact(32 * 32);
        planes.for_each(|plane| Resize::new([32; 2], [48; 2]).append(plane, &mut first));
        assert_eq!(big.image(0), first);
        assert_eq!(d.resized(32).unwrap().image(1), d.image(1));
        let e = |d: &Dataset, size| d.resized(size).unwrap_err().to_string();
        assert_eq!(e(&d, 7), "configuration: size: 7; expected 8 to 512");
        let flat = Dataset::new("flat", vec![0; 6], vec![0], [1, 2, 3], &["a"]).unwrap();
        let text = "flat: images of [1, 2, 3]; expected squares to be resized";
        assert_eq!(e(&flat, 8), text);
    }

    #[test]
    fn fewer_training_samples() {
        let (train, val, test) = (four(), four(), four());
        let source = "nowhere".into();
        let splits = Splits {
            train,
            val,
            test,
            source,
        };
        let fewer = splits.clone().with_train_samples(3).unwrap();
        assert_eq!(
            fewer.to_string(),
            "3 train, 4 val and 4 test images of 2x1x1: nowhere"
        );
        for n in [0, 5] {
            let e = splits.clone().with_train_samples(n).unwrap_err();
            assert!(matches!(
                e,
                Error::Config {
                    key: "train_samples",
                    ..
                }
            ));
        }
    }

    #[test]
    fn known_labels_are_a_fixed_share_of_each_class() {
        // 100 images of class 0, 31 of class 1 and 1 of class 2; image i is the byte i
        let label = |i: u8| (i >= 100) as u8 + (i == 131) as u8;
        let labels: Vec<u8> = (0..132).map(label).collect();
        let images = (0..132).collect();
        let d = Dataset::new("it", images, labels, [1, 1, 1], &["a", "b", "c", "none"]).unwrap();
        let pick = |fraction, seed| {
            let s = d.with_label_fraction(fraction, seed).unwrap();
            assert!(Arc::ptr_eq(&d.images, &s.images));
            let bytes: Vec<u8> = (0..s.len()).map(|i| s.image(i)[0]).collect();
            (s.class_counts(), bytes)
        };
        let (counts, few) = pick(0.1, 7);
        assert_eq!(counts, [10, 3, 1, 0]);
        assert!(few.is_sorted());
        assert_eq!(few, pick(0.1, 7).1);
        assert_ne!(few, pick(0.1, 8).1);
        let (counts, more) = pick(0.3, 7);
        assert_eq!(counts, [30, 9, 1, 0]);
        assert!(few.iter().all(|i| more.contains(i)));
        assert_eq!(pick(1.0, 7).1, (0..132).collect::<Vec<u8>>());
        assert_eq!(pick(1e-9, 7).0, [1, 1, 1, 0]);

        let splits = Splits {
            train: d.clone(),
            val: d.clone(),
            test: d.clone(),
            source: "nowhere".into(),
        };
        let known = splits.with_label_fraction(0.1, 7).unwrap();
        assert_eq!((known.train.len(), known.val.len()), (14, 132));
        for wrong in [0.0, -0.1, 1.01, f64::NAN] {
            let e = d.with_label_fraction(wrong, 7).unwrap_err();
            assert!(e.to_string().starts_with("configuration: label_fraction: "));
        }
    }

    #[test]
    fn streams_differ_by_seed_purpose_and_number() {
        let mut seeds: Vec<u64> = Vec::new();
        for seed in 0..4 {
            for purpose in [
                Purpose::Shuffle,
                Purpose::Augment,
                Purpose::Synthetic,
                Purpose::Split,
                Purpose::Labels,
            ] {
                seeds.extend((0..4).map(|n| stream(seed, purpose, n).seed));
            }
        }
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), 80);
    }
}
