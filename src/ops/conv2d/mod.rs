//! Two-dimensional convolution, with bias, stride, padding, dilation and groups.

pub(super) mod cuda;
mod depthwise;

use crate::autograd::{Op, apply};
use crate::cpu::conv::{self, ConvShape};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::check::{Case, Input};
use crate::ops::precision::lowered;
use crate::ops::unary::relu_grad;
use crate::ops::{Formula, one_dtype};
use crate::shape::{Layout, Shape, Window};
use crate::tensor::Tensor;
use crate::with_real;

/// y\[n, o, i, j\] = b\[o\] + sum over c, u, v of
/// x\[n, c, i s + u d - p, j s + v d - p\] w\[o, c, u, v\] (cross-correlation, as PyTorch has it),
/// zero outside of x. With dy: dx is the same sum over the windows that reach an element, dw the
/// sum over images and places, db the sum of each channel. With `relu` y is the maximum of that and
/// 0, and dy counts where y > 0.
///
/// Images lie in memory as N, H, W, C here; `w` is (out, in / groups, kernel height, width).
struct Conv2d {
    window: Window,
    groups: usize,
    relu: bool,
}

impl Conv2d {
    fn op(&self) -> &'static str {
        if self.relu { "conv2d_relu" } else { "conv2d" }
    }

    fn shape(&self, x: &Shape, w: &Shape) -> Result<ConvShape> {
        let ([n, ci, h, width], [co, per_group]) = ([x[0], x[1], x[2], x[3]], [w[0], w[1]]);
        if self.groups == 0 || co % self.groups != 0 || per_group * self.groups != ci {
            return Err(Error::shape(
                self.op(),
                &[*w, *x],
                format!(
                    "weight {w:?} wants {} input channels (groups {}) but input {x:?} has {ci}{}",
                    per_group * self.groups,
                    self.groups,
                    if self.groups == 0 || co % self.groups != 0 {
                        ", and groups must divide the output channels"
                    } else {
                        ""
                    }
                ),
            ));
        }
        let [oh, ow] = self.window.output(self.op(), [h, width])?;
        Ok(ConvShape {
            n,
            h,
            w: width,
            ci,
            co,
            oh,
            ow,
            window: self.window,
            groups: self.groups,
        })
    }

    fn of(self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let [_, ..] = x.dims::<4>(self.op(), "an input (N, C, H, W)")?;
        let [co, _, kh, kw] = weight.dims(
            self.op(),
            "a weight (out, in / groups, kernel height, width)",
        )?;
        if self.window.kernel != [kh, kw] {
            return Err(Error::argument(
                self.op(),
                format!(
                    "window {:?} is not the weight's {:?}",
                    self.window.kernel,
                    [kh, kw]
                ),
            ));
        }
        if weight.numel() == 0 {
            let why = format!("weight {:?} has no channels", weight.shape());
            return Err(Error::shape(self.op(), &[*weight.shape(), *x.shape()], why));
        }
        match bias {
            Some(b) if b.shape()[..] != [co] => Err(Error::shape(
                self.op(),
                &[*weight.shape(), *b.shape()],
                format!(
                    "weight {:?} wants a bias [{co}] but got {:?}",
                    weight.shape(),
                    b.shape()
                ),
            )),
            Some(b) => apply(self, lowered([x, weight, b])?.each_ref()),
            None => apply(self, lowered([x, weight])?.each_ref()),
        }
    }
}

impl<const N: usize> Op<N> for Conv2d {
    const NAME: &'static str = "conv2d";
    const HALF_ON_CUDA: bool = true;
    /// x, w, and with ReLU y.
    type Saved = ([Tensor; 2], Option<Tensor>);

