//! What residual networks are built of: a branch beside a shortcut, a scale a channel, nothing.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::nn::{
    Activation, ActivationLayer, DropPath, Mode, Module, Summary, Visitor, nested, visit,
};
use crate::random::Generator;
use crate::tensor::Tensor;

/// y = x: PyTorch's layer that keeps a place in a sequence.
pub struct Identity;

impl Module for Identity {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        Ok(x.clone())
    }

    fn visit(&mut self, _: &mut Visitor<'_>) {}

    fn describe(&self) -> String {
        "Identity()".into()
    }
}

/// y = x gamma, a number a channel: what ends the branches of deep residual networks, nearly 0 at
/// first (Touvron et al. 2021).
pub struct LayerScale {
    /// (c).
    pub gamma: Tensor,
    /// Which axis the channels are: 1, or -1 for the last.
    axis: isize,
}

impl LayerScale {
    /// For the channels of (n, c, ..), all `init` at first; ConvNeXt's is 1e-6.
    pub fn new(channels: usize, init: f64) -> Result<Self> {
        Self::along(1, channels, init)
    }

    /// For the last axis of (.., c), all `init` at first.
    pub fn last(channels: usize, init: f64) -> Result<Self> {
        Self::along(-1, channels, init)
    }

    fn along(axis: isize, channels: usize, init: f64) -> Result<Self> {
        if channels == 0 {
            return Err(Error::argument(
                "LayerScale",
                "0 channels, expected at least 1",
            ));
        }
        Ok(LayerScale {
            gamma: Tensor::full(channels, init, DType::F32)?.requires_grad(),
            axis,
        })
    }
}

impl Module for LayerScale {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        let (c, shape) = (self.gamma.numel(), x.shape());
        let (size, behind, want) = match self.axis {
            1 => (
                shape.get(1),
                shape.len().saturating_sub(2),
                format!("(n, {c}, ..)"),
            ),
            _ => (shape.last(), 0, format!("(.., {c})")),
        };
        if size != Some(&c) {
            return Err(Error::shape(
                "LayerScale",
                &[*shape],
                format!("expected {want} but got {shape:?}"),
            ));
        }
        let mut dims = vec![1; behind + 1];
        dims[0] = c;
        x.mul(&self.gamma.reshape(dims)?)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.parameter("gamma", &mut self.gamma);
    }

    fn describe(&self) -> String {
        match self.axis {
            1 => format!("LayerScale({})", self.gamma.numel()),
            axis => format!("LayerScale({}, axis={axis})", self.gamma.numel()),
        }
    }
}

/// y = activation(shortcut(x) + drop_path(body(x))) (He et al. 2015); at first without shortcut,
/// drop path and activation: x + body(x).
///
/// The body's names are the block's own, so that a body with the children conv1, bn1, conv2 and
/// bn2 and a shortcut named downsample has the names of torchvision's BasicBlock. For a body under a
/// name of its own, put it into a [`Sequential`](crate::nn::Sequential) of one.
///
/// ```
/// # use cotangent::{DType, Tensor, random::Generator};
/// # use cotangent::nn::{Activation, Conv2d, Conv2dConfig, Mode, Module, Residual};
/// let rng = &mut Generator::new(0);
/// let body = Conv2d::new(3, 8, Conv2dConfig::same(3), rng)?;
/// let shortcut = Conv2d::new(3, 8, Conv2dConfig::same(1), rng)?;
/// let mut block = Residual::new(body)
///     .shortcut("downsample", shortcut)?
///     .drop_path(0.1, rng)?
///     .activation(Activation::Relu, rng)?;
/// let y = block.forward(&Tensor::ones([2, 3, 4, 4], DType::F32)?, Mode::Train)?;
/// assert_eq!(y.shape()[..], [2, 8, 4, 4]);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub struct Residual {
    body: Box<dyn Module>,
    shortcut: Option<(String, Box<dyn Module>)>,
    drop_path: Option<DropPath>,
    activation: Option<ActivationLayer>,
}

impl Residual {
    /// x + body(x).
    pub fn new(body: impl Module + 'static) -> Self {
        Residual {
            body: Box::new(body),
            shortcut: None,
            drop_path: None,
            activation: None,
        }
    }

    /// With this module beside the body in place of x itself. Its name must be a new one without
    /// a dot.
    pub fn shortcut(mut self, name: &str, module: impl Module + 'static) -> Result<Self> {
        self.claim(name)?;
        self.shortcut = Some((name.into(), Box::new(module)));
        Ok(self)
    }

    /// With the body's output dropped for whole samples, with probability 0 <= p < 1 in training
    /// (Huang et al. 2016); p = 0 for none. Its stream, named drop_path, is forked from `rng`.
    pub fn drop_path(mut self, p: f64, rng: &mut Generator) -> Result<Self> {
        self.claim("drop_path")?;
        let drop = DropPath::new(p, rng)?;
        self.drop_path = (p > 0.0).then_some(drop);
        Ok(self)
    }

