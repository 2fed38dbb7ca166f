//! Modules: what a network is made of. One trait, one walk over names.

mod activation;
mod block;
mod check;
mod checkpointed;
mod concat;
mod conv;
mod dropout;
pub mod init;
mod linear;
mod norm;
mod pool;
mod sequential;
pub mod summary;
mod upsample;

use std::collections::{HashMap, HashSet};

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::random::Generator;
use crate::shape::Shape;
use crate::tensor::Tensor;

pub use activation::{Activation, ActivationLayer, RReLU};
pub use block::{Identity, LayerScale, Residual};
pub use check::{gradcheck, gradcheck_of};
pub use checkpointed::Checkpointed;
pub use concat::Concat;
pub use conv::{Conv2d, Conv2dConfig, ConvNormAct, ConvTranspose2d, ConvTranspose2dConfig};
pub use dropout::{DropPath, Dropout, Dropout2d};
pub use init::{Fan, Init};
pub use linear::{Linear, LinearNormAct};
pub use norm::{
    BatchNorm, BatchNorm1d, BatchNorm2d, GroupNorm, InstanceNorm2d, LayerNorm, LayerNorm2d, Norm,
};
pub use pool::{AdaptiveAvgPool2d, AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d};
pub use sequential::Sequential;
pub(crate) use sequential::nested;
pub use summary::{Row, Summary};
pub use upsample::Upsample;

/// Whether a forward pass trains (batch statistics, dropout) or evaluates. Always an argument,
/// never a global: nothing can be left in the wrong mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Batch statistics, dropout on.
    Train,
    /// Running statistics, dropout off.
    Eval,
}

/// A layer, a block or a whole network.
pub trait Module: Send {
    /// The output for an input.
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor>;

    /// Show every parameter, buffer and random stream, by PyTorch's names, in a fixed order.
    fn visit(&mut self, visitor: &mut Visitor<'_>);

    /// The strength of the L2 penalty 0.5 reg sum(W^2) that the Solver adds to the loss. CS231n's
    /// networks carry it among their settings; a layer has none.
    fn reg(&self) -> f64 {
        0.0
    }

    /// As PyTorch prints it: `Conv2d(3, 32, kernel_size=[3, 3], padding=[1, 1])`.
    fn describe(&self) -> String;

    /// Run on `x` in the [`Summary::mode`], adding a row a layer. Containers pass it on to their
    /// children; a layer is one row.
    fn summarize(&mut self, x: &Tensor, summary: &mut Summary) -> Result<Tensor> {
        let y = self.forward(x, summary.mode())?;
        let parameters = parameter_count(self);
        let work = self.multiply_adds(x.shape(), y.shape());
        summary.row(self.describe(), &y, parameters, work);
        Ok(y)
    }

    /// The multiply-adds of a layer's convolution or linear map for one example, from its input's
    /// and its output's shape, (n, ..) both. 0 for layers without one; containers leave it to their
    /// children.
    fn multiply_adds(&self, _input: &Shape, _output: &Shape) -> usize {
        0
    }
}

/// What a [`Module`] shows of itself.
pub enum Slot<'a> {
    /// Trained: a leaf that requires a gradient, unless it is frozen ([`set_requires_grad`]).
    Parameter(&'a mut Tensor),
    /// Kept but not trained: running statistics.
    Buffer(&'a mut Tensor),
    /// A random stream, saved so that training resumes bit for bit. Not in a state dict.
    Generator(&'a mut Generator),
}

/// Walks a module, keeping the dotted path.
pub struct Visitor<'a> {
    path: String,
    see: &'a mut dyn FnMut(&str, Slot<'_>),
}

impl Visitor<'_> {
    fn at(&mut self, name: &str, inside: impl FnOnce(&mut Self)) {
        let before = self.path.len();
        if before > 0 && !name.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(name);
        inside(self);
        self.path.truncate(before);
    }

