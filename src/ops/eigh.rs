//! The eigenvalues and eigenvectors of a small symmetric matrix, by Jacobi's rotations (1846). No
//! gradient: it serves statistics of the data, such as whitening.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

const OP: &str = "eigh";

/// Passes over all places off the diagonal. Convergence is quadratic: six to ten do for a hundred
/// rows.
const SWEEPS: usize = 60;

impl Tensor {
    /// Of a symmetric matrix (n, n) the eigenvalues (n), the least first, and the eigenvectors, the
    /// columns of (n, n): `A V = V diag(l)` with V orthonormal, PyTorch's `torch.linalg.eigh`. Only
    /// the lower triangle is read. Computed in f64 on the CPU and rounded once, in time n^3 a pass:
    /// for matrices of up to some hundred rows.
    ///
    /// ```
    /// # use cotangent::Tensor;
    /// let a = Tensor::from_vec(vec![2f64, 1.0, 1.0, 2.0], [2, 2])?;
    /// let (values, vectors) = a.eigh()?;
    /// let l = values.to_vec::<f64>()?;
    /// assert!((l[0] - 1.0).abs() < 1e-15 && (l[1] - 3.0).abs() < 2e-15);
    /// let v = vectors.to_vec::<f64>()?;
    /// assert!((v[0] + v[2]).abs() < 1e-15 && (v[1] - v[3]).abs() < 1e-15);
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn eigh(&self) -> Result<(Tensor, Tensor)> {
        let [n, columns] = self.dims(OP, "(n, n)")?;
        if n != columns {
            let why = format!("expected a square matrix but got {:?}", self.shape());
            return Err(Error::shape(OP, &[*self.shape()], why));
        }
        if !self.dtype().is_float() {
            return Err(Error::DType {
                op: OP,
                expected: "a float",
                got: self.dtype(),
            });
        }
        let mut a = self.detach().cast(DType::F64)?.to_vec::<f64>()?;
        if a.iter().any(|x| !x.is_finite()) {
            return Err(Error::argument(OP, "a number is not finite"));
        }
        for i in 0..n {
            for j in i + 1..n {
                a[i * n + j] = a[j * n + i];
            }
        }
        // so that no square overflows or vanishes
        let scale = a.iter().fold(0f64, |m, x| m.max(x.abs()));
        let scale = if scale > 0.0 { scale } else { 1.0 };
        a.iter_mut().for_each(|x| *x /= scale);
        // row i is the eigenvector that belongs to the diagonal's number i
        let mut v = vec![0.0; n * n];
        (0..n).for_each(|i| v[i * n + i] = 1.0);
        diagonalize(&mut a, &mut v, n);

        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&i, &j| a[i * n + i].total_cmp(&a[j * n + j]));
        let values = order.iter().map(|&i| a[i * n + i] * scale).collect();
        let vectors = (0..n * n).map(|e| v[order[e % n] * n + e / n]).collect();
        let out = |x: Vec<f64>, shape: &[usize]| {
            let x = Tensor::from_vec(x, shape)?.cast(self.dtype())?;
            x.moved(self.device())
        };
        Ok((out(values, &[n])?, out(vectors, &[n, n])?))
    }
}

/// Turn the planes (p, q) one after another, so that `a` has a zero there, until nothing is left
/// beside the diagonal; the rows of `v` turn along.
fn diagonalize(a: &mut [f64], v: &mut [f64], n: usize) {
    let all: f64 = a.iter().map(|x| x * x).sum();
    for _ in 0..SWEEPS {
        let beside = |i: usize| i / n != i % n;
        let left: f64 = (0..n * n).filter(|&i| beside(i)).map(|i| a[i] * a[i]).sum();
        // what rounding leaves
        if left <= all * (f64::EPSILON * f64::EPSILON) {
            return;
        }
        for p in 0..n {
            for q in p + 1..n {
                let off = a[p * n + q];
                if off == 0.0 {
                    continue;
                }
                // the lesser of the two angles that do it, without a difference of like numbers
                let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * off);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                let s = t * c;
                for i in 0..n {
                    turn(a, i * n + p, i * n + q, c, s);
                }
                for i in 0..n {
                    turn(a, p * n + i, q * n + i, c, s);
                    turn(v, p * n + i, q * n + i, c, s);
                }
                (a[p * n + q], a[q * n + p]) = (0.0, 0.0);
            }
        }
    }
}

fn turn(a: &mut [f64], i: usize, j: usize, c: f64, s: f64) {
    (a[i], a[j]) = (c * a[i] - s * a[j], s * a[i] + c * a[j]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::devices;
    use crate::random::Generator;

    #[test]
    fn vectors_are_orthonormal_and_only_scaled_by_the_matrix() -> Result<()> {
        let mut rng = Generator::new(4);
        for n in [0, 1, 2, 3, 12, 40] {
            let b = Tensor::randn([n, n], &mut rng, DType::F64)?;
            // of full rank, of rank 1, the identity, nothing, and of numbers far apart
            let first = b.narrow(1, 0, n.min(1))?;
            let far = Tensor::from_vec((0..n).map(|i| 10f64.powi(-(i as i32))).collect(), [n, 1])?;
            for a in [
                b.matmul(&b.t()?)?,
                b.add(&b.t()?)?,
                first.matmul(&first.t()?)?,
                Tensor::eye(n, DType::F64)?,
                Tensor::zeros([n, n], DType::F64)?,
                Tensor::full([n, n], 1e300, DType::F64)?,
                far.matmul(&far.t()?)?,
            ] {
                let (values, vectors) = a.eigh()?;
                let l = values.to_vec::<f64>()?;
                assert!(l.windows(2).all(|w| w[0] <= w[1]), "{l:?}");
                let size = l.iter().fold(1e-300, |m: f64, x| m.max(x.abs()));
                let far = |x: &Tensor, y: &Tensor| -> Result<f64> {
                    let d = x.sub(y)?.to_vec::<f64>()?;
                    Ok(d.iter().fold(0.0, |m: f64, x| m.max(x.abs())))
                };
                let (av, vl) = (a.matmul(&vectors)?, vectors.mul(&values)?);
                assert!(far(&av, &vl)? <= 1e-13 * size, "{n}");
                let gram = vectors.t()?.matmul(&vectors)?;
                assert!(far(&gram, &Tensor::eye(n, DType::F64)?)? <= 1e-13, "{n}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_lower_triangle_decides_on_any_device() -> Result<()> {
        let wrong = Tensor::from_vec(vec![2f32, 9.0, 1.0, 2.0], [2, 2])?;
        for device in devices()? {
            let (values, vectors) = wrong.to(device)?.eigh()?;
            assert_eq!((values.device(), vectors.device()), (device, device));
            assert_eq!(values.to_vec::<f32>()?, [1.0, 3.0]);
        }
        Ok(())
    }

    #[test]
    fn what_is_no_matrix_is_refused() -> Result<()> {
        let e = |x: Tensor| x.eigh().err().unwrap().to_string();
        assert_eq!(
            e(Tensor::zeros([2, 3], DType::F32)?),
            "eigh: expected a square matrix but got [2, 3]"
        );
        assert!(e(Tensor::zeros([2], DType::F32)?).contains("(n, n)"));
        assert!(e(Tensor::zeros([2, 2], DType::I64)?).contains("a float"));
        assert_eq!(
            e(Tensor::full([2, 2], f64::NAN, DType::F64)?),
            "eigh: a number is not finite"
        );
        Ok(())
    }
}
