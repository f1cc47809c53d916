/* One kernel for each channel; the weights are [rows][columns][channels]. The output may begin `left` pixels
 * before the first row that is read: what two pixels read of a channel is read before they are written. */

/* Writes into every second place of `tap` where the values of a pixel are; `outside` stands for those that are not in
 * the image. */
static void find_taps(const struct weighted *layer, const int8_t *const *rows, int column, const int8_t *outside,
                      const int8_t **tap)
{
  for (int k = 0; k < layer->kernel_rows; k++)
    for (int j = 0; j < layer->kernel_columns; j++, tap += 2) {
      const int c = column + j * layer->dilation;
      *tap = rows[k] && c >= 0 && c < layer->columns ? rows[k] + c * layer->channels : outside;
    }
}

/* The outputs of two pixels */
static void filter(const struct weighted *layer, const int8_t *const *taps, int8_t *output, int8_t *next)
{
#ifdef FOUR_BITS
  if (layer->bits == 4) {
    filter4(layer, taps, output, next);
    return;
  }
#endif
  const int channels = layer->channels;
  const int8_t *const *const end = taps + 2 * layer->kernel_rows * layer->kernel_columns, *const *tap;
  int c = 0;
#if defined(__ARM_FEATURE_MVE)
  for (; c + 8 <= channels; c += 8) { /* VMULLB and VMULLT multiply the even and the odd ones of 8 channels */
    const int8_t *w = layer->weights + c;
    int32x4x2_t sums = {{vdupq_n_s32(0), vdupq_n_s32(0)}}, next_sums = sums;
    for (tap = taps; tap < end; tap += 2, w += channels) {
      const int16x8_t v = vldrbq_s16(w), x = vldrbq_s16(tap[0] + c), z = vldrbq_s16(tap[1] + c);
      sums.val[0] = vaddq_s32(sums.val[0], vmullbq_int_s16(x, v));
      sums.val[1] = vaddq_s32(sums.val[1], vmulltq_int_s16(x, v));
      next_sums.val[0] = vaddq_s32(next_sums.val[0], vmullbq_int_s16(z, v));
      next_sums.val[1] = vaddq_s32(next_sums.val[1], vmulltq_int_s16(z, v));
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
  for (; c + 4 <= channels; c += 4) { /* 4 channels in two words, multiplied half by half (SMLABB, SMLATT) */
    const int8_t *w = layer->weights + c;
    int32_t a = 0, b = 0, d = 0, e = 0, next_a = 0, next_b = 0, next_d = 0, next_e = 0;
    for (tap = taps; tap < end; tap += 2, w += channels) {
      const uint32_t W = word(w), X = word(tap[0] + c), Z = word(tap[1] + c);
      const int32_t w_even = even(W), x_even = even(X), z_even = even(Z);
      a += (int16_t)w_even * (int16_t)x_even;
      d += (w_even >> 16) * (x_even >> 16);
      next_a += (int16_t)w_even * (int16_t)z_even;
      next_d += (w_even >> 16) * (z_even >> 16);
      const int32_t w_odd = odd(W), x_odd = odd(X), z_odd = odd(Z);
      b += (int16_t)w_odd * (int16_t)x_odd;
      e += (w_odd >> 16) * (x_odd >> 16);
      next_b += (int16_t)w_odd * (int16_t)z_odd;
      next_e += (w_odd >> 16) * (z_odd >> 16);
    }
    requantize(layer, c, a, next_a, output, next);
    requantize(layer, c + 1, b, next_b, output, next);
    requantize(layer, c + 2, d, next_d, output, next);
    requantize(layer, c + 3, e, next_e, output, next);
  }
#endif
  for (; c < channels; c++) {
    const int8_t *w = layer->weights + c;
    int32_t sum = 0, next_sum = 0;
    for (tap = taps; tap < end; tap += 2, w += channels) {
      sum += *w * tap[0][c];
      next_sum += *w * tap[1][c];
    }
    requantize(layer, c, sum, next_sum, output, next);
  }
}

static void depthwise(const struct weighted *layer, const int8_t *const *rows, int8_t *scratch, int8_t *output)
{
  const int8_t *taps[2 * TAPS];
  memset(scratch, layer->zero_in, layer->channels);
  for (int p = 0; p < layer->output_columns; p += 2, output += 2 * layer->channels) {
    const int second = p + 1 < layer->output_columns, column = p * layer->stride - layer->left;
    find_taps(layer, rows, column, scratch, taps);
    find_taps(layer, rows, column + second * layer->stride, scratch, taps + 1);
    filter(layer, taps, output, output + second * layer->channels);
  }
}
