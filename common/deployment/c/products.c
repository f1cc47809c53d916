/* The inner loops of convolutions and linear layers. Weights are [groups][outputs / 4][values / 4][4][4], with
 * zeros where there are not 4 outputs or 4 values, and with 48 bytes at the end that may be read and do not count.
 * A value is one of a row, a column and a channel. */

static inline const int8_t *weights_of(const struct weighted *layer, int group, int size)
{
  return layer->weights + group * padded(layer->outputs / layer->groups) * padded(size);
}

#ifndef WIDE
#define PIXELS 4 /* that are gathered at a time */

/* Values at ... at + count - 1 of a gathered pixel */
static inline void put(int8_t *scratch, int size, int pixel, int at, const int8_t *from, int count)
{
  memcpy(scratch + pixel * padded(size) + at, from, (size_t)count);
}
#endif

#if defined(__ARM_FEATURE_MVE)
/* Four outputs of a pixel, 16 values at a time: VLD4 separates the outputs, VMLADAVA adds 16 products. */
static inline int32x4_t four_sums(const int8_t *x, const int8_t *v, int count)
{
  int32_t a = 0, b = 0, c = 0, d = 0;
  for (; count >= 16; count -= 16, x += 16, v += 64) {
    const int8x16_t values = vld1q_s8(x);
    const int32x4x4_t w = vld4q_s32((const int32_t *)(const void *)v);
    a = vmladavaq_s8(a, values, vreinterpretq_s8_s32(w.val[0]));
    b = vmladavaq_s8(b, values, vreinterpretq_s8_s32(w.val[1]));
    c = vmladavaq_s8(c, values, vreinterpretq_s8_s32(w.val[2]));
    d = vmladavaq_s8(d, values, vreinterpretq_s8_s32(w.val[3]));
  }
  if (count > 0) { /* the rest, and zeros */
    const int8x16_t values = vldrbq_z_s8(x, vctp8q((uint32_t)count));
    const int32x4x4_t w = vld4q_s32((const int32_t *)(const void *)v);
    a = vmladavaq_s8(a, values, vreinterpretq_s8_s32(w.val[0]));
    b = vmladavaq_s8(b, values, vreinterpretq_s8_s32(w.val[1]));
    c = vmladavaq_s8(c, values, vreinterpretq_s8_s32(w.val[2]));
    d = vmladavaq_s8(d, values, vreinterpretq_s8_s32(w.val[3]));
  }
  const int32_t sums[4] = {a, b, c, d};
  return vld1q_s32(sums);
}

/* The outputs of a group, of `count` pixels */
static void products(const struct weighted *layer, const int8_t *pixels, int size, int count, int group,
                     int8_t *output)
{
#ifdef FOUR_BITS
  if (layer->bits == 4) {
    products4(layer, pixels, size, count, group, output);
    return;
  }
#endif
  const int all = layer->outputs, outputs = all / layer->groups, row = padded(size), end = (group + 1) * outputs;
  const int8_t *v = weights_of(layer, group, size);
  int o = group * outputs;
  for (; o + 4 <= end; o += 4, v += 4 * row) {
    const struct four four = four_from(layer, o);
    for (int p = 0; p < count; p++) requantize4(&four, four_sums(pixels + p * row, v, row), output + p * all + o);
  }
  for (int p = 0; o < end && p < count; p++) {
    int8_t *const to = output + p * all;
    int32_t sums[4];
    vst1q_s32(sums, four_sums(pixels + p * row, v, row));
    for (int k = 0; o + k < end; k++) requantize(layer, o + k, sums[k], sums[k], to, to);
  }
}
#elif defined(WIDE)
#define PIXELS 2

/* Gathered pixels are widened, with the second and the third of 4 values exchanged as in `even` and `odd`. */
static inline void put(int8_t *scratch, int size, int pixel, int at, const int8_t *from, int count)
{
  int8_t *const to = scratch + 2 * pixel * padded(size);
  for (; at % 4 == 0 && count >= 4; at += 4, from += 4, count -= 4) {
    const int32_t pairs[2] = {even(word(from)), odd(word(from))};
    memcpy(to + 2 * at, pairs, sizeof pairs);
  }
  for (; count > 0; at++, count--) {
    const int16_t value = *from++;
    memcpy(to + 2 * (at & ~3) + at % 2 * 4 + at % 4 / 2 * 2, &value, sizeof value);
  }
}

