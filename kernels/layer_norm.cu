// layer_norm.cu - layer normalization of the rows of a matrix (rows, d).
#include "columns.cuh"

// What the threads that share a row (a warp, or a block) hold of N matrices' row: thread `first`
// of `team` has every team-th group of V neighbours, K of them in registers. With K = 0 the row may
// be of any width and is read again at each pass.
template <class T, int V, int K, int N> struct Row {
  const T* at[N];
  int d, first, team;
  Lane<T, V> kept[K ? K : 1][N];

  __device__ __forceinline__ Row(const T* const (&matrix)[N], int row, int d) : d(d) {
    first = K ? threadIdx.x % 32 : threadIdx.x;
    team = K ? 32 : blockDim.x;
#pragma unroll
    for (int n = 0; n < N; n++) at[n] = matrix[n] + (size_t)row * d;
#pragma unroll
    for (int k = 0; k < K; k++)
#pragma unroll
      for (int n = 0; n < N; n++)
        if ((k * 32 + first) * V < d) kept[k][n] = load<T, V>(at[n] + (k * 32 + first) * V);
  }
  // f(i, t): t[n] holds the elements of matrix n from i on
  template <class F> __device__ __forceinline__ void each(F f) const {
#pragma unroll
    for (int k = 0; k < K; k++)
      if ((k * 32 + first) * V < d) f((k * 32 + first) * V, kept[k]);
    for (int i = first * V; K == 0 && i < d; i += team * V) {
      Lane<T, V> t[N];
#pragma unroll
      for (int n = 0; n < N; n++) t[n] = load<T, V>(at[n] + i);
      f(i, t);
    }
  }
  // over the whole team
  __device__ __forceinline__ wide<T> sum(wide<T> v, wide<T>* scratch) const { return K ? warp_sum(v) : block_sum(v, scratch); }
};
// One body for rows of any width: `kept` rows (up to 32 * KEPT groups) by warps, others by blocks,
// in groups where `grouped`.
constexpr int KEPT = 8;
#define BY_WIDTH(BODY, T, ...)                                                                     \
  kept ? grouped ? BODY<T, GROUP<T>, KEPT>(__VA_ARGS__) : BODY<T, 1, KEPT>(__VA_ARGS__)             \
       : grouped ? BODY<T, GROUP<T>, 0>(__VA_ARGS__) : BODY<T, 1, 0>(__VA_ARGS__)
template <int K> __device__ __forceinline__ int my_row() {
  return K ? blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32 : blockIdx.x;
}

template <class T, int V, int K>
__device__ __forceinline__ void forward_body(const T* x, const T* weight, const T* bias, T* y, wide<T>* stats, int rows, int d,
                                             wide<T> eps, wide<T>* scratch) {
  int row = my_row<K>();
  if (row >= rows) return;
  Row<T, V, K, 1> r({x}, row, d);
  wide<T> sum = 0, square = 0;
  r.each([&](int, const Lane<T, V>* t) {
#pragma unroll
    for (int v = 0; v < V; v++) sum += widen(t[0].v[v]);
  });
  wide<T> mean = r.sum(sum, scratch) / d;
  r.each([&](int, const Lane<T, V>* t) {
#pragma unroll
    for (int v = 0; v < V; v++) {
      wide<T> u = widen(t[0].v[v]) - mean;
      square = fma(u, u, square);
    }
  });
  wide<T> rstd = 1 / sqrt(r.sum(square, scratch) / d + eps);
  if (r.first == 0) store<wide<T>, 2>(stats + 2 * (size_t)row, {mean, rstd});
  r.each([&](int i, const Lane<T, V>* t) {
    Lane<T, V> w = load<T, V>(weight + i), b = load<T, V>(bias + i), out;
#pragma unroll
    for (int v = 0; v < V; v++) out.v[v] = narrow<T>(fma((widen(t[0].v[v]) - mean) * rstd, widen(w.v[v]), widen(b.v[v])));
    store<T, V>(y + (size_t)row * d + i, out);
  });
}
// y = (x - mean) rstd weight + bias, rstd = 1 / sqrt(var + eps); stats[row] = (mean, rstd).
// One warp a row, or one block.
#define FORWARD(NAME, T)                                                                                            \
  KERNEL(256, layer_norm_##NAME, const T* x, const T* weight, const T* bias, T* y, wide<T>* stats, int rows,      \
         int d, double eps, int kept, int grouped) {                                                                   \
    __shared__ wide<T> scratch[32];                                                                               \
    BY_WIDTH(forward_body, T, x, weight, bias, y, stats, rows, d, (wide<T>)eps, scratch);                         \
  }
