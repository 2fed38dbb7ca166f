//! Losses of class scores against labels: cross_entropy, svm_loss; and accuracy.

use crate::autograd::{Op, apply};
use crate::cpu::strided;
use crate::dtype::{DType, Element, Real};
use crate::error::{Error, Result};
use crate::ops::check::{Case, Input};
use crate::shape::{Layout, Shape};
use crate::tensor::Tensor;
use crate::with_real;

/// What becomes of the losses of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reduction {
    /// One loss an image.
    None,
    /// Their mean; NaN of nothing, as PyTorch has it.
    #[default]
    Mean,
    /// Their sum.
    Sum,
}

/// Settings of [`Tensor::cross_entropy`].
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct CrossEntropy {
    /// The share of the target that is spread evenly over all classes, 0 to 1 (Szegedy et al. 2015).
    pub label_smoothing: f64,
    /// What becomes of the losses of a batch.
    pub reduction: Reduction,
}

impl Reduction {
    fn reduce(self, losses: &Tensor) -> Result<Tensor> {
        match self {
            Reduction::None => Ok(losses.clone()),
            Reduction::Mean => losses.mean_all(),
            Reduction::Sum => losses.sum_all(),
        }
    }

    /// The gradient of each loss, (N, 1), from the gradient of what became of them.
    fn spread(self, dy: &Tensor, n: usize) -> Result<Tensor> {
        match self {
            Reduction::None => dy.unsqueeze(1),
            Reduction::Mean => dy.mul_scalar(1.0 / n as f64)?.expand([n, 1]),
            Reduction::Sum => dy.expand([n, 1]),
        }
    }
}

/// Scores (N, C) and labels (N), each below C.
fn check(op: &'static str, x: &Tensor, target: &Tensor) -> Result<(usize, Vec<usize>)> {
    let [n, classes] = x.dims(op, "scores (N, C)")?;
    if target.shape()[..] != [n] {
        return Err(Error::shape(
            op,
            &[*x.shape(), *target.shape()],
            format!(
                "scores {:?} want labels [{n}] but got {:?}",
                x.shape(),
                target.shape()
            ),
        ));
    }
    if target.dtype() != DType::I64 {
        return Err(Error::DType {
            op,
            expected: "i64 labels",
            got: target.dtype(),
        });
    }
    let label = |l: i64| {
        if l >= 0 && (l as usize) < classes {
            Ok(l as usize)
        } else {
            Err(Error::Index {
                op,
                index: l,
                size: classes,
            })
        }
    };
    Ok((
        classes,
        target
            .to_vec::<i64>()?
            .into_iter()
            .map(label)
            .collect::<Result<_>>()?,
    ))
}

/// loss = -sum_c q_c log p_c with p = softmax(x) and q = (1 - s) onehot + s / C;
/// dx = p - q. The gradient is made in the forward pass, where p is at hand.
struct CrossEntropyOp(CrossEntropy);

impl Op<2> for CrossEntropyOp {
    const NAME: &'static str = "cross_entropy";
    type Saved = Tensor;

    fn forward(&self, [x, target]: [&Tensor; 2]) -> Result<(Tensor, Tensor)> {
        let (classes, labels) = check(Self::NAME, x, target)?;
        let x = x.packed()?;
        let s = self.0.label_smoothing;
        let (losses, grad) = with_real!(Self::NAME, x.dtype(), T => {
            let v = x.dense_slice::<T>(Self::NAME)?;
            let (on, off) = (T::of(1.0 - s), T::of(s / classes as f64));
            let mut losses = vec![T::ZERO; labels.len()];
            let grad = Tensor::build::<T>(*x.layout(), x.device(), |grad| {
                if classes == 0 {
                    return;
                }
                strided::rows(grad, classes, 16 * classes, |g, i| {
                    let row = &v[i * classes..(i + 1) * classes];
                    let max = row.iter().fold(T::NEG_INFINITY, |m, &x| m.nan_max(x));
                    g.iter_mut().zip(row).for_each(|(g, &x)| *g = (x - max).exp());
                    let sum: T = g.iter().copied().sum();
                    g.iter_mut().for_each(|g| *g = *g / sum - off);
                    g[labels[i]] = g[labels[i]] - on;
                });
                strided::rows(&mut losses, 1, 32 * classes, |loss, i| {
                    let row = &v[i * classes..(i + 1) * classes];
                    let max = row.iter().fold(T::NEG_INFINITY, |m, &x| m.nan_max(x));
                    let log_sum = row.iter().map(|&x| (x - max).exp()).sum::<T>().ln() + max;
                    loss[0] = on * (log_sum - row[labels[i]]);
                    if s > 0.0 {
                        loss[0] += off * row.iter().map(|&x| log_sum - x).sum::<T>();
                    }
                });
            })?;
            Ok((Tensor::from_vec(losses, labels.len())?, grad))
        })?;
        Ok((self.0.reduction.reduce(&losses)?, grad))
    }

