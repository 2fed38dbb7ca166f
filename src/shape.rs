//! Shapes, strided layouts, broadcasting and the geometry of sliding windows. No data here.

use crate::error::{Error, Result};

/// The most axes that a tensor can have.
pub const MAX_RANK: usize = 6;

/// The size of each axis, at most [`MAX_RANK`] of them. Dereferences to a slice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct Shape {
    rank: usize,
    dims: [usize; MAX_RANK],
}

impl Shape {
    /// From a slice; an error above [`MAX_RANK`] axes or where the element count overflows.
    pub fn new(dims: &[usize]) -> Result<Self> {
        if dims.len() > MAX_RANK {
            return Err(Error::argument(
                "shape",
                format!("{dims:?} has {} axes, the most is {MAX_RANK}", dims.len()),
            ));
        }
        if dims
            .iter()
            .try_fold(16usize, |n, &d| n.checked_mul(d.max(1)))
            .is_none()
        {
            return Err(Error::argument(
                "shape",
                format!("{dims:?} has more elements than memory can hold"),
            ));
        }
        Ok(Self::fits(dims))
    }

    /// From a slice known to be short enough.
    fn fits(dims: &[usize]) -> Self {
        let mut s = Shape {
            rank: dims.len(),
            dims: [0; MAX_RANK],
        };
        s.dims[..dims.len()].copy_from_slice(dims);
        s
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.iter().product()
    }

    /// An axis as given by a user, negative counting from the end, as an index.
    pub fn axis(&self, op: &'static str, axis: isize) -> Result<usize> {
        let rank = self.rank as isize;
        // a scalar takes axis 0 and -1, as PyTorch has it
        let bound = rank.max(1);
        if axis < -bound || axis >= bound {
            return Err(Error::Axis {
                op,
                axis,
                rank: self.rank,
            });
        }
        Ok(if axis < 0 {
            (axis + bound) as usize
        } else {
            axis as usize
        })
    }

    /// The same with axis `axis` of another size.
    pub fn with(mut self, axis: usize, size: usize) -> Self {
        self[axis] = size;
        self
    }

    /// The same without axis `axis`.
    pub fn without(&self, axis: usize) -> Self {
        let dims: Vec<usize> = self
            .iter()
            .enumerate()
            .filter(|&(i, _)| i != axis)
            .map(|(_, &d)| d)
            .collect();
        Self::fits(&dims)
    }
}

impl std::ops::Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.dims[..self.rank]
    }
}

impl std::ops::DerefMut for Shape {
    fn deref_mut(&mut self) -> &mut [usize] {
        &mut self.dims[..self.rank]
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&**self, f)
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&**self, f)
    }
}

/// What a function that wants a shape takes: an array, a slice, a vector, `()` for a scalar, a
/// number for a vector's length, or a [`Shape`].
pub trait IntoShape {
    /// The shape, or why it cannot be one.
    fn into_shape(self) -> Result<Shape>;
}

impl IntoShape for Shape {
    fn into_shape(self) -> Result<Shape> {
        Ok(self)
    }
}
impl IntoShape for &Shape {
    fn into_shape(self) -> Result<Shape> {
        Ok(*self)
    }
}
impl IntoShape for () {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(&[])
    }
}
impl IntoShape for usize {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(&[self])
    }
}
impl<const N: usize> IntoShape for [usize; N] {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(&self)
    }
}
impl<const N: usize> IntoShape for &[usize; N] {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(self)
    }
}
impl IntoShape for &[usize] {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(self)
    }
}
impl IntoShape for Vec<usize> {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(&self)
    }
}
impl IntoShape for &Vec<usize> {
    fn into_shape(self) -> Result<Shape> {
        Shape::new(self)
    }
}

/// Where each element of a tensor lies in its storage: element (i, j, ..) is at
/// `offset + i * strides[0] + j * strides[1] + ..`, in elements. Copied into kernels by value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Layout {
    shape: Shape,
    strides: [usize; MAX_RANK],
    offset: usize,
}

impl Layout {
    /// Row-major: the last axis is the fastest.
    pub fn contiguous(shape: Shape) -> Self {
        let order: Vec<usize> = (0..shape.len()).collect();
        Self::dense(shape, &order)
    }

