//! Where a data set's bytes lie: in memory, or in a file that the system brings in page by page.

use std::fmt;
use std::fs::File;
use std::ops::{Deref, Range};

use memmap2::Mmap;

/// Bytes to read, wherever they are.
pub(super) enum Bytes {
    /// In memory of their own.
    Owned(Vec<u8>),
    /// A part of a mapped file: more of them than memory holds are fine, and processes share them.
    Mapped(Mmap, Range<usize>),
}

impl Bytes {
    /// The bytes `range` of `file`, which the caller has seen to hold them.
    pub(super) fn map(file: &File, range: Range<usize>) -> std::io::Result<Self> {
        // SAFETY: the bytes would change under us if somebody wrote into the file. Caches are
        // written under a temporary name, renamed once they are whole and never opened for writing
        // again; one that is made anew is another file, and the mapped one lives on without a name.
        let map = unsafe { Mmap::map(file)? };
        if range.start > range.end || range.end > map.len() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Bytes::Mapped(map, range))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Owned(bytes) => bytes,
            Bytes::Mapped(map, range) => &map[range.clone()],
        }
    }
}

impl PartialEq for Bytes {
    /// By what they hold, wherever that lies.
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Bytes::Owned(_) => "owned",
            Bytes::Mapped(..) => "mapped",
        };
        write!(f, "{} bytes, {kind}", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_mapped_part_reads_as_a_slice_and_outlives_the_name() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"0123456789").unwrap();
        let bytes = Bytes::map(file.as_file(), 2..5).unwrap();
        assert!(Bytes::map(file.as_file(), 2..11).is_err());
        file.close().unwrap();
        assert_eq!(&bytes[..], b"234");
        assert_eq!(format!("{bytes:?}"), "3 bytes, mapped");
        let owned = Bytes::Owned(vec![1, 2]);
        assert_eq!(
            (&owned[1..], format!("{owned:?}").as_str()),
            (&[2][..], "2 bytes, owned")
        );
    }
}
