//! The loader: a data set in batches, shuffled and augmented by seed and epoch alone, made ahead
//! of time on a thread.

use std::any::Any;
use std::iter::FusedIterator;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};

use rayon::Yield;

use super::augment::{EpochSeed, Pipeline, Raw};
use super::{Augment, Dataset, Normalize, Purpose, stream};
use crate::cuda::Gpu;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::{Layout, Shape};
use crate::tensor::Tensor;

/// Batches made ahead: one in the worker's hands, so many waiting.
const PREFETCH: usize = 2;

/// Images and labels as a model takes them.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// (N, C, H, W), row-major.
    pub images: Vec<f32>,
    /// (N); those of the images themselves where they are mixed.
    pub labels: Vec<i64>,
    /// The shares of classes (N, classes) of images that are mixed, or the images (N, C, H, W) to
    /// reconstruct.
    pub targets: Option<Vec<f32>>,
    /// [N, C, H, W].
    pub shape: [usize; 4],
}

/// A batch on its way to the device that its model is on, by [`Loader::epoch_on`].
///
/// For the CPU it is ready. For a CUDA device it holds the images' bytes, a quarter of their size,
/// and what is to happen to them: the device augments and normalizes, with the same results to the
/// bit.
#[derive(Clone, Debug)]
pub struct Feed {
    content: Content,
    pipeline: Arc<Pipeline>,
}

#[derive(Clone, Debug)]
enum Content {
    Ready(Batch),
    Raw(Gpu, Raw),
}

impl Feed {
    /// [N, C, H, W] of the images.
    pub fn shape(&self) -> [usize; 4] {
        let n = match &self.content {
            Content::Ready(batch) => batch.shape[0],
            Content::Raw(_, raw) => raw.n,
        };
        let [c, h, w] = self.pipeline.shape();
        [n, c, h, w]
    }

    /// The images (N, C, H, W) of F32 and the labels (N) of I64, or where images are mixed the
    /// shares of classes (N, classes) of F32, or the images to reconstruct, on the device. On a CUDA
    /// device images lie channels-last, as convolutions take them.
    pub fn tensors(self) -> Result<(Tensor, Tensor)> {
        let shape = self.shape();
        let (size, dtype) = self.pipeline.labels(shape[0]);
        match self.content {
            Content::Ready(batch) => Ok((
                Tensor::from_vec(batch.images, shape)?,
                match batch.targets {
                    Some(targets) => Tensor::from_vec(targets, size)?,
                    None => Tensor::from_vec(batch.labels, size)?,
                },
            )),
            Content::Raw(gpu, raw) => {
                let device = Device::Cuda(gpu);
                let layout = Layout::channels_last(Shape::new(&shape)?);
                let images = Tensor::empty(layout, DType::F32, device)?;
                let layout = match size.len() {
                    4 => Layout::channels_last(Shape::new(&size)?),
                    _ => Layout::contiguous(Shape::new(&size)?),
                };
                let labels = Tensor::empty(layout, dtype, device)?;
                self.pipeline.finish(gpu, raw, &images, &labels)?;
                Ok((images, labels))
            }
        }
    }

    /// The same written over such tensors, row-major or channels-last. Their memory stays where it
    /// is unless others share it: they can be the inputs of a captured step.
    pub fn write_to(self, images: &mut Tensor, labels: &mut Tensor) -> Result<()> {
        let shape = Shape::new(&self.shape())?;
        let (size, dtype) = self.pipeline.labels(shape[0]);
        let size = Shape::new(&size)?;
        let fit = |t: &Tensor, s: &Shape, dtype| t.shape() == s && t.dtype() == dtype;
        let ordered = |t: &Tensor| t.is_contiguous() || t.layout().is_channels_last();
        let fitting = fit(images, &shape, DType::F32) && fit(labels, &size, dtype);
        if !ordered(images) || !ordered(labels) || !fitting {
            let (a, b) = (*images.shape(), *labels.shape());
            let (s, t) = (images.dtype(), labels.dtype());
            let why = format!(
                "{a:?} of {s} and {b:?} of {t} do not take images {shape:?} of f32 and labels {size:?} of {dtype}"
            );
            return Err(Error::shape("write_to", &[a, b], why));
        }
        match self.content {
            Content::Ready(_) => {
                let (x, y) = self.tensors()?;
                images.copy_(&x)?;
                labels.copy_(&y)
            }
            Content::Raw(gpu, raw) => {
                images.make_unique()?;
                labels.make_unique()?;
                self.pipeline.finish(gpu, raw, images, labels)
            }
        }
    }
}

