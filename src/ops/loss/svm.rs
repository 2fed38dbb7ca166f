//! The multi-class hinge loss, by which a support vector machine learns.

use crate::autograd::{Op, apply};
use crate::cpu::strided::rows;
use crate::cuda::kernels;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::Formula;
use crate::ops::check::{Case, Input};
use crate::ops::loss::{Reduction, Rows, labels, sizes};
use crate::ops::precision::widened;
use crate::shape::Layout;
use crate::tensor::Tensor;
use crate::with_real;

const NAME: &str = "svm_loss";

kernels! {
    /// A team a sample.
    FORWARD = "svm_loss" [F32, F64];
    /// A team a sample.
    BACKWARD = "svm_loss_backward" [F32, F64];
}

/// loss = sum over wrong classes j of max(0, x_j - x_label + 1), the multi-class hinge of Weston
/// and Watkins (1999) as CS231n has it. Inputs logits, labels.
struct SvmLoss(Reduction);

impl Op<2> for SvmLoss {
    const NAME: &'static str = NAME;
    type Saved = (Tensor, Tensor);

    fn forward(&self, [x, target]: [&Tensor; 2]) -> Result<(Tensor, Self::Saved)> {
        if let Device::Cuda(gpu) = x.device() {
            sizes(NAME, x, target)?;
            let (rows, target) = (Rows::new(NAME, gpu, x)?, target.packed()?);
            let losses = rows.empty(&[rows.n])?;
            let tensors = [target.input(), losses.output()];
            rows.launch(&FORWARD, &tensors, &rows.fault(NAME)?)?;
            return Ok((self.0.apply(losses)?, (rows.logits, target)));
        }
        let labels = labels(NAME, x, target, None)?;
        let (x, c) = (x.packed()?, x.shape()[1]);
        with_real!(NAME, x.dtype(), T => {
            let v = x.dense_slice::<T>(NAME)?;
            let losses = labels.iter().enumerate().map(|(r, &label)| {
                let x = &v[r * c..][..c];
                let hinge = |&x_j: &T| Real::nan_max(x_j - x[label as usize] + T::ONE, T::ZERO);
                // the label's own term is max(0, 1)
                x.iter().map(hinge).sum::<T>() - T::ONE
            });
            let losses = Tensor::from_vec(losses.collect::<Vec<T>>(), labels.len())?;
            Ok((self.0.apply(losses)?, (x.clone(), target.clone())))
        })
    }

    /// dx_j = dy where class j costs something; at the label minus their sum.
    fn backward(
        &self,
        (x, target): Self::Saved,
        dy: Tensor,
        _: [bool; 2],
    ) -> Result<[Option<Tensor>; 2]> {
        let [n, c] = sizes(NAME, &x, &target)?;
        let scale = self.0.scale(n);
        if let Device::Cuda(gpu) = x.device() {
            let rows = Rows::new(NAME, gpu, &x)?;
            let (dy, dx) = (dy.packed()?, rows.empty(&[n, c])?);
            let tensors = [target.input(), dy.input(), dx.output()];
            rows.launch(&BACKWARD, &tensors, &self.0.spread_args(scale))?;
            return Ok([Some(dx), None]);
        }
        let labels = target.to_vec::<i64>()?;
        let dx = with_real!(NAME, x.dtype(), T => {
            let v = x.dense_slice::<T>(NAME)?;
            let g = self.0.spread::<T>(&dy, scale)?;
            Tensor::build::<T>(Layout::contiguous(*x.shape()), x.device(), |dx| {
                rows(dx, c, c, |dx, r| {
                    let (x, label, g) = (&v[r * c..][..c], labels[r] as usize, g(r));
                    for (dx, &x_j) in dx.iter_mut().zip(x) {
                        *dx = if x_j - x[label] + T::ONE > T::ZERO { g } else { T::ZERO };
                    }
                    dx[label] = T::ZERO;
                    dx[label] = -dx.iter().copied().sum::<T>();
                })
            })
        })?;
        Ok([Some(dx), None])
    }
}

impl Tensor {
    /// The multi-class hinge loss of logits (N, C) and I64 labels (N) with margin 1: a scalar,
    /// the mean over the samples.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let scores = Tensor::from_vec(vec![3.0f32, 2.5, 0.0], [1, 3])?;
    /// assert_eq!(scores.svm_loss(&Tensor::from_vec(vec![0i64], [1])?)?.item()?, 0.5);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn svm_loss(&self, labels: &Tensor) -> Result<Tensor> {
        self.svm_loss_reduced(labels, Reduction::Mean)
    }

    /// [`Tensor::svm_loss`] with another reduction: by [`Reduction::None`] the samples' losses (N).
    pub fn svm_loss_reduced(&self, labels: &Tensor, reduction: Reduction) -> Result<Tensor> {
        apply(SvmLoss(reduction), [&widened(self)?, labels])
    }
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[(NAME, "sum over j != label of max(0, x_j - x_label + 1)")];

macro_rules! cases {
    ($($name:literal $n:literal $c:literal $reduction:ident;)*) => {
        &[$(Case { op: NAME, name: $name, inputs: &[Input::Normal(&[$n, $c]), Input::Index(&[$n], $c)],
            run: |x| x[0].svm_loss_reduced(&x[1], Reduction::$reduction) }),*]
    };
}

/// Reductions, degenerate sizes.
pub const CASES: &[Case] = cases! {
    "(5, 7)" 5 7 Mean;
    "sum" 5 7 Sum;
    "none" 5 7 None;
    "one sample" 1 10 Mean;
    "one class" 3 1 Sum;
    "sum of no samples" 0 3 Sum;
};

/// Several teams, rows of several stretches.
pub const LARGE: &[Case] = cases! {
    "rows of 200" 37 200 Mean;
    "rows of 200, none" 37 200 None;
    "rows of 8500" 2 8500 Mean;
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reductions_agree_and_the_default_is_the_mean() -> Result<()> {
        let x = Tensor::from_vec(vec![3f64, 2.5, 0.0, 1.0, 1.0, 4.0], [2, 3])?;
        let t = Tensor::from_vec(vec![0i64, 1], [2])?;
        let none = x.svm_loss_reduced(&t, Reduction::None)?;
        assert_eq!(none.to_vec::<f64>()?, [0.5, 5.0]);
        assert_eq!(x.svm_loss_reduced(&t, Reduction::Sum)?.item()?, 5.5);
        assert_eq!(x.svm_loss(&t)?.item()?, 2.75);
        Ok(())
    }
}
