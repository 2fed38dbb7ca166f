//! Lesson 12, augmentation: what each transform makes of four images, eight draws of each beside
//! the original, and what mixing makes of a batch, as pictures in `runs/augmentation/`.
//!
//! `cargo run --release --example 12_augmentation`

use std::path::Path;

use cotangent::Result;
use cotangent::data::{
    Augment, Dataset, Fill, InterpolationMode, Loader, Mix, Normalize, Transform,
    load_cifar10_or_synthetic,
};
use cotangent::train::{files, save_grid};

/// Images in a picture's row, the original among them.
const COLUMNS: usize = 9;
/// Pixels between images.
const GAP: usize = 3;

/// An image's [C, H, W] and its numbers on a scale of 1.
type Image = ([usize; 3], Vec<f32>);

/// The images of `data` in an epoch as a model gets them, with normalization undone, and what
/// became of their labels.
fn epoch(data: &Dataset, augment: &Augment, epoch: u64) -> Result<(Vec<Image>, Option<Vec<f32>>)> {
    let (mean, std) = (vec![0.5; 3], vec![0.25; 3]);
    let normalize = Normalize::PerChannel { mean, std };
    let (n, augment) = (data.len(), augment.clone());
    let loader = Loader::new(data.clone(), &normalize, augment, n, 0, false, false)?;
    let (mut images, mut targets) = (Vec::new(), None);
    for batch in loader.epoch(epoch) {
        let batch = batch?;
        let [_, c, h, w] = batch.shape;
        for image in batch.images.chunks_exact(c * h * w) {
            let image = image.iter().map(|x| x * 0.25 + 0.5).collect();
            images.push(([c, h, w], image));
        }
        targets = batch.targets;
    }
    Ok((images, targets))
}

/// Rows of images as one picture: on their own, `save_grid` would stretch each to all of the range
/// and hide a change of brightness.
fn save(path: &Path, rows: &[Vec<Image>]) -> Result<()> {
    let images = || rows.iter().flatten();
    let size = |axis: usize| images().map(|(shape, _)| shape[axis]).max().unwrap_or(1);
    let (h, w) = (size(1) + GAP, size(2) + GAP);
    let (height, width) = (rows.len() * h + GAP, COLUMNS * w + GAP);
    let plane = height * width;
    let mut picture = vec![0.0; 3 * plane];
    // a white line beside the originals: the picture then has the whole range already
    for i in 0..3 * height {
        picture[i * width + w + GAP / 2] = 1.0;
    }
    for (i, row) in rows.iter().enumerate() {
        for (j, ([_, image_h, image_w], image)) in row.iter().enumerate() {
            let (top, left) = (i * h + GAP, j * w + GAP);
            for (k, value) in image.iter().enumerate() {
                let (c, y, x) = (k / (image_h * image_w), k / image_w % image_h, k % image_w);
                picture[c * plane + (top + y) * width + left + x] = value.clamp(0.0, 1.0);
            }
        }
    }
    save_grid(path, &picture, (1, 3, height, width), 1, 3)
}

