//! Test-time augmentation: several views of an image vote on its class.

use crate::autograd::no_grad;
use crate::data::{Dataset, Normalize};
use crate::error::{Error, Result};
use crate::nn::{self, Mode, Module};
use crate::ops::correct;
use crate::tensor::Tensor;
use crate::train::judge::in_order;

/// One way to look at an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// What its scores count in the sum.
    pub weight: f64,
    /// Pixel (y, x) comes from (y + dy, x + dx) for (dy, dx); beyond the edges the image is
    /// reflected.
    pub shift: [isize; 2],
    /// Its mirror image, left for right.
    pub mirror: bool,
}

impl View {
    /// The image as it is, alone.
    pub const PLAIN: [View; 1] = [View {
        weight: 1.0,
        shift: [0, 0],
        mirror: false,
    }];

    /// airbench94's (Jordan 2024): the image and its mirror image as they are, half of the sum, and
    /// moved by a pixel up and left or down and right. For networks that were trained on images
    /// moved and mirrored.
    pub fn six() -> Vec<View> {
        let of = |(weight, by): (f64, isize)| {
            [false, true].map(|mirror| View {
                weight,
                shift: [by, by],
                mirror,
            })
        };
        [(0.25, 0), (0.125, -1), (0.125, 1)]
            .into_iter()
            .flat_map(of)
            .collect()
    }

    /// The view of images (n, c, h, w), which are larger than the shift.
    fn of(&self, images: &Tensor) -> Result<Tensor> {
        let mut x = images.clone();
        for (axis, by) in [2, 3].into_iter().zip(self.shift) {
            let n = images.shape()[axis];
            if by.unsigned_abs() >= n {
                let why = format!("a shift of {by} of images {:?}", images.shape());
                return Err(Error::argument("View", why));
            }
            if by != 0 {
                let last = n as i64 - 1;
                let from = |i: i64| last - (last - (i + by as i64).abs()).abs();
                let index = Tensor::from_vec((0..=last).map(from).collect(), n)?;
                x = x.index_select(axis as isize, &index.moved(x.device())?)?;
            }
        }
        if self.mirror { x.flip(3) } else { Ok(x) }
    }
}

/// The scores (N, C) of all images of `data`, on the CPU: for each the weighted sum over `views`, in
/// evaluation mode and outside of any graph, `batch_size` images at a time.
pub fn predict(
    model: &mut (impl Module + ?Sized),
    data: &Dataset,
    normalize: &Normalize,
    views: &[View],
    batch_size: usize,
) -> Result<Tensor> {
    let _quiet = no_grad();
    let loader = in_order(data, (normalize, &[]), batch_size)?;
    let (mut all, mut classes) = (Vec::new(), 0);
    for feed in loader.epoch_on(nn::device(model), 0, 0) {
        let (images, _) = feed?.tensors()?;
        let mut sum: Option<Tensor> = None;
        for view in views {
            let scores = model.forward(&view.of(&images)?, Mode::Eval)?;
            let scores = scores.mul_scalar(view.weight)?;
            sum = Some(match sum {
                Some(sum) => sum.add(&scores)?,
                None => scores,
            });
        }
        let sum = sum.ok_or_else(|| Error::argument("predict", "no views"))?;
        classes = sum.shape().last().copied().unwrap_or(0);
        all.extend(sum.to_vec::<f32>()?);
    }
    Tensor::from_vec(all, [data.len(), classes])
}

