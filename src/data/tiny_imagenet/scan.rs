//! Tiny-ImageNet's folders as they were published, checked against their lists; no image is opened.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use md5::{Digest, Md5};
use rayon::prelude::*;

use crate::data::locate::Unpacked;
use crate::error::{Error, Result};

/// The folder's names in the usual places: inside of the official archive, and of ten classes.
pub(in crate::data) const FOLDERS: [&str; 2] = ["tiny-imagenet-200", "tiny-imagenet-10"];
/// The official archive.
pub(in crate::data) const ARCHIVE: &str = "tiny-imagenet-200.zip";

const WNIDS: &str = "wnids.txt";
const WORDS: &str = "words.txt";
const TRAIN: &str = "train";
const VAL: &str = "val/images";
const ANNOTATIONS: &str = "val/val_annotations.txt";
/// Far more than any of the lists takes; what is larger is not read.
const MOST_TEXT: u64 = 64 << 20;
/// A label is a byte.
const MOST_CLASSES: usize = 256;

/// An image's file.
pub(in crate::data) struct Item {
    /// Below the data set's folder.
    pub(in crate::data) path: String,
    pub(in crate::data) label: u8,
    /// Of the file.
    pub(in crate::data) bytes: u64,
    /// Whether it is of the training set.
    pub(in crate::data) train: bool,
}

/// All that the folders say.
pub(in crate::data) struct Scan {
    pub(in crate::data) dir: PathBuf,
    /// The classes' first names in the order of their WordNet ids, which is the order of PyTorch's
    /// `ImageFolder`: labels agree with those of networks trained there.
    pub(in crate::data) classes: Vec<String>,
    /// The training images by class and name, then the validation images as they are annotated.
    pub(in crate::data) items: Vec<Item>,
    /// A hash of classes, labels, names and sizes.
    pub(in crate::data) fingerprint: String,
}

impl Scan {
    /// Of `dir`, in which [`folder`] found the parts.
    pub(in crate::data) fn of(dir: &Path) -> Result<Self> {
        let (scan, problems) = Self::with_problems(dir)?;
        problems.into_iter().next().map_or(Ok(scan), Err)
    }

    /// Of as much as is there, and all that is wrong. That classes cannot be told is an error.
    pub(in crate::data) fn with_problems(dir: &Path) -> Result<(Self, Vec<Error>)> {
        let wnids = wnids(&dir.join(WNIDS))?;
        let classes = class_names(&dir.join(WORDS), &wnids)?;
        let mut problems = Vec::new();
        problems.extend(only_known_classes(&dir.join(TRAIN), &wnids).err());
        let folders: Vec<_> = wnids.par_iter().map(|w| class_images(dir, w)).collect();
        let mut items = Vec::new();
        for ((label, wnid), (images, whole)) in wnids.iter().enumerate().zip(folders) {
            problems.extend(whole.err());
            items.extend(images.into_iter().map(|(name, bytes)| Item {
                path: format!("{TRAIN}/{wnid}/images/{name}"),
                label: label as u8,
                bytes,
                train: true,
            }));
        }
        match annotated(dir, &wnids, &mut problems) {
            Ok(images) => items.extend(images),
            Err(e) => problems.push(e),
        }

        let mut hash = Md5::new();
        for (wnid, name) in wnids.iter().zip(&classes) {
            hash.update(format!("{wnid}\t{name}\n"));
        }
        for item in &items {
            let Item { path, label, .. } = item;
            hash.update(format!("{path}\t{label}\t{}\n", item.bytes));
        }
        let scan = Scan {
            dir: dir.to_path_buf(),
            classes,
            items,
            fingerprint: hex(&hash.finalize()),
        };
        Ok((scan, problems))
    }

    /// The file of an image.
    pub(in crate::data) fn path(&self, item: &Item) -> PathBuf {
        self.dir.join(&item.path)
    }
}

