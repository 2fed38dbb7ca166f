//! The `cotangent` command line: parsing only; the library does the work.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cotangent::data::{Normalize, load_cifar10_or_synthetic, synthetic_splits};
use cotangent::models;
use cotangent::nn::Summary;
use cotangent::ops::{all_cases, gradcheck};
use cotangent::train::{SanityConfig, sanity_checks};
use cotangent::{DType, Device, Result, Tensor, cuda};

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
    /// Print a network's layers, output shapes and parameter counts
    Summary {
        #[command(flatten)]
        network: Network,
    },
    /// List the devices that tensors can live on
    Devices,
    /// CS231n's sanity checks of a network: initial loss, sparse gradient check, overfitting 50 images
    Sanity {
        /// The network: two_layer, fully_connected, three_layer, deeper or resnet18
        model: String,
        /// CIFAR-10's folder, or "embedded"; default: $CIFAR10_DIR, the usual places, else embedded
        #[arg(long)]
        data: Option<std::path::PathBuf>,
        /// Seed of the weights and of the choice of images
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

#[derive(clap::Args)]
struct Network {
    /// The network: two_layer, fully_connected, three_layer, deeper or resnet18
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
}

impl Network {
    fn input(&self) -> [usize; 3] {
        // clap has seen to it that there are three
        [self.input[0], self.input[1], self.input[2]]
    }
}

fn main() -> ExitCode {
    cotangent::cpu::use_current_thread();
    match run(Cli::parse().command) {
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
            let mut model = models::build(&n.model, input, n.classes, n.seed)?;
            let x = Tensor::zeros([1, input[0], input[1], input[2]], DType::F32)?;
            println!("{}", model.describe());
            println!("{}", Summary::of(&mut *model, &x)?);
            Ok(true)
        }
        Command::Devices => {
            println!(
                "cpu      {} threads, {:?}",
                rayon::current_num_threads(),
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
