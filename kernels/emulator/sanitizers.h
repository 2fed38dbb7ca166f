// sanitizers.h - what AddressSanitizer and ThreadSanitizer want to be told about fibers and memory. EMU_ASAN and
// EMU_TSAN say which build this is (build.rs: the runtime itself is not instrumented for TSan, kernels are).
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
extern "C" {
void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void* saved, const void** bottom_old, size_t* bytes_old);
void __asan_poison_memory_region(const volatile void* p, size_t bytes);
void __asan_unpoison_memory_region(const volatile void* p, size_t bytes);
}
#endif

#ifdef EMU_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* address, unsigned long bytes);
void __tsan_write_range(void* address, unsigned long bytes);
}
constexpr unsigned TSAN_SYNC = 0, TSAN_NO_SYNC = 1;  // a switch orders nothing, as a rule: only barriers do
#define EMU_TSAN_ONLY(...) __VA_ARGS__
#else
#define EMU_TSAN_ONLY(...)
#endif
