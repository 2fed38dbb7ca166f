//! ConvNeXt, with the reference's names.

use serde::{Deserialize, Serialize};

use super::{check_scales, check_sizes};
use crate::error::{Error, Result};
use crate::nn::{
    Activation, ActivationLayer, Conv2d, Conv2dConfig, DropPath, GlobalAvgPool2d, Identity, Init,
    LayerNorm, LayerNorm2d, LayerScale, Linear, Mode, Module, Sequential, Summary, Visitor, nested,
};
use crate::random::Generator;
use crate::tensor::Tensor;

/// The settings of a [`ConvNeXt`]; the defaults are the small one's for Tiny-ImageNet.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConvNeXtConfig {
    /// Channels of an image.
    pub in_channels: usize,
    /// Scores an image.
    pub num_classes: usize,
    /// Blocks of each stage; there are as many stages as numbers.
    pub depths: Vec<usize>,
    /// Channels of each stage.
    pub dims: Vec<usize>,
    /// Side of the first convolution's filters, which lie side by side.
    pub patch_size: usize,
    /// Between a block's linear layers.
    pub activation: Activation,
    /// The probability that a sample skips the last block's branch, 0 <= p < 1; it rises to this in
    /// equal steps, from 0 at the first block.
    pub drop_path: f64,
    /// What every number of a block's scale is at first.
    pub layer_scale_init: f64,
    /// Whether there are layer norms and the blocks' scales.
    pub normalization: bool,
    /// Whether a block's input is added to its output. Without it nothing is dropped either: a
    /// dropped sample would be lost, not skip a branch.
    pub residual: bool,
    /// Strength of the L2 penalty that the Solver adds to the loss.
    pub reg: f64,
}

impl Default for ConvNeXtConfig {
    fn default() -> Self {
        ConvNeXtConfig {
            in_channels: 3,
            num_classes: 200,
            depths: vec![3, 3, 9, 3],
            dims: vec![96, 192, 384, 768],
            patch_size: 4,
            activation: Activation::Gelu,
            drop_path: 0.0,
            layer_scale_init: 1e-6,
            normalization: true,
            residual: true,
            reg: 0.0,
        }
    }
}

impl ConvNeXtConfig {
    /// Of 18 blocks: what the paper calls ConvNeXt-T.
    pub fn small() -> Self {
        Self::default()
    }

    /// Of 27 blocks.
    pub fn base() -> Self {
        ConvNeXtConfig {
            depths: vec![3, 3, 18, 3],
            ..Self::default()
        }
    }

    /// Of 36 blocks: what the paper calls ConvNeXt-S.
    pub fn large() -> Self {
        ConvNeXtConfig {
            depths: vec![3, 3, 27, 3],
            ..Self::default()
        }
    }

    /// Refuse settings that make no network.
    pub fn validate(&self) -> Result<()> {
        check_sizes("in_channels", &[self.in_channels])?;
        check_sizes("num_classes", &[self.num_classes])?;
        check_sizes("depths", &self.depths)?;
        check_sizes("dims", &self.dims)?;
        check_sizes("patch_size", &[self.patch_size])?;
        if self.depths.is_empty() || self.depths.len() != self.dims.len() {
            let (depths, dims) = (self.depths.len(), self.dims.len());
            let why =
                format!("{dims} stages, but depths has {depths}; expected as many, at least 1");
            return Err(Error::config("dims", why));
        }
        if !(0.0..1.0).contains(&self.drop_path) {
            let why = format!("{}, expected 0 <= p < 1", self.drop_path);
            return Err(Error::config("drop_path", why));
        }
        if !self.layer_scale_init.is_finite() {
            let why = format!("{}, expected a finite number", self.layer_scale_init);
            return Err(Error::config("layer_scale_init", why));
        }
        check_scales(None, self.reg)
    }
}

/// Depthwise 7x7 convolution, layer norm, to four times the channels, the activation and back, the scale,
/// drop path, the sum. From the norm to the scale the channels are the last axis.
struct Block {
    dwconv: Conv2d,
    norm: Option<LayerNorm>,
    pwconv1: Linear,
    act: ActivationLayer,
    pwconv2: Linear,
    gamma: Option<LayerScale>,
    drop_path: Option<DropPath>,
    residual: bool,
}

