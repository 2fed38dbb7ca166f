// language.h - CUDA's keywords, shared memory, and how a kernel is declared.
#pragma once

// ---------------------------------------------------------------- keywords
#define __CUDACC__ 1
#define __CUDA_ARCH__ 800
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
#undef assert
#define assert(c) ((c) ? (void)0 : emu::fail("%s:%d: assertion failed: %s", __FILE__, __LINE__, #c))
inline void __trap() { emu::fail("__trap()"); }

// ---------------------------------------------------------------- shared memory
// Static arrays are what C++ calls static. Those of one file (EMU_TU is its name) are put beside each other by build.rs,
// in a section whose bounds the linker knows: the runtime fills it with NaN before each block. (An attribute cannot say
// so: gcc drops it in a template.)
#define __shared__ static
#define EMU_JOIN_(a, b) a##b
#define EMU_JOIN(a, b) EMU_JOIN_(a, b)
#define EMU_SHARED_BEGIN EMU_JOIN(__start_emu_shared_, EMU_TU)
#define EMU_SHARED_END EMU_JOIN(__stop_emu_shared_, EMU_TU)
extern "C" char EMU_SHARED_BEGIN[] __attribute__((weak, visibility("hidden")));  // null: the file has none
extern "C" char EMU_SHARED_END[] __attribute__((weak, visibility("hidden")));

// Dynamic shared memory as an array of T.
#define DYN_SMEM(T, name) T* name = reinterpret_cast<T*>(emu::dynamic_shared())

// ---------------------------------------------------------------- kernels
namespace emu {

template <class T> char element_letter() {
  using E = std::remove_cv_t<T>;
  if (std::is_same_v<E, float>) return 'f';
  if (std::is_same_v<E, double>) return 'd';
  if (std::is_same_v<E, __nv_bfloat16>) return 'b';
  if (std::is_same_v<E, __half>) return 'h';
  if (std::is_same_v<E, long long> || std::is_same_v<E, long>) return 'l';
  if (std::is_same_v<E, unsigned char>) return 'c';
  if (std::is_same_v<E, int>) return 'i';
  if (std::is_same_v<E, unsigned>) return 'u';
  return 'v';
}

// One parameter of a signature (device.h lists them).
template <class T> std::string parameter() {
  if constexpr (std::is_pointer_v<T>) {
    using E = std::remove_pointer_t<T>;
    return std::string(1, std::is_const_v<E> ? 'r' : 'p') + element_letter<E>();
  } else if constexpr (std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, long long> ||
                       std::is_same_v<T, long> || std::is_same_v<T, float> || std::is_same_v<T, double>) {
    return std::string(1, element_letter<T>());
  } else {
    static_assert(std::is_trivially_copyable_v<T>, "a kernel's parameter is copied byte by byte");
    return "{" + std::to_string(sizeof(T)) + "}";
  }
}

// Calls a kernel with arguments given by address, as the driver's cuLaunchKernel does.
template <class F, F* kernel> struct Adapter;
template <class... P, void (*kernel)(P...)> struct Adapter<void(P...), kernel> {
  template <size_t... I> static void call_with(void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<P>*>(args[I])...);
  }
  static void call(void** args) { call_with(args, std::index_sequence_for<P...>{}); }
  static std::string signature() { return (std::string() + ... + parameter<P>()); }
};

}  // namespace emu

// KERNEL(threads, name, parameters...) { body }: `threads` is the most that a block may have.
#define KERNEL(THREADS, NAME, ...)                                                                              \
  extern "C" void NAME(__VA_ARGS__);                                                                            \
  static emu::Kernel EMU_JOIN(emu_kernel_, NAME)(#NAME, emu::Adapter<decltype(NAME), NAME>::signature(), THREADS, \
                                                 emu::Adapter<decltype(NAME), NAME>::call, EMU_SHARED_BEGIN,    \
                                                 EMU_SHARED_END);                                               \
  extern "C" void NAME(__VA_ARGS__)
