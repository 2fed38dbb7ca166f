// copy.cu - elements moved, converted, filled and added: what tensors do outside of any op.
#include "common.cuh"

// ---------------------------------------------------------------- conversions
// As Rust's `as`: through double, rounded to nearest; to integers truncated and saturated, NaN is 0.
template <class To> __device__ __forceinline__ To from_double(double x) { return narrow<To>((wide<To>)x); }
template <> __device__ __forceinline__ i64 from_double<i64>(double x) {
  if (x != x) return 0;
  if (x >= 9223372036854775808.0) return 0x7fffffffffffffffLL;
  if (x <= -9223372036854775808.0) return -0x7fffffffffffffffLL - 1;
  return (i64)x;
}
template <> __device__ __forceinline__ u8 from_double<u8>(double x) {
  return x != x || x <= 0.0 ? 0 : x >= 255.0 ? 255 : (u8)x;
}
// The fast ways between floats; all others take the long one.
template <class From, class To> struct Convert {
  static __device__ __forceinline__ To of(From x) { return from_double<To>((double)widen(x)); }
};
template <class T> struct Convert<T, T> {
  static __device__ __forceinline__ T of(T x) { return x; }
};
#define CONVERT_FLOATS(FROM, TO)                                                               \
  template <> struct Convert<FROM, TO> {                                                       \
    static __device__ __forceinline__ TO of(FROM x) { return narrow<TO>((float)widen(x)); }    \
  };
CONVERT_FLOATS(float, bf16)
CONVERT_FLOATS(float, f16)
CONVERT_FLOATS(bf16, float)
CONVERT_FLOATS(f16, float)
CONVERT_FLOATS(bf16, f16)
CONVERT_FLOATS(f16, bf16)

// ---------------------------------------------------------------- copy
// Four neighbours, loaded and stored at once where they are aligned.
template <class T> struct __align__(sizeof(T) < 4 ? 4 * sizeof(T) : 16) Four { T v[4]; };

// y = x in y's dense memory order, converted.
// A block owns 1024 elements, each thread 4 of them: neighbours where x lies as y does.
template <class From, class To>
__device__ __forceinline__ void copy_body(const From* x, To* y, const Walk<1>& w) {
  bool dense = w.rank == 1 && w.strides[0][0] == 1 && (size_t)x % alignof(Four<From>) == 0 && (size_t)y % alignof(Four<To>) == 0;
  unsigned i = blockIdx.x * 1024u + threadIdx.x * (dense ? 4 : 1), step = dense ? 1 : 256;
  if (dense && i + 4 <= w.n) {
    Four<From> from = *reinterpret_cast<const Four<From>*>(x + i);
    Four<To> to;
#pragma unroll
    for (int j = 0; j < 4; j++) to.v[j] = Convert<From, To>::of(from.v[j]);
    *reinterpret_cast<Four<To>*>(y + i) = to;
    return;
  }
  From held[4];  // all loads before the first store
#pragma unroll
  for (int j = 0; j < 4; j++) {
    i64 at[1];
    if (i + j * step >= w.n) break;
    walk_to(w, i + j * step, at);
    held[j] = x[at[0]];
  }
#pragma unroll
  for (int j = 0; j < 4; j++)
    if (i + j * step < w.n) y[i + j * step] = Convert<From, To>::of(held[j]);
}
#define COPY(FROM, F, TO, T) \
  KERNEL(256, copy_##FROM##_##TO, const F* x, T* y, Walk<1> w) { copy_body<F, T>(x, y, w); }
#define COPY_TO_F32(NAME, T) COPY(NAME, T, f32, float)
#define COPY_TO_F64(NAME, T) COPY(NAME, T, f64, double)
#define COPY_TO_BF16(NAME, T) COPY(NAME, T, bf16, bf16)
#define COPY_TO_F16(NAME, T) COPY(NAME, T, f16, f16)
#define COPY_TO_I64(NAME, T) COPY(NAME, T, i64, i64)
#define COPY_TO_U8(NAME, T) COPY(NAME, T, u8, u8)
FOR_ALL(COPY_TO_F32)
FOR_ALL(COPY_TO_F64)
FOR_ALL(COPY_TO_BF16)
FOR_ALL(COPY_TO_F16)
FOR_ALL(COPY_TO_I64)
FOR_ALL(COPY_TO_U8)

// y = x^T for matrices (rows, columns) of x, `batch` of them: how images change their memory order.
// A block owns a tile of 32x32, which it turns in shared memory, so that both sides are coalesced.
template <class T>
__device__ __forceinline__ void transpose_body(const T* x, T* y, int rows, int columns) {
  __shared__ T tile[32][33];
  size_t matrix = (size_t)blockIdx.z * rows * columns;
  int c = blockIdx.x * 32 + threadIdx.x, r = blockIdx.y * 32 + threadIdx.y;
  for (int j = 0; j < 32; j += 8)
    if (r + j < rows && c < columns) tile[threadIdx.y + j][threadIdx.x] = x[matrix + (size_t)(r + j) * columns + c];
  __syncthreads();
  r = blockIdx.y * 32 + threadIdx.x, c = blockIdx.x * 32 + threadIdx.y;
  for (int j = 0; j < 32; j += 8)
    if (c + j < columns && r < rows) y[matrix + (size_t)(c + j) * rows + r] = tile[threadIdx.x][threadIdx.y + j];
}
#define TRANSPOSE(NAME, T) \
  KERNEL(256, transpose_##NAME, const T* x, T* y, int rows, int columns) { transpose_body<T>(x, y, rows, columns); }
FOR_ALL(TRANSPOSE)

// ---------------------------------------------------------------- fill and add
// y = value. A thread owns 4 elements.
#define FILL(NAME, T)                                                                \
  KERNEL(256, fill_##NAME, T* y, unsigned n, double value) {                         \
    T v = from_double<T>(value);                                                     \
    unsigned i = blockIdx.x * 1024u + threadIdx.x;                                   \
    for (int j = 0; j < 4 && i < n; j++, i += 256) y[i] = v;                          \
  }
FOR_ALL(FILL)

template <class T> __device__ __forceinline__ T plus(T a, T b) { return narrow<T>(widen(a) + widen(b)); }
// x += y, both dense in one memory order. A block owns 256 packs of 16 bytes.
template <class T> __device__ __forceinline__ void add_body(T* x, const T* y, unsigned n) {
  const int N = Pack<T>::N;
  unsigned i = (blockIdx.x * 256u + threadIdx.x) * N;
  bool aligned = (((size_t)x | (size_t)y) & 15) == 0;
  if (aligned && i + N <= n) {
    Pack<T> a = *reinterpret_cast<Pack<T>*>(x + i), b = *reinterpret_cast<const Pack<T>*>(y + i);
#pragma unroll
    for (int j = 0; j < N; j++) a.v[j] = plus(a.v[j], b.v[j]);
    *reinterpret_cast<Pack<T>*>(x + i) = a;
  } else {
    for (int j = 0; j < N && i + j < n; j++) x[i + j] = plus(x[i + j], y[i + j]);
  }
}
#define ADD_TO(NAME, T) \
  KERNEL(256, add_to_##NAME, T* x, const T* y, unsigned n) { add_body<T>(x, y, n); }
FOR_ALL(ADD_TO)
