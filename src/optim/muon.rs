//! Muon: momentum, made orthogonal, for weights that are matrices.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::clip::over_elements;
use super::rows::{Rows, check_real, scale, sum_squares};
use super::{
    AdamW, AdamWConfig, Optimizer, Selection, Sgd, SgdConfig, check, check_fraction,
    check_not_negative,
};
use crate::autograd::{Gradients, no_grad};
use crate::device::Device;
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::nn::{self, Mode, Module, Slot, Visitor};
use crate::tensor::Tensor;
use crate::with_real;

/// Muon (Jordan, Jin, Boza, You, Cesista, Newhouse and Bernstein 2024), for weights of two axes or
/// more as matrices (rows, columns) = (out, all the rest):
///
/// `v = momentum v + g; u = g + momentum v (Nesterov) or v`,
/// `p = (1 - lr weight_decay) p - lr sqrt(max(1, rows / columns)) orthogonal(u)`,
///
/// where `orthogonal` is [`newton_schulz`]. Settings and defaults are those of PyTorch's `Muon`,
/// whose momentum buffer is (1 - momentum) times this one, which the orthogonal u does not see;
/// PyTorch iterates in bfloat16, this in the weights' own dtype.
///
/// All other parameters (biases, norms) are the business of a second optimizer, and so should be
/// embeddings and the last layer: [`with_selection`](Self::with_selection), and
/// [`with_other`](Self::with_other) where that one has groups of its own. Setting the learning
/// rate moves both in proportion; the momentum is Muon's alone.
pub struct Muon {
    config: MuonConfig,
    select: Selection,
    /// From gradients to -u.
    momentum: Sgd,
    /// Along the orthogonal u.
    apply: Sgd,
    other: Box<dyn Optimizer>,
    /// The second optimizer's learning rate over Muon's.
    ratio: f64,
}

/// Settings of [`Muon`], by PyTorch's names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MuonConfig {
    /// The learning rate; as the update's size does not depend on the gradient's, 0.02 is usual.
    pub lr: f64,
    /// How fast the weights shrink, times the learning rate.
    pub weight_decay: f64,
    /// How much of the velocity stays.
    pub momentum: f64,
    /// Look one step ahead along the velocity.
    pub nesterov: bool,
    /// Steps of the iteration, below 100.
    pub ns_steps: usize,
    /// The least norm that a velocity is divided by.
    pub eps: f64,
    /// Before each step scale every weight to the norm sqrt(rows), so that each output's weights
    /// have norm 1 on average (airbench94, Jordan 2024): before norms, which undo a weight's scale,
    /// steps of one size then keep turning it by one angle, and no weight decay is needed.
    pub normalize_weights: bool,
    /// The optimizer of all other parameters.
    pub other: MuonOther,
}

/// The optimizer of the parameters that are not [`Muon`]'s.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MuonOther {
    /// SGD.
    Sgd(SgdConfig),
    /// AdamW.
    AdamW(AdamWConfig),
}

impl Default for MuonConfig {
    fn default() -> Self {
        MuonConfig {
            lr: 1e-3,
            weight_decay: 0.1,
            momentum: 0.95,
            nesterov: true,
            ns_steps: 5,
            eps: 1e-7,
            normalize_weights: false,
            other: MuonOther::AdamW(AdamWConfig::default()),
        }
    }
}

/// The coefficients a, b, c of a X + b (X X^T) X + c (X X^T)^2 X.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];
const OP: &str = "muon";

