//! Lookahead: slow weights that follow the fast ones every few steps.

use serde::{Deserialize, Serialize};

use super::rows::Lerp;
use super::shadow::{Shadow, has_shadow, take_count};
use super::{Optimizer, check};
use crate::autograd::Gradients;
use crate::error::{Error, Result};
use crate::nn::{self, Module};
use crate::tensor::Tensor;

/// Any optimizer under Lookahead (Zhang, Lucas, Hinton and Ba 2019): `k` of its steps lead the
/// fast weights away, then
///
/// `slow += alpha (fast - slow); fast = slow`.
///
/// The slow weights start as the parameters. The inner optimizer's own state stays as it is.
/// [`averaged`](Optimizer::averaged) gives the slow weights. Parameters of 16-bit floats are an
/// [`Error::DType`].
///
/// ```
/// # use cotangent::optim::{Lookahead, LookaheadConfig, Sgd, SgdConfig};
/// let sgd = Sgd::new(SgdConfig { lr: 0.1, ..SgdConfig::default() })?;
/// let optimizer = Lookahead::new(Box::new(sgd), LookaheadConfig::default())?;
/// # Ok::<(), cotangent::Error>(())
/// ```
pub struct Lookahead {
    inner: Box<dyn Optimizer>,
    config: LookaheadConfig,
    slow: Shadow,
    steps: u64,
    /// Whether the last step took its weights as numbers of the step.
    on_device: bool,
}

/// Settings of [`Lookahead`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LookaheadConfig {
    /// Steps of the fast weights between two of the slow ones.
    pub k: u64,
    /// How far the slow weights go, above 0 and at most 1.
    pub alpha: f64,
    /// The buffers of floats (running statistics) follow, too.
    pub buffers: bool,
    /// Go less and less far: at step t of these many, alpha is 1 - (1 - alpha) (t / steps)^3, as in
    /// airbench94 (Jordan 2024), which has k 5, alpha 1 - 0.95^5 and the buffers, and evaluates with
    /// the slow weights.
    pub ramp: Option<u64>,
}

impl Default for LookaheadConfig {
    fn default() -> Self {
        LookaheadConfig {
            k: 5,
            alpha: 0.5,
            buffers: false,
            ramp: None,
        }
    }
}

const SLOW: &str = "slow";
const STEPS: &str = "lookahead_steps";

impl Lookahead {
    /// Let `inner` lead; an [`Error::Config`] where `k` or `ramp` is 0 or `alpha` outside of (0, 1].
    pub fn new(inner: Box<dyn Optimizer>, config: LookaheadConfig) -> Result<Self> {
        let LookaheadConfig { k, alpha, ramp, .. } = config;
        let fits = alpha > 0.0 && alpha <= 1.0;
        check("lookahead_alpha", alpha, fits, "above 0 and at most 1")?;
        for (key, steps) in [("lookahead_k", k), ("lookahead_ramp", ramp.unwrap_or(1))] {
            if steps == 0 {
                return Err(Error::config(key, "0; expected at least 1"));
            }
        }
        Ok(Lookahead {
            inner,
            config,
            slow: Shadow::default(),
            steps: 0,
            on_device: false,
        })
    }

    /// How far the slow weights go to the fast ones in the step that has just been counted, and
    /// then the fast to the slow. Numbers and no branches, so that every step does the same work.
    fn weights(&self) -> [f64; 2] {
        let LookaheadConfig { k, alpha, ramp, .. } = self.config;
        if !self.steps.is_multiple_of(k) {
            return [0.0; 2];
        }
        let done = ramp.map_or(1.0, |all| (self.steps as f64 / all as f64).min(1.0));
        [1.0 - (1.0 - alpha) * done.powi(3), 1.0]
    }
}

