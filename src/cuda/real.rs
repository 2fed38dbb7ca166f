//! A GPU through its driver. cudarc opens libcuda at run time; nothing is linked.

use std::collections::HashMap;
use std::ffi::{CString, c_void};

use cudarc::driver::{result, sys};

use crate::cuda::driver::{Arg, Driver, EventId, Function, GraphId, Shape};
use crate::cuda::ptx;
use crate::error::{Error, Result};

/// The oldest driver that takes the shipped PTX (version 8.0), as CUDA counts: R525 has 12.0.
const DRIVER: i32 = 12_000;
/// The oldest card: Ampere, which brought bf16 and asynchronous copies.
const CAPABILITY: [i32; 2] = [8, 0];

/// What the driver shows.
#[derive(Debug)]
pub struct Found {
    /// The newest CUDA version that the driver knows, `12.4`.
    pub version: String,
    /// The devices' names, by ordinal.
    pub devices: Vec<String>,
}

fn missing(what: impl std::fmt::Display) -> impl FnOnce(result::DriverError) -> Error {
    move |e| Error::NoCuda {
        why: format!("{what}: {e}"),
    }
}

/// Look for a driver and its devices; [`Error::NoCuda`] says what is missing.
pub fn probe() -> Result<Found> {
    // SAFETY: only tries to open the library; cudarc's other calls panic where it is missing
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoCuda {
            why: "no NVIDIA driver (libcuda was not found)".into(),
        });
    }
    result::init().map_err(missing("the driver does not start"))?;
    let mut version = 0;
    // SAFETY: the driver is initialized; it writes one integer
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(missing("no driver version"))?;
    check_driver(version)?;
    let count = result::device::get_count().map_err(missing("no device count"))?;
    let devices = (0..count)
        .map(|i| result::device::get(i).and_then(result::device::get_name))
        .collect::<std::result::Result<_, _>>()
        .map_err(missing("a device has no name"))?;
    Ok(Found {
        version: dotted([version / 1000, version % 1000 / 10]),
        devices,
    })
}

fn dotted([major, minor]: [i32; 2]) -> String {
    format!("{major}.{minor}")
}

/// An error for a driver that does not know the shipped PTX.
fn check_driver(version: i32) -> Result<()> {
    if version >= DRIVER {
        return Ok(());
    }
    let name = |v: i32| dotted([v / 1000, v % 1000 / 10]);
    Err(Error::NoCuda {
        why: format!(
            "the driver knows CUDA {}; the kernels need {} (R525) or newer",
            name(version),
            name(DRIVER)
        ),
    })
}

/// An error for a card that the shipped PTX is too new for.
fn check_card(name: &str, capability: [i32; 2]) -> Result<()> {
    if capability >= CAPABILITY {
        return Ok(());
    }
    Err(Error::NoCuda {
        why: format!(
            "{name} has compute capability {}; the kernels need {} (Ampere) or newer",
            dotted(capability),
            dotted(CAPABILITY)
        ),
    })
}

/// An error of a driver's call, after which the context is of no use; but for want of memory, which
/// passes.
fn fatal(what: &'static str) -> impl FnOnce(result::DriverError) -> Error {
    move |e| match e.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => no_memory(),
        _ => Error::Cuda {
            what: what.into(),
            why: e.to_string(),
        },
    }
}

/// The driver needs memory for itself: code, a graph, local memory.
fn no_memory() -> Error {
    Error::OutOfMemory {
        asked: 0,
        held: 0,
        free: 0,
    }
}

/// An error of a call that was refused and did nothing.
fn refused(what: &'static str) -> impl FnOnce(result::DriverError) -> Error {
    move |e| Error::argument(what, e.to_string())
}

/// Host memory that the device copies to and from by itself.
struct Pinned {
    start: *mut c_void,
    bytes: usize,
    /// When the last copy from it is done.
    done: sys::CUevent,
}

/// Copies up to this size go through pinned memory; larger ones are split.
const PINNED: usize = 4 << 20;

/// A GPU with its context and one stream.
pub(super) struct Real {
    name: String,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: HashMap<usize, sys::CUmodule>,
    /// Two, so that one is filled while the other is copied.
    pinned: [Pinned; 2],
    turn: usize,
    graphs: HashMap<GraphId, sys::CUgraphExec>,
    events: HashMap<EventId, sys::CUevent>,
    next: u64,
    /// Wait after each launch, so that a fault is its kernel's.
    wait: bool,
    capturing: bool,
    /// Shared memory that a block can have, in bytes.
    shared: i32,
}

