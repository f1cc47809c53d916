/* The inner loops for weights of 4 bits: [groups][outputs / 4][values / 8][4 outputs][4 bytes], with zeros where there
 * are not 4 outputs or 8 values. The lower halves of 4 bytes are values 0 to 3, the upper halves values 4 to 7. In the
 * upper half of a byte a weight counts 16 times, and so do the sums. Up to 4 values after a pixel are read, and do not
 * count. */
static inline const int8_t *four_outputs(const struct weighted *layer, int size, int group, int o)
{
  const int blocks = padded(layer->outputs / layer->groups) / 4;
  return layer->weights + (group * blocks + o / 4) * 2 * ((size + 7) & ~7);
}

#if defined(__ARM_FEATURE_MVE)
/* The same 4 values for each of 4 outputs */
static inline int8x16_t repeated(const int8_t *x)
{
  uint32_t word;
  memcpy(&word, x, sizeof word);
  return vreinterpretq_s8_u32(vdupq_n_u32(word));
}

/* The products of neighbors, added: two sums for each output */
static inline int16x8_t pairs(int8x16_t x, int8x16_t v)
{
  return vaddq_s16(vmullbq_int_s8(x, v), vmulltq_int_s8(x, v));
}

/* Four outputs of a pixel, 8 values at a time; 16 bits hold the sums of 64 values: 32 * 7 * 128 = 28,672. */
static inline int32x4_t four_narrow_sums(const int8_t *x, const int8_t *v, int count)
{
  int32x4_t sums = vdupq_n_s32(0);
  while (count > 0) {
    int16x8_t part = vdupq_n_s16(0);
    for (int step = 0; step < 8 && count > 0; step++, count -= 8, x += 8, v += 16) {
      const int8x16_t both = vld1q_s8(v), low = vshrq_n_s8(vshlq_n_s8(both, 4), 4);
      part = vaddq_s16(part, vaddq_s16(pairs(repeated(x), low), pairs(repeated(x + 4), vshrq_n_s8(both, 4))));
    }
    sums = vaddq_s32(sums, vaddq_s32(vmovlbq_s16(part), vmovltq_s16(part)));
  }
  return sums;
}

/* The outputs of a group, of `count` pixels */
static void products4(const struct weighted *layer, const int8_t *pixels, int size, int count, int group,
                      int8_t *output)
{
  const int all = layer->outputs, outputs = all / layer->groups, row = padded(size), first = group * outputs;
  int o = 0;
  for (; o + 4 <= outputs; o += 4) {
    const struct four four = four_from(layer, first + o);
    const int8_t *v = four_outputs(layer, size, group, o);
    for (int p = 0; p < count; p++)
      requantize4(&four, four_narrow_sums(pixels + p * row, v, row), output + p * all + first + o);
  }
  for (int p = 0; o < outputs && p < count; p++) {
    int8_t *const to = output + p * all;
    int32_t sums[4];
    vst1q_s32(sums, four_narrow_sums(pixels + p * row, four_outputs(layer, size, group, o), row));
    for (int k = 0; o + k < outputs; k++) requantize(layer, first + o + k, sums[k], sums[k], to, to);
  }
}
#elif defined(WIDE)
#define UPPER 0xf0f0f0f0u

/* 4 values of two pixels, and the weights of two outputs in the upper halves of the bytes */
#define FOUR_VALUES(p, q)                                                                   \
  {                                                                                         \
    const int32_t v_even = even(p), u_even = even(q), v_odd = odd(p), u_odd = odd(q);       \
    LOAD(x_even, x_odd, x, 8);                                                              \
    a = dual(x_odd, v_odd, dual(x_even, v_even, a));                                        \
    b = dual(x_odd, u_odd, dual(x_even, u_even, b));                                        \
    LOAD(x_even, x_odd, z, 8);                                                              \
    c = dual(x_odd, v_odd, dual(x_even, v_even, c));                                        \
    d = dual(x_odd, u_odd, dual(x_even, u_even, d));                                        \
  }

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
      FOUR_VALUES(V << 4 & UPPER, U << 4 & UPPER)
      FOUR_VALUES(V & UPPER, U & UPPER)
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
