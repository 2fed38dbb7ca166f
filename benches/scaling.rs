//! How the time of training steps grows, on the CPU:
//! `cargo bench --bench scaling -- [batch] [threads] [startup] [--json] [--only SUBSTR]`, without a
//! word all three.
//!
//! `batch`: milliseconds an image, by batch and image size; what would need more than about 4 GB or
//! half a minute is left out. `threads`: each training case on one thread and on two, in turns.
//! `startup`: from the program's start to the end of a first step, in processes of their own: until
//! `main`, making the network, making images in memory, the step; the whole without the images; and
//! a later step's time.

mod common;
#[path = "common/networks.rs"]
mod networks;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::{Mutex, mpsc};
use std::time::Instant;

use common::{Args, Rates};
use cotangent::nn::Module;
use cotangent::{Device, Error, Result, cpu};
use networks::{CASES, Case};

/// The most bytes and seconds of a row, both guessed: a step holds about half of the bytes that it
/// moves, and takes some three times its roofline's floor.
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
fn times(case: &Case, model: Box<dyn Module>, steps: usize) -> Result<Vec<f64>> {
    let mut step = case.step(model, Device::Cpu)?;
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

fn batch(args: &Args, rates: &Rates) -> Result<()> {
    let steps = 5;
    for (network, case) in [
        ("deeper", case(FIRST)?),
        ("resnet18", case("train/resnet18/b32")?),
    ] {
        for size in [32, 64, 128] {
            for n in [8, 32, 128, 512] {
                let name = format!("batch/{network}/b{n}x{size}");
                if !name.contains(&args.only) {
                    continue;
                }
                let case = Case { n, size, ..*case };
                let mut model = case.network()?;
                let work = case.work(&mut *model)?;
                let floor = (2e-12 * work.macs as f64 / rates.f32)
                    .max(1e-9 * work.bytes as f64 / rates.copy);
                let seconds = 3.0 * floor * (steps + 2) as f64;
                if work.bytes / 2 > MOST.0 || seconds > MOST.1 {
                    continue;
                }
                let seconds = times(&case, model, steps)?;
                let ms = |s: f64| s * 1e3 / n as f64;
                let (median, min) = (ms(seconds[steps / 2]), ms(seconds[0]));
                let numbers = [("median_ms_image", median), ("min_ms_image", min)];
                row(args, &name, &numbers);
            }
        }
    }
    Ok(())
}

/// A thread of its own for each number of threads, which keeps its workers; they take a step each in
/// turns: what else happens on the machine hits both.
fn threads(args: &Args, _: &Rates) -> Result<()> {
    for case in CASES.iter().filter(|c| c.name.contains(&args.only)) {
        let step = Mutex::new(case.step(case.network()?, Device::Cpu)?);
        let mut best = [f64::INFINITY; 2];
        std::thread::scope(|s| -> Result<()> {
            let start = |threads| {
                let ((go, turns), (done, times)) = (mpsc::channel(), mpsc::channel());
                let step = &step;
                s.spawn(move || {
                    if let Err(e) = cpu::set_num_threads(Some(threads)) {
                        let _ = done.send(Err(e));
                        return;
                    }
                    for () in turns {
                        let mut step = step.lock().unwrap_or_else(|e| e.into_inner());
                        let start = Instant::now();
                        let ran = step.run();
                        let _ = done.send(ran.map(|_| start.elapsed().as_secs_f64() * 1e3));
                    }
                });
                (go, times)
            };
            let both = [start(1), start(2)];
            // the first round warms up
            for round in 0..6 {
                for ((go, times), best) in both.iter().zip(&mut best) {
                    let stopped = || Error::config("threads", "a thread stopped");
                    go.send(()).map_err(|_| stopped())?;
                    let ms = times.recv().map_err(|_| stopped())??;
                    if round > 0 {
                        *best = best.min(ms);
                    }
                }
            }
            Ok(())
        })?;
        let [one, two] = best;
        let numbers = [("one_ms", one), ("two_ms", two), ("speedup", one / two)];
        row(args, &case.name.replace("train", "threads"), &numbers);
    }
    Ok(())
}

/// The case whose first step `startup` waits for.
const FIRST: &str = "train/deeper/b100";

fn case(name: &str) -> Result<&'static Case> {
    Case::named(name).ok_or_else(|| Error::config("scaling", format!("no case {name:?}")))
}

/// What the processes of `startup` do: a step. They say when the network was there, when the
/// images, and when the step had ended, in milliseconds since `main`.
fn first_step(main: Instant) -> Result<()> {
    let ms = || main.elapsed().as_secs_f64() * 1e3;
    let case = case(FIRST)?;
    let model = case.network()?;
    let network = ms();
    let mut step = case.step(model, Device::Cpu)?;
    let images = ms();
    step.run()?;
    println!("{network} {images} {}", ms());
    Ok(())
}

fn startup(args: &Args, _: &Rates) -> Result<()> {
    let name = FIRST.replace("train", "startup");
    if !name.contains(&args.only) {
        return Ok(());
    }
    let runs = 15;
    let mut parts: [Vec<f64>; 5] = Default::default();
    for _ in 0..runs {
        let before = Instant::now();
        let child = networks::again()?
            .arg("--first-step")
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.map_err(Error::io("the first step's process"))?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            let read = BufReader::new(out).read_line(&mut line);
            read.map_err(Error::io("the first step's output"))?;
        }
        let whole = before.elapsed().as_secs_f64() * 1e3;
        child
            .wait()
            .map_err(Error::io("the first step's process"))?;
        let told: Vec<f64> = line.split_whitespace().flat_map(str::parse).collect();
        if let [network, images, end] = told[..] {
            let made = images - network;
            let run = [whole - end, network, made, end - images, whole - made];
            parts.iter_mut().zip(run).for_each(|(p, ms)| p.push(ms));
        }
    }
    let names = [
        "to_main_ms",
        "network_ms",
        "images_ms",
        "step_ms",
        "whole_ms",
    ];
    let mut numbers: Vec<(&str, f64)> = Vec::new();
    for (name, part) in names.into_iter().zip(&mut parts) {
        part.sort_by(f64::total_cmp);
        numbers.push((name, part.get(part.len() / 2).copied().unwrap_or(f64::NAN)));
    }
    let case = case(FIRST)?;
    let later = times(case, case.network()?, runs)?;
    numbers.push(("later_step_ms", later[runs / 2] * 1e3));
    row(args, &name, &numbers);
    Ok(())
}

fn main() {
    let main = Instant::now();
    let all = || {
        cpu::set_num_threads(None)?;
        let args = Args::parse(&["batch", "threads", "startup", "--first-step"])?;
        let has = |word| args.words.iter().any(|w| w == word);
        if has("--first-step") {
            return first_step(main);
        }
        let rates = Rates::measure(Device::Cpu)?;
        rates.print(Device::Cpu, args.json)?;
        for (word, part) in [
            ("batch", batch as fn(&Args, &Rates) -> Result<()>),
            ("threads", threads),
            ("startup", startup),
        ] {
            if args.words.is_empty() || has(word) {
                part(&args, &rates)?;
            }
        }
        Ok(())
    };
    common::finish(all());
}
