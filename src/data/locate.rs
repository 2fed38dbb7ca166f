//! Where the data sets lie on this machine, and what to do where they do not.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::published::PublishedSet;
use super::{Splits, cifar, idx, load_cifar10, synthetic_splits, tiny_imagenet};
use crate::error::{Error, Result};

/// The folder of CIFAR-10's binary version, `None` where there is none: `explicit` if given, else
/// `$CIFAR10_DIR` if set, else the first of the usual places that holds any of it:
/// `$XDG_CACHE_HOME/cotangent` or `~/.cache/cotangent`, `./data`, `.`, `~/data` (each:
/// `cifar-10-batches-bin` in it). What was named but is not right is an error, never passed over.
pub fn find_cifar10(explicit: Option<&Path>) -> Result<Option<PathBuf>> {
    find_set(PublishedSet::Cifar10, explicit)
}

/// The folder of MNIST's four files, as [`find_cifar10`] looks: `$MNIST_DIR`, and `mnist` in the
/// usual places.
pub fn find_mnist(explicit: Option<&Path>) -> Result<Option<PathBuf>> {
    find_set(PublishedSet::Mnist, explicit)
}

/// The folder of Fashion-MNIST's four files, as [`find_cifar10`] looks: `$FASHION_MNIST_DIR`, and
/// `fashion-mnist` in the usual places.
pub fn find_fashion_mnist(explicit: Option<&Path>) -> Result<Option<PathBuf>> {
    find_set(PublishedSet::FashionMnist, explicit)
}

/// The folder of Tiny-ImageNet, as [`find_cifar10`] looks: `$TINY_IMAGENET_DIR`, and in each of the
/// usual places `tiny-imagenet-200`, then `tiny-imagenet-10`, the first ten of its classes or any
/// others in the same form.
pub fn find_tiny_imagenet(explicit: Option<&Path>) -> Result<Option<PathBuf>> {
    find_set(PublishedSet::TinyImageNet, explicit)
}

/// CIFAR-10 as [`find_cifar10`] finds it, else the embedded shapes of `seed`.
pub fn load_cifar10_or_synthetic(explicit: Option<&Path>, seed: u64) -> Result<Splits> {
    match find_cifar10(explicit)? {
        Some(dir) => load_cifar10(&dir),
        None => {
            let mut splits = synthetic_splits(seed);
            splits.source += "; `cotangent data fetch cifar10` gets the real CIFAR-10, --data names \
                its folder (unpacked cifar-10-binary.tar.gz of \
                https://www.cs.toronto.edu/~kriz/cifar.html)";
            Ok(splits)
        }
    }
}

/// `explicit` or the place that `find_cifar10` and its like find.
pub(super) fn find_set(set: PublishedSet, explicit: Option<&Path>) -> Result<Option<PathBuf>> {
    find(wanted(set), explicit, &environment)
}

/// As [`find_set`], but a folder that is named need not hold all of the set.
pub(super) fn find_any_of_set(
    set: PublishedSet,
    explicit: Option<&Path>,
) -> Result<Option<PathBuf>> {
    let wanted = wanted(set);
    let named = explicit.map(Path::to_path_buf);
    let named = named.or_else(|| path(&environment, wanted.variable));
    let held = named.and_then(|dir| {
        let inner = wanted.folders.iter().map(|f| dir.join(f));
        let mut folders = std::iter::once(dir.clone()).chain(inner);
        folders.find(|d| (wanted.holds_any)(d))
    });
    match held {
        Some(dir) => Ok(Some(dir)),
        None => find_set(set, explicit),
    }
}

/// The folder that a set is to have where it is fetched to `explicit`, or to the place where
/// [`find_set`] looks first.
#[cfg(feature = "fetch")]
pub(super) fn place_for(set: PublishedSet, explicit: Option<&Path>) -> Result<PathBuf> {
    place(wanted(set), explicit, &environment)
}

/// If any of a set is in `dir`: that folder if all of it is, else what is missing.
#[cfg(feature = "fetch")]
pub(super) fn held(set: PublishedSet, dir: &Path) -> Option<Result<PathBuf>> {
    let wanted = wanted(set);
    (wanted.holds_any)(dir).then(|| (wanted.folder)(dir))
}

#[cfg(feature = "fetch")]
fn place(wanted: &Wanted, explicit: Option<&Path>, env: Env) -> Result<PathBuf> {
    let named = explicit.map(Path::to_path_buf);
    let Some(dir) = named
        .or_else(|| path(env, wanted.variable))
        .or_else(|| cache_by(env))
    else {
        let why = "no place for a data set: $HOME is not set; name one with --dir";
        return Err(Error::config("dir", why));
    };
    let name = wanted.folders[0];
    let own = dir.ends_with(name) || (wanted.holds_any)(&dir);
    Ok(if own { dir } else { dir.join(name) })
}

