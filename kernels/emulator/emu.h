// emu.h - the emulated CUDA device as a kernel sees it: included before every .cu file, it turns CUDA C++ into
// plain C++17 that runs on the CPU.
//
// How it works. Every CUDA thread is a fiber: a stack of its own and a place where it stopped. One block runs at a
// time. A fiber runs until it has to wait (a barrier, a shuffle), then the next one goes on; nothing ever runs at
// the same time, so a kernel can be stepped through in gdb, and the order of threads is ours to choose.
//
//   runtime.h     what the headers below ask of the runtime
//   language.h    __shared__, threadIdx, float4, KERNEL, DYN_SMEM
//   half.h        f16 and bf16
//   intrinsics.h  maths, bits, atomics
//   warp.h        __syncthreads, shuffles, votes
//   matrix.h      cp.async, ldmatrix, mma: what is inline PTX on the device
//
//   fiber.cpp     stacks and the switch between them
//   scheduler.cpp one block: who runs next, barriers, warp-wide operations
//   memory.cpp    shared memory, cp.async, guarded device memory
//   device.cpp    the host's side (device.h): registry, launch, faults
#pragma once
#define CUDA_EMU 1

#include "runtime.h"

#include "half.h"

#include "language.h"

#include "intrinsics.h"

#include "warp.h"

#include "matrix.h"
