//! The gradient check of a whole module: CS231n's sparse check.

use std::cell::RefCell;

use crate::dtype::DType;
use crate::error::Result;
use crate::nn::{Mode, Module, Slot, visit};
use crate::ops::check::{Report, gradcheck_at};
use crate::random::Generator;
use crate::tensor::Tensor;

/// Compare the gradients of a module's output with central differences in f64, at no more than
/// `samples` random elements of the input and of each parameter.
///
/// In the report, input 0 is `x` and input i the i-th parameter, from 1.
pub fn gradcheck(m: &mut dyn Module, x: &Tensor, mode: Mode, samples: usize) -> Result<Report> {
    gradcheck_of(m, std::slice::from_ref(x), samples, |m, x| {
        m.forward(&x[0], mode)
    })
}

/// [`gradcheck`] of any function of a module and of `inputs`: a loss, say. Every evaluation starts
/// from the same buffers and random streams, so that dropout drops the same elements; afterwards
/// the module is as it was before.
///
/// In the report the inputs come first, then the parameters.
pub fn gradcheck_of(
    m: &mut dyn Module,
    inputs: &[Tensor],
    samples: usize,
    f: impl Fn(&mut dyn Module, &[Tensor]) -> Result<Tensor>,
) -> Result<Report> {
    let (mut all, mut buffers, mut streams) = (inputs.to_vec(), Vec::new(), Vec::new());
    visit(m, |_, slot| match slot {
        Slot::Parameter(t) => all.push(t.clone()),
        Slot::Buffer(t) => buffers.push(t.clone()),
        Slot::Generator(g) => streams.push(*g),
    });
    let wide = buffers
        .iter()
        .map(|b| match b.dtype().is_float() {
            true => b.cast(DType::F64),
            false => Ok(b.clone()),
        })
        .collect::<Result<Vec<_>>>()?;
    let m = RefCell::new(m);
    let n = inputs.len();
    let run = |values: &[Tensor]| {
        let m = &mut **m.borrow_mut();
        set(m, &values[n..], &wide, &streams);
        f(m, &values[..n])
    };
    let report = gradcheck_at(run, &all, samples);
    set(&mut **m.borrow_mut(), &all[n..], &buffers, &streams);
    report
}

/// Give a module these parameters, buffers and random streams, in the order of its visit.
fn set(m: &mut dyn Module, parameters: &[Tensor], buffers: &[Tensor], streams: &[Generator]) {
    let (mut p, mut b, mut s) = (parameters.iter(), buffers.iter(), streams.iter());
    visit(m, |_, slot| match slot {
        Slot::Parameter(t) => p.next().into_iter().for_each(|v| *t = v.clone()),
        Slot::Buffer(t) => b.next().into_iter().for_each(|v| *t = v.clone()),
        Slot::Generator(g) => s.next().into_iter().for_each(|v| *g = *v),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{BatchNorm1d, Dropout, Linear, Sequential, Visitor, state_dict, to_dtype};

    #[test]
    fn leaves_the_module_as_it_was() -> Result<()> {
        let rng = &mut Generator::new(0);
        let mut net = Sequential::new()
            .push(Linear::new(4, 3, true, rng)?)
            .push(BatchNorm1d::new(3)?)
            .push(Dropout::new(0.5, rng)?);
        to_dtype(&mut net, DType::F64)?;
        let x = Tensor::randn([5, 4], rng, DType::F64)?;
        let state = |net: &mut Sequential| -> Result<Vec<Vec<f64>>> {
            state_dict(net)
                .iter()
                .map(|(_, t)| t.to_dtype(DType::F64)?.to_vec::<f64>())
                .collect()
        };
        let before = state(&mut net)?;
        let report = gradcheck(&mut net, &x, Mode::Train, 5)?;
        assert!(
            report.passed() && report.checked == 5 * 2 + 3 * 3,
            "{report}"
        );
        assert_eq!(state(&mut net)?, before);
        Ok(())
    }

    /// y = w x, but w's gradient is lost.
    struct Broken(Tensor);
    impl Module for Broken {
        fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
            x.mul(&self.0.detach())
        }
        fn visit(&mut self, v: &mut Visitor<'_>) {
            v.parameter("w", &mut self.0);
        }
        fn describe(&self) -> String {
            "Broken()".into()
        }
    }

    #[test]
    fn finds_a_lost_gradient() -> Result<()> {
        let x = Tensor::ones([3], DType::F64)?;
        let mut m = Broken(x.requires_grad());
        let report = gradcheck(&mut m, &x, Mode::Train, 3)?;
        assert!(!report.passed());
        assert_eq!(report.worst.unwrap().input, 1);
        Ok(())
    }
}
