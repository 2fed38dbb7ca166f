//! Depthwise conv2d on CUDA: which windows have kernels of their own, and how strips are cut.

use super::cuda::{BLOCKS, scratch, sizes, wide};
use crate::cpu::conv::ConvShape;
use crate::cuda::{self, Arg, Gpu, Kernel, Kernels, float_kernels, kernels};
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;

kernels! {
    /// Any window, place by place.
    FORWARD = "depthwise_forward" [F32, F64, BF16, F16];
    INPUT_GRAD = "depthwise_input_grad" [F32, F64, BF16, F16];
    WEIGHT_GRAD = "depthwise_weight_grad" [F32, F64, BF16, F16];
}

/// Groups of channels whose blocks the weight gradient can count.
const COUNTERS: usize = 2048;

/// The kernels of one window, each with the width of its strips.
struct Special {
    forward: (Kernels, usize),
    input_grad: (Kernels, usize),
    weight_grad: (Kernels, usize),
}

macro_rules! special {
    ($name:literal, $forward:literal, $input_grad:literal, $weight_grad:literal) => {
        Special {
            forward: (
                float_kernels!(concat!("depthwise_forward_", $name)),
                $forward,
            ),
            input_grad: (
                float_kernels!(concat!("depthwise_input_grad_", $name)),
                $input_grad,
            ),
            weight_grad: (
                float_kernels!(concat!("depthwise_weight_grad_", $name)),
                $weight_grad,
            ),
        }
    };
}

/// By (kernel - 3) / 2 and stride - 1, as `kernels/depthwise.cu` has them.
static SPECIAL: [[Special; 2]; 5] = [
    [special!("3s1", 4, 4, 4), special!("3s2", 4, 4, 4)],
    [special!("5s1", 4, 4, 4), special!("5s2", 4, 4, 5)],
    [special!("7s1", 4, 4, 4), special!("7s2", 4, 2, 4)],
    [special!("9s1", 8, 8, 2), special!("9s2", 6, 4, 2)],
    [special!("11s1", 8, 8, 2), special!("11s2", 8, 4, 2)],
];

fn special(s: &ConvShape, dtype: DType) -> Option<&'static Special> {
    let w = &s.window;
    let [k, stride] = [w.kernel[0], w.stride[0]];
    let known = dtype != DType::F64
        && w.dilation == [1, 1]
        && (w.kernel, w.stride) == ([k, k], [stride, stride])
        && k % 2 == 1;
    let of_kernel = SPECIAL.get(k.checked_sub(3)? / 2)?;
    of_kernel.get(stride - 1).filter(|_| known)
}

/// How images of `high` x `wide` places are cut among threads.
struct Strips {
    /// `Strips` of the kernels: channels of a block, and places of a strip one below another.
    words: [i32; 2],
    /// Blocks for all strips of a group of channels, and such groups.
    grid: [usize; 2],
    shared: u32,
}

impl Strips {
    fn new(s: &ConvShape, [high, wide]: [usize; 2], width: usize) -> Self {
        let lanes = s.co.next_power_of_two().min(32);
        let across = s.n * wide.div_ceil(width);
        // higher strips read fewer rows twice, lower ones give more threads
        let down = (BLOCKS * 512).div_ceil((across * s.co).max(1));
        let rows = high.div_ceil(down).max(2 * s.window.kernel[0]).min(high);
        let strips = across * high.div_ceil(rows);
        Strips {
            words: [lanes as i32, rows as i32],
            grid: [strips.div_ceil(128 / lanes), s.co.div_ceil(lanes)],
            shared: (lanes * s.taps() * size_of::<f32>()) as u32,
        }
    }

    fn launch(&self, kernel: &'static Kernel, gpu: Gpu, args: &[Arg<'_>]) -> Result<()> {
        let grid = [self.grid[0] as u32, self.grid[1] as u32, 1];
        gpu.launch(kernel, grid, [128, 1, 1], self.shared, args)
    }
}