/// A data set as batches, epoch after epoch. A clone is cheap.
#[derive(Clone, Debug)]
pub struct Loader {
    data: Dataset,
    pipeline: Arc<Pipeline>,
    batch_size: usize,
    seed: u64,
    shuffle: bool,
    drop_last: bool,
}

impl Loader {
    /// Batches of `batch_size` images, in the data set's order or with `shuffle` in a new one
    /// each epoch; the last one is smaller where the images do not divide, or left out with
    /// `drop_last`. A batch size of 0 or over the data set, and settings that do not fit the
    /// images, are an [`Error::Config`].
    pub fn new(
        data: Dataset,
        normalize: &Normalize,
        augment: Augment,
        batch_size: usize,
        seed: u64,
        shuffle: bool,
        drop_last: bool,
    ) -> Result<Self> {
        let n = data.len();
        if batch_size == 0 || batch_size > n {
            let why = format!("{batch_size} for {n} images; expected 1 to {n}");
            return Err(Error::config("batch_size", why));
        }
        let doubled = augment.reconstruct.as_ref().is_some_and(|r| r.doubled);
        let pipeline = Arc::new(Pipeline::new(&data, normalize, augment)?);
        Ok(Loader {
            data: if doubled { data.twice() } else { data },
            pipeline,
            batch_size,
            seed,
            shuffle,
            drop_last,
        })
    }

    /// The images, each twice where [`Reconstruct`](super::Reconstruct) says so.
    pub fn dataset(&self) -> &Dataset {
        &self.data
    }

    /// [C, H, W] of an image of a batch, after the transforms.
    pub fn image_shape(&self) -> [usize; 3] {
        self.pipeline.shape()
    }

    /// The number of batches in an epoch, at least 1.
    pub fn batches(&self) -> usize {
        if self.drop_last {
            self.data.len() / self.batch_size
        } else {
            self.data.len().div_ceil(self.batch_size)
        }
    }

    /// The batches of an epoch. The same epoch of the same seed gives the same bits.
    pub fn epoch(&self, epoch: u64) -> Epoch {
        self.epoch_from(epoch, 0)
    }

    /// The batches of an epoch from batch `first` on, as [`epoch`](Self::epoch) would give them;
    /// none where there are not so many.
    pub fn epoch_from(&self, epoch: u64, first: usize) -> Epoch {
        self.start(epoch, first, Loader::batch)
    }

    /// The same batches for a model on `device`.
    pub fn epoch_on(&self, device: Device, epoch: u64, first: usize) -> Epoch<Feed> {
        self.start(epoch, first, move |loader, order, seed, batch| {
            let pipeline = loader.pipeline.clone();
            let content = match device {
                Device::Cpu => Content::Ready(loader.batch(order, seed, batch)),
                Device::Cuda(gpu) => {
                    let indices = loader.indices(order, batch);
                    let raw = pipeline.raw(&loader.data, indices, seed, batch);
                    Content::Raw(gpu, raw)
                }
            };
            Feed { content, pipeline }
        })
    }

