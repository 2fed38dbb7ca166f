//! Every layer of `nn`, from one table: gradients in f64 in both modes, the same results on the CPU
//! and on the CUDA device, emulated or (`GPU_REQUIRED=1`) real, and a state that another copy takes over.

use cotangent::nn::{
    self, Activation, AdaptiveAvgPool2d, AvgPool2d, BatchNorm1d, BatchNorm2d, Conv2d, Conv2dConfig,
    ConvNormAct, ConvTranspose2d, ConvTranspose2dConfig, DropPath, Dropout, Dropout2d, Flatten,
    GlobalAvgPool2d, GroupNorm, Identity, InstanceNorm2d, LayerNorm, LayerNorm2d, LayerScale,
    Linear, LinearNormAct, MaxPool2d, Mode, Module, Norm, RReLU, Residual, Sequential, Slot,
    Upsample,
};
use cotangent::ops::{Interpolation, Resize};
use cotangent::random::Generator;
use cotangent::{DType, Device, Result, Tensor};

/// A layer as a user makes it, and shapes that it takes, degenerate ones among them.
struct Layer {
    /// The start of its description.
    name: &'static str,
    inputs: &'static [&'static [usize]],
    build: fn(&mut Generator) -> Result<Box<dyn Module>>,
}

/// `"Name" [shapes], |rng| layer;` a row.
macro_rules! layers {
    ($($name:literal $inputs:expr, |$rng:ident| $make:expr;)*) => {
        &[$(Layer { name: $name, inputs: &$inputs, build: |$rng| Ok(Box::new($make)) }),*]
    };
}

