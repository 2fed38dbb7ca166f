//! Lesson 5, update rules: plain gradient descent, momentum, RMSprop and Adam from the same
//! start on the same images. The loss curves go into one plot.
//!
//! `cargo run --release --example 05_update_rules [FOLDER]`

use std::path::PathBuf;

use cotangent::Result;
use cotangent::data::{Augment, Normalize, synthetic_splits};
use cotangent::models::{FullyConnectedConfig, FullyConnectedNet};
use cotangent::random::Generator;
use cotangent::train::files::create_dir;
use cotangent::train::{
    History, OptimConfig, Plot, Series, Solver, SolverConfig, SolverData, UpdateRule,
};

/// Rules, their formula, and a learning rate that suits each.
const RULES: [(&str, UpdateRule, &str, f64); 4] = [
    ("sgd", UpdateRule::Sgd, "w -= lr dw", 1e-2),
    (
        "sgd_momentum",
        UpdateRule::SgdMomentum,
        "v = 0.9 v + dw; w -= lr v",
        1e-2,
    ),
    (
        "rmsprop",
        UpdateRule::RmsProp,
        "s = 0.99 s + 0.01 dw^2; w -= lr dw / sqrt s",
        3e-4,
    ),
    (
        "adam",
        UpdateRule::Adam,
        "momentum and rmsprop, both corrected at the start",
        1e-3,
    ),
];

fn train(data: &SolverData, rule: UpdateRule, learning_rate: f64) -> Result<History> {
    let config = FullyConnectedConfig {
        hidden_dims: vec![100, 100],
        weight_scale: None,
        ..FullyConnectedConfig::default()
    };
    // the same seed for each rule: the same weights, the same order of images
    let mut model = FullyConnectedNet::new(config, &mut Generator::new(0))?;
    let config = SolverConfig {
        update_rule: rule,
        optim_config: OptimConfig {
            learning_rate: Some(learning_rate),
            ..OptimConfig::default()
        },
        num_epochs: 8,
        verbose: false,
        ..SolverConfig::default()
    };
    let mut solver = Solver::new(&mut model, data.clone(), config)?;
    solver.train()?;
    Ok(solver.history().clone())
}

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1);
    let folder = folder.map_or("runs/05_update_rules".into(), PathBuf::from);
    let splits = synthetic_splits(0).with_train_samples(2000)?;
    println!("{splits}");
    let data = SolverData {
        normalize: Normalize::mean_image(&splits.train)?,
        train: splits.train,
        val: splits.val,
        augment: Augment::none(),
    };
    let mut curves = Vec::new();
    for (name, rule, formula, learning_rate) in RULES {
        println!("\n-- {name}: {formula}; learning rate {learning_rate}");
        let history = train(&data, rule, learning_rate)?;
        let losses = history.epoch_losses();
        let text: Vec<String> = losses.iter().map(|l| format!("{l:.3}")).collect();
        println!("mean loss of each epoch: {}", text.join(" "));
        println!(
            "best validation accuracy {:.1} %",
            100.0 * history.best_val_acc
        );
        let points = (1..).map(f64::from).zip(losses).collect();
        curves.push(Series::markers(name, points));
    }
    create_dir(&folder)?;
    let plot = Plot {
        title: "Update rules",
        x_label: "epoch",
        y_label: "mean training loss",
        series: &curves,
    };
    plot.save(&folder, "update_rules")?;
    println!("\nwrote {}/update_rules.svg and .png", folder.display());
    Ok(())
}
