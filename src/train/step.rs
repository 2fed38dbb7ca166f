//! One training step: forward, loss, backward, update. On a CUDA device it is captured once it has
//! settled, and from then on replayed by a single call.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::autograd::Gradients;
use crate::cuda::{Gpu, Graph};
use crate::data::Feed;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::nn::{self, Mode, Module, Slot};
use crate::ops::loss::metrics::correct_tensor;
use crate::optim::Optimizer;
use crate::random::Generator;
use crate::tensor::Tensor;
use crate::train::checkpoint;
use crate::train::l2::{add_l2_gradients, l2_loss, l2_penalty};
use crate::train::loss::LossFn;

/// Steps that run as they are before one is captured: the first makes the optimizer's states, the
/// second finds every buffer that it needs among those of the first.
const SETTLE: usize = 2;

/// What a step is made of.
pub(super) struct Parts<'a> {
    pub model: &'a mut dyn Module,
    pub optimizer: &'a mut dyn Optimizer,
    pub loss: &'a LossFn,
    /// The L2 penalty's factor.
    pub reg: f64,
}

/// What a step found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Found {
    /// With the L2 penalty.
    pub loss: f64,
    /// Images whose greatest score was at the label.
    pub correct: usize,
}

/// Makes steps, and knows whether one has been captured.
#[derive(Default)]
pub(super) struct Stepper {
    /// Steps made one after another on the same addresses.
    settled: usize,
    /// Where the model's tensors were after the last step.
    addresses: Vec<u64>,
    captured: Option<Captured>,
    /// Never capture: asked for, or it failed.
    pub plain: bool,
}

/// A step that can be replayed.
struct Captured {
    graph: Graph,
    images: Tensor,
    labels: Tensor,
    /// Loss, penalty and images right, as F64.
    report: Tensor,
    /// The captured scalars before the optimizer's: which random stream each pair (seed, offset)
    /// belongs to, and how far beyond the stream's place.
    draws: Vec<(String, u64)>,
    /// How far each stream moves in a step.
    moves: BTreeMap<String, u64>,
}

impl Stepper {
    /// Whether steps are replayed.
    pub fn is_captured(&self) -> bool {
        self.captured.is_some()
    }

    /// Start anew: the model's tensors or the optimizer's states are others now.
    pub fn forget(&mut self) {
        *self = Stepper {
            plain: self.plain,
            ..Stepper::default()
        };
    }

    /// Make one step. A loss that is not finite is an [`Error::NonFinite`]; on the CPU the
    /// parameters are then those of before.
    pub fn step(&mut self, parts: &mut Parts<'_>, feed: Feed, number: u64) -> Result<Found> {
        let device = nn::device(parts.model);
        let found = match device {
            Device::Cpu => {
                let (images, labels) = feed.tensors()?;
                self.on_cpu(parts, images, labels, number)?
            }
            Device::Cuda(gpu) => self.on_cuda(parts, feed, gpu)?,
        };
        match found.loss.is_finite() {
            true => Ok(found),
            false => Err(Error::NonFinite {
                step: number,
                loss: found.loss,
            }),
        }
    }

    fn on_cpu(
        &mut self,
        parts: &mut Parts<'_>,
        images: Tensor,
        labels: Tensor,
        step: u64,
    ) -> Result<Found> {
        let scores = parts.model.forward(&images, Mode::Train)?;
        let loss = (parts.loss)(&scores, &labels)?;
        let value = loss.item()? + l2_loss(parts.model, parts.reg)?;
        if !value.is_finite() {
            return Err(Error::NonFinite { step, loss: value });
        }
        let correct = crate::ops::correct(&scores, &labels)?;
        let grads = loss.backward()?;
        // the graph shares storage with parameters, which are to be written in place
        drop((images, scores, loss));
        parts.update(grads)?;
        Ok(Found {
            loss: value,
            correct,
        })
    }

