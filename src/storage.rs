//! Storage: typed memory of one device, recycled, with counters.

use std::any::Any;
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::Mutex;

use crate::cuda;
use crate::device::Device;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::memory::{ALIGN, Block, MemoryStats, size_class};

struct Pool {
    free: HashMap<usize, Vec<Block>>,
    stats: MemoryStats,
    /// The most bytes that were ever in use: what bounds the memory held for reuse.
    most: usize,
}

impl Pool {
    fn add(&mut self, bytes: usize) {
        self.stats.take(bytes);
        self.most = self.most.max(self.stats.live_bytes);
    }
}

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

fn with_pool<T>(f: impl FnOnce(&mut Pool) -> T) -> T {
    // a panic elsewhere cannot leave the counters half written: poisoning does not matter
    let mut pool = POOL.lock().unwrap_or_else(|e| e.into_inner());
    f(pool.get_or_insert_with(|| Pool {
        free: HashMap::new(),
        stats: MemoryStats::default(),
        most: 0,
    }))
}

/// The CPU allocator's counters.
pub fn memory_stats() -> MemoryStats {
    with_pool(|p| p.stats)
}

/// Start counting the peak anew from what is in use now.
pub fn reset_peak() {
    with_pool(|p| p.stats.peak_bytes = p.stats.live_bytes);
}

impl Device {
    /// The allocator's counters.
    pub fn memory_stats(&self) -> Result<MemoryStats> {
        match self {
            Device::Cpu => Ok(memory_stats()),
            Device::Cuda(gpu) => gpu.memory_stats(),
        }
    }

    /// Start counting the peak anew from what is in use now.
    pub fn reset_peak(&self) -> Result<()> {
        match self {
            Device::Cpu => reset_peak(),
            Device::Cuda(gpu) => gpu.reset_peak()?,
        }
        Ok(())
    }
}

/// Memory of the CPU, aligned, always initialized (by zeros or by an earlier owner), so that it
/// can be read as any plain number type.
struct Buffer {
    ptr: NonNull<u8>,
    bytes: usize,
    owner: Owner,
}

enum Owner {
    /// A block of the pool, until it goes back there.
    Pool(Option<Block>),
    /// Somebody else's vector, kept alive here.
    Foreign(#[allow(dead_code, reason = "held for its drop")] Box<dyn Any + Send + Sync>),
}

// SAFETY: a buffer owns its memory; shared reads are plain reads, writes need `&mut`
unsafe impl Send for Buffer {}
// SAFETY: as above
unsafe impl Sync for Buffer {}

impl Buffer {
    fn new(bytes: usize) -> Result<Self> {
        let class = size_class(bytes, ALIGN);
        let reused = with_pool(|p| {
            let block = p.free.get_mut(&class)?.pop()?;
            p.stats.held_bytes -= class;
            Some(block)
        });
        let hit = reused.is_some();
        let block = reused.or_else(|| Block::zeroed(class));
        let block = block.ok_or_else(|| out_of_memory(bytes))?;
        with_pool(|p| {
            p.stats.allocations += !hit as usize;
            p.stats.hits += hit as usize;
            p.add(class);
        });
        Ok(Buffer {
            ptr: block.ptr(),
            bytes,
            owner: Owner::Pool(Some(block)),
        })
    }
}

fn out_of_memory(asked: usize) -> Error {
    Error::OutOfMemory {
        asked,
        held: memory_stats().held_bytes,
        free: 0,
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Owner::Pool(block) = &mut self.owner else {
            return with_pool(|p| p.stats.give_back(self.bytes));
        };
        let Some(block) = block.take() else { return };
        // dropped without the pool's lock, if at all
        let _unwanted = with_pool(|p| {
            let class = block.bytes();
            p.stats.give_back(class);
            // sizes that are in use at different times both stay, so half as much again as was
            // ever needed at once; beyond it memory goes back to the system
            if p.stats.held_bytes + class + p.stats.live_bytes > p.most + p.most / 2 {
                return Some(block);
            }
            p.stats.held_bytes += class;
            p.free.entry(class).or_default().push(block);
            None
        });
    }
}

/// The elements of one or more tensors: a dtype and the memory of one device. This enum is the
/// one place where backends part.
pub struct Storage {
    dtype: DType,
    memory: Memory,
}

enum Memory {
    Cpu(Buffer),
    Cuda(cuda::Buffer),
}

impl Storage {
    /// Room for `len` elements, holding whatever was there.
    pub(crate) fn new(dtype: DType, len: usize, device: Device) -> Result<Self> {
        let memory = match device {
            Device::Cpu => Memory::Cpu(Buffer::new(len * dtype.size())?),
            Device::Cuda(gpu) => Memory::Cuda(cuda::Buffer::new(gpu, len, dtype.size())?),
        };
        Ok(Storage { dtype, memory })
    }

