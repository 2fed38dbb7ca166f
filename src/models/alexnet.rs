//! AlexNet for images of 56 to 64 pixels.

use serde::{Deserialize, Serialize};

use super::blocks::{fan_out, square, stage};
use super::{check_scales, check_sizes};
use crate::error::Result;
use crate::nn::{
    Activation, AdaptiveAvgPool2d, Flatten, Linear, LinearNormAct, MaxPool2d, Norm, Sequential,
};
use crate::random::Generator;
use crate::shape::Window;
use crate::tensor::Tensor;

/// The settings of an [`AlexNet`]; the defaults are Tiny-ImageNet's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlexNetConfig {
    /// Channels of an image.
    pub in_channels: usize,
    /// Filters of the convolutions, whose sizes are 11, 5, 3, 3 and 3.
    pub num_filters: [usize; 5],
    /// Units of the hidden layers.
    pub hidden_dims: [usize; 2],
    /// Scores an image.
    pub num_classes: usize,
    /// After each norm.
    pub activation: Activation,
    /// Strength of the L2 penalty that the Solver adds to the loss.
    pub reg: f64,
}

impl Default for AlexNetConfig {
    fn default() -> Self {
        AlexNetConfig {
            in_channels: 3,
            num_filters: [48, 128, 192, 192, 128],
            hidden_dims: [2048, 1024],
            num_classes: 200,
            activation: Activation::Relu,
            reg: 0.0,
        }
    }
}

impl AlexNetConfig {
    /// Refuse settings that make no network.
    pub fn validate(&self) -> Result<()> {
        check_sizes("in_channels", &[self.in_channels])?;
        check_sizes("num_filters", &self.num_filters)?;
        check_sizes("hidden_dims", &self.hidden_dims)?;
        check_sizes("num_classes", &[self.num_classes])?;
        check_scales(None, self.reg)
    }
}

/// Height and width of what the linear layers see.
const POOLED: usize = 6;

/// AlexNet (Krizhevsky et al. 2012) narrowed for Tiny-ImageNet, with batch norm in place of local
/// response norm and dropout: five convolutions, 3x3 max pools in steps of 2 behind the first, the
/// second and the last, three linear layers.
///
/// All convolutions move by 1 and are padded to keep the images' size, so that the pools make 6x6 of
/// any image of 55 to 62 pixels, of the 56 that Tiny-ImageNet is cropped to, say. The mean over 6x6
/// even windows, which changes nothing there, lets other sizes in, from 15 pixels on: of 64 the pools
/// make 7x7.
///
/// ```
/// # use cotangent::{DType, Tensor, random::Generator};
/// # use cotangent::models::{AlexNet, AlexNetConfig};
/// # use cotangent::nn::{Mode, Module};
/// let config = AlexNetConfig { num_filters: [4; 5], hidden_dims: [8, 8], ..Default::default() };
/// let mut net = AlexNet::new(config, &mut Generator::new(0))?;
/// let scores = net.forward(&Tensor::ones([2, 3, 56, 56], DType::F32)?, Mode::Eval)?;
/// assert_eq!(scores.shape()[..], [2, 200]);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub struct AlexNet {
    /// What it was made from.
    pub config: AlexNetConfig,
    net: Sequential,
}

impl AlexNet {
    /// With new weights from `rng`: Kaiming's for the gradients, biases of 0.
    pub fn new(config: AlexNetConfig, rng: &mut Generator) -> Result<Self> {
        config.validate()?;
        let activation = config.activation;
        let pool = || {
            MaxPool2d::new(Window {
                stride: [2, 2],
                ..Window::new([3, 3])
            })
        };
        let mut net = Sequential::new();
        let mut from = config.in_channels;
        let filters = config.num_filters.into_iter().zip([11, 5, 3, 3, 3]);
        for (i, (to, size)) in (1..).zip(filters) {
            let conv = stage([from, to], square(size, 1), activation, rng)?;
            net = net.named(&format!("conv{i}"), conv)?;
            if [1, 2, 5].contains(&i) {
                net = net.named(&format!("pool{i}"), pool())?;
            }
            from = to;
        }
        net = net
            .named("avgpool", AdaptiveAvgPool2d::new([POOLED, POOLED])?)?
            .named("flatten", Flatten)?;
        from *= POOLED * POOLED;
        for (i, to) in (1..).zip(config.hidden_dims) {
            let fc = LinearNormAct::new(from, to, Norm::Batch, activation, rng)?;
            net = net.named(&format!("fc{i}"), fc)?;
            from = to;
        }
        net = net.named("fc3", Linear::new(from, config.num_classes, true, rng)?)?;
        fan_out(activation).apply(&mut net, rng)?;
        Ok(AlexNet { config, net })
    }
}

model!(AlexNet);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::nn::{Mode, Module, Summary};

    #[test]
    fn the_pools_make_6x6_of_the_cropped_images() -> Result<()> {
        let config = AlexNetConfig {
            num_filters: [2; 5],
            hidden_dims: [3, 3],
            ..Default::default()
        };
        let mut net = AlexNet::new(config, &mut Generator::new(0))?;
        for (size, last) in [(54, 5), (55, 6), (56, 6), (62, 6), (64, 7), (15, 1)] {
            let s = Summary::of(&mut net, &Tensor::zeros([1, 3, size, size], DType::F32)?)?;
            let output = |name: &str| s.rows.iter().find(|r| r.name == name).map(|r| r.output);
            assert_eq!(output("pool5").as_deref(), Some(&[1, 2, last, last][..]));
            assert_eq!(output("avgpool").as_deref(), Some(&[1, 2, 6, 6][..]));
        }
        let x = Tensor::zeros([1, 3, 14, 14], DType::F32)?;
        assert!(net.forward(&x, Mode::Eval).is_err());
        Ok(())
    }

    #[test]
    fn refused_settings() {
        let refuse = |change: fn(&mut AlexNetConfig)| {
            let mut config = AlexNetConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(
            refuse(|c| c.num_filters[3] = 0),
            "configuration: num_filters: [48, 128, 192, 0, 128], expected at least 1"
        );
        assert!(refuse(|c| c.hidden_dims = [0, 1]).contains("hidden_dims: [0, 1]"));
        assert!(refuse(|c| c.in_channels = 0).contains("in_channels"));
        assert!(refuse(|c| c.num_classes = 0).contains("num_classes"));
        assert!(refuse(|c| c.reg = f64::NAN).contains("reg"));
        // five convolutions are five numbers
        let json = r#"{"num_filters": [1, 2, 3]}"#;
        assert!(serde_json::from_str::<AlexNetConfig>(json).is_err());
        assert!(serde_json::from_str::<AlexNetConfig>(r#"{"filters": 3}"#).is_err());
    }
}
