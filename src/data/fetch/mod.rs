//! Data sets from where they are published: resumed where a connection ended, compared with their
//! sums, unpacked whole or not at all.

mod bar;
#[cfg(feature = "fetch")]
mod download;
#[cfg(feature = "fetch")]
mod source;
#[cfg(feature = "fetch")]
mod unpack;

use std::path::{Path, PathBuf};

use super::published::PublishedSet;
#[cfg(not(feature = "fetch"))]
use crate::error::Error;
use crate::error::Result;

pub use bar::FetchBar;

/// What [`fetch`] is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchEvent<'a> {
    /// So many bytes of a file are there, of so many in all if the server says.
    Bytes {
        /// The file's name.
        file: &'a str,
        /// Bytes that are there, those of earlier runs included.
        done: u64,
        /// The file's size.
        total: Option<u64>,
    },
    /// So many of an archive's files are unpacked, of so many in all if the archive says.
    Files {
        /// The archive's name.
        archive: &'a str,
        /// Files that are unpacked.
        done: u64,
        /// Files and folders in the archive.
        total: Option<u64>,
    },
    /// A line for people: what comes next, or why there is a wait.
    Line(String),
}

/// Takes the events.
#[cfg(feature = "fetch")]
type Tell<'t> = dyn FnMut(FetchEvent) + 't;

/// Download a data set and unpack it into a folder of its own in `dir`, by default where
/// [`find_cifar10`](super::find_cifar10) and its like look first: the folder that the set's variable
/// names, else `$XDG_CACHE_HOME/cotangent` or `~/.cache/cotangent`. Returns the set's folder. Nothing
/// that is there is written over: a set that is there already is left as it is, and a folder or file
/// that has its name but lacks parts, or has another sum, is an error.
///
/// The files come from their authors' servers, or from the address `url` of a folder with files of the
/// same names (an archive's own address, too). Their MD5 sums must be the published ones: CIFAR-10's and
/// Fashion-MNIST's authors publish them; those of MNIST are torchvision's, those of Tiny-ImageNet what
/// many projects list, since their authors publish none.
///
/// A download has the suffix `.part` until it is whole. One that was cut goes on from there, in this
/// run or a later one. An archive unpacks into a folder with the suffix `.unpacking`, which takes the
/// name of the set once it holds all of it; the archive stays and may be deleted.
///
/// A server that refuses, stays silent or sends another file is an [`Error::Fetch`](crate::Error::Fetch)
/// with the address and the byte; an archive that does not unpack an [`Error::Data`](crate::Error::Data).
/// Without the crate's feature `fetch` there is no network code, and all is an
/// [`Error::Config`](crate::Error::Config) that says so.
pub fn fetch(
    set: PublishedSet,
    dir: Option<&Path>,
    url: Option<&str>,
    tell: &mut dyn FnMut(FetchEvent),
) -> Result<PathBuf> {
    #[cfg(feature = "fetch")]
    return source::fetch(set, dir, url, tell);
    #[cfg(not(feature = "fetch"))]
    {
        let _ = (dir, url, tell);
        let why = format!(
            "this program was built without it and cannot fetch {set}: build it with \
             `cargo build --release --features fetch`"
        );
        Err(Error::config("fetch", why))
    }
}

#[cfg(all(test, not(feature = "fetch")))]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_network_says_how_to_get_one() {
        let e = fetch(PublishedSet::Mnist, None, None, &mut |_| {}).unwrap_err();
        assert!(
            e.to_string()
                .contains("cargo build --release --features fetch")
        );
    }
}
