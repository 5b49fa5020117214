/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Memory accesses that translated code makes in a function of Unicorn's: locked instructions, x87's wide operands,
 * FXSAVE and the like. Alignment, a segment's limit and a data breakpoint are looked at before, where a block may need
 * that: in ordinary 64-bit code none does, and nothing is added to it. The other accesses are in x86_translate.c.
 */
#include "x86.h"

#define RA ((uintptr_t)__builtin_extract_return_addr(__builtin_return_address(0)))

#define BP_MEM_ACCESS 3
#define LOAD 0
#define STORE X86_ACCESS_STORE
#define MODIFY (X86_ACCESS_STORE | X86_ACCESS_ATOMIC)

void __wrap_cpu_check_watchpoint_x86_64(void *cs, uint64_t va, uint64_t size, uint32_t attrs, int flags, uintptr_t ra);

#define ATOMICS(X)                                                                                                        \
    X(cmpxchg) X(xchg) X(fetch_add) X(fetch_and) X(fetch_or) X(fetch_xor) X(add_fetch) X(and_fetch) X(or_fetch) X(xor_fetch)
#define DECLARE(name)                                                                                                     \
    void helper_atomic_##name##b_x86_64(void);                                                                            \
    void helper_atomic_##name##w_le_x86_64(void);                                                                         \
    void helper_atomic_##name##l_le_x86_64(void);                                                                         \
    void helper_atomic_##name##q_le_x86_64(void);
#define ENTRIES(name)                                                                                                     \
    {helper_atomic_##name##b_x86_64, 1, 1, 1, 1, MODIFY},                                                                 \
    {helper_atomic_##name##w_le_x86_64, 1, 2, 2, 2, MODIFY},                                                              \
    {helper_atomic_##name##l_le_x86_64, 1, 4, 4, 4, MODIFY},                                                              \
    {helper_atomic_##name##q_le_x86_64, 1, 8, 8, 8, MODIFY},
ATOMICS(DECLARE)
void helper_cmpxchg8b_x86_64(void), helper_cmpxchg16b_x86_64(void);
void helper_fldt_ST0_x86_64(void), helper_fstt_ST0_x86_64(void), helper_fbld_ST0_x86_64(void), helper_fbst_ST0_x86_64(void);
void helper_fldenv_x86_64(void), helper_fstenv_x86_64(void), helper_frstor_x86_64(void), helper_fsave_x86_64(void);
void helper_fxsave_x86_64(void), helper_xsave_x86_64(void), helper_xsaveopt_x86_64(void);
void helper_boundw_x86_64(void), helper_boundl_x86_64(void), helper_maskmov_mmx_x86_64(void), helper_maskmov_xmm_x86_64(void);

/* The address is the argument of this number. Bytes with operands of 32 (64) bits and of 16, and their alignment with 32. */
static const struct access {
    void (*func)(void);
    uint8_t address;
    uint16_t size, size16, align;
    uint32_t kind;
} accesses[] = {
    ATOMICS(ENTRIES)
    {helper_cmpxchg8b_x86_64, 1, 8, 8, 8, MODIFY},
    {helper_cmpxchg16b_x86_64, 1, 16, 16, 1, MODIFY}, /* it checks by itself, in all rings */
    {helper_fldt_ST0_x86_64, 1, 10, 10, 8, LOAD},
    {helper_fstt_ST0_x86_64, 1, 10, 10, 8, STORE},
    {helper_fbld_ST0_x86_64, 1, 10, 10, 8, LOAD},
    {helper_fbst_ST0_x86_64, 1, 10, 10, 8, STORE},
    {helper_fldenv_x86_64, 1, 28, 14, 4, LOAD},
    {helper_fstenv_x86_64, 1, 28, 14, 4, STORE},
    {helper_frstor_x86_64, 1, 108, 94, 4, LOAD},
    {helper_fsave_x86_64, 1, 108, 94, 4, STORE},
    {helper_fxsave_x86_64, 1, 512, 512, 1, STORE},
    {(void (*)(void))helper_fxrstor_x86_64, 1, 512, 512, 1, LOAD},
    {helper_xsave_x86_64, 1, 576, 576, 1, STORE},
    {helper_xsaveopt_x86_64, 1, 576, 576, 1, STORE},
    {(void (*)(void))helper_xrstor_x86_64, 1, 576, 576, 1, LOAD},
    {helper_boundw_x86_64, 1, 4, 4, 2, LOAD},
    {helper_boundl_x86_64, 1, 8, 8, 4, LOAD},
    {helper_maskmov_mmx_x86_64, 3, 8, 8, 1, STORE},
    {helper_maskmov_xmm_x86_64, 3, 16, 16, 1, STORE},
};

/* Called by translated code before the access. */
void x86_check_access(void *env, uint64_t va, uint32_t access)
{
    struct cpu *c = x86_cpu_of(env);

    if ((access & 0xf) != X86_ACCESS_FLAT)
        x86_segment_check(env, va, access, RA);
    if (va & (access >> X86_ACCESS_ALIGN_SHIFT & 0xf))
        x86_fault(env, VECTOR_AC, RA);
    /* One that is not aligned is done alone, with loads and stores that ask by themselves. */
    if ((access & X86_ACCESS_ATOMIC) && !(va & ((access >> 4 & 0xfff) - 1)))
        __wrap_cpu_check_watchpoint_x86_64(c->cs, va, access >> 4 & 0xfff, 0, BP_MEM_ACCESS, RA);
}

/* Which argument of a function that a block calls is an address to be checked, and how; 0 if none is. */
unsigned x86_helper_access(struct cpu *c, void *func, uint32_t *access)
{
    const struct x86_insn *insn = c->x86.insn;
    bool aligned = x86_checks_alignment(c->x86.tb_flags), small;

    if (!insn || (insn->segment < 0 && !aligned && !c->x86.watched))
        return 0;
    small = !(c->x86.tb_flags & (X86_HF_CS32 | X86_HF_CS64)) != insn->data16;
    for (size_t i = 0; i < sizeof(accesses) / sizeof(*accesses); i++) {
        const struct access *a = &accesses[i];
        bool limited, watched = c->x86.watched && (a->kind & X86_ACCESS_ATOMIC);

        if ((void *)a->func != func)
            continue;
        limited = insn->segment >= 0 && x86_segment_checked(c->x86.tb_flags, insn->segment, a->kind & STORE);
        if (!limited && !watched && !aligned)
            return 0;
        *access = (limited ? (uint32_t)insn->segment : X86_ACCESS_FLAT) | (uint32_t)(small ? a->size16 : a->size) << 4 |
                  (a->kind & STORE);
        if (aligned)
            *access |= (uint32_t)(small && a->align == 4 && a->size16 < a->size ? 1 : a->align - 1) << X86_ACCESS_ALIGN_SHIFT;
        if (watched)
            *access |= X86_ACCESS_ATOMIC;
        return a->address;
    }
    return 0;
}
