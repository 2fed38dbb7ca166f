//! Lesson 7, convolution and max pooling: four nested loops first, then the fast op, which must
//! give the same numbers; and two filters by hand on a picture: grey, and edges.
//!
//! `cargo run --release --example 07_convolution [FOLDER]`

use std::path::PathBuf;
use std::time::Instant;

use cotangent::data::synthetic;
use cotangent::random::Generator;
use cotangent::shape::Window;
use cotangent::train::files::create_dir;
use cotangent::train::save_grid;
use cotangent::{DType, Result, Tensor};
use ndarray::{Array4, s};

/// Every filter at every place, by the definition: x (n, c, h, w), w (f, c, k, k), b (f).
fn conv_naive(x: &Tensor, w: &Tensor, b: &Tensor, window: Window) -> Result<Tensor> {
    let [pad, step, k] = [window.padding[0], window.stride[0], window.kernel[0]];
    let padded = x.pad(&[(2, pad, pad), (3, pad, pad)], 0.0)?;
    let (x, w, b) = (
        padded.as_ndarray::<f64>()?,
        w.as_ndarray::<f64>()?,
        b.to_vec::<f64>()?,
    );
    let (n, filters) = (x.shape()[0], w.shape()[0]);
    let [h, width] = [2, 3].map(|axis| (x.shape()[axis] - k) / step + 1);
    let out = Array4::from_shape_fn((n, filters, h, width), |(i, f, r, c)| {
        let (top, left) = (r * step, c * step);
        let patch = x.slice(s![i, .., top..top + k, left..left + k]);
        (&patch * &w.slice(s![f, .., .., ..])).sum() + b[f]
    });
    Tensor::from_ndarray(out.into_dyn())
}

/// The greatest of each k by k tile.
fn max_pool_naive(x: &Tensor, k: usize) -> Result<Tensor> {
    let x = x.as_ndarray::<f64>()?;
    let shape = (
        x.shape()[0],
        x.shape()[1],
        x.shape()[2] / k,
        x.shape()[3] / k,
    );
    let out = Array4::from_shape_fn(shape, |(i, c, row, column)| {
        let tile = x.slice(s![
            i,
            c,
            row * k..(row + 1) * k,
            column * k..(column + 1) * k
        ]);
        tile.fold(f64::NEG_INFINITY, |a, &b| a.max(b))
    });
    Tensor::from_ndarray(out.into_dyn())
}

fn compare(
    name: &str,
    slow: impl Fn() -> Result<Tensor>,
    fast: impl Fn() -> Result<Tensor>,
) -> Result<()> {
    let start = Instant::now();
    let a = slow()?;
    let middle = Instant::now();
    let b = fast()?;
    let (slow, fast) = (middle - start, middle.elapsed());
    let difference = a.sub(&b)?.abs()?.amax(&[], false)?.item()?;
    println!(
        "{name} {}: greatest difference {difference:.1e}; loops {slow:.1?}, op {fast:.1?}",
        b.shape()
    );
    Ok(())
}

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1);
    let folder = folder.map_or("runs/07_convolution".into(), PathBuf::from);
    let mut rng = Generator::new(0);
    let x = Tensor::randn([4, 3, 32, 32], &mut rng, DType::F64)?;
    let w = Tensor::randn([8, 3, 3, 3], &mut rng, DType::F64)?;
    let b = Tensor::randn([8], &mut rng, DType::F64)?;

    println!("-- The loops and the op agree.");
    println!("x {}, w {}, b {}", x.shape(), w.shape(), b.shape());
    for (stride, padding) in [(1, 1), (2, 1), (1, 0)] {
        let window = Window {
            stride: [stride; 2],
            padding: [padding; 2],
            ..Window::new([3, 3])
        };
        let name = format!("stride {stride}, padding {padding}: conv");
        compare(
            &name,
            || conv_naive(&x, &w, &b, window),
            || x.conv2d(&w, Some(&b), window, 1),
        )?;
    }
    let tiles = Window {
        stride: [2, 2],
        ..Window::new([2, 2])
    };
    compare(
        "2x2 max pool",
        || max_pool_naive(&x, 2),
        || x.max_pool2d(tiles),
    )?;
    println!("The size: (32 + 2 padding - kernel) / stride + 1, rounded down.");

    println!("\n-- Two filters by hand: one mixes the colours to grey, one sees horizontal edges.");
    // what lies above less what lies below
    let edges = [1.0, 2.0, 1.0, 0.0, 0.0, 0.0, -1.0, -2.0, -1.0];
    let mut filters = vec![0f32; 2 * 3 * 9];
    for (channel, share) in [0.3, 0.6, 0.1].into_iter().enumerate() {
        filters[9 * channel + 4] = share;
        for (w, edge) in filters[9 * (3 + channel)..].iter_mut().zip(edges) {
            *w = share * edge;
        }
    }
    let filters = Tensor::from_vec(filters, [2, 3, 3, 3])?;
    let images = synthetic(0, 0, 10);
    let pixels: Vec<f32> = (0..10)
        .flat_map(|i| images.image(i))
        .map(|&p| f32::from(p))
        .collect();
    let pictures = Tensor::from_slice(&pixels, [10, 3, 32, 32])?;
    let seen = pictures.conv2d(&filters, None, Window::new([3, 3]), 1)?;
    println!("(10, 3, 32, 32) pictures become {}", seen.shape());

    create_dir(&folder)?;
    save_grid(folder.join("pictures.png"), &pixels, (10, 3, 32, 32), 5, 4)?;
    let seen = seen.transpose(0, 1)?.to_vec::<f32>()?;
    save_grid(
        folder.join("grey_and_edges.png"),
        &seen,
        (20, 1, 30, 30),
        5,
        4,
    )?;
    println!(
        "wrote {}: pictures.png, grey_and_edges.png",
        folder.display()
    );
    Ok(())
}
