//! CPU code that ops share: strided loops, and the compute-heavy kernels on raw slices.

mod col2im;
pub mod conv;
mod depthwise;
pub mod gather;
pub mod gemm;
mod micro;
mod pack;
mod pass;
mod patches;
mod pointwise;
pub mod rows;
pub(crate) mod scratch;
pub mod simd;
mod slab;
mod slide;
mod small_maps;
pub mod strided;
mod winograd;

use crate::error::{Error, Result};

pub use micro::Kernel;

/// PyTorch's `set_num_threads`: how many threads the calling thread's ops run on, itself among them. By
/// default `$RAYON_NUM_THREADS`, or the cores.
///
/// They are workers of this thread alone, which stay awake from one op to the next: its ops begin at
/// once. A thread that has not called this hands its ops over to rayon's pool, and sleeps meanwhile. For
/// the first line of a program's `main`; a library leaves it to the program, whose cores the workers
/// take. rayon's pool, unless it is there already, is made as large, for what goes on beside the ops, as
/// a data loader does.
///
/// The number changes no result. An [`Error::Config`] where it is 0 or more than rayon knows, where the
/// system has no threads left, or where an op's task asks.
///
/// ```
/// use cotangent::cpu;
/// cpu::set_num_threads(Some(2))?;
/// assert_eq!(cpu::get_num_threads(), 2);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn set_num_threads(threads: Option<usize>) -> Result<()> {
    if threads == Some(0) {
        return Err(Error::config("threads", "0, expected at least 1"));
    }
    let from_env = || std::env::var("RAYON_NUM_THREADS").ok()?.parse().ok();
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.or_else(from_env).filter(|n| *n > 0);
    let threads = threads.unwrap_or_else(cores);
    crate::workers::start(threads)?;
    // it is somebody else's where it is there already
    let _ = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global();
    Ok(())
}

/// PyTorch's `get_num_threads`: how many threads the calling thread's ops run on
/// ([`set_num_threads`]).
pub fn get_num_threads() -> usize {
    crate::workers::count()
}
