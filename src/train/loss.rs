//! The losses that a Solver trains by, by name.

use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ops::loss::{CrossEntropy, Reduction};
use crate::tensor::Tensor;

/// The loss of scores (N, C) and I64 labels (N), or class probabilities (N, C) as mixup makes them:
/// a scalar.
pub type LossFn = Arc<dyn Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync>;

/// The mean softmax loss of a batch; `label_smoothing` is the share of the target that is spread
/// over all classes.
pub fn softmax_loss(label_smoothing: f64) -> LossFn {
    let config = CrossEntropy {
        label_smoothing,
        ..CrossEntropy::default()
    };
    Arc::new(move |scores, target| scores.cross_entropy(target, &config))
}

/// The losses by name, with PyTorch's defaults, each the mean over the batch. All but the first and
/// the last compare scores with one-hot targets, element by element, and take the mean over these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// [`Tensor::cross_entropy`].
    #[default]
    CrossEntropy,
    /// [`Tensor::bce_with_logits`].
    BceWithLogits,
    /// [`Tensor::smooth_l1_loss`] with beta 1.
    SmoothL1,
    /// [`Tensor::huber_loss`] with delta 1.
    Huber,
    /// [`Tensor::mse_loss`].
    Mse,
    /// [`Tensor::l1_loss`].
    L1,
    /// [`Tensor::svm_loss`]; it takes labels only.
    Svm,
}

impl FromStr for Loss {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Ok(match s {
            "cross_entropy" => Loss::CrossEntropy,
            "bce_with_logits" => Loss::BceWithLogits,
            "smooth_l1" => Loss::SmoothL1,
            "huber" => Loss::Huber,
            "mse" => Loss::Mse,
            "l1" => Loss::L1,
            "svm" => Loss::Svm,
            _ => {
                let names = "cross_entropy, bce_with_logits, smooth_l1, huber, mse, l1 or svm";
                return Err(Error::config("loss", format!("{s:?}; expected {names}")));
            }
        })
    }
}

impl Loss {
    /// The function. A `label_smoothing` outside of 0 to 1, or beside another loss than the cross
    /// entropy, is an [`Error::Config`].
    pub fn build(self, label_smoothing: f64) -> Result<LossFn> {
        let refuse = |why: String| Err(Error::config("label_smoothing", why));
        if !(0.0..=1.0).contains(&label_smoothing) {
            return refuse(format!("{label_smoothing}; expected 0 to 1"));
        }
        if label_smoothing != 0.0 && self != Loss::CrossEntropy {
            let why = format!("{label_smoothing}; expected 0, since only cross_entropy has it");
            return refuse(why);
        }
        let mean = Reduction::Mean;
        Ok(match self {
            Loss::CrossEntropy => softmax_loss(label_smoothing),
            Loss::BceWithLogits => on_one_hot(move |x, t| x.bce_with_logits(t, None, None, mean)),
            Loss::SmoothL1 => on_one_hot(move |x, t| x.smooth_l1_loss(t, 1.0, mean)),
            Loss::Huber => on_one_hot(move |x, t| x.huber_loss(t, 1.0, mean)),
            Loss::Mse => on_one_hot(move |x, t| x.mse_loss(t, mean)),
            Loss::L1 => on_one_hot(move |x, t| x.l1_loss(t, mean)),
            Loss::Svm => Arc::new(|scores, labels| scores.svm_loss(labels)),
        })
    }
}

