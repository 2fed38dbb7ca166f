//! The convolution layer, alone and with the norm and the activation that follow it.

use crate::error::{Error, Result};
use crate::nn::{Activation, ActivationLayer, BatchNorm2d, Fan, Init, Mode, Module, Norm, Visitor};
use crate::random::Generator;
use crate::shape::{Shape, Window};
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
        let channels = [in_channels, out_channels];
        check("Conv2d", channels, config.window(), config.groups)?;
        let [kh, kw] = config.kernel_size;
        let shape = [out_channels, in_channels / config.groups, kh, kw];
        let bias = config.bias.then_some(out_channels);
        let (weight, bias) = drawn(shape, bias, rng)?;
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
        s += &unusual(c.window(), [0, 0], c.groups, self.bias.is_some());
        s
    }
}

/// Refuse channels, windows and groups that no convolution has.
fn check(op: &'static str, [ci, co]: [usize; 2], window: Window, groups: usize) -> Result<()> {
    let fail = |why| Err(Error::argument(op, why));
    if ci == 0 || co == 0 {
        return fail(format!(
            "{ci} to {co} channels, expected at least 1 of each"
        ));
    }
    if groups == 0 || ![ci, co].iter().all(|c| c.is_multiple_of(groups)) {
        return fail(format!(
            "groups {groups} does not divide {ci} to {co} channels"
        ));
    }
    for (name, pair) in [
        ("kernel_size", window.kernel),
        ("stride", window.stride),
        ("dilation", window.dilation),
    ] {
        if pair.contains(&0) {
            return fail(format!("{name} is {pair:?}, expected at least 1"));
        }
    }
    Ok(())
}

/// A weight, and a bias of so many channels, as PyTorch draws them: both uniform within 1 / sqrt(fan
/// in), where the weight's second axis counts as its inputs.
fn drawn(
    shape: [usize; 4],
    bias: Option<usize>,
    rng: &mut Generator,
) -> Result<(Tensor, Option<Tensor>)> {
    let weight = Init::pytorch().make(shape, rng)?;
    let bound = 1.0 / (Fan::In.of(weight.shape())? as f64).sqrt();
    let bias = bias.map(|co| Init::Uniform(bound).make([co], rng));
    Ok((weight, bias.transpose()?))
}

/// What a description adds of the settings that differ from the defaults.
fn unusual(window: Window, output_padding: [usize; 2], groups: usize, bias: bool) -> String {
    let mut s = String::new();
    for (name, pair, usual) in [
        ("stride", window.stride, [1, 1]),
        ("padding", window.padding, [0, 0]),
        ("dilation", window.dilation, [1, 1]),
        ("output_padding", output_padding, [0, 0]),
    ] {
        if pair != usual {
            s += &format!(", {name}={pair:?}");
        }
    }
    if groups != 1 {
        s += &format!(", groups={groups}");
    }
    if !bias {
        s += ", bias=False";
    }
    s
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

    fn multiply_adds(&self, _: &Shape, output: &Shape) -> usize {
        self.weight.numel() * output[2..].iter().product::<usize>()
    }
}

/// A transposed convolution's settings but for its channels; pairs are (height, width).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConvTranspose2dConfig {
    /// The filters' size.
    pub kernel_size: [usize; 2],
    /// How far apart the filters of neighbouring pixels lie in the output.
    pub stride: [usize; 2],
    /// Rows and columns cut off at each side of the output.
    pub padding: [usize; 2],
    /// Rows and columns added at the end of the output: fewer than the stride or the dilation.
    pub output_padding: [usize; 2],
    /// Steps within a filter.
    pub dilation: [usize; 2],
    /// Into how many groups the channels fall; each sees only its own.
    pub groups: usize,
    /// Whether a number is added to each output channel.
    pub bias: bool,
}

