/* A convolution of one pixel, or a linear layer. */
static void pointwise(const struct weighted *layer, const int8_t *row, int8_t *scratch, int8_t *output)
{
  const int channels = layer->channels;
#ifndef WIDE
  if (channels % 4 == 0) { /* the row is what would be gathered */
    products(layer, row, channels, layer->columns, 0, output);
    return;
  }
#endif
  for (int rest = layer->columns; rest > 0; rest -= PIXELS, output += PIXELS * layer->outputs) {
    const int count = rest < PIXELS ? rest : PIXELS;
    for (int p = 0; p < count; p++, row += channels) put(scratch, channels, p, 0, row, channels);
    products(layer, scratch, channels, count, 0, output);
  }
}
