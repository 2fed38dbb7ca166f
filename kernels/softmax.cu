// softmax.cu - softmax and its logarithm along the middle axis of [outer][n][inner].
#include "team.cuh"

// A row of more than one stretch is read a second time from its end: the last stretch is still held.
template <class T>
__device__ __forceinline__ void softmax_body(const T* x, T* y, int rows, int n, int inner, int lanes, int log_too) {
  __shared__ T scratch[32];
  Team t(lanes);
  unsigned count = t.row < (unsigned)rows ? n : 0, step = Held<T>::N * lanes, last = 0;
  size_t at = (size_t)(t.row / inner) * n * inner + t.row % inner;
  Held<T> h;
  Exponentials<T> e;
  for (unsigned from = 0; from < count; from += step) {
    h.load(x + at, count, inner, from, t, T(-INFINITY));
    e.add(h);
    last = from;
  }
  e.join(t, scratch);
  if (count == 0) return;
  T ln = log(e.sum), share = T(1) / e.sum;
  for (unsigned from = last;; from -= step) {
    if (from != last) h.load(x + at, count, inner, from, t, T(0));
#pragma unroll
    for (int j = 0; j < h.N; j++) {
      unsigned i = h.place(from, j, t);
      if (i < count) y[at + (size_t)i * inner] = log_too ? h.v[j] - e.max - ln : exp(h.v[j] - e.max) * share;
    }
    if (from == 0) break;
  }
}
// y_i = e^(x_i - max) / sum_j e^(x_j - max), or the logarithm of it.
// One team of `lanes` a row, whose elements lie `inner` apart.
#define SOFTMAX(NAME, T)                                                                                \
  KERNEL(1024, softmax_##NAME, const T* x, T* y, int rows, int n, int inner, int lanes, int log_too) { \
    softmax_body<T>(x, y, rows, n, inner, lanes, log_too);                                              \
  }
FOR_REAL(SOFTMAX)

template <class T>
__device__ __forceinline__ void softmax_backward_body(const T* y, const T* dy, T* dx, int rows, int n, int inner, int lanes, int log_too) {
  __shared__ T scratch[32];
  Team t(lanes);
  unsigned count = t.row < (unsigned)rows ? n : 0, step = Held<T>::N * lanes, last = 0;
  size_t at = (size_t)(t.row / inner) * n * inner + t.row % inner;
  Held<T> h, g;
  T sum = T(0);
  for (unsigned from = 0; from < count; from += step) {
    h.load(y + at, count, inner, from, t, T(0));
    g.load(dy + at, count, inner, from, t, T(0));
#pragma unroll
    for (int j = 0; j < h.N; j++) sum += log_too ? g.v[j] : h.v[j] * g.v[j];
    last = from;
  }
  sum = t.join<Sum>(sum, scratch);
  if (count == 0) return;
  for (unsigned from = last;; from -= step) {
    if (from != last) {
      h.load(y + at, count, inner, from, t, T(0));
      g.load(dy + at, count, inner, from, t, T(0));
    }
#pragma unroll
    for (int j = 0; j < h.N; j++) {
      unsigned i = h.place(from, j, t);
      if (i < count) dx[at + (size_t)i * inner] = log_too ? g.v[j] - exp(h.v[j]) * sum : h.v[j] * (g.v[j] - sum);
    }
    if (from == 0) break;
  }
}
// dx = y (dy - sum dy y); of the logarithm dx = dy - e^y sum dy.
// One team of `lanes` a row, whose elements lie `inner` apart.
#define SOFTMAX_BACKWARD(NAME, T)                                                                               \
  KERNEL(1024, softmax_backward_##NAME, const T* y, const T* dy, T* dx, int rows, int n, int inner, int lanes, \
         int log_too) {                                                                                         \
    softmax_backward_body<T>(y, dy, dx, rows, n, inner, lanes, log_too);                                        \
  }
FOR_REAL(SOFTMAX_BACKWARD)
