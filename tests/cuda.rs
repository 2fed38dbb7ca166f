//! CUDA against the CPU: every row of the case table, forward and backward, in every float type, on
//! the emulated device with its threads in several orders, or on a real one where there is one.
//!
//! `COTANGENT_CASES=softmax,matmul` runs those ops alone. `GPU_REQUIRED=1` takes `cuda:0` and fails
//! without it.

use std::sync::Mutex;

use cotangent::autograd::Gradients;
use cotangent::ops::{Case, all_cases, large_cases};
use cotangent::{DType, Device, Result, Tensor, cuda};

/// The real device where one is required, else the emulated one; `None` where the build has none.
fn device() -> Option<Device> {
    match std::env::var_os("GPU_REQUIRED") {
        Some(_) => Some(Device::cuda(0).expect("GPU_REQUIRED is set")),
        None if cfg!(feature = "emulator") => Some(Device::cuda_emulated().unwrap()),
        None => {
            eprintln!("skipped: no emulated device (cargo feature `emulator`)");
            None
        }
    }
}

/// Thread orders: forward, reverse, and two at random, one with delayed copies. A GPU has its own.
/// The sanitizers see a race or a bad address in any of them, and are slow.
fn orders(device: Device) -> &'static [u64] {
    match device {
        Device::Cuda(cuda::Gpu::Emulated(_)) => match std::env::var_os("COTANGENT_SANITIZER") {
            Some(_) => &[7],
            None => &[0, 1, 6, 7],
        },
        _ => &[0],
    }
}

fn wanted(case: &Case) -> bool {
    std::env::var("COTANGENT_CASES").map_or(true, |names| names.split(',').any(|n| n == case.op))
}

/// An output and each input's gradient, as f64.
type Run = (Vec<f64>, Vec<Option<Vec<f64>>>);

/// The case on a device, its float inputs in `dtype`.
fn run(case: &Case, inputs: &[Tensor], dtype: DType, device: Device) -> Result<Run> {
    let leaves = inputs
        .iter()
        .map(|x| {
            let x = match x.dtype().is_float() {
                true => x.to_dtype(dtype)?,
                false => x.clone(),
            };
            Ok(x.to(device)?.requires_grad())
        })
        .collect::<Result<Vec<_>>>()?;
    let y = (case.run)(&leaves)?;
    assert_eq!(y.device(), device, "{case}: the output is elsewhere");
    let numbers = |t: &Tensor| t.to(Device::Cpu)?.to_dtype(DType::F64)?.to_vec::<f64>();
    let grads = if y.is_tracked() {
        let dy = Tensor::arange(0.0, y.numel() as f64, 1.0, DType::F64)?
            .cos()?
            .reshape(y.shape())?
            .to_dtype(y.dtype())?
            .to(device)?;
        y.backward_from(&dy)?
    } else {
        Gradients::default()
    };
    let found = leaves.iter().map(|l| grads.get(l).map(numbers).transpose());
    Ok((numbers(&y)?, found.collect::<Result<_>>()?))
}

fn close(a: &[f64], b: &[f64], tolerance: f64) -> std::result::Result<(), String> {
    if a.len() != b.len() {
        return Err(format!("{} and {} elements", a.len(), b.len()));
    }
    let scale = b
        .iter()
        .filter(|x| x.is_finite())
        .fold(1f64, |m, x| m.max(x.abs()));
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        // equal infinities are equal, and NaN is NaN
        if !(x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= tolerance * scale) {
            return Err(format!("element {i}: {x} but {y} on the CPU"));
        }
    }
    Ok(())
}

fn same(a: &Run, b: &Run, tolerance: f64) -> std::result::Result<(), String> {
    close(&a.0, &b.0, tolerance).map_err(|e| format!("output: {e}"))?;
    for (i, pair) in a.1.iter().zip(&b.1).enumerate() {
        match pair {
            (Some(x), Some(y)) => {
                close(x, y, tolerance).map_err(|e| format!("gradient {i}: {e}"))?
            }
            (None, None) => {}
            (x, _) => {
                let there = if x.is_some() {
                    "only on CUDA"
                } else {
                    "only on the CPU"
                };
                return Err(format!("gradient {i}: {there}"));
            }
        }
    }
    Ok(())
}

