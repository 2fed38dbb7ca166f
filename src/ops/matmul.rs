//! Matrix products: matmul (batched, broadcast, vectors) and linear (with bias).

use crate::autograd::{Op, apply};
use crate::cpu::gemm::{gemm, gemm_batch};
use crate::cuda::gemm::Plan;
use crate::cuda::{Arg, Gpu, Kernels, float_kernels};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::Formula;
use crate::ops::check::{Case, Input};
use crate::ops::precision::lowered;
use crate::ops::unary::relu_grad;
use crate::shape::{self, Layout, Shape};
use crate::tensor::Tensor;
use crate::with_real;

/// Y\[.., m, n\] = A\[.., m, k\] B\[.., k, n\], leading axes broadcast;
/// dA = dY Bᵀ, dB = Aᵀ dY.
struct MatMul;
impl Op<2> for MatMul {
    const NAME: &'static str = "matmul";
    const HALF_ON_CUDA: bool = true;
    type Saved = [Tensor; 2];

    fn forward(&self, [a, b]: [&Tensor; 2]) -> Result<(Tensor, [Tensor; 2])> {
        Ok((product(a, b)?, [a.clone(), b.clone()]))
    }

    fn backward(
        &self,
        [a, b]: [Tensor; 2],
        dy: Tensor,
        needs: [bool; 2],
    ) -> Result<[Option<Tensor>; 2]> {
        // the engine sums the batch axes that were broadcast
        Ok([
            if needs[0] {
                Some(product(&dy, &b.t()?)?)
            } else {
                None
            },
            if needs[1] {
                Some(product(&a.t()?, &dy)?)
            } else {
                None
            },
        ])
    }
}

/// The product of two tensors of at least two axes.
fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let op = MatMul::NAME;
    let (ra, rb) = (a.rank(), b.rank());
    let ([m, k], [k2, n]) = (
        [a.shape()[ra - 2], a.shape()[ra - 1]],
        [b.shape()[rb - 2], b.shape()[rb - 1]],
    );
    let batch = shape::broadcast(
        op,
        &Shape::new(&a.shape()[..ra - 2])?,
        &Shape::new(&b.shape()[..rb - 2])?,
    );
    let (true, Ok(batch)) = (k == k2, batch) else {
        return Err(Error::shape(
            op,
            &[*a.shape(), *b.shape()],
            format!(
                "{:?} and {:?} cannot be multiplied: expected (.., m, k) and (.., k, n) with leading axes that broadcast",
                a.shape(),
                b.shape()
            ),
        ));
    };
    if let Device::Cuda(gpu) = a.device() {
        return on_cuda(gpu, op, a, b, None, false, &batch);
    }
    let whole = |m: usize, n: usize| {
        let mut dims = batch.to_vec();
        dims.extend([m, n]);
        Shape::new(&dims)
    };
    let (la, lb, out) = (
        a.layout().expand(whole(m, k)?),
        b.layout().expand(whole(k, n)?),
        whole(m, n)?,
    );
    with_real!(op, a.dtype(), T => {
        let (x, y) = (a.storage_slice::<T>(op)?, b.storage_slice::<T>(op)?);
        Tensor::build::<T>(Layout::contiguous(out), a.device(), |out| {
            if out.is_empty() {
                return; // a stack of none has no first matrix
            }
            let (sa, sb) = (matrix(&la, 0).1, matrix(&lb, 0).1);
            let at = |i: usize| [matrix(&la, i).0, matrix(&lb, i).0];
            gemm_batch([m, n, k], x, sa, y, sb, out, at);
        })
    })
}

/// Where matrix `i` of a stack starts, and its row and column strides.
fn matrix(l: &Layout, i: usize) -> (usize, (usize, usize)) {
    let r = l.shape().len();
    let (mut at, mut rest) = (l.offset(), i);
    for d in (0..r - 2).rev() {
        at += rest % l.shape()[d] * l.strides()[d];
        rest /= l.shape()[d];
    }
    (at, (l.strides()[r - 2], l.strides()[r - 1]))
}

