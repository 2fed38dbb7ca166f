// pairwise_loss.cu - losses of an input x and a target t: the formulas of src/ops/loss/pairwise.rs.
#include "common.cuh"

template <class T> __device__ __forceinline__ T sign(T d) { return d > T(0) ? T(1) : d < T(0) ? T(-1) : T(0); }
template <class T> __device__ __forceinline__ T softplus(T x) { return nan_max(x, T(0)) + log1p(exp(-fabs(x))); }
template <class T> __device__ __forceinline__ T sigmoid(T x) {
  T e = exp(-fabs(x));  // cannot overflow
  return (x < T(0) ? e : T(1)) / (T(1) + e);
}

// y = f(x, t) with its derivative dx; dt is dx with x and t exchanged, unless there is a kernel. d is
// x - t, p the op's setting.
#define FORMULA(NAME, F, DX)                                                                                     \
  struct NAME {                                                                                                  \
    template <class T> static __device__ __forceinline__ T f(T x, T t, T p) { T d = x - t; (void)d; (void)p; return F; }   \
    template <class T> static __device__ __forceinline__ T dx(T x, T t, T p) { T d = x - t; (void)d; (void)p; return DX; } \
  };
FORMULA(Mse, d* d, T(2) * d)
FORMULA(L1, fabs(d), sign(d))
FORMULA(SmoothL1, fabs(d) < p ? T(0.5) * d * d / p : fabs(d) - T(0.5) * p, fabs(d) < p ? d / p : sign(d))
FORMULA(Huber, fabs(d) < p ? T(0.5) * d * d : p * (fabs(d) - T(0.5) * p), fabs(d) < p ? d : p * sign(d))
FORMULA(Bce, p* t* softplus(-x) + (T(1) - t) * softplus(x), (T(1) - t) * sigmoid(x) - p * t * sigmoid(-x))
// its dt
FORMULA(BceTarget, T(0), p* softplus(-x) - softplus(x))

// y = f(x, t), where p comes from `weight` if that is not null. One thread an element.
template <class F, class T>
__device__ __forceinline__ void forward(const T* x, const T* t, const T* weight, T* y, unsigned n, double p) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = F::template f<T>(x[i], t[i], weight ? weight[i] : T(p));
}
// dx = df/dx scale dy, dy one number or one each element. One thread an element.
template <class F, class T>
__device__ __forceinline__ void backward(const T* x, const T* t, const T* weight, T* dx, unsigned n, double p, const T* dy, int each,
                                         double scale) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) dx[i] = F::template dx<T>(x[i], t[i], weight ? weight[i] : T(p)) * (dy[each ? i : 0] * T(scale));
}

#define LOSS(NAME, FORMULA, DTYPE, T)                                                                              \
  KERNEL(256, NAME##_##DTYPE, const T* x, const T* t, const T* weight, T* y, unsigned n, double p) {               \
    forward<FORMULA, T>(x, t, weight, y, n, p);                                                                    \
  }
#define GRADIENT(NAME, FORMULA, DTYPE, T)                                                                          \
  KERNEL(256, NAME##_##DTYPE, const T* x, const T* t, const T* weight, T* dx, unsigned n, double p, const T* dy,   \
         int each, double scale) {                                                                                 \
    backward<FORMULA, T>(x, t, weight, dx, n, p, dy, each, scale);                                                 \
  }
#define FOR_REALS_OF(M, NAME, FORMULA) M(NAME, FORMULA, f32, float) M(NAME, FORMULA, f64, double)
FOR_REALS_OF(LOSS, mse_loss, Mse)
FOR_REALS_OF(LOSS, l1_loss, L1)
FOR_REALS_OF(LOSS, smooth_l1_loss, SmoothL1)
FOR_REALS_OF(LOSS, huber_loss, Huber)
FOR_REALS_OF(LOSS, bce_with_logits, Bce)
FOR_REALS_OF(GRADIENT, mse_loss_dx, Mse)
FOR_REALS_OF(GRADIENT, l1_loss_dx, L1)
FOR_REALS_OF(GRADIENT, smooth_l1_loss_dx, SmoothL1)
FOR_REALS_OF(GRADIENT, huber_loss_dx, Huber)
FOR_REALS_OF(GRADIENT, bce_with_logits_dx, Bce)
FOR_REALS_OF(GRADIENT, bce_with_logits_dt, BceTarget)
