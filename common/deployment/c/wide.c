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

/* The sum and the products of both halves */
static inline int32_t dual(int32_t a, int32_t b, int32_t sum)
{
  __asm__("smlad %0, %1, %2, %0" : "+r"(sum) : "r"(a), "r"(b));
  return sum;
}

/* Loads two words, and moves the pointer on. */
#define LOAD(first, second, from, step)                \
  __asm__("ldrd %0, %1, [%2], %3"                      \
          : "=&r"(first), "=&r"(second), "+r"(from)    \
          : "i"(step), "m"(*(const int8_t(*)[8])(from)))
#endif
#endif
