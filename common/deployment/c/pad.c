/* A row with its zero point around it; a row outside of the image is NULL. */
static void pad(const int8_t *row, int bytes, int before, int8_t zero, int all, int8_t *output)
{
  memset(output, zero, (size_t)all);
  if (row) memcpy(output + before, row, (size_t)bytes);
}
