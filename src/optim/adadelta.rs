//! Adadelta: steps whose size comes from the steps before, with no unit to choose.

use serde::{Deserialize, Serialize};

use super::{Elementwise, Rule, Scalars, check, check_not_negative};
use crate::cuda::{Kernels, kernels};
use crate::dtype::Real;
use crate::error::Result;

kernels! {
    /// Adadelta's step, one block a stretch of a parameter.
    ADADELTA = "adadelta" [F32, F64];
}

/// PyTorch's `Adadelta` (Zeiler 2012); with d = g + weight_decay p:
///
/// `v = rho v + (1 - rho) d^2; u = sqrt(a + eps) / sqrt(v + eps) d`,
/// `a = rho a + (1 - rho) u^2; p -= lr u`.
pub type Adadelta = Elementwise<AdadeltaConfig>;

/// Settings of [`Adadelta`], by PyTorch's names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdadeltaConfig {
    /// The learning rate.
    pub lr: f64,
    /// How much of the running means of squares stays.
    pub rho: f64,
    /// Added to both means: what the very first steps are made of.
    pub eps: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

impl Default for AdadeltaConfig {
    fn default() -> Self {
        AdadeltaConfig {
            lr: 1.0,
            rho: 0.9,
            eps: 1e-6,
            weight_decay: 0.0,
        }
    }
}

impl Rule for AdadeltaConfig {
    fn state_names(&self) -> &'static [&'static str] {
        &["square_avg", "acc_delta"]
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
        let fits = (0.0..=1.0).contains(&self.rho);
        check("rho", self.rho, fits, "at least 0 and at most 1")?;
        check_not_negative("epsilon", self.eps)?;
        check_not_negative("weight_decay", self.weight_decay)
    }

    fn scalars(&self, _step: u64, _carried: f64) -> Scalars {
        let (rest, decay) = (1.0 - self.rho, self.weight_decay);
        [self.lr, self.rho, rest, self.eps, decay, 0.0, 0.0, 0.0]
    }

    #[inline(always)]
    fn update<T: Real>(&self, c: [T; 8], p: &mut [T], g: &[T], state: &mut [&mut [T]]) {
        let [lr, rho, rest, eps, decay, ..] = c;
        let [square, delta] = state else { return };
        let means = square.iter_mut().zip(delta.iter_mut());
        for ((p, &g), (v, a)) in p.iter_mut().zip(g).zip(means) {
            let d = g + decay * *p;
            *v = rho * *v + rest * d * d;
            let u = (*a + eps).sqrt() / (*v + eps).sqrt() * d;
            *a = rho * *a + rest * u * u;
            *p = *p - lr * u;
        }
    }

    fn kernels(&self) -> &'static Kernels {
        &ADADELTA
    }
}
