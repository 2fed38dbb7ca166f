//! An autoencoder, and the classifier that its encoder becomes: to learn from images without labels.

use serde::{Deserialize, Serialize};

use super::blocks::{encoder, fan_out, projected, square, stage};
use super::{check_list, check_scales, check_sizes};
use crate::error::{Error, Result};
use crate::nn::{
    Activation, BatchNorm2d, Conv2d, ConvTranspose2d, ConvTranspose2dConfig, GlobalAvgPool2d,
    Linear, Mode, Module, Residual, Sequential, Summary, Upsample, Visitor, nested,
};
use crate::ops::{Interpolation, Resize};
use crate::random::Generator;
use crate::tensor::Tensor;

/// The settings of an [`AutoEncoder`]; the defaults are Tiny-ImageNet's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoEncoderConfig {
    /// Channels of an image.
    pub in_channels: usize,
    /// Filters of the encoder's first convolution.
    pub stem_width: usize,
    /// Channels of the encoder's blocks; there are as many as numbers, and each halves the images.
    pub widths: Vec<usize>,
    /// Channels of the decoder's blocks but the last, which gives images: one fewer than `widths` has,
    /// so that it doubles as often as the encoder halves.
    pub decoder_widths: Vec<usize>,
    /// After each norm but the blocks' last ones, and after each block's sum, but for the two blocks
    /// that give images: theirs may be negative.
    pub activation: Activation,
    /// Strength of the L2 penalty that the Solver adds to the loss.
    pub reg: f64,
}

impl Default for AutoEncoderConfig {
    fn default() -> Self {
        AutoEncoderConfig {
            in_channels: 3,
            stem_width: 32,
            widths: vec![64, 128, 256, 256],
            decoder_widths: vec![256, 128, 64],
            activation: Activation::Relu,
            reg: 0.0,
        }
    }
}

impl AutoEncoderConfig {
    /// Refuse settings that make no network.
    pub fn validate(&self) -> Result<()> {
        check_sizes("in_channels", &[self.in_channels])?;
        check_sizes("stem_width", &[self.stem_width])?;
        check_list("widths", &self.widths)?;
        check_sizes("decoder_widths", &self.decoder_widths)?;
        // more often than this no image can be halved
        if self.widths.len() > 16 {
            let why = format!("{} blocks, expected at most 16", self.widths.len());
            return Err(Error::config("widths", why));
        }
        if self.decoder_widths.len() + 1 != self.widths.len() {
            let (found, blocks) = (self.decoder_widths.len(), self.widths.len());
            let why = format!("{found} numbers for {blocks} widths, expected one fewer than those");
            return Err(Error::config("decoder_widths", why));
        }
        check_scales(None, self.reg)
    }

    /// The encoder with weights that are still to be drawn.
    fn encoder(&self, rng: &mut Generator) -> Result<Sequential> {
        let first = [self.in_channels, self.stem_width];
        encoder(first, &self.widths, self.activation, rng)
    }

    /// Channels that the encoder gives.
    fn code(&self) -> usize {
        self.widths.last().copied().unwrap_or(0)
    }
}

/// The mirror of the encoder's block: a 3x3 transposed convolution that doubles the images, a 3x3
/// convolution, and a 1x1 convolution for a shortcut, whose pixels are repeated. A transposed 1x1
/// convolution has the same weights there, but would leave three of four pixels empty.
fn doubling(
    [from, to]: [usize; 2],
    activation: Activation,
    rng: &mut Generator,
) -> Result<Residual> {
    let twice = ConvTranspose2dConfig {
        stride: [2, 2],
        padding: [1, 1],
        output_padding: [1, 1],
        ..ConvTranspose2dConfig::new([3, 3])
    };
    let body = Sequential::new()
        .named("conv1", ConvTranspose2d::new(from, to, twice, rng)?)?
        .named("bn1", BatchNorm2d::new(to)?)?
        .named("act", activation.layer(rng)?)?
        .named(
            "conv2",
            stage([to, to], square(3, 1), Activation::Identity, rng)?,
        )?;
    let repeat = Upsample::new(Resize::Scale([2.0, 2.0]), Interpolation::Nearest)?;
    let shortcut = Sequential::new()
        .push(Conv2d::new(from, to, square(1, 1), rng)?)
        .push(repeat);
    Residual::new(body).shortcut("shortcut", shortcut)
}

