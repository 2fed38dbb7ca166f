//! Pooling over windows of images or over whole ones, and flattening them.

use crate::error::{Error, Result};
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
    /// Over any windows.
    pub fn new(window: Window) -> Self {
        MaxPool2d { window }
    }

    /// Over square windows of this size, side by side.
    pub fn square(kernel: usize) -> Self {
        Self::new(tiles(kernel))
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
    /// Over any windows; the zeros at the sides count, as in PyTorch's default.
    pub fn new(window: Window) -> Self {
        AvgPool2d {
            window,
            count_include_pad: true,
        }
    }

    /// Over square windows of this size, side by side.
    pub fn square(kernel: usize) -> Self {
        Self::new(tiles(kernel))
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

/// The means of so many windows, which cover images of any size evenly: (n, c, h, w) to
/// (n, c, height, width).
pub struct AdaptiveAvgPool2d {
    output_size: [usize; 2],
}

impl AdaptiveAvgPool2d {
    /// To images of this height and width.
    pub fn new(output_size: [usize; 2]) -> Result<Self> {
        if output_size.contains(&0) {
            let why = format!("output_size is {output_size:?}, expected at least 1");
            return Err(Error::argument("AdaptiveAvgPool2d", why));
        }
        Ok(AdaptiveAvgPool2d { output_size })
    }
}

impl Module for AdaptiveAvgPool2d {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        x.adaptive_avg_pool2d(self.output_size)
    }

    fn visit(&mut self, _: &mut Visitor<'_>) {}

    fn describe(&self) -> String {
        format!("AdaptiveAvgPool2d(output_size={:?})", self.output_size)
    }
}

/// The mean of each whole image: (n, c, h, w) to (n, c), as a linear layer takes it. ResNet ends so;
/// [`AdaptiveAvgPool2d`] to `[1, 1]` keeps the axes of size 1.
pub struct GlobalAvgPool2d;

impl Module for GlobalAvgPool2d {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        x.adaptive_avg_pool2d([1, 1])?.flatten(1)
    }

    fn visit(&mut self, _: &mut Visitor<'_>) {}

    fn describe(&self) -> String {
        "GlobalAvgPool2d()".into()
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
    fn means_of_whole_images_are_rows() -> Result<()> {
        let x = Tensor::arange(0.0, 12.0, 1.0, DType::F32)?.reshape([1, 3, 2, 2])?;
        let y = GlobalAvgPool2d.forward(&x, Mode::Train)?;
        assert_eq!(y.shape()[..], [1, 3]);
        assert_eq!(y.to_vec::<f32>()?, [1.5, 5.5, 9.5]);
        let mut pool = AdaptiveAvgPool2d::new([1, 2])?;
        assert_eq!(pool.forward(&x, Mode::Train)?.shape()[..], [1, 3, 1, 2]);
        assert_eq!(pool.describe(), "AdaptiveAvgPool2d(output_size=[1, 2])");
        assert_eq!(
            AdaptiveAvgPool2d::new([0, 2]).err().unwrap().to_string(),
            "AdaptiveAvgPool2d: output_size is [0, 2], expected at least 1"
        );
        Ok(())
    }

    #[test]
    fn pools_of_a_ramp() -> Result<()> {
        let x = Tensor::arange(0.0, 16.0, 1.0, DType::F32)?.reshape([1, 1, 4, 4])?;
        let mut max = MaxPool2d::square(2);
        let y = Flatten.forward(&max.forward(&x, Mode::Train)?, Mode::Train)?;
        assert_eq!(y.shape()[..], [1, 4]);
        assert_eq!(y.to_vec::<f32>()?, [5.0, 7.0, 13.0, 15.0]);
        let mut avg = AvgPool2d::square(2);
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
