//! The house rules, read from the sources: floors, first lines, no panics, every op in the table.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module's floor. A file imports from lower floors only.
const FLOORS: &[(&str, u32)] = &[
    ("error", 0),
    ("shape", 0),
    ("dtype", 0),
    ("random", 0),
    ("memory", 0),
    ("files", 0),
    ("level", 0),
    ("workers", 0),
    ("device", 1),
    ("storage", 1),
    ("cpu", 1),
    ("cuda", 1),
    ("tensor", 2),
    ("autograd", 2),
    ("ops", 3),
    ("nn", 4),
    ("optim", 4),
    ("data", 4),
    ("models", 5),
    ("train", 6),
    ("main", 7),
];

/// The arrows within a floor, each with its reason.
const SAME_FLOOR: &[(&str, &str, &str)] = &[
    ("error", "shape", "errors hold shapes"),
    ("error", "dtype", "errors hold dtypes"),
    ("shape", "error", "a shape that does not fit is an error"),
    ("files", "error", "what is not written is an error"),
    (
        "dtype",
        "error",
        "a dtype that an op does not take is an error",
    ),
    (
        "random",
        "level",
        "random numbers come in vectors, as wide as the machine has them",
    ),
    ("random", "workers", "all threads draw them"),
    (
        "workers",
        "error",
        "threads that cannot be had are an error",
    ),
    ("device", "cuda", "a device is made by asking the driver"),
    ("storage", "device", "storage lies on a device"),
    ("storage", "cuda", "a GPU's memory is one kind of storage"),
    ("tensor", "autograd", "a tensor has a place in the graph"),
    (
        "autograd",
        "tensor",
        "the engine sends tensors through the graph",
    ),
    ("optim", "nn", "an optimizer walks a module's parameters"),
];

/// Lines of code (without tests) above which a file is two rooms in one.
const LONGEST: usize = 900;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &str, ext: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, ext: &str, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, ext, out);
            } else if path.extension().is_some_and(|e| e == ext) {
                out.push(path);
            }
        }
    }
    let mut out = Vec::new();
    walk(&root().join(dir), ext, &mut out);
    out.sort();
    out
}

/// A file's lines before its tests, without comments, numbered from 1.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .enumerate()
        .take_while(|(_, l)| !l.starts_with("#[cfg(test)]"))
        .filter(|(_, l)| !l.trim_start().starts_with("//"))
        .map(|(i, l)| (i + 1, l.to_string()))
        .collect()
}

fn none(found: Vec<String>, rule: &str) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

fn module(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    inside
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_str()
        .unwrap()
        .trim_end_matches(".rs")
        .to_string()
}

#[test]
fn every_file_says_what_lives_there() {
    let found = ["src", "tests", "benches", "examples"]
        .iter()
        .flat_map(|d| files(d, "rs"))
        .filter(|p| !fs::read_to_string(p).unwrap().starts_with("//! "))
        .map(|p| p.display().to_string())
        .collect();
    none(found, "a file opens with a //! line");
}

#[test]
fn arrows_run_down() {
    let floors: BTreeMap<_, _> = FLOORS.iter().copied().collect();
    let mut found = Vec::new();
    for path in files("src", "rs") {
        let from = module(&path);
        if from == "lib" {
            continue;
        }
        let Some(&floor) = floors.get(from.as_str()) else {
            found.push(format!("{}: module {from} has no floor", path.display()));
            continue;
        };
        for (line, text) in code(&path) {
            for (_, rest) in text
                .match_indices("crate::")
                .map(|(i, s)| text.split_at(i + s.len()))
            {
                let to: String = rest
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                let Some(&target) = floors.get(to.as_str()) else {
                    continue;
                };
                let allowed = target < floor
                    || to == from
                    || SAME_FLOOR.iter().any(|&(a, b, _)| (a, b) == (&from, &to));
                if !allowed {
                    found.push(format!(
                        "{}:{line}: {from} (floor {floor}) imports {to} (floor {target})",
                        path.display()
                    ));
                }
            }
        }
    }
    none(found, "a file imports from lower floors only");
}

#[test]
fn nothing_panics_where_input_can_reach() {
    let banned = [
        ".unwrap()",
        ".expect(",
        "todo!(",
        "unimplemented!(",
        "dbg!(",
    ];
    let mut found = Vec::new();
    for path in files("src", "rs") {
        for (line, text) in code(&path) {
            if banned.iter().any(|b| text.contains(b)) {
                found.push(format!("{}:{line}: {}", path.display(), text.trim()));
            }
        }
    }
    none(found, "errors are typed; no unwrap outside of tests");
}

#[test]
fn every_op_is_in_the_case_table() {
    let table = fs::read_to_string(root().join("src/ops/mod.rs")).unwrap();
    let mut ops = 0;
    let mut found = Vec::new();
    for path in files("src/ops", "rs") {
        // a room that is a folder has its name from it, unless its files have cases of their own
        let inside = path.strip_prefix(root().join("src/ops")).unwrap();
        let stem = inside.iter().next().unwrap().to_str().unwrap();
        let stem = stem.trim_end_matches(".rs");
        let own = inside
            .with_extension("")
            .to_str()
            .unwrap()
            .replace('/', "::");
        let implements = code(&path)
            .iter()
            .any(|(_, l)| l.contains("Op<") && l.contains("impl"));
        if !implements {
            continue;
        }
        ops += 1;
        if ![stem, &own]
            .iter()
            .any(|room| table.contains(&format!("{room}::CASES")))
        {
            found.push(path.display().to_string());
        }
    }
    none(found, "an op file's CASES are joined in ops/mod.rs");
    assert!(ops >= 10, "only {ops} op files were seen");
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let section = manifest
        .split("[dependencies]")
        .nth(1)
        .unwrap()
        .split("\n[")
        .next()
        .unwrap();
    let lines: Vec<&str> = section.lines().collect();
    let found = lines
        .iter()
        .enumerate()
        .filter(|(i, l)| {
            let above = i.checked_sub(1).and_then(|i| lines.get(i));
            let explained = l.contains('#') || above.is_some_and(|a| a.starts_with('#'));
            l.contains('=') && !explained
        })
        .map(|(_, l)| l.to_string())
        .collect();
    none(found, "a dependency carries its reason");
}

#[test]
fn no_room_is_crowded() {
    let found = files("src", "rs")
        .iter()
        .map(|p| (code(p).len(), p))
        .filter(|(n, _)| *n > LONGEST)
        .map(|(n, p)| format!("{}: {n} lines", p.display()))
        .collect();
    none(found, "a long file becomes a folder");
}
