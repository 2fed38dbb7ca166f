//! The loss landscape (Santurkar et al. 2018): how far losses part at different learning rates, and
//! how loss and gradient change along the gradient.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::autograd::{Gradients, no_grad};
use crate::error::{Error, Result};
use crate::nn::{self, Mode, Module, Slot};
use crate::optim::global_norm;
use crate::tensor::Tensor;
use crate::train::ablation::{Ablation, Cell, Ended, run_folder};
use crate::train::history::null_is_nan;
use crate::train::l2::{add_l2_gradients, l2_loss};
use crate::train::observer::{Kept, Observer, StepView};
use crate::train::run::RECIPE;
use crate::train::{History, Plot, Recipe, Series, files, recipe};

/// Which networks are trained with which learning rates, and where one run of each looks along its
/// gradient. Each network is run with each learning rate, as the cells of an [`Ablation`].
///
/// ```
/// # use cotangent::train::Landscape;
/// let text = r#"
///     name = "batch_norm"
///     learning_rates = [1e-3, 2e-3]
///     [probe]
///     learning_rate = 1e-3
///     every = 5
///     step_lengths = [0.1, 0.4]
///     [recipe]
///     data.name = "embedded"
///     [[networks]]
///     name = "VGG-A"
///     set.model.name = "vgg_a"
///     [[networks]]
///     name = "VGG-A with batch norm"
///     set.model.name = "vgg_a_bn"
/// "#;
/// let landscape = Landscape::parse(text, &[("every".into(), "2".into())])?;
/// assert_eq!(landscape.probe.every, 2);
/// assert_eq!(landscape.ablation()?.cells()?.len(), 4);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Landscape {
    /// Of the folder and, without a title, of the pictures.
    pub name: String,
    /// What stands above the pictures.
    #[serde(default)]
    pub title: String,
    /// Of all runs.
    #[serde(default)]
    pub seed: u64,
    /// Each network is trained with each of them.
    pub learning_rates: Vec<f64>,
    /// What the runs have in common, at the small scale.
    #[serde(default)]
    pub recipe: Table,
    /// What is different in the recipe at the scale of the report.
    #[serde(default)]
    pub full: Table,
    /// What is compared.
    pub networks: Vec<Cell>,
    /// Where and how far to look along the gradient.
    #[serde(default)]
    pub probe: ProbeConfig,
    /// Keys of the recipe from the command line.
    #[serde(skip)]
    overrides: Vec<(String, String)>,
}

/// Where and how far to look along the gradient.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbeConfig {
    /// Of the run that looks; by default the first of all.
    pub learning_rate: Option<f64>,
    /// Steps from one look to the next.
    pub every: usize,
    /// The same at the scale of the report; by default `every`.
    pub full_every: Option<usize>,
    /// How far to go: multiples of the gradient. The paper's pictures end at 0.4.
    pub step_lengths: Vec<f64>,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        ProbeConfig {
            learning_rate: None,
            every: 10,
            full_every: None,
            step_lengths: vec![0.1, 0.2, 0.3, 0.4],
        }
    }
}

/// What a look along the gradient g = ∇L(w) found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Steps that were made before.
    pub step: usize,
    /// L(w).
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// ‖g‖, the 2-norm over all parameters.
    #[serde(deserialize_with = "null_is_nan")]
    pub gradient_norm: f64,
    /// What is there, one a step length.
    pub points: Vec<ProbePoint>,
}

/// A point w − η g on the line along the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbePoint {
    /// η, above 0.
    pub step_length: f64,
    /// L(w − η g).
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// ‖∇L(w − η g) − g‖: the less, the better the gradient predicts the one that comes.
    #[serde(deserialize_with = "null_is_nan")]
    pub gradient_change: f64,
}

impl Probe {
    /// ‖∇L(w − η g) − g‖ / (η ‖g‖) at each point. The greatest is the effective β-smoothness: the
    /// gradient is β-Lipschitz where ‖∇L(a) − ∇L(b)‖ ≤ β ‖a − b‖, and this is the least β that
    /// holds between w and the points (Santurkar et al. 2018, section 3.1 and figure 4c). Where the
    /// gradient is 0 there is no way to go, and it is 0.
    pub fn smoothness(&self) -> Vec<f64> {
        let of = |p: &ProbePoint| match self.gradient_norm {
            0.0 => 0.0,
            norm => p.gradient_change / (p.step_length * norm),
        };
        self.points.iter().map(of).collect()
    }
}

