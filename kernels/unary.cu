// unary.cu - functions of one number: the formulas of src/ops/unary.rs, forward and backward.
#include "common.cuh"

// ---------------------------------------------------------------- pieces of formulas
template <class T> __device__ __forceinline__ T sigmoid(T x) {
  T e = exp(-fabs(x));  // cannot overflow
  return (x < T(0) ? e : T(1)) / (T(1) + e);
}
template <class T> __device__ __forceinline__ T softplus(T x) { return nan_max(x, T(0)) + log1p(exp(-fabs(x))); }
template <class T> __device__ __forceinline__ T phi(T x) { return T(0.5) * (T(1) + erf(x * T(0.70710678118654752))); }
template <class T> __device__ __forceinline__ T gelu_inner(T x) {
  return T(0.79788456080286536) * (x + T(0.044715) * x * x * x);
}
template <class T> __device__ __forceinline__ T gelu_tanh_slope(T x) {
  T t = tanh(gelu_inner(x));
  T inner = T(0.79788456080286536) * (T(1) + T(3 * 0.044715) * x * x);
  return T(0.5) * (T(1) + t + x * (T(1) - t * t) * inner);
}
template <class T> __device__ __forceinline__ T silu_slope(T x) {
  T s = sigmoid(x);
  return s * (T(1) + x * (T(1) - s));
}
template <class T> __device__ __forceinline__ T mish_slope(T x) {
  T t = tanh(softplus(x));
  return t + x * (T(1) - t * t) * sigmoid(x);
}

// ---------------------------------------------------------------- formulas
// y = f(x) and df = dy/dx, from x or from y as the host keeps it; p and q are the op's settings.
#define FORMULA(NAME, F, DF)                                                                     \
  struct NAME {                                                                                  \
    template <class T> static __device__ __forceinline__ T f(T x, T p, T q) { (void)p; (void)q; return F; } \
    template <class T> static __device__ __forceinline__ T df(T k, T p, T q) { (void)k; (void)p; (void)q; return DF; } \
  };
FORMULA(Neg, -x, T(-1))
FORMULA(Abs, fabs(x), k > T(0) ? T(1) : k < T(0) ? T(-1) : T(0))
FORMULA(Square, x* x, k + k)
FORMULA(Reciprocal, T(1) / x, -k * k)
FORMULA(Sqrt, sqrt(x), T(0.5) / k)
FORMULA(Rsqrt, T(1) / sqrt(x), T(-0.5) * k * k * k)
FORMULA(Exp, exp(x), k)
FORMULA(Log, log(x), T(1) / k)
FORMULA(Sin, sin(x), cos(k))
FORMULA(Cos, cos(x), -sin(k))
FORMULA(Tanh, tanh(x), T(1) - k * k)
FORMULA(Sigmoid, sigmoid(x), k*(T(1) - k))
FORMULA(Relu, nan_max(x, T(0)), k > T(0) ? T(1) : T(0))
FORMULA(Gelu, x* phi(x), phi(k) + k * exp(T(-0.5) * k * k) * T(0.39894228040143268))
FORMULA(Mish, x* tanh(softplus(x)), mish_slope(k))
FORMULA(Silu, x* sigmoid(x), silu_slope(k))
FORMULA(GeluTanh, T(0.5) * x * (T(1) + tanh(gelu_inner(x))), gelu_tanh_slope(k))
FORMULA(Softplus, softplus(x), sigmoid(k))
FORMULA(LeakyRelu, x > T(0) ? x : p * x, k > T(0) ? T(1) : p)
FORMULA(Elu, x > T(0) ? x : p * expm1(x), k > T(0) ? T(1) : p * exp(k))
FORMULA(PowScalar, pow(x, p), p == T(0) ? T(0) : p * pow(k, p - T(1)))
FORMULA(Linear, p* x + q, p)
FORMULA(Clamp, nan_min(nan_max(x, p), q), k >= p && k <= q ? T(1) : T(0))
// spills-allowed: sin_* the argument of a huge angle is reduced in local memory
// spills-allowed: cos_* as of the sine
// infinities and NaN are 0: what logsumexp may subtract
FORMULA(Finite, fabs(x) < T(INFINITY) ? x : T(0), T(1))

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
UNARY(neg, Neg)
UNARY(abs, Abs)
UNARY(square, Square)
UNARY(reciprocal, Reciprocal)
UNARY(sqrt, Sqrt)
UNARY(rsqrt, Rsqrt)
UNARY(exp, Exp)
UNARY(log, Log)
UNARY(sin, Sin)
UNARY(cos, Cos)
UNARY(tanh, Tanh)
UNARY(sigmoid, Sigmoid)
UNARY(relu, Relu)
UNARY(gelu, Gelu)
UNARY(gelu_tanh, GeluTanh)
UNARY(silu, Silu)
UNARY(mish, Mish)
UNARY(softplus, Softplus)
UNARY(leaky_relu, LeakyRelu)
UNARY(elu, Elu)
UNARY(pow_scalar, PowScalar)
UNARY(linear, Linear)
UNARY(clamp, Clamp)
UNARY(finite, Finite)
