//! The networks that benches train, each with its batch and its optimizer: `torch_cases.py` has the
//! same ones by the same names.

use std::process::Command;

use cotangent::models::{DeeperConfig, DeeperConvNet, ResNet, ResNetConfig};
use cotangent::models::{ThreeLayerConfig, ThreeLayerConvNet};
use cotangent::nn::{
    self, Activation, AvgPool2d, BatchNorm2d, Conv2d, Conv2dConfig, ConvNormAct, ConvTranspose2d,
    ConvTranspose2dConfig, Flatten, GlobalAvgPool2d, LayerNorm, LayerNorm2d, LayerScale, Linear,
    MaxPool2d, Mode, Module, Norm, Residual, Sequential, Slot, Visitor, summary::Summary,
};
use cotangent::ops::{CrossEntropy, Reduction};
use cotangent::optim::{Adam, AdamConfig, AdamW, AdamWConfig, Optimizer, Sgd, SgdConfig};
use cotangent::random::Generator;
use cotangent::{DType, Device, Error, Result, Tensor};

type Rng<'a> = &'a mut Generator;

/// What a case has to do at least.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Multiply-adds.
    pub macs: usize,
    /// Bytes read from memory and written to it.
    pub bytes: usize,
}

impl Work {
    fn plus(self, other: Work) -> Work {
        Work {
            macs: self.macs + other.macs,
            bytes: self.bytes + other.bytes,
        }
    }

    fn times(self, n: usize) -> Work {
        Work {
            macs: self.macs * n,
            bytes: self.bytes * n,
        }
    }
}

/// A training step: a network, its batch, its update rule.
#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    /// Images a batch.
    pub n: usize,
    /// Their height and width.
    pub size: usize,
    /// From the images' size.
    pub model: fn(usize, Rng) -> Result<Box<dyn Module>>,
    pub target: Target,
    pub rule: Rule,
}

/// What the loss compares the output with.
#[derive(Clone, Copy)]
pub enum Target {
    /// Labels below this, by cross entropy.
    Classes(usize),
    /// The images themselves, by their mean squared distance.
    Images,
}

#[derive(Clone, Copy)]
pub enum Rule {
    Adam,
    AdamW,
    /// With this learning rate, momentum 0.9 and weight decay 5e-4.
    Sgd(f64),
}

use Rule::{Adam as ByAdam, AdamW as ByAdamW, Sgd as BySgd};
use Target::{Classes, Images};

const fn case(
    name: &'static str,
    [n, size]: [usize; 2],
    model: fn(usize, Rng) -> Result<Box<dyn Module>>,
    target: Target,
    rule: Rule,
) -> Case {
    Case {
        name,
        n,
        size,
        model,
        target,
        rule,
    }
}

/// Every training case.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    case("train/three_layer/b100", [100, 32], three_layer, Classes(10), ByAdam),
    case("train/deeper/b100", [100, 32], deeper, Classes(10), ByAdam),
    case("train/resnet18/b32", [32, 32], resnet18, Classes(10), ByAdam),
    case("train/resnet18/b128", [128, 32], resnet18, Classes(10), BySgd(0.1)),
    case("train/convnext_stage/b16x96x16", [16, 64], convnext_stage, Classes(200), ByAdamW),
    case("train/deepconv/b32", [32, 32], deepconv, Classes(10), BySgd(0.01)),
    case("train/resnet9/b32", [32, 32], resnet9, Classes(10), BySgd(0.01)),
    case("train/vgg16_bn/b32", [32, 32], vgg16_bn, Classes(10), BySgd(0.01)),
    case("train/densenet_bc/b32", [32, 32], densenet_bc, Classes(10), BySgd(0.01)),
    case("train/convnext_t/b32x64", [32, 64], convnext_t, Classes(200), ByAdamW),
    case("train/autoencoder/b32", [32, 32], autoencoder, Images, BySgd(0.01)),
    case("train/airbench94/b32", [32, 32], airbench94, Classes(10), BySgd(0.01)),
];

