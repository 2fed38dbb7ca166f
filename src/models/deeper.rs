//! DeeperConvNet, the assignment's network of any number of convolutions.

use serde::{Deserialize, Serialize};

use super::{
    check_filter, check_keep_ratio, check_list, check_scales, check_sizes, features, initial,
};
use crate::error::{Error, Result};
use crate::nn::{
    Activation, Conv2dConfig, ConvNormAct, Dropout, Flatten, Linear, LinearNormAct, MaxPool2d,
    Norm, Sequential,
};
use crate::random::Generator;
use crate::tensor::Tensor;

/// The settings of a [`DeeperConvNet`]; the defaults are the assignment's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeeperConfig {
    /// Channels, height and width of an image.
    pub input_dim: [usize; 3],
    /// Filters of each convolution; there are as many convolutions as numbers.
    pub num_filters: Vec<usize>,
    /// The filters' height and width, odd.
    pub filter_size: usize,
    /// Units of the hidden layer.
    pub hidden_dim: usize,
    /// Scores an image.
    pub num_classes: usize,
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
            input_dim: [3, 32, 32],
            num_filters: vec![32, 64],
            filter_size: 3,
            hidden_dim: 100,
            num_classes: 10,
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
        check_sizes("input_dim", &self.input_dim)?;
        check_list("num_filters", &self.num_filters)?;
        if self.pooled().contains(&0) {
            return Err(Error::config(
                "num_filters",
                format!(
                    "{} convolutions halve images of {:?} to nothing",
                    self.num_filters.len(),
                    self.input_dim
                ),
            ));
        }
        check_filter(self.filter_size)?;
        check_sizes("hidden_dim", &[self.hidden_dim])?;
        check_sizes("num_classes", &[self.num_classes])?;
        check_keep_ratio(self.dropout_keep_ratio)?;
        check_scales(self.weight_scale, self.reg)
    }

    /// Height and width after the last pool.
    fn pooled(&self) -> [usize; 2] {
        let [_, mut h, mut w] = self.input_dim;
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
        let relu = Activation::Relu;
        let norm = match config.use_batchnorm {
            true => Norm::Batch,
            false => Norm::None,
        };
        let filter = Conv2dConfig::same(config.filter_size);
        let mut channels = config.input_dim[0];
        let mut net = Sequential::new();
        for (i, &filters) in (1..).zip(&config.num_filters) {
            let conv = ConvNormAct::new(channels, filters, filter, norm, relu, rng)?;
            net = net.named(&format!("conv{i}"), conv)?;
            if i % 2 == 0 {
                net = net.named(&format!("pool{}", i / 2), MaxPool2d::square(2))?;
            }
            channels = filters;
        }
        let [h, w] = config.pooled();
        let hidden = config.hidden_dim;
        let fc1 = LinearNormAct::new(features(&[channels, h, w])?, hidden, norm, relu, rng)?;
        net = net.named("flatten", Flatten)?.named("fc1", fc1)?;
        if config.use_dropout {
            let p = 1.0 - config.dropout_keep_ratio;
            net = net.named("dropout1", Dropout::new(p, rng)?)?;
        }
        net = net.named("fc2", Linear::new(hidden, config.num_classes, true, rng)?)?;
        initial(config.weight_scale).apply(&mut net, rng)?;
        Ok(DeeperConvNet { config, net })
    }
}

model!(DeeperConvNet);
