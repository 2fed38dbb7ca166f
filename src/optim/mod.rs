//! Optimizers: from gradients to new parameters.

use crate::autograd::Gradients;
use crate::error::Result;
use crate::nn::Module;
use crate::tensor::Tensor;

/// An update rule with its state, one set of tensors a parameter, by the parameter's name.
pub trait Optimizer: Send {
    /// Update every parameter of `model` that has a gradient.
    fn step(&mut self, model: &mut dyn Module, grads: &Gradients) -> Result<()>;
    /// The learning rate of the next step.
    fn learning_rate(&self) -> f64;
    /// Set the learning rate of the next step.
    fn set_learning_rate(&mut self, lr: f64);
    /// The state by name (`exp_avg.conv1.weight`, ..., and `step`), to be saved.
    fn state(&self) -> Vec<(String, Tensor)>;
    /// Go on from a saved state.
    fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<()>;
}
