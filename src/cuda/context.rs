//! A device and what belongs to it: its driver, its memory, its captured graphs, its faults. One
//! lock guards all of it; a thread that captures keeps the others waiting until it is done.

use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::{self, ThreadId};

use crate::cuda::driver::{Arg, Driver, EventId, Function, GraphId, Shape};
use crate::cuda::{Gpu, real};
use crate::error::{Error, Result};
use crate::memory::{MemoryStats, size_class};

/// Devices of the driver that can be opened.
const REAL: usize = 8;
/// Places for what is kept once a device: emulated devices share one, as their kernels are the same.
pub(super) const PLACES: usize = REAL + 1;

/// Which of the [`PLACES`] is a device's.
pub(super) fn place(gpu: Gpu) -> usize {
    match gpu {
        Gpu::Real(n) => n as usize % REAL,
        Gpu::Emulated(_) => REAL,
    }
}

/// Memory is handed out in multiples of this, which every vector load is content with.
const ALIGN: usize = 256;
/// Words of the fault: set or not, op, index, size.
const FAULT: usize = 4;
/// Numbers that a captured step can take from the host.
const SLOTS: usize = 4096;
/// The pool of everything outside of a capture.
const COMMON: u64 = 0;

/// An open device.
pub(super) struct Context {
    state: Mutex<State>,
    /// Told when a capture has ended.
    turn: Condvar,
}

/// What the lock guards.
pub(super) struct State {
    pub driver: Box<dyn Driver>,
    pub memory: Memory,
    /// Where kernels leave an index that is out of range.
    fault: u64,
    capture: Option<Capture>,
    /// Names the pools of captures.
    pools: u64,
    /// The kernels launched last, the newest at the end.
    recent: [&'static str; 4],
    /// A fault of a kernel or of the driver, after which nothing works.
    lost: Option<(String, String)>,
}

struct Capture {
    thread: ThreadId,
    /// Whose memory it takes: a replay writes to it again, so nobody else may have it.
    pool: u64,
    /// Numbers rewritten before each replay.
    slots: u64,
    values: Vec<u64>,
    /// Memory of before the capture was freed within it: the work is not the same each time.
    frees_older: bool,
}

static OPEN: [OnceLock<Context>; REAL] = [const { OnceLock::new() }; REAL];
static EMULATED: [OnceLock<Context>; 256] = [const { OnceLock::new() }; 256];

impl Context {
    /// The device's context, opened at the first call.
    pub fn of(gpu: Gpu) -> Result<&'static Self> {
        let place = match gpu {
            Gpu::Real(n) => OPEN.get(n as usize),
            Gpu::Emulated(n) => EMULATED.get(n as usize),
        };
        let place = place.ok_or_else(|| Error::NoCuda {
            why: format!("{gpu} was asked for; the first {REAL} devices can be used"),
        })?;
        if let Some(context) = place.get() {
            return Ok(context);
        }
        // one thread opens, others wait: the driver gives a second context on the same device
        static OPENING: Mutex<()> = Mutex::new(());
        let _one = lock(&OPENING);
        if let Some(context) = place.get() {
            return Ok(context);
        }
        let (driver, limit, exact): (Box<dyn Driver>, _, _) = match gpu {
            Gpu::Real(n) => (Box::new(real::Real::open(n as usize)?), usize::MAX, false),
            Gpu::Emulated(_) => emulated()?,
        };
        let mut state = State {
            driver,
            memory: Memory::new(limit, exact),
            fault: 0,
            capture: None,
            pools: COMMON,
            recent: [""; 4],
            lost: None,
        };
        state.fault = state.alloc(8 * FAULT)?.0;
        state.driver.zero(state.fault, 8 * FAULT)?;
        Ok(place.get_or_init(|| Context {
            state: Mutex::new(state),
            turn: Condvar::new(),
        }))
    }

    /// Use the device, once no other thread is capturing.
    pub fn with<T>(&self, f: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.enter();
        if let Some((what, why)) = &state.lost {
            return Err(Error::Cuda {
                what: what.clone(),
                why: why.clone(),
            });
        }
        let result = f(&mut state);
        let result = state.name_the_kernel(result);
        if let Err(Error::Cuda { what, why }) = &result {
            state.lost = Some((what.clone(), why.clone()));
        }
        result
    }