/// `kernels/gemm.cu` and `gemm_half.cu`: A B + bias, with `relu` through ReLU, for (.., m, k) and
/// (.., k, n) whose leading axes broadcast to `batch`.
fn on_cuda(
    gpu: Gpu,
    op: &'static str,
    a: &Tensor,
    b: &Tensor,
    bias: Option<&Tensor>,
    relu: bool,
    batch: &Shape,
) -> Result<Tensor> {
    let (ra, rb) = (a.rank(), b.rank());
    let [m, k, n] = [a.shape()[ra - 2], a.shape()[ra - 1], b.shape()[rb - 1]];
    let refuse = |expected, got| Error::DType { op, expected, got };
    let plan = Plan::best(a.dtype(), [m, n, k], batch.numel())
        .ok_or_else(|| refuse("a float", a.dtype()))?;
    if let Some(other) = [Some(b), bias]
        .into_iter()
        .flatten()
        .find(|t| t.dtype() != a.dtype())
    {
        return Err(refuse("the dtype of the first operand", other.dtype()));
    }
    run(gpu, plan, a, b, bias, relu, batch)
}

fn run(
    gpu: Gpu,
    plan: Plan,
    a: &Tensor,
    b: &Tensor,
    bias: Option<&Tensor>,
    relu: bool,
    batch: &Shape,
) -> Result<Tensor> {
    let (a, b) = (lines(a)?, lines(b)?);
    let (ra, rb) = (a.rank(), b.rank());
    let [m, k, n] = [a.shape()[ra - 2], a.shape()[ra - 1], b.shape()[rb - 1]];
    let whole = |m: usize, n: usize| Shape::new(&[&batch[..], &[m, n]].concat());
    let (la, lb) = (
        a.layout().expand(whole(m, k)?),
        b.layout().expand(whole(k, n)?),
    );
    let (dtype, splits, batches) = (a.dtype(), plan.splits, batch.numel());

    // `Product` of kernels/gemm.cuh, word by word; an axis of size 1 has no stride that matters
    let r = batch.len();
    let stride = |l: &Layout, axis: usize| {
        if l.shape()[axis] == 1 {
            0
        } else {
            l.strides()[axis]
        }
    };
    let (sa, sb) = (
        [stride(&la, r), stride(&la, r + 1)],
        [stride(&lb, r + 1), stride(&lb, r)],
    );
    let axes = |of: &[usize], rest: usize| {
        let mut all = [rest; 4];
        all[..r].copy_from_slice(&of[..r]);
        all
    };
    let mut product = vec![m, n, k, splits, plan.depth];
    product.extend([bias.is_some(), relu].map(usize::from));
    product.extend([sa, sb].concat());
    product.extend([axes(batch, 1), axes(la.strides(), 0), axes(lb.strides(), 0)].concat());
    let product: Vec<i32> = product.into_iter().map(|x| x as i32).collect();

    let y = Tensor::empty(Layout::contiguous(whole(m, n)?), dtype, a.device())?;
    let sums = if dtype.is_half() { DType::F32 } else { dtype };
    let parts = if splits > 1 {
        batches * splits * m * n
    } else {
        0
    };
    let parts = Tensor::empty(Layout::contiguous(Shape::new(&[parts])?), sums, a.device())?;
    let bias = bias.map(Tensor::packed).transpose()?;
    let row = bias.as_ref().unwrap_or(&y).input();
    gpu.launch(
        plan.tile.kernels(sa[1] == 1, sb[1] == 1).of(dtype)?,
        [(plan.tile.blocks([m, n]) * batches * splits) as u32, 1, 1],
        [plan.tile.threads, 1, 1],
        plan.tile.shared,
        &[
            a.input(),
            b.input(),
            row,
            y.output(),
            parts.output(),
            Arg::Struct(&product),
        ],
    )?;
    if splits > 1 {
        gpu.launch_over(
            FOLD.of(dtype)?,
            y.numel(),
            256,
            &[
                parts.input(),
                row,
                y.output(),
                Arg::U32(y.numel() as u32),
                Arg::I32((m * n) as i32),
                Arg::I32(n as i32),
                Arg::I32(splits as i32),
                Arg::I32(bias.is_some().into()),
                Arg::I32(relu.into()),
            ],
        )?;
    }
    Ok(y)
}

/// Adds up what the parts of k have given.
static FOLD: Kernels = float_kernels!("gemm_fold");

