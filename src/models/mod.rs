//! The networks: each a configuration and a sequence of layers made from it.

/// [`Module`](crate::nn::Module) for a model that is its `net`.
macro_rules! model {
    ($name:ident) => {
        impl crate::nn::Module for $name {
            fn forward(&mut self, x: &Tensor, mode: crate::nn::Mode) -> Result<Tensor> {
                self.net.forward(x, mode)
            }

            fn visit(&mut self, visitor: &mut crate::nn::Visitor<'_>) {
                self.net.visit(visitor);
            }

            fn describe(&self) -> String {
                self.net.describe_as(stringify!($name))
            }

            fn summarize(
                &mut self,
                x: &Tensor,
                summary: &mut crate::nn::Summary,
            ) -> Result<Tensor> {
                self.net.summarize(x, summary)
            }
        }
    };
}

mod deeper;
mod fully_connected;
pub mod registry;
mod three_layer;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nn::{Activation, BatchNorm1d, Fan, Init, LayerNorm, Linear, LinearNormAct, Norm};
use crate::random::Generator;

pub use deeper::{DeeperConfig, DeeperConvNet};
pub use fully_connected::{FullyConnectedConfig, FullyConnectedNet, TwoLayerConfig, TwoLayerNet};
pub use registry::build;
pub use three_layer::{ThreeLayerConfig, ThreeLayerConvNet};

/// The norm between a fully connected layer and its activation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Normalization {
    /// No norm.
    #[default]
    None,
    /// Over the batch.
    BatchNorm,
    /// Over the features.
    LayerNorm,
}

/// `affine - [norm] - ReLU`.
fn affine(
    features: usize,
    hidden: usize,
    normalization: Normalization,
    rng: &mut Generator,
) -> Result<LinearNormAct> {
    Ok(LinearNormAct {
        linear: Linear::new(features, hidden, rng)?,
        norm: match normalization {
            Normalization::None => None,
            Normalization::BatchNorm => Some(Norm::Batch(Box::new(BatchNorm1d::new(hidden)?))),
            Normalization::LayerNorm => Some(Norm::Layer(LayerNorm::new(hidden, 1e-5)?)),
        },
        activation: Activation::Relu,
    })
}

/// The assignment's initial weights, or Kaiming's for ReLU where no scale is given. Biases are 0
/// with both.
fn initial(weight_scale: Option<f64>) -> Init {
    match weight_scale {
        Some(std) => Init::Normal(std),
        None => Init::KaimingNormal(Fan::In, Activation::Relu),
    }
}

/// Every one of these sizes is at least 1.
fn check_sizes(key: &'static str, sizes: &[usize]) -> Result<()> {
    match sizes.contains(&0) {
        true => Err(Error::config(
            key,
            format!("{sizes:?}, expected at least 1"),
        )),
        false => Ok(()),
    }
}

/// Filters of odd size, so that padding keeps the images' size.
fn check_filter(size: usize) -> Result<()> {
    match size % 2 {
        1 => Ok(()),
        _ => Err(Error::config(
            "filter_size",
            format!("{size}, expected an odd number"),
        )),
    }
}

/// What scales the initial weights and the penalty is finite and not negative.
fn check_scales(weight_scale: Option<f64>, reg: f64) -> Result<()> {
    for (key, value) in [("weight_scale", weight_scale.unwrap_or(0.0)), ("reg", reg)] {
        if !(value >= 0.0 && value.is_finite()) {
            return Err(Error::config(key, format!("{value}, expected at least 0")));
        }
    }
    Ok(())
}

/// The share of elements that dropout keeps.
fn check_keep_ratio(ratio: f64) -> Result<()> {
    match ratio > 0.0 && ratio <= 1.0 {
        true => Ok(()),
        false => Err(Error::config(
            "dropout_keep_ratio",
            format!("{ratio}, expected above 0 and at most 1"),
        )),
    }
}

#[cfg(test)]
mod tests;
