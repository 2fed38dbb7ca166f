//! What a person sees of a download: a bar in a terminal, lines elsewhere.

use std::fmt::Display;
use std::io::{IsTerminal, Write, stderr};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::FetchEvent;

/// Shows the events of [`fetch`](super::fetch) on standard error; the bar goes when this is dropped.
pub struct FetchBar {
    /// In a terminal.
    bar: Option<ProgressBar>,
    /// What the bar, or the last line, is of.
    of: String,
    /// The tenth that was told last.
    tenth: u64,
}

/// What a bar shows beside itself.
const BYTES: &str = "{msg} [{wide_bar}] {bytes} of {total_bytes} {bytes_per_sec} eta {eta}";
const FILES: &str = "{msg} [{wide_bar}] {pos} of {len} files";

impl Default for FetchBar {
    fn default() -> Self {
        Self::new()
    }
}

impl FetchBar {
    /// A bar if standard error is a terminal, else lines.
    pub fn new() -> Self {
        FetchBar {
            bar: stderr().is_terminal().then(ProgressBar::no_length),
            of: String::new(),
            tenth: 0,
        }
    }

    /// Show an event.
    pub fn show(&mut self, event: FetchEvent) {
        match event {
            FetchEvent::Line(line) => self.line(&line),
            FetchEvent::Bytes { file, done, total } => self.progress(file, BYTES, done, total),
            FetchEvent::Files {
                archive,
                done,
                total,
            } => self.progress(&format!("unpacking {archive}"), FILES, done, total),
        }
    }

    fn line(&self, text: &str) {
        // a closed pipe must not end the work
        let print = || drop(writeln!(stderr().lock(), "{text}"));
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn progress(&mut self, of: &str, template: &str, done: u64, total: Option<u64>) {
        let begins = self.of != of;
        if begins {
            self.of = of.to_string();
            self.tenth = 0;
        }
        let Some(bar) = &self.bar else {
            let total = total.unwrap_or(0);
            let tenth = (done * 10).checked_div(total).unwrap_or(0);
            if tenth > self.tenth {
                self.tenth = tenth;
                self.line(&tenth_line(of, template == BYTES, tenth, total));
            }
            return;
        };
        if begins {
            // the template is a constant that parses; were it not, the default bar would do
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("=> "));
            bar.set_message(of.to_string());
            bar.set_position(done);
            // what earlier runs fetched tells nothing of this one's speed
            bar.reset_eta();
        }
        match total {
            Some(total) => bar.set_length(total),
            None => bar.unset_length(),
        }
        bar.set_position(done);
    }
}

impl Drop for FetchBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn tenth_line(of: &str, bytes: bool, tenth: u64, total: u64) -> String {
    let line = |all: &dyn Display| format!("{of}: {} % of {all}", tenth * 10);
    match bytes {
        true => line(&HumanBytes(total)),
        false => line(&format_args!("{total} files")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenths_are_told_once_and_anew_for_each_file() {
        let mut bar = FetchBar {
            bar: None,
            of: String::new(),
            tenth: 0,
        };
        let mut tenth = |file, done, total| {
            bar.show(FetchEvent::Bytes { file, done, total });
            bar.tenth
        };
        assert_eq!(tenth("a", 99, Some(1000)), 0);
        assert_eq!(tenth("a", 450, Some(1000)), 4);
        assert_eq!(tenth("a", 460, Some(1000)), 4);
        assert_eq!(tenth("b", 1, None), 0);
        // a server that says 0 and sends something
        assert_eq!(tenth("b", 1, Some(0)), 0);
        assert_eq!(tenth_line("a", true, 3, 2048), "a: 30 % of 2.00 KiB");
        assert_eq!(tenth_line("a", false, 10, 7), "a: 100 % of 7 files");
    }
}
