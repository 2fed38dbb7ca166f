// device.h - the emulated device as the host sees it: a C interface in the manner of the CUDA driver's.
//
// Thread safety: every function may be called from any OS thread. Launches run one at a time in the whole process
// (static __shared__ arrays exist once); a second launch waits for the first.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {
// Registers all kernels. Call before anything else; calling again does nothing.
void emu_init(void);

// Chooses the order of CUDA threads for later launches by the calling OS thread. 0: in order. 1: in reverse. Others: a
// random order of lanes, warps and blocks, always the same for the same number. With an odd seed cp.async copies at
// the wait that completes it, with an even one at once: the device may do either.
void emu_set_seed(uint64_t seed);

// A kernel's handle, NULL where no kernel has that name.
const void* emu_find(const char* name);

// All kernels in alphabetical order: how many, and their names.
size_t emu_kernel_count(void);
const char* emu_kernel_name(size_t index);

// The kernel's parameters, in order:
//   r?   pointer to const elements       p?   pointer to elements that the kernel may write
//        ?: f float, d double, b bf16, h f16, l i64, c u8, i int, u unsigned, v anything else
//   i u l f d   int, unsigned, i64, float, double by value
//   {N}  anything else by value: N bytes
// For example "rfpfid{80}".
const char* emu_signature(const void* kernel);

// Runs a kernel to its end. args[i] points at the i-th argument's value, of the type that the signature tells.
// Returns 0: it ran; 1: refused, nothing ran (block, grid, shared memory or a pointer is not valid);
// 2: faulted, memory that it writes is undefined.
int emu_launch(const void* kernel, const uint32_t grid[3], const uint32_t block[3], uint32_t smem, void** args);

// What went wrong in the calling OS thread's last launch; "" when nothing did.
const char* emu_last_error(void);

// Device memory: every byte is 0xFF (a float is NaN), aligned to 16 bytes, and an access past the end faults.
// That works for exactly `bytes`: ask for what a tensor needs and do not recycle. NULL: no memory left.
void* emu_malloc(size_t bytes);
void emu_free(void* pointer);

// Counters since the process began.
struct EmuStats {
  uint64_t launches, blocks, switches, barriers, warp_ops;
  uint64_t ldmatrix_reads, ldmatrix_conflicts;  // 8x8 matrices read; those whose rows fall on the same banks
};
void emu_stats(struct EmuStats* out);
}
