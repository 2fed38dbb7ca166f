//! Gradient checkpointing of a module: its activations are computed again in backward.

use std::sync::{Arc, Mutex};

use crate::autograd::{checkpoint, is_grad_enabled, lock};
use crate::error::Result;
use crate::nn::{Mode, Module, Slot, Summary, Visitor, visit};
use crate::random::Generator;
use crate::tensor::Tensor;

/// A module that keeps its input alone from forward to backward, and runs again there (Chen et al.
/// 2016; [`checkpoint`] for how).
///
/// It saves what the ops inside would keep and costs one more forward of the module. A network of n
/// such blocks of equal size needs n inputs and one block's activations at a time in place of n
/// blocks' activations: with n about the root of the number of layers, the root of the memory for
/// about a third more time. Gradients are those of the bare module to the bit: dropout draws the
/// same numbers again, and batch norm's running statistics move once. Parameters and buffers are
/// kept as forward found them, the buffers by a copy when training. Without a graph (under
/// [`no_grad`](crate::autograd::no_grad)) it is the bare module.
///
/// Names in a state dict and the description are the bare module's: a checkpoint of one loads into
/// the other. [`Sequential::checkpointed`](crate::nn::Sequential::checkpointed) wraps parts of a
/// sequence.
///
/// ```
/// # use cotangent::{DType, Tensor, random::Generator};
/// # use cotangent::nn::{self, Checkpointed, Linear, Mode, Module};
/// let mut layer = Checkpointed::new(Linear::new(4, 3, true, &mut Generator::new(0))?);
/// let y = layer.forward(&Tensor::ones([5, 4], DType::F32)?, Mode::Train)?;
/// let grads = y.backward_from(&y.ones_like()?)?;
/// let names: Vec<String> = nn::named_parameters(&mut layer).into_iter().map(|p| p.0).collect();
/// assert_eq!((grads.len(), names), (2, vec!["weight".into(), "bias".into()]));
/// # Ok::<(), cotangent::Error>(())
/// ```
// shared with the graph, which runs it again; the lock is held for a forward or a visit
pub struct Checkpointed<M>(Arc<Mutex<M>>);

impl<M: Module + 'static> Checkpointed<M> {
    /// With a module inside.
    pub fn new(module: M) -> Self {
        Checkpointed(Arc::new(Mutex::new(module)))
    }

    /// Look at the module inside.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut M) -> T) -> T {
        f(&mut lock(&self.0))
    }
}

/// What a forward reads and moves, in the order of [`Module::visit`].
struct State {
    parameters: Vec<Tensor>,
    buffers: Vec<Tensor>,
    generators: Vec<Generator>,
}

impl State {
    fn of(m: &mut impl Module, mode: Mode) -> Result<Self> {
        let [mut parameters, mut buffers] = [const { Vec::new() }; 2];
        let mut generators = Vec::new();
        visit(m, |_, slot| match slot {
            Slot::Parameter(t) => parameters.push(t.clone()),
            Slot::Buffer(t) => buffers.push(t.clone()),
            Slot::Generator(g) => generators.push(*g),
        });
        if mode == Mode::Train {
            // a share would make forward move the module's own to other memory
            for t in &mut buffers {
                *t = t.copied(t.layout().dense_like())?;
            }
        }
        Ok(State {
            parameters,
            buffers,
            generators,
        })
    }

    /// Put it into the module, and take what was there.
    fn exchange(&mut self, m: &mut impl Module) {
        let mut parameters = self.parameters.iter_mut();
        let mut buffers = self.buffers.iter_mut();
        let mut generators = self.generators.iter_mut();
        visit(m, |_, slot| {
            let (own, other) = match slot {
                Slot::Parameter(t) => (t, parameters.next()),
                Slot::Buffer(t) => (t, buffers.next()),
                Slot::Generator(g) => {
                    if let Some(other) = generators.next() {
                        std::mem::swap(g, other);
                    }
                    return;
                }
            };
            if let Some(other) = other {
                std::mem::swap(own, other);
            }
        });
    }
}

