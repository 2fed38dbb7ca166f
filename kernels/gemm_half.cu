// gemm_half.cu - matrix products of bf16 and f16 on tensor cores.
#include "gemm.cuh"

// C = A B + bias, perhaps through ReLU, bf16 and f16 on tensor cores, summed in f32
// one block a BM x BN tile of one matrix and one part of k; two letters say along which axis A's
// and B's elements lie together, or k where none does
template <class T, int BM, int BN, int WM, int WN, bool A_K, bool B_K>
__device__ __forceinline__ void gemm_mma(const T* a, const T* b, const T* bias, T* y, float* parts, const Product& p) {
  DYN_SMEM(T, smem);
  Place at = place<BM, BN>(p);
  Matrix<T> la(a + at.a, p.m, at.k1, p.a[0], p.a[1], A_K), lb(b + at.b, p.n, at.k1, p.b[0], p.b[1], B_K);
  mma_tile<T, BM, BN, WM, WN, A_K, B_K>(smem, la, lb, at.m0, at.n0, at.k0, at.k1, Result<T>{bias, y, parts, p, at.slice});
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
