// conv.cu - convolution of channels-last images as implicit matrix products: forward and the gradients of input, weight and bias.
//
// Forward and input gradient are one product, (pixels x terms) (terms x channels), where a term is
// (tap row, tap column, channel) and the left factor is gathered from the image when it is needed.
// The weight gradient is (terms x pixels) (pixels x channels) with the same gathering; it is cut
// into slices of pixels, and their sums are added in order.
#include "conv.cuh"
#include "tile.cuh"

// ---------------------------------------------------------------- where things are
// out[pixel, j] = sum over taps and channels c < depth of in[place of (pixel, tap), c] w[tap, c, j],
// j < cols, in each group.
struct Pass {
  Axis y, x;
  int n, ih, iw, ic, oh, ow, oc, depth, cols, kw, taps;
};
__device__ __forceinline__ Pass forward_pass(const Conv& s) {
  return {forward_axis(s.oh, s.kh, s.sh, s.ph, s.dh), forward_axis(s.ow, s.kw, s.sw, s.pw, s.dw),
          s.n, s.h, s.w, s.ci, s.oh, s.ow, s.co, s.ci / s.groups, s.co / s.groups, s.kw, s.kh * s.kw};
}
// one of the stride's sh x sw phases
__device__ __forceinline__ Pass input_grad_pass(const Conv& s, int phase) {
  return {input_grad_axis(phase / s.sw, s.h, s.kh, s.sh, s.ph, s.dh), input_grad_axis(phase % s.sw, s.w, s.kw, s.sw, s.pw, s.dw),
          s.n, s.oh, s.ow, s.co, s.h, s.w, s.ci, s.co / s.groups, s.ci / s.groups, s.kw, s.kh * s.kw};
}

// what lies outside of images and weights, 16 bytes at once
__device__ const uint4 zeros[1] = {};

// What a pass reads, as the matrix (pixels x terms). Indices wrap around at 2^32 and end right.
template <class T> struct Image {
  struct Pixel {
    unsigned base;
    int y, x;
  };
  struct Term {
    unsigned offset;
    int y, x;
  };
  static const int FAR = -(1 << 30);  // a row outside of every image

  const T* p;  // of the group
  const Pass& s;
  int pixels, terms;
  Divisor wide, high, deep, taps;
  bool whole;  // 16 bytes at once, all of one tap

  __device__ __forceinline__ Image(const Pass& s, const T* image, int group, int end)
      : p(image + group * s.depth), s(s), pixels(end), terms(s.y.taps * s.x.taps * s.depth),
        wide(s.x.count), high(s.y.count), deep(s.depth), taps(s.x.taps) {
    whole = s.depth % Pack<T>::N == 0 && (size_t)p % 16 == 0;
  }
  __device__ __forceinline__ Pixel pixel(int m) const {
    if (m >= pixels) return {0, FAR, 0};
    int i, j;
    int n = high.divide(wide.divide(m, j), i);
    i = s.y.start + i * s.y.step, j = s.x.start + j * s.x.step;
    return {((unsigned)(n * s.ih + i) * s.iw + j) * s.ic, i, j};
  }
  __device__ __forceinline__ Term term(int k) const {
    if (k >= terms) return {0, FAR, 0};
    int j, c;
    int i = taps.divide(deep.divide(k, c), j);
    i *= s.y.hop, j *= s.x.hop;
    return {(unsigned)(i * s.iw + j) * s.ic + c, i, j};
  }
  __device__ __forceinline__ bool inside(const Pixel& m, const Term& t) const {
    return (unsigned)(m.y + t.y) < (unsigned)s.ih && (unsigned)(m.x + t.x) < (unsigned)s.iw;
  }
  __device__ __forceinline__ const T* at(const Pixel& m, const Term& t) const {
    if (!whole) return nullptr;
    return inside(m, t) ? p + (m.base + t.offset) : reinterpret_cast<const T*>(zeros);
  }
  __device__ __forceinline__ T get(const Pixel& m, const Term& t) const { return inside(m, t) ? p[m.base + t.offset] : narrow<T>(0); }
};

