//! The `cotangent` command line: parsing only; the library does the work.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use cotangent::data::{
    FetchBar, FetchEvent, Normalize, PublishedSet, fetch, load_cifar10_or_synthetic,
    synthetic_splits, verify,
};
use cotangent::models;
use cotangent::nn::{Module, Summary};
use cotangent::ops::{all_cases, gradcheck};
use cotangent::train::recipe::flags;
use cotangent::train::report;
use cotangent::train::run::default_dir;
use cotangent::train::{
    Ablation, Diary, Ended, History, Landscape, ModelRecipe, Outcome, Predictor, Recipe, Run,
    SanityConfig, Statistics, check_count, redraw, sanity_checks, save_predictions, stop_on_signal,
};
use cotangent::{DType, Device, Error, Result, Tensor, cuda};

/// A closed pipe (`| head`) must not end the work with a panic.
macro_rules! println {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// A from-scratch tensor and autograd engine: check its gradients, look at its networks.
#[derive(Parser)]
#[command(name = "cotangent", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare every op's gradients with central differences, in f64; exit code 1 on a failure
    Gradcheck {
        /// Only ops whose name contains this
        #[arg(default_value = "")]
        only: String,
        /// Seed of the inputs
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Print a network's layers, output shapes, parameter counts and multiply-adds
    Summary {
        #[command(flatten)]
        network: Network,
    },
    /// List the devices that tensors can live on
    Devices,
    /// Train by a recipe (TOML), in a folder that then holds all of the run
    ///
    /// Every key of a recipe is also a flag: --train.num_epochs 5, or its last part where only one
    /// ends so: --num-epochs 5. Ctrl-C stops cleanly, and --resume goes on, bit for bit.
    Train {
        /// The recipe's file (without one, the defaults); --out DIR (default: runs/NAME); --resume; and
        /// --KEY VALUE for any key of the recipe
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "RECIPE --KEY VALUE"
        )]
        words: Vec<String>,
    },
    /// Run an ablation (TOML): a recipe varied cell by cell, and the table that results
    ///
    /// At a small scale, in minutes; --full runs it at the scale of the report. What is finished is
    /// not run again, and a cell that fails is recorded while the others run.
    Ablate {
        /// The ablation's file, such as one of examples/ablations; --out DIR (default:
        /// runs/ablations/NAME); --full; --seeds 0,1,2; --cell NAME for one of its cells; and --KEY VALUE for any
        /// key of the recipe
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "FILE --KEY VALUE"
        )]
        words: Vec<String>,
    },
    /// Look at the loss landscape (TOML): losses at several learning rates, and loss and gradient along
    /// the gradient, of networks side by side
    ///
    /// At a small scale, in minutes; --full runs it at the scale of the report. What is finished is
    /// not run again.
    Landscape {
        /// The landscape's file, such as examples/landscapes/vgg_batch_norm.toml; --out DIR (default:
        /// runs/landscapes/NAME); --full; --learning-rates, --every, --step-lengths; and --KEY VALUE for any
        /// key of the recipe
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "FILE --KEY VALUE"
        )]
        words: Vec<String>,
    },
    /// Activations and gradients layer by layer, at one batch: of a recipe's new network, or of a run
    Statistics {
        /// The recipe's file, or a run's folder; --train to train by the recipe and look again after each
        /// epoch; --out DIR (default: the run's folder, or runs/statistics/NAME); and --KEY VALUE for any key
        /// of the recipe
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "RECIPE --KEY VALUE"
        )]
        words: Vec<String>,
    },
    /// Judge the best weights of a run, with running meters: loss, acc1, acc5, time, memory
    Eval {
        /// The run's folder; --split train, val or test (default: test); and --KEY VALUE for any key of
        /// the recipe
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "RUN --KEY VALUE"
        )]
        words: Vec<String>,
    },
    /// Draw a run's curves and first filters anew, or the curves of several runs in one picture each
    Plot {
        /// The runs' folders
        #[arg(required = true)]
        runs: Vec<PathBuf>,
        /// Where to draw; default: into the one run's folder, of several into runs/compared
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Say what is in image files (JPEG, PNG), or show what a run's network makes of its data set
    ///
    /// With files: the most probable classes of each; exit code 1 where one does not decode.
    /// With --split: a picture of the images with their predicted and true classes, predictions.png
    /// and .svg in the run's folder.
    Predict {
        /// The run's folder; image files, and --top K (default: 5); or --split train, val or test,
        /// --count N (default: 25) and --only wrong; and --KEY VALUE for any key of the recipe
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "RUN IMAGE --KEY VALUE"
        )]
        words: Vec<String>,
    },
    /// CS231n's sanity checks of a network: initial loss, sparse gradient check, overfitting 50 images
    Sanity {
        #[arg(help = networks())]
        model: String,
        /// CIFAR-10's folder, or "embedded"; default: $CIFAR10_DIR, the usual places, else embedded
        #[arg(long)]
        data: Option<PathBuf>,
        /// Seed of the weights and of the choice of images
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Fetch a published data set, or check the one that is there
    Data {
        #[command(subcommand)]
        action: DataAction,
    },
}

