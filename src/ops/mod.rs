//! The ops: one file a family, each with formula, shape rule, forward, backward and cases.

pub mod batch_norm;
pub mod binary;
pub mod check;
pub mod dropout;
pub mod layer_norm;
pub mod layout;
pub mod loss;
pub mod pool2d;
pub mod softmax;
pub mod unary;

pub use batch_norm::BatchNorm;
pub use check::{Case, gradcheck, gradcheck_at};
pub use loss::{CrossEntropy, Reduction, accuracy};

/// Every op's cases, from each op's file.
pub fn all_cases() -> impl Iterator<Item = &'static Case> {
    [
        unary::CASES,
        unary::MORE_CASES,
        binary::CASES,
        binary::MORE_CASES,
        layout::CASES,
        batch_norm::CASES,
        pool2d::CASES,
        pool2d::MORE_CASES,
        layer_norm::CASES,
        dropout::CASES,
        softmax::CASES,
        loss::CASES,
        loss::MORE_CASES,
    ]
    .into_iter()
    .flatten()
}