/// Look at loss and gradient along the line w − η g from the parameters w of `model`, g being the
/// gradient there: at each η of `step_lengths` the loss (Santurkar et al. 2018, figure 4a), how far
/// the gradient is from g (gradient predictiveness, figure 4b), and from that the effective
/// β-smoothness ([`Probe::smoothness`], figure 4c).
///
/// `objective` gives the loss and its gradients; frozen parameters stay where they are. It is
/// called once at w and once a step length, each time with the buffers and random streams that the
/// model has now, and all of the model comes back, to the bit and to the place in memory, whether
/// it fails or not.
///
/// ```
/// # use cotangent::{Tensor, nn::{Linear, Module, Mode}, random::Generator, train::along_gradient};
/// // L = 3 w²: the gradient is 12 at w = 2 and 12 − 72 η at 2 − 12 η
/// let mut net = Linear::new(1, 1, false, &mut Generator::new(0))?;
/// net.weight = Tensor::from_slice(&[2f32], [1, 1])?.requires_grad();
/// let found = along_gradient(&mut net, &[0.125], |net| {
///     let y = net.forward(&Tensor::from_slice(&[1f32], [1, 1])?, Mode::Train)?;
///     let loss = y.mul(&y)?.mul_scalar(3.0)?.sum_all()?;
///     Ok((loss.item()?, loss.backward()?))
/// })?;
/// assert_eq!((found.loss, found.gradient_norm), (12.0, 12.0));
/// assert_eq!((found.points[0].loss, found.points[0].gradient_change), (0.75, 9.0));
/// assert_eq!(found.smoothness(), [6.0]);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn along_gradient(
    model: &mut dyn Module,
    step_lengths: &[f64],
    objective: impl FnMut(&mut dyn Module) -> Result<(f64, Gradients)>,
) -> Result<Probe> {
    let kept = Kept::of(model);
    let found = walk(model, &kept, step_lengths, objective);
    kept.put_back(model);
    found
}

fn walk(
    model: &mut dyn Module,
    kept: &Kept,
    step_lengths: &[f64],
    mut objective: impl FnMut(&mut dyn Module) -> Result<(f64, Gradients)>,
) -> Result<Probe> {
    let (loss, gradients) = objective(model)?;
    let start = in_order(model, gradients);
    let mut points = Vec::with_capacity(step_lengths.len());
    for &step_length in step_lengths {
        kept.put_back(model);
        step(model, &start, step_length)?;
        let (loss, gradients) = objective(model)?;
        points.push(ProbePoint {
            step_length,
            loss,
            gradient_change: distance(&in_order(model, gradients), &start)?,
        });
    }
    let norm = global_norm(&start.iter().flatten().collect::<Vec<_>>())?;
    Ok(Probe {
        step: 0,
        loss,
        gradient_norm: norm.item()?,
        points,
    })
}

/// The gradients in the order of the parameters.
fn in_order(model: &mut dyn Module, mut gradients: Gradients) -> Vec<Option<Tensor>> {
    let mut all = Vec::new();
    nn::visit(model, |_, slot| {
        if let Slot::Parameter(p) = slot {
            all.push(gradients.remove(p));
        }
    });
    all
}

/// w − η g in place of each parameter w.
fn step(model: &mut dyn Module, gradient: &[Option<Tensor>], step_length: f64) -> Result<()> {
    let _quiet = no_grad();
    let mut gradient = gradient.iter();
    nn::try_visit(model, |_, slot| {
        if let Slot::Parameter(p) = slot
            && let Some(Some(g)) = gradient.next()
        {
            *p = p.sub(&g.mul_scalar(step_length)?)?.requires_grad();
        }
        Ok(())
    })
}

/// The 2-norm of the difference; a parameter without a gradient has one of 0.
fn distance(a: &[Option<Tensor>], b: &[Option<Tensor>]) -> Result<f64> {
    let apart = a.iter().zip(b).filter_map(|pair| match pair {
        (Some(a), Some(b)) => Some(a.sub(b)),
        (Some(g), None) | (None, Some(g)) => Some(Ok(g.clone())),
        (None, None) => None,
    });
    let apart = apart.collect::<Result<Vec<_>>>()?;
    global_norm(&apart.iter().collect::<Vec<_>>())?.item()
}

/// The loss of a step and its gradients, the penalty's among them, in the parameters' own precision
/// whatever the step's: between points that are near, a rounding to 16 bits would be all there is.
fn look(at: &mut StepView<'_>, step_lengths: &[f64]) -> Result<Probe> {
    let (batches, loss, reg) = (at.batches, at.loss, at.reg);
    along_gradient(at.model, step_lengths, |model| {
        let (mut value, mut sum) = (0.0, Gradients::default());
        for (images, labels) in batches {
            let scores = model.forward(images, Mode::Train)?;
            let share = 1.0 / batches.len() as f64;
            let mean = loss(&scores, labels)?.mul_scalar(share)?;
            value += mean.item()?;
            sum.add(mean.backward()?)?;
        }
        add_l2_gradients(model, reg, &mut sum)?;
        Ok((value + l2_loss(model, reg)?, sum))
    })
}

/// Looks along the gradient of a run, and keeps what it found in a file.
struct Prober {
    path: PathBuf,
    found: Found,
}

