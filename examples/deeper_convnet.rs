//! The main job: train the assignment's DeeperConvNet on CIFAR-10, and show all that a person
//! wants to see of it.
//!
//! `cargo run --release --example deeper_convnet` needs nothing: without CIFAR-10 at hand it
//! learns the embedded shapes. `-- --help` lists the settings of data, model and Solver.
//!
//! **Batch norm and dropout together.** The report that this network comes from saw the pair
//! collapse to 13 %. Each of them behaves differently in training and in evaluation; a network
//! that is evaluated in training's mode drops units at test time, and one that is trained on
//! statistics it does not evaluate with sees other activations than it learned. Here the mode is
//! an argument of `forward`, so it cannot be left behind; evaluation uses the running mean and
//! variance that training kept; and dropout stands after the last batch norm, where it cannot
//! shift the variance that a later norm keeps (Li et al. 2018, "Understanding the disharmony
//! between dropout and batch normalization by variance shift").

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use cotangent::data::{Augment, Normalize, load_cifar10_or_synthetic, synthetic_splits};
use cotangent::models::{DeeperConfig, DeeperConvNet};
use cotangent::nn::{self, Summary};
use cotangent::optim::{OneCycle, Plateau, PlateauMode, Schedule, Unit};
use cotangent::random::Generator;
use cotangent::train::{
    OptimConfig, Outcome, Solver, SolverConfig, SolverData, UpdateRule, save_curves, save_filters,
    save_state_dict, stop_on_signal,
};
use cotangent::{DType, Device, Result, Tensor};

/// A closed pipe (`| head`) must not end the work with a panic.
macro_rules! println {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// Train DeeperConvNet: {conv - batch norm - ReLU} x 2 - max pool, repeated; then affine - batch
/// norm - ReLU - [dropout] - affine - softmax.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// CIFAR-10's folder (binary version), or "embedded"; default: $CIFAR10_DIR, the usual places, else embedded
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where history, curves, parameters and checkpoint go
    #[arg(long, default_value = "runs/deeper_convnet")]
    out: PathBuf,
    /// Go on from the checkpoint in --out
    #[arg(long)]
    resume: bool,
    /// Times through the training images
    #[arg(long, default_value_t = 8)]
    epochs: usize,
    /// Train on the first N images only
    #[arg(long)]
    train_samples: Option<usize>,
    /// Images a step
    #[arg(long, default_value_t = 100)]
    batch_size: usize,
    /// Seed of weights, order, augmentation and dropout
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads; default: all cores
    #[arg(long)]
    threads: Option<usize>,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,

    /// Filters of each convolution; a pool follows each second one
    #[arg(long, value_delimiter = ',', default_values_t = [32, 32, 64, 64, 128, 128])]
    num_filters: Vec<usize>,
    /// The filters' height and width, odd
    #[arg(long, default_value_t = 3)]
    filter_size: usize,
    /// Units of the hidden layer
    #[arg(long, default_value_t = 256)]
    hidden: usize,
    /// Standard deviation of the initial weights; default: Kaiming's
    #[arg(long)]
    weight_scale: Option<f64>,
    /// L2 penalty: 0.5 reg sum(W^2) joins the loss
    #[arg(long, default_value_t = 5e-4)]
    reg: f64,
    /// Batch norm before each ReLU
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    batchnorm: bool,
    /// Dropout after the hidden layer
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set)]
    dropout: bool,
    /// The share of units that dropout keeps
    #[arg(long, default_value_t = 0.5)]
    dropout_keep_ratio: f64,

    /// sgd, sgd_momentum, rmsprop, adam, adamw, amsgrad, adadelta, asgd, adagrad or muon
    #[arg(long, default_value = "adam")]
    update_rule: String,
    /// The learning rate; of one-cycle and warmup-cosine, its peak; default: 2e-3 for adam and adamw, else the rule's
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Of sgd_momentum and rmsprop
    #[arg(long)]
    momentum: Option<f64>,
    /// Nesterov's look ahead, of sgd_momentum
    #[arg(long)]
    nesterov: bool,
    /// Of rmsprop
    #[arg(long)]
    decay_rate: Option<f64>,
    /// Of adam and adamw
    #[arg(long)]
    beta1: Option<f64>,
    /// Of adam and adamw
    #[arg(long)]
    beta2: Option<f64>,
    /// Of rmsprop, adam and adamw
    #[arg(long)]
    epsilon: Option<f64>,
    /// An L2 penalty inside the rule; of adamw, the decoupled one
    #[arg(long)]
    weight_decay: Option<f64>,
    /// How the learning rate moves; one-cycle, warmup-cosine and cosine span --epochs, so a run of them resumes with the same --epochs only
    #[arg(long, value_enum, default_value_t = Moves::Step)]
    schedule: Moves,
    /// Epochs between two changes of --schedule step
    #[arg(long, default_value_t = 2)]
    step_size: usize,
    /// The factor of --schedule step and plateau
    #[arg(long, default_value_t = 0.5)]
    gamma: f64,
    /// Steps of --schedule warmup-cosine until the peak
    #[arg(long, default_value_t = 500)]
    warmup_steps: usize,
    /// The learning rate's factor after each epoch, beside the schedule
    #[arg(long, default_value_t = 1.0)]
    lr_decay: f64,
    /// Stop after so many epochs without a better validation accuracy
    #[arg(long)]
    patience: Option<usize>,
    /// Stop after the first epoch with this validation accuracy, between 0 and 1
    #[arg(long)]
    target_accuracy: Option<f64>,
    /// The share of the target that is spread over all classes
    #[arg(long, default_value_t = 0.0)]
    label_smoothing: f64,
    /// The probability of a horizontal flip in training
    #[arg(long, default_value_t = 0.5)]
    flip: f32,
    /// Pixels that a training crop may move by
    #[arg(long, default_value_t = 4)]
    crop_padding: usize,
    /// How bytes become numbers
    #[arg(long, value_enum, default_value_t = Scale::PerChannel)]
    normalize: Scale,
    /// Training images for the accuracy after an epoch; 0 for all
    #[arg(long, default_value_t = 1000)]
    num_train_samples: usize,
    /// Validation images for the accuracy after an epoch; default: all
    #[arg(long)]
    num_val_samples: Option<usize>,
    /// Steps between printed losses, where the output is no terminal
    #[arg(long, default_value_t = 100)]
    print_every: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Moves {
    Constant,
    Step,
    Plateau,
    Cosine,
    OneCycle,
    WarmupCosine,
}

