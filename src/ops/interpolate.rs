//! Images of another size, by nearest or bilinear interpolation.

use crate::autograd::{Op, apply};
use crate::cpu::gather::{Axis, gather_by};
use crate::cuda::{self, Arg, Gpu, Kernels, columns, kernels};
use crate::device::Device;
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::ops::Formula;
use crate::ops::check::{Case, Input};
use crate::shape::{Layout, Shape};
use crate::tensor::Tensor;
use crate::with_real;

const NAME: &str = "interpolate";

/// How large images become; pairs are (height, width).
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Resize {
    /// So many pixels.
    Size([usize; 2]),
    /// So many times the input's pixels, rounded down: PyTorch's `scale_factor`, which then also
    /// tells how far apart the outputs' places lie.
    Scale([f64; 2]),
}

impl Resize {
    /// An error of `op` for what no image has.
    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        let why = match self {
            Resize::Size(size) if size.contains(&0) => {
                format!("size is {size:?}, expected at least 1")
            }
            Resize::Scale(by) if !by.iter().all(|s| *s > 0.0 && s.is_finite()) => {
                format!("scale factor is {by:?}, expected finite numbers over 0")
            }
            _ => return Ok(()),
        };
        Err(Error::argument(op, why))
    }
}

/// Which inputs an output is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interpolation {
    /// The one at its place, rounded down: PyTorch's `nearest`.
    Nearest,
    /// The two by two around its place, weighted by their nearness.
    Bilinear {
        /// Whether the corner pixels' centers lie on each other (PyTorch's `align_corners`), not the
        /// images' corners.
        align_corners: bool,
    },
}

/// Along each axis output i of H' is made at a place p of the H inputs, with r = H / H', or 1 / scale
/// factor where one is given. Nearest: y = x\[floor(i r)\]. Bilinear: p = max((i + 1/2) r - 1/2, 0), or
/// with aligned corners p = i (H - 1) / (H' - 1), and
/// y = (1 - p + floor(p)) x\[floor(p)\] + (p - floor(p)) x\[floor(p) + 1\], no further than the last
/// input (PyTorch's `interpolate`). dx = the weighted sum of dy over the outputs that read it.
struct Interpolate {
    mode: Interpolation,
    /// (N, C, H, W)
    input: Shape,
    /// (N, C, H', W')
    output: Shape,
    /// Inputs from one output's place to the next.
    steps: [f64; 2],
}

impl Interpolate {
    fn new(x: &Tensor, to: Resize, mode: Interpolation) -> Result<Self> {
        let [n, c, h, w] = x.images(NAME)?;
        to.check(NAME)?;
        let (mut output, mut steps) = ([0; 2], [0.0; 2]);
        for (i, size) in [h, w].into_iter().enumerate() {
            let (out, step) = match to {
                Resize::Size(to) => (to[i], size as f64 / to[i] as f64),
                // too large numbers become the largest
                Resize::Scale(by) => ((size as f64 * by[i]).floor() as usize, 1.0 / by[i]),
            };
            if out == 0 {
                let why = format!("{to:?} leaves nothing of an input {:?}", [h, w]);
                return Err(Error::argument(NAME, why));
            }
            if size.max(out) > i32::MAX as usize {
                let why = format!("{to:?} of an input {:?} is too large", [h, w]);
                return Err(Error::argument(NAME, why));
            }
            output[i] = out;
            // PyTorch copies, or doubles, whatever the scale factor
            steps[i] = match mode {
                _ if out == size => 1.0,
                Interpolation::Nearest if out == 2 * size => 0.5,
                Interpolation::Bilinear { align_corners } if align_corners => {
                    (size - 1) as f64 / (out - 1).max(1) as f64
                }
                _ => step,
            };
        }
        let [oh, ow] = output;
        Ok(Interpolate {
            mode,
            input: *x.shape(),
            output: Shape::new(&[n, c, oh, ow])?,
            steps,
        })
    }

