/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Debugging: the guest's own debug registers where Unicorn does not serve them, and a debugger's outside the guest
 * (AMD64 manual, volume 2, chapter 13).
 *
 * Breakpoints on instructions are Unicorn's, translated into the code. Breakpoints on data use what Unicorn has left of
 * its watchpoints: a page with one is slow in the TLB, and each access to it asks. A data breakpoint comes after its
 * instruction, so at a hit the instruction is begun again in a block of its own; at the end of that, x86_debug_hits().
 *
 * A single step runs as an access without a host instruction does: one instruction, with the other cpus stopped.
 */
#include "x86.h"

#define RA ((uintptr_t)__builtin_extract_return_addr(__builtin_return_address(0)))

#define VECTOR_DB 1
#define DR6_BD 0x2000u
#define DR7_GD 0x2000u
#define DR7_FIXED 0x400u
#define BP_MEM_READ 1
#define BP_MEM_WRITE 2
#define BP_CPU 0x20 /* RF holds it off */
#define TYPE_CODE 0
#define TYPE_WRITE 1
#define TYPE_ACCESS 3

void cpu_x86_update_dr7_x86_64(void *env, uint32_t value);
int cpu_breakpoint_insert_x86_64(void *cs, uint64_t pc, int flags, void **breakpoint);
void cpu_breakpoint_remove_all_x86_64(void *cs, int mask);

static uint64_t *guest_dr(struct cpu *c) { return &FIELD(c->env, X86_DR, uint64_t); }

/* The registers that count: the debugger's hide the guest's. */
static uint64_t *active_dr(struct cpu *c) { return c->x86.debug.hardware ? c->x86.debug.dr : guest_dr(c); }

static bool enabled(uint64_t dr7, int n) { return dr7 >> (2 * n) & 3; }
static int type(uint64_t dr7, int n) { return dr7 >> (16 + 4 * n) & 3; }
static uint64_t length(uint64_t dr7, int n)
{
    static const uint8_t bytes[] = {1, 2, 8, 4};

    return bytes[dr7 >> (18 + 4 * n) & 3];
}

static bool watches_data(uint64_t dr7)
{
    for (int n = 0; n < 4; n++)
        if (enabled(dr7, n) && (type(dr7, n) & TYPE_WRITE))
            return true;
    return false;
}

/* Which of the registers an access of this kind meets: bits of DR6. */
static unsigned meets(struct cpu *c, uint64_t va, uint64_t size, int flags)
{
    uint64_t *dr = active_dr(c);
    unsigned hits = 0;

    for (int n = 0; n < 4; n++) {
        uint64_t bytes = length(dr[7], n), from = dr[n] & ~(bytes - 1);
        int kind = type(dr[7], n);

        if (enabled(dr[7], n) && (kind == TYPE_ACCESS || (kind == TYPE_WRITE && (flags & BP_MEM_WRITE))) &&
            va < from + bytes && from < va + size)
            hits |= 1u << n;
    }
    return hits;
}

/*
 * A page enters the TLB: are its accesses to be watched? If its stores are, its loads are too: an atomic access to a page
 * where the two differ would be done alone.
 */
int __wrap_cpu_watchpoint_address_matches_x86_64(void *cs, uint64_t va, uint64_t size)
{
    struct cpu *c = cpu_of(cs);

    return watches_data(active_dr(c)[7]) && meets(c, va, size, BP_MEM_WRITE) ? BP_MEM_READ | BP_MEM_WRITE : 0;
}

/* An access to such a page, before it is done. */
void __wrap_cpu_check_watchpoint_x86_64(void *cs, uint64_t va, uint64_t size, uint32_t attrs, int flags, uintptr_t ra)
{
    struct cpu *c = cpu_of(cs);
    unsigned hits = meets(c, va, size, flags);

    (void)attrs;
    if (!hits)
        return;
    if (c->x86.debug.again || !ra) {
        c->x86.debug.hits |= hits;
        cpu_force_exit(c);
        return;
    }
    c->x86.debug.again = true;
    cpu_restore_state_x86_64(cs, ra, true);
    FIELD(cs, CS_CFLAGS_NEXT, uint32_t) = CF_SINGLE;
    FIELD(cs, CS_EXCEPTION_INDEX, int32_t) = -1;
    cpu_loop_exit_x86_64(cs);
}

/* At a block's boundary: a data breakpoint that was met. True if a debugger outside has seen it. */
bool x86_debug_hits(struct cpu *c)
{
    unsigned hits = c->x86.debug.hits;

    if (!hits)
        return false;
    c->x86.debug.hits = 0;
    c->x86.debug.again = false;
    if (c->x86.debug.hardware) {
        cpu_park(c, EV_BREAK, hits, 0, 0);
        return true;
    }
    guest_dr(c)[6] = (guest_dr(c)[6] & ~0xful) | hits;
    raise_exception_err_x86_64(c->env, VECTOR_DB, 0);
}

