//! Kernels by name, their launch, and how strided tensors are described to them.

use std::sync::OnceLock;

use crate::cuda::context::Context;
use crate::cuda::driver::{Arg, Function, Shape};
use crate::cuda::{Gpu, context};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::{Layout, Loops};

/// A kernel of `kernels/*.cu`, looked up on each device at its first launch.
#[derive(Debug)]
pub struct Kernel {
    name: &'static str,
    /// By [`context::place`].
    found: [OnceLock<Function>; context::PLACES],
}

impl Kernel {
    /// The kernel of this name.
    pub const fn new(name: &'static str) -> Self {
        Kernel {
            name,
            found: [const { OnceLock::new() }; context::PLACES],
        }
    }
}

/// One kernel in several dtypes, named `base_f32` and so on. Made by `kernels!`.
#[derive(Debug)]
pub struct Kernels {
    base: &'static str,
    /// By dtype; those that are not there have no name.
    table: [Kernel; 6],
}

impl Kernels {
    /// The kernels of these names.
    pub const fn new(base: &'static str, names: &[(DType, &'static str)]) -> Self {
        let mut by_dtype = [""; 6];
        let mut i = 0;
        while i < names.len() {
            by_dtype[names[i].0 as usize] = names[i].1;
            i += 1;
        }
        let [a, b, c, d, e, f] = by_dtype;
        Kernels {
            base,
            table: [
                Kernel::new(a),
                Kernel::new(b),
                Kernel::new(c),
                Kernel::new(d),
                Kernel::new(e),
                Kernel::new(f),
            ],
        }
    }

    /// The one of a dtype; an [`Error::DType`] where there is none.
    pub fn of(&'static self, dtype: DType) -> Result<&'static Kernel> {
        let kernel = &self.table[dtype as usize];
        if kernel.name.is_empty() {
            return Err(Error::DType {
                op: self.base,
                expected: "another dtype on a CUDA device",
                got: dtype,
            });
        }
        Ok(kernel)
    }
}

