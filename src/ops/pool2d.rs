//! Max and average pooling over a window that slides over images, and averages over adaptive windows.

use std::ops::Range;

use crate::autograd::{Op, apply};
use crate::cpu::gather::{Axis, gather_by};
use crate::cpu::{rows, strided};
use crate::cuda::{self, Arg, Gpu, Kernels, columns, kernels};
use crate::device::Device;
use crate::dtype::{DType, Element, Real};

use crate::error::{Error, Result};
use crate::level::array;
use crate::ops::Formula;
use crate::ops::check::{Case, Input};
use crate::shape::{Layout, Shape, Window};
use crate::tensor::Tensor;
use crate::with_real;

/// A window's way over images that lie in memory as N, H, W, C: every loop's innermost axis is C.
#[derive(Clone, Copy)]
struct Walk {
    window: Window,
    /// (N, C, H, W)
    input: Shape,
    /// (N, C, H', W')
    output: Shape,
}

impl Walk {
    fn new(op: &'static str, x: &Tensor, window: Window) -> Result<Self> {
        let [n, c, h, w] = x.images(op)?;
        let [oh, ow] = window.output(op, [h, w])?;
        if (0..2).any(|i| window.padding[i] > window.kernel[i] / 2) {
            let Window {
                padding, kernel, ..
            } = window;
            let why = format!("padding {padding:?} is more than half of the kernel {kernel:?}");
            return Err(Error::argument(op, why));
        }
        Ok(Walk {
            window,
            input: *x.shape(),
            output: Shape::new(&[n, c, oh, ow])?,
        })
    }

    /// To outputs of this size by windows that have no one size.
    fn adaptive(op: &'static str, x: &Tensor, output: [usize; 2]) -> Result<Self> {
        let [n, c, h, w] = x.images(op)?;
        if output.contains(&0) {
            let why = format!("output is {output:?}, expected at least 1");
            return Err(Error::argument(op, why));
        }
        // what kernels compute in 32 bits
        let fits = |(size, cells): (usize, usize)| {
            let product = size.checked_mul(cells);
            product.is_some_and(|p| p < 1 << 30)
        };
        let [oh, ow] = output;
        if ![(h, oh), (w, ow)].into_iter().all(fits) {
            let why = format!("output {output:?} of {:?} is too large", x.shape());
            return Err(Error::argument(op, why));
        }
        Ok(Walk {
            window: Window::new([1, 1]),
            input: *x.shape(),
            output: Shape::new(&[n, c, oh, ow])?,
        })
    }

    /// Elements of an image, of an output image and of a row of an output image.
    fn sizes(&self) -> [usize; 3] {
        let (i, o) = (&self.input, &self.output);
        [i[1] * i[2] * i[3], o[1] * o[2] * o[3], o[1] * o[3]]
    }

    /// Elements of a window.
    fn area(&self) -> usize {
        self.window.kernel.iter().product()
    }

    /// Whether windows tile the image: each element lies in exactly one.
    fn tiles(&self) -> bool {
        let w = &self.window;
        w.stride == w.kernel
            && w.padding == [0, 0]
            && w.dilation == [1, 1]
            && (0..2).all(|i| self.input[2 + i].is_multiple_of(w.kernel[i]))
    }

    /// Call `f(index within the window, where the pixel starts in its image)` for each element of
    /// window (oh, ow) that lies within the image, in row-major order.
    #[inline(always)]
    fn taps(&self, oh: usize, ow: usize, mut f: impl FnMut(usize, usize)) {
        let (w, [_, c, height, width]) = (&self.window, dims(&self.input));
        for kh in 0..w.kernel[0] {
            // beyond the image on either side: wraps to a large number
            let h = (oh * w.stride[0] + kh * w.dilation[0]).wrapping_sub(w.padding[0]);
            if h >= height {
                continue;
            }
            for kw in 0..w.kernel[1] {
                let x = (ow * w.stride[1] + kw * w.dilation[1]).wrapping_sub(w.padding[1]);
                if x < width {
                    f(kh * w.kernel[1] + kw, (h * width + x) * c);
                }
            }
        }
    }

    /// Call `f(oh, ow, where the output pixel starts in its image)` for each window.
    #[inline(always)]
    fn windows(&self, mut f: impl FnMut(usize, usize, usize)) {
        let [_, c, oh, ow] = dims(&self.output);
        for h in 0..oh {
            for w in 0..ow {
                f(h, w, (h * ow + w) * c);
            }
        }
    }

