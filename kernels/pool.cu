// pool.cu - max, average and adaptive average pooling of images that lie in memory as N, H, W, C.
#include "images.cuh"

// Sizes of images (n, c, h, w), of the outputs and of the window. Made by ops::pool2d on the host.
struct Pool {
  int n, c, h, w, oh, ow;
  int kh, kw, sh, sw, ph, pw, dh, dw;
};

// The place of a thread of its own, the images being h by w.
template <int V> __device__ __forceinline__ Place place_of(const Pool& p, int h, int w) {
  return place_of<V>(blockIdx.x * blockDim.x + threadIdx.x, p.n, h, w, p.c);
}

// f(k, at) for each element of window (i, j) that lies in the image, in row-major order: its number
// in the window and where its V channels begin.
template <class F> __device__ __forceinline__ void taps(const Pool& p, const Place& o, F f) {
  for (int a = 0; a < p.kh; a++) {
    int y = o.i * p.sh + a * p.dh - p.ph;
    if (y < 0 || y >= p.h) continue;
    for (int b = 0; b < p.kw; b++) {
      int x = o.j * p.sw + b * p.dw - p.pw;
      if (x >= 0 && x < p.w) f(a * p.kw + b, pixel_at(o.n, y, x, o.c, p.h, p.w, p.c));
    }
  }
}
// The windows along one axis that may hold element `at`: from `first` on, below `end`.
struct Reach {
  int first, end;
};
__device__ __forceinline__ Reach reach(int at, int out, int k, int s, int pad, int d) {
  int back = at + pad - (k - 1) * d;
  return {back <= 0 ? 0 : (back + s - 1) / s, min(out, (at + pad) / s + 1)};
}
// f(k, oi, oj, at) for each window that holds input element (i, j), in row-major order: the
// element's number in the window, the window, and where its V channels begin.
template <class F> __device__ __forceinline__ void windows(const Pool& p, const Place& e, F f) {
  Reach ri = reach(e.i, p.oh, p.kh, p.sh, p.ph, p.dh), rj = reach(e.j, p.ow, p.kw, p.sw, p.pw, p.dw);
  for (int oi = ri.first; oi < ri.end; oi++) {
    int y = e.i + p.ph - oi * p.sh;
    if (p.dh > 1 && y % p.dh) continue;
#pragma unroll 1
    for (int oj = rj.first; oj < rj.end; oj++) {
      int x = e.j + p.pw - oj * p.sw;
      if (p.dw > 1 && x % p.dw) continue;
      f(y / p.dh * p.kw + x / p.dw, oi, oj, pixel_at(e.n, oi, oj, e.c, p.oh, p.ow, p.c));
    }
  }
}

template <class T, class I, int V> __device__ __forceinline__ void max_pool2d_body(const Pool& p, const T* x, T* y, I* arg) {
  Place o = place_of<V>(p, p.oh, p.ow);
  if (!o.valid) return;
  wide<T> best[V];
  int index[V] = {};
  bool first = true;
#pragma unroll
  for (int v = 0; v < V; v++) best[v] = -INFINITY;  // of a window that lies wholly in the padding
  taps(p, o, [&](int k, int at) {
    Lane<T, V> t = load<T, V>(x + at);
#pragma unroll
    for (int v = 0; v < V; v++) {
      wide<T> u = widen(t.v[v]);
      if (first || u > best[v] || u != u) best[v] = u, index[v] = k;
    }
    first = false;
  });
  Lane<T, V> out;
  Lane<I, V> out_index;
#pragma unroll
  for (int v = 0; v < V; v++) out.v[v] = narrow<T>(best[v]), out_index.v[v] = (I)index[v];
  int at = pixel_at(o.n, o.i, o.j, o.c, p.oh, p.ow, p.c);
  store<T, V>(y + at, out);
  store<I, V>(arg + at, out_index);
}
template <class T, class I, int V>
__device__ __forceinline__ void max_pool2d_backward_body(const Pool& p, const I* arg, const T* dy, T* dx) {
  Place e = place_of<V>(p, p.h, p.w);
  if (!e.valid) return;
  wide<T> sum[V] = {};
  windows(p, e, [&](int k, int, int, int at) {
    Lane<T, V> g = load<T, V>(dy + at);
    Lane<I, V> index = load<I, V>(arg + at);
#pragma unroll
    for (int v = 0; v < V; v++) sum[v] += index.v[v] == (I)k ? widen(g.v[v]) : 0;
  });
  Lane<T, V> out;
#pragma unroll
  for (int v = 0; v < V; v++) out.v[v] = narrow<T>(sum[v]);
  store<T, V>(dx + pixel_at(e.n, e.i, e.j, e.c, p.h, p.w, p.c), out);
}

