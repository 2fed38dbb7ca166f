//! Inception-ResNet-v2 cut down for images of 56 to 64 pixels.

use serde::{Deserialize, Serialize};

use super::blocks::{fan_out, stage};
use super::{check_scales, check_sizes};
use crate::error::{Error, Result};
use crate::nn::{
    Activation, Concat, Conv2dConfig, ConvNormAct, Dropout, GlobalAvgPool2d, Linear, MaxPool2d,
    Mode, Module, Residual, Sequential, Visitor,
};
use crate::random::Generator;
use crate::shape::Window;
use crate::tensor::Tensor;

/// The settings of an [`InceptionResNet`]; the defaults are Tiny-ImageNet's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InceptionResNetConfig {
    /// Channels of an image.
    pub in_channels: usize,
    /// Filters of the narrowest convolutions, of which all other widths are multiples or one and a
    /// half; even. The published networks' is 32.
    pub width: usize,
    /// Inception-A and Inception-B blocks, before and after the reduction.
    pub blocks: [usize; 2],
    /// What each block's branch is multiplied with before it is added (Szegedy et al. 2017: 0.1 to
    /// 0.3 keep wide networks from dying).
    pub residual_scale: f64,
    /// The probability that dropout drops a feature before the linear layer, 0 <= p < 1.
    pub dropout: f64,
    /// Scores an image.
    pub num_classes: usize,
    /// After each norm but the blocks' last ones, and after each block's sum.
    pub activation: Activation,
    /// Strength of the L2 penalty that the Solver adds to the loss.
    pub reg: f64,
}

impl Default for InceptionResNetConfig {
    fn default() -> Self {
        InceptionResNetConfig {
            in_channels: 3,
            width: 32,
            blocks: [1, 2],
            residual_scale: 0.1,
            dropout: 0.5,
            num_classes: 200,
            activation: Activation::Relu,
            reg: 0.0,
        }
    }
}

impl InceptionResNetConfig {
    /// Refuse settings that make no network.
    pub fn validate(&self) -> Result<()> {
        check_sizes("in_channels", &[self.in_channels])?;
        if self.width == 0 || !self.width.is_multiple_of(2) {
            let why = format!("{}, expected an even number above 0", self.width);
            return Err(Error::config("width", why));
        }
        if !self.residual_scale.is_finite() {
            let why = format!("{}, expected a finite number", self.residual_scale);
            return Err(Error::config("residual_scale", why));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let why = format!("{}, expected 0 <= p < 1", self.dropout);
            return Err(Error::config("dropout", why));
        }
        check_sizes("num_classes", &[self.num_classes])?;
        check_scales(None, self.reg)
    }
}

/// y = factor x, at the end of a residual branch.
struct Scale(f64);

impl Module for Scale {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        x.mul_scalar(self.0)
    }

    fn visit(&mut self, _: &mut Visitor<'_>) {}

    fn describe(&self) -> String {
        format!("Scale({})", self.0)
    }
}

/// Filters whose padding keeps the images' size.
fn same([kh, kw]: [usize; 2]) -> Conv2dConfig {
    Conv2dConfig {
        padding: [kh / 2, kw / 2],
        ..Conv2dConfig::new([kh, kw])
    }
}

/// 3x3 windows in steps of 2.
fn halving(padding: usize) -> Window {
    Window {
        stride: [2; 2],
        padding: [padding; 2],
        ..Window::new([3, 3])
    }
}

/// What makes the stages: the activation, and where weights come from.
struct Parts<'a> {
    activation: Activation,
    rng: &'a mut Generator,
}