fn wanted(set: PublishedSet) -> &'static Wanted {
    match set {
        PublishedSet::Cifar10 => &CIFAR10,
        PublishedSet::Mnist => &MNIST,
        PublishedSet::FashionMnist => &FASHION_MNIST,
        PublishedSet::TinyImageNet => &TINY_IMAGENET,
    }
}

/// A data set, as it is looked for.
struct Wanted {
    /// The environment variable that names its folder.
    variable: &'static str,
    /// Its folder's names in the usual places, the best first.
    folders: &'static [&'static str],
    /// The folder itself or one in it, if it is whole.
    folder: fn(&Path) -> Result<PathBuf>,
    /// Whether a folder holds any of it.
    holds_any: fn(&Path) -> bool,
}

const CIFAR10: Wanted = Wanted {
    variable: "CIFAR10_DIR",
    folders: &[cifar::FOLDER],
    folder: cifar::folder,
    holds_any: cifar::holds_any,
};
const MNIST: Wanted = Wanted {
    variable: "MNIST_DIR",
    folders: &[idx::MNIST_FOLDER],
    folder: idx::mnist_folder,
    holds_any: idx::holds_any,
};
const FASHION_MNIST: Wanted = Wanted {
    variable: "FASHION_MNIST_DIR",
    folders: &[idx::FASHION_FOLDER],
    folder: idx::fashion_folder,
    holds_any: idx::holds_any,
};
const TINY_IMAGENET: Wanted = Wanted {
    variable: "TINY_IMAGENET_DIR",
    folders: &tiny_imagenet::FOLDERS,
    folder: tiny_imagenet::folder,
    holds_any: tiny_imagenet::holds_any,
};

/// What an archive unpacks to.
pub(super) struct Unpacked<'a> {
    /// The archive's name.
    pub(super) archive: &'a str,
    /// All that must be there.
    pub(super) parts: &'a [&'a str],
    /// Names of the folder that holds it, inside of the one that is named.
    pub(super) inner: &'a [&'a str],
    /// Whether a folder holds any of it.
    pub(super) holds_any: fn(&Path) -> bool,
}

impl Unpacked<'_> {
    /// `dir` or one of its inner folders, whichever holds any of it, if that holds all. An error says
    /// what is missing; `instead` says what `dir` holds where that is none of it.
    pub(super) fn folder(&self, dir: &Path, instead: impl FnOnce() -> String) -> Result<PathBuf> {
        let (archive, parts) = (self.archive, self.parts.join(", "));
        let refuse = |dir: &Path, what: &str| {
            let why = format!("{what}; expected the unpacked {archive}: {parts}");
            Err(Error::data(dir, why))
        };
        if !dir.exists() {
            return refuse(dir, "no such folder");
        }
        if !dir.is_dir() {
            return refuse(dir, "not a folder");
        }
        let inner = self.inner.iter().map(|name| dir.join(name));
        let mut folders = std::iter::once(dir.to_path_buf()).chain(inner);
        let Some(found) = folders.find(|d| (self.holds_any)(d)) else {
            return refuse(dir, &instead());
        };
        let absent = |part: &&str| !found.join(part).exists();
        let missing: Vec<&str> = self.parts.iter().copied().filter(absent).collect();
        match missing.is_empty() {
            true => Ok(found),
            false => refuse(&found, &format!("{} missing", missing.join(", "))),
        }
    }
}

/// An environment variable's value.
type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

fn environment(key: &str) -> Option<OsString> {
    std::env::var_os(key)
}

fn find(wanted: &Wanted, explicit: Option<&Path>, env: Env) -> Result<Option<PathBuf>> {
    if let Some(dir) = explicit {
        return (wanted.folder)(dir).map(Some);
    }
    let variable = wanted.variable;
    if let Some(dir) = path(env, variable) {
        return (wanted.folder)(&dir).map(Some).map_err(|e| match e {
            Error::Data { path, offset, why } => Error::Data {
                path,
                offset,
                why: format!("{why} (named by ${variable})"),
            },
            e => e,
        });
    }
    let places = [
        cache_by(env),
        Some(PathBuf::from("data")),
        Some(PathBuf::new()),
        path(env, "HOME").map(|h| h.join("data")),
    ];
    let mut folders = places
        .iter()
        .flatten()
        .flat_map(|place| wanted.folders.iter().map(move |f| place.join(f)));
    Ok(folders.find(|dir| (wanted.holds_any)(dir)))
}