impl Case {
    /// The case of this name.
    pub fn named(name: &str) -> Option<&'static Case> {
        CASES.iter().find(|c| c.name == name)
    }

    /// The network, on the CPU.
    pub fn network(&self) -> Result<Box<dyn Module>> {
        (self.model)(self.size, &mut Generator::new(0))
    }

    /// That network on random images, ready to be trained.
    pub fn step(&self, mut model: Box<dyn Module>, device: Device) -> Result<Step> {
        let rng = &mut Generator::new(1);
        nn::to_device(&mut *model, device)?;
        let shape = [self.n, 3, self.size, self.size];
        let x = Tensor::randn(shape, rng, DType::F32)?.to(device)?;
        let labels = match self.target {
            Classes(classes) => {
                let labels = (0..self.n).map(|_| rng.below(classes as u64) as i64);
                Some(Tensor::from_vec(labels.collect(), self.n)?.to(device)?)
            }
            Images => None,
        };
        let optimizer: Box<dyn Optimizer> = match self.rule {
            ByAdam => Box::new(Adam::new(AdamConfig {
                lr: 1e-3,
                ..Default::default()
            })?),
            ByAdamW => Box::new(AdamW::new(AdamWConfig {
                lr: 4e-3,
                ..Default::default()
            })?),
            BySgd(lr) => Box::new(Sgd::new(SgdConfig {
                lr,
                momentum: 0.9,
                weight_decay: 5e-4,
                ..Default::default()
            })?),
        };
        Ok(Step {
            model,
            optimizer,
            x,
            labels,
        })
    }

    /// What a step has to do at least, on the network that this case makes, while it is on the CPU.
    pub fn work(&self, model: &mut dyn Module) -> Result<Work> {
        let parameters = nn::parameter_count(model);
        // one image tells of all
        let image = Tensor::zeros([1, 3, self.size, self.size], DType::F32)?;
        let work = of_network(model, &image)?.times(self.n);
        let update = Work {
            macs: 0,
            // the gradient read, weight and momentum read and written
            bytes: 20 * parameters,
        };
        Ok(work.plus(update))
    }
}

/// A network with its batch and its optimizer.
pub struct Step {
    model: Box<dyn Module>,
    pub optimizer: Box<dyn Optimizer>,
    x: Tensor,
    labels: Option<Tensor>,
}

impl Step {
    /// Forward, loss, backward and the optimizer's update.
    pub fn run(&mut self) -> Result<()> {
        let y = self.model.forward(&self.x, Mode::Train)?;
        let loss = match &self.labels {
            Some(labels) => y.cross_entropy(labels, &CrossEntropy::default())?,
            None => y.mse_loss(&self.x, Reduction::Mean)?,
        };
        self.optimizer.step(&mut *self.model, &loss.backward()?)
    }
}

/// What forward and backward of a network have to do at least on these images, by its convolutions
/// and linear layers: what lies between them can be done while their data passes.
///
/// Forward, the input's gradient and the weights' are three products of one size. Of memory, the
/// input is read forward and for the weights' gradient, and its own gradient is written; the output
/// is written, read by what follows and again in that one's backward, which writes the output's
/// gradient, and that is read here.
fn of_network(model: &mut dyn Module, images: &Tensor) -> Result<Work> {
    let mut weights: Vec<(String, Vec<usize>)> = Vec::new();
    nn::visit(model, |name, slot| {
        if let Slot::Parameter(t) | Slot::Buffer(t) = slot
            && t.rank() >= 2
        {
            weights.push((name.into(), t.shape().to_vec()));
        }
    });
    let mut work = Work::default();
    for row in Summary::of(model, images)?.rows {
        let inside = format!("{}.", row.name);
        for (_, weight) in weights.iter().filter(|(name, _)| name.starts_with(&inside)) {
            let (elements, output) = (weight.iter().product::<usize>(), &row.output);
            let Some((ci, stride)) = settings(&row.layer) else {
                continue;
            };
            let (positions, input, outputs) = match weight.len() {
                2 => {
                    let positions = output.numel() / weight[0];
                    (positions, positions * weight[1], output.numel())
                }
                _ if row.layer.starts_with("ConvTranspose2d") => {
                    let positions = output.numel() / output[1] / stride;
                    (positions, positions * ci, output.numel())
                }
                _ => {
                    let positions = output.numel() / output[1];
                    (positions, positions * stride * ci, positions * weight[0])
                }
            };
            work = work.plus(Work {
                macs: 3 * positions * elements,
                bytes: 4 * (3 * input + 5 * outputs),
            });
        }
    }
    Ok(work)
}

