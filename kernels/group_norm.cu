// group_norm.cu - group normalization: each sample a matrix (m, c) with a column a channel, whose
// channels fall into groups of `width` neighbours.
#include "columns.cuh"

// `stats` holds mean and invstd of each of the sample's groups
template <class T>
__device__ __forceinline__ Affine<T> affine(const T* weight, const T* bias, const double* stats, int c, int width) {
  const double* of = stats + 2 * (c / width);
  return {of[0], of[1], widen(weight[c]), widen(bias[c])};
}

// blockIdx.z counts samples, in steps of gridDim.z where there are more than it can be.
#define FOR_SAMPLES(I, N) for (int I = blockIdx.z; I < (N); I += gridDim.z)

template <class T, int V>
__device__ __forceinline__ void sums_body(const Columns& s, const T* x, double* partial, int n, int width, double* scratch) {
  Share at = share_of<V>(s);
  FOR_SAMPLES(i, n) {
    const T* mine = x + (size_t)i * s.m * s.c;
    wide<T> k[V];
#pragma unroll
    for (int v = 0; v < V; v++) k[v] = at.n ? widen(mine[(at.c + v) / width * width]) : 0;
    shifted_sums<T, V>(s, at, scratch, partial + (size_t)i * 2 * s.c * gridDim.y, mine, k);
    __syncthreads();  // the scratch is still read from
  }
}
// For each sample and channel the sum of x - k and of its square, k the group's first element.
// One block a tile of channels, a block of rows and a sample.
#define SUMS(NAME, T)                                                                                  \
  KERNEL(256, group_norm_sums_##NAME, Columns s, const T* x, double* partial, int n, int width) {      \
    __shared__ double scratch[column_scratch<T>];                                                      \
    s.grouped ? sums_body<T, GROUP<T>>(s, x, partial, n, width, scratch)                               \
              : sums_body<T, 1>(s, x, partial, n, width, scratch);                                     \
  }
FOR_FLOAT(SUMS)

// The warp's group: number `group` of `sample`, its first channel, and how many of (channel, block of
// rows) it has.
struct Mine {
  int index, sample, first, parts;
  __device__ __forceinline__ Mine(int groups, int width, int blocks) {
    index = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    sample = index / groups;
    first = index % groups * width;
    parts = width * blocks;
  }
};

template <class T>
__device__ __forceinline__ void moments_body(const T* x, const double* partial, double* stats, int n, int groups, int width,
                                             int m, int blocks, double eps) {
  Mine g(groups, width, blocks);
  if (g.sample >= n) return;
  int c = groups * width;
  const double* p = partial + ((size_t)g.sample * 2 * c + g.first) * blocks;
  double sum = 0, square = 0;
  for (int i = threadIdx.x % 32; i < g.parts; i += 32) sum += p[i], square += p[(size_t)c * blocks + i];
  sum = warp_sum(sum), square = warp_sum(square);
  if (threadIdx.x % 32) return;
  double count = (double)m * width, d = sum / count;
  stats[2 * g.index] = widen(x[(size_t)g.sample * m * c + g.first]) + d;
  stats[2 * g.index + 1] = 1 / sqrt(nan_max(square / count - d * d, 0.0) + eps);
}
// stats[sample][group] = (mean, 1 / sqrt(var + eps)) from the sums. One warp a group of a sample.
#define MOMENTS(NAME, T)                                                                                          \
  KERNEL(256, group_norm_moments_##NAME, const T* x, const double* partial, double* stats, int n, int groups,    \
         int width, int m, int blocks, double eps) {                                                              \
    moments_body<T>(x, partial, stats, n, groups, width, m, blocks, eps);                                         \
  }
FOR_FLOAT(MOMENTS)

