//! conv2d on CUDA as implicit products: their tiles, their slices, and what goes before and after.

use super::depthwise;
use crate::cpu::conv::ConvShape;
use crate::cuda::{Arg, Gpu, Kernels, float_kernels, kernels};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::{Layout, Shape};
use crate::tensor::Tensor;

kernels! {
    /// Weights in the order of a product.
    PACK = "conv_pack" [F32, F64, BF16, F16];
    /// Sums of slices, in the weight's order.
    FOLD = "conv_fold" [F32, F64, BF16, F16];
    BIAS_GRAD = "conv_bias_grad" [F32, F64, BF16, F16];
}

/// Blocks that should run at least: some for each multiprocessor of a large GPU. A constant, so
/// that sums are cut alike everywhere.
pub(super) const BLOCKS: usize = 264;

/// `Conv` of `kernels/conv.cuh`.
type Sizes = [i32; 16];

/// An error of `op` for what kernels do not count in 32 bits.
pub(super) fn sizes(op: &'static str, s: &ConvShape) -> Result<Sizes> {
    let w = &s.window;
    // a kernel of one makes no step
    let dilation = [0, 1].map(|i| if w.kernel[i] == 1 { 1 } else { w.dilation[i] });
    let mut sizes = [0; 16];
    let all = [
        s.n,
        s.h,
        s.w,
        s.ci,
        s.oh,
        s.ow,
        s.co,
        w.kernel[0],
        w.kernel[1],
        w.stride[0],
        w.stride[1],
        w.padding[0],
        w.padding[1],
        dilation[0],
        dilation[1],
        s.groups,
    ];
    for (to, size) in sizes.iter_mut().zip(all) {
        *to =
            i32::try_from(size).map_err(|_| Error::argument(op, format!("{w:?} is too large")))?;
    }
    Ok(sizes)
}

/// The type that `dtype` is summed in.
pub(super) fn wide(dtype: DType) -> DType {
    if dtype.is_half() { DType::F32 } else { dtype }
}

/// A tensor of `n` numbers that only kernels see.
pub(super) fn scratch(n: usize, dtype: DType, like: &Tensor) -> Result<Tensor> {
    Tensor::empty(Layout::contiguous(Shape::new(&[n])?), dtype, like.device())
}

/// [number, length] of the slices into which a sum over `n` is cut so that `tiles` blocks a slice
/// keep the GPU busy.
fn slices(n: usize, tiles: usize) -> [usize; 2] {
    let most = n.div_ceil(256).max(1);
    let length = n.div_ceil((BLOCKS / tiles.max(1)).clamp(1, most)).max(1);
    let length = length.next_multiple_of(32);
    [n.div_ceil(length), length]
}

/// The three products in one size of tile.
struct Tile {
    rows: usize,
    columns: usize,
    /// Terms at a time in f32 and f64; tensor cores take 32.
    depth: usize,
    forward: Kernels,
    input_grad: Kernels,
    weight_grad: Kernels,
}

macro_rules! tile {
    ($name:literal, $rows:literal, $columns:literal, $depth:literal) => {
        Tile {
            rows: $rows,
            columns: $columns,
            depth: $depth,
            forward: float_kernels!(concat!("conv_forward_", $name)),
            input_grad: float_kernels!(concat!("conv_input_grad_", $name)),
            weight_grad: float_kernels!(concat!("conv_weight_grad_", $name)),
        }
    };
}

/// The only one of f64.
static SMALL: Tile = tile!("64x64", 64, 64, 16);
static LARGE: Tile = tile!("128x128", 128, 128, 8);
static NARROW: Tile = tile!("128x64", 128, 64, 16);
/// Of f32 alone.
static NARROWEST: Tile = tile!("128x32", 128, 32, 32);

