//! The first of a run's two stages: an autoencoder learns from all training images to give them back,
//! without their labels, and the classifier goes on with its encoder (Masci et al. 2011).
//!
//! The folder `pretrain` in the run's own has what a stage has (checkpoint, history, curves, the best
//! epoch's weights) and `reconstructions.png`: validation images, the same with holes, and what the
//! autoencoder makes of those.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::autograd::no_grad;
use crate::data::{Augment, Loader, Normalize};
use crate::error::{Error, Result};
use crate::models::registry::autoencoder_of;
use crate::nn::{self, Mode, Module};
use crate::train::judge::pairs;
use crate::train::picture::save_pictures;
use crate::train::run::{BEST, CHECKPOINT, RECIPE, solver, write_recipe};
use crate::train::{
    History, Loss, ModelRecipe, Outcome, Recipe, Run, SolverConfig, save_curves, save_state_dict,
};

/// The stage's folder in the run's.
pub(super) const PRETRAIN: &str = "pretrain";

/// What the names of the encoder's parameters begin with, in both networks.
const ENCODER: &str = "encoder.";

/// Images that are shown.
const PICTURES: usize = 8;

/// A recipe's stage before: the autoencoder of the recipe's network, by settings of its own. The
/// second stage needs `data.label_fraction` of the labels, 1 for all of them.
///
/// ```
/// # use cotangent::train::Recipe;
/// let text = r#"
///     data = { name = "embedded", label_fraction = 0.1 }
///     model.name = "autoencoder_classifier"
///     [pretrain]
///     train = { update_rule = "adam", num_epochs = 25 }
///     augment = { flip = 0.5, reconstruct = { holes = 12, doubled = true } }
/// "#;
/// let flags = [("num-epochs", "3"), ("pretrain.train.num_epochs", "2"), ("holes", "4")];
/// let flags = flags.map(|(key, value)| (key.into(), value.into()));
/// let recipe = Recipe::parse(text, &flags)?;
/// let pretrain = recipe.pretraining().unwrap();
/// assert_eq!((recipe.train.num_epochs, pretrain.train.num_epochs), (3, 2));
/// assert_eq!(pretrain.augment.reconstruct.map(|r| r.holes), Some(4));
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pretrain {
    /// Off, the run is that of the second stage alone: what it is to be compared with.
    pub enabled: bool,
    /// In the second stage, leave the encoder's parameters as they are; the statistics of its norms
    /// still follow the images.
    pub freeze: bool,
    /// How the autoencoder is trained; the loss is `mse` where none is named.
    #[serde(deserialize_with = "comparing_images")]
    pub train: SolverConfig,
    /// Random changes of the images; `reconstruct` says which holes are made in them.
    pub augment: Augment,
}

impl Default for Pretrain {
    fn default() -> Self {
        Pretrain {
            enabled: true,
            freeze: false,
            train: SolverConfig {
                loss: Loss::Mse,
                ..SolverConfig::default()
            },
            augment: Augment {
                reconstruct: Some(Default::default()),
                ..Augment::none()
            },
        }
    }
}

/// Settings of a Solver whose loss, where none is named, is the mean squared error.
fn comparing_images<'de, D: Deserializer<'de>>(
    d: D,
) -> std::result::Result<SolverConfig, D::Error> {
    let mut settings = serde_json::Map::deserialize(d)?;
    settings
        .entry("loss")
        .or_insert_with(|| serde_json::json!(Loss::Mse));
    serde_json::from_value(settings.into()).map_err(de::Error::custom)
}

impl Pretrain {
    /// An [`Error::Config`] where it does not fit the rest of the recipe.
    pub(super) fn check(&self, recipe: &Recipe) -> Result<()> {
        autoencoder_of(&recipe.model.name)?;
        if recipe.data.label_fraction.is_none() {
            let why = "data.label_fraction is missing; expected the share of the labels that the \
                       second stage knows, 1 for all";
            return Err(Error::config(PRETRAIN, why));
        }
        Ok(())
    }

