/* a + b: both times 2^20, scaled to twice the larger scale, added, and scaled to the output. */
struct sum {
  int32_t multipliers[3]; /* of a, of b, of their sum */
  int8_t shifts[3];
  int8_t zeros[3], low; /* zero points of a, b and the output; the smallest output */
};

#ifdef __ARM_FEATURE_MVE
/* Four values of a or b, scaled */
static inline int32x4_t summands(const struct sum *layer, int which, const int8_t *from)
{
  const int32x4_t values = vshlq_n_s32(vsubq_n_s32(vldrbq_s32(from), layer->zeros[which]), 20);
  return rescaled4(values, vdupq_n_s32(layer->multipliers[which]), vdupq_n_s32(layer->shifts[which]));
}
#endif

static void add(const struct sum *layer, const int8_t *a, const int8_t *b, int count, int8_t *output)
{
  int i = 0;
#ifdef __ARM_FEATURE_MVE
  for (; i + 4 <= count; i += 4) {
    const int32x4_t sums = vaddq_s32(summands(layer, 0, a + i), summands(layer, 1, b + i));
    int32x4_t values = rescaled4(sums, vdupq_n_s32(layer->multipliers[2]), vdupq_n_s32(layer->shifts[2]));
    values = vminq_s32(vqaddq_n_s32(values, layer->zeros[2]), vdupq_n_s32(127));
    vstrbq_s32(output + i, vmaxq_s32(values, vdupq_n_s32(layer->low)));
  }
#endif
  for (; i < count; i++) {
    const int32_t first = (a[i] - layer->zeros[0]) * (1 << 20), second = (b[i] - layer->zeros[1]) * (1 << 20);
    const int32_t sum = rescaled(first, layer->multipliers[0], layer->shifts[0])
                        + rescaled(second, layer->multipliers[1], layer->shifts[1]);
    output[i] = clamp(rescaled(sum, layer->multipliers[2], layer->shifts[2]) + layer->zeros[2], layer->low);
  }
}
