//! What a classifier gets right: the greatest scores against the labels.

use crate::cuda::{Arg, kernels};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::loss::{Rows, check_probabilities, labels, sizes};
use crate::tensor::Tensor;

kernels! {
    /// A team a sample.
    CORRECT = "correct" [F32, F64];
}

/// The share of samples whose greatest logit (the first of equals) is at the label; logits
/// (N, C), I64 labels (N) or class probabilities (N, C), whose greatest is then the label. NaN of
/// no samples.
///
/// ```
/// # use cotangent::{ops::accuracy, Tensor};
/// let logits = Tensor::from_vec(vec![0f32, 1.0, 5.0, 2.0], [2, 2])?;
/// assert_eq!(accuracy(&logits, &Tensor::from_vec(vec![1i64, 1], [2])?)?, 0.5);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn accuracy(logits: &Tensor, labels: &Tensor) -> Result<f64> {
    let right = correct(logits, labels)?;
    Ok(right as f64 / logits.shape()[0] as f64)
}

/// How many samples have their greatest logit (the first of equals) at the label, as [`accuracy`]
/// takes them. NaN is never the greatest.
pub fn correct(logits: &Tensor, labels: &Tensor) -> Result<usize> {
    Ok(correct_tensor(logits, labels)?.item()? as usize)
}

/// The share of samples whose label is among the `k` greatest logits; for the rest as
/// [`accuracy`].
///
/// ```
/// # use cotangent::{ops::topk_accuracy, Tensor};
/// let logits = Tensor::from_vec(vec![0f32, 1.0, 2.0, 5.0, 2.0, 0.0], [2, 3])?;
/// let labels = Tensor::from_vec(vec![1i64, 2], [2])?;
/// assert_eq!(topk_accuracy(&logits, &labels, 2)?, 0.5);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn topk_accuracy(logits: &Tensor, labels: &Tensor, k: usize) -> Result<f64> {
    let right = topk_correct(logits, labels, k)?;
    Ok(right as f64 / logits.shape()[0] as f64)
}

/// How many samples have their label among the `k` greatest logits, the first of equals before the
/// others. `k` is 1 to C.
pub fn topk_correct(logits: &Tensor, labels: &Tensor, k: usize) -> Result<usize> {
    Ok(count("topk_accuracy", logits, labels, k)?.item()? as usize)
}

/// [`correct`] as an I64 scalar where the logits lie: on a GPU nothing waits for it.
pub(crate) fn correct_tensor(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    count("accuracy", logits, labels, 1)
}

