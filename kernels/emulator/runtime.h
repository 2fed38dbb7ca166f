// runtime.h - what a kernel's code asks of the emulator's runtime.
#pragma once
#include <algorithm>
#include <cassert>
#include <cfloat>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <math.h>  // not <cmath>: this one puts exp(float) and its like beside exp(double), as CUDA has it
#include <string>
#include <type_traits>
#include <utility>

#include "device.h"

// For code that reads other fibers' stacks: a race by TSan's books, though fibers never run at once.
#define EMU_NO_TSAN __attribute__((no_sanitize("thread")))

namespace emu {

// A place in a kernel's source. As a default argument `here()` is the place of the call.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

extern unsigned lane;  // of the running thread: its place in its warp
extern EmuStats stats;

// Ends the launch with an error that names kernel, block and thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// __syncthreads: waits until every thread of the block is here.
void barrier(Site here);

// The one mechanism behind every warp-wide operation. Each lane of `mask` brings a payload and waits; the last to
// come runs `meet` over all of them (payloads[l] is NULL where lane l is not in the mask or has returned).
typedef void (*Meet)(void** payloads, unsigned mask);
void warp_op(unsigned mask, Site here, const char* what, void* payload, Meet meet);
// __syncwarp: a warp_op that also orders memory.
void warp_barrier(unsigned mask, Site here);
// Lanes of this warp that have not returned.
unsigned live_lanes();

void* dynamic_shared();
// Shared memory has 32-bit addresses of its own on the device; these convert, and check.
uint32_t shared_address(const void* pointer);
void* shared_pointer(uint32_t address, size_t bytes, size_t alignment);
// Tells the race detector that this thread reads there.
void note_shared_read(uint32_t address, size_t bytes);

void cp_async(void* shared, const void* global, size_t bytes, bool valid);
void cp_async_commit();
void cp_async_wait(int groups_left);

// A kernel, as the KERNEL macro declares it. The constructor puts it into the registry.
struct Kernel {
  const char* name;
  std::string signature;
  int max_threads;
  void (*call)(void** args);
  char *shared_begin, *shared_end;  // the static __shared__ memory of the kernel's file
  Kernel* next;

  Kernel(const char* name, std::string signature, int max_threads, void (*call)(void**), char* shared_begin,
         char* shared_end);
};

}  // namespace emu
