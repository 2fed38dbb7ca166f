//! Wall time of the main job: DeeperConvNet on CIFAR-10 until an epoch ends with this share of all
//! 10,000 test images right: `cargo bench --bench to_accuracy -- [--data DIR] [--target 0.8] [--seed N]`.
//!
//! The network and the recipe are `examples/deeper_convnet.rs`'s; `torch_to_accuracy.py` is the same
//! in PyTorch. The clock starts when the images are in memory and runs over everything else: making
//! the model, shuffling, flips and crops, training, and judging the test images after each epoch.

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use cotangent::data::{Augment, Normalize, find_cifar10, load_cifar10};
use cotangent::models::{DeeperConfig, DeeperConvNet};
use cotangent::optim::{Schedule, Unit};
use cotangent::random::Generator;
use cotangent::train::{OptimConfig, Outcome, Solver, SolverConfig, SolverData, UpdateRule};
use cotangent::{Error, Result};

#[derive(Parser)]
struct Args {
    /// CIFAR-10's folder (binary version); default: $CIFAR10_DIR or the usual places
    #[arg(long)]
    data: Option<PathBuf>,
    /// The share of the test images to get right
    #[arg(long, default_value_t = 0.8)]
    target: f64,
    /// Epochs to give up after
    #[arg(long, default_value_t = 8)]
    epochs: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What cargo passes to a bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn run(args: &Args) -> Result<()> {
    cotangent::cpu::set_num_threads(None)?;
    let dir = find_cifar10(args.data.as_deref())?
        .ok_or_else(|| Error::argument("to_accuracy", "CIFAR-10 is not here; --data says where"))?;
    let splits = load_cifar10(&dir)?;
    let start = Instant::now();
    let config = DeeperConfig {
        num_filters: vec![32, 32, 64, 64, 128, 128],
        hidden_dim: 256,
        use_batchnorm: true,
        weight_scale: None,
        reg: 5e-4,
        ..DeeperConfig::default()
    };
    let mut model = DeeperConvNet::new(config, &mut Generator::new(args.seed))?;
    let data = SolverData {
        normalize: Normalize::per_channel(&splits.train)?,
        train: splits.train,
        val: splits.test,
        augment: Augment::standard(),
    };
    let config = SolverConfig {
        update_rule: UpdateRule::Adam,
        optim_config: OptimConfig {
            learning_rate: Some(2e-3),
            ..OptimConfig::default()
        },
        schedule: Schedule::Step {
            step_size: 2,
            gamma: 0.5,
            unit: Unit::Epoch,
        },
        num_epochs: args.epochs,
        num_train_samples: Some(100),
        target_accuracy: Some(args.target),
        print_every: 100,
        seed: args.seed,
        ..SolverConfig::default()
    };
    let mut solver = Solver::new(&mut model, data, config)?;
    let outcome = solver.train()?;
    let seconds = start.elapsed().as_secs_f64();
    let history = solver.history();
    let reached = match outcome {
        Outcome::Reached => "reached",
        _ => "not reached",
    };
    println!(
        "{:.0} % {reached} after {} epochs and {seconds:.1} s on {} threads: {:?}",
        100.0 * args.target,
        history.epochs,
        cotangent::cpu::get_num_threads(),
        history.val_acc_history,
    );
    Ok(())
}

fn main() {
    if let Err(e) = run(&Args::parse()) {
        eprintln!("error: {e}");
        std::process::exit(1);
    }
}
