//! Files that are either the old ones or the new ones, never half of each.

use std::io::{BufWriter, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Create a folder and those above it; one that is already there is fine.
pub fn create_dir(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    std::fs::create_dir_all(path).map_err(Error::io(path))
}

/// Write a file through `write` so that a reader, or a crash, sees the earlier file or the whole
/// new one.
///
/// The bytes go to a temporary file in the same folder, are flushed to the disk, and only then
/// take the name. Where anything fails, a full disk included, the earlier file is untouched, the
/// temporary is removed, and the [`Error::Io`] names `path`.
pub fn write_atomic(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    replace(path, write).map_err(Error::io(path))
}

/// A text as a field of a CSV file (RFC 4180).
pub(crate) fn csv_field(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

fn replace(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // dropping `file` before `persist` removes it: every `?` below cleans up
    let mut file = temporary(folder)?;
    let mut buffered = BufWriter::new(file.as_file_mut());
    write(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// A temporary file that, once renamed, can be read by whom the umask allows, as any other file.
pub(crate) fn temporary(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".writing-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn writes_and_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_atomic(&path, |w| w.write_all(b"one")).unwrap();
        write_atomic(&path, |w| w.write_all(b"two, longer")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two, longer");
        assert_eq!(names(dir.path()), ["a.txt"]);
    }

    #[test]
    fn a_failed_write_leaves_the_earlier_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_atomic(&path, |w| w.write_all(b"earlier")).unwrap();
        let e = write_atomic(&path, |w| {
            // over the buffer, so that part of it reached the temporary file
            w.write_all(&[b'x'; 100_000])?;
            Err(std::io::Error::from(std::io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert!(
            matches!(&e, Error::Io { path: p, source }
                if *p == path && source.kind() == std::io::ErrorKind::StorageFull),
            "{e:?}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), b"earlier");
        assert_eq!(names(dir.path()), ["a.txt"]);
    }

    #[test]
    fn a_missing_folder_is_an_error_and_create_dir_makes_it() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x/y");
        let path = deep.join("a.txt");
        let e = write_atomic(&path, |w| w.write_all(b"1")).unwrap_err();
        assert!(e.to_string().starts_with(path.to_str().unwrap()), "{e}");
        create_dir(&deep).unwrap();
        create_dir(&deep).unwrap();
        write_atomic(&path, |w| w.write_all(b"1")).unwrap();
        let e = create_dir(&path).unwrap_err();
        assert!(matches!(e, Error::Io { .. }), "a file is in the way: {e}");
    }

    #[cfg(unix)]
    #[test]
    fn the_file_has_ordinary_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        write_atomic(&a, |w| w.write_all(b"1")).unwrap();
        std::fs::write(&b, b"1").unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&a), mode(&b));
    }
}