    fn name(&self) -> &'static str {
        self.op()
    }

    fn forward(&self, inputs: [&Tensor; N]) -> Result<(Tensor, Self::Saved)> {
        one_dtype(self.op(), inputs)?;
        let (x, w) = (inputs[0].channels_last()?, inputs[1].packed()?);
        let s = self.shape(x.shape(), w.shape())?;
        let bias = inputs.get(2).map(|b| b.packed()).transpose()?;
        if let Device::Cuda(gpu) = x.device() {
            let y = cuda::forward(self.op(), &s, [&x, &w], bias.as_ref(), self.relu, gpu)?;
            return Ok((y.clone(), ([x, w], self.relu.then_some(y))));
        }
        let out = Layout::channels_last(Shape::new(&[s.n, s.co, s.oh, s.ow])?);
        let y = with_real!(self.op(), x.dtype(), T => {
            let (xs, ws) = (x.dense_slice::<T>(self.op())?, w.dense_slice::<T>(self.op())?);
            let bias = bias.as_ref().map(|b| b.dense_slice::<T>(self.op())).transpose()?;
            Tensor::build::<T>(out, x.device(), |y| {
                conv::forward(&s, xs, ws, bias, self.relu, y);
            })
        })?;
        Ok((y.clone(), ([x, w], self.relu.then_some(y))))
    }

    fn backward(
        &self,
        ([x, w], y): Self::Saved,
        mut dy: Tensor,
        needs: [bool; N],
    ) -> Result<[Option<Tensor>; N]> {
        let s = self.shape(x.shape(), w.shape())?;
        let mut grads = [const { None }; N];
        if let Device::Cuda(gpu) = dy.device() {
            if let Some(y) = y {
                dy = relu_grad(y, &dy)?;
            }
            let dy = dy.channels_last()?;
            if needs[0] {
                grads[0] = Some(cuda::input_grad(
                    self.op(),
                    &s,
                    [&dy, &w],
                    None,
                    *x.layout(),
                    gpu,
                )?);
            }
            if needs[1] {
                grads[1] = Some(cuda::weight_grad(
                    self.op(),
                    &s,
                    [&x, &dy],
                    *w.layout(),
                    gpu,
                )?);
            }
            if N > 2 && needs[2] {
                grads[2] = Some(cuda::bias_grad(&dy, gpu)?);
            }
            return Ok(grads);
        }
        dy = dy.channels_last()?;
        with_real!(self.op(), dy.dtype(), T => {
            let layout = Layout::contiguous(Shape::new(&[s.co])?);
            if let Some(y) = &y {
                // in place: of dy, the engine keeps no copy
                let (ys, dys) = (y.dense_slice::<T>(self.op())?, dy.make_mut::<T>()?);
                let db = Tensor::build::<T>(layout, y.device(), |db| conv::relu_bias_grad(ys, dys, db))?;
                if N > 2 && needs[2] {
                    grads[2] = Some(db);
                }
            } else if N > 2 && needs[2] {
                let dys = dy.dense_slice::<T>(self.op())?;
                grads[2] = Some(Tensor::build::<T>(layout, dy.device(), |db| conv::bias_grad(dys, db))?);
            }
            let dys = dy.dense_slice::<T>(self.op())?;
            if needs[0] {
                let ws = w.dense_slice::<T>(self.op())?;
                grads[0] = Some(Tensor::build::<T>(*x.layout(), x.device(), |dx| conv::input_grad(&s, dys, ws, None, dx))?);
            }
            if needs[1] {
                let xs = x.dense_slice::<T>(self.op())?;
                grads[1] = Some(Tensor::build::<T>(*w.layout(), w.device(), |dw| conv::weight_grad(&s, xs, dys, dw))?);
            }
            Ok(grads)
        })
    }
}

