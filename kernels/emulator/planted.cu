// planted.cu - kernels with one fault each, and beside each the same kernel without it: proof that the emulated
// device finds such faults and raises no false alarm (tests/planted.rs). Not part of the library's kernels.
#include "common.cuh"

// All of them take n elements x and y, n = gridDim.x * blockDim.x.
#define TWINS(NAME)                                                                     \
  KERNEL(256, NAME##_right, const float* x, float* y, int n) { NAME<false>(x, y, n); } \
  KERNEL(256, NAME##_wrong, const float* x, float* y, int n) { NAME<true>(x, y, n); }

// y = x backwards, through shared memory
template <bool WRONG> __device__ void missing_barrier(const float* x, float* y, int n) {
  __shared__ float s[256];
  int t = threadIdx.x;
  s[t] = x[t];
  if (!WRONG) __syncthreads();
  y[t] = s[n - 1 - t];
}
TWINS(missing_barrier)

// x := x + its right neighbour, twice; without the barrier at the loop's end a thread overtakes its left neighbour's
// read
template <bool WRONG> __device__ void missing_loop_barrier(const float* x, float* y, int n) {
  __shared__ float s[256];
  int t = threadIdx.x;
  float v = x[t];
  for (int step = 0; step < 2; step++) {
    s[t] = v;
    __syncthreads();
    v += s[min(t + 1, n - 1)];
    if (!WRONG) __syncthreads();
  }
  y[t] = v;
}
TWINS(missing_loop_barrier)

// y = x + 1, where every thread stores the same 1: a race whose result is right
template <bool WRONG> __device__ void race_of_equals(const float* x, float* y, int n) {
  __shared__ float one;
  int t = threadIdx.x;
  if (WRONG || t == 0) one = 1.0f;
  __syncthreads();
  y[t] = x[t] + one;
}
TWINS(race_of_equals)

// y = x + the other lane of the pair
template <bool WRONG> __device__ void missing_syncwarp(const float* x, float* y, int n) {
  __shared__ float s[256];
  int t = threadIdx.x;
  s[t] = x[t];
  if (!WRONG) __syncwarp();
  y[t] = s[t] + s[t ^ 1];
}
TWINS(missing_syncwarp)

// y = x through an asynchronous copy
template <bool WRONG> __device__ void missing_copy_wait(const float* x, float* y, int n) {
  __shared__ float s[256];
  int t = threadIdx.x;
  cp_async4(&s[t], &x[t]);
  cp_async_commit();
  if (!WRONG) cp_async_wait<0>();
  y[t] = s[t];
}
TWINS(missing_copy_wait)

// y = x, where thread 0 waits for a copy that others read: it must not be them who wait
template <bool WRONG> __device__ void wait_without_barrier(const float* x, float* y, int n) {
  __shared__ float s[256];
  int t = threadIdx.x;
  cp_async4(&s[t], &x[t]);
  cp_async_commit();
  cp_async_wait<0>();
  if (!WRONG) __syncthreads();
  y[t] = s[n - 1 - t];
}
TWINS(wait_without_barrier)

// y = x + its right neighbour, the last with itself
template <bool WRONG> __device__ void read_past_end(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i] + x[WRONG ? i + 1 : min(i + 1, n - 1)];
}
TWINS(read_past_end)

// y[i + 1] = x[i], the last to y[0]
template <bool WRONG> __device__ void write_past_end(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (WRONG && i == 0) y[0] = x[n - 1];
  y[WRONG ? i + 1 : (i + 1) % n] = x[i];
}
TWINS(write_past_end)

// y = x, an index from memory instead of the thread's own
template <bool WRONG> __device__ void wild_index(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[WRONG ? __float_as_int(x[i]) : i];
}
TWINS(wild_index)

// y = x through static shared memory, one place too far to the right; at most 64 threads
template <bool WRONG> __device__ void past_static_shared(const float* x, float* y, int n) {
  __shared__ float s[64];
  int t = threadIdx.x, at = WRONG ? t + 1 : t;
  s[at] = x[t];
  __syncthreads();
  y[t] = s[at];
}
TWINS(past_static_shared)

// the same through dynamic shared memory, of n floats
template <bool WRONG> __device__ void past_dynamic_shared(const float* x, float* y, int n) {
  DYN_SMEM(float, s);
  int t = threadIdx.x, at = WRONG ? t + 1 : t;
  s[at] = x[t];
  __syncthreads();
  y[t] = s[at];
}
TWINS(past_dynamic_shared)

// y = x by 16 bytes at once, from an address that is not a multiple of 16
template <bool WRONG> __device__ void misaligned_float4(const float* x, float* y, int n) {
  int t = threadIdx.x;
  if (t < n / 4 - 1) *(float4*)(y + 4 * t) = *(const float4*)(x + 4 * t + WRONG);
  if (t < 4) y[n - 4 + t] = x[n - 4 + t];
}
TWINS(misaligned_float4)

// y = x, half of the threads at another barrier
template <bool WRONG> __device__ void divergent_barrier(const float* x, float* y, int n) {
  int t = threadIdx.x;
  if (WRONG && t >= n / 2) {
    y[t] = x[t];
    __syncthreads();
  } else {
    y[t] = x[t];
    __syncthreads();
  }
}
TWINS(divergent_barrier)

// y = x, where one thread leaves before the others' barrier
template <bool WRONG> __device__ void early_return(const float* x, float* y, int n) {
  int t = threadIdx.x;
  y[t] = x[t];
  if (WRONG && t == n - 1) return;
  __syncthreads();
}
TWINS(early_return)

// y = x + the sum of x's first warp, which one lane does not take part in
template <bool WRONG> __device__ void lane_left_out(const float* x, float* y, int n) {
  int t = threadIdx.x;
  float v = t < 32 ? x[t] : 0.0f;
  if (!WRONG || t != 5) {
    v = warp_sum(v);
  } else {
    __syncthreads();
  }
  if (!WRONG || t != 5) __syncthreads();
  y[t] = x[t] + v;
}
TWINS(lane_left_out)

// y = x, its last element by way of shared memory that nobody wrote
template <bool WRONG> __device__ void unwritten_shared(const float* x, float* y, int n) {
  __shared__ float s[256];
  int t = threadIdx.x;
  if (!WRONG || t != n - 1) s[t] = x[t];
  __syncthreads();
  y[t] = s[t];
}
TWINS(unwritten_shared)

// y = x, without the last element
template <bool WRONG> __device__ void unwritten_output(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (!WRONG || i != n - 1) y[i] = x[i];
}
TWINS(unwritten_output)

// y = x, where each block also writes its left neighbour's last element
template <bool WRONG> __device__ void overlapping_blocks(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (WRONG && threadIdx.x == 0 && i > 0) y[i - 1] = x[i];
  y[i] = x[i];
}
TWINS(overlapping_blocks)

// y[0] = the sum of x, by adding without atomics
template <bool WRONG> __device__ void lost_update(const float* x, float* y, int n) {
  __shared__ int sum;
  int t = threadIdx.x;
  if (t == 0) sum = 0;
  __syncthreads();
  if (WRONG) {
    sum += (int)x[t];
  } else {
    atomicAdd(&sum, (int)x[t]);
  }
  __syncthreads();
  y[t] = (float)sum;
}
TWINS(lost_update)

// y = x, with more local memory than a thread may have here
template <bool WRONG> __device__ void huge_local_array(const float* x, float* y, int n) {
  volatile float local[WRONG ? 100000 : 100];
  int t = threadIdx.x;
  local[t % 100] = x[t];
  y[t] = local[t % 100];
}
TWINS(huge_local_array)
