//! Which class is taken for which, and how many of each are found.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::files::{csv_field, write_atomic};

/// Counts of (true class, predicted class).
///
/// ```
/// # use cotangent::train::Confusion;
/// let mut c = Confusion::new(&["cat".into(), "dog".into()]);
/// for (truth, predicted) in [(0, 0), (0, 1), (1, 1)] {
///     c.add(truth, predicted)?;
/// }
/// assert_eq!((c.accuracy(), c.recall(0)), (2.0 / 3.0, Some(0.5)));
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Confusion {
    /// The classes' names.
    pub classes: Vec<String>,
    /// `counts[truth][predicted]`.
    pub counts: Vec<Vec<usize>>,
}

impl Confusion {
    /// Nothing counted yet.
    pub fn new(classes: &[String]) -> Self {
        Confusion {
            classes: classes.to_vec(),
            counts: vec![vec![0; classes.len()]; classes.len()],
        }
    }

    /// Count one image; a class that there is not is an [`Error::Index`].
    pub fn add(&mut self, truth: usize, predicted: usize) -> Result<()> {
        let size = self.classes.len();
        let at = self
            .counts
            .get_mut(truth)
            .and_then(|row| row.get_mut(predicted));
        *at.ok_or(Error::Index {
            op: "confusion",
            index: truth.max(predicted) as i64,
            size,
        })? += 1;
        Ok(())
    }

    /// Images counted.
    pub fn total(&self) -> usize {
        self.counts.iter().flatten().sum()
    }

    /// The share that is right; NaN of no images.
    pub fn accuracy(&self) -> f64 {
        let right: usize = (0..self.classes.len()).map(|i| self.counts[i][i]).sum();
        right as f64 / self.total() as f64
    }

    /// The share of a class's images that are found, its accuracy; `None` where there are none.
    pub fn recall(&self, class: usize) -> Option<f64> {
        let row = self.counts.get(class)?;
        let all: usize = row.iter().sum();
        (all > 0).then(|| row[class] as f64 / all as f64)
    }

    /// The share of the images taken for a class that are of it; `None` where there are none.
    pub fn precision(&self, class: usize) -> Option<f64> {
        let all: usize = self.counts.iter().filter_map(|row| row.get(class)).sum();
        (all > 0).then(|| self.counts[class][class] as f64 / all as f64)
    }

    /// The classes that have images, from the one with the highest [`recall`](Self::recall) down; of
    /// equal ones the first comes first.
    pub fn ranking(&self) -> Vec<(usize, f64)> {
        let of = |class| Some((class, self.recall(class)?));
        let mut ranked: Vec<_> = (0..self.classes.len()).filter_map(of).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked
    }

    /// The class that images of this one are taken for most often, other than itself.
    pub fn mistaken_for(&self, class: usize) -> Option<(usize, usize)> {
        let others = self.counts.get(class)?.iter().copied().enumerate();
        // of equal ones the first
        let wrong = others.filter(|(i, n)| *i != class && *n > 0);
        wrong.min_by_key(|(_, n)| std::cmp::Reverse(*n))
    }

    /// Write the counts as a CSV file: a row a true class, a column a predicted one.
    pub fn save_csv(&self, path: impl AsRef<Path>) -> Result<()> {
        let names: Vec<String> = self.classes.iter().map(|name| csv_field(name)).collect();
        write_atomic(path, |w| {
            writeln!(w, "true \\ predicted,{}", names.join(","))?;
            for (name, row) in names.iter().zip(&self.counts) {
                let counts: Vec<String> = row.iter().map(usize::to_string).collect();
                writeln!(w, "{name},{}", counts.join(","))?;
            }
            Ok(())
        })
    }
}

/// The best and the worst five classes, a line each.
impl fmt::Display for Confusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranked = self.ranking();
        let width = self
            .classes
            .iter()
            .map(|c| c.chars().count())
            .max()
            .unwrap_or(0);
        let line = |f: &mut fmt::Formatter<'_>, (class, recall): (usize, f64)| {
            let name = &self.classes[class];
            write!(f, "  {name:width$}  {:6.2} %", 100.0 * recall)?;
            match self.mistaken_for(class) {
                Some((other, n)) => writeln!(f, "  {n} taken for {}", self.classes[other]),
                None => writeln!(f),
            }
        };
        let five = ranked.len().min(5);
        writeln!(f, "best classes")?;
        ranked[..five].iter().try_for_each(|&c| line(f, c))?;
        writeln!(f, "worst classes")?;
        let worst = ranked[ranked.len() - five..].iter().rev();
        worst.copied().try_for_each(|c| line(f, c))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Confusion {
        let names = ["a", "b,\"c", "none"].map(String::from);
        let mut c = Confusion::new(&names);
        for (truth, predicted, n) in [(0, 0, 3), (0, 1, 1), (1, 0, 2), (1, 2, 2)] {
            (0..n).for_each(|_| c.add(truth, predicted).unwrap());
        }
        c
    }

    #[test]
    fn shares_and_order() {
        let c = three();
        assert_eq!((c.total(), c.accuracy()), (8, 3.0 / 8.0));
        assert_eq!(
            [c.recall(0), c.recall(1), c.recall(2), c.recall(3)],
            [Some(0.75), Some(0.0), None, None]
        );
        assert_eq!(
            [
                c.precision(0),
                c.precision(1),
                c.precision(2),
                c.precision(3)
            ],
            [Some(0.6), Some(0.0), Some(0.0), None]
        );
        assert_eq!(c.ranking(), [(0, 0.75), (1, 0.0)]);
        assert_eq!(
            [c.mistaken_for(0), c.mistaken_for(1), c.mistaken_for(2)],
            [Some((1, 1)), Some((0, 2)), None]
        );
        assert!(Confusion::new(&[]).accuracy().is_nan());
    }

    #[test]
    fn a_class_that_there_is_not() {
        let e = three().add(1, 3).unwrap_err().to_string();
        assert_eq!(
            e,
            "confusion: index 3 is out of range for an axis of size 3"
        );
    }

    #[test]
    fn as_text_and_as_a_table() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.csv");
        three().save_csv(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "true \\ predicted,\"a\",\"b,\"\"c\",\"none\"\n\"a\",3,1,0\n\"b,\"\"c\",2,0,2\n\"none\",0,0,0\n"
        );
        let shown = three().to_string();
        assert!(shown.starts_with("best classes\n  a "), "{shown}");
        assert!(
            shown.contains("worst classes\n  b,\"c    0.00 %  2 taken for a\n"),
            "{shown}"
        );
    }
}
