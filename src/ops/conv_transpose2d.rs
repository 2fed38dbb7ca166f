//! Two-dimensional transposed convolution, with bias, stride, padding, dilation and groups.

use crate::autograd::{Op, apply};
use crate::cpu::conv::{self, ConvShape};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::check::{Case, Input};
use crate::ops::conv2d::cuda;
use crate::ops::precision::lowered;
use crate::ops::{Formula, one_dtype};
use crate::shape::{Layout, Shape, Window};
use crate::tensor::Tensor;
use crate::with_real;

const NAME: &str = "conv_transpose2d";

/// y\[n, o, i s + u d - p, j s + v d - p\] = b\[o\] + the sum over c, i, j, u, v of
/// x\[n, c, i, j\] w\[c, o, u, v\] (PyTorch's `conv_transpose2d`): the input gradient of a convolution
/// from y to x with the weight w, and computed as that. With dy: dx is that convolution of dy, dw its
/// weight gradient for the input dy and the output's gradient x, db the sum of each channel of dy.
///
/// Images lie in memory as N, H, W, C here; `w` is (in, out / groups, kernel height, width).
struct ConvTranspose2d {
    window: Window,
    output_padding: [usize; 2],
    groups: usize,
}

impl ConvTranspose2d {
    /// The convolution from y to x.
    fn mirror(&self, x: &Shape, w: &Shape) -> Result<ConvShape> {
        let ([n, ci, h, width], [wanted, per_group]) = ([x[0], x[1], x[2], x[3]], [w[0], w[1]]);
        if self.groups == 0 || wanted % self.groups != 0 {
            let why = format!(
                "groups {} does not divide the {wanted} input channels of weight {w:?}",
                self.groups
            );
            return Err(Error::shape(NAME, &[*w, *x], why));
        }
        if wanted != ci {
            let why =
                format!("weight {w:?} wants {wanted} input channels but input {x:?} has {ci}");
            return Err(Error::shape(NAME, &[*w, *x], why));
        }
        let (mut window, extra) = (self.window, self.output_padding);
        let [oh, ow] = window.transposed_output(NAME, [h, width], extra)?;
        window.check_output_padding(NAME, extra)?;
        // one place makes no step, so that a stride beyond the output is as good as one up to it
        for (stride, (from, to)) in window.stride.iter_mut().zip([(h, oh), (width, ow)]) {
            if from == 1 {
                *stride = to.min(*stride);
            }
        }
        Ok(ConvShape {
            n,
            h: oh,
            w: ow,
            ci: per_group * self.groups,
            co: ci,
            oh: h,
            ow: width,
            window,
            groups: self.groups,
        })
    }
}

/// x, w and perhaps b.
impl<const N: usize> Op<N> for ConvTranspose2d {
    const NAME: &'static str = NAME;
    const HALF_ON_CUDA: bool = true;
    /// x and w.
    type Saved = [Tensor; 2];

    fn forward(&self, inputs: [&Tensor; N]) -> Result<(Tensor, Self::Saved)> {
        one_dtype(NAME, inputs)?;
        let (x, w) = (inputs[0].channels_last()?, inputs[1].packed()?);
        let s = self.mirror(x.shape(), w.shape())?;
        let bias = inputs.get(2).map(|b| b.packed()).transpose()?;
        let out = Layout::channels_last(Shape::new(&[s.n, s.ci, s.h, s.w])?);
        if let Device::Cuda(gpu) = x.device() {
            let y = cuda::input_grad(NAME, &s, [&x, &w], bias.as_ref(), out, gpu)?;
            return Ok((y, [x, w]));
        }
        let y = with_real!(NAME, x.dtype(), T => {
            let (xs, ws) = (x.dense_slice::<T>(NAME)?, w.dense_slice::<T>(NAME)?);
            let bias = bias.as_ref().map(|b| b.dense_slice::<T>(NAME)).transpose()?;
            Tensor::build::<T>(out, x.device(), |y| conv::input_grad(&s, xs, ws, bias, y))
        })?;
        Ok((y, [x, w]))
    }

