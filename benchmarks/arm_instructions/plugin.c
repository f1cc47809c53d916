/* A plugin of QEMU 7.2's user-mode emulation: counts the instructions between two calls of getpid.
 *
 * Prints "<all> <SIMD and floating point>" to the error output at each call, for those since the call before.
 * Loads and stores of SIMD registers are not in the second number. Debian has no header of the interface; the
 * declarations are those of its documentation ("QEMU TCG Plugins", version 1).
 */

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>

#define EXPORT __attribute__((visibility("default")))
#define GETPID 172 /* of ARM64 Linux */
enum { ADD_U64 = 0 };

typedef uint64_t Id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_tb_trans_cb(Id, void (*)(Id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
void qemu_plugin_register_vcpu_syscall_cb(
    Id, void (*)(Id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));

EXPORT int qemu_plugin_version = 1;
static uint64_t all, simd, all_before, simd_before;

static void on_block(Id id, struct qemu_plugin_tb *block)
{
    uint64_t count = qemu_plugin_tb_n_insns(block), found = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t code = *(const uint32_t *)qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i));
        found += (code >> 25 & 7) == 7; /* data processing, SIMD and floating point */
    }
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &all, count);
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &simd, found);
}

static void on_system_call(Id id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                           uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    if (number != GETPID)
        return;
    fprintf(stderr, "%" PRIu64 " %" PRIu64 "\n", all - all_before, simd - simd_before);
    all_before = all;
    simd_before = simd;
}

EXPORT int qemu_plugin_install(Id id, const void *info, int argc, char **argv)
{
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_block);
    qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
    return 0;
}