/// Of a layer's description, `Conv2d(3, 64, kernel_size=[3, 3], stride=[2, 2])`: the channels in, and
/// of how many positions of the larger image one of the smaller is made.
fn settings(layer: &str) -> Option<(usize, usize)> {
    let inside = layer.split_once('(')?.1;
    let ci = inside.split_once(',')?.0.parse().ok()?;
    let stride = match inside.split_once("stride=[") {
        Some((_, s)) => {
            let pair = s.split_once(']')?.0.split(", ").map(str::parse::<usize>);
            pair.product::<std::result::Result<usize, _>>().ok()?
        }
        None => 1,
    };
    Some((ci, stride))
}

/// This program, to be run once more: what a process grows by or begins with wants one of its own.
pub fn again() -> Result<Command> {
    let path = std::env::current_exe().map_err(Error::io("the program's own path"))?;
    Ok(Command::new(path))
}

/// Square filters in steps of their own size.
fn patches(size: usize) -> Conv2dConfig {
    Conv2dConfig {
        stride: [size; 2],
        ..Conv2dConfig::new([size; 2])
    }
}

/// Square filters that keep the size, without bias.
fn plain(size: usize) -> Conv2dConfig {
    Conv2dConfig {
        bias: false,
        ..Conv2dConfig::same(size)
    }
}

/// 3x3 convolution, batch norm, ReLU.
fn conv_bn_relu(from: usize, to: usize, rng: Rng) -> Result<ConvNormAct> {
    ConvNormAct::new(from, to, plain(3), Norm::Batch, Activation::Relu, rng)
}

fn three_layer(_: usize, rng: Rng) -> Result<Box<dyn Module>> {
    let net = ThreeLayerConvNet::new(ThreeLayerConfig::default(), rng)?;
    Ok(Box::new(net))
}

fn deeper(size: usize, rng: Rng) -> Result<Box<dyn Module>> {
    let config = DeeperConfig {
        input_dim: [3, size, size],
        hidden_dim: 256,
        use_batchnorm: true,
        ..Default::default()
    };
    Ok(Box::new(DeeperConvNet::new(config, rng)?))
}

/// With CIFAR's 3x3 stem.
fn resnet18(_: usize, rng: Rng) -> Result<Box<dyn Module>> {
    Ok(Box::new(ResNet::new(ResNetConfig::resnet18(), rng)?))
}

/// Pairs of conv-bn-relu, each with a pool behind it.
fn deepconv(size: usize, rng: Rng) -> Result<Box<dyn Module>> {
    let (mut net, mut from) = (Sequential::new(), 3);
    for to in [32, 64, 128] {
        net = net
            .push(conv_bn_relu(from, to, rng)?)
            .push(conv_bn_relu(to, to, rng)?)
            .push(MaxPool2d::square(2));
        from = to;
    }
    let last = Linear::new(from * (size / 8).pow(2), 10, true, rng)?;
    Ok(Box::new(net.push(Flatten).push(last)))
}

/// David Page's ResNet-9.
fn resnet9(_: usize, rng: Rng) -> Result<Box<dyn Module>> {
    let residual = |c, rng: Rng| -> Result<Residual> {
        let body = Sequential::new()
            .push(conv_bn_relu(c, c, rng)?)
            .push(conv_bn_relu(c, c, rng)?);
        Ok(Residual::new(body))
    };
    let net = Sequential::new()
        .push(conv_bn_relu(3, 64, rng)?)
        .push(conv_bn_relu(64, 128, rng)?)
        .push(MaxPool2d::square(2))
        .push(residual(128, rng)?)
        .push(conv_bn_relu(128, 256, rng)?)
        .push(MaxPool2d::square(2))
        .push(conv_bn_relu(256, 512, rng)?)
        .push(MaxPool2d::square(2))
        .push(residual(512, rng)?)
        .push(MaxPool2d::square(4))
        .push(Flatten)
        .push(Linear::new(512, 10, false, rng)?);
    Ok(Box::new(net))
}

