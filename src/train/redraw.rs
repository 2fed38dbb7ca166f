//! Pictures of runs that are over, drawn anew from what their folders hold.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::train::run::{BEST, RECIPE};
use crate::train::{History, Predictor, files, save_comparison, save_curves, save_filters};

/// Where several runs are drawn, if no folder is named.
const COMPARED: &str = "runs/compared";

/// Draw the runs that folders hold into the folder `out`, and show `wrote` each file.
///
/// Of one run, by default into its own folder: the losses and the accuracies, as [`save_curves`] does
/// when it ends; with the best weights there, also the first layer's filters, `filters.png`, as
/// [`save_filters`] does. Of several, by default into `runs/compared`: the validation accuracy and
/// the loss of all of them, each by its folder's name, as [`save_comparison`] does. A folder that
/// holds no history is an error before anything is drawn.
pub fn redraw(runs: &[PathBuf], out: Option<&Path>, mut wrote: impl FnMut(&Path)) -> Result<()> {
    let histories = runs.iter().map(History::load);
    let histories = histories.collect::<Result<Vec<_>>>()?;
    let mut drawn = |dir: &Path, names: &[&str]| {
        for name in names {
            for kind in ["svg", "png"] {
                wrote(&dir.join(format!("{name}.{kind}")));
            }
        }
    };
    match runs {
        [] => Err(Error::config("run", "none; expected a run's folder")),
        [run] => {
            let dir = out.unwrap_or(run);
            files::create_dir(dir)?;
            for history in &histories {
                drawn(dir, &save_curves(dir, history)?);
            }
            let path = dir.join("filters.png");
            // an example's folder has weights, but no recipe
            if run.join(BEST).exists()
                && run.join(RECIPE).exists()
                && save_filters(&path, &mut *Predictor::open(run, &[])?.model)?
            {
                wrote(&path);
            }
            Ok(())
        }
        _ => {
            let dir = out.unwrap_or(Path::new(COMPARED));
            files::create_dir(dir)?;
            let named: Vec<_> = names(runs).into_iter().zip(histories).collect();
            save_comparison(dir, &format!("{} runs", runs.len()), &named)?;
            drawn(dir, &["val_acc", "loss"]);
            Ok(())
        }
    }
}

/// The folders' names, or their paths where two have the same.
fn names(runs: &[PathBuf]) -> Vec<String> {
    let last = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
    let name = |run: &PathBuf| {
        // of `.` and `..` the system knows the name
        let whole = || last(&run.canonicalize().ok()?);
        let path = || run.display().to_string();
        last(run).or_else(whole).unwrap_or_else(path)
    };
    let names: Vec<String> = runs.iter().map(name).collect();
    let twice = |i: usize| names.iter().filter(|n| **n == names[i]).count() > 1;
    let shown = |(i, run): (usize, &PathBuf)| match twice(i) {
        true => run.display().to_string(),
        false => names[i].clone(),
    };
    runs.iter().enumerate().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::predictor::tests::trained;

    fn drawn(runs: &[PathBuf], out: Option<&Path>) -> Result<Vec<String>> {
        let mut files = Vec::new();
        redraw(runs, out, |path| {
            assert!(path.exists(), "{path:?}");
            let name = path.file_name().unwrap().to_str().unwrap();
            files.push(name.to_string());
        })?;
        Ok(files)
    }

    #[test]
    fn one_run_has_curves_and_filters_and_several_have_theirs_together() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        trained(&a, 0)?;
        trained(&b, 1)?;
        let curves = ["loss", "epoch_loss", "accuracy"];
        let curves = curves.map(|name| ["svg", "png"].map(|kind| format!("{name}.{kind}")));
        let curves = curves.concat();
        let svg = a.join("loss.svg");
        let before = std::fs::read_to_string(&svg).unwrap();
        std::fs::remove_file(&svg).unwrap();
        let runs = [a.clone()];
        assert_eq!(
            drawn(&runs, None)?,
            [&curves[..], &["filters.png".to_string()]].concat()
        );
        assert_eq!(std::fs::read_to_string(&svg).unwrap(), before);
        let (w, h, c, _) = crate::train::picture::tests::decode(&a.join("filters.png"));
        // three filters of 5x5 in two columns
        assert_eq!((w, h, c), (13 * 39, 13 * 39, 3));
        // without weights, elsewhere
        std::fs::remove_file(a.join(BEST)).unwrap();
        let out = dir.path().join("x/y");
        assert_eq!(drawn(&runs, Some(&out))?, curves);
        let both = drawn(&[a, b], Some(&out))?;
        assert_eq!(both, ["val_acc.svg", "val_acc.png", "loss.svg", "loss.png"]);
        let svg = std::fs::read_to_string(out.join("val_acc.svg")).unwrap();
        for text in ["2 runs", "a", "b", "validation accuracy (%)"] {
            assert!(svg.contains(&format!("\n{text}\n")), "{text}");
        }
        Ok(())
    }

    #[test]
    fn a_folder_without_a_run_is_an_error_before_anything_is_drawn() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let (run, none, out) = (dir.path(), dir.path().join("none"), dir.path().join("out"));
        History::default().save(run)?;
        let runs = [run.to_path_buf(), none];
        let e = drawn(&runs, Some(&out)).unwrap_err().to_string();
        assert!(e.contains("none/history.json"), "{e}");
        assert!(!out.exists() && drawn(&[], None).is_err());
        // one that has not begun is drawn as such
        assert_eq!(drawn(&runs[..1], Some(&out))?.len(), 6);
        Ok(())
    }

    #[test]
    fn runs_are_named_by_their_folders() {
        let of = |paths: &[&str]| names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["runs/a", "runs/b/"]), ["a", "b"]);
        assert_eq!(of(&["x/a", "y/a", "b"]), ["x/a", "y/a", "b"]);
        let here = std::env::current_dir().unwrap();
        assert_eq!(of(&["."]), [here.file_name().unwrap().to_str().unwrap()]);
    }
}
