// fiber.h - a fiber: a stack of its own and the place where it stopped. The scheduler resumes it, it suspends itself.
#pragma once
#include <cstddef>

namespace emu {

struct Stack;

struct Fiber {
  Stack* stack = nullptr;
  void* stack_pointer = nullptr;  // where it stopped; null: it is to begin
  void* asan_frames = nullptr;  // ASan's and TSan's books about it
  void* tsan_fiber = nullptr;
};

// Goes on with the fiber until it suspends itself; a new one begins at `body`, which ends with suspend(fiber, true).
void resume(Fiber& fiber, void (*body)());
// Back to the scheduler. `forever`: it will not be resumed.
void suspend(Fiber& fiber, bool forever);
// Makes a fiber that has ended new.
void finish(Fiber& fiber);
// The same wherever it stands.
void abandon(Fiber& fiber);
// The address lies in the page below the fiber's stack: the stack was too small.
bool is_overflow(const Fiber& fiber, const void* address);

}  // namespace emu
