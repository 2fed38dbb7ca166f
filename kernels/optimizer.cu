// optimizer.cu - update rules, L2 and norms over all tensors of a model in one launch.
#include "common.cuh"

// ---------------------------------------------------------------- many tensors at once
// Up to 80 rows of tensors that are worked on together (a parameter, its gradient and its states)
// as 4-byte words, below the 4 KiB that a launch's parameters may have. Each block owns a stretch of
// 2048 elements of one row.
const int ROWS = 80, STRETCH = 2048;
struct Rows {
  int count;
  unsigned at[ROWS][5][2];  // addresses, low word first
  unsigned n[ROWS];         // elements
  unsigned block[ROWS];     // the row's first block
};

// The stretch of this block: its row's number, and elements first .. end of it.
struct Stretch {
  int row;
  unsigned first, end;
};
__device__ __forceinline__ Stretch stretch_of(const Rows& r) {
  int low = 0, high = r.count;  // the last row whose first block is not behind this one
  while (high - low > 1) {
    int middle = (low + high) / 2;
    if (r.block[middle] <= blockIdx.x) low = middle;
    else high = middle;
  }
  unsigned first = (blockIdx.x - r.block[low]) * STRETCH;
  return {low, first, min(first + STRETCH, r.n[low])};
}
template <class T> __device__ __forceinline__ T* column(const Rows& r, int row, int k) {
  return (T*)((unsigned long long)r.at[row][k][1] << 32 | r.at[row][k][0]);
}

// ---------------------------------------------------------------- update rules
// What has all but vanished is 0, as on the CPU.
__device__ __forceinline__ float flush(float x) { return fabsf(x) < 1e-30f ? 0.f : x; }
__device__ __forceinline__ double flush(double x) { return fabs(x) < 1e-290 ? 0.0 : x; }

// The 8 numbers of a step, f64 bit patterns, are those of Rule::scalars on the host; each rule here
// is the loop's body of its Rule::update.

// d = g + decay p; v = momentum v + enters d; p -= lr (nesterov ? d + momentum v : v)
template <class T> struct Sgd {
  T lr, decay, momentum, enters;
  bool nesterov;
  __device__ Sgd(const double* c) : lr(c[0]), decay(c[1]), momentum(c[2]), enters(c[3]), nesterov(c[4] != 0) {}
  __device__ int states() const { return momentum != 0; }
  __device__ void operator()(T& p, T g, T (&s)[3]) const {
    T d = g + decay * p, direction = d;
    if (momentum != 0) {
      s[0] = momentum * s[0] + enters * d;
      direction = nesterov ? d + momentum * s[0] : s[0];
    }
    p = p - lr * direction;
  }
};

// d = g + decay p; s = alpha s + rest d^2; p -= lr d / (sqrt(s - mean^2) + eps), or a velocity of that
template <class T> struct RmsProp {
  T lr, alpha, rest, eps, decay, momentum;
  bool centered;
  __device__ RmsProp(const double* c)
      : lr(c[0]), alpha(c[1]), rest(c[2]), eps(c[3]), decay(c[4]), momentum(c[5]), centered(c[6] != 0) {}
  __device__ int states() const { return 1 + centered + (momentum != 0); }
  __device__ void operator()(T& p, T g, T (&s)[3]) const {
    T d = g + decay * p;
    s[0] = alpha * s[0] + rest * d * d;
    T variance = s[0];
    if (centered) {
      s[1] += rest * (d - s[1]);
      variance = s[0] - s[1] * s[1];
    }
    T direction = d / (sqrt(variance) + eps);
    if (momentum != 0) {
      T v = momentum * (centered ? s[2] : s[1]) + direction;
      (centered ? s[2] : s[1]) = direction = v;
    }
    p = p - lr * direction;
  }
};

// d = g + decay p; m += in1 (d - m); v = b2 v + in2 d^2; p = keep p - rate m / (root sqrt(v) + eps),
// where MAX (AMSGrad) the root is of the greatest v so far
template <class T, bool MAX> struct Adam {
  T keep, decay, in1, b2, in2, rate, root, eps;
  __device__ Adam(const double* c)
      : keep(c[0]), decay(c[1]), in1(c[2]), b2(c[3]), in2(c[4]), rate(c[5]), root(c[6]), eps(c[7]) {}
  __device__ int states() const { return 2 + MAX; }
  __device__ void operator()(T& p, T g, T (&s)[3]) const {
    T d = g + decay * p;
    s[0] += in1 * (d - s[0]);
    s[1] = b2 * s[1] + in2 * d * d;
    if (MAX) s[2] = nan_max(s[2], s[1]);
    p = keep * p - rate * s[0] / (sqrt(s[MAX ? 2 : 1]) * root + eps);
  }
};

