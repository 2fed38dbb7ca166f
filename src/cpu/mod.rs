//! Compute kernels of the CPU on raw slices: matrix products, convolutions, their gradients.
pub mod conv;
mod depthwise;
pub mod gemm;
mod micro;
mod scratch;
pub mod simd;

pub use micro::Kernel;
