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

/* Output o of a pixel and of the next one; where there is no next one, it is the same pixel again. */
static inline void requantize(const struct weighted *layer, int o, int32_t sum, int32_t next_sum, int8_t *output,
                              int8_t *next)
{
  const int8_t first = requantized(layer, o, sum), second = requantized(layer, o, next_sum);
  output[o] = first;
  next[o] = second;
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