    /// Freeze the classifier's encoder, if asked for.
    pub(super) fn freeze(&self, classifier: &mut dyn Module) {
        nn::set_requires_grad(classifier, false, |name| {
            self.freeze && name.starts_with(ENCODER)
        });
    }
}

impl Run {
    /// Train the autoencoder, with `resume` from its checkpoint on, and unless stopped give its best
    /// encoder to the classifier. How it ended, and its history.
    pub(super) fn pretrain(
        &mut self,
        pretrain: &Pretrain,
        dir: &Path,
        resume: bool,
        stop: Arc<AtomicBool>,
    ) -> Result<(Outcome, History)> {
        let recipe = &self.recipe;
        let named = ModelRecipe {
            name: autoencoder_of(&recipe.model.name)?.into(),
            ..recipe.model.clone()
        };
        let input_dim = pretrain.augment.shape(self.unlabelled.shape())?;
        let classes = self.unlabelled.classes().len();
        let mut model = named.build(input_dim, classes, recipe.seed)?;
        nn::to_device(&mut *model, nn::device(&mut *self.model))?;
        let augment = Augment {
            reconstruct: Some(pretrain.augment.reconstruct.unwrap_or_default()),
            ..pretrain.augment.clone()
        };
        let data = self.data(&self.unlabelled, &augment);
        let shown = {
            let n = PICTURES.min(data.val.len());
            let config = SolverConfig {
                batch_size: n,
                seed: recipe.seed,
                ..SolverConfig::default()
            };
            pairs(&data, data.val.range(0..n)?, &recipe.evaluation, &config)?
        };
        let (normalize, folder) = (data.normalize.clone(), dir.join(PRETRAIN));
        let mut solver =
            solver(recipe, &pretrain.train, data, &folder, &mut *model)?.with_stop(stop);
        if resume {
            solver.resume(folder.join(CHECKPOINT))?;
        }
        write_recipe(dir, recipe)?;
        let outcome = solver.train()?;
        let history = solver.history().clone();
        drop(solver);
        if outcome != Outcome::Interrupted {
            save_curves(&folder, &history)?;
            save_state_dict(folder.join(BEST), &mut *model)?;
            let path = folder.join("reconstructions.png");
            save_reconstructions(&path, &mut *model, &shown, &normalize)?;
            self.take_encoder(&mut *model)?;
        }
        Ok((outcome, history))
    }

    /// Copy the encoder's parameters and statistics, all of them, into the classifier.
    fn take_encoder(&mut self, autoencoder: &mut dyn Module) -> Result<()> {
        let mut state = nn::state_dict(autoencoder);
        state.retain(|(name, _)| name.starts_with(ENCODER));
        let keys = nn::load_state_dict_partly(&mut *self.model, &state)?;
        let missing = keys.missing_keys.iter().find(|k| k.starts_with(ENCODER));
        match keys.unexpected_keys.first().or(missing) {
            Some(name) => {
                let why = format!("{name} is in one network only; expected one encoder in both");
                Err(Error::config(PRETRAIN, why))
            }
            None => Ok(()),
        }
    }

    /// An [`Error::Config`] unless the run in `dir`, whose first stage is over or which has none, was
    /// begun with this recipe's first stage.
    pub(super) fn check_pretrained(&self, dir: &Path) -> Result<()> {
        let ours = self.recipe.pretraining();
        if ours.is_none() && !dir.join(PRETRAIN).exists() {
            return Ok(());
        }
        let theirs = Recipe::load(dir.join(RECIPE), &[])?;
        if theirs.pretraining() != ours {
            let dir = dir.display();
            let why = format!("is not as in {dir}, where that stage is over; expected the same");
            return Err(Error::config(PRETRAIN, why));
        }
        Ok(())
    }
}

