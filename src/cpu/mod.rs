//! CPU code that ops share: strided loops, and the compute-heavy kernels on raw slices.

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
