/* The sum of output `output` in steps of the output. */
static int32_t scaled(const struct weighted *layer, int output, int32_t sum)
{
  return rescaled(sum, layer->multipliers[output]);
}
