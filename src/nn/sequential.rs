//! Layers one after another.

use crate::error::{Error, Result};
use crate::nn::{Mode, Module, Summary, Visitor};
use crate::tensor::Tensor;

/// Named modules, each fed with the output of the one before.
///
/// ```
/// # use cotangent::{DType, Tensor, random::Generator};
/// # use cotangent::nn::{Activation, Linear, Mode, Module, Sequential};
/// let rng = &mut Generator::new(0);
/// let mut net = Sequential::new()
///     .push(Linear::new(4, 3, true, rng)?)
///     .push(Activation::Relu)
///     .named("classifier", Linear::new(3, 2, true, rng)?)?;
/// let y = net.forward(&Tensor::ones([5, 4], DType::F32)?, Mode::Eval)?;
/// assert_eq!(y.shape()[..], [5, 2]);
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Default)]
pub struct Sequential {
    children: Vec<(String, Box<dyn Module>)>,
}

impl Sequential {
    /// Nothing yet: the output is the input.
    pub fn new() -> Self {
        Self::default()
    }

    /// Add a module at the end, its name its number from 0.
    pub fn push(mut self, module: impl Module + 'static) -> Self {
        let name = self.children.len().to_string();
        self.children.push((name, Box::new(module)));
        self
    }

    /// Add a module at the end under a name: a new one, that starts with a letter and has no dot.
    pub fn named(mut self, name: &str, module: impl Module + 'static) -> Result<Self> {
        let taken = self.children.iter().any(|(n, _)| n == name);
        if taken || name.contains('.') || !name.starts_with(char::is_alphabetic) {
            return Err(Error::argument(
                "Sequential",
                format!("the name {name:?} is taken, has a dot or starts with no letter"),
            ));
        }
        self.children.push((name.into(), Box::new(module)));
        Ok(self)
    }

    /// [`Module::describe`] under another name, for models that are one sequence.
    pub(crate) fn describe_as(&self, name: &str) -> String {
        describe_children(name, self.children.iter().map(|(n, m)| (&**n, &**m)))
    }
}

/// [`Module::describe`] of a module that has only these inside.
pub(super) fn describe_children<'a>(
    name: &str,
    children: impl IntoIterator<Item = (&'a str, &'a dyn Module)>,
) -> String {
    let line = |(name, child): (&str, &dyn Module)| {
        let inside = child.describe().replace('\n', "\n  ");
        format!("\n  ({name}): {inside}")
    };
    let lines: String = children.into_iter().map(line).collect();
    let end = if lines.is_empty() { "" } else { "\n" };
    format!("{name}({lines}{end})")
}

impl Module for Sequential {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut x = x.clone();
        for (_, child) in &mut self.children {
            x = child.forward(&x, mode)?;
        }
        Ok(x)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        for (name, child) in &mut self.children {
            v.child(name, &mut **child);
        }
    }

    fn describe(&self) -> String {
        self.describe_as("Sequential")
    }

    fn summarize(&mut self, x: &Tensor, summary: &mut Summary) -> Result<Tensor> {
        let mut x = x.clone();
        for (name, child) in &mut self.children {
            x = summary.child(name, |s| child.summarize(&x, s))?;
        }
        Ok(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::nn::{Activation, Flatten, Linear, named_parameters};
    use crate::random::Generator;

    fn nested() -> Result<Sequential> {
        let rng = &mut Generator::new(0);
        let body = Sequential::new()
            .push(Linear::new(4, 3, true, rng)?)
            .push(Activation::Relu);
        Ok(Sequential::new()
            .push(Flatten)
            .named("body", body)?
            .push(Linear::new(3, 2, false, rng)?))
    }

    #[test]
    fn names_and_description_nest() -> Result<()> {
        let mut net = nested()?;
        let names: Vec<String> = named_parameters(&mut net)
            .into_iter()
            .map(|p| p.0)
            .collect();
        assert_eq!(names, ["body.0.weight", "body.0.bias", "2.weight"]);
        assert_eq!(
            net.describe(),
            "Sequential(\n  (0): Flatten()\n  (body): Sequential(\n    (0): Linear(4, 3)\n    (1): ReLU()\n  )\n  (2): Linear(3, 2, bias=False)\n)"
        );
        assert_eq!(Sequential::new().describe(), "Sequential()");
        Ok(())
    }

    #[test]
    fn summary_rows_nest() -> Result<()> {
        let x = Tensor::zeros([5, 1, 2, 2], DType::F32)?;
        let s = Summary::of(&mut nested()?, &x)?;
        let rows: Vec<(&str, usize)> = s
            .rows
            .iter()
            .map(|r| (r.name.as_str(), r.parameters))
            .collect();
        assert_eq!(rows, [("0", 0), ("body.0", 15), ("body.1", 0), ("2", 6)]);
        assert_eq!(s.rows[3].output[..], [5, 2]);
        Ok(())
    }

    #[test]
    fn refused_names() -> Result<()> {
        for name in ["a", "a.b", "1", ""] {
            let net = Sequential::new().named("a", Flatten)?;
            assert_eq!(
                net.named(name, Flatten).err().unwrap().to_string(),
                format!(
                    "Sequential: the name {name:?} is taken, has a dot or starts with no letter"
                )
            );
        }
        Ok(())
    }
}
