/* a + b in double, in which both products are exact: one rounding, and the division. */
struct sum {
  double scales[3];     /* of a, b and the output */
  int8_t zeros[3], low; /* zero points of a, b and the output; the smallest output */
};

static void add(const struct sum *layer, const int8_t *a, const int8_t *b, int count, int8_t *output)
{
  for (int i = 0; i < count; i++) {
    const double first = (a[i] - layer->zeros[0]) * layer->scales[0];
    const double second = (b[i] - layer->zeros[1]) * layer->scales[1];
    const double value = (first + second) / layer->scales[2];
    const double bounded = value > 1000 ? 1000 : value < -1000 ? -1000 : value;
    const int32_t floor = (int32_t)(bounded + 2048) - 2048;
    const double rest = bounded - floor;
    const int32_t nearest_even = floor + (rest > 0.5 || (rest == 0.5 && floor % 2 != 0));
    output[i] = clamp(nearest_even + layer->zeros[2], layer->low);
  }
}
