/* Repeats a row that has one column, one channel, or both. */
static const int8_t *broadcast(const int8_t *input, int wide, int deep, int columns, int channels, int8_t *output)
{
  const int step = wide ? (deep ? channels : 1) : 0;
  for (int column = 0; column < columns; column++)
    for (int c = 0; c < channels; c++) output[column * channels + c] = input[column * step + (deep ? c : 0)];
  return output;
}
