//! Adagrad: steps divided by the root of all squared gradients so far.

use serde::{Deserialize, Serialize};

use super::{Elementwise, Rule, Scalars, check_not_negative};
use crate::cuda::{Kernels, kernels};
use crate::dtype::Real;
use crate::error::Result;

kernels! {
    /// Adagrad's step, one block a stretch of a parameter.
    ADAGRAD = "adagrad" [F32, F64];
}

/// PyTorch's `Adagrad` (Duchi, Hazan and Singer 2011); with d = g + weight_decay p, at step t from 1:
///
/// `s += d^2; p -= lr / (1 + (t - 1) lr_decay) d / (sqrt(s) + eps)`, where s begins as
/// `initial_accumulator_value`.
pub type Adagrad = Elementwise<AdagradConfig>;

/// Settings of [`Adagrad`], by PyTorch's names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdagradConfig {
    /// The learning rate.
    pub lr: f64,
    /// How fast the learning rate falls.
    pub lr_decay: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
    /// What the sums of squares begin with.
    pub initial_accumulator_value: f64,
    /// Added to the root, against division by 0.
    pub eps: f64,
}

impl Default for AdagradConfig {
    fn default() -> Self {
        AdagradConfig {
            lr: 1e-2,
            lr_decay: 0.0,
            weight_decay: 0.0,
            initial_accumulator_value: 0.0,
            eps: 1e-10,
        }
    }
}

impl Rule for AdagradConfig {
    fn state_names(&self) -> &'static [&'static str] {
        &["sum"]
    }

    fn state_start(&self) -> f64 {
        self.initial_accumulator_value
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
        check_not_negative("lr_decay", self.lr_decay)?;
        check_not_negative("weight_decay", self.weight_decay)?;
        check_not_negative("initial_accumulator_value", self.initial_accumulator_value)?;
        check_not_negative("epsilon", self.eps)
    }

    fn scalars(&self, step: u64, _carried: f64) -> Scalars {
        let before = step.saturating_sub(1) as f64;
        let rate = self.lr / (1.0 + before * self.lr_decay);
        [rate, self.weight_decay, self.eps, 0.0, 0.0, 0.0, 0.0, 0.0]
    }

    #[inline(always)]
    fn update<T: Real>(&self, c: [T; 8], p: &mut [T], g: &[T], state: &mut [&mut [T]]) {
        let [rate, decay, eps, ..] = c;
        let [sum] = state else { return };
        for ((p, &g), s) in p.iter_mut().zip(g).zip(sum.iter_mut()) {
            let d = g + decay * *p;
            *s += d * d;
            *p = *p - rate * d / (s.sqrt() + eps);
        }
    }

    fn kernels(&self) -> &'static Kernels {
        &ADAGRAD
    }
}
