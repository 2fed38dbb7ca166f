//! Layers one after another.

use crate::error::{Error, Result};
use crate::nn::{Checkpointed, Mode, Module, Summary, Visitor};
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
    /// Parts that come before the children, each computed again in backward.
    parts: Vec<Checkpointed<Sequential>>,
}

impl Sequential {
    /// Nothing yet: the output is the input.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many modules there are.
    fn len(&self) -> usize {
        let parts = self.parts.iter().map(|part| part.with(|p| p.len()));
        parts.sum::<usize>() + self.children.len()
    }

    /// Cut into so many parts of equal length, of which all but the last are [`Checkpointed`]: that
    /// one also has what is left over, and what its ops keep is needed at once (PyTorch's
    /// `checkpoint_sequential`). 1 changes nothing; 0 and more parts than modules are an
    /// [`Error::Argument`]. Modules that are added later belong to the last part.
    ///
    /// ```
    /// # use cotangent::{random::Generator, nn::{Activation, Linear, Sequential}};
    /// let rng = &mut Generator::new(0);
    /// let net = Sequential::new()
    ///     .push(Linear::new(4, 3, true, rng)?)
    ///     .push(Activation::Tanh)
    ///     .push(Linear::new(3, 2, true, rng)?);
    /// assert!(net.checkpointed(2).is_ok());
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn checkpointed(mut self, segments: usize) -> Result<Self> {
        let free = self.children.len();
        if segments == 0 || segments > free {
            let why = format!("{segments} segments of {free} modules; expected 1 to {free}");
            return Err(Error::argument("Sequential", why));
        }
        let last = self.children.split_off((segments - 1) * (free / segments));
        let mut rest = std::mem::replace(&mut self.children, last);
        while !rest.is_empty() {
            let after = rest.split_off(free / segments);
            let part = Sequential {
                children: std::mem::replace(&mut rest, after),
                parts: Vec::new(),
            };
            self.parts.push(Checkpointed::new(part));
        }
        Ok(self)
    }

    /// Add a module at the end, its name its number from 0.
    pub fn push(mut self, module: impl Module + 'static) -> Self {
        let name = self.len().to_string();
        self.children.push((name, Box::new(module)));
        self
    }

    /// Add a module at the end under a name: a new one, that starts with a letter and has no dot.
    pub fn named(mut self, name: &str, module: impl Module + 'static) -> Result<Self> {
        if self.has(name) || name.contains('.') || !name.starts_with(char::is_alphabetic) {
            return Err(Error::argument(
                "Sequential",
                format!("the name {name:?} is taken, has a dot or starts with no letter"),
            ));
        }
        self.children.push((name.into(), Box::new(module)));
        Ok(self)
    }

    fn has(&self, name: &str) -> bool {
        self.parts.iter().any(|part| part.with(|p| p.has(name)))
            || self.children.iter().any(|(n, _)| n == name)
    }

    /// [`Module::describe`] under another name, for models that are one sequence.
    pub(crate) fn describe_as(&self, name: &str) -> String {
        let end = if self.len() == 0 { "" } else { "\n" };
        format!("{name}({}{end})", self.lines())
    }

    /// A line for each module, behind a line break.
    fn lines(&self) -> String {
        let parts = self.parts.iter().map(|part| part.with(|p| p.lines()));
        let children = self.children.iter();
        let children = children.map(|(name, child)| line(name, &child.describe()));
        parts.chain(children).collect()
    }
}

fn line(name: &str, child: &str) -> String {
    format!("\n  ({name}): {}", child.replace('\n', "\n  "))
}

/// A container's description from its children's, as PyTorch prints it.
pub(crate) fn nested(name: &str, children: &[(&str, String)]) -> String {
    let lines: String = children.iter().map(|(n, child)| line(n, child)).collect();
    format!("{name}({lines}\n)")
}

impl Module for Sequential {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut x = x.clone();
        for part in &mut self.parts {
            x = part.forward(&x, mode)?;
        }
        for (_, child) in &mut self.children {
            x = child.forward(&x, mode)?;
        }
        Ok(x)
    }

    fn visit(&mut self, v: &mut Visitor<'_>) {
        self.parts.iter_mut().for_each(|part| part.visit(v));
        for (name, child) in &mut self.children {
            v.child(name, &mut **child);
        }
    }

    fn describe(&self) -> String {
        self.describe_as("Sequential")
    }

    fn summarize(&mut self, x: &Tensor, summary: &mut Summary) -> Result<Tensor> {
        let mut x = x.clone();
        for part in &mut self.parts {
            x = part.summarize(&x, summary)?;
        }
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
    fn parts_that_are_computed_again_look_like_the_bare_sequence() -> Result<()> {
        let (mut bare, net) = (nested()?, nested()?.checkpointed(2)?);
        // the flatten alone, then the rest, whose numbers go on
        let mut net = net.push(Activation::Relu);
        bare = bare.push(Activation::Relu);
        assert_eq!((net.parts.len(), net.children.len()), (1, 3));
        assert_eq!(net.describe(), bare.describe());
        let names = |net: &mut Sequential| {
            let all = named_parameters(net).into_iter();
            all.map(|p| p.0).collect::<Vec<_>>()
        };
        assert_eq!(names(&mut net), names(&mut bare));
        let x = Tensor::zeros([5, 1, 2, 2], DType::F32)?;
        let rows = |net| Ok(format!("{:?}", Summary::of(net, &x)?.rows));
        assert_eq!(rows(&mut net)?, rows(&mut bare)?);
        assert!(net.named("body", Flatten).is_err());
        for segments in [0, 4] {
            let e = nested()?.checkpointed(segments).err().unwrap().to_string();
            let why = format!("Sequential: {segments} segments of 3 modules; expected 1 to 3");
            assert_eq!(e, why);
        }
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
