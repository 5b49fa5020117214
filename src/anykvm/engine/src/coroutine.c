/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Coroutines: a stack of its own for each cpu's guest, switched by hand.
 *
 * ucontext would do, but its switch makes a system call each way to save the signal mask, which costs more than the
 * rest of an exit. The guest side never changes the mask, so only what the C calling convention preserves is saved.
 */
#include "engine.h"

#include <sys/mman.h>
#include <unistd.h>

#define STACK_SIZE (256 * 1024)

void coroutine_swap(void **save, void *load);

#if defined(__x86_64__)
__asm__(
    ".text\n.p2align 4\n.hidden coroutine_swap\n.globl coroutine_swap\n.type coroutine_swap,@function\n"
    "coroutine_swap:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  subq $8, %rsp\n  stmxcsr (%rsp)\n  fnstcw 4(%rsp)\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  ldmxcsr (%rsp)\n  fldcw 4(%rsp)\n  addq $8, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n.size coroutine_swap,.-coroutine_swap\n");
/* The first switch "returns" here with the entry in r12 and its argument in r13. */
__asm__(
    ".text\n.hidden coroutine_boot\n.globl coroutine_boot\n.type coroutine_boot,@function\n"
    "coroutine_boot:\n  movq %r13, %rdi\n  callq *%r12\n  ud2\n.size coroutine_boot,.-coroutine_boot\n");
void coroutine_boot(void);

static void *prepare(char *top, void (*entry)(void *), void *arg)
{
    uint64_t *sp = (uint64_t *)((uintptr_t)top & ~15ul);
    *--sp = 0; /* keeps the stack 16-byte aligned at the call */
    *--sp = 0;
    *--sp = (uint64_t)coroutine_boot;
    *--sp = 0;               /* rbp */
    *--sp = 0;               /* rbx */
    *--sp = (uint64_t)entry; /* r12 */
    *--sp = (uint64_t)arg;   /* r13 */
    *--sp = 0;               /* r14 */
    *--sp = 0;               /* r15 */
    --sp;
    __asm__ volatile("stmxcsr (%0)\n fnstcw 4(%0)" : : "r"(sp) : "memory");
    return sp;
}
#elif defined(__aarch64__)
__asm__(
    ".text\n.p2align 4\n.hidden coroutine_swap\n.globl coroutine_swap\n.type coroutine_swap,%function\n"
    "coroutine_swap:\n"
    "  sub sp, sp, #176\n"
    "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #176\n  ret\n.size coroutine_swap,.-coroutine_swap\n");
__asm__(
    ".text\n.hidden coroutine_boot\n.globl coroutine_boot\n.type coroutine_boot,%function\n"
    "coroutine_boot:\n  mov x0, x20\n  blr x19\n  brk #1\n.size coroutine_boot,.-coroutine_boot\n");
void coroutine_boot(void);

static void *prepare(char *top, void (*entry)(void *), void *arg)
{
    uint64_t *sp = (uint64_t *)(((uintptr_t)top & ~15ul) - 176);
    memset(sp, 0, 176);
    sp[0] = (uint64_t)entry;          /* x19 */
    sp[1] = (uint64_t)arg;            /* x20 */
    sp[11] = (uint64_t)coroutine_boot; /* x30 */
    return sp;
}
#else
#error "anykvm's engine runs on x86-64 and arm64 hosts"
#endif

int coroutine_create(struct coroutine *co, void (*entry)(void *), void *arg)
{
    size_t guard = (size_t)sysconf(_SC_PAGESIZE);

    co->stack_size = STACK_SIZE + guard;
    co->stack = mmap(NULL, co->stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (co->stack == MAP_FAILED) {
        co->stack = NULL;
        return -1;
    }
    if (mprotect(co->stack, guard, PROT_NONE)) {
        coroutine_destroy(co);
        return -1;
    }
    co->sp = prepare((char *)co->stack + co->stack_size, entry, arg);
    return 0;
}

/* Go to the other side; called from both. */
void coroutine_switch(struct coroutine *co)
{
    void *to = co->sp;
    coroutine_swap(&co->sp, to);
}

void coroutine_destroy(struct coroutine *co)
{
    if (co->stack)
        munmap(co->stack, co->stack_size);
    co->stack = NULL;
}
