/* One row of an image that has the values of another in the order channels, rows, columns. */
static void reshape(const int8_t *input, int channels, int height, int width, int row, int depth, int rows, int columns, int8_t *output)
{
  for (int column = 0; column < columns; column++)
    for (int c = 0; c < depth; c++) {
      const int index = (c * rows + row) * columns + column;
      const int channel = index / (height * width), pixel = index % (height * width);
      *output++ = input[pixel * channels + channel];
    }
}