/// Bytes as text.
pub(in crate::data) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// `dir` or its subfolder of one of the known names, whichever holds the data set; an error says
/// what is missing.
pub(in crate::data) fn folder(dir: &Path) -> Result<PathBuf> {
    let unpacked = Unpacked {
        archive: ARCHIVE,
        parts: &[TRAIN, VAL, ANNOTATIONS, WNIDS, WORDS],
        inner: &FOLDERS,
        holds_any,
    };
    unpacked.folder(dir, || match dir.join(ARCHIVE).exists() {
        true => format!("holds {ARCHIVE}, but not unpacked"),
        false => "holds no Tiny-ImageNet".into(),
    })
}

/// Whether `dir` holds any of the data set's lists.
pub(in crate::data) fn holds_any(dir: &Path) -> bool {
    [WNIDS, WORDS, ANNOTATIONS]
        .iter()
        .any(|f| dir.join(f).exists())
}

/// A line of a list.
struct Line<'t> {
    number: usize,
    offset: u64,
    text: Cow<'t, str>,
}

impl Line<'_> {
    /// An [`Error::Data`] that names the line and its first byte.
    fn error(&self, path: &Path, why: impl std::fmt::Display) -> Error {
        Error::data_at(path, self.offset, format!("line {}: {why}", self.number))
    }
}

/// The lines that are not blank.
fn lines(text: &[u8]) -> impl Iterator<Item = Line<'_>> {
    let mut next = 0;
    text.split(|&b| b == b'\n')
        .enumerate()
        .map(move |(i, line)| {
            let offset = next;
            next += line.len() as u64 + 1;
            Line {
                number: i + 1,
                offset,
                text: String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)),
            }
        })
        .filter(|l| !l.text.trim().is_empty())
}

fn read_text(path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|f| f.take(MOST_TEXT + 1).read_to_end(&mut text))
        .map_err(Error::io(path))?;
    if text.len() as u64 > MOST_TEXT {
        return Err(Error::data(path, "too large to be a list of names"));
    }
    Ok(text)
}

/// The classes' WordNet ids, sorted.
fn wnids(path: &Path) -> Result<Vec<String>> {
    let text = read_text(path)?;
    let mut wnids: Vec<String> = Vec::new();
    let mut seen = HashSet::new();
    for line in lines(&text) {
        let wnid = line.text.trim().to_string();
        // it becomes a part of paths
        if !wnid.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(line.error(path, format!("{wnid:?} is no WordNet id as n01443537 is")));
        }
        if !seen.insert(wnid.clone()) {
            return Err(line.error(path, format!("class {wnid} a second time")));
        }
        wnids.push(wnid);
    }
    let n = wnids.len();
    if n == 0 || n > MOST_CLASSES {
        let why = format!("{n} classes; expected 1 to {MOST_CLASSES}, one a line");
        return Err(Error::data(path, why));
    }
    wnids.sort_unstable();
    Ok(wnids)
}

/// The first of each class's names in `words.txt`.
fn class_names(path: &Path, wnids: &[String]) -> Result<Vec<String>> {
    let text = read_text(path)?;
    let mut names = vec![None; wnids.len()];
    for line in lines(&text) {
        let Some((wnid, synonyms)) = line.text.split_once('\t') else {
            continue;
        };
        let Ok(class) = wnids.binary_search_by(|w| w.as_str().cmp(wnid)) else {
            continue;
        };
        let first = synonyms.split(',').next().unwrap_or("").trim();
        if first.is_empty() {
            return Err(line.error(path, format!("class {wnid} has no name")));
        }
        names[class] = Some(first.to_string());
    }
    let named = |(name, wnid): (Option<String>, &String)| {
        name.ok_or_else(|| Error::data(path, format!("class {wnid} of {WNIDS} is missing")))
    };
    names.into_iter().zip(wnids).map(named).collect()
}

/// That no folder of `train` is of a class without a label.
fn only_known_classes(train: &Path, wnids: &[String]) -> Result<()> {
    for entry in fs::read_dir(train).map_err(Error::io(train))? {
        let entry = entry.map_err(Error::io(train))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let hidden = name.starts_with('.');
        if !hidden && entry.path().is_dir() && wnids.binary_search(&name).is_err() {
            let why = format!("the class of this folder is not in {WNIDS}");
            return Err(Error::data(entry.path(), why));
        }
    }
    Ok(())
}

