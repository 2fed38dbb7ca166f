//! What was trained, in use: the classes of image files, and of images of the data set.

use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::autograd::autocast;
use crate::data::{Dataset, Normalize, read_image};
use crate::error::{Error, Result};
use crate::nn::{self, Module};
use crate::shape::Shape;
use crate::train::judge::evaluate;
use crate::train::run::{BEST, RECIPE, greatest};
use crate::train::{Recipe, Run, files, load_state_dict_file};

const INPUT: &str = "input.json";

/// All of a data set that its network needs in use: a run's folder holds it, so that neither the
/// images nor the time to read them are wanted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// An image's [C, H, W], before the recipe's evaluation transforms.
    pub shape: [usize; 3],
    /// The classes' names.
    pub classes: Vec<String>,
    /// How bytes become numbers.
    pub normalize: Normalize,
}

impl Input {
    /// A run's.
    pub fn of(run: &Run) -> Self {
        let train = &run.splits.train;
        Input {
            shape: train.shape(),
            classes: train.classes().to_vec(),
            normalize: run.normalize.clone(),
        }
    }

    /// Write `input.json` into a folder.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        files::write_atomic(dir.as_ref().join(INPUT), |w| {
            serde_json::to_writer(&mut *w, self)?;
            w.write_all(b"\n")
        })
    }

    /// What a folder's `input.json` says; `None` where there is none.
    pub fn load(dir: impl AsRef<Path>) -> Result<Option<Self>> {
        let path = dir.as_ref().join(INPUT);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&path)(e)),
        };
        let read = serde_json::from_slice(&text);
        read.map(Some)
            .map_err(|e| Error::data(&path, e.to_string()))
    }

    /// Images whose classes nobody has said.
    fn images(&self, name: &Path, bytes: Vec<u8>) -> Result<Dataset> {
        let n = Shape::new(&self.shape).map_or(0, |s| bytes.len() / s.numel().max(1));
        let classes: Vec<&str> = self.classes.iter().map(String::as_str).collect();
        let name = name.display().to_string();
        Dataset::new(name, bytes, vec![0; n], self.shape, &classes)
    }
}

/// A trained network that says what is in an image.
pub struct Predictor {
    /// Every setting of its run.
    pub recipe: Recipe,
    /// What it takes, and the classes' names.
    pub input: Input,
    /// The network, with the best epoch's weights.
    pub model: Box<dyn Module>,
}

/// An image of a data set, and what it is taken for.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its bytes (C, H, W).
    pub image: Vec<u8>,
    /// Its class.
    pub truth: usize,
    /// The class with the highest score.
    pub predicted: usize,
    /// That class's probability, by softmax of the scores.
    pub probability: f64,
}

impl Sample {
    /// Whether it is taken for what it is.
    pub fn is_right(&self) -> bool {
        self.truth == self.predicted
    }
}

impl Predictor {
    /// The network of the run that a folder holds; `overrides` change its recipe, such as the device.
    /// The data set is read only for a folder without `input.json`.
    pub fn open(dir: impl AsRef<Path>, overrides: &[(String, String)]) -> Result<Self> {
        let dir = dir.as_ref();
        let Some(input) = Input::load(dir)? else {
            return Ok(Self::of(Run::open(dir, overrides)?));
        };
        let recipe = Recipe::load(dir.join(RECIPE), overrides)?;
        let device = recipe.device()?;
        // what no data set could be is an error that names the file
        input.images(&dir.join(INPUT), Vec::new())?;
        let input_dim = recipe.augment.shape(input.shape)?;
        let mut model = (recipe.model).build(input_dim, input.classes.len(), recipe.seed)?;
        nn::to_device(&mut *model, device)?;
        load_state_dict_file(dir.join(BEST), &mut *model)?;
        Ok(Predictor {
            recipe,
            input,
            model,
        })
    }

    /// A run's network.
    pub fn of(run: Run) -> Self {
        Predictor {
            input: Input::of(&run),
            recipe: run.recipe,
            model: run.model,
        }
    }

