// batch_norm.cu - batch normalization with its ReLU, on a matrix (m, c) with a column a channel.
#include "columns.cuh"

template <class T>
__device__ __forceinline__ Affine<T> affine(const T* weight, const T* bias, const double* mean, const double* var, double eps, int c) {
  return {mean[c], 1 / sqrt(var[c] + eps), widen(weight[c]), widen(bias[c])};
}

// the gradient through the ReLU, where forward's own formula says that it passed
template <class T>
__device__ __forceinline__ wide<T> mask(const Affine<T>& f, wide<T> x, wide<T> dy, int relu) {
  return !relu || f.y(x) > 0 ? dy : 0;
}

template <class T, int V>
__device__ __forceinline__ void sums_body(const Columns& s, const T* x, double* partial, double* scratch) {
  Share at = share_of<V>(s);
  wide<T> k[V];
#pragma unroll
  for (int v = 0; v < V; v++) k[v] = at.n ? widen(x[at.c + v]) : 0;
  shifted_sums<T, V>(s, at, scratch, partial, x, k);
}
// sum of x - k and of its square, k the channel's first element.
// One block a tile of channels and a block of rows.
#define SUMS(NAME, T)                                                                        \
  KERNEL(256, batch_norm_sums_##NAME, Columns s, const T* x, double* partial) {              \
    __shared__ double scratch[column_scratch<T>];                                            \
    s.grouped ? sums_body<T, GROUP<T>>(s, x, partial, scratch) : sums_body<T, 1>(s, x, partial, scratch); \
  }
FOR_FLOAT(SUMS)

template <class T>
__device__ __forceinline__ void moments_body(const T* x, const double* partial, double* mean, double* var, int m, int c, int blocks) {
  int channel = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (channel >= c) return;
  double sum[2];
  combine(partial, channel, c, blocks, sum);
  if (threadIdx.x % 32) return;
  double d = sum[0] / m;
  mean[channel] = widen(x[channel]) + d;
  var[channel] = nan_max(sum[1] / m - d * d, 0.0);
}
// mean = k + sum (x - k) / m, var = sum (x - k)^2 / m - (mean - k)^2. One warp a channel.
#define MOMENTS(NAME, T)                                                                                             \
  KERNEL(256, batch_norm_moments_##NAME, const T* x, const double* partial, double* mean, double* var, int m, int c, \
         int blocks) {                                                                                               \
    moments_body<T>(x, partial, mean, var, m, c, blocks);                                                                 \
  }
FOR_FLOAT(MOMENTS)

template <class T, int V>
__device__ __forceinline__ void normalize_body(const Columns& s, const T* x, const T* weight, const T* bias, const double* mean,
                                          const double* var, T* y, double eps, int relu) {
  Share at = share_of<V>(s);
  if (!at.n) return;
  Affine<T> f[V];
#pragma unroll
  for (int v = 0; v < V; v++) f[v] = affine<T>(weight, bias, mean, var, eps, at.c + v);
#pragma unroll 4
  for (int i = 0; i < at.n; i++) {
    size_t p = (size_t)(at.r + i * at.step) * s.c + at.c;
    Lane<T, V> t = load<T, V>(x + p);
#pragma unroll
    for (int v = 0; v < V; v++) {
      wide<T> u = f[v].y(widen(t.v[v]));
      t.v[v] = narrow<T>(relu ? nan_max(u, wide<T>(0)) : u);
    }
    store<T, V>(y + p, t);
  }
}
// y = (x - mean) / sqrt(var + eps) weight + bias, then max(y, 0).
// One block a tile of channels and a block of rows: a thread keeps its channels' constants.
// Pointers to rows are __restrict__, so that the loads of several rows go ahead of the stores.
#define NORMALIZE(NAME, T)                                                                                            \
  KERNEL(256, batch_norm_##NAME, Columns s, const T* __restrict__ x, const T* weight, const T* bias, const double* mean,           \
         const double* var, T* __restrict__ y, double eps, int relu) {                                                             \
    s.grouped ? normalize_body<T, GROUP<T>>(s, x, weight, bias, mean, var, y, eps, relu)                                    \
           : normalize_body<T, 1>(s, x, weight, bias, mean, var, y, eps, relu);                                            \
  }
FOR_FLOAT(NORMALIZE)

template <class T>
__device__ __forceinline__ void running_body(const double* s, T* running, int c, double momentum, double factor) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= c) return;
  running[i] = narrow<T>((wide<T>)((1 - momentum) * widen(running[i]) + momentum * factor * s[i]));
}
// running = (1 - momentum) running + momentum factor s, in place. One thread a channel.
#define RUNNING(NAME, T)                                                                                         \
  KERNEL(256, batch_norm_running_##NAME, const double* s, T* running, int c, double momentum, double factor) { \
    running_body<T>(s, running, c, momentum, factor);                                                            \
  }
FOR_FLOAT(RUNNING)

// x += 1: a counter that the host does not read. One thread.
KERNEL(32, increment_i64, i64* x) {
  if (threadIdx.x == 0) *x += 1;
}

