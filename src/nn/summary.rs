//! A table of a network's layers, their output shapes and parameter counts.

use crate::error::Result;
use crate::nn::Module;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The dotted name within the network.
    pub name: String,
    /// As PyTorch prints the layer.
    pub layer: String,
    /// The output's shape.
    pub output: Shape,
    /// The number of trained elements.
    pub parameters: usize,
}

/// The layers in the order in which they run.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    path: Vec<String>,
    /// A row a layer.
    pub rows: Vec<Row>,
}

impl Summary {
    /// The layers of `m` on an input of this shape (zeros, evaluation mode).
    pub fn of(m: &mut (impl Module + ?Sized), input: &Tensor) -> Result<Self> {
        let _quiet = crate::autograd::no_grad();
        let mut s = Summary::default();
        m.summarize(input, &mut s)?;
        Ok(s)
    }

    /// Add a layer's row under the current name.
    pub fn row(&mut self, layer: String, output: Shape, parameters: usize) {
        self.rows.push(Row {
            name: self.path.join("."),
            layer,
            output,
            parameters,
        });
    }

    /// Run `inside` with `name` added to the current name.
    pub fn child<T>(&mut self, name: &str, inside: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(name.into());
        let r = inside(self);
        self.path.pop();
        r
    }

    /// The number of trained elements of all layers.
    pub fn parameters(&self) -> usize {
        self.rows.iter().map(|r| r.parameters).sum()
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |get: fn(&Row) -> usize, least: usize| {
            self.rows.iter().map(get).max().unwrap_or(0).max(least)
        };
        let name = width(|r| r.name.len(), 4);
        let layer = width(|r| r.layer.len(), 5);
        let output = width(|r| r.output.to_string().len(), 6);
        writeln!(
            f,
            "{:name$}  {:layer$}  {:output$}  {:>12}",
            "name", "layer", "output", "parameters"
        )?;
        for r in &self.rows {
            writeln!(
                f,
                "{:name$}  {:layer$}  {:output$}  {:>12}",
                r.name,
                r.layer,
                r.output.to_string(),
                thousands(r.parameters)
            )?;
        }
        write!(
            f,
            "{} parameters, {:.2} MB in f32",
            thousands(self.parameters()),
            self.parameters() as f64 * 4e-6
        )
    }
}

/// 1234567 as 1,234,567.
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|g| std::str::from_utf8(g).unwrap_or(""))
        .collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    #[test]
    fn thousands() {
        assert_eq!(
            [0, 999, 1000, 1234567].map(super::thousands),
            ["0", "999", "1,000", "1,234,567"]
        );
    }
}
