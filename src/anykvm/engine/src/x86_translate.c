/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * x86's translation: what Unicorn's translator emits, changed as it emits it. Each instruction is looked at before
 * (x86_decode.c); one that is undefined here is given to the translator as UD2.
 */
#include "x86.h"

#include <string.h>

#define TARGET(name) name##_x86_64
#define TARGET_WRAP(name) __wrap_##name##_x86_64
#define TARGET_REAL(name) __real_##name##_x86_64
#define TARGET_TCG_UC X86_TCG_UC
#define TARGET_TCG_CPU_ENV X86_TCG_CPU_ENV
#define TARGET_ICOUNT (X86_NEG + X86_ICOUNT_DECR - X86_ENV)
#define TARGET_LAST(func) last(c, func)
#define TARGET_AROUND around

uint64_t __wrap_helper_inb_x86_64(void *env, uint32_t port);
uint64_t __wrap_helper_inw_x86_64(void *env, uint32_t port);
uint64_t __wrap_helper_inl_x86_64(void *env, uint32_t port);
void __wrap_helper_outb_x86_64(void *env, uint32_t port, uint32_t v);
void __wrap_helper_outw_x86_64(void *env, uint32_t port, uint32_t v);
void __wrap_helper_outl_x86_64(void *env, uint32_t port, uint32_t v);

void __wrap_helper_wrmsr_x86_64(void *env);
void __wrap_helper_ldmxcsr_x86_64(void *env, uint32_t v);
void helper_load_seg_x86_64(void *env, int n, int selector);

static bool restores_mxcsr(void *func)
{
    return func == (void *)helper_fxrstor_x86_64 || func == (void *)helper_xrstor_x86_64;
}

/*
 * Userspace may write to the instructions after one of port I/O: they are looked up again. After a write to MXCSR they
 * may be translated another way; so they may after a segment was loaded, in code that has limits. A write to an MSR may
 * have sent this very cpu an NMI or an SMI, which comes before the next instruction.
 */
static bool last(const struct cpu *c, void *func)
{
    return (func == (void *)helper_load_seg_x86_64 && !(c->x86.tb_flags & X86_HF_CS64)) ||
           func == (void *)__wrap_helper_ldmxcsr_x86_64 || func == (void *)__wrap_helper_wrmsr_x86_64 || restores_mxcsr(func) ||
           func == (void *)__wrap_helper_outb_x86_64 || func == (void *)__wrap_helper_inb_x86_64 ||
           func == (void *)__wrap_helper_outl_x86_64 || func == (void *)__wrap_helper_inl_x86_64 ||
           func == (void *)__wrap_helper_outw_x86_64 || func == (void *)__wrap_helper_inw_x86_64;
}

static void around(struct cpu *c, void *tcg, void *func, int nargs, void **args, bool before);
#include "translate.h"

/* A null stack segment is of the privilege it is used at. */
static void check_stack_segment(void *env, int n, int selector)
{
    if (n == 2 && !(selector & 0xfffc) && ((uint32_t)selector & 3) != (FIELD(env, X86_HFLAGS, uint32_t) & X86_HF_CPL))
        x86_fault(env, VECTOR_GP, (uintptr_t)__builtin_extract_return_addr(__builtin_return_address(0)));
}

static const struct helper {
    void *func;
    const char *name;
    unsigned flags, sizemask;
} helpers[] = {
    {(void *)x86_mxcsr_read, "mxcsr_read", 0, TCG_ARG1_64BIT},
    {(void *)x86_mxcsr_written, "mxcsr_written", 0, TCG_ARG1_64BIT},
    {(void *)x86_sse_before, "sse_before", 0, TCG_ARG1_64BIT | TCG_ARG2_64BIT},
    {(void *)check_stack_segment, "check_stack_segment", 0, TCG_ARG1_64BIT},
    {(void *)x86_check_access, "check_access", 0, TCG_ARG1_64BIT | TCG_ARG2_64BIT},
    {(void *)x86_task_begin, "task_begin", 0, TCG_ARG1_64BIT},
    {(void *)x86_iret_begin, "iret_begin", 0, TCG_ARG1_64BIT},
    {(void *)x86_iret_end, "iret_end", 0, TCG_ARG1_64BIT},
    {(void *)x86_task_end, "task_end", 0, TCG_ARG1_64BIT},
    {(void *)x86_segment_check_stack, "segment_check_stack", 0, TCG_ARG1_64BIT},
    {(void *)x86_segment_check_call, "segment_check_call", 0, TCG_ARG1_64BIT},
    {(void *)x86_sse_after, "sse_after", 0, TCG_ARG1_64BIT | TCG_ARG2_64BIT},
};

