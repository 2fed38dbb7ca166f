//! Lesson 3, the gradient check: never trust a backward pass, compare it with
//! (f(x + h) - f(x - h)) / 2h. A right formula passes; one broken on purpose is caught.
//!
//! `cargo run --release --example 03_gradcheck`

use std::slice::from_ref;

use cotangent::autograd::{Op, apply};
use cotangent::ops::gradcheck;
use cotangent::random::Generator;
use cotangent::{DType, Result, Tensor};

/// y = x^2. Its gradient is 2 x dy; the factor is a field, so that it can be wrong.
struct Square {
    factor: f64,
}

impl Op<1> for Square {
    const NAME: &'static str = "square";
    type Saved = Tensor;

    fn forward(&self, [x]: [&Tensor; 1]) -> Result<(Tensor, Tensor)> {
        Ok((x.mul(x)?, x.clone()))
    }

    fn backward(&self, x: Tensor, dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(x.mul(&dy)?.mul_scalar(self.factor)?)])
    }
}

fn main() -> Result<()> {
    let mut rng = Generator::new(0);
    let x = Tensor::randn([3, 4], &mut rng, DType::F64)?;
    let w = Tensor::randn([4, 2], &mut rng, DType::F64)?;

    println!("-- By hand first: d tanh(x)/dx at 0.5, in f64, for smaller and smaller steps.");
    let exact = 1.0 - 0.5f64.tanh().powi(2);
    for h in [1e-1, 1e-3, 1e-5, 1e-7, 1e-9, 1e-11] {
        let numeric = ((0.5f64 + h).tanh() - (0.5f64 - h).tanh()) / (2.0 * h);
        println!(
            "h = {h:.0e}: {numeric:.12}, off by {:.1e}",
            (numeric - exact).abs()
        );
    }
    println!("Too large a step bends, too small a step rounds; near 1e-5 both are small.");

    println!("\n-- A formula of the engine's own ops: tanh(x w), every element of x and of w.");
    let report = gradcheck(|v| v[0].matmul(&v[1])?.tanh(), &[x.clone(), w])?;
    println!("{report}\npassed: {}", report.passed());

    println!("\n-- An op of our own, y = x^2 with dx = 2 x dy.");
    let report = gradcheck(|v| apply(Square { factor: 2.0 }, [&v[0]]), from_ref(&x))?;
    println!("{report}\npassed: {}", report.passed());

    println!("\n-- The same with the 2 forgotten. The report says where, and both numbers.");
    let report = gradcheck(|v| apply(Square { factor: 1.0 }, [&v[0]]), from_ref(&x))?;
    println!("{report}\npassed: {}", report.passed());

    println!("\n-- A kink: relu at exactly 0 has no derivative, so the check must fail there.");
    let kink = Tensor::from_vec(vec![-1f64, 0.0, 1.0], [3])?;
    let report = gradcheck(|v| v[0].relu(), &[kink])?;
    println!("{report}\npassed: {}", report.passed());
    Ok(())
}
