//! Times training steps and single ops:
//! `cargo bench --bench speed -- [--device cpu|cuda|cuda:N] [--json] [--only SUBSTR] [--list|--memory]`.
//!
//! First the device's own rates, measured in the same minutes: multiply-adds and copies. Then a
//! line a case, `{"case", "median_ms", "min_ms", "max_ms", "device", "gmacs", "mbytes", "fma_share",
//! "copy_share"}` with `--json`. A training step is forward, loss, backward and the optimizer's
//! update; on a CUDA device there is a line more, `CASE/captured`, of its replay as one graph, which
//! is what the Solver does. `RAYON_NUM_THREADS` sets the CPU's threads.
//!
//! Beside a time stands the roofline: what the case has to do at least (`gmacs`, billions of
//! multiply-adds; `mbytes`, millions of bytes read and written), each as a share of what the device
//! would have done in that time at its own rate, and how many times the time is the longer of the
//! two: 1 is the floor, for a case whose data no cache holds.
//!
//! `--memory` prints the peak of a training step instead, each case in a process of its own: what
//! the allocator gave out (`allocated_mb`), and how far the process grew over what it held before
//! the network was made (`resident_mb`). `--list` names the cases, with their networks' sizes.

mod common;
#[path = "common/networks.rs"]
mod networks;

use std::time::Instant;

use common::{Args, Rates};
use cotangent::nn::parameter_count;
use cotangent::ops::{BatchNorm, CrossEntropy};
use cotangent::random::Generator;
use cotangent::shape::Window;
use cotangent::{DType, Device, Error, Result, Tensor, autograd::no_grad};
use networks::{CASES, Case, Work};

/// Runs a case is timed for, after two to warm up.
const REPEATS: usize = 7;
/// A run repeats its step until it has taken this long, in seconds.
const RUN: f64 = 0.05;

struct Bench {
    args: Args,
    /// Without them nothing is timed, but the cases are named.
    rates: Option<Rates>,
}

impl Bench {
    fn wanted(&self, case: &str) -> bool {
        case.contains(&self.args.only)
    }

    /// A row of a case: words, or JSON.
    fn row(&self, case: &str, json: &str, words: &str) {
        match self.args.json {
            true => println!("{{\"case\": \"{case}\", {json}}}"),
            false => println!("{case:38} {words}"),
        }
    }

    fn time(&self, case: &str, work: Work, mut f: impl FnMut() -> Result<()>) -> Result<()> {
        let Some(rates) = &self.rates else {
            return Ok(());
        };
        if !self.wanted(case) {
            return Ok(());
        }
        let device = self.args.device;
        // the device is waited for at a run's ends only, as in training
        let mut run = |calls: usize| -> Result<f64> {
            let start = Instant::now();
            for _ in 0..calls {
                f()?;
            }
            device.synchronize()?;
            Ok(start.elapsed().as_secs_f64() / calls as f64)
        };
        run(2)?;
        let (calls, repeats) = match common::is_emulated(device) {
            true => (1, 1),
            false => (((RUN / run(1)?.max(1e-6)) as usize).max(1), REPEATS),
        };
        let mut ms = Vec::with_capacity(repeats);
        for _ in 0..repeats {
            ms.push(run(calls)? * 1e3);
        }
        ms.sort_by(f64::total_cmp);
        let (median, min, max) = (ms[repeats / 2], ms[0], ms[repeats - 1]);
        let (gmacs, mbytes) = (work.macs as f64 / 1e9, work.bytes as f64 / 1e6);
        // of the device's multiply-adds, two operations each, and of its copies
        let fma = 2.0 * gmacs / median / rates.f32;
        let copy = mbytes / median / rates.copy;
        self.row(
            case,
            &format!(
                "\"median_ms\": {median:.4}, \"min_ms\": {min:.4}, \"max_ms\": {max:.4}, \"device\": \"{device}\", \"gmacs\": {gmacs:.4}, \"mbytes\": {mbytes:.4}, \"fma_share\": {fma:.4}, \"copy_share\": {copy:.4}"
            ),
            &format!(
                "{median:10.3} ms   ({min:.3} to {max:.3})   multiply-adds {:.0} %, copies {:.0} %, {:.1} x the floor",
                100.0 * fma,
                100.0 * copy,
                1.0 / fma.max(copy)
            ),
        );
        Ok(())
    }

