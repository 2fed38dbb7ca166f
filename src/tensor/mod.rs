//! The tensor: storage, a layout over it, and its place in the graph. Creation, reading and
//! writing; ops with a gradient live in `ops`.

mod cuda;
mod display;
pub(crate) mod fold;
mod interop;

use std::sync::Arc;

use crate::autograd::Node;
use crate::cpu::strided;
use crate::device::Device;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::random::Generator;
use crate::shape::{IntoShape, Layout, Shape};
use crate::storage::Storage;
use crate::with_element;

/// An n-dimensional array, at most six axes, that can take part in a graph.
///
/// Cloning is cheap: clones share their storage until one of them is written (copy on write).
#[derive(Clone)]
pub struct Tensor {
    pub(crate) storage: Arc<Storage>,
    pub(crate) layout: Layout,
    pub(crate) node: Option<Arc<Node>>,
}

/// Element type and device of a new tensor. Made from a [`DType`], a [`Device`] or a pair of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The element type, F32 by default.
    pub dtype: DType,
    /// The device, the CPU by default.
    pub device: Device,
}

impl From<DType> for Options {
    fn from(dtype: DType) -> Self {
        Options {
            dtype,
            ..Self::default()
        }
    }
}
impl From<Device> for Options {
    fn from(device: Device) -> Self {
        Options {
            device,
            ..Self::default()
        }
    }
}
impl From<(DType, Device)> for Options {
    fn from((dtype, device): (DType, Device)) -> Self {
        Options { dtype, device }
    }
}

/// Creation.
impl Tensor {
    /// Allocate a tensor of this layout (dense; its offset is dropped) and let `fill` write its
    /// elements in memory order. What every op's forward ends with on the CPU; for a GPU the CPU
    /// computes the elements and they are copied.
    pub(crate) fn build<T: Element>(
        layout: Layout,
        device: Device,
        fill: impl FnOnce(&mut [T]),
    ) -> Result<Self> {
        let (n, layout) = (layout.numel(), layout.at_start());
        if let Device::Cuda(gpu) = device {
            return Self::build(layout, Device::Cpu, fill)?.upload::<T>(gpu);
        }
        let mut storage = Storage::new(T::DTYPE, n, device)?;
        fill(&mut storage.slice_mut("build")?[..n]);
        Ok(Tensor {
            storage: Arc::new(storage),
            layout,
            node: None,
        })
    }

