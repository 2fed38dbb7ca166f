//! What a CUDA device must be able to do: the small interface between the engine and the driver.

use crate::cuda::Gpu;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Memory of a device, as a kernel's argument.
#[derive(Clone, Copy, Debug)]
pub struct Pointer {
    /// Where it starts.
    pub address: u64,
    /// What lies there.
    pub dtype: DType,
    /// Whose memory it is; `None` is the CPU's, which no kernel takes.
    pub gpu: Option<Gpu>,
}

/// A kernel's argument. Its type must be the parameter's.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    /// `const T*`.
    In(Pointer),
    /// `T*`.
    Out(Pointer),
    /// `int`.
    I32(i32),
    /// `unsigned`.
    U32(u32),
    /// `long long`.
    I64(i64),
    /// `float`.
    F32(f32),
    /// `double`.
    F64(f64),
    /// A struct by value, as its words.
    Struct(&'a [i32]),
}

impl Arg<'_> {
    /// The argument's bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Arg::In(p) | Arg::Out(p) => bytemuck::bytes_of(&p.address),
            Arg::I32(x) => bytemuck::bytes_of(x),
            Arg::U32(x) => bytemuck::bytes_of(x),
            Arg::I64(x) => bytemuck::bytes_of(x),
            Arg::F32(x) => bytemuck::bytes_of(x),
            Arg::F64(x) => bytemuck::bytes_of(x),
            Arg::Struct(words) => bytemuck::cast_slice(words),
        }
    }

    /// Take this argument's type off the front of a kernel's signature; `None` if it is another.
    /// Letters are those of `kernels/emulator/device.h`.
    fn strip<'s>(&self, signature: &'s str) -> Option<&'s str> {
        let pointer = |kind: char, dtype: DType| {
            let element = match dtype {
                DType::F32 => 'f',
                DType::F64 => 'd',
                DType::BF16 => 'b',
                DType::F16 => 'h',
                DType::I64 => 'l',
                DType::U8 => 'c',
            };
            let rest = signature.strip_prefix(kind)?;
            // `v`: the kernel does not care
            rest.strip_prefix(element).or(rest.strip_prefix('v'))
        };
        match self {
            Arg::In(p) => pointer('r', p.dtype),
            Arg::Out(p) => pointer('p', p.dtype),
            Arg::I32(_) => signature.strip_prefix('i'),
            Arg::U32(_) => signature.strip_prefix('u'),
            Arg::I64(_) => signature.strip_prefix('l'),
            Arg::F32(_) => signature.strip_prefix('f'),
            Arg::F64(_) => signature.strip_prefix('d'),
            Arg::Struct(words) => signature.strip_prefix(&format!("{{{}}}", 4 * words.len())),
        }
    }

    /// The same in the letters of [`ptx::Entry`](super::ptx::Entry), which knows sizes alone.
    fn strip_ptx<'s>(&self, signature: &'s str) -> Option<&'s str> {
        match self {
            Arg::In(_) | Arg::Out(_) => signature.strip_prefix('l'),
            Arg::U32(_) => signature.strip_prefix('i'),
            _ => self.strip(signature),
        }
    }

    /// As it would read in a signature.
    fn describe(&self) -> String {
        match self {
            Arg::In(p) => format!("const {}*", p.dtype),
            Arg::Out(p) => format!("{}*", p.dtype),
            Arg::I32(_) => "int".into(),
            Arg::U32(_) => "unsigned".into(),
            Arg::I64(_) => "i64".into(),
            Arg::F32(_) => "float".into(),
            Arg::F64(_) => "double".into(),
            Arg::Struct(words) => format!("{} bytes", 4 * words.len()),
        }
    }
}

/// A kernel that has been found on a device.
#[derive(Clone, Debug)]
pub(super) struct Function {
    /// The driver's own handle.
    pub handle: usize,
    /// Its parameters' types, a letter each.
    pub signature: String,
    /// Whether the signature is the PTX's, which knows neither elements nor `const`.
    pub from_ptx: bool,
}

impl Function {
    /// An error that shows both lists unless the arguments are what the kernel takes.
    pub fn check(&self, kernel: &'static str, args: &[Arg<'_>]) -> Result<()> {
        let mut rest = Some(self.signature.as_str());
        for arg in args {
            rest = rest.and_then(|s| {
                if self.from_ptx {
                    arg.strip_ptx(s)
                } else {
                    arg.strip(s)
                }
            });
        }
        if rest == Some("") {
            return Ok(());
        }
        let given: Vec<String> = args.iter().map(Arg::describe).collect();
        Err(Error::argument(
            kernel,
            format!(
                "the kernel takes ({}), launched with ({})",
                self.signature,
                given.join(", ")
            ),
        ))
    }
}

/// How many blocks of how many threads, and their dynamic shared memory in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
}

/// What a graph of recorded work is called.
pub(super) type GraphId = u64;
/// What a recorded moment is called.
pub(super) type EventId = u64;

/// A device with one stream. Calls come from any thread, one at a time. Work is done in the order
/// of the calls; only `read` and `synchronize` wait for it.
pub(super) trait Driver: Send {
    /// The device's name.
    fn name(&self) -> String;
    /// Whether a kernel's fault may arrive with a later call.
    fn is_asynchronous(&self) -> bool;
    /// New memory; `None` where the device has none left.
    fn alloc(&mut self, bytes: usize) -> Result<Option<u64>>;
    /// Memory that is handed out again; an emulated device makes its old numbers unusable.
    fn recycle(&mut self, _address: u64, _bytes: usize) -> Result<()> {
        Ok(())
    }
    /// Memory of `alloc`, no longer used by any work under way.
    fn free(&mut self, address: u64) -> Result<()>;
    /// Bytes that the device has free.
    fn free_memory(&mut self) -> usize;
    /// Copy from the host. The bytes may be dropped when it returns.
    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<()>;
    /// Copy to the host, and wait for it.
    fn read(&mut self, from: u64, bytes: &mut [u8]) -> Result<()>;
    /// Copy on the device.
    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()>;
    /// Fill with zeros.
    fn zero(&mut self, to: u64, bytes: usize) -> Result<()>;
    /// Look a kernel up.
    fn find(&mut self, kernel: &'static str) -> Result<Function>;
    /// Run a kernel; the arguments have been checked.
    fn launch(
        &mut self,
        kernel: &'static str,
        function: &Function,
        shape: Shape,
        args: &[Arg<'_>],
    ) -> Result<()>;
    /// Wait for all work.
    fn synchronize(&mut self) -> Result<()>;
    /// From here on record work instead of doing it.
    fn begin_capture(&mut self) -> Result<()>;
    /// What has been recorded.
    fn end_capture(&mut self) -> Result<GraphId>;
    /// Do recorded work.
    fn replay(&mut self, graph: GraphId) -> Result<()>;
    /// Forget recorded work.
    fn drop_graph(&mut self, graph: GraphId);
    /// Mark this moment in the stream.
    fn record_event(&mut self) -> Result<EventId>;
    /// Milliseconds between two marked moments; waits for the later one.
    fn elapsed_ms(&mut self, from: EventId, to: EventId) -> Result<f32>;
    /// Forget a moment.
    fn drop_event(&mut self, event: EventId);
}
