//! Lesson 1, the tensor: making one, looking at it through views, broadcasting, printing, and
//! exchanging it with `ndarray`.
//!
//! `cargo run --release --example 01_tensor`

use cotangent::random::Generator;
use cotangent::{DType, Result, Tensor};

fn main() -> Result<()> {
    println!("-- A tensor is numbers and a shape.");
    let x = Tensor::arange(0.0, 6.0, 1.0, DType::F32)?.reshape([2, 3])?;
    println!("x = {x}");
    println!(
        "shape {}, {} axes, {} elements of {} on {}",
        x.shape(),
        x.rank(),
        x.numel(),
        x.dtype(),
        x.device()
    );
    println!("x[1][2] = {}", x.select(0, 1)?.select(0, 2)?.item()?);

    println!("\n-- Random numbers come from a generator: the same seed, the same numbers.");
    let noise = |seed| Tensor::randn([4], &mut Generator::new(seed), DType::F32);
    println!("seed 1: {}", noise(1)?);
    println!("seed 1: {}", noise(1)?);
    println!("seed 2: {}", noise(2)?);

    println!("\n-- A view is another look at the same memory; only the strides differ.");
    let xt = x.t()?;
    println!("x transposed = {xt}");
    println!(
        "strides {:?} and {:?}; the same memory: {}",
        x.layout().strides(),
        xt.layout().strides(),
        x.shares_storage(&xt)
    );
    println!("its last row: {}", xt.narrow(0, 2, 1)?);

    println!("\n-- Writing never changes somebody else's tensor: shared memory is copied first.");
    let mut mine = x.clone();
    mine.make_mut::<f32>()?[0] = 100.0;
    println!("mine = {mine}\nx    = {x}");

    println!("\n-- Broadcasting: axes of size 1 stretch, counted from the last axis.");
    let column = Tensor::from_vec(vec![10f32, 20.0], [2, 1])?;
    let row = Tensor::from_vec(vec![1f32, 2.0, 3.0], [3])?;
    println!("(2, 1) + (3) = {}", column.add(&row)?);
    let centred = x.sub(&x.mean(&[0], true)?)?;
    println!("x less each column's mean = {centred}");

    println!("\n-- What does not fit is an error that says why, never a panic.");
    if let Err(e) = x.add(&column.t()?) {
        println!("error: {e}");
    }

    println!("\n-- To ndarray and back: a look without a copy, and a gift without one.");
    let look = x.as_ndarray::<f32>()?;
    println!(
        "as ndarray:\n{look}\nsum of its squares {}",
        (&look * &look).sum()
    );
    let array = ndarray::array![[1f64, 2.0], [3.0, 4.0]].into_dyn();
    println!("from ndarray: {}", Tensor::from_ndarray(array)?);
    Ok(())
}
