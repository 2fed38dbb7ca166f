//! Tiny-ImageNet (Stanford's CS231n): 64x64 JPEG files in a folder a class, decoded once into a file
//! of bytes that later runs map.

mod cache;
mod decode;
mod scan;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::bytes::Bytes;
use super::resize::{self, Resize};
use super::{Dataset, Purpose, Splits, stream};
use crate::error::{Error, Result};
use cache::Unfit;
use decode::{MOST_BYTES, SIDE, decode};

#[cfg(feature = "fetch")]
pub(super) use scan::ARCHIVE;
#[cfg(test)]
pub(super) use scan::tests::write_set;
pub(super) use scan::{FOLDERS, Item, Scan, folder, hex, holds_any};

/// One training image in so many is a validation image: 50 of a class's 500.
const VALIDATION_SHARE: usize = 10;
/// Pixels that are decoded before they are handed on.
const AT_ONCE: usize = 32 << 20;
/// Broken images that a text names.
const NAMED: usize = 5;

/// How [`load_tiny_imagenet`] reads the data set.
#[derive(Clone, Debug, PartialEq)]
pub struct TinyImageNetConfig {
    /// Height and width that the images are resized to, 8 to 512; 64, the default, leaves them as
    /// they are. As torchvision's `Resize` of a PIL image, bilinear with antialiasing.
    pub size: usize,
    /// Where the decoded images are kept.
    pub cache: ImageCache,
    /// Leave out images that do not decode, where they are an error otherwise.
    pub skip_broken: bool,
    /// Chooses the validation images among the training images.
    pub seed: u64,
}

impl Default for TinyImageNetConfig {
    fn default() -> Self {
        TinyImageNetConfig {
            size: SIDE,
            cache: ImageCache::Beside,
            skip_broken: false,
            seed: 0,
        }
    }
}

/// Where decoded images are kept, in a file `tiny-imagenet-CLASSES-SIZE.cache`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ImageCache {
    /// In the data set's folder.
    #[default]
    Beside,
    /// In a folder, which is made if it is not there.
    Folder(PathBuf),
    /// Nowhere: each run decodes them into memory.
    Off,
}

/// Tiny-ImageNet, or any of its classes in the same form, from `dir` or from the folder
/// `tiny-imagenet-200` or `tiny-imagenet-10` in it: `train/WNID/images/*.JPEG`, `val/images` with
/// `val/val_annotations.txt`, `wnids.txt` and `words.txt`.
///
/// The labelled validation images are the test set, for the published test set has no labels. A
/// tenth of each class's training images, chosen by the seed, are for validation: 450, 50 and 50
/// images a class. The training images come in an order in which the classes take turns, so that the
/// first n are balanced. Images are RGB, grayscale ones too. A class is named by its first word in
/// `words.txt`; labels are in the order of the WordNet ids, as PyTorch's `ImageFolder` has them.
///
/// The first run decodes all images on all cores and keeps them by `config.cache`; later runs map that
/// file if the images' names, sizes and labels are the same and it is sound, and make it anew
/// otherwise. Where it cannot be written, `source` says so and the images are in memory.
///
/// A data set that is not whole or does not fit its lists is an [`Error::Data`] that names the file and
/// the line; so are images that do not decode, unless `config.skip_broken` leaves them out and has
/// `source` say so.
pub fn load_tiny_imagenet(dir: &Path, config: &TinyImageNetConfig) -> Result<Splits> {
    let size = config.size;
    resize::check(size)?;
    let scan = Scan::of(&folder(dir)?)?;
    let mut source = format!(
        "Tiny-ImageNet of {} classes from {}",
        scan.classes.len(),
        scan.dir.display()
    );
    let images = images(&scan, config, &mut source)?;
    if !images.broken.is_empty() {
        let n = images.broken.len();
        source += &format!("; {n} broken images left out: {}", some(&images.broken));
    }
    split(&scan, images, size, config.seed, source)
}

/// The decoded images that are used.
struct Images {
    /// (N, C, H, W).
    bytes: Bytes,
    labels: Vec<u8>,
    /// So many, from the first on, are of the training set.
    train: usize,
    /// The images that were left out, each with the reason.
    broken: Vec<String>,
}

