//! Ops that move elements and compute nothing: views, cat, stack, pad, flip, gather, index_select.

use crate::autograd::{Op, apply};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::ops::check::{Case, Input};
use crate::shape::{IntoShape, Layout, Shape};
use crate::tensor::Tensor;
use crate::with_element;

/// A view through another layout, whose gradient goes back through `back`.
struct View<B> {
    name: &'static str,
    layout: Layout,
    back: B,
}

impl<B: Fn(&Tensor) -> Result<Tensor> + Send + 'static> View<B> {
    fn run(self, x: &Tensor) -> Result<Tensor> {
        // a view costs nothing where no graph is recorded
        if x.is_tracked() {
            apply(self, [x])
        } else {
            Ok(x.view_as(self.layout))
        }
    }
}

impl<B: Fn(&Tensor) -> Result<Tensor> + Send + 'static> Op<1> for View<B> {
    const NAME: &'static str = "view";
    const ANY_DTYPE: bool = true;
    type Saved = ();

    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, ())> {
        Ok((x.view_as(self.layout), ()))
    }

    fn backward(&self, _: (), dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some((self.back)(&dy)?)])
    }
}

impl Tensor {
    /// The same elements, in row-major order, under another shape. One size may be given by
    /// [`Tensor::reshape_infer`]. Copies only where strides cannot express it.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let x = Tensor::arange(0.0, 6.0, 1.0, DType::F32)?.reshape([2, 3])?;
    /// assert_eq!(x.shape()[..], [2, 3]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn reshape(&self, shape: impl IntoShape) -> Result<Tensor> {
        let (from, to) = (*self.shape(), shape.into_shape()?);
        if from.numel() != to.numel() {
            return Err(Error::shape(
                "reshape",
                &[from, to],
                format!(
                    "{from:?} has {} elements, {to:?} has {}",
                    from.numel(),
                    to.numel()
                ),
            ));
        }
        match self.layout().reshape(to) {
            Some(layout) => View {
                name: "reshape",
                layout,
                back: move |dy: &Tensor| dy.reshape(from),
            }
            .run(self),
            None => self.contiguous()?.reshape(to),
        }
    }

    /// [`Tensor::reshape`] with at most one size given as -1: it is what fits.
    pub fn reshape_infer(&self, sizes: &[isize]) -> Result<Tensor> {
        let known: usize = sizes
            .iter()
            .filter(|&&s| s >= 0)
            .map(|&s| s as usize)
            .product();
        let holes = sizes.iter().filter(|&&s| s < 0).count();
        if holes > 1
            || sizes.iter().any(|&s| s < -1)
            || (holes == 1 && (known == 0 || !self.numel().is_multiple_of(known)))
        {
            return Err(Error::shape(
                "reshape",
                &[*self.shape()],
                format!("{:?} does not fit {sizes:?}", self.shape()),
            ));
        }
        let dims: Vec<usize> = sizes
            .iter()
            .map(|&s| {
                if s < 0 {
                    self.numel() / known
                } else {
                    s as usize
                }
            })
            .collect();
        self.reshape(dims)
    }

    /// Axes `start` and after made one: (N, C, H, W) from 1 on becomes (N, C H W).
    pub fn flatten(&self, start: usize) -> Result<Tensor> {
        if start > self.rank() {
            return Err(Error::Axis {
                op: "flatten",
                axis: start as isize,
                rank: self.rank(),
            });
        }
        let mut dims = self.shape()[..start].to_vec();
        dims.push(self.shape()[start..].iter().product());
        self.reshape(dims)
    }

    /// The axes in another order: axis i of the result is axis `axes[i]`.
    pub fn permute(&self, axes: &[usize]) -> Result<Tensor> {
        let mut back = vec![usize::MAX; self.rank()];
        for (i, &a) in axes.iter().enumerate() {
            if a < back.len() {
                back[a] = i;
            }
        }
        if axes.len() != self.rank() || back.contains(&usize::MAX) {
            return Err(Error::argument(
                "permute",
                format!(
                    "axes {axes:?} are no order of the {} axes of {:?}",
                    self.rank(),
                    self.shape()
                ),
            ));
        }
        View {
            name: "permute",
            layout: self.layout().permute(axes),
            back: move |dy: &Tensor| dy.permute(&back),
        }
        .run(self)
    }

    /// Two axes exchanged; negative axes count from the end.
    pub fn transpose(&self, a: isize, b: isize) -> Result<Tensor> {
        let (a, b) = (
            self.shape().axis("transpose", a)?,
            self.shape().axis("transpose", b)?,
        );
        let mut axes: Vec<usize> = (0..self.rank()).collect();
        if a != b {
            axes.swap(a, b);
        }
        self.permute(&axes)
    }

    /// The matrix transpose: the last two axes exchanged.
    pub fn t(&self) -> Result<Tensor> {
        self.transpose(-2, -1)
    }

    /// An axis of size 1 before `axis`; -1 is behind the last.
    pub fn unsqueeze(&self, axis: isize) -> Result<Tensor> {
        // there is one place more than axes: -1 is behind the last
        let places = self.rank() as isize + 1;
        let axis = if axis < 0 { axis + places } else { axis } as usize;
        if axis > self.rank() {
            return Err(Error::Axis {
                op: "unsqueeze",
                axis: axis as isize,
                rank: self.rank(),
            });
        }
        let from = *self.shape();
        View {
            name: "unsqueeze",
            layout: self.layout().unsqueeze(axis)?,
            back: move |dy: &Tensor| dy.reshape(from),
        }
        .run(self)
    }

    /// Without an axis of size 1.
    pub fn squeeze(&self, axis: isize) -> Result<Tensor> {
        let i = self.shape().axis("squeeze", axis)?;
        if self.rank() == 0 || self.shape()[i] != 1 {
            return Err(Error::shape(
                "squeeze",
                &[*self.shape()],
                format!("axis {axis} of {:?} is not of size 1", self.shape()),
            ));
        }
        let from = *self.shape();
        View {
            name: "squeeze",
            layout: self.layout().select(i, 0),
            back: move |dy: &Tensor| dy.reshape(from),
        }
        .run(self)
    }

    /// Repeated along axes of size 1 (and new leading axes) without a copy.
    pub fn expand(&self, shape: impl IntoShape) -> Result<Tensor> {
        let (from, to) = (*self.shape(), shape.into_shape()?);
        let broadcasts = crate::shape::broadcast("expand", &from, &to).is_ok_and(|s| s == to);
        if !broadcasts {
            return Err(Error::shape(
                "expand",
                &[from, to],
                format!("{from:?} does not expand to {to:?}"),
            ));
        }
        // the engine sums the gradient back
        View {
            name: "expand",
            layout: self.layout().expand(to),
            back: |dy: &Tensor| Ok(dy.clone()),
        }
        .run(self)
    }

    /// `len` elements of an axis from `start` on.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let x = Tensor::arange(0.0, 5.0, 1.0, DType::F32)?.narrow(0, 1, 2)?;
    /// assert_eq!(x.to_vec::<f32>()?, [1.0, 2.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn narrow(&self, axis: isize, start: usize, len: usize) -> Result<Tensor> {
        let i = self.shape().axis("narrow", axis)?;
        let Some(&size) = self.shape().get(i) else {
            return Err(Error::Axis {
                op: "narrow",
                axis,
                rank: 0,
            });
        };
        if start.checked_add(len).is_none_or(|end| end > size) {
            return Err(Error::Index {
                op: "narrow",
                index: start.saturating_add(len) as i64,
                size,
            });
        }
        let back = move |dy: &Tensor| dy.pad(&[(i, start, size - start - len)], 0.0);
        View {
            name: "narrow",
            layout: self.layout().narrow(i, start, len),
            back,
        }
        .run(self)
    }

    /// One element of an axis, which goes away; negative indices count from the end.
    pub fn select(&self, axis: isize, index: i64) -> Result<Tensor> {
        let i = self.shape().axis("select", axis)?;
        let size = self.shape().get(i).copied().unwrap_or(0);
        let at = if index < 0 {
            index + size as i64
        } else {
            index
        };
        if at < 0 || at >= size as i64 {
            return Err(Error::Index {
                op: "select",
                index,
                size,
            });
        }
        self.narrow(i as isize, at as usize, 1)?.squeeze(i as isize)
    }

    /// Row-major without gaps: itself if it is so already, else a copy.
    pub fn contiguous(&self) -> Result<Tensor> {
        if self.is_contiguous() {
            Ok(self.clone())
        } else {
            apply(Contiguous, [self])
        }
    }

    /// `before` and `after` elements of `value` added to each named axis: `(axis, before, after)`.
    pub fn pad(&self, widths: &[(usize, usize, usize)], value: f64) -> Result<Tensor> {
        let mut pads = vec![(0, 0); self.rank()];
        for &(axis, before, after) in widths {
            *pads.get_mut(axis).ok_or(Error::Axis {
                op: "pad",
                axis: axis as isize,
                rank: self.rank(),
            })? = (before, after);
        }
        apply(Pad { pads, value }, [self])
    }

    /// The elements of an axis in reverse order.
    pub fn flip(&self, axis: isize) -> Result<Tensor> {
        let axis = self.shape().axis("flip", axis)?;
        let size = self.shape().get(axis).copied().unwrap_or(1);
        let reverse: Vec<i64> = (0..size as i64).rev().collect();
        if self.rank() == 0 {
            Ok(self.clone())
        } else {
            self.index_select(axis as isize, &Tensor::from_vec(reverse, size)?)
        }
    }

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

    /// Tensors joined along an axis that exists.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let (a, b) = (Tensor::zeros([2, 1], DType::F32)?, Tensor::ones([2, 2], DType::F32)?);
    /// assert_eq!(Tensor::cat(&[&a, &b], 1)?.to_vec::<f32>()?, [0., 1., 1., 0., 1., 1.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn cat(tensors: &[&Tensor], axis: isize) -> Result<Tensor> {
        let first = tensors
            .first()
            .ok_or_else(|| Error::argument("cat", "no tensors were given"))?;
        let a = first.shape().axis("cat", axis)?;
        let op = Cat { axis: a };
        // an op has a fixed number of inputs: more than four are joined in groups
        match *tensors {
            [x] => Ok(x.clone()),
            [a, b] => apply(op, [a, b]),
            [a, b, c] => apply(op, [a, b, c]),
            [a, b, c, d] => apply(op, [a, b, c, d]),
            _ => {
                let groups = tensors
                    .chunks(tensors.len().div_ceil(4))
                    .map(|g| Tensor::cat(g, axis))
                    .collect::<Result<Vec<_>>>()?;
                Tensor::cat(&groups.iter().collect::<Vec<_>>(), axis)
            }
        }
    }

    /// Tensors of one shape joined along a new axis.
    pub fn stack(tensors: &[&Tensor], axis: isize) -> Result<Tensor> {
        let rows = tensors
            .iter()
            .map(|t| t.unsqueeze(axis))
            .collect::<Result<Vec<_>>>()?;
        Tensor::cat(&rows.iter().collect::<Vec<_>>(), axis)
    }
}

