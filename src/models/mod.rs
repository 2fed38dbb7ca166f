//! The networks: each a configuration and a sequence of layers made from it.

/// [`Module`](crate::nn::Module) for a model that is its `net`.
macro_rules! model {
    ($name:ident) => {
        impl crate::nn::Module for $name {
            fn forward(&mut self, x: &Tensor, mode: crate::nn::Mode) -> Result<Tensor> {
                self.net.forward(x, mode)
            }

            fn visit(&mut self, visitor: &mut crate::nn::Visitor<'_>) {
                self.net.visit(visitor);
            }

            fn reg(&self) -> f64 {
                self.config.reg
            }

            fn describe(&self) -> String {
                self.net.describe_as(stringify!($name))
            }

            fn summarize(
                &mut self,
                x: &Tensor,
                summary: &mut crate::nn::Summary,
            ) -> Result<Tensor> {
                self.net.summarize(x, summary)
            }
        }
    };
}

mod alexnet;
mod autoencoder;
mod blocks;
mod convnext;
mod deeper;
mod densenet;
mod fully_connected;
mod inception_resnet;
pub mod registry;
mod resnet;
mod small_resnet;
mod three_layer;
mod tiny_resnet;
mod vgg;

use crate::error::{Error, Result};
use crate::nn::{Activation, Fan, Init};
use crate::shape::Shape;

pub use alexnet::{AlexNet, AlexNetConfig};
pub use autoencoder::{AutoEncoder, AutoEncoderConfig, EncoderClassifier};
pub use convnext::{ConvNeXt, ConvNeXtConfig};
pub use deeper::{DeeperConfig, DeeperConvNet};
pub use densenet::{DenseNet, DenseNetConfig};
pub use fully_connected::{FullyConnectedConfig, FullyConnectedNet, TwoLayerConfig, TwoLayerNet};
pub use inception_resnet::{InceptionResNet, InceptionResNetConfig};
pub use registry::{Settings, build, build_with};
pub(crate) use registry::{closest, nearest};
pub use resnet::{ResNet, ResNetConfig, Stem};
pub use small_resnet::{SmallBlock, SmallResNet, SmallResNetConfig, StemKernel};
pub use three_layer::{ThreeLayerConfig, ThreeLayerConvNet};
pub use tiny_resnet::{TinyResNet, TinyResNetConfig};
pub use vgg::{Vgg, VggConfig};

/// The assignment's initial weights, or Kaiming's for ReLU where no scale is given. Biases are 0
/// with both.
fn initial(weight_scale: Option<f64>) -> Init {
    match weight_scale {
        Some(std) => Init::Normal(std),
        None => Init::KaimingNormal(Fan::In, Activation::Relu),
    }
}

/// Every one of these sizes is at least 1.
fn check_sizes(key: &'static str, sizes: &[usize]) -> Result<()> {
    match sizes.contains(&0) {
        true => Err(Error::config(
            key,
            format!("{sizes:?}, expected at least 1"),
        )),
        false => Ok(()),
    }
}

/// How many numbers an image of these sizes has.
fn features(sizes: &[usize]) -> Result<usize> {
    let why = || Error::config("input_dim", format!("{sizes:?}, which no memory holds"));
    Shape::new(sizes).map(|s| s.numel()).map_err(|_| why())
}

/// There is at least one of these sizes, and each is at least 1.
fn check_list(key: &'static str, sizes: &[usize]) -> Result<()> {
    match sizes.is_empty() {
        true => Err(Error::config(key, "[], expected at least one")),
        false => check_sizes(key, sizes),
    }
}

/// Filters of odd size, so that padding keeps the images' size.
fn check_filter(size: usize) -> Result<()> {
    match size % 2 {
        1 => Ok(()),
        _ => Err(Error::config(
            "filter_size",
            format!("{size}, expected an odd number"),
        )),
    }
}

/// What scales the initial weights and the penalty is finite and not negative.
fn check_scales(weight_scale: Option<f64>, reg: f64) -> Result<()> {
    for (key, value) in [("weight_scale", weight_scale.unwrap_or(0.0)), ("reg", reg)] {
        if !(value >= 0.0 && value.is_finite()) {
            return Err(Error::config(key, format!("{value}, expected at least 0")));
        }
    }
    Ok(())
}

