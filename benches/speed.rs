//! Times training steps and single ops:
//! `cargo bench --bench speed -- [--device cpu|cuda|cuda:N] [--json] [--only SUBSTR]`.
//!
//! First the device's own rates, measured in the same minutes: multiply-adds and copies. Then a
//! line a case, `{"case", "median_ms", "min_ms", "max_ms", "device"}` with `--json`. A training
//! step is forward, loss, backward and the optimizer's update; on a CUDA device there is a line
//! more, `CASE/captured`, of its replay as one graph, which is what the Solver does.
//! `RAYON_NUM_THREADS` sets the CPU's threads.

mod common;

use std::time::Instant;

use cotangent::models::{DeeperConfig, DeeperConvNet, ThreeLayerConfig, ThreeLayerConvNet};
use cotangent::nn::{
    self, AvgPool2d, BatchNorm2d, Conv2d, Conv2dConfig, Flatten, Linear, Mode, Module, Sequential,
    Visitor,
};
use cotangent::ops::{BatchNorm, CrossEntropy};
use cotangent::optim::{Adam, AdamConfig, AdamW, AdamWConfig, Optimizer, Sgd, SgdConfig};
use cotangent::random::Generator;
use cotangent::shape::Window;
use cotangent::{DType, Device, Result, Tensor, autograd::no_grad};

/// Runs a case is timed for, after two to warm up.
const REPEATS: usize = 7;
/// A run repeats its step until it has taken this long, in seconds.
const RUN: f64 = 0.05;

struct Bench(common::Args);

impl Bench {
    fn wanted(&self, case: &str) -> bool {
        case.contains(&self.0.only)
    }

    fn time(&self, case: &str, mut f: impl FnMut() -> Result<()>) -> Result<()> {
        if !self.wanted(case) {
            return Ok(());
        }
        let device = self.0.device;
        // the device is waited for at a run's ends only, as in training
        let mut run = |calls: usize| -> Result<f64> {
            let start = Instant::now();
            for _ in 0..calls {
                f()?;
            }
            device.synchronize()?;
            Ok(start.elapsed().as_secs_f64() / calls as f64)
        };
        run(2)?;
        let (calls, repeats) = match common::is_emulated(device) {
            true => (1, 1),
            false => (((RUN / run(1)?.max(1e-6)) as usize).max(1), REPEATS),
        };
        let mut ms = Vec::with_capacity(repeats);
        for _ in 0..repeats {
            ms.push(run(calls)? * 1e3);
        }
        ms.sort_by(f64::total_cmp);
        let (median, min, max) = (ms[repeats / 2], ms[0], ms[repeats - 1]);
        if self.0.json {
            println!(
                "{{\"case\": \"{case}\", \"median_ms\": {median:.4}, \"min_ms\": {min:.4}, \"max_ms\": {max:.4}, \"device\": \"{device}\"}}"
            );
        } else {
            println!("{case:38} {median:10.3} ms   ({min:.3} to {max:.3})");
        }
        Ok(())
    }

    /// A training step of a model on random images of `size` pixels a side.
    fn train<M: Module, O: Optimizer>(
        &self,
        case: &str,
        [n, size, classes]: [usize; 3],
        model: impl FnOnce(&mut Generator) -> Result<M>,
        optimizer: O,
    ) -> Result<()> {
        let captured = format!("{case}/captured");
        if !self.wanted(&captured) {
            return Ok(());
        }
        let device = self.0.device;
        let rng = &mut Generator::new(0);
        let (mut model, mut optimizer) = (model(rng)?, optimizer);
        nn::to_device(&mut model, device)?;
        let x = Tensor::randn([n, 3, size, size], rng, DType::F32)?.to(device)?;
        let y = Tensor::from_vec(
            (0..n).map(|_| rng.below(classes as u64) as i64).collect(),
            n,
        )?
        .to(device)?;
        let mut step = || {
            let grads = model
                .forward(&x, Mode::Train)?
                .cross_entropy(&y, &CrossEntropy::default())?
                .backward()?;
            optimizer.step(&mut model, &grads)
        };
        self.time(case, &mut step)?;
        if let Device::Cuda(gpu) = device {
            // where `--only` left the line above out: a step settles in two
            step()?;
            step()?;
            let (graph, ()) = gpu.capture(step)?;
            self.time(&captured, || graph.replay(&optimizer.replayed()))?;
        }
        Ok(())
    }