    fn enter(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        while state
            .capture
            .as_ref()
            .is_some_and(|c| c.thread != thread::current().id())
        {
            state = self.turn.wait(state).unwrap_or_else(|e| e.into_inner());
        }
        state
    }
}

#[cfg(feature = "emulator")]
fn emulated() -> Result<(Box<dyn Driver>, usize, bool)> {
    // exact sizes, so that the page behind a buffer guards its very end
    Ok((Box::new(super::emulated::Emulated::new()?), 4 << 30, true))
}

#[cfg(not(feature = "emulator"))]
fn emulated() -> Result<(Box<dyn Driver>, usize, bool)> {
    Err(Error::NoCuda {
        why: "this build has no emulated device (cargo feature `emulator`)".into(),
    })
}

/// A panic while the lock is held leaves whole values behind.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

impl Gpu {
    /// Open the device, or say why that cannot be.
    pub(crate) fn open(self) -> Result<()> {
        Context::of(self).map(|_| ())
    }

    pub(super) fn with<T>(self, f: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        Context::of(self)?.with(f)
    }

    /// The same of a device that may be lost: counters stay readable.
    pub(super) fn with_alive_or_dead<T>(
        self,
        f: impl FnOnce(&mut State) -> Result<T>,
    ) -> Result<T> {
        f(&mut Context::of(self)?.enter())
    }

    /// The kernels' `i64* fault`: where they leave an index that is out of range.
    pub(crate) fn fault(self) -> Result<Arg<'static>> {
        let address = self.with(|s| Ok(s.fault))?;
        Ok(Arg::Out(super::Pointer {
            address,
            dtype: crate::DType::I64,
            gpu: Some(self),
        }))
    }
}

static OPS: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

