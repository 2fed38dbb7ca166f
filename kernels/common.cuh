// common.cuh - what all kernels share: how a kernel is declared, types, strided walks, sums.
//
// The same sources are compiled twice: by nvcc into PTX, and by g++ into the emulated device
// (CUDA_EMU is set and emulator/emu.h comes first). Inline PTX and every other difference between
// the two lives in this file and in emulator/emu.h, nowhere else.
#pragma once

#ifndef CUDA_EMU
#include <cuda_bf16.h>
#include <cuda_fp16.h>
// KERNEL(threads, name, parameters...) { body }: `threads` is the most that a block may have.
#define KERNEL(THREADS, NAME, ...) extern "C" __global__ void __launch_bounds__(THREADS) NAME(__VA_ARGS__)
// Dynamic shared memory as an array of T.
#define DYN_SMEM(T, name)                                    \
  extern __shared__ __align__(16) unsigned char name##_raw[]; \
  T* name = reinterpret_cast<T*>(name##_raw)

__device__ __forceinline__ unsigned smem_u32(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// D(16x8, f32) += A(16x16, row-major) B(16x8, column-major), one warp, PTX ISA's fragment layouts
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], __nv_bfloat16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], __half) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// four 8x8 matrices of 16-bit elements, lane l giving the address of row l % 8 of matrix l / 8
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
__device__ __forceinline__ void ldmatrix_x2(unsigned (&r)[2], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1},[%2];\n" : "=r"(r[0]), "=r"(r[1]) : "r"(address));
}
__device__ __forceinline__ void ldmatrix_x2_trans(unsigned (&r)[2], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1},[%2];\n" : "=r"(r[0]), "=r"(r[1]) : "r"(address));
}
// copies 16 bytes from global to shared memory while the thread goes on; zeros when !valid
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(smem_u32(shared)), "l"(global), "r"(valid ? 16 : 0));
}
// the same of 4 bytes
__device__ __forceinline__ void cp_async4(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(smem_u32(shared)), "l"(global), "r"(valid ? 4 : 0));
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::); }
// waits until at most N of this thread's groups are still under way
template <int N> __device__ __forceinline__ void cp_async_wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(N)); }
#endif

typedef __nv_bfloat16 bf16;
typedef __half f16;
typedef unsigned char u8;
typedef long long i64;

// One instance of a macro for each element type: M(name, type).
#define FOR_REAL(M) M(f32, float) M(f64, double)
#define FOR_FLOAT(M) FOR_REAL(M) M(bf16, bf16) M(f16, f16)
#define FOR_ALL(M) FOR_FLOAT(M) M(i64, i64) M(u8, u8)

// ---------------------------------------------------------------- element types
// 16-bit floats are loaded, computed in f32 and rounded once, when stored.
template <class T> struct Wide { typedef T type; };
template <> struct Wide<bf16> { typedef float type; };
template <> struct Wide<f16> { typedef float type; };
template <class T> using wide = typename Wide<T>::type;

template <class T> __device__ __forceinline__ wide<T> widen(T x) { return x; }
template <> __device__ __forceinline__ float widen<bf16>(bf16 x) { return __bfloat162float(x); }
template <> __device__ __forceinline__ float widen<f16>(f16 x) { return __half2float(x); }
template <class T> __device__ __forceinline__ T narrow(wide<T> x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return __float2bfloat16(x); }
template <> __device__ __forceinline__ f16 narrow<f16>(float x) { return __float2half(x); }

// 16 bytes of elements: what one thread loads or stores at once. Wants a 16-byte aligned address.
template <class T> struct __align__(16) Pack {
  static const int N = 16 / (int)sizeof(T);
  T v[N];
};

// ---------------------------------------------------------------- strided walks
// K strided operands beside an output that is written front to back (shape::Loops on the host):
// the output's axes in its memory order, neighbours merged, strides in elements.
template <int K> struct Walk {
  int rank;
  unsigned n;  // elements of the output
  int dims[6];
  int strides[K][6];
};
// where operand k lies for output element i
template <int K> __device__ __forceinline__ void walk_to(const Walk<K>& w, unsigned i, i64 (&at)[K]) {
#pragma unroll
  for (int k = 0; k < K; k++) at[k] = 0;
#pragma unroll
  for (int d = 5; d >= 0; d--) {
    if (d >= w.rank) continue;
    unsigned q = i / (unsigned)w.dims[d], r = i - q * (unsigned)w.dims[d];
    i = q;
#pragma unroll
    for (int k = 0; k < K; k++) at[k] += (i64)r * w.strides[k][d];
  }
}

// ---------------------------------------------------------------- sums and maxima over a block
template <class T> __device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
  return v;
}
// Every thread gets the sum over the block, in an order that the block's size alone decides.
// `scratch` holds 32 elements of shared memory. All threads of the block must call it; the block
// is a whole number of warps.
template <class T> __device__ __forceinline__ T block_sum(T v, T* scratch) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  v = warp_sum(v);
  __syncthreads();  // the scratch may still be read from the sum before
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  return warp_sum(lane < warps ? scratch[lane] : T(0));
}
// NaN wins, as PyTorch has it.
template <class T> __device__ __forceinline__ T nan_max(T a, T b) { return a > b || a != a ? a : b; }
template <class T> __device__ __forceinline__ T nan_min(T a, T b) { return a < b || a != a ? a : b; }
template <class T> __device__ __forceinline__ T warp_max(T v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v = nan_max(v, __shfl_xor_sync(0xffffffffu, v, o));
  return v;
}
template <class T> __device__ __forceinline__ T block_max(T v, T* scratch) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  v = warp_max(v);
  __syncthreads();
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  return warp_max(lane < warps ? scratch[lane] : scratch[0]);
}

// ---------------------------------------------------------------- indices that are out of range
// The first of them is kept for the host, which turns it into an error at the next read; the
// kernel goes on without touching what the index names. `op` is the host's number of the op.
__device__ __forceinline__ void report_index(i64* fault, int op, i64 index, i64 size) {
  if (atomicCAS((unsigned long long*)fault, 0ull, 1ull) == 0ull) {
    fault[1] = op;
    fault[2] = index;
    fault[3] = size;
  }
}