/// `loss` of the scores and the labels' one-hot targets, or the class probabilities that are there.
fn on_one_hot(loss: impl Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static) -> LossFn {
    Arc::new(move |scores, target| {
        let dtype = scores.dtype();
        if target.dtype().is_float() {
            return loss(scores, &target.to_dtype(dtype)?);
        }
        let [_, classes] = scores.dims("loss", "scores (N, C)")?;
        loss(scores, &target.one_hot(classes, dtype)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::ops::check::devices;

    const NAMES: [&str; 7] = [
        "cross_entropy",
        "bce_with_logits",
        "smooth_l1",
        "huber",
        "mse",
        "l1",
        "svm",
    ];

    #[test]
    fn names_are_the_same_everywhere() -> Result<()> {
        for name in NAMES {
            let loss: Loss = name.parse()?;
            assert_eq!(serde_json::json!(loss), name);
        }
        assert_eq!(Loss::default(), Loss::CrossEntropy);
        assert_eq!(
            "hinge".parse::<Loss>().unwrap_err().to_string(),
            "configuration: loss: \"hinge\"; expected cross_entropy, bce_with_logits, smooth_l1, huber, mse, l1 or svm"
        );
        Ok(())
    }

    #[test]
    fn smoothing_is_the_cross_entropys_alone() -> Result<()> {
        let e = |loss: Loss, s| loss.build(s).err().map(|e| e.to_string());
        assert_eq!(
            e(Loss::Mse, 0.1).as_deref(),
            Some(
                "configuration: label_smoothing: 0.1; expected 0, since only cross_entropy has it"
            )
        );
        assert_eq!(
            e(Loss::CrossEntropy, 1.5).as_deref(),
            Some("configuration: label_smoothing: 1.5; expected 0 to 1")
        );
        assert_eq!(
            (e(Loss::CrossEntropy, 0.1), e(Loss::Svm, 0.0)),
            (None, None)
        );
        Ok(())
    }

    #[test]
    fn labels_and_their_one_hot_targets_give_the_same() -> Result<()> {
        for device in devices()? {
            for dtype in [DType::F64, DType::BF16] {
                let x = Tensor::from_slice(&[1.0, -2.0, 0.5, 0.25, 3.0, -1.0], [2, 3])?;
                let x = x.to_dtype(dtype)?.to(device)?.requires_grad();
                let labels = Tensor::from_slice(&[2i64, 0], [2])?.to(device)?;
                // less the one-hot targets: 1, -2, -0.5 and -0.75, 3, -1
                let expected = [
                    ("smooth_l1", (0.5 + 1.5 + 0.125 + 0.28125 + 2.5 + 0.5) / 6.0),
                    ("huber", (0.5 + 1.5 + 0.125 + 0.28125 + 2.5 + 0.5) / 6.0),
                    ("mse", (1.0 + 4.0 + 0.25 + 0.5625 + 9.0 + 1.0) / 6.0),
                    ("l1", (1.0 + 2.0 + 0.5 + 0.75 + 3.0 + 1.0) / 6.0),
                    ("svm", ((1.5 + 0.0) + (3.75 + 0.0)) / 2.0),
                ];
                for name in NAMES {
                    let loss = name.parse::<Loss>()?.build(0.0)?;
                    let y = loss(&x, &labels)?;
                    let value = y.item()?;
                    if let Some((_, expected)) = expected.iter().find(|(n, _)| *n == name) {
                        let tolerance = if dtype == DType::F64 { 1e-15 } else { 4e-3 };
                        let error = (value - expected).abs();
                        assert!(error <= tolerance * expected, "{name}: {value}");
                    }
                    assert_eq!(y.backward()?.len(), 1, "{name}");
                    // as mixup hands them over, in full precision
                    let soft = labels.one_hot(3, DType::F32)?;
                    let soft = if name == "cross_entropy" {
                        soft.to_dtype(dtype)?
                    } else {
                        soft
                    };
                    match loss(&x, &soft) {
                        Ok(y) => {
                            let error = (y.item()? - value).abs();
                            assert!(error <= 1e-14 * value, "{name}: {error}");
                        }
                        Err(e) => {
                            assert_eq!(name, "svm");
                            assert_eq!(
                                e.to_string(),
                                "svm_loss: logits [2, 3] want labels [2] but got [2, 3]"
                            );
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
