/* SPDX-License-Identifier: GPL-2.0-only */
/* x86 on the engine: exceptions are native; interrupts ask for their vector; what needs policy parks. */
#include "x86.h"

int cpu_exec_x86_64(void *uc, void *cs);
void cpu_reset(void *cs);
void x86_cpu_do_interrupt_x86_64(void *cs);
bool x86_cpu_exec_interrupt_x86_64(void *cs, int request);
void do_interrupt_x86_hardirq_x86_64(void *env, int vector, int is_hw);
void cpu_x86_update_cr4_x86_64(void *env, uint32_t v);
uint64_t qemu_ram_addr_from_host_x86_64(void *uc, void *ptr);

#define VECTOR_DB 1
#define VECTOR_BP 3
#define VECTOR_NP 11
#define VECTOR_PF 14
#define ERROR_WRITE 2u
#define EFLAGS_IF 0x200u
#define NO_VECTOR 256
#define VMCALL 0xc1
#define MONITOR 0xc8
#define MWAIT 0xc9
#define VMMCALL 0xd9

static bool open_to_interrupts(struct cpu *c)
{
    return (FIELD(c->env, X86_EFLAGS, uint32_t) & EFLAGS_IF) &&
           !(FIELD(c->env, X86_HFLAGS, uint32_t) & X86_HF_INHIBIT_IRQ);
}

/* Park between instructions. An exception that the cpu is given there comes before the next one, not at the next exit. */
static uint64_t park_between(struct cpu *c, int kind, uint64_t a)
{
    uint64_t answer = cpu_park(c, kind, a, 0, 0);

    if (c->x86.raise >= 0)
        FIELD(c->cs, CS_EXIT_REQUEST, bool) = true;
    return answer;
}

/* A debugger's step ends with it, at the handler. */
static void deliver(struct cpu *c, int vector)
{
    x86_segment_check_frame(c, (uint32_t)vector, X86_FRAME_INTERRUPT);
    do_interrupt_x86_hardirq_x86_64(c->env, vector, 1);
    if (c->x86.stepping) {
        FIELD(c->cs, CS_CFLAGS_NEXT, uint32_t) = ~0u;
        FIELD(c->cs, CS_EXIT_REQUEST, bool) = true;
    }
}

static bool attend(struct cpu *c)
{
    void *cs = c->cs;
    uint64_t vector;

    if (cpu_attention(c) && !c->x86.debug.hits) {
        FIELD(cs, CS_EXIT_REQUEST, bool) = true;
        return false;
    }
    if (c->x86.debug.hits && x86_debug_hits(c)) {
        FIELD(cs, CS_EXIT_REQUEST, bool) = true;
        return false;
    }
    if (c->x86.debug.block_irq)
        return false;
    if (c->alone && !c->x86.stepping)
        return false; /* what comes next is the instruction */
    if (atomic_load_explicit(&c->x86.nmi, memory_order_relaxed) &&
        !(FIELD(c->env, X86_HFLAGS2, uint32_t) & X86_HF2_NMI)) {
        atomic_store(&c->x86.nmi, 0);
        FIELD(c->env, X86_HFLAGS2, uint32_t) |= X86_HF2_NMI;
        deliver(c, 2);
        return true;
    }
    if (c->x86.inject < 0 && !c->x86.want_window && !(atomic_load_explicit(&c->lines, memory_order_relaxed) & 1))
        return false;
    if (!open_to_interrupts(c))
        return false;
    if (c->x86.inject >= 0) {
        vector = (uint64_t)c->x86.inject;
        c->x86.inject = -1;
        deliver(c, (int)vector);
        return true;
    }
    if (atomic_load(&c->lines) & 1) {
        vector = park_between(c, EV_IRQ_ACK, 0);
        if (vector >= NO_VECTOR)
            return false;
        deliver(c, (int)vector);
        return true;
    }
    park_between(c, EV_IRQ_WINDOW, 0);
    return c->x86.inject >= 0 ? attend(c) : false;
}

/* Asked at each return to the main loop; Unicorn's request word is never zero, so it always asks. */
static bool exec_interrupt(void *cs, int request)
{
    struct cpu *c = cpu_of(cs);
    bool delivered = attend(c);

    (void)request;
    if ((FIELD(c->env, X86_HFLAGS, uint32_t) & (X86_HF_CS64 | X86_HF_LIMITS)) != X86_HF_CS64)
        x86_segment_flags(c);
    return delivered;
}

