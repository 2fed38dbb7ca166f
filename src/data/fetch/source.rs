//! Where each data set's files are, and the steps from there to a folder that loads.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::download::{Fetcher, Remote, has};
use super::unpack::{Packing, unpack};
use super::{FetchEvent, Tell};
use crate::data::locate::{held, place_for};
use crate::data::published::PublishedSet;
use crate::data::{cifar, idx, tiny_imagenet};
use crate::error::{Error, Result};

/// How a data set is fetched.
struct Source {
    files: Vec<Remote>,
    /// Of the one archive; none of files that are loaded as they are.
    packing: Option<Packing>,
}

const AUTHORS: &str = "as published by its authors";
const TORCHVISION: &str = "as torchvision has it, since its authors publish none";
const PROJECTS: &str = "as many projects have it, since its authors publish none";

/// The sums of [`idx::FILES`], packed.
const MNIST: [&str; 4] = [
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3",
    "ec29112dd5afa0611ce80d1b7f02629c",
];
const FASHION_MNIST: [&str; 4] = [
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
];

impl Source {
    /// Of the authors' server, or of the address `url` in its place.
    fn of(set: PublishedSet, url: Option<&str>) -> Self {
        let archive = |base, file: &str, md5: &str, says, packing| Source {
            files: vec![remote(url.unwrap_or(base), file, md5, says)],
            packing: Some(packing),
        };
        let files = |base, sums: [&str; 4], says| {
            let files = idx::FILES.iter().zip(sums);
            let base = url.unwrap_or(base);
            Source {
                files: files
                    .map(|(file, md5)| remote(base, &format!("{file}.gz"), md5, says))
                    .collect(),
                packing: None,
            }
        };
        match set {
            PublishedSet::Cifar10 => archive(
                "https://www.cs.toronto.edu/~kriz",
                cifar::ARCHIVE,
                "c32a1d4ab5d03f1284b67883e8d87530",
                AUTHORS,
                Packing::TarGz,
            ),
            PublishedSet::TinyImageNet => archive(
                "http://cs231n.stanford.edu",
                tiny_imagenet::ARCHIVE,
                "90528d7ca1a48142e341f4ef8d21d0de",
                PROJECTS,
                Packing::Zip,
            ),
            // the copy that torchvision takes, not the authors' own server
            PublishedSet::Mnist => files(
                "https://ossci-datasets.s3.amazonaws.com/mnist",
                MNIST,
                TORCHVISION,
            ),
            PublishedSet::FashionMnist => files(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
                FASHION_MNIST,
                AUTHORS,
            ),
        }
    }
}

/// The file in the folder `base`, or at `base` if that ends with its name.
fn remote(base: &str, file: &str, md5: &str, says: &'static str) -> Remote {
    let base = base.trim_end_matches('/');
    let url = match base.rsplit('/').next() == Some(file) {
        true => base.to_string(),
        false => format!("{base}/{file}"),
    };
    Remote {
        url,
        file: file.into(),
        md5: md5.into(),
        says,
    }
}

/// As [`fetch`](super::fetch).
pub(super) fn fetch(
    set: PublishedSet,
    dir: Option<&Path>,
    url: Option<&str>,
    tell: &mut Tell,
) -> Result<PathBuf> {
    let source = Source::of(set, url);
    let target = place_for(set, dir)?;
    fetch_to(set, &source, &target, &Fetcher::new(), tell)
}

