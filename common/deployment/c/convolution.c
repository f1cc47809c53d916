/* Any other convolution; rows outside of the image are NULL. */
static void convolution(const struct weighted *layer, const int8_t *const *rows, int8_t *scratch, int8_t *output)
{
  const int channels = layer->channels / layer->groups, outputs = layer->outputs / layer->groups;
  for (int column = 0; column < layer->output_columns; column++)
    for (int group = 0; group < layer->groups; group++) {
      int count = 0;
      for (int k = 0; k < layer->kernel_rows; k++)
        for (int j = 0; j < layer->kernel_columns; j++)
          for (int c = 0; c < channels; c++) {
            const int at = column * layer->stride - layer->left + j * layer->dilation;
            const int inside = rows[k] && at >= 0 && at < layer->columns;
            scratch[count++] = inside ? rows[k][at * layer->channels + group * channels + c] : layer->zero_in;
          }
      for (int o = group * outputs; o < (group + 1) * outputs; o++) {
        int32_t sum = layer->bias[o];
        for (int i = 0; i < count; i++) sum += scratch[i] * layer->weights[o * count + i];
        *output++ = clamp(scaled(layer, o, sum) + layer->zero_out, layer->low);
      }
    }
}
