//! Memory: one test in its own process, because the counters are the process's.

use cotangent::nn::{LayerNorm2d, Mode, Module};
use cotangent::random::Generator;
use cotangent::shape::Window;
use cotangent::storage::{memory_stats, reset_peak};
use cotangent::{DType, Result, Tensor};

#[test]
fn steps_leave_nothing_behind_and_backward_frees_as_it_walks() -> Result<()> {
    let mut rng = Generator::new(0);
    let x = Tensor::randn([8, 3, 16, 16], &mut rng, DType::F32)?;
    let w1 = Tensor::randn([8, 3, 3, 3], &mut rng, DType::F32)?.requires_grad();
    let w2 = Tensor::randn([10, 8 * 8 * 8], &mut rng, DType::F32)?.requires_grad();
    let same = Window {
        padding: [1, 1],
        ..Window::new([3, 3])
    };
    let step = || -> Result<()> {
        let y = x.conv2d(&w1, None, same, 1)?.relu()?;
        let y = y
            .narrow(2, 0, 8)?
            .narrow(3, 0, 8)?
            .flatten(1)?
            .linear(&w2, None)?;
        let g = y.logsumexp(&[1], false)?.mean_all()?.backward()?;
        assert_eq!(g.len(), 2);
        Ok(())
    };
    step()?;
    step()?;
    let before = memory_stats();
    for _ in 0..10 {
        step()?;
        let after = memory_stats();
        // nothing lives on, and every buffer of the step came from the pool
        assert_eq!(
            (after.live, after.live_bytes, after.allocations),
            (before.live, before.live_bytes, before.allocations)
        );
    }

    // a chain that keeps a tensor an op: backward must never hold a second chain
    let n = 1 << 18;
    let bytes = n * 4;
    let x = Tensor::full([n], 0.5, DType::F32)?.requires_grad();
    let mut y = x.clone();
    for _ in 0..20 {
        y = y.tanh()?;
    }
    let y = y.sum_all()?;
    let held = memory_stats().live_bytes;
    reset_peak();
    y.backward()?;
    assert!(
        memory_stats().peak_bytes < held + 4 * bytes,
        "peak {} over {held}",
        memory_stats().peak_bytes
    );

    // activations lie channels-last: a norm of their channels makes its output, its backward the
    // input's gradient, and neither a copy
    let (n, h, w, c) = (4, 64, 64, 32);
    let images =
        || -> Result<Tensor> { Tensor::ones([n, h, w, c], DType::F32)?.permute(&[0, 3, 1, 2]) };
    let (x, dy) = (images()?.requires_grad(), images()?);
    let bytes = n * h * w * c * 4;
    let mut norm = LayerNorm2d::new(c)?;
    let held = memory_stats().live_bytes;
    reset_peak();
    let y = norm.forward(&x, Mode::Train)?;
    assert!(y.layout().is_channels_last());
    let forward = memory_stats().peak_bytes - held;
    assert!(
        (bytes..bytes + bytes / 4).contains(&forward),
        "{forward} of {bytes}"
    );
    let held = memory_stats().live_bytes;
    reset_peak();
    let grads = y.backward_from(&dy)?;
    assert!(
        grads
            .get(&x)
            .is_some_and(|dx| dx.layout().is_channels_last())
    );
    let backward = memory_stats().peak_bytes - held;
    assert!(
        (bytes..bytes + bytes / 4).contains(&backward),
        "{backward} of {bytes}"
    );
    Ok(())
}