    /// The classes of a JPEG or PNG file ([`read_image`]) with their probabilities, from the most
    /// probable down: the softmax of the scores, whatever loss the network was trained by.
    pub fn classify(&mut self, path: impl AsRef<Path>) -> Result<Vec<(&str, f64)>> {
        let path = path.as_ref();
        let image = read_image(path, self.input.shape)?;
        let image = self.input.images(path, image)?;
        let found = self.probabilities(&image)?.concat();
        let names = self.input.classes.iter().map(String::as_str);
        let mut ranked: Vec<_> = names.zip(found).collect();
        // of equal ones the first stays first
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(ranked)
    }

    /// The first `count` images of `data`, or of those that are taken for another class with
    /// `only_wrong`, and how many were looked at to find them.
    pub fn sample(
        &mut self,
        data: &Dataset,
        count: usize,
        only_wrong: bool,
    ) -> Result<(Vec<Sample>, usize)> {
        let (mut samples, mut seen) = (Vec::new(), 0);
        while seen < data.len() && samples.len() < count {
            let end = data.len().min(seen + self.recipe.train.batch_size);
            for found in self.probabilities(&data.range(seen..end)?)? {
                if samples.len() == count {
                    break;
                }
                let predicted = greatest(&found);
                let sample = Sample {
                    image: data.image(seen).to_vec(),
                    truth: data.label(seen),
                    predicted,
                    probability: found.get(predicted).copied().unwrap_or(0.0),
                };
                seen += 1;
                if !(only_wrong && sample.is_right()) {
                    samples.push(sample);
                }
            }
        }
        Ok((samples, seen))
    }

    /// The softmax of each image's scores.
    fn probabilities(&mut self, data: &Dataset) -> Result<Vec<Vec<f64>>> {
        let (recipe, classes) = (&self.recipe, self.input.classes.len());
        let _products = autocast(recipe.train.autocast.dtype())?;
        let mut all = Vec::with_capacity(data.len());
        evaluate(
            &mut *self.model,
            data,
            (&self.input.normalize, &recipe.evaluation),
            recipe.train.batch_size,
            |scores, _| {
                let [_, found] = scores.dims("predict", "scores (N, C)")?;
                if found != classes {
                    let why = format!("{found} scores an image; expected {classes}, a class each");
                    return Err(Error::config("model", why));
                }
                let scores = scores.to_vec::<f32>()?;
                all.extend(scores.chunks_exact(classes).map(softmax));
                Ok(())
            },
        )?;
        Ok(all)
    }
}

