//! Faults planted in kernels are found by the emulated device, and the same kernels without them
//! raise no alarm. `kernels/emulator/sanitize.sh` runs this too: the sanitizers find the rest.
#![cfg(feature = "emulator")]

use std::ffi::c_void;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use cotangent::cuda::{Arg, Gpu, Kernel, Pointer, set_thread_order};
use cotangent::{DType, Device, Error, Result};

/// Which sanitizer the kernels of this build run under.
const SANITIZER: &str = match option_env!("COTANGENT_SANITIZER") {
    Some(name) => name,
    None => "",
};

/// Thread orders: forward, reverse, two at random; with odd ones asynchronous copies are late.
const ORDERS: [u64; 4] = [0, 1, 6, 7];

/// How a fault shows.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Shows {
    /// The result is another one in these of the [`ORDERS`].
    Result([bool; 4]),
    /// The launch is an error that says so.
    Error(&'static str),
    /// A sanitizer ends the process; its report says so, and names kernel and line.
    Report(&'static str),
}

const NEVER: Shows = Shows::Result([false; 4]);
const ALWAYS: Shows = Shows::Result([true; 4]);
const OUT_OF_ORDER: Shows = Shows::Result([false, true, true, true]);
const LATE_COPIES: Shows = Shows::Result([false, true, false, true]);
const ILLEGAL: Shows = Shows::Error("illegal access to address");
const RACE: Shows = Shows::Report("data race");

/// A fault of `kernels/emulator/planted.cu` and how it shows in the plain build, under
/// AddressSanitizer with UBSan, and under ThreadSanitizer.
const FAULTS: &[(&str, Shows, Shows, Shows)] = &[("missing_barrier", ALWAYS, ALWAYS, RACE)];

unsafe extern "C" {
    fn emu_malloc(bytes: usize) -> *mut c_void;
    fn emu_free(address: *mut c_void);
}

/// Numbers on the emulated device, in memory of exactly their size that nobody used before.
struct Numbers(*mut f32, usize);

impl Numbers {
    fn new(len: usize) -> Self {
        // SAFETY: a plain allocation
        Numbers(unsafe { emu_malloc(4 * len) }.cast(), len)
    }

    fn get(&mut self) -> &mut [f32] {
        // SAFETY: ours, of that many floats, every bit pattern of which is a float
        unsafe { std::slice::from_raw_parts_mut(self.0, self.1) }
    }

    fn pointer(&self, gpu: Gpu) -> Pointer {
        Pointer {
            address: self.0 as u64,
            dtype: DType::F32,
            gpu: Some(gpu),
        }
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        // SAFETY: from `emu_malloc`, once
        unsafe { emu_free(self.0.cast()) }
    }
}

/// An emulated device of its own: a kernel's fault loses the device.
fn fresh_device() -> Gpu {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    Gpu::Emulated(NEXT.fetch_add(1, Ordering::Relaxed))
}

fn kernel(name: String) -> &'static Kernel {
    Box::leak(Box::new(Kernel::new(name.leak())))
}

/// y of the kernel for x = 0, 1, 2...
fn launch(name: &str, threads: u32, order: u64) -> Result<Vec<f32>> {
    let gpu = fresh_device();
    gpu.synchronize()?;
    let blocks = if name.starts_with("overlapping_blocks") {
        4
    } else {
        1
    };
    let n = blocks * threads;
    let (mut x, mut y) = (Numbers::new(n as usize), Numbers::new(n as usize));
    for (i, x) in x.get().iter_mut().enumerate() {
        *x = i as f32;
    }
    set_thread_order(order);
    let args = [
        Arg::In(x.pointer(gpu)),
        Arg::Out(y.pointer(gpu)),
        Arg::I32(n as i32),
    ];
    let shared = if name.starts_with("past_dynamic") {
        4 * n
    } else {
        0
    };
    gpu.launch(
        kernel(name.into()),
        [blocks, 1, 1],
        [threads, 1, 1],
        shared,
        &args,
    )?;
    Ok(y.get().to_vec())
}

/// The same bits.
fn same(a: &[f32], b: &[f32]) -> bool {
    a.iter()
        .map(|x| x.to_bits())
        .eq(b.iter().map(|x| x.to_bits()))
}

/// How the fault shows in this process.
fn shows(name: &str, right: &[f32]) -> std::result::Result<Shows, String> {
    let mut differs = [false; 4];
    for (order, differs) in ORDERS.into_iter().zip(&mut differs) {
        let y = launch(&format!("{name}_wrong"), 64, order).map_err(|e| e.to_string())?;
        *differs = !same(&y, right);
    }
    Ok(Shows::Result(differs))
}

#[test]
fn survey() {
    if let Ok(name) = std::env::var("PLANTED") {
        eprintln!(
            "OUT {name} {:?}",
            shows(&name, &launch(&format!("{name}_right"), 64, 0).unwrap())
        );
        return;
    }
    for name in std::fs::read_to_string("kernels/emulator/planted.cu")
        .unwrap()
        .lines()
        .filter_map(|l| l.strip_prefix("TWINS(")?.strip_suffix(")"))
    {
        for o in ORDERS {
            let a = launch(&format!("{name}_right"), 64, o).unwrap();
            assert!(same(&a, &launch(&format!("{name}_right"), 64, 0).unwrap()));
            assert!(a.iter().all(|a| !a.is_nan()));
        }
        let out = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "survey", "--nocapture"])
            .env("PLANTED", name)
            .output()
            .unwrap();
        let e = String::from_utf8_lossy(&out.stderr);
        println!(
            "{name} {:?}\n{}",
            out.status.code(),
            e.lines()
                .filter(|l| l.contains("OUT")
                    || l.contains("ERROR")
                    || l.contains("WARN")
                    || l.contains("runtime")
                    || l.contains("planted.cu")
                    || l.contains("kernel")
                    || l.contains("Sanit"))
                .take(8)
                .collect::<Vec<_>>()
                .join("\n")
        );
    }
}
