/* SPDX-License-Identifier: GPL-2.0-only */
/* arm64 on the engine: exceptions and interrupts are native, hypercalls and trapped system registers park. */
#include "arm64.h"

uint64_t qemu_ram_addr_from_host_aarch64(void *uc, void *ptr);
int cpu_exec_aarch64(void *uc, void *cs);
void cpu_reset(void *cs);
void arm_cpu_do_interrupt_aarch64(void *cs);
bool arm_cpu_exec_interrupt_aarch64(void *cs, int request);
void arm_rebuild_hflags_aarch64(void *env);
void cpu_loop_exit_restore_aarch64(void *cs, uintptr_t ra) __attribute__((noreturn));
bool cpu_restore_state_aarch64(void *cs, uintptr_t ra, bool will_exit);
void define_one_arm_cp_reg_with_opaque_aarch64(void *cpu, const cpreg *r, void *opaque);
const cpreg *get_arm_cp_reginfo_aarch64(void *table, uint32_t key);

/* Interrupts: asked at each return to the main loop; Unicorn's request word is never zero, so it always asks. */

static bool exec_interrupt(void *cs, int request)
{
    struct cpu *c = cpu_of(cs);
    unsigned lines;

    (void)request;
    if (cpu_attention(c)) {
        FIELD(cs, CS_EXIT_REQUEST, bool) = true;
        return false;
    }
    lines = atomic_load_explicit(&c->lines, memory_order_relaxed);
    if (!lines)
        return false;
    return arm_cpu_exec_interrupt_aarch64(cs, (lines & 1 ? INTERRUPT_HARD : 0) | (lines & 2 ? INTERRUPT_FIQ : 0));
}

static bool has_work(void *cs)
{
    struct cpu *c = cpu_of(cs);
    return atomic_load(&c->lines) || atomic_load(&c->kicked);
}

/* Exceptions: delivered here, natively; hypercalls park. The state is coherent. */
static void on_exception(void *uc, uint32_t number, void *unused)
{
    struct cpu *c = cpu_of_uc(uc);
    uint32_t syndrome = FIELD(c->env, A64_EXC_SYNDROME, uint32_t);

    (void)unused;
    FIELD(uc, UC_INVALID_ERROR, int32_t) = 0;
    c->fill.active = false;
    if (number == A64_EXCP_HVC)
        cpu_park(c, EV_HVC, syndrome & 0xffff, 0, 0);
    else if (number == A64_EXCP_SMC)
        cpu_park(c, EV_SMC, syndrome & 0xffff, 0, 0);
    else
        arm_cpu_do_interrupt_aarch64(c->cs);
}

/* System registers */

static uint64_t trap_read(void *env, const cpreg *ri)
{
    struct cpu *c = cpu_of_uc(FIELD(env, A64_ENV_UC, void *));
    uint64_t v = cpu_park(c, EV_SYSREG_READ, ((struct trap *)ri->opaque)->enc, 0, 0);

    if (c->abandon)
        c->m->target->restore(c, 0);
    return v;
}

static void trap_write(void *env, const cpreg *ri, uint64_t value)
{
    struct cpu *c = cpu_of_uc(FIELD(env, A64_ENV_UC, void *));

    cpu_park(c, EV_SYSREG_WRITE, ((struct trap *)ri->opaque)->enc, 0, value);
    if (c->abandon)
        c->m->target->restore(c, 0);
}

static cpreg describe(uint32_t enc)
{
    cpreg r = {0};

    r.name = "anykvm";
    r.opc0 = enc >> 14 & 3;
    r.opc1 = enc >> 11 & 7;
    r.crn = enc >> 7 & 15;
    r.crm = enc >> 3 & 15;
    r.opc2 = enc & 7;
    r.state = CPREG_STATE_AA64;
    r.type = CPREG_OVERRIDE | CPREG_NO_RAW;
    return r;
}

static void define(struct cpu *c, const cpreg *r, void *opaque)
{
    define_one_arm_cp_reg_with_opaque_aarch64(c->cs, r, opaque);
}

#define SYS(op0, op1, crn, crm, op2) ((op0) << 14 | (op1) << 11 | (crn) << 7 | (crm) << 3 | (op2))