    /// A gradient of the input, written by `image(dx, index of the image)`.
    fn input_gradient<T: Real>(
        &self,
        dy: &Tensor,
        image: impl Fn(&mut [T], usize) + Sync,
    ) -> Result<Tensor> {
        let [size, out_size, _] = self.sizes();
        let layout = Layout::channels_last(self.input);
        Tensor::build::<T>(layout, dy.device(), |dx| {
            strided::rows(
                dx,
                size,
                out_size * self.area(),
                #[inline(always)]
                |dx, i| {
                    if !self.tiles() {
                        dx.fill(T::ZERO);
                    }
                    image(dx, i);
                },
            )
        })
    }
}

fn dims(s: &Shape) -> [usize; 4] {
    [s[0], s[1], s[2], s[3]]
}

/// y = max over the window; the first of equals in row-major order takes the gradient, and NaN
/// wins, as PyTorch has it.
struct MaxPool(Walk);

impl Op<1> for MaxPool {
    const NAME: &'static str = "max_pool2d";
    const HALF_ON_CUDA: bool = true;
    /// For each output the index of its maximum within the window: U8 where that suffices.
    type Saved = Tensor;

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, Tensor)> {
        if let Device::Cuda(gpu) = x.device() {
            return self.forward_on(gpu, &x.channels_last()?);
        }
        with_real!(Self::NAME, x.dtype(), T => match self.0.area() {
            0..=256 => self.run::<T, u8>(x, |k| k as u8),
            _ => self.run::<T, i64>(x, i64::from),
        })
    }

    fn backward(&self, arg: Tensor, dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        if let Device::Cuda(gpu) = dy.device() {
            return Ok([Some(self.backward_on(gpu, &arg, &dy.channels_last()?)?)]);
        }
        let dx = with_real!(Self::NAME, dy.dtype(), T => match self.0.area() {
            0..=256 => self.scatter::<T, u8>(&arg, &dy),
            _ => self.scatter::<T, i64>(&arg, &dy),
        })?;
        Ok([Some(dx)])
    }
}

impl MaxPool {
    fn run<T: Real, I: Element>(
        &self,
        x: &Tensor,
        index_of: impl Fn(u32) -> I + Sync,
    ) -> Result<(Tensor, Tensor)> {
        let (walk, x) = (&self.0, x.channels_last()?);
        let v = x.dense_slice::<T>(Self::NAME)?;
        let ([size, _, row], [_, c, oh, _]) = (walk.sizes(), dims(&walk.output));
        let layout = Layout::channels_last(walk.output);
        let mut arg = Tensor::build::<I>(layout, x.device(), |_| {})?;
        let index = arg.make_mut::<I>()?;
        let y = Tensor::build::<T>(layout, x.device(), |y| {
            rows::rows2(
                (y, row),
                (index, row),
                row * walk.area(),
                #[inline(always)]
                |y, arg, r| {
                    let image = &v[r / oh * size..][..size];
                    let mut taps = Vec::with_capacity(walk.area());
                    let pixels = y.chunks_exact_mut(c).zip(arg.chunks_exact_mut(c));
                    for (ow, (y, arg)) in pixels.enumerate() {
                        taps.clear();
                        walk.taps(r % oh, ow, |k, at| {
                            taps.push((k as u32, &image[at..at + c]))
                        });
                        let some = y.chunks_mut(CHANNELS).zip(arg.chunks_mut(CHANNELS));
                        for (i, (y, arg)) in some.enumerate() {
                            greatest(&taps, i * CHANNELS, y, arg, &index_of);
                        }
                    }
                },
            )
        })?;
        Ok((y, arg))
    }

    fn scatter<T: Real, I: Element>(&self, arg: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (walk, dy) = (&self.0, dy.channels_last()?);
        let g = dy.dense_slice::<T>(Self::NAME)?;
        let arg = arg.dense_slice::<I>(Self::NAME)?;
        let (c, tiles, [_, out_size, _]) = (walk.output[1], walk.tiles(), walk.sizes());
        walk.input_gradient::<T>(
            &dy,
            #[inline(always)]
            |dx, i| {
                let g = &g[i * out_size..][..out_size];
                let arg = &arg[i * out_size..][..out_size];
                walk.windows(
                    #[inline(always)]
                    |oh, ow, from| {
                        let (g, arg) = (&g[from..from + c], &arg[from..from + c]);
                        walk.taps(
                            oh,
                            ow,
                            #[inline(always)]
                            |k, at| {
                                let (dx, k) = (&mut dx[at..at + c], I::from_f64(k as f64));
                                if tiles {
                                    for ((dx, &g), &arg) in dx.iter_mut().zip(g).zip(arg) {
                                        *dx = if arg == k { g } else { T::ZERO };
                                    }
                                } else {
                                    for ((dx, &g), &arg) in dx.iter_mut().zip(g).zip(arg) {
                                        *dx += if arg == k { g } else { T::ZERO };
                                    }
                                }
                            },
                        );
                    },
                );
            },
        )
    }
}

