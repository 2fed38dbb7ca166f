//! The ops: one file a family, each with formula, shape rule, forward, backward and cases.
//!
// for rustdoc alone, so that a new row does not compile the crate anew
#![cfg_attr(doc, doc = include_str!("../../docs/OPS.md"))]

use crate::error::{Error, Result};
use crate::tensor::Tensor;

pub mod batch_norm;
pub mod binary;
pub mod check;
pub mod conv2d;
pub mod conv_transpose2d;
pub mod dropout;
pub mod eigh;
pub mod group_norm;
pub mod index;
pub mod interpolate;
pub mod layer_norm;
pub mod layout;
pub mod loss;
pub mod matmul;
pub mod pool2d;
pub(crate) mod precision;
pub mod reduce;
pub mod rrelu;
pub mod softmax;
pub mod unary;

pub use batch_norm::BatchNorm;
pub use check::{Case, gradcheck, gradcheck_at};
pub use interpolate::{Interpolation, Resize};
pub use loss::{CrossEntropy, Reduction, accuracy, correct, topk_accuracy, topk_correct};

/// Every op's cases, from each op's file.
pub fn all_cases() -> impl Iterator<Item = &'static Case> {
    [
        batch_norm::CASES,
        binary::CASES,
        binary::MORE_CASES,
        conv2d::CASES,
        conv2d::MORE_CASES,
        conv_transpose2d::CASES,
        dropout::CASES,
        group_norm::CASES,
        index::CASES,
        interpolate::CASES,
        layer_norm::CASES,
        layout::CASES,
        loss::cross_entropy::CASES,
        loss::cross_entropy::WEIGHTED,
        loss::cross_entropy::PROBABILITIES,
        loss::one_hot::CASES,
        loss::pairwise::CASES,
        loss::pairwise::WEIGHTED,
        loss::svm::CASES,
        matmul::CASES,
        pool2d::CASES,
        pool2d::MORE_CASES,
        pool2d::ADAPTIVE_CASES,
        reduce::CASES,
        reduce::MORE_CASES,
        rrelu::CASES,
        softmax::CASES,
        unary::CASES,
        unary::MORE_CASES,
    ]
    .into_iter()
    .flatten()
}

/// Cases that need sizes of several tiles with ragged edges: too large for a gradient check at
/// every element, compared between devices and dtypes instead.
pub fn large_cases() -> impl Iterator<Item = &'static Case> {
    [
        batch_norm::LARGE,
        binary::LARGE,
        conv2d::LARGE,
        conv2d::MORE_LARGE,
        conv_transpose2d::LARGE,
        dropout::LARGE,
        group_norm::LARGE,
        index::LARGE,
        interpolate::LARGE,
        layer_norm::LARGE,
        layout::LARGE,
        loss::cross_entropy::LARGE,
        loss::cross_entropy::WEIGHTED_LARGE,
        loss::cross_entropy::PROBABILITIES_LARGE,
        loss::one_hot::LARGE,
        loss::pairwise::LARGE,
        loss::svm::LARGE,
        matmul::LARGE,
        pool2d::LARGE,
        pool2d::MORE_LARGE,
        pool2d::ADAPTIVE_LARGE,
        reduce::LARGE,
        rrelu::LARGE,
        softmax::LARGE,
        unary::LARGE,
    ]
    .into_iter()
    .flatten()
}

/// An op of the case table and what it computes.
pub type Formula = (&'static str, &'static str);

/// What each op computes, in one line, from each op's file.
pub fn formulas() -> impl Iterator<Item = &'static Formula> {
    [
        batch_norm::FORMULAS,
        binary::FORMULAS,
        conv2d::FORMULAS,
        conv_transpose2d::FORMULAS,
        dropout::FORMULAS,
        group_norm::FORMULAS,
        index::FORMULAS,
        interpolate::FORMULAS,
        layer_norm::FORMULAS,
        layout::FORMULAS,
        loss::cross_entropy::FORMULAS,
        loss::one_hot::FORMULAS,
        loss::pairwise::FORMULAS,
        loss::svm::FORMULAS,
        matmul::FORMULAS,
        pool2d::FORMULAS,
        reduce::FORMULAS,
        rrelu::FORMULAS,
        softmax::FORMULAS,
        unary::FORMULAS,
    ]
    .into_iter()
    .flatten()
}

/// Kernels read every input as the first one's dtype.
pub(crate) fn one_dtype<const N: usize>(op: &'static str, inputs: [&Tensor; N]) -> Result<()> {
    match inputs.iter().find(|t| t.dtype() != inputs[0].dtype()) {
        Some(other) => Err(Error::DType {
            op,
            expected: "tensors of one dtype",
            got: other.dtype(),
        }),
        None => Ok(()),
    }
}
