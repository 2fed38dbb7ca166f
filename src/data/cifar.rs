//! CIFAR-10, binary version (Krizhevsky 2009): six files of 10,000 records, each a label byte and
//! 3,072 pixel bytes (red, green, blue planes of 32x32).

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::locate::Unpacked;
use super::{Dataset, Splits};
use crate::error::{Error, Result};

/// The files: five of training images, then the test images.
pub const CIFAR10_FILES: [&str; 6] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
    "test_batch.bin",
];
/// Records in each file.
pub const RECORDS_PER_FILE: usize = 10_000;
/// Bytes of a record: one label and the pixels.
pub const RECORD_BYTES: usize = 1 + PIXELS;
/// How many of the 50,000 are trained on; the rest are the validation images, as in CS231n.
pub const TRAIN_SAMPLES: usize = 49_000;

/// The official archive.
pub(super) const ARCHIVE: &str = "cifar-10-binary.tar.gz";
/// The folder inside of it.
pub(super) const FOLDER: &str = "cifar-10-batches-bin";

const SHAPE: [usize; 3] = [3, 32, 32];
const PIXELS: usize = 3 * 32 * 32;
const NAMES_FILE: &str = "batches.meta.txt";
pub(super) const CLASSES: [&str; 10] = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
];

/// CIFAR-10 from `dir`, or from the folder `cifar-10-batches-bin` in it: 49,000 training, 1,000
/// validation and 10,000 test images. A file that is missing, too short, too long or has a label
/// over 9 is an [`Error::Data`] that names it and the byte.
pub fn load_cifar10(dir: &Path) -> Result<Splits> {
    let dir = folder(dir)?;
    let (all, test) = read(&dir, RECORDS_PER_FILE)?;
    Ok(Splits {
        train: all.range(0..TRAIN_SAMPLES)?,
        val: all.range(TRAIN_SAMPLES..all.len())?,
        test,
        source: format!("CIFAR-10 from {}", dir.display()),
    })
}

/// `dir` or its subfolder, whichever holds the six files; an error says what is missing.
pub(super) fn folder(dir: &Path) -> Result<PathBuf> {
    let unpacked = Unpacked {
        archive: ARCHIVE,
        parts: &CIFAR10_FILES,
        inner: &[FOLDER],
        holds_any,
    };
    unpacked.folder(dir, || {
        let python = dir.join("data_batch_1").exists() || dir.join("cifar-10-batches-py").exists();
        match python {
            true => "holds the Python version of CIFAR-10, not the binary one".into(),
            false => "holds no CIFAR-10".into(),
        }
    })
}

/// Whether `dir` holds at least one of the six files.
pub(super) fn holds_any(dir: &Path) -> bool {
    CIFAR10_FILES.iter().any(|f| dir.join(f).exists())
}

/// The training and the test images of files of `records` records each.
fn read(dir: &Path, records: usize) -> Result<(Dataset, Dataset)> {
    let paths = CIFAR10_FILES.map(|f| dir.join(f));
    // all sizes before any memory is asked for
    paths.iter().try_for_each(|p| check_size(p, records))?;
    let classes = class_names(dir)?;
    let classes: Vec<&str> = classes.iter().map(String::as_str).collect();
    let dataset = |name: &str, files: &[PathBuf]| {
        let mut labels = Vec::with_capacity(files.len() * records);
        let mut images = Vec::with_capacity(files.len() * records * PIXELS);
        for path in files {
            read_file(path, records, &mut labels, &mut images)?;
        }
        Dataset::new(name, images, labels, SHAPE, &classes)
    };
    Ok((
        dataset("CIFAR-10 train", &paths[..5])?,
        dataset("CIFAR-10 test", &paths[5..])?,
    ))
}

/// That a file is as long as so many records.
pub(super) fn check_size(path: &Path, records: usize) -> Result<()> {
    let meta = fs::metadata(path).map_err(Error::io(path))?;
    if !meta.is_file() {
        return Err(Error::data(path, "not a file"));
    }
    let (size, record) = (meta.len(), RECORD_BYTES as u64);
    let expected = records as u64 * record;
    let should = format!("expected {records} records of {record} bytes, {expected} in all");
    if size > expected {
        let why = format!("oversized: {size} bytes; {should}");
        return Err(Error::data_at(path, expected, why));
    }
    if size < expected {
        let k = size / record;
        let why = format!("truncated at record {k}: {size} bytes; {should}");
        return Err(Error::data_at(path, size, why));
    }
    Ok(())
}

/// Append one file's labels and pixels.
fn read_file(
    path: &Path,
    records: usize,
    labels: &mut Vec<u8>,
    images: &mut Vec<u8>,
) -> Result<()> {
    let mut bytes = vec![0; records * RECORD_BYTES];
    File::open(path)
        .and_then(|mut f| f.read_exact(&mut bytes))
        .map_err(Error::io(path))?;
    for (k, record) in bytes.chunks_exact(RECORD_BYTES).enumerate() {
        let label = record[0];
        if label as usize >= CLASSES.len() {
            let why = format!("record {k} has label {label}; expected 0 to 9");
            return Err(Error::data_at(path, (k * RECORD_BYTES) as u64, why));
        }
        labels.push(label);
        images.extend_from_slice(&record[1..]);
    }
    Ok(())
}

