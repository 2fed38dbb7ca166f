//! Ops that move elements and compute nothing: views, cat, stack, pad, flip.

use crate::autograd::{Op, apply};
use crate::cpu::strided;
use crate::cuda::{Arg, Gpu, Walk, kernels};
use crate::device::Device;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::ops::Formula;
use crate::ops::check::{Case, Input};
use crate::shape::{IntoShape, Layout, Shape};
use crate::tensor::Tensor;
use crate::with_element;

kernels! {
    /// A part written to its place in a whole, one thread an element or 16 bytes.
    PASTE = "paste" [F32, F64, BF16, F16, I64, U8];
    /// One thread an element.
    FLIP = "flip" [F32, F64, BF16, F16, I64, U8];
}

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

    /// Axes `start` and after made one: (N, C, H, W) from 1 on becomes (N, C H W). Negative axes
    /// count from the end; behind the last axis, an axis of size 1 is added.
    pub fn flatten(&self, start: isize) -> Result<Tensor> {
        let start = match start {
            s if s == self.rank() as isize => self.rank(),
            s => self.shape().axis("flatten", s)?,
        };
        let mut dims = self.shape()[..start].to_vec();
        dims.push(self.shape()[start..].iter().product());
        self.reshape(dims)
    }

    /// The axes in another order: axis i of the result is axis `axes[i]`; negative axes count from
    /// the end.
    pub fn permute(&self, axes: &[isize]) -> Result<Tensor> {
        let rank = self.rank() as isize;
        let from_start = |&a: &isize| if a < 0 { a + rank } else { a } as usize;
        let order: Vec<usize> = axes.iter().map(from_start).collect();
        let mut back = vec![isize::MAX; self.rank()];
        for (i, &a) in order.iter().enumerate() {
            if a < back.len() {
                back[a] = i as isize;
            }
        }
        if axes.len() != self.rank() || back.contains(&isize::MAX) {
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
            layout: self.layout().permute(&order),
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
        let mut axes: Vec<isize> = (0..self.rank() as isize).collect();
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
        let back = move |dy: &Tensor| dy.pad(&[(i as isize, start, size - start - len)], 0.0);
        View {
            name: "narrow",
            layout: self.layout().narrow(i, start, len),
            back,
        }
        .run(self)
    }

    /// Views of an axis cut into parts of these sizes, which must add up to the axis.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let x = Tensor::arange(0.0, 5.0, 1.0, DType::F32)?;
    /// let parts = x.split(&[2, 3], 0)?;
    /// assert_eq!(parts[1].to_vec::<f32>()?, [2.0, 3.0, 4.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn split(&self, sizes: &[usize], axis: isize) -> Result<Vec<Tensor>> {
        let i = self.shape().axis("split", axis)?;
        let Some(&size) = self.shape().get(i) else {
            return Err(Error::Axis {
                op: "split",
                axis,
                rank: 0,
            });
        };
        let sum = sizes.iter().try_fold(0usize, |sum, &s| sum.checked_add(s));
        if sum != Some(size) {
            return Err(Error::argument(
                "split",
                format!(
                    "sizes {sizes:?} do not add up to the {size} of axis {axis} of {:?}",
                    self.shape()
                ),
            ));
        }
        let mut start = 0;
        let part = |&len: &usize| {
            start += len;
            self.narrow(axis, start - len, len)
        };
        sizes.iter().map(part).collect()
    }

    /// Views of an axis cut into `n` parts of equal size, the last smaller where `n` does not
    /// divide it; fewer than `n` where that size fills the axis sooner, as PyTorch has it. An axis of
    /// size 0 gives `n` empty parts, an error above 65,536.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let x = Tensor::arange(0.0, 5.0, 1.0, DType::F32)?;
    /// let parts = x.chunk(2, 0)?;
    /// assert_eq!(parts[1].to_vec::<f32>()?, [3.0, 4.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn chunk(&self, n: usize, axis: isize) -> Result<Vec<Tensor>> {
        let i = self.shape().axis("chunk", axis)?;
        let Some(&size) = self.shape().get(i) else {
            return Err(Error::Axis {
                op: "chunk",
                axis,
                rank: 0,
            });
        };
        if n == 0 {
            return Err(Error::argument("chunk", "0 parts, expected at least 1"));
        }
        if size == 0 && n > MOST_EMPTY {
            let why = format!(
                "{n} parts of axis {axis} of {:?}, expected at most {MOST_EMPTY} empty ones",
                self.shape()
            );
            return Err(Error::argument("chunk", why));
        }
        let each = size.div_ceil(n);
        let sizes: Vec<usize> = match each {
            0 => vec![0; n],
            _ => (0..size)
                .step_by(each)
                .map(|at| each.min(size - at))
                .collect(),
        };
        self.split(&sizes, axis)
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

    /// `before` and `after` elements of `value` added to each named axis: `(axis, before, after)`;
    /// negative axes count from the end.
    pub fn pad(&self, widths: &[(isize, usize, usize)], value: f64) -> Result<Tensor> {
        let mut pads = vec![(0, 0); self.rank()];
        for &(axis, before, after) in widths {
            let i = self.shape().axis("pad", axis)?;
            *pads.get_mut(i).ok_or(Error::Axis {
                op: "pad",
                axis,
                rank: 0,
            })? = (before, after);
        }
        apply(Pad { pads, value }, [self])
    }

    /// The elements of an axis in reverse order.
    pub fn flip(&self, axis: isize) -> Result<Tensor> {
        let axis = self.shape().axis("flip", axis)?;
        if self.rank() == 0 {
            Ok(self.clone())
        } else {
            apply(Flip { axis }, [self])
        }
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

/// The order of what is made of parts: row-major; images that are channels-last stay so.
fn order(shape: Shape, like: &Tensor) -> Layout {
    if like.layout().is_channels_last() && !like.is_contiguous() {
        Layout::channels_last(shape)
    } else {
        Layout::contiguous(shape)
    }
}

/// A new tensor of `shape` filled with `value`, `parts` copied into it, each at its start along
/// each axis.
fn assemble(shape: Shape, value: f64, parts: &[(&Tensor, Vec<usize>)]) -> Result<Tensor> {
    let like = parts[0].0;
    let place = |whole: Layout, part: &Tensor, at: &[usize]| {
        let axes = at.iter().zip(part.shape().iter()).enumerate();
        axes.fold(whole, |l, (axis, (&start, &size))| {
            l.narrow(axis, start, size)
        })
    };
    let covered = parts.iter().map(|(t, _)| t.numel()).sum::<usize>() == shape.numel();
    if let Device::Cuda(gpu) = like.device() {
        let whole = order(shape, like);
        let y = if covered {
            Tensor::empty(whole, like.dtype(), like.device())?
        } else {
            Tensor::full(shape, value, like.options())?.view_as(whole)
        };
        for (t, at) in parts.iter().filter(|(t, _)| t.numel() > 0) {
            paste(gpu, t, &y.view_as(place(whole, t, at)))?;
        }
        return Ok(y);
    }
    let whole = Layout::contiguous(shape);
    with_element!(like.dtype(), T => {
        let sources = parts.iter().map(|(t, at)| Ok((t, t.storage_slice::<T>("cat")?, at))).collect::<Result<Vec<_>>>()?;
        Tensor::build::<T>(whole, like.device(), |out| {
            if !covered {
                out.fill(T::from_f64(value));
            }
            for (t, x, at) in sources.into_iter().filter(|(t, ..)| t.numel() > 0) {
                scatter(x, t.layout(), out, &place(whole, t, at));
            }
        })
    })
}

/// Copy the elements of a tensor to the places of another, of the same shape and dtype.
fn paste(gpu: Gpu, from: &Tensor, to: &Tensor) -> Result<()> {
    // in the order of `to`'s memory, so that the writes of neighbouring threads lie side by side
    let mut walk = Walk::new(&to.layout().dense_like(), [from.layout(), to.layout()])?;
    let packs = walk.in_packs(to.dtype().size(), [from.input(), to.output()]);
    let args = [
        walk.arg(),
        Arg::I32(packs as i32),
        from.input(),
        to.output(),
    ];
    gpu.launch_over(PASTE.of(to.dtype())?, walk.n as usize, 256, &args)
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

/// Tensors joined along an axis, on the CPU: a stretch of each by turns, in the order of memory.
fn join<const N: usize>(shape: Shape, axis: usize, xs: [&Tensor; N]) -> Result<Tensor> {
    let whole = order(shape, xs[0]);
    let stride = whole.strides()[axis];
    let parts = xs
        .iter()
        .map(|x| x.laid_out(whole.narrow(axis, 0, x.shape()[axis]).dense_like()))
        .collect::<Result<Vec<_>>>()?;
    let row = shape[axis] * stride;
    with_element!(xs[0].dtype(), T => {
        let parts = parts
            .iter()
            .map(|x| Ok((x.dense_slice::<T>("cat")?, x.shape()[axis] * stride)))
            .collect::<Result<Vec<_>>>()?;
        Tensor::build::<T>(whole, xs[0].device(), |out| {
            strided::fresh_rows(out, row, row, #[inline(always)] |out, r| {
                let mut rest = out;
                for &(x, len) in &parts {
                    let (to, others) = rest.split_at_mut(len);
                    let from = &x[r * len..][..len];
                    strided::ask(from);
                    strided::copy_short(from, to);
                    rest = others;
                }
            })
        })
    })
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
        let mut starts = [0; N];
        for (x, start) in xs.iter().zip(&mut starts) {
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
            *start = total;
            total += x.shape()[self.axis];
        }
        let shape = Shape::new(&first.with(self.axis, total))?;
        let y = match xs[0].device() {
            Device::Cpu => join(shape, self.axis, xs)?,
            Device::Cuda(_) => {
                let at = |start| {
                    let mut at = vec![0; first.len()];
                    at[self.axis] = start;
                    at
                };
                let parts: Vec<(&Tensor, Vec<usize>)> =
                    xs.into_iter().zip(starts.map(at)).collect();
                assemble(shape, 0.0, &parts)?
            }
        };
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

struct Flip {
    axis: usize,
}
impl Op<1> for Flip {
    const NAME: &'static str = "flip";
    const ANY_DTYPE: bool = true;
    type Saved = ();

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, ())> {
        let size = x.shape()[self.axis];
        let Device::Cuda(gpu) = x.device() else {
            let reverse: Vec<i64> = (0..size as i64).rev().collect();
            let y = x.index_select(self.axis as isize, &Tensor::from_vec(reverse, size)?)?;
            return Ok((y, ()));
        };
        let (n, [_, inner]) = (x.numel(), around(x.shape(), self.axis));
        let x = x.packed()?;
        let y = Tensor::empty(*x.layout(), x.dtype(), x.device())?;
        let numbers = [
            Arg::U32(n as u32),
            Arg::I32(size as i32),
            Arg::I32(inner as i32),
        ];
        let args = [&[x.input(), y.output()], &numbers[..]].concat();
        gpu.launch_over(FLIP.of(y.dtype())?, n, 256, &args)?;
        Ok((y, ()))
    }

    fn backward(&self, _: (), dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(dy.flip(self.axis as isize)?)])
    }
}