// ---------------------------------------------------------------- the factors, as tile.cuh loads them
// an image's pixels, along their terms
template <class T> struct Pixels {
  typedef typename Image<T>::Pixel Row;
  static const bool along_k = true;
  const Image<T>& image;
  __device__ __forceinline__ Row row(int r) const { return image.pixel(r); }
  __device__ __forceinline__ const T* at(const Row& m, int k) const { return image.at(m, image.term(k)); }
  __device__ __forceinline__ T get(const Row& m, int, int k) const { return image.get(m, image.term(k)); }
};
// an image's terms, a pixel at a time
template <class T> struct Terms {
  struct Row {
    int r;
    typename Image<T>::Term term;
  };
  static const bool along_k = false;
  const Image<T>& image;
  __device__ __forceinline__ Row row(int r) const { return {r, image.term(r)}; }
  __device__ __forceinline__ const T* at(const Row& t, int k) const { return image.at(image.pixel(k), t.term); }
  __device__ __forceinline__ T get(const Row& t, int e, int k) const { return image.get(image.pixel(k), image.term(t.r + e)); }
};
// weights as conv_pack lays them out, a term at a time; rows of a whole number of packs
__host__ __device__ constexpr int padded(int cols) { return (cols + 7) / 8 * 8; }
template <class T> struct Weights {
  typedef int Row;
  static const bool along_k = false;
  const T* p;  // of the group
  const Pass& s;
  const Image<T>& image;
  __device__ __forceinline__ int row(int r) const { return r; }
  __device__ __forceinline__ const T* at(int r, int k) const {
    const int line = padded(s.cols);
    if (r >= line || k >= image.terms) return reinterpret_cast<const T*>(zeros);
    if (s.y.tap_by == 1 && s.x.tap_by == 1) return p + (size_t)k * line + r;
    int j, c;
    int i = image.taps.divide(image.deep.divide(k, c), j);
    return p + (size_t)(((s.y.tap + i * s.y.tap_by) * s.kw + s.x.tap + j * s.x.tap_by) * s.depth + c) * line + r;
  }
  __device__ __forceinline__ T get(int r, int e, int k) const { return at(r, k)[e]; }
};

// Adds the bias, perhaps applies ReLU, rounds once and stores to the places of a pass.
template <class T> struct Placed {
  T* out;  // of the group, as bias
  const T* bias;
  int relu;
  const Pass& s;
  const Image<T>& image;
  template <int N> __device__ __forceinline__ void store(int r, int c, const wide<T>* v) const {
    if (r >= image.pixels || c >= s.cols) return;
    int i, j;
    int n = image.high.divide(image.wide.divide(r, j), i);
    size_t pixel = ((size_t)n * s.oh + s.y.at + i * s.y.by) * s.ow + s.x.at + j * s.x.by;
    Dense<T>{out + pixel * s.oc, bias, relu, 1, s.cols}.template store<N>(0, c, v);
  }
};

// ---------------------------------------------------------------- the products
// tile.cuh's two tiles under one signature
template <class T, int BM_, int BN_, int BK, int TM, int TN> struct Simt {
  static const int BM = BM_, BN = BN_;
  template <bool A_K, class A, class B, class S> static __device__ __forceinline__ void run(T* smem, const A& a, const B& b, int m0, int n0, int k0, int k1, const S& store) {
    simt_tile<T, BM, BN, BK, TM, TN>(smem, a, b, m0, n0, k0, k1, store);
  }
};
template <class T, int BM_, int BN_, int WM, int WN> struct Mma {
  static const int BM = BM_, BN = BN_;
  template <bool A_K, class A, class B, class S> static __device__ __forceinline__ void run(T* smem, const A& a, const B& b, int m0, int n0, int k0, int k1, const S& store) {
    mma_tile<T, BM, BN, WM, WN, A_K, false>(smem, a, b, m0, n0, k0, k1, store);
  }
};

