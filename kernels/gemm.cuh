// gemm.cuh - what a matrix product is to its kernels: any strides, a batch, perhaps cut along k.
#pragma once
#include "tile.cuh"

struct Product {
  int m, n, k;
  int splits, depth;           // k in `splits` parts of `depth`, a multiple of 32
  int has_bias, relu;
  int a[2], b[2];              // strides in elements: A's along m and k, B's along n and k
  int axes[4], a_axes[4], b_axes[4];  // the batch: sizes, and both operands' strides (0: broadcast)
};

// A block's tile: where it begins in C, its part of k, and which slice of the result it is: matrix
// slice / splits, part slice % splits.
struct Place {
  int m0, n0, k0, k1, slice;
  i64 a, b;
};
// Tiles go column by column within bands of eight tile rows, so that blocks which run together
// share operands in the L2 cache.
template <int BM, int BN> __device__ __forceinline__ Place place(const Product& p) {
  const int tm = (p.m + BM - 1) / BM, tn = (p.n + BN - 1) / BN;
  int i = blockIdx.x % (tm * tn), band = i / (8 * tn) * 8, high = min(8, tm - band);
  Place at;
  i -= band * tn;
  at.m0 = (band + i % high) * BM, at.n0 = i / high * BN;
  at.slice = blockIdx.x / (tm * tn);
  at.k0 = at.slice % p.splits * p.depth, at.k1 = min(p.k, at.k0 + p.depth);
  at.a = at.b = 0;
  int rest = at.slice / p.splits;
#pragma unroll
  for (int d = 3; d >= 0; d--) {
    int q = rest / p.axes[d], r = rest - q * p.axes[d];
    at.a += (i64)r * p.a_axes[d], at.b += (i64)r * p.b_axes[d];
    rest = q;
  }
  return at;
}

// C with its bias and ReLU, or a part of it, to be summed by gemm_fold. Pointers are made when they are
// needed: kept through the loop over k they would cost registers.
template <class T> struct Result {
  const T* bias;
  T* y;
  wide<T>* parts;
  const Product& p;
  int slice;
  template <int N> __device__ __forceinline__ void store(int r, int c, const wide<T>* v) const {
    size_t at = (size_t)slice * p.m * p.n;
    if (p.splits > 1) Dense<wide<T>>{parts + at, nullptr, 0, p.m, p.n}.template store<N>(r, c, v);
    else Dense<T>{y + at, p.has_bias ? bias : nullptr, p.relu, p.m, p.n}.template store<N>(r, c, v);
  }
};
