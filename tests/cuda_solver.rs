//! Training on a CUDA device, emulated or (`GPU_REQUIRED=1`) real: the CPU's losses, steady memory, a
//! captured step that is the plain one's to the bit, and what goes wrong without harm.

use std::sync::{Arc, Mutex, MutexGuard};

use cotangent::autograd::is_grad_enabled;
use cotangent::data::{Augment, Mix, Normalize, Transform, synthetic};
use cotangent::models::{DeeperConfig, DeeperConvNet};
use cotangent::nn::{self, Module};
use cotangent::optim::{EmaConfig, LookaheadConfig, OneCycle, Schedule};
use cotangent::random::Generator;
use cotangent::train::{Ablation, Loss, OptimConfig, Solver, SolverConfig, SolverData, UpdateRule};
use cotangent::{Device, Error, Tensor, cuda};

const BATCH: usize = 8;

fn data(n: usize) -> SolverData {
    let train = synthetic(0, 0, n);
    SolverData {
        normalize: Normalize::per_channel(&train).unwrap(),
        val: synthetic(0, 500, BATCH),
        train,
        augment: Augment::standard(),
    }
}

/// A small one with everything: batch norm, dropout, L2.
fn model(device: Device) -> DeeperConvNet {
    let config = DeeperConfig {
        num_filters: vec![4, 6],
        hidden_dim: 10,
        use_batchnorm: true,
        use_dropout: true,
        reg: 1e-3,
        ..DeeperConfig::default()
    };
    let mut model = DeeperConvNet::new(config, &mut Generator::new(5)).unwrap();
    nn::to_device(&mut model, device).unwrap();
    model
}

/// The learning rate moves at each step.
fn config(epochs: usize) -> SolverConfig {
    SolverConfig {
        update_rule: UpdateRule::Adam,
        optim_config: OptimConfig {
            learning_rate: Some(2e-3),
            ..OptimConfig::default()
        },
        schedule: Schedule::WarmupCosine {
            warmup_steps: 3,
            eta_min: 1e-5,
        },
        batch_size: BATCH,
        num_epochs: epochs,
        num_train_samples: Some(BATCH),
        verbose: false,
        ..SolverConfig::default()
    }
}

/// Everything that a model holds, as bits.
fn bits(model: &mut dyn Module) -> Vec<(String, Vec<u64>)> {
    let state = nn::state_dict(model).into_iter();
    state
        .map(|(name, t)| {
            let t = t.to_dtype(cotangent::DType::F64).unwrap();
            let v = t.to_vec::<f64>().unwrap();
            (name, v.into_iter().map(f64::to_bits).collect())
        })
        .collect()
}

/// An emulated device that no other test uses, or the real one, which the tests share.
fn device(n: u8) -> Device {
    match std::env::var_os("GPU_REQUIRED") {
        Some(_) => Device::cuda(0).expect("GPU_REQUIRED is set"),
        None => Device::cuda_emulated_nth(n).unwrap(),
    }
}

/// Tests take turns: on a real device they share its counters and its limit.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|e| e.into_inner())
}

#[test]
fn losses_are_those_of_the_cpu() {
    let _alone = alone();
    // labels become shares of classes
    let mixed = Augment {
        transforms: vec![
            Transform::random_rotation(20.0),
            Transform::color_jitter(0.3, 0.3, 0.3, 0.1),
        ],
        mix: vec![Mix::Mixup { alpha: 0.4 }, Mix::CutMix { alpha: 1.0 }],
        ..Augment::standard()
    };
    for (loss, augment) in [
        (Loss::CrossEntropy, Augment::standard()),
        (Loss::BceWithLogits, Augment::standard()),
        (Loss::Svm, Augment::standard()),
        (Loss::CrossEntropy, mixed),
    ] {
        let run = |device| {
            let mut model = model(device);
            let config = SolverConfig { loss, ..config(1) };
            let data = SolverData {
                augment: augment.clone(),
                ..data(7 * BATCH)
            };
            let mut solver = Solver::new(&mut model, data, config).unwrap();
            solver.train().unwrap();
            assert_eq!(solver.is_captured(), device != Device::Cpu);
            solver.history().clone()
        };
        let (cpu, gpu) = (run(Device::Cpu), run(device(1)));
        assert_eq!(cpu.loss_history.len(), 7);
        assert_eq!(gpu.device, device(1).to_string());
        for (i, (a, b)) in gpu.loss_history.iter().zip(&cpu.loss_history).enumerate() {
            assert!(
                (a - b).abs() < 1e-4 * b.abs(),
                "{loss:?}, step {i}: {a} but {b} on the CPU"
            );
        }
        assert_eq!(gpu.val_acc_history, cpu.val_acc_history);
    }
}

