//! Lesson 4, layers by hand: affine, ReLU, softmax loss and SVM loss, forward and backward, each
//! a few lines of tensor ops and each compared with the engine. Then a two-layer net on spirals,
//! trained by plain gradient descent, without any autograd.
//!
//! `cargo run --release --example 04_layers_by_hand`

use cotangent::ops::{CrossEntropy, accuracy};
use cotangent::random::Generator;
use cotangent::{DType, Error, Result, Tensor};

/// x (n, d), w (d, m), b (m) to (n, m).
fn affine_forward(x: &Tensor, w: &Tensor, b: &Tensor) -> Result<Tensor> {
    x.matmul(w)?.add(b)
}

/// (dx, dw, db).
fn affine_backward(dout: &Tensor, x: &Tensor, w: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
    Ok((
        dout.matmul(&w.t()?)?,
        x.t()?.matmul(dout)?,
        dout.sum(&[0], false)?,
    ))
}

/// The gradient passes where x was above 0.
fn relu_backward(dout: &Tensor, x: &Tensor) -> Result<Tensor> {
    let open = x.gt(&Tensor::zeros((), x.dtype())?)?;
    dout.mul(&open.to_dtype(x.dtype())?)
}

/// A row for each label: 1 at the label, 0 elsewhere.
fn one_hot(labels: &Tensor, classes: usize) -> Result<Tensor> {
    Tensor::eye(classes, DType::F64)?.index_select(0, labels)
}

/// The mean of -ln p[label], and its gradient (p - one_hot) / n.
fn softmax_loss(scores: &Tensor, labels: &Tensor) -> Result<(f64, Tensor)> {
    let (n, classes) = (scores.shape()[0] as f64, scores.shape()[1]);
    let hot = one_hot(labels, classes)?;
    let log_p = scores.sub(&scores.logsumexp(&[1], true)?)?;
    let loss = -log_p.mul(&hot)?.sum_all()?.item()? / n;
    Ok((loss, log_p.exp()?.sub(&hot)?.mul_scalar(1.0 / n)?))
}

/// The mean of sum_j max(0, s_j - s_label + 1) over j other than the label, and its gradient.
fn svm_loss(scores: &Tensor, labels: &Tensor) -> Result<(f64, Tensor)> {
    let (n, classes) = (scores.shape()[0] as f64, scores.shape()[1]);
    let hot = one_hot(labels, classes)?;
    let right = scores.mul(&hot)?.sum(&[1], true)?;
    // at the label itself the margin is s - s + 1 - 1 = 0
    let margins = scores.sub(&right)?.add_scalar(1.0)?.sub(&hot)?.relu()?;
    let violated = relu_backward(&margins.ones_like()?, &margins)?;
    let dscores = violated.sub(&hot.mul(&violated.sum(&[1], true)?)?)?;
    Ok((margins.sum_all()?.item()? / n, dscores.mul_scalar(1.0 / n)?))
}

/// One affine layer, ReLU and a loss: the three gradients by hand beside the engine's.
fn compare_with_engine(rng: &mut Generator) -> Result<()> {
    let leaf = |t: Tensor| t.requires_grad();
    let x = Tensor::randn([5, 4], rng, DType::F64).map(leaf)?;
    let w = Tensor::randn([4, 3], rng, DType::F64).map(leaf)?;
    let b = Tensor::randn([3], rng, DType::F64).map(leaf)?;
    let labels = Tensor::from_vec(vec![0i64, 2, 1, 1, 0], [5])?;
    for name in ["softmax", "svm"] {
        let hidden = affine_forward(&x, &w, &b)?;
        let scores = hidden.relu()?;
        let (engine, (loss, dscores)) = match name {
            "svm" => (scores.svm_loss(&labels)?, svm_loss(&scores, &labels)?),
            _ => (
                scores.cross_entropy(&labels, &CrossEntropy::default())?,
                softmax_loss(&scores, &labels)?,
            ),
        };
        println!(
            "{name} loss: by hand {loss:.12}, engine {:.12}",
            engine.item()?
        );
        let dhidden = relu_backward(&dscores, &hidden)?;
        let (dx, dw, db) = affine_backward(&dhidden, &x, &w)?;
        let grads = engine.backward()?;
        for (name, leaf, by_hand) in [("dx", &x, dx), ("dw", &w, dw), ("db", &b, db)] {
            let grad = grads.get(leaf).ok_or(Error::NoGraph)?;
            let difference = by_hand.sub(grad)?.abs()?.amax(&[], false)?.item()?;
            println!("  {name}: greatest difference {difference:.1e}");
        }
    }
    Ok(())
}

/// Three arms of a spiral, `n` points each: (3n, 2) and labels (3n).
fn spirals(n: usize, rng: &mut Generator) -> Result<(Tensor, Tensor)> {
    let (mut points, mut labels) = (Vec::new(), Vec::new());
    for arm in 0i64..3 {
        for i in 0..n {
            let radius = (i + 1) as f64 / n as f64;
            let angle = 4.0 * (radius + arm as f64) + 0.1 * rng.normal();
            points.extend([radius * angle.sin(), radius * angle.cos()]);
            labels.push(arm);
        }
    }
    Ok((
        Tensor::from_vec(points, [3 * n, 2])?,
        Tensor::from_vec(labels, [3 * n])?,
    ))
}

/// p - rate dp.
fn descend(p: &Tensor, dp: &Tensor, rate: f64) -> Result<Tensor> {
    p.sub(&dp.mul_scalar(rate)?)
}

fn main() -> Result<()> {
    let mut rng = Generator::new(0);
    println!("-- The layers by hand agree with the engine.");
    compare_with_engine(&mut rng)?;

    println!("\n-- Small random scores know nothing: 10 classes cost ln 10 and 9.");
    let scores = Tensor::randn([50, 10], &mut rng, DType::F64)?.mul_scalar(1e-3)?;
    let labels = Tensor::from_vec((0..50).map(|i| i % 10).collect::<Vec<i64>>(), [50])?;
    println!(
        "softmax {:.4} (ln 10 = {:.4}), svm {:.4}",
        softmax_loss(&scores, &labels)?.0,
        10f64.ln(),
        svm_loss(&scores, &labels)?.0
    );

    println!("\n-- A two-layer net on three spirals: forward, backward, descend, again.");
    let (x, labels) = spirals(100, &mut rng)?;
    let mut w1 = Tensor::randn([2, 64], &mut rng, DType::F64)?;
    let mut b1 = Tensor::zeros([64], DType::F64)?;
    let mut w2 = Tensor::randn([64, 3], &mut rng, DType::F64)?.mul_scalar(0.1)?;
    let mut b2 = Tensor::zeros([3], DType::F64)?;
    for step in 0..=1000 {
        let hidden = affine_forward(&x, &w1, &b1)?;
        let active = hidden.relu()?;
        let scores = affine_forward(&active, &w2, &b2)?;
        let (loss, dscores) = softmax_loss(&scores, &labels)?;
        if step % 200 == 0 {
            let right = 100.0 * accuracy(&scores, &labels)?;
            println!("step {step:4}: loss {loss:.4}, {right:.1} % right");
        }
        let (dactive, dw2, db2) = affine_backward(&dscores, &active, &w2)?;
        let (_, dw1, db1) = affine_backward(&relu_backward(&dactive, &hidden)?, &x, &w1)?;
        for (p, dp) in [
            (&mut w1, dw1),
            (&mut b1, db1),
            (&mut w2, dw2),
            (&mut b2, db2),
        ] {
            *p = descend(p, &dp, 0.5)?;
        }
    }
    Ok(())
}
