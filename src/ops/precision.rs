//! What [`autocast`](crate::autograd::autocast()) makes of an op's inputs: products call [`lowered`]
//! where they apply themselves, what PyTorch runs in F32 calls [`widened`].

use crate::autograd::autocast::current;
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;

/// The inputs of a product: under autocast floats in its type, unless one of them is F64.
pub(crate) fn lowered<const N: usize>(inputs: [&Tensor; N]) -> Result<[Tensor; N]> {
    let mut inputs = inputs.map(Tensor::clone);
    let double = inputs.iter().any(|t| t.dtype() == DType::F64);
    if let (Some(dtype), false) = (current(), double) {
        for t in inputs.iter_mut().filter(|t| t.dtype().is_float()) {
            *t = t.to_dtype(dtype)?;
        }
    }
    Ok(inputs)
}

/// The input of a loss or a softmax: under autocast a 16-bit one in F32.
pub(crate) fn widened(x: &Tensor) -> Result<Tensor> {
    match current() {
        Some(_) if x.dtype().is_half() => x.to_dtype(DType::F32),
        _ => Ok(x.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::autocast;
    use crate::ops::check::devices;
    use crate::random::Generator;
    use crate::shape::Window;

    #[test]
    fn products_run_in_16_bits_and_losses_in_32() -> Result<()> {
        let rng = &mut Generator::new(0);
        let mut normal = |shape: &[usize]| Tensor::randn(shape, rng, DType::F32);
        let (x, w, b) = (normal(&[4, 6])?, normal(&[3, 6])?, normal(&[3])?);
        let (image, filter) = (normal(&[2, 3, 4, 4])?, normal(&[3, 3, 2, 2])?);
        let labels = Tensor::from_vec(vec![0i64, 2, 1, 1], [4])?;
        for device in devices()? {
            let on = |t: &Tensor| t.to(device);
            let (x, w, b) = (on(&x)?, on(&w)?.requires_grad(), on(&b)?);
            let (image, filter, labels) = (on(&image)?, on(&filter)?, on(&labels)?);
            for half in [DType::BF16, DType::F16] {
                let _guard = autocast(half)?;
                let window = Window::new([2, 2]);
                let scores = x.linear(&w, Some(&b))?;
                for y in [
                    scores.clone(),
                    x.linear_relu(&w, None)?,
                    x.matmul(&w.t()?)?,
                    x.reshape([2, 2, 6])?.matmul(&w.t()?)?,
                    image.conv2d(&filter, Some(&b), window, 1)?,
                    image.conv2d_relu(&filter, None, window, 1)?,
                    image.conv_transpose2d(&filter, None, window, [0, 0], 1)?,
                    scores.relu()?,
                ] {
                    assert_eq!(y.dtype(), half);
                }
                let loss = scores.cross_entropy(&labels, &Default::default())?;
                for y in [
                    loss.clone(),
                    scores.svm_loss(&labels)?,
                    scores.softmax(1)?,
                    scores.log_softmax(1)?,
                    x.exp()?,
                ] {
                    assert_eq!(y.dtype(), DType::F32);
                }
                // the same as the conversions written out
                let rounded = |t: &Tensor| t.to_dtype(half);
                let by_hand = rounded(&x)?.linear(&rounded(&w)?, Some(&rounded(&b)?))?;
                let by_hand = by_hand.to_dtype(DType::F32)?;
                let by_hand = by_hand.cross_entropy(&labels, &Default::default())?;
                assert_eq!(loss.item()?, by_hand.item()?);
                let [a, b] = [loss, by_hand].map(|l| l.backward().unwrap());
                let [a, b] = [a, b].map(|g| g.get(&w).unwrap().to_vec::<f32>().unwrap());
                assert_eq!(a, b);
                let double = x.to_dtype(DType::F64)?;
                let y = double.linear(&w.to_dtype(DType::F64)?, None)?;
                assert_eq!(y.dtype(), DType::F64);
            }
        }
        Ok(())
    }
}
