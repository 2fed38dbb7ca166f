// augment.cu - a batch of bytes as the images that a model takes: transformed, flipped, cropped,
// normalized, mixed.
//
// Bit for bit what src/data/augment makes on the CPU: the host has drawn every number, and each sum,
// product and quotient here is rounded by itself, in the CPU's order.
#include "philox.cuh"

// A float that never becomes part of a fused multiply-add.
struct Exact {
  float v;
  __device__ __forceinline__ Exact(float v) : v(v) {}
};
__device__ __forceinline__ Exact operator+(Exact a, Exact b) { return __fadd_rn(a.v, b.v); }
__device__ __forceinline__ Exact operator-(Exact a, Exact b) { return __fsub_rn(a.v, b.v); }
__device__ __forceinline__ Exact operator*(Exact a, Exact b) { return __fmul_rn(a.v, b.v); }
__device__ __forceinline__ Exact operator/(Exact a, Exact b) { return __fdiv_rn(a.v, b.v); }

// ---------------------------------------------------------------- the last step of every image
// the pixel of 0..n that place i, less than n before or behind it, mirrors
__device__ __forceinline__ int reflected(int i, int n) { return n - 1 - abs(n - 1 - abs(i)); }
// y's number `in`, in memory order, of an image x (C, H, W) that is flipped, moved and normalized by
// `change` (label; 1 for a flip and 2 for reflection beside the image; dy, dx) and `affine` (means
// (C, H, W), then scales (C)); 0 beside an image that is not reflected
template <class X>
__device__ __forceinline__ float finished(const X& x, const i64* change, const float* affine, unsigned in, int channels,
                                          int h, int w, int last) {
  unsigned plane = h * w, pixels = channels * plane;
  unsigned c = last ? in % channels : in / plane, at = last ? in / channels : in % plane;
  int row = at / w + (int)change[2], column = at % w + (int)change[3];
  if (change[1] & 2) row = reflected(row, h), column = reflected(column, w);
  if (row < 0 || row >= h || column < 0 || column >= w) return 0;
  if (change[1] & 1) column = w - 1 - column;
  unsigned source = c * plane + row * w + column;
  return (x(source) - affine[source]) * affine[pixels + c];
}
struct Bytes {
  const u8* x;
  __device__ __forceinline__ float operator()(unsigned i) const { return __fmul_rn((float)x[i], 1.f / 255.f); }
};
struct Floats {
  const float* x;
  __device__ __forceinline__ float operator()(unsigned i) const { return x[i]; }
};

// y[b] = image b without transforms; labels[b] = its label
// One thread a pixel of y, in y's memory order. `raw` begins with four numbers an image (label, flip,
// dy, dx); the images' bytes (N, C, H, W) follow.
KERNEL(256, augment_f32, const i64* raw, const float* affine, float* y, i64* labels, int n, int channels, int h, int w,
       int last) {
  unsigned e = blockIdx.x * blockDim.x + threadIdx.x, pixels = channels * h * w;
  if (e < (unsigned)n) labels[e] = raw[4 * e];
  if (e >= n * pixels) return;
  unsigned b = e / pixels;
  Bytes image{reinterpret_cast<const u8*>(raw + 4 * (size_t)n) + (size_t)b * pixels};
  y[e] = finished(image, raw + 4 * (size_t)b, affine, e - b * pixels, channels, h, w, last);
}

// ---------------------------------------------------------------- transforms
// An image under way, and where the next one goes. Numbers of an operation: `p`.
struct Image {
  const float* now;
  float* next;
  int c, h, w;
};
__device__ __forceinline__ float real(const int* p) { return __int_as_float(*p); }
__device__ __forceinline__ float cut(Exact x) { return x.v < 0 ? 0.f : x.v > 1 ? 1.f : x.v; }
__device__ __forceinline__ Exact grey(Exact r, Exact g, Exact b) {
  return Exact(0.2989f) * r + Exact(0.587f) * g + Exact(0.114f) * b;
}
__device__ __forceinline__ float grey_at(const Image& x, int i) {
  int plane = x.h * x.w;
  return x.c == 1 ? x.now[i] : grey(x.now[i], x.now[plane + i], x.now[2 * plane + i]).v;
}