/// The names and sizes of the JPEG files of a folder, by name.
fn images(folder: &Path) -> Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let lower = name.to_ascii_lowercase();
        // other systems leave hidden files of the same ending beside the images
        let jpeg = lower.ends_with(".jpeg") || lower.ends_with(".jpg");
        if name.starts_with('.') || !jpeg {
            continue;
        }
        let path = entry.path();
        let meta = fs::metadata(&path).map_err(Error::io(&path))?;
        if !meta.is_file() {
            return Err(Error::data(path, "not a file"));
        }
        found.insert(name, meta.len());
    }
    Ok(found)
}

/// The training images of a class, and whether none is missing that its list of boxes names.
fn class_images(dir: &Path, wnid: &str) -> (BTreeMap<String, u64>, Result<()>) {
    let class = dir.join(TRAIN).join(wnid);
    let folder = class.join("images");
    if !folder.is_dir() {
        let why = format!("missing, but {WNIDS} names the class; half unpacked?");
        return (BTreeMap::new(), Err(Error::data(folder, why)));
    }
    match images(&folder) {
        Ok(found) if found.is_empty() => {
            let none = Error::data(folder, "no images; half unpacked?");
            (found, Err(none))
        }
        Ok(found) => {
            let whole = all_with_boxes(&class.join(format!("{wnid}_boxes.txt")), &found);
            (found, whole)
        }
        Err(e) => (BTreeMap::new(), Err(e)),
    }
}

