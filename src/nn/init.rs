//! How new weights are drawn. The bounds and gains are PyTorch's `torch.nn.init`.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::nn::{Activation, Module, Slot, try_visit};
use crate::random::Generator;
use crate::shape::{IntoShape, Shape};
use crate::tensor::Tensor;

/// Which of a weight's two sides keeps its variance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fan {
    /// The activations' variance, from layer to layer in the forward pass.
    In,
    /// The gradients' variance, from layer to layer in the backward pass.
    Out,
}

impl Fan {
    /// How many inputs an output of a weight (out, in, window ..) has, or outputs an input.
    pub fn of(self, shape: &Shape) -> Result<usize> {
        if shape.len() < 2 || shape.numel() == 0 {
            return Err(Error::argument(
                "init",
                format!("a weight of shape {shape:?} has no fan, expected (out, in, ..)"),
            ));
        }
        let window: usize = shape[2..].iter().product();
        Ok(window
            * match self {
                Fan::In => shape[1],
                Fan::Out => shape[0],
            })
    }
}

/// A distribution of new weights.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Init {
    /// Every element the same.
    Constant(f64),
    /// Normal with mean 0 and this standard deviation: CS231n's `weight_scale`.
    Normal(f64),
    /// Uniform between minus this and this.
    Uniform(f64),
    /// Normal with standard deviation gain sqrt(2 / (fan in + fan out)) (Glorot and Bengio 2010).
    XavierNormal(Activation),
    /// Uniform with the standard deviation of [`Init::XavierNormal`].
    XavierUniform(Activation),
    /// Normal with standard deviation gain / sqrt(fan) (He et al. 2015).
    KaimingNormal(Fan, Activation),
    /// Uniform with the standard deviation of [`Init::KaimingNormal`].
    KaimingUniform(Fan, Activation),
}

impl Init {
    /// What PyTorch gives the weights of `Linear` and `Conv2d`: uniform within 1 / sqrt(fan in).
    pub fn pytorch() -> Self {
        Init::KaimingUniform(Fan::In, Activation::LeakyRelu(5f64.sqrt()))
    }

    /// A parameter of this shape, in F32. Those that depend on a fan want at least two axes.
    ///
    /// ```
    /// # use cotangent::{nn::{Activation, Fan, Init}, random::Generator};
    /// let init = Init::KaimingNormal(Fan::In, Activation::Relu);
    /// let weight = init.make([32, 3, 7, 7], &mut Generator::new(0))?;
    /// assert!(weight.is_tracked());
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn make(self, shape: impl IntoShape, rng: &mut Generator) -> Result<Tensor> {
        let shape = shape.into_shape()?;
        // a uniform distribution within b has the standard deviation b / sqrt(3)
        let t = match self {
            Init::Constant(value) => Tensor::full(shape, value, DType::F32)?,
            Init::Normal(std) => normal(shape, std, rng)?,
            Init::Uniform(bound) => uniform(shape, bound, rng)?,
            Init::XavierNormal(a) => normal(shape, xavier(&shape, a)?, rng)?,
            Init::XavierUniform(a) => uniform(shape, 3f64.sqrt() * xavier(&shape, a)?, rng)?,
            Init::KaimingNormal(fan, a) => normal(shape, kaiming(&shape, fan, a)?, rng)?,
            Init::KaimingUniform(fan, a) => {
                uniform(shape, 3f64.sqrt() * kaiming(&shape, fan, a)?, rng)?
            }
        };
        Ok(t.requires_grad())
    }

    /// Draw every weight of two axes or more anew and set every bias to 0. The weights of norms
    /// stay.
    pub fn apply(self, m: &mut (impl Module + ?Sized), rng: &mut Generator) -> Result<()> {
        try_visit(m, |name, slot| match slot {
            Slot::Parameter(t) if t.rank() >= 2 => t.copy_(&self.make(t.shape(), rng)?),
            Slot::Parameter(t) if name.ends_with("bias") => t.copy_(&t.zeros_like()?),
            _ => Ok(()),
        })
    }
}

fn xavier(shape: &Shape, a: Activation) -> Result<f64> {
    let fans = Fan::In.of(shape)? + Fan::Out.of(shape)?;
    Ok(a.gain() * (2.0 / fans as f64).sqrt())
}

fn kaiming(shape: &Shape, fan: Fan, a: Activation) -> Result<f64> {
    Ok(a.gain() / (fan.of(shape)? as f64).sqrt())
}

fn normal(shape: Shape, std: f64, rng: &mut Generator) -> Result<Tensor> {
    Tensor::randn(shape, rng, DType::F32)?.mul_scalar(std)
}

fn uniform(shape: Shape, bound: f64, rng: &mut Generator) -> Result<Tensor> {
    Tensor::rand(shape, rng, DType::F32)?
        .mul_scalar(2.0 * bound)?
        .add_scalar(-bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean, standard deviation and greatest magnitude.
    fn moments(t: &Tensor) -> (f64, f64, f64) {
        let v: Vec<f64> = t
            .to_vec::<f32>()
            .unwrap()
            .iter()
            .map(|x| *x as f64)
            .collect();
        let n = v.len() as f64;
        let mean = v.iter().sum::<f64>() / n;
        let std = (v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
        (mean, std, v.iter().fold(0.0, |m, x| x.abs().max(m)))
    }

    #[test]
    fn standard_deviations() -> Result<()> {
        let relu = Activation::Relu;
        // (64, 32, 3, 3): fan in 288, fan out 576; (mode, standard deviation, bound if uniform)
        let kaiming_in = (2.0f64 / 288.0).sqrt();
        let kaiming_out = (2.0f64 / 576.0).sqrt();
        let xavier = 5.0 / 3.0 * (2.0f64 / 864.0).sqrt();
        for (init, std, bounded) in [
            (Init::Normal(1e-3), 1e-3, false),
            (Init::Uniform(0.3), 0.3 / 3f64.sqrt(), true),
            (Init::KaimingNormal(Fan::In, relu), kaiming_in, false),
            (Init::KaimingNormal(Fan::Out, relu), kaiming_out, false),
            (Init::KaimingUniform(Fan::In, relu), kaiming_in, true),
            (Init::KaimingUniform(Fan::Out, relu), kaiming_out, true),
            (Init::XavierNormal(Activation::Tanh), xavier, false),
            (Init::XavierUniform(Activation::Tanh), xavier, true),
            (Init::pytorch(), (1.0f64 / 288.0 / 3.0).sqrt(), true),
        ] {
            let t = init.make([64, 32, 3, 3], &mut Generator::new(5))?;
            let (mean, s, max) = moments(&t);
            assert!(t.is_tracked(), "{init:?}");
            assert!(mean.abs() < 0.03 * std, "{init:?}: mean {mean}");
            assert!((s / std - 1.0).abs() < 0.02, "{init:?}: {s} is not {std}");
            let bound = std * 3f64.sqrt();
            assert_eq!(max <= bound * 1.0001, bounded, "{init:?}: {max}, {bound}");
        }
        assert_eq!(
            Init::Constant(0.5)
                .make([3], &mut Generator::new(0))?
                .to_vec::<f32>()?,
            [0.5; 3]
        );
        Ok(())
    }

    #[test]
    fn a_vector_has_no_fan() {
        let e = Init::pytorch()
            .make([3], &mut Generator::new(0))
            .unwrap_err();
        assert_eq!(
            e.to_string(),
            "init: a weight of shape [3] has no fan, expected (out, in, ..)"
        );
    }
}