/// The fractions of the images of `data` that `model` classifies right by one plain view, and by
/// `views` of the `share` of them that the plain view leaves least sure: those whose two greatest
/// scores are nearest to each other. The votes on the others would hardly change, and cost as much
/// (Hiverge's cifar10-speedrun, 2025). A `share` of 1 looks at all.
pub fn tta_accuracy(
    model: &mut (impl Module + ?Sized),
    data: &Dataset,
    normalize: &Normalize,
    views: &[View],
    share: f64,
    batch_size: usize,
) -> Result<[f64; 2]> {
    if !(0.0..=1.0).contains(&share) {
        return Err(Error::config("share", format!("{share}; expected 0 to 1")));
    }
    let labels = |data: &Dataset| {
        let labels = (0..data.len()).map(|i| data.label(i) as i64).collect();
        Tensor::from_vec(labels, data.len())
    };
    let plain = predict(model, data, normalize, &View::PLAIN, batch_size)?;
    let right = correct(&plain, &labels(data)?)?;
    let scores = plain.to_vec::<f32>()?;
    let margin = |row: &[f32]| {
        let two = row
            .iter()
            .fold([f32::NEG_INFINITY; 2], |[a, b], &x| match x {
                x if x > a => [x, a],
                x => [a, x.max(b)],
            });
        two[0] - two[1]
    };
    let margins: Vec<f32> = scores.chunks(plain.shape()[1].max(1)).map(margin).collect();
    let mut unsure: Vec<usize> = (0..data.len()).collect();
    unsure.sort_by(|&i, &j| margins[i].total_cmp(&margins[j]));
    unsure.truncate((share * data.len() as f64).round() as usize);
    let fraction = |right: usize| right as f64 / data.len() as f64;
    if unsure.is_empty() {
        return Ok([fraction(right); 2]);
    }
    let index: Vec<i64> = unsure.iter().map(|&i| i as i64).collect();
    let before = plain.index_select(0, &Tensor::from_vec(index, unsure.len())?)?;
    let unsure = data.subset(&unsure)?;
    let wanted = labels(&unsure)?;
    let after = predict(model, &unsure, normalize, views, batch_size)?;
    let voted = right - correct(&before, &wanted)? + correct(&after, &wanted)?;
    Ok([right, voted].map(fraction))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::nn::Visitor;
    use crate::ops::check::devices;

    /// Scores that are the image's pixels.
    struct Pixels(Tensor);

    impl Module for Pixels {
        fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
            assert_eq!(mode, Mode::Eval);
            x.flatten(1)
        }

        fn visit(&mut self, v: &mut Visitor<'_>) {
            v.buffer("where", &mut self.0);
        }

        fn describe(&self) -> String {
            "Pixels()".into()
        }
    }

    /// Images 1x2x3, which normalization leaves as they are.
    fn data(images: &[[u8; 6]], labels: &[u8]) -> (Dataset, Normalize) {
        let classes = ["a", "b", "c", "d", "e", "f"];
        let bytes = images.concat();
        let data = Dataset::new("it", bytes, labels.to_vec(), [1, 2, 3], &classes).unwrap();
        let normalize = Normalize::PerChannel {
            mean: vec![0.0],
            std: vec![1.0 / 255.0],
        };
        (data, normalize)
    }

    #[test]
    fn views_are_moved_with_reflected_edges_and_mirrored() -> Result<()> {
        let (data, normalize) = data(&[[1, 2, 3, 4, 5, 6]; 3], &[0; 3]);
        for device in devices()? {
            let mut net = Pixels(Tensor::zeros([1], DType::F32)?.to(device)?);
            for (shift, mirror, expected) in [
                ([0, 0], false, [1, 2, 3, 4, 5, 6]),
                ([0, 0], true, [3, 2, 1, 6, 5, 4]),
                ([-1, -1], false, [5, 4, 5, 2, 1, 2]),
                ([1, 1], false, [5, 6, 5, 2, 3, 2]),
                ([1, -2], true, [4, 5, 6, 1, 2, 3]),
            ] {
                let weight = 0.5;
                let view = View {
                    weight,
                    shift,
                    mirror,
                };
                // a whole batch, and the rest
                let got = predict(&mut net, &data, &normalize, &[view, view], 2)?;
                assert_eq!(got.shape()[..], [3, 6]);
                for row in got.to_vec::<f32>()?.chunks(6) {
                    for (got, expected) in row.iter().zip(expected) {
                        assert!((got - expected as f32).abs() < 1e-5, "{view:?}: {row:?}");
                    }
                }
            }
        }
        let six = View::six();
        assert_eq!(six.iter().map(|v| v.weight).sum::<f64>(), 1.0);
        assert_eq!(six.iter().filter(|v| v.mirror).count(), 3);
        Ok(())
    }

    #[test]
    fn only_the_least_sure_are_looked_at_again() -> Result<()> {
        // the last two are closest; the mirror image of each has another greatest score
        let images = [
            [9, 0, 0, 0, 0, 0],
            [0, 7, 1, 0, 0, 0],
            [0, 5, 6, 0, 0, 0],
            [4, 0, 5, 0, 0, 0],
        ];
        let (data, normalize) = data(&images, &[0, 0, 0, 0]);
        let mut net = Pixels(Tensor::zeros([1], DType::F32)?);
        let mirror = View {
            mirror: true,
            ..View::PLAIN[0]
        };
        let mut of = |share| tta_accuracy(&mut net, &data, &normalize, &[mirror], share, 3);
        assert_eq!(of(0.0)?, [0.25, 0.25]);
        assert_eq!(of(0.25)?, [0.25, 0.5]);
        assert_eq!(of(0.5)?, [0.25, 0.75]);
        // the first, right before, is wrong in the mirror
        assert_eq!(of(1.0)?, [0.25, 0.5]);
        assert!(of(1.5).unwrap_err().to_string().contains("share: 1.5"));
        let far = View {
            shift: [2, 0],
            ..mirror
        };
        assert!(predict(&mut net, &data, &normalize, &[far], 3).is_err());
        assert!(predict(&mut net, &data, &normalize, &[], 3).is_err());
        Ok(())
    }
}