    /// Show a trained tensor.
    pub fn parameter(&mut self, name: &str, t: &mut Tensor) {
        self.at(name, |v| (v.see)(&v.path, Slot::Parameter(t)));
    }

    /// Show a trained tensor that a configuration may leave out.
    pub fn optional(&mut self, name: &str, t: &mut Option<Tensor>) {
        if let Some(t) = t {
            self.parameter(name, t);
        }
    }

    /// Show a kept tensor.
    pub fn buffer(&mut self, name: &str, t: &mut Tensor) {
        self.at(name, |v| (v.see)(&v.path, Slot::Buffer(t)));
    }

    /// Show a random stream.
    pub fn generator(&mut self, name: &str, g: &mut Generator) {
        self.at(name, |v| (v.see)(&v.path, Slot::Generator(g)));
    }

    /// Walk a module inside, its names below `name`.
    pub fn child(&mut self, name: &str, m: &mut (impl Module + ?Sized)) {
        self.at(name, |v| m.visit(v));
    }
}

/// Call `see` with each slot of a module and its dotted name.
pub fn visit(m: &mut (impl Module + ?Sized), mut see: impl FnMut(&str, Slot<'_>)) {
    m.visit(&mut Visitor {
        path: String::new(),
        see: &mut see,
    });
}

/// [`visit`] with a `see` that can fail; after the first error nothing more is seen.
pub fn try_visit(
    m: &mut (impl Module + ?Sized),
    mut see: impl FnMut(&str, Slot<'_>) -> Result<()>,
) -> Result<()> {
    let mut result = Ok(());
    visit(m, |name, slot| {
        if result.is_ok() {
            result = see(name, slot);
        }
    });
    result
}

/// Convert every parameter and every buffer of floats in place: F64 for gradient checks.
/// Parameters become new leaves of the graph; frozen ones stay so.
pub fn to_dtype(m: &mut (impl Module + ?Sized), dtype: DType) -> Result<()> {
    if !dtype.is_float() {
        return Err(Error::DType {
            op: "to_dtype",
            expected: "a float for a module",
            got: dtype,
        });
    }
    try_visit(m, |_, slot| {
        match slot {
            Slot::Parameter(t) => *t = t.cast(dtype)?.as_tracked(t.is_tracked()),
            Slot::Buffer(t) if t.dtype().is_float() => *t = t.cast(dtype)?,
            Slot::Buffer(_) | Slot::Generator(_) => {}
        }
        Ok(())
    })
}

/// Move every parameter and every buffer to a device. Parameters become new leaves of the graph;
/// frozen ones stay so.
///
/// ```
/// # use cotangent::{nn::{self, Linear}, random::Generator, Device};
/// let mut layer = Linear::new(3, 2, true, &mut Generator::new(0))?;
/// nn::to_device(&mut layer, Device::cuda(0).unwrap_or_default())?;
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn to_device(m: &mut (impl Module + ?Sized), device: Device) -> Result<()> {
    try_visit(m, |_, slot| {
        match slot {
            Slot::Parameter(t) => *t = t.moved(device)?.as_tracked(t.is_tracked()),
            Slot::Buffer(t) => *t = t.moved(device)?,
            Slot::Generator(_) => {}
        }
        Ok(())
    })
}

/// Freeze the parameters for which `select` says so by name, or train them again: PyTorch's
/// `requires_grad_`. A frozen one gets no gradient, so that no optimizer changes it, by its weight
/// decay neither.
///
/// ```
/// # use cotangent::{nn::{self, Linear}, random::Generator};
/// let mut layer = Linear::new(3, 2, true, &mut Generator::new(0))?;
/// nn::set_requires_grad(&mut layer, false, |name| name == "weight");
/// assert!(!layer.weight.is_tracked());
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn set_requires_grad(m: &mut (impl Module + ?Sized), on: bool, select: impl Fn(&str) -> bool) {
    visit(m, |name, slot| {
        if let Slot::Parameter(t) = slot
            && t.is_tracked() != on
            && select(name)
        {
            *t = t.as_tracked(on);
        }
    });
}

/// The device of a module's first parameter or buffer; the CPU where it has none.
pub fn device(m: &mut (impl Module + ?Sized)) -> Device {
    let mut found = None;
    visit(m, |_, slot| {
        if let Slot::Parameter(t) | Slot::Buffer(t) = slot {
            found.get_or_insert(t.device());
        }
    });
    found.unwrap_or_default()
}

/// Whether weight decay and L2 are for this parameter: weights are (two axes or more), biases and
/// the numbers of norms are not.
pub fn is_decayed(name: &str, t: &Tensor) -> bool {
    t.rank() >= 2 && !name.ends_with("bias")
}

/// The parameters by name. The tensors share storage with the module's own: drop them before
/// the next optimizer step, or it must copy.
pub fn named_parameters(m: &mut (impl Module + ?Sized)) -> Vec<(String, Tensor)> {
    let mut all = Vec::new();
    visit(m, |name, slot| {
        if let Slot::Parameter(t) = slot {
            all.push((name.to_string(), t.clone()));
        }
    });
    all
}

/// Parameters and buffers by name, outside of any graph; what a safetensors file holds.
pub fn state_dict(m: &mut (impl Module + ?Sized)) -> Vec<(String, Tensor)> {
    let mut all = Vec::new();
    visit(m, |name, slot| {
        if let Slot::Parameter(t) | Slot::Buffer(t) = slot {
            all.push((name.to_string(), t.detach()));
        }
    });
    all
}

/// What [`load_state_dict_partly`] left alone, by PyTorch's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IncompatibleKeys {
    /// Parameters and buffers of the model that the state lacks: they stay as they are.
    pub missing_keys: Vec<String>,
    /// Tensors of the state that the model has no place for.
    pub unexpected_keys: Vec<String>,
}

/// Copy parameters and buffers in by name; numbers of another dtype are rounded to the model's.
/// Names that are missing, unknown or of another shape are an [`Error::Checkpoint`] that names
/// them, and nothing is changed.
pub fn load_state_dict(m: &mut (impl Module + ?Sized), state: &[(String, Tensor)]) -> Result<()> {
    load(m, state, true).map(|_| ())
}

/// [`load_state_dict`] of what both have, as PyTorch's with `strict=False`: what is missing or
/// unknown is returned. A shape that differs is an error all the same, and nothing is changed.
///
/// ```
/// # use cotangent::{nn::{self, Linear}, random::Generator};
/// let rng = &mut Generator::new(0);
/// let mut from = Linear::new(3, 2, false, rng)?;
/// let mut to = Linear::new(3, 2, true, rng)?;
/// let keys = nn::load_state_dict_partly(&mut to, &nn::state_dict(&mut from))?;
/// assert_eq!(keys.missing_keys, ["bias"]);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn load_state_dict_partly(
    m: &mut (impl Module + ?Sized),
    state: &[(String, Tensor)],
) -> Result<IncompatibleKeys> {
    load(m, state, false)
}

