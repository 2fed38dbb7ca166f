//! A learning rate that falls where nothing gets better.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::optim::{check_fraction, check_not_negative};

/// Which way is better, and so what is watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlateauMode {
    /// Down: the validation loss.
    #[default]
    Min,
    /// Up: the validation accuracy.
    Max,
}

impl PlateauMode {
    fn max() -> Self {
        PlateauMode::Max
    }
}

/// How a threshold is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdMode {
    /// As a part of the best value.
    #[default]
    Rel,
    /// As a distance from it.
    Abs,
}

/// PyTorch's `ReduceLROnPlateau`: times `factor` where what is watched has not got better by more
/// than `threshold` in over `patience` epochs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plateau {
    /// Which way is better. Configurations without this key are older than it: read from JSON,
    /// what is left out is `max`.
    #[serde(default = "PlateauMode::max")]
    pub mode: PlateauMode,
    /// The factor.
    pub factor: f64,
    /// Epochs without getting better that are borne.
    pub patience: usize,
    /// What counts as better.
    pub threshold: f64,
    /// How the threshold is meant.
    pub threshold_mode: ThresholdMode,
    /// Epochs after a change that do not count.
    pub cooldown: usize,
    /// No lower than this.
    pub min_lr: f64,
    /// A change by no more than this is not made.
    pub eps: f64,
}

impl Default for Plateau {
    fn default() -> Self {
        Plateau {
            mode: PlateauMode::Min,
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            threshold_mode: ThresholdMode::Rel,
            cooldown: 0,
            min_lr: 0.0,
            eps: 1e-8,
        }
    }
}

/// What a [`Plateau`] remembers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScheduleState {
    /// The best value so far.
    pub best: Option<f64>,
    /// Epochs without a better one.
    pub bad_epochs: usize,
    /// Epochs left that do not count.
    pub cooldown: usize,
    /// How often the learning rate was reduced.
    pub reductions: i32,
}

impl Plateau {
    pub(super) fn learning_rate(&self, base: f64, state: &ScheduleState) -> f64 {
        let mut lr = base;
        for _ in 0..state.reductions {
            let next = (lr * self.factor).max(self.min_lr);
            // also where the base is below the least
            if lr - next <= self.eps {
                break;
            }
            lr = next;
        }
        lr
    }

    fn is_better(&self, value: f64, best: Option<f64>) -> bool {
        let (sign, worst) = match self.mode {
            PlateauMode::Min => (-1.0, f64::INFINITY),
            PlateauMode::Max => (1.0, f64::NEG_INFINITY),
        };
        let (best, by) = (best.unwrap_or(worst), sign * self.threshold);
        let bound = match self.threshold_mode {
            ThresholdMode::Rel => best * (1.0 + by),
            ThresholdMode::Abs => best + by,
        };
        match self.mode {
            PlateauMode::Min => value < bound,
            PlateauMode::Max => value > bound,
        }
    }

    pub(super) fn end_epoch(&self, state: &mut ScheduleState, value: f64) {
        if self.is_better(value, state.best) {
            state.best = Some(value);
            state.bad_epochs = 0;
        } else {
            state.bad_epochs += 1;
        }
        if state.cooldown > 0 {
            state.cooldown -= 1;
            state.bad_epochs = 0;
        }
        if state.bad_epochs > self.patience {
            state.reductions = state.reductions.saturating_add(1);
            state.cooldown = self.cooldown;
            state.bad_epochs = 0;
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        check_fraction("factor", self.factor)?;
        check_not_negative("threshold", self.threshold)?;
        check_not_negative("min_lr", self.min_lr)?;
        check_not_negative("eps", self.eps)
    }
}
