//! Reverse-mode differentiation: the graph, the engine that walks it, and the one trait that an
//! op implements. The engine alone accumulates, undoes broadcasting, checks and frees.

pub(crate) mod autocast;
mod checkpoint;

use std::any::type_name;
use std::cell::Cell;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::cpu::strided;
use crate::device::Device;
use crate::dtype::{DType, Real};
use crate::error::{Error, Result};
use crate::shape::{Layout, Shape};
use crate::tensor::Tensor;
use crate::tensor::fold::{self, Reduce};
use crate::with_real;

pub use autocast::{Autocast, autocast};
pub use checkpoint::checkpoint;

/// A differentiable function of `N` tensors.
///
/// ```
/// use cotangent::{autograd::{apply, Op}, DType, Result, Tensor};
///
/// /// y = x^2, dx = 2 x dy.
/// struct Square;
/// impl Op<1> for Square {
///     const NAME: &'static str = "square";
///     type Saved = Tensor;
///     fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, Tensor)> {
///         Ok((x.mul(x)?, x.clone()))
///     }
///     fn backward(&self, x: Tensor, dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
///         Ok([Some(x.mul(&dy)?.mul_scalar(2.0)?)])
///     }
/// }
///
/// let x = Tensor::scalar(3f32)?.requires_grad();
/// let grads = apply(Square, [&x])?.backward()?;
/// assert_eq!(grads.get(&x).unwrap().item()?, 6.0);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub trait Op<const N: usize>: Send + 'static {
    /// As PyTorch names it.
    const NAME: &'static str;
    /// Whether 16-bit floats arrive as they are: for ops that move elements and compute nothing.
    const ANY_DTYPE: bool = false;
    /// Whether 16-bit floats arrive as they are on a CUDA device, where the op's kernels widen them
    /// in registers: the output and the gradients are then of the inputs' dtype.
    const HALF_ON_CUDA: bool = false;
    /// The name in messages; for one struct that serves several ops.
    fn name(&self) -> &'static str {
        Self::NAME
    }
    /// What backward needs, and nothing else.
    type Saved: Send + 'static;
    /// The output and what to keep. The inputs are outside of any graph; 16-bit floats arrive as
    /// f32, and the engine rounds the output back.
    fn forward(&self, inputs: [&Tensor; N]) -> Result<(Tensor, Self::Saved)>;
    /// From the output's gradient to the inputs' gradients. `needs[i]` tells whether input `i`
    /// wants one. A gradient may have the broadcast shape: the engine sums it down.
    fn backward(
        &self,
        saved: Self::Saved,
        grad: Tensor,
        needs: [bool; N],
    ) -> Result<[Option<Tensor>; N]>;
    /// [`backward`](Op::backward) for an op that can add to what other ops found of the first
    /// input's gradient while it computes its own: one that takes the `sum` out returns the whole.
    /// It saves a pass over memory where an input has several uses, as in residual and densely
    /// connected networks.
    fn backward_onto(
        &self,
        saved: Self::Saved,
        grad: Tensor,
        needs: [bool; N],
        sum: &mut Option<Tensor>,
    ) -> Result<[Option<Tensor>; N]> {
        let _ = sum;
        self.backward(saved, grad, needs)
    }
}

/// A function that sees a tensor's gradient when backward has summed it, and may replace it.
type Hook = Box<dyn Fn(&Tensor) -> Result<Option<Tensor>> + Send>;
type Backward = Box<dyn FnOnce(Tensor, &mut Option<Tensor>) -> Result<Vec<Option<Tensor>>> + Send>;

/// A tensor's place in the graph.
pub(crate) struct Node {
    /// Rising: an op's output is younger than its inputs.
    id: u64,
    op: &'static str,
    shape: Shape,
    dtype: DType,
    /// Gone once backward has passed.
    step: Mutex<Option<Step>>,
    hooks: Mutex<Vec<Hook>>,
}

struct Step {
    inputs: Vec<Option<Arc<Node>>>,
    backward: Backward,
}

const LEAF: &str = "leaf";

/// A panic while the lock is held leaves a whole value behind: each critical section is one move.
pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

