//! The idx format of MNIST (LeCun) and Fashion-MNIST (Xiao 2017), plain or gzipped: two zero
//! bytes, a type byte (8: u8), the rank, each axis's size as a big-endian u32, then the bytes.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::{Dataset, Splits};
use crate::error::{Error, Result};

pub(super) const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
pub(super) const CLOTHES: [&str; 10] = [
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
];
/// Deflate cannot expand further than this (a run of 258 bytes in two bits).
const MOST_EXPANSION: u64 = 1032;
/// One validation image in so many: 5,000 of the 60,000.
const VALIDATION_SHARE: usize = 12;

/// The folder of MNIST's files in the usual places.
pub(super) const MNIST_FOLDER: &str = "mnist";
/// The folder of Fashion-MNIST's.
pub(super) const FASHION_FOLDER: &str = "fashion-mnist";

/// MNIST from the four idx files in `dir`, or in the folder `mnist` in it, with or without `.gz`:
/// 55,000 training, 5,000 validation (the last ones) and 10,000 test images of 1x28x28. An
/// [`Error::Data`] names the file to blame.
pub fn load_mnist(dir: &Path) -> Result<Splits> {
    load(&mnist_folder(dir)?, "MNIST", &DIGITS)
}

/// Fashion-MNIST, from `dir` or from the folder `fashion-mnist` in it; as [`load_mnist`], with the
/// names of its classes.
pub fn load_fashion_mnist(dir: &Path) -> Result<Splits> {
    load(&fashion_folder(dir)?, "Fashion-MNIST", &CLOTHES)
}

fn load(dir: &Path, name: &str, classes: &[&str]) -> Result<Splits> {
    let all = read_pair(dir, "train", &format!("{name} train"), classes)?;
    let test = read_pair(dir, "t10k", &format!("{name} test"), classes)?;
    if test.shape() != all.shape() {
        let (got, expected) = (test.shape(), all.shape());
        let why = format!("test images are {got:?} but training images {expected:?}");
        return Err(Error::data(dir, why));
    }
    let train = all.len() - all.len() / VALIDATION_SHARE;
    Ok(Splits {
        train: all.range(0..train)?,
        val: all.range(train..all.len())?,
        test,
        source: format!("{name} from {}", dir.display()),
    })
}

/// The images and labels of one part (`train` or `t10k`).
fn read_pair(dir: &Path, part: &str, name: &str, classes: &[&str]) -> Result<Dataset> {
    let path = find(dir, &format!("{part}-images-idx3-ubyte"))?;
    let label_path = find(dir, &format!("{part}-labels-idx1-ubyte"))?;
    let ([n, h, w], images) = read_idx::<3>(&path)?;
    let ([count], labels) = read_idx::<1>(&label_path)?;
    if count != n {
        let why = format!("{count} labels for the {n} images of {}", path.display());
        return Err(Error::data(label_path, why));
    }
    if let Some(i) = labels.iter().position(|&l| l as usize >= classes.len()) {
        let why = format!("label {} of image {i}; expected 0 to 9", labels[i]);
        return Err(Error::data_at(label_path, header_bytes(1) + i as u64, why));
    }
    Dataset::new(name, images, labels, [1, h, w], classes)
}

/// The names of the four files, without `.gz`.
pub(super) const FILES: [&str; 4] = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
];

/// `dir` or its folder `mnist`, whichever holds the four files; an error names one that is missing.
pub(super) fn mnist_folder(dir: &Path) -> Result<PathBuf> {
    folder(dir, MNIST_FOLDER)
}

/// `dir` or its folder `fashion-mnist`, whichever holds the four files; an error names one that is
/// missing.
pub(super) fn fashion_folder(dir: &Path) -> Result<PathBuf> {
    folder(dir, FASHION_FOLDER)
}

fn folder(dir: &Path, inner: &str) -> Result<PathBuf> {
    let inner = dir.join(inner);
    let dir = match !holds_any(dir) && holds_any(&inner) {
        true => inner,
        false => dir.to_path_buf(),
    };
    FILES.iter().try_for_each(|f| find(&dir, f).map(drop))?;
    Ok(dir)
}

/// Whether `dir` holds at least one of the four files.
pub(super) fn holds_any(dir: &Path) -> bool {
    FILES.iter().any(|f| find(dir, f).is_ok())
}

/// `dir/name` or `dir/name.gz`.
pub(super) fn find(dir: &Path, name: &str) -> Result<PathBuf> {
    [name.to_string(), format!("{name}.gz")]
        .into_iter()
        .map(|f| dir.join(f))
        .find(|p| p.exists())
        .ok_or_else(|| Error::data(dir, format!("neither {name} nor {name}.gz is there")))
}

