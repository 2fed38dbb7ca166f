//! What a model makes of images: accuracies, losses, scores batch by batch, in evaluation mode and outside
//! of any graph.

use crate::autograd::no_grad;
use crate::data::{Augment, Dataset, Loader, Normalize, Reconstruct, Transform};
use crate::dtype::DType;
use crate::error::Result;
use crate::nn::{self, Mode, Module};
use crate::ops::correct;
use crate::random::Generator;
use crate::tensor::Tensor;
use crate::train::{SolverConfig, SolverData};

/// `num_samples` images, drawn by the seed; `None` for all.
pub(super) fn sampled(data: &Dataset, num_samples: Option<usize>, seed: u64) -> Result<Dataset> {
    match num_samples {
        Some(n) if n < data.len() => {
            let order = Generator::new(seed).permutation(data.len());
            data.subset(&order[..n])
        }
        _ => Ok(data.clone()),
    }
}

/// The mean loss of images, without penalties, in evaluation mode.
pub(super) fn mean_loss(
    model: &mut dyn Module,
    images: &Loader,
    mut loss: impl FnMut(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<f64> {
    let mut sum = 0.0;
    show(model, images, |scores, targets| {
        let n = targets.shape().first().copied().unwrap_or(0);
        sum += loss(scores, targets)?.item()? * n as f64;
        Ok(())
    })?;
    Ok(sum / images.dataset().len() as f64)
}

/// The fraction of the images of `data` that `model` classifies right, in evaluation mode and
/// outside of any graph, `batch_size` images at a time. `evaluation` are transforms that draw
/// nothing, one after another before normalization; none for the images as they are.
pub fn check_accuracy(
    model: &mut (impl Module + ?Sized),
    data: &Dataset,
    normalize: &Normalize,
    evaluation: &[Transform],
    batch_size: usize,
) -> Result<f64> {
    let mut right = 0;
    let preparation = (normalize, evaluation);
    evaluate(model, data, preparation, batch_size, |scores, labels| {
        right += correct(scores, labels)?;
        Ok(())
    })?;
    Ok(right as f64 / data.len() as f64)
}

/// Show `see` the scores and the labels of each batch, in evaluation mode and outside of any graph.
pub(super) fn evaluate(
    model: &mut (impl Module + ?Sized),
    data: &Dataset,
    preparation: (&Normalize, &[Transform]),
    batch_size: usize,
    see: impl FnMut(&Tensor, &Tensor) -> Result<()>,
) -> Result<()> {
    show(model, &in_order(data, preparation, batch_size)?, see)
}

/// The images of `data` after transforms that draw nothing.
pub(super) fn in_order(
    data: &Dataset,
    (normalize, evaluation): (&Normalize, &[Transform]),
    batch_size: usize,
) -> Result<Loader> {
    let size = batch_size.min(data.len());
    let augment = Augment::evaluation(evaluation)?;
    Loader::new(data.clone(), normalize, augment, size, 0, false, false)
}

/// Validation images with the same holes at each call, and as their targets without.
pub(super) fn pairs(
    data: &SolverData,
    images: Dataset,
    evaluation: &[Transform],
    config: &SolverConfig,
) -> Result<Loader> {
    let once = |r| Reconstruct {
        doubled: false,
        ..r
    };
    let augment = Augment {
        reconstruct: data.augment.reconstruct.map(once),
        ..Augment::evaluation(evaluation)?
    };
    let (size, seed) = (config.batch_size.min(images.len()), config.seed);
    Loader::new(images, &data.normalize, augment, size, seed, false, false)
}

/// Show `see` what a model makes of each batch and the batch's targets.
fn show(
    model: &mut (impl Module + ?Sized),
    loader: &Loader,
    mut see: impl FnMut(&Tensor, &Tensor) -> Result<()>,
) -> Result<()> {
    let _quiet = no_grad();
    for batch in loader.epoch_on(nn::device(model), 0, 0) {
        let (images, labels) = batch?.tensors()?;
        let scores = model.forward(&images, Mode::Eval)?;
        // as in training
        let scores = match scores.dtype().is_half() {
            true => scores.to_dtype(DType::F32)?,
            false => scores,
        };
        see(&scores, &labels)?;
    }
    Ok(())
}