void g_hash_table_insert(void *table, void *key, void *value);
void x86_translate_init(struct cpu *c)
{
    void *table = FIELD(FIELD(c->uc, UC_TCG_CTX, void *), X86_TCG_HELPERS, void *);

    for (size_t i = 0; i < sizeof(helpers) / sizeof(*helpers); i++)
        g_hash_table_insert(table, helpers[i].func, (void *)&helpers[i]);
}

static void call_with_env(void *tcg, void *func)
{
    void *env = (char *)tcg + FIELD(tcg, X86_TCG_CPU_ENV, intptr_t);

    __real_tcg_gen_callN_x86_64(tcg, func, NULL, 1, &env);
}

/* A call with the cpu's state, something that the block computed or nothing, and a constant. */
intptr_t tcg_const_i32_x86_64(void *tcg, int32_t value);
static void call_with(void *tcg, void *func, void *computed, uint32_t constant)
{
    void *env = (char *)tcg + FIELD(tcg, X86_TCG_CPU_ENV, intptr_t);
    void *temp = (char *)tcg + tcg_const_i32_x86_64(tcg, (int32_t)constant);

    if (computed)
        __real_tcg_gen_callN_x86_64(tcg, func, NULL, 3, (void *[]){env, computed, temp});
    else
        __real_tcg_gen_callN_x86_64(tcg, func, NULL, 2, (void *[]){env, temp});
    tcg_temp_free_internal_x86_64(tcg, temp);
}

void helper_lcall_protected_x86_64(void *env, int cs, uint64_t eip, int shift, uint64_t next);
void helper_lret_protected_x86_64(void *env, int shift, int addend);
void helper_iret_protected_x86_64(void *env, int shift, int next);

void helper_ljmp_protected_x86_64(void *env, int cs, uint64_t eip, uint64_t next);

static bool may_switch_task(struct cpu *c, void *func)
{
    return !(c->x86.tb_flags & X86_HF_LMA) &&
           (func == (void *)helper_ljmp_protected_x86_64 || func == (void *)helper_lcall_protected_x86_64 ||
            func == (void *)helper_iret_protected_x86_64);
}

/* An IRET of code that has 32-bit frames and may not enter virtual-8086 mode. */
static bool keeps_mode(struct cpu *c, void *func)
{
    uint32_t flags = c->x86.tb_flags;

    return func == (void *)helper_iret_protected_x86_64 && !(flags & X86_HF_CS64) &&
           ((flags & X86_HF_LMA) || (flags & X86_HF_CPL));
}

/* Far transfers use the stack in a function of Unicorn's. */
static void check_far(struct cpu *c, void *tcg, void *func, void **args)
{
    uint32_t bytes = !(c->x86.tb_flags & X86_HF_CS32) != (c->x86.insn && c->x86.insn->data16) ? 2 : 4;

    if (c->x86.tb_flags & X86_HF_CS64)
        return;
    if (func == (void *)helper_lcall_protected_x86_64)
        call_with(tcg, (void *)x86_segment_check_call, args[1], 2 * bytes);
    if (!(c->x86.tb_flags & X86_HF_LIMITS_DATA))
        return;
    if (func == (void *)helper_lret_protected_x86_64)
        call_with(tcg, (void *)x86_segment_check_stack, NULL, 2 * bytes);
    else if (func == (void *)helper_iret_protected_x86_64)
        call_with(tcg, (void *)x86_segment_check_stack, NULL, 3 * bytes);
}

