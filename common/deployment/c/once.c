/* Requantization with one rounding: the product in float32, half to even, as in ONNX Runtime and XNNPACK. */

/* round(sum * multiplier) from -512 to 512, with the bits of the product: no compiler can fuse or reorder them */
static inline int32_t scaled(int32_t sum, float multiplier) {
  const float product = (float)sum * multiplier;
  uint32_t bits;
  memcpy(&bits, &product, sizeof bits);
  const uint32_t exponent = bits >> 23 & 255, mantissa = (bits & 0x7fffff) | 0x800000;
  int32_t size = exponent < 126 ? 0 : 512;
  if (exponent - 126 < 10) { /* from 0.5 to 512: mantissa / 2^right */
    const uint32_t right = 150 - exponent;
    size = (int32_t)((mantissa + (1u << (right - 1)) - 1 + (mantissa >> right & 1)) >> right);
  }
  return bits >> 31 ? -size : size;
}

#ifdef __ARM_FEATURE_MVE
/* The same for four sums */
static inline int32x4_t scaled4(int32x4_t sums, const float *multipliers) {
#if __ARM_FEATURE_MVE & 2
  return vcvtnq_s32_f32(vmulq_f32(vcvtq_f32_s32(sums), vldrwq_f32(multipliers)));
#else
  int32_t each[4];
  vst1q_s32(each, sums);
  for (int i = 0; i < 4; i++) each[i] = scaled(each[i], multipliers[i]);
  return vld1q_s32(each);
#endif
}
#endif
