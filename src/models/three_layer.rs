//! ThreeLayerConvNet, the assignment's first convolutional network.

use serde::{Deserialize, Serialize};

use super::{check_filter, check_scales, check_sizes, features, initial};
use crate::error::{Error, Result};
use crate::nn::{
    Activation, Conv2dConfig, ConvNormAct, Flatten, Linear, LinearNormAct, MaxPool2d, Norm,
    Sequential,
};
use crate::random::Generator;
use crate::tensor::Tensor;

/// The settings of a [`ThreeLayerConvNet`]; the defaults are the assignment's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ThreeLayerConfig {
    /// Channels, height and width of an image.
    pub input_dim: [usize; 3],
    /// Filters of the convolution.
    pub num_filters: usize,
    /// Their height and width, odd.
    pub filter_size: usize,
    /// Units of the hidden layer.
    pub hidden_dim: usize,
    /// Scores an image.
    pub num_classes: usize,
    /// Standard deviation of the initial weights; none for Kaiming's.
    pub weight_scale: Option<f64>,
    /// Strength of the L2 penalty that the Solver adds to the loss.
    pub reg: f64,
}

impl Default for ThreeLayerConfig {
    fn default() -> Self {
        ThreeLayerConfig {
            input_dim: [3, 32, 32],
            num_filters: 32,
            filter_size: 7,
            hidden_dim: 100,
            num_classes: 10,
            weight_scale: Some(1e-3),
            reg: 0.0,
        }
    }
}

impl ThreeLayerConfig {
    /// Refuse settings that make no network.
    pub fn validate(&self) -> Result<()> {
        check_sizes("input_dim", &self.input_dim)?;
        let [_, h, w] = self.input_dim;
        if h < 2 || w < 2 {
            return Err(Error::config(
                "input_dim",
                format!("{:?} is too small for a 2x2 max pool", self.input_dim),
            ));
        }
        check_sizes("num_filters", &[self.num_filters])?;
        check_filter(self.filter_size)?;
        check_sizes("hidden_dim", &[self.hidden_dim])?;
        check_sizes("num_classes", &[self.num_classes])?;
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
        let (norm, relu) = (Norm::None, Activation::Relu);
        let [channels, h, w] = config.input_dim;
        let (filters, hidden) = (config.num_filters, config.hidden_dim);
        let filter = Conv2dConfig::same(config.filter_size);
        let features = features(&[filters, h / 2, w / 2])?;
        let conv1 = ConvNormAct::new(channels, filters, filter, norm, relu, rng)?;
        let fc1 = LinearNormAct::new(features, hidden, norm, relu, rng)?;
        let fc2 = Linear::new(hidden, config.num_classes, true, rng)?;
        let mut net = Sequential::new()
            .named("conv1", conv1)?
            .named("pool1", MaxPool2d::square(2))?
            .named("flatten", Flatten)?
            .named("fc1", fc1)?
            .named("fc2", fc2)?;
        initial(config.weight_scale).apply(&mut net, rng)?;
        Ok(ThreeLayerConvNet { config, net })
    }
}

model!(ThreeLayerConvNet);