impl Parts<'_> {
    fn conv(&mut self, channels: [usize; 2], filter: Conv2dConfig) -> Result<ConvNormAct> {
        stage(channels, filter, self.activation, self.rng)
    }

    /// A 3x3 convolution in steps of 2.
    fn halve(&mut self, channels: [usize; 2], padding: usize) -> Result<ConvNormAct> {
        let window = halving(padding);
        let filter = Conv2dConfig {
            stride: window.stride,
            padding: window.padding,
            ..Conv2dConfig::new(window.kernel)
        };
        self.conv(channels, filter)
    }

    /// Convolutions behind each other that keep the images' size, each as (channels, filter size).
    fn chain(&mut self, mut from: usize, convs: &[(usize, [usize; 2])]) -> Result<Sequential> {
        let mut net = Sequential::new();
        for &(to, size) in convs {
            net = net.push(self.conv([from, to], same(size))?);
            from = to;
        }
        Ok(net)
    }

    /// From images to 12 `u` channels of an eighth of their height and width.
    fn stem(&mut self, channels: usize, u: usize) -> Result<Sequential> {
        let pool = || MaxPool2d::new(halving(1));
        let mixed1 = Concat::new()
            .branch("pool", pool())?
            .branch("conv", self.halve([2 * u, 3 * u], 1)?)?;
        let short = [(2 * u, [1, 1]), (3 * u, [3, 3])];
        let long = [
            (2 * u, [1, 1]),
            (2 * u, [7, 1]),
            (2 * u, [1, 7]),
            (3 * u, [3, 3]),
        ];
        let mixed2 = Concat::new()
            .branch("short", self.chain(5 * u, &short)?)?
            .branch("long", self.chain(5 * u, &long)?)?;
        let mixed3 = Concat::new()
            .branch("conv", self.halve([6 * u, 6 * u], 1)?)?
            .branch("pool", pool())?;
        Sequential::new()
            .named("conv1", self.halve([channels, u], 1)?)?
            .named("conv2", self.conv([u, u], same([3, 3]))?)?
            .named("conv3", self.conv([u, 2 * u], same([3, 3]))?)?
            .named("mixed1", mixed1)?
            .named("mixed2", mixed2)?
            .named("mixed3", mixed3)
    }

    /// Branches, a 1x1 convolution of what they join to the block's own channels, the scale, the sum.
    fn block(
        &mut self,
        channels: usize,
        branches: &[&[(usize, [usize; 2])]],
        scale: f64,
    ) -> Result<Residual> {
        let mut joined = Concat::new();
        let mut width = 0;
        for (i, branch) in branches.iter().enumerate() {
            joined = joined.branch(&format!("branch{i}"), self.chain(channels, branch)?)?;
            width += branch.last().map_or(0, |last| last.0);
        }
        let linear = [width, channels];
        let linear = stage(linear, same([1, 1]), Activation::Identity, self.rng)?;
        let body = Sequential::new()
            .named("branches", joined)?
            .named("conv", linear)?
            .named("scale", Scale(scale))?;
        Residual::new(body).activation(self.activation, self.rng)
    }

    /// From 12 `u` channels to 36 `u` of half the height and width.
    fn reduction(&mut self, u: usize) -> Result<Concat> {
        let deep = self.chain(12 * u, &[(12 * u, [1, 1]), (8 * u, [3, 3])])?;
        let deep = deep.push(self.halve([8 * u, 12 * u], 0)?);
        Concat::new()
            .branch("pool", MaxPool2d::new(halving(0)))?
            .branch("conv", self.halve([12 * u, 12 * u], 0)?)?
            .branch("deep", deep)
    }
}

/// Inception-ResNet-v2 (Szegedy et al. 2017) as far as its Inception-B blocks, for small images: the
/// stem, Inception-A, the reduction, two Inception-B with their 7x7 filters in two parts of 1x7 and
/// 7x1, the mean over each channel, dropout, a linear layer.
///
/// The stem's convolutions are padded, so that images of 49 to 64 pixels end at 3x3, whose mean is the
/// average pool of size 3; 17 pixels are the least. Each convolution has a bias and batch norm, the
/// block's last ones no activation. Widths are the paper's, but for the reduction's first 1x1
/// convolution (384, there 256) and Inception-B's in front of the 1x7 (256, there 128): so the
/// network for 200 classes has 7,156,184 parameters.
///
/// ```
/// # use cotangent::{DType, Tensor, random::Generator};
/// # use cotangent::models::{InceptionResNet, InceptionResNetConfig};
/// # use cotangent::nn::{Mode, Module};
/// let config = InceptionResNetConfig { width: 2, ..Default::default() };
/// let mut net = InceptionResNet::new(config, &mut Generator::new(0))?;
/// let scores = net.forward(&Tensor::ones([2, 3, 56, 56], DType::F32)?, Mode::Eval)?;
/// assert_eq!(scores.shape()[..], [2, 200]);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub struct InceptionResNet {
    /// What it was made from.
    pub config: InceptionResNetConfig,
    net: Sequential,
}