// ops::Op::Move: `p` is the rows' (n, step, start), the columns', a colour
__device__ void move(const Image& x, const int* p) {
  int h = p[0], w = p[3], plane = h * w;
  for (int e = threadIdx.x; e < x.c * plane; e += blockDim.x) {
    int c = e / plane, at = e % plane;
    int row = p[2] + p[1] * (at / w), column = p[5] + p[4] * (at % w);
    bool inside = row >= 0 && row < x.h && column >= 0 && column < x.w;
    x.next[e] = inside ? x.now[(c * x.h + row) * x.w + column] : real(p + 6 + c);
  }
}

// Warp: bilinear, a matrix of 2 x 3, a colour
__device__ void warp(const Image& x, const int* p) {
  int plane = x.h * x.w;
  Exact middle_y = Exact(0.5f) * Exact((float)(x.h - 1)), middle_x = Exact(0.5f) * Exact((float)(x.w - 1));
  for (int e = threadIdx.x; e < x.c * plane; e += blockDim.x) {
    int c = e / plane, at = e % plane;
    const float* from = x.now + c * plane;
    float fill = real(p + 7 + c);
    Exact u = Exact((float)(at % x.w)) - middle_x, v = Exact((float)(at / x.w)) - middle_y;
    Exact sx = Exact(real(p + 1)) * u + Exact(real(p + 2)) * v + Exact(real(p + 3)) + middle_x;
    Exact sy = Exact(real(p + 4)) * u + Exact(real(p + 5)) * v + Exact(real(p + 6)) + middle_y;
    auto pixel = [&](int row, int column) -> Exact {
      return row >= 0 && row < x.h && column >= 0 && column < x.w ? from[row * x.w + column] : fill;
    };
    float y = fill;
    if (sx.v > -1 && sx.v < (float)x.w && sy.v > -1 && sy.v < (float)x.h) {
      if (p[0]) {
        Exact left = floorf(sx.v), top = floorf(sy.v);
        Exact fx = sx - left, fy = sy - top;
        Exact gx = Exact(1.f) - fx, gy = Exact(1.f) - fy;
        int column = (int)left.v, row = (int)top.v;
        y = (pixel(row, column) * (gx * gy) + pixel(row, column + 1) * (fx * gy) + pixel(row + 1, column) * (gx * fy) +
             pixel(row + 1, column + 1) * (fx * fy)).v;
      } else {
        y = pixel((int)rintf(sy.v), (int)rintf(sx.v)).v;
      }
    }
    x.next[e] = y;
  }
}

// The pixels that row (or column) i of a Span comes from, and their weights.
struct Taps {
  int first, start, end;  // the span's first pixel; places beyond it
  float center, inverse, sum;
  // `p`: n, first, from, scale, radius
  __device__ __forceinline__ Taps(const int* p, int i, bool bilinear) : first(p[1]), center(0), inverse(0), sum(1) {
    Exact scale = real(p + 3), radius = real(p + 4);
    if (!bilinear) {
      start = min((int)floorf((Exact((float)i) * scale).v), p[2] - 1);
      end = start + 1;
      return;
    }
    Exact middle = scale * (Exact((float)i) + Exact(0.5f));
    center = middle.v;
    inverse = (Exact(1.f) / radius).v;
    start = max((int)(middle - radius + Exact(0.5f)).v, 0);
    end = min((int)(middle + radius + Exact(0.5f)).v, p[2]);
    Exact all = 0.f;
    for (int j = start; j < end; j++) all = all + near(j);
    sum = all.v;
  }
  __device__ __forceinline__ Exact near(int j) const {
    float far = fabsf(((Exact((float)j) - Exact(center) + Exact(0.5f)) * Exact(inverse)).v);
    return far < 1 ? Exact(1.f) - Exact(far) : Exact(0.f);
  }
  __device__ __forceinline__ Exact weight(int j, bool bilinear) const {
    return bilinear ? near(j) / Exact(sum) : Exact(1.f);
  }
};

// Resize: bilinear, a span of rows, a span of columns
__device__ void resize(const Image& x, const int* p) {
  int h = p[1], w = p[6], plane = h * w;
  bool bilinear = p[0];
  for (int e = threadIdx.x; e < x.c * plane; e += blockDim.x) {
    int c = e / plane, at = e % plane;
    Taps down(p + 1, at / w, bilinear), along(p + 6, at % w, bilinear);
    Exact y = 0.f;
    for (int j = down.start; j < down.end; j++) {
      const float* from = x.now + (c * x.h + down.first + j) * x.w + along.first;
      Exact row = 0.f;
      for (int i = along.start; i < along.end; i++) row = row + along.weight(i, bilinear) * Exact(from[i]);
      y = y + down.weight(j, bilinear) * row;
    }
    x.next[e] = y.v;
  }
}

