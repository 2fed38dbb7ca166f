//! The case table's types, and the gradient check that every op passes.
//!
//! Each op file ends with `CASES`; [`all_cases`](super::all_cases) joins them. Gradient checks, parity of f32
//! with f64, strided and shared inputs and the command `cotangent gradcheck` all come from them.

use crate::autograd::no_grad;
#[cfg(test)]
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::random::Generator;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// How to fill one input of a case. Float inputs get a gradient check.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// Normal, mean 0 and variance 1.
    Normal(&'static [usize]),
    /// Uniform in [0.3, 1.8), for logarithms and roots.
    Positive(&'static [usize]),
    /// Normal, but nothing nearer to 0 than 0.2: for functions with a kink or a pole there.
    NonZero(&'static [usize]),
    /// All elements at least 0.05 apart, in random order: for maxima.
    Distinct(&'static [usize]),
    /// I64, uniform below the bound.
    Index(&'static [usize], usize),
    /// U8, 0 or 1.
    Mask(&'static [usize]),
}

impl Input {
    /// The input's shape.
    pub fn shape(&self) -> &'static [usize] {
        match self {
            Input::Normal(s)
            | Input::Positive(s)
            | Input::NonZero(s)
            | Input::Distinct(s)
            | Input::Index(s, _)
            | Input::Mask(s) => s,
        }
    }

    /// A tensor of it; floats are F64.
    pub fn make(&self, rng: &mut Generator) -> Result<Tensor> {
        let shape = Shape::new(self.shape())?;
        let n = shape.numel();
        let mut v = vec![0f64; n];
        match self {
            Input::Normal(_) => rng.fill_normal(&mut v, |x| x),
            Input::Positive(_) => rng.fill_uniform(&mut v, |x| 0.3 + 1.5 * x as f64),
            Input::NonZero(_) => rng.fill_normal(&mut v, |x| x + 0.2f64.copysign(x)),
            Input::Distinct(_) => {
                for (x, i) in v.iter_mut().zip(rng.permutation(n)) {
                    *x = (i as f64 - n as f64 / 2.0) * 0.07 + 0.02 * rng.uniform() + 0.013;
                }
            }
            Input::Index(_, bound) => {
                let v = (0..n).map(|_| rng.below(*bound as u64) as i64).collect();
                return Tensor::from_vec(v, shape);
            }
            Input::Mask(_) => {
                let v = (0..n).map(|_| rng.below(2) as u8).collect();
                return Tensor::from_vec(v, shape);
            }
        }
        Tensor::from_vec(v, shape)
    }
}

/// One row of the table: an op with settings, on inputs of these shapes.
pub struct Case {
    /// The op, as its method is called.
    pub op: &'static str,
    /// What is special about the case.
    pub name: &'static str,
    /// The inputs.
    pub inputs: &'static [Input],
    /// The op, run on them.
    pub run: fn(&[Tensor]) -> Result<Tensor>,
}

impl Case {
    /// The inputs, the same for the same seed.
    pub fn make(&self, seed: u64) -> Result<Vec<Tensor>> {
        let mut rng = Generator::new(seed);
        self.inputs.iter().map(|i| i.make(&mut rng)).collect()
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.op, self.name)
    }
}

/// Where analytic and numeric gradients differ most.
#[derive(Clone, Copy, Debug)]
pub struct Worst {
    /// Which input.
    pub input: usize,
    /// Which element of it, in row-major order.
    pub index: usize,
    /// What backward says.
    pub analytic: f64,
    /// What central differences say.
    pub numeric: f64,
}

/// What a gradient check found.
#[derive(Clone, Debug)]
pub struct Report {
    /// How many elements were compared.
    pub checked: usize,
    /// The greatest |analytic - numeric| / max(1, |analytic|, |numeric|).
    pub error: f64,
    /// Where that was.
    pub worst: Option<Worst>,
    /// What it may be.
    pub tolerance: f64,
}

impl Report {
    /// Whether every element agrees.
    pub fn passed(&self) -> bool {
        // a NaN error must fail
        self.error <= self.tolerance
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} elements, greatest error {:.2e}",
            self.checked, self.error
        )?;
        if let (false, Some(w)) = (self.passed(), &self.worst) {
            write!(
                f,
                " (over {:.0e}): input {}[{}] analytic {} numeric {}",
                self.tolerance, w.input, w.index, w.analytic, w.numeric
            )?;
        }
        Ok(())
    }
}

/// The step of the central differences: the cube root of f64's rounding, where the error of the
/// difference (step squared) and of rounding (epsilon / step) balance.
const STEP: f64 = 1e-5;
/// Relative, above the two errors that [`STEP`] leaves.
const TOLERANCE: f64 = 1e-7;

/// Compare the gradients of `f` by backward with central differences, in f64, at every element
/// of every float input. The output is weighted by fixed random numbers, so that no error
/// cancels in a sum.
///
/// ```
/// # use cotangent::{ops::gradcheck, DType, Tensor, random::Generator};
/// let x = Tensor::randn([3, 4], &mut Generator::new(0), DType::F64)?;
/// let report = gradcheck(|x| x[0].tanh()?.mul(&x[0]), &[x])?;
/// assert!(report.passed(), "{report}");
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn gradcheck(f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor]) -> Result<Report> {
    gradcheck_at(f, inputs, usize::MAX)
}

