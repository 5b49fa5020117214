/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Limits and types of segments outside 64-bit code (Intel manual, volume 3, 5.3 and 5.5). Unicorn knows neither.
 *
 * A flat segment (4 GiB, and all that it may be used for is allowed) needs no check and gets none: a block is translated
 * for the cpu's flags, and three of our own say which segments are not flat. With them set, loads and stores through
 * such a segment are preceded by a call to x86_segment_check. The flags follow the segments in the main loop, where every
 * block that loads one ends.
 */
#include "x86.h"

#define RA ((uintptr_t)__builtin_extract_return_addr(__builtin_return_address(0)))

#define ES 0
#define CS 1
#define SS 2
#define DS 3
#define FS 4
#define GS 5
#define SEG_W 0x200u /* writable data, readable code */
#define SEG_E 0x400u /* data expands down */
#define SEG_CODE 0x800u
#define SEG_P 0x8000u
#define SEG_B 0x400000u
#define EFLAGS_VM 0x20000u
#define GATE_TASK 5
#define FRAME 16 /* bytes of an exception's 32-bit frame without a change of stacks */

static struct x86_segment *segment(void *env, int n) { return (struct x86_segment *)((char *)env + X86_SEGS) + n; }

static bool is_flat(void *env, int n)
{
    struct x86_segment *s = segment(env, n);
    uint32_t want = SEG_P | SEG_W | (n == CS ? SEG_CODE : 0);

    return s->limit == ~0u && (s->flags & (SEG_P | SEG_W | SEG_CODE | (n == CS ? 0 : SEG_E))) == want;
}

/* Bytes from an offset on, in the segment? */
static bool within(const struct x86_segment *s, uint32_t offset, uint32_t size)
{
    uint64_t last = (uint64_t)offset + size - 1;

    if ((s->flags & (SEG_CODE | SEG_E)) == SEG_E)
        return offset > s->limit && last <= (s->flags & SEG_B ? 0xffffffffu : 0xffffu);
    return last <= s->limit;
}

/* Before each block that the main loop looks up. */
void x86_segment_flags(struct cpu *c)
{
    uint32_t *hflags = &FIELD(c->env, X86_HFLAGS, uint32_t);

    if ((*hflags & X86_HF_CS64) || !(*hflags & X86_HF_PE) || (FIELD(c->env, X86_EFLAGS, uint32_t) & EFLAGS_VM)) {
        *hflags &= ~X86_HF_LIMITS;
        return;
    }
    *hflags &= ~X86_HF_LIMITS;
    if (!is_flat(c->env, ES) || !is_flat(c->env, CS) || !is_flat(c->env, SS) || !is_flat(c->env, DS))
        *hflags |= X86_HF_LIMITS_DATA | X86_HF_ADDSEG; /* so that each address names its segment */
    if (!is_flat(c->env, FS))
        *hflags |= X86_HF_LIMITS_FS;
    if (!is_flat(c->env, GS))
        *hflags |= X86_HF_LIMITS_GS;
    if ((*hflags & X86_HF_LIMITS_DATA) && !within(segment(c->env, CS), FIELD(c->env, X86_EIP, uint32_t), 1))
        raise_exception_err_x86_64(c->env, VECTOR_GP, 0);
}

/* Must accesses through the segment be checked, in a block for these flags? A store through CS is always wrong. */
bool x86_segment_checked(uint32_t tb_flags, int n, bool store)
{
    if ((tb_flags & X86_HF_CS64) || !(tb_flags & X86_HF_PE) || (tb_flags & EFLAGS_VM))
        return false;
    return n == FS   ? tb_flags & X86_HF_LIMITS_FS
           : n == GS ? tb_flags & X86_HF_LIMITS_GS
                     : (tb_flags & X86_HF_LIMITS_DATA) || (n == CS && store);
}

/* Called by translated code before an access: access is the segment's number, its size in bytes, and whether it stores. */
void x86_segment_check(void *env, uint64_t va, uint32_t access)
{
    int n = (int)(access & 0xf);
    const struct x86_segment *s = segment(env, n);
    bool store = access & X86_SEGMENT_STORE, code = s->flags & SEG_CODE;
    bool allowed = (s->flags & SEG_P) && (store ? !code && (s->flags & SEG_W) : !code || (s->flags & SEG_W));

    if (!allowed || !within(s, (uint32_t)(va - s->base), access >> 4 & 0xff))
        x86_fault(env, n == SS ? VECTOR_SS : VECTOR_GP, RA);
}

/* An exception that stays on its stack finds no room for its frame there: a stack fault, which becomes a double fault. */
void x86_segment_check_frame(struct cpu *c, uint32_t vector)
{
    struct x86_segment *idt = segment(c->env, X86_IDT);
    uint32_t hflags = FIELD(c->env, X86_HFLAGS, uint32_t);
    uint32_t esp = (uint32_t)x86_regs(c->env)[RSP];
    const uint8_t *gate;

    if (!(hflags & X86_HF_LIMITS_DATA) || (hflags & (X86_HF_CPL | X86_HF_LMA)) || !(segment(c->env, SS)->flags & SEG_B))
        return;
    gate = tlb_vaddr_to_host_x86_64(c->env, idt->base + vector * 8 + 5, ACCESS_LOAD, X86_KERNEL_MODE);
    if (gate && (*gate & 0x1f) != GATE_TASK && !within(segment(c->env, SS), esp - FRAME, FRAME))
        raise_exception_err_x86_64(c->env, VECTOR_SS, 0);
}
