//! A recipe's run: the folder that holds all of it, training, and judging what was trained.
//!
//! A run's folder has `recipe.toml` (every setting written out), `input.json` (what the network takes
//! and the classes' names), `history.json` and `.csv`, TensorBoard's events, the curves as SVG and PNG,
//! `best.safetensors` and `checkpoint.safetensors`, `eval_SPLIT.json` and `confusion_SPLIT.csv` of the test
//! images and of those that it was judged by later, and `report.html`. That of a stage before is in it, in
//! `pretrain`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;

use crate::autograd::autocast;
use crate::data::{Augment, Dataset, Normalize, Splits};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::{self, Module};
use crate::ops::topk_correct;
use crate::train::judge::evaluate;
use crate::train::pretrain::PRETRAIN;
use crate::train::{
    Confusion, History, Input, Observer, Outcome, Recipe, Solver, SolverConfig, SolverData, files,
    load_state_dict_file, report, save_state_dict,
};

pub(super) const RECIPE: &str = "recipe.toml";
pub(super) const CHECKPOINT: &str = "checkpoint.safetensors";
pub(super) const BEST: &str = "best.safetensors";

/// A recipe with its images and its network, on its device.
pub struct Run {
    /// Every setting.
    pub recipe: Recipe,
    /// The images, those to learn from being the ones whose labels are known.
    pub splits: Splits,
    /// All training images, for what needs no labels.
    pub unlabelled: Dataset,
    /// How bytes become numbers: it needs no labels, and is the same in both stages.
    pub normalize: Normalize,
    /// The network, with new weights.
    pub model: Box<dyn Module>,
}

impl Run {
    /// Read the images and make the network.
    pub fn new(recipe: Recipe) -> Result<Self> {
        let images = recipe.data.load_all(recipe.seed)?;
        Self::on(recipe, images)
    }

    /// With the images of the recipe's data, which were read already, the labels of all known.
    pub(super) fn on(recipe: Recipe, images: Splits) -> Result<Self> {
        let device = recipe.device()?;
        let unlabelled = images.train.clone();
        let normalize = recipe.data.normalize(&unlabelled)?;
        let splits = recipe.data.labelled(images, recipe.seed)?;
        let input_dim = recipe.augment.shape(splits.train.shape())?;
        let classes = splits.train.classes().len();
        let mut model = recipe.model.build(input_dim, classes, recipe.seed)?;
        nn::to_device(&mut *model, device)?;
        Ok(Run {
            recipe,
            splits,
            unlabelled,
            normalize,
            model,
        })
    }

    /// The run that a folder holds, its network with the best epoch's weights; `overrides` change its
    /// recipe, such as the device or the images' folder.
    pub fn open(dir: impl AsRef<Path>, overrides: &[(String, String)]) -> Result<Self> {
        let dir = dir.as_ref();
        let mut run = Run::new(Recipe::load(dir.join(RECIPE), overrides)?)?;
        load_state_dict_file(dir.join(BEST), &mut *run.model)?;
        Ok(run)
    }

    /// Train in the folder `dir`; with `resume` go on from the checkpoint in it. Without, a folder
    /// that holds a run already is an [`Error::Config`]: nothing that was saved is lost. Where `stop`
    /// is set, training ends with a checkpoint and [`Outcome::Interrupted`]; else the network has
    /// the best epoch's weights at the end, the history the accuracies of all images, and the folder
    /// [a page](report::write) by the test images.
    ///
    /// A recipe's [`Pretrain`](crate::train::Pretrain) comes first, or goes on first; the history is
    /// that of the stage where training ended.
    pub fn train(
        &mut self,
        dir: impl AsRef<Path>,
        resume: bool,
        stop: Arc<AtomicBool>,
    ) -> Result<(Outcome, History)> {
        self.train_observed(dir, resume, stop, None)
    }

