/* The maximum of each window; values outside of the image do not count. */
static void maximum(const struct pooling *layer, const int8_t *const *rows, int8_t *output)
{
  for (int column = 0; column < layer->output_columns; column++)
    for (int c = 0; c < layer->channels; c++) {
      int8_t highest = -128;
      for (int k = 0; k < layer->kernel_rows; k++)
        for (int j = 0; j < layer->kernel_columns; j++) {
          const int at = column * layer->stride - layer->left + j;
          if (!rows[k] || at < 0 || at >= layer->columns) continue;
          const int8_t value = rows[k][at * layer->channels + c];
          if (value > highest) highest = value;
        }
      *output++ = highest;
    }
}