    /// Every element `value`.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let x = Tensor::full([2, 2], 0.5, DType::F32)?;
    /// assert_eq!(x.to_vec::<f32>()?, [0.5; 4]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn full(shape: impl IntoShape, value: f64, options: impl Into<Options>) -> Result<Self> {
        let (layout, o) = (Layout::contiguous(shape.into_shape()?), options.into());
        if let Device::Cuda(gpu) = o.device {
            return Self::filled(layout, value, o.dtype, gpu);
        }
        with_element!(o.dtype, T => Self::build::<T>(layout, o.device, |out| out.fill(T::from_f64(value))))
    }

    /// Every element 0.
    pub fn zeros(shape: impl IntoShape, options: impl Into<Options>) -> Result<Self> {
        Self::full(shape, 0.0, options)
    }

    /// Every element 1.
    pub fn ones(shape: impl IntoShape, options: impl Into<Options>) -> Result<Self> {
        Self::full(shape, 1.0, options)
    }

    /// Zeros of another tensor's shape, dtype and device.
    pub fn zeros_like(&self) -> Result<Self> {
        Self::zeros(self.shape(), (self.dtype(), self.device()))
    }

    /// Ones of another tensor's shape, dtype and device.
    pub fn ones_like(&self) -> Result<Self> {
        Self::ones(self.shape(), (self.dtype(), self.device()))
    }

    /// `start, start + step, ..` up to but without `end`.
    pub fn arange(start: f64, end: f64, step: f64, options: impl Into<Options>) -> Result<Self> {
        let n = ((end - start) / step).ceil();
        if !n.is_finite() || n >= 2f64.powi(48) || step == 0.0 {
            return Err(Error::argument(
                "arange",
                format!("from {start} to {end} by {step} is no finite range"),
            ));
        }
        Self::generate(n.max(0.0) as usize, options.into(), |i| {
            start + i as f64 * step
        })
    }

    /// `steps` numbers from `start` to `end`, both included.
    pub fn linspace(
        start: f64,
        end: f64,
        steps: usize,
        options: impl Into<Options>,
    ) -> Result<Self> {
        let last = steps.saturating_sub(1).max(1) as f64;
        Self::generate(steps, options.into(), |i| {
            start + (end - start) * (i as f64 / last)
        })
    }

    /// The identity matrix (n, n).
    pub fn eye(n: usize, options: impl Into<Options>) -> Result<Self> {
        let o = options.into();
        let layout = Layout::contiguous([n, n].into_shape()?);
        with_element!(o.dtype, T => Self::build::<T>(layout, o.device, |out| {
            out.fill(T::default());
            out.iter_mut().step_by(n + 1).for_each(|x| *x = T::from_f64(1.0));
        }))
    }

    fn generate(n: usize, o: Options, f: impl Fn(usize) -> f64) -> Result<Self> {
        let layout = Layout::contiguous(n.into_shape()?);
        with_element!(o.dtype, T => Self::build::<T>(layout, o.device, |out| {
            out.iter_mut().enumerate().for_each(|(i, x)| *x = T::from_f64(f(i)));
        }))
    }

    /// A vector's elements in row-major order, without a copy.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let x = Tensor::from_vec(vec![1f32, 2.0, 3.0, 4.0], [2, 2])?;
    /// assert_eq!(x.shape()[..], [2, 2]);
    /// assert!(Tensor::from_vec(vec![1f32], [2]).is_err());
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn from_vec<T: Element>(v: Vec<T>, shape: impl IntoShape) -> Result<Self> {
        let shape = shape.into_shape()?;
        if v.len() != shape.numel() {
            return Err(Error::shape(
                "from_vec",
                &[shape],
                format!("{} elements do not fill shape {shape:?}", v.len()),
            ));
        }
        Ok(Tensor {
            storage: Arc::new(Storage::from_vec(v)),
            layout: Layout::contiguous(shape),
            node: None,
        })
    }

    /// A slice's elements in row-major order.
    pub fn from_slice<T: Element>(v: &[T], shape: impl IntoShape) -> Result<Self> {
        Self::from_vec(v.to_vec(), shape)
    }

    /// A tensor without axes.
    pub fn scalar<T: Element>(value: T) -> Result<Self> {
        Self::from_vec(vec![value], ())
    }

    /// Uniform in [0, 1), from `rng`.
    pub fn rand(
        shape: impl IntoShape,
        rng: &mut Generator,
        options: impl Into<Options>,
    ) -> Result<Self> {
        let (layout, o) = (Layout::contiguous(shape.into_shape()?), options.into());
        // 24 random bits, fewer where the type has fewer: rounding up would give 1
        let steps = match o.dtype {
            DType::BF16 => 2f64.powi(8),
            DType::F16 => 2f64.powi(11),
            _ => 2f64.powi(24),
        };
        with_element!(o.dtype, T => Self::build::<T>(layout, o.device, |out| {
            rng.fill_uniform(out, |x| T::from_f64((x as f64 * steps).floor() / steps))
        }))
    }

    /// Normal with mean 0 and variance 1, from `rng`.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor, random::Generator};
    /// let a = Tensor::randn([3], &mut Generator::new(1), DType::F64)?;
    /// let b = Tensor::randn([3], &mut Generator::new(1), DType::F64)?;
    /// assert_eq!(a.to_vec::<f64>()?, b.to_vec::<f64>()?);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn randn(
        shape: impl IntoShape,
        rng: &mut Generator,
        options: impl Into<Options>,
    ) -> Result<Self> {
        let (layout, o) = (Layout::contiguous(shape.into_shape()?), options.into());
        with_element!(o.dtype, T => Self::build::<T>(layout, o.device, |out| rng.fill_normal(out, T::from_f64)))
    }
}

/// What it is.
impl Tensor {
    /// The axes' sizes.
    pub fn shape(&self) -> &Shape {
        self.layout.shape()
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.shape().len()
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.shape().numel()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.storage.dtype()
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        self.storage.device()
    }

    /// Where each element lies in the storage.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Dtype and device, to make another tensor like it.
    pub fn options(&self) -> Options {
        Options {
            dtype: self.dtype(),
            device: self.device(),
        }
    }

    /// Whether the elements lie row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.layout.is_contiguous()
    }

    /// Whether two tensors share their storage.
    pub fn shares_storage(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage)
    }

    /// The sizes of a tensor of `N` axes, or an error of `op` that names the axes it wants.
    pub(crate) fn dims<const N: usize>(&self, op: &'static str, want: &str) -> Result<[usize; N]> {
        (**self.shape()).try_into().map_err(|_| {
            Error::shape(
                op,
                &[*self.shape()],
                format!("expected {want} but got {:?}", self.shape()),
            )
        })
    }

    /// The sizes (N, C, H, W) of images that have pixels, or an error of `op`.
    pub(crate) fn images(&self, op: &'static str) -> Result<[usize; 4]> {
        let sizes @ [_, _, h, w] = self.dims(op, "(N, C, H, W)")?;
        if h == 0 || w == 0 {
            let why = format!("expected images but got {:?}", self.shape());
            return Err(Error::shape(op, &[*self.shape()], why));
        }
        Ok(sizes)
    }
}

