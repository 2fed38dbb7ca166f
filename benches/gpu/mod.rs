//! The rows of a CUDA device: its kernels through their ops, at sizes that fill a card.

use std::time::Instant;

use cotangent::autograd::no_grad;
use cotangent::nn::{Linear, Mode, Module};
use cotangent::ops::{BatchNorm, CrossEntropy};
use cotangent::optim::{AdamW, AdamWConfig, Optimizer};
use cotangent::random::Generator;
use cotangent::shape::Window;
use cotangent::{DType, Device, Result, Tensor, nn};

use crate::Work::{Bytes, Macs};
use crate::common::{is_emulated, seconds};
use crate::{CONVS, Report, Work, conv_name, same};

/// Backward calls in a row: each needs a graph of its own, made before the clock starts.
const GRAPHS: usize = 8;

struct Rows<'a> {
    report: &'a Report,
    device: Device,
    dtype: DType,
}

/// Every row, in f32 and in bf16.
pub fn rows(report: &Report) -> Result<()> {
    let device = report.args.device;
    for dtype in [DType::F32, DType::BF16] {
        let rows = Rows {
            report,
            device,
            dtype,
        };
        rows.moving()?;
        rows.over_rows()?;
        rows.images()?;
        rows.products()?;
        rows.convolutions()?;
    }
    optimizer(report)
}

