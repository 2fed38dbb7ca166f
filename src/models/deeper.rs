//! DeeperConvNet, the assignment's network of any number of convolutions.

use serde::{Deserialize, Serialize};

use super::{
    Normalization, affine, check_filter, check_keep_ratio, check_scales, check_sizes, initial,
};
use crate::error::{Error, Result};
use crate::nn::{
    Activation, BatchNorm2d, Conv2d, Conv2dConfig, ConvNormAct, Dropout, Flatten, Linear,
    MaxPool2d, Sequential,
};
use crate::random::Generator;
use crate::tensor::Tensor;

/// The settings of a [`DeeperConvNet`]; the defaults are the assignment's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeeperConfig {
    /// Channels, height and width of an image.
    pub input: [usize; 3],
    /// Filters of each convolution; there are as many convolutions as numbers.
    pub num_filters: Vec<usize>,
    /// The filters' height and width, odd.
    pub filter_size: usize,
    /// Units of the hidden layer.
    pub hidden: usize,
    /// Scores an image.
    pub classes: usize,
    /// Whether batch norm comes before each ReLU.
    pub use_batchnorm: bool,
    /// Whether dropout comes after the hidden layer.
    pub use_dropout: bool,
    /// The share of elements that dropout keeps.
    pub dropout_keep_ratio: f64,
    /// Standard deviation of the initial weights; none for Kaiming's.
    pub weight_scale: Option<f64>,
    /// Strength of the L2 penalty that the Solver adds to the loss.
    pub reg: f64,
}

impl Default for DeeperConfig {
    fn default() -> Self {
        DeeperConfig {
            input: [3, 32, 32],
            num_filters: vec![32, 64],
            filter_size: 3,
            hidden: 100,
            classes: 10,
            use_batchnorm: false,
            use_dropout: false,
            dropout_keep_ratio: 0.5,
            weight_scale: Some(1e-3),
            reg: 0.0,
        }
    }
}

impl DeeperConfig {
    /// Refuse settings that make no network.
    pub fn validate(&self) -> Result<()> {
        check_sizes("input", &self.input)?;
        check_sizes("num_filters", &self.num_filters)?;
        if self.num_filters.is_empty() {
            return Err(Error::config("num_filters", "[], expected at least one"));
        }
        if self.pooled().contains(&0) {
            return Err(Error::config(
                "num_filters",
                format!(
                    "{} convolutions halve images of {:?} to nothing",
                    self.num_filters.len(),
                    self.input
                ),
            ));
        }
        check_filter(self.filter_size)?;
        check_sizes("hidden", &[self.hidden])?;
        check_sizes("classes", &[self.classes])?;
        check_keep_ratio(self.dropout_keep_ratio)?;
        check_scales(self.weight_scale, self.reg)
    }

    /// Height and width after the last pool.
    fn pooled(&self) -> [usize; 2] {
        let [_, mut h, mut w] = self.input;
        for _ in 0..self.num_filters.len() / 2 {
            (h, w) = (h / 2, w / 2);
        }
        [h, w]
    }
}

/// `conv - [batch norm] - ReLU - conv - [batch norm] - ReLU - 2x2 max pool`, as many as
/// `num_filters` has pairs, then `affine - [batch norm] - ReLU - [dropout] - affine`. With an odd
/// number of filters the last convolution stands alone and no pool follows it.
pub struct DeeperConvNet {
    /// What it was made from.
    pub config: DeeperConfig,
    net: Sequential,
}

impl DeeperConvNet {
    /// With new weights from `rng`.
    pub fn new(config: DeeperConfig, rng: &mut Generator) -> Result<Self> {
        config.validate()?;
        let mut channels = config.input[0];
        let mut net = Sequential::new();
        for (i, &filters) in (1..).zip(&config.num_filters) {
            let conv = ConvNormAct {
                conv: Conv2d::new(
                    channels,
                    filters,
                    Conv2dConfig::same(config.filter_size),
                    rng,
                )?,
                norm: match config.use_batchnorm {
                    true => Some(BatchNorm2d::new(filters)?),
                    false => None,
                },
                activation: Activation::Relu,
            };
            net.add_module(&format!("conv{i}"), conv)?;
            if i % 2 == 0 {
                net.add_module(&format!("pool{}", i / 2), MaxPool2d::new(2))?;
            }
            channels = filters;
        }
        let [h, w] = config.pooled();
        let norm = match config.use_batchnorm {
            true => Normalization::BatchNorm,
            false => Normalization::None,
        };
        net.add_module("flatten", Flatten)?;
        net.add_module("fc1", affine(channels * h * w, config.hidden, norm, rng)?)?;
        if config.use_dropout {
            let p = 1.0 - config.dropout_keep_ratio;
            net.add_module("dropout1", Dropout::new(p, rng)?)?;
        }
        net.add_module("fc2", Linear::new(config.hidden, config.classes, rng)?)?;
        initial(config.weight_scale).apply(&mut net, rng)?;
        Ok(DeeperConvNet { config, net })
    }
}

model!(DeeperConvNet);
