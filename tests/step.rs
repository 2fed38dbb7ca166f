//! A training step in its kinds: several batches a step, mixed precision, a loss scale, activations
//! computed again. On the CPU, and where the build has it on the emulated device, captured or not.

use std::path::Path;

use cotangent::data::{Augment, Mix, Normalize, synthetic};
use cotangent::nn::{
    self, Activation, BatchNorm2d, Checkpointed, Conv2d, Conv2dConfig, Dropout, Flatten, Linear,
    Mode, Module, Sequential, Visitor,
};
use cotangent::optim::{EmaConfig, Schedule};
use cotangent::random::Generator;
use cotangent::train::{
    Checkpoint, LossScale, OptimConfig, Precision, Solver, SolverConfig, SolverData, UpdateRule,
};
use cotangent::{DType, Device, Error, Result, Tensor};

const BATCH: usize = 6;

fn data(n: usize) -> SolverData {
    let train = synthetic(0, 0, n);
    SolverData {
        normalize: Normalize::per_channel(&train).unwrap(),
        val: synthetic(0, 500, BATCH),
        train,
        augment: Augment::standard(),
    }
}

fn config(epochs: usize) -> SolverConfig {
    SolverConfig {
        update_rule: UpdateRule::Adam,
        optim_config: OptimConfig {
            learning_rate: Some(2e-3),
            ..OptimConfig::default()
        },
        batch_size: BATCH,
        num_epochs: epochs,
        num_train_samples: Some(BATCH),
        reg: 1e-3,
        verbose: false,
        ..SolverConfig::default()
    }
}

/// Settings of [`config`], with an average of the weights.
fn averaged(decay: Option<f64>) -> OptimConfig {
    let average = |decay| EmaConfig {
        decay,
        warmup: false,
    };
    OptimConfig {
        ema: decay.map(average),
        ..config(1).optim_config
    }
}

/// A convolution, batch norm and dropout, computed again in backward, and a classifier.
fn convnet(device: Device) -> Sequential {
    let rng = &mut Generator::new(5);
    let conv = Conv2dConfig {
        stride: [4, 4],
        ..Conv2dConfig::new([4, 4])
    };
    let body = Sequential::new()
        .push(Conv2d::new(3, 4, conv, rng).unwrap())
        .push(BatchNorm2d::new(4).unwrap())
        .push(Activation::Relu)
        .push(Dropout::new(0.2, rng).unwrap());
    let mut model = Sequential::new()
        .push(Checkpointed::new(body))
        .push(Flatten)
        .push(Linear::new(4 * 64, 10, true, rng).unwrap());
    nn::to_device(&mut model, device).unwrap();
    model
}

/// A network without batch norm, in F64.
struct Double(Sequential);

impl Double {
    fn new(device: Device) -> Self {
        let rng = &mut Generator::new(5);
        let net = Sequential::new()
            .push(Flatten)
            .push(Linear::new(3072, 7, true, rng).unwrap())
            .push(Activation::Tanh)
            .push(Linear::new(7, 10, true, rng).unwrap());
        let mut net = Double(net);
        nn::to_dtype(&mut net, DType::F64).unwrap();
        nn::to_device(&mut net, device).unwrap();
        net
    }
}

impl Module for Double {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.0.forward(&x.to_dtype(DType::F64)?, mode)
    }
    fn visit(&mut self, v: &mut Visitor<'_>) {
        self.0.visit(v);
    }
    fn describe(&self) -> String {
        self.0.describe()
    }
}

/// Of a kind of step: with everything, images are mixed and labels are shares of classes.
fn data_for(kind: &str, n: usize) -> SolverData {
    let mut data = data(n);
    if kind == "everything" {
        data.augment.mix = vec![Mix::Mixup { alpha: 0.5 }];
    }
    data
}

/// An emulated device that no other test of this file uses, or (`GPU_REQUIRED=1`) a real one.
fn gpu(n: u8) -> Option<Device> {
    match std::env::var_os("GPU_REQUIRED") {
        Some(_) => Some(Device::cuda(0).expect("GPU_REQUIRED is set")),
        None => Device::cuda_emulated_nth(n).ok(),
    }
}