/// What a run's looks found, with the settings that they were made by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Found {
    every: usize,
    step_lengths: Vec<f64>,
    probes: Vec<Probe>,
}

const PROBES: &str = "probes.json";

impl Found {
    fn load(path: &Path) -> Result<Option<Self>> {
        let Ok(text) = std::fs::read(path) else {
            return Ok(None);
        };
        let found = serde_json::from_slice(&text);
        found
            .map(Some)
            .map_err(|e| Error::data(path, e.to_string()))
    }
}

impl Prober {
    /// Goes on with what an earlier run left in `folder`; looks that were made by other settings
    /// are an [`Error::Config`].
    fn new(folder: &Path, every: usize, step_lengths: &[f64]) -> Result<Self> {
        let path = folder.join(PROBES);
        let new = Found {
            every,
            step_lengths: step_lengths.to_vec(),
            probes: Vec::new(),
        };
        let found = Found::load(&path)?.unwrap_or_else(|| new.clone());
        if (found.every, &found.step_lengths) != (new.every, &new.step_lengths) {
            let (n, lengths) = (found.every, &found.step_lengths);
            let why = format!(
                "{} was made with every = {n} and step_lengths = {lengths:?}; expected the same, or \
                 another folder",
                path.display()
            );
            return Err(Error::config("probe", why));
        }
        Ok(Prober { path, found })
    }
}

impl Observer for Prober {
    fn watches(&self, step: usize) -> bool {
        step.is_multiple_of(self.found.every)
    }

    fn before_step(&mut self, mut at: StepView<'_>) -> Result<()> {
        let found = look(&mut at, &self.found.step_lengths)?;
        // a run that goes on from a checkpoint comes by some steps again
        self.found.probes.retain(|p| p.step < at.step);
        let step = at.step;
        self.found.probes.push(Probe { step, ..found });
        files::write_atomic(&self.path, |w| {
            serde_json::to_writer(w, &self.found).map_err(Into::into)
        })
    }
}

/// Keys of a landscape's file that the command line can set, and where they are.
const OWN: [(&str, &str); 4] = [
    ("learning_rates", "learning_rates"),
    ("every", "probe.every"),
    ("full_every", "probe.full_every"),
    ("step_lengths", "probe.step_lengths"),
];

impl Landscape {
    /// A landscape's file; see [`parse`](Self::parse).
    pub fn load(path: impl AsRef<Path>, overrides: &[(String, String)]) -> Result<Self> {
        recipe::from_file(path.as_ref(), |text| Self::parse(text, overrides))
    }

    /// A landscape's text, with `overrides` (key, value) of its own keys and of the recipe's in
    /// place of what it says. Settings that make no sense are an [`Error::Config`] before anything
    /// runs.
    pub fn parse(text: &str, overrides: &[(String, String)]) -> Result<Self> {
        let mut table: Table = text.parse().map_err(recipe::wrong)?;
        let mut rest = Vec::new();
        for (key, value) in overrides {
            let plain = key.replace('-', "_");
            match OWN
                .iter()
                .find(|(short, path)| plain == *short || plain == *path)
            {
                Some((_, path)) => recipe::set(&mut table, path, recipe::read_value(value))?,
                None => rest.push((key.clone(), value.clone())),
            }
        }
        let read: Landscape = Value::Table(table).try_into().map_err(recipe::wrong)?;
        let landscape = Landscape {
            overrides: rest,
            ..read
        };
        landscape.check()?;
        Ok(landscape)
    }

    fn check(&self) -> Result<()> {
        let refuse = |why: String| Err(Error::config("landscape", why));
        let (rates, probe) = (&self.learning_rates, &self.probe);
        let wrong = |x: &&f64| !(x.is_finite() && **x > 0.0);
        for (key, numbers) in [
            ("learning_rates", rates),
            ("step_lengths", &probe.step_lengths),
        ] {
            if numbers.is_empty() {
                return refuse(format!("{key}: none; expected at least one"));
            }
            if let Some(x) = numbers.iter().find(wrong) {
                return refuse(format!("{key}: {x}; expected numbers above 0"));
            }
        }
        for (key, n) in [
            ("every", Some(probe.every)),
            ("full_every", probe.full_every),
        ] {
            if n == Some(0) {
                return refuse(format!("{key}: 0 steps; expected at least 1"));
            }
        }
        if !rates.contains(&self.probe_rate()) {
            let (rate, key) = (self.probe_rate(), "probe.learning_rate");
            return refuse(format!("{key}: {rate}; expected one of {rates:?}"));
        }
        if self.networks.is_empty() {
            return refuse("networks: none; expected at least one".into());
        }
        let ablation = self.ablation()?.checked(&self.overrides)?;
        for (network, rate, cell) in self.cells()? {
            for full in [false, true] {
                let recipe = ablation.recipe(&cell, self.seed, full, &self.overrides)?;
                let found = recipe.train.optim_config.learning_rate;
                if found != Some(rate) {
                    let name = &network.name;
                    let why = format!("{name}: {found:?}; expected learning_rates to set it");
                    return Err(Error::config("learning_rate", why));
                }
            }
        }
        Ok(())
    }