impl Node {
    fn new(op: &'static str, t: &Tensor, step: Option<Step>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Node {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            op,
            shape: *t.shape(),
            dtype: t.dtype(),
            step: Mutex::new(step),
            hooks: Mutex::new(Vec::new()),
        })
    }

    /// The op that made the tensor, `leaf` for none.
    pub(crate) fn op(&self) -> &'static str {
        self.op
    }
}

impl Drop for Node {
    /// Iterative: a chain of 300,000 ops must not overflow the stack.
    fn drop(&mut self) {
        let mut doomed: Vec<Step> = lock(&self.step).take().into_iter().collect();
        while let Some(step) = doomed.pop() {
            for input in step.inputs.into_iter().flatten() {
                if let Some(node) = Arc::into_inner(input) {
                    doomed.extend(lock(&node.step).take());
                }
            }
        }
    }
}

thread_local!(static RECORDING: Cell<bool> = const { Cell::new(true) });

/// While it lives, this thread's ops are not recorded: they keep nothing for backward.
#[must_use = "recording resumes when the guard is dropped"]
pub struct NoGrad {
    before: bool,
    // recording is the thread's own: the guard must not leave it
    _thread: std::marker::PhantomData<*const ()>,
}

/// Stop recording on this thread until the guard is dropped.
///
/// ```
/// # use cotangent::{autograd::no_grad, DType, Tensor};
/// let x = Tensor::ones([2], DType::F32)?.requires_grad();
/// let y = { let _guard = no_grad(); x.exp()? };
/// assert!(y.sum_all()?.backward().is_err());
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn no_grad() -> NoGrad {
    recording(false)
}

/// Record on this thread, or not, until the guard is dropped.
fn recording(on: bool) -> NoGrad {
    NoGrad {
        before: RECORDING.replace(on),
        _thread: std::marker::PhantomData,
    }
}

/// Whether this thread's ops are recorded where an input requires a gradient.
pub fn is_grad_enabled() -> bool {
    RECORDING.get()
}

impl Drop for NoGrad {
    fn drop(&mut self) {
        RECORDING.set(self.before);
    }
}

/// Run an op and record it if an input requires a gradient.
pub fn apply<O: Op<N>, const N: usize>(op: O, inputs: [&Tensor; N]) -> Result<Tensor> {
    if let Some(other) = inputs.iter().find(|t| t.device() != inputs[0].device()) {
        let (a, b) = (inputs[0].device(), other.device());
        return Err(Error::devices(op.name(), a, b));
    }
    // 16-bit floats are computed in f32 and rounded once, at the op's door; beside an f32 or
    // another 16-bit type the result stays f32, as PyTorch promotes
    let floats = || inputs.iter().map(|t| t.dtype()).filter(|d| d.is_float());
    let half = floats().find(|d| d.is_half() && !O::ANY_DTYPE);
    let narrow = half.filter(|h| floats().all(|d| d == *h));
    let on_cuda = matches!(inputs[0].device(), Device::Cuda(_));
    // what the op's own kernels take needs no conversion
    let half = half.filter(|_| !(O::HALF_ON_CUDA && on_cuda && narrow.is_some()));
    let mut wide = inputs.map(Tensor::detach);
    for t in wide
        .iter_mut()
        .filter(|t| t.dtype().is_half() && half.is_some())
    {
        *t = t.cast(DType::F32)?;
    }
    let (out, saved) = {
        let _quiet = no_grad();
        op.forward(wide.each_ref())?
    };
    let mut out = match narrow {
        Some(dtype) if out.dtype() == DType::F32 => out.cast(dtype)?,
        _ => out,
    };
    let name = op.name();
    let needs = inputs.map(|t| RECORDING.get() && t.node.is_some());
    if needs.contains(&true) {
        let backward: Backward = Box::new(move |grad, sum| {
            if half.is_some() {
                // the sum is of 16 bits
                let grad = grad.cast(DType::F32)?;
                return Ok(op.backward(saved, grad, needs)?.into());
            }
            Ok(op.backward_onto(saved, grad, needs, sum)?.into())
        });
        let inputs = inputs
            .iter()
            .zip(needs)
            .map(|(t, n)| if n { t.node.clone() } else { None })
            .collect();
        out.node = Some(Node::new(name, &out, Some(Step { inputs, backward })));
    } else {
        out.node = None;
    }
    Ok(out)
}

