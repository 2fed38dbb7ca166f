//! Augmentation on the CPU: each transform against PyTorch's values and by its properties, mixing,
//! and settings that make no sense. Parity of the devices is in `tests/cuda_data.rs`.

use std::slice::from_ref;

use cotangent::data::{Augment, Dataset, Fill, InterpolationMode, Loader, Mix, Transform};
use cotangent::nn::{Mode, Module, Visitor};
use cotangent::train::check_accuracy;
use cotangent::train::{Solver, SolverConfig, SolverData};
use cotangent::{DType, Error, Result, Tensor};
use serde_json::Value;

use Transform::*;

/// Images of bytes that differ from place to place; image i has label i % 3.
fn data(shape: [usize; 3], n: usize) -> Dataset {
    let pixels: usize = shape.iter().product();
    let byte = |i: usize| ((i * 37 + i * i / 5) % 256) as u8;
    let images = (0..n * pixels).map(byte).collect();
    let labels = (0..n).map(|i| (i % 3) as u8).collect();
    Dataset::new("it", images, labels, shape, &["a", "b", "c"]).unwrap()
}

/// A normalization that leaves numbers of 0 to 1 as they are.
fn plain(channels: usize) -> cotangent::data::Normalize {
    cotangent::data::Normalize::PerChannel {
        mean: vec![0.0; channels],
        std: vec![1.0; channels],
    }
}

fn of(transforms: &[Transform]) -> Augment {
    Augment {
        transforms: transforms.to_vec(),
        ..Augment::none()
    }
}

/// All images of `data` in an epoch, one after another, and one's shape.
fn run(data: &Dataset, transforms: &[Transform], epoch: u64) -> (Vec<f32>, [usize; 3]) {
    let channels = match transforms {
        [Grayscale { channels }] => *channels,
        _ => data.shape()[0],
    };
    let (normalize, n) = (plain(channels), data.len());
    let loader = Loader::new(data.clone(), &normalize, of(transforms), n, 7, false, false);
    let batch = loader.unwrap().epoch(epoch).next().unwrap().unwrap();
    assert!(batch.targets.is_none());
    let [_, c, h, w] = batch.shape;
    (batch.images, [c, h, w])
}

/// Each pixel on a scale of 1.
fn pixels(data: &Dataset) -> Vec<f32> {
    run(data, &[], 0).0
}

/// Every transform with settings that change most images.
fn all() -> Vec<Transform> {
    vec![
        Transform::random_crop([9, 8], 2),
        Transform::random_resized_crop([7, 11]),
        RandomHorizontalFlip { p: 0.5 },
        RandomVerticalFlip { p: 0.5 },
        Transform::random_rotation(40.0),
        RandomAffine {
            degrees: [-20.0, 50.0],
            translate: [0.2, 0.3],
            scale: [0.5, 2.0],
            shear: [[-10.0, 10.0], [0.0, 20.0]],
            interpolation: InterpolationMode::Bilinear,
            fill: Fill::Mean,
        },
        Transform::color_jitter(0.5, 0.9, 0.8, 0.4),
        RandomGrayscale { p: 0.5 },
        Transform::gaussian_blur(5),
        Transform::random_erasing(0.8),
        Cutout {
            holes: 2,
            length: 5,
            value: Fill::Noise,
        },
        RandomApply {
            transforms: vec![RandomHorizontalFlip { p: 1.0 }],
            p: 0.5,
        },
        RandomChoice {
            transforms: vec![RandomVerticalFlip { p: 1.0 }, Transform::gaussian_blur(3)],
            weights: Some(vec![1.0, 2.0]),
        },
    ]
}

#[test]
fn transforms_agree_with_pytorch() {
    let text = std::fs::read_to_string("tests/golden/augment.json").unwrap();
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(rows.len() > 40);
    for row in rows {
        let get = |key: &str| serde_json::from_value(row[key].clone());
        let transform: Transform = get("transform").unwrap();
        let numbers = |key: &str| row[key].as_array().unwrap().iter();
        let size = |key| numbers(key).map(|n| n.as_u64().unwrap() as usize).collect();
        let (shape, out): (Vec<usize>, Vec<usize>) = (size("shape"), size("out"));
        let data = data(shape.try_into().unwrap(), 1);
        let (found, found_shape) = run(&data, from_ref(&transform), 0);
        assert_eq!(found_shape[..], out, "{transform:?}");
        let expected = numbers("values").map(|x| x.as_f64().unwrap());
        for (i, (x, y)) in found.iter().zip(expected).enumerate() {
            let far = (*x as f64 - y).abs();
            assert!(far < 5e-6, "{transform:?} at {i}: {x}, expected {y}");
        }
    }
}

