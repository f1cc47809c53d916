/* Puts the channels of one input beside those of the others. */
static void join(const int8_t *input, int channels, int columns, int all, int8_t *output)
{
  for (int column = 0; column < columns; column++, input += channels, output += all)
    memcpy(output, input, (size_t)channels);
}
