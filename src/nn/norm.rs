//! Batch, layer, group and instance norm.

use serde::{Deserialize, Serialize};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::nn::{Activation, Mode, Module, Visitor};
use crate::ops::batch_norm;
use crate::shape::IntoShape;
use crate::tensor::Tensor;

/// The norm of a stage, between its affine part and its activation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Norm {
    /// No norm.
    #[default]
    #[serde(rename = "none")]
    None,
    /// Over the batch.
    #[serde(rename = "batchnorm")]
    Batch,
    /// Over the features.
    #[serde(rename = "layernorm")]
    Layer,
}

/// Batch norm of (n, c), for fully connected networks.
pub type BatchNorm1d = BatchNorm<2>;
/// Batch norm of images (n, c, h, w).
pub type BatchNorm2d = BatchNorm<4>;

/// y = (x - mean) / sqrt(var + eps) weight + bias, a mean and variance a channel, over inputs of
/// `RANK` axes (Ioffe and Szegedy 2015).
///
/// Training takes the batch's statistics and moves the running ones towards them; evaluation
/// takes the running ones.
pub struct BatchNorm<const RANK: usize> {
    /// (c), ones at first.
    pub weight: Tensor,
    /// (c), zeros at first.
    pub bias: Tensor,
    /// (c), the mean that evaluation takes.
    pub running_mean: Tensor,
    /// (c), the variance that evaluation takes.
    pub running_var: Tensor,
    /// How many batches have moved the running statistics: an I64 scalar.
    pub num_batches_tracked: Tensor,
    /// Added to the variance.
    pub eps: f64,
    /// The share of the batch's statistics in the next running ones. CS231n's momentum is 1 minus
    /// this.
    pub momentum: f64,
}

impl<const RANK: usize> BatchNorm<RANK> {
    /// Of this many channels, with PyTorch's eps 1e-5 and momentum 0.1.
    pub fn new(channels: usize) -> Result<Self> {
        if channels == 0 {
            return Err(Error::argument(
                Self::name(),
                "0 channels, expected at least 1",
            ));
        }
        Ok(BatchNorm {
            weight: Tensor::ones(channels, DType::F32)?.requires_grad(),
            bias: Tensor::zeros(channels, DType::F32)?.requires_grad(),
            running_mean: Tensor::zeros(channels, DType::F32)?,
            running_var: Tensor::ones(channels, DType::F32)?,
            num_batches_tracked: Tensor::zeros((), DType::I64)?,
            eps: 1e-5,
            momentum: 0.1,
        })
    }

    fn name() -> &'static str {
        if RANK == 2 {
            "BatchNorm1d"
        } else {
            "BatchNorm2d"
        }
    }

    /// The norm and the activation after it; ReLU in the same pass.
    pub fn forward_act(
        &mut self,
        x: &Tensor,
        mode: Mode,
        activation: Activation,
    ) -> Result<Tensor> {
        if x.rank() != RANK {
            let want = if RANK == 2 { "(n, c)" } else { "(n, c, h, w)" };
            return Err(Error::shape(
                Self::name(),
                &[*x.shape()],
                format!("expected {want} but got {:?}", x.shape()),
            ));
        }
        let relu = activation == Activation::Relu;
        let op = batch_norm::BatchNorm {
            training: mode == Mode::Train,
            momentum: self.momentum,
            eps: self.eps,
            relu,
        };
        let y = x.batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some((&mut self.running_mean, &mut self.running_var)),
            &op,
        )?;
        if mode == Mode::Train {
            batch_norm::increment(&mut self.num_batches_tracked)?;
        }
        if relu { Ok(y) } else { activation.of(&y) }
    }
}

impl<const RANK: usize> Module for BatchNorm<RANK> {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.forward_act(x, mode, Activation::Identity)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.parameter("weight", &mut self.weight);
        v.parameter("bias", &mut self.bias);
        v.buffer("running_mean", &mut self.running_mean);
        v.buffer("running_var", &mut self.running_var);
        v.buffer("num_batches_tracked", &mut self.num_batches_tracked);
    }

    fn describe(&self) -> String {
        format!(
            "{}({}, eps={:?}, momentum={:?})",
            Self::name(),
            self.weight.numel(),
            self.eps,
            self.momentum
        )
    }
}

