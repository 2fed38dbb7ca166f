//! Ablations: one recipe, varied cell by cell, each with several seeds, and the table that results.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::data::Splits;
use crate::error::{Error, Result};
use crate::models::registry::nearest;
use crate::train::pretrain::PRETRAIN;
use crate::train::recipe::{self, Recipe};
use crate::train::run::{self, RECIPE};
use crate::train::{DataRecipe, History, Observer, Outcome, Run, files, save_comparison};

/// What is varied. The cells of a file are all combinations of `grid`'s values, then those of
/// `cells`.
///
/// ```
/// # use cotangent::train::Ablation;
/// let text = r#"
///     name = "optimizers"
///     seeds = [0, 1]
///     [recipe]
///     data.name = "embedded"
///     train.num_epochs = 1
///     [grid]
///     train.update_rule = ["sgd", "adam"]
///     [full]
///     train.num_epochs = 10
///     [reported]
///     adam = "74.03 %"
/// "#;
/// let ablation = Ablation::parse(text)?;
/// let names: Vec<String> = ablation.cells()?.into_iter().map(|c| c.name).collect();
/// assert_eq!(names, ["sgd", "adam"]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ablation {
    /// Of the folder and, without a title, of the table.
    pub name: String,
    /// What stands above the table.
    #[serde(default)]
    pub title: String,
    /// Each cell is run with each of them.
    #[serde(default = "one_seed")]
    pub seeds: Vec<u64>,
    /// What the cells have in common, at the small scale.
    #[serde(default)]
    pub recipe: Table,
    /// What is different at the scale of the report.
    #[serde(default)]
    pub full: Table,
    /// Keys of a recipe with the values that each takes.
    #[serde(default)]
    pub grid: Table,
    /// Cells that are no combination.
    #[serde(default)]
    pub cells: Vec<Cell>,
    /// A report's figure beside a cell, by the cell's name.
    #[serde(default)]
    pub reported: Table,
    /// The one cell to run; of the others the table has what earlier calls finished.
    #[serde(skip)]
    pub only: Option<String>,
}

fn one_seed() -> Vec<u64> {
    vec![0]
}

/// One variation.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// Its row of the table.
    pub name: String,
    /// What it sets of the recipe.
    #[serde(default)]
    pub set: Table,
    /// What it sets besides at the scale of the report.
    #[serde(default)]
    pub full: Table,
}

/// How [`Ablation::run`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Whether all cells were run, rather than stopped.
    pub all: bool,
    /// Runs that failed.
    pub failed: usize,
}

impl Ended {
    fn of(all: bool, results: &[CellResult]) -> Self {
        let failed = results.iter().filter(|r| r.error.is_some()).count();
        Ended { all, failed }
    }
}

/// How a cell's run with one seed ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// The cell's name.
    pub cell: String,
    /// The seed.
    pub seed: u64,
    /// Accuracy of all training images, a share, with the best epoch's weights.
    pub train: Option<f64>,
    /// The best epoch's of the validation images.
    pub val: Option<f64>,
    /// That of the test images.
    pub test: Option<f64>,
    /// The last epoch's mean loss.
    pub loss: Option<f64>,
    /// Seconds of training, of both stages where there are two.
    pub seconds: f64,
    /// The most bytes that tensors held at once.
    pub memory: usize,
    /// What it failed with.
    pub error: Option<String>,
}

const RESULT: &str = "result.json";