/// A matrix with the singular vectors of `x` (rows, columns) and singular values near 1 (0.68
/// to 1.14 after 5 steps, where they were a fiftieth of the norm or more): `steps` times
/// `X = a X + b (X X^T) X + c (X X^T)^2 X` with (a, b, c) = (3.4445, -4.7750, 2.0315), from x over
/// its norm, or over `eps` where the norm is less.
///
/// ```
/// # use cotangent::{Tensor, optim::newton_schulz};
/// let x = Tensor::from_slice(&[3f64, 0.0, 0.0, 0.0, 2.0, 0.0], [2, 3])?;
/// let y = newton_schulz(&x, 5, 1e-7)?.to_vec::<f64>()?;
/// let near_one = |y: f64| (0.68..1.14).contains(&y);
/// assert!(near_one(y[0]) && near_one(y[4]) && y[1] == 0.0);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn newton_schulz(x: &Tensor, steps: usize, eps: f64) -> Result<Tensor> {
    check_real("newton_schulz", x)?;
    let [rows, columns] = x.dims("newton_schulz", "(rows, columns)")?;
    if x.numel() == 0 {
        return Ok(x.detach());
    }
    let _guard = no_grad();
    let [a, b, c] = COEFFICIENTS;
    let mut x = if rows > columns { x.t()? } else { x.detach() };
    let norm = sum_squares("newton_schulz", &[&x], 1.0, true)?.cast(x.dtype())?;
    x = x.div(&norm.clamp(eps, f64::INFINITY)?)?;
    for _ in 0..steps {
        let square = x.matmul(&x.t()?)?;
        let fourth = square.matmul(&square)?.mul_scalar(c)?;
        let factor = square.mul_scalar(b)?.add(&fourth)?;
        x = x.mul_scalar(a)?.add(&factor.matmul(&x)?)?;
    }
    if rows > columns { x.t() } else { Ok(x) }
}

impl Muon {
    /// Muon for all weights that [`nn::is_decayed`] names; an [`Error::Config`] where a setting
    /// makes no sense.
    pub fn new(config: MuonConfig) -> Result<Self> {
        Self::with_selection(config, nn::is_decayed)
    }

    /// Muon for the parameters of two axes or more for which `select` says so.
    pub fn with_selection(
        config: MuonConfig,
        select: impl Fn(&str, &Tensor) -> bool + Send + Sync + 'static,
    ) -> Result<Self> {
        let other: Box<dyn Optimizer> = match &config.other {
            MuonOther::Sgd(sgd) => Box::new(Sgd::new(sgd.clone())?),
            MuonOther::AdamW(adamw) => Box::new(AdamW::new(adamw.clone())?),
        };
        Self::with_other(config, select, other)
    }

    /// The same with any optimizer, say one with groups, for all other parameters;
    /// [`MuonConfig::other`] is then not used.
    ///
    /// ```
    /// # use cotangent::optim::{Group, Muon, MuonConfig, Sgd, SgdConfig};
    /// let sgd = |lr| SgdConfig { lr, momentum: 0.9, ..SgdConfig::default() };
    /// let head = Group::new(|name, _| name == "head.weight", sgd(0.5));
    /// let other = Box::new(Sgd::with_groups(sgd(0.05), vec![head])?);
    /// let muon = Muon::with_other(MuonConfig::default(), |name, _| name != "head.weight", other)?;
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn with_other(
        config: MuonConfig,
        select: impl Fn(&str, &Tensor) -> bool + Send + Sync + 'static,
        other: Box<dyn Optimizer>,
    ) -> Result<Self> {
        check_not_negative("learning_rate", config.lr)?;
        check_not_negative("weight_decay", config.weight_decay)?;
        check_fraction("momentum", config.momentum)?;
        let above = config.eps > 0.0 && config.eps.is_finite();
        check("epsilon", config.eps, above, "a number above 0")?;
        if !(1..100).contains(&config.ns_steps) {
            let why = format!("{}; expected at least 1 and below 100", config.ns_steps);
            return Err(Error::config("ns_steps", why));
        }
        if config.lr == 0.0 && other.learning_rate() != 0.0 {
            let why = "0; expected above 0, as the second optimizer's is in proportion to it";
            return Err(Error::config("learning_rate", why));
        }
        let momentum = SgdConfig {
            lr: 1.0,
            momentum: config.momentum,
            nesterov: config.nesterov && config.momentum != 0.0,
            ..SgdConfig::default()
        };
        let apply = SgdConfig {
            lr: config.lr,
            weight_decay: config.weight_decay,
            ..SgdConfig::default()
        };
        let ratio = match other.learning_rate() {
            lr if lr == config.lr => 1.0,
            lr => lr / config.lr,
        };
        Ok(Muon {
            momentum: Sgd::new(momentum)?,
            apply: Sgd::new(apply)?,
            select: Arc::new(move |name, t| t.rank() >= 2 && select(name, t)),
            config,
            other,
            ratio,
        })
    }

