// index.cu - what moves elements and computes nothing: parts of a whole, rows and elements by index, where.
#include "common.cuh"

// ---------------------------------------------------------------- a part and its place
// y[to(i)] = x[from(i)]
// One thread an element, or with `pack` 16 bytes of them: the walk's last axis then counts packs.
template <class T> __device__ __forceinline__ void paste_body(const Walk<2>& w, int pack, const T* x, T* y) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= w.n) return;
  i64 at[2];
  walk_to(w, i, at);
  if (pack) *(Pack<T>*)(y + at[1]) = *(const Pack<T>*)(x + at[0]);
  else y[at[1]] = x[at[0]];
}
#define PASTE(NAME, T) \
  KERNEL(256, paste_##NAME, Walk<2> w, int pack, const T* x, T* y) { paste_body<T>(w, pack, x, y); }
FOR_ALL(PASTE)

// ---------------------------------------------------------------- flip
// y[o, k, i] = x[o, size - 1 - k, i]
// One thread an element; x and y are (outer, size, inner) and have n elements.
template <class T> __device__ __forceinline__ void flip_body(const T* x, T* y, unsigned n, int size, int inner) {
  unsigned e = blockIdx.x * blockDim.x + threadIdx.x;
  if (e >= n) return;
  int k = e / inner % size;
  y[e] = x[e + (size - 1 - 2 * (i64)k) * inner];
}
#define FLIP(NAME, T) \
  KERNEL(256, flip_##NAME, const T* x, T* y, unsigned n, int size, int inner) { flip_body<T>(x, y, n, size, inner); }
FOR_ALL(FLIP)

// ---------------------------------------------------------------- index_select
// y[o, k, i] = x[o, index[k], i], 0 where the index is out of range
// One thread an element; x is (outer, size, inner) and y has n elements.
template <class T>
__device__ __forceinline__ void index_select_body(const T* x, const i64* index, T* y, unsigned n, int size, int count,
                                                  int inner, i64* fault, int op) {
  unsigned e = blockIdx.x * blockDim.x + threadIdx.x;
  if (e >= n) return;
  unsigned row = e / inner, o = row / count;
  i64 at = index[row - o * count];
  bool there = at >= 0 && at < size;
  if (!there) report_index(fault, op, at, size);
  y[e] = there ? x[((size_t)o * size + at) * inner + (e - row * inner)] : narrow<T>(wide<T>(0));
}
#define INDEX_SELECT(NAME, T)                                                                                     \
  KERNEL(256, index_select_##NAME, const T* x, const i64* index, T* y, unsigned n, int size, int count, int inner, \
         i64* fault, int op) {                                                                                    \
    index_select_body<T>(x, index, y, n, size, count, inner, fault, op);                                          \
  }
FOR_ALL(INDEX_SELECT)

// dx[o, r, i] = sum_k dy[o, k, i] where index[k] = r, in the order of k
// One block a row r and a slice of 1024 of the n = outer inner elements that each row has: 256
// indices at a time it lists those that name r, then each thread adds their elements up.
template <class T>
__device__ __forceinline__ void index_select_backward_body(const i64* index, const T* dy, T* dx, unsigned n, int size,
                                                           int count, int inner) {
  const int OWN = 4;
  __shared__ int hits[256], found[8];
  unsigned slices = (n + 256 * OWN - 1) / (256 * OWN), row = blockIdx.x / slices;
  unsigned first = (blockIdx.x - row * slices) * 256 * OWN + threadIdx.x;
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  wide<T> sum[OWN];
  unsigned from[OWN];
#pragma unroll
  for (int u = 0; u < OWN; u++) {
    unsigned j = first + 256 * u, o = j / inner;
    sum[u] = 0;
    from[u] = o * count * inner + (j - o * inner);
  }
  for (int base = 0; base < count; base += 256) {
    int k = base + threadIdx.x;
    bool hit = k < count && index[k] == row;
    unsigned votes = __ballot_sync(0xffffffffu, hit);
    if (lane == 0) found[warp] = __popc(votes);
    __syncthreads();
    int before = 0, all = 0;
#pragma unroll
    for (int w = 0; w < 8; w++) {
      before += w < warp ? found[w] : 0;
      all += found[w];
    }
    if (hit) hits[before + __popc(votes & ((1u << lane) - 1))] = k;
    __syncthreads();
    for (int h = 0; h < all; h++) {
      unsigned skip = hits[h] * inner;
#pragma unroll
      for (int u = 0; u < OWN; u++)
        if (first + 256 * u < n) sum[u] += widen<T>(dy[from[u] + skip]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int u = 0; u < OWN; u++) {
    unsigned j = first + 256 * u, o = j / inner;
    if (j < n) dx[((size_t)o * size + row) * inner + (j - o * inner)] = narrow<T>(sum[u]);
  }
}
#define INDEX_SELECT_BACKWARD(NAME, T)                                                                            \
  KERNEL(256, index_select_backward_##NAME, const i64* index, const T* dy, T* dx, unsigned n, int size, int count, \
         int inner) {                                                                                             \
    index_select_backward_body<T>(index, dy, dx, n, size, count, inner);                                          \
  }
FOR_FLOAT(INDEX_SELECT_BACKWARD)

// ---------------------------------------------------------------- gather
// x's and the index's axes, both row-major
struct Places {
  int rank, axis;
  int size, count;  // along the axis: of x, of the index
  unsigned n;       // elements of what is written
  int x[6], index[6];
};

// y[.., c, ..] = x[.., index[.., c, ..], ..] along the axis, 0 where the index is out of range
// One thread an element of the index.
template <class T>
__device__ __forceinline__ void gather_body(const Places& p, const T* x, const i64* index, T* y, i64* fault, int op) {
  unsigned e = blockIdx.x * blockDim.x + threadIdx.x;
  if (e >= p.n) return;
  i64 named = index[e], at = 0, stride = 1;
  bool there = named >= 0 && named < p.size;
  if (!there) report_index(fault, op, named, p.size);
  unsigned rest = e;
#pragma unroll
  for (int d = 5; d >= 0; d--) {
    if (d >= p.rank) continue;
    unsigned q = rest / (unsigned)p.index[d], c = rest - q * (unsigned)p.index[d];
    rest = q;
    at += (d == p.axis ? named : c) * stride;
    stride *= p.x[d];
  }
  y[e] = there ? x[at] : narrow<T>(wide<T>(0));
}
#define GATHER(NAME, T)                                                                                  \
  KERNEL(256, gather_##NAME, Places p, const T* x, const i64* index, T* y, i64* fault, int op) {         \
    gather_body<T>(p, x, index, y, fault, op);                                                           \
  }
FOR_ALL(GATHER)

// dx[.., r, ..] = sum_c dy[.., c, ..] where index[.., c, ..] = r, in the order of c
// One thread an element of dx.
template <class T>
__device__ __forceinline__ void gather_backward_body(const Places& p, const i64* index, const T* dy, T* dx) {
  unsigned e = blockIdx.x * blockDim.x + threadIdx.x;
  if (e >= p.n) return;
  unsigned rest = e;
  i64 at = 0, stride = 1, step = 0;
  int own = 0;
  bool there = true;  // whether the index reaches so far beside the axis
#pragma unroll
  for (int d = 5; d >= 0; d--) {
    if (d >= p.rank) continue;
    unsigned q = rest / (unsigned)p.x[d];
    int c = rest - q * (unsigned)p.x[d];
    rest = q;
    if (d == p.axis) {
      own = c;
      step = stride;
    } else {
      there = there && c < p.index[d];
      at += c * stride;
    }
    stride *= p.index[d];
  }
  wide<T> sum = 0;
  for (int c = 0; there && c < p.count; c++, at += step)
    if (index[at] == own) sum += widen<T>(dy[at]);
  dx[e] = narrow<T>(sum);
}
#define GATHER_BACKWARD(NAME, T) \
  KERNEL(256, gather_backward_##NAME, Places p, const i64* index, const T* dy, T* dx) { gather_backward_body<T>(p, index, dy, dx); }
FOR_FLOAT(GATHER_BACKWARD)

// ---------------------------------------------------------------- where
// y = mask ? a : b, broadcast
// A block owns 1024 elements, each thread 4 of them.
template <class T>
__device__ __forceinline__ void where_body(const T* a, const T* b, const u8* mask, T* y, const Walk<3>& w) {
  unsigned first = blockIdx.x * 1024u + threadIdx.x;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    unsigned i = first + j * 256;
    if (i >= w.n) return;
    i64 at[3];
    walk_to(w, i, at);
    y[i] = mask[at[2]] ? a[at[0]] : b[at[1]];
  }
}
#define WHERE(NAME, T) \
  KERNEL(256, where_##NAME, const T* a, const T* b, const u8* mask, T* y, Walk<3> w) { where_body<T>(a, b, mask, y, w); }
FOR_FLOAT(WHERE)