/// A stack of matrices whose rows or columns are each together in memory, as the kernels read them.
fn lines(x: &Tensor) -> Result<Tensor> {
    let l = x.layout();
    let together = |axis: usize| l.strides()[axis] == 1 || l.shape()[axis] <= 1;
    if together(x.rank() - 1) || together(x.rank() - 2) {
        Ok(x.clone())
    } else {
        x.packed()
    }
}

/// Y\[m, out\] = X\[m, in\] Wᵀ + b with W\[out, in\], as PyTorch stores it;
/// dX = dY W, dW = dYᵀ X, db = sum of dY's rows. With `relu` Y is the maximum of that and 0, and
/// dY counts where Y > 0.
struct Linear {
    relu: bool,
}
impl Linear {
    fn op(&self) -> &'static str {
        if self.relu { "linear_relu" } else { "linear" }
    }

    fn of(self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let fits =
            weight.rank() == 2 && x.rank() > 0 && x.shape()[x.rank() - 1] == weight.shape()[1];
        if !fits {
            return Err(Error::shape(
                self.op(),
                &[*weight.shape(), *x.shape()],
                format!(
                    "weight {:?} wants an input (.., in) for its (out, in) but input is {:?}",
                    weight.shape(),
                    x.shape()
                ),
            ));
        }
        let out = weight.shape()[0];
        if let Some(b) = bias.filter(|b| b.shape()[..] != [out]) {
            return Err(Error::shape(
                self.op(),
                &[*weight.shape(), *b.shape()],
                format!(
                    "weight {:?} wants a bias [{out}] but got {:?}",
                    weight.shape(),
                    b.shape()
                ),
            ));
        }
        let last = x.rank() - 1;
        let rows = x.shape()[..last].iter().product::<usize>();
        let flat = if x.rank() == 2 {
            x.clone()
        } else {
            x.reshape([rows, weight.shape()[1]])?
        };
        let y = match bias {
            Some(bias) => apply(self, lowered([&flat, weight, bias])?.each_ref())?,
            None => apply(self, lowered([&flat, weight])?.each_ref())?,
        };
        if x.rank() == 2 {
            Ok(y)
        } else {
            y.reshape(x.shape().with(last, out))
        }
    }
}
impl<const N: usize> Op<N> for Linear {
    const NAME: &'static str = "linear";
    const HALF_ON_CUDA: bool = true;
    /// X, W, and with ReLU Y.
    type Saved = ([Tensor; 2], Option<Tensor>);

    fn name(&self) -> &'static str {
        self.op()
    }

    fn forward(&self, inputs: [&Tensor; N]) -> Result<(Tensor, Self::Saved)> {
        let (x, w) = (inputs[0], inputs[1]);
        let saved = |y: &Tensor| ([x.clone(), w.clone()], self.relu.then(|| y.clone()));
        if let Device::Cuda(gpu) = x.device() {
            let bias = inputs.get(2).copied();
            let y = on_cuda(
                gpu,
                self.op(),
                x,
                &w.t()?,
                bias,
                self.relu,
                &Shape::new(&[])?,
            )?;
            return Ok((y.clone(), saved(&y)));
        }
        let (m, k, n) = (x.shape()[0], x.shape()[1], w.shape()[0]);
        let y = with_real!(self.op(), x.dtype(), T => {
            let (xs, ws) = (x.storage_slice::<T>(self.op())?, w.storage_slice::<T>(self.op())?);
            let bias = inputs.get(2).map(|b| b.packed()).transpose()?;
            let bias = bias.as_ref().map(|b| b.dense_slice::<T>(self.op())).transpose()?;
            let ((ox, sx), (ow, sw)) = (matrix(x.layout(), 0), matrix(w.layout(), 0));
            let out = Layout::contiguous(Shape::new(&[m, n])?);
            Tensor::build::<T>(out, x.device(), |y| {
                let (xs, ws) = (&xs[ox.min(xs.len())..], &ws[ow.min(ws.len())..]);
                gemm(m, n, k, xs, sx, ws, (sw.1, sw.0), y, n, bias, self.relu);
            })
        })?;
        Ok((y.clone(), saved(&y)))
    }

    fn backward(
        &self,
        ([x, w], y): Self::Saved,
        mut dy: Tensor,
        needs: [bool; N],
    ) -> Result<[Option<Tensor>; N]> {
        if let Some(y) = y {
            dy = relu_grad(y, &dy)?;
        }
        let mut grads = [const { None }; N];
        if needs[0] {
            grads[0] = Some(product(&dy, &w)?);
        }
        if needs[1] {
            grads[1] = Some(product(&dy.t()?, &x)?);
        }
        if N > 2 && needs[2] {
            grads[2] = Some(dy.sum(&[0], false)?);
        }
        Ok(grads)
    }
}

