//! The engine: accumulation, broadcasting, freeing, hooks, deep chains, threads.

use cotangent::autograd::{Op, apply, autocast, checkpoint, no_grad};
use cotangent::ops::gradcheck;
use cotangent::random::Generator;
use cotangent::{DType, Error, Result, Tensor};

fn leaf(v: &[f64]) -> Result<Tensor> {
    Ok(Tensor::from_slice(v, v.len())?.requires_grad())
}

#[test]
fn a_tensor_used_twice_gets_the_sum() -> Result<()> {
    let x = leaf(&[3.0])?;
    // y = x^2 + 5 x: dy/dx = 2 x + 5
    let y = x.mul(&x)?.add(&x.mul_scalar(5.0)?)?;
    assert_eq!(y.backward()?.get(&x).unwrap().to_vec::<f64>()?, [11.0]);
    Ok(())
}

#[test]
fn a_diamond_is_walked_in_order() -> Result<()> {
    let x = leaf(&[0.7, -0.3])?;
    let report = gradcheck(
        |x| {
            let a = x[0].exp()?;
            let b = a.mul(&x[0])?;
            let c = a.add(&b)?;
            c.mul(&a)?.add(&b.tanh()?)
        },
        &[x],
    )?;
    assert!(report.passed(), "{report}");
    Ok(())
}

#[test]
fn broadcasting_is_undone() -> Result<()> {
    let row = leaf(&[1.0, 2.0, 3.0])?;
    let x = Tensor::ones([4, 3], DType::F64)?.requires_grad();
    let g = x.mul(&row)?.sum_all()?.backward()?;
    assert_eq!(g.get(&row).unwrap().to_vec::<f64>()?, [4.0, 4.0, 4.0]);
    assert_eq!(g.get(&row).unwrap().shape()[..], [3]);
    assert_eq!(g.get(&x).unwrap().shape()[..], [4, 3]);
    Ok(())
}

#[test]
fn the_graph_is_freed_as_it_is_walked() -> Result<()> {
    let x = leaf(&[1.0])?;
    let y = x.exp()?;
    y.backward()?;
    let e = y.backward().unwrap_err();
    assert!(matches!(e, Error::GraphFreed { op: "exp" }));
    assert!(e.to_string().contains("run forward again"), "{e}");
    // another loss over the freed part says so too
    assert!(matches!(
        y.mul_scalar(2.0)?.backward(),
        Err(Error::GraphFreed { op: "exp" })
    ));
    Ok(())
}

#[test]
fn what_cannot_run_backward_says_why() -> Result<()> {
    let x = leaf(&[1.0, 2.0])?;
    assert!(matches!(
        x.exp()?.backward(),
        Err(Error::NotScalar { op: "backward", .. })
    ));
    assert!(matches!(
        x.detach().sum_all()?.backward(),
        Err(Error::NoGraph)
    ));
    assert!(x.backward_from(&Tensor::ones([3], DType::F64)?).is_err());
    assert!(!Tensor::ones([2], DType::I64)?.requires_grad().is_tracked());
    // a leaf's own gradient
    assert_eq!(
        x.backward_from(&x.detach())?
            .get(&x)
            .unwrap()
            .to_vec::<f64>()?,
        [1.0, 2.0]
    );
    Ok(())
}

#[test]
fn an_op_with_a_wrong_gradient_shape_is_named() -> Result<()> {
    struct Broken;
    impl Op<1> for Broken {
        const NAME: &'static str = "broken";
        type Saved = ();
        fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, ())> {
            Ok((x.clone(), ()))
        }
        fn backward(&self, _: (), _: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
            Ok([Some(Tensor::ones([7], DType::F64)?)])
        }
    }
    let x = leaf(&[1.0, 2.0])?;
    let e = apply(Broken, [&x])?.sum_all()?.backward().unwrap_err();
    assert_eq!(
        e.to_string(),
        "broken: backward gave gradient [7] for input 0 of shape [2]"
    );
    Ok(())
}