    /// The parameters that are Muon's, or those that are not.
    fn part<'a>(&'a self, model: &'a mut dyn Module, own: bool) -> Part<'a> {
        Part {
            model,
            select: self.select.clone(),
            own,
        }
    }
}

/// Scale a weight to the norm sqrt(rows), in place; one of zeros stays.
fn normalize(p: &mut Tensor, rows: usize) -> Result<()> {
    let norm = sum_squares(OP, &[&*p], 1.0 / (rows.max(1) as f64).sqrt(), true)?;
    let least = f64::from(f32::MIN_POSITIVE);
    if let Device::Cuda(_) = p.device() {
        // nothing waits for the norm, so that the step can be captured
        let factor = norm.clamp(least, f64::INFINITY)?.pow_scalar(-1.0)?;
        p.make_unique()?;
        let mut weight = Rows::default();
        weight.push(&[&*p]);
        return scale(weight, &factor);
    }
    let factor = 1.0 / norm.item()?.max(least);
    with_real!(OP, p.dtype(), T => {
        let factor = T::of(factor);
        over_elements::<T>(p, |x| x * factor)
    })
}

/// Some of a model's parameters.
struct Part<'a> {
    model: &'a mut dyn Module,
    select: Selection,
    own: bool,
}

impl Module for Part<'_> {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.model.forward(x, mode)
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) {
        nn::visit(self.model, |name, slot| {
            if let Slot::Parameter(p) = slot
                && (self.select)(name, p) == self.own
            {
                visitor.parameter(name, p);
            }
        });
    }

    fn describe(&self) -> String {
        self.model.describe()
    }
}

/// The velocities of one step, by the names of their weights.
struct Velocities(Vec<(String, Tensor)>);

impl Module for Velocities {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        Ok(x.clone())
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) {
        for (name, t) in &mut self.0 {
            visitor.parameter(name, t);
        }
    }

    fn describe(&self) -> String {
        "Velocities".into()
    }
}

impl Optimizer for Muon {
    fn step(&mut self, model: &mut dyn Module, grads: &Gradients) -> Result<()> {
        let (mut velocities, mut of_velocities) = (Velocities(Vec::new()), Gradients::default());
        nn::try_visit(&mut self.part(model, true), |name, slot| {
            let Slot::Parameter(p) = slot else {
                return Ok(());
            };
            if let Some(grad) = grads.get(p) {
                check_real(OP, p)?;
                // from 0, at rate 1, the velocity itself is what SGD takes off
                let zero = p.zeros_like()?.requires_grad();
                of_velocities.insert(&zero, grad.clone());
                velocities.0.push((name.into(), zero));
            }
            Ok(())
        })?;
        self.momentum.step(&mut velocities, &of_velocities)?;
        let mut updates = Gradients::default();
        let mut minus = velocities.0.into_iter();
        nn::try_visit(&mut self.part(model, true), |_, slot| {
            let Slot::Parameter(p) = slot else {
                return Ok(());
            };
            if grads.get(p).is_none() {
                return Ok(());
            }
            let Some((_, u)) = minus.next() else {
                return Ok(());
            };
            let (shape, rows) = (*p.shape(), p.shape()[0]);
            let columns = p.numel() / rows.max(1);
            let u = u.detach().reshape([rows, columns])?;
            let orthogonal = newton_schulz(&u, self.config.ns_steps, self.config.eps)?;
            let size = (rows as f64 / columns.max(1) as f64).max(1.0).sqrt();
            let update = orthogonal.mul_scalar(-size)?.reshape(shape)?;
            updates.insert(p, update);
            if self.config.normalize_weights {
                normalize(p, rows)?;
            }
            Ok(())
        })?;
        let mut part = Part {
            model: &mut *model,
            select: self.select.clone(),
            own: true,
        };
        self.apply.step(&mut part, &updates)?;
        part.own = false;
        self.other.step(&mut part, grads)
    }