// y = x * w + b, perhaps through ReLU, and dx = dy * w with exchanged channels and mirrored taps, which
// is a transposed convolution and then has a bias
// one block a tile of pixels x channels; tiles of channels first, then of pixels, groups, phases
template <class T, class Tile> __device__ __forceinline__ void pass_body(const T* in, const T* weights, const T* bias, int relu, T* out, const Pass& s, int group, int n_tile, int m_tile) {
  DYN_SMEM(T, smem);
  Image<T> image(s, in, group, s.n * s.y.count * s.x.count);
  if (m_tile * Tile::BM >= image.pixels) return;  // this phase has fewer than others
  Pixels<T> pixels{image};
  Weights<T> w{weights + (size_t)group * s.taps * s.depth * padded(s.cols), s, image};
  Placed<T> store{out + group * s.cols, bias ? bias + group * s.cols : nullptr, relu, s, image};
  Tile::template run<true>(smem, pixels, w, m_tile * Tile::BM, n_tile * Tile::BN, 0, image.terms, store);
}
template <class T, class Tile> __device__ __forceinline__ void forward_body(const T* x, const T* w, const T* bias, T* y, const Conv& s, int has_bias, int relu) {
  const int tn = cut(s.co / s.groups, Tile::BN), tm = cut(s.n * s.oh * s.ow, Tile::BM), b = blockIdx.x;
  pass_body<T, Tile>(x, w, has_bias ? bias : nullptr, relu, y, forward_pass(s), b / tn / tm, b % tn, b / tn % tm);
}
template <class T, class Tile> __device__ __forceinline__ void input_grad_body(const T* dy, const T* w, const T* bias, T* dx, const Conv& s, int has_bias) {
  const int tn = cut(s.ci / s.groups, Tile::BN), tm = cut(s.n * cut(s.h, s.sh) * cut(s.w, s.sw), Tile::BM), b = blockIdx.x, z = b / tn / tm;
  __shared__ __align__(16) Pass pass;  // out of the way of the tile's registers
  if (threadIdx.x == 0) pass = input_grad_pass(s, z / s.groups);
  __syncthreads();
  pass_body<T, Tile>(dy, w, has_bias ? bias : nullptr, 0, dx, pass, z % s.groups, b % tn, b / tn % tm);
}

// parts[slice, group, tap, c, o] = sum over the slice's pixels of x[place of (pixel, tap), c] dy[pixel, o]
// one block a tile of terms x channels of one slice; tiles of terms first, then of channels, groups, slices
template <class T, class Tile> __device__ __forceinline__ void weight_grad_body(const T* x, const T* dy, wide<T>* parts, const Conv& c, int slice) {
  DYN_SMEM(T, smem);
  const Pass s = forward_pass(c);
  const int terms = s.taps * s.depth, tm = cut(terms, Tile::BM), tn = cut(s.cols, Tile::BN), b = blockIdx.x, z = b / tm / tn;
  const int group = z % c.groups, k0 = z / c.groups * slice, k1 = min(s.n * s.oh * s.ow, k0 + slice);
  Image<T> image(s, x, group, k1);
  Terms<T> a{image};
  Matrix<T> columns(dy + group * s.cols, s.cols, k1, 1, s.oc, false);
  Dense<wide<T>> store{parts + (size_t)z * terms * s.cols, nullptr, 0, terms, s.cols};
  Tile::template run<false>(smem, a, columns, b % tm * Tile::BM, b / tm % tn * Tile::BN, k0, k1, store);
}

#define CONV(WHAT, NAME, T, THREADS, ...)                                                                                      \
  KERNEL(THREADS, conv_forward_##WHAT##_##NAME, const T* x, const T* w, const T* bias, T* y, Conv s, int has_bias, int relu) { \
    forward_body<T, __VA_ARGS__>(x, w, bias, y, s, has_bias, relu);                                                            \
  }                                                                                                                            \
  KERNEL(THREADS, conv_input_grad_##WHAT##_##NAME, const T* dy, const T* w, const T* bias, T* dx, Conv s, int has_bias) {      \
    input_grad_body<T, __VA_ARGS__>(dy, w, bias, dx, s, has_bias);                                                             \
  }                                                                                                                            \
  KERNEL(THREADS, conv_weight_grad_##WHAT##_##NAME, const T* x, const T* dy, wide<T>* parts, Conv s, int slice) {              \
    weight_grad_body<T, __VA_ARGS__>(x, dy, parts, s, slice);                                                                  \
  }
