//! VGG-A for small images, with and without batch norm.

use serde::{Deserialize, Serialize};

use super::blocks::square;
use super::{check_scales, check_sizes};
use crate::error::{Error, Result};
use crate::nn::{
    Activation, ConvNormAct, GlobalAvgPool2d, Init, Linear, LinearNormAct, MaxPool2d, Norm,
    Sequential,
};
use crate::random::Generator;
use crate::tensor::Tensor;

/// The settings of a [`Vgg`]; the defaults are VGG-A's for CIFAR-10.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VggConfig {
    /// Channels of an image.
    pub in_channels: usize,
    /// Filters of each stage's convolutions; a max pool ends each stage.
    pub stages: Vec<Vec<usize>>,
    /// Units of each hidden layer.
    pub hidden_dims: Vec<usize>,
    /// Scores an image.
    pub num_classes: usize,
    /// Whether batch norm follows each convolution; the linear layers have none.
    pub batch_norm: bool,
    /// After each convolution and hidden layer.
    pub activation: Activation,
    /// Strength of the L2 penalty that the Solver adds to the loss.
    pub reg: f64,
}

impl Default for VggConfig {
    fn default() -> Self {
        VggConfig {
            in_channels: 3,
            stages: vec![
                vec![64],
                vec![128],
                vec![256; 2],
                vec![512; 2],
                vec![512; 2],
            ],
            hidden_dims: vec![512, 512],
            num_classes: 10,
            batch_norm: false,
            activation: Activation::Relu,
            reg: 0.0,
        }
    }
}

impl VggConfig {
    /// VGG-A.
    pub fn vgg_a() -> Self {
        Self::default()
    }

    /// VGG-A with batch norm.
    pub fn vgg_a_bn() -> Self {
        VggConfig {
            batch_norm: true,
            ..Self::default()
        }
    }

    /// Refuse settings that make no network.
    pub fn validate(&self) -> Result<()> {
        check_sizes("in_channels", &[self.in_channels])?;
        if self.stages.is_empty() || self.stages.iter().any(Vec::is_empty) {
            let why = format!("{:?}, expected a convolution a stage", self.stages);
            return Err(Error::config("stages", why));
        }
        check_sizes("stages", &self.stages.concat())?;
        check_sizes("hidden_dims", &self.hidden_dims)?;
        check_sizes("num_classes", &[self.num_classes])?;
        check_scales(None, self.reg)
    }
}

/// VGG (Simonyan and Zisserman 2015) for small images: stages of 3x3 convolutions, a 2x2 max pool
/// after each, linear layers. With batch norm it is the network whose loss landscape Santurkar et
/// al. (2018) looked at.
///
/// The five pools leave one pixel of 32x32 images. Of larger ones the linear layers see the mean.
///
/// ```
/// # use cotangent::{DType, Tensor, random::Generator};
/// # use cotangent::models::{Vgg, VggConfig};
/// # use cotangent::nn::{Mode, Module};
/// let config = VggConfig { stages: vec![vec![4], vec![8, 8]], ..VggConfig::vgg_a_bn() };
/// let mut net = Vgg::new(config, &mut Generator::new(0))?;
/// let scores = net.forward(&Tensor::ones([2, 3, 32, 32], DType::F32)?, Mode::Eval)?;
/// assert_eq!(scores.shape()[..], [2, 10]);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub struct Vgg {
    /// What it was made from.
    pub config: VggConfig,
    net: Sequential,
}

