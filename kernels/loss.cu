// loss.cu - losses of a classifier from logits (rows, n) and labels, their gradients, right answers.
#include "team.cuh"

// The label as read from the row's place, 0 where there is no row.
__device__ __forceinline__ i64 read_label(const i64* labels, int rows, const Team& t) { return t.row < (unsigned)rows ? labels[t.row] : 0; }
// What was read, as a class; -1 where there is no row or no such class, which one thread reports.
__device__ __forceinline__ int class_of(i64 label, int rows, int n, const Team& t, i64* fault, int op) {
  if (t.row >= (unsigned)rows) return -1;
  if (label >= 0 && label < n) return (int)label;
  if (t.lane == 0) report_index(fault, op, label, n);
  return -1;
}

template <class T>
__device__ __forceinline__ void cross_entropy_body(const T* x, const i64* labels, T* losses, T* moments, int rows, int n,
                                                   int lanes, double smoothing, i64* fault, int op) {
  __shared__ T scratch[32];
  Team t(lanes);
  unsigned count = t.row < (unsigned)rows ? n : 0, step = Held<T>::N * lanes, last = 0;
  const T* p = x + (size_t)t.row * n;
  i64 given = read_label(labels, rows, t);  // asked for before the row, looked at after it
  T level = T(0);
  Held<T> h;
  Exponentials<T> e;
  for (unsigned from = 0; from < count; from += step) {
    h.load(p, count, 1, from, t, T(-INFINITY));
    e.add(h);
    last = from;
  }
  int label = class_of(given, rows, n, t, fault, op);
  T own = label < 0 ? T(NAN) : p[label];
  e.join(t, scratch);
  if (smoothing != 0) {  // else a logit of minus infinity elsewhere costs nothing
    for (unsigned from = last; count; from -= step) {
      if (from != last) h.load(p, count, 1, from, t, T(0));
#pragma unroll
      for (int j = 0; j < h.N; j++)
        if (h.place(from, j, t) < count) level += h.v[j] - e.max;
      if (from == 0) break;
    }
    level = t.join<Sum>(level, scratch) * T(smoothing / n);
  }
  if (t.row < (unsigned)rows && t.lane == 0) {
    losses[t.row] = log(e.sum) - T(1 - smoothing) * (own - e.max) - level;
    moments[t.row] = e.max;
    moments[rows + t.row] = T(1) / e.sum;
  }
}
// loss = -sum_j q_j ln p_j, p = softmax(x), q = (1 - smoothing) [j = label] + smoothing / n; also
// each row's maximum and 1 / sum e^(x - maximum). One team of `lanes` a row.
#define CROSS_ENTROPY(NAME, T)                                                                                       \
  KERNEL(1024, cross_entropy_##NAME, const T* x, const i64* labels, T* losses, T* moments, int rows, int n,         \
         int lanes, double smoothing, i64* fault, int op) {                                                          \
    cross_entropy_body<T>(x, labels, losses, moments, rows, n, lanes, smoothing, fault, op);                         \
  }
FOR_REAL(CROSS_ENTROPY)

template <class T>
__device__ __forceinline__ void cross_entropy_backward_body(const T* x, const i64* labels, const T* moments, const T* dy, T* dx, int rows,
                                                            int n, int lanes, double smoothing, int each, double scale) {
  Team t(lanes);
  if (t.row >= (unsigned)rows) return;
  size_t at = (size_t)t.row * n;
  i64 given = labels[t.row];
  bool known = given >= 0 && given < n;
  unsigned label = (unsigned)given;
  T g = dy[each ? t.row : 0] * T(scale), max = moments[t.row], share = moments[rows + t.row];
  T hit = T(1 - smoothing), even = T(smoothing / n);
  Held<T> h;
  for (unsigned from = 0; from < (unsigned)n; from += h.N * lanes) {
    h.load(x + at, n, 1, from, t, T(0));
#pragma unroll
    for (int j = 0; j < h.N; j++) {
      unsigned i = h.place(from, j, t);
      T q = even + (i == label ? hit : T(0));
      if (i < (unsigned)n) dx[at + i] = known ? (exp(h.v[j] - max) * share - q) * g : T(0);
    }
  }
}
// dx = (p - q) scale dy, dy one number or one each row; 0 where the label was out of range.
// One team of `lanes` a row.
#define CROSS_ENTROPY_BACKWARD(NAME, T)                                                                              \
  KERNEL(1024, cross_entropy_backward_##NAME, const T* x, const i64* labels, const T* moments, const T* dy, T* dx,  \
         int rows, int n, int lanes, double smoothing, int each, double scale) {                                     \
    cross_entropy_backward_body<T>(x, labels, moments, dy, dx, rows, n, lanes, smoothing, each, scale);              \
  }
