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

/// Starts the CPU's workers, of which the calling thread is one: its ops begin at once, where another
/// thread would hand each of them over to a worker and sleep until that wakes it. For the first line
/// of a program's `main`; a library leaves it to the program, since there is one such thread.
///
/// `threads` is how many in all, by default `$RAYON_NUM_THREADS` or the cores. A worker that is alone
/// stays a thread of its own: a data loader's thread needs one that does not wait for its images. An
/// [`Error::Config`] where the number is 0, or the workers have started already and are as many as
/// somebody else said.
pub fn use_current_thread(threads: Option<usize>) -> Result<()> {
    let asked = threads;
    if asked == Some(0) {
        return Err(Error::config("threads", "0, expected at least 1"));
    }
    let from_env = || std::env::var("RAYON_NUM_THREADS").ok()?.parse().ok();
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = asked.or_else(from_env).filter(|n| *n > 0);
    let threads = threads.unwrap_or_else(cores);
    let mut pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    if threads > 1 {
        pool = pool.use_current_thread();
    }
    match (pool.build_global(), asked) {
        (Err(e), Some(n)) if rayon::current_num_threads() != n => {
            Err(Error::config("threads", format!("{n}: {e}")))
        }
        _ => Ok(()),
    }
}