impl Tensor {
    /// The matrix product, by PyTorch's rules: a vector is a row on the left and a column on the
    /// right, leading axes broadcast.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let a = Tensor::ones([5, 2, 3], DType::F32)?;
    /// let b = Tensor::ones([3, 4], DType::F32)?;
    /// assert_eq!(a.matmul(&b)?.shape()[..], [5, 2, 4]);
    /// assert!(b.matmul(&b).is_err());
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn matmul(&self, other: &Tensor) -> Result<Tensor> {
        match (self.rank(), other.rank()) {
            (0, _) | (_, 0) => Err(Error::shape(
                "matmul",
                &[*self.shape(), *other.shape()],
                format!(
                    "{:?} and {:?}: a scalar is no matrix; use mul",
                    self.shape(),
                    other.shape()
                ),
            )),
            (1, _) => self
                .unsqueeze(0)?
                .matmul(other)?
                .squeeze(if other.rank() == 1 { 0 } else { -2 }),
            (_, 1) => self.matmul(&other.unsqueeze(1)?)?.squeeze(-1),
            // one large product instead of many small ones
            (3.., 2)
                if self.is_contiguous()
                    && self.shape()[self.rank() - 1] == other.shape()[0]
                    && self.numel() > 0 =>
            {
                let dims = self.shape().with(self.rank() - 1, other.shape()[1]);
                let rows = self.numel() / other.shape()[0];
                let flat = self.reshape([rows, other.shape()[0]])?;
                apply(MatMul, lowered([&flat, other])?.each_ref())?.reshape(dims)
            }
            _ => apply(MatMul, lowered([self, other])?.each_ref()),
        }
    }

    /// x Wᵀ + b: x (.., in), `weight` (out, in), `bias` (out).
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let (x, w) = (Tensor::ones([2, 3], DType::F32)?, Tensor::ones([4, 3], DType::F32)?);
    /// assert_eq!(x.linear(&w, None)?.to_vec::<f32>()?, [3.0; 8]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        Linear { relu: false }.of(self, weight, bias)
    }

    /// [`relu`](Tensor::relu) of [`linear`](Tensor::linear) in one pass.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let x = Tensor::from_vec(vec![2f32], [1, 1])?;
    /// let w = Tensor::from_vec(vec![1f32, -1.0], [2, 1])?;
    /// assert_eq!(x.linear_relu(&w, None)?.to_vec::<f32>()?, [2.0, 0.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn linear_relu(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        Linear { relu: true }.of(self, weight, bias)
    }
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[
    ("matmul", "y[i, j] = sum_k a[i, k] b[k, j]"),
    ("linear", "x w^T + b"),
    ("linear_relu", "max(x w^T + b, 0)"),
];

