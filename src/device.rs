//! Devices: where a tensor's elements lie and where its ops run.

use crate::cuda;
use crate::error::{Error, Result};

/// Where a tensor lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Device {
    /// Main memory, and all cores of the rayon pool.
    #[default]
    Cpu,
}

impl Device {
    /// The CUDA device of this ordinal; [`Error::NoCuda`] says what is missing.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        let found = cuda::probe()?;
        let why = if ordinal >= found.devices.len() {
            format!(
                "ordinal {ordinal} was asked for, the driver shows {}",
                found.devices.len()
            )
        } else {
            format!(
                "the driver (CUDA {}) and {} are there, but this version has no CUDA kernels",
                found.version, found.devices[ordinal]
            )
        };
        Err(Error::NoCuda { why })
    }

    /// From `cpu`, `cuda` or `cuda:1`, as a command line gives it.
    pub fn parse(name: &str) -> Result<Self> {
        match name.split_once(':').unwrap_or((name, "0")) {
            ("cpu", "0") => Ok(Device::Cpu),
            ("cuda", n) if n.parse::<usize>().is_ok() => Self::cuda(n.parse().unwrap_or(0)),
            _ => Err(Error::config(
                "device",
                format!("expected cpu, cuda or cuda:N, got {name}"),
            )),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
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
        assert!(matches!(Device::cuda(99), Err(Error::NoCuda { .. })));
    }
}
