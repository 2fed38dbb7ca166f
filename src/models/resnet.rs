//! Residual networks, with torchvision's names.

use serde::{Deserialize, Serialize};

use super::{check_list, check_scales, check_sizes};
use crate::error::{Error, Result};
use crate::nn::{
    Activation, ActivationLayer, BatchNorm2d, Conv2d, Conv2dConfig, Fan, GlobalAvgPool2d, Init,
    Linear, MaxPool2d, Mode, Module, Sequential, Summary, Visitor, nested,
};
use crate::random::Generator;
use crate::shape::Window;
use crate::tensor::Tensor;

/// What comes before the blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stem {
    /// For small images: a 3x3 convolution, which keeps their size.
    #[default]
    Cifar,
    /// For large ones: a 7x7 convolution in steps of 2 and a 3x3 max pool in steps of 2.
    ImageNet,
}

impl Stem {
    /// The stem for images of this height and width: up to 64 pixels are few.
    pub fn of(height: usize, width: usize) -> Self {
        match height.max(width) {
            0..=64 => Stem::Cifar,
            _ => Stem::ImageNet,
        }
    }
}

/// The settings of a [`ResNet`]; the defaults are ResNet-18's for CIFAR-10.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResNetConfig {
    /// Channels of an image.
    pub in_channels: usize,
    /// Blocks of each stage; there are as many stages as numbers.
    pub depths: Vec<usize>,
    /// Channels of the first stage; each further stage has twice as many as the one before.
    pub width: usize,
    /// What comes before the blocks.
    pub stem: Stem,
    /// Scores an image.
    pub num_classes: usize,
    /// After each norm, and after each block's sum.
    pub activation: Activation,
    /// Whether the last norm of each block begins with weights of 0, so that the block begins as
    /// its shortcut (Goyal et al. 2017).
    pub zero_init_residual: bool,
    /// Strength of the L2 penalty that the Solver adds to the loss.
    pub reg: f64,
}

impl Default for ResNetConfig {
    fn default() -> Self {
        ResNetConfig {
            in_channels: 3,
            depths: vec![2, 2, 2, 2],
            width: 64,
            stem: Stem::Cifar,
            num_classes: 10,
            activation: Activation::Relu,
            zero_init_residual: false,
            reg: 0.0,
        }
    }
}

impl ResNetConfig {
    /// ResNet-18.
    pub fn resnet18() -> Self {
        Self::default()
    }

    /// ResNet-34.
    pub fn resnet34() -> Self {
        ResNetConfig {
            depths: vec![3, 4, 6, 3],
            ..Self::default()
        }
    }

    /// Refuse settings that make no network.
    pub fn validate(&self) -> Result<()> {
        check_sizes("in_channels", &[self.in_channels])?;
        check_list("depths", &self.depths)?;
        // wider than this nothing fits into memory, nor into a `usize` at some width
        if self.depths.len() > 16 {
            let why = format!("{} stages, expected at most 16", self.depths.len());
            return Err(Error::config("depths", why));
        }
        check_sizes("width", &[self.width])?;
        check_sizes("num_classes", &[self.num_classes])?;
        check_scales(None, self.reg)
    }
}

/// Two 3x3 convolutions, each with its norm, beside a shortcut:
/// `y = act(bn2(conv2(act(bn1(conv1(x))))) + downsample(x))`.
struct BasicBlock {
    conv1: Conv2d,
    bn1: BatchNorm2d,
    conv2: Conv2d,
    bn2: BatchNorm2d,
    /// A 1x1 convolution and a norm where the block's output has another shape than its input.
    downsample: Option<Sequential>,
    /// Both times.
    relu: ActivationLayer,
}

/// A convolution without bias, its weights drawn for what `activation` leaves of the gradients.
fn conv(
    [from, to]: [usize; 2],
    kernel: usize,
    stride: usize,
    activation: Activation,
    rng: &mut Generator,
) -> Result<Conv2d> {
    let config = Conv2dConfig {
        stride: [stride; 2],
        bias: false,
        ..Conv2dConfig::same(kernel)
    };
    let mut conv = Conv2d::new(from, to, config, rng)?;
    conv.weight = Init::KaimingNormal(Fan::Out, activation).make(conv.weight.shape(), rng)?;
    Ok(conv)
}

