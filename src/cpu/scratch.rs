//! Working memory that each thread keeps for its next kernel, and pointers shared between tasks.
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use crate::memory::Block;

/// Blocks that a thread keeps; more are given back to the system.
const KEPT: usize = 8;

thread_local! {
    static FREE: RefCell<Vec<Block>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of `len` numbers aligned to a cache line, its contents unspecified. Its memory comes
/// from the thread's earlier buffers: no allocation and no page faults from the second call on.
pub struct Scratch<T> {
    /// There until it goes back to the thread's list.
    block: Option<Block>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: bytemuck::Pod> Scratch<T> {
    /// A buffer of `len` elements.
    ///
    /// # Panics
    /// Where the system has no such memory.
    pub fn new(len: usize) -> Self {
        // more than there is, where the product has no such number
        let need = len.saturating_mul(size_of::<T>());
        let kept = FREE.with_borrow_mut(|free| {
            let fits = |i: &usize| free[*i].bytes() >= need;
            let best = (0..free.len())
                .filter(fits)
                .min_by_key(|&i| free[i].bytes());
            best.map(|i| free.swap_remove(i))
        });
        let block = kept.or_else(|| Block::zeroed(need));
        assert!(block.is_some(), "no memory for {need} bytes of scratch");
        Scratch {
            block,
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

    fn ptr(&self) -> *mut T {
        let none = std::ptr::NonNull::<T>::dangling().as_ptr();
        self.block
            .as_ref()
            .map_or(none, |b| b.ptr().as_ptr().cast())
    }
}

impl<T: bytemuck::Pod> Deref for Scratch<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the block holds `len` plain numbers, initialized and aligned to a cache line
        unsafe { std::slice::from_raw_parts(self.ptr(), self.len) }
    }
}

impl<T: bytemuck::Pod> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `&mut self` makes it the only reference
        unsafe { std::slice::from_raw_parts_mut(self.ptr(), self.len) }
    }
}

impl<T> Drop for Scratch<T> {
    fn drop(&mut self) {
        let Some(block) = self.block.take() else {
            return;
        };
        // a thread that is ending has no list any more
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            free.push(block);
            if free.len() > KEPT {
                let smallest = (0..free.len()).min_by_key(|&i| free[i].bytes());
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
