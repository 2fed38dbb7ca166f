//! Fully connected networks: two layers, and any number of them.

use serde::{Deserialize, Serialize};

use super::{Normalization, affine, check_keep_ratio, check_scales, check_sizes, initial};
use crate::error::Result;
use crate::nn::{Dropout, Flatten, Linear, Sequential};
use crate::random::Generator;
use crate::tensor::Tensor;

/// The settings of a [`TwoLayerNet`]; the defaults are the assignment's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TwoLayerConfig {
    /// Channels, height and width of an image.
    pub input: [usize; 3],
    /// Units of the hidden layer.
    pub hidden: usize,
    /// Scores an image.
    pub classes: usize,
    /// Standard deviation of the initial weights; none for Kaiming's.
    pub weight_scale: Option<f64>,
    /// Strength of the L2 penalty that the Solver adds to the loss.
    pub reg: f64,
}

impl Default for TwoLayerConfig {
    fn default() -> Self {
        TwoLayerConfig {
            input: [3, 32, 32],
            hidden: 100,
            classes: 10,
            weight_scale: Some(1e-3),
            reg: 0.0,
        }
    }
}

impl TwoLayerConfig {
    /// Refuse settings that make no network.
    pub fn validate(&self) -> Result<()> {
        check_sizes("input", &self.input)?;
        check_sizes("hidden", &[self.hidden])?;
        check_sizes("classes", &[self.classes])?;
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
        let features = config.input.iter().product();
        let mut net = Sequential::new();
        net.add_module("flatten", Flatten)?;
        net.add_module(
            "fc1",
            affine(features, config.hidden, Normalization::None, rng)?,
        )?;
        net.add_module("fc2", Linear::new(config.hidden, config.classes, rng)?)?;
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
    pub input: [usize; 3],
    /// Units of each hidden layer.
    pub hidden: Vec<usize>,
    /// Scores an image.
    pub classes: usize,
    /// The norm before each ReLU.
    pub normalization: Normalization,
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
            input: [3, 32, 32],
            hidden: vec![100, 100],
            classes: 10,
            normalization: Normalization::None,
            dropout_keep_ratio: 1.0,
            weight_scale: Some(1e-2),
            reg: 0.0,
        }
    }
}

impl FullyConnectedConfig {
    /// Refuse settings that make no network.
    pub fn validate(&self) -> Result<()> {
        check_sizes("input", &self.input)?;
        check_sizes("hidden", &self.hidden)?;
        check_sizes("classes", &[self.classes])?;
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
        let drop = 1.0 - config.dropout_keep_ratio;
        let mut features = config.input.iter().product();
        let mut net = Sequential::new();
        net.add_module("flatten", Flatten)?;
        for (i, &hidden) in (1..).zip(&config.hidden) {
            net.add_module(
                &format!("fc{i}"),
                affine(features, hidden, config.normalization, rng)?,
            )?;
            if drop > 0.0 {
                net.add_module(&format!("dropout{i}"), Dropout::new(drop, rng)?)?;
            }
            features = hidden;
        }
        net.add_module(
            &format!("fc{}", config.hidden.len() + 1),
            Linear::new(features, config.classes, rng)?,
        )?;
        initial(config.weight_scale).apply(&mut net, rng)?;
        Ok(FullyConnectedNet { config, net })
    }
}

model!(FullyConnectedNet);
