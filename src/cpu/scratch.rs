//! Working memory that each thread keeps for its next kernel, and pointers shared between tasks.
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// A cache line.
type Line = [u64; 8];

/// Buffers that a thread keeps; more are given back to the allocator.
const KEPT: usize = 8;

thread_local! {
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of `len` numbers aligned to a cache line, its contents unspecified. Its memory comes
/// from the thread's earlier buffers: no allocation and no page faults from the second call on.
pub struct Scratch<T> {
    lines: Vec<Line>,
    start: usize,
    len: usize,
    of: PhantomData<T>,
}

impl<T: bytemuck::Pod> Scratch<T> {
    /// A buffer of `len` elements.
    pub fn new(len: usize) -> Self {
        // one line more, to align the start
        let need = (len * size_of::<T>()).div_ceil(size_of::<Line>()) + 1;
        let kept = FREE.with_borrow_mut(|free| {
            let fits = |i: &usize| free[*i].len() >= need;
            let best = (0..free.len()).filter(fits).min_by_key(|&i| free[i].len());
            best.map(|i| free.swap_remove(i))
        });
        let lines = kept.unwrap_or_else(|| vec![[0; 8]; need]);
        let start = lines.as_ptr().cast::<u8>().align_offset(64) / size_of::<T>();
        Scratch {
            lines,
            start,
            len,
            of: PhantomData,
        }
    }

    /// A buffer of zeros.
    pub fn zeros(len: usize) -> Self {
        let mut s = Self::new(len);
        s.fill(T::zeroed());
        s
    }
}

impl<T: bytemuck::Pod> Deref for Scratch<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[self.start..self.start + self.len]
    }
}

impl<T: bytemuck::Pod> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[self.start..self.start + self.len]
    }
}

impl<T> Drop for Scratch<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // a thread that is ending has no list any more
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            free.push(lines);
            if free.len() > KEPT {
                let smallest = (0..free.len()).min_by_key(|&i| free[i].len());
                smallest.map(|i| free.swap_remove(i));
            }
        });
    }
}

/// A pointer to a slice of which several tasks write disjoint parts.
#[derive(Clone, Copy)]
pub struct Shared<T>(*mut T);

// SAFETY: a bare address; whoever writes through it answers for the parts being disjoint.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The start of `slice`.
    pub fn new(slice: &mut [T]) -> Self {
        Shared(slice.as_mut_ptr())
    }

    /// The address, as a method so that closures take the whole of `self`.
    pub fn ptr(self) -> *mut T {
        self.0
    }

    /// `len` elements from `start` on.
    ///
    /// # Safety
    /// They lie in the slice, and no one else uses them meanwhile.
    pub unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_and_comes_back() {
        let mut a = Scratch::<f32>::zeros(100);
        a[99] = 1.0;
        let place = a.as_ptr();
        assert_eq!((place as usize % 64, a.len()), (0, 100));
        drop(a);
        let b = Scratch::<f64>::new(40);
        assert_eq!(b.as_ptr().cast(), place);
    }
}
