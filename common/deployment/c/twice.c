/* A sum times a scale: multiplied by an integer of 31 bits, and shifted; both steps round. */
static int32_t rescaled(int32_t sum, int32_t multiplier, int shift)
{
  const int32_t high = (int32_t)(((int64_t)sum * multiplier + (1 << 30)) >> 31);
  const int32_t mask = (int32_t)((1u << shift) - 1), rest = high & mask;
  return (high >> shift) + (rest > (mask >> 1) + (high < 0));
}

static int32_t scaled(const struct weighted *layer, int output, int32_t sum)
{
  return rescaled(sum, layer->multipliers[output], layer->shifts[output]);
}
