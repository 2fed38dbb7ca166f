//! RMSprop: steps divided by the root of a running mean of squared gradients.

use serde::{Deserialize, Serialize};

use super::{Elementwise, Rule, Scalars, check_fraction, check_not_negative, momentum_in_use};
use crate::cuda::{Kernels, kernels};
use crate::dtype::Real;
use crate::error::Result;

kernels! {
    /// RMSprop's step, one block a stretch of a parameter.
    RMSPROP = "rmsprop" [F32, F64];
}

/// PyTorch's `RMSprop` (Tieleman and Hinton 2012, lecture 6e of "Neural networks for machine
/// learning"); with d = g + weight_decay p:
///
/// `s = alpha s + (1 - alpha) d^2; p -= lr d / (sqrt(s) + eps)`.
///
/// Centered, the root is of s - a^2 with the running mean a of d; with momentum,
/// `v = momentum v + d / (root + eps); p -= lr v`. CS231n's `rmsprop` is the same with
/// `decay_rate` for alpha.
pub type RmsProp = Elementwise<RmsPropConfig>;

/// Settings of [`RmsProp`], by PyTorch's names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RmsPropConfig {
    /// The learning rate.
    pub lr: f64,
    /// How much of the running mean of squares stays.
    pub alpha: f64,
    /// Added to the root, against division by 0.
    pub eps: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
    /// How much of the velocity stays; 0 keeps none.
    pub momentum: f64,
    /// Divide by the deviation about the running mean.
    pub centered: bool,
}

impl Default for RmsPropConfig {
    fn default() -> Self {
        RmsPropConfig {
            lr: 1e-2,
            alpha: 0.99,
            eps: 1e-8,
            weight_decay: 0.0,
            momentum: 0.0,
            centered: false,
        }
    }
}

impl Rule for RmsPropConfig {
    fn state_names(&self) -> &'static [&'static str] {
        match (self.centered, self.momentum != 0.0) {
            (false, false) => &["square_avg"],
            (false, true) => &["square_avg", "momentum_buffer"],
            (true, false) => &["square_avg", "grad_avg"],
            (true, true) => &["square_avg", "grad_avg", "momentum_buffer"],
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
        check_fraction("alpha", self.alpha)?;
        check_not_negative("epsilon", self.eps)?;
        check_not_negative("weight_decay", self.weight_decay)?;
        check_not_negative("momentum", self.momentum)
    }

    fn scalars(&self, _step: u64, _carried: f64) -> Scalars {
        let rest = 1.0 - self.alpha;
        let (decay, centered) = (self.weight_decay, f64::from(self.centered));
        let (lr, alpha, eps, momentum) = (self.lr, self.alpha, self.eps, self.momentum);
        [lr, alpha, rest, eps, decay, momentum, centered, 0.0]
    }

    #[inline(always)]
    fn update<T: Real>(&self, c: [T; 8], p: &mut [T], g: &[T], state: &mut [&mut [T]]) {
        let [lr, alpha, rest, eps, decay, momentum, ..] = c;
        let Some((square, more)) = state.split_first_mut() else {
            return;
        };
        let (mut mean, mut velocity) = match more {
            [m, v] => (Some(m), Some(v)),
            [m] if self.centered => (Some(m), None),
            [v] => (None, Some(v)),
            _ => (None, None),
        };
        for (i, ((p, &g), s)) in p.iter_mut().zip(g).zip(square.iter_mut()).enumerate() {
            let d = g + decay * *p;
            *s = alpha * *s + rest * d * d;
            let variance = match &mut mean {
                Some(m) => {
                    m[i] += rest * (d - m[i]);
                    *s - m[i] * m[i]
                }
                None => *s,
            };
            let mut direction = d / (variance.sqrt() + eps);
            if let Some(v) = &mut velocity {
                v[i] = momentum * v[i] + direction;
                direction = v[i];
            }
            *p = *p - lr * direction;
        }
    }

    fn kernels(&self) -> &'static Kernels {
        &RMSPROP
    }
}
