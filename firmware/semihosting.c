#include "semihosting.h"

#include <string.h>

/* "Semihosting for AArch32 and AArch64", Arm */
enum { OPEN = 0x01, WRITE0 = 0x04, READ = 0x06, FLEN = 0x0c, EXIT_EXTENDED = 0x20 };
enum { READ_BYTES = 1, APPLICATION_EXIT = 0x20026 };

static int call(int operation, const void *arguments)
{
  register int r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = arguments;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

int host_open(const char *path)
{
  const uint32_t arguments[] = {(uint32_t)path, READ_BYTES, strlen(path)};
  return call(OPEN, arguments);
}

int host_size(int file)
{
  const uint32_t arguments[] = {(uint32_t)file};
  return call(FLEN, arguments);
}

int host_read(int file, void *to, int bytes)
{
  const uint32_t arguments[] = {(uint32_t)file, (uint32_t)to, (uint32_t)bytes};
  return bytes - call(READ, arguments); /* which returns how many are missing */
}

void host_print(const char *text)
{
  call(WRITE0, text);
}

void host_print_number(uint64_t value)
{
  char text[27]; /* 2^64 has 20 digits, and 6 commas */
  char *first = text + sizeof text - 1;
  *first = 0;
  for (int digits = 1;; digits++) {
    *--first = (char)('0' + value % 10);
    value /= 10;
    if (!value) break;
    if (digits % 3 == 0) *--first = ',';
  }
  host_print(first);
}

_Noreturn void host_exit(int code)
{
  const uint32_t arguments[] = {APPLICATION_EXIT, (uint32_t)code};
  for (;;) call(EXIT_EXTENDED, arguments);
}
