/* A function of one value, tabulated for -128 to 127; the output may be the input. */
static void look_up(const int8_t *table, const int8_t *input, int count, int8_t *output)
{
  for (int i = 0; i < count; i++) output[i] = table[input[i] + 128];
}
