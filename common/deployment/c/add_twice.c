/* a + b: both times 2^20, scaled to twice the larger scale, added, and scaled to the output. */
struct sum {
  int32_t multipliers[3]; /* of a, of b, of their sum */
  int8_t shifts[3];
  int8_t zeros[3], low; /* zero points of a, b and the output; the smallest output */
};

static void add(const struct sum *layer, const int8_t *a, const int8_t *b, int count, int8_t *output)
{
  for (int i = 0; i < count; i++) {
    const int32_t first = (a[i] - layer->zeros[0]) * (1 << 20), second = (b[i] - layer->zeros[1]) * (1 << 20);
    const int32_t sum = rescaled(first, layer->multipliers[0], layer->shifts[0])
                        + rescaled(second, layer->multipliers[1], layer->shifts[1]);
    output[i] = clamp(rescaled(sum, layer->multipliers[2], layer->shifts[2]) + layer->zeros[2], layer->low);
  }
}
