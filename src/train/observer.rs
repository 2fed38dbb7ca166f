//! Looking at a run from the side while it goes, and leaving it as it was.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::nn::{self, Module, Slot};
use crate::random::Generator;
use crate::tensor::Tensor;
use crate::train::checkpoint;
use crate::train::loss::LossFn;

/// Where a run stands before a step.
pub struct StepView<'a> {
    /// The step's number, from 0.
    pub step: usize,
    /// The network. The run goes on from what it is afterwards.
    pub model: &'a mut dyn Module,
    /// The step's batches, of which most runs have one: images (N, C, H, W) and labels (N), or
    /// shares of classes (N, C), on the network's device.
    pub batches: &'a [(Tensor, Tensor)],
    /// What the step makes smaller, without the penalty.
    pub loss: &'a LossFn,
    /// The L2 penalty's factor.
    pub reg: f64,
}

/// Is shown a run as it goes; see [`Solver::with_observer`](crate::train::Solver::with_observer).
/// An error ends the run.
pub trait Observer {
    /// Whether [`before_step`](Self::before_step) is for this step.
    fn watches(&self, _step: usize) -> bool {
        false
    }

    /// Before a step that it watches.
    fn before_step(&mut self, _at: StepView<'_>) -> Result<()> {
        Ok(())
    }

    /// After the `epoch`th epoch, counted from 1, with the weights that the last step left.
    fn after_epoch(&mut self, _epoch: usize, _model: &mut dyn Module) -> Result<()> {
        Ok(())
    }
}

/// A model's parameters, buffers and random streams, to be put back. They share the model's memory:
/// what is written meanwhile is written to copies, and what comes back is the very same memory.
pub(super) struct Kept {
    tensors: Vec<Tensor>,
    streams: BTreeMap<String, Generator>,
}

impl Kept {
    /// What `model` is now.
    pub fn of(model: &mut dyn Module) -> Self {
        let mut tensors = Vec::new();
        nn::visit(model, |_, slot| {
            if let Slot::Parameter(t) | Slot::Buffer(t) = slot {
                tensors.push(t.clone());
            }
        });
        Kept {
            tensors,
            streams: checkpoint::generators(model),
        }
    }

    /// Make `model` what it was.
    pub fn put_back(&self, model: &mut dyn Module) {
        let mut kept = self.tensors.iter();
        nn::visit(model, |_, slot| {
            if let Slot::Parameter(t) | Slot::Buffer(t) = slot
                && let Some(was) = kept.next()
            {
                *t = was.clone();
            }
        });
        checkpoint::set_generators(model, &self.streams);
    }
}
