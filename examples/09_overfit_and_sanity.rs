//! Lesson 9, before a long training: the initial loss, the gradients, and fifty images learned by
//! heart. A network that cannot overfit a handful of images is broken; no training mends it.
//!
//! `cargo run --release --example 09_overfit_and_sanity`

use cotangent::Result;
use cotangent::data::{Augment, Normalize, synthetic_splits};
use cotangent::models::{ThreeLayerConfig, ThreeLayerConvNet};
use cotangent::random::Generator;
use cotangent::train::{
    OptimConfig, SanityConfig, Solver, SolverConfig, SolverData, UpdateRule, sanity_checks,
};

fn main() -> Result<()> {
    let splits = synthetic_splits(0).with_train_samples(50)?;
    let normalize = Normalize::mean_image(&splits.train)?;
    let model = |weight_scale| {
        let config = ThreeLayerConfig {
            num_filters: 8,
            filter_size: 3,
            hidden_dim: 32,
            weight_scale: Some(weight_scale),
            ..ThreeLayerConfig::default()
        };
        ThreeLayerConvNet::new(config, &mut Generator::new(0))
    };
    let sanity = SanityConfig {
        learning_rate: 4e-3,
        ..SanityConfig::default()
    };

    println!("-- The four checks of a fresh network.");
    let mut good = model(1e-2)?;
    print!(
        "{}",
        sanity_checks(&mut good, &splits.train, &normalize, &sanity)?
    );

    println!("\n-- The same with weights a hundred times as large: the loss shows it at once.");
    let mut wild = model(1.0)?;
    print!(
        "{}",
        sanity_checks(&mut wild, &splits.train, &normalize, &sanity)?
    );

    println!("\n-- Overfitting, epoch by epoch: training rises to 100 %, validation does not.");
    let data = SolverData {
        train: splits.train,
        val: splits.val.range(0..200)?,
        normalize,
        augment: Augment::none(),
    };
    let config = SolverConfig {
        update_rule: UpdateRule::Adam,
        optim_config: OptimConfig {
            learning_rate: Some(4e-3),
            ..OptimConfig::default()
        },
        batch_size: 25,
        num_epochs: 60,
        verbose: false,
        ..SolverConfig::default()
    };
    let mut solver = Solver::new(&mut good, data, config)?;
    solver.train()?;
    let history = solver.history();
    let percent = |a: f64| 100.0 * a;
    for epoch in (5..=history.epochs).step_by(5) {
        println!(
            "epoch {epoch:2}: loss {:.3}, train {:5.1} %, validation {:5.1} %",
            history.epoch_losses()[epoch - 1],
            percent(history.train_acc_history[epoch - 1]),
            percent(history.val_acc_history[epoch - 1]),
        );
    }
    Ok(())
}
