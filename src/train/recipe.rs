//! A run as a file: which data, which network, how it is trained, every setting by its name (TOML).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::data::{
    Augment, Dataset, Normalize, Splits, TinyImageNetConfig, Transform, find_cifar10,
    find_fashion_mnist, find_mnist, find_tiny_imagenet, load_cifar10, load_fashion_mnist,
    load_mnist, load_tiny_imagenet, synthetic_splits,
};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::{self, nearest};
use crate::nn::Module;
use crate::train::{Pretrain, SolverConfig};

/// All settings of a run. In a file what is left out has its default, and a key that does not
/// exist is an [`Error::Config`] which names the nearest one that does.
///
/// ```
/// # use cotangent::train::Recipe;
/// let text = r#"
///     seed = 1
///     [data]
///     name = "embedded"
///     [model]
///     name = "resnet18"
///     width = 16                 # any key of the network's own settings
///     [train]                    # the Solver's
///     update_rule = "adamw"
///     num_epochs = 2
///     schedule = { one_cycle = { pct_start = 0.2 } }
///     [augment]
///     flip = 0.5
/// "#;
/// let recipe = Recipe::parse(text, &[("num_epochs".into(), "3".into())])?;
/// assert_eq!((recipe.train.num_epochs, recipe.seed), (3, 1));
/// let typo = Recipe::parse("[train]\nnum_epoch = 3", &[]).unwrap_err().to_string();
/// assert!(typo.ends_with("the nearest is num_epochs"), "{typo}");
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// What the run's folder is called; by default after the network and the data.
    pub name: Option<String>,
    /// Of the weights, the order of the images, their augmentation and dropout.
    pub seed: u64,
    /// `cpu`, `cuda` or `cuda:N`; by default the CPU.
    pub device: Option<String>,
    /// The images.
    pub data: DataRecipe,
    /// The network.
    pub model: ModelRecipe,
    /// How it is trained. `seed` and `checkpoint_dir` are the run's own.
    pub train: SolverConfig,
    /// Random changes of the training images.
    pub augment: Augment,
    /// What becomes of the images that the network is judged by, such as the middle part where
    /// training takes random ones.
    pub evaluation: Vec<Transform>,
    /// A stage before, which learns from all images without their labels.
    pub pretrain: Option<Pretrain>,
}

/// Which images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataRecipe {
    /// One of [`DataRecipe::NAMES`].
    pub name: String,
    /// The folder; by default the usual places.
    pub dir: Option<PathBuf>,
    /// Height and width that the images are resized to, 8 to 512 and bilinear as PIL has it; by default
    /// their own: 64 of Tiny-ImageNet, 32 of CIFAR-10 and the embedded ones, 28 of the others.
    pub size: Option<usize>,
    /// Leave out images of Tiny-ImageNet that do not decode, where they are an error otherwise.
    pub skip_broken: bool,
    /// Train on this share of each class's training images, over 0 and up to 1; [`Pretrain`] has all.
    pub label_fraction: Option<f64>,
    /// Only the first of the training images, those without a label among them.
    pub train_samples: Option<usize>,
    /// Only the first of the test images.
    pub test_samples: Option<usize>,
    /// How bytes become numbers.
    pub normalize: Scale,
}

/// How bytes become numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// Each channel to mean 0 and deviation 1.
    #[default]
    PerChannel,
    /// The training images' mean subtracted, as CS231n has it.
    MeanImage,
    /// From 0 to 1 and no more, as torchvision's `ToTensor` leaves them.
    None,
}

impl Default for DataRecipe {
    fn default() -> Self {
        DataRecipe {
            name: "cifar10".into(),
            dir: None,
            size: None,
            skip_broken: false,
            label_fraction: None,
            train_samples: None,
            test_samples: None,
            normalize: Scale::default(),
        }
    }
}

impl DataRecipe {
    /// The data sets by name.
    pub const NAMES: [&str; 5] = [
        "cifar10",
        "mnist",
        "fashion_mnist",
        "tiny_imagenet",
        "embedded",
    ];

