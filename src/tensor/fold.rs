//! Reductions on a CUDA device: how memory `[outer][reduced][inner]` is cut among its threads.

use crate::cpu::strided::Fold;
use crate::cuda::{Arg, Gpu, kernels};
use crate::error::Result;
use crate::shape::{Layout, Shape};
use crate::tensor::Tensor;

kernels! {
    /// A team a part of a row.
    SUM_ROWS = "sum_rows" [F32, F64];
    /// A block a part of some columns.
    SUM_COLUMNS = "sum_columns" [F32, F64];
    /// A team a part of a row.
    AMAX_ROWS = "amax_rows" [F32, F64];
    /// A block a part of some columns.
    AMAX_COLUMNS = "amax_columns" [F32, F64];
}

/// What becomes of the elements.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reduce {
    /// Their sum, times this.
    Sum(f64),
    /// The greatest of them.
    Amax,
}

/// Threads of a block.
const BLOCK: usize = 256;
/// Blocks that fill a large GPU.
const FILL: usize = 1024;
/// Elements that one thread adds up in turn, at most: so an f32 sum keeps its digits.
const CHAIN: usize = 256;
/// Elements that stay in a GPU's cache, where 32 bytes side by side are read as fast as 128.
const CACHED: usize = 1 << 19;

/// Reduce `x`, dense and walked by `fold`, to a tensor of layout `out`.
pub(crate) fn reduce(
    gpu: Gpu,
    x: &Tensor,
    fold: Fold,
    out: Layout,
    what: Reduce,
) -> Result<Tensor> {
    let (rows, columns, scale) = match what {
        Reduce::Sum(scale) => (&SUM_ROWS, &SUM_COLUMNS, scale),
        Reduce::Amax => (&AMAX_ROWS, &AMAX_COLUMNS, 1.0),
    };
    if fold.reduced == 0 {
        // each is a sum of none
        return Tensor::full(out.shape(), 0.0 * scale, x.options());
    }
    let (pass, kernels) = if fold.inner == 1 {
        (Pass::of_rows(fold), rows)
    } else {
        let pack = 16 / x.dtype().size();
        let aligned = x.layout().offset().is_multiple_of(pack) && fold.inner.is_multiple_of(pack);
        (
            Pass::of_columns(fold, if aligned { pack } else { 1 }),
            columns,
        )
    };
    let last = pass.parts == 1;
    let layout = if last {
        out
    } else {
        Layout::contiguous(Shape::new(&[fold.outer, pass.parts, fold.inner])?)
    };
    let y = Tensor::empty(layout, x.dtype(), x.device())?;
    let mut args = vec![x.input(), y.output()];
    args.extend(pass.sizes.iter().map(|&n| Arg::I32(n as i32)));
    args.push(Arg::F64(if last { scale } else { 1.0 }));
    let grid = [pass.blocks as u32, 1, 1];
    let kernel = kernels.of(x.dtype())?;
    gpu.launch(kernel, grid, [BLOCK as u32, 1, 1], 0, &args)?;
    if last {
        return Ok(y);
    }
    let reduced = pass.parts;
    reduce(gpu, &y, Fold { reduced, ..fold }, out, what)
}

/// One launch. What is reduced is cut into parts where there would be too few blocks or too long
/// sums; the results of the parts are reduced by another.
struct Pass {
    parts: usize,
    blocks: usize,
    /// The kernel's integers.
    sizes: Vec<usize>,
}

impl Pass {
    fn of_rows(Fold { outer, reduced, .. }: Fold) -> Self {
        // a thread reads at least 16 bytes, a warp's lane 32 elements at most
        let lanes = if reduced <= 32 * 32 {
            (reduced / 4).next_power_of_two().min(32)
        } else {
            BLOCK
        };
        // a second launch costs as much as a block that reads 64 elements a thread
        let parts = if reduced <= 64 * BLOCK {
            1
        } else {
            let enough = FILL.div_ceil(outer).min(reduced / (16 * BLOCK));
            enough.max(reduced.div_ceil(CHAIN * BLOCK))
        };
        let chunk = reduced.div_ceil(parts).next_multiple_of(4);
        let parts = reduced.div_ceil(chunk);
        Pass {
            parts,
            blocks: (outer * parts).div_ceil(BLOCK / lanes),
            sizes: vec![outer, reduced, chunk, lanes],
        }
    }

    /// `pack` neighbours are one thread's.
    fn of_columns(f: Fold, pack: usize) -> Self {
        let Fold {
            outer,
            reduced,
            inner,
        } = f;
        let columns = outer * (inner / pack);
        // side by side at least what makes a good read, the rest of the block below each other
        let read = if columns * reduced * pack > CACHED {
            32
        } else {
            8
        };
        let narrow = (inner / pack).next_power_of_two().min(read / pack);
        let tall = (reduced / 4 + 1).next_power_of_two() / 2;
        let tall = tall.clamp(1, BLOCK / narrow);
        let (wide, tiles) = (BLOCK / tall, columns.div_ceil(BLOCK / tall));
        let parts = FILL.div_ceil(tiles).min(reduced / (8 * tall));
        let parts = parts.max(reduced.div_ceil(CHAIN * tall)).max(1);
        let chunk = reduced.div_ceil(parts);
        let parts = reduced.div_ceil(chunk);
        Pass {
            parts,
            blocks: tiles * parts,
            sizes: vec![outer, reduced, inner, chunk, wide, (pack > 1) as usize],
        }
    }
}

/// The threads that share a row: `Team` of `kernels/team.cuh`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Team {
    /// How many: a power of two up to 32, or a whole block.
    pub lanes: usize,
    block: usize,
}

impl Team {
    /// For rows of `n` elements, of which a thread holds 8 in registers.
    pub fn of(n: usize) -> Self {
        if n <= 8 * 32 {
            let lanes = n.next_power_of_two().min(32);
            Team { lanes, block: 128 }
        } else {
            let lanes = (n / 8).next_power_of_two().clamp(64, 1024);
            Team {
                lanes,
                block: lanes,
            }
        }
    }

    /// One thread alone, its neighbours having the rows beside.
    pub const ALONE: Team = Team {
        lanes: 1,
        block: 128,
    };

    /// The grid and the blocks for so many rows.
    pub fn launch(&self, rows: usize) -> [[u32; 3]; 2] {
        let blocks = rows.div_ceil(self.block / self.lanes);
        [[blocks as u32, 1, 1], [self.block as u32, 1, 1]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_cover_everything_and_end() {
        let sizes = [1, 2, 3, 5, 31, 32, 100, 1023, 1025, 5000, 70_000, 2_000_001];
        for outer in sizes {
            for reduced in sizes {
                for inner in sizes {
                    if outer * reduced * inner >= 1 << 31 {
                        continue;
                    }
                    let mut f = Fold {
                        outer,
                        reduced,
                        inner,
                    };
                    for pass in 0.. {
                        let pack = if inner.is_multiple_of(4) { 4 } else { 1 };
                        let p = match inner {
                            1 => Pass::of_rows(f),
                            _ => Pass::of_columns(f, pack),
                        };
                        let chunk = p.sizes[if inner == 1 { 2 } else { 3 }];
                        assert!((p.parts - 1) * chunk < f.reduced && f.reduced <= p.parts * chunk);
                        assert!(pass < 3, "{outer} {reduced} {inner}");
                        if p.parts == 1 {
                            break;
                        }
                        f.reduced = p.parts;
                    }
                }
            }
        }
    }
}