/// The CPU and a GPU.
fn devices(n: u8) -> Vec<Device> {
    [Some(Device::Cpu), gpu(n)].into_iter().flatten().collect()
}

fn values(model: &mut dyn Module) -> Vec<f64> {
    let state = nn::state_dict(model).into_iter();
    let of = |t: Tensor| t.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap();
    state.flat_map(|(_, t)| of(t)).collect()
}

fn bits(model: &mut dyn Module) -> Vec<u64> {
    values(model).into_iter().map(f64::to_bits).collect()
}

/// The kinds of steps.
fn kinds() -> Vec<(&'static str, SolverConfig)> {
    let whole = config(2);
    let several = SolverConfig {
        accumulate: 2,
        ..whole.clone()
    };
    // the first steps overflow
    let loss_scale = LossScale {
        init_scale: 2f64.powi(40),
        backoff_factor: 2f64.powi(-13),
        growth_interval: 2,
        ..LossScale::default()
    };
    let f16 = SolverConfig {
        autocast: Precision::F16,
        loss_scale,
        ..whole.clone()
    };
    // every third step overflows
    let too_fast = SolverConfig {
        loss_scale: LossScale {
            init_scale: 1024.0,
            growth_factor: 2f64.powi(80),
            backoff_factor: 2f64.powi(-80),
            growth_interval: 2,
        },
        ..f16.clone()
    };
    let bf16 = SolverConfig {
        autocast: Precision::Bf16,
        ..whole.clone()
    };
    let both = SolverConfig {
        accumulate: 2,
        ..f16.clone()
    };
    let clipped = SolverConfig {
        clip_grad_norm: Some(0.5),
        clip_grad_value: Some(0.05),
        optim_config: averaged(Some(0.7)),
        ..whole.clone()
    };
    let all = SolverConfig {
        clip_grad_norm: Some(0.5),
        optim_config: averaged(Some(0.7)),
        ..both.clone()
    };
    vec![
        ("whole", whole),
        ("accumulate", several),
        ("bf16", bf16),
        ("f16", f16),
        ("f16 whose scale grows too fast", too_fast),
        ("f16, accumulate", both),
        ("clipped and averaged", clipped),
        ("everything", all),
    ]
}

#[test]
fn small_batches_make_a_large_one() {
    for device in devices(0) {
        let run = |n: usize, batch_size: usize, accumulate: usize| {
            let mut model = Double::new(device);
            let config = SolverConfig {
                batch_size,
                accumulate,
                update_rule: UpdateRule::SgdMomentum,
                ..config(3)
            };
            let mut solver = Solver::new(&mut model, data(n), config).unwrap();
            solver.train().unwrap();
            let losses = solver.history().loss_history.clone();
            (losses, values(&mut model))
        };
        let close = |a: &[f64], b: &[f64]| {
            assert_eq!(a.len(), b.len());
            let worst = a
                .iter()
                .zip(b)
                .map(|(a, b)| (a - b).abs() / b.abs().max(1.0));
            let worst = worst.fold(0.0, f64::max);
            assert!(worst < 1e-12, "{worst} on {device}");
        };
        let (losses, parameters) = run(36, 18, 1);
        let (small, same) = run(36, 6, 3);
        close(&small, &losses);
        close(&same, &parameters);
        // an epoch's last step has what is left over: two of four batches
        let (losses, parameters) = run(12, 12, 1);
        let (small, same) = run(12, 6, 4);
        assert_eq!(small.len(), 3);
        close(&small, &losses);
        close(&same, &parameters);
    }
}

#[test]
fn an_epochs_steps_are_counted() {
    let mut model = Double::new(Device::Cpu);
    let config = SolverConfig {
        accumulate: 3,
        ..config(2)
    };
    // 7 batches: steps of 3, 3 and 1
    let mut solver = Solver::new(&mut model, data(7 * BATCH), config).unwrap();
    solver.train().unwrap();
    assert_eq!(solver.history().epoch_steps, [3, 3]);
}

