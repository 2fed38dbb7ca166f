// tile.cuh - the register tiles under every product: one block computes BM x BN of C = A Bᵀ.
//
// A is (rows, k) and B is (columns, k), both handed over as loaders, so a product, a convolution
// and their gradients differ in where elements come from and nothing else. A loader of T is
//
//   struct L {
//     typedef .. Row;
//     bool along_k;                           // its 16 bytes run along k, or along rows
//     Row row(int r) const;                   // what it wants to know of row r: asked once, kept
//     const T* at(const Row&, int k) const;   // address of 16 aligned bytes, the elements (r, k ..)
//   };                                        // or (r .., k); nullptr if they are not all there
//     T get(const Row&, int e, int k) const;  // the element (r + e, k), 0 outside
//
// r and k are multiples of Pack<T>::N where the bytes run along them, and e is 0 along k. k0 .. k1
// is the part of k to sum: a loader gives zeros from k1 on. `store(row, column, v)` gets N
// neighbouring columns, v[0 .. N], some of them beyond the edge. All threads of the block call.
//
//   simt_tile: f32, f64.   256 threads, shared memory 2 BK (BM + BN + 8) elements
//   mma_tile:  bf16, f16.  (BM / WM) (BN / WN) warps, shared memory 4 * 32 (BM + BN) elements
#pragma once
#include "common.cuh"

// ---------------------------------------------------------------- loader and store of matrices
// A matrix with any strides; 16 bytes at once where they lie together and aligned.
template <class T> struct Matrix {
  typedef int Row;
  const T* p;
  int rows, depth;           // its size, and the end of k
  int row_stride, k_stride;  // in elements
  bool along_k, whole;       // whole: 16 bytes at once

  __device__ __forceinline__ Matrix(const T* p, int rows, int depth, int row_stride, int k_stride, bool along_k)
      : p(p), rows(rows), depth(depth), row_stride(row_stride), k_stride(k_stride), along_k(along_k) {
    size_t pitch = (size_t)(along_k ? row_stride : k_stride) * sizeof(T);
    whole = (along_k ? k_stride : row_stride) == 1 && ((size_t)p | pitch) % 16 == 0;
  }
  __device__ __forceinline__ int row(int r) const { return r; }
  __device__ __forceinline__ const T* at(int r, int k) const {
    const int N = Pack<T>::N;
    bool inside = along_k ? r < rows && k + N <= depth : r + N <= rows && k < depth;
    return whole && inside ? p + (i64)r * row_stride + (i64)k * k_stride : nullptr;
  }
  __device__ __forceinline__ T get(int r, int e, int k) const {
    return r + e < rows && k < depth ? p[(i64)(r + e) * row_stride + (i64)k * k_stride] : narrow<T>(0);
  }
};

// Rounds once and stores to a dense m x n matrix, one bias a column (nullptr: none), perhaps through
// ReLU. v is in shared memory or in registers.
template <class T> struct Dense {
  T* y;
  const T* bias;
  int relu, m, n;
  __device__ __forceinline__ T rounded(wide<T> v, int c) const {
    if (bias) v += widen<T>(bias[c]);
    return narrow<T>(relu ? nan_max(v, wide<T>(0)) : v);
  }
  template <int N> __device__ __forceinline__ void store(int r, int c, const wide<T>* v) const {
    if (r >= m || c >= n) return;
    T* to = y + (i64)r * n + c;
    if (n % N == 0) {
      struct __align__(16) { T v[N]; } out;
#pragma unroll
      for (int i = 0; i < N; i++) out.v[i] = rounded(v[i], c + i);
      *reinterpret_cast<decltype(out)*>(to) = out;
    } else {
#pragma unroll (sizeof(T) == 2 ? 1 : N)
      for (int i = 0; i < N; i++)
        if (c + i < n) to[i] = rounded(v[i], c + i);
    }
  }
};

