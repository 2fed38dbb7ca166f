//! The convolution layer, alone and with the norm and the activation that follow it.

use crate::error::{Error, Result};
use crate::nn::{Activation, ActivationLayer, BatchNorm2d, Fan, Init, Mode, Module, Norm, Visitor};
use crate::random::Generator;
use crate::shape::Window;
use crate::tensor::Tensor;

/// A convolution's settings but for its channels; pairs are (height, width).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conv2dConfig {
    /// The filters' size.
    pub kernel_size: [usize; 2],
    /// The filters' steps.
    pub stride: [usize; 2],
    /// Zeros at each side.
    pub padding: [usize; 2],
    /// Steps within a filter.
    pub dilation: [usize; 2],
    /// Into how many groups the channels fall; each sees only its own.
    pub groups: usize,
    /// Whether a number is added to each output channel.
    pub bias: bool,
}

impl Conv2dConfig {
    /// PyTorch's defaults: stride 1, no padding, with bias.
    pub fn new(kernel_size: [usize; 2]) -> Self {
        Conv2dConfig {
            kernel_size,
            stride: [1, 1],
            padding: [0, 0],
            dilation: [1, 1],
            groups: 1,
            bias: true,
        }
    }

    /// Square filters with padding (size - 1) / 2: an odd size keeps the images' size.
    pub fn same(size: usize) -> Self {
        Conv2dConfig {
            padding: [size.saturating_sub(1) / 2; 2],
            ..Self::new([size, size])
        }
    }

    fn window(&self) -> Window {
        Window {
            kernel: self.kernel_size,
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
        }
    }
}

/// Cross-correlation with a bank of filters: (n, ci, h, w) to (n, co, h', w').
pub struct Conv2d {
    /// (co, ci / groups, kh, kw).
    pub weight: Tensor,
    /// (co).
    pub bias: Option<Tensor>,
    config: Conv2dConfig,
}

impl Conv2d {
    /// Weight and bias uniform within 1 / sqrt(ci / groups kh kw), as PyTorch draws them.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor, random::Generator};
    /// # use cotangent::nn::{Conv2d, Conv2dConfig, Mode, Module};
    /// let mut conv = Conv2d::new(3, 32, Conv2dConfig::same(7), &mut Generator::new(0))?;
    /// let y = conv.forward(&Tensor::ones([1, 3, 8, 8], DType::F32)?, Mode::Eval)?;
    /// assert_eq!(y.shape()[..], [1, 32, 8, 8]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn new(
        in_channels: usize,
        out_channels: usize,
        config: Conv2dConfig,
        rng: &mut Generator,
    ) -> Result<Self> {
        let fail = |why| Err(Error::argument("Conv2d", why));
        let groups = config.groups;
        if in_channels == 0 || out_channels == 0 {
            return fail(format!(
                "{in_channels} to {out_channels} channels, expected at least 1 of each"
            ));
        }
        if groups == 0
            || ![in_channels, out_channels]
                .iter()
                .all(|c| c.is_multiple_of(groups))
        {
            return fail(format!(
                "groups {groups} does not divide {in_channels} to {out_channels} channels"
            ));
        }
        for (name, pair) in [
            ("kernel_size", config.kernel_size),
            ("stride", config.stride),
            ("dilation", config.dilation),
        ] {
            if pair.contains(&0) {
                return fail(format!("{name} is {pair:?}, expected at least 1"));
            }
        }
        let shape = [
            out_channels,
            in_channels / groups,
            config.kernel_size[0],
            config.kernel_size[1],
        ];
        let weight = Init::pytorch().make(shape, rng)?;
        let bound = 1.0 / (Fan::In.of(weight.shape())? as f64).sqrt();
        let bias = match config.bias {
            true => Some(Init::Uniform(bound).make([out_channels], rng)?),
            false => None,
        };
        Ok(Conv2d {
            weight,
            bias,
            config,
        })
    }

    /// The layer with the activation that follows it, of which ReLU is computed in one pass with it.
    fn forward_act(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let (w, b) = (&self.weight, self.bias.as_ref());
        let (window, groups) = (self.config.window(), self.config.groups);
        match activation {
            Activation::Relu => x.conv2d_relu(w, b, window, groups),
            other => other.of(&x.conv2d(w, b, window, groups)?),
        }
    }

    /// What [`Module::describe`] prints between the brackets: what differs from the defaults.
    fn settings(&self) -> String {
        let c = self.config;
        let shape = self.weight.shape();
        let mut s = format!(
            "{}, {}, kernel_size={:?}",
            shape[1] * c.groups,
            shape[0],
            c.kernel_size
        );
        let default = Conv2dConfig::new(c.kernel_size);
        for (name, pair, usual) in [
            ("stride", c.stride, default.stride),
            ("padding", c.padding, default.padding),
            ("dilation", c.dilation, default.dilation),
        ] {
            if pair != usual {
                s += &format!(", {name}={pair:?}");
            }
        }
        if c.groups != 1 {
            s += &format!(", groups={}", c.groups);
        }
        if self.bias.is_none() {
            s += ", bias=False";
        }
        s
    }
}

impl Module for Conv2d {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        self.forward_act(x, Activation::Identity)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.parameter("weight", &mut self.weight);
        v.optional("bias", &mut self.bias);
    }

    fn describe(&self) -> String {
        format!("Conv2d({})", self.settings())
    }
}