/// A convolutional autoencoder (Masci et al. 2011) of residual blocks: [`TinyResNet`]'s 7x7
/// convolution and its blocks, narrower, down to a sixteenth of the images' height and width; then
/// blocks that double both, and one that smooths what comes out. Height and width must be a multiple
/// of 2 for each block of the encoder: of 16.
///
/// [`forward`](Module::forward) gives images again, to be compared with the input by the mean squared
/// error, say; they have no bounds, since the input is normalized.
///
/// With the defaults it has 4,303,590 parameters, 0.15 % fewer than the 4,310,059 of the network it
/// follows, of which no more is known than the decoder's widths and the encoder's last one.
///
/// [`TinyResNet`]: crate::models::TinyResNet
///
/// ```
/// # use cotangent::{DType, Tensor, random::Generator};
/// # use cotangent::models::{AutoEncoder, AutoEncoderConfig};
/// # use cotangent::nn::{Mode, Module};
/// let config = AutoEncoderConfig {
///     stem_width: 4,
///     widths: vec![4, 8],
///     decoder_widths: vec![4],
///     ..Default::default()
/// };
/// let rng = &mut Generator::new(0);
/// let mut net = AutoEncoder::new(config, rng)?;
/// let x = Tensor::ones([2, 3, 32, 32], DType::F32)?;
/// assert_eq!(net.encode(&x, Mode::Eval)?.shape()[..], [2, 8, 8, 8]);
/// assert_eq!(net.forward(&x, Mode::Eval)?.shape()[..], [2, 3, 32, 32]);
/// // trained on images alone, the encoder becomes a classifier
/// let mut classifier = net.classifier(10, rng)?;
/// assert_eq!(classifier.forward(&x, Mode::Eval)?.shape()[..], [2, 10]);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub struct AutoEncoder {
    /// What it was made from.
    pub config: AutoEncoderConfig,
    encoder: Sequential,
    decoder: Sequential,
}

impl AutoEncoder {
    /// With new weights from `rng`: Kaiming's for the gradients, biases of 0.
    pub fn new(config: AutoEncoderConfig, rng: &mut Generator) -> Result<Self> {
        config.validate()?;
        let activation = config.activation;
        let (mut from, mut decoder) = (config.code(), Sequential::new());
        for (i, &to) in (1..).zip(&config.decoder_widths) {
            let block = doubling([from, to], activation, rng)?.activation(activation, rng)?;
            decoder = decoder.named(&format!("block{i}"), block)?;
            from = to;
        }
        let images = config.in_channels;
        let n = config.widths.len();
        let decoder = decoder
            .named(
                &format!("block{n}"),
                doubling([from, images], activation, rng)?,
            )?
            .named(
                &format!("block{}", n + 1),
                projected([images, images], 1, activation, rng)?,
            )?;
        let mut net = AutoEncoder {
            encoder: config.encoder(rng)?,
            decoder,
            config,
        };
        fan_out(activation).apply(&mut net, rng)?;
        Ok(net)
    }

    /// The code of images (n, c, h, w): (n, c', h', w'), the last of `widths` as channels.
    pub fn encode(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.encoder.forward(x, mode)
    }

    /// A classifier that goes on with this encoder's weights and statistics; the decoder is dropped.
    pub fn classifier(self, num_classes: usize, rng: &mut Generator) -> Result<EncoderClassifier> {
        EncoderClassifier::with(self.config, self.encoder, num_classes, rng)
    }

    /// Refuse images that the decoder would not give back in their size.
    fn check(&self, x: &Tensor) -> Result<()> {
        let [_, _, h, w] = x.images("AutoEncoder")?;
        let step = 1 << self.config.widths.len();
        match [h, w].iter().all(|size| size.is_multiple_of(step)) {
            true => Ok(()),
            false => Err(Error::shape(
                "AutoEncoder",
                &[*x.shape()],
                format!(
                    "height and width of {:?} are no multiples of {step}",
                    x.shape()
                ),
            )),
        }
    }
}

