// gemm.cu - matrix products: any strides, batched, cut along k where the output alone is too small for the card.
#include "tile.cuh"

struct Product {
  int m, n, k;
  int splits, depth;           // k in `splits` parts of `depth`, a multiple of 32
  int has_bias;
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

// C with its bias, or a part of it, to be summed by gemm_fold.
template <class T> struct Result {
  Dense<T> whole;
  Dense<wide<T>> part;
  bool split;
  __device__ __forceinline__ Result(const T* bias, T* y, wide<T>* parts, const Product& p, int slice)
      : whole{y + (size_t)slice * p.m * p.n, p.has_bias ? bias : nullptr, p.m, p.n},
        part{parts + (size_t)slice * p.m * p.n, nullptr, p.m, p.n}, split(p.splits > 1) {}
  template <int N> __device__ __forceinline__ void store(int r, int c, const wide<T>* v) const {
    if (split) part.template store<N>(r, c, v);
    else whole.template store<N>(r, c, v);
  }
};

// C = A B + bias, f32 and f64
// one block of 256 threads a BM x BN tile of one matrix and one part of k
template <class T, int BM, int BN, int BK, int TM, int TN>
__device__ __forceinline__ void gemm_simt(const T* a, const T* b, const T* bias, T* y, T* parts, const Product& p) {
  DYN_SMEM(T, smem);
  Place at = place<BM, BN>(p);
  Matrix<T> la(a + at.a, p.m, at.k1, p.a[0], p.a[1], p.a[1] == 1), lb(b + at.b, p.n, at.k1, p.b[0], p.b[1], p.b[1] == 1);
  simt_tile<T, BM, BN, BK, TM, TN>(smem, la, lb, at.m0, at.n0, at.k0, at.k1, Result<T>(bias, y, parts, p, at.slice));
}
#define GEMM_SIMT(WHAT, NAME, T, BM, BN, BK, TM, TN)                                                                        \
  KERNEL(256, gemm_##WHAT##_##NAME, const T* a, const T* b, const T* bias, T* y, T* parts, Product p) {                     \
    gemm_simt<T, BM, BN, BK, TM, TN>(a, b, bias, y, parts, p);                                                              \
  }
GEMM_SIMT(128x128, f32, float, 128, 128, 8, 8, 8)
GEMM_SIMT(64x64, f32, float, 64, 64, 16, 4, 4)
GEMM_SIMT(64x64, f64, double, 64, 64, 8, 4, 4)

// C = A B + bias, bf16 and f16 on tensor cores, summed in f32
// one block a BM x BN tile of one matrix and one part of k; a letter an operand: t runs along k,
// n along m or n, as BLAS names a row-major and a column-major B
template <class T, int BM, int BN, int WM, int WN, bool A_K, bool B_K>
__device__ __forceinline__ void gemm_mma(const T* a, const T* b, const T* bias, T* y, float* parts, const Product& p) {
  DYN_SMEM(T, smem);
  Place at = place<BM, BN>(p);
  Matrix<T> la(a + at.a, p.m, at.k1, p.a[0], p.a[1], A_K), lb(b + at.b, p.n, at.k1, p.b[0], p.b[1], B_K);
  mma_tile<T, BM, BN, WM, WN, A_K, B_K>(smem, la, lb, at.m0, at.n0, at.k0, at.k1, Result<T>(bias, y, parts, p, at.slice));
}
#define GEMM_MMA(LAYOUT, A_K, B_K, NAME, T, BM, BN, WM, WN)                                                                 \
  KERNEL(BM / WM * (BN / WN) * 32, gemm_##BM##x##BN##_##LAYOUT##_##NAME, const T* a, const T* b, const T* bias, T* y,       \
         float* parts, Product p) {                                                                                         \
    gemm_mma<T, BM, BN, WM, WN, A_K, B_K>(a, b, bias, y, parts, p);                                                         \
  }
#define GEMM_MMA_LAYOUTS(NAME, T, ...)           \
  GEMM_MMA(kk, true, true, NAME, T, __VA_ARGS__)   \
  GEMM_MMA(kn, true, false, NAME, T, __VA_ARGS__)  \
  GEMM_MMA(mk, false, true, NAME, T, __VA_ARGS__)  \
  GEMM_MMA(mn, false, false, NAME, T, __VA_ARGS__)
#define GEMM_MMA_ALL(NAME, T)                    \
  GEMM_MMA_LAYOUTS(NAME, T, 128, 256, 64, 64)    \
  GEMM_MMA_LAYOUTS(NAME, T, 128, 128, 64, 64)    \
  GEMM_MMA_LAYOUTS(NAME, T, 64, 64, 32, 32)
GEMM_MMA_ALL(bf16, bf16)
GEMM_MMA_ALL(f16, f16)

// C = sum of the parts, in their order, + bias
// one thread an element of C
template <class T>
__device__ __forceinline__ void fold_body(const wide<T>* parts, const T* bias, T* y, unsigned total, int mn, int n, int splits, int has_bias) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= total) return;
  const wide<T>* from = parts + (size_t)(i / mn) * splits * mn + i % mn;
  wide<T> sum = 0;
  for (int s = 0; s < splits; s++) sum += from[(size_t)s * mn];
  y[i] = narrow<T>(has_bias ? sum + widen<T>(bias[i % n]) : sum);
}
#define GEMM_FOLD(NAME, T)                                                                                                   \
  KERNEL(256, gemm_fold_##NAME, const wide<T>* parts, const T* bias, T* y, unsigned total, int mn, int n, int splits, int has_bias) { \
    fold_body<T>(parts, bias, y, total, mn, n, splits, has_bias);                                                           \
  }
FOR_FLOAT(GEMM_FOLD)
