//! Tensors on a GPU: their memory as a kernel's argument, transfers, and the copies, conversions
//! and sums that everything else leans on.

use std::sync::Arc;

use crate::cuda::{self, Arg, Buffer, Gpu, Kernels, Pointer, Walk, kernels};
use crate::device::Device;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::shape::{IntoShape, Layout};
use crate::storage::Storage;
use crate::tensor::Tensor;
use crate::with_element;

kernels! {
    COPY_F32 = "copy_f32" [F32, F64, BF16, F16, I64, U8];
    COPY_F64 = "copy_f64" [F32, F64, BF16, F16, I64, U8];
    COPY_BF16 = "copy_bf16" [F32, F64, BF16, F16, I64, U8];
    COPY_F16 = "copy_f16" [F32, F64, BF16, F16, I64, U8];
    COPY_I64 = "copy_i64" [F32, F64, BF16, F16, I64, U8];
    COPY_U8 = "copy_u8" [F32, F64, BF16, F16, I64, U8];
    TRANSPOSE = "transpose" [F32, F64, BF16, F16, I64, U8];
    FILL = "fill" [F32, F64, BF16, F16, I64, U8];
    ADD_TO = "add_to" [F32, F64, BF16, F16, I64, U8];
}

/// The kernels that read this dtype and write any.
fn copy_from(dtype: DType) -> &'static Kernels {
    match dtype {
        DType::F32 => &COPY_F32,
        DType::F64 => &COPY_F64,
        DType::BF16 => &COPY_BF16,
        DType::F16 => &COPY_F16,
        DType::I64 => &COPY_I64,
        DType::U8 => &COPY_U8,
    }
}

/// What launches and transfers need of a tensor.
impl Tensor {
    /// A tensor of this layout (dense; its offset is dropped) whose elements are yet to be written.
    pub(crate) fn empty(layout: Layout, dtype: DType, device: Device) -> Result<Self> {
        let layout = layout.at_start();
        let storage = Storage::new(dtype, layout.numel(), device)?;
        Ok(Tensor {
            storage: Arc::new(storage),
            layout,
            node: None,
        })
    }

    /// As a kernel's `const T*`: the first element.
    pub(crate) fn input(&self) -> Arg<'static> {
        Arg::In(self.pointer())
    }

    /// As a kernel's `T*`. Only for a tensor that the caller has just made, or [made
    /// unique](Self::make_unique).
    pub(crate) fn output(&self) -> Arg<'static> {
        Arg::Out(self.pointer())
    }

    fn pointer(&self) -> Pointer {
        let offset = (self.layout.offset() * self.dtype().size()) as u64;
        Pointer {
            address: self.storage.cuda().map_or(0, |b| b.address() + offset),
            dtype: self.dtype(),
            gpu: self.storage.cuda().map(Buffer::gpu),
        }
    }

    /// Numbers that the host computes anew each step, as the kernels' `const i64*`; see
    /// [`Gpu::scalars`].
    pub(crate) fn scalars(gpu: Gpu, values: &[u64]) -> Result<Self> {
        Self::words(gpu, DType::I64, values)
    }

    fn words(gpu: Gpu, dtype: DType, values: &[u64]) -> Result<Self> {
        Ok(Tensor {
            storage: Arc::new(Storage::from_cuda(dtype, gpu.scalars(values)?)),
            layout: Layout::contiguous(values.len().into_shape()?),
            node: None,
        })
    }

    /// A number that the host computes anew each step, as (1) of F64; see [`Gpu::scalars`].
    pub(crate) fn factor(gpu: Gpu, value: f64) -> Result<Self> {
        Self::words(gpu, DType::F64, &[value.to_bits()])
    }

    /// Ready to be written in place: storage that another tensor or a graph still holds, or that
    /// has gaps, is copied first. Otherwise it keeps its address.
    pub(crate) fn make_unique(&mut self) -> Result<()> {
        if !self.is_unique() {
            let copy = self.copied(self.layout.dense_like())?;
            self.storage = copy.storage;
            self.layout = copy.layout;
        }
        Ok(())
    }

    /// Whether it may be written in place.
    pub(crate) fn is_unique(&mut self) -> bool {
        // as a view of a larger storage, it may not be the only one looking at these elements
        let whole = self.layout.is_dense() && self.storage.capacity() == self.numel();
        whole && Arc::get_mut(&mut self.storage).is_some()
    }

    /// The elements on another device, in the same memory order, outside of any graph.
    pub(crate) fn moved(&self, device: Device) -> Result<Self> {
        if device == self.device() {
            return Ok(self.detach());
        }
        let x = self.laid_out(self.layout.dense_like())?;
        match (x.device(), device) {
            (Device::Cpu, Device::Cuda(gpu)) => with_element!(x.dtype(), T => {
                x.upload::<T>(gpu)
            }),
            (Device::Cuda(_), Device::Cpu) => with_element!(x.dtype(), T => {
                let mut error = None;
                let y = Self::build::<T>(x.layout, device, |out| error = x.download(out).err())?;
                error.map_or(Ok(y), Err)
            }),
            _ => x.moved(Device::Cpu)?.moved(device),
        }
    }

    /// A dense tensor of the CPU on a GPU.
    pub(super) fn upload<T: Element>(&self, gpu: Gpu) -> Result<Self> {
        let y = Self::empty(self.layout, T::DTYPE, Device::Cuda(gpu))?;
        if let Some(buffer) = y.storage.cuda() {
            buffer.write(bytemuck::cast_slice(self.dense_slice::<T>("to")?))?;
        }
        Ok(y)
    }

    /// A dense tensor's elements in memory order; waits for the device.
    pub(super) fn download<T: Element>(&self, out: &mut [T]) -> Result<()> {
        if T::DTYPE != self.dtype() {
            // the storage's own error names both
            return self.storage.slice::<T>("to_vec").map(|_| ());
        }
        let buffer = self
            .storage
            .cuda()
            .ok_or_else(|| Error::devices("to_vec", self.device(), "cuda"))?;
        let from = self.layout.offset() * size_of::<T>();
        buffer.read(from, bytemuck::cast_slice_mut(out))
    }
}

