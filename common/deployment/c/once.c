/* The integer that is nearest to a float, half to even; beyond 2^20 any integer beyond int8. */
static int32_t nearest(float value)
{
  uint32_t bits;
  int32_t magnitude;
  memcpy(&bits, &value, 4);
  const int exponent = (int)(bits >> 23 & 255) - 127;
  if (exponent < -1) return 0;
  if (exponent >= 20) {
    magnitude = 1 << 20;
  } else { /* 24 bits, of which 23 - exponent are a fraction */
    const uint32_t fraction = 23u - (uint32_t)exponent;
    const uint64_t mantissa = (bits & 0x7fffffu) | 0x800000u;
    const uint64_t half = (uint64_t)1 << (fraction - 1), odd = mantissa >> fraction & 1;
    magnitude = (int32_t)((mantissa + half - 1 + odd) >> fraction);
  }
  return bits >> 31 ? -magnitude : magnitude;
}

/* A sum times a scale, in float32. */
static int32_t rescaled(int32_t sum, float multiplier)
{
  return nearest((float)sum * multiplier);
}

static int32_t scaled(const struct weighted *layer, int output, int32_t sum)
{
  return rescaled(sum, layer->multipliers[output]);
}
