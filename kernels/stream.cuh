// stream.cuh - functions that take a number of a random stream an element.
#pragma once
#include "lane.cuh"
#include "philox.cuh"

// A stream begins at place = (seed, blocks taken), which lies in device memory, where a captured
// graph finds a new one at each replay. `f.of(bits, x)` is the factor of an element x with these
// 32 bits of the stream; the bits' upper 24 are a uniform number.

// y = g f(x), all row-major: element i takes number i. One thread a block of the stream: four
// elements.
template <class T, class F>
__device__ __forceinline__ void by_stream(const T* x, const T* g, T* y, const i64* place, unsigned n, F f) {
  unsigned quad = blockIdx.x * blockDim.x + threadIdx.x, i = quad * 4;
  if (i >= n) return;
  uint4 r = philox(place[0], place[1] + quad);
  unsigned bits[4] = {r.x, r.y, r.z, r.w};
  if (i + 4 <= n) {
    Lane<T, 4> v = load<T, 4>(x + i), t = load<T, 4>(g + i);
#pragma unroll
    for (int j = 0; j < 4; j++) t.v[j] = narrow<T>(widen(t.v[j]) * f.of(bits[j], widen(v.v[j])));
    store<T, 4>(y + i, t);
  } else {
#pragma unroll
    for (unsigned j = 0; j < 3; j++)
      if (j < n - i) y[i + j] = narrow<T>(widen(g[i + j]) * f.of(bits[j], widen(x[i + j])));
  }
}

// How many neighbours a thread takes: one; four that share a number; or four with a block of the
// stream.
enum Fours { NO_FOURS, SHARED, BLOCK_OF_FOUR };

// y = g f(x), all in one memory order, in which w finds the number that an element takes.
// One thread an element or four neighbours, which the host knows to lie so (Walk::fours).
template <class T, class F>
__device__ __forceinline__ void by_stream_strided(const T* x, const T* g, T* y, const i64* place, const Walk<1>& w, F f,
                                                  int fours) {
  unsigned i = (blockIdx.x * blockDim.x + threadIdx.x) * (fours == NO_FOURS ? 1 : 4);
  if (i >= w.n) return;
  i64 at[1];
  walk_to(w, i, at);
  uint4 r = philox(place[0], place[1] + at[0] / 4);
  int k = at[0] % 4;
  unsigned own = k == 0 ? r.x : k == 1 ? r.y : k == 2 ? r.z : r.w;
  if (fours == NO_FOURS) {
    y[i] = narrow<T>(widen(g[i]) * f.of(own, widen(x[i])));
    return;
  }
  unsigned bits[4] = {r.x, r.y, r.z, r.w};
  Lane<T, 4> v = load<T, 4>(x + i), t = load<T, 4>(g + i);
#pragma unroll
  for (int j = 0; j < 4; j++)
    t.v[j] = narrow<T>(widen(t.v[j]) * f.of(fours == SHARED ? own : bits[j], widen(v.v[j])));
  store<T, 4>(y + i, t);
}