    /// Channels last: logical (N, C, H, W), in memory N, H, W, C. What convolutions work on.
    pub fn channels_last(shape: Shape) -> Self {
        debug_assert_eq!(shape.len(), 4);
        Self::dense(shape, &[0, 2, 3, 1])
    }

    /// Without gaps, the axes in memory in the order `order`, slowest first.
    fn dense(shape: Shape, order: &[usize]) -> Self {
        let mut strides = [0; MAX_RANK];
        let mut stride = 1;
        for &axis in order.iter().rev() {
            strides[axis] = stride;
            stride *= shape[axis].max(1);
        }
        Layout {
            shape,
            strides,
            offset: 0,
        }
    }

    /// Without gaps, the axes in memory in the same order as in `self`; for results of ops that
    /// keep their input's order.
    pub fn dense_like(&self) -> Self {
        Self::dense(self.shape, &self.memory_order())
    }

    /// The axes, slowest first; axes of size 1 and equal strides stay in their place.
    fn memory_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.shape.len()).collect();
        // an axis of size 1 can lie anywhere: it must not decide the order
        let mut keys = [0; MAX_RANK];
        let mut last = 1;
        for axis in (0..self.shape.len()).rev() {
            if self.shape[axis] != 1 {
                last = self.strides[axis];
            }
            keys[axis] = last;
        }
        order.sort_by_key(|&axis| std::cmp::Reverse(keys[axis]));
        order
    }

    /// The axes' sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The axes' strides, in elements.
    pub fn strides(&self) -> &[usize] {
        &self.strides[..self.shape.len()]
    }

    /// The first element's place in the storage.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.shape.numel()
    }

    fn same_places(&self, o: &Layout) -> bool {
        self.numel() == 0
            || (0..self.shape.len()).all(|i| self.shape[i] == 1 || self.strides[i] == o.strides[i])
    }

    /// Whether the elements lie row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.same_places(&Self::contiguous(self.shape))
    }

    /// Whether it is 4-D and lies in memory as N, H, W, C without gaps.
    pub fn is_channels_last(&self) -> bool {
        self.shape.len() == 4 && self.same_places(&Self::channels_last(self.shape))
    }

    /// Elements from row to row, if it lies in the order of `dense`, a layout of the same shape that
    /// is rows of `row` elements: itself, or a part of longer rows.
    pub(crate) fn rows_apart(&self, dense: &Layout, row: usize) -> Option<usize> {
        let loops = Loops::new(dense, [self]);
        match (&loops.dims[..], &loops.strides[..]) {
            ([0, ..] | [_, 0, ..], _) => None,
            ([_], [[1]]) => Some(row),
            ([_, len], [[apart], [1]]) if *len == row && row <= *apart => Some(*apart),
            _ => None,
        }
    }

    /// Whether the elements fill one stretch of memory, in any order of the axes.
    pub fn is_dense(&self) -> bool {
        self.same_places(&self.dense_like())
    }

    /// The same from the start of a storage of its own.
    pub fn at_start(&self) -> Self {
        Layout { offset: 0, ..*self }
    }

    /// The stretch of storage that a dense layout fills.
    pub fn dense_range(&self) -> std::ops::Range<usize> {
        // a view of nothing may start behind the storage's end
        let start = if self.numel() == 0 { 0 } else { self.offset };
        start..start + self.numel()
    }

    /// Whether two layouts of one shape visit memory in the same order, so that a dense pair can
    /// be walked side by side.
    pub fn same_order(&self, o: &Layout) -> bool {
        self.shape == o.shape && self.same_places(o)
    }

    /// The axes reordered: axis i of the result is axis `axes[i]` of `self`.
    pub fn permute(&self, axes: &[usize]) -> Self {
        let mut l = *self;
        for (i, &a) in axes.iter().enumerate() {
            l.shape[i] = self.shape[a];
            l.strides[i] = self.strides[a];
        }
        l
    }

    /// `len` elements of an axis from `start` on; the caller has checked the bounds.
    pub fn narrow(&self, axis: usize, start: usize, len: usize) -> Self {
        let mut l = *self;
        l.offset += start * l.strides[axis];
        l.shape[axis] = len;
        l
    }

    /// The same elements under another shape of as many elements, if strides can express it.
    pub fn reshape(&self, shape: Shape) -> Option<Self> {
        debug_assert_eq!(self.numel(), shape.numel());
        if self.numel() == 0 {
            return Some(Layout {
                offset: self.offset,
                ..Self::contiguous(shape)
            });
        }
        // walk both shapes from the back, matching groups of axes with equal products
        let mut l = Layout {
            shape,
            strides: [0; MAX_RANK],
            offset: self.offset,
        };
        let old: Vec<(usize, usize)> = self
            .shape
            .iter()
            .copied()
            .zip(self.strides().iter().copied())
            .filter(|&(d, _)| d != 1)
            .collect();
        let (mut i, mut j) = (old.len(), shape.len());
        while i > 0 {
            // a group of old axes [i0, i) that is contiguous within itself
            let mut have = old[i - 1].0;
            let base = old[i - 1].1;
            i -= 1;
            let (mut want, mut stride) = (1, base);
            loop {
                while want < have {
                    if j == 0 {
                        return None;
                    }
                    j -= 1;
                    l.strides[j] = stride;
                    stride *= shape[j];
                    want *= shape[j];
                }
                if want == have {
                    break;
                }
                if i == 0 || old[i - 1].1 != base * have {
                    return None;
                }
                i -= 1;
                have *= old[i].0;
            }
        }
        for k in (0..j).rev() {
            if shape[k] != 1 {
                return None;
            }
            l.strides[k] = 1;
        }
        Some(l)
    }

    /// The layout read as if it had `shape`: missing and size-1 axes repeat with stride 0.
    /// The caller knows that they broadcast.
    pub fn expand(&self, shape: Shape) -> Self {
        let lead = shape.len() - self.shape.len();
        let mut l = Layout {
            shape,
            strides: [0; MAX_RANK],
            offset: self.offset,
        };
        for i in lead..shape.len() {
            if self.shape[i - lead] == shape[i] {
                l.strides[i] = self.strides[i - lead];
            }
        }
        l
    }

    /// Insert an axis of size 1 before `axis`.
    pub fn unsqueeze(&self, axis: usize) -> Result<Self> {
        let mut dims = self.shape.to_vec();
        dims.insert(axis, 1);
        let mut l = Layout {
            shape: Shape::new(&dims)?,
            ..*self
        };
        for i in (axis..self.shape.len()).rev() {
            l.strides[i + 1] = self.strides[i];
        }
        l.strides[axis] = if axis < self.shape.len() {
            self.strides[axis] * self.shape[axis]
        } else {
            1
        };
        Ok(l)
    }

    /// Remove an axis, at index `index` of it.
    pub fn select(&self, axis: usize, index: usize) -> Self {
        let mut l = Layout {
            shape: self.shape.without(axis),
            ..*self
        };
        l.offset += index * self.strides[axis];
        for i in axis..l.shape.len() {
            l.strides[i] = self.strides[i + 1];
        }
        l
    }
}