/// [`gradcheck`] at no more than `samples` random elements of each input: CS231n's sparse check,
/// for whole models.
pub fn gradcheck_at(
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    samples: usize,
) -> Result<Report> {
    let leaves = inputs
        .iter()
        .map(|x| match x.dtype() {
            d if !d.is_float() => Ok(x.detach()),
            // a compact copy of its own, so that elements can be nudged one by one
            _ => Ok(x.cast(DType::F64)?.requires_grad()),
        })
        .collect::<Result<Vec<_>>>()?;
    let y = f(&leaves)?;
    if y.dtype() != DType::F64 {
        return Err(Error::DType {
            op: "gradcheck",
            expected: "an f64 output",
            got: y.dtype(),
        });
    }
    let mut rng = Generator::new(0x5eed);
    let weight = Tensor::randn(y.shape(), &mut rng, DType::F64)?;
    let tracked = y.is_tracked();
    let grads = if tracked {
        y.backward_from(&weight)?
    } else {
        Default::default()
    };
    let weight = weight.to_vec::<f64>()?;
    let dot = |y: &Tensor| -> Result<f64> {
        Ok(y.to_vec::<f64>()?
            .iter()
            .zip(&weight)
            .map(|(a, b)| a * b)
            .sum())
    };
    let _quiet = no_grad();
    let mut report = Report {
        checked: 0,
        error: 0.0,
        worst: None,
        tolerance: TOLERANCE,
    };
    for (i, leaf) in leaves.iter().enumerate() {
        if !leaf.dtype().is_float() {
            continue;
        }
        let analytic = match grads.get(leaf) {
            Some(g) => g.to_vec::<f64>()?,
            None => vec![0.0; leaf.numel()],
        };
        let places: Vec<usize> = if leaf.numel() <= samples {
            (0..leaf.numel()).collect()
        } else {
            (0..samples)
                .map(|_| rng.below(leaf.numel() as u64) as usize)
                .collect()
        };
        let values = leaf.to_vec::<f64>()?;
        let mut nudged = leaves.clone();
        for j in places {
            let mut at = |x: f64| -> Result<f64> {
                let mut v = values.clone();
                v[j] = x;
                nudged[i].copy_(&Tensor::from_vec(v, leaf.shape())?)?;
                dot(&f(&nudged)?)
            };
            let step = STEP * values[j].abs().max(1.0);
            let numeric = (at(values[j] + step)? - at(values[j] - step)?) / (2.0 * step);
            let a = analytic[j];
            let error = (a - numeric).abs() / 1f64.max(a.abs()).max(numeric.abs());
            report.checked += 1;
            if error > report.error || error.is_nan() || report.worst.is_none() {
                report.error = if error.is_nan() {
                    f64::INFINITY
                } else {
                    error.max(report.error)
                };
                report.worst = Some(Worst {
                    input: i,
                    index: j,
                    analytic: a,
                    numeric,
                });
            }
        }
    }
    Ok(report)
}

/// Channels of 65,536 numbers whose variance is easily lost, with mean and biased variance: little
/// noise with one number far off, as the first and within, and far from 0.
#[cfg(test)]
pub(crate) fn hard_channels() -> Vec<(Vec<f32>, f64, f64)> {
    let channel = |level: f32, outlier: Option<usize>| {
        let noise = (0..65_536u32).map(|i| i.wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32);
        let mut x: Vec<f32> = noise.map(|u| level + 0.03 * (u - 0.5)).collect();
        if let Some(i) = outlier {
            x[i] = 1000.1;
        }
        let mean_of = |f: &dyn Fn(f64) -> f64| {
            let sum: f64 = x.iter().map(|&x| f(x as f64)).sum();
            sum / x.len() as f64
        };
        let mean = mean_of(&|x| x);
        let var = mean_of(&|x| (x - mean).powi(2));
        (x, mean, var)
    };
    let rows = [
        (0.3, Some(0)),
        (0.3, Some(256)),
        (0.3, Some(40_003)),
        (1000.0, None),
    ];
    rows.map(|(level, outlier)| channel(level, outlier)).into()
}

/// The CPU, and the emulated GPU where it is built: special values must be the same on both.
#[cfg(test)]
pub(crate) fn devices() -> Result<Vec<Device>> {
    devices_nth(0)
}

/// [`devices`] with a GPU of its own, for a test whose faults another one would read.
#[cfg(test)]
pub(crate) fn devices_nth(n: u8) -> Result<Vec<Device>> {
    let mut all = vec![Device::Cpu];
    if cfg!(feature = "emulator") {
        all.push(Device::cuda_emulated_nth(n)?);
    }
    Ok(all)
}
