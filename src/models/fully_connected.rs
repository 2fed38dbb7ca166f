//! Fully connected networks: two layers, and any number of them.

use serde::{Deserialize, Serialize};

use super::{check_keep_ratio, check_scales, check_sizes, features, initial};
use crate::error::Result;
use crate::nn::{Activation, Dropout, Flatten, Linear, LinearNormAct, Norm, Sequential};
use crate::random::Generator;
use crate::tensor::Tensor;

/// The settings of a [`TwoLayerNet`]; the defaults are the assignment's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TwoLayerConfig {
    /// Channels, height and width of an image.
    pub input_dim: [usize; 3],
    /// Units of the hidden layer.
    pub hidden_dim: usize,
    /// Scores an image.
    pub num_classes: usize,
    /// Standard deviation of the initial weights; none for Kaiming's.
    pub weight_scale: Option<f64>,
    /// Strength of the L2 penalty that the Solver adds to the loss.
    pub reg: f64,
}

impl Default for TwoLayerConfig {
    fn default() -> Self {
        TwoLayerConfig {
            input_dim: [3, 32, 32],
            hidden_dim: 100,
            num_classes: 10,
            weight_scale: Some(1e-3),
            reg: 0.0,
        }
    }
}

impl TwoLayerConfig {
    /// Refuse settings that make no network.
    pub fn validate(&self) -> Result<()> {
        check_sizes("input_dim", &self.input_dim)?;
        check_sizes("hidden_dim", &[self.hidden_dim])?;
        check_sizes("num_classes", &[self.num_classes])?;
        check_scales(self.weight_scale, self.reg)
    }
}

/// affine - ReLU - affine. The assignment's W1 and b1 are `fc1.linear`, W2 and b2 `fc2`, weights
/// transposed.
pub struct TwoLayerNet {
    /// What it was made from.
    pub config: TwoLayerConfig,
    net: Sequential,
}

impl TwoLayerNet {
    /// With new weights from `rng`.
    pub fn new(config: TwoLayerConfig, rng: &mut Generator) -> Result<Self> {
        config.validate()?;
        let features = features(&config.input_dim)?;
        let hidden = config.hidden_dim;
        let fc1 = LinearNormAct::new(features, hidden, Norm::None, Activation::Relu, rng)?;
        let fc2 = Linear::new(hidden, config.num_classes, true, rng)?;
        let mut net = Sequential::new()
            .named("flatten", Flatten)?
            .named("fc1", fc1)?
            .named("fc2", fc2)?;
        initial(config.weight_scale).apply(&mut net, rng)?;
        Ok(TwoLayerNet { config, net })
    }
}

model!(TwoLayerNet);

/// The settings of a [`FullyConnectedNet`]; the defaults are the assignment's, with two hidden
/// layers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FullyConnectedConfig {
    /// Channels, height and width of an image.
    pub input_dim: [usize; 3],
    /// Units of each hidden layer.
    pub hidden_dims: Vec<usize>,
    /// Scores an image.
    pub num_classes: usize,
    /// The norm before each ReLU.
    pub normalization: Norm,
    /// The share of elements that dropout keeps after each ReLU; 1 for no dropout.
    pub dropout_keep_ratio: f64,
    /// Standard deviation of the initial weights; none for Kaiming's.
    pub weight_scale: Option<f64>,
    /// Strength of the L2 penalty that the Solver adds to the loss.
    pub reg: f64,
}

impl Default for FullyConnectedConfig {
    fn default() -> Self {
        FullyConnectedConfig {
            input_dim: [3, 32, 32],
            hidden_dims: vec![100, 100],
            num_classes: 10,
            normalization: Norm::None,
            dropout_keep_ratio: 1.0,
            weight_scale: Some(1e-2),
            reg: 0.0,
        }
    }
}

impl FullyConnectedConfig {
    /// Refuse settings that make no network.
    pub fn validate(&self) -> Result<()> {
        check_sizes("input_dim", &self.input_dim)?;
        check_sizes("hidden_dims", &self.hidden_dims)?;
        check_sizes("num_classes", &[self.num_classes])?;
        check_keep_ratio(self.dropout_keep_ratio)?;
        check_scales(self.weight_scale, self.reg)
    }
}

/// `affine - [norm] - ReLU - [dropout]`, once a hidden layer, then affine. The assignment's Wi and
/// bi are those of `fci`, weights transposed.
pub struct FullyConnectedNet {
    /// What it was made from.
    pub config: FullyConnectedConfig,
    net: Sequential,
}

impl FullyConnectedNet {
    /// With new weights from `rng`.
    pub fn new(config: FullyConnectedConfig, rng: &mut Generator) -> Result<Self> {
        config.validate()?;
        let (norm, relu) = (config.normalization, Activation::Relu);
        let drop = 1.0 - config.dropout_keep_ratio;
        let mut features = features(&config.input_dim)?;
        let mut net = Sequential::new().named("flatten", Flatten)?;
        for (i, &hidden) in (1..).zip(&config.hidden_dims) {
            let fc = LinearNormAct::new(features, hidden, norm, relu, rng)?;
            net = net.named(&format!("fc{i}"), fc)?;
            if drop > 0.0 {
                net = net.named(&format!("dropout{i}"), Dropout::new(drop, rng)?)?;
            }
            features = hidden;
        }
        let last = format!("fc{}", config.hidden_dims.len() + 1);
        net = net.named(&last, Linear::new(features, config.num_classes, true, rng)?)?;
        initial(config.weight_scale).apply(&mut net, rng)?;
        Ok(FullyConnectedNet { config, net })
    }
}

model!(FullyConnectedNet);