    fn backward(&self, grad: Tensor, dy: Tensor, _: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        let n = grad.shape()[0];
        Ok([Some(grad.mul(&self.0.reduction.spread(&dy, n)?)?), None])
    }
}

/// loss = 1/N sum_i sum_{j != y_i} max(0, x_ij - x_iy + 1), the multi-class hinge of CS231n.
struct SvmLoss;

impl Op<2> for SvmLoss {
    const NAME: &'static str = "svm_loss";
    type Saved = Tensor;

    fn forward(&self, [x, target]: [&Tensor; 2]) -> Result<(Tensor, Tensor)> {
        let (classes, labels) = check(Self::NAME, x, target)?;
        let x = x.packed()?;
        with_real!(Self::NAME, x.dtype(), T => {
            let v = x.dense_slice::<T>(Self::NAME)?;
            let scale = T::of(1.0 / labels.len() as f64);
            let mut loss = 0.0;
            let grad = Tensor::build::<T>(Layout::contiguous(Shape::new(&[labels.len(), classes])?), x.device(), |grad| {
                for ((row, g), &y) in v.chunks(classes.max(1)).zip(grad.chunks_mut(classes.max(1))).zip(&labels) {
                    let mut violated = T::ZERO;
                    for (j, (g, &score)) in g.iter_mut().zip(row).enumerate() {
                        // NaN must reach the loss
                        let margin = (score - row[y] + T::ONE).nan_max(T::ZERO);
                        *g = T::ZERO;
                        if j != y && margin != T::ZERO {
                            loss += margin.to_f64();
                            *g = scale;
                            violated += scale;
                        }
                    }
                    g[y] = -violated;
                }
            })?;
            Ok((Tensor::scalar(T::from_f64(loss / labels.len() as f64))?, grad))
        })
    }

    fn backward(&self, grad: Tensor, dy: Tensor, _: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        Ok([Some(grad.mul(&dy)?), None])
    }
}

impl Tensor {
    /// The cross-entropy of scores (N, C), before any softmax, with I64 labels (N).
    ///
    /// ```
    /// # use cotangent::{ops::loss::CrossEntropy, DType, Tensor};
    /// let scores = Tensor::zeros([2, 10], DType::F64)?;
    /// let labels = Tensor::from_vec(vec![3i64, 7], [2])?;
    /// let loss = scores.cross_entropy(&labels, &CrossEntropy::default())?;
    /// assert!((loss.item()? - 10f64.ln()).abs() < 1e-12);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn cross_entropy(&self, target: &Tensor, config: &CrossEntropy) -> Result<Tensor> {
        if !(0.0..=1.0).contains(&config.label_smoothing) {
            return Err(Error::argument(
                "cross_entropy",
                format!(
                    "label_smoothing is {}, expected 0 to 1",
                    config.label_smoothing
                ),
            ));
        }
        apply(CrossEntropyOp(*config), [self, target])
    }

    /// The multi-class hinge loss of scores (N, C) with I64 labels (N), margin 1, the mean over
    /// images.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let scores = Tensor::zeros([2, 10], DType::F32)?;
    /// let labels = Tensor::from_vec(vec![3i64, 7], [2])?;
    /// assert_eq!(scores.svm_loss(&labels)?.item()?, 9.0);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn svm_loss(&self, target: &Tensor) -> Result<Tensor> {
        apply(SvmLoss, [self, target])
    }
}

/// The share of images (N, C) whose greatest score is their label's.
///
/// ```
/// # use cotangent::{ops::loss::accuracy, DType, Tensor};
/// let scores = Tensor::eye(4, DType::F32)?;
/// let labels = Tensor::from_vec(vec![0i64, 1, 2, 0], [4])?;
/// assert_eq!(accuracy(&scores, &labels)?, 0.75);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn accuracy(scores: &Tensor, labels: &Tensor) -> Result<f64> {
    let (_, expected) = check("accuracy", scores, labels)?;
    if expected.is_empty() {
        return Ok(f64::NAN);
    }
    let found = scores.argmax(1, false)?.to_vec::<i64>()?;
    let right = found
        .iter()
        .zip(&expected)
        .filter(|(f, e)| **f == **e as i64)
        .count();
    Ok(right as f64 / expected.len() as f64)
}