/// Channels of a window that are compared together: their maxima stay in a register.
const CHANNELS: usize = 16;

/// The maxima of the channels from `from` on over some pixels, and the numbers of these. Until the
/// last comparison the numbers have 32 bits: the compiler makes no vectors of a loop over both f32
/// and bytes.
#[inline(always)]
fn greatest<T: Real, I: Element>(
    taps: &[(u32, &[T])],
    from: usize,
    y: &mut [T],
    arg: &mut [I],
    index_of: &impl Fn(u32) -> I,
) {
    // a window wholly in the padding (dilation can do that) has no maximum
    let Some(((first, x), rest)) = taps.split_first() else {
        y.fill(T::NEG_INFINITY);
        return arg.fill(index_of(0));
    };
    let (mut most, mut index) = (channels(x, from), [*first; CHANNELS]);
    for (k, x) in rest {
        let x = channels(x, from);
        // all ones where x wins: the compiler makes vectors of bits and of selected floats, of
        // selected numbers not
        let mut wins = [0; CHANNELS];
        for l in 0..CHANNELS {
            wins[l] = if greater(x[l], most[l]) { !0 } else { 0 };
        }
        for l in 0..CHANNELS {
            most[l] = if greater(x[l], most[l]) {
                x[l]
            } else {
                most[l]
            };
            index[l] = k & wins[l] | index[l] & !wins[l];
        }
    }
    put(y, most);
    put(arg, array(|l| index_of(index[l])));
}

/// NaN wins.
#[inline(always)]
#[allow(clippy::eq_op, reason = "NaN differs from itself")]
fn greater<T: Real>(x: T, most: T) -> bool {
    (x > most) | (x != x)
}

/// As many channels as there are.
#[inline(always)]
fn put<E: Copy>(to: &mut [E], channels: [E; CHANNELS]) {
    match to.first_chunk_mut() {
        Some(to) => *to = channels,
        None => to.copy_from_slice(&channels[..to.len()]),
    }
}

/// The channels of a pixel from `from` on, and zeros beyond its last.
#[inline(always)]
fn channels<T: Real>(x: &[T], from: usize) -> [T; CHANNELS] {
    let x = &x[from..];
    x.first_chunk().copied().unwrap_or_else(|| {
        let mut some = [T::ZERO; CHANNELS];
        some[..x.len()].copy_from_slice(x);
        some
    })
}

/// y = sum over the window / its number of elements, those in the padding counted or not.
struct AvgPool {
    walk: Walk,
    count_include_pad: bool,
}

impl AvgPool {
    /// 1 / the number of elements of window (oh, ow).
    fn share<T: Real>(&self, oh: usize, ow: usize) -> T {
        let mut n = self.walk.area();
        if !self.count_include_pad {
            n = 0;
            self.walk.taps(oh, ow, |_, _| n += 1);
        }
        T::ONE / T::of(n as f64)
    }
}

impl Op<1> for AvgPool {
    const NAME: &'static str = "avg_pool2d";
    const HALF_ON_CUDA: bool = true;
    type Saved = ();

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, ())> {
        let (walk, x) = (&self.walk, x.channels_last()?);
        if let Device::Cuda(gpu) = x.device() {
            let y = walk.empty(walk.output, &x)?;
            self.on(gpu, &AVG, [&x, &y])?;
            return Ok((y, ()));
        }
        let ([size, _, row], [_, c, oh, _]) = (walk.sizes(), dims(&walk.output));
        let layout = Layout::channels_last(walk.output);
        let y = with_real!(Self::NAME, x.dtype(), T => {
            let v = x.dense_slice::<T>(Self::NAME)?;
            Tensor::build::<T>(layout, x.device(), |y| {
                strided::rows(y, row, row * walk.area(), #[inline(always)] |y, r| {
                    let image = &v[r / oh * size..][..size];
                    for (ow, y) in y.chunks_exact_mut(c).enumerate() {
                        y.fill(T::ZERO);
                        walk.taps(r % oh, ow, #[inline(always)] |_, at| {
                            for (y, &x) in y.iter_mut().zip(&image[at..at + c]) {
                                    *y += x;
                                }
                        });
                        let share = self.share::<T>(r % oh, ow);
                        for y in y {
                            *y *= share;
                        }
                    }
                })
            })
        })?;
        Ok((y, ()))
    }

    fn backward(&self, _: (), dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let (walk, dy) = (&self.walk, dy.channels_last()?);
        if let Device::Cuda(gpu) = dy.device() {
            let dx = walk.empty(walk.input, &dy)?;
            self.on(gpu, &AVG_BACKWARD, [&dy, &dx])?;
            return Ok([Some(dx)]);
        }
        let (c, tiles, [_, out_size, _]) = (walk.output[1], walk.tiles(), walk.sizes());
        let dx = with_real!(Self::NAME, dy.dtype(), T => {
            let g = dy.dense_slice::<T>(Self::NAME)?;
            walk.input_gradient::<T>(&dy, #[inline(always)] |dx, i| {
                let g = &g[i * out_size..][..out_size];
                walk.windows(#[inline(always)] |oh, ow, from| {
                    let (g, share) = (&g[from..from + c], self.share::<T>(oh, ow));
                    walk.taps(oh, ow, #[inline(always)] |_, at| {
                        let pixel = dx[at..at + c].iter_mut().zip(g);
                        if tiles {
                            for (dx, &g) in pixel {
                                *dx = g * share;
                            }
                        } else {
                            for (dx, &g) in pixel {
                                *dx += g * share;
                            }
                        }
                    });
                });
            })
        })?;
        Ok([Some(dx)])
    }
}