struct Contiguous;
impl Op<1> for Contiguous {
    const NAME: &'static str = "contiguous";
    const ANY_DTYPE: bool = true;
    type Saved = ();

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, ())> {
        Ok((x.packed()?, ()))
    }

    fn backward(&self, _: (), dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(dy)])
    }
}

/// A new row-major tensor of `shape` filled with `value`, `parts` copied into it, each at its
/// start along `axis`.
fn assemble(shape: Shape, value: f64, parts: &[(&Tensor, Vec<usize>)]) -> Result<Tensor> {
    let like = parts[0].0;
    with_element!(like.dtype(), T => {
        let sources = parts.iter().map(|(t, at)| Ok((t, t.storage_slice::<T>("cat")?, at))).collect::<Result<Vec<_>>>()?;
        let whole = Layout::contiguous(shape);
        Tensor::build::<T>(whole, like.device(), |out| {
            if parts.iter().map(|(t, _)| t.numel()).sum::<usize>() < out.len() {
                out.fill(T::from_f64(value));
            }
            for (t, x, at) in sources.into_iter().filter(|(t, ..)| t.numel() > 0) {
                let mut place = whole;
                for (axis, (&start, &size)) in at.iter().zip(t.shape().iter()).enumerate() {
                    place = place.narrow(axis, start, size);
                }
                scatter(x, t.layout(), out, &place);
            }
        })
    })
}

