/* The inner loops for weights of 4 bits: [groups][outputs / 4][values / 8][4 outputs][4 bytes], with zeros where there
 * are not 4 outputs or 8 values. The lower halves of 4 bytes are values 0 to 3, the upper halves values 4 to 7. In the
 * upper half of a byte a weight counts 16 times, and so do the sums. Up to 4 values after a pixel are read, and do not
 * count. */
static inline const int8_t *four_outputs(const struct weighted *layer, int size, int group, int o)
{
  const int blocks = padded(layer->outputs / layer->groups) / 4;
  return layer->weights + (group * blocks + o / 4) * 2 * ((size + 7) & ~7);
}

#if defined(WIDE)
#define UPPER 0xf0f0f0f0u

/* The outputs of a group, of one pixel or two: two outputs of two pixels at a time. */
static void products4(const struct weighted *layer, const int8_t *pixels, int size, int count, int group,
                      int8_t *output)
{
  const int outputs = layer->outputs / layer->groups, row = padded(size), first = group * outputs;
  int8_t *const next = count > 1 ? output + layer->outputs : output;
  for (int o = 0; o < outputs; o += 2) {
    const int8_t *v = four_outputs(layer, size, group, o) + o % 4 * 4;
    const int8_t *x = pixels, *z = count > 1 ? x + 2 * row : x;
    int32_t a = 0, b = 0, c = 0, d = 0;
    for (const int8_t *const end = x + 2 * row; x < end;) {
      uint32_t V, U;
      int32_t x_even, x_odd;
      LOAD(V, U, v, 16);
      for (int half = 0; half < 2; half++) {
        const uint32_t p = (half ? V : V << 4) & UPPER, q = (half ? U : U << 4) & UPPER;
        const int32_t v_even = even(p), u_even = even(q), v_odd = odd(p), u_odd = odd(q);
        LOAD(x_even, x_odd, x, 8);
        a = dual(x_odd, v_odd, dual(x_even, v_even, a));
        b = dual(x_odd, u_odd, dual(x_even, u_even, b));
        LOAD(x_even, x_odd, z, 8);
        c = dual(x_odd, v_odd, dual(x_even, v_even, c));
        d = dual(x_odd, u_odd, dual(x_even, u_even, d));
      }
    }
    requantize(layer, first + o, a / 16, c / 16, output, next);
    if (o + 1 < outputs) requantize(layer, first + o + 1, b / 16, d / 16, output, next);
  }
}
#elif defined(__ARM_FEATURE_DOTPROD)
/* The outputs of a group, of `count` pixels: four outputs of two pixels at a time (SDOT). */
static void products4(const struct weighted *layer, const int8_t *pixels, int size, int count, int group,
                      int8_t *output)
{
  const int outputs = layer->outputs / layer->groups, row = padded(size), first = group * outputs;
  for (; count > 0; count -= 2, pixels += 2 * row, output += 2 * layer->outputs) {
    int8_t *const next = count > 1 ? output + layer->outputs : output;
    for (int o = 0; o < outputs; o += 4) {
      const int8_t *v = four_outputs(layer, size, group, o), *x = pixels, *z = count > 1 ? x + row : x;
      int32x4_t sums = vdupq_n_s32(0), next_sums = sums;
      for (const int8_t *const end = x + row; x < end; v += 16, x += 8, z += 8) {
        const int8x16_t both = vld1q_s8(v), low = vshlq_n_s8(both, 4), high = vandq_s8(both, vdupq_n_s8(-16));
        sums = vdotq_s32(vdotq_s32(sums, low, four_times(x)), high, four_times(x + 4));
        next_sums = vdotq_s32(vdotq_s32(next_sums, low, four_times(z)), high, four_times(z + 4));
      }
      int32_t each[4], next_each[4];
      vst1q_s32(each, sums);
      vst1q_s32(next_each, next_sums);
      for (int k = 0; k < 4 && o + k < outputs; k++)
        requantize(layer, first + o + k, each[k] / 16, next_each[k] / 16, output, next);
    }
  }
}
#else
/* The outputs of a group, of `count` pixels: two outputs of two pixels at a time. */
static void products4(const struct weighted *layer, const int8_t *pixels, int size, int count, int group,
                      int8_t *output)
{
  const int outputs = layer->outputs / layer->groups, row = padded(size), first = group * outputs;
  for (; count > 0; count -= 2, pixels += 2 * row, output += 2 * layer->outputs) {
    int8_t *const next = count > 1 ? output + layer->outputs : output;
    for (int o = 0; o < outputs; o += 2) {
      const int8_t *v = four_outputs(layer, size, group, o) + o % 4 * 4;
      const int8_t *x = pixels, *z = count > 1 ? x + row : x;
      int32_t a = 0, b = 0, c = 0, d = 0;
      for (const int8_t *const end = x + row; x < end; v += 16, x += 8, z += 8)
        for (int k = 0; k < 4; k++) {
          const int low = (int8_t)(v[k] * 16), high = v[k] & -16;
          const int next_low = (int8_t)(v[k + 4] * 16), next_high = v[k + 4] & -16;
          a += x[k] * low + x[k + 4] * high;
          b += x[k] * next_low + x[k + 4] * next_high;
          c += z[k] * low + z[k + 4] * high;
          d += z[k] * next_low + z[k + 4] * next_high;
        }
      requantize(layer, first + o, a / 16, c / 16, output, next);
      if (o + 1 < outputs) requantize(layer, first + o + 1, b / 16, d / 16, output, next);
    }
  }
}
#endif
