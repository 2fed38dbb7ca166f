//! Optimizers that work element by element: groups of parameters, one pass over parameter, gradient
//! and state, many tensors in one launch.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;

use rayon::prelude::*;

use super::rows::{CPU_STRETCH, Rows, beside, check_real};
use super::shadow::copy;
use super::{FOREIGN, Optimizer, Rule, differs, flush, refuse};
use crate::autograd::Gradients;
use crate::cuda::Gpu;
use crate::device::Device;
use crate::dtype::{DType, Real};
use crate::error::{Error, Result};
use crate::level;
use crate::nn::{self, Module, Slot};
use crate::shape::Shape;
use crate::tensor::Tensor;
use crate::with_real;
use crate::workers::Parallel;

/// Which parameters belong to a group, by name and tensor.
pub type Selection = Arc<dyn Fn(&str, &Tensor) -> bool + Send + Sync>;

/// Parameters that have settings of their own.
#[derive(Clone)]
pub struct Group<R> {
    /// Which parameters.
    pub select: Selection,
    /// Their settings.
    pub rule: R,
}

impl<R> Group<R> {
    /// The parameters for which `select` says so, under `rule`.
    pub fn new(select: impl Fn(&str, &Tensor) -> bool + Send + Sync + 'static, rule: R) -> Self {
        Group {
            select: Arc::new(select),
            rule,
        }
    }
}

/// An optimizer whose rule works element by element: one pass over parameter, gradient and state.
pub struct Elementwise<R> {
    /// The last one is for all parameters that no other takes.
    groups: Vec<Placed<R>>,
    states: BTreeMap<String, State>,
    /// What the last step updated on a CUDA device: a group's parameters that share their scalars,
    /// in the order of the launches.
    launched: Vec<(usize, Vec<String>)>,
}

/// A group within an optimizer.
struct Placed<R> {
    select: Option<Selection>,
    rule: R,
    /// Its learning rate over that of the last group.
    ratio: f64,
}

/// One parameter's state.
#[derive(Debug)]
struct State {
    /// Its group's number.
    group: usize,
    steps: u64,
    /// The rule's carried number.
    carried: f64,
    /// In the order of the rule's names, each of the parameter's shape.
    tensors: Vec<Tensor>,
}

impl<R: fmt::Debug> fmt::Debug for Elementwise<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules: Vec<&R> = self.groups.iter().map(|g| &g.rule).collect();
        let mut shown = f.debug_struct("Elementwise");
        shown.field("rules", &rules).field("states", &self.states);
        shown.finish_non_exhaustive()
    }
}

impl<R: Rule> Elementwise<R> {
    /// An optimizer that has not made a step; an [`Error::Config`] where a setting makes no
    /// sense.
    pub fn new(config: R) -> Result<Self> {
        Self::with_groups(config, Vec::new())
    }

    /// PyTorch's parameter groups: each parameter has the settings of the first group that selects
    /// it, and those of `default` where none does. An [`Error::Config`] where a setting makes no
    /// sense.
    ///
    /// The optimizer's learning rate is the default's; setting it moves each group's rate in
    /// proportion, so that a schedule keeps what the groups' rates are to each other. On a CUDA
    /// device each group is updated in launches of its own.
    ///
    /// ```
    /// # use cotangent::optim::{AdamW, AdamWConfig, Group};
    /// // the head learns ten times as fast as what was trained before
    /// let base = AdamWConfig { lr: 1e-4, ..AdamWConfig::default() };
    /// let head = AdamWConfig { lr: 1e-3, ..base.clone() };
    /// let of_head = Group::new(|name, _| name.starts_with("head."), head);
    /// let optimizer = AdamW::with_groups(base, vec![of_head])?.no_decay_on_norms_and_biases();
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn with_groups(default: R, groups: Vec<Group<R>>) -> Result<Self> {
        default.validate()?;
        let base = default.learning_rate();
        let mut placed = Vec::new();
        for Group { select, rule } in groups {
            rule.validate()?;
            let lr = rule.learning_rate();
            if base == 0.0 && lr != 0.0 {
                let why = "0; expected above 0, as the groups' rates are in proportion to it";
                return Err(Error::config("learning_rate", why));
            }
            placed.push(Placed {
                select: Some(select),
                rule,
                ratio: if lr == base { 1.0 } else { lr / base },
            });
        }
        placed.push(Placed {
            select: None,
            rule: default,
            ratio: 1.0,
        });
        Ok(Elementwise {
            groups: placed,
            states: BTreeMap::new(),
            launched: Vec::new(),
        })
    }