    /// An op alone, without a graph and with its gradients, on inputs of these shapes.
    fn op(
        &self,
        case: &str,
        shapes: &[&[usize]],
        f: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<()> {
        if !self.wanted(&format!("{case}/fwd")) && !self.wanted(&format!("{case}/fwd+bwd")) {
            return Ok(());
        }
        let rng = &mut Generator::new(0);
        let inputs = shapes
            .iter()
            .map(|s| Tensor::randn(*s, rng, DType::F32)?.to(self.0.device))
            .collect::<Result<Vec<_>>>()?;
        // images lie as the engine keeps them
        let inputs = inputs
            .iter()
            .map(|x| {
                if x.rank() == 4 {
                    x.permute(&[0, 2, 3, 1])?
                        .contiguous()?
                        .permute(&[0, 3, 1, 2])
                } else {
                    Ok(x.clone())
                }
            })
            .collect::<Result<Vec<_>>>()?;
        self.time(&format!("{case}/fwd"), || {
            let _quiet = no_grad();
            f(&inputs).map(drop)
        })?;
        let leaves: Vec<Tensor> = inputs.iter().map(Tensor::requires_grad).collect();
        let y = f(&leaves)?;
        let dy = Tensor::randn(y.shape(), rng, DType::F32)?.to(self.0.device)?;
        let dy = if dy.rank() == 4 {
            dy.permute(&[0, 2, 3, 1])?
                .contiguous()?
                .permute(&[0, 3, 1, 2])?
        } else {
            dy
        };
        self.time(&format!("{case}/fwd+bwd"), || {
            f(&leaves)?.backward_from(&dy).map(drop)
        })
    }
}

/// ResNet's basic block: conv-bn-relu-conv-bn, the input (or its 1x1 projection) added, relu.
struct BasicBlock {
    conv1: Conv2d,
    norm1: BatchNorm2d,
    conv2: Conv2d,
    norm2: BatchNorm2d,
    shortcut: Option<(Conv2d, BatchNorm2d)>,
}

impl BasicBlock {
    fn new(from: usize, to: usize, stride: usize, rng: &mut Generator) -> Result<Self> {
        let mut conv = |from, kernel: usize, stride| {
            let config = Conv2dConfig {
                stride: [stride; 2],
                padding: [kernel / 2; 2],
                bias: false,
                ..Conv2dConfig::new([kernel; 2])
            };
            Conv2d::new(from, to, config, rng)
        };
        Ok(BasicBlock {
            conv1: conv(from, 3, stride)?,
            conv2: conv(to, 3, 1)?,
            shortcut: if stride != 1 || from != to {
                Some((conv(from, 1, stride)?, BatchNorm2d::new(to)?))
            } else {
                None
            },
            norm1: BatchNorm2d::new(to)?,
            norm2: BatchNorm2d::new(to)?,
        })
    }
}

impl Module for BasicBlock {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let y =
            self.norm1
                .forward_act(&self.conv1.forward(x, mode)?, mode, nn::Activation::Relu)?;
        let y = self.norm2.forward(&self.conv2.forward(&y, mode)?, mode)?;
        match &mut self.shortcut {
            Some((conv, norm)) => y.add(&norm.forward(&conv.forward(x, mode)?, mode)?)?.relu(),
            None => y.add(x)?.relu(),
        }
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.child("conv1", &mut self.conv1);
        v.child("bn1", &mut self.norm1);
        v.child("conv2", &mut self.conv2);
        v.child("bn2", &mut self.norm2);
        if let Some((conv, norm)) = &mut self.shortcut {
            v.child("shortcut.0", conv);
            v.child("shortcut.1", norm);
        }
    }

