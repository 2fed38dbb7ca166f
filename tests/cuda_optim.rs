//! Optimizers, L2 and norms on CUDA against the CPU: one launch for many tensors, in place, captured.

use std::collections::BTreeSet;

use cotangent::autograd::Gradients;
use cotangent::nn::{Mode, Module, Visitor};
use cotangent::optim::{
    Adadelta, AdadeltaConfig, Adagrad, AdagradConfig, Adam, AdamConfig, AdamW, AdamWConfig, Asgd,
    AsgdConfig, Ema, EmaConfig, Group, Lookahead, LookaheadConfig, Muon, MuonConfig, MuonOther,
    Optimizer, RmsProp, RmsPropConfig, Sgd, SgdConfig, clip_grad_norm, clip_grad_value,
    global_norm,
};
use cotangent::random::Generator;
use cotangent::train::l2::{add_l2_gradients, l2_loss, l2_penalty};
use cotangent::{DType, Device, Error, Result, Tensor};

fn device() -> Device {
    match std::env::var_os("GPU_REQUIRED") {
        Some(_) => Device::cuda(0).expect("GPU_REQUIRED is set"),
        None => Device::cuda_emulated().expect("the feature emulator is on"),
    }
}

/// Parameters and nothing else.
struct Bag(Vec<Tensor>);

impl Module for Bag {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        Ok(x.clone())
    }
    fn visit(&mut self, v: &mut Visitor<'_>) {
        for (i, t) in self.0.iter_mut().enumerate() {
            v.parameter(&i.to_string(), t);
        }
    }
    fn describe(&self) -> String {
        "Bag".into()
    }
}

/// More small tensors than one launch takes, of odd sizes, and one of several stretches; one lies
/// in memory in another order.
fn shapes() -> Vec<Vec<usize>> {
    let mut all: Vec<Vec<usize>> = (0..210).map(|i| vec![i % 5 + 1, i % 7]).collect();
    all.push(vec![5, 1237]);
    all.push(vec![2048]);
    all
}

fn random(seed: u64, dtype: DType) -> Result<Vec<Tensor>> {
    let mut rng = Generator::new(seed);
    let all = shapes().into_iter().enumerate().map(|(i, shape)| {
        let x = Tensor::randn(&shape, &mut rng, DType::F64)?.to_dtype(dtype)?;
        match i % 4 == 1 && shape.len() == 2 {
            true => x.t()?.contiguous()?.t(),
            false => Ok(x),
        }
    });
    all.collect()
}

fn bag(tensors: &[Tensor], device: Device) -> Result<Bag> {
    let on = |t: &Tensor| Ok(t.to(device)?.requires_grad());
    Ok(Bag(tensors.iter().map(on).collect::<Result<_>>()?))
}

/// The gradients of a step; some parameters have none at some steps.
fn gradients(bag: &Bag, step: u64, dtype: DType) -> Result<Gradients> {
    let mut grads = Gradients::default();
    for (i, (leaf, g)) in bag.0.iter().zip(random(100 + step, dtype)?).enumerate() {
        if !(i as u64 + step).is_multiple_of(9) {
            // row-major, whatever the parameter's order is
            grads.insert(leaf, g.contiguous()?.to(leaf.device())?);
        }
    }
    Ok(grads)
}

fn assert_close(gpu: &[Tensor], cpu: &[Tensor], tolerance: f64, what: &str) -> Result<()> {
    for (i, (a, b)) in gpu.iter().zip(cpu).enumerate() {
        let [a, b] = [a, b].map(|t| t.to(Device::Cpu)?.to_dtype(DType::F64)?.to_vec::<f64>());
        let (a, b) = (a?, b?);
        // a sum of terms of both signs is as exact as its terms are
        let scale = b.iter().fold(1f64, |m, x| m.max(x.abs()));
        for (j, (a, b)) in a.iter().zip(&b).enumerate() {
            let ok = (a - b).abs() <= tolerance * scale;
            assert!(ok, "{what}: tensor {i} at {j}: {a}, on the CPU {b}");
        }
    }
    Ok(())
}

type New = fn() -> Result<Box<dyn Optimizer>>;

