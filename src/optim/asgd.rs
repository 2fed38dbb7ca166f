//! Averaged stochastic gradient descent: plain steps that fall off slowly, and their average.

use serde::{Deserialize, Serialize};

use super::{Elementwise, Rule, Scalars, check_not_negative};
use crate::cuda::{Kernels, kernels};
use crate::dtype::Real;
use crate::error::Result;

kernels! {
    /// ASGD's step, one block a stretch of a parameter.
    ASGD = "asgd" [F32, F64];
}

/// PyTorch's `ASGD` (Polyak and Juditsky 1992); with d = g + weight_decay p, at step t from 1:
///
/// `p = (1 - lambd eta) p - eta d; ax += mu (p - ax)`, and for the next step
/// `eta = lr / (1 + lambd lr t)^alpha; mu = 1 / max(1, t - t0)`.
///
/// The first step has eta = lr and mu = 1, so that `ax` is a copy of p until step t0 and the mean
/// of p from there on. [`averaged`](super::Optimizer::averaged) gives `ax`. As in PyTorch, eta lags
/// a change of the learning rate by one step; it is saved with the state.
pub type Asgd = Elementwise<AsgdConfig>;

/// Settings of [`Asgd`], by PyTorch's names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AsgdConfig {
    /// The learning rate.
    pub lr: f64,
    /// How fast the parameters and the steps shrink.
    pub lambd: f64,
    /// The power with which the steps shrink.
    pub alpha: f64,
    /// The step at which averaging begins.
    pub t0: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

impl Default for AsgdConfig {
    fn default() -> Self {
        AsgdConfig {
            lr: 1e-2,
            lambd: 1e-4,
            alpha: 0.75,
            t0: 1e6,
            weight_decay: 0.0,
        }
    }
}

impl Rule for AsgdConfig {
    fn state_names(&self) -> &'static [&'static str] {
        &["ax"]
    }

    fn averaged(&self) -> Option<usize> {
        Some(0)
    }

    fn carried_name(&self) -> Option<&'static str> {
        Some("eta")
    }

    fn carried(&self, step: u64) -> f64 {
        self.lr / (1.0 + self.lambd * self.lr * step as f64).powf(self.alpha)
    }

    fn learning_rate(&self) -> f64 {
        self.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.lr = lr;
    }

    fn set_weight_decay(&mut self, weight_decay: f64) {
        self.weight_decay = weight_decay;
    }

    fn validate(&self) -> Result<()> {
        check_not_negative("learning_rate", self.lr)?;
        check_not_negative("lambd", self.lambd)?;
        check_not_negative("alpha", self.alpha)?;
        check_not_negative("t0", self.t0)?;
        check_not_negative("weight_decay", self.weight_decay)
    }

    fn scalars(&self, step: u64, eta: f64) -> Scalars {
        let since = step.saturating_sub(1) as f64 - self.t0;
        let (keep, mu) = (1.0 - self.lambd * eta, 1.0 / since.max(1.0));
        [keep, eta, self.weight_decay, mu, 0.0, 0.0, 0.0, 0.0]
    }

    #[inline(always)]
    fn update<T: Real>(&self, c: [T; 8], p: &mut [T], g: &[T], state: &mut [&mut [T]]) {
        let [keep, eta, decay, mu, ..] = c;
        let [ax] = state else { return };
        for ((p, &g), ax) in p.iter_mut().zip(g).zip(ax.iter_mut()) {
            let d = g + decay * *p;
            *p = keep * *p - eta * d;
            *ax = if mu == T::ONE {
                *p
            } else {
                *ax + mu * (*p - *ax)
            };
        }
    }

    fn kernels(&self) -> &'static Kernels {
        &ASGD
    }
}