    fn describe(&self) -> String {
        "BasicBlock".into()
    }
}

/// ConvNeXt's block: depthwise 7x7, layer norm over channels, to 4 d and back with GELU, a scale.
struct ConvNeXtBlock {
    depthwise: Conv2d,
    norm: nn::LayerNorm,
    up: Linear,
    down: Linear,
    gamma: Tensor,
}

impl ConvNeXtBlock {
    fn new(d: usize, rng: &mut Generator) -> Result<Self> {
        let config = Conv2dConfig {
            padding: [3; 2],
            groups: d,
            ..Conv2dConfig::new([7; 2])
        };
        Ok(ConvNeXtBlock {
            depthwise: Conv2d::new(d, d, config, rng)?,
            norm: nn::LayerNorm::new(d, 1e-6)?,
            up: Linear::new(d, 4 * d, true, rng)?,
            down: Linear::new(4 * d, d, true, rng)?,
            gamma: Tensor::full([d], 1e-6, DType::F32)?.requires_grad(),
        })
    }
}

impl Module for ConvNeXtBlock {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let y = self.depthwise.forward(x, mode)?.permute(&[0, 2, 3, 1])?;
        let y = self
            .up
            .forward(&self.norm.forward(&y, mode)?, mode)?
            .gelu()?;
        let y = self.down.forward(&y, mode)?.mul(&self.gamma)?;
        x.add(&y.permute(&[0, 3, 1, 2])?)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.child("dwconv", &mut self.depthwise);
        v.child("norm", &mut self.norm);
        v.child("pwconv1", &mut self.up);
        v.child("pwconv2", &mut self.down);
        v.parameter("gamma", &mut self.gamma);
    }

    fn describe(&self) -> String {
        "ConvNeXtBlock".into()
    }
}

/// ResNet-18 with CIFAR's 3x3 stem.
fn resnet18(rng: &mut Generator) -> Result<Sequential> {
    let stem = Conv2dConfig {
        padding: [1; 2],
        bias: false,
        ..Conv2dConfig::new([3; 2])
    };
    let mut net = Sequential::new().push(nn::ConvNormAct::new(
        3,
        64,
        stem,
        nn::Norm::Batch,
        nn::Activation::Relu,
        rng,
    )?);
    for (from, to, stride) in [
        (64, 64, 1),
        (64, 64, 1),
        (64, 128, 2),
        (128, 128, 1),
        (128, 256, 2),
        (256, 256, 1),
        (256, 512, 2),
        (512, 512, 1),
    ] {
        net = net.push(BasicBlock::new(from, to, stride, rng)?);
    }
    Ok(net
        .push(AvgPool2d::new(Window {
            stride: [4; 2],
            ..Window::new([4; 2])
        }))
        .push(Flatten)
        .push(Linear::new(512, 10, true, rng)?))
}

/// ConvNeXt's first stage at 64 pixels, with its patch stem and a classifier of 200.
fn convnext_stage(rng: &mut Generator) -> Result<Sequential> {
    let stem = Conv2dConfig {
        stride: [4; 2],
        ..Conv2dConfig::new([4; 2])
    };
    let mut net = Sequential::new().push(Conv2d::new(3, 96, stem, rng)?);
    for _ in 0..3 {
        net = net.push(ConvNeXtBlock::new(96, rng)?);
    }
    Ok(net
        .push(AvgPool2d::new(Window {
            stride: [16; 2],
            ..Window::new([16; 2])
        }))
        .push(Flatten)
        .push(Linear::new(96, 200, true, rng)?))
}