static bool has_work(void *cs)
{
    (void)cs;
    return false;
}

/* The instruction at the instruction pointer, if all of it is on one page. */
static const unsigned char *code_at(struct cpu *c, unsigned length)
{
    uint64_t va = ((struct x86_segment *)(c->env + X86_SEGS))[1].base + FIELD(c->env, X86_EIP, uint64_t);
    uint32_t hflags = FIELD(c->env, X86_HFLAGS, uint32_t);

    if ((va & (GUEST_PAGE - 1)) > GUEST_PAGE - length)
        return NULL;
    return tlb_vaddr_to_host_x86_64(c->env, va, ACCESS_FETCH, (hflags & X86_HF_CPL) == 3 ? 1 : 2);
}

/* The third byte of 0F 01 xx, 0 if it is another instruction. */
static unsigned char group_7(struct cpu *c)
{
    const unsigned char *at = code_at(c, 3);

    return at && at[0] == 0x0f && at[1] == 0x01 ? at[2] : 0;
}

static bool icebp(struct cpu *c)
{
    const unsigned char *at = code_at(c, 1);

    return at && at[0] == 0xf1;
}

/* VMCALL and VMMCALL are undefined to Unicorn, MONITOR and MWAIT to its CPU: true if they have been done. */
static bool undefined_to_unicorn(struct cpu *c)
{
    unsigned char which = group_7(c);
    bool hint = which == MONITOR || which == MWAIT;

    if (hint ? !c->x86.idle_hints || (FIELD(c->env, X86_HFLAGS, uint32_t) & X86_HF_CPL)
             : which != VMCALL && which != VMMCALL)
        return false;
    FIELD(c->env, X86_OLD_EXCEPTION, int32_t) = -1;
    FIELD(c->env, X86_EIP, uint64_t) += 3;
    if (!hint)
        park_between(c, EV_HYPERCALL, which);
    return true;
}

/* RSM, to whoever knows what was saved: the state is replaced while it is parked. Unicorn's CPU is never in SMM. */
static bool rsm(struct cpu *c)
{
    const unsigned char *at = c->x86.smm ? code_at(c, 2) : NULL;

    if (!at || at[0] != 0x0f || at[1] != 0xaa)
        return false;
    FIELD(c->env, X86_OLD_EXCEPTION, int32_t) = -1;
    park_between(c, EV_RSM, 0);
    return true;
}

/* Unicorn has the error codes of long mode's gates wrong: vector * 16 + 2. */
static void check_gate(struct cpu *c, uint32_t vector, bool software)
{
    struct x86_segment *idt = (struct x86_segment *)(c->env + X86_SEGS) + X86_IDT;
    uint32_t hflags = FIELD(c->env, X86_HFLAGS, uint32_t), high;
    const uint8_t *gate;
    int type;

    if (!(hflags & X86_HF_LMA))
        return;
    if (vector * 16 + 15 > idt->limit)
        raise_exception_err_x86_64(c->env, VECTOR_GP, (int)vector * 8 + 2);
    gate = tlb_vaddr_to_host_x86_64(c->env, idt->base + vector * 16 + 4, ACCESS_LOAD, X86_KERNEL_MODE);
    if (!gate)
        return; /* it faults as it is read */
    memcpy(&high, gate, sizeof(high));
    type = high >> 8 & 0x1f;
    if ((type != 14 && type != 15) || (software && (high >> 13 & 3) < (hflags & X86_HF_CPL)))
        raise_exception_err_x86_64(c->env, VECTOR_GP, (int)vector * 8 + 2);
    if (!(high >> 15 & 1))
        raise_exception_err_x86_64(c->env, VECTOR_NP, (int)vector * 8 + 2);
}

/* The page fault of an instruction that reads a place and writes it is that of a write, on a processor. */
static void check_read_for_write(struct cpu *c)
{
    uint32_t *error = &FIELD(c->env, X86_ERROR_CODE, uint32_t);
    uint64_t pc = ((struct x86_segment *)(c->env + X86_SEGS))[1].base + FIELD(c->env, X86_EIP, uint64_t);

    if (c->fill.active && c->fill.ra && c->fill.access == ACCESS_LOAD && !(*error & ERROR_WRITE) &&
        x86_modifies(c->env, pc, FIELD(c->env, X86_HFLAGS, uint32_t) & X86_HF_CS64))
        *error |= ERROR_WRITE;
}

