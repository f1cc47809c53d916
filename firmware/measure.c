#include "measure.h"

/* Stack: words that have kept their paint were not used. */
#define PAINT 0xfeedbeef
extern uint32_t stack_end[], stack_begin[];

void paint_stack(void)
{
  uint32_t *const used = (uint32_t *)__builtin_frame_address(0) - 16; /* this function has a frame too */
  for (volatile uint32_t *word = stack_end; word < used; word++) *word = PAINT;
}

uint32_t stack_bytes(void)
{
  const volatile uint32_t *word = stack_end;
  while (*word == PAINT) word++;
  return (uint32_t)((uintptr_t)stack_begin - (uintptr_t)word);
}

/* Cycles: SysTick, which every Cortex-M of these boards has, counts 24 bits down. */
struct systick {
  volatile uint32_t control, reload, value;
};
#define SYSTICK ((struct systick *)0xe000e010)
#define ENABLE 7 /* counts cycles of the core, and interrupts at 0 */
#define BITS 24

static volatile uint32_t wraps;

void start_counter(void)
{
  SYSTICK->reload = (1u << BITS) - 1;
  SYSTICK->value = 0;
  SYSTICK->control = ENABLE;
  while (!SYSTICK->value) continue; /* it is loaded at the next cycle */
}

void count_wrap(void)
{
  wraps++;
}

uint64_t cycles(void)
{
  uint32_t high, low;
  do {
    high = wraps;
    low = SYSTICK->value;
  } while (high != wraps);
  return ((uint64_t)(high + 1) << BITS) - low;
}