/// The kernels' `int op`: by it the host knows whose index was out of range.
pub fn op_number(op: &'static str) -> Arg<'static> {
    let mut ops = lock(&OPS);
    let at = ops.iter().position(|o| *o == op).unwrap_or(ops.len());
    if at == ops.len() {
        ops.push(op);
    }
    Arg::I32(at as i32)
}

/// The allocator: buffers by size class, kept when they are free, a pool for each capture.
pub(super) struct Memory {
    pub stats: MemoryStats,
    /// The most bytes, live and held together.
    pub limit: usize,
    /// No size classes: each size its own.
    exact: bool,
    free: HashMap<(u64, usize), Vec<u64>>,
    /// Pools of graphs that can still be replayed.
    graphs: HashSet<u64>,
}

impl Memory {
    fn new(limit: usize, exact: bool) -> Self {
        Memory {
            stats: MemoryStats::default(),
            limit,
            exact,
            free: HashMap::new(),
            graphs: HashSet::new(),
        }
    }

    fn class(&self, bytes: usize) -> usize {
        if self.exact {
            bytes.max(1)
        } else {
            size_class(bytes, ALIGN)
        }
    }

    /// A free buffer of the class, of this pool or else of the common one.
    fn reuse(&mut self, pool: u64, class: usize) -> Option<u64> {
        let address = [pool, COMMON]
            .into_iter()
            .find_map(|p| self.free.get_mut(&(p, class))?.pop())?;
        self.stats.held_bytes -= class;
        self.stats.hits += 1;
        Some(address)
    }

    fn release(&mut self, pool: u64, class: usize, address: u64) {
        let pool = if self.graphs.contains(&pool) {
            pool
        } else {
            COMMON
        };
        self.stats.give_back(class);
        self.stats.held_bytes += class;
        self.free.entry((pool, class)).or_default().push(address);
    }

    /// A pool's free buffers are anybody's again.
    fn dissolve(&mut self, pool: u64) {
        self.graphs.remove(&pool);
        let keys: Vec<_> = self.free.keys().filter(|k| k.0 == pool).copied().collect();
        for key in keys {
            let addresses = self.free.remove(&key).unwrap_or_default();
            let common = self.free.entry((COMMON, key.1)).or_default();
            common.extend(addresses);
        }
    }
}

impl State {
    /// Memory of at least so many bytes, its class, and its pool.
    fn alloc(&mut self, bytes: usize) -> Result<(u64, usize, u64)> {
        let pool = self.capture.as_ref().map_or(COMMON, |c| c.pool);
        let class = self.memory.class(bytes);
        let address = match self.memory.reuse(pool, class) {
            Some(address) => {
                self.driver.recycle(address, class)?;
                address
            }
            None => self.alloc_new(class)?,
        };
        self.memory.stats.take(class);
        Ok((address, class, pool))
    }

    fn alloc_new(&mut self, class: usize) -> Result<u64> {
        for attempt in 0..2 {
            let stats = self.memory.stats;
            let used = stats.live_bytes + stats.held_bytes;
            let address = match class <= self.memory.limit.saturating_sub(used) {
                true => self.driver.alloc(class)?,
                false => None,
            };
            if let Some(address) = address {
                self.memory.stats.allocations += 1;
                return Ok(address);
            }
            // what is held in other sizes goes back to the driver; not while capturing, when the
            // work that uses it has not even begun
            if attempt == 0 && self.capture.is_none() {
                self.empty_cache()?;
            }
        }
        let stats = self.memory.stats;
        let used = stats.live_bytes + stats.held_bytes;
        Err(Error::OutOfMemory {
            asked: class,
            held: used,
            free: (self.memory.limit.saturating_sub(used)).min(self.driver.free_memory()),
        })
    }

    /// Give the common pool's free buffers back to the driver.
    pub fn empty_cache(&mut self) -> Result<()> {
        self.driver.synchronize()?;
        let keys: Vec<_> = self.memory.free.keys().copied().collect();
        for key in keys.into_iter().filter(|k| k.0 == COMMON) {
            for address in self.memory.free.remove(&key).unwrap_or_default() {
                self.memory.stats.held_bytes -= key.1;
                self.driver.free(address)?;
            }
        }
        Ok(())
    }

    pub fn launch(
        &mut self,
        kernel: &'static str,
        function: &Function,
        shape: Shape,
        args: &[Arg<'_>],
    ) -> Result<()> {
        self.recent.rotate_left(1);
        self.recent[3] = kernel;
        self.with_room(|d| d.launch(kernel, function, shape, args))
    }

    /// Look a kernel up.
    pub fn find(&mut self, kernel: &'static str) -> Result<Function> {
        self.with_room(|d| d.find(kernel))
    }

    /// A call for which the driver itself may need memory: where it has none, what is held for
    /// reuse is given back, once.
    fn with_room<T>(&mut self, mut call: impl FnMut(&mut dyn Driver) -> Result<T>) -> Result<T> {
        match call(&mut *self.driver) {
            Err(Error::OutOfMemory { .. }) if self.capture.is_none() => {
                self.empty_cache()?;
                call(&mut *self.driver)
            }
            done => done,
        }
    }

    /// A buffer is free again. One from before the capture under way, freed within it, stays the
    /// graph's: a replay uses it again.
    fn release(&mut self, pool: u64, class: usize, address: u64) {
        let mut pool = pool;
        if let (Some(capture), COMMON) = (&mut self.capture, pool) {
            capture.frees_older = true;
            pool = capture.pool;
        }
        self.memory.release(pool, class, address);
    }

    pub fn synchronize(&mut self) -> Result<()> {
        self.driver.synchronize()?;
        self.check_fault()
    }

    fn read(&mut self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.driver.read(from, bytes)?;
        self.check_fault()
    }

    /// A fault of work under way arrives with a later call: say which kernels it can be.
    fn name_the_kernel<T>(&self, done: Result<T>) -> Result<T> {
        done.map_err(|e| match e {
            Error::Cuda { what, why } if self.driver.is_asynchronous() => {
                let names: Vec<&str> = self.recent.into_iter().filter(|n| !n.is_empty()).collect();
                Error::Cuda {
                    what,
                    why: format!(
                        "{why}; the kernels launched last: {} (COTANGENT_CUDA_SYNC=1 waits for each and names it)",
                        names.join(", ")
                    ),
                }
            }
            e => e,
        })
    }

    /// An index that a kernel found out of range since the last wait is an error now.
    fn check_fault(&mut self) -> Result<()> {
        let mut words = [0i64; FAULT];
        self.driver
            .read(self.fault, bytemuck::cast_slice_mut(&mut words))?;
        let [set, op, index, size] = words;
        if set == 0 {
            return Ok(());
        }
        self.driver.zero(self.fault, 8 * FAULT)?;
        Err(Error::Index {
            op: lock(&OPS).get(op as usize).copied().unwrap_or("cuda"),
            index,
            size: size as usize,
        })
    }
}

/// Memory of a device, back in its pool when dropped.
#[derive(Debug)]
pub struct Buffer {
    gpu: Gpu,
    address: u64,
    bytes: usize,
    /// Size class and pool; `None`: memory that somebody else keeps.
    owned: Option<(usize, u64)>,
}

impl Buffer {
    /// Room for `len` elements of `size` bytes, holding whatever was there.
    pub(crate) fn new(gpu: Gpu, len: usize, size: usize) -> Result<Self> {
        // kernels count in 32 bits, up to a block beyond the end
        if len > i32::MAX as usize - 1024 {
            let why = format!("{len} elements; a tensor on a CUDA device has fewer than 2^31");
            return Err(Error::argument("cuda", why));
        }
        let bytes = len * size;
        gpu.with(|s| {
            let (address, class, pool) = s.alloc(bytes)?;
            Ok(Buffer {
                gpu,
                address,
                bytes,
                owned: Some((class, pool)),
            })
        })
    }

    /// Whose memory it is.
    pub fn gpu(&self) -> Gpu {
        self.gpu
    }

    /// Where it starts.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How many bytes were asked for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copy from the host.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<()> {
        self.gpu.with(|s| {
            s.driver
                .write(self.address, &bytes[..self.bytes.min(bytes.len())])
        })
    }

    /// Copy `bytes` from byte `from` on to the host.
    pub(crate) fn read(&self, from: usize, bytes: &mut [u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if from + bytes.len() > self.bytes {
            return Err(Error::argument("cuda", "a read beyond the end of a buffer"));
        }
        self.gpu.with(|s| s.read(self.address + from as u64, bytes))
    }

    /// Copy all of another buffer of the same device and size.
    pub(crate) fn copy_from(&self, other: &Buffer) -> Result<()> {
        let bytes = self.bytes.min(other.bytes);
        self.gpu
            .with(|s| s.driver.copy(self.address, other.address, bytes))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some((class, pool)) = self.owned
            && let Ok(context) = Context::of(self.gpu)
        {
            // work under way may still use it: whoever gets it next comes later in the stream
            context.enter().release(pool, class, self.address);
        }
    }
}

/// A captured stretch of work, to be done again and again by one call.
#[derive(Debug)]
pub struct Graph {
    gpu: Gpu,
    id: GraphId,
    pool: u64,
    slots: Buffer,
    scalars: Vec<u64>,
}

/// Ends a capture, also where the work in it panicked.
struct EndCapture(Gpu);

impl Drop for EndCapture {
    fn drop(&mut self) {
        if let Ok(context) = Context::of(self.0) {
            let mut state = context.enter();
            if let Some(capture) = state.capture.take() {
                if let Ok(id) = state.driver.end_capture() {
                    state.driver.drop_graph(id);
                }
                state.memory.dissolve(capture.pool);
                context.turn.notify_all();
            }
        }
    }
}

impl Gpu {
    /// Record what `f` launches on this device instead of doing it. Memory that it takes stays the
    /// graph's. Reading or writing from the host within `f` is an error, and so is an error of `f`;
    /// then nothing is kept. Other threads that use the device wait until `f` is done: `f` must not
    /// wait for them.
    pub fn capture<T>(self, f: impl FnOnce() -> Result<T>) -> Result<(Graph, T)> {
        let context = Context::of(self)?;
        let slots = Buffer::new(self, SLOTS, 8)?;
        context.with(|s| {
            if s.capture.is_some() {
                return Err(Error::argument("capture", "a capture is under way"));
            }
            s.driver.begin_capture()?;
            s.pools += 1;
            s.memory.graphs.insert(s.pools);
            s.capture = Some(Capture {
                thread: thread::current().id(),
                pool: s.pools,
                slots: slots.address,
                values: Vec::new(),
                frees_older: false,
            });
            Ok(())
        })?;
        let end = EndCapture(self);
        let value = f()?;
        std::mem::forget(end);
        let mut state = context.enter();
        let capture = state.capture.take();
        let id = state.driver.end_capture();
        context.turn.notify_all();
        let capture = capture.ok_or_else(|| Error::argument("capture", "it was ended early"))?;
        match id {
            Ok(id) => Ok((
                Graph {
                    gpu: self,
                    id,
                    pool: capture.pool,
                    slots,
                    scalars: capture.values,
                },
                value,
            )),
            Err(e) => {
                state.memory.dissolve(capture.pool);
                // the value's buffers go back through the same lock
                drop(state);
                Err(e)
            }
        }
    }

    /// Whether this thread is capturing.
    pub fn is_capturing(self) -> bool {
        self.with(|s| Ok(s.capture.is_some())).unwrap_or(false)
    }

    /// The scalars that the capture under way has taken so far; none outside of one. An error if
    /// it has also freed memory of before, which tells that its work is not the same each time.
    pub(crate) fn captured_scalars(self) -> Result<Vec<u64>> {
        self.with(|s| match &s.capture {
            Some(c) if c.frees_older => {
                let why = "the work frees memory that was there before it";
                Err(Error::argument("capture", why))
            }
            Some(c) => Ok(c.values.clone()),
            None => Ok(Vec::new()),
        })
    }

    /// Numbers that the host computes anew each step (a learning rate, a place in a random
    /// stream), in device memory. Within a capture they are a slot that [`Graph::replay`] rewrites.
    pub(crate) fn scalars(self, values: &[u64]) -> Result<Buffer> {
        let slot = self.with(|s| {
            let Some(capture) = &mut s.capture else {
                return Ok(None);
            };
            let at = capture.values.len();
            if at + values.len() > SLOTS {
                let why = format!("a step takes more than {SLOTS} numbers from the host");
                return Err(Error::argument("capture", why));
            }
            capture.values.extend(values);
            Ok(Some(capture.slots + 8 * at as u64))
        })?;
        if let Some(address) = slot {
            return Ok(Buffer {
                gpu: self,
                address,
                bytes: 8 * values.len(),
                owned: None,
            });
        }
        let buffer = Buffer::new(self, values.len(), 8)?;
        buffer.write(bytemuck::cast_slice(values))?;
        Ok(buffer)
    }
}

impl Graph {
    /// What the captured work took by `scalars`, in order.
    pub fn scalars(&self) -> &[u64] {
        &self.scalars
    }

    /// Do the work with these scalars, as many as [`scalars`](Self::scalars) has.
    pub fn replay(&self, scalars: &[u64]) -> Result<()> {
        if scalars.len() != self.scalars.len() {
            let (n, m) = (scalars.len(), self.scalars.len());
            return Err(Error::argument("replay", format!("{n} scalars for {m}")));
        }
        self.gpu.with(|s| {
            if !scalars.is_empty() {
                s.driver
                    .write(self.slots.address, bytemuck::cast_slice(scalars))?;
            }
            s.with_room(|d| d.replay(self.id))
        })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(context) = Context::of(self.gpu) {
            let mut state = context.enter();
            // a replay may be under way
            let _ = state.driver.synchronize();
            state.driver.drop_graph(self.id);
            state.memory.dissolve(self.pool);
        }
    }
}

/// A moment in a device's stream, to measure time by.
#[derive(Debug)]
pub struct Event {
    gpu: Gpu,
    id: EventId,
}

impl Gpu {
    /// Mark this moment of the stream.
    pub fn record_event(self) -> Result<Event> {
        let id = self.with(|s| s.driver.record_event())?;
        Ok(Event { gpu: self, id })
    }
}

impl Event {
    /// Milliseconds of the device's work from this moment to a later one, which is waited for.
    pub fn elapsed_ms(&self, to: &Event) -> Result<f32> {
        self.gpu.with(|s| s.driver.elapsed_ms(self.id, to.id))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(context) = Context::of(self.gpu) {
            context.enter().driver.drop_event(self.id);
        }
    }
}
