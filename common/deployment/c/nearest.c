/* The integer that is nearest to a float, half to even; beyond 512 one that is more than any output. Neither the bits
 * of the float nor an instruction can be fused with the product before. */
static inline int32_t nearest(float value)
{
#if defined(__ARM_FP) && __ARM_FP & 4 && defined(__ARM_FEATURE_SAT)
  float bits;
  int32_t integer;
  __asm__("vcvtr.s32.f32 %0, %1" : "=t"(bits) : "t"(value));
  memcpy(&integer, &bits, sizeof integer);
  __asm__("ssat %0, #16, %0" : "+r"(integer));
  return integer;
#else
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t exponent = bits >> 23 & 255, mantissa = (bits & 0x7fffff) | 0x800000;
  int32_t magnitude = exponent < 126 ? 0 : 512;
  if (exponent >= 126 && exponent < 136) { /* from 0.5 to 512: mantissa / 2^fraction */
    const uint32_t fraction = 150 - exponent, half = 1u << (fraction - 1), odd = mantissa >> fraction & 1;
    magnitude = (int32_t)((mantissa + half - 1 + odd) >> fraction);
  }
  return bits >> 31 ? -magnitude : magnitude;
#endif
}
