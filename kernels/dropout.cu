// dropout.cu - dropout; element i in row-major order takes number i of the stream.
#include "lane.cuh"
#include "philox.cuh"

// A stream that begins at place = (seed, blocks taken), as a mask with 0 at probability p and else
// 1 / (1 - p). The place lies in device memory, where a captured graph finds a new one at each replay.
template <class T> struct Mask {
  unsigned long long seed, offset;
  unsigned below;
  T keep;
  // a number is its upper 24 bits: u < p compares them with p 2^24, without rounding
  __device__ __forceinline__ Mask(const i64* place, double p)
      : seed(place[0]), offset(place[1]), below((unsigned)ceil(p * 16777216)), keep((T)(p < 1 ? 1 / (1 - p) : 0)) {}
  __device__ __forceinline__ T of(unsigned bits) const { return bits >> 8 < below ? T(0) : keep; }
};

template <class T> __device__ __forceinline__ void dropout_body(const T* x, T* y, const i64* place, unsigned n, double p) {
  unsigned quad = blockIdx.x * blockDim.x + threadIdx.x, i = quad * 4;
  if (i >= n) return;
  Mask<wide<T>> mask(place, p);
  uint4 r = philox(mask.seed, mask.offset + quad);
  wide<T> m[4] = {mask.of(r.x), mask.of(r.y), mask.of(r.z), mask.of(r.w)};
  if (i + 4 <= n) {
    Lane<T, 4> t = load<T, 4>(x + i);
#pragma unroll
    for (int j = 0; j < 4; j++) t.v[j] = narrow<T>(widen(t.v[j]) * m[j]);
    store<T, 4>(y + i, t);
  } else {
    for (unsigned j = 0; j < n - i; j++) y[i + j] = narrow<T>(widen(x[i + j]) * m[j]);
  }
}
// y = x mask, both row-major. One thread a block of the stream: four elements.
#define DROPOUT(NAME, T)                                                                            \
  KERNEL(256, dropout_##NAME, const T* x, T* y, const i64* place, unsigned n, double p) {           \
    dropout_body<T>(x, y, place, n, p);                                                             \
  }
FOR_FLOAT(DROPOUT)

template <class T>
__device__ __forceinline__ void dropout_strided_body(const T* x, T* y, const i64* place, const Walk<1>& w, double p) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= w.n) return;
  i64 at[1];
  walk_to(w, i, at);
  Mask<wide<T>> mask(place, p);
  uint4 r = philox(mask.seed, mask.offset + at[0] / 4);
  int k = at[0] % 4;
  y[i] = narrow<T>(widen(x[i]) * mask.of(k == 0 ? r.x : k == 1 ? r.y : k == 2 ? r.z : r.w));
}
// y = x mask, both in the same memory order, in which w finds the elements' row-major numbers.
// One thread an element.
#define DROPOUT_STRIDED(NAME, T)                                                                    \
  KERNEL(256, dropout_strided_##NAME, const T* x, T* y, const i64* place, Walk<1> w, double p) {    \
    dropout_strided_body<T>(x, y, place, w, p);                                                     \
  }
FOR_FLOAT(DROPOUT_STRIDED)