    fn on_cuda(&mut self, parts: &mut Parts<'_>, feed: Feed, gpu: Gpu) -> Result<Found> {
        if let Some(captured) = &mut self.captured {
            let fits = captured.is_alone()
                && captured.images.shape()[..] == feed.shape()
                && addresses(parts.model).as_ref() == Some(&self.addresses);
            if fits {
                captured.replay(parts, feed)?;
                return read(&captured.report);
            }
            // somebody holds a parameter or the images, or the batch is another: start anew
            self.forget();
        }
        let (images, labels) = feed.tensors()?;
        let in_place = addresses(parts.model).as_ref() == Some(&self.addresses);
        if self.settled >= SETTLE && in_place && !self.plain {
            match Captured::new(parts, gpu, &images, &labels) {
                Ok(captured) => {
                    captured.graph.replay(captured.graph.scalars())?;
                    let found = read(&captured.report);
                    self.captured = Some(captured);
                    return found;
                }
                Err(Refused::Restored) => self.plain = true,
                Err(Refused::Failed(e)) => return Err(e),
            }
        }
        let report = parts.work(&images, &labels)?;
        match addresses(parts.model) {
            Some(now) if now == self.addresses => self.settled += 1,
            now => {
                self.settled = now.is_some() as usize;
                self.addresses = now.unwrap_or_default();
            }
        }
        read(&report)
    }
}

fn read(report: &Tensor) -> Result<Found> {
    let v = report.to_vec::<f64>()?;
    Ok(Found {
        loss: v[0] + v[1],
        correct: v[2] as usize,
    })
}

impl Parts<'_> {
    fn update(&mut self, mut grads: Gradients) -> Result<()> {
        add_l2_gradients(self.model, self.reg, &mut grads)?;
        self.optimizer.step(self.model, &grads)
    }

    /// Forward to gradients: the report, and the gradients.
    fn gradients(&mut self, images: &Tensor, labels: &Tensor) -> Result<(Tensor, Gradients)> {
        let scores = self.model.forward(images, Mode::Train)?;
        let loss = (self.loss)(&scores, labels)?;
        let options = (DType::F64, images.device());
        let penalty = match l2_penalty(self.model, self.reg)? {
            Some(penalty) => penalty.reshape(1)?,
            None => Tensor::zeros(1, options)?,
        };
        let correct = correct_tensor(&scores, labels)?
            .cast(DType::F64)?
            .reshape(1)?;
        let value = loss.cast(DType::F64)?.reshape(1)?;
        let report = Tensor::cat(&[&value, &penalty, &correct], 0)?;
        Ok((report, loss.backward()?))
    }

    /// A whole step on a CUDA device, which nothing waits for.
    fn work(&mut self, images: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let (report, grads) = self.gradients(images, labels)?;
        self.update(grads)?;
        Ok(report)
    }
}

/// Why a step was not captured.
enum Refused {
    /// It cannot be; everything is as before.
    Restored,
    /// Something broke on the way.
    Failed(Error),
}

impl From<Error> for Refused {
    fn from(e: Error) -> Self {
        Refused::Failed(e)
    }
}

