/* A convolution of one pixel, or a linear layer. */
static void pointwise(const struct weighted *layer, const int8_t *row, int8_t *output)
{
  for (int column = 0; column < layer->columns; column++, row += layer->channels)
    for (int o = 0; o < layer->outputs; o++) {
      const int8_t *weights = layer->weights + o * layer->channels;
      int32_t sum = layer->bias[o];
      for (int c = 0; c < layer->channels; c++) sum += row[c] * weights[c];
      *output++ = clamp(scaled(layer, o, sum) + layer->zero_out, layer->low);
    }
}
