/* A sum times a scale, in float32. */
static inline int32_t rescaled(int32_t sum, float multiplier)
{
  return nearest((float)sum * multiplier);
}
