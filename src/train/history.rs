//! What a training run was and how it went, as JSON and as a table.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};
use crate::train::events::save_events;
use crate::train::files::write_atomic;

/// The record of a training run; accuracies are fractions, times are seconds.
///
/// In JSON a loss that is not finite is `null`, and `null` reads back as NaN.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// The run's settings, whatever they are.
    pub config: serde_json::Value,
    /// The device that trained.
    pub device: String,
    /// Epochs that ended.
    pub epochs: usize,
    /// Steps of each epoch that ended.
    pub epoch_steps: Vec<usize>,
    /// Loss of each step.
    #[serde(deserialize_with = "nulls_are_nan")]
    pub loss_history: Vec<f64>,
    /// Training accuracy after each epoch.
    #[serde(deserialize_with = "nulls_are_nan")]
    pub train_acc_history: Vec<f64>,
    /// Validation accuracy after each epoch.
    #[serde(deserialize_with = "nulls_are_nan")]
    pub val_acc_history: Vec<f64>,
    /// Validation loss after each epoch, without penalties.
    #[serde(deserialize_with = "nulls_are_nan")]
    pub val_loss_history: Vec<f64>,
    /// Learning rate of each epoch.
    #[serde(deserialize_with = "nulls_are_nan")]
    pub learning_rate_history: Vec<f64>,
    /// Duration of each epoch.
    #[serde(deserialize_with = "nulls_are_nan")]
    pub epoch_seconds: Vec<f64>,
    /// The best validation accuracy so far.
    #[serde(deserialize_with = "null_is_nan")]
    pub best_val_acc: f64,
    /// The least validation loss so far, of a model that is judged by it in place of accuracies.
    pub best_val_loss: Option<f64>,
    /// The epoch that reached the best of them, from 1; 0 before the first epoch ended.
    pub best_epoch: usize,
    /// Training accuracy of the best parameters, at the end.
    pub train_acc: Option<f64>,
    /// Validation accuracy of the best parameters, at the end.
    pub val_acc: Option<f64>,
    /// Test accuracy of the best parameters, at the end.
    pub test_acc: Option<f64>,
    /// The most bytes that tensors held on the device at once, since a run's training began or went on, with
    /// a stage before; 0 before its end, and of that stage alone.
    pub memory: usize,
    /// Duration of all epochs.
    #[serde(deserialize_with = "null_is_nan")]
    pub seconds: f64,
}

impl History {
    /// A run that has not begun.
    pub fn new(config: serde_json::Value, device: impl Into<String>) -> Self {
        History {
            config,
            device: device.into(),
            ..Self::default()
        }
    }

    /// Close an epoch: its steps are the losses pushed since the epoch before. Whether this is
    /// the best validation accuracy so far.
    pub fn end_epoch(
        &mut self,
        [train_acc, val_acc]: [f64; 2],
        val_loss: f64,
        learning_rate: f64,
        seconds: f64,
    ) -> bool {
        self.train_acc_history.push(train_acc);
        self.val_acc_history.push(val_acc);
        // a run of an earlier version has none of its first epochs
        self.val_loss_history.resize(self.epochs, f64::NAN);
        self.val_loss_history.push(val_loss);
        let best = self.best_epoch == 0 || val_acc > self.best_val_acc;
        if best {
            self.best_val_acc = val_acc;
        }
        self.close_epoch(best, learning_rate, seconds)
    }

    /// The same for a model that is judged by its loss; whether it is the least so far.
    pub fn end_epoch_by_loss(&mut self, val_loss: f64, learning_rate: f64, seconds: f64) -> bool {
        self.val_loss_history.push(val_loss);
        // any number is less than a loss that was none
        let least = self.best_val_loss.filter(|l| !l.is_nan());
        let best = self.best_epoch == 0 || val_loss < least.unwrap_or(f64::INFINITY);
        if best {
            self.best_val_loss = Some(val_loss);
        }
        self.close_epoch(best, learning_rate, seconds)
    }

    /// Whether it is of a model that has no accuracies.
    pub(super) fn is_judged_by_loss(&self) -> bool {
        self.val_acc_history.is_empty() && !self.val_loss_history.is_empty()
    }

