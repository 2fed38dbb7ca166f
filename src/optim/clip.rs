//! Gradient clipping: by the norm of all gradients together, and by value.

use rayon::prelude::*;

use super::rows::{CPU_STRETCH, Rows, check_real, sum_squares};
use crate::autograd::Gradients;
use crate::cuda::{Arg, kernels};
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::nn::{self, Module, Slot};
use crate::tensor::Tensor;
use crate::with_real;
use crate::workers::Parallel;

kernels! {
    /// g *= min(most / (norm + 1e-6), 1), one block a stretch of a row.
    CLIP_NORM = "clip_norm" [F32, F64];
    /// g between -most and most, one block a stretch of a row.
    CLIP_VALUE = "clip_value" [F32, F64];
}

/// PyTorch's `clip_grad_norm_`: scale the gradients of all parameters of `model` by
/// `min(max_norm / (norm + 1e-6), 1)`, where `norm` is the 2-norm of all their elements in one
/// vector. Returns that norm, as it was before, an F64 scalar on the parameters' device: nothing
/// waits for it, and a step that clips can be captured.
///
/// A norm that is not finite spreads, as in PyTorch: NaN makes every gradient NaN; infinity makes
/// the finite ones 0 and the infinite ones NaN. Gradients of 16-bit floats are an
/// [`crate::Error::DType`], a `max_norm` that is not above 0 is an [`crate::Error::Config`].
///
/// ```
/// # use cotangent::{DType, Tensor, nn::Linear, optim::clip_grad_norm, random::Generator};
/// let mut layer = Linear::new(2, 1, false, &mut Generator::new(0))?;
/// let x = Tensor::from_slice(&[3f32, 4.0], [1, 2])?;
/// let mut grads = x.linear(&layer.weight, None)?.sum(&[], false)?.backward()?;
/// assert_eq!(clip_grad_norm(&mut grads, &mut layer, 1.0)?.item()?, 5.0);
/// let g = grads.get(&layer.weight).unwrap().to_vec::<f32>()?;
/// assert!((g[0] - 0.6).abs() < 1e-6 && (g[1] - 0.8).abs() < 1e-6);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn clip_grad_norm(
    grads: &mut Gradients,
    model: &mut dyn Module,
    max_norm: f64,
) -> Result<Tensor> {
    let op = "clip_grad_norm";
    check_limit("max_norm", max_norm)?;
    let norm = gradient_squares(op, grads, model, true)?;
    let factor = match norm.device() {
        Device::Cpu => max_norm / (norm.item()? + 1e-6),
        Device::Cuda(_) => 0.0,
    };
    // NaN is not, and spreads
    if factor >= 1.0 {
        return Ok(norm);
    }
    let rows = each_gradient(op, grads, model, |g| {
        with_real!(op, g.dtype(), T => {
            let factor = T::of(factor);
            over_elements::<T>(g, |x| x * factor)
        })
    })?;
    rows.launch(&CLIP_NORM, |_| [norm.input(), Arg::F64(max_norm)])?;
    Ok(norm)
}

/// PyTorch's `clip_grad_value_`: each element of each parameter's gradient comes between
/// `-clip_value` and `clip_value`; NaN stays. Gradients of 16-bit floats are an [`crate::Error::DType`],
/// a `clip_value` that is not above 0 is an [`crate::Error::Config`].
///
/// ```
/// # use cotangent::{Tensor, nn::Linear, optim::clip_grad_value, random::Generator};
/// let mut layer = Linear::new(2, 1, false, &mut Generator::new(0))?;
/// let x = Tensor::from_slice(&[-3f32, 0.5], [1, 2])?;
/// let mut grads = x.linear(&layer.weight, None)?.sum(&[], false)?.backward()?;
/// clip_grad_value(&mut grads, &mut layer, 1.0)?;
/// assert_eq!(grads.get(&layer.weight).unwrap().to_vec::<f32>()?, [-1.0, 0.5]);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn clip_grad_value(
    grads: &mut Gradients,
    model: &mut dyn Module,
    clip_value: f64,
) -> Result<()> {
    let op = "clip_grad_value";
    check_limit("clip_value", clip_value)?;
    let rows = each_gradient(op, grads, model, |g| {
        with_real!(op, g.dtype(), T => {
            let most = T::of(clip_value);
            over_elements::<T>(g, |x| if x > most { most } else if x < -most { -most } else { x })
        })
    })?;
    rows.launch(&CLIP_VALUE, |_| [Arg::F64(clip_value)])
}

fn check_limit(key: &'static str, value: f64) -> Result<()> {
    super::check(key, value, value > 0.0, "a number above 0")
}

/// The sum of the squares of the gradients of a model's parameters, or its root, an F64 scalar.
pub(crate) fn gradient_squares(
    op: &'static str,
    grads: &Gradients,
    model: &mut dyn Module,
    root: bool,
) -> Result<Tensor> {
    let mut all = Vec::new();
    nn::try_visit(model, |_, slot| {
        if let Slot::Parameter(p) = slot
            && let Some(g) = grads.get(p)
        {
            check_real(op, g)?;
            all.push(g.clone());
        }
        Ok(())
    })?;
    sum_squares(op, &all.iter().collect::<Vec<_>>(), 1.0, root)
}