#[derive(Subcommand)]
enum DataAction {
    /// Download, compare with the published sum, unpack; a download that was cut goes on
    Fetch {
        #[arg(help = published())]
        name: PublishedSet,
        /// The folder that gets the data set's own; default: where the data set is looked for first
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Another address of the same files: the folder that holds them, or the archive itself
        #[arg(long)]
        url: Option<String>,
    },
    /// Read every file, decode every image, compare the sums; exit code 1 where something is wrong
    Verify {
        #[arg(help = published())]
        name: PublishedSet,
        /// The data set's folder; default: where it is found
        #[arg(long)]
        dir: Option<PathBuf>,
    },
}

#[derive(clap::Args)]
struct Network {
    #[arg(help = networks())]
    model: String,
    /// Channels, height and width of an image
    #[arg(long, num_args = 3, value_names = ["C", "H", "W"], default_values_t = [3, 32, 32])]
    input: Vec<usize>,
    /// The number of classes
    #[arg(long, default_value_t = 10)]
    classes: usize,
    /// Seed of the weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// A key of the network's configuration, as in a recipe: --set width=16 --set activation=gelu
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// The help of the argument that names a network.
fn networks() -> String {
    format!("The network: {}", models::registry::NAMES.join(", "))
}

/// The help of the argument that names a data set.
fn published() -> String {
    format!(
        "The data set: {}",
        PublishedSet::ALL.map(|s| s.name()).join(", ")
    )
}

impl Network {
    fn input(&self) -> [usize; 3] {
        // clap has seen to it that there are three
        [self.input[0], self.input[1], self.input[2]]
    }

    fn build(&self) -> Result<Box<dyn Module>> {
        let recipe = ModelRecipe::parse(&self.model, &self.set)?;
        recipe.build(self.input(), self.classes, self.seed)
    }
}

fn main() -> ExitCode {
    let started = cotangent::cpu::set_num_threads(None);
    match started.and_then(|()| run(Cli::parse().command)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(2)
        }
    }
}

/// Whether all is well.
fn run(command: Command) -> Result<bool> {
    match command {
        Command::Gradcheck { only, seed } => check_gradients(&only, seed),
        Command::Summary { network: n } => {
            let input = n.input();
            let mut model = n.build()?;
            let x = Tensor::zeros([1, input[0], input[1], input[2]], DType::F32)?;
            println!("{}", model.describe());
            println!("{}", Summary::of(&mut *model, &x)?);
            Ok(true)
        }
        Command::Devices => {
            println!(
                "cpu      {} threads, {:?}",
                cotangent::cpu::get_num_threads(),
                cotangent::cpu::simd::level()
            );
            match cuda::probe() {
                Ok(found) => {
                    for (i, name) in found.devices.iter().enumerate() {
                        let usable = match Device::cuda(i) {
                            Ok(_) => "ready".to_string(),
                            Err(e) => e.to_string(),
                        };
                        println!("cuda:{i}   {name}, CUDA {}: {usable}", found.version);
                    }
                }
                Err(e) => println!("cuda     {e}"),
            }
            match Device::cuda_emulated() {
                Ok(_) => {
                    println!("cuda_emulated   the kernels on the CPU, to test and to step through")
                }
                Err(e) => println!("cuda_emulated   {e}"),
            }
            Ok(true)
        }
        Command::Data { action } => data(action),
        Command::Train { words } => train(&words),
        Command::Ablate { words } => ablate(&words),
        Command::Landscape { words } => landscape(&words),
        Command::Statistics { words } => statistics(&words),
        Command::Eval { words } => eval(&words),
        Command::Plot { runs, out } => {
            let wrote = |path: &Path| println!("{}", path.display());
            redraw(&runs, out.as_deref(), wrote)?;
            Ok(true)
        }
        Command::Predict { words } => predict(&words),
        Command::Sanity { model, data, seed } => {
            let splits = match data {
                Some(name) if name.as_os_str() == "embedded" => synthetic_splits(seed),
                dir => load_cifar10_or_synthetic(dir.as_deref(), seed)?,
            };
            println!("{splits}");
            let classes = splits.train.classes().len();
            let mut net = models::build(&model, splits.train.shape(), classes, seed)?;
            let config = SanityConfig {
                seed,
                ..SanityConfig::default()
            };
            let normalize = Normalize::per_channel(&splits.train)?;
            let report = sanity_checks(&mut *net, &splits.train, &normalize, &config)?;
            println!("{report}");
            Ok(report.passed())
        }
    }
}