impl Module for AutoEncoder {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.check(x)?;
        let code = self.encode(x, mode)?;
        self.decoder.forward(&code, mode)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.child("encoder", &mut self.encoder);
        v.child("decoder", &mut self.decoder);
    }

    fn reg(&self) -> f64 {
        self.config.reg
    }

    fn describe(&self) -> String {
        let parts = [
            ("encoder", self.encoder.describe()),
            ("decoder", self.decoder.describe()),
        ];
        nested("AutoEncoder", &parts)
    }

    fn summarize(&mut self, x: &Tensor, s: &mut Summary) -> Result<Tensor> {
        self.check(x)?;
        let code = s.child("encoder", |s| self.encoder.summarize(x, s))?;
        s.child("decoder", |s| self.decoder.summarize(&code, s))
    }
}

/// An [`AutoEncoder`]'s encoder with the mean over each channel and a linear layer behind it. Its
/// encoder has the names of the autoencoder's, so that
/// [`load_state_dict_partly`](crate::nn::load_state_dict_partly) takes it from a file, too.
pub struct EncoderClassifier {
    /// What the encoder was made from.
    pub config: AutoEncoderConfig,
    net: Sequential,
}

impl EncoderClassifier {
    /// With new weights from `rng`, the encoder's too: what it is to be compared with.
    pub fn new(config: AutoEncoderConfig, num_classes: usize, rng: &mut Generator) -> Result<Self> {
        config.validate()?;
        let mut encoder = config.encoder(rng)?;
        fan_out(config.activation).apply(&mut encoder, rng)?;
        Self::with(config, encoder, num_classes, rng)
    }

    fn with(
        config: AutoEncoderConfig,
        encoder: Sequential,
        num_classes: usize,
        rng: &mut Generator,
    ) -> Result<Self> {
        check_sizes("num_classes", &[num_classes])?;
        let mut fc = Linear::new(config.code(), num_classes, true, rng)?;
        fan_out(config.activation).apply(&mut fc, rng)?;
        let net = Sequential::new()
            .named("encoder", encoder)?
            .named("avgpool", GlobalAvgPool2d)?
            .named("fc", fc)?;
        Ok(EncoderClassifier { config, net })
    }
}