template <class T, int V>
__device__ __forceinline__ void gradient_sums_body(const Columns& s, const T* x, const T* dy, const T* weight, const T* bias,
                                              const double* mean, const double* var, double* partial, double* scratch,
                                              double eps, int relu) {
  Share at = share_of<V>(s);
  Affine<T> f[V];
#pragma unroll
  for (int v = 0; v < V; v++) f[v] = affine<T>(weight, bias, mean, var, eps, (at.n ? at.c : 0) + v);
  column_sums<T, V>(s, at, scratch, partial, [&](int r, wide<T>* a, wide<T>* b) {
    size_t p = (size_t)r * s.c + at.c;
    Lane<T, V> t = load<T, V>(x + p), d = load<T, V>(dy + p);
#pragma unroll
    for (int v = 0; v < V; v++) {
      wide<T> u = widen(t.v[v]), g = mask(f[v], u, widen(d.v[v]), relu);
      a[v] += g, b[v] = fma(g, u - f[v].k, b[v]);
    }
  });
}
// sum of g and of g (x - k), g the gradient through the ReLU.
// One block a tile of channels and a block of rows.
#define GRADIENT_SUMS(NAME, T)                                                                                          \
  KERNEL(256, batch_norm_gradient_sums_##NAME, Columns s, const T* __restrict__ x, const T* __restrict__ dy, const T* weight, const T* bias,      \
         const double* mean, const double* var, double* partial, double eps, int relu) {                                \
    __shared__ double scratch[column_scratch<T>];                                                                       \
    s.grouped ? gradient_sums_body<T, GROUP<T>>(s, x, dy, weight, bias, mean, var, partial, scratch, eps, relu)               \
           : gradient_sums_body<T, 1>(s, x, dy, weight, bias, mean, var, partial, scratch, eps, relu);                       \
  }
FOR_FLOAT(GRADIENT_SUMS)

template <class T>
__device__ __forceinline__ void parameters_body(const double* partial, const double* mean, const double* var, double* totals,
                                                T* dweight, T* dbias, int c, int blocks, double eps) {
  int channel = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (channel >= c) return;
  double sum[2];
  combine(partial, channel, c, blocks, sum);
  if (threadIdx.x % 32) return;
  double rest = (wide<T>)mean[channel] - mean[channel];
  double slope = (sum[1] + rest * sum[0]) / sqrt(var[channel] + eps);
  totals[channel] = sum[0], totals[c + channel] = slope;
  dbias[channel] = narrow<T>((wide<T>)sum[0]);
  dweight[channel] = narrow<T>((wide<T>)slope);
}
// dbias = sum g, dweight = sum g (x - mean) invstd; totals holds both unrounded. One warp a channel.
#define PARAMETERS(NAME, T)                                                                                        \
  KERNEL(256, batch_norm_parameters_##NAME, const double* partial, const double* mean, const double* var,          \
         double* totals, T* dweight, T* dbias, int c, int blocks, double eps) {                                    \
    parameters_body<T>(partial, mean, var, totals, dweight, dbias, c, blocks, eps);                                \
  }
FOR_FLOAT(PARAMETERS)

template <class T, int V>
__device__ __forceinline__ void backward_body(const Columns& s, const T* x, const T* dy, const T* weight, const T* bias,
                                              const double* mean, const double* var, const double* totals, T* dx,
                                              double eps, int relu, int training) {
  Share at = share_of<V>(s);
  if (!at.n) return;
  Affine<T> f[V];
  wide<T> slope[V], level[V];
#pragma unroll
  for (int v = 0; v < V; v++) {
    int c = at.c + v;
    f[v] = affine<T>(weight, bias, mean, var, eps, c);
    double share = training ? -(double)f[v].a / s.m : 0, tilt = share * f[v].invstd * totals[s.c + c];
    slope[v] = (wide<T>)tilt;
    level[v] = (wide<T>)(share * totals[c] + tilt * f[v].rest);
  }
#pragma unroll 2
  for (int i = 0; i < at.n; i++) {
    size_t p = (size_t)(at.r + i * at.step) * s.c + at.c;
    Lane<T, V> t = load<T, V>(x + p), d = load<T, V>(dy + p), out;
#pragma unroll
    for (int v = 0; v < V; v++) {
      wide<T> u = widen(t.v[v]), g = mask(f[v], u, widen(d.v[v]), relu);
      out.v[v] = narrow<T>(f[v].a * g + fma(slope[v], u - f[v].k, level[v]));
    }
    store<T, V>(dx + p, out);
  }
}
// dx = weight invstd (g - dbias / m - (x - mean) invstd dweight / m) when training, weight invstd g else.
// One block a tile of channels and a block of rows.
#define BACKWARD(NAME, T)                                                                                              \
  KERNEL(256, batch_norm_backward_##NAME, Columns s, const T* __restrict__ x, const T* __restrict__ dy, const T* weight, const T* bias,          \
         const double* mean, const double* var, const double* totals, T* __restrict__ dx, double eps, int relu, int training) {     \
    s.grouped ? backward_body<T, GROUP<T>>(s, x, dy, weight, bias, mean, var, totals, dx, eps, relu, training)            \
           : backward_body<T, 1>(s, x, dy, weight, bias, mean, var, totals, dx, eps, relu, training);                  \
  }
FOR_FLOAT(BACKWARD)
