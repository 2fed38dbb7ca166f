//! Faults planted in kernels are found by the emulated device, and the same kernels without them
//! raise no alarm. `kernels/emulator/sanitize.sh` runs this too: the sanitizers find the rest.
#![cfg(feature = "emulator")]

use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use cotangent::cuda::{
    Arg, Gpu, Kernel, Pointer, emulated_free, emulated_malloc, set_thread_order,
};
use cotangent::{DType, Result};

/// Which sanitizer the kernels run under, if any.
fn sanitizer() -> String {
    std::env::var("COTANGENT_SANITIZER").unwrap_or_default()
}

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
    /// The process dies without a word.
    Crash,
}

const NEVER: Shows = Shows::Result([false; 4]);
const ALWAYS: Shows = Shows::Result([true; 4]);
const LATE_COPIES: Shows = Shows::Result([false, true, false, true]);
const NOT_IN_REVERSE: Shows = Shows::Result([true, false, true, true]);
const ILLEGAL: Shows = Shows::Error("illegal access to address");
const MISALIGNED: Shows = Shows::Error("access to a misaligned or impossible address");
const DIVERGENT: Shows = Shows::Error("divergent __syncthreads");
const RETURNED: Shows =
    Shows::Error("this thread returned while 63 other(s) wait in __syncthreads");
const STACK: Shows = Shows::Error("this thread's stack overflowed");
const RACE: Shows = Shows::Report("data race");
const SEGV: Shows = Shows::Report("SEGV on unknown address");
const BOUNDS: Shows = Shows::Report("index 64 out of bounds for type 'float [64]'");
const ALIGNMENT: Shows = Shows::Report("misaligned address");
const DEPTH: Shows = Shows::Report("stack-overflow");
const HEAP: Shows = Shows::Report("heap-buffer-overflow");

/// A fault of `kernels/emulator/planted.cu` and how it shows in the plain build, under
/// AddressSanitizer with UBSan, and under ThreadSanitizer.
#[rustfmt::skip]
const FAULTS: &[(&str, Shows, Shows, Shows)] = &[
    ("missing_barrier",      ALWAYS,         ALWAYS,         RACE),
    ("missing_loop_barrier", ALWAYS,         ALWAYS,         RACE),
    ("race_of_equals",       NEVER,          NEVER,          RACE),
    ("lost_update",          NEVER,          NEVER,          RACE),
    ("missing_syncwarp",     ALWAYS,         ALWAYS,         RACE),
    ("missing_copy_wait",    LATE_COPIES,    LATE_COPIES,    LATE_COPIES),
    ("wait_without_barrier", ALWAYS,         ALWAYS,         RACE),
    ("read_past_end",        ILLEGAL,        HEAP,           SEGV),
    ("write_past_end",       ILLEGAL,        HEAP,           SEGV),
    ("wild_index",           ILLEGAL,        SEGV,           SEGV),
    ("past_static_shared",   NEVER,          BOUNDS,         NEVER),
    ("past_dynamic_shared",  ILLEGAL,        SEGV,           SEGV),
    ("misaligned_float4",    MISALIGNED,     ALIGNMENT,      SEGV),
    ("divergent_barrier",    DIVERGENT,      DIVERGENT,      DIVERGENT),
    ("early_return",         RETURNED,       RETURNED,       RETURNED),
    ("lane_left_out",        DIVERGENT,      DIVERGENT,      DIVERGENT),
    ("unwritten_shared",     ALWAYS,         ALWAYS,         ALWAYS),
    ("unwritten_output",     ALWAYS,         ALWAYS,         ALWAYS),
    ("overlapping_blocks",   NOT_IN_REVERSE, NOT_IN_REVERSE, NOT_IN_REVERSE),
    ("huge_local_array",     STACK,          DEPTH,          Shows::Crash),
];

/// Numbers on the emulated device, in memory of exactly their size that nobody used before.
struct Numbers(*mut f32, usize);

