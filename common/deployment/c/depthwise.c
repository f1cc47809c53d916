/* One kernel for each channel; the weights are [rows][columns][channels]. The output may begin `left` pixels
 * before the first row that is read: a pixel is read before it is overwritten. */
static void depthwise(const struct weighted *layer, const int8_t *const *rows, int8_t *scratch, int8_t *output)
{
  (void)scratch;
  for (int column = 0; column < layer->output_columns; column++)
    for (int c = 0; c < layer->channels; c++) {
      const int8_t *weights = layer->weights + c;
      int32_t sum = layer->bias[c];
      for (int k = 0; k < layer->kernel_rows; k++)
        for (int j = 0; j < layer->kernel_columns; j++, weights += layer->channels) {
          const int at = column * layer->stride - layer->left + j * layer->dilation;
          const int inside = rows[k] && at >= 0 && at < layer->columns;
          sum += (inside ? rows[k][at * layer->channels + c] : layer->zero_in) * *weights;
        }
      *output++ = clamp(scaled(layer, c, sum) + layer->zero_out, layer->low);
    }
}
