//! Every network of the registry learns: a narrow one of each kind, a few dozen steps. The loss falls, and
//! images that were not learned from are told apart better than by chance.
//!
//! The images are the embedded ones, or with `COTANGENT_LEARNING=cifar10` the real ones, wherever
//! `find_cifar10` finds them; each has its own limits.

use std::sync::OnceLock;

use cotangent::autograd::no_grad;
use cotangent::data::{
    Augment, Batch, Dataset, Loader, Normalize, find_cifar10, load_cifar10, synthetic,
};
use cotangent::models::{self, Settings, registry};
use cotangent::nn::{Mode, Module};
use cotangent::ops::Reduction;
use cotangent::optim::{Adam, AdamConfig, Optimizer};
use cotangent::train::{OptimConfig, Solver, SolverConfig, SolverData, UpdateRule};
use cotangent::{Error, Result, Tensor};

/// Images to learn from, and others to judge by; of 500, chance is 10 % with a deviation of 1.3 %.
const IMAGES: [usize; 2] = [1000, 500];
const BATCH: usize = 50;
/// Steps whose losses are averaged, at the beginning and at the end.
const FEW: usize = 5;

/// What a network must reach: the loss of the last steps at most this share of the first ones', and at
/// least this accuracy.
type Limits = [f64; 2];

struct Case {
    name: &'static str,
    /// What makes it narrow.
    settings: &'static str,
    /// Height and width of the images: small ones take less time.
    side: usize,
    learning_rate: f64,
    epochs: usize,
    embedded: Limits,
    cifar10: Limits,
}

/// A test a network. Behind the limits of the embedded images and of CIFAR-10 stands what was measured of
/// each; the room between them is what other vectors' rounding may take.
macro_rules! networks {
    ($($name:ident $settings:literal, $side:literal px, $lr:literal x $epochs:literal, $embedded:expr, $cifar10:expr;)*) => {
        $(#[test]
        fn $name() -> Result<()> {
            learns(&Case {
                name: stringify!($name),
                settings: $settings,
                side: $side,
                learning_rate: $lr,
                epochs: $epochs,
                embedded: $embedded,
                cifar10: $cifar10,
            })
        })*
        const CLASSIFIERS: &[&str] = &[$(stringify!($name)),*];
    };
}