// d = g + decay p; s += d^2; p -= rate d / (sqrt(s) + eps)
template <class T> struct Adagrad {
  T rate, decay, eps;
  __device__ Adagrad(const double* c) : rate(c[0]), decay(c[1]), eps(c[2]) {}
  __device__ int states() const { return 1; }
  __device__ void operator()(T& p, T g, T (&s)[3]) const {
    T d = g + decay * p;
    s[0] += d * d;
    p = p - rate * d / (sqrt(s[0]) + eps);
  }
};

// d = g + decay p; v = rho v + rest d^2; u = d sqrt(a + eps) / sqrt(v + eps); a = rho a + rest u^2; p -= lr u
template <class T> struct Adadelta {
  T lr, rho, rest, eps, decay;
  __device__ Adadelta(const double* c) : lr(c[0]), rho(c[1]), rest(c[2]), eps(c[3]), decay(c[4]) {}
  __device__ int states() const { return 2; }
  __device__ void operator()(T& p, T g, T (&s)[3]) const {
    T d = g + decay * p;
    s[0] = rho * s[0] + rest * d * d;
    T u = sqrt(s[1] + eps) / sqrt(s[0] + eps) * d;
    s[1] = rho * s[1] + rest * u * u;
    p = p - lr * u;
  }
};

// p = keep p - eta (g + decay p); ax = mu == 1 ? p : ax + mu (p - ax)
template <class T> struct Asgd {
  T keep, eta, decay, mu;
  __device__ Asgd(const double* c) : keep(c[0]), eta(c[1]), decay(c[2]), mu(c[3]) {}
  __device__ int states() const { return 1; }
  __device__ void operator()(T& p, T g, T (&s)[3]) const {
    T d = g + decay * p;
    p = keep * p - eta * d;
    s[0] = mu == 1 ? p : s[0] + mu * (p - s[0]);
  }
};

