//! CS231n's notebooks as tests: their known answers in F64 through the public API, and the
//! statements that they make about losses, norms, dropout and whole networks.
//!
//! The answers are printed to 8 decimals, so that each holds to half a unit of the last one as well
//! as to the relative error that the file states.

use std::slice::from_ref;
use std::sync::LazyLock;

use cotangent::autograd::Gradients;
use cotangent::models::{ThreeLayerConfig, ThreeLayerConvNet, TwoLayerConfig, TwoLayerNet};
use cotangent::nn::{self, BatchNorm1d, BatchNorm2d, Dropout, LayerNorm, Mode, Module, Visitor};
use cotangent::ops::{CrossEntropy, gradcheck};
use cotangent::optim::{AdamConfig, Elementwise, Optimizer, RmsPropConfig, Rule, Sgd, SgdConfig};
use cotangent::random::Generator;
use cotangent::shape::Window;
use cotangent::train::l2::l2_loss;
use cotangent::train::sanity::check_gradients;
use cotangent::train::softmax_loss;
use cotangent::{DType, Result, Tensor};
use serde_json::Value;

/// Half a unit of the eighth decimal, and what f64 needs to reach it.
const EIGHT_DECIMALS: f64 = 0.5e-8 + 1e-13;

static ANSWERS: LazyLock<Value> = LazyLock::new(|| {
    let text = std::fs::read_to_string("tests/golden/cs231n.json").unwrap();
    serde_json::from_str(&text).unwrap()
});

fn number(v: &Value) -> f64 {
    v.as_f64().unwrap()
}

fn numbers(v: &Value) -> Vec<f64> {
    match v {
        Value::Array(rows) => rows.iter().flat_map(numbers).collect(),
        v => vec![number(v)],
    }
}

/// An input of a case: linspace over its shape.
fn input(case: &Value, name: &str) -> Result<Tensor> {
    let ends = numbers(&case[name]["linspace"]);
    let shape: Vec<usize> = numbers(&case[name]["shape"])
        .iter()
        .map(|&s| s as usize)
        .collect();
    Tensor::linspace(ends[0], ends[1], shape.iter().product(), DType::F64)?.reshape(shape)
}

/// To 8 decimals.
fn assert_decimals(found: &Tensor, expected: &Value) -> Result<()> {
    let (found, expected) = (found.to_vec::<f64>()?, numbers(expected));
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() <= EIGHT_DECIMALS, "{i}: {a}, expected {b}");
    }
    Ok(())
}

/// To 8 decimals, and to the course's relative error |a - b| / max(1e-8, |a| + |b|).
fn assert_answer(found: &Tensor, case: &Value) -> Result<()> {
    assert_decimals(found, &case["out"])?;
    let most = number(&case["max_relative_error"]);
    for (a, b) in found.to_vec::<f64>()?.iter().zip(numbers(&case["out"])) {
        let error = (a - b).abs() / (a.abs() + b.abs()).max(1e-8);
        assert!(error <= most, "{a}, expected {b}: error {error:e}");
    }
    Ok(())
}

fn assert_near(found: &Tensor, expected: &[f64], tolerance: f64) -> Result<()> {
    let found = found.to_vec::<f64>()?;
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!(
            (a - b).abs() <= tolerance,
            "{found:?}, expected {expected:?}"
        );
    }
    Ok(())
}

fn labels(n: usize, classes: i64) -> Result<Tensor> {
    Tensor::from_vec((0..n as i64).map(|i| i % classes).collect(), n)
}

#[test]
fn affine_forward() -> Result<()> {
    let case = &ANSWERS["affine_forward"];
    let x = input(case, "x")?.flatten(1)?;
    let (w, b) = (input(case, "w")?, input(case, "b")?);
    assert_answer(&x.matmul(&w)?.add(&b)?, case)?;
    // the layer's own op keeps the weight as (out, in)
    assert_answer(&x.linear(&w.t()?, Some(&b))?, case)
}

#[test]
fn relu_forward() -> Result<()> {
    let case = &ANSWERS["relu_forward"];
    assert_answer(&input(case, "x")?.relu()?, case)
}

#[test]
fn conv_forward() -> Result<()> {
    let case = &ANSWERS["conv_forward"];
    let window = Window {
        stride: [number(&case["stride"]) as usize; 2],
        padding: [number(&case["padding"]) as usize; 2],
        ..Window::new([4, 4])
    };
    let (x, w, b) = (input(case, "x")?, input(case, "w")?, input(case, "b")?);
    assert_answer(&x.conv2d(&w, Some(&b), window, 1)?, case)
}

