/* A sum times a scale: multiplied by an integer of 31 bits, and shifted; both steps round. */

/* a * b / 2^31, a half rounds up; |a| < 2^30 */
static inline int32_t high_product(int32_t a, int32_t b)
{
#ifdef __ARM_FEATURE_SIMD32
  int32_t product;
  __asm__("smmulr %0, %1, %2" : "=r"(product) : "r"(2 * a), "r"(b));
  return product;
#else
  return (int32_t)(((int64_t)a * b + (1 << 30)) >> 31);
#endif
}

/* sum * multiplier / 2^(31 + shift); the shift rounds a half away from 0 */
static inline int32_t rescaled(int32_t sum, int32_t multiplier, int shift)
{
#ifdef LEFT_SHIFTS
  if (shift < 0) { /* a larger sum gives more than any output all the same */
    const int32_t limit = (1 << 29) >> -shift;
    sum = (sum > limit ? limit : sum < -limit ? -limit : sum) * (1 << -shift);
    shift = 0;
  }
#endif
  const int32_t high = high_product(sum, multiplier), half = (int32_t)((1u << shift) >> 1);
  return (high + half + ((high & -shift) >> 31)) >> shift;
}
