// intrinsics.h - maths, bits and atomics that CUDA has and the C++ library has not. The rest (exp, tanh, erf, fma...)
// comes from <math.h>, whose overloads for float and double are CUDA's. Results are the C library's, a few units in
// the last place from the device's.
#pragma once

// ---------------------------------------------------------------- loads and stores with a hint
template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
template <class T> inline T __ldcg(const T* p) { return *p; }
template <class T> inline void __stcs(T* p, T v) { *p = v; }
template <class T> inline void __stcg(T* p, T v) { *p = v; }

// ---------------------------------------------------------------- maths
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
#define __expf(x) expf(x)  // macros: glibc has functions of these names
#define __exp10f(x) powf(10.0f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frsqrt_rn(float a) { return 1.0f / sqrtf(a); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }  // NaN: 0
// "_rn": never contracted into a fused multiply-add, for which the volatile stands here.
inline float __fadd_rn(float a, float b) {
  volatile float r = a + b;
  return r;
}
inline float __fsub_rn(float a, float b) {
  volatile float r = a - b;
  return r;
}
inline float __fmul_rn(float a, float b) {
  volatile float r = a * b;
  return r;
}
inline double __dadd_rn(double a, double b) {
  volatile double r = a + b;
  return r;
}
inline double __dsub_rn(double a, double b) {
  volatile double r = a - b;
  return r;
}
inline double __dmul_rn(double a, double b) {
  volatile double r = a * b;
  return r;
}

// min and max for every pair of types that CUDA has them for; of a NaN and a number they give the number.
#define EMU_MIN_MAX(T, A, B)                                     \
  inline T min(A a, B b) { return (T)a < (T)b ? (T)a : (T)b; }   \
  inline T max(A a, B b) { return (T)a > (T)b ? (T)a : (T)b; }
EMU_MIN_MAX(int, int, int)
EMU_MIN_MAX(unsigned, unsigned, unsigned)
EMU_MIN_MAX(unsigned, int, unsigned)
EMU_MIN_MAX(unsigned, unsigned, int)
EMU_MIN_MAX(long, long, long)
EMU_MIN_MAX(unsigned long, unsigned long, unsigned long)
EMU_MIN_MAX(long long, long long, long long)
EMU_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
#undef EMU_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin((double)a, b); }
inline double min(double a, float b) { return fmin(a, (double)b); }
inline double max(float a, double b) { return fmax((double)a, b); }
inline double max(double a, float b) { return fmax(a, (double)b); }

// ---------------------------------------------------------------- conversions
namespace emu {
template <class To, class From> inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace emu
inline int __float_as_int(float f) { return emu::bits_as<int>(f); }
inline unsigned __float_as_uint(float f) { return emu::bits_as<unsigned>(f); }
inline float __int_as_float(int i) { return emu::bits_as<float>(i); }
inline float __uint_as_float(unsigned i) { return emu::bits_as<float>(i); }
inline long long __double_as_longlong(double d) { return emu::bits_as<long long>(d); }
inline double __longlong_as_double(long long i) { return emu::bits_as<double>(i); }
inline int __float2int_rn(float f) { return (int)nearbyintf(f); }
inline int __float2int_rd(float f) { return (int)floorf(f); }
inline int __float2int_rz(float f) { return (int)f; }
inline float __int2float_rn(int i) { return (float)i; }
inline float __uint2float_rn(unsigned i) { return (float)i; }
inline float __ll2float_rn(long long i) { return (float)i; }
inline double __ll2double_rn(long long i) { return (double)i; }
inline float __double2float_rn(double d) { return (float)d; }

// ---------------------------------------------------------------- bits
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a * b) >> 32); }
inline int __mulhi(int a, int b) { return (int)(((int64_t)a * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; i++) r |= ((x >> i) & 1u) << (31 - i);
  return r;
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift) {
  return (unsigned)(((((uint64_t)hi << 32) | lo) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift) {
  return (unsigned)((((uint64_t)hi << 32) | lo) >> (shift & 31));
}

// ---------------------------------------------------------------- order of memory: one thread runs at a time
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline long long clock64() { return 0; }
inline void __nanosleep(unsigned) {}

// ---------------------------------------------------------------- atomics
namespace emu {
// Reads *p, stores f of it, returns what was there. Real atomics under TSan, so that they count as such.
template <class T, class F> inline T read_modify_write(T* p, F f) {
#ifdef __SANITIZE_THREAD__
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
  Bits old = __atomic_load_n((Bits*)p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n((Bits*)p, &old, bits_as<Bits>((T)f(bits_as<T>(old))), false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return bits_as<T>(old);
#else
  T old = *p;
  *p = f(old);
  return old;
#endif
}
}  // namespace emu
// The value's type must not decide T: atomicAdd(&float, 1) is meant for float.
#define EMU_ATOMIC(NAME, RESULT)                                                 \
  template <class T> inline T NAME(T* p, std::common_type_t<T> v) {              \
    return emu::read_modify_write(p, [v](T old) { return (T)(RESULT); });        \
  }
EMU_ATOMIC(atomicAdd, old + v)
EMU_ATOMIC(atomicSub, old - v)
EMU_ATOMIC(atomicMax, old > v ? old : v)
EMU_ATOMIC(atomicMin, old < v ? old : v)
EMU_ATOMIC(atomicAnd, old & v)
EMU_ATOMIC(atomicOr, old | v)
EMU_ATOMIC(atomicXor, old ^ v)
EMU_ATOMIC(atomicExch, v)
#undef EMU_ATOMIC
template <class T> inline T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> v) {
  return emu::read_modify_write(p, [=](T old) { return old == expected ? v : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  return emu::read_modify_write(p, [=](unsigned old) { return old >= limit ? 0u : old + 1; });
}