impl Block {
    fn new(
        dim: usize,
        drop_path: f64,
        config: &ConvNeXtConfig,
        rng: &mut Generator,
    ) -> Result<Self> {
        let depthwise = Conv2dConfig {
            groups: dim,
            ..Conv2dConfig::same(7)
        };
        let (norm, gamma) = match config.normalization {
            true => (
                Some(LayerNorm::new(dim, 1e-6)?),
                Some(LayerScale::last(dim, config.layer_scale_init)?),
            ),
            false => (None, None),
        };
        Ok(Block {
            dwconv: Conv2d::new(dim, dim, depthwise, rng)?,
            norm,
            pwconv1: Linear::new(dim, 4 * dim, true, rng)?,
            act: config.activation.layer(rng)?,
            pwconv2: Linear::new(4 * dim, dim, true, rng)?,
            gamma,
            drop_path: match config.residual && drop_path > 0.0 {
                true => Some(DropPath::new(drop_path, rng)?),
                false => None,
            },
            residual: config.residual,
        })
    }

    /// What ends the block: drop path and the sum.
    fn join(&mut self, x: &Tensor, y: Tensor, mode: Mode) -> Result<Tensor> {
        let y = match &mut self.drop_path {
            Some(drop) => drop.forward(&y, mode)?,
            None => y,
        };
        match self.residual {
            true => x.add(&y),
            false => Ok(y),
        }
    }
}

impl Module for Block {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut y = self.dwconv.forward(x, mode)?.permute(&[0, 2, 3, 1])?;
        if let Some(norm) = &mut self.norm {
            y = norm.forward(&y, mode)?;
        }
        y = self.act.forward(&self.pwconv1.forward(&y, mode)?, mode)?;
        y = self.pwconv2.forward(&y, mode)?;
        if let Some(gamma) = &mut self.gamma {
            y = gamma.forward(&y, mode)?;
        }
        let y = y.permute(&[0, 3, 1, 2])?;
        self.join(x, y, mode)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        // the block's own parameter in the reference, which is why it has no name in between
        if let Some(gamma) = &mut self.gamma {
            gamma.visit(v);
        }
        v.child("dwconv", &mut self.dwconv);
        if let Some(norm) = &mut self.norm {
            v.child("norm", norm);
        }
        v.child("pwconv1", &mut self.pwconv1);
        v.child("act", &mut self.act);
        v.child("pwconv2", &mut self.pwconv2);
        if let Some(drop) = &mut self.drop_path {
            v.child("drop_path", drop);
        }
    }

    fn describe(&self) -> String {
        let mut parts = vec![("dwconv", self.dwconv.describe())];
        parts.extend(self.norm.iter().map(|n| ("norm", n.describe())));
        parts.push(("pwconv1", self.pwconv1.describe()));
        parts.push(("act", self.act.describe()));
        parts.push(("pwconv2", self.pwconv2.describe()));
        parts.extend(self.gamma.iter().map(|g| ("gamma", g.describe())));
        parts.extend(self.drop_path.iter().map(|d| ("drop_path", d.describe())));
        nested("Block", &parts)
    }

    fn summarize(&mut self, x: &Tensor, s: &mut Summary) -> Result<Tensor> {
        let y = s.child("dwconv", |s| self.dwconv.summarize(x, s))?;
        let mut y = y.permute(&[0, 2, 3, 1])?;
        if let Some(norm) = &mut self.norm {
            y = s.child("norm", |s| norm.summarize(&y, s))?;
        }
        y = s.child("pwconv1", |s| self.pwconv1.summarize(&y, s))?;
        y = self.act.forward(&y, s.mode())?;
        y = s.child("pwconv2", |s| self.pwconv2.summarize(&y, s))?;
        if let Some(gamma) = &mut self.gamma {
            y = s.child("gamma", |s| gamma.summarize(&y, s))?;
        }
        let y = y.permute(&[0, 3, 1, 2])?;
        self.join(x, y, s.mode())
    }
}

