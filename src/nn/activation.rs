//! The activation functions, as one value: a layer, and a setting of other layers.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::nn::{Mode, Module, Visitor};
use crate::tensor::Tensor;

/// A pointwise function between layers. It is a layer itself.
///
/// ```
/// # use cotangent::{Tensor, nn::Activation};
/// let x = Tensor::from_vec(vec![-2f32, 3.0], [2])?;
/// assert_eq!(Activation::Relu.of(&x)?.to_vec::<f32>()?, [0.0, 3.0]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// max(x, 0).
    #[default]
    Relu,
    /// x above 0, this slope below.
    LeakyRelu(f64),
    /// x above 0, e^x - 1 below.
    Elu,
    /// x Phi(x).
    Gelu,
    /// GELU's approximation by tanh.
    GeluTanh,
    /// x sigmoid(x).
    Silu,
    /// x tanh(softplus(x)).
    Mish,
    /// The hyperbolic tangent.
    Tanh,
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// x.
    Identity,
}

impl Activation {
    /// The function of each element.
    pub fn of(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Activation::Relu => x.relu(),
            Activation::LeakyRelu(slope) => x.leaky_relu(slope),
            Activation::Elu => x.elu(1.0),
            Activation::Gelu => x.gelu(),
            Activation::GeluTanh => x.gelu_tanh(),
            Activation::Silu => x.silu(),
            Activation::Mish => x.mish(),
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => x.sigmoid(),
            Activation::Identity => Ok(x.clone()),
        }
    }

    /// What makes up for the variance that the function loses: PyTorch's `calculate_gain`, and
    /// ReLU's for the smooth functions of its shape, which PyTorch leaves out.
    pub fn gain(self) -> f64 {
        match self {
            Activation::LeakyRelu(slope) => (2.0 / (1.0 + slope * slope)).sqrt(),
            Activation::Tanh => 5.0 / 3.0,
            Activation::Sigmoid | Activation::Identity => 1.0,
            Activation::Relu
            | Activation::Elu
            | Activation::Gelu
            | Activation::GeluTanh
            | Activation::Silu
            | Activation::Mish => 2f64.sqrt(),
        }
    }
}

impl Module for Activation {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        self.of(x)
    }

    fn visit(&mut self, _: &mut Visitor<'_>) {}

    fn describe(&self) -> String {
        match self {
            Activation::Relu => "ReLU()".into(),
            Activation::LeakyRelu(slope) => format!("LeakyReLU(negative_slope={slope})"),
            Activation::Elu => "ELU(alpha=1.0)".into(),
            Activation::Gelu => "GELU()".into(),
            Activation::GeluTanh => "GELU(approximate='tanh')".into(),
            Activation::Silu => "SiLU()".into(),
            Activation::Mish => "Mish()".into(),
            Activation::Tanh => "Tanh()".into(),
            Activation::Sigmoid => "Sigmoid()".into(),
            Activation::Identity => "Identity()".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_at_one_and_minus_one() -> Result<()> {
        let x = Tensor::from_vec(vec![1f64, -1.0], [2])?;
        // PyTorch's, to six places
        for (a, want) in [
            (Activation::Relu, [1.0, 0.0]),
            (Activation::LeakyRelu(0.1), [1.0, -0.1]),
            (Activation::Elu, [1.0, -0.632121]),
            (Activation::Gelu, [0.841345, -0.158655]),
            (Activation::GeluTanh, [0.841192, -0.158808]),
            (Activation::Silu, [0.731059, -0.268941]),
            (Activation::Mish, [0.865098, -0.303401]),
            (Activation::Tanh, [0.761594, -0.761594]),
            (Activation::Sigmoid, [0.731059, 0.268941]),
            (Activation::Identity, [1.0, -1.0]),
        ] {
            for (y, w) in a.of(&x)?.to_vec::<f64>()?.iter().zip(want) {
                assert!((y - w).abs() < 1e-6, "{a:?}: {y} is not {w}");
            }
        }
        Ok(())
    }

    #[test]
    fn settings_as_json() {
        let json = |a: Activation| serde_json::to_string(&a).unwrap();
        assert_eq!(json(Activation::GeluTanh), "\"gelu_tanh\"");
        assert_eq!(json(Activation::LeakyRelu(0.5)), "{\"leaky_relu\":0.5}");
        assert_eq!(
            serde_json::from_str::<Activation>("\"mish\"").unwrap(),
            Activation::Mish
        );
    }
}
