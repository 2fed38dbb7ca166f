//! The speed of single kernels, beside the device's own rates of the same run:
//! `cargo bench --bench kernels -- [--device cpu|cuda|cuda:N] [--json] [--only SUBSTR]`.
mod common;
mod gpu;

use common::{Args, Rates, best};
use cotangent::cpu::conv::{self, ConvShape};
use cotangent::cpu::gemm::gemm;
use cotangent::shape::Window;
use cotangent::{DType, Device, Result};
use rayon::prelude::*;

/// Convolutions, with padding that keeps the size: images, channels in and out, size, kernel,
/// stride, groups.
const CONVS: &[[usize; 7]] = &[
    [100, 3, 32, 32, 3, 1, 1],
    [100, 32, 64, 32, 3, 1, 1],
    [100, 3, 32, 32, 7, 1, 1],
    [32, 64, 64, 32, 3, 1, 1],
    [32, 128, 128, 16, 3, 1, 1],
    [32, 256, 256, 8, 3, 1, 1],
    [32, 512, 512, 4, 3, 1, 1],
    [32, 128, 128, 16, 1, 1, 1],
    [32, 64, 128, 32, 3, 2, 1],
    [32, 3, 32, 32, 3, 2, 1],
    [32, 3, 32, 32, 4, 2, 1],
    [32, 32, 64, 16, 3, 2, 1],
    [32, 64, 128, 8, 3, 2, 1],
    [32, 64, 128, 8, 4, 2, 1],
    [32, 32, 64, 16, 4, 2, 1],
    [32, 256, 512, 8, 3, 2, 1],
    [32, 96, 192, 16, 2, 2, 1],
    [32, 192, 384, 8, 2, 2, 1],
    [32, 384, 768, 4, 2, 2, 1],
    [32, 3, 96, 64, 4, 4, 1],
    [32, 96, 96, 16, 7, 1, 96],
    [32, 192, 192, 8, 7, 1, 192],
    [32, 384, 384, 4, 7, 1, 384],
    [32, 768, 768, 2, 7, 1, 768],
    [32, 64, 64, 32, 3, 1, 64],
];

fn conv_name([n, ci, co, size, kernel, stride, groups]: [usize; 7]) -> String {
    let kind = if groups > 1 { "depthwise" } else { "conv" };
    let stride = match stride {
        1 => String::new(),
        s => format!(" stride {s}"),
    };
    format!("{kind} {ci}->{co} {kernel}x{kernel}{stride} @{size} n{n}")
}

fn same(kernel: usize, stride: usize) -> Window {
    Window {
        stride: [stride; 2],
        padding: [(kernel - 1) / 2; 2],
        ..Window::new([kernel; 2])
    }
}

/// What a kernel has to do at least.
#[derive(Clone, Copy)]
enum Work {
    /// Bytes of memory read and written.
    Bytes(usize),
    /// Multiply-adds.
    Macs(usize),
}

/// Where the rows go.
struct Report {
    args: Args,
    rates: Rates,
}

impl Report {
    fn wanted(&self, name: &str) -> bool {
        name.contains(&self.args.only)
    }

    fn row(&self, name: &str, dtype: DType, work: Work, seconds: f64) {
        let (rate, unit, best) = match work {
            Work::Bytes(n) => (n as f64 / seconds / 1e9, "GB/s", self.rates.copy),
            Work::Macs(n) => {
                let half = matches!(dtype, DType::BF16 | DType::F16);
                let best = [self.rates.f32, self.rates.bf16][half as usize];
                (2.0 * n as f64 / seconds / 1e12, "TFLOP/s", best)
            }
        };
        let (ms, share) = (seconds * 1e3, 100.0 * rate / best);
        if self.args.json {
            println!(
                "{{\"kernel\": \"{name}\", \"dtype\": \"{dtype}\", \"ms\": {ms:.4}, \"rate\": {rate:.4}, \"unit\": \"{unit}\", \"share\": {share:.1}, \"device\": \"{}\"}}",
                self.args.device
            );
        } else {
            println!("{name:44} {dtype:4} {ms:9.3} ms {rate:9.3} {unit:7} {share:5.0} %");
        }
    }
}

fn data(n: usize) -> Vec<f32> {
    (0..n)
        .into_par_iter()
        .map(|i| (i % 17) as f32 / 17.0 - 0.5)
        .collect()
}

/// The CPU's kernels on all threads.
fn cpu(report: &Report) {
    let case = |name: &str, macs: usize, f: &mut dyn FnMut()| {
        if report.wanted(name) {
            report.row(name, DType::F32, Work::Macs(macs), best(0.25, f));
        }
    };
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
        case(name, m * n * k, &mut || {
            gemm(
                m, n, k, &a, a_strides, &b, b_strides, &mut c, n, None, false,
            );
        });
    }

    // a block's two layers in each of ConvNeXt's stages, 64 pixels, 32 images: pixels, channels
    for [m, d] in [[8192, 96], [2048, 192], [512, 384], [128, 768]] {
        let e = 4 * d;
        for (name, [m, n, k], a_strides, b_strides) in [
            ("expand", [m, e, d], (d, 1), (1, d)),
            ("expand dx", [m, d, e], (e, 1), (d, 1)),
            ("expand dw", [e, d, m], (1, e), (d, 1)),
            ("reduce", [m, d, e], (e, 1), (1, e)),
            ("reduce dx", [m, e, d], (d, 1), (e, 1)),
            ("reduce dw", [d, e, m], (1, d), (e, 1)),
        ] {
            let (a, b, mut c) = (data(m * k), data(k * n), data(m * n));
            case(&format!("convnext {d} {name}"), m * n * k, &mut || {
                gemm(
                    m, n, k, &a, a_strides, &b, b_strides, &mut c, n, None, false,
                );
            });
        }
    }

    for &config in CONVS {
        let [n, ci, co, size, kernel, stride, groups] = config;
        let out = size / stride;
        let shape = ConvShape {
            n,
            h: size,
            w: size,
            ci,
            co,
            oh: out,
            ow: out,
            window: same(kernel, stride),
            groups,
        };
        let name = conv_name(config);
        let (x, w, bias) = (data(shape.input()), data(shape.weight()), data(co));
        let dy = data(shape.output());
        let (mut dx, mut dw, mut y) = (x.clone(), w.clone(), dy.clone());
        let macs = shape.output() * shape.weight() / co;
        case(&format!("{name} forward"), macs, &mut || {
            conv::forward(&shape, &x, &w, Some(&bias), false, &mut y);
        });
        case(&format!("{name} input grad"), macs, &mut || {
            conv::input_grad(&shape, &dy, &w, None, &mut dx);
        });
        case(&format!("{name} weight grad"), macs, &mut || {
            conv::weight_grad(&shape, &x, &dy, &mut dw);
        });
    }
}

fn main() {
    let all = || -> Result<()> {
        cotangent::cpu::set_num_threads(None)?;
        let args = Args::parse(&[])?;
        let rates = Rates::measure(args.device)?;
        rates.print(args.device, args.json)?;
        let report = Report { args, rates };
        match report.args.device {
            Device::Cpu => cpu(&report),
            _ => gpu::rows(&report)?,
        }
        Ok(())
    };
    common::finish(all());
}
