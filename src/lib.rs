//! Cotangent: a from-scratch tensor and reverse-mode autograd engine that trains convolutional
//! image classifiers.
//!
//! ```
//! use cotangent::{DType, Tensor};
//!
//! let x = Tensor::from_vec(vec![1f64, 2.0, 3.0], [3])?.requires_grad();
//! let loss = x.square()?.sum_all()?;
//! let grads = loss.backward()?;
//! assert_eq!(grads.get(&x).unwrap().to_vec::<f64>()?, [2.0, 4.0, 6.0]);
//! # Ok::<(), cotangent::Error>(())
//! ```
//!
//! The rooms, from the ground up: [`shape`], [`dtype`], [`random`]; [`storage`], [`device`];
//! [`tensor`], [`autograd`]; [`ops`]; [`nn`], [`optim`], [`data`]; [`models`]; [`train`].
//! `ARCHITECTURE.md` says why they lie so.

pub mod autograd;
#[doc(hidden)]
pub mod cpu;
pub mod cuda;
pub mod data;
pub mod device;
pub mod dtype;
pub mod error;
pub mod files;
pub mod level;
pub mod memory;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod random;
pub mod shape;
pub mod storage;
pub mod tensor;
pub mod train;
pub(crate) mod workers;

pub use device::Device;
pub use dtype::DType;
pub use error::{Error, Result};
pub use tensor::Tensor;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