#[derive(Clone, Copy, ValueEnum)]
enum Scale {
    MeanImage,
    PerChannel,
}

impl Args {
    fn schedule(&self) -> Schedule {
        match self.schedule {
            Moves::Constant => Schedule::Constant,
            Moves::Step => Schedule::Step {
                step_size: self.step_size,
                gamma: self.gamma,
                unit: Unit::Epoch,
            },
            Moves::Plateau => Schedule::Plateau(Plateau {
                mode: PlateauMode::Max,
                factor: self.gamma,
                patience: 2,
                threshold: 1e-3,
                ..Plateau::default()
            }),
            Moves::Cosine => Schedule::Cosine {
                t_max: self.epochs,
                eta_min: 0.0,
                unit: Unit::Epoch,
            },
            Moves::OneCycle => Schedule::OneCycle(OneCycle {
                pct_start: 0.25,
                cycle_momentum: false,
                div_factor: 10.0,
                final_div_factor: 100.0,
                ..OneCycle::default()
            }),
            Moves::WarmupCosine => Schedule::WarmupCosine {
                warmup_steps: self.warmup_steps,
                eta_min: 0.0,
            },
        }
    }

    fn model(&self, input: [usize; 3], classes: usize) -> DeeperConfig {
        DeeperConfig {
            input_dim: input,
            num_filters: self.num_filters.clone(),
            filter_size: self.filter_size,
            hidden_dim: self.hidden,
            num_classes: classes,
            use_batchnorm: self.batchnorm,
            use_dropout: self.dropout,
            dropout_keep_ratio: self.dropout_keep_ratio,
            weight_scale: self.weight_scale,
            reg: self.reg,
        }
    }

