//! Pooling over windows of images, and flattening them.

use crate::error::Result;
use crate::nn::{Mode, Module, Visitor};
use crate::shape::Window;
use crate::tensor::Tensor;

/// Windows of this size side by side, PyTorch's default.
fn tiles(kernel: usize) -> Window {
    Window {
        stride: [kernel, kernel],
        ..Window::new([kernel, kernel])
    }
}

fn settings(w: Window) -> String {
    let padding = match w.padding {
        [0, 0] => String::new(),
        p => format!(", padding={p:?}"),
    };
    let dilation = match w.dilation {
        [1, 1] => String::new(),
        d => format!(", dilation={d:?}"),
    };
    format!(
        "kernel_size={:?}, stride={:?}{padding}{dilation}",
        w.kernel, w.stride
    )
}

/// The greatest element of each window of (n, c, h, w).
pub struct MaxPool2d {
    /// The window and its steps.
    pub window: Window,
}

impl MaxPool2d {
    /// Square windows of this size, side by side.
    pub fn new(kernel: usize) -> Self {
        MaxPool2d {
            window: tiles(kernel),
        }
    }
}

impl Module for MaxPool2d {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        x.max_pool2d(self.window)
    }

    fn visit(&mut self, _: &mut Visitor<'_>) {}

    fn describe(&self) -> String {
        format!("MaxPool2d({})", settings(self.window))
    }
}

/// The mean of each window of (n, c, h, w).
pub struct AvgPool2d {
    /// The window and its steps.
    pub window: Window,
    /// Whether the zeros at the sides count as elements of a window.
    pub count_include_pad: bool,
}

impl AvgPool2d {
    /// Square windows of this size, side by side.
    pub fn new(kernel: usize) -> Self {
        AvgPool2d {
            window: tiles(kernel),
            count_include_pad: true,
        }
    }
}

impl Module for AvgPool2d {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        x.avg_pool2d(self.window, self.count_include_pad)
    }

    fn visit(&mut self, _: &mut Visitor<'_>) {}

    fn describe(&self) -> String {
        format!("AvgPool2d({})", settings(self.window))
    }
}

/// (n, c, h, w) to (n, c h w).
pub struct Flatten;

impl Module for Flatten {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        x.flatten(1)
    }

    fn visit(&mut self, _: &mut Visitor<'_>) {}

    fn describe(&self) -> String {
        "Flatten()".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    #[test]
    fn pools_of_a_ramp() -> Result<()> {
        let x = Tensor::arange(0.0, 16.0, 1.0, DType::F32)?.reshape([1, 1, 4, 4])?;
        let mut max = MaxPool2d::new(2);
        let y = Flatten.forward(&max.forward(&x, Mode::Train)?, Mode::Train)?;
        assert_eq!(y.shape()[..], [1, 4]);
        assert_eq!(y.to_vec::<f32>()?, [5.0, 7.0, 13.0, 15.0]);
        let mut avg = AvgPool2d::new(2);
        assert_eq!(
            avg.forward(&x, Mode::Train)?.to_vec::<f32>()?,
            [2.5, 4.5, 10.5, 12.5]
        );
        assert_eq!(
            max.describe(),
            "MaxPool2d(kernel_size=[2, 2], stride=[2, 2])"
        );
        Ok(())
    }
}
