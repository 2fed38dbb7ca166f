//! What a person sees while a model trains: a bar in a terminal, lines in a log.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Seconds after which a step has lost most of its say in the throughput.
const MEMORY: f64 = 5.0;

/// The progress of a run. Where standard error is a terminal, a bar of the epoch's steps:
///
/// `epoch 3/10 [=====>   ] 210/490 loss 1.234 acc 56.7% 3120 img/s eta 00:12`
///
/// and elsewhere, every `print_every` steps, CS231n's `(Iteration 10 / 4900) loss: 2.301`.
pub struct Progress {
    output: Output,
    total_epochs: usize,
    steps_per_epoch: usize,
    print_every: usize,
    epoch: usize,
    /// Steps of this process: a resumed run begins at a later step.
    steps_here: usize,
    start: Instant,
    last_step: Instant,
    throughput: Throughput,
}

enum Output {
    Silent,
    Lines,
    Bar(ProgressBar),
}

impl Progress {
    /// Of a run of `total_epochs` epochs of `steps_per_epoch` steps. Lines come every
    /// `print_every` steps (0: never); not `verbose` prints nothing at all.
    pub fn new(
        total_epochs: usize,
        steps_per_epoch: usize,
        print_every: usize,
        verbose: bool,
    ) -> Self {
        let output = match (verbose, std::io::stderr().is_terminal()) {
            (false, _) => Output::Silent,
            (true, false) => Output::Lines,
            (true, true) => Output::Bar(bar(steps_per_epoch)),
        };
        let now = Instant::now();
        Progress {
            output,
            total_epochs,
            steps_per_epoch,
            print_every,
            epoch: 0,
            steps_here: 0,
            start: now,
            last_step: now,
            throughput: Throughput::default(),
        }
    }

    /// An epoch begins, the first being 1.
    pub fn epoch(&mut self, epoch: usize) {
        self.epoch = epoch;
        // evaluation between epochs is not a slow step
        self.last_step = Instant::now();
        if let Output::Bar(bar) = &self.output {
            bar.set_prefix(format!("epoch {epoch}/{}", self.total_epochs));
            bar.set_position(0);
        }
    }

    /// A step ended: its number in the whole run, the first being 1; its loss; the accuracy of
    /// the epoch so far as a fraction, NaN where there is none; and how many images it took.
    pub fn step(&mut self, step: usize, loss: f64, running_acc: f64, images_in_step: usize) {
        let now = Instant::now();
        self.throughput
            .update(images_in_step, (now - self.last_step).as_secs_f64());
        self.last_step = now;
        self.steps_here += 1;
        let total = self.total_epochs * self.steps_per_epoch;
        match &self.output {
            Output::Silent => {}
            Output::Lines => {
                if self.print_every > 0 && (step == 1 || step.is_multiple_of(self.print_every)) {
                    self.line(&iteration_line(step, total, loss));
                }
            }
            Output::Bar(bar) => {
                let left = time_left(
                    now - self.start,
                    self.steps_here,
                    total.saturating_sub(step),
                );
                bar.set_message(message(loss, running_acc, self.throughput.rate(), left));
                let before = self.epoch.saturating_sub(1) * self.steps_per_epoch;
                bar.set_position(step.saturating_sub(before) as u64);
            }
        }
    }

    /// Print a line to standard output, above the bar where there is one.
    pub fn line(&self, text: &str) {
        // a closed pipe (`| head`) must not end the training, as println! would
        let print = || drop(writeln!(std::io::stdout().lock(), "{text}"));
        match &self.output {
            Output::Silent => {}
            Output::Lines => print(),
            Output::Bar(bar) => bar.suspend(print),
        }
    }

    /// Take the bar away.
    pub fn finish(&self) {
        if let Output::Bar(bar) = &self.output {
            bar.finish_and_clear();
        }
    }
}

