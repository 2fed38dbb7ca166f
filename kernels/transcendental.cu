// transcendental.cu - exponentials and what is made of them: formulas of src/ops/unary.rs.
#include "unary.cuh"

// spills-allowed: sin_* the argument of a huge angle is reduced in local memory
// spills-allowed: cos_* as of the sine
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
// ((1 + e^x)^2 - 1) / ((1 + e^x)^2 + 1), over e^2x above 0
template <class T> __device__ __forceinline__ T tanh_softplus(T x) {
  T e = exp(-fabs(x));
  T over = x < T(0) ? e * (e + T(2)) : T(1) + T(2) * e;
  return over / (over + (x < T(0) ? T(2) : T(2) * e * e));
}
template <class T> __device__ __forceinline__ T mish_slope(T x) {
  T t = tanh_softplus(x);
  return t + x * (T(1) - t * t) * sigmoid(x);
}

FORMULA(Exp, exp(x), k)
FORMULA(Log, log(x), T(1) / k)
FORMULA(Sin, sin(x), cos(k))
FORMULA(Cos, cos(x), -sin(k))
FORMULA(Tanh, tanh(x), T(1) - k * k)
FORMULA(Sigmoid, sigmoid(x), k*(T(1) - k))
FORMULA(Gelu, x* phi(x), phi(k) + k * exp(T(-0.5) * k * k) * T(0.39894228040143268))
FORMULA(GeluTanh, T(0.5) * x * (T(1) + tanh(gelu_inner(x))), gelu_tanh_slope(k))
FORMULA(Silu, x* sigmoid(x), silu_slope(k))
FORMULA(Mish, x* tanh_softplus(x), mish_slope(k))
FORMULA(Softplus, x > T(20) ? x : softplus(x), k > T(20) ? T(1) : sigmoid(k))
FORMULA(Elu, x > T(0) ? x : p * expm1(x), k > T(0) ? T(1) : p * exp(k))
FORMULA(PowScalar, pow(x, p), p == T(0) ? T(0) : p * pow(k, p - T(1)))

UNARY(exp, Exp)
UNARY(log, Log)
UNARY(sin, Sin)
UNARY(cos, Cos)
UNARY(tanh, Tanh)
UNARY(sigmoid, Sigmoid)
UNARY(gelu, Gelu)
UNARY(gelu_tanh, GeluTanh)
UNARY(silu, Silu)
UNARY(mish, Mish)
UNARY(softplus, Softplus)
UNARY(elu, Elu)
UNARY(pow_scalar, PowScalar)
