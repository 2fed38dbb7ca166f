// depthwise.cu - convolution where each channel has its own window: forward and the gradients of input and weight.
//
// A thread owns one channel, neighbouring lanes neighbouring channels, and walks down a strip of
// the image that is R places wide. What a window overlaps stays in registers: a row is read once
// for all the rows that it has part in. Windows of 3 .. 11 at strides 1 and 2 are compiled so, the
// others and f64 go tap by tap.
#include "conv.cuh"

// ---------------------------------------------------------------- strips
// How a block's threads are laid out: `lanes` channels (a power of two) x 128 / lanes strips. Strips are
// `rows` high and R wide; their number goes through columns, rows, images. Dynamic shared memory:
// a window for each lane.
struct Strips {
  int lanes, rows;
};
struct Strip {
  int n, y, x;
};
__device__ __forceinline__ Strip strip_at(int i, int rows, int width, int high, int wide) {
  const int across = cut(wide, width), down = cut(high, rows);
  return {i / across / down, i / across % down * rows, i % across * width};
}
// bit i: column x + i lies in the image
__device__ __forceinline__ unsigned columns_inside(int x, int count, int width) {
  unsigned mask = 0;
#pragma unroll
  for (int i = 0; i < count; i++) mask |= (unsigned)((unsigned)(x + i) < (unsigned)width) << i;
  return mask;
}
// N neighbouring places of one channel, zeros where the mask has none
template <int N, class T> __device__ __forceinline__ void read_row(wide<T> (&to)[N], const T* from, int channels, unsigned inside) {
#pragma unroll
  for (int i = 0; i < N; i++) to[i] = inside >> i & 1 ? widen(from[i * channels]) : wide<T>(0);
}
// The window of this thread's channel, in registers where they suffice. K is odd: the lanes of a
// warp read different banks of `shared`, which holds their windows one after another.
template <class T, int K> struct Weights {
  static const int TAPS = K * K;
  static const bool KEPT = K <= 7;
  const wide<T>* shared;
  wide<T> kept[KEPT ? TAPS : 1];
  __device__ __forceinline__ Weights(const T* w, wide<T>* room, int first, int channels, int lanes) {
    const int count = min(lanes, channels - first) * TAPS;
    for (int i = threadIdx.x; i < count; i += blockDim.x) room[i] = widen(w[(size_t)first * TAPS + i]);
    __syncthreads();
    shared = room + threadIdx.x % lanes * TAPS;
    if (KEPT) {
#pragma unroll
      for (int i = 0; i < TAPS; i++) kept[KEPT ? i : 0] = shared[i];
    }
  }
  __device__ __forceinline__ wide<T> operator()(int y, int x) const { return KEPT ? kept[KEPT ? y * K + x : 0] : shared[y * K + x]; }
};