impl<M: Module + 'static> Module for Checkpointed<M> {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        if !is_grad_enabled() {
            return self.with(|m| m.forward(x, mode));
        }
        let mut state = self.with(|m| State::of(m, mode))?;
        let parameters = std::mem::take(&mut state.parameters);
        let inputs: Vec<&Tensor> = [x].into_iter().chain(&parameters).collect();
        let (module, mut again) = (self.0.clone(), false);
        checkpoint(&inputs, move |inputs| {
            let mut m = lock(&module);
            if !std::mem::replace(&mut again, true) {
                return m.forward(&inputs[0], mode);
            }
            state.parameters = inputs[1..].to_vec();
            state.exchange(&mut *m);
            let y = m.forward(&inputs[0], mode);
            state.exchange(&mut *m);
            y
        })
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        self.with(|m| m.visit(v));
    }

    fn reg(&self) -> f64 {
        self.with(|m| m.reg())
    }

    fn describe(&self) -> String {
        self.with(|m| m.describe())
    }

    fn summarize(&mut self, x: &Tensor, summary: &mut Summary) -> Result<Tensor> {
        self.with(|m| m.summarize(x, summary))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::dtype::DType;
    use crate::error::Error;
    use crate::nn::{
        Activation, BatchNorm2d, Conv2d, Conv2dConfig, Dropout, Flatten, Linear, Sequential,
        state_dict, to_device, to_dtype,
    };
    use crate::ops::check::devices;

    fn block(inputs: usize, rng: &mut Generator) -> Result<Sequential> {
        Ok(Sequential::new()
            .push(Conv2d::new(inputs, 4, Conv2dConfig::same(3), rng)?)
            .push(BatchNorm2d::new(4)?)
            .push(Activation::Relu)
            .push(Dropout::new(0.3, rng)?))
    }

    fn head(rng: &mut Generator) -> Result<Sequential> {
        Ok(Sequential::new()
            .push(Flatten)
            .push(Dropout::new(0.5, rng)?)
            .push(Linear::new(4 * 25, 3, true, rng)?))
    }

    /// Two blocks and a head, bare or computed again in one way or another.
    fn net(how: &str) -> Result<Box<dyn Module>> {
        let rng = &mut Generator::new(3);
        let (a, b, c) = (block(2, rng)?, block(4, rng)?, head(rng)?);
        let inner = || Sequential::new();
        Ok(match how {
            "bare" => Box::new(inner().push(a).push(b).push(c)),
            "whole" => Box::new(Checkpointed::new(inner().push(a).push(b).push(c))),
            "each" => Box::new(
                inner()
                    .push(Checkpointed::new(a))
                    .push(Checkpointed::new(b))
                    .push(Checkpointed::new(c)),
            ),
            "segments" => Box::new(inner().push(a).push(b).push(c).checkpointed(3)?),
            _ => Box::new(Checkpointed::new(
                inner()
                    .push(Checkpointed::new(a.checkpointed(2)?))
                    .push(b)
                    .push(Checkpointed::new(c)),
            )),
        })
    }

    fn bits(t: &Tensor) -> Result<Vec<u64>> {
        let v = t.to_dtype(DType::F64)?.to_vec::<f64>()?;
        Ok(v.into_iter().map(f64::to_bits).collect())
    }

    /// Two passes: outputs, all gradients, the image's too, and then the state and the streams.
    fn seen(net: &mut dyn Module, device: Device, mode: Mode) -> Result<Vec<Vec<u64>>> {
        to_device(net, device)?;
        let mut all = Vec::new();
        for seed in 0..2 {
            let x = Tensor::randn([3, 2, 5, 5], &mut Generator::new(seed), DType::F32)?;
            let x = x.to(device)?.requires_grad();
            let y = net.forward(&x, mode)?;
            let dy = Tensor::randn(y.shape(), &mut Generator::new(9), y.dtype())?;
            let grads = y.backward_from(&dy.to(device)?)?;
            assert!(matches!(
                y.backward_from(&dy.to(device)?),
                Err(Error::GraphFreed { .. })
            ));
            all.extend([bits(&y)?, bits(grads.get(&x).unwrap())?]);
            visit(net, |name, slot| {
                if let Slot::Parameter(p) = slot {
                    let grad = grads.get(p).unwrap_or_else(|| panic!("{name}"));
                    all.push(bits(grad).unwrap());
                }
            });
            for (_, t) in state_dict(net) {
                all.push(bits(&t)?);
            }
            visit(net, |_, slot| {
                if let Slot::Generator(g) = slot {
                    all.push(vec![g.seed, g.offset]);
                }
            });
        }
        Ok(all)
    }

    #[test]
    fn everything_is_the_bare_modules_to_the_bit() -> Result<()> {
        for device in devices()? {
            for mode in [Mode::Train, Mode::Eval] {
                let wanted = seen(&mut *net("bare")?, device, mode)?;
                for how in ["whole", "each", "segments", "nested"] {
                    let got = seen(&mut *net(how)?, device, mode)?;
                    assert!(got == wanted, "{how} on {device}, {mode:?}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn without_a_graph_it_is_the_bare_module() -> Result<()> {
        let (mut a, mut b) = (net("bare")?, net("nested")?);
        let x = Tensor::ones([3, 2, 5, 5], DType::F32)?;
        let _quiet = crate::autograd::no_grad();
        let [y, z] = [&mut a, &mut b].map(|m| m.forward(&x, Mode::Train));
        let (y, z) = (y?, z?);
        assert!(!z.is_tracked());
        assert_eq!(bits(&y)?, bits(&z)?);
        Ok(())
    }

    #[test]
    fn what_changes_before_backward_is_not_seen() -> Result<()> {
        let gradient = |write: bool| {
            let mut layer = Checkpointed::new(BatchNorm2d::new(4)?);
            to_dtype(&mut layer, DType::F64)?;
            let x = Tensor::randn([2, 4, 3, 3], &mut Generator::new(1), DType::F64)?;
            let x = x.requires_grad();
            let y = layer.forward(&x, Mode::Eval)?;
            if write {
                visit(&mut layer, |_, slot| {
                    if let Slot::Parameter(t) | Slot::Buffer(t) = slot {
                        t.copy_(&Tensor::full(t.shape(), 2.0, DType::F64).unwrap())
                            .unwrap();
                    }
                });
            }
            let grads = y.backward_from(&y.detach())?;
            bits(grads.get(&x).unwrap())
        };
        assert_eq!(gradient(true)?, gradient(false)?);
        Ok(())
    }

    #[test]
    fn a_frozen_parameter_and_an_input_without_gradient() -> Result<()> {
        let mut layer = Checkpointed::new(Linear::new(3, 2, true, &mut Generator::new(0))?);
        layer.with(|l| l.weight = l.weight.detach());
        let x = Tensor::ones([4, 3], DType::F32)?;
        let y = layer.forward(&x, Mode::Train)?;
        let grads = y.backward_from(&y.ones_like()?)?;
        assert_eq!(grads.len(), 1);
        let bias = layer.with(|l| l.bias.clone()).unwrap();
        assert_eq!(grads.get(&bias).unwrap().to_vec::<f32>()?, [4.0; 2]);
        Ok(())
    }

    #[test]
    #[cfg(feature = "emulator")]
    fn it_needs_less_memory() -> Result<()> {
        let device = Device::cuda_emulated_nth(40)?;
        let Device::Cuda(gpu) = device else {
            return Err(Error::argument("checkpoint", "no GPU"));
        };
        let peak = |segments: usize| {
            let mut net = Sequential::new();
            for _ in 0..8 {
                net = net.push(Activation::Tanh).push(Activation::Sigmoid);
            }
            let mut net = net.checkpointed(segments)?;
            let x = Tensor::ones([10_000], device)?.requires_grad();
            let before = gpu.memory_stats()?.live_bytes;
            gpu.reset_peak()?;
            net.forward(&x, Mode::Train)?
                .backward_from(&x.ones_like()?)?;
            Ok((gpu.memory_stats()?.peak_bytes - before) / 40_000)
        };
        // 16 activations, or 4 inputs and 4 activations, and what is under way
        let (bare, cut): (usize, usize) = (peak(1)?, peak(4)?);
        assert!((16..=20).contains(&bare), "{bare}");
        assert!((7..=11).contains(&cut), "{cut}");
        Ok(())
    }
}
