#include "narrow.h"

/* In C because it passes over every token of every batch, and C compilers make vector instructions of it (Go's does not). */
static inline __attribute__((always_inline)) uint64_t narrow(uint32_t* restrict dst, const int64_t* restrict src, int64_t n) {
  uint64_t above = 0;
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; i++) {
    uint32_t low = (uint32_t)src[i];
    above |= (uint64_t)src[i] >> 32;
    largest = low > largest ? low : largest;
    dst[i] = low;
  }
  return above != 0 ? UINT64_MAX : largest;
}

#if defined(__x86_64__)
__attribute__((target("avx2"), optimize("O3"))) static uint64_t narrow_avx2(uint32_t* dst, const int64_t* src, int64_t n) {
  return narrow(dst, src, n);
}
#endif

uint64_t toedit_narrow(uint32_t* dst, const int64_t* src, int64_t n) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) return narrow_avx2(dst, src, n);
#endif
  return narrow(dst, src, n);
}
