// matrix.h - the functions that are inline PTX on the device (same names as in common.cuh): asynchronous copies and
// matrix instructions. Fragments lie as the PTX ISA's chapter on mma.m16n8k16 draws them, so a wrong index in a
// kernel gives wrong numbers here too.
#pragma once

inline unsigned smem_u32(const void* p) { return emu::shared_address(p); }

// ---------------------------------------------------------------- asynchronous copies
inline void cp_async16(void* shared, const void* global, bool valid = true) {
  emu::cp_async(shared, global, 16, valid);
}
inline void cp_async4(void* shared, const void* global, bool valid = true) { emu::cp_async(shared, global, 4, valid); }
inline void cp_async_commit() { emu::cp_async_commit(); }
template <int N> inline void cp_async_wait() { emu::cp_async_wait(N); }

namespace emu {

// ---------------------------------------------------------------- ldmatrix
// Each lane gets two neighbours of each 8x8 matrix: row lane / 4, columns 2 (lane % 4) and the next; with `trans`
// rows and columns change places.
struct LoadMatrix {
  unsigned* registers;
  uint32_t address;  // lanes 8 m to 8 m + 7 give the rows of matrix m
};
template <int MATRICES, bool TRANS> EMU_NO_TSAN inline void meet_ldmatrix(void** payloads, unsigned mask) {
  if (mask != 0xffffffffu) fail("ldmatrix: not all 32 lanes are there (mask %08x)", mask);
  for (int m = 0; m < MATRICES; m++) {
    uint16_t matrix[8][8];
    unsigned used_banks = 0;
    bool conflict = false;
    for (int row = 0; row < 8; row++) {
      uint32_t address = ((LoadMatrix*)payloads[m * 8 + row])->address;
      memcpy(matrix[row], shared_pointer(address, 16, 16), 16);
      unsigned banks = 1u << (address / 16 % 8);  // 8 groups of 4 banks: a row fills one
      conflict |= (used_banks & banks) != 0;
      used_banks |= banks;
    }
    stats.ldmatrix_reads++;
    stats.ldmatrix_conflicts += conflict;
    for (int l = 0; l < 32; l++) {
      int i = l / 4, j = l % 4 * 2;
      unsigned first = TRANS ? matrix[j][i] : matrix[i][j];
      unsigned second = TRANS ? matrix[j + 1][i] : matrix[i][j + 1];
      ((LoadMatrix*)payloads[l])->registers[m] = first | second << 16;
    }
  }
}
template <int MATRICES, bool TRANS>
EMU_NO_TSAN inline void ldmatrix(unsigned (&registers)[MATRICES], unsigned address, Site here) {
  LoadMatrix load{registers, address};
  if (lane < 8 * MATRICES) note_shared_read(address, 16);
  warp_op(0xffffffffu, here, "ldmatrix", &load, meet_ldmatrix<MATRICES, TRANS>);
}

// ---------------------------------------------------------------- mma
struct Mma {
  float* c;
  const unsigned *a, *b;
};
template <class T> T from_bits(uint16_t bits) { return bits_as<T>(bits); }
template <class T> EMU_NO_TSAN inline void meet_mma(void** payloads, unsigned mask) {
  if (mask != 0xffffffffu) fail("mma: not all 32 lanes are there (mask %08x)", mask);
  auto low = [](unsigned pair) { return (float)from_bits<T>((uint16_t)pair); };
  auto high = [](unsigned pair) { return (float)from_bits<T>((uint16_t)(pair >> 16)); };
  float a[16][16], b[16][8];
  for (int l = 0; l < 32; l++) {
    const Mma& m = *(Mma*)payloads[l];
    int group = l / 4, pair = l % 4 * 2;
    for (int r = 0; r < 4; r++) {
      int row = group + r % 2 * 8, column = pair + r / 2 * 8;
      a[row][column] = low(m.a[r]);
      a[row][column + 1] = high(m.a[r]);
    }
    for (int r = 0; r < 2; r++) {
      int row = pair + r * 8;
      b[row][group] = low(m.b[r]);
      b[row + 1][group] = high(m.b[r]);
    }
  }
  float product[16][8] = {};
  for (int k = 0; k < 16; k++) {
    for (int i = 0; i < 16; i++) {
      for (int j = 0; j < 8; j++) product[i][j] += a[i][k] * b[k][j];
    }
  }
  for (int l = 0; l < 32; l++) {
    const Mma& m = *(Mma*)payloads[l];
    int group = l / 4, pair = l % 4 * 2;
    for (int r = 0; r < 4; r++) m.c[r] += product[group + r / 2 * 8][pair + r % 2];
  }
}
template <class T>
EMU_NO_TSAN inline void mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], Site here) {
  Mma m{c, a, b};
  warp_op(0xffffffffu, here, "mma", &m, meet_mma<T>);
}

}  // namespace emu

inline void ldmatrix_x4(unsigned (&r)[4], unsigned address, emu::Site here = emu::Site::here()) {
  emu::ldmatrix<4, false>(r, address, here);
}
inline void ldmatrix_x4_trans(unsigned (&r)[4], unsigned address, emu::Site here = emu::Site::here()) {
  emu::ldmatrix<4, true>(r, address, here);
}
inline void ldmatrix_x2(unsigned (&r)[2], unsigned address, emu::Site here = emu::Site::here()) {
  emu::ldmatrix<2, false>(r, address, here);
}
inline void ldmatrix_x2_trans(unsigned (&r)[2], unsigned address, emu::Site here = emu::Site::here()) {
  emu::ldmatrix<2, true>(r, address, here);
}
inline void mma_m16n8k16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], __nv_bfloat16,
                         emu::Site here = emu::Site::here()) {
  emu::mma<__nv_bfloat16>(c, a, b, here);
}
inline void mma_m16n8k16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], __half,
                         emu::Site here = emu::Site::here()) {
  emu::mma<__half>(c, a, b, here);
}
