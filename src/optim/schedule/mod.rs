//! Learning rates over a run.

mod cycle;
mod plateau;

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::{check, check_not_negative};
use crate::error::{Error, Result};

pub use cycle::{Anneal, Cyclic, CyclicMode, OneCycle};
pub use plateau::{Plateau, PlateauMode, ScheduleState, ThresholdMode};

/// What a schedule counts: PyTorch leaves that to where `scheduler.step()` is called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Epochs that ended: the learning rate stays within an epoch.
    #[default]
    Epoch,
    /// Steps made.
    Step,
}

impl Unit {
    fn step() -> Self {
        Unit::Step
    }
}

/// How the learning rate moves, by PyTorch's names, formulas and defaults; `base` is the
/// optimizer's own, and t counts epochs or steps from 0, as `unit` says. In JSON what has a
/// default can be left out; left out there, `one_cycle`'s `cycle_momentum` is false and `plateau`'s `mode`
/// is `max`, as they were before they could be chosen.
///
/// ```
/// # use cotangent::optim::{Position, Schedule, ScheduleState, Unit};
/// // halved every five epochs
/// let schedule = Schedule::Step { step_size: 5, gamma: 0.5, unit: Unit::Epoch };
/// let at = Position { epoch: 12, ..Position::default() };
/// assert_eq!(schedule.learning_rate(0.1, at, &ScheduleState::default()), 0.025);
/// let read = serde_json::from_str(r#"{"step": {"step_size": 5, "gamma": 0.5}}"#);
/// assert_eq!(schedule, read?);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// The base throughout.
    #[default]
    Constant,
    /// base gamma^floor(t / step_size) (`StepLR`).
    Step {
        /// Counts between two changes.
        step_size: usize,
        /// The factor; 0.1 by default.
        #[serde(default = "tenth")]
        gamma: f64,
        /// What is counted.
        #[serde(default)]
        unit: Unit,
    },
    /// Times `gamma` at each milestone (`MultiStepLR`).
    MultiStep {
        /// The counts at which it changes, rising.
        milestones: Vec<usize>,
        /// The factor; 0.1 by default.
        #[serde(default = "tenth")]
        gamma: f64,
        /// What is counted.
        #[serde(default)]
        unit: Unit,
    },
    /// base gamma^t (`ExponentialLR`, and CS231n's `lr_decay`).
    Exponential {
        /// The factor.
        gamma: f64,
        /// What is counted.
        #[serde(default)]
        unit: Unit,
    },
    /// base (1 - t / total_iters)^power, and 0 from there on (`PolynomialLR`).
    Polynomial {
        /// Counts until 0; 5 by default.
        #[serde(default = "five")]
        total_iters: usize,
        /// The power; 1 by default.
        #[serde(default = "one")]
        power: f64,
        /// What is counted.
        #[serde(default)]
        unit: Unit,
    },
    /// base times a factor that goes straight from `start_factor` to `end_factor`, and stays
    /// there (`LinearLR`).
    Linear {
        /// The first factor; 1/3 by default.
        #[serde(default = "third")]
        start_factor: f64,
        /// The last factor; 1 by default.
        #[serde(default = "one")]
        end_factor: f64,
        /// Counts until the last factor; 5 by default.
        #[serde(default = "five")]
        total_iters: usize,
        /// What is counted.
        #[serde(default)]
        unit: Unit,
    },
    /// Times `factor` where the validation accuracy or loss stands still (`ReduceLROnPlateau`).
    Plateau(Plateau),
    /// From the base to `eta_min` along half a cosine of `t_max` counts, and up again along the
    /// next half (`CosineAnnealingLR`; Loshchilov and Hutter 2017).
    Cosine {
        /// Counts until `eta_min`.
        t_max: usize,
        /// The least learning rate; 0 by default.
        #[serde(default)]
        eta_min: f64,
        /// What is counted.
        #[serde(default)]
        unit: Unit,
    },
    /// From the base to `eta_min` along half a cosine, again and again
    /// (`CosineAnnealingWarmRestarts`; Loshchilov and Hutter 2017).
    CosineWarmRestarts {
        /// Counts of the first cosine.
        t_0: usize,
        /// The length of each over that of the one before; 1 by default.
        #[serde(default = "once")]
        t_mult: usize,
        /// The least learning rate; 0 by default.
        #[serde(default)]
        eta_min: f64,
        /// What is counted.
        #[serde(default)]
        unit: Unit,
    },
    /// Up and down between two learning rates, over and over (`CyclicLR`; Smith 2017).
    Cyclic(Cyclic),
    /// Once up and down over the whole run (`OneCycleLR`; Smith and Topin 2018).
    OneCycle(OneCycle),
    /// Step by step over the whole run: linearly up to the base in `warmup_steps`, then along
    /// half a cosine down to `eta_min` (Goyal et al. 2017).
    WarmupCosine {
        /// Steps until the base.
        warmup_steps: usize,
        /// The learning rate after the last step.
        eta_min: f64,
    },
    /// `Linear` for `total_iters` counts, then another schedule, which counts from there
    /// (`SequentialLR` of a `LinearLR`). Where the warm-up ends within an epoch, the rest of that
    /// epoch is the other schedule's first.
    Warmup {
        /// The first factor; 1/3 by default.
        #[serde(default = "third")]
        start_factor: f64,
        /// The factor that the warm-up heads for; 1 by default.
        #[serde(default = "one")]
        end_factor: f64,
        /// Counts of the warm-up; 5 by default.
        #[serde(default = "five")]
        total_iters: usize,
        /// What the warm-up counts.
        #[serde(default)]
        unit: Unit,
        /// What comes after it.
        then: Box<Schedule>,
    },
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Epochs that ended.
    pub epoch: usize,
    /// Steps made.
    pub step: usize,
    /// Epochs of the whole run.
    pub total_epochs: usize,
    /// Steps of the whole run.
    pub total_steps: usize,
}