/// One thread an element of `out`.
fn each(kernel: &'static Kernel, out: &Tensor, args: &[Arg<'_>], gpu: Gpu) -> Result<()> {
    let grid = [cuda::blocks(out.numel(), 256), 1, 1];
    gpu.launch(kernel, grid, [256, 1, 1], 0, args)
}

/// Writes y; with `relu` through ReLU.
pub(super) fn forward(
    op: &'static str,
    s: &ConvShape,
    [x, w]: [&Tensor; 2],
    bias: Option<&Tensor>,
    relu: bool,
    y: &Tensor,
    gpu: Gpu,
) -> Result<()> {
    // without a bias the weight takes its place
    let b = bias.unwrap_or(w);
    let sizes = sizes(op, s)?;
    let last = [bias.is_some(), relu].map(|x| Arg::I32(x as i32));
    let mut args = vec![
        x.input(),
        w.input(),
        b.input(),
        y.output(),
        Arg::Struct(&sizes),
    ];
    let Some(special) = special(s, x.dtype()) else {
        args.extend(last);
        return each(FORWARD.of(x.dtype())?, y, &args, gpu);
    };
    let strips = Strips::new(s, [s.oh, s.ow], special.forward.1);
    args.push(Arg::Struct(&strips.words));
    args.extend(last);
    strips.launch(special.forward.0.of(x.dtype())?, gpu, &args)
}

/// Writes dx, with the bias of a transposed convolution.
pub(super) fn input_grad(
    op: &'static str,
    s: &ConvShape,
    [dy, w]: [&Tensor; 2],
    bias: Option<&Tensor>,
    dx: &Tensor,
    gpu: Gpu,
) -> Result<()> {
    let dtype = dy.dtype();
    // without a bias the weight takes its place
    let b = bias.unwrap_or(w);
    let sizes = sizes(op, s)?;
    let last = Arg::I32(bias.is_some() as i32);
    let mut args = vec![
        dy.input(),
        w.input(),
        b.input(),
        dx.output(),
        Arg::Struct(&sizes),
    ];
    let Some(special) = special(s, dtype) else {
        args.push(last);
        return each(INPUT_GRAD.of(dtype)?, dx, &args, gpu);
    };
    // dx falls into groups of a stride's places, of which the first may begin in the padding
    let groups = |axis: usize, size: usize| {
        let (stride, padding) = (s.window.stride[axis], s.window.padding[axis]);
        (size - 1 + padding) / stride + 1 - padding / stride
    };
    let strips = Strips::new(s, [groups(0, s.h), groups(1, s.w)], special.input_grad.1);
    args.push(Arg::Struct(&strips.words));
    args.push(last);
    strips.launch(special.input_grad.0.of(dtype)?, gpu, &args)
}

/// Writes dw.
pub(super) fn weight_grad(
    op: &'static str,
    s: &ConvShape,
    [x, dy]: [&Tensor; 2],
    dw: &Tensor,
    gpu: Gpu,
) -> Result<()> {
    let dtype = dy.dtype();
    let sizes = sizes(op, s)?;
    let Some(special) = special(s, dtype) else {
        let args = [x.input(), dy.input(), dw.output(), Arg::Struct(&sizes)];
        let grid = [s.taps() as u32, s.co.div_ceil(32) as u32, 1];
        return gpu.launch(WEIGHT_GRAD.of(dtype)?, grid, [256, 1, 1], 0, &args);
    };
    let mut strips = Strips::new(s, [s.oh, s.ow], special.weight_grad.1);
    let [blocks, groups] = &mut strips.grid;
    let most = if *groups > COUNTERS {
        1
    } else {
        (2 * BLOCKS).div_ceil(*groups)
    };
    *blocks = (*blocks).clamp(1, most);
    let parts = if *blocks > 1 { *blocks * s.weight() } else { 0 };
    let parts = scratch(parts, wide(dtype), dy)?;
    let args = [
        x.input(),
        dy.input(),
        parts.output(),
        dw.output(),
        Arg::Struct(&sizes),
        Arg::Struct(&strips.words),
    ];
    strips.launch(special.weight_grad.0.of(dtype)?, gpu, &args)
}
