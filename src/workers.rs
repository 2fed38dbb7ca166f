//! The threads that an op's tasks run on, and the way from rayon's iterators to them.
//!
//! A step of a network is hundreds of ops of a few dozen microseconds each, and between two of them
//! the other cores have nothing to do. rayon's workers go to sleep then, after some 30 us; waking one
//! takes as long again, and the caller, which by then waits for it, sleeps too. So a program that says
//! [`set_num_threads`](crate::cpu::set_num_threads) has workers of its own, which go on looking for its
//! next op for [`AWAKE`] and sleep only then, as OpenMP's do. Everywhere else, on a library's threads and
//! in tests, the same tasks are rayon's.
//!
//! [`Parallel::each`] takes an iterator of rayon's (ranges, chunks, their zips), cuts it into a fixed
//! number of pieces and gives each thread a stretch of them: what a core wrote in one op is in its
//! cache when it takes the same stretch in the next. Who is done takes pieces from the end of another
//! thread's stretch, so that no op waits for a core that other programs slow down.
use std::any::Any;
use std::cell::{RefCell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rayon::iter::plumbing::{Producer, ProducerCallback};
use rayon::prelude::*;

use crate::error::{Error, Result};

/// How long a worker looks for the next op before it sleeps: longer than what lies between two ops of
/// a step, and than a small batch takes to come from its file.
const AWAKE: Duration = Duration::from_millis(2);
/// How often a thread looks before it first lets others run that wait for its core: some 20 us.
const EAGER: u32 = 500;
/// Pieces a thread, if there are as many items.
const PIECES: usize = 8;
/// Pieces at most, where tasks ask to be taken one by one.
const MOST: usize = 64;

/// Tasks to be done by the calling thread's workers, or rayon's.
pub(crate) trait Parallel: IndexedParallelIterator {
    /// Call `f` with each item. From within a task it is the thread's own work. `with_max_len(1)` says that
    /// items are large: they are up to [`MOST`] pieces then, where they are [`PIECES`] a thread else.
    ///
    /// # Panics
    /// If a task does; on several threads after all have ended.
    fn each(self, f: impl Fn(Self::Item) + Send + Sync) {
        let len = self.len();
        TEAM.with(|team| {
            // it is borrowed while tasks run: a task's own tasks are its thread's
            if let Ok(mut team) = team.try_borrow_mut() {
                match &mut *team {
                    Team::Own(workers) if len > 1 && !workers.helpers.is_empty() => {
                        return self.with_producer(Run { workers, len, f });
                    }
                    Team::Rayon => {
                        drop(team);
                        return self.for_each(f);
                    }
                    Team::Own(_) | Team::Helper => {}
                }
            }
            serially(self, f)
        });
    }

    /// The items, in order.
    fn gather(self) -> Vec<Self::Item>
    where
        Self::Item: Default,
    {
        let mut all = Vec::new();
        all.resize_with(self.len(), Self::Item::default);
        let places = all.par_iter_mut().zip(self);
        places.each(|(place, item)| *place = item);
        all
    }
}

impl<I: IndexedParallelIterator> Parallel for I {}

/// All items on this thread.
fn serially<I: IndexedParallelIterator>(items: I, f: impl Fn(I::Item) + Send + Sync) {
    struct Here<F>(F);
    impl<T, F: Fn(T)> ProducerCallback<T> for Here<F> {
        type Output = ();
        fn callback<P: Producer<Item = T>>(self, producer: P) {
            producer.into_iter().for_each(self.0);
        }
    }
    items.with_producer(Here(f));
}

/// Who does a thread's tasks.
enum Team {
    Rayon,
    Own(Workers),
    /// The thread itself: it is a worker of another.
    Helper,
}

thread_local! {
    static TEAM: RefCell<Team> = const { RefCell::new(Team::Rayon) };
}

/// Give the calling thread `threads - 1` workers.
pub(crate) fn start(threads: usize) -> Result<()> {
    let most = rayon::max_num_threads();
    if threads > most {
        let why = format!("{threads}, expected at most {most}");
        return Err(Error::config("threads", why));
    }
    TEAM.with(|team| match team.try_borrow_mut() {
        Ok(mut team) if !matches!(*team, Team::Helper) => {
            *team = Team::Own(Workers::new(threads)?);
            Ok(())
        }
        _ => Err(Error::config("threads", "asked for by a task")),
    })
}

/// The threads of the calling thread's ops.
pub(crate) fn count() -> usize {
    TEAM.with(|team| {
        let team = team.try_borrow();
        match team.as_deref() {
            Ok(Team::Rayon) => rayon::current_num_threads(),
            Ok(Team::Own(workers)) => workers.shared.desks.len(),
            Ok(Team::Helper) | Err(_) => 1,
        }
    })
}

/// What `f` gives on a thread with workers of its own, `threads` in all.
#[cfg(test)]
pub(crate) fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    thread::scope(|s| {
        let run = s.spawn(|| {
            start(threads).unwrap();
            f()
        });
        run.join().unwrap()
    })
}