impl Ablation {
    /// An ablation's file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        recipe::from_file(path.as_ref(), Self::parse)
    }

    /// An ablation's text. A cell whose recipe cannot be read is an [`Error::Config`] now, before
    /// anything runs.
    pub fn parse(text: &str) -> Result<Self> {
        let ablation: Ablation = toml::from_str(text).map_err(recipe::wrong)?;
        ablation.checked(&[])
    }

    /// An [`Error::Config`] unless there are cells, each of another name, whose recipes can be read.
    pub(super) fn checked(self, overrides: &[(String, String)]) -> Result<Self> {
        let ablation = self;
        let refuse = |why: String| Err(Error::config("ablation", why));
        if ablation.name.is_empty() || ablation.name.contains(['/', '\\']) {
            return refuse(format!("name: {:?}; expected a folder's", ablation.name));
        }
        if ablation.seeds.is_empty() {
            return refuse("seeds: none; expected at least one".into());
        }
        if let Some(seed) = twice(&ablation.seeds) {
            return refuse(format!("seeds: {seed} twice"));
        }
        let cells = ablation.cells()?;
        if cells.is_empty() {
            return refuse("no cells; expected a grid or cells".into());
        }
        for (i, cell) in cells.iter().enumerate() {
            let folder = folder_name(&cell.name);
            if let Some(other) = cells[..i].iter().find(|c| folder_name(&c.name) == folder) {
                let why = format!("two cells are named {:?} and {:?}", other.name, cell.name);
                return refuse(format!(
                    "{why}; expected names that differ in letters or digits"
                ));
            }
            for full in [false, true] {
                ablation.recipe(cell, ablation.seeds[0], full, overrides)?;
            }
        }
        for name in ablation.reported.keys() {
            if !cells.iter().any(|c| c.name == *name) {
                return refuse(format!("reported: there is no cell {name:?}"));
            }
        }
        Ok(ablation)
    }

    /// With other seeds, such as `0,1,2`.
    pub fn with_seeds(self, seeds: &str) -> Result<Self> {
        let number = |word: &str| word.trim().parse().ok();
        let seeds: Option<Vec<u64>> = seeds.split(',').map(number).collect();
        let seeds =
            seeds.ok_or_else(|| Error::config("seeds", "expected numbers such as 0,1,2"))?;
        Ablation { seeds, ..self }.checked(&[])
    }

    /// Of which one cell is to be run.
    pub fn with_only(self, cell: &str) -> Result<Self> {
        let cells = self.cells()?;
        let names: Vec<&str> = cells.iter().map(|c| c.name.as_str()).collect();
        if !names.contains(&cell) {
            return Err(Error::config("cell", nearest(cell, &names)));
        }
        let only = Some(cell.to_string());
        Ok(Ablation { only, ..self })
    }

    fn runs(&self, cell: &Cell) -> bool {
        self.only.as_ref().is_none_or(|only| *only == cell.name)
    }

    /// All cells.
    pub fn cells(&self) -> Result<Vec<Cell>> {
        let mut keys = Vec::new();
        lists("", &self.grid, &mut keys)?;
        let mut cells = Vec::new();
        if !keys.is_empty() {
            cells.push((Vec::<String>::new(), Table::new()));
        }
        for (key, values) in &keys {
            let mut more = Vec::with_capacity(cells.len() * values.len());
            for (names, set) in &cells {
                for value in *values {
                    let (mut names, mut set) = (names.clone(), set.clone());
                    names.push(short(value));
                    recipe::set(&mut set, key, value.clone())?;
                    more.push((names, set));
                }
            }
            cells = more;
        }
        let named = cells.into_iter().map(|(names, set)| Cell {
            name: names.join(", "),
            set,
            full: Table::new(),
        });
        Ok(named.chain(self.cells.iter().cloned()).collect())
    }

    /// A cell's recipe: what all share, then what the cell sets, each at the report's scale with
    /// `full`, then `overrides`.
    pub fn recipe(
        &self,
        cell: &Cell,
        seed: u64,
        full: bool,
        overrides: &[(String, String)],
    ) -> Result<Recipe> {
        let mut table = self.recipe.clone();
        if full {
            merge(&mut table, &self.full);
        }
        merge(&mut table, &cell.set);
        if full {
            merge(&mut table, &cell.full);
        }
        table.insert("seed".into(), Value::Integer(seed as i64));
        Recipe::from_table(table, overrides)
    }

    /// Run all cells in `dir`, each with each seed, in the folder of its name. What an earlier call
    /// finished is not run again, what it left half done goes on, and what failed is tried anew. A cell that
    /// fails is recorded with its error, and the others run. After each cell the table and the
    /// curves are written anew; `say` is told what happens. With `stop` set it ends after a
    /// checkpoint, and not all are run.
    pub fn run(
        &self,
        dir: impl AsRef<Path>,
        full: bool,
        overrides: &[(String, String)],
        stop: &Arc<AtomicBool>,
        say: impl FnMut(&str),
    ) -> Result<Ended> {
        self.run_observed(dir.as_ref(), full, overrides, stop, say, |_, _| Ok(None))
    }

    /// [`run`](Self::run) with what `observe` gives for a cell and its run's folder.
    pub(super) fn run_observed(
        &self,
        dir: &Path,
        full: bool,
        overrides: &[(String, String)],
        stop: &Arc<AtomicBool>,
        mut say: impl FnMut(&str),
        mut observe: impl FnMut(&Cell, &Path) -> Result<Option<Box<dyn Observer>>>,
    ) -> Result<Ended> {
        let cells = self.cells()?;
        if overrides.iter().any(|(key, _)| key == "seed") {
            let why = "it would be each run's, whatever its row says; expected other `seeds`";
            return Err(Error::config("seed", why));
        }
        // a mistake in one of the last cells' settings is not to come out after hours
        for cell in cells.iter().filter(|c| self.runs(c)) {
            self.recipe(cell, self.seeds[0], full, overrides)?;
        }
        files::create_dir(dir)?;
        let total = cells.len() * self.seeds.len();
        let mut results: Vec<CellResult> = Vec::with_capacity(total);
        let mut curves: Vec<(String, History)> = Vec::new();
        let mut read = LastRead::default();
        let jobs = cells
            .iter()
            .flat_map(|c| self.seeds.iter().map(move |s| (c, *s)));
        for (i, (cell, seed)) in jobs.enumerate() {
            let folder = run_folder(dir, cell, seed);
            if !self.runs(cell) {
                if let Some(found) = read_result(&folder)? {
                    note(found, &folder, &mut results, &mut curves);
                }
                continue;
            }
            let mut observer = observe(cell, &folder)?;
            let observer = observer.as_mut().map(|o| &mut **o as &mut dyn Observer);
            let recipe = self.recipe(cell, seed, full, overrides)?;
            say(&format!("[{} / {total}] {}, seed {seed}", i + 1, cell.name));
            let found = match finished(&folder, &recipe)? {
                Some(found) => found,
                None => match run_cell(cell, recipe, &mut read, &folder, stop, observer) {
                    Ok(Some(found)) => found,
                    Ok(None) => return Ok(Ended::of(false, &results)),
                    Err(e) => CellResult {
                        error: Some(e.to_string()),
                        ..CellResult::empty(&cell.name, seed)
                    },
                },
            };
            if let Some(error) = &found.error {
                say(&format!("{} failed: {error}", cell.name));
                files::create_dir(&folder)?;
            }
            files::write_atomic(folder.join(RESULT), |w| {
                serde_json::to_writer_pretty(w, &found).map_err(Into::into)
            })?;
            note(found, &folder, &mut results, &mut curves);
            self.write(dir, &cells, &results, &curves)?;
            if stop.load(Ordering::Relaxed) {
                return Ok(Ended::of(false, &results));
            }
        }
        Ok(Ended::of(true, &results))
    }

    /// The table as Markdown and CSV, and the curves of all cells.
    fn write(
        &self,
        dir: &Path,
        cells: &[Cell],
        results: &[CellResult],
        curves: &[(String, History)],
    ) -> Result<()> {
        let markdown = self.markdown(cells, results);
        files::write_atomic(dir.join("table.md"), |w| w.write_all(markdown.as_bytes()))?;
        files::write_atomic(dir.join("table.csv"), |w| {
            writeln!(
                w,
                "cell,seed,train,val,test,loss,seconds,memory_bytes,error"
            )?;
            for r in results {
                let number = |x: Option<f64>| x.map_or(String::new(), |x| x.to_string());
                writeln!(
                    w,
                    "{},{},{},{},{},{},{},{},{}",
                    files::csv_field(&r.cell),
                    r.seed,
                    number(r.train),
                    number(r.val),
                    number(r.test),
                    number(r.loss),
                    r.seconds,
                    r.memory,
                    r.error.as_deref().map_or(String::new(), files::csv_field)
                )?;
            }
            Ok(())
        })?;
        save_comparison(dir, self.title(), curves)
    }

    fn title(&self) -> &str {
        match self.title.is_empty() {
            true => &self.name,
            false => &self.title,
        }
    }

    /// A row a cell: means over the seeds, with the deviation where there are several.
    fn markdown(&self, cells: &[Cell], results: &[CellResult]) -> String {
        let mut text = format!(
            "{}\n\n| cell | seeds | train % | val % | test % | s | MB | reported |\n|---|---|---|---|---|---|---|---|\n",
            self.title()
        );
        for cell in cells {
            let of: Vec<&CellResult> = results.iter().filter(|r| r.cell == cell.name).collect();
            let done: Vec<&&CellResult> = of.iter().filter(|r| r.error.is_none()).collect();
            let column = |get: fn(&CellResult) -> Option<f64>, digits: usize| {
                let values: Vec<f64> = done.iter().filter_map(|r| get(r)).collect();
                mean_and_spread(&values, digits)
            };
            let reported = match self.reported.get(&cell.name) {
                Some(Value::String(s)) => s.clone(),
                Some(value) => value.to_string(),
                None => String::new(),
            };
            let row = [
                cell.name.clone(),
                done.len().to_string(),
                column(|r| r.train.map(|x| 100.0 * x), 2),
                column(|r| r.val.map(|x| 100.0 * x), 2),
                column(|r| r.test.map(|x| 100.0 * x), 2),
                column(|r| Some(r.seconds), 1),
                column(|r| Some(r.memory as f64 / 1e6), 0),
                reported,
            ];
            text += &format!("| {} |\n", row.map(|c| c.replace('|', "\\|")).join(" | "));
            for failed in of.iter().filter_map(|r| r.error.as_ref()) {
                let line = failed.replace(['\n', '|'], " ");
                text += &format!("| {} | failed: {line} | | | | | | |\n", cell.name);
            }
        }
        text
    }
}

