// fiber.h - a fiber: a stack of its own and the place where it stopped. The scheduler resumes it, it suspends itself.
#pragma once
#include <cstddef>

namespace emu {

struct Stack;

struct Fiber {
  Stack* stack = nullptr;  // from its first resume to its end
  void* stack_pointer = nullptr;
  void* asan_frames = nullptr;  // ASan's and TSan's books about it
  void* tsan_fiber = nullptr;
};

// Goes on with the fiber until it suspends itself. A fiber without a stack begins at `body`, which must not return:
// it ends with suspend(fiber, true).
void resume(Fiber& fiber, void (*body)());
// Back to the scheduler. `forever`: it will not be resumed, its stack is free.
void suspend(Fiber& fiber, bool forever);
// Gives up a fiber that will not be resumed, wherever it stands.
void abandon(Fiber& fiber);
// The address lies in the page below the fiber's stack: the stack was too small.
bool is_overflow(const Fiber& fiber, const void* address);

}  // namespace emu
