//! The update rules and schedules against PyTorch's and CS231n's own numbers.

use std::path::PathBuf;

use cotangent::autograd::Gradients;
use cotangent::nn::{Mode, Module, Visitor};
use cotangent::optim::{
    AdadeltaConfig, AdagradConfig, Adam, AdamConfig, AdamWConfig, AsgdConfig, Elementwise,
    Optimizer, Position, RmsProp, RmsPropConfig, Rule, Schedule, ScheduleState, Sgd, SgdConfig,
};
use cotangent::{DType, Result, Tensor};
use safetensors::SafeTensors;
use serde::de::DeserializeOwned;
use serde_json::Value;

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

fn step(optimizer: &mut dyn Optimizer, model: &mut One, grad: Tensor) {
    let mut grads = Gradients::default();
    grads.insert(&model.0, grad);
    optimizer.step(model, &grads).unwrap();
}

fn golden(file: &str) -> PathBuf {
    std::env::var_os("COTANGENT_GOLDEN")
        .map_or_else(|| "tests/golden".into(), PathBuf::from)
        .join(file)
}

/// Attributes of each case by its name, and its f64 tensors.
struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    fn open(file: &str) -> Self {
        let path = golden(file);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Golden { bytes }
    }

    /// The ops that there are cases of.
    fn ops(&self) -> Vec<String> {
        let (_, meta) = SafeTensors::read_metadata(&self.bytes).unwrap();
        let op = |text: &String| serde_json::from_str::<Value>(text).unwrap()["op"].to_string();
        let cases = meta.metadata().as_ref().unwrap().values();
        let mut ops: Vec<String> = cases.map(|c| op(c).trim_matches('"').into()).collect();
        ops.sort();
        ops
    }

    /// The case of op `op`.
    fn case(&self, op: &str) -> (String, Value) {
        let (_, meta) = SafeTensors::read_metadata(&self.bytes).unwrap();
        let cases = meta.metadata().as_ref().unwrap();
        let parsed = cases
            .iter()
            .map(|(case, text)| (case.clone(), serde_json::from_str::<Value>(text).unwrap()));
        let found = parsed.filter(|(_, attributes)| attributes["op"] == op);
        found.last().unwrap_or_else(|| panic!("no case of {op}"))
    }

    fn tensor(&self, case: &str, name: &str) -> (Vec<f64>, Vec<usize>) {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(&format!("{case}.{name}")).unwrap();
        (
            bytemuck::pod_collect_to_vec(view.data()),
            view.shape().to_vec(),
        )
    }
}

fn assert_close(got: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        let error = (a - b).abs() / b.abs().max(1.0);
        assert!(error <= tolerance, "{what}[{i}]: {a}, expected {b}");
    }
}

/// The optimizer of a golden case, by its settings in PyTorch's names.
fn optimizer(op: &str, mut settings: Value) -> Box<dyn Optimizer> {
    fn new<R: Rule + DeserializeOwned + 'static>(settings: Value) -> Box<dyn Optimizer> {
        Box::new(Elementwise::new(serde_json::from_value::<R>(settings).unwrap()).unwrap())
    }
    settings.as_object_mut().unwrap().remove("op");
    match op {
        "adam" | "adam_amsgrad" => new::<AdamConfig>(settings),
        "adamw" => new::<AdamWConfig>(settings),
        "adadelta" => new::<AdadeltaConfig>(settings),
        "adagrad" => new::<AdagradConfig>(settings),
        "asgd" => new::<AsgdConfig>(settings),
        _ if op.starts_with("sgd") => new::<SgdConfig>(settings),
        _ if op.starts_with("rmsprop") => new::<RmsPropConfig>(settings),
        _ => panic!("no rule for {op}"),
    }
}

#[test]
fn update_rules_are_pytorchs() {
    let file = Golden::open("optim.safetensors");
    let ops = file.ops();
    assert_eq!(ops.len(), 12, "{ops:?}");
    for (op, (dtype, tolerance)) in ops
        .iter()
        .flat_map(|op| [(op, (DType::F64, 1e-9)), (op, (DType::F32, 1e-4))])
    {
        let (case, settings) = file.case(op);
        let mut optimizer = optimizer(op, settings);
        let (p0, shape) = file.tensor(&case, "p0");
        let (grads, _) = file.tensor(&case, "grads");
        let (params, _) = file.tensor(&case, "params");
        let tensor = |x: &[f64]| {
            let x = Tensor::from_slice(x, &shape[..]).unwrap();
            x.to_dtype(dtype).unwrap()
        };
        let mut model = One(tensor(&p0).requires_grad());
        let n = p0.len();
        for (i, (g, p)) in grads.chunks(n).zip(params.chunks(n)).enumerate() {
            step(&mut *optimizer, &mut model, tensor(g));
            let got = model.0.to_dtype(DType::F64).unwrap();
            let got = got.to_vec::<f64>().unwrap();
            assert_close(&got, p, tolerance, &format!("{op} in {dtype}, step {i}"));
        }
    }
}