template <class T, int V>
__device__ __forceinline__ void normalize_body(const Columns& s, const T* x, const T* weight, const T* bias,
                                               const double* stats, T* y, int n, int width) {
  Share at = share_of<V>(s);
  if (!at.n) return;
  FOR_SAMPLES(i, n) {
    size_t start = (size_t)i * s.m * s.c;
    Affine<T> f[V];
#pragma unroll
    for (int v = 0; v < V; v++) f[v] = affine<T>(weight, bias, stats + 2 * (size_t)i * (s.c / width), at.c + v, width);
#pragma unroll 4
    for (int r = 0; r < at.n; r++) {
      size_t p = start + (size_t)(at.r + r * at.step) * s.c + at.c;
      Lane<T, V> t = load<T, V>(x + p);
#pragma unroll
      for (int v = 0; v < V; v++) t.v[v] = narrow<T>(f[v].y(widen(t.v[v])));
      store<T, V>(y + p, t);
    }
  }
}
// y = (x - mean) invstd weight + bias. One block a tile of channels, a block of rows and a sample.
#define NORMALIZE(NAME, T)                                                                                          \
  KERNEL(256, group_norm_##NAME, Columns s, const T* __restrict__ x, const T* weight, const T* bias,               \
         const double* stats, T* __restrict__ y, int n, int width) {                                               \
    s.grouped ? normalize_body<T, GROUP<T>>(s, x, weight, bias, stats, y, n, width)                                 \
              : normalize_body<T, 1>(s, x, weight, bias, stats, y, n, width);                                       \
  }
FOR_FLOAT(NORMALIZE)

template <class T, int V>
__device__ __forceinline__ void gradient_sums_body(const Columns& s, const T* x, const T* dy, const double* stats,
                                                   double* partial, int n, int width, double* scratch) {
  Share at = share_of<V>(s);
  FOR_SAMPLES(i, n) {
    size_t start = (size_t)i * s.m * s.c;
    wide<T> k[V];
#pragma unroll
    for (int v = 0; v < V; v++) k[v] = at.n ? (wide<T>)stats[2 * ((size_t)i * (s.c / width) + (at.c + v) / width)] : 0;
    column_sums<T, V>(s, at, scratch, partial + (size_t)i * 2 * s.c * gridDim.y, [&](int r, wide<T>* a, wide<T>* b) {
      size_t p = start + (size_t)r * s.c + at.c;
      Lane<T, V> t = load<T, V>(x + p), d = load<T, V>(dy + p);
#pragma unroll
      for (int v = 0; v < V; v++) {
        wide<T> g = widen(d.v[v]);
        a[v] += g, b[v] = fma(g, widen(t.v[v]) - k[v], b[v]);
      }
    });
    __syncthreads();  // the scratch is still read from
  }
}
// For each sample and channel the sum of dy and of dy (x - k), k the mean rounded to f32.
// One block a tile of channels, a block of rows and a sample.
#define GRADIENT_SUMS(NAME, T)                                                                                     \
  KERNEL(256, group_norm_gradient_sums_##NAME, Columns s, const T* __restrict__ x, const T* __restrict__ dy,      \
         const double* stats, double* partial, int n, int width) {                                                \
    __shared__ double scratch[column_scratch<T>];                                                                  \
    s.grouped ? gradient_sums_body<T, GROUP<T>>(s, x, dy, stats, partial, n, width, scratch)                       \
              : gradient_sums_body<T, 1>(s, x, dy, stats, partial, n, width, scratch);                             \
  }
FOR_FLOAT(GRADIENT_SUMS)

template <class T>
__device__ __forceinline__ void totals_body(const double* partial, const double* stats, const T* weight, double* totals, int n,
                                            int groups, int width, int m, int blocks) {
  Mine g(groups, width, blocks);
  if (g.sample >= n) return;
  int c = groups * width;
  const double* p = partial + ((size_t)g.sample * 2 * c + g.first) * blocks;
  double sum = 0, dot = 0;
  for (int i = threadIdx.x % 32; i < g.parts; i += 32) {
    double w = widen(weight[g.first + i / blocks]);
    sum = fma(w, p[i], sum), dot = fma(w, p[(size_t)c * blocks + i], dot);
  }
  sum = warp_sum(sum), dot = warp_sum(dot);
  if (threadIdx.x % 32) return;
  double mean = stats[2 * g.index], invstd = stats[2 * g.index + 1], count = (double)m * width;
  double rest = (wide<T>)mean - mean;
  totals[2 * g.index] = sum / count;
  totals[2 * g.index + 1] = (dot + rest * sum) * invstd * invstd / count;
}
// With g = dy weight: totals[sample][group] = (mean of g, invstd^2 mean of g (x - mean)).
// One warp a group of a sample.
#define TOTALS(NAME, T)                                                                                            \
  KERNEL(256, group_norm_totals_##NAME, const double* partial, const double* stats, const T* weight,              \
         double* totals, int n, int groups, int width, int m, int blocks) {                                        \
    totals_body<T>(partial, stats, weight, totals, n, groups, width, m, blocks);                                   \
  }
