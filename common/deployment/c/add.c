/* The sum of two images, or of two vectors. */
struct sum {
#ifdef ROUND_ONCE
  double scale_a, scale_b, scale_out;
#else
  int32_t multiplier_a, multiplier_b, multiplier_out; /* to twice the larger scale of a and b, and to the output */
  int8_t shift_a, shift_b, shift_out;
#endif
  int8_t zero_a, zero_b, zero_out, low;
};

#ifdef ROUND_ONCE
/* round(value) from -512 to 512, half to even: behind 1.5 * 2^52 a double has no bits for fractions */
static inline int32_t rounded(double value) {
  const double shifted = (value > 512 ? 512 : value < -512 ? -512 : value) + 6755399441055744.0;
  int64_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  return (int32_t)(bits - 0x4338000000000000);
}
#endif

/* `output` may be a or b */
static void add(const struct sum *s, const int8_t *a, const int8_t *b, int n, int8_t *output) {
  int i = 0;
#if defined(__ARM_FEATURE_MVE) && !defined(ROUND_ONCE)
  for (; i + 4 <= n; i += 4) {
    int32x4_t first = vshlq_n_s32(vsubq_n_s32(vldrbq_s32(a + i), s->zero_a), 20);
    int32x4_t second = vshlq_n_s32(vsubq_n_s32(vldrbq_s32(b + i), s->zero_b), 20);
    first = scaled4(first, vdupq_n_s32(s->multiplier_a), vdupq_n_s32(s->shift_a));
    second = scaled4(second, vdupq_n_s32(s->multiplier_b), vdupq_n_s32(s->shift_b));
    const int32x4_t multipliers = vdupq_n_s32(s->multiplier_out), shifts = vdupq_n_s32(s->shift_out);
    const int32x4_t sums = vaddq_n_s32(scaled4(vaddq_s32(first, second), multipliers, shifts), s->zero_out);
    vstrbq_s32(output + i, vmaxq_s32(vminq_s32(sums, vdupq_n_s32(127)), vdupq_n_s32(s->low)));
  }
#endif
  for (; i < n; i++) {
#ifdef ROUND_ONCE
    const double first = (a[i] - s->zero_a) * s->scale_a, second = (b[i] - s->zero_b) * s->scale_b;
    const int32_t value = rounded((first + second) / s->scale_out);
#else
    const int32_t first = scaled((a[i] - s->zero_a) * (1 << 20), s->multiplier_a, s->shift_a);
    const int32_t second = scaled((b[i] - s->zero_b) * (1 << 20), s->multiplier_b, s->shift_b);
    const int32_t value = scaled(first + second, s->multiplier_out, s->shift_out);
#endif
    output[i] = clamped(value + s->zero_out, s->low);
  }
}