/// Loops over one shape with K operands, beside an output that is written front to back: the
/// axes in the output's memory order, neighbours merged where every operand allows it.
#[derive(Clone, Debug)]
pub(crate) struct Loops<const K: usize> {
    /// The sizes of the axes, slow to fast.
    pub dims: Vec<usize>,
    /// In elements, an axis and an operand each.
    pub strides: Vec<[usize; K]>,
    /// Where each operand starts.
    pub base: [usize; K],
}

impl<const K: usize> Loops<K> {
    /// For an output of layout `out` (dense) and operands expanded to its shape.
    pub fn new(out: &Layout, inputs: [&Layout; K]) -> Self {
        let mut axes: Vec<usize> = (0..out.shape().len())
            .filter(|&a| out.shape()[a] != 1)
            .collect();
        axes.sort_by_key(|&a| std::cmp::Reverse(out.strides()[a]));
        let (mut dims, mut strides) = (Vec::<usize>::new(), Vec::<[usize; K]>::new());
        for a in axes {
            let (size, stride) = (out.shape()[a], inputs.map(|l| l.strides()[a]));
            match (dims.last_mut(), strides.last_mut()) {
                (Some(d), Some(s)) if (0..K).all(|k| s[k] == size * stride[k]) => {
                    *d *= size;
                    *s = stride;
                }
                _ => {
                    dims.push(size);
                    strides.push(stride);
                }
            }
        }
        if dims.is_empty() {
            dims.push(1);
            strides.push([1; K]);
        }
        Loops {
            dims,
            strides,
            base: inputs.map(Layout::offset),
        }
    }
}