/// The folder for data sets of this crate's own, `None` where no variable tells a home.
fn cache_by(env: Env) -> Option<PathBuf> {
    let home = || path(env, "HOME").map(|h| h.join(".cache"));
    let cache = path(env, "XDG_CACHE_HOME").or_else(home)?;
    Some(cache.join("cotangent"))
}

fn path(env: Env, key: &str) -> Option<PathBuf> {
    env(key).filter(|v| !v.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_first_place_wins_and_a_wrong_name_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let place = |p: &str| {
            let dir = root.path().join(p).join(cifar::FOLDER);
            fs::create_dir_all(&dir).unwrap();
            cifar::CIFAR10_FILES
                .iter()
                .for_each(|f| fs::write(dir.join(f), "").unwrap());
            dir
        };
        let look = |explicit: Option<&Path>, vars: &[(&str, &Path)]| {
            let env = |key: &str| {
                let var = vars.iter().find(|(k, _)| *k == key);
                var.map(|(_, v)| v.as_os_str().to_owned())
            };
            find(&CIFAR10, explicit, &env)
        };
        let home = ("HOME", root.path());
        assert_eq!(look(None, &[home]).unwrap(), None);
        let in_home = place("data");
        assert_eq!(look(None, &[home]).unwrap(), Some(in_home));
        let in_cache = place(".cache/cotangent");
        assert_eq!(look(None, &[home]).unwrap(), Some(in_cache.clone()));
        let in_xdg = place("xdg/cotangent");
        let xdg = root.path().join("xdg");
        let vars = [home, ("XDG_CACHE_HOME", &xdg)];
        assert_eq!(look(None, &vars).unwrap(), Some(in_xdg));

        let named = place("named");
        assert_eq!(
            look(None, &[home, ("CIFAR10_DIR", &named)]).unwrap(),
            Some(named.clone())
        );
        assert_eq!(
            look(None, &[home, ("CIFAR10_DIR", Path::new(""))]).unwrap(),
            Some(in_cache)
        );
        let wrong = root.path().join("wrong");
        let e = look(None, &[home, ("CIFAR10_DIR", &wrong)]).unwrap_err();
        assert!(e.to_string().ends_with("(named by $CIFAR10_DIR)"), "{e}");
        assert!(look(Some(&wrong), &[home, ("CIFAR10_DIR", &named)]).is_err());
        let outer = root.path().join("named");
        assert_eq!(look(Some(&outer), &[home]).unwrap(), Some(named));
    }

    #[test]
    fn tiny_imagenet_is_found_with_all_classes_before_ten() {
        let root = tempfile::tempdir().unwrap();
        let env = |key: &str| (key == "HOME").then(|| root.path().as_os_str().to_owned());
        let look = || find(&TINY_IMAGENET, None, &env).unwrap();
        assert_eq!(look(), None);
        for name in ["tiny-imagenet-10", "tiny-imagenet-200"] {
            let dir = root.path().join(".cache/cotangent").join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("wnids.txt"), "").unwrap();
            assert_eq!(look(), Some(dir));
        }
        let e = find(&FASHION_MNIST, Some(root.path()), &env).unwrap_err();
        assert!(e.to_string().contains("neither train-images"), "{e}");
    }
    #[cfg(feature = "fetch")]
    #[test]
    fn a_set_is_fetched_to_where_it_is_looked_for_first() {
        let root = tempfile::tempdir().unwrap();
        let at = |p: &str| root.path().join(p);
        let to = |explicit: Option<&Path>, vars: &[(&str, &Path)]| {
            let env = |key: &str| {
                let var = vars.iter().find(|(k, _)| *k == key);
                var.map(|(_, v)| v.as_os_str().to_owned())
            };
            place(&MNIST, explicit, &env)
        };
        let home = ("HOME", root.path());
        let dir = to(None, &[home]).unwrap();
        assert_eq!(dir, at(".cache/cotangent/mnist"));
        assert!(held(PublishedSet::Mnist, &dir).is_none());
        let named = at("x");
        let vars = [home, ("MNIST_DIR", &named)];
        assert_eq!(to(None, &vars).unwrap(), at("x/mnist"));
        assert_eq!(to(Some(&at("y")), &vars).unwrap(), at("y/mnist"));
        assert_eq!(to(Some(&at("y/mnist")), &vars).unwrap(), at("y/mnist"));
        // a folder of another name that holds some of it
        fs::create_dir(&named).unwrap();
        fs::write(named.join(idx::FILES[0]), "").unwrap();
        assert_eq!(to(None, &vars).unwrap(), named);
        assert!(held(PublishedSet::Mnist, &named).unwrap().is_err());
        let e = to(None, &[]).unwrap_err().to_string();
        assert!(e.ends_with("$HOME is not set; name one with --dir"), "{e}");
    }
}
