//! Averaged weights: an exponential moving average beside the weights that are trained.

use serde::{Deserialize, Serialize};

use super::rows::Lerp;
use super::shadow::{Shadow, copy, has_shadow, take_count};
use super::{Optimizer, check_fraction, refuse};
use crate::autograd::Gradients;
use crate::error::Result;
use crate::nn::{self, Module, Slot};
use crate::tensor::Tensor;

/// Any optimizer, with an average of the weights that it leaves behind: after each of its steps,
/// over all parameters and buffers of floats,
///
/// `average += (1 - decay) (weight - average)`,
///
/// PyTorch's `AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)`:
/// after the first step the average is a copy. Training itself does not see the average;
/// [`averaged`](Optimizer::averaged) gives it, [`with_averaged`] evaluates with it. Parameters or
/// buffers of 16-bit floats are an [`crate::Error::DType`].
///
/// ```
/// # use cotangent::optim::{Ema, EmaConfig, Sgd, SgdConfig};
/// let sgd = Sgd::new(SgdConfig { lr: 0.1, ..SgdConfig::default() })?;
/// let optimizer = Ema::new(Box::new(sgd), EmaConfig { decay: 0.99, warmup: true })?;
/// # Ok::<(), cotangent::Error>(())
/// ```
pub struct Ema {
    inner: Box<dyn Optimizer>,
    config: EmaConfig,
    average: Shadow,
    updates: u64,
    /// Whether the last step took its decay as a number of the step.
    on_device: bool,
}

/// Settings of [`Ema`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmaConfig {
    /// How much of the average stays in a step; PyTorch's default 0.999.
    pub decay: f64,
    /// Begin with less: the decay of update t, which counts from 0, is at most (1 + t) / (10 + t),
    /// as in TensorFlow's `ExponentialMovingAverage` with `num_updates`.
    pub warmup: bool,
}

impl Default for EmaConfig {
    fn default() -> Self {
        EmaConfig {
            decay: 0.999,
            warmup: false,
        }
    }
}

const AVERAGE: &str = "ema";
const UPDATES: &str = "ema_updates";

impl Ema {
    /// Average what `inner` makes; an [`crate::Error::Config`] for a decay outside of [0, 1).
    pub fn new(inner: Box<dyn Optimizer>, config: EmaConfig) -> Result<Self> {
        check_fraction("ema_decay", config.decay)?;
        Ok(Ema {
            inner,
            config,
            average: Shadow::default(),
            updates: 0,
            on_device: false,
        })
    }

    /// How much of the weights enters at the next update.
    fn weight(&self) -> f64 {
        let t = self.updates as f64;
        match (self.updates, self.config.warmup) {
            (0, _) => 1.0,
            (_, true) => 1.0 - self.config.decay.min((1.0 + t) / (10.0 + t)),
            (_, false) => 1.0 - self.config.decay,
        }
    }
}

impl Optimizer for Ema {
    fn step(&mut self, model: &mut dyn Module, grads: &Gradients) -> Result<()> {
        self.inner.step(model, grads)?;
        let mut lerp = Lerp::new(AVERAGE, self.weight());
        nn::try_visit(model, |name, slot| match has_shadow(slot, true) {
            Some(x) => lerp.add(self.average.of(AVERAGE, name, x)?, x),
            None => Ok(()),
        })?;
        self.on_device = lerp.launch()?;
        self.updates += 1;
        Ok(())
    }

    fn replayed(&mut self) -> Vec<u64> {
        let mut scalars = self.inner.replayed();
        if self.on_device {
            scalars.push(self.weight().to_bits());
            self.updates += 1;
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
        self.average.copies()
    }

    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut all = self.inner.state()?;
        all.extend(self.average.state(AVERAGE));
        all.push((UPDATES.into(), Tensor::scalar(self.updates as i64)?));
        Ok(all)
    }

    fn load_state(&mut self, model: &mut dyn Module, state: &[(String, Tensor)]) -> Result<()> {
        let (average, mut rest) = Shadow::load(AVERAGE, model, true, state)?;
        let updates = take_count(&mut rest, UPDATES)?;
        self.inner.load_state(model, &rest)?;
        (self.average, self.updates, self.on_device) = (average, updates, false);
        Ok(())
    }
}