impl Tensor {
    /// The convolution of images (N, C, H, W) with `weight` (out, C / groups, kernel height,
    /// width) and `bias` (out): (N, out, H', W'). The window's kernel must be the weight's.
    ///
    /// ```
    /// # use cotangent::{shape::Window, DType, Tensor};
    /// let x = Tensor::ones([1, 1, 3, 3], DType::F32)?;
    /// let w = Tensor::ones([1, 1, 3, 3], DType::F32)?;
    /// let same = Window { padding: [1, 1], ..Window::new([3, 3]) };
    /// let y = x.conv2d(&w, None, same, 1)?;
    /// assert_eq!(y.to_vec::<f32>()?, [4., 6., 4., 6., 9., 6., 4., 6., 4.]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn conv2d(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        window: Window,
        groups: usize,
    ) -> Result<Tensor> {
        let relu = false;
        Conv2d {
            window,
            groups,
            relu,
        }
        .of(self, weight, bias)
    }

    /// [`relu`](Tensor::relu) of [`conv2d`](Tensor::conv2d) in one pass.
    ///
    /// ```
    /// # use cotangent::{shape::Window, Tensor};
    /// let x = Tensor::from_vec(vec![1f32, -2.0, 3.0], [1, 1, 1, 3])?;
    /// let w = Tensor::from_vec(vec![2f32], [1, 1, 1, 1])?;
    /// let y = x.conv2d_relu(&w, None, Window::new([1, 1]), 1)?;
    /// assert_eq!(y.to_vec::<f32>()?, [2.0, 0.0, 6.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn conv2d_relu(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        window: Window,
        groups: usize,
    ) -> Result<Tensor> {
        let relu = true;
        Conv2d {
            window,
            groups,
            relu,
        }
        .of(self, weight, bias)
    }
}