impl CellResult {
    fn empty(cell: &str, seed: u64) -> Self {
        CellResult {
            cell: cell.into(),
            seed,
            train: None,
            val: None,
            test: None,
            loss: None,
            seconds: 0.0,
            memory: 0,
            error: None,
        }
    }
}

/// Adds a result to the table's, and its run's history to the curves where it is the cell's first.
fn note(
    found: CellResult,
    folder: &Path,
    results: &mut Vec<CellResult>,
    curves: &mut Vec<(String, History)>,
) {
    if let (None, Ok(history)) = (&found.error, History::load(folder))
        && !curves.iter().any(|(name, _)| *name == found.cell)
    {
        curves.push((found.cell.clone(), history));
    }
    results.push(found);
}

/// The result of a run that an earlier call ended, if there was one.
fn read_result(folder: &Path) -> Result<Option<CellResult>> {
    let path = folder.join(RESULT);
    let Ok(text) = std::fs::read(&path) else {
        return Ok(None);
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|e| Error::data(&path, e.to_string()))
}

/// The result of a run that an earlier call finished with the same recipe; one of another recipe is
/// an [`Error::Config`], since its figure would stand in the wrong table.
fn finished(folder: &Path, recipe: &Recipe) -> Result<Option<CellResult>> {
    let Some(found) = read_result(folder)?.filter(|found| found.error.is_none()) else {
        return Ok(None);
    };
    if Recipe::load(folder.join(RECIPE), &[])? != *recipe {
        let why = format!("{} was run with another recipe", folder.display());
        return Err(Error::config("ablation", why));
    }
    Ok(Some(found))
}

