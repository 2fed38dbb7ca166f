//! `docs/OPS.md`, the table of ops: made from the case table by running it, never by hand.
//!
//! `COTANGENT_BLESS=1 cargo test --features emulator --test ops_table` writes it anew.

use std::collections::BTreeMap;
use std::path::Path;

use cotangent::ops::{Case, all_cases, formulas};
use cotangent::{DType, Device, Result, Tensor};

const HEAD: &str = "\
# The table of ops

What each op computes, element by element unless it says otherwise, and what was seen when its cases
ran: the element types that it takes, the devices that it runs on, and its inputs, of which those in
bold got a gradient. The names are those of the methods of `Tensor`.

| op | formula | cases | dtypes | devices | inputs |
|---|---|---|---|---|---|
";

const FLOATS: [DType; 4] = [DType::F32, DType::F64, DType::BF16, DType::F16];

/// The case's inputs on a device, floats in `dtype` and as leaves.
fn leaves(case: &Case, dtype: DType, device: Device) -> Result<Vec<Tensor>> {
    let convert = |x: Tensor| match x.dtype().is_float() {
        true => Ok(x.to_dtype(dtype)?.to(device)?.requires_grad()),
        false => x.to(device),
    };
    case.make(1)?.into_iter().map(convert).collect()
}

/// The float types in which the case runs on a device, forward and backward.
fn dtypes(case: &Case, device: Device) -> Vec<DType> {
    let runs = |dtype: DType| -> Result<()> {
        let y = (case.run)(&leaves(case, dtype, device)?)?;
        if y.is_tracked() {
            y.backward_from(&y.ones_like()?)?;
        }
        y.to_dtype(DType::F64)?.to_vec::<f64>().map(|_| ())
    };
    FLOATS.into_iter().filter(|&d| runs(d).is_ok()).collect()
}

/// The inputs' types, those that got a gradient in bold.
fn inputs(case: &Case) -> Result<String> {
    let leaves = leaves(case, DType::F32, Device::Cpu)?;
    let y = (case.run)(&leaves)?;
    let grads = match y.is_tracked() {
        true => y.backward_from(&y.ones_like()?)?,
        false => Default::default(),
    };
    let describe = |x: &Tensor| match (x.dtype().is_float(), grads.get(x)) {
        (true, Some(_)) => "**float**".to_string(),
        (true, None) => "float".to_string(),
        _ => x.dtype().to_string(),
    };
    Ok(leaves.iter().map(describe).collect::<Vec<_>>().join(", "))
}

/// The row of an op's cases: it is run on the first with the most inputs that has elements.
fn row(op: &str, formula: &str, cases: &[&Case]) -> Result<String> {
    let elements = |c: &Case| -> usize {
        let sizes = c.inputs.iter().map(|i| i.shape().iter().product::<usize>());
        sizes.min().unwrap_or(0)
    };
    let full = cases.iter().filter(|c| elements(c) > 0);
    let case = full.rev().max_by_key(|c| c.inputs.len());
    let case = case.unwrap_or_else(|| panic!("{op} has no case with elements"));
    let [cpu, cuda] = [Device::Cpu, Device::cuda_emulated()?].map(|d| dtypes(case, d));
    assert_eq!(cpu, cuda, "{case}: what the CPU takes and what CUDA takes");
    assert!(!cpu.is_empty(), "{case}: no type is taken");
    let given: Vec<DType> = case.make(1)?.iter().map(Tensor::dtype).collect();
    let taken = match given.iter().any(|d| d.is_float()) {
        true => cpu,
        false => given,
    };
    let names: Vec<String> = taken.iter().map(|d| d.to_string()).collect();
    let dtypes = names.join(", ");
    let (formula, inputs, n) = (formula.replace('|', "\\|"), inputs(case)?, cases.len());
    Ok(format!(
        "| {op} | `{formula}` | {n} | {dtypes} | CPU, CUDA | {inputs} |\n"
    ))
}

#[test]
fn the_table_is_that_of_the_cases() -> Result<()> {
    let mut all: BTreeMap<&str, Vec<&Case>> = BTreeMap::new();
    for case in all_cases() {
        all.entry(case.op).or_default().push(case);
    }
    let known: BTreeMap<&str, &str> = formulas().copied().collect();
    assert_eq!(known.len(), formulas().count(), "an op has one formula");
    let without = |a: &[&&str], b: &dyn Fn(&str) -> bool| -> Vec<String> {
        a.iter().filter(|n| !b(n)).map(|n| n.to_string()).collect()
    };
    let (ops, named): (Vec<_>, Vec<_>) = (all.keys().collect(), known.keys().collect());
    let (bare, stray) = (
        without(&ops, &|n| known.contains_key(n)),
        without(&named, &|n| all.contains_key(n)),
    );
    assert!(bare.is_empty(), "ops without a row in FORMULAS: {bare:?}");
    assert!(
        stray.is_empty(),
        "formulas of no op in the table: {stray:?}"
    );

    let rows = all.iter().map(|(op, cases)| row(op, known[op], cases));
    let table = HEAD.to_string() + &rows.collect::<Result<String>>()?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPS.md");
    if std::env::var_os("COTANGENT_BLESS").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == table,
        "docs/OPS.md is not what the cases say; write it anew: COTANGENT_BLESS=1 cargo test --features emulator --test ops_table"
    );
    Ok(())
}