/// Copy all elements of one layout to the places of another of the same shape.
fn scatter<T: Element>(x: &[T], from: &Layout, out: &mut [T], to: &Layout) {
    let Some((&inner, outer)) = to.shape().split_last() else {
        out[to.offset()] = x[from.offset()];
        return;
    };
    let last = outer.len();
    let (s, t) = (from.strides()[last], to.strides()[last]);
    let mut index = vec![0; last];
    for _ in 0..outer.iter().product::<usize>() {
        let at = |l: &Layout| {
            l.offset()
                + index
                    .iter()
                    .zip(l.strides())
                    .map(|(i, s)| i * s)
                    .sum::<usize>()
        };
        let (a, b) = (at(from), at(to));
        if (s, t) == (1, 1) {
            out[b..b + inner].copy_from_slice(&x[a..a + inner]);
        } else {
            (0..inner).for_each(|i| out[b + i * t] = x[a + i * s]);
        }
        for d in (0..last).rev() {
            index[d] += 1;
            if index[d] < outer[d] {
                break;
            }
            index[d] = 0;
        }
    }
}

struct Pad {
    pads: Vec<(usize, usize)>,
    value: f64,
}
impl Op<1> for Pad {
    const NAME: &'static str = "pad";
    const ANY_DTYPE: bool = true;
    type Saved = Shape;

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, Shape)> {
        let dims: Vec<usize> = x
            .shape()
            .iter()
            .zip(&self.pads)
            .map(|(d, (b, a))| d.saturating_add(*b).saturating_add(*a))
            .collect();
        let starts = self.pads.iter().map(|p| p.0).collect();
        Ok((
            assemble(Shape::new(&dims)?, self.value, &[(x, starts)])?,
            *x.shape(),
        ))
    }

    fn backward(&self, shape: Shape, dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let mut layout = *dy.layout();
        for (axis, (&(before, _), &size)) in self.pads.iter().zip(shape.iter()).enumerate() {
            layout = layout.narrow(axis, before, size);
        }
        Ok([Some(dy.view_as(layout))])
    }
}

