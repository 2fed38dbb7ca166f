//! CS231n's L2 penalty: its loss, and its share of the gradients.

use rayon::prelude::*;

use crate::autograd::Gradients;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::nn::{self, Module, Slot};
use crate::optim;
use crate::tensor::Tensor;
use crate::train::checkpoint::Named;
use crate::with_real;
use crate::workers::Parallel;

/// Elements that one thread works on at a time, whatever the number of threads.
const STRETCH: usize = 1 << 14;

/// CS231n's L2 loss, 0.5 reg sum(W^2) over the parameters of two axes or more; biases and the
/// like are free.
pub fn l2_loss(model: &mut (impl Module + ?Sized), reg: f64) -> Result<f64> {
    l2_penalty(model, reg)?.map_or(Ok(0.0), |loss| loss.item())
}

/// [`l2_loss`] as an F64 scalar on the weights' device, which nothing waits for; `None` where it
/// is 0 without looking.
pub fn l2_penalty(model: &mut (impl Module + ?Sized), reg: f64) -> Result<Option<Tensor>> {
    if reg == 0.0 {
        return Ok(None);
    }
    let weights = weights(model);
    if weights.is_empty() {
        return Ok(None);
    }
    let weights: Vec<&Tensor> = weights.iter().map(|(_, w)| w).collect();
    optim::sum_squares("l2_loss", &weights, 0.5 * reg, false).map(Some)
}

/// The gradient of [`l2_loss`], reg W, added to those of the data.
pub fn add_l2_gradients(
    model: &mut (impl Module + ?Sized),
    reg: f64,
    grads: &mut Gradients,
) -> Result<()> {
    if reg == 0.0 {
        return Ok(());
    }
    // on a CUDA device all in one launch
    let (mut rows, mut held) = (optim::Rows::default(), Vec::new());
    for (_, w) in weights(model) {
        let values = w.laid_out(w.layout().dense_like())?;
        if grads.get(&w).is_none() {
            grads.insert(&w, w.zeros_like()?);
        }
        let Some(grad) = grads.get_mut(&w) else {
            continue;
        };
        *grad = optim::beside("l2_loss", grad, &values)?;
        grad.make_unique()?;
        if let Device::Cuda(_) = w.device() {
            rows.push(&[grad, &values]);
            held.push(values);
            continue;
        }
        with_real!("l2_loss", w.dtype(), T => {
            let (values, reg) = (values.dense_slice::<T>("l2_loss")?, T::of(reg));
            let stretches = grad.make_mut::<T>()?.par_chunks_mut(STRETCH).zip(values.par_chunks(STRETCH));
            stretches.each(|(g, w)| g.iter_mut().zip(w).for_each(|(g, w)| *g += reg * *w));
            Ok(())
        })?;
    }
    optim::axpy(rows, reg)
}

fn weights(model: &mut (impl Module + ?Sized)) -> Named {
    let mut all = Named::new();
    nn::visit(model, |name, slot| {
        if let Slot::Parameter(w) = slot
            && nn::is_decayed(name, w)
        {
            all.push((name.to_string(), w.clone()));
        }
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::nn::Linear;
    use crate::random::Generator;

    #[test]
    fn l2_is_half_reg_times_the_squares_of_the_weights() -> Result<()> {
        let mut net = Linear::new(20_000, 2, true, &mut Generator::new(0))?;
        net.weight = Tensor::full([2, 20_000], 0.5, DType::F32)?.requires_grad();
        assert_eq!(l2_loss(&mut net, 0.1)?, 0.5 * 0.1 * 10_000.0);
        assert_eq!(l2_loss(&mut net, 0.0)?, 0.0);
        let mut grads = Gradients::default();
        // in another memory order than the weights
        let turned = Tensor::ones([20_000, 2], DType::F32)?.t()?;
        grads.insert(&net.weight, turned);
        add_l2_gradients(&mut net, 0.1, &mut grads)?;
        let g = grads.get(&net.weight).unwrap().to_vec::<f32>()?;
        assert!(g.iter().all(|g| (g - 1.05).abs() < 1e-6));
        assert!(
            grads.get(net.bias.as_ref().unwrap()).is_none(),
            "biases are free"
        );
        let mut none = Gradients::default();
        add_l2_gradients(&mut net, 0.1, &mut none)?;
        assert_eq!(none.get(&net.weight).unwrap().to_vec::<f32>()?[0], 0.05);
        Ok(())
    }
}