FOR_FLOAT(FORWARD)

template <class T, int V, int K>
__device__ __forceinline__ void backward_body(const T* x, const T* dy, const T* weight, const wide<T>* stats, T* dx, int rows,
                                              int d, wide<T>* scratch) {
  int row = my_row<K>();
  if (row >= rows) return;
  Row<T, V, K, 2> r({x, dy}, row, d);
  Lane<wide<T>, 2> s = load<wide<T>, 2>(stats + 2 * (size_t)row);
  wide<T> mean = s.v[0], rstd = s.v[1], sum = 0, dot = 0;
  r.each([&](int i, const Lane<T, V>* t) {
    Lane<T, V> w = load<T, V>(weight + i);
#pragma unroll
    for (int v = 0; v < V; v++) {
      wide<T> g = widen(t[1].v[v]) * widen(w.v[v]);
      sum += g, dot = fma(g, widen(t[0].v[v]) - mean, dot);
    }
  });
  wide<T> level = r.sum(sum, scratch) / d, slope = r.sum(dot, scratch) * rstd * rstd / d;
  r.each([&](int i, const Lane<T, V>* t) {
    Lane<T, V> w = load<T, V>(weight + i), out;
#pragma unroll
    for (int v = 0; v < V; v++) {
      wide<T> g = widen(t[1].v[v]) * widen(w.v[v]);
      out.v[v] = narrow<T>(rstd * (g - level - (widen(t[0].v[v]) - mean) * slope));
    }
    store<T, V>(dx + (size_t)row * d + i, out);
  });
}
// With g = dy weight: dx = rstd (g - mean(g) - (x - mean) rstd^2 mean(g (x - mean))).
// One warp a row, or one block.
#define BACKWARD(NAME, T)                                                                                           \
  KERNEL(256, layer_norm_backward_##NAME, const T* x, const T* dy, const T* weight, const wide<T>* stats, T* dx,  \
         int rows, int d, int kept, int grouped) {                                                                     \
    __shared__ wide<T> scratch[32];                                                                               \
    BY_WIDTH(backward_body, T, x, dy, weight, stats, dx, rows, d, scratch);                                         \
  }
FOR_FLOAT(BACKWARD)

template <class T, int V>
__device__ __forceinline__ void gradient_sums_body(const Columns& s, const T* x, const T* dy, const wide<T>* stats,
                                                   double* partial, double* scratch) {
  Share at = share_of<V>(s);
  column_sums<T, V>(s, at, scratch, partial, [&](int r, wide<T>* a, wide<T>* b) {
    size_t p = (size_t)r * s.c + at.c;
    Lane<T, V> t = load<T, V>(x + p), d = load<T, V>(dy + p);
    Lane<wide<T>, 2> row = load<wide<T>, 2>(stats + 2 * (size_t)r);
#pragma unroll
    for (int v = 0; v < V; v++) {
      wide<T> g = widen(d.v[v]);
      a[v] = fma(g, (widen(t.v[v]) - row.v[0]) * row.v[1], a[v]), b[v] += g;
    }
  });
}
// sum over rows of dy (x - mean) rstd and of dy. One block a tile of columns and a block of rows.
#define GRADIENT_SUMS(NAME, T)                                                                                      \
  KERNEL(256, layer_norm_gradient_sums_##NAME, Columns s, const T* x, const T* dy, const wide<T>* stats,            \
         double* partial) {                                                                                         \
    __shared__ double scratch[column_scratch<T>];                                                                   \
    s.grouped ? gradient_sums_body<T, GROUP<T>>(s, x, dy, stats, partial, scratch)                                     \
           : gradient_sums_body<T, 1>(s, x, dy, stats, partial, scratch);                                           \
  }
FOR_FLOAT(GRADIENT_SUMS)

template <class T>
__device__ __forceinline__ void parameters_body(const double* partial, T* dweight, T* dbias, int d, int blocks) {
  int column = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  if (column >= d) return;
  double sum[2];
  combine(partial, column, d, blocks, sum);
  if (threadIdx.x % 32) return;
  dweight[column] = narrow<T>((wide<T>)sum[0]);
  dbias[column] = narrow<T>((wide<T>)sum[1]);
}
// The sums over the blocks of rows. One warp a column.
#define PARAMETERS(NAME, T)                                                                                         \
  KERNEL(256, layer_norm_parameters_##NAME, const double* partial, T* dweight, T* dbias, int d, int blocks) {       \
    parameters_body<T>(partial, dweight, dbias, d, blocks);                                                         \
  }
FOR_FLOAT(PARAMETERS)