CONV(128x128, f32, float, 256, Simt<float, 128, 128, 8, 8, 8>)
CONV(128x64, f32, float, 256, Simt<float, 128, 64, 16, 8, 4>)
CONV(128x32, f32, float, 256, Simt<float, 128, 32, 32, 4, 4>)
CONV(64x64, f32, float, 256, Simt<float, 64, 64, 16, 4, 4>)
CONV(64x64, f64, double, 256, Simt<double, 64, 64, 8, 4, 4>)
#define CONV_MMA(NAME, T)                                     \
  CONV(128x128, NAME, T, 128, Mma<T, 128, 128, 64, 64>)       \
  CONV(128x64, NAME, T, 128, Mma<T, 128, 64, 64, 32>)         \
  CONV(64x64, NAME, T, 128, Mma<T, 64, 64, 32, 32>)
CONV_MMA(bf16, bf16)
CONV_MMA(f16, f16)

// ---------------------------------------------------------------- before and after them
// packed[group, tap, r, j] = w[o, c, tap], (r, j) = (c, o) or, for the input gradient, (o, c); zeros up to a whole pack
// one thread an element of packed
template <class T> __device__ __forceinline__ void pack_body(const T* w, T* packed, int total, int groups, int co, int ci, int taps, int swap) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= total) return;
  const int rows = swap ? co : ci, cols = swap ? ci : co, line = padded(cols);
  int j = i % line, r = i / line % rows, tap = i / line / rows % taps, g = i / line / rows / taps;
  int o = swap ? r : j, c = swap ? j : r;
  packed[i] = j < cols ? w[((size_t)(g * co + o) * ci + c) * taps + tap] : narrow<T>(0);
}
#define CONV_PACK(NAME, T)                                                                                                      \
  KERNEL(256, conv_pack_##NAME, const T* w, T* packed, int total, int groups, int co, int ci, int taps, int swap) {             \
    pack_body<T>(w, packed, total, groups, co, ci, taps, swap);                                                                 \
  }
FOR_FLOAT(CONV_PACK)

// dw[group, o, c, tap] = sum of parts[slice, group, tap, c, o], slice after slice
// one thread an element of a slice
template <class T> __device__ __forceinline__ void fold_body(const wide<T>* parts, T* dw, int total, int slices, int co, int ci, int taps) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= total) return;
  wide<T> sum = 0;
  for (int s = 0; s < slices; s++) sum += parts[(size_t)s * total + i];
  int o = i % co, c = i / co % ci, tap = i / co / ci % taps, g = i / co / ci / taps;
  dw[((size_t)(g * co + o) * ci + c) * taps + tap] = narrow<T>(sum);
}
#define CONV_FOLD(NAME, T)                                                                                                      \
  KERNEL(256, conv_fold_##NAME, const wide<T>* parts, T* dw, int total, int slices, int co, int ci, int taps) {                 \
    fold_body<T>(parts, dw, total, slices, co, ci, taps);                                                                       \
  }
FOR_FLOAT(CONV_FOLD)

// parts[slice, o] = sum over the slice's pixels of dy[pixel, o]
// one block 32 channels of one slice; a warp every eighth pixel
template <class T> __device__ __forceinline__ void bias_grad_body(const T* dy, wide<T>* parts, int pixels, int co, int slice) {
  __shared__ wide<T> sums[8][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, o = blockIdx.x * 32 + lane;
  const int end = min(pixels, ((int)blockIdx.y + 1) * slice);
  wide<T> sum = 0;
  if (o < co)
    for (int m = blockIdx.y * slice + warp; m < end; m += 8) sum += widen(dy[(size_t)m * co + o]);
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp || o >= co) return;
  for (int i = 1; i < 8; i++) sum += sums[i][lane];
  parts[blockIdx.y * co + o] = sum;
}
#define CONV_BIAS_GRAD(NAME, T)                                                                                                 \
  KERNEL(256, conv_bias_grad_##NAME, const T* dy, wide<T>* parts, int pixels, int co, int slice) {                              \
    bias_grad_body<T>(dy, parts, pixels, co, slice);                                                                            \
  }
FOR_FLOAT(CONV_BIAS_GRAD)
