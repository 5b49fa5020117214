/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * SSE's exceptions (AMD64 manual, volume 1, 4.10). Unicorn computes the flags and never shows them: they are brought to
 * MXCSR when it is read. While an exception is not masked, which is rare, blocks are translated with a look at the flags
 * after each instruction that computes. Unicorn's floating point knows no denormal operand: DE is never set by itself.
 */
#include "x86.h"

#define RA ((uintptr_t)__builtin_extract_return_addr(__builtin_return_address(0)))

#define MXCSR_BITS 0xffffu
#define MXCSR_FLAGS 0x3du /* all but DE */
#define MXCSR_MASKS_SHIFT 7
#define MXCSR_FZ 0x8000u
#define CR4_OSXMMEXCPT 0x400u
#define CR0_AM 0x40000u

void update_mxcsr_status_x86_64(void *env);

static uint8_t *flags_of(void *env) { return &FIELD(env, X86_SSE_STATUS + FLOAT_FLAGS, uint8_t); }

static uint32_t unmasked(void *env)
{
    return ~(FIELD(env, X86_MXCSR, uint32_t) >> MXCSR_MASKS_SHIFT) & (MXCSR_FLAGS | 2);
}

/* MXCSR is about to be read. */
void x86_mxcsr_read(void *env)
{
    FIELD(env, X86_MXCSR, uint32_t) |= *flags_of(env) & MXCSR_FLAGS;
}

/* The bits of what a block is translated for that Unicorn does not know. */
void x86_own_hflags(void *env)
{
    uint32_t *hflags = &FIELD(env, X86_HFLAGS, uint32_t);

    *hflags &= ~(X86_HF_AM | X86_HF_XM);
    if (unmasked(env))
        *hflags |= X86_HF_XM;
    if (FIELD(env, X86_CR, uint64_t) & CR0_AM)
        *hflags |= X86_HF_AM;
}

/* MXCSR was written. Unicorn flushes the x87's denormals to zero for it, and not SSE's. */
void x86_mxcsr_written(void *env)
{
    uint32_t mxcsr = FIELD(env, X86_MXCSR, uint32_t);

    update_mxcsr_status_x86_64(env);
    FIELD(env, X86_FP_STATUS + FLOAT_FLUSH_TO_ZERO, uint8_t) = 0;
    FIELD(env, X86_SSE_STATUS + FLOAT_FLUSH_TO_ZERO, uint8_t) = !!(mxcsr & MXCSR_FZ);
    *flags_of(env) = mxcsr & MXCSR_FLAGS;
    x86_own_hflags(env);
}

void __real_helper_ldmxcsr_x86_64(void *env, uint32_t v);
void __wrap_helper_ldmxcsr_x86_64(void *env, uint32_t v)
{
    if (v & ~MXCSR_BITS)
        x86_fault(env, VECTOR_GP, RA);
    FIELD(env, X86_MXCSR, uint32_t) = v;
    x86_mxcsr_written(env);
}

/* While an exception is not masked: around a function that computes. */

void x86_sse_before(void *env, uint64_t *dest)
{
    struct cpu *c = x86_cpu_of(env);

    c->x86.sse_dest[0] = dest[0];
    c->x86.sse_dest[1] = dest[1];
    c->x86.sse_flags = *flags_of(env);
    *flags_of(env) = 0;
}

/* An exception that is not masked leaves the destination as it was. */
void x86_sse_after(void *env, uint64_t *dest)
{
    struct cpu *c = x86_cpu_of(env);
    bool raise = *flags_of(env) & unmasked(env);

    *flags_of(env) |= c->x86.sse_flags;
    if (!raise)
        return;
    dest[0] = c->x86.sse_dest[0];
    dest[1] = c->x86.sse_dest[1];
    x86_fault(env, FIELD(env, X86_CR + 4 * 8, uint64_t) & CR4_OSXMMEXCPT ? VECTOR_XM : VECTOR_UD, RA);
}