impl Optimizer for Lookahead {
    fn step(&mut self, model: &mut dyn Module, grads: &Gradients) -> Result<()> {
        let buffers = self.config.buffers;
        nn::try_visit(model, |name, slot| match has_shadow(slot, buffers) {
            Some(x) => self.slow.of(SLOW, name, x).map(|_| ()),
            None => Ok(()),
        })?;
        self.inner.step(model, grads)?;
        self.steps += 1;
        let [forth, back] = self.weights();
        let mut lerp = Lerp::new(SLOW, forth);
        nn::try_visit(model, |name, slot| match has_shadow(slot, buffers) {
            Some(fast) => lerp.add(self.slow.of(SLOW, name, fast)?, fast),
            None => Ok(()),
        })?;
        self.on_device = lerp.launch()?;
        let mut lerp = Lerp::new(SLOW, back);
        nn::try_visit(model, |name, slot| match has_shadow(slot, buffers) {
            Some(fast) => lerp.add(fast, self.slow.of(SLOW, name, fast)?),
            None => Ok(()),
        })?;
        lerp.launch()?;
        Ok(())
    }

    fn replayed(&mut self) -> Vec<u64> {
        let mut scalars = self.inner.replayed();
        if self.on_device {
            self.steps += 1;
            scalars.extend(self.weights().map(f64::to_bits));
        }
        scalars
    }

    fn learning_rate(&self) -> f64 {
        self.inner.learning_rate()
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.inner.set_learning_rate(lr);
    }

    fn momentum(&self) -> Option<f64> {
        self.inner.momentum()
    }

    fn set_momentum(&mut self, momentum: f64) {
        self.inner.set_momentum(momentum);
    }

    fn averaged(&self) -> Result<Option<Vec<(String, Tensor)>>> {
        self.slow.copies()
    }

    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut all = self.inner.state()?;
        all.extend(self.slow.state(SLOW));
        all.push((STEPS.into(), Tensor::scalar(self.steps as i64)?));
        Ok(all)
    }

    fn load_state(&mut self, model: &mut dyn Module, state: &[(String, Tensor)]) -> Result<()> {
        let (slow, mut rest) = Shadow::load(SLOW, model, self.config.buffers, state)?;
        let steps = take_count(&mut rest, STEPS)?;
        self.inner.load_state(model, &rest)?;
        (self.slow, self.steps, self.on_device) = (slow, steps, false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bag, constant_step};
    use super::super::{Sgd, SgdConfig};
    use super::*;
    use crate::dtype::DType;

    fn new(config: LookaheadConfig) -> Result<Lookahead> {
        let sgd = Sgd::new(SgdConfig {
            lr: 1.0,
            ..SgdConfig::default()
        })?;
        Lookahead::new(Box::new(sgd), config)
    }

    #[test]
    fn every_kth_step_goes_back_to_the_slow_weights() -> Result<()> {
        for ramp in [None, Some(8)] {
            let config = LookaheadConfig {
                k: 3,
                alpha: 0.25,
                ramp,
                ..LookaheadConfig::default()
            };
            let mut lookahead = new(config)?;
            let mut bag = Bag(vec![Tensor::ones([2], DType::F64)?.requires_grad()]);
            let (mut fast, mut slow) = (1.0, 1.0);
            for t in 1..=12 {
                constant_step(&mut lookahead, &mut bag, 1.0 / t as f64)?;
                fast -= 1.0 / t as f64;
                if t % 3 == 0 {
                    let done = if ramp.is_some() { t as f64 / 8.0 } else { 1.0 };
                    slow += (1.0 - 0.75 * done.min(1.0).powi(3)) * (fast - slow);
                    fast = slow;
                }
                let got = bag.0[0].to_vec::<f64>()?[1];
                assert!((got - fast).abs() < 1e-12, "step {t}: {got} {fast}");
                let averaged = lookahead.averaged()?.unwrap();
                assert!((averaged[0].1.to_vec::<f64>()?[0] - slow).abs() < 1e-12);
            }
        }
        Ok(())
    }

    #[test]
    fn settings_without_sense_are_refused() {
        let refused = |change: fn(&mut LookaheadConfig)| {
            let mut c = LookaheadConfig::default();
            change(&mut c);
            new(c).map(|_| ()).unwrap_err().to_string()
        };
        assert_eq!(
            refused(|c| c.alpha = 1.5),
            "configuration: lookahead_alpha: 1.5; expected above 0 and at most 1"
        );
        assert!(refused(|c| c.alpha = f64::NAN).contains("alpha"));
        assert!(refused(|c| c.k = 0).contains("lookahead_k: 0; expected at least 1"));
        assert!(refused(|c| c.ramp = Some(0)).contains("lookahead_ramp"));
    }
}
