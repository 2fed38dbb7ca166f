//! CPU code that ops share: strided loops, and the compute-heavy kernels on raw slices.

mod col2im;
pub mod conv;
mod depthwise;
pub mod gather;
pub mod gemm;
mod micro;
mod pack;
mod pass;
mod pointwise;
pub mod rows;
pub(crate) mod scratch;
pub mod simd;
mod slab;
mod slide;
pub mod strided;
mod winograd;

pub use micro::Kernel;

/// Makes the calling thread one of the CPU's workers: its ops begin at once, where another thread would
/// hand each of them over to a worker and sleep until that wakes it, some ten thousand times in a
/// second of small ops. For the first line of a program's `main`; it does nothing where the
/// workers have started already, or where there is one alone (a data loader's thread needs a
/// worker that is not waiting for its images).
pub fn use_current_thread() {
    let threads = std::env::var("RAYON_NUM_THREADS").ok();
    let threads = threads.and_then(|n| n.parse().ok()).filter(|n| *n > 0);
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.unwrap_or_else(cores);
    if threads > 1 {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        // an error says that the pool is there
        let _ = pool.use_current_thread().build_global();
    }
}
