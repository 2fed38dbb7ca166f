//! One training step: forward, loss, backward, update. On a CUDA device it is captured once it has
//! settled, and from then on replayed: as one graph, or as two where the host must look in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::autograd::{Gradients, autocast};
use crate::cuda::{Gpu, Graph};
use crate::data::Feed;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::nn::{self, Mode, Module, Slot};
use crate::ops::loss::metrics::correct_tensor;
use crate::optim::{self, Optimizer};
use crate::random::Generator;
use crate::tensor::Tensor;
use crate::train::amp::{self, GradScaler};
use crate::train::checkpoint;
use crate::train::l2::{add_l2_gradients, l2_penalty};
use crate::train::loss::LossFn;
use crate::train::solver::SolverConfig;

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
    /// Of F16 alone.
    pub scaler: Option<&'a mut GradScaler>,
    pub config: &'a SolverConfig,
    /// The parameters that have had a gradient in this step, where several batches make one.
    pub seen: BTreeSet<String>,
}

/// What a step found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Found {
    /// With the L2 penalty.
    pub loss: f64,
    /// Images whose greatest score was at the label.
    pub correct: usize,
}

/// What a batch found.
struct Report {
    loss: f64,
    penalty: f64,
    correct: usize,
    /// Whether all gradients are finite, where a scaler asks.
    finite: bool,
}

/// Makes steps, and knows whether one has been captured.
#[derive(Default)]
pub(super) struct Stepper {
    /// Steps made one after another on the same addresses.
    settled: usize,
    /// Where the model's tensors were after the last step.
    addresses: Vec<u64>,
    captured: Option<Captured>,
    /// The gradients of the step under way. Where several batches make a step they stay from step
    /// to step, so that a captured one finds them.
    sums: Gradients,
    /// Never capture: asked for, or it failed.
    pub plain: bool,
}

/// A step that can be replayed.
struct Captured {
    /// Forward and backward of a batch, and the update unless that is apart.
    graph: Graph,
    /// The update where it is apart, from the first one on.
    update: Option<Graph>,
    images: Tensor,
    labels: Tensor,
    /// As F64: loss, penalty, images right and, for a scaler, the sum of the gradients' squares.
    report: Tensor,
    /// The captured scalars between the seed, where there is one, and the optimizer's: which random
    /// stream each pair (seed, offset) belongs to, and how far beyond the stream's place.
    draws: Vec<(String, u64)>,
    /// How far each stream moves in a batch.
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

    /// Make one step with the mean of the losses of `count` batches, at least 1. A loss that is not
    /// finite is an [`Error::NonFinite`]; on the CPU the parameters are then those of before.
    pub fn step(
        &mut self,
        parts: &mut Parts<'_>,
        feeds: &mut dyn Iterator<Item = Result<Feed>>,
        count: usize,
        number: u64,
    ) -> Result<Found> {
        let (mut found, mut finite) = (Found::default(), true);
        let device = nn::device(parts.model);
        // what backward begins with
        let scale = parts.scaler.as_ref().map_or(1.0, |s| s.scale());
        let seed = parts.is_split().then_some(scale / count as f64);
        match parts.config.accumulate {
            // those of a step that was left out
            1 if self.captured.is_none() => self.sums = Gradients::default(),
            1 => {}
            _ if device == Device::Cpu => self.sums = Gradients::default(),
            _ => self.sums.zero_()?,
        }
        let mut penalty = 0.0;
        for feed in feeds.take(count) {
            let report = self.batch(parts, feed?, seed)?;
            found.loss += report.loss / count as f64;
            found.correct += report.correct;
            (penalty, finite) = (report.penalty, report.finite);
            let loss = found.loss + penalty;
            if !loss.is_finite() {
                return Err(Error::NonFinite { step: number, loss });
            }
        }
        found.loss += penalty;
        // a step whose update is not apart has made it
        let whole = !parts.is_split() && nn::device(parts.model) != Device::Cpu;
        if finite && !whole {
            self.update(parts)?;
        }
        if let Some(scaler) = &mut parts.scaler {
            scaler.update(finite);
        }
        Ok(found)
    }

    /// Forward and backward of one batch; on a CUDA device also the update, unless it is apart.
    fn batch(&mut self, parts: &mut Parts<'_>, feed: Feed, seed: Option<f64>) -> Result<Report> {
        let device = nn::device(parts.model);
        if let Some(captured) = &mut self.captured {
            let fits = captured.is_alone()
                && captured.images.shape()[..] == feed.shape()
                && addresses(parts.model).as_ref() == Some(&self.addresses);
            if fits {
                captured.replay(parts, feed, seed)?;
                return read(&captured.report);
            }
            // somebody holds a parameter or the images, or the batch is another: start anew
            (self.captured, self.settled) = (None, 0);
            self.addresses.clear();
        }
        let (images, labels) = feed.tensors()?;
        if let Device::Cuda(gpu) = device
            && self.settled >= SETTLE
            && !self.plain
            && addresses(parts.model).as_ref() == Some(&self.addresses)
        {
            match Captured::new(parts, gpu, [&images, &labels], seed, &mut self.sums) {
                Ok(captured) => {
                    captured.graph.replay(captured.graph.scalars())?;
                    let report = read(&captured.report);
                    self.captured = Some(captured);
                    return report;
                }
                Err(Refused::Restored) => self.plain = true,
                Err(Refused::Failed(e)) => return Err(e),
            }
        }
        let start = seed.map(|s| amp::factor(s, device)).transpose()?;
        let report = parts.gradients(&images, &labels, start.as_ref(), &mut self.sums)?;
        if device != Device::Cpu && seed.is_none() {
            // nothing waits in between
            self.update_plainly(parts)?;
        }
        read(&report)
    }