    fn backward(
        &self,
        [x, w]: Self::Saved,
        dy: Tensor,
        needs: [bool; N],
    ) -> Result<[Option<Tensor>; N]> {
        let s = self.mirror(x.shape(), w.shape())?;
        let dy = dy.channels_last()?;
        let mut grads = [const { None }; N];
        if let Device::Cuda(gpu) = dy.device() {
            if needs[0] {
                grads[0] = Some(cuda::forward(NAME, &s, [&dy, &w], None, false, gpu)?);
            }
            if needs[1] {
                grads[1] = Some(cuda::weight_grad(NAME, &s, [&dy, &x], *w.layout(), gpu)?);
            }
            if N > 2 && needs[2] {
                grads[2] = Some(cuda::bias_grad(&dy, gpu)?);
            }
            return Ok(grads);
        }
        with_real!(NAME, dy.dtype(), T => {
            let dys = dy.dense_slice::<T>(NAME)?;
            if needs[0] {
                let (ws, like) = (w.dense_slice::<T>(NAME)?, *x.layout());
                grads[0] = Some(Tensor::build::<T>(like, x.device(), |dx| conv::forward(&s, dys, ws, None, false, dx))?);
            }
            if needs[1] {
                let (xs, like) = (x.dense_slice::<T>(NAME)?, *w.layout());
                grads[1] = Some(Tensor::build::<T>(like, w.device(), |dw| conv::weight_grad(&s, dys, xs, dw))?);
            }
            if N > 2 && needs[2] {
                let like = Layout::contiguous(Shape::new(&[s.ci])?);
                grads[2] = Some(Tensor::build::<T>(like, dy.device(), |db| conv::bias_grad(dys, db))?);
            }
            Ok(grads)
        })
    }
}

impl Tensor {
    /// The transposed convolution of images (N, C, H, W) with `weight` (C, out / groups, kernel
    /// height, width) and `bias` (out): (N, out, H', W'), sizes by [`Window::transposed_output`].
    /// `output_padding` adds rows and columns at the end, fewer than the stride or the dilation; the
    /// window's kernel must be the weight's.
    ///
    /// ```
    /// # use cotangent::{shape::Window, DType, Tensor};
    /// let x = Tensor::from_vec(vec![1f32, 2.0], [1, 1, 1, 2])?;
    /// let w = Tensor::from_vec(vec![1f32, 10.0, 100.0], [1, 1, 1, 3])?;
    /// let twice = Window { stride: [1, 2], ..Window::new([1, 3]) };
    /// let y = x.conv_transpose2d(&w, None, twice, [0, 0], 1)?;
    /// assert_eq!(y.to_vec::<f32>()?, [1.0, 10.0, 102.0, 20.0, 200.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn conv_transpose2d(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        window: Window,
        output_padding: [usize; 2],
        groups: usize,
    ) -> Result<Tensor> {
        let [_, ..] = self.dims::<4>(NAME, "an input (N, C, H, W)")?;
        self.images(NAME)?;
        let [_, per_group, kh, kw] =
            weight.dims(NAME, "a weight (in, out / groups, kernel height, width)")?;
        if window.kernel != [kh, kw] {
            let [found, wanted] = [window.kernel, [kh, kw]];
            let why = format!("window {found:?} is not the weight's {wanted:?}");
            return Err(Error::argument(NAME, why));
        }
        if weight.numel() == 0 {
            let why = format!("weight {:?} has no channels", weight.shape());
            return Err(Error::shape(NAME, &[*weight.shape(), *self.shape()], why));
        }
        let op = ConvTranspose2d {
            window,
            output_padding,
            groups,
        };
        match bias {
            Some(b) if b.rank() != 1 || Some(b.numel()) != per_group.checked_mul(groups) => {
                let why = format!(
                    "weight {:?} (groups {groups}) wants a bias [{}] but got {:?}",
                    weight.shape(),
                    per_group.saturating_mul(groups),
                    b.shape()
                );
                Err(Error::shape(NAME, &[*weight.shape(), *b.shape()], why))
            }
            Some(b) => apply(op, lowered([self, weight, b])?.each_ref()),
            None => apply(op, lowered([self, weight])?.each_ref()),
        }
    }
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[(
    "conv_transpose2d",
    "y[i s + u d - p] = b + sum of x[i] w[u]: the input gradient of the convolution from y to x",
)];

macro_rules! cases {
    ($($name:literal $x:expr, $w:expr, [$($b:expr)?], [$stride:expr, $padding:expr, $extra:expr, $dilation:expr], $groups:expr;)*) => {&[$(
        Case {
            op: NAME,
            name: $name,
            inputs: &[Input::Normal(&$x), Input::Normal(&$w) $(, Input::Normal(&$b))?],
            run: |x| {
                let window = Window {
                    kernel: [x[1].shape()[2], x[1].shape()[3]],
                    stride: $stride,
                    padding: $padding,
                    dilation: $dilation,
                };
                x[0].conv_transpose2d(&x[1], x.get(2), window, $extra, $groups)
            },
        },
    )*]};
}

