//! The activation functions, as one value: a layer, and a setting of other layers. RReLU, which
//! draws random slopes, is a layer with a stream.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nn::{Mode, Module, Visitor};
use crate::ops::rrelu;
use crate::random::Generator;
use crate::tensor::Tensor;

/// A pointwise function between layers. It is a layer itself, but for RReLU, whose training needs
/// a random stream: [`Activation::layer`] makes a layer of any.
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
    /// ELU with this alpha: x above 0, alpha (e^x - 1) below.
    EluAlpha(f64),
    /// x Phi(x).
    Gelu,
    /// GELU's approximation by tanh.
    GeluTanh,
    /// x sigmoid(x).
    Silu,
    /// x tanh(softplus(x)).
    Mish,
    /// ln(1 + e^x).
    Softplus,
    /// x above 0; below, a slope for each element, drawn from PyTorch's 1/8 to 1/3 in training,
    /// and their mean in evaluation.
    Rrelu,
    /// The hyperbolic tangent.
    Tanh,
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// x.
    Identity,
}

/// PyTorch's slopes of RReLU.
const SLOPES: [f64; 2] = [1.0 / 8.0, 1.0 / 3.0];

impl Activation {
    /// The function of each element; RReLU as in evaluation.
    pub fn of(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Activation::Relu => x.relu(),
            Activation::LeakyRelu(slope) => x.leaky_relu(slope),
            Activation::Elu => x.elu(1.0),
            Activation::EluAlpha(alpha) => x.elu(alpha),
            Activation::Gelu => x.gelu(),
            Activation::GeluTanh => x.gelu_tanh(),
            Activation::Silu => x.silu(),
            Activation::Mish => x.mish(),
            Activation::Softplus => x.softplus(),
            Activation::Rrelu => x.leaky_relu((SLOPES[0] + SLOPES[1]) / 2.0),
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => x.sigmoid(),
            Activation::Identity => Ok(x.clone()),
        }
    }

    /// A layer of it, where RReLU has a stream of its own, forked from `rng`.
    pub fn layer(self, rng: &mut Generator) -> Result<ActivationLayer> {
        Ok(match self {
            Activation::Rrelu => ActivationLayer {
                plain: Activation::Identity,
                rrelu: Some(RReLU::new(SLOPES[0], SLOPES[1], rng)?),
            },
            plain => ActivationLayer { plain, rrelu: None },
        })
    }

    /// What makes up for the variance that the function loses: PyTorch's `calculate_gain`, and
    /// ReLU's for the smooth functions of its shape, which PyTorch leaves out.
    pub fn gain(self) -> f64 {
        match self {
            Activation::LeakyRelu(slope) => (2.0 / (1.0 + slope * slope)).sqrt(),
            Activation::Rrelu => Activation::LeakyRelu((SLOPES[0] + SLOPES[1]) / 2.0).gain(),
            Activation::Tanh => 5.0 / 3.0,
            Activation::Sigmoid | Activation::Identity => 1.0,
            Activation::Relu
            | Activation::Elu
            | Activation::EluAlpha(_)
            | Activation::Softplus
            | Activation::Gelu
            | Activation::GeluTanh
            | Activation::Silu
            | Activation::Mish => 2f64.sqrt(),
        }
    }
}

impl Module for Activation {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        if let (Activation::Rrelu, Mode::Train) = (*self, mode) {
            return Err(Error::argument(
                "RReLU",
                "training draws random slopes: expected the layer that Activation::layer makes",
            ));
        }
        self.of(x)
    }

    fn visit(&mut self, _: &mut Visitor<'_>) {}

    fn describe(&self) -> String {
        match self {
            Activation::Relu => "ReLU()".into(),
            Activation::LeakyRelu(slope) => format!("LeakyReLU(negative_slope={slope})"),
            Activation::Elu => "ELU(alpha=1.0)".into(),
            Activation::EluAlpha(alpha) => format!("ELU(alpha={alpha:?})"),
            Activation::Gelu => "GELU()".into(),
            Activation::GeluTanh => "GELU(approximate='tanh')".into(),
            Activation::Silu => "SiLU()".into(),
            Activation::Mish => "Mish()".into(),
            Activation::Softplus => "Softplus(beta=1.0, threshold=20.0)".into(),
            Activation::Rrelu => describe_rrelu(SLOPES),
            Activation::Tanh => "Tanh()".into(),
            Activation::Sigmoid => "Sigmoid()".into(),
            Activation::Identity => "Identity()".into(),
        }
    }
}

/// RReLU: x above 0; below, x times a slope for each element, uniform from `lower` to `upper` in
/// training and their mean in evaluation (Xu et al. 2015).
pub struct RReLU {
    lower: f64,
    upper: f64,
    generator: Generator,
}

impl RReLU {
    /// With slopes of this range; PyTorch's are 1/8 to 1/3. Its stream is forked from `rng`.
    pub fn new(lower: f64, upper: f64, rng: &mut Generator) -> Result<Self> {
        rrelu::check_slopes("RReLU", lower, upper)?;
        Ok(RReLU {
            lower,
            upper,
            generator: rng.fork(),
        })
    }
}

fn describe_rrelu([lower, upper]: [f64; 2]) -> String {
    format!("RReLU(lower={lower}, upper={upper})")
}