/// Products of every rank, ragged against the kernels' tiles.
pub const CASES: &[Case] = &[
    Case {
        op: "matmul",
        name: "matrices",
        inputs: &[Input::Normal(&[4, 5]), Input::Normal(&[5, 3])],
        run: |x| x[0].matmul(&x[1]),
    },
    Case {
        op: "matmul",
        name: "ragged tiles",
        inputs: &[Input::Normal(&[13, 35]), Input::Normal(&[35, 37])],
        run: |x| x[0].matmul(&x[1])?.mul_scalar(0.1),
    },
    Case {
        op: "matmul",
        name: "batch",
        inputs: &[Input::Normal(&[2, 4, 5]), Input::Normal(&[2, 5, 3])],
        run: |x| x[0].matmul(&x[1]),
    },
    Case {
        op: "matmul",
        name: "batch and matrix",
        inputs: &[Input::Normal(&[2, 3, 4, 5]), Input::Normal(&[5, 6])],
        run: |x| x[0].matmul(&x[1]),
    },
    Case {
        op: "matmul",
        name: "broadcast batch",
        inputs: &[Input::Normal(&[2, 1, 4, 5]), Input::Normal(&[3, 5, 2])],
        run: |x| x[0].matmul(&x[1]),
    },
    Case {
        op: "matmul",
        name: "row and column",
        inputs: &[Input::Normal(&[1, 7]), Input::Normal(&[7, 1])],
        run: |x| x[0].matmul(&x[1]),
    },
    Case {
        op: "matmul",
        name: "vector, matrix",
        inputs: &[Input::Normal(&[5]), Input::Normal(&[5, 3])],
        run: |x| x[0].matmul(&x[1]),
    },
    Case {
        op: "matmul",
        name: "matrix, vector",
        inputs: &[Input::Normal(&[4, 5]), Input::Normal(&[5])],
        run: |x| x[0].matmul(&x[1]),
    },
    Case {
        op: "matmul",
        name: "vectors",
        inputs: &[Input::Normal(&[5]), Input::Normal(&[5])],
        run: |x| x[0].matmul(&x[1]),
    },
    Case {
        op: "matmul",
        name: "with its own transpose",
        inputs: &[Input::Normal(&[4, 5])],
        run: |x| x[0].matmul(&x[0].t()?),
    },
    Case {
        op: "matmul",
        name: "over nothing",
        inputs: &[Input::Normal(&[2, 0]), Input::Normal(&[0, 3])],
        run: |x| x[0].matmul(&x[1]),
    },
    Case {
        op: "matmul",
        name: "empty batch",
        inputs: &[Input::Normal(&[0, 2, 3]), Input::Normal(&[3, 2])],
        run: |x| x[0].matmul(&x[1]),
    },
    Case {
        op: "linear",
        name: "with bias",
        inputs: &[
            Input::Normal(&[4, 5]),
            Input::Normal(&[3, 5]),
            Input::Normal(&[3]),
        ],
        run: |x| x[0].linear(&x[1], Some(&x[2])),
    },
    Case {
        op: "linear",
        name: "no bias, three axes",
        inputs: &[Input::Normal(&[2, 2, 5]), Input::Normal(&[3, 5])],
        run: |x| x[0].linear(&x[1], None),
    },
    Case {
        op: "linear",
        name: "one row",
        inputs: &[
            Input::Normal(&[1, 5]),
            Input::Normal(&[40, 5]),
            Input::Normal(&[40]),
        ],
        run: |x| x[0].linear(&x[1], Some(&x[2])),
    },
    Case {
        op: "linear",
        name: "no rows",
        inputs: &[
            Input::Normal(&[0, 5]),
            Input::Normal(&[3, 5]),
            Input::Normal(&[3]),
        ],
        run: |x| x[0].linear(&x[1], Some(&x[2])),
    },
    Case {
        op: "linear_relu",
        name: "with bias",
        inputs: &[
            Input::Normal(&[4, 5]),
            Input::Normal(&[3, 5]),
            Input::Normal(&[3]),
        ],
        run: |x| x[0].linear_relu(&x[1], Some(&x[2])),
    },
    Case {
        op: "linear_relu",
        name: "no bias, three axes",
        inputs: &[Input::Normal(&[2, 2, 5]), Input::Normal(&[3, 5])],
        run: |x| x[0].linear_relu(&x[1], None),
    },
    Case {
        op: "linear_relu",
        name: "ragged tiles",
        inputs: &[
            Input::Normal(&[13, 9]),
            Input::Normal(&[19, 9]),
            Input::Normal(&[19]),
        ],
        run: |x| x[0].linear_relu(&x[1], Some(&x[2]))?.mul_scalar(0.3),
    },
    Case {
        op: "linear_relu",
        name: "no rows",
        inputs: &[
            Input::Normal(&[0, 5]),
            Input::Normal(&[3, 5]),
            Input::Normal(&[3]),
        ],
        run: |x| x[0].linear_relu(&x[1], Some(&x[2])),
    },
    Case {
        op: "linear_relu",
        name: "over nothing",
        inputs: &[
            Input::Normal(&[2, 0]),
            Input::Normal(&[3, 0]),
            Input::Normal(&[3]),
        ],
        run: |x| x[0].linear_relu(&x[1], Some(&x[2])),
    },
];