#[test]
fn neutral_settings_change_nothing_to_the_bit() {
    let data = data([3, 10, 12], 9);
    let (never, inside) = (vec![Transform::cutout(1, 4)], [10, 12]);
    let still = |interpolation| RandomAffine {
        degrees: [360.0, 360.0],
        translate: [0.0; 2],
        scale: [1.0; 2],
        shear: [[0.0; 2]; 2],
        interpolation,
        fill: Fill::Value(vec![0.5]),
    };
    for transform in [
        Compose(vec![]),
        RandomApply {
            transforms: never.clone(),
            p: 0.0,
        },
        RandomChoice {
            transforms: vec![never[0].clone(), Compose(vec![])],
            weights: Some(vec![0.0, 3.0]),
        },
        Transform::random_crop(inside, 0),
        CenterCrop { size: inside },
        Transform::resize(inside),
        RandomResizedCrop {
            size: inside,
            scale: [1.0; 2],
            ratio: [1.2; 2],
            interpolation: InterpolationMode::Bilinear,
            antialias: true,
        },
        RandomHorizontalFlip { p: 0.0 },
        RandomVerticalFlip { p: 0.0 },
        Compose(vec![RandomHorizontalFlip { p: 1.0 }; 2]),
        Compose(vec![RandomVerticalFlip { p: 1.0 }; 2]),
        Transform::random_rotation(0.0),
        RandomRotation {
            degrees: [-720.0; 2],
            interpolation: InterpolationMode::Bilinear,
            fill: Fill::Mean,
        },
        Compose(vec![
            RandomRotation {
                degrees: [180.0; 2],
                interpolation: InterpolationMode::Bilinear,
                fill: Fill::Mean,
            };
            2
        ]),
        still(InterpolationMode::Nearest),
        still(InterpolationMode::Bilinear),
        Transform::color_jitter(0.0, 0.0, 0.0, 0.0),
        RandomGrayscale { p: 0.0 },
        Transform::gaussian_blur(1),
        Transform::random_erasing(0.0),
        Normalize {
            mean: vec![0.0; 3],
            std: vec![1.0; 3],
        },
    ] {
        let found = run(&data, from_ref(&transform), 3);
        assert_eq!(found, (pixels(&data), [3, 10, 12]), "{transform:?}");
    }
}

#[test]
fn seed_epoch_and_image_decide_and_numbers_stay_in_range() {
    let data = data([3, 10, 12], 24);
    let before: Vec<Vec<u8>> = (0..24).map(|i| data.image(i).to_vec()).collect();
    for transform in all() {
        let transforms = [transform.clone()];
        let (one, shape) = run(&data, &transforms, 0);
        assert_eq!(one, run(&data, &transforms, 0).0, "{transform:?}");
        assert_ne!(one, run(&data, &transforms, 1).0, "{transform:?}");
        let inside = one.iter().all(|x| (0.0..=1.0 + 1e-6).contains(x));
        assert!(inside, "{transform:?}");

        // in another order and other batches each image is the same
        let loader = Loader::new(data.clone(), &plain(3), of(&transforms), 5, 7, true, false);
        let pixels = shape.iter().product();
        let images = |all: &[f32]| -> Vec<Vec<u32>> {
            let images = all.chunks_exact(pixels);
            images
                .map(|i| i.iter().map(|x| x.to_bits()).collect())
                .collect()
        };
        let batches = loader.unwrap().epoch(0).map(Result::unwrap);
        let mut seen: Vec<_> = batches.flat_map(|b| images(&b.images)).collect();
        let mut expected = images(&one);
        seen.sort_unstable();
        expected.sort_unstable();
        assert_eq!(seen, expected, "{transform:?}");
    }
    assert!((0..24).all(|i| data.image(i) == before[i]));
}

