//! Elements and whole slices by index: index_select and gather.

use crate::autograd::{Op, apply};
use crate::cuda::{self, Arg, kernels};
use crate::device::Device;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::ops::Formula;
use crate::ops::check::{Case, Input};
use crate::ops::layout::around;
use crate::shape::{Layout, Shape};
use crate::tensor::Tensor;
use crate::with_element;

kernels! {
    /// One thread an element.
    INDEX_SELECT = "index_select" [F32, F64, BF16, F16, I64, U8];
    /// One block a row of dx and a slice of it.
    INDEX_SELECT_BACKWARD = "index_select_backward" [F32, F64, BF16, F16];
    /// One thread an element of the index.
    GATHER = "gather" [F32, F64, BF16, F16, I64, U8];
    /// One thread an element of dx.
    GATHER_BACKWARD = "gather_backward" [F32, F64, BF16, F16];
}

impl Tensor {
    /// Whole slices of an axis, by I64 indices (a vector): rows of a table, images of a batch.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let x = Tensor::eye(3, DType::F32)?.index_select(0, &Tensor::from_vec(vec![2i64, 2], [2])?)?;
    /// assert_eq!(x.to_vec::<f32>()?, [0., 0., 1., 0., 0., 1.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn index_select(&self, axis: isize, index: &Tensor) -> Result<Tensor> {
        let axis = self.shape().axis("index_select", axis)?;
        apply(IndexSelect { axis }, [self, index])
    }

    /// One element for each index: `y[i, j] = x[index[i, j], j]` along axis 0, and so on
    /// (PyTorch's gather). The index has the rank of x.
    pub fn gather(&self, axis: isize, index: &Tensor) -> Result<Tensor> {
        let axis = self.shape().axis("gather", axis)?;
        apply(Gather { axis }, [self, index])
    }
}

/// Indices, row-major.
fn indices(op: &'static str, index: &Tensor) -> Result<Tensor> {
    match index.dtype() {
        DType::I64 => index.packed(),
        got => Err(Error::DType {
            op,
            expected: "i64 indices",
            got,
        }),
    }
}

/// Indices of the CPU checked against an axis. On a CUDA device the kernel reports what is out of
/// range.
fn checked(op: &'static str, index: &Tensor, size: usize) -> Result<Vec<usize>> {
    let check = |i: i64| {
        if i >= 0 && (i as usize) < size {
            Ok(i as usize)
        } else {
            Err(Error::Index { op, index: i, size })
        }
    };
    index.to_vec::<i64>()?.into_iter().map(check).collect()
}

struct IndexSelect {
    axis: usize,
}
impl Op<2> for IndexSelect {
    const NAME: &'static str = "index_select";
    const ANY_DTYPE: bool = true;
    type Saved = (Tensor, Shape);

    fn forward(&self, [x, index]: [&Tensor; 2]) -> Result<(Tensor, Self::Saved)> {
        let [count] = index.dims(Self::NAME, "a vector of indices")?;
        let size = x.shape().get(self.axis).copied().ok_or(Error::Axis {
            op: Self::NAME,
            axis: 0,
            rank: 0,
        })?;
        let index = indices(Self::NAME, index)?;
        let shape = x.shape().with(self.axis, count);
        let [outer, inner] = around(x.shape(), self.axis);
        let x2 = x.packed()?;
        if let Device::Cuda(gpu) = x.device() {
            let y = Tensor::empty(Layout::contiguous(shape), x.dtype(), x.device())?;
            let args = [
                x2.input(),
                index.input(),
                y.output(),
                Arg::U32(y.numel() as u32),
                Arg::I32(size as i32),
                Arg::I32(count as i32),
                Arg::I32(inner as i32),
                gpu.fault()?,
                cuda::op_number(Self::NAME),
            ];
            gpu.launch_over(INDEX_SELECT.of(y.dtype())?, y.numel(), 256, &args)?;
            return Ok((y, (index, *x.shape())));
        }
        let at = checked(Self::NAME, &index, size)?;
        let y = with_element!(x.dtype(), T => {
            let v = x2.dense_slice::<T>(Self::NAME)?;
            Tensor::build::<T>(Layout::contiguous(shape), x.device(), |out| {
                for (o, row) in out.chunks_mut(inner.max(1)).enumerate().take(outer * count * (inner > 0) as usize) {
                    let from = (o / count * size + at[o % count]) * inner;
                    row.copy_from_slice(&v[from..from + inner]);
                }
            })
        })?;
        Ok((y, (index, *x.shape())))
    }

