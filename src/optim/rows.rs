//! Many tensors in one launch: update rules, L2 and norms walk all of a model's parameters at once.

use rayon::prelude::*;

use super::flush;
use crate::cpu::strided::row_sum;
use crate::cuda::{Arg, Gpu, Kernels, kernels};
use crate::device::Device;
use crate::dtype::{DType, Element, Real};
use crate::error::{Error, Result};
use crate::level;
use crate::shape::{Layout, Shape};
use crate::tensor::Tensor;
use crate::with_real;
use crate::workers::Parallel;

kernels! {
    /// y += a x, one block a stretch of a row.
    AXPY = "axpy" [F32, F64];
    /// x *= a, one block a stretch of a row.
    SCALE = "scale" [F32, F64];
    /// y += w (x - y), one block a stretch of a row.
    LERP = "lerp" [F32, F64];
    /// The squares of a stretch, summed in f64, one block each.
    SUM_SQUARES = "sum_squares" [F32, F64];
    /// The sum of the stretches' sums, one block.
    SUM_PARTS = "sum_parts" [F64];
}

/// Rows that fit into the 4 KiB of a launch's parameters (`ROWS` of `kernels/optimizer.cu`).
const MOST: usize = 80;
/// Elements that one block works on (`STRETCH` there), and one thread of the CPU at a time.
const STRETCH: usize = 1 << 11;
pub(super) const CPU_STRETCH: usize = 1 << 14;

/// `Rows` of `kernels/optimizer.cu`, word by word.
#[repr(C)]
#[derive(Clone, Copy)]
struct Words {
    count: u32,
    at: [[[u32; 2]; 5]; MOST],
    n: [u32; MOST],
    block: [u32; MOST],
}
// SAFETY: 32-bit integers alone, in arrays, so there is no padding; any bits are valid
unsafe impl bytemuck::Zeroable for Words {}
// SAFETY: as above
unsafe impl bytemuck::Pod for Words {}

/// Rows of up to five tensors that are worked on side by side (a parameter, its gradient, its
/// states), all dense in one memory order and of one dtype.
#[derive(Default)]
pub(crate) struct Rows(Vec<Row>);

struct Row {
    gpu: Gpu,
    dtype: DType,
    at: [u64; 5],
    n: usize,
}

impl Rows {
    /// One more row. The tensors must live until the launch, and those that it writes must be
    /// nobody else's ([`Tensor::make_unique`]).
    pub fn push(&mut self, tensors: &[&Tensor]) {
        let (mut gpu, mut at) = (None, [0; 5]);
        for (at, t) in at.iter_mut().zip(tensors) {
            if let Arg::In(p) = t.input() {
                (gpu, *at) = (p.gpu, p.address);
            }
        }
        let (dtype, n) = (tensors[0].dtype(), tensors[0].numel());
        if let Some(gpu) = gpu
            && n > 0
        {
            self.0.push(Row { gpu, dtype, at, n });
        }
    }

    /// The number of blocks over all rows.
    fn blocks(&self) -> usize {
        self.0.iter().map(|r| r.n.div_ceil(STRETCH)).sum()
    }

    /// Run a kernel on all rows, in as few launches as dtypes and the size of a launch's parameters
    /// allow. `rest` gives the arguments behind the rows for a launch whose first block is so many
    /// behind the very first.
    pub fn launch<'a, const N: usize>(
        mut self,
        kernels: &'static Kernels,
        mut rest: impl FnMut(usize) -> [Arg<'a>; N],
    ) -> Result<()> {
        self.0.sort_by_key(|r| r.dtype.size());
        let mut before = 0;
        let alike = |a: &Row, b: &Row| (a.gpu, a.dtype) == (b.gpu, b.dtype);
        for rows in self.0.chunk_by(alike).flat_map(|same| same.chunks(MOST)) {
            let mut words: Words = bytemuck::Zeroable::zeroed();
            words.count = rows.len() as u32;
            let mut blocks = 0;
            for (i, row) in rows.iter().enumerate() {
                words.at[i] = row.at.map(|a| [a as u32, (a >> 32) as u32]);
                (words.n[i], words.block[i]) = (row.n as u32, blocks);
                blocks += row.n.div_ceil(STRETCH) as u32;
            }
            let words = [words];
            let mut args = vec![Arg::Struct(bytemuck::cast_slice(&words))];
            args.extend(rest(before));
            let kernel = kernels.of(rows[0].dtype)?;
            rows[0]
                .gpu
                .launch(kernel, [blocks, 1, 1], [256, 1, 1], 0, &args)?;
            before += blocks as usize;
        }
        Ok(())
    }
}

