//! A run's record as TensorBoard reads it: scalars in an events file.
//!
//! The file is a row of TFRecords (TensorFlow's `lib/io/record_writer.h`: length, masked CRC-32C of
//! the length, data, masked CRC-32C of the data), each of which is an `Event` in protobuf's wire
//! format (`tensorboard/compat/proto/event.proto` and `summary.proto`). The few fields that a scalar
//! takes are written by hand: the crates for it bring a protobuf library or an image library along.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::train::files::write_atomic;
use crate::train::history::History;

/// TensorBoard knows the file by `tfevents` in its name.
pub const EVENTS: &str = "events.out.tfevents.0.cotangent";

/// Write the file [`EVENTS`] into the folder `dir`.
///
/// By step, from 1: `loss/train`. By epoch, from 1: `loss/epoch` (the mean), `accuracy/train`,
/// `accuracy/val`, `learning_rate` and `seconds/epoch`. By the best epoch, once they are known:
/// `best/train`, `best/val` and `best/test`, the accuracies of its parameters. Accuracies are
/// fractions.
///
/// The bytes are a function of the history and of the time at which the run began, which the file
/// itself keeps. Where a file holds the first part of them, as while a run goes on, the rest is appended,
/// and a TensorBoard that has it open goes on; any other file is replaced by the whole. Either way,
/// a run that is resumed has each of its points once, and what a crash left half written is completed.
pub fn save_events(dir: impl AsRef<Path>, history: &History) -> Result<()> {
    let path = dir.as_ref().join(EVENTS);
    let old = std::fs::read(&path).unwrap_or_default();
    let bytes = events(history, start(&old, history));
    match bytes.strip_prefix(&old[..]) {
        Some(rest) if !old.is_empty() => {
            let file = OpenOptions::new().append(true).open(&path);
            file.and_then(|mut file| file.write_all(rest))
                .map_err(Error::io(&path))
        }
        _ => write_atomic(&path, |w| w.write_all(&bytes)),
    }
}

/// When the run began, in seconds since 1970: what the file's first event says, else the duration of
/// the epochs ago.
fn start(file: &[u8], history: &History) -> f64 {
    // behind length and sum of the record and the field's tag
    let said = file.get(13..).and_then(|rest| rest.first_chunk());
    let said = said.map(|bytes| f64::from_le_bytes(*bytes));
    let ours = |t: &f64| t.is_finite() && file.starts_with(&first(*t));
    said.filter(ours).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let spent = Some(history.seconds).filter(|s| s.is_finite());
        now.map_or(0.0, |now| now.as_secs_f64()) - spent.unwrap_or(0.0)
    })
}

/// The record that opens a file.
fn first(start: f64) -> Vec<u8> {
    record(&message(|event| {
        event.fixed64(1, start.to_bits());
        event.bytes(3, b"brain.Event:2");
    }))
}

/// All of the file. Steps have the time at which their epoch began, for when it will end is not known
/// in one that was stopped: what is written stays as it is when that goes on.
fn events(history: &History, start: f64) -> Vec<u8> {
    let mut out = first(start);
    let mut losses = (1..).zip(&history.loss_history);
    let mut time = start;
    let epochs = history.epoch_losses();
    for (i, &steps) in history.epoch_steps.iter().enumerate() {
        let at = |column: &[f64]| column.get(i).copied();
        for (number, &loss) in losses.by_ref().take(steps) {
            out.extend(scalars(time, number, &[("loss/train", Some(loss))]));
        }
        let seconds = at(&history.epoch_seconds).filter(|s| s.is_finite());
        time += seconds.unwrap_or(0.0);
        let values = [
            ("loss/epoch", at(&epochs)),
            ("loss/val", at(&history.val_loss_history)),
            ("accuracy/train", at(&history.train_acc_history)),
            ("accuracy/val", at(&history.val_acc_history)),
            ("learning_rate", at(&history.learning_rate_history)),
            ("seconds/epoch", at(&history.epoch_seconds)),
        ];
        out.extend(scalars(time, i + 1, &values));
    }
    // of an epoch that was stopped
    for (number, &loss) in losses {
        out.extend(scalars(time, number, &[("loss/train", Some(loss))]));
    }
    let best = [
        ("best/train", history.train_acc),
        ("best/val", history.val_acc),
        ("best/test", history.test_acc),
    ];
    if best.iter().any(|(_, value)| value.is_some()) {
        out.extend(scalars(time, history.best_epoch, &best));
    }
    out
}

/// A record of the values that there are.
fn scalars(time: f64, step: usize, values: &[(&str, Option<f64>)]) -> Vec<u8> {
    let summary = message(|summary| {
        for &(tag, value) in values {
            let Some(value) = value else { continue };
            let value = message(|v| {
                v.bytes(1, tag.as_bytes());
                v.fixed32(2, (value as f32).to_bits());
            });
            summary.bytes(1, &value);
        }
    });
    record(&message(|event| {
        event.fixed64(1, time.to_bits());
        event.varint(2, step as u64);
        event.bytes(5, &summary);
    }))
}

