// augment.cu - a batch of bytes as the images that a model takes: flipped, cropped, normalized.
#include "common.cuh"

// y[b, c, y, x] = (byte / 255 - mean) scale at (c, y + dy, x + dx), mirrored if flipped; 0 beside the
// image; labels[b] = the image's label
// One thread a pixel of y, in y's memory order. `raw` begins with four numbers an image (label, flip,
// dy, dx); the images' bytes (N, C, H, W) follow. `affine` is the means (C, H, W), then the scales
// (C). The product and the difference are rounded one by one, as on the CPU.
KERNEL(256, augment_f32, const i64* raw, const float* affine, float* y, i64* labels, int n, int channels, int h, int w,
       int last) {
  unsigned e = blockIdx.x * blockDim.x + threadIdx.x, plane = h * w, pixels = channels * plane;
  if (e < (unsigned)n) labels[e] = raw[4 * e];
  if (e >= n * pixels) return;
  unsigned b = e / pixels, in = e - b * pixels;  // in: the place within the image
  unsigned c = last ? in % channels : in / plane, at = last ? in / channels : in % plane;
  const i64* change = raw + 4 * (size_t)b;
  int row = at / w + (int)change[2], column = at % w + (int)change[3];
  float value = 0;
  if (row >= 0 && row < h && column >= 0 && column < w) {
    if (change[1]) column = w - 1 - column;
    unsigned source = c * plane + row * w + column;
    float byte = reinterpret_cast<const u8*>(raw + 4 * (size_t)n)[(size_t)b * pixels + source];
    value = (__fmul_rn(byte, 1.f / 255.f) - affine[source]) * affine[pixels + c];
  }
  y[e] = value;
}
