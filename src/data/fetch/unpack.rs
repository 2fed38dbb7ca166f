//! An archive's files, written into a folder and nowhere else.
//!
//! Files and folders alone are made, by names that lead down; links and devices are refused. So
//! nothing that is written can lie outside of the folder, whatever the archive says.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::{FetchEvent, Tell};
use crate::error::{Error, Result};

/// Far more than any of the sets: an archive that does not end fills no disk.
const MOST_BYTES: u64 = 4 << 30;
/// Files from this size on are flushed to the disk one by one. A crash of the machine may leave smaller
/// ones empty, which a decoder sees; to flush a hundred thousand of them would take minutes.
const FLUSHED: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    TarGz,
    Zip,
}

/// What an archive says of one of its parts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Folder,
    /// Of the archive, not in it.
    Note,
    Other,
}

/// Unpack `archive` into the folder `into`. An archive that is damaged, or has a part that is not a file
/// or folder inside of it, is an [`Error::Data`] that names the part.
pub(super) fn unpack(packing: Packing, archive: &Path, into: &Path, tell: &mut Tell) -> Result<()> {
    let file = BufReader::new(File::open(archive).map_err(Error::io(archive))?);
    let damaged = |e: io::Error| Error::data(archive, format!("does not unpack: {e}"));
    let name = archive.file_name().unwrap_or_default().to_string_lossy();
    let mut out = Unpacker {
        archive,
        into,
        buffer: vec![0; 1 << 16],
        bytes: 0,
    };
    let mut told = |done, total| {
        let archive = &*name;
        tell(FetchEvent::Files {
            archive,
            done,
            total,
        });
    };
    match packing {
        Packing::TarGz => {
            let mut tar = tar::Archive::new(MultiGzDecoder::new(file));
            for (i, entry) in tar.entries().map_err(damaged)?.enumerate() {
                let mut entry = entry.map_err(damaged)?;
                let kind = match entry.header().entry_type() {
                    tar::EntryType::Regular | tar::EntryType::Continuous => Kind::File,
                    tar::EntryType::Directory => Kind::Folder,
                    tar::EntryType::XGlobalHeader => Kind::Note,
                    _ => Kind::Other,
                };
                let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
                out.part(&name, kind, &mut entry)?;
                told(i as u64 + 1, None);
            }
        }
        Packing::Zip => {
            let damaged = |e: zip::result::ZipError| damaged(e.into());
            let mut zip = zip::ZipArchive::new(file).map_err(damaged)?;
            let total = zip.len();
            for i in 0..total {
                let mut entry = zip.by_index(i).map_err(damaged)?;
                let kind = match (entry.is_dir(), entry.is_symlink()) {
                    (_, true) => Kind::Other,
                    (true, _) => Kind::Folder,
                    _ => Kind::File,
                };
                let name = entry.name().map_err(damaged)?.into_owned();
                out.part(&name, kind, &mut entry)?;
                told(i as u64 + 1, Some(total as u64));
            }
        }
    }
    Ok(())
}

struct Unpacker<'a> {
    archive: &'a Path,
    into: &'a Path,
    buffer: Vec<u8>,
    /// Written so far.
    bytes: u64,
}

impl Unpacker<'_> {
    fn part(&mut self, name: &str, kind: Kind, contents: &mut dyn Read) -> Result<()> {
        if kind == Kind::Note {
            return Ok(());
        }
        let archive = self.archive;
        let refuse = |why: &str| {
            Err(Error::data(
                archive,
                format!("does not unpack: {name:?} {why}"),
            ))
        };
        let Some(below) = below(name) else {
            return refuse("leads out of the folder");
        };
        let path = self.into.join(below);
        let folder = match kind {
            Kind::Folder => Some(path.as_path()),
            Kind::File => path.parent(),
            _ => return refuse("is neither a file nor a folder"),
        };
        if let Some(folder) = folder {
            fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        if kind == Kind::Folder {
            return Ok(());
        }
        let mut file = match File::create_new(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return refuse("is there a second time");
            }
            made => made.map_err(Error::io(&path))?,
        };
        let before = self.bytes;
        loop {
            let n = match contents.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    let at = self.bytes - before;
                    let why = format!("does not unpack: byte {at} of {name:?}: {e}");
                    return Err(Error::data(archive, why));
                }
            };
            self.bytes += n as u64;
            if self.bytes > MOST_BYTES {
                return refuse("is too much: the archive holds over 4 GiB");
            }
            file.write_all(&self.buffer[..n])
                .map_err(Error::io(&path))?;
        }
        if self.bytes - before >= FLUSHED {
            file.sync_all().map_err(Error::io(&path))?;
        }
        Ok(())
    }
}