#[rustfmt::skip]
const LAYERS: &[Layer] = layers! {
    "Linear(" [&[4, 5], &[1, 5], &[0, 5], &[2, 3, 5]], |rng| Linear::new(5, 3, true, rng)?;
    "Linear(" [&[4, 5]], |rng| Linear::new(5, 3, false, rng)?;
    "LinearNormAct(" [&[4, 5]], |rng| LinearNormAct::new(5, 3, Norm::Batch, Activation::Relu, rng)?;
    "Conv2d(" [&[2, 3, 5, 4], &[1, 3, 1, 1]], |rng| Conv2d::new(3, 4, Conv2dConfig::same(3), rng)?;
    "ConvTranspose2d(" [&[2, 3, 4, 3], &[1, 3, 1, 1]], |rng| ConvTranspose2d::new(3, 4, ConvTranspose2dConfig { stride: [2, 2], padding: [1, 1], output_padding: [1, 0], ..ConvTranspose2dConfig::new([3, 3]) }, rng)?;
    "ConvTranspose2d(" [&[2, 4, 3, 3]], |rng| ConvTranspose2d::new(4, 6, ConvTranspose2dConfig { groups: 2, bias: false, ..ConvTranspose2dConfig::new([2, 3]) }, rng)?;
    "ConvNormAct(" [&[2, 3, 5, 4], &[1, 3, 3, 2]], |rng| ConvNormAct::new(3, 4, Conv2dConfig::same(3), Norm::Batch, Activation::Gelu, rng)?;
    "BatchNorm1d(" [&[4, 3]], |_rng| BatchNorm1d::new(3)?;
    "BatchNorm2d(" [&[2, 3, 4, 5], &[1, 3, 2, 1]], |_rng| BatchNorm2d::new(3)?;
    "LayerNorm(" [&[2, 3, 4], &[1, 4]], |_rng| LayerNorm::new(4, 1e-6)?;
    "LayerNorm2d(" [&[2, 3, 4, 5], &[1, 3, 1, 1], &[0, 3, 2, 2]], |_rng| LayerNorm2d::new(3)?;
    "GroupNorm(2, 4, eps=1e-5)" [&[2, 4, 3, 2], &[1, 4, 2, 1], &[3, 4], &[0, 4, 2]], |_rng| GroupNorm::new(2, 4)?;
    "InstanceNorm2d(" [&[2, 3, 4, 5], &[1, 3, 1, 2]], |_rng| InstanceNorm2d::new(3)?;
    "LayerScale(3)" [&[2, 3, 4, 5], &[2, 3], &[0, 3, 1]], |_rng| LayerScale::new(3, 0.5)?;
    "LayerScale(3, axis=-1)" [&[2, 4, 3], &[3]], |_rng| LayerScale::last(3, 0.5)?;
    "Dropout2d(p=0.3)" [&[3, 7, 2, 2], &[1, 1, 1, 1], &[4, 5]], |rng| Dropout2d::new(0.3, rng)?;
    "DropPath(p=0.3)" [&[7, 2, 3], &[1], &[0, 3]], |rng| DropPath::new(0.3, rng)?;
    "RReLU(lower=0.1, upper=0.5)" [&[3, 7], &[2, 3, 2, 2], &[0]], |rng| RReLU::new(0.1, 0.5, rng)?;
    "RReLU(lower=0.125, upper=0.3333333333333333)" [&[3, 7]], |rng| Activation::Rrelu.layer(rng)?;
    "LinearNormAct(" [&[4, 5]], |rng| LinearNormAct::new(5, 3, Norm::Layer, Activation::Rrelu, rng)?;
    "ConvNormAct(" [&[2, 3, 4, 4]], |rng| ConvNormAct::new(3, 4, Conv2dConfig::same(3), Norm::Batch, Activation::Rrelu, rng)?;
    "Residual(\n  (body): Linear(4, 4)\n)" [&[3, 4]], |rng| Residual::new(Linear::new(4, 4, true, rng)?);
    "Residual(" [&[4, 3, 4, 4], &[1, 3, 2, 1]], |rng| {
        let body = Sequential::new().named("conv1", Conv2d::new(3, 5, Conv2dConfig::same(3), rng)?)?.named("bn1", BatchNorm2d::new(5)?)?;
        Residual::new(body).shortcut("downsample", Conv2d::new(3, 5, Conv2dConfig::same(1), rng)?)?.drop_path(0.4, rng)?.activation(Activation::Rrelu, rng)?
    };
    "Identity()" [&[3, 4], &[0]], |_rng| Identity;
    "Dropout(" [&[3, 7], &[1, 1]], |rng| Dropout::new(0.3, rng)?;
    "MaxPool2d(" [&[2, 3, 4, 6], &[1, 1, 2, 2]], |_rng| MaxPool2d::square(2);
    "AvgPool2d(" [&[2, 3, 4, 6], &[1, 1, 2, 2]], |_rng| AvgPool2d::square(2);
    "AdaptiveAvgPool2d(output_size=[2, 3])" [&[2, 3, 5, 7], &[1, 1, 1, 1]], |_rng| AdaptiveAvgPool2d::new([2, 3])?;
    "GlobalAvgPool2d(" [&[2, 3, 5, 7], &[1, 1, 1, 1]], |_rng| GlobalAvgPool2d;
    "Upsample(scale_factor=[2.0, 1.5], mode='nearest')" [&[2, 3, 4, 6], &[1, 1, 1, 1]], |_rng| Upsample::new(Resize::Scale([2.0, 1.5]), Interpolation::Nearest)?;
    "Upsample(size=[5, 3], mode='bilinear')" [&[2, 3, 4, 6], &[1, 1, 1, 1]], |_rng| Upsample::new(Resize::Size([5, 3]), Interpolation::Bilinear { align_corners: false })?;
    "Flatten(" [&[2, 3, 4], &[1, 1, 1]], |_rng| Flatten;
    "ReLU(" [&[3, 4], &[1]], |_rng| Activation::Relu;
    "LeakyReLU(" [&[3, 4]], |_rng| Activation::LeakyRelu(0.01);
    "ELU(" [&[3, 4]], |_rng| Activation::Elu;
    "ELU(alpha=0.5)" [&[3, 4]], |_rng| Activation::EluAlpha(0.5);
    "Softplus(beta=1.0, threshold=20.0)" [&[3, 4]], |_rng| Activation::Softplus;
    "GELU(" [&[3, 4]], |_rng| Activation::Gelu;
    "GELU(approximate='tanh')" [&[3, 4]], |_rng| Activation::GeluTanh;
    "SiLU(" [&[3, 4]], |_rng| Activation::Silu;
    "Mish(" [&[3, 4]], |_rng| Activation::Mish;
    "Tanh(" [&[3, 4]], |_rng| Activation::Tanh;
    "Sigmoid(" [&[3, 4]], |_rng| Activation::Sigmoid;
    "Identity(" [&[3, 4], &[0]], |_rng| Activation::Identity;
    "Sequential(" [&[3, 4]], |rng| Sequential::new().push(Linear::new(4, 3, true, rng)?).push(Activation::Tanh);
};

