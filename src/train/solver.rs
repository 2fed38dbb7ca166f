//! The Solver: CS231n's, with best parameters, early stopping, schedules and checkpoints that
//! resume bit for bit.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::autograd::autocast;
use crate::data::{Augment, Dataset, Epoch, Feed, Loader, Normalize, Transform};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::{self, Module};
use crate::ops::correct;
use crate::optim::{Optimizer, PlateauMode, Position, Schedule, ScheduleState, with_averaged};
use crate::tensor::Tensor;
use crate::train::amp::{GradScaler, LossScale, Precision};
use crate::train::checkpoint::{self, Checkpoint, Named, Run, refuse};
use crate::train::judge::{check_accuracy, in_order, mean_loss, pairs, sampled};
use crate::train::loss::Loss;
use crate::train::observer::{Observer, StepView};
use crate::train::step::{Parts, Stepper};
use crate::train::{History, OptimConfig, Progress, UpdateRule, files};

use crate::train::loss::LossFn;

/// Settings of a [`Solver`], by CS231n's names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SolverConfig {
    /// How gradients become steps.
    pub update_rule: UpdateRule,
    /// The update rule's settings.
    pub optim_config: OptimConfig,
    /// How the learning rate moves.
    pub schedule: Schedule,
    /// The learning rate is multiplied by it after each epoch, on top of the schedule.
    pub lr_decay: f64,
    /// L2: 0.5 reg sum(W^2) over the weights (parameters of two axes or more) joins the loss, on
    /// top of the model's own [`Module::reg`].
    pub reg: f64,
    /// What the steps make smaller.
    pub loss: Loss,
    /// The share of each target that is spread over all classes, of the cross entropy only.
    pub label_smoothing: f64,
    /// Images a batch.
    pub batch_size: usize,
    /// Batches a step: their losses and gradients are averaged, so that a step is that of one large
    /// batch, but for what looks at the batch as a whole (batch norm). An epoch's last step has the
    /// batches that are left over, and averages over those.
    pub accumulate: usize,
    /// The type of products, in training and evaluation; see [`train::amp`](crate::train::amp).
    pub autocast: Precision,
    /// How F16's gradients are kept in its range.
    pub loss_scale: LossScale,
    /// The gradients of a step, the penalty's among them, are scaled down to this norm in all where
    /// theirs is greater.
    pub clip_grad_norm: Option<f64>,
    /// Each number of a step's gradients comes between this and its negative, after
    /// `clip_grad_norm`.
    pub clip_grad_value: Option<f64>,
    /// Times through the training images.
    pub num_epochs: usize,
    /// Training images for the accuracy after an epoch; `None` for all.
    pub num_train_samples: Option<usize>,
    /// Validation images for the accuracy after an epoch; `None` for all.
    pub num_val_samples: Option<usize>,
    /// Steps between printed losses.
    pub print_every: usize,
    /// Stop after so many epochs without a better validation accuracy.
    pub patience: Option<usize>,
    /// Stop after the first epoch whose validation accuracy, between 0 and 1, is at least this.
    pub target_accuracy: Option<f64>,
    /// The folder that gets `checkpoint.safetensors`, `best.safetensors`, `history.json`,
    /// `history.csv` and TensorBoard's events after every epoch.
    pub checkpoint_dir: Option<PathBuf>,
    /// Whether to print.
    pub verbose: bool,
    /// Of the order of the images, of their augmentation and of the samples.
    pub seed: u64,
}

impl Default for SolverConfig {
    fn default() -> Self {
        SolverConfig {
            update_rule: UpdateRule::Sgd,
            optim_config: OptimConfig::default(),
            schedule: Schedule::Constant,
            lr_decay: 1.0,
            reg: 0.0,
            loss: Loss::CrossEntropy,
            label_smoothing: 0.0,
            batch_size: 100,
            accumulate: 1,
            autocast: Precision::None,
            loss_scale: LossScale::default(),
            clip_grad_norm: None,
            clip_grad_value: None,
            num_epochs: 10,
            num_train_samples: Some(1000),
            num_val_samples: None,
            print_every: 10,
            patience: None,
            target_accuracy: None,
            checkpoint_dir: None,
            verbose: true,
            seed: 0,
        }
    }
}

impl SolverConfig {
    /// An [`Error::Config`] where a setting makes no sense, whatever the data.
    pub fn validate(&self) -> Result<()> {
        self.optim_config.build(self.update_rule)?;
        self.schedule.validate()?;
        self.loss_scale.validate()?;
        if !(self.lr_decay > 0.0 && self.lr_decay.is_finite()) {
            let why = format!("{}; expected a number above 0", self.lr_decay);
            return Err(Error::config("lr_decay", why));
        }
        if !(self.reg >= 0.0 && self.reg.is_finite()) {
            let why = format!("{}; expected a number of at least 0", self.reg);
            return Err(Error::config("reg", why));
        }
        for (key, most) in [
            ("clip_grad_norm", self.clip_grad_norm),
            ("clip_grad_value", self.clip_grad_value),
        ] {
            if let Some(most) = most.filter(|m| m.is_nan() || *m <= 0.0) {
                let why = format!("{most}; expected a number above 0");
                return Err(Error::config(key, why));
            }
        }
        self.loss.build(self.label_smoothing)?;
        for (key, n) in [
            ("batch_size", Some(self.batch_size)),
            ("accumulate", Some(self.accumulate)),
            ("num_epochs", Some(self.num_epochs)),
            ("num_train_samples", self.num_train_samples),
            ("num_val_samples", self.num_val_samples),
            ("patience", self.patience),
        ] {
            if n == Some(0) {
                return Err(Error::config(key, "0; expected at least 1"));
            }
        }
        match self.target_accuracy {
            Some(t) if !(0.0..=1.0).contains(&t) => {
                let why = format!("{t}; expected a share of the images, between 0 and 1");
                Err(Error::config("target_accuracy", why))
            }
            _ => Ok(()),
        }
    }

    /// An [`Error::Config`] where a setting makes no sense for images that are to be reconstructed.
    fn check_reconstruction(&self) -> Result<()> {
        if !matches!(
            self.loss,
            Loss::Mse | Loss::L1 | Loss::SmoothL1 | Loss::Huber
        ) {
            let loss = serde_json::json!(self.loss);
            let why = format!("{loss}; expected mse, l1, smooth_l1 or huber, to compare images");
            return Err(Error::config("loss", why));
        }
        if let Some(target) = self.target_accuracy {
            let why = format!("{target}; expected none: reconstructed images have no accuracy");
            return Err(Error::config("target_accuracy", why));
        }
        match self.schedule.watches() {
            Some(PlateauMode::Max) => {
                let why = "\"max\"; expected \"min\": the loss of reconstructed images is watched";
                Err(Error::config("mode", why))
            }
            _ => Ok(()),
        }
    }