static void around(struct cpu *c, void *tcg, void *func, int nargs, void **args, bool before)
{
    uint32_t access;
    unsigned address = before ? x86_helper_access(c, func, &access) : 0;

    if (address)
        call_with(tcg, (void *)x86_check_access, args[address], access);
    if (may_switch_task(c, func))
        call_with_env(tcg, before ? (void *)x86_task_begin : (void *)x86_task_end);
    if (before)
        check_far(c, tcg, func, args);
    if (keeps_mode(c, func)) {
        if (before)
            call_with(tcg, (void *)x86_iret_begin, args[1], 0);
        else
            call_with_env(tcg, (void *)x86_iret_end);
    }
    if (!before && restores_mxcsr(func))
        call_with_env(tcg, (void *)x86_mxcsr_written);
    if (before && func == (void *)helper_load_seg_x86_64)
        __real_tcg_gen_callN_x86_64(tcg, (void *)check_stack_segment, NULL, nargs, args);
    if (c->x86.insn && c->x86.insn->sse && (c->x86.tb_flags & X86_HF_XM) && nargs > 1)
        __real_tcg_gen_callN_x86_64(tcg, before ? (void *)x86_sse_before : (void *)x86_sse_after, NULL, 2, args);
}

/* The bytes of an instruction as Unicorn's translator reads them. If it is undefined, it reads another. */
uint32_t __real_cpu_ldub_code_x86_64(void *env, uint64_t va);
uint32_t __wrap_cpu_ldub_code_x86_64(void *env, uint64_t va)
{
    static const uint8_t ud2[] = {0x0f, 0x0b};
    struct cpu *c = x86_cpu_of(env);

    if (c->x86.insn && c->x86.insn->undefined && c->x86.bad_bytes < sizeof(ud2))
        return ud2[c->x86.bad_bytes++];
    x86_segment_check_fetch(env, va, 1);
    return __real_cpu_ldub_code_x86_64(env, va);
}

uint32_t __real_cpu_lduw_code_x86_64(void *env, uint64_t va);
uint32_t __wrap_cpu_lduw_code_x86_64(void *env, uint64_t va)
{
    x86_segment_check_fetch(env, va, 2);
    return __real_cpu_lduw_code_x86_64(env, va);
}

uint32_t __real_cpu_ldl_code_x86_64(void *env, uint64_t va);
uint32_t __wrap_cpu_ldl_code_x86_64(void *env, uint64_t va)
{
    x86_segment_check_fetch(env, va, 4);
    return __real_cpu_ldl_code_x86_64(env, va);
}

/* A load or a store in 64-bit pieces of what must be aligned: the first piece asks. At ring 3 all may have to be. */
static uint32_t aligned(void *tcg, uint32_t memop)
{
    struct cpu *c = cpu_of_uc(FIELD(tcg, X86_TCG_UC, void *));
    struct x86_insn *insn = c->x86.insn;

    if (insn && insn->aligned && (memop & MO_SIZE) == 3) {
        insn->aligned = false;
        return memop | MO_ALIGN_16;
    }
    return x86_checks_alignment(c->x86.tb_flags) ? memop | MO_ALIGN : memop;
}

/* An address is made of an offset and a segment's base: which segment's? */
void __real_tcg_gen_op3_x86_64(void *tcg, int op, uintptr_t a, uintptr_t b, uintptr_t c);
void __wrap_tcg_gen_op3_x86_64(void *tcg, int op, uintptr_t a, uintptr_t b, uintptr_t c)
{
    struct x86_insn *insn = cpu_of_uc(FIELD(tcg, X86_TCG_UC, void *))->x86.insn;

    for (int n = 0; insn && n < 6; n++) {
        uintptr_t base = (uintptr_t)tcg + FIELD(tcg, X86_TCG_SEG_BASE + 8 * n, uintptr_t);

        if (b == base || c == base)
            insn->segment = n;
    }
    __real_tcg_gen_op3_x86_64(tcg, op, a, b, c);
}

static void check_segment(void *tcg, void *va, uint32_t memop, bool store)
{
    struct cpu *c = cpu_of_uc(FIELD(tcg, X86_TCG_UC, void *));
    int n = c->x86.insn ? c->x86.insn->segment : -1;

    if (n >= 0 && x86_segment_checked(c->x86.tb_flags, n, store))
        call_with(tcg, (void *)x86_check_access, (char *)tcg + (intptr_t)va,
                  (uint32_t)n | 16u << (memop & MO_SIZE) | (store ? X86_ACCESS_STORE : 0));
}