static void on_exception(void *uc, uint32_t number, void *unused)
{
    struct cpu *c = cpu_of_uc(uc);
    bool software = false;

    (void)unused;
    FIELD(uc, UC_INVALID_ERROR, int32_t) = 0;
    if (c->x86.task)
        x86_task_fault(c);
    c->x86.iret = 0;
    if (number == VECTOR_PF)
        check_read_for_write(c);
    c->fill.active = false;
    c->x86.unaligned.size = 0;
    if (number == VECTOR_UD && !c->x86.own_ud && (undefined_to_unicorn(c) || rsm(c)))
        return;
    if (FIELD(c->env, X86_EXC_IS_INT, int32_t)) {
        /* The address behind it is kept elsewhere; a fault on the way in is at the instruction. */
        FIELD(c->env, X86_EIP, uint64_t) -= (uint64_t)c->x86.int_length;
        software = true;
    }
    if (number == VECTOR_BP && c->x86.debug.int3 && software) {
        FIELD(c->env, X86_OLD_EXCEPTION, int32_t) = -1;
        FIELD(c->env, X86_EXC_IS_INT, int32_t) = 0;
        cpu_park(c, EV_BREAK, 0, 0, 0);
        /* Out of the loop, so that an exception the debugger gives it comes first. */
        FIELD(c->cs, CS_EXIT_REQUEST, bool) = true;
        return;
    }
    if (number == VECTOR_UD && !c->x86.own_ud && icebp(c)) {
        /* A trap. */
        FIELD(c->env, X86_EIP, uint64_t) += 1;
        FIELD(c->cs, CS_EXCEPTION_INDEX, int32_t) = VECTOR_DB;
    }
    c->x86.own_ud = false;
    check_gate(c, number, software);
    x86_segment_check_frame(c, number, software ? X86_FRAME_SOFTWARE : X86_FRAME_EXCEPTION);
    x86_cpu_do_interrupt_x86_64(c->cs);
}

/* HLT halts; a triple fault comes out the same way, not halted. */
static int stopped(struct cpu *c, int r)
{
    if (r != EXCP_HLT && r != EXCP_HALTED)
        return EV_NONE;
    if (FIELD(c->cs, CS_HALTED, uint32_t))
        return EV_WFI;
    FIELD(c->env, X86_OLD_EXCEPTION, int32_t) = -1;
    return EV_SHUTDOWN;
}

/* An access that must be aligned is not: of 16 bytes, or any while alignment is checked. */
static void __attribute__((noreturn)) unaligned(void *cs, uint64_t va, int access, int mode, uintptr_t ra)
{
    struct cpu *c = cpu_of(cs);
    uint32_t hflags = FIELD(c->env, X86_HFLAGS, uint32_t);
    bool checks = (hflags & X86_HF_CPL) == 3 && (hflags & X86_HF_AM) &&
                  (FIELD(c->env, X86_EFLAGS, uint32_t) & X86_EFLAGS_AC);

    (void)va, (void)access, (void)mode;
    x86_fault(c->env, checks ? VECTOR_AC : VECTOR_GP, ra);
}

static int setup(struct cpu *c)
{
    char *class = FIELD(c->cs, CS_CLASS, char *);
    uc_hook hook;

    if (x86_jump_setup(c))
        return -1;
    if (uc_hook_add(c->uc, &hook, UC_HOOK_INTR, (void *)on_exception, NULL, 1, 0) != UC_ERR_OK)
        return -1;
    FIELD(class, CC_EXEC_INTERRUPT, void *) = (void *)exec_interrupt;
    FIELD(class, CC_HAS_WORK, void *) = (void *)has_work;
    FIELD(class, CC_UNALIGNED, void *) = (void *)unaligned;
    x86_translate_init(c);
    return 0;
}

/* Real mode at the reset vector. */
static void reset(struct cpu *c)
{
    cpu_reset(c->cs);
    FIELD(c->uc, UC_STOP_INTERRUPT, void *) = NULL;
    cpu_x86_update_cr4_x86_64(c->env, 0);
    FIELD(c->env, X86_CC_OP, uint32_t) = X86_CC_OP_EFLAGS;
    FIELD(c->env, X86_CC_SRC, uint64_t) = 0;
    FIELD(c->env, X86_DF, int32_t) = 1;
    x86_update_hflags_x86_64(c->env);
    x86_mxcsr_written(c->env);
    c->x86.inject = c->x86.raise = c->x86.raise_error = -1;
    c->x86.want_window = false;
    atomic_store(&c->x86.nmi, 0);
}

