// unary.cu - functions of one number that are plain arithmetic: formulas of src/ops/unary.rs.
#include "unary.cuh"

FORMULA(Neg, -x, T(-1))
FORMULA(Abs, fabs(x), k > T(0) ? T(1) : k < T(0) ? T(-1) : T(0))
FORMULA(Square, x* x, k + k)
FORMULA(Reciprocal, T(1) / x, -k * k)
FORMULA(Sqrt, sqrt(x), T(0.5) / k)
FORMULA(Rsqrt, T(1) / sqrt(x), T(-0.5) * k * k * k)
FORMULA(Relu, nan_max(x, T(0)), k > T(0) ? T(1) : T(0))
FORMULA(LeakyRelu, x > T(0) ? x : p * x, k > T(0) ? T(1) : p)
FORMULA(Linear, p* x + q, p)
FORMULA(Clamp, nan_min(nan_max(x, p), q), k >= p && k <= q ? T(1) : T(0))

UNARY(neg, Neg)
UNARY(abs, Abs)
UNARY(square, Square)
UNARY(reciprocal, Reciprocal)
UNARY(sqrt, Sqrt)
UNARY(rsqrt, Rsqrt)
UNARY(relu, Relu)
UNARY(leaky_relu, LeakyRelu)
UNARY(linear, Linear)
UNARY(clamp, Clamp)