    /// Steps in an epoch.
    fn steps_of(&self, loader: &Loader) -> usize {
        loader.batches().div_ceil(self.accumulate)
    }

    /// The settings that a resumed run must share with the run it goes on from.
    fn fixed(&self) -> serde_json::Value {
        let free = Self::default();
        let fixed = SolverConfig {
            // a schedule over the whole run would take other values for another length
            num_epochs: if self.schedule.spans_run() {
                self.num_epochs
            } else {
                free.num_epochs
            },
            print_every: free.print_every,
            patience: None,
            target_accuracy: None,
            checkpoint_dir: None,
            verbose: free.verbose,
            ..self.clone()
        };
        serde_json::json!(fixed)
    }
}

/// The images that a [`Solver`] learns from and chooses by.
#[derive(Clone, Debug)]
pub struct SolverData {
    /// To learn from.
    pub train: Dataset,
    /// To find the best epoch by.
    pub val: Dataset,
    /// How bytes become numbers.
    pub normalize: Normalize,
    /// Random changes of the training images.
    pub augment: Augment,
}

/// How a training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are done.
    Finished,
    /// The validation accuracy stood still for `patience` epochs.
    StoppedEarly,
    /// The validation accuracy is at least `target_accuracy`.
    Reached,
    /// The stop flag was set; the checkpoint, where there is a folder for one, goes on from here.
    Interrupted,
}

/// Trains a model.
///
/// `Solver::new(&mut model, data, config)?.train()?` trains, keeps the parameters of the
/// epoch with the best validation accuracy, and puts them into the model at the end. With
/// `checkpoint_dir` set, [`resume`](Self::resume) goes on from the checkpoint of an earlier run
/// and gives the very bits of a run that was never interrupted.
///
/// A model that is to give images back ([`Augment::reconstruct`]) has no accuracy: its epochs are
/// judged by the loss of validation images, with holes as in training.
pub struct Solver<'m> {
    model: &'m mut dyn Module,
    data: SolverData,
    loss: LossFn,
    config: SolverConfig,
    loader: Loader,
    optimizer: Box<dyn Optimizer>,
    base_lr: f64,
    schedule: ScheduleState,
    best: Named,
    /// Of the epoch that is under way: batches done, images right, seconds spent.
    batch: usize,
    correct: usize,
    seconds: f64,
    history: History,
    stop: Arc<AtomicBool>,
    stepper: Stepper,
    scaler: Option<GradScaler>,
    /// Where asked for.
    evaluation: Option<Vec<Transform>>,
    observer: Option<&'m mut dyn Observer>,
}

impl<'m> Solver<'m> {
    /// A run that has not begun. Settings that make no sense, by themselves or for these images,
    /// are an [`Error::Config`].
    pub fn new(model: &'m mut dyn Module, data: SolverData, config: SolverConfig) -> Result<Self> {
        config.validate()?;
        if data.val.is_empty() {
            return Err(Error::config("val", "no validation images"));
        }
        if data.augment.reconstruct.is_some() {
            config.check_reconstruction()?;
        }
        let loader = Loader::new(
            data.train.clone(),
            &data.normalize,
            data.augment.clone(),
            config.batch_size,
            config.seed,
            true,
            true,
        )?;
        let optimizer = config.optim_config.build(config.update_rule)?;
        if config.num_epochs.checked_mul(loader.batches()).is_none() {
            let (n, batches) = (config.num_epochs, loader.batches());
            let why = format!("{n} of {batches} batches; expected no more than can be counted");
            return Err(Error::config("num_epochs", why));
        }
        config.schedule.check_run(Position {
            total_epochs: config.num_epochs,
            total_steps: config.num_epochs * config.steps_of(&loader),
            ..Position::default()
        })?;
        if config.schedule.cycles_momentum() && optimizer.momentum().is_none() {
            let rule = serde_json::json!(config.update_rule);
            let why = format!("true; expected false, since {rule} has no momentum");
            return Err(Error::config("cycle_momentum", why));
        }
        let scaler = match config.autocast {
            Precision::F16 => Some(GradScaler::new(config.loss_scale)?),
            Precision::None | Precision::Bf16 => None,
        };
        let device = nn::device(model).to_string();
        let history = History::new(serde_json::json!(config), device);
        Ok(Solver {
            model,
            data,
            loss: config.loss.build(config.label_smoothing)?,
            base_lr: optimizer.learning_rate(),
            loader,
            optimizer,
            schedule: ScheduleState::default(),
            best: Named::new(),
            batch: 0,
            correct: 0,
            seconds: 0.0,
            history,
            stop: Arc::default(),
            stepper: Stepper::default(),
            scaler,
            evaluation: None,
            observer: None,
            config,
        })
    }

    /// Judge the model by images after `transforms`, such as the middle part where training takes
    /// random ones. Transforms that draw, or do not fit the images, are an [`Error::Config`]; the
    /// size may be another than training's for a model that takes any.
    pub fn with_evaluation(mut self, transforms: Vec<Transform>) -> Result<Self> {
        for data in [&self.data.train, &self.data.val] {
            let augment = Augment::evaluation(&transforms)?;
            let normalize = &self.data.normalize;
            Loader::new(data.clone(), normalize, augment, 1, 0, false, false)?;
        }
        self.evaluation = Some(transforms);
        Ok(self)
    }

    /// Another loss than the configuration's, which is then without effect. It is asked for the validation
    /// images' too, whose targets are labels whatever those in training are.
    pub fn with_loss(mut self, loss: LossFn) -> Self {
        self.loss = loss;
        self
    }