    /// With an activation after the sum.
    pub fn activation(mut self, activation: Activation, rng: &mut Generator) -> Result<Self> {
        self.claim("activation")?;
        self.activation = Some(activation.layer(rng)?);
        Ok(self)
    }

    /// An error unless no parameter, buffer or stream lies under this name.
    fn claim(&mut self, name: &str) -> Result<()> {
        let mut taken = name.is_empty() || name.contains('.');
        visit(self, |path, _| {
            taken |= path.split('.').next() == Some(name)
        });
        match taken {
            false => Ok(()),
            true => Err(Error::argument(
                "Residual",
                format!("the name {name:?} is taken, empty or has a dot"),
            )),
        }
    }

    /// The sum and what follows, from the two branches' outputs.
    fn join(&mut self, shortcut: &Tensor, body: &Tensor, mode: Mode) -> Result<Tensor> {
        // a sum would broadcast
        if shortcut.shape() != body.shape() {
            let (a, b) = (*body.shape(), *shortcut.shape());
            return Err(Error::shape(
                "Residual",
                &[a, b],
                format!("the body gives {a:?} but the shortcut {b:?}"),
            ));
        }
        let y = match &mut self.drop_path {
            Some(drop) => shortcut.add(&drop.forward(body, mode)?)?,
            None => shortcut.add(body)?,
        };
        match &mut self.activation {
            Some(activation) => activation.forward(&y, mode),
            None => Ok(y),
        }
    }
}

