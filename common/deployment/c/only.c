#include <stdint.h>
#include <string.h>
#define TAPS 9
#define ROUND_ONCE
/* What the layers of this file are made of. Images are [rows][columns][channels]. */
#ifdef __ARM_FEATURE_MVE
#include <arm_mve.h>
#endif
#ifdef __GNUC__
#define ALIGNED __attribute__((aligned(4))) /* words are loaded from it */
#else
#define ALIGNED
#endif

/* A convolution, or a linear layer: one row of the output from `kernel_rows` rows of the input. */
struct weighted {
  const int8_t *weights; /* see products.c; of a depthwise convolution see there */
  const int32_t *bias;   /* [outputs], minus zero_in times the sum of the output's weights */
#ifdef ROUND_ONCE
  const float *multipliers; /* [outputs]: scale of the input * scale of the weights / scale of the output */
#else
  const int32_t *multipliers; /* [outputs]: the same as an integer of 31 bits ... */
  const int8_t *shifts;       /* [outputs]: ... and the bits by which its product is shifted to the right */
#endif
  uint16_t columns, channels, output_columns, outputs, groups;
  uint8_t kernel_rows, kernel_columns, stride, dilation;
  uint8_t left;             /* columns of padding */
  int8_t zero_in, zero_out; /* zero points of the input and the output */
  int8_t low;               /* the smallest output: the zero point after a ReLU, else -128 */
};
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
/* The integer that is nearest to a float, half to even; beyond 512 one that is more than any output. It reads the bits
 * of the float, or is one instruction: no compiler can fuse it with the product before. */
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

/* A sum times a scale, in float32. */
static inline int32_t rescaled(int32_t sum, float multiplier)
{
  return nearest((float)sum * multiplier);
}

#ifdef __ARM_FEATURE_MVE
/* The same for four sums */
static inline int32x4_t rescaled4(int32x4_t sums, const float *multipliers)
{
#if __ARM_FEATURE_MVE & 2
  return vcvtnq_s32_f32(vmulq_f32(vcvtq_f32_s32(sums), vld1q_f32(multipliers)));
#else
  int32_t each[4];
  vst1q_s32(each, sums);
  for (int k = 0; k < 4; k++) each[k] = rescaled(each[k], multipliers[k]);
  return vld1q_s32(each);
#endif
}
#endif
/* Outputs of sums of products. */
static inline int8_t requantized(const struct weighted *layer, int output, int32_t sum)
{
  sum += layer->bias[output];
#ifdef ROUND_ONCE
  const int32_t value = rescaled(sum, layer->multipliers[output]);
#else
  const int32_t value = rescaled(sum, layer->multipliers[output], layer->shifts[output]);
#endif
  return clamp(value + layer->zero_out, layer->low);
}

/* Output o of a pixel and of the next one; where there is none, `next` is `output` and is overwritten. */
static inline void requantize(const struct weighted *layer, int o, int32_t sum, int32_t next_sum, int8_t *output,
                              int8_t *next)
{
  const int8_t first = requantized(layer, o, sum), second = requantized(layer, o, next_sum);
  next[o] = second;
  output[o] = first;
}

#ifdef __ARM_FEATURE_MVE
/* What four outputs of a layer need */
struct four {
  int32x4_t bias, low;
#ifdef ROUND_ONCE
  const float *multipliers;
#else
  int32x4_t multipliers, shifts;
#endif
  int32_t zero;
};

static inline struct four four_from(const struct weighted *layer, int o)
{
  struct four four;
  four.bias = vld1q_s32(layer->bias + o);
  four.low = vdupq_n_s32(layer->low);
  four.zero = layer->zero_out;
#ifdef ROUND_ONCE
  four.multipliers = layer->multipliers + o;
#else
  four.multipliers = vld1q_s32(layer->multipliers + o);
  four.shifts = vldrbq_s32(layer->shifts + o);
#endif
  return four;
}

