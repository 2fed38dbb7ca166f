//! Devices: where a tensor's elements lie and where its ops run.

use crate::cuda::{self, Gpu};
use crate::error::{Error, Result};

/// Where a tensor lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Device {
    /// Main memory, and all threads of `cpu::set_num_threads`.
    #[default]
    Cpu,
    /// A GPU, real or emulated. Made by [`Device::cuda`] and [`Device::cuda_emulated`].
    Cuda(Gpu),
}

impl Device {
    /// The CUDA device of this ordinal. [`Error::NoCuda`] says what is missing: a driver, a new
    /// enough one, a card, a new enough one.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        let found = cuda::probe()?;
        let n = found.devices.len();
        match u8::try_from(ordinal) {
            Ok(small) if ordinal < n => Self::open(Gpu::Real(small)),
            _ => Err(Error::NoCuda {
                why: format!("ordinal {ordinal} was asked for, the driver shows {n}"),
            }),
        }
    }

    /// The CPU in a GPU's place: the same kernels and the same host code, slowly. An
    /// [`Error::NoCuda`] without the feature `emulator`.
    pub fn cuda_emulated() -> Result<Self> {
        Self::cuda_emulated_nth(0)
    }

    /// One of several emulated devices, each with its own memory and its own faults.
    pub fn cuda_emulated_nth(n: u8) -> Result<Self> {
        Self::open(Gpu::Emulated(n))
    }

    fn open(gpu: Gpu) -> Result<Self> {
        gpu.open()?;
        Ok(Device::Cuda(gpu))
    }

    /// From `cpu`, `cuda`, `cuda:1` or `cuda_emulated`, as a command line gives it.
    pub fn parse(name: &str) -> Result<Self> {
        match name.split_once(':').unwrap_or((name, "0")) {
            ("cpu", "0") => Ok(Device::Cpu),
            ("cuda_emulated", "0") => Self::cuda_emulated(),
            ("cuda", n) if n.parse::<usize>().is_ok() => Self::cuda(n.parse().unwrap_or(0)),
            _ => Err(Error::config(
                "device",
                format!("expected cpu, cuda, cuda:N or cuda_emulated, got {name}"),
            )),
        }
    }

    /// What its maker calls it.
    pub fn describe(&self) -> Result<String> {
        match self {
            Device::Cpu => Ok("CPU".into()),
            Device::Cuda(gpu) => gpu.name(),
        }
    }

    /// Wait for all work on the device; on the CPU there is never any under way.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(gpu) => gpu.synchronize(),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(gpu) => gpu.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(Device::parse("cpu").unwrap(), Device::Cpu);
        for bad in ["gpu", "cuda:x", "cpu:1", ""] {
            assert!(
                matches!(Device::parse(bad), Err(Error::Config { key: "device", .. })),
                "{bad}"
            );
        }
        // with or without a driver, an ordinal that no machine has is a typed error
        for n in [99, 300] {
            assert!(matches!(Device::cuda(n), Err(Error::NoCuda { .. })));
        }
    }
}