    /// Which rows and which columns each output is made of, and their weights.
    fn axes<T: Real>(&self) -> [Axis<T>; 2] {
        [0, 1].map(|i| {
            let (size, out, step) = (self.input[2 + i], self.output[2 + i], self.steps[i]);
            let used = match self.mode {
                Interpolation::Nearest => 1,
                Interpolation::Bilinear { .. } => 2,
            };
            Axis::new(out, |at| {
                taps(self.mode, at, step, size).into_iter().take(used)
            })
        })
    }
}

/// The inputs, of so many, at output `at`'s place, and their weights; the nearest is the first.
/// Places are computed in the elements' type and the nearest's in f32, where rounding decides between
/// neighbours: PyTorch's, but for f64 images in row-major order on its CPU.
fn taps<T: Real>(mode: Interpolation, at: usize, step: f64, size: usize) -> [(usize, T); 2] {
    let half = match mode {
        Interpolation::Nearest => {
            let first = (at as f32 * step as f32) as usize;
            return [(first.min(size - 1), T::ONE); 2];
        }
        Interpolation::Bilinear { align_corners } => T::of(if align_corners { 0.0 } else { 0.5 }),
    };
    let place = (T::of(at as f64) + half) * T::of(step) - half;
    let first = (place.to_f64().max(0.0) as usize).min(size - 1);
    let beyond = T::of((place.to_f64() - first as f64).clamp(0.0, 1.0));
    [
        (first, T::ONE - beyond),
        ((first + 1).min(size - 1), beyond),
    ]
}

impl Op<1> for Interpolate {
    const NAME: &'static str = NAME;
    const HALF_ON_CUDA: bool = true;
    type Saved = ();

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, ())> {
        let x = x.channels_last()?;
        let (out, layout) = (self.output, Layout::channels_last(self.output));
        if let Device::Cuda(gpu) = x.device() {
            let kernels = match self.mode {
                Interpolation::Nearest => &NEAREST,
                Interpolation::Bilinear { .. } => &BILINEAR,
            };
            return Ok((self.on(gpu, kernels, &x, out)?, ()));
        }
        let [_, c, h, w] = sizes(&self.input);
        let y = with_real!(NAME, x.dtype(), T => {
            let v = x.dense_slice::<T>(NAME)?;
            Tensor::build::<T>(layout, x.device(), |y| gather_by(v, [h, w, c], || self.axes(), y))
        })?;
        Ok((y, ()))
    }

    fn backward(&self, _: (), dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let dy = dy.channels_last()?;
        let layout = Layout::channels_last(self.input);
        if let Device::Cuda(gpu) = dy.device() {
            let kernels = match self.mode {
                Interpolation::Nearest => &NEAREST_BACKWARD,
                Interpolation::Bilinear { .. } => &BILINEAR_BACKWARD,
            };
            return Ok([Some(self.on(gpu, kernels, &dy, self.input)?)]);
        }
        let ([_, c, oh, ow], [_, _, h, w]) = (sizes(&self.output), sizes(&self.input));
        let dx = with_real!(NAME, dy.dtype(), T => {
            let g = dy.dense_slice::<T>(NAME)?;
            let axes = || {
                let [rows, columns] = self.axes();
                [rows.transposed(h), columns.transposed(w)]
            };
            Tensor::build::<T>(layout, dy.device(), |dx| gather_by(g, [oh, ow, c], axes, dx))
        })?;
        Ok([Some(dx)])
    }
}

fn sizes(s: &Shape) -> [usize; 4] {
    [s[0], s[1], s[2], s[3]]
}

kernels! {
    NEAREST = "interpolate_nearest" [F32, F64, BF16, F16];
    NEAREST_BACKWARD = "interpolate_nearest_backward" [F32, F64, BF16, F16];
    BILINEAR = "interpolate_bilinear" [F32, F64, BF16, F16];
    BILINEAR_BACKWARD = "interpolate_bilinear_backward" [F32, F64, BF16, F16];
}

