/* Chosen columns and channels of a row. */
static void choose(const int8_t *input, int all, const uint16_t *columns, int width, const uint16_t *channels, int depth, int8_t *output)
{
  for (int column = 0; column < width; column++)
    for (int c = 0; c < depth; c++) *output++ = input[columns[column] * all + channels[c]];
}