impl ConvTranspose2dConfig {
    /// PyTorch's defaults: stride 1, no padding, with bias.
    pub fn new(kernel_size: [usize; 2]) -> Self {
        ConvTranspose2dConfig {
            kernel_size,
            stride: [1, 1],
            padding: [0, 0],
            output_padding: [0, 0],
            dilation: [1, 1],
            groups: 1,
            bias: true,
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

/// A convolution run backwards, which makes images larger: (n, ci, h, w) to (n, co, h', w').
pub struct ConvTranspose2d {
    /// (ci, co / groups, kh, kw).
    pub weight: Tensor,
    /// (co).
    pub bias: Option<Tensor>,
    config: ConvTranspose2dConfig,
}

impl ConvTranspose2d {
    /// Weight and bias uniform within 1 / sqrt(co / groups kh kw), as PyTorch draws them.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor, random::Generator};
    /// # use cotangent::nn::{ConvTranspose2d, ConvTranspose2dConfig, Mode, Module};
    /// let twice = ConvTranspose2dConfig { stride: [2, 2], ..ConvTranspose2dConfig::new([2, 2]) };
    /// let mut up = ConvTranspose2d::new(8, 3, twice, &mut Generator::new(0))?;
    /// let y = up.forward(&Tensor::ones([1, 8, 5, 4], DType::F32)?, Mode::Eval)?;
    /// assert_eq!(y.shape()[..], [1, 3, 10, 8]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn new(
        in_channels: usize,
        out_channels: usize,
        config: ConvTranspose2dConfig,
        rng: &mut Generator,
    ) -> Result<Self> {
        let (op, groups) = ("ConvTranspose2d", config.groups);
        check(op, [in_channels, out_channels], config.window(), groups)?;
        let extra = config.output_padding;
        config.window().check_output_padding(op, extra)?;
        let [kh, kw] = config.kernel_size;
        let shape = [in_channels, out_channels / groups, kh, kw];
        let (weight, bias) = drawn(shape, config.bias.then_some(out_channels), rng)?;
        Ok(ConvTranspose2d {
            weight,
            bias,
            config,
        })
    }
}

impl Module for ConvTranspose2d {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        let c = &self.config;
        let bias = self.bias.as_ref();
        x.conv_transpose2d(&self.weight, bias, c.window(), c.output_padding, c.groups)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.parameter("weight", &mut self.weight);
        v.optional("bias", &mut self.bias);
    }

    fn describe(&self) -> String {
        let (c, shape) = (self.config, self.weight.shape());
        format!(
            "ConvTranspose2d({}, {}, kernel_size={:?}{})",
            shape[0],
            shape[1] * c.groups,
            c.kernel_size,
            unusual(c.window(), c.output_padding, c.groups, self.bias.is_some())
        )
    }

    fn multiply_adds(&self, input: &Shape, _: &Shape) -> usize {
        self.weight.numel() * input[2..].iter().product::<usize>()
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

    fn multiply_adds(&self, input: &Shape, output: &Shape) -> usize {
        self.conv.multiply_adds(input, output)
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
    fn the_transposed_layer_undoes_a_convolutions_shapes() -> Result<()> {
        let mut rng = Generator::new(0);
        let config = ConvTranspose2dConfig {
            groups: 2,
            bias: false,
            stride: [2, 2],
            padding: [1, 1],
            output_padding: [0, 1],
            ..ConvTranspose2dConfig::new([3, 3])
        };
        let mut layer = ConvTranspose2d::new(6, 4, config, &mut rng)?;
        assert_eq!(layer.weight.shape()[..], [6, 2, 3, 3]);
        let y = layer.forward(&Tensor::ones([2, 6, 4, 4], DType::F32)?, Mode::Eval)?;
        assert_eq!(y.shape()[..], [2, 4, 7, 8]);
        assert_eq!(
            layer.describe(),
            "ConvTranspose2d(6, 4, kernel_size=[3, 3], stride=[2, 2], padding=[1, 1], output_padding=[0, 1], groups=2, bias=False)"
        );
        // PyTorch's bound, from the weight's second axis
        let bound = 1.0 / 18f64.sqrt();
        let weight = layer.weight.to_dtype(DType::F64)?.to_vec::<f64>()?;
        let greatest = weight.iter().fold(0f64, |m, w| m.max(w.abs()));
        assert!(greatest <= bound && greatest > 0.9 * bound, "{greatest}");
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
        let config = ConvTranspose2dConfig {
            output_padding: [0, 2],
            stride: [2, 2],
            ..ConvTranspose2dConfig::new([3, 3])
        };
        let layer = ConvTranspose2d::new(3, 4, config, &mut Generator::new(0));
        assert_eq!(
            layer.err().unwrap().to_string(),
            "ConvTranspose2d: output_padding [0, 2] is not smaller than stride [2, 2] or dilation [1, 1]"
        );
        let layer = ConvTranspose2d::new(0, 4, config, &mut Generator::new(0));
        assert_eq!(
            layer.err().unwrap().to_string(),
            "ConvTranspose2d: 0 to 4 channels, expected at least 1 of each"
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