/// Takes an image and its bytes.
type Keep<'k> = dyn FnMut(&Item, &[u8]) -> io::Result<()> + 'k;

/// Why decoding ended early.
#[derive(Debug)]
enum Stop {
    /// The data set is to blame.
    Source(Error),
    /// What was decoded could not be kept.
    Keep(io::Error),
}

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        Stop::Source(e)
    }
}

/// From the cache, else decoded; what there is to say about that is added to `source`.
fn images(scan: &Scan, config: &TinyImageNetConfig, source: &mut String) -> Result<Images> {
    let (size, skip) = (config.size, config.skip_broken);
    let name = format!("tiny-imagenet-{}-{size}.cache", scan.classes.len());
    let path = match &config.cache {
        ImageCache::Beside => scan.dir.join(name),
        ImageCache::Folder(folder) => folder.join(name),
        ImageCache::Off => return in_memory(scan, size, skip),
    };
    let earlier = match cache::open(&path, scan, size, skip) {
        Ok(images) => return Ok(images),
        Err(Unfit::Absent) => String::new(),
        Err(Unfit::Because(why)) => {
            format!(
                "; made the cache {} anew: the old one {why}",
                path.display()
            )
        }
    };
    let fill = |keep: &mut Keep| decode_all(scan, size, skip, keep);
    let why = match cache::write(&path, scan, size, fill) {
        Err(Stop::Source(e)) => return Err(e),
        Err(Stop::Keep(e)) => e.to_string(),
        Ok(()) => match cache::open(&path, scan, size, skip) {
            Ok(images) => {
                *source += &earlier;
                return Ok(images);
            }
            Err(Unfit::Absent) => "it is gone".into(),
            Err(Unfit::Because(why)) => format!("what was written {why}"),
        },
    };
    let path = path.display();
    *source += &format!("; decoded into memory, since {path} cannot be made: {why}");
    in_memory(scan, size, skip)
}

fn in_memory(scan: &Scan, size: usize, skip_broken: bool) -> Result<Images> {
    let total = scan.items.len() * 3 * size * size;
    let mut bytes = Vec::new();
    if bytes.try_reserve_exact(total).is_err() {
        let why = format!("its images are {total} bytes, more than memory holds");
        return Err(Error::data(&scan.dir, why));
    }
    let (mut labels, mut train) = (Vec::new(), 0);
    let mut keep = |item: &Item, image: &[u8]| {
        bytes.extend_from_slice(image);
        labels.push(item.label);
        train += item.train as usize;
        Ok(())
    };
    let broken = decode_all(scan, size, skip_broken, &mut keep).map_err(|stop| match stop {
        Stop::Source(e) => e,
        Stop::Keep(e) => Error::io(&scan.dir)(e),
    })?;
    Ok(Images {
        bytes: Bytes::Owned(bytes),
        labels,
        train,
        broken,
    })
}

/// Decode all images on all cores and hand them to `keep` in their order; which ones are broken, and
/// why. These are an error unless they are to be skipped, after all were looked at to count them.
fn decode_all(
    scan: &Scan,
    size: usize,
    skip_broken: bool,
    keep: &mut Keep,
) -> std::result::Result<Vec<String>, Stop> {
    let mut broken = Vec::new();
    let (mut train, mut test) = (0, 0);
    for_each_decoded(scan, size, |item, image| {
        match image {
            Ok(image) => {
                *(if item.train { &mut train } else { &mut test }) += 1;
                if skip_broken || broken.is_empty() {
                    keep(item, &image).map_err(Stop::Keep)?;
                }
            }
            Err(why) => broken.push((item, why)),
        }
        Ok::<(), Stop>(())
    })?;
    let names: Vec<String> = broken
        .iter()
        .map(|(item, why)| format!("{} {why}", item.path))
        .collect();
    let Some((item, why)) = broken.first() else {
        return Ok(names);
    };
    if !skip_broken {
        let more = match broken.len() {
            1 => String::new(),
            n => format!("; {n} broken images in all: {}", some(&names)),
        };
        let why = format!("{why}{more} (skip_broken leaves such images out)");
        return Err(Error::data(scan.path(item), why).into());
    }
    if train == 0 || test == 0 {
        let why = format!("no image of the training or the test set decodes: {why}");
        return Err(Error::data(scan.path(item), why).into());
    }
    Ok(names)
}