    fn close_epoch(&mut self, best: bool, learning_rate: f64, seconds: f64) -> bool {
        let steps_before: usize = self.epoch_steps.iter().sum();
        self.epoch_steps
            .push(self.loss_history.len().saturating_sub(steps_before));
        self.learning_rate_history.push(learning_rate);
        self.epoch_seconds.push(seconds);
        self.seconds += seconds;
        self.epochs += 1;
        if best {
            self.best_epoch = self.epochs;
        }
        best
    }

    /// Mean loss of each epoch; NaN for an epoch without a step.
    pub fn epoch_losses(&self) -> Vec<f64> {
        let mut rest = &self.loss_history[..];
        self.epoch_steps
            .iter()
            .map(|&steps| {
                let (epoch, after) = rest.split_at(steps.min(rest.len()));
                rest = after;
                epoch.iter().sum::<f64>() / epoch.len() as f64
            })
            .collect()
    }

    /// Write `history.json` (all of it), `history.csv` (a line per epoch), each atomically, and
    /// TensorBoard's events ([`save_events`]) into the folder `dir`.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        write_atomic(dir.join("history.json"), |w| {
            serde_json::to_writer_pretty(&mut *w, self)?;
            w.write_all(b"\n")
        })?;
        write_atomic(dir.join("history.csv"), |w| self.write_csv(w))?;
        save_events(dir, self)
    }

    /// Read `history.json` of the folder `dir`; [`Error::Data`] where it is not one.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let path = dir.as_ref().join("history.json");
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        serde_json::from_slice(&text).map_err(|e| Error::data(&path, e.to_string()))
    }

    fn write_csv(&self, w: &mut dyn Write) -> std::io::Result<()> {
        let losses = self.epoch_losses();
        let mut columns = vec![("loss", &losses)];
        if !self.is_judged_by_loss() {
            columns.extend([
                ("train_acc", &self.train_acc_history),
                ("val_acc", &self.val_acc_history),
            ]);
        }
        columns.extend([
            ("val_loss", &self.val_loss_history),
            ("learning_rate", &self.learning_rate_history),
            ("seconds", &self.epoch_seconds),
        ]);
        let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        writeln!(w, "epoch,{}", names.join(","))?;
        for epoch in 0..self.epochs {
            write!(w, "{}", epoch + 1)?;
            for (_, column) in &columns {
                match column.get(epoch) {
                    Some(x) if x.is_finite() => write!(w, ",{x}")?,
                    _ => write!(w, ",")?,
                }
            }
            writeln!(w)?;
        }
        Ok(())
    }
}

/// JSON has no NaN and no infinity: serde_json writes them as `null`, which a plain `f64` would not read.
pub(super) fn null_is_nan<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or(f64::NAN))
}

