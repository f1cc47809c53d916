/* Any other convolution; rows outside of the image are NULL. It gathers the values of a few pixels at a time. */

/* Gathers what pixel number `pixel` reads of a group of channels, from a column on. */
static void gather(const struct weighted *layer, const int8_t *const *rows, int column, int group, int pixel,
                   int size, int8_t *scratch, const int8_t *outside)
{
  const int all = layer->channels, channels = all / layer->groups, columns = layer->kernel_columns;
  const int is_run = column >= 0 && column + columns <= layer->columns && layer->dilation == 1 && all == channels;
  for (int k = 0, at = 0; k < layer->kernel_rows; k++)
    if (rows[k] && is_run) { /* all columns at once */
      put(scratch, size, pixel, at, rows[k] + column * all, columns * all);
      at += columns * all;
    } else {
      for (int j = 0, c = column; j < columns; j++, c += layer->dilation, at += channels) {
        const int inside = rows[k] && c >= 0 && c < layer->columns;
        put(scratch, size, pixel, at, inside ? rows[k] + c * all + group * channels : outside, channels);
      }
    }
}

static void convolution(const struct weighted *layer, const int8_t *const *rows, int8_t *scratch, int8_t *output)
{
  const int channels = layer->channels / layer->groups, stride = layer->stride;
  const int size = layer->kernel_rows * layer->kernel_columns * channels;
  int8_t *const outside = scratch + 4 * padded(size);
  memset(outside, layer->zero_in, (size_t)channels);
  for (int p = 0; p < layer->output_columns; p += PIXELS, output += PIXELS * layer->outputs) {
    const int rest = layer->output_columns - p, count = rest < PIXELS ? rest : PIXELS;
    for (int g = 0; g < layer->groups; g++) {
      for (int q = 0; q < count; q++)
        gather(layer, rows, (p + q) * stride - layer->left, g, q, size, scratch, outside);
      products(layer, scratch, size, count, g, output);
    }
  }
}