/// y = the mean over a window, window i of H' along the H rows being those from floor(i H / H') to
/// ceil((i + 1) H / H'), and columns alike (PyTorch's `adaptive_avg_pool2d`): each pixel lies in a
/// window, and neighbouring ones share at most a row. dx = the sum of dy / elements over the windows
/// that hold a pixel.
struct AdaptiveAvgPool(Walk);

/// Window `i` of so many over an axis.
fn cell(i: usize, size: usize, cells: usize) -> Range<usize> {
    i * size / cells..((i + 1) * size).div_ceil(cells)
}

impl AdaptiveAvgPool {
    /// Which rows and which columns each output sums, and their shares.
    fn axes<T: Real>(&self) -> [Axis<T>; 2] {
        [2, 3].map(|axis| {
            let (size, cells) = (self.0.input[axis], self.0.output[axis]);
            Axis::new(cells, |i| {
                let cell = cell(i, size, cells);
                let share = T::ONE / T::of(cell.len() as f64);
                cell.map(move |at| (at, share))
            })
        })
    }
}

impl Op<1> for AdaptiveAvgPool {
    const NAME: &'static str = "adaptive_avg_pool2d";
    const HALF_ON_CUDA: bool = true;
    type Saved = ();

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, ())> {
        let (walk, x) = (&self.0, x.channels_last()?);
        if let Device::Cuda(gpu) = x.device() {
            return Ok((self.forward_on(gpu, &x)?, ()));
        }
        let ([_, c, h, w], layout) = (dims(&walk.input), Layout::channels_last(walk.output));
        let y = with_real!(Self::NAME, x.dtype(), T => {
            let v = x.dense_slice::<T>(Self::NAME)?;
            Tensor::build::<T>(layout, x.device(), |y| gather_by(v, [h, w, c], || self.axes(), y))
        })?;
        Ok((y, ()))
    }

    fn backward(&self, _: (), dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let (walk, dy) = (&self.0, dy.channels_last()?);
        if let Device::Cuda(gpu) = dy.device() {
            return Ok([Some(self.backward_on(gpu, &dy)?)]);
        }
        let ([_, c, oh, ow], [_, _, h, w]) = (dims(&walk.output), dims(&walk.input));
        let layout = Layout::channels_last(walk.input);
        let dx = with_real!(Self::NAME, dy.dtype(), T => {
            let g = dy.dense_slice::<T>(Self::NAME)?;
            let axes = || {
                let [rows, columns] = self.axes();
                [rows.transposed(h), columns.transposed(w)]
            };
            Tensor::build::<T>(layout, dy.device(), |dx| gather_by(g, [oh, ow, c], axes, dx))
        })?;
        Ok([Some(dx)])
    }
}

kernels! {
    MAX = "max_pool2d" [F32, F64, BF16, F16];
    MAX_BACKWARD = "max_pool2d_backward" [F32, F64, BF16, F16];
    /// With I64 indices.
    MAX_LONG = "max_pool2d_long" [F32, F64, BF16, F16];
    MAX_LONG_BACKWARD = "max_pool2d_backward_long" [F32, F64, BF16, F16];
    AVG = "avg_pool2d" [F32, F64, BF16, F16];
    AVG_BACKWARD = "avg_pool2d_backward" [F32, F64, BF16, F16];
    ADAPTIVE = "adaptive_avg_pool2d" [F32, F64, BF16, F16];
    ADAPTIVE_BACKWARD = "adaptive_avg_pool2d_backward" [F32, F64, BF16, F16];
}