fn bits(r: &Run) -> Vec<u64> {
    let grads = r.1.iter().flatten().flatten();
    r.0.iter().chain(grads).map(|x| x.to_bits()).collect()
}

/// One case in one dtype against the CPU; all thread orders give the same bits.
fn compare(
    case: &Case,
    dtype: DType,
    tolerance: f64,
    device: Device,
) -> std::result::Result<(), String> {
    // the order is the whole process's
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let text = |e: cotangent::Error| e.to_string();
    let inputs = case.make(11).map_err(text)?;
    let cpu = run(case, &inputs, dtype, Device::Cpu).map_err(text)?;
    let mut first = None;
    for &order in orders(device) {
        #[cfg(feature = "emulator")]
        cuda::set_thread_order(order);
        let gpu = run(case, &inputs, dtype, device).map_err(|e| format!("order {order}: {e}"))?;
        same(&gpu, &cpu, tolerance).map_err(|e| format!("order {order}: {e}"))?;
        let bits = bits(&gpu);
        if *first.get_or_insert_with(|| bits.clone()) != bits {
            return Err(format!("order {order} gives other bits than order 0"));
        }
    }
    Ok(())
}

fn each(dtype: DType, tolerance: f64) {
    let Some(device) = device() else { return };
    let mut failed = Vec::new();
    let mut n = 0;
    for case in all_cases().chain(large_cases()).filter(|c| wanted(c)) {
        n += 1;
        if let Err(e) = compare(case, dtype, tolerance, device) {
            failed.push(format!("{case}: {e}"));
        }
    }
    assert!(n > 0, "no case is called so");
    assert!(
        failed.is_empty(),
        "{} of {n} cases in {dtype}:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

#[test]
fn f64_agrees() {
    each(DType::F64, 1e-10);
}

#[test]
fn f32_agrees() {
    each(DType::F32, 1e-4);
}

// 16-bit floats are rounded where an op ends; both devices round the same exact results but for
// the last bit, which later ops magnify
#[test]
fn bf16_agrees() {
    each(DType::BF16, 0.04);
}

#[test]
fn f16_agrees() {
    each(DType::F16, 0.005);
}

/// Comparisons have no gradient and so no row in the table.
#[test]
fn comparisons_agree_in_every_dtype() {
    let Some(device) = device() else { return };
    type Compare = fn(&Tensor, &Tensor) -> Result<Tensor>;
    let all: [(&str, Compare); 6] = [
        ("eq", Tensor::eq),
        ("ne", Tensor::ne),
        ("gt", Tensor::gt),
        ("ge", Tensor::ge),
        ("lt", Tensor::lt),
        ("le", Tensor::le),
    ];
    let whole = |dtype| {
        // several blocks of every size, a ragged end
        let x = Tensor::arange(0.0, 9001.0, 1.0, DType::F64)?;
        let (a, b) = (
            x.mul_scalar(0.37)?.sin()?.mul_scalar(3.0)?,
            x.mul_scalar(0.21)?.cos()?.mul_scalar(3.0)?,
        );
        let pair = [a, b].map(|t| t.to_dtype(DType::I64)?.to_dtype(dtype));
        let [a, b] = pair;
        Ok::<_, cotangent::Error>((a?, b?))
    };
    let dtypes = [
        DType::F32,
        DType::F64,
        DType::BF16,
        DType::F16,
        DType::I64,
        DType::U8,
    ];
    for dtype in dtypes {
        let (a, b) = whole(dtype).unwrap();
        for (name, compare) in all {
            let cpu = compare(&a, &b).unwrap().to_vec::<u8>().unwrap();
            let there = |t: &Tensor| t.to(device).unwrap();
            let gpu = compare(&there(&a), &there(&b)).unwrap();
            assert_eq!(gpu.to_vec::<u8>().unwrap(), cpu, "{name} of {dtype}");
            assert!(cpu.contains(&0) && cpu.contains(&1), "{name} of {dtype}");
        }
    }
}
