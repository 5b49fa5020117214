/* SPDX-License-Identifier: GPL-2.0-only */
/* What x86's rooms share. */
#ifndef ANYKVM_X86_H
#define ANYKVM_X86_H

#include "engine.h"

void cpu_loop_exit_x86_64(void *cs) __attribute__((noreturn));
void cpu_loop_exit_restore_x86_64(void *cs, uintptr_t ra) __attribute__((noreturn));
bool cpu_restore_state_x86_64(void *cs, uintptr_t ra, bool will_exit);
void raise_exception_err_x86_64(void *env, int vector, int error_code) __attribute__((noreturn));
void x86_update_hflags_x86_64(void *env);

static inline struct cpu *x86_cpu_of(void *env) { return cpu_of_uc(FIELD(env, X86_ENV_UC, void *)); }
static inline uint64_t *x86_regs(void *env) { return &FIELD(env, X86_REGS, uint64_t); }

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11 };

void x86_apply(struct cpu *c, const struct op *op);
void x86_forget_code(struct cpu *c, struct region *r);
void x86_leave_region(struct cpu *c, struct region *r);
bool x86_debug_hits(struct cpu *c);
unsigned x86_debug_code(struct cpu *c);
void x86_set_dr(struct cpu *c, int n, uint64_t value);
void x86_set_debug(struct cpu *c, const struct x86_debug *wanted);
bool x86_device_piece(struct cpu *c, uint64_t pa, unsigned size, uint64_t *data, bool store);
void x86_distrust(struct cpu *c);
bool x86_stale(struct cpu *c, uintptr_t ra);
bool x86_trust_host(struct cpu *c, uint64_t host);
void x86_jump_doubt(struct cpu *c);
void x86_protect_code(struct cpu *c, uint64_t ram);
/* What the translator asks of an instruction before Unicorn's does. */
struct x86_insn {
    bool undefined;
    bool aligned;     /* an operand of 16 bytes in memory must be aligned */
    bool sse;         /* it may raise a floating-point exception of SSE */
    bool data16;      /* it has the prefix for operands of the other size */
    int segment;      /* of the last address that is not flat, -1 before there is one */
    bool uses_mxcsr;  /* STMXCSR, FXSAVE, XSAVE, and FXRSTOR and XRSTOR, which may leave it as it is */
};
void x86_decode(void *env, uint64_t va, bool code64, struct x86_insn *out);

bool x86_modifies(void *env, uint64_t va, bool code64);
bool x86_uses_stack(void *env, uint64_t va, bool store);
void x86_segment_flags(struct cpu *c);
bool x86_segment_checked(uint32_t tb_flags, int n, bool store);
void x86_segment_check(void *env, uint64_t va, uint32_t access, uintptr_t ra);
void x86_segment_check_frame(struct cpu *c, uint32_t vector, int kind);
void x86_segment_check_stack(void *env, uint32_t far);
void x86_segment_check_call(void *env, uint32_t selector, uint32_t bytes);
void x86_task_begin(void *env);
void x86_task_end(void *env);
void x86_task_fault(struct cpu *c);
void x86_iret_begin(void *env, uint32_t shift, uint32_t unused);
void x86_iret_end(void *env);
void x86_segment_check_fetch(void *env, uint64_t va, uint32_t size);
bool x86_segment_ends_near(struct cpu *c, uint64_t va);
enum { X86_FRAME_INTERRUPT, X86_FRAME_EXCEPTION, X86_FRAME_SOFTWARE };

/* An access: the segment's number or none, bytes, whether it stores, whether a breakpoint is to be asked, its alignment - 1. */
#define X86_ACCESS_FLAT 0xfu
#define X86_ACCESS_STORE 0x10000u
#define X86_ACCESS_ATOMIC 0x20000u
#define X86_ACCESS_ALIGN_SHIFT 20
void x86_check_access(void *env, uint64_t va, uint32_t access);
unsigned x86_helper_access(struct cpu *c, void *func, uint32_t *access);
static inline bool x86_checks_alignment(uint32_t tb_flags)
{
    return (tb_flags & (X86_HF_AM | X86_EFLAGS_AC)) == (X86_HF_AM | X86_EFLAGS_AC) && (tb_flags & X86_HF_CPL) == 3;
}

void helper_fxrstor_x86_64(void *env, uint64_t va);
void helper_xrstor_x86_64(void *env, uint64_t va, uint64_t rfbm);

void *tlb_vaddr_to_host_x86_64(void *env, uint64_t addr, int access, int mmu_idx);
void x86_fault(void *env, int vector, uintptr_t ra) __attribute__((noreturn));
void x86_mxcsr_read(void *env);
void x86_mxcsr_written(void *env);
void x86_sse_before(void *env, uint64_t *dest);
void x86_sse_after(void *env, uint64_t *dest);
void x86_own_hflags(void *env);
void x86_translate_init(struct cpu *c);

#define VECTOR_UD 6
#define VECTOR_SS 12
#define VECTOR_GP 13
#define VECTOR_AC 17
#define VECTOR_XM 19

bool x86_native_msr(uint32_t index);
bool x86_msr_value_ok(uint32_t index, uint64_t v);
uint64_t x86_tsc(struct cpu *c);
int x86_jump_setup(struct cpu *c);
bool x86_walk(struct cpu *c, uint64_t va, int access, int mode);
void x86_note_low(struct cpu *c, uint64_t va, int mode);
void x86_flushed_all(struct cpu *c);

#endif
