#ifdef __ARM_FEATURE_MVE
#include <arm_mve.h>

/* `rescaled` of four sums */
static inline int32x4_t rescaled4(int32x4_t sums, const float *multipliers)
{
#if __ARM_FEATURE_MVE & 2
  return vcvtnq_s32_f32(vmulq_f32(vcvtq_f32_s32(sums), vld1q_f32(multipliers)));
#else
  int32_t each[4];
  vst1q_s32(each, sums);
  for (int k = 0; k < 4; k++) each[k] = rescaled(each[k], multipliers[k]);
  return vld1q_s32(each);
#endif
}
#endif
