// half.h - f16 and bf16. Stored in 16 bits, converted as the device does it (to nearest, ties to even). There is no
// arithmetic on them here on purpose: kernels widen to f32, compute, and round once.
#pragma once

struct __half {
  uint16_t x;
  __half() = default;
  inline __half(float f);
  inline operator float() const;
};
struct __nv_bfloat16 {
  uint16_t x;
  __nv_bfloat16() = default;
  inline __nv_bfloat16(float f);
  inline operator float() const;
};
typedef __half half;
typedef __nv_bfloat16 nv_bfloat16;

inline __half __ushort_as_half(uint16_t bits) {
  __half h;
  h.x = bits;
  return h;
}
inline uint16_t __half_as_ushort(__half h) { return h.x; }
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) {
  __nv_bfloat16 h;
  h.x = bits;
  return h;
}
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 h) { return h.x; }

inline __half __float2half(float f) {
  _Float16 rounded = (_Float16)f;
  __half h;
  memcpy(&h.x, &rounded, 2);
  return h;
}
inline float __half2float(__half h) {
  _Float16 value;
  memcpy(&value, &h.x, 2);
  return (float)value;
}
inline __nv_bfloat16 __float2bfloat16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  if (nan) return __ushort_as_bfloat16(0x7fff);
  uint32_t tie = (bits >> 16) & 1u;  // what lies half way goes to the even neighbour
  return __ushort_as_bfloat16((uint16_t)((bits + 0x7fffu + tie) >> 16));
}
inline float __bfloat162float(__nv_bfloat16 h) {
  uint32_t bits = (uint32_t)h.x << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
inline __half __float2half_rn(float f) { return __float2half(f); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __float2bfloat16(f); }

inline __half::__half(float f) { *this = __float2half(f); }
inline __half::operator float() const { return __half2float(*this); }
inline __nv_bfloat16::__nv_bfloat16(float f) { *this = __float2bfloat16(f); }
inline __nv_bfloat16::operator float() const { return __bfloat162float(*this); }

// The device rounds each of these to 16 bits; refused here, so that no kernel does it unawares.
#define EMU_NO_ARITHMETIC(T)     \
  T operator+(T, T) = delete;    \
  T operator-(T, T) = delete;    \
  T operator*(T, T) = delete;    \
  T operator/(T, T) = delete;
EMU_NO_ARITHMETIC(__half)
EMU_NO_ARITHMETIC(__nv_bfloat16)
#undef EMU_NO_ARITHMETIC

struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
typedef __half2 half2;
typedef __nv_bfloat162 nv_bfloat162;
inline __half2 __floats2half2_rn(float a, float b) { return {__float2half(a), __float2half(b)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__float2bfloat16(a), __float2bfloat16(b)}; }
inline float __low2float(__half2 h) { return __half2float(h.x); }
inline float __high2float(__half2 h) { return __half2float(h.y); }
inline float __low2float(__nv_bfloat162 h) { return __bfloat162float(h.x); }
inline float __high2float(__nv_bfloat162 h) { return __bfloat162float(h.y); }