    /// Show the run to `observer` as it goes.
    pub fn with_observer(mut self, observer: &'m mut dyn Observer) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Watch `flag` before each step: once it is set, [`train`](Self::train) writes a checkpoint
    /// and returns [`Outcome::Interrupted`].
    pub fn with_stop(mut self, flag: Arc<AtomicBool>) -> Self {
        self.stop = flag;
        self
    }

    /// On a CUDA device, launch each step's kernels one by one in place of replaying a captured
    /// step: for a model whose forward counts on the host or waits for other threads that use the
    /// device, or to see a kernel's own error.
    pub fn without_capture(mut self) -> Self {
        self.stepper.plain = true;
        self
    }

    /// Whether steps are replayed from a captured one.
    pub fn is_captured(&self) -> bool {
        self.stepper.is_captured()
    }

    /// The loss scale of a run in F16.
    pub fn scaler(&self) -> Option<&GradScaler> {
        self.scaler.as_ref()
    }

    /// Keep `config` in the history in place of the Solver's own settings: a program that also
    /// chooses the model and the data records all of them.
    pub fn with_recorded_config(mut self, config: serde_json::Value) -> Self {
        self.history.config = config;
        self
    }

    /// Losses, accuracies and the rest of the record.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The best epoch's parameters and buffers; none before the first epoch ended.
    pub fn best_params(&self) -> &[(String, Tensor)] {
        &self.best
    }

    /// The model.
    pub fn model(&mut self) -> &mut dyn Module {
        self.model
    }

    /// Train until the epochs are done, the target is reached, patience ends or the stop flag is set. Unless
    /// interrupted, the model then has the best parameters.
    ///
    /// A loss that is not finite is an [`Error::NonFinite`]: the history is saved, the
    /// checkpoint stays the last epoch's.
    pub fn train(&mut self) -> Result<Outcome> {
        // model, loss and settings may be others than in an earlier call
        self.stepper.forget();
        self.check_evaluation()?;
        if let Some(dir) = &self.config.checkpoint_dir {
            files::create_dir(dir)?;
        }
        let mut progress = Progress::new(
            self.config.num_epochs,
            self.steps_per_epoch(),
            self.config.print_every,
            self.config.verbose,
        );
        if let Some(dtype) = self.config.autocast.dtype() {
            let device = nn::device(self.model);
            let note = match device {
                Device::Cpu => "; the CPU rounds as a GPU would, and is no faster",
                Device::Cuda(_) => "",
            };
            progress.line(&format!("autocast: products in {dtype} on {device}{note}"));
        }
        if self.data.augment.reconstruct.is_some() {
            let (n, batches) = (self.loader.dataset().len(), self.loader.batches());
            progress.line(&format!(
                "reconstructing: {n} images, {batches} batches an epoch"
            ));
        }
        let outcome = self.epochs(&mut progress);
        progress.finish();
        if let (Err(Error::NonFinite { .. }), Some(dir)) = (&outcome, &self.config.checkpoint_dir) {
            self.history.save(dir)?;
        }
        outcome
    }

    /// An [`Error::Config`] where the images to judge by are of another size than those to learn from, and
    /// nothing says what becomes of them.
    pub(super) fn check_evaluation(&self) -> Result<()> {
        let seen = self.loader.image_shape();
        for judged in [&self.data.train, &self.data.val].map(Dataset::shape) {
            if self.evaluation.is_none() && seen != judged {
                let why = format!(
                    "training makes images of {seen:?}, those to judge by are of {judged:?}; \
                     expected `with_evaluation` to say what becomes of them"
                );
                return Err(Error::config("evaluation", why));
            }
        }
        Ok(())
    }

    fn epochs(&mut self, progress: &mut Progress) -> Result<Outcome> {
        let outcome = loop {
            let idle = self.history.epochs - self.history.best_epoch;
            if self.config.patience.is_some_and(|p| idle >= p) {
                break Outcome::StoppedEarly;
            }
            let reached = |target| self.history.best_val_acc >= target;
            if self.history.epochs > 0 && self.config.target_accuracy.is_some_and(reached) {
                break Outcome::Reached;
            }
            if self.history.epochs >= self.config.num_epochs {
                break Outcome::Finished;
            }
            if !self.epoch(progress)? {
                return Ok(Outcome::Interrupted);
            }
        };
        nn::load_state_dict(self.model, &self.best)?;
        Ok(outcome)
    }

    /// One epoch, from the batch where it stands; false where the stop flag was set.
    fn epoch(&mut self, progress: &mut Progress) -> Result<bool> {
        let (epoch, before) = (self.history.epochs, self.seconds);
        let start = Instant::now();
        progress.epoch(epoch + 1);
        let device = nn::device(self.model);
        let mut feeds = self.loader.epoch_on(device, epoch as u64, self.batch);
        while self.batch < self.loader.batches() {
            if self.stop.load(Ordering::Relaxed) {
                self.save_checkpoint()?;
                return Ok(false);
            }
            let first = self.batch;
            let loss = self.step(&mut feeds)?;
            self.seconds = before + start.elapsed().as_secs_f64();
            let size = self.config.batch_size;
            let accuracy = match self.data.augment.reconstruct {
                Some(_) => f64::NAN,
                None => self.correct as f64 / (self.batch * size) as f64,
            };
            let images = (self.batch - first) * size;
            progress.step(self.history.loss_history.len(), loss, accuracy, images);
        }
        drop(feeds);
        let averaged = match self.config.optim_config.ema {
            Some(_) => self.optimizer.averaged()?,
            None => None,
        };
        let judged = self.judge(averaged.as_deref())?;
        let seconds = before + start.elapsed().as_secs_f64();
        let lr = self.optimizer.learning_rate();
        let (best, watched, found) = match judged {
            Judged::Accuracies { train, val, loss } => (
                self.history.end_epoch([train, val], loss, lr, seconds),
                match self.config.schedule.watches() {
                    Some(PlateauMode::Min) => loss,
                    _ => val,
                },
                format!("train acc: {train:.3}; val_acc: {val:.3}"),
            ),
            Judged::Loss(val) => (
                self.history.end_epoch_by_loss(val, lr, seconds),
                val,
                format!("val_loss: {val:.4}"),
            ),
        };
        let at = self.position();
        let schedule = &self.config.schedule;
        schedule.end_epoch(at, &mut self.schedule, watched);
        (self.batch, self.correct, self.seconds) = (0, 0, 0.0);
        if best {
            self.best = kept(self.model)?;
            for (name, average) in averaged.into_iter().flatten() {
                if let Some((_, best)) = self.best.iter_mut().find(|(n, _)| *n == name) {
                    *best = average.moved(Device::Cpu)?;
                }
            }
        }
        progress.line(&format!(
            "(Epoch {} / {}) {found}",
            epoch + 1,
            self.config.num_epochs
        ));
        if let Some(observer) = &mut self.observer {
            observer.after_epoch(epoch + 1, self.model)?;
        }
        self.save_checkpoint()?;
        if let (true, Some(dir)) = (best, &self.config.checkpoint_dir) {
            checkpoint::save_named(&dir.join("best.safetensors"), &self.best)?;
        }
        Ok(true)
    }

    /// What an epoch comes to, with `averaged` weights where there are some.
    fn judge(&mut self, averaged: Option<&[(String, Tensor)]>) -> Result<Judged> {
        let _products = autocast(self.config.autocast.dtype())?;
        let (data, config, loss) = (&self.data, &self.config, &self.loss);
        let of = (
            &data.normalize,
            self.evaluation.as_deref().unwrap_or_default(),
        );
        let train = sampled(&data.train, config.num_train_samples, config.seed)?;
        let val = sampled(&data.val, config.num_val_samples, config.seed)?;
        let pairs = match data.augment.reconstruct {
            Some(_) => Some(pairs(data, val.clone(), of.1, config)?),
            None => None,
        };
        let judge = |model: &mut dyn Module| {
            if let Some(pairs) = &pairs {
                return Ok(Judged::Loss(mean_loss(model, pairs, |x, y| loss(x, y))?));
            }
            let train = check_accuracy(model, &train, of.0, of.1, config.batch_size)?;
            let mut right = 0;
            let images = in_order(&val, of, config.batch_size)?;
            let loss = mean_loss(model, &images, |scores, labels| {
                right += correct(scores, labels)?;
                loss(scores, labels)
            })?;
            let val = right as f64 / val.len() as f64;
            Ok(Judged::Accuracies { train, val, loss })
        };
        match averaged {
            Some(weights) => with_averaged(self.model, weights, judge),
            None => judge(self.model),
        }
    }

    fn steps_per_epoch(&self) -> usize {
        self.config.steps_of(&self.loader)
    }

    fn position(&self) -> Position {
        Position {
            epoch: self.history.epochs,
            step: self.history.loss_history.len(),
            total_epochs: self.config.num_epochs,
            total_steps: self.config.num_epochs * self.steps_per_epoch(),
        }
    }

    /// One step; its loss.
    fn step(&mut self, feeds: &mut Epoch<Feed>) -> Result<f64> {
        let position = self.position();
        let schedule = &self.config.schedule;
        let decay = self.config.lr_decay.powi(position.epoch as i32);
        let lr = decay * schedule.learning_rate(self.base_lr, position, &self.schedule);
        self.optimizer.set_learning_rate(lr);
        if let Some(momentum) = schedule.momentum(position) {
            self.optimizer.set_momentum(momentum);
        }

        let reg = self.config.reg + self.model.reg();
        let mut parts = Parts {
            model: self.model,
            optimizer: &mut *self.optimizer,
            loss: &self.loss,
            reg,
            scaler: self.scaler.as_mut(),
            config: &self.config,
            seen: Default::default(),
        };
        let count = (self.loader.batches() - self.batch).min(self.config.accumulate);
        let number = position.step as u64;
        let found = match &mut self.observer {
            Some(observer) if observer.watches(position.step) => {
                let taken = feeds.take(count).collect::<Result<Vec<Feed>>>()?;
                let batches = taken.iter().map(|feed| feed.clone().tensors());
                observer.before_step(StepView {
                    step: position.step,
                    model: parts.model,
                    batches: &batches.collect::<Result<Vec<_>>>()?,
                    loss: parts.loss,
                    reg,
                })?;
                let mut feeds = taken.into_iter().map(Ok);
                self.stepper.step(&mut parts, &mut feeds, count, number)
            }
            _ => self.stepper.step(&mut parts, feeds, count, number),
        };
        let loss = match &found {
            Ok(found) => found.loss,
            Err(Error::NonFinite { loss, .. }) => *loss,
            Err(_) => return found.map(|f| f.loss),
        };
        self.history.loss_history.push(loss);
        self.correct += found?.correct;
        self.batch += count;
        Ok(loss)
    }

    /// The fraction of `num_samples` images (drawn by the seed; `None` for all) that the model
    /// classifies right, in evaluation mode.
    pub fn check_accuracy(&mut self, data: &Dataset, num_samples: Option<usize>) -> Result<f64> {
        let _products = autocast(self.config.autocast.dtype())?;
        let sampled = sampled(data, num_samples, self.config.seed)?;
        let batch_size = self.config.batch_size;
        let evaluation = self.evaluation.as_deref().unwrap_or_default();
        let normalize = &self.data.normalize;
        check_accuracy(self.model, &sampled, normalize, evaluation, batch_size)
    }

    /// The accuracies of the model as it is over all training, validation and test images, into
    /// the history, which is saved where there is a folder.
    pub fn report(&mut self, test: Option<&Dataset>) -> Result<()> {
        let (train, val) = (self.data.train.clone(), self.data.val.clone());
        self.history.train_acc = Some(self.check_accuracy(&train, None)?);
        self.history.val_acc = Some(self.check_accuracy(&val, None)?);
        self.history.test_acc = test.map(|t| self.check_accuracy(t, None)).transpose()?;
        match &self.config.checkpoint_dir {
            Some(dir) => self.history.save(dir),
            None => Ok(()),
        }
    }

    fn save_checkpoint(&mut self) -> Result<()> {
        let Some(dir) = self.config.checkpoint_dir.clone() else {
            return Ok(());
        };
        let checkpoint = Checkpoint {
            model: nn::state_dict(self.model),
            optimizer: self.optimizer.state()?,
            best: self.best.clone(),
            run: Run {
                model: self.describe_model(),
                data: self.describe_data(),
                settings: self.config.fixed(),
                batch: self.batch,
                correct: self.correct,
                seconds: self.seconds,
                schedule: self.schedule.clone(),
                generators: checkpoint::generators(self.model),
                scaler: self.scaler,
                history: self.history.clone(),
            },
        };
        checkpoint.save(dir.join("checkpoint.safetensors"))?;
        self.history.save(&dir)
    }

    fn describe_model(&self) -> String {
        format!("{}, reg={}", self.model.describe(), self.model.reg())
    }

    fn describe_data(&self) -> String {
        let SolverData {
            train,
            val,
            normalize,
            augment,
        } = &self.data;
        // thousands of numbers: a checksum tells whether they are the same
        let mut numbers = flate2::Crc::new();
        numbers.update(format!("{normalize:?}").as_bytes());
        let judged = match self.evaluation.as_deref() {
            None | Some([]) => String::new(),
            Some(transforms) => format!(", judged after {transforms:?}"),
        };
        format!(
            "{} and {} images of {}, {augment:?}, normalized by {:08x}{judged}",
            train.len(),
            val.len(),
            train.name(),
            numbers.sum()
        )
    }

    /// Go on from a checkpoint, within an epoch or between two. Epochs, patience, the target, printing and
    /// the folder may differ from the run that wrote it; a file that is damaged, of another
    /// model, other images or other settings is an [`Error::Checkpoint`], and nothing is changed.
    pub fn resume(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let saved = Checkpoint::load(path)?;
        let run = saved.run;
        let differs = |what: &str, theirs: &str, ours: &str| {
            let why = format!("is of {theirs}; this run is of {ours}");
            Err(refuse(path, what, why))
        };
        if run.model != self.describe_model() {
            return differs("model", &run.model, &self.describe_model());
        }
        if run.data != self.describe_data() {
            return differs("data", &run.data, &self.describe_data());
        }
        // what the file does not know yet has its default there
        let theirs: SolverConfig = serde_json::from_value(run.settings)
            .map_err(|e| refuse(path, "settings", e.to_string()))?;
        let (settings, saved_settings) = (self.config.fixed(), theirs.fixed());
        if let Some(keys) = settings.as_object() {
            for (key, ours) in keys {
                let theirs = &saved_settings[key];
                if theirs != ours {
                    return differs(key, &theirs.to_string(), &ours.to_string());
                }
            }
        }
        let own = nn::state_dict(self.model);
        checkpoint::verify(path, "model", &own, &saved.model)?;
        if run.history.best_epoch > 0 {
            checkpoint::verify(path, "best", &own, &saved.best)?;
        }
        drop(own);
        let streams = checkpoint::generators(self.model);
        if !streams.keys().eq(run.generators.keys()) {
            let names = |g: Vec<&String>| format!("random streams {g:?}");
            let theirs = names(run.generators.keys().collect());
            return differs("generators", &theirs, &names(streams.keys().collect()));
        }
        if run.scaler.is_some() != self.scaler.is_some() {
            let what = |s: Option<GradScaler>| if s.is_some() { "a loss scale" } else { "none" };
            return differs("scaler", what(run.scaler), what(self.scaler));
        }
        if run.batch > self.loader.batches() {
            let why = format!("{} of {}", run.batch, self.loader.batches());
            return Err(refuse(path, "batch", why));
        }
        self.optimizer
            .load_state(self.model, &saved.optimizer)
            .map_err(checkpoint::in_file(path))?;
        // all is verified: from here on nothing fails half way
        self.stepper.forget();
        nn::load_state_dict(self.model, &saved.model)?;
        checkpoint::set_generators(self.model, &run.generators);
        self.best = saved.best;
        (self.schedule, self.scaler) = (run.schedule, run.scaler);
        (self.batch, self.correct, self.seconds) = (run.batch, run.correct, run.seconds);
        self.history = History {
            config: std::mem::take(&mut self.history.config),
            ..run.history
        };
        Ok(())
    }
}

/// What an epoch comes to.
enum Judged {
    /// Of training and validation images, and the latter's loss.
    Accuracies { train: f64, val: f64, loss: f64 },
    /// Of validation images that were reconstructed.
    Loss(f64),
}

/// A copy of a model's state that later steps leave alone: on the CPU it shares storage with the
/// model until the next step writes there; from a GPU it is fetched, so that the model's own
/// tensors stay where a captured step has them.
fn kept(model: &mut (impl Module + ?Sized)) -> Result<Named> {
    let state = nn::state_dict(model).into_iter();
    state
        .map(|(name, t)| Ok((name, t.moved(Device::Cpu)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::is_grad_enabled;
    use crate::data::synthetic;
    use crate::dtype::DType;
    use crate::nn::{Flatten, Linear, Mode, Sequential, Visitor};
    use crate::optim::{Cyclic, OneCycle, Plateau, Unit};
    use crate::random::Generator;
    use crate::train::loss::softmax_loss;

    /// A linear classifier with noise on its input, a running mean, and a name.
    struct Net {
        w: Tensor,
        b: Tensor,
        mean: Tensor,
        noise: Generator,
        name: &'static str,
    }

    impl Net {
        fn new(name: &'static str) -> Self {
            let mut noise = Generator::new(7);
            let w = Tensor::randn([10, 3072], &mut noise, DType::F32).unwrap();
            Net {
                w: w.mul_scalar(1e-3).unwrap().requires_grad(),
                b: Tensor::zeros([10], DType::F32).unwrap().requires_grad(),
                mean: Tensor::zeros([10], DType::F32).unwrap(),
                noise,
                name,
            }
        }
    }

    impl Module for Net {
        fn forward(&mut self, x: &Tensor, mode: Mode) -> Result<Tensor> {
            let x = x.flatten(1)?;
            if mode == Mode::Eval {
                return x
                    .linear(&self.w, Some(&self.b))?
                    .sub(&self.mean.mul_scalar(1e-3)?);
            }
            let noise = Tensor::rand(x.shape(), &mut self.noise, DType::F32)?;
            let y = x.mul(&noise)?.linear(&self.w, Some(&self.b))?;
            self.mean = self
                .mean
                .mul_scalar(0.9)?
                .add(&y.detach().mean(&[0], false)?)?;
            Ok(y)
        }
        fn visit(&mut self, v: &mut Visitor<'_>) {
            v.parameter("w", &mut self.w);
            v.parameter("b", &mut self.b);
            v.buffer("mean", &mut self.mean);
            v.generator("noise", &mut self.noise);
        }
        fn describe(&self) -> String {
            self.name.into()
        }
    }

    fn data() -> SolverData {
        let train = synthetic(0, 0, 90);
        SolverData {
            normalize: Normalize::mean_image(&train).unwrap(),
            val: synthetic(0, 1000, 40),
            train,
            augment: Augment::standard(),
        }
    }

    fn config(dir: &Path, num_epochs: usize) -> SolverConfig {
        SolverConfig {
            update_rule: UpdateRule::Adam,
            schedule: Schedule::Step {
                step_size: 2,
                gamma: 0.3,
                unit: Unit::Epoch,
            },
            lr_decay: 0.95,
            reg: 0.1,
            label_smoothing: 0.1,
            batch_size: 20,
            num_epochs,
            num_train_samples: Some(30),
            checkpoint_dir: Some(dir.into()),
            verbose: false,
            seed: 11,
            ..SolverConfig::default()
        }
    }

    fn bits(named: &[(String, Tensor)]) -> Vec<(String, Vec<u32>)> {
        let mut all: Vec<_> = named
            .iter()
            .map(|(n, t)| {
                let v = t.to_vec::<f32>().unwrap();
                (n.clone(), v.iter().map(|x| x.to_bits()).collect())
            })
            .collect();
        all.sort();
        all
    }

    /// All that must be equal of two runs: the model, its noise, the checkpoint and the history.
    fn assert_same_run(a: (&mut Net, &Path), b: (&mut Net, &Path)) {
        assert_eq!(bits(&nn::state_dict(a.0)), bits(&nn::state_dict(b.0)));
        assert_eq!(a.0.noise, b.0.noise);
        let [x, y] =
            [a.1, b.1].map(|d| Checkpoint::load(d.join("checkpoint.safetensors")).unwrap());
        assert_eq!(bits(&x.model), bits(&y.model));
        assert_eq!(bits(&x.best), bits(&y.best));
        let moments = |c: &Checkpoint| {
            let floats = c.optimizer.iter().filter(|(n, _)| n.starts_with("exp"));
            bits(&floats.cloned().collect::<Vec<_>>())
        };
        assert_eq!(moments(&x), moments(&y));
        let (x, y) = (x.run, y.run);
        assert_eq!(x.generators, y.generators);
        for of in [
            |h: &History| h.loss_history.clone(),
            |h: &History| h.train_acc_history.clone(),
            |h: &History| h.val_acc_history.clone(),
            |h: &History| h.learning_rate_history.clone(),
        ] {
            let bits = |h| of(h).iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&x.history), bits(&y.history));
        }
        assert_eq!(x.history.epoch_steps, y.history.epoch_steps);
    }

    #[test]
    fn four_epochs_are_two_and_two_resumed() -> Result<()> {
        let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let (one, two) = (one.path(), two.path());
        let mut straight = Net::new("net");
        let mut solver = Solver::new(&mut straight, data(), config(one, 4))?;
        assert_eq!(solver.train()?, Outcome::Finished);
        assert_eq!(solver.history().loss_history.len(), 4 * (90 / 20));

        Solver::new(&mut Net::new("net"), data(), config(two, 2))?.train()?;
        let mut resumed = Net::new("net");
        let mut solver = Solver::new(&mut resumed, data(), config(two, 4))?;
        solver.resume(two.join("checkpoint.safetensors"))?;
        assert_eq!(solver.history().epochs, 2);
        assert_eq!(solver.train()?, Outcome::Finished);
        assert_same_run((&mut straight, one), (&mut resumed, two));
        Ok(())
    }

    #[test]
    fn a_run_stopped_within_an_epoch_goes_on_bit_for_bit() -> Result<()> {
        let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let (one, two) = (one.path(), two.path());
        let mut straight = Net::new("net");
        Solver::new(&mut straight, data(), config(one, 3))?.train()?;

        // the loss of the sixth step asks for a stop: after the second of the second epoch; validation's are no steps
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, steps) = (stop.clone(), std::sync::atomic::AtomicUsize::new(0));
        let softmax = softmax_loss(0.1);
        let loss: LossFn = Arc::new(move |scores, labels| {
            if is_grad_enabled() && steps.fetch_add(1, Ordering::Relaxed) == 5 {
                flag.store(true, Ordering::Relaxed);
            }
            softmax(scores, labels)
        });
        let mut net = Net::new("net");
        let solver = Solver::new(&mut net, data(), config(two, 3))?;
        let mut solver = solver.with_loss(loss).with_stop(stop);
        assert_eq!(solver.train()?, Outcome::Interrupted);
        assert_eq!((solver.history.loss_history.len(), solver.batch), (6, 2));

        let mut resumed = Net::new("net");
        let mut solver = Solver::new(&mut resumed, data(), config(two, 3))?;
        solver.resume(two.join("checkpoint.safetensors"))?;
        assert_eq!(solver.train()?, Outcome::Finished);
        assert_same_run((&mut straight, one), (&mut resumed, two));
        Ok(())
    }

    #[test]
    fn a_plateau_after_a_warm_up_is_resumed_bit_for_bit() -> Result<()> {
        let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let (one, two) = (one.path(), two.path());
        let config = |dir: &Path, epochs| SolverConfig {
            schedule: Schedule::Warmup {
                start_factor: 0.5,
                end_factor: 1.0,
                total_iters: 1,
                unit: Unit::Epoch,
                then: Box::new(Schedule::Plateau(Plateau {
                    // nothing is that much better
                    threshold: 0.9,
                    patience: 0,
                    ..Plateau::default()
                })),
            },
            lr_decay: 1.0,
            ..config(dir, epochs)
        };
        let mut straight = Net::new("net");
        let mut solver = Solver::new(&mut straight, data(), config(one, 5))?;
        solver.train()?;
        let rates = solver.history().learning_rate_history.clone();
        for (rate, expected) in rates.iter().zip([5e-4, 1e-3, 1e-3, 1e-4, 1e-5]) {
            assert!((rate - expected).abs() < 1e-15, "{rates:?}");
        }
        Solver::new(&mut Net::new("net"), data(), config(two, 3))?.train()?;
        let mut resumed = Net::new("net");
        let mut solver = Solver::new(&mut resumed, data(), config(two, 5))?;
        solver.resume(two.join("checkpoint.safetensors"))?;
        solver.train()?;
        assert_same_run((&mut straight, one), (&mut resumed, two));
        Ok(())
    }

    #[test]
    fn a_momentum_that_cycles_is_the_optimizers_and_is_resumed() -> Result<()> {
        let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let (one, two) = (one.path(), two.path());
        let schedule = Schedule::Cyclic(Cyclic {
            step_size_up: 3,
            ..Cyclic::new(1e-4, 1e-3)
        });
        let config = |dir: &Path, epochs| SolverConfig {
            update_rule: UpdateRule::SgdMomentum,
            schedule: schedule.clone(),
            ..config(dir, epochs)
        };
        let mut straight = Net::new("net");
        let mut solver = Solver::new(&mut straight, data(), config(one, 4))?;
        solver.train()?;
        // the last of 16 steps
        let last = Position {
            step: 15,
            ..Position::default()
        };
        let momentum = schedule.momentum(last);
        assert_eq!(solver.optimizer.momentum(), momentum);
        assert!(momentum.is_some_and(|m| m < 0.85), "{momentum:?}");

        Solver::new(&mut Net::new("net"), data(), config(two, 2))?.train()?;
        let mut resumed = Net::new("net");
        let mut solver = Solver::new(&mut resumed, data(), config(two, 4))?;
        solver.resume(two.join("checkpoint.safetensors"))?;
        solver.train()?;
        assert_same_run((&mut straight, one), (&mut resumed, two));
        Ok(())
    }

    #[test]
    fn a_plateau_of_mode_min_watches_the_validation_loss() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let config = SolverConfig {
            schedule: Schedule::Plateau(Plateau::default()),
            batch_size: 30,
            ..config(dir.path(), 1)
        };
        let mut net = Net::new("net");
        let mut solver = Solver::new(&mut net, data(), config)?;
        solver.train()?;
        let watched = solver.schedule.best.unwrap();
        // all images at once, where the Solver has 30 and 10
        let SolverData { val, normalize, .. } = data();
        let all = Loader::new(val, &normalize, Augment::none(), 40, 0, false, false)?;
        let (images, labels) = all.epoch_on(Device::Cpu, 0, 0).next().unwrap()?.tensors()?;
        let loss = softmax_loss(0.1)(&net.forward(&images, Mode::Eval)?, &labels)?.item()?;
        assert!((watched - loss).abs() < 1e-6, "{watched} {loss}");
        Ok(())
    }