// ---------------------------------------------------------------- f32 and f64: fused multiply-adds
// Shared memory: two buffers (this tile, the next) of A and of B, each [BK][rows + 4]. The four
// keep 16-byte rows aligned and spread the transposing stores over all banks.
// One operand's share of a thread: COUNT packs of a BR x BK tile, through registers to [k][row].
template <class T, class L, int BR, int BK> struct SimtSide {
  static const int N = Pack<T>::N, COUNT = BR * BK / N / 256, LD = BR + 4;
  static_assert(BR * BK % (N * 256) == 0, "a pack or more a thread");
  typename L::Row rows[COUNT];
  Pack<T> held[COUNT];

  // Where this thread's pack i lies in the tile. Along k two neighbours read 32 bytes of a row, and
  // a warp's stores meet 16 rows x 2 packs of k.
  static __device__ __forceinline__ int r(const L& l, int i) {
    int c = threadIdx.x + i * 256;
    return l.along_k ? c / 2 % BR : c % (BR / N) * N;
  }
  static __device__ __forceinline__ int k(const L& l, int i) {
    int c = threadIdx.x + i * 256;
    return l.along_k ? (c % 2 + c / (2 * BR) * 2) * N : c / (BR / N);
  }
  __device__ __forceinline__ SimtSide(const L& l, int r0) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) rows[i] = l.row(r0 + r(l, i));
  }
  __device__ __forceinline__ void fetch(const L& l, int k0) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      int at = k0 + k(l, i);
      if (const T* from = l.at(rows[i], at)) {
        held[i] = *reinterpret_cast<const Pack<T>*>(from);
      } else {
#pragma unroll
        for (int j = 0; j < N; j++) held[i].v[j] = l.along_k ? l.get(rows[i], 0, at + j) : l.get(rows[i], j, at);
      }
    }
  }
  __device__ __forceinline__ void put(const L& l, T* tile) const {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      T* to = tile + k(l, i) * LD + r(l, i);
      if (l.along_k) {
#pragma unroll
        for (int j = 0; j < N; j++) to[j * LD] = held[i].v[j];
      } else {
        *reinterpret_cast<Pack<T>*>(to) = held[i];
      }
    }
  }
};

// A warp owns 8 TM x 4 TN: lane l the rows 4 (l / 4) .. + 4 of every 32 and the columns
// 4 (l % 4) .. + 4 of every 16, so a fragment is read 16 bytes at once without bank conflicts.
template <class T, int BM, int BN, int BK, int TM, int TN, class A, class B, class Store>
__device__ __forceinline__ void simt_tile(T* smem, const A& a, const B& b, int m0, int n0, int k0, int k1, const Store& store) {
  const int LA = BM + 4, LB = BN + 4, STAGE = BK * (LA + LB), N = Pack<T>::N;
  static_assert((BM / TM) * (BN / TN) == 256, "one thread an accumulator tile");
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, across = BN / (4 * TN);
  const int row = warp / across * 8 * TM + lane / 4 * 4, col = warp % across * 4 * TN + lane % 4 * 4;
  SimtSide<T, A, BM, BK> fa(a, m0);
  SimtSide<T, B, BN, BK> fb(b, n0);
  T acc[TM][TN];
#pragma unroll
  for (int i = 0; i < TM; i++)
#pragma unroll
    for (int j = 0; j < TN; j++) acc[i][j] = 0;

  fa.fetch(a, k0), fb.fetch(b, k0);
  fa.put(a, smem), fb.put(b, smem + BK * LA);
  __syncthreads();
  for (int k = k0, buffer = 0; k < k1; k += BK, buffer ^= 1) {
    bool more = k + BK < k1;
    if (more) fa.fetch(a, k + BK), fb.fetch(b, k + BK);
    const T* sa = smem + buffer * STAGE + row;
    const T* sb = smem + buffer * STAGE + BK * LA + col;
#pragma unroll
    for (int kk = 0; kk < BK; kk++) {
      Pack<T> u[TM / N], v[TN / N];
#pragma unroll
      for (int i = 0; i < TM / N; i++) u[i] = *reinterpret_cast<const Pack<T>*>(sa + kk * LA + i * N / 4 * 32 + i * N % 4);
#pragma unroll
      for (int j = 0; j < TN / N; j++) v[j] = *reinterpret_cast<const Pack<T>*>(sb + kk * LB + j * N / 4 * 16 + j * N % 4);
#pragma unroll
      for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) acc[i][j] = fma(u[i / N].v[i % N], v[j / N].v[j % N], acc[i][j]);
    }
    if (more) {
      T* next = smem + (buffer ^ 1) * STAGE;
      fa.put(a, next), fb.put(b, next + BK * LA);
      __syncthreads();
    }
  }