/// In f64, so that scores which differ at all have probabilities that do: the order stays.
fn softmax(scores: &[f32]) -> Vec<f64> {
    let greatest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let powers: Vec<f64> = scores
        .iter()
        .map(|&s| (s as f64 - greatest).exp())
        .collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::train::Confusion;
    use std::path::PathBuf;
    use std::sync::Arc;

    /// A run in the folder `dir`.
    pub(in crate::train) fn trained(dir: &Path, seed: u64) -> Result<Run> {
        let text = "[data]\nname = \"embedded\"\ntrain_samples = 40\ntest_samples = 30\n\
            [model]\nname = \"three_layer\"\nnum_filters = 3\nfilter_size = 5\nhidden_dim = 4\nweight_scale = 0.1\n\
            [train]\nnum_epochs = 1\nbatch_size = 20\nverbose = false\nnum_val_samples = 20";
        let recipe = Recipe::parse(text, &[("seed".into(), seed.to_string())])?;
        let mut run = Run::new(recipe)?;
        run.train(dir, false, Arc::default())?;
        Ok(run)
    }

    /// An image's bytes as a PNG file.
    fn png(dir: &Path, name: &str, image: &[u8]) -> PathBuf {
        let bytes = crate::train::picture::png_bytes(image, [3, 32, 32]).unwrap();
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn files_get_the_classes_that_the_data_sets_images_get() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let mut run = trained(dir.path(), 0)?;
        let judged = run.eval("test", |_| ())?;
        let test = run.splits.test.clone();
        // without the data set: another would be noticed
        let elsewhere = [("data.dir".into(), "/nonexistent".into())];
        let mut predictor = Predictor::open(dir.path(), &elsewhere)?;
        for (i, &class) in judged.predicted.iter().enumerate().take(5) {
            let path = png(dir.path(), "i.png", test.image(i));
            let ranked = predictor.classify(path)?;
            assert_eq!(
                (ranked.len(), ranked[0].0),
                (10, &test.classes()[class][..])
            );
            let sum: f64 = ranked.iter().map(|r| r.1).sum();
            assert!((sum - 1.0).abs() < 1e-12, "{ranked:?}");
            assert!(ranked.is_sorted_by(|a, b| a.1 >= b.1));
        }
        // a folder from before that file was written: the data set tells the same
        let input = Input::load(dir.path())?;
        std::fs::remove_file(dir.path().join(INPUT)).unwrap();
        assert_eq!(Predictor::open(dir.path(), &[])?.input, input.unwrap());
        Ok(())
    }

    #[test]
    fn nearly_equal_scores_keep_their_order() {
        let found = softmax(&[0.0, 1e-12, -1e-12]);
        assert!(found[1] > found[0] && found[0] > found[2], "{found:?}");
        let found = softmax(&[1000.0, 1000.0, -1000.0]);
        assert_eq!(found, [0.5, 0.5, 0.0]);
    }

    #[test]
    fn samples_are_the_first_or_the_first_wrong_ones() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let mut run = trained(dir.path(), 0)?;
        let Confusion { counts, .. } = run.eval("test", |_| ())?.confusion;
        let right: usize = (0..10).map(|i| counts[i][i]).sum();
        let test = run.splits.test.clone();
        let mut predictor = Predictor::of(run);
        let (some, seen) = predictor.sample(&test, 7, false)?;
        assert_eq!((some.len(), seen), (7, 7));
        for (i, sample) in some.iter().enumerate() {
            assert_eq!(sample.image, test.image(i));
            assert_eq!(sample.truth, test.label(i));
            assert!((0.1..=1.0).contains(&sample.probability), "{sample:?}");
        }
        let (all, seen) = predictor.sample(&test, 100, false)?;
        assert_eq!((all.len(), seen), (30, 30));
        assert_eq!(all.iter().filter(|s| s.is_right()).count(), right);
        let (wrong, seen) = predictor.sample(&test, 100, true)?;
        assert_eq!((wrong.len(), seen), (30 - right, 30));
        assert!(wrong.len() > 3 && wrong.iter().all(|s| !s.is_right()));
        let (few, seen) = predictor.sample(&test, 3, true)?;
        assert_eq!(
            (&few[..], test.image(seen - 1)),
            (&wrong[..3], &wrong[2].image[..])
        );
        Ok(())
    }

    #[test]
    fn what_is_no_run_or_no_image_is_named() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let none = dir.path().join("none");
        let error = |at: &Path| Predictor::open(at, &[]).err().unwrap().to_string();
        assert!(
            error(&none).contains("none/recipe.toml"),
            "{}",
            error(&none)
        );
        let run = trained(dir.path(), 0)?;
        let whole = png(dir.path(), "whole.png", run.splits.test.image(0));
        let bytes = std::fs::read(&whole).unwrap();
        let part = dir.path().join("part.png");
        std::fs::write(&part, &bytes[..bytes.len() / 2]).unwrap();
        let mut predictor = Predictor::open(dir.path(), &[])?;
        for (path, why) in [
            (part, "part.png: does not decode: "),
            (dir.path().join(RECIPE), "is neither a JPEG nor a PNG file"),
            (none, "none: "),
        ] {
            let e = predictor.classify(path).unwrap_err().to_string();
            assert!(e.contains(why), "{e}");
        }
        assert!(predictor.classify(whole).is_ok());
        // of another network, and damaged
        let path = dir.path().join(INPUT);
        let mut other = predictor.input.clone();
        other.classes.pop();
        other.save(dir.path())?;
        assert!(error(dir.path()).contains("best.safetensors"));
        other.shape = [0; 3];
        other.save(dir.path())?;
        assert!(error(dir.path()).contains("input.json: 0 bytes"));
        std::fs::write(&path, "{\"shape\": ").unwrap();
        assert!(error(dir.path()).contains("input.json: EOF"));
        Ok(())
    }
}
