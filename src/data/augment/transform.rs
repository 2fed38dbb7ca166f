//! The transforms of one image by torchvision's names, their settings and shapes, and the draw that
//! turns them into operations.

use serde::{Deserialize, Serialize};

use super::ops::Op;
use super::{color, erase, geometry};
use crate::error::{Error, Result};
use crate::random::{Generator, philox4x32_10};

/// A change of one image (C, H, W) of numbers from 0 to 1, by torchvision's names and formulas. Sizes
/// are [height, width], ranges [least, greatest], angles degrees.
///
/// What differs from torchvision:
/// - the random numbers are drawn from the epoch's seed and the image's number;
/// - beyond the border a bilinear rotation or affine map blends with the fill once
///   ([`InterpolationMode::Bilinear`]);
/// - noise of [`RandomErasing`](Self::RandomErasing) is uniform, not normal;
/// - [`CenterCrop`](Self::CenterCrop) larger than the image is an error, not a padded image;
/// - [`Resize`](Self::Resize) takes both sides, not the shorter one alone;
/// - the blur's kernel is a square, a crop's padding the same on all sides and filled with a colour;
/// - [`Cutout`](Self::Cutout) and [`Fill::Mean`] are not torchvision's.
///
/// Each random one draws anew for each image and epoch. Settings that make no sense are an
/// [`Error::Config`] once the images' shape is known, when a loader or Solver is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Transform {
    /// One after another.
    Compose(Vec<Transform>),
    /// All of them with probability p, else none. They keep the shape.
    RandomApply {
        /// One after another.
        transforms: Vec<Transform>,
        /// The probability.
        p: f32,
    },
    /// One of them, which all lead to one shape.
    RandomChoice {
        /// To choose from; not empty.
        transforms: Vec<Transform>,
        /// How likely each is, on any scale; `None` for equally.
        weights: Option<Vec<f32>>,
    },
    /// A part of the image with `padding` rows and columns of `fill` around it; each place is
    /// equally likely.
    RandomCrop {
        /// The part's size.
        size: [usize; 2],
        /// Around all four sides.
        padding: usize,
        /// The padding's colour.
        fill: Fill,
    },
    /// The middle part. An odd rest is split as torchvision splits it: half of it rounded to even.
    CenterCrop {
        /// The part's size.
        size: [usize; 2],
    },
    /// The whole image at another size.
    Resize {
        /// The new size.
        size: [usize; 2],
        /// How it is sampled.
        interpolation: InterpolationMode,
        /// Average over all pixels that fall together where the image shrinks (bilinear only).
        antialias: bool,
    },
    /// A random part at another size (Szegedy et al. 2015). Ten tries to fit one into the image,
    /// then the largest middle part of an allowed ratio.
    RandomResizedCrop {
        /// The new size.
        size: [usize; 2],
        /// The part's area as a share of the image's.
        scale: [f32; 2],
        /// The part's width over its height, uniform in its logarithm.
        ratio: [f32; 2],
        /// How it is sampled.
        interpolation: InterpolationMode,
        /// As [`Resize`](Self::Resize) has it.
        antialias: bool,
    },
    /// The mirror image, left for right.
    RandomHorizontalFlip {
        /// The probability.
        p: f32,
    },
    /// Upside down.
    RandomVerticalFlip {
        /// The probability.
        p: f32,
    },
    /// Turned about the middle, counter-clockwise, at the same size.
    RandomRotation {
        /// The angle's range.
        degrees: [f32; 2],
        /// How it is sampled.
        interpolation: InterpolationMode,
        /// The colour beyond the image.
        fill: Fill,
    },
    /// Turned clockwise about the middle, sheared, scaled, then moved by whole pixels.
    RandomAffine {
        /// The angle's range.
        degrees: [f32; 2],
        /// The furthest move as a share of the [width, height].
        translate: [f32; 2],
        /// The factor's range.
        scale: [f32; 2],
        /// The ranges of the angles along x and y.
        shear: [[f32; 2]; 2],
        /// How it is sampled.
        interpolation: InterpolationMode,
        /// The colour beyond the image.
        fill: Fill,
    },
    /// The four in an order that is drawn, too. A range of one neutral value does nothing. Of grey
    /// images saturation and hue change nothing.
    ColorJitter {
        /// The range of the factor of all colours; 1 is neutral.
        brightness: [f32; 2],
        /// The range of the factor of the distance from the mean grey; 1 is neutral.
        contrast: [f32; 2],
        /// The range of the factor of the distance from each pixel's grey; 1 is neutral.
        saturation: [f32; 2],
        /// The range of the turn of the colour wheel, -0.5 to 0.5; 0 is neutral.
        hue: [f32; 2],
    },
    /// 0.2989 red + 0.587 green + 0.114 blue.
    Grayscale {
        /// 1, or 3 equal ones.
        channels: usize,
    },
    /// The same with as many channels as before.
    RandomGrayscale {
        /// The probability.
        p: f32,
    },
    /// The weighted mean about each pixel, the image reflected at its edges.
    GaussianBlur {
        /// Pixels on a side, an odd number.
        kernel_size: usize,
        /// The deviation's range, in pixels.
        sigma: [f32; 2],
    },
    /// A rectangle that is overwritten (Zhong et al. 2017). Ten tries to fit one into the image,
    /// then none.
    RandomErasing {
        /// The probability.
        p: f32,
        /// The rectangle's area as a share of the image's.
        scale: [f32; 2],
        /// The rectangle's height over its width, uniform in its logarithm.
        ratio: [f32; 2],
        /// What it becomes. Noise is uniform in [0, 1), as Zhong et al. have it; torchvision's is
        /// normal, for images after normalization.
        value: Fill,
    },
    /// Squares that are overwritten (DeVries and Taylor 2017); they may stick out of the image.
    Cutout {
        /// How many.
        holes: usize,
        /// Their side: `length / 2` to each side of a pixel.
        length: usize,
        /// What they become.
        value: Fill,
    },
    /// `(x - mean[c]) / std[c]`, before the data's own normalization, which always comes last: for
    /// transforms that want colours about zero.
    Normalize {
        /// A mean for each channel.
        mean: Vec<f32>,
        /// A deviation for each channel.
        std: Vec<f32>,
    },
}