/// The shape that two shapes broadcast to, by PyTorch's rule: aligned at the last axis, sizes
/// equal or one of them 1.
pub fn broadcast(op: &'static str, a: &Shape, b: &Shape) -> Result<Shape> {
    let rank = a.len().max(b.len());
    let size = |s: &Shape, i: usize| {
        if i + s.len() >= rank {
            s[i + s.len() - rank]
        } else {
            1
        }
    };
    let mut dims = [0; MAX_RANK];
    for (i, d) in dims[..rank].iter_mut().enumerate() {
        *d = match (size(a, i), size(b, i)) {
            (x, y) if x == y => x,
            (1, y) => y,
            (x, 1) => x,
            (x, y) => {
                return Err(Error::shape(
                    op,
                    &[*a, *b],
                    format!("{a:?} and {b:?} do not broadcast: axis {i} has sizes {x} and {y}"),
                ));
            }
        };
    }
    Shape::new(&dims[..rank])
}

/// A window that slides over the last two axes: kernel, stride, padding, dilation, each (H, W).
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Window {
    /// The window's height and width, in elements.
    pub kernel: [usize; 2],
    /// Steps between windows.
    pub stride: [usize; 2],
    /// Elements added at each side.
    pub padding: [usize; 2],
    /// Steps between a window's elements.
    pub dilation: [usize; 2],
}

impl Window {
    /// A window of this size that moves by one, without padding.
    pub fn new(kernel: [usize; 2]) -> Self {
        Window {
            kernel,
            stride: [1, 1],
            padding: [0, 0],
            dilation: [1, 1],
        }
    }

    /// The output's height and width for an input of `size`:
    /// floor((size + 2 padding - dilation (kernel - 1) - 1) / stride) + 1.
    pub fn output(&self, op: &'static str, size: [usize; 2]) -> Result<[usize; 2]> {
        let mut out = [0; 2];
        for i in 0..2 {
            let span = self.span(op, i)?;
            let padded = self.padding[i]
                .checked_mul(2)
                .and_then(|x| x.checked_add(size[i]))
                .ok_or_else(|| self.overflow(op))?;
            if span > padded {
                return Err(Error::argument(
                    op,
                    format!(
                        "kernel {:?} (dilation {:?}) is larger than the input {size:?} with padding {:?}",
                        self.kernel, self.dilation, self.padding
                    ),
                ));
            }
            out[i] = (padded - span) / self.stride[i] + 1;
        }
        Ok(out)
    }

    /// The height and width that a transposed convolution makes of images of `size`, at least 1:
    /// (size - 1) stride - 2 padding + dilation (kernel - 1) + 1 + extra.
    pub fn transposed_output(
        &self,
        op: &'static str,
        size: [usize; 2],
        extra: [usize; 2],
    ) -> Result<[usize; 2]> {
        let mut out = [0; 2];
        for i in 0..2 {
            let span = self.span(op, i)?;
            let steps = size[i].saturating_sub(1);
            let whole = steps
                .checked_mul(self.stride[i])
                .and_then(|x| x.checked_add(span)?.checked_add(extra[i]))
                .ok_or_else(|| self.overflow(op))?;
            let cut = self.padding[i].checked_mul(2);
            let left = cut.and_then(|cut| whole.checked_sub(cut));
            out[i] = left.filter(|&x| x > 0 && size[i] > 0).ok_or_else(|| {
                let why = format!(
                    "padding {:?} leaves no output of an input {size:?} with kernel {:?} (stride {:?}, dilation {:?})",
                    self.padding, self.kernel, self.stride, self.dilation
                );
                Error::argument(op, why)
            })?;
        }
        Ok(out)
    }

