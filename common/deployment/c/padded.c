/* The next multiple of 4 */
static inline int padded(int size)
{
  return (size + 3) & ~3;
}
