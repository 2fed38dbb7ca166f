//! Whether a data set on this machine is what was published: every file read, every sum that is known
//! compared, every image decoded, every label counted.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use md5::{Digest, Md5};

use super::published::PublishedSet;
use super::tiny_imagenet::{Scan, for_each_decoded, hex};
use super::{cifar, idx, locate};
use crate::error::{Error, Result};

/// Problems that are shown; the others are counted.
const SHOWN: usize = 20;
/// Classes whose counts are shown one by one where they differ.
const LISTED: usize = 10;
/// What the two parts are called.
const PARTS: [&str; 2] = ["training", "test"];

/// What [`verify`] found. Displays as lines for people.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The data set.
    pub set: PublishedSet,
    /// Its folder.
    pub dir: PathBuf,
    /// What was looked at, and what it is.
    pub found: Vec<String>,
    /// What is not as it should be.
    pub problems: Vec<String>,
}

impl Verified {
    /// Whether all is as it was published.
    pub fn passed(&self) -> bool {
        self.problems.is_empty()
    }

    fn new(set: PublishedSet, dir: PathBuf) -> Self {
        Verified {
            set,
            dir,
            found: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn wrong(&mut self, what: impl ToString) {
        self.problems.push(what.to_string());
    }

    /// Compare a file's contents, unpacked, with the sum that is known of the file `name`.
    fn compare(&mut self, name: &str, path: &Path, contents: &[&[u8]]) {
        let mut hash = Md5::new();
        contents.iter().for_each(|part| hash.update(part));
        let sum = hex(&hash.finalize());
        let mut known = self.set.unpacked().iter().filter(|(n, _)| *n == name);
        let bytes: usize = contents.iter().map(|part| part.len()).sum();
        match known.next() {
            Some((_, known)) if *known != sum => {
                let why = format!("the MD5 sum of its contents is {sum}; expected {known}");
                self.wrong(Error::data(path, why));
            }
            Some(_) => self
                .found
                .push(format!("{name}: {bytes} bytes, MD5 sum as known")),
            None => self.found.push(format!("{name}: {bytes} bytes")),
        }
    }

    /// Add labels to `counts`. The first label is byte `first` of the file, and they are so many bytes
    /// apart.
    fn count(
        &mut self,
        path: &Path,
        labels: impl Iterator<Item = u8>,
        (first, apart): (u64, u64),
        counts: &mut [usize],
    ) {
        let (mut bad, mut worst) = (0usize, None);
        for (i, label) in labels.enumerate() {
            match counts.get_mut(label as usize) {
                Some(n) => *n += 1,
                None => {
                    bad += 1;
                    worst.get_or_insert((i, label));
                }
            }
        }
        if let Some((i, label)) = worst {
            let most = counts.len() - 1;
            let why = format!("{bad} labels over {most}, the first of image {i}: {label}");
            self.wrong(Error::data_at(path, first + i as u64 * apart, why));
        }
    }

    /// Compare the images of each class with what was published of part 0 or 1, of which `broken` are.
    fn balance(&mut self, part: usize, classes: &[String], counts: &[usize], broken: usize) {
        let name = PARTS[part];
        let n: usize = counts.iter().sum();
        let (least, most) = (counts.iter().min(), counts.iter().max());
        let each = match (least, most) {
            (Some(a), Some(b)) if a == b => format!("{a} of each"),
            (Some(a), Some(b)) if classes.len() > LISTED => format!("{a} to {b} of each"),
            _ => {
                let each = classes.iter().zip(counts);
                let each: Vec<String> = each.map(|(c, n)| format!("{n} {c}")).collect();
                each.join(", ")
            }
        };
        let broken = match broken {
            0 => String::new(),
            n => format!("; {n} broken"),
        };
        let classes_of = classes.len();
        self.found.push(format!(
            "{n} {name} images of {classes_of} classes: {each}{broken}"
        ));
        for (class, (name_of, &n)) in classes.iter().zip(counts).enumerate() {
            let published = self.set.images(class)[part];
            if n != published {
                let why = format!("{n} {name} images of class {name_of:?}; expected {published}");
                self.wrong(why);
            }
        }
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.set, self.dir.display())?;
        self.found.iter().try_for_each(|l| write!(f, "\n  {l}"))?;
        let mut shown = self.problems.iter().take(SHOWN);
        shown.try_for_each(|p| write!(f, "\n  WRONG: {p}"))?;
        match self.problems.len() {
            0 => write!(f, "\n  all is well"),
            1 => write!(f, "\n  1 problem"),
            n if n > SHOWN => write!(f, "\n  and {} more: {n} problems", n - SHOWN),
            n => write!(f, "\n  {n} problems"),
        }
    }
}

/// Check a data set in `dir`, or where [`find_cifar10`](super::find_cifar10) and its like find it: that
/// every file is there and has the size and, as far as one is known, the MD5 sum of the published one;
/// that every image decodes; how many images each class has. Of Tiny-ImageNet any classes do, in the
/// same form, no sums of its files are known, and its test images, which have no labels, are not
/// looked at.
///
/// What is wrong with the set is in the answer. That nothing of it is there is an [`Error::Data`].
pub fn verify(set: PublishedSet, dir: Option<&Path>) -> Result<Verified> {
    let Some(dir) = locate::find_any_of_set(set, dir)? else {
        let why = format!(
            "in none of the usual places: `cotangent data fetch {set}` gets it, --dir names its folder"
        );
        return Err(Error::data(set.name(), why));
    };
    let mut report = Verified::new(set, dir);
    match set {
        PublishedSet::Cifar10 => cifar10(&mut report, cifar::RECORDS_PER_FILE),
        PublishedSet::Mnist => idx_files(&mut report, &idx::DIGITS),
        PublishedSet::FashionMnist => idx_files(&mut report, &idx::CLOTHES),
        PublishedSet::TinyImageNet => {
            // what stops the check is the last of the problems
            if let Err(e) = tiny_imagenet(&mut report) {
                report.wrong(e);
            }
        }
    }
    Ok(report)
}

fn cifar10(report: &mut Verified, records: usize) {
    let dir = report.dir.clone();
    let classes = cifar::class_names(&dir).unwrap_or_else(|e| {
        report.wrong(e);
        cifar::CLASSES.map(String::from).to_vec()
    });
    let mut counts = [[0; 10]; 2];
    for name in cifar::CIFAR10_FILES {
        let path = dir.join(name);
        let read = || fs::read(&path).map_err(Error::io(&path));
        match cifar::check_size(&path, records).and_then(|()| read()) {
            Ok(bytes) => {
                report.compare(name, &path, &[&bytes]);
                let part = (name == cifar::CIFAR10_FILES[5]) as usize;
                let apart = cifar::RECORD_BYTES;
                let labels = bytes.iter().step_by(apart).copied();
                report.count(&path, labels, (0, apart as u64), &mut counts[part]);
            }
            Err(e) => report.wrong(e),
        }
    }
    for (part, counts) in counts.iter().enumerate() {
        report.balance(part, &classes, counts, 0);
    }
}

fn idx_files(report: &mut Verified, classes: &[&str; 10]) {
    let classes = classes.map(String::from);
    for (part, names) in idx::FILES.chunks_exact(2).enumerate() {
        let images = idx_file::<3>(report, names[0]);
        let Some((path, [n], labels)) = idx_file::<1>(report, names[1]) else {
            continue;
        };
        if let Some((images, [there, ..], _)) = images
            && there != n
        {
            let why = format!("{n} labels for the {there} images of {}", images.display());
            report.wrong(Error::data(&path, why));
        }
        let mut counts = [0; 10];
        let first = idx::header_bytes(1);
        report.count(&path, labels.into_iter(), (first, 1), &mut counts);
        report.balance(part, &classes, &counts, 0);
    }
}

/// A file's path, sizes and bytes, its sum compared; none where it cannot be read, which is reported.
fn idx_file<const RANK: usize>(
    report: &mut Verified,
    name: &str,
) -> Option<(PathBuf, [usize; RANK], Vec<u8>)> {
    let read = idx::find(&report.dir, name)
        .and_then(|path| idx::read_idx::<RANK>(&path).map(|(dims, bytes)| (path, dims, bytes)));
    match read {
        Ok((path, dims, bytes)) => {
            report.compare(name, &path, &[&idx::header(&dims), &bytes]);
            Some((path, dims, bytes))
        }
        Err(e) => {
            report.wrong(e);
            None
        }
    }
}

fn tiny_imagenet(report: &mut Verified) -> Result<()> {
    let (scan, problems) = Scan::with_problems(&report.dir)?;
    problems.into_iter().for_each(|e| report.wrong(e));
    let mut counts = [0, 1].map(|_| vec![0; scan.classes.len()]);
    let mut broken = [0, 0];
    for_each_decoded(&scan, 64, |item, image| {
        let part = !item.train as usize;
        counts[part][item.label as usize] += 1;
        if let Err(why) = image {
            broken[part] += 1;
            report.wrong(format!("{} {why}", item.path));
        }
        Ok::<(), Error>(())
    })?;
    for part in [0, 1] {
        report.balance(part, &scan.classes, &counts[part], broken[part]);
    }
    let n = scan.items.len();
    let text = format!("all {n} images were decoded; no sums of these files are known");
    report.found.push(text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tiny_imagenet::write_set;
    use super::*;

    /// The problems, and the last line, that end with `ends`.
    fn problems(report: &Verified, ends: &[&str]) {
        assert_eq!(report.problems.len(), ends.len(), "{report}");
        for (problem, end) in report.problems.iter().zip(ends) {
            assert!(
                problem.ends_with(end),
                "{problem}\ndoes not end with\n{end}"
            );
        }
        assert_eq!(report.passed(), ends.is_empty());
    }

    #[test]
    fn tiny_imagenet_is_decoded_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        write_set(dir.path(), 2);
        let check = || verify(PublishedSet::TinyImageNet, Some(dir.path())).unwrap();
        // three classes of 2 and 2 images, where 500 and 50 were published
        let few = |part, n, of| format!("2 {part} images of class \"{n}\"; expected {of}");
        let few: Vec<String> = [("training", 500), ("test", 50)]
            .into_iter()
            .flat_map(|(part, of)| ["goldfish", "ox", "ox"].map(|n| few(part, n, of)))
            .collect();
        let all = check();
        let few: Vec<&str> = few.iter().map(String::as_str).collect();
        problems(&all, &few);
        assert_eq!(
            all.found,
            [
                "6 training images of 3 classes: 2 of each",
                "6 test images of 3 classes: 2 of each",
                "all 12 images were decoded; no sums of these files are known",
            ]
        );

        // all that is wrong is told, not the first of it alone
        let at = |p: &str| dir.path().join(p);
        fs::write(at("train/n03/images/n03_1.JPEG"), "x").unwrap();
        fs::write(at("val/images/val_0_n01.JPEG"), "x").unwrap();
        fs::remove_file(at("train/n01/images/n01_0.JPEG")).unwrap();
        let bad = check();
        let found = |line: usize| bad.found[line].as_str();
        assert_eq!(
            found(0),
            "5 training images of 3 classes: 1 goldfish, 2 ox, 2 ox; 1 broken"
        );
        assert_eq!(found(1), "6 test images of 3 classes: 2 of each; 1 broken");
        let missing = "images/n01_0.JPEG is missing; half unpacked? (at byte 0)";
        assert!(bad.problems[0].ends_with(missing), "{bad}");
        for (i, image) in ["train/n03/images/n03_1", "val/images/val_0_n01"]
            .iter()
            .enumerate()
        {
            let why = format!("{image}.JPEG does not decode: ");
            assert!(bad.problems[1 + i].starts_with(&why), "{bad}");
        }
        assert_eq!(bad.problems.len(), 3 + few.len());

        fs::write(at("wnids.txt"), "").unwrap();
        problems(&check(), &["0 classes; expected 1 to 256, one a line"]);
    }

    #[test]
    fn cifar10_is_checked_file_by_file() {
        let dir = tempfile::tempdir().unwrap();
        cifar::tests::write_files(dir.path(), 10);
        let check = || {
            let mut report = Verified::new(PublishedSet::Cifar10, dir.path().to_path_buf());
            cifar10(&mut report, 10);
            report
        };
        let all = check();
        // six sums; labels are balanced, but few
        assert_eq!(all.problems.len(), 6 + 20, "{all}");
        let why = "; expected 803d5f7f4d78ea53de84dbe85f74fb6d";
        assert!(all.problems[5].ends_with(why), "{all}");
        assert_eq!(
            all.found,
            [
                "50 training images of 10 classes: 5 of each",
                "10 test images of 10 classes: 1 of each",
            ]
        );
        assert!(all.to_string().ends_with("\n  and 6 more: 26 problems"));

        let at = |p: &str| dir.path().join(p);
        let mut bytes = fs::read(at("data_batch_2.bin")).unwrap();
        for k in [3, 4] {
            bytes[k * cifar::RECORD_BYTES] = 77;
        }
        fs::write(at("data_batch_2.bin"), bytes).unwrap();
        fs::write(at("data_batch_4.bin"), "x").unwrap();
        fs::remove_file(at("test_batch.bin")).unwrap();
        fs::write(at("batches.meta.txt"), "one").unwrap();
        let bad = check();
        let named = |text: &str| bad.problems.iter().any(|p| p.contains(text));
        assert!(named(
            "data_batch_2.bin: 2 labels over 9, the first of image 3: 77 (at byte 9219)"
        ));
        assert!(named("data_batch_4.bin: truncated at record 0"), "{bad}");
        assert!(named("test_batch.bin: "), "{bad}");
        assert!(named("batches.meta.txt: 1 class names"), "{bad}");
        assert!(bad.found[1].starts_with("0 test images"), "{bad}");

        let all = verify(PublishedSet::Cifar10, Some(dir.path())).unwrap();
        assert!(!all.passed());
        let empty = tempfile::tempdir().unwrap();
        let e = verify(PublishedSet::Cifar10, Some(empty.path())).unwrap_err();
        assert!(e.to_string().contains("holds no CIFAR-10"), "{e}");
    }

    #[test]
    fn the_files_of_mnist_are_compared_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("mnist");
        fs::create_dir(&inner).unwrap();
        idx::tests::write_set(&inner);
        let all = verify(PublishedSet::Mnist, Some(dir.path())).unwrap();
        assert_eq!(all.dir, inner);
        // four sums, and no class has its images
        assert_eq!(all.problems.len(), 4 + 20, "{all}");
        // the sum is of the contents, whether they are packed or not
        let content = idx::tests::idx(&[24, 2, 3], &(0..144).collect::<Vec<u8>>());
        let sum = hex(&Md5::digest(content));
        let why = format!("{sum}; expected 6bbc9ace898e44ae57da46a324031adb");
        assert!(all.problems[0].ends_with(&why), "{all}");
        assert_eq!(
            all.found[0],
            "24 training images of 10 classes: 3 0, 3 1, 3 2, 3 3, 2 4, 2 5, 2 6, 2 7, 2 8, 2 9"
        );

        let labels = inner.join("t10k-labels-idx1-ubyte.gz");
        fs::write(&labels, idx::tests::idx(&[5], &[0, 1, 2, 200, 4])).unwrap();
        fs::remove_file(inner.join("train-labels-idx1-ubyte.gz")).unwrap();
        let bad = verify(PublishedSet::Mnist, Some(&inner)).unwrap();
        let named = |text: &str| bad.problems.iter().any(|p| p.contains(text));
        assert!(named("neither train-labels-idx1-ubyte nor"), "{bad}");
        assert!(
            named("t10k-labels-idx1-ubyte.gz: 5 labels for the 6 images"),
            "{bad}"
        );
        assert!(
            named("1 labels over 9, the first of image 3: 200 (at byte 11)"),
            "{bad}"
        );
    }

    #[test]
    fn contents_of_the_known_sum_are_well() {
        let mut report = Verified::new(PublishedSet::Mnist, "here".into());
        let path = Path::new("it");
        report.compare("it", path, &[b"ab", b"c"]);
        report.balance(1, &["a".into()], &[980], 0);
        problems(&report, &[]);
        assert_eq!(
            report.to_string(),
            "mnist in here\n  it: 3 bytes\n  980 test images of 1 classes: 980 of each\n  all is well"
        );
        report.compare(idx::FILES[0], path, &[b"ab", b"c"]);
        let why = "it: the MD5 sum of its contents is 900150983cd24fb0d6963f7d28e17f72; \
            expected 6bbc9ace898e44ae57da46a324031adb";
        problems(&report, &[why]);
        assert!(report.to_string().ends_with("\n  1 problem"));
    }
}
