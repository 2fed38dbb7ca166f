//! Losses, and what a classifier gets right: one file a family.
//!
//! A loss is one number for each sample or element, then [reduced](Reduction). Here is what they
//! share.

use crate::autograd::scaled_sum_axes;
use crate::cuda::{self, Arg, Gpu, Pointer};
use crate::dtype::{DType, Real};
use crate::error::{Error, Result};
use crate::shape::{Layout, Shape};
use crate::tensor::Tensor;
use crate::tensor::fold::Team;

pub mod cross_entropy;
pub mod metrics;
pub mod one_hot;
pub mod pairwise;
pub mod svm;

pub use cross_entropy::CrossEntropy;
pub use metrics::{accuracy, correct, topk_accuracy, topk_correct};

/// What becomes of the losses of a batch's samples or elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Reduction {
    /// They stay as they are.
    None,
    /// Their mean; NaN of none, as PyTorch has it.
    #[default]
    Mean,
    /// Their sum.
    Sum,
}

impl Reduction {
    /// The losses reduced, outside of any graph.
    fn apply(self, losses: Tensor) -> Result<Tensor> {
        match self {
            Reduction::None => Ok(losses),
            _ => {
                let (all, scale) = (vec![true; losses.rank()], self.scale(losses.numel()));
                scaled_sum_axes(&losses, &all, scale)?.reshape(())
            }
        }
    }

    /// What one of `n` losses counts in the reduced one.
    fn scale(self, n: usize) -> f64 {
        match self {
            Reduction::Mean => 1.0 / n as f64,
            Reduction::None | Reduction::Sum => 1.0,
        }
    }

    /// The gradient of each of the losses on the CPU, by its row-major place, from the gradient of
    /// what they were reduced to, `scale` times.
    fn spread<T: Real>(self, dy: &Tensor, scale: f64) -> Result<impl Fn(usize) -> T> {
        let (v, step) = match self {
            Reduction::None => (dy.to_vec::<T>()?, 1),
            _ => (vec![T::of(dy.item()? * scale)], 0),
        };
        Ok(move |i: usize| v[i * step])
    }

    /// The same for a kernel: whether dy has a number for each loss, and the scale.
    fn spread_args(self, scale: f64) -> [Arg<'static>; 2] {
        let each = (self == Reduction::None) as i32;
        [Arg::I32(each), Arg::F64(scale)]
    }
}

/// N and C, of logits (N, C) and I64 labels (N).
fn sizes(op: &'static str, logits: &Tensor, labels: &Tensor) -> Result<[usize; 2]> {
    let [n, classes] = logits.dims(op, "logits (N, C)")?;
    if labels.shape()[..] != [n] {
        return Err(Error::shape(
            op,
            &[*logits.shape(), *labels.shape()],
            format!(
                "logits {:?} want labels [{n}] but got {:?}",
                logits.shape(),
                labels.shape()
            ),
        ));
    }
    match labels.dtype() {
        DType::I64 => Ok([n, classes]),
        got => Err(Error::DType {
            op,
            expected: "i64 labels",
            got,
        }),
    }
}

/// Refuses class probabilities that are not (N, C) as the logits are.
fn check_probabilities(op: &'static str, logits: &Tensor, target: &Tensor) -> Result<()> {
    let [n, classes] = logits.dims(op, "logits (N, C)")?;
    if target.shape() == logits.shape() {
        return Ok(());
    }
    Err(Error::shape(
        op,
        &[*logits.shape(), *target.shape()],
        format!(
            "logits {:?} want i64 labels [{n}] or probabilities [{n}, {classes}] but got {:?} of {}",
            logits.shape(),
            target.shape(),
            target.dtype()
        ),
    ))
}

/// The labels (N) of logits (N, C) on the CPU, each below C or what is `ignored`.
fn labels(
    op: &'static str,
    logits: &Tensor,
    labels: &Tensor,
    ignored: Option<i64>,
) -> Result<Vec<i64>> {
    let [_, size] = sizes(op, logits, labels)?;
    let labels = labels.to_vec::<i64>()?;
    let wrong = |&&t: &&i64| (t < 0 || t as usize >= size) && Some(t) != ignored;
    match labels.iter().find(wrong) {
        Some(&index) => Err(Error::Index { op, index, size }),
        None => Ok(labels),
    }
}

/// Logits (N, C) on a GPU, and the threads of their rows.
struct Rows {
    gpu: Gpu,
    logits: Tensor,
    n: usize,
    classes: usize,
    team: Team,
}

impl Rows {
    fn new(op: &'static str, gpu: Gpu, logits: &Tensor) -> Result<Self> {
        let [n, classes] = logits.dims(op, "logits (N, C)")?;
        Ok(Rows {
            gpu,
            logits: logits.packed()?,
            n,
            classes,
            team: Team::of(classes),
        })
    }