/// A case's schedule, read from PyTorch's own names, and the optimizer's learning rate.
fn schedule(attributes: &Value, unit: &str) -> (String, f64, Schedule) {
    let mut settings = attributes.as_object().unwrap().clone();
    let op: String = serde_json::from_value(settings.remove("op").unwrap()).unwrap();
    let lr = settings.remove("lr").unwrap().as_f64().unwrap();
    settings.remove("total_steps");
    if let Some(anneal) = settings.remove("anneal") {
        settings.insert("anneal_strategy".into(), anneal);
    }
    let name = match op.as_str() {
        "multistep" => "multi_step",
        "linear_warmup" => "linear",
        "reduce_on_plateau" => "plateau",
        cyclic if cyclic.starts_with("cyclic") => "cyclic",
        cycle if cycle.starts_with("one_cycle") => "one_cycle",
        same => same,
    };
    match name {
        "cyclic" | "one_cycle" => {
            let moves = name == "one_cycle";
            settings.insert("cycle_momentum".into(), moves.into());
        }
        _ => {}
    }
    if name != "plateau" {
        settings.insert("unit".into(), unit.into());
    }
    let json = serde_json::json!({ name: settings });
    let schedule: Schedule = serde_json::from_value(json).unwrap();
    schedule.validate().unwrap();
    (op, lr, schedule)
}

#[test]
fn schedules_are_pytorchs() {
    let file = Golden::open("schedule.safetensors");
    let (_, meta) = SafeTensors::read_metadata(&file.bytes).unwrap();
    let cases = meta.metadata().clone().unwrap();
    assert_eq!(cases.len(), 13);
    for (case, text) in &cases {
        let attributes: Value = serde_json::from_str(text).unwrap();
        let (expected, _) = file.tensor(case, "lr");
        for unit in ["epoch", "step"] {
            let (op, base, schedule) = schedule(&attributes, unit);
            let mut state = ScheduleState::default();
            let (mut rates, mut momenta) = (Vec::new(), Vec::new());
            for i in 0..expected.len() {
                let at = match unit {
                    "epoch" => Position {
                        epoch: i,
                        step: 7 * i + 3,
                        total_epochs: 60,
                        total_steps: 420,
                    },
                    _ => Position {
                        epoch: i / 10,
                        step: i,
                        total_epochs: 6,
                        total_steps: 60,
                    },
                };
                // PyTorch notes the learning rate after it has taken in the epoch's number
                if op == "reduce_on_plateau" {
                    let (metric, _) = file.tensor(case, "metric");
                    schedule.end_epoch(at, &mut state, metric[i]);
                }
                rates.push(schedule.learning_rate(base, at, &state));
                // the optimizer's own is 0.9
                momenta.push(schedule.momentum(at).unwrap_or(0.9));
            }
            assert_close(&rates, &expected, 1e-12, &op);
            if op != "reduce_on_plateau" {
                assert_close(&momenta, &file.tensor(case, "momentum").0, 1e-12, &op);
            }
        }
    }
}

/// The numbers of CS231n's notebook for one rule, as `linspace` or nested lists.
fn course(rule: &Value, name: &str) -> Tensor {
    let ends = &rule[name]["linspace"];
    let (a, b) = (ends[0].as_f64().unwrap(), ends[1].as_f64().unwrap());
    let t = Tensor::linspace(a, b, 20, DType::F64).unwrap();
    t.reshape([4, 5]).unwrap()
}

#[test]
fn the_courses_update_rules_are_these() {
    let text = std::fs::read_to_string("tests/golden/cs231n.json").unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let number = |rule: &str, key: &str| all[rule][key].as_f64().unwrap();
    let state = |kind: &str, t: Tensor| (format!("{kind}.w"), t);
    let scaled = |t: Tensor, by: f64| t.mul_scalar(by).unwrap();
    let steps = |n: i64| state("step", Tensor::scalar(n).unwrap());

    let lr = number("sgd_momentum", "learning_rate");
    let sgd = Sgd::new(SgdConfig {
        lr,
        momentum: number("sgd_momentum", "momentum"),
        ..SgdConfig::default()
    });
    // the course's velocity has the learning rate and the sign in it
    let velocity = scaled(course(&all["sgd_momentum"], "velocity"), -1.0 / lr);
    let rmsprop = RmsProp::new(RmsPropConfig {
        lr: number("rmsprop", "learning_rate"),
        alpha: number("rmsprop", "decay_rate"),
        eps: number("rmsprop", "epsilon"),
        ..RmsPropConfig::default()
    });
    let adam = Adam::new(AdamConfig {
        lr: number("adam", "learning_rate"),
        betas: [number("adam", "beta1"), number("adam", "beta2")],
        eps: number("adam", "epsilon"),
        ..AdamConfig::default()
    });
    type Rule = (&'static str, Box<dyn Optimizer>, Vec<(String, Tensor)>);
    let cases: [Rule; 3] = [
        (
            "sgd_momentum",
            Box::new(sgd.unwrap()),
            vec![state("momentum_buffer", velocity), steps(1)],
        ),
        (
            "rmsprop",
            Box::new(rmsprop.unwrap()),
            vec![
                state("square_avg", course(&all["rmsprop"], "cache")),
                steps(1),
            ],
        ),
        (
            "adam",
            Box::new(adam.unwrap()),
            vec![
                state("exp_avg", course(&all["adam"], "m")),
                state("exp_avg_sq", course(&all["adam"], "v")),
                steps(all["adam"]["t_before"].as_i64().unwrap()),
            ],
        ),
    ];
    for (rule, mut optimizer, before) in cases {
        let mut model = One(course(&all[rule], "w").requires_grad());
        optimizer.load_state(&mut model, &before).unwrap();
        step(&mut *optimizer, &mut model, course(&all[rule], "dw"));
        let expected: Vec<Vec<f64>> = serde_json::from_value(all[rule]["next_w"].clone()).unwrap();
        let got = model.0.to_vec::<f64>().unwrap();
        // the notebook prints eight digits
        assert_close(&got, &expected.concat(), 1e-8, rule);
    }
}
