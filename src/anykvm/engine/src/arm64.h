/* SPDX-License-Identifier: GPL-2.0-only */
/* What arm64's rooms share. */
#ifndef ANYKVM_ARM64_H
#define ANYKVM_ARM64_H

#include "engine.h"

typedef struct a64_cpreg cpreg;

void cpu_loop_exit_aarch64(void *cs) __attribute__((noreturn));

void a64_translate_init(struct cpu *c);
void a64_leave_region(struct cpu *c, struct region *r);
void a64_apply(struct cpu *c, const struct op *op);
void a64_ic_ivau(void *env, const cpreg *ri, uint64_t va);
void a64_ic_iallu(void *env, const cpreg *ri, uint64_t unused);

#endif
