//! The affine layer, alone and with the norm and the activation that follow it.

use crate::error::{Error, Result};
use crate::nn::{
    Activation, ActivationLayer, BatchNorm1d, Fan, Init, LayerNorm, Mode, Module, Norm, Visitor,
};
use crate::random::Generator;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// y = x W^T + b, from (.., in) to (.., out).
pub struct Linear {
    /// (out, in).
    pub weight: Tensor,
    /// (out).
    pub bias: Option<Tensor>,
}

impl Linear {
    /// Weight and bias uniform within 1 / sqrt(in), as PyTorch draws them.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor, nn::{Linear, Mode, Module}, random::Generator};
    /// let mut layer = Linear::new(3, 2, true, &mut Generator::new(0))?;
    /// let y = layer.forward(&Tensor::ones([5, 3], DType::F32)?, Mode::Eval)?;
    /// assert_eq!(y.shape()[..], [5, 2]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn new(
        in_features: usize,
        out_features: usize,
        bias: bool,
        rng: &mut Generator,
    ) -> Result<Self> {
        if in_features == 0 || out_features == 0 {
            return Err(Error::argument(
                "Linear",
                format!("{in_features} to {out_features} features, expected at least 1 of each"),
            ));
        }
        let weight = Init::pytorch().make([out_features, in_features], rng)?;
        let bound = 1.0 / (Fan::In.of(weight.shape())? as f64).sqrt();
        let bias = match bias {
            true => Some(Init::Uniform(bound).make([out_features], rng)?),
            false => None,
        };
        Ok(Linear { weight, bias })
    }

    /// The layer with the activation that follows it, of which ReLU is computed in one pass with it.
    fn forward_act(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let (w, b) = (&self.weight, self.bias.as_ref());
        match activation {
            Activation::Relu => x.linear_relu(w, b),
            other => other.of(&x.linear(w, b)?),
        }
    }

    /// What [`Module::describe`] prints between the brackets.
    fn settings(&self) -> String {
        let [out, inn] = [self.weight.shape()[0], self.weight.shape()[1]];
        let bias = if self.bias.is_none() {
            ", bias=False"
        } else {
            ""
        };
        format!("{inn}, {out}{bias}")
    }
}

impl Module for Linear {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        self.forward_act(x, Activation::Identity)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.parameter("weight", &mut self.weight);
        v.optional("bias", &mut self.bias);
    }

    fn describe(&self) -> String {
        format!("Linear({})", self.settings())
    }

    fn multiply_adds(&self, input: &Shape, _: &Shape) -> usize {
        // the rows of one example: the axes between the first and the last
        let rows = input.get(1..input.len().saturating_sub(1));
        self.weight.numel() * rows.map_or(1, |rows| rows.iter().product())
    }
}

/// Affine, norm if there is one, activation: the stage of a fully connected network. ReLU after
/// the affine map or batch norm is computed with it in one pass.
pub struct LinearNormAct {
    linear: Linear,
    norm: Following,
    activation: ActivationLayer,
}

/// The norm's layer; boxed, for the two differ in size.
enum Following {
    Nothing,
    Batch(Box<BatchNorm1d>),
    Layer(Box<LayerNorm>),
}

impl LinearNormAct {
    /// From (n, in) to (n, out).
    pub fn new(
        in_features: usize,
        out_features: usize,
        norm: Norm,
        activation: Activation,
        rng: &mut Generator,
    ) -> Result<Self> {
        Ok(LinearNormAct {
            linear: Linear::new(in_features, out_features, true, rng)?,
            norm: match norm {
                Norm::None => Following::Nothing,
                Norm::Batch => Following::Batch(Box::new(BatchNorm1d::new(out_features)?)),
                Norm::Layer => Following::Layer(Box::new(LayerNorm::new(out_features, 1e-5)?)),
            },
            activation: activation.layer(rng)?,
        })
    }
}

impl Module for LinearNormAct {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let (linear, activation) = (&mut self.linear, self.activation.fused());
        let y = match &mut self.norm {
            Following::Nothing => linear.forward_act(x, activation)?,
            Following::Batch(norm) => {
                norm.forward_act(&linear.forward(x, mode)?, mode, activation)?
            }
            Following::Layer(norm) => {
                activation.of(&norm.forward(&linear.forward(x, mode)?, mode)?)?
            }
        };
        self.activation.after(y, mode)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.child("linear", &mut self.linear);
        match &mut self.norm {
            Following::Batch(norm) => v.child("norm", &mut **norm),
            Following::Layer(norm) => v.child("norm", &mut **norm),
            Following::Nothing => {}
        }
        v.child("activation", &mut self.activation);
    }

    fn describe(&self) -> String {
        let norm = match &self.norm {
            Following::Batch(_) => ", BatchNorm1d",
            Following::Layer(_) => ", LayerNorm",
            Following::Nothing => "",
        };
        format!(
            "LinearNormAct({}{norm}, {})",
            self.linear.settings(),
            self.activation.describe()
        )
    }

    fn multiply_adds(&self, input: &Shape, output: &Shape) -> usize {
        self.linear.multiply_adds(input, output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::nn::{gradcheck, parameter_count, to_dtype};

    #[test]
    fn affine_by_hand() -> Result<()> {
        let mut layer = Linear::new(2, 1, true, &mut Generator::new(0))?;
        layer
            .weight
            .copy_(&Tensor::from_vec(vec![2f32, 3.0], [1, 2])?)?;
        layer.bias = Some(Tensor::from_vec(vec![0.5f32], [1])?.requires_grad());
        let x = Tensor::from_vec(vec![1f32, 1.0, -1.0, 2.0], [2, 2])?;
        assert_eq!(layer.forward(&x, Mode::Train)?.to_vec::<f32>()?, [5.5, 4.5]);
        layer.bias = None;
        assert_eq!(layer.forward(&x, Mode::Train)?.to_vec::<f32>()?, [5.0, 4.0]);
        assert_eq!(layer.describe(), "Linear(2, 1, bias=False)");
        assert_eq!(parameter_count(&mut layer), 2);
        Ok(())
    }

    #[test]
    fn sizes_of_zero() {
        let e = Linear::new(0, 3, true, &mut Generator::new(0))
            .err()
            .unwrap();
        assert_eq!(
            e.to_string(),
            "Linear: 0 to 3 features, expected at least 1 of each"
        );
    }

    #[test]
    fn gradients_of_the_stage() -> Result<()> {
        let mut rng = Generator::new(1);
        let x = Tensor::randn([6, 4], &mut rng, DType::F64)?;
        for norm in [Norm::None, Norm::Batch, Norm::Layer] {
            let mut stage = LinearNormAct::new(4, 3, norm, Activation::Relu, &mut rng)?;
            to_dtype(&mut stage, DType::F64)?;
            let report = gradcheck(&mut stage, &x, Mode::Train, usize::MAX)?;
            assert!(report.passed(), "{}: {report}", stage.describe());
        }
        Ok(())
    }
}
