//! The reports' tables as files: every ablation and recipe can be read, and the list in docs/ has all
//! of the figures.

use std::fs;
use std::path::{Path, PathBuf};

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

#[test]
fn every_ablation_is_read_and_listed_with_its_figures() {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/REPORTS.md");
    let list = fs::read_to_string(list).unwrap();
    let mut figures = 0;
    for path in files("examples/ablations") {
        let ablation = Ablation::load(&path).unwrap();
        let file = path.file_stem().unwrap().to_str().unwrap();
        assert_eq!(ablation.name, file);
        let command = format!("`{file}`");
        let rows: Vec<&str> = list.lines().filter(|l| l.contains(&command)).collect();
        assert!(!rows.is_empty(), "{file} is not in the list");
        for (cell, figure) in &ablation.reported {
            let figure = figure.as_str().unwrap();
            let first = figure.split(' ').next().unwrap();
            let listed = |row: &&str| row.contains(&format!("| {first} "));
            assert!(rows.iter().any(listed), "{file}, {cell}: {figure}");
            figures += 1;
        }
    }
    assert!(figures >= 60, "only {figures} figures were seen");
}

#[test]
fn every_recipe_is_read() {
    for path in files("examples/recipes") {
        let recipe = Recipe::load(&path, &[]).unwrap();
        assert!(recipe.train.validate().is_ok(), "{}", path.display());
    }
}
