//! CUDA: looking for a driver. cudarc opens libcuda at run time; nothing is linked.

pub mod ptx;

use cudarc::driver::{result, sys};

use crate::error::{Error, Result};

/// What the driver shows.
#[derive(Debug)]
pub struct Found {
    /// The newest CUDA version that the driver knows, `12.4`.
    pub version: String,
    /// The devices' names, by ordinal.
    pub devices: Vec<String>,
}

/// Look for a driver and its devices; [`Error::NoCuda`] says what is missing.
pub fn probe() -> Result<Found> {
    // SAFETY: only tries to open the library; cudarc's other calls panic where it is missing
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoCuda {
            why: "no NVIDIA driver (libcuda was not found)".into(),
        });
    }
    let no = |what: &'static str| {
        move |e: result::DriverError| Error::NoCuda {
            why: format!("{what}: {e}"),
        }
    };
    result::init().map_err(no("the driver does not start"))?;
    let mut version = 0;
    // SAFETY: the driver is initialized; it writes one integer
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(no("no driver version"))?;
    let count = result::device::get_count().map_err(no("no device count"))?;
    let devices = (0..count)
        .map(|i| result::device::get(i).and_then(result::device::get_name))
        .collect::<std::result::Result<_, _>>()
        .map_err(no("a device has no name"))?;
    Ok(Found {
        version: format!("{}.{}", version / 1000, version % 1000 / 10),
        devices,
    })
}
