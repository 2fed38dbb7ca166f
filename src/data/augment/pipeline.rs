//! Augmentation and normalization of images of one shape, checked and ready: batches on the CPU,
//! and on a CUDA device from the images' bytes.

use std::sync::Mutex;

use rayon::prelude::*;

use super::canvas::Canvas;
use super::mix::Mixing;
use super::ops::Op;
use super::transform::Draw;
use super::{Augment, Change, EpochSeed, PaddingMode, Reconstruct};
use crate::cuda::{Arg, Gpu, kernels};
use crate::data::normalize::Affine;
use crate::data::{Batch, Dataset, Normalize, PIXEL_SCALE};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::shape::{Layout, Shape};
use crate::tensor::Tensor;

kernels! {
    /// One thread a pixel of the batch; no transforms.
    AUGMENT = "augment" [F32];
    /// One block an image at a time.
    PROGRAMS = "augment_programs" [F32];
    /// One thread a pixel of the batch.
    MIX = "augment_mix" [F32];
}

/// Numbers that the transforms of a batch may have under way on a device, two images for each block:
/// 512 MiB, enough for a block to each of 256 images of 3x256x256.
const SCRATCH: usize = 1 << 27;

/// Normalization and augmentation of images of one shape.
#[derive(Debug)]
pub(in crate::data) struct Pipeline {
    /// [C, H, W] of the images as they are stored.
    stored: [usize; 3],
    /// [C, H, W] after the transforms.
    shape: [usize; 3],
    /// Numbers of the largest image on the way from one to the other.
    most: usize,
    /// Numbers under way on a device, at least those of one block.
    scratch: usize,
    classes: usize,
    affine: Affine,
    /// Each channel's mean in the normalization.
    mean: Vec<f32>,
    augment: Augment,
    /// Images before this one are left as they are, but for their holes.
    plain: usize,
    /// The means, then the scales, on each GPU that has asked for them.
    on: Mutex<Vec<(Gpu, Tensor)>>,
}

/// What [`Pipeline::finish`] makes a batch of.
#[derive(Clone, Debug)]
pub(in crate::data) struct Raw {
    /// One stretch, to be copied at once: four numbers an image (label; 1 for a flip and 2 for
    /// reflection beside the image; dy, dx); the images' bytes; the images' programs; those of their
    /// targets where these are images, too; the mixing's partners and shares of classes.
    words: Vec<i64>,
    /// Where each of the last three parts begins.
    programs: Option<usize>,
    targets: Option<usize>,
    mixing: Option<(usize, Mixing)>,
    /// Images.
    pub n: usize,
}

impl Pipeline {
    pub fn new(data: &Dataset, normalize: &Normalize, augment: Augment) -> Result<Self> {
        let stored = data.shape();
        let (shape, most) = augment.check(stored)?;
        let affine = normalize.affine(shape)?;
        let plane = shape[1] * shape[2];
        let mean = affine.mean.chunks_exact(plane);
        let mean = mean.map(|m| (m.iter().map(|&x| x as f64).sum::<f64>() / plane as f64) as f32);
        Ok(Pipeline {
            stored,
            shape,
            most,
            scratch: SCRATCH,
            classes: data.classes().len(),
            mean: mean.collect(),
            affine,
            plain: match &augment.reconstruct {
                Some(r) if r.doubled => data.len(),
                _ => 0,
            },
            augment,
            on: Mutex::default(),
        })
    }

    /// [C, H, W] of an image of a batch.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The shape of a batch's labels of I64, or of F32 the shares of classes or the images to
    /// reconstruct.
    pub fn labels(&self, n: usize) -> (Vec<usize>, DType) {
        if self.augment.reconstruct.is_some() {
            let [c, h, w] = self.shape;
            return (vec![n, c, h, w], DType::F32);
        }
        match self.augment.mix.is_empty() {
            true => (vec![n], DType::I64),
            false => (vec![n, self.classes], DType::F32),
        }
    }