#[test]
fn no_grad_is_a_guard_and_detach_cuts() -> Result<()> {
    let x = leaf(&[2.0])?;
    {
        let _outer = no_grad();
        {
            let _inner = no_grad();
        }
        assert!(!x.exp()?.is_tracked());
    }
    assert!(x.exp()?.is_tracked());
    // d/dx (x stop(x)) = stop(x)
    let g = x.mul(&x.detach())?.backward()?;
    assert_eq!(g.get(&x).unwrap().item()?, 2.0);
    // another thread is not affected
    let _guard = no_grad();
    let y = std::thread::scope(|s| s.spawn(|| x.exp()).join().unwrap())?;
    assert!(y.is_tracked());
    Ok(())
}

#[test]
fn hooks_see_the_whole_gradient_and_may_replace_it() -> Result<()> {
    let x = leaf(&[3.0])?;
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = seen.clone();
    x.register_hook(move |g| {
        log.lock().unwrap().push(g.item()?);
        Ok(None)
    });
    let y = x.mul(&x)?;
    y.register_hook(|g| Ok(Some(g.mul_scalar(2.0)?)));
    assert_eq!(y.backward()?.get(&x).unwrap().item()?, 12.0);
    assert_eq!(*seen.lock().unwrap(), [12.0]);
    // a hook's error ends backward
    let z = x.mul(&x)?;
    z.register_hook(|_| Err(Error::argument("hook", "no")));
    assert!(z.backward().is_err());
    Ok(())
}

#[test]
fn gradients_add_over_small_batches_and_report_their_coverage() -> Result<()> {
    let (x, unused) = (leaf(&[1.0, 2.0])?, leaf(&[1.0])?);
    let mut g = x.sum_all()?.backward()?;
    g.add(x.square()?.sum_all()?.backward()?)?;
    assert_eq!(g.get(&x).unwrap().to_vec::<f64>()?, [3.0, 5.0]);
    let (dead, nan) = (leaf(&[-1.0])?, leaf(&[-1.0])?);
    g.add(dead.relu()?.backward()?)?;
    g.add(nan.sqrt()?.backward()?)?;
    let named = [
        ("x", &x),
        ("unused", &unused),
        ("dead", &dead),
        ("nan", &nan),
    ];
    let c = g.coverage(named.map(|(n, t)| (n.to_string(), t)))?;
    assert_eq!(
        (c.missing, c.zero, c.not_finite, c.healthy),
        (
            vec!["unused".into()],
            vec!["dead".into()],
            vec!["nan".into()],
            1
        )
    );
    Ok(())
}

#[test]
fn writing_a_parameter_while_a_graph_lives_keeps_its_gradient() -> Result<()> {
    let mut w = leaf(&[3.0])?;
    let y = w.mul(&w)?;
    w.make_mut::<f64>()?[0] = 100.0;
    assert_eq!(y.backward()?.get(&w).unwrap().item()?, 6.0);
    // now nobody else holds the storage: in place
    let place = w.as_ndarray::<f64>()?.as_ptr();
    w.make_mut::<f64>()?[0] = 1.0;
    assert_eq!(w.as_ndarray::<f64>()?.as_ptr(), place);
    Ok(())
}

#[test]
fn a_chain_of_300_000_ops_runs_backward_and_drops() -> Result<()> {
    let x = leaf(&[0.1])?;
    let chain = || -> Result<Tensor> {
        let mut y = x.clone();
        for _ in 0..300_000 {
            y = y.mul_scalar(1.0)?;
        }
        Ok(y)
    };
    // a small stack: recursion would overflow it at once
    std::thread::scope(|s| {
        let run = || -> Result<()> {
            assert_eq!(chain()?.backward()?.get(&x).unwrap().item()?, 1.0);
            drop(chain()?);
            Ok(())
        };
        std::thread::Builder::new()
            .stack_size(256 << 10)
            .spawn_scoped(s, run)
            .unwrap()
            .join()
            .unwrap()
    })
}

#[test]
fn a_graph_can_move_to_another_thread() -> Result<()> {
    let x = leaf(&[0.5; 4])?;
    let y = x.exp()?;
    let g = std::thread::spawn(move || y.sum_all()?.backward())
        .join()
        .unwrap()?;
    assert_eq!(g.get(&x).unwrap().numel(), 4);
    Ok(())
}

#[test]
fn mixed_dtypes_keep_each_leaf_in_its_own() -> Result<()> {
    let x = Tensor::randn([4], &mut Generator::new(1), DType::F32)?.requires_grad();
    let g = x
        .to_dtype(DType::BF16)?
        .exp()?
        .to_dtype(DType::F32)?
        .sum_all()?
        .backward()?;
    assert_eq!(g.get(&x).unwrap().dtype(), DType::F32);
    Ok(())
}

