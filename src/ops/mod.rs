//! The ops: one file a family, each with formula, shape rule, forward, backward and cases.

pub mod batch_norm;
pub mod binary;
pub mod check;
pub mod layout;
pub mod unary;

pub use batch_norm::BatchNorm;
pub use check::{Case, gradcheck, gradcheck_at};

/// Every op's cases, from each op's file.
pub fn all_cases() -> impl Iterator<Item = &'static Case> {
    [
        unary::CASES,
        unary::MORE_CASES,
        binary::CASES,
        binary::MORE_CASES,
        layout::CASES,
        batch_norm::CASES,
    ]
    .into_iter()
    .flatten()
}