    /// The update where it is apart from forward and backward.
    fn update(&mut self, parts: &mut Parts<'_>) -> Result<()> {
        let (Some(captured), Device::Cuda(gpu)) = (&mut self.captured, nn::device(parts.model))
        else {
            return self.update_plainly(parts);
        };
        if let Some(graph) = &captured.update {
            let inverse = parts.inverse().map(f64::to_bits);
            let mut scalars: Vec<u64> = inverse.into_iter().collect();
            scalars.extend(parts.optimizer.replayed());
            return graph.replay(&scalars);
        }
        let before = places(parts.model, &self.sums);
        let (graph, ()) = gpu.capture(|| parts.update(&mut self.sums))?;
        let lasting = parts.config.accumulate > 1;
        let moved = lasting && places(parts.model, &self.sums) != before;
        if moved || addresses(parts.model).as_ref() != Some(&self.addresses) {
            return Err(moves_memory());
        }
        graph.replay(graph.scalars())?;
        captured.update = Some(graph);
        Ok(())
    }

    fn update_plainly(&mut self, parts: &mut Parts<'_>) -> Result<()> {
        if parts.config.accumulate > 1 {
            // sums that stay from an earlier step are no gradients of this one
            let Parts { model, seen, .. } = parts;
            nn::visit(*model, |name, slot| {
                if let Slot::Parameter(p) = slot
                    && !seen.contains(name)
                {
                    self.sums.remove(p);
                }
            });
        }
        parts.update(&mut self.sums)?;
        if parts.config.accumulate == 1 {
            self.sums = Gradients::default();
        }
        if nn::device(parts.model) == Device::Cpu {
            return Ok(());
        }
        match addresses(parts.model) {
            Some(now) if now == self.addresses => self.settled += 1,
            now => {
                self.settled = now.is_some() as usize;
                self.addresses = now.unwrap_or_default();
            }
        }
        Ok(())
    }
}

fn moves_memory() -> Error {
    Error::argument("capture", "the step moved a parameter to other memory")
}

fn read(report: &Tensor) -> Result<Report> {
    let v = report.to_vec::<f64>()?;
    Ok(Report {
        loss: v[0],
        penalty: v[1],
        correct: v[2] as usize,
        finite: v.get(3).is_none_or(|squares| squares.is_finite()),
    })
}

