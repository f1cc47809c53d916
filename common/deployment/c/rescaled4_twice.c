#ifdef __ARM_FEATURE_MVE
#include <arm_mve.h>

/* `rescaled` of four sums */
static inline int32x4_t rescaled4(int32x4_t sums, int32x4_t multipliers, int32x4_t shifts)
{
#ifdef LEFT_SHIFTS
  sums = vqshlq_s32(sums, vmaxq_s32(vnegq_s32(shifts), vdupq_n_s32(0)));
  shifts = vmaxq_s32(shifts, vdupq_n_s32(0));
#endif
  const int32x4_t right = vnegq_s32(shifts), high = vqrdmulhq_s32(sums, multipliers);
  return vrshlq_s32(vaddq_s32(high, vshrq_n_s32(vandq_s32(high, right), 31)), right);
}
#endif
