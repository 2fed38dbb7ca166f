//! ThreeLayerConvNet, the assignment's first convolutional network.

use serde::{Deserialize, Serialize};

use super::{Normalization, affine, check_filter, check_scales, check_sizes, initial};
use crate::error::{Error, Result};
use crate::nn::{
    Activation, Conv2d, Conv2dConfig, ConvNormAct, Flatten, Linear, MaxPool2d, Sequential,
};
use crate::random::Generator;
use crate::tensor::Tensor;

/// The settings of a [`ThreeLayerConvNet`]; the defaults are the assignment's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ThreeLayerConfig {
    /// Channels, height and width of an image.
    pub input: [usize; 3],
    /// Filters of the convolution.
    pub num_filters: usize,
    /// Their height and width, odd.
    pub filter_size: usize,
    /// Units of the hidden layer.
    pub hidden: usize,
    /// Scores an image.
    pub classes: usize,
    /// Standard deviation of the initial weights; none for Kaiming's.
    pub weight_scale: Option<f64>,
    /// Strength of the L2 penalty that the Solver adds to the loss.
    pub reg: f64,
}

impl Default for ThreeLayerConfig {
    fn default() -> Self {
        ThreeLayerConfig {
            input: [3, 32, 32],
            num_filters: 32,
            filter_size: 7,
            hidden: 100,
            classes: 10,
            weight_scale: Some(1e-3),
            reg: 0.0,
        }
    }
}

impl ThreeLayerConfig {
    /// Refuse settings that make no network.
    pub fn validate(&self) -> Result<()> {
        check_sizes("input", &self.input)?;
        let [_, h, w] = self.input;
        if h < 2 || w < 2 {
            return Err(Error::config(
                "input",
                format!("{:?} is too small for a 2x2 max pool", self.input),
            ));
        }
        check_sizes("num_filters", &[self.num_filters])?;
        check_filter(self.filter_size)?;
        check_sizes("hidden", &[self.hidden])?;
        check_sizes("classes", &[self.classes])?;
        check_scales(self.weight_scale, self.reg)
    }
}

/// conv - ReLU - 2x2 max pool - affine - ReLU - affine. The assignment's W1 and b1 are
/// `conv1.conv`, W2 and b2 `fc1.linear`, W3 and b3 `fc2`, W2 and W3 transposed.
pub struct ThreeLayerConvNet {
    /// What it was made from.
    pub config: ThreeLayerConfig,
    net: Sequential,
}

impl ThreeLayerConvNet {
    /// With new weights from `rng`.
    pub fn new(config: ThreeLayerConfig, rng: &mut Generator) -> Result<Self> {
        config.validate()?;
        let [channels, h, w] = config.input;
        let conv = ConvNormAct {
            conv: Conv2d::new(
                channels,
                config.num_filters,
                Conv2dConfig::same(config.filter_size),
                rng,
            )?,
            norm: None,
            activation: Activation::Relu,
        };
        let features = config.num_filters * (h / 2) * (w / 2);
        let mut net = Sequential::new();
        net.add_module("conv1", conv)?;
        net.add_module("pool1", MaxPool2d::new(2))?;
        net.add_module("flatten", Flatten)?;
        net.add_module(
            "fc1",
            affine(features, config.hidden, Normalization::None, rng)?,
        )?;
        net.add_module("fc2", Linear::new(config.hidden, config.classes, rng)?)?;
        initial(config.weight_scale).apply(&mut net, rng)?;
        Ok(ThreeLayerConvNet { config, net })
    }
}

model!(ThreeLayerConvNet);