/// Statics of [`Kernels`]: `NAME = "base" [F32, F64];`.
macro_rules! kernels {
    ($($(#[$doc:meta])* $name:ident = $base:literal [$($dtype:ident),*];)*) => {$(
        $(#[$doc])*
        static $name: $crate::cuda::Kernels = $crate::cuda::Kernels::new(
            $base,
            &[$((
                $crate::dtype::DType::$dtype,
                $crate::cuda::kernels!(@name $base $dtype),
            )),*],
        );
    )*};
    (@name $base:literal F32) => { concat!($base, "_f32") };
    (@name $base:literal F64) => { concat!($base, "_f64") };
    (@name $base:literal BF16) => { concat!($base, "_bf16") };
    (@name $base:literal F16) => { concat!($base, "_f16") };
    (@name $base:literal I64) => { concat!($base, "_i64") };
    (@name $base:literal U8) => { concat!($base, "_u8") };
}
pub(crate) use kernels;

/// The [`Kernels`] of a name that is put together, in all floats.
macro_rules! float_kernels {
    ($base:expr) => {
        $crate::cuda::Kernels::new(
            $base,
            &[
                ($crate::dtype::DType::F32, concat!($base, "_f32")),
                ($crate::dtype::DType::F64, concat!($base, "_f64")),
                ($crate::dtype::DType::BF16, concat!($base, "_bf16")),
                ($crate::dtype::DType::F16, concat!($base, "_f16")),
            ],
        )
    };
}
pub(crate) use float_kernels;

impl Gpu {
    /// Run a kernel on `grid` blocks of `block` threads with `shared` bytes of dynamic shared
    /// memory. The arguments' types are checked against the kernel's. No blocks: nothing is done.
    pub fn launch(
        self,
        kernel: &'static Kernel,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        args: &[Arg<'_>],
    ) -> Result<()> {
        for arg in args {
            if let Arg::In(p) | Arg::Out(p) = arg
                && p.gpu != Some(self)
            {
                let there = p.gpu.map_or("cpu".into(), |g| g.to_string());
                return Err(Error::devices(kernel.name, self, there));
            }
        }
        if grid.contains(&0) {
            return Ok(());
        }
        let context = Context::of(self)?;
        context.with(|state| {
            let found = &kernel.found[context::place(self)];
            let function = match found.get() {
                Some(f) => f,
                None => {
                    let f = state.find(kernel.name)?;
                    found.get_or_init(|| f)
                }
            };
            function.check(kernel.name, args)?;
            let shape = Shape {
                grid,
                block,
                shared,
            };
            state.launch(kernel.name, function, shape, args)
        })
    }
}

impl Gpu {
    /// [`launch`](Self::launch) over `n` elements: blocks of 256 threads that own `each` of them.
    pub fn launch_over(
        self,
        kernel: &'static Kernel,
        n: usize,
        each: usize,
        args: &[Arg<'_>],
    ) -> Result<()> {
        self.launch(kernel, [blocks(n, each), 1, 1], [256, 1, 1], 0, args)
    }
}

/// Blocks for `n` elements, `each` a block.
pub fn blocks(n: usize, each: usize) -> u32 {
    n.div_ceil(each).min(u32::MAX as usize) as u32
}

/// K strided operands beside an output that is written front to back: `Walk` of
/// `kernels/common.cuh`, word by word.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Walk<const K: usize> {
    rank: i32,
    pub(crate) n: u32,
    dims: [i32; 6],
    strides: [[i32; 6]; K],
}

// SAFETY: 32-bit integers alone, in arrays, so there is no padding; any bits are valid
unsafe impl<const K: usize> bytemuck::Zeroable for Walk<K> {}
// SAFETY: as above
unsafe impl<const K: usize> bytemuck::Pod for Walk<K> {}

impl<const K: usize> Walk<K> {
    /// The walk over a dense output of layout `out`, operands already expanded to its shape. Their
    /// offsets are not in it: a pointer starts at its tensor's first element.
    pub fn new(out: &Layout, inputs: [&Layout; K]) -> Result<Self> {
        let small = |x: usize| i32::try_from(x).map_err(|_| too_large(x));
        let loops = Loops::new(out, inputs);
        let mut w = Walk {
            rank: loops.dims.len() as i32,
            n: small(out.numel())? as u32,
            dims: [1; 6],
            strides: [[0; 6]; K],
        };
        for (d, (&size, strides)) in loops.dims.iter().zip(&loops.strides).enumerate() {
            w.dims[d] = small(size)?;
            for (k, &s) in strides.iter().enumerate() {
                w.strides[k][d] = small(s)?;
            }
        }
        Ok(w)
    }

    /// Whether operand `k` lies in memory as the output does, without gaps.
    pub fn is_dense(&self, k: usize) -> bool {
        self.rank == 1 && (self.strides[k][0] == 1 || self.n <= 1)
    }

    /// Whether the output falls into fours of neighbours for which the operand has one place: 1; or
    /// four that begin at a multiple of 4: 2; else 0. `Fours` of `kernels/stream.cuh`.
    pub fn fours(&self) -> i32 {
        let (last, s) = (self.rank as usize - 1, &self.strides[0]);
        match (self.dims[last] % 4, s[last]) {
            (0, 0) => 1,
            (0, 1) if s[..last].iter().all(|s| s % 4 == 0) => 2,
            _ => 0,
        }
    }

    /// [batch, rows, columns] where the walk copies matrices turned: x's rows run along the
    /// output's fast axis, x's columns are adjacent. Images change their memory order so.
    pub fn as_transpose(&self) -> Option<[i32; 3]> {
        let (d, s) = (&self.dims, &self.strides[0]);
        let (batch, stride, at) = match self.rank {
            2 => (1, 0, 0),
            3 => (d[0], s[0], 1),
            _ => return None,
        };
        // the output's axes are (columns of x, rows of x)
        let [columns, rows] = [d[at], d[at + 1]];
        let turned = s[at] == 1 && s[at + 1] == columns && (batch == 1 || stride == rows * columns);
        (turned && rows >= 8 && columns >= 8 && batch < 65536 && rows < 1 << 20)
            .then_some([batch, rows, columns])
    }

    /// Let the last axis count packs of 16 bytes where all operands, each of elements of `size`
    /// bytes, allow it: `n` then counts packs too. False where they do not.
    pub fn in_packs(&mut self, size: usize, operands: [Arg<'_>; K]) -> bool {
        let each = (16 / size) as i32;
        let last = self.rank as usize - 1;
        let aligned = |a: &Arg<'_>| match a {
            Arg::In(p) | Arg::Out(p) => p.address.is_multiple_of(16),
            _ => false,
        };
        let whole = |s: &[i32; 6]| s[last] == 1 && s[..last].iter().all(|s| s % each == 0);
        let packs = self.dims[last] % each == 0
            && operands.iter().all(aligned)
            && self.strides.iter().all(whole);
        if packs {
            self.dims[last] /= each;
            self.n /= each as u32;
            self.strides.iter_mut().for_each(|s| s[last] = each);
        }
        packs
    }

    /// As a kernel's argument.
    pub fn arg(&self) -> Arg<'_> {
        Arg::Struct(bytemuck::cast_slice(std::slice::from_ref(self)))
    }
}

fn too_large(n: usize) -> Error {
    Error::argument(
        "cuda",
        format!("{n} elements; a tensor on a CUDA device has fewer than 2^31"),
    )
}