    /// An error of `op` where rows or columns added at the end of a transposed convolution's output
    /// are as many as the stride and the dilation.
    pub(crate) fn check_output_padding(&self, op: &'static str, extra: [usize; 2]) -> Result<()> {
        let (stride, dilation) = (self.stride, self.dilation);
        if (0..2).any(|i| extra[i] >= stride[i].max(dilation[i])) {
            let why = format!(
                "output_padding {extra:?} is not smaller than stride {stride:?} or dilation {dilation:?}"
            );
            return Err(Error::argument(op, why));
        }
        Ok(())
    }

    /// From the window's first element to its last along an axis.
    fn span(&self, op: &'static str, i: usize) -> Result<usize> {
        for (name, v) in [
            ("kernel", self.kernel[i]),
            ("stride", self.stride[i]),
            ("dilation", self.dilation[i]),
        ] {
            if v == 0 {
                return Err(Error::argument(
                    op,
                    format!("{name} is {v}, expected at least 1"),
                ));
            }
        }
        (self.kernel[i] - 1)
            .checked_mul(self.dilation[i])
            .and_then(|x| x.checked_add(1))
            .ok_or_else(|| self.overflow(op))
    }

    fn overflow(&self, op: &'static str) -> Error {
        Error::argument(op, format!("{self:?} is too large"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(d: &[usize]) -> Shape {
        Shape::new(d).unwrap()
    }

    #[test]
    fn broadcasting_follows_pytorch() {
        assert_eq!(
            *broadcast("add", &s(&[5, 1, 2, 1]), &s(&[3, 1, 4])).unwrap(),
            [5, 3, 2, 4]
        );
        assert_eq!(*broadcast("add", &s(&[]), &s(&[2, 0])).unwrap(), [2, 0]);
        let e = broadcast("add", &s(&[2, 3]), &s(&[2, 4]))
            .unwrap_err()
            .to_string();
        assert_eq!(
            e,
            "add: [2, 3] and [2, 4] do not broadcast: axis 1 has sizes 3 and 4"
        );
    }

    #[test]
    fn reshape_of_views() {
        let l = Layout::contiguous(s(&[2, 3, 4]));
        assert_eq!(l.reshape(s(&[6, 4])).unwrap().strides(), [4, 1]);
        assert_eq!(l.reshape(s(&[2, 12, 1])).unwrap().strides()[..2], [12, 1]);
        let t = l.permute(&[1, 0, 2]);
        assert!(t.reshape(s(&[6, 4])).is_none());
        assert_eq!(
            t.reshape(s(&[3, 2, 2, 2])).unwrap().strides(),
            [4, 12, 2, 1]
        );
        let n = l.narrow(1, 1, 2);
        assert!(n.reshape(s(&[4, 4])).is_none());
        assert_eq!(n.reshape(s(&[2, 8])).unwrap().strides(), [12, 1]);
        // an expanded axis cannot be merged with its neighbour
        assert!(
            Layout::contiguous(s(&[1, 3]))
                .expand(s(&[4, 3]))
                .reshape(s(&[12]))
                .is_none()
        );
    }

    #[test]
    fn density() {
        let l = Layout::channels_last(s(&[2, 3, 4, 5]));
        assert!(l.is_dense() && l.is_channels_last() && !l.is_contiguous());
        assert_eq!(l.dense_like(), l);
        assert!(!l.narrow(3, 0, 4).is_dense());
        assert!(Layout::channels_last(s(&[2, 1, 4, 5])).is_contiguous());
        assert!(!Layout::contiguous(s(&[1, 3])).expand(s(&[4, 3])).is_dense());
    }

    #[test]
    fn window_output_and_errors() {
        let w = Window {
            stride: [2, 2],
            padding: [1, 1],
            ..Window::new([3, 3])
        };
        assert_eq!(w.output("conv2d", [5, 6]).unwrap(), [3, 3]);
        let e = Window::new([3, 3])
            .output("max_pool2d", [2, 2])
            .unwrap_err()
            .to_string();
        assert!(e.contains("kernel [3, 3]") && e.contains("[2, 2]"), "{e}");
        assert!(Window::new([0, 3]).output("conv2d", [2, 2]).is_err());
        let back = |size| w.transposed_output("conv_transpose2d", size, [0, 1]);
        assert_eq!(back([3, 3]).unwrap(), [5, 6]);
        assert!(back([0, 3]).is_err());
    }
}
