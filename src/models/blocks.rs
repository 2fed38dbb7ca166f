//! What several networks are made of: the stage of a convolution, the residual block with a bare
//! projection, and how the networks for Tiny-ImageNet begin.

use crate::error::Result;
use crate::nn::{
    Activation, Conv2d, Conv2dConfig, ConvNormAct, Fan, Init, Norm, Residual, Sequential,
};
use crate::random::Generator;

/// Square filters of an odd size that keep the images' size, or divide it by the stride.
pub(super) fn square(size: usize, stride: usize) -> Conv2dConfig {
    Conv2dConfig {
        stride: [stride; 2],
        ..Conv2dConfig::same(size)
    }
}

/// A convolution, batch norm and the activation.
pub(super) fn stage(
    [from, to]: [usize; 2],
    filter: Conv2dConfig,
    activation: Activation,
    rng: &mut Generator,
) -> Result<ConvNormAct> {
    ConvNormAct::new(from, to, filter, Norm::Batch, activation, rng)
}

/// Two 3x3 convolutions with their norms, the first with the activation and the stride, beside a
/// 1x1 convolution without a norm, which is there where both shapes agree, too. The sum is bare:
/// an activation may follow.
pub(super) fn projected(
    [from, to]: [usize; 2],
    stride: usize,
    activation: Activation,
    rng: &mut Generator,
) -> Result<Residual> {
    let plain = Activation::Identity;
    let body = Sequential::new()
        .named(
            "conv1",
            stage([from, to], square(3, stride), activation, rng)?,
        )?
        .named("conv2", stage([to, to], square(3, 1), plain, rng)?)?;
    let shortcut = Conv2d::new(from, to, square(1, stride), rng)?;
    Residual::new(body).shortcut("shortcut", shortcut)
}

/// A 7x7 convolution that keeps the images' size, then a block for each width, each of which halves
/// them.
pub(super) fn encoder(
    [channels, stem]: [usize; 2],
    widths: &[usize],
    activation: Activation,
    rng: &mut Generator,
) -> Result<Sequential> {
    let first = stage([channels, stem], square(7, 1), activation, rng)?;
    let mut net = Sequential::new().named("stem", first)?;
    let mut from = stem;
    for (i, &to) in (1..).zip(widths) {
        let block = projected([from, to], 2, activation, rng)?.activation(activation, rng)?;
        net = net.named(&format!("block{i}"), block)?;
        from = to;
    }
    Ok(net)
}

/// Kaiming's normal distribution for the gradients: the initial weights of all networks for
/// Tiny-ImageNet, in linear layers, too.
pub(super) fn fan_out(activation: Activation) -> Init {
    Init::KaimingNormal(Fan::Out, activation)
}