pub(super) fn header_bytes(rank: usize) -> u64 {
    4 + 4 * rank as u64
}

/// What stands before the bytes of an array of such sizes, each of which fits a u32.
pub(super) fn header(dims: &[usize]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dims.len() as u8];
    dims.iter()
        .for_each(|&d| bytes.extend((d as u32).to_be_bytes()));
    bytes
}

/// The axes' sizes and the bytes of an idx file of u8 with `RANK` axes; gzip is known by its
/// first bytes, not by the name. No more memory is taken than the file really fills.
pub fn read_idx<const RANK: usize>(path: &Path) -> Result<([usize; RANK], Vec<u8>)> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let meta = file.metadata().map_err(Error::io(path))?;
    if !meta.is_file() {
        return Err(Error::data(path, "not a file"));
    }
    let mut start = Vec::new();
    (&mut file)
        .take(2)
        .read_to_end(&mut start)
        .and_then(|_| file.rewind())
        .map_err(Error::io(path))?;
    if start == [0x1f, 0x8b] {
        let most = meta.len().saturating_mul(MOST_EXPANSION);
        parse(path, MultiGzDecoder::new(file), most)
    } else {
        parse(path, file, meta.len())
    }
}

/// Parse from `reader`, which can give at most `most` bytes.
fn parse<const RANK: usize>(
    path: &Path,
    mut reader: impl Read,
    most: u64,
) -> Result<([usize; RANK], Vec<u8>)> {
    let magic = [0, 0, 8, RANK as u8];
    let head = take(path, &mut reader, header_bytes(RANK))?;
    // the magic is judged before the length, so that a file of another kind is called that
    let found = &head[..head.len().min(4)];
    if found.len() == 4 && found[..3] == magic[..3] && found[3] != magic[3] {
        let why = format!("{} axes; expected {RANK}", found[3]);
        return Err(Error::data_at(path, 3, why));
    }
    if found != magic {
        let why = format!("not an idx file of bytes: starts with {found:02x?}, not {magic:02x?}");
        return Err(Error::data_at(path, 0, why));
    }
    if head.len() as u64 != header_bytes(RANK) {
        let why = "truncated inside the header";
        return Err(Error::data_at(path, head.len() as u64, why));
    }
    let mut dims = [0usize; RANK];
    for (d, b) in dims.iter_mut().zip(head[4..].chunks_exact(4)) {
        *d = u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize;
    }
    if dims.contains(&0) {
        let why = format!("the header says {dims:?}: an empty array");
        return Err(Error::data_at(path, 4, why));
    }
    let claimed = dims
        .iter()
        .try_fold(1u64, |n, &d| n.checked_mul(d as u64))
        .filter(|&n| n <= most.saturating_sub(header_bytes(RANK)));
    let Some(claimed) = claimed else {
        let why = format!(
            "truncated, or a wrong header: it says {dims:?} but at most {most} bytes are there"
        );
        return Err(Error::data_at(path, 4, why));
    };
    // one more than claimed, to see whether there is more
    let mut bytes = take(path, &mut reader, claimed + 1)?;
    let end = header_bytes(RANK) + bytes.len().min(claimed as usize) as u64;
    if bytes.len() as u64 > claimed {
        let why = format!("oversized: bytes after the {dims:?} of the header");
        return Err(Error::data_at(path, end, why));
    }
    if (bytes.len() as u64) < claimed {
        let got = bytes.len();
        let why = format!("truncated: {got} bytes of the {claimed} for {dims:?}");
        return Err(Error::data_at(path, end, why));
    }
    bytes.shrink_to_fit();
    Ok((dims, bytes))
}

/// Up to `n` bytes; the memory grows with what is really there.
fn take(path: &Path, reader: &mut impl Read, n: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match reader.take(n).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        // what the decoder says of a broken or cut stream
        Err(e) if is_corrupt(&e) => Err(Error::data(path, format!("corrupt gzip: {e}"))),
        Err(e) => Err(Error::io(path)(e)),
    }
}

