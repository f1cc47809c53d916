/* a * b */
struct product {
  float multiplier;
  int8_t zeros[3], low; /* zero points of a, b and the output; the smallest output */
};

static void multiply(const struct product *layer, const int8_t *a, const int8_t *b, int count, int8_t *output)
{
  for (int i = 0; i < count; i++) {
    const int32_t product = (a[i] - layer->zeros[0]) * (b[i] - layer->zeros[1]);
    output[i] = clamp(rescaled(product, layer->multiplier) + layer->zeros[2], layer->low);
  }
}
