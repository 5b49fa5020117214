/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Limits and types of segments outside 64-bit code (Intel manual, volume 3, 5.3 and 5.5). Unicorn knows neither.
 *
 * A flat segment (4 GiB, and all that it may be used for is allowed) needs no check and gets none: a block is translated
 * for the cpu's flags, and three of our own say which segments are not flat. With them set, loads and stores through
 * such a segment are preceded by a call to x86_check_access. The flags follow the segments in the main loop, where every
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
#define LDT 6
#define TR 7
#define GDT 8
#define SEG_W 0x200u /* writable data, readable code */
#define SEG_E 0x400u /* data expands down */
#define SEG_CODE 0x800u
#define SEG_S 0x1000u     /* code or data */
#define SEG_P 0x8000u
#define SEG_B 0x400000u
#define SEG_G 0x800000u
#define EFLAGS_VM 0x20000u
#define LONGEST 15 /* bytes of an instruction */
#define EFLAGS_NT 0x4000u
#define GATE_CALL 4
#define GATE_TASK 5
#define GATE_32 8          /* of a gate's or a task's type */
#define WITH_CODE 0x27d00u /* the exceptions that have an error code */

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

    *hflags &= ~X86_HF_LIMITS;
    if ((*hflags & X86_HF_CS64) || !(*hflags & X86_HF_PE) || (FIELD(c->env, X86_EFLAGS, uint32_t) & EFLAGS_VM))
        return;
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

/* Before an access: see X86_ACCESS_STORE. */
void x86_segment_check(void *env, uint64_t va, uint32_t access, uintptr_t ra)
{
    int n = (int)(access & 0xf);
    const struct x86_segment *s = segment(env, n);
    bool store = access & X86_ACCESS_STORE, code = s->flags & SEG_CODE;
    bool allowed = (s->flags & SEG_P) && (store ? !code && (s->flags & SEG_W) : !code || (s->flags & SEG_W));

    if (!allowed || !within(s, (uint32_t)(va - s->base), access >> 4 & 0xfff))
        x86_fault(env, n == SS ? VECTOR_SS : VECTOR_GP, ra);
}

/*
 * Code: its bytes are looked at as they are translated, which the cpu does at the instruction pointer. So near the limit
 * each instruction is a block of its own.
 */
static bool code_limited(struct cpu *c)
{
    return (c->x86.tb_flags & X86_HF_LIMITS_DATA) && !(c->x86.tb_flags & X86_HF_CS64) && segment(c->env, CS)->limit != ~0u;
}

void x86_segment_check_fetch(void *env, uint64_t va, uint32_t size)
{
    struct cpu *c = x86_cpu_of(env);
    struct x86_segment *cs = segment(env, CS);

    if (c->x86.insn && code_limited(c) && !within(cs, (uint32_t)(va - cs->base), size))
        raise_exception_err_x86_64(env, VECTOR_GP, 0);
}

bool x86_segment_ends_near(struct cpu *c, uint64_t va)
{
    struct x86_segment *cs = segment(c->env, CS);

    return code_limited(c) && !within(cs, (uint32_t)(va - cs->base), LONGEST);
}

/* The stack, where Unicorn uses it in a function of its own. */

static uint32_t stack_pointer(void *env)
{
    uint32_t esp = (uint32_t)x86_regs(env)[RSP];

    return segment(env, SS)->flags & SEG_B ? esp : esp & 0xffff;
}

/* RETF and IRET take so many bytes from it; a return to another task takes none. */
void x86_segment_check_stack(void *env, uint32_t bytes)
{
    if (!(FIELD(env, X86_EFLAGS, uint32_t) & EFLAGS_NT) && !within(segment(env, SS), stack_pointer(env), bytes))
        x86_fault(env, VECTOR_SS, RA);
}

/* Read as the system does, within a page; false if its page is neither in the TLB nor can be. */
static bool read_system(void *env, uint64_t va, void *out, size_t size)
{
    const void *host = NULL;

    if ((va & (GUEST_PAGE - 1)) <= GUEST_PAGE - size)
        host = tlb_vaddr_to_host_x86_64(env, va, ACCESS_LOAD, X86_KERNEL_MODE);
    if (host)
        memcpy(out, host, size);
    return host;
}

/* A descriptor, in two halves, if it can be read. */
static bool descriptor(void *env, uint32_t selector, uint32_t *halves)
{
    const struct x86_segment *table = segment(env, selector & 4 ? LDT : GDT);
    uint32_t at = selector & 0xfff8;

    return (selector & 0xfffc) && at + 7 <= table->limit && read_system(env, table->base + at, halves, 8);
}

/* The stack that a task has for a ring: false if that cannot be read. */
static bool ring_stack(void *env, uint32_t ring, uint32_t *selector, uint32_t *top, struct x86_segment *stack)
{
    const struct x86_segment *tr = segment(env, TR);
    bool wide = tr->flags >> 8 & GATE_32;
    uint32_t at = wide ? 4 + 8 * ring : 2 + 4 * ring, halves[2];
    uint16_t words[4];

    if (at + (wide ? 8 : 4) > tr->limit || !read_system(env, tr->base + at, words, sizeof(words)))
        return false;
    *selector = words[wide ? 2 : 1];
    *top = words[0] | (wide ? (uint32_t)words[1] << 16 : 0);
    if (!descriptor(env, *selector, halves))
        return false;
    stack->flags = halves[1];
    stack->limit = (halves[0] & 0xffff) | (halves[1] & 0xf0000);
    if (halves[1] & SEG_G)
        stack->limit = stack->limit << 12 | 0xfff;
    if (!(halves[1] & SEG_B))
        *top &= 0xffff;
    return true;
}