    /// [`train`](Self::train), shown to `observer` as it goes.
    pub fn train_observed(
        &mut self,
        dir: impl AsRef<Path>,
        resume: bool,
        stop: Arc<AtomicBool>,
        observer: Option<&mut dyn Observer>,
    ) -> Result<(Outcome, History)> {
        let dir = dir.as_ref();
        let device = nn::device(&mut *self.model);
        device.reset_peak()?;
        let checkpoint = dir.join(CHECKPOINT);
        if !resume && is_begun(dir) {
            let why = format!(
                "{} holds a run; expected --resume, or another folder",
                dir.display()
            );
            return Err(Error::config("out", why));
        }
        let pretrain = self.recipe.pretraining().cloned();
        let goes_on = resume && (checkpoint.exists() || pretrain.is_none());
        if goes_on {
            self.check_pretrained(dir)?;
        }
        if let Some(pretrain) = pretrain {
            if !goes_on {
                // a mistake in the second stage's settings is not to come out after the first one
                let data = self.data(&self.splits.train, &self.recipe.augment);
                solver(
                    &self.recipe,
                    &self.recipe.train,
                    data,
                    dir,
                    &mut *self.model,
                )?
                .check_evaluation()?;
                let (outcome, history) = self.pretrain(&pretrain, dir, resume, stop.clone())?;
                if outcome == Outcome::Interrupted {
                    return Ok((outcome, history));
                }
            }
            pretrain.freeze(&mut *self.model);
        }
        let recipe = &self.recipe;
        let input = Input::of(self);
        let data = self.data(&self.splits.train, &recipe.augment);
        let mut solver =
            solver(recipe, &recipe.train, data, dir, &mut *self.model)?.with_stop(stop);
        if let Some(observer) = observer {
            solver = solver.with_observer(observer);
        }
        if goes_on {
            solver.resume(&checkpoint)?;
        }
        write_recipe(dir, recipe)?;
        input.save(dir)?;
        let outcome = solver.train()?;
        if outcome != Outcome::Interrupted {
            solver.report(None)?;
        }
        let mut history = solver.history().clone();
        drop(solver);
        if outcome != Outcome::Interrupted {
            history.memory = device.memory_stats()?.peak_bytes;
            save_state_dict(dir.join(BEST), &mut *self.model)?;
            let judged = self.eval("test", |_| ())?;
            history.test_acc = Some(judged.confusion.accuracy());
            history.save(dir)?;
            judged.save(dir)?;
            report::write(dir, self, &judged)?;
        }
        Ok((outcome, history))
    }

    /// What a stage learns from and is judged by.
    pub(super) fn data(&self, train: &Dataset, augment: &Augment) -> SolverData {
        SolverData {
            train: train.clone(),
            val: self.splits.val.clone(),
            normalize: self.normalize.clone(),
            augment: augment.clone(),
        }
    }

    /// The images of `split`, `train`, `val` or `test`.
    pub fn images(&self, split: &str) -> Result<&Dataset> {
        match split {
            "train" => Ok(&self.splits.train),
            "val" => Ok(&self.splits.val),
            "test" => Ok(&self.splits.test),
            _ => {
                let why = format!("{split:?}; expected train, val or test");
                Err(Error::config("split", why))
            }
        }
    }

    /// Judge the network by the images of `split`, `train`, `val` or `test`: the meters, which `see`
    /// is shown after each batch, and which class is taken for which.
    pub fn eval(&mut self, split: &str, mut see: impl FnMut(&Meters)) -> Result<Judged> {
        let data = &self.images(split)?.clone();
        let recipe = &self.recipe;
        let _products = autocast(recipe.train.autocast.dtype())?;
        let mut meters = Meters::new(split, data, nn::device(&mut *self.model))?;
        let loss = recipe.train.loss.build(recipe.train.label_smoothing)?;
        let mut confusion = Confusion::new(data.classes());
        let mut predicted = Vec::with_capacity(data.len());
        let mut start = Instant::now();
        evaluate(
            &mut *self.model,
            data,
            (&self.normalize, &recipe.evaluation),
            recipe.train.batch_size,
            |scores, labels| {
                let [n, classes] = scores.dims("eval", "scores (N, C)")?;
                let right = [1, 5.min(classes)].map(|k| topk_correct(scores, labels, k));
                let [top1, top5] = right;
                let (loss, right) = (loss(scores, labels)?.item()?, [top1?, top5?]);
                meters.add(n, loss, right, start.elapsed().as_secs_f64())?;
                // not before the time is taken
                for row in scores.to_vec::<f32>()?.chunks_exact(classes) {
                    let class = greatest(row);
                    confusion.add(data.label(predicted.len()), class)?;
                    predicted.push(class);
                }
                see(&meters);
                start = Instant::now();
                Ok(())
            },
        )?;
        Ok(Judged {
            meters,
            confusion,
            predicted,
        })
    }
}

/// A stage's Solver, whose files are in `dir`.
pub(super) fn solver<'m>(
    recipe: &Recipe,
    train: &SolverConfig,
    data: SolverData,
    dir: &Path,
    model: &'m mut dyn Module,
) -> Result<Solver<'m>> {
    let config = SolverConfig {
        seed: recipe.seed,
        checkpoint_dir: Some(dir.to_path_buf()),
        ..train.clone()
    };
    let solver = Solver::new(model, data, config)?.with_recorded_config(serde_json::json!(recipe));
    match recipe.evaluation.is_empty() {
        true => Ok(solver),
        false => solver.with_evaluation(recipe.evaluation.clone()),
    }
}

