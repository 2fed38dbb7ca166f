// philox.cuh - random numbers, the same as src/random.rs makes: Philox 4x32-10, counter based.
#pragma once
#include "common.cuh"

// Block `counter` of the stream of `seed` (Salmon et al. 2011).
__device__ __forceinline__ uint4 philox(unsigned long long seed, unsigned long long counter) {
  unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
  uint4 c = make_uint4((unsigned)counter, (unsigned)(counter >> 32), 0, 0);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    unsigned hi0 = __umulhi(0xD2511F53u, c.x), hi1 = __umulhi(0xCD9E8D57u, c.z);
    c = make_uint4(hi1 ^ c.y ^ k0, 0xCD9E8D57u * c.z, hi0 ^ c.w ^ k1, 0xD2511F53u * c.x);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return c;
}
