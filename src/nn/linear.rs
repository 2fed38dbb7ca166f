//! The affine layer, alone and with the norm and the activation that follow it.

use crate::error::{Error, Result};
use crate::nn::{Activation, BatchNorm1d, Fan, Init, LayerNorm, Mode, Module, Visitor};
use crate::random::Generator;
use crate::tensor::Tensor;

/// y = x W^T + b, from (.., in) to (.., out).
pub struct Linear {
    /// (out, in).
    pub weight: Tensor,
    /// (out).
    pub bias: Option<Tensor>,
}

impl Linear {
    /// With a bias; weight and bias uniform within 1 / sqrt(in), as PyTorch draws them.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor, nn::{Linear, Mode, Module}, random::Generator};
    /// let mut layer = Linear::new(3, 2, &mut Generator::new(0))?;
    /// let y = layer.forward(&Tensor::ones([5, 3], DType::F32)?, Mode::Eval)?;
    /// assert_eq!(y.shape()[..], [5, 2]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn new(in_features: usize, out_features: usize, rng: &mut Generator) -> Result<Self> {
        if in_features == 0 || out_features == 0 {
            return Err(Error::argument(
                "Linear",
                format!("{in_features} to {out_features} features, expected at least 1 of each"),
            ));
        }
        let weight = Init::pytorch().make([out_features, in_features], rng)?;
        let bound = 1.0 / (Fan::In.of(weight.shape())? as f64).sqrt();
        let bias = Some(Init::Uniform(bound).make([out_features], rng)?);
        Ok(Linear { weight, bias })
    }

    /// The same without a bias.
    pub fn without_bias(self) -> Self {
        Linear { bias: None, ..self }
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
        x.linear(&self.weight, self.bias.as_ref())
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.parameter("weight", &mut self.weight);
        v.optional("bias", &mut self.bias);
    }

    fn describe(&self) -> String {
        format!("Linear({})", self.settings())
    }
}

/// What may follow an affine layer.
pub enum Norm {
    /// Over the batch; boxed, for it is much the larger.
    Batch(Box<BatchNorm1d>),
    /// Over the features.
    Layer(LayerNorm),
}

/// Affine, norm if there is one, activation: the stage of a fully connected network.
pub struct LinearNormAct {
    /// The affine layer.
    pub linear: Linear,
    /// The norm after it.
    pub norm: Option<Norm>,
    /// The activation after that.
    pub activation: Activation,
}

impl Module for LinearNormAct {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = self.linear.forward(x, mode)?;
        match &mut self.norm {
            Some(Norm::Batch(norm)) => norm.forward_act(&x, mode, self.activation),
            Some(Norm::Layer(norm)) => self.activation.of(&norm.forward(&x, mode)?),
            None => self.activation.of(&x),
        }
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.child("linear", &mut self.linear);
        match &mut self.norm {
            Some(Norm::Batch(norm)) => v.child("norm", &mut **norm),
            Some(Norm::Layer(norm)) => v.child("norm", norm),
            None => {}
        }
    }

    fn describe(&self) -> String {
        let norm = match &self.norm {
            Some(Norm::Batch(_)) => ", BatchNorm1d",
            Some(Norm::Layer(_)) => ", LayerNorm",
            None => "",
        };
        format!(
            "LinearNormAct({}{norm}, {})",
            self.linear.settings(),
            self.activation.describe()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::nn::{gradcheck, parameter_count, to_dtype};

    #[test]
    fn affine_by_hand() -> Result<()> {
        let mut layer = Linear::new(2, 1, &mut Generator::new(0))?;
        layer
            .weight
            .copy_(&Tensor::from_vec(vec![2f32, 3.0], [1, 2])?)?;
        layer.bias = Some(Tensor::from_vec(vec![0.5f32], [1])?.requires_grad());
        let x = Tensor::from_vec(vec![1f32, 1.0, -1.0, 2.0], [2, 2])?;
        assert_eq!(layer.forward(&x, Mode::Train)?.to_vec::<f32>()?, [5.5, 4.5]);
        let mut layer = layer.without_bias();
        assert_eq!(layer.forward(&x, Mode::Train)?.to_vec::<f32>()?, [5.0, 4.0]);
        assert_eq!(layer.describe(), "Linear(2, 1, bias=False)");
        assert_eq!(parameter_count(&mut layer), 2);
        Ok(())
    }

    #[test]
    fn sizes_of_zero() {
        let e = Linear::new(0, 3, &mut Generator::new(0)).err().unwrap();
        assert_eq!(
            e.to_string(),
            "Linear: 0 to 3 features, expected at least 1 of each"
        );
    }

    #[test]
    fn gradients_of_the_stage() -> Result<()> {
        let mut rng = Generator::new(1);
        let x = Tensor::randn([6, 4], &mut rng, DType::F64)?;
        for norm in [
            None,
            Some(Norm::Batch(Box::new(BatchNorm1d::new(3)?))),
            Some(Norm::Layer(LayerNorm::new(3, 1e-5)?)),
        ] {
            let mut stage = LinearNormAct {
                linear: Linear::new(4, 3, &mut rng)?,
                norm,
                activation: Activation::Relu,
            };
            to_dtype(&mut stage, DType::F64)?;
            let report = gradcheck(&mut stage, &x, Mode::Train, usize::MAX)?;
            assert!(report.passed(), "{}: {report}", stage.describe());
        }
        Ok(())
    }
}
