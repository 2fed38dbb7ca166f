//! Batches on CUDA: what the device makes of bytes is what the CPU makes, bit for bit; and indices
//! out of range.

use std::sync::{Mutex, MutexGuard};

use cotangent::data::{
    Augment, Dataset, Fill, InterpolationMode, Loader, Mix, Normalize, PaddingMode, Reconstruct,
    Transform,
};
use cotangent::{DType, Device, Error, Result, Tensor, cuda};

fn device() -> Device {
    match std::env::var_os("GPU_REQUIRED") {
        Some(_) => Device::cuda(0).expect("GPU_REQUIRED is set"),
        None => Device::cuda_emulated().expect("the feature emulator is on"),
    }
}

/// A test at a time: an index out of range is told to whoever reads next.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|e| e.into_inner())
}

fn loader(shape: [usize; 3], augment: Augment) -> Result<Loader> {
    let pixels: usize = shape.iter().product();
    let images = (0..23 * pixels).map(|i| (i * 31 % 251) as u8).collect();
    let labels = (0..23).map(|i| i % 3).collect();
    let data = Dataset::new("it", images, labels, shape, &["a", "b", "c"])?;
    let grey = |t: &Transform| matches!(t, Transform::Grayscale { .. });
    let normalize = match shape[0] {
        // three channels in the end
        1 if augment.transforms.iter().any(grey) => Normalize::PerChannel {
            mean: vec![0.4, 0.5, 0.6],
            std: vec![0.3, 0.2, 0.1],
        },
        1 if augment.transforms.is_empty() => Normalize::mean_image(&data)?,
        _ => Normalize::per_channel(&data)?,
    };
    Loader::new(data, &normalize, augment, 10, 7, true, false)
}

fn bits(x: &Tensor) -> Result<Vec<u32>> {
    Ok(x.to_vec::<f32>()?.iter().map(|x| x.to_bits()).collect())
}

#[test]
fn batches_are_those_of_the_cpu_bit_for_bit() -> Result<()> {
    let _turn = turn();
    for shape in [[1, 5, 7], [3, 32, 32], [2, 9, 4]] {
        for augment in [
            Augment::none(),
            Augment {
                flip: 0.5,
                crop_padding: 3,
                ..Augment::none()
            },
            Augment {
                flip: 0.5,
                alternating_flip: true,
                crop_padding: 3,
                padding_mode: PaddingMode::Reflect,
                ..Augment::none()
            },
        ] {
            let loader = loader(shape, augment)?;
            let mut batches = 0;
            let feeds = loader.epoch_on(device(), 2, 0);
            assert_eq!(feeds.len(), 3);
            for (feed, batch) in feeds.zip(loader.epoch(2)) {
                let (feed, batch) = (feed?, batch?);
                let expected: Vec<u32> = batch.images.iter().map(|x| x.to_bits()).collect();
                let (images, labels) = feed.clone().tensors()?;
                assert_eq!((images.device(), labels.device()), (device(), device()));
                assert_eq!(images.shape()[..], batch.shape);
                assert!(images.layout().is_channels_last());
                assert_eq!(bits(&images)?, expected);
                assert_eq!(labels.to_vec::<i64>()?, batch.labels);

                // over tensors that are there, in either order
                let mut row_major = Tensor::ones(batch.shape, (DType::F32, device()))?;
                let mut labels = Tensor::zeros([batch.shape[0]], (DType::I64, device()))?;
                feed.clone().write_to(&mut row_major, &mut labels)?;
                assert!(row_major.is_contiguous());
                assert_eq!(bits(&row_major)?, expected);
                assert_eq!(labels.to_vec::<i64>()?, batch.labels);
                let mut images = images;
                feed.write_to(&mut images, &mut labels)?;
                assert_eq!(bits(&images)?, expected);
                batches += 1;
            }
            assert_eq!(batches, 3);
        }
    }
    Ok(())
}