/// How an image is sampled between its pixels, by torchvision's name; layers take
/// [`ops::Interpolation`](crate::ops::Interpolation).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InterpolationMode {
    /// The nearest pixel.
    Nearest,
    /// Between the four nearest, each weighted by its nearness. Of a rotation or affine map those
    /// beyond the image have the fill's colour: y = sum(w x) + (1 - m) fill, m the sum of the weights
    /// within. torchvision's y = m sum(w x) + (1 - m) fill weights the border's pixels by m twice
    /// and so darkens it, even where fill and image are of one colour.
    Bilinear,
}

/// A colour that comes from elsewhere than the image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Fill {
    /// One number for all channels or one for each.
    Value(Vec<f32>),
    /// Each channel's mean in the data's normalization, which that turns into 0. A mean image
    /// ([`Normalize::MeanImage`](crate::data::Normalize::MeanImage)) gives each channel's average,
    /// which becomes 0 on average, not at each pixel.
    Mean,
    /// Uniform in [0, 1), each number on its own. For rectangles alone.
    Noise,
}

impl From<f32> for Fill {
    fn from(x: f32) -> Self {
        Fill::Value(vec![x])
    }
}

/// torchvision's defaults where a transform has many settings.
impl Transform {
    /// A part of `size` of the image padded with zeros.
    pub fn random_crop(size: [usize; 2], padding: usize) -> Self {
        Transform::RandomCrop {
            size,
            padding,
            fill: 0.0.into(),
        }
    }

    /// Bilinear with antialiasing.
    pub fn resize(size: [usize; 2]) -> Self {
        Transform::Resize {
            size,
            interpolation: InterpolationMode::Bilinear,
            antialias: true,
        }
    }