#[test]
fn a_captured_step_is_the_plain_one_to_the_bit() {
    let _alone = alone();
    let run = |n: u8, plain: bool, config: SolverConfig| {
        let mut model = model(device(n));
        let mut solver = Solver::new(&mut model, data(5 * BATCH), config).unwrap();
        if plain {
            solver = solver.without_capture();
        }
        solver.train().unwrap();
        assert_eq!(solver.is_captured(), !plain);
        let losses: Vec<u64> = solver
            .history()
            .loss_history
            .iter()
            .map(|l| l.to_bits())
            .collect();
        drop(solver);
        let mut streams = Vec::new();
        nn::visit(&mut model, |_, slot| {
            if let nn::Slot::Generator(g) = slot {
                streams.push((g.seed, g.offset));
            }
        });
        (losses, bits(&mut model), streams)
    };
    // the momentum moves at each step, too
    let mut cycled = config(2);
    cycled.update_rule = UpdateRule::SgdMomentum;
    cycled.schedule = Schedule::OneCycle(OneCycle::default());
    let mut wrapped = config(2);
    wrapped.update_rule = UpdateRule::Muon;
    wrapped.optim_config.no_decay = true;
    wrapped.optim_config.lookahead = Some(LookaheadConfig {
        k: 3,
        buffers: true,
        ..LookaheadConfig::default()
    });
    wrapped.optim_config.ema = Some(EmaConfig::default());
    for config in [config(2), cycled, wrapped] {
        let rule = config.update_rule;
        let (plain, captured) = (run(2, true, config.clone()), run(3, false, config));
        assert_eq!(plain.0.len(), 10);
        assert_eq!(captured, plain, "{rule:?}");
    }
}

#[test]
fn a_step_allocates_nothing_after_the_second() {
    let _alone = alone();
    for (n, plain) in [(4, true), (5, false)] {
        let device = device(n);
        let mut model = model(device);
        let count = Arc::new(Mutex::new(Vec::new()));
        let seen = count.clone();
        let softmax = cotangent::train::softmax_loss(0.0);
        let loss: cotangent::train::LossFn = Arc::new(move |scores: &Tensor, labels: &Tensor| {
            // validation's are no steps
            if is_grad_enabled() {
                seen.lock().unwrap().push(device.memory_stats().unwrap());
            }
            softmax(scores, labels)
        });
        let mut solver = Solver::new(&mut model, data(6 * BATCH), config(1))
            .unwrap()
            .with_loss(loss);
        if plain {
            solver = solver.without_capture();
        }
        solver.train().unwrap();
        let seen = count.lock().unwrap();
        // a captured step runs its loss on the host once, while it is captured
        assert_eq!(seen.len(), if plain { 6 } else { 3 });
        for (step, stats) in seen.iter().enumerate().skip(2) {
            assert_eq!(stats.allocations, seen[2].allocations, "step {step}");
            assert_eq!(stats.live, seen[2].live, "step {step}");
        }
        assert!(seen[2].hits > seen[1].hits);
    }
}

#[test]
fn a_resumed_run_goes_on_to_the_bit() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let config = |epochs| SolverConfig {
        schedule: Schedule::Constant,
        checkpoint_dir: Some(dir.path().into()),
        ..config(epochs)
    };
    let mut whole = model(device(6));
    Solver::new(&mut whole, data(4 * BATCH), config(2))
        .unwrap()
        .train()
        .unwrap();
    let mut first = model(device(7));
    Solver::new(&mut first, data(4 * BATCH), config(1))
        .unwrap()
        .train()
        .unwrap();
    let mut second = model(device(7));
    let mut solver = Solver::new(&mut second, data(4 * BATCH), config(2)).unwrap();
    solver
        .resume(dir.path().join("checkpoint.safetensors"))
        .unwrap();
    solver.train().unwrap();
    drop(solver);
    assert_eq!(bits(&mut second), bits(&mut whole));
}

#[test]
fn a_batch_too_large_for_the_card_is_an_error_and_a_smaller_one_works() {
    let _alone = alone();
    let device = device(8);
    let Device::Cuda(gpu) = device else { panic!() };
    let mut model = model(device);
    let held = gpu.memory_stats().unwrap();
    gpu.set_memory_limit(held.live_bytes + held.held_bytes + 2_500_000)
        .unwrap();
    let mut large = SolverConfig {
        batch_size: 48,
        schedule: Schedule::Constant,
        ..config(1)
    };
    let error = Solver::new(&mut model, data(48), large.clone())
        .unwrap()
        .train()
        .unwrap_err();
    let Error::OutOfMemory { asked, held, free } = error else {
        panic!("{error}")
    };
    assert!(asked > free && held > 0, "{asked} {held} {free}");
    large.batch_size = BATCH;
    // the error left nothing behind that a smaller batch would miss
    Solver::new(&mut model, data(4 * BATCH), large)
        .unwrap()
        .train()
        .unwrap();
    gpu.set_memory_limit(usize::MAX).unwrap();
}