fn main() -> Result<()> {
    let splits = load_cifar10_or_synthetic(None, 0)?;
    println!("{}", splits.source);
    let folder = Path::new("runs/augmentation");
    files::create_dir(folder)?;

    let [h, w] = [splits.train.shape()[1], splits.train.shape()[2]];
    let bilinear = InterpolationMode::Bilinear;
    let jitter = Transform::color_jitter;
    let pictures = [
        ("random_crop", Transform::random_crop([h, w], 4)),
        (
            "center_crop",
            Transform::CenterCrop {
                size: [h / 2, w / 2],
            },
        ),
        ("resize", Transform::resize([h / 2, w])),
        (
            "random_resized_crop",
            Transform::random_resized_crop([h, w]),
        ),
        (
            "random_horizontal_flip",
            Transform::RandomHorizontalFlip { p: 0.5 },
        ),
        (
            "random_vertical_flip",
            Transform::RandomVerticalFlip { p: 0.5 },
        ),
        ("random_rotation", Transform::random_rotation(45.0)),
        (
            "random_affine",
            Transform::RandomAffine {
                degrees: [-15.0, 15.0],
                translate: [0.1, 0.1],
                scale: [0.7, 1.3],
                shear: [[-15.0, 15.0], [0.0, 0.0]],
                interpolation: bilinear,
                fill: Fill::Mean,
            },
        ),
        ("brightness", jitter(0.8, 0.0, 0.0, 0.0)),
        ("contrast", jitter(0.0, 0.8, 0.0, 0.0)),
        ("saturation", jitter(0.0, 0.0, 1.0, 0.0)),
        ("hue", jitter(0.0, 0.0, 0.0, 0.5)),
        ("color_jitter", jitter(0.4, 0.4, 0.4, 0.1)),
        ("grayscale", Transform::Grayscale { channels: 3 }),
        ("random_grayscale", Transform::RandomGrayscale { p: 0.5 }),
        ("gaussian_blur", Transform::gaussian_blur(5)),
        ("random_erasing", Transform::random_erasing(0.8)),
        (
            "random_erasing_noise",
            Transform::RandomErasing {
                p: 1.0,
                scale: [0.02, 0.33],
                ratio: [0.3, 3.3],
                value: Fill::Noise,
            },
        ),
        ("cutout", Transform::cutout(1, h / 2)),
        (
            // numbers about zero, of which the picture shows what lies within its range
            "normalize",
            Transform::Normalize {
                mean: vec![0.3, 0.5, 0.1],
                std: vec![0.8, 0.5, 1.2],
            },
        ),
        (
            "random_apply",
            Transform::RandomApply {
                transforms: vec![
                    Transform::gaussian_blur(5),
                    Transform::Grayscale { channels: 3 },
                ],
                p: 0.5,
            },
        ),
        (
            "random_choice",
            Transform::RandomChoice {
                transforms: vec![
                    Transform::gaussian_blur(7),
                    Transform::random_rotation(90.0),
                    Transform::RandomApply {
                        transforms: vec![Transform::cutout(3, h / 4), jitter(0.5, 0.5, 0.5, 0.1)],
                        p: 0.8,
                    },
                ],
                weights: Some(vec![1.0, 1.0, 2.0]),
            },
        ),
        (
            "compose",
            Transform::Compose(vec![
                Transform::random_resized_crop([h, w]),
                Transform::RandomHorizontalFlip { p: 0.5 },
                jitter(0.4, 0.4, 0.4, 0.1),
                Transform::random_erasing(0.25),
            ]),
        ),
    ];
    for (name, transform) in pictures {
        let augment = Augment {
            transforms: vec![transform],
            ..Augment::none()
        };
        let mut rows = Vec::new();
        for image in 0..4 {
            let (mut row, _) = epoch(&splits.train.subset(&[image])?, &Augment::none(), 0)?;
            // the same image several times: each has a draw of its own, in each epoch another
            let again = splits.train.subset(&[image; COLUMNS - 1])?;
            row.extend(epoch(&again, &augment, image as u64)?.0);
            rows.push(row);
        }
        let path = folder.join(name).with_extension("png");
        save(&path, &rows)?;
        println!("{}", path.display());
    }

    let few = splits.train.range(0..COLUMNS)?;
    for (name, mix) in [
        ("mixup", Mix::Mixup { alpha: 1.0 }),
        ("cutmix", Mix::CutMix { alpha: 1.0 }),
    ] {
        let augment = Augment {
            mix: vec![mix],
            ..Augment::none()
        };
        let (originals, _) = epoch(&few, &Augment::none(), 0)?;
        let mut rows = vec![originals];
        for number in 0..4 {
            let (images, targets) = epoch(&few, &augment, number)?;
            rows.push(images);
            let targets = targets.unwrap_or_default();
            let first = &targets[..few.classes().len().min(targets.len())];
            let shares = first
                .iter()
                .zip(few.classes())
                .filter(|(share, _)| **share > 0.0);
            let shares: Vec<_> = shares.map(|(s, class)| format!("{s:.2} {class}")).collect();
            println!(
                "{name} {number}: the first image is {}",
                shares.join(" and ")
            );
        }
        let path = folder.join(name).with_extension("png");
        save(&path, &rows)?;
        println!("{}", path.display());
    }
    Ok(())
}