impl Position {
    fn count(self, unit: Unit) -> usize {
        match unit {
            Unit::Epoch => self.epoch,
            Unit::Step => self.step,
        }
    }

    fn total(self, unit: Unit) -> usize {
        match unit {
            Unit::Epoch => self.total_epochs,
            Unit::Step => self.total_steps,
        }
    }

    /// The same in a run that begins `n` counts later; `None` before that.
    fn since(self, n: usize, unit: Unit) -> Option<Position> {
        let of_epoch = (self.total_steps / self.total_epochs.max(1)).max(1);
        let (epochs, steps) = match unit {
            Unit::Epoch => (n, n.saturating_mul(of_epoch)),
            Unit::Step => (n / of_epoch, n),
        };
        (self.count(unit) >= n).then(|| Position {
            epoch: self.epoch.saturating_sub(epochs),
            step: self.step.saturating_sub(steps),
            total_epochs: self.total_epochs.saturating_sub(epochs),
            total_steps: self.total_steps.saturating_sub(steps),
        })
    }
}

impl Schedule {
    /// The learning rate of the step that comes at `at`.
    pub fn learning_rate(&self, base: f64, at: Position, state: &ScheduleState) -> f64 {
        match *self {
            Schedule::Constant => base,
            Schedule::Step {
                step_size,
                gamma,
                unit,
            } => base * power(gamma, at.count(unit) / step_size.max(1)),
            Schedule::MultiStep {
                ref milestones,
                gamma,
                unit,
            } => {
                let reached = |&&m: &&usize| m <= at.count(unit);
                base * power(gamma, milestones.iter().filter(reached).count())
            }
            Schedule::Exponential { gamma, unit } => base * power(gamma, at.count(unit)),
            Schedule::Polynomial {
                total_iters,
                power,
                unit,
            } => base * (1.0 - part(at.count(unit), total_iters)).powf(power),
            Schedule::Linear {
                start_factor,
                end_factor,
                total_iters,
                unit,
            } => base * linear(start_factor, end_factor, part(at.count(unit), total_iters)),
            Schedule::Plateau(ref plateau) => plateau.learning_rate(base, state),
            Schedule::Cosine {
                t_max,
                eta_min,
                unit,
            } => cosine(base, eta_min, at.count(unit) as f64 / t_max.max(1) as f64),
            Schedule::CosineWarmRestarts {
                t_0,
                t_mult,
                eta_min,
                unit,
            } => {
                let (t, length) = since_restart(at.count(unit), t_0, t_mult);
                cosine(base, eta_min, t as f64 / length as f64)
            }
            Schedule::Cyclic(ref cyclic) => cyclic.learning_rate(at.count(cyclic.unit)),
            Schedule::OneCycle(ref cycle) => {
                cycle.learning_rate(base, at.count(cycle.unit), at.total(cycle.unit))
            }
            Schedule::WarmupCosine {
                warmup_steps,
                eta_min,
            } => match at.step.checked_sub(warmup_steps) {
                None => base * (at.step + 1) as f64 / warmup_steps as f64,
                Some(after) => {
                    let rest = at.total_steps.saturating_sub(warmup_steps).max(1);
                    cosine(base, eta_min, part(after, rest))
                }
            },
            Schedule::Warmup {
                start_factor,
                end_factor,
                total_iters,
                unit,
                ref then,
            } => match at.since(total_iters, unit) {
                None => base * linear(start_factor, end_factor, part(at.count(unit), total_iters)),
                Some(at) => then.learning_rate(base, at, state),
            },
        }
    }

