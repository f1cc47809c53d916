/* A convolution of any kind. */

/* Puts the window of one output pixel into `scratch`, of one group of channels */
static void gather(const struct weighted *layer, const int8_t *const *rows, int column, int group, int pixel,
                   int8_t *scratch, const int8_t *outside) {
  const int channels = layer->channels / layer->groups, columns = layer->columns;
  const int size = layer->kernel_rows * layer->kernel_columns * channels;
  int at = 0;
  for (int k = 0; k < layer->kernel_rows; k++)
    for (int j = 0; j < layer->kernel_columns; j++, at += channels) {
      const int c = column + j * layer->dilation;
      const int8_t *from = outside;
      if (rows[k] && c >= 0 && c < columns) from = rows[k] + c * layer->channels + group * channels;
      put(scratch, size, pixel, at, from, channels);
    }
}

static void convolution(const struct weighted *layer, const int8_t *const *rows, int8_t *scratch, int8_t *output) {
  const int channels = layer->channels / layer->groups;
  const int size = layer->kernel_rows * layer->kernel_columns * channels;
  int8_t *const outside = scratch + 4 * padded(size);
  memset(outside, layer->zero_in, (size_t)channels);
  for (int p = 0; p < layer->output_columns; p += PIXELS, output += PIXELS * layer->outputs) {
    const int left = layer->output_columns - p, count = left < PIXELS ? left : PIXELS;
    for (int g = 0; g < layer->groups; g++) {
      for (int q = 0; q < count; q++)
        gather(layer, rows, (p + q) * layer->stride - layer->left, g, q, scratch, outside);
      products(layer, scratch, size, count, g, output);
    }
  }
}