impl BasicBlock {
    fn new(
        from: usize,
        to: usize,
        stride: usize,
        config: &ResNetConfig,
        rng: &mut Generator,
    ) -> Result<Self> {
        let activation = config.activation;
        let mut bn2 = BatchNorm2d::new(to)?;
        if config.zero_init_residual {
            bn2.weight = Init::Constant(0.0).make(to, rng)?;
        }
        Ok(BasicBlock {
            conv1: conv([from, to], 3, stride, activation, rng)?,
            bn1: BatchNorm2d::new(to)?,
            conv2: conv([to, to], 3, 1, activation, rng)?,
            bn2,
            downsample: match stride != 1 || from != to {
                true => Some(
                    Sequential::new()
                        .push(conv([from, to], 1, stride, activation, rng)?)
                        .push(BatchNorm2d::new(to)?),
                ),
                false => None,
            },
            relu: activation.layer(rng)?,
        })
    }
}

impl Module for BasicBlock {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let h = self.conv1.forward(x, mode)?;
        let h = self.bn1.forward_act(&h, mode, self.relu.fused())?;
        let h = self.relu.after(h, mode)?;
        let h = self.conv2.forward(&h, mode)?;
        let h = self.bn2.forward(&h, mode)?;
        let sum = match &mut self.downsample {
            Some(downsample) => h.add(&downsample.forward(x, mode)?)?,
            None => h.add(x)?,
        };
        self.relu.forward(&sum, mode)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.child("conv1", &mut self.conv1);
        v.child("bn1", &mut self.bn1);
        v.child("conv2", &mut self.conv2);
        v.child("bn2", &mut self.bn2);
        if let Some(downsample) = &mut self.downsample {
            v.child("downsample", downsample);
        }
        v.child("relu", &mut self.relu);
    }

    fn describe(&self) -> String {
        let mut parts = vec![
            ("conv1", self.conv1.describe()),
            ("bn1", self.bn1.describe()),
            ("relu", self.relu.describe()),
            ("conv2", self.conv2.describe()),
            ("bn2", self.bn2.describe()),
        ];
        if let Some(downsample) = &self.downsample {
            parts.push(("downsample", downsample.describe()));
        }
        nested("BasicBlock", &parts)
    }

    fn summarize(&mut self, x: &Tensor, s: &mut Summary) -> Result<Tensor> {
        let h = s.child("conv1", |s| self.conv1.summarize(x, s))?;
        let h = s.child("bn1", |s| self.bn1.summarize(&h, s))?;
        let h = self.relu.forward(&h, s.mode())?;
        let h = s.child("conv2", |s| self.conv2.summarize(&h, s))?;
        let h = s.child("bn2", |s| self.bn2.summarize(&h, s))?;
        let sum = match &mut self.downsample {
            Some(d) => h.add(&s.child("downsample", |s| d.summarize(x, s))?)?,
            None => h.add(x)?,
        };
        self.relu.forward(&sum, s.mode())
    }
}

/// A residual network of basic blocks (He et al. 2015): stem, stages of blocks of which each but
/// the first halves the images, the mean over each channel, and a linear layer. Its parameters
/// have the names and the initial values of torchvision's.
///
/// ```
/// # use cotangent::{DType, Tensor, random::Generator};
/// # use cotangent::models::{ResNet, ResNetConfig};
/// # use cotangent::nn::{Mode, Module};
/// let config = ResNetConfig { depths: vec![1, 1], width: 4, ..ResNetConfig::default() };
/// let mut net = ResNet::new(config, &mut Generator::new(0))?;
/// let scores = net.forward(&Tensor::ones([2, 3, 32, 32], DType::F32)?, Mode::Eval)?;
/// assert_eq!(scores.shape()[..], [2, 10]);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub struct ResNet {
    /// What it was made from.
    pub config: ResNetConfig,
    conv1: Conv2d,
    bn1: BatchNorm2d,
    relu: ActivationLayer,
    maxpool: Option<MaxPool2d>,
    layers: Vec<(String, Sequential)>,
    fc: Linear,
}

