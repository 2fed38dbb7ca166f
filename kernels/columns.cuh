// columns.cuh - walks down the columns of a matrix of rows: pairs of sums, in one order always.
#pragma once
#include "lane.cuh"

// How a matrix (m, c) is cut: blocks of 256 threads, `lanes` of them side by side, each with one
// column or (grouped) GROUP columns; blockIdx.x counts the tiles of columns, blockIdx.y the blocks of
// `rows` rows. Made by cuda::columns::Columns on the host.
struct Columns {
  int m, c, lanes, rows, grouped;
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
  int thread = threadIdx.x, threads = blockDim.x;
#pragma unroll
  for (int v = 0; v < 2 * V; v++) scratch[v * threads + thread] = sum[v];
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

// The two sums of column `c` over all `blocks` of rows, by a warp.
__device__ __forceinline__ void combine(const double* partial, int c, int columns, int blocks, double (&sum)[2]) {
#pragma unroll
  for (int k = 0; k < 2; k++) {
    sum[k] = 0;
    for (int i = threadIdx.x % 32; i < blocks; i += 32) sum[k] += partial[((size_t)k * columns + c) * blocks + i];
    sum[k] = warp_sum(sum[k]);
  }
}