#[test]
fn flips_and_crops_move_whole_pixels() {
    let data = data([2, 5, 7], 1);
    let x = pixels(&data);
    let at = |c: usize, y: usize, x: usize| (c * 5 + y) * 7 + x;
    let (mirrored, shape) = run(&data, &[RandomHorizontalFlip { p: 1.0 }], 0);
    assert_eq!(shape, [2, 5, 7]);
    let (turned, _) = run(&data, &[RandomVerticalFlip { p: 1.0 }], 0);
    let (middle, shape) = run(&data, &[CenterCrop { size: [2, 4] }], 0);
    assert_eq!(shape, [2, 2, 4]);
    for c in 0..2 {
        for i in 0..5 {
            for j in 0..7 {
                assert_eq!(mirrored[at(c, i, j)], x[at(c, i, 6 - j)]);
                assert_eq!(turned[at(c, i, j)], x[at(c, 4 - i, j)]);
            }
        }
        // 3 rows and 3 columns are left over: 1.5 rounds to 2
        for i in 0..2 {
            for j in 0..4 {
                assert_eq!(middle[(c * 2 + i) * 4 + j], x[at(c, i + 2, j + 2)]);
            }
        }
    }
}

/// Where an image of one white pixel at (y, x) of 9x9 has it afterwards.
fn white_pixel(transforms: &[Transform], y: usize, x: usize, n: usize) -> Vec<Vec<(usize, usize)>> {
    let mut image = [0; 81];
    image[y * 9 + x] = 255;
    let data = Dataset::new("it", image.repeat(n), vec![0; n], [1, 9, 9], &["a"]).unwrap();
    let (found, [_, h, w]) = run(&data, transforms, 0);
    let white = |image: &[f32]| {
        let places = (0..h * w).filter(|&i| image[i] == 1.0);
        places.map(|i| (i / w, i % w)).collect()
    };
    found.chunks_exact(h * w).map(white).collect()
}

#[test]
fn joined_moves_are_those_done_one_by_one() {
    // padding cannot be looked through by a later crop: what fell off stays away
    let there_and_back = [
        Transform::random_crop([9, 9], 3),
        RandomHorizontalFlip { p: 1.0 },
        CenterCrop { size: [7, 7] },
        RandomVerticalFlip { p: 1.0 },
        Transform::random_crop([9, 9], 1),
    ];
    let n = 200;
    let mut gone = 0;
    for places in white_pixel(&there_and_back, 1, 4, n) {
        assert!(places.len() <= 1);
        gone += usize::from(places.is_empty());
        // at the border lies nothing but padding
        assert!(
            places
                .iter()
                .all(|&(y, x)| (1..8).contains(&y) && (1..8).contains(&x))
        );
    }
    assert!((20..n - 20).contains(&gone), "{gone}");
}

#[test]
fn random_crops_and_moves_reach_every_place_alike() {
    let n = 2_000;
    let mut rows = [0; 5];
    for places in white_pixel(&[Transform::random_crop([9, 9], 2)], 4, 4, n) {
        rows[places[0].0 - 2] += 1;
    }
    assert!(rows.iter().all(|r| (330..470).contains(r)), "{rows:?}");

    let moved = RandomAffine {
        degrees: [0.0; 2],
        translate: [0.25, 0.0],
        scale: [1.0; 2],
        shear: [[0.0; 2]; 2],
        interpolation: InterpolationMode::Bilinear,
        fill: 0.0.into(),
    };
    let mut columns = [0; 5];
    for places in white_pixel(&[moved], 3, 4, n) {
        // bilinear, but by whole pixels: none is smeared
        assert_eq!((places.len(), places[0].0), (1, 3));
        columns[places[0].1 - 2] += 1;
    }
    // -2.25 to 2.25, rounded: the ends are half as likely
    assert!(
        columns[1..4].iter().all(|c| (370..520).contains(c)),
        "{columns:?}"
    );
    assert!(
        [0, 4].iter().all(|&i| (250..420).contains(&columns[i])),
        "{columns:?}"
    );
    // a quarter counter-clockwise: from the right of the middle to above it
    assert_eq!(white_pixel(&[rotation([90.0; 2])], 4, 7, 1), [[(1, 4)]]);
}