    /// 8 % to all of the area, ratios from 3/4 to 4/3, bilinear with antialiasing.
    pub fn random_resized_crop(size: [usize; 2]) -> Self {
        Transform::RandomResizedCrop {
            size,
            scale: [0.08, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            interpolation: InterpolationMode::Bilinear,
            antialias: true,
        }
    }

    /// By up to `degrees` either way, nearest, black beyond.
    pub fn random_rotation(degrees: f32) -> Self {
        Transform::RandomRotation {
            degrees: [-degrees, degrees],
            interpolation: InterpolationMode::Nearest,
            fill: 0.0.into(),
        }
    }

    /// By up to `degrees` either way and nothing else, nearest, black beyond.
    pub fn random_affine(degrees: f32) -> Self {
        Transform::RandomAffine {
            degrees: [-degrees, degrees],
            translate: [0.0; 2],
            scale: [1.0; 2],
            shear: [[0.0; 2]; 2],
            interpolation: InterpolationMode::Nearest,
            fill: 0.0.into(),
        }
    }

    /// Factors from `max(0, 1 - x)` to `1 + x`, the hue from `-hue` to `hue`.
    pub fn color_jitter(brightness: f32, contrast: f32, saturation: f32, hue: f32) -> Self {
        let around = |x: f32| [(1.0 - x).max(0.0), 1.0 + x];
        Transform::ColorJitter {
            brightness: around(brightness),
            contrast: around(contrast),
            saturation: around(saturation),
            hue: [-hue, hue],
        }
    }

    /// A deviation from 0.1 to 2 pixels.
    pub fn gaussian_blur(kernel_size: usize) -> Self {
        Transform::GaussianBlur {
            kernel_size,
            sigma: [0.1, 2.0],
        }
    }

    /// 2 to 33 % of the area, ratios from 0.3 to 3.3, black.
    pub fn random_erasing(p: f32) -> Self {
        Transform::RandomErasing {
            p,
            scale: [0.02, 0.33],
            ratio: [0.3, 3.3],
            value: 0.0.into(),
        }
    }

    /// Squares of the mean colour: 0 after normalization, as the paper has it; under a mean image 0
    /// on average, as [`Fill::Mean`] tells.
    pub fn cutout(holes: usize, length: usize) -> Self {
        Transform::Cutout {
            holes,
            length,
            value: Fill::Mean,
        }
    }
}

/// More numbers an image than this are a mistake in a size, and their memory would be a surprise;
/// below it every place is exact in f32.
const MOST: usize = 1 << 24;

impl Transform {
    /// Whether it may give an image something else from one epoch to the next.
    pub(super) fn is_random(&self) -> bool {
        use Transform::*;
        match self {
            Compose(transforms) => transforms.iter().any(Transform::is_random),
            CenterCrop { .. } | Resize { .. } | Grayscale { .. } | Normalize { .. } => false,
            GaussianBlur { sigma, .. } => sigma[0] != sigma[1],
            _ => true,
        }
    }