/// Names that an error lists; a state of another network has hundreds.
const MOST_NAMES: usize = 16;

fn load(
    m: &mut (impl Module + ?Sized),
    state: &[(String, Tensor)],
    strict: bool,
) -> Result<IncompatibleKeys> {
    let by_name: HashMap<&str, &Tensor> = state.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let (mut keys, mut wrong) = (IncompatibleKeys::default(), Vec::new());
    let mut own = HashSet::new();
    visit(m, |name, slot| {
        let (Slot::Parameter(t) | Slot::Buffer(t)) = slot else {
            return;
        };
        own.insert(name.to_string());
        let wanted = format!("the model wants {:?}", t.shape());
        match by_name.get(name) {
            None => {
                keys.missing_keys.push(name.into());
                if strict {
                    wrong.push((name.to_string(), format!("missing; {wanted}")));
                }
            }
            Some(s) if s.shape() != t.shape() => {
                let why = format!("has shape {:?}, {wanted}", s.shape());
                wrong.push((name.into(), why));
            }
            Some(_) => {}
        }
    });
    for (name, _) in state.iter().filter(|(name, _)| !own.contains(name)) {
        keys.unexpected_keys.push(name.clone());
        if strict {
            let why = "the model has no such parameter or buffer";
            wrong.push((name.clone(), why.into()));
        }
    }
    if !wrong.is_empty() {
        let (name, mut why) = wrong.remove(0);
        for (name, more) in wrong.iter().take(MOST_NAMES - 1) {
            why += &format!("; {name}: {more}");
        }
        if wrong.len() >= MOST_NAMES {
            why += &format!("; and {} more", wrong.len() + 1 - MOST_NAMES);
        }
        let path = "state_dict".into();
        return Err(Error::Checkpoint { path, name, why });
    }
    try_visit(m, |name, slot| match (slot, by_name.get(name)) {
        (Slot::Parameter(t) | Slot::Buffer(t), Some(s)) => t.copy_(s),
        _ => Ok(()),
    })?;
    Ok(keys)
}