// SAFETY: the driver's handles may be used from any thread; calls come one at a time, and each
// makes the context current on its thread first
unsafe impl Send for Real {}

impl Real {
    /// Open the device of this ordinal.
    pub fn open(ordinal: usize) -> Result<Self> {
        let found = probe()?;
        let Some(name) = found.devices.get(ordinal) else {
            let n = found.devices.len();
            return Err(Error::NoCuda {
                why: format!("ordinal {ordinal} was asked for, the driver shows {n}"),
            });
        };
        let no = |what: &'static str| missing(format!("{name}: {what}"));
        let device = result::device::get(ordinal as i32).map_err(no("not there"))?;
        use sys::CUdevice_attribute_enum as Attribute;
        let attribute = |a| {
            // SAFETY: the device is valid
            unsafe { result::device::get_attribute(device, a) }.map_err(no("no attributes"))
        };
        let capability = [
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ];
        check_card(name, capability)?;
        let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        // SAFETY: the device is valid; the context is kept for the life of the process
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(no("no context"))?;
        // SAFETY: just made
        unsafe { result::ctx::set_current(context) }.map_err(no("no context"))?;
        // not the default stream, which cannot be captured and waits for others
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(no("no stream"))?;
        let pin = || -> Result<Pinned> {
            // SAFETY: a context is current; flags 0 is memory that the CPU caches
            let start =
                unsafe { result::malloc_host(PINNED, 0) }.map_err(no("no pinned memory"))?;
            let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
            let done = result::event::create(flags).map_err(no("no event"))?;
            Ok(Pinned {
                start,
                bytes: PINNED,
                done,
            })
        };
        Ok(Real {
            name: name.clone(),
            context,
            stream,
            modules: HashMap::new(),
            pinned: [pin()?, pin()?],
            turn: 0,
            graphs: HashMap::new(),
            events: HashMap::new(),
            next: 0,
            wait: std::env::var_os("COTANGENT_CUDA_SYNC").is_some_and(|v| v != "0"),
            capturing: false,
            shared,
        })
    }

    /// Make the context current on this thread.
    fn bind(&self) -> Result<()> {
        // SAFETY: the context lives as long as the process
        unsafe { result::ctx::set_current(self.context) }.map_err(fatal("cuCtxSetCurrent"))
    }

    fn name_next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn refuse_capture(&self, what: &'static str) -> Result<()> {
        match self.capturing {
            false => Ok(()),
            true => Err(Error::argument("capture", what)),
        }
    }

    fn wait_for_stream(&self) -> Result<()> {
        // SAFETY: our stream
        unsafe { result::stream::synchronize(self.stream) }.map_err(fatal("cuStreamSynchronize"))
    }

    /// The next piece of pinned memory, free to be written.
    fn pinned(&mut self) -> Result<(&mut [u8], sys::CUevent)> {
        self.turn = 1 - self.turn;
        let p = &self.pinned[self.turn];
        // SAFETY: our event; one that was never recorded is done
        unsafe { result::event::synchronize(p.done) }.map_err(fatal("cuEventSynchronize"))?;
        // SAFETY: allocated with this size; no copy is under way, and `&mut self` lends it out once
        let bytes = unsafe { std::slice::from_raw_parts_mut(p.start.cast(), p.bytes) };
        Ok((bytes, p.done))
    }

    /// A module, compiled by the driver at its first use.
    fn module(&mut self, index: usize) -> Result<sys::CUmodule> {
        if let Some(module) = self.modules.get(&index) {
            return Ok(*module);
        }
        self.refuse_capture("a kernel is compiled within it")?;
        let (name, text) = ptx::modules()[index];
        let text = CString::new(text).map_err(|e| Error::argument("cuda", e.to_string()))?;
        let mut log = vec![0u8; 16 << 10];
        let mut module = std::ptr::null_mut();
        let mut options = [
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
        // SAFETY: the text ends in 0; each option has its value, and the log outlives the call
        unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                text.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        }
        .result()
        .map_err(|e| {
            let log = String::from_utf8_lossy(&log);
            let log = log.trim_end_matches('\0').trim_end();
            match e.0 {
                sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => no_memory(),
                _ => Error::NoCuda {
                    why: format!("the driver does not take {name}.ptx: {e}: {log}"),
                },
            }
        })?;
        self.modules.insert(index, module);
        Ok(module)
    }
}

impl Driver for Real {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn is_asynchronous(&self) -> bool {
        !self.wait
    }