fn fetch_to(
    set: PublishedSet,
    source: &Source,
    target: &Path,
    fetcher: &Fetcher,
    tell: &mut Tell,
) -> Result<PathBuf> {
    let home = match target.parent() {
        _ if source.packing.is_none() => target,
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let there = |tell: &mut Tell| {
        let found = what_is_there(set, source, target)?;
        if let Some(found) = &found {
            let found = found.display();
            let text = format!("{found} is there already; `cotangent data verify {set}` checks it");
            tell(FetchEvent::Line(text));
        }
        Ok::<_, Error>(found)
    };
    // before anything is written: the folder may be somebody else's
    if let Some(found) = there(tell)? {
        return Ok(found);
    }
    fs::create_dir_all(home).map_err(Error::io(home))?;
    let _lock = lock(home, set)?;
    // another run may have fetched it while this one came here
    if let Some(found) = there(tell)? {
        return Ok(found);
    }
    let Some(packing) = source.packing else {
        for ((plain, sum), remote) in set.unpacked().iter().zip(&source.files) {
            if !has(&target.join(plain), sum)? {
                fetcher.download(remote, target, tell)?;
            }
        }
        return held(set, target).unwrap_or_else(|| Err(Error::data(target, "is gone")));
    };
    for remote in &source.files {
        let archive = fetcher.download(remote, home, tell)?;
        unpack_to(set, packing, &archive, target, tell)?;
        let text = format!("unpacked; {} may be deleted", archive.display());
        tell(FetchEvent::Line(text));
    }
    Ok(target.to_path_buf())
}

/// The folder of a set that is there already; what is there and is not that is an error.
fn what_is_there(set: PublishedSet, source: &Source, target: &Path) -> Result<Option<PathBuf>> {
    if source.packing.is_some() {
        return match held(set, target) {
            Some(Ok(found)) => Ok(Some(found)),
            Some(Err(e)) => {
                let why = format!("is there but not whole; move it away and fetch again: {e}");
                Err(Error::data(target, why))
            }
            None if is_taken(target) => {
                let why = format!("is there but holds no {set}; move it away and fetch again");
                Err(Error::data(target, why))
            }
            None => Ok(None),
        };
    }
    let mut whole = true;
    for ((plain, sum), remote) in set.unpacked().iter().zip(&source.files) {
        // loaders take the unpacked file first
        whole &= has(&target.join(plain), sum)? || has(&target.join(&remote.file), &remote.md5)?;
    }
    Ok(whole.then(|| target.to_path_buf()))
}

/// Whether a path is used by anything but an empty folder.
fn is_taken(path: &Path) -> bool {
    let empty = || fs::read_dir(path).is_ok_and(|mut d| d.next().is_none());
    path.symlink_metadata().is_ok() && !empty()
}

/// Held while a set is fetched into `home`: two runs would write the same files.
fn lock(home: &Path, set: PublishedSet) -> Result<File> {
    let path = home.join(format!(".{set}.lock"));
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(Error::io(&path))?;
    // where a file system knows no locks, nobody is kept out
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::data(path, "another fetch is at work here")),
        _ => Ok(file),
    }
}