    fn train(&self, case: &Case) -> Result<()> {
        let captured = format!("{}/captured", case.name);
        if !self.wanted(&captured) {
            return Ok(());
        }
        let mut model = case.network()?;
        let work = case.work(&mut *model)?;
        if self.rates.is_none() {
            let parameters = parameter_count(&mut *model);
            let (gmacs, mbytes) = (work.macs as f64 / 1e9, work.bytes as f64 / 1e6);
            self.row(
                case.name,
                &format!(
                    "\"parameters\": {parameters}, \"gmacs\": {gmacs:.4}, \"mbytes\": {mbytes:.4}"
                ),
                &format!(
                    "{parameters:>10} parameters, {gmacs:8.3} billion multiply-adds, {mbytes:8.1} MB"
                ),
            );
            return Ok(());
        }
        let mut step = case.step(model, self.args.device)?;
        self.time(case.name, work, || step.run())?;
        if let Device::Cuda(gpu) = self.args.device {
            // where `--only` left the line above out: a step settles in two
            step.run()?;
            step.run()?;
            let (graph, ()) = gpu.capture(|| step.run())?;
            self.time(&captured, work, || graph.replay(&step.optimizer.replayed()))?;
        }
        Ok(())
    }

    /// The peak of a step's memory, in this process, which has done nothing else.
    fn memory(&self, case: &Case) -> Result<()> {
        let device = self.args.device;
        // threads and lazily loaded code are no part of the network
        rayon::broadcast(|_| ());
        let x = Tensor::zeros([1, 3, 8, 8], (DType::F32, device))?.requires_grad();
        x.conv2d(
            &Tensor::zeros([4, 3, 3, 3], (DType::F32, device))?,
            None,
            same(3),
            1,
        )?
        .sum_all()?
        .backward()?;
        reset_resident_peak();
        let before = resident("VmRSS");
        let mut step = case.step(case.network()?, device)?;
        device.reset_peak()?;
        for _ in 0..3 {
            step.run()?;
        }
        device.synchronize()?;
        let mb = |bytes: usize| bytes as f64 / 1e6;
        let resident = mb(resident("VmHWM").saturating_sub(before));
        let allocated = mb(device.memory_stats()?.peak_bytes);
        self.row(
            case.name,
            &format!(
                "\"resident_mb\": {resident:.1}, \"allocated_mb\": {allocated:.1}, \"device\": \"{device}\""
            ),
            &format!("{resident:10.1} MB resident, {allocated:10.1} MB allocated"),
        );
        Ok(())
    }