/// On a GPU.
impl Walk {
    /// `Pool` of `kernels/pool.cu`, word by word.
    fn words(&self) -> Result<[i32; 14]> {
        let ([n, c, h, w], [_, _, oh, ow]) = (dims(&self.input), dims(&self.output));
        let Window {
            kernel,
            stride,
            padding,
            dilation,
        } = self.window;
        let window = [kernel, stride, padding, dilation];
        let mut words = [0; 14];
        for (word, size) in words.iter_mut().zip(
            [n, c, h, w, oh, ow]
                .into_iter()
                .chain(window.into_iter().flatten()),
        ) {
            *word = i32::try_from(size)
                .map_err(|_| Error::argument("pool2d", format!("{window:?} is too large")))?;
        }
        Ok(words)
    }

    /// Images of this shape, yet to be written.
    fn empty(&self, shape: Shape, like: &Tensor) -> Result<Tensor> {
        Tensor::empty(Layout::channels_last(shape), like.dtype(), like.device())
    }

    /// A thread for each pixel and group of channels of `to`: its grid, and whether there
    /// are groups.
    fn threads(&self, from: &Tensor, to: &Tensor) -> ([u32; 3], Arg<'static>) {
        let group = columns::group(to.dtype(), self.input[1], &[from.layout()]);
        let grid = [cuda::blocks(to.numel() / group, 256), 1, 1];
        (grid, Arg::I32((group > 1) as i32))
    }
}

impl MaxPool {
    fn forward_on(&self, gpu: Gpu, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let (walk, words) = (&self.0, self.0.words()?);
        let y = walk.empty(walk.output, x)?;
        let (kernel, index) = match walk.area() {
            0..=256 => (&MAX, DType::U8),
            _ => (&MAX_LONG, DType::I64),
        };
        let arg = Tensor::empty(*y.layout(), index, x.device())?;
        let (grid, grouped) = walk.threads(x, &y);
        let args = [
            Arg::Struct(&words),
            x.input(),
            y.output(),
            arg.output(),
            grouped,
        ];
        gpu.launch(kernel.of(x.dtype())?, grid, [256, 1, 1], 0, &args)?;
        Ok((y, arg))
    }

    fn backward_on(&self, gpu: Gpu, arg: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (walk, words) = (&self.0, self.0.words()?);
        let dx = walk.empty(walk.input, dy)?;
        let kernel = match arg.dtype() {
            DType::U8 => &MAX_BACKWARD,
            _ => &MAX_LONG_BACKWARD,
        };
        let (grid, grouped) = walk.threads(dy, &dx);
        let args = [
            Arg::Struct(&words),
            arg.input(),
            dy.input(),
            dx.output(),
            grouped,
        ];
        gpu.launch(kernel.of(dy.dtype())?, grid, [256, 1, 1], 0, &args)?;
        Ok(dx)
    }
}

impl AvgPool {
    fn on(&self, gpu: Gpu, kernel: &'static Kernels, [from, to]: [&Tensor; 2]) -> Result<()> {
        let words = self.walk.words()?;
        let (grid, grouped) = self.walk.threads(from, to);
        let counted = Arg::I32(self.count_include_pad as i32);
        let args = [
            Arg::Struct(&words),
            from.input(),
            to.output(),
            counted,
            grouped,
        ];
        gpu.launch(kernel.of(to.dtype())?, grid, [256, 1, 1], 0, &args)
    }
}

impl AdaptiveAvgPool {
    fn forward_on(&self, gpu: Gpu, x: &Tensor) -> Result<Tensor> {
        let (walk, words) = (&self.0, self.0.words()?);
        let ([_, c, h, w], [_, _, oh, ow]) = (dims(&walk.input), dims(&walk.output));
        let y = walk.empty(walk.output, x)?;
        let group = columns::group(x.dtype(), c, &[x.layout()]);
        // threads that share a window: each has some pixels of a row of it, neighbours make a good read
        let row = if ow == 1 {
            h.div_ceil(oh) * w
        } else {
            w.div_ceil(ow)
        };
        let across = (c / group).next_power_of_two().min(8);
        let tall = (row / 4 + 1).next_power_of_two() / 2;
        let tall = tall.clamp(1, 256 / across);
        let args = [
            Arg::Struct(&words),
            x.input(),
            y.output(),
            Arg::I32(tall as i32),
            Arg::I32((group > 1) as i32),
        ];
        let grid = [cuda::blocks(y.numel() / group, 256 / tall), 1, 1];
        gpu.launch(ADAPTIVE.of(x.dtype())?, grid, [256, 1, 1], 0, &args)?;
        Ok(y)
    }

