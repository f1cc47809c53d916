/* One row of an image that has the values of another in the order channels, rows, columns. */
static void reshape(const int8_t *input, int channels, int pixels, int row, int depth, int rows, int columns, int8_t *output)
{
  for (int column = 0; column < columns; column++)
    for (int c = 0; c < depth; c++) {
      const int index = (c * rows + row) * columns + column;
      *output++ = input[index % pixels * channels + index / pixels];
    }
}
