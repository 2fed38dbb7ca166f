//! Every op of the case table: gradient checks in f64, f32 against f64, 16-bit floats, strided
//! and channels-last inputs, and one tensor with two consumers.

use cotangent::ops::{Case, all_cases, gradcheck};
use cotangent::{DType, Result, Tensor};

fn each(test: impl Fn(&Case) -> Result<std::result::Result<(), String>>) {
    let failed: Vec<String> = all_cases()
        .filter_map(|c| match test(c) {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(format!("{c}: {why}")),
            Err(e) => Some(format!("{c}: error: {e}")),
        })
        .collect();
    assert!(
        failed.is_empty(),
        "{} cases failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

/// An output, and a gradient for each input that has one.
type Run = (Vec<f64>, Vec<Option<Vec<f64>>>);

/// The output, and the gradients from a fixed gradient of it.
fn run(c: &Case, inputs: &[Tensor]) -> Result<Run> {
    let leaves: Vec<Tensor> = inputs.iter().map(Tensor::requires_grad).collect();
    run_on(c, &leaves, &leaves)
}

fn run_on(c: &Case, leaves: &[Tensor], inputs: &[Tensor]) -> Result<Run> {
    let y = (c.run)(inputs)?;
    let grads = if y.is_tracked() {
        let n = y.numel() as f64;
        let dy = Tensor::arange(0.0, n, 1.0, DType::F64)?
            .cos()?
            .reshape(y.shape())?;
        y.backward_from(&dy.to_dtype(y.dtype())?)?
    } else {
        Default::default()
    };
    let values = |t: &Tensor| t.to_dtype(DType::F64)?.to_vec::<f64>();
    let grads = leaves
        .iter()
        .map(|l| grads.get(l).map(values).transpose())
        .collect::<Result<_>>()?;
    Ok((values(&y)?, grads))
}

fn close(a: &[f64], b: &[f64], tolerance: f64) -> std::result::Result<(), String> {
    if a.len() != b.len() {
        return Err(format!("{} and {} elements", a.len(), b.len()));
    }
    let scale = b.iter().fold(1f64, |m, x| m.max(x.abs()));
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        // equal infinities are equal; NaN never is
        if !(x == y || (x - y).abs() <= tolerance * scale) {
            return Err(format!("element {i}: {x} but {y} expected"));
        }
    }
    Ok(())
}

fn same(a: &Run, b: &Run, tolerance: f64) -> std::result::Result<(), String> {
    close(&a.0, &b.0, tolerance).map_err(|e| format!("output: {e}"))?;
    for (i, pair) in a.1.iter().zip(&b.1).enumerate() {
        match pair {
            (Some(x), Some(y)) => {
                close(x, y, tolerance).map_err(|e| format!("gradient {i}: {e}"))?
            }
            (None, None) => {}
            (x, y) => return Err(format!("gradient {i}: {x:?} but {y:?} expected")),
        }
    }
    Ok(())
}

#[test]
fn gradients_agree_with_central_differences() {
    each(|c| {
        let report = gradcheck(c.run, &c.make(1)?)?;
        Ok(if report.passed() {
            Ok(())
        } else {
            Err(report.to_string())
        })
    });
}

#[test]
fn every_float_input_is_checked() {
    // an op that cut its graph would have no gradient to check
    each(|c| {
        let (_, grads) = run(c, &c.make(1)?)?;
        let inputs = c.make(1)?;
        let missing = inputs
            .iter()
            .zip(&grads)
            .position(|(x, g)| x.dtype().is_float() && g.is_none());
        Ok(missing.map_or(Ok(()), |i| Err(format!("input {i} has no gradient"))))
    });
}

fn converted(inputs: &[Tensor], dtype: DType) -> Result<Vec<Tensor>> {
    inputs
        .iter()
        .map(|x| {
            if x.dtype().is_float() {
                x.to_dtype(dtype)
            } else {
                Ok(x.clone())
            }
        })
        .collect()
}

#[test]
fn f32_agrees_with_f64() {
    each(|c| {
        let inputs = c.make(2)?;
        Ok(same(
            &run(c, &converted(&inputs, DType::F32)?)?,
            &run(c, &inputs)?,
            1e-4,
        ))
    });
}

#[test]
fn bf16_and_f16_agree_with_f32_to_their_precision() {
    each(|c| {
        for (dtype, tolerance) in [(DType::BF16, 0.04), (DType::F16, 0.005)] {
            let narrow = converted(&c.make(3)?, dtype)?;
            let wide = converted(&narrow, DType::F32)?;
            let (n, w) = (run(c, &narrow)?, run(c, &wide)?);
            if let Err(e) = same(&n, &w, tolerance) {
                return Ok(Err(format!("{dtype}: {e}")));
            }
        }
        Ok(Ok(()))
    });
}

/// The same elements with gaps between them and an offset before.
fn with_gaps(x: &Tensor) -> Result<Tensor> {
    if x.rank() == 0 {
        return Tensor::stack(&[x, x], 0)?.select(0, 1);
    }
    let n = x.shape()[x.rank() - 1];
    Tensor::cat(&[&x.narrow(-1, 0, 0)?.pad(&[(-1, 0, 2)], 7.0)?, x], -1)?.narrow(-1, 2, n)
}

/// The same elements with the axes in memory in reverse order.
fn reversed_axes(x: &Tensor) -> Result<Tensor> {
    let axes: Vec<isize> = (0..x.rank() as isize).rev().collect();
    x.permute(&axes)?.contiguous()?.permute(&axes)
}

/// 4-D tensors as N, H, W, C in memory.
fn channels_last(x: &Tensor) -> Result<Tensor> {
    if x.rank() != 4 {
        return Ok(x.clone());
    }
    x.permute(&[0, 2, 3, 1])?
        .contiguous()?
        .permute(&[0, 3, 1, 2])
}

#[test]
fn any_memory_order_gives_the_same() {
    each(|c| {
        let plain = c.make(4)?;
        let expected = run(c, &plain)?;
        for (name, arrange) in [
            ("gaps", with_gaps as fn(&Tensor) -> _),
            ("reversed", reversed_axes),
            ("channels last", channels_last),
        ] {
            let arranged = plain.iter().map(arrange).collect::<Result<Vec<_>>>()?;
            for (a, p) in arranged.iter().zip(&plain) {
                assert_eq!(a.shape(), p.shape());
            }
            if let Err(e) = same(&run(c, &arranged)?, &expected, 1e-12) {
                return Ok(Err(format!("{name}: {e}")));
            }
        }
        Ok(Ok(()))
    });
}

#[test]
fn two_consumers_add_their_gradients() {
    // catches an engine that overwrites instead of adding
    let sum = |c: &Case, x: &[Tensor]| -> Result<Tensor> {
        let y = (c.run)(x)?;
        // the inputs again, through another op first
        let other = x
            .iter()
            .map(|x| {
                if x.dtype().is_float() {
                    x.mul_scalar(1.0)
                } else {
                    Ok(x.clone())
                }
            })
            .collect::<Result<Vec<_>>>()?;
        y.add(&(c.run)(&other)?)
    };
    each(|c| {
        let leaves: Vec<Tensor> = c.make(5)?.iter().map(Tensor::requires_grad).collect();
        let (_, once) = run_on(c, &leaves, &leaves)?;
        let y = sum(c, &leaves)?;
        if !y.is_tracked() {
            return Ok(Ok(()));
        }
        let dy = Tensor::arange(0.0, y.numel() as f64, 1.0, DType::F64)?
            .cos()?
            .reshape(y.shape())?;
        let grads = y.backward_from(&dy)?;
        for (i, (leaf, once)) in leaves.iter().zip(once).enumerate() {
            let Some(once) = once else { continue };
            let twice: Vec<f64> = once.iter().map(|g| 2.0 * g).collect();
            let Some(found) = grads.get(leaf) else {
                return Ok(Err(format!("gradient {i} is missing")));
            };
            if let Err(e) = close(&found.to_vec::<f64>()?, &twice, 1e-12) {
                return Ok(Err(format!("gradient {i}: {e}")));
            }
        }
        Ok(Ok(()))
    });
}

#[test]
fn same_bits_on_any_number_of_threads() {
    // made before a case asks for threads, so that it is as large for the other tests as ever
    rayon::current_num_threads();
    each(|c| {
        let inputs = converted(&c.make(6)?, DType::F32)?;
        // on rayon's threads, and on a thread's own
        let on = |n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n);
            pool.build().unwrap().install(|| run(c, &inputs))
        };
        let own = |n| {
            std::thread::scope(|s| {
                let run = s.spawn(|| {
                    cotangent::cpu::set_num_threads(Some(n))?;
                    run(c, &inputs)
                });
                run.join().unwrap()
            })
        };
        let (one, others) = (on(1)?, [on(3)?, own(1)?, own(3)?]);
        let bits = |r: &Run| -> Vec<u64> {
            r.0.iter()
                .chain(r.1.iter().flatten().flatten())
                .map(|x| x.to_bits())
                .collect()
        };
        Ok(if others.iter().all(|other| bits(other) == bits(&one)) {
            Ok(())
        } else {
            Err("bits differ".into())
        })
    });
}