/// For each row and shape: a fresh layer, whose parameters are no longer the plain ones of the
/// start, and an input.
fn each(test: impl Fn(&mut dyn Module, &Tensor, &Layer) -> Result<()>) {
    for (number, layer) in LAYERS.iter().enumerate() {
        for shape in layer.inputs {
            let run = || {
                let mut rng = Generator::new(number as u64);
                let mut m = made(layer, &mut rng)?;
                let x = Tensor::randn(*shape, &mut rng, DType::F32)?;
                test(&mut *m, &x, layer)
            };
            run().unwrap_or_else(|e| panic!("{} of {shape:?}: {e}", layer.name));
        }
    }
}

/// The layer with every parameter moved a little: ones and zeros hide mistakes.
fn made(layer: &Layer, rng: &mut Generator) -> Result<Box<dyn Module>> {
    let mut m = (layer.build)(rng)?;
    nn::try_visit(&mut *m, |_, slot| {
        if let Slot::Parameter(p) = slot {
            let by = Tensor::rand(p.shape(), rng, p.dtype())?.mul_scalar(0.2)?;
            *p = p.detach().add(&by)?.requires_grad();
        }
        Ok(())
    })?;
    Ok(m)
}

#[test]
fn descriptions_begin_as_pytorch_prints_them() {
    each(|m, _, layer| {
        let found = m.describe();
        assert!(found.starts_with(layer.name), "{found}");
        Ok(())
    });
}

#[test]
fn gradients_agree_with_central_differences_in_both_modes() {
    each(|m, x, layer| {
        nn::to_dtype(m, DType::F64)?;
        for mode in [Mode::Train, Mode::Eval] {
            let report = nn::gradcheck(m, &x.to_dtype(DType::F64)?, mode, 40)?;
            assert!(report.passed(), "{} {mode:?}: {report}", layer.name);
        }
        Ok(())
    });
}

/// Output and gradients, of the input first, as numbers.
fn run(m: &mut dyn Module, x: &Tensor, mode: Mode) -> Result<Vec<Vec<f64>>> {
    let x = x.requires_grad();
    let y = m.forward(&x, mode)?;
    let dy = Tensor::arange(0.0, y.numel() as f64, 1.0, DType::F64)?;
    let dy = dy.cos()?.reshape(y.shape())?.to_dtype(y.dtype())?;
    let grads = y.backward_from(&dy.to(y.device())?)?;
    let mut found = vec![y];
    found.extend(grads.get(&x).cloned());
    for (name, p) in nn::named_parameters(m) {
        found.push(
            grads
                .get(&p)
                .unwrap_or_else(|| panic!("no gradient of {name}"))
                .clone(),
        );
    }
    found.extend(nn::state_dict(m).into_iter().map(|(_, t)| t));
    let numbers = |t: Tensor| t.to(Device::Cpu)?.to_dtype(DType::F64)?.to_vec::<f64>();
    found.into_iter().map(numbers).collect()
}

#[test]
fn the_cuda_device_gives_what_the_cpu_gives() -> Result<()> {
    let device = match std::env::var_os("GPU_REQUIRED") {
        Some(_) => Device::cuda(0)?,
        None if cfg!(feature = "emulator") => Device::cuda_emulated()?,
        None => {
            eprintln!("skipped: no emulated device (cargo feature `emulator`)");
            return Ok(());
        }
    };
    each(|m, x, layer| {
        for mode in [Mode::Train, Mode::Eval] {
            let streams = cotangent::train::checkpoint::generators(m);
            nn::to_device(m, Device::Cpu)?;
            let state = nn::state_dict(m);
            let expected = run(m, x, mode)?;
            nn::load_state_dict(m, &state)?;
            cotangent::train::checkpoint::set_generators(m, &streams);
            nn::to_device(m, device)?;
            let found = run(m, &x.to(device)?, mode)?;
            for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
                let scale = b.iter().fold(1f64, |m, x| m.max(x.abs()));
                let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-4 * scale;
                let same = a.len() == b.len() && a.iter().zip(b).all(near);
                assert!(
                    same,
                    "{} {mode:?}, tensor {i}: {a:?}, on the CPU {b:?}",
                    layer.name
                );
            }
        }
        Ok(())
    });
    Ok(())
}

#[test]
fn another_copy_takes_the_state_over() {
    each(|m, x, layer| {
        let state = nn::state_dict(m);
        let mut other = made(layer, &mut Generator::new(999))?;
        nn::load_state_dict(&mut *other, &state)?;
        let (a, b) = (m.forward(x, Mode::Eval)?, other.forward(x, Mode::Eval)?);
        assert_eq!(a.to_vec::<f32>()?, b.to_vec::<f32>()?);
        Ok(())
    });
}
