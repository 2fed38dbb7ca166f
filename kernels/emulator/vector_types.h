// vector_types.h - float4 and its like, and the built-in variables threadIdx, blockIdx, blockDim, gridDim.
#pragma once

// ---------------------------------------------------------------- types, aligned as CUDA aligns them
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef long long longlong;
typedef unsigned long long ulonglong;

#define EMU_VECTORS(T, NAME, ALIGN2, ALIGN4)                                              \
  struct NAME##1 { T x; };                                                                \
  struct alignas(ALIGN2) NAME##2 { T x, y; };                                             \
  struct NAME##3 { T x, y, z; };                                                          \
  struct alignas(ALIGN4) NAME##4 { T x, y, z, w; };                                       \
  inline NAME##1 make_##NAME##1(T x) { return {x}; }                                      \
  inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                              \
  inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }                      \
  inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTORS(signed char, char, 2, 4)
EMU_VECTORS(unsigned char, uchar, 2, 4)
EMU_VECTORS(short, short, 4, 8)
EMU_VECTORS(unsigned short, ushort, 4, 8)
EMU_VECTORS(int, int, 8, 16)
EMU_VECTORS(unsigned, uint, 8, 16)
EMU_VECTORS(float, float, 8, 16)
EMU_VECTORS(double, double, 16, 16)
EMU_VECTORS(long long, longlong, 16, 16)
EMU_VECTORS(unsigned long long, ulonglong, 16, 16)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// ---------------------------------------------------------------- built-in variables
// Ordinary globals that the scheduler sets before a thread goes on, so that gdb can print them.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;