/// One thread's workers, itself not counted. They end with it.
struct Workers {
    helpers: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

/// A worker's state, which it and its owner change.
const IDLE: u8 = 0;
const CALLED: u8 = 1;
const AT_WORK: u8 = 2;

/// What threads write for each other, on a cache line of its own.
#[repr(align(128))]
struct Desk {
    state: AtomicU8,
    asleep: AtomicBool,
    /// The pieces that the thread still has to take: from the first, in the low half, to before the
    /// last.
    stretch: AtomicU64,
}

struct Shared {
    /// The owner's desk is the last one.
    desks: Vec<Desk>,
    end: AtomicBool,
    job: UnsafeCell<Job>,
}

/// The op at hand: what to do with a piece.
#[derive(Clone, Copy)]
struct Job {
    data: *const (),
    /// Calls it for a piece.
    call: unsafe fn(*const (), usize),
}

// SAFETY: `job` is written by the owner while no worker is called, and read by those that are; it
// points to what is shared between threads (`Pieces`), and lives until they are idle again.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Desk {
    fn give(&self, start: usize, end: usize) {
        let stretch = start as u64 | (end as u64) << 32;
        self.stretch.store(stretch, Ordering::Relaxed);
    }

    /// The next piece of the stretch, from its front, or for another thread from its end.
    fn take(&self, front: bool) -> Option<usize> {
        let mut now = self.stretch.load(Ordering::Relaxed);
        loop {
            let (start, end) = (now as u32, (now >> 32) as u32);
            if start >= end {
                return None;
            }
            let (piece, left) = match front {
                true => (start, (start + 1, end)),
                false => (end - 1, (start, end - 1)),
            };
            let left = u64::from(left.0) | u64::from(left.1) << 32;
            let (yes, no) = (Ordering::Relaxed, Ordering::Relaxed);
            match self.stretch.compare_exchange_weak(now, left, yes, no) {
                Ok(_) => return Some(piece as usize),
                Err(changed) => now = changed,
            }
        }
    }
}

impl Shared {
    /// Do pieces until none is left, those of desk `own` first.
    fn work(&self, own: usize, job: Job) {
        let n = self.desks.len();
        for i in (own..n).chain(0..own) {
            while let Some(piece) = self.desks[i].take(i == own) {
                // SAFETY: the job lives while its owner waits, and each piece is taken once.
                unsafe { (job.call)(job.data, piece) };
            }
        }
    }

    /// A worker's life.
    fn serve(&self, own: usize) {
        let desk = &self.desks[own];
        TEAM.with(|team| *team.borrow_mut() = Team::Helper);
        loop {
            let (called, no) = (Ordering::Acquire, Ordering::Relaxed);
            let mut waited = Wait::new();
            // looked at before it is taken, so that its line stays here until it is written
            while desk.state.load(Ordering::Relaxed) != CALLED
                || desk
                    .state
                    .compare_exchange(CALLED, AT_WORK, called, no)
                    .is_err()
            {
                if self.end.load(Ordering::Relaxed) {
                    return;
                }
                if waited.longer_than(AWAKE) {
                    // the owner first calls and then looks who is asleep, a worker the other way
                    // round: one of them sees the other
                    desk.asleep.store(true, Ordering::Relaxed);
                    fence(Ordering::SeqCst);
                    while desk.state.load(Ordering::Relaxed) != CALLED
                        && !self.end.load(Ordering::Relaxed)
                    {
                        thread::park();
                    }
                    desk.asleep.store(false, Ordering::Relaxed);
                    waited = Wait::new();
                }
            }
            // SAFETY: the owner wrote it before it called, and waits before it writes again.
            self.work(own, unsafe { *self.job.get() });
            desk.state.store(IDLE, Ordering::Release);
        }
    }
}

/// A thread that waits for another: eagerly at first, then letting others have the core.
struct Wait {
    rounds: u32,
    since: Instant,
}

