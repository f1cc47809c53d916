/* The mean of a window, half away from 0. */
static int8_t mean(const struct pooling *layer, int32_t sum, int count)
{
  (void)layer;
  return clamp((sum < 0 ? sum - count / 2 : sum + count / 2) / count, -128);
}