#[test]
fn a_captured_step_is_the_plain_one_to_the_bit() {
    for (i, (name, config)) in kinds().into_iter().enumerate() {
        let run = |plain: bool| {
            let device = gpu(10 + 2 * i as u8 + plain as u8)?;
            let mut model = convnet(device);
            let mut solver =
                Solver::new(&mut model, data_for(name, 7 * BATCH), config.clone()).unwrap();
            if plain {
                solver = solver.without_capture();
            }
            solver.train().unwrap();
            assert_eq!(solver.is_captured(), !plain, "{name}");
            let losses = solver.history().loss_history.iter().map(|l| l.to_bits());
            let (losses, scaler) = (losses.collect::<Vec<_>>(), solver.scaler().copied());
            if let Some(scaler) = scaler {
                let steps = losses.len() as u64;
                assert!((1..steps).contains(&scaler.skipped()), "{scaler:?}");
            }
            Some((losses, scaler, bits(&mut model)))
        };
        assert!(run(true) == run(false), "{name}");
    }
}

#[test]
fn memory_is_steady() {
    for (i, (name, config)) in kinds().into_iter().enumerate() {
        let run = |epochs: usize| {
            let n = 30 + 2 * i as u8 + (epochs > 2) as u8;
            let Ok(device @ Device::Cuda(gpu)) = Device::cuda_emulated_nth(n) else {
                return (0, 0);
            };
            let mut model = convnet(device);
            let config = SolverConfig {
                num_epochs: epochs,
                ..config.clone()
            };
            let mut solver = Solver::new(&mut model, data_for(name, 6 * BATCH), config).unwrap();
            solver.train().unwrap();
            let stats = gpu.memory_stats().unwrap();
            (stats.allocations, stats.live)
        };
        assert_eq!(run(2), run(4), "{name}");
    }
}

#[test]
fn a_resumed_run_goes_on_to_the_bit() {
    for device in devices(1) {
        for (name, config) in kinds() {
            let dir = tempfile::tempdir().unwrap();
            let config = |epochs| SolverConfig {
                schedule: Schedule::Constant,
                checkpoint_dir: Some(dir.path().into()),
                num_epochs: epochs,
                ..config.clone()
            };
            let run = |epochs, resume: bool| {
                let mut model = convnet(device);
                let mut solver =
                    Solver::new(&mut model, data_for(name, 5 * BATCH), config(epochs)).unwrap();
                if resume {
                    let path = dir.path().join("checkpoint.safetensors");
                    solver.resume(path).unwrap();
                }
                solver.train().unwrap();
                let scaler = solver.scaler().copied();
                (scaler, bits(&mut model))
            };
            let whole = run(2, false);
            run(1, false);
            assert!(run(2, true) == whole, "{name} on {device}");
        }
    }
}

#[test]
fn an_overflow_leaves_the_step_out_and_the_run_goes_on() {
    for device in devices(2) {
        let dir = tempfile::tempdir().unwrap();
        let mut model = convnet(device);
        let parameters = |model: &mut dyn Module| -> Vec<(String, Vec<f32>)> {
            let all = nn::named_parameters(model).into_iter();
            all.map(|(n, t)| (n, t.to_vec().unwrap())).collect()
        };
        let before = parameters(&mut model);
        let config = |epochs| SolverConfig {
            autocast: Precision::F16,
            loss_scale: LossScale {
                init_scale: 2f64.powi(120),
                backoff_factor: 2f64.powi(-55),
                ..LossScale::default()
            },
            checkpoint_dir: Some(dir.path().into()),
            num_epochs: epochs,
            ..config(epochs)
        };
        let mut solver = Solver::new(&mut model, data(BATCH), config(1)).unwrap();
        solver.train().unwrap();
        let scaler = *solver.scaler().unwrap();
        assert_eq!((scaler.scale(), scaler.skipped()), (2f64.powi(65), 1));
        assert_eq!(parameters(&mut model), before);
        let path = dir.path().join("checkpoint.safetensors");
        assert!(Checkpoint::load(&path).unwrap().optimizer.is_empty());

        let mut solver = Solver::new(&mut model, data(BATCH), config(6)).unwrap();
        solver.resume(&path).unwrap();
        solver.train().unwrap();
        let scaler = *solver.scaler().unwrap();
        assert_eq!((scaler.scale(), scaler.skipped()), (2f64.powi(10), 2));
        let saved = Checkpoint::load(&path).unwrap();
        assert_eq!(saved.run.scaler, Some(scaler));
        let step = saved.optimizer.iter().find(|(n, _)| n.starts_with("step."));
        assert_eq!(step.unwrap().1.item().unwrap(), 4.0);
    }
}