fn data(action: DataAction) -> Result<bool> {
    match action {
        DataAction::Fetch { name, dir, url } => {
            let mut bar = FetchBar::new();
            let mut tell = |event: FetchEvent| bar.show(event);
            let dir = fetch(name, dir.as_deref(), url.as_deref(), &mut tell)?;
            println!("{}", dir.display());
            Ok(true)
        }
        DataAction::Verify { name, dir } => {
            let report = verify(name, dir.as_deref())?;
            println!("{report}");
            Ok(report.passed())
        }
    }
}

fn check_gradients(only: &str, seed: u64) -> Result<bool> {
    let (mut checked, mut failed) = (0, 0);
    println!(
        "{:18} {:36} {:>8} {:>10}",
        "op", "case", "elements", "error"
    );
    for case in all_cases().filter(|c| c.op.contains(only)) {
        let report = gradcheck(case.run, &case.make(seed)?)?;
        let verdict = if report.passed() { "" } else { "FAILED" };
        println!(
            "{:18} {:36} {:>8} {:>10.1e} {verdict}",
            case.op, case.name, report.checked, report.error
        );
        if let (false, Some(w)) = (report.passed(), report.worst) {
            println!(
                "    input {}[{}]: analytic {} numeric {}",
                w.input, w.index, w.analytic, w.numeric
            );
        }
        checked += 1;
        failed += !report.passed() as usize;
    }
    println!("{checked} cases, {failed} failed");
    Ok(failed == 0 && checked > 0)
}

/// Takes a flag's value out of the settings.
fn take(flags: &mut Flags, key: &str) -> Option<String> {
    let at = flags.iter().rposition(|(k, _)| k == key)?;
    let (_, value) = flags.remove(at);
    Some(value)
}

/// Keys and values.
type Flags = Vec<(String, String)>;

/// Takes a flag that is on or off.
fn take_switch(flags: &mut Flags, key: &'static str) -> Result<bool> {
    match take(flags, key).as_deref() {
        Some("true") => Ok(true),
        None | Some("false") => Ok(false),
        // such as a recipe behind its flags
        Some(other) => {
            let why = format!("{other:?}; expected nothing, true or false behind --{key}");
            Err(Error::config(key, why))
        }
    }
}

/// The file or folder that comes first, if one does, and the flags behind it.
fn first_and_flags(words: &[String]) -> Result<(Option<PathBuf>, Flags)> {
    match words.split_first() {
        Some((first, rest)) if !first.starts_with("--") => Ok((Some(first.into()), flags(rest)?)),
        _ => Ok((None, flags(words)?)),
    }
}

fn missing(what: &'static str) -> Error {
    Error::config(what, "none; expected it before the flags")
}

/// What a file of several runs is given: whether at the report's scale, where to, and settings of
/// its recipe.
struct Several {
    file: PathBuf,
    full: bool,
    out: Option<PathBuf>,
    settings: Flags,
}

impl Several {
    fn of(words: &[String]) -> Result<Self> {
        let (file, mut settings) = first_and_flags(words)?;
        Ok(Several {
            full: take_switch(&mut settings, "full")?,
            out: take(&mut settings, "out").map(PathBuf::from),
            file: file.ok_or(missing("file"))?,
            settings,
        })
    }