/// Three rows of pictures: images, the same with holes, and what the model makes of those.
fn save_reconstructions(
    path: &Path,
    model: &mut dyn Module,
    images: &Loader,
    normalize: &Normalize,
) -> Result<()> {
    let _quiet = no_grad();
    let shape @ [c, h, w] = images.image_shape();
    for feed in images.epoch_on(nn::device(model), 0, 0).take(1) {
        let (masked, clean) = feed?.tensors()?;
        let found = model.forward(&masked, Mode::Eval)?;
        let mut rows = Vec::with_capacity(3 * clean.numel());
        for row in [&clean, &masked, &found] {
            rows.extend(normalize.undo(&row.to_vec::<f32>()?, shape)?);
        }
        let n = images.dataset().len();
        save_pictures(path, &rows, (3 * n, c, h, w), n, 2)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Dataset, Splits, Transform, synthetic};
    use crate::tensor::Tensor;
    use crate::train::picture::tests::decode;
    use crate::train::{Checkpoint, LossFn, Solver, SolverData};
    use std::sync::atomic::{AtomicUsize, Ordering};

    const TEXT: &str = "seed = 3\n\
        data = { name = \"embedded\", train_samples = 24, test_samples = 8, label_fraction = 0.5 }\n\
        model = { name = \"autoencoder_classifier\", stem_width = 2, widths = [2, 4], decoder_widths = [2] }\n\
        train = { update_rule = \"adam\", num_epochs = 1, batch_size = 4, verbose = false, num_val_samples = 8 }\n\
        [pretrain]\n\
        train = { update_rule = \"adam\", num_epochs = 2, batch_size = 8, verbose = false, num_val_samples = 8 }\n\
        augment = { flip = 0.5, reconstruct = { holes = 2, hole_size = 8, doubled = true } }\n";

    fn recipe(flags: &[(&str, &str)]) -> Result<Recipe> {
        let own = |(k, v): &(&str, &str)| (k.to_string(), v.to_string());
        Recipe::parse(TEXT, &flags.iter().map(own).collect::<Vec<_>>())
    }

    /// As [`Run::new`], without the thousands of images that nobody would see.
    fn run(flags: &[(&str, &str)]) -> Result<Run> {
        let recipe = recipe(flags)?;
        let splits = Splits {
            train: synthetic(3, 0, 24),
            val: synthetic(3, 1000, 12),
            test: synthetic(3, 2000, 8),
            source: "here".into(),
        };
        Run::on(recipe, splits)
    }

    #[test]
    fn the_first_stage_has_all_images_and_the_second_those_with_labels() -> Result<()> {
        let run = Run::new(recipe(&[])?)?;
        let known = run.splits.train.class_counts();
        let all = run.unlabelled.class_counts();
        assert_eq!(all.iter().sum::<usize>(), 24);
        // half of each class, rounded
        assert!(all.iter().zip(&known).all(|(n, k)| n.div_ceil(2) == *k));
        let data = run.data(&run.splits.train, &Augment::none());
        assert_eq!(data.normalize, Normalize::per_channel(&run.unlabelled)?);
        Ok(())
    }

    fn bits(named: &[(String, Tensor)]) -> Vec<(String, Vec<u32>)> {
        let floats = named.iter().filter(|(_, t)| t.dtype().is_float());
        let mut all: Vec<_> = floats
            .map(|(n, t)| {
                let v = t.to_vec::<f32>().unwrap();
                (n.clone(), v.iter().map(|x| x.to_bits()).collect())
            })
            .collect();
        all.sort();
        all
    }

    /// The bits of what both stages' checkpoints hold.
    type Kept = (Vec<(String, Vec<u32>)>, Vec<u64>, Vec<u64>);
    fn kept(dir: &Path) -> [Kept; 2] {
        [dir.join(PRETRAIN), dir.to_path_buf()].map(|dir| {
            let c = Checkpoint::load(dir.join(CHECKPOINT)).unwrap();
            let to_bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect();
            let h = &c.run.history;
            let tensors = [&c.model[..], &c.best, &c.optimizer].concat();
            (
                bits(&tensors),
                to_bits(&h.loss_history),
                to_bits(&h.val_loss_history),
            )
        })
    }

    #[test]
    fn a_mistake_in_the_second_stage_comes_out_before_the_first() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let crop = "[{ RandomCrop = { size = [24, 24], padding = 0, fill = \"Mean\" } }]";
        let mut run = run(&[("augment.transforms", crop)])?;
        let e = run.train(dir.path(), false, Arc::default()).unwrap_err();
        assert!(e.to_string().contains("those to judge by are of"), "{e}");
        assert!(!dir.path().join(PRETRAIN).exists());
        Ok(())
    }

    #[test]
    fn two_stages_resume_bit_for_bit_in_either() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let [whole, first, second] = ["whole", "first", "second"].map(|n| dir.path().join(n));
        let no_stop = Arc::<AtomicBool>::default;
        let stop = || Arc::new(AtomicBool::new(true));
        let mut straight = run(&[])?;
        let (outcome, history) = straight.train(&whole, false, no_stop())?;
        assert_eq!((outcome, history.epochs), (Outcome::Finished, 1));
        // half of the labels, and all images twice
        assert_eq!(history.loss_history.len(), straight.splits.train.len() / 4);
        let expected = kept(&whole);
        assert_eq!((expected[0].1.len(), expected[0].2.len()), (2 * 48 / 8, 2));
        for name in ["history.csv", "loss.png", "epoch_loss.svg", BEST] {
            assert!(whole.join(PRETRAIN).join(name).exists(), "{name}");
        }
        let (w, h, channels, pixels) = decode(&whole.join(PRETRAIN).join("reconstructions.png"));
        assert_eq!((w, h, channels), (2 * (8 * 33 + 1), 2 * (3 * 33 + 1), 3));
        // the first row is the validation images themselves
        let (y, x) = (2 + 2 * 20, 2 + 2 * 9);
        let clean = straight.splits.val.image(0)[20 * 32 + 9];
        assert_eq!(pixels[(y * w + x) * 3], clean);

        // stopped at once, then killed after an epoch of the first stage
        let (outcome, history) = run(&[])?.train(&first, false, stop())?;
        assert_eq!((outcome, history.epochs), (Outcome::Interrupted, 0));
        assert!(!first.join(CHECKPOINT).exists());
        let e = run(&[])?.train(&first, false, no_stop()).unwrap_err();
        assert!(e.to_string().contains("holds a run"), "{e}");
        let mut short = run(&[("pretrain.train.num_epochs", "1")])?;
        let settings = short.recipe.pretrain.clone().unwrap();
        short.pretrain(&settings, &first, true, no_stop())?;
        let (outcome, _) = run(&[])?.train(&first, true, no_stop())?;
        assert_eq!(outcome, Outcome::Finished);
        assert_eq!(kept(&first), expected);

        // stopped where the second stage begins
        let mut begun = run(&[])?;
        let settings = begun.recipe.pretrain.clone().unwrap();
        begun.pretrain(&settings, &second, false, no_stop())?;
        let (outcome, history) = run(&[])?.train(&second, true, stop())?;
        assert_eq!((outcome, history.epochs), (Outcome::Interrupted, 0));
        assert!(second.join(CHECKPOINT).exists());
        // a first stage that is over cannot become another one
        let e = run(&[("holes", "3")])?.train(&second, true, no_stop());
        assert!(e.unwrap_err().to_string().contains("that stage is over"));
        let mut resumed = run(&[])?;
        resumed.train(&second, true, no_stop())?;
        assert_eq!(kept(&second), expected);
        let weights = |run: &mut Run| bits(&nn::state_dict(&mut *run.model));
        assert_eq!(weights(&mut resumed), weights(&mut straight));
        Ok(())
    }

    #[test]
    fn the_best_encoder_arrives_whole_and_can_be_frozen() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let mut run = run(&[("freeze", "true"), ("pretrain.train.num_epochs", "1")])?;
        let of = |model: &mut dyn Module, what: &str| {
            let mut state = nn::state_dict(model);
            state.retain(|(name, _)| name.starts_with(what));
            bits(&state)
        };
        let before = [ENCODER, "fc."].map(|what| of(&mut *run.model, what));
        let settings = run.recipe.pretrain.clone().unwrap();
        run.pretrain(&settings, dir.path(), false, Arc::default())?;
        let mut learnt = ModelRecipe {
            name: "autoencoder".into(),
            ..run.recipe.model.clone()
        }
        .build(run.unlabelled.shape(), 10, 9)?;
        let best = dir.path().join(PRETRAIN).join(BEST);
        crate::train::load_state_dict_file(best, &mut *learnt)?;
        let encoder = of(&mut *learnt, ENCODER);
        assert_eq!(of(&mut *run.model, ENCODER), encoder);
        assert_ne!(before[0], encoder);
        assert_eq!(before[1], of(&mut *run.model, "fc."));
        // and stays, but for the statistics, where it is frozen
        run.train(dir.path(), true, Arc::default())?;
        let parameters = |model: &mut dyn Module, what: &str| {
            let mut all = nn::named_parameters(model);
            all.retain(|(name, _)| name.starts_with(what));
            bits(&all)
        };
        let frozen = parameters(&mut *run.model, ENCODER);
        assert!(frozen.len() > 8);
        assert_eq!(frozen, parameters(&mut *learnt, ENCODER));
        assert_ne!(parameters(&mut *run.model, "fc."), before[1]);
        Ok(())
    }

    fn solver_data(train: Dataset) -> SolverData {
        SolverData {
            normalize: Normalize::per_channel(&train).unwrap(),
            val: train.clone(),
            augment: Augment {
                transforms: vec![Transform::RandomVerticalFlip { p: 0.5 }],
                ..Pretrain::default().augment
            },
            train,
        }
    }

    fn config(dir: &Path, num_epochs: usize) -> SolverConfig {
        SolverConfig {
            update_rule: "adam".parse().unwrap(),
            batch_size: 4,
            num_epochs,
            checkpoint_dir: Some(dir.into()),
            verbose: false,
            ..Pretrain::default().train
        }
    }

    fn autoencoder() -> Result<Box<dyn Module>> {
        let named = ModelRecipe {
            name: "autoencoder".into(),
            ..recipe(&[])?.model
        };
        named.build([3, 32, 32], 10, 0)
    }

    #[test]
    fn the_error_of_a_reconstruction_falls() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let mut net = autoencoder()?;
        let mut config = config(dir.path(), 12);
        config.optim_config.learning_rate = Some(1e-2);
        let mut data = solver_data(synthetic(0, 0, 8));
        data.augment = Pretrain::default().augment;
        let mut solver = Solver::new(&mut *net, data, config)?;
        solver.train()?;
        let h = solver.history();
        let losses = h.epoch_losses();
        assert!(losses[11] < 0.7 * losses[0], "{losses:?}");
        assert_eq!(h.val_loss_history.len(), 12);
        let least = h.val_loss_history.iter().copied().fold(f64::MAX, f64::min);
        assert_eq!(h.best_val_loss, Some(least));
        assert!(h.train_acc_history.is_empty() && h.val_acc_history.is_empty());
        Ok(())
    }

    #[test]
    fn a_stop_within_an_epoch_goes_on_bit_for_bit() -> Result<()> {
        let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let data = || {
            let mut data = solver_data(synthetic(0, 0, 12));
            if let Some(r) = &mut data.augment.reconstruct {
                (r.holes, r.hole_size) = (3, 6);
            }
            data
        };
        let mut straight = autoencoder()?;
        Solver::new(&mut *straight, data(), config(one.path(), 1))?.train()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, steps) = (stop.clone(), AtomicUsize::new(0));
        let mse = Loss::Mse.build(0.0)?;
        let loss: LossFn = Arc::new(move |images, targets| {
            flag.store(
                steps.fetch_add(1, Ordering::Relaxed) == 1,
                Ordering::Relaxed,
            );
            mse(images, targets)
        });
        let mut part = autoencoder()?;
        let solver = Solver::new(&mut *part, data(), config(two.path(), 1))?;
        let outcome = solver.with_loss(loss).with_stop(stop).train()?;
        assert_eq!(outcome, Outcome::Interrupted);
        let mut resumed = autoencoder()?;
        let mut solver = Solver::new(&mut *resumed, data(), config(two.path(), 1))?;
        solver.resume(two.path().join(CHECKPOINT))?;
        assert_eq!(solver.history().loss_history.len(), 2);
        solver.train()?;
        let [a, b] = [&mut straight, &mut resumed].map(|m| bits(&nn::state_dict(&mut **m)));
        assert_eq!(a, b);
        // with other holes it is another run
        let mut other = data();
        other.augment.reconstruct = Some(Default::default());
        let mut solver = Solver::new(&mut *resumed, other, config(two.path(), 1))?;
        let e = solver.resume(two.path().join(CHECKPOINT)).unwrap_err();
        assert!(
            matches!(&e, Error::Checkpoint { name, .. } if name == "data"),
            "{e}"
        );
        Ok(())
    }

    #[test]
    fn what_makes_no_two_stages_is_refused() -> Result<()> {
        let parse = |from: &str, to: &str| {
            let text = TEXT.replace(from, to);
            assert_ne!(text, TEXT);
            Recipe::parse(&text, &[])
        };
        let refused = |from: &str, to: &str| parse(from, to).unwrap_err().to_string();
        let e = refused("autoencoder_classifier", "deeper");
        assert!(e.contains("\"deeper\" has no encoder"), "{e}");
        let e = refused(", label_fraction = 0.5", "");
        assert!(e.contains("data.label_fraction is missing"), "{e}");
        let e = refused("hole_size", "hole_sise");
        assert!(e.ends_with("the nearest is hole_size"), "{e}");
        let e = refused("num_epochs = 2", "num_epoch = 2");
        assert!(e.ends_with("the nearest is num_epochs"), "{e}");
        let e = refused("[pretrain]\n", "[pretrain]\nfrozen = true\n");
        assert!(e.ends_with("the nearest is freeze"), "{e}");
        let e = refused("num_epochs = 2", "num_epochs = 2, seed = 1");
        assert!(e.contains("a run has one"), "{e}");
        let e = refused("[pretrain]", "augment.reconstruct = {}\n[pretrain]");
        assert!(e.contains("expected under pretrain"), "{e}");
        // what is switched off needs nothing
        assert!(parse("autoencoder_classifier", "deeper").is_err());
        let off = TEXT.replace("[pretrain]\n", "[pretrain]\nenabled = false\n");
        let off = Recipe::parse(&off.replace("autoencoder_classifier", "deeper"), &[])?;
        assert_eq!(off.pretraining(), None);

        let dir = tempfile::tempdir().unwrap();
        for (key, value, why) in [
            (
                "pretrain.train.loss",
                "cross_entropy",
                "loss: \"cross_entropy\"; expected mse",
            ),
            ("pretrain.train.target_accuracy", "0.5", "have no accuracy"),
            (
                "pretrain.train.schedule",
                "{ plateau = { mode = \"max\" } }",
                "mode: ",
            ),
            (
                "pretrain.augment.mix",
                "[{ Mixup = { alpha = 1.0 } }]",
                "mix: ",
            ),
            ("hole_size", "40", "Cutout.length: 40"),
            (
                "pretrain.augment.transforms",
                "[{ CenterCrop = { size = [16, 16] } }]",
                "doubled: true",
            ),
            // the second stage's mistakes come out before the first one begins
            ("batch_size", "25", "batch_size: 25 for"),
        ] {
            let e = run(&[(key, value)])?.train(dir.path(), false, Arc::default());
            let e = e.unwrap_err().to_string();
            assert!(e.contains(why), "{key}: {e}");
        }
        assert!(!dir.path().join(RECIPE).exists());
        Ok(())
    }
}