model!(EncoderClassifier);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::nn::{load_state_dict_partly, parameter_count, state_dict};
    use crate::ops::Reduction;
    use crate::optim::{Adam, AdamConfig, Optimizer};

    fn config() -> AutoEncoderConfig {
        AutoEncoderConfig {
            stem_width: 4,
            widths: vec![6, 8],
            decoder_widths: vec![6],
            ..Default::default()
        }
    }

    #[test]
    fn the_classifier_goes_on_with_the_encoder() -> Result<()> {
        let rng = &mut Generator::new(1);
        let mut net = AutoEncoder::new(config(), rng)?;
        let x = Tensor::randn([4, 3, 8, 8], rng, DType::F32)?;
        // statistics away from where they begin
        net.forward(&x, Mode::Train)?;
        let state = state_dict(&mut net);
        let code = net.encode(&x, Mode::Eval)?;
        assert_eq!(code.shape()[..], [4, 8, 2, 2]);
        let mut classifier = net.classifier(5, rng)?;
        let scores = |c: &mut EncoderClassifier| c.forward(&x, Mode::Eval)?.to_vec::<f32>();
        let got = scores(&mut classifier)?;
        let fc: Vec<_> = state_dict(&mut classifier)
            .into_iter()
            .filter(|(name, _)| name.starts_with("fc."))
            .collect();
        let mean = GlobalAvgPool2d.forward(&code, Mode::Eval)?;
        let want = mean.linear(&fc[0].1, Some(&fc[1].1))?.to_vec::<f32>()?;
        assert_eq!(got, want);

        // from a file: the encoder by its names, the linear layer new
        let mut loaded = EncoderClassifier::new(config(), 5, rng)?;
        let keys = load_state_dict_partly(&mut loaded, &state)?;
        assert_eq!(keys.missing_keys, ["fc.weight", "fc.bias"]);
        assert!(
            keys.unexpected_keys
                .iter()
                .all(|k| k.starts_with("decoder."))
        );
        assert!(!keys.unexpected_keys.is_empty());
        load_state_dict_partly(&mut loaded, &fc)?;
        assert_eq!(scores(&mut loaded)?, got);
        Ok(())
    }

    #[test]
    fn it_learns_to_give_images_back() -> Result<()> {
        let rng = &mut Generator::new(2);
        let mut net = AutoEncoder::new(config(), rng)?;
        let x = Tensor::randn([4, 3, 4, 4], rng, DType::F32)?;
        let smooth = Upsample::new(Resize::Scale([2.0, 2.0]), Interpolation::Nearest)?
            .forward(&x, Mode::Eval)?;
        let mut adam = Adam::new(AdamConfig {
            lr: 1e-2,
            ..Default::default()
        })?;
        let mut losses = Vec::new();
        for _ in 0..60 {
            let y = net.forward(&smooth, Mode::Train)?;
            let loss = y.mse_loss(&smooth, Reduction::Mean)?;
            losses.push(loss.item()?);
            let grads = loss.backward()?;
            drop((y, loss));
            adam.step(&mut net, &grads)?;
        }
        assert!(losses[59] < 0.3 * losses[0], "{losses:?}");
        Ok(())
    }

    #[test]
    fn the_summary_counts_every_parameter() -> Result<()> {
        let mut net = AutoEncoder::new(config(), &mut Generator::new(0))?;
        let s = Summary::of(&mut net, &Tensor::zeros([1, 3, 12, 8], DType::F32)?)?;
        assert_eq!(s.parameters(), parameter_count(&mut net));
        let output = |name: &str| s.rows.iter().find(|r| r.name == name).map(|r| r.output);
        for (name, want) in [
            ("encoder.block2.conv2", [1, 8, 3, 2]),
            ("decoder.block1.conv1", [1, 6, 6, 4]),
            ("decoder.block1.shortcut.0", [1, 6, 3, 2]),
            ("decoder.block2.conv2", [1, 3, 12, 8]),
            ("decoder.block3.shortcut", [1, 3, 12, 8]),
        ] {
            assert_eq!(output(name).as_deref(), Some(&want[..]), "{name}");
        }
        Ok(())
    }

    #[test]
    fn refused_settings_and_sizes() -> Result<()> {
        let refuse = |change: fn(&mut AutoEncoderConfig)| {
            let mut config = AutoEncoderConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(
            refuse(|c| c.decoder_widths = vec![256, 128]),
            "configuration: decoder_widths: 2 numbers for 4 widths, expected one fewer than those"
        );
        assert!(refuse(|c| c.decoder_widths = vec![1, 0, 1]).contains("decoder_widths: [1, 0, 1]"));
        assert!(refuse(|c| c.widths = vec![]).contains("widths: []"));
        assert!(refuse(|c| c.widths = vec![1; 17]).contains("widths: 17 blocks"));
        assert!(refuse(|c| c.widths = vec![0; 4]).contains("widths: [0, 0, 0, 0]"));
        assert!(refuse(|c| c.stem_width = 0).contains("stem_width"));
        assert!(refuse(|c| c.in_channels = 0).contains("in_channels"));
        assert!(refuse(|c| c.reg = -1.0).contains("reg"));
        assert!(serde_json::from_str::<AutoEncoderConfig>(r#"{"depth": 3}"#).is_err());

        let rng = &mut Generator::new(0);
        let e = EncoderClassifier::new(config(), 0, rng).err().unwrap();
        assert!(e.to_string().contains("num_classes: [0]"), "{e}");
        let mut net = AutoEncoder::new(config(), rng)?;
        let e = |net: &mut AutoEncoder, shape: &[usize]| {
            let x = Tensor::zeros(shape, DType::F32).unwrap();
            net.forward(&x, Mode::Eval).unwrap_err().to_string()
        };
        assert_eq!(
            e(&mut net, &[1, 3, 8, 6]),
            "AutoEncoder: height and width of [1, 3, 8, 6] are no multiples of 4"
        );
        assert!(e(&mut net, &[1, 3, 8]).contains("(N, C, H, W)"));
        Ok(())
    }
}