impl Rows<'_> {
    /// `large` on a card; on the emulated device `small`.
    fn size(&self, large: usize, small: usize) -> usize {
        if is_emulated(self.device) {
            small
        } else {
            large
        }
    }

    /// Normal numbers: a thousand or so, repeated, as the host takes long to draw them.
    fn data(&self, shape: &[usize]) -> Result<Tensor> {
        let last = shape[shape.len() - 1];
        let x = Tensor::randn([last], &mut Generator::new(0), self.dtype)?;
        x.to(self.device)?.expand(shape)?.contiguous()
    }

    /// Images as the engine keeps them.
    fn image_data(&self, [n, c, h, w]: [usize; 4]) -> Result<Tensor> {
        self.data(&[n, h, w, c])?.permute(&[0, 3, 1, 2])
    }

    fn forward(&self, name: &str, work: Work, f: impl Fn() -> Result<Tensor>) -> Result<()> {
        if self.report.wanted(name) {
            let _quiet = no_grad();
            let took = seconds(self.device, || f().map(drop))?;
            self.report.row(name, self.dtype, work, took);
        }
        Ok(())
    }

    /// The gradients of those inputs that require them, alone.
    fn backward(&self, name: &str, work: Work, f: impl Fn() -> Result<Tensor>) -> Result<()> {
        if !self.report.wanted(name) {
            return Ok(());
        }
        let first = f()?;
        let dy = first.detach();
        first.backward_from(&dy)?;
        let graphs = (0..GRAPHS).map(|_| f()).collect::<Result<Vec<_>>>()?;
        self.device.synchronize()?;
        let start = Instant::now();
        for y in &graphs {
            y.backward_from(&dy)?;
        }
        self.device.synchronize()?;
        let took = start.elapsed().as_secs_f64() / GRAPHS as f64;
        self.report.row(name, self.dtype, work, took);
        Ok(())
    }

    /// Both, with the gradients of all inputs.
    fn op(
        &self,
        name: &str,
        work: [usize; 2],
        inputs: &[Tensor],
        f: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<()> {
        let leaves: Vec<Tensor> = inputs.iter().map(Tensor::requires_grad).collect();
        self.forward(&format!("{name} forward"), Bytes(work[0]), || f(inputs))?;
        self.backward(&format!("{name} backward"), Bytes(work[1]), || f(&leaves))
    }

    /// Elements that are moved or computed one by one.
    fn moving(&self) -> Result<()> {
        let shape = [self.size(1 << 16, 32), 1024];
        let (x, z) = (self.data(&shape)?, self.data(&shape)?);
        let bytes = x.numel() * self.dtype.size();
        let other = match self.dtype {
            DType::F32 => DType::BF16,
            _ => DType::F32,
        };
        self.forward("transposed copy", Bytes(2 * bytes), || x.t()?.contiguous())?;
        let converted = bytes + x.numel() * other.size();
        self.forward("convert", Bytes(converted), || x.to_dtype(other))?;
        self.forward("flip", Bytes(2 * bytes), || x.flip(1))?;
        self.forward("cat", Bytes(4 * bytes), || Tensor::cat(&[&x, &z], 1))?;
        self.forward("add", Bytes(3 * bytes), || x.add(&z))?;
        let row = self.data(&[1024])?;
        self.op("add a row", [2 * bytes, bytes], &[x.clone(), row], |x| {
            x[0].add(&x[1])
        })?;
        self.op("mul", [3 * bytes, 5 * bytes], &[x.clone(), z], |x| {
            x[0].mul(&x[1])
        })?;
        let x = [x];
        self.op("relu", [2 * bytes, 3 * bytes], &x, |x| x[0].relu())?;
        self.op("gelu", [2 * bytes, 3 * bytes], &x, |x| x[0].gelu())?;
        self.op("dropout", [2 * bytes, 2 * bytes], &x, |x| {
            x[0].dropout(0.5, &mut Generator::new(1))
        })
    }

    /// What reads whole rows.
    fn over_rows(&self) -> Result<()> {
        let n = self.size(1 << 16, 32);
        let x = self.data(&[n, 1024])?;
        let bytes = x.numel() * self.dtype.size();
        self.forward("sum of all", Bytes(bytes), || x.sum_all())?;
        self.forward("sum of rows", Bytes(bytes), || x.sum(&[1], false))?;
        self.forward("sum of columns", Bytes(bytes), || x.sum(&[0], false))?;
        self.forward("argmax of rows", Bytes(bytes), || x.argmax(1, false))?;
        let every = (0..n).map(|i| (i * 7919 % n) as i64).collect();
        let order = Tensor::from_vec(every, n)?.to(self.device)?;
        let labels = Tensor::zeros([n], (DType::I64, self.device))?;
        let (w, b) = (self.data(&[1024])?, self.data(&[1024])?);
        let inputs = [x.clone(), w, b];
        self.op("layer_norm", [2 * bytes, 3 * bytes], &inputs, |x| {
            x[0].layer_norm(&[1024], Some(&x[1]), Some(&x[2]), 1e-5)
        })?;
        let x = [x];
        self.op("softmax", [2 * bytes, 3 * bytes], &x, |x| x[0].softmax(1))?;
        self.op("cross_entropy", [bytes, 2 * bytes], &x, |x| {
            x[0].cross_entropy(&labels, &CrossEntropy::default())
        })?;
        self.op("index_select", [2 * bytes, 2 * bytes], &x, |x| {
            x[0].index_select(0, &order)
        })
    }

    fn images(&self) -> Result<()> {
        let x = self.image_data([self.size(512, 1), 64, 32, 32])?;
        let bytes = x.numel() * self.dtype.size();
        let (w, b) = (self.data(&[64])?, self.data(&[64])?);
        let settings = BatchNorm {
            training: true,
            momentum: 0.1,
            eps: 1e-5,
            relu: true,
        };
        // the statistics need a pass of their own, there and back
        let inputs = [x.clone(), w, b];
        self.op("batch_norm, relu", [3 * bytes, 5 * bytes], &inputs, |x| {
            x[0].batch_norm(Some(&x[1]), Some(&x[2]), None, &settings)
        })?;
        let window = Window {
            stride: [2; 2],
            ..Window::new([2; 2])
        };
        let (pooled, x) = (bytes + bytes / 4, [x]);
        self.op("max_pool2d", [pooled; 2], &x, |x| x[0].max_pool2d(window))?;
        self.op("avg_pool2d", [pooled; 2], &x, |x| {
            x[0].avg_pool2d(window, true)
        })
    }

    /// Forward, and the gradient of each operand alone.
    fn product(
        &self,
        name: &str,
        macs: usize,
        [a, b]: [&Tensor; 2],
        f: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        self.forward(&format!("{name} forward"), Macs(macs), || f(a, b))?;
        let (ta, tb) = (a.requires_grad(), b.requires_grad());
        self.backward(&format!("{name} input grad"), Macs(macs), || f(&ta, b))?;
        self.backward(&format!("{name} weight grad"), Macs(macs), || f(a, &tb))
    }

    fn products(&self) -> Result<()> {
        for n in [self.size(1024, 32), self.size(4096, 64)] {
            let x = self.data(&[n, n])?;
            let name = format!("matmul {n}");
            self.product(&name, n * n * n, [&x, &x], Tensor::matmul)?;
        }
        let batch = self.size(512, 2);
        let x = self.data(&[batch, 128, 128])?;
        let name = format!("matmul {batch}x128");
        self.product(&name, batch << 21, [&x, &x], Tensor::matmul)?;
        let n = self.size(8192, 32);
        let (x, w) = (self.data(&[n, 1024])?, self.data(&[256, 1024])?);
        let name = format!("linear {n}x1024 -> 256");
        self.product(&name, n << 18, [&x, &w], |x, w| x.linear(w, None))
    }

    fn convolutions(&self) -> Result<()> {
        for &config in CONVS {
            let [n, ci, co, size, kernel, stride, groups] = config;
            let n = self.size(8 * n, 1);
            let x = self.image_data([n, ci, size, size])?;
            let w = self.data(&[co, ci / groups, kernel, kernel])?;
            let macs = n * size.div_ceil(stride).pow(2) * w.numel();
            let name = conv_name([n, ci, co, size, kernel, stride, groups]);
            self.product(&name, macs, [&x, &w], |x, w| {
                x.conv2d(w, None, same(kernel, stride), groups)
            })?;
        }
        Ok(())
    }
}

/// A step of AdamW: parameter, gradient and two states are read, all but the gradient written.
fn optimizer(report: &Report) -> Result<()> {
    let name = "adamw step";
    if !report.wanted(name) {
        return Ok(());
    }
    let device = report.args.device;
    let n = if is_emulated(device) { 32 } else { 8192 };
    let mut model = Linear::new(n, n, false, &mut Generator::new(0))?;
    nn::to_device(&mut model, device)?;
    let x = Tensor::ones([1, n], (DType::F32, device))?;
    let grads = model.forward(&x, Mode::Train)?.sum_all()?.backward()?;
    let mut optimizer = AdamW::new(AdamWConfig::default())?;
    let took = seconds(device, || optimizer.step(&mut model, &grads))?;
    report.row(name, DType::F32, Bytes(7 * 4 * n * n), took);
    Ok(())
}
