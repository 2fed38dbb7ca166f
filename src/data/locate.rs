//! Where CIFAR-10 lies on this machine, and what to do where it does not.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{Splits, cifar, load_cifar10, synthetic_splits};
use crate::error::{Error, Result};

/// The folder of CIFAR-10's binary version, `None` where there is none: `explicit` if given, else
/// `$CIFAR10_DIR` if set, else the first of the usual places that holds any of it:
/// `$XDG_CACHE_HOME/cotangent` or `~/.cache/cotangent`, `./data`, `.`, `~/data` (each:
/// `cifar-10-batches-bin` in it). What was named but is not right is an error, never passed over.
pub fn find_cifar10(explicit: Option<&Path>) -> Result<Option<PathBuf>> {
    find(explicit, &|key| std::env::var_os(key))
}

/// CIFAR-10 as [`find_cifar10`] finds it, else the embedded shapes of `seed`.
pub fn load_cifar10_or_synthetic(explicit: Option<&Path>, seed: u64) -> Result<Splits> {
    match find_cifar10(explicit)? {
        Some(dir) => load_cifar10(&dir),
        None => {
            let mut splits = synthetic_splits(seed);
            splits.source += "; for the real CIFAR-10 unpack cifar-10-binary.tar.gz from \
                https://www.cs.toronto.edu/~kriz/cifar.html in ~/.cache/cotangent, or name its \
                folder with --data";
            Ok(splits)
        }
    }
}

/// An environment variable's value.
type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

fn find(explicit: Option<&Path>, env: Env) -> Result<Option<PathBuf>> {
    if let Some(dir) = explicit {
        return cifar::folder(dir).map(Some);
    }
    if let Some(dir) = path(env, "CIFAR10_DIR") {
        return cifar::folder(&dir).map(Some).map_err(|e| match e {
            Error::Data { path, offset, why } => Error::Data {
                path,
                offset,
                why: format!("{why} (named by $CIFAR10_DIR)"),
            },
            e => e,
        });
    }
    let home = path(env, "HOME");
    let cache = path(env, "XDG_CACHE_HOME").or_else(|| home.as_ref().map(|h| h.join(".cache")));
    let places = [
        cache.map(|c| c.join("cotangent")),
        Some(PathBuf::from("data")),
        Some(PathBuf::new()),
        home.map(|h| h.join("data")),
    ];
    let mut folders = places.into_iter().flatten().map(|p| p.join(cifar::FOLDER));
    Ok(folders.find(|dir| cifar::holds_any(dir)))
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
            find(explicit, &env)
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
}