/// VGG-16 with batch norm, for CIFAR: one linear layer.
fn vgg16_bn(_: usize, rng: Rng) -> Result<Box<dyn Module>> {
    let (mut net, mut from) = (Sequential::new(), 3);
    for (to, depth) in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)] {
        for _ in 0..depth {
            net = net.push(conv_bn_relu(from, to, rng)?);
            from = to;
        }
        net = net.push(MaxPool2d::square(2));
    }
    let last = Linear::new(512, 10, true, rng)?;
    Ok(Box::new(net.push(Flatten).push(last)))
}

/// Batch norm, ReLU, convolution: DenseNet's order.
struct NormReluConv {
    norm: BatchNorm2d,
    conv: Conv2d,
}

impl NormReluConv {
    fn new(from: usize, to: usize, size: usize, rng: Rng) -> Result<Self> {
        Ok(NormReluConv {
            norm: BatchNorm2d::new(from)?,
            conv: Conv2d::new(from, to, plain(size), rng)?,
        })
    }
}

impl Module for NormReluConv {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = self.norm.forward_act(x, mode, Activation::Relu)?;
        self.conv.forward(&x, mode)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.child("norm", &mut self.norm);
        v.child("conv", &mut self.conv);
    }

    fn describe(&self) -> String {
        self.conv.describe()
    }
}

/// DenseNet's layer: the input with k new channels behind it, made by way of 4 k.
struct DenseLayer {
    bottleneck: NormReluConv,
    growth: NormReluConv,
}

impl DenseLayer {
    fn new(from: usize, k: usize, rng: Rng) -> Result<Self> {
        Ok(DenseLayer {
            bottleneck: NormReluConv::new(from, 4 * k, 1, rng)?,
            growth: NormReluConv::new(4 * k, k, 3, rng)?,
        })
    }
}

impl Module for DenseLayer {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let y = self.bottleneck.forward(x, mode)?;
        Tensor::cat(&[x, &self.growth.forward(&y, mode)?], 1)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.child("bottleneck", &mut self.bottleneck);
        v.child("growth", &mut self.growth);
    }

    fn describe(&self) -> String {
        "DenseLayer".into()
    }

    fn summarize(&mut self, x: &Tensor, s: &mut Summary) -> Result<Tensor> {
        let y = s.child("bottleneck", |s| self.bottleneck.summarize(x, s))?;
        let y = s.child("growth", |s| self.growth.summarize(&y, s))?;
        Tensor::cat(&[x, &y], 1)
    }
}

/// DenseNet-BC-100: three blocks of 16 layers, 12 channels each, halved between the blocks.
fn densenet_bc(_: usize, rng: Rng) -> Result<Box<dyn Module>> {
    let (k, mut c) = (12, 24);
    let mut net = Sequential::new().push(Conv2d::new(3, c, plain(3), rng)?);
    for block in 0..3 {
        if block > 0 {
            net = net
                .push(NormReluConv::new(c, c / 2, 1, rng)?)
                .push(AvgPool2d::square(2));
            c /= 2;
        }
        for _ in 0..16 {
            net = net.push(DenseLayer::new(c, k, rng)?);
            c += k;
        }
    }
    let net = net
        .push(BatchNorm2d::new(c)?)
        .push(Activation::Relu)
        .push(GlobalAvgPool2d)
        .push(Linear::new(c, 10, true, rng)?);
    Ok(Box::new(net))
}

/// The axes in another order.
struct Permute([isize; 4]);

impl Module for Permute {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        x.permute(&self.0)
    }

    fn visit(&mut self, _: &mut Visitor<'_>) {}

    fn describe(&self) -> String {
        "Permute".into()
    }
}

/// ConvNeXt's block: depthwise 7x7, layer norm over channels, to 4 d and back with GELU, a scale.
fn convnext_block(d: usize, rng: Rng) -> Result<Residual> {
    let depthwise = Conv2dConfig {
        groups: d,
        ..Conv2dConfig::same(7)
    };
    let body = Sequential::new()
        .push(Conv2d::new(d, d, depthwise, rng)?)
        .push(Permute([0, 2, 3, 1]))
        .push(LayerNorm::new(d, 1e-6)?)
        .push(Linear::new(d, 4 * d, true, rng)?)
        .push(Activation::Gelu)
        .push(Linear::new(4 * d, d, true, rng)?)
        .push(LayerScale::last(d, 1e-6)?)
        .push(Permute([0, 3, 1, 2]));
    Ok(Residual::new(body))
}