/// That no image is missing which a list of boxes names, if there is one.
fn all_with_boxes(boxes: &Path, found: &BTreeMap<String, u64>) -> Result<()> {
    let text = match read_text(boxes) {
        Ok(text) => text,
        // the boxes themselves are not needed
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let name_of = |line: &Line| line.text.split('\t').next().unwrap_or("").to_string();
    let mut missing = lines(&text).filter(|line| !found.contains_key(&name_of(line)));
    let Some(line) = missing.next() else {
        return Ok(());
    };
    let (name, more) = (name_of(&line), and_more(missing.count()));
    let why = format!("images/{name} is missing{more}; half unpacked?");
    Err(line.error(boxes, why))
}

/// The validation images, in the order of their annotations; lines that fit no image are `problems`.
fn annotated(dir: &Path, wnids: &[String], problems: &mut Vec<Error>) -> Result<Vec<Item>> {
    let path = dir.join(ANNOTATIONS);
    let text = read_text(&path)?;
    let mut left = images(&dir.join(VAL))?;
    let (mut items, mut seen) = (Vec::new(), HashSet::new());
    let mut counts = vec![0usize; wnids.len()];
    for line in lines(&text) {
        let mut wrong = |why: String| problems.push(line.error(&path, why));
        let mut fields = line.text.split('\t');
        let (Some(name), Some(wnid)) = (fields.next(), fields.next()) else {
            wrong("expected an image, its class and its box, separated by tabs".into());
            continue;
        };
        let Ok(label) = wnids.binary_search_by(|w| w.as_str().cmp(wnid)) else {
            wrong(format!("class {wnid:?} of {name} is not in {WNIDS}"));
            continue;
        };
        if !seen.insert(name.to_string()) {
            wrong(format!("{name} a second time"));
            continue;
        }
        let Some(bytes) = left.remove(name) else {
            wrong(format!("{VAL}/{name} is missing; half unpacked?"));
            continue;
        };
        counts[label] += 1;
        items.push(Item {
            path: format!("{VAL}/{name}"),
            label: label as u8,
            bytes,
            train: false,
        });
    }
    if let Some(name) = left.keys().next() {
        let more = and_more(left.len() - 1);
        let why = format!("no annotation of {VAL}/{name}{more}");
        problems.push(Error::data(&path, why));
    }
    if let Some(class) = counts.iter().position(|&n| n == 0) {
        let why = format!("no image of class {} of {WNIDS}", wnids[class]);
        problems.push(Error::data(&path, why));
    }
    Ok(items)
}

fn and_more(n: usize) -> String {
    if n == 0 {
        String::new()
    } else {
        format!(" and {n} more")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use jpeg_encoder::{ColorType, Encoder};

    /// A JPEG of 64x64 pixels, red or gray as `value` tells, with a little structure.
    pub(in crate::data) fn jpeg(value: u8, color: ColorType) -> Vec<u8> {
        sized(value, color, 64, 64)
    }

    pub(in crate::data) fn sized(value: u8, color: ColorType, w: u16, h: u16) -> Vec<u8> {
        let channels = match color {
            ColorType::Luma => 1,
            ColorType::Rgb => 3,
            ColorType::Cmyk => 4,
            _ => panic!("not a color of these tests"),
        };
        let pixel = |i: usize| match i % channels {
            0 => value,
            1 => (i / channels % w as usize * 3) as u8,
            _ => 40,
        };
        let pixels: Vec<u8> = (0..w as usize * h as usize * channels).map(pixel).collect();
        let mut bytes = Vec::new();
        Encoder::new(&mut bytes, 95)
            .encode(&pixels, w, h, color)
            .unwrap();
        bytes
    }

    /// The WordNet ids of [`write_set`], as `wnids.txt` has them: not sorted.
    pub(in crate::data) const IDS: [&str; 3] = ["n03", "n01", "n02"];

    /// Three classes of `train` training and two validation images. The red (or gray) of image k of
    /// class nXX is 60 * (XX - 1) + 3 * k; image 1 of n02 is gray.
    pub(in crate::data) fn write_set(dir: &Path, train: usize) {
        let put = |path: PathBuf, bytes: &[u8]| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        put(dir.join(WNIDS), (IDS.join("\n") + "\n").as_bytes());
        let words = "n01\tgoldfish, Carassius auratus\nn0\tentity\nn02\tox\nn03\tox, beast\n";
        put(dir.join(WORDS), words.as_bytes());
        let mut annotations = String::new();
        for k in 0..train.max(2) {
            for wnid in IDS {
                let class = wnid[1..].parse::<usize>().unwrap() - 1;
                let value = (class * 60 + k * 3) as u8;
                let gray = wnid == "n02" && k == 1;
                let color = if gray {
                    ColorType::Luma
                } else {
                    ColorType::Rgb
                };
                let name = format!("{wnid}_{k}.JPEG");
                if k < train {
                    let path = dir.join(TRAIN).join(wnid).join("images").join(&name);
                    put(path, &jpeg(value, color));
                }
                if k < 2 {
                    let name = format!("val_{k}_{wnid}.JPEG");
                    put(dir.join(VAL).join(&name), &jpeg(value, color));
                    annotations += &format!("{name}\t{wnid}\t0\t0\t62\t62\n");
                }
            }
        }
        for wnid in IDS {
            let names = (0..train).map(|k| format!("{wnid}_{k}.JPEG\t0\t0\t62\t62\n"));
            let path = dir.join(TRAIN).join(wnid).join(format!("{wnid}_boxes.txt"));
            put(path, names.collect::<String>().as_bytes());
        }
        put(dir.join(ANNOTATIONS), annotations.as_bytes());
        // what other systems leave
        put(dir.join(TRAIN).join("n01/images/._n01_0.JPEG"), b"junk");
        put(dir.join(TRAIN).join("n01/images/Thumbs.db"), b"junk");
        put(dir.join(TRAIN).join(".DS_Store"), b"junk");
    }

    fn set() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write_set(dir.path(), 3);
        dir
    }

    #[test]
    fn classes_are_sorted_by_id_and_named_by_their_first_word() {
        let dir = set();
        let scan = Scan::of(dir.path()).unwrap();
        assert_eq!(scan.classes, ["goldfish", "ox", "ox"]);
        let shown: Vec<(&str, u8, bool)> = scan
            .items
            .iter()
            .map(|i| (i.path.as_str(), i.label, i.train))
            .collect();
        assert_eq!(shown.len(), 15);
        assert_eq!(shown[0], ("train/n01/images/n01_0.JPEG", 0, true));
        assert_eq!(shown[8], ("train/n03/images/n03_2.JPEG", 2, true));
        assert_eq!(shown[9], ("val/images/val_0_n03.JPEG", 2, false));
        assert_eq!(shown[14], ("val/images/val_1_n02.JPEG", 1, false));
    }

    #[test]
    fn the_fingerprint_tells_names_sizes_and_labels() {
        let dir = set();
        let print = || Scan::of(dir.path()).unwrap().fingerprint;
        let first = print();
        assert_eq!((first.len(), &first), (32, &print()));
        let image = dir.path().join("train/n01/images/n01_0.JPEG");
        let mut bytes = fs::read(&image).unwrap();
        bytes.push(0);
        fs::write(&image, &bytes).unwrap();
        assert_ne!(print(), first);
        bytes.pop();
        fs::write(&image, &bytes).unwrap();
        assert_eq!(print(), first);
        let annotations = dir.path().join(ANNOTATIONS);
        let text = fs::read_to_string(&annotations).unwrap();
        let swapped = text.replacen("n03\t", "n01\t", 1);
        fs::write(&annotations, swapped).unwrap();
        assert_ne!(print(), first);
    }

    #[test]
    fn a_wrong_folder_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let why = |d: &Path| folder(d).unwrap_err().to_string();
        assert!(why(&dir.path().join("nowhere")).contains("no such folder; expected the unpacked"));
        assert!(why(dir.path()).contains("holds no Tiny-ImageNet; expected"));
        fs::write(dir.path().join(ARCHIVE), "").unwrap();
        assert!(why(dir.path()).contains("holds tiny-imagenet-200.zip, but not unpacked"));
        assert!(why(&dir.path().join(ARCHIVE)).contains("not a folder"));

        let inner = dir.path().join(FOLDERS[1]);
        write_set(&inner, 1);
        assert_eq!(folder(dir.path()).unwrap(), inner);
        assert_eq!(folder(&inner).unwrap(), inner);
        fs::remove_file(inner.join(ANNOTATIONS)).unwrap();
        fs::remove_dir_all(inner.join(TRAIN)).unwrap();
        assert!(why(&inner).contains(": train, val/val_annotations.txt missing; expected"));
    }

    /// The error of a set after `spoil`: below its folder, the path, the byte, and why.
    fn error(spoil: impl Fn(&Path)) -> (String, Option<u64>, String) {
        let dir = set();
        spoil(dir.path());
        match Scan::of(dir.path()).map(drop).unwrap_err() {
            Error::Data { path, offset, why } => {
                let path = path.strip_prefix(dir.path()).unwrap();
                (path.display().to_string(), offset, why)
            }
            e => panic!("{e}"),
        }
    }

    fn expect(path: &str, offset: Option<u64>, why: &str, spoil: impl Fn(&Path)) {
        assert_eq!(error(spoil), (path.into(), offset, why.into()));
    }

    fn edit(path: PathBuf, change: impl Fn(String) -> String) {
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, change(text)).unwrap();
    }

    #[test]
    fn bad_lists_of_classes_name_the_line_and_the_byte() {
        let write = |text: &'static str| move |d: &Path| fs::write(d.join(WNIDS), text).unwrap();
        let none = "0 classes; expected 1 to 256, one a line";
        expect(WNIDS, None, none, write("\n \n"));
        let twice = "line 3: class n01 a second time";
        expect(WNIDS, Some(5), twice, write("n01\n\nn01\n"));
        let path = "line 2: \"../n02\" is no WordNet id as n01443537 is";
        expect(WNIDS, Some(4), path, write("n01\n../n02\n"));
        let many: String = (0..257).map(|i| format!("n{i:05}\n")).collect();
        let why = "257 classes; expected 1 to 256, one a line";
        expect(WNIDS, None, why, |d| {
            fs::write(d.join(WNIDS), &many).unwrap()
        });

        let why = "class n02 of wnids.txt is missing";
        expect(WORDS, None, why, |d| {
            edit(d.join(WORDS), |t| t.replace("n02\t", "n04\t"))
        });
        let why = "line 3: class n02 has no name";
        expect(WORDS, Some(42), why, |d| {
            edit(d.join(WORDS), |t| t.replace("n02\tox", "n02\t "))
        });
    }

    #[test]
    fn a_half_unpacked_set_names_what_is_missing() {
        let why = "the class of this folder is not in wnids.txt";
        expect("train/n09", None, why, |d| {
            fs::create_dir(d.join("train/n09")).unwrap()
        });
        let why = "missing, but wnids.txt names the class; half unpacked?";
        expect("train/n02/images", None, why, |d| {
            fs::remove_dir_all(d.join("train/n02/images")).unwrap()
        });
        let why = "no images; half unpacked?";
        expect("train/n02/images", None, why, |d| {
            fs::remove_dir_all(d.join("train/n02/images")).unwrap();
            fs::create_dir(d.join("train/n02/images")).unwrap();
        });
        let why = "line 2: images/n02_1.JPEG is missing and 1 more; half unpacked?";
        expect("train/n02/n02_boxes.txt", Some(21), why, |d| {
            fs::remove_file(d.join("train/n02/images/n02_1.JPEG")).unwrap();
            fs::remove_file(d.join("train/n02/images/n02_2.JPEG")).unwrap();
        });
        // all of it is told to who asks for all
        let dir = set();
        fs::remove_file(dir.path().join("train/n01/images/n01_1.JPEG")).unwrap();
        fs::remove_dir_all(dir.path().join("train/n02/images")).unwrap();
        fs::remove_file(dir.path().join("val/images/val_1_n03.JPEG")).unwrap();
        let (scan, problems) = Scan::with_problems(dir.path()).unwrap();
        assert_eq!((scan.items.len(), problems.len()), (2 + 3 + 5, 3));

        // without the list of boxes nothing tells
        let dir = set();
        fs::remove_file(dir.path().join("train/n02/n02_boxes.txt")).unwrap();
        fs::remove_file(dir.path().join("train/n02/images/n02_1.JPEG")).unwrap();
        assert_eq!(Scan::of(dir.path()).unwrap().items.len(), 14);
        let why = "not a file";
        expect("train/n02/images/x.jpg", None, why, |d| {
            fs::create_dir(d.join("train/n02/images/x.jpg")).unwrap()
        });
    }

    #[test]
    fn bad_annotations_name_the_line_and_the_byte() {
        let at = |why: &str, offset, from: &'static str, to: &'static str| {
            expect(ANNOTATIONS, offset, why, |d| {
                edit(d.join(ANNOTATIONS), |t| t.replacen(from, to, 1))
            });
        };
        let why = "line 2: class \"n07\" of val_0_n01.JPEG is not in wnids.txt";
        at(why, Some(29), "n01\t", "n07\t");
        let why = "line 1: val/images/val_5_n03.JPEG is missing; half unpacked?";
        at(why, Some(0), "val_0_n03", "val_5_n03");
        let why = "line 2: val_0_n03.JPEG a second time";
        at(why, Some(29), "val_0_n01", "val_0_n03");
        let why = "line 1: expected an image, its class and its box, separated by tabs";
        at(why, Some(0), "\tn03\t0\t0\t62\t62", " n03");
        let line = "val_0_n02.JPEG\tn02\t0\t0\t62\t62\n";
        let why = "no annotation of val/images/val_0_n02.JPEG";
        at(why, None, line, "");
        expect(
            ANNOTATIONS,
            None,
            "no annotation of val/images/val_0_n01.JPEG and 5 more",
            |d| fs::write(d.join(ANNOTATIONS), "").unwrap(),
        );
        expect(
            ANNOTATIONS,
            None,
            "no image of class n02 of wnids.txt",
            |d| edit(d.join(ANNOTATIONS), |t| t.replace("\tn02\t", "\tn01\t")),
        );
    }
}