    /// The images `indices` of `data`, which are batch `number` of an epoch.
    pub fn batch(
        &self,
        data: &Dataset,
        indices: &[usize],
        epoch: EpochSeed,
        number: usize,
    ) -> Batch {
        let n = indices.len();
        let [c, h, w] = self.shape;
        let labels: Vec<i64> = indices.iter().map(|&i| data.label(i) as i64).collect();
        let (mut images, mut targets) = match self.augment.reconstruct {
            Some(_) => {
                let (images, clean) = self.gather_pairs(data, indices, epoch);
                (images, Some(clean))
            }
            None => (self.gather(data, indices, epoch), None),
        };
        if let Some(mixing) = Mixing::draw(&self.augment.mix, epoch.own, number, n, [h, w]) {
            images = mixing.images(&images, self.shape);
            targets = Some(mixing.targets(&labels, self.classes));
        }
        Batch {
            images,
            labels,
            targets,
            shape: [n, c, h, w],
        }
    }

    /// The images before they are mixed.
    fn gather(&self, data: &Dataset, indices: &[usize], epoch: EpochSeed) -> Vec<f32> {
        let pixels = self.shape.iter().product();
        let mut out = vec![0.0; indices.len() * pixels];
        let images = out.par_chunks_mut(pixels).zip(indices);
        if self.augment.transforms.is_empty() {
            images.with_min_len(8).for_each(|(out, &i)| {
                let change = self.change(epoch, i);
                self.write(data.image(i), |x| x as f32 * PIXEL_SCALE, &change, out);
            });
        } else {
            let canvas = || Canvas::new(self.most);
            images.for_each_init(canvas, |canvas, (out, &i)| {
                let (ops, _) = self.ops(epoch, i);
                let image = canvas.run(data.image(i), self.stored, &ops);
                let change = self.change(epoch, i);
                self.write(image, |x| x, &change, out);
            });
        }
        out
    }

    /// The images with their holes, and without.
    fn gather_pairs(
        &self,
        data: &Dataset,
        indices: &[usize],
        epoch: EpochSeed,
    ) -> (Vec<f32>, Vec<f32>) {
        let pixels = self.shape.iter().product();
        let [mut masked, mut clean] = [(); 2].map(|()| vec![0.0; indices.len() * pixels]);
        let pairs = masked
            .par_chunks_mut(pixels)
            .zip(clean.par_chunks_mut(pixels));
        let canvas = || Canvas::new(self.most);
        pairs
            .zip(indices)
            .for_each_init(canvas, |canvas, ((masked, clean), &i)| {
                let (ops, seen) = self.ops(epoch, i);
                let change = self.change(epoch, i);
                let image = canvas.run(data.image(i), self.stored, &ops[..seen]);
                self.write(image, |x| x, &change, clean);
                self.write(canvas.go_on(&ops[seen..]), |x| x, &change, masked);
            });
        (masked, clean)
    }

    /// The flip and the crop of image `i`.
    fn change(&self, epoch: EpochSeed, i: usize) -> Change {
        match i < self.plain {
            true => Change::default(),
            false => self.augment.draw(epoch, i),
        }
    }

    /// What the transforms do to image `i`, then what makes its holes, and how many operations come
    /// before those.
    fn ops(&self, epoch: EpochSeed, i: usize) -> (Vec<Op>, usize) {
        let mut draw = Draw::new(self.stored, &self.mean, epoch.own, i);
        if i >= self.plain {
            let transforms = self.augment.transforms.iter();
            transforms.for_each(|t| t.draw(&mut draw));
        }
        let before = draw.len();
        let reconstruct = self.augment.reconstruct.as_ref();
        if let Some(mask) = reconstruct.and_then(Reconstruct::mask) {
            mask.draw(&mut draw);
        }
        (draw.finish(), before)
    }

    /// Append the images' programs, those of their targets with `clean`; where they begin.
    fn programs(
        &self,
        words: &mut Vec<i64>,
        indices: &[usize],
        epoch: EpochSeed,
        clean: bool,
    ) -> usize {
        let (start, n) = (words.len(), indices.len());
        let mut code = Vec::new();
        for &i in indices {
            // after the n places, two words of code in each of theirs
            words.push((2 * n + code.len()) as i64);
            let (mut ops, before) = self.ops(epoch, i);
            if clean {
                ops.truncate(before);
            }
            code.push(ops.len() as u32);
            ops.iter().for_each(|op| op.encode(&mut code));
        }
        append(words, &code);
        start
    }