    /// The shape of what it makes of [C, H, W], and `most` grown to the most numbers on the way.
    pub(super) fn check(&self, shape: [usize; 3], most: &mut usize) -> Result<[usize; 3]> {
        use Transform::*;
        let [c, h, w] = shape;
        let out = match self {
            Compose(transforms) => check_all(transforms, shape, most)?,
            RandomApply { transforms, p } => {
                probability("RandomApply.p", *p)?;
                let out = check_all(transforms, shape, most)?;
                if out != shape {
                    let why = format!("turn {shape:?} into {out:?}; expected one shape");
                    return Err(Error::config("RandomApply.transforms", why));
                }
                shape
            }
            RandomChoice {
                transforms,
                weights,
            } => check_choice(transforms, weights.as_deref(), shape, most)?,
            RandomCrop {
                size,
                padding,
                fill,
            } => {
                let key = "RandomCrop.size";
                let padded = [h, w].map(|n| n.saturating_add(padding.saturating_mul(2)));
                let [oh, ow] = within(key, *size, padded, "padded image")?;
                if *padding >= h.min(w) {
                    let why = format!("{padding}; expected less than the image's {h}x{w}");
                    return Err(Error::config("RandomCrop.padding", why));
                }
                fill.check("RandomCrop.fill", c, false)?;
                [c, oh, ow]
            }
            CenterCrop { size } => {
                let [oh, ow] = within("CenterCrop.size", *size, [h, w], "image")?;
                [c, oh, ow]
            }
            Resize { size, .. } => sized("Resize.size", c, *size)?,
            RandomResizedCrop {
                size, scale, ratio, ..
            } => {
                range("RandomResizedCrop.scale", *scale, ABOVE_ZERO, 1.0)?;
                range("RandomResizedCrop.ratio", *ratio, ABOVE_ZERO, f32::MAX)?;
                sized("RandomResizedCrop.size", c, *size)?
            }
            RandomHorizontalFlip { p } => {
                probability("RandomHorizontalFlip.p", *p).map(|_| shape)?
            }
            RandomVerticalFlip { p } => probability("RandomVerticalFlip.p", *p).map(|_| shape)?,
            RandomRotation { degrees, fill, .. } => {
                range("RandomRotation.degrees", *degrees, f32::MIN, f32::MAX)?;
                fill.check("RandomRotation.fill", c, false)?;
                shape
            }
            RandomAffine {
                degrees,
                translate,
                scale,
                shear,
                fill,
                ..
            } => {
                range("RandomAffine.degrees", *degrees, f32::MIN, f32::MAX)?;
                for share in translate {
                    range("RandomAffine.translate", [0.0, *share], 0.0, 1.0)?;
                }
                range("RandomAffine.scale", *scale, ABOVE_ZERO, f32::MAX)?;
                for angle in shear {
                    // at 90 degrees the image is a line
                    range("RandomAffine.shear", *angle, -89.0, 89.0)?;
                }
                fill.check("RandomAffine.fill", c, false)?;
                shape
            }
            ColorJitter {
                brightness,
                contrast,
                saturation,
                hue,
            } => {
                range("ColorJitter.brightness", *brightness, 0.0, f32::MAX)?;
                range("ColorJitter.contrast", *contrast, 0.0, f32::MAX)?;
                range("ColorJitter.saturation", *saturation, 0.0, f32::MAX)?;
                range("ColorJitter.hue", *hue, -0.5, 0.5)?;
                colours("ColorJitter", c)?;
                shape
            }
            Grayscale { channels } => {
                colours("Grayscale", c)?;
                if ![1, 3].contains(channels) {
                    let why = format!("{channels}; expected 1 or 3");
                    return Err(Error::config("Grayscale.channels", why));
                }
                sized("Grayscale", *channels, [h, w])?
            }
            RandomGrayscale { p } => {
                probability("RandomGrayscale.p", *p)?;
                colours("RandomGrayscale", c)?;
                shape
            }
            GaussianBlur { kernel_size, sigma } => {
                let k = *kernel_size;
                if k % 2 == 0 || k / 2 >= h.min(w) {
                    let why = format!(
                        "{k}; expected an odd number, half of it less than the image's {h}x{w}"
                    );
                    return Err(Error::config("GaussianBlur.kernel_size", why));
                }
                range("GaussianBlur.sigma", *sigma, ABOVE_ZERO, f32::MAX)?;
                shape
            }
            RandomErasing {
                p,
                scale,
                ratio,
                value,
            } => {
                probability("RandomErasing.p", *p)?;
                range("RandomErasing.scale", *scale, 0.0, 1.0)?;
                range("RandomErasing.ratio", *ratio, ABOVE_ZERO, f32::MAX)?;
                value.check("RandomErasing.value", c, true)?;
                shape
            }
            Cutout {
                holes,
                length,
                value,
            } => {
                if !(1..=1024).contains(holes) {
                    let why = format!("{holes}; expected 1 to 1024");
                    return Err(Error::config("Cutout.holes", why));
                }
                if !(2..=h.min(w)).contains(length) {
                    let why = format!("{length}; expected 2 to the image's least side of {h}x{w}");
                    return Err(Error::config("Cutout.length", why));
                }
                value.check("Cutout.value", c, true)?;
                shape
            }
            Normalize { mean, std } => {
                if mean.len() != c || std.len() != c {
                    let (m, s) = (mean.len(), std.len());
                    let why = format!("{m} means and {s} deviations for {c} channels");
                    return Err(Error::config("Normalize", why));
                }
                if !mean.iter().chain(std).all(|x| x.is_finite()) || std.iter().any(|&s| s <= 0.0) {
                    let why = "a mean is not finite or a deviation is not above 0";
                    return Err(Error::config("Normalize", why));
                }
                shape
            }
        };
        *most = out.iter().product::<usize>().max(*most);
        Ok(out)
    }

