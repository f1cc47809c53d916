/* Rows of common camera formats as red, green and blue bytes, which NAME_quantize of a C file of export.py takes. */
#include <stdint.h>

static uint8_t byte(int32_t value)
{
  return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

/* One byte for each pixel */
void rgb_of_gray(const uint8_t *gray, int pixels, uint8_t *rgb)
{
  for (int i = 0; i < 3 * pixels; i++) rgb[i] = gray[i / 3];
}

/* Two bytes for each pixel, the first one is the lower: 5 bits of red, 6 of green, 5 of blue; x * 255 / 31 */
void rgb_of_rgb565(const uint8_t *bytes, int pixels, uint8_t *rgb)
{
  for (int i = 0; i < pixels; i++) {
    const int pixel = bytes[2 * i] | bytes[2 * i + 1] << 8;
    *rgb++ = (uint8_t)((pixel >> 11 & 31) * 255 / 31);
    *rgb++ = (uint8_t)((pixel >> 5 & 63) * 255 / 63);
    *rgb++ = (uint8_t)((pixel & 31) * 255 / 31);
  }
}

/* Four bytes for two pixels: Y, Cb, Y, Cr, all of the range from 0 to 255 (JPEG; ITU-R BT.601 with full range),
 * with factors of 16 bits: 1.402, 0.344136, 0.714136 and 1.772 */
void rgb_of_yuyv(const uint8_t *bytes, int pixels, uint8_t *rgb)
{
  for (int i = 0; i < pixels; i++) {
    const uint8_t *const pair = bytes + i / 2 * 4;
    const int32_t y = pair[i % 2 * 2] * 65536 + 32768, cb = pair[1] - 128, cr = pair[3] - 128;
    *rgb++ = byte((y + 91881 * cr) >> 16);
    *rgb++ = byte((y - 22554 * cb - 46802 * cr) >> 16);
    *rgb++ = byte((y + 116130 * cb) >> 16);
  }
}