/// On a GPU.
impl Interpolate {
    /// Images of this shape from channels-last ones: a thread a pixel and group of channels.
    fn on(
        &self,
        gpu: Gpu,
        kernels: &'static Kernels,
        from: &Tensor,
        shape: Shape,
    ) -> Result<Tensor> {
        let to = Tensor::empty(Layout::channels_last(shape), from.dtype(), from.device())?;
        let ([n, c, h, w], [_, _, oh, ow]) = (sizes(&self.input), sizes(&self.output));
        let aligned = self.mode
            == Interpolation::Bilinear {
                align_corners: true,
            };
        let words = [n, c, h, w, oh, ow, aligned as usize].map(|x| x as i32);
        let group = columns::group(to.dtype(), c, &[from.layout()]);
        let args = [
            Arg::Struct(&words),
            from.input(),
            to.output(),
            Arg::F64(self.steps[0]),
            Arg::F64(self.steps[1]),
            Arg::I32((group > 1) as i32),
        ];
        let grid = [cuda::blocks(to.numel() / group, 256), 1, 1];
        gpu.launch(kernels.of(to.dtype())?, grid, [256, 1, 1], 0, &args)?;
        Ok(to)
    }
}

impl Tensor {
    /// Images (N, C, H, W) of another size.
    ///
    /// ```
    /// # use cotangent::{ops::{Interpolation, Resize}, Tensor};
    /// let x = Tensor::from_vec(vec![0f32, 4.0], [1, 1, 1, 2])?;
    /// let twice = Resize::Scale([1.0, 2.0]);
    /// let y = x.interpolate(twice, Interpolation::Nearest)?;
    /// assert_eq!(y.to_vec::<f32>()?, [0.0, 0.0, 4.0, 4.0]);
    /// let y = x.interpolate(twice, Interpolation::Bilinear { align_corners: false })?;
    /// assert_eq!(y.to_vec::<f32>()?, [0.0, 1.0, 3.0, 4.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn interpolate(&self, to: Resize, mode: Interpolation) -> Result<Tensor> {
        apply(Interpolate::new(self, to, mode)?, [self])
    }
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[(
    "interpolate",
    "nearest: x[floor(i H / H')]; bilinear: the inputs around (i + 1/2) H / H' - 1/2, weighted by nearness",
)];

const NEAR: Interpolation = Interpolation::Nearest;
const HALF: Interpolation = Interpolation::Bilinear {
    align_corners: false,
};
const ALIGNED: Interpolation = Interpolation::Bilinear {
    align_corners: true,
};

macro_rules! cases {
    ($($name:literal $shape:expr, $to:ident($by:expr), $mode:ident;)*) => {
        &[$(Case {
            op: NAME,
            name: $name,
            inputs: &[Input::Normal(&$shape)],
            run: |x| x[0].interpolate(Resize::$to($by), $mode),
        }),*]
    };
}

/// Up and down by whole and broken factors in every mode, and degenerate sizes.
pub const CASES: &[Case] = cases! {
    "nearest, twice" [2, 3, 3, 4], Scale([2.0, 2.0]), NEAR;
    "nearest, up to a size" [1, 4, 3, 4], Size([5, 11]), NEAR;
    "nearest, down and up" [2, 3, 7, 3], Size([3, 7]), NEAR;
    "nearest, broken factors" [1, 2, 5, 7], Scale([1.7, 0.6]), NEAR;
    "nearest, 1x1 image" [2, 3, 1, 1], Size([3, 2]), NEAR;
    "bilinear, twice" [2, 3, 3, 4], Scale([2.0, 2.0]), HALF;
    "bilinear, up to a size" [1, 4, 3, 4], Size([5, 11]), HALF;
    "bilinear, down and up" [2, 3, 7, 3], Size([3, 7]), HALF;
    "bilinear, broken factors" [1, 2, 5, 7], Scale([1.7, 0.6]), HALF;
    "bilinear, far down" [1, 2, 9, 8], Size([2, 1]), HALF;
    "bilinear, the same size" [1, 3, 3, 4], Scale([1.2, 1.1]), HALF;
    "bilinear, 1x1 image" [2, 3, 1, 1], Size([3, 2]), HALF;
    "bilinear, one channel" [1, 1, 2, 2], Size([1, 5]), HALF;
    "corners on corners" [2, 3, 3, 4], Size([6, 5]), ALIGNED;
    "corners on corners, down" [1, 2, 7, 6], Scale([0.5, 0.7]), ALIGNED;
    "corners on corners, one row" [1, 2, 3, 4], Size([1, 7]), ALIGNED;
    "corners on corners, 1x1 image" [2, 3, 1, 1], Size([4, 3]), ALIGNED;
    "no image" [0, 3, 4, 4], Size([2, 8]), HALF;
    "no channel" [2, 0, 4, 4], Size([2, 8]), NEAR;
};