    fn replayed(&mut self) -> Vec<u64> {
        let mut scalars = self.momentum.replayed();
        scalars.extend(self.apply.replayed());
        scalars.extend(self.other.replayed());
        scalars
    }

    fn learning_rate(&self) -> f64 {
        self.apply.learning_rate()
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.apply.set_learning_rate(lr);
        self.other.set_learning_rate(lr * self.ratio);
    }

    fn momentum(&self) -> Option<f64> {
        self.momentum.momentum()
    }

    fn set_momentum(&mut self, momentum: f64) {
        self.momentum.set_momentum(momentum);
    }

    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        // the steps of both halves of Muon are the same
        let mut all = self.momentum.state()?;
        all.extend(self.other.state()?);
        Ok(all)
    }

    fn load_state(&mut self, model: &mut dyn Module, state: &[(String, Tensor)]) -> Result<()> {
        let mut names = Vec::new();
        nn::visit(&mut self.part(model, true), |name, _| {
            names.push(name.to_string())
        });
        let own = |name: &str| {
            let parameter = name.split_once('.').map(|(_, parameter)| parameter);
            parameter.is_some_and(|p| names.iter().any(|n| n == p))
        };
        let (mine, others): (Vec<_>, Vec<_>) =
            state.iter().cloned().partition(|(name, _)| own(name));
        let steps = mine.iter().filter(|(name, _)| name.starts_with("step."));
        let steps: Vec<_> = steps.cloned().collect();
        // nothing is changed where one of the three refuses: two begin anew, the third comes last
        let config = MuonConfig {
            other: MuonOther::Sgd(SgdConfig::default()),
            ..self.config.clone()
        };
        let mut fresh = Muon::with_selection(config, |_, _| true)?;
        fresh
            .momentum
            .load_state(&mut self.part(model, true), &mine)?;
        fresh
            .apply
            .load_state(&mut self.part(model, true), &steps)?;
        fresh.set_learning_rate(self.learning_rate());
        if let Some(momentum) = self.momentum() {
            fresh.set_momentum(momentum);
        }
        let mut part = Part {
            model,
            select: self.select.clone(),
            own: false,
        };
        self.other.load_state(&mut part, &others)?;
        (self.momentum, self.apply) = (fresh.momentum, fresh.apply);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Group;
    use super::super::testing::Bag;
    use super::*;
    use crate::dtype::DType;
    use crate::random::Generator;
    use crate::shape::IntoShape;

    /// Row-major (rows, columns).
    type Matrix = (Vec<f64>, usize, usize);

    fn times((x, m, k): &Matrix, (y, k2, n): &Matrix) -> Matrix {
        assert_eq!(k, k2);
        let mut z = vec![0.0; m * n];
        for i in 0..*m {
            for j in 0..*n {
                z[i * n + j] = (0..*k).map(|l| x[i * k + l] * y[l * n + j]).sum();
            }
        }
        (z, *m, *n)
    }

    fn turned((x, m, n): &Matrix) -> Matrix {
        let at = |i: usize| x[i % m * n + i / m];
        ((0..m * n).map(at).collect(), *n, *m)
    }

    fn sum(parts: &[(f64, &Matrix)]) -> Matrix {
        let (_, m, n) = parts[0].1;
        let at = |i: usize| parts.iter().map(|(a, x)| a * x.0[i]).sum();
        ((0..m * n).map(at).collect(), *m, *n)
    }

    /// The quintic iteration by plain loops, always with X X^T, whatever the shape.
    fn orthogonal(x: &Matrix) -> Matrix {
        let norm = x.0.iter().map(|v| v * v).sum::<f64>().sqrt();
        let mut x = sum(&[(1.0 / norm, x)]);
        for _ in 0..5 {
            let square = times(&x, &turned(&x));
            let third = times(&square, &x);
            let fifth = times(&square, &third);
            x = sum(&[(3.4445, &x), (-4.7750, &third), (2.0315, &fifth)]);
        }
        x
    }

    fn assert_close(got: &[f64], expected: &[f64], what: &str) {
        assert_eq!(got.len(), expected.len(), "{what}");
        for (a, b) in got.iter().zip(expected) {
            assert!((a - b).abs() < 1e-10, "{what}: {a}, expected {b}");
        }
    }

    #[test]
    fn singular_values_come_near_one_and_directions_stay() -> Result<()> {
        let mut rng = Generator::new(5);
        for [m, n] in [[6, 6], [4, 30], [30, 4], [1, 7], [7, 1], [1, 1]] {
            let x = Tensor::randn([m, n], &mut rng, DType::F64)?;
            let y = newton_schulz(&x, 5, 1e-7)?;
            assert_eq!(y.shape()[..], [m, n]);
            let y: Matrix = (y.to_vec()?, m, n);
            assert_close(&y.0, &orthogonal(&(x.to_vec()?, m, n)).0, "iteration");
            let gram = if m < n {
                times(&y, &turned(&y))
            } else {
                times(&turned(&y), &y)
            };
            let (gram, n, _) = gram;
            for square in Tensor::from_vec(gram, [n, n])?.eigh()?.0.to_vec::<f64>()? {
                let range = 0.6..1.25;
                assert!(
                    range.contains(&square.sqrt()),
                    "{m} x {n}: {}",
                    square.sqrt()
                );
            }
        }
        let zero = Tensor::zeros([3, 4], DType::F32)?;
        assert_eq!(newton_schulz(&zero, 5, 1e-7)?.to_vec::<f32>()?, [0.0; 12]);
        assert_eq!(
            newton_schulz(&Tensor::zeros([0, 4], DType::F32)?, 5, 1e-7)?.numel(),
            0
        );
        let e = newton_schulz(&Tensor::zeros([3], DType::F32)?, 5, 1e-7).unwrap_err();
        assert!(e.to_string().contains("(rows, columns)"), "{e}");
        Ok(())
    }

    #[test]
    fn steps_are_those_of_plain_loops() -> Result<()> {
        let mut rng = Generator::new(6);
        let mut random = |shape: &[usize]| Tensor::randn(shape, &mut rng, DType::F64);
        let shapes: [&[usize]; 4] = [&[4, 2, 3, 2], &[7, 3], &[3, 7], &[5]];
        for nesterov in [false, true] {
            let (lr, decay, momentum) = (0.02, 0.1, 0.9);
            let mut muon = Muon::new(MuonConfig {
                lr,
                weight_decay: decay,
                momentum,
                nesterov,
                other: MuonOther::Sgd(SgdConfig {
                    lr: 0.5,
                    ..SgdConfig::default()
                }),
                ..MuonConfig::default()
            })?;
            let start = shapes.iter().map(|s| Ok(random(s)?.requires_grad()));
            let mut bag = Bag(start.collect::<Result<_>>()?);
            let mut expected = bag
                .0
                .iter()
                .map(|t| t.to_vec::<f64>())
                .collect::<Result<Vec<_>>>()?;
            let mut velocity = expected
                .iter()
                .map(|p| vec![0.0; p.len()])
                .collect::<Vec<_>>();
            for step in 0..3 {
                // the rates fall by half, both in proportion
                let scale = 0.5f64.powi(step);
                muon.set_learning_rate(lr * scale);
                let mut grads = Gradients::default();
                for (i, shape) in shapes.iter().enumerate() {
                    let g = random(shape)?;
                    let values = g.to_vec::<f64>()?;
                    grads.insert(&bag.0[i], g);
                    let p = &mut expected[i];
                    if shape.len() == 1 {
                        p.iter_mut()
                            .zip(&values)
                            .for_each(|(p, g)| *p -= 0.5 * scale * g);
                        continue;
                    }
                    let v = &mut velocity[i];
                    v.iter_mut()
                        .zip(&values)
                        .for_each(|(v, g)| *v = momentum * *v + g);
                    let ahead = v
                        .iter()
                        .zip(&values)
                        .map(|(v, g)| g + momentum * v)
                        .collect();
                    let u = if nesterov { ahead } else { v.clone() };
                    let (rows, columns) = (shape[0], p.len() / shape[0]);
                    let o = orthogonal(&(u, rows, columns));
                    let far = lr * scale * (rows as f64 / columns as f64).max(1.0).sqrt();
                    for (p, o) in p.iter_mut().zip(&o.0) {
                        *p = *p * (1.0 - lr * scale * decay) - far * o;
                    }
                }
                muon.step(&mut bag, &grads)?;
                for (i, t) in bag.0.iter().enumerate() {
                    assert_close(&t.to_vec::<f64>()?, &expected[i], &format!("parameter {i}"));
                }
            }
        }
        Ok(())
    }

    #[test]
    fn weights_are_normalized_before_a_step_and_others_are_the_other_optimizers() -> Result<()> {
        // airbench94's: p *= sqrt(rows) / |p|, then p -= lr orthogonal(g + momentum v)
        let mut rng = Generator::new(9);
        let mut random = |shape: &[usize]| Tensor::randn(shape, &mut rng, DType::F64);
        let sgd = |lr| SgdConfig {
            lr,
            ..SgdConfig::default()
        };
        let (lr, momentum, shape) = (0.24, 0.6, [4, 3, 2, 2]);
        let config = MuonConfig {
            lr,
            momentum,
            ns_steps: 5,
            weight_decay: 0.0,
            normalize_weights: true,
            ..MuonConfig::default()
        };
        let last = Group::new(|name, _| name == "2", sgd(0.5));
        let other = Box::new(Sgd::with_groups(sgd(0.125), vec![last])?);
        let mut muon = Muon::with_other(config, |_, t| t.rank() == 4, other)?;
        let leaf = |t: Result<Tensor>| Ok(t?.requires_grad());
        let mut bag = Bag(vec![
            leaf(random(&shape))?,
            leaf(random(&[3]))?,
            leaf(random(&[2, 3]))?,
        ]);
        let values = |t: &Tensor| t.to_vec::<f64>();
        let mut expected = bag.0.iter().map(values).collect::<Result<Vec<_>>>()?;
        let mut velocity = vec![0.0; 48];
        for step in 0..3 {
            let scale = 1.0 - 0.25 * step as f64;
            muon.set_learning_rate(lr * scale);
            let mut grads = Gradients::default();
            for (i, t) in bag.0.iter().enumerate() {
                let g = random(&t.shape()[..])?;
                let (v, p) = (values(&g)?, &mut expected[i]);
                grads.insert(t, g);
                if i > 0 {
                    let far = scale * [0.125, 0.5][i - 1];
                    p.iter_mut().zip(&v).for_each(|(p, g)| *p -= far * g);
                    continue;
                }
                let ahead = velocity.iter_mut().zip(&v).map(|(v, g)| {
                    *v = momentum * *v + g;
                    g + momentum * *v
                });
                let o = orthogonal(&(ahead.collect(), 4, 12)).0;
                let norm = p.iter().map(|p| p * p).sum::<f64>().sqrt();
                let steps = p.iter_mut().zip(&o);
                steps.for_each(|(p, o)| *p = *p * 2.0 / norm - lr * scale * o);
            }
            muon.step(&mut bag, &grads)?;
            for (t, e) in bag.0.iter().zip(&expected) {
                assert_close(&values(t)?, e, &format!("step {step}"));
            }
        }
        // nothing to scale
        let mut zero = Tensor::zeros([2, 2], DType::F32)?.requires_grad();
        normalize(&mut zero, 2)?;
        assert!(zero.is_tracked());
        assert_eq!(zero.to_vec::<f32>()?, [0.0; 4]);
        Ok(())
    }

    #[test]
    fn it_trains() -> Result<()> {
        let mut rng = Generator::new(7);
        let mut net = nn::Linear::new(6, 4, true, &mut rng)?;
        let x = Tensor::randn([32, 6], &mut rng, DType::F32)?;
        let y = x
            .matmul(&Tensor::randn([6, 4], &mut rng, DType::F32)?)?
            .add_scalar(0.5)?;
        let mut muon = Muon::new(MuonConfig {
            lr: 0.1,
            weight_decay: 0.0,
            other: MuonOther::AdamW(AdamWConfig {
                lr: 0.05,
                ..AdamWConfig::default()
            }),
            ..MuonConfig::default()
        })?;
        let mut losses = Vec::new();
        for t in 0..120 {
            muon.set_learning_rate(0.1 * (1.0 - t as f64 / 120.0));
            let off = net.forward(&x, Mode::Train)?.sub(&y)?;
            let loss = off.mul(&off)?.mean(&[], false)?;
            losses.push(loss.item()?);
            let grads = loss.backward()?;
            drop((off, loss));
            muon.step(&mut net, &grads)?;
        }
        assert!(losses[119] < 0.01 * losses[0], "{losses:?}");
        Ok(())
    }

    #[test]
    fn a_saved_state_goes_on_and_a_wrong_one_changes_nothing() -> Result<()> {
        let new = || {
            Muon::new(MuonConfig {
                momentum: 0.5,
                ..MuonConfig::default()
            })
        };
        let start = || -> Result<Bag> {
            let mut rng = Generator::new(8);
            let mut leaf = |shape: &[usize]| -> Result<Tensor> {
                Ok(Tensor::randn(shape.into_shape()?, &mut rng, DType::F32)?.requires_grad())
            };
            Ok(Bag(vec![leaf(&[3, 4])?, leaf(&[4])?]))
        };
        let step = |muon: &mut Muon, bag: &mut Bag, seed: u64| {
            let mut rng = Generator::new(seed);
            let mut grads = Gradients::default();
            for t in &bag.0 {
                grads.insert(t, Tensor::randn(*t.shape(), &mut rng, DType::F32)?);
            }
            muon.step(bag, &grads)
        };
        let (mut a, mut of_a) = (new()?, start()?);
        step(&mut a, &mut of_a, 1)?;
        step(&mut a, &mut of_a, 2)?;
        let saved = a.state()?;
        let names: Vec<&str> = saved.iter().map(|(n, _)| n.as_str()).collect();
        let expected = [
            "momentum_buffer.0",
            "step.0",
            "exp_avg.1",
            "exp_avg_sq.1",
            "step.1",
        ];
        assert_eq!(names, expected);
        let (mut b, mut of_b) = (new()?, Bag(of_a.0.clone()));
        b.load_state(&mut of_b, &saved)?;
        for seed in 3..5 {
            step(&mut a, &mut of_a, seed)?;
            step(&mut b, &mut of_b, seed)?;
        }
        for (x, y) in of_a.0.iter().zip(&of_b.0) {
            assert_eq!(x.to_vec::<f32>()?, y.to_vec::<f32>()?);
        }
        let before = b.state()?;
        for missing in [0, 2] {
            let mut wrong = saved.clone();
            wrong.remove(missing);
            let e = b.load_state(&mut of_b, &wrong).unwrap_err();
            assert!(e.to_string().contains(names[missing]), "{e}");
        }
        for ((_, x), (_, y)) in before.iter().zip(&b.state()?) {
            let [x, y] = [x, y].map(|t| t.cast(DType::F64).unwrap().to_vec::<f64>().unwrap());
            assert_eq!(x, y);
        }
        Ok(())
    }

    #[test]
    fn settings_without_sense_are_refused() {
        let refused = |change: fn(&mut MuonConfig)| {
            let mut c = MuonConfig::default();
            change(&mut c);
            Muon::new(c).map(|_| ()).unwrap_err().to_string()
        };
        assert_eq!(
            refused(|c| c.momentum = 1.0),
            "configuration: momentum: 1; expected at least 0 and below 1"
        );
        assert!(refused(|c| c.ns_steps = 0).contains("ns_steps: 0; expected at least 1"));
        assert!(refused(|c| c.lr = 0.0).contains("learning_rate: 0; expected above 0"));
        assert!(refused(|c| c.eps = 0.0).contains("epsilon: 0; expected a number above 0"));
        let other = |c: &mut MuonConfig| {
            c.other = MuonOther::Sgd(SgdConfig {
                nesterov: true,
                ..SgdConfig::default()
            });
        };
        assert!(refused(other).contains("nesterov"));
    }
}
