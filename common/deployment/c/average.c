/* The mean of each window, half away from 0; values outside of the image do not count. */
static void average(const struct pooling *layer, const int8_t *const *rows, int8_t *output)
{
  for (int column = 0; column < layer->output_columns; column++)
    for (int c = 0; c < layer->channels; c++) {
      int sum = 0, count = 0;
      for (int k = 0; k < layer->kernel_rows; k++)
        for (int j = 0; j < layer->kernel_columns; j++) {
          const int at = column * layer->stride - layer->left + j;
          if (!rows[k] || at < 0 || at >= layer->columns) continue;
          sum += rows[k][at * layer->channels + c];
          count++;
        }
      *output++ = (int8_t)((sum < 0 ? sum - count / 2 : sum + count / 2) / count);
    }
}
