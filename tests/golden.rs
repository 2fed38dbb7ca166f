//! Ops against values computed by PyTorch in float64: forward and every gradient, F64 to 1e-9 and
//! F32 to 1e-4 of the greatest expected magnitude. The files are `$COTANGENT_GOLDEN`'s, else
//! those in `tests/golden/`, whose README tells how they were made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use cotangent::models::{DeeperConfig, DeeperConvNet};
use cotangent::nn::{self, Mode, Module};
use cotangent::ops::{BatchNorm, CrossEntropy, Reduction};
use cotangent::optim::{Adam, AdamConfig, Optimizer};
use cotangent::random::Generator;
use cotangent::shape::Window;
use cotangent::{DType, Result, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// One case of a family's file: its settings and its tensors by name.
struct GoldenCase {
    family: &'static str,
    settings: Value,
    tensors: BTreeMap<String, Tensor>,
}

/// What an op was found to give, by the names of the file: `y`, `dx`, ..
type Found = Vec<(String, Tensor)>;

/// Every case of a family's file.
fn read(family: &'static str) -> Vec<GoldenCase> {
    let folder = match std::env::var_os("COTANGENT_GOLDEN") {
        Some(folder) => PathBuf::from(folder),
        None => [env!("CARGO_MANIFEST_DIR"), "tests", "golden"]
            .iter()
            .collect(),
    };
    let path = folder.join(family).with_extension("safetensors");
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut cases: BTreeMap<String, GoldenCase> = BTreeMap::new();
    for (case, settings) in header.metadata().as_ref().unwrap() {
        let settings = serde_json::from_str(settings).unwrap();
        let tensors = BTreeMap::new();
        cases.insert(
            case.clone(),
            GoldenCase {
                family,
                settings,
                tensors,
            },
        );
    }
    for (name, view) in file.iter() {
        let (case, name) = name.split_once('.').unwrap();
        let eight = || view.data().as_chunks::<8>().0.iter();
        let tensor = match view.dtype() {
            Dtype::F64 => {
                let v: Vec<f64> = eight().map(|&b| f64::from_le_bytes(b)).collect();
                Tensor::from_vec(v, view.shape())
            }
            Dtype::I64 => {
                let v: Vec<i64> = eight().map(|&b| i64::from_le_bytes(b)).collect();
                Tensor::from_vec(v, view.shape())
            }
            other => panic!("{family}: {name} is {other:?}"),
        };
        let case = cases.get_mut(case).unwrap();
        case.tensors.insert(name.into(), tensor.unwrap());
    }
    cases.into_values().collect()
}

impl GoldenCase {
    /// What the case is of; the family where the file does not say.
    fn op(&self) -> &str {
        self.settings["op"].as_str().unwrap_or(self.family)
    }

    fn number(&self, key: &str) -> f64 {
        self.settings[key].as_f64().unwrap()
    }

    fn flag(&self, key: &str) -> bool {
        self.settings[key].as_bool().unwrap()
    }

    /// A setting that is a list of sizes.
    fn sizes(&self, key: &str) -> Vec<usize> {
        let list = self.settings[key].as_array().unwrap();
        list.iter().map(|v| v.as_u64().unwrap() as usize).collect()
    }

    /// A setting that is (H, W).
    fn pair(&self, key: &str) -> [usize; 2] {
        self.sizes(key).try_into().unwrap()
    }

    /// A tensor of the file, floats as `dtype`.
    fn tensor(&self, name: &str, dtype: DType) -> Tensor {
        let t = self.tensors.get(name);
        let t = t.unwrap_or_else(|| panic!("{} {} has no {name}", self.family, self.settings));
        match t.dtype() {
            DType::I64 => t.clone(),
            _ => t.to_dtype(dtype).unwrap(),
        }
    }

    /// `y = f(inputs)` and the gradient `d` + name of each float input. Inputs that the case
    /// lacks (a bias) are left out, at the end of the list.
    fn differentiate(
        &self,
        dtype: DType,
        inputs: &[&str],
        f: impl FnOnce(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Found> {
        let names: Vec<&str> = inputs
            .iter()
            .copied()
            .filter(|&n| self.tensors.contains_key(n))
            .collect();
        let leaves: Vec<Tensor> = names
            .iter()
            .map(|n| self.tensor(n, dtype).requires_grad())
            .collect();
        let y = f(&leaves)?;
        let dy = match self.tensors.get("dy") {
            Some(dy) => dy.to_dtype(dtype)?,
            None => y.ones_like()?,
        };
        let grads = y.backward_from(&dy)?;
        let mut found = vec![("y".to_string(), y)];
        for (name, leaf) in names.iter().zip(&leaves).filter(|(_, l)| l.is_tracked()) {
            let grad = grads.get(leaf).expect("every float input has a gradient");
            found.push((format!("d{name}"), grad.clone()));
        }
        Ok(found)
    }

    /// Panics unless `found` agrees with the file, in all that is not an input.
    fn compare(&self, found: &Found, inputs: &BTreeSet<&str>, tolerance: f64) {
        self.compare_values(found, tolerance, 0.0);
        let what = format!("{} {}", self.family, self.settings);
        for name in self.tensors.keys() {
            let known = inputs.contains(&**name) || found.iter().any(|(n, _)| n == name);
            assert!(known, "{what}: {name} was not compared");
        }
    }

    /// Panics unless each value is near the file's, relative to the tensor's greatest magnitude
    /// or to `least`.
    fn compare_values(&self, found: &Found, tolerance: f64, least: f64) {
        let what = format!("{} {}", self.family, self.settings);
        for (name, t) in found {
            let expected = self.tensor(name, DType::F64).to_dtype(DType::F64).unwrap();
            assert_eq!(t.shape(), expected.shape(), "{what}: {name}");
            let t = t.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap();
            let expected = expected.to_vec::<f64>().unwrap();
            let scale = expected.iter().fold(least, |m, x| m.max(x.abs()));
            for (i, (t, e)) in t.iter().zip(&expected).enumerate() {
                // NaN must fail
                assert!(
                    t == e || (t - e).abs() <= tolerance * scale,
                    "{what}: {name}[{i}] is {t} but PyTorch has {e}"
                );
            }
        }
    }
}

/// Check every case of a family in F64 and F32. `run` gives what the op finds, `None` for an op
/// that it does not know: such a case fails, unless its op is `not_yet` there. `inputs` names the
/// tensors of the file that are given, not found.
fn check(
    family: &'static str,
    inputs: &[&str],
    not_yet: &[&str],
    run: impl Fn(&GoldenCase, DType) -> Option<Result<Found>>,
) {
    let cases = read(family);
    let inputs = inputs.iter().copied().chain(["dy"]).collect();
    let (mut checked, mut skipped) = (0, BTreeSet::new());
    for case in &cases {
        if not_yet.contains(&case.op()) {
            skipped.insert(case.op());
            continue;
        }
        for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 1e-4)] {
            let found = run(case, dtype)
                .unwrap_or_else(|| panic!("{family}: nothing checks {}", case.settings))
                .unwrap_or_else(|e| panic!("{family} {}: {e}", case.settings));
            case.compare(&found, &inputs, tolerance);
        }
        checked += 1;
    }
    assert!(checked > 0, "{family}: no case was checked");
    let stale: Vec<_> = not_yet.iter().filter(|n| !skipped.contains(*n)).collect();
    assert!(stale.is_empty(), "{family}: {stale:?} are in no case");
    println!("{family}: {checked} of {} cases checked", cases.len());
}

#[test]
fn unary() {
    check("unary", &["x"], &[], |case, dtype| {
        let f: fn(&Tensor) -> Result<Tensor> = match case.op() {
            "relu" => Tensor::relu,
            "gelu" => Tensor::gelu,
            "gelu_tanh" => Tensor::gelu_tanh,
            "mish" => Tensor::mish,
            "elu" => |x| x.elu(1.0),
            "silu" => Tensor::silu,
            "leaky_relu_0.01" => |x| x.leaky_relu(0.01),
            "sigmoid" => Tensor::sigmoid,
            "tanh" => Tensor::tanh,
            "exp" => Tensor::exp,
            "softplus" => Tensor::softplus,
            // in evaluation the slope is the middle of its range
            "rrelu_eval_0.125_0.3333333333333333" => {
                |x| x.leaky_relu((1.0 / 8.0 + 1.0 / 3.0) / 2.0)
            }
            "abs" => Tensor::abs,
            "neg" => Tensor::neg,
            "square" => Tensor::square,
            "log" => Tensor::log,
            "sqrt" => Tensor::sqrt,
            "recip" => Tensor::reciprocal,
            "rsqrt" => Tensor::rsqrt,
            _ => return None,
        };
        Some(case.differentiate(dtype, &["x"], |x| f(&x[0])))
    });
}

#[test]
fn binary_broadcast() {
    check("binary_broadcast", &["a", "b"], &[], |case, dtype| {
        let f: fn(&Tensor, &Tensor) -> Result<Tensor> = match case.op() {
            "add" => Tensor::add,
            "sub" => Tensor::sub,
            "mul" => Tensor::mul,
            "div" => Tensor::div,
            "maximum" => Tensor::maximum,
            "pow" => Tensor::pow,
            _ => return None,
        };
        Some(case.differentiate(dtype, &["a", "b"], |x| f(&x[0], &x[1])))
    });
}

#[test]
fn pool2d() {
    check("pool2d", &["x"], &[], |case, dtype| {
        let window = || Window {
            stride: case.pair("stride"),
            padding: case.pair("padding"),
            ..Window::new(case.pair("kernel"))
        };
        let run = |x: &[Tensor]| match case.op() {
            "max" => x[0].max_pool2d(window()),
            "avg" => x[0].avg_pool2d(window(), case.flag("count_include_pad")),
            _ => x[0].adaptive_avg_pool2d(case.pair("output")),
        };
        let known = ["max", "avg", "adaptive_avg"].contains(&case.op());
        known.then(|| case.differentiate(dtype, &["x"], run))
    });
}

#[test]
fn norm() {
    let inputs = ["x", "w", "b", "running_mean", "running_var"];
    check("norm", &inputs, &[], |case, dtype| match case.op() {
        "batch_norm" => Some(batch_norm(case, dtype)),
        "layer_norm" => Some(case.differentiate(dtype, &["x", "w", "b"], |x| {
            let shape = case.sizes("normalized_shape");
            x[0].layer_norm(&shape, Some(&x[1]), Some(&x[2]), case.number("eps"))
        })),
        "group_norm" => Some(case.differentiate(dtype, &["x", "w", "b"], |x| {
            let groups = case.number("groups") as usize;
            x[0].group_norm(groups, Some(&x[1]), Some(&x[2]), case.number("eps"))
        })),
        _ => None,
    });
}

fn batch_norm(case: &GoldenCase, dtype: DType) -> Result<Found> {
    let settings = BatchNorm {
        training: case.flag("training"),
        momentum: case.number("momentum"),
        eps: case.number("eps"),
        relu: false,
    };
    let mut mean = case.tensor("running_mean", dtype);
    let mut var = case.tensor("running_var", dtype);
    let mut found = case.differentiate(dtype, &["x", "w", "b"], |x| {
        let running = Some((&mut mean, &mut var));
        x[0].batch_norm(Some(&x[1]), Some(&x[2]), running, &settings)
    })?;
    found.push(("running_mean_after".into(), mean));
    found.push(("running_var_after".into(), var));
    Ok(found)
}

#[test]
fn loss() {
    check("loss", &["x", "target"], &[], |case, dtype| {
        let reduction = match case.settings["reduction"].as_str() {
            Some("none") => Reduction::None,
            Some("sum") => Reduction::Sum,
            _ => Reduction::Mean,
        };
        // the file has no gradients of the targets
        let target = case.tensor("target", dtype);
        let run = |x: &[Tensor]| match case.op() {
            "cross_entropy" => {
                let settings = CrossEntropy {
                    label_smoothing: case.number("label_smoothing"),
                    reduction,
                    ..Default::default()
                };
                x[0].cross_entropy(&target, &settings)
            }
            "mse" => x[0].mse_loss(&target, reduction),
            "l1" => x[0].l1_loss(&target, reduction),
            "smooth_l1" => x[0].smooth_l1_loss(&target, 1.0, reduction),
            "huber" => x[0].huber_loss(&target, 1.0, reduction),
            _ => x[0].bce_with_logits(&target, None, None, reduction),
        };
        let known = [
            "cross_entropy",
            "mse",
            "l1",
            "smooth_l1",
            "huber",
            "bce_with_logits",
        ];
        known
            .contains(&case.op())
            .then(|| case.differentiate(dtype, &["x"], run))
    });
}

#[test]
fn reduce() {
    check("reduce", &["x"], &[], |case, dtype| {
        let dims = case.settings["dims"].as_array().unwrap();
        let axes: Vec<isize> = dims.iter().map(|d| d.as_i64().unwrap() as isize).collect();
        let keep = || case.flag("keepdim");
        let run = |x: &[Tensor]| match case.op() {
            "sum" => x[0].sum(&axes, keep()),
            "mean" => x[0].mean(&axes, keep()),
            "amax" => x[0].amax(&axes, keep()),
            "logsumexp" => x[0].logsumexp(&axes, keep()),
            "var_biased" => x[0].var(&axes, 0, keep()),
            "softmax" => x[0].softmax(axes[0]),
            _ => x[0].log_softmax(axes[0]),
        };
        let known = [
            "sum",
            "mean",
            "amax",
            "logsumexp",
            "var_biased",
            "softmax",
            "log_softmax",
        ];
        known
            .contains(&case.op())
            .then(|| case.differentiate(dtype, &["x"], run))
    });
}

#[test]
fn matmul() {
    check("matmul", &["a", "b"], &[], |case, dtype| {
        Some(case.differentiate(dtype, &["a", "b"], |x| x[0].matmul(&x[1])))
    });
}

#[test]
fn conv2d() {
    check("conv2d", &["x", "w", "b"], &[], |case, dtype| {
        Some(case.differentiate(dtype, &["x", "w", "b"], |x| {
            let window = Window {
                kernel: [x[1].shape()[2], x[1].shape()[3]],
                stride: case.pair("stride"),
                padding: case.pair("padding"),
                dilation: case.pair("dilation"),
            };
            x[0].conv2d(&x[1], x.get(2), window, case.number("groups") as usize)
        }))
    });
}

#[test]
fn conv_transpose2d() {
    check("conv_transpose2d", &["x", "w", "b"], &[], |case, dtype| {
        Some(case.differentiate(dtype, &["x", "w", "b"], |x| {
            let window = Window {
                stride: case.pair("stride"),
                padding: case.pair("padding"),
                ..Window::new([x[1].shape()[2], x[1].shape()[3]])
            };
            let (extra, groups) = (case.pair("output_padding"), case.number("groups") as usize);
            x[0].conv_transpose2d(&x[1], x.get(2), window, extra, groups)
        }))
    });
}

/// A whole model, five steps of Adam: every loss, then every parameter, running statistic and the
/// logits in evaluation.
#[test]
fn deeper_convnet() -> Result<()> {
    let case = &read("deeper_convnet")[0];
    for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, 1e-4)] {
        let config = DeeperConfig {
            input_dim: [3, 8, 8],
            num_filters: vec![4, 6],
            hidden_dim: 8,
            num_classes: 5,
            use_batchnorm: true,
            ..Default::default()
        };
        let mut model = DeeperConvNet::new(config, &mut Generator::new(0))?;
        nn::to_dtype(&mut model, dtype)?;
        // PyTorch numbers the layers of its Sequential; ours have names, in the same order
        let own: Vec<String> = nn::state_dict(&mut model)
            .into_iter()
            .map(|(n, _)| n)
            .collect();
        let layers = [0, 1, 3, 4, 8, 9, 11];
        let kinds = [
            "weight",
            "bias",
            "running_mean",
            "running_var",
            "num_batches_tracked",
        ];
        let theirs: Vec<String> = layers
            .iter()
            .flat_map(|l| kinds.map(|k| format!("{l}.{k}")))
            .filter(|n| case.tensors.contains_key(&format!("init.{n}")))
            .collect();
        assert_eq!(own.len(), theirs.len());
        let init: Vec<(String, Tensor)> = own
            .iter()
            .zip(&theirs)
            .map(|(o, t)| (o.clone(), case.tensor(&format!("init.{t}"), dtype)))
            .collect();
        nn::load_state_dict(&mut model, &init)?;
        drop(init);

        let mut adam = Adam::new(AdamConfig {
            lr: 1e-2,
            ..Default::default()
        })?;
        let (x, target) = (case.tensor("x", dtype), case.tensor("target", dtype));
        let mut losses = Vec::new();
        for i in 0..5 {
            let scores = model.forward(&x.select(0, i)?, Mode::Train)?;
            let loss = scores.cross_entropy(&target.select(0, i)?, &CrossEntropy::default())?;
            losses.push(loss.item()?);
            let grads = loss.backward()?;
            drop((scores, loss));
            adam.step(&mut model, &grads)?;
        }
        let mut found: Found = vec![("losses".into(), Tensor::from_vec(losses, 5)?)];
        // A bias before a batch norm has the gradient 0. What is left is rounding, which Adam
        // divides by its eps of 1e-8: five steps of 1e-2 make up to 5e-9 of 1e-15 in F64, and
        // whole steps in F32. The running mean follows, and the logits in evaluation.
        let mut noisy: Found = vec![(
            "eval_logits".into(),
            model.forward(&x.select(0, 0)?, Mode::Eval)?,
        )];
        for ((name, t), theirs) in nn::state_dict(&mut model).into_iter().zip(&theirs) {
            let follows = ["conv.bias", "linear.bias", "running_mean"];
            let noise = follows.iter().any(|n| name.ends_with(n));
            if noise { &mut noisy } else { &mut found }.push((format!("final.{theirs}"), t));
        }
        if dtype == DType::F64 {
            case.compare_values(&noisy, 5e-9, 1.0);
        }
        case.compare_values(&found, tolerance, 0.0);
    }
    Ok(())
}

/// The checks themselves must be able to fail.
#[test]
#[should_panic(expected = "nothing checks")]
fn an_unknown_op_fails() {
    check("loss", &["x", "target"], &[], |_, _| None);
}

#[test]
#[should_panic(expected = "but PyTorch has")]
fn a_wrong_value_fails() {
    check("unary", &["x"], &[], |case, dtype| {
        Some(case.differentiate(dtype, &["x"], |x| x[0].mul_scalar(1.5)))
    });
}