    /// An op alone, without a graph and with its gradients, on inputs of these shapes. It has so
    /// many multiply-adds forward; backward twice as many.
    fn op(
        &self,
        case: &str,
        macs: usize,
        shapes: &[&[usize]],
        f: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<()> {
        if !self.wanted(&format!("{case}/fwd")) && !self.wanted(&format!("{case}/fwd+bwd")) {
            return Ok(());
        }
        if self.rates.is_none() {
            let gmacs = macs as f64 / 1e9;
            let words = format!("{gmacs:8.3} billion multiply-adds forward");
            self.row(case, &format!("\"gmacs\": {gmacs:.4}"), &words);
            return Ok(());
        }
        let rng = &mut Generator::new(0);
        let inputs = shapes
            .iter()
            .map(|s| Tensor::randn(*s, rng, DType::F32)?.to(self.args.device))
            .collect::<Result<Vec<_>>>()?;
        // images lie as the engine keeps them
        let inputs = inputs
            .iter()
            .map(|x| {
                if x.rank() == 4 {
                    x.permute(&[0, 2, 3, 1])?
                        .contiguous()?
                        .permute(&[0, 3, 1, 2])
                } else {
                    Ok(x.clone())
                }
            })
            .collect::<Result<Vec<_>>>()?;
        let leaves: Vec<Tensor> = inputs.iter().map(Tensor::requires_grad).collect();
        let shape = *f(&leaves)?.shape();
        let (i, o) = (
            inputs.iter().map(Tensor::numel).sum::<usize>(),
            shape.numel(),
        );
        // inputs read, output written
        let forward = Work {
            macs,
            bytes: 4 * (i + o),
        };
        // besides, the output's gradient and the inputs read, the inputs' gradients written; a
        // pool can know its places without reading its input again
        let again = if case.starts_with("maxpool") { 0 } else { i };
        let both = Work {
            macs: 3 * macs,
            bytes: forward.bytes + 4 * (o + again + i),
        };
        self.time(&format!("{case}/fwd"), forward, || {
            let _quiet = no_grad();
            f(&inputs).map(drop)
        })?;
        let dy = Tensor::randn(shape, rng, DType::F32)?.to(self.args.device)?;
        let dy = if dy.rank() == 4 {
            dy.permute(&[0, 2, 3, 1])?
                .contiguous()?
                .permute(&[0, 3, 1, 2])?
        } else {
            dy
        };
        self.time(&format!("{case}/fwd+bwd"), both, || {
            f(&leaves)?.backward_from(&dy).map(drop)
        })
    }
}

fn same(k: usize) -> Window {
    Window {
        padding: [k / 2; 2],
        ..Window::new([k; 2])
    }
}

fn run(b: &Bench) -> Result<()> {
    for case in CASES {
        b.train(case)?;
    }
    b.op(
        "matmul/1024",
        1 << 30,
        &[&[1024, 1024], &[1024, 1024]],
        |x| x[0].matmul(&x[1]),
    )?;
    b.op(
        "bmm/64x128",
        64 << 21,
        &[&[64, 128, 128], &[64, 128, 128]],
        |x| x[0].matmul(&x[1]),
    )?;
    // images, channels in, size; channels out, kernel, groups
    for (name, [n, ci, h], [co, k, groups]) in [
        ("conv3x3/n32c64h32", [32, 64, 32], [64, 3, 1]),
        ("conv3x3/n32c256h8", [32, 256, 8], [256, 3, 1]),
        ("conv1x1/n32c128h16", [32, 128, 16], [128, 1, 1]),
        ("dwconv7x7/n16c96h32", [16, 96, 32], [96, 7, 96]),
    ] {
        let weight = [co, ci / groups, k, k];
        let macs = n * h * h * weight.iter().product::<usize>();
        b.op(name, macs, &[&[n, ci, h, h], &weight], |x| {
            x[0].conv2d(&x[1], None, same(k), groups)
        })?;
    }
    b.op(
        "layernorm/8192x384",
        0,
        &[&[8192, 384], &[384], &[384]],
        |x| x[0].layer_norm(&[384], Some(&x[1]), Some(&x[2]), 1e-5),
    )?;
    b.op("gelu/4M", 0, &[&[4096, 1024]], |x| x[0].gelu())?;
    let training = BatchNorm {
        training: true,
        momentum: 0.1,
        eps: 1e-5,
        relu: false,
    };
    b.op(
        "batchnorm/n32c64h32",
        0,
        &[&[32, 64, 32, 32], &[64], &[64]],
        |x| x[0].batch_norm(Some(&x[1]), Some(&x[2]), None, &training),
    )?;
    b.op("maxpool2/n32c64h32", 0, &[&[32, 64, 32, 32]], |x| {
        x[0].max_pool2d(Window {
            stride: [2; 2],
            ..Window::new([2; 2])
        })
    })?;
    let zeros = Tensor::zeros([4096], (DType::I64, b.args.device))?;
    b.op("softmax_ce/4096x200", 0, &[&[4096, 200]], |x| {
        x[0].cross_entropy(&zeros, &CrossEntropy::default())
    })
}

/// What Linux counts of this process's memory, in bytes: `VmRSS` now, `VmHWM` at most.
fn resident(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(field));
    let kib = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<usize>().ok());
    1024 * kib.unwrap_or(0)
}

/// `VmHWM` is `VmRSS` again, where the system allows it.
fn reset_resident_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// This program once more for each training case, as peaks are a process's.
fn memory(b: &Bench) -> Result<()> {
    for case in CASES.iter().filter(|case| b.wanted(case.name)) {
        let mut again = networks::again()?;
        again.args(["--memory-of", "--device", &b.args.device.to_string()]);
        again.args(["--only", case.name]);
        again.args(b.args.json.then_some("--json"));
        let status = again.status().map_err(Error::io(case.name))?;
        if !status.success() {
            return Err(Error::config("bench", format!("{} failed", case.name)));
        }
    }
    Ok(())
}

fn main() {
    let all = || {
        cotangent::cpu::set_num_threads(None)?;
        let args = Args::parse(&["--list", "--memory", "--memory-of"])?;
        let has = |word| args.words.iter().any(|w| w == word);
        let (list, of_all, of_one) = (has("--list"), has("--memory"), has("--memory-of"));
        let mut b = Bench { args, rates: None };
        if of_all {
            return memory(&b);
        }
        if of_one {
            let found = Case::named(&b.args.only);
            let unknown = || Error::config("only", format!("no case {:?}", b.args.only));
            return b.memory(found.ok_or_else(unknown)?);
        }
        if !list {
            let rates = Rates::measure(b.args.device)?;
            rates.print(b.args.device, b.args.json)?;
            b.rates = Some(rates);
        }
        run(&b)
    };
    common::finish(all());
}
