// reduce.cu - reductions of dense memory [outer][reduced][inner]: sum, the greatest, its place.
//
// Where rows or columns are few and long, each is cut into parts of `chunk` elements; the parts'
// results are an array of the same form, which the host reduces again.
#include "team.cuh"

// N neighbouring elements: one load where N fills 16 bytes.
template <class T, int N> struct __align__(N * sizeof(T)) Few { T v[N]; };

// What thread `lane` of `lanes` takes of p[0..n), 16 bytes at a time between its unaligned ends.
template <class R, class T> __device__ __forceinline__ T take(const T* p, int n, int lane, int lanes) {
  const int N = Pack<T>::N;
  int head = (int)((16 - ((size_t)p & 15)) & 15) / (int)sizeof(T);
  if (head > n) head = n;
  int packs = (n - head) / N;
  T acc[N];
#pragma unroll
  for (int j = 0; j < N; j++) acc[j] = R::template none<T>();
  for (int i = lane; i < head; i += lanes) acc[0] = R::join(acc[0], p[i]);
  const Pack<T>* q = reinterpret_cast<const Pack<T>*>(p + head);
#pragma unroll 4
  for (int i = lane; i < packs; i += lanes) {
    Pack<T> x = q[i];
#pragma unroll
    for (int j = 0; j < N; j++) acc[j] = R::join(acc[j], x.v[j]);
  }
  for (int i = head + packs * N + lane; i < n; i += lanes) acc[N - 1] = R::join(acc[N - 1], p[i]);
#pragma unroll
  for (int half = N / 2; half; half /= 2)
#pragma unroll
    for (int j = 0; j < half; j++) acc[j] = R::join(acc[j], acc[j + half]);
  return acc[0];
}

template <class R, class T>
__device__ __forceinline__ void rows_body(const T* x, T* y, int rows, int n, int chunk, int lanes, T scale) {
  __shared__ T scratch[32];
  Team t(lanes);
  int parts = (n - 1) / chunk + 1, row = t.row / parts, from = t.row % parts * chunk;
  T v = R::template none<T>();
  if (row < rows) v = take<R>(x + (size_t)row * n + from, n - from < chunk ? n - from : chunk, t.lane, lanes);
  v = t.join<R>(v, scratch);
  if (row < rows && t.lane == 0) y[t.row] = v * scale;
}

// The block's `wide` columns, N neighbours to a thread, are walked by blockDim.x / wide threads each.
template <class R, class T, int N>
__device__ __forceinline__ void columns_body(const T* x, T* y, int outer, int reduced, int inner, int chunk, int wide, T scale) {
  __shared__ T found[N][256];
  int parts = (reduced - 1) / chunk + 1, width = inner / N, columns = outer * width, tiles = (columns - 1) / wide + 1;
  int part = blockIdx.x / tiles, column = blockIdx.x % tiles * wide + threadIdx.x % wide;
  int o = column / width, c = column % width * N, r = threadIdx.x / wide, tall = blockDim.x / wide;
  int end = reduced - part * chunk < chunk ? reduced : (part + 1) * chunk;
  T acc[N];
#pragma unroll
  for (int k = 0; k < N; k++) acc[k] = R::template none<T>();
  if (column < columns) {
    const T* p = x + (size_t)o * reduced * inner + c;
#pragma unroll 4
    for (int i = part * chunk + r; i < end; i += tall) {
      Few<T, N> v = *reinterpret_cast<const Few<T, N>*>(p + (size_t)i * inner);
#pragma unroll
      for (int k = 0; k < N; k++) acc[k] = R::join(acc[k], v.v[k]);
    }
  }
  for (int half = tall / 2; half; half /= 2) {
#pragma unroll
    for (int k = 0; k < N; k++) found[k][threadIdx.x] = acc[k];
    __syncthreads();
    if (r < half)
#pragma unroll
      for (int k = 0; k < N; k++) acc[k] = R::join(acc[k], found[k][threadIdx.x + half * wide]);
    __syncthreads();
  }
  if (r == 0 && column < columns) {
    T* q = y + ((size_t)o * parts + part) * inner + c;
#pragma unroll
    for (int k = 0; k < N; k++) q[k] = acc[k] * scale;
  }
}
template <class R, class T>
__device__ __forceinline__ void columns_body(const T* x, T* y, int outer, int reduced, int inner, int chunk, int wide, int packed, T scale) {
  if (packed)
    columns_body<R, T, Pack<T>::N>(x, y, outer, reduced, inner, chunk, wide, scale);
  else
    columns_body<R, T, 1>(x, y, outer, reduced, inner, chunk, wide, scale);
}

// y[r][part] = scale times the sum over i in the part of x[r][i].
// One team of `lanes` a part of a row.
#define SUM_ROWS(NAME, T)                                                                                \
  KERNEL(256, sum_rows_##NAME, const T* x, T* y, int rows, int n, int chunk, int lanes, double scale) { \
    rows_body<Sum, T>(x, y, rows, n, chunk, lanes, T(scale));                                            \
  }
FOR_REAL(SUM_ROWS)