    fn backward(
        &self,
        (index, shape): Self::Saved,
        dy: Tensor,
        _: [bool; 2],
    ) -> Result<[Option<Tensor>; 2]> {
        let [outer, inner] = around(&shape, self.axis);
        let (size, count) = (shape[self.axis], index.numel());
        let dy = dy.packed()?;
        if let Device::Cuda(gpu) = dy.device() {
            let dx = Tensor::empty(Layout::contiguous(shape), dy.dtype(), dy.device())?;
            let slices = (outer * inner).div_ceil(1024);
            let args = [
                index.input(),
                dy.input(),
                dx.output(),
                Arg::U32((outer * inner) as u32),
                Arg::I32(size as i32),
                Arg::I32(count as i32),
                Arg::I32(inner as i32),
            ];
            gpu.launch_over(
                INDEX_SELECT_BACKWARD.of(dx.dtype())?,
                slices * size * 256,
                256,
                &args,
            )?;
            return Ok([Some(dx), None]);
        }
        let at = checked(Self::NAME, &index, size)?;
        let dx = with_element!(dy.dtype(), T => {
            let v = dy.dense_slice::<T>(Self::NAME)?;
            Tensor::build::<T>(Layout::contiguous(shape), dy.device(), |out| {
                out.fill(T::default());
                for o in 0..outer {
                    for (k, &i) in at.iter().enumerate() {
                        let (from, to) = ((o * count + k) * inner, (o * size + i) * inner);
                        for (d, &g) in out[to..to + inner].iter_mut().zip(&v[from..from + inner]) {
                            *d = d.plus(g);
                        }
                    }
                }
            })
        })?;
        Ok([Some(dx), None])
    }
}

struct Gather {
    axis: usize,
}
impl Gather {
    /// For each output element, the place of its input in row-major order.
    fn places(&self, x: &Shape, index: &Tensor) -> Result<Vec<usize>> {
        let at = checked(Self::NAME, index, x[self.axis])?;
        let (index, strides) = (index.shape(), Layout::contiguous(*x));
        let mut multi = vec![0; index.len()];
        let place = |i: usize| {
            let place = (0..multi.len())
                .map(|d| strides.strides()[d] * if d == self.axis { i } else { multi[d] })
                .sum();
            for d in (0..multi.len()).rev() {
                multi[d] += 1;
                if multi[d] < index[d] {
                    break;
                }
                multi[d] = 0;
            }
            place
        };
        Ok(at.into_iter().map(place).collect())
    }

    /// `Places` of `kernels/index.cu`, word by word: for a kernel that writes `n` elements.
    fn words(&self, x: &Shape, index: &Shape, n: usize) -> [i32; 17] {
        let (rank, axis) = (x.len(), self.axis);
        let mut words = [0; 17];
        let head = [rank, axis, x[axis], index[axis], n];
        let sizes = [(0, &head[..]), (5, x), (11, index)];
        for (at, sizes) in sizes {
            for (w, &size) in words[at..].iter_mut().zip(sizes) {
                *w = size as i32;
            }
        }
        words
    }
}
impl Op<2> for Gather {
    const NAME: &'static str = "gather";
    const ANY_DTYPE: bool = true;
    type Saved = (Tensor, Shape);

    fn forward(&self, [x, index]: [&Tensor; 2]) -> Result<(Tensor, Self::Saved)> {
        let fits = x.rank() == index.rank()
            && x.rank() > 0
            && (0..x.rank()).all(|d| d == self.axis || index.shape()[d] <= x.shape()[d]);
        if !fits {
            return Err(Error::shape(
                Self::NAME,
                &[*x.shape(), *index.shape()],
                format!(
                    "index {:?} does not fit {:?} along axis {}",
                    index.shape(),
                    x.shape(),
                    self.axis
                ),
            ));
        }
        let index = indices(Self::NAME, index)?;
        let x2 = x.packed()?;
        if let Device::Cuda(gpu) = x.device() {
            let y = Tensor::empty(*index.layout(), x.dtype(), x.device())?;
            let words = self.words(x.shape(), index.shape(), y.numel());
            let args = [
                Arg::Struct(&words),
                x2.input(),
                index.input(),
                y.output(),
                gpu.fault()?,
                cuda::op_number(Self::NAME),
            ];
            gpu.launch_over(GATHER.of(y.dtype())?, y.numel(), 256, &args)?;
            return Ok((y, (index, *x.shape())));
        }
        let places = self.places(x.shape(), &index)?;
        let y = with_element!(x.dtype(), T => {
            let v = x2.dense_slice::<T>(Self::NAME)?;
            Tensor::build::<T>(*index.layout(), x.device(), |out| {
                out.iter_mut().zip(&places).for_each(|(o, &p)| *o = v[p]);
            })
        })?;
        Ok((y, (index, *x.shape())))
    }

