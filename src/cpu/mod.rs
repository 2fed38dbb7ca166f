//! CPU code that ops share: strided loops.

pub mod strided;