struct Cat {
    axis: usize,
}
impl<const N: usize> Op<N> for Cat {
    const NAME: &'static str = "cat";
    const ANY_DTYPE: bool = true;
    type Saved = [usize; N];

    fn forward(&self, xs: [&Tensor; N]) -> Result<(Tensor, [usize; N])> {
        let first = xs[0].shape();
        let mut total = 0;
        let mut parts = Vec::with_capacity(N);
        for x in xs {
            let fits = x.rank() == first.len()
                && (0..first.len()).all(|a| a == self.axis || x.shape()[a] == first[a]);
            if first.is_empty() || !fits {
                return Err(Error::shape(
                    "cat",
                    &[*first, *x.shape()],
                    format!(
                        "{:?} and {:?} differ beside axis {}",
                        first,
                        x.shape(),
                        self.axis
                    ),
                ));
            }
            if x.dtype() != xs[0].dtype() {
                return Err(Error::DType {
                    op: "cat",
                    expected: "tensors of one dtype",
                    got: x.dtype(),
                });
            }
            let mut at = vec![0; first.len()];
            at[self.axis] = total;
            total += x.shape()[self.axis];
            parts.push((x, at));
        }
        let y = assemble(Shape::new(&first.with(self.axis, total))?, 0.0, &parts)?;
        Ok((y, xs.map(|x| x.shape()[self.axis])))
    }

    fn backward(&self, sizes: [usize; N], dy: Tensor, _: [bool; N]) -> Result<[Option<Tensor>; N]> {
        let mut at = 0;
        Ok(sizes.map(|size| {
            at += size;
            Some(dy.view_as(dy.layout().narrow(self.axis, at - size, size)))
        }))
    }
}

