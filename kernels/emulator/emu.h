// emu.h - the emulated CUDA device as a kernel sees it: included before every .cu file, it turns CUDA C++ into
// plain C++17 that runs on the CPU.
//
// How it works. Every CUDA thread is a fiber: a stack of its own and a place where it stopped. One block runs at a
// time. A fiber runs until it has to wait (a barrier, a shuffle), then the next one goes on; nothing ever runs at
// the same time, so a kernel can be stepped through in a debugger, and the order of threads is ours to choose.
//
//   vector_types.h  float4 and its like, threadIdx
//   runtime.h       what the headers below ask of the runtime
//   half.h          f16 and bf16
//   language.h      __shared__, KERNEL, DYN_SMEM
//   intrinsics.h    maths, bits, atomics
//   warp.h          __syncthreads, shuffles, votes
//   matrix.h        cp.async, ldmatrix, mma: what is inline PTX on the device
//
// The runtime:
//   device.h .cpp   the host's side: registry, launch, faults
//   scheduler.h .cpp  one block: who runs next, barriers, warp-wide operations
//   memory.cpp      shared memory, cp.async, guarded device memory
//   fiber.h .cpp    stacks and the switch between them
//   sanitizers.h    what ASan and TSan want to be told
//
// build.rs compiles all of this with the feature `emulator`. planted.cu holds kernels with faults that must be found.
//
// To step through a kernel, build without optimization and break in one CUDA thread of it:
//   CARGO_PROFILE_DEV_OPT_LEVEL=0 cargo test --features emulator --test cuda --no-run
//   COTANGENT_CASES=softmax rust-gdb --args target/debug/deps/cuda-... f32_agrees
//   (gdb) break softmax_f32 if threadIdx.x == 5
//   (gdb) run
#pragma once
#define CUDA_EMU 1

#include "vector_types.h"
#include "runtime.h"
#include "half.h"
#include "language.h"
#include "intrinsics.h"
#include "warp.h"
#include "matrix.h"