/// The images of the cell before, which most often are the next one's too.
#[derive(Default)]
struct LastRead(Option<(DataRecipe, u64, Splits)>);

impl LastRead {
    fn images(&mut self, recipe: &Recipe) -> Result<Splits> {
        // others go before new ones come: both may not fit in memory; the embedded ones alone are drawn
        let same = |data: &DataRecipe, seed| {
            *data == recipe.data && (seed == recipe.seed || data.name != "embedded")
        };
        self.0 = self.0.take().filter(|(data, seed, _)| same(data, *seed));
        let images = match self.0.take() {
            Some((.., images)) => images,
            None => recipe.data.load_all(recipe.seed)?,
        };
        self.0 = Some((recipe.data.clone(), recipe.seed, images.clone()));
        Ok(images)
    }
}

/// One run; `None` where it was stopped.
fn run_cell(
    cell: &Cell,
    recipe: Recipe,
    read: &mut LastRead,
    folder: &Path,
    stop: &Arc<AtomicBool>,
    observer: Option<&mut dyn Observer>,
) -> Result<Option<CellResult>> {
    let seed = recipe.seed;
    let resume = run::is_begun(folder);
    let pretrains = recipe.pretraining().is_some();
    let images = read.images(&recipe)?;
    let mut run = Run::on(recipe, images)?;
    let (outcome, history) = run.train_observed(folder, resume, stop.clone(), observer)?;
    if outcome == Outcome::Interrupted {
        return Ok(None);
    }
    let before = match pretrains {
        true => History::load(folder.join(PRETRAIN))?.seconds,
        false => 0.0,
    };
    Ok(Some(CellResult {
        train: history.train_acc,
        val: Some(history.best_val_acc),
        test: history.test_acc,
        loss: history.epoch_losses().last().copied(),
        seconds: before + history.seconds,
        memory: history.memory,
        ..CellResult::empty(&cell.name, seed)
    }))
}