// Blur: down (or along), taps
__device__ void blur(const Image& x, const int* p, int taps) {
  int plane = x.h * x.w, size = p[0] ? x.h : x.w, step = p[0] ? x.w : 1;
  for (int e = threadIdx.x; e < x.c * plane; e += blockDim.x) {
    int at = p[0] ? e % plane / x.w : e % x.w;
    const float* from = x.now + e - at * step;
    Exact y = 0.f;
    for (int k = 0; k < taps; k++) {
      int place = abs(at + k - taps / 2);
      if (place >= size) place = 2 * (size - 1) - place;
      y = y + Exact(real(p + 1 + k)) * Exact(from[place * step]);
    }
    x.next[e] = y.v;
  }
}

// The mean of an image's grey: a sum for each thread, then these in pairs. All threads must call it.
__device__ float mean_grey(const Image& x, float* parts) {
  Exact part = 0.f;
  for (int i = threadIdx.x; i < x.h * x.w; i += 256) part = part + Exact(grey_at(x, i));
  parts[threadIdx.x] = part.v;
  for (int half = 128; half; half /= 2) {
    __syncthreads();
    if ((int)threadIdx.x < half) parts[threadIdx.x] = (Exact(parts[threadIdx.x]) + Exact(parts[threadIdx.x + half])).v;
  }
  __syncthreads();
  return (Exact(parts[0]) / Exact((float)(x.h * x.w))).v;
}

// Blend: with black, the mean or the grey; a factor. In place, as all that follow.
__device__ void blend(const Image& x, float* image, const int* p, float* parts) {
  Exact factor = real(p + 1), rest = Exact(1.f) - factor;
  Exact other = rest * Exact(p[0] == 1 ? mean_grey(x, parts) : 0.f);
  for (int i = threadIdx.x; i < x.h * x.w; i += blockDim.x) {
    if (p[0] == 2) other = rest * Exact(grey_at(x, i));
    for (int c = 0; c < x.c; c++) {
      float* pixel = image + c * x.h * x.w + i;
      *pixel = cut(factor * Exact(*pixel) + other);
    }
  }
}

// Hue: how far the colour wheel turns
__device__ void hue(const Image& x, float* image, const int* p) {
  int plane = x.h * x.w;
  Exact one = 1.f;
  for (int i = threadIdx.x; i < plane; i += blockDim.x) {
    float r = image[i], g = image[plane + i], b = image[2 * plane + i];
    float top = r > g ? r : g, low = r < g ? r : g;
    top = top > b ? top : b, low = low < b ? low : b;
    Exact max = top, range = max - Exact(low), divisor = range;
    Exact s = 0.f;
    if (range.v == 0) divisor = 1.f;
    else s = range / max;
    Exact rc = (max - Exact(r)) / divisor, gc = (max - Exact(g)) / divisor, bc = (max - Exact(b)) / divisor;
    Exact sixth = top == r ? bc - gc : top == g ? Exact(2.f) + rc - bc : Exact(4.f) + gc - rc;
    Exact whole = sixth / Exact(6.f) + one;
    Exact turned = (whole - Exact(floorf(whole.v))) + Exact(real(p));
    Exact six = (turned - Exact(floorf(turned.v))) * Exact(6.f);
    Exact f = six - Exact(floorf(six.v));
    float t0 = cut(max * (one - s)), t1 = cut(max * (one - s * f)), t2 = cut(max * (one - s * (one - f)));
    switch ((int)six.v) {
      case 1: r = t1, g = top, b = t0; break;
      case 2: r = t0, g = top, b = t2; break;
      case 3: r = t0, g = t1, b = top; break;
      case 4: r = t2, g = t0, b = top; break;
      case 5: r = top, g = t0, b = t1; break;
      default: r = top, g = t2, b = t0;
    }
    image[i] = r, image[plane + i] = g, image[2 * plane + i] = b;
  }
}

// Grey: channels
__device__ void to_grey(const Image& x, const int* p) {
  int plane = x.h * x.w;
  for (int i = threadIdx.x; i < plane; i += blockDim.x) {
    float value = grey_at(x, i);
    for (int c = 0; c < p[0]; c++) x.next[c * plane + i] = value;
  }
}