const SCORES: &[Input] = &[Input::Normal(&[5, 7]), Input::Index(&[5], 7)];

macro_rules! case {
    ($name:literal, $smoothing:literal, $reduction:ident) => {
        Case {
            op: "cross_entropy",
            name: $name,
            inputs: SCORES,
            run: |x| {
                x[0].cross_entropy(
                    &x[1],
                    &CrossEntropy {
                        label_smoothing: $smoothing,
                        reduction: Reduction::$reduction,
                    },
                )
            },
        }
    };
}

/// Every reduction, with and without smoothing.
pub const CASES: &[Case] = &[
    case!("mean", 0.0, Mean),
    case!("sum", 0.0, Sum),
    case!("a loss an image", 0.0, None),
    case!("smoothed", 0.1, Mean),
    case!("smoothed, a loss an image", 0.1, None),
    case!("smoothed away", 1.0, Sum),
    Case {
        op: "cross_entropy",
        name: "one image, one class",
        inputs: &[Input::Normal(&[1, 1]), Input::Index(&[1], 1)],
        run: |x| x[0].cross_entropy(&x[1], &CrossEntropy::default()),
    },
    Case {
        op: "cross_entropy",
        name: "no images",
        inputs: &[Input::Normal(&[0, 3]), Input::Index(&[0], 3)],
        run: |x| {
            x[0].cross_entropy(
                &x[1],
                &CrossEntropy {
                    reduction: Reduction::Sum,
                    ..Default::default()
                },
            )
        },
    },
    Case {
        op: "svm_loss",
        name: "five images",
        inputs: SCORES,
        run: |x| x[0].svm_loss(&x[1]),
    },
    Case {
        op: "svm_loss",
        name: "one image",
        inputs: &[Input::Normal(&[1, 3]), Input::Index(&[1], 3)],
        run: |x| x[0].svm_loss(&x[1]),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_labels_and_settings_are_named() -> Result<()> {
        let x = Tensor::zeros([2, 10], DType::F32)?;
        let config = CrossEntropy::default();
        let e = x
            .cross_entropy(&Tensor::from_vec(vec![1i64, 10], [2])?, &config)
            .unwrap_err()
            .to_string();
        assert_eq!(
            e,
            "cross_entropy: index 10 is out of range for an axis of size 10"
        );
        let e = x
            .cross_entropy(&Tensor::from_vec(vec![1i64], [1])?, &config)
            .unwrap_err()
            .to_string();
        assert_eq!(
            e,
            "cross_entropy: scores [2, 10] want labels [2] but got [1]"
        );
        let labels = Tensor::from_vec(vec![1i64, 2], [2])?;
        assert!(
            x.cross_entropy(
                &labels,
                &CrossEntropy {
                    label_smoothing: 1.5,
                    ..config
                }
            )
            .is_err()
        );
        assert!(
            x.cross_entropy(&labels.to_dtype(DType::F32)?, &config)
                .is_err()
        );
        assert!(x.svm_loss(&Tensor::from_vec(vec![-1i64, 0], [2])?).is_err());
        Ok(())
    }

    #[test]
    fn extremes() -> Result<()> {
        let labels = Tensor::from_vec(vec![0i64, 1], [2])?;
        let loss = |v: Vec<f32>| -> Result<f64> {
            Tensor::from_vec(v, [2, 2])?
                .cross_entropy(&labels, &CrossEntropy::default())?
                .item()
        };
        assert_eq!(loss(vec![1e4, -1e4, -1e4, 1e4])?, 0.0);
        assert_eq!(loss(vec![-1e4, 1e4, 1e4, -1e4])?, 2e4);
        assert!(loss(vec![f32::NAN, 0.0, 0.0, 0.0])?.is_nan());
        let none = Tensor::zeros([0, 3], DType::F32)?;
        let nothing = Tensor::from_vec(Vec::<i64>::new(), [0])?;
        assert!(
            none.cross_entropy(&nothing, &CrossEntropy::default())?
                .item()?
                .is_nan()
        );
        assert!(accuracy(&none, &nothing)?.is_nan());
        Ok(())
    }
}