fn bar(steps: usize) -> ProgressBar {
    // the template is a constant that parses; were it not, the default bar would do
    let style = ProgressStyle::with_template("{prefix} [{wide_bar}] {pos}/{len} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(steps as u64).with_style(style.progress_chars("=> "))
}

/// CS231n's line.
fn iteration_line(step: usize, total: usize, loss: f64) -> String {
    format!("(Iteration {step} / {total}) loss: {loss:.3}")
}

/// What stands behind the bar.
fn message(loss: f64, acc: f64, images_per_second: f64, left: Option<Duration>) -> String {
    let acc = match acc.is_nan() {
        true => String::new(),
        false => format!(" acc {:.1}%", 100.0 * acc),
    };
    let left = clock(left);
    format!("loss {loss:.3}{acc} {images_per_second:.0} img/s eta {left}")
}

/// Minutes and seconds, with hours where there are any; `--:--` while unknown.
fn clock(left: Option<Duration>) -> String {
    let Some(left) = left else {
        return "--:--".into();
    };
    let s = left.as_secs();
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    if h > 0 {
        format!("{h}:{m:02}:{s:02}")
    } else {
        format!("{m:02}:{s:02}")
    }
}

/// Time for the steps that are left, had each the mean duration of those done (evaluation
/// between epochs included).
fn time_left(elapsed: Duration, done: usize, left: usize) -> Option<Duration> {
    let seconds = elapsed.as_secs_f64() / done as f64 * left as f64;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Images a second over the last few seconds: sums of images and of seconds, in which a step
/// counts exp(-age / MEMORY).
#[derive(Default)]
struct Throughput {
    images: f64,
    seconds: f64,
}

impl Throughput {
    fn update(&mut self, images: usize, seconds: f64) {
        let keep = (-seconds / MEMORY).exp();
        self.images = self.images * keep + images as f64;
        self.seconds = self.seconds * keep + seconds;
    }

    /// 0 before any time has passed.
    fn rate(&self) -> f64 {
        if self.seconds > 0.0 {
            self.images / self.seconds
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_as_expected() {
        assert_eq!(
            iteration_line(10, 4900, 2.3012),
            "(Iteration 10 / 4900) loss: 2.301"
        );
        assert_eq!(
            message(1.2341, 0.5672, 3120.4, Some(Duration::from_secs(12))),
            "loss 1.234 acc 56.7% 3120 img/s eta 00:12"
        );
        assert_eq!(
            message(0.5, f64::NAN, 10.0, None),
            "loss 0.500 10 img/s eta --:--"
        );
        assert_eq!(
            message(f64::NAN, 1.0, 0.0, None),
            "loss NaN acc 100.0% 0 img/s eta --:--"
        );
    }

    #[test]
    fn clocks_grow_hours_only_when_needed() {
        let of = |s| clock(Some(Duration::from_secs_f64(s)));
        assert_eq!(of(0.0), "00:00");
        assert_eq!(of(59.9), "00:59");
        assert_eq!(of(3599.0), "59:59");
        assert_eq!(of(3661.0), "1:01:01");
        assert_eq!(of(360_000.0), "100:00:00");
        assert_eq!(clock(None), "--:--");
    }

    #[test]
    fn time_left_is_the_mean_step_times_the_steps_left() {
        let ten = Duration::from_secs(10);
        assert_eq!(time_left(ten, 5, 20), Some(Duration::from_secs(40)));
        assert_eq!(time_left(ten, 5, 0), Some(Duration::ZERO));
        assert_eq!(time_left(ten, 0, 20), None);
        assert_eq!(time_left(Duration::ZERO, 0, 0), None);
    }

    #[test]
    fn throughput_follows_a_change_of_speed_smoothly() {
        let mut t = Throughput::default();
        assert_eq!(t.rate(), 0.0);
        t.update(100, 0.0);
        assert_eq!(t.rate(), 0.0, "no time has passed");

        let mut t = Throughput::default();
        for _ in 0..100 {
            t.update(100, 0.1);
            assert!((t.rate() - 1000.0).abs() < 1e-6, "{}", t.rate());
        }
        t.update(100, 0.2);
        assert!(t.rate() > 950.0, "one slow step: {}", t.rate());
        for _ in 0..500 {
            t.update(100, 0.2);
        }
        assert!((t.rate() - 500.0).abs() < 1.0, "{}", t.rate());
    }

    #[test]
    fn the_bar_follows_epochs_and_steps() {
        let mut p = Progress::new(2, 5, 0, false);
        p.output = Output::Bar(bar(5));
        p.epoch(2);
        p.step(8, 1.5, 0.25, 10);
        let Output::Bar(bar) = &p.output else {
            unreachable!()
        };
        assert_eq!(bar.prefix(), "epoch 2/2");
        assert_eq!((bar.position(), bar.length()), (3, Some(5)));
        assert!(
            bar.message().starts_with("loss 1.500 acc 25.0% "),
            "{}",
            bar.message()
        );
        p.finish();
        assert!(bar.is_finished());
    }

    #[test]
    fn odd_numbers_do_not_panic() {
        let mut p = Progress::new(0, 0, 0, false);
        p.step(7, f64::INFINITY, f64::NAN, 0);
        p.output = Output::Lines;
        p.step(1, 0.0, 0.0, 1);
        p.output = Output::Bar(bar(0));
        p.epoch(0);
        p.step(0, f64::NAN, 0.0, 1);
        p.finish();
    }
}
