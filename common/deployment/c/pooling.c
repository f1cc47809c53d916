struct pooling {
  uint16_t columns, channels, output_columns;
  uint8_t kernel_rows, kernel_columns, stride, left;
};
