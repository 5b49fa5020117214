/* SPDX-License-Identifier: GPL-2.0-only */
/* arm64's translation: what Unicorn's translator emits, changed as it emits it. */
#include "arm64.h"

void g_hash_table_insert(void *table, void *key, void *value);
void helper_check_exit_request_aarch64(void *uc, uint32_t in_delay_slot);
void *tcg_temp_new_internal_aarch64(void *tcg, int type, bool local);
void tcg_temp_free_internal_aarch64(void *tcg, void *temp);
void *gen_new_label_aarch64(void *tcg);
void tcg_gen_op1_aarch64(void *tcg, int op, uintptr_t a);
void tcg_gen_op3_aarch64(void *tcg, int op, uintptr_t a, uintptr_t b, uintptr_t c);
void tcg_gen_brcondi_i32_aarch64(void *tcg, int cond, void *a, int32_t b, void *label);

/* Every block that is not this cpu's alone uses host atomics. */
void __real_gen_intermediate_code_aarch64(void *cs, void *tb, int max_insns);
void __wrap_gen_intermediate_code_aarch64(void *cs, void *tb, int max_insns)
{
    struct cpu *c = cpu_of(cs);
    uint32_t *cflags = &FIELD(tb, TB_CFLAGS, uint32_t);
    uint32_t *tcg_cflags = &FIELD(FIELD(c->uc, UC_TCG_CTX, void *), TCG_TB_CFLAGS, uint32_t);
    uint32_t saved = *cflags;

    c->exit_label = NULL;
    c->n_blocks++;
    *cflags |= CF_PARALLEL;
    *tcg_cflags |= CF_PARALLEL;
    __real_gen_intermediate_code_aarch64(cs, tb, max_insns);
    /* Lookups compare the flags and know nothing of this one. */
    *cflags = saved;
}

/* A DSB completes the maintenance before it: it waits for the other cpus. Unicorn's translator makes DMB and DSB one. */
uint32_t __real_cpu_ldl_code_aarch64(void *env, uint64_t va);
uint32_t __wrap_cpu_ldl_code_aarch64(void *env, uint64_t va)
{
    uint32_t insn = __real_cpu_ldl_code_aarch64(env, va);

    cpu_of_uc(FIELD(env, A64_ENV_UC, void *))->insn = insn;
    return insn;
}

static void barrier(void *env)
{
    struct cpu *c = cpu_of_uc(FIELD(env, A64_ENV_UC, void *));

    if (c->unsynced)
        machine_sync(c->m, c);
}

static const struct {
    void *func;
    const char *name;
    unsigned flags, sizemask;
} barrier_info = {(void *)barrier, "barrier", TCG_CALL_NO_RWG, TCG_ARG1_64BIT};

void a64_translate_init(struct cpu *c)
{
    void *table = FIELD(FIELD(c->uc, UC_TCG_CTX, void *), TCG_HELPERS, void *);
    g_hash_table_insert(table, (void *)barrier, (void *)&barrier_info);
}

void __real_tcg_gen_mb_aarch64(void *tcg, int type);
void __real_tcg_gen_callN_aarch64(void *tcg, void *func, void *ret, int nargs, void **args);
void __wrap_tcg_gen_mb_aarch64(void *tcg, int type)
{
    struct cpu *c = cpu_of_uc(FIELD(tcg, TCG_UC, void *));
    void *env = (char *)tcg + FIELD(tcg, TCG_CPU_ENV, intptr_t);

    __real_tcg_gen_mb_aarch64(tcg, type);
    if ((c->insn & A64_BARRIER_MASK) == A64_DSB)
        __real_tcg_gen_callN_aarch64(tcg, (void *)barrier, NULL, 1, &env);
}

/*
 * Each block begins by asking whether to leave. Unicorn calls a function for that; a load and a branch to the block's
 * end, where Unicorn leaves an exit unused, ask the same.
 */
void __wrap_tcg_gen_callN_aarch64(void *tcg, void *func, void *ret, int nargs, void **args)
{
    struct cpu *c = cpu_of_uc(FIELD(tcg, TCG_UC, void *));
    char *temp, *env;

    if (func != (void *)helper_check_exit_request_aarch64) {
        __real_tcg_gen_callN_aarch64(tcg, func, ret, nargs, args);
        return;
    }
    env = (char *)tcg + FIELD(tcg, TCG_CPU_ENV, intptr_t);
    temp = tcg_temp_new_internal_aarch64(tcg, TCG_TYPE_I32, false);
    c->exit_label = gen_new_label_aarch64(tcg);
    tcg_gen_op3_aarch64(tcg, TCG_OP_LD_I32, (uintptr_t)temp, (uintptr_t)env,
                        (uintptr_t)(intptr_t)(A64_NEG + A64_ICOUNT_DECR - A64_ENV));
    tcg_gen_brcondi_i32_aarch64(tcg, TCG_COND_LT, (void *)(temp - (char *)tcg), 0, c->exit_label);
    tcg_temp_free_internal_aarch64(tcg, temp);
}

void __real_tcg_gen_exit_tb_aarch64(void *tcg, void *tb, unsigned index);
void __wrap_tcg_gen_exit_tb_aarch64(void *tcg, void *tb, unsigned index)
{
    struct cpu *c = cpu_of_uc(FIELD(tcg, TCG_UC, void *));

    if (tb && index == TB_EXIT_REQUESTED && c->exit_label) {
        FIELD(c->exit_label, 0, uint32_t) |= 1; /* present */
        tcg_gen_op1_aarch64(tcg, TCG_OP_SET_LABEL, (uintptr_t)c->exit_label);
        c->exit_label = NULL;
    }
    __real_tcg_gen_exit_tb_aarch64(tcg, tb, index);
}
