//! Decoded images in one file, to be mapped: a page with the header, then the images side by side,
//! then their labels, a CRC-32 of each, and a description as JSON.
//!
//! Nothing of it is trusted: the header and the part behind the images have sums of their own, the
//! file's length must be what the header says, and each image is read and compared with its sum
//! before the file is used.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::scan::{Item, Scan};
use super::{Images, Keep, Stop};
use crate::data::bytes::Bytes;
use crate::files::temporary;

const MAGIC: &[u8; 8] = b"COTIMGS\n";
/// Of the format, and of how images are decoded and resized.
const VERSION: u32 = 1;
const HEADER: usize = 40;
/// Where the images begin: a page of most systems, so that no image shares its pages with the header.
const IMAGES_AT: u64 = 4096;
/// Beside an image's pixels: its label and its sum.
const BESIDE: u64 = 1 + 4;
/// Read and compared at once.
const CHUNK: usize = 8 << 20;

/// What the file says of itself, for the program and for who looks into it.
#[derive(Serialize, Deserialize)]
struct Description {
    size: usize,
    classes: Vec<String>,
    train: usize,
    test: usize,
    fingerprint: String,
    broken: Vec<String>,
}

/// Why a cache is not used.
pub(super) enum Unfit {
    /// There is none.
    Absent,
    /// In words that follow "the cache".
    Because(String),
}

fn because<T>(why: impl Into<String>) -> Result<T, Unfit> {
    Err(Unfit::Because(why.into()))
}

impl From<io::Error> for Unfit {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::NotFound => Unfit::Absent,
            io::ErrorKind::UnexpectedEof => Unfit::Because("is truncated".into()),
            _ => Unfit::Because(format!("cannot be read: {e}")),
        }
    }
}

fn image_bytes(size: usize) -> usize {
    3 * size * size
}

/// Write the images that `fill` hands out. Readers, and whoever comes after a crash, see the earlier
/// file or the whole new one; where anything fails, a full disk included, the earlier one stays.
pub(super) fn write(
    path: &Path,
    scan: &Scan,
    size: usize,
    fill: impl FnOnce(&mut Keep) -> Result<Vec<String>, Stop>,
) -> Result<(), Stop> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(Stop::Keep)?;
    // dropping `file` before `persist` removes it: every `?` below cleans up
    let mut file = temporary(folder).map_err(Stop::Keep)?;
    let mut out = BufWriter::with_capacity(1 << 20, file.as_file_mut());
    out.write_all(&[0; IMAGES_AT as usize])
        .map_err(Stop::Keep)?;
    let (mut labels, mut sums, mut train) = (Vec::new(), Vec::new(), 0);
    let broken = fill(&mut |item: &Item, image: &[u8]| {
        labels.push(item.label);
        sums.extend(crc32fast::hash(image).to_le_bytes());
        train += item.train as usize;
        out.write_all(image)
    })?;
    let n = labels.len();
    let description = Description {
        size,
        classes: scan.classes.clone(),
        train,
        test: n - train,
        fingerprint: scan.fingerprint.clone(),
        broken,
    };
    let mut finish = || {
        let description = serde_json::to_vec(&description)?;
        let tail = [&labels[..], &sums, &description].concat();
        out.write_all(&tail)?;
        let mut header = Vec::with_capacity(HEADER);
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((image_bytes(size) as u32).to_le_bytes());
        header.extend((n as u64).to_le_bytes());
        header.extend((description.len() as u64).to_le_bytes());
        header.extend(crc32fast::hash(&tail).to_le_bytes());
        header.extend(crc32fast::hash(&header).to_le_bytes());
        out.seek(SeekFrom::Start(0))?;
        out.write_all(&header)?;
        out.flush()
    };
    finish().map_err(Stop::Keep)?;
    drop(out);
    file.as_file().sync_all().map_err(Stop::Keep)?;
    file.persist(path).map_err(|e| Stop::Keep(e.error))?;
    Ok(())
}