// 1 / the elements of window (i, j), those in the padding counted or not. Dilation is 1.
template <class T> __device__ __forceinline__ T share(const Pool& p, int i, int j, int count_padding) {
  int y = i * p.sh - p.ph, x = j * p.sw - p.pw;
  int n = count_padding ? p.kh * p.kw
                        : (min(y + p.kh, p.h) - max(y, 0)) * (min(x + p.kw, p.w) - max(x, 0));
  return T(1) / T(n);
}
template <class T, int V> __device__ __forceinline__ void avg_pool2d_body(Pool p, const T* x, T* y, int count_padding) {
  p.dh = p.dw = 1;  // as the host has checked: less to compute
  Place o = place_of<V>(p, p.oh, p.ow);
  if (!o.valid) return;
  wide<T> sum[V] = {}, part = share<wide<T>>(p, o.i, o.j, count_padding);
  taps(p, o, [&](int, int at) {
    Lane<T, V> t = load<T, V>(x + at);
#pragma unroll
    for (int v = 0; v < V; v++) sum[v] += widen(t.v[v]);
  });
  Lane<T, V> out;
#pragma unroll
  for (int v = 0; v < V; v++) out.v[v] = narrow<T>(sum[v] * part);
  store<T, V>(y + pixel_at(o.n, o.i, o.j, o.c, p.oh, p.ow, p.c), out);
}
template <class T, int V>
__device__ __forceinline__ void avg_pool2d_backward_body(Pool p, const T* dy, T* dx, int count_padding) {
  p.dh = p.dw = 1;  // as the host has checked: less to compute
  Place e = place_of<V>(p, p.h, p.w);
  if (!e.valid) return;
  wide<T> sum[V] = {};
  windows(p, e, [&](int, int oi, int oj, int at) {
    wide<T> part = share<wide<T>>(p, oi, oj, count_padding);
    Lane<T, V> g = load<T, V>(dy + at);
#pragma unroll
    for (int v = 0; v < V; v++) sum[v] += widen(g.v[v]) * part;
  });
  Lane<T, V> out;
#pragma unroll
  for (int v = 0; v < V; v++) out.v[v] = narrow<T>(sum[v]);
  store<T, V>(dx + pixel_at(e.n, e.i, e.j, e.c, p.h, p.w, p.c), out);
}

// Adaptive windows: window i of `cells` along an axis of `size` elements. Turned round (element i of
// `size` among the cells), the same gives the windows that hold an element.
struct Cell {
  int first, end;
  __device__ __forceinline__ int size() const { return end - first; }
};
__device__ __forceinline__ Cell cell(unsigned i, unsigned size, unsigned cells) {
  return {(int)(i * size / cells), (int)(((i + 1) * size + cells - 1) / cells)};
}
// The windows of a block lie side by side, and `tall` threads below each other share each one.
template <class T, int V> __device__ __forceinline__ void adaptive_avg_pool2d_body(const Pool& p, const T* x, T* y, int tall) {
  __shared__ wide<T> found[V][256];
  const int across = blockDim.x / tall, r = threadIdx.x / across;
  Place o = place_of<V>(blockIdx.x * across + threadIdx.x % across, p.n, p.oh, p.ow, p.c);
  Cell rows = cell(o.i, p.h, p.oh), columns = cell(o.j, p.w, p.ow);
  const int area = rows.size() * columns.size();
  wide<T> sum[V] = {};
  if (o.valid) {
    // rows of whole images are one long row
    const bool joined = columns.size() == p.w;
    const int high = joined ? 1 : rows.size(), length = joined ? area : columns.size();
    for (int a = 0; a < high; a++) {
      const T* row = x + pixel_at(o.n, rows.first + a, columns.first, o.c, p.h, p.w, p.c);
#pragma unroll 4
      for (int b = r; b < length; b += tall) {
        Lane<T, V> t = load<T, V>(row + b * p.c);
#pragma unroll
        for (int v = 0; v < V; v++) sum[v] += widen(t.v[v]);
      }
    }
  }
  for (int half = tall / 2; half; half /= 2) {
#pragma unroll
    for (int v = 0; v < V; v++) found[v][threadIdx.x] = sum[v];
    __syncthreads();
    if (r < half)
#pragma unroll
      for (int v = 0; v < V; v++) sum[v] += found[v][threadIdx.x + half * across];
    __syncthreads();
  }
  if (r || !o.valid) return;
  Lane<T, V> out;
#pragma unroll
  for (int v = 0; v < V; v++) out.v[v] = narrow<T>(sum[v] / (wide<T>)area);
  store<T, V>(y + pixel_at(o.n, o.i, o.j, o.c, p.oh, p.ow, p.c), out);
}
template <class T, int V> __device__ __forceinline__ void adaptive_avg_pool2d_backward_body(const Pool& p, const T* dy, T* dx) {
  Place e = place_of<V>(p, p.h, p.w);
  if (!e.valid) return;
  Cell rows = cell(e.i, p.oh, p.h), columns = cell(e.j, p.ow, p.w);
  wide<T> sum[V] = {};
  for (int i = rows.first; i < rows.end; i++)
#pragma unroll 1
    for (int j = columns.first; j < columns.end; j++) {
      const wide<T> part = wide<T>(1) / wide<T>(cell(i, p.h, p.oh).size() * cell(j, p.w, p.ow).size());
      Lane<T, V> g = load<T, V>(dy + pixel_at(e.n, i, j, e.c, p.oh, p.ow, p.c));
#pragma unroll
      for (int v = 0; v < V; v++) sum[v] += widen(g.v[v]) * part;
    }
  Lane<T, V> out;
#pragma unroll
  for (int v = 0; v < V; v++) out.v[v] = narrow<T>(sum[v]);
  store<T, V>(dx + pixel_at(e.n, e.i, e.j, e.c, p.h, p.w, p.c), out);
}