    fn alloc(&mut self, bytes: usize) -> Result<Option<u64>> {
        self.bind()?;
        // SAFETY: a context is current
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => Ok(Some(address)),
            Err(result::DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(e) => Err(fatal("cuMemAlloc")(e)),
        }
    }

    fn free(&mut self, address: u64) -> Result<()> {
        self.bind()?;
        // SAFETY: from `alloc`; the allocator waited for the stream and gives it back once
        unsafe { result::free_sync(address) }.map_err(fatal("cuMemFree"))
    }

    fn free_memory(&mut self) -> usize {
        let free = self.bind().ok().and_then(|()| result::mem_get_info().ok());
        free.map_or(0, |(free, _)| free)
    }

    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<()> {
        self.refuse_capture("the host writes to the device within it")?;
        self.bind()?;
        let stream = self.stream;
        for (i, part) in bytes.chunks(PINNED).enumerate() {
            let (pinned, done) = self.pinned()?;
            pinned[..part.len()].copy_from_slice(part);
            let at = to + (i * PINNED) as u64;
            // SAFETY: the target is ours and large enough; the source stays until `done`
            unsafe {
                result::memcpy_htod_async(at, &pinned[..part.len()], stream)
                    .map_err(fatal("cuMemcpyHtoDAsync"))?;
                result::event::record(done, stream).map_err(fatal("cuEventRecord"))?;
            }
        }
        Ok(())
    }