    /// Draw what happens to one image, and append it.
    pub(super) fn draw(&self, draw: &mut Draw<'_>) {
        use Transform::*;
        match self {
            Compose(transforms) => transforms.iter().for_each(|t| t.draw(draw)),
            RandomApply { transforms, p } => {
                if draw.chance(*p) {
                    transforms.iter().for_each(|t| t.draw(draw));
                }
            }
            RandomChoice {
                transforms,
                weights,
            } => {
                if let Some(t) = draw.choose(transforms, weights.as_deref()) {
                    t.draw(draw);
                }
            }
            RandomCrop {
                size,
                padding,
                fill,
            } => geometry::random_crop(draw, *size, *padding, fill),
            CenterCrop { size } => geometry::center_crop(draw, *size),
            Resize {
                size,
                interpolation,
                antialias,
            } => geometry::resize(draw, *size, *interpolation, *antialias),
            RandomResizedCrop {
                size,
                scale,
                ratio,
                interpolation,
                antialias,
            } => {
                let part = geometry::random_part(draw, *scale, *ratio);
                geometry::resize_part(draw, part, *size, *interpolation, *antialias);
            }
            RandomHorizontalFlip { p } => {
                if draw.chance(*p) {
                    geometry::flip(draw, false);
                }
            }
            RandomVerticalFlip { p } => {
                if draw.chance(*p) {
                    geometry::flip(draw, true);
                }
            }
            RandomRotation {
                degrees,
                interpolation,
                fill,
            } => {
                // counter-clockwise, where RandomAffine turns clockwise
                let angle = -draw.between(*degrees);
                let matrix = geometry::inverse_affine(angle, [0.0; 2], 1.0, [0.0; 2]);
                geometry::warp(draw, matrix, *interpolation, fill);
            }
            RandomAffine {
                degrees,
                translate,
                scale,
                shear,
                interpolation,
                fill,
            } => {
                let angle = draw.between(*degrees);
                let [_, h, w] = draw.shape;
                let moved = [(translate[0], w), (translate[1], h)].map(|(share, n)| {
                    let most = share * n as f32;
                    draw.between([-most, most]).round_ties_even()
                });
                let scale = draw.between(*scale);
                let shear = shear.map(|range| draw.between(range));
                let matrix = geometry::inverse_affine(angle, moved, scale, shear);
                geometry::warp(draw, matrix, *interpolation, fill);
            }
            ColorJitter {
                brightness,
                contrast,
                saturation,
                hue,
            } => color::jitter(draw, [*brightness, *contrast, *saturation, *hue]),
            Grayscale { channels } => color::grayscale(draw, *channels),
            RandomGrayscale { p } => {
                if draw.chance(*p) {
                    color::grayscale(draw, draw.shape[0]);
                }
            }
            GaussianBlur { kernel_size, sigma } => {
                let sigma = draw.between(*sigma);
                color::blur(draw, *kernel_size, sigma);
            }
            RandomErasing {
                p,
                scale,
                ratio,
                value,
            } => {
                if draw.chance(*p)
                    && let Some(part) = erase::random_rectangle(draw, *scale, *ratio)
                {
                    erase::rectangle(draw, part, value);
                }
            }
            Cutout {
                holes,
                length,
                value,
            } => (0..*holes).for_each(|_| erase::hole(draw, *length, value)),
            Normalize { mean, std } => {
                let (mean, std) = (mean.clone(), std.clone());
                draw.push(Op::Normalize { mean, std });
            }
        }
    }
}

/// [`Transform::check`] of one after another.
pub(super) fn check_all(
    transforms: &[Transform],
    shape: [usize; 3],
    most: &mut usize,
) -> Result<[usize; 3]> {
    transforms.iter().try_fold(shape, |s, t| t.check(s, most))
}

fn check_choice(
    transforms: &[Transform],
    weights: Option<&[f32]>,
    shape: [usize; 3],
    most: &mut usize,
) -> Result<[usize; 3]> {
    let refuse = |key, why| Err(Error::config(key, why));
    let key = "RandomChoice.transforms";
    let Some((first, rest)) = transforms.split_first() else {
        return refuse(key, "none; expected at least one".to_string());
    };
    let out = first.check(shape, most)?;
    for t in rest {
        let other = t.check(shape, most)?;
        if other != out {
            return refuse(
                key,
                format!("lead to {out:?} and {other:?}; expected one shape"),
            );
        }
    }
    if let Some(weights) = weights {
        let (n, sum) = (transforms.len(), weights.iter().sum::<f32>());
        let fit = weights.len() == n && weights.iter().all(|&w| w >= 0.0);
        let likely = sum > 0.0 && sum.is_finite();
        if !(fit && likely) {
            let why = format!("{weights:?}; expected {n} of at least 0, one of them above");
            return refuse("RandomChoice.weights", why);
        }
    }
    Ok(out)
}

/// The least end of a range whose ends are above 0.
const ABOVE_ZERO: f32 = f32::from_bits(1);

fn range(key: &'static str, [lo, hi]: [f32; 2], least: f32, most: f32) -> Result<()> {
    // a NaN is in no order
    if least <= lo && lo <= hi && hi <= most {
        return Ok(());
    }
    let expected = match (least, most) {
        (ABOVE_ZERO, f32::MAX) => "numbers above 0".to_string(),
        (ABOVE_ZERO, most) => format!("above 0 to {most}"),
        (f32::MIN, f32::MAX) => "finite numbers".to_string(),
        (least, f32::MAX) => format!("at least {least}"),
        (least, most) => format!("{least} to {most}"),
    };
    let why = format!("{lo} to {hi}; expected a range that does not fall, of {expected}");
    Err(Error::config(key, why))
}

pub(super) fn probability(key: &'static str, p: f32) -> Result<()> {
    if (0.0..=1.0).contains(&p) {
        return Ok(());
    }
    let why = format!("{p}; expected a probability, 0 to 1");
    Err(Error::config(key, why))
}

fn within(key: &'static str, size: [usize; 2], of: [usize; 2], what: &str) -> Result<[usize; 2]> {
    let ([h, w], [most_h, most_w]) = (size, of);
    if h == 0 || w == 0 || h > most_h || w > most_w {
        let why = format!("{h}x{w}; expected 1x1 to the {what}'s {most_h}x{most_w}");
        return Err(Error::config(key, why));
    }
    Ok(size)
}

fn sized(key: &'static str, c: usize, [h, w]: [usize; 2]) -> Result<[usize; 3]> {
    let numbers = c.checked_mul(h).and_then(|n| n.checked_mul(w));
    if !numbers.is_some_and(|n| (1..=MOST).contains(&n)) {
        let why = format!("{h}x{w} of {c} channels; expected 1 to {MOST} numbers an image");
        return Err(Error::config(key, why));
    }
    Ok([c, h, w])
}

fn colours(key: &'static str, c: usize) -> Result<()> {
    if c == 1 || c == 3 {
        return Ok(());
    }
    let why = format!("images of {c} channels; expected 1 or 3");
    Err(Error::config(key, why))
}

impl Fill {
    fn check(&self, key: &'static str, c: usize, noise: bool) -> Result<()> {
        let why = match self {
            Fill::Value(v) if v.len() != 1 && v.len() != c => {
                format!("{} numbers; expected 1 or the {c} of the channels", v.len())
            }
            Fill::Value(v) if !v.iter().all(|x| x.is_finite()) => {
                format!("{v:?}; expected finite numbers")
            }
            Fill::Noise if !noise => "noise; expected a value or the mean".into(),
            _ => return Ok(()),
        };
        Err(Error::config(key, why))
    }
}

/// The draw of one image's operations, all from its own random numbers.
pub(super) struct Draw<'a> {
    pub rng: Generator,
    /// The data's mean colour.
    mean: &'a [f32],
    /// [C, H, W] after the operations so far.
    pub shape: [usize; 3],
    ops: Vec<Op>,
}