/// Reading.
impl Tensor {
    /// The elements in row-major order.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let mut v = vec![T::default(); self.numel()];
        if let Device::Cuda(_) = self.device() {
            self.packed()?.download(&mut v)?;
            return Ok(v);
        }
        strided::copy(
            self.storage.slice::<T>("to_vec")?,
            &self.layout,
            &mut v,
            &Layout::contiguous(*self.shape()),
        );
        Ok(v)
    }

    /// The only element, as f64.
    pub fn item(&self) -> Result<f64> {
        if self.numel() != 1 {
            return Err(Error::NotScalar {
                op: "item",
                shape: self.shape().to_vec(),
            });
        }
        if let Device::Cuda(_) = self.device() {
            return self.moved(Device::Cpu)?.item();
        }
        with_element!(self.dtype(), T => Ok(self.storage.slice::<T>("item")?[self.layout.offset()].to_f64()))
    }

    /// The whole storage, for ops that walk strides.
    pub(crate) fn storage_slice<T: Element>(&self, op: &'static str) -> Result<&[T]> {
        self.storage.slice(op)
    }

    /// The elements in memory order; the caller knows that the layout is dense.
    pub(crate) fn dense_slice<T: Element>(&self, op: &'static str) -> Result<&[T]> {
        debug_assert!(self.layout.is_dense());
        Ok(&self.storage.slice(op)?[self.layout.dense_range()])
    }
}

/// Layout without a gradient, for the inside of ops.
impl Tensor {
    /// The same elements in the order of `layout` (dense, of the same shape): a copy unless they
    /// lie so already.
    pub(crate) fn laid_out(&self, layout: Layout) -> Result<Self> {
        if self.layout.is_dense() && self.layout.same_order(&layout) {
            return Ok(self.detach());
        }
        self.copied(layout)
    }

    /// A copy in the order of `layout` (dense, of the same shape).
    pub(crate) fn copied(&self, layout: Layout) -> Result<Self> {
        if let Device::Cuda(gpu) = self.device() {
            return self.copied_as(layout, self.dtype(), gpu);
        }
        with_element!(self.dtype(), T => {
            let x = self.storage.slice::<T>("copy")?;
            Self::build::<T>(layout, self.device(), |out| strided::copy(x, &self.layout, out, &layout))
        })
    }

    /// Row-major, a copy unless it is so already.
    pub(crate) fn packed(&self) -> Result<Self> {
        self.laid_out(Layout::contiguous(*self.shape()))
    }

    /// (N, C, H, W) lying in memory as N, H, W, C; a copy unless it does already.
    pub(crate) fn channels_last(&self) -> Result<Self> {
        self.laid_out(Layout::channels_last(*self.shape()))
    }

    /// A view through another layout of the same storage, outside of any graph.
    pub(crate) fn view_as(&self, layout: Layout) -> Self {
        Tensor {
            storage: self.storage.clone(),
            layout,
            node: None,
        }
    }

    /// Elements converted; floats to integers truncate and saturate.
    pub(crate) fn cast(&self, dtype: DType) -> Result<Self> {
        if dtype == self.dtype() {
            return Ok(self.detach());
        }
        let layout = self.layout.dense_like();
        if let Device::Cuda(gpu) = self.device() {
            return self.copied_as(layout, dtype, gpu);
        }
        with_element!(self.dtype(), T => {
            let x = self.storage.slice::<T>("to_dtype")?;
            with_element!(dtype, U => Self::build::<U>(layout, self.device(), |out| {
                strided::map(x, &self.layout, out, &layout, |x: T| U::from_f64(x.to_f64()))
            }))
        })
    }
}

