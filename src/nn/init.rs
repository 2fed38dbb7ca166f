//! How new weights are drawn. The bounds and gains are PyTorch's `torch.nn.init`.

use rayon::prelude::*;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::nn::{Activation, Module, Slot, try_visit};
use crate::random::Generator;
use crate::shape::{IntoShape, Shape};
use crate::tensor::Tensor;
use crate::workers::Parallel;

/// Which of a weight's two sides keeps its variance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fan {
    /// The activations' variance, from layer to layer in the forward pass.
    In,
    /// The gradients' variance, from layer to layer in the backward pass.
    Out,
}

impl Fan {
    /// How many inputs an output of a weight (out, in, window ..) has, or outputs an input.
    pub fn of(self, shape: &Shape) -> Result<usize> {
        if shape.len() < 2 || shape.numel() == 0 {
            return Err(Error::argument(
                "init",
                format!("a weight of shape {shape:?} has no fan, expected (out, in, ..)"),
            ));
        }
        let window: usize = shape[2..].iter().product();
        Ok(window
            * match self {
                Fan::In => shape[1],
                Fan::Out => shape[0],
            })
    }
}

/// A distribution of new weights.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Init {
    /// Every element the same.
    Constant(f64),
    /// Normal with mean 0 and this standard deviation: CS231n's `weight_scale`.
    Normal(f64),
    /// Uniform between minus this and this.
    Uniform(f64),
    /// Normal with standard deviation gain sqrt(2 / (fan in + fan out)) (Glorot and Bengio 2010).
    XavierNormal(Activation),
    /// Uniform with the standard deviation of [`Init::XavierNormal`].
    XavierUniform(Activation),
    /// Normal with standard deviation gain / sqrt(fan) (He et al. 2015).
    KaimingNormal(Fan, Activation),
    /// Uniform with the standard deviation of [`Init::KaimingNormal`].
    KaimingUniform(Fan, Activation),
}

impl Init {
    /// What PyTorch gives the weights of `Linear` and `Conv2d`: uniform within 1 / sqrt(fan in).
    pub fn pytorch() -> Self {
        Init::KaimingUniform(Fan::In, Activation::LeakyRelu(5f64.sqrt()))
    }

    /// A parameter of this shape, in F32. Those that depend on a fan want at least two axes.
    ///
    /// ```
    /// # use cotangent::{nn::{Activation, Fan, Init}, random::Generator};
    /// let init = Init::KaimingNormal(Fan::In, Activation::Relu);
    /// let weight = init.make([32, 3, 7, 7], &mut Generator::new(0))?;
    /// assert!(weight.is_tracked());
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn make(self, shape: impl IntoShape, rng: &mut Generator) -> Result<Tensor> {
        let shape = shape.into_shape()?;
        // a uniform distribution within b has the standard deviation b / sqrt(3)
        let t = match self {
            Init::Constant(value) => Tensor::full(shape, value, DType::F32)?,
            Init::Normal(std) => normal(shape, std, rng)?,
            Init::Uniform(bound) => uniform(shape, bound, rng)?,
            Init::XavierNormal(a) => normal(shape, xavier(&shape, a)?, rng)?,
            Init::XavierUniform(a) => uniform(shape, 3f64.sqrt() * xavier(&shape, a)?, rng)?,
            Init::KaimingNormal(fan, a) => normal(shape, kaiming(&shape, fan, a)?, rng)?,
            Init::KaimingUniform(fan, a) => {
                uniform(shape, 3f64.sqrt() * kaiming(&shape, fan, a)?, rng)?
            }
        };
        Ok(t.requires_grad())
    }

    /// Draw every weight of two axes or more anew and set every bias to 0. The weights of norms
    /// stay.
    pub fn apply(self, m: &mut (impl Module + ?Sized), rng: &mut Generator) -> Result<()> {
        try_visit(m, |name, slot| match slot {
            Slot::Parameter(t) if t.rank() >= 2 => t.copy_(&self.make(t.shape(), rng)?),
            Slot::Parameter(t) if name.ends_with("bias") => t.copy_(&t.zeros_like()?),
            _ => Ok(()),
        })
    }
}