    /// A kernel of logits, `tensors`, the sizes and `rest`.
    fn launch(&self, kernels: &'static cuda::Kernels, tensors: &[Arg], rest: &[Arg]) -> Result<()> {
        let [grid, block] = self.team.launch(self.n);
        let sizes = [self.n, self.classes, self.team.lanes].map(|n| Arg::I32(n as i32));
        let args = [&[self.logits.input()], tensors, &sizes, rest].concat();
        let kernel = kernels.of(self.logits.dtype())?;
        self.gpu.launch(kernel, grid, block, 0, &args)
    }

    /// An uninitialized tensor beside the logits.
    fn empty(&self, dims: &[usize]) -> Result<Tensor> {
        let layout = Layout::contiguous(Shape::new(dims)?);
        Tensor::empty(layout, self.logits.dtype(), self.logits.device())
    }

    /// What a kernel reports a label outside of the classes with.
    fn fault(&self, op: &'static str) -> Result<[Arg<'_>; 2]> {
        Ok([self.gpu.fault()?, cuda::op_number(op)])
    }
}

/// A tensor as a kernel's `const T*`, null where there is none.
fn optional(t: Option<&Tensor>, dtype: DType, gpu: Gpu) -> Arg<'static> {
    t.map_or(
        Arg::In(Pointer {
            address: 0,
            dtype,
            gpu: Some(gpu),
        }),
        Tensor::input,
    )
}

/// Refuses a constant of the loss that requires a gradient: it gets none.
fn check_constant(op: &'static str, name: &str, t: &Tensor) -> Result<()> {
    if !t.is_tracked() {
        return Ok(());
    }
    let why = format!("{name} requires a gradient but gets none; detach it");
    Err(Error::argument(op, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::ops::check::devices_nth;

    #[test]
    fn labels_out_of_range_are_errors_by_the_next_read() -> Result<()> {
        let x = Tensor::from_vec(vec![1f64, 0.0, 0.0, 0.0, 1000.0, 0.0], [2, 3])?;
        for device in devices_nth(41)? {
            let x = x.to(device)?;
            for (bad, at) in [(3i64, 1), (-1, 0), (i64::MAX, 1), (1 << 32, 0)] {
                let mut t = [0i64; 2];
                t[at] = bad;
                let t = Tensor::from_slice(&t, [2])?.to(device)?;
                let says = |op: &str, r: Result<f64>| {
                    let expected =
                        format!("{op}: index {bad} is out of range for an axis of size 3");
                    assert_eq!(r.unwrap_err().to_string(), expected, "{device}");
                };
                type Loss = fn(&Tensor, &Tensor) -> Result<Tensor>;
                let losses: [(_, Loss); 3] = [
                    ("cross_entropy", |x, t| {
                        x.cross_entropy(t, &CrossEntropy::default())
                    }),
                    ("cross_entropy", |x, t| {
                        let settings = CrossEntropy {
                            ignore_index: Some(7),
                            weight: Some(Tensor::ones([3], x.options())?),
                            ..CrossEntropy::default()
                        };
                        x.cross_entropy(t, &settings)
                    }),
                    ("svm_loss", |x, t| x.svm_loss(t)),
                ];
                for (op, loss) in losses {
                    says(op, loss(&x, &t).and_then(|l| l.item()));
                }
                says("accuracy", accuracy(&x, &t));
                says("topk_accuracy", topk_accuracy(&x, &t, 2));
                if device == Device::Cpu {
                    continue;
                }
                // what was reported once is not again; the sample has no loss and no gradient
                for (_, loss) in losses {
                    let leaf = x.requires_grad();
                    let y = loss(&leaf, &t)?;
                    let grads = y.backward()?;
                    assert!(y.item().is_err() && y.item()?.is_nan());
                    let dx = grads.get(&leaf).map(Tensor::to_vec::<f64>).transpose()?;
                    let dx = dx.unwrap_or_default();
                    let rows: Vec<bool> =
                        dx.chunks(3).map(|r| r.iter().all(|x| *x == 0.0)).collect();
                    assert!(rows[at], "{dx:?}");
                    assert!(dx.iter().all(|x| x.is_finite()));
                }
            }
        }
        Ok(())
    }

    #[test]
    fn labels_must_be_as_many_as_the_logits() -> Result<()> {
        let x = Tensor::zeros([2, 3], DType::F32)?;
        let t = Tensor::zeros([3], DType::I64)?;
        let wrong = [
            x.svm_loss(&t).map(|_| 0.0),
            x.cross_entropy(&t, &CrossEntropy::default()).map(|_| 0.0),
            accuracy(&x, &t),
        ];
        for (r, op) in wrong
            .into_iter()
            .zip(["svm_loss", "cross_entropy", "accuracy"])
        {
            let expected = format!("{op}: logits [2, 3] want labels [2] but got [3]");
            assert_eq!(r.unwrap_err().to_string(), expected);
        }
        Ok(())
    }
}