    /// Read the images; `seed` is of what is drawn: the embedded images, a share of the labels. A data
    /// set that is not there is an error: a recipe's figures are of the images that it names.
    pub fn load(&self, seed: u64) -> Result<Splits> {
        let splits = self.load_all(seed)?;
        self.labelled(splits, seed)
    }

    /// Of what [`load_all`](Self::load_all) gave, the training images whose labels are known.
    pub fn labelled(&self, splits: Splits, seed: u64) -> Result<Splits> {
        match self.label_fraction {
            Some(fraction) => splits.with_label_fraction(fraction, seed),
            None => Ok(splits),
        }
    }

    /// [`load`](Self::load) with all training images, whatever `label_fraction` says.
    pub fn load_all(&self, seed: u64) -> Result<Splits> {
        let dir = self.dir.as_deref();
        let found = |place: Result<Option<PathBuf>>| {
            let why = format!(
                "{0} is in none of the usual places: `cotangent data fetch {0}` gets it, data.dir \
                 names its folder, data.name = \"embedded\" needs no files",
                self.name
            );
            place?.ok_or(Error::config("data", why))
        };
        let mut splits = match self.name.as_str() {
            "cifar10" => load_cifar10(&found(find_cifar10(dir))?)?,
            "mnist" => load_mnist(&found(find_mnist(dir))?)?,
            "fashion_mnist" => load_fashion_mnist(&found(find_fashion_mnist(dir))?)?,
            "tiny_imagenet" => {
                let defaults = TinyImageNetConfig::default();
                let config = TinyImageNetConfig {
                    size: self.size.unwrap_or(defaults.size),
                    skip_broken: self.skip_broken,
                    ..defaults
                };
                load_tiny_imagenet(&found(find_tiny_imagenet(dir))?, &config)?
            }
            "embedded" => synthetic_splits(seed),
            other => return Err(Error::config("data", nearest(other, &Self::NAMES))),
        };
        if let Some(n) = self.train_samples {
            splits = splits.with_train_samples(n)?;
        }
        if let Some(n) = self.test_samples {
            let most = splits.test.len();
            if n == 0 || n > most {
                let why = format!("{n} of {most} test images; expected 1 to {most}");
                return Err(Error::config("test_samples", why));
            }
            splits.test = splits.test.range(0..n)?;
        }
        // after the choice: what is not used takes no memory
        match self.size {
            Some(size) if splits.train.shape()[1..] != [size, size] => splits.resized(size),
            _ => Ok(splits),
        }
    }

    /// What turns the images' bytes into numbers.
    pub fn normalize(&self, train: &Dataset) -> Result<Normalize> {
        match self.normalize {
            Scale::PerChannel => Normalize::per_channel(train),
            Scale::MeanImage => Normalize::mean_image(train),
            Scale::None => {
                let [c, ..] = train.shape();
                let (mean, std) = (vec![0.0; c], vec![1.0; c]);
                Ok(Normalize::PerChannel { mean, std })
            }
        }
    }
}

/// Which network, and what of its settings is not the default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelRecipe {
    /// One of [`models::NAMES`](crate::models::registry::NAMES).
    #[serde(default = "deeper")]
    pub name: String,
    /// Keys of its own configuration; the images' size and the number of classes are the data's.
    #[serde(flatten)]
    pub settings: Table,
}

fn deeper() -> String {
    "deeper".into()
}

impl Default for ModelRecipe {
    fn default() -> Self {
        ModelRecipe {
            name: deeper(),
            settings: Table::new(),
        }
    }
}

impl ModelRecipe {
    /// A network by name with some of its settings, each KEY=VALUE; a value is TOML's, or a word without
    /// its quotes.
    ///
    /// ```
    /// # use cotangent::train::ModelRecipe;
    /// let recipe = ModelRecipe::parse("vgg_a", &["activation=gelu"])?;
    /// let net = recipe.build([3, 32, 32], 10, 0)?;
    /// assert!(net.describe().contains("GELU()"));
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn parse(name: &str, settings: &[impl AsRef<str>]) -> Result<Self> {
        let mut recipe = ModelRecipe {
            name: name.into(),
            settings: Table::new(),
        };
        for setting in settings.iter().map(AsRef::as_ref) {
            let Some((key, value)) = setting.split_once('=') else {
                let why = format!("{setting:?}; expected KEY=VALUE");
                return Err(Error::config("set", why));
            };
            recipe.settings.insert(key.into(), read_value(value));
        }
        Ok(recipe)
    }

