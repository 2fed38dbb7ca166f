// binary.cu - functions of two numbers, broadcast: the formulas of src/ops/binary.rs.
#include "common.cuh"

// y = f(a, b) with its two derivatives da and db.
#define FORMULA(NAME, F, DA, DB)                                                           \
  struct NAME {                                                                            \
    template <class T> static __device__ __forceinline__ T f(T a, T b) { return F; }       \
    template <class T> static __device__ __forceinline__ T da(T a, T b) { (void)a; (void)b; return DA; } \
    template <class T> static __device__ __forceinline__ T db(T a, T b) { (void)a; (void)b; return DB; } \
  };
// where both are equal each gets half of the gradient, as PyTorch has it
template <class T> __device__ __forceinline__ T share(bool wins, T a, T b) {
  return a == b ? T(0.5) : wins ? T(1) : T(0);
}
template <class T> __device__ __forceinline__ T pow_da(T a, T b) { return b == T(0) ? T(0) : b * pow(a, b - T(1)); }
// 0^b is constantly 0 for b > 0
template <class T> __device__ __forceinline__ T pow_db(T a, T b) {
  return a == T(0) && b >= T(0) ? T(0) : pow(a, b) * log(a);
}
FORMULA(Add, a + b, T(1), T(1))
FORMULA(Sub, a - b, T(1), T(-1))
FORMULA(Mul, a* b, b, a)
FORMULA(Div, a / b, T(1) / b, -a / (b * b))
FORMULA(Maximum, nan_max(a, b), share(a > b, a, b), share(b > a, a, b))
FORMULA(Minimum, nan_min(a, b), share(a < b, a, b), share(b < a, a, b))
FORMULA(Pow, pow(a, b), pow_da(a, b), pow_db(a, b))

// ---------------------------------------------------------------- kernels
// A block owns 256 packs of 16 bytes of y. Where both inputs lie as y does, a thread takes a whole
// pack; else element by element, a broadcast input having stride 0.
template <class F, class T>
__device__ __forceinline__ void forward(const T* a, const T* b, T* y, const Walk<2>& w) {
  const int N = Pack<T>::N;
  bool dense = w.rank == 1 && w.strides[0][0] == 1 && w.strides[1][0] == 1 &&
               (((size_t)a | (size_t)b | (size_t)y) & 15) == 0;
  unsigned i = blockIdx.x * (256u * N) + threadIdx.x * (dense ? N : 1);
  if (dense && i + N <= w.n) {
    Pack<T> u = *reinterpret_cast<const Pack<T>*>(a + i), v = *reinterpret_cast<const Pack<T>*>(b + i);
#pragma unroll
    for (int j = 0; j < N; j++) u.v[j] = narrow<T>(F::f(widen(u.v[j]), widen(v.v[j])));
    *reinterpret_cast<Pack<T>*>(y + i) = u;
    return;
  }
#pragma unroll 1
  for (int j = 0; j < N && i < w.n; j++, i += dense ? 1 : 256) {
    i64 at[2];
    walk_to(w, i, at);
    y[i] = narrow<T>(F::f(widen(a[at[0]]), widen(b[at[1]])));
  }
}
// one input's gradient in the broadcast shape, d(a, b) dy; the engine sums it down
template <bool A, class F, class T>
__device__ __forceinline__ void backward(const T* a, const T* b, const T* dy, T* dx, const Walk<3>& w) {
  typedef wide<T> W;
  unsigned i = blockIdx.x * 1024u + threadIdx.x;
#pragma unroll 1
  for (int j = 0; j < 4 && i < w.n; j++, i += 256) {
    i64 at[3];
    walk_to(w, i, at);
    W x = widen(a[at[0]]), y = widen(b[at[1]]);
    dx[i] = narrow<T>((A ? F::da(x, y) : F::db(x, y)) * widen(dy[at[2]]));
  }
}

#define BINARY_OF(NAME, FORMULA, DTYPE, T)                                                              \
  KERNEL(256, NAME##_##DTYPE, const T* a, const T* b, T* y, Walk<2> w) { forward<FORMULA, T>(a, b, y, w); }
#define BINARY_GRAD(NAME, FORMULA, DTYPE, T)                                                            \
  KERNEL(256, NAME##_da_##DTYPE, const T* a, const T* b, const T* dy, T* dx, Walk<3> w) {               \
    backward<true, FORMULA, T>(a, b, dy, dx, w);                                                        \
  }                                                                                                     \
  KERNEL(256, NAME##_db_##DTYPE, const T* a, const T* b, const T* dy, T* dx, Walk<3> w) {               \
    backward<false, FORMULA, T>(a, b, dy, dx, w);                                                       \
  }
#define FOR_FLOATS_OF(M, NAME, FORMULA) \
  M(NAME, FORMULA, f32, float)          \
  M(NAME, FORMULA, f64, double)         \
  M(NAME, FORMULA, bf16, bf16)          \
  M(NAME, FORMULA, f16, f16)
FOR_FLOATS_OF(BINARY_OF, add, Add)
FOR_FLOATS_OF(BINARY_OF, sub, Sub)
FOR_FLOATS_OF(BINARY_OF, mul, Mul)
FOR_FLOATS_OF(BINARY_OF, div, Div)
FOR_FLOATS_OF(BINARY_OF, maximum, Maximum)
FOR_FLOATS_OF(BINARY_OF, minimum, Minimum)
FOR_FLOATS_OF(BINARY_OF, pow, Pow)
FOR_FLOATS_OF(BINARY_GRAD, mul, Mul)
FOR_FLOATS_OF(BINARY_GRAD, div, Div)
FOR_FLOATS_OF(BINARY_GRAD, maximum, Maximum)
FOR_FLOATS_OF(BINARY_GRAD, minimum, Minimum)
FOR_FLOATS_OF(BINARY_GRAD, pow, Pow)

// ---------------------------------------------------------------- comparisons
// y = a ? b as 0 or 1. A block owns 1024 elements.
template <class F, class T>
__device__ __forceinline__ void compare(const T* a, const T* b, u8* y, const Walk<2>& w, F holds) {
  unsigned i = blockIdx.x * 1024u + threadIdx.x;
#pragma unroll 1
  for (int j = 0; j < 4 && i < w.n; j++, i += 256) {
    i64 at[2];
    walk_to(w, i, at);
    y[i] = holds(widen(a[at[0]]), widen(b[at[1]])) ? 1 : 0;
  }
}
#define COMPARE_OF(NAME, OP, DTYPE, T)                                             \
  KERNEL(256, NAME##_##DTYPE, const T* a, const T* b, u8* y, Walk<2> w) {          \
    compare(a, b, y, w, [](wide<T> a, wide<T> b) { return a OP b; });              \
  }
#define COMPARE(NAME, OP)         \
  COMPARE_OF(NAME, OP, f32, float) \
  COMPARE_OF(NAME, OP, f64, double) \
  COMPARE_OF(NAME, OP, bf16, bf16) \
  COMPARE_OF(NAME, OP, f16, f16)   \
  COMPARE_OF(NAME, OP, i64, i64)   \
  COMPARE_OF(NAME, OP, u8, u8)
COMPARE(eq, ==)
COMPARE(ne, !=)
COMPARE(gt, >)
COMPARE(ge, >=)
COMPARE(lt, <)
COMPARE(le, <=)
