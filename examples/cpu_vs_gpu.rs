//! The same training on the CPU and on a CUDA device: time, images a second, speedup and memory.
//!
//! `cargo run --release --example cpu_vs_gpu`, or as a benchmark `cargo bench --bench cpu_vs_gpu`.
//! With no GPU it says so and runs the CPU alone. A student's report with 44.16x, of a ResNet-18 on
//! an RTX 3090 against its host's CPU, is what this table is modelled on.

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use cotangent::data::{Augment, Normalize, load_cifar10_or_synthetic, synthetic_splits};
use cotangent::models::{DeeperConfig, DeeperConvNet};
use cotangent::nn;
use cotangent::random::Generator;
use cotangent::train::{OptimConfig, Solver, SolverConfig, SolverData, UpdateRule};
use cotangent::{Device, Result};

/// Train the same model on both devices.
#[derive(Parser)]
struct Args {
    /// Folder of CIFAR-10; `embedded` for synthetic images; without it, where it is usually found.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Training images.
    #[arg(long, default_value_t = 5000)]
    train_samples: usize,
    /// Times through them.
    #[arg(long, default_value_t = 2)]
    epochs: usize,
    /// Images a step.
    #[arg(long, default_value_t = 100)]
    batch_size: usize,
    /// Filters of each convolution.
    #[arg(long, value_delimiter = ',', default_value = "32,64")]
    num_filters: Vec<usize>,
    /// The device beside the CPU: cuda, cuda:N or cuda_emulated (the same kernels on the CPU).
    #[arg(long, default_value = "cuda")]
    device: String,
    /// Of weights, order and dropout.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Given by `cargo bench`; without effect.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A device's column.
struct Column {
    device: String,
    seconds: f64,
    images: f64,
    /// Bytes at the peak.
    memory: usize,
    accuracy: f64,
}

/// The table, or an error and exit code 1.
pub fn main() {
    if let Err(e) = run(&Args::parse()) {
        eprintln!("error: {e}");
        std::process::exit(1);
    }
}

fn run(args: &Args) -> Result<()> {
    cotangent::cpu::set_num_threads(None)?;
    let splits = match &args.data {
        Some(name) if name.as_os_str() == "embedded" => synthetic_splits(args.seed),
        dir => load_cifar10_or_synthetic(dir.as_deref(), args.seed)?,
    };
    let splits = splits.with_train_samples(args.train_samples)?;
    let data = SolverData {
        normalize: Normalize::per_channel(&splits.train)?,
        val: splits.val.range(0..splits.val.len().min(1000))?,
        train: splits.train.clone(),
        augment: Augment::standard(),
    };
    println!(
        "DeeperConvNet with {:?} filters, {} images, batches of {}, {} epochs\n",
        args.num_filters,
        data.train.len(),
        args.batch_size,
        args.epochs
    );

    let cpu = column(args, &data, Device::Cpu)?;
    println!(
        "{:34} {:>10} {:>10} {:>9} {:>12} {:>10}",
        "device", "seconds", "images/s", "speedup", "memory", "val. acc."
    );
    print_row(&cpu, &cpu);
    match Device::parse(&args.device) {
        Ok(device) => print_row(&column(args, &data, device)?, &cpu),
        Err(e @ cotangent::Error::NoCuda { .. }) => println!("\n{e}: the CPU ran alone"),
        Err(e) => return Err(e),
    }
    Ok(())
}

/// Train on a device. A few steps first, unmeasured: kernels are compiled and caches filled.
fn column(args: &Args, data: &SolverData, device: Device) -> Result<Column> {
    let warm_up = (4 * args.batch_size).min(data.train.len());
    let few = SolverData {
        train: data.train.range(0..warm_up)?,
        ..data.clone()
    };
    train(args, &few, device, 1)?;
    device.reset_peak()?;
    train(args, data, device, args.epochs)
}

fn train(args: &Args, data: &SolverData, device: Device, epochs: usize) -> Result<Column> {
    let config = DeeperConfig {
        num_filters: args.num_filters.clone(),
        input_dim: data.train.shape(),
        num_classes: data.train.classes().len(),
        use_batchnorm: true,
        ..DeeperConfig::default()
    };
    let mut model = DeeperConvNet::new(config, &mut Generator::new(args.seed))?;
    nn::to_device(&mut model, device)?;
    let config = SolverConfig {
        update_rule: UpdateRule::Adam,
        optim_config: OptimConfig {
            learning_rate: Some(1e-3),
            ..OptimConfig::default()
        },
        batch_size: args.batch_size,
        num_epochs: epochs,
        num_train_samples: Some(args.batch_size),
        verbose: false,
        seed: args.seed,
        ..SolverConfig::default()
    };
    let mut solver = Solver::new(&mut model, data.clone(), config)?;
    let start = Instant::now();
    solver.train()?;
    device.synchronize()?;
    let seconds = start.elapsed().as_secs_f64();
    let steps = solver.history().loss_history.len();
    let name = match device {
        Device::Cpu => format!("CPU, {} threads", cotangent::cpu::get_num_threads()),
        Device::Cuda(_) => device.describe()?,
    };
    Ok(Column {
        device: name,
        seconds,
        images: (steps * args.batch_size) as f64 / seconds,
        memory: device.memory_stats()?.peak_bytes,
        accuracy: solver.history().best_val_acc,
    })
}

fn print_row(row: &Column, cpu: &Column) {
    println!(
        "{:34} {:10.2} {:10.0} {:8.2}x {:8.1} MiB {:8.1} %",
        row.device,
        row.seconds,
        row.images,
        cpu.seconds / row.seconds,
        row.memory as f64 / (1 << 20) as f64,
        100.0 * row.accuracy,
    );
}