    /// The network for images of `input_dim` = [C, H, W], which are those of the data after a crop.
    pub fn build(
        &self,
        input_dim: [usize; 3],
        num_classes: usize,
        seed: u64,
    ) -> Result<Box<dyn Module>> {
        let settings = serde_json::to_value(&self.settings)
            .map_err(|e| Error::config("model", e.to_string()))?;
        let settings = settings.as_object().cloned().unwrap_or_default();
        models::build_with(&self.name, &settings, input_dim, num_classes, seed)
    }
}

impl Recipe {
    /// The recipe of a file, with `overrides` (key, value) in place of what it says; see
    /// [`parse`](Self::parse).
    pub fn load(path: impl AsRef<Path>, overrides: &[(String, String)]) -> Result<Self> {
        from_file(path.as_ref(), |text| Self::parse(text, overrides))
    }

    /// The recipe of a text. A key of `overrides` is a path such as `train.num_epochs`, or its last
    /// part where only one path ends so, those of `pretrain` coming after all others; a value is TOML's, or a word without its quotes.
    pub fn parse(text: &str, overrides: &[(String, String)]) -> Result<Self> {
        Self::from_table(text.parse().map_err(wrong)?, overrides)
    }

    /// The recipe of a text that was read already.
    pub(super) fn from_table(mut table: Table, overrides: &[(String, String)]) -> Result<Self> {
        for (key, value) in overrides {
            let path = full_path(key, &table)?;
            set(&mut table, &path, read_value(value))?;
        }
        let recipe: Recipe = Value::Table(table).try_into().map_err(wrong)?;
        let own = SolverConfig::default();
        let stages = [
            Some(&recipe.train),
            recipe.pretrain.as_ref().map(|p| &p.train),
        ];
        for train in stages.into_iter().flatten() {
            if train.seed != own.seed {
                let why = "train.seed; expected seed, without a section: a run has one";
                return Err(Error::config("recipe", why));
            }
            if train.checkpoint_dir != own.checkpoint_dir {
                let why =
                    "train.checkpoint_dir; expected none: checkpoints are in the run's folder";
                return Err(Error::config("recipe", why));
            }
        }
        if recipe.augment.reconstruct.is_some() {
            let why = "augment.reconstruct; expected under pretrain: a run ends with a classifier";
            return Err(Error::config("recipe", why));
        }
        if let Some(pretrain) = recipe.pretraining() {
            pretrain.check(&recipe)?;
        }
        Ok(recipe)
    }

    /// The stage before, unless there is none or it is switched off.
    pub fn pretraining(&self) -> Option<&Pretrain> {
        self.pretrain.as_ref().filter(|p| p.enabled)
    }

    /// The device that is named, or the CPU.
    pub fn device(&self) -> Result<Device> {
        Device::parse(self.device.as_deref().unwrap_or("cpu"))
    }

    /// What the run is called.
    pub fn title(&self) -> String {
        let default = || format!("{}_{}", self.model.name, self.data.name);
        self.name.clone().unwrap_or_else(default)
    }

    /// As TOML, every setting written out.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::config("recipe", e.to_string()))
    }
}

/// What `parse` makes of a file's text; an error of its settings names the file.
pub(super) fn from_file<T>(path: &Path, parse: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    parse(&text).map_err(|e| match e {
        Error::Config { key, why } => Error::data(path, format!("{key}: {why}")),
        e => e,
    })
}

