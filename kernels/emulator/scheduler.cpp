// scheduler.cpp - one block: who runs next, barriers, warp-wide operations.
#include "scheduler.h"

#include <cstdarg>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emu {

unsigned lane;
EmuStats stats;
Launch launch;
Thread* running;

constexpr int MAX_THREADS = 1024, WARP = 32, MAX_WARPS = MAX_THREADS / WARP;

static std::vector<Thread> threads(MAX_THREADS);
static int thread_count, done_count;
static unsigned done_lanes[MAX_WARPS];     // of each warp
static unsigned waiting_lanes[MAX_WARPS];  // at a warp-wide operation
static int at_barrier;
static Site barrier_site;  // of those who wait there

#ifdef EMU_TSAN
// What TSan takes for locks. Barriers have two each, used in turn: who has passed a barrier must not lend its later
// writes to those who are still leaving it.
static char start_lock, end_lock, barrier_lock[2], warp_lock[MAX_WARPS][2];
#endif

static void print(std::string& out, const char* format, ...) __attribute__((format(printf, 2, 3)));
static void print(std::string& out, const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  out += text;
}

std::string place_of(const Thread& t) {
  std::string s;
  print(s, "block (%u,%u,%u) thread (%u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z, t.index.x, t.index.y, t.index.z);
  return s;
}

void fail(const char* format, ...) {
  char text[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  launch.failed = true;
  launch.error = "kernel " + std::string(launch.kernel->name) + ": " + text + " [" + place_of(*running) + "]";
  running->state = State::Done;
  EMU_TSAN_ONLY(__tsan_release(&end_lock);)
  suspend(running->fiber, true);
  abort();
}

// ---------------------------------------------------------------- __syncthreads
void barrier(Site here) {
  Thread& t = *running;
  stats.barriers++;
  if (done_count) {
    fail("__syncthreads at %s:%d, but %d thread(s) of the block have already returned", here.file, here.line, done_count);
  }
  bool elsewhere = barrier_site.line != here.line || strcmp(barrier_site.file, here.file);
  if (at_barrier && elsewhere) {
    fail("divergent __syncthreads: this thread at %s:%d, others wait at %s:%d", here.file, here.line, barrier_site.file,
         barrier_site.line);
  }
  EMU_TSAN_ONLY(char* lock = &barrier_lock[t.barriers_passed++ % 2]; __tsan_release(lock);)
  t.state = State::AtBarrier;
  t.site = barrier_site = here;
  t.what = "__syncthreads";
  if (++at_barrier == thread_count) {
    at_barrier = 0;
    for (int i = 0; i < thread_count; i++) threads[i].state = State::Ready;
  }
  suspend(t.fiber, false);  // the last one too: it goes on when its turn comes, not first
  EMU_TSAN_ONLY(__tsan_acquire(lock);)
}

// ---------------------------------------------------------------- warp-wide operations
static unsigned existing_lanes(unsigned warp) {
  int n = thread_count - (int)warp * WARP;
  return n >= WARP ? 0xffffffffu : (1u << n) - 1;
}

// Completes the operation that a thread waits for if all of its lanes are there.
static bool try_meet(const Thread& t) {
  unsigned need = t.mask & ~done_lanes[t.warp];
  if ((waiting_lanes[t.warp] & need) != need) return false;
  void* payloads[WARP] = {};
  for (unsigned rest = need; rest; rest &= rest - 1) {
    Thread& other = threads[t.warp * WARP + __builtin_ctz(rest)];
    // ldmatrix and mma are ".aligned": the very same instruction. Others may meet from different lines.
    bool aligned = t.meet && (!strcmp(t.what, "ldmatrix") || !strcmp(t.what, "mma"));
    if (other.mask != t.mask || other.meet != t.meet || (aligned && other.site.line != t.site.line)) {
      fail("lanes of warp %u meet at different operations: %s mask %08x at %s:%d and %s mask %08x at %s:%d", t.warp,
           t.what, t.mask, t.site.file, t.site.line, other.what, other.mask, other.site.file, other.site.line);
    }
    payloads[other.lane] = other.payload;
  }
  if (t.meet) t.meet(payloads, need);
  waiting_lanes[t.warp] &= ~need;
  for (unsigned rest = need; rest; rest &= rest - 1) {
    threads[t.warp * WARP + __builtin_ctz(rest)].state = State::Ready;
  }
  return true;
}

void warp_op(unsigned mask, Site here, const char* what, void* payload, Meet meet) {
  Thread& t = *running;
  stats.warp_ops++;
  if (!(mask >> t.lane & 1)) {
    fail("%s at %s:%d: the calling lane %u is not in its own mask %08x", what, here.file, here.line, t.lane, mask);
  }
  t.state = State::AtWarpOp;
  t.site = here;
  t.what = what;
  t.mask = mask & existing_lanes(t.warp);
  t.payload = payload;
  t.meet = meet;
  waiting_lanes[t.warp] |= 1u << t.lane;
  if (!try_meet(t)) suspend(t.fiber, false);
}

void warp_barrier(unsigned mask, Site here) {
  EMU_TSAN_ONLY(Thread& t = *running; char* lock = &warp_lock[t.warp][t.warp_barriers_passed++ % 2];
                __tsan_release(lock);)
  warp_op(mask, here, "__syncwarp", nullptr, nullptr);
  EMU_TSAN_ONLY(__tsan_acquire(lock);)
}

unsigned live_lanes() { return existing_lanes(running->warp) & ~done_lanes[running->warp]; }

// ---------------------------------------------------------------- a thread's life
static void returned(Thread& t) {
  complete_copies(t, t.open_group + 1);
  if (at_barrier) {
    fail("this thread returned while %d other(s) wait in __syncthreads at %s:%d", at_barrier, barrier_site.file,
         barrier_site.line);
  }
  t.state = State::Done;
  done_count++;
  done_lanes[t.warp] |= 1u << t.lane;
  for (unsigned rest = waiting_lanes[t.warp]; rest; rest &= rest - 1) {  // those who waited for it alone
    Thread& other = threads[t.warp * WARP + __builtin_ctz(rest)];
    if (other.state == State::AtWarpOp) try_meet(other);
  }
}

static void thread_body() {
  EMU_TSAN_ONLY(__tsan_acquire(&start_lock);)
  launch.kernel->call(launch.args);
  returned(*running);
  EMU_TSAN_ONLY(__tsan_release(&end_lock);)
  suspend(running->fiber, true);
}

static void go_on(Thread& t) {
  stats.switches++;
  running = &t;
  threadIdx = t.index;
  lane = t.lane;
  resume(t.fiber, thread_body);
  running = nullptr;
  if (t.state == State::Done && !launch.failed) finish(t.fiber);
}

// ---------------------------------------------------------------- a block's life
static uint64_t next_random(uint64_t& state) {  // splitmix64
  uint64_t z = state += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}
static void shuffle_order(int* order, int n, uint64_t& state) {
  for (int i = n - 1; i > 0; i--) std::swap(order[i], order[next_random(state) % (i + 1)]);
}

static void begin_block() {
  int warps = (thread_count + WARP - 1) / WARP;
  done_count = at_barrier = 0;
  for (int w = 0; w < warps; w++) done_lanes[w] = waiting_lanes[w] = 0;
  poison_shared();
  for (int i = 0; i < thread_count; i++) {
    Thread& t = threads[i];
    unsigned n = (unsigned)i;
    t.linear = n;
    t.lane = n % WARP;
    t.warp = n / WARP;
    t.index = {n % blockDim.x, n / blockDim.x % blockDim.y, n / (blockDim.x * blockDim.y)};
    t.state = State::Ready;
    t.open_group = 0;
    t.barriers_passed = t.warp_barriers_passed = 0;
    t.copies.clear();
  }
}

static std::string describe_deadlock() {
  std::string s = "kernel " + std::string(launch.kernel->name) + ": deadlock";
  print(s, " in block (%u,%u,%u):", blockIdx.x, blockIdx.y, blockIdx.z);
  int shown = 0;
  for (int i = 0; i < thread_count && shown < 6; i++) {
    const Thread& t = threads[i];
    if (t.state == State::Done) continue;
    print(s, "%s thread (%u,%u,%u) waits at %s (%s:%d)", shown++ ? ";" : "", t.index.x, t.index.y, t.index.z, t.what,
          t.site.file, t.site.line);
  }
  return s;
}

static void run_threads(uint64_t seed) {
  bool random = seed > 1;
  int warps = (thread_count + WARP - 1) / WARP;
  int warp_order[MAX_WARPS], lane_order[WARP];
  for (int w = 0; w < warps; w++) warp_order[w] = w;
  for (int l = 0; l < WARP; l++) lane_order[l] = l;
  if (seed == 1) {
    std::reverse(warp_order, warp_order + warps);
    std::reverse(lane_order, lane_order + WARP);
  }
  while (done_count < thread_count) {
    bool progress = false;
    if (random) shuffle_order(warp_order, warps, seed);
    for (int i = 0; i < warps; i++) {
      int first = warp_order[i] * WARP, lanes = std::min(WARP, thread_count - first);
      for (bool again = true; again;) {  // a warp goes on until all of its lanes wait for other warps
        again = false;
        if (random) shuffle_order(lane_order, WARP, seed);
        for (int l : lane_order) {
          if (l >= lanes || threads[first + l].state != State::Ready) continue;
          go_on(threads[first + l]);
          if (launch.failed) return;
          progress = again = true;
        }
        if (random && next_random(seed) % 4 == 0) break;  // let another warp overtake
      }
    }
    if (!progress) {
      launch.failed = true;
      launch.error = describe_deadlock();
      return;
    }
  }
}

bool run_block(uint64_t seed) {
  stats.blocks++;
  thread_count = (int)(blockDim.x * blockDim.y * blockDim.z);
  begin_block();
  EMU_TSAN_ONLY(__tsan_release(&start_lock);)
  run_threads(seed);
  EMU_TSAN_ONLY(__tsan_acquire(&end_lock);)
  if (launch.failed) {
    for (Thread& t : threads) abandon(t.fiber);
  }
  return !launch.failed;
}

}  // namespace emu