/// Transforms of images with 1 or 3 channels of at least 6x6, each kind of operation among them.
fn transforms() -> Vec<Vec<Transform>> {
    use Transform::*;
    let affine = |interpolation, fill| RandomAffine {
        degrees: [-180.0, 180.0],
        translate: [0.3, 0.3],
        scale: [0.3, 3.0],
        shear: [[-30.0, 30.0], [-30.0, 30.0]],
        interpolation,
        fill,
    };
    let resize = |size, interpolation, antialias| Resize {
        size,
        interpolation,
        antialias,
    };
    vec![
        vec![
            Transform::random_crop([6, 6], 3),
            RandomVerticalFlip { p: 0.5 },
            RandomHorizontalFlip { p: 0.5 },
        ],
        vec![affine(InterpolationMode::Nearest, Fill::Mean)],
        vec![affine(InterpolationMode::Bilinear, Fill::Value(vec![0.25]))],
        vec![Transform::random_resized_crop([6, 13])],
        vec![resize([19, 4], InterpolationMode::Nearest, false)],
        vec![resize([4, 19], InterpolationMode::Bilinear, false)],
        vec![Transform::color_jitter(0.9, 0.9, 0.9, 0.5)],
        vec![Grayscale { channels: 1 }, Grayscale { channels: 3 }],
        vec![RandomApply {
            transforms: vec![
                Transform::gaussian_blur(7),
                Transform::random_rotation(20.0),
                RandomGrayscale { p: 0.5 },
            ],
            p: 0.7,
        }],
        vec![
            RandomErasing {
                p: 0.9,
                scale: [0.1, 0.5],
                ratio: [0.5, 2.0],
                value: Fill::Noise,
            },
            Transform::cutout(2, 5),
        ],
        vec![
            RandomChoice {
                transforms: vec![Transform::gaussian_blur(3), Compose(vec![])],
                weights: None,
            },
            Grayscale { channels: 3 },
            Normalize {
                mean: vec![0.5, 0.25, 0.3],
                std: vec![0.3, 0.7, 1.1],
            },
        ],
    ]
}

#[test]
fn transforms_and_mixing_are_those_of_the_cpu_bit_for_bit() -> Result<()> {
    let _turn = turn();
    let mixes = [
        vec![],
        vec![Mix::Mixup { alpha: 0.7 }],
        vec![Mix::CutMix { alpha: 1.0 }],
    ];
    for (i, transforms) in transforms().into_iter().enumerate() {
        for shape in [[1, 6, 9], [3, 17, 16]] {
            let augment = Augment {
                transforms: transforms.clone(),
                flip: 0.5,
                crop_padding: 2,
                padding_mode: match (i + shape[0] / 2) % 2 {
                    0 => PaddingMode::Constant,
                    _ => PaddingMode::Reflect,
                },
                mix: mixes[i % 3].clone(),
                ..Augment::none()
            };
            // whatever the order of the emulated device's threads
            for order in [0, 7] {
                cuda::set_thread_order(order);
                same_as_cpu(shape, augment.clone(), i as u64)?;
            }
            cuda::set_thread_order(0);
        }
    }
    // mixed with nothing before
    for mix in mixes {
        let augment = Augment {
            mix,
            ..Augment::none()
        };
        same_as_cpu([3, 5, 6], augment, 0)?;
    }
    Ok(())
}

#[test]
fn images_to_reconstruct_are_those_of_the_cpu_bit_for_bit() -> Result<()> {
    let _turn = turn();
    for (holes, doubled) in [(0, false), (2, false), (2, true)] {
        let augment = Augment {
            transforms: vec![
                Transform::RandomVerticalFlip { p: 0.5 },
                Transform::gaussian_blur(3),
            ],
            flip: 0.5,
            crop_padding: 2,
            reconstruct: Some(Reconstruct {
                holes,
                hole_size: 4,
                doubled,
            }),
            ..Augment::none()
        };
        same_as_cpu([3, 9, 8], augment, 1)?;
    }
    Ok(())
}

