//! Dropout of elements, channels and samples, each with a random stream of its own.

use crate::error::{Error, Result};
use crate::nn::{Mode, Module, Visitor};
use crate::random::Generator;
use crate::tensor::Tensor;

/// `Name op;` for layers that drop in training only, what the op drops.
macro_rules! dropouts {
    ($($(#[$doc:meta])* $name:ident $op:ident;)*) => {$(
        $(#[$doc])*
        pub struct $name {
            p: f64,
            generator: Generator,
        }

        impl $name {
            /// With the probability of dropping, 0 <= p < 1; CS231n's keep ratio is 1 - p. Its
            /// stream is forked from `rng`.
            pub fn new(p: f64, rng: &mut Generator) -> Result<Self> {
                if !(0.0..1.0).contains(&p) {
                    return Err(Error::argument(
                        stringify!($name),
                        format!("p is {p}, expected 0 <= p < 1"),
                    ));
                }
                Ok($name {
                    p,
                    generator: rng.fork(),
                })
            }
        }

        impl Module for $name {
            fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
                match mode {
                    Mode::Train => x.$op(self.p, &mut self.generator),
                    Mode::Eval => Ok(x.clone()),
                }
            }

            fn visit(&mut self, v: &mut Visitor<'_>) {
                v.generator("generator", &mut self.generator);
            }

            fn describe(&self) -> String {
                // 1 - 0.7, as a configuration gives it, is not quite 0.3
                let p = (self.p * 1e6).round() / 1e6;
                format!("{}(p={p})", stringify!($name))
            }
        }
    )*};
}

dropouts! {
    /// In training, each element becomes 0 with probability p and the others grow by 1 / (1 - p)
    /// (Srivastava et al. 2014); in evaluation, nothing happens.
    Dropout dropout;
    /// [`Dropout`] of whole channels of a sample, for (n, c, ..) (Tompson et al. 2015).
    Dropout2d dropout2d;
    /// [`Dropout`] of whole samples: stochastic depth, where it ends a residual branch (Huang et
    /// al. 2016).
    DropPath drop_path;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::nn::{Slot, visit};

    #[test]
    fn drops_in_training_only_and_resumes() -> Result<()> {
        let mut d = Dropout::new(0.25, &mut Generator::new(3))?;
        let x = Tensor::ones([4000], DType::F32)?;
        assert_eq!(d.forward(&x, Mode::Eval)?.to_vec::<f32>()?, [1.0; 4000]);
        let mut start = None;
        visit(&mut d, |name, slot| {
            if let ("generator", Slot::Generator(g)) = (name, slot) {
                start = Some(*g);
            }
        });
        let first = d.forward(&x, Mode::Train)?.to_vec::<f32>()?;
        let kept = first.iter().filter(|v| **v != 0.0).count();
        assert!((2900..3100).contains(&kept), "{kept} of 4000 kept");
        assert!(
            first
                .iter()
                .all(|v| *v == 0.0 || (v - 4.0 / 3.0).abs() < 1e-6)
        );
        assert_ne!(d.forward(&x, Mode::Train)?.to_vec::<f32>()?, first);
        visit(&mut d, |_, slot| {
            if let (Slot::Generator(g), Some(start)) = (slot, start) {
                *g = start;
            }
        });
        assert_eq!(d.forward(&x, Mode::Train)?.to_vec::<f32>()?, first);
        Ok(())
    }

    #[test]
    fn description() -> Result<()> {
        let d = Dropout::new(1.0 - 0.7, &mut Generator::new(0))?;
        assert_eq!(d.describe(), "Dropout(p=0.3)");
        let d = DropPath::new(0.1, &mut Generator::new(0))?;
        assert_eq!(d.describe(), "DropPath(p=0.1)");
        Ok(())
    }

    #[test]
    fn refused_probabilities() {
        for p in [-0.1, 1.0, f64::NAN] {
            let rng = &mut Generator::new(0);
            let e = Dropout2d::new(p, rng).err().unwrap().to_string();
            assert_eq!(e, format!("Dropout2d: p is {p}, expected 0 <= p < 1"));
            assert!(Dropout::new(p, rng).is_err() && DropPath::new(p, rng).is_err());
        }
    }
}