impl Parts<'_> {
    /// Whether the host must look between backward and update.
    fn is_split(&self) -> bool {
        self.scaler.is_some() || self.config.accumulate > 1
    }

    /// What the gradients are multiplied by before the update.
    fn inverse(&self) -> Option<f64> {
        self.scaler.as_ref().map(|s| 1.0 / s.scale())
    }

    /// From the sums of the batches' gradients to new parameters.
    fn update(&mut self, grads: &mut Gradients) -> Result<()> {
        if let Some(inverse) = self.inverse() {
            let inverse = amp::factor(inverse, nn::device(self.model))?;
            amp::unscale(self.model, grads, &inverse)?;
        }
        add_l2_gradients(self.model, self.reg, grads)?;
        if let Some(most) = self.config.clip_grad_norm {
            optim::clip_grad_norm(grads, self.model, most)?;
        }
        if let Some(most) = self.config.clip_grad_value {
            optim::clip_grad_value(grads, self.model, most)?;
        }
        self.optimizer.step(self.model, grads)
    }

    /// Forward to gradients, which are added to `sums`; the report. `seed` is the gradient of the
    /// loss, 1 where there is none.
    fn gradients(
        &mut self,
        images: &Tensor,
        labels: &Tensor,
        seed: Option<&Tensor>,
        sums: &mut Gradients,
    ) -> Result<Tensor> {
        let options = (DType::F64, images.device());
        let (loss, correct) = {
            let _products = autocast(self.config.autocast.dtype())?;
            let mut scores = self.model.forward(images, Mode::Train)?;
            if self.config.autocast.dtype() == Some(scores.dtype()) {
                scores = scores.to_dtype(DType::F32)?;
            }
            let loss = (self.loss)(&scores, labels)?;
            let correct = match scores.rank() {
                // images that were reconstructed are not right or wrong
                4 => Tensor::zeros((), options)?,
                _ => correct_tensor(&scores, labels)?,
            };
            (loss, correct)
        };
        let penalty = match l2_penalty(self.model, self.reg)? {
            Some(penalty) => penalty.reshape(1)?,
            None => Tensor::zeros(1, options)?,
        };
        let correct = correct.cast(DType::F64)?.reshape(1)?;
        let value = loss.cast(DType::F64)?.reshape(1)?;
        let grads = match seed {
            Some(seed) => loss.backward_from(&seed.reshape(loss.shape())?)?,
            None => loss.backward()?,
        };
        drop(loss);
        self.gather(grads, sums)?;
        let mut report = vec![&value, &penalty, &correct];
        let squares;
        if self.scaler.is_some() {
            squares = amp::sum_squares(self.model, sums)?.reshape(1)?;
            report.push(&squares);
        }
        Tensor::cat(&report, 0)
    }

    /// Add a batch's gradients to those of the batches before.
    fn gather(&mut self, mut grads: Gradients, sums: &mut Gradients) -> Result<()> {
        if self.config.accumulate == 1 {
            *sums = grads;
            return Ok(());
        }
        let (mut rows, mut held) = (optim::Rows::default(), Vec::new());
        let seen = &mut self.seen;
        nn::try_visit(self.model, |name, slot| {
            let Slot::Parameter(p) = slot else {
                return Ok(());
            };
            let Some(grad) = grads.remove(p) else {
                return Ok(());
            };
            seen.insert(name.into());
            let Some(sum) = sums.get_mut(p) else {
                // in the parameter's memory order, in which the update takes it
                let mut first = grad.laid_out(p.layout().dense_like())?;
                drop(grad);
                first.make_unique()?;
                sums.insert(p, first);
                return Ok(());
            };
            if let Device::Cuda(_) = sum.device() {
                let grad = optim::beside("accumulate", &grad, sum)?;
                sum.make_unique()?;
                rows.push(&[sum, &grad]);
                held.push(grad);
                return Ok(());
            }
            sum.accumulate(&grad)
        })?;
        optim::axpy(rows, 1.0)
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
    /// Record a step on these images and labels, which become the graph's own.
    fn new(
        parts: &mut Parts<'_>,
        gpu: Gpu,
        [images, labels]: [&Tensor; 2],
        seed: Option<f64>,
        sums: &mut Gradients,
    ) -> std::result::Result<Self, Refused> {
        let before = checkpoint::generators(parts.model);
        let place = addresses(parts.model);
        let sums_at = places(parts.model, sums);
        // whether the optimizer has counted the step
        let mut updating = false;
        let recorded = gpu.capture(|| {
            let seed = seed.map(|s| Tensor::factor(gpu, s)).transpose()?;
            let report = parts.gradients(images, labels, seed.as_ref(), sums)?;
            if parts.config.accumulate > 1 && places(parts.model, sums) != sums_at {
                let why = "the step has gradients that the ones before had not";
                return Err(Error::argument("capture", why));
            }
            let after = checkpoint::generators(parts.model);
            let scalars = gpu.captured_scalars()?;
            let pairs = scalars[seed.is_some() as usize..].chunks(2);
            let draws = pairs.map(|pair| owner(pair, &before, &after));
            let draws = draws.collect::<Option<Vec<_>>>().ok_or_else(|| {
                let why = "the step draws from a random stream that no module shows";
                Error::argument("capture", why)
            })?;
            if seed.is_none() {
                updating = true;
                parts.update(&mut std::mem::take(sums))?;
            }
            Ok((report, draws))
        });
        let (graph, (report, draws)) = match recorded {
            Ok(done) => done,
            // reads from the device, or wants more memory than one step after another does
            Err(Error::Argument { op: "capture", .. } | Error::OutOfMemory { .. }) if !updating => {
                checkpoint::set_generators(parts.model, &before);
                // sums that were never written
                let mut sums_at = sums_at.into_iter();
                nn::visit(parts.model, |_, slot| {
                    if let Slot::Parameter(p) = slot
                        && sums_at.next().flatten().is_none()
                    {
                        sums.remove(p);
                    }
                });
                return Err(Refused::Restored);
            }
            Err(e) => return Err(e.into()),
        };
        if place.is_none() || addresses(parts.model) != place {
            return Err(moves_memory().into());
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
            update: None,
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
    fn replay(&mut self, parts: &mut Parts<'_>, feed: Feed, seed: Option<f64>) -> Result<()> {
        feed.write_to(&mut self.images, &mut self.labels)?;
        let mut streams = checkpoint::generators(parts.model);
        let mut scalars = Vec::with_capacity(self.graph.scalars().len());
        scalars.extend(seed.map(f64::to_bits));
        for (name, beyond) in &self.draws {
            let stream = streams.get(name).copied().unwrap_or(Generator::new(0));
            scalars.extend([stream.seed, stream.offset.wrapping_add(*beyond)]);
        }
        if seed.is_none() {
            scalars.extend(parts.optimizer.replayed());
        }
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

/// Where the gradients of a model's parameters lie, in the parameters' order.
fn places(model: &mut dyn Module, grads: &Gradients) -> Vec<Option<u64>> {
    let mut all = Vec::new();
    nn::visit(model, |_, slot| {
        if let Slot::Parameter(p) = slot {
            let buffer = grads.get(p).and_then(|g| g.storage.cuda());
            all.push(buffer.map(|b| b.address()));
        }
    });
    all
}