    /// The momentum of the step that comes at `at`; `None` for the optimizer's own.
    pub fn momentum(&self, at: Position) -> Option<f64> {
        match self {
            Schedule::Cyclic(cyclic) => cyclic.momentum(at.count(cyclic.unit)),
            Schedule::OneCycle(cycle) => cycle.momentum(at.count(cycle.unit), at.total(cycle.unit)),
            Schedule::Warmup {
                total_iters,
                unit,
                then,
                ..
            } => then.momentum(at.since(*total_iters, *unit)?),
            _ => None,
        }
    }

    /// Whether the momentum moves: the update rule must then have one.
    pub fn cycles_momentum(&self) -> bool {
        match self {
            Schedule::Cyclic(cyclic) => cyclic.cycle_momentum,
            Schedule::OneCycle(cycle) => cycle.cycle_momentum,
            Schedule::Warmup { then, .. } => then.cycles_momentum(),
            _ => false,
        }
    }

    /// Whether the run's length shapes it: a longer run has other learning rates from the
    /// beginning.
    pub fn spans_run(&self) -> bool {
        match self {
            Schedule::OneCycle(_) | Schedule::WarmupCosine { .. } => true,
            Schedule::Warmup { then, .. } => then.spans_run(),
            _ => false,
        }
    }

    /// Which way the number that [`end_epoch`](Self::end_epoch) takes gets better; `None` where
    /// none is wanted.
    pub fn watches(&self) -> Option<PlateauMode> {
        match self {
            Schedule::Plateau(plateau) => Some(plateau.mode),
            Schedule::Warmup { then, .. } => then.watches(),
            _ => None,
        }
    }

    /// Take in the validation accuracy or loss of the epoch that ended at `at`, whichever
    /// [`watches`](Self::watches) asks for.
    pub fn end_epoch(&self, at: Position, state: &mut ScheduleState, value: f64) {
        match self {
            Schedule::Plateau(plateau) => plateau.end_epoch(state, value),
            Schedule::Warmup {
                total_iters,
                unit,
                then,
                ..
            } => match at.since(*total_iters, *unit) {
                // an epoch of the warm-up is none of the other schedule's
                Some(at) if at.epoch > 0 => then.end_epoch(at, state, value),
                _ => {}
            },
            _ => {}
        }
    }

    /// An [`Error::Config`] where a setting makes no sense, whatever the run.
    pub fn validate(&self) -> Result<()> {
        match *self {
            Schedule::Constant => Ok(()),
            Schedule::Step {
                step_size, gamma, ..
            } => {
                at_least_one("step_size", step_size)?;
                positive("gamma", gamma)
            }
            Schedule::MultiStep {
                ref milestones,
                gamma,
                ..
            } => {
                if !milestones.is_sorted_by(|a, b| a < b) {
                    let why = format!("{milestones:?}; expected each above the one before");
                    return Err(Error::config("milestones", why));
                }
                positive("gamma", gamma)
            }
            Schedule::Exponential { gamma, .. } => positive("gamma", gamma),
            Schedule::Polynomial {
                total_iters, power, ..
            } => {
                at_least_one("total_iters", total_iters)?;
                check_not_negative("power", power)
            }
            Schedule::Linear {
                start_factor,
                end_factor,
                total_iters,
                ..
            } => check_ramp(start_factor, end_factor, total_iters),
            Schedule::Plateau(ref plateau) => plateau.validate(),
            Schedule::Cosine { t_max, eta_min, .. } => {
                at_least_one("t_max", t_max)?;
                check_not_negative("eta_min", eta_min)
            }
            Schedule::CosineWarmRestarts {
                t_0,
                t_mult,
                eta_min,
                ..
            } => {
                at_least_one("t_0", t_0)?;
                at_least_one("t_mult", t_mult)?;
                check_not_negative("eta_min", eta_min)
            }
            Schedule::Cyclic(ref cyclic) => cyclic.validate(),
            Schedule::OneCycle(ref cycle) => cycle.validate(),
            Schedule::WarmupCosine { eta_min, .. } => check_not_negative("eta_min", eta_min),
            Schedule::Warmup {
                start_factor,
                end_factor,
                total_iters,
                ref then,
                ..
            } => {
                check_ramp(start_factor, end_factor, total_iters)?;
                then.validate()
            }
        }
    }