/// The same formula as batch norm with the mean and variance of each example, over its last axes
/// (Ba et al. 2016). It has no running statistics: training and evaluation are the same.
pub struct LayerNorm {
    /// Of the normalized shape, ones at first.
    pub weight: Tensor,
    /// Of the normalized shape, zeros at first.
    pub bias: Tensor,
    /// Added to the variance.
    pub eps: f64,
}

impl LayerNorm {
    /// Over the last axes, of these sizes. PyTorch's `eps` is 1e-5.
    pub fn new(shape: impl IntoShape, eps: f64) -> Result<Self> {
        let shape = shape.into_shape()?;
        if shape.is_empty() || shape.numel() == 0 {
            return Err(Error::argument(
                "LayerNorm",
                format!("shape {shape:?} holds nothing to normalize"),
            ));
        }
        Ok(LayerNorm {
            weight: Tensor::ones(shape, DType::F32)?.requires_grad(),
            bias: Tensor::zeros(shape, DType::F32)?.requires_grad(),
            eps,
        })
    }
}

impl Module for LayerNorm {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        let shape = *self.weight.shape();
        x.layer_norm(&shape, Some(&self.weight), Some(&self.bias), self.eps)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.parameter("weight", &mut self.weight);
        v.parameter("bias", &mut self.bias);
    }

    fn describe(&self) -> String {
        format!("LayerNorm({:?}, eps={:?})", self.weight.shape(), self.eps)
    }
}

/// Layer norm over the channels of images (n, c, h, w), at each position by itself: ConvNeXt's
/// (Liu et al. 2022). Activations lie in memory with the channels last, where this is
/// [`Tensor::layer_norm`] of rows, without a copy.
pub struct LayerNorm2d {
    /// (c), ones at first.
    pub weight: Tensor,
    /// (c), zeros at first.
    pub bias: Tensor,
    /// Added to the variance.
    pub eps: f64,
}

impl LayerNorm2d {
    /// Of this many channels, with ConvNeXt's eps 1e-6.
    pub fn new(channels: usize) -> Result<Self> {
        let [weight, bias] = affine("LayerNorm2d", channels)?;
        Ok(LayerNorm2d {
            weight,
            bias,
            eps: 1e-6,
        })
    }
}

impl Module for LayerNorm2d {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        let c = self.weight.numel();
        check_images("LayerNorm2d", x, c)?;
        x.permute(&[0, 2, 3, 1])?
            .layer_norm(&[c], Some(&self.weight), Some(&self.bias), self.eps)?
            .permute(&[0, 3, 1, 2])
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.parameter("weight", &mut self.weight);
        v.parameter("bias", &mut self.bias);
    }

    fn describe(&self) -> String {
        format!("LayerNorm2d({}, eps={:?})", self.weight.numel(), self.eps)
    }
}

/// The same formula as batch norm with the mean and variance of each group of neighbouring
/// channels of each sample (n, c, ..) (Wu and He 2018). Training and evaluation are the same.
pub struct GroupNorm {
    groups: usize,
    /// (c), ones at first.
    pub weight: Tensor,
    /// (c), zeros at first.
    pub bias: Tensor,
    /// Added to the variance.
    pub eps: f64,
}

impl GroupNorm {
    /// Of so many channels in so many groups, with PyTorch's eps 1e-5.
    pub fn new(groups: usize, channels: usize) -> Result<Self> {
        let [weight, bias] = affine("GroupNorm", channels)?;
        if groups == 0 || !channels.is_multiple_of(groups) {
            return Err(Error::argument(
                "GroupNorm",
                format!("groups {groups} does not divide {channels} channels"),
            ));
        }
        Ok(GroupNorm {
            groups,
            weight,
            bias,
            eps: 1e-5,
        })
    }
}

impl Module for GroupNorm {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        x.group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.eps)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.parameter("weight", &mut self.weight);
        v.parameter("bias", &mut self.bias);
    }

    fn describe(&self) -> String {
        let (groups, channels) = (self.groups, self.weight.numel());
        format!("GroupNorm({groups}, {channels}, eps={:?})", self.eps)
    }
}

/// (x - mean) / sqrt(var + eps) with the mean and variance of each channel of each image
/// (Ulyanov et al. 2016). As PyTorch's it has no weight and bias and no running statistics:
/// training and evaluation are the same, but that training refuses images of one pixel, of which
/// nothing but 0 is left.
pub struct InstanceNorm2d {
    channels: usize,
    /// Added to the variance.
    pub eps: f64,
}

