// images.cuh - a thread's place in images that lie in memory as N, H, W, C.
#pragma once
#include "lane.cuh"

// V channels from c on of pixel (i, j) of image n.
struct Place {
  int n, i, j, c;
  bool valid;
};
// The thread's: all groups of V channels of the n images of h by w pixels are counted in their memory order.
template <int V> __device__ __forceinline__ Place place_of(unsigned thread, int n, int h, int w, int channels) {
  unsigned groups = channels / V, pixel = thread / groups, row = pixel / w, image = row / h;
  return {(int)image, (int)(row - image * h), (int)(pixel - row * w), (int)(thread - pixel * groups) * V, (int)image < n};
}
// A tensor has fewer than 2^31 elements.
__device__ __forceinline__ int pixel_at(int n, int i, int j, int c, int h, int w, int channels) {
  return ((n * h + i) * w + j) * channels + c;
}
