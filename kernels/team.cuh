// team.cuh - teams of threads that share a row: some lanes of a warp, a warp, or a whole block.
#pragma once
#include "common.cuh"

struct Sum {
  template <class T> static __device__ __forceinline__ T none() { return T(0); }
  template <class T> static __device__ __forceinline__ T join(T a, T b) { return a + b; }
};
struct Greatest {
  template <class T> static __device__ __forceinline__ T none() { return T(-INFINITY); }
  template <class T> static __device__ __forceinline__ T join(T a, T b) { return nan_max(a, b); }
};

// Which of the team's threads this is, and which of the grid's teams. `lanes` is a power of two up
// to 32, or the block's size.
struct Team {
  int lanes, lane;
  unsigned row;
  __device__ __forceinline__ explicit Team(int lanes)
      : lanes(lanes), lane(threadIdx.x % lanes), row(blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes) {}

  // Every thread of the team gets the team's values joined, in an order that `lanes` alone decides.
  // All threads of the block must call it; `scratch` holds 32 elements of shared memory.
  template <class R, class T> __device__ __forceinline__ T join(T v, T* scratch) const {
    for (int o = (lanes < 32 ? lanes : 32) >> 1; o; o >>= 1) v = R::join(v, __shfl_xor_sync(0xffffffffu, v, o));
    if (lanes <= 32) return v;
    int in_warp = threadIdx.x & 31, warps = blockDim.x >> 5;
    __syncthreads();  // the scratch may still be read from the join before
    if (in_warp == 0) scratch[threadIdx.x >> 5] = v;
    __syncthreads();
    v = in_warp < warps ? scratch[in_warp] : R::template none<T>();
#pragma unroll
    for (int o = 16; o; o >>= 1) v = R::join(v, __shfl_xor_sync(0xffffffffu, v, o));
    return v;
  }
};

// A stretch of a row in registers: element j of thread `lane` is from + lane + j lanes of the row.
template <class T> struct Held {
  static const int N = 32 / (int)sizeof(T);
  T v[N];
  static __device__ __forceinline__ unsigned place(unsigned from, int j, const Team& t) { return from + t.lane + j * t.lanes; }
  // the stretch at `from` of the n elements at p, which lie `stride` apart; `fill` beyond them
  __device__ __forceinline__ void load(const T* p, unsigned n, size_t stride, unsigned from, const Team& t, T fill) {
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = place(from, j, t) < n ? p[place(from, j, t) * stride] : fill;
  }
};

// The greatest of some numbers and the sum of e^(x - greatest).
template <class T> struct Exponentials {
  T max = T(-INFINITY), sum = T(0);
  __device__ __forceinline__ void add(const Held<T>& x) {
    T top = max;
#pragma unroll
    for (int j = 0; j < Held<T>::N; j++) top = nan_max(top, x.v[j]);
    // while all are minus infinity, e^(x - top) would be NaN
    T shift = top == T(-INFINITY) ? T(0) : top;
    sum *= exp(max - shift);
#pragma unroll
    for (int j = 0; j < Held<T>::N; j++) sum += exp(x.v[j] - shift);
    max = top;
  }
  // those of the whole team, for each of its threads
  __device__ __forceinline__ void join(const Team& t, T* scratch) {
    T top = t.join<Greatest>(max, scratch);
    sum = t.join<Sum>(sum * exp(max - top), scratch);
    max = top;
  }
};