fn rotation(degrees: [f32; 2]) -> Transform {
    RandomRotation {
        degrees,
        interpolation: InterpolationMode::Nearest,
        fill: 0.0.into(),
    }
}

/// The share of images of a white data set that `count` finds.
fn share(transform: Transform, n: usize, count: impl Fn(&[f32]) -> f64) -> f64 {
    let white = vec![255; n * 3 * 100];
    let data = Dataset::new("it", white, vec![0; n], [3, 10, 10], &["a"]).unwrap();
    let (found, shape) = run(&data, &[transform], 0);
    let images = found.chunks_exact(shape.iter().product());
    images.map(count).sum::<f64>() / n as f64
}

#[test]
fn probabilities_weights_and_areas_are_as_set() {
    let n = 2_000;
    let dark = |image: &[f32]| image.iter().filter(|&&x| x == 0.0).count() as f64 / 300.0;
    let any_dark = |image: &[f32]| f64::from(dark(image) > 0.0);
    let near = |found: f64, expected: f64, far: f64| {
        assert!(
            (found - expected).abs() < far,
            "{found}, expected {expected}"
        );
    };
    near(
        share(Transform::random_erasing(0.3), n, any_dark),
        0.3,
        0.04,
    );
    // 20 to 40 % of the area, upright or lying
    let third = RandomErasing {
        p: 1.0,
        scale: [0.2, 0.4],
        ratio: [0.5, 2.0],
        value: 0.0.into(),
    };
    near(share(third, n, dark), 0.3, 0.01);
    // a hole of 4x4 sticks out where its middle is near an edge: 34 of 40 columns are left
    let hole = Cutout {
        holes: 1,
        length: 4,
        value: 0.0.into(),
    };
    near(share(hole, n, dark), 0.34 * 0.34 * 100.0 / 90.25, 0.02);
    let apply = RandomApply {
        transforms: vec![Transform::color_jitter(0.5, 0.0, 0.0, 0.0)],
        p: 0.8,
    };
    near(
        share(apply, n, |image| f64::from(image[0] < 1.0)),
        0.4,
        0.04,
    );
    let black = |value: f32| Normalize {
        mean: vec![value; 3],
        std: vec![1.0; 3],
    };
    let choice = RandomChoice {
        transforms: vec![black(0.0), black(1.0), black(0.0)],
        weights: Some(vec![1.0, 2.0, 5.0]),
    };
    near(share(choice, n, any_dark), 0.25, 0.03);
    let choice = RandomChoice {
        transforms: vec![black(1.0), black(0.0)],
        weights: None,
    };
    near(share(choice, n, any_dark), 0.5, 0.04);
    let noise = RandomErasing {
        p: 1.0,
        scale: [1.0 / 4.0; 2],
        ratio: [1.0; 2],
        value: Fill::Noise,
    };
    let noisy = |image: &[f32]| {
        let noise: Vec<f32> = image.iter().copied().filter(|&x| x < 1.0).collect();
        assert!(noise.iter().all(|x| *x >= 0.0));
        noise.iter().map(|&x| x as f64).sum::<f64>() / noise.len() as f64
    };
    near(share(noise, 200, noisy), 0.5, 0.01);
}

#[test]
fn a_random_part_has_area_and_ratio_as_set_and_all_of_the_image_at_most() {
    // along x the image is a ramp: the ends of the crop tell where it was
    let (n, w) = (500, 64);
    let image: Vec<u8> = (0..32 * w).map(|i| (i % w * 4) as u8).collect();
    let data = Dataset::new("it", image.repeat(n), vec![0; n], [1, 32, w], &["a"]).unwrap();
    let part = |scale, ratio| RandomResizedCrop {
        size: [1, 1],
        scale,
        ratio,
        interpolation: InterpolationMode::Bilinear,
        antialias: true,
    };
    // a single pixel is a mean about the crop's middle
    let (middles, _) = run(&data, &[part([0.25; 2], [1.0; 2])], 0);
    let places: Vec<f32> = middles.iter().map(|m| m * 255.0 / 4.0 + 0.5).collect();
    let (low, high) = places
        .iter()
        .fold((64f32, 0f32), |(l, h), &p| (l.min(p), h.max(p)));
    // 512 pixels as a square are 23x23: the middle is 11.5 from either end at least
    assert!(
        (low - 11.5).abs() < 0.1 && (high - 52.5).abs() < 0.1,
        "{low} to {high}"
    );
    // none of ratio 4 and all of the area fits: the whole width and a middle part of the height
    let (found, _) = run(&data, &[part([1.0; 2], [4.0; 2])], 0);
    assert!(found.iter().all(|&m| (m * 255.0 / 4.0 - 31.5).abs() < 0.01));
}