/// The number of trained elements, frozen ones among them.
pub fn parameter_count(m: &mut (impl Module + ?Sized)) -> usize {
    let mut n = 0;
    visit(m, |_, slot| {
        if let Slot::Parameter(t) = slot {
            n += t.numel();
        }
    });
    n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversion_keeps_leaves_and_counts() -> Result<()> {
        let mut norm = BatchNorm1d::new(3)?;
        to_dtype(&mut norm, DType::F64)?;
        let dtypes: Vec<DType> = state_dict(&mut norm).iter().map(|s| s.1.dtype()).collect();
        let f = DType::F64;
        assert_eq!(dtypes, [f, f, f, f, DType::I64]);
        assert!(named_parameters(&mut norm).iter().all(|p| p.1.is_tracked()));
        let e = to_dtype(&mut norm, DType::U8).unwrap_err();
        assert!(
            e.to_string().starts_with("to_dtype: expected a float"),
            "{e}"
        );
        Ok(())
    }

    #[test]
    fn what_is_frozen_stays_so_until_it_is_trained_again() -> Result<()> {
        let mut norm = BatchNorm1d::new(3)?;
        set_requires_grad(&mut norm, false, |name| name == "weight");
        to_dtype(&mut norm, DType::F64)?;
        for device in crate::ops::check::devices()? {
            to_device(&mut norm, device)?;
            assert!(!norm.weight.is_tracked() && norm.bias.is_tracked());
        }
        let names: Vec<String> = named_parameters(&mut norm)
            .into_iter()
            .map(|p| p.0)
            .collect();
        assert_eq!(names, ["weight", "bias"]);
        set_requires_grad(&mut norm, true, |_| true);
        assert!(norm.weight.is_tracked() && norm.bias.is_tracked());
        Ok(())
    }

    #[test]
    fn weights_decay_but_not_biases_and_norms() -> Result<()> {
        let matrix = Tensor::zeros([2, 3], DType::F32)?;
        let vector = Tensor::zeros([3], DType::F32)?;
        assert!(is_decayed("fc1.linear.weight", &matrix) && is_decayed("weight", &matrix));
        assert!(!is_decayed("conv1.norm.weight", &vector));
        assert!(!is_decayed("fc1.bias", &vector) && !is_decayed("relative_bias", &matrix));
        Ok(())
    }

    #[test]
    fn a_failing_visit_stops() {
        let mut seen = 0;
        let result = try_visit(&mut BatchNorm1d::new(3).unwrap(), |name, _| {
            seen += 1;
            Err(Error::argument("visit", name))
        });
        assert_eq!(result.unwrap_err().to_string(), "visit: weight");
        assert_eq!(seen, 1);
    }
}