/// Indices checked against an axis.
fn checked(op: &'static str, index: &Tensor, size: usize) -> Result<Vec<usize>> {
    if index.dtype() != DType::I64 {
        return Err(Error::DType {
            op,
            expected: "i64 indices",
            got: index.dtype(),
        });
    }
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
    type Saved = (Vec<usize>, Shape);

    fn forward(&self, [x, index]: [&Tensor; 2]) -> Result<(Tensor, Self::Saved)> {
        let [_] = index.dims(Self::NAME, "a vector of indices")?;
        let size = x.shape().get(self.axis).copied().ok_or(Error::Axis {
            op: Self::NAME,
            axis: 0,
            rank: 0,
        })?;
        let index = checked(Self::NAME, index, size)?;
        let shape = x.shape().with(self.axis, index.len());
        let (outer, inner) = around(x.shape(), self.axis);
        let x2 = x.packed()?;
        let y = with_element!(x.dtype(), T => {
            let v = x2.dense_slice::<T>(Self::NAME)?;
            Tensor::build::<T>(Layout::contiguous(shape), x.device(), |out| {
                for (o, row) in out.chunks_mut(inner.max(1)).enumerate().take(outer * index.len() * (inner > 0) as usize) {
                    let at = (o / index.len() * size + index[o % index.len()]) * inner;
                    row.copy_from_slice(&v[at..at + inner]);
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
        let (outer, inner) = around(&shape, self.axis);
        let size = shape[self.axis];
        let dy = dy.packed()?;
        let dx = with_element!(dy.dtype(), T => {
            let v = dy.dense_slice::<T>(Self::NAME)?;
            Tensor::build::<T>(Layout::contiguous(shape), dy.device(), |out| {
                out.fill(T::default());
                for o in 0..outer {
                    for (k, &i) in index.iter().enumerate() {
                        let (from, to) = ((o * index.len() + k) * inner, (o * size + i) * inner);
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

/// The number of elements before and after an axis.
fn around(shape: &Shape, axis: usize) -> (usize, usize) {
    (
        shape[..axis].iter().product(),
        shape[axis + 1..].iter().product(),
    )
}

struct Gather {
    axis: usize,
}
impl Gather {
    /// For each output element, the place of its input in row-major order.
    fn places(&self, x: &Shape, index: &Shape, at: &[usize]) -> Vec<usize> {
        let strides = Layout::contiguous(*x);
        let mut multi = vec![0; index.len()];
        at.iter()
            .map(|&i| {
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
            })
            .collect()
    }
}
impl Op<2> for Gather {
    const NAME: &'static str = "gather";
    const ANY_DTYPE: bool = true;
    type Saved = (Vec<usize>, Shape);

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
        let at = checked(Self::NAME, index, x.shape()[self.axis])?;
        let places = self.places(x.shape(), index.shape(), &at);
        let x2 = x.packed()?;
        let y = with_element!(x.dtype(), T => {
            let v = x2.dense_slice::<T>(Self::NAME)?;
            Tensor::build::<T>(Layout::contiguous(*index.shape()), x.device(), |out| {
                out.iter_mut().zip(&places).for_each(|(o, &p)| *o = v[p]);
            })
        })?;
        Ok((y, (places, *x.shape())))
    }

    fn backward(
        &self,
        (places, shape): Self::Saved,
        dy: Tensor,
        _: [bool; 2],
    ) -> Result<[Option<Tensor>; 2]> {
        let dy = dy.packed()?;
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

/// Views, copies and gathers.
pub const CASES: &[Case] = &[
    Case {
        op: "reshape",
        name: "view",
        inputs: &[Input::Normal(&[2, 6])],
        run: |x| x[0].reshape([3, 4]),
    },
    Case {
        op: "reshape",
        name: "of a transpose",
        inputs: &[Input::Normal(&[2, 6])],
        run: |x| x[0].t()?.reshape([3, 4]),
    },
    Case {
        op: "flatten",
        name: "images",
        inputs: &[Input::Normal(&[2, 3, 2, 2])],
        run: |x| x[0].flatten(1),
    },
    Case {
        op: "permute",
        name: "(2, 0, 1)",
        inputs: &[Input::Normal(&[2, 3, 4])],
        run: |x| x[0].permute(&[2, 0, 1]),
    },
    Case {
        op: "transpose",
        name: "last two",
        inputs: &[Input::Normal(&[2, 3, 4])],
        run: |x| x[0].t(),
    },
    Case {
        op: "unsqueeze",
        name: "middle",
        inputs: &[Input::Normal(&[2, 3])],
        run: |x| x[0].unsqueeze(1),
    },
    Case {
        op: "squeeze",
        name: "middle",
        inputs: &[Input::Normal(&[2, 1, 3])],
        run: |x| x[0].squeeze(1),
    },
    Case {
        op: "expand",
        name: "two axes",
        inputs: &[Input::Normal(&[1, 3, 1])],
        run: |x| x[0].expand([2, 4, 3, 5]),
    },
    Case {
        op: "narrow",
        name: "middle",
        inputs: &[Input::Normal(&[2, 5, 3])],
        run: |x| x[0].narrow(1, 1, 3),
    },
    Case {
        op: "narrow",
        name: "nothing",
        inputs: &[Input::Normal(&[2, 5])],
        run: |x| x[0].narrow(1, 5, 0),
    },
    Case {
        op: "select",
        name: "last row",
        inputs: &[Input::Normal(&[3, 4])],
        run: |x| x[0].select(0, -1),
    },
    Case {
        op: "contiguous",
        name: "of a transpose",
        inputs: &[Input::Normal(&[3, 4])],
        run: |x| x[0].t()?.contiguous(),
    },
    Case {
        op: "pad",
        name: "both axes",
        inputs: &[Input::Normal(&[2, 3])],
        run: |x| x[0].pad(&[(0, 1, 0), (1, 2, 3)], 1.5),
    },
    Case {
        op: "flip",
        name: "last axis",
        inputs: &[Input::Normal(&[2, 3])],
        run: |x| x[0].flip(-1),
    },
    Case {
        op: "index_select",
        name: "with repeats",
        inputs: &[Input::Normal(&[2, 4, 3]), Input::Index(&[5], 4)],
        run: |x| x[0].index_select(1, &x[1]),
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
    Case {
        op: "cat",
        name: "two",
        inputs: &[Input::Normal(&[2, 3]), Input::Normal(&[2, 2])],
        run: |x| Tensor::cat(&[&x[0], &x[1]], 1),
    },
    Case {
        op: "cat",
        name: "three, one empty",
        inputs: &[
            Input::Normal(&[2, 3]),
            Input::Normal(&[0, 3]),
            Input::Normal(&[1, 3]),
        ],
        run: |x| Tensor::cat(&[&x[0], &x[1], &x[2]], 0),
    },
    Case {
        op: "cat",
        name: "the same five times",
        inputs: &[Input::Normal(&[2, 3])],
        run: |x| Tensor::cat(&[&x[0]; 5], 0),
    },
    Case {
        op: "stack",
        name: "two",
        inputs: &[Input::Normal(&[2, 3]), Input::Normal(&[2, 3])],
        run: |x| Tensor::stack(&[&x[0], &x[1]], 1),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() -> Result<()> {
        let x = Tensor::arange(0.0, 6.0, 1.0, DType::F32)?.reshape([2, 3])?;
        assert_eq!(x.t()?.to_vec::<f32>()?, [0., 3., 1., 4., 2., 5.]);
        assert_eq!(x.flip(1)?.to_vec::<f32>()?, [2., 1., 0., 5., 4., 3.]);
        assert_eq!(
            x.pad(&[(1, 1, 0)], 9.0)?.to_vec::<f32>()?,
            [9., 0., 1., 2., 9., 3., 4., 5.]
        );
        assert_eq!(x.select(1, -1)?.to_vec::<f32>()?, [2., 5.]);
        assert_eq!(Tensor::stack(&[&x, &x], 2)?.shape()[..], [2, 3, 2]);
        assert_eq!(x.reshape_infer(&[-1, 2])?.shape()[..], [3, 2]);
        assert_eq!(
            Tensor::cat(&[&x.t()?, &x.t()?], 1)?.to_vec::<f32>()?,
            [0., 3., 0., 3., 1., 4., 1., 4., 2., 5., 2., 5.]
        );
        let i = Tensor::from_vec(vec![1i64, 0, 0], [3])?;
        assert_eq!(i.index_select(0, &i)?.to_vec::<i64>()?, [0, 1, 1]);
        Ok(())
    }

    #[test]
    fn errors() -> Result<()> {
        let x = Tensor::zeros([2, 3], DType::F32)?;
        assert_eq!(
            x.reshape([4]).unwrap_err().to_string(),
            "reshape: [2, 3] has 6 elements, [4] has 4"
        );
        assert!(matches!(x.narrow(1, 2, 2), Err(Error::Index { .. })));
        assert!(matches!(
            x.narrow(0, usize::MAX, 2),
            Err(Error::Index { .. })
        ));
        assert!(matches!(x.narrow(2, 0, 1), Err(Error::Axis { .. })));
        assert!(x.permute(&[0, 0]).is_err() && x.permute(&[0]).is_err() && x.squeeze(0).is_err());
        assert!(
            x.expand([2, 4]).is_err()
                && x.reshape_infer(&[-1, -1]).is_err()
                && x.reshape_infer(&[-1, 0]).is_err()
        );
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
        assert!(Tensor::cat(&[], 0).is_err());
        let e = Tensor::cat(&[&x, &Tensor::zeros([2, 2], DType::F32)?], 0).unwrap_err();
        assert_eq!(e.to_string(), "cat: [2, 3] and [2, 2] differ beside axis 0");
        Ok(())
    }
}
