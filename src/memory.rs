//! What an allocator counts, and how it rounds sizes. Shared by the CPU's pool and the GPUs'.

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

#[cfg(test)]
mod tests {
    use super::*;

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
