//! The one error type. Texts name the op, the shapes and what was expected; tests pin them.

use std::path::{Path, PathBuf};

use crate::dtype::DType;
use crate::shape::Shape;

/// What can go wrong, anywhere in the crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes that do not fit an op. `why` holds the shapes in words.
    #[error("{op}: {why}")]
    Shape {
        /// The op that refused.
        op: &'static str,
        /// The shapes it was given, in the order of its inputs.
        shapes: Vec<Shape>,
        /// What was expected.
        why: String,
    },
    /// An axis outside of the tensor's rank.
    #[error("{op}: axis {axis} is out of range for rank {rank}")]
    Axis {
        /// The op that refused.
        op: &'static str,
        /// The axis as given; negative counts from the end.
        axis: isize,
        /// The tensor's number of axes.
        rank: usize,
    },
    /// An index outside of an axis.
    #[error("{op}: index {index} is out of range for an axis of size {size}")]
    Index {
        /// The op that refused.
        op: &'static str,
        /// The index as given.
        index: i64,
        /// The axis's size.
        size: usize,
    },
    /// A dtype that the op does not take.
    #[error("{op}: expected {expected} but got {got}")]
    DType {
        /// The op that refused.
        op: &'static str,
        /// What it takes, in words.
        expected: &'static str,
        /// What it was given.
        got: DType,
    },
    /// Tensors of two devices in one op.
    #[error("{op}: inputs are on {a} and {b}")]
    Device {
        /// The op that refused.
        op: &'static str,
        /// The first input's device.
        a: String,
        /// Another input's device.
        b: String,
    },
    /// An op's setting that makes no sense (a probability over 1, a kernel of size 0).
    #[error("{op}: {why}")]
    Argument {
        /// The op that refused.
        op: &'static str,
        /// The setting and what was expected.
        why: String,
    },
    /// `backward` through a node whose saved state an earlier `backward` took.
    #[error(
        "backward: the graph was freed by an earlier backward (at {op}); run forward again, or add the losses before one backward"
    )]
    GraphFreed {
        /// The op whose saved state is gone.
        op: &'static str,
    },
    /// `backward` on a tensor that depends on nothing that requires a gradient.
    #[error(
        "backward: no input requires a gradient (requires_grad was not set, or no_grad was on)"
    )]
    NoGraph,
    /// `backward` or `item` on a tensor of more than one element.
    #[error("{op}: needs a tensor of one element but got {shape:?}")]
    NotScalar {
        /// `backward` or `item`.
        op: &'static str,
        /// The tensor's shape.
        shape: Vec<usize>,
    },
    /// An op's backward returned a gradient of the wrong shape: a bug in that op.
    #[error("{op}: backward gave gradient {got:?} for input {input} of shape {expected:?}")]
    Gradient {
        /// The op with the bug.
        op: &'static str,
        /// Which input.
        input: usize,
        /// The input's shape.
        expected: Vec<usize>,
        /// The gradient's shape.
        got: Vec<usize>,
    },
    /// No usable CUDA device.
    #[error("no CUDA device: {why}")]
    NoCuda {
        /// What is missing.
        why: String,
    },
    /// A CUDA call or kernel that failed. After a kernel's fault the device's context is lost: every
    /// later call on that device fails in the same way until the process ends.
    #[error("cuda: {what}: {why}")]
    Cuda {
        /// The kernel or the driver's call.
        what: String,
        /// What happened.
        why: String,
    },
    /// The device has no memory left for a tensor.
    #[error("out of memory: asked for {asked} bytes, {held} held, {free} free")]
    OutOfMemory {
        /// Bytes asked for.
        asked: usize,
        /// Bytes that the allocator holds.
        held: usize,
        /// Bytes that the device has free.
        free: usize,
    },
    /// A file of a data set that is not what it should be.
    #[error("{}: {why}{}", path.display(), at(*offset))]
    Data {
        /// The file or folder.
        path: PathBuf,
        /// The byte offset, where one is to blame.
        offset: Option<u64>,
        /// What was found and what was expected.
        why: String,
    },
    /// A file that a server does not give as it was published.
    #[error("{url}: {why}{}", at(*offset))]
    Fetch {
        /// The file's address.
        url: String,
        /// The byte that did not come, where one is to blame.
        offset: Option<u64>,
        /// What was answered and what was expected.
        why: String,
    },
    /// A checkpoint that cannot be loaded.
    #[error("checkpoint {}: {name}: {why}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// The entry to blame.
        name: String,
        /// What was found and what was expected.
        why: String,
    },
    /// A configuration that makes no sense.
    #[error("configuration: {key}: {why}")]
    Config {
        /// The key to blame.
        key: &'static str,
        /// What was given and what was expected.
        why: String,
    },
    /// The loss became NaN or infinite.
    #[error("the loss is {loss} at step {step}; lower the learning rate or check the data")]
    NonFinite {
        /// The step, from 0.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// The operating system refused to read or write.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

fn at(offset: Option<u64>) -> String {
    offset.map_or(String::new(), |o| format!(" (at byte {o})"))
}

/// A result with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Shape`] of `op`.
    pub fn shape(op: &'static str, shapes: &[Shape], why: impl Into<String>) -> Self {
        Error::Shape {
            op,
            shapes: shapes.to_vec(),
            why: why.into(),
        }
    }

    /// An [`Error::Device`] of `op`.
    pub fn devices(op: &'static str, a: impl ToString, b: impl ToString) -> Self {
        Error::Device {
            op,
            a: a.to_string(),
            b: b.to_string(),
        }
    }

    /// An [`Error::Argument`] of `op`.
    pub fn argument(op: &'static str, why: impl Into<String>) -> Self {
        Error::Argument {
            op,
            why: why.into(),
        }
    }

    /// An [`Error::Config`] of `key`.
    pub fn config(key: &'static str, why: impl Into<String>) -> Self {
        Error::Config {
            key,
            why: why.into(),
        }
    }

    /// An [`Error::Data`] of a whole file.
    pub fn data(path: impl AsRef<Path>, why: impl Into<String>) -> Self {
        Error::Data {
            path: path.as_ref().to_path_buf(),
            offset: None,
            why: why.into(),
        }
    }

    /// An [`Error::Data`] at a byte offset.
    pub fn data_at(path: impl AsRef<Path>, offset: u64, why: impl Into<String>) -> Self {
        Error::Data {
            path: path.as_ref().to_path_buf(),
            offset: Some(offset),
            why: why.into(),
        }
    }

    /// An [`Error::Fetch`] of a whole file.
    pub fn fetch(url: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Fetch {
            url: url.into(),
            offset: None,
            why: why.into(),
        }
    }

    /// For `map_err` on a file operation.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, source }
    }
}