    /// What [`finish`](Self::finish) makes the same batch of.
    pub fn raw(&self, data: &Dataset, indices: &[usize], epoch: EpochSeed, number: usize) -> Raw {
        let (n, pixels) = (indices.len(), self.stored.iter().product::<usize>());
        let mut words = vec![0; 4 * n + (n * pixels).div_ceil(8)];
        let (changes, images) = words.split_at_mut(4 * n);
        let reflects = (self.augment.padding_mode == PaddingMode::Reflect) as i64;
        for (words, &i) in changes.chunks_exact_mut(4).zip(indices) {
            let c = self.change(epoch, i);
            let label = data.label(i) as i64;
            let flip = c.flip as i64 | reflects << 1;
            words.copy_from_slice(&[label, flip, c.dy as i64, c.dx as i64]);
        }
        let images: &mut [u8] = bytemuck::cast_slice_mut(images);
        for (bytes, &i) in images.chunks_exact_mut(pixels).zip(indices) {
            bytes.copy_from_slice(data.image(i));
        }
        let pairs = self.augment.reconstruct.is_some();
        let programs = (pairs || !self.augment.transforms.is_empty())
            .then(|| self.programs(&mut words, indices, epoch, false));
        let targets = pairs.then(|| self.programs(&mut words, indices, epoch, true));
        let [_, h, w] = self.shape;
        let mixing = Mixing::draw(&self.augment.mix, epoch.own, number, n, [h, w]);
        let mixing = mixing.map(|mixing| {
            let start = words.len();
            let labels: Vec<i64> = indices.iter().map(|&i| data.label(i) as i64).collect();
            let targets = mixing.targets(&labels, self.classes);
            words.extend(mixing.partners.iter().map(|&p| p as i64));
            append(&mut words, bytemuck::cast_slice(&targets));
            (start, mixing)
        });
        Raw {
            words,
            programs,
            targets,
            mixing,
            n,
        }
    }

    /// Copy a batch to the device, which writes the images that [`batch`](Self::batch) has to
    /// `images` (F32, row-major or channels-last) and their labels, or shares of classes, or the
    /// images to reconstruct, to `labels`.
    pub fn finish(&self, gpu: Gpu, raw: Raw, images: &Tensor, labels: &Tensor) -> Result<()> {
        let (n, len) = (raw.n, raw.words.len());
        let words = Tensor::from_vec(raw.words, len)?.moved(Device::Cuda(gpu))?;
        if raw.targets.is_some() {
            let own = row(gpu, n, DType::I64)?;
            self.finish_images(gpu, &words, raw.programs, images, &own)?;
            return self.finish_images(gpu, &words, raw.targets, labels, &own);
        }
        let Some((start, mixing)) = raw.mixing else {
            return self.finish_images(gpu, &words, raw.programs, images, labels);
        };
        let single = Tensor::empty(*images.layout(), DType::F32, Device::Cuda(gpu))?;
        let own = row(gpu, n, DType::I64)?;
        self.finish_images(gpu, &words, raw.programs, &single, &own)?;
        let words = words.narrow(0, start, len - start)?;
        let [top, left, bottom, right] = mixing.rectangle.unwrap_or_default();
        let [c, h, w] = self.shape;
        let last = usize::from(!images.is_contiguous());
        let rectangle = usize::from(mixing.rectangle.is_some());
        let int = |x: usize| Arg::I32(x as i32);
        let tensors = [
            words.input(),
            single.input(),
            images.output(),
            labels.output(),
        ];
        let sizes = [n, c, h, w, self.classes, last].map(int);
        let share = [Arg::F32(mixing.lambda)];
        let part = [rectangle, top, left, bottom, right].map(int);
        let args = [&tensors[..], &sizes, &share, &part].concat();
        let threads = images.numel().max(labels.numel());
        gpu.launch_over(MIX.of(DType::F32)?, threads, 256, &args)
    }