    /// The same without weight decay for norms and biases, all that [`nn::is_decayed`] names, in
    /// every group. To be called before the first step.
    pub fn no_decay_on_norms_and_biases(mut self) -> Self
    where
        R: Clone,
    {
        for group in std::mem::take(&mut self.groups) {
            let select = group.select.clone();
            let free = move |name: &str, t: &Tensor| {
                !nn::is_decayed(name, t) && select.as_ref().is_none_or(|s| s(name, t))
            };
            let mut rule = group.rule.clone();
            rule.set_weight_decay(0.0);
            self.groups.push(Placed {
                select: Some(Arc::new(free)),
                rule,
                ratio: group.ratio,
            });
            self.groups.push(group);
        }
        self
    }

    /// The rule of a group.
    fn rule(&self, group: usize) -> &R {
        &self.groups[group].rule
    }

    /// The rule of what no group selects.
    fn default_rule(&self) -> &R {
        self.rule(self.groups.len() - 1)
    }
}

/// The number of the group that takes a parameter.
fn group_of<R>(groups: &[Placed<R>], name: &str, p: &Tensor) -> usize {
    let takes = |g: &Placed<R>| g.select.as_ref().is_none_or(|s| s(name, p));
    groups.iter().position(takes).unwrap_or(0)
}

const STEP_OP: &str = "optimizer step";

/// A parameter's state, made at its first step, and its gradient. State and parameter are nobody
/// else's then, so that they can be written in place, and all lie in memory in the parameter's
/// order, so that the loop is a plain zip.
fn ready<'s, R: Rule>(
    groups: &[Placed<R>],
    states: &'s mut BTreeMap<String, State>,
    name: &str,
    parameter: &mut Tensor,
    grad: &Tensor,
) -> Result<(&'s mut State, Tensor)> {
    check_real(STEP_OP, parameter)?;
    parameter.make_unique()?;
    let (layout, grad) = (*parameter.layout(), beside(STEP_OP, grad, parameter)?);
    let state = match states.entry(name.into()) {
        Entry::Occupied(e) => e.into_mut(),
        Entry::Vacant(e) => {
            let group = group_of(groups, name, parameter);
            let rule = &groups[group].rule;
            let (shape, options) = (*parameter.shape(), parameter.options());
            let fresh = |_| match rule.state_start() {
                0.0 => Ok(parameter.zeros_like()?.view_as(layout)),
                value => Ok(Tensor::full(shape, value, options)?.view_as(layout)),
            };
            let tensors = rule
                .state_names()
                .iter()
                .map(fresh)
                .collect::<Result<_>>()?;
            e.insert(State {
                group,
                steps: 0,
                carried: rule.carried(0),
                tensors,
            })
        }
    };
    for s in &mut state.tensors {
        if !s.layout().same_order(&layout) {
            *s = s.laid_out(layout)?;
        }
        s.make_unique()?;
    }
    Ok((state, grad))
}

impl State {
    /// Count one more step: its scalars.
    fn count<R: Rule>(&mut self, rule: &R) -> super::Scalars {
        self.steps += 1;
        let scalars = rule.scalars(self.steps, self.carried);
        self.carried = rule.carried(self.steps);
        scalars
    }
}

fn update<R: Rule>(rule: &R, state: &mut State, p: &mut Tensor, grad: &Tensor) -> Result<()> {
    with_real!(STEP_OP, p.dtype(), T => {
        let c = state.count(rule).map(T::of);
        let each = |p: &mut [T], g: &[T], s: &mut [&mut [T]]| {
            level::run(#[inline(always)] || {
                rule.update(c, p, g, s);
                flush(p);
                for s in s {
                        flush(s);
                    }
            })
        };
        let tensors = state.tensors.iter_mut().map(Tensor::make_mut::<T>).collect::<Result<_>>()?;
        in_parallel(p.make_mut()?, grad.dense_slice(STEP_OP)?, tensors, &each);
        Ok(())
    })
}

/// `each` of stretches of the parameter, its gradient and its state.
fn in_parallel<T: Real>(
    p: &mut [T],
    g: &[T],
    mut state: Vec<&mut [T]>,
    each: &(impl Fn(&mut [T], &[T], &mut [&mut [T]]) + Sync),
) {
    if p.len() <= CPU_STRETCH {
        return each(p, g, &mut state);
    }
    let mut states: Vec<_> = state
        .iter_mut()
        .map(|s| s.chunks_mut(CPU_STRETCH))
        .collect();
    // as many of each as of the parameter
    let state_of = |_| states.iter_mut().filter_map(Iterator::next).collect();
    let mut states: Vec<Vec<&mut [T]>> = p.chunks(CPU_STRETCH).map(state_of).collect();
    p.par_chunks_mut(CPU_STRETCH)
        .zip(g.par_chunks(CPU_STRETCH))
        .zip(&mut states)
        .each(|((p, g), s)| each(p, g, s));
}