static inline void requantize4(const struct four *four, int32x4_t sums, int8_t *output)
{
  sums = vaddq_s32(sums, four->bias);
#ifdef ROUND_ONCE
  int32x4_t values = rescaled4(sums, four->multipliers);
#else
  int32x4_t values = rescaled4(sums, four->multipliers, four->shifts);
#endif
  values = vminq_s32(vqaddq_n_s32(values, four->zero), vdupq_n_s32(127));
  vstrbq_s32(output, vmaxq_s32(values, four->low));
}
#endif
/* Instructions of Cortex-M4, M7 and M33 for two integers of 16 bits in a word. gcc 12 cannot move its intrinsics,
 * but it can move these. */
#if defined(__ARM_FEATURE_SIMD32) && !defined(__ARM_FEATURE_MVE)
#define WIDE

static inline uint32_t word(const int8_t *bytes)
{
  uint32_t value;
  memcpy(&value, bytes, sizeof value);
  return value;
}

/* Bytes 0 and 2, widened */
static inline int32_t even(uint32_t bytes)
{
  int32_t pair;
  __asm__("sxtb16 %0, %1" : "=r"(pair) : "r"(bytes));
  return pair;
}

/* Bytes 1 and 3, widened */
static inline int32_t odd(uint32_t bytes)
{
  int32_t pair;
  __asm__("sxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(bytes));
  return pair;
}
#endif
/* The inner loops of convolutions and linear layers. Weights are [groups][outputs / 4][values / 4][4][4], with zeros
 * where there are not 4 outputs or 4 values, and with 48 bytes that may be read after the last one. A value is one of
 * a row, a column and a channel. */
static inline int padded(int size)
{
  return (size + 3) & ~3;
}

static inline const int8_t *weights_of(const struct weighted *layer, int group, int size)
{
  return layer->weights + group * padded(layer->outputs / layer->groups) * padded(size);
}

#if defined(__ARM_FEATURE_MVE)
#define PIXELS 4 /* that are gathered at a time */

/* Values at ... at + count - 1 of a gathered pixel */
static inline void put(int8_t *scratch, int size, int pixel, int at, const int8_t *from, int count)
{
  memcpy(scratch + pixel * padded(size) + at, from, (size_t)count);
}

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

/* Loads two words, and moves the pointer on. */
#define LOAD(first, second, from, step)                \
  __asm__("ldrd %0, %1, [%2], %3"                      \
          : "=&r"(first), "=&r"(second), "+r"(from)    \
          : "i"(step), "m"(*(const int8_t(*)[8])(from)))

/* The sum and the products of both halves */
static inline int32_t dual(int32_t a, int32_t b, int32_t sum)
{
  __asm__("smlad %0, %1, %2, %0" : "+r"(sum) : "r"(a), "r"(b));
  return sum;
}

/* The outputs of a group, of one pixel or two: two outputs of two pixels at a time. */
static void products(const struct weighted *layer, const int8_t *pixels, int size, int count, int group,
                     int8_t *output)
{
  const int outputs = layer->outputs / layer->groups, row = padded(size), first = group * outputs;
  int8_t *const next = count > 1 ? output + layer->outputs : output;
  const int8_t *v = weights_of(layer, group, size);
  for (int o = 0; o < outputs; o += 2, v += o % 4 ? 8 - 4 * row : -8) { /* the other half of the blocks, or the next */
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
#else
#define PIXELS 4

/* Values at ... at + count - 1 of a gathered pixel */
static inline void put(int8_t *scratch, int size, int pixel, int at, const int8_t *from, int count)
{
  memcpy(scratch + pixel * padded(size) + at, from, (size_t)count);
}

/* The outputs of a group, of `count` pixels: two outputs of two pixels at a time. */
static void products(const struct weighted *layer, const int8_t *pixels, int size, int count, int group,
                     int8_t *output)
{
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
/* Any other convolution; rows outside of the image are NULL. It gathers the values of a few pixels at a time. */

/* Gathers what pixel number `pixel` reads of a group of channels, from a column on. */
static void gather(const struct weighted *layer, const int8_t *const *rows, int column, int group, int pixel,
                   int size, int8_t *scratch, const int8_t *outside)
{
  const int all = layer->channels, channels = all / layer->groups, columns = layer->kernel_columns;
  const int is_run = column >= 0 && column + columns <= layer->columns && layer->dilation == 1 && all == channels;
  for (int k = 0, at = 0; k < layer->kernel_rows; k++)
    if (rows[k] && is_run) { /* all columns at once */
      put(scratch, size, pixel, at, rows[k] + column * all, columns * all);
      at += columns * all;
    } else {
      for (int j = 0, c = column; j < columns; j++, c += layer->dilation, at += channels) {
        const int inside = rows[k] && c >= 0 && c < layer->columns;
        put(scratch, size, pixel, at, inside ? rows[k] + c * all + group * channels : outside, channels);
      }
    }
}

static void convolution(const struct weighted *layer, const int8_t *const *rows, int8_t *scratch, int8_t *output)
{
  const int channels = layer->channels / layer->groups, stride = layer->stride;
  const int size = layer->kernel_rows * layer->kernel_columns * channels;
  int8_t *const outside = scratch + 4 * padded(size);
  memset(outside, layer->zero_in, (size_t)channels);
  for (int p = 0; p < layer->output_columns; p += PIXELS, output += PIXELS * layer->outputs) {
    const int rest = layer->output_columns - p, count = rest < PIXELS ? rest : PIXELS;
    for (int g = 0; g < layer->groups; g++) {
      for (int q = 0; q < count; q++)
        gather(layer, rows, (p + q) * stride - layer->left, g, q, size, scratch, outside);
      products(layer, scratch, size, count, g, output);
    }
  }
}
/* One kernel for each channel; the weights are [rows][columns][channels]. The output may begin `left` pixels
 * before the first row that is read: of each channel two pixels are read before they are written. */

/* Finds the window of a pixel, and of the next one; `outside` stands for what is not in the image */
static void find_taps(const struct weighted *layer, const int8_t *const *rows, int column, const int8_t *outside,
                      const int8_t **tap)
{
  for (int k = 0; k < layer->kernel_rows; k++)
    for (int j = 0; j < layer->kernel_columns; j++, tap += 2) {
      const int c = column + j * layer->dilation;
      *tap = rows[k] && c >= 0 && c < layer->columns ? rows[k] + c * layer->channels : outside;
    }
}

/* Two pixels: reads what they need of a channel before it writes the channel */
static void filter(const struct weighted *layer, const int8_t *const *taps, int8_t *output, int8_t *next)
{
  const int channels = layer->channels;
  const int8_t *const *const end = taps + 2 * layer->kernel_rows * layer->kernel_columns, *const *tap;
  int c = 0;
#if defined(__ARM_FEATURE_MVE)
  for (; c + 8 <= channels; c += 8) { /* eight channels at a time: sums of even ones and of odd ones */
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
  for (; c + 4 <= channels; c += 4) { /* four channels at a time: widened (SXTB16), multiplied by halves (SMLABB) */
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
/* A convolution of one pixel, or a linear layer. */
static void pointwise(const struct weighted *layer, const int8_t *row, int8_t *scratch, int8_t *output)
{
  const int channels = layer->channels;
#ifndef WIDE
  if (channels % 4 == 0) { /* the row is what would be gathered */
    products(layer, row, channels, layer->columns, 0, output);
    return;
  }
#endif
  for (int rest = layer->columns; rest > 0; rest -= PIXELS, output += PIXELS * layer->outputs) {
    const int count = rest < PIXELS ? rest : PIXELS;
    for (int p = 0; p < count; p++, row += channels) put(scratch, channels, p, 0, row, channels);
    products(layer, scratch, channels, count, 0, output);
  }
}
const void *use_convolution(void); const void *use_convolution(void) { static const struct { void (*f)(); } p = {(void (*)())convolution}; return &p; }
const void *use_depthwise(void); const void *use_depthwise(void) { static const struct { void (*f)(); } p = {(void (*)())depthwise}; return &p; }
const void *use_pointwise(void); const void *use_pointwise(void) { static const struct { void (*f)(); } p = {(void (*)())pointwise}; return &p; }
