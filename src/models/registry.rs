//! The networks by name, for the command line.

use super::{
    DeeperConfig, DeeperConvNet, FullyConnectedConfig, FullyConnectedNet, ResNet, ResNetConfig,
    Stem, ThreeLayerConfig, ThreeLayerConvNet, TwoLayerConfig, TwoLayerNet,
};
use crate::error::{Error, Result};
use crate::nn::Module;
use crate::random::Generator;

/// The names that [`build`] knows.
pub const NAMES: [&str; 5] = [
    "two_layer",
    "fully_connected",
    "three_layer",
    "deeper",
    "resnet18",
];

/// A network by name with its default settings, for images of `input_dim` = (channels, height,
/// width).
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
    let rng = &mut Generator::new(seed);
    Ok(match name {
        "two_layer" => {
            let config = TwoLayerConfig {
                input_dim,
                num_classes,
                ..Default::default()
            };
            Box::new(TwoLayerNet::new(config, rng)?)
        }
        "fully_connected" => {
            let config = FullyConnectedConfig {
                input_dim,
                num_classes,
                ..Default::default()
            };
            Box::new(FullyConnectedNet::new(config, rng)?)
        }
        "three_layer" => {
            let config = ThreeLayerConfig {
                input_dim,
                num_classes,
                ..Default::default()
            };
            Box::new(ThreeLayerConvNet::new(config, rng)?)
        }
        "deeper" => {
            let config = DeeperConfig {
                input_dim,
                num_classes,
                ..Default::default()
            };
            Box::new(DeeperConvNet::new(config, rng)?)
        }
        "resnet18" => {
            let [in_channels, height, width] = input_dim;
            let config = ResNetConfig {
                in_channels,
                stem: Stem::of(height, width),
                num_classes,
                ..ResNetConfig::resnet18()
            };
            Box::new(ResNet::new(config, rng)?)
        }
        _ => return Err(unknown(name)),
    })
}

fn unknown(name: &str) -> Error {
    let mut names = NAMES;
    names.sort_by_key(|known| distance(name, known));
    Error::config(
        "model",
        format!("{name:?} is unknown; there are {}", names.join(", ")),
    )
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
    fn every_name_builds() {
        for name in NAMES {
            assert!(build(name, [1, 8, 8], 4, 0).is_ok(), "{name}");
        }
    }

    #[test]
    fn an_unknown_name_lists_the_names() {
        let e = build("tree_layer", [3, 32, 32], 10, 0).err().unwrap();
        assert_eq!(
            e.to_string(),
            "configuration: model: \"tree_layer\" is unknown; there are three_layer, two_layer, deeper, resnet18, fully_connected"
        );
    }
}