#[test]
fn one_grey_channel_has_no_hue() {
    let data = data([1, 6, 6], 4);
    let jitter = ColorJitter {
        brightness: [1.0; 2],
        contrast: [1.0; 2],
        saturation: [0.0, 3.0],
        hue: [-0.5, 0.5],
    };
    assert_eq!(run(&data, &[jitter], 0).0, pixels(&data));
    let (found, shape) = run(&data, &[Grayscale { channels: 3 }], 0);
    assert_eq!(shape, [3, 6, 6]);
    for (three, one) in found.chunks_exact(108).zip(pixels(&data).chunks_exact(36)) {
        assert!(three.chunks_exact(36).all(|plane| plane == one));
    }
}

#[test]
fn the_mean_colour_is_nothing_after_normalization() {
    let data = data([3, 6, 6], 8);
    let normalize = cotangent::data::Normalize::per_channel(&data).unwrap();
    let cutout = of(&[Transform::cutout(3, 6)]);
    let loader = Loader::new(data, &normalize, cutout, 8, 1, false, false).unwrap();
    let batch = loader.epoch(0).next().unwrap().unwrap();
    assert!(batch.images.iter().filter(|&&x| x == 0.0).count() > 100);
}

#[test]
fn mixing_is_of_images_and_labels_alike() -> Result<()> {
    let (data, n, shape) = (data([2, 6, 8], 12), 12, [2, 6, 8]);
    let pixels: usize = shape.iter().product();
    let normalize = plain(2);
    let loader = |mix: Vec<Mix>| {
        let augment = Augment {
            mix,
            ..Augment::standard()
        };
        let augment = Augment {
            crop_padding: 2,
            ..augment
        };
        Loader::new(data.clone(), &normalize, augment, n, 7, true, false)
    };
    let before = loader(vec![])?;
    let mut lambdas = Vec::new();
    for mix in [Mix::Mixup { alpha: 1.0 }, Mix::CutMix { alpha: 1.0 }] {
        let mixed = loader(vec![mix])?;
        assert_eq!(
            mixed.epoch(3).next().unwrap()?,
            mixed.epoch(3).next().unwrap()?
        );
        for epoch in 0..20 {
            let own = before.epoch(epoch).next().unwrap()?;
            let batch = mixed.epoch(epoch).next().unwrap()?;
            assert_eq!(batch.labels, own.labels);
            let targets = batch.targets.clone().unwrap();
            // the share of images whose partner has another label tells lambda
            let rows = || targets.chunks_exact(3).zip(&own.labels);
            assert!(rows().all(|(row, _)| (row.iter().sum::<f32>() - 1.0).abs() < 1e-7));
            let shares = rows().map(|(row, &l)| row[l as usize]);
            let Some(lambda) = shares.filter(|&s| s != 1.0).reduce(f32::min) else {
                continue;
            };
            lambdas.push(lambda as f64);
            for (i, image) in batch.images.chunks_exact(pixels).enumerate() {
                let x = &own.images[i * pixels..][..pixels];
                let row = &targets[i * 3..][..3];
                let fits = |p: usize| {
                    let y = &own.images[p * pixels..][..pixels];
                    let mut shares = [0f32; 3];
                    shares[own.labels[i] as usize] += lambda;
                    shares[own.labels[p] as usize] += 1.0 - lambda;
                    let label = row.iter().zip(shares).all(|(a, b)| (a - b).abs() < 1e-6);
                    let three = || image.iter().zip(x).zip(y);
                    label
                        && match mix {
                            Mix::Mixup { .. } => three().all(|((o, x), y)| {
                                (o - (lambda * x + (1.0 - lambda) * y)).abs() < 1e-6
                            }),
                            Mix::CutMix { .. } => three().all(|((o, x), y)| o == x || o == y),
                        }
                };
                assert!((0..n).any(fits), "{mix:?} epoch {epoch} image {i}");
                if let Mix::CutMix { .. } = mix {
                    // lambda is the share of pixels that stayed
                    let area = (1.0 - lambda) * 48.0;
                    assert!((area - area.round()).abs() < 1e-4, "{area}");
                }
            }
        }
    }
    let mean = lambdas.iter().sum::<f64>() / lambdas.len() as f64;
    assert!(lambdas.len() > 35 && (0.3..0.8).contains(&mean), "{mean}");
    // of several one is drawn
    let both = loader(vec![Mix::Mixup { alpha: 1.0 }, Mix::CutMix { alpha: 1.0 }])?;
    let mut kinds = [0, 0];
    for epoch in 0..20 {
        let mixed = both.epoch(epoch).next().unwrap()?.images;
        let own = before.epoch(epoch).next().unwrap()?.images;
        let kept = mixed.iter().all(|x| own.contains(x));
        kinds[usize::from(kept)] += 1;
    }
    assert!(kinds.iter().all(|&k| k >= 4), "{kinds:?}");
    Ok(())
}

