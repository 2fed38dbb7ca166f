//! Dropout of elements, channels and samples, with a mask that backward makes again from the
//! generator's state.

use crate::autograd::{Op, apply};
use crate::cuda::{Arg, Gpu, Walk, kernels};
use crate::device::Device;
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::ops::check::{Case, Input};
use crate::ops::{Formula, unary};
use crate::random::Generator;
use crate::shape::{Layout, Shape};
use crate::tensor::Tensor;
use crate::with_real;

/// y = x mask / (1 - p), the mask 0 with probability p and else 1 (Srivastava et al. 2014,
/// inverted). The mask has x's shape, or size 1 where one number serves a whole axis (Tompson et
/// al. 2015: whole channels; Huang et al. 2016: whole samples). Its element i in row-major order
/// takes number i of the stream, whatever x's memory order.
struct Dropout {
    name: &'static str,
    p: f64,
    mask: Shape,
    /// Where the stream stood.
    rng: Generator,
}

impl Dropout {
    /// x times the scaled mask, in x's memory order.
    fn apply<T: Real>(&self, x: &Tensor) -> Result<Tensor> {
        let keep = T::of(if self.p < 1.0 {
            1.0 / (1.0 - self.p)
        } else {
            0.0
        });
        let mask = Tensor::build::<T>(Layout::contiguous(self.mask), x.device(), |mask| {
            // a copy of the stream: forward and backward read the same numbers
            self.rng.clone().fill_uniform(
                mask,
                #[inline(always)]
                |u| if (u as f64) < self.p { T::ZERO } else { keep },
            );
        })?;
        let mask = mask.view_as(mask.layout().expand(*x.shape()));
        unary::zip::<T>(x, &mask, self.name, |x, m| x * m)
    }

    /// The same on a GPU, where `place` holds the stream's seed and offset.
    fn apply_on(&self, gpu: Gpu, x: &Tensor, place: &Tensor) -> Result<Tensor> {
        let x = x.laid_out(x.layout().dense_like())?;
        let y = Tensor::empty(*x.layout(), x.dtype(), x.device())?;
        let n = x.numel();
        // the row-major numbers of the mask's elements, as an operand
        let numbers = Layout::contiguous(self.mask).expand(*x.shape());
        let walk = Walk::new(y.layout(), [&numbers])?;
        let aligned = x.layout().offset().is_multiple_of(4);
        let (tensors, p) = ([x.input(), y.output(), place.input()], Arg::F64(self.p));
        if walk.is_dense(0) && aligned {
            let args = [&tensors[..], &[Arg::U32(n as u32), p]].concat();
            gpu.launch_over(DROPOUT.of(x.dtype())?, n, 4 * 256, &args)?;
        } else {
            let fours = if aligned { walk.fours() } else { 0 };
            let args = [&tensors[..], &[walk.arg(), p, Arg::I32(fours)]].concat();
            let each = if fours == 0 { 256 } else { 4 * 256 };
            gpu.launch_over(DROPOUT_STRIDED.of(x.dtype())?, n, each, &args)?;
        }
        Ok(y)
    }
}

impl Op<1> for Dropout {
    const NAME: &'static str = "dropout";
    const HALF_ON_CUDA: bool = true;
    /// On a GPU the stream's seed and offset, in its memory: a captured step finds new ones there
    /// at each replay.
    type Saved = Option<Tensor>;

    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, Option<Tensor>)> {
        if let Device::Cuda(gpu) = x.device() {
            let place = Tensor::scalars(gpu, &[self.rng.seed, self.rng.offset])?;
            return Ok((self.apply_on(gpu, x, &place)?, Some(place)));
        }
        let y = with_real!(self.name, x.dtype(), T => self.apply::<T>(x))?;
        Ok((y, None))
    }

    fn backward(
        &self,
        place: Option<Tensor>,
        dy: Tensor,
        _: [bool; 1],
    ) -> Result<[Option<Tensor>; 1]> {
        let dx = match (dy.device(), place) {
            (Device::Cuda(gpu), Some(place)) => self.apply_on(gpu, &dy, &place)?,
            _ => with_real!(self.name, dy.dtype(), T => self.apply::<T>(&dy))?,
        };
        Ok([Some(dx)])
    }
}

kernels! {
    /// Row-major.
    DROPOUT = "dropout" [F32, F64, BF16, F16];
    /// In another memory order.
    DROPOUT_STRIDED = "dropout_strided" [F32, F64, BF16, F16];
}