/// The lists in a table of tables, each with its dotted path.
fn lists<'a>(prefix: &str, table: &'a Table, out: &mut Vec<(String, &'a [Value])>) -> Result<()> {
    for (key, value) in table {
        let path = format!("{prefix}{key}");
        match value {
            Value::Table(inner) => lists(&format!("{path}."), inner, out)?,
            Value::Array(values) if !values.is_empty() => out.push((path, values)),
            _ => {
                let why = format!("grid: {path} is {value}; expected a list of values");
                return Err(Error::config("ablation", why));
            }
        }
    }
    Ok(())
}

/// What a list has more than once.
fn twice(seeds: &[u64]) -> Option<u64> {
    let again = |i: &usize| seeds[..*i].contains(&seeds[*i]);
    (0..seeds.len()).find(again).map(|i| seeds[i])
}

/// A value as a row's name.
fn short(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        // a schedule or the like: its name is enough
        Value::Table(t) if t.len() == 1 => t.keys().next().cloned().unwrap_or_default(),
        value => value.to_string(),
    }
}

/// What `from` says replaces what `to` says, table by table.
fn merge(to: &mut Table, from: &Table) {
    for (key, value) in from {
        match (to.get_mut(key), value) {
            // a table of one key in place of another is a choice, such as a schedule
            (Some(Value::Table(inner)), Value::Table(value)) if !is_choice(key) => {
                merge(inner, value)
            }
            _ => {
                to.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Keys whose table names one of several kinds.
fn is_choice(key: &str) -> bool {
    key == "schedule"
}

/// The folder of a cell's run with one seed.
pub(super) fn run_folder(dir: &Path, cell: &Cell, seed: u64) -> PathBuf {
    dir.join(folder_name(&cell.name))
        .join(format!("seed_{seed}"))
}

/// A cell's name as a folder's.
fn folder_name(cell: &str) -> PathBuf {
    let safe = |c: char| {
        if c.is_alphanumeric() || "._-+".contains(c) {
            c
        } else {
            '_'
        }
    };
    let name: String = cell.chars().map(safe).collect();
    // no cell is the folder above
    PathBuf::from(format!("cell_{name}"))
}

/// "mean" or "mean ± deviation (n)".
fn mean_and_spread(values: &[f64], digits: usize) -> String {
    let n = values.len() as f64;
    if values.is_empty() {
        return String::new();
    }
    let mean = values.iter().sum::<f64>() / n;
    if values.len() == 1 {
        return format!("{mean:.digits$}");
    }
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    format!(
        "{mean:.digits$} ± {:.digits$}",
        (squares / (n - 1.0)).sqrt()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::Schedule;

    const TEXT: &str = r#"
        name = "rules"
        title = "Update rules"
        seeds = [0, 1]
        [recipe]
        data = { name = "embedded", train_samples = 40, test_samples = 20 }
        model = { name = "three_layer", num_filters = 2, hidden_dim = 4 }
        train = { num_epochs = 1, batch_size = 20, num_val_samples = 20, verbose = false }
        [grid]
        train.update_rule = ["sgd", "adam"]
        [full]
        train.num_epochs = 2
        [[cells]]
        name = "too large a filter"
        set = { model.filter_size = 2 }
        full = { train.schedule.cosine = { t_max = 9 } }
        [reported]
        adam = "74.03"
    "#;

    #[test]
    fn cells_are_combinations_and_what_is_named() -> Result<()> {
        let a = Ablation::parse(TEXT)?;
        let cells = a.cells()?;
        let names: Vec<&str> = cells.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["sgd", "adam", "too large a filter"]);
        let epochs = |full, overrides: &[(String, String)]| -> Result<usize> {
            Ok(a.recipe(&cells[0], 3, full, overrides)?.train.num_epochs)
        };
        let own = [("num_epochs".to_string(), "9".to_string())];
        assert_eq!(
            [epochs(false, &[])?, epochs(true, &[])?, epochs(true, &own)?],
            [1, 2, 9]
        );
        let schedule =
            |full| -> Result<Schedule> { Ok(a.recipe(&cells[2], 3, full, &[])?.train.schedule) };
        assert_eq!(schedule(false)?, Schedule::Constant);
        assert!(matches!(schedule(true)?, Schedule::Cosine { t_max: 9, .. }));
        let two = TEXT.replace("[full]", "train.batch_size = [10, 20]\n[full]");
        let two = two.replace("adam = \"74.03\"", "");
        let names: Vec<String> = Ablation::parse(&two)?
            .cells()?
            .into_iter()
            .map(|c| c.name)
            .collect();
        assert_eq!(names.len(), 5);
        assert!(
            names.iter().any(|n| n.contains("sgd") && n.contains("10")),
            "{names:?}"
        );
        Ok(())
    }

    #[test]
    fn a_failing_cell_is_recorded_and_nothing_runs_twice() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let a = Ablation::parse(TEXT)?;
        let mut said = Vec::new();
        let stop = Arc::default();
        let ended = a.run(dir.path(), false, &[], &stop, |s| said.push(s.to_string()))?;
        let all = Ended {
            all: true,
            failed: 2,
        };
        assert_eq!(ended, all);
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let table = read("table.md");
        for part in [
            "| sgd | 2 |",
            "| adam | 2 |",
            "±",
            "failed: ",
            "filter_size",
            "74.03",
        ] {
            assert!(table.contains(part), "{part}: {table}");
        }
        assert_eq!(read("table.csv").lines().count(), 7);
        for name in ["val_acc.svg", "val_acc.png", "loss.svg"] {
            assert!(dir.path().join(name).exists(), "{name}");
        }
        // again: the same figures, seconds too, since what is there is read
        assert_eq!(a.run(dir.path(), false, &[], &stop, |_| ())?, all);
        assert_eq!(read("table.md"), table);
        // the same folder for other settings would mix two tables
        let e = a.run(dir.path(), true, &[], &stop, |_| ()).unwrap_err();
        assert!(e.to_string().contains("another recipe"), "{e}");
        Ok(())
    }

    #[test]
    fn one_cell_is_run_and_the_table_keeps_the_others() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let run = |cell: &str| -> Result<(Ended, String)> {
            let a = Ablation::parse(TEXT)?.with_only(cell)?;
            let ended = a.run(dir.path(), false, &[], &Arc::default(), |_| ())?;
            Ok((
                ended,
                std::fs::read_to_string(dir.path().join("table.md")).unwrap(),
            ))
        };
        let (ended, table) = run("sgd")?;
        assert_eq!((ended.all, ended.failed), (true, 0));
        assert!(
            table.contains("| sgd | 2 |") && table.contains("| adam | 0 |"),
            "{table}"
        );
        let (_, table) = run("adam")?;
        assert!(
            table.contains("| sgd | 2 |") && table.contains("| adam | 2 |"),
            "{table}"
        );
        let e = run("adan").unwrap_err().to_string();
        assert!(e.contains("the nearest is adam"), "{e}");
        Ok(())
    }

    #[test]
    fn an_override_that_fits_some_cells_alone_is_refused_before_any_runs() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        // the first two have the key, the third does not
        let text = TEXT
            .replace(
                "train.update_rule = [\"sgd\", \"adam\"]",
                "model.filter_size = [3, 5]",
            )
            .replace("set = { model.filter_size = 2 }", "set = {}")
            .replace("adam = \"74.03\"", "");
        let a = Ablation::parse(&text)?;
        let out = dir.path().join("out");
        let own = [("filter_size".to_string(), "7".to_string())];
        let cells = a.cells()?;
        let fits = |i: usize| a.recipe(&cells[i], 0, false, &own).is_ok();
        assert_eq!([0, 1, 2].map(fits), [true, true, false]);
        assert!(a.run(&out, false, &own, &Arc::default(), |_| ()).is_err());
        let own = [("seed".to_string(), "7".to_string())];
        let e = a
            .run(&out, false, &own, &Arc::default(), |_| ())
            .unwrap_err();
        assert!(e.to_string().contains("expected other `seeds`"), "{e}");
        assert!(!out.exists());
        Ok(())
    }

    #[test]
    fn a_stop_ends_it_and_the_next_call_goes_on() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let a = Ablation::parse(TEXT)?;
        let set = Arc::new(AtomicBool::new(true));
        assert!(!a.run(dir.path(), false, &[], &set, |_| ())?.all);
        assert!(a.run(dir.path(), false, &[], &Arc::default(), |_| ())?.all);
        Ok(())
    }

    #[test]
    fn files_that_make_no_table() {
        let wrong = |from: &str, to: &str| {
            let text = TEXT.replace(from, to);
            assert_ne!(text, TEXT);
            Ablation::parse(&text).unwrap_err().to_string()
        };
        assert!(wrong("\"rules\"", "\"a/b\"").contains("folder"));
        assert!(wrong("[0, 1]", "[]").contains("seeds"));
        assert!(wrong("[0, 1]", "[3, 0, 3]").contains("3 twice"));
        let seeds = |text: &str| Ablation::parse(TEXT).unwrap().with_seeds(text);
        assert_eq!(seeds("4, 2").unwrap().seeds, [4, 2]);
        for text in ["", "1,", "-1", "one"] {
            assert!(seeds(text).is_err(), "{text}");
        }
        assert!(wrong("adam = \"74.03\"", "adamw = 1").contains("no cell"));
        assert!(wrong("[\"sgd\", \"adam\"]", "\"sgd\"").contains("list"));
        assert!(
            wrong("[\"sgd\", \"adam\"]", "[\"sgd\", \"adan\"]").contains("the nearest is adam")
        );
        assert!(wrong("\"too large a filter\"", "\"sgd\"").contains("two cells"));
        let folders = "name = \"a/b\"\n[[cells]]\nname = \"a*b\"";
        assert!(wrong("name = \"too large a filter\"", folders).contains("\"a/b\" and \"a*b\""));
        assert!(wrong("seeds", "sedes").contains("the nearest is seeds"));
    }
}
