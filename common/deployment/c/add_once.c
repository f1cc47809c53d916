/* a + b in double, in which both products are exact: one rounding, and the division. */
struct sum {
  double scales[3];     /* of a, b and the output */
  float ratios[2];      /* of the scales of a and b to that of the output */
  float sure;           /* a sum in float32 that is so near to an integer has the same integer in double */
  int8_t zeros[3], low; /* zero points of a, b and the output; the smallest output */
};

static int32_t exact_sum(const struct sum *layer, int a, int b)
{
  const double first = a * layer->scales[0], second = b * layer->scales[1];
  const double value = (first + second) / layer->scales[2];
  const double bounded = value > 1000 ? 1000 : value < -1000 ? -1000 : value;
  const int32_t floor = (int32_t)(bounded + 2048) - 2048;
  const double rest = bounded - floor;
  return floor + (rest > 0.5 || (rest == 0.5 && floor % 2 != 0));
}

static void add(const struct sum *layer, const int8_t *a, const int8_t *b, int count, int8_t *output)
{
  for (int i = 0; i < count; i++) {
    const int first = a[i] - layer->zeros[0], second = b[i] - layer->zeros[1];
    const float value = (float)first * layer->ratios[0] + (float)second * layer->ratios[1];
    int32_t integer = nearest(value);
    const float distance = value - (float)integer;
    if (distance > layer->sure || distance < -layer->sure) integer = exact_sum(layer, first, second);
    output[i] = clamp(integer + layer->zeros[2], layer->low);
  }
}