/// Write `recipe.toml` into a run's folder, which is made where there is none.
pub(super) fn write_recipe(dir: &Path, recipe: &Recipe) -> Result<()> {
    files::create_dir(dir)?;
    let (version, text) = (env!("CARGO_PKG_VERSION"), recipe.to_toml()?);
    files::write_atomic(dir.join(RECIPE), |w| {
        write!(w, "# made by cotangent {version}\n{text}")
    })
}

/// Whether a folder holds a run, of two stages the first one at least: what no other run may be
/// written over, and what can go on.
pub(super) fn is_begun(dir: &Path) -> bool {
    let first = dir.join(PRETRAIN);
    [dir, &first]
        .iter()
        .any(|d| d.join(CHECKPOINT).exists() || d.join(BEST).exists())
}

/// Where the greatest score is; of equal ones the first.
pub(super) fn greatest<T: PartialOrd>(row: &[T]) -> usize {
    let better = |best: usize, i: usize| if row[i] > row[best] { i } else { best };
    (0..row.len()).fold(0, better)
}

/// A flag for [`Solver::with_stop`] that Ctrl-C and a request to terminate set; the second of them ends
/// the program at once. For a program's `main`, once: a second call is an [`Error::Config`].
pub fn stop_on_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let on_signal = move || {
        // the second signal does not wait for the step to end
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    };
    ctrlc::set_handler(on_signal).map_err(|e| Error::config("ctrl-c", e.to_string()))?;
    Ok(stop)
}

/// The folder of a recipe's run, where none is named.
pub fn default_dir(recipe: &Recipe) -> PathBuf {
    Path::new("runs").join(recipe.title())
}

/// What an evaluation found.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Means over all images.
    pub meters: Meters,
    /// Which class is taken for which.
    pub confusion: Confusion,
    /// The class that each image is taken for.
    pub predicted: Vec<usize>,
}

impl Judged {
    /// Write `eval_SPLIT.json` and `confusion_SPLIT.csv` into a folder.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let (dir, split) = (dir.as_ref(), &self.meters.split);
        self.confusion
            .save_csv(dir.join(format!("confusion_{split}.csv")))?;
        files::write_atomic(dir.join(format!("eval_{split}.json")), |w| {
            serde_json::to_writer_pretty(&mut *w, &self.meters)?;
            w.write_all(b"\n")
        })
    }
}

/// What an evaluation has found so far: means over the images that were seen.
#[derive(Clone, Debug, Serialize)]
pub struct Meters {
    /// Which images.
    pub split: String,
    /// How many were seen.
    pub images: usize,
    /// How many there are.
    pub total: usize,
    /// The mean loss.
    pub loss: f64,
    /// The share that is right.
    pub acc1: f64,
    /// The share whose class is among the five highest scores, or among all of fewer classes.
    pub acc5: f64,
    /// Seconds a batch, the loading of its images among them.
    pub batch_seconds: f64,
    /// The most bytes that tensors held on the device at once, the network's among them.
    pub memory: usize,
    #[serde(skip)]
    batches: usize,
    #[serde(skip)]
    device: Device,
}

impl Meters {
    fn new(split: &str, data: &Dataset, device: Device) -> Result<Self> {
        device.reset_peak()?;
        Ok(Meters {
            split: split.into(),
            images: 0,
            total: data.len(),
            loss: 0.0,
            acc1: 0.0,
            acc5: 0.0,
            batch_seconds: 0.0,
            memory: 0,
            batches: 0,
            device,
        })
    }

    /// A batch of `n` images, its mean loss and how many are right.
    fn add(&mut self, n: usize, loss: f64, right: [usize; 2], seconds: f64) -> Result<()> {
        let before = self.images as f64;
        self.images += n;
        let after = self.images as f64;
        let mean = |mean: f64, sum: f64| (mean * before + sum) / after;
        self.loss = mean(self.loss, loss * n as f64);
        self.acc1 = mean(self.acc1, right[0] as f64);
        self.acc5 = mean(self.acc5, right[1] as f64);
        self.batches += 1;
        self.batch_seconds += (seconds - self.batch_seconds) / self.batches as f64;
        self.memory = self.device.memory_stats()?.peak_bytes;
        Ok(())
    }
}