/// Decode all images on all cores and hand them, or why they are broken, to `take` in their order.
pub(super) fn for_each_decoded<'s, E: From<Error>>(
    scan: &'s Scan,
    size: usize,
    mut take: impl FnMut(&'s Item, std::result::Result<Vec<u8>, String>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let resize = Resize::new([SIDE; 2], [size; 2]);
    for items in scan.items.chunks(AT_ONCE / (3 * size * size)) {
        let read = |item: &Item| {
            if item.bytes > MOST_BYTES {
                return Ok(Err(format!("is {} bytes: no small image", item.bytes)));
            }
            let path = scan.path(item);
            let jpeg = fs::read(&path).map_err(Error::io(&path))?;
            Ok(decode(&jpeg, &resize))
        };
        let decoded: Vec<Result<_>> = items.par_iter().map(read).collect();
        for (item, image) in items.iter().zip(decoded) {
            take(item, image?)?;
        }
    }
    Ok(())
}

/// The first few of a list, for a text.
fn some(list: &[String]) -> String {
    let shown = list[..list.len().min(NAMED)].join(", ");
    if list.len() > NAMED {
        format!("{shown}, ...")
    } else {
        shown
    }
}

fn split(scan: &Scan, images: Images, size: usize, seed: u64, source: String) -> Result<Splits> {
    let classes: Vec<&str> = scan.classes.iter().map(String::as_str).collect();
    let (n, train) = (images.labels.len(), images.train);
    let shape = [3, size, size];
    let name = "Tiny-ImageNet".into();
    let all = Dataset::of(name, images.bytes, images.labels, shape, &classes)?;
    let (mut learn, mut choose) = (Vec::new(), Vec::new());
    for (class, images) in all.range(0..train)?.by_class().into_iter().enumerate() {
        let order = stream(seed, Purpose::Split, class as u64).permutation(images.len());
        let mut images: Vec<usize> = order.into_iter().map(|k| images[k]).collect();
        // rounded, and of two images one is for validation
        let share = (images.len() + VALIDATION_SHARE / 2) / VALIDATION_SHARE;
        let share = share.max((images.len() > 1) as usize);
        learn.push(images.split_off(share));
        choose.push(images);
    }
    Ok(Splits {
        train: all.subset(&in_turns(&learn))?.named("Tiny-ImageNet train"),
        val: all.subset(&in_turns(&choose))?.named("Tiny-ImageNet val"),
        test: all.range(train..n)?.named("Tiny-ImageNet test"),
        source,
    })
}

