/* Instructions of Cortex-M4, M7 and M33 for two integers of 16 bits in a word. As intrinsics, gcc 12 neither moves
 * nor merges them. */
#if defined(__ARM_FEATURE_SIMD32) && defined(__thumb2__) && !defined(__ARM_BIG_ENDIAN)
#ifndef __ARM_FEATURE_MVE
#define WIDE

static inline uint32_t word(const int8_t *bytes)
{
  uint32_t value;
  memcpy(&value, bytes, sizeof value);
  return value;
}

/* Bytes 0 and 2, widened */
static inline int32_t even(uint32_t bytes)
{
  int32_t pair;
  __asm__("sxtb16 %0, %1" : "=r"(pair) : "r"(bytes));
  return pair;
}

/* Bytes 1 and 3, widened */
static inline int32_t odd(uint32_t bytes)
{
  int32_t pair;
  __asm__("sxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(bytes));
  return pair;
}
#endif
#endif
