// gemm.cu - matrix products of f32 and f64, and the sum of products cut along k.
#include "gemm.cuh"

// C = A B + bias, perhaps through ReLU, f32 and f64
// one block of 256 threads a BM x BN tile of one matrix and one part of k
template <class T, int BM, int BN, int BK, int TM, int TN>
__device__ __forceinline__ void gemm_simt(const T* a, const T* b, const T* bias, T* y, T* parts, const Product& p) {
  DYN_SMEM(T, smem);
  Place at = place<BM, BN>(p);
  Matrix<T> la(a + at.a, p.m, at.k1, p.a[0], p.a[1], p.a[1] == 1), lb(b + at.b, p.n, at.k1, p.b[0], p.b[1], p.b[1] == 1);
  simt_tile<T, BM, BN, BK, TM, TN>(smem, la, lb, at.m0, at.n0, at.k0, at.k1, Result<T>{bias, y, parts, p, at.slice});
}
// (512 as the most threads holds registers to 128, so that two blocks share a multiprocessor)
#define GEMM_SIMT(WHAT, NAME, T, BM, BN, BK, TM, TN)                                                                        \
  KERNEL(512, gemm_##WHAT##_##NAME, const T* a, const T* b, const T* bias, T* y, T* parts, Product p) {                     \
    gemm_simt<T, BM, BN, BK, TM, TN>(a, b, bias, y, parts, p);                                                              \
  }
GEMM_SIMT(128x128, f32, float, 128, 128, 8, 8, 8)
GEMM_SIMT(64x64, f32, float, 64, 64, 16, 4, 4)
GEMM_SIMT(64x64, f64, double, 64, 64, 8, 4, 4)

// C = sum of the parts, in their order, + bias, perhaps through ReLU
// one thread an element of C
template <class T>
__device__ __forceinline__ void fold_body(const wide<T>* parts, const T* bias, T* y, unsigned total, int mn, int n, int splits, int has_bias, int relu) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= total) return;
  const wide<T>* from = parts + (size_t)(i / mn) * splits * mn + i % mn;
  wide<T> sum = 0;
  for (int s = 0; s < splits; s++) sum += from[(size_t)s * mn];
  if (has_bias) sum += widen<T>(bias[i % n]);
  y[i] = narrow<T>(relu ? nan_max(sum, wide<T>(0)) : sum);
}
#define GEMM_FOLD(NAME, T)                                                                                                   \
  KERNEL(256, gemm_fold_##NAME, const wide<T>* parts, const T* bias, T* y, unsigned total, int mn, int n, int splits, int has_bias, int relu) { \
    fold_body<T>(parts, bias, y, total, mn, n, splits, has_bias, relu);                                                     \
  }
FOR_FLOAT(GEMM_FOLD)