impl Tensor {
    /// Each element 0 with probability `p`, else divided by 1 - p. Takes a block of `rng` for
    /// every four elements. An error for `p` outside of [0, 1].
    ///
    /// ```
    /// # use cotangent::{random::Generator, DType, Tensor};
    /// let y = Tensor::ones([100], DType::F32)?.dropout(0.5, &mut Generator::new(1))?;
    /// assert!(y.to_vec::<f32>()?.iter().all(|&y| y == 0.0 || y == 2.0));
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn dropout(&self, p: f64, rng: &mut Generator) -> Result<Tensor> {
        let op = <Dropout as Op<1>>::NAME;
        if !(0.0..=1.0).contains(&p) {
            return Err(Error::argument(op, format!("p is {p}, expected 0 to 1")));
        }
        drop_by(self, op, p, *self.shape(), rng)
    }

    /// Each channel of each sample of (n, c, ..) 0 with probability `p`, else divided by 1 - p
    /// (Tompson et al. 2015). Takes a block of `rng` for every four channels. An error for `p`
    /// outside of [0, 1).
    ///
    /// ```
    /// # use cotangent::{random::Generator, DType, Tensor};
    /// let x = Tensor::ones([5, 4, 2, 3], DType::F32)?;
    /// let y = x.dropout2d(0.5, &mut Generator::new(1))?.to_vec::<f32>()?;
    /// assert!(y.chunks(6).all(|channel| channel == [0.0; 6] || channel == [2.0; 6]));
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn dropout2d(&self, p: f64, rng: &mut Generator) -> Result<Tensor> {
        drop_axes(self, "dropout2d", "(n, c, ..)", 2, p, rng)
    }

    /// Each sample of (n, ..) 0 with probability `p`, else divided by 1 - p: stochastic depth,
    /// where it ends a residual branch (Huang et al. 2016). Takes a block of `rng` for every four
    /// samples. An error for `p` outside of [0, 1).
    ///
    /// ```
    /// # use cotangent::{random::Generator, DType, Tensor};
    /// let x = Tensor::ones([5, 4, 3], DType::F32)?;
    /// let y = x.drop_path(0.5, &mut Generator::new(1))?.to_vec::<f32>()?;
    /// assert!(y.chunks(12).all(|sample| sample == [0.0; 12] || sample == [2.0; 12]));
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn drop_path(&self, p: f64, rng: &mut Generator) -> Result<Tensor> {
        drop_axes(self, "drop_path", "(n, ..)", 1, p, rng)
    }
}

/// Drop whatever shares its place on the first `kept` axes.
fn drop_axes(
    x: &Tensor,
    op: &'static str,
    want: &str,
    kept: usize,
    p: f64,
    rng: &mut Generator,
) -> Result<Tensor> {
    if !(0.0..1.0).contains(&p) {
        return Err(Error::argument(
            op,
            format!("p is {p}, expected 0 <= p < 1"),
        ));
    }
    let mut mask = *x.shape();
    if mask.len() < kept {
        return Err(Error::shape(
            op,
            &[mask],
            format!("expected {want} but got {mask:?}"),
        ));
    }
    mask[kept..].fill(1);
    drop_by(x, op, p, mask, rng)
}

/// Dropout with a mask of this shape, which takes its numbers from the stream.
fn drop_by(
    x: &Tensor,
    name: &'static str,
    p: f64,
    mask: Shape,
    rng: &mut Generator,
) -> Result<Tensor> {
    let start = *rng;
    rng.take(mask.numel().div_ceil(4) as u64);
    let op = Dropout {
        name,
        p,
        mask,
        rng: start,
    };
    apply(op, [x])
}

