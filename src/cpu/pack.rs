//! Between a convolution's weight in its own order and the panels that the kernels read or sum.
//!
//! Elements of one output channel lie side by side in a weight, in a panel those of neighbouring
//! channels do. So both ways are transposes, a square of vectors at a time.
use rayon::prelude::*;

use super::micro::{self, Kernel, Micro};
use super::pass::Pass;
use super::scratch::{Scratch, Shared};
use crate::workers::Parallel;

/// The most lanes of a vector.
const LANES: usize = 16;

/// Where the weight's elements of a panel's column lie, ascending, each with its row of the panel,
/// \[channel block\]\[tap\]\[channel\].
fn elements(pass: &Pass) -> Vec<(usize, usize)> {
    let mut elements = Vec::with_capacity(pass.depth * pass.taps.len());
    for block in (0..pass.blocks()).map(|b| pass.block(b)) {
        for k in block.clone() {
            for (t, tap) in pass.weight_tap.iter().enumerate() {
                let row = block.start * pass.taps.len() + t * block.len() + k - block.start;
                elements.push((pass.weight_depth[k] + tap, row));
            }
        }
    }
    // in all but the first layers they are sorted already
    elements.sort_unstable();
    elements
}

/// Cut into stretches that fit a vector. The weight repeats itself from column to column after
/// `weight_column` elements: no stretch reaches beyond.
fn stretches<'a>(
    pass: &Pass,
    elements: &'a [(usize, usize)],
    lanes: usize,
) -> impl Iterator<Item = &'a [(usize, usize)]> {
    let (period, mut rest) = (pass.weight_column.max(1), elements);
    std::iter::from_fn(move || {
        let first = rest.first()?.0;
        let end = (first + lanes).min((first / period + 1) * period);
        let (stretch, others) = rest.split_at(rest.partition_point(|e| e.0 < end));
        rest = others;
        Some(stretch)
    })
}

/// The panels of one pass, \[group\]\[panel\]\[channel block\]\[tap\]\[channel\]\[panel width\].
pub(super) fn pack<T: Kernel>(
    micro: &'static Micro<T>,
    pass: &Pass,
    groups: usize,
    weight: &[T],
) -> Scratch<T> {
    let (panels, lanes) = (pass.panels(micro), micro.lanes);
    let size = pass.depth * pass.taps.len() * micro.width();
    let mut packed = Scratch::new(groups * panels * size);
    if size == 0 {
        return packed; // no tap reaches this pass's pixels
    }
    let elements = elements(pass);
    packed.par_chunks_mut(size).enumerate().each(|(i, to)| {
        let column = i % panels * micro.width();
        let columns = (pass.columns - column).min(micro.width());
        let from = &weight[i / panels * pass.weight_group + column * pass.weight_column..];
        let width = micro.vectors(columns) * lanes;
        if pass.weight_column == 1 {
            // the columns lie side by side already
            for &(at, row) in &elements {
                let (row, rest) = to[row * width..][..width].split_at_mut(columns);
                row.copy_from_slice(&from[at..][..columns]);
                rest.fill(T::ZERO);
            }
            return;
        }
        let mut square = [T::ZERO; LANES * LANES];
        for j in (0..columns).step_by(lanes) {
            let (from, columns) = (&from[j * pass.weight_column..], (columns - j).min(lanes));
            for stretch in stretches(pass, &elements, lanes) {
                let first = stretch[0].0;
                if columns == lanes
                    && first + (lanes - 1) * pass.weight_column + lanes <= from.len()
                {
                    let block = micro::Copy {
                        from: from[first..].as_ptr(),
                        from_stride: pass.weight_column,
                        to: square.as_mut_ptr(),
                        to_stride: lanes,
                        vectors: 1,
                        rows: stretch[stretch.len() - 1].0 - first + 1,
                    };
                    // SAFETY: the last of the lanes x lanes elements lies in the weight, and the
                    // square has room for as many.
                    unsafe { (micro.transpose)(&block) };
                    for &(at, row) in stretch {
                        let row = &mut to[row * width + j..][..lanes];
                        row.copy_from_slice(&square[(at - first) * lanes..][..lanes]);
                    }
                    continue;
                }
                for &(at, row) in stretch {
                    let row = &mut to[row * width + j..][..lanes];
                    for (c, x) in row[..columns].iter_mut().enumerate() {
                        *x = from[at + c * pass.weight_column];
                    }
                    row[columns..].fill(T::ZERO);
                }
            }
        }
    });
    packed
}

/// Write the weight's gradient from its panels, `size` elements of a block of channels each:
/// \[group\]\[channel block\]\[panel\]\[tap\]\[channel\]\[panel width\].
pub(super) fn unpack<T: Kernel>(
    micro: &'static Micro<T>,
    pass: &Pass,
    groups: usize,
    sums: &[T],
    size: usize,
    weight: &mut [T],
) {
    let (panels, lanes) = (pass.panels(micro), micro.lanes);
    let elements = elements(pass);
    let weight = Shared::new(weight);
    (0..groups * panels).into_par_iter().each(|i| {
        let (group, panel) = (i / panels, i % panels);
        let column = panel * micro.width();
        let columns = (pass.columns - column).min(micro.width());
        let width = micro.vectors(columns) * lanes;
        let start = group * pass.weight_group + column * pass.weight_column;
        // SAFETY: the weights of these output channels are this task's alone.
        let weight = unsafe { weight.slice(start, columns * pass.weight_column) };
        // rows of a whole block of channels
        let rows = size / micro.width();
        let place = |row: usize| {
            let block = group * pass.blocks() + row / rows;
            (block * panels + panel) * size + row % rows * width
        };
        let (mut square, mut turned) = ([T::ZERO; LANES * LANES], [T::ZERO; LANES * LANES]);
        for j in (0..columns).step_by(lanes) {
            for stretch in stretches(pass, &elements, lanes) {
                let first = stretch[0].0;
                for &(at, row) in stretch {
                    let to = &mut square[(at - first) * lanes..][..lanes];
                    to.copy_from_slice(&sums[place(row) + j..][..lanes]);
                }
                let block = micro::Copy {
                    from: square.as_ptr(),
                    from_stride: lanes,
                    to: turned.as_mut_ptr(),
                    to_stride: lanes,
                    vectors: 1,
                    rows: lanes,
                };
                // SAFETY: both squares have room for lanes x lanes elements.
                unsafe { (micro.transpose)(&block) };
                for (c, row) in (j..columns.min(j + lanes)).zip(turned.chunks_exact(lanes)) {
                    let to = &mut weight[c * pass.weight_column + first..][..stretch.len()];
                    to.copy_from_slice(&row[..stretch.len()]);
                }
            }
        }
    });
}
