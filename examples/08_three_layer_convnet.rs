//! Lesson 8, the Solver: the assignment's ThreeLayerConvNet, conv - ReLU - max pool - affine -
//! ReLU - affine, trained, scored, and its filters as a picture.
//!
//! `cargo run --release --example 08_three_layer_convnet` is a quick look at 1,000 images;
//! `-- --data DIR` takes the whole of CIFAR-10 from DIR. `-- --help` lists the settings.

use std::path::PathBuf;

use clap::Parser;
use cotangent::data::{Augment, Normalize, load_cifar10_or_synthetic};
use cotangent::models::{ThreeLayerConfig, ThreeLayerConvNet};
use cotangent::nn::Summary;
use cotangent::random::Generator;
use cotangent::train::{
    OptimConfig, Solver, SolverConfig, SolverData, UpdateRule, save_curves, save_filters,
};
use cotangent::{DType, Result, Tensor};

/// Train ThreeLayerConvNet.
#[derive(Parser)]
struct Args {
    /// CIFAR-10's folder (binary version); default: the usual places, else the embedded shapes
    #[arg(long)]
    data: Option<PathBuf>,
    /// Times through the training images
    #[arg(long, default_value_t = 5)]
    epochs: usize,
    /// Train on the first N images; default: 1,000, with --data all
    #[arg(long)]
    train_samples: Option<usize>,
    /// Adam's learning rate
    #[arg(long, default_value_t = 1e-3)]
    learning_rate: f64,
    /// Its factor after each epoch
    #[arg(long, default_value_t = 0.8)]
    lr_decay: f64,
    /// L2 penalty: 0.5 reg sum(W^2) joins the loss
    #[arg(long, default_value_t = 1e-3)]
    reg: f64,
    /// Standard deviation of the initial weights; default: Kaiming's
    #[arg(long)]
    weight_scale: Option<f64>,
    /// Units of the hidden layer
    #[arg(long, default_value_t = 256)]
    hidden: usize,
    /// Of weights and order
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The folder for curves, history and filters
    #[arg(long, default_value = "runs/08_three_layer_convnet")]
    out: PathBuf,
}

fn main() -> Result<()> {
    cotangent::cpu::set_num_threads(None)?;
    let args = Args::parse();
    let mut splits = load_cifar10_or_synthetic(args.data.as_deref(), args.seed)?;
    let quick = if args.data.is_none() {
        Some(1000)
    } else {
        None
    };
    if let Some(n) = args.train_samples.or(quick) {
        splits = splits.with_train_samples(n)?;
    }
    println!("{splits}");

    let config = ThreeLayerConfig {
        hidden_dim: args.hidden,
        weight_scale: args.weight_scale,
        reg: args.reg,
        ..ThreeLayerConfig::default()
    };
    let mut model = ThreeLayerConvNet::new(config, &mut Generator::new(args.seed))?;
    let one = Tensor::zeros([1, 3, 32, 32], DType::F32)?;
    println!("{}", Summary::of(&mut model, &one)?);

    let data = SolverData {
        normalize: Normalize::mean_image(&splits.train)?,
        train: splits.train,
        val: splits.val,
        augment: Augment::none(),
    };
    let config = SolverConfig {
        update_rule: UpdateRule::Adam,
        optim_config: OptimConfig {
            learning_rate: Some(args.learning_rate),
            ..OptimConfig::default()
        },
        lr_decay: args.lr_decay,
        batch_size: 50,
        num_epochs: args.epochs,
        print_every: 100,
        checkpoint_dir: Some(args.out.clone()),
        seed: args.seed,
        ..SolverConfig::default()
    };
    let mut solver = Solver::new(&mut model, data, config)?;
    solver.train()?;
    let history = solver.history();
    save_curves(&args.out, history)?;
    println!(
        "best validation accuracy {:.2} % at epoch {}, {:.1} s of training",
        100.0 * history.best_val_acc,
        history.best_epoch,
        history.seconds
    );

    save_filters(args.out.join("filters.png"), &mut model)?;
    println!(
        "wrote {}: filters.png, loss.png, accuracy.png, history.csv",
        args.out.display()
    );
    Ok(())
}
