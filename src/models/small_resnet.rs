//! Light residual networks for CIFAR: four blocks, basic or simplified.

use serde::{Deserialize, Serialize};

use super::blocks::{self, square};
use super::{check_list, check_scales, check_sizes};
use crate::error::{Error, Result};
use crate::nn::{
    Activation, Conv2dConfig, ConvNormAct, Fan, GlobalAvgPool2d, Init, Linear, Residual, Sequential,
};
use crate::random::Generator;
use crate::tensor::Tensor;

/// The convolutions before the blocks of a [`SmallResNet`]. All keep the images' size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum StemKernel {
    /// A 3x3 convolution.
    #[default]
    #[serde(rename = "3x3")]
    Three,
    /// A 7x7 convolution.
    #[serde(rename = "7x7")]
    Seven,
    /// Two 3x3 convolutions.
    #[serde(rename = "two_3x3")]
    TwoThree,
    /// Three 3x3 convolutions, which together see as far as one of 7x7.
    #[serde(rename = "three_3x3")]
    ThreeThree,
}

impl StemKernel {
    /// The filters' sizes.
    fn sizes(self) -> &'static [usize] {
        match self {
            StemKernel::Three => &[3],
            StemKernel::Seven => &[7],
            StemKernel::TwoThree => &[3, 3],
            StemKernel::ThreeThree => &[3, 3, 3],
        }
    }
}

/// The two convolutions of a [`SmallResNet`]'s block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SmallBlock {
    /// ResNet-18's: 3x3 to the block's width, and again 3x3.
    #[default]
    Basic,
    /// ResNet-50's bottleneck without its last part: 1x1 to half the block's width, then 3x3 to all
    /// of it.
    Simplified,
}

/// The settings of a [`SmallResNet`]; the defaults are Res9's for CIFAR-10.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SmallResNetConfig {
    /// Channels of an image.
    pub in_channels: usize,
    /// What comes before the blocks, as wide as the first one.
    pub stem: StemKernel,
    /// What the blocks are.
    pub block: SmallBlock,
    /// Channels of each block; there are as many blocks as numbers, each but the first halves the
    /// images.
    pub widths: Vec<usize>,
    /// Scores an image.
    pub num_classes: usize,
    /// After each norm, and after each block's sum.
    pub activation: Activation,
    /// Strength of the L2 penalty that the Solver adds to the loss.
    pub reg: f64,
}

impl Default for SmallResNetConfig {
    fn default() -> Self {
        SmallResNetConfig {
            in_channels: 3,
            stem: StemKernel::Three,
            block: SmallBlock::Basic,
            widths: vec![48, 96, 128, 384],
            num_classes: 10,
            activation: Activation::Relu,
            reg: 0.0,
        }
    }
}

impl SmallResNetConfig {
    /// Res9: nine convolutions from the images to the classifier, shortcuts aside.
    pub fn res9() -> Self {
        Self::default()
    }

    /// simp_Res9: [`res9`](Self::res9) with simplified blocks.
    pub fn simp_res9() -> Self {
        SmallResNetConfig {
            block: SmallBlock::Simplified,
            ..Self::default()
        }
    }

    /// Refuse settings that make no network.
    pub fn validate(&self) -> Result<()> {
        check_sizes("in_channels", &[self.in_channels])?;
        check_list("widths", &self.widths)?;
        if self.block == SmallBlock::Simplified && self.widths.contains(&1) {
            let why = format!("{:?}, a simplified block halves at least 2", self.widths);
            return Err(Error::config("widths", why));
        }
        check_sizes("num_classes", &[self.num_classes])?;
        check_scales(None, self.reg)
    }
}

/// A residual network (He et al. 2015) cut down for 32x32 images: stem, one block a width, the mean
/// over each channel, a linear layer.
///
/// Its widths were chosen to come near the sizes that a comparison of such networks gives, in MiB of
/// f32: Res9 has 2,268,538 parameters, 8.65 MiB (there 8.7), simp_Res9 897,770, 3.42 MiB (3.41);
/// the ResNet-18 of that comparison, 42.6 MiB (42.7), is [`ResNetConfig::resnet18`].
///
/// [`ResNetConfig::resnet18`]: crate::models::ResNetConfig::resnet18
///
/// ```
/// # use cotangent::{DType, Tensor, random::Generator};
/// # use cotangent::models::{SmallResNet, SmallResNetConfig, StemKernel};
/// # use cotangent::nn::{Activation, Mode, Module};
/// let config = SmallResNetConfig {
///     stem: StemKernel::TwoThree,
///     activation: Activation::Gelu,
///     widths: vec![4, 8],
///     ..SmallResNetConfig::simp_res9()
/// };
/// let mut net = SmallResNet::new(config, &mut Generator::new(0))?;
/// let scores = net.forward(&Tensor::ones([2, 3, 32, 32], DType::F32)?, Mode::Eval)?;
/// assert_eq!(scores.shape()[..], [2, 10]);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub struct SmallResNet {
    /// What it was made from.
    pub config: SmallResNetConfig,
    net: Sequential,
}

/// A convolution without bias, batch norm and the activation.
fn stage(
    channels: [usize; 2],
    filter: Conv2dConfig,
    activation: Activation,
    rng: &mut Generator,
) -> Result<ConvNormAct> {
    let filter = Conv2dConfig {
        bias: false,
        ..filter
    };
    blocks::stage(channels, filter, activation, rng)
}