/// The flags of a command line as (key, value): `--key value`, `--key=value`, or `--key` alone, which
/// means `true`. A word that belongs to no flag is an [`Error::Config`].
pub fn flags(words: &[String]) -> Result<Vec<(String, String)>> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").filter(|f| !f.is_empty()) else {
            let why = format!("{word:?} belongs to no flag; expected --KEY VALUE");
            return Err(Error::config("flags", why));
        };
        let (key, value) = match flag.split_once('=') {
            Some((key, value)) => (key, value.to_string()),
            None => {
                let value = words.next_if(|next| !next.starts_with("--"));
                (flag, value.map_or("true".into(), Clone::clone))
            }
        };
        found.push((key.into(), value));
    }
    Ok(found)
}

/// An error of TOML's or of a key that does not exist.
pub(super) fn wrong(e: toml::de::Error) -> Error {
    Error::config("recipe", with_nearest(e.to_string()))
}

/// A value as TOML has it; what is none is a word.
pub(super) fn read_value(text: &str) -> Value {
    let parsed = format!("x = {text}").parse::<Table>().ok();
    let value = parsed.and_then(|mut t| t.remove("x"));
    value.unwrap_or_else(|| Value::String(text.into()))
}

/// The dotted paths of all settings that have a place in the defaults; with `pretrain` those of that
/// section, which has none.
fn known_paths(pretrain: bool) -> Vec<String> {
    fn walk(prefix: &str, value: &serde_json::Value, out: &mut Vec<String>) {
        for (key, value) in value.as_object().into_iter().flatten() {
            let path = format!("{prefix}{key}");
            walk(&format!("{path}."), value, out);
            out.push(path);
        }
    }
    let mut out = Vec::new();
    if pretrain {
        walk(
            "pretrain.",
            &serde_json::json!(Pretrain::default()),
            &mut out,
        );
        return out;
    }
    walk("", &serde_json::json!(Recipe::default()), &mut out);
    // what the defaults leave out when they are written
    let more = ["transforms", "alternating_flip", "padding_mode", "mix"];
    out.extend(more.map(|key| format!("augment.{key}")));
    out
}

/// The whole path of a key of the command line.
fn full_path(key: &str, table: &Table) -> Result<String> {
    let key = key.replace('-', "_");
    let mut known = known_paths(false);
    if key.contains('.') || known.contains(&key) {
        return Ok(key); // a path that does not exist is noticed when the recipe is read
    }
    let last = |path: &&String| path.rsplit('.').next() == Some(key.as_str());
    let mut found: Vec<String> = known.iter().filter(last).cloned().collect();
    // the network's own settings are not listed here, but those that the file has are
    let settings = table.get("model").and_then(Value::as_table);
    if settings.is_some_and(|t| t.contains_key(&key)) {
        found.push(format!("model.{key}"));
    }
    if found.is_empty() {
        let first = known_paths(true);
        found.extend(first.iter().filter(last).cloned());
        known.extend(first);
    }
    match &found[..] {
        [path] => Ok(path.clone()),
        [] => {
            let lasts: Vec<&str> = known.iter().filter_map(|p| p.rsplit('.').next()).collect();
            Err(Error::config("recipe", nearest(&key, &lasts)))
        }
        several => {
            let why = format!("{key:?} could be {}", several.join(" or "));
            Err(Error::config("recipe", why))
        }
    }
}

/// Put a value at a path, through tables that are made where there are none.
pub(super) fn set(table: &mut Table, path: &str, value: Value) -> Result<()> {
    match path.split_once('.') {
        None => {
            table.insert(path.into(), value);
            Ok(())
        }
        Some((first, rest)) => {
            let inner = table.entry(first).or_insert(Value::Table(Table::new()));
            let inner = inner.as_table_mut();
            let why = || format!("{path}: {first} is no section");
            set(
                inner.ok_or_else(|| Error::config("recipe", why()))?,
                rest,
                value,
            )
        }
    }
}

