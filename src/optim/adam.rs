//! Adam and AdamW: momentum and RMSprop together, both without bias at the start.

use serde::{Deserialize, Serialize};

use super::{Elementwise, Rule, Scalars, check_fraction, check_not_negative};
use crate::cuda::{Kernels, kernels};
use crate::dtype::Real;
use crate::error::Result;

kernels! {
    /// Adam's and AdamW's step, one block a stretch of a parameter.
    ADAM = "adam" [F32, F64];
    /// The same with AMSGrad.
    AMSGRAD = "amsgrad" [F32, F64];
}

/// PyTorch's `Adam` (Kingma and Ba 2015); with d = g + weight_decay p, at step t from 1:
///
/// `m = b1 m + (1 - b1) d; v = b2 v + (1 - b2) d^2`,
/// `p -= lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)`. CS231n's `adam` is the same.
///
/// With `amsgrad` (Reddi, Kale and Kumar 2018) the root is of the greatest v so far.
pub type Adam = Elementwise<AdamConfig>;

/// PyTorch's `AdamW` (Loshchilov and Hutter 2019): Adam on the bare gradient, after
/// `p -= lr weight_decay p`.
pub type AdamW = Elementwise<AdamWConfig>;

/// Settings of [`Adam`], by PyTorch's names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamConfig {
    /// The learning rate.
    pub lr: f64,
    /// How much of the running means of gradients and of squares stays.
    pub betas: [f64; 2],
    /// Added to the root, against division by 0.
    pub eps: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
    /// Divide by the root of the greatest mean of squares so far.
    pub amsgrad: bool,
}

impl Default for AdamConfig {
    fn default() -> Self {
        AdamConfig {
            lr: 1e-3,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            amsgrad: false,
        }
    }
}

/// Settings of [`AdamW`], by PyTorch's names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// The learning rate.
    pub lr: f64,
    /// How much of the running means of gradients and of squares stays.
    pub betas: [f64; 2],
    /// Added to the root, against division by 0.
    pub eps: f64,
    /// How fast the parameters shrink, times the learning rate.
    pub weight_decay: f64,
    /// Divide by the root of the greatest mean of squares so far.
    pub amsgrad: bool,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        AdamWConfig {
            lr: 1e-3,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 1e-2,
            amsgrad: false,
        }
    }
}

impl AdamWConfig {
    /// The rule without its decay.
    fn adam(&self) -> AdamConfig {
        AdamConfig {
            lr: self.lr,
            betas: self.betas,
            eps: self.eps,
            weight_decay: 0.0,
            amsgrad: self.amsgrad,
        }
    }
}

impl Rule for AdamConfig {
    fn state_names(&self) -> &'static [&'static str] {
        match self.amsgrad {
            false => &["exp_avg", "exp_avg_sq"],
            true => &["exp_avg", "exp_avg_sq", "max_exp_avg_sq"],
        }
    }

    fn learning_rate(&self) -> f64 {
        self.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.lr = lr;
    }

    fn momentum(&self) -> Option<f64> {
        Some(self.betas[0])
    }

    fn set_momentum(&mut self, momentum: f64) {
        self.betas[0] = momentum;
    }

    fn set_weight_decay(&mut self, weight_decay: f64) {
        self.weight_decay = weight_decay;
    }

    fn validate(&self) -> Result<()> {
        check_not_negative("learning_rate", self.lr)?;
        check_fraction("beta1", self.betas[0])?;
        check_fraction("beta2", self.betas[1])?;
        check_not_negative("epsilon", self.eps)?;
        check_not_negative("weight_decay", self.weight_decay)
    }

    fn scalars(&self, step: u64, _carried: f64) -> Scalars {
        let [b1, b2] = self.betas;
        // the corrections are folded into constants of the step: lr m / (1 - b1^t) = rate m
        let rate = self.lr / (1.0 - b1.powf(step as f64));
        let root = 1.0 / (1.0 - b2.powf(step as f64)).sqrt();
        let decay = self.weight_decay;
        [1.0, decay, 1.0 - b1, b2, 1.0 - b2, rate, root, self.eps]
    }

    #[inline(always)]
    fn update<T: Real>(&self, c: [T; 8], p: &mut [T], g: &[T], state: &mut [&mut [T]]) {
        let [keep, decay, in1, b2, in2, rate, root, eps] = c;
        let moments = |p: T, g: T, m: &mut T, v: &mut T| {
            let d = g + decay * p;
            *m += in1 * (d - *m);
            *v = b2 * *v + in2 * d * d;
        };
        let next = |p: T, m: T, v: T| keep * p - rate * m / (v.sqrt() * root + eps);
        match state {
            [mean, square] => {
                let states = mean.iter_mut().zip(square.iter_mut());
                for ((p, &g), (m, v)) in p.iter_mut().zip(g).zip(states) {
                    moments(*p, g, m, v);
                    *p = next(*p, *m, *v);
                }
            }
            [mean, square, greatest] => {
                let squares = square.iter_mut().zip(greatest.iter_mut());
                let states = mean.iter_mut().zip(squares);
                for ((p, &g), (m, (v, most))) in p.iter_mut().zip(g).zip(states) {
                    moments(*p, g, m, v);
                    *most = if *most > *v { *most } else { *v };
                    *p = next(*p, *m, *most);
                }
            }
            _ => {}
        }
    }

    fn kernels(&self) -> &'static Kernels {
        if self.amsgrad { &AMSGRAD } else { &ADAM }
    }
}

impl Rule for AdamWConfig {
    fn state_names(&self) -> &'static [&'static str] {
        self.adam().state_names()
    }

    fn learning_rate(&self) -> f64 {
        self.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.lr = lr;
    }

    fn momentum(&self) -> Option<f64> {
        Some(self.betas[0])
    }

    fn set_momentum(&mut self, momentum: f64) {
        self.betas[0] = momentum;
    }

    fn set_weight_decay(&mut self, weight_decay: f64) {
        self.weight_decay = weight_decay;
    }

    fn validate(&self) -> Result<()> {
        check_not_negative("weight_decay", self.weight_decay)?;
        self.adam().validate()
    }

    fn scalars(&self, step: u64, carried: f64) -> Scalars {
        let mut c = self.adam().scalars(step, carried);
        // of the parameters so much is kept, before Adam's step on the bare gradient
        c[0] = 1.0 - self.lr * self.weight_decay;
        c
    }

    #[inline(always)]
    fn update<T: Real>(&self, c: [T; 8], p: &mut [T], g: &[T], state: &mut [&mut [T]]) {
        self.adam().update(c, p, g, state);
    }

    fn kernels(&self) -> &'static Kernels {
        self.adam().kernels()
    }
}