impl<'a> Draw<'a> {
    /// For image `i` of the epoch whose stream has `epoch_seed`.
    pub fn new(shape: [usize; 3], mean: &'a [f32], epoch_seed: u64, i: usize) -> Self {
        // flip and crop take block i of the epoch's stream; the third counter word keeps apart
        let counter = [i as u32, (i as u64 >> 32) as u32, 1, 0];
        let r = philox4x32_10(counter, [epoch_seed as u32, (epoch_seed >> 32) as u32]);
        Draw {
            rng: Generator::new((r[0] as u64) << 32 | r[1] as u64),
            mean,
            shape,
            ops: Vec::new(),
        }
    }

    /// What was drawn.
    pub fn finish(self) -> Vec<Op> {
        self.ops
    }

    /// How many operations there are so far.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Append an operation; moves by whole pixels are joined where that changes nothing.
    pub fn push(&mut self, op: Op) {
        let before = self.shape;
        self.shape = op.shape(before);
        if let Some(last) = self.ops.last_mut()
            && let Some(both) = last.then(&op, before)
        {
            *last = both;
        } else {
            self.ops.push(op);
        }
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f32) -> bool {
        self.rng.uniform() < p as f64
    }

    /// Uniform in a range.
    pub fn between(&mut self, [lo, hi]: [f32; 2]) -> f64 {
        let (lo, hi) = (lo as f64, hi as f64);
        lo + (hi - lo) * self.rng.uniform()
    }