    fn backward_on(&self, gpu: Gpu, dy: &Tensor) -> Result<Tensor> {
        let (walk, words) = (&self.0, self.0.words()?);
        let dx = walk.empty(walk.input, dy)?;
        let (grid, grouped) = walk.threads(dy, &dx);
        let args = [Arg::Struct(&words), dy.input(), dx.output(), grouped];
        let kernel = ADAPTIVE_BACKWARD.of(dy.dtype())?;
        gpu.launch(kernel, grid, [256, 1, 1], 0, &args)?;
        Ok(dx)
    }
}

impl Tensor {
    /// The greatest of each window: (N, C, H, W) to (N, C, H', W'), sizes by [`Window::output`].
    /// Padding counts as minus infinity and is at most half of the kernel.
    ///
    /// ```
    /// # use cotangent::{shape::Window, DType, Tensor};
    /// let x = Tensor::arange(0.0, 16.0, 1.0, DType::F32)?.reshape([1, 1, 4, 4])?;
    /// let y = x.max_pool2d(Window { stride: [2, 2], ..Window::new([2, 2]) })?;
    /// assert_eq!(y.to_vec::<f32>()?, [5.0, 7.0, 13.0, 15.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn max_pool2d(&self, window: Window) -> Result<Tensor> {
        let walk = Walk::new(<MaxPool as Op<1>>::NAME, self, window)?;
        apply(MaxPool(walk), [self])
    }

    /// The mean of each window: (N, C, H, W) to (N, C, H', W'), sizes by [`Window::output`].
    /// Padding, at most half of the kernel, is 0 and counts as elements if `count_include_pad`
    /// (PyTorch's default). Dilation must be 1.
    ///
    /// ```
    /// # use cotangent::{shape::Window, DType, Tensor};
    /// let x = Tensor::arange(0.0, 4.0, 1.0, DType::F32)?.reshape([1, 1, 2, 2])?;
    /// assert_eq!(x.avg_pool2d(Window::new([2, 2]), true)?.item()?, 1.5);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn avg_pool2d(&self, window: Window, count_include_pad: bool) -> Result<Tensor> {
        let op = <AvgPool as Op<1>>::NAME;
        let walk = Walk::new(op, self, window)?;
        if window.dilation != [1, 1] {
            let why = format!("dilation is {:?}, expected [1, 1]", window.dilation);
            return Err(Error::argument(op, why));
        }
        apply(
            AvgPool {
                walk,
                count_include_pad,
            },
            [self],
        )
    }

    /// The mean of each of `output` (height, width) windows that cover the images evenly: (N, C, H,
    /// W) to (N, C, height, width). Window i of H' holds the rows from floor(i H / H') to
    /// ceil((i + 1) H / H'). With `[1, 1]` the mean of whole images.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor};
    /// let x = Tensor::arange(0.0, 6.0, 1.0, DType::F32)?.reshape([1, 1, 2, 3])?;
    /// assert_eq!(x.adaptive_avg_pool2d([1, 2])?.to_vec::<f32>()?, [2.0, 3.0]);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn adaptive_avg_pool2d(&self, output: [usize; 2]) -> Result<Tensor> {
        let op = <AdaptiveAvgPool as Op<1>>::NAME;
        apply(AdaptiveAvgPool(Walk::adaptive(op, self, output)?), [self])
    }
}

/// For the table of ops.
pub const FORMULAS: &[Formula] = &[
    (
        "max_pool2d",
        "the greatest of a window, the first of equals taking the gradient",
    ),
    (
        "avg_pool2d",
        "sum over a window / its elements, those in the padding counted or not",
    ),
    (
        "adaptive_avg_pool2d",
        "mean over rows floor(i H / H') to ceil((i + 1) H / H') and columns alike",
    ),
];

const fn window(kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2]) -> Window {
    Window {
        kernel,
        stride,
        padding,
        dilation: [1, 1],
    }
}

macro_rules! cases {
    ($($name:literal $shape:expr, $kernel:expr, $stride:expr, $padding:expr;)*) => {
        &[$(
            Case { op: "max_pool2d", name: $name, inputs: &[Input::Distinct(&$shape)],
                run: |x| x[0].max_pool2d(window($kernel, $stride, $padding)) },
            Case { op: "avg_pool2d", name: $name, inputs: &[Input::Normal(&$shape)],
                run: |x| x[0].avg_pool2d(window($kernel, $stride, $padding), false) },
        )*]
    };
}

macro_rules! adaptive {
    ($($name:literal $shape:expr, $output:expr;)*) => {
        &[$(Case {
            op: "adaptive_avg_pool2d",
            name: $name,
            inputs: &[Input::Normal(&$shape)],
            run: |x| x[0].adaptive_avg_pool2d($output),
        }),*]
    };
}

