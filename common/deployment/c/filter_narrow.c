/* The outputs of two pixels of a depthwise convolution with weights of 4 bits, [rows][columns][channels / 2]: an even
 * channel in the lower half of a byte, the next one in the upper half. In the upper half a weight counts 16 times. */
static void filter4(const struct weighted *layer, const int8_t *const *taps, int8_t *output, int8_t *next)
{
  const int channels = layer->channels, row = (channels + 1) / 2;
  const int8_t *const *const end = taps + 2 * layer->kernel_rows * layer->kernel_columns, *const *tap;
  int c = 0;
#if defined(__ARM_FEATURE_MVE)
  for (; c + 8 <= channels; c += 8) { /* 4 even and 4 odd channels */
    const int8_t *w = layer->weights + c / 2;
    int32x4x2_t sums = {{vdupq_n_s32(0), vdupq_n_s32(0)}}, next_sums = sums;
    for (tap = taps; tap < end; tap += 2, w += row) {
      const int32x4_t both = vldrbq_s32(w), v = vshrq_n_s32(vshlq_n_s32(both, 28), 28), u = vshrq_n_s32(both, 4);
      const int16x8_t x = vldrbq_s16(tap[0] + c), z = vldrbq_s16(tap[1] + c);
      sums.val[0] = vaddq_s32(sums.val[0], vmulq_s32(vmovlbq_s16(x), v));
      sums.val[1] = vaddq_s32(sums.val[1], vmulq_s32(vmovltq_s16(x), u));
      next_sums.val[0] = vaddq_s32(next_sums.val[0], vmulq_s32(vmovlbq_s16(z), v));
      next_sums.val[1] = vaddq_s32(next_sums.val[1], vmulq_s32(vmovltq_s16(z), u));
    }
    int32_t each[8], next_each[8];
    vst2q_s32(each, sums);
    vst2q_s32(next_each, next_sums);
    for (int k = 0; k < 8; k += 4) {
      const struct four four = four_from(layer, c + k);
      requantize4(&four, vld1q_s32(next_each + k), next + c + k);
      requantize4(&four, vld1q_s32(each + k), output + c + k);
    }
  }
#elif defined(WIDE)
  for (; c + 4 <= channels; c += 4) {
    const int8_t *w = layer->weights + c / 2;
    int32_t a = 0, b = 0, d = 0, e = 0, next_a = 0, next_b = 0, next_d = 0, next_e = 0;
    for (tap = taps; tap < end; tap += 2, w += row) {
      const uint32_t W = (uint8_t)w[0] | (uint32_t)(uint8_t)w[1] << 16, X = word(tap[0] + c), Z = word(tap[1] + c);
      const int32_t w_even = even(W << 4 & 0xf000f0u), x_even = even(X), z_even = even(Z);
      a += (int16_t)w_even * (int16_t)x_even;
      d += (w_even >> 16) * (x_even >> 16);
      next_a += (int16_t)w_even * (int16_t)z_even;
      next_d += (w_even >> 16) * (z_even >> 16);
      const int32_t w_odd = even(W & 0xf000f0u), x_odd = odd(X), z_odd = odd(Z);
      b += (int16_t)w_odd * (int16_t)x_odd;
      e += (w_odd >> 16) * (x_odd >> 16);
      next_b += (int16_t)w_odd * (int16_t)z_odd;
      next_e += (w_odd >> 16) * (z_odd >> 16);
    }
    requantize(layer, c, a / 16, next_a / 16, output, next);
    requantize(layer, c + 1, b / 16, next_b / 16, output, next);
    requantize(layer, c + 2, d / 16, next_d / 16, output, next);
    requantize(layer, c + 3, e / 16, next_e / 16, output, next);
  }
#endif
  for (; c < channels; c++) {
    const int8_t *w = layer->weights + c / 2;
    int32_t sum = 0, next_sum = 0;
    for (tap = taps; tap < end; tap += 2, w += row) {
      const int value = c % 2 ? *w & -16 : (int8_t)(*w * 16);
      sum += value * tap[0][c];
      next_sum += value * tap[1][c];
    }
    requantize(layer, c, sum / 16, next_sum / 16, output, next);
  }
}
