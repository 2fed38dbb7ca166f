// unary.cuh - functions of one number: how a formula becomes kernels, forward and backward.
#pragma once
#include "common.cuh"

// y = f(x) and df = dy/dx, from x or from y as the host keeps it; p and q are the op's settings.
#define FORMULA(NAME, F, DF)                                                                     \
  struct NAME {                                                                                  \
    template <class T> static __device__ __forceinline__ T f(T x, T p, T q) { (void)p; (void)q; return F; } \
    template <class T> static __device__ __forceinline__ T df(T k, T p, T q) { (void)k; (void)p; (void)q; return DF; } \
  };

// ---------------------------------------------------------------- kernels
// A block owns 256 packs of 16 bytes of y. Where x lies as y does, a thread takes a whole pack.
template <class F, class T>
__device__ __forceinline__ void forward(const T* x, T* y, const Walk<1>& w, double p, double q) {
  typedef wide<T> W;
  const int N = Pack<T>::N;
  bool dense = w.rank == 1 && w.strides[0][0] == 1 && (((size_t)x | (size_t)y) & 15) == 0;
  unsigned i = blockIdx.x * (256u * N) + threadIdx.x * (dense ? N : 1);
  if (dense && i + N <= w.n) {
    Pack<T> v = *reinterpret_cast<const Pack<T>*>(x + i);
#pragma unroll
    for (int j = 0; j < N; j++) v.v[j] = narrow<T>(F::template f<W>(widen(v.v[j]), W(p), W(q)));
    *reinterpret_cast<Pack<T>*>(y + i) = v;
    return;
  }
#pragma unroll 1
  for (int j = 0; j < N && i < w.n; j++, i += dense ? 1 : 256) {
    i64 at[1];
    walk_to(w, i, at);
    y[i] = narrow<T>(F::template f<W>(widen(x[at[0]]), W(p), W(q)));
  }
}
// dx = df(kept) dy
template <class F, class T>
__device__ __forceinline__ void backward(const T* kept, const T* dy, T* dx, const Walk<2>& w, double p, double q) {
  typedef wide<T> W;
  const int N = Pack<T>::N;
  bool dense = w.rank == 1 && w.strides[0][0] == 1 && w.strides[1][0] == 1 &&
               (((size_t)kept | (size_t)dy | (size_t)dx) & 15) == 0;
  unsigned i = blockIdx.x * (256u * N) + threadIdx.x * (dense ? N : 1);
  if (dense && i + N <= w.n) {
    Pack<T> k = *reinterpret_cast<const Pack<T>*>(kept + i), g = *reinterpret_cast<const Pack<T>*>(dy + i);
#pragma unroll
    for (int j = 0; j < N; j++) g.v[j] = narrow<T>(F::template df<W>(widen(k.v[j]), W(p), W(q)) * widen(g.v[j]));
    *reinterpret_cast<Pack<T>*>(dx + i) = g;
    return;
  }
#pragma unroll 1
  for (int j = 0; j < N && i < w.n; j++, i += dense ? 1 : 256) {
    i64 at[2];
    walk_to(w, i, at);
    dx[i] = narrow<T>(F::template df<W>(widen(kept[at[0]]), W(p), W(q)) * widen(dy[at[1]]));
  }
}

#define UNARY_OF(NAME, FORMULA, DTYPE, T)                                                             \
  KERNEL(256, NAME##_##DTYPE, const T* x, T* y, Walk<1> w, double p, double q) {                      \
    forward<FORMULA, T>(x, y, w, p, q);                                                               \
  }                                                                                                   \
  KERNEL(256, NAME##_backward_##DTYPE, const T* kept, const T* dy, T* dx, Walk<2> w, double p, double q) { \
    backward<FORMULA, T>(kept, dy, dx, w, p, q);                                                      \
  }
#define UNARY(NAME, FORMULA)           \
  UNARY_OF(NAME, FORMULA, f32, float)  \
  UNARY_OF(NAME, FORMULA, f64, double) \
  UNARY_OF(NAME, FORMULA, bf16, bf16)  \
  UNARY_OF(NAME, FORMULA, f16, f16)
