// warp.h - where threads meet: barriers, shuffles, votes and reductions of a warp.
#pragma once

inline void __syncthreads(emu::Site here = emu::Site::here()) { emu::barrier(here); }
inline void __syncwarp(unsigned mask = 0xffffffffu, emu::Site here = emu::Site::here()) {
  emu::warp_barrier(mask, here);
}
inline unsigned __activemask() { return emu::live_lanes(); }

namespace emu {

// ---------------------------------------------------------------- shuffles
struct Shuffle {
  uint64_t value, result;
  int source;  // lane
};
EMU_NO_TSAN inline void meet_shuffle(void** payloads, unsigned) {
  for (int l = 0; l < 32; l++) {
    Shuffle* mine = (Shuffle*)payloads[l];
    if (!mine) continue;
    Shuffle* theirs = (Shuffle*)payloads[mine->source];
    mine->result = theirs ? theirs->value : ~0ull;  // an absent lane's value is undefined: NaN, -1
  }
}
template <class T> EMU_NO_TSAN inline T shuffle(unsigned mask, T value, int source, Site here) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  Shuffle s{0, 0, source & 31};
  memcpy(&s.value, &value, sizeof value);
  warp_op(mask, here, "shuffle", &s, meet_shuffle);
  memcpy(&value, &s.result, sizeof value);
  return value;
}
// The first lane of the running lane's segment, for segments of `width` lanes.
inline int segment(int width) { return (int)lane & (32 - width); }

}  // namespace emu

template <class T>
inline T __shfl_sync(unsigned mask, T v, int source, int width = 32, emu::Site here = emu::Site::here()) {
  return emu::shuffle(mask, v, emu::segment(width) | (source & (width - 1)), here);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, emu::Site here = emu::Site::here()) {
  int source = (int)emu::lane - (int)delta;
  return emu::shuffle(mask, v, source < emu::segment(width) ? (int)emu::lane : source, here);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, emu::Site here = emu::Site::here()) {
  int source = (int)emu::lane + (int)delta;
  return emu::shuffle(mask, v, source >= emu::segment(width) + width ? (int)emu::lane : source, here);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32, emu::Site here = emu::Site::here()) {
  int source = (int)emu::lane ^ lanes;
  return emu::shuffle(mask, v, source >= emu::segment(width) + width ? (int)emu::lane : source, here);
}

// ---------------------------------------------------------------- votes
namespace emu {
struct Vote {
  bool yes;
  unsigned result;
};
EMU_NO_TSAN inline void meet_vote(void** payloads, unsigned) {
  unsigned ballot = 0;
  for (int l = 0; l < 32; l++) {
    if (payloads[l] && ((Vote*)payloads[l])->yes) ballot |= 1u << l;
  }
  for (int l = 0; l < 32; l++) {
    if (payloads[l]) ((Vote*)payloads[l])->result = ballot;
  }
}
EMU_NO_TSAN inline unsigned vote(unsigned mask, bool yes, Site here) {
  Vote v{yes, 0};
  warp_op(mask, here, "vote", &v, meet_vote);
  return v.result;
}
}  // namespace emu
inline unsigned __ballot_sync(unsigned mask, int yes, emu::Site here = emu::Site::here()) {
  return emu::vote(mask, yes != 0, here);
}
inline int __any_sync(unsigned mask, int yes, emu::Site here = emu::Site::here()) {
  return emu::vote(mask, yes != 0, here) != 0;
}
inline int __all_sync(unsigned mask, int yes, emu::Site here = emu::Site::here()) {
  return emu::vote(mask, yes == 0, here) == 0;
}

// ---------------------------------------------------------------- reductions of integers
namespace emu {
struct Reduce {
  long long value, result;
  char op;
};
EMU_NO_TSAN inline void meet_reduce(void** payloads, unsigned mask) {
  long long all = ((Reduce*)payloads[__builtin_ctz(mask)])->value;
  for (unsigned rest = mask & (mask - 1); rest; rest &= rest - 1) {
    Reduce* r = (Reduce*)payloads[__builtin_ctz(rest)];
    switch (r->op) {
      case '+': all += r->value; break;
      case '<': all = std::min(all, r->value); break;
      case '>': all = std::max(all, r->value); break;
      case '&': all &= r->value; break;
      case '|': all |= r->value; break;
    }
  }
  for (unsigned rest = mask; rest; rest &= rest - 1) ((Reduce*)payloads[__builtin_ctz(rest)])->result = all;
}
template <class T> EMU_NO_TSAN inline T reduce(unsigned mask, T value, char op, Site here) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>, "the device reduces 32-bit integers alone");
  Reduce r{(long long)value, 0, op};
  warp_op(mask, here, "reduce", &r, meet_reduce);
  return (T)r.result;
}
}  // namespace emu
#define EMU_REDUCE(NAME, OP)                                                                    \
  template <class T> inline T NAME(unsigned mask, T v, emu::Site here = emu::Site::here()) {    \
    return emu::reduce(mask, v, OP, here);                                                      \
  }
EMU_REDUCE(__reduce_add_sync, '+')
EMU_REDUCE(__reduce_min_sync, '<')
EMU_REDUCE(__reduce_max_sync, '>')
EMU_REDUCE(__reduce_and_sync, '&')
EMU_REDUCE(__reduce_or_sync, '|')
#undef EMU_REDUCE