impl Module for RReLU {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        match mode {
            Mode::Train => x.rrelu(self.lower, self.upper, &mut self.generator),
            Mode::Eval => x.leaky_relu((self.lower + self.upper) / 2.0),
        }
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.generator("generator", &mut self.generator);
    }

    fn describe(&self) -> String {
        describe_rrelu([self.lower, self.upper])
    }
}

/// An [`Activation`] with all that training needs: what a layer keeps that has one as a setting.
/// Made by [`Activation::layer`].
pub struct ActivationLayer {
    /// The function, where it has no state.
    plain: Activation,
    /// What follows it.
    rrelu: Option<RReLU>,
}

impl ActivationLayer {
    /// What can be computed in one pass with the op before it; [`after`](Self::after) does the rest.
    pub(crate) fn fused(&self) -> Activation {
        self.plain
    }

    /// What [`fused`](Self::fused) has left to do.
    pub(crate) fn after(&mut self, y: Tensor, mode: Mode) -> Result<Tensor> {
        match &mut self.rrelu {
            Some(rrelu) => rrelu.forward(&y, mode),
            None => Ok(y),
        }
    }
}

impl Module for ActivationLayer {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let y = self.plain.of(x)?;
        self.after(y, mode)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        if let Some(rrelu) = &mut self.rrelu {
            rrelu.visit(v);
        }
    }

    fn describe(&self) -> String {
        match &self.rrelu {
            Some(rrelu) => rrelu.describe(),
            None => self.plain.describe(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::nn::{Conv2dConfig, ConvNormAct, LinearNormAct, Norm, Slot, visit};

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
            (Activation::EluAlpha(0.5), [1.0, -0.316060]),
            (Activation::Softplus, [1.313262, 0.313262]),
            (Activation::Rrelu, [1.0, -0.229167]),
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
        assert_eq!(json(Activation::EluAlpha(0.5)), "{\"elu_alpha\":0.5}");
        let read = |text: &str| serde_json::from_str::<Activation>(text).unwrap();
        assert_eq!(read("\"mish\""), Activation::Mish);
        assert_eq!(read("\"elu\""), Activation::Elu);
        assert_eq!(read("\"rrelu\""), Activation::Rrelu);
        assert_eq!(read("\"softplus\""), Activation::Softplus);
    }

    /// A setting read from a configuration, in the stages of the networks: other slopes at each
    /// step of training, the mean slope in evaluation, and a stream that can be put back.
    #[test]
    fn rrelu_as_a_setting() -> Result<()> {
        let setting: Activation = serde_json::from_str("\"rrelu\"").unwrap();
        let rng = &mut Generator::new(1);
        let config = Conv2dConfig::same(1);
        let layer = LinearNormAct::new(3, 4, Norm::Layer, setting, rng)?;
        let fc: [Box<dyn Module>; 2] = [
            Box::new(LinearNormAct::new(3, 4, Norm::None, setting, rng)?),
            Box::new(layer),
        ];
        let conv = ConvNormAct::new(3, 4, config, Norm::Batch, setting, rng)?;
        let (x, images) = (
            Tensor::randn([5, 3], rng, DType::F32)?,
            Tensor::randn([2, 3, 4, 4], rng, DType::F32)?,
        );
        let stages = fc.into_iter().map(|m| (m, &x));
        for (mut stage, x) in stages.chain([(Box::new(conv) as Box<dyn Module>, &images)]) {
            let run = |stage: &mut dyn Module, mode| stage.forward(x, mode)?.to_vec::<f32>();
            let mut start = Vec::new();
            visit(&mut *stage, |name, slot| {
                if let Slot::Generator(g) = slot {
                    start.push((name.to_string(), *g));
                }
            });
            assert_eq!(start.len(), 1);
            assert_eq!(start[0].0, "activation.generator");
            let first = run(&mut *stage, Mode::Train)?;
            assert_ne!(run(&mut *stage, Mode::Train)?, first);
            visit(&mut *stage, |_, slot| {
                if let Slot::Generator(g) = slot {
                    *g = start[0].1;
                }
            });
            assert_eq!(run(&mut *stage, Mode::Train)?, first);
            let eval = run(&mut *stage, Mode::Eval)?;
            assert_eq!(run(&mut *stage, Mode::Eval)?, eval);
            assert!(eval.iter().any(|&y| y < 0.0));
            let description = stage.describe();
            assert!(description.ends_with(", RReLU(lower=0.125, upper=0.3333333333333333))"));
        }
        Ok(())
    }

    #[test]
    fn rrelu_without_a_stream_and_with_wrong_slopes() -> Result<()> {
        let x = Tensor::ones([2], DType::F32)?;
        let e = Activation::Rrelu.forward(&x, Mode::Train).unwrap_err();
        assert_eq!(
            e.to_string(),
            "RReLU: training draws random slopes: expected the layer that Activation::layer makes"
        );
        let e = RReLU::new(0.5, 0.1, &mut Generator::new(0)).err().unwrap();
        assert_eq!(
            e.to_string(),
            "RReLU: slopes from 0.5 to 0.1, expected a finite range"
        );
        // a setting without a stream takes no numbers: networks begin with the same weights
        let mut rng = Generator::new(0);
        Activation::Gelu.layer(&mut rng)?;
        assert_eq!(rng.offset, 0);
        Ok(())
    }
}
