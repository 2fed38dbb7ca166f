// lane.cuh - a few neighbours in memory, loaded and stored at once.
#pragma once
#include "common.cuh"

// V neighbours; the address is a multiple of their size, or of 16 bytes.
template <class T, int V> struct __align__(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Lane { T v[V]; };
template <class T, int V> __device__ __forceinline__ Lane<T, V> load(const T* p) {
  return *reinterpret_cast<const Lane<T, V>*>(p);
}
template <class T, int V> __device__ __forceinline__ void store(T* p, const Lane<T, V>& x) {
  *reinterpret_cast<Lane<T, V>*>(p) = x;
}

