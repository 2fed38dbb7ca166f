//! Branches beside each other, their outputs joined.

use crate::error::{Error, Result};
use crate::nn::{Mode, Module, Summary, Visitor, nested};
use crate::tensor::Tensor;

/// Several modules on one input, their outputs joined along the channels (n, c, ..): the block of
/// Inception (Szegedy et al. 2015), and with an [`Identity`](crate::nn::Identity) first that of
/// DenseNet (Huang et al. 2017).
///
/// ```
/// # use cotangent::{DType, Tensor, random::Generator};
/// # use cotangent::nn::{Concat, Conv2d, Conv2dConfig, Identity, Mode, Module};
/// let rng = &mut Generator::new(0);
/// let mut block = Concat::new()
///     .branch("skip", Identity)?
///     .branch("conv", Conv2d::new(3, 5, Conv2dConfig::same(3), rng)?)?;
/// let y = block.forward(&Tensor::ones([2, 3, 4, 4], DType::F32)?, Mode::Eval)?;
/// assert_eq!(y.shape()[..], [2, 8, 4, 4]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Default)]
pub struct Concat {
    branches: Vec<(String, Box<dyn Module>)>,
}

impl Concat {
    /// Without a branch, which no input can pass.
    pub fn new() -> Self {
        Self::default()
    }

    /// Add a branch, its channels behind those of the others. Its name must be a new one without a
    /// dot.
    pub fn branch(mut self, name: &str, module: impl Module + 'static) -> Result<Self> {
        let taken = self.branches.iter().any(|(n, _)| n == name);
        if taken || name.is_empty() || name.contains('.') {
            return Err(Error::argument(
                "Concat",
                format!("the name {name:?} is taken, empty or has a dot"),
            ));
        }
        self.branches.push((name.into(), Box::new(module)));
        Ok(self)
    }
}

/// The outputs along the channels; `cat` says what does not fit.
fn joined(outputs: &[Tensor]) -> Result<Tensor> {
    Tensor::cat(&outputs.iter().collect::<Vec<_>>(), 1)
}

impl Module for Concat {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let branches = self.branches.iter_mut();
        let outputs = branches.map(|(_, branch)| branch.forward(x, mode));
        joined(&outputs.collect::<Result<Vec<_>>>()?)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        for (name, branch) in &mut self.branches {
            v.child(name, &mut **branch);
        }
    }

    fn describe(&self) -> String {
        let branches = self.branches.iter();
        let branches = branches.map(|(name, branch)| (name.as_str(), branch.describe()));
        nested("Concat", &branches.collect::<Vec<_>>())
    }

    fn summarize(&mut self, x: &Tensor, summary: &mut Summary) -> Result<Tensor> {
        let branches = self.branches.iter_mut();
        let outputs =
            branches.map(|(name, branch)| summary.child(name, |s| branch.summarize(x, s)));
        joined(&outputs.collect::<Result<Vec<_>>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::nn::{
        Conv2d, Conv2dConfig, Identity, Linear, MaxPool2d, gradcheck, named_parameters, to_dtype,
    };
    use crate::random::Generator;

    fn block() -> Result<Concat> {
        let rng = &mut Generator::new(0);
        Concat::new()
            .branch("skip", Identity)?
            .branch("a", Conv2d::new(2, 3, Conv2dConfig::same(3), rng)?)?
            .branch("b", Conv2d::new(2, 1, Conv2dConfig::same(1), rng)?)
    }

    #[test]
    fn channels_lie_in_the_branches_order() -> Result<()> {
        let mut block = block()?;
        let x = Tensor::randn([2, 2, 3, 4], &mut Generator::new(1), DType::F32)?;
        let y = block.forward(&x, Mode::Train)?;
        assert_eq!(y.shape()[..], [2, 6, 3, 4]);
        assert_eq!(y.narrow(1, 0, 2)?.to_vec::<f32>()?, x.to_vec::<f32>()?);
        let names: Vec<String> = named_parameters(&mut block)
            .into_iter()
            .map(|p| p.0)
            .collect();
        assert_eq!(names, ["a.weight", "a.bias", "b.weight", "b.bias"]);
        let s = Summary::of(&mut block, &x)?;
        let rows: Vec<(&str, usize)> = s
            .rows
            .iter()
            .map(|r| (r.name.as_str(), r.output[1]))
            .collect();
        assert_eq!(rows, [("skip", 2), ("a", 3), ("b", 1)]);
        assert!(
            block
                .describe()
                .starts_with("Concat(\n  (skip): Identity()\n")
        );
        to_dtype(&mut block, DType::F64)?;
        let report = gradcheck(&mut block, &x.cast(DType::F64)?, Mode::Train, 8)?;
        assert!(report.passed(), "{report}");
        Ok(())
    }

    #[test]
    fn refused_names_and_branches_of_other_sizes() -> Result<()> {
        for name in ["a", "a.b", ""] {
            let e = block()?.branch(name, Identity).err().unwrap();
            let want = format!("Concat: the name {name:?} is taken, empty or has a dot");
            assert_eq!(e.to_string(), want);
        }
        let x = Tensor::zeros([1, 2, 4, 4], DType::F32)?;
        let mut halved = block()?.branch("pool", MaxPool2d::square(2))?;
        assert!(halved.forward(&x, Mode::Eval).is_err());
        assert!(Concat::new().forward(&x, Mode::Eval).is_err());
        let linear = Linear::new(4, 4, true, &mut Generator::new(0))?;
        assert!(Concat::new().branch("linear", linear).is_ok());
        Ok(())
    }
}
