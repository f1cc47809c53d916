/* A convolution with a kernel of 1x1 and stride 1, or a linear layer. */

static void pointwise(const struct weighted *layer, const int8_t *row, int8_t *scratch, int8_t *output) {
  const int channels = layer->channels;
#ifndef WIDE
  if (channels % 4 == 0) { /* no padding: the row is what `put` would give */
    products(layer, row, channels, layer->columns, 0, output);
    return;
  }
#endif
  for (int left = layer->columns; left > 0; left -= PIXELS, output += PIXELS * layer->outputs) {
    for (int p = 0; p < PIXELS && p < left; p++, row += channels) put(scratch, channels, p, 0, row, channels);
    products(layer, scratch, channels, left < PIXELS ? left : PIXELS, 0, output);
  }
}
