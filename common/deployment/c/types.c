/* What the layers of this file are made of. Images are [rows][columns][channels]. */
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
#ifdef FOUR_BITS /* some layer has such weights */
  uint8_t bits; /* of the weights, 8 or 4 */
#endif
};
