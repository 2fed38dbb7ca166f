//! Dropout: random zeros in training.

use rayon::prelude::*;

use crate::autograd::{Op, apply};
use crate::cpu::strided::PARALLEL;
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::ops::check::{Case, Input};
use crate::random::{Generator, block, unit};
use crate::shape::Layout;
use crate::tensor::Tensor;
use crate::with_real;

/// y = x m / (1 - p), m = 0 with probability p, else 1; dx = dy m / (1 - p) (Srivastava et al.
/// 2014, inverted). Element i in row-major order takes number i of the stream, so the mask is the
/// same whatever the memory order or the device, and backward makes it again instead of keeping it.
struct Dropout {
    p: f64,
    seed: u64,
    offset: u64,
}

impl Dropout {
    fn masked(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.packed()?;
        with_real!("dropout", x.dtype(), T => {
            let v = x.dense_slice::<T>("dropout")?;
            let layout = Layout::contiguous(*x.shape());
            Tensor::build::<T>(layout, x.device(), |out| self.fill(v, out))
        })
    }

    fn fill<T: Real>(&self, x: &[T], out: &mut [T]) {
        // p = 1 keeps nothing, and 0 infinity would be NaN
        let scale = if self.p < 1.0 {
            T::of(1.0 / (1.0 - self.p))
        } else {
            T::ZERO
        };
        let p = self.p as f32;
        out.par_chunks_mut(PARALLEL)
            .zip(x.par_chunks(PARALLEL))
            .enumerate()
            .for_each(|(c, (out, x))| {
                let first = self.offset + (c * PARALLEL / 4) as u64;
                for (q, (out, x)) in out.chunks_mut(4).zip(x.chunks(4)).enumerate() {
                    let random = block(self.seed, first + q as u64);
                    for ((o, &x), r) in out.iter_mut().zip(x).zip(random) {
                        *o = if unit(r) >= p { x * scale } else { T::ZERO };
                    }
                }
            });
    }
}

impl Op<1> for Dropout {
    const NAME: &'static str = "dropout";
    type Saved = ();

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, ())> {
        Ok((self.masked(x)?, ()))
    }

    fn backward(&self, _: (), dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(self.masked(&dy)?)])
    }
}

impl Tensor {
    /// Each element 0 with probability `p`, else divided by 1 - p, so that the mean stays. Takes
    /// as many numbers from `rng` as there are elements.
    ///
    /// ```
    /// # use cotangent::{random::Generator, DType, Tensor};
    /// let y = Tensor::ones([1000], DType::F32)?.dropout(0.5, &mut Generator::new(0))?;
    /// assert!(y.to_vec::<f32>()?.iter().all(|&y| y == 0.0 || y == 2.0));
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn dropout(&self, p: f64, rng: &mut Generator) -> Result<Tensor> {
        if !(0.0..=1.0).contains(&p) {
            return Err(Error::argument(
                "dropout",
                format!("p is {p}, expected a probability from 0 to 1"),
            ));
        }
        let offset = rng.take(self.numel().div_ceil(4) as u64);
        apply(
            Dropout {
                p,
                seed: rng.seed,
                offset,
            },
            [self],
        )
    }
}

/// Every probability, the mask the same at each run.
pub const CASES: &[Case] = &[
    Case {
        op: "dropout",
        name: "p 0.5",
        inputs: &[Input::Normal(&[3, 7])],
        run: |x| x[0].dropout(0.5, &mut Generator::new(1)),
    },
    Case {
        op: "dropout",
        name: "images, p 0.2",
        inputs: &[Input::Normal(&[2, 3, 2, 3])],
        run: |x| x[0].dropout(0.2, &mut Generator::new(2)),
    },
    Case {
        op: "dropout",
        name: "p 0",
        inputs: &[Input::Normal(&[5])],
        run: |x| x[0].dropout(0.0, &mut Generator::new(3)),
    },
    Case {
        op: "dropout",
        name: "p 1",
        inputs: &[Input::Normal(&[5])],
        run: |x| x[0].dropout(1.0, &mut Generator::new(4)),
    },
    Case {
        op: "dropout",
        name: "nothing",
        inputs: &[Input::Normal(&[0])],
        run: |x| x[0].dropout(0.5, &mut Generator::new(5)),
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn keeps_its_share_and_its_mean() -> Result<()> {
        let mut rng = Generator::new(9);
        let x = Tensor::ones([100_000], DType::F32)?.requires_grad();
        let y = x.dropout(0.3, &mut rng)?;
        let kept = y.to_vec::<f32>()?;
        let share = kept.iter().filter(|&&y| y != 0.0).count() as f64 / 1e5;
        assert!((share - 0.7).abs() < 0.005, "{share}");
        assert!((y.mean_all()?.item()? - 1.0).abs() < 0.01);
        // the gradient passes where the element passed
        assert_eq!(
            y.sum_all()?.backward()?.get(&x).unwrap().to_vec::<f32>()?,
            kept
        );
        // the next call draws anew
        assert_ne!(x.dropout(0.3, &mut rng)?.to_vec::<f32>()?, kept);
        assert!(x.dropout(-0.1, &mut rng).is_err() && x.dropout(f64::NAN, &mut rng).is_err());
        Ok(())
    }
}