/// Even and overlapping windows, whole images, more windows than pixels, and degenerate sizes.
pub const ADAPTIVE_CASES: &[Case] = adaptive! {
    "halves" [2, 3, 4, 6], [2, 3];
    "overlapping" [2, 3, 5, 7], [3, 4];
    "whole images" [3, 4, 5, 3], [1, 1];
    "rows of whole images" [2, 5, 6, 3], [4, 1];
    "columns of whole images" [2, 8, 3, 7], [1, 3];
    "its own size" [1, 2, 3, 4], [3, 4];
    "more windows than pixels" [2, 3, 2, 3], [5, 4];
    "1x1 image" [2, 3, 1, 1], [1, 1];
    "1x1 image to 2x3" [1, 3, 1, 1], [2, 3];
    "one channel" [1, 1, 5, 4], [2, 2];
    "no image" [0, 3, 4, 4], [2, 2];
    "no channel" [2, 0, 4, 4], [1, 1];
};

/// Several blocks, whole images by many threads each, channels in groups and not.
pub const ADAPTIVE_LARGE: &[Case] = adaptive! {
    "whole images, 7x7" [3, 136, 7, 7], [1, 1];
    "whole images, 33x29, ragged channels" [2, 9, 33, 29], [1, 1];
    "whole images, one channel" [2, 1, 41, 37], [1, 1];
    "pyramid" [1, 20, 29, 31], [6, 6];
    "long rows of windows" [1, 12, 23, 70], [3, 2];
    "rows of whole images, many" [1, 70, 19, 12], [7, 1];
    "more windows than pixels, many" [2, 12, 5, 7], [17, 13];
};

/// Tiles, gaps, overlap, padding and degenerate sizes.
pub const CASES: &[Case] = cases! {
    "2x2 tiles" [2, 3, 4, 6], [2, 2], [2, 2], [0, 0];
    "2x2, ragged edge" [2, 3, 5, 7], [2, 2], [2, 2], [0, 0];
    "3x3 overlapping, padded" [2, 3, 7, 6], [3, 3], [2, 2], [1, 1];
    "3x2 by one" [1, 2, 4, 5], [3, 2], [1, 1], [1, 1];
    "gaps between windows" [2, 2, 7, 7], [2, 1], [3, 2], [0, 0];
    "19 channels" [2, 19, 4, 4], [2, 2], [2, 2], [0, 0];
    "whole image" [3, 2, 5, 3], [5, 3], [1, 1], [0, 0];
    "17x17, more than 256 elements" [1, 1, 17, 18], [17, 17], [1, 1], [0, 0];
    "1x1 image" [2, 3, 1, 1], [1, 1], [1, 1], [0, 0];
    "1x1 image, padded" [2, 3, 1, 1], [3, 3], [1, 1], [1, 1];
    "no image" [0, 3, 4, 4], [2, 2], [2, 2], [0, 0];
    "no channel" [2, 0, 4, 4], [2, 2], [2, 2], [0, 0];
};

/// What one of the two alone has.
pub const MORE_CASES: &[Case] = &[
    Case {
        op: "max_pool2d",
        name: "dilated",
        inputs: &[Input::Distinct(&[2, 3, 6, 7])],
        run: |x| {
            x[0].max_pool2d(Window {
                dilation: [2, 3],
                ..window([2, 2], [1, 2], [1, 0])
            })
        },
    },
    Case {
        op: "avg_pool2d",
        name: "padding counted",
        inputs: &[Input::Normal(&[2, 3, 5, 6])],
        run: |x| x[0].avg_pool2d(window([3, 3], [2, 1], [1, 1]), true),
    },
];

/// Several blocks, channels in groups and not, with every kind of overlap.
pub const LARGE: &[Case] = cases! {
    "2x2 tiles, many" [3, 12, 16, 14], [2, 2], [2, 2], [0, 0];
    "3x3 overlapping, many" [2, 8, 23, 19], [3, 3], [2, 2], [1, 1];
    "5x4 by one, many" [2, 7, 15, 13], [5, 4], [1, 1], [2, 2];
    "68 channels" [1, 68, 9, 11], [3, 2], [2, 3], [1, 0];
    "17x17, many" [2, 4, 40, 37], [17, 17], [3, 5], [8, 4];
};

