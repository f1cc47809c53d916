#ifdef __ARM_FEATURE_DOTPROD
#include <arm_neon.h>

/* The same 4 values for each of 4 outputs */
static inline int8x16_t four_times(const int8_t *x)
{
  int32_t word;
  memcpy(&word, x, sizeof word);
  return vreinterpretq_s8_s32(vdupq_n_s32(word));
}
#endif
