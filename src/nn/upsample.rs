//! Images of another size.

use crate::error::Result;
use crate::nn::{Mode, Module, Visitor};
use crate::ops::{Interpolation, Resize};
use crate::tensor::Tensor;

/// Nearest or bilinear interpolation: (n, c, h, w) to (n, c, h', w').
pub struct Upsample {
    to: Resize,
    mode: Interpolation,
}

impl Upsample {
    /// To a size, or by a factor.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor, nn::{Mode, Module, Upsample}};
    /// # use cotangent::ops::{Interpolation, Resize};
    /// let mut twice = Upsample::new(Resize::Scale([2.0, 2.0]), Interpolation::Nearest)?;
    /// let y = twice.forward(&Tensor::ones([1, 3, 4, 5], DType::F32)?, Mode::Eval)?;
    /// assert_eq!(y.shape()[..], [1, 3, 8, 10]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn new(to: Resize, mode: Interpolation) -> Result<Self> {
        to.check("Upsample")?;
        Ok(Upsample { to, mode })
    }
}

impl Module for Upsample {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        x.interpolate(self.to, self.mode)
    }

    fn visit(&mut self, _: &mut Visitor<'_>) {}

    fn describe(&self) -> String {
        let to = match self.to {
            Resize::Size(size) => format!("size={size:?}"),
            Resize::Scale(by) => format!("scale_factor={by:?}"),
        };
        let mode = match self.mode {
            Interpolation::Nearest => "nearest",
            Interpolation::Bilinear { .. } => "bilinear",
        };
        format!("Upsample({to}, mode='{mode}')")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn description_and_refused_settings() -> Result<()> {
        let bilinear = Interpolation::Bilinear {
            align_corners: true,
        };
        assert_eq!(
            Upsample::new(Resize::Size([3, 4]), bilinear)?.describe(),
            "Upsample(size=[3, 4], mode='bilinear')"
        );
        let refused = |to| Upsample::new(to, bilinear).err().unwrap().to_string();
        assert_eq!(
            refused(Resize::Scale([2.0, 0.0])),
            "Upsample: scale factor is [2.0, 0.0], expected finite numbers over 0"
        );
        assert_eq!(
            refused(Resize::Size([0, 4])),
            "Upsample: size is [0, 4], expected at least 1"
        );
        Ok(())
    }
}
