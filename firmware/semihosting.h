/* Files and text of the host, by Arm's semihosting: a breakpoint that QEMU, or a debugger, answers. */
#include <stdint.h>

int host_open(const char *path); /* for reading; -1 where there is none */
int host_size(int file);         /* bytes */
int host_read(int file, void *to, int bytes); /* how many bytes were read */
void host_print(const char *text);
void host_print_number(uint64_t value);
_Noreturn void host_exit(int code);