#[test]
fn a_step_is_as_long_as_clipping_lets_it() {
    for device in devices(3) {
        let moves = |change: fn(&mut SolverConfig)| {
            let mut model = Double::new(device);
            let before = values(&mut model);
            let mut config = SolverConfig {
                update_rule: UpdateRule::Sgd,
                optim_config: OptimConfig {
                    learning_rate: Some(1.0),
                    ..OptimConfig::default()
                },
                ..config(1)
            };
            change(&mut config);
            let mut solver = Solver::new(&mut model, data(BATCH), config).unwrap();
            solver.train().unwrap();
            let after = values(&mut model).into_iter();
            after.zip(before).map(|(a, b)| a - b).collect::<Vec<_>>()
        };
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let most = |v: &[f64]| v.iter().map(|x| x.abs()).fold(0.0, f64::max);
        let free = moves(|_| ());
        assert!(norm(&free) > 0.1 && most(&free) > 0.01);
        let clipped = moves(|c| c.clip_grad_norm = Some(0.02));
        assert!(
            (norm(&clipped) / 0.02 - 1.0).abs() < 1e-4,
            "{}",
            norm(&clipped)
        );
        // in the same direction
        let dot: f64 = clipped.iter().zip(&free).map(|(a, b)| a * b).sum();
        assert!((dot / norm(&free) / norm(&clipped) - 1.0).abs() < 1e-9);
        let clipped = moves(|c| c.clip_grad_value = Some(0.001));
        assert!(
            (most(&clipped) / 0.001 - 1.0).abs() < 1e-9,
            "{}",
            most(&clipped)
        );
    }
}

/// Its bias takes part in the first batch alone; what it was at each batch.
struct Skipping(Linear, Vec<Vec<f32>>);

impl Module for Skipping {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = x.flatten(1)?;
        let bias = self.0.bias.as_ref().unwrap();
        if mode == Mode::Train {
            self.1.push(bias.to_vec()?);
        }
        let used = mode == Mode::Train && self.1.len() == 1;
        x.linear(&self.0.weight, used.then_some(bias))
    }
    fn visit(&mut self, v: &mut Visitor<'_>) {
        self.0.visit(v);
    }
    fn describe(&self) -> String {
        "Skipping".into()
    }
}

#[test]
fn a_parameter_without_a_gradient_in_a_step_is_left_alone() {
    for device in devices(6) {
        let linear = Linear::new(3 * 32 * 32, 10, true, &mut Generator::new(0)).unwrap();
        let mut model = Skipping(linear, Vec::new());
        nn::to_device(&mut model, device).unwrap();
        let config = SolverConfig {
            accumulate: 2,
            reg: 0.0,
            ..config(1)
        };
        let solver = Solver::new(&mut model, data(6 * BATCH), config).unwrap();
        solver.without_capture().train().unwrap();
        let [first, second, third] = [0, 2, 4].map(|batch| &model.1[batch]);
        assert_ne!(first, second, "{device}");
        assert_eq!(second, third, "{device}");
    }
}

