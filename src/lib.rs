//! Cotangent: a from-scratch tensor and reverse-mode autograd engine.
#[doc(hidden)]
pub mod cpu;
pub mod dtype;
pub mod error;
pub mod random;
pub mod shape;
pub use dtype::DType;
pub use error::{Error, Result};