/// The gradients that one `backward` found, by leaf.
#[derive(Default, Debug)]
pub struct Gradients(HashMap<u64, Tensor>);

impl Gradients {
    /// The gradient of a leaf (a tensor made by [`Tensor::requires_grad`], or a clone of it).
    pub fn get(&self, leaf: &Tensor) -> Option<&Tensor> {
        self.0.get(&leaf.node.as_ref()?.id)
    }

    /// The same, to be written: clipping, weight decay.
    pub fn get_mut(&mut self, leaf: &Tensor) -> Option<&mut Tensor> {
        self.0.get_mut(&leaf.node.as_ref()?.id)
    }

    /// Take a leaf's gradient out.
    pub fn remove(&mut self, leaf: &Tensor) -> Option<Tensor> {
        self.0.remove(&leaf.node.as_ref()?.id)
    }

    /// Put a gradient in place of a leaf's own.
    pub fn insert(&mut self, leaf: &Tensor, grad: Tensor) {
        if let Some(node) = &leaf.node {
            self.0.insert(node.id, grad);
        }
    }

    /// Add another backward's gradients: accumulation over small batches.
    pub fn add(&mut self, other: Gradients) -> Result<()> {
        for (id, grad) in other.0 {
            match self.0.get_mut(&id) {
                Some(sum) => sum.accumulate(&grad)?,
                None => {
                    self.0.insert(id, grad);
                }
            }
        }
        Ok(())
    }

    /// Make all gradients 0, in place where nobody else holds them.
    pub fn zero_(&mut self) -> Result<()> {
        self.0.values_mut().try_for_each(|g| g.fill_(0.0))
    }

    /// How many leaves have a gradient.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no leaf has one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Which of these named leaves have no gradient, one of zeros only, or one with NaN or
    /// infinity in it: what a broken model shows first.
    pub fn coverage<'a>(
        &self,
        named: impl IntoIterator<Item = (String, &'a Tensor)>,
    ) -> Result<Coverage> {
        let mut c = Coverage::default();
        for (name, leaf) in named {
            let Some(g) = self.get(leaf) else {
                c.missing.push(name);
                continue;
            };
            let v = g.cast(DType::F64)?.to_vec::<f64>()?;
            if v.iter().any(|x| !x.is_finite()) {
                c.not_finite.push(name);
            } else if v.iter().all(|x| *x == 0.0) {
                c.zero.push(name);
            } else {
                c.healthy += 1;
            }
        }
        Ok(c)
    }
}

/// What [`Gradients::coverage`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Parameters that the loss does not depend on.
    pub missing: Vec<String>,
    /// Parameters whose gradient is zero everywhere.
    pub zero: Vec<String>,
    /// Parameters with NaN or infinity in their gradient.
    pub not_finite: Vec<String>,
    /// How many are neither.
    pub healthy: usize,
}

impl Tensor {
    /// A leaf of the graph: backward finds its gradient. Only floats can be one; others stay as
    /// they are.
    pub fn requires_grad(&self) -> Tensor {
        let mut t = self.detach();
        if t.dtype().is_float() {
            t.node = Some(Node::new(LEAF, &t, None));
        }
        t
    }

    /// A leaf of the graph or outside of it.
    pub(crate) fn as_tracked(&self, on: bool) -> Tensor {
        if on {
            self.requires_grad()
        } else {
            self.detach()
        }
    }

    /// Whether a gradient flows into it.
    pub fn is_tracked(&self) -> bool {
        self.node.is_some()
    }

    /// The same elements outside of the graph.
    pub fn detach(&self) -> Tensor {
        Tensor {
            storage: self.storage.clone(),
            layout: self.layout,
            node: None,
        }
    }