#pragma unroll
  for (int i = 0; i < TM; i++)
#pragma unroll
    for (int j = 0; j < TN; j += 4) {
      T v[4] = {acc[i][j], acc[i][j + 1], acc[i][j + 2], acc[i][j + 3]};
      store.template store<4>(m0 + row + i / 4 * 32 + i % 4, n0 + col + j / 4 * 16, v);
    }
}

// ---------------------------------------------------------------- bf16 and f16: tensor cores
// Tiles of k are MMA_K deep and MMA_STAGES of them are under way.
const int MMA_K = 32, MMA_STAGES = 4;

// One operand: a BR x MMA_K tile in 16-byte chunks, [row][k] if its loader runs along k, else
// [k][row]. Chunks are swizzled so that the eight addresses of an 8x8 matrix, and the eight chunks
// that neighbouring threads copy, lie in eight different groups of banks.
template <class T, class L, int BR, int THREADS, bool ALONG_K> struct MmaSide {
  static const int PITCH = ALONG_K ? MMA_K : BR, WIDE = PITCH / 8;  // elements and chunks of a line
  static const int COUNT = BR * MMA_K / 8 / THREADS, STEP = THREADS / WIDE;
  static_assert(COUNT >= 1 && STEP % 8 == 0, "whole swizzle patterns between a thread's chunks");
  typename L::Row rows[ALONG_K ? COUNT : 1];

  // the element where chunk `c` of line `i` begins
  static __device__ __forceinline__ int slot(int i, int c) {
    return i * PITCH + (ALONG_K ? c ^ (i / (64 / MMA_K) % WIDE) : c ^ (i % 8)) * 8;
  }
  __device__ __forceinline__ MmaSide(const L& l, int r0) {
    int line = threadIdx.x / WIDE, chunk = threadIdx.x % WIDE;
#pragma unroll
    for (int i = 0; i < (ALONG_K ? COUNT : 1); i++) rows[i] = l.row(r0 + (ALONG_K ? line + i * STEP : chunk * 8));
  }
  // starts the copy of the tile at k0
  __device__ __forceinline__ void fetch(const L& l, T* tile, int r0, int k0) const {
    int line = threadIdx.x / WIDE, chunk = threadIdx.x % WIDE;
    T* to = tile + slot(line, chunk);
    unsigned rest = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const T* from = l.at(rows[ALONG_K ? i : 0], k0 + (ALONG_K ? chunk * 8 : line + i * STEP));
      if (from) cp_async16(to + i * STEP * PITCH, from);
      else rest |= 1u << i;
    }
    // edges and what is not aligned, one by one: the code must be small, for there are many of it
#pragma unroll 1
    for (int j = 0; rest >> j / 8; j++) {
      int i = j / 8, e = j % 8;
      if (rest >> i & 1)
        to[i * STEP * PITCH + e] = ALONG_K ? l.get(l.row(r0 + line + i * STEP), 0, k0 + chunk * 8 + e)
                                           : l.get(rows[0], e, k0 + line + i * STEP);
    }
  }
  // the 16 rows x 16 k at (row, k) as four 8x8 matrices, this lane pointing into one of them
  static __device__ __forceinline__ void fragment(unsigned (&f)[4], unsigned tile, int row, int k, int row_half, int k_half) {
    int i = threadIdx.x % 8;
    if (ALONG_K) ldmatrix_x4(f, tile + slot(row + row_half * 8 + i, k / 8 + k_half) * 2);
    else ldmatrix_x4_trans(f, tile + slot(k + k_half * 8 + i, row / 8 + row_half) * 2);
  }
};

