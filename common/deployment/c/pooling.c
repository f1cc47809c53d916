struct pooling {
  uint16_t columns, channels, output_columns, kernel_rows, kernel_columns, stride, left;
};