/// Writing. Nobody else sees it: shared storage is copied first.
impl Tensor {
    /// The elements in memory order, to be written in place. Storage that another tensor or a
    /// graph still holds, or that has gaps, is copied first.
    pub fn make_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        self.storage.slice::<T>("make_mut")?;
        self.make_unique()?;
        let n = self.numel();
        let storage = Arc::get_mut(&mut self.storage)
            .ok_or_else(|| Error::argument("make_mut", "the storage is shared"))?;
        Ok(&mut storage.slice_mut("make_mut")?[..n])
    }

    /// Every element `value`, in place where nobody else holds the storage.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let mut x = Tensor::ones([2], DType::F32)?;
    /// x.fill_(3.0)?;
    /// assert_eq!(x.to_vec::<f32>()?, [3.0; 2]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn fill_(&mut self, value: f64) -> Result<()> {
        if let Device::Cuda(gpu) = self.device() {
            self.make_unique()?;
            return self.fill_in_place(value, gpu);
        }
        with_element!(self.dtype(), T => {
            self.make_mut::<T>()?.fill(T::from_f64(value));
            Ok(())
        })
    }

    /// `self += other` element by element, in place where nobody else holds the storage.
    pub(crate) fn accumulate(&mut self, other: &Tensor) -> Result<()> {
        if other.dtype() != self.dtype() {
            return Err(Error::DType {
                op: "accumulate",
                expected: "a gradient of the same dtype",
                got: other.dtype(),
            });
        }
        if let Device::Cuda(gpu) = self.device() {
            // both in one memory order, so that the kernel is a plain zip
            let other = other.laid_out(self.layout.dense_like())?;
            self.make_unique()?;
            return self.add_in_place(&other, gpu);
        }
        with_element!(self.dtype(), T => {
            let y = other.storage_slice::<T>("accumulate")?;
            self.make_unique()?;
            let layout = self.layout;
            strided::add(y, &other.layout, self.make_mut::<T>()?, &layout);
            Ok(())
        })
    }

    /// Copy another tensor's elements into this one, which keeps its dtype, device, memory order
    /// and place in the graph. The shapes must be equal.
    pub fn copy_(&mut self, source: &Tensor) -> Result<()> {
        if self.shape() != source.shape() {
            return Err(Error::shape(
                "copy_",
                &[*self.shape(), *source.shape()],
                format!(
                    "target {:?} and source {:?} differ",
                    self.shape(),
                    source.shape()
                ),
            ));
        }
        let source = source.moved(self.device())?;
        if let Device::Cuda(gpu) = self.device() {
            // in place: a captured step knows the address
            self.make_unique()?;
            return self.overwrite(&source, gpu);
        }
        let fresh = source
            .cast(self.dtype())?
            .laid_out(self.layout.dense_like())?;
        self.storage = fresh.storage;
        self.layout = fresh.layout;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creation() -> Result<()> {
        assert_eq!(
            Tensor::arange(1.0, 2.0, 0.25, DType::F64)?.to_vec::<f64>()?,
            [1.0, 1.25, 1.5, 1.75]
        );
        assert_eq!(
            Tensor::arange(5.0, 0.0, -2.0, DType::I64)?.to_vec::<i64>()?,
            [5, 3, 1]
        );
        assert_eq!(
            Tensor::linspace(-1.0, 1.0, 3, DType::F32)?.to_vec::<f32>()?,
            [-1.0, 0.0, 1.0]
        );
        assert_eq!(
            Tensor::linspace(2.0, 9.0, 1, DType::F32)?.to_vec::<f32>()?,
            [2.0]
        );
        assert_eq!(Tensor::eye(2, DType::U8)?.to_vec::<u8>()?, [1, 0, 0, 1]);
        assert_eq!(Tensor::zeros([0, 3], DType::F32)?.numel(), 0);
        assert!(Tensor::arange(0.0, 1.0, 0.0, DType::F32).is_err());
        assert!(Tensor::zeros([usize::MAX, 3], DType::F32).is_err());
        assert!(Tensor::zeros([1; 7], DType::F32).is_err());
        Ok(())
    }

    #[test]
    fn copy_on_write() -> Result<()> {
        let a = Tensor::from_vec(vec![1f32, 2.0], [2])?;
        let mut b = a.clone();
        b.make_mut::<f32>()?[0] = 9.0;
        assert_eq!(
            (a.to_vec::<f32>()?, b.to_vec::<f32>()?),
            (vec![1.0, 2.0], vec![9.0, 2.0])
        );
        let place = b.storage_slice::<f32>("t")?.as_ptr();
        b.make_mut::<f32>()?[1] = 8.0;
        assert_eq!(place, b.storage_slice::<f32>("t")?.as_ptr());
        // a view of a part must not reach the rest
        let whole = Tensor::arange(0.0, 4.0, 1.0, DType::F32)?;
        let mut part = whole.view_as(whole.layout.narrow(0, 1, 2));
        drop(whole);
        part.make_mut::<f32>()?[0] = 7.0;
        assert_eq!(part.to_vec::<f32>()?, [7.0, 2.0]);
        Ok(())
    }

    #[test]
    fn casts() -> Result<()> {
        let x = Tensor::from_vec(vec![-1.5f64, 0.0, 300.7], [3])?;
        assert_eq!(x.cast(DType::U8)?.to_vec::<u8>()?, [0, 0, 255]);
        assert_eq!(x.cast(DType::I64)?.to_vec::<i64>()?, [-1, 0, 300]);
        assert_eq!(
            x.cast(DType::BF16)?.cast(DType::F32)?.to_vec::<f32>()?,
            [-1.5, 0.0, 300.0]
        );
        assert!(x.to_vec::<f32>().is_err());
        assert!(x.item().is_err());
        for dtype in [DType::BF16, DType::F16] {
            let u = Tensor::rand([20_000], &mut Generator::new(1), dtype)?.cast(DType::F32)?;
            assert!(u.to_vec::<f32>()?.iter().all(|u| (0.0..1.0).contains(u)));
        }
        Ok(())
    }
}