fn is_corrupt(e: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    matches!(e.kind(), InvalidData | InvalidInput | UnexpectedEof)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    pub(in crate::data) fn idx(dims: &[u32], bytes: &[u8]) -> Vec<u8> {
        let mut v = vec![0, 0, 8, dims.len() as u8];
        dims.iter().for_each(|d| v.extend(d.to_be_bytes()));
        v.extend(bytes);
        v
    }

    pub(in crate::data) fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        e.write_all(bytes).unwrap();
        e.finish().unwrap()
    }

    /// Write 24 training and 6 test images of 1x2x3.
    pub(in crate::data) fn write_set(dir: &Path) {
        for (part, n) in [("train", 24u8), ("t10k", 6)] {
            let pixels: Vec<u8> = (0..n * 6).collect();
            let labels: Vec<u8> = (0..n).map(|i| i % 10).collect();
            let images = idx(&[n as u32, 2, 3], &pixels);
            let labels = idx(&[n as u32], &labels);
            // one name without .gz that is gzipped and one with it: the bytes decide
            fs::write(dir.join(format!("{part}-images-idx3-ubyte")), gz(&images)).unwrap();
            fs::write(dir.join(format!("{part}-labels-idx1-ubyte.gz")), labels).unwrap();
        }
    }

    #[test]
    fn reads_a_set_gzipped_or_not() {
        let dir = tempfile::tempdir().unwrap();
        write_set(dir.path());
        let s = load_fashion_mnist(dir.path()).unwrap();
        assert_eq!((s.train.len(), s.val.len(), s.test.len()), (22, 2, 6));
        assert_eq!(s.train.shape(), [1, 2, 3]);
        assert_eq!(s.val.image(1), [138, 139, 140, 141, 142, 143]);
        assert_eq!((s.val.label(1), s.val.classes()[3].as_str()), (3, "dress"));
        assert!(
            load_mnist(dir.path())
                .unwrap()
                .source
                .starts_with("MNIST from")
        );
        // and the folder that holds the set's own
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("mnist");
        fs::create_dir(&inner).unwrap();
        write_set(&inner);
        assert_eq!(load_mnist(outer.path()).unwrap().test.len(), 6);
        assert!(load_fashion_mnist(outer.path()).is_err());
    }

    #[test]
    fn a_bad_set_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let why = || load_mnist(dir.path()).unwrap_err().to_string();
        assert!(why().contains("neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz"));
        write_set(dir.path());
        let labels = dir.path().join("t10k-labels-idx1-ubyte.gz");
        fs::write(&labels, idx(&[5], &[0; 5])).unwrap();
        assert!(why().contains("t10k-labels-idx1-ubyte.gz: 5 labels for the 6 images"));
        fs::write(&labels, idx(&[6], &[0, 1, 2, 200, 4, 5])).unwrap();
        assert!(why().ends_with("label 200 of image 3; expected 0 to 9 (at byte 11)"));
    }

    #[test]
    fn bad_files_are_typed_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it");
        let why = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            match read_idx::<3>(&path).unwrap_err() {
                Error::Data { why, offset, .. } => (why, offset),
                e => panic!("{e}"),
            }
        };
        let good = idx(&[2, 2, 3], &[7; 12]);
        let check = |bytes: &[u8], text: &str, offset: Option<u64>| {
            let (w, o) = why(bytes);
            assert!(w.contains(text) && o == offset, "{w} at {o:?}");
        };
        check(b"", "not an idx file", Some(0));
        check(b"\x89PNG....", "starts with [89, 50, 4e, 47]", Some(0));
        check(&idx(&[12], &[7; 12]), "1 axes; expected 3", Some(3));
        check(&good[..9], "truncated inside the header", Some(9));
        check(&idx(&[2, 0, 3], &[]), "an empty array", Some(4));
        check(&good[..27], "at most 27 bytes are there", Some(4));
        let longer = [&good[..], &[1]].concat();
        check(&longer, "oversized", Some(28));
        let absurd = idx(&[u32::MAX; 3], &[7; 12]);
        check(&absurd, "truncated, or a wrong header", Some(4));

        check(&gz(&good[..27]), "truncated: 11 bytes of the 12", Some(27));
        check(&gz(&longer), "oversized", Some(28));
        check(&gz(&absurd), "truncated, or a wrong header", Some(4));
        let whole = gz(&good);
        check(&whole[..whole.len() - 9], "corrupt gzip", None);
        let mut wrong_sum = whole.clone();
        let at = whole.len() - 6;
        wrong_sum[at] ^= 1;
        check(&wrong_sum, "corrupt gzip", None);
        fs::write(&path, &whole).unwrap();
        assert_eq!(read_idx::<3>(&path).unwrap(), ([2, 2, 3], vec![7; 12]));
    }

    #[test]
    fn a_bomb_is_not_unpacked_past_what_its_header_claims() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bomb");
        fs::write(&path, gz(&idx(&[1, 2, 2], &vec![0; 1 << 24]))).unwrap();
        let e = read_idx::<3>(&path).unwrap_err().to_string();
        assert!(
            e.contains("oversized") && e.ends_with("(at byte 20)"),
            "{e}"
        );
    }
}
