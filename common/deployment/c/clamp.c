static inline int8_t clamp(int32_t value, int low)
{
#ifdef __ARM_FEATURE_SAT
  __asm__("ssat %0, #8, %0" : "+r"(value));
#else
  value = value > 127 ? 127 : value < -128 ? -128 : value;
#endif
#ifdef LOWS /* some layer has a ReLU whose zero point is not -128 */
  if (value < low) value = low;
#endif
  (void)low;
  return (int8_t)value;
}
