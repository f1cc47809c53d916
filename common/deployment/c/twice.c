/* Requantization with two roundings: gemmlowp's fixed-point arithmetic (Jacob et al., CVPR 2018, section 2.2). */

/* (2 * a * b) / 2^32, rounded; |a| < 2^30 */
static inline int32_t high_product(int32_t a, int32_t b) {
#ifdef __ARM_FEATURE_SIMD32
  int32_t product;
  __asm__("smmulr %0, %1, %2" : "=r"(product) : "r"(2 * a), "r"(b));
  return product;
#else
  return (int32_t)(((int64_t)a * b + (1 << 30)) >> 31);
#endif
}

/* a / 2^bits, a half rounds away from zero */
static inline int32_t shifted(int32_t a, int bits) {
  return (a + ((1 << bits) >> 1) + ((a & -bits) >> 31)) >> bits;
}

/* sum * multiplier / 2^(31 + shift) */
static inline int32_t scaled(int32_t sum, int32_t multiplier, int shift) {
#ifdef LEFT_SHIFTS
  if (shift < 0) { /* saturates: a larger sum exceeds any output all the same */
    const int32_t limit = (1 << 29) >> -shift;
    sum = sum > limit ? limit : sum < -limit ? -limit : sum;
    return high_product(sum * (1 << -shift), multiplier);
  }
#endif
  return shifted(high_product(sum, multiplier), shift);
}

#ifdef __ARM_FEATURE_MVE
/* The same for four sums */
static inline int32x4_t scaled4(int32x4_t sums, int32x4_t multipliers, int32x4_t shifts) {
#ifdef LEFT_SHIFTS
  sums = vqshlq_s32(sums, vmaxq_s32(vnegq_s32(shifts), vdupq_n_s32(0)));
  shifts = vmaxq_s32(shifts, vdupq_n_s32(0));
#endif
  const int32x4_t right = vnegq_s32(shifts), products = vqrdmulhq_s32(sums, multipliers);
  return vrshlq_s32(vaddq_s32(products, vshrq_n_s32(vandq_s32(products, right), 31)), right);
}
#endif
