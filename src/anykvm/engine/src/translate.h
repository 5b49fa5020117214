/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What every target's translation has changed, for a file that defines TARGET(), TARGET_WRAP(), TARGET_REAL(),
 * TARGET_TCG_UC, TARGET_TCG_CPU_ENV, TARGET_ICOUNT (the exit word's place, from the target's state), TARGET_LAST()
 * (an instruction that calls this helper is the last of its block) and TARGET_AROUND (what goes before and after a call).
 */
#include "engine.h"

void TARGET(helper_check_exit_request)(void *uc, uint32_t in_delay_slot);
void *TARGET(tcg_temp_new_internal)(void *tcg, int type, bool local);
void TARGET(tcg_temp_free_internal)(void *tcg, void *temp);
void *TARGET(gen_new_label)(void *tcg);
void TARGET(tcg_gen_op1)(void *tcg, int op, uintptr_t a);
void TARGET(tcg_gen_op3)(void *tcg, int op, uintptr_t a, uintptr_t b, uintptr_t c);
void TARGET(tcg_gen_brcondi_i32)(void *tcg, int cond, void *a, int32_t b, void *label);

/* Every block uses host atomics: its memory may be another cpu's too. */
void TARGET_REAL(gen_intermediate_code)(void *cs, void *tb, int max_insns);
static void translate_parallel(struct cpu *c, void *tb, int max_insns)
{
    uint32_t *cflags = &FIELD(tb, TB_CFLAGS, uint32_t);
    uint32_t *tcg_cflags = &FIELD(FIELD(c->uc, UC_TCG_CTX, void *), TCG_TB_CFLAGS, uint32_t);
    uint32_t saved = *cflags;

    c->exit_label = NULL;
    c->n_blocks++;
    if (!c->alone) {
        *cflags |= CF_PARALLEL;
        *tcg_cflags |= CF_PARALLEL;
    }
    TARGET_REAL(gen_intermediate_code)(c->cs, tb, max_insns);
    /* Lookups compare the flags and know nothing of this one. */
    *cflags = saved;
}

/*
 * Each block begins by asking whether to leave. Unicorn calls a function for that; a load and a branch to the block's
 * end, where Unicorn leaves an exit unused, ask the same.
 */
void TARGET_REAL(tcg_gen_callN)(void *tcg, void *func, void *ret, int nargs, void **args);
void TARGET_WRAP(tcg_gen_callN)(void *tcg, void *func, void *ret, int nargs, void **args)
{
    struct cpu *c = cpu_of_uc(FIELD(tcg, TARGET_TCG_UC, void *));
    char *temp, *env;

    if (func != (void *)TARGET(helper_check_exit_request)) {
        if (TARGET_LAST(func))
            FIELD(tcg, TCG_NB_OPS, int) += TCG_MANY_OPS;
        TARGET_AROUND(c, tcg, func, nargs, args, true);
        TARGET_REAL(tcg_gen_callN)(tcg, func, ret, nargs, args);
        TARGET_AROUND(c, tcg, func, nargs, args, false);
        return;
    }
    if (c->alone)
        return;
    env = (char *)tcg + FIELD(tcg, TARGET_TCG_CPU_ENV, intptr_t);
    temp = TARGET(tcg_temp_new_internal)(tcg, TCG_TYPE_I32, false);
    c->exit_label = TARGET(gen_new_label)(tcg);
    TARGET(tcg_gen_op3)(tcg, TCG_OP_LD_I32, (uintptr_t)temp, (uintptr_t)env, (uintptr_t)(intptr_t)TARGET_ICOUNT);
    TARGET(tcg_gen_brcondi_i32)(tcg, TCG_COND_LT, (void *)(temp - (char *)tcg), 0, c->exit_label);
    TARGET(tcg_temp_free_internal)(tcg, temp);
}

void TARGET_REAL(tcg_gen_exit_tb)(void *tcg, void *tb, unsigned index);
void TARGET_WRAP(tcg_gen_exit_tb)(void *tcg, void *tb, unsigned index)
{
    struct cpu *c = cpu_of_uc(FIELD(tcg, TARGET_TCG_UC, void *));

    if (tb && index == TB_EXIT_REQUESTED && c->exit_label) {
        FIELD(c->exit_label, 0, uint32_t) |= 1; /* present */
        TARGET(tcg_gen_op1)(tcg, TCG_OP_SET_LABEL, (uintptr_t)c->exit_label);
        c->exit_label = NULL;
    }
    TARGET_REAL(tcg_gen_exit_tb)(tcg, tb, index);
}

/* Where Unicorn would end the process for a state that it cannot run, the cpu ends with an error. */
void TARGET(cpu_loop_exit)(void *cs) __attribute__((noreturn));
void TARGET_WRAP(cpu_abort)(void *cs, const char *format, ...)
{
    (void)format;
    FIELD(FIELD(cs, CS_UC, char *), UC_INVALID_ERROR, int32_t) = UC_ERR_EXCEPTION;
    FIELD(cs, CS_EXCEPTION_INDEX, int32_t) = EXCP_INTERRUPT;
    TARGET(cpu_loop_exit)(cs);
}

/* Unicorn exchanges by a load and a store, which is not atomic between cpus; its compare-and-exchange is. */
#define EXCHANGE(name, type)                                                                                              \
    type TARGET(helper_atomic_cmpxchg##name##_mmu)(void *env, uint64_t va, type expected, type value, uint32_t oi,        \
                                                   uintptr_t ra);                                                        \
    type TARGET_WRAP(helper_atomic_xchg##name)(void *env, uint64_t va, type value, uint32_t oi)                           \
    {                                                                                                                     \
        uintptr_t ra = (uintptr_t)__builtin_extract_return_addr(__builtin_return_address(0));                             \
        type expected = 0, found;                                                                                         \
                                                                                                                          \
        while ((found = TARGET(helper_atomic_cmpxchg##name##_mmu)(env, va, expected, value, oi, ra)) != expected)         \
            expected = found;                                                                                             \
        return found;                                                                                                     \
    }
EXCHANGE(b, uint32_t)
EXCHANGE(w_le, uint32_t)
EXCHANGE(l_le, uint32_t)
EXCHANGE(q_le, uint64_t)
EXCHANGE(w_be, uint32_t)
EXCHANGE(l_be, uint32_t)
EXCHANGE(q_be, uint64_t)