void __real_tcg_gen_qemu_ld_i32_x86_64(void *tcg, void *value, void *va, intptr_t mode, uint32_t memop);
void __wrap_tcg_gen_qemu_ld_i32_x86_64(void *tcg, void *value, void *va, intptr_t mode, uint32_t memop)
{
    check_segment(tcg, va, memop, false);
    __real_tcg_gen_qemu_ld_i32_x86_64(tcg, value, va, mode, aligned(tcg, memop));
}

void __real_tcg_gen_qemu_ld_i64_x86_64(void *tcg, void *value, void *va, intptr_t mode, uint32_t memop);
void __wrap_tcg_gen_qemu_ld_i64_x86_64(void *tcg, void *value, void *va, intptr_t mode, uint32_t memop)
{
    check_segment(tcg, va, memop, false);
    __real_tcg_gen_qemu_ld_i64_x86_64(tcg, value, va, mode, aligned(tcg, memop));
}

void __real_tcg_gen_qemu_st_i32_x86_64(void *tcg, void *value, void *va, intptr_t mode, uint32_t memop);
void __wrap_tcg_gen_qemu_st_i32_x86_64(void *tcg, void *value, void *va, intptr_t mode, uint32_t memop)
{
    check_segment(tcg, va, memop, true);
    __real_tcg_gen_qemu_st_i32_x86_64(tcg, value, va, mode, aligned(tcg, memop));
}

void __real_tcg_gen_qemu_st_i64_x86_64(void *tcg, void *value, void *va, intptr_t mode, uint32_t memop);
void __wrap_tcg_gen_qemu_st_i64_x86_64(void *tcg, void *value, void *va, intptr_t mode, uint32_t memop)
{
    check_segment(tcg, va, memop, true);
    __real_tcg_gen_qemu_st_i64_x86_64(tcg, value, va, mode, aligned(tcg, memop));
}

/* Unicorn's translator is given its instructions by our function in place of its own. */

static void (*translate_insn)(void *dc, void *cs); /* the same for every cpu */

static void looked_at(void *dc, void *cs)
{
    struct cpu *c = cpu_of(cs);
    struct x86_insn insn;

    x86_decode(c->env, FIELD(dc, DC_PC_NEXT, uint64_t), c->x86.tb_flags & X86_HF_CS64, &insn);
    c->x86.insn = &insn;
    c->x86.bad_bytes = 0;
    if (insn.uses_mxcsr)
        call_with_env(FIELD(c->uc, UC_TCG_CTX, void *), (void *)x86_mxcsr_read);
    translate_insn(dc, cs);
    c->x86.insn = NULL;
    /* RF is of one instruction; and Unicorn asks for no breakpoint in a block that begins with it. */
    if ((c->x86.tb_flags & X86_EFLAGS_RF) || x86_segment_ends_near(c, FIELD(dc, DC_PC_NEXT, uint64_t)))
        FIELD(FIELD(c->uc, UC_TCG_CTX, char *), TCG_NB_OPS, int) += TCG_MANY_OPS;
}

void __real_translator_loop_x86_64(const void *ops, void *dc, void *cs, void *tb, int max_insns);
void __wrap_translator_loop_x86_64(void *const *ops, void *dc, void *cs, void *tb, int max_insns)
{
    void *ours[TRANSLATOR_OPS];

    memcpy(ours, ops, sizeof(ours));
    translate_insn = ops[TRANSLATE_INSN];
    ours[TRANSLATE_INSN] = (void *)looked_at;
    __real_translator_loop_x86_64(ours, dc, cs, tb, max_insns);
}

uint64_t __real_get_page_addr_code_x86_64(void *env, uint64_t va);
void __wrap_gen_intermediate_code_x86_64(void *cs, void *tb, int max_insns)
{
    struct cpu *c = cpu_of(cs);
    uint64_t ram = __real_get_page_addr_code_x86_64(c->env, FIELD(tb, TB_PC, uint64_t));

    if (ram != ~0ul)
        x86_protect_code(c, ram);
    c->x86.insn = NULL; /* a fetch that faulted left it */
    c->x86.tb_flags = FIELD(tb, TB_FLAGS, uint32_t);
    translate_parallel(c, tb, max_insns);
}