/// `x` in the memory order of `other` (dense), to be walked side by side; an error unless it is of
/// its shape and dtype and on its device.
pub(crate) fn beside(op: &'static str, x: &Tensor, other: &Tensor) -> Result<Tensor> {
    if x.shape() != other.shape() {
        let (a, b) = (*x.shape(), *other.shape());
        return Err(Error::shape(op, &[a, b], format!("{a:?} beside {b:?}")));
    }
    if (x.dtype(), x.device()) != (other.dtype(), other.device()) {
        let what = |t: &Tensor| format!("{} on {}", t.dtype(), t.device());
        return Err(Error::devices(op, what(x), what(other)));
    }
    x.laid_out(*other.layout())
}

/// An [`Error::DType`] unless a tensor that is updated in place is F32 or F64.
pub(crate) fn check_real(op: &'static str, t: &Tensor) -> Result<()> {
    match t.dtype() {
        DType::F32 | DType::F64 => Ok(()),
        got => Err(Error::DType {
            op,
            expected: "F32 or F64 (keep the parameters in F32; only what is computed from them \
                       may have 16 bits)",
            got,
        }),
    }
}

/// `y += weight (x - y)` for pairs of tensors, in place: on the CPU at once, on a CUDA device in
/// one launch at the end. The weight may change from step to step; 1 copies x (what has
/// all but vanished is 0), and 0 leaves y alone.
pub(crate) struct Lerp {
    op: &'static str,
    weight: f64,
    rows: Rows,
    gpu: Option<Gpu>,
    /// What the launch reads.
    held: Vec<Tensor>,
}

impl Lerp {
    pub fn new(op: &'static str, weight: f64) -> Self {
        Lerp {
            op,
            weight,
            rows: Rows::default(),
            gpu: None,
            held: Vec::new(),
        }
    }

    /// One more pair. `y` must live until the launch.
    pub fn add(&mut self, y: &mut Tensor, x: &Tensor) -> Result<()> {
        check_real(self.op, y)?;
        y.make_unique()?;
        let x = beside(self.op, x, y)?;
        if let Device::Cuda(gpu) = y.device() {
            self.gpu = Some(gpu);
            self.rows.push(&[y, &x]);
            self.held.push(x);
            return Ok(());
        }
        with_real!(self.op, y.dtype(), T => {
            let w = T::of(self.weight);
            if w == T::ZERO {
                return Ok(());
            }
            let each = |(y, x): (&mut [T], &[T])| {
                level::run(#[inline(always)] || {
                    for (y, &x) in y.iter_mut().zip(x) {
                        let far = x - *y;
                        *y = if w < T::of(0.5) { *y + w * far } else { x - (T::ONE - w) * far };
                    }
                    flush(y);
                })
            };
            let x = x.dense_slice::<T>(self.op)?;
            y.make_mut::<T>()?.par_chunks_mut(CPU_STRETCH).zip(x.par_chunks(CPU_STRETCH)).each(each);
            Ok(())
        })
    }

    /// Do it. Whether the weight was taken as a number of the step ([`Tensor::scalars`]).
    pub fn launch(self) -> Result<bool> {
        let Some(gpu) = self.gpu else {
            return Ok(false);
        };
        let weight = Tensor::scalars(gpu, &[self.weight.to_bits()])?;
        self.rows.launch(&LERP, |_| [weight.input()])?;
        Ok(true)
    }
}