const fn window(
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
) -> Window {
    Window {
        kernel,
        stride,
        padding,
        dilation,
    }
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[
    (
        "conv2d",
        "y[i] = b + sum_u x[i s + u d - p] w[u], summed over the channels of a group",
    ),
    ("conv2d_relu", "max(conv2d(x, w, b), 0)"),
];

macro_rules! cases {
    ($op:ident; $($name:literal $x:expr, $w:expr, [$($b:expr)?], $window:expr, $groups:expr $(, $detach:ident)?;)*) => {&[$(
        Case {
            op: stringify!($op),
            name: $name,
            inputs: &[Input::Normal(&$x), Input::Normal(&$w) $(, Input::Normal(&$b))?],
            run: |x| {
                let (image, weight) = (&x[0], &x[1]);
                $(let (image, weight) = (&image.$detach(), &weight.$detach());)?
                image.$op(weight, x.get(2), $window, $groups)
            },
        },
    )*]};
}

/// Every setting, and sizes ragged against the kernels' tiles.
pub const CASES: &[Case] = cases! {
    conv2d;
    "3x3, padding 1, bias" [2, 3, 5, 4], [4, 3, 3, 3], [[4]], window([3, 3], [1, 1], [1, 1], [1, 1]), 1;
    "no bias, no padding" [1, 2, 4, 5], [3, 2, 2, 3], [], window([2, 3], [1, 1], [0, 0], [1, 1]), 1;
    "stride 2" [2, 3, 7, 6], [4, 3, 3, 3], [[4]], window([3, 3], [2, 2], [1, 1], [1, 1]), 1;
    "stride (3, 2), kernel (2, 3)" [1, 2, 8, 7], [3, 2, 2, 3], [[3]], window([2, 3], [3, 2], [0, 2], [1, 1]), 1;
    "dilation 2" [1, 2, 7, 8], [2, 2, 3, 3], [[2]], window([3, 3], [1, 1], [2, 1], [2, 2]), 1;
    "two groups" [2, 4, 4, 4], [6, 2, 3, 3], [[6]], window([3, 3], [1, 1], [1, 1], [1, 1]), 2;
    "depthwise 3x3" [2, 5, 5, 4], [5, 1, 3, 3], [[5]], window([3, 3], [1, 1], [1, 1], [1, 1]), 5;
    "depthwise, stride 2" [1, 3, 6, 5], [3, 1, 3, 2], [[3]], window([3, 2], [2, 2], [1, 1], [1, 1]), 3;
    "depthwise, two outputs a channel" [1, 3, 5, 5], [6, 1, 3, 3], [[6]], window([3, 3], [1, 1], [1, 1], [1, 1]), 3;
    "1x1" [2, 5, 3, 3], [7, 5, 1, 1], [[7]], window([1, 1], [1, 1], [0, 0], [1, 1]), 1;
    "1x1, stride 2" [2, 3, 5, 5], [4, 3, 1, 1], [], window([1, 1], [2, 2], [0, 0], [1, 1]), 1;
    "1x1 image" [2, 3, 1, 1], [4, 3, 3, 3], [[4]], window([3, 3], [1, 1], [1, 1], [1, 1]), 1;
    "padding over the kernel" [1, 2, 3, 3], [2, 2, 2, 2], [[2]], window([2, 2], [1, 1], [3, 3], [1, 1]), 1;
    "one image, ragged channels" [1, 33, 3, 4], [17, 33, 3, 3], [[17]], window([3, 3], [1, 1], [1, 1], [1, 1]), 1;
    "7x7" [1, 3, 8, 8], [4, 3, 7, 7], [[4]], window([7, 7], [1, 1], [3, 3], [1, 1]), 1;
    "no images" [0, 2, 4, 4], [3, 2, 3, 3], [[3]], window([3, 3], [1, 1], [1, 1], [1, 1]), 1;
};

/// A way through each kind of kernel that may end with ReLU.
pub const MORE_CASES: &[Case] = cases! {
    conv2d_relu;
    "3x3, padding 1, bias" [2, 3, 5, 4], [4, 3, 3, 3], [[4]], window([3, 3], [1, 1], [1, 1], [1, 1]), 1;
    "no bias, stride 2" [2, 3, 7, 6], [4, 3, 3, 3], [], window([3, 3], [2, 2], [1, 1], [1, 1]), 1;
    "two groups, dilation 2" [1, 4, 6, 5], [6, 2, 3, 3], [[6]], window([3, 3], [1, 1], [2, 1], [2, 2]), 2;
    "ragged channels" [1, 9, 3, 4], [17, 9, 1, 1], [[17]], window([1, 1], [1, 1], [0, 0], [1, 1]), 1;
    "depthwise 3x3" [2, 5, 5, 4], [5, 1, 3, 3], [[5]], window([3, 3], [1, 1], [1, 1], [1, 1]), 5;
    "depthwise (3, 2), no bias" [1, 3, 6, 5], [3, 1, 3, 2], [], window([3, 2], [2, 2], [1, 1], [1, 1]), 3;
    "no images" [0, 2, 4, 4], [3, 2, 3, 3], [[3]], window([3, 3], [1, 1], [1, 1], [1, 1]), 1;
};

/// Several tiles and slices with ragged edges, every tile size, and every depthwise kernel.
pub const LARGE: &[Case] = cases! {
    conv2d;
    "three tiles" [1, 36, 15, 10], [133, 36, 3, 2], [[133]], window([3, 2], [1, 1], [1, 1], [1, 1]), 1;
    "three tiles, whole packs, stride 2" [1, 40, 25, 25], [136, 40, 3, 1], [[136]], window([3, 1], [2, 2], [1, 0], [1, 1]), 1;
    "two groups, dilation 2" [1, 48, 14, 14], [144, 24, 3, 3], [[144]], window([3, 3], [1, 1], [2, 1], [2, 2]), 2;
    "stride 3, dilation 2, whole packs" [1, 16, 31, 29], [72, 16, 3, 3], [], window([3, 3], [3, 3], [3, 1], [2, 2]), 1;
    "stride 4, dilation 2" [1, 9, 29, 31], [34, 9, 3, 3], [], window([3, 3], [4, 4], [2, 2], [2, 2]), 1;
    "patches" [1, 3, 32, 48], [70, 3, 8, 8], [[70]], window([8, 8], [8, 8], [0, 0], [1, 1]), 1;
    "7x7 of an image, stride 2, slices" [2, 3, 40, 40], [40, 3, 7, 7], [[40]], window([7, 7], [2, 2], [3, 3], [1, 1]), 1;
    "few channels, slices" [2, 8, 20, 21], [24, 8, 3, 3], [[24]], window([3, 3], [1, 1], [1, 1], [1, 1]), 1;
    "large tiles, forward" [1, 264, 3, 43], [4257, 8, 1, 1], [[4257]], window([1, 1], [1, 1], [0, 0], [1, 1]), 33, detach;
    "large tiles of the input's gradient" [1, 132, 70, 69], [5, 132, 3, 3], [], window([3, 3], [6, 6], [1, 1], [1, 1]), 1;
    "narrow tiles, forward" [1, 264, 3, 43], [2706, 4, 1, 1], [[2706]], window([1, 1], [1, 1], [0, 0], [1, 1]), 66, detach;
    "narrow tiles of the input's gradient" [1, 41, 105, 106], [5, 41, 3, 2], [], window([3, 2], [9, 9], [1, 1], [1, 1]), 1;
    "depthwise 3x3" [2, 70, 21, 18], [70, 1, 3, 3], [[70]], window([3, 3], [1, 1], [1, 1], [1, 1]), 70;
    "depthwise 3x3, stride 2" [2, 70, 21, 18], [70, 1, 3, 3], [[70]], window([3, 3], [2, 2], [1, 1], [1, 1]), 70;
    "depthwise 3x3, padding over the kernel" [2, 7, 9, 10], [7, 1, 3, 3], [], window([3, 3], [1, 1], [4, 3], [1, 1]), 7;
    "depthwise 3x3, stride 2, padding over the kernel" [2, 7, 9, 10], [7, 1, 3, 3], [], window([3, 3], [2, 2], [5, 4], [1, 1]), 7;
    "depthwise 5x5" [1, 36, 25, 19], [36, 1, 5, 5], [[36]], window([5, 5], [1, 1], [2, 2], [1, 1]), 36;
    "depthwise 5x5, stride 2" [1, 36, 25, 19], [36, 1, 5, 5], [[36]], window([5, 5], [2, 2], [1, 2], [1, 1]), 36;
    "depthwise 7x7" [1, 36, 33, 19], [36, 1, 7, 7], [[36]], window([7, 7], [1, 1], [3, 3], [1, 1]), 36;
    "depthwise 7x7, stride 2" [1, 36, 33, 19], [36, 1, 7, 7], [[36]], window([7, 7], [2, 2], [3, 3], [1, 1]), 36;
    "depthwise 9x9" [1, 34, 23, 21], [34, 1, 9, 9], [[34]], window([9, 9], [1, 1], [4, 4], [1, 1]), 34;
    "depthwise 9x9, stride 2" [2, 34, 43, 21], [34, 1, 9, 9], [[34]], window([9, 9], [2, 2], [4, 4], [1, 1]), 34;
    "depthwise 11x11" [1, 34, 27, 19], [34, 1, 11, 11], [[34]], window([11, 11], [1, 1], [5, 0], [1, 1]), 34;
    "depthwise 11x11, stride 2" [2, 34, 49, 25], [34, 1, 11, 11], [[34]], window([11, 11], [2, 2], [5, 5], [1, 1]), 34;
    "depthwise 3x3, no images" [0, 5, 9, 9], [5, 1, 3, 3], [[5]], window([3, 3], [1, 1], [1, 1], [1, 1]), 5;
    "depthwise 5x5, stride (2, 1)" [2, 70, 17, 18], [70, 1, 5, 5], [[70]], window([5, 5], [2, 1], [2, 2], [1, 1]), 70;
    "depthwise 3x3, dilation 2" [2, 70, 17, 18], [70, 1, 3, 3], [[70]], window([3, 3], [1, 1], [2, 2], [2, 2]), 70;
    "depthwise, two outputs a channel" [2, 70, 17, 18], [140, 1, 3, 3], [[140]], window([3, 3], [1, 1], [1, 1], [1, 1]), 70;
};

/// Several tiles, slices of the weight gradient, and strips.
pub const MORE_LARGE: &[Case] = cases! {
    conv2d_relu;
    "three tiles, slices" [1, 36, 15, 10], [133, 36, 3, 2], [[133]], window([3, 2], [1, 1], [1, 1], [1, 1]), 1;
    "few channels, slices" [2, 8, 20, 21], [24, 8, 3, 3], [], window([3, 3], [1, 1], [1, 1], [1, 1]), 1;
    "depthwise 3x3" [2, 70, 21, 18], [70, 1, 3, 3], [[70]], window([3, 3], [1, 1], [1, 1], [1, 1]), 70;
    "depthwise 9x9, stride 2" [2, 34, 43, 21], [34, 1, 9, 9], [[34]], window([9, 9], [2, 2], [4, 4], [1, 1]), 34;
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn errors_name_what_was_expected() -> Result<()> {
        let z = |d: &[usize]| Tensor::zeros(d, DType::F32);
        let w3 = Window::new([3, 3]);
        let e = z(&[8, 3, 32, 32])?
            .conv2d(&z(&[16, 4, 3, 3])?, None, w3, 1)
            .unwrap_err()
            .to_string();
        assert_eq!(
            e,
            "conv2d: weight [16, 4, 3, 3] wants 4 input channels (groups 1) but input [8, 3, 32, 32] has 3"
        );
        let e = z(&[8, 3, 32])?
            .conv2d(&z(&[16, 3, 3, 3])?, None, w3, 1)
            .unwrap_err()
            .to_string();
        assert_eq!(
            e,
            "conv2d: expected an input (N, C, H, W) but got [8, 3, 32]"
        );
        let x = z(&[1, 4, 5, 5])?;
        assert!(x.conv2d(&z(&[3, 2, 3, 3])?, None, w3, 2).is_err());
        assert!(x.conv2d(&z(&[4, 4, 3, 3])?, None, w3, 0).is_err());
        assert!(
            x.conv2d(&z(&[4, 4, 3, 3])?, Some(&z(&[3])?), w3, 1)
                .is_err()
        );
        assert!(
            x.conv2d(&z(&[4, 4, 7, 7])?, None, Window::new([7, 7]), 1)
                .is_err()
        );
        assert!(
            x.conv2d(
                &z(&[4, 4, 3, 3])?,
                None,
                Window {
                    stride: [0, 1],
                    ..w3
                },
                1
            )
            .is_err()
        );
        assert!(matches!(
            x.conv2d(&Tensor::zeros([4, 4, 3, 3], DType::F64)?, None, w3, 1),
            Err(Error::DType { .. })
        ));
        Ok(())
    }

    // a plain convolution and a depthwise one; zero, negative zero and NaN before ReLU among others
    #[test]
    fn relu_in_one_pass_is_relu() -> Result<()> {
        for device in crate::ops::check::devices()? {
            for (dtype, groups) in [
                (DType::F64, 1),
                (DType::F32, 1),
                (DType::BF16, 2),
                (DType::F64, 2),
            ] {
                let leaf = |v: Vec<f64>, shape: [usize; 4]| -> Result<Tensor> {
                    let x = Tensor::from_vec(v, shape)?.to_dtype(dtype)?.to(device)?;
                    Ok(x.requires_grad())
                };
                let x = leaf(vec![1.0, -0.0, f64::NAN, 0.0, -2.0, 3.0], [1, 2, 1, 3])?;
                let w = [1.0, -1.0, 0.5, 2.0];
                let w = leaf(w[..4 / groups].to_vec(), [2, 2 / groups, 1, 1])?;
                let all = |y: Tensor| -> Result<String> {
                    let grads = y.backward_from(&y.ones_like()?)?;
                    let found = [Some(&y), grads.get(&x), grads.get(&w)].map(|t| {
                        let t = t.unwrap().to(Device::Cpu)?.to_dtype(DType::F64)?;
                        t.to_vec::<f64>()
                    });
                    Ok(format!("{found:?}"))
                };
                let window = Window::new([1, 1]);
                assert_eq!(
                    all(x.conv2d_relu(&w, None, window, groups)?)?,
                    all(x.conv2d(&w, None, window, groups)?.relu()?)?,
                    "{dtype}, {groups} groups on {device}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn images_stay_channels_last() -> Result<()> {
        let x = Tensor::ones([2, 3, 4, 5], DType::F32)?;
        let y = x.conv2d(
            &Tensor::ones([4, 3, 1, 1], DType::F32)?,
            None,
            Window::new([1, 1]),
            1,
        )?;
        assert!(y.layout().is_channels_last() && y.relu()?.layout().is_channels_last());
        Ok(())
    }
}
