// scheduler.h - what the runtime's files know of each other: the block that runs, and shared memory.
#pragma once
#include <string>
#include <vector>

#include "fiber.h"
#include "runtime.h"
#include "sanitizers.h"
#include "vector_types.h"

namespace emu {

enum class State { Ready, AtBarrier, AtWarpOp, Done };

// A cp.async that its thread has not waited for yet.
struct Copy {
  void* shared;
  const void* global;
  size_t bytes;
  bool valid;
  int group;
};

// A CUDA thread.
struct Thread {
  Fiber fiber;
  State state;
  unsigned linear, lane, warp;
  uint3 index;  // threadIdx

  // where it waits, and for whom
  Site site;
  const char* what;
  unsigned mask;
  void* payload;
  Meet meet;

  std::vector<Copy> copies;
  int open_group;

  unsigned barriers_passed, warp_barriers_passed;  // for TSan
};

// A launch. There is one at a time.
struct Launch {
  const Kernel* kernel;
  void** args;
  bool delay_copies;
  bool failed;
  std::string error;
};
extern Launch launch;
extern Thread* running;  // null: the scheduler's or the host's code runs
std::string place_of(const Thread& thread);

// Runs block `blockIdx` of the launch; false when it failed.
bool run_block(uint64_t seed);

// Dynamic shared memory of a launch; before each block; at a thread's end.
void set_dynamic_shared(size_t bytes);
void poison_shared();
void complete_copies(Thread& thread, int groups);

// What is wrong with a pointer to `what` the host passes to a kernel; "" when nothing is.
std::string check_pointer(const void* pointer);
// Which bytes around the allocation that `pointer` lies in are no longer as they were; "" when none.
std::string check_canary(const void* pointer);

}  // namespace emu