impl Wait {
    fn new() -> Self {
        Wait {
            rounds: 0,
            since: Instant::now(),
        }
    }

    /// Wait a moment; whether it has been longer than `time` in all, asked now and then.
    fn longer_than(&mut self, time: Duration) -> bool {
        std::hint::spin_loop();
        self.rounds = self.rounds.wrapping_add(1);
        if self.rounds < EAGER {
            return false;
        }
        thread::yield_now();
        self.rounds.is_multiple_of(16) && self.since.elapsed() > time
    }
}

impl Workers {
    fn new(threads: usize) -> Result<Self> {
        let desk = || Desk {
            state: AtomicU8::new(IDLE),
            asleep: AtomicBool::new(false),
            stretch: AtomicU64::new(0),
        };
        unsafe fn nothing(_: *const (), _: usize) {}
        let job = Job {
            data: std::ptr::null(),
            call: nothing,
        };
        let shared = Arc::new(Shared {
            desks: (0..threads.max(1)).map(|_| desk()).collect(),
            end: AtomicBool::new(false),
            job: UnsafeCell::new(job),
        });
        let mut workers = Workers {
            helpers: Vec::new(),
            shared,
        };
        for i in 0..threads.saturating_sub(1) {
            let shared = workers.shared.clone();
            let name = format!("worker {i}");
            let handle = thread::Builder::new()
                .name(name)
                .spawn(move || shared.serve(i));
            let handle = handle.map_err(|e| Error::config("threads", format!("{threads}: {e}")))?;
            workers.helpers.push(handle);
        }
        Ok(workers)
    }

    /// Call `f` with 0..pieces on all threads, each once.
    fn run<F: Fn(usize) + Sync>(&mut self, pieces: usize, f: &F) {
        unsafe fn call<F: Fn(usize)>(f: *const (), piece: usize) {
            // SAFETY: `data` of a job with this `call`.
            unsafe { (*f.cast::<F>())(piece) }
        }
        let (shared, n) = (&*self.shared, self.shared.desks.len());
        let job = Job {
            data: std::ptr::from_ref(f).cast(),
            call: call::<F>,
        };
        // the owner begins with the first pieces, as it would alone
        let owner = n - 1;
        for (i, desk) in shared.desks.iter().enumerate() {
            let place = (i + 1) % n;
            desk.give(place * pieces / n, (place + 1) * pieces / n);
        }
        // SAFETY: no worker is called, nobody reads it.
        unsafe { *shared.job.get() = job };
        for desk in &shared.desks[..owner] {
            desk.state.store(CALLED, Ordering::Release);
        }
        fence(Ordering::SeqCst);
        for (desk, helper) in shared.desks.iter().zip(&self.helpers) {
            if desk.asleep.load(Ordering::Relaxed) {
                helper.thread().unpark();
            }
        }
        shared.work(owner, job);
        for desk in &shared.desks[..owner] {
            // who has not come by now need not come any more
            let (yes, no) = (Ordering::Relaxed, Ordering::Relaxed);
            if desk.state.compare_exchange(CALLED, IDLE, yes, no).is_ok() {
                continue;
            }
            let mut wait = Wait::new();
            while desk.state.load(Ordering::Acquire) != IDLE {
                wait.longer_than(AWAKE);
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // which end by themselves: to wait for a thread while this one ends is not allowed everywhere
        for helper in &self.helpers {
            helper.thread().unpark();
        }
    }
}

/// Where rayon hands over an iterator's producer.
struct Run<'a, F> {
    workers: &'a mut Workers,
    len: usize,
    f: F,
}

/// A producer cut into pieces, each for whoever takes it.
struct Pieces<P>(Vec<UnsafeCell<Option<P>>>);

// SAFETY: each piece is taken by one thread.
unsafe impl<P: Send> Sync for Pieces<P> {}

impl<P> Pieces<P> {
    /// # Safety
    /// Nobody else takes this piece.
    unsafe fn take(&self, i: usize) -> Option<P> {
        // SAFETY: the caller's promise.
        unsafe { (*self.0[i].get()).take() }
    }
}

impl<T, F: Fn(T) + Send + Sync> ProducerCallback<T> for Run<'_, F> {
    type Output = ();

