//! Weighted sums of neighbours along height and width: means and interpolations, and their gradients.

use super::strided;
use crate::dtype::Real;

/// For each place along an axis the sources that it sums, with their weights.
pub struct Axis<T> {
    /// Where each place's part of `taps` ends.
    ends: Vec<usize>,
    taps: Vec<(usize, T)>,
}

impl<T: Real> Axis<T> {
    /// Of so many places; `of(i)` gives the sources of place i.
    pub fn new<I: IntoIterator<Item = (usize, T)>>(places: usize, of: impl Fn(usize) -> I) -> Self {
        let mut taps = Vec::new();
        let end = |i| {
            taps.extend(of(i));
            taps.len()
        };
        let ends = (0..places).map(end).collect();
        Axis { ends, taps }
    }

    /// For each of so many sources the places that sum it: the axis of the gradient.
    pub fn transposed(&self, sources: usize) -> Self {
        let mut readers = vec![Vec::new(); sources];
        for i in 0..self.ends.len() {
            for &(source, weight) in self.of(i) {
                readers[source].push((i, weight));
            }
        }
        Self::new(sources, |i| readers[i].iter().copied())
    }

    fn of(&self, i: usize) -> &[(usize, T)] {
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.taps[start..self.ends[i]]
    }
}

/// [`gather`] by the axes that `axes` gives, which may be large: none are asked for where y is empty.
pub fn gather_by<T: Real>(
    x: &[T],
    sizes: [usize; 3],
    axes: impl FnOnce() -> [Axis<T>; 2],
    y: &mut [T],
) {
    if !y.is_empty() {
        let [rows, columns] = axes();
        gather(x, sizes, [&rows, &columns], y);
    }
}

/// y\[n, i, j, c\] = sum over the sources a of row i and b of column j of their weights times
/// x\[n, a, b, c\]; x lies in memory as n, `height`, `width`, `channels`, y with as many rows and columns
/// as the axes have places.
pub fn gather<T: Real>(
    x: &[T],
    [height, width, channels]: [usize; 3],
    [rows, columns]: [&Axis<T>; 2],
    y: &mut [T],
) {
    let high = rows.ends.len();
    let row = columns.ends.len() * channels;
    let work = channels * columns.taps.len() * rows.taps.len().div_ceil(high.max(1));
    strided::rows(
        y,
        row,
        work.max(row),
        #[inline(always)]
        |y, r| {
            let (image, i) = (r / high, r % high);
            for (j, y) in y.chunks_exact_mut(channels).enumerate() {
                let mut first = true;
                for &(a, up) in rows.of(i) {
                    for &(b, across) in columns.of(j) {
                        let from = ((image * height + a) * width + b) * channels;
                        let (x, weight) = (&x[from..][..channels], up * across);
                        let pixel = y.iter_mut().zip(x);
                        if std::mem::take(&mut first) {
                            for (y, &x) in pixel {
                                *y = x * weight;
                            }
                        } else {
                            for (y, &x) in pixel {
                                *y += x * weight;
                            }
                        }
                    }
                }
                if first {
                    y.fill(T::ZERO);
                }
            }
        },
    );
}