#[test]
fn settings_without_sense_name_the_key_the_value_and_what_was_expected() {
    let data = data([3, 8, 6], 4);
    let error = |augment: Augment| {
        let e = Loader::new(data.clone(), &plain(3), augment, 4, 0, false, false).unwrap_err();
        assert!(matches!(e, Error::Config { .. }), "{e}");
        e.to_string()
    };
    let jitter = |key: &str, range: [f32; 2]| {
        let mut all = [[1.0; 2], [1.0; 2], [1.0; 2], [0.0; 2]];
        let keys = ["brightness", "contrast", "saturation", "hue"];
        all[keys.iter().position(|k| *k == key).unwrap()] = range;
        let [brightness, contrast, saturation, hue] = all;
        ColorJitter {
            brightness,
            contrast,
            saturation,
            hue,
        }
    };
    let affine = |translate, scale, shear| RandomAffine {
        degrees: [0.0; 2],
        translate,
        scale,
        shear,
        interpolation: InterpolationMode::Nearest,
        fill: 0.0.into(),
    };
    let flip = RandomHorizontalFlip { p: 0.5 };
    let crop = Transform::random_crop([4, 4], 0);
    for (transform, expected) in [
        (
            RandomHorizontalFlip { p: 1.5 },
            "RandomHorizontalFlip.p: 1.5; expected a probability, 0 to 1",
        ),
        (
            RandomVerticalFlip { p: f32::NAN },
            "RandomVerticalFlip.p: NaN; expected a probability, 0 to 1",
        ),
        (
            Transform::random_erasing(-1.0),
            "RandomErasing.p: -1; expected a probability, 0 to 1",
        ),
        (
            Transform::random_crop([13, 6], 2),
            "RandomCrop.size: 13x6; expected 1x1 to the padded image's 12x10",
        ),
        (
            Transform::random_crop([8, 6], 6),
            "RandomCrop.padding: 6; expected less than the image's 8x6",
        ),
        (
            CenterCrop { size: [0, 3] },
            "CenterCrop.size: 0x3; expected 1x1 to the image's 8x6",
        ),
        (
            Transform::resize([1 << 13, 1 << 13]),
            "Resize.size: 8192x8192 of 3 channels; expected 1 to 16777216 numbers an image",
        ),
        (
            Transform::random_resized_crop([0, 4]),
            "RandomResizedCrop.size: 0x4 of 3 channels; expected 1 to 16777216 numbers an image",
        ),
        (
            RandomRotation {
                degrees: [10.0, -10.0],
                interpolation: InterpolationMode::Nearest,
                fill: 0.0.into(),
            },
            "RandomRotation.degrees: 10 to -10; expected a range that does not fall, of finite numbers",
        ),
        (
            RandomRotation {
                degrees: [0.0; 2],
                interpolation: InterpolationMode::Nearest,
                fill: Fill::Noise,
            },
            "RandomRotation.fill: noise; expected a value or the mean",
        ),
        (
            affine([0.0, 1.5], [1.0; 2], [[0.0; 2]; 2]),
            "RandomAffine.translate: 0 to 1.5; expected a range that does not fall, of 0 to 1",
        ),
        (
            affine([0.0; 2], [0.0, 1.0], [[0.0; 2]; 2]),
            "RandomAffine.scale: 0 to 1; expected a range that does not fall, of numbers above 0",
        ),
        (
            affine([0.0; 2], [1.0; 2], [[0.0, 90.0], [0.0; 2]]),
            "RandomAffine.shear: 0 to 90; expected a range that does not fall, of -89 to 89",
        ),
        (
            jitter("brightness", [-0.5, 1.0]),
            "ColorJitter.brightness: -0.5 to 1; expected a range that does not fall, of at least 0",
        ),
        (
            jitter("contrast", [1.0, f32::INFINITY]),
            "ColorJitter.contrast: 1 to inf; expected a range that does not fall, of at least 0",
        ),
        (
            jitter("saturation", [2.0, 1.0]),
            "ColorJitter.saturation: 2 to 1; expected a range that does not fall, of at least 0",
        ),
        (
            jitter("hue", [0.0, 0.6]),
            "ColorJitter.hue: 0 to 0.6; expected a range that does not fall, of -0.5 to 0.5",
        ),
        (
            Grayscale { channels: 2 },
            "Grayscale.channels: 2; expected 1 or 3",
        ),
        (
            Transform::gaussian_blur(4),
            "GaussianBlur.kernel_size: 4; expected an odd number, half of it less than the image's 8x6",
        ),
        (
            Transform::gaussian_blur(13),
            "GaussianBlur.kernel_size: 13; expected an odd number, half of it less than the image's 8x6",
        ),
        (
            GaussianBlur {
                kernel_size: 3,
                sigma: [0.0, 1.0],
            },
            "GaussianBlur.sigma: 0 to 1; expected a range that does not fall, of numbers above 0",
        ),
        (
            RandomErasing {
                p: 0.5,
                scale: [0.1, 1.1],
                ratio: [1.0; 2],
                value: 0.0.into(),
            },
            "RandomErasing.scale: 0.1 to 1.1; expected a range that does not fall, of 0 to 1",
        ),
        (
            RandomErasing {
                p: 0.5,
                scale: [0.1; 2],
                ratio: [1.0; 2],
                value: Fill::Value(vec![0.0; 2]),
            },
            "RandomErasing.value: 2 numbers; expected 1 or the 3 of the channels",
        ),
        (
            Transform::cutout(0, 4),
            "Cutout.holes: 0; expected 1 to 1024",
        ),
        (
            Transform::cutout(1, 7),
            "Cutout.length: 7; expected 2 to the image's least side of 8x6",
        ),
        (
            Normalize {
                mean: vec![0.0],
                std: vec![1.0; 3],
            },
            "Normalize: 1 means and 3 deviations for 3 channels",
        ),
        (
            Normalize {
                mean: vec![0.0; 3],
                std: vec![1.0, 0.0, 1.0],
            },
            "Normalize: a mean is not finite or a deviation is not above 0",
        ),
        (
            RandomApply {
                transforms: vec![flip.clone()],
                p: 2.0,
            },
            "RandomApply.p: 2; expected a probability, 0 to 1",
        ),
        (
            RandomApply {
                transforms: vec![crop.clone()],
                p: 0.5,
            },
            "RandomApply.transforms: turn [3, 8, 6] into [3, 4, 4]; expected one shape",
        ),
        (
            RandomChoice {
                transforms: vec![],
                weights: None,
            },
            "RandomChoice.transforms: none; expected at least one",
        ),
        (
            RandomChoice {
                transforms: vec![flip.clone(), crop],
                weights: None,
            },
            "RandomChoice.transforms: lead to [3, 8, 6] and [3, 4, 4]; expected one shape",
        ),
        (
            RandomChoice {
                transforms: vec![flip.clone(), flip.clone()],
                weights: Some(vec![1.0]),
            },
            "RandomChoice.weights: [1.0]; expected 2 of at least 0, one of them above",
        ),
        (
            RandomChoice {
                transforms: vec![flip.clone(), flip],
                weights: Some(vec![0.0, 0.0]),
            },
            "RandomChoice.weights: [0.0, 0.0]; expected 2 of at least 0, one of them above",
        ),
    ] {
        let nested = Compose(vec![RandomGrayscale { p: 0.1 }, transform]);
        assert_eq!(error(of(&[nested])), format!("configuration: {expected}"));
    }
    for (mix, expected) in [
        (
            Mix::Mixup { alpha: 0.0 },
            "Mixup.alpha: 0; expected a number above 0",
        ),
        (
            Mix::CutMix {
                alpha: f32::INFINITY,
            },
            "CutMix.alpha: inf; expected a number above 0",
        ),
    ] {
        let augment = Augment {
            mix: vec![mix],
            ..Augment::none()
        };
        assert_eq!(error(augment), format!("configuration: {expected}"));
    }
    // two channels have no colours; a mean image is of one size
    let two = self::data([2, 8, 6], 4);
    let jitter = of(&[Transform::color_jitter(0.1, 0.0, 0.0, 0.0)]);
    let e = Loader::new(two.clone(), &plain(2), jitter, 4, 0, false, false).unwrap_err();
    let expected = "configuration: ColorJitter: images of 2 channels; expected 1 or 3";
    assert_eq!(e.to_string(), expected);
    let mean = cotangent::data::Normalize::mean_image(&two).unwrap();
    let crop = of(&[CenterCrop { size: [4, 4] }]);
    let e = Loader::new(two, &mean, crop, 4, 0, false, false).unwrap_err();
    assert_eq!(
        e.to_string(),
        "configuration: normalize: 96 means and 2 scales for images of [2, 4, 4]"
    );
}

