// dropout.cu - dropout: element i of the mask in row-major order takes number i of the stream.
#include "stream.cuh"

// A mask with 0 at probability p and else 1 / (1 - p).
template <class T> struct Mask {
  unsigned below;
  T keep;
  // a number is its upper 24 bits: u < p compares them with p 2^24, without rounding
  __device__ __forceinline__ explicit Mask(double p)
      : below((unsigned)ceil(p * 16777216)), keep((T)(p < 1 ? 1 / (1 - p) : 0)) {}
  __device__ __forceinline__ T of(unsigned bits, T) const { return bits >> 8 < below ? T(0) : keep; }
};

// y = x mask, both row-major, of a mask of x's shape. One thread a block of the stream.
#define DROPOUT(NAME, T)                                                                            \
  KERNEL(256, dropout_##NAME, const T* x, T* y, const i64* place, unsigned n, double p) {           \
    by_stream<T>(x, x, y, place, n, Mask<wide<T>>(p));                                              \
  }
FOR_FLOAT(DROPOUT)

// y = x mask, x and y in one memory order, in which w finds the mask's elements' numbers.
// One thread an element or four.
#define DROPOUT_STRIDED(NAME, T)                                                                    \
  KERNEL(256, dropout_strided_##NAME, const T* x, T* y, const i64* place, Walk<1> w, double p, int fours) { \
    by_stream_strided<T>(x, x, y, place, w, Mask<wide<T>>(p), fours);                               \
  }
FOR_FLOAT(DROPOUT_STRIDED)
