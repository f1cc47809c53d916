static int8_t clamp(int32_t value, int low)
{
  return (int8_t)(value < low ? low : value > 127 ? 127 : value);
}