// p, states = rule(p, g, states), what vanishes rounded to 0
// One block a stretch of a row (p, g, states); 16 bytes a thread where all addresses allow it.
template <class R, class T> __device__ __forceinline__ void step_body(const Rows& r, const i64* scalars) {
  const R rule(reinterpret_cast<const double*>(scalars));
  const int states = rule.states(), N = Pack<T>::N;
  Stretch own = stretch_of(r);
  T *p = column<T>(r, own.row, 0), *s[3];
  const T* g = column<T>(r, own.row, 1);
  size_t unaligned = (size_t)p | (size_t)g;
#pragma unroll
  for (int k = 0; k < 3; k++) {
    s[k] = column<T>(r, own.row, 2 + k);
    if (k < states) unaligned |= (size_t)s[k];
  }
  unsigned packed = unaligned % 16 ? own.first : own.end - (own.end - own.first) % N;
  for (unsigned i = own.first + threadIdx.x * N; i < packed; i += blockDim.x * N) {
    Pack<T> P = *(Pack<T>*)(p + i), G = *(const Pack<T>*)(g + i), S[3];
#pragma unroll
    for (int k = 0; k < 3; k++)
      if (k < states) S[k] = *(Pack<T>*)(s[k] + i);
#pragma unroll
    for (int j = 0; j < N; j++) {
      T state[3] = {S[0].v[j], S[1].v[j], S[2].v[j]};
      rule(P.v[j], G.v[j], state);
      P.v[j] = flush(P.v[j]);
#pragma unroll
      for (int k = 0; k < 3; k++) S[k].v[j] = flush(state[k]);
    }
    *(Pack<T>*)(p + i) = P;
#pragma unroll
    for (int k = 0; k < 3; k++)
      if (k < states) *(Pack<T>*)(s[k] + i) = S[k];
  }
  for (unsigned i = packed + threadIdx.x; i < own.end; i += blockDim.x) {
    T state[3] = {0, 0, 0}, x = p[i];
#pragma unroll
    for (int k = 0; k < 3; k++)
      if (k < states) state[k] = s[k][i];
    rule(x, g[i], state);
    p[i] = flush(x);
#pragma unroll
    for (int k = 0; k < 3; k++)
      if (k < states) s[k][i] = flush(state[k]);
  }
}
#define STEP(NAME, T)                                                                                 \
  KERNEL(256, sgd_##NAME, Rows r, const i64* scalars) { step_body<Sgd<T>, T>(r, scalars); }           \
  KERNEL(256, rmsprop_##NAME, Rows r, const i64* scalars) { step_body<RmsProp<T>, T>(r, scalars); }   \
  KERNEL(256, adam_##NAME, Rows r, const i64* scalars) { step_body<Adam<T, false>, T>(r, scalars); }  \
  KERNEL(256, amsgrad_##NAME, Rows r, const i64* scalars) { step_body<Adam<T, true>, T>(r, scalars); }\
  KERNEL(256, adagrad_##NAME, Rows r, const i64* scalars) { step_body<Adagrad<T>, T>(r, scalars); }   \
  KERNEL(256, adadelta_##NAME, Rows r, const i64* scalars) { step_body<Adadelta<T>, T>(r, scalars); } \
  KERNEL(256, asgd_##NAME, Rows r, const i64* scalars) { step_body<Asgd<T>, T>(r, scalars); }
FOR_REAL(STEP)

// ---------------------------------------------------------------- y = y + w (x - y)
// One block a stretch of a row (y, x). w is a number of the step: 0 leaves y alone, 1 copies x to the bit.
template <class T> __device__ __forceinline__ void lerp_body(const Rows& r, const i64* scalars) {
  const T w = (T) reinterpret_cast<const double*>(scalars)[0];
  if (w == 0) return;
  Stretch own = stretch_of(r);
  T* y = column<T>(r, own.row, 0);
  const T* x = column<T>(r, own.row, 1);
  for (unsigned i = own.first + threadIdx.x; i < own.end; i += blockDim.x) {
    T from = y[i], to = x[i];
    y[i] = flush(w < T(0.5) ? from + w * (to - from) : to - (1 - w) * (to - from));
  }
}
#define LERP(NAME, T) \
  KERNEL(256, lerp_##NAME, Rows r, const i64* scalars) { lerp_body<T>(r, scalars); }
FOR_REAL(LERP)

// ---------------------------------------------------------------- clipping
// g *= min(most / (norm + 1e-6), 1); NaN spreads
// One block a stretch of a row (g).
template <class T> __device__ __forceinline__ void clip_norm_body(const Rows& r, const double* norm, double most) {
  const double factor = most / (norm[0] + 1e-6);
  if (factor >= 1) return;
  Stretch own = stretch_of(r);
  T* g = column<T>(r, own.row, 0);
  for (unsigned i = own.first + threadIdx.x; i < own.end; i += blockDim.x) g[i] *= (T)factor;
}
// g = max(min(g, most), -most); NaN stays
template <class T> __device__ __forceinline__ void clip_value_body(const Rows& r, double by) {
  const T most = (T)by;
  Stretch own = stretch_of(r);
  T* g = column<T>(r, own.row, 0);
  for (unsigned i = own.first + threadIdx.x; i < own.end; i += blockDim.x) {
    T x = g[i];
    g[i] = x > most ? most : x < -most ? -most : x;
  }
}
#define CLIP(NAME, T)                                                                                            \
  KERNEL(256, clip_norm_##NAME, Rows r, const double* norm, double most) { clip_norm_body<T>(r, norm, most); } \
  KERNEL(256, clip_value_##NAME, Rows r, double most) { clip_value_body<T>(r, most); }
FOR_REAL(CLIP)

// ---------------------------------------------------------------- g *= factor, a number of the step
// One block a stretch of a row (g).
template <class T> __device__ __forceinline__ void scale_body(const Rows& r, const double* factor) {
  const T by = (T)factor[0];
  Stretch own = stretch_of(r);
  T* g = column<T>(r, own.row, 0);
  for (unsigned i = own.first + threadIdx.x; i < own.end; i += blockDim.x) g[i] *= by;
}
#define SCALE(NAME, T) \
  KERNEL(256, scale_##NAME, Rows r, const double* factor) { scale_body<T>(r, factor); }
FOR_REAL(SCALE)

// ---------------------------------------------------------------- y += a x
// One block a stretch of a row (y, x).
template <class T> __device__ __forceinline__ void axpy_body(const Rows& r, double by) {
  const T a = (T)by;
  Stretch own = stretch_of(r);
  T* y = column<T>(r, own.row, 0);
  const T* x = column<T>(r, own.row, 1);
  for (unsigned i = own.first + threadIdx.x; i < own.end; i += blockDim.x) y[i] += a * x[i];
}
#define AXPY(NAME, T) \
  KERNEL(256, axpy_##NAME, Rows r, double by) { axpy_body<T>(r, by); }
FOR_REAL(AXPY)

// ---------------------------------------------------------------- the sum of all squares, in f64
// part[b] = sum x^2 over block b's stretch of a row (x)
template <class T> __device__ __forceinline__ void sum_squares_body(const Rows& r, double* part) {
  __shared__ double scratch[32];
  Stretch own = stretch_of(r);
  const T* x = column<T>(r, own.row, 0);
  double sum = 0;
  for (unsigned i = own.first + threadIdx.x; i < own.end; i += blockDim.x) sum += (double)x[i] * (double)x[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) part[blockIdx.x] = sum;
}
#define SUM_SQUARES(NAME, T) \
  KERNEL(256, sum_squares_##NAME, Rows r, double* part) { sum_squares_body<T>(r, part); }
FOR_REAL(SUM_SQUARES)

// y = factor sum(part), or the root of the sum times factor
// One block.
KERNEL(256, sum_parts_f64, const double* part, double* y, int n, double factor, int root) {
  __shared__ double scratch[32];
  double sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += part[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) y[0] = factor * (root ? sqrt(sum) : sum);
}