fn block(
    [from, to]: [usize; 2],
    stride: usize,
    config: &SmallResNetConfig,
    rng: &mut Generator,
) -> Result<Residual> {
    let (activation, plain) = (config.activation, Activation::Identity);
    let (middle, first, second) = match config.block {
        SmallBlock::Basic => (to, square(3, stride), square(3, 1)),
        SmallBlock::Simplified => (to / 2, square(1, 1), square(3, stride)),
    };
    let body = Sequential::new()
        .named("conv1", stage([from, middle], first, activation, rng)?)?
        .named("conv2", stage([middle, to], second, plain, rng)?)?;
    let mut block = Residual::new(body);
    if stride != 1 || from != to {
        let downsample = stage([from, to], square(1, stride), plain, rng)?;
        block = block.shortcut("downsample", downsample)?;
    }
    block.activation(activation, rng)
}

impl SmallResNet {
    /// With new weights from `rng`: Kaiming's for the gradients in the convolutions, PyTorch's
    /// usual ones in the linear layer.
    pub fn new(config: SmallResNetConfig, rng: &mut Generator) -> Result<Self> {
        config.validate()?;
        let activation = config.activation;
        let mut from = config.in_channels;
        let mut stem = Sequential::new();
        for &size in config.stem.sizes() {
            let to = config.widths[0];
            stem = stem.push(stage([from, to], square(size, 1), activation, rng)?);
            from = to;
        }
        let mut net = Sequential::new().named("stem", stem)?;
        for (i, &to) in (1..).zip(&config.widths) {
            let stride = if i == 1 { 1 } else { 2 };
            net = net.named(
                &format!("block{i}"),
                block([from, to], stride, &config, rng)?,
            )?;
            from = to;
        }
        Init::KaimingNormal(Fan::Out, activation).apply(&mut net, rng)?;
        let net = net
            .named("avgpool", GlobalAvgPool2d)?
            .named("fc", Linear::new(from, config.num_classes, true, rng)?)?;
        Ok(SmallResNet { config, net })
    }
}

model!(SmallResNet);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::nn::{Mode, Module, Summary, parameter_count};

    #[test]
    fn stems_differ_in_their_filters_alone() -> Result<()> {
        let weights = |stem| -> Result<usize> {
            let config = SmallResNetConfig {
                stem,
                widths: vec![4, 6],
                ..Default::default()
            };
            let mut net = SmallResNet::new(config, &mut Generator::new(0))?;
            let s = Summary::of(&mut net, &Tensor::zeros([1, 3, 8, 8], DType::F32)?)?;
            let output = |name: &str| s.rows.iter().find(|r| r.name == name).map(|r| r.output);
            assert_eq!(output("stem.0").as_deref(), Some(&[1, 4, 8, 8][..]));
            assert_eq!(output("block1.conv2").as_deref(), Some(&[1, 4, 8, 8][..]));
            assert_eq!(
                output("block2.downsample").as_deref(),
                Some(&[1, 6, 4, 4][..])
            );
            Ok(parameter_count(&mut net))
        };
        let one = weights(StemKernel::Three)?;
        assert_eq!(weights(StemKernel::Seven)? - one, 4 * 3 * (49 - 9));
        // 4 to 4 channels and a norm
        assert_eq!(weights(StemKernel::TwoThree)? - one, 144 + 8);
        assert_eq!(weights(StemKernel::ThreeThree)? - one, 2 * (144 + 8));
        Ok(())
    }

    #[test]
    fn every_activation_of_the_comparison() -> Result<()> {
        let x = Tensor::randn([2, 3, 8, 8], &mut Generator::new(1), DType::F32)?;
        for name in ["relu", "mish", "elu", "rrelu", "gelu"] {
            let json =
                format!(r#"{{"block": "simplified", "activation": "{name}", "widths": [4, 6]}}"#);
            let config: SmallResNetConfig = serde_json::from_str(&json).unwrap();
            assert_eq!(config.block, SmallBlock::Simplified);
            let mut net = SmallResNet::new(config, &mut Generator::new(0))?;
            for mode in [Mode::Train, Mode::Eval] {
                let y = net.forward(&x, mode)?.to_vec::<f32>()?;
                assert!(y.iter().all(|y| y.is_finite()), "{name} {mode:?}: {y:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn refused_settings() {
        let refuse = |change: fn(&mut SmallResNetConfig)| {
            let mut config = SmallResNetConfig::simp_res9();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(
            refuse(|c| c.widths = vec![2, 1]),
            "configuration: widths: [2, 1], a simplified block halves at least 2"
        );
        assert_eq!(
            refuse(|c| c.widths = vec![]),
            "configuration: widths: [], expected at least one"
        );
        assert!(refuse(|c| c.widths = vec![0]).contains("widths: [0]"));
        assert!(refuse(|c| c.in_channels = 0).contains("in_channels"));
        assert!(refuse(|c| c.num_classes = 0).contains("num_classes"));
        assert!(refuse(|c| c.reg = -1.0).contains("reg"));
        let stem = |text: &str| serde_json::from_str::<StemKernel>(text);
        assert_eq!(stem("\"three_3x3\"").unwrap(), StemKernel::ThreeThree);
        assert!(stem("\"5x5\"").is_err());
    }
}
