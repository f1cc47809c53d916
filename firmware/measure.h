#include <stdint.h>

void paint_stack(void);    /* so that stack_bytes can see how far down it was used */
uint32_t stack_bytes(void); /* the largest stack since then */

void start_counter(void);
uint64_t cycles(void); /* of the core, since start_counter */
void count_wrap(void); /* the interrupt of the counter */