#[test]
fn max_pool_forward() -> Result<()> {
    let case = &ANSWERS["max_pool_forward"];
    let window = Window {
        stride: [number(&case["stride"]) as usize; 2],
        ..Window::new([number(&case["kernel"]) as usize; 2])
    };
    assert_answer(&input(case, "x")?.max_pool2d(window)?, case)
}

#[test]
fn two_layer_net() -> Result<()> {
    let case = &ANSWERS["two_layer_net"];
    let size = |name: &str| number(&case[name]) as usize;
    let config = TwoLayerConfig {
        input_dim: [size("input_dim"), 1, 1],
        hidden_dim: size("hidden_dim"),
        num_classes: size("num_classes"),
        ..TwoLayerConfig::default()
    };
    let mut net = TwoLayerNet::new(config, &mut Generator::new(0))?;
    nn::to_dtype(&mut net, DType::F64)?;
    let state = [
        ("fc1.linear.weight", input(case, "W1")?.t()?),
        ("fc1.linear.bias", input(case, "b1")?),
        ("fc2.weight", input(case, "W2")?.t()?),
        ("fc2.bias", input(case, "b2")?),
    ];
    nn::load_state_dict(&mut net, &state.map(|(n, t)| (n.to_string(), t)))?;

    let x = input(case, "x")?.t()?.contiguous()?;
    let y = numbers(&case["y"]).iter().map(|&y| y as i64).collect();
    let y = Tensor::from_vec(y, 3)?;
    let scores = net.forward(&x, Mode::Train)?;
    assert_decimals(&scores, &case["scores"])?;

    let loss = scores.cross_entropy(&y, &CrossEntropy::default())?.item()?;
    let most = number(&case["max_loss_error"]);
    for (reg, key) in [(0.0, "loss_reg_0"), (1.0, "loss_reg_1")] {
        let (found, expected) = (loss + l2_loss(&mut net, reg)?, number(&case[key]));
        let error = (found - expected).abs();
        assert!(error <= most, "{key}: {found}, expected {expected}");
    }
    let report = check_gradients(&mut net, &x, &y, &softmax_loss(0.0), usize::MAX)?;
    assert!(report.passed(), "{report}");
    Ok(())
}

/// A single parameter `w`.
struct One(Tensor);

impl Module for One {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        x.mul(&self.0)
    }
    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.parameter("w", &mut self.0);
    }
    fn describe(&self) -> String {
        "One".into()
    }
}

/// The next w of a rule that goes on from a state after `steps` steps.
fn next_w(case: &Value, config: impl Rule, steps: i64, state: &[(&str, Tensor)]) -> Result<Tensor> {
    let mut optimizer = Elementwise::new(config)?;
    let mut model = One(input(case, "w")?.requires_grad());
    let mut saved = vec![("step.w".to_string(), Tensor::scalar(steps)?)];
    saved.extend(state.iter().map(|(n, t)| (format!("{n}.w"), t.clone())));
    optimizer.load_state(&mut model, &saved)?;
    let mut grads = Gradients::default();
    grads.insert(&model.0, input(case, "dw")?);
    optimizer.step(&mut model, &grads)?;
    Ok(model.0.detach())
}

#[test]
fn sgd_momentum() -> Result<()> {
    let case = &ANSWERS["sgd_momentum"];
    let (lr, momentum) = (number(&case["learning_rate"]), number(&case["momentum"]));
    let (w, dw, v) = (
        input(case, "w")?,
        input(case, "dw")?,
        input(case, "velocity")?,
    );
    // as the course writes it: v = momentum v - lr dw; w += v
    let next = v.mul_scalar(momentum)?.sub(&dw.mul_scalar(lr)?)?;
    assert_decimals(&w.add(&next)?, &case["next_w"])?;

    // as PyTorch does: u = momentum u + dw; w -= lr u, the same with v = -lr u
    let config = SgdConfig {
        lr,
        momentum,
        ..SgdConfig::default()
    };
    let u = v.mul_scalar(-1.0 / lr)?;
    let found = next_w(case, config, 5, &[("momentum_buffer", u)])?;
    assert_decimals(&found, &case["next_w"])
}

