//! The copy that the convolution kernels read: neighbouring output pixels side by side.
use std::ops::Range;

use super::micro::{self, DEPTH, Kernel, Micro};
use super::pass::{Band, Pass, Tap};

/// How a slab lies in memory: \[channel block\]\[plane\]\[image\]\[phase\]\[row\]\[pixel\]\[DEPTH\],
/// where row j of a phase is input row (first output row + j) * row_step + phase.
pub(super) struct Slab<'a, T: 'static> {
    pub(super) micro: &'static Micro<T>,
    pub(super) pass: &'a Pass,
    /// The row offsets of taps modulo `row_step`, from the topmost tap's on.
    phases: Vec<isize>,
    /// Rows of a phase beyond the output rows of the band.
    extra: usize,
    row: usize,
    phase: usize,
    pub(super) image: usize,
    plane: usize,
    pub(super) block: usize,
}

impl<'a, T: Kernel> Slab<'a, T> {
    /// Room for any of `bands`.
    pub(super) fn new(micro: &'static Micro<T>, pass: &'a Pass, bands: &[Band]) -> Self {
        let images = bands.iter().map(|b| b.images.len()).max().unwrap_or(0);
        let rows = bands.iter().map(|b| b.rows.len()).max().unwrap_or(0);
        let (phases, extra) = pass.phases();
        let row = pass.width * DEPTH;
        let phase = (rows + extra) * row;
        let image = phases.len() * phase;
        let plane = images * image;
        Slab {
            micro,
            pass,
            block: pass.planes.len() * plane,
            phases,
            extra,
            row,
            phase,
            image,
            plane,
        }
    }

    /// Where a tap's first pixel lies in a channel block.
    pub(super) fn offset(&self, tap: Tap) -> usize {
        let (index, shift) = self.pass.in_phases(&self.phases, tap.row);
        tap.plane * self.plane + index * self.phase + shift * self.row
    }

    /// The stretches of a band's pixels that are neighbours in the slab: (how many, pixels each),
    /// one `self.image` after the other.
    pub(super) fn segments(&self, band: &Band) -> (usize, usize) {
        let pixels = band.rows.len() * self.pass.width;
        if self.image == pixels * DEPTH {
            (1, band.images.len() * pixels)
        } else {
            (band.images.len(), pixels)
        }
    }

    /// Copy `blocks` of DEPTH channels, counted from `channel`, of a band's input.
    pub(super) fn fill(
        &self,
        band: &Band,
        x: &[T],
        channel: usize,
        blocks: Range<usize>,
        to: &mut [T],
    ) {
        let pass = self.pass;
        for (b, block) in blocks.enumerate() {
            let run = pass.block(block);
            for (p, plane) in pass.planes.iter().enumerate() {
                let first = plane + (channel + run.start) as isize;
                for (i, image) in band.images.clone().enumerate() {
                    for (f, phase) in self.phases.iter().enumerate() {
                        for j in 0..band.rows.len() + self.extra {
                            let start = b * self.block
                                + p * self.plane
                                + i * self.image
                                + f * self.phase
                                + j * self.row;
                            let to = &mut to[start..][..self.row];
                            let row = ((band.rows.start + j) * pass.row_step) as isize + phase;
                            if row < 0 || row >= pass.in_height as isize {
                                to.fill(T::ZERO);
                                continue;
                            }
                            let row = (image * pass.in_height + row as usize) * pass.in_row;
                            self.fill_row(&x[row..], first, run.len(), to);
                        }
                    }
                }
            }
        }
    }

    /// One row of the slab: `len` elements for each output pixel, the first pixel's from `first`
    /// on of the input row that `x` begins with; zeros where they lie outside of the row.
    fn fill_row(&self, x: &[T], first: isize, len: usize, to: &mut [T]) {
        let (step, end) = (self.pass.pixel_step, self.pass.in_row as isize);
        let (pixels, vectors) = (self.pass.width, len.div_ceil(self.micro.lanes));
        let start = |pixel: usize| first + (pixel * step) as isize;
        // the pixels whose run lies inside of the row and whose whole vectors inside of `x`
        let limit = end.min((x.len() + len) as isize - (vectors * self.micro.lanes) as isize);
        let room = limit - len as isize - first;
        let right = if room < 0 {
            0
        } else {
            (room as usize / step + 1).min(pixels)
        };
        let left = ((-first).max(0) as usize).div_ceil(step).min(right);
        if left < right {
            let rows = micro::Copy {
                from: x[start(left) as usize..].as_ptr(),
                from_stride: step,
                to: to[left * DEPTH..].as_mut_ptr(),
                to_stride: DEPTH,
                vectors,
                rows: right - left,
            };
            // SAFETY: by the choice of left and right; a pixel of `to` has DEPTH elements, which
            // is a multiple of the lanes.
            unsafe { (self.micro.copy)(&rows) };
        }
        for pixel in (0..left).chain(right..pixels) {
            let (at, to) = (start(pixel), &mut to[pixel * DEPTH..][..len]);
            let low = (-at).clamp(0, len as isize) as usize;
            let high = (end - at).clamp(low as isize, len as isize) as usize;
            to[..low].fill(T::ZERO);
            if low < high {
                let from = (at + low as isize) as usize;
                to[low..high].copy_from_slice(&x[from..from + high - low]);
            }
            to[high..].fill(T::ZERO);
        }
    }

    /// Copy `columns` channels from `channel` on, at most a panel, of a band of dy, pixel after
    /// pixel; returns how many vectors wide. What fills up the last vector is unspecified: it
    /// only reaches sums that nobody reads.
    pub(super) fn copy_panel(
        &self,
        band: &Band,
        channel: usize,
        columns: usize,
        dy: &[T],
        to: &mut [T],
    ) -> usize {
        let (pass, micro) = (self.pass, self.micro);
        let vectors = micro.vectors(columns);
        let width = vectors * micro.lanes;
        let pixels = band.rows.len() * pass.width;
        for (i, image) in band.images.clone().enumerate() {
            let from = image * pass.out_image + band.rows.start * pass.out_row;
            let from = &dy[from + channel..];
            let to = &mut to[i * pixels * width..][..pixels * width];
            copy_pixels(micro, from, pass.out_pixel, columns, to);
        }
        vectors
    }
}

/// Copy `columns` channels of each pixel, `step` elements apart, into whole vectors, of which the rest
/// is unspecified: it stays in its own lanes, which nobody reads.
pub(super) fn copy_pixels<T: Kernel>(
    micro: &Micro<T>,
    from: &[T],
    step: usize,
    columns: usize,
    to: &mut [T],
) {
    let vectors = micro.vectors(columns);
    let width = vectors * micro.lanes;
    let pixels = to.len() / width;
    // the last pixels' whole vectors may end outside
    let whole = match from.len().checked_sub(width) {
        Some(room) => (room / step + 1).min(pixels),
        None => 0,
    };
    let rows = micro::Copy {
        from: from.as_ptr(),
        from_stride: step,
        to: to.as_mut_ptr(),
        to_stride: width,
        vectors,
        rows: whole,
    };
    // SAFETY: by the choice of `whole`.
    unsafe { (micro.copy)(&rows) };
    for p in whole..pixels {
        to[p * width..][..columns].copy_from_slice(&from[p * step..][..columns]);
    }
}