impl Captured {
    /// Record a step on these inputs, which become the graph's own.
    fn new(
        parts: &mut Parts<'_>,
        gpu: Gpu,
        images: &Tensor,
        labels: &Tensor,
    ) -> std::result::Result<Self, Refused> {
        let before = checkpoint::generators(parts.model);
        let place = addresses(parts.model);
        // whether the optimizer has counted the step
        let mut updating = false;
        let recorded = gpu.capture(|| {
            let (report, grads) = parts.gradients(images, labels)?;
            let after = checkpoint::generators(parts.model);
            let pairs = gpu.captured_scalars()?;
            let draws = pairs.chunks(2).map(|pair| owner(pair, &before, &after));
            let draws = draws.collect::<Option<Vec<_>>>().ok_or_else(|| {
                let why = "the step draws from a random stream that no module shows";
                Error::argument("capture", why)
            })?;
            updating = true;
            parts.update(grads)?;
            Ok((report, draws))
        });
        let (graph, (report, draws)) = match recorded {
            Ok(done) => done,
            // reads from the device, or wants more memory than one step after another does
            Err(Error::Argument { op: "capture", .. } | Error::OutOfMemory { .. }) if !updating => {
                checkpoint::set_generators(parts.model, &before);
                return Err(Refused::Restored);
            }
            Err(e) => return Err(e.into()),
        };
        if place.is_none() || addresses(parts.model) != place {
            let why = "the step moved a parameter to other memory";
            return Err(Error::argument("capture", why).into());
        }
        let after = checkpoint::generators(parts.model);
        let moved = |(name, g): (&String, &Generator)| {
            let start = before.get(name).map_or(g.offset, |b| b.offset);
            (name.clone(), g.offset.wrapping_sub(start))
        };
        Ok(Captured {
            moves: after.iter().map(moved).collect(),
            images: images.clone(),
            labels: labels.clone(),
            graph,
            report,
            draws,
        })
    }

    /// Whether nobody else holds its inputs, which a batch would then have to leave alone.
    fn is_alone(&self) -> bool {
        let count = |t: &Tensor| Arc::strong_count(&t.storage);
        count(&self.images) == 1 && count(&self.labels) == 1
    }

    /// Do it again with another batch, and count on the host what the host would have counted.
    fn replay(&mut self, parts: &mut Parts<'_>, feed: Feed) -> Result<()> {
        feed.write_to(&mut self.images, &mut self.labels)?;
        let mut streams = checkpoint::generators(parts.model);
        let mut scalars = Vec::with_capacity(self.graph.scalars().len());
        for (name, beyond) in &self.draws {
            let stream = streams.get(name).copied().unwrap_or(Generator::new(0));
            scalars.extend([stream.seed, stream.offset.wrapping_add(*beyond)]);
        }
        scalars.extend(parts.optimizer.replayed());
        self.graph.replay(&scalars)?;
        for (name, stream) in &mut streams {
            let far = self.moves.get(name).copied().unwrap_or(0);
            stream.offset = stream.offset.wrapping_add(far);
        }
        checkpoint::set_generators(parts.model, &streams);
        Ok(())
    }
}

/// The stream that was at (seed, offset) during a step, and how far beyond the step's start. Two
/// streams of one seed at one place draw the same numbers: it does not matter which, if both
/// move equally far.
fn owner(
    pair: &[u64],
    before: &BTreeMap<String, Generator>,
    after: &BTreeMap<String, Generator>,
) -> Option<(String, u64)> {
    let [seed, offset] = *pair else { return None };
    let mut found: Option<(&String, u64, u64)> = None;
    for (name, start) in before.iter().filter(|(_, g)| g.seed == seed) {
        let far = after.get(name)?.offset.wrapping_sub(start.offset);
        let beyond = offset.wrapping_sub(start.offset);
        if beyond >= far.max(1) {
            continue;
        }
        match found {
            Some((_, b, f)) if (b, f) != (beyond, far) => return None,
            Some(_) => {}
            None => found = Some((name, beyond, far)),
        }
    }
    found.map(|(name, beyond, _)| (name.clone(), beyond))
}

/// Where a model's parameters and buffers lie on their device; `None` where somebody else holds
/// one of them, so that a write would have to move it.
fn addresses(model: &mut dyn Module) -> Option<Vec<u64>> {
    let mut all = Some(Vec::new());
    nn::visit(model, |_, slot| {
        let (Slot::Parameter(t) | Slot::Buffer(t)) = slot else {
            return;
        };
        match (Arc::strong_count(&t.storage), t.storage.cuda(), &mut all) {
            (1, Some(buffer), Some(list)) => list.push(buffer.address()),
            _ => all = None,
        }
    });
    all
}
