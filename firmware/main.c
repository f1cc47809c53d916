/* Runs a network on the images of export.py --golden, and compares its logits with those of the reference.
 *
 * The exit code is 0 if all logits are equal, 1 if not, 2 if the files cannot be used, and 3 after a fault. */
#include HEADER /* of the network, such as "net.h" */

#include <string.h>

#include "measure.h"
#include "semihosting.h"

extern char code_bytes[], flash_bytes[]; /* symbols of the linker, whose addresses are the values */

struct camera {
  int file;
  uint64_t cycles; /* that reading took */
};

/* In the place of a camera: the next row of a file of the host */
static int read_row(void *context, int row, int8_t *inputs)
{
  struct camera *const camera = context;
  const uint64_t start = cycles();
  const int bytes = host_read(camera->file, inputs, NET_ROW_BYTES);
  camera->cycles += cycles() - start;
  (void)row;
  return bytes != NET_ROW_BYTES;
}

static int fail(const char *message)
{
  host_print(message);
  return 2;
}

static void print_image(int image, const int8_t *logits, int equal, uint64_t used)
{
  int best = 0;
  for (int i = 1; i < NET_CLASSES; i++)
    if (logits[i] > logits[best]) best = i;
  host_print("image ");
  host_print_number((uint64_t)image);
  host_print(": ");
  host_print(net_class_names[best]);
  host_print(equal ? ", all logits equal, " : ", LOGITS DIFFER, ");
  host_print_number(used * 1000 / CORE_MHZ); /* QEMU with -icount shift=0: an instruction takes 1 ns */
  host_print(" instructions\n");
}

static void print_bytes(const char *name, uint64_t bytes)
{
  host_print(name);
  host_print_number(bytes);
}

int main(void)
{
  static int8_t logits[NET_CLASSES], expected[NET_CLASSES];
  struct camera camera = {host_open("images.bin"), 0};
  const int golden = host_open("logits.bin");
  if (camera.file < 0 || golden < 0) return fail("images.bin or logits.bin cannot be opened\n");
  const int images = host_size(golden) / NET_CLASSES;
  if (images * NET_CLASSES != host_size(golden) || images * NET_SIDE * NET_ROW_BYTES != host_size(camera.file))
    return fail("images.bin and logits.bin are not of this network\n");

  int all_equal = 1;
  for (int image = 1; image <= images; image++) {
    camera.cycles = 0;
    const uint64_t start = cycles();
    const int stopped = net_run_rows(read_row, &camera, logits);
    const uint64_t used = cycles() - start - camera.cycles;
    if (stopped || host_read(golden, expected, NET_CLASSES) != NET_CLASSES) return fail("a file ends too early\n");
    const int equal = !memcmp(logits, expected, NET_CLASSES);
    print_image(image, logits, equal, used);
    all_equal &= equal;
  }
  print_bytes(BOARD ": arena ", NET_RAM);
  print_bytes(", stack ", stack_bytes());
  print_bytes(", flash ", (uintptr_t)flash_bytes);
  print_bytes(", of it code ", (uintptr_t)code_bytes);
  host_print(" bytes\n");
  return !all_equal;
}