networks! {
    two_layer r#"{"hidden_dim": 64, "weight_scale": null}"#, 16 px, 3e-3 x 5, [0.75, 0.19], [0.69, 0.20]; // 0.49, 0.264; 0.36, 0.280
    fully_connected r#"{"hidden_dims": [64, 32], "normalization": "batchnorm", "weight_scale": null}"#, 16 px, 1e-3 x 5, [0.83, 0.16], [0.79, 0.20]; // 0.66, 0.212; 0.57, 0.280
    three_layer r#"{"num_filters": 16, "filter_size": 5, "hidden_dim": 32, "weight_scale": null}"#, 16 px, 1e-3 x 10, [0.78, 0.21], [0.74, 0.24]; // 0.55, 0.286; 0.48, 0.340
    deeper r#"{"num_filters": [8, 16], "hidden_dim": 32, "use_batchnorm": true, "weight_scale": null}"#, 16 px, 1e-2 x 4, [0.76, 0.31], [0.73, 0.26]; // 0.51, 0.466; 0.45, 0.380
    resnet18 r#"{"width": 6}"#, 16 px, 3e-3 x 3, [0.83, 0.20], [0.82, 0.19]; // 0.65, 0.276; 0.63, 0.258
    res9 r#"{"widths": [8, 12, 16, 32]}"#, 16 px, 1e-2 x 4, [0.81, 0.21], [0.82, 0.22]; // 0.61, 0.284; 0.63, 0.308
    simp_res9 r#"{"widths": [8, 12, 16, 32]}"#, 16 px, 1e-2 x 5, [0.81, 0.25], [0.83, 0.23]; // 0.61, 0.364; 0.65, 0.318
    vgg_a r#"{"stages": [[8], [16], [24, 24]], "hidden_dims": [32, 32]}"#, 16 px, 3e-3 x 8, [0.83, 0.26], [0.90, 0.21]; // 0.64, 0.382; 0.79, 0.292
    vgg_a_bn r#"{"stages": [[8], [16], [24, 24]], "hidden_dims": [32, 32]}"#, 16 px, 3e-3 x 4, [0.85, 0.24], [0.86, 0.21]; // 0.68, 0.334; 0.71, 0.296
    alexnet r#"{"num_filters": [4, 8, 16, 16, 16], "hidden_dims": [64, 32]}"#, 24 px, 3e-3 x 5, [0.78, 0.19], [0.76, 0.19]; // 0.56, 0.264; 0.51, 0.250
    tiny_resnet r#"{"stem_width": 8, "widths": [8, 16, 32]}"#, 16 px, 3e-3 x 4, [0.78, 0.17], [0.78, 0.23]; // 0.56, 0.226; 0.55, 0.332
    inception_resnet r#"{"width": 4, "dropout": 0.1}"#, 20 px, 3e-3 x 3, [0.65, 0.16], [0.64, 0.19]; // 0.29, 0.216; 0.27, 0.254
    densenet r#"{"stem_width": 4, "widths": [8, 12, 16], "depth": 2}"#, 16 px, 3e-3 x 4, [0.69, 0.23], [0.69, 0.21]; // 0.37, 0.320; 0.38, 0.296
    convnext_small r#"{"depths": [1, 1], "dims": [48, 96], "layer_scale_init": 1.0}"#, 16 px, 1e-3 x 10, [0.86, 0.17], [0.77, 0.22]; // 0.70, 0.230; 0.53, 0.308
    convnext_base r#"{"depths": [1, 2], "dims": [48, 96], "layer_scale_init": 1.0}"#, 16 px, 5e-4 x 10, [0.81, 0.22], [0.78, 0.22]; // 0.60, 0.304; 0.56, 0.312
    convnext_large r#"{"depths": [1, 3], "dims": [48, 96], "layer_scale_init": 1.0}"#, 16 px, 5e-4 x 8, [0.86, 0.19], [0.83, 0.23]; // 0.71, 0.252; 0.65, 0.318
    autoencoder_classifier r#"{"stem_width": 8, "widths": [8, 16, 32], "decoder_widths": [16, 8]}"#, 16 px, 3e-3 x 4, [0.78, 0.17], [0.75, 0.21]; // 0.55, 0.222; 0.48, 0.290
}

/// Whether the images are the real ones.
fn real() -> bool {
    match std::env::var("COTANGENT_LEARNING").as_deref() {
        Err(_) | Ok("" | "embedded") => false,
        Ok("cifar10") => true,
        Ok(other) => panic!("COTANGENT_LEARNING={other}; expected embedded or cifar10"),
    }
}

/// Images to learn from and to judge by, read once.
fn images(side: usize) -> Result<[Dataset; 2]> {
    static IMAGES_OF: OnceLock<[Dataset; 2]> = OnceLock::new();
    let resized =
        |[train, held_out]: &[Dataset; 2]| Ok([train.resized(side)?, held_out.resized(side)?]);
    if let Some(found) = IMAGES_OF.get() {
        return resized(found);
    }
    let [train, held_out] = IMAGES;
    let both = if real() {
        let missing = || Error::config("COTANGENT_LEARNING", "CIFAR-10 is not here");
        let splits = load_cifar10(&find_cifar10(None)?.ok_or_else(missing)?)?;
        [
            splits.train.range(0..train)?,
            splits.test.range(0..held_out)?,
        ]
    } else {
        [synthetic(0, 0, train), synthetic(0, train as u64, held_out)]
    };
    resized(IMAGES_OF.get_or_init(|| both))
}

/// The narrow network for these images.
fn build(name: &str, settings: &str, data: &Dataset) -> Result<Box<dyn Module>> {
    let settings: Settings = serde_json::from_str(settings).expect("the table's settings are JSON");
    models::build_with(name, &settings, data.shape(), data.classes().len(), 0)
}