    /// The images before they are mixed, and their labels.
    fn finish_images(
        &self,
        gpu: Gpu,
        words: &Tensor,
        programs: Option<usize>,
        images: &Tensor,
        labels: &Tensor,
    ) -> Result<()> {
        let n = labels.numel();
        let [c, h, w] = self.stored;
        let last = usize::from(!images.is_contiguous());
        let int = |x: usize| Arg::I32(x as i32);
        let affine = self.affine_on(gpu)?;
        let Some(start) = programs else {
            let tensors = [
                words.input(),
                affine.input(),
                images.output(),
                labels.output(),
            ];
            let args = [&tensors[..], &[n, c, h, w, last].map(int)].concat();
            return gpu.launch_over(AUGMENT.of(DType::F32)?, images.numel(), 256, &args);
        };
        let slot = 2 * self.most;
        let blocks = (self.scratch / slot.max(1)).min(n).max(1);
        let scratch = row(gpu, blocks * slot, DType::F32)?;
        let programs = words.narrow(0, start, words.numel() - start)?;
        let tensors = [
            words.input(),
            programs.input(),
            affine.input(),
            scratch.output(),
            images.output(),
            labels.output(),
        ];
        let [out_c, out_h, out_w] = self.shape;
        let sizes = [n, c, h, w, self.most, out_c, out_h, out_w, last].map(int);
        let args = [&tensors[..], &sizes].concat();
        let grid = [blocks as u32, 1, 1];
        gpu.launch(PROGRAMS.of(DType::F32)?, grid, [256, 1, 1], 0, &args)
    }

    fn affine_on(&self, gpu: Gpu) -> Result<Tensor> {
        // a panic elsewhere cannot leave the list half written: poisoning does not matter
        let mut on = self.on.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((_, affine)) = on.iter().find(|(g, _)| *g == gpu) {
            return Ok(affine.clone());
        }
        let numbers = [&self.affine.mean[..], &self.affine.scale].concat();
        let n = numbers.len();
        let affine = Tensor::from_vec(numbers, n)?.moved(Device::Cuda(gpu))?;
        on.push((gpu, affine.clone()));
        Ok(affine)
    }

    /// One image of numbers (on a scale of 1 after `value`) into `out`, which is all zeros: what the
    /// crop does not reach stays so.
    fn write<X: Copy>(
        &self,
        image: &[X],
        value: impl Fn(X) -> f32,
        change: &Change,
        out: &mut [f32],
    ) {
        let [channels, h, w] = self.shape;
        if self.augment.padding_mode == PaddingMode::Reflect {
            return self.write_reflected(image, value, change, out);
        }
        let (ys, xs) = (kept(h, change.dy), kept(w, change.dx));
        // where the row's first kept pixel comes from; in a mirror image the stretch lies mirrored
        let from = xs.start.saturating_add_signed(change.dx);
        let from = if change.flip {
            w - from - xs.len()
        } else {
            from
        };
        for c in 0..channels {
            let scale = self.affine.scale[c];
            let normal = |(o, (&x, &m)): (&mut f32, (&X, &f32))| {
                *o = (value(x) - m) * scale;
            };
            for y in ys.clone() {
                let source = (c * h + y.saturating_add_signed(change.dy)) * w + from;
                let pixels = image[source..][..xs.len()].iter();
                let pixels = pixels.zip(&self.affine.mean[source..][..xs.len()]);
                let out = out[(c * h + y) * w..][xs.clone()].iter_mut();
                if change.flip {
                    out.zip(pixels.rev()).for_each(normal);
                } else {
                    out.zip(pixels).for_each(normal);
                }
            }
        }
    }

    /// The same where the image is reflected at its edges, so that every pixel comes from it.
    fn write_reflected<X: Copy>(
        &self,
        image: &[X],
        value: impl Fn(X) -> f32,
        change: &Change,
        out: &mut [f32],
    ) {
        let [_, h, w] = self.shape;
        let column = |x: usize| match (reflected(x as isize + change.dx, w), change.flip) {
            (x, true) => w - 1 - x,
            (x, false) => x,
        };
        let columns: Vec<usize> = (0..w).map(column).collect();
        for (i, row) in out.chunks_exact_mut(w).enumerate() {
            let (c, y) = (i / h, reflected((i % h) as isize + change.dy, h));
            let from = (c * h + y) * w;
            let (mean, scale) = (&self.affine.mean[from..][..w], self.affine.scale[c]);
            for (o, &x) in row.iter_mut().zip(&columns) {
                *o = (value(image[from + x]) - mean[x]) * scale;
            }
        }
    }
}