/// Convolution, batch norm if there is one, activation: one module, so that one kernel can serve
/// it. ReLU after the convolution or batch norm is computed with it in one pass.
pub struct ConvNormAct {
    conv: Conv2d,
    norm: Option<BatchNorm2d>,
    activation: ActivationLayer,
}

impl ConvNormAct {
    /// From (n, ci, h, w) to (n, co, h', w'). There is no stage with layer norm.
    pub fn new(
        in_channels: usize,
        out_channels: usize,
        config: Conv2dConfig,
        norm: Norm,
        activation: Activation,
        rng: &mut Generator,
    ) -> Result<Self> {
        Ok(ConvNormAct {
            conv: Conv2d::new(in_channels, out_channels, config, rng)?,
            norm: match norm {
                Norm::None => None,
                Norm::Batch => Some(BatchNorm2d::new(out_channels)?),
                Norm::Layer => {
                    return Err(Error::argument(
                        "ConvNormAct",
                        "the norm is layernorm, expected none or batchnorm",
                    ));
                }
            },
            activation: activation.layer(rng)?,
        })
    }
}

impl Module for ConvNormAct {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let (conv, activation) = (&mut self.conv, self.activation.fused());
        let y = match &mut self.norm {
            None => conv.forward_act(x, activation)?,
            Some(norm) => norm.forward_act(&conv.forward(x, mode)?, mode, activation)?,
        };
        self.activation.after(y, mode)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.child("conv", &mut self.conv);
        if let Some(norm) = &mut self.norm {
            v.child("norm", norm);
        }
        v.child("activation", &mut self.activation);
    }

    fn describe(&self) -> String {
        let norm = if self.norm.is_some() {
            ", BatchNorm2d"
        } else {
            ""
        };
        format!(
            "ConvNormAct({}{norm}, {})",
            self.conv.settings(),
            self.activation.describe()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::nn::{gradcheck, state_dict, to_dtype};

    #[test]
    fn shapes_and_description() -> Result<()> {
        let mut rng = Generator::new(0);
        let config = Conv2dConfig {
            groups: 2,
            bias: false,
            stride: [2, 2],
            ..Conv2dConfig::same(3)
        };
        let mut conv = Conv2d::new(4, 6, config, &mut rng)?;
        assert_eq!(conv.weight.shape()[..], [6, 2, 3, 3]);
        let y = conv.forward(&Tensor::ones([2, 4, 7, 8], DType::F32)?, Mode::Eval)?;
        assert_eq!(y.shape()[..], [2, 6, 4, 4]);
        assert_eq!(
            conv.describe(),
            "Conv2d(4, 6, kernel_size=[3, 3], stride=[2, 2], padding=[1, 1], groups=2, bias=False)"
        );
        Ok(())
    }

    #[test]
    fn refused_settings() {
        let refuse = |ci, co, config| {
            Conv2d::new(ci, co, config, &mut Generator::new(0))
                .err()
                .unwrap()
                .to_string()
        };
        let groups = |groups| Conv2dConfig {
            groups,
            ..Conv2dConfig::new([3, 3])
        };
        assert_eq!(
            refuse(3, 4, groups(2)),
            "Conv2d: groups 2 does not divide 3 to 4 channels"
        );
        assert_eq!(
            refuse(3, 4, groups(0)),
            "Conv2d: groups 0 does not divide 3 to 4 channels"
        );
        assert_eq!(
            refuse(3, 4, Conv2dConfig::same(0)),
            "Conv2d: kernel_size is [0, 0], expected at least 1"
        );
        assert_eq!(
            refuse(3, 0, groups(1)),
            "Conv2d: 3 to 0 channels, expected at least 1 of each"
        );
        let (config, relu) = (Conv2dConfig::same(3), Activation::Relu);
        let layer = ConvNormAct::new(3, 4, config, Norm::Layer, relu, &mut Generator::new(0));
        assert!(layer.err().unwrap().to_string().contains("layernorm"));
    }

    #[test]
    fn fused_or_not_the_stage_is_its_parts() -> Result<()> {
        let mut rng = Generator::new(2);
        let x = Tensor::randn([3, 2, 5, 4], &mut rng, DType::F64)?;
        for activation in [Activation::Relu, Activation::Silu] {
            let mut stage = ConvNormAct::new(
                2,
                3,
                Conv2dConfig::same(3),
                Norm::Batch,
                activation,
                &mut rng,
            )?;
            to_dtype(&mut stage, DType::F64)?;
            let names: Vec<String> = state_dict(&mut stage).into_iter().map(|s| s.0).collect();
            assert_eq!(
                names,
                [
                    "conv.weight",
                    "conv.bias",
                    "norm.weight",
                    "norm.bias",
                    "norm.running_mean",
                    "norm.running_var",
                    "norm.num_batches_tracked"
                ]
            );
            for mode in [Mode::Train, Mode::Eval] {
                let whole = stage.forward(&x, mode)?.to_vec::<f64>()?;
                let h = stage.conv.forward(&x, mode)?;
                let h = stage.norm.as_mut().unwrap().forward(&h, mode)?;
                let parts = activation.of(&h)?.to_vec::<f64>()?;
                for (a, b) in whole.iter().zip(&parts) {
                    assert!((a - b).abs() < 1e-12, "{activation:?} {mode:?}: {a} {b}");
                }
                let report = gradcheck(&mut stage, &x, mode, 20)?;
                assert!(report.passed(), "{activation:?} {mode:?}: {report}");
            }
        }
        Ok(())
    }
}
