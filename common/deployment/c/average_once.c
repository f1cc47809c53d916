/* The mean of a window, half to even. */
static int8_t mean(const struct pooling *layer, int32_t sum, int count)
{
  const float multiplier = layer->multipliers[count - 1];
  return clamp(nearest((float)(sum - layer->zero * count) * multiplier) + layer->zero, -128);
}