// y = max over the window, arg = its number in the window; the first of equals, and NaN wins.
// One thread an output pixel and V channels. `long`: windows of more than 256 elements.
#define MAX_POOL(NAME, T, I)                                                                                    \
  KERNEL(256, max_pool2d_##NAME, Pool p, const T* x, T* y, I* arg, int grouped) {                               \
    grouped ? max_pool2d_body<T, I, GROUP<T>>(p, x, y, arg) : max_pool2d_body<T, I, 1>(p, x, y, arg);           \
  }
#define MAX_POOLS(NAME, T) MAX_POOL(NAME, T, u8) MAX_POOL(long_##NAME, T, i64)
FOR_FLOAT(MAX_POOLS)

// dx = sum of dy over the windows whose maximum it was. One thread an input pixel and V channels.
#define MAX_POOL_BACKWARD(NAME, T, I)                                                                           \
  KERNEL(256, max_pool2d_backward_##NAME, Pool p, const I* arg, const T* dy, T* dx, int grouped) {              \
    grouped ? max_pool2d_backward_body<T, I, GROUP<T>>(p, arg, dy, dx)                                          \
            : max_pool2d_backward_body<T, I, 1>(p, arg, dy, dx);                                                \
  }
#define MAX_POOL_BACKWARDS(NAME, T) MAX_POOL_BACKWARD(NAME, T, u8) MAX_POOL_BACKWARD(long_##NAME, T, i64)
FOR_FLOAT(MAX_POOL_BACKWARDS)

// y = sum over the window / its elements. One thread an output pixel and V channels.
#define AVG_POOL(NAME, T)                                                                                       \
  KERNEL(256, avg_pool2d_##NAME, Pool p, const T* x, T* y, int count_padding, int grouped) {                       \
    grouped ? avg_pool2d_body<T, GROUP<T>>(p, x, y, count_padding) : avg_pool2d_body<T, 1>(p, x, y, count_padding); \
  }
FOR_FLOAT(AVG_POOL)

// dx = sum of dy / its window's elements over the windows that hold it. One thread an input pixel and V channels.
#define AVG_POOL_BACKWARD(NAME, T)                                                                              \
  KERNEL(256, avg_pool2d_backward_##NAME, Pool p, const T* dy, T* dx, int count_padding, int grouped) {            \
    grouped ? avg_pool2d_backward_body<T, GROUP<T>>(p, dy, dx, count_padding)                                    \
         : avg_pool2d_backward_body<T, 1>(p, dy, dx, count_padding);                                            \
  }
FOR_FLOAT(AVG_POOL_BACKWARD)

// y = the mean of an adaptive window; of p the images' sizes count. `tall` threads an output pixel and V channels.
#define ADAPTIVE_AVG_POOL(NAME, T)                                                                              \
  KERNEL(256, adaptive_avg_pool2d_##NAME, Pool p, const T* x, T* y, int tall, int grouped) {                    \
    grouped ? adaptive_avg_pool2d_body<T, GROUP<T>>(p, x, y, tall) : adaptive_avg_pool2d_body<T, 1>(p, x, y, tall); \
  }
FOR_FLOAT(ADAPTIVE_AVG_POOL)

// dx = sum of dy / its window's elements over the windows that hold it. One thread an input pixel and V channels.
#define ADAPTIVE_AVG_POOL_BACKWARD(NAME, T)                                                                     \
  KERNEL(256, adaptive_avg_pool2d_backward_##NAME, Pool p, const T* dy, T* dx, int grouped) {                   \
    grouped ? adaptive_avg_pool2d_backward_body<T, GROUP<T>>(p, dy, dx)                                         \
            : adaptive_avg_pool2d_backward_body<T, 1>(p, dy, dx);                                               \
  }
FOR_FLOAT(ADAPTIVE_AVG_POOL_BACKWARD)
