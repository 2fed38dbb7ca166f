//! A table of a network's layers: output shapes, parameter counts, multiply-adds; and the outputs.

use crate::error::Result;
use crate::nn::{Mode, Module};
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
    /// The multiply-adds of its convolution or linear map, for one example of the input.
    pub multiply_adds: usize,
}

/// The layers in the order in which they run.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    path: Vec<String>,
    /// A row a layer.
    pub rows: Vec<Row>,
    /// The mode and, for each row, what the layer gave; where they are asked for.
    trace: Option<(Mode, Vec<Tensor>)>,
}

impl Summary {
    /// The layers of `m` on an input of this shape (zeros, evaluation mode).
    pub fn of(m: &mut (impl Module + ?Sized), input: &Tensor) -> Result<Self> {
        let _quiet = crate::autograd::no_grad();
        let mut s = Summary::default();
        m.summarize(input, &mut s)?;
        Ok(s)
    }

    /// Run `m` in `mode` and keep what each layer gives: the network's output, and the table with
    /// the layers' [`outputs`](Self::outputs). Buffers and random streams move as in any forward.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor, random::Generator};
    /// # use cotangent::nn::{Activation, Linear, Mode, Sequential, Summary};
    /// let linear = Linear::new(3, 2, true, &mut Generator::new(0))?;
    /// let mut net = Sequential::new().push(linear).push(Activation::Relu);
    /// let x = Tensor::ones([4, 3], DType::F32)?;
    /// let (y, summary) = Summary::traced(&mut net, &x, Mode::Train)?;
    /// let [before, after] = summary.outputs() else { panic!() };
    /// assert_eq!(after.to_vec::<f32>()?, y.to_vec::<f32>()?);
    /// assert!(before.is_tracked() && summary.rows[0].name == "0");
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn traced(
        m: &mut (impl Module + ?Sized),
        input: &Tensor,
        mode: Mode,
    ) -> Result<(Tensor, Self)> {
        let mut s = Summary {
            trace: Some((mode, Vec::new())),
            ..Summary::default()
        };
        let y = m.summarize(input, &mut s)?;
        Ok((y, s))
    }

    /// The mode that the layers run in.
    pub fn mode(&self) -> Mode {
        self.trace.as_ref().map_or(Mode::Eval, |(mode, _)| *mode)
    }

    /// What each row's layer gave, places in the graph and all; nothing but from
    /// [`traced`](Self::traced).
    pub fn outputs(&self) -> &[Tensor] {
        self.trace.as_ref().map_or(&[], |(_, outputs)| outputs)
    }

    /// Add a layer's row under the current name.
    pub fn row(&mut self, layer: String, output: &Tensor, parameters: usize, multiply_adds: usize) {
        self.rows.push(Row {
            name: self.path.join("."),
            layer,
            output: *output.shape(),
            parameters,
            multiply_adds,
        });
        if let Some((_, outputs)) = &mut self.trace {
            outputs.push(output.clone());
        }
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

    /// The multiply-adds of all convolutions and linear layers, for one example of the input.
    pub fn multiply_adds(&self) -> usize {
        self.rows.iter().map(|r| r.multiply_adds).sum()
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
            "{:name$}  {:layer$}  {:output$}  {:>12}  {:>14}",
            "name", "layer", "output", "parameters", "multiply-adds"
        )?;
        for r in &self.rows {
            writeln!(
                f,
                "{:name$}  {:layer$}  {:output$}  {:>12}  {:>14}",
                r.name,
                r.layer,
                r.output.to_string(),
                thousands(r.parameters),
                thousands(r.multiply_adds)
            )?;
        }
        write!(
            f,
            "{} parameters, {:.2} MB in f32, {:.2} M multiply-adds",
            thousands(self.parameters()),
            self.parameters() as f64 * 4e-6,
            self.multiply_adds() as f64 * 1e-6
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
    use super::*;
    use crate::dtype::DType;
    use crate::nn::{
        Activation, BatchNorm2d, Conv2d, Conv2dConfig, ConvNormAct, ConvTranspose2d,
        ConvTranspose2dConfig, Flatten, Linear, LinearNormAct, Norm, Sequential,
    };
    use crate::random::Generator;

    #[test]
    fn multiply_adds_of_each_kind_of_layer() -> Result<()> {
        let rng = &mut Generator::new(0);
        let relu = Activation::Relu;
        let groups = Conv2dConfig {
            groups: 2,
            stride: [2, 1],
            ..Conv2dConfig::same(3)
        };
        let twice = ConvTranspose2dConfig {
            stride: [2, 2],
            ..ConvTranspose2dConfig::new([2, 2])
        };
        let same = Conv2dConfig::same(1);
        let mut net = Sequential::new()
            .push(Conv2d::new(2, 4, groups, rng)?)
            .push(BatchNorm2d::new(4)?)
            .push(ConvTranspose2d::new(4, 3, twice, rng)?)
            .push(ConvNormAct::new(3, 2, same, Norm::Batch, relu, rng)?)
            .push(Linear::new(10, 3, false, rng)?)
            .push(Flatten)
            .push(LinearNormAct::new(24, 5, Norm::None, relu, rng)?);
        let want = [
            // outputs 4 of 2x5 pixels from 1 channel each
            2 * 5 * 4 * 9,
            0,
            // every pixel in, 2x5 of 4 channels, goes to 3 channels by 4 taps
            2 * 5 * 4 * 3 * 4,
            4 * 10 * 3 * 2,
            // a row of 10 for each of 2 channels and 4 lines
            2 * 4 * 10 * 3,
            0,
            24 * 5,
        ];
        // for one example, whatever the batch
        for n in [1, 3] {
            let x = Tensor::zeros([n, 2, 4, 5], DType::F32)?;
            let s = Summary::of(&mut net, &x)?;
            let got: Vec<usize> = s.rows.iter().map(|r| r.multiply_adds).collect();
            assert_eq!(got, want);
            assert_eq!(s.multiply_adds(), want.iter().sum::<usize>());
        }
        Ok(())
    }

    #[test]
    fn thousands() {
        assert_eq!(
            [0, 999, 1000, 1234567].map(super::thousands),
            ["0", "999", "1,000", "1,234,567"]
        );
    }
}