fn rules() -> Vec<(&'static str, New)> {
    fn sgd(change: fn(&mut SgdConfig)) -> Result<Box<dyn Optimizer>> {
        let mut c = SgdConfig {
            lr: 0.1,
            weight_decay: 0.01,
            ..SgdConfig::default()
        };
        change(&mut c);
        Ok(Box::new(Sgd::new(c)?))
    }
    fn rmsprop(momentum: f64, centered: bool) -> Result<Box<dyn Optimizer>> {
        Ok(Box::new(RmsProp::new(RmsPropConfig {
            weight_decay: 0.02,
            momentum,
            centered,
            ..RmsPropConfig::default()
        })?))
    }
    vec![
        ("sgd", || sgd(|_| ())),
        ("momentum", || sgd(|c| c.momentum = 0.9)),
        ("dampening", || {
            sgd(|c| (c.momentum, c.dampening) = (0.8, 0.3))
        }),
        ("nesterov", || {
            sgd(|c| (c.momentum, c.nesterov) = (0.9, true))
        }),
        ("rmsprop", || rmsprop(0.0, false)),
        ("rmsprop, momentum", || rmsprop(0.9, false)),
        ("rmsprop, centered", || rmsprop(0.0, true)),
        ("rmsprop, both", || rmsprop(0.9, true)),
        ("adam", || {
            Ok(Box::new(Adam::new(AdamConfig {
                weight_decay: 0.1,
                ..AdamConfig::default()
            })?))
        }),
        ("adamw", || {
            Ok(Box::new(AdamW::new(AdamWConfig::default())?))
        }),
        ("adam, amsgrad", || {
            Ok(Box::new(Adam::new(AdamConfig {
                betas: [0.9, 0.5],
                amsgrad: true,
                ..AdamConfig::default()
            })?))
        }),
        ("adamw, amsgrad", || {
            Ok(Box::new(AdamW::new(AdamWConfig {
                betas: [0.9, 0.5],
                amsgrad: true,
                ..AdamWConfig::default()
            })?))
        }),
        ("adadelta", || {
            Ok(Box::new(Adadelta::new(AdadeltaConfig {
                weight_decay: 0.1,
                ..AdadeltaConfig::default()
            })?))
        }),
        ("adagrad", || {
            Ok(Box::new(Adagrad::new(AdagradConfig {
                lr_decay: 0.5,
                weight_decay: 0.1,
                initial_accumulator_value: 0.3,
                ..AdagradConfig::default()
            })?))
        }),
        ("asgd", || {
            Ok(Box::new(Asgd::new(AsgdConfig {
                lambd: 0.3,
                t0: 1.0,
                weight_decay: 0.1,
                ..AsgdConfig::default()
            })?))
        }),
        ("groups", || {
            let config = |lr, weight_decay, betas| AdamWConfig {
                lr,
                weight_decay,
                betas,
                ..AdamWConfig::default()
            };
            let threes = Group::new(|name, _| name.ends_with('3'), config(0.03, 0.2, [0.5, 0.9]));
            let long = Group::new(|_, t| t.numel() > 9, config(1e-4, 0.0, [0.9, 0.99]));
            let default = config(1e-2, 0.3, [0.8, 0.99]);
            let optimizer = AdamW::with_groups(default, vec![threes, long])?;
            Ok(Box::new(optimizer.no_decay_on_norms_and_biases()))
        }),
        ("ema", || {
            let config = EmaConfig {
                decay: 0.5,
                warmup: true,
            };
            Ok(Box::new(Ema::new(sgd(|c| c.momentum = 0.9)?, config)?))
        }),
        ("lookahead", || {
            let config = LookaheadConfig {
                k: 2,
                alpha: 0.3,
                buffers: true,
                ramp: Some(9),
            };
            let lookahead = Lookahead::new(sgd(|c| c.momentum = 0.9)?, config)?;
            Ok(Box::new(Ema::new(
                Box::new(lookahead),
                EmaConfig::default(),
            )?))
        }),
        ("muon", || {
            let config = MuonConfig {
                other: MuonOther::Sgd(SgdConfig {
                    lr: 0.01,
                    momentum: 0.5,
                    ..SgdConfig::default()
                }),
                ..MuonConfig::default()
            };
            let few = |name: &str, _: &Tensor| ["4", "6", "7", "13", "210", "211"].contains(&name);
            Ok(Box::new(Muon::with_selection(config, few)?))
        }),
        ("muon with normalized weights", || {
            let config = MuonConfig {
                weight_decay: 0.0,
                normalize_weights: true,
                ..MuonConfig::default()
            };
            let few = |name: &str, _: &Tensor| ["4", "6", "7", "13", "210", "211"].contains(&name);
            let other = sgd(|c| c.momentum = 0.9)?;
            Ok(Box::new(Muon::with_other(config, few, other)?))
        }),
    ]
}