/// The images of `scan` in `size`, if the file at `path` holds just these and is sound.
pub(super) fn open(
    path: &Path,
    scan: &Scan,
    size: usize,
    skip_broken: bool,
) -> Result<Images, Unfit> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut header = [0; HEADER];
    file.read_exact(&mut header)?;
    let u32_at = |at: usize| u32::from_le_bytes(array(&header[at..]));
    let u64_at = |at: usize| u64::from_le_bytes(array(&header[at..]));
    if header[..8] != MAGIC[..] {
        return because("is no file of images");
    }
    if u32_at(8) != VERSION {
        return because(format!("is of version {}, not {VERSION}", u32_at(8)));
    }
    if u32_at(36) != crc32fast::hash(&header[..36]) {
        return because("has a damaged header");
    }
    let (stored, n, words) = (u32_at(12) as u64, u64_at(16), u64_at(24));
    let behind = n.checked_mul(BESIDE).and_then(|b| b.checked_add(words));
    let end = n.checked_mul(stored).and_then(|b| b.checked_add(IMAGES_AT));
    let (Some(behind), Some(end)) = (behind, end) else {
        return because("has a damaged header");
    };
    let expected = end.checked_add(behind);
    if expected != Some(length) {
        let less = expected.is_none_or(|e| length < e);
        let what = if less { "is truncated" } else { "is too long" };
        return because(format!("{what}: {length} bytes"));
    }
    if stored != image_bytes(size) as u64 {
        return because("is of images of another size");
    }

    let n = n as usize;
    let mut tail = vec![0; behind as usize];
    file.seek(SeekFrom::Start(end))?;
    file.read_exact(&mut tail)?;
    if u32_at(32) != crc32fast::hash(&tail) {
        return because("has damaged labels");
    }
    let (labels, rest) = tail.split_at(n);
    let (sums, words) = rest.split_at(4 * n);
    let Ok(description) = serde_json::from_slice::<Description>(words) else {
        return because("has no description that can be read");
    };
    let Description { train, test, .. } = description;
    if description.size != size
        || description.fingerprint != scan.fingerprint
        || description.classes != scan.classes
        || train.checked_add(test) != Some(n)
    {
        return because("is of other files than there are now");
    }
    if !skip_broken && !description.broken.is_empty() {
        let n = description.broken.len();
        return because(format!("leaves {n} broken images out"));
    }
    check(&mut file, sums, image_bytes(size))?;
    let bytes = Bytes::map(&file, IMAGES_AT as usize..end as usize)?;
    Ok(Images {
        bytes,
        labels: labels.to_vec(),
        train,
        broken: description.broken,
    })
}

/// Read all images and compare their sums. This is done by reading, not through the map, where a disk
/// that cannot read a block ends the process; and it brings the file into the system's memory, as the
/// first epoch would.
fn check(file: &mut File, sums: &[u8], image_bytes: usize) -> Result<(), Unfit> {
    file.seek(SeekFrom::Start(IMAGES_AT))?;
    let at_once = (CHUNK / image_bytes).max(1);
    let mut buffer = vec![0; at_once * image_bytes];
    for (chunk, sums) in sums.chunks(4 * at_once).enumerate() {
        let images = &mut buffer[..sums.len() / 4 * image_bytes];
        file.read_exact(images)?;
        let wrong = images
            .par_chunks(image_bytes)
            .zip(sums.par_chunks(4))
            .position_first(|(image, sum)| crc32fast::hash(image).to_le_bytes() != *sum);
        if let Some(i) = wrong {
            let i = chunk * at_once + i;
            let byte = IMAGES_AT + (i * image_bytes) as u64;
            return because(format!("is damaged at image {i} (from byte {byte})"));
        }
    }
    Ok(())
}