/// Write the gradients of a model's parameters: `on_cpu` does it for one on the CPU; those on a GPU
/// are returned as rows for a kernel to write.
pub(crate) fn each_gradient(
    op: &'static str,
    grads: &mut Gradients,
    model: &mut dyn Module,
    mut on_cpu: impl FnMut(&mut Tensor) -> Result<()>,
) -> Result<Rows> {
    let mut rows = Rows::default();
    nn::try_visit(model, |_, slot| {
        let Slot::Parameter(p) = slot else {
            return Ok(());
        };
        let Some(g) = grads.get_mut(p) else {
            return Ok(());
        };
        check_real(op, g)?;
        match g.device() {
            Device::Cpu => on_cpu(g)?,
            Device::Cuda(_) => {
                g.make_unique()?;
                rows.push(&[g]);
            }
        }
        Ok(())
    })?;
    Ok(rows)
}

/// Each element of a gradient on the CPU by `f`.
pub(crate) fn over_elements<T: Real>(g: &mut Tensor, f: impl Fn(T) -> T + Sync) -> Result<()> {
    let each = |g: &mut [T]| g.iter_mut().for_each(|x| *x = f(*x));
    g.make_mut::<T>()?.par_chunks_mut(CPU_STRETCH).each(each);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bag;
    use super::*;
    use crate::dtype::DType;
    use crate::error::Error;

    fn found(values: &[f64], f: impl Fn(&mut Gradients, &mut Bag) -> Result<()>) -> Vec<f64> {
        let leaf = Tensor::zeros([values.len()], DType::F64).unwrap();
        let mut bag = Bag(vec![leaf.requires_grad()]);
        let mut grads = Gradients::default();
        grads.insert(
            &bag.0[0],
            Tensor::from_slice(values, [values.len()]).unwrap(),
        );
        f(&mut grads, &mut bag).unwrap();
        grads.get(&bag.0[0]).unwrap().to_vec().unwrap()
    }

    #[test]
    fn norms_are_pytorchs_even_where_they_are_not_finite() {
        let clip = |values: &[f64], most| {
            found(values, |g, bag| {
                let norm = clip_grad_norm(g, bag, most)?.item()?;
                let squares: f64 = values.iter().map(|x| x * x).sum();
                assert_eq!(norm.to_bits(), squares.sqrt().to_bits());
                Ok(())
            })
        };
        let by = 1.0 / (13.0 + 1e-6);
        assert_eq!(
            clip(&[3.0, -4.0, 12.0], 1.0),
            [3.0, -4.0, 12.0].map(|x| x * by)
        );
        assert_eq!(clip(&[3.0, -4.0], 5.1), [3.0, -4.0]);
        assert_eq!(clip(&[3.0, -4.0], f64::INFINITY), [3.0, -4.0]);
        assert!(clip(&[1.0, f64::NAN], 5.0).iter().all(|x| x.is_nan()));
        let infinite = clip(&[1.0, f64::INFINITY], 5.0);
        assert!(infinite[0] == 0.0 && infinite[1].is_nan());
    }

    #[test]
    fn values_come_between_the_limits_and_nan_stays() {
        let values = [f64::NEG_INFINITY, -2.0, -0.5, 0.0, 3.0, f64::NAN];
        let got = found(&values, |g, bag| clip_grad_value(g, bag, 1.5));
        assert_eq!(got[..5], [-1.5, -1.5, -0.5, 0.0, 1.5]);
        assert!(got[5].is_nan());
    }

    #[test]
    fn limits_and_dtypes_without_sense_are_refused() -> Result<()> {
        let mut bag = Bag(vec![Tensor::ones([2], DType::BF16)?.requires_grad()]);
        let mut grads = Gradients::default();
        assert_eq!(clip_grad_norm(&mut grads, &mut bag, 1.0)?.item()?, 0.0);
        for bad in [0.0, -1.0, f64::NAN] {
            let e = clip_grad_norm(&mut grads, &mut bag, bad).unwrap_err();
            let text = format!("configuration: max_norm: {bad}; expected a number above 0");
            assert_eq!(e.to_string(), text);
            let e = clip_grad_value(&mut grads, &mut bag, bad).unwrap_err();
            assert!(e.to_string().contains("clip_value"), "{e}");
        }
        grads.insert(&bag.0[0], Tensor::ones([2], DType::BF16)?);
        let norm = clip_grad_norm(&mut grads, &mut bag, 1.0).map(|_| ());
        for e in [norm, clip_grad_value(&mut grads, &mut bag, 1.0)] {
            let e = e.unwrap_err();
            assert!(
                matches!(
                    e,
                    Error::DType {
                        got: DType::BF16,
                        ..
                    }
                ),
                "{e}"
            );
            assert!(e.to_string().contains("keep the parameters in F32"), "{e}");
        }
        Ok(())
    }
}