    /// The batches of an epoch from `first` on, made by `make(loader, order, seed, batch)`.
    fn start<B: Send + 'static>(
        &self,
        epoch: u64,
        first: usize,
        make: impl Fn(&Loader, &[usize], EpochSeed, usize) -> B + Send + 'static,
    ) -> Epoch<B> {
        let loader = self.clone();
        Epoch::start(self.data.name(), first..self.batches(), move || {
            let order = loader.order(epoch);
            let seed = loader.seed_of(epoch);
            move |batch| make(&loader, &order, seed, batch)
        })
    }

    /// Of the augmentation's random numbers.
    fn seed_of(&self, epoch: u64) -> EpochSeed {
        let seed = |epoch| stream(self.seed, Purpose::Augment, epoch).seed;
        EpochSeed {
            own: seed(epoch),
            first: seed(0),
            odd: epoch % 2 == 1,
        }
    }

    fn order(&self, epoch: u64) -> Vec<usize> {
        if self.shuffle {
            stream(self.seed, Purpose::Shuffle, epoch).permutation(self.data.len())
        } else {
            (0..self.data.len()).collect()
        }
    }

    fn batch(&self, order: &[usize], seed: EpochSeed, batch: usize) -> Batch {
        let indices = self.indices(order, batch);
        self.pipeline.batch(&self.data, indices, seed, batch)
    }

    /// The images of a batch.
    fn indices<'o>(&self, order: &'o [usize], batch: usize) -> &'o [usize] {
        let start = batch * self.batch_size;
        &order[start..order.len().min(start + self.batch_size)]
    }
}

/// The batches of an epoch, made ahead on a thread that ends with this iterator.
#[derive(Debug)]
pub struct Epoch<B = Batch> {
    name: String,
    left: usize,
    batches: Option<Receiver<Result<B>>>,
    worker: Option<JoinHandle<()>>,
}

impl<B: Send + 'static> Epoch<B> {
    /// Start the thread: `prepare` runs on it and gives what makes a batch of `range`.
    fn start<F: FnMut(usize) -> B>(
        name: &str,
        range: std::ops::Range<usize>,
        prepare: impl FnOnce() -> F + Send + 'static,
    ) -> Self {
        let (sender, batches) = sync_channel(PREFETCH);
        let (refused, left) = (sender.clone(), range.len());
        let work = move || {
            let mut make = prepare();
            for i in range {
                // nobody is there to receive any more: the iterator was dropped
                if sender.send(Ok(make(i))).is_err() {
                    return;
                }
            }
        };
        let builder = thread::Builder::new().name("loader".into());
        let worker = match builder.spawn(work) {
            Ok(worker) => Some(worker),
            Err(e) => {
                // there is room for one and the receiver is alive
                let _ = refused.send(Err(Error::io(name)(e)));
                None
            }
        };
        Epoch {
            name: name.into(),
            left,
            batches: Some(batches),
            worker,
        }
    }
}

impl<B> Epoch<B> {
    /// Let the worker end and wait for it; what it panicked with, if it did.
    fn join(&mut self) -> thread::Result<()> {
        // a worker waiting to send wakes up when the receiver is gone
        self.batches = None;
        let Some(worker) = self.worker.take() else {
            return Ok(());
        };
        while !worker.is_finished() && lend_a_hand() {}
        worker.join()
    }
}