impl InstanceNorm2d {
    /// Of images with this many channels, with PyTorch's eps 1e-5.
    pub fn new(channels: usize) -> Result<Self> {
        affine("InstanceNorm2d", channels)?;
        Ok(InstanceNorm2d {
            channels,
            eps: 1e-5,
        })
    }
}

impl Module for InstanceNorm2d {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        check_images("InstanceNorm2d", x, self.channels)?;
        if mode == Mode::Train && x.shape()[2..] == [1, 1] {
            let why = format!(
                "expected more than 1 pixel when training, got input {:?}",
                x.shape()
            );
            return Err(Error::shape("InstanceNorm2d", &[*x.shape()], why));
        }
        x.group_norm(self.channels, None, None, self.eps)
    }

    fn visit(&mut self, _: &mut Visitor<'_>) {}

    fn describe(&self) -> String {
        format!("InstanceNorm2d({}, eps={:?})", self.channels, self.eps)
    }
}

/// A weight of ones and a bias of zeros; `layer` is who was asked for no channels.
fn affine(layer: &'static str, channels: usize) -> Result<[Tensor; 2]> {
    if channels == 0 {
        return Err(Error::argument(layer, "0 channels, expected at least 1"));
    }
    Ok([
        Tensor::ones(channels, DType::F32)?.requires_grad(),
        Tensor::zeros(channels, DType::F32)?.requires_grad(),
    ])
}