fn nulls_are_nan<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Vec<f64>, D::Error> {
    let values: Vec<Option<f64>> = Deserialize::deserialize(d)?;
    Ok(values.into_iter().map(|x| x.unwrap_or(f64::NAN)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_epochs() -> History {
        let mut h = History::new(serde_json::json!({"batch_size": 50, "reg": 0.5}), "cpu");
        h.loss_history = vec![2.5, 1.5, 1.0];
        assert!(h.end_epoch([0.25, 0.5], 1.25, 1e-3, 2.0));
        h.loss_history.extend([0.75, f64::NAN, f64::INFINITY]);
        assert!(!h.end_epoch([0.75, 0.5], f64::NAN, 5e-4, 3.5));
        h.test_acc = Some(0.625);
        h
    }

    #[test]
    fn epochs_are_closed_and_the_first_best_is_kept() {
        let h = two_epochs();
        assert_eq!((h.epochs, h.best_epoch, h.best_val_acc), (2, 1, 0.5));
        assert_eq!(h.epoch_steps, [3, 3]);
        assert_eq!(h.seconds, 5.5);
        assert_eq!(h.epoch_losses()[0], 5.0 / 3.0);
        assert!(h.epoch_losses()[1].is_nan());
    }

    #[test]
    fn a_validation_accuracy_of_zero_is_still_a_best() {
        let mut h = History::default();
        assert!(h.end_epoch([0.0, 0.0], 2.3, 0.1, 1.0));
        assert_eq!(h.best_epoch, 1);
        assert!(h.epoch_losses()[0].is_nan(), "no step");
    }

    #[test]
    fn a_model_judged_by_its_loss_has_the_least_as_its_best() {
        let mut h = History::default();
        let better = [f64::NAN, 0.5, f64::NAN, 0.75, 0.25].map(|loss| {
            h.loss_history.push(2.0 * loss);
            h.end_epoch_by_loss(loss, 0.1, 1.0)
        });
        assert_eq!(better, [true, true, false, false, true]);
        assert_eq!((h.best_epoch, h.best_val_loss), (5, Some(0.25)));
        let mut csv = Vec::new();
        h.write_csv(&mut csv).unwrap();
        let csv = String::from_utf8(csv).unwrap();
        assert!(
            csv.starts_with(
                "epoch,loss,val_loss,learning_rate,seconds\n1,,,0.1,1\n2,1,0.5,0.1,1\n"
            )
        );
    }

    #[test]
    fn json_goes_there_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let h = two_epochs();
        h.save(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join("history.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["config"]["batch_size"], 50);
        assert_eq!(json["loss_history"][4], serde_json::Value::Null);
        assert_eq!(json["val_acc"], serde_json::Value::Null);
        assert_eq!(json["test_acc"], 0.625);

        let back = History::load(dir.path()).unwrap();
        assert_eq!(back.loss_history[..4], h.loss_history[..4]);
        assert!(back.loss_history[4].is_nan() && back.loss_history[5].is_nan());
        assert_eq!(back.config, h.config);
        assert_eq!(back.epoch_seconds, h.epoch_seconds);
        assert_eq!((back.train_acc, back.test_acc), (None, Some(0.625)));
    }

    #[test]
    fn a_run_without_validation_data_goes_there_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut h = History::default();
        h.end_epoch([0.5, f64::NAN], f64::NAN, 0.1, 1.0);
        h.save(dir.path()).unwrap();
        let back = History::load(dir.path()).unwrap();
        assert!(back.best_val_acc.is_nan() && back.val_acc_history[0].is_nan());
    }

    #[test]
    fn csv_has_a_line_per_epoch() {
        let dir = tempfile::tempdir().unwrap();
        two_epochs().save(dir.path()).unwrap();
        let csv = std::fs::read_to_string(dir.path().join("history.csv")).unwrap();
        let rows: Vec<Vec<&str>> = csv.lines().map(|l| l.split(',').collect()).collect();
        assert_eq!(
            rows[0],
            [
                "epoch",
                "loss",
                "train_acc",
                "val_acc",
                "val_loss",
                "learning_rate",
                "seconds"
            ]
        );
        assert_eq!(rows[1][0], "1");
        assert_eq!(rows[1][1].parse::<f64>().unwrap(), 5.0 / 3.0);
        assert_eq!(rows[1][2..], ["0.25", "0.5", "1.25", "0.001", "2"]);
        // the second epoch's losses are not numbers: empty cells
        assert_eq!(rows[2], ["2", "", "0.75", "0.5", "", "0.0005", "3.5"]);
        assert_eq!(rows.len(), 3);
    }

    #[test]
    fn losses_stand_at_their_epochs_where_an_earlier_version_kept_none() {
        let mut h = two_epochs();
        h.val_loss_history.clear();
        h.end_epoch([0.75, 0.5], 1.5, 5e-4, 1.0);
        assert!(h.val_loss_history[..2].iter().all(|l| l.is_nan()));
        assert_eq!(h.val_loss_history[2..], [1.5]);
    }

    #[test]
    fn an_empty_history_and_one_with_unknown_keys_load() {
        let dir = tempfile::tempdir().unwrap();
        History::default().save(dir.path()).unwrap();
        assert_eq!(History::load(dir.path()).unwrap().epochs, 0);
        std::fs::write(dir.path().join("history.json"), r#"{"later": 1}"#).unwrap();
        assert!(History::load(dir.path()).unwrap().loss_history.is_empty());
    }

    #[test]
    fn what_is_no_history_is_a_typed_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            History::load(dir.path()).unwrap_err(),
            Error::Io { .. }
        ));
        std::fs::write(dir.path().join("history.json"), r#"{"epochs": "#).unwrap();
        let e = History::load(dir.path()).unwrap_err();
        assert!(matches!(e, Error::Data { .. }), "{e}");
        let e = History::default()
            .save(dir.path().join("nowhere"))
            .unwrap_err();
        assert!(matches!(e, Error::Io { .. }), "{e}");
    }
}