#[test]
fn the_average_judges_and_the_weights_train() {
    for device in devices(4) {
        let dir = tempfile::tempdir().unwrap();
        let run = |decay| {
            let mut model = convnet(device);
            let config = SolverConfig {
                optim_config: averaged(decay),
                checkpoint_dir: Some(dir.path().into()),
                ..config(2)
            };
            let mut solver = Solver::new(&mut model, data(5 * BATCH), config).unwrap();
            solver.train().unwrap();
            let losses = solver.history().loss_history.clone();
            let saved = Checkpoint::load(dir.path().join("checkpoint.safetensors")).unwrap();
            assert_eq!(solver.is_captured(), device != Device::Cpu);
            drop(solver);
            (losses, saved, nn::state_dict(&mut model))
        };
        let ((losses, bare, _), (same, averaged, model)) = (run(None), run(Some(0.9)));
        assert_eq!(losses, same);
        let list = |named: &[(String, Tensor)], name: &str| -> Vec<f32> {
            let found = named.iter().find(|(n, _)| n == name);
            found.unwrap().1.to_vec().unwrap()
        };
        for name in ["0.0.weight", "2.bias"] {
            assert_eq!(list(&averaged.model, name), list(&bare.model, name));
            assert_ne!(list(&averaged.best, name), list(&averaged.model, name));
            assert_eq!(list(&model, name), list(&averaged.best, name));
            if averaged.run.history.best_epoch == 2 {
                let ema = list(&averaged.optimizer, &format!("ema.{name}"));
                assert_eq!(list(&model, name), ema);
            }
        }
        let best = cotangent::train::checkpoint::read(&dir.path().join("best.safetensors"));
        assert_eq!(list(&best.unwrap().0, "2.bias"), list(&model, "2.bias"));
    }
}

#[test]
fn half_the_bits_learn_as_much() {
    let run = |autocast: Precision| {
        let mut model = convnet(Device::Cpu);
        let config = SolverConfig {
            autocast,
            ..config(20)
        };
        let data = SolverData {
            augment: Augment::none(),
            ..data(4 * BATCH)
        };
        let mut solver = Solver::new(&mut model, data, config).unwrap();
        solver.train().unwrap();
        let losses = solver.history().epoch_losses();
        (losses[0], losses[19])
    };
    let (first, last) = run(Precision::None);
    assert!(last < 0.7 * first, "{first} {last}");
    for half in [Precision::Bf16, Precision::F16] {
        let (_, close) = run(half);
        let off = (close - last).abs();
        assert!(off > 0.0 && off < 0.05 * last, "{half:?} {close} {last}");
    }
}

#[test]
fn a_run_of_other_settings_is_not_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let config = |autocast| SolverConfig {
        autocast,
        checkpoint_dir: Some(dir.path().into()),
        ..config(1)
    };
    let solver = |autocast, f: &dyn Fn(&mut Solver<'_>)| {
        let mut model = Double::new(Device::Cpu);
        f(&mut Solver::new(&mut model, data(BATCH), config(autocast)).unwrap());
    };
    solver(Precision::Bf16, &|s| assert!(s.train().is_ok()));
    let path: &Path = &dir.path().join("checkpoint.safetensors");
    for other in [Precision::None, Precision::F16] {
        solver(other, &|s| match s.resume(path).unwrap_err() {
            Error::Checkpoint { name, .. } => assert_eq!(name, "autocast"),
            e => panic!("{e}"),
        });
    }
    for (json, key) in [
        (r#"{"accumulate": 0}"#, "accumulate"),
        (r#"{"loss_scale": {"growth_factor": 0.5}}"#, "growth_factor"),
        (r#"{"clip_grad_norm": 0.0}"#, "clip_grad_norm"),
        (r#"{"clip_grad_value": -1.0}"#, "clip_grad_value"),
        (r#"{"optim_config": {"ema": {"decay": 1.0}}}"#, "ema_decay"),
    ] {
        let config: SolverConfig = serde_json::from_str(json).unwrap();
        match config.validate().unwrap_err() {
            Error::Config { key: k, .. } => assert_eq!(k, key),
            e => panic!("{e}"),
        }
    }
    let config: SolverConfig = serde_json::from_str(r#"{"autocast": "f16"}"#).unwrap();
    assert_eq!(config.autocast, Precision::F16);
}