fn run(b: &Bench) -> Result<()> {
    let adam = || {
        Adam::new(AdamConfig {
            lr: 1e-3,
            ..Default::default()
        })
    };
    b.train(
        "train/three_layer/b100",
        [100, 32, 10],
        |rng| ThreeLayerConvNet::new(ThreeLayerConfig::default(), rng),
        adam()?,
    )?;
    let deeper = DeeperConfig {
        hidden_dim: 256,
        use_batchnorm: true,
        ..Default::default()
    };
    b.train(
        "train/deeper/b100",
        [100, 32, 10],
        |rng| DeeperConvNet::new(deeper, rng),
        adam()?,
    )?;
    b.train("train/resnet18/b32", [32, 32, 10], resnet18, adam()?)?;
    let sgd = Sgd::new(SgdConfig {
        lr: 0.1,
        momentum: 0.9,
        weight_decay: 5e-4,
        ..Default::default()
    });
    b.train("train/resnet18/b128", [128, 32, 10], resnet18, sgd?)?;
    let adamw = AdamW::new(AdamWConfig {
        lr: 4e-3,
        ..Default::default()
    });
    b.train(
        "train/convnext_stage/b16x96x16",
        [16, 64, 200],
        convnext_stage,
        adamw?,
    )?;

    let same = |k: usize| Window {
        padding: [k / 2; 2],
        ..Window::new([k; 2])
    };
    b.op("matmul/1024", &[&[1024, 1024], &[1024, 1024]], |x| {
        x[0].matmul(&x[1])
    })?;
    b.op("bmm/64x128", &[&[64, 128, 128], &[64, 128, 128]], |x| {
        x[0].matmul(&x[1])
    })?;
    b.op(
        "conv3x3/n32c64h32",
        &[&[32, 64, 32, 32], &[64, 64, 3, 3]],
        |x| x[0].conv2d(&x[1], None, same(3), 1),
    )?;
    b.op(
        "conv3x3/n32c256h8",
        &[&[32, 256, 8, 8], &[256, 256, 3, 3]],
        |x| x[0].conv2d(&x[1], None, same(3), 1),
    )?;
    b.op(
        "conv1x1/n32c128h16",
        &[&[32, 128, 16, 16], &[128, 128, 1, 1]],
        |x| x[0].conv2d(&x[1], None, same(1), 1),
    )?;
    b.op(
        "dwconv7x7/n16c96h32",
        &[&[16, 96, 32, 32], &[96, 1, 7, 7]],
        |x| x[0].conv2d(&x[1], None, same(7), 96),
    )?;
    b.op("layernorm/8192x384", &[&[8192, 384], &[384], &[384]], |x| {
        x[0].layer_norm(&[384], Some(&x[1]), Some(&x[2]), 1e-5)
    })?;
    b.op("gelu/4M", &[&[4096, 1024]], |x| x[0].gelu())?;
    let training = BatchNorm {
        training: true,
        momentum: 0.1,
        eps: 1e-5,
        relu: false,
    };
    b.op(
        "batchnorm/n32c64h32",
        &[&[32, 64, 32, 32], &[64], &[64]],
        |x| x[0].batch_norm(Some(&x[1]), Some(&x[2]), None, &training),
    )?;
    b.op("maxpool2/n32c64h32", &[&[32, 64, 32, 32]], |x| {
        x[0].max_pool2d(Window {
            stride: [2; 2],
            ..Window::new([2; 2])
        })
    })?;
    let zeros = Tensor::zeros([4096], (DType::I64, b.0.device))?;
    b.op("softmax_ce/4096x200", &[&[4096, 200]], |x| {
        x[0].cross_entropy(&zeros, &CrossEntropy::default())
    })
}

fn main() {
    let all = || {
        let b = Bench(common::Args::parse()?);
        common::Rates::measure(b.0.device)?.print(b.0.device, b.0.json)?;
        run(&b)
    };
    common::finish(all());
}