    fn probe_rate(&self) -> f64 {
        let first = self.learning_rates.first().copied();
        self.probe.learning_rate.or(first).unwrap_or(f64::NAN)
    }

    /// All runs: of which network, with which learning rate, and as a cell.
    fn cells(&self) -> Result<Vec<(&Cell, f64, Cell)>> {
        let mut cells = Vec::new();
        for network in &self.networks {
            for &rate in &self.learning_rates {
                let mut cell = network.clone();
                cell.name = format!("{}, {rate}", network.name);
                let path = "train.optim_config.learning_rate";
                recipe::set(&mut cell.set, path, Value::Float(rate))?;
                cells.push((network, rate, cell));
            }
        }
        Ok(cells)
    }

    /// The runs as an ablation: a cell for each network and learning rate.
    pub fn ablation(&self) -> Result<Ablation> {
        Ok(Ablation {
            name: self.name.clone(),
            title: self.title.clone(),
            seeds: vec![self.seed],
            recipe: self.recipe.clone(),
            full: self.full.clone(),
            grid: Table::new(),
            cells: self.cells()?.into_iter().map(|(.., cell)| cell).collect(),
            reported: Table::new(),
            only: None,
        })
    }

    /// Run all in `dir`, as [`Ablation::run`] does: what is finished is not run again, a run that
    /// fails is recorded (one whose loss is no longer finite counts as far as it went), and `stop`
    /// ends it after a checkpoint. Then write, each as `.csv`, `.svg` and `.png` with all networks:
    ///
    /// - `loss_band`: at each step the least and the greatest loss of the runs with the different
    ///   learning rates, of those that are still finite;
    /// - `loss_along_gradient`: the least and the greatest L(w − η g) over η = 0 and all step
    ///   lengths;
    /// - `gradient_predictiveness`: the least and the greatest ‖∇L(w − η g) − g‖;
    /// - `beta_smoothness`: the greatest ‖∇L(w − η g) − g‖ / (η ‖g‖).
    pub fn run(
        &self,
        dir: impl AsRef<Path>,
        full: bool,
        stop: &Arc<AtomicBool>,
        say: impl FnMut(&str),
    ) -> Result<Ended> {
        let (dir, probe) = (dir.as_ref(), &self.probe);
        let every = probe.full_every.filter(|_| full).unwrap_or(probe.every);
        let cells = self.cells()?;
        let looks = |name: &str| {
            let mut named = cells.iter().filter(|(.., cell)| cell.name == name);
            named.any(|(_, rate, _)| *rate == self.probe_rate())
        };
        let observe = |cell: &Cell, folder: &Path| -> Result<Option<Box<dyn Observer>>> {
            if !looks(&cell.name) {
                return Ok(None);
            }
            let prober = Prober::new(folder, every, &probe.step_lengths)?;
            Ok(Some(Box::new(prober)))
        };
        let ablation = self.ablation()?;
        let ended = ablation.run_observed(dir, full, &self.overrides, stop, say, observe)?;
        self.write(dir, full)?;
        Ok(ended)
    }