/* Without side effects; false for a register that is not there, or is only an action or a trap. */
static bool sysreg(struct cpu *c, uint32_t enc, uint64_t *value, bool write)
{
    uc_arm64_cp_reg r = {.crn = enc >> 7 & 15, .crm = enc >> 3 & 15, .op0 = enc >> 14 & 3, .op1 = enc >> 11 & 7,
                         .op2 = enc & 7, .val = *value};
    const cpreg *ri = get_arm_cp_reginfo_aarch64(FIELD(c->cs, A64_CP_REGS, void *), CPREG_KEY | enc);

    if (!ri || (ri->type & (CPREG_NO_RAW | CPREG_SPECIAL)) || (write && (ri->type & CPREG_CONST)))
        return false;
    if (write)
        uc_reg_write(c->uc, UC_ARM64_REG_CP_REG, &r);
    else
        uc_reg_read(c->uc, UC_ARM64_REG_CP_REG, &r);
    *value = r.val;
    return true;
}

static int setup(struct cpu *c)
{
    char *class = FIELD(c->cs, CS_CLASS, char *);
    uc_hook hook;
    cpreg r;

    if (uc_hook_add(c->uc, &hook, UC_HOOK_INTR, (void *)on_exception, NULL, 1, 0) != UC_ERR_OK)
        return -1;
    a64_translate_init(c);
    FIELD(class, CC_EXEC_INTERRUPT, void *) = (void *)exec_interrupt;
    FIELD(class, CC_HAS_WORK, void *) = (void *)has_work;

    r = describe(SYS(1, 3, 7, 5, 1));
    r.access = CPREG_PL0_W;
    r.writefn = a64_ic_ivau;
    define(c, &r, NULL);
    r = describe(SYS(1, 0, 7, 5, 0));
    r.access = CPREG_PL1_W;
    r.writefn = a64_ic_iallu;
    define(c, &r, NULL);
    r = describe(SYS(1, 0, 7, 1, 0));
    r.access = CPREG_PL1_W;
    r.writefn = a64_ic_iallu;
    define(c, &r, NULL);

    for (int i = 0; i < c->m->nconstants; i++) {
        r = describe(c->m->constants[i].enc);
        r.type |= CPREG_CONST;
        r.type &= ~CPREG_NO_RAW;
        r.access = (c->m->constants[i].enc >> 11 & 7) == 3 ? CPREG_PL1_R | 2 : CPREG_PL1_R;
        r.resetvalue = c->m->constants[i].value;
        define(c, &r, NULL);
    }
    for (int i = 0; i < c->m->ntraps; i++) {
        r = describe(c->m->traps[i].enc);
        r.type |= CPREG_RAISES_EXC;
        r.access = CPREG_PL1_RW;
        r.readfn = trap_read;
        r.writefn = trap_write;
        define(c, &r, &c->m->traps[i]);
    }
    return 0;
}

static void write_sys(struct cpu *c, uint32_t op0, uint32_t op1, uint32_t crn, uint32_t crm, uint32_t op2, uint64_t v)
{
    uc_arm64_cp_reg r = {.crn = crn, .crm = crm, .op0 = op0, .op1 = op1, .op2 = op2, .val = v};
    uc_reg_write(c->uc, UC_ARM64_REG_CP_REG, &r);
}

/* AArch64 EL1h, interrupts masked, MMU off, non-secure; EL2 and EL3 exist only so that HVC and SMC arrive. */
static void reset(struct cpu *c)
{
    uint64_t pstate = 0x3c5;

    cpu_reset(c->cs);
    FIELD(c->uc, UC_STOP_INTERRUPT, void *) = NULL;
    uc_reg_write(c->uc, UC_ARM64_REG_PSTATE, &pstate);
    memset(c->env + A64_XREGS, 0, 32 * 8);
    FIELD(c->env, A64_PC, uint64_t) = 0;
    write_sys(c, 3, 6, 1, 1, 0, 0x501);      /* SCR_EL3: NS, HCE, RW */
    write_sys(c, 3, 4, 1, 1, 0, 1ul << 31);  /* HCR_EL2: RW */
    write_sys(c, 3, 4, 14, 1, 0, 3);         /* CNTHCTL_EL2: the counters are not trapped */
    arm_rebuild_hflags_aarch64(c->env);
}

