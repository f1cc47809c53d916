/* Prints what layers of a network cost: `common/deployment/instructions.py` appends this to its C file, in which
 * COUNTED has the operators and how many rows each computes. */
uint64_t cycles(void);
void host_print(const char *text);
void host_print_number(uint64_t value);

int main(void)
{
  static const struct {
    uint16_t operator, rows;
  } counted[] = COUNTED;
  for (unsigned i = 0; i < sizeof counted / sizeof counted[0]; i++) {
    const uint64_t start = cycles();
    for (int y = 0; y < counted[i].rows; y++) compute(counted[i].operator, y);
    host_print_number((cycles() - start) * 1000 / CORE_MHZ); /* as in main.c */
    host_print("\n");
  }
  return 0;
}
