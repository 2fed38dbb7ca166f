// columns.cuh - walks down the columns of a matrix of rows: pairs of sums, in one order always.
#pragma once
#include "lane.cuh"

// How a matrix (m, c) is cut: blocks of 256 threads, `lanes` of them side by side, each with one
// column or (grouped) GROUP columns; blockIdx.x counts the tiles of columns, blockIdx.y the blocks of
// `rows` rows. Made by cuda::columns::Columns on the host.
struct Columns {
  int m, c, lanes, rows, grouped;
};

// A column's y = (x - mean) invstd weight + bias as (x - k) a + b. k is the mean rounded to f32 and
// `rest` what the rounding added, so that numbers far from 0 keep their digits.
template <class T> struct Affine {
  wide<T> k, a, b;
  double rest, invstd;
  Affine() = default;
  __device__ __forceinline__ Affine(double mean, double invstd, wide<T> weight, wide<T> bias) : k(mean), invstd(invstd) {
    rest = k - mean;
    double scale = weight * invstd;
    a = (wide<T>)scale;
    b = (wide<T>)(bias + rest * scale);
  }
  __device__ __forceinline__ wide<T> y(wide<T> x) const { return fma(x - k, a, b); }
};

// A thread's share: `n` rows from `r` on, `step` apart, of the columns from `c` on.
struct Share {
  int c, r, step, n;
};
template <int V> __device__ __forceinline__ Share share_of(const Columns& s) {
  int lane = threadIdx.x % s.lanes, step = blockDim.x / s.lanes;
  int c = (blockIdx.x * s.lanes + lane) * V, start = blockIdx.y * s.rows, row = threadIdx.x / s.lanes;
  int left = min(s.rows, s.m - start) - row;
  return {c, start + row, step, c < s.c && left > 0 ? (left + step - 1) / step : 0};
}

// Rows that are summed in f32 before the sum goes on in f64.
constexpr int SHORT = 32;
// Elements of shared memory that column_sums wants.
template <class T> constexpr int column_scratch = 2 * 256 * GROUP<T>;

// The block's sums of its threads' sums, number k of column c + v of which lies in
// scratch[(k V + v) blockDim.x + threadIdx.x]: into partial[k][c + v][blockIdx.y].
template <int V>
__device__ __forceinline__ void fold_columns(const Columns& s, const Share& at, double* scratch, double* partial) {
  int thread = threadIdx.x, threads = blockDim.x;
  for (int half = threads / 2; half >= s.lanes; half /= 2) {
    __syncthreads();
    if (thread < half)
#pragma unroll
      for (int v = 0; v < 2 * V; v++) scratch[v * threads + thread] += scratch[v * threads + thread + half];
  }
  // no barrier: a thread reads the sums that it wrote itself
  if (thread < s.lanes && at.c < s.c)
#pragma unroll
    for (int v = 0; v < 2 * V; v++)
      partial[((size_t)(v / V) * s.c + at.c + v % V) * gridDim.y + blockIdx.y] = scratch[v * threads + thread];
}

// For each of the thread's columns c + v the sums over the block's rows of what `add(r, a, b)` adds
// to a[v] and b[v]: into partial[0][c + v][blockIdx.y] and partial[1][c + v][blockIdx.y].
template <class T, int V, class F>
__device__ __forceinline__ void column_sums(const Columns& s, const Share& at, double* scratch, double* partial, F add) {
  double sum[2 * V] = {};
  for (int first = 0; first < at.n; first += SHORT) {
    wide<T> a[V] = {}, b[V] = {};
    int n = min(SHORT, at.n - first);
#pragma unroll 4
    for (int i = 0; i < n; i++) add(at.r + (first + i) * at.step, a, b);
#pragma unroll
    for (int v = 0; v < V; v++) sum[v] += a[v], sum[V + v] += b[v];
  }
#pragma unroll
  for (int v = 0; v < 2 * V; v++) scratch[v * blockDim.x + threadIdx.x] = sum[v];
  fold_columns<V>(s, at, scratch, partial);
}

// Of three rows: one that lies far from the others does not become the shift of its run.
template <class W> __device__ __forceinline__ W median(W a, W b, W c) {
  W low = a < b ? a : b, high = a < b ? b : a;
  return c < low ? low : c > high ? high : c;
}

// For each of the thread's columns c + v of x the sums over the block's rows of x - shift[v] and of
// its square, in the places of column_sums. A short sum in f32 is about a number of its own rows, so
// that it cancels nowhere, and moves to the shift in f64: sum (d + e) = s + n e and
// sum (d + e)^2 = q + 2 e s + n e^2.
template <class T, int V>
__device__ __forceinline__ void shifted_sums(const Columns& s, const Share& at, double* scratch, double* partial, const T* x,
                                             const wide<T> (&shift)[V]) {
  auto row = [&](int i) { return load<T, V>(x + (size_t)(at.r + i * at.step) * s.c + at.c); };
  // in shared memory, or registers would not suffice for four blocks on a multiprocessor
  volatile double* sum = scratch + threadIdx.x;
  int threads = blockDim.x;
#pragma unroll
  for (int v = 0; v < 2 * V; v++) sum[v * threads] = 0;
  for (int first = 0; first < at.n; first += SHORT) {
    wide<T> k[V], a[V] = {}, b[V] = {};
    int n = min(SHORT, at.n - first);
    Lane<T, V> p = row(first), q = row(first + n / 2), r = row(first + n - 1);
#pragma unroll
    for (int v = 0; v < V; v++) k[v] = median(widen(p.v[v]), widen(q.v[v]), widen(r.v[v]));
#pragma unroll 4
    for (int i = 0; i < n; i++) {
      Lane<T, V> t = row(first + i);
#pragma unroll
      for (int v = 0; v < V; v++) {
        wide<T> d = widen(t.v[v]) - k[v];
        a[v] += d, b[v] = fma(d, d, b[v]);
      }
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
      double e = (double)k[v] - shift[v], rise = n * e;
      sum[v * threads] = sum[v * threads] + (a[v] + rise);
      sum[(V + v) * threads] = sum[(V + v) * threads] + (b[v] + e * (2.0 * a[v] + rise));
    }
  }
  fold_columns<V>(s, at, scratch, partial);
}

// The two sums of column `c` over all `blocks` of rows, by a warp.
__device__ __forceinline__ void combine(const double* partial, int c, int columns, int blocks, double (&sum)[2]) {
#pragma unroll
  for (int k = 0; k < 2; k++) {
    sum[k] = 0;
    for (int i = threadIdx.x % 32; i < blocks; i += 32) sum[k] += partial[((size_t)k * columns + c) * blocks + i];
    sum[k] = warp_sum(sum[k]);
  }
}