/// The number of elements before and after an axis.
pub(super) fn around(shape: &Shape, axis: usize) -> [usize; 2] {
    [&shape[..axis], &shape[axis + 1..]].map(|s| s.iter().product())
}

/// Empty parts that an axis of size 0 is cut into.
const MOST_EMPTY: usize = 65_536;

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[
    (
        "reshape",
        "the elements in row-major order, under another shape",
    ),
    ("flatten", "the last axes made one"),
    ("permute", "the axes in another order"),
    ("transpose", "two axes exchanged"),
    ("unsqueeze", "an axis of size 1 added"),
    ("squeeze", "an axis of size 1 taken away"),
    ("expand", "axes of size 1 repeated"),
    ("narrow", "some neighbours of an axis"),
    ("split", "an axis cut into parts of given sizes"),
    ("chunk", "an axis cut into n parts of size ceil(size / n)"),
    ("select", "one element of an axis"),
    ("contiguous", "the same elements, row-major in memory"),
    ("pad", "a number added before and after axes"),
    ("flip", "an axis in reverse order"),
    ("cat", "tensors joined along an axis"),
    ("stack", "tensors joined along a new axis"),
];

/// Views and copies.
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
        op: "permute",
        name: "(-1, 0, -2)",
        inputs: &[Input::Normal(&[2, 3, 4])],
        run: |x| x[0].permute(&[-1, 0, -2]),
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
        op: "split",
        name: "three parts, two of them used",
        inputs: &[Input::Normal(&[3, 5])],
        run: |x| {
            let parts = x[0].split(&[2, 1, 2], 1)?;
            parts[0].mul(&parts[2])
        },
    },
    Case {
        op: "split",
        name: "one part empty",
        inputs: &[Input::Normal(&[4, 2])],
        run: |x| {
            let parts = x[0].split(&[1, 0, 3], -2)?;
            parts[2].add(&parts[0])?.add(&parts[1].sum(&[0], true)?)
        },
    },
    Case {
        op: "chunk",
        name: "channels of images, a gate",
        inputs: &[Input::Normal(&[2, 4, 2, 3])],
        run: |x| {
            let parts = x[0].chunk(2, 1)?;
            parts[0].mul(&parts[1].sigmoid()?)
        },
    },
    Case {
        op: "chunk",
        name: "ragged",
        inputs: &[Input::Normal(&[2, 5])],
        run: |x| {
            let parts = x[0].chunk(3, 1)?;
            parts[1].mul(&parts[0])?.mul(&parts[2])
        },
    },
    Case {
        op: "chunk",
        name: "of nothing",
        inputs: &[Input::Normal(&[0, 3])],
        run: |x| {
            let parts = x[0].chunk(2, 0)?;
            parts[0].add(&parts[1])
        },
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
        op: "pad",
        name: "last axis",
        inputs: &[Input::Normal(&[2, 3])],
        run: |x| x[0].pad(&[(-1, 2, 0)], -0.5),
    },
    Case {
        op: "flip",
        name: "last axis",
        inputs: &[Input::Normal(&[2, 3])],
        run: |x| x[0].flip(-1),
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

/// Several blocks, packs of 16 bytes and ragged ends, images that are channels-last.
pub const LARGE: &[Case] = &[
    Case {
        op: "pad",
        name: "several blocks",
        inputs: &[Input::Normal(&[5, 33, 67])],
        run: |x| x[0].pad(&[(1, 2, 1), (2, 0, 3)], -0.5),
    },
    Case {
        op: "cat",
        name: "of whole packs",
        inputs: &[
            Input::Normal(&[37, 64]),
            Input::Normal(&[37, 16]),
            Input::Normal(&[37, 32]),
        ],
        run: |x| Tensor::cat(&[&x[0], &x[1], &x[2]], 1),
    },
    Case {
        op: "cat",
        name: "ragged",
        inputs: &[Input::Normal(&[3, 41, 29]), Input::Normal(&[3, 8, 29])],
        run: |x| Tensor::cat(&[&x[0], &x[1]], 1),
    },
    Case {
        op: "cat",
        name: "channels of channels-last images",
        inputs: &[Input::Normal(&[2, 9, 9, 16]), Input::Normal(&[2, 9, 9, 8])],
        run: |x| {
            let [a, b] = [&x[0], &x[1]].map(|x| x.permute(&[0, 3, 1, 2]));
            Tensor::cat(&[&a?, &b?], 1)
        },
    },
    Case {
        op: "flip",
        name: "middle",
        inputs: &[Input::Normal(&[5, 33, 21])],
        run: |x| x[0].flip(1),
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

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
        Ok(())
    }

    #[test]
    fn parts_are_views_of_pytorchs_sizes() -> Result<()> {
        let x = Tensor::arange(0.0, 14.0, 1.0, DType::F32)?.reshape([2, 7])?;
        let parts = x.split(&[3, 0, 4], -1)?;
        assert!(parts.iter().all(|p| p.shares_storage(&x)));
        assert_eq!(parts[0].to_vec::<f32>()?, [0., 1., 2., 7., 8., 9.]);
        let sizes = |n, size: usize| -> Result<Vec<usize>> {
            let parts = Tensor::zeros([size], DType::F32)?.chunk(n, 0)?;
            Ok(parts.iter().map(Tensor::numel).collect())
        };
        assert_eq!(sizes(3, 7)?, [3, 3, 1]);
        assert_eq!(sizes(5, 6)?, [2, 2, 2]);
        assert_eq!(sizes(3, 2)?, [1, 1]);
        assert_eq!(sizes(2, 0)?, [0, 0]);
        Ok(())
    }

    #[test]
    fn negative_axes_count_from_the_end() -> Result<()> {
        let x = Tensor::arange(0.0, 24.0, 1.0, DType::F32)?.reshape([2, 3, 4])?;
        assert_eq!(x.flatten(-2)?.shape()[..], [2, 12]);
        assert_eq!(x.flatten(3)?.shape()[..], [2, 3, 4, 1]);
        assert_eq!(x.permute(&[-1, 0, 1])?.shape()[..], [4, 2, 3]);
        assert_eq!(x.pad(&[(-3, 1, 0)], 0.0)?.shape()[..], [3, 3, 4]);
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
        for axes in [&[0, 0][..], &[0], &[1, -1], &[0, -3], &[0, 2]] {
            assert!(x.permute(axes).is_err(), "{axes:?}");
        }
        assert!(x.squeeze(0).is_err());
        for axis in [-3, 2] {
            assert!(matches!(
                x.pad(&[(axis, 1, 1)], 0.0),
                Err(Error::Axis { .. })
            ));
        }
        for start in [-3, 3] {
            assert!(matches!(x.flatten(start), Err(Error::Axis { .. })));
        }
        assert!(
            x.expand([2, 4]).is_err()
                && x.reshape_infer(&[-1, -1]).is_err()
                && x.reshape_infer(&[-1, 0]).is_err()
        );
        let scalar = Tensor::scalar(1f32)?;
        assert!(scalar.pad(&[(0, 1, 1)], 0.0).is_err());
        assert!(scalar.split(&[1], 0).is_err() && scalar.chunk(1, 0).is_err());
        assert!(x.split(&[2], 2).is_err() && x.chunk(2, -3).is_err());
        let text = |r: Result<Vec<Tensor>>| r.unwrap_err().to_string();
        assert_eq!(
            text(x.split(&[1, 1], -1)),
            "split: sizes [1, 1] do not add up to the 3 of axis -1 of [2, 3]"
        );
        assert!(x.split(&[usize::MAX, 4], 1).is_err());
        assert_eq!(text(x.chunk(0, 1)), "chunk: 0 parts, expected at least 1");
        let none = Tensor::zeros([2, 0], DType::F32)?;
        assert_eq!(none.chunk(3, 1)?.len(), 3);
        assert_eq!(x.chunk(usize::MAX, 1)?.len(), 3);
        assert_eq!(
            text(none.chunk(65_537, 1)),
            "chunk: 65537 parts of axis 1 of [2, 0], expected at most 65536 empty ones"
        );
        assert!(Tensor::cat(&[], 0).is_err());
        let e = Tensor::cat(&[&x, &Tensor::zeros([2, 2], DType::F32)?], 0).unwrap_err();
        assert_eq!(e.to_string(), "cat: [2, 3] and [2, 2] differ beside axis 0");
        Ok(())
    }
}