// ---------------------------------------------------------------- forward
// y[n, i, j, c] = b[c] + sum over u, v of x[n, i S + u - p, j S + v - p, c] w[c, u, v], perhaps through ReLU
// one thread a strip of outputs of one channel; per step of S input rows one row of outputs is done
template <class T, int K, int S, int R> __device__ __forceinline__ void forward_body(const T* x, const T* w, const T* bias, T* y, const Conv& s, const Strips& strips, int has_bias, int relu) {
  typedef wide<T> W;
  const int A = (K + S - 1) / S, COLS = (R - 1) * S + K;  // outputs that an input row has part in, columns read
  DYN_SMEM(W, room);
  const int first = blockIdx.y * strips.lanes, c = first + threadIdx.x % strips.lanes;
  const Weights<T, K> weight(w, room, first, s.co, strips.lanes);
  const Strip at = strip_at(blockIdx.x * (blockDim.x / strips.lanes) + threadIdx.x / strips.lanes, strips.rows, R, s.oh, s.ow);
  if (c >= s.co || at.n >= s.n) return;
  const int left = at.x * S - s.pw, rows = min(strips.rows, s.oh - at.y);
  const unsigned inside = columns_inside(left, COLS, s.w);
  const W start = has_bias ? widen(bias[c]) : W(0), least = relu ? W(0) : W(-INFINITY);
  x += ((i64)at.n * s.h * s.w + left) * s.co + c;
  y += (((size_t)at.n * s.oh + at.y) * s.ow + at.x) * s.co + c;
  W acc[A][R];
#pragma unroll
  for (int a = 0; a < A; a++)
#pragma unroll
    for (int r = 0; r < R; r++) acc[a][r] = start;
#pragma unroll 1
  for (int j = 0; j < rows + A - 1; j++) {
#pragma unroll
    for (int u = 0; u < S; u++) {
      const int row = (at.y + j) * S - s.ph + u;
      if ((unsigned)row >= (unsigned)s.h) continue;
      W in[COLS];
      read_row(in, x + (i64)row * s.w * s.co, s.co, inside);
#pragma unroll
      for (int a = 0; a < A; a++)
#pragma unroll
        for (int v = 0; v < K; v++)
          if (a * S + u < K) {
            const W f = weight(a * S + u, v);
#pragma unroll
            for (int r = 0; r < R; r++) acc[A - 1 - a][r] += in[r * S + v] * f;
          }
    }
    if (j >= A - 1) {
#pragma unroll
      for (int r = 0; r < R; r++)
        if (at.x + r < s.ow) y[(size_t)r * s.co] = narrow<T>(nan_max(acc[0][r], least));
      y += (size_t)s.ow * s.co;
    }
#pragma unroll
    for (int a = 0; a < A; a++)
#pragma unroll
      for (int r = 0; r < R; r++) acc[a][r] = a + 1 < A ? acc[a + 1 < A ? a + 1 : a][r] : start;
  }
}

// ---------------------------------------------------------------- input gradient
// dx[n, i, j, c] = sum over the windows that reach (i, j) of dy w, plus the bias of a transposed convolution
// one thread a strip of R S columns of dx of one channel; per row of dy S rows of dx are done
template <class T, int K, int S, int R> __device__ __forceinline__ void input_grad_body(const T* dy, const T* w, const T* bias, T* dx, const Conv& s, const Strips& strips, int has_bias) {
  typedef wide<T> W;
  const int A = (K + S - 1) / S, COLS = R + A - 1;
  DYN_SMEM(W, room);
  const int first = blockIdx.y * strips.lanes, c = first + threadIdx.x % strips.lanes;
  const Weights<T, K> weight(w, room, first, s.co, strips.lanes);
  // dx's places in groups of S: group q begins at q S - p
  const int top = s.ph / S, left = s.pw / S, high = (s.h - 1 + s.ph) / S + 1 - top, wide = (s.w - 1 + s.pw) / S + 1 - left;
  Strip at = strip_at(blockIdx.x * (blockDim.x / strips.lanes) + threadIdx.x / strips.lanes, strips.rows, R, high, wide);
  if (c >= s.co || at.n >= s.n) return;
  const int end = min(at.y + strips.rows, high) + top;
  at.y += top, at.x += left;
  const unsigned inside = columns_inside(at.x - (A - 1), COLS, s.ow), stored = columns_inside(at.x * S - s.pw, R * S, s.w);
  const W start = has_bias ? widen(bias[c]) : W(0);
  dy += ((i64)at.n * s.oh * s.ow + at.x - (A - 1)) * s.co + c;
  dx += ((i64)at.n * s.h * s.w + at.x * S - s.pw) * s.co + c;
  W acc[A][S][R * S];
#pragma unroll
  for (int a = 0; a < A; a++)
#pragma unroll
    for (int u = 0; u < S; u++)
#pragma unroll
      for (int r = 0; r < R * S; r++) acc[a][u][r] = start;
#pragma unroll 1
  for (int q = at.y - (A - 1); q < end; q++) {
    if ((unsigned)q < (unsigned)s.oh) {
      W in[COLS];
      read_row(in, dy + (i64)q * s.ow * s.co, s.co, inside);
#pragma unroll
      for (int u = 0; u < K; u++)
#pragma unroll
        for (int v = 0; v < K; v++) {
          const W f = weight(u, v);
#pragma unroll
          for (int r = 0; r < R; r++) acc[u / S][u % S][r * S + v % S] += in[r - v / S + A - 1] * f;
        }
    }
#pragma unroll
    for (int u = 0; u < S; u++) {
      const int row = q * S - s.ph + u;
      if (q >= at.y && (unsigned)row < (unsigned)s.h) {
#pragma unroll
        for (int r = 0; r < R * S; r++)
          if (stored >> r & 1) dx[((i64)row * s.w + r) * s.co] = narrow<T>(acc[0][u][r]);
      }
    }
#pragma unroll
    for (int a = 0; a < A; a++)
#pragma unroll
      for (int u = 0; u < S; u++)
#pragma unroll
        for (int r = 0; r < R * S; r++) acc[a][u][r] = a + 1 < A ? acc[a + 1 < A ? a + 1 : a][u][r] : start;
  }
}