/// The first bytes of a slice that has as many.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| bytes[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 8;

    fn scan() -> Scan {
        let item = |i: usize| Item {
            path: format!("{i}.JPEG"),
            label: (i % 3) as u8,
            bytes: 1,
            train: i < 4,
        };
        Scan {
            dir: "nowhere".into(),
            classes: ["a", "b", "c"].map(String::from).to_vec(),
            items: (0..6).map(item).collect(),
            fingerprint: "f00".into(),
        }
    }

    fn image(i: usize) -> Vec<u8> {
        (0..image_bytes(SIZE)).map(|k| (k * 7 + i) as u8).collect()
    }

    fn fill(scan: &Scan, keep: &mut Keep) -> io::Result<()> {
        let mut items = scan.items.iter().enumerate();
        items.try_for_each(|(i, item)| keep(item, &image(i)))
    }

    fn write_all(path: &Path, scan: &Scan, broken: &[&str]) {
        let broken = broken.iter().map(|b| b.to_string()).collect();
        let filled = |keep: &mut Keep| fill(scan, keep).map(|()| broken).map_err(Stop::Keep);
        assert!(write(path, scan, SIZE, filled).is_ok());
    }

    fn why(path: &Path, scan: &Scan) -> String {
        match open(path, scan, SIZE, false) {
            Ok(_) => "fits".into(),
            Err(Unfit::Absent) => "absent".into(),
            Err(Unfit::Because(why)) => why,
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let name = |e: io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        fs::read_dir(dir).unwrap().map(name).collect()
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/cache");
        let scan = scan();
        assert_eq!(why(&path, &scan), "absent");
        write_all(&path, &scan, &[]);
        let images = open(&path, &scan, SIZE, true).ok().unwrap();
        assert_eq!((images.labels, images.train), (vec![0, 1, 2, 0, 1, 2], 4));
        assert!(matches!(images.bytes, Bytes::Mapped(..)));
        let expected: Vec<u8> = (0..6).flat_map(image).collect();
        assert_eq!(images.bytes[..], expected[..]);
        assert_eq!(names(path.parent().unwrap()), ["cache"]);
    }

    #[test]
    fn another_set_size_or_choice_does_not_fit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        let mut scan = scan();
        write_all(&path, &scan, &["3.JPEG: broken"]);
        assert_eq!(why(&path, &scan), "leaves 1 broken images out");
        let images = open(&path, &scan, SIZE, true).ok().unwrap();
        assert_eq!(images.broken, ["3.JPEG: broken"]);
        write_all(&path, &scan, &[]);
        assert_eq!(why(&path, &scan), "fits");
        assert!(matches!(
            open(&path, &scan, SIZE + 1, false),
            Err(Unfit::Because(why)) if why == "is of images of another size"
        ));
        scan.fingerprint = "f01".into();
        assert_eq!(why(&path, &scan), "is of other files than there are now");
    }

    #[test]
    fn any_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        let scan = scan();
        write_all(&path, &scan, &[]);
        let good = fs::read(&path).unwrap();
        let with = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            why(&path, &scan)
        };
        let flipped = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 4;
            with(&bytes)
        };
        assert_eq!(flipped(0), "is no file of images");
        assert_eq!(flipped(8), "is of version 5, not 1");
        for at in 12..HEADER {
            assert_eq!(flipped(at), "has a damaged header");
        }
        // of the page with the header, the rest means nothing
        assert_eq!(flipped(HEADER), "fits");
        let at = IMAGES_AT as usize + 2 * image_bytes(SIZE) + 5;
        let from = IMAGES_AT as usize + 2 * image_bytes(SIZE);
        assert_eq!(
            flipped(at),
            format!("is damaged at image 2 (from byte {from})")
        );
        for at in IMAGES_AT as usize + 6 * image_bytes(SIZE)..good.len() {
            assert_eq!(flipped(at), "has damaged labels");
        }
        for length in (0..good.len()).step_by(97).chain([good.len() - 1]) {
            assert!(with(&good[..length]).starts_with("is truncated"));
        }
        let longer = [&good[..], &[0]].concat();
        assert_eq!(
            with(&longer),
            format!("is too long: {} bytes", longer.len())
        );
        assert!(with(&[0; 5000]).starts_with("is no file"));
        assert_eq!(with(&good), "fits");
    }

    /// As [`fill`], until the disk is full.
    fn full(scan: &Scan, keep: &mut Keep) -> Result<Vec<String>, Stop> {
        fill(scan, keep).map_err(Stop::Keep)?;
        Err(Stop::Keep(io::ErrorKind::StorageFull.into()))
    }

    #[test]
    fn a_full_disk_leaves_the_earlier_cache() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        let scan = scan();
        write_all(&path, &scan, &[]);
        let stop = write(&path, &scan, SIZE, |keep| full(&scan, keep)).unwrap_err();
        assert!(matches!(stop, Stop::Keep(e) if e.kind() == io::ErrorKind::StorageFull));
        assert_eq!(why(&path, &scan), "fits");
        assert_eq!(names(dir.path()), ["cache"]);
    }
}