/// How many labels have fewer than `k` logits before them, as an I64 scalar where the logits lie.
fn count(op: &'static str, logits: &Tensor, target: &Tensor, k: usize) -> Result<Tensor> {
    let [_, c] = logits.dims(op, "logits (N, C)")?;
    // without classes there is no greatest, nor a label
    if !(1..=c.max(1)).contains(&k) {
        let why = format!("k is {k}, expected 1 to {c}, the number of classes");
        return Err(Error::argument(op, why));
    }
    let greatest;
    let target = if target.dtype().is_float() {
        check_probabilities(op, logits, target)?;
        greatest = target.argmax(1, false)?;
        &greatest
    } else {
        target
    };
    if let Device::Cuda(gpu) = logits.device() {
        sizes(op, logits, target)?;
        // 16-bit floats are exact in f32
        let dtype = match logits.dtype() {
            d if d.is_half() => DType::F32,
            d if !d.is_float() => DType::F64,
            d => d,
        };
        let (rows, target) = (Rows::new(op, gpu, &logits.cast(dtype)?)?, target.packed()?);
        let right = Tensor::zeros((), (DType::I64, logits.device()))?;
        let [fault, number] = rows.fault(op)?;
        rows.launch(
            &CORRECT,
            &[target.input(), right.output()],
            &[Arg::I32(k as i32), fault, number],
        )?;
        return Ok(right);
    }
    let labels = labels(op, logits, target, None)?;
    let v = logits.cast(DType::F64)?.to_vec::<f64>()?;
    let right = labels.iter().enumerate().filter(|&(r, &label)| {
        let (x, label) = (&v[r * c..][..c], label as usize);
        // what is before counts if it is as great, what is after if it is greater; NaN counts
        let loses = |(j, &o): (usize, &f64)| {
            if j < label {
                o < x[label]
            } else {
                o <= x[label]
            }
        };
        x.iter().enumerate().filter(|&x| !loses(x)).count() < k
    });
    Tensor::scalar(right.count() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::devices;

    #[test]
    fn accuracy_takes_the_first_of_equals() -> Result<()> {
        let x = Tensor::from_vec(vec![1f32, 1.0, 0.0, 0.0, 2.0, 2.0], [2, 3])?;
        for device in devices()? {
            for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16, DType::I64] {
                let x = x.to_dtype(dtype)?.to(device)?;
                let score = |t: [i64; 2]| accuracy(&x, &Tensor::from_slice(&t, [2])?.to(device)?);
                assert_eq!(
                    (score([0, 1])?, score([1, 2])?, score([0, 2])?),
                    (1.0, 0.0, 0.5)
                );
            }
            let nan = Tensor::from_vec(vec![f32::NAN, 1.0], [1, 2])?.to(device)?;
            for label in [0i64, 1] {
                let t = Tensor::from_vec(vec![label], [1])?.to(device)?;
                assert_eq!(correct(&nan, &t)?, 0);
                // it is before all numbers, but never right
                assert_eq!(topk_correct(&nan, &t, 2)?, label as usize);
            }
            let none = Tensor::zeros([0, 3], (DType::F64, device))?;
            let no_label = Tensor::zeros([0], (DType::I64, device))?;
            assert!(accuracy(&none, &no_label)?.is_nan() && accuracy(&none, &none)?.is_nan());
        }
        Ok(())
    }

    #[test]
    fn topk_counts_what_is_before_the_label() -> Result<()> {
        let x = Tensor::from_vec(vec![1f32, 3.0, 3.0, 2.0, 9.0, 9.0, 9.0, 9.0], [2, 4])?;
        for device in devices()? {
            let x = x.to(device)?;
            // by the greatest first: classes 1, 2, 3, 0 and 0, 1, 2, 3
            for (t, right) in [
                ([1i64, 0], [2, 2, 2, 2]),
                ([2, 1], [0, 2, 2, 2]),
                ([3, 3], [0, 0, 1, 2]),
                ([0, 2], [0, 0, 1, 2]),
            ] {
                let t = Tensor::from_slice(&t, [2])?.to(device)?;
                let found = [1, 2, 3, 4].map(|k| topk_correct(&x, &t, k).unwrap_or(99));
                assert_eq!(found, right, "{device}");
                assert_eq!(topk_accuracy(&x, &t, 3)?, right[2] as f64 / 2.0);
            }
            let t = Tensor::zeros([2], (DType::I64, device))?;
            for k in [0, 5] {
                let e = topk_correct(&x, &t, k).unwrap_err().to_string();
                let expected = "topk_accuracy: k is {k}, expected 1 to 4, the number of classes";
                assert_eq!(e, expected.replace("{k}", &k.to_string()));
            }
        }
        Ok(())
    }

    #[test]
    fn probabilities_are_taken_for_their_greatest() -> Result<()> {
        let x = Tensor::from_vec(vec![0f32, 1.0, 2.0, 5.0, 2.0, 0.0], [2, 3])?;
        // mixed evenly: the first of equals
        let p = Tensor::from_vec(vec![0.0f32, 0.5, 0.5, 0.7, 0.0, 0.3], [2, 3])?;
        for device in devices()? {
            let (x, p) = (x.to(device)?, p.to(device)?);
            assert_eq!((correct(&x, &p)?, topk_correct(&x, &p, 2)?), (1, 2));
            let e = correct(&x, &p.narrow(1, 0, 2)?).unwrap_err().to_string();
            assert_eq!(
                e,
                "accuracy: logits [2, 3] want i64 labels [2] or probabilities [2, 3] but got [2, 2] of f32"
            );
        }
        Ok(())
    }

    #[test]
    fn many_answers_are_counted_alike_everywhere() -> Result<()> {
        let mut rng = crate::random::Generator::new(3);
        for (n, c) in [(1, 1), (1000, 3), (37, 200), (9, 2000)] {
            let x = Tensor::randn([n, c], &mut rng, DType::F32)?;
            // right, but for every third
            let mut t = x.argmax(1, false)?.to_vec::<i64>()?;
            t.iter_mut()
                .skip(1)
                .step_by(3)
                .for_each(|t| *t = (*t + 1) % c as i64);
            let t = Tensor::from_vec(t, [n])?;
            let right = n - n.saturating_sub(1).div_ceil(3);
            let within = topk_correct(&x, &t, c.div_ceil(2))?;
            for device in devices()? {
                let (x, t) = (x.to(device)?, t.to(device)?);
                assert_eq!(correct(&x, &t)?, right, "{n} x {c} {device}");
                let found = topk_correct(&x, &t, c.div_ceil(2))?;
                assert_eq!(found, within, "{n} x {c} {device}");
            }
        }
        Ok(())
    }
}
