// interpolate.cu - images of another size by nearest or bilinear interpolation, N, H, W, C in memory.
//
// The gradients gather: along an axis the outputs that read an input are neighbours, because the
// places that outputs read rise with them. So no two threads add to one element.
#include "images.cuh"

// Sizes of the images and of the outputs, and whether corners lie on corners. Made by ops::interpolate on the host.
struct Sizes {
  int n, c, h, w, oh, ow, aligned;
};

// One axis, `step` inputs from output to output: output i is weight(i, at) times each input `at`, of
// which from(i) is the first of TAPS.
// The nearest is found in f32 whatever the elements are, as on PyTorch's GPU.
template <class W> struct Nearest {
  static const int TAPS = 1;
  int in, out;
  float step;
  __device__ __forceinline__ Nearest(int in, int out, double step, int) : in(in), out(out), step((float)step) {}
  __device__ __forceinline__ int from(int i) const { return min((int)((float)i * step), in - 1); }
  __device__ __forceinline__ W weight(int i, int at) const { return from(i) == at ? W(1) : W(0); }
  __device__ __forceinline__ float guess(int at) const { return (float)at / step; }
};
template <class W> struct Bilinear {
  static const int TAPS = 2;
  int in, out;
  W step, half;
  __device__ __forceinline__ Bilinear(int in, int out, double step, int aligned) : in(in), out(out), step((W)step), half(aligned ? W(0) : W(0.5)) {}
  __device__ __forceinline__ W place(int i) const { return max(((W)i + half) * step - half, W(0)); }
  __device__ __forceinline__ int from(int i) const { return min((int)place(i), in - 1); }
  // the two taps of the last input are one
  __device__ __forceinline__ W weight(int i, int at) const {
    int first = from(i);
    W beyond = min(place(i) - (W)first, W(1));
    return (at == first ? W(1) - beyond : W(0)) + (at == min(first + 1, in - 1) ? beyond : W(0));
  }
  __device__ __forceinline__ W guess(int at) const { return ((W)at + half) / step - half; }
};
// the first output that reads from `at` on
template <class Line> __device__ __forceinline__ int first_reader(const Line& line, int at) {
  if (at <= 0) return 0;
  int i = line.step > 0 ? (int)min(max(line.guess(at), decltype(line.step)(0)), decltype(line.step)(line.out)) : line.out;
  while (i > 0 && line.from(i - 1) >= at) i--;
  while (i < line.out && line.from(i) < at) i++;
  return i;
}

template <class T, template <class> class Line, int V>
__device__ __forceinline__ void forward_body(const Sizes& s, const T* x, T* y, double up, double across) {
  typedef wide<T> W;
  Place o = place_of<V>(blockIdx.x * blockDim.x + threadIdx.x, s.n, s.oh, s.ow, s.c);
  if (!o.valid) return;
  const Line<W> rows(s.h, s.oh, up, s.aligned), columns(s.w, s.ow, across, s.aligned);
  const int top = rows.from(o.i), left = columns.from(o.j);
  W sum[V] = {};
#pragma unroll
  for (int a = 0; a < Line<W>::TAPS; a++)
#pragma unroll
    for (int b = 0; b < Line<W>::TAPS; b++) {
      if (top + a >= s.h || left + b >= s.w) continue;
      const W weight = rows.weight(o.i, top + a) * columns.weight(o.j, left + b);
      Lane<T, V> t = load<T, V>(x + pixel_at(o.n, top + a, left + b, o.c, s.h, s.w, s.c));
#pragma unroll
      for (int v = 0; v < V; v++) sum[v] += widen(t.v[v]) * weight;
    }
  Lane<T, V> out;
#pragma unroll
  for (int v = 0; v < V; v++) out.v[v] = narrow<T>(sum[v]);
  store<T, V>(y + pixel_at(o.n, o.i, o.j, o.c, s.oh, s.ow, s.c), out);
}
template <class T, template <class> class Line, int V>
__device__ __forceinline__ void backward_body(const Sizes& s, const T* dy, T* dx, double up, double across) {
  typedef wide<T> W;
  Place e = place_of<V>(blockIdx.x * blockDim.x + threadIdx.x, s.n, s.h, s.w, s.c);
  if (!e.valid) return;
  const Line<W> rows(s.h, s.oh, up, s.aligned), columns(s.w, s.ow, across, s.aligned);
  const int back = Line<W>::TAPS - 1, bottom = first_reader(rows, e.i + 1);
  const int left = first_reader(columns, e.j - back), right = first_reader(columns, e.j + 1);
  W sum[V] = {};
  for (int i = first_reader(rows, e.i - back); i < bottom; i++) {
    const W down = rows.weight(i, e.i);
#pragma unroll 1
    for (int j = left; j < right; j++) {
      const W weight = down * columns.weight(j, e.j);
      Lane<T, V> g = load<T, V>(dy + pixel_at(e.n, i, j, e.c, s.oh, s.ow, s.c));
#pragma unroll
      for (int v = 0; v < V; v++) sum[v] += widen(g.v[v]) * weight;
    }
  }
  Lane<T, V> out;
#pragma unroll
  for (int v = 0; v < V; v++) out.v[v] = narrow<T>(sum[v]);
  store<T, V>(dx + pixel_at(e.n, e.i, e.j, e.c, s.h, s.w, s.c), out);
}

// y = the weighted inputs; dx = the weighted dy of the outputs that read it; `up` and `across` are the
// inputs from output to output along rows and columns.
// One thread a pixel of what is written and V channels.
#define INTERPOLATE(WHAT, LINE, NAME, T)                                                                                       \
  KERNEL(256, interpolate_##WHAT##_##NAME, Sizes s, const T* x, T* y, double up, double across, int grouped) {                 \
    grouped ? forward_body<T, LINE, GROUP<T>>(s, x, y, up, across) : forward_body<T, LINE, 1>(s, x, y, up, across);            \
  }                                                                                                                            \
  KERNEL(256, interpolate_##WHAT##_backward_##NAME, Sizes s, const T* dy, T* dx, double up, double across, int grouped) {      \
    grouped ? backward_body<T, LINE, GROUP<T>>(s, dy, dx, up, across) : backward_body<T, LINE, 1>(s, dy, dx, up, across);      \
  }
#define INTERPOLATES(NAME, T) INTERPOLATE(nearest, Nearest, NAME, T) INTERPOLATE(bilinear, Bilinear, NAME, T)
FOR_FLOAT(INTERPOLATES)