FOR_FLOAT(TOTALS)

template <class T>
__device__ __forceinline__ void parameters_body(const double* partial, const double* stats, T* dweight, T* dbias, int n,
                                                int groups, int width, int blocks) {
  int channel = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, c = groups * width;
  if (channel >= c) return;
  double dw = 0, db = 0;
  for (int i = threadIdx.x % 32; i < n * blocks; i += 32) {
    size_t sample = i / blocks, group = sample * groups + channel / width;
    const double* p = partial + (sample * 2 * c + channel) * blocks + i % blocks;
    double mean = stats[2 * group], rest = (wide<T>)mean - mean, sum = p[0];
    db += sum;
    dw = fma(p[(size_t)c * blocks] + rest * sum, stats[2 * group + 1], dw);
  }
  dw = warp_sum(dw), db = warp_sum(db);
  if (threadIdx.x % 32) return;
  dweight[channel] = narrow<T>((wide<T>)dw);
  dbias[channel] = narrow<T>((wide<T>)db);
}
// dbias = sum dy, dweight = sum dy (x - mean) invstd, over samples and rows. One warp a channel.
#define PARAMETERS(NAME, T)                                                                                        \
  KERNEL(256, group_norm_parameters_##NAME, const double* partial, const double* stats, T* dweight, T* dbias,     \
         int n, int groups, int width, int blocks) {                                                               \
    parameters_body<T>(partial, stats, dweight, dbias, n, groups, width, blocks);                                  \
  }
FOR_FLOAT(PARAMETERS)

template <class T, int V>
__device__ __forceinline__ void backward_body(const Columns& s, const T* x, const T* dy, const T* weight, const double* stats,
                                              const double* totals, T* dx, int n, int width) {
  Share at = share_of<V>(s);
  if (!at.n) return;
  FOR_SAMPLES(i, n) {
    size_t start = (size_t)i * s.m * s.c;
    wide<T> k[V], a[V], slope[V], level[V];
#pragma unroll
    for (int v = 0; v < V; v++) {
      size_t g = 2 * ((size_t)i * (s.c / width) + (at.c + v) / width);
      double mean = stats[g], invstd = stats[g + 1], tilt = -invstd * totals[g + 1];
      k[v] = (wide<T>)mean;
      a[v] = (wide<T>)(widen(weight[at.c + v]) * invstd);
      slope[v] = (wide<T>)tilt;
      level[v] = (wide<T>)(tilt * (k[v] - mean) - invstd * totals[g]);
    }
#pragma unroll 2
    for (int r = 0; r < at.n; r++) {
      size_t p = start + (size_t)(at.r + r * at.step) * s.c + at.c;
      Lane<T, V> t = load<T, V>(x + p), d = load<T, V>(dy + p), out;
#pragma unroll
      for (int v = 0; v < V; v++)
        out.v[v] = narrow<T>(fma(a[v], widen(d.v[v]), fma(slope[v], widen(t.v[v]) - k[v], level[v])));
      store<T, V>(dx + p, out);
    }
  }
}
// dx = invstd (dy weight - mean(g) - (x - mean) invstd^2 mean(g (x - mean))).
// One block a tile of channels, a block of rows and a sample.
#define BACKWARD(NAME, T)                                                                                            \
  KERNEL(256, group_norm_backward_##NAME, Columns s, const T* __restrict__ x, const T* __restrict__ dy,             \
         const T* weight, const double* stats, const double* totals, T* __restrict__ dx, int n, int width) {        \
    s.grouped ? backward_body<T, GROUP<T>>(s, x, dy, weight, stats, totals, dx, n, width)                            \
              : backward_body<T, 1>(s, x, dy, weight, stats, totals, dx, n, width);                                  \
  }
FOR_FLOAT(BACKWARD)