static void refresh(struct cpu *c)
{
    x86_update_hflags_x86_64(c->env);
    x86_own_hflags(c->env);
}

static void sync_state(struct cpu *c, uintptr_t ra)
{
    if (ra)
        cpu_restore_state_x86_64(c->cs, ra, false);
}

/* Give the parked instruction up: with an exception if there is one to raise. */
static void restore(struct cpu *c, uintptr_t ra)
{
    int vector = c->x86.raise, code = c->x86.raise_error;

    if (vector >= 0) {
        c->abandon = false;
        c->x86.raise = c->x86.raise_error = -1;
        if (ra)
            cpu_restore_state_x86_64(c->cs, ra, true);
        raise_exception_err_x86_64(c->env, vector, code < 0 ? 0 : code);
    }
    FIELD(c->cs, CS_EXCEPTION_INDEX, int32_t) = EXCP_INTERRUPT;
    if (ra)
        cpu_loop_exit_restore_x86_64(c->cs, ra);
    cpu_loop_exit_x86_64(c->cs);
}

static bool sysreg(struct cpu *c, uint32_t enc, uint64_t *value, bool write)
{
    uc_x86_msr msr = {.rid = enc, .value = *value};
    bool done;

    if (!x86_native_msr(enc) || (write && !x86_msr_value_ok(enc, *value)))
        return false;

    c->x86.direct = true;
    done = (write ? uc_reg_write(c->uc, UC_X86_REG_MSR, &msr) : uc_reg_read(c->uc, UC_X86_REG_MSR, &msr)) == UC_ERR_OK;
    c->x86.direct = false;
    if (done && !write)
        *value = msr.value;
    return done;
}

/* Check the layout table against what the public API shows; the name of what is wrong, or NULL. */
static const char *verify(uc_engine *uc)
{
    uint64_t magic = 0x0123456789abcdef, rip = 0x7654321;
    uc_x86_msr lstar = {.rid = 0xc0000082, .value = rip};
    char *cs, *env;

    uc_reg_write(uc, UC_X86_REG_R9, &magic);
    cs = FIELD(uc, UC_CPU, char *);
    if (!cs || FIELD(cs, CS_UC, void *) != (void *)uc)
        return "x86 CPUState";
    env = FIELD(cs, CS_ENV, char *);
    if (env != cs + X86_ENV || FIELD(env, X86_ENV_UC, void *) != (void *)uc)
        return "CPUX86State";
    if (FIELD(cs, CS_CLASS, char *) != cs + X86_CLASS)
        return "x86 CPUClass";
    if (FIELD(FIELD(cs, CS_CLASS, char *), CC_EXEC_INTERRUPT, void *) != (void *)x86_cpu_exec_interrupt_x86_64)
        return "x86 cpu_exec_interrupt";
    if (FIELD(cs, CS_ICOUNT_DECR, char *) != cs + X86_NEG + X86_ICOUNT_DECR)
        return "x86 icount_decr";
    if (x86_regs(env)[R9] != magic)
        return "x86 regs";
    uc_reg_write(uc, UC_X86_REG_RIP, &rip);
    if (FIELD(env, X86_EIP, uint64_t) != rip)
        return "eip";
    uc_reg_write(uc, UC_X86_REG_MSR, &lstar);
    return FIELD(env, X86_LSTAR, uint64_t) == rip ? NULL : "lstar";
}

const struct target target_x86 = {
    .name = "x86",
    .uc_arch = UC_ARCH_X86,
    .uc_mode = UC_MODE_64,
    .cpu_model = UC_CPU_X86_HASWELL,
    .tracks_code = true,
    .ram_of = qemu_ram_addr_from_host_x86_64,
    .forget_code = x86_forget_code,
    .leave_region = x86_leave_region,
    .debug_code = x86_debug_code,
    .device_piece = x86_device_piece,
    .distrust = x86_distrust,
    .stale = x86_stale,
    .stopped = stopped,
    .verify = verify,
    .setup = setup,
    .exec = cpu_exec_x86_64,
    .reset = reset,
    .refresh = refresh,
    .apply = x86_apply,
    .sysreg = sysreg,
    .sync = sync_state,
    .restore = restore,
};
