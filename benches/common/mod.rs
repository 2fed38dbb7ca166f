//! What benches share: the machine's own rates, measured in the same run as what they judge.

use std::time::Instant;

use cotangent::cpu::simd::{self, Level, Portable, Simd};
use cotangent::cuda::Gpu;
use cotangent::random::Generator;
use cotangent::{DType, Device, Result, Tensor};
use rayon::prelude::*;

/// 24 chains of multiply-adds: enough to hide their latency on two ports.
#[inline(always)]
unsafe fn chains<V: Simd<T = f32>>(steps: usize) -> f32 {
    // SAFETY: the caller's CPU has the vector.
    unsafe {
        let (a, b) = (V::splat(0.999_999), V::splat(1e-9));
        let mut x = [V::splat(1.0); 24];
        for _ in 0..steps {
            for x in &mut x {
                *x = x.mul_add(a, b);
            }
        }
        let mut sum = x[0];
        for x in &x[1..] {
            sum = sum.add(*x);
        }
        let mut lanes = [0.0; 16];
        sum.store(lanes.as_mut_ptr());
        lanes[0]
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn chains_avx512(steps: usize) -> f32 {
    // SAFETY: this function's own requirement.
    unsafe { chains::<simd::F32x16>(steps) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn chains_avx2(steps: usize) -> f32 {
    // SAFETY: this function's own requirement.
    unsafe { chains::<simd::F32x8>(steps) }
}

/// GFLOP/s of all threads doing nothing but multiply-adds.
pub fn peak() -> f64 {
    let steps = 4_000_000;
    let (lanes, run): (usize, unsafe fn(usize) -> f32) = match simd::level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => (16, chains_avx512),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => (8, chains_avx2),
        _ => (4, chains::<Portable<f32>>),
    };
    let threads = rayon::current_num_threads();
    let seconds = best(0.3, || {
        // SAFETY: the level is available.
        rayon::broadcast(|_| std::hint::black_box(unsafe { run(steps) }));
    });
    (threads * steps * 24 * 2 * lanes) as f64 / seconds / 1e9
}

/// The shortest of the runs of `f` within a time.
pub fn best(seconds: f64, mut f: impl FnMut()) -> f64 {
    f();
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed().as_secs_f64() < seconds {
        let one = Instant::now();
        f();
        best = best.min(one.elapsed().as_secs_f64());
    }
    best
}

/// GB/s read and written by all threads copying what no cache holds.
fn copy_bandwidth() -> f64 {
    let n = 64 << 20;
    let (from, mut to) = (vec![1u8; n], vec![0u8; n]);
    let piece = n / rayon::current_num_threads();
    let seconds = best(0.3, || {
        to.par_chunks_mut(piece)
            .zip(from.par_chunks(piece))
            .for_each(|(t, f)| t.copy_from_slice(f))
    });
    2.0 * n as f64 / seconds / 1e9
}

/// Seconds a call of `f` takes, the best of some runs of many calls. The device is waited for at
/// a run's ends only, as in training.
pub fn seconds(device: Device, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut run = |calls: usize| -> Result<f64> {
        let start = Instant::now();
        for _ in 0..calls {
            f()?;
        }
        device.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / calls as f64)
    };
    if is_emulated(device) {
        return run(1);
    }
    run(2)?;
    let calls = ((0.02 / run(1)?) as usize).clamp(1, 10_000);
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        best = best.min(run(calls)?);
    }
    Ok(best)
}

/// A device that only shows that a bench runs: sizes are small there and each call is made once.
pub fn is_emulated(device: Device) -> bool {
    matches!(device, Device::Cuda(Gpu::Emulated(_)))
}

/// What the device reaches at best, by what the engine has.
pub struct Rates {
    /// GB/s read and written by a copy.
    pub copy: f64,
    /// TFLOP/s of f32 multiply-adds: of nothing else on the CPU, in a matrix product on a GPU.
    pub f32: f64,
    /// TFLOP/s of a bf16 matrix product, on a GPU.
    pub bf16: f64,
}

impl Rates {
    pub fn measure(device: Device) -> Result<Self> {
        if device == Device::Cpu {
            return Ok(Rates {
                copy: copy_bandwidth(),
                f32: peak() / 1e3,
                bf16: 0.0,
            });
        }
        let side = if is_emulated(device) { 64 } else { 8192 };
        let x = Tensor::zeros([side, side], (DType::F32, device))?;
        let mut y = x.add_scalar(1.0)?;
        let copy = seconds(device, || y.copy_(&x))?;
        let product = |dtype| -> Result<f64> {
            // random numbers: a card draws less power on zeros, and runs faster
            let rng = &mut Generator::new(0);
            let x = Tensor::randn([side, side], rng, dtype)?.to(device)?;
            let flops = 2.0 * (side * side * side) as f64;
            Ok(flops / seconds(device, || x.matmul(&x).map(drop))? / 1e12)
        };
        Ok(Rates {
            copy: 8.0 * (side * side) as f64 / copy / 1e9,
            f32: product(DType::F32)?,
            bf16: product(DType::BF16)?,
        })
    }

    /// One line, JSON or words, with the device.
    pub fn print(&self, device: Device, json: bool) -> Result<()> {
        let name = match device {
            Device::Cpu => {
                let threads = rayon::current_num_threads();
                format!("cpu, {:?}, {threads} threads", simd::level())
            }
            _ => format!("{device}, {}", device.describe()?),
        };
        let Rates { copy, f32, bf16 } = self;
        if json {
            println!(
                "{{\"rates\": {{\"device\": \"{name}\", \"copy_gbs\": {copy:.1}, \"f32_tflops\": {f32:.3}, \"bf16_tflops\": {bf16:.3}}}}}"
            );
        } else {
            print!("{name}: copy {copy:.1} GB/s, f32 {f32:.3} TFLOP/s");
            match device {
                Device::Cpu => println!(),
                _ => println!(", bf16 {bf16:.3} TFLOP/s"),
            }
        }
        Ok(())
    }
}

/// The arguments of a bench: `[--device cpu|cuda|cuda:N] [--json] [--only SUBSTR]`.
pub struct Args {
    pub device: Device,
    pub json: bool,
    pub only: String,
    /// Which of the bench's own words were there.
    pub words: Vec<String>,
}

impl Args {
    /// With `own`, the words that only this bench knows.
    pub fn parse(own: &[&str]) -> Result<Self> {
        let mut args = Args {
            device: Device::Cpu,
            json: false,
            only: String::new(),
            words: Vec::new(),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--device" => args.device = Device::parse(&words.next().unwrap_or_default())?,
                "--json" => args.json = true,
                "--only" => args.only = words.next().unwrap_or_default(),
                // what cargo adds
                "--bench" => {}
                own_word if own.contains(&own_word) => args.words.push(word),
                _ => {
                    return Err(cotangent::Error::config(
                        "bench",
                        format!("unknown: {word}"),
                    ));
                }
            }
        }
        Ok(args)
    }
}

/// What `main` of a bench does: the message of an error, and the code for one.
pub fn finish(result: Result<()>) {
    if let Err(e) = result {
        eprintln!("error: {e}");
        std::process::exit(1);
    }
}