impl ResNet {
    /// With new weights from `rng`: Kaiming's for the gradients in the convolutions, 1 and 0 in
    /// the norms, PyTorch's usual ones in the linear layer.
    pub fn new(config: ResNetConfig, rng: &mut Generator) -> Result<Self> {
        config.validate()?;
        let (kernel, stride, maxpool) = match config.stem {
            Stem::Cifar => (3, 1, None),
            Stem::ImageNet => {
                let window = Window {
                    stride: [2, 2],
                    padding: [1, 1],
                    ..Window::new([3, 3])
                };
                (7, 2, Some(MaxPool2d::new(window)))
            }
        };
        let mut channels = config.width;
        let first = [config.in_channels, channels];
        let conv1 = conv(first, kernel, stride, config.activation, rng)?;
        let bn1 = BatchNorm2d::new(channels)?;
        let mut layers = Vec::new();
        for (i, &depth) in config.depths.iter().enumerate() {
            let (to, stride) = (config.width << i, if i == 0 { 1 } else { 2 });
            let mut layer = Sequential::new();
            for block in 0..depth {
                let stride = if block == 0 { stride } else { 1 };
                layer = layer.push(BasicBlock::new(channels, to, stride, &config, rng)?);
                channels = to;
            }
            layers.push((format!("layer{}", i + 1), layer));
        }
        let fc = Linear::new(channels, config.num_classes, true, rng)?;
        Ok(ResNet {
            relu: config.activation.layer(rng)?,
            config,
            conv1,
            bn1,
            maxpool,
            layers,
            fc,
        })
    }
}

impl Module for ResNet {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = self.conv1.forward(x, mode)?;
        let x = self.bn1.forward_act(&x, mode, self.relu.fused())?;
        let mut x = self.relu.after(x, mode)?;
        if let Some(maxpool) = &mut self.maxpool {
            x = maxpool.forward(&x, mode)?;
        }
        for (_, layer) in &mut self.layers {
            x = layer.forward(&x, mode)?;
        }
        let x = GlobalAvgPool2d.forward(&x, mode)?;
        self.fc.forward(&x, mode)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.child("conv1", &mut self.conv1);
        v.child("bn1", &mut self.bn1);
        v.child("relu", &mut self.relu);
        for (name, layer) in &mut self.layers {
            v.child(name, layer);
        }
        v.child("fc", &mut self.fc);
    }

    fn reg(&self) -> f64 {
        self.config.reg
    }

    fn describe(&self) -> String {
        let mut parts = vec![
            ("conv1", self.conv1.describe()),
            ("bn1", self.bn1.describe()),
            ("relu", self.relu.describe()),
        ];
        parts.extend(self.maxpool.iter().map(|p| ("maxpool", p.describe())));
        let layers = self.layers.iter();
        parts.extend(layers.map(|(name, layer)| (name.as_str(), layer.describe())));
        parts.push(("fc", self.fc.describe()));
        nested("ResNet", &parts)
    }

    fn summarize(&mut self, x: &Tensor, s: &mut Summary) -> Result<Tensor> {
        let x = s.child("conv1", |s| self.conv1.summarize(x, s))?;
        let x = s.child("bn1", |s| self.bn1.summarize(&x, s))?;
        let mut x = self.relu.forward(&x, s.mode())?;
        if let Some(maxpool) = &mut self.maxpool {
            x = s.child("maxpool", |s| maxpool.summarize(&x, s))?;
        }
        for (name, layer) in &mut self.layers {
            x = s.child(name, |s| layer.summarize(&x, s))?;
        }
        let x = GlobalAvgPool2d.forward(&x, s.mode())?;
        s.child("fc", |s| self.fc.summarize(&x, s))
    }
}
