//! Autocast: the 16-bit type in which matrix products and convolutions run.

use std::cell::Cell;
use std::marker::PhantomData;

use crate::dtype::DType;
use crate::error::{Error, Result};

thread_local!(static CURRENT: Cell<Option<DType>> = const { Cell::new(None) });

/// While it lives, this thread's ops run in mixed precision. Made by [`autocast`].
#[must_use = "full precision is back when the guard is dropped"]
#[derive(Debug)]
pub struct Autocast {
    before: Option<DType>,
    // the thread's own: the guard must not leave it
    _thread: PhantomData<*const ()>,
}

/// Run matrix products and convolutions in `dtype` (BF16 or F16; `None` for full precision) on this
/// thread until the guard is dropped, after PyTorch's `autocast`. Another type is an
/// [`Error::DType`].
///
/// | runs | ops |
/// |---|---|
/// | in `dtype` | `matmul`, `linear`, `conv2d` and their kind: float inputs are converted, unless one is F64 |
/// | in F32 | `softmax`, `log_softmax`, every loss: 16-bit inputs are widened |
/// | in the inputs' type | all others; beside an F32 operand (a norm's weight) a 16-bit one is widened |
///
/// The conversions are ops of the graph: parameters stay as they are and get gradients of their own
/// type, and backward runs each op in the type of its forward, inside the guard or not. A weight
/// that is used several times is converted each time. Sums add up in F32, but their result has the
/// input's type, and so has that of `exp` and of powers, which PyTorch widens: in F16 beyond 65504 it is
/// infinite (a loss of one's own begins with [`to_dtype`](crate::Tensor::to_dtype)). A 16-bit op on a CPU computes in F32 and rounds, so there it is no faster: it shows what a GPU would compute.
///
/// ```
/// # use cotangent::{autograd::autocast, DType, Tensor};
/// let x = Tensor::ones([2, 3], DType::F32)?;
/// let w = Tensor::ones([4, 3], DType::F32)?.requires_grad();
/// let y = { let _guard = autocast(DType::BF16)?; x.linear(&w, None)? };
/// assert_eq!(y.dtype(), DType::BF16);
/// let grads = y.backward_from(&y.ones_like()?)?;
/// assert_eq!(grads.get(&w).unwrap().dtype(), DType::F32);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn autocast(dtype: impl Into<Option<DType>>) -> Result<Autocast> {
    match dtype.into() {
        Some(got) if !got.is_half() => Err(Error::DType {
            op: "autocast",
            expected: "bf16 or f16",
            got,
        }),
        dtype => Ok(set(dtype)),
    }
}

/// [`autocast`] of a type that is known to be one.
pub(crate) fn set(dtype: Option<DType>) -> Autocast {
    Autocast {
        before: CURRENT.replace(dtype),
        _thread: PhantomData,
    }
}

/// The type of this thread's autocast; `None` outside of one.
pub(crate) fn current() -> Option<DType> {
    CURRENT.get()
}

impl Drop for Autocast {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}
