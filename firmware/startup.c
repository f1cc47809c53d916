/* From the reset to main. */
#include <string.h>

#include "measure.h"
#include "semihosting.h"

extern uint32_t stack_begin[];
extern char data_begin[], data_end[], data_in_flash[], bss_begin[], bss_end[];
int main(void);

/* Called by reset() only. */
__attribute__((used)) static void start(void)
{
  memcpy(data_begin, data_in_flash, (size_t)(data_end - data_begin));
  memset(bss_begin, 0, (size_t)(bss_end - bss_begin));
  paint_stack();
  start_counter();
  host_exit(main());
}

/* Enables the FPU, and with it MVE, before the first instruction that the compiler may have written for them:
 * gcc uses MVE to clear memory. Cores without an FPU ignore it. */
__attribute__((naked)) static void reset(void)
{
  __asm__("movw r0, #0xed88\n" /* CPACR */
          "movt r0, #0xe000\n"
          "ldr r1, [r0]\n"
          "orr r1, r1, #0xf00000\n"
          "str r1, [r0]\n"
          "dsb\n"
          "isb\n"
          "b start");
}

__attribute__((used)) static void report_fault(void)
{
  host_print("fault: an address that does not exist, an instruction that the core lacks, or a stack that is full\n");
  host_exit(3);
}

/* The stack may be what is at fault: begins it anew. */
__attribute__((naked)) static void fault(void)
{
  __asm__("ldr r0, =stack_begin\n"
          "mov sp, r0\n"
          "b report_fault");
}

/* Armv7-M and Armv8-M: the stack, then the exceptions 1 to 15 */
__attribute__((section(".vectors"), used)) static const struct {
  void *stack;
  void (*exceptions[15])(void);
} vectors = {
    stack_begin,
    {reset, fault, fault, fault, fault, fault, fault, 0, 0, 0, fault, fault, 0, fault, count_wrap},
};