/// The ten names of `batches.meta.txt` in `dir`; the official ones where there is no such file.
pub(super) fn class_names(dir: &Path) -> Result<Vec<String>> {
    let path = dir.join(NAMES_FILE);
    if !path.exists() {
        return Ok(CLASSES.map(String::from).to_vec());
    }
    let mut text = Vec::new();
    // far more than ten names need; whatever else lies there is not read whole
    File::open(&path)
        .and_then(|f| f.take(4096).read_to_end(&mut text))
        .map_err(Error::io(&path))?;
    let names: Vec<String> = String::from_utf8_lossy(&text)
        .lines()
        .map(|l| l.trim().to_string())
        .filter(|l| !l.is_empty())
        .collect();
    if names.len() != CLASSES.len() {
        let why = format!("{} class names; expected ten, one a line", names.len());
        return Err(Error::data(path, why));
    }
    Ok(names)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Six files of `records` records; the label of record k of file f is (f + k) % 10 and its
    /// pixels are all f * 16 + k.
    pub(crate) fn write_files(dir: &Path, records: usize) {
        for (f, name) in CIFAR10_FILES.iter().enumerate() {
            let bytes: Vec<u8> = (0..records)
                .flat_map(|k| {
                    let mut record = vec![(f * 16 + k) as u8; RECORD_BYTES];
                    record[0] = ((f + k) % 10) as u8;
                    record
                })
                .collect();
            fs::write(dir.join(name), bytes).unwrap();
        }
    }

    fn four_records() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write_files(dir.path(), 4);
        dir
    }

    /// The offset and text of an [`Error::Data`] whose path ends in `file`.
    fn data_error(dir: &Path, file: &str) -> (Option<u64>, String) {
        match read(dir, 4).unwrap_err() {
            Error::Data { path, offset, why } if path.ends_with(file) => (offset, why),
            e => panic!("{e}"),
        }
    }

    #[test]
    fn reads_records_in_order() {
        let dir = four_records();
        let (train, test) = read(dir.path(), 4).unwrap();
        assert_eq!(
            (train.len(), test.len(), train.shape()),
            (20, 4, [3, 32, 32])
        );
        // file 3, record 2
        assert_eq!(train.label(14), 5);
        assert!(train.image(14).iter().all(|&p| p == 50));
        assert_eq!(test.label(3), 8);
        assert_eq!(train.classes()[9], "truck");
    }

    #[test]
    fn a_wrong_size_names_the_record_and_the_byte() {
        let dir = four_records();
        let path = dir.path().join("data_batch_3.bin");
        let good = fs::read(&path).unwrap();
        let should = "expected 4 records of 3073 bytes, 12292 in all";

        fs::write(&path, &good[..2 * RECORD_BYTES + 100]).unwrap();
        let why = format!("truncated at record 2: 6246 bytes; {should}");
        assert_eq!(
            data_error(dir.path(), "data_batch_3.bin"),
            (Some(6246), why)
        );

        fs::write(&path, &good[..RECORD_BYTES]).unwrap();
        let why = format!("truncated at record 1: 3073 bytes; {should}");
        assert_eq!(
            data_error(dir.path(), "data_batch_3.bin"),
            (Some(3073), why)
        );

        fs::write(&path, [&good[..], &[0]].concat()).unwrap();
        let why = format!("oversized: 12293 bytes; {should}");
        assert_eq!(
            data_error(dir.path(), "data_batch_3.bin"),
            (Some(12292), why)
        );

        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(data_error(dir.path(), "data_batch_3.bin").1, "not a file");
    }

    #[test]
    fn a_label_over_nine_names_the_record_and_the_byte() {
        let dir = four_records();
        let path = dir.path().join("test_batch.bin");
        let mut bytes = fs::read(&path).unwrap();
        bytes[3 * RECORD_BYTES] = 10;
        fs::write(&path, bytes).unwrap();
        let why = "record 3 has label 10; expected 0 to 9".to_string();
        assert_eq!(data_error(dir.path(), "test_batch.bin"), (Some(9219), why));
    }

    #[test]
    fn class_names_are_optional_but_ten() {
        let dir = four_records();
        let path = dir.path().join(NAMES_FILE);
        fs::write(&path, "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n").unwrap();
        assert_eq!(read(dir.path(), 4).unwrap().0.classes()[9], "j");
        fs::write(&path, "a\nb\n").unwrap();
        let why = "2 class names; expected ten, one a line".to_string();
        assert_eq!(data_error(dir.path(), NAMES_FILE), (None, why));
    }

    #[test]
    fn a_wrong_folder_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let why = |d: &Path| folder(d).unwrap_err().to_string();
        assert!(why(&dir.path().join("nowhere")).contains("no such folder; expected"));
        assert!(why(dir.path()).contains("holds no CIFAR-10; expected the unpacked"));
        fs::create_dir(dir.path().join("cifar-10-batches-py")).unwrap();
        assert!(why(dir.path()).contains("the Python version"));

        let inner = dir.path().join(FOLDER);
        fs::create_dir(&inner).unwrap();
        write_files(&inner, 1);
        assert_eq!(folder(dir.path()).unwrap(), inner);
        assert_eq!(folder(&inner).unwrap(), inner);
        assert!(why(&inner.join("test_batch.bin")).contains("not a folder"));

        fs::remove_file(inner.join("data_batch_2.bin")).unwrap();
        fs::remove_file(inner.join("test_batch.bin")).unwrap();
        assert!(why(dir.path()).contains(": data_batch_2.bin, test_batch.bin missing; expected"));
    }

    #[test]
    fn the_public_reader_insists_on_full_files() {
        let dir = four_records();
        let e = load_cifar10(dir.path()).unwrap_err().to_string();
        assert!(
            e.contains("truncated at record 4") && e.contains("10000 records"),
            "{e}"
        );
    }
}
