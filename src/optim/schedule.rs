//! Learning rates over a run.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::{check, check_fraction, check_not_negative};
use crate::error::{Error, Result};

/// How the learning rate moves, by PyTorch's names and formulas; `base` is the optimizer's own.
///
/// ```
/// # use cotangent::optim::{Position, Schedule, ScheduleState};
/// // halved every five epochs
/// let schedule = Schedule::Step { step_size: 5, gamma: 0.5 };
/// let at = Position { epoch: 12, step: 0, total_steps: 1000 };
/// assert_eq!(schedule.learning_rate(0.1, at, &ScheduleState::default()), 0.025);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// The base throughout.
    #[default]
    Constant,
    /// Times `gamma` every `step_size` epochs (`StepLR`).
    Step {
        /// Epochs between two changes.
        step_size: usize,
        /// The factor.
        gamma: f64,
    },
    /// Times `gamma` every epoch (`ExponentialLR`, and CS231n's `lr_decay`).
    Exponential {
        /// The factor.
        gamma: f64,
    },
    /// Times `factor` where the validation accuracy has not risen by more than `threshold`
    /// (relative) in over `patience` epochs (`ReduceLROnPlateau` with mode `max`).
    Plateau {
        /// The factor.
        factor: f64,
        /// Epochs without a rise that are borne.
        patience: usize,
        /// What counts as a rise, relative to the best.
        threshold: f64,
        /// Epochs after a change that do not count.
        cooldown: usize,
        /// No lower than this.
        min_lr: f64,
    },
    /// From the base to `eta_min` along half a cosine of `t_max` epochs (`CosineAnnealingLR`;
    /// Loshchilov and Hutter 2017).
    Cosine {
        /// Epochs until `eta_min`.
        t_max: usize,
        /// The least learning rate.
        eta_min: f64,
    },
    /// Step by step over the whole run: from base / `div_factor` up to the base, then down to
    /// base / `div_factor` / `final_div_factor`, each along half a cosine (`OneCycleLR`; Smith
    /// and Topin 2018).
    OneCycle {
        /// The part of the steps that goes up.
        pct_start: f64,
        /// The base over the first learning rate.
        div_factor: f64,
        /// The first learning rate over the last.
        final_div_factor: f64,
    },
    /// Step by step over the whole run: linearly up to the base in `warmup_steps`, then along
    /// half a cosine down to `eta_min` (Goyal et al. 2017).
    WarmupCosine {
        /// Steps until the base.
        warmup_steps: usize,
        /// The learning rate after the last step.
        eta_min: f64,
    },
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Epochs that ended.
    pub epoch: usize,
    /// Steps made.
    pub step: usize,
    /// Steps of the whole run.
    pub total_steps: usize,
}

/// What [`Schedule::Plateau`] remembers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScheduleState {
    /// The best validation accuracy so far.
    pub best: Option<f64>,
    /// Epochs without a rise.
    pub bad_epochs: usize,
    /// Epochs left that do not count.
    pub cooldown: usize,
    /// How often the learning rate was reduced.
    pub reductions: i32,
}

impl Schedule {
    /// The learning rate of the step that comes at `at`.
    pub fn learning_rate(&self, base: f64, at: Position, state: &ScheduleState) -> f64 {
        match *self {
            Schedule::Constant => base,
            Schedule::Step { step_size, gamma } => {
                base * gamma.powi((at.epoch / step_size.max(1)) as i32)
            }
            Schedule::Exponential { gamma } => base * gamma.powi(at.epoch as i32),
            Schedule::Plateau { factor, min_lr, .. } => {
                let reduced = base * factor.powi(state.reductions);
                // a base below the least stays as it is
                reduced.max(min_lr.min(base))
            }
            Schedule::Cosine { t_max, eta_min } => {
                cosine(base, eta_min, at.epoch as f64 / t_max.max(1) as f64)
            }
            Schedule::OneCycle {
                pct_start,
                div_factor,
                final_div_factor,
            } => {
                let (first, step) = (base / div_factor, at.step as f64);
                let peak = pct_start * at.total_steps as f64 - 1.0;
                let last = at.total_steps as f64 - 1.0;
                if step <= peak {
                    // `peak` is 0 where a single step goes up: it begins at the base
                    cosine(first, base, if peak > 0.0 { step / peak } else { 1.0 })
                } else {
                    let down = (step - peak) / (last - peak);
                    cosine(base, first / final_div_factor, down.min(1.0))
                }
            }
            Schedule::WarmupCosine {
                warmup_steps,
                eta_min,
            } => match at.step.checked_sub(warmup_steps) {
                None => base * (at.step + 1) as f64 / warmup_steps as f64,
                Some(after) => {
                    let rest = at.total_steps.saturating_sub(warmup_steps).max(1);
                    cosine(base, eta_min, (after as f64 / rest as f64).min(1.0))
                }
            },
        }
    }

    /// Take in the validation accuracy of an epoch that ended.
    pub fn end_epoch(&self, state: &mut ScheduleState, val_acc: f64) {
        let Schedule::Plateau {
            patience,
            threshold,
            cooldown,
            ..
        } = *self
        else {
            return;
        };
        if state.best.is_none_or(|b| val_acc > b * (1.0 + threshold)) {
            state.best = Some(val_acc);
            state.bad_epochs = 0;
        } else {
            state.bad_epochs += 1;
        }
        if state.cooldown > 0 {
            state.cooldown -= 1;
            state.bad_epochs = 0;
        }
        if state.bad_epochs > patience {
            state.reductions += 1;
            state.cooldown = cooldown;
            state.bad_epochs = 0;
        }
    }