static void refresh(struct cpu *c)
{
    arm_rebuild_hflags_aarch64(c->env);
}

static int stopped(struct cpu *c, int r)
{
    (void)c;
    return r == EXCP_HLT || r == EXCP_HALTED ? EV_WFI : EV_NONE;
}

static void sync_state(struct cpu *c, uintptr_t ra)
{
    if (ra)
        cpu_restore_state_aarch64(c->cs, ra, false);
}

static void restore(struct cpu *c, uintptr_t ra)
{
    FIELD(c->cs, CS_EXCEPTION_INDEX, int32_t) = EXCP_INTERRUPT;
    if (ra)
        cpu_loop_exit_restore_aarch64(c->cs, ra);
    cpu_loop_exit_aarch64(c->cs);
}

/* Check the layout table against what the public API shows; the name of what is wrong, or NULL. */
static const char *verify(uc_engine *uc)
{
    uint64_t magic = 0x0123456789abcdef, out = 0;
    uc_arm64_cp_reg vmpidr = {.crn = 0, .crm = 0, .op0 = 3, .op1 = 4, .op2 = 5, .val = magic};
    char *cs, *env;

    uc_reg_write(uc, UC_ARM64_REG_X0, &magic);
    cs = FIELD(uc, UC_CPU, char *);
    if (!cs || FIELD(cs, CS_UC, void *) != (void *)uc)
        return "CPUState";
    env = FIELD(cs, CS_ENV, char *);
    if (env != cs + A64_ENV || FIELD(env, A64_ENV_UC, void *) != (void *)uc)
        return "CPUARMState";
    if (FIELD(cs, CS_CLASS, char *) != cs + A64_CLASS)
        return "CPUClass";
    if (FIELD(FIELD(cs, CS_CLASS, char *), CC_EXEC_INTERRUPT, void *) != (void *)arm_cpu_exec_interrupt_aarch64)
        return "cpu_exec_interrupt";
    if (FIELD(env, A64_XREGS, uint64_t) != magic)
        return "xregs";
    magic ^= ~0ul;
    uc_reg_write(uc, UC_ARM64_REG_PC, &magic);
    if (FIELD(env, A64_PC, uint64_t) != magic)
        return "pc";
    uc_reg_write(uc, UC_ARM64_REG_SP_EL0, &magic);
    if (FIELD(env, A64_SP_EL, uint64_t) != magic)
        return "sp_el";
    uc_reg_write(uc, UC_ARM64_REG_ELR_EL1, &magic);
    if (FIELD(env, A64_ELR_EL + 8, uint64_t) != magic)
        return "elr_el";
    uc_reg_write(uc, UC_ARM64_REG_CP_REG, &vmpidr);
    if (FIELD(env, A64_VMPIDR, uint64_t) != vmpidr.val)
        return "vmpidr_el2";
    if (FIELD(uc, UC_PAGE_SIZE, uint32_t) != GUEST_PAGE)
        return "page size";
    if (FIELD(cs, CS_ICOUNT_DECR, char *) != cs + A64_NEG + A64_ICOUNT_DECR)
        return "icount_decr";
    uc_reg_read(uc, UC_ARM64_REG_X0, &out);
    return out == 0x0123456789abcdef ? NULL : "register API";
}

const struct target target_arm64 = {
    .name = "arm64",
    .uc_arch = UC_ARCH_ARM64,
    .uc_mode = UC_MODE_ARM,
    .cpu_model = UC_CPU_ARM64_A57,
    .verify = verify,
    .setup = setup,
    .ram_of = qemu_ram_addr_from_host_aarch64,
    .leave_region = a64_leave_region,
    .stopped = stopped,
    .exec = cpu_exec_aarch64,
    .reset = reset,
    .refresh = refresh,
    .apply = a64_apply,
    .sysreg = sysreg,
    .sync = sync_state,
    .restore = restore,
};