    /// Call `hook` with this tensor's whole gradient during backward; what it returns replaces
    /// the gradient.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let x = Tensor::scalar(2f32)?.requires_grad();
    /// let y = x.mul(&x)?;
    /// y.register_hook(|dy| Ok(Some(dy.mul_scalar(10.0)?)));
    /// assert_eq!(y.backward()?.get(&x).unwrap().item()?, 40.0);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn register_hook(&self, hook: impl Fn(&Tensor) -> Result<Option<Tensor>> + Send + 'static) {
        if let Some(node) = &self.node {
            lock(&node.hooks).push(Box::new(hook));
        }
    }

    /// The gradients of this scalar with respect to every leaf it depends on. Saved state is
    /// freed as the walk passes: a second call is [`Error::GraphFreed`].
    pub fn backward(&self) -> Result<Gradients> {
        if self.numel() != 1 {
            return Err(Error::NotScalar {
                op: "backward",
                shape: self.shape().to_vec(),
            });
        }
        self.backward_from(&self.ones_like()?)
    }

    /// [`Tensor::backward`] of a tensor of any shape, from a given gradient of it.
    pub fn backward_from(&self, grad: &Tensor) -> Result<Gradients> {
        if grad.shape() != self.shape() {
            return Err(Error::shape(
                "backward",
                &[*self.shape(), *grad.shape()],
                format!(
                    "tensor {:?} wants a gradient of its shape but got {:?}",
                    self.shape(),
                    grad.shape()
                ),
            ));
        }
        let root = self.node.clone().ok_or(Error::NoGraph)?;
        let _quiet = no_grad();
        // each op runs backward in the types of its forward
        let _as_it_was = autocast::set(None);
        let mut found = Gradients::default();
        let mut pending = HashMap::from([(root.id, grad.cast(self.dtype())?)]);
        let mut heap = BinaryHeap::from([Youngest(root)]);
        // the youngest node first: every consumer of a tensor is younger than the tensor, so its
        // gradient is whole when its turn comes
        while let Some(Youngest(node)) = heap.pop() {
            let Some(mut grad) = pending.remove(&node.id) else {
                continue;
            };
            for hook in lock(&node.hooks).iter() {
                if let Some(g) = hook(&grad)? {
                    grad = fit(g, &node, 0)?;
                }
            }
            if node.op == LEAF {
                found.0.insert(node.id, grad);
                continue;
            }
            let step = lock(&node.step)
                .take()
                .ok_or(Error::GraphFreed { op: node.op })?;
            let first = step.inputs.first().and_then(|i| Some(i.as_ref()?.id));
            let mut sum = first.and_then(|id| pending.remove(&id));
            let grads = (step.backward)(grad, &mut sum)?;
            if let (Some(id), Some(sum)) = (first, sum) {
                pending.insert(id, sum);
            }
            for (i, (input, grad)) in step.inputs.into_iter().zip(grads).enumerate() {
                let (Some(input), Some(grad)) = (input, grad) else {
                    continue;
                };
                let mut grad = fit(grad, &input, i).map_err(|e| match e {
                    Error::Gradient {
                        input,
                        expected,
                        got,
                        ..
                    } => Error::Gradient {
                        op: node.op,
                        input,
                        expected,
                        got,
                    },
                    e => e,
                })?;
                match pending.get_mut(&input.id) {
                    Some(sum) => {
                        // the one that is nobody else's takes the sum, in place: the first may be
                        // a view of a larger gradient, a part of what was joined
                        if !sum.is_unique() && grad.is_unique() {
                            std::mem::swap(sum, &mut grad);
                        }
                        sum.accumulate(&grad)?;
                    }
                    None => {
                        pending.insert(input.id, grad);
                        heap.push(Youngest(input));
                    }
                }
            }
        }
        Ok(found)
    }
}

/// A gradient in its tensor's shape and dtype: broadcast axes are summed.
fn fit(grad: Tensor, node: &Node, input: usize) -> Result<Tensor> {
    let wrong = || Error::Gradient {
        op: node.op,
        input,
        expected: node.shape.to_vec(),
        got: grad.shape().to_vec(),
    };
    let grad = if *grad.shape() == node.shape {
        grad
    } else {
        sum_to(&grad, &node.shape).ok_or_else(wrong)??
    };
    if grad.dtype() == node.dtype {
        Ok(grad)
    } else {
        grad.cast(node.dtype)
    }
}