    /// The folder that is named, or that of the file's `name` and the scale.
    fn dir(&self, kind: &str, name: &str) -> PathBuf {
        let scale = if self.full { "full" } else { "small" };
        let default = || Path::new("runs").join(kind).join(format!("{name}_{scale}"));
        self.out.clone().unwrap_or_else(default)
    }
}

/// Whether all were run and none failed: the others are there, but a script should know.
fn all_well(ended: Ended) -> bool {
    if !ended.all {
        println!("stopped; the same command goes on");
    }
    ended.all && ended.failed == 0
}

fn ablate(words: &[String]) -> Result<bool> {
    let mut asked = Several::of(words)?;
    let mut ablation = Ablation::load(&asked.file)?;
    let [seeds, seed] = ["seeds", "seed"].map(|key| take(&mut asked.settings, key));
    if let Some(seeds) = seeds.or(seed) {
        ablation = ablation.with_seeds(&seeds)?;
    }
    if let Some(cell) = take(&mut asked.settings, "cell") {
        ablation = ablation.with_only(&cell)?;
    }
    let dir = asked.dir("ablations", &ablation.name);
    let (stop, say) = (stop_on_signal()?, |text: &str| println!("{text}"));
    let ended = ablation.run(&dir, asked.full, &asked.settings, &stop, say)?;
    let table = dir.join("table.md");
    let text = std::fs::read_to_string(&table).unwrap_or_default();
    println!("\n{text}");
    println!("{}", table.display());
    Ok(all_well(ended))
}

fn landscape(words: &[String]) -> Result<bool> {
    let asked = Several::of(words)?;
    let landscape = Landscape::load(&asked.file, &asked.settings)?;
    let dir = asked.dir("landscapes", &landscape.name);
    let (stop, say) = (stop_on_signal()?, |text: &str| println!("{text}"));
    let ended = landscape.run(&dir, asked.full, &stop, say)?;
    println!("{}", dir.display());
    Ok(all_well(ended))
}

fn statistics(words: &[String]) -> Result<bool> {
    let (path, mut settings) = first_and_flags(words)?;
    let path = path.ok_or(missing("recipe"))?;
    let training = take_switch(&mut settings, "train")?;
    let out = take(&mut settings, "out").map(PathBuf::from);
    let show = |epoch: usize, found: &Statistics| println!("after {epoch} epochs\n{found}\n");
    let (mut run, epoch, dir) = match path.is_dir() {
        true if training => {
            let why = format!(
                "{} is a run, trained already; expected a recipe",
                path.display()
            );
            return Err(Error::config("train", why));
        }
        true => {
            let run = Run::open(&path, &settings)?;
            (run, History::load(&path)?.best_epoch, out.unwrap_or(path))
        }
        false => {
            let recipe = Recipe::load(&path, &settings)?;
            let default = || PathBuf::from("runs/statistics").join(recipe.title());
            let dir = out.unwrap_or_else(default);
            (Run::new(recipe)?, 0, dir)
        }
    };
    if training {
        let (outcome, _) = Diary::of_training(&mut run, &dir, stop_on_signal()?, show)?;
        println!("{outcome:?}: {}", dir.display());
        return Ok(true);
    }
    let diary = Diary::of_run(&mut run, epoch)?;
    diary
        .entries
        .iter()
        .for_each(|(epoch, found)| show(*epoch, found));
    diary.save(&dir)?;
    println!("{}", dir.join("statistics.csv").display());
    Ok(true)
}