    /// Uniform from 0 to `n`, both among them.
    pub fn up_to(&mut self, n: usize) -> usize {
        self.rng.below(n as u64 + 1) as usize
    }

    fn choose<'t>(
        &mut self,
        transforms: &'t [Transform],
        weights: Option<&[f32]>,
    ) -> Option<&'t Transform> {
        let weight = |i| weights.map_or(1.0, |w: &[f32]| w[i] as f64);
        let total: f64 = (0..transforms.len()).map(weight).sum();
        let mut left = total * self.rng.uniform();
        let likely = (0..transforms.len()).filter(|&i| weight(i) > 0.0);
        let mut chosen = None;
        for i in likely {
            chosen = transforms.get(i);
            left -= weight(i);
            if left < 0.0 {
                break;
            }
        }
        chosen
    }

    /// A colour with as many numbers as there are channels; `None` for noise.
    pub fn colour(&self, fill: &Fill) -> Option<Vec<f32>> {
        let c = self.shape[0];
        match fill {
            Fill::Value(v) if v.len() == c => Some(v.clone()),
            Fill::Value(v) => Some(vec![v.first().copied().unwrap_or(0.0); c]),
            Fill::Mean if self.mean.len() == c => Some(self.mean.to_vec()),
            Fill::Mean => {
                let sum: f32 = self.mean.iter().sum();
                Some(vec![sum / self.mean.len() as f32; c])
            }
            Fill::Noise => None,
        }
    }
}