impl<R: Rule> Optimizer for Elementwise<R> {
    fn step(&mut self, model: &mut dyn Module, grads: &Gradients) -> Result<()> {
        self.launched.clear();
        // parameters on a CUDA device that share their scalars: of one group, at one step
        type Launch = (Gpu, super::Scalars, Vec<String>, Rows);
        let mut launches: BTreeMap<(usize, u64, u64), Launch> = BTreeMap::new();
        let mut held = Vec::new();
        let (groups, states) = (&self.groups, &mut self.states);
        nn::try_visit(model, |name, slot| {
            let Slot::Parameter(p) = slot else {
                return Ok(());
            };
            let Some(grad) = grads.get(p) else {
                return Ok(());
            };
            let (state, grad) = ready(groups, states, name, p, grad)?;
            let rule = &groups[state.group].rule;
            let Device::Cuda(gpu) = p.device() else {
                return update(rule, state, p, &grad);
            };
            let key = (state.group, state.steps, state.carried.to_bits());
            let scalars = state.count(rule);
            let row: Vec<&Tensor> = [&*p, &grad].into_iter().chain(&state.tensors).collect();
            let new = || (gpu, scalars, Vec::new(), Rows::default());
            let (_, _, names, rows) = launches.entry(key).or_insert_with(new);
            names.push(name.into());
            rows.push(&row);
            held.push(grad);
            Ok(())
        })?;
        for ((group, ..), (gpu, scalars, names, rows)) in launches {
            let scalars = Tensor::scalars(gpu, &scalars.map(f64::to_bits))?;
            rows.launch(groups[group].rule.kernels(), |_| [scalars.input()])?;
            self.launched.push((group, names));
        }
        Ok(())
    }

    fn replayed(&mut self) -> Vec<u64> {
        let mut all = Vec::new();
        for (group, names) in &self.launched {
            let rule = &self.groups[*group].rule;
            let mut scalars = None;
            for name in names {
                if let Some(state) = self.states.get_mut(name) {
                    scalars = Some(state.count(rule));
                }
            }
            all.extend(scalars.into_iter().flatten().map(f64::to_bits));
        }
        all
    }

    fn learning_rate(&self) -> f64 {
        self.default_rule().learning_rate()
    }

    fn set_learning_rate(&mut self, lr: f64) {
        for group in &mut self.groups {
            group.rule.set_learning_rate(lr * group.ratio);
        }
    }

    fn momentum(&self) -> Option<f64> {
        self.default_rule().momentum()
    }

    fn set_momentum(&mut self, momentum: f64) {
        for group in &mut self.groups {
            group.rule.set_momentum(momentum);
        }
    }

    fn averaged(&self) -> Result<Option<Vec<(String, Tensor)>>> {
        let mut all = Vec::new();
        for (name, state) in &self.states {
            let place = self.rule(state.group).averaged();
            if let Some(average) = place.and_then(|i| state.tensors.get(i)) {
                all.push((name.clone(), copy(average)?));
            }
        }
        Ok((!all.is_empty()).then_some(all))
    }

    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut all = Vec::new();
        for (parameter, state) in &self.states {
            let rule = self.rule(state.group);
            for (kind, tensor) in rule.state_names().iter().zip(&state.tensors) {
                all.push((format!("{kind}.{parameter}"), tensor.clone()));
            }
            if let Some(kind) = rule.carried_name() {
                all.push((
                    format!("{kind}.{parameter}"),
                    Tensor::scalar(state.carried)?,
                ));
            }
            let steps = Tensor::scalar(state.steps as i64)?;
            all.push((format!("{STEP}.{parameter}"), steps));
        }
        Ok(all)
    }

    fn load_state(&mut self, model: &mut dyn Module, saved: &[(String, Tensor)]) -> Result<()> {
        let mut states = BTreeMap::new();
        let mut used = 0;
        for (parameter, p) in nn::named_parameters(model) {
            let find = |kind: &str| {
                let name = format!("{kind}.{parameter}");
                saved.iter().find(|(n, _)| *n == name).map(|(_, t)| t)
            };
            // a parameter that never had a gradient has no state
            if find(STEP).is_none() {
                continue;
            }
            let whole = |kind: &str, dtype: DType, shape: &Shape| {
                let name = format!("{kind}.{parameter}");
                match find(kind) {
                    None => Err(refuse(&name, "missing".into())),
                    Some(t) if t.shape() != shape || t.dtype() != dtype => {
                        Err(refuse(&name, differs(t, dtype, shape)))
                    }
                    Some(t) => Ok(t),
                }
            };
            let group = group_of(&self.groups, &parameter, &p);
            let (rule, scalar) = (self.rule(group), Shape::new(&[])?);
            let steps = whole(STEP, DType::I64, &scalar)?.item()? as u64;
            let carried = match rule.carried_name() {
                Some(kind) => whole(kind, DType::F64, &scalar)?.item()?,
                None => rule.carried(steps),
            };
            let tensors = rule
                .state_names()
                .iter()
                .map(|kind| whole(kind, p.dtype(), p.shape())?.moved(p.device()))
                .collect::<Result<Vec<_>>>()?;
            used += 1 + tensors.len() + rule.carried_name().map_or(0, |_| 1);
            let state = State {
                group,
                steps,
                carried,
                tensors,
            };
            states.insert(parameter, state);
        }
        if used != saved.len() {
            let known = |name: &str| {
                name.split_once('.').is_some_and(|(kind, parameter)| {
                    states.get(parameter).is_some_and(|state: &State| {
                        let rule = self.rule(state.group);
                        kind == STEP
                            || rule.state_names().contains(&kind)
                            || rule.carried_name() == Some(kind)
                    })
                })
            };
            let (name, _) = saved.iter().find(|(n, _)| !known(n)).unwrap_or(&saved[0]);
            return Err(refuse(name, FOREIGN.into()));
        }
        self.states = states;
        self.launched.clear();
        Ok(())
    }
}

