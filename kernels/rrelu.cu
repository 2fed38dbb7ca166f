// rrelu.cu - ReLU with random slopes; element i in row-major order takes number i of the stream.
#include "stream.cuh"

// a + b c, each rounded, as the CPU has it
__device__ __forceinline__ float on_line(float a, float b, float c) { return __fadd_rn(a, __fmul_rn(b, c)); }
__device__ __forceinline__ double on_line(double a, double b, double c) { return __dadd_rn(a, __dmul_rn(b, c)); }

// 1 above 0, else a slope uniform in [lower, lower + span).
template <class T> struct Slope {
  T lower, span;
  __device__ __forceinline__ Slope(double lower, double span) : lower((T)lower), span((T)span) {}
  __device__ __forceinline__ T of(unsigned bits, T x) const {
    return x > T(0) ? T(1) : on_line(lower, (T)(bits >> 8) * T(1. / 16777216), span);
  }
};

// y = g slope(x), all row-major; g is x itself forward, the gradient backward.
// One thread a block of the stream.
#define RRELU(NAME, T)                                                                              \
  KERNEL(256, rrelu_##NAME, const T* x, const T* g, T* y, const i64* place, unsigned n, double lower, double span) { \
    by_stream<T>(x, g, y, place, n, Slope<wide<T>>(lower, span));                                   \
  }
FOR_FLOAT(RRELU)

// The same in another memory order, in which w finds the elements' row-major numbers.
// One thread an element.
#define RRELU_STRIDED(NAME, T)                                                                      \
  KERNEL(256, rrelu_strided_##NAME, const T* x, const T* g, T* y, const i64* place, Walk<1> w, double lower, \
         double span) {                                                                             \
    by_stream_strided<T>(x, g, y, place, w, Slope<wide<T>>(lower, span), NO_FOURS);                 \
  }
FOR_FLOAT(RRELU_STRIDED)
