//! Memory: one test in its own process, because the counters are the process's.

use cotangent::nn::{self, LayerNorm2d, Mode, Module};
use cotangent::random::Generator;
use cotangent::shape::Window;
use cotangent::storage::{memory_stats, reset_peak};
use cotangent::{DType, Device, Result, Tensor};

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

    norms_of_channels_copy_nothing(Device::Cpu)?;
    if cfg!(feature = "emulator") {
        norms_of_channels_copy_nothing(Device::cuda_emulated()?)?;
    }
    Ok(())
}

/// Activations lie channels-last: a norm of their channels makes its output and its backward the
/// input's gradient, both lying so too, and neither makes a copy.
fn norms_of_channels_copy_nothing(device: Device) -> Result<()> {
    let (n, h, w, c) = (4, 32, 32, 32);
    let images = || -> Result<Tensor> {
        Tensor::ones([n, h, w, c], (DType::F32, device))?.permute(&[0, 3, 1, 2])
    };
    let (x, dy) = (images()?.requires_grad(), images()?);
    let bytes = n * h * w * c * 4;
    let mut norm = LayerNorm2d::new(c)?;
    nn::to_device(&mut norm, device)?;
    let one_tensor = |held: usize, of: &str| -> Result<()> {
        let more = device.memory_stats()?.peak_bytes - held;
        let some = bytes..bytes + bytes / 4;
        assert!(some.contains(&more), "{device} {of}: {more} of {bytes}");
        device.reset_peak()
    };
    device.reset_peak()?;
    let held = device.memory_stats()?.live_bytes;
    let y = norm.forward(&x, Mode::Train)?;
    one_tensor(held, "forward")?;
    assert!(y.layout().is_channels_last());
    let held = device.memory_stats()?.live_bytes;
    let grads = y.backward_from(&dy)?;
    one_tensor(held, "backward")?;
    let dx = grads.get(&x).expect("a gradient of the input");
    assert!(dx.layout().is_channels_last());
    Ok(())
}
