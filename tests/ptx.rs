//! The shipped PTX belongs to the kernels' sources, and keeps what `kernels/build.py` promised.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cotangent::cuda::ptx;
use sha2::{Digest, Sha256};

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// The names in a folder that end so, without the ending.
fn stems(dir: &Path, ending: &str) -> BTreeSet<String> {
    let names = fs::read_dir(dir).unwrap();
    names
        .filter_map(|f| f.unwrap().file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(ending).map(String::from))
        .collect()
}

/// The rows of RESOURCES.txt by kernel: its file, then the figures.
fn resources() -> BTreeMap<String, (String, Vec<u32>)> {
    let table = fs::read_to_string(kernels().join("ptx/RESOURCES.txt")).unwrap();
    let rows = table.lines().skip(1).map(|line| {
        let mut words = line.split_whitespace().map(String::from);
        let (file, kernel) = (words.next().unwrap(), words.next().unwrap());
        let figures = words.map(|w| w.parse().unwrap()).collect();
        (kernel, (file, figures))
    });
    rows.collect()
}

#[test]
fn is_made_of_these_sources() {
    let mut names = vec!["build.py".to_string()];
    for (dir, ending) in [("", ".cu"), ("", ".cuh"), ("ptx/", ".ptx")] {
        let stems = stems(&kernels().join(dir), ending);
        names.extend(stems.iter().map(|stem| format!("{dir}{stem}{ending}")));
    }
    let there = names.into_iter().map(|name| {
        let hash = Sha256::digest(fs::read(kernels().join(&name)).unwrap());
        (name, hash.iter().map(|b| format!("{b:02x}")).collect())
    });
    let there: BTreeSet<(String, String)> = there.collect();
    let manifest = fs::read_to_string(kernels().join("ptx/MANIFEST.txt")).unwrap();
    let recorded: BTreeSet<(String, String)> = manifest
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(hash, name)| (name.into(), hash.into()))
        .collect();
    let stale: BTreeSet<_> = there
        .symmetric_difference(&recorded)
        .map(|f| &f.0)
        .collect();
    assert!(stale.is_empty(), "run kernels/build.py; stale: {stale:?}");
}

#[test]
fn every_kernel_file_is_embedded() {
    let embedded: BTreeSet<_> = ptx::modules().iter().map(|m| m.0.to_string()).collect();
    assert_eq!(embedded, stems(&kernels(), ".cu"), "run kernels/build.py");
    assert_eq!(
        embedded,
        stems(&kernels().join("ptx"), ".ptx"),
        "run kernels/build.py"
    );
}

#[test]
fn loads_on_the_oldest_driver_and_card() {
    for (name, text) in ptx::modules() {
        let header: Vec<_> = text
            .lines()
            .filter(|l| l.starts_with(".version") || l.starts_with(".target"))
            .collect();
        assert_eq!(header, [".version 8.0", ".target sm_80"], "{name}");
    }
}

#[test]
fn the_launch_knows_every_parameter() {
    let mut names = BTreeSet::new();
    for (_, text) in ptx::modules() {
        for (name, parameters) in ptx::entries(text) {
            assert!(names.insert(name), "{name} is in two files");
            assert!(!parameters.contains('?'), "{name}: {parameters}");
        }
    }
    let reported = resources();
    let reported: BTreeSet<_> = reported.keys().map(String::as_str).collect();
    assert_eq!(names, reported, "RESOURCES.txt has a row a kernel");
}

#[test]
fn hot_kernels_do_not_spill() {
    let hot = |kernel: &str| !kernel.split('_').any(|word| word == "f64");
    for (kernel, (file, figures)) in resources() {
        let [_registers, stack, stores, loads, _shared] = figures[..] else {
            panic!("{kernel}: {figures:?}");
        };
        let source = fs::read_to_string(kernels().join(&file)).unwrap();
        let allowed = source
            .lines()
            .filter_map(|l| l.strip_prefix("// spills-allowed: "))
            .filter_map(|l| l.split_whitespace().next())
            .any(|name| match name.strip_suffix('*') {
                Some(start) => kernel.starts_with(start),
                None => kernel == name,
            });
        let spills = stack + stores + loads;
        assert!(
            spills == 0 || allowed || !hot(&kernel),
            "{file}: {kernel} spills"
        );
    }
}