/// The 2-norm of all elements of `tensors` together (PyTorch's `get_total_norm`): an F64 scalar on
/// their device, which nothing waits for.
///
/// ```
/// # use cotangent::{DType, Tensor, optim::global_norm};
/// let (a, b) = (Tensor::full([3, 3], 1.0, DType::F32)?, Tensor::scalar(4f32)?);
/// assert_eq!(global_norm(&[&a, &b])?.item()?, 5.0);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn global_norm(tensors: &[&Tensor]) -> Result<Tensor> {
    sum_squares("global_norm", tensors, 1.0, true)
}

/// `factor` times the sum of all squares, or times its root: an F64 scalar on the tensors' device.
pub(crate) fn sum_squares(
    op: &'static str,
    tensors: &[&Tensor],
    factor: f64,
    root: bool,
) -> Result<Tensor> {
    let first = tensors.first().map_or(Device::Cpu, |t| t.device());
    if let Some(other) = tensors.iter().find(|t| t.device() != first) {
        return Err(Error::devices(op, first, other.device()));
    }
    let dense = |t: &&Tensor| {
        let t = t.detach();
        let t = if t.dtype().is_half() {
            t.cast(DType::F32)?
        } else {
            t
        };
        t.laid_out(t.layout().dense_like())
    };
    let tensors = tensors.iter().map(dense).collect::<Result<Vec<_>>>()?;
    let Device::Cuda(gpu) = first else {
        let mut sum = 0.0;
        for t in &tensors {
            sum += with_real!(op, t.dtype(), T => {
                let squares = |x: &[T]| level::run(#[inline(always)] || row_sum([x], |[x]| x.to_f64() * x.to_f64()));
                let parts: Vec<f64> = t.dense_slice::<T>(op)?.par_chunks(CPU_STRETCH).map(squares).gather();
                Ok(parts.iter().sum::<f64>())
            })?;
        }
        return Tensor::scalar(factor * if root { sum.sqrt() } else { sum });
    };
    let mut rows = Rows::default();
    for t in &tensors {
        rows.push(&[t]);
    }
    let n = rows.blocks();
    let vector = |dims: &[usize]| Ok(Layout::contiguous(Shape::new(dims)?));
    let parts = Tensor::empty(vector(&[n])?, DType::F64, first)?;
    rows.launch(&SUM_SQUARES, |at| {
        [parts.view_as(parts.layout().narrow(0, at, n - at)).output()]
    })?;
    let y = Tensor::empty(vector(&[])?, DType::F64, first)?;
    let numbers = [Arg::I32(n as i32), Arg::F64(factor), Arg::I32(root as i32)];
    let args = [&[parts.input(), y.output()], &numbers[..]].concat();
    gpu.launch(SUM_PARTS.of(DType::F64)?, [1; 3], [256, 1, 1], 0, &args)?;
    Ok(y)
}

/// x *= factor for all rows (x); (1) of F64 on their device.
pub(crate) fn scale(rows: Rows, factor: &Tensor) -> Result<()> {
    rows.launch(&SCALE, |_| [factor.input()])
}

/// y += a x for all rows (y, x).
pub(crate) fn axpy(rows: Rows, a: f64) -> Result<()> {
    rows.launch(&AXPY, |_| [Arg::F64(a)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Generator;

    #[test]
    fn the_global_norm_is_that_of_all_elements_in_one_vector() -> Result<()> {
        let mut rng = Generator::new(3);
        let a = Tensor::randn([3, 7000], &mut rng, DType::F32)?;
        let b = Tensor::randn([5, 4], &mut rng, DType::F64)?.t()?;
        let c = Tensor::randn([9], &mut rng, DType::BF16)?;
        let mut sum = 0.0;
        for t in [&a, &b, &c] {
            sum += t
                .cast(DType::F64)?
                .to_vec::<f64>()?
                .iter()
                .map(|x| x * x)
                .sum::<f64>();
        }
        let got = global_norm(&[&a, &b, &c])?.item()?;
        assert!((got - sum.sqrt()).abs() < 1e-12 * got);
        assert_eq!(global_norm(&[])?.item()?, 0.0);
        assert!(global_norm(&[&Tensor::scalar(1i64)?]).is_err());
        Ok(())
    }
}
