//! A densely connected network that joins whole stages.

use serde::{Deserialize, Serialize};

use super::blocks::{fan_out, square, stage};
use super::{check_list, check_scales, check_sizes};
use crate::error::Result;
use crate::nn::{Activation, Concat, Conv2d, GlobalAvgPool2d, Identity, MaxPool2d, Sequential};
use crate::random::Generator;
use crate::tensor::Tensor;

/// The settings of a [`DenseNet`]; the defaults are Tiny-ImageNet's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DenseNetConfig {
    /// Channels of an image.
    pub in_channels: usize,
    /// Filters of the first convolution.
    pub stem_width: usize,
    /// Filters of each stage's convolutions; there are as many stages as numbers.
    pub widths: Vec<usize>,
    /// Convolutions of a stage.
    pub depth: usize,
    /// Scores an image.
    pub num_classes: usize,
    /// After each norm.
    pub activation: Activation,
    /// Strength of the L2 penalty that the Solver adds to the loss.
    pub reg: f64,
}

impl Default for DenseNetConfig {
    fn default() -> Self {
        DenseNetConfig {
            in_channels: 3,
            stem_width: 32,
            widths: vec![128, 256, 512],
            depth: 4,
            num_classes: 200,
            activation: Activation::Relu,
            reg: 0.0,
        }
    }
}

impl DenseNetConfig {
    /// Refuse settings that make no network.
    pub fn validate(&self) -> Result<()> {
        check_sizes("in_channels", &[self.in_channels])?;
        check_sizes("stem_width", &[self.stem_width])?;
        check_list("widths", &self.widths)?;
        check_sizes("depth", &[self.depth])?;
        check_sizes("num_classes", &[self.num_classes])?;
        check_scales(None, self.reg)
    }
}

/// The idea of DenseNet (Huang et al. 2017) with few joins: behind a first 3x3 convolution come
/// stages of plain 3x3 ones, each stage's input joined to its output and both halved by a max pool. A
/// 1x1 convolution makes scores of every pixel, of which the mean counts: of 64x64 images, 8x8.
///
/// A stage's channels are those of all stages before it and its own: 160, 416 and 928.
///
/// ```
/// # use cotangent::{DType, Tensor, random::Generator};
/// # use cotangent::models::{DenseNet, DenseNetConfig};
/// # use cotangent::nn::{Mode, Module};
/// let config = DenseNetConfig { stem_width: 4, widths: vec![6, 8], depth: 2, ..Default::default() };
/// let mut net = DenseNet::new(config, &mut Generator::new(0))?;
/// let scores = net.forward(&Tensor::ones([2, 3, 64, 64], DType::F32)?, Mode::Eval)?;
/// assert_eq!(scores.shape()[..], [2, 200]);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub struct DenseNet {
    /// What it was made from.
    pub config: DenseNetConfig,
    net: Sequential,
}

impl DenseNet {
    /// With new weights from `rng`: Kaiming's for the gradients, biases of 0.
    pub fn new(config: DenseNetConfig, rng: &mut Generator) -> Result<Self> {
        config.validate()?;
        let (activation, filter) = (config.activation, square(3, 1));
        let mut channels = config.stem_width;
        let first = stage([config.in_channels, channels], filter, activation, rng)?;
        let mut net = Sequential::new().named("stage1", first)?;
        for (i, &width) in (2..).zip(&config.widths) {
            let mut body = Sequential::new();
            let mut from = channels;
            for _ in 0..config.depth {
                body = body.push(stage([from, width], filter, activation, rng)?);
                from = width;
            }
            let joined = Concat::new()
                .branch("input", Identity)?
                .branch("convs", body)?;
            net = net
                .named(&format!("stage{i}"), joined)?
                .named(&format!("pool{i}"), MaxPool2d::square(2))?;
            channels += width;
        }
        let scores = Conv2d::new(channels, config.num_classes, square(1, 1), rng)?;
        net = net
            .named("classifier", scores)?
            .named("avgpool", GlobalAvgPool2d)?;
        fan_out(activation).apply(&mut net, rng)?;
        Ok(DenseNet { config, net })
    }
}

model!(DenseNet);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::nn::Summary;

    #[test]
    fn stages_join_their_input() -> Result<()> {
        let config = DenseNetConfig {
            stem_width: 2,
            widths: vec![4, 8, 16],
            depth: 1,
            ..Default::default()
        };
        let mut net = DenseNet::new(config, &mut Generator::new(0))?;
        let s = Summary::of(&mut net, &Tensor::zeros([1, 3, 64, 64], DType::F32)?)?;
        let output = |name: &str| s.rows.iter().find(|r| r.name == name).map(|r| r.output);
        for (name, want) in [
            ("stage2.convs.0", &[1, 4, 64, 64][..]),
            ("pool2", &[1, 6, 32, 32][..]),
            ("pool3", &[1, 14, 16, 16][..]),
            ("pool4", &[1, 30, 8, 8][..]),
            ("classifier", &[1, 200, 8, 8][..]),
            ("avgpool", &[1, 200][..]),
        ] {
            assert_eq!(output(name).as_deref(), Some(want), "{name}");
        }
        Ok(())
    }

    #[test]
    fn refused_settings() {
        let refuse = |change: fn(&mut DenseNetConfig)| {
            let mut config = DenseNetConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(
            refuse(|c| c.depth = 0),
            "configuration: depth: [0], expected at least 1"
        );
        assert!(refuse(|c| c.widths = vec![]).contains("widths: []"));
        assert!(refuse(|c| c.widths = vec![3, 0]).contains("widths: [3, 0]"));
        assert!(refuse(|c| c.stem_width = 0).contains("stem_width"));
        assert!(refuse(|c| c.in_channels = 0).contains("in_channels"));
        assert!(refuse(|c| c.num_classes = 0).contains("num_classes"));
        assert!(refuse(|c| c.reg = -1.0).contains("reg"));
        assert!(serde_json::from_str::<DenseNetConfig>(r#"{"growth": 3}"#).is_err());
    }
}