fn same_as_cpu(shape: [usize; 3], augment: Augment, epoch: u64) -> Result<()> {
    let mixed = !augment.mix.is_empty();
    let pairs = augment.reconstruct.is_some();
    let what = format!("{shape:?} {augment:?}");
    let loader = loader(shape, augment)?;
    let feeds = loader.epoch_on(device(), epoch, 0);
    for (feed, batch) in feeds.zip(loader.epoch(epoch)) {
        let (feed, batch) = (feed?, batch?);
        assert_eq!(feed.shape(), batch.shape);
        let expected: Vec<u32> = batch.images.iter().map(|x| x.to_bits()).collect();
        let (mut images, mut labels) = feed.clone().tensors()?;
        let check = |images: &Tensor, labels: &Tensor| -> Result<()> {
            assert_eq!(bits(images)?, expected, "{what}");
            match &batch.targets {
                None => assert_eq!(labels.to_vec::<i64>()?, batch.labels),
                Some(targets) => {
                    match pairs {
                        true => assert_eq!(labels.shape()[..], batch.shape),
                        false => assert_eq!(labels.shape()[..], [batch.shape[0], 3]),
                    }
                    assert_eq!(&labels.to_vec::<f32>()?, targets);
                }
            }
            Ok(())
        };
        assert_eq!(batch.targets.is_some(), mixed || pairs);
        check(&images, &labels)?;
        let mut row_major = Tensor::ones(batch.shape, (DType::F32, device()))?;
        feed.clone().write_to(&mut row_major, &mut labels)?;
        assert!(row_major.is_contiguous());
        check(&row_major, &labels)?;
        feed.write_to(&mut images, &mut labels)?;
        check(&images, &labels)?;
    }
    Ok(())
}

#[test]
fn a_feed_for_the_cpu_is_the_batch() -> Result<()> {
    let loader = loader([1, 5, 7], Augment::standard())?;
    for (feed, batch) in loader
        .epoch_on(Device::Cpu, 0, 1)
        .zip(loader.epoch_from(0, 1))
    {
        let (feed, batch) = (feed?, batch?);
        let mut images = Tensor::zeros(batch.shape, DType::F32)?;
        let mut labels = Tensor::zeros([batch.shape[0]], DType::I64)?;
        feed.clone().write_to(&mut images, &mut labels)?;
        let (x, y) = feed.tensors()?;
        assert_eq!(x.to_vec::<f32>()?, batch.images);
        assert_eq!(y.to_vec::<i64>()?, batch.labels);
        assert_eq!(images.to_vec::<f32>()?, batch.images);
        assert_eq!(labels.to_vec::<i64>()?, batch.labels);
    }
    Ok(())
}

#[test]
fn tensors_that_do_not_take_a_batch_are_errors() -> Result<()> {
    let _turn = turn();
    let loader = loader([1, 5, 7], Augment::none())?;
    for device in [Device::Cpu, device()] {
        let feed = loader.epoch_on(device, 0, 0).next().unwrap()?;
        let good = || Tensor::zeros([10, 1, 5, 7], (DType::F32, device));
        let labels = || Tensor::zeros([10], (DType::I64, device));
        for (mut images, mut labels) in [
            (
                Tensor::zeros([9, 1, 5, 7], (DType::F32, device))?,
                labels()?,
            ),
            (
                Tensor::zeros([10, 1, 5, 7], (DType::F64, device))?,
                labels()?,
            ),
            (good()?, Tensor::zeros([9], (DType::I64, device))?),
            (good()?, Tensor::zeros([10], (DType::F32, device))?),
        ] {
            let e = feed.clone().write_to(&mut images, &mut labels);
            assert!(matches!(e, Err(Error::Shape { .. })), "{e:?}");
        }
    }
    Ok(())
}

#[test]
fn an_index_out_of_range_is_an_error_at_the_next_read() -> Result<()> {
    let _turn = turn();
    let x = Tensor::ones([3, 4], (DType::F32, device()))?;
    let index = |v: &[i64]| Tensor::from_slice(v, [1, v.len()])?.to(device());
    let y = x.index_select(1, &index(&[0, 4, 1])?.reshape([3])?)?;
    let e = y.to_vec::<f32>().unwrap_err().to_string();
    assert!(e.starts_with("index_select: ") && e.contains('4'), "{e}");
    let y = x.gather(0, &index(&[2, -1, 0])?)?;
    let e = y.to_vec::<f32>().unwrap_err().to_string();
    assert!(e.starts_with("gather: ") && e.contains("-1"), "{e}");
    // told once, and nothing else came of it
    assert_eq!(y.to_vec::<f32>()?, [1.0, 0.0, 1.0]);
    Ok(())
}