impl Module for Residual {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let body = self.body.forward(x, mode)?;
        let shortcut = match &mut self.shortcut {
            Some((_, m)) => m.forward(x, mode)?,
            None => x.clone(),
        };
        self.join(&shortcut, &body, mode)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        self.body.visit(v);
        if let Some((name, m)) = &mut self.shortcut {
            v.child(name, &mut **m);
        }
        if let Some(drop) = &mut self.drop_path {
            v.child("drop_path", drop);
        }
        if let Some(activation) = &mut self.activation {
            v.child("activation", activation);
        }
    }

    fn describe(&self) -> String {
        let mut children: Vec<(&str, String)> = vec![("body", self.body.describe())];
        if let Some((name, m)) = &self.shortcut {
            children.push((name, m.describe()));
        }
        if let Some(drop) = &self.drop_path {
            children.push(("drop_path", drop.describe()));
        }
        if let Some(activation) = &self.activation {
            children.push(("activation", activation.describe()));
        }
        nested("Residual", &children)
    }

    fn summarize(&mut self, x: &Tensor, summary: &mut Summary) -> Result<Tensor> {
        let body = self.body.summarize(x, summary)?;
        let shortcut = match &mut self.shortcut {
            Some((name, m)) => summary.child(name, |s| m.summarize(x, s))?,
            None => x.clone(),
        };
        self.join(&shortcut, &body, summary.mode())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{
        BatchNorm2d, Conv2d, Conv2dConfig, GroupNorm, Linear, Sequential, Slot, state_dict,
    };

    /// torchvision's BasicBlock, with a projection.
    fn basic_block(rng: &mut Generator) -> Result<Residual> {
        let conv = |stride: usize, size| Conv2dConfig {
            stride: [stride, stride],
            bias: false,
            ..Conv2dConfig::same(size)
        };
        let body = Sequential::new()
            .named("conv1", Conv2d::new(2, 4, conv(2, 3), rng)?)?
            .named("bn1", BatchNorm2d::new(4)?)?
            .named("relu", Activation::Relu)?
            .named("conv2", Conv2d::new(4, 4, conv(1, 3), rng)?)?
            .named("bn2", BatchNorm2d::new(4)?)?;
        let downsample = Sequential::new()
            .push(Conv2d::new(2, 4, conv(2, 1), rng)?)
            .push(BatchNorm2d::new(4)?);
        Residual::new(body)
            .shortcut("downsample", downsample)?
            .activation(Activation::Relu, rng)
    }

    #[test]
    fn names_are_those_of_pytorchs_block() -> Result<()> {
        let mut block = Sequential::new().push(basic_block(&mut Generator::new(0))?);
        let names: Vec<String> = state_dict(&mut block).into_iter().map(|s| s.0).collect();
        let norm = [
            "weight",
            "bias",
            "running_mean",
            "running_var",
            "num_batches_tracked",
        ];
        let mut wanted = Vec::new();
        for (conv, bn) in [
            ("conv1", "bn1"),
            ("conv2", "bn2"),
            ("downsample.0", "downsample.1"),
        ] {
            wanted.push(format!("0.{conv}.weight"));
            wanted.extend(norm.map(|n| format!("0.{bn}.{n}")));
        }
        assert_eq!(names, wanted);
        let x = Tensor::zeros([1, 2, 8, 8], DType::F32)?;
        let rows = Summary::of(&mut block, &x)?.rows;
        let rows: Vec<&str> = rows.iter().map(|r| &*r.name).collect();
        assert_eq!(
            rows,
            [
                "0.conv1",
                "0.bn1",
                "0.relu",
                "0.conv2",
                "0.bn2",
                "0.downsample.0",
                "0.downsample.1"
            ]
        );
        Ok(())
    }

    #[test]
    fn the_sum_is_the_branches_sum() -> Result<()> {
        let rng = &mut Generator::new(1);
        let x = Tensor::randn([3, 4], rng, DType::F32)?;
        let mut body = Linear::new(4, 4, true, rng)?;
        let wanted = x.add(&body.forward(&x, Mode::Eval)?)?.to_vec::<f32>()?;
        let mut block = Residual::new(body);
        assert_eq!(block.forward(&x, Mode::Train)?.to_vec::<f32>()?, wanted);
        let mut block = block.drop_path(0.5, rng)?;
        assert_eq!(block.forward(&x, Mode::Eval)?.to_vec::<f32>()?, wanted);
        // of 64 samples some keep x alone, others twice the body
        let x = x.narrow(0, 0, 1)?.expand([64, 4])?;
        let y = block.forward(&x, Mode::Train)?.sub(&x)?.to_vec::<f32>()?;
        let twice: Vec<f32> = (0..4)
            .map(|i| 2.0 * (wanted[i] - x.to_vec::<f32>().unwrap()[i]))
            .collect();
        let dropped = y.chunks(4).filter(|y| **y == [0.0; 4]).count();
        assert!((16..48).contains(&dropped), "{dropped} of 64");
        for y in y.chunks(4).filter(|y| **y != [0.0; 4]) {
            assert!(y.iter().zip(&twice).all(|(y, t)| (y - t).abs() < 1e-5));
        }
        Ok(())
    }

    #[test]
    fn descriptions_nest() -> Result<()> {
        let rng = &mut Generator::new(0);
        let block = Residual::new(LayerScale::last(3, 1.0)?)
            .shortcut("skip", Identity)?
            .drop_path(0.25, rng)?
            .activation(Activation::Rrelu, rng)?;
        assert_eq!(
            block.describe(),
            "Residual(\n  (body): LayerScale(3, axis=-1)\n  (skip): Identity()\n  \
             (drop_path): DropPath(p=0.25)\n  \
             (activation): RReLU(lower=0.125, upper=0.3333333333333333)\n)"
        );
        let mut block = block;
        let mut streams = Vec::new();
        visit(&mut block, |name, slot| {
            if let Slot::Generator(_) = slot {
                streams.push(name.to_string());
            }
        });
        assert_eq!(streams, ["drop_path.generator", "activation.generator"]);
        assert_eq!(LayerScale::new(3, 1.0)?.describe(), "LayerScale(3)");
        Ok(())
    }

    #[test]
    fn refused_settings_and_shapes() -> Result<()> {
        let rng = &mut Generator::new(0);
        let mut block = || basic_block(rng);
        for name in ["conv1", "downsample", "a.b", ""] {
            let e = block()?.shortcut(name, Identity).err().unwrap();
            let want = format!("Residual: the name {name:?} is taken, empty or has a dot");
            assert_eq!(e.to_string(), want);
        }
        let rng = &mut Generator::new(0);
        assert!(Residual::new(Identity).drop_path(1.0, rng).is_err());
        let twice = Residual::new(Identity).drop_path(0.5, rng)?;
        assert!(twice.drop_path(0.5, rng).is_err());
        let x = Tensor::zeros([2, 3, 1, 4], DType::F32)?;
        let e = |m: &mut dyn Module| m.forward(&x, Mode::Train).unwrap_err().to_string();
        // [2, 1, 1, 4] would broadcast
        let narrower = Conv2d::new(3, 1, Conv2dConfig::same(1), rng)?;
        assert_eq!(
            e(&mut Residual::new(narrower)),
            "Residual: the body gives [2, 1, 1, 4] but the shortcut [2, 3, 1, 4]"
        );
        assert_eq!(
            e(&mut LayerScale::new(4, 1.0)?),
            "LayerScale: expected (n, 4, ..) but got [2, 3, 1, 4]"
        );
        assert_eq!(
            e(&mut LayerScale::last(3, 1.0)?),
            "LayerScale: expected (.., 3) but got [2, 3, 1, 4]"
        );
        assert!(LayerScale::new(0, 1.0).is_err() && GroupNorm::new(2, 3).is_err());
        Ok(())
    }
}