    fn solver(&self) -> Result<SolverConfig> {
        let update_rule = self.update_rule.parse::<UpdateRule>()?;
        let adam = matches!(update_rule, UpdateRule::Adam | UpdateRule::AdamW);
        Ok(SolverConfig {
            update_rule,
            optim_config: OptimConfig {
                learning_rate: self.learning_rate.or(adam.then_some(2e-3)),
                momentum: self.momentum,
                nesterov: self.nesterov,
                decay_rate: self.decay_rate,
                beta1: self.beta1,
                beta2: self.beta2,
                epsilon: self.epsilon,
                weight_decay: self.weight_decay,
                ..OptimConfig::default()
            },
            schedule: self.schedule(),
            lr_decay: self.lr_decay,
            label_smoothing: self.label_smoothing,
            batch_size: self.batch_size,
            num_epochs: self.epochs,
            num_val_samples: self.num_val_samples,
            num_train_samples: Some(self.num_train_samples).filter(|&n| n > 0),
            print_every: self.print_every,
            patience: self.patience,
            target_accuracy: self.target_accuracy,
            checkpoint_dir: Some(self.out.clone()),
            seed: self.seed,
            ..Default::default()
        })
    }
}

fn main() {
    if let Err(e) = run(&Args::parse()) {
        eprintln!("error: {e}");
        std::process::exit(1);
    }
}

fn run(args: &Args) -> Result<()> {
    let device = Device::parse(&args.device)?;
    cotangent::cpu::set_num_threads(args.threads)?;
    let mut splits = match &args.data {
        Some(name) if name.as_os_str() == "embedded" => synthetic_splits(args.seed),
        dir => load_cifar10_or_synthetic(dir.as_deref(), args.seed)?,
    };
    if let Some(n) = args.train_samples {
        splits = splits.with_train_samples(n)?;
    }
    println!(
        "{splits}; device: {device}, {} threads",
        cotangent::cpu::get_num_threads()
    );

    let (input, classes) = (splits.train.shape(), splits.train.classes().len());
    let model_config = args.model(input, classes);
    let solver_config = args.solver()?;
    let mut model = DeeperConvNet::new(model_config.clone(), &mut Generator::new(args.seed))?;
    let [c, h, w] = input;
    println!(
        "{}",
        Summary::of(&mut model, &Tensor::zeros([1, c, h, w], DType::F32)?)?
    );

    nn::to_device(&mut model, device)?;

    let stop = stop_on_signal()?;
    let data = SolverData {
        train: splits.train.clone(),
        val: splits.val.clone(),
        normalize: match args.normalize {
            Scale::MeanImage => Normalize::mean_image(&splits.train)?,
            Scale::PerChannel => Normalize::per_channel(&splits.train)?,
        },
        augment: Augment {
            flip: args.flip,
            crop_padding: args.crop_padding,
            ..Augment::none()
        },
    };
    let recorded = serde_json::json!({
        "model": model_config,
        "solver": solver_config,
        "data": splits.source,
        "augment": data.augment,
        "normalize": args.normalize.to_possible_value().map(|v| v.get_name().to_string()),
        "threads": cotangent::cpu::get_num_threads(),
    });
    let mut solver = Solver::new(&mut model, data, solver_config)?
        .with_recorded_config(recorded)
        .with_stop(stop);
    if args.resume {
        solver.resume(args.out.join("checkpoint.safetensors"))?;
        println!("resumed after epoch {}", solver.history().epochs);
    }

    let outcome = solver.train()?;
    if outcome == Outcome::Interrupted {
        println!(
            "stopped; --resume goes on from {}",
            args.out.join("checkpoint.safetensors").display()
        );
        return Ok(());
    }
    solver.report(Some(&splits.test))?;
    let history = solver.history();
    let percent = |a: Option<f64>| format!("{:.2} %", 100.0 * a.unwrap_or(f64::NAN));
    println!(
        "best validation accuracy {:.2} % at epoch {}; train {}, val {}, test {} of {} images; {:.0} s of training on {device}",
        100.0 * history.best_val_acc,
        history.best_epoch,
        percent(history.train_acc),
        percent(history.val_acc),
        percent(history.test_acc),
        splits.test.len(),
        history.seconds,
    );
    save_curves(&args.out, history)?;
    drop(solver);
    save_state_dict(args.out.join("best.safetensors"), &mut model)?;
    save_filters(args.out.join("filters.png"), &mut model)?;
    println!(
        "wrote {}/: history.json, history.csv, TensorBoard's events, loss.svg, loss.png, epoch_loss.svg, epoch_loss.png, accuracy.svg, accuracy.png, filters.png, best.safetensors, checkpoint.safetensors",
        args.out.display()
    );
    Ok(())
}
