//! Lesson 2, autograd: the engine records what is computed and walks back through it. Here each
//! of its gradients stands beside the one worked out by hand.
//!
//! `cargo run --release --example 02_autograd`

use cotangent::autograd::no_grad;
use cotangent::random::Generator;
use cotangent::{DType, Error, Result, Tensor};

fn main() -> Result<()> {
    println!("-- f(x, y) = x y + sin x at x = 2, y = 3.");
    let x = Tensor::scalar(2f64)?.requires_grad();
    let y = Tensor::scalar(3f64)?.requires_grad();
    let f = x.mul(&y)?.add(&x.sin()?)?;
    println!("f = {f}");
    let grads = f.backward()?;
    let of = |leaf: &Tensor| grads.get(leaf).ok_or(Error::NoGraph)?.item();
    println!(
        "df/dx: engine {:.6}, by hand y + cos x = {:.6}",
        of(&x)?,
        3.0 + 2f64.cos()
    );
    println!(
        "df/dy: engine {:.6}, by hand x         = {:.6}",
        of(&y)?,
        2.0
    );

    println!("\n-- Backward frees what it passes; a second walk is refused.");
    if let Err(e) = f.backward() {
        println!("error: {e}");
    }

    println!("\n-- Least squares: L = mean((X w - t)^2), by hand dw = 2/n X^T (X w - t).");
    let mut rng = Generator::new(0);
    let data = Tensor::randn([8, 3], &mut rng, DType::F64)?;
    let target = Tensor::randn([8, 1], &mut rng, DType::F64)?;
    let w = Tensor::randn([3, 1], &mut rng, DType::F64)?.requires_grad();
    let loss = data.matmul(&w)?.sub(&target)?.square()?.mean_all()?;
    let grads = loss.backward()?;
    let residual = data.matmul(&w.detach())?.sub(&target)?;
    let by_hand = data.t()?.matmul(&residual)?.mul_scalar(2.0 / 8.0)?;
    println!("engine  {}", grads.get(&w).ok_or(Error::NoGraph)?.t()?);
    println!("by hand {}", by_hand.t()?);

    println!("\n-- Broadcasting forward is summing backward: each bias is used by 8 rows.");
    let bias = Tensor::zeros([3], DType::F64)?.requires_grad();
    let grads = data.add(&bias)?.sum_all()?.backward()?;
    println!(
        "d sum / d bias = {}",
        grads.get(&bias).ok_or(Error::NoGraph)?
    );

    println!("\n-- A tensor that is used twice gets both gradients, added.");
    let x = Tensor::scalar(5f64)?.requires_grad();
    let grads = x.mul(&x)?.backward()?;
    println!("d(x x)/dx at 5 = {}", grads.get(&x).ok_or(Error::NoGraph)?);

    println!("\n-- A hook sees a gradient on its way, and may change it: here it clips at 1.");
    let x = Tensor::from_vec(vec![0.1f64, 10.0], [2])?.requires_grad();
    let squared = x.square()?;
    squared.register_hook(|g| {
        println!("the hook sees {g}");
        Ok(Some(g.clamp(-1.0, 1.0)?))
    });
    let grads = squared.mul_scalar(7.0)?.sum_all()?.backward()?;
    println!(
        "dx = {}, without the clip 14 x",
        grads.get(&x).ok_or(Error::NoGraph)?
    );

    println!("\n-- In no_grad nothing is recorded, so nothing is kept for backward.");
    let quiet = {
        let _guard = no_grad();
        x.exp()?
    };
    println!(
        "recorded: {} outside, {} inside",
        x.exp()?.is_tracked(),
        quiet.is_tracked()
    );
    Ok(())
}