const STEP: &str = "step";

#[cfg(test)]
mod tests {
    use super::super::testing::{Bag, constant_step};
    use super::super::{
        Adam, AdamConfig, AdamW, AdamWConfig, Asgd, AsgdConfig, RmsProp, RmsPropConfig, Sgd,
        SgdConfig,
    };
    use super::*;

    fn ones(shapes: &[&[usize]]) -> Result<Bag> {
        let one = |s: &&[usize]| Ok(Tensor::ones(*s, DType::F64)?.requires_grad());
        Ok(Bag(shapes.iter().map(one).collect::<Result<_>>()?))
    }

    fn firsts(bag: &Bag) -> Vec<f64> {
        bag.0
            .iter()
            .map(|t| t.to_vec::<f64>().unwrap()[0])
            .collect()
    }

    fn sgd(lr: f64, weight_decay: f64) -> SgdConfig {
        SgdConfig {
            lr,
            weight_decay,
            ..SgdConfig::default()
        }
    }

    #[test]
    fn the_first_group_that_selects_a_parameter_has_it() -> Result<()> {
        let named = |n: &'static str| move |name: &str, _: &Tensor| name == n;
        let groups = vec![
            Group::new(named("1"), sgd(0.25, 0.0)),
            Group::new(|_, t| t.rank() == 1, sgd(0.5, 0.0)),
        ];
        let mut optimizer = Sgd::with_groups(sgd(0.125, 0.0), groups)?;
        let mut bag = ones(&[&[2, 2], &[2], &[3], &[1, 1]])?;
        constant_step(&mut optimizer, &mut bag, 1.0)?;
        assert_eq!(firsts(&bag), [0.875, 0.75, 0.5, 0.875]);
        // half the default's rate is half of each
        assert_eq!(optimizer.learning_rate(), 0.125);
        optimizer.set_learning_rate(0.0625);
        constant_step(&mut optimizer, &mut bag, 1.0)?;
        assert_eq!(firsts(&bag), [0.8125, 0.625, 0.25, 0.8125]);
        // from 0 there is a way back
        optimizer.set_learning_rate(0.0);
        optimizer.set_learning_rate(0.125);
        constant_step(&mut optimizer, &mut bag, 1.0)?;
        assert_eq!(firsts(&bag), [0.6875, 0.375, -0.25, 0.6875]);
        Ok(())
    }

    #[test]
    fn norms_and_biases_are_free_of_decay_in_every_group() -> Result<()> {
        let first = Group::new(|name, _| name < "2", sgd(0.5, 0.25));
        let optimizer = Sgd::with_groups(sgd(0.5, 0.5), vec![first])?;
        let mut optimizer = optimizer.no_decay_on_norms_and_biases();
        let mut bag = ones(&[&[2, 2], &[2], &[3], &[1, 1]])?;
        constant_step(&mut optimizer, &mut bag, 0.0)?;
        assert_eq!(firsts(&bag), [0.875, 1.0, 1.0, 0.75]);
        Ok(())
    }