impl Tile {
    /// For `count` matrices of this size.
    fn new(dtype: DType, rows: usize, columns: usize, count: usize) -> &'static Tile {
        let wide = match columns {
            _ if dtype == DType::F64 => &SMALL,
            0..=32 if dtype == DType::F32 => &NARROWEST,
            0..=64 => &NARROW,
            _ => &LARGE,
        };
        let few = rows <= 64 || wide.blocks(rows, columns) * count < BLOCKS / 2;
        if few && wide.columns >= SMALL.columns {
            &SMALL
        } else {
            wide
        }
    }

    fn blocks(&self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(self.rows) * columns.div_ceil(self.columns)
    }

    /// Threads of a block and its shared memory, as `kernels/tile.cuh` wants them.
    fn block(&self, dtype: DType) -> ([u32; 3], u32) {
        let (threads, bytes) = match dtype {
            DType::F32 => (256, 2 * self.depth * (self.rows + self.columns + 8) * 4),
            DType::F64 => (256, 2 * 8 * (self.rows + self.columns + 8) * 8),
            _ => (128, 4 * 32 * (self.rows + self.columns) * 2),
        };
        ([threads, 1, 1], bytes as u32)
    }
}

/// The weight as a product's right factor: \[group, tap, in, out\], or with in and out exchanged;
/// rows are padded to whole packs.
fn packed(s: &ConvShape, w: &Tensor, gpu: Gpu, exchanged: bool) -> Result<Tensor> {
    let [co, ci] = [s.co / s.groups, s.ci / s.groups];
    let [rows, columns] = if exchanged { [co, ci] } else { [ci, co] };
    let n = s.groups * s.taps() * rows * columns.next_multiple_of(8);
    let out = scratch(n, w.dtype(), w)?;
    let counts = [n, s.groups, co, ci, s.taps(), exchanged as usize];
    let counts = counts.map(|x| Arg::I32(x as i32));
    let args = [&[w.input(), out.output()][..], &counts].concat();
    gpu.launch_over(PACK.of(w.dtype())?, n, 256, &args)?;
    Ok(out)
}

/// `parts` \[slices, groups, taps, in, out\] added, as a weight \[groups out, in, taps\].
fn folded(
    parts: &Tensor,
    [slices, co, ci, taps]: [usize; 4],
    layout: Layout,
    dtype: DType,
    gpu: Gpu,
) -> Result<Tensor> {
    let out = Tensor::empty(layout, dtype, parts.device())?;
    let n = out.numel();
    let counts = [n, slices, co, ci, taps].map(|x| Arg::I32(x as i32));
    let args = [&[parts.input(), out.output()][..], &counts].concat();
    gpu.launch_over(FOLD.of(dtype)?, n, 256, &args)?;
    Ok(out)
}

/// y, in memory N, H, W, C as all images here; with `relu` through ReLU.
pub(in crate::ops) fn forward(
    op: &'static str,
    s: &ConvShape,
    [x, w]: [&Tensor; 2],
    bias: Option<&Tensor>,
    relu: bool,
    gpu: Gpu,
) -> Result<Tensor> {
    let out = Layout::channels_last(Shape::new(&[s.n, s.co, s.oh, s.ow])?);
    let y = Tensor::empty(out, x.dtype(), x.device())?;
    if s.is_depthwise() {
        depthwise::forward(op, s, [x, w], bias, relu, &y, gpu)?;
        return Ok(y);
    }
    let right = packed(s, w, gpu, false)?;
    let [rows, columns] = [s.n * s.oh * s.ow, s.co / s.groups];
    let tile = Tile::new(x.dtype(), rows, columns, s.groups);
    let (block, shared) = tile.block(x.dtype());
    let grid = [(tile.blocks(rows, columns) * s.groups) as u32, 1, 1];
    let args = [
        x.input(),
        right.input(),
        bias.unwrap_or(w).input(),
        y.output(),
        Arg::Struct(&sizes(op, s)?),
        Arg::I32(bias.is_some() as i32),
        Arg::I32(relu as i32),
    ];
    gpu.launch(tile.forward.of(x.dtype())?, grid, block, shared, &args)?;
    Ok(y)
}