/// serde's message about an unknown key or word, which lists all that there are, with the nearest
/// of them at the end.
fn with_nearest(message: String) -> String {
    let unknown = ["unknown field `", "unknown variant `"];
    let Some(start) = unknown
        .iter()
        .find_map(|u| Some(message.find(u)? + u.len()))
    else {
        return message;
    };
    // the word, then those that exist, each between backticks
    let mut quoted = message[start..].split('`').step_by(2);
    let word = quoted.next().unwrap_or("");
    let known: Vec<&str> = quoted.collect();
    match models::closest(word, &known) {
        Some(found) => format!("{}; the nearest is {found}", message.trim_end()),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::PIXEL_SCALE;
    use crate::train::UpdateRule;

    fn parse(text: &str, overrides: &[(&str, &str)]) -> Result<Recipe> {
        let own = |(k, v): &(&str, &str)| (k.to_string(), v.to_string());
        Recipe::parse(text, &overrides.iter().map(own).collect::<Vec<_>>())
    }

    fn error(text: &str, overrides: &[(&str, &str)]) -> String {
        parse(text, overrides).unwrap_err().to_string()
    }

    #[test]
    fn nothing_said_is_the_defaults_and_all_written_out_reads_back() -> Result<()> {
        let recipe = parse("", &[])?;
        assert_eq!(recipe, Recipe::default());
        assert_eq!(recipe.title(), "deeper_cifar10");
        let text = "[model]\nname = \"resnet18\"\nwidth = 8\n[augment]\nflip = 0.5\n\
            transforms = [{ RandomVerticalFlip = { p = 0.25 } }]\n\
            [train]\nschedule = { step = { step_size = 3 } }";
        let recipe = parse(text, &[])?;
        assert_eq!(parse(&recipe.to_toml()?, &[])?, recipe);
        let text = "data.label_fraction = 0.1\nmodel.name = \"autoencoder_classifier\"\n\
            [pretrain]\nfreeze = true\ntrain.update_rule = \"adam\"\n\
            augment.reconstruct = { holes = 3 }";
        let recipe = parse(text, &[])?;
        assert_eq!(parse(&recipe.to_toml()?, &[])?, recipe);
        let pretrain = recipe.pretraining().unwrap();
        assert_eq!(pretrain.train.loss, crate::train::Loss::Mse);
        Ok(())
    }

    #[test]
    fn flags_win_by_their_path_or_their_last_part() -> Result<()> {
        let text = "seed = 1\n[train]\nnum_epochs = 5\n[model]\nwidth = 8";
        let flags = [
            ("seed", "7"),
            ("num-epochs", "2"),
            ("train.update_rule", "adamw"),
            ("learning_rate", "1e-3"),
            ("width", "16"),
            ("model.depths", "[1, 1]"),
            ("data.name", "embedded"),
        ];
        let recipe = parse(text, &flags)?;
        assert_eq!((recipe.seed, recipe.train.num_epochs), (7, 2));
        assert_eq!(recipe.train.update_rule, UpdateRule::AdamW);
        assert_eq!(recipe.train.optim_config.learning_rate, Some(1e-3));
        assert_eq!(recipe.model.settings["width"].as_integer(), Some(16));
        assert_eq!(
            recipe.model.settings["depths"].as_array().map(Vec::len),
            Some(2)
        );
        assert_eq!(recipe.data.name, "embedded");
        // a section that is not there has its keys all the same, after those of all others
        let flags = [
            ("num-epochs", "2"),
            ("pretrain.train.num-epochs", "4"),
            ("hole-size", "6"),
            ("enabled", "false"),
        ];
        let recipe = parse(text, &flags)?;
        let pretrain = recipe.pretrain.as_ref().unwrap();
        assert_eq!((recipe.train.num_epochs, pretrain.train.num_epochs), (2, 4));
        assert_eq!(pretrain.augment.reconstruct.map(|r| r.hole_size), Some(6));
        assert_eq!(recipe.pretraining(), None);
        let e = error(text, &[("hole_sice", "6")]);
        assert!(e.ends_with("the nearest is hole_size"), "{e}");
        Ok(())
    }

    #[test]
    fn flags_of_a_command_line() -> Result<()> {
        let words = |text: &str| -> Vec<String> { text.split(' ').map(String::from).collect() };
        let found = flags(&words("--a 1 --b=x=y --c --d -3"))?;
        let expected = [("a", "1"), ("b", "x=y"), ("c", "true"), ("d", "-3")];
        assert_eq!(found, expected.map(|(k, v)| (k.to_string(), v.to_string())));
        let e = flags(&words("--a 1 stray")).unwrap_err().to_string();
        assert!(e.contains("\"stray\""), "{e}");
        assert!(flags(&words("--")).is_err());
        Ok(())
    }

    #[test]
    fn what_does_not_exist_is_named_with_the_nearest() {
        for (text, flags, end) in [
            (
                "[train]\nnum_epoch = 3",
                &[][..],
                "the nearest is num_epochs",
            ),
            ("[trian]", &[], "the nearest is train"),
            (
                "[train]\nupdate_rule = \"adma\"",
                &[],
                "the nearest is adam",
            ),
            ("", &[("num-epocs", "3")], "the nearest is num_epochs"),
        ] {
            let e = error(text, flags);
            assert!(e.ends_with(end), "{e}");
        }
        assert!(error("", &[("data.name", "y"), ("data.name.x", "1")]).contains("no section"));
        assert!(error("[train]\nseed = 3", &[]).contains("a run has one"));
        assert!(error("[train", &[]).starts_with("configuration: recipe: "));
        assert!(error("", &[("lr_decay", "0.5")]).contains(" or "));
    }

    #[test]
    fn data_and_network_by_name() -> Result<()> {
        let text = "[data]\nname = \"embedded\"\ntrain_samples = 20\ntest_samples = 10\n\
            [model]\nname = \"three_layer\"\nnum_filters = 4";
        let recipe = parse(text, &[])?;
        let splits = recipe.data.load(0)?;
        assert_eq!((splits.train.len(), splits.test.len()), (20, 10));
        // a share of the labels of those images
        let half = parse(text, &[("label-fraction", "0.5"), ("train-samples", "40")])?;
        let all = half.data.load_all(0)?;
        let counts = all.train.class_counts();
        let known = counts.iter().map(|n| n.div_ceil(2)).sum::<usize>();
        assert_eq!(
            (all.train.len(), half.data.load(0)?.train.len()),
            (40, known)
        );
        let net = recipe.model.build([3, 32, 32], 10, 0)?;
        assert!(net.describe().contains("4"), "{}", net.describe());
        let wrong = |text: &str| -> Result<String> {
            let recipe = parse(text, &[])?;
            let e = match recipe.data.load(0) {
                Ok(_) => recipe.model.build([3, 32, 32], 10, 0).err(),
                e => e.err(),
            };
            Ok(e.map(|e| e.to_string()).unwrap_or_default())
        };
        let e = wrong("[data]\nname = \"cifar100\"")?;
        assert!(e.ends_with("the nearest is cifar10"), "{e}");
        let e = wrong("[data]\nname = \"embedded\"\n[model]\nname = \"resnet\"")?;
        assert!(e.contains("\"resnet\" is unknown"), "{e}");
        let text = "[data]\nname = \"embedded\"\n[model]\nname = \"resnet18\"\nwidht = 3";
        let e = wrong(text)?;
        assert!(e.ends_with("the nearest is width"), "{e}");
        let e = wrong("[data]\nname = \"embedded\"\ntrain_samples = 0")?;
        assert!(e.contains("train_samples"), "{e}");
        let text = "[data]\nname = \"embedded\"\ntrain_samples = 9\ntest_samples = 9\nsize = 16";
        let splits = parse(text, &[])?.data.load(0)?;
        for d in [&splits.train, &splits.val, &splits.test] {
            assert_eq!(d.shape(), [3, 16, 16]);
        }
        let bare = parse("[data]\nnormalize = \"none\"", &[])?.data;
        let numbers = bare.normalize(&splits.train)?.images(&splits.train)?;
        let first = splits.train.image(0)[0] as f32 * PIXEL_SCALE;
        assert_eq!(numbers.to_vec::<f32>()?[0], first);
        let e = wrong("[data]\nname = \"embedded\"\nsize = 1000")?;
        assert!(e.ends_with("size: 1000; expected 8 to 512"), "{e}");
        Ok(())
    }
}