/// One line for people.
impl std::fmt::Display for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} [{} / {}] loss {:.4}  acc1 {:.2} %  acc5 {:.2} %  {:.3} s a batch  {:.0} MB",
            self.split,
            self.images,
            self.total,
            self.loss,
            100.0 * self.acc1,
            100.0 * self.acc5,
            self.batch_seconds,
            self.memory as f64 / 1e6,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::events::EVENTS;

    const TEXT: &str = "[data]\nname = \"embedded\"\ntrain_samples = 60\ntest_samples = 40\n\
        [model]\nname = \"three_layer\"\nnum_filters = 4\nhidden_dim = 8\n\
        [train]\nupdate_rule = \"adam\"\nnum_epochs = 2\nbatch_size = 20\nverbose = false\n\
        num_val_samples = 30";

    fn run() -> Result<Run> {
        Run::new(Recipe::parse(TEXT, &[])?)
    }

    #[test]
    fn a_folder_holds_a_run_and_gives_it_back() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        let mut first = run()?;
        let (outcome, history) = first.train(&out, false, Arc::default())?;
        assert_eq!((outcome, history.epochs), (Outcome::Finished, 2));
        for name in [
            RECIPE,
            BEST,
            CHECKPOINT,
            "history.json",
            "history.csv",
            "input.json",
            EVENTS,
            "loss.svg",
            "loss.png",
            "accuracy.svg",
            "accuracy.png",
            "epoch_loss.svg",
            "confusion_test.csv",
            report::REPORT,
        ] {
            assert!(out.join(name).exists(), "{name}");
        }
        let mut shown = 0;
        let mut opened = Run::open(&out, &[])?;
        assert_eq!(opened.recipe, first.recipe);
        let judged = opened.eval("test", |_| shown += 1)?;
        let (found, confusion) = (&judged.meters, &judged.confusion);
        assert_eq!((confusion.total(), judged.predicted.len()), (40, 40));
        assert!((confusion.accuracy() - found.acc1).abs() < 1e-12);
        assert_eq!((shown, found.images, found.total), (2, 40, 40));
        assert!((found.acc1 - history.test_acc.unwrap()).abs() < 1e-12);
        assert_eq!(History::load(&out)?.test_acc, history.test_acc);
        assert!(history.memory > 4 * nn::parameter_count(&mut *opened.model));
        assert!(found.acc5 >= found.acc1 && found.loss > 0.0 && found.memory > 0);
        judged.save(&out)?;
        let saved = std::fs::read_to_string(out.join("eval_test.json")).unwrap();
        assert!(saved.contains("\"acc5\""), "{saved}");
        assert!(opened.eval("tset", |_| ()).is_err());
        // what is there is not written over
        let e = run()?.train(&out, false, Arc::default()).unwrap_err();
        assert!(e.to_string().contains("holds a run"), "{e}");
        Ok(())
    }

    /// A stop before the last epoch, so that there are best weights and no curves yet.
    #[test]
    fn a_run_that_goes_on_is_judged_too() -> Result<()> {
        struct StopAfterOne(Arc<AtomicBool>);
        impl Observer for StopAfterOne {
            fn after_epoch(&mut self, _: usize, _: &mut dyn Module) -> Result<()> {
                self.0.store(true, Ordering::Relaxed);
                Ok(())
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let mut observer = StopAfterOne(stop.clone());
        let (outcome, _) = run()?.train_observed(dir.path(), false, stop, Some(&mut observer))?;
        assert_eq!(outcome, Outcome::Interrupted);
        let mut part = Run::open(dir.path(), &[])?;
        let judged = part.eval("val", |_| ())?;
        let page = report::write(dir.path(), &part, &judged)?;
        assert!(
            std::fs::read_to_string(page)
                .unwrap()
                .contains("1, the best was the 1.")
        );
        Ok(())
    }

    #[test]
    fn a_network_is_made_for_the_images_that_it_sees() -> Result<()> {
        // resized to 20, cropped to 16; a three-layer network fits one size alone
        let cropped = TEXT.replace("[model]", "size = 20\n[model]")
            + "\n[augment]\ntransforms = [{ RandomCrop = { size = [16, 16], padding = 0, fill = \"Mean\" } }]\n\
               [[evaluation]]\nCenterCrop = { size = [16, 16] }";
        let mut run = Run::new(Recipe::parse(
            &cropped,
            &[("num_epochs".into(), "1".into())],
        )?)?;
        assert_eq!(run.splits.test.shape(), [3, 20, 20]);
        let dir = tempfile::tempdir().unwrap();
        let (outcome, _) = run.train(dir.path().join("run"), false, Arc::default())?;
        assert_eq!(outcome, Outcome::Finished);
        Ok(())
    }

    #[test]
    fn a_stopped_run_goes_on_to_the_bits_of_one_that_was_not() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let whole = run()?
            .train(dir.path().join("whole"), false, Arc::default())?
            .1;
        let part = dir.path().join("part");
        let set = Arc::new(AtomicBool::new(true));
        let (outcome, _) = run()?.train(&part, false, set)?;
        assert_eq!(outcome, Outcome::Interrupted);
        assert!(!part.join(report::REPORT).exists());
        let (outcome, history) = run()?.train(&part, true, Arc::default())?;
        assert_eq!(outcome, Outcome::Finished);
        assert_eq!(history.loss_history, whole.loss_history);
        assert_eq!(history.test_acc, whole.test_acc);
        Ok(())
    }
}