/// Unpack beside `target` and move the folder of its name there, once it holds all of the set.
fn unpack_to(
    set: PublishedSet,
    packing: Packing,
    archive: &Path,
    target: &Path,
    tell: &mut Tell,
) -> Result<()> {
    let name = target.file_name().unwrap_or_default();
    let mut beside = name.to_os_string();
    beside.push(".unpacking");
    let staging = target.with_file_name(beside);
    // what a run left that was ended while it unpacked
    remove(&staging)?;
    let unpacked = fs::create_dir_all(&staging)
        .map_err(Error::io(&staging))
        .and_then(|()| unpack(packing, archive, &staging, tell))
        .and_then(|()| {
            let folder = staging.join(name);
            let lacking = |why: String| Err(Error::data(archive, why));
            match held(set, &folder) {
                Some(Ok(_)) => Ok(folder),
                Some(Err(e)) => lacking(format!("does not hold all of the data set: {e}")),
                None => lacking(format!("holds no {set}")),
            }
        })
        .and_then(|folder| {
            // an empty folder of that name is in the way on some systems
            let _ = fs::remove_dir(target);
            fs::rename(folder, target).map_err(Error::io(target))
        });
    let removed = remove(&staging);
    unpacked.and(removed)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(folder)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::download::tests::{Answer, fetcher, file, names, range_of, serve, sum};
    use super::super::unpack::tests::{tarred, zipped};
    use super::*;
    use crate::data::tiny_imagenet::write_set;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// The source of `set` with these files from `base`.
    fn source(set: PublishedSet, base: &str, bodies: &[&[u8]]) -> Source {
        let mut source = Source::of(set, Some(base));
        for (remote, body) in source.files.iter_mut().zip(bodies) {
            remote.md5 = sum(body);
        }
        source
    }

    /// Fetch the archive of `set` into `home`.
    fn fetched(set: PublishedSet, archive: &'static [u8], home: &Path) -> Result<PathBuf> {
        let (base, _heads) = serve(vec![file(archive, usize::MAX)]);
        let target = place_for(set, Some(home)).unwrap();
        let source = source(set, &base, &[archive]);
        fetch_to(set, &source, &target, &fetcher(), &mut |_| {})
    }

    /// The files below `dir` and their contents, as an archive would name them.
    fn tree(dir: &Path, name: &str) -> Vec<(String, Vec<u8>)> {
        let mut all = Vec::new();
        for entry in fs::read_dir(dir).unwrap().map(|e| e.unwrap()) {
            let name = format!("{name}/{}", entry.file_name().to_str().unwrap());
            if entry.path().is_dir() {
                all.extend(tree(&entry.path(), &name));
            } else {
                all.push((name, fs::read(entry.path()).unwrap()));
            }
        }
        all
    }

    fn cifar10() -> Vec<(String, Vec<u8>)> {
        let file = |f| (format!("cifar-10-batches-bin/{f}"), vec![1; 3073]);
        cifar::CIFAR10_FILES.map(file).to_vec()
    }

    #[test]
    fn tiny_imagenet_is_unpacked_and_loads() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("made");
        write_set(&made, 2);
        let archive = zipped(&tree(&made, "tiny-imagenet-200"));
        let home = dir.path().join("new/folder");
        let set = PublishedSet::TinyImageNet;
        let found = fetched(set, archive, &home).unwrap();
        assert_eq!(found, home.join("tiny-imagenet-200"));
        let all = [
            ".tiny_imagenet.lock",
            "tiny-imagenet-200",
            "tiny-imagenet-200.zip",
        ];
        assert_eq!(names(&home), all);
        let splits = crate::data::load_tiny_imagenet(&found, &Default::default()).unwrap();
        assert_eq!((splits.train.len(), splits.test.len()), (3, 6));

        // nobody is asked for what is there
        let nowhere = source(set, "http://127.0.0.1:9", &[archive]);
        let mut lines = String::new();
        let mut tell = |event: FetchEvent| lines += &format!("{event:?}\n");
        let again = fetch_to(set, &nowhere, &found, &fetcher(), &mut tell);
        assert_eq!(again.unwrap(), found);
        assert!(lines.contains("is there already; `cotangent data verify tiny_imagenet`"));
        // an archive that is there is unpacked without asking
        fs::remove_dir_all(&found).unwrap();
        let again = fetch_to(set, &nowhere, &found, &fetcher(), &mut |_| {});
        assert_eq!(again.unwrap(), found);
        assert_eq!(names(&home), all);
    }

    #[test]
    fn cifar10_is_unpacked_after_a_cut_connection() {
        let dir = tempfile::tempdir().unwrap();
        let archive = tarred(&cifar10());
        let half = archive.len() / 2;
        let (base, heads) = serve(vec![file(archive, half), file(archive, usize::MAX)]);
        let set = PublishedSet::Cifar10;
        let target = place_for(set, Some(dir.path())).unwrap();
        let source = source(set, &base, &[archive]);
        let found = fetch_to(set, &source, &target, &fetcher(), &mut |_| {}).unwrap();
        assert_eq!(found, dir.path().join("cifar-10-batches-bin"));
        assert_eq!(fs::read(found.join("test_batch.bin")).unwrap(), [1; 3073]);
        let ranges: Vec<_> = heads.try_iter().map(|h| range_of(&h)).collect();
        assert_eq!(ranges, [None, Some(half)]);
    }

    #[test]
    fn a_run_that_ends_while_unpacking_leaves_nothing_that_looks_whole() {
        let dir = tempfile::tempdir().unwrap();
        let archive = tarred(&cifar10());
        let set = PublishedSet::Cifar10;
        let target = place_for(set, Some(dir.path())).unwrap();
        let (base, _heads) = serve(vec![file(archive, usize::MAX)]);
        let source = source(set, &base, &[archive]);
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let mut tell = |event: FetchEvent| {
                if matches!(event, FetchEvent::Files { done: 4, .. }) {
                    // as by a signal: nothing behind this is done
                    std::panic::resume_unwind(Box::new("ended"));
                }
            };
            fetch_to(set, &source, &target, &fetcher(), &mut tell)
        }));
        assert!(ended.is_err());
        let left = dir.path().join("cifar-10-batches-bin.unpacking");
        assert_eq!(names(&left.join("cifar-10-batches-bin")).len(), 4);
        assert!(!target.exists());
        assert!(cifar::folder(dir.path()).is_err());
        // the next run has the archive, takes the rest away and unpacks anew
        fs::write(left.join("cifar-10-batches-bin/data_batch_1.bin"), "half").unwrap();
        assert_eq!(fetched(set, archive, dir.path()).unwrap(), target);
        assert_eq!(
            fs::read(target.join("data_batch_1.bin")).unwrap(),
            [1; 3073]
        );
        assert_eq!(
            names(dir.path()),
            [
                ".cifar10.lock",
                "cifar-10-batches-bin",
                "cifar-10-binary.tar.gz"
            ]
        );
    }

    #[test]
    fn an_archive_that_is_damaged_or_lacks_parts_leaves_no_folder() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = cifar10();
        let whole = tarred(&files);
        let damaged = &whole[..whole.len() / 2];
        let archive = dir.path().join("cifar-10-binary.tar.gz");
        let why = |bytes| {
            let e = fetched(PublishedSet::Cifar10, bytes, dir.path()).unwrap_err();
            assert_eq!(
                names(dir.path()),
                [".cifar10.lock", "cifar-10-binary.tar.gz"]
            );
            fs::remove_file(&archive).unwrap();
            e.to_string()
        };
        let e = why(damaged);
        let text = format!("{}: does not unpack: ", archive.display());
        assert!(e.starts_with(&text), "{e}");
        files.remove(2);
        let e = why(tarred(&files));
        assert!(e.contains("does not hold all of the data set: "), "{e}");
        assert!(e.contains("data_batch_3.bin missing"), "{e}");
        let e = why(tarred(&[("another/file".into(), vec![1])]));
        assert!(e.ends_with("holds no cifar10"), "{e}");
    }

    #[test]
    fn what_is_in_the_way_is_named_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let set = PublishedSet::Cifar10;
        let target = dir.path().join("cifar-10-batches-bin");
        let nobody = source(set, "http://127.0.0.1:9", &[b""]);
        let why = || {
            let e = fetch_to(set, &nobody, &target, &fetcher(), &mut |_| {});
            e.unwrap_err().to_string()
        };
        fs::create_dir(&target).unwrap();
        fs::write(target.join("notes"), "mine").unwrap();
        let e = why();
        assert!(
            e.ends_with("is there but holds no cifar10; move it away and fetch again"),
            "{e}"
        );
        fs::write(target.join("test_batch.bin"), "mine").unwrap();
        assert!(why().contains("is there but not whole; move it away and fetch again"));
        assert_eq!(names(&target), ["notes", "test_batch.bin"]);

        fs::remove_dir_all(&target).unwrap();
        let archive = dir.path().join("cifar-10-binary.tar.gz");
        fs::write(&archive, "mine").unwrap();
        let e = why();
        assert!(
            e.contains("cifar-10-binary.tar.gz: is there, but its MD5 sum is "),
            "{e}"
        );
        assert_eq!(fs::read(&archive).unwrap(), b"mine");
        fs::remove_file(&archive).unwrap();

        let held = lock(dir.path(), set).unwrap();
        let e = why();
        assert!(
            e.ends_with(".cifar10.lock: another fetch is at work here"),
            "{e}"
        );
        drop(held);
        assert!(why().contains("given up after"));
    }

    #[test]
    fn the_mnist_family_is_fetched_file_by_file() {
        let dir = tempfile::tempdir().unwrap();
        let all: [&'static [u8]; 4] = [b"one", b"two", b"three", b"four"];
        let set = PublishedSet::FashionMnist;
        let target = place_for(set, Some(dir.path())).unwrap();
        let fetch = |bodies: &[&'static [u8]]| {
            let answers: Vec<Answer> = bodies.iter().map(|b| file(b, usize::MAX)).collect();
            let (base, heads) = serve(answers);
            let source = source(set, &base, &all);
            let found = fetch_to(set, &source, &target, &fetcher(), &mut |_| {});
            let asked = heads
                .try_iter()
                .map(|h| h.lines().next().unwrap().to_string());
            (found, asked.collect::<Vec<_>>())
        };
        let (found, asked) = fetch(&all);
        let found = found.unwrap();
        assert_eq!(found, dir.path().join("fashion-mnist"));
        let path = found.join("t10k-images-idx3-ubyte.gz");
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(asked[0], "get /train-images-idx3-ubyte.gz http/1.1");
        // only what is missing is asked for
        fs::remove_file(&path).unwrap();
        let (found, asked) = fetch(&all[2..3]);
        assert_eq!(found.unwrap(), target);
        assert_eq!(asked, ["get /t10k-images-idx3-ubyte.gz http/1.1"]);
        assert!(fetch(&[]).0.is_ok());
        // files of the same names, such as MNIST's, are not written over
        fs::write(target.join("train-images-idx3-ubyte"), "digits").unwrap();
        let (e, asked) = fetch(&all);
        let e = e.unwrap_err().to_string();
        assert!(
            e.contains("train-images-idx3-ubyte: is there, but its MD5 sum is"),
            "{e}"
        );
        assert!(asked.is_empty());
    }

    #[test]
    fn addresses_are_the_authors_or_the_one_that_is_named() {
        for set in PublishedSet::ALL {
            for remote in Source::of(set, None).files {
                assert!(remote.url.ends_with(&format!("/{}", remote.file)));
                assert_eq!(remote.md5.len(), 32);
            }
        }
        let url = |set, url| Source::of(set, Some(url)).files.pop().unwrap().url;
        let archive = "http://a.b/c/cifar-10-binary.tar.gz";
        for given in ["http://a.b/c", "http://a.b/c/", archive] {
            assert_eq!(url(PublishedSet::Cifar10, given), archive);
        }
        let last = "http://a.b/t10k-labels-idx1-ubyte.gz";
        assert_eq!(url(PublishedSet::Mnist, "http://a.b"), last);
        let dir = tempfile::tempdir().unwrap();
        let wrong = fetch(
            PublishedSet::Mnist,
            Some(dir.path()),
            Some("a b"),
            &mut |_| {},
        );
        let e = wrong.unwrap_err().to_string();
        assert!(e.starts_with("a b/train-images-idx3-ubyte.gz: "), "{e}");
    }
}
