//! The networks by name, for the command line.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{
    AlexNet, AlexNetConfig, AutoEncoder, AutoEncoderConfig, ConvNeXt, ConvNeXtConfig, DeeperConfig,
    DeeperConvNet, DenseNet, DenseNetConfig, EncoderClassifier, FullyConnectedConfig,
    FullyConnectedNet, InceptionResNet, InceptionResNetConfig, ResNet, ResNetConfig, SmallResNet,
    SmallResNetConfig, Stem, ThreeLayerConfig, ThreeLayerConvNet, TinyResNet, TinyResNetConfig,
    TwoLayerConfig, TwoLayerNet, Vgg, VggConfig,
};
use crate::error::{Error, Result};
use crate::nn::Module;
use crate::random::Generator;

/// The names that [`build`] knows.
pub const NAMES: [&str; 18] = [
    "two_layer",
    "fully_connected",
    "three_layer",
    "deeper",
    "resnet18",
    "res9",
    "simp_res9",
    "vgg_a",
    "vgg_a_bn",
    "alexnet",
    "tiny_resnet",
    "inception_resnet",
    "densenet",
    "convnext_small",
    "convnext_base",
    "convnext_large",
    "autoencoder",
    "autoencoder_classifier",
];

/// A network by name with its default settings, for images of `input_dim` = (channels, height,
/// width). An autoencoder has no classes. Those that end in the mean over each channel are made for
/// any size; `forward` refuses images that are too small for them. `resnet9` is `res9`, too.
///
/// ```
/// # use cotangent::{models, nn};
/// let mut net = models::build("deeper", [3, 32, 32], 10, 0)?;
/// assert_eq!(nn::parameter_count(&mut *net), 1_658_902);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn build(
    name: &str,
    input_dim: [usize; 3],
    num_classes: usize,
    seed: u64,
) -> Result<Box<dyn Module>> {
    build_with(name, &Settings::new(), input_dim, num_classes, seed)
}

/// Keys of a network's configuration with what they are set to.
pub type Settings = serde_json::Map<String, serde_json::Value>;

/// [`build`] with some of the network's settings in place of its defaults. A key that its
/// configuration lacks, or a value of another type, is an [`Error::Config`].
pub fn build_with(
    name: &str,
    settings: &Settings,
    input_dim: [usize; 3],
    num_classes: usize,
    seed: u64,
) -> Result<Box<dyn Module>> {
    let rng = &mut Generator::new(seed);
    let [in_channels, height, width] = input_dim;
    Ok(match name {
        "two_layer" => {
            let config = TwoLayerConfig {
                input_dim,
                num_classes,
                ..Default::default()
            };
            Box::new(TwoLayerNet::new(with(config, settings)?, rng)?)
        }
        "fully_connected" => {
            let config = FullyConnectedConfig {
                input_dim,
                num_classes,
                ..Default::default()
            };
            Box::new(FullyConnectedNet::new(with(config, settings)?, rng)?)
        }
        "three_layer" => {
            let config = ThreeLayerConfig {
                input_dim,
                num_classes,
                ..Default::default()
            };
            Box::new(ThreeLayerConvNet::new(with(config, settings)?, rng)?)
        }
        "deeper" => {
            let config = DeeperConfig {
                input_dim,
                num_classes,
                ..Default::default()
            };
            Box::new(DeeperConvNet::new(with(config, settings)?, rng)?)
        }
        "resnet18" => {
            let config = ResNetConfig {
                in_channels,
                stem: Stem::of(height, width),
                num_classes,
                ..ResNetConfig::resnet18()
            };
            Box::new(ResNet::new(with(config, settings)?, rng)?)
        }
        "res9" | "resnet9" | "simp_res9" => {
            let config = SmallResNetConfig {
                in_channels,
                num_classes,
                ..match name {
                    "simp_res9" => SmallResNetConfig::simp_res9(),
                    _ => SmallResNetConfig::res9(),
                }
            };
            Box::new(SmallResNet::new(with(config, settings)?, rng)?)
        }
        "vgg_a" | "vgg_a_bn" => {
            let config = VggConfig {
                in_channels,
                num_classes,
                batch_norm: name == "vgg_a_bn",
                ..VggConfig::vgg_a()
            };
            Box::new(Vgg::new(with(config, settings)?, rng)?)
        }
        "alexnet" => {
            let config = AlexNetConfig {
                in_channels,
                num_classes,
                ..Default::default()
            };
            Box::new(AlexNet::new(with(config, settings)?, rng)?)
        }
        "tiny_resnet" => {
            let config = TinyResNetConfig {
                in_channels,
                num_classes,
                ..Default::default()
            };
            Box::new(TinyResNet::new(with(config, settings)?, rng)?)
        }
        "inception_resnet" => {
            let config = InceptionResNetConfig {
                in_channels,
                num_classes,
                ..Default::default()
            };
            Box::new(InceptionResNet::new(with(config, settings)?, rng)?)
        }
        "densenet" => {
            let config = DenseNetConfig {
                in_channels,
                num_classes,
                ..Default::default()
            };
            Box::new(DenseNet::new(with(config, settings)?, rng)?)
        }
        "convnext_small" | "convnext_base" | "convnext_large" => {
            let config = ConvNeXtConfig {
                in_channels,
                num_classes,
                ..match name {
                    "convnext_small" => ConvNeXtConfig::small(),
                    "convnext_base" => ConvNeXtConfig::base(),
                    _ => ConvNeXtConfig::large(),
                }
            };
            Box::new(ConvNeXt::new(with(config, settings)?, rng)?)
        }
        "autoencoder" | "autoencoder_classifier" => {
            let config = AutoEncoderConfig {
                in_channels,
                ..Default::default()
            };
            match name {
                "autoencoder" => Box::new(AutoEncoder::new(with(config, settings)?, rng)?),
                _ => Box::new(EncoderClassifier::new(
                    with(config, settings)?,
                    num_classes,
                    rng,
                )?),
            }
        }
        _ => return Err(unknown(name)),
    })
}