#[test]
fn rules_agree_with_the_cpu() -> Result<()> {
    for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-13)] {
        let start = random(1, dtype)?;
        for (name, new) in rules() {
            let (mut on_cpu, mut on_gpu) = (bag(&start, Device::Cpu)?, bag(&start, device())?);
            let (mut cpu, mut gpu) = (new()?, new()?);
            for step in 0..4 {
                let lr = cpu.learning_rate() * 0.9;
                for (optimizer, bag) in [(&mut cpu, &mut on_cpu), (&mut gpu, &mut on_gpu)] {
                    optimizer.set_learning_rate(lr);
                    let grads = gradients(bag, step, dtype)?;
                    optimizer.step(bag, &grads)?;
                }
            }
            let what = format!("{name} in {dtype}");
            assert_close(&on_gpu.0, &on_cpu.0, tolerance, &what)?;
            let (a, b) = (gpu.state()?, cpu.state()?);
            assert!(a.iter().map(|(n, _)| n).eq(b.iter().map(|(n, _)| n)));
            let [a, b] = [a, b].map(|s| s.into_iter().map(|(_, t)| t).collect::<Vec<_>>());
            assert_close(&a, &b, tolerance, &format!("{what}, states"))?;
        }
    }
    Ok(())
}

fn numbers(tensors: impl IntoIterator<Item = Tensor>) -> Result<Vec<Vec<f64>>> {
    let of = |t: Tensor| t.to_dtype(DType::F64)?.to_vec::<f64>();
    tensors.into_iter().map(of).collect()
}

#[test]
fn a_saved_state_goes_on_to_the_bit_in_its_own_rule_alone() -> Result<()> {
    let start = random(8, DType::F32)?;
    let mut saved = Vec::new();
    for (name, new) in rules() {
        for place in [Device::Cpu, device()] {
            let (mut whole, mut a, mut b) = (bag(&start, place)?, new()?, new()?);
            for step in 0..3 {
                let grads = gradients(&whole, step, DType::F32)?;
                a.step(&mut whole, &grads)?;
            }
            let mut parts = bag(&whole.0, place)?;
            b.load_state(&mut parts, &a.state()?)?;
            for step in 3..5 {
                for (optimizer, bag) in [(&mut a, &mut whole), (&mut b, &mut parts)] {
                    let grads = gradients(bag, step, DType::F32)?;
                    optimizer.step(bag, &grads)?;
                }
            }
            assert_eq!(numbers(whole.0)?, numbers(parts.0)?, "{name} on {place}");
            let [a, b] = [a.state()?, b.state()?];
            assert!(
                a.iter().map(|(n, _)| n).eq(b.iter().map(|(n, _)| n)),
                "{name}"
            );
            let all = |s: &[(String, Tensor)]| numbers(s.iter().map(|(_, t)| t.clone()));
            assert_eq!(all(&a)?, all(&b)?, "{name} on {place}");
            saved.push((name, new, a));
        }
    }
    let mut model = bag(&start, Device::Cpu)?;
    let kinds = |state: &[(String, Tensor)]| -> BTreeSet<String> {
        state.iter().map(|(name, _)| name.clone()).collect()
    };
    let mut refused = 0;
    for (rule, new, own) in &saved {
        for (other, _, state) in &saved {
            if kinds(own) != kinds(state) {
                let e = new()?.load_state(&mut model, state);
                assert!(
                    matches!(e, Err(Error::Checkpoint { .. })),
                    "{rule} took {other}"
                );
                refused += 1;
            }
        }
    }
    assert!(refused > 300, "{refused}");
    Ok(())
}