// ---------------------------------------------------------------- weight gradient
// how many blocks of a group of channels are done: 0 again when the last one leaves
const int COUNTERS = 2048;
__device__ unsigned arrived[COUNTERS];

// dw[c, u, v] = sum over n, i, j of dy[n, i, j, c] x[n, i S + u - p, j S + v - p, c]
// one block a group of channels and one slice (blockIdx.x) of the strips; the last block of a group
// adds its slices' sums in their order
template <class T, int K, int S, int R> __device__ __forceinline__ void weight_grad_body(const T* x, const T* dy, wide<T>* parts, T* dw, const Conv& s, const Strips& strips) {
  typedef wide<T> W;
  const int A = (K + S - 1) / S, COLS = (R - 1) * S + K, TAPS = K * K;
  DYN_SMEM(W, sums);
  __shared__ bool last;
  const int first = blockIdx.y * strips.lanes, lane = threadIdx.x % strips.lanes, c = first + lane;
  const int per_block = blockDim.x / strips.lanes, mine = threadIdx.x / strips.lanes;
  const int total = s.n * cut(s.oh, strips.rows) * cut(s.ow, R);
  W acc[TAPS];
#pragma unroll
  for (int i = 0; i < TAPS; i++) acc[i] = 0;
#pragma unroll 1
  for (int i = blockIdx.x * per_block + mine; i < (c < s.co ? total : 0); i += gridDim.x * per_block) {
    const Strip at = strip_at(i, strips.rows, R, s.oh, s.ow);
    const int left = at.x * S - s.pw, rows = min(strips.rows, s.oh - at.y);
    const unsigned inside = columns_inside(left, COLS, s.w), outputs = columns_inside(at.x, R, s.ow);
    const T* xs = x + ((i64)at.n * s.h * s.w + left) * s.co + c;
    const T* dys = dy + (((size_t)at.n * s.oh + at.y) * s.ow + at.x) * s.co + c;
    W d[A][R];  // the rows of dy that the next row of x has part in
#pragma unroll
    for (int a = 0; a < A; a++)
#pragma unroll
      for (int r = 0; r < R; r++) d[a][r] = 0;
#pragma unroll 1
    for (int j = 0; j < rows + A - 1; j++) {
#pragma unroll
      for (int a = 0; a + 1 < A; a++)
#pragma unroll
        for (int r = 0; r < R; r++) d[a][r] = d[a + 1][r];
      read_row(d[A - 1], dys + (i64)j * s.ow * s.co, s.co, j < rows ? outputs : 0);
#pragma unroll
      for (int u = 0; u < S; u++) {
        const int row = (at.y + j) * S - s.ph + u;
        if ((unsigned)row >= (unsigned)s.h) continue;
        W in[COLS];
        read_row(in, xs + (i64)row * s.w * s.co, s.co, inside);
#pragma unroll
        for (int a = 0; a < A; a++)
#pragma unroll
          for (int v = 0; v < K; v++)
            if (a * S + u < K) {
#pragma unroll
              for (int r = 0; r < R; r++) acc[(a * S + u < K ? a * S + u : 0) * K + v] += d[A - 1 - a][r] * in[r * S + v];
            }
      }
    }
  }
  // the block's strips one after another
  for (int q = 0; q < per_block; q++) {
    if (q == mine) {
#pragma unroll
      for (int i = 0; i < TAPS; i++) sums[lane * TAPS + i] = acc[i] + (q ? sums[lane * TAPS + i] : W(0));
    }
    __syncthreads();
  }
  const int count = min(strips.lanes, s.co - first) * TAPS, slice = s.co * TAPS;
  dw += (size_t)first * TAPS, parts += (size_t)first * TAPS;
  if (gridDim.x == 1) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) dw[i] = narrow<T>(sums[i]);
    return;
  }
  for (int i = threadIdx.x; i < count; i += blockDim.x) parts[(size_t)blockIdx.x * slice + i] = sums[i];
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicInc(&arrived[blockIdx.y], gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    W sum = 0;
    for (unsigned k = 0; k < gridDim.x; k++) sum += parts[(size_t)k * slice + i];
    dw[i] = narrow<T>(sum);
  }
}