/// Every setting (stride, padding, output padding, dilation), and degenerate sizes.
pub const CASES: &[Case] = cases! {
    "3x3, padding 1, bias" [2, 3, 5, 4], [3, 4, 3, 3], [[4]], [[1, 1], [1, 1], [0, 0], [1, 1]], 1;
    "no bias, no padding" [1, 2, 4, 5], [2, 3, 2, 3], [], [[1, 1], [0, 0], [0, 0], [1, 1]], 1;
    "2x2 side by side" [2, 3, 4, 3], [3, 4, 2, 2], [[4]], [[2, 2], [0, 0], [0, 0], [1, 1]], 1;
    "4x4, stride 2, padding 1" [2, 3, 4, 3], [3, 2, 4, 4], [[2]], [[2, 2], [1, 1], [0, 0], [1, 1]], 1;
    "stride (3, 2), output padding" [1, 2, 4, 3], [2, 3, 2, 3], [[3]], [[3, 2], [0, 1], [2, 1], [1, 1]], 1;
    "gaps that no tap reaches" [1, 2, 3, 3], [2, 3, 2, 1], [[3]], [[3, 3], [0, 0], [2, 2], [1, 1]], 1;
    "dilation 2, output padding below it" [1, 2, 5, 4], [2, 2, 3, 2], [[2]], [[1, 1], [2, 1], [1, 1], [2, 2]], 1;
    "stride 2, dilation 3" [1, 2, 4, 4], [2, 2, 2, 3], [[2]], [[2, 2], [1, 3], [2, 1], [3, 3]], 1;
    "two groups" [2, 4, 4, 4], [4, 3, 3, 3], [[6]], [[2, 2], [1, 1], [1, 1], [1, 1]], 2;
    "depthwise 3x3, stride 2" [2, 5, 4, 3], [5, 1, 3, 3], [[5]], [[2, 2], [1, 1], [1, 1], [1, 1]], 5;
    "depthwise (3, 2), no bias" [1, 3, 4, 5], [3, 1, 3, 2], [], [[2, 1], [1, 0], [0, 0], [1, 1]], 3;
    "depthwise, dilation 2" [1, 3, 4, 5], [3, 1, 3, 2], [[3]], [[2, 1], [2, 1], [1, 1], [2, 2]], 3;
    "groups, two outputs a channel" [1, 3, 4, 4], [3, 2, 3, 3], [[6]], [[2, 2], [1, 1], [0, 0], [1, 1]], 3;
    "1x1" [2, 5, 3, 3], [5, 7, 1, 1], [[7]], [[1, 1], [0, 0], [0, 0], [1, 1]], 1;
    "1x1 image" [2, 3, 1, 1], [3, 4, 4, 4], [[4]], [[1, 1], [0, 0], [0, 0], [1, 1]], 1;
    "1x1 image, stride over the output" [2, 3, 1, 1], [3, 4, 3, 2], [[4]], [[70000, 5], [1, 0], [0, 3], [1, 1]], 1;
    "depthwise 1x1 image, stride 3" [2, 3, 1, 1], [3, 1, 3, 3], [[3]], [[3, 3], [0, 1], [2, 0], [1, 1]], 3;
    "1x1 output" [2, 3, 1, 1], [3, 4, 3, 3], [[4]], [[1, 1], [1, 1], [0, 0], [1, 1]], 1;
    "one channel" [1, 1, 3, 4], [1, 1, 3, 3], [[1]], [[2, 2], [1, 1], [1, 1], [1, 1]], 1;
    "one image, ragged channels" [1, 33, 3, 4], [33, 17, 3, 3], [[17]], [[1, 1], [1, 1], [0, 0], [1, 1]], 1;
    "no images" [0, 2, 4, 4], [2, 3, 3, 3], [[3]], [[2, 2], [1, 1], [1, 1], [1, 1]], 1;
};

