/* SPDX-License-Identifier: GPL-2.0-only */
/* x86's translation: what Unicorn's translator emits, changed as it emits it. */
#include "x86.h"

#define TARGET(name) name##_x86_64
#define TARGET_WRAP(name) __wrap_##name##_x86_64
#define TARGET_REAL(name) __real_##name##_x86_64
#define TARGET_TCG_UC X86_TCG_UC
#define TARGET_TCG_CPU_ENV X86_TCG_CPU_ENV
#define TARGET_ICOUNT (X86_NEG + X86_ICOUNT_DECR - X86_ENV)
#define TARGET_LAST(func) port_io(func)

uint64_t __wrap_helper_inb_x86_64(void *env, uint32_t port);
uint64_t __wrap_helper_inw_x86_64(void *env, uint32_t port);
uint64_t __wrap_helper_inl_x86_64(void *env, uint32_t port);
void __wrap_helper_outb_x86_64(void *env, uint32_t port, uint32_t v);
void __wrap_helper_outw_x86_64(void *env, uint32_t port, uint32_t v);
void __wrap_helper_outl_x86_64(void *env, uint32_t port, uint32_t v);

/* Userspace may write to the instructions after one of port I/O: they are looked up again. */
static bool port_io(void *func)
{
    return func == (void *)__wrap_helper_outb_x86_64 || func == (void *)__wrap_helper_inb_x86_64 ||
           func == (void *)__wrap_helper_outl_x86_64 || func == (void *)__wrap_helper_inl_x86_64 ||
           func == (void *)__wrap_helper_outw_x86_64 || func == (void *)__wrap_helper_inw_x86_64;
}

#include "translate.h"

/*
 * Unicorn takes the guest-physical address of a region that goes for a virtual one, and walks the guest's tables for the
 * code that was in it. Those may be gone with the region; and where in RAM it was, we know.
 */
uint64_t __real_get_page_addr_code_x86_64(void *env, uint64_t va);
uint64_t __wrap_get_page_addr_code_x86_64(void *env, uint64_t va)
{
    const struct region *r = x86_cpu_of(env)->unmapping;

    return r ? r->ram : __real_get_page_addr_code_x86_64(env, va);
}

void __wrap_gen_intermediate_code_x86_64(void *cs, void *tb, int max_insns)
{
    struct cpu *c = cpu_of(cs);
    uint64_t ram = __real_get_page_addr_code_x86_64(c->env, FIELD(tb, TB_PC, uint64_t));

    if (ram != ~0ul)
        x86_protect_code(c, ram);
    translate_parallel(c, tb, max_insns);
}