impl<B> Iterator for Epoch<B> {
    type Item = Result<B>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let item = match receive(self.batches.as_ref()?) {
            Ok(item) => item,
            // the worker has batches left but is gone
            Err(_) => {
                let what = self.join().err().map_or(String::new(), |p| panic_text(&*p));
                let why = format!("the loading thread stopped: {what}");
                Err(Error::data(&self.name, why))
            }
        };
        self.left = if item.is_ok() { self.left - 1 } else { 0 };
        Some(item)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<B> ExactSizeIterator for Epoch<B> {}
impl<B> FusedIterator for Epoch<B> {}

impl<B> Drop for Epoch<B> {
    fn drop(&mut self) {
        // an epoch left early does not care how its worker ended
        let _ = self.join();
    }
}

/// The next item, once it is there.
fn receive<T>(items: &Receiver<T>) -> std::result::Result<T, RecvError> {
    loop {
        match items.try_recv() {
            Ok(item) => return Ok(item),
            Err(TryRecvError::Disconnected) => return Err(RecvError),
            Err(TryRecvError::Empty) if lend_a_hand() => {}
            Err(TryRecvError::Empty) => return items.recv(),
        }
    }
}

/// On a thread of the pool, do some of the pool's work: the worker's may be among it, and would
/// wait forever for a thread that sleeps until the worker is done. Elsewhere: false.
fn lend_a_hand() -> bool {
    let done = rayon::yield_now();
    if let Some(Yield::Idle) = done {
        thread::yield_now();
    }
    done.is_some()
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Mix, Reconstruct, Transform};
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    /// n images of 1x4x4; image i has all pixels i and label i % 3.
    fn numbered(n: usize) -> Dataset {
        let images = (0..n * 16).map(|i| (i / 16) as u8).collect();
        let labels = (0..n).map(|i| (i % 3) as u8).collect();
        Dataset::new("numbered", images, labels, [1, 4, 4], &["a", "b", "c"]).unwrap()
    }

    fn zero_mean() -> Normalize {
        Normalize::MeanImage(vec![0.0; 16])
    }

    fn loader(n: usize, batch: usize, shuffle: bool, drop_last: bool, a: Augment) -> Loader {
        Loader::new(numbered(n), &zero_mean(), a, batch, 7, shuffle, drop_last).unwrap()
    }

    /// Which images an epoch gave, by their top left pixel, and the sizes of its batches.
    fn numbers(l: &Loader, epoch: u64) -> (Vec<usize>, Vec<usize>) {
        let (mut seen, mut sizes) = (Vec::new(), Vec::new());
        for batch in l.epoch(epoch).map(Result::unwrap) {
            sizes.push(batch.shape[0]);
            assert_eq!(batch.images.len(), batch.shape.iter().product::<usize>());
            for (image, label) in batch.images.chunks(16).zip(&batch.labels) {
                let i = (image[0] * 255.0).round() as usize;
                assert_eq!(*label, (i % 3) as i64);
                seen.push(i);
            }
        }
        (seen, sizes)
    }

    #[test]
    fn in_order_with_the_last_partial_batch_or_without() {
        let l = loader(10, 4, false, false, Augment::none());
        assert_eq!(l.batches(), 3);
        assert_eq!(numbers(&l, 0), ((0..10).collect(), vec![4, 4, 2]));
        let l = loader(10, 4, false, true, Augment::none());
        assert_eq!((l.batches(), l.epoch(0).len()), (2, 2));
        assert_eq!(numbers(&l, 0), ((0..8).collect(), vec![4, 4]));
    }

    #[test]
    fn a_shuffled_epoch_holds_each_image_once_and_differs_from_the_next() {
        let l = loader(100, 9, true, false, Augment::none());
        let ((mut a, _), (b, _)) = (numbers(&l, 0), numbers(&l, 1));
        assert_eq!(a, numbers(&l, 0).0);
        assert_ne!(a, b);
        a.sort_unstable();
        assert!(a.into_iter().eq(0..100));
        let mut other = loader(100, 9, true, false, Augment::none());
        other.seed = 8;
        assert_ne!(numbers(&other, 1).0, b);
    }

    #[test]
    fn an_epoch_goes_on_where_it_stopped() {
        let l = loader(
            50,
            8,
            true,
            false,
            Augment {
                flip: 0.5,
                crop_padding: 2,
                ..Augment::none()
            },
        );
        let all: Vec<Batch> = l.epoch(3).map(Result::unwrap).collect();
        let rest: Vec<Batch> = l.epoch_from(3, 4).map(Result::unwrap).collect();
        assert_eq!(rest, all[4..]);
        assert_eq!(l.epoch_from(3, 7).count() + l.epoch_from(3, 99).count(), 0);
    }

