/* From sums of products to outputs. */

static inline int8_t requantized(const struct weighted *layer, int output, int32_t sum) {
#ifdef ROUND_ONCE
  const int32_t value = scaled(sum + layer->bias[output], layer->multipliers[output]);
#else
  const int32_t value = scaled(sum + layer->bias[output], layer->multipliers[output], layer->shifts[output]);
#endif
  return clamped(value + layer->zero_out, layer->low);
}

/* Output o of two pixels; `next` is `output` if there is one only */
static inline void finish(const struct weighted *layer, int o, int32_t sum, int32_t next_sum, int8_t *output,
                          int8_t *next) {
  const int8_t first = requantized(layer, o, sum), second = requantized(layer, o, next_sum);
  next[o] = second;
  output[o] = first;
}

#ifdef __ARM_FEATURE_MVE
/* What the outputs o ... o + 3 need */
struct four {
  int32x4_t bias, multipliers, shifts, low;
  int32_t zero;
};

static inline struct four four_outputs(const struct weighted *layer, int o) {
  struct four four = {vldrwq_s32(layer->bias + o), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(layer->low),
                      layer->zero_out};
#ifdef ROUND_ONCE
  four.multipliers = vldrwq_s32((const int32_t *)(const void *)(layer->multipliers + o));
#else
  four.multipliers = vldrwq_s32(layer->multipliers + o);
  four.shifts = vldrbq_s32(layer->shifts + o);
#endif
  return four;
}

static inline void requantize4(const struct four *four, int32x4_t sums, int8_t *to) {
  int32x4_t values = scaled4(vaddq_s32(sums, four->bias), four->multipliers, four->shifts);
  values = vminq_s32(vqaddq_n_s32(values, four->zero), vdupq_n_s32(127));
  vstrbq_s32(to, vmaxq_s32(values, four->low));
}
#endif