/// Undo broadcasting: sum the axes that `shape` lacks or has of size 1. `None` if `shape` does
/// not broadcast to the gradient's shape.
fn sum_to(grad: &Tensor, shape: &Shape) -> Option<Result<Tensor>> {
    let lead = grad.rank().checked_sub(shape.len())?;
    let sizes = || shape.iter().zip(&grad.shape()[lead..]);
    if !sizes().all(|(s, g)| s == g || *s == 1) {
        return None;
    }
    let reduce: Vec<bool> = (0..grad.rank())
        .map(|a| a < lead || (shape[a - lead] == 1 && grad.shape()[a] != 1))
        .collect();
    Some(sum_axes(grad, &reduce).map(|t| {
        // the leading axes all have size 1 now
        let mut layout = t.layout;
        for _ in 0..lead {
            layout = layout.select(0, 0);
        }
        t.view_as(layout)
    }))
}

/// Sum the marked axes, keeping them with size 1.
pub(crate) fn sum_axes(x: &Tensor, reduce: &[bool]) -> Result<Tensor> {
    scaled_sum_axes(x, reduce, 1.0)
}

/// `scale` times [`sum_axes`].
pub(crate) fn scaled_sum_axes(x: &Tensor, reduce: &[bool], scale: f64) -> Result<Tensor> {
    if x.dtype().is_half() {
        return scaled_sum_axes(&x.cast(DType::F32)?, reduce, scale)?.cast(x.dtype());
    }
    let (x, walk, out) = folded(x, reduce)?;
    if let Device::Cuda(gpu) = x.device() {
        return fold::reduce(gpu, &x, walk, out, Reduce::Sum(scale));
    }
    with_real!("sum", x.dtype(), T => {
        let s = x.dense_slice::<T>("sum")?;
        Tensor::build::<T>(out, x.device(), |o| {
            strided::sum(s, walk, o);
            if scale != 1.0 {
                o.iter_mut().for_each(|o| *o *= T::of(scale));
            }
        })
    })
}

/// The tensor (copied if it must be), its walk and its result's layout for a reduction of the
/// marked axes.
pub(crate) fn folded(x: &Tensor, reduce: &[bool]) -> Result<(Tensor, strided::Fold, Layout)> {
    if let Some((f, l)) = strided::fold(x.layout(), reduce) {
        return Ok((x.detach(), f, l));
    }
    let x = reduced_last(x, reduce)?;
    let (f, l) = strided::fold(x.layout(), reduce).ok_or_else(|| {
        Error::argument(
            "reduce",
            format!(
                "no walk of {:?} in {}",
                x.layout(),
                type_name::<strided::Fold>()
            ),
        )
    })?;
    Ok((x, f, l))
}

/// [`folded`] such that each reduction is along adjacent elements, if there are too few of them to
/// give a GPU's threads one each. For walks that are not cut into parts.
pub(crate) fn folded_for_teams(
    x: &Tensor,
    reduce: &[bool],
) -> Result<(Tensor, strided::Fold, Layout)> {
    let (x, f, l) = folded(x, reduce)?;
    if f.inner > 1 && f.reduced > 128 && f.outer * f.inner < 1 << 14 {
        return folded(&reduced_last(&x, reduce)?, reduce);
    }
    Ok((x, f, l))
}

/// A copy with the kept axes first and the reduced ones last in memory.
fn reduced_last(x: &Tensor, reduce: &[bool]) -> Result<Tensor> {
    let order: Vec<usize> = (0..x.rank())
        .filter(|&a| !reduce[a])
        .chain((0..x.rank()).filter(|&a| reduce[a]))
        .collect();
    let mut back = vec![0; order.len()];
    for (i, &a) in order.iter().enumerate() {
        back[a] = i;
    }
    let packed = x.view_as(x.layout.permute(&order)).packed()?;
    Ok(packed.view_as(packed.layout.permute(&back)))
}

/// Orders the heap by age.
struct Youngest(Arc<Node>);
impl PartialEq for Youngest {
    fn eq(&self, o: &Self) -> bool {
        self.0.id == o.0.id
    }
}
impl Eq for Youngest {}
impl PartialOrd for Youngest {
    fn partial_cmp(&self, o: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(o))
    }
}
impl Ord for Youngest {
    fn cmp(&self, o: &Self) -> std::cmp::Ordering {
        self.0.id.cmp(&o.0.id)
    }
}
