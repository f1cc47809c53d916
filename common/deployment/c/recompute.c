/* A convolution of 1 x 1 and the depthwise one that reads it: of the rows between them only a few columns are
 * in memory, and they are computed again for the next row. */
static void recompute(const struct weighted *expansion, const struct weighted *filters, const int8_t *const *rows,
                      int8_t *scratch, int8_t *memory, int8_t *output)
{
  const int channels = filters->channels, stride = filters->stride, kernel = filters->kernel_columns;
  const int width = (TILE - 1) * stride + kernel, known = kernel > stride ? kernel - stride : 0;
  struct weighted part = *expansion, tile = *filters;
  const int8_t *lines[TILE_ROWS];
  tile.left = 0;
  tile.columns = (uint16_t)width;
  for (int p = 0; p < filters->output_columns; p += TILE, output += TILE * channels) {
    const int rest = filters->output_columns - p, count = rest < TILE ? rest : TILE;
    const int begin = p * stride - filters->left, end = begin + (count - 1) * stride + kernel;
    const int fresh = begin + (p > 0 ? known : 0); /* the columns before it are those of the last tile */
    const int first = fresh > 0 ? fresh : 0, last = end < filters->columns ? end : filters->columns;
    for (int k = 0; k < filters->kernel_rows; k++) {
      int8_t *const line = memory + k * width * channels;
      lines[k] = rows[k] ? line : NULL;
      if (!rows[k]) continue;
      if (p > 0) memmove(line, line + TILE * stride * channels, (size_t)(known * channels));
      if (fresh < first) memset(line, filters->zero_in, (size_t)((first - fresh) * channels));
      if (last < end) memset(line + (last - begin) * channels, filters->zero_in, (size_t)((end - last) * channels));
      part.columns = part.output_columns = (uint16_t)(last > first ? last - first : 0);
      pointwise(&part, rows[k] + first * part.channels, scratch, line + (first - begin) * channels);
    }
    tile.output_columns = (uint16_t)count;
    depthwise(&tile, lines, scratch, output);
  }
}