    fn read(&mut self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.refuse_capture("the host reads from the device within it")?;
        self.bind()?;
        let stream = self.stream;
        for (i, part) in bytes.chunks_mut(PINNED).enumerate() {
            let (pinned, _) = self.pinned()?;
            let at = from + (i * PINNED) as u64;
            // SAFETY: the source is ours and large enough; the target stays until the wait below
            unsafe {
                result::memcpy_dtoh_async(&mut pinned[..part.len()], at, stream)
                    .map_err(fatal("cuMemcpyDtoHAsync"))?;
                result::stream::synchronize(stream).map_err(fatal("cuStreamSynchronize"))?;
            }
            part.copy_from_slice(&pinned[..part.len()]);
        }
        Ok(())
    }

    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: both are ours and large enough
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }
            .map_err(fatal("cuMemcpyDtoDAsync"))
    }

    fn zero(&mut self, to: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: ours and large enough
        unsafe { result::memset_d8_async(to, 0, bytes, self.stream) }
            .map_err(fatal("cuMemsetD8Async"))
    }

    fn find(&mut self, kernel: &'static str) -> Result<Function> {
        self.bind()?;
        let no = || Error::argument(kernel, "there is no such kernel");
        let entry = ptx::entry(kernel).ok_or_else(no)?;
        let module = self.module(entry.module)?;
        let name = CString::new(kernel).map_err(|_| no())?;
        // SAFETY: a loaded module
        let function = unsafe { result::module::get_function(module, name) }
            .map_err(fatal("cuModuleGetFunction"))?;
        use sys::CUfunction_attribute as Attribute;
        // SAFETY: a function of that module; kernels may ask for more than 48 KiB of shared memory
        // when launched, up to what the card has beside the kernel's own arrays
        unsafe {
            let own = result::function::get_function_attribute(
                function,
                Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
            )
            .map_err(fatal("cuFuncGetAttribute"))?;
            result::function::set_function_attribute(
                function,
                Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                self.shared - own,
            )
            .map_err(fatal("cuFuncSetAttribute"))?;
        }
        Ok(Function {
            handle: function as usize,
            signature: entry.parameters.to_string(),
            from_ptx: true,
        })
    }

    fn launch(
        &mut self,
        kernel: &'static str,
        function: &Function,
        shape: Shape,
        args: &[Arg<'_>],
    ) -> Result<()> {
        self.bind()?;
        let [gx, gy, gz] = shape.grid;
        let [bx, by, bz] = shape.block;
        let mut pointers: Vec<*mut c_void> = args
            .iter()
            .map(|a| a.bytes().as_ptr().cast_mut().cast())
            .collect();
        // SAFETY: the handle is a kernel's; the arguments have been checked against its parameters
        // and are copied by the call
        unsafe {
            result::launch_kernel(
                function.handle as sys::CUfunction,
                (gx, gy, gz),
                (bx, by, bz),
                shape.shared,
                self.stream,
                &mut pointers,
            )
        }
        .map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_INVALID_VALUE
            | sys::CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES => {
                Error::argument(kernel, format!("{e} (grid {shape:?})"))
            }
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => no_memory(),
            _ => Error::Cuda {
                what: kernel.into(),
                why: e.to_string(),
            },
        })?;
        if self.wait && !self.capturing {
            // SAFETY: our stream
            unsafe { result::stream::synchronize(self.stream) }.map_err(|e| Error::Cuda {
                what: kernel.into(),
                why: e.to_string(),
            })?;
        }
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        self.refuse_capture("the host waits for the device within it")?;
        self.bind()?;
        self.wait_for_stream()
    }

    fn begin_capture(&mut self) -> Result<()> {
        self.bind()?;
        // relaxed: a capture may take new memory from the driver
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: our stream, which is not the default one
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(refused("capture"))?;
        self.capturing = true;
        Ok(())
    }

    fn end_capture(&mut self) -> Result<GraphId> {
        self.capturing = false;
        self.bind()?;
        // SAFETY: begun by `begin_capture`
        let graph = unsafe { result::stream::end_capture(self.stream) }
            .map_err(refused("cuStreamEndCapture"))?;
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: just captured; the executable copy does not need it
        let exec = unsafe {
            let exec = result::graph::instantiate(graph, flags);
            result::graph::destroy(graph).ok();
            exec.map_err(refused("cuGraphInstantiate"))?
        };
        let id = self.name_next();
        self.graphs.insert(id, exec);
        Ok(id)
    }

    fn replay(&mut self, graph: GraphId) -> Result<()> {
        self.refuse_capture("another graph is replayed within it")?;
        self.bind()?;
        let exec = self.graphs.get(&graph);
        let exec = *exec.ok_or_else(|| Error::argument("replay", "no such graph"))?;
        // SAFETY: instantiated; the buffers it uses are kept by the allocator as long as it lives
        unsafe { result::graph::launch(exec, self.stream) }.map_err(fatal("cuGraphLaunch"))
    }

    fn drop_graph(&mut self, graph: GraphId) {
        if let (Some(exec), Ok(())) = (self.graphs.remove(&graph), self.bind()) {
            // SAFETY: instantiated, and removed from the table
            unsafe { result::graph::exec_destroy(exec) }.ok();
        }
    }

    fn record_event(&mut self) -> Result<EventId> {
        self.refuse_capture("time is measured within it")?;
        self.bind()?;
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let event = result::event::create(flags).map_err(fatal("cuEventCreate"))?;
        // SAFETY: just made
        unsafe { result::event::record(event, self.stream) }.map_err(fatal("cuEventRecord"))?;
        let id = self.name_next();
        self.events.insert(id, event);
        Ok(id)
    }

    fn elapsed_ms(&mut self, from: EventId, to: EventId) -> Result<f32> {
        self.refuse_capture("time is measured within it")?;
        self.bind()?;
        let (Some(&a), Some(&b)) = (self.events.get(&from), self.events.get(&to)) else {
            return Err(Error::argument("elapsed_ms", "no such event"));
        };
        // SAFETY: both are recorded in our stream
        unsafe {
            result::event::synchronize(b).map_err(fatal("cuEventSynchronize"))?;
            result::event::elapsed(a, b).map_err(refused("cuEventElapsedTime"))
        }
    }

    fn drop_event(&mut self, event: EventId) {
        if let (Some(event), Ok(())) = (self.events.remove(&event), self.bind()) {
            // SAFETY: made by `record_event`, and removed from the table
            unsafe { result::event::destroy(event) }.ok();
        }
    }
}

impl Drop for Real {
    /// Only where opening failed half way: an open device stays so as long as the process.
    fn drop(&mut self) {
        if self.bind().is_ok() {
            // SAFETY: made by `open`, and no work uses them
            unsafe {
                for p in &self.pinned {
                    result::free_host(p.start).ok();
                    result::event::destroy(p.done).ok();
                }
                result::stream::destroy(self.stream).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_drivers_and_cards_are_told_what_is_needed() {
        check_driver(12_000).unwrap();
        check_driver(13_010).unwrap();
        assert_eq!(
            check_driver(11_080).unwrap_err().to_string(),
            "no CUDA device: the driver knows CUDA 11.8; the kernels need 12.0 (R525) or newer"
        );
        check_card("A100", [8, 0]).unwrap();
        check_card("H100", [9, 0]).unwrap();
        assert_eq!(
            check_card("Tesla T4", [7, 5]).unwrap_err().to_string(),
            "no CUDA device: Tesla T4 has compute capability 7.5; the kernels need 8.0 (Ampere) or newer"
        );
    }
}
