//! The residual network of nine convolutions for Tiny-ImageNet.

use serde::{Deserialize, Serialize};

use super::blocks::{encoder, fan_out};
use super::{check_list, check_scales, check_sizes};
use crate::error::Result;
use crate::nn::{Activation, GlobalAvgPool2d, Linear, Sequential};
use crate::random::Generator;
use crate::tensor::Tensor;

/// The settings of a [`TinyResNet`]; the defaults are Tiny-ImageNet's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TinyResNetConfig {
    /// Channels of an image.
    pub in_channels: usize,
    /// Filters of the first convolution.
    pub stem_width: usize,
    /// Channels of each block; there are as many blocks as numbers, and each halves the images.
    pub widths: Vec<usize>,
    /// Scores an image.
    pub num_classes: usize,
    /// After each norm but the blocks' last ones, and after each block's sum.
    pub activation: Activation,
    /// Strength of the L2 penalty that the Solver adds to the loss.
    pub reg: f64,
}

impl Default for TinyResNetConfig {
    fn default() -> Self {
        TinyResNetConfig {
            in_channels: 3,
            stem_width: 64,
            widths: vec![64, 128, 256, 512],
            num_classes: 200,
            activation: Activation::Relu,
            reg: 0.0,
        }
    }
}

impl TinyResNetConfig {
    /// Refuse settings that make no network.
    pub fn validate(&self) -> Result<()> {
        check_sizes("in_channels", &[self.in_channels])?;
        check_sizes("stem_width", &[self.stem_width])?;
        check_list("widths", &self.widths)?;
        check_sizes("num_classes", &[self.num_classes])?;
        check_scales(None, self.reg)
    }
}

/// A residual network (He et al. 2015) of nine convolutions for images of 56 pixels: a 7x7
/// convolution that keeps their size, blocks of two 3x3 convolutions that halve it, the mean over
/// each channel, a linear layer.
///
/// Every block has a 1x1 convolution for a shortcut, the first one, too, and that has no norm; all
/// convolutions have a bias. Of 56 pixels the blocks make 28, 14, 7 and 4.
///
/// ```
/// # use cotangent::{DType, Tensor, random::Generator};
/// # use cotangent::models::{TinyResNet, TinyResNetConfig};
/// # use cotangent::nn::{Mode, Module};
/// let config = TinyResNetConfig { stem_width: 4, widths: vec![4, 8], ..Default::default() };
/// let mut net = TinyResNet::new(config, &mut Generator::new(0))?;
/// let scores = net.forward(&Tensor::ones([2, 3, 56, 56], DType::F32)?, Mode::Eval)?;
/// assert_eq!(scores.shape()[..], [2, 200]);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub struct TinyResNet {
    /// What it was made from.
    pub config: TinyResNetConfig,
    net: Sequential,
}

impl TinyResNet {
    /// With new weights from `rng`: Kaiming's for the gradients, biases of 0.
    pub fn new(config: TinyResNetConfig, rng: &mut Generator) -> Result<Self> {
        config.validate()?;
        let first = [config.in_channels, config.stem_width];
        let from = config.widths[config.widths.len() - 1];
        let mut net = encoder(first, &config.widths, config.activation, rng)?
            .named("avgpool", GlobalAvgPool2d)?
            .named("fc", Linear::new(from, config.num_classes, true, rng)?)?;
        fan_out(config.activation).apply(&mut net, rng)?;
        Ok(TinyResNet { config, net })
    }
}

model!(TinyResNet);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::models::tests::assert_deviation;
    use crate::nn::{Summary, state_dict};

    #[test]
    fn blocks_halve_odd_sizes_upwards() -> Result<()> {
        let config = TinyResNetConfig {
            stem_width: 2,
            widths: vec![2, 3, 4, 5],
            ..Default::default()
        };
        let mut net = TinyResNet::new(config, &mut Generator::new(0))?;
        let s = Summary::of(&mut net, &Tensor::zeros([1, 3, 56, 56], DType::F32)?)?;
        let output = |name: &str| s.rows.iter().find(|r| r.name == name).map(|r| r.output);
        for (name, want) in [
            ("stem", [1, 2, 56, 56]),
            ("block1.conv1", [1, 2, 28, 28]),
            ("block3.shortcut", [1, 4, 7, 7]),
            ("block4.conv2", [1, 5, 4, 4]),
        ] {
            assert_eq!(output(name).as_deref(), Some(&want[..]), "{name}");
        }
        Ok(())
    }

    #[test]
    fn initial_weights_keep_the_gradients_variance() -> Result<()> {
        let config = TinyResNetConfig {
            stem_width: 16,
            widths: vec![16, 32],
            ..Default::default()
        };
        let mut net = TinyResNet::new(config, &mut Generator::new(3))?;
        for (name, t) in state_dict(&mut net) {
            if t.rank() < 2 {
                if name.ends_with(".bias") {
                    assert!(t.to_vec::<f32>()?.iter().all(|b| *b == 0.0), "{name}");
                }
                continue;
            }
            let out = t.shape()[0] * t.shape()[2..].iter().product::<usize>();
            assert_deviation(&name, &t.to_vec()?, (2.0 / out as f64).sqrt());
        }
        Ok(())
    }

    #[test]
    fn refused_settings() {
        let refuse = |change: fn(&mut TinyResNetConfig)| {
            let mut config = TinyResNetConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(
            refuse(|c| c.widths = vec![4, 0]),
            "configuration: widths: [4, 0], expected at least 1"
        );
        assert!(refuse(|c| c.widths = vec![]).contains("widths: []"));
        assert!(refuse(|c| c.stem_width = 0).contains("stem_width"));
        assert!(refuse(|c| c.in_channels = 0).contains("in_channels"));
        assert!(refuse(|c| c.num_classes = 0).contains("num_classes"));
        assert!(refuse(|c| c.reg = f64::INFINITY).contains("reg"));
        assert!(serde_json::from_str::<TinyResNetConfig>(r#"{"width": 3}"#).is_err());
    }
}