    #[test]
    fn augmentation_depends_on_seed_epoch_and_image_not_on_threads_or_order() {
        let moved = Augment {
            flip: 0.5,
            crop_padding: 3,
            ..Augment::none()
        };
        let transformed = Augment {
            transforms: vec![
                Transform::random_resized_crop([4, 4]),
                Transform::random_rotation(45.0),
                Transform::color_jitter(0.5, 0.5, 0.0, 0.0),
                Transform::gaussian_blur(3),
                Transform::random_erasing(0.5),
            ],
            ..moved.clone()
        };
        let mixed = Augment {
            mix: vec![Mix::Mixup { alpha: 1.0 }, Mix::CutMix { alpha: 1.0 }],
            ..transformed.clone()
        };
        let images = (0..64 * 16).map(|i| (i * 31 % 251) as u8).collect();
        let data = Dataset::new("it", images, vec![0; 64], [1, 4, 4], &["a"]).unwrap();
        let before = data.clone().image(5).to_vec();
        for augment in [moved, transformed, mixed] {
            let in_place = augment.mix.is_empty();
            let shuffled = Loader::new(data.clone(), &zero_mean(), augment, 64, 7, true, false);
            let shuffled = shuffled.unwrap();
            let run = |threads, order: &[usize], epoch| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                let seed = shuffled.seed_of(epoch);
                pool.build()
                    .unwrap()
                    .install(|| shuffled.batch(order, seed, 0))
            };
            let plain: Vec<usize> = (0..64).collect();
            let (one, three) = (run(1, &plain, 2), run(3, &plain, 2));
            assert_eq!(one, three);
            assert_ne!(one, run(3, &plain, 3));
            // the shuffled epoch holds the same augmented images, each in its place
            let order = shuffled.order(2);
            let epoch = shuffled.epoch(2).next().unwrap().unwrap();
            for (place, &i) in order.iter().enumerate().filter(|_| in_place) {
                assert_eq!(epoch.images[place * 16..][..16], one.images[i * 16..][..16]);
            }
            assert_eq!(data.image(5), before);
        }
    }

    #[test]
    fn images_to_reconstruct_have_holes_and_their_targets_none() {
        // without a 0 among the pixels, and with the mean 0, that of a hole
        let pixels: Vec<u8> = (0..6 * 144).map(|i| (i * 31 % 250 + 1) as u8).collect();
        let data = Dataset::new("it", pixels, vec![0; 6], [1, 12, 12], &["a"]).unwrap();
        let zero = Normalize::MeanImage(vec![0.0; 144]);
        let of = |reconstruct, seed, epoch| -> Vec<Batch> {
            let augment = Augment {
                flip: 1.0,
                reconstruct: Some(reconstruct),
                ..Augment::none()
            };
            let loader = Loader::new(data.clone(), &zero, augment, 3, seed, false, false);
            loader.unwrap().epoch(epoch).map(Result::unwrap).collect()
        };
        let mirrored = |i: usize| -> Vec<f32> {
            let row = |row: &[u8]| row.iter().rev().map(|&x| x as f32 / 255.0).collect();
            data.image(i)
                .chunks(12)
                .flat_map::<Vec<f32>, _>(row)
                .collect()
        };
        let plain = |i: usize| data.image(i).iter().map(|&x| x as f32 / 255.0).collect();
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        for (holes, hole_size) in [(0, 4), (1, 4), (2, 4), (3, 6)] {
            let reconstruct = Reconstruct {
                holes,
                hole_size,
                doubled: false,
            };
            let batches = of(reconstruct, 7, 0);
            assert_eq!(batches, of(reconstruct, 7, 0));
            let others = [of(reconstruct, 8, 0), of(reconstruct, 7, 1)];
            assert!(others.iter().all(|o| (o != &batches) == (holes > 0)));
            for (i, (seen, target)) in pairs(&batches).into_iter().enumerate() {
                assert!(near(&target, &mirrored(i)));
                let hidden = seen.iter().filter(|x| **x == 0.0).count();
                let (quarter, whole) = (hole_size * hole_size / 4, hole_size * hole_size);
                let least = if holes > 0 { quarter } else { 0 };
                assert!((least..=holes * whole).contains(&hidden), "{hidden}");
                assert!(seen.iter().zip(&target).all(|(s, t)| *s == 0.0 || s == t));
            }
        }
        // first as they are, then flipped, and each time other holes
        let batches = of(
            Reconstruct {
                holes: 1,
                hole_size: 4,
                doubled: true,
            },
            7,
            0,
        );
        let pairs = pairs(&batches);
        assert_eq!((batches.len(), pairs.len()), (4, 12));
        for i in 0..6 {
            let plain: Vec<f32> = plain(i);
            assert!(near(&pairs[i].1, &plain) && near(&pairs[6 + i].1, &mirrored(i)));
        }
        let hidden = |i: usize| pairs[i].0.iter().map(|x| *x == 0.0).collect::<Vec<_>>();
        assert!((0..6).any(|i| hidden(i) != hidden(6 + i)));
    }

    /// Each image of some batches with its target.
    fn pairs(batches: &[Batch]) -> Vec<(Vec<f32>, Vec<f32>)> {
        let of = |b: &Batch| -> Vec<(Vec<f32>, Vec<f32>)> {
            let pixels = b.shape[1..].iter().product();
            let targets = b.targets.as_deref().unwrap().chunks(pixels);
            let both = b.images.chunks(pixels).zip(targets);
            both.map(|(x, t)| (x.to_vec(), t.to_vec())).collect()
        };
        batches.iter().flat_map(of).collect()
    }

    #[test]
    fn a_batch_size_of_zero_or_over_the_data_set_is_an_error() {
        for size in [0, 11, usize::MAX] {
            let l = Loader::new(
                numbered(10),
                &zero_mean(),
                Augment::none(),
                size,
                0,
                true,
                true,
            );
            let e = l.unwrap_err().to_string();
            let expected = format!("batch_size: {size} for 10 images; expected 1 to 10");
            assert!(e.ends_with(&expected), "{e}");
        }
    }

    fn empty() -> Batch {
        Batch {
            images: vec![],
            labels: vec![],
            targets: None,
            shape: [0; 4],
        }
    }

    #[test]
    fn a_dropped_epoch_ends_its_thread_and_runs_only_so_far_ahead() {
        let made = Arc::new(AtomicUsize::new(0));
        let count = made.clone();
        let mut epoch = Epoch::start("it", 0..1000, move || {
            move |_| {
                count.fetch_add(1, SeqCst);
                empty()
            }
        });
        epoch.next().unwrap().unwrap();
        drop(epoch);
        // joined: nobody else holds the counter, and it no longer moves
        assert_eq!(Arc::strong_count(&made), 1);
        assert!(made.load(SeqCst) <= 1 + PREFETCH + 1);
    }

    #[test]
    fn a_panic_in_the_worker_is_an_error_after_the_good_batches() {
        let mut epoch = Epoch::start("it", 0..5, || {
            |i| {
                assert!(i < 2, "batch {i} is cursed");
                empty()
            }
        });
        assert!(epoch.next().unwrap().is_ok() && epoch.next().unwrap().is_ok());
        let e = epoch.next().unwrap().unwrap_err().to_string();
        assert_eq!(e, "it: the loading thread stopped: batch 2 is cursed");
        assert!(epoch.next().is_none());
    }

    #[test]
    fn every_thread_of_the_pool_may_wait_for_batches() {
        let l = loader(200, 50, true, false, Augment::none());
        let sums = rayon::broadcast(|_| {
            drop(l.epoch(1));
            l.epoch(0).map(|b| b.unwrap().labels.len()).sum::<usize>()
        });
        assert!(sums.into_iter().all(|n| n == 200));
    }
}