#[test]
fn the_two_ways_to_write_momentum_stay_together() -> Result<()> {
    let (lr, momentum) = (0.1, 0.9);
    let mut w = Tensor::linspace(-1.0, 1.0, 7, DType::F64)?;
    let mut v = w.zeros_like()?;
    let mut model = One(w.requires_grad());
    let mut sgd = Sgd::new(SgdConfig {
        lr,
        momentum,
        ..SgdConfig::default()
    })?;
    for _ in 0..20 {
        // of sum cos w
        let dw = w.sin()?.neg()?;
        v = v.mul_scalar(momentum)?.sub(&dw.mul_scalar(lr)?)?;
        w = w.add(&v)?;
        let grads = model.0.cos()?.sum_all()?.backward()?;
        sgd.step(&mut model, &grads)?;
    }
    assert_near(&model.0, &w.to_vec::<f64>()?, 1e-12)
}

#[test]
fn rmsprop() -> Result<()> {
    let case = &ANSWERS["rmsprop"];
    let config = RmsPropConfig {
        lr: number(&case["learning_rate"]),
        alpha: number(&case["decay_rate"]),
        eps: number(&case["epsilon"]),
        ..RmsPropConfig::default()
    };
    let state = [("square_avg", input(case, "cache")?)];
    assert_decimals(&next_w(case, config, 1, &state)?, &case["next_w"])
}

#[test]
fn adam() -> Result<()> {
    let case = &ANSWERS["adam"];
    let config = AdamConfig {
        lr: number(&case["learning_rate"]),
        betas: [number(&case["beta1"]), number(&case["beta2"])],
        eps: number(&case["epsilon"]),
        ..AdamConfig::default()
    };
    let state = [
        ("exp_avg", input(case, "m")?),
        ("exp_avg_sq", input(case, "v")?),
    ];
    let before = number(&case["t_before"]) as i64;
    assert_decimals(&next_w(case, config, before, &state)?, &case["next_w"])
}

#[test]
fn small_random_scores_cost_ln_10_and_9() -> Result<()> {
    let mut rng = Generator::new(0);
    let scores = Tensor::randn([50, 10], &mut rng, DType::F64)?.mul_scalar(1e-3)?;
    let y = labels(50, 10)?;
    let softmax = |x: &Tensor| x.cross_entropy(&y, &CrossEntropy::default());
    assert!((softmax(&scores)?.item()? - 10f64.ln()).abs() < 1e-3);
    assert!((scores.svm_loss(&y)?.item()? - 9.0).abs() < 1e-2);
    for report in [
        gradcheck(|x| softmax(&x[0]), from_ref(&scores))?,
        gradcheck(|x| x[0].svm_loss(&y), from_ref(&scores))?,
    ] {
        assert!(report.passed(), "{report}");
    }
    Ok(())
}

/// The notebook's activations: relu(x w1) w2 of a random batch of `n`, (n, 3).
fn activations(n: usize, rng: &mut Generator, w: &[Tensor; 2]) -> Result<Tensor> {
    let x = Tensor::randn([n, 50], rng, DType::F64)?;
    x.matmul(&w[0])?.relu()?.matmul(&w[1])
}

fn weights(rng: &mut Generator) -> Result<[Tensor; 2]> {
    Ok([
        Tensor::randn([50, 60], rng, DType::F64)?,
        Tensor::randn([60, 3], rng, DType::F64)?,
    ])
}

fn assert_moments(x: &Tensor, axes: &[isize], mean: &[f64], std: &[f64], by: f64) -> Result<()> {
    assert_near(&x.mean(axes, false)?, mean, by)?;
    assert_near(&x.var(axes, 0, false)?.sqrt()?, std, by)
}

#[test]
fn batchnorm_in_training_gives_mean_beta_and_deviation_gamma() -> Result<()> {
    let mut rng = Generator::new(0);
    let w = weights(&mut rng)?;
    let x = activations(200, &mut rng, &w)?;
    let mut bn = BatchNorm1d::new(3)?;
    nn::to_dtype(&mut bn, DType::F64)?;
    let y = bn.forward(&x, Mode::Train)?;
    assert_moments(&y, &[0], &[0.0; 3], &[1.0; 3], 1e-6)?;

    let (gamma, beta) = ([1.0, 2.0, 3.0], [11.0, 12.0, 13.0]);
    bn.weight.copy_(&Tensor::from_slice(&gamma, 3)?)?;
    bn.bias.copy_(&Tensor::from_slice(&beta, 3)?)?;
    let y = bn.forward(&x, Mode::Train)?;
    assert_moments(&y, &[0], &beta, &gamma, 1e-6)
}