impl Numbers {
    fn new(len: usize) -> Self {
        let memory = emulated_malloc(4 * len).expect("a device");
        Numbers(memory.cast(), len)
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
        // SAFETY: from `emulated_malloc`, once
        unsafe { emulated_free(self.0.cast()) }
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

/// The environment variable that names the one kernel to run.
const ONE: &str = "COTANGENT_PLANTED";

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

/// How the fault shows in this process, if a sanitizer does not end it.
fn shows(name: &str, right: &[f32]) -> Result<Shows> {
    let mut differs = [false; 4];
    for (order, differs) in ORDERS.into_iter().zip(&mut differs) {
        *differs = !same(&launch(&format!("{name}_wrong"), 64, order)?, right);
    }
    Ok(Shows::Result(differs))
}

#[test]
fn kernels_without_faults_raise_no_alarm() {
    for (name, ..) in FAULTS {
        let name = format!("{name}_right");
        let first = launch(&name, 64, 0).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(first.iter().all(|y| !y.is_nan()), "{name}: {first:?}");
        for order in ORDERS {
            let y = launch(&name, 64, order).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(same(&y, &first), "{name}, order {order}: {y:?}");
        }
    }
}

#[test]
fn planted_faults_are_found() {
    // a sanitizer's report ends the process: this test runs itself again, for one kernel
    if let Ok(name) = std::env::var(ONE) {
        let right = launch(&format!("{name}_right"), 64, 0).expect("no fault");
        eprintln!("shown: {:?}", shows(&name, &right));
        return;
    }
    let mut missed = Vec::new();
    for &(name, plain, asan, tsan) in FAULTS {
        let expected = match sanitizer().as_str() {
            "asan" => asan,
            "tsan" => tsan,
            _ => plain,
        };
        let run = Command::new(std::env::current_exe().expect("it runs"))
            .args(["--exact", "planted_faults_are_found", "--nocapture"])
            .env(ONE, name)
            .output()
            .expect("it runs again");
        let said = String::from_utf8_lossy(&run.stderr);
        let found = match expected {
            Shows::Result(_) => run.status.success() && said.contains(&format!("{expected:?}")),
            Shows::Error(text) => {
                let kernel = format!("kernel {name}_wrong: ");
                let place = said.contains("[block (0,0,0) thread (");
                run.status.success() && said.contains(&(kernel + text)) && place
            }
            Shows::Crash => run.status.code().is_none(),
            Shows::Report(text) => {
                let place = said.contains(&format!("{name}_wrong")) && said.contains("planted.cu:");
                !run.status.success() && said.contains(text) && place
            }
        };
        if !found {
            missed.push(format!(
                "{name}: expected {expected:?}, got {}:\n{said}",
                run.status
            ));
        }
    }
    assert!(
        missed.is_empty(),
        "{} missed:\n{}",
        missed.len(),
        missed.join("\n")
    );
}

/// What a launch is refused for, with nothing run: the device is not lost.
#[test]
fn wrong_arguments_are_refused() {
    let gpu = fresh_device();
    let (x, mut y) = (Numbers::new(64), Numbers::new(64));
    let (input, output) = (Arg::In(x.pointer(gpu)), Arg::Out(y.pointer(gpu)));
    let doubles = Arg::In(Pointer {
        dtype: DType::F64,
        ..x.pointer(gpu)
    });
    let on_the_stack = [0f32; 64];
    let host = Arg::In(Pointer {
        address: on_the_stack.as_ptr() as u64,
        ..x.pointer(gpu)
    });
    let refused = |threads: u32, args: &[Arg], why: &str| {
        let kernel = kernel("read_past_end_right".into());
        let error = gpu.launch(kernel, [1, 1, 1], [threads, 1, 1], 0, args);
        let error = error.expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
    };
    let n = Arg::I32(64);
    refused(
        64,
        &[output, input, n],
        "launched with (f32*, const f32*, int)",
    );
    refused(
        64,
        &[input, input, n],
        "launched with (const f32*, const f32*, int)",
    );
    refused(
        64,
        &[doubles, output, n],
        "launched with (const f64*, f32*, int)",
    );
    refused(
        64,
        &[input, output, Arg::F32(64.0)],
        "launched with (const f32*, f32*, float)",
    );
    refused(
        64,
        &[input, output, Arg::U32(64)],
        "launched with (const f32*, f32*, unsigned)",
    );
    refused(64, &[input, output], "launched with (const f32*, f32*)");
    refused(
        512,
        &[input, output, n],
        "512 threads exceed its bound of 256",
    );
    refused(64, &[host, output, n], "does not point into device memory");
    assert!(y.get().iter().all(|y| y.is_nan()), "something ran");
    gpu.synchronize().expect("the device is not lost");
}

/// Buffers end on a multiple of 16 bytes; what lies between is watched.
#[test]
fn writing_into_the_gap_behind_a_buffer_is_found() {
    if sanitizer() == "asan" {
        return; // its buffers have no gap
    }
    let error = launch("write_past_end_wrong", 61, 0)
        .expect_err("a write past the end")
        .to_string();
    assert!(
        error.contains("wrote past the end of argument 1"),
        "{error}"
    );
}

/// An error on one device is that device's: it stays lost, another works.
#[test]
fn a_fault_loses_its_device() {
    if !sanitizer().is_empty() {
        return; // it ends the process
    }
    let (bad, good) = (fresh_device(), fresh_device());
    let (x, y) = (Numbers::new(64), Numbers::new(64));
    let wrong = kernel("early_return_wrong".into());
    let on = |gpu, kernel| {
        let args = [
            Arg::In(x.pointer(gpu)),
            Arg::Out(y.pointer(gpu)),
            Arg::I32(64),
        ];
        gpu.launch(kernel, [1, 1, 1], [64, 1, 1], 0, &args)
    };
    on(bad, wrong).expect_err("it faults");
    let right = kernel("early_return_right".into());
    on(bad, right).expect_err("the device is lost");
    on(good, right).expect("another device works");
}
