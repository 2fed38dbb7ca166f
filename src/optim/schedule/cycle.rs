//! Learning rates that go up and down, and the momentum against them.

use serde::{Deserialize, Serialize};

use super::{Unit, cosine, linear, positive};
use crate::error::{Error, Result};
use crate::optim::{check, check_fraction, check_not_negative};

/// How the cycles of [`Cyclic`] shrink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CyclicMode {
    /// They do not.
    #[default]
    Triangular,
    /// Each is half as high as the one before.
    Triangular2,
    /// `gamma` to the power of the count, at each count.
    ExpRange,
}

/// PyTorch's `CyclicLR` (Smith 2017): straight up from `base_lr` to `max_lr` and down again, over
/// and over; the optimizer's own learning rate has no say. With `cycle_momentum` the momentum goes
/// from `max_momentum` down to `base_momentum` and up again.
///
/// ```
/// # use cotangent::optim::{Cyclic, Position, Schedule, ScheduleState};
/// let cyclic = Cyclic { step_size_up: 4, ..Cyclic::new(0.0, 0.1) };
/// let schedule = Schedule::Cyclic(cyclic);
/// let at = Position { step: 6, ..Position::default() };
/// assert_eq!(schedule.learning_rate(1.0, at, &ScheduleState::default()), 0.05);
/// assert!((schedule.momentum(at).unwrap() - 0.85).abs() < 1e-15);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cyclic {
    /// The least learning rate.
    pub base_lr: f64,
    /// The greatest.
    pub max_lr: f64,
    /// Counts on the way up.
    #[serde(default = "Cyclic::usual_size")]
    pub step_size_up: usize,
    /// Counts on the way down; `None` for as many as up.
    #[serde(default)]
    pub step_size_down: Option<usize>,
    /// How the cycles shrink.
    #[serde(default)]
    pub mode: CyclicMode,
    /// Of [`CyclicMode::ExpRange`].
    #[serde(default = "super::one")]
    pub gamma: f64,
    /// Whether the momentum moves too.
    #[serde(default = "yes")]
    pub cycle_momentum: bool,
    /// The momentum at `max_lr`.
    #[serde(default = "Cyclic::usual_base_momentum")]
    pub base_momentum: f64,
    /// The momentum at `base_lr`.
    #[serde(default = "Cyclic::usual_max_momentum")]
    pub max_momentum: f64,
    /// What is counted.
    #[serde(default = "Unit::step")]
    pub unit: Unit,
}

impl Cyclic {
    /// Between two learning rates, the rest PyTorch's defaults.
    pub fn new(base_lr: f64, max_lr: f64) -> Self {
        Cyclic {
            base_lr,
            max_lr,
            step_size_up: Self::usual_size(),
            step_size_down: None,
            mode: CyclicMode::Triangular,
            gamma: 1.0,
            cycle_momentum: true,
            base_momentum: Self::usual_base_momentum(),
            max_momentum: Self::usual_max_momentum(),
            unit: Unit::Step,
        }
    }

    fn usual_size() -> usize {
        2000
    }

    fn usual_base_momentum() -> f64 {
        0.8
    }

    fn usual_max_momentum() -> f64 {
        0.9
    }

    /// The height above the base at count `t`, 1 at the first peak.
    fn height(&self, t: usize) -> f64 {
        let up = self.step_size_up as f64;
        let down = self.step_size_down.map_or(up, |n| n as f64);
        let (total, ratio) = (up + down, up / (up + down));
        let cycle = (1.0 + t as f64 / total).floor();
        let x = 1.0 + t as f64 / total - cycle;
        let triangle = match x <= ratio {
            true => x / ratio,
            false => (x - 1.0) / (ratio - 1.0),
        };
        triangle
            * match self.mode {
                CyclicMode::Triangular => 1.0,
                CyclicMode::Triangular2 => (1.0 - cycle).exp2(),
                CyclicMode::ExpRange => self.gamma.powf(t as f64),
            }
    }

    pub(super) fn learning_rate(&self, t: usize) -> f64 {
        linear(self.base_lr, self.max_lr, self.height(t))
    }

    pub(super) fn momentum(&self, t: usize) -> Option<f64> {
        let momentum = || linear(self.max_momentum, self.base_momentum, self.height(t));
        self.cycle_momentum.then(momentum)
    }

