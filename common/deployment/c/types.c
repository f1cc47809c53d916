/* What the layers of this file are made of. Images are [rows][columns][channels]. */

/* A convolution, or a linear layer: one row of the output from `kernel_rows` rows of the input. */
struct weighted {
  const int8_t *weights; /* [outputs][values of a window, and zeros up to a multiple of 4]; a window is
                            [kernel_rows][kernel_columns][channels / groups]. Depthwise: that of all channels */
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

/* An output, from `low` to 127 */
static inline int8_t clamped(int32_t value, int low) {
#ifdef __ARM_FEATURE_SAT
  __asm__("ssat %0, #8, %0" : "+r"(value));
#else
  value = value > 127 ? 127 : value < -128 ? -128 : value;
#endif
#ifdef LOWS
  value = value < low ? low : value;
#endif
  (void)low;
  return (int8_t)value;
}