/// Make the first filters of a convolution's weight (out, in, window ..) pass their channel on: filter
/// i, below `in`, becomes 0 but for a 1 in the middle of channel i. The others stay as they were
/// drawn. PyTorch's `dirac_(weight[:in])` (Zagoruyko and Komodakis 2017): a deep network then starts
/// near the identity, through which gradients reach the first layers whole.
///
/// ```
/// # use cotangent::{DType, Tensor, nn::init::dirac};
/// let mut weight = Tensor::full([3, 2, 1, 3], 0.5, DType::F32)?;
/// dirac(&mut weight)?;
/// let expected = [0., 1., 0., 0., 0., 0., 0., 0., 0., 0., 1., 0., 0.5, 0.5, 0.5, 0.5, 0.5, 0.5];
/// assert_eq!(weight.to_vec::<f32>()?, expected);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn dirac(weight: &mut Tensor) -> Result<()> {
    let shape = *weight.shape();
    if shape.len() < 3 || !weight.dtype().is_float() {
        let dtype = weight.dtype();
        let why = format!("expected floats (out, in, window ..) but got {shape:?} of {dtype}");
        return Err(Error::argument("dirac", why));
    }
    let mut w = weight.detach().cast(DType::F64)?.to_vec::<f64>()?;
    let window: usize = shape[2..].iter().product();
    // the middle of each axis, behind the half where the length is even
    let middle = shape[2..].iter().fold(0, |at, &n| at * n + n / 2);
    let filters = w.chunks_exact_mut((shape[1] * window).max(1));
    for (i, filter) in filters.take(shape[1]).enumerate() {
        filter.fill(0.0);
        filter[i * window + middle] = 1.0;
    }
    weight.copy_(&Tensor::from_vec(w, shape)?)
}

/// Images whose patches one task sums up.
const WHITENED_AT_ONCE: usize = 64;

/// Filters (2 c kh kw, c, kh, kw) of a first convolution that decorrelate the patches of `window` =
/// [kh, kw] pixels of `images` (n, c, h, w), which are normalized already: v / sqrt(l + eps) for
/// each eigenvector v and eigenvalue l of the patches' second moments, the least first, then the
/// same with the other sign. What each of them sees of such images has variance 1, less where l is
/// not far above `eps`; both signs, so that an activation after it loses nothing (Page 2019, "How to
/// train your ResNet 8"; airbench94, Jordan 2024). A weight of F32 that requires no gradient.
///
/// ```
/// # use cotangent::{DType, Tensor, nn::init::whitening, random::Generator};
/// let images = Tensor::randn([20, 3, 8, 8], &mut Generator::new(0), DType::F32)?;
/// let weight = whitening(&images, [2, 2], 5e-4)?;
/// assert_eq!(weight.shape()[..], [24, 3, 2, 2]);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn whitening(images: &Tensor, window: [usize; 2], eps: f64) -> Result<Tensor> {
    let op = "whitening";
    let [n, c, h, w] = images.dims(op, "images (n, c, h, w)")?;
    let [kh, kw] = window;
    if n * c == 0 || kh == 0 || kw == 0 || kh > h || kw > w {
        let why = format!("images {:?} have no patches of {window:?}", images.shape());
        return Err(Error::shape(op, &[*images.shape()], why));
    }
    if !(eps >= 0.0 && eps.is_finite()) {
        let why = format!("eps {eps}, expected a number of at least 0");
        return Err(Error::argument(op, why));
    }
    let pixels = images.detach().cast(DType::F32)?.to_vec::<f32>()?;
    let d = c * kh * kw;
    let moments = |images: &[f32]| {
        let (mut sums, mut patch) = (vec![0f64; d * d], vec![0f64; d]);
        for image in images.chunks_exact(c * h * w) {
            for y in 0..=h - kh {
                for x in 0..=w - kw {
                    for (i, p) in patch.iter_mut().enumerate() {
                        let (c, dy, dx) = (i / (kh * kw), i / kw % kh, i % kw);
                        *p = image[(c * h + y + dy) * w + x + dx] as f64;
                    }
                    for (i, row) in sums.chunks_exact_mut(d).enumerate() {
                        let pairs = row[..=i].iter_mut().zip(&patch);
                        pairs.for_each(|(sum, p)| *sum += patch[i] * p);
                    }
                }
            }
        }
        sums
    };
    // tasks by the images' number and their sums in one order: any number of threads gives the same
    let parts = pixels.par_chunks(WHITENED_AT_ONCE * c * h * w).map(moments);
    let mut sums = vec![0f64; d * d];
    for part in parts.gather() {
        sums.iter_mut().zip(part).for_each(|(sum, p)| *sum += p);
    }
    let patches = (n * (h - kh + 1) * (w - kw + 1)) as f64;
    sums.iter_mut().for_each(|sum| *sum /= patches);
    let (values, vectors) = Tensor::from_vec(sums, [d, d])?.eigh()?;
    // rounding may leave an eigenvalue of 0 a little below it
    let scale = values.clamp(0.0, f64::INFINITY)?.add_scalar(eps)?.rsqrt()?;
    let filters = vectors.mul(&scale)?.t()?.reshape([d, c, kh, kw])?;
    let both = Tensor::cat(&[&filters, &filters.neg()?], 0)?;
    both.cast(DType::F32)?.moved(images.device())
}

