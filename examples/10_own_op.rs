//! Lesson 10, an op of one's own: Swish with a learned slope, y = x sigmoid(b x). Its two
//! gradients are worked out by hand, checked, and put to use in a module that the Solver trains.
//!
//! `cargo run --release --example 10_own_op`

use cotangent::autograd::{Op, apply};
use cotangent::data::{Augment, Normalize, synthetic_splits};
use cotangent::nn::{self, Flatten, Linear, Mode, Module, Sequential, Visitor};
use cotangent::ops::gradcheck;
use cotangent::random::Generator;
use cotangent::train::{Solver, SolverConfig, SolverData, UpdateRule};
use cotangent::{DType, Result, Tensor};

/// y = x s with s = sigmoid(b x). Then s' = s (1 - s), and
/// dx = (s + b x s') dy, db = x^2 s' dy. Inputs x, b (Ramachandran et al. 2017).
struct SwishOp;

impl Op<2> for SwishOp {
    const NAME: &'static str = "swish";
    type Saved = [Tensor; 2];

    fn forward(&self, [x, b]: [&Tensor; 2]) -> Result<(Tensor, [Tensor; 2])> {
        let y = x.mul(&x.mul(b)?.sigmoid()?)?;
        Ok((y, [x.clone(), b.clone()]))
    }

    fn backward(
        &self,
        [x, b]: [Tensor; 2],
        dy: Tensor,
        _: [bool; 2],
    ) -> Result<[Option<Tensor>; 2]> {
        let s = x.mul(&b)?.sigmoid()?;
        let slope = s.sub(&s.square()?)?;
        let dx = s.add(&b.mul(&x)?.mul(&slope)?)?.mul(&dy)?;
        // of x's shape: the engine sums it down to b's, which was broadcast
        let db = x.square()?.mul(&slope)?.mul(&dy)?;
        Ok([Some(dx), Some(db)])
    }
}

/// The op as a layer, its slope a parameter.
struct Swish {
    slope: Tensor,
}

impl Swish {
    fn new() -> Result<Self> {
        let slope = Tensor::ones((), DType::F32)?.requires_grad();
        Ok(Swish { slope })
    }
}

impl Module for Swish {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        apply(SwishOp, [x, &self.slope])
    }

    fn visit(&mut self, visitor: &mut Visitor<'_>) {
        visitor.parameter("slope", &mut self.slope);
    }

    fn describe(&self) -> String {
        "Swish()".into()
    }
}

fn main() -> Result<()> {
    let mut rng = Generator::new(0);
    println!("-- The gradients by hand against differences.");
    let x = Tensor::randn([3, 4], &mut rng, DType::F64)?;
    let report = gradcheck(
        |v| apply(SwishOp, [&v[0], &v[1]]),
        &[x, Tensor::scalar(1.5)?],
    )?;
    println!("{report}\npassed: {}", report.passed());

    println!("\n-- In a network, like any layer.");
    let mut net = Sequential::new()
        .push(Flatten)
        .push(Linear::new(3 * 32 * 32, 64, true, &mut rng)?)
        .push(Swish::new()?)
        .push(Linear::new(64, 10, true, &mut rng)?);
    println!("{}", net.describe());

    let splits = synthetic_splits(0).with_train_samples(2000)?;
    let data = SolverData {
        normalize: Normalize::mean_image(&splits.train)?,
        train: splits.train,
        val: splits.val,
        augment: Augment::none(),
    };
    let config = SolverConfig {
        update_rule: UpdateRule::Adam,
        num_epochs: 5,
        verbose: false,
        ..SolverConfig::default()
    };
    let mut solver = Solver::new(&mut net, data, config)?;
    solver.train()?;
    println!(
        "best validation accuracy {:.1} %",
        100.0 * solver.history().best_val_acc
    );
    for (name, t) in nn::named_parameters(&mut net) {
        if name.ends_with("slope") {
            println!("{name}: 1 at first, {:.4} now", t.item()?);
        }
    }
    Ok(())
}
