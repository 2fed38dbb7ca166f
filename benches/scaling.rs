//! How the time of training steps grows, on the CPU:
//! `cargo bench --bench scaling -- [batch] [threads] [startup] [--json] [--only SUBSTR]`, without a
//! word all three.
//!
//! `batch`: milliseconds an image, by batch and image size; what would need more than about 4 GB or
//! half a minute is left out. `threads`: each training case on one thread and on two, in turns.
//! `startup`: from the program's start to the end of the first step, on images in memory, each in a
//! process of its own, beside a later step's time.

mod common;
#[path = "common/networks.rs"]
mod networks;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

use common::{Args, Rates};
use cotangent::{Device, Error, Result};
use networks::{CASES, Case};

/// A step's bytes that are there at one time, of those that it moves: the outputs that backward
/// wants and their gradients. Rough; it only says what to leave out.
const LIVE: usize = 4;
/// The most bytes and seconds of a row.
const MOST: (usize, f64) = (4 << 30, 30.0);

fn row(args: &Args, name: &str, numbers: &[(&str, f64)]) {
    if args.json {
        let fields = numbers.iter().map(|(k, v)| format!(", \"{k}\": {v:.4}"));
        println!("{{\"case\": \"{name}\"{}}}", fields.collect::<String>());
    } else {
        let fields = numbers.iter().map(|(k, v)| format!("  {k} {v:9.3}"));
        println!("{name:38}{}", fields.collect::<String>());
    }
}

/// Seconds of each of these many steps, after two to warm up.
fn times(case: &Case, steps: usize) -> Result<Vec<f64>> {
    let mut step = case.step(Device::Cpu)?;
    step.run()?;
    step.run()?;
    let mut seconds = Vec::with_capacity(steps);
    for _ in 0..steps {
        let start = Instant::now();
        step.run()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds)
}

fn batch(args: &Args) -> Result<()> {
    for (network, case) in [
        ("deeper", Case::named("train/deeper/b100")),
        ("resnet18", Case::named("train/resnet18/b32")),
    ] {
        for size in [32, 64, 128] {
            // seconds an image, of the batch before
            let mut last = 0.0;
            for n in [8, 32, 128, 512] {
                let name = format!("batch/{network}/b{n}x{size}");
                let Some(case) = case.map(|&case| Case { n, size, ..case }) else {
                    continue;
                };
                let (_, work) = case.work()?;
                let steps = 5;
                let seconds = last * (n * (steps + 2)) as f64;
                if !name.contains(&args.only) || work.bytes / LIVE > MOST.0 || seconds > MOST.1 {
                    continue;
                }
                let seconds = times(&case, steps)?;
                last = seconds[steps / 2] / n as f64;
                let ms = |s: f64| s * 1e3 / n as f64;
                let (median, min) = (ms(seconds[steps / 2]), ms(seconds[0]));
                row(
                    args,
                    &name,
                    &[("median_ms_image", median), ("min_ms_image", min)],
                );
            }
        }
    }
    Ok(())
}

/// One pool after the other, a run each in turns: what else happens on the machine hits both.
fn threads(args: &Args) -> Result<()> {
    let pool = |n| {
        let made = rayon::ThreadPoolBuilder::new().num_threads(n).build();
        made.map_err(|e| Error::config("threads", e.to_string()))
    };
    let pools = [pool(1)?, pool(2)?];
    for case in CASES.iter().filter(|c| c.name.contains(&args.only)) {
        let mut step = case.step(Device::Cpu)?;
        let mut best = [f64::INFINITY; 2];
        // the first round warms up
        for round in 0..6 {
            for (pool, best) in pools.iter().zip(&mut best) {
                let start = Instant::now();
                pool.install(|| step.run())?;
                if round > 0 {
                    *best = best.min(start.elapsed().as_secs_f64() * 1e3);
                }
            }
        }
        let [one, two] = best;
        let numbers = [("one_ms", one), ("two_ms", two), ("speedup", one / two)];
        row(args, &case.name.replace("train", "threads"), &numbers);
    }
    Ok(())
}

/// The case whose first step `startup` waits for.
const FIRST: &str = "train/deeper/b100";

/// What the processes of `startup` do: a step, then more, and say how long each took.
fn first_step(main: Instant) -> Result<()> {
    let unknown = || Error::config("startup", format!("no case {FIRST:?}"));
    let mut step = Case::named(FIRST).ok_or_else(unknown)?.step(Device::Cpu)?;
    let made = main.elapsed().as_secs_f64();
    step.run()?;
    let first = main.elapsed().as_secs_f64();
    println!("{made} {first}");
    Ok(())
}

fn startup(args: &Args) -> Result<()> {
    let name = FIRST.replace("train", "startup");
    if !name.contains(&args.only) {
        return Ok(());
    }
    // milliseconds from before exec to the first step's end, from `main` on, and of the making of
    // network and images, which a training reads instead
    let mut runs: Vec<[f64; 3]> = Vec::new();
    for _ in 0..15 {
        let before = Instant::now();
        let mut child = networks::again()?
            .arg("--first-step")
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Error::io("the first step's process"))?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            let mut out = BufReader::new(out);
            out.read_line(&mut line)
                .map_err(Error::io("the first step's process"))?;
        }
        let whole = before.elapsed().as_secs_f64();
        child
            .wait()
            .map_err(Error::io("the first step's process"))?;
        let told: Vec<f64> = line.split_whitespace().flat_map(str::parse).collect();
        if let [made, first] = told[..] {
            runs.push([whole, first, made].map(|s| s * 1e3));
        }
    }
    let later = times(Case::named(FIRST).unwrap_or(&CASES[0]), 15)?;
    let median = |i: usize| {
        let mut column: Vec<f64> = runs.iter().map(|r| r[i]).collect();
        column.sort_by(f64::total_cmp);
        column.get(column.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let numbers = [
        ("from_exec_ms", median(0)),
        ("from_main_ms", median(1)),
        ("making_ms", median(2)),
        ("later_step_ms", later[later.len() / 2] * 1e3),
    ];
    row(args, &name, &numbers);
    Ok(())
}

fn main() {
    let main = Instant::now();
    let all = || {
        let args = Args::parse(&["batch", "threads", "startup", "--first-step"])?;
        let has = |word| args.words.iter().any(|w| w == word);
        if has("--first-step") {
            return first_step(main);
        }
        Rates::measure(Device::Cpu)?.print(Device::Cpu, args.json)?;
        for (word, part) in [
            ("batch", batch as fn(&Args) -> Result<()>),
            ("threads", threads),
            ("startup", startup),
        ] {
            if args.words.is_empty() || has(word) {
                part(&args)?;
            }
        }
        Ok(())
    };
    common::finish(all());
}
