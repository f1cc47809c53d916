/* Sums of products: the inner loops of convolutions and linear layers. */

#ifdef WIDE
#define PIXELS 2 /* that `scratch` holds, as integers of 16 bits */
#else
#define PIXELS 4
#endif

/* The next multiple of 4 */
static inline int padded(int size) { return (size + 3) & ~3; }

#ifdef WIDE
/* sum + a * b, of both halves */
static inline int32_t dual(int32_t a, int32_t b, int32_t sum) {
  __asm__("smlad %0, %1, %2, %0" : "+r"(sum) : "r"(a), "r"(b));
  return sum;
}

/* Loads two words (LDRD) and moves the pointer on */
#define LOAD(first, second, from, step)                                   \
  __asm__("ldrd %0, %1, [%2], %3"                                         \
          : "=&r"(first), "=&r"(second), "+r"(from)                       \
          : "i"(step), "m"(*(const int8_t(*)[8])(from)))

/* Puts values at ... at + n - 1 of a pixel into a pair of pixels: int16 [size / 4][2][4], in the order 0 2 1 3 */
static void put(int8_t *scratch, int size, int pixel, int at, const int8_t *from, int n) {
  (void)size;
  scratch += 8 * pixel;
  for (; at % 4 == 0 && n >= 4; at += 4, from += 4, n -= 4) {
    const int32_t pairs[2] = {even(word(from)), odd(word(from))};
    memcpy(scratch + 4 * at, pairs, sizeof pairs);
  }
  for (; n > 0; at++, n--) {
    const int16_t value = *from++;
    memcpy(scratch + at / 4 * 16 + at % 2 * 4 + at % 4 / 2 * 2, &value, sizeof value);
  }
}

#else
static void put(int8_t *scratch, int size, int pixel, int at, const int8_t *from, int n) {
  memcpy(scratch + pixel * padded(size) + at, from, (size_t)n);
}
#endif

#if defined(__ARM_FEATURE_MVE)
/* Four outputs of a pixel: 16 values at a time (VMLADAVA), VLD4 separates the outputs */
static inline int32x4_t dot4(const int8_t *x, const int8_t *v, int n) {
  int32_t a = 0, b = 0, c = 0, d = 0;
  for (; n >= 16; n -= 16, x += 16, v += 64) {
    const int8x16_t values = vldrbq_s8(x);
    const int32x4x4_t w = vld4q_s32((const int32_t *)(const void *)v);
    a = vmladavaq_s8(a, values, vreinterpretq_s8_s32(w.val[0]));
    b = vmladavaq_s8(b, values, vreinterpretq_s8_s32(w.val[1]));
    c = vmladavaq_s8(c, values, vreinterpretq_s8_s32(w.val[2]));
    d = vmladavaq_s8(d, values, vreinterpretq_s8_s32(w.val[3]));
  }
  if (n > 0) { /* 4, 8 or 12 values, and zeros */
    const int8x16_t values = vldrbq_z_s8(x, vctp8q((uint32_t)n));
    const int32x4x4_t w = vld4q_s32((const int32_t *)(const void *)v);
    a = vmladavaq_s8(a, values, vreinterpretq_s8_s32(w.val[0]));
    b = vmladavaq_s8(b, values, vreinterpretq_s8_s32(w.val[1]));
    c = vmladavaq_s8(c, values, vreinterpretq_s8_s32(w.val[2]));
    d = vmladavaq_s8(d, values, vreinterpretq_s8_s32(w.val[3]));
  }
  const int32_t sums[4] = {a, b, c, d};
  return vldrwq_s32(sums);
}

static void products(const struct weighted *layer, const int8_t *pixels, int size, int count, int group,
                     int8_t *output) {
  const int all = layer->outputs, outputs = all / layer->groups, row = padded(size), end = (group + 1) * outputs;
  const int8_t *v = layer->weights + group * padded(outputs) * row;
  int o = group * outputs;
  for (; o + 4 <= end; o += 4, v += 4 * row) {
    const struct four four = four_outputs(layer, o);
    for (int p = 0; p < count; p++) requantize4(&four, dot4(pixels + p * row, v, row), output + p * all + o);
  }
  for (int p = 0; o < end && p < count; p++) {
    int32_t sums[4];
    vstrwq_s32(sums, dot4(pixels + p * row, v, row));
    for (int k = 0; o + k < end; k++) output[p * all + o + k] = requantized(layer, o + k, sums[k]);
  }
}
#elif defined(WIDE)
/* Two outputs of two pixels at a time (SMLAD) */
static void products(const struct weighted *layer, const int8_t *pixels, int size, int count, int group,
                     int8_t *output) {
  const int outputs = layer->outputs / layer->groups, row = padded(size), start = group * outputs;
  const int8_t *v = layer->weights + group * padded(outputs) * row;
  int8_t *const next = count > 1 ? output + layer->outputs : output;
  for (int o = 0; o < outputs; o += 2, v += o % 4 ? 8 - 4 * row : -8) {
    const int8_t *x = pixels;
    int32_t a = 0, b = 0, c = 0, d = 0;
    for (const int8_t *const last = v + 4 * row; v < last;) {
      uint32_t V, U;
      int32_t x_even, x_odd;
      LOAD(V, U, v, 16);
      const int32_t v_even = even(V), u_even = even(U), v_odd = odd(V), u_odd = odd(U);
      LOAD(x_even, x_odd, x, 8);
      a = dual(x_odd, v_odd, dual(x_even, v_even, a));
      b = dual(x_odd, u_odd, dual(x_even, u_even, b));
      LOAD(x_even, x_odd, x, 8);
      c = dual(x_odd, v_odd, dual(x_even, v_even, c));
      d = dual(x_odd, u_odd, dual(x_even, u_even, d));
    }
    finish(layer, start + o, a, c, output, next);
    if (o + 1 < outputs) finish(layer, start + o + 1, b, d, output, next);
  }
}
#else
/* One output of two pixels at a time */
static void products(const struct weighted *layer, const int8_t *pixels, int size, int count, int group,
                     int8_t *output) {
  const int outputs = layer->outputs / layer->groups, row = padded(size), start = group * outputs;
  const int8_t *const weights = layer->weights + group * padded(outputs) * row;
  for (; count > 0; count -= 2, pixels += 2 * row, output += 2 * layer->outputs) {
    int8_t *const next = count > 1 ? output + layer->outputs : output;
    for (int o = 0; o < outputs; o++) {
      const int8_t *x = pixels, *z = count > 1 ? x + row : x, *v = weights + o / 4 * 4 * row + o % 4 * 4;
      int32_t a = 0, b = 0;
      for (const int8_t *const last = v + 4 * row; v < last; x += 4, z += 4, v += 16)
        for (int i = 0; i < 4; i++) {
          a += x[i] * v[i];
          b += z[i] * v[i];
        }
      finish(layer, start + o, a, b, output, next);
    }
  }
}
#endif
