/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where an indirect jump goes: a cache of translated blocks in front of Unicorn's own, for 64-bit code.
 *
 * Unicorn forgets all it knows of a virtual address with every flush of the TLB, and then hashes physical addresses for
 * each jump. Here an entry outlives the flush: it is good at once while nothing was flushed in its half of the address
 * space, and otherwise once the TLB's entry for the code leads to the host page that it led to before. A block that was
 * invalidated says so itself, and its memory stays until the whole code buffer goes (x86_jump_forget).
 */
#include "x86.h"

#include <string.h>

#define UNICORN_JUMPS 4096

void *__real_helper_lookup_tb_ptr_x86_64(void *env);

/* The slot of Unicorn's cache for an address, as Unicorn computes it: 6 bits of the place in the page, 6 of the page. */
static char *unicorn_slot(struct cpu *c, uint64_t pc)
{
    uint64_t mixed = pc ^ (pc >> 6);

    return FIELD(c->cs, CS_JMP_CACHE + 8 * (((mixed >> 6) & 0xfc0) | (mixed & 0x3f)), char *);
}

/* Host address of the code at a virtual address if the TLB has it, else 0. */
static uint64_t code_host(struct cpu *c, uint64_t pc, uint32_t flags)
{
    int mode = (flags & X86_HF_CPL) == 3                                   ? X86_MMU_USER
               : (flags & X86_HF_SMAP) && !(flags & X86_EFLAGS_AC) ? X86_MMU_SMAP
                                                                    : X86_MMU_KERNEL;
    char *fast = c->cs + X86_NEG + X86_TLB_FAST + 16 * mode;
    char *entry = FIELD(fast, 8, char *) + ((pc >> (12 - TLB_ENTRY_BITS)) & FIELD(fast, 0, uint64_t));

    return FIELD(entry, TLBE_CODE, uint64_t) == (pc & ~(GUEST_PAGE - 1)) ? pc + FIELD(entry, TLBE_ADDEND, uint64_t) : 0;
}

void *__wrap_helper_lookup_tb_ptr_x86_64(void *env)
{
    struct cpu *c = x86_cpu_of(env);
    uint32_t flags = FIELD(env, X86_HFLAGS, uint32_t) | (FIELD(env, X86_EFLAGS, uint32_t) & X86_TB_EFLAGS);
    uint64_t pc = FIELD(env, X86_EIP, uint64_t);
    uint32_t generation = c->x86.flushes[pc >> 63];
    struct x86_jump *j;
    void *code;
    char *tb;

    if (!(flags & X86_HF_CS64) || !c->x86.jumps)
        return __real_helper_lookup_tb_ptr_x86_64(env);
    j = &c->x86.jumps[(pc ^ (pc >> 12)) & (X86_JUMPS - 1)];
    if (j->pc == pc && j->flags == flags && j->tb && !(FIELD(j->tb, TB_CFLAGS, uint32_t) & CF_INVALID)) {
        if (j->generation == generation)
            return FIELD(j->tb, TB_CODE, void *);
        if (j->host && j->host == code_host(c, pc, flags) && x86_trust_host(c, j->host)) {
            j->generation = generation;
            return FIELD(j->tb, TB_CODE, void *);
        }
    }
    code = __real_helper_lookup_tb_ptr_x86_64(env);
    tb = unicorn_slot(c, pc);
    if (tb && FIELD(tb, TB_PC, uint64_t) == pc && FIELD(tb, TB_FLAGS, uint32_t) == flags &&
        FIELD(tb, TB_CODE, void *) == code) {
        /* A block on two pages is not looked at again: the second may be another. */
        bool one_page = (pc & (GUEST_PAGE - 1)) + FIELD(tb, TB_SIZE, uint16_t) <= GUEST_PAGE;

        *j = (struct x86_jump){pc, one_page ? code_host(c, pc, flags) : 0, tb, flags, generation};
    }
    return code;
}

/* The blocks' memory is to be used anew, or the memory map has changed: a block of a region that is gone says nothing. */
void x86_jump_forget(struct cpu *c)
{
    if (c->x86.jumps)
        memset(c->x86.jumps, 0, X86_JUMPS * sizeof(*c->x86.jumps));
}

/* Every block is to be looked up again, if only to see that its page is what it was. */
void x86_jump_doubt(struct cpu *c)
{
    c->x86.flushes[0]++;
    c->x86.flushes[1]++;
    memset(c->cs + CS_JMP_CACHE, 0, UNICORN_JUMPS * sizeof(void *));
}

int x86_jump_setup(struct cpu *c)
{
    if (!c->x86.jumps)
        c->x86.jumps = calloc(X86_JUMPS, sizeof(*c->x86.jumps));
    return c->x86.jumps ? 0 : -1;
}

/* Every way to flush a TLB. */

void __real_tlb_flush_x86_64(void *cs);
void __wrap_tlb_flush_x86_64(void *cs)
{
    struct cpu *c = cpu_of(cs);

    if (c)
        x86_flushed_all(c);
    __real_tlb_flush_x86_64(cs);
}

void __real_tlb_flush_page_x86_64(void *cs, uint64_t va);
void __wrap_tlb_flush_page_x86_64(void *cs, uint64_t va)
{
    struct cpu *c = cpu_of(cs);

    if (c)
        c->x86.flushes[va >> 63]++;
    __real_tlb_flush_page_x86_64(cs, va);
}

void __real_tlb_flush_by_mmuidx_x86_64(void *cs, uint16_t modes);
void __wrap_tlb_flush_by_mmuidx_x86_64(void *cs, uint16_t modes)
{
    struct cpu *c = cpu_of(cs);

    if ((modes & X86_ALL_MODES) == X86_ALL_MODES)
        x86_flushed_all(c);
    c->x86.flushes[0]++;
    c->x86.flushes[1]++;
    __real_tlb_flush_by_mmuidx_x86_64(cs, modes);
}

void __real_tlb_flush_page_by_mmuidx_x86_64(void *cs, uint64_t va, uint16_t modes);
void __wrap_tlb_flush_page_by_mmuidx_x86_64(void *cs, uint64_t va, uint16_t modes)
{
    cpu_of(cs)->x86.flushes[va >> 63]++;
    __real_tlb_flush_page_by_mmuidx_x86_64(cs, va, modes);
}