/// Run `f`, say an evaluation, on `model` with `weights` (of [`Optimizer::averaged`]) in the place
/// of its own, which come back afterwards, also where `f` fails. What `weights` does not name
/// stays; a name that the model has not is an [`crate::Error::Checkpoint`]. On a CUDA device nothing moves to other memory, so that a captured step lives on.
///
/// ```
/// # use cotangent::{Tensor, nn::{Linear, Mode, Module}, optim::with_averaged, random::Generator};
/// let mut layer = Linear::new(1, 1, false, &mut Generator::new(0))?;
/// let two = vec![("weight".to_string(), Tensor::from_slice(&[2f32], [1, 1])?)];
/// let x = Tensor::from_slice(&[3f32], [1, 1])?;
/// let y = with_averaged(&mut layer, &two, |m| m.forward(&x, Mode::Eval))?;
/// assert_eq!(y.item()?, 6.0);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn with_averaged<T>(
    model: &mut dyn Module,
    weights: &[(String, Tensor)],
    f: impl FnOnce(&mut dyn Module) -> Result<T>,
) -> Result<T> {
    let mut kept = Vec::new();
    let put = |model: &mut dyn Module, from: &[(String, Tensor)]| {
        nn::try_visit(model, |name, slot| {
            if let Slot::Parameter(t) | Slot::Buffer(t) = slot
                && let Some((_, value)) = from.iter().find(|(n, _)| n == name)
            {
                t.copy_(value)?;
            }
            Ok(())
        })
    };
    nn::try_visit(model, |name, slot| {
        if let Slot::Parameter(t) | Slot::Buffer(t) = slot
            && weights.iter().any(|(n, _)| n == name)
        {
            kept.push((name.to_string(), copy(t)?));
        }
        Ok(())
    })?;
    let known = |name: &str| kept.iter().any(|(n, _)| n == name);
    if let Some((name, _)) = weights.iter().find(|(n, _)| !known(n)) {
        return Err(refuse(name, "the model has nothing of this name".into()));
    }
    let result = put(model, weights).and_then(|()| f(model));
    put(model, &kept)?;
    result
}

#[cfg(test)]
mod tests {
    use super::super::{Sgd, SgdConfig};
    use super::*;
    use crate::dtype::DType;
    use crate::error::Error;
    use crate::nn::{Mode, Visitor};

    /// A parameter, a buffer of floats and a count.
    struct Norm(Tensor, Tensor, Tensor);