/* Which of the debugger's registers stopped the guest before the instruction at this linear address. */
unsigned x86_debug_code(struct cpu *c)
{
    uint64_t *dr = c->x86.debug.dr;
    uint64_t pc = ((struct x86_segment *)(c->env + X86_SEGS))[1].base + FIELD(c->env, X86_EIP, uint64_t);
    unsigned hits = 0;

    for (int n = 0; c->x86.debug.hardware && n < 4; n++)
        if (enabled(dr[7], n) && type(dr[7], n) == TYPE_CODE && dr[n] == pc)
            hits |= 1u << n;
    return hits;
}

/* The guest stopped at a breakpoint on code, before the instruction. A debugger's is not the guest's exception. */
void __real_breakpoint_handler_x86_64(void *cs);
void __wrap_breakpoint_handler_x86_64(void *cs)
{
    if (!cpu_of(cs)->x86.debug.hardware)
        __real_breakpoint_handler_x86_64(cs);
}

static void watch_anew(struct cpu *c)
{
    struct op all = {OP_FLUSH, 0, ~0ul};

    c->m->target->apply(c, &all);
}

/* Locked instructions ask before they access, from the first data breakpoint on: code of before does not. */
static void ask_atomics(struct cpu *c)
{
    if (!c->x86.watched)
        c->flush_code = true;
    c->x86.watched = true;
}

/* A debug register of the guest's, with what hangs on it. */
void x86_set_dr(struct cpu *c, int n, uint64_t value)
{
    uint64_t *dr = guest_dr(c), dr7 = dr[7];
    bool data = watches_data(dr7);

    if (n == 6 || c->x86.debug.hardware) {
        dr[n] = value;
        return;
    }
    cpu_x86_update_dr7_x86_64(c->env, DR7_FIXED);
    if (n == 7)
        dr7 = value;
    else
        dr[n] = value;
    cpu_x86_update_dr7_x86_64(c->env, (uint32_t)dr7);
    if (watches_data(dr7))
        ask_atomics(c);
    if (data || watches_data(dr7))
        watch_anew(c);
}

/* What a debugger outside the guest wants; while it has debug registers, the guest's own do nothing. */
void x86_set_debug(struct cpu *c, const struct x86_debug *wanted)
{
    uint64_t *dr = guest_dr(c), dr7 = dr[7];

    if (c->x86.debug.hardware)
        cpu_breakpoint_remove_all_x86_64(c->cs, BP_CPU);
    else if (wanted->hardware) {
        cpu_x86_update_dr7_x86_64(c->env, DR7_FIXED);
        dr[7] = dr7;
    }
    if (c->x86.debug.hardware && !wanted->hardware) {
        dr[7] = DR7_FIXED;
        cpu_x86_update_dr7_x86_64(c->env, (uint32_t)dr7);
    }
    c->x86.debug = *wanted;
    for (int n = 0; wanted->hardware && n < 4; n++)
        if (enabled(wanted->dr[7], n) && type(wanted->dr[7], n) == TYPE_CODE)
            cpu_breakpoint_insert_x86_64(c->cs, wanted->dr[n], BP_CPU, NULL);
    c->flush_code = true;
    if (watches_data(active_dr(c)[7]))
        ask_atomics(c);
    watch_anew(c);
}

/* The guest's MOV to and from debug registers. */

static void general_detect(struct cpu *c, uintptr_t ra)
{
    uint64_t *dr = guest_dr(c);

    if (!(active_dr(c)[7] & DR7_GD))
        return;
    if (c->x86.debug.hardware) {
        /* The debugger's: it sees it before the instruction, once out of it. */
        c->x86.debug.hits |= DR6_BD;
        cpu_restore_state_x86_64(c->cs, ra, true);
        FIELD(c->cs, CS_EXCEPTION_INDEX, int32_t) = -1;
        cpu_loop_exit_x86_64(c->cs);
    }
    dr[7] &= ~(uint64_t)DR7_GD;
    dr[6] |= DR6_BD;
    cpu_restore_state_x86_64(c->cs, ra, true);
    raise_exception_err_x86_64(c->env, VECTOR_DB, 0);
}

#define CR4_DE 8u

void __real_helper_set_dr_x86_64(void *env, int n, uint64_t v);
void __wrap_helper_set_dr_x86_64(void *env, int n, uint64_t v)
{
    struct cpu *c = x86_cpu_of(env);

    general_detect(c, RA);
    if ((n == 4 || n == 5) && !(FIELD(env, X86_CR + 4 * 8, uint64_t) & CR4_DE))
        n += 2;
    if (n == 4 || n == 5 || (n >= 6 && v >> 32)) {
        cpu_restore_state_x86_64(c->cs, RA, true);
        raise_exception_err_x86_64(env, n < 6 ? VECTOR_UD : VECTOR_GP, 0);
    }
    if (n == 6)
        __real_helper_set_dr_x86_64(env, n, v);
    else
        x86_set_dr(c, n, n == 7 ? v | DR7_FIXED : v);
}

uint64_t __real_helper_get_dr_x86_64(void *env, int n);
uint64_t __wrap_helper_get_dr_x86_64(void *env, int n)
{
    general_detect(x86_cpu_of(env), RA);
    return __real_helper_get_dr_x86_64(env, n);
}