/// ConvNeXt (Liu et al. 2022): a convolution of patches, 4x4 in steps of 4, stages of blocks with a 2x2
/// convolution in steps of 2 between them, the mean over each channel, a linear layer. A layer norm
/// comes after the first convolution, before those between stages, in each block after the depthwise
/// convolution, and before the last layer. 32 pixels are the least for four stages.
///
/// Its parameters have the reference's names: `downsample_layers.0.0` is the first convolution,
/// `stages.2.8.pwconv1` a block's first linear layer. The widths are those of the paper's two smaller
/// networks, 96 to 768; here `small`, `base` and `large` differ in the third stage's depth.
///
/// ```
/// # use cotangent::{DType, Tensor, random::Generator};
/// # use cotangent::models::{ConvNeXt, ConvNeXtConfig};
/// # use cotangent::nn::{Mode, Module};
/// let config = ConvNeXtConfig {
///     depths: vec![1, 1],
///     dims: vec![4, 8],
///     drop_path: 0.1,
///     ..Default::default()
/// };
/// let mut net = ConvNeXt::new(config, &mut Generator::new(0))?;
/// let scores = net.forward(&Tensor::ones([2, 3, 64, 64], DType::F32)?, Mode::Train)?;
/// assert_eq!(scores.shape()[..], [2, 200]);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub struct ConvNeXt {
    /// What it was made from.
    pub config: ConvNeXtConfig,
    /// What comes before each stage.
    downsample_layers: Vec<Sequential>,
    stages: Vec<Sequential>,
    norm: Option<LayerNorm>,
    head: Linear,
}

/// Square filters side by side.
fn patches(size: usize) -> Conv2dConfig {
    Conv2dConfig {
        stride: [size; 2],
        ..Conv2dConfig::new([size; 2])
    }
}

/// A layer norm over the channels, or nothing in its place, so that its neighbour keeps its number.
fn push_norm(net: Sequential, dim: usize, config: &ConvNeXtConfig) -> Result<Sequential> {
    Ok(match config.normalization {
        true => net.push(LayerNorm2d::new(dim)?),
        false => net.push(Identity),
    })
}

impl ConvNeXt {
    /// With new weights from `rng`: normal with a standard deviation of 0.02, which the reference
    /// cuts off at 100 of those; biases of 0.
    pub fn new(config: ConvNeXtConfig, rng: &mut Generator) -> Result<Self> {
        config.validate()?;
        let blocks: usize = config.depths.iter().sum();
        let mut at = 0;
        let mut from = config.in_channels;
        let (mut downsample_layers, mut stages) = (Vec::new(), Vec::new());
        for (i, (&dim, &depth)) in config.dims.iter().zip(&config.depths).enumerate() {
            let mut layer = Sequential::new();
            if i == 0 {
                layer = layer.push(Conv2d::new(from, dim, patches(config.patch_size), rng)?);
                layer = push_norm(layer, dim, &config)?;
            } else {
                layer = push_norm(layer, from, &config)?;
                layer = layer.push(Conv2d::new(from, dim, patches(2), rng)?);
            }
            downsample_layers.push(layer);
            let mut stage = Sequential::new();
            for _ in 0..depth {
                let share = at as f64 / (blocks - 1).max(1) as f64;
                stage = stage.push(Block::new(dim, config.drop_path * share, &config, rng)?);
                at += 1;
            }
            stages.push(stage);
            from = dim;
        }
        let norm = match config.normalization {
            true => Some(LayerNorm::new(from, 1e-6)?),
            false => None,
        };
        let head = Linear::new(from, config.num_classes, true, rng)?;
        let mut net = ConvNeXt {
            config,
            downsample_layers,
            stages,
            norm,
            head,
        };
        Init::Normal(0.02).apply(&mut net, rng)?;
        Ok(net)
    }
}

