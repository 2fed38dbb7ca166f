//! What benches share: the machine's own rates, measured in the same run as what they judge.

use std::time::Instant;

use cotangent::cpu::simd::{self, Level, Portable, Simd};
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
#[allow(dead_code, reason = "not every bench prints it")]
pub fn copy_bandwidth() -> f64 {
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

/// One line (JSON or words) with the level, the threads and both rates.
#[allow(dead_code, reason = "not every bench prints it")]
pub fn print_machine(json: bool) {
    let (level, threads, peak, copy) = (
        simd::level(),
        rayon::current_num_threads(),
        peak(),
        copy_bandwidth(),
    );
    if json {
        println!(
            "{{\"machine\": {{\"simd\": \"{level:?}\", \"threads\": {threads}, \"fma_gflops\": {peak:.1}, \"copy_gbs\": {copy:.1}}}}}"
        );
    } else {
        println!(
            "{level:?}, {threads} threads, multiply-adds {peak:.1} GFLOP/s, copy {copy:.1} GB/s"
        );
    }
}