FOR_REAL(CROSS_ENTROPY_BACKWARD)

// What a row's target asks of class j: v_j = w_j ((1 - smoothing) q_j + smoothing / n), where q is
// given or [j = label].
template <class T> struct Shares {
  const T *q, *weight;  // of the row, of the classes; null where there is none
  unsigned label;       // n or more: none
  T hit, even;
  __device__ __forceinline__ T at(unsigned j) const {
    T v = hit * (q ? q[j] : T(j == label ? 1 : 0)) + even;
    return weight ? v * weight[j] : v;
  }
};

template <class T>
__device__ __forceinline__ void cross_entropy_shares_body(const T* x, const i64* labels, const T* q, const T* weight, T* losses,
                                                          T* moments, int rows, int n, int lanes, double smoothing, int ignoring,
                                                          i64 ignored, i64* fault, int op) {
  __shared__ T scratch[32];
  Team t(lanes);
  bool there = t.row < (unsigned)rows;
  unsigned count = there ? n : 0, step = Held<T>::N * lanes;
  const T* p = x + (size_t)t.row * n;
  i64 given = labels && there ? labels[t.row] : 0;
  bool skip = labels && ignoring && given == ignored;
  int label = labels && !skip ? class_of(given, rows, n, t, fault, op) : -1;
  Shares<T> shares = {q ? q + (size_t)t.row * n : q, weight, (unsigned)label, T(1 - smoothing), T(smoothing / n)};
  Held<T> h;
  Exponentials<T> e;
  for (unsigned from = 0; from < count; from += step) {
    h.load(p, count, 1, from, t, T(-INFINITY));
    e.add(h);
  }
  e.join(t, scratch);
  T all = T(0), level = T(0);
  for (unsigned from = 0; from < count; from += step) {
    if (count > step) h.load(p, count, 1, from, t, T(0));
#pragma unroll
    for (int j = 0; j < h.N; j++) {
      unsigned i = h.place(from, j, t);
      T v = i < count ? shares.at(i) : T(0);
      all += v;
      // a logit of minus infinity costs nothing where nothing is asked of it
      level += v == T(0) ? T(0) : v * (h.v[j] - e.max);
    }
  }
  all = t.join<Sum>(all, scratch);
  level = t.join<Sum>(level, scratch);
  if (!there || t.lane != 0) return;
  bool unknown = labels && !skip && label < 0;
  losses[t.row] = skip ? T(0) : unknown ? T(NAN) : all * log(e.sum) - level;
  moments[t.row] = e.max;
  moments[rows + t.row] = T(1) / e.sum;
  moments[2 * rows + t.row] = all;
  moments[3 * rows + t.row] = skip ? T(0) : weight && label >= 0 ? weight[label] : T(1);
}
// loss = -sum_j v_j ln p_j, p = softmax(x), of labels or of q, whichever is not null; 0 where the
// label is the ignored one. Also each row's maximum, 1 / sum e^(x - maximum), sum v, and part in a
// mean over labels. One team of `lanes` a row.
#define CROSS_ENTROPY_SHARES(NAME, T)                                                                                 \
  KERNEL(1024, cross_entropy_shares_##NAME, const T* x, const i64* labels, const T* q, const T* weight, T* losses,   \
         T* moments, int rows, int n, int lanes, double smoothing, int ignoring, i64 ignored, i64* fault, int op) {   \
    cross_entropy_shares_body<T>(x, labels, q, weight, losses, moments, rows, n, lanes, smoothing, ignoring,         \
                                 ignored, fault, op);                                                                \
  }