/// Several tiles and slices with ragged edges, with and without bias, and depthwise strips.
pub const LARGE: &[Case] = cases! {
    "2x2 side by side, three tiles" [2, 40, 9, 11], [40, 133, 2, 2], [[133]], [[2, 2], [0, 0], [0, 0], [1, 1]], 1;
    "4x4, stride 2, slices" [2, 24, 13, 11], [24, 8, 4, 4], [[8]], [[2, 2], [1, 1], [0, 0], [1, 1]], 1;
    "large tiles" [1, 5, 12, 11], [5, 132, 3, 3], [[132]], [[6, 6], [1, 1], [5, 4], [1, 1]], 1;
    "narrow tiles" [1, 5, 12, 12], [5, 41, 3, 2], [[41]], [[9, 9], [1, 1], [8, 7], [1, 1]], 1;
    "two groups, dilation 2" [1, 48, 12, 12], [48, 36, 3, 3], [[72]], [[2, 2], [2, 1], [1, 1], [2, 2]], 2;
    "no bias, stride 3" [1, 33, 9, 10], [33, 70, 3, 3], [], [[3, 3], [1, 0], [2, 1], [1, 1]], 1;
    "depthwise 3x3, stride 2" [2, 70, 11, 9], [70, 1, 3, 3], [[70]], [[2, 2], [1, 1], [1, 1], [1, 1]], 70;
    "depthwise 5x5" [1, 36, 15, 13], [36, 1, 5, 5], [[36]], [[1, 1], [2, 2], [0, 0], [1, 1]], 36;
    "depthwise 9x9, stride 2" [1, 34, 13, 9], [34, 1, 9, 9], [[34]], [[2, 2], [4, 4], [1, 0], [1, 1]], 34;
    "depthwise 4x4, stride 2" [2, 70, 11, 9], [70, 1, 4, 4], [[70]], [[2, 2], [1, 1], [0, 0], [1, 1]], 70;
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn errors_name_what_was_expected() -> Result<()> {
        let z = |d: &[usize]| Tensor::zeros(d, DType::F32);
        let (x, w) = (z(&[2, 4, 5, 5])?, z(&[4, 3, 3, 3])?);
        let w3 = Window::new([3, 3]);
        let e = |r: Result<Tensor>| r.unwrap_err().to_string();
        let wrong = |x: &Tensor, w: &Tensor, window, extra, groups| {
            e(x.conv_transpose2d(w, None, window, extra, groups))
        };
        let rows = [
            (
                wrong(&z(&[4, 5, 5])?, &w, w3, [0, 0], 1),
                "expected an input (N, C, H, W) but got [4, 5, 5]",
            ),
            (
                wrong(&x, &z(&[4, 3, 3])?, w3, [0, 0], 1),
                "expected a weight (in, out / groups, kernel height, width) but got [4, 3, 3]",
            ),
            (
                wrong(&x, &z(&[3, 4, 3, 3])?, w3, [0, 0], 1),
                "weight [3, 4, 3, 3] wants 3 input channels but input [2, 4, 5, 5] has 4",
            ),
            (
                wrong(&x, &w, w3, [0, 0], 3),
                "groups 3 does not divide the 4 input channels of weight [4, 3, 3, 3]",
            ),
            (
                wrong(&x, &w, w3, [0, 0], 0),
                "groups 0 does not divide the 4 input channels of weight [4, 3, 3, 3]",
            ),
            (
                wrong(&x, &w, Window::new([2, 3]), [0, 0], 1),
                "window [2, 3] is not the weight's [3, 3]",
            ),
            (
                wrong(&x, &z(&[4, 0, 3, 3])?, w3, [0, 0], 1),
                "weight [4, 0, 3, 3] has no channels",
            ),
            (
                wrong(&z(&[2, 4, 0, 5])?, &w, w3, [0, 0], 1),
                "expected images but got [2, 4, 0, 5]",
            ),
            (
                wrong(&x, &w, w3, [0, 1], 1),
                "output_padding [0, 1] is not smaller than stride [1, 1] or dilation [1, 1]",
            ),
            (
                e(x.conv_transpose2d(&w, Some(&z(&[4])?), w3, [0, 0], 1)),
                "weight [4, 3, 3, 3] (groups 1) wants a bias [3] but got [4]",
            ),
        ];
        for (found, expected) in rows {
            assert_eq!(found, format!("conv_transpose2d: {expected}"));
        }
        let padding = |p| Window {
            padding: [p, 1],
            ..w3
        };
        assert_eq!(
            wrong(&x, &w, padding(4), [0, 0], 1),
            "conv_transpose2d: padding [4, 1] leaves no output of an input [5, 5] with kernel [3, 3] (stride [1, 1], dilation [1, 1])"
        );
        assert!(wrong(&x, &w, padding(usize::MAX), [0, 0], 1).contains("leaves no output"));
        let stride = |s| Window {
            stride: [s, 1],
            ..w3
        };
        assert_eq!(
            wrong(&x, &w, stride(0), [0, 0], 1),
            "conv_transpose2d: stride is 0, expected at least 1"
        );
        assert!(wrong(&x, &w, stride(usize::MAX), [0, 0], 1).contains("is too large"));
        let w = w.to_dtype(DType::F64)?;
        let mixed = x.conv_transpose2d(&w, None, w3, [0, 0], 1);
        assert!(matches!(mixed, Err(Error::DType { .. })));
        Ok(())
    }

    #[test]
    fn images_stay_channels_last() -> Result<()> {
        let (x, w) = (
            Tensor::ones([2, 3, 4, 5], DType::F32)?,
            Tensor::ones([3, 4, 2, 2], DType::F32)?,
        );
        let y = x.conv_transpose2d(&w, None, Window::new([2, 2]), [0, 0], 1)?;
        assert!(y.layout().is_channels_last());
        Ok(())
    }
}
