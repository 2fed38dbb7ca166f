// fiber.cpp - stacks and the switch between them, with what the sanitizers want to be told.
#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "sanitizers.h"

// void emu_switch(void** save, void* to): pushes the registers that a function must keep, stores the stack pointer
// in *save, takes `to` as the new one and pops what lies there; `ret` then goes on where that stack stopped.
#if !defined(__x86_64__)
#error "the emulated device knows how to switch stacks on x86-64 alone: add this architecture's switch here"
#endif
asm(R"(
.text
.globl emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch, .-emu_switch
)");
extern "C" void emu_switch(void** save, void* to);

namespace emu {

#if defined(EMU_ASAN) || defined(EMU_TSAN)
constexpr size_t STACK_BYTES = 256 << 10;
#else
constexpr size_t STACK_BYTES = 64 << 10;
#endif
constexpr size_t PAGE = 4096;

struct Stack {
  char* bottom;  // a page without access lies below
  char* top;     // where frames begin
};

// Free stacks, last freed first: threads that never wait all run on the one that is warm in the cache.
static std::vector<Stack*> free_stacks;
static void* scheduler_stack_pointer;

static Stack* take_stack() {
  if (!free_stacks.empty()) {
    Stack* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
  }
  char* memory = (char*)mmap(nullptr, PAGE + STACK_BYTES, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, PAGE, PROT_NONE)) {
    perror("emulated device: a thread's stack");
    abort();
  }
  static size_t made = 0;
  size_t offset = made++ * 576 % 16384;  // tops at the same place in every stack would share few cache lines
  char* bottom = memory + PAGE;
  return new Stack{bottom, bottom + STACK_BYTES - offset};
}

bool is_overflow(const Fiber& fiber, const void* address) {
  return fiber.stack && address < fiber.stack->bottom && address >= fiber.stack->bottom - PAGE;
}

void finish(Fiber& fiber) {
  fiber.stack_pointer = nullptr;
  if (!fiber.stack) return;
#ifdef EMU_ASAN
  __asan_unpoison_memory_region(fiber.stack->bottom, STACK_BYTES);  // its first frames never return
#endif
#ifndef EMU_TSAN  // to TSan a fiber is a thread: two of them on one stack would race
  free_stacks.push_back(fiber.stack);
  fiber.stack = nullptr;
#endif
}

void abandon(Fiber& fiber) {
  finish(fiber);
#ifdef EMU_TSAN
  if (!fiber.tsan_fiber) return;
  void* here = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(fiber.tsan_fiber, TSAN_NO_SYNC);
  __tsan_switch_to_fiber(here, TSAN_SYNC);  // what it did came before what follows
  __tsan_destroy_fiber(fiber.tsan_fiber);   // in the midst of its calls
  fiber.tsan_fiber = nullptr;
#endif
}

#ifdef EMU_ASAN
static const void* scheduler_stack;
static size_t scheduler_stack_bytes;
static void* scheduler_frames;
#endif
#ifdef EMU_TSAN
static void* scheduler_fiber;
#endif

static void (*fiber_body)();
static void first_frame() {
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
  fiber_body();
  abort();
}

void resume(Fiber& fiber, void (*body)()) {
  if (!fiber.stack_pointer) {
    if (!fiber.stack) fiber.stack = take_stack();
    void** top = (void**)fiber.stack->top;
    *--top = nullptr;  // the return address of first_frame: the end for a debugger's backtrace
    *--top = (void*)first_frame;
    top -= 6;  // the registers that emu_switch pops
    memset(top, 0, 6 * sizeof *top);
    fiber.stack_pointer = top;
    fiber_body = body;
  }
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(&scheduler_frames, fiber.stack->bottom, STACK_BYTES);
#endif
#ifdef EMU_TSAN
  if (!fiber.tsan_fiber) fiber.tsan_fiber = __tsan_create_fiber(0);
  scheduler_fiber = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(fiber.tsan_fiber, TSAN_NO_SYNC);
#endif
  emu_switch(&scheduler_stack_pointer, fiber.stack_pointer);
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(scheduler_frames, nullptr, nullptr);
#endif
}

void suspend(Fiber& fiber, bool forever) {
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(forever ? nullptr : &fiber.asan_frames, scheduler_stack, scheduler_stack_bytes);
#endif
#ifdef EMU_TSAN
  __tsan_switch_to_fiber(scheduler_fiber, TSAN_NO_SYNC);
#endif
  (void)forever;
  emu_switch(&fiber.stack_pointer, scheduler_stack_pointer);
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(fiber.asan_frames, nullptr, nullptr);
#endif
}

}  // namespace emu