    #[test]
    fn groups_without_sense_are_refused() {
        let group = |rule| vec![Group::new(|_, _| true, rule)];
        let e = Sgd::with_groups(sgd(0.0, 0.0), group(sgd(0.1, 0.0))).unwrap_err();
        let text = "configuration: learning_rate: 0; expected above 0, as the groups' rates are in \
                    proportion to it";
        assert_eq!(e.to_string(), text);
        let e = Sgd::with_groups(sgd(0.1, 0.0), group(sgd(0.1, -1.0))).unwrap_err();
        assert!(e.to_string().contains("weight_decay: -1"), "{e}");
        assert!(Sgd::with_groups(sgd(0.0, 0.0), group(sgd(0.0, 0.0))).is_ok());
    }

    #[test]
    fn the_momentum_is_that_of_pytorchs_schedules() -> Result<()> {
        let mut adam = AdamW::with_groups(
            AdamWConfig::default(),
            vec![Group::new(|_, _| true, AdamWConfig::default())],
        )?;
        assert_eq!(adam.momentum(), Some(0.9));
        adam.set_momentum(0.85);
        assert_eq!(adam.momentum(), Some(0.85));
        assert_eq!(adam.rule(0).betas, [0.85, 0.999]);
        assert_eq!(Sgd::new(sgd(0.1, 0.0))?.momentum(), None);
        assert_eq!(RmsProp::new(RmsPropConfig::default())?.momentum(), None);

        // v = m v + g with another m at each step, 0 among them
        let mut sgd = Sgd::new(SgdConfig {
            lr: 1.0,
            momentum: 0.5,
            ..SgdConfig::default()
        })?;
        let mut bag = ones(&[&[1]])?;
        let (mut p, mut v) = (1.0, 0.0);
        for m in [0.5, 0.75, 0.0, 0.25] {
            sgd.set_momentum(m);
            constant_step(&mut sgd, &mut bag, 1.0)?;
            v = m * v + 1.0;
            p -= v;
            assert_eq!(firsts(&bag), [p]);
        }
        assert!(sgd.momentum().is_some());
        Ok(())
    }

    #[test]
    fn asgd_averages_from_t0_on_and_its_eta_lags_the_learning_rate() -> Result<()> {
        let config = AsgdConfig {
            lr: 0.1,
            lambd: 0.2,
            alpha: 0.75,
            t0: 2.0,
            weight_decay: 0.3,
        };
        let mut asgd = Asgd::new(config)?;
        assert!(asgd.averaged()?.is_none());
        let mut bag = ones(&[&[1]])?;
        // PyTorch's algorithm with its three states
        let (mut p, mut ax, mut eta, mut mu) = (1.0, 0.0, 0.1, 1.0);
        for step in 1..=8 {
            let (lr, g) = (0.1 / step as f64, (step as f64).sin());
            asgd.set_learning_rate(lr);
            constant_step(&mut asgd, &mut bag, g)?;
            let d = g + 0.3 * p;
            p = p * (1.0 - 0.2 * eta) - eta * d;
            ax = if mu == 1.0 { p } else { ax + mu * (p - ax) };
            eta = lr / (1.0 + 0.2 * lr * step as f64).powf(0.75);
            mu = 1.0 / (step as f64 - 2.0).max(1.0);
            let averaged = asgd.averaged()?.unwrap();
            assert_eq!(averaged[0].0, "0");
            let got = [firsts(&bag)[0], averaged[0].1.to_vec::<f64>()?[0]];
            let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-14;
            assert!(
                got.iter().zip(&[p, ax]).all(close),
                "{step}: {got:?} {p} {ax}"
            );
        }
        let state = asgd.state()?;
        let names: Vec<&str> = state.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["ax.0", "eta.0", "step.0"]);
        assert_eq!(state[1].1.item()?, eta);
        Ok(())
    }

    #[test]
    fn amsgrad_divides_by_the_greatest_mean_so_far() -> Result<()> {
        let mut adam = Adam::new(AdamConfig {
            lr: 0.5,
            betas: [0.0, 0.5],
            eps: 0.0,
            amsgrad: true,
            ..AdamConfig::default()
        })?;
        let mut bag = ones(&[&[1]])?;
        let (mut p, mut v, mut most) = (1.0, 0.0, 0f64);
        for (t, g) in [(1, 3.0), (2, 0.1), (3, -0.2), (4, 5.0)] {
            constant_step(&mut adam, &mut bag, g)?;
            v = 0.5 * v + 0.5 * g * g;
            most = most.max(v);
            p -= 0.5 * g / (most / (1.0 - 0.5f64.powi(t))).sqrt();
            assert!((firsts(&bag)[0] - p).abs() < 1e-14);
        }
        Ok(())
    }
}