/// ConvNeXt's first stage, with its patch stem and a classifier.
fn convnext_stage(_: usize, rng: Rng) -> Result<Box<dyn Module>> {
    let mut net = Sequential::new().push(Conv2d::new(3, 96, patches(4), rng)?);
    for _ in 0..3 {
        net = net.push(convnext_block(96, rng)?);
    }
    let last = Linear::new(96, 200, true, rng)?;
    Ok(Box::new(net.push(GlobalAvgPool2d).push(last)))
}

/// ConvNeXt-Tiny.
fn convnext_t(_: usize, rng: Rng) -> Result<Box<dyn Module>> {
    let mut net = Sequential::new()
        .push(Conv2d::new(3, 96, patches(4), rng)?)
        .push(LayerNorm2d::new(96)?);
    let mut from = 96;
    for (d, depth) in [(96, 3), (192, 3), (384, 9), (768, 3)] {
        if d != from {
            net = net
                .push(LayerNorm2d::new(from)?)
                .push(Conv2d::new(from, d, patches(2), rng)?);
            from = d;
        }
        for _ in 0..depth {
            net = net.push(convnext_block(d, rng)?);
        }
    }
    let net = net
        .push(GlobalAvgPool2d)
        .push(LayerNorm::new(768, 1e-6)?)
        .push(Linear::new(768, 200, true, rng)?);
    Ok(Box::new(net))
}

/// Three halvings by 3x3 convolutions, three doublings by transposed 4x4 ones.
fn autoencoder(_: usize, rng: Rng) -> Result<Box<dyn Module>> {
    let half = Conv2dConfig {
        stride: [2; 2],
        ..Conv2dConfig::same(3)
    };
    let twice = ConvTranspose2dConfig {
        stride: [2; 2],
        padding: [1; 2],
        ..ConvTranspose2dConfig::new([4; 2])
    };
    let relu = Activation::Relu;
    let net = Sequential::new()
        .push(ConvNormAct::new(3, 32, half, Norm::None, relu, rng)?)
        .push(ConvNormAct::new(32, 64, half, Norm::None, relu, rng)?)
        .push(ConvNormAct::new(64, 128, half, Norm::None, relu, rng)?)
        .push(ConvTranspose2d::new(128, 64, twice, rng)?)
        .push(relu)
        .push(ConvTranspose2d::new(64, 32, twice, rng)?)
        .push(relu)
        .push(ConvTranspose2d::new(32, 3, twice, rng)?);
    Ok(Box::new(net))
}

/// A convolution that is not trained.
struct Frozen(Conv2d);

impl Frozen {
    fn new(mut conv: Conv2d) -> Self {
        conv.weight = conv.weight.detach();
        Frozen(conv)
    }
}

impl Module for Frozen {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.0.forward(x, mode)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.buffer("weight", &mut self.0.weight);
    }

    fn describe(&self) -> String {
        self.0.describe()
    }
}

/// Keller Jordan's airbench94: frozen whitening filters, three groups of two convolutions.
fn airbench94(_: usize, rng: Rng) -> Result<Box<dyn Module>> {
    let whitening = Conv2dConfig {
        bias: false,
        ..Conv2dConfig::new([2; 2])
    };
    let (gelu, mut from) = (Activation::Gelu, 24);
    let mut net = Sequential::new()
        .push(Frozen::new(Conv2d::new(3, from, whitening, rng)?))
        .push(gelu);
    for to in [64, 256, 256] {
        net = net
            .push(Conv2d::new(from, to, plain(3), rng)?)
            .push(MaxPool2d::square(2))
            .push(BatchNorm2d::new(to)?)
            .push(gelu)
            .push(ConvNormAct::new(to, to, plain(3), Norm::Batch, gelu, rng)?);
        from = to;
    }
    let net = net
        .push(MaxPool2d::square(3))
        .push(Flatten)
        .push(Linear::new(from, 10, false, rng)?);
    Ok(Box::new(net))
}