// A warp owns WM x WN as m16n8 tiles. While it multiplies one slice of 16 k it reads the next one
// from shared memory, across the border of tiles too; one barrier a tile.
template <class T, int BM, int BN, int WM, int WN, bool A_K, bool B_K, class A, class B, class Store>
__device__ __forceinline__ void mma_tile(T* smem, const A& a, const B& b, int m0, int n0, int k0, int k1, const Store& store) {
  const int ACROSS = BN / WN, THREADS = BM / WM * ACROSS * 32, STAGE = (BM + BN) * MMA_K;
  typedef MmaSide<T, A, BM, THREADS, A_K> SideA;
  typedef MmaSide<T, B, BN, THREADS, B_K> SideB;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = warp / ACROSS * WM, col = warp % ACROSS * WN;
  const SideA fa(a, m0);
  const SideB fb(b, n0);
  float acc[WM / 16][WN / 8][4];
#pragma unroll
  for (int i = 0; i < WM / 16; i++)
#pragma unroll
    for (int j = 0; j < WN / 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[i][j][e] = 0;
  unsigned ra[2][WM / 16][4], rb[2][WN / 16][4];
  const unsigned base = smem_u32(smem);

  auto copy = [&](int stage, int k) {
    if (k < k1) fa.fetch(a, smem + stage * STAGE, m0, k), fb.fetch(b, smem + stage * STAGE + BM * MMA_K, n0, k);
    cp_async_commit();  // an empty group keeps the count
  };
  auto read = [&](int to, int stage, int k) {
    unsigned tile = base + stage * STAGE * 2;
#pragma unroll
    for (int i = 0; i < WM / 16; i++) SideA::fragment(ra[to][i], tile, row + i * 16, k, lane / 8 % 2, lane / 16);
#pragma unroll
    for (int j = 0; j < WN / 16; j++) SideB::fragment(rb[to][j], tile + BM * MMA_K * 2, col + j * 16, k, lane / 16, lane / 8 % 2);
  };
  auto multiply = [&](int from) {
#pragma unroll
    for (int i = 0; i < WM / 16; i++)
#pragma unroll
      for (int j = 0; j < WN / 8; j++) {
        int at = i % 2 ? WN / 8 - 1 - j : j;  // back and forth: a fragment of B is used twice in a row
        const unsigned pair[2] = {rb[from][at / 2][at % 2 * 2], rb[from][at / 2][at % 2 * 2 + 1]};
        mma_m16n8k16(acc[i][at], ra[from][i], pair, T());
      }
  };

#pragma unroll 1
  for (int s = 0; s < MMA_STAGES - 1; s++) copy(s, k0 + s * MMA_K);
  cp_async_wait<MMA_STAGES - 2>();
  __syncthreads();
  if (k0 < k1) read(0, 0, 0);
  for (int k = k0, stage = 0; k < k1; k += MMA_K) {
    int next = stage + 1 == MMA_STAGES ? 0 : stage + 1;
#pragma unroll
    for (int s = 0; s < MMA_K / 16; s++) {
      if (s + 1 < MMA_K / 16) {
        read((s + 1) % 2, stage, (s + 1) * 16);
      } else {
        // the next tile has arrived, and all warps have read this one
        cp_async_wait<MMA_STAGES - 2>();
        __syncthreads();
        if (k + MMA_K < k1) read((s + 1) % 2, next, 0);
      }
      // into the tile before this one, which the last barrier has freed
      if (s == 0) copy(stage == 0 ? MMA_STAGES - 1 : stage - 1, k + (MMA_STAGES - 1) * MMA_K);
      multiply(s % 2);
    }
    stage = next;
  }
  cp_async_wait<0>();
  __syncthreads();
  // through shared memory, 16 rows of a warp at a time: lines of C then leave whole
  const int PITCH = WN + 8;
  static_assert(BM / WM * ACROSS * 16 * PITCH * 4 <= MMA_STAGES * STAGE * 2, "room for the accumulators");
  float* out = reinterpret_cast<float*>(smem) + warp * 16 * PITCH;
#pragma unroll
  for (int i = 0; i < WM / 16; i++) {
#pragma unroll
    for (int j = 0; j < WN / 8; j++)
#pragma unroll
      for (int h = 0; h < 2; h++)
        *reinterpret_cast<float2*>(out + (h * 8 + lane / 4) * PITCH + j * 8 + lane % 4 * 2) = make_float2(acc[i][j][h * 2], acc[i][j][h * 2 + 1]);
    __syncwarp();
#pragma unroll 1
    for (int e = lane; e < 16 * (WN / 8); e += 32) {
      int r = e / (WN / 8), c = e % (WN / 8) * 8;
      store.template store<8>(m0 + row + i * 16 + r, n0 + col + c, out + r * PITCH + c);
    }
    __syncwarp();
  }
}
