//! ReLU with random slopes below 0, which backward makes again from the generator's state.

use crate::autograd::{Op, apply};
use crate::cuda::{Arg, Gpu, Walk, kernels};
use crate::device::Device;
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::ops::check::{Case, Input};
use crate::ops::{Formula, unary};
use crate::random::Generator;
use crate::shape::Layout;
use crate::tensor::Tensor;
use crate::with_real;

const NAME: &str = "rrelu";

/// y = x where x > 0, else a x with a uniform in [lower, upper) for each element (Xu et al. 2015).
/// Element i in row-major order takes number i of the stream, whatever the memory order.
struct RRelu {
    lower: f64,
    upper: f64,
    /// Where the stream stood.
    rng: Generator,
}

/// Backward needs the signs of x, and on a GPU the stream's seed and offset, in its memory: a
/// captured step finds new ones there at each replay.
struct Saved {
    x: Tensor,
    place: Option<Tensor>,
}

impl RRelu {
    /// g times the slope at x, in x's memory order: forward where g is x itself.
    fn times_slope<T: Real>(&self, x: &Tensor, g: &Tensor) -> Result<Tensor> {
        let (lower, span) = (T::of(self.lower), T::of(self.upper - self.lower));
        let layout = Layout::contiguous(*x.shape());
        let random = Tensor::build::<T>(layout, x.device(), |slopes| {
            // a copy of the stream: forward and backward read the same numbers
            let mut rng = self.rng;
            rng.fill_uniform(slopes, |u| lower + T::of(u as f64) * span);
        })?;
        let one_above = |x: T, a: T| if x > T::ZERO { T::ONE } else { a };
        let slope = unary::zip::<T>(x, &random, NAME, one_above)?;
        unary::zip::<T>(&slope, g, NAME, |a, g| a * g)
    }

    /// The same on a GPU.
    fn times_slope_on(&self, gpu: Gpu, x: &Tensor, g: &Tensor, place: &Tensor) -> Result<Tensor> {
        let layout = x.layout().dense_like();
        let (x, g) = (x.laid_out(layout)?, g.laid_out(layout)?);
        let y = Tensor::empty(layout, x.dtype(), x.device())?;
        let n = x.numel();
        // the elements' row-major numbers, as an operand
        let walk = Walk::new(y.layout(), [&Layout::contiguous(*x.shape())])?;
        let aligned = [&x, &g]
            .iter()
            .all(|t| t.layout().offset().is_multiple_of(4));
        let (kernel, each, size) = match walk.is_dense(0) && aligned {
            true => (&RRELU, 4 * 256, Arg::U32(n as u32)),
            false => (&RRELU_STRIDED, 256, walk.arg()),
        };
        let args = [
            x.input(),
            g.input(),
            y.output(),
            place.input(),
            size,
            Arg::F64(self.lower),
            Arg::F64(self.upper - self.lower),
        ];
        gpu.launch_over(kernel.of(x.dtype())?, n, each, &args)?;
        Ok(y)
    }
}

impl Op<1> for RRelu {
    const NAME: &'static str = NAME;
    const HALF_ON_CUDA: bool = true;
    type Saved = Saved;

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, Saved)> {
        let (y, place) = match x.device() {
            Device::Cuda(gpu) => {
                let place = Tensor::scalars(gpu, &[self.rng.seed, self.rng.offset])?;
                (self.times_slope_on(gpu, x, x, &place)?, Some(place))
            }
            Device::Cpu => {
                let y = with_real!(NAME, x.dtype(), T => self.times_slope::<T>(x, x))?;
                (y, None)
            }
        };
        Ok((
            y,
            Saved {
                x: x.clone(),
                place,
            },
        ))
    }

    fn backward(&self, saved: Saved, dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let dx = match (dy.device(), &saved.place) {
            (Device::Cuda(gpu), Some(place)) => self.times_slope_on(gpu, &saved.x, &dy, place)?,
            _ => with_real!(NAME, dy.dtype(), T => self.times_slope::<T>(&saved.x, &dy))?,
        };
        Ok([Some(dx)])
    }
}

kernels! {
    /// Row-major.
    RRELU = "rrelu" [F32, F64, BF16, F16];
    /// In another memory order.
    RRELU_STRIDED = "rrelu_strided" [F32, F64, BF16, F16];
}

/// Refuse slopes that are no range; `op` is who was asked.
pub(crate) fn check_slopes(op: &'static str, lower: f64, upper: f64) -> Result<()> {
    if !(lower <= upper && lower.is_finite() && upper.is_finite()) {
        return Err(Error::argument(
            op,
            format!("slopes from {lower} to {upper}, expected a finite range"),
        ));
    }
    Ok(())
}

impl Tensor {
    /// x where x > 0, else x times a slope of its own, uniform from `lower` to `upper` (Xu et al.
    /// 2015): PyTorch's `rrelu` in training. In evaluation it is [`Tensor::leaky_relu`] of the mean
    /// slope. Takes a block of `rng` for every four elements. An error for slopes that are no
    /// finite range.
    ///
    /// ```
    /// # use cotangent::{random::Generator, Tensor};
    /// let x = Tensor::from_vec(vec![-1f32, 2.0], [2])?;
    /// let y = x.rrelu(0.1, 0.3, &mut Generator::new(1))?.to_vec::<f32>()?;
    /// assert!((-0.3..=-0.1).contains(&y[0]) && y[1] == 2.0);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn rrelu(&self, lower: f64, upper: f64, rng: &mut Generator) -> Result<Tensor> {
        check_slopes(NAME, lower, upper)?;
        let start = *rng;
        rng.take(self.numel().div_ceil(4) as u64);
        let op = RRelu {
            lower,
            upper,
            rng: start,
        };
        apply(op, [self])
    }
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[(
    "rrelu",
    "x where x > 0, else a x, an element's a uniform in [lower, upper)",
)];