impl InceptionResNet {
    /// With new weights from `rng`: Kaiming's for the gradients, biases of 0.
    pub fn new(config: InceptionResNetConfig, rng: &mut Generator) -> Result<Self> {
        config.validate()?;
        let (u, scale, activation) = (config.width, config.residual_scale, config.activation);
        let a: &[&[_]] = &[
            &[(u, [1, 1])],
            &[(u, [1, 1]), (u, [3, 3])],
            &[(u, [1, 1]), (u + u / 2, [3, 3]), (2 * u, [3, 3])],
        ];
        let b: &[&[_]] = &[
            &[(6 * u, [1, 1])],
            &[(8 * u, [1, 1]), (5 * u, [1, 7]), (6 * u, [7, 1])],
        ];
        let mut parts = Parts { activation, rng };
        let stem = parts.stem(config.in_channels, u)?;
        let mut net = Sequential::new().named("stem", stem)?;
        for i in 1..=config.blocks[0] {
            net = net.named(&format!("a{i}"), parts.block(12 * u, a, scale)?)?;
        }
        net = net.named("reduction", parts.reduction(u)?)?;
        for i in 1..=config.blocks[1] {
            net = net.named(&format!("b{i}"), parts.block(36 * u, b, scale)?)?;
        }
        net = net
            .named("avgpool", GlobalAvgPool2d)?
            .named("dropout", Dropout::new(config.dropout, rng)?)?
            .named("fc", Linear::new(36 * u, config.num_classes, true, rng)?)?;
        fan_out(activation).apply(&mut net, rng)?;
        Ok(InceptionResNet { config, net })
    }
}

model!(InceptionResNet);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::nn::{self, Slot, Summary};

    fn small() -> Result<InceptionResNet> {
        let config = InceptionResNetConfig {
            width: 2,
            ..Default::default()
        };
        InceptionResNet::new(config, &mut Generator::new(0))
    }

    #[test]
    fn sizes_along_the_way() -> Result<()> {
        let mut net = small()?;
        for (size, [stem, last]) in [(17, [3, 1]), (49, [7, 3]), (56, [7, 3]), (64, [8, 3])] {
            let s = Summary::of(&mut net, &Tensor::zeros([1, 3, size, size], DType::F32)?)?;
            let output = |name: &str| s.rows.iter().find(|r| r.name == name).map(|r| r.output);
            for (name, want) in [
                ("stem.mixed3.pool", [1, 12, stem, stem]),
                ("a1.conv", [1, 24, stem, stem]),
                ("reduction.deep.2", [1, 24, last, last]),
                ("b2.branches.branch1.1", [1, 10, last, last]),
                ("b2.scale", [1, 72, last, last]),
            ] {
                assert_eq!(output(name).as_deref(), Some(&want[..]), "{name} of {size}");
            }
        }
        let x = Tensor::zeros([1, 3, 16, 16], DType::F32)?;
        assert!(net.forward(&x, Mode::Eval).is_err());
        Ok(())
    }

    #[test]
    fn a_scale_of_nothing_leaves_the_shortcuts() -> Result<()> {
        // what the blocks' branches hold does not matter then
        let mut net = small()?;
        let x = Tensor::randn([1, 3, 17, 17], &mut Generator::new(1), DType::F32)?;
        let out = |net: &mut InceptionResNet| net.forward(&x, Mode::Eval)?.to_vec::<f32>();
        let config = InceptionResNetConfig {
            residual_scale: 0.0,
            ..net.config.clone()
        };
        let mut bare = InceptionResNet::new(config, &mut Generator::new(0))?;
        let before = out(&mut bare)?;
        assert_ne!(out(&mut net)?, before);
        nn::try_visit(&mut bare, |name, slot| match slot {
            Slot::Parameter(t) if name.starts_with("b1.") => t.copy_(&t.mul_scalar(-3.0)?),
            _ => Ok(()),
        })?;
        assert_eq!(out(&mut bare)?, before);
        Ok(())
    }

    #[test]
    fn refused_settings() {
        let refuse = |change: fn(&mut InceptionResNetConfig)| {
            let mut config = InceptionResNetConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        for width in [0, 3] {
            let config = InceptionResNetConfig {
                width,
                ..Default::default()
            };
            assert_eq!(
                config.validate().unwrap_err().to_string(),
                format!("configuration: width: {width}, expected an even number above 0")
            );
        }
        assert_eq!(
            refuse(|c| c.dropout = 1.0),
            "configuration: dropout: 1, expected 0 <= p < 1"
        );
        assert!(refuse(|c| c.dropout = f64::NAN).contains("dropout: NaN"));
        assert!(refuse(|c| c.residual_scale = f64::NAN).contains("residual_scale: NaN"));
        assert!(refuse(|c| c.in_channels = 0).contains("in_channels"));
        assert!(refuse(|c| c.num_classes = 0).contains("num_classes"));
        assert!(refuse(|c| c.reg = -1.0).contains("reg"));
        assert!(serde_json::from_str::<InceptionResNetConfig>(r#"{"scale": 3}"#).is_err());
    }
}