    impl Module for Norm {
        fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
            x.mul(&self.0)
        }
        fn visit(&mut self, v: &mut Visitor<'_>) {
            v.parameter("w", &mut self.0);
            v.buffer("mean", &mut self.1);
            v.buffer("count", &mut self.2);
        }
        fn describe(&self) -> String {
            "Norm".into()
        }
    }

    fn norm(w: f64) -> Result<Norm> {
        let w = Tensor::full([2], w, DType::F64)?.requires_grad();
        Ok(Norm(
            w,
            Tensor::zeros([3], DType::F64)?,
            Tensor::scalar(0i64)?,
        ))
    }

    /// A step that takes 1 from the parameter; the buffer is the step's number.
    fn step(ema: &mut Ema, model: &mut Norm, number: f64) -> Result<()> {
        model.1 = Tensor::full([3], number, DType::F64)?;
        let mut grads = Gradients::default();
        grads.insert(&model.0, Tensor::ones([2], DType::F64)?);
        ema.step(model, &grads)
    }

    fn new(warmup: bool) -> Result<Ema> {
        let sgd = Sgd::new(SgdConfig {
            lr: 1.0,
            ..SgdConfig::default()
        })?;
        Ema::new(Box::new(sgd), EmaConfig { decay: 0.9, warmup })
    }

    fn values(averaged: &[(String, Tensor)]) -> Result<[f64; 2]> {
        let of = |name: &str| {
            averaged
                .iter()
                .find(|(n, _)| n == name)
                .unwrap()
                .1
                .to_vec::<f64>()
        };
        Ok([of("mean")?[2], of("w")?[1]])
    }

    #[test]
    fn the_average_is_that_of_the_formula() -> Result<()> {
        for warmup in [false, true] {
            let (mut model, mut ema) = (norm(10.0)?, new(warmup)?);
            assert!(ema.averaged()?.is_none());
            let mut expected = [1.0, 9.0];
            for t in 0..200 {
                let now = [t as f64 + 1.0, 9.0 - t as f64];
                step(&mut ema, &mut model, now[0])?;
                let early = (1.0 + t as f64) / (10.0 + t as f64);
                let decay = if warmup { early.min(0.9) } else { 0.9 };
                if t > 0 {
                    for (e, now) in expected.iter_mut().zip(now) {
                        *e = decay * *e + (1.0 - decay) * now;
                    }
                }
                let got = values(&ema.averaged()?.unwrap())?;
                let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-11;
                assert!(
                    got.iter().zip(&expected).all(close),
                    "{t}: {got:?} {expected:?}"
                );
            }
            assert_eq!(
                model.0.to_vec::<f64>()?,
                [-190.0; 2],
                "training does not see it"
            );
            assert_eq!(
                ema.averaged()?.unwrap().len(),
                2,
                "the count is not averaged"
            );
        }
        Ok(())
    }

    #[test]
    fn it_is_lent_to_the_model_and_taken_back() -> Result<()> {
        let (mut model, mut ema) = (norm(10.0)?, new(false)?);
        step(&mut ema, &mut model, 1.0)?;
        step(&mut ema, &mut model, 2.0)?;
        let averaged = ema.averaged()?.unwrap();
        let x = Tensor::ones([2], DType::F64)?;
        let seen = with_averaged(&mut model, &averaged, |m| m.forward(&x, Mode::Eval))?;
        assert!((seen.to_vec::<f64>()?[0] - 8.9).abs() < 1e-12);
        let failed = with_averaged(&mut model, &averaged, |m| {
            m.forward(&Tensor::ones([5], DType::F64)?, Mode::Eval)
        });
        assert!(failed.is_err());
        let unknown = [("v".to_string(), x)];
        let e = with_averaged(&mut model, &unknown, |_| Ok(())).unwrap_err();
        assert!(
            matches!(&e, Error::Checkpoint { name, .. } if name == "v"),
            "{e}"
        );
        assert_eq!(model.0.to_vec::<f64>()?, [8.0; 2]);
        assert_eq!(model.1.to_vec::<f64>()?, [2.0; 3]);
        assert!(model.0.is_tracked());
        Ok(())
    }

    #[test]
    fn a_saved_average_goes_on_and_a_wrong_one_changes_nothing() -> Result<()> {
        let (mut whole, mut model, mut first) = (norm(10.0)?, norm(10.0)?, new(true)?);
        let mut resumed = new(true)?;
        // saved before the first step, too
        resumed.load_state(&mut model, &first.state()?)?;
        for t in 0..3 {
            step(&mut first, &mut whole, t as f64)?;
        }
        let saved = first.state()?;
        let mut model = norm(7.0)?;
        resumed.load_state(&mut model, &saved)?;
        for t in 3..6 {
            step(&mut first, &mut whole, t as f64)?;
            step(&mut resumed, &mut model, t as f64)?;
        }
        let [a, b] = [&first, &resumed].map(|e| values(&e.averaged().unwrap().unwrap()).unwrap());
        assert_eq!(a, b);

        let without =
            |name: &str| -> Vec<_> { saved.iter().filter(|(n, _)| n != name).cloned().collect() };
        let mut unknown = saved.clone();
        unknown.push(("ema.count".into(), Tensor::scalar(1i64)?));
        let mut count = without(UPDATES);
        count.push((UPDATES.into(), Tensor::scalar(-1i64)?));
        for (wrong, name) in [
            (without("ema.w"), "ema.w"),
            (without(UPDATES), UPDATES),
            (unknown, "ema.count"),
            (count, UPDATES),
        ] {
            let e = resumed.load_state(&mut model, &wrong).unwrap_err();
            assert!(
                matches!(&e, Error::Checkpoint { name: n, .. } if n == name),
                "{e}"
            );
        }
        assert_eq!(values(&resumed.averaged()?.unwrap())?, b);
        let e = Sgd::new(SgdConfig::default())?.load_state(&mut model, &saved);
        assert!(matches!(e, Err(Error::Checkpoint { .. })));
        Ok(())
    }

    #[test]
    fn settings_and_dtypes_without_sense_are_refused() -> Result<()> {
        let config = EmaConfig {
            decay: 1.0,
            ..EmaConfig::default()
        };
        let sgd = Sgd::new(SgdConfig::default())?;
        let e = Ema::new(Box::new(sgd), config).map(|_| ()).unwrap_err();
        let text = "configuration: ema_decay: 1; expected at least 0 and below 1";
        assert_eq!(e.to_string(), text);
        let mut model = norm(1.0)?;
        model.1 = model.1.cast(DType::F16)?;
        let e = new(false)?
            .step(&mut model, &Gradients::default())
            .unwrap_err();
        assert!(
            matches!(
                e,
                Error::DType {
                    got: DType::F16,
                    ..
                }
            ),
            "{e}"
        );
        Ok(())
    }
}