macro_rules! cases {
    ($($name:literal $shape:expr, $lower:literal to $upper:literal;)*) => {
        &[$(Case { op: NAME, name: $name, inputs: &[Input::NonZero(&$shape)],
            run: |x| x[0].rrelu($lower, $upper, &mut Generator::new(7)) }),*]
    };
}

/// Slopes and shapes.
pub const CASES: &[Case] = cases! {
    "a matrix" [5, 7], 0.125 to 0.3333333333333333;
    "images" [2, 3, 2, 5], 0.1 to 0.9;
    "one slope" [3, 5], 0.2 to 0.2;
    "negative slopes" [3, 5], -0.5 to 0.5;
    "empty" [0, 5], 0.1 to 0.3;
    "scalar" [], 0.1 to 0.3;
};

/// Several blocks of the stream's order and of another, with a ragged end.
pub const LARGE: &[Case] = &[
    Case {
        op: NAME,
        name: "5003 elements",
        inputs: &[Input::Normal(&[5003])],
        run: |x| {
            let mut rng = Generator {
                seed: 5 << 40,
                offset: 1 << 35,
            };
            x[0].rrelu(0.125, 0.333, &mut rng)
        },
    },
    Case {
        op: NAME,
        name: "another memory order",
        inputs: &[Input::Normal(&[3, 11, 13, 7])],
        run: |x| {
            x[0].permute(&[0, 3, 1, 2])?
                .rrelu(0.1, 0.4, &mut Generator::new(9))
        },
    },
    Case {
        op: NAME,
        name: "a part, not aligned",
        inputs: &[Input::Normal(&[301])],
        run: |x| {
            let part = x[0].narrow(0, 1, 299)?;
            part.rrelu(0.1, 0.4, &mut Generator::new(9))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::check::devices;

    #[test]
    fn slopes_are_uniform_in_their_range() -> Result<()> {
        let x = Tensor::full([100_000], -1.0, DType::F64)?;
        let mut rng = Generator::new(3);
        let y = x.rrelu(0.2, 0.6, &mut rng)?.to_vec::<f64>()?;
        assert!(y.iter().all(|y| (-0.6..=-0.2).contains(y)));
        let n = y.len() as f64;
        let mean = y.iter().sum::<f64>() / n;
        let var = y.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / n;
        assert!((mean + 0.4).abs() < 2e-3 && (var - 0.16 / 12.0).abs() < 2e-4);
        assert_eq!(rng.offset, 25_000);
        let again = x.rrelu(0.2, 0.6, &mut rng)?.to_vec::<f64>()?;
        assert_ne!(y, again);
        Ok(())
    }

    #[test]
    fn devices_have_the_same_bits_in_any_memory_order() -> Result<()> {
        let rng = Generator {
            seed: u64::MAX - 3,
            offset: u32::MAX as u64 - 8,
        };
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            let x = Tensor::randn([3, 5, 7, 2], &mut Generator::new(2), dtype)?;
            let dy = Tensor::randn([3, 5, 7, 2], &mut Generator::new(3), dtype)?;
            let mut seen = Vec::new();
            for device in devices()? {
                let (x, dy) = (x.to(device)?, dy.to(device)?);
                for x in [x.clone(), x.channels_last()?] {
                    let x = x.requires_grad();
                    let y = x.rrelu(0.125, 1.0 / 3.0, &mut rng.clone())?;
                    let grads = y.backward_from(&dy)?;
                    let numbers = |t: &Tensor| t.to_dtype(DType::F64)?.to_vec::<f64>();
                    seen.push([numbers(&y)?, numbers(grads.get(&x).unwrap())?]);
                }
            }
            assert!(seen.iter().all(|s| *s == seen[0]), "{dtype}");
        }
        Ok(())
    }

    /// A captured step reads its place in the stream from memory that a replay rewrites.
    #[test]
    #[cfg(feature = "emulator")]
    fn a_replay_takes_another_place_of_the_stream() -> Result<()> {
        let device = Device::cuda_emulated()?;
        let Device::Cuda(gpu) = device else {
            return Err(Error::argument(NAME, "no GPU"));
        };
        let x = Tensor::full([103], -1.0, (DType::F32, device))?.requires_grad();
        let both = || {
            let y = x.rrelu(0.1, 0.9, &mut Generator::new(4))?;
            let dx = y.backward_from(&y.ones_like()?)?.get(&x).cloned();
            Ok((
                y.detach(),
                dx.ok_or_else(|| Error::argument(NAME, "no gradient"))?,
            ))
        };
        // kernels are compiled at the first look, which a capture refuses
        both()?;
        let (graph, (y, dx)) = gpu.capture(both)?;
        for offset in [26, 1 << 33] {
            graph.replay(&[4, offset])?;
            let mut rng = Generator { seed: 4, offset };
            let x = Tensor::full([103], -1.0, DType::F32)?;
            let wanted = x.rrelu(0.1, 0.9, &mut rng)?;
            assert_eq!(y.to_vec::<f32>()?, wanted.to_vec::<f32>()?);
            assert_eq!(dx.neg()?.to_vec::<f32>()?, wanted.to_vec::<f32>()?);
        }
        Ok(())
    }

    #[test]
    fn errors() -> Result<()> {
        let x = Tensor::ones([3], DType::F32)?;
        for (lower, upper) in [(0.3, 0.1), (f64::NAN, 1.0), (0.0, f64::INFINITY)] {
            let e = x.rrelu(lower, upper, &mut Generator::new(1)).unwrap_err();
            let want = format!("rrelu: slopes from {lower} to {upper}, expected a finite range");
            assert_eq!(e.to_string(), want);
        }
        Ok(())
    }
}