#[test]
fn a_cell_that_does_not_fit_is_recorded_and_the_others_run() {
    let _alone = alone();
    let device = Device::parse("cuda_emulated").unwrap();
    let Device::Cuda(gpu) = device else { panic!() };
    let held = gpu.memory_stats().unwrap();
    gpu.set_memory_limit(held.live_bytes + held.held_bytes + 2_500_000)
        .unwrap();
    let text = "name = \"batch_size\"\n\
        [recipe]\ndevice = \"cuda_emulated\"\n\
        data = { name = \"embedded\", train_samples = 48, test_samples = 8 }\n\
        model = { name = \"deeper\", num_filters = [4, 6], hidden_dim = 10 }\n\
        train = { num_epochs = 1, num_train_samples = 8, num_val_samples = 8, verbose = false }\n\
        [grid]\ntrain.batch_size = [48, 8]\n";
    let ablation = Ablation::parse(text).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ended = ablation
        .run(dir.path(), false, &[], &Arc::default(), |_| ())
        .unwrap();
    assert!(ended.all && ended.failed == 1, "{ended:?}");
    let table = std::fs::read_to_string(dir.path().join("table.md")).unwrap();
    assert!(table.contains("| 48 | failed: out of memory"), "{table}");
    assert!(table.contains("| 8 | 1 |"), "{table}");
    gpu.set_memory_limit(usize::MAX).unwrap();
}

#[test]
fn a_loss_that_reads_from_the_device_trains_uncaptured() {
    let _alone = alone();
    let mut model = model(device(9));
    let softmax = cotangent::train::softmax_loss(0.0);
    let loss: cotangent::train::LossFn = Arc::new(move |scores: &Tensor, labels: &Tensor| {
        let loss = softmax(scores, labels)?;
        assert!(loss.item()?.is_finite());
        Ok(loss)
    });
    let mut solver = Solver::new(&mut model, data(5 * BATCH), config(1))
        .unwrap()
        .with_loss(loss);
    solver.train().unwrap();
    assert!(!solver.is_captured());
    assert_eq!(solver.history().loss_history.len(), 5);
}

#[test]
fn images_that_a_loss_keeps_are_not_written_under_it() {
    let _alone = alone();
    let run = |n: u8, keep: bool| {
        let mut model = model(device(n));
        let softmax = cotangent::train::softmax_loss(0.0);
        let kept = Mutex::new(Vec::new());
        let loss: cotangent::train::LossFn = Arc::new(move |scores: &Tensor, labels: &Tensor| {
            if keep {
                kept.lock().unwrap().push(labels.clone());
            }
            softmax(scores, labels)
        });
        let mut solver = Solver::new(&mut model, data(6 * BATCH), config(1))
            .unwrap()
            .with_loss(loss);
        solver.train().unwrap();
        solver.history().loss_history.clone()
    };
    assert_eq!(run(14, true), run(15, false));
}

#[test]
fn a_stream_that_no_module_shows_trains_uncaptured() {
    let _alone = alone();
    let device = device(16);
    let mut model = model(device);
    let softmax = cotangent::train::softmax_loss(0.0);
    let stream = Mutex::new(Generator::new(77));
    let loss: cotangent::train::LossFn = Arc::new(move |scores: &Tensor, labels: &Tensor| {
        softmax(&scores.dropout(0.2, &mut stream.lock().unwrap())?, labels)
    });
    let mut solver = Solver::new(&mut model, data(5 * BATCH), config(1))
        .unwrap()
        .with_loss(loss);
    solver.train().unwrap();
    assert!(!solver.is_captured());
    assert_eq!(solver.history().loss_history.len(), 5);
}

#[test]
fn a_parameter_that_somebody_holds_is_not_written_under_them() {
    let _alone = alone();
    let device = device(10);
    let mut model = model(device);
    let mut solver = Solver::new(&mut model, data(6 * BATCH), config(1)).unwrap();
    solver.train().unwrap();
    assert!(solver.is_captured());
    drop(solver);
    let held = nn::state_dict(&mut model);
    let before: Vec<Vec<f32>> = held[..2].iter().map(|(_, t)| t.to_vec().unwrap()).collect();
    Solver::new(&mut model, data(6 * BATCH), config(1))
        .unwrap()
        .train()
        .unwrap();
    let after: Vec<Vec<f32>> = held[..2].iter().map(|(_, t)| t.to_vec().unwrap()).collect();
    assert_eq!(before, after);
}