/// The network that learns the encoder of the classifier `name` from images alone; the same
/// settings make both. An [`Error::Config`] of a network without an encoder.
///
/// ```
/// # use cotangent::models::registry::autoencoder_of;
/// assert_eq!(autoencoder_of("autoencoder_classifier")?, "autoencoder");
/// assert!(autoencoder_of("deeper").is_err());
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn autoencoder_of(name: &str) -> Result<&'static str> {
    match name {
        "autoencoder_classifier" => Ok("autoencoder"),
        _ => {
            let why = format!("{name:?} has no encoder to train; expected autoencoder_classifier");
            Err(Error::config("pretrain", why))
        }
    }
}

/// A configuration with `settings` in place of what it says.
fn with<C: Serialize + DeserializeOwned>(config: C, settings: &Settings) -> Result<C> {
    let wrong = |e: serde_json::Error| Error::config("model", e.to_string());
    let mut all = serde_json::to_value(config).map_err(wrong)?;
    let known: Vec<String> = all
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, _)| k.clone())
        .collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    for (key, value) in settings {
        if !known.contains(&key.as_str()) {
            return Err(Error::config("model", nearest(key, &known)));
        }
        all[key] = value.clone();
    }
    serde_json::from_value(all).map_err(wrong)
}

fn unknown(name: &str) -> Error {
    let mut names = NAMES;
    names.sort_by_key(|known| distance(name, known));
    Error::config(
        "model",
        format!("{name:?} is unknown; there are {}", names.join(", ")),
    )
}

/// Says that `name` is none of the `known` ones, and which of them is meant most likely.
pub(crate) fn nearest(name: &str, known: &[&str]) -> String {
    match closest(name, known) {
        Some(found) => format!("{name:?} is unknown; the nearest is {found}"),
        None => format!("{name:?} is unknown; there is none"),
    }
}

/// The one of `known` that takes the fewest letters to be changed.
pub(crate) fn closest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known.iter().copied().min_by_key(|k| distance(name, k))
}

/// How many letters to insert, delete or replace to turn one into the other (Levenshtein 1966).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    // row[j]: from the letters of `a` seen so far to the first j of `b`
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("deeper", "deeper"), 0);
    }

    #[test]
    fn an_unknown_name_lists_the_names_the_nearest_first() {
        let e = |name| build(name, [3, 32, 32], 10, 0).err().unwrap().to_string();
        let text = e("tree_layer");
        let start =
            "configuration: model: \"tree_layer\" is unknown; there are three_layer, two_layer, ";
        assert!(text.starts_with(start), "{text}");
        for name in NAMES {
            assert!(text.contains(name), "{text}");
        }
        assert!(e("vgg_a_bm").contains("there are vgg_a_bn, vgg_a, "));
    }
}