/// A name as a path that leads down, if it does.
fn below(name: &str) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    // a NUL ends a name for the system
    (!name.contains('\0')).then_some(path)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::download::tests::names;
    use super::*;

    /// Files as a zip archive.
    pub(in crate::data::fetch) fn zipped(files: &[(String, Vec<u8>)]) -> &'static [u8] {
        let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        for (name, bytes) in files {
            let options = zip::write::SimpleFileOptions::default();
            zip.start_file(name.as_str(), options).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner().leak()
    }

    /// Files as a tar archive, gzipped.
    pub(in crate::data::fetch) fn tarred(files: &[(String, Vec<u8>)]) -> &'static [u8] {
        let parts = files
            .iter()
            .map(|(name, bytes)| (name.as_str(), tar::EntryType::Regular, &bytes[..]));
        tar_of(&parts.collect::<Vec<_>>()).leak()
    }

    /// Parts of any name and kind; `tar::Builder` would refuse some of these names.
    fn tar_of(parts: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
        let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut tar = tar::Builder::new(gz);
        for (name, kind, bytes) in parts {
            let mut header = tar::Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_link_name("/etc").unwrap();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append(&header, *bytes).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    /// Unpack into `inner` of a new folder: what came of it, and what is in the two folders.
    fn unpacked(packing: Packing, archive: &[u8]) -> (Result<()>, Vec<String>, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let (path, inner) = (dir.path().join("archive"), dir.path().join("inner"));
        fs::write(&path, archive).unwrap();
        fs::create_dir(&inner).unwrap();
        let result = unpack(packing, &path, &inner, &mut |_| {});
        (result, names(dir.path()), names(&inner))
    }

    const FILE: tar::EntryType = tar::EntryType::Regular;

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["../x", "a/../../x", "/x", "a/..", ".."] {
            let tar = tar_of(&[("a/good", FILE, b"1"), (name, FILE, b"2")]);
            let zip = zipped(&[
                ("a/good".into(), b"1".to_vec()),
                (name.into(), b"2".to_vec()),
            ]);
            for (packing, archive) in [(Packing::TarGz, &tar[..]), (Packing::Zip, zip)] {
                let (result, outside, inside) = unpacked(packing, archive);
                let e = result.unwrap_err().to_string();
                let why = format!("does not unpack: {name:?} leads out of the folder");
                assert!(e.ends_with(&why), "{packing:?}: {e}");
                assert_eq!(outside, ["archive", "inner"]);
                assert_eq!(inside, ["a"]);
            }
        }
        assert_eq!(below("./a/./b"), Some("a/b".into()));
        assert_eq!(below("a\0b"), None);
    }

    #[test]
    fn links_and_devices_are_refused_and_notes_passed_over() {
        for kind in [
            tar::EntryType::Symlink,
            tar::EntryType::Link,
            tar::EntryType::Char,
            tar::EntryType::Fifo,
        ] {
            let (result, _, inside) = unpacked(Packing::TarGz, &tar_of(&[("a", kind, b"")]));
            let e = result.unwrap_err().to_string();
            assert!(e.ends_with("\"a\" is neither a file nor a folder"), "{e}");
            assert!(inside.is_empty());
        }
        let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default();
        zip.add_symlink("a", "/etc", options).unwrap();
        let zip = zip.finish().unwrap().into_inner();
        let e = unpacked(Packing::Zip, &zip).0.unwrap_err().to_string();
        assert!(e.ends_with("\"a\" is neither a file nor a folder"), "{e}");

        let parts = [
            ("a/", tar::EntryType::Directory, &b""[..]),
            ("a/b", FILE, b"1"),
        ];
        let (result, _, inside) = unpacked(Packing::TarGz, &tar_of(&parts));
        assert!(result.is_ok());
        assert_eq!(inside, ["a"]);
        let twice = tar_of(&[("a/b", FILE, b"1"), ("a/b", FILE, b"2")]);
        let e = unpacked(Packing::TarGz, &twice).0.unwrap_err().to_string();
        assert!(e.ends_with("\"a/b\" is there a second time"), "{e}");
    }

    #[test]
    fn damage_names_the_archive_or_the_part() {
        let bytes: Vec<u8> = (0..60_000u32).map(|i| ((i * i) >> 7) as u8).collect();
        let files = [("a".to_string(), bytes.clone()), ("b".into(), bytes)];
        let (tar, zip) = (tarred(&files), zipped(&files));
        for (packing, archive) in [(Packing::TarGz, tar), (Packing::Zip, zip)] {
            assert!(unpacked(packing, archive).0.is_ok());
            for length in [0, 10, archive.len() / 4, archive.len() * 3 / 4] {
                let e = unpacked(packing, &archive[..length]).0.unwrap_err();
                let e = e.to_string();
                assert!(e.contains("archive: does not unpack: "), "{e}");
            }
        }
        // a byte that differs inside of the first file
        let mut damaged = zip.to_vec();
        damaged[5000] ^= 0xff;
        let e = unpacked(Packing::Zip, &damaged).0.unwrap_err().to_string();
        assert!(e.contains(" of \"a\": "), "{e}");
    }
}