    fn callback<P: Producer<Item = T>>(self, producer: P) {
        let threads = self.workers.shared.desks.len();
        let at_most = match producer.max_len() {
            usize::MAX => PIECES * threads,
            most => self
                .len
                .div_ceil(most.max(1))
                .min(MOST.max(PIECES * threads)),
        };
        let pieces = at_most.min(self.len / producer.min_len().max(1)).max(1);
        let mut cut: Vec<_> = (0..pieces).map(|_| UnsafeCell::new(None)).collect();
        let mut rest = producer;
        for i in (1..pieces).rev() {
            let (before, piece) = rest.split_at(i * self.len / pieces);
            *cut[i].get_mut() = Some(piece);
            rest = before;
        }
        *cut[0].get_mut() = Some(rest);
        let cut = Pieces(cut);
        let panic = std::sync::Mutex::<Option<Box<dyn Any + Send>>>::new(None);
        let f = &self.f;
        self.workers.run(pieces, &|i| {
            // SAFETY: `run` calls with each once.
            let Some(piece) = (unsafe { cut.take(i) }) else {
                return;
            };
            // a worker that died, or a caller that left while others work, would be worse
            let done = catch_unwind(AssertUnwindSafe(|| piece.into_iter().for_each(f)));
            if let Err(e) = done {
                let mut first = panic.lock().unwrap_or_else(|e| e.into_inner());
                match &*first {
                    None => *first = Some(e),
                    // to drop it is to run what may panic again
                    Some(_) => std::mem::forget(e),
                }
            }
        });
        let panic = panic.into_inner().unwrap_or_else(|e| e.into_inner());
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn each_item_is_taken_once_by_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            for n in [0, 1, 2, 7, 63, 64, 65, 1000] {
                let counts = on_threads(threads, || {
                    let counts: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                    let add = |i: usize| {
                        counts[i].fetch_add(i + 1, Ordering::Relaxed);
                    };
                    (0..n).into_par_iter().each(add);
                    (0..n).into_par_iter().with_max_len(1).each(add);
                    (0..n).into_par_iter().with_min_len(10).each(add);
                    counts
                        .into_iter()
                        .map(AtomicUsize::into_inner)
                        .collect::<Vec<_>>()
                });
                let expected: Vec<_> = (0..n).map(|i| 3 * (i + 1)).collect();
                assert_eq!(counts, expected, "{threads} threads");
            }
        }
    }

    #[test]
    fn items_are_gathered_in_order() {
        let squares = || (0..999_usize).into_par_iter().map(|i| i * i).gather();
        let expected: Vec<_> = (0..999).map(|i| i * i).collect();
        assert_eq!(squares(), expected);
        assert_eq!(on_threads(3, squares), expected);
    }

    #[test]
    fn the_workers_do_work() {
        let names = on_threads(2, || {
            // two tasks that wait for each other need two threads
            let met = AtomicUsize::new(0);
            let names = (0..2).into_par_iter().with_max_len(1).map(|_| {
                met.fetch_add(1, Ordering::SeqCst);
                while met.load(Ordering::SeqCst) < 2 {
                    thread::yield_now();
                }
                thread::current().name().map(str::to_string)
            });
            names.gather()
        });
        assert!(names.contains(&Some("worker 0".to_string())), "{names:?}");
    }

    #[test]
    fn workers_wake_up_again() {
        let sum = on_threads(3, || {
            let sum = AtomicUsize::new(0);
            for i in 0..5 {
                (0..100).into_par_iter().each(|i| {
                    sum.fetch_add(i, Ordering::Relaxed);
                });
                if i > 0 {
                    thread::sleep(3 * AWAKE);
                }
            }
            sum.into_inner()
        });
        assert_eq!(sum, 5 * 4950);
    }

    #[test]
    fn a_task_has_tasks_of_its_own() {
        let sum = on_threads(2, || {
            let sum = AtomicUsize::new(0);
            (0..10).into_par_iter().each(|i| {
                (0..10).into_par_iter().each(|j| {
                    sum.fetch_add(i * j, Ordering::Relaxed);
                });
            });
            sum.into_inner()
        });
        assert_eq!(sum, 45 * 45);
    }

    #[test]
    fn a_panic_comes_to_the_caller_after_all_tasks() {
        let done = on_threads(2, || {
            let done = AtomicUsize::new(0);
            let panics = catch_unwind(AssertUnwindSafe(|| {
                (0..16).into_par_iter().with_max_len(1).each(|i| {
                    assert_ne!(i, 3, "on purpose");
                    done.fetch_add(1, Ordering::Relaxed);
                })
            }));
            assert!(panics.is_err());
            // and they work on
            (0..5).into_par_iter().each(|_| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            done.into_inner()
        });
        assert_eq!(done, 20);
    }
}