/// Several tiles of the CUDA kernels in each direction, ragged and whole, and a long k.
pub const LARGE: &[Case] = &[
    Case {
        op: "matmul",
        name: "ragged tiles of a card",
        inputs: &[Input::Normal(&[150, 101]), Input::Normal(&[101, 203])],
        run: |x| x[0].matmul(&x[1])?.mul_scalar(0.1),
    },
    Case {
        op: "matmul",
        name: "batch, both transposed",
        inputs: &[Input::Normal(&[2, 72, 136]), Input::Normal(&[2, 144, 72])],
        run: |x| x[0].t()?.matmul(&x[1].t()?)?.mul_scalar(0.1),
    },
    Case {
        op: "matmul",
        name: "no axis together",
        inputs: &[Input::Normal(&[70, 3, 65]), Input::Normal(&[65, 40])],
        run: |x| x[0].select(1, 1)?.matmul(&x[1])?.mul_scalar(0.1),
    },
    Case {
        op: "matmul",
        name: "cut along k",
        inputs: &[Input::Normal(&[2, 21, 900]), Input::Normal(&[900, 30])],
        run: |x| x[0].matmul(&x[1])?.mul_scalar(0.03),
    },
    Case {
        op: "linear",
        name: "a batch to cut the weight's gradient along",
        inputs: &[
            Input::Normal(&[1030, 40]),
            Input::Normal(&[24, 40]),
            Input::Normal(&[24]),
        ],
        run: |x| x[0].linear(&x[1], Some(&x[2]))?.mul_scalar(0.03),
    },
    Case {
        op: "linear",
        name: "a bias and a k that are cut",
        inputs: &[
            Input::Normal(&[9, 1040]),
            Input::Normal(&[70, 1040]),
            Input::Normal(&[70]),
        ],
        run: |x| x[0].linear(&x[1], Some(&x[2]))?.mul_scalar(0.03),
    },
    Case {
        op: "linear_relu",
        name: "a bias and a k that are cut",
        inputs: &[
            Input::Normal(&[9, 1040]),
            Input::Normal(&[70, 1040]),
            Input::Normal(&[70]),
        ],
        run: |x| x[0].linear_relu(&x[1], Some(&x[2]))?.mul_scalar(0.03),
    },
    Case {
        op: "linear_relu",
        name: "ragged tiles of a card",
        inputs: &[
            Input::Normal(&[150, 40]),
            Input::Normal(&[201, 40]),
            Input::Normal(&[201]),
        ],
        run: |x| x[0].linear_relu(&x[1], Some(&x[2]))?.mul_scalar(0.1),
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    // the choice of a tile goes by size, so that small tests would see the small tiles alone
    #[cfg(feature = "emulator")]
    #[test]
    fn every_tile_in_every_memory_order() -> Result<()> {
        use crate::cuda::gemm::tiles;
        let device = Device::cuda_emulated()?;
        let Device::Cuda(gpu) = device else {
            unreachable!()
        };
        let mut rng = crate::random::Generator::new(5);
        let mut normal = |shape: [usize; 2]| {
            let mut v = vec![0f64; shape[0] * shape[1]];
            rng.fill_normal(&mut v, |x| x);
            Tensor::from_vec(v, shape)
        };
        for (dtype, tolerance) in [
            (DType::F32, 1e-5),
            (DType::F64, 1e-13),
            (DType::BF16, 4e-3),
            (DType::F16, 5e-4),
        ] {
            for (i, tile) in tiles(dtype).iter().enumerate() {
                let [tm, tn] = tile.size;
                for (m, n, k, splits) in [(2 * tm + 5, tn + 7, 70, 1), (tm + 8, 2 * tn + 8, 136, 3)]
                {
                    let round = |x: Tensor| x.to_dtype(dtype)?.to_dtype(DType::F64);
                    let (a, b) = (round(normal([m, k])?)?, round(normal([k, n])?)?);
                    let bias = round(normal([1, n])?)?;
                    let right = a.matmul(&b)?.add(&bias)?.to_vec::<f64>()?;
                    let most = right.iter().fold(0f64, |m, x| m.max(x.abs()));
                    for (order, [ta, tb]) in [
                        (0, [false, false]),
                        (1, [false, true]),
                        (6, [true, false]),
                        (7, [true, true]),
                    ] {
                        crate::cuda::set_thread_order(order);
                        let there = |x: &Tensor, transposed: bool| {
                            let x = x.to_dtype(dtype)?;
                            if transposed {
                                x.t()?.packed()?.to(device)?.t()
                            } else {
                                x.to(device)
                            }
                        };
                        let relu = ta;
                        let plan = Plan::new(tile, k, splits);
                        assert_eq!(plan.splits, splits);
                        let (a, b) = (there(&a, ta)?, there(&b, tb)?);
                        let bias = there(&bias, false)?.reshape([n])?;
                        let y = run(gpu, plan, &a, &b, Some(&bias), relu, &Shape::new(&[])?)?;
                        let y = y.to(Device::Cpu)?.to_dtype(DType::F64)?.to_vec::<f64>()?;
                        for (j, (x, y)) in y.iter().zip(&right).enumerate() {
                            let y = if relu { y.max(0.0) } else { *y };
                            assert!(
                                (x - y).abs() <= tolerance * most,
                                "{dtype}, tile {i}, transposed {ta} {tb}, {splits} parts, \
                                 element {j}: {x}, right is {y}"
                            );
                        }
                    }
                }
            }
        }
        crate::cuda::set_thread_order(0);
        Ok(())
    }

    // a zero, a negative zero and NaN before ReLU among them
    #[test]
    fn relu_in_one_pass_is_relu() -> Result<()> {
        for device in crate::ops::check::devices()? {
            for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
                let leaf = |v: Vec<f64>, shape: [usize; 2]| -> Result<Tensor> {
                    let x = Tensor::from_vec(v, shape)?.to_dtype(dtype)?.to(device)?;
                    Ok(x.requires_grad())
                };
                let x = leaf(vec![1.0, 2.0, 1.0, -1.0, f64::NAN, 0.0, -0.0, 0.0], [4, 2])?;
                let w = leaf(vec![1.0, 1.0, -1.0, -1.0, 1.0, 0.5], [3, 2])?;
                let all = |y: Tensor| -> Result<String> {
                    let grads = y.backward_from(&y.ones_like()?)?;
                    let found = [Some(&y), grads.get(&x), grads.get(&w)].map(|t| {
                        let t = t.unwrap().to(Device::Cpu)?.to_dtype(DType::F64)?;
                        t.to_vec::<f64>()
                    });
                    Ok(format!("{found:?}"))
                };
                assert_eq!(
                    all(x.linear_relu(&w, None)?)?,
                    all(x.linear(&w, None)?.relu()?)?,
                    "{dtype} on {device}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn errors_name_both_shapes() -> Result<()> {
        let z = |d: &[usize]| Tensor::zeros(d, DType::F32);
        let e = z(&[2, 3])?.matmul(&z(&[4, 5])?).unwrap_err().to_string();
        assert_eq!(
            e,
            "matmul: [2, 3] and [4, 5] cannot be multiplied: expected (.., m, k) and (.., k, n) with leading axes that broadcast"
        );
        assert!(z(&[2, 2, 3])?.matmul(&z(&[3, 3, 4])?).is_err());
        let e = z(&[2, 3])?
            .linear(&z(&[5, 4])?, None)
            .unwrap_err()
            .to_string();
        assert_eq!(
            e,
            "linear: weight [5, 4] wants an input (.., in) for its (out, in) but input is [2, 3]"
        );
        let e = z(&[2, 4])?
            .linear(&z(&[5, 4])?, Some(&z(&[4])?))
            .unwrap_err()
            .to_string();
        assert_eq!(e, "linear: weight [5, 4] wants a bias [5] but got [4]");
        let e = z(&[2, 3])?.linear_relu(&z(&[5, 4])?, None).unwrap_err();
        assert!(e.to_string().starts_with("linear_relu: weight [5, 4]"));
        assert!(matches!(
            z(&[2, 3])?.matmul(&Tensor::zeros([3, 2], DType::F64)?),
            Err(Error::DType { .. })
        ));
        Ok(())
    }
}