#[test]
fn batchnorm_in_evaluation_comes_near_after_many_batches() -> Result<()> {
    let mut rng = Generator::new(0);
    let w = weights(&mut rng)?;
    let mut bn = BatchNorm1d::new(3)?;
    nn::to_dtype(&mut bn, DType::F64)?;
    let x = activations(1000, &mut rng, &w)?;
    let far = bn.forward(&x, Mode::Eval)?.var(&[0], 0, false)?;
    assert!(far.to_vec::<f64>()?.iter().all(|&v| v > 100.0), "{far}");
    for _ in 0..100 {
        bn.forward(&activations(200, &mut rng, &w)?, Mode::Train)?;
    }
    assert_moments(
        &bn.forward(&x, Mode::Eval)?,
        &[0],
        &[0.0; 3],
        &[1.0; 3],
        0.1,
    )
}

#[test]
fn spatial_batchnorm_normalizes_channels_and_layernorm_rows() -> Result<()> {
    let mut rng = Generator::new(0);
    let x = Tensor::randn([2, 3, 4, 5], &mut rng, DType::F64)?;
    let x = x.mul_scalar(4.0)?.add_scalar(10.0)?;
    let mut bn = BatchNorm2d::new(3)?;
    nn::to_dtype(&mut bn, DType::F64)?;
    let y = bn.forward(&x, Mode::Train)?;
    assert_moments(&y, &[0, 2, 3], &[0.0; 3], &[1.0; 3], 1e-5)?;

    let mut ln = LayerNorm::new(60, 1e-5)?;
    nn::to_dtype(&mut ln, DType::F64)?;
    for mode in [Mode::Train, Mode::Eval] {
        let y = ln.forward(&x.flatten(1)?, mode)?;
        assert_moments(&y, &[1], &[0.0; 2], &[1.0; 2], 1e-5)?;
    }
    Ok(())
}

#[test]
fn dropout_keeps_the_mean() -> Result<()> {
    let mut rng = Generator::new(0);
    let x = Tensor::randn([500, 500], &mut rng, DType::F64)?.add_scalar(10.0)?;
    let mean = x.mean_all()?.item()?;
    for keep in [0.25, 0.4, 0.7] {
        let mut dropout = Dropout::new(1.0 - keep, &mut rng)?;
        let y = dropout.forward(&x, Mode::Train)?;
        let found = y.mean_all()?.item()?;
        // its standard deviation is at most 10 sqrt(0.75 / 0.25) / 500 = 0.035
        assert!((found - mean).abs() < 0.14, "keep {keep}: {found}");
        let kept = y.ne(&y.zeros_like()?)?.to_dtype(DType::F64)?;
        let kept = kept.mean_all()?.item()?;
        assert!((kept - keep).abs() < 0.004, "keep {keep}: {kept}");
        let same = dropout.forward(&x, Mode::Eval)?;
        assert_eq!(same.to_vec::<f64>()?, x.to_vec::<f64>()?);
    }
    Ok(())
}

#[test]
fn three_layer_convnet_begins_at_ln_10_and_its_gradients_are_right() -> Result<()> {
    let mut rng = Generator::new(0);
    let fresh = ThreeLayerConfig::default();
    let mut net = ThreeLayerConvNet::new(fresh, &mut rng)?;
    let x = Tensor::randn([10, 3, 32, 32], &mut rng, DType::F32)?;
    let loss = softmax_loss(0.0)(&net.forward(&x, Mode::Train)?, &labels(10, 10)?)?.item()?;
    assert!((loss - 10f64.ln()).abs() < 1e-3, "{loss}");
    assert!(l2_loss(&mut net, 0.5)? > 0.0);

    let config = ThreeLayerConfig {
        input_dim: [3, 16, 16],
        num_filters: 3,
        filter_size: 3,
        hidden_dim: 7,
        weight_scale: Some(1e-2),
        ..ThreeLayerConfig::default()
    };
    let mut net = ThreeLayerConvNet::new(config, &mut rng)?;
    let x = Tensor::randn([2, 3, 16, 16], &mut rng, DType::F64)?;
    let report = check_gradients(&mut net, &x, &labels(2, 10)?, &softmax_loss(0.0), 40)?;
    // all of six parameters but where they have fewer than 40 elements
    assert_eq!(report.checked, 40 + 3 + 40 + 7 + 40 + 10);
    assert!(report.passed(), "{report}");
    Ok(())
}
