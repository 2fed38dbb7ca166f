//! CPU code that ops share: strided loops, and the compute-heavy kernels on raw slices.

pub mod conv;
mod depthwise;
pub mod gather;
pub mod gemm;
mod micro;
pub mod rows;
mod scratch;
pub mod simd;
pub mod strided;
mod winograd;

pub use micro::Kernel;