#[test]
fn parameters_are_written_in_place_and_those_of_16_bits_refused() -> Result<()> {
    let start = random(9, DType::F32)?;
    for (name, new) in rules() {
        let (mut bag, mut optimizer) = (bag(&start, Device::Cpu)?, new()?);
        let mut addresses = Vec::new();
        for step in 0..3 {
            let grads = gradients(&bag, step, DType::F32)?;
            optimizer.step(&mut bag, &grads)?;
            let of = |t: &mut Tensor| Ok(t.make_mut::<f32>()?.as_ptr());
            addresses.push(bag.0.iter_mut().map(of).collect::<Result<Vec<_>>>()?);
        }
        assert!(addresses.iter().all(|a| *a == addresses[0]), "{name}");
    }
    for place in [Device::Cpu, device()] {
        for dtype in [DType::BF16, DType::F16] {
            for (name, new) in rules() {
                let x = Tensor::ones([3, 3], (dtype, place))?;
                let mut bag = Bag(vec![x.requires_grad()]);
                let mut grads = Gradients::default();
                grads.insert(&bag.0[0], x);
                let e = new()?.step(&mut bag, &grads).unwrap_err();
                assert!(
                    matches!(e, Error::DType { got, .. } if got == dtype),
                    "{name}: {e}"
                );
                assert!(
                    e.to_string().contains("keep the parameters in F32"),
                    "{name}: {e}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn a_saved_state_goes_on_on_the_other_device() -> Result<()> {
    let start = random(2, DType::F64)?;
    let (mut on_cpu, mut on_gpu) = (bag(&start, Device::Cpu)?, bag(&start, device())?);
    let new = || Adam::new(AdamConfig::default());
    let (mut cpu, mut gpu) = (new()?, new()?);
    let grads = gradients(&on_cpu, 0, DType::F64)?;
    cpu.step(&mut on_cpu, &grads)?;
    for (to, from) in on_gpu.0.iter_mut().zip(&on_cpu.0) {
        to.copy_(from)?;
    }
    gpu.load_state(&mut on_gpu, &cpu.state()?)?;
    let grads = gradients(&on_cpu, 1, DType::F64)?;
    cpu.step(&mut on_cpu, &grads)?;
    let grads = gradients(&on_gpu, 1, DType::F64)?;
    gpu.step(&mut on_gpu, &grads)?;
    assert_close(&on_gpu.0, &on_cpu.0, 1e-13, "resumed")
}

#[test]
fn clones_keep_their_numbers_and_what_vanishes_is_zero() -> Result<()> {
    let ones = Tensor::ones([5], DType::F32)?;
    let mut bag = bag(&[ones], device())?;
    let mut sgd = Sgd::new(SgdConfig {
        lr: 0.5,
        weight_decay: 1.0,
        momentum: 0.1,
        ..SgdConfig::default()
    })?;
    let mut grads = Gradients::default();
    grads.insert(&bag.0[0], bag.0[0].zeros_like()?);
    let kept = bag.0[0].clone();
    for _ in 0..400 {
        sgd.step(&mut bag, &grads)?;
        for (_, t) in sgd.state()?.iter().filter(|(_, t)| t.dtype() == DType::F32) {
            assert!(t.to_vec::<f32>()?.iter().all(|x| !x.is_subnormal()));
        }
    }
    assert_eq!(bag.0[0].to_vec::<f32>()?, [0.0; 5]);
    assert_eq!(kept.to_vec::<f32>()?, [1.0; 5]);
    Ok(())
}

#[test]
fn replays_of_a_captured_step_are_steps() -> Result<()> {
    let Device::Cuda(gpu) = device() else {
        unreachable!()
    };
    for (name, new) in rules() {
        let start = random(3, DType::F32)?;
        let (mut eager, mut replayed) = (bag(&start, device())?, bag(&start, device())?);
        let (mut a, mut b) = (new()?, new()?);
        let (of_a, of_b) = (
            gradients(&eager, 0, DType::F32)?,
            gradients(&replayed, 0, DType::F32)?,
        );
        // the first step makes the states
        b.step(&mut replayed, &of_b)?;
        let (graph, ()) = gpu.capture(|| b.step(&mut replayed, &of_b))?;
        // the capture has counted a step that it did not make
        graph.replay(graph.scalars())?;
        a.step(&mut eager, &of_a)?;
        a.step(&mut eager, &of_a)?;
        for lr in [0.1, 0.05, 0.02] {
            a.set_learning_rate(lr);
            a.step(&mut eager, &of_a)?;
            b.set_learning_rate(lr);
            graph.replay(&b.replayed())?;
        }
        let all = |o: &dyn Optimizer, bag: &Bag| {
            numbers(
                bag.0
                    .iter()
                    .cloned()
                    .chain(o.state()?.into_iter().map(|(_, t)| t)),
            )
        };
        assert_eq!(all(&*a, &eager)?, all(&*b, &replayed)?, "{name}");
    }
    Ok(())
}

#[test]
fn gradients_that_do_not_fit_are_errors() -> Result<()> {
    let mut bag = bag(&[Tensor::ones([4], DType::F32)?], device())?;
    let mut sgd = Sgd::new(SgdConfig::default())?;
    for wrong in [
        Tensor::ones([3], (DType::F32, device()))?,
        Tensor::ones([4], (DType::F64, device()))?,
        Tensor::ones([4], DType::F32)?,
    ] {
        let mut grads = Gradients::default();
        grads.insert(&bag.0[0], wrong);
        assert!(sgd.step(&mut bag, &grads).is_err());
    }
    Ok(())
}

#[test]
fn l2_and_norms_agree_with_the_cpu() -> Result<()> {
    for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-13)] {
        let start = random(4, dtype)?;
        let (mut on_cpu, mut on_gpu) = (bag(&start, Device::Cpu)?, bag(&start, device())?);
        let (a, b) = (l2_loss(&mut on_gpu, 0.3)?, l2_loss(&mut on_cpu, 0.3)?);
        assert!((a - b).abs() <= 1e-13 * b, "{a} {b}");
        let scalar = l2_penalty(&mut on_gpu, 0.3)?.unwrap();
        assert_eq!((scalar.device(), scalar.item()?), (device(), a));
        let norm = |b: &Bag| global_norm(&b.0.iter().collect::<Vec<_>>())?.item();
        let (a, b) = (norm(&on_gpu)?, norm(&on_cpu)?);
        assert!((a - b).abs() <= 1e-13 * b, "{a} {b}");

        let mut found = Vec::new();
        for bag in [&mut on_gpu, &mut on_cpu] {
            let mut grads = gradients(bag, 5, dtype)?;
            let shared: Vec<Tensor> = bag.0.iter().filter_map(|t| grads.get(t)).cloned().collect();
            let before = global_norm(&shared.iter().collect::<Vec<_>>())?.item()?;
            add_l2_gradients(bag, 0.7, &mut grads)?;
            let after = global_norm(&shared.iter().collect::<Vec<_>>())?.item()?;
            assert_eq!(before, after, "a gradient that others hold was written");
            let all = bag.0.iter().map(|t| grads.get(t).cloned());
            found.push(all.collect::<Vec<_>>());
        }
        let cpu = found.pop().unwrap();
        for (i, (a, b)) in found[0].iter().zip(&cpu).enumerate() {
            assert_eq!(a.is_some(), b.is_some());
            if let (Some(a), Some(b)) = (a, b) {
                let [a, b] = [a, b].map(std::slice::from_ref);
                assert_close(a, b, tolerance, &format!("l2 of {i}"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn clipping_agrees_with_the_cpu_and_can_be_captured() -> Result<()> {
    let Device::Cuda(gpu) = device() else {
        unreachable!()
    };
    type Clip = fn(&mut Gradients, &mut Bag) -> Result<Option<Tensor>>;
    let ways: [(&str, Clip); 3] = [
        ("norm", |g, bag| clip_grad_norm(g, bag, 7.0).map(Some)),
        ("norm below", |g, bag| clip_grad_norm(g, bag, 1e4).map(Some)),
        ("value", |g, bag| {
            clip_grad_value(g, bag, 0.8).map(|()| None)
        }),
    ];
    for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-13)] {
        let start = random(6, dtype)?;
        for (name, clip) in &ways {
            let (mut on_cpu, mut on_gpu) = (bag(&start, Device::Cpu)?, bag(&start, device())?);
            let mut cpu = gradients(&on_cpu, 2, dtype)?;
            let mut graph = gradients(&on_gpu, 2, dtype)?;
            let norm = clip(&mut cpu, &mut on_cpu)?;
            // within a capture no kernel can be loaded
            clip(&mut gradients(&on_gpu, 3, dtype)?, &mut on_gpu)?;
            let (captured, found) = gpu.capture(|| clip(&mut graph, &mut on_gpu))?;
            captured.replay(captured.scalars())?;
            assert_eq!(norm.is_some(), found.is_some());
            if let (Some(a), Some(b)) = (found, norm) {
                assert_eq!((a.device(), a.dtype(), a.rank()), (device(), DType::F64, 0));
                let (a, b) = (a.item()?, b.item()?);
                assert!((a - b).abs() <= 1e-13 * b, "{name}: {a} {b}");
            }
            let all = |bag: &Bag, g: &Gradients| -> Vec<Tensor> {
                bag.0.iter().filter_map(|t| g.get(t)).cloned().collect()
            };
            let (a, b) = (all(&on_gpu, &graph), all(&on_cpu, &cpu));
            assert_close(&a, &b, tolerance, &format!("{name} in {dtype}"))?;
        }
    }
    // NaN spreads on the device as well
    let mut bag = bag(&[Tensor::ones([3], DType::F32)?], device())?;
    let mut grads = Gradients::default();
    grads.insert(
        &bag.0[0],
        Tensor::from_slice(&[1f32, f32::NAN, 0.0], [3])?.to(device())?,
    );
    assert!(clip_grad_norm(&mut grads, &mut bag, 1.0)?.item()?.is_nan());
    let got = grads.get(&bag.0[0]).unwrap().to_vec::<f32>()?;
    assert!(got.iter().all(|x| x.is_nan()), "{got:?}");
    Ok(())
}