fn xavier(shape: &Shape, a: Activation) -> Result<f64> {
    let fans = Fan::In.of(shape)? + Fan::Out.of(shape)?;
    Ok(a.gain() * (2.0 / fans as f64).sqrt())
}

fn kaiming(shape: &Shape, fan: Fan, a: Activation) -> Result<f64> {
    Ok(a.gain() / (fan.of(shape)? as f64).sqrt())
}

fn normal(shape: Shape, std: f64, rng: &mut Generator) -> Result<Tensor> {
    Tensor::randn(shape, rng, DType::F32)?.mul_scalar(std)
}

fn uniform(shape: Shape, bound: f64, rng: &mut Generator) -> Result<Tensor> {
    Tensor::rand(shape, rng, DType::F32)?
        .mul_scalar(2.0 * bound)?
        .add_scalar(-bound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Window;

    /// Mean, standard deviation and greatest magnitude.
    fn moments(t: &Tensor) -> (f64, f64, f64) {
        let v: Vec<f64> = t
            .to_vec::<f32>()
            .unwrap()
            .iter()
            .map(|x| *x as f64)
            .collect();
        let n = v.len() as f64;
        let mean = v.iter().sum::<f64>() / n;
        let std = (v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
        (mean, std, v.iter().fold(0.0, |m, x| x.abs().max(m)))
    }

    #[test]
    fn standard_deviations() -> Result<()> {
        let relu = Activation::Relu;
        // (64, 32, 3, 3): fan in 288, fan out 576; (mode, standard deviation, bound if uniform)
        let kaiming_in = (2.0f64 / 288.0).sqrt();
        let kaiming_out = (2.0f64 / 576.0).sqrt();
        let xavier = 5.0 / 3.0 * (2.0f64 / 864.0).sqrt();
        for (init, std, bounded) in [
            (Init::Normal(1e-3), 1e-3, false),
            (Init::Uniform(0.3), 0.3 / 3f64.sqrt(), true),
            (Init::KaimingNormal(Fan::In, relu), kaiming_in, false),
            (Init::KaimingNormal(Fan::Out, relu), kaiming_out, false),
            (Init::KaimingUniform(Fan::In, relu), kaiming_in, true),
            (Init::KaimingUniform(Fan::Out, relu), kaiming_out, true),
            (Init::XavierNormal(Activation::Tanh), xavier, false),
            (Init::XavierUniform(Activation::Tanh), xavier, true),
            (Init::pytorch(), (1.0f64 / 288.0 / 3.0).sqrt(), true),
        ] {
            let t = init.make([64, 32, 3, 3], &mut Generator::new(5))?;
            let (mean, s, max) = moments(&t);
            assert!(t.is_tracked(), "{init:?}");
            assert!(mean.abs() < 0.03 * std, "{init:?}: mean {mean}");
            assert!((s / std - 1.0).abs() < 0.02, "{init:?}: {s} is not {std}");
            let bound = std * 3f64.sqrt();
            assert_eq!(max <= bound * 1.0001, bounded, "{init:?}: {max}, {bound}");
        }
        assert_eq!(
            Init::Constant(0.5)
                .make([3], &mut Generator::new(0))?
                .to_vec::<f32>()?,
            [0.5; 3]
        );
        Ok(())
    }

    #[test]
    fn dirac_filters_pass_their_channel_on() -> Result<()> {
        let rng = &mut Generator::new(1);
        // fewer filters than channels, as many, and more, of which the rest stay
        for shape in [[2, 3, 3, 3], [3, 3, 3, 5], [5, 3, 3, 3]] {
            let drawn = Init::pytorch().make(shape, rng)?;
            let mut weight = drawn.clone();
            dirac(&mut weight)?;
            assert!(weight.is_tracked());
            let x = Tensor::randn([2, 3, 6, 7], rng, DType::F32)?;
            let window = Window {
                padding: [shape[2] / 2, shape[3] / 2],
                ..Window::new([shape[2], shape[3]])
            };
            let (y, n) = (x.conv2d(&weight, None, window, 1)?, shape[0].min(3));
            let first = |t: &Tensor| t.narrow(1, 0, n)?.to_vec::<f32>();
            assert_eq!(first(&y)?, first(&x)?);
            let rest = |t: &Tensor| t.narrow(0, n, shape[0] - n)?.to_vec::<f32>();
            assert_eq!(rest(&weight)?, rest(&drawn)?);
        }
        let e = dirac(&mut Tensor::zeros([3, 3], DType::F32)?).unwrap_err();
        assert_eq!(
            e.to_string(),
            "dirac: expected floats (out, in, window ..) but got [3, 3] of f32"
        );
        dirac(&mut Tensor::zeros([0, 3, 1], DType::F32)?)?;
        Ok(())
    }

    #[test]
    fn whitened_patches_have_no_correlation() -> Result<()> {
        let rng = &mut Generator::new(2);
        // neighbours alike, channels mixed
        let x = Tensor::randn([150, 3, 6, 7], rng, DType::F64)?;
        let near = x
            .narrow(3, 0, 5)?
            .add(&x.narrow(3, 1, 5)?)?
            .add(&x.narrow(3, 2, 5)?)?;
        let mixed = Tensor::randn([3, 3, 1, 1], rng, DType::F64)?;
        let images = near.conv2d(&mixed, None, Window::new([1, 1]), 1)?;
        let weight = whitening(&images, [2, 2], 0.0)?;
        assert!(!weight.is_tracked());
        let w = weight.cast(DType::F64)?;
        let y = images.conv2d(&w, None, Window::new([2, 2]), 1)?;
        let y = y.permute(&[1, 0, 2, 3])?.reshape([24, 150 * 5 * 4])?;
        let moments = y
            .matmul(&y.t()?)?
            .mul_scalar(1.0 / 3000.0)?
            .to_vec::<f64>()?;
        for (at, got) in moments.into_iter().enumerate() {
            let (i, j) = (at / 24, at % 24);
            let expected = f64::from(i == j) - f64::from(i.abs_diff(j) == 12);
            assert!((got - expected).abs() < 1e-4, "{i} {j}: {got}");
        }
        // a colour that never changes does not blow up
        let flat = Tensor::ones([2, 1, 3, 3], DType::F32)?;
        let w = whitening(&flat, [2, 2], 1e-2)?.to_vec::<f32>()?;
        assert!(w.iter().all(|w| w.abs() <= 10.0), "{w:?}");
        let e = |images: [usize; 4], window, eps| {
            let images = Tensor::zeros(images, DType::F32).unwrap();
            whitening(&images, window, eps).unwrap_err().to_string()
        };
        let none = "whitening: images [2, 1, 3, 3] have no patches of [4, 2]";
        assert_eq!(e([2, 1, 3, 3], [4, 2], 0.0), none);
        assert!(e([0, 1, 3, 3], [2, 2], 0.0).contains("no patches"));
        assert!(e([2, 1, 3, 3], [2, 2], f64::NAN).contains("eps NaN"));
        Ok(())
    }

    #[test]
    fn a_vector_has_no_fan() {
        let e = Init::pytorch()
            .make([3], &mut Generator::new(0))
            .unwrap_err();
        assert_eq!(
            e.to_string(),
            "init: a weight of shape [3] has no fan, expected (out, in, ..)"
        );
    }
}