    /// An [`Error::Config`] where a setting makes no sense.
    pub fn validate(&self) -> Result<()> {
        let positive = |key, x: f64| check(key, x, x > 0.0 && x.is_finite(), "a number above 0");
        let at_least_one = |key, n: usize| match n {
            0 => Err(Error::config(key, "0; expected at least 1")),
            _ => Ok(()),
        };
        match *self {
            Schedule::Constant => Ok(()),
            Schedule::Step { step_size, gamma } => {
                at_least_one("step_size", step_size)?;
                positive("gamma", gamma)
            }
            Schedule::Exponential { gamma } => positive("gamma", gamma),
            Schedule::Plateau {
                factor,
                threshold,
                min_lr,
                ..
            } => {
                check_fraction("factor", factor)?;
                check_not_negative("threshold", threshold)?;
                check_not_negative("min_lr", min_lr)
            }
            Schedule::Cosine { t_max, eta_min } => {
                at_least_one("t_max", t_max)?;
                check_not_negative("eta_min", eta_min)
            }
            Schedule::OneCycle {
                pct_start,
                div_factor,
                final_div_factor,
            } => {
                check_fraction("pct_start", pct_start)?;
                positive("div_factor", div_factor)?;
                positive("final_div_factor", final_div_factor)
            }
            Schedule::WarmupCosine { eta_min, .. } => check_not_negative("eta_min", eta_min),
        }
    }
}

/// From `from` to `to` along half a cosine, at the part `x` of the way.
fn cosine(from: f64, to: f64, x: f64) -> f64 {
    to + (from - to) * (1.0 + (PI * x).cos()) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: &Schedule, base: f64, steps: &[usize], total_steps: usize) -> Vec<f64> {
        let at = |&step| Position {
            epoch: step,
            step,
            total_steps,
        };
        let state = ScheduleState::default();
        let rate = |s| schedule.learning_rate(base, at(s), &state);
        steps.iter().map(rate).collect()
    }

    #[test]
    fn epochs() {
        let halve = Schedule::Step {
            step_size: 5,
            gamma: 0.5,
        };
        assert_eq!(
            rates(&halve, 1.0, &[0, 4, 5, 9, 10], 0),
            [1.0, 1.0, 0.5, 0.5, 0.25]
        );
        let decay = Schedule::Exponential { gamma: 0.5 };
        assert_eq!(rates(&decay, 8.0, &[0, 1, 3], 0), [8.0, 4.0, 1.0]);
        assert_eq!(rates(&Schedule::Constant, 0.3, &[0, 99], 0), [0.3, 0.3]);
    }

    #[test]
    fn steps() {
        let warm = Schedule::WarmupCosine {
            warmup_steps: 4,
            eta_min: 0.0,
        };
        let r = rates(&warm, 1.0, &[0, 1, 3, 4, 9, 14, 20], 14);
        let expected = [0.25, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0];
        assert!(
            r.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15),
            "{r:?}"
        );
        let cycle = Schedule::OneCycle {
            pct_start: 0.3,
            div_factor: 25.0,
            final_div_factor: 1e4,
        };
        let r = rates(&cycle, 0.4, &[0, 17, 59], 60);
        let expected = [0.016, 0.4, 1.6e-6];
        assert!(
            r.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12),
            "{r:?}"
        );
        // too few steps to go up at all
        assert!(rates(&cycle, 0.4, &[0, 1], 2).iter().all(|r| r.is_finite()));
        assert!(rates(&cycle, 0.4, &[0, 1], 1).iter().all(|r| r.is_finite()));
    }

    #[test]
    fn a_plateau_reduces_after_patience_and_its_state_goes_through_json() {
        let plateau = Schedule::Plateau {
            factor: 0.5,
            patience: 1,
            threshold: 1e-3,
            cooldown: 1,
            min_lr: 0.2,
        };
        let mut state = ScheduleState::default();
        let at = Position {
            epoch: 0,
            step: 0,
            total_steps: 0,
        };
        let mut seen = Vec::new();
        for acc in [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.6, 0.6] {
            plateau.end_epoch(&mut state, acc);
            seen.push(plateau.learning_rate(1.0, at, &state));
            let json = serde_json::to_string(&state).unwrap();
            state = serde_json::from_str(&json).unwrap();
        }
        // the last one stops at min_lr
        assert_eq!(seen, [1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2]);
    }

    #[test]
    fn settings_without_sense_are_refused() {
        for bad in [
            Schedule::Step {
                step_size: 0,
                gamma: 0.5,
            },
            Schedule::Exponential { gamma: -1.0 },
            Schedule::Cosine {
                t_max: 0,
                eta_min: 0.0,
            },
            Schedule::OneCycle {
                pct_start: 1.5,
                div_factor: 25.0,
                final_div_factor: 1e4,
            },
            Schedule::WarmupCosine {
                warmup_steps: 1,
                eta_min: f64::NAN,
            },
        ] {
            assert!(
                matches!(bad.validate(), Err(Error::Config { .. })),
                "{bad:?}"
            );
        }
    }
}