    /// An [`Error::Config`] where the schedule does not fit into the run that begins at `run`.
    pub fn check_run(&self, run: Position) -> Result<()> {
        match *self {
            Schedule::WarmupCosine { warmup_steps, .. } if warmup_steps > run.total_steps => {
                Err(too_long("warmup_steps", warmup_steps, run, Unit::Step))
            }
            Schedule::Warmup {
                total_iters,
                unit,
                ref then,
                ..
            } => {
                let end = Position {
                    epoch: run.total_epochs,
                    step: run.total_steps,
                    ..run
                };
                match end.since(total_iters, unit) {
                    None => Err(too_long("total_iters", total_iters, run, unit)),
                    Some(rest) => then.check_run(Position {
                        epoch: 0,
                        step: 0,
                        ..rest
                    }),
                }
            }
            _ => Ok(()),
        }
    }
}

fn too_long(key: &'static str, n: usize, run: Position, unit: Unit) -> Error {
    let unit_name = match unit {
        Unit::Epoch => "epochs",
        Unit::Step => "steps",
    };
    let total = run.total(unit);
    let why = format!("{n}; expected at most the {total} {unit_name} that there are");
    Error::config(key, why)
}

fn check_ramp(start_factor: f64, end_factor: f64, total_iters: usize) -> Result<()> {
    let start = start_factor > 0.0 && start_factor <= 1.0;
    check("start_factor", start_factor, start, "above 0 and at most 1")?;
    let end = (0.0..=1.0).contains(&end_factor);
    check("end_factor", end_factor, end, "0 to 1")?;
    at_least_one("total_iters", total_iters)
}

fn positive(key: &'static str, x: f64) -> Result<()> {
    check(key, x, x > 0.0 && x.is_finite(), "a number above 0")
}

fn at_least_one(key: &'static str, n: usize) -> Result<()> {
    check(key, n as f64, n > 0, "at least 1")
}

/// Counts since the last restart, and those until the next.
fn since_restart(mut t: usize, t_0: usize, t_mult: usize) -> (usize, usize) {
    let (mut length, factor) = (t_0.max(1), t_mult.max(1));
    if factor == 1 {
        return (t % length, length);
    }
    while t >= length {
        t -= length;
        length = length.saturating_mul(factor);
    }
    (t, length)
}

/// `t` of `total`, at most 1.
fn part(t: usize, total: usize) -> f64 {
    (t as f64 / total.max(1) as f64).min(1.0)
}

fn power(x: f64, n: usize) -> f64 {
    x.powi(i32::try_from(n).unwrap_or(i32::MAX))
}

/// From `from` to `to` along half a cosine, at the part `x` of the way.
fn cosine(from: f64, to: f64, x: f64) -> f64 {
    to + (from - to) * (1.0 + (PI * x).cos()) / 2.0
}

/// From `from` straight to `to`, at the part `x` of the way.
fn linear(from: f64, to: f64, x: f64) -> f64 {
    from + (to - from) * x
}

fn tenth() -> f64 {
    0.1
}

fn third() -> f64 {
    1.0 / 3.0
}

fn one() -> f64 {
    1.0
}

fn once() -> usize {
    1
}

