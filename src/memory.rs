//! What an allocator counts and how it rounds sizes, shared by the CPU's pool and the GPUs'; and the
//! CPU's memory itself.

use std::alloc::{self, Layout};
use std::ptr::NonNull;

/// What an allocator has given out and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Buffers in use.
    pub live: usize,
    /// Bytes in use.
    pub live_bytes: usize,
    /// The most bytes in use since the start or [`crate::Device::reset_peak`].
    pub peak_bytes: usize,
    /// Bytes free, held for reuse.
    pub held_bytes: usize,
    /// Buffers taken from the system since the start.
    pub allocations: usize,
    /// Buffers that were reused instead.
    pub hits: usize,
}

impl MemoryStats {
    /// A buffer of `bytes` is in use now.
    pub(crate) fn take(&mut self, bytes: usize) {
        self.live += 1;
        self.live_bytes += bytes;
        self.peak_bytes = self.peak_bytes.max(self.live_bytes);
    }

    /// It no longer is.
    pub(crate) fn give_back(&mut self, bytes: usize) {
        self.live -= 1;
        self.live_bytes -= bytes;
    }
}

/// Bytes rounded up to a size class: an eighth of a power of two, so that nearly equal sizes
/// share buffers and at most an eighth is wasted. `align` is the least step.
pub(crate) fn size_class(bytes: usize, align: usize) -> usize {
    let bytes = bytes.max(align);
    let step = (bytes.next_power_of_two() / 16).max(align);
    bytes.div_ceil(step) * step
}

/// Where a block starts: at a cache line, as wide as the widest vector register.
pub(crate) const ALIGN: usize = 64;

/// A huge page, and the size from which blocks lie in them. The CPU keeps the addresses of some
/// thousand pages at hand: of 4 KiB each they cover no activation, of 2 MiB each all of a network.
const HUGE: usize = 2 << 20;

/// A block of the CPU's memory, zeros at first, so that it may be read as any plain number type.
pub(crate) struct Block {
    ptr: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a block owns its memory; shared reads are plain reads, writes need `&mut`
unsafe impl Send for Block {}
// SAFETY: as above
unsafe impl Sync for Block {}

impl Block {
    /// `None` where the system has no such memory. A block of no bytes has one.
    pub fn zeroed(bytes: usize) -> Option<Self> {
        let bytes = bytes.max(1);
        let ptr = match bytes >= HUGE {
            true => huge::zeroed(bytes)?,
            // SAFETY: the size is not 0
            false => NonNull::new(unsafe { alloc::alloc_zeroed(small(bytes)?) })?,
        };
        Some(Block { ptr, bytes })
    }

    /// Its first byte.
    pub fn ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.bytes >= HUGE {
            // SAFETY: from `huge::zeroed` of as many bytes, and nobody holds it now
            unsafe { huge::free(self.ptr, self.bytes) };
        } else if let Some(layout) = small(self.bytes) {
            // SAFETY: from the allocator by this layout, and nobody holds it now
            unsafe { alloc::dealloc(self.ptr.as_ptr(), layout) };
        }
    }
}

fn small(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes, ALIGN).ok()
}

/// Large blocks straight from Linux, which gives huge pages to those who ask for them.
#[cfg(target_os = "linux")]
mod huge {
    use super::HUGE;
    use std::ptr::NonNull;

    pub fn zeroed(bytes: usize) -> Option<NonNull<u8>> {
        // one page more, to cut a block that starts at a huge page out of it
        let bytes = whole_pages(bytes)?;
        let mapped = bytes.checked_add(HUGE)?;
        // SAFETY: a new mapping of memory of its own; parts of it that are not used are unmapped
        unsafe {
            let (access, kind) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            );
            let start = libc::mmap(std::ptr::null_mut(), mapped, access, kind, -1, 0);
            if start == libc::MAP_FAILED {
                return None;
            }
            let before = start.align_offset(HUGE);
            let block = start.byte_add(before);
            if before > 0 {
                libc::munmap(start, before);
            }
            if HUGE > before {
                libc::munmap(block.byte_add(bytes), HUGE - before);
            }
            // a wish: without it the same memory in small pages
            libc::madvise(block, bytes, libc::MADV_HUGEPAGE);
            NonNull::new(block.cast())
        }
    }

    /// # Safety
    /// `block` is from [`zeroed`] of as many bytes and no longer used.
    pub unsafe fn free(block: NonNull<u8>, bytes: usize) {
        if let Some(bytes) = whole_pages(bytes) {
            // SAFETY: the caller's promise.
            unsafe { libc::munmap(block.as_ptr().cast(), bytes) };
        }
    }

    /// Rounded up to pages, of 64 KiB on some machines.
    fn whole_pages(bytes: usize) -> Option<usize> {
        bytes.checked_next_multiple_of(1 << 16)
    }
}

#[cfg(not(target_os = "linux"))]
mod huge {
    use super::small;
    use std::alloc;
    use std::ptr::NonNull;

    pub fn zeroed(bytes: usize) -> Option<NonNull<u8>> {
        // SAFETY: the size is not 0
        NonNull::new(unsafe { alloc::alloc_zeroed(small(bytes)?) })
    }

    /// # Safety
    /// `block` is from [`zeroed`] of as many bytes and no longer used.
    pub unsafe fn free(block: NonNull<u8>, bytes: usize) {
        if let Some(layout) = small(bytes) {
            // SAFETY: the caller's promise.
            unsafe { alloc::dealloc(block.as_ptr(), layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_zeros() {
        for bytes in [0, 1, 100, HUGE - 1, HUGE, HUGE + 1, 3 * HUGE + 5] {
            let blocks: Vec<Block> = (0..3).map(|_| Block::zeroed(bytes).unwrap()).collect();
            for block in &blocks {
                assert_eq!(block.ptr().align_offset(ALIGN), 0);
                // SAFETY: the block holds as many bytes, and nobody else uses them
                let all =
                    unsafe { std::slice::from_raw_parts_mut(block.ptr().as_ptr(), block.bytes()) };
                assert!(all.iter().all(|&b| b == 0), "{bytes}");
                all.fill(255);
            }
        }
        for bytes in [usize::MAX, usize::MAX - HUGE, usize::MAX / 4] {
            assert!(Block::zeroed(bytes).is_none());
        }
    }

    #[test]
    fn size_classes_waste_little() {
        for align in [64, 256] {
            for n in [1, 64, 65, 1000, 4097, 1 << 20, (1 << 20) + 1] {
                let c = size_class(n, align);
                assert!(c >= n && c.is_multiple_of(align), "{n} -> {c}");
                assert!(c - n <= n / 8 + align, "{n} -> {c}");
                assert_eq!(size_class(c, align), c);
            }
        }
    }
}