macro_rules! cases {
    ($($op:ident $name:literal $shape:expr, $p:literal;)*) => {
        &[$(Case { op: stringify!($op), name: $name, inputs: &[Input::Normal(&$shape)],
            run: |x| x[0].$op($p, &mut Generator::new(7)) }),*]
    };
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[
    (
        "dropout",
        "x mask / (1 - p), an element's mask 0 with probability p, else 1",
    ),
    ("dropout2d", "dropout with one mask a channel of a sample"),
    ("drop_path", "dropout with one mask a sample"),
];

/// Probabilities and shapes.
pub const CASES: &[Case] = cases! {
    dropout "p 0.5" [5, 7], 0.5;
    dropout "p 0.1, images" [2, 3, 2, 5], 0.1;
    dropout "p 0" [3, 5], 0.0;
    dropout "p 1" [3, 5], 1.0;
    dropout "empty" [0, 5], 0.5;
    dropout "scalar" [], 0.3;
    dropout2d "images" [2, 7, 2, 3], 0.4;
    dropout2d "one pixel" [5, 3, 1, 1], 0.5;
    dropout2d "one channel" [6, 1, 2, 2], 0.5;
    dropout2d "(n, c)" [3, 5], 0.5;
    dropout2d "p 0" [2, 3, 2, 2], 0.0;
    dropout2d "empty" [0, 3, 2, 2], 0.5;
    drop_path "images" [7, 2, 2, 3], 0.4;
    drop_path "one sample" [1, 2, 3, 2], 0.4;
    drop_path "tokens" [5, 3, 4], 0.5;
    drop_path "vector" [9], 0.5;
    drop_path "empty" [0, 3, 2, 2], 0.5;
};

/// Several blocks of the stream's order and of another, with a ragged end.
pub const LARGE: &[Case] = &[
    Case {
        op: "dropout",
        name: "5003 elements",
        inputs: &[Input::Normal(&[5003])],
        run: |x| {
            x[0].dropout(
                0.3,
                &mut Generator {
                    seed: 5 << 40,
                    offset: 1 << 35,
                },
            )
        },
    },
    Case {
        op: "dropout",
        name: "another memory order",
        inputs: &[Input::Normal(&[3, 11, 13, 7])],
        run: |x| {
            x[0].permute(&[0, 3, 1, 2])?
                .dropout(0.6, &mut Generator::new(9))
        },
    },
    Case {
        op: "dropout",
        name: "a part, not aligned",
        inputs: &[Input::Normal(&[301])],
        run: |x| x[0].narrow(0, 1, 299)?.dropout(0.5, &mut Generator::new(9)),
    },
    Case {
        op: "dropout2d",
        name: "channels-last images",
        inputs: &[Input::Normal(&[3, 7, 11, 13])],
        run: |x| {
            x[0].permute(&[0, 3, 1, 2])?
                .dropout2d(0.4, &mut Generator::new(9))
        },
    },
    Case {
        op: "dropout2d",
        name: "channels-last images, channels in fours",
        inputs: &[Input::Normal(&[3, 7, 11, 12])],
        run: |x| {
            x[0].permute(&[0, 3, 1, 2])?
                .dropout2d(0.4, &mut Generator::new(9))
        },
    },
    Case {
        op: "drop_path",
        name: "17 samples of 204",
        inputs: &[Input::Normal(&[17, 204])],
        run: |x| x[0].drop_path(0.4, &mut Generator::new(9)),
    },
    Case {
        op: "drop_path",
        name: "a part, not aligned",
        inputs: &[Input::Normal(&[205])],
        run: |x| {
            let part = x[0].narrow(0, 1, 204)?.reshape([17, 12])?;
            part.drop_path(0.4, &mut Generator::new(9))
        },
    },
    Case {
        op: "drop_path",
        name: "17 samples of 203",
        inputs: &[Input::Normal(&[17, 203])],
        run: |x| x[0].drop_path(0.4, &mut Generator::new(9)),
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::check::devices;

    #[test]
    fn keeps_a_share_of_1_minus_p_and_the_mean() -> Result<()> {
        let mut rng = Generator::new(3);
        let x = Tensor::ones([100, 1000], DType::F32)?;
        let (a, b) = (x.dropout(0.3, &mut rng)?, x.dropout(0.3, &mut rng)?);
        let a = a.to_vec::<f32>()?;
        let kept = a.iter().filter(|&&x| x != 0.0).count() as f64 / a.len() as f64;
        assert!((kept - 0.7).abs() < 0.005, "{kept}");
        assert!(a.iter().all(|&x| x == 0.0 || (x - 1.0 / 0.7).abs() < 1e-6));
        // the stream moves on
        assert_ne!(a, b.to_vec::<f32>()?);
        assert_eq!(rng.offset, 2 * 25_000);
        Ok(())
    }

    #[test]
    fn backward_has_the_mask_of_forward() -> Result<()> {
        let x = Tensor::ones([1001], DType::F32)?.requires_grad();
        let y = x.dropout(0.5, &mut Generator::new(1))?;
        let grads = y.backward_from(&y.ones_like()?)?;
        assert_eq!(grads.get(&x).unwrap().to_vec::<f32>()?, y.to_vec::<f32>()?);
        Ok(())
    }

    #[test]
    fn devices_have_the_same_bits() -> Result<()> {
        let x = Tensor::randn([3, 5, 7, 2], &mut Generator::new(2), DType::F32)?;
        let mut seen = Vec::new();
        for device in devices()? {
            let x = x.to(device)?;
            let rng = Generator {
                seed: u64::MAX - 3,
                offset: u32::MAX as u64 - 8,
            };
            for x in [
                x.clone(),
                x.permute(&[3, 1, 0, 2])?.reshape(x.shape())?,
                x.channels_last()?,
            ] {
                seen.push(x.dropout(0.3, &mut rng.clone())?.to_vec::<f32>()?);
            }
        }
        // the mask goes by the row-major number, whatever the memory order
        assert_eq!(seen[0], seen[2]);
        assert!(seen.chunks(3).all(|s| s == &seen[..3]));
        Ok(())
    }

    #[test]
    fn whole_channels_and_samples_have_the_same_bits_on_both_devices() -> Result<()> {
        let x = Tensor::randn([5, 3, 4, 2], &mut Generator::new(2), DType::F32)?;
        type Drop = fn(&Tensor, f64, &mut Generator) -> Result<Tensor>;
        for (op, parts, numbers) in [
            (Tensor::dropout2d as Drop, 15, 4),
            (Tensor::drop_path as Drop, 5, 2),
        ] {
            // a number a part, as dropout of one element a part takes them
            let mut rng = Generator::new(6);
            let mask = Tensor::ones([parts], DType::F32)?.dropout(0.4, &mut rng)?;
            assert_eq!(rng.offset, numbers);
            let wanted = x.reshape([parts, 120 / parts])?.mul(&mask.unsqueeze(1)?)?;
            let wanted = wanted.to_vec::<f32>()?;
            for device in devices()? {
                let x = x.to(device)?;
                for x in [x.clone(), x.channels_last()?] {
                    let mut rng = Generator::new(6);
                    let leaf = x.requires_grad();
                    let y = op(&leaf, 0.4, &mut rng)?;
                    assert_eq!((y.to_vec::<f32>()?, rng.offset), (wanted.clone(), numbers));
                    let grads = y.backward_from(&x)?;
                    assert_eq!(grads.get(&leaf).unwrap().to_vec::<f32>()?, wanted);
                }
            }
        }
        Ok(())
    }

    /// A captured step reads its place in the stream from memory that a replay rewrites.
    #[test]
    #[cfg(feature = "emulator")]
    fn a_replay_takes_another_place_of_the_stream() -> Result<()> {
        let device = Device::cuda_emulated()?;
        let Device::Cuda(gpu) = device else {
            return Err(Error::argument("dropout", "no GPU"));
        };
        let x = Tensor::ones([103], (DType::F32, device))?.requires_grad();
        let both = || {
            let y = x.dropout(0.5, &mut Generator::new(4))?;
            let dx = y.backward_from(&y.ones_like()?)?.get(&x).cloned();
            Ok((
                y.detach(),
                dx.ok_or_else(|| Error::argument("dropout", "no gradient"))?,
            ))
        };
        // kernels are compiled at the first look, which a capture refuses
        both()?;
        let (graph, (y, dx)) = gpu.capture(both)?;
        assert_eq!(graph.scalars(), [4, 0]);
        for offset in [0, 26, 1 << 33] {
            graph.replay(&[4, offset])?;
            let mut rng = Generator { seed: 4, offset };
            let wanted = Tensor::ones([103], DType::F32)?.dropout(0.5, &mut rng)?;
            assert_eq!(y.to_vec::<f32>()?, wanted.to_vec::<f32>()?);
            assert_eq!(dx.to_vec::<f32>()?, wanted.to_vec::<f32>()?);
        }
        Ok(())
    }

    #[test]
    fn errors() -> Result<()> {
        let x = Tensor::ones([3], DType::F32)?;
        for p in [-0.1, 1.5, f64::NAN] {
            let e = x
                .dropout(p, &mut Generator::new(1))
                .unwrap_err()
                .to_string();
            assert_eq!(e, format!("dropout: p is {p}, expected 0 to 1"));
        }
        for p in [-0.1, 1.0, f64::NAN] {
            let e = x.drop_path(p, &mut Generator::new(1)).unwrap_err();
            let want = format!("drop_path: p is {p}, expected 0 <= p < 1");
            assert_eq!(e.to_string(), want);
            assert!(
                x.unsqueeze(0)?
                    .dropout2d(p, &mut Generator::new(1))
                    .is_err()
            );
        }
        let e = x.dropout2d(0.5, &mut Generator::new(1)).unwrap_err();
        assert_eq!(e.to_string(), "dropout2d: expected (n, c, ..) but got [3]");
        let e = x.select(0, 0)?.drop_path(0.5, &mut Generator::new(1));
        let want = "drop_path: expected (n, ..) but got []";
        assert_eq!(e.unwrap_err().to_string(), want);
        Ok(())
    }
}