/// Several blocks, channels in groups and not.
pub const LARGE: &[Case] = cases! {
    "nearest, twice, many" [2, 12, 17, 13], Scale([2.0, 2.0]), NEAR;
    "nearest, 41 times" [1, 3, 5, 7], Size([205, 17]), NEAR;
    "nearest, down, many" [2, 7, 61, 43], Size([19, 30]), NEAR;
    "bilinear, twice, many" [2, 12, 17, 13], Scale([2.0, 2.0]), HALF;
    "bilinear, 16 times" [1, 5, 6, 4], Scale([16.0, 16.0]), HALF;
    "bilinear, down, many" [2, 8, 61, 43], Size([19, 30]), HALF;
    "corners on corners, many" [1, 20, 15, 14], Size([33, 40]), ALIGNED;
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::check::devices;

    // torch 2.11, F.interpolate in float64 of arange(6).reshape(1, 1, 2, 3) ** 2, with
    // dy = arange(1, n + 1): size=(3, 4), scale_factor=(2.0, 1.7), size=(1, 2)
    #[test]
    fn values_and_gradients_are_pytorchs() -> Result<()> {
        let rows: &[(Resize, Interpolation, &[f64], [f64; 6])] = &[
            (
                Resize::Size([3, 4]),
                HALF,
                &[
                    0.0, 0.625, 2.125, 4.0, 4.5, 7.0, 10.75, 14.5, 9.0, 13.375, 19.375, 25.0,
                ],
                [5.375, 7.1875, 10.4375, 16.375, 17.1875, 21.4375],
            ),
            (
                Resize::Size([3, 4]),
                ALIGNED,
                &[
                    0.0,
                    2.0 / 3.0,
                    2.0,
                    4.0,
                    4.5,
                    43.0 / 6.0,
                    10.5,
                    14.5,
                    9.0,
                    41.0 / 3.0,
                    19.0,
                    25.0,
                ],
                [
                    31.0 / 6.0,
                    23.0 / 3.0,
                    61.0 / 6.0,
                    95.0 / 6.0,
                    55.0 / 3.0,
                    125.0 / 6.0,
                ],
            ),
            (
                Resize::Scale([2.0, 1.7]),
                HALF,
                &[
                    0.0,
                    0.382352941176,
                    0.970588235294,
                    2.676470588235,
                    4.0,
                    2.25,
                    3.205882352941,
                    4.676470588235,
                    7.264705882353,
                    9.25,
                    6.75,
                    8.852941176471,
                    12.088235294118,
                    16.441176470588,
                    19.75,
                    9.0,
                    11.676470588235,
                    15.794117647059,
                    21.029411764706,
                    25.0,
                ],
                [
                    14.941176470588,
                    22.095588235294,
                    24.213235294118,
                    43.764705882353,
                    53.492647058824,
                    51.492647058824,
                ],
            ),
            (
                Resize::Scale([1.5, 1.7]),
                NEAR,
                &[
                    0.0, 0.0, 1.0, 1.0, 4.0, 0.0, 0.0, 1.0, 1.0, 4.0, 9.0, 9.0, 16.0, 16.0, 25.0,
                ],
                [16.0, 24.0, 15.0, 23.0, 27.0, 15.0],
            ),
            (
                Resize::Size([1, 2]),
                HALF,
                &[5.5, 13.0],
                [0.375, 0.375, 0.75, 0.375, 0.375, 0.75],
            ),
        ];
        let squares = vec![0.0, 1.0, 4.0, 9.0, 16.0, 25.0];
        for device in devices()? {
            let x = Tensor::from_vec(squares.clone(), [1, 1, 2, 3])?;
            let x = x.to(device)?.requires_grad();
            for (to, mode, values, gradients) in rows {
                let y = x.interpolate(*to, *mode)?;
                let n = y.numel();
                let dy = Tensor::arange(1.0, n as f64 + 1.0, 1.0, DType::F64)?;
                let grads = y.backward_from(&dy.reshape(y.shape())?.to(device)?)?;
                let found = [y.to_vec::<f64>()?, grads.get(&x).unwrap().to_vec()?].concat();
                let expected = [*values, gradients].concat();
                assert_eq!(found.len(), expected.len(), "{to:?} {mode:?}");
                for (a, b) in found.iter().zip(&expected) {
                    assert!((a - b).abs() < 1e-10, "{to:?} {mode:?}: {a} {b}");
                }
            }
        }
        Ok(())
    }

    // torch 2.11, F.interpolate(torch.arange(14.).view(1, 1, 1, 14), size=(1, 46)): 23 * 14 / 46 is 7,
    // a little less in f32
    #[test]
    fn the_nearest_is_found_in_f32() -> Result<()> {
        for device in devices()? {
            for dtype in [DType::F32, DType::F64] {
                let x = Tensor::arange(0.0, 14.0, 1.0, dtype)?.reshape([1, 1, 1, 14])?;
                let y = x.to(device)?.interpolate(Resize::Size([1, 46]), NEAR)?;
                let y = y.to_dtype(DType::F64)?.to_vec::<f64>()?;
                assert_eq!(y[22..26], [6.0, 6.0, 7.0, 7.0], "{dtype} on {device}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_nearest_input_is_copied_whatever_the_others_are() -> Result<()> {
        let x = Tensor::from_vec(vec![f32::INFINITY, 1.0], [1, 1, 1, 2])?;
        for device in devices()? {
            let y = x.to(device)?.interpolate(Resize::Size([1, 4]), NEAR)?;
            let inf = f32::INFINITY;
            assert_eq!(y.to_vec::<f32>()?, [inf, inf, 1.0, 1.0], "{device}");
        }
        Ok(())
    }

    #[test]
    fn errors() -> Result<()> {
        let x = Tensor::ones([1, 2, 4, 5], DType::F32)?;
        let e = |x: &Tensor, to| x.interpolate(to, NEAR).unwrap_err().to_string();
        let rows = [
            (
                e(&x, Resize::Size([0, 3])),
                "size is [0, 3], expected at least 1",
            ),
            (
                e(&x, Resize::Scale([1.0, -2.0])),
                "scale factor is [1.0, -2.0], expected finite numbers over 0",
            ),
            (
                e(&x, Resize::Scale([f64::NAN, 1.0])),
                "scale factor is [NaN, 1.0], expected finite numbers over 0",
            ),
            (
                e(&x, Resize::Scale([0.2, 1.0])),
                "Scale([0.2, 1.0]) leaves nothing of an input [4, 5]",
            ),
            (
                e(&x, Resize::Scale([1e300, 1.0])),
                "Scale([1e300, 1.0]) of an input [4, 5] is too large",
            ),
            (
                e(
                    &Tensor::ones([1, 2, 0, 5], DType::F32)?,
                    Resize::Size([1, 1]),
                ),
                "expected images but got [1, 2, 0, 5]",
            ),
            (
                e(&Tensor::ones([4, 5], DType::F32)?, Resize::Size([1, 1])),
                "expected (N, C, H, W) but got [4, 5]",
            ),
        ];
        for (found, expected) in rows {
            assert_eq!(found, format!("interpolate: {expected}"));
        }
        let whole = x.to_dtype(DType::I64)?;
        assert!(whole.interpolate(Resize::Size([2, 2]), NEAR).is_err());
        Ok(())
    }
}