/* The outputs of a group, of one pixel or two: two outputs of two pixels at a time. */
static void products(const struct weighted *layer, const int8_t *pixels, int size, int count, int group,
                     int8_t *output)
{
#ifdef FOUR_BITS
  if (layer->bits == 4) {
    products4(layer, pixels, size, count, group, output);
    return;
  }
#endif
  const int outputs = layer->outputs / layer->groups, row = padded(size), first = group * outputs;
  int8_t *const next = count > 1 ? output + layer->outputs : output;
  const int8_t *v = weights_of(layer, group, size);
  for (int o = 0; o < outputs; o += 2, v += o % 4 ? 8 - 4 * row : -8) { /* the other half of a block, or the next */
    const int8_t *x = pixels, *z = count > 1 ? x + 2 * row : x;
    int32_t a = 0, b = 0, c = 0, d = 0;
    for (const int8_t *const end = v + 4 * row; v < end;) {
      uint32_t V, U;
      int32_t x_even, x_odd;
      LOAD(V, U, v, 16);
      const int32_t v_even = even(V), u_even = even(U), v_odd = odd(V), u_odd = odd(U);
      LOAD(x_even, x_odd, x, 8);
      a = dual(x_odd, v_odd, dual(x_even, v_even, a));
      b = dual(x_odd, u_odd, dual(x_even, u_even, b));
      LOAD(x_even, x_odd, z, 8);
      c = dual(x_odd, v_odd, dual(x_even, v_even, c));
      d = dual(x_odd, u_odd, dual(x_even, u_even, d));
    }
    requantize(layer, first + o, a, c, output, next);
    if (o + 1 < outputs) requantize(layer, first + o + 1, b, d, output, next);
  }
}
#elif defined(__ARM_FEATURE_DOTPROD)
/* The outputs of a group, of `count` pixels: four outputs of two pixels at a time (SDOT). */
static void products(const struct weighted *layer, const int8_t *pixels, int size, int count, int group,
                     int8_t *output)
{
#ifdef FOUR_BITS
  if (layer->bits == 4) {
    products4(layer, pixels, size, count, group, output);
    return;
  }
#endif
  const int outputs = layer->outputs / layer->groups, row = padded(size), first = group * outputs;
  for (; count > 0; count -= 2, pixels += 2 * row, output += 2 * layer->outputs) {
    int8_t *const next = count > 1 ? output + layer->outputs : output;
    const int8_t *v = weights_of(layer, group, size);
    for (int o = 0; o < outputs; o += 4) {
      const int8_t *x = pixels, *z = count > 1 ? x + row : x;
      int32x4_t sums = vdupq_n_s32(0), next_sums = sums;
      for (const int8_t *const end = v + 4 * row; v < end; v += 16, x += 4, z += 4) {
        sums = vdotq_s32(sums, vld1q_s8(v), four_times(x));
        next_sums = vdotq_s32(next_sums, vld1q_s8(v), four_times(z));
      }
      int32_t each[4], next_each[4];
      vst1q_s32(each, sums);
      vst1q_s32(next_each, next_sums);
      for (int k = 0; k < 4 && o + k < outputs; k++)
        requantize(layer, first + o + k, each[k], next_each[k], output, next);
    }
  }
}
#else
/* The outputs of a group, of `count` pixels: two outputs of two pixels at a time. */
static void products(const struct weighted *layer, const int8_t *pixels, int size, int count, int group,
                     int8_t *output)
{
#ifdef FOUR_BITS
  if (layer->bits == 4) {
    products4(layer, pixels, size, count, group, output);
    return;
  }
#endif
  const int outputs = layer->outputs / layer->groups, row = padded(size), first = group * outputs;
  for (; count > 0; count -= 2, pixels += 2 * row, output += 2 * layer->outputs) {
    int8_t *const next = count > 1 ? output + layer->outputs : output;
    const int8_t *v = weights_of(layer, group, size);
    for (int o = 0; o < outputs; o += 2, v += o % 4 ? 8 - 4 * row : -8) {
      const int8_t *x = pixels, *z = count > 1 ? x + row : x;
      int32_t a = 0, b = 0, c = 0, d = 0;
      for (const int8_t *const end = v + 4 * row; v < end; v += 16, x += 4, z += 4)
        for (int k = 0; k < 4; k++) {
          a += x[k] * v[k];
          b += x[k] * v[k + 4];
          c += z[k] * v[k];
          d += z[k] * v[k + 4];
        }
      requantize(layer, first + o, a, c, output, next);
      if (o + 1 < outputs) requantize(layer, first + o + 1, b, d, output, next);
    }
  }
}
#endif