// y[r][part] = the greatest of the part's x[r][i].
// One team of `lanes` a part of a row.
#define AMAX_ROWS(NAME, T)                                                                                \
  KERNEL(256, amax_rows_##NAME, const T* x, T* y, int rows, int n, int chunk, int lanes, double scale) { \
    rows_body<Greatest, T>(x, y, rows, n, chunk, lanes, T(scale));                                        \
  }
FOR_REAL(AMAX_ROWS)

// y[o][part][c] = scale times the sum over i in the part of x[o][i][c].
// One block a part of `wide` columns (of packs of them, if packed), counted over all o.
#define SUM_COLUMNS(NAME, T)                                                                                  \
  KERNEL(256, sum_columns_##NAME, const T* x, T* y, int outer, int reduced, int inner, int chunk, int wide,  \
         int packed, double scale) {                                                                          \
    columns_body<Sum, T>(x, y, outer, reduced, inner, chunk, wide, packed, T(scale));                         \
  }
FOR_REAL(SUM_COLUMNS)

// y[o][part][c] = the greatest of the part's x[o][i][c].
// One block a part of `wide` columns (of packs of them, if packed), counted over all o.
#define AMAX_COLUMNS(NAME, T)                                                                                 \
  KERNEL(256, amax_columns_##NAME, const T* x, T* y, int outer, int reduced, int inner, int chunk, int wide, \
         int packed, double scale) {                                                                          \
    columns_body<Greatest, T>(x, y, outer, reduced, inner, chunk, wide, packed, T(scale));                    \
  }
FOR_REAL(AMAX_COLUMNS)

// A value and its place.
template <class T> struct Placed {
  T value;
  unsigned place;
  // the greater, NaN above all, the first of equals
  __device__ __forceinline__ void meet(T v, unsigned p) {
    bool nan = value != value, other = v != v;
    bool same = nan ? other : v == value;
    if (same ? p < place : !nan && (other || v > value)) {
      value = v;
      place = p;
    }
  }
  __device__ __forceinline__ void meet_lanes(int lanes) {
    for (int o = lanes >> 1; o; o >>= 1) meet(__shfl_xor_sync(0xffffffffu, value, o), __shfl_xor_sync(0xffffffffu, place, o));
  }
};
template <class T> __device__ __forceinline__ void argmax_body(const T* x, i64* y, int rows, int n, int lanes) {
  __shared__ wide<T> values[32];
  __shared__ unsigned places[32];
  Team t(lanes);
  unsigned row = t.row < (unsigned)rows ? t.row : 0;  // a team without a row goes along
  const T* p = x + (size_t)row * n;
  Placed<wide<T>> best = {widen(p[0]), 0};
#pragma unroll 4
  for (int i = t.lane; i < n; i += lanes) best.meet(widen(p[i]), i);
  best.meet_lanes(lanes < 32 ? lanes : 32);
  if (lanes > 32) {
    int in_warp = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    if (in_warp == 0) {
      values[warp] = best.value;
      places[warp] = best.place;
    }
    __syncthreads();
    best = {values[in_warp % warps], places[in_warp % warps]};
    best.meet_lanes(32);
  }
  if (t.row < (unsigned)rows && t.lane == 0) y[t.row] = best.place;
}
// y[r] = the first i with the greatest x[r][i].
// One team of `lanes` a row.
#define ARGMAX(NAME, T) \
  KERNEL(1024, argmax_##NAME, const T* x, i64* y, int rows, int n, int lanes) { argmax_body<T>(x, y, rows, n, lanes); }
FOR_ALL(ARGMAX)

// y[r][part] = m + ln sum over i in the part of e^(x[o][i][c] - m), m their greatest, r = (o, c).
// One team of `lanes` a part of a row, whose elements lie `inner` apart.
template <class T>
__device__ __forceinline__ void logsumexp_body(const T* x, T* y, int rows, int n, int inner, int chunk, int lanes) {
  __shared__ T scratch[32];
  Team t(lanes);
  int parts = (n - 1) / chunk + 1, row = t.row / parts, begin = t.row % parts * chunk;
  unsigned count = row < rows ? (n - begin < chunk ? n - begin : chunk) : 0;
  const T* p = x + ((size_t)(row / inner) * n + begin) * inner + row % inner;
  Held<T> h;
  Exponentials<T> e;
  for (unsigned from = 0; from < count; from += h.N * lanes) {
    h.load(p, count, inner, from, t, T(-INFINITY));
    e.add(h);
  }
  e.join(t, scratch);
  // an infinite maximum is the answer: the sum is of inf - inf
  if (row < rows && t.lane == 0) y[t.row] = e.max == T(INFINITY) || e.max == T(-INFINITY) ? e.max : e.max + log(e.sum);
}
#define LOGSUMEXP(NAME, T)                                                                                     \
  KERNEL(1024, logsumexp_##NAME, const T* x, T* y, int rows, int n, int inner, int chunk, int lanes) {        \
    logsumexp_body<T>(x, y, rows, n, inner, chunk, lanes);                                                     \
  }
FOR_REAL(LOGSUMEXP)