FOR_REAL(CROSS_ENTROPY_SHARES)

template <class T>
__device__ __forceinline__ void cross_entropy_shares_backward_body(const T* x, const i64* labels, const T* q, const T* weight,
                                                                   const T* moments, const T* dy, T* dx, int rows, int n, int lanes,
                                                                   double smoothing, int ignoring, i64 ignored, int each, double scale) {
  Team t(lanes);
  if (t.row >= (unsigned)rows) return;
  size_t at = (size_t)t.row * n;
  i64 given = labels ? labels[t.row] : 0;
  bool counts = !labels || (given >= 0 && given < n && !(ignoring && given == ignored));
  Shares<T> shares = {q ? q + at : q, weight, (unsigned)given, T(1 - smoothing), T(smoothing / n)};
  T g = dy[each ? t.row : 0] * T(scale), max = moments[t.row];
  T share = moments[rows + t.row] * moments[2 * rows + t.row];
  Held<T> h;
  for (unsigned from = 0; from < (unsigned)n; from += h.N * lanes) {
    h.load(x + at, n, 1, from, t, T(0));
#pragma unroll
    for (int j = 0; j < h.N; j++) {
      unsigned i = h.place(from, j, t);
      if (i < (unsigned)n) dx[at + i] = counts ? (exp(h.v[j] - max) * share - shares.at(i)) * g : T(0);
    }
  }
}
// dx = (p sum v - v) scale dy, dy one number or one each row; 0 where the label was ignored or out
// of range. One team of `lanes` a row.
#define CROSS_ENTROPY_SHARES_BACKWARD(NAME, T)                                                                        \
  KERNEL(1024, cross_entropy_shares_backward_##NAME, const T* x, const i64* labels, const T* q, const T* weight,     \
         const T* moments, const T* dy, T* dx, int rows, int n, int lanes, double smoothing, int ignoring,           \
         i64 ignored, int each, double scale) {                                                                      \
    cross_entropy_shares_backward_body<T>(x, labels, q, weight, moments, dy, dx, rows, n, lanes, smoothing,          \
                                          ignoring, ignored, each, scale);                                           \
  }
FOR_REAL(CROSS_ENTROPY_SHARES_BACKWARD)

template <class T>
__device__ __forceinline__ void svm_loss_body(const T* x, const i64* labels, T* losses, int rows, int n, int lanes, i64* fault, int op) {
  __shared__ T scratch[32];
  Team t(lanes);
  unsigned count = t.row < (unsigned)rows ? n : 0;
  const T* p = x + (size_t)t.row * n;
  int label = class_of(read_label(labels, rows, t), rows, n, t, fault, op);
  T own = label < 0 ? T(NAN) : p[label], sum = T(0);
  Held<T> h;
  for (unsigned from = 0; from < count; from += h.N * lanes) {
    h.load(p, count, 1, from, t, T(0));
#pragma unroll
    for (int j = 0; j < h.N; j++) {
      unsigned i = h.place(from, j, t);
      if (i < count && i != (unsigned)label) sum += nan_max(h.v[j] - own + T(1), T(0));
    }
  }
  sum = t.join<Sum>(sum, scratch);
  if (t.row < (unsigned)rows && t.lane == 0) losses[t.row] = label < 0 ? T(NAN) : sum;
}
// loss = sum over j != label of max(0, x_j - x_label + 1).
// One team of `lanes` a row.
#define SVM_LOSS(NAME, T)                                                                                             \
  KERNEL(1024, svm_loss_##NAME, const T* x, const i64* labels, T* losses, int rows, int n, int lanes, i64* fault,    \
         int op) {                                                                                                    \
    svm_loss_body<T>(x, labels, losses, rows, n, lanes, fault, op);                                                   \
  }
FOR_REAL(SVM_LOSS)