/// dx of this layout, with the bias of a transposed convolution. With stride s it is s x s
/// interleaved products, each with its own taps.
pub(in crate::ops) fn input_grad(
    op: &'static str,
    s: &ConvShape,
    [dy, w]: [&Tensor; 2],
    bias: Option<&Tensor>,
    layout: Layout,
    gpu: Gpu,
) -> Result<Tensor> {
    let dx = Tensor::empty(layout, dy.dtype(), dy.device())?;
    if s.is_depthwise() {
        depthwise::input_grad(op, s, [dy, w], bias, &dx, gpu)?;
        return Ok(dx);
    }
    let right = packed(s, w, gpu, true)?;
    let [sh, sw] = s.window.stride;
    let [rows, columns] = [s.n * s.h.div_ceil(sh) * s.w.div_ceil(sw), s.ci / s.groups];
    let tile = Tile::new(dy.dtype(), rows, columns, s.groups * sh * sw);
    let (block, shared) = tile.block(dy.dtype());
    let blocks = tile.blocks(rows, columns) * s.groups * sh * sw;
    let args = [
        dy.input(),
        right.input(),
        bias.unwrap_or(w).input(),
        dx.output(),
        Arg::Struct(&sizes(op, s)?),
        Arg::I32(bias.is_some() as i32),
    ];
    let kernel = tile.input_grad.of(dy.dtype())?;
    gpu.launch(kernel, [blocks as u32, 1, 1], block, shared, &args)?;
    Ok(dx)
}

/// dw of this layout.
pub(in crate::ops) fn weight_grad(
    op: &'static str,
    s: &ConvShape,
    [x, dy]: [&Tensor; 2],
    layout: Layout,
    gpu: Gpu,
) -> Result<Tensor> {
    let dtype = dy.dtype();
    if s.is_depthwise() {
        let dw = Tensor::empty(layout, dtype, dy.device())?;
        depthwise::weight_grad(op, s, [x, dy], &dw, gpu)?;
        return Ok(dw);
    }
    let [co, ci, taps] = [s.co / s.groups, s.ci / s.groups, s.taps()];
    let tile = Tile::new(dtype, taps * ci, co, s.groups * BLOCKS);
    let (block, shared) = tile.block(dtype);
    let tiles = tile.blocks(taps * ci, co) * s.groups;
    let [slices, length] = slices(s.n * s.oh * s.ow, tiles);
    let parts = scratch(slices * s.weight(), wide(dtype), dy)?;
    let args = [
        x.input(),
        dy.input(),
        parts.output(),
        Arg::Struct(&sizes(op, s)?),
        Arg::I32(length as i32),
    ];
    let grid = [(tiles * slices) as u32, 1, 1];
    gpu.launch(tile.weight_grad.of(dtype)?, grid, block, shared, &args)?;
    folded(&parts, [slices, co, ci, taps], layout, dtype, gpu)
}

/// db: the sum of channels-last images over all but the channels.
pub(in crate::ops) fn bias_grad(dy: &Tensor, gpu: Gpu) -> Result<Tensor> {
    let co = dy.shape()[1];
    let pixels = dy.numel() / co.max(1);
    let groups = co.div_ceil(32);
    let [slices, length] = slices(pixels, groups);
    let parts = scratch(slices * co, wide(dy.dtype()), dy)?;
    let counts = [pixels, co, length].map(|x| Arg::I32(x as i32));
    let args = [&[dy.input(), parts.output()][..], &counts].concat();
    let grid = [groups as u32, slices as u32, 1];
    gpu.launch(BIAS_GRAD.of(dy.dtype())?, grid, [256, 1, 1], 0, &args)?;
    let layout = Layout::contiguous(Shape::new(&[co])?);
    folded(&parts, [slices, co, 1, 1], layout, dy.dtype(), gpu)
}