    pub(super) fn validate(&self) -> Result<()> {
        check_not_negative("base_lr", self.base_lr)?;
        check_not_negative("max_lr", self.max_lr)?;
        if self.base_lr > self.max_lr {
            let why = format!("{}; expected at most max_lr {}", self.base_lr, self.max_lr);
            return Err(Error::config("base_lr", why));
        }
        super::at_least_one("step_size_up", self.step_size_up)?;
        super::at_least_one("step_size_down", self.step_size_down.unwrap_or(1))?;
        positive("gamma", self.gamma)?;
        check_momenta(self.base_momentum, self.max_momentum)
    }
}

/// The way between two learning rates of [`OneCycle`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Anneal {
    /// Along half a cosine.
    #[default]
    Cos,
    /// Straight.
    Linear,
}

/// PyTorch's `OneCycleLR` (Smith and Topin 2018), over the whole run: from
/// `max_lr` / `div_factor` up to `max_lr`, then down to `max_lr` / `div_factor` /
/// `final_div_factor`. With `cycle_momentum` the momentum goes from `max_momentum` down to
/// `base_momentum` and up again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OneCycle {
    /// The greatest learning rate; `None` for the optimizer's own.
    pub max_lr: Option<f64>,
    /// The part of the run that goes up.
    pub pct_start: f64,
    /// The way up and down.
    pub anneal_strategy: Anneal,
    /// Whether the momentum moves too. Configurations without this key are older than it: read
    /// from JSON, what is left out is `false`.
    #[serde(default)]
    pub cycle_momentum: bool,
    /// The momentum at the peak.
    pub base_momentum: f64,
    /// The momentum at both ends.
    pub max_momentum: f64,
    /// The peak over the first learning rate.
    pub div_factor: f64,
    /// The first learning rate over the last.
    pub final_div_factor: f64,
    /// Whether it goes down to the first learning rate as fast as it came up, and from there to
    /// the last in what is left.
    pub three_phase: bool,
    /// What is counted.
    #[serde(default = "Unit::step")]
    pub unit: Unit,
}

impl Default for OneCycle {
    fn default() -> Self {
        OneCycle {
            max_lr: None,
            pct_start: 0.3,
            anneal_strategy: Anneal::Cos,
            cycle_momentum: true,
            base_momentum: 0.85,
            max_momentum: 0.95,
            div_factor: 25.0,
            final_div_factor: 1e4,
            three_phase: false,
            unit: Unit::Step,
        }
    }
}

impl OneCycle {
    /// From `first` to `peak` and on to `last`, at count `t` of `total`; `last` beyond them.
    fn at(&self, t: usize, total: usize, [first, peak, last]: [f64; 3]) -> f64 {
        let (t, total) = (t as f64, total as f64);
        let up = self.pct_start * total;
        // where each phase ends, and at what
        let down = self.three_phase.then_some((2.0 * up - 2.0, first));
        let phases = [Some((up - 1.0, peak)), down, Some((total - 1.0, last))];
        let (mut start, mut from) = (0.0, first);
        for (end, to) in phases.into_iter().flatten() {
            if t <= end {
                // a phase of a single count is at its end
                let x = if end > start {
                    (t - start) / (end - start)
                } else {
                    1.0
                };
                return match self.anneal_strategy {
                    Anneal::Cos => cosine(from, to, x),
                    Anneal::Linear => linear(from, to, x),
                };
            }
            (start, from) = (end, to);
        }
        last
    }

    pub(super) fn learning_rate(&self, base: f64, t: usize, total: usize) -> f64 {
        let peak = self.max_lr.unwrap_or(base);
        let first = peak / self.div_factor;
        self.at(t, total, [first, peak, first / self.final_div_factor])
    }

    pub(super) fn momentum(&self, t: usize, total: usize) -> Option<f64> {
        let (most, least) = (self.max_momentum, self.base_momentum);
        let momentum = || self.at(t, total, [most, least, most]);
        self.cycle_momentum.then(momentum)
    }

    pub(super) fn validate(&self) -> Result<()> {
        if let Some(max_lr) = self.max_lr {
            check_not_negative("max_lr", max_lr)?;
        }
        let part = (0.0..=1.0).contains(&self.pct_start);
        check("pct_start", self.pct_start, part, "0 to 1")?;
        positive("div_factor", self.div_factor)?;
        positive("final_div_factor", self.final_div_factor)?;
        check_momenta(self.base_momentum, self.max_momentum)
    }
}

fn check_momenta(base: f64, max: f64) -> Result<()> {
    check_fraction("base_momentum", base)?;
    check_fraction("max_momentum", max)?;
    if base > max {
        let why = format!("{base}; expected at most max_momentum {max}");
        return Err(Error::config("base_momentum", why));
    }
    Ok(())
}

fn yes() -> bool {
    true
}
