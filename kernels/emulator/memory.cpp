// memory.cpp - shared memory, asynchronous copies into it, and guarded device memory.
#include <sys/mman.h>

#include <iterator>
#include <map>
#include <mutex>

#include "scheduler.h"

namespace emu {

constexpr size_t PAGE = 4096;
static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// ---------------------------------------------------------------- shared memory
// Dynamic shared memory lies at the end of one region that is kept between launches; a page without access follows.
constexpr size_t REGION = 256 << 10;
static char* region;
static char* dynamic;
static size_t dynamic_bytes;

// Addresses as the device sees them: dynamic shared memory from 0, static from STATIC on.
constexpr uint32_t STATIC = 0x40000;

void set_dynamic_shared(size_t bytes) {
  if (!region) {
    region = (char*)mmap(nullptr, REGION + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (region == MAP_FAILED || mprotect(region + REGION, PAGE, PROT_NONE)) {
      perror("emulated device: shared memory");
      abort();
    }
  }
  dynamic_bytes = bytes;
  dynamic = region + REGION - round_up(bytes, 16);
#ifdef EMU_ASAN
  __asan_poison_memory_region(region, REGION);
  __asan_unpoison_memory_region(dynamic, bytes);
#endif
}

void* dynamic_shared() {
  if (!dynamic_bytes) fail("the kernel uses dynamic shared memory but was launched with 0 bytes of it");
  return dynamic;
}

// Byte by byte and unchecked: between static arrays lie zones that ASan forbids.
__attribute__((no_sanitize("address"), noinline)) static void fill(char* begin, char* end) {
#ifdef EMU_ASAN
  for (volatile char* p = begin; p < end; p++) *p = (char)0xFF;
#else
  if (begin < end) memset(begin, 0xFF, end - begin);
#endif
}
// What was not written reads as NaN.
void poison_shared() {
  fill(launch.kernel->shared_begin, launch.kernel->shared_end);
  fill(dynamic, dynamic + dynamic_bytes);
}

uint32_t shared_address(const void* pointer) {
  const char* p = (const char*)pointer;
  const Kernel& k = *launch.kernel;
  if (p >= dynamic && p <= dynamic + dynamic_bytes) return (uint32_t)(p - dynamic);
  if (k.shared_begin && p >= k.shared_begin && p <= k.shared_end) return STATIC + (uint32_t)(p - k.shared_begin);
  fail("address %p is not in shared memory", pointer);
}
void* shared_pointer(uint32_t address, size_t bytes, size_t alignment) {
  if (address % alignment) fail("shared address 0x%x is not aligned to %zu bytes", address, alignment);
  if (address < STATIC) {
    if (address + bytes > dynamic_bytes) {
      fail("shared access [0x%x, +%zu) beyond the %zu bytes of dynamic shared memory", address, bytes, dynamic_bytes);
    }
    return dynamic + address;
  }
  char* p = launch.kernel->shared_begin + (address - STATIC);
  if (p + bytes > launch.kernel->shared_end) fail("shared access beyond static shared memory");
  return p;
}
void note_shared_read(uint32_t address, size_t bytes) {
  void* p = shared_pointer(address, bytes, bytes);
  (void)p;
  EMU_TSAN_ONLY(__tsan_read_range(p, bytes);)
}

// ---------------------------------------------------------------- cp.async
static void copy(const Copy& c) {
  EMU_TSAN_ONLY(__tsan_write_range(c.shared, c.bytes);)
  if (c.valid) {
    memcpy(c.shared, c.global, c.bytes);
  } else {
    memset(c.shared, 0, c.bytes);
  }
}
void cp_async(void* shared, const void* global, size_t bytes, bool valid) {
  (void)shared_pointer(shared_address(shared), bytes, bytes);
  if (valid && (uintptr_t)global % bytes) fail("cp.async: global address %p is not aligned to %zu bytes", global, bytes);
  Copy c{shared, global, bytes, valid, running->open_group};
  if (!launch.delay_copies) return copy(c);
  EMU_TSAN_ONLY(__tsan_write_range(shared, bytes); if (valid) __tsan_read_range((void*)global, bytes);)
  if (valid) {  // a bad address faults here, not at the wait
    volatile char first = ((const char*)global)[0], last = ((const char*)global)[bytes - 1];
    (void)first, (void)last;
  }
  running->copies.push_back(c);
}
void complete_copies(Thread& thread, int groups) {
  size_t kept = 0;
  for (const Copy& c : thread.copies) {
    if (c.group < groups) {
      copy(c);
    } else {
      thread.copies[kept++] = c;
    }
  }
  thread.copies.resize(kept);
}
void cp_async_commit() { running->open_group++; }
void cp_async_wait(int groups_left) { complete_copies(*running, running->open_group - groups_left); }

// ---------------------------------------------------------------- device memory
// An allocation ends at a page without access (up to 15 bytes of canary between them, for the alignment) and has
// another in front. Under ASan it comes from malloc, which ASan guards more closely.
struct Allocation {
  size_t bytes;
  char *map, *body;  // the mapping; its part that has access
  size_t map_bytes, body_bytes;
};
static std::mutex allocations_lock;
static std::map<const char*, Allocation> allocations;

// The allocation that an address lies in or just behind.
static std::map<const char*, Allocation>::iterator owner(const void* pointer) {
  auto after = allocations.upper_bound((const char*)pointer);
  if (after == allocations.begin()) return allocations.end();
  auto found = std::prev(after);
  return (const char*)pointer <= found->first + found->second.bytes ? found : allocations.end();
}

std::string check_pointer(const void* pointer) {
  std::lock_guard<std::mutex> guard(allocations_lock);
  return !pointer || owner(pointer) != allocations.end() ? "" : "does not point into device memory";
}

std::string check_canary(const void* pointer) {
  std::lock_guard<std::mutex> guard(allocations_lock);
  auto found = owner(pointer);
  if (!pointer || found == allocations.end() || !found->second.map) return "";
  const char* begin = found->first;
  const Allocation& a = found->second;
  auto changed = [](char c) { return c != (char)0xFF; };
  if (std::any_of(begin + a.bytes, (const char*)a.body + a.body_bytes, changed)) return "past the end";
  if (std::any_of(std::max((const char*)a.body, begin - 64), begin, changed)) return "before the beginning";
  return "";
}

static void* allocate(size_t bytes) {
  Allocation a{bytes, nullptr, nullptr, 0, 0};
  void* pointer = nullptr;
#ifdef EMU_ASAN
  if (posix_memalign(&pointer, 256, bytes ? bytes : 1)) return nullptr;
  memset(pointer, 0xFF, bytes);
#else
  size_t used = round_up(bytes ? bytes : 1, 16);
  a.body_bytes = round_up(used, PAGE);
  a.map_bytes = PAGE + a.body_bytes + PAGE;
  a.map = (char*)mmap(nullptr, a.map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (a.map == MAP_FAILED) return nullptr;
  a.body = a.map + PAGE;
  if (mprotect(a.body, a.body_bytes, PROT_READ | PROT_WRITE)) {
    munmap(a.map, a.map_bytes);
    return nullptr;
  }
  memset(a.body, 0xFF, a.body_bytes);
  pointer = a.body + a.body_bytes - used;
#endif
  std::lock_guard<std::mutex> guard(allocations_lock);
  allocations[(const char*)pointer] = a;
  return pointer;
}

static void release(void* pointer) {
  Allocation a;
  {
    std::lock_guard<std::mutex> guard(allocations_lock);
    auto found = allocations.find((const char*)pointer);
    if (found == allocations.end()) {
      fprintf(stderr, "emulated device: emu_free(%p) of what emu_malloc did not give\n", pointer);
      abort();
    }
    a = found->second;
    allocations.erase(found);
  }
  if (a.map) {
    munmap(a.map, a.map_bytes);
  } else {
    free(pointer);
  }
}

}  // namespace emu

void* emu_malloc(size_t bytes) { return emu::allocate(bytes); }
void emu_free(void* pointer) {
  if (pointer) emu::release(pointer);
}