/// What one of the two alone has.
pub const MORE_LARGE: &[Case] = &[Case {
    op: "max_pool2d",
    name: "dilated, many",
    inputs: &[Input::Distinct(&[2, 8, 17, 21])],
    run: |x| {
        x[0].max_pool2d(Window {
            dilation: [2, 3],
            ..window([3, 3], [1, 2], [1, 1])
        })
    },
}];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::devices;

    #[test]
    fn ties_nan_and_empty_windows_follow_pytorch() -> Result<()> {
        for device in devices()? {
            ties_nan_and_empty_windows(device)?;
        }
        Ok(())
    }

    fn ties_nan_and_empty_windows(device: Device) -> Result<()> {
        let pool = |v: Vec<f32>, w: Window| -> Result<(Vec<f32>, Vec<f32>)> {
            let x = Tensor::from_vec(v, [1, 1, 2, 2])?
                .to(device)?
                .requires_grad();
            let y = x.max_pool2d(w)?;
            let grads = y.backward_from(&y.ones_like()?)?;
            Ok((y.to_vec()?, grads.get(&x).unwrap().to_vec()?))
        };
        let w = Window::new([2, 2]);
        assert_eq!(
            pool(vec![1.0, 3.0, 3.0, 2.0], w)?,
            (vec![3.0], vec![0.0, 1.0, 0.0, 0.0])
        );
        let (y, dx) = pool(vec![1.0, f32::NAN, 3.0, 2.0], w)?;
        assert!(y[0].is_nan());
        assert_eq!(dx, [0.0, 1.0, 0.0, 0.0]);
        // both elements of each window in the padding
        let w = Window {
            padding: [1, 1],
            dilation: [3, 3],
            ..w
        };
        assert_eq!(
            pool(vec![1.0; 4], w)?,
            (vec![f32::NEG_INFINITY], vec![0.0; 4])
        );
        Ok(())
    }

    #[test]
    fn averages_count_the_padding_or_not() -> Result<()> {
        let x = Tensor::ones([1, 1, 2, 2], DType::F64)?;
        let w = window([2, 2], [2, 2], [1, 1]);
        assert_eq!(x.avg_pool2d(w, true)?.to_vec::<f64>()?, [0.25; 4]);
        assert_eq!(x.avg_pool2d(w, false)?.to_vec::<f64>()?, [1.0; 4]);
        Ok(())
    }

    #[test]
    fn adaptive_windows_of_whole_images_are_the_mean() -> Result<()> {
        let x = Tensor::arange(0.0, 240.0, 1.0, DType::F64)?.reshape([2, 6, 4, 5])?;
        let means = |t: Tensor| t.reshape([12])?.to_vec::<f64>();
        let (found, expected) = (x.adaptive_avg_pool2d([1, 1])?, x.mean(&[2, 3], true)?);
        assert!(found.layout().is_channels_last());
        for (a, b) in means(found)?.iter().zip(means(expected)?) {
            assert!((a - b).abs() < 1e-10, "{a} {b}");
        }
        Ok(())
    }

    #[test]
    fn outputs_lie_channels_last() -> Result<()> {
        let x = Tensor::ones([2, 3, 4, 4], DType::F32)?;
        assert!(
            x.max_pool2d(Window::new([2, 2]))?
                .layout()
                .is_channels_last()
        );
        Ok(())
    }

    #[test]
    fn errors() -> Result<()> {
        let e = |r: Result<Tensor>| r.unwrap_err().to_string();
        let x = Tensor::ones([1, 2, 4, 4], DType::F32)?;
        assert_eq!(
            e(x.max_pool2d(window([2, 2], [1, 1], [2, 0]))),
            "max_pool2d: padding [2, 0] is more than half of the kernel [2, 2]"
        );
        assert!(e(x.avg_pool2d(Window::new([5, 5]), true)).contains("larger than the input"));
        let dilated = Window {
            dilation: [2, 1],
            ..Window::new([2, 2])
        };
        assert_eq!(
            e(x.avg_pool2d(dilated, true)),
            "avg_pool2d: dilation is [2, 1], expected [1, 1]"
        );
        assert_eq!(
            e(x.adaptive_avg_pool2d([0, 1])),
            "adaptive_avg_pool2d: output is [0, 1], expected at least 1"
        );
        assert_eq!(
            e(x.adaptive_avg_pool2d([1, usize::MAX])),
            format!(
                "adaptive_avg_pool2d: output [1, {}] of [1, 2, 4, 4] is too large",
                usize::MAX
            )
        );
        assert_eq!(
            e(Tensor::ones([1, 2, 0, 4], DType::F32)?.adaptive_avg_pool2d([1, 1])),
            "adaptive_avg_pool2d: expected images but got [1, 2, 0, 4]"
        );
        let flat = Tensor::ones([4, 4], DType::F32)?;
        assert_eq!(
            e(flat.adaptive_avg_pool2d([1, 1])),
            "adaptive_avg_pool2d: expected (N, C, H, W) but got [4, 4]"
        );
        assert_eq!(
            e(flat.max_pool2d(Window::new([2, 2]))),
            "max_pool2d: expected (N, C, H, W) but got [4, 4]"
        );
        assert!(
            x.to_dtype(DType::I64)?
                .max_pool2d(Window::new([2, 2]))
                .is_err()
        );
        Ok(())
    }
}