/// The pixel of `0..n` that place `i`, less than n before or behind it, mirrors.
fn reflected(i: isize, n: usize) -> usize {
    let at = i.unsigned_abs();
    if at < n { at } else { 2 * (n - 1) - at }
}

/// So many elements that are yet to be written.
fn row(gpu: Gpu, n: usize, dtype: DType) -> Result<Tensor> {
    let layout = Layout::contiguous(Shape::new(&[n])?);
    Tensor::empty(layout, dtype, Device::Cuda(gpu))
}

/// Numbers of 32 bits as words of 64, the last one filled up.
fn append(words: &mut Vec<i64>, numbers: &[u32]) {
    let start = words.len();
    words.resize(start + numbers.len().div_ceil(2), 0);
    let place: &mut [u32] = bytemuck::cast_slice_mut(&mut words[start..]);
    place[..numbers.len()].copy_from_slice(numbers);
}

/// The places of `0..n` that are still in `0..n` after moving by `d`, which is less than n.
fn kept(n: usize, d: isize) -> std::ops::Range<usize> {
    let d = d.clamp(-(n as isize), n as isize);
    (-d).max(0) as usize..n - d.max(0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(feature = "emulator")]
    use crate::data::Transform;
    use crate::error::Error;

    const EPOCH: EpochSeed = EpochSeed {
        own: 5,
        first: 5,
        odd: false,
    };

    /// 2 channels of 3x4, pixels 0, 7, 14..; labels 0, 1, 0, 1..
    fn counting(n: usize) -> Dataset {
        let images = (0..n * 24).map(|i| (i * 7 % 256) as u8).collect();
        let labels = (0..n).map(|i| (i % 2) as u8).collect();
        Dataset::new("counting", images, labels, [2, 3, 4], &["a", "b"]).unwrap()
    }

    #[test]
    fn settings_that_do_not_fit_are_errors() {
        let data = counting(1);
        let plain = Normalize::MeanImage(vec![0.0; 24]);
        let key = |n: &Normalize, flip, crop_padding| {
            let augment = Augment {
                flip,
                crop_padding,
                ..Augment::none()
            };
            match Pipeline::new(&data, n, augment) {
                Err(Error::Config { key, .. }) => key,
                other => panic!("{other:?}"),
            }
        };
        for flip in [-0.1, 1.1, f32::NAN] {
            assert_eq!(key(&plain, flip, 0), "flip");
        }
        assert_eq!(key(&plain, 0.5, 3), "crop_padding");
        let channels = |mean: Vec<f32>, std: Vec<f32>| Normalize::PerChannel { mean, std };
        for wrong in [
            Normalize::MeanImage(vec![0.0; 23]),
            Normalize::MeanImage(vec![f32::NAN; 24]),
            channels(vec![0.0; 3], vec![1.0; 2]),
            channels(vec![0.0; 2], vec![1.0; 3]),
            channels(vec![0.0; 2], vec![1.0, 0.0]),
            channels(vec![0.0; 2], vec![1.0, -1.0]),
        ] {
            assert_eq!(key(&wrong, 0.0, 0), "normalize");
        }
    }

    #[test]
    fn a_change_is_flip_then_shift_with_zeros_around() {
        let d = counting(1);
        let normalize = Normalize::MeanImage((0..24).map(|p| p as f32 * 0.01).collect());
        let t = Pipeline::new(&d, &normalize, Augment::none()).unwrap();
        for flip in [false, true] {
            for dy in -2..=2 {
                for dx in -2..=2 {
                    let mut out = vec![0.0; 24];
                    let change = Change { flip, dy, dx };
                    t.write(d.image(0), |x| x as f32 * PIXEL_SCALE, &change, &mut out);
                    for (p, &got) in out.iter().enumerate() {
                        let (c, y, x) = (p / 12, p / 4 % 3, p % 4);
                        let (sy, sx) = (y as isize + dy, x as isize + dx);
                        let seen = (0..3).contains(&sy) && (0..4).contains(&sx);
                        let expected = if seen {
                            let sx = if flip { 3 - sx } else { sx };
                            let source = c * 12 + sy as usize * 4 + sx as usize;
                            d.image(0)[source] as f32 * PIXEL_SCALE - source as f32 * 0.01
                        } else {
                            0.0
                        };
                        assert_eq!(got, expected, "flip {flip} dy {dy} dx {dx} at {p}");
                    }
                }
            }
        }
    }

    #[test]
    fn reflected_padding_is_the_image_mirrored_at_its_outermost_pixels() {
        let d = counting(1);
        let normalize = Normalize::MeanImage((0..24).map(|p| p as f32 * 0.01).collect());
        let augment = Augment {
            crop_padding: 2,
            padding_mode: PaddingMode::Reflect,
            ..Augment::none()
        };
        let t = Pipeline::new(&d, &normalize, augment).unwrap();
        for flip in [false, true] {
            for (dy, dx) in (0..25).map(|i| (i / 5 - 2, i % 5 - 2)) {
                let mut out = vec![f32::NAN; 24];
                let change = Change { flip, dy, dx };
                t.write(d.image(0), |x| x as f32 * PIXEL_SCALE, &change, &mut out);
                for (p, &got) in out.iter().enumerate() {
                    let (c, y, x) = (p / 12, p / 4 % 3, p % 4);
                    // 3 rows and 4 columns with two of padding on each side
                    let sy = [2, 1, 0, 1, 2, 1, 0][(y as isize + dy + 2) as usize];
                    let sx = [2, 1, 0, 1, 2, 3, 2, 1][(x as isize + dx + 2) as usize];
                    let sx = if flip { 3 - sx } else { sx };
                    let source = c * 12 + sy * 4 + sx;
                    let expected = d.image(0)[source] as f32 * PIXEL_SCALE - source as f32 * 0.01;
                    assert_eq!(got, expected, "flip {flip} dy {dy} dx {dx} at {p}");
                }
            }
        }
    }

    #[test]
    fn per_channel_divides_by_the_deviation() {
        let d = counting(2);
        let normalize = Normalize::PerChannel {
            mean: vec![0.25, 0.5],
            std: vec![0.5, 0.25],
        };
        let t = Pipeline::new(&d, &normalize, Augment::none()).unwrap();
        let out = t.gather(&d, &[1], EPOCH);
        assert_eq!(out[3], (d.image(1)[3] as f32 * PIXEL_SCALE - 0.25) * 2.0);
        assert_eq!(out[13], (d.image(1)[13] as f32 * PIXEL_SCALE - 0.5) * 4.0);
    }

    #[test]
    #[cfg(feature = "emulator")]
    fn fewer_blocks_than_images_make_the_same_images() -> Result<()> {
        let d = counting(7);
        let normalize = Normalize::PerChannel {
            mean: vec![0.25, 0.5],
            std: vec![0.5, 0.25],
        };
        // an even and an odd number of steps from one half of the slot to the other
        let transforms = [
            Transform::gaussian_blur(3),
            Transform::random_rotation(90.0),
        ];
        for transforms in [&transforms[..], &transforms[1..]] {
            let augment = Augment {
                transforms: transforms.to_vec(),
                flip: 0.5,
                ..Augment::none()
            };
            let mut t = Pipeline::new(&d, &normalize, augment)?;
            let all: Vec<usize> = (0..7).collect();
            let expected = t.batch(&d, &all, EPOCH, 0);
            let device = Device::cuda_emulated()?;
            let Device::Cuda(gpu) = device else {
                return Err(Error::argument("augment", "no GPU"));
            };
            // too little for one block, then two slots and a part, then as many as images
            for (scratch, order) in [(0, 0), (5 * 24, 0), (5 * 24, 7), (14 * 24, 0), (SCRATCH, 0)] {
                t.scratch = scratch;
                crate::cuda::set_thread_order(order);
                let images = Tensor::zeros(expected.shape, (DType::F32, device))?;
                let labels = Tensor::zeros([7], (DType::I64, device))?;
                t.finish(gpu, t.raw(&d, &all, EPOCH, 0), &images, &labels)?;
                assert_eq!(images.to_vec::<f32>()?, expected.images, "{scratch}");
                assert_eq!(labels.to_vec::<i64>()?, expected.labels);
            }
            crate::cuda::set_thread_order(0);
        }
        Ok(())
    }
}
