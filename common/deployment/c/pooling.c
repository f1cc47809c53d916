struct pooling {
  uint16_t columns, channels, output_columns;
  uint8_t kernel_rows, kernel_columns, stride, left;
  int8_t zero;              /* zero point */
  const float *multipliers; /* for each number of values: 1 / it, where a mean rounds once */
};
