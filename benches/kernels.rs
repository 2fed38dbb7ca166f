//! The speed of the CPU's kernels on all threads, beside the multiply-add peak of the same run.
//! `cargo bench --bench kernels [-- NAME]` runs those whose name contains NAME.
mod common;

use common::{best, peak};
use cotangent::cpu::conv::{self, ConvShape};
use cotangent::cpu::gemm::gemm;
use cotangent::cpu::simd;
use cotangent::shape::Window;
use rayon::prelude::*;

fn data(n: usize) -> Vec<f32> {
    (0..n)
        .into_par_iter()
        .map(|i| (i % 17) as f32 / 17.0 - 0.5)
        .collect()
}

struct Report {
    only: String,
    peak: f64,
}

impl Report {
    /// Time `f`, which does `macs` multiply-adds.
    fn case(&self, name: &str, macs: usize, f: impl FnMut()) {
        if !name.contains(&self.only) {
            return;
        }
        let seconds = best(0.25, f);
        let rate = 2.0 * macs as f64 / seconds / 1e9;
        let (ms, share) = (seconds * 1e3, 100.0 * rate / self.peak);
        println!("{name:44} {ms:9.3} ms {rate:8.1} GFLOP/s {share:5.0} % of peak");
    }
}

fn main() {
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let report = Report {
        only: only.unwrap_or_default(),
        peak: peak(),
    };
    let threads = rayon::current_num_threads();
    println!(
        "{:?}, {threads} threads, peak {:.1} GFLOP/s",
        simd::level(),
        report.peak
    );

    // (name, m, n, k, strides of A, strides of B)
    for (name, [m, n, k], a_strides, b_strides) in [
        ("gemm 1024", [1024, 1024, 1024], (1024, 1), (1024, 1)),
        (
            "linear forward 100x16384 -> 256",
            [100, 256, 16384],
            (16384, 1),
            (1, 16384),
        ),
        (
            "linear dx 100x256 -> 16384",
            [100, 16384, 256],
            (256, 1),
            (16384, 1),
        ),
        (
            "linear dw 256x100 -> 16384",
            [256, 16384, 100],
            (1, 256),
            (16384, 1),
        ),
        ("linear 100x256 -> 10", [100, 10, 256], (256, 1), (1, 256)),
        ("gemm 64", [64, 64, 64], (64, 1), (64, 1)),
    ] {
        let (a, b, mut c) = (data(m * k), data(k * n), data(m * n));
        report.case(name, m * n * k, || {
            gemm(m, n, k, &a, a_strides, &b, b_strides, &mut c, n, None);
        });
    }

    // (name, n, input channels, output channels, input size, kernel, stride, groups)
    for (name, n, ci, co, size, kernel, stride, groups) in [
        ("conv 3->32 3x3 @32 n100", 100, 3, 32, 32, 3, 1, 1),
        ("conv 32->64 3x3 @32 n100", 100, 32, 64, 32, 3, 1, 1),
        ("conv 3->32 7x7 @32 n100", 100, 3, 32, 32, 7, 1, 1),
        ("conv 64->64 3x3 @32 n32", 32, 64, 64, 32, 3, 1, 1),
        ("conv 256->256 3x3 @8 n32", 32, 256, 256, 8, 3, 1, 1),
        ("conv 512->512 3x3 @4 n32", 32, 512, 512, 4, 3, 1, 1),
        ("conv 128->128 1x1 @16 n32", 32, 128, 128, 16, 1, 1, 1),
        (
            "conv 64->128 3x3 stride 2 @32 n32",
            32,
            64,
            128,
            32,
            3,
            2,
            1,
        ),
        ("depthwise 96 7x7 @16 n32", 32, 96, 96, 16, 7, 1, 96),
        ("depthwise 64 3x3 @32 n32", 32, 64, 64, 32, 3, 1, 64),
    ] {
        let window = Window {
            stride: [stride; 2],
            padding: [kernel / 2; 2],
            ..Window::new([kernel; 2])
        };
        let out = usize::div_ceil(size, stride);
        let shape = ConvShape {
            n,
            h: size,
            w: size,
            ci,
            co,
            oh: out,
            ow: out,
            window,
            groups,
        };
        let (x, w, bias) = (data(shape.input()), data(shape.weight()), data(co));
        let dy = data(shape.output());
        let (mut dx, mut dw, mut y) = (x.clone(), w.clone(), dy.clone());
        let macs = shape.output() * shape.weight() / co;
        report.case(&format!("{name} forward"), macs, || {
            conv::forward(&shape, &x, &w, Some(&bias), &mut y);
        });
        report.case(&format!("{name} input grad"), macs, || {
            conv::input_grad(&shape, &dy, &w, &mut dx);
        });
        report.case(&format!("{name} weight grad"), macs, || {
            conv::weight_grad(&shape, &x, &dy, &mut dw);
        });
    }
}