impl Vgg {
    /// With new weights from `rng`: Xavier's normal ones, biases of 0.
    pub fn new(config: VggConfig, rng: &mut Generator) -> Result<Self> {
        config.validate()?;
        let activation = config.activation;
        let norm = match config.batch_norm {
            true => Norm::Batch,
            false => Norm::None,
        };
        let mut net = Sequential::new();
        let mut from = config.in_channels;
        for (i, stage) in (1..).zip(&config.stages) {
            for (j, &to) in (1..).zip(stage) {
                let conv = ConvNormAct::new(from, to, square(3, 1), norm, activation, rng)?;
                net = net.named(&format!("conv{i}_{j}"), conv)?;
                from = to;
            }
            net = net.named(&format!("pool{i}"), MaxPool2d::square(2))?;
        }
        net = net.named("avgpool", GlobalAvgPool2d)?;
        for (i, &to) in (1..).zip(&config.hidden_dims) {
            let fc = LinearNormAct::new(from, to, Norm::None, activation, rng)?;
            net = net.named(&format!("fc{i}"), fc)?;
            from = to;
        }
        let last = format!("fc{}", config.hidden_dims.len() + 1);
        net = net.named(&last, Linear::new(from, config.num_classes, true, rng)?)?;
        // with the gain of 1 that xavier_normal_ has by default
        Init::XavierNormal(Activation::Identity).apply(&mut net, rng)?;
        Ok(Vgg { config, net })
    }
}

model!(Vgg);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::nn::{Module, Summary, named_parameters};

    #[test]
    fn names_and_sizes() -> Result<()> {
        let config = VggConfig {
            stages: vec![vec![2], vec![3, 3]],
            hidden_dims: vec![4],
            ..VggConfig::vgg_a_bn()
        };
        let mut net = Vgg::new(config, &mut Generator::new(0))?;
        let want = [
            "Vgg(",
            "  (conv1_1): ConvNormAct(3, 2, kernel_size=[3, 3], padding=[1, 1], BatchNorm2d, ReLU())",
            "  (pool1): MaxPool2d(kernel_size=[2, 2], stride=[2, 2])",
            "  (conv2_1): ConvNormAct(2, 3, kernel_size=[3, 3], padding=[1, 1], BatchNorm2d, ReLU())",
            "  (conv2_2): ConvNormAct(3, 3, kernel_size=[3, 3], padding=[1, 1], BatchNorm2d, ReLU())",
            "  (pool2): MaxPool2d(kernel_size=[2, 2], stride=[2, 2])",
            "  (avgpool): GlobalAvgPool2d()",
            "  (fc1): LinearNormAct(3, 4, ReLU())",
            "  (fc2): Linear(4, 10)",
            ")",
        ];
        assert_eq!(net.describe(), want.join("\n"));
        let s = Summary::of(&mut net, &Tensor::zeros([1, 3, 9, 8], DType::F32)?)?;
        assert_eq!(s.rows[4].output[..], [1, 3, 2, 2]);
        let with = named_parameters(&mut net).len();
        let config = VggConfig {
            batch_norm: false,
            ..net.config
        };
        let mut net = Vgg::new(config, &mut Generator::new(0))?;
        // a weight and a bias for each of three norms
        assert_eq!(named_parameters(&mut net).len(), with - 6);
        Ok(())
    }

    #[test]
    fn refused_settings() {
        let refuse = |change: fn(&mut VggConfig)| {
            let mut config = VggConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(
            refuse(|c| c.stages = vec![vec![4], vec![]]),
            "configuration: stages: [[4], []], expected a convolution a stage"
        );
        assert!(refuse(|c| c.stages = vec![]).contains("stages: []"));
        assert!(refuse(|c| c.stages = vec![vec![0]]).contains("stages: [0]"));
        assert!(refuse(|c| c.hidden_dims = vec![0]).contains("hidden_dims: [0]"));
        assert!(refuse(|c| c.in_channels = 0).contains("in_channels"));
        assert!(refuse(|c| c.num_classes = 0).contains("num_classes"));
        assert!(refuse(|c| c.reg = -1.0).contains("reg"));
        let json = serde_json::from_str::<VggConfig>(r#"{"batch_norm": true}"#);
        assert_eq!(json.unwrap(), VggConfig::vgg_a_bn());
        assert!(serde_json::from_str::<VggConfig>(r#"{"batchnorm": true}"#).is_err());
    }
}
