//! Labels as vectors with a single 1.

use crate::cuda::{self, Arg, kernels};
use crate::device::Device;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::ops::Formula;
use crate::ops::check::{Case, Input};
use crate::shape::{Layout, Shape};
use crate::tensor::Tensor;
use crate::with_element;

const NAME: &str = "one_hot";

kernels! {
    /// One thread an element.
    ONE_HOT = "one_hot" [F32, F64, BF16, F16, I64, U8];
}

impl Tensor {
    /// For I64 labels (..) a tensor (.., `num_classes`) of `dtype` that is 1 at each label and 0
    /// elsewhere. A label outside of the classes is an [`Error::Index`].
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let y = Tensor::from_vec(vec![2i64, 0], [2])?.one_hot(3, DType::F32)?;
    /// assert_eq!(y.to_vec::<f32>()?, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn one_hot(&self, num_classes: usize, dtype: DType) -> Result<Tensor> {
        if self.dtype() != DType::I64 {
            return Err(Error::DType {
                op: NAME,
                expected: "i64 labels",
                got: self.dtype(),
            });
        }
        if num_classes == 0 {
            let why = "num_classes is 0, expected at least 1";
            return Err(Error::argument(NAME, why));
        }
        let labels = self.packed()?;
        let dims = [&**self.shape(), &[num_classes]].concat();
        let layout = Layout::contiguous(Shape::new(&dims)?);
        if let Device::Cuda(gpu) = self.device() {
            let y = Tensor::empty(layout, dtype, self.device())?;
            let args = [
                labels.input(),
                y.output(),
                Arg::U32(y.numel() as u32),
                Arg::I32(num_classes as i32),
                gpu.fault()?,
                cuda::op_number(NAME),
            ];
            gpu.launch_over(ONE_HOT.of(dtype)?, y.numel(), 256, &args)?;
            return Ok(y);
        }
        let labels = labels.to_vec::<i64>()?;
        if let Some(&index) = labels.iter().find(|&&t| t < 0 || t as usize >= num_classes) {
            let size = num_classes;
            return Err(Error::Index {
                op: NAME,
                index,
                size,
            });
        }
        with_element!(dtype, T => Tensor::build::<T>(layout, self.device(), |y| {
            y.fill(T::default());
            for (y, &label) in y.chunks_mut(num_classes).zip(&labels) {
                y[label as usize] = T::from_f64(1.0);
            }
        }))
    }
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[(NAME, "[j = label] for each class j")];

macro_rules! cases {
    ($($name:literal $shape:expr, $classes:literal;)*) => {
        &[$(Case { op: NAME, name: $name, inputs: &[Input::Index(&$shape, $classes)],
            run: |x| x[0].one_hot($classes, DType::F64) }),*]
    };
}

/// Any number of axes, degenerate sizes.
pub const CASES: &[Case] = cases! {
    "labels" [5], 7;
    "two axes" [2, 3], 4;
    "a scalar" [], 3;
    "one class" [4], 1;
    "no labels" [0], 3;
};

/// Several blocks.
pub const LARGE: &[Case] = cases! {
    "several blocks" [67], 31;
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::devices;

    #[test]
    fn every_dtype_and_what_is_wrong() -> Result<()> {
        for device in devices()? {
            let t = Tensor::from_vec(vec![1i64, 0], [2])?.to(device)?;
            for dtype in [DType::F32, DType::BF16, DType::F16, DType::I64, DType::U8] {
                let y = t.one_hot(2, dtype)?;
                assert_eq!(y.dtype(), dtype);
                assert_eq!(y.to_dtype(DType::I64)?.to_vec::<i64>()?, [0, 1, 1, 0]);
            }
            let e = |r: Result<Tensor>| r.and_then(|y| y.to_vec::<f32>()).unwrap_err().to_string();
            assert_eq!(
                e(t.one_hot(1, DType::F32)),
                "one_hot: index 1 is out of range for an axis of size 1"
            );
            assert_eq!(
                e(t.one_hot(0, DType::F32)),
                "one_hot: num_classes is 0, expected at least 1"
            );
            assert_eq!(
                e(t.to_dtype(DType::U8)?.one_hot(2, DType::F32)),
                "one_hot: expected i64 labels but got u8"
            );
        }
        Ok(())
    }
}