/// The share of elements that dropout keeps.
fn check_keep_ratio(ratio: f64) -> Result<()> {
    match ratio > 0.0 && ratio <= 1.0 {
        true => Ok(()),
        false => Err(Error::config(
            "dropout_keep_ratio",
            format!("{ratio}, expected above 0 and at most 1"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::nn::{
        self, Mode, Module, Norm, Slot, Summary, gradcheck, load_state_dict, parameter_count,
        state_dict, to_dtype,
    };
    use crate::ops::CrossEntropy;
    use crate::optim::{Optimizer, Sgd, SgdConfig};
    use crate::random::Generator;
    use crate::tensor::Tensor;

    /// That numbers drawn about 0 have this deviation, within four of the estimate's own.
    pub fn assert_deviation(name: &str, v: &[f32], want: f64) {
        let std = (v.iter().map(|x| (*x as f64).powi(2)).sum::<f64>() / v.len() as f64).sqrt();
        let tolerance = 4.0 / (2.0 * v.len() as f64).sqrt();
        assert!(
            (std / want - 1.0).abs() < tolerance,
            "{name}: {std}, {want}"
        );
    }

    fn rng() -> Generator {
        Generator::new(11)
    }

    fn names(m: &mut dyn Module) -> Vec<String> {
        state_dict(m).into_iter().map(|(name, _)| name).collect()
    }

    /// Smooth, so that no central difference crosses a kink.
    const SMOOTH: Activation = Activation::Silu;

    /// A network and the shape of its images.
    type Narrow = (Box<dyn Module>, [usize; 4]);

    /// Narrow networks of every kind for three classes, in F64.
    fn narrow() -> Result<Vec<Narrow>> {
        let rng = &mut rng();
        let input_dim = [1, 6, 6];
        let mut all: Vec<Narrow> = Vec::new();
        let mut add = |m: Box<dyn Module>, shape| all.push((m, shape));
        let images = [4, 1, 6, 6];
        let config = TwoLayerConfig {
            input_dim,
            hidden_dim: 5,
            num_classes: 3,
            weight_scale: None,
            reg: 0.0,
        };
        add(Box::new(TwoLayerNet::new(config, rng)?), images);
        let config = ThreeLayerConfig {
            input_dim,
            num_filters: 3,
            filter_size: 3,
            hidden_dim: 5,
            num_classes: 3,
            weight_scale: None,
            reg: 0.0,
        };
        add(Box::new(ThreeLayerConvNet::new(config, rng)?), images);
        for normalization in [Norm::None, Norm::Batch, Norm::Layer] {
            let config = FullyConnectedConfig {
                input_dim,
                hidden_dims: vec![6, 5],
                num_classes: 3,
                normalization,
                dropout_keep_ratio: 0.7,
                weight_scale: None,
                reg: 0.0,
            };
            add(Box::new(FullyConnectedNet::new(config, rng)?), images);
        }
        for (use_batchnorm, num_filters) in [(false, vec![2, 3]), (true, vec![2, 3, 2])] {
            let config = DeeperConfig {
                input_dim,
                num_filters,
                hidden_dim: 5,
                num_classes: 3,
                use_batchnorm,
                use_dropout: true,
                weight_scale: None,
                ..Default::default()
            };
            add(Box::new(DeeperConvNet::new(config, rng)?), images);
        }
        for (stem, activation) in [
            (Stem::Cifar, Activation::Relu),
            (Stem::ImageNet, Activation::Silu),
        ] {
            let config = ResNetConfig {
                in_channels: 1,
                depths: vec![1, 2],
                width: 3,
                stem,
                num_classes: 3,
                activation,
                ..Default::default()
            };
            add(Box::new(ResNet::new(config, rng)?), images);
        }
        for batch_norm in [false, true] {
            let config = VggConfig {
                in_channels: 1,
                stages: vec![vec![2], vec![3, 2]],
                hidden_dims: vec![4],
                num_classes: 3,
                batch_norm,
                activation: SMOOTH,
                reg: 0.0,
            };
            add(Box::new(Vgg::new(config, rng)?), images);
        }
        for (stem, block) in [
            (StemKernel::Three, SmallBlock::Basic),
            (StemKernel::ThreeThree, SmallBlock::Simplified),
        ] {
            let config = SmallResNetConfig {
                in_channels: 1,
                stem,
                block,
                widths: vec![2, 4],
                num_classes: 3,
                activation: Activation::Mish,
                reg: 0.0,
            };
            add(Box::new(SmallResNet::new(config, rng)?), images);
        }
        let config = TinyResNetConfig {
            in_channels: 1,
            stem_width: 2,
            widths: vec![3, 2],
            num_classes: 3,
            activation: SMOOTH,
            reg: 0.0,
        };
        add(Box::new(TinyResNet::new(config, rng)?), images);
        let config = DenseNetConfig {
            in_channels: 1,
            stem_width: 2,
            widths: vec![3, 2],
            depth: 2,
            num_classes: 3,
            activation: SMOOTH,
            reg: 0.0,
        };
        add(Box::new(DenseNet::new(config, rng)?), images);
        let config = AlexNetConfig {
            in_channels: 1,
            num_filters: [2, 2, 3, 2, 2],
            hidden_dims: [4, 5],
            num_classes: 3,
            activation: SMOOTH,
            reg: 0.0,
        };
        add(Box::new(AlexNet::new(config, rng)?), [6, 1, 15, 15]);
        let config = InceptionResNetConfig {
            in_channels: 1,
            width: 2,
            blocks: [1, 1],
            num_classes: 3,
            activation: SMOOTH,
            ..Default::default()
        };
        add(Box::new(InceptionResNet::new(config, rng)?), [2, 1, 33, 33]);
        for (normalization, residual) in
            [(true, true), (false, true), (true, false), (false, false)]
        {
            let config = ConvNeXtConfig {
                patch_size: 4,
                activation: Activation::Gelu,
                in_channels: 1,
                num_classes: 3,
                depths: vec![1, 2],
                dims: vec![3, 4],
                drop_path: 0.3,
                layer_scale_init: 0.5,
                normalization,
                residual,
                reg: 0.0,
            };
            add(Box::new(ConvNeXt::new(config, rng)?), [3, 1, 16, 16]);
        }
        let config = AutoEncoderConfig {
            in_channels: 1,
            stem_width: 2,
            widths: vec![3, 4],
            decoder_widths: vec![3],
            activation: SMOOTH,
            reg: 0.0,
        };
        let classifier = EncoderClassifier::new(config.clone(), 3, rng)?;
        add(Box::new(AutoEncoder::new(config, rng)?), [2, 1, 8, 8]);
        add(Box::new(classifier), [2, 1, 8, 8]);
        for (m, _) in &mut all {
            to_dtype(&mut **m, DType::F64)?;
            // with biases of 0, an example that dropout empties lies on ReLU's kink
            nn::try_visit(&mut **m, |_, slot| match slot {
                Slot::Parameter(t) => {
                    let nudge = Tensor::randn(t.shape(), rng, DType::F64)?.mul_scalar(0.1)?;
                    t.copy_(&t.detach().add(&nudge)?)
                }
                Slot::Buffer(_) | Slot::Generator(_) => Ok(()),
            })?;
        }
        Ok(all)
    }

    fn images(shape: [usize; 4]) -> Result<Tensor> {
        Tensor::randn(shape, &mut rng(), DType::F64)
    }

    #[test]
    fn gradients_of_whole_models() -> Result<()> {
        for (mut m, shape) in narrow()? {
            let x = images(shape)?;
            // a deep network has many parameters to look at
            let samples = match nn::named_parameters(&mut *m).len() {
                0..40 => 6,
                _ => 2,
            };
            for mode in [Mode::Train, Mode::Eval] {
                let report = gradcheck(&mut *m, &x, mode, samples)?;
                assert!(report.passed(), "{mode:?} {}: {report}", m.describe());
            }
        }
        Ok(())
    }

    #[test]
    fn every_parameter_gets_a_gradient() -> Result<()> {
        for (mut m, shape) in narrow()? {
            let y = m.forward(&images(shape)?, Mode::Eval)?;
            let weights = Tensor::randn(y.shape(), &mut rng(), DType::F64)?;
            let grads = y.backward_from(&weights)?;
            let named = nn::named_parameters(&mut *m);
            let c = grads.coverage(named.iter().map(|(name, t)| (name.clone(), t)))?;
            assert_eq!(c.healthy, named.len(), "{}: {c:?}", m.describe());
        }
        Ok(())
    }

    #[test]
    fn default_counts() -> Result<()> {
        let (cifar, tiny) = (32, 64);
        let table = [
            ("two_layer", cifar, 3072 * 100 + 100 + 1010),
            ("fully_connected", cifar, 3072 * 100 + 100 + 10100 + 1010),
            (
                "three_layer",
                cifar,
                32 * 147 + 32 + 100 * 32 * 256 + 100 + 10 * 100 + 10,
            ),
            (
                "deeper",
                cifar,
                32 * 27 + 32 + 64 * 288 + 64 + 100 * 64 * 256 + 100 + 1010,
            ),
            ("resnet18", cifar, 11_173_962),
            ("res9", cifar, 2_268_538),
            ("simp_res9", cifar, 897_770),
            ("vgg_a", cifar, 9_750_922),
            // a weight and a bias for each of 2,752 channels
            ("vgg_a_bn", cifar, 9_750_922 + 2 * 2752),
            ("alexnet", tiny, 12_695_784),
            ("tiny_resnet", tiny, 5_013_640),
            ("inception_resnet", tiny, 7_156_184),
            ("densenet", tiny, 11_809_672),
            // ConvNeXt-T's and -S's 28,589,128 and 50,223,688, with 200 classes in place of 1,000
            ("convnext_small", tiny, 28_589_128 - 800 * 769),
            ("convnext_base", tiny, 38_791_208),
            ("convnext_large", tiny, 50_223_688 - 800 * 769),
            ("autoencoder", tiny, 4_303_590),
            ("autoencoder_classifier", tiny, 2_459_136 + 200 * 257),
        ];
        assert_eq!(table.map(|(name, ..)| name), registry::NAMES);
        for (name, size, count) in table {
            let classes = if size == cifar { 10 } else { 200 };
            let mut m = build(name, [3, size, size], classes, 0)?;
            assert_eq!(parameter_count(&mut *m), count, "{name}");
            // the small one tells as much, and sooner
            if ["convnext_base", "convnext_large"].contains(&name) {
                continue;
            }
            let s = Summary::of(&mut *m, &Tensor::zeros([1, 3, size, size], DType::F32)?)?;
            assert_eq!(s.parameters(), count, "{name}");
            let last = s.rows.last().map(|r| r.output.to_vec());
            let want = match name {
                "autoencoder" => vec![1, 3, size, size],
                _ => vec![1, classes],
            };
            assert_eq!(last, Some(want), "{name}");
        }
        Ok(())
    }

    #[test]
    fn another_name_for_a_network() -> Result<()> {
        let count = |name| Ok::<_, Error>(parameter_count(&mut *build(name, [1, 8, 8], 4, 0)?));
        assert_eq!(count("resnet9")?, count("res9")?);
        Ok(())
    }

    #[test]
    fn default_weights_have_the_assignments_scale() -> Result<()> {
        let mut m = build("three_layer", [3, 32, 32], 10, 0)?;
        for (name, t) in state_dict(&mut *m) {
            let v = t.to_vec::<f32>()?;
            let std = (v.iter().map(|x| (*x as f64).powi(2)).sum::<f64>() / v.len() as f64).sqrt();
            if nn::is_decayed(&name, &t) {
                assert!((std / 1e-3 - 1.0).abs() < 0.1, "{name}: {std}");
            } else {
                assert_eq!(std, 0.0, "{name}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_seed_decides_the_weights() -> Result<()> {
        let weights = |seed| -> Result<Vec<f32>> {
            let mut m = build("three_layer", [1, 8, 8], 3, seed)?;
            state_dict(&mut *m)[0].1.to_vec()
        };
        assert_eq!(weights(1)?, weights(1)?);
        assert_ne!(weights(1)?, weights(2)?);
        Ok(())
    }

    #[test]
    fn names_of_the_deeper_network() -> Result<()> {
        let config = DeeperConfig {
            input_dim: [3, 9, 8],
            num_filters: vec![2, 3, 4],
            hidden_dim: 5,
            use_batchnorm: true,
            use_dropout: true,
            ..Default::default()
        };
        let mut m = DeeperConvNet::new(config, &mut rng())?;
        let norm = [
            "weight",
            "bias",
            "running_mean",
            "running_var",
            "num_batches_tracked",
        ];
        let mut want = Vec::new();
        for stage in ["conv1", "conv2", "conv3", "fc1"] {
            let first = if stage == "fc1" { "linear" } else { "conv" };
            want.push(format!("{stage}.{first}.weight"));
            want.push(format!("{stage}.{first}.bias"));
            want.extend(norm.map(|n| format!("{stage}.norm.{n}")));
        }
        want.extend(["fc2.weight".to_string(), "fc2.bias".to_string()]);
        assert_eq!(names(&mut m), want);
        // the third convolution stands alone: no pool follows it
        let want = [
            "DeeperConvNet(",
            "  (conv1): ConvNormAct(3, 2, kernel_size=[3, 3], padding=[1, 1], BatchNorm2d, ReLU())",
            "  (conv2): ConvNormAct(2, 3, kernel_size=[3, 3], padding=[1, 1], BatchNorm2d, ReLU())",
            "  (pool1): MaxPool2d(kernel_size=[2, 2], stride=[2, 2])",
            "  (conv3): ConvNormAct(3, 4, kernel_size=[3, 3], padding=[1, 1], BatchNorm2d, ReLU())",
            "  (flatten): Flatten()",
            "  (fc1): LinearNormAct(64, 5, BatchNorm1d, ReLU())",
            "  (dropout1): Dropout(p=0.5)",
            "  (fc2): Linear(5, 10)",
            ")",
        ];
        assert_eq!(m.describe(), want.join("\n"));
        Ok(())
    }

    #[test]
    fn state_dict_round_trip_and_its_errors() -> Result<()> {
        for ((mut from, shape), (mut to, _)) in narrow()?.into_iter().zip(narrow()?) {
            let x = images(shape)?;
            // move weights and statistics away from where both models start
            from.forward(&x, Mode::Train)?;
            Init::Normal(0.3).apply(&mut *from, &mut Generator::new(99))?;
            let state = state_dict(&mut *from);
            let out = |m: &mut dyn Module| m.forward(&x, Mode::Eval)?.to_vec::<f64>();
            let want = out(&mut *from)?;
            let before = out(&mut *to)?;
            assert_ne!(before, want);

            let error = |m: &mut dyn Module, state: &[(String, Tensor)]| {
                load_state_dict(m, state).unwrap_err().to_string()
            };
            let (name, last) = state.last().cloned().unwrap();
            let e = error(&mut *to, &state[..state.len() - 1]);
            assert_eq!(
                e,
                format!(
                    "checkpoint state_dict: {name}: missing; the model wants {:?}",
                    last.shape()
                )
            );
            let mut more = state.clone();
            more.push(("fc9.weight".into(), last.clone()));
            let e = error(&mut *to, &more);
            assert!(e.contains("fc9.weight: the model has no such"), "{e}");
            let mut other = state.clone();
            other[0].1 = Tensor::zeros([1, 2], DType::F64)?;
            let e = error(&mut *to, &other);
            assert!(e.contains("has shape [1, 2], the model wants"), "{e}");
            assert_eq!(out(&mut *to)?, before, "a refused state changed the model");

            load_state_dict(&mut *to, &state)?;
            assert_eq!(out(&mut *to)?, want);
            assert!(
                nn::named_parameters(&mut *to)
                    .iter()
                    .all(|p| p.1.is_tracked())
            );
        }
        Ok(())
    }

    #[test]
    fn a_residual_network_draws_random_slopes_in_training_alone() -> Result<()> {
        let config = ResNetConfig {
            depths: vec![1],
            width: 2,
            activation: Activation::Rrelu,
            ..Default::default()
        };
        let mut m = ResNet::new(config, &mut rng())?;
        let x = Tensor::randn([2, 3, 8, 8], &mut rng(), DType::F32)?;
        let mut twice = |mode| -> Result<bool> {
            let [a, b] = [m.forward(&x, mode)?, m.forward(&x, mode)?];
            Ok(a.to_vec::<f32>()? == b.to_vec::<f32>()?)
        };
        assert!(!twice(Mode::Train)?);
        assert!(twice(Mode::Eval)?);
        Ok(())
    }

    #[test]
    fn residual_networks_are_torchvisions() -> Result<()> {
        // torchvision's resnet18 and resnet34 for ImageNet, of a quarter of their width
        for (config, count) in [
            (ResNetConfig::resnet18(), 831_096),
            (ResNetConfig::resnet34(), 1_464_248),
        ] {
            let config = ResNetConfig {
                width: 16,
                stem: Stem::ImageNet,
                num_classes: 1000,
                ..config
            };
            let mut m = ResNet::new(config, &mut rng())?;
            assert_eq!(parameter_count(&mut m), count);
        }
        let config = ResNetConfig {
            depths: vec![1, 1],
            width: 4,
            stem: Stem::ImageNet,
            zero_init_residual: true,
            ..Default::default()
        };
        let mut m = ResNet::new(config, &mut rng())?;
        let want = [
            "ResNet(",
            "  (conv1): Conv2d(3, 4, kernel_size=[7, 7], stride=[2, 2], padding=[3, 3], bias=False)",
            "  (bn1): BatchNorm2d(4, eps=1e-5, momentum=0.1)",
            "  (relu): ReLU()",
            "  (maxpool): MaxPool2d(kernel_size=[3, 3], stride=[2, 2], padding=[1, 1])",
            "  (layer1): Sequential(",
            "    (0): BasicBlock(",
            "      (conv1): Conv2d(4, 4, kernel_size=[3, 3], padding=[1, 1], bias=False)",
            "      (bn1): BatchNorm2d(4, eps=1e-5, momentum=0.1)",
            "      (relu): ReLU()",
            "      (conv2): Conv2d(4, 4, kernel_size=[3, 3], padding=[1, 1], bias=False)",
            "      (bn2): BatchNorm2d(4, eps=1e-5, momentum=0.1)",
            "    )",
            "  )",
            "  (layer2): Sequential(",
            "    (0): BasicBlock(",
            "      (conv1): Conv2d(4, 8, kernel_size=[3, 3], stride=[2, 2], padding=[1, 1], bias=False)",
            "      (bn1): BatchNorm2d(8, eps=1e-5, momentum=0.1)",
            "      (relu): ReLU()",
            "      (conv2): Conv2d(8, 8, kernel_size=[3, 3], padding=[1, 1], bias=False)",
            "      (bn2): BatchNorm2d(8, eps=1e-5, momentum=0.1)",
            "      (downsample): Sequential(",
            "        (0): Conv2d(4, 8, kernel_size=[1, 1], stride=[2, 2], bias=False)",
            "        (1): BatchNorm2d(8, eps=1e-5, momentum=0.1)",
            "      )",
            "    )",
            "  )",
            "  (fc): Linear(8, 10)",
            ")",
        ];
        assert_eq!(m.describe(), want.join("\n"));
        // stem 32 -> 16 -> 8, and half of that in the second stage
        let x = Tensor::randn([2, 3, 32, 32], &mut rng(), DType::F32)?;
        let mut s = Summary::default();
        let y = m.summarize(&x, &mut s)?;
        let shape = |name: &str| s.rows.iter().find(|r| r.name == name).map(|r| r.output);
        for (name, want) in [
            ("conv1", [2, 4, 16, 16]),
            ("layer1.0.conv2", [2, 4, 8, 8]),
            ("layer2.0.downsample.1", [2, 8, 4, 4]),
        ] {
            assert_eq!(shape(name).as_deref(), Some(&want[..]), "{name}");
        }
        assert_eq!(s.parameters(), parameter_count(&mut m));
        let forward = m.forward(&x, Mode::Eval)?;
        assert_eq!(y.to_vec::<f32>()?, forward.to_vec::<f32>()?);
        // where each block begins as its shortcut, what its convolutions are does not matter
        let block = |name: &str| name == "layer1.0.conv1.weight" || name == "layer2.0.conv2.weight";
        nn::try_visit(&mut m, |name, slot| match slot {
            Slot::Parameter(t) if block(name) => t.copy_(&t.mul_scalar(-3.0)?),
            _ => Ok(()),
        })?;
        assert_eq!(
            m.forward(&x, Mode::Eval)?.to_vec::<f32>()?,
            y.to_vec::<f32>()?
        );
        Ok(())
    }

    #[test]
    fn initial_values_of_a_residual_network() -> Result<()> {
        let config = ResNetConfig {
            depths: vec![1, 1],
            width: 32,
            ..Default::default()
        };
        let mut m = ResNet::new(config, &mut rng())?;
        for (name, t) in nn::named_parameters(&mut m) {
            let v = t.to_vec::<f32>()?;
            let all = |x: f32| v.iter().all(|y| *y == x);
            if name.contains("bn") || name.contains("downsample.1") {
                assert!(
                    all(if name.ends_with("weight") { 1.0 } else { 0.0 }),
                    "{name}"
                );
                continue;
            }
            let want = match t.shape()[..] {
                // kaiming_normal_ with mode="fan_out", nonlinearity="relu"
                [out, _, h, w] => (2.0 / (out * h * w) as f64).sqrt(),
                // uniform within 1 / sqrt(64)
                _ => (1.0 / 64.0 / 3.0f64).sqrt(),
            };
            assert_deviation(&name, &v, want);
        }
        Ok(())
    }

    #[test]
    fn a_residual_network_learns_a_batch() -> Result<()> {
        let config = ResNetConfig {
            depths: vec![1, 1],
            width: 8,
            num_classes: 4,
            ..Default::default()
        };
        let mut m = ResNet::new(config, &mut rng())?;
        let x = Tensor::randn([8, 3, 8, 8], &mut rng(), DType::F32)?;
        let labels = Tensor::from_vec((0..8).map(|i| i % 4).collect::<Vec<i64>>(), [8])?;
        let mut sgd = Sgd::new(SgdConfig {
            lr: 0.1,
            momentum: 0.9,
            ..SgdConfig::default()
        })?;
        let mut losses = Vec::new();
        for _ in 0..25 {
            let scores = m.forward(&x, Mode::Train)?;
            let loss = scores.cross_entropy(&labels, &CrossEntropy::default())?;
            losses.push(loss.item()?);
            let grads = loss.backward()?;
            drop((scores, loss));
            sgd.step(&mut m, &grads)?;
        }
        assert!(losses[0] > 1.0 && losses[24] < 0.1, "{losses:?}");
        Ok(())
    }

    #[test]
    fn summary_of_the_three_layer_network() -> Result<()> {
        let mut m = build("three_layer", [3, 32, 32], 10, 0)?;
        let s = Summary::of(&mut *m, &Tensor::zeros([1, 3, 32, 32], DType::F32)?)?;
        let want = [
            "name     layer                                                           output             parameters   multiply-adds",
            "conv1    ConvNormAct(3, 32, kernel_size=[7, 7], padding=[3, 3], ReLU())  [1, 32, 32, 32]         4,736       4,816,896",
            "pool1    MaxPool2d(kernel_size=[2, 2], stride=[2, 2])                    [1, 32, 16, 16]             0               0",
            "flatten  Flatten()                                                       [1, 8192]                   0               0",
            "fc1      LinearNormAct(8192, 100, ReLU())                                [1, 100]              819,300         819,200",
            "fc2      Linear(100, 10)                                                 [1, 10]                 1,010           1,000",
            "825,046 parameters, 3.30 MB in f32, 5.64 M multiply-adds",
        ];
        assert_eq!(s.to_string(), want.join("\n"));
        Ok(())
    }

    #[test]
    fn refused_configurations() {
        let refuse = |config: DeeperConfig| config.validate().unwrap_err().to_string();
        let base = DeeperConfig::default;
        assert!(base().validate().is_ok());
        assert_eq!(
            refuse(DeeperConfig {
                filter_size: 4,
                ..base()
            }),
            "configuration: filter_size: 4, expected an odd number"
        );
        assert_eq!(
            refuse(DeeperConfig {
                num_filters: vec![8; 12],
                ..base()
            }),
            "configuration: num_filters: 12 convolutions halve images of [3, 32, 32] to nothing"
        );
        assert_eq!(
            refuse(DeeperConfig {
                num_filters: vec![8, 0],
                ..base()
            }),
            "configuration: num_filters: [8, 0], expected at least 1"
        );
        assert_eq!(
            refuse(DeeperConfig {
                dropout_keep_ratio: 0.0,
                ..base()
            }),
            "configuration: dropout_keep_ratio: 0, expected above 0 and at most 1"
        );
        assert_eq!(
            refuse(DeeperConfig {
                reg: f64::NAN,
                ..base()
            }),
            "configuration: reg: NaN, expected at least 0"
        );
        assert_eq!(
            refuse(DeeperConfig {
                weight_scale: Some(-1.0),
                ..base()
            }),
            "configuration: weight_scale: -1, expected at least 0"
        );
        let config = ThreeLayerConfig {
            input_dim: [3, 1, 32],
            ..Default::default()
        };
        assert!(ThreeLayerConvNet::new(config, &mut rng()).is_err());
        let resnet = |change: fn(&mut ResNetConfig)| {
            let mut config = ResNetConfig::default();
            change(&mut config);
            ResNet::new(config, &mut rng()).err().unwrap().to_string()
        };
        assert_eq!(
            resnet(|c| c.depths = vec![2, 0]),
            "configuration: depths: [2, 0], expected at least 1"
        );
        assert_eq!(
            resnet(|c| c.depths = vec![]),
            "configuration: depths: [], expected at least one"
        );
        assert_eq!(
            resnet(|c| c.depths = vec![1; 17]),
            "configuration: depths: 17 stages, expected at most 16"
        );
        assert!(resnet(|c| c.width = 0).contains("width: [0], expected at least 1"));
        assert!(resnet(|c| c.in_channels = 0).contains("in_channels: [0]"));
        assert!(resnet(|c| c.reg = -1.0).contains("reg: -1, expected at least 0"));
        let config = FullyConnectedConfig {
            hidden_dims: vec![3, 0],
            ..Default::default()
        };
        assert!(FullyConnectedNet::new(config, &mut rng()).is_err());
    }

    #[test]
    fn configurations_as_json() {
        let config: DeeperConfig =
            serde_json::from_str(r#"{"num_filters": [8, 8], "weight_scale": null}"#).unwrap();
        let want = DeeperConfig {
            num_filters: vec![8, 8],
            weight_scale: None,
            ..Default::default()
        };
        assert_eq!(config, want);
        assert!(serde_json::from_str::<DeeperConfig>(r#"{"num_filter": [8]}"#).is_err());
        let config: ResNetConfig =
            serde_json::from_str(r#"{"stem": "imagenet", "depths": [3, 4, 6, 3]}"#).unwrap();
        let want = ResNetConfig {
            stem: Stem::ImageNet,
            ..ResNetConfig::resnet34()
        };
        assert_eq!(config, want);
        let config = FullyConnectedConfig {
            normalization: Norm::Layer,
            ..Default::default()
        };
        let json = serde_json::to_string(&config).unwrap();
        assert!(json.contains(r#""normalization":"layernorm""#), "{json}");
        assert_eq!(
            serde_json::from_str::<FullyConnectedConfig>(&json).unwrap(),
            config
        );
    }
}