    fn write(&self, dir: &Path, full: bool) -> Result<()> {
        let ablation = self.ablation()?;
        let mut losses = Vec::new();
        let mut probes = Vec::new();
        for network in &self.networks {
            let mut histories = Vec::new();
            for (_, rate, cell) in self.cells()?.iter().filter(|(n, ..)| *n == network) {
                let folder = run_folder(dir, cell, self.seed);
                let recipe = ablation.recipe(cell, self.seed, full, &self.overrides)?;
                // what is there of other settings does not count
                let own = Recipe::load(folder.join(RECIPE), &[]).is_ok_and(|r| r == recipe);
                let history = History::load(&folder).ok().filter(|_| own);
                histories.push(history.map_or(Vec::new(), |h| h.loss_history));
                if *rate == self.probe_rate() && own {
                    let found = Found::load(&folder.join(PROBES))?;
                    let found = found.map_or(Vec::new(), |f| f.probes);
                    probes.push((network.name.as_str(), found));
                }
            }
            let steps = histories.iter().map(Vec::len).max().unwrap_or(0);
            let at = |i: usize| {
                let losses = histories.iter().map(|h| h.get(i).copied());
                losses.map(|l| l.unwrap_or(f64::NAN)).collect()
            };
            let rows: Rows = (0..steps).map(|i| (i, at(i))).collect();
            losses.push((network.name.as_str(), rows));
        }
        let along = |of: fn(&Probe) -> Vec<f64>| -> Vec<(&str, Rows)> {
            let rows = |found: &[Probe]| found.iter().map(|p| (p.step, of(p))).collect();
            probes.iter().map(|(n, found)| (*n, rows(found))).collect()
        };
        let named = |what: &str, numbers: &[f64]| -> Vec<String> {
            numbers.iter().map(|x| format!("{what}_{x}")).collect()
        };
        let lengths = &self.probe.step_lengths;
        let with_start: Vec<f64> = [0.0].iter().chain(lengths).copied().collect();
        let title = match self.title.is_empty() {
            true => &self.name,
            false => &self.title,
        };
        let change = |p: &Probe| p.points.iter().map(|at| at.gradient_change).collect();
        let loss = |p: &Probe| {
            let there = p.points.iter().map(|at| at.loss);
            [p.loss].into_iter().chain(there).collect()
        };
        for (name, y_label, columns, networks, drawn) in [
            (
                "loss_band",
                "loss over learning rates",
                named("lr", &self.learning_rates),
                losses,
                Drawn::Finite,
            ),
            (
                "loss_along_gradient",
                "loss along the gradient",
                named("at", &with_start),
                along(loss),
                Drawn::All,
            ),
            (
                "gradient_predictiveness",
                "change of the gradient (2-norm)",
                named("at", lengths),
                along(change),
                Drawn::All,
            ),
            (
                "beta_smoothness",
                "effective beta-smoothness",
                named("at", lengths),
                along(Probe::smoothness),
                Drawn::Greatest,
            ),
        ] {
            write_csv(&dir.join(format!("{name}.csv")), &columns, &networks, drawn)?;
            let series = networks.iter().map(|(n, rows)| series(n, rows, drawn));
            let series: Vec<Series> = series.collect();
            let plot = Plot {
                title,
                x_label: "step",
                y_label,
                series: &series,
            };
            plot.save(dir, name)?;
        }
        Ok(())
    }
}

/// Steps with the values there.
type Rows = Vec<(usize, Vec<f64>)>;

/// What is drawn of several values at a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Drawn {
    /// The band from the least to the greatest of those that are finite.
    Finite,
    /// The band from the least to the greatest; none where one is not finite.
    All,
    /// The line of the greatest.
    Greatest,
}

/// The least and the greatest value; NaN for none.
fn extremes(values: &[f64], drawn: Drawn) -> [f64; 2] {
    let finite = values.iter().copied().filter(|v| v.is_finite());
    let least = finite.clone().reduce(f64::min).unwrap_or(f64::NAN);
    let greatest = finite.clone().reduce(f64::max).unwrap_or(f64::NAN);
    match drawn != Drawn::Finite && finite.count() < values.len() {
        true => [least, f64::INFINITY],
        false => [least, greatest],
    }
}

fn series(name: &str, rows: &Rows, drawn: Drawn) -> Series {
    let ends = rows.iter().map(|(step, values)| {
        let [least, greatest] = extremes(values, drawn);
        (*step as f64, least, greatest)
    });
    match drawn {
        Drawn::Greatest => Series::markers(name, ends.map(|(x, _, y)| (x, y)).collect()),
        Drawn::Finite | Drawn::All => Series::band(name, ends.collect()),
    }
}

