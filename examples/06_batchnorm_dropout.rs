//! Lesson 6, batch norm and dropout: two layers that are not the same in training and in
//! evaluation, and how a good network collapses when it is evaluated in the wrong mode.
//!
//! `cargo run --release --example 06_batchnorm_dropout`

use cotangent::autograd::no_grad;
use cotangent::data::{Augment, Dataset, Loader, Normalize, synthetic_splits};
use cotangent::models::{FullyConnectedConfig, FullyConnectedNet};
use cotangent::nn::{self, BatchNorm1d, Dropout, Mode, Module, Norm};
use cotangent::ops::accuracy;
use cotangent::random::Generator;
use cotangent::train::{OptimConfig, Solver, SolverConfig, SolverData, UpdateRule};
use cotangent::{DType, Result, Tensor};

/// The accuracy in percent over `data` in a mode. Training's mode moves the running statistics,
/// so the model is put back as it was.
fn percent(model: &mut dyn Module, data: &Dataset, norm: &Normalize, mode: Mode) -> Result<f64> {
    let _quiet = no_grad();
    let before = nn::state_dict(model);
    let loader = Loader::new(data.clone(), norm, Augment::none(), 50, 0, false, true)?;
    let mut sum = 0.0;
    for batch in loader.epoch(0) {
        let batch = batch?;
        let scores = model.forward(&Tensor::from_vec(batch.images, batch.shape)?, mode)?;
        let labels = Tensor::from_vec(batch.labels, batch.shape[0])?;
        sum += accuracy(&scores, &labels)?;
    }
    nn::load_state_dict(model, &before)?;
    Ok(100.0 * sum / loader.batches() as f64)
}

fn main() -> Result<()> {
    let mut rng = Generator::new(0);
    println!("-- Batch norm: each column of the batch to mean 0 and deviation 1.");
    let x = Tensor::randn([200, 3], &mut rng, DType::F32)?;
    let scale = Tensor::from_vec(vec![1f32, 5.0, 10.0], [3])?;
    let x = x.mul(&scale)?.add_scalar(4.0)?;
    let show = |name: &str, t: &Tensor| -> Result<()> {
        let deviation = t.var(&[0], 0, false)?.sqrt()?;
        println!(
            "{name}: means {}, deviations {deviation}",
            t.mean(&[0], false)?
        );
        Ok(())
    };
    let mut bn = BatchNorm1d::new(3)?;
    show("before    ", &x)?;
    show("training  ", &bn.forward(&x, Mode::Train)?.detach())?;
    println!("Evaluation takes running statistics, which begin at 0 and 1 and move slowly:");
    for batches in [1, 10, 100] {
        while bn.num_batches_tracked.item()? < batches as f64 {
            bn.forward(&x, Mode::Train)?;
        }
        println!(
            "after {batches:3} batches: running mean {}",
            bn.running_mean
        );
        show("evaluation", &bn.forward(&x, Mode::Eval)?.detach())?;
    }

    println!("\n-- Dropout: some units become 0, the others grow, the mean stays.");
    let ten = Tensor::full([10_000], 10.0, DType::F32)?;
    let mut dropout = Dropout::new(0.25, &mut rng)?;
    for mode in [Mode::Train, Mode::Eval] {
        let y = dropout.forward(&ten, mode)?;
        let zeros = y.eq(&y.zeros_like()?)?.to_dtype(DType::F32)?.mean_all()?;
        println!(
            "{mode:?}: mean {:.2}, {:.1} % zeros",
            y.mean_all()?.item()?,
            100.0 * zeros.item()?
        );
    }

    println!("\n-- A network with both, trained, then evaluated in both modes.");
    let splits = synthetic_splits(0).with_train_samples(2000)?;
    let normalize = Normalize::mean_image(&splits.train)?;
    let config = FullyConnectedConfig {
        normalization: Norm::Batch,
        dropout_keep_ratio: 0.75,
        weight_scale: None,
        ..FullyConnectedConfig::default()
    };
    let mut model = FullyConnectedNet::new(config, &mut rng)?;
    let data = SolverData {
        train: splits.train,
        val: splits.val.clone(),
        normalize: normalize.clone(),
        augment: Augment::none(),
    };
    let config = SolverConfig {
        update_rule: UpdateRule::Adam,
        optim_config: OptimConfig::default(),
        num_epochs: 8,
        verbose: false,
        ..SolverConfig::default()
    };
    Solver::new(&mut model, data, config)?.train()?;

    let mixed = splits.val;
    let mut order: Vec<usize> = (0..mixed.len()).collect();
    order.sort_by_key(|&i| mixed.label(i));
    let sorted = mixed.subset(&order)?;
    for mode in [Mode::Eval, Mode::Train] {
        let mut of = |data| percent(&mut model, data, &normalize, mode);
        println!(
            "{mode:?}: mixed batches {:.1} %, batches of one class {:.1} %",
            of(&mixed)?,
            of(&sorted)?
        );
    }
    println!("Training's mode drops units, and subtracts from each class what all of its images");
    println!("share: the class itself. Evaluation looks at each image alone, whatever its batch.");
    Ok(())
}
