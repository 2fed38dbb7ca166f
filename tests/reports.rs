//! The reports' tables as files: every ablation and recipe can be read and its networks made, at both
//! scales, and the list in docs/ has all of the figures, each beside its command.

use std::fs;
use std::path::{Path, PathBuf};

use cotangent::nn;
use cotangent::train::{Ablation, Recipe};

fn files(dir: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

/// The list's rows: what, the report, command, reached, scale, device, date.
fn rows() -> Vec<Vec<String>> {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/REPORTS.md");
    let list = fs::read_to_string(list).unwrap();
    let rows = list.lines().filter(|l| l.starts_with("| "));
    let cells = |row: &str| {
        row.trim_matches('|')
            .split(" | ")
            .map(|c| c.trim().into())
            .collect()
    };
    rows.map(cells)
        .filter(|row: &Vec<String>| row[0] != "what")
        .collect()
}

#[test]
fn every_ablation_is_listed_with_its_figures() {
    let rows = rows();
    let mut figures = 0;
    for path in files("examples/ablations") {
        let ablation = Ablation::load(&path).unwrap();
        let file = path.file_stem().unwrap().to_str().unwrap();
        assert_eq!(ablation.name, file);
        let command = format!("`{file}`");
        let own: Vec<_> = rows.iter().filter(|row| row[2] == command).collect();
        assert!(!own.is_empty(), "{file} is not in the list");
        for (cell, figure) in &ablation.reported {
            let figure = figure.as_str().unwrap();
            // the row that names the cell, or the file's only one
            let named = |row: &&&Vec<String>| {
                let words = |text: &str| {
                    // as the list has the names of two networks
                    let text = text.replace("with batch norm", "vgg_a_bn");
                    let text = text.replace("without batch norm", "vgg_a");
                    let words = text.split([',', ':', ' ']).map(String::from);
                    words.collect::<Vec<String>>()
                };
                let listed = words(&row[0]);
                own.len() == 1 || words(cell).iter().all(|w| listed.contains(w))
            };
            let listed = own.iter().filter(named).any(|row| {
                let first = figure.split(' ').next().unwrap();
                row[1].split(' ').next() == Some(first)
            });
            assert!(listed, "{file}, {cell}: {figure}");
            figures += 1;
        }
    }
    assert!(figures >= 60, "only {figures} figures were seen");
}

#[test]
fn every_row_of_the_list_is_complete() {
    let rows = rows();
    assert!(rows.len() > 100, "only {} rows were seen", rows.len());
    let names: Vec<String> = files("examples/ablations")
        .iter()
        .map(|f| f.file_stem().unwrap().to_str().unwrap().into())
        .collect();
    for row in rows {
        assert_eq!(row.len(), 7, "{row:?}");
        // an ablation's name, a command of the program, or an example
        let command = row[2].split('`').nth(1);
        let word = command
            .and_then(|c| c.split(' ').next())
            .unwrap_or_default();
        let programs = [
            "train",
            "eval",
            "predict",
            "plot",
            "summary",
            "landscape",
            "statistics",
            "cargo",
        ];
        let known = programs.contains(&word) || names.iter().any(|n| n == word);
        assert!(known || row[2] == "the same", "{row:?}");
        // every file that a command names is there
        let named = command.into_iter().flat_map(|c| c.split(' '));
        for file in named.filter(|w| w.starts_with("examples/")) {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            assert!(path.exists(), "{row:?}");
        }
        if row[3] == "-" {
            assert!(row[4].starts_with("not run: "), "{row:?}");
            continue;
        }
        let day = &row[6];
        let numbers: Vec<usize> = day.split('-').filter_map(|n| n.parse().ok()).collect();
        assert!(
            matches!(numbers[..], [2026..=2099, 1..=12, 1..=31]),
            "{row:?}"
        );
    }
}

/// A figure's settings are tried when its command is run, which at the full scale may be hours after
/// it was asked for: every network is made here, the widths of the largest ones aside.
#[test]
fn every_cell_can_be_made_at_both_scales() {
    let narrow = [("model.dims".to_string(), "[2, 4, 6, 8]".to_string())];
    let mut made = std::collections::HashSet::new();
    let mut cells = 0;
    for path in files("examples/ablations") {
        let ablation = Ablation::load(&path).unwrap();
        for (cell, full) in ablation
            .cells()
            .unwrap()
            .iter()
            .flat_map(|c| [(c, false), (c, true)])
        {
            let at = format!("{}, {}, full: {full}", path.display(), cell.name);
            let plain = ablation.recipe(cell, 0, full, &[]).unwrap();
            let wide = plain.model.name.starts_with("convnext");
            let own: &[_] = if wide { &narrow } else { &[] };
            let recipe = ablation.recipe(cell, 0, full, own).unwrap();
            recipe
                .train
                .validate()
                .unwrap_or_else(|e| panic!("{at}: {e}"));
            if let Some(stage) = recipe.pretraining() {
                stage
                    .train
                    .validate()
                    .unwrap_or_else(|e| panic!("{at}: {e}"));
            }
            cells += 1;
            let (size, classes) = match recipe.data.name.as_str() {
                "tiny_imagenet" => (recipe.data.size.unwrap_or(64), 200),
                _ => (32, 10),
            };
            let seen = recipe.augment.shape([3, size, size]);
            let seen = seen.unwrap_or_else(|e| panic!("{at}: {e}"));
            if !made.insert(format!("{:?} {seen:?}", recipe.model)) {
                continue;
            }
            let model = recipe.model.build(seen, classes, 0);
            let mut model = model.unwrap_or_else(|e| panic!("{at}: {e}"));
            assert!(nn::parameter_count(&mut *model) > 100, "{at}");
        }
    }
    assert!(cells > 150, "only {cells} cells were seen");
}

#[test]
fn every_recipe_is_read() {
    for path in files("examples/recipes") {
        let recipe = Recipe::load(&path, &[]).unwrap();
        assert!(recipe.train.validate().is_ok(), "{}", path.display());
    }
}