#[test]
fn a_checkpoint_is_computed_again_once_and_freed() -> Result<()> {
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = || runs.load(std::sync::atomic::Ordering::Relaxed);
    let hooked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let (x, w) = (leaf(&[0.5, -1.0])?, leaf(&[2.0, 3.0])?);
    let log = hooked.clone();
    w.register_hook(move |g| {
        log.lock().unwrap().push(g.to_vec::<f64>()?);
        Ok(None)
    });
    let counter = runs.clone();
    let inside = move |t: &[Tensor]| {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        t[0].mul(&t[1])?.exp()?.add(&t[1])
    };
    let y = checkpoint(&[&x, &w], inside)?;
    assert_eq!((count(), y.is_tracked()), (1, true));
    let z = y.mul(&w)?.sum_all()?;
    let grads = z.backward()?;
    assert_eq!(count(), 2);
    let plain = x.mul(&w)?.exp()?.add(&w)?.mul(&w)?.sum_all()?.backward()?;
    for t in [&x, &w] {
        let [a, b] = [&grads, &plain].map(|g| g.get(t).unwrap().to_vec::<f64>().unwrap());
        assert_eq!(a, b);
    }
    // a hook sees a leaf's whole gradient, once a backward
    assert_eq!(hooked.lock().unwrap().len(), 2);
    let e = z.backward().unwrap_err();
    assert!(matches!(e, Error::GraphFreed { .. }), "{e}");
    let e = y.sum_all()?.backward().unwrap_err();
    assert!(matches!(e, Error::GraphFreed { op: "checkpoint" }), "{e}");
    Ok(())
}

#[test]
fn checkpoints_pass_the_gradient_check() -> Result<()> {
    let inputs = [leaf(&[0.7, -0.3])?, leaf(&[0.2, 1.1])?];
    let report = gradcheck(
        |x| {
            let y = checkpoint(&[&x[0], &x[1]], |x| {
                let inner = checkpoint(&[&x[0]], |x| x[0].tanh()?.square())?;
                inner.mul(&x[1])?.add(&x[0].exp()?)
            })?;
            y.mul(&x[0])
        },
        &inputs,
    )?;
    assert!(report.passed(), "{report}");
    Ok(())
}

#[test]
fn a_checkpoint_needs_its_inputs_in_its_list() -> Result<()> {
    let (x, hidden) = (leaf(&[0.5])?, leaf(&[2.0])?);
    let other = hidden.clone();
    let y = checkpoint(&[&x], move |t| t[0].mul(&other))?;
    assert_eq!(
        y.backward().unwrap_err().to_string(),
        "checkpoint: a gradient reached a tensor that is not among the inputs"
    );
    // nothing to differentiate, and nothing that depends on the inputs
    assert!(!checkpoint(&[&x.detach()], |t| t[0].exp())?.is_tracked());
    let y = checkpoint(&[&x], |t| t[0].detach().exp())?;
    assert!(y.backward()?.is_empty());
    Ok(())
}

#[test]
fn a_checkpoint_keeps_its_autocast_and_backward_has_none() -> Result<()> {
    let x = Tensor::randn([5, 4], &mut Generator::new(1), DType::F32)?;
    let w = Tensor::randn([3, 4], &mut Generator::new(2), DType::F32)?.requires_grad();
    let run = |checkpointed: bool| -> Result<Vec<f32>> {
        let y = {
            let _half = autocast(DType::BF16)?;
            let f = |t: &[Tensor]| t[0].linear(&t[1], None)?.tanh();
            let y = if checkpointed {
                checkpoint(&[&x, &w], f)?
            } else {
                f(&[x.clone(), w.clone()])?
            };
            let _full = autocast(None)?;
            assert_eq!(x.linear(&w, None)?.dtype(), DType::F32);
            y
        };
        assert_eq!(y.dtype(), DType::BF16);
        let grads = y.to_dtype(DType::F32)?.sum_all()?.backward()?;
        grads.get(&w).unwrap().to_vec()
    };
    assert_eq!(run(true)?, run(false)?);
    let e = autocast(DType::F32).unwrap_err().to_string();
    assert!(e.starts_with("autocast: expected bf16 or f16"), "{e}");
    Ok(())
}