/// The loops that the CPU has in `cpu::strided`.
impl Tensor {
    /// Every element `value`, of this layout.
    pub(super) fn filled(layout: Layout, value: f64, dtype: DType, gpu: Gpu) -> Result<Self> {
        let y = Self::empty(layout, dtype, Device::Cuda(gpu))?;
        y.fill_in_place(value, gpu)?;
        Ok(y)
    }

    /// Every element `value`; it is dense and nobody else's.
    pub(super) fn fill_in_place(&self, value: f64, gpu: Gpu) -> Result<()> {
        let n = self.numel();
        let args = [self.output(), Arg::U32(n as u32), Arg::F64(value)];
        gpu.launch_over(FILL.of(self.dtype())?, n, 1024, &args)
    }

    /// The elements in the order of `layout` (dense, of the same shape), converted.
    pub(super) fn copied_as(&self, layout: Layout, dtype: DType, gpu: Gpu) -> Result<Self> {
        let y = Self::empty(layout, dtype, Device::Cuda(gpu))?;
        y.overwrite(self, gpu)?;
        Ok(y)
    }

    /// Write `x`'s elements, converted, over this tensor's; it is dense and nobody else's.
    pub(super) fn overwrite(&self, x: &Tensor, gpu: Gpu) -> Result<()> {
        let walk = Walk::new(&self.layout, [&x.layout])?;
        if x.dtype() == self.dtype()
            && walk.is_dense(0)
            && x.numel() == self.numel()
            && let (Some(to), Some(from)) = (self.storage.cuda(), x.storage.cuda())
            && x.storage.capacity() == x.numel()
            && self.storage.capacity() == self.numel()
        {
            return to.copy_from(from);
        }
        if x.dtype() == self.dtype()
            && let Some([batch, rows, columns]) = walk.as_transpose()
        {
            let args = [x.input(), self.output(), Arg::I32(rows), Arg::I32(columns)];
            let tiles = |n: i32| cuda::blocks(n as usize, 32);
            let grid = [tiles(columns), tiles(rows), batch as u32];
            return gpu.launch(TRANSPOSE.of(x.dtype())?, grid, [32, 8, 1], 0, &args);
        }
        gpu.launch_over(
            copy_from(x.dtype()).of(self.dtype())?,
            self.numel(),
            1024,
            &[x.input(), self.output(), walk.arg()],
        )
    }

    /// `self += other`; both are dense in one memory order, and this one is nobody else's.
    pub(super) fn add_in_place(&self, other: &Tensor, gpu: Gpu) -> Result<()> {
        let n = self.numel();
        let pack = 256 * 16 / self.dtype().size();
        gpu.launch_over(
            ADD_TO.of(self.dtype())?,
            n,
            pack,
            &[self.output(), other.input(), Arg::U32(n as u32)],
        )
    }
}