fn five() -> usize {
    5
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The schedule of a JSON text.
    fn read(json: &str) -> Schedule {
        serde_json::from_str(json).unwrap_or_else(|e| panic!("{json}: {e}"))
    }

    /// A run of ten steps an epoch.
    fn at(step: usize, total_epochs: usize) -> Position {
        Position {
            epoch: step / 10,
            step,
            total_epochs,
            total_steps: 10 * total_epochs,
        }
    }

    fn rates(schedule: &Schedule, base: f64, steps: &[usize], total_epochs: usize) -> Vec<f64> {
        let state = ScheduleState::default();
        let rate = |&s| schedule.learning_rate(base, at(s, total_epochs), &state);
        steps.iter().map(rate).collect()
    }

    fn assert_close(got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12;
        let all = got.iter().zip(expected).all(close);
        assert!(all, "{got:?} is not {expected:?}");
    }

    #[test]
    fn each_counts_epochs_or_steps() {
        let steps = [0, 9, 10, 19, 20];
        for (json, by_epoch, by_step) in [
            (
                r#"{"step": {"step_size": 2, "gamma": 0.5, "unit": "UNIT"}}"#,
                [1.0, 1.0, 1.0, 1.0, 0.5],
                [1.0, 1.0 / 16.0, 1.0 / 32.0, 1.0 / 512.0, 1.0 / 1024.0],
            ),
            (
                r#"{"multi_step": {"milestones": [1, 2, 20], "gamma": 0.5, "unit": "UNIT"}}"#,
                [1.0, 1.0, 0.5, 0.5, 0.25],
                [1.0, 0.25, 0.25, 0.25, 0.125],
            ),
            (
                r#"{"polynomial": {"total_iters": 19, "unit": "UNIT"}}"#,
                [1.0, 1.0, 18.0 / 19.0, 18.0 / 19.0, 17.0 / 19.0],
                [1.0, 10.0 / 19.0, 9.0 / 19.0, 0.0, 0.0],
            ),
            (
                r#"{"linear": {"start_factor": 0.5, "total_iters": 10, "unit": "UNIT"}}"#,
                [0.5, 0.5, 0.55, 0.55, 0.6],
                [0.5, 0.95, 1.0, 1.0, 1.0],
            ),
            (
                r#"{"cosine_warm_restarts": {"t_0": 2, "t_mult": 3, "unit": "UNIT"}}"#,
                [1.0, 1.0, 0.5, 0.5, 1.0],
                // the third cosine begins at 8, the one after it would at 26
                [
                    1.0,
                    0.992_403_876_506_104,
                    0.969_846_310_392_954,
                    0.328_989_928_337_165_8,
                    0.25,
                ],
            ),
            (
                r#"{"cyclic": {"base_lr": 0, "max_lr": 1, "step_size_up": 20, "unit": "UNIT"}}"#,
                [0.0, 0.0, 0.05, 0.05, 0.1],
                [0.0, 0.45, 0.5, 0.95, 1.0],
            ),
        ] {
            for (unit, expected) in [("epoch", by_epoch), ("step", by_step)] {
                let schedule = read(&json.replace("UNIT", unit));
                schedule.validate().unwrap();
                assert_close(&rates(&schedule, 1.0, &steps, 3), &expected);
            }
        }
        assert_eq!(rates(&Schedule::Constant, 0.3, &[0, 99], 10), [0.3, 0.3]);
    }

    #[test]
    fn over_the_whole_run() {
        let warm = Schedule::WarmupCosine {
            warmup_steps: 4,
            eta_min: 0.0,
        };
        let run = |step, total_steps| Position {
            step,
            total_steps,
            ..Position::default()
        };
        let state = ScheduleState::default();
        let rates = |schedule: &Schedule, base, steps: &[usize], total| -> Vec<f64> {
            let rate = |&s| schedule.learning_rate(base, run(s, total), &state);
            steps.iter().map(rate).collect()
        };
        let r = rates(&warm, 1.0, &[0, 1, 3, 4, 9, 14, 20], 14);
        assert_close(&r, &[0.25, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]);
        let cycle = Schedule::OneCycle(OneCycle::default());
        assert_close(&rates(&cycle, 0.4, &[0, 17, 59], 60), &[0.016, 0.4, 1.6e-6]);
        // too few steps to go up at all, none of them, and more than there are
        for total in 0..4 {
            for three_phase in [false, true] {
                let cycle = Schedule::OneCycle(OneCycle {
                    three_phase,
                    ..OneCycle::default()
                });
                let all = rates(&cycle, 0.4, &[0, 1, 2, 3], total);
                assert!(all.iter().all(|r| (1e-9..=0.4).contains(r)), "{all:?}");
                let momentum = |s| cycle.momentum(run(s, total)).unwrap();
                assert!((0..4).all(|s| (0.85..=0.95).contains(&momentum(s))));
            }
        }
        assert!(warm.spans_run() && cycle.spans_run() && !Schedule::Constant.spans_run());
    }

    #[test]
    fn a_warm_up_hands_over_and_the_other_counts_from_there() {
        let halve = r#"{"step": {"step_size": 1, "gamma": 0.5}}"#;
        let by_epoch = read(&format!(
            r#"{{"warmup": {{"start_factor": 0.5, "total_iters": 2, "then": {halve}}}}}"#
        ));
        let r = rates(&by_epoch, 8.0, &[0, 9, 10, 19, 20, 29, 30, 49], 5);
        assert_close(&r, &[4.0, 4.0, 6.0, 6.0, 8.0, 8.0, 4.0, 2.0]);
        let by_step = read(&format!(
            r#"{{"warmup": {{"start_factor": 0.5, "total_iters": 15, "unit": "step",
                "then": {halve}}}}}"#
        ));
        // its first epoch is what is left of the run's second
        let r = rates(&by_step, 8.0, &[0, 3, 14, 15, 19, 20, 29, 30], 5);
        assert_close(&r, &[4.0, 4.8, 4.0 + 56.0 / 15.0, 8.0, 8.0, 4.0, 4.0, 2.0]);

        // what spans the run spans the rest of it
        let cycle = read(
            r#"{"warmup": {"total_iters": 20, "unit": "step", "then":
                {"one_cycle": {"cycle_momentum": true}}}}"#,
        );
        assert!(cycle.spans_run() && cycle.cycles_momentum());
        let alone = Schedule::OneCycle(OneCycle::default());
        for step in [20, 31, 49] {
            let (here, there) = (at(step, 5), at(step - 20, 3));
            let state = ScheduleState::default();
            let rate = |s: &Schedule, at| s.learning_rate(0.4, at, &state);
            assert_eq!(rate(&cycle, here), rate(&alone, there));
            assert_eq!(cycle.momentum(here), alone.momentum(there));
        }
        assert_eq!(cycle.momentum(at(19, 5)), None);
    }

    #[test]
    fn a_plateau_reduces_after_patience_and_its_state_goes_through_json() {
        let mut plateau = Plateau {
            mode: PlateauMode::Max,
            factor: 0.5,
            patience: 1,
            threshold: 1e-3,
            cooldown: 1,
            min_lr: 0.2,
            ..Plateau::default()
        };
        let better = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.6, 0.6];
        // the last one stops at min_lr
        let expected = [1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2];
        for mode in [PlateauMode::Max, PlateauMode::Min] {
            plateau.mode = mode;
            let schedule = Schedule::Plateau(plateau.clone());
            assert_eq!(schedule.watches(), Some(mode));
            let (mut state, mut seen) = (ScheduleState::default(), Vec::new());
            for accuracy in better {
                let value = match mode {
                    PlateauMode::Max => accuracy,
                    PlateauMode::Min => 1.0 - accuracy,
                };
                schedule.end_epoch(Position::default(), &mut state, value);
                seen.push(schedule.learning_rate(1.0, Position::default(), &state));
                let json = serde_json::to_string(&state).unwrap();
                state = serde_json::from_str(&json).unwrap();
            }
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn what_counts_as_better() {
        let reductions = |plateau: &Plateau, values: &[f64]| {
            let schedule = Schedule::Plateau(plateau.clone());
            let mut state = ScheduleState::default();
            for &v in values {
                schedule.end_epoch(Position::default(), &mut state, v);
            }
            state.reductions
        };
        let (rel, abs) = (ThresholdMode::Rel, ThresholdMode::Abs);
        let (min, max) = (PlateauMode::Min, PlateauMode::Max);
        for (mode, threshold_mode, enough, too_little) in [
            (min, rel, 3.5, 3.7),
            (min, abs, 3.8, 3.95),
            (max, rel, 4.5, 4.3),
            (max, abs, 4.2, 4.05),
        ] {
            let plateau = Plateau {
                mode,
                threshold_mode,
                threshold: 0.1,
                patience: 0,
                ..Plateau::default()
            };
            assert_eq!(reductions(&plateau, &[4.0, enough]), 0, "{plateau:?}");
            assert_eq!(reductions(&plateau, &[4.0, too_little]), 1, "{plateau:?}");
            // never better, and nothing to be better than
            assert_eq!(reductions(&plateau, &[f64::NAN, 4.0, enough]), 1);
        }
        // a change of less than eps is none, nor is one up to a least that is above the base
        let state = ScheduleState {
            reductions: 3,
            ..ScheduleState::default()
        };
        let rate = |plateau: Plateau| {
            Schedule::Plateau(plateau).learning_rate(1.0, Position::default(), &state)
        };
        let eps = |eps| Plateau {
            eps,
            ..Plateau::default()
        };
        assert_close(&[rate(eps(0.05)), rate(eps(1e-8))], &[1e-2, 1e-3]);
        let min_lr = Plateau {
            min_lr: 2.0,
            ..Plateau::default()
        };
        assert_eq!(rate(min_lr), 1.0);

        // epochs of a warm-up do not count
        let warm = Schedule::Warmup {
            start_factor: 0.5,
            end_factor: 1.0,
            total_iters: 2,
            unit: Unit::Epoch,
            then: Box::new(Schedule::Plateau(eps(0.0))),
        };
        let mut state = ScheduleState::default();
        for epoch in 1..5 {
            warm.end_epoch(at(10 * epoch, 9), &mut state, 1.0);
        }
        assert_eq!((state.best, state.bad_epochs), (Some(1.0), 1));
    }

    #[test]
    fn configurations_of_before_mean_the_same() {
        let plateau = r#"{"plateau": {"factor": 0.5, "patience": 2, "threshold": 0.001,
            "cooldown": 1, "min_lr": 0.01}}"#;
        assert_eq!(
            read(plateau),
            Schedule::Plateau(Plateau {
                mode: PlateauMode::Max,
                factor: 0.5,
                patience: 2,
                threshold: 0.001,
                cooldown: 1,
                min_lr: 0.01,
                ..Plateau::default()
            })
        );
        let cycle = r#"{"one_cycle": {"pct_start": 0.25, "div_factor": 10.0,
            "final_div_factor": 100.0}}"#;
        assert_eq!(
            read(cycle),
            Schedule::OneCycle(OneCycle {
                pct_start: 0.25,
                cycle_momentum: false,
                div_factor: 10.0,
                final_div_factor: 100.0,
                ..OneCycle::default()
            })
        );
        for json in [
            r#""constant""#,
            r#"{"step": {"step_size": 5, "gamma": 0.5}}"#,
            r#"{"exponential": {"gamma": 0.95}}"#,
            r#"{"cosine": {"t_max": 10, "eta_min": 0.0}}"#,
            r#"{"warmup_cosine": {"warmup_steps": 10, "eta_min": 0.0}}"#,
            plateau,
            cycle,
        ] {
            let schedule = read(json);
            schedule.validate().unwrap();
            let again = serde_json::to_string(&schedule).unwrap();
            assert_eq!(read(&again), schedule);
        }
        // what PyTorch requires is required, and typing errors are seen
        for json in [
            r#"{"step": {"gamma": 0.5}}"#,
            r#"{"cyclic": {"base_lr": 0.1}}"#,
            r#"{"one_cycle": {"pct_begin": 0.1}}"#,
            r#"{"linear": {"unit": "batch"}}"#,
        ] {
            assert!(serde_json::from_str::<Schedule>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn settings_without_sense_are_refused() {
        for (json, expected) in [
            (
                r#"{"step": {"step_size": 0}}"#,
                "step_size: 0; expected at least 1",
            ),
            (
                r#"{"exponential": {"gamma": -1}}"#,
                "gamma: -1; expected a number above 0",
            ),
            (
                r#"{"multi_step": {"milestones": [3, 3]}}"#,
                "milestones: [3, 3]; expected each above the one before",
            ),
            (
                r#"{"polynomial": {"total_iters": 0}}"#,
                "total_iters: 0; expected at least 1",
            ),
            (
                r#"{"polynomial": {"power": -1}}"#,
                "power: -1; expected a number of at least 0",
            ),
            (
                r#"{"linear": {"start_factor": 0}}"#,
                "start_factor: 0; expected above 0 and at most 1",
            ),
            (
                r#"{"linear": {"end_factor": 1.5}}"#,
                "end_factor: 1.5; expected 0 to 1",
            ),
            (
                r#"{"cosine": {"t_max": 0}}"#,
                "t_max: 0; expected at least 1",
            ),
            (
                r#"{"cosine_warm_restarts": {"t_0": 0}}"#,
                "t_0: 0; expected at least 1",
            ),
            (
                r#"{"cosine_warm_restarts": {"t_0": 1, "t_mult": 0}}"#,
                "t_mult: 0; expected at least 1",
            ),
            (
                r#"{"cyclic": {"base_lr": 0.2, "max_lr": 0.1}}"#,
                "base_lr: 0.2; expected at most max_lr 0.1",
            ),
            (
                r#"{"cyclic": {"base_lr": 0, "max_lr": 1, "step_size_up": 0}}"#,
                "step_size_up: 0; expected at least 1",
            ),
            (
                r#"{"cyclic": {"base_lr": 0, "max_lr": 1, "step_size_down": 0}}"#,
                "step_size_down: 0; expected at least 1",
            ),
            (
                r#"{"cyclic": {"base_lr": 0, "max_lr": 1, "max_momentum": 1}}"#,
                "max_momentum: 1; expected at least 0 and below 1",
            ),
            (
                r#"{"one_cycle": {"pct_start": 1.5}}"#,
                "pct_start: 1.5; expected 0 to 1",
            ),
            (
                r#"{"one_cycle": {"div_factor": 0}}"#,
                "div_factor: 0; expected a number above 0",
            ),
            (
                r#"{"one_cycle": {"base_momentum": 0.97}}"#,
                "base_momentum: 0.97; expected at most max_momentum 0.95",
            ),
            (
                r#"{"plateau": {"factor": 1}}"#,
                "factor: 1; expected at least 0 and below 1",
            ),
            (
                r#"{"plateau": {"eps": -1}}"#,
                "eps: -1; expected a number of at least 0",
            ),
            (
                r#"{"warmup_cosine": {"warmup_steps": 1, "eta_min": -1}}"#,
                "eta_min: -1; expected a number of at least 0",
            ),
            (
                r#"{"warmup": {"total_iters": 0, "then": "constant"}}"#,
                "total_iters: 0; expected at least 1",
            ),
            (
                r#"{"warmup": {"then": {"step": {"step_size": 0}}}}"#,
                "step_size: 0; expected at least 1",
            ),
        ] {
            let e = read(json).validate().unwrap_err();
            assert!(matches!(e, Error::Config { .. }), "{e}");
            assert_eq!(e.to_string(), format!("configuration: {expected}"));
        }
    }

    #[test]
    fn a_warm_up_longer_than_the_run_is_refused() {
        let check = |json: &str| read(json).check_run(at(0, 3)).map_err(|e| e.to_string());
        let warm = |n: usize, unit: &str, then: &str| {
            format!(r#"{{"warmup": {{"total_iters": {n}, "unit": "{unit}", "then": {then}}}}}"#)
        };
        let cosine = |n| format!(r#"{{"warmup_cosine": {{"warmup_steps": {n}, "eta_min": 0}}}}"#);
        for (n, unit) in [(3, "epoch"), (30, "step")] {
            assert_eq!(check(&warm(n, unit, r#""constant""#)), Ok(()));
            let e = check(&warm(n + 1, unit, r#""constant""#)).unwrap_err();
            let expected = format!(
                "configuration: total_iters: {}; expected at most the {n} {unit}s that there are",
                n + 1
            );
            assert_eq!(e, expected);
        }
        assert_eq!(check(&cosine(30)), Ok(()));
        assert!(check(&cosine(31)).unwrap_err().contains("the 30 steps"));
        // what is left for the inner one
        assert_eq!(check(&warm(1, "epoch", &cosine(20))), Ok(()));
        let e = check(&warm(1, "epoch", &cosine(21))).unwrap_err();
        assert!(
            e.contains("warmup_steps: 21; expected at most the 20 steps"),
            "{e}"
        );
    }
}