/// The first of each list, then the second of each, until all are empty.
fn in_turns(lists: &[Vec<usize>]) -> Vec<usize> {
    let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest)
        .flat_map(|k| lists.iter().filter_map(move |l| l.get(k).copied()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Augment, Loader, Normalize};
    use std::collections::HashSet;
    use std::sync::Arc;

    /// Three classes of ten training and two validation images.
    fn set() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write_set(dir.path(), 10);
        dir
    }

    fn off() -> TinyImageNetConfig {
        TinyImageNetConfig {
            cache: ImageCache::Off,
            ..Default::default()
        }
    }

    fn load(dir: &tempfile::TempDir, config: &TinyImageNetConfig) -> Splits {
        load_tiny_imagenet(dir.path(), config).unwrap()
    }

    fn why(dir: &tempfile::TempDir, config: &TinyImageNetConfig) -> String {
        let e = load_tiny_imagenet(dir.path(), config).unwrap_err();
        e.to_string()
    }

    fn contents(d: &Dataset) -> Vec<(usize, Vec<u8>)> {
        let of = |i| (d.label(i), d.image(i).to_vec());
        (0..d.len()).map(of).collect()
    }

    fn all(s: &Splits) -> [Vec<(usize, Vec<u8>)>; 3] {
        [&s.train, &s.val, &s.test].map(contents)
    }

    fn is_mapped(s: &Splits) -> bool {
        matches!(*s.train.images, Bytes::Mapped(..))
    }

    #[test]
    fn a_tenth_of_each_class_is_for_validation_and_classes_take_turns() {
        let dir = set();
        let splits = load(&dir, &off());
        let [train, val, test] = [&splits.train, &splits.val, &splits.test];
        assert_eq!(train.class_counts(), [9, 9, 9]);
        assert_eq!(val.class_counts(), [1, 1, 1]);
        assert_eq!(test.class_counts(), [2, 2, 2]);
        let labels = |d: &Dataset| (0..d.len()).map(|i| d.label(i)).collect::<Vec<_>>();
        assert_eq!(labels(train), [0, 1, 2].repeat(9));
        assert_eq!(labels(test), [2, 0, 1, 2, 0, 1]);
        assert_eq!(train.classes(), ["goldfish", "ox", "ox"]);
        assert_eq!(
            (train.shape(), val.name()),
            ([3, 64, 64], "Tiny-ImageNet val")
        );
        let source = format!("Tiny-ImageNet of 3 classes from {}", dir.path().display());
        assert_eq!(splits.source, source);

        // no image is in two parts, and the gray one is three equal planes
        let learnt = [contents(train), contents(val)].concat();
        assert_eq!(learnt.iter().collect::<HashSet<_>>().len(), 30);
        let planes = |(_, i): &(usize, Vec<u8>)| i[..4096] == i[4096..8192];
        assert_eq!(learnt.iter().filter(|i| planes(i)).count(), 1);
        assert!(planes(&contents(test)[5]));
        assert!(Arc::ptr_eq(&train.images, &test.images));
    }

    #[test]
    fn the_seed_alone_chooses_the_validation_images() {
        let dir = set();
        let with = |seed| all(&load(&dir, &TinyImageNetConfig { seed, ..off() }));
        assert_eq!(with(1), with(1));
        assert_ne!(with(1)[1], with(2)[1]);
        assert_eq!(with(1)[2], with(2)[2]);
    }

    #[test]
    fn the_cache_holds_what_decoding_gives() {
        let dir = set();
        for size in [8, 56, 64, 100] {
            let fresh = load(&dir, &TinyImageNetConfig { size, ..off() });
            assert!(!is_mapped(&fresh));
            let config = TinyImageNetConfig {
                size,
                ..Default::default()
            };
            let made = load(&dir, &config);
            let path = dir.path().join(format!("tiny-imagenet-3-{size}.cache"));
            let time = fs::metadata(&path).unwrap().modified().unwrap();
            let mapped = load(&dir, &config);
            assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), time);
            assert!(is_mapped(&made) && is_mapped(&mapped));
            assert!(all(&fresh) == all(&made) && all(&fresh) == all(&mapped));
            assert_eq!(fresh.source, mapped.source);
            assert_eq!(mapped.train.shape(), [3, size, size]);
        }
    }

    #[test]
    fn a_loader_takes_mapped_images_as_any_others() {
        let dir = set();
        let batches = |config: &TinyImageNetConfig| {
            let train = load(&dir, config).train;
            let normalize = Normalize::per_channel(&train).unwrap();
            let loader = Loader::new(train, &normalize, Augment::none(), 10, 3, true, false);
            let epoch = loader.unwrap().epoch(1);
            epoch.map(|b| b.unwrap()).collect::<Vec<_>>()
        };
        let (memory, mapped) = (batches(&off()), batches(&TinyImageNetConfig::default()));
        assert_eq!(memory.len(), 3);
        assert!(memory == mapped);
    }

    #[test]
    fn a_damaged_or_outdated_cache_is_made_anew() {
        let dir = set();
        let config = TinyImageNetConfig {
            size: 16,
            cache: ImageCache::Folder(dir.path().join("x/y")),
            ..off()
        };
        // not kept: this test writes into a file that it would map
        let good = all(&load(&dir, &config));
        let path = dir.path().join("x/y/tiny-imagenet-3-16.cache");
        let bytes = fs::read(&path).unwrap();
        let again = |text: &str| {
            let splits = load(&dir, &config);
            assert!(splits.source.contains(text), "{}", splits.source);
            assert!(is_mapped(&splits));
            assert_eq!(fs::read(&path).unwrap().len(), bytes.len());
            all(&splits)
        };
        let mut damaged = bytes.clone();
        damaged[6000] ^= 1;
        fs::write(&path, damaged).unwrap();
        let anew = format!("; made the cache {} anew: the old one", path.display());
        let text = format!("{anew} is damaged at image 2 (from byte 5632)");
        assert!(again(&text) == good);
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(again(&format!("{anew} is truncated: ")) == good);
        assert_eq!(fs::read(&path).unwrap(), bytes);

        let image = dir.path().join("train/n01/images/n01_3.JPEG");
        let mut jpeg = fs::read(&image).unwrap();
        jpeg.push(0);
        fs::write(&image, jpeg).unwrap();
        assert!(again(&format!("{anew} is of other files than there are now")) == good);
    }

    #[test]
    fn where_no_cache_can_be_written_the_images_are_in_memory() {
        let dir = set();
        // a file where the folder should be
        let folder = dir.path().join("words.txt");
        let config = TinyImageNetConfig {
            cache: ImageCache::Folder(folder),
            ..off()
        };
        let splits = load(&dir, &config);
        let text = "; decoded into memory, since ";
        assert!(splits.source.contains(text), "{}", splits.source);
        assert!(!is_mapped(&splits) && all(&splits) == all(&load(&dir, &off())));
    }

    #[test]
    fn broken_images_are_named_and_counted_and_left_out_if_asked() {
        let dir = set();
        let path = |name: &str| dir.path().join(name);
        let second = path("train/n01/images/n01_4.JPEG");
        let good = fs::read(&second).unwrap();
        fs::write(&second, &good[..good.len() / 2]).unwrap();
        let keep = TinyImageNetConfig::default();
        let skip = TinyImageNetConfig {
            skip_broken: true,
            ..TinyImageNetConfig::default()
        };
        let broken = "does not decode: failed to fill whole buffer";
        let hint = "(skip_broken leaves such images out)";
        assert_eq!(
            why(&dir, &keep),
            format!("{}: {broken} {hint}", second.display())
        );
        fs::write(path("val/images/val_1_n03.JPEG"), "GIF89a").unwrap();
        let e = why(&dir, &keep);
        let list = "; 2 broken images in all: train/n01/images/n01_4.JPEG does not decode: \
                    failed to fill whole buffer, val/images/val_1_n03.JPEG does not decode: ";
        assert!(e.contains(list) && e.ends_with(hint), "{e}");
        assert!(!path("tiny-imagenet-3-64.cache").exists());

        for _ in ["made", "mapped"] {
            let splits = load(&dir, &skip);
            assert_eq!(splits.train.class_counts(), [8, 9, 9]);
            assert_eq!(splits.test.class_counts(), [2, 2, 1]);
            let text = "; 2 broken images left out: train/n01/images/n01_4.JPEG does not";
            assert!(splits.source.contains(text), "{}", splits.source);
        }
        // a cache that leaves images out does not hide them from who did not ask for that
        assert!(why(&dir, &keep).contains("2 broken images in all"));

        for wnid in ["n01", "n02", "n03"] {
            for k in 0..10 {
                let name = format!("train/{wnid}/images/{wnid}_{k}.JPEG");
                fs::write(path(&name), vec![b'x'; if k == 0 { 2 << 20 } else { 9 }]).unwrap();
            }
        }
        assert!(why(&dir, &keep).contains("is 2097152 bytes: no small image; 31 broken images"));
        let e = why(&dir, &skip);
        assert!(e.contains("no image of the training or the test set decodes"));
    }

    #[test]
    fn one_training_image_is_learnt_and_of_two_one_is_for_validation() {
        for (images, expected) in [(1, [1, 0]), (2, [1, 1]), (14, [13, 1]), (15, [13, 2])] {
            let dir = tempfile::tempdir().unwrap();
            write_set(dir.path(), images);
            let splits = load(&dir, &off());
            let counts = [&splits.train, &splits.val].map(|d| d.class_counts()[2]);
            assert_eq!(counts, expected);
        }
    }

    #[test]
    fn sizes_have_limits() {
        let dir = set();
        for size in [0, 7, 513, usize::MAX] {
            let e = why(&dir, &TinyImageNetConfig { size, ..off() });
            assert_eq!(e, format!("configuration: size: {size}; expected 8 to 512"));
        }
    }
}
