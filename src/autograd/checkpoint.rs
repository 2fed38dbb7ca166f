//! Gradient checkpointing: a stretch of the graph that is computed again in backward instead of
//! keeping what its ops saved.

use crate::autograd::{Backward, Node, RECORDING, Step, autocast, no_grad, recording};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

const NAME: &str = "checkpoint";

/// `run` of `inputs` as one step of the graph that keeps its inputs alone (Chen et al. 2016,
/// "Training deep nets with sublinear memory cost"; PyTorch's `checkpoint`).
///
/// Forward runs it once, recording nothing; backward runs it again, recording, and walks that. It
/// costs one more forward and saves all that the ops inside would have kept, from forward until
/// backward comes by. Both runs have the same autocast and must compute the same: a `run` that
/// draws random numbers puts its generator back, or is wrapped by
/// [`nn::Checkpointed`](crate::nn::Checkpointed), which does so. Every tensor that wants a gradient
/// must be among the inputs; one that `run` takes along by itself is an [`Error::Argument`] of
/// backward. Where nothing is recorded or no input wants a gradient, it is just `run`.
///
/// ```
/// # use cotangent::{autograd::checkpoint, Tensor};
/// let x = Tensor::scalar(0.5f32)?.requires_grad();
/// let y = checkpoint(&[&x], |x| x[0].exp()?.tanh()?.square())?;
/// let plain = x.exp()?.tanh()?.square()?;
/// let [a, b] = [y, plain].map(|y| y.backward().unwrap().get(&x).unwrap().item().unwrap());
/// assert_eq!(a, b);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn checkpoint(
    inputs: &[&Tensor],
    mut run: impl FnMut(&[Tensor]) -> Result<Tensor> + Send + 'static,
) -> Result<Tensor> {
    let tracked = |t: &&Tensor| t.node.clone().filter(|_| RECORDING.get());
    let nodes: Vec<_> = inputs.iter().map(tracked).collect();
    let kept: Vec<Tensor> = inputs.iter().map(|t| t.detach()).collect();
    let mut out = {
        let _quiet = no_grad();
        run(&kept)?.detach()
    };
    if nodes.iter().all(Option::is_none) {
        return Ok(out);
    }
    let needs: Vec<bool> = nodes.iter().map(Option::is_some).collect();
    let precision = autocast::current();
    let backward: Backward = Box::new(move |grad, _| {
        // leaves of a graph of their own, so that hooks on the outer ones see the whole gradient
        let leaf = |(t, need): (Tensor, bool)| if need { t.requires_grad() } else { t };
        let leaves: Vec<Tensor> = kept.into_iter().zip(needs).map(leaf).collect();
        let out = {
            let _loud = recording(true);
            let _same = autocast::set(precision);
            run(&leaves)?
        };
        drop(run);
        if !out.is_tracked() {
            return Ok(vec![None; leaves.len()]);
        }
        let mut found = out.backward_from(&grad)?;
        let grads = leaves.iter().map(|leaf| found.remove(leaf)).collect();
        match found.is_empty() {
            true => Ok(grads),
            false => Err(Error::argument(
                NAME,
                "a gradient reached a tensor that is not among the inputs",
            )),
        }
    });
    let step = Step {
        inputs: nodes,
        backward,
    };
    out.node = Some(Node::new(NAME, &out, Some(step)));
    Ok(out)
}
