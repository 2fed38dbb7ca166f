//! To and from ndarray, without a copy where the layout allows it; comparison, also with approx.

use approx::{AbsDiffEq, RelativeEq};
use ndarray::{ArrayD, ArrayViewD, IxDyn, ShapeBuilder};

use super::Tensor;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::shape::Shape;

impl Tensor {
    /// From an ndarray array. A standard (row-major) owned array gives its memory, others are
    /// copied.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let a = ndarray::array![[1f32, 2.0], [3.0, 4.0]].into_dyn();
    /// let place = a.as_ptr();
    /// let t = Tensor::from_ndarray(a)?;
    /// assert_eq!(t.as_ndarray::<f32>()?.as_ptr(), place);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn from_ndarray<T: Element>(array: ArrayD<T>) -> Result<Self> {
        let shape = Shape::new(array.shape())?;
        if array.is_standard_layout() {
            let (v, offset) = array.into_raw_vec_and_offset();
            if offset.unwrap_or(0) == 0 && v.len() == shape.numel() {
                return Self::from_vec(v, shape);
            }
            let start = offset.unwrap_or(0);
            return Self::from_slice(&v[start..start + shape.numel()], shape);
        }
        Self::from_vec(array.iter().copied().collect(), shape)
    }

    /// A view of the elements as an ndarray array, without a copy, whatever the strides.
    pub fn as_ndarray<T: Element>(&self) -> Result<ArrayViewD<'_, T>> {
        let all = self.storage_slice::<T>("as_ndarray")?;
        let fail = |e| Error::argument("as_ndarray", format!("{:?}: {e}", self.layout()));
        if self.numel() == 0 {
            return ArrayViewD::from_shape(IxDyn(self.shape()), &[]).map_err(fail);
        }
        let shape = IxDyn(self.shape()).strides(IxDyn(self.layout().strides()));
        ArrayViewD::from_shape(shape, &all[self.layout().offset()..]).map_err(fail)
    }

    /// A copy of the elements as an ndarray array.
    pub fn to_ndarray<T: Element>(&self) -> Result<ArrayD<T>> {
        let shape = IxDyn(self.shape());
        ArrayD::from_shape_vec(shape, self.to_vec()?)
            .map_err(|e| Error::argument("to_ndarray", e.to_string()))
    }
}

/// The same shape, dtype and elements, wherever they lie and whatever graph they are in. NaN
/// differs from itself. [`Tensor::eq`] compares element by element instead.
impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.agrees(other, |a, b| a == b)
    }
}

impl Tensor {
    /// Whether shapes and dtypes are equal and `same` holds for each pair of elements, as f64.
    fn agrees(&self, other: &Self, same: impl Fn(f64, f64) -> bool) -> bool {
        let values = |t: &Tensor| t.cast(DType::F64)?.to_vec::<f64>();
        match (values(self), values(other)) {
            (Ok(a), Ok(b)) if self.shape() == other.shape() && self.dtype() == other.dtype() => {
                a.iter().zip(&b).all(|(&a, &b)| same(a, b))
            }
            _ => false,
        }
    }
}

/// So that `approx::assert_abs_diff_eq!` takes tensors.
///
/// ```
/// # use cotangent::Tensor;
/// let x = Tensor::from_vec(vec![1f32, 2.0], [2])?;
/// approx::assert_abs_diff_eq!(x.exp()?.log()?, x, epsilon = 1e-6);
/// # Ok::<(), cotangent::Error>(())
/// ```
impl AbsDiffEq for Tensor {
    type Epsilon = f64;

    fn default_epsilon() -> f64 {
        f64::default_epsilon()
    }

    fn abs_diff_eq(&self, other: &Self, epsilon: f64) -> bool {
        self.agrees(other, |a, b| a.abs_diff_eq(&b, epsilon))
    }
}

/// So that `approx::assert_relative_eq!` takes tensors.
impl RelativeEq for Tensor {
    fn default_max_relative() -> f64 {
        f64::default_max_relative()
    }

    fn relative_eq(&self, other: &Self, epsilon: f64, max_relative: f64) -> bool {
        self.agrees(other, |a, b| a.relative_eq(&b, epsilon, max_relative))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison() -> Result<()> {
        let x = Tensor::arange(0.0, 6.0, 1.0, DType::F32)?.reshape([2, 3])?;
        assert!(
            x == x.t()?.contiguous()?.t()? && x != x.reshape([3, 2])? && x != x.cast(DType::F64)?
        );
        approx::assert_relative_eq!(x.add_scalar(1e-7)?, x, epsilon = 1e-6);
        approx::assert_abs_diff_ne!(x.add_scalar(1e-3)?, x, epsilon = 1e-6);
        let nan = Tensor::scalar(f32::NAN)?;
        assert!(nan != nan && !nan.abs_diff_eq(&nan, 1.0));
        Ok(())
    }

    #[test]
    fn round_trips() -> Result<()> {
        let a = ndarray::Array::from_shape_fn((2, 3, 4), |(i, j, k)| (100 * i + 10 * j + k) as f64);
        let t = Tensor::from_ndarray(a.clone().into_dyn())?;
        assert_eq!(t.as_ndarray::<f64>()?, a.view().into_dyn());
        let p = t.view_as(t.layout().permute(&[2, 0, 1]).narrow(0, 1, 2));
        assert_eq!(
            p.as_ndarray::<f64>()?,
            a.slice(ndarray::s![.., .., 1..3])
                .permuted_axes([2, 0, 1])
                .into_dyn()
        );
        assert_eq!(p.to_ndarray::<f64>()?, p.as_ndarray::<f64>()?);
        // transposed, sliced and reversed arrays are copied right
        assert_eq!(
            Tensor::from_ndarray(a.clone().reversed_axes().into_dyn())?.as_ndarray::<f64>()?,
            a.t().into_dyn()
        );
        let mut rows = a.clone();
        rows.slice_collapse(ndarray::s![1.., .., ..]);
        assert_eq!(
            Tensor::from_ndarray(rows.clone().into_dyn())?.as_ndarray::<f64>()?,
            rows.into_dyn()
        );
        assert!(t.as_ndarray::<f32>().is_err());
        assert_eq!(
            Tensor::zeros([0, 2], DType::F32)?
                .as_ndarray::<f32>()?
                .len(),
            0
        );
        Ok(())
    }
}
