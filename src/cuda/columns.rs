//! How a matrix of rows is cut into blocks that walk down its columns: `kernels/columns.cuh`.

use crate::cuda::Arg;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::Layout;

/// Threads of a block.
const THREADS: usize = 256;
/// Blocks of a launch, about: four on each of an H100's multiprocessors.
const BLOCKS: usize = 528;
/// Rows that a thread has at least, if there are as many.
const ROWS: usize = 4;

/// `Columns` of the kernels, word by word, and the grid that goes with it. The cut, and with it the
/// order of the sums, depends on the shape alone.
#[derive(Clone, Copy, Debug)]
pub struct Columns {
    words: [i32; 5],
    tiles: usize,
    blocks: usize,
}

impl Columns {
    /// A matrix (m, c) whose threads have `group` columns each, by [`group`].
    pub fn new(m: usize, c: usize, group: usize) -> Result<Self> {
        Self::of_batch(1, m, c, group)
    }

    /// [`new`](Self::new) for each of `n` matrices that one launch walks side by side.
    pub fn of_batch(n: usize, m: usize, c: usize, group: usize) -> Result<Self> {
        let lanes = c.div_ceil(group).clamp(1, 32).next_power_of_two();
        let tiles = c.div_ceil(lanes * group);
        let step = THREADS / lanes;
        let blocks = (BLOCKS / (n * tiles).max(1)).clamp(1, m.div_ceil(step * ROWS).max(1));
        let rows = m.div_ceil(blocks).next_multiple_of(step);
        let mut words = [0; 5];
        let values = [m, c, lanes, rows, (group > 1) as usize];
        for (word, value) in words.iter_mut().zip(values) {
            *word = i32::try_from(value).map_err(|_| {
                Error::argument("cuda", format!("a matrix of {m} x {c} is too large"))
            })?;
        }
        Ok(Columns {
            words,
            tiles,
            blocks: m.div_ceil(rows.max(1)),
        })
    }

    /// Tiles of columns by blocks of rows.
    pub fn grid(&self) -> [u32; 3] {
        [self.tiles as u32, self.blocks as u32, 1]
    }

    /// Threads of each block.
    pub fn threads(&self) -> [u32; 3] {
        [THREADS as u32, 1, 1]
    }

    /// Blocks of rows: as many partial sums has a column.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// As a kernel's argument.
    pub fn arg(&self) -> Arg<'_> {
        Arg::Struct(&self.words)
    }
}

/// How many elements a thread takes at once, `GROUP` of `kernels/lane.cuh`, where rows of `width`
/// elements, laid out so, all begin at a multiple of that; else 1.
pub fn group(dtype: DType, width: usize, layouts: &[&Layout]) -> usize {
    let n = if dtype == DType::F64 { 2 } else { 4 };
    let fits = width.is_multiple_of(n) && layouts.iter().all(|l| l.offset().is_multiple_of(n));
    if fits { n } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_and_column_has_a_thread() -> Result<()> {
        for m in [0, 1, 2, 7, 128, 1000, 65_537, 1 << 20] {
            for (c, group) in [
                (1, 1),
                (3, 1),
                (4, 4),
                (64, 4),
                (100, 4),
                (2048, 4),
                (260, 2),
            ] {
                let cut = Columns::new(m, c, group)?;
                let [_, _, lanes, rows, _] = cut.words.map(|w| w as usize);
                assert!(THREADS.is_multiple_of(lanes) && lanes <= 32);
                assert!(cut.tiles * lanes * group >= c && (cut.tiles - 1) * lanes * group < c);
                assert!(cut.blocks * rows >= m && cut.blocks.saturating_sub(1) * rows <= m);
                assert!(cut.tiles * cut.blocks <= 2 * BLOCKS, "{m} x {c}: {cut:?}");
            }
        }
        Ok(())
    }
}