/* A far CALL of code leaves so many bytes on the stack; through a gate it may be on another, with its arguments. */
void x86_segment_check_call(void *env, uint32_t selector, uint32_t bytes)
{
    uint32_t hflags = FIELD(env, X86_HFLAGS, uint32_t), halves[2], code[2], type, dpl, top, word, new = 0;
    struct x86_segment stack = *segment(env, SS);

    if (!descriptor(env, selector, halves))
        return;
    type = halves[1] >> 8 & 0x1f;
    top = stack_pointer(env);
    if (type == GATE_CALL || type == (GATE_CALL | GATE_32)) {
        if ((hflags & X86_HF_LMA) || !descriptor(env, halves[0] >> 16, code) || !(code[1] & SEG_CODE))
            return;
        word = type & GATE_32 ? 4 : 2;
        bytes = 2 * word;
        dpl = code[1] >> 13 & 3;
        if (!(code[1] & SEG_E) && dpl < (hflags & X86_HF_CPL)) {
            bytes = (4 + (halves[1] & 0x1f)) * word;
            if (!ring_stack(env, dpl, &new, &top, &stack))
                return;
        }
    } else if ((halves[1] & (SEG_S | SEG_CODE)) != (SEG_S | SEG_CODE)) {
        return;
    }
    if (within(&stack, top - bytes, bytes))
        return;
    cpu_restore_state_x86_64(x86_cpu_of(env)->cs, RA, true);
    raise_exception_err_x86_64(env, VECTOR_SS, (int)(new & 0xfffc));
}

/*
 * An exception or interrupt finds no room for its frame on the stack that it goes to: a stack fault, which may become a
 * double fault. What else is wrong with the gate, the code or the stack is Unicorn's to say.
 */
void x86_segment_check_frame(struct cpu *c, uint32_t vector, int kind)
{
    struct x86_segment *idt = segment(c->env, X86_IDT), stack;
    uint32_t hflags = FIELD(c->env, X86_HFLAGS, uint32_t), gate[2], code[2], selector = 0, top, bytes;
    bool vm86 = FIELD(c->env, X86_EFLAGS, uint32_t) & EFLAGS_VM, inner;

    if (!(hflags & X86_HF_PE) || (hflags & X86_HF_LMA) || vector * 8 + 7 > idt->limit ||
        !read_system(c->env, idt->base + vector * 8, gate, sizeof(gate)))
        return;
    if ((gate[1] >> 8 & 0x1f) == GATE_TASK || !descriptor(c->env, gate[0] >> 16, code) || !(code[1] & SEG_CODE))
        return;
    inner = (!(code[1] & SEG_E) && (code[1] >> 13 & 3) < (hflags & X86_HF_CPL)) || vm86;
    bytes = 3 + (inner ? 2 : 0) + (vm86 ? 4 : 0) + (kind == X86_FRAME_EXCEPTION && (WITH_CODE >> vector & 1));
    bytes *= gate[1] >> 8 & GATE_32 ? 4 : 2;
    if (inner) {
        if (!ring_stack(c->env, code[1] >> 13 & 3, &selector, &top, &stack))
            return;
    } else {
        stack = *segment(c->env, SS);
        top = stack_pointer(c->env);
    }
    if (!within(&stack, top - bytes, bytes))
        raise_exception_err_x86_64(c->env, VECTOR_SS, (int)((selector & 0xfffc) | (kind != X86_FRAME_SOFTWARE)));
}

/*
 * Tasks. A segment of the new task that is wrong is that task's fault, before its first instruction; Unicorn has it at
 * the instruction that switched.
 */
#define IN_TASK 0x10000u

void x86_task_begin(void *env) { x86_cpu_of(env)->x86.task = segment(env, TR)->selector | IN_TASK; }
void x86_task_end(void *env) { x86_cpu_of(env)->x86.task = 0; }

/* An exception: was a task switched to by the instruction that raised it? */
void x86_task_fault(struct cpu *c)
{
    const struct x86_segment *tr = segment(c->env, TR);
    bool wide = tr->flags >> 8 & GATE_32;
    uint32_t eip;

    if (c->x86.task && c->x86.task != (tr->selector | IN_TASK) &&
        read_system(c->env, tr->base + (wide ? 0x20 : 0x0e), &eip, sizeof(eip)))
        FIELD(c->env, X86_EIP, uint64_t) = wide ? eip : eip & 0xffff;
    c->x86.task = 0;
}

/*
 * IRET enters virtual-8086 mode at ring 0 of legacy mode; elsewhere it leaves the flag alone, as the SDM's pseudocode
 * says. Unicorn's looks at nothing but the flag in the frame. EIP, CS and EFLAGS are the first words that it loads.
 */
void x86_iret_begin(void *env, uint32_t shift, uint32_t unused)
{
    (void)unused;
    x86_cpu_of(env)->x86.iret = shift == 1 ? 3 : 0;
}

void x86_iret_end(void *env) { x86_cpu_of(env)->x86.iret = 0; }

uint32_t __real_cpu_ldl_mmuidx_ra_x86_64(void *env, uint64_t va, int mode, uintptr_t ra);
uint32_t __wrap_cpu_ldl_mmuidx_ra_x86_64(void *env, uint64_t va, int mode, uintptr_t ra)
{
    struct cpu *c = x86_cpu_of(env);
    uint32_t value = __real_cpu_ldl_mmuidx_ra_x86_64(env, va, mode, ra);

    if (c->x86.iret && --c->x86.iret == 0)
        value &= ~EFLAGS_VM;
    return value;
}