impl Module for ConvNeXt {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut x = x.clone();
        for (layer, stage) in self.downsample_layers.iter_mut().zip(&mut self.stages) {
            x = layer.forward(&x, mode)?;
            x = stage.forward(&x, mode)?;
        }
        x = GlobalAvgPool2d.forward(&x, mode)?;
        if let Some(norm) = &mut self.norm {
            x = norm.forward(&x, mode)?;
        }
        self.head.forward(&x, mode)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        for (i, layer) in self.downsample_layers.iter_mut().enumerate() {
            v.child(&format!("downsample_layers.{i}"), layer);
        }
        for (i, stage) in self.stages.iter_mut().enumerate() {
            v.child(&format!("stages.{i}"), stage);
        }
        if let Some(norm) = &mut self.norm {
            v.child("norm", norm);
        }
        v.child("head", &mut self.head);
    }

    fn reg(&self) -> f64 {
        self.config.reg
    }

    fn describe(&self) -> String {
        let list = |of: &[Sequential]| {
            let parts = of.iter().enumerate();
            let parts: Vec<(String, String)> = parts
                .map(|(i, part)| (i.to_string(), part.describe()))
                .collect();
            let parts = parts.iter().map(|(i, part)| (i.as_str(), part.clone()));
            nested("ModuleList", &parts.collect::<Vec<_>>())
        };
        let mut parts = vec![
            ("downsample_layers", list(&self.downsample_layers)),
            ("stages", list(&self.stages)),
        ];
        parts.extend(self.norm.iter().map(|n| ("norm", n.describe())));
        parts.push(("head", self.head.describe()));
        nested("ConvNeXt", &parts)
    }

    fn summarize(&mut self, x: &Tensor, s: &mut Summary) -> Result<Tensor> {
        let mut x = x.clone();
        let stages = self.downsample_layers.iter_mut().zip(&mut self.stages);
        for (i, (layer, stage)) in stages.enumerate() {
            x = s.child(&format!("downsample_layers.{i}"), |s| {
                layer.summarize(&x, s)
            })?;
            x = s.child(&format!("stages.{i}"), |s| stage.summarize(&x, s))?;
        }
        x = GlobalAvgPool2d.forward(&x, s.mode())?;
        if let Some(norm) = &mut self.norm {
            x = s.child("norm", |s| norm.summarize(&x, s))?;
        }
        s.child("head", |s| self.head.summarize(&x, s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::nn::{named_parameters, parameter_count, visit};

    fn config() -> ConvNeXtConfig {
        ConvNeXtConfig {
            num_classes: 5,
            depths: vec![1, 2],
            dims: vec![4, 6],
            drop_path: 0.2,
            ..Default::default()
        }
    }

    fn names(net: &mut ConvNeXt) -> Vec<String> {
        named_parameters(net).into_iter().map(|p| p.0).collect()
    }

    #[test]
    fn names_are_the_references() -> Result<()> {
        let mut net = ConvNeXt::new(config(), &mut Generator::new(0))?;
        let mut want = Vec::new();
        for layer in ["0.0", "0.1", "1.0", "1.1"] {
            want.extend(["weight", "bias"].map(|p| format!("downsample_layers.{layer}.{p}")));
        }
        for block in ["0.0", "1.0", "1.1"] {
            want.push(format!("stages.{block}.gamma"));
            for layer in ["dwconv", "norm", "pwconv1", "pwconv2"] {
                want.extend(["weight", "bias"].map(|p| format!("stages.{block}.{layer}.{p}")));
            }
        }
        want.extend(["norm.weight", "norm.bias", "head.weight", "head.bias"].map(String::from));
        assert_eq!(names(&mut net), want);

        let bare = ConvNeXtConfig {
            normalization: false,
            ..config()
        };
        let mut bare = ConvNeXt::new(bare, &mut Generator::new(0))?;
        want.retain(|name| {
            let norms = ["downsample_layers.0.1", "downsample_layers.1.0", "norm."];
            !name.contains("gamma")
                && !name.contains(".norm.")
                && !norms.iter().any(|n| name.starts_with(n))
        });
        assert_eq!(names(&mut bare), want);
        Ok(())
    }

    #[test]
    fn drop_path_rises_with_depth() -> Result<()> {
        let rates_of = |config: ConvNeXtConfig| -> Result<Vec<String>> {
            let mut net = ConvNeXt::new(config, &mut Generator::new(0))?;
            let text = net.describe();
            let rates = text.lines().filter(|l| l.contains("DropPath"));
            let rates: Vec<String> = rates.map(|l| l.trim().into()).collect();
            let mut streams = 0;
            visit(&mut net, |_, slot| {
                streams += matches!(slot, crate::nn::Slot::Generator(_)) as usize;
            });
            assert_eq!(streams, rates.len());
            Ok(rates)
        };
        let want = [
            "(drop_path): DropPath(p=0.1)",
            "(drop_path): DropPath(p=0.2)",
        ];
        assert_eq!(rates_of(config())?, want);
        let none = [
            ConvNeXtConfig {
                drop_path: 0.0,
                ..config()
            },
            ConvNeXtConfig {
                residual: false,
                ..config()
            },
        ];
        for config in none {
            assert!(rates_of(config)?.is_empty());
        }
        Ok(())
    }

    #[test]
    fn the_summary_counts_every_parameter_and_runs_the_network() -> Result<()> {
        let x = Tensor::randn([1, 3, 64, 64], &mut Generator::new(1), DType::F32)?;
        for normalization in [true, false] {
            let config = ConvNeXtConfig {
                normalization,
                layer_scale_init: 0.5,
                ..config()
            };
            let mut net = ConvNeXt::new(config, &mut Generator::new(0))?;
            let mut s = Summary::default();
            let y = net.summarize(&x, &mut s)?;
            assert_eq!(s.parameters(), parameter_count(&mut net));
            let forward = net.forward(&x, Mode::Eval)?;
            assert_eq!(y.to_vec::<f32>()?, forward.to_vec::<f32>()?);
            let output = |name: &str| s.rows.iter().find(|r| r.name == name).map(|r| r.output);
            for (name, want) in [
                ("downsample_layers.0.0", [1, 4, 16, 16]),
                ("stages.1.1.dwconv", [1, 6, 8, 8]),
                ("stages.1.1.pwconv1", [1, 8, 8, 24]),
            ] {
                assert_eq!(output(name).as_deref(), Some(&want[..]), "{name}");
            }
            // 8x8 pixels, 6 to 24 channels and back; 49 taps
            let work = |name: &str| {
                s.rows
                    .iter()
                    .find(|r| r.name == name)
                    .map(|r| r.multiply_adds)
            };
            assert_eq!(work("stages.1.0.pwconv2"), Some(64 * 6 * 24));
            assert_eq!(work("stages.1.0.dwconv"), Some(64 * 6 * 49));
        }
        Ok(())
    }

    #[test]
    fn patches_and_activation_are_settings() -> Result<()> {
        let config = ConvNeXtConfig {
            patch_size: 2,
            activation: Activation::Rrelu,
            drop_path: 0.0,
            ..config()
        };
        let mut net = ConvNeXt::new(config, &mut Generator::new(0))?;
        assert!(net.describe().contains("(act): RReLU("));
        let mut streams = 0;
        visit(&mut net, |_, slot| {
            streams += matches!(slot, crate::nn::Slot::Generator(_)) as usize;
        });
        assert_eq!(streams, 3, "one a block");
        let x = Tensor::randn([1, 3, 16, 16], &mut Generator::new(1), DType::F32)?;
        let mut s = Summary::default();
        net.summarize(&x, &mut s)?;
        let first = s.rows.iter().find(|r| r.name == "downsample_layers.0.0");
        assert_eq!(first.map(|r| r.output.to_vec()), Some(vec![1, 4, 8, 8]));
        Ok(())
    }

    #[test]
    fn a_block_begins_as_its_shortcut() -> Result<()> {
        let x = Tensor::randn([2, 4, 5, 5], &mut Generator::new(1), DType::F32)?;
        let mut block = Block::new(4, 0.0, &config(), &mut Generator::new(0))?;
        let y = block.forward(&x, Mode::Train)?;
        for (x, y) in x.to_vec::<f32>()?.iter().zip(y.to_vec::<f32>()?) {
            assert!((x - y).abs() < 1e-4);
        }
        let config = ConvNeXtConfig {
            residual: false,
            ..config()
        };
        let mut block = Block::new(4, 0.0, &config, &mut Generator::new(0))?;
        let y = block.forward(&x, Mode::Train)?.to_vec::<f32>()?;
        assert!(y.iter().all(|y| y.abs() < 1e-4));
        Ok(())
    }

    #[test]
    fn refused_settings() {
        let refuse = |change: fn(&mut ConvNeXtConfig)| {
            let mut config = ConvNeXtConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(
            refuse(|c| c.dims = vec![3]),
            "configuration: dims: 1 stages, but depths has 4; expected as many, at least 1"
        );
        assert!(refuse(|c| (c.dims, c.depths) = (vec![], vec![])).contains("dims: 0 stages"));
        assert_eq!(
            refuse(|c| c.depths = vec![3, 0, 9, 3]),
            "configuration: depths: [3, 0, 9, 3], expected at least 1"
        );
        assert!(refuse(|c| c.dims[1] = 0).contains("dims: [96, 0, 384, 768]"));
        assert!(refuse(|c| c.drop_path = 1.0).contains("drop_path: 1"));
        assert!(refuse(|c| c.drop_path = f64::NAN).contains("drop_path: NaN"));
        assert!(refuse(|c| c.layer_scale_init = f64::NAN).contains("layer_scale_init: NaN"));
        assert!(refuse(|c| c.patch_size = 0).contains("patch_size"));
        assert!(refuse(|c| c.in_channels = 0).contains("in_channels"));
        assert!(refuse(|c| c.num_classes = 0).contains("num_classes"));
        assert!(refuse(|c| c.reg = -1.0).contains("reg"));
        let json = r#"{"depths": [3, 3, 27, 3], "residual": true}"#;
        let read: ConvNeXtConfig = serde_json::from_str(json).unwrap();
        assert_eq!(read, ConvNeXtConfig::large());
        assert!(serde_json::from_str::<ConvNeXtConfig>(r#"{"drop_path_rate": 0.1}"#).is_err());
    }
}