/// A protobuf message: each field is a key, the number and a kind, and its value.
struct Message(Vec<u8>);

fn message(fill: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message(Vec::new());
    fill(&mut message);
    message.0
}

impl Message {
    fn number(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.number(field << 3);
        self.number(value);
    }

    fn fixed64(&mut self, field: u64, bits: u64) {
        self.number(field << 3 | 1);
        self.0.extend(bits.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.number(field << 3 | 2);
        self.number(value.len() as u64);
        self.0.extend(value);
    }

    fn fixed32(&mut self, field: u64, bits: u32) {
        self.number(field << 3 | 5);
        self.0.extend(bits.to_le_bytes());
    }
}

/// A TFRecord.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let [of_length, of_data] = [&length, data].map(|d| masked(crc32c(d)).to_le_bytes());
    [&length[..], &of_length, data, &of_data].concat()
}

/// A sum that is stored beside what it is of (`lib/hash/crc32c.h`).
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Castagnoli's polynomial, its bits reversed (RFC 3720, appendix B.4), a byte at a time.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut crc, mut bit) = (i as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ ((crc & 1) * 0x82f6_3b78);
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

fn crc32c(data: &[u8]) -> u32 {
    let step = |crc: u32, &byte: &u8| (crc >> 8) ^ TABLE[((crc as u8) ^ byte) as usize];
    !data.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value as a reader finds it.
    #[derive(Debug, PartialEq)]
    struct Point {
        tag: String,
        step: u64,
        value: f32,
        time: f64,
    }

    /// The sum bit by bit, by its definition.
    fn slow_crc(data: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in data {
            crc ^= *byte as u32;
            for _ in 0..8 {
                let odd = crc & 1 == 1;
                crc >>= 1;
                if odd {
                    crc ^= 0x82f6_3b78;
                }
            }
        }
        !crc
    }

    fn unmasked(stored: &[u8]) -> u32 {
        let rotated = u32::from_le_bytes(stored.try_into().unwrap()).wrapping_sub(0xa282_ead8);
        rotated.rotate_left(15)
    }

    /// The fields of a message: number, kind and the value's bytes (a varint's as eight).
    fn fields(mut data: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
        fn varint(data: &mut &[u8]) -> u64 {
            let (mut n, mut shift) = (0, 0);
            loop {
                let byte = data[0];
                *data = &data[1..];
                n |= ((byte & 0x7f) as u64) << shift;
                shift += 7;
                if byte < 0x80 {
                    return n;
                }
            }
        }
        let mut found = Vec::new();
        while !data.is_empty() {
            let key = varint(&mut data);
            let size = match key & 7 {
                0 => {
                    let n = varint(&mut data);
                    found.push((key >> 3, 0, n.to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => varint(&mut data) as usize,
                5 => 4,
                kind => panic!("kind {kind}"),
            };
            let (value, rest) = data.split_at(size);
            found.push((key >> 3, key & 7, value.to_vec()));
            data = rest;
        }
        found
    }

    /// The points of a file, its sums checked.
    fn read(mut file: &[u8]) -> Vec<Point> {
        let mut records = Vec::new();
        while !file.is_empty() {
            let size = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            let (data, rest) = file[12..].split_at(size);
            assert_eq!(unmasked(&file[8..12]), slow_crc(&file[..8]));
            assert_eq!(unmasked(&rest[..4]), slow_crc(data));
            records.push(fields(data));
            file = &rest[4..];
        }
        let version = (3, 2, b"brain.Event:2".to_vec());
        assert_eq!(records[0][1..], [version]);
        let mut points = Vec::new();
        for event in &records[1..] {
            let [time, step, summary] = &event[..] else {
                panic!("{event:?}")
            };
            assert_eq!((time.0, time.1, step.0, step.1), (1, 1, 2, 0));
            assert_eq!((summary.0, summary.1), (5, 2));
            for (_, _, value) in fields(&summary.2) {
                let [tag, number] = &fields(&value)[..] else {
                    panic!("{value:?}")
                };
                assert_eq!((tag.0, tag.1, number.0, number.1), (1, 2, 2, 5));
                points.push(Point {
                    tag: String::from_utf8(tag.2.clone()).unwrap(),
                    step: u64::from_le_bytes(step.2[..].try_into().unwrap()),
                    value: f32::from_le_bytes(number.2[..].try_into().unwrap()),
                    time: f64::from_le_bytes(time.2[..].try_into().unwrap()),
                });
            }
        }
        points
    }

    /// (step, value) of a tag.
    fn of(points: &[Point], tag: &str) -> Vec<(u64, f32)> {
        let own = points.iter().filter(|p| p.tag == tag);
        own.map(|p| (p.step, p.value)).collect()
    }

    fn one_epoch() -> History {
        let mut h = History {
            loss_history: vec![2.5, 1.5],
            ..History::default()
        };
        h.end_epoch([0.25, 0.5], 1.75, 1e-3, 10.0);
        h
    }

    #[test]
    fn sums_are_those_of_the_standard() {
        // RFC 3720, B.4, and the check value of the catalogues
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        for (data, sum) in [
            (&[0; 32][..], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&ascending, 0x46dd_794e),
            (&descending, 0x113f_db5c),
            (b"123456789", 0xe306_9283),
            (b"", 0),
        ] {
            assert_eq!((crc32c(data), slow_crc(data)), (sum, sum));
        }
        assert_eq!(unmasked(&masked(0xe306_9283).to_le_bytes()), 0xe306_9283);
        // a length of over 127 takes two bytes
        let long = message(|m| m.bytes(1, &[7; 300]));
        assert_eq!(long[..3], [0x0a, 0xac, 0x02]);
        assert_eq!(fields(&long), [(1, 2, vec![7; 300])]);
    }

    #[test]
    fn all_of_a_history_is_read_back() {
        let mut h = one_epoch();
        h.loss_history.extend([1.0, f64::NAN, 0.5]);
        h.end_epoch([0.75, 0.25], 2.25, 5e-4, 6.0);
        h.loss_history.push(0.125);
        (h.train_acc, h.test_acc) = (Some(0.5), Some(0.375));
        let points = read(&events(&h, 1000.0));
        let losses = of(&points, "loss/train");
        assert_eq!(losses[..3], [(1, 2.5), (2, 1.5), (3, 1.0)]);
        assert!(losses[3].1.is_nan());
        assert_eq!(losses[4..], [(5, 0.5), (6, 0.125)]);
        assert_eq!(of(&points, "loss/epoch")[0], (1, 2.0));
        assert_eq!(of(&points, "loss/val"), [(1, 1.75), (2, 2.25)]);
        assert_eq!(of(&points, "accuracy/train"), [(1, 0.25), (2, 0.75)]);
        assert_eq!(of(&points, "accuracy/val"), [(1, 0.5), (2, 0.25)]);
        assert_eq!(of(&points, "learning_rate"), [(1, 1e-3), (2, 5e-4)]);
        assert_eq!(of(&points, "seconds/epoch"), [(1, 10.0), (2, 6.0)]);
        assert_eq!(of(&points, "best/train"), [(1, 0.5)]);
        assert_eq!(of(&points, "best/val"), []);
        assert_eq!(of(&points, "best/test"), [(1, 0.375)]);
        let times: Vec<f64> = points.iter().map(|p| p.time).collect();
        assert_eq!(times[..3], [1000.0, 1000.0, 1010.0]);
        assert!(times.is_sorted(), "{times:?}");
        assert_eq!(read(&events(&History::default(), 0.0)), []);
    }

    #[test]
    fn a_run_that_goes_on_appends_and_doubles_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(EVENTS);
        let bytes = || std::fs::read(&path).unwrap();
        let mut h = one_epoch();
        // stopped within the second epoch
        h.loss_history.push(1.0);
        save_events(dir.path(), &h).unwrap();
        let before = bytes();
        save_events(dir.path(), &h).unwrap();
        assert_eq!(bytes(), before);
        h.loss_history.push(0.5);
        h.end_epoch([0.75, 0.75], 1.25, 1e-3, 10.0);
        save_events(dir.path(), &h).unwrap();
        let whole = bytes();
        assert!(whole.starts_with(&before));
        assert_eq!(of(&read(&whole), "loss/train").len(), 4);
        // what a crash cut off comes back, wherever it was
        for length in [0, 5, 30, before.len() + 7] {
            std::fs::write(&path, &whole[..length]).unwrap();
            save_events(dir.path(), &h).unwrap();
            let points = read(&bytes());
            assert_eq!(of(&points, "loss/train").len(), 4, "{length}");
            assert_eq!(of(&points, "accuracy/val"), [(1, 0.5), (2, 0.75)]);
        }
        // a run resumed from an earlier epoch, and a file of something else
        save_events(dir.path(), &one_epoch()).unwrap();
        assert_eq!(of(&read(&bytes()), "loss/train"), [(1, 2.5), (2, 1.5)]);
        std::fs::write(&path, "not events, but longer than the first record is").unwrap();
        save_events(dir.path(), &one_epoch()).unwrap();
        assert_eq!(of(&read(&bytes()), "accuracy/val"), [(1, 0.5)]);
        let e = save_events(dir.path().join("nowhere"), &h).unwrap_err();
        assert!(e.to_string().contains(EVENTS), "{e}");
    }
}