// widths of a strip: of the output, of dy in the input gradient, of dy in the weight gradient
#define DEPTHWISE(K, S, RY, RX, RW, NAME, T)                                                                                                   \
  KERNEL(128, depthwise_forward_##K##s##S##_##NAME, const T* x, const T* w, const T* bias, T* y, Conv s, Strips strips, int has_bias, int relu) { \
    forward_body<T, K, S, RY>(x, w, bias, y, s, strips, has_bias, relu);                                                                       \
  }                                                                                                                                            \
  KERNEL(128, depthwise_input_grad_##K##s##S##_##NAME, const T* dy, const T* w, const T* bias, T* dx, Conv s, Strips strips, int has_bias) {   \
    input_grad_body<T, K, S, RX>(dy, w, bias, dx, s, strips, has_bias);                                                                        \
  }                                                                                                                                            \
  KERNEL(128, depthwise_weight_grad_##K##s##S##_##NAME, const T* x, const T* dy, wide<T>* parts, T* dw, Conv s, Strips strips) {               \
    weight_grad_body<T, K, S, RW>(x, dy, parts, dw, s, strips);                                                                                \
  }
#define DEPTHWISE_ALL(NAME, T)                                                \
  DEPTHWISE(3, 1, 4, 4, 4, NAME, T) DEPTHWISE(3, 2, 4, 4, 4, NAME, T)         \
  DEPTHWISE(5, 1, 4, 4, 4, NAME, T) DEPTHWISE(5, 2, 4, 4, 5, NAME, T)         \
  DEPTHWISE(7, 1, 4, 4, 4, NAME, T) DEPTHWISE(7, 2, 4, 2, 4, NAME, T)         \
  DEPTHWISE(9, 1, 8, 8, 2, NAME, T) DEPTHWISE(9, 2, 6, 4, 2, NAME, T)         \
  DEPTHWISE(11, 1, 8, 8, 2, NAME, T) DEPTHWISE(11, 2, 8, 4, 2, NAME, T)
DEPTHWISE_ALL(f32, float)
DEPTHWISE_ALL(bf16, bf16)
DEPTHWISE_ALL(f16, f16)

