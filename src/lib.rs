//! Cotangent: a from-scratch tensor and reverse-mode autograd engine.

pub mod autograd;
#[doc(hidden)]
pub mod cpu;
pub mod cuda;
pub mod data;
pub mod device;
pub mod dtype;
pub mod error;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod random;
pub mod shape;
pub mod storage;
pub mod tensor;
pub mod train;

pub use device::Device;
pub use dtype::DType;
pub use error::{Error, Result};
pub use tensor::Tensor;
