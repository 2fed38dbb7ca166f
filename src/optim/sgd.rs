//! Stochastic gradient descent, with momentum after Polyak and Nesterov.

use serde::{Deserialize, Serialize};

use super::{Elementwise, Rule, Scalars, check, check_not_negative, momentum_in_use};
use crate::cuda::{Kernels, kernels};
use crate::dtype::Real;
use crate::error::{Error, Result};

kernels! {
    /// SGD's step, one block a stretch of a parameter.
    SGD = "sgd" [F32, F64];
}

/// PyTorch's `SGD`; with d = g + weight_decay p, and v = d at the first step:
///
/// `v = momentum v + (1 - dampening) d; p -= lr v`, with Nesterov `p -= lr (d + momentum v)`.
///
/// CS231n's `sgd_momentum` (`v = momentum v - lr d; w += v`) is the same with its velocity equal
/// to -lr times this one, as long as the learning rate stays; when it changes, CS231n's velocity
/// keeps the old rate for the steps that it remembers.
pub type Sgd = Elementwise<SgdConfig>;

/// Settings of [`Sgd`], by PyTorch's names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SgdConfig {
    /// The learning rate.
    pub lr: f64,
    /// How much of the velocity stays; 0 keeps none.
    pub momentum: f64,
    /// How much of the gradient does not enter the velocity.
    pub dampening: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
    /// Look one step ahead along the velocity.
    pub nesterov: bool,
}

impl Default for SgdConfig {
    fn default() -> Self {
        SgdConfig {
            lr: 1e-3,
            momentum: 0.0,
            dampening: 0.0,
            weight_decay: 0.0,
            nesterov: false,
        }
    }
}

impl Rule for SgdConfig {
    fn state_names(&self) -> &'static [&'static str] {
        match self.momentum {
            0.0 => &[],
            _ => &["momentum_buffer"],
        }
    }

    fn learning_rate(&self) -> f64 {
        self.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.lr = lr;
    }

    fn momentum(&self) -> Option<f64> {
        (self.momentum != 0.0).then_some(self.momentum)
    }

    fn set_momentum(&mut self, momentum: f64) {
        if self.momentum != 0.0 {
            self.momentum = momentum_in_use(momentum);
        }
    }

    fn set_weight_decay(&mut self, weight_decay: f64) {
        self.weight_decay = weight_decay;
    }

    fn validate(&self) -> Result<()> {
        check_not_negative("learning_rate", self.lr)?;
        check_not_negative("momentum", self.momentum)?;
        let damps = (0.0..=1.0).contains(&self.dampening);
        check("dampening", self.dampening, damps, "0 to 1")?;
        check_not_negative("weight_decay", self.weight_decay)?;
        if self.nesterov && (self.momentum == 0.0 || self.dampening != 0.0) {
            let why = "needs a momentum and no dampening";
            return Err(Error::config("nesterov", why));
        }
        Ok(())
    }

    fn scalars(&self, step: u64, _carried: f64) -> Scalars {
        // the first step's velocity is the gradient, without dampening
        let enters = if step == 1 { 1.0 } else { 1.0 - self.dampening };
        let (decay, nesterov) = (self.weight_decay, f64::from(self.nesterov));
        [
            self.lr,
            decay,
            self.momentum,
            enters,
            nesterov,
            0.0,
            0.0,
            0.0,
        ]
    }

    #[inline(always)]
    fn update<T: Real>(&self, c: [T; 8], p: &mut [T], g: &[T], state: &mut [&mut [T]]) {
        let [lr, decay, momentum, enters, ..] = c;
        let [velocity] = state else {
            for (p, &g) in p.iter_mut().zip(g) {
                *p = *p - lr * (g + decay * *p);
            }
            return;
        };
        for ((p, &g), v) in p.iter_mut().zip(g).zip(velocity.iter_mut()) {
            let d = g + decay * *p;
            *v = momentum * *v + enters * d;
            let direction = if self.nesterov { d + momentum * *v } else { *v };
            *p = *p - lr * direction;
        }
    }

    fn kernels(&self) -> &'static Kernels {
        &SGD
    }
}