fn train(words: &[String]) -> Result<bool> {
    let (recipe, mut settings) = first_and_flags(words)?;
    let resume = take_switch(&mut settings, "resume")?;
    let out = take(&mut settings, "out").map(PathBuf::from);
    let recipe = match recipe {
        Some(path) => Recipe::load(path, &settings)?,
        None => Recipe::parse("", &settings)?,
    };
    let dir = out.unwrap_or_else(|| default_dir(&recipe));
    let stop = stop_on_signal()?;
    let mut run = Run::new(recipe)?;
    println!("{}", run.splits);
    let [c, h, w] = run.recipe.augment.shape(run.splits.train.shape())?;
    let threads = cotangent::cpu::get_num_threads();
    println!(
        "{} ({} parameters) for {c}x{h}x{w}, seed {}, {} with {threads} threads, in {}",
        run.recipe.model.name,
        cotangent::nn::parameter_count(&mut *run.model),
        run.recipe.seed,
        cotangent::nn::device(&mut *run.model),
        dir.display()
    );
    let (outcome, history) = run.train(&dir, resume, stop)?;
    if outcome == Outcome::Interrupted {
        println!("stopped; --resume goes on from {}", dir.display());
        return Ok(true);
    }
    let percent = |a: Option<f64>| format!("{:.2} %", 100.0 * a.unwrap_or(f64::NAN));
    println!(
        "best validation accuracy {} at epoch {} of {}; train {}, val {}, test {}; {:.1} s",
        percent(Some(history.best_val_acc)),
        history.best_epoch,
        history.epochs,
        percent(history.train_acc),
        percent(history.val_acc),
        percent(history.test_acc),
        history.seconds,
    );
    println!("{}", dir.join(report::REPORT).display());
    Ok(true)
}

fn eval(words: &[String]) -> Result<bool> {
    let (dir, mut settings) = first_and_flags(words)?;
    let dir = dir.ok_or(missing("run"))?;
    let split = take(&mut settings, "split").unwrap_or_else(|| "test".into());
    let mut run = Run::open(&dir, &settings)?;
    let mut shown = Instant::now();
    let judged = run.eval(&split, |meters| {
        if shown.elapsed() > Duration::from_secs(2) {
            println!("{meters}");
            shown = Instant::now();
        }
    })?;
    println!("{}\n{}", judged.meters, judged.confusion);
    judged.save(&dir)?;
    println!("{}", report::write(&dir, &run, &judged)?.display());
    Ok(true)
}

/// The number that a flag gives.
fn take_number(flags: &mut Flags, key: &'static str, default: usize) -> Result<usize> {
    let Some(text) = take(flags, key) else {
        return Ok(default);
    };
    let number = text.parse().ok().filter(|&n| n > 0);
    number.ok_or_else(|| Error::config(key, format!("{text:?}; expected a number from 1 on")))
}

fn predict(words: &[String]) -> Result<bool> {
    let end = words.iter().position(|w| w.starts_with("--"));
    let (paths, rest) = words.split_at(end.unwrap_or(words.len()));
    let (dir, images) = paths.split_first().ok_or(missing("run"))?;
    let mut settings = flags(rest)?;
    if let Some(split) = take(&mut settings, "split") {
        if !images.is_empty() {
            let why = format!(
                "{split}, beside {} files; expected one or the other",
                images.len()
            );
            return Err(Error::config("split", why));
        }
        return show(dir.as_ref(), &split, settings);
    }
    if images.is_empty() {
        let why = "none; expected image files behind the run, or --split test";
        return Err(Error::config("image", why));
    }
    let top = take_number(&mut settings, "top", 5)?;
    let mut predictor = Predictor::open(dir, &settings)?;
    let mut all = true;
    for image in images {
        match predictor.classify(image) {
            Ok(classes) => {
                println!("{image}");
                for (class, probability) in classes.into_iter().take(top) {
                    println!("  {:6.2} %  {class}", 100.0 * probability);
                }
            }
            Err(e) => {
                eprintln!("error: {e}");
                all = false;
            }
        }
    }
    Ok(all)
}

/// A picture of a split's images with what they are taken for.
fn show(dir: &Path, split: &str, mut settings: Flags) -> Result<bool> {
    let count = take_number(&mut settings, "count", 25)?;
    check_count(count)?;
    let only_wrong = match take(&mut settings, "only").as_deref() {
        None => false,
        Some("wrong") => true,
        Some(other) => {
            let why = format!("{other:?}; expected wrong");
            return Err(Error::config("only", why));
        }
    };
    let run = Run::open(dir, &settings)?;
    let data = run.images(split)?.clone();
    let mut predictor = Predictor::of(run);
    let (samples, seen) = predictor.sample(&data, count, only_wrong)?;
    let wrong = samples.iter().filter(|s| !s.is_right()).count();
    println!(
        "{wrong} of the first {seen} of {} {split} images are taken for another class",
        data.len()
    );
    if !samples.is_empty() {
        let classes = &predictor.input.classes;
        for path in save_predictions(dir, data.shape(), classes, &samples)? {
            println!("{}", path.display());
        }
    }
    Ok(true)
}