/// The mean of the first few losses and of the last.
fn ends(losses: &[f64]) -> [f64; 2] {
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    [mean(&losses[..FEW]), mean(&losses[losses.len() - FEW..])]
}

fn learns(case: &Case) -> Result<()> {
    let [train, held_out] = images(case.side)?;
    let normalize = Normalize::per_channel(&train)?;
    let mut net = build(case.name, case.settings, &train)?;
    let config = SolverConfig {
        update_rule: UpdateRule::Adam,
        optim_config: OptimConfig {
            learning_rate: Some(case.learning_rate),
            ..OptimConfig::default()
        },
        batch_size: BATCH,
        num_epochs: case.epochs,
        num_train_samples: Some(BATCH),
        verbose: false,
        ..SolverConfig::default()
    };
    let data = SolverData {
        train,
        val: held_out,
        normalize,
        augment: Augment::none(),
    };
    let mut solver = Solver::new(&mut *net, data, config)?;
    solver.train()?;
    let history = solver.history();
    let [first, last] = ends(&history.loss_history);
    // the last epoch's, not the best one's, which would be chosen by the images that it is judged by
    let accuracy = history.val_acc_history[case.epochs - 1];
    let [most, least] = if real() { case.cifar10 } else { case.embedded };
    let found = format!(
        "{}: loss {first:.3} to {last:.3}, a share of {:.3} (at most {most}); accuracy {accuracy:.3} \
         (at least {least}); {:.2} s",
        case.name,
        last / first,
        history.seconds
    );
    println!("{found}");
    assert!(last <= most * first && accuracy >= least, "{found}");
    Ok(())
}

fn tensor(batch: Batch) -> Result<Tensor> {
    Tensor::from_vec(batch.images, batch.shape)
}

/// What an autoencoder leaves of the images' variance, which is 1 for each channel: a grey picture
/// leaves all of it.
#[test]
fn autoencoder() -> Result<()> {
    let settings = r#"{"stem_width": 8, "widths": [12, 24], "decoder_widths": [24]}"#;
    let [train, held_out] = images(16)?;
    let normalize = Normalize::per_channel(&train)?;
    let mut net = build("autoencoder", settings, &train)?;
    let loader = |data: Dataset, shuffle| {
        Loader::new(data, &normalize, Augment::none(), BATCH, 0, shuffle, false)
    };
    let mut adam = Adam::new(AdamConfig {
        lr: 1e-2,
        ..AdamConfig::default()
    })?;
    let mut losses = Vec::new();
    let learn = loader(train, true)?;
    for epoch in 0..12 {
        for batch in learn.epoch(epoch) {
            let images = tensor(batch?)?;
            let loss = net
                .forward(&images, Mode::Train)?
                .mse_loss(&images, Reduction::Mean)?;
            losses.push(loss.item()?);
            adam.step(&mut *net, &loss.backward()?)?;
        }
    }
    let _quiet = no_grad();
    let mut unseen = Vec::new();
    for batch in loader(held_out, false)?.epoch(0) {
        let images = tensor(batch?)?;
        let back = net.forward(&images, Mode::Eval)?;
        unseen.push(back.mse_loss(&images, Reduction::Mean)?.item()?);
    }
    let unseen = unseen.iter().sum::<f64>() / unseen.len() as f64;
    let [first, last] = ends(&losses);
    // measured: 0.021 and 0.225 of CIFAR-10, 0.030 and 0.310 of the embedded images
    let [most, unseen_most] = if real() { [0.1, 0.3] } else { [0.1, 0.4] };
    let found = format!(
        "autoencoder: loss {first:.3} to {last:.3}, a share of {:.3} (at most {most}); of unseen \
         images {unseen:.3} (at most {unseen_most})",
        last / first
    );
    println!("{found}");
    assert!(last <= most * first && unseen <= unseen_most, "{found}");
    Ok(())
}

#[test]
fn no_network_is_left_out() {
    let mut tested: Vec<&str> = CLASSIFIERS.to_vec();
    tested.push("autoencoder");
    tested.sort_unstable();
    let mut all = registry::NAMES.to_vec();
    all.sort_unstable();
    assert_eq!(tested, all);
}