    /// A vector's elements, without a copy.
    pub(crate) fn from_vec<T: Element>(mut v: Vec<T>) -> Self {
        let ptr = NonNull::new(v.as_mut_ptr().cast()).unwrap_or(NonNull::dangling());
        let bytes = size_of_val(v.as_slice());
        with_pool(|p| p.add(bytes));
        Storage {
            dtype: T::DTYPE,
            memory: Memory::Cpu(Buffer {
                ptr,
                bytes,
                owner: Owner::Foreign(Box::new(v)),
            }),
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        match &self.memory {
            Memory::Cpu(_) => Device::Cpu,
            Memory::Cuda(b) => Device::Cuda(b.gpu()),
        }
    }

    /// A GPU's memory as elements of `dtype`.
    pub(crate) fn from_cuda(dtype: DType, buffer: cuda::Buffer) -> Self {
        Storage {
            dtype,
            memory: Memory::Cuda(buffer),
        }
    }

    /// The GPU's memory; `None` on the CPU.
    pub(crate) fn cuda(&self) -> Option<&cuda::Buffer> {
        match &self.memory {
            Memory::Cpu(_) => None,
            Memory::Cuda(b) => Some(b),
        }
    }

    /// Elements that fit.
    pub(crate) fn capacity(&self) -> usize {
        let bytes = match &self.memory {
            Memory::Cpu(b) => b.bytes,
            Memory::Cuda(b) => b.bytes(),
        };
        bytes / self.dtype.size()
    }

    fn check<T: Element>(&self, op: &'static str) -> Result<()> {
        if T::DTYPE == self.dtype {
            return Ok(());
        }
        let expected = match T::DTYPE {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::I64 => "i64",
            DType::U8 => "u8",
        };
        Err(Error::DType {
            op,
            expected,
            got: self.dtype,
        })
    }

    fn cpu(&self, op: &'static str) -> Result<&Buffer> {
        match &self.memory {
            Memory::Cpu(b) => Ok(b),
            Memory::Cuda(_) => Err(self.elsewhere(op)),
        }
    }

    fn elsewhere(&self, op: &'static str) -> Error {
        Error::devices(op, self.device(), Device::Cpu)
    }

    /// All elements; an error if they are of another type or on a GPU.
    pub(crate) fn slice<T: Element>(&self, op: &'static str) -> Result<&[T]> {
        self.check::<T>(op)?;
        let b = self.cpu(op)?;
        // SAFETY: the buffer holds this many initialized bytes, aligned for T; T is plain data
        Ok(unsafe { std::slice::from_raw_parts(b.ptr.as_ptr().cast(), b.bytes / size_of::<T>()) })
    }

    /// All elements, to be written.
    pub(crate) fn slice_mut<T: Element>(&mut self, op: &'static str) -> Result<&mut [T]> {
        self.check::<T>(op)?;
        let Memory::Cpu(b) = &mut self.memory else {
            return Err(self.elsewhere(op));
        };
        // SAFETY: as in `slice`, and `&mut self` makes it the only reference
        Ok(unsafe {
            std::slice::from_raw_parts_mut(b.ptr.as_ptr().cast(), b.bytes / size_of::<T>())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_is_an_error() {
        assert!(matches!(
            Storage::new(DType::F32, usize::MAX / 16, Device::Cpu),
            Err(Error::OutOfMemory { .. })
        ));
    }
}