// Erase and Noise: top, left, height, width; then a colour, or a seed's two words
__device__ void overwrite(const Image& x, float* image, const int* p, bool noise) {
  int area = p[2] * p[3];
  for (int e = threadIdx.x; e < x.c * area; e += blockDim.x) {
    int c = e / area, at = e % area;
    int i = (c * x.h + p[0] + at / p[3]) * x.w + p[1] + at % p[3];
    if (noise) {
      unsigned long long seed = (unsigned)p[4] | (unsigned long long)(unsigned)p[5] << 32;
      image[i] = (float)(philox(seed, i).x >> 8) * (1.f / (1 << 24));
    } else {
      image[i] = real(p + 4 + c);
    }
  }
}

// Normalize: means, deviations
__device__ void normalize(const Image& x, float* image, const int* p) {
  for (int e = threadIdx.x; e < x.c * x.h * x.w; e += blockDim.x) {
    int c = e / (x.h * x.w);
    image[e] = ((Exact(image[e]) - Exact(real(p + c))) / Exact(real(p + x.c + c))).v;
  }
}

// y[b] = image b after its program; labels[b] = its label
// A block of 256 threads an image at a time, every gridDim.x-th one. `raw` is as above. `programs`
// begins with N places; the program of an image begins at its place in 32-bit words: how many
// operations, then each as ops::Op::encode has it. `scratch` is 2 x `most` numbers a block. y is
// (N, out_c, out_h, out_w).
KERNEL(256, augment_programs_f32, const i64* raw, const i64* programs, const float* affine, float* scratch, float* y,
       i64* labels, int n, int channels, int h, int w, int most, int out_c, int out_h, int out_w, int last) {
  __shared__ float parts[256];
  float* now = scratch + 2 * (size_t)blockIdx.x * most;
  float* next = now + most;
  for (size_t b = blockIdx.x; b < (size_t)n; b += gridDim.x) {
    if (threadIdx.x == 0) labels[b] = raw[4 * b];
    Bytes bytes{reinterpret_cast<const u8*>(raw + 4 * (size_t)n) + b * (channels * h * w)};
    for (int i = threadIdx.x; i < channels * h * w; i += blockDim.x) now[i] = bytes(i);
    __syncthreads();
    const int* program = reinterpret_cast<const int*>(programs) + programs[b];
    int left = *program++;
    Image x{now, next, channels, h, w};
    for (; left; left--) {
      const int* p = program + 2;
      int code = program[0], words = program[1];
      program = p + words;
      bool moved = true;
      switch (code) {
        case 0: move(x, p); x.h = p[0], x.w = p[3]; break;
        case 1: warp(x, p); break;
        case 2: resize(x, p); x.h = p[1], x.w = p[6]; break;
        case 5: to_grey(x, p); x.c = p[0]; break;
        case 6: blur(x, p, words - 1); break;
        default: moved = false;
      }
      if (code == 3) blend(x, now, p, parts);
      if (code == 4) hue(x, now, p);
      if (code == 7 || code == 8) overwrite(x, now, p, code == 8);
      if (code == 9) normalize(x, now, p);
      if (moved) {
        float* old = now;
        now = next, next = old;
        x.now = now, x.next = next;
      }
      __syncthreads();
    }
    Floats image{now};
    unsigned pixels = out_c * out_h * out_w;
    for (unsigned in = threadIdx.x; in < pixels; in += blockDim.x)
      y[b * pixels + in] = finished(image, raw + 4 * b, affine, in, out_c, out_h, out_w, last);
    // the next image overwrites what others may still read
    __syncthreads();
  }
}

// ---------------------------------------------------------------- mixing
// y[b] = lambda x[b] + (1 - lambda) x[partner], or x[partner] within a rectangle and x[b] beside it
// One thread a pixel, in the memory order of x and y. `words` is the N partners, then the shares of
// classes, which become `targets`.
KERNEL(256, augment_mix_f32, const i64* words, const float* x, float* y, float* targets, int n, int channels, int h, int w,
       int classes, int last, float lambda, int rectangle, int top, int left, int bottom, int right) {
  unsigned e = blockIdx.x * blockDim.x + threadIdx.x, pixels = channels * h * w;
  if (e < (unsigned)(n * classes)) targets[e] = reinterpret_cast<const float*>(words + n)[e];
  if (e >= n * pixels) return;
  unsigned b = e / pixels, in = e - b * pixels;
  float own = x[e], other = x[(size_t)words[b] * pixels + in];
  if (rectangle) {
    int at = last ? in / channels : in % (unsigned)(h * w);
    int row = at / w, column = at % w;
    y[e] = row >= top && row < bottom && column >= left && column < right ? other : own;
  } else {
    y[e] = (Exact(own) * Exact(lambda) + Exact(other) * (Exact(1.f) - Exact(lambda))).v;
  }
}
