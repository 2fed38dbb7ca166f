// conv.cuh - the sizes of a convolution, and which places a window's taps join.
#pragma once
#include "common.cuh"

// ConvShape on the host.
struct Conv {
  int n, h, w, ci, oh, ow, co, kh, kw, sh, sw, ph, pw, dh, dw, groups;
};

__device__ __forceinline__ int cut(int n, int size) { return (n + size - 1) / size; }
// n / d by multiplication, for 0 <= n < 2^31
struct Divisor {
  unsigned d, factor, shift;
  __device__ __forceinline__ Divisor(int divisor) {
    d = max(divisor, 1);
    shift = 32 - __clz(d - 1);
    factor = (unsigned)((((1ull << shift) - d) << 32) / d + 1);
  }
  __device__ __forceinline__ int divide(int n, int& rest) const {
    int q = (__umulhi(n, factor) + n) >> shift;
    rest = n - q * d;
    return q;
  }
};

// One axis of a pass. Its place j < count is written at `at + j by`; there, tap t < taps reads from
// `start + j step + t hop` and is the kernel's `tap + t tap_by`.
struct Axis {
  int count, at, by, start, step, hop, taps, tap, tap_by;
};
__device__ __forceinline__ Axis forward_axis(int out, int kernel, int stride, int pad, int dilation) {
  return {out, 0, 1, -pad, stride, dilation, kernel, 0, 1};
}
// The input's places `phase + j stride` are reached by the taps t with
// (phase + pad - t dilation) % stride == 0: by every stride / gcd(stride, dilation)-th one.
__device__ __forceinline__ Axis input_grad_axis(int phase, int in, int kernel, int stride, int pad, int dilation) {
  int by = 1, tap = 0;
  while (by * dilation % stride) by++;
  while (tap < by && (phase + pad - tap * dilation) % stride) tap++;
  int taps = tap < by && tap < kernel ? (kernel - tap + by - 1) / by : 0;
  int count = phase < in ? (in - phase + stride - 1) / stride : 0;
  return {count, phase, stride, (phase + pad - tap * dilation) / stride, 1, -(by * dilation / stride), taps, tap, by};
}