/// A linear classifier of 3x4x4 that keeps the images it was judged by.
struct Net {
    w: Tensor,
    seen: Vec<Vec<f32>>,
}

impl Module for Net {
    fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        assert_eq!(x.shape()[1..], [3, 4, 4]);
        if mode == Mode::Eval {
            self.seen.push(x.to_vec()?);
        }
        x.flatten(1)?.linear(&self.w, None)
    }
    fn visit(&mut self, v: &mut Visitor<'_>) {
        v.parameter("w", &mut self.w);
    }
    fn describe(&self) -> String {
        "Net()".into()
    }
}

#[test]
fn evaluation_has_transforms_of_its_own_and_no_random_ones() -> Result<()> {
    let data = data([3, 6, 6], 10);
    let middle = CenterCrop { size: [4, 4] };
    let (expected, _) = run(&data, from_ref(&middle), 0);
    let w = Tensor::zeros([3, 48], DType::F32)?.requires_grad();
    let mut net = Net { w, seen: vec![] };
    let transforms = [middle.clone()];
    let found = check_accuracy(&mut net, &data, &plain(3), &transforms, 10)?;
    // equal scores are class 0
    assert_eq!((found, &net.seen[0]), (0.4, &expected));

    let solver_data = |transform| SolverData {
        train: data.clone(),
        val: data.clone(),
        normalize: plain(3),
        augment: of(&[transform]),
    };
    let config = SolverConfig {
        num_epochs: 2,
        batch_size: 10,
        num_train_samples: None,
        verbose: false,
        ..SolverConfig::default()
    };
    net.seen.clear();
    let train = solver_data(Transform::random_crop([4, 4], 1));
    let solver = Solver::new(&mut net, train.clone(), config.clone())?;
    solver.with_evaluation(vec![middle])?.train()?;
    assert_eq!(net.seen.len(), 4);
    assert!(net.seen.iter().all(|images| images == &expected));

    for (transform, why) in [
        (
            RandomHorizontalFlip { p: 0.5 },
            "evaluation: RandomHorizontalFlip { p: 0.5 }; expected transforms that draw nothing",
        ),
        (
            CenterCrop { size: [7, 4] },
            "CenterCrop.size: 7x4; expected 1x1 to the image's 6x6",
        ),
    ] {
        let solver = Solver::new(&mut net, train.clone(), config.clone())?;
        let Err(e) = solver.with_evaluation(vec![transform]) else {
            panic!("{why}");
        };
        assert_eq!(e.to_string(), format!("configuration: {why}"));
    }
    Ok(())
}