/// A line a network and step: all values, then the least and the greatest. What is not finite is
/// left empty.
fn write_csv(
    path: &Path,
    columns: &[String],
    networks: &[(&str, Rows)],
    drawn: Drawn,
) -> Result<()> {
    files::write_atomic(path, |w| {
        writeln!(w, "network,step,{},least,greatest", columns.join(","))?;
        for (name, rows) in networks {
            for (step, values) in rows {
                write!(w, "{},{step}", files::csv_field(name))?;
                for x in values.iter().chain(&extremes(values, drawn)) {
                    match x.is_finite() {
                        true => write!(w, ",{x}")?,
                        false => write!(w, ",")?,
                    }
                }
                writeln!(w)?;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Augment, Normalize, synthetic_splits};
    use crate::dtype::DType;
    use crate::nn::{Activation, BatchNorm1d, Dropout, Flatten, Linear, Sequential, Visitor};
    use crate::random::Generator;
    use crate::train::{Checkpoint, OptimConfig, Solver, SolverConfig, SolverData, UpdateRule};

    /// A point w, something frozen, something kept and a random stream.
    struct Point {
        w: Tensor,
        frozen: Tensor,
        seen: Tensor,
        noise: Generator,
    }

    impl Point {
        fn at(w: [f64; 2]) -> Result<Self> {
            Ok(Point {
                w: Tensor::from_slice(&w, [2])?.requires_grad(),
                frozen: Tensor::from_slice(&[7.0], [1])?,
                seen: Tensor::zeros([1], DType::F64)?,
                noise: Generator::new(0),
            })
        }
    }

    impl Module for Point {
        fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
            self.seen.fill_(self.seen.to_vec::<f64>()?[0] + 1.0)?;
            assert_eq!(
                self.seen.to_vec::<f64>()?,
                [1.0],
                "as at the start each time"
            );
            assert_eq!(self.noise.offset, 0);
            self.noise.uniform();
            // 0.5 (x0 w0^2 + x1 w1^2)
            self.w.mul(&self.w)?.mul(x)?.sum_all()?.mul_scalar(0.5)
        }
        fn visit(&mut self, v: &mut Visitor<'_>) {
            v.parameter("w", &mut self.w);
            v.parameter("frozen", &mut self.frozen);
            v.buffer("seen", &mut self.seen);
            v.generator("noise", &mut self.noise);
        }
        fn describe(&self) -> String {
            "Point".into()
        }
    }

    /// A look at a quadratic loss whose second derivatives are 1 and 4.
    fn quadratic(point: &mut Point, step_lengths: &[f64]) -> Result<Probe> {
        let eigenvalues = Tensor::from_slice(&[1.0, 4.0], [2])?;
        along_gradient(point, step_lengths, |point| {
            let loss = point.forward(&eigenvalues, Mode::Train)?;
            Ok((loss.item()?, loss.backward()?))
        })
    }

    fn near(got: f64, want: f64) {
        assert!((got - want).abs() <= 1e-12 * want.abs(), "{got} for {want}");
    }

    #[test]
    fn a_quadratic_loss_has_its_eigenvalue_for_smoothness() -> Result<()> {
        // along an eigenvector: g = (0, 8), and H g = 4 g
        let found = quadratic(&mut Point::at([0.0, 2.0])?, &[0.1, 0.25, 0.4])?;
        assert_eq!((found.loss, found.gradient_norm), (8.0, 8.0));
        for (point, smoothness) in found.points.iter().zip(found.smoothness()) {
            let eta = point.step_length;
            near(point.loss, 2.0 * (2.0 - 8.0 * eta).powi(2));
            near(point.gradient_change, 32.0 * eta);
            near(smoothness, 4.0);
        }
        // elsewhere: g = (3, 4), H g = (3, 16)
        let found = quadratic(&mut Point::at([3.0, 1.0])?, &[0.1, 0.5])?;
        assert_eq!((found.loss, found.gradient_norm), (6.5, 5.0));
        for (point, smoothness) in found.points.iter().zip(found.smoothness()) {
            let eta = point.step_length;
            let there: [f64; 2] = [3.0 - 3.0 * eta, 1.0 - 4.0 * eta];
            near(point.loss, 0.5 * there[0].powi(2) + 2.0 * there[1].powi(2));
            near(point.gradient_change, eta * 265f64.sqrt());
            near(smoothness, 265f64.sqrt() / 5.0);
        }
        // at the least loss there is no way to go
        let found = quadratic(&mut Point::at([0.0, 0.0])?, &[0.1])?;
        assert_eq!((found.gradient_norm, found.smoothness()), (0.0, vec![0.0]));
        Ok(())
    }

    #[test]
    fn the_model_comes_back_in_its_own_memory_whether_it_fails_or_not() -> Result<()> {
        let mut point = Point::at([3.0, 1.0])?;
        let place = point.w.make_mut::<f64>()?.as_ptr();
        let leaf = point.w.clone();
        quadratic(&mut point, &[0.1])?;
        let mut calls = 0;
        let e = along_gradient(&mut point, &[0.1, 0.2], |model| {
            calls += 1;
            if calls == 3 {
                return Err(Error::argument("test", "enough"));
            }
            let loss = model.forward(&Tensor::from_slice(&[1.0, 4.0], [2])?, Mode::Train)?;
            Ok((loss.item()?, loss.backward()?))
        });
        assert_eq!(e.unwrap_err().to_string(), "test: enough");
        // the same leaf: a backward of now is found by the tensor of then
        assert!(point.w.sum_all()?.backward()?.get(&leaf).is_some());
        drop(leaf);
        assert_eq!(point.w.to_vec::<f64>()?, [3.0, 1.0]);
        assert_eq!(point.w.make_mut::<f64>()?.as_ptr(), place);
        assert_eq!(point.frozen.to_vec::<f64>()?, [7.0]);
        assert!(!point.frozen.is_tracked());
        assert_eq!(
            (point.seen.to_vec::<f64>()?, point.noise.offset),
            (vec![0.0], 0)
        );
        Ok(())
    }

    /// Batch norm and dropout, Adam and a penalty: all that a look could disturb.
    fn trained(dir: &Path, observer: Option<&mut dyn Observer>) -> Result<Checkpoint> {
        let rng = &mut Generator::new(4);
        let mut net = Sequential::new()
            .push(Flatten)
            .push(Linear::new(3072, 4, true, rng)?)
            .push(BatchNorm1d::new(4)?)
            .push(Activation::Relu)
            .push(Dropout::new(0.5, rng)?)
            .push(Linear::new(4, 10, true, rng)?);
        let splits = synthetic_splits(0).with_train_samples(25)?;
        let data = SolverData {
            normalize: Normalize::per_channel(&splits.train)?,
            val: splits.val.range(0..10)?,
            train: splits.train,
            augment: Augment::none(),
        };
        let config = SolverConfig {
            update_rule: UpdateRule::Adam,
            optim_config: OptimConfig {
                learning_rate: Some(1e-2),
                ..OptimConfig::default()
            },
            reg: 1e-2,
            batch_size: 5,
            accumulate: 2,
            num_epochs: 2,
            checkpoint_dir: Some(dir.to_path_buf()),
            verbose: false,
            ..SolverConfig::default()
        };
        let mut solver = Solver::new(&mut net, data, config)?;
        if let Some(observer) = observer {
            solver = solver.with_observer(observer);
        }
        solver.train()?;
        Checkpoint::load(dir.join("checkpoint.safetensors"))
    }

    #[test]
    fn a_run_that_is_looked_at_is_the_run_that_is_not_to_the_bit() -> Result<()> {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mut prober = Prober::new(dirs[1].path(), 2, &[0.05, 0.4])?;
        let plain = trained(dirs[0].path(), None)?;
        let probed = trained(dirs[1].path(), Some(&mut prober))?;
        for (a, b) in [
            (&plain.model, &probed.model),
            (&plain.best, &probed.best),
            (&plain.optimizer, &probed.optimizer),
        ] {
            assert!(a.len() > 4);
            for ((name, a), (other, b)) in a.iter().zip(b) {
                assert_eq!(name, other);
                let bits = |t: &Tensor| -> Result<Vec<u64>> {
                    let values = t.cast(DType::F64)?.to_vec::<f64>()?;
                    Ok(values.into_iter().map(f64::to_bits).collect())
                };
                assert_eq!(bits(a)?, bits(b)?, "{name}");
            }
        }
        assert_eq!(plain.run.generators, probed.run.generators);
        let losses = &probed.run.history.loss_history;
        assert_eq!(&plain.run.history.loss_history, losses);
        // three steps an epoch, the last of one batch; and the same loss as the step's own
        let found = Found::load(&dirs[1].path().join(PROBES))?.unwrap();
        let steps: Vec<usize> = found.probes.iter().map(|p| p.step).collect();
        assert_eq!(steps, [0, 2, 4]);
        for p in &found.probes {
            let (got, want) = (p.loss, losses[p.step]);
            assert!((got - want).abs() < 1e-5 * want, "{got} for {want}");
            assert!(p.gradient_norm > 0.0 && p.points[1].gradient_change > 0.0);
        }
        Ok(())
    }

    const TEXT: &str = r#"
        name = "hidden"
        title = "Few and more"
        learning_rates = [1e-2, 1e30]
        [probe]
        every = 2
        full_every = 3
        step_lengths = [0.1, 0.4]
        [recipe]
        data = { name = "embedded", train_samples = 40, test_samples = 20 }
        model = { name = "two_layer" }
        train = { num_epochs = 2, batch_size = 20, num_val_samples = 20, verbose = false }
        [full]
        train.num_epochs = 3
        [[networks]]
        name = "two"
        set.model.hidden_dim = 2
        [[networks]]
        name = "four"
        set.model.hidden_dim = 4
    "#;

    #[test]
    fn bands_are_of_the_runs_as_far_as_they_went() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let landscape = Landscape::parse(TEXT, &[])?;
        let ended = landscape.run(dir.path(), false, &Arc::default(), |_| ())?;
        // the great rate blows up, and is told
        assert_eq!((ended.all, ended.failed), (true, 2));
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(read("table.md").contains("failed"));
        let rows = |name: &str| -> Vec<Vec<String>> {
            let text = read(name);
            let rows = text
                .lines()
                .map(|l| l.split(',').map(String::from).collect());
            rows.collect()
        };
        let band = rows("loss_band.csv");
        let head = "network,step,lr_0.01,lr_1000000000000000000000000000000,least,greatest";
        assert_eq!(band[0].join(","), head);
        assert_eq!(band.len(), 1 + 2 * 4);
        // the first loss is that of the same weights
        assert_eq!(
            (&band[1][2], &band[1][0]),
            (&band[1][3], &"\"two\"".to_string())
        );
        let last = &band[4];
        assert_eq!((last[3].as_str(), &last[4]), ("", &last[5]));
        let along = rows("loss_along_gradient.csv");
        assert_eq!(
            along[0].join(","),
            "network,step,at_0,at_0.1,at_0.4,least,greatest"
        );
        assert_eq!(along.len(), 1 + 2 * 2);
        assert_eq!(
            (&along[1][1], &along[2][1]),
            (&"0".to_string(), &"2".to_string())
        );
        assert_eq!(along[1][2], band[1][2], "where the step stands");
        let number = |cell: &String| cell.parse::<f64>().unwrap();
        let (change, beta) = (
            rows("gradient_predictiveness.csv"),
            rows("beta_smoothness.csv"),
        );
        for row in change[1..].iter().chain(&beta[1..]) {
            let [a, b, least, greatest] = [2, 3, 4, 5].map(|i| number(&row[i]));
            assert_eq!((least, greatest), (a.min(b), a.max(b)));
            assert!(least > 0.0);
        }
        for name in [
            "loss_band",
            "loss_along_gradient",
            "gradient_predictiveness",
            "beta_smoothness",
        ] {
            for kind in ["svg", "png"] {
                assert!(dir.path().join(format!("{name}.{kind}")).exists());
            }
        }
        let again = landscape.run(dir.path(), false, &Arc::default(), |_| ())?;
        assert_eq!((again, rows("loss_band.csv")), (ended, band));
        // looks of other settings are not mixed with these
        let other = Landscape::parse(TEXT, &[("every".into(), "1".into())])?;
        let e = other
            .run(dir.path(), false, &Arc::default(), |_| ())
            .unwrap_err();
        assert!(e.to_string().contains("every = 2"), "{e}");
        Ok(())
    }

    #[test]
    fn settings_come_from_the_file_and_the_command_line() -> Result<()> {
        let own = |k: &str, v: &str| (k.to_string(), v.to_string());
        let overrides = [
            own("learning-rates", "[0.5, 0.25]"),
            own("probe.step_lengths", "[1.5]"),
            own("num-epochs", "7"),
        ];
        let l = Landscape::parse(TEXT, &overrides)?;
        assert_eq!(l.learning_rates, [0.5, 0.25]);
        assert_eq!(l.probe.step_lengths, [1.5]);
        let (ablation, cells) = (l.ablation()?, l.cells()?);
        assert_eq!(cells[3].2.name, "four, 0.25");
        let recipe = ablation.recipe(&cells[3].2, 0, true, &l.overrides)?;
        assert_eq!(recipe.train.num_epochs, 7);
        assert_eq!(recipe.train.optim_config.learning_rate, Some(0.25));
        let example = include_str!("../../examples/landscapes/vgg_batch_norm.toml");
        assert_eq!(Landscape::parse(example, &[])?.cells()?.len(), 8);
        Ok(())
    }

    #[test]
    fn settings_without_sense_are_refused_before_anything_runs() {
        let refused = |from: &str, to: &str| {
            let text = TEXT.replace(from, to);
            assert_ne!(text, TEXT);
            Landscape::parse(&text, &[]).unwrap_err().to_string()
        };
        let rates = "learning_rates = [1e-2, 1e30]";
        assert!(refused(rates, "").contains("missing field `learning_rates`"));
        assert!(refused(rates, "learning_rates = []").contains("learning_rates: none"));
        assert!(refused(rates, "learning_rates = [-1.0]").contains("learning_rates: -1"));
        assert!(refused(rates, "learning_rates = [nan]").contains("numbers above 0"));
        assert!(refused(rates, "learning_rates = [1e-2, 1e-2]").contains("two cells"));
        assert!(refused("[0.1, 0.4]", "[]").contains("step_lengths: none"));
        assert!(refused("[0.1, 0.4]", "[0.0]").contains("step_lengths: 0"));
        assert!(refused("every = 2", "every = 0").contains("every: 0 steps"));
        assert!(refused("full_every = 3", "full_every = 0").contains("full_every: 0 steps"));
        assert!(refused("every = 2", "learning_rate = 3.0").contains("expected one of"));
        assert!(refused("every = 2", "evry = 2").contains("the nearest is every"));
        assert!(refused("num_epochs = 2", "num_epoch = 2").contains("the nearest is num_epochs"));
        assert!(refused("\"four\"", "\"two\"").contains("two cells"));
        let rate = "set.train.optim_config.learning_rate = 3.0";
        let full = rate.replace("set.", "full.");
        assert!(refused("set.model.hidden_dim = 4", &full).contains("learning_rates to set it"));
        let flag = |k: &str, v: &str| {
            let flag = [(k.to_string(), v.to_string())];
            Landscape::parse(TEXT, &flag).unwrap_err().to_string()
        };
        assert!(flag("num_epoch", "1").contains("the nearest is num_epochs"));
        assert!(flag("every", "0").contains("0 steps"));
        assert!(flag("train.optim_config.learning_rate", "3").contains("learning_rates"));
    }

    #[test]
    fn what_is_not_finite_is_left_out_or_left_empty() {
        let values = [2.0, f64::NAN, 1.0];
        assert_eq!(extremes(&values, Drawn::Finite), [1.0, 2.0]);
        assert_eq!(extremes(&values, Drawn::All), [1.0, f64::INFINITY]);
        assert!(extremes(&[f64::NAN], Drawn::Finite)[0].is_nan());
    }
}
