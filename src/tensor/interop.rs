//! To and from ndarray, without a copy where the layout allows it.

use ndarray::{ArrayD, ArrayViewD, IxDyn, ShapeBuilder};

use super::Tensor;
use crate::dtype::Element;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

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
