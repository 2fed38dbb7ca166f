//! The emulated device: `kernels/emulator` runs the kernels, compiled as C++, on the CPU.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;
use std::time::Instant;

use libloading::Library;

use crate::cuda::driver::{Arg, Driver, EventId, Function, GraphId, Shape};
use crate::error::{Error, Result};

/// The functions of `kernels/emulator/device.h`, which says what they do: those linked into the program,
/// or those of a library.
macro_rules! interface {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        unsafe extern "C" {
            $(fn $name($(_: $argument),*) $(-> $result)?;)*
        }

        struct Interface {
            $($name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Interface {
            fn linked() -> Self {
                Interface { $($name,)* }
            }

            /// # Safety
            /// The library is made from the same `device.h`.
            unsafe fn of(library: &Library) -> std::result::Result<Self, libloading::Error> {
                // SAFETY: the caller's promise.
                Ok(unsafe { Interface { $($name: *library.get(stringify!($name))?,)* } })
            }
        }
    };
}

interface! {
    emu_init: fn();
    emu_set_seed: fn(u64);
    emu_find: fn(*const c_char) -> *const c_void;
    emu_signature: fn(*const c_void) -> *const c_char;
    emu_launch: fn(*const c_void, *const u32, *const u32, u32, *mut *mut c_void) -> c_int;
    emu_last_error: fn() -> *const c_char;
    emu_malloc: fn(usize) -> *mut c_void;
    emu_free: fn(*mut c_void);
}

/// The device's functions, from the library that `$COTANGENT_EMULATOR` names: the same kernels, as
/// `kernels/emulator/sanitize.sh` compiles them for a sanitizer.
fn interface() -> Result<&'static Interface> {
    static INTERFACE: OnceLock<std::result::Result<Interface, String>> = OnceLock::new();
    let load = || {
        let interface = match std::env::var_os("COTANGENT_EMULATOR") {
            None => Interface::linked(),
            Some(path) => {
                let why = |e| format!("COTANGENT_EMULATOR={}: {e}", path.display());
                // SAFETY: whoever sets the variable names the library that the script has made
                let library = unsafe { Library::new(&path) }.map_err(why)?;
                // SAFETY: as above
                let interface = unsafe { Interface::of(&library) }.map_err(why)?;
                std::mem::forget(library); // its kernels are in use until the end
                interface
            }
        };
        // SAFETY: before anything else
        unsafe { (interface.emu_init)() };
        Ok(interface)
    };
    let interface = INTERFACE.get_or_init(load).as_ref();
    interface.map_err(|why| Error::NoCuda { why: why.clone() })
}

/// The order in which emulated threads run: 0 forward, 1 in reverse, others at random. Odd seeds
/// also delay asynchronous copies until they are waited for. A kernel without races gives the same
/// bits with each.
pub fn set_thread_order(seed: u64) {
    if let Ok(emulator) = interface() {
        // SAFETY: sets one number
        unsafe { (emulator.emu_set_seed)(seed) }
    }
}

/// Memory of the emulated devices past their allocators: for tests of kernels and of the allocators.
/// Null where there is none left; an [`Error::NoCuda`] without the library that was asked for.
pub fn emulated_malloc(bytes: usize) -> Result<*mut c_void> {
    // SAFETY: a plain allocation
    Ok(unsafe { (interface()?.emu_malloc)(bytes) })
}

/// Give back what [`emulated_malloc`] gave.
///
/// # Safety
/// The address is from there, and is given back once.
pub unsafe fn emulated_free(address: *mut c_void) {
    if let Ok(emulator) = interface() {
        // SAFETY: the caller's promise
        unsafe { (emulator.emu_free)(address) }
    }
}

/// Work recorded by a capture.
enum Work {
    Launch(&'static str, usize, Shape, Values),
    Copy(u64, u64, usize),
    /// All bytes of one value.
    Fill(u64, u8, usize),
}

/// A launch's arguments, each at an address that any type is content with.
struct Values {
    words: Vec<u128>,
    /// Where each argument starts.
    at: Vec<usize>,
}

impl Values {
    fn new(args: &[Arg<'_>]) -> Self {
        let (mut words, mut at) = (Vec::new(), Vec::new());
        for arg in args {
            at.push(words.len());
            for chunk in arg.bytes().chunks(16) {
                let mut word = [0; 16];
                word[..chunk.len()].copy_from_slice(chunk);
                words.push(u128::from_ne_bytes(word));
            }
        }
        Values { words, at }
    }

    fn launch(&self, kernel: &'static str, handle: usize, shape: Shape) -> Result<()> {
        let emulator = interface()?;
        let start =
            |&at: &usize| -> *mut c_void { self.words.as_ptr().wrapping_add(at).cast_mut().cast() };
        let mut pointers: Vec<*mut c_void> = self.at.iter().map(start).collect();
        // SAFETY: the handle is a kernel's; the pointers are to values of its parameters' types,
        // which the caller has checked, and are only read; what a kernel does to memory it
        // was not given is caught by guard pages
        let code = unsafe {
            (emulator.emu_launch)(
                handle as *const c_void,
                shape.grid.as_ptr(),
                shape.block.as_ptr(),
                shape.shared,
                pointers.as_mut_ptr(),
            )
        };
        match code {
            0 => Ok(()),
            1 => Err(Error::argument(kernel, last_error(emulator))),
            _ => Err(Error::Cuda {
                what: kernel.into(),
                why: last_error(emulator),
            }),
        }
    }
}

fn last_error(emulator: &Interface) -> String {
    // SAFETY: a string that ends in 0, kept until this thread's next launch
    unsafe { CStr::from_ptr((emulator.emu_last_error)()) }
        .to_string_lossy()
        .into_owned()
}

/// The emulated device.
pub(super) struct Emulated {
    emulator: &'static Interface,
    recording: Option<Vec<Work>>,
    graphs: HashMap<GraphId, Vec<Work>>,
    events: HashMap<EventId, Instant>,
    next: u64,
}

impl Emulated {
    /// An [`Error::NoCuda`] where the library that was asked for cannot be loaded.
    pub fn new() -> Result<Self> {
        Ok(Emulated {
            emulator: interface()?,
            recording: None,
            graphs: HashMap::new(),
            events: HashMap::new(),
            next: 0,
        })
    }

