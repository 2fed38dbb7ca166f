// lane.cuh - a few neighbours in memory, loaded and stored at once.
#pragma once
#include "common.cuh"

// Neighbours that a thread of the norms and pools takes at once where rows allow it: 16 bytes, or 8 of
// 16-bit floats, whose sums are as wide as f32's. columns::group of the host says so too.
template <class T> constexpr int GROUP = sizeof(T) == 8 ? 2 : 4;

// V neighbours; the address is a multiple of their size, or of 16 bytes.
template <class T, int V> struct __align__(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Lane { T v[V]; };
template <class T, int V> __device__ __forceinline__ Lane<T, V> load(const T* p) {
  return *reinterpret_cast<const Lane<T, V>*>(p);
}
template <class T, int V> __device__ __forceinline__ void store(T* p, const Lane<T, V>& x) {
  *reinterpret_cast<Lane<T, V>*>(p) = x;
}