#[test]
fn a_label_out_of_range_arrives_with_the_next_read() {
    let _alone = alone();
    let device = device(11);
    let scores = Tensor::zeros([2, 3], device).unwrap();
    let labels = Tensor::from_vec(vec![1i64, 7], [2])
        .unwrap()
        .to(device)
        .unwrap();
    let loss = scores.cross_entropy(&labels, &Default::default()).unwrap();
    let error = loss.item().unwrap_err().to_string();
    assert_eq!(
        error,
        "cross_entropy: index 7 is out of range for an axis of size 3"
    );
    // and is told once
    assert!(loss.item().unwrap().is_nan());
}

#[test]
fn tensors_of_two_devices_are_refused() {
    let _alone = alone();
    let a = Tensor::ones([2], device(12)).unwrap();
    let b = Tensor::ones([2], Device::Cpu).unwrap();
    for error in [a.add(&b).unwrap_err(), a.gt(&b).unwrap_err()] {
        assert!(matches!(error, Error::Device { .. }), "{error}");
    }
    let c = Tensor::ones([2], Device::cuda_emulated_nth(13).unwrap()).unwrap();
    assert!(matches!(a.mul(&c), Err(Error::Device { .. })));
}

/// Only on the emulated device: a real one would be lost to the tests beside.
#[test]
fn a_kernels_fault_loses_the_device_and_no_file() {
    static FAULTY: cuda::Kernel = cuda::Kernel::new("early_return_wrong");
    let _alone = alone();
    let there = Device::cuda_emulated_nth(17).unwrap();
    let Device::Cuda(gpu) = there else { panic!() };
    let dir = tempfile::tempdir().unwrap();
    let config = |epochs| SolverConfig {
        schedule: Schedule::Constant,
        checkpoint_dir: Some(dir.path().into()),
        ..config(epochs)
    };
    let mut lost = model(there);
    let mut solver = Solver::new(&mut lost, data(3 * BATCH), config(1)).unwrap();
    solver.train().unwrap();
    drop(solver);
    let files = || {
        ["checkpoint.safetensors", "best.safetensors", "history.json"]
            .map(|name| std::fs::read(dir.path().join(name)).unwrap())
    };
    let before = files();

    // kept until the process ends
    let address = cuda::emulated_malloc(256).unwrap() as u64;
    let memory = cuda::Pointer {
        address,
        dtype: cotangent::DType::F32,
        gpu: Some(gpu),
    };
    let args = [
        cuda::Arg::In(memory),
        cuda::Arg::Out(memory),
        cuda::Arg::I32(64),
    ];
    let fault = gpu.launch(&FAULTY, [1, 1, 1], [64, 1, 1], 0, &args);
    let Err(Error::Cuda { what, .. }) = fault else {
        panic!("{fault:?}")
    };
    assert_eq!(what, "early_return_wrong");
    let mut solver = Solver::new(&mut lost, data(3 * BATCH), config(2)).unwrap();
    let error = solver.train().unwrap_err();
    assert!(
        matches!(&error, Error::Cuda { what, .. } if what == "early_return_wrong"),
        "{error}"
    );
    drop(solver);
    assert_eq!(files(), before);
    // another device goes on from them
    let mut other = model(Device::cuda_emulated_nth(18).unwrap());
    let mut solver = Solver::new(&mut other, data(3 * BATCH), config(2)).unwrap();
    solver
        .resume(dir.path().join("checkpoint.safetensors"))
        .unwrap();
    solver.train().unwrap();
}

#[test]
fn a_capture_that_reads_leaves_nothing_behind() {
    let _alone = alone();
    let device = device(19);
    let Device::Cuda(gpu) = device else { panic!() };
    let x = Tensor::ones([3], device).unwrap();
    assert_eq!(x.add(&x).unwrap().to_vec::<f32>().unwrap(), [2.0; 3]);
    let before = gpu.memory_stats().unwrap();
    let error = gpu.capture(|| x.add(&x)?.to_vec::<f32>()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "capture: the host reads from the device within it"
    );
    let after = gpu.memory_stats().unwrap();
    assert_eq!(after.live, before.live);
    // the stream works as before, and so does another capture
    let (graph, y) = gpu.capture(|| x.add(&x)).unwrap();
    graph.replay(&[]).unwrap();
    assert_eq!(y.to_vec::<f32>().unwrap(), [2.0; 3]);
    assert!(graph.replay(&[1]).is_err());
}

#[test]
fn time_is_measured_on_the_stream() {
    let _alone = alone();
    let device = device(20);
    let Device::Cuda(gpu) = device else { panic!() };
    let x = Tensor::ones([64, 64], device).unwrap();
    let start = gpu.record_event().unwrap();
    x.matmul(&x).unwrap();
    let end = gpu.record_event().unwrap();
    let ms = start.elapsed_ms(&end).unwrap();
    assert!(ms > 0.0 && ms < 60_000.0, "{ms}");
}