    #[test]
    fn a_checkpoint_without_the_newer_settings_has_their_defaults() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        Solver::new(&mut Net::new("net"), data(), config(dir.path(), 1))?.train()?;
        let mut saved = Checkpoint::load(&path)?;
        saved.run.settings["schedule"] =
            serde_json::json!({"step": {"step_size": 2, "gamma": 0.3}});
        saved.save(&path)?;
        let mut net = Net::new("net");
        let mut solver = Solver::new(&mut net, data(), config(dir.path(), 2))?;
        solver.resume(&path)?;
        assert_eq!(solver.history().epochs, 1);
        // what is no setting at all is named
        saved.run.settings["batch_size"] = "many".into();
        saved.save(&path)?;
        let e = solver.resume(&path).unwrap_err();
        assert!(
            matches!(&e, Error::Checkpoint { name, .. } if name == "settings"),
            "{e}"
        );
        Ok(())
    }

    #[test]
    fn ends_with_the_first_epoch_that_reaches_the_target() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let accuracies = |target_accuracy| -> Result<(Outcome, Vec<f64>)> {
            let data = SolverData {
                val: data().train,
                ..data()
            };
            let pixels = data.train.shape().iter().product();
            let affine = Linear::new(pixels, 10, true, &mut Generator::new(0))?;
            let mut net = Sequential::new().push(Flatten).push(affine);
            let config = SolverConfig {
                target_accuracy,
                reg: 0.0,
                ..config(dir.path(), 6)
            };
            let mut solver = Solver::new(&mut net, data, config)?;
            let outcome = solver.train()?;
            // asked again, it has nothing left to do
            assert_eq!(solver.train()?, outcome);
            Ok((outcome, solver.history().val_acc_history.clone()))
        };
        let (outcome, all) = accuracies(None)?;
        assert_eq!((outcome, all.len()), (Outcome::Finished, 6));
        let best = all.iter().copied().fold(0.0, f64::max);
        let first = all.iter().position(|&a| a == best).unwrap();
        assert!(first > 0, "{all:?}");
        let (outcome, until) = accuracies(Some(best))?;
        assert_eq!(outcome, Outcome::Reached);
        assert_eq!(until, all[..=first]);
        // gone on from with a target that an epoch before the last one had reached
        let lower = SolverConfig {
            target_accuracy: Some(all[0].min(all[1])),
            ..config(dir.path(), 6)
        };
        let pixels = data().train.shape().iter().product();
        let affine = Linear::new(pixels, 10, true, &mut Generator::new(0))?;
        let mut net = Sequential::new().push(Flatten).push(affine);
        let same = SolverData {
            val: data().train,
            ..data()
        };
        let lower = SolverConfig { reg: 0.0, ..lower };
        let mut solver = Solver::new(&mut net, same, lower)?;
        solver.resume(dir.path().join("checkpoint.safetensors"))?;
        assert_eq!(solver.train()?, Outcome::Reached);
        assert_eq!(solver.history().epochs, first + 1);
        Ok(())
    }

    #[test]
    fn the_model_ends_with_the_best_parameters() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let mut net = Net::new("net");
        let config = SolverConfig {
            patience: Some(2),
            // far too fast: it gets worse
            optim_config: OptimConfig {
                learning_rate: Some(0.3),
                ..OptimConfig::default()
            },
            ..config(dir.path(), 40)
        };
        let mut solver = Solver::new(&mut net, data(), config)?;
        assert_eq!(solver.train()?, Outcome::StoppedEarly);
        let (history, val) = (solver.history().clone(), data().val);
        assert_eq!(history.epochs, history.best_epoch + 2);
        assert_eq!(solver.check_accuracy(&val, None)?, history.best_val_acc);
        let best = bits(solver.best_params());
        solver.report(Some(&val))?;
        let saved = History::load(dir.path())?;
        assert_eq!(saved.test_acc, Some(history.best_val_acc));
        assert!(saved.train_acc.is_some());
        assert_eq!(bits(&nn::state_dict(&mut net)), best);
        let mut read = Net::new("other");
        checkpoint::load_state_dict_file(dir.path().join("best.safetensors"), &mut read)?;
        assert_eq!(bits(&nn::state_dict(&mut read)), best);
        Ok(())
    }

    #[test]
    fn it_learns() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        // every tenth pixel is bright, from the label on: what a linear model can tell
        let labels: Vec<u8> = (0..60).map(|i| i % 10).collect();
        let bright = |i: usize, label: u8| if i % 10 == label as usize { 160 } else { 90 };
        let image = |&label: &u8| {
            (0..3072)
                .map(move |i| bright(i, label))
                .collect::<Vec<u8>>()
        };
        let images = labels.iter().flat_map(image).collect();
        let train = Dataset::new("stripes", images, labels, [3, 32, 32], &["class"; 10])?;
        let easy = SolverData {
            val: train.range(0..20)?,
            train,
            augment: Augment::none(),
            ..data()
        };
        let mut net = Net::new("net");
        let config = SolverConfig {
            optim_config: OptimConfig {
                learning_rate: Some(1e-2),
                ..OptimConfig::default()
            },
            schedule: Schedule::Constant,
            label_smoothing: 0.0,
            reg: 0.0,
            ..config(dir.path(), 6)
        };
        let mut solver = Solver::new(&mut net, easy, config)?;
        solver.train()?;
        let h = solver.history();
        let losses = h.epoch_losses();
        assert!(h.loss_history[0] > 2.2 && losses[5] < 1.0, "{losses:?}");
        assert_eq!((h.best_val_acc, h.train_acc_history[5]), (1.0, 1.0));
        Ok(())
    }

    #[test]
    fn a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let (steps, softmax) = (std::sync::atomic::AtomicUsize::new(0), softmax_loss(0.0));
        let loss: LossFn = Arc::new(move |scores, labels| {
            let step = steps.fetch_add(is_grad_enabled().into(), Ordering::Relaxed);
            softmax(scores, labels)?.mul_scalar(if step == 6 { f64::NAN } else { 1.0 })
        });
        let mut net = Net::new("net");
        let mut solver = Solver::new(&mut net, data(), config(dir.path(), 3))?.with_loss(loss);
        let e = solver.train().unwrap_err();
        assert!(
            matches!(e, Error::NonFinite { step: 6, loss } if loss.is_nan()),
            "{e}"
        );
        assert_eq!(History::load(dir.path())?.loss_history.len(), 7);
        let saved = Checkpoint::load(dir.path().join("checkpoint.safetensors"))?;
        assert_eq!(saved.run.history.loss_history.len(), 4);
        assert!(net.w.to_vec::<f32>()?.iter().all(|x| x.is_finite()));
        Ok(())
    }

    #[test]
    fn a_checkpoint_of_something_else_is_refused_and_nothing_changes() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        Solver::new(&mut Net::new("net"), data(), config(dir.path(), 1))?.train()?;
        let refused = |net: &mut Net, data: SolverData, change: fn(&mut SolverConfig)| {
            let before = bits(&nn::state_dict(net));
            let mut c = config(dir.path(), 2);
            change(&mut c);
            let mut solver = Solver::new(net, data, c).unwrap();
            let e = solver.resume(&path).unwrap_err();
            assert_eq!(solver.history().epochs, 0);
            assert_eq!(bits(&nn::state_dict(net)), before);
            match e {
                Error::Checkpoint { path: p, name, .. } if p == path => name,
                e => panic!("{e}"),
            }
        };
        let same = |_: &mut SolverConfig| {};
        let net = || Net::new("net");
        assert_eq!(refused(&mut Net::new("other"), data(), same), "model");
        let mut wide = net();
        wide.b = Tensor::zeros([11], DType::F32)?.requires_grad();
        assert_eq!(refused(&mut wide, data(), same), "model.b");
        let fewer = SolverData {
            train: synthetic(0, 0, 60),
            ..data()
        };
        assert_eq!(refused(&mut net(), fewer, same), "data");
        let scaled = SolverData {
            normalize: Normalize::mean_image(&synthetic(0, 0, 70))?,
            ..data()
        };
        assert_eq!(refused(&mut net(), scaled, same), "data");
        assert_eq!(refused(&mut net(), data(), |c| c.seed = 5), "seed");
        assert_eq!(refused(&mut net(), data(), |c| c.reg = 0.2), "reg");
        // one cycle of one epoch cannot become one of two
        let cycle: fn(&mut SolverConfig) = |c| {
            c.schedule = Schedule::OneCycle(OneCycle {
                cycle_momentum: false,
                ..OneCycle::default()
            })
        };
        let mut c = config(dir.path(), 1);
        cycle(&mut c);
        Solver::new(&mut net(), data(), c)?.train()?;
        assert_eq!(refused(&mut net(), data(), cycle), "num_epochs");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        assert_eq!(refused(&mut net(), data(), same), "header");
        std::fs::remove_file(&path).unwrap();
        let mut net = net();
        let mut solver = Solver::new(&mut net, data(), config(dir.path(), 2))?;
        assert!(matches!(solver.resume(&path), Err(Error::Io { .. })));
        Ok(())
    }

    #[test]
    fn images_of_two_sizes_are_refused_before_an_epoch() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let cut = || SolverData {
            augment: Augment {
                transforms: vec![Transform::random_crop([24, 24], 0)],
                ..Augment::none()
            },
            normalize: Normalize::per_channel(&data().train).unwrap(),
            ..data()
        };
        let mut net = Net::new("net");
        let e = Solver::new(&mut net, cut(), config(dir.path(), 1))?.train();
        assert_eq!(
            e.unwrap_err().to_string(),
            "configuration: evaluation: training makes images of [3, 24, 24], those to judge by \
             are of [3, 32, 32]; expected `with_evaluation` to say what becomes of them"
        );
        let mut net = Net::new("net");
        let middle = vec![Transform::CenterCrop { size: [24, 24] }];
        let solver = Solver::new(&mut net, cut(), config(dir.path(), 1))?;
        // now it is the model that wants 32 x 32
        let e = solver.with_evaluation(middle)?.train().unwrap_err();
        assert!(matches!(e, Error::Shape { .. }), "{e}");
        Ok(())
    }

    #[test]
    fn settings_without_sense_are_refused_before_anything_runs() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |change: fn(&mut SolverConfig)| {
            let mut c = config(dir.path(), 1);
            change(&mut c);
            match Solver::new(&mut Net::new("net"), data(), c).err() {
                Some(Error::Config { key, .. }) => key,
                e => panic!("{e:?}"),
            }
        };
        assert_eq!(refused(|c| c.batch_size = 0), "batch_size");
        assert_eq!(refused(|c| c.batch_size = 91), "batch_size");
        assert_eq!(refused(|c| c.num_epochs = 0), "num_epochs");
        assert_eq!(refused(|c| c.num_epochs = usize::MAX), "num_epochs");
        assert_eq!(refused(|c| c.reg = -1.0), "reg");
        assert_eq!(refused(|c| c.lr_decay = f64::NAN), "lr_decay");
        assert_eq!(refused(|c| c.label_smoothing = 1.5), "label_smoothing");
        assert_eq!(refused(|c| c.loss = Loss::Mse), "label_smoothing");
        assert_eq!(refused(|c| c.optim_config.beta1 = Some(-0.1)), "beta1");
        assert_eq!(refused(|c| c.patience = Some(0)), "patience");
        let key = "target_accuracy";
        assert_eq!(refused(|c| c.target_accuracy = Some(80.0)), key);
        assert_eq!(refused(|c| c.target_accuracy = Some(f64::NAN)), key);
        // four steps an epoch
        let long: fn(&mut SolverConfig) = |c| {
            c.schedule = Schedule::WarmupCosine {
                warmup_steps: 5,
                eta_min: 0.0,
            }
        };
        assert_eq!(refused(long), "warmup_steps");
        let cycle: fn(&mut SolverConfig) = |c| {
            c.update_rule = UpdateRule::Sgd;
            c.schedule = Schedule::OneCycle(OneCycle::default());
        };
        assert_eq!(refused(cycle), "cycle_momentum");
        assert!(!dir.path().join("checkpoint.safetensors").exists());
        assert!("momentum".parse::<UpdateRule>().is_err());
    }

    #[test]
    fn settings_go_through_json_under_the_courses_names() {
        let json = r#"{"update_rule": "rmsprop", "optim_config": {"learning_rate": 0.01},
            "lr_decay": 0.95, "schedule": {"step": {"step_size": 5, "gamma": 0.5}}}"#;
        let c: SolverConfig = serde_json::from_str(json).unwrap();
        assert_eq!(c.update_rule, UpdateRule::RmsProp);
        assert_eq!((c.batch_size, c.num_epochs, c.print_every), (100, 10, 10));
        let again = serde_json::to_string(&c).unwrap();
        assert_eq!(serde_json::from_str::<SolverConfig>(&again).unwrap(), c);
        assert!(serde_json::from_str::<SolverConfig>(r#"{"learning_rate": 1}"#).is_err());
        for rule in ["sgd", "sgd_momentum", "rmsprop", "adam", "adamw"] {
            let parsed: UpdateRule = rule.parse().unwrap();
            assert_eq!(serde_json::json!(parsed), rule);
        }
    }
}
