//! Printing, as PyTorch prints.

use std::fmt;

use super::Tensor;
use crate::dtype::DType;
use crate::error::Result;

/// Above this many elements an axis shows its first and last three only.
const SUMMARIZE: usize = 1000;
const EDGE: usize = 3;
/// Characters a line.
const LINE: usize = 80;

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let skip = self.numel() > SUMMARIZE;
        let mut places = Vec::new();
        visit(self.shape(), skip, 0, &mut |i| places.push(i));
        let texts = self.texts(&places).map_err(|_| fmt::Error)?;
        let width = texts.iter().map(String::len).max().unwrap_or(0);
        f.write_str("tensor(")?;
        if self.numel() == 0 {
            f.write_str("[]")?;
        } else {
            let mut texts = texts.into_iter().map(|t| format!("{t:>width$}"));
            write_axis(f, self.shape(), skip, 7, width + 2, &mut texts)?;
        }
        if self.numel() == 0 && self.rank() != 1 {
            write!(f, ", size={:?}", self.shape())?;
        }
        if self.dtype() != DType::F32 {
            write!(f, ", dtype={}", self.dtype())?;
        }
        match self.node.as_ref().map(|n| n.op()) {
            Some("leaf") => f.write_str(", requires_grad=true")?,
            Some(op) => write!(f, ", grad_fn=<{op}>")?,
            None => {}
        }
        f.write_str(")")
    }
}

impl Tensor {
    /// The elements at these places (row-major) as text.
    fn texts(&self, places: &[usize]) -> Result<Vec<String>> {
        if !self.dtype().is_float() {
            let values = self.cast(DType::I64)?.to_vec::<i64>()?;
            return Ok(places.iter().map(|&i| values[i].to_string()).collect());
        }
        let values = self.cast(DType::F64)?.to_vec::<f64>()?;
        let shown: Vec<f64> = places.iter().map(|&i| values[i]).collect();
        let number = Number::of(&shown);
        Ok(shown.iter().map(|&x| number.text(x)).collect())
    }
}

/// How PyTorch writes floats: with four decimals, or in scientific notation where they differ too
/// much.
struct Number {
    whole: bool,
    scientific: bool,
}

impl Number {
    fn of(shown: &[f64]) -> Self {
        let sizes = || {
            shown
                .iter()
                .map(|x| x.abs())
                .filter(|x| x.is_finite() && *x > 0.0)
        };
        let most = sizes().fold(0.0, f64::max);
        let least = sizes().fold(f64::INFINITY, f64::min);
        let whole = shown.iter().all(|x| !x.is_finite() || x.fract() == 0.0);
        let spread = most > 0.0 && (most / least > 1e3 || most > 1e8 || least < 1e-4);
        Number {
            whole,
            scientific: if whole { most > 1e8 } else { spread },
        }
    }

    fn text(&self, x: f64) -> String {
        if !x.is_finite() {
            return format!("{x}").replace("NaN", "nan");
        }
        if self.scientific {
            let s = format!("{x:.4e}");
            // Rust writes 1.0e-5, PyTorch 1.0e-05
            let (digits, exponent) = s.split_once('e').unwrap_or((&s, "0"));
            let (sign, e) = exponent
                .strip_prefix('-')
                .map_or(('+', exponent), |e| ('-', e));
            return format!("{digits}e{sign}{e:0>2}");
        }
        if self.whole {
            format!("{x:.0}.")
        } else {
            format!("{x:.4}")
        }
    }
}

/// The indices along an axis that are shown; `None` stands for the dots.
fn indices(size: usize, skip: bool) -> impl Iterator<Item = Option<usize>> {
    let cut = skip && size > 2 * EDGE;
    let head = if cut { EDGE } else { size };
    let tail = if cut { size - EDGE } else { size };
    (0..head)
        .map(Some)
        .chain(cut.then_some(None))
        .chain((tail..size).map(Some))
}

fn visit(dims: &[usize], skip: bool, at: usize, f: &mut impl FnMut(usize)) {
    match dims {
        [] => f(at),
        [size, rest @ ..] => {
            let stride: usize = rest.iter().product();
            for i in indices(*size, skip).flatten() {
                visit(rest, skip, at + i * stride, f);
            }
        }
    }
}

/// Write an axis in brackets; `indent` is where its bracket stands, `step` an element's width with
/// the comma and the blank after it.
fn write_axis(
    f: &mut fmt::Formatter<'_>,
    dims: &[usize],
    skip: bool,
    indent: usize,
    step: usize,
    texts: &mut impl Iterator<Item = String>,
) -> fmt::Result {
    let [size, rest @ ..] = dims else {
        return f.write_str(&texts.next().unwrap_or_default());
    };
    let a_line = (LINE.saturating_sub(indent) / step).max(1);
    f.write_str("[")?;
    for (n, i) in indices(*size, skip).enumerate() {
        // rows are apart by as many line ends as there are axes within; numbers fill lines
        let ends = if rest.is_empty() {
            (n % a_line == 0) as usize
        } else {
            rest.len()
        };
        match (n, ends) {
            (0, _) => {}
            (_, 0) => f.write_str(", ")?,
            _ => write!(f, ",{}{}", "\n".repeat(ends), " ".repeat(indent + 1))?,
        }
        match i {
            Some(_) => write_axis(f, rest, skip, indent + 1, step, texts)?,
            None => f.write_str("...")?,
        }
    }
    f.write_str("]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_pytorch() -> Result<()> {
        let t = |v: &[f32], d: &[usize]| Tensor::from_slice(v, d).map(|t| t.to_string());
        assert_eq!(
            t(&[1.0, -0.5, 2.25, 0.0], &[2, 2])?,
            "tensor([[ 1.0000, -0.5000],\n        [ 2.2500,  0.0000]])"
        );
        assert_eq!(t(&[1.0, 2.0], &[2])?, "tensor([1., 2.])");
        assert_eq!(t(&[3.0], &[])?, "tensor(3.)");
        assert_eq!(t(&[1e-5, 1.0], &[2])?, "tensor([1.0000e-05, 1.0000e+00])");
        assert_eq!(t(&[f32::NAN, 1.5], &[2])?, "tensor([   nan, 1.5000])");
        assert_eq!(t(&[], &[0])?, "tensor([])");
        assert_eq!(
            Tensor::zeros([2, 0], DType::F64)?.to_string(),
            "tensor([], size=[2, 0], dtype=f64)"
        );
        assert_eq!(
            Tensor::from_slice(&[1i64, 20], 2)?.to_string(),
            "tensor([ 1, 20], dtype=i64)"
        );
        assert_eq!(
            Tensor::zeros([1, 2, 1], DType::F32)?.to_string(),
            "tensor([[[0.],\n         [0.]]])"
        );
        assert_eq!(
            Tensor::arange(0.0, 2000.0, 1.0, DType::F32)?.to_string(),
            "tensor([   0.,    1.,    2., ..., 1997., 1998., 1999.])"
        );
        assert_eq!(
            Tensor::from_slice(&[i64::MAX], 1)?.to_string(),
            "tensor([9223372036854775807], dtype=i64)"
        );
        // 80 characters a line, as PyTorch fills them
        let lines = Tensor::arange(0.0, 30.0, 1.0, DType::F32)?.to_string();
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(
            lines[0].ends_with("13.,") && lines[1].starts_with("        14., 15."),
            "{lines:?}"
        );
        Ok(())
    }
}