// ---------------------------------------------------------------- any window
// y or dx, place by place; one thread an element
template <class T> __device__ __forceinline__ wide<T> window_sum(const T* in, const T* w, const Axis& y, const Axis& x, int i, int j, int n, int ih, int iw, int channels, int kw) {
  wide<T> sum = 0;
  for (int u = 0; u < y.taps; u++)
    for (int v = 0; v < x.taps; v++) {
      const int row = y.start + i * y.step + u * y.hop, col = x.start + j * x.step + v * x.hop;
      if ((unsigned)row < (unsigned)ih && (unsigned)col < (unsigned)iw)
        sum += widen(in[(((size_t)n * ih + row) * iw + col) * channels]) * widen(w[(y.tap + u * y.tap_by) * kw + x.tap + v * x.tap_by]);
    }
  return sum;
}
template <class T> __device__ __forceinline__ void any_forward_body(const T* x, const T* w, const T* bias, T* y, const Conv& s, int has_bias, int relu) {
  const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
  const unsigned c = at % s.co, j = at / s.co % s.ow, i = at / s.co / s.ow % s.oh, n = at / s.co / s.ow / s.oh;
  if (n >= s.n) return;
  const Axis rows = forward_axis(s.oh, s.kh, s.sh, s.ph, s.dh), cols = forward_axis(s.ow, s.kw, s.sw, s.pw, s.dw);
  wide<T> sum = window_sum(x + c, w + (size_t)c * s.kh * s.kw, rows, cols, i, j, n, s.h, s.w, s.co, s.kw);
  if (has_bias) sum += widen(bias[c]);
  y[at] = narrow<T>(relu ? nan_max(sum, wide<T>(0)) : sum);
}
template <class T> __device__ __forceinline__ void any_input_grad_body(const T* dy, const T* w, const T* bias, T* dx, const Conv& s, int has_bias) {
  const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
  const unsigned c = at % s.co, j = at / s.co % s.w, i = at / s.co / s.w % s.h, n = at / s.co / s.w / s.h;
  if (n >= s.n) return;
  const Axis rows = input_grad_axis(i % s.sh, s.h, s.kh, s.sh, s.ph, s.dh), cols = input_grad_axis(j % s.sw, s.w, s.kw, s.sw, s.pw, s.dw);
  const wide<T> sum = window_sum(dy + c, w + (size_t)c * s.kh * s.kw, rows, cols, i / s.sh, j / s.sw, n, s.oh, s.ow, s.co, s.kw);
  dx[at] = narrow<T>(has_bias ? sum + widen(bias[c]) : sum);
}
// dw; one block a tap of 32 channels, a warp every eighth output
template <class T> __device__ __forceinline__ void any_weight_grad_body(const T* x, const T* dy, T* dw, const Conv& s) {
  __shared__ wide<T> sums[8][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.y * 32 + lane, u = blockIdx.x / s.kw, v = blockIdx.x % s.kw;
  const Divisor wide_by(s.ow), high_by(s.oh);
  wide<T> sum = 0;
  if (c < s.co)
    for (int m = warp; m < s.n * s.oh * s.ow; m += 8) {
      int i, j;
      const int n = high_by.divide(wide_by.divide(m, j), i);
      const int row = i * s.sh + u * s.dh - s.ph, col = j * s.sw + v * s.dw - s.pw;
      if ((unsigned)row < (unsigned)s.h && (unsigned)col < (unsigned)s.w)
        sum += widen(dy[(size_t)m * s.co + c]) * widen(x[(((size_t)n * s.h + row) * s.w + col) * s.co + c]);
    }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp || c >= s.co) return;
  for (int i = 1; i < 8; i++) sum += sums[i][lane];
  dw[(size_t)c * s.kh * s.kw + blockIdx.x] = narrow<T>(sum);
}
#define DEPTHWISE_ANY(NAME, T)                                                                                              \
  KERNEL(256, depthwise_forward_##NAME, const T* x, const T* w, const T* bias, T* y, Conv s, int has_bias, int relu) {      \
    any_forward_body<T>(x, w, bias, y, s, has_bias, relu);                                                                  \
  }                                                                                                                         \
  KERNEL(256, depthwise_input_grad_##NAME, const T* dy, const T* w, const T* bias, T* dx, Conv s, int has_bias) {           \
    any_input_grad_body<T>(dy, w, bias, dx, s, has_bias);                                                                   \
  }                                                                                                                         \
  KERNEL(256, depthwise_weight_grad_##NAME, const T* x, const T* dy, T* dw, Conv s) { any_weight_grad_body<T>(x, dy, dw, s); }
FOR_FLOAT(DEPTHWISE_ANY)