    fn backward(
        &self,
        (index, shape): Self::Saved,
        dy: Tensor,
        _: [bool; 2],
    ) -> Result<[Option<Tensor>; 2]> {
        let dy = dy.packed()?;
        if let Device::Cuda(gpu) = dy.device() {
            let dx = Tensor::empty(Layout::contiguous(shape), dy.dtype(), dy.device())?;
            let words = self.words(&shape, index.shape(), dx.numel());
            let args = [Arg::Struct(&words), index.input(), dy.input(), dx.output()];
            gpu.launch_over(GATHER_BACKWARD.of(dx.dtype())?, dx.numel(), 256, &args)?;
            return Ok([Some(dx), None]);
        }
        let places = self.places(&shape, &index)?;
        let dx = with_element!(dy.dtype(), T => {
            let v = dy.dense_slice::<T>(Self::NAME)?;
            Tensor::build::<T>(Layout::contiguous(shape), dy.device(), |out| {
                out.fill(T::default());
                places.iter().zip(v).for_each(|(&p, &g)| out[p] = out[p].plus(g));
            })
        })?;
        Ok([Some(dx), None])
    }
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[
    ("index_select", "x[.., index[k], ..] for each k"),
    ("gather", "x[.., index[.., k, ..], ..] along an axis"),
];

/// With repeats, with none, of some rows.
pub const CASES: &[Case] = &[
    Case {
        op: "index_select",
        name: "with repeats",
        inputs: &[Input::Normal(&[2, 4, 3]), Input::Index(&[5], 4)],
        run: |x| x[0].index_select(1, &x[1]),
    },
    Case {
        op: "index_select",
        name: "nothing",
        inputs: &[Input::Normal(&[2, 4]), Input::Index(&[0], 4)],
        run: |x| x[0].index_select(1, &x[1]),
    },
    Case {
        op: "gather",
        name: "fewer rows than there are",
        inputs: &[Input::Normal(&[4, 3, 2]), Input::Index(&[3, 5, 2], 3)],
        run: |x| x[0].gather(1, &x[1]),
    },
    Case {
        op: "gather",
        name: "axis 0",
        inputs: &[Input::Normal(&[4, 3]), Input::Index(&[5, 3], 4)],
        run: |x| x[0].gather(0, &x[1]),
    },
    Case {
        op: "gather",
        name: "one label a row",
        inputs: &[Input::Normal(&[4, 3]), Input::Index(&[4, 1], 3)],
        run: |x| x[0].gather(1, &x[1]),
    },
];

/// Several blocks, slices and rounds of indices.
pub const LARGE: &[Case] = &[
    Case {
        op: "index_select",
        name: "many indices, several slices",
        inputs: &[Input::Normal(&[40, 9, 67]), Input::Index(&[600], 9)],
        run: |x| x[0].index_select(1, &x[1]),
    },
    Case {
        op: "index_select",
        name: "rows of a table",
        inputs: &[Input::Normal(&[300, 35]), Input::Index(&[70], 300)],
        run: |x| x[0].index_select(0, &x[1]),
    },
    Case {
        op: "gather",
        name: "several blocks",
        inputs: &[
            Input::Normal(&[13, 31, 11]),
            Input::Index(&[12, 90, 11], 31),
        ],
        run: |x| x[0].gather(1, &x[1]),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_that_are_none() -> Result<()> {
        let i = Tensor::from_vec(vec![1i64, 0, 0], [3])?;
        assert_eq!(i.index_select(0, &i)?.to_vec::<i64>()?, [0, 1, 1]);
        let x = Tensor::zeros([2, 3], DType::F32)?;
        let i = Tensor::from_vec(vec![3i64], [1])?;
        assert!(matches!(
            x.index_select(1, &i),
            Err(Error::Index {
                index: 3,
                size: 3,
                ..
            })
        ));
        assert!(x.index_select(1, &x).is_err());
        Ok(())
    }
}