template <class T>
__device__ __forceinline__ void svm_loss_backward_body(const T* x, const i64* labels, const T* dy, T* dx, int rows, int n, int lanes, int each, double scale) {
  __shared__ T scratch[32];
  Team t(lanes);
  unsigned count = t.row < (unsigned)rows ? n : 0;
  size_t at = (size_t)t.row * n;
  i64 given = count ? labels[t.row] : -1;
  bool known = given >= 0 && given < n;
  unsigned label = (unsigned)given;
  T own = known ? x[at + label] : T(NAN), g = count ? dy[each ? t.row : 0] * T(scale) : T(0), over = T(0);
  Held<T> h;
  for (unsigned from = 0; from < count; from += h.N * lanes) {
    h.load(x + at, count, 1, from, t, T(0));
#pragma unroll
    for (int j = 0; j < h.N; j++) {
      unsigned i = h.place(from, j, t);
      if (i >= count || (known && i == label)) continue;
      bool is_over = h.v[j] - own + T(1) > T(0);
      over += is_over ? T(1) : T(0);
      dx[at + i] = is_over ? g : T(0);
    }
  }
  over = t.join<Sum>(over, scratch);
  if (known && t.lane == 0) dx[at + label] = -over * g;
}
// dx_j = scale dy where class j costs something, and minus their sum at the label; 0 where the
// label was out of range. dy is one number or one each row. One team of `lanes` a row.
#define SVM_LOSS_BACKWARD(NAME, T)                                                                                   \
  KERNEL(1024, svm_loss_backward_##NAME, const T* x, const i64* labels, const T* dy, T* dx, int rows, int n,        \
         int lanes, int each, double scale) {                                                                        \
    svm_loss_backward_body<T>(x, labels, dy, dx, rows, n, lanes, each, scale);                                       \
  }
FOR_REAL(SVM_LOSS_BACKWARD)

template <class T>
__device__ __forceinline__ void correct_body(const T* x, const i64* labels, i64* right, int rows, int n, int lanes, int k, i64* fault, int op) {
  __shared__ int scratch[32];
  Team t(lanes);
  unsigned count = t.row < (unsigned)rows ? n : 0;
  const T* p = x + (size_t)t.row * n;
  int label = class_of(read_label(labels, rows, t), rows, n, t, fault, op);
  T own = label < 0 ? T(NAN) : p[label];
  int beaten = 0;
  for (unsigned i = t.lane; i < count; i += lanes) beaten += !(i < (unsigned)label ? p[i] < own : p[i] <= own);
  beaten = t.join<Sum>(beaten, scratch);
  if (count && t.lane == 0 && beaten < k) atomicAdd(reinterpret_cast<unsigned long long*>(right), 1ull);
}
// right += how many rows have fewer than k elements before the label's: greater ones, equal ones
// that come first, and NaN. One team of `lanes` a row.
#define CORRECT(NAME, T)                                                                                              \
  KERNEL(1024, correct_##NAME, const T* x, const i64* labels, i64* right, int rows, int n, int lanes, int k,         \
         i64* fault, int op) {                                                                                        \
    correct_body<T>(x, labels, right, rows, n, lanes, k, fault, op);                                                  \
  }
FOR_REAL(CORRECT)


// y[r, j] = [j = labels[r]]; no class where the label is out of range, which is reported.
// One thread an element of the n of y.
template <class T>
__device__ __forceinline__ void one_hot_body(const i64* labels, T* y, unsigned n, int classes, i64* fault, int op) {
  unsigned e = blockIdx.x * blockDim.x + threadIdx.x;
  if (e >= n) return;
  unsigned row = e / classes, j = e - row * classes;
  i64 label = labels[row];
  if (j == 0 && (label < 0 || label >= classes)) report_index(fault, op, label, classes);
  y[e] = narrow<T>(wide<T>(j == label ? 1 : 0));
}
#define ONE_HOT(NAME, T)                                                                              \
  KERNEL(256, one_hot_##NAME, const i64* labels, T* y, unsigned n, int classes, i64* fault, int op) { \
    one_hot_body<T>(labels, y, n, classes, fault, op);                                                \
  }
FOR_ALL(ONE_HOT)
