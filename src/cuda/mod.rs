//! CUDA: kernels written by hand, on a GPU through its driver or on an emulated one.
//!
//! From the ground up: `driver` is what a device must be able to do, and two can: `real` (libcuda
//! through cudarc, opened at run time; nothing is linked) and `emulated` (the same kernels
//! compiled as C++ for the CPU; feature `emulator`). `context` owns a device: its memory, its one
//! stream, its captured graphs. `kernel` names kernels and their arguments; ops launch them.

pub(crate) mod columns;
mod context;
mod driver;
#[cfg(feature = "emulator")]
mod emulated;
pub(crate) mod gemm;
mod kernel;
pub mod ptx;
mod real;

pub use context::{Buffer, Event, Graph, op_number};
pub use driver::{Arg, Pointer};
pub use kernel::{Kernel, Kernels, Walk, blocks};
pub use real::{Found, probe};

#[cfg(feature = "emulator")]
pub use emulated::{emulated_free, emulated_malloc, set_thread_order};
pub(crate) use kernel::{float_kernels, kernels};

use crate::error::Result;
use crate::memory::MemoryStats;

/// A CUDA device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Gpu {
    /// The driver's device of this ordinal.
    Real(u8),
    /// The CPU in a GPU's place. Each number is a device of its own, with its own memory.
    Emulated(u8),
}

impl std::fmt::Display for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Gpu::Real(n) => write!(f, "cuda:{n}"),
            Gpu::Emulated(0) => f.write_str("cuda_emulated"),
            Gpu::Emulated(n) => write!(f, "cuda_emulated:{n}"),
        }
    }
}

/// What a user asks of a device; launching is in `kernel.rs`, capture in `context.rs`.
impl Gpu {
    /// The device's name, as its maker calls it.
    pub fn name(self) -> Result<String> {
        self.with(|s| Ok(s.driver.name()))
    }

    /// Wait for all work on the device. Errors of that work arrive here.
    pub fn synchronize(self) -> Result<()> {
        self.with(|s| s.synchronize())
    }

    /// The allocator's counters.
    pub fn memory_stats(self) -> Result<MemoryStats> {
        self.with_alive_or_dead(|s| Ok(s.memory.stats))
    }

    /// Start counting the peak anew from what is in use now.
    pub fn reset_peak(self) -> Result<()> {
        self.with_alive_or_dead(|s| {
            s.memory.stats.peak_bytes = s.memory.stats.live_bytes;
            Ok(())
        })
    }

    /// Use at most so many bytes of the device's memory, live and held together.
    pub fn set_memory_limit(self, bytes: usize) -> Result<()> {
        self.with(|s| {
            s.memory.limit = bytes;
            Ok(())
        })
    }

    /// Give the memory that is held for reuse back to the driver.
    pub fn empty_cache(self) -> Result<()> {
        self.with(|s| s.empty_cache())
    }
}