    fn name_next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn refuse_capture(&self, what: &'static str) -> Result<()> {
        match self.recording {
            None => Ok(()),
            Some(_) => Err(Error::argument("capture", what)),
        }
    }

    fn perform(&mut self, work: Work) -> Result<()> {
        match &mut self.recording {
            Some(all) => {
                all.push(work);
                Ok(())
            }
            None => work.perform(),
        }
    }
}

impl Work {
    fn perform(&self) -> Result<()> {
        match self {
            Work::Launch(kernel, handle, shape, values) => values.launch(kernel, *handle, *shape),
            Work::Copy(to, from, bytes) => {
                // SAFETY: both are buffers of this device of at least so many bytes
                unsafe { std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes) }
                Ok(())
            }
            Work::Fill(to, byte, bytes) => {
                // SAFETY: a buffer of this device of at least so many bytes
                unsafe { std::ptr::write_bytes(*to as *mut u8, *byte, *bytes) }
                Ok(())
            }
        }
    }
}

impl Driver for Emulated {
    fn name(&self) -> String {
        "emulated CUDA device".into()
    }

    fn is_asynchronous(&self) -> bool {
        false
    }

    fn alloc(&mut self, bytes: usize) -> Result<Option<u64>> {
        // SAFETY: a plain allocation
        let p = unsafe { (self.emulator.emu_malloc)(bytes) };
        Ok((!p.is_null()).then_some(p as u64))
    }

    fn recycle(&mut self, address: u64, bytes: usize) -> Result<()> {
        // NaN in every float type, as fresh memory is; a replay does it again
        self.perform(Work::Fill(address, 0xFF, bytes))
    }

    fn free(&mut self, address: u64) -> Result<()> {
        // SAFETY: from `alloc`, and the allocator gives it back once
        unsafe { (self.emulator.emu_free)(address as *mut c_void) }
        Ok(())
    }

    fn free_memory(&mut self) -> usize {
        usize::MAX
    }

    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<()> {
        self.refuse_capture("the host writes to the device within it")?;
        // SAFETY: a buffer of this device of at least so many bytes
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) }
        Ok(())
    }

    fn read(&mut self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.refuse_capture("the host reads from the device within it")?;
        // SAFETY: a buffer of this device of at least so many bytes
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) }
        Ok(())
    }

    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.perform(Work::Copy(to, from, bytes))
    }

    fn zero(&mut self, to: u64, bytes: usize) -> Result<()> {
        self.perform(Work::Fill(to, 0, bytes))
    }

    fn find(&mut self, kernel: &'static str) -> Result<Function> {
        // as a real device has it, which compiles at the first look
        self.refuse_capture("a kernel is compiled within it")?;
        let name = CString::new(kernel).unwrap_or_default();
        // SAFETY: a string that ends in 0
        let handle = unsafe { (self.emulator.emu_find)(name.as_ptr()) };
        if handle.is_null() {
            return Err(Error::argument(kernel, "there is no such kernel"));
        }
        // SAFETY: a kernel's signature is a constant string
        let signature = unsafe { CStr::from_ptr((self.emulator.emu_signature)(handle)) };
        Ok(Function {
            handle: handle as usize,
            signature: signature.to_string_lossy().into_owned(),
            from_ptx: false,
        })
    }

    fn launch(
        &mut self,
        kernel: &'static str,
        function: &Function,
        shape: Shape,
        args: &[Arg<'_>],
    ) -> Result<()> {
        self.perform(Work::Launch(
            kernel,
            function.handle,
            shape,
            Values::new(args),
        ))
    }

    fn synchronize(&mut self) -> Result<()> {
        self.refuse_capture("the host waits for the device within it")
    }

    fn begin_capture(&mut self) -> Result<()> {
        self.recording = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&mut self) -> Result<GraphId> {
        let all = self.recording.take().unwrap_or_default();
        let id = self.name_next();
        self.graphs.insert(id, all);
        Ok(id)
    }

    fn replay(&mut self, graph: GraphId) -> Result<()> {
        self.refuse_capture("another graph is replayed within it")?;
        let all = self.graphs.get(&graph);
        let all = all.ok_or_else(|| Error::argument("replay", "no such graph"))?;
        all.iter().try_for_each(Work::perform)
    }

    fn drop_graph(&mut self, graph: GraphId) {
        self.graphs.remove(&graph);
    }

    fn record_event(&mut self) -> Result<EventId> {
        self.refuse_capture("time is measured within it")?;
        let id = self.name_next();
        self.events.insert(id, Instant::now());
        Ok(id)
    }

    fn elapsed_ms(&mut self, from: EventId, to: EventId) -> Result<f32> {
        match (self.events.get(&from), self.events.get(&to)) {
            (Some(a), Some(b)) => Ok(b.duration_since(*a).as_secs_f32() * 1e3),
            _ => Err(Error::argument("elapsed_ms", "no such event")),
        }
    }

    fn drop_event(&mut self, event: EventId) {
        self.events.remove(&event);
    }
}
