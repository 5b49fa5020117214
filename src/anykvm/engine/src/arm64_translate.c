/* SPDX-License-Identifier: GPL-2.0-only */
/* arm64's translation: what Unicorn's translator emits, changed as it emits it. */
#include "arm64.h"

#define TARGET(name) name##_aarch64
#define TARGET_WRAP(name) __wrap_##name##_aarch64
#define TARGET_REAL(name) __real_##name##_aarch64
#define TARGET_TCG_UC A64_TCG_UC
#define TARGET_TCG_CPU_ENV A64_TCG_CPU_ENV
#define TARGET_ICOUNT (A64_NEG + A64_ICOUNT_DECR - A64_ENV)
#define TARGET_LAST(func) false
#define TARGET_AROUND(c, tcg, func, nargs, args, before) ((void)0)
#include "translate.h"

void g_hash_table_insert(void *table, void *key, void *value);
void __wrap_gen_intermediate_code_aarch64(void *cs, void *tb, int max_insns)
{
    translate_parallel(cpu_of(cs), tb, max_insns);
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
    void *table = FIELD(FIELD(c->uc, UC_TCG_CTX, void *), A64_TCG_HELPERS, void *);
    g_hash_table_insert(table, (void *)barrier, (void *)&barrier_info);
}

void __real_tcg_gen_mb_aarch64(void *tcg, int type);
void __wrap_tcg_gen_mb_aarch64(void *tcg, int type)
{
    struct cpu *c = cpu_of_uc(FIELD(tcg, A64_TCG_UC, void *));
    void *env = (char *)tcg + FIELD(tcg, A64_TCG_CPU_ENV, intptr_t);

    __real_tcg_gen_mb_aarch64(tcg, type);
    if ((c->insn & A64_BARRIER_MASK) == A64_DSB)
        __real_tcg_gen_callN_aarch64(tcg, (void *)barrier, NULL, 1, &env);
}