/// Refuse what is no (n, c, h, w) of this many channels.
fn check_images(layer: &'static str, x: &Tensor, channels: usize) -> Result<()> {
    if x.rank() != 4 || x.shape()[1] != channels {
        return Err(Error::shape(
            layer,
            &[*x.shape()],
            format!("expected (n, {channels}, h, w) but got {:?}", x.shape()),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::ops::check::devices;
    use crate::random::Generator;

    #[test]
    fn running_statistics_follow_pytorch() -> Result<()> {
        for device in devices()? {
            running_statistics(device)?;
        }
        Ok(())
    }

    fn running_statistics(device: Device) -> Result<()> {
        let mut norm = BatchNorm1d::new(1)?;
        crate::nn::to_device(&mut norm, device)?;
        let x = Tensor::from_vec(vec![1f32, 3.0], [2, 1])?.to(device)?;
        // mean 2; variance 1 normalizes, 2 (unbiased) is kept
        let y = norm.forward(&x, Mode::Train)?.to_vec::<f32>()?;
        assert!((y[0] + 1.0).abs() < 1e-4 && (y[1] - 1.0).abs() < 1e-4);
        assert!((norm.running_mean.to_vec::<f32>()?[0] - 0.2).abs() < 1e-6);
        assert!((norm.running_var.to_vec::<f32>()?[0] - 1.1).abs() < 1e-6);
        assert_eq!(norm.num_batches_tracked.item()?, 1.0);
        let y = norm.forward(&x, Mode::Eval)?.to_vec::<f32>()?;
        assert!((y[0] - 0.8 / 1.1f32.sqrt()).abs() < 1e-4);
        assert_eq!(norm.num_batches_tracked.item()?, 1.0);
        assert_eq!(norm.describe(), "BatchNorm1d(1, eps=1e-5, momentum=0.1)");
        Ok(())
    }

    #[test]
    fn wrong_rank_and_sizes() -> Result<()> {
        let x = Tensor::zeros([2, 3], DType::F32)?;
        let e = BatchNorm2d::new(3)?.forward(&x, Mode::Train).unwrap_err();
        assert_eq!(
            e.to_string(),
            "BatchNorm2d: expected (n, c, h, w) but got [2, 3]"
        );
        assert!(BatchNorm1d::new(0).is_err() && LayerNorm::new([3, 0], 1e-5).is_err());
        let e = |r: Result<Tensor>| r.unwrap_err().to_string();
        assert_eq!(
            e(LayerNorm2d::new(3)?.forward(&x, Mode::Train)),
            "LayerNorm2d: expected (n, 3, h, w) but got [2, 3]"
        );
        assert_eq!(
            e(InstanceNorm2d::new(4)?
                .forward(&Tensor::zeros([2, 3, 1, 5], DType::F32)?, Mode::Eval)),
            "InstanceNorm2d: expected (n, 4, h, w) but got [2, 3, 1, 5]"
        );
        let pixel = Tensor::ones([2, 3, 1, 1], DType::F32)?;
        assert_eq!(
            e(InstanceNorm2d::new(3)?.forward(&pixel, Mode::Train)),
            "InstanceNorm2d: expected more than 1 pixel when training, got input [2, 3, 1, 1]"
        );
        assert!(InstanceNorm2d::new(3)?.forward(&pixel, Mode::Eval).is_ok());
        let e = |r: Result<GroupNorm>| r.err().unwrap().to_string();
        for groups in [0, 4] {
            let want = format!("GroupNorm: groups {groups} does not divide 6 channels");
            assert_eq!(e(GroupNorm::new(groups, 6)), want);
        }
        assert_eq!(
            e(GroupNorm::new(1, 0)),
            "GroupNorm: 0 channels, expected at least 1"
        );
        assert!(LayerNorm2d::new(0).is_err() && InstanceNorm2d::new(0).is_err());
        Ok(())
    }

    #[test]
    fn a_frozen_weight_leaves_all_other_gradients_as_they_are() -> Result<()> {
        let rng = &mut Generator::new(9);
        let x = Tensor::randn([4, 3, 5, 2], rng, DType::F32)?;
        let dy = Tensor::randn([4, 3, 5, 2], rng, DType::F32)?;
        for device in devices()? {
            let (x, dy) = (x.to(device)?.requires_grad(), dy.to(device)?);
            let gradients = |frozen: bool| -> Result<_> {
                let mut norm = BatchNorm2d {
                    eps: 1e-12,
                    momentum: 0.4,
                    ..BatchNorm2d::new(3)?
                };
                crate::nn::to_device(&mut norm, device)?;
                crate::nn::set_requires_grad(&mut norm, !frozen, |name| name == "weight");
                let y = norm.forward(&x, Mode::Train)?;
                let grads = y.mul(&dy)?.sum_all()?.backward()?;
                let of = |t: &Tensor| grads.get(t).map(|g| g.to_vec::<f32>()).transpose();
                Ok((of(&norm.weight)?, of(&norm.bias)?, of(&x)?))
            };
            let (trained, frozen) = (gradients(false)?, gradients(true)?);
            assert!(trained.0.is_some() && frozen.0.is_none());
            assert!(frozen.1.is_some() && frozen.2.is_some());
            assert_eq!((trained.1, trained.2), (frozen.1, frozen.2));
        }
        Ok(())
    }

    #[test]
    fn layer_norm_of_channels_is_that_of_each_pixel() -> Result<()> {
        let rng = &mut Generator::new(3);
        let x = Tensor::randn([2, 5, 3, 4], rng, DType::F32)?;
        let (w, b) = (
            Tensor::randn([5], rng, DType::F32)?,
            Tensor::randn([5], rng, DType::F32)?,
        );
        let mut norm = LayerNorm2d::new(5)?;
        norm.weight.copy_(&w)?;
        norm.bias.copy_(&b)?;
        // by its formula, in other ops
        let mean = x.mean(&[1], true)?;
        let scale = x.var(&[1], 0, true)?.add_scalar(1e-6)?.rsqrt()?;
        let y = x.sub(&mean)?.mul(&scale)?.mul(&w.reshape([5, 1, 1])?)?;
        let wanted = y.add(&b.reshape([5, 1, 1])?)?.to_vec::<f32>()?;
        for device in devices()? {
            crate::nn::to_device(&mut norm, device)?;
            for x in [x.to(device)?, x.to(device)?.channels_last()?] {
                let y = norm.forward(&x, Mode::Train)?;
                assert!(y.layout().is_channels_last());
                for (y, w) in y.to_vec::<f32>()?.iter().zip(&wanted) {
                    assert!((y - w).abs() < 1e-5, "{y} {w}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn layer_norm_of_each_example() -> Result<()> {
        let x = Tensor::randn([4, 2, 8], &mut Generator::new(0), DType::F64)?.mul_scalar(3.0)?;
        let mut norm = LayerNorm::new([2, 8], 1e-5)?;
        crate::nn::to_dtype(&mut norm, DType::F64)?;
        let y = norm.forward(&x, Mode::Train)?.to_vec::<f64>()?;
        for example in y.chunks(16) {
            let mean = example.iter().sum::<f64>() / 16.0;
            let var = example.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / 16.0;
            assert!(
                mean.abs() < 1e-12 && (var - 1.0).abs() < 1e-4,
                "{mean} {var}"
            );
        }
        assert_eq!(norm.describe(), "LayerNorm([2, 8], eps=1e-5)");
        Ok(())
    }
}
