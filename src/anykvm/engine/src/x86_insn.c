/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * x86 instructions that Unicorn leaves to its user, or does without policy: port I/O, MSRs, CPUID, SYSCALL, SYSENTER,
 * CR8, RDTSC. Behaviour as in the AMD64 manual, volume 3.
 *
 * RA is where in the translated code the instruction is: with it the state can be brought to the instruction's start.
 */
#include "x86.h"

#define RA ((uintptr_t)__builtin_extract_return_addr(__builtin_return_address(0)))

#define CR4_TSD 0x4u
#define CR4_OSXSAVE (1u << 18)
#define CR0_PE 1u
#define EFLAGS_TF 0x100u
#define EFLAGS_IF 0x200u
#define EFLAGS_IOPL_SHIFT 12
#define EFLAGS_RF 0x10000u
#define EFLAGS_VM 0x20000u
#define EFER_SCE 1u
#define FLAT_CODE 0x00809b00u /* present, code, read, accessed, 4 KB units */
#define FLAT_DATA 0x00c09300u /* present, data, writable, accessed, 4 KB units, 32 bits */
#define SEG_L 0x00200000u
#define SEG_DB 0x00400000u
#define SEG_DPL3 0x00006000u

uint64_t helper_read_eflags_x86_64(void *env);
void helper_write_eflags_x86_64(void *env, uint64_t value, uint32_t mask);
void cpu_x86_cpuid_x86_64(void *env, uint32_t fn, uint32_t index, uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d);
void helper_check_iob_x86_64(void *env, uint32_t port);
void helper_check_iow_x86_64(void *env, uint32_t port);
void helper_check_iol_x86_64(void *env, uint32_t port);

static struct x86_segment *segment(void *env, int n)
{
    return (struct x86_segment *)((char *)env + X86_SEGS) + n;
}

static void flat(void *env, int n, uint32_t selector, uint32_t flags)
{
    *segment(env, n) = (struct x86_segment){selector, 0, 0, 0xffffffff, flags};
}

/* Port I/O: privilege first, then park. */

static void check_port(struct cpu *c, uint32_t port, int size, uintptr_t ra)
{
    uint32_t eflags = FIELD(c->env, X86_EFLAGS, uint32_t);
    uint32_t cpl = FIELD(c->env, X86_HFLAGS, uint32_t) & X86_HF_CPL;

    if (!(FIELD(c->env, X86_CR, uint64_t) & CR0_PE) ||
        (cpl <= (eflags >> EFLAGS_IOPL_SHIFT & 3) && !(eflags & EFLAGS_VM)))
        return;
    cpu_restore_state_x86_64(c->cs, ra, true);
    if (size == 1)
        helper_check_iob_x86_64(c->env, port);
    else if (size == 2)
        helper_check_iow_x86_64(c->env, port);
    else
        helper_check_iol_x86_64(c->env, port);
}

/*
 * The address size in bytes of the REP INS that is being done, 0 if it is another instruction. Where it is not one is
 * remembered: an address that has come to be other code since then costs no more than a REP INS seen as single inputs.
 */
static unsigned rep_ins(struct cpu *c, uintptr_t ra)
{
    uintptr_t *known = &c->x86.plain_io[(ra >> 2) % (sizeof(c->x86.plain_io) / sizeof(ra))];
    uint32_t hflags = FIELD(c->env, X86_HFLAGS, uint32_t);
    unsigned size = hflags & X86_HF_CS64 ? 8 : hflags & X86_HF_CS32 ? 4 : 2;
    bool rep = false;
    uint64_t va;

    if (*known == ra)
        return 0;
    cpu_restore_state_x86_64(c->cs, ra, false);
    va = segment(c->env, 1)->base + FIELD(c->env, X86_EIP, uint64_t);
    for (int i = 0; i < 15; i++) {
        unsigned char *at = tlb_vaddr_to_host_x86_64(c->env, va + (uint64_t)i, ACCESS_FETCH,
                                                     (hflags & X86_HF_CPL) == 3 ? 1 : 2);
        if (!at)
            return 0;
        switch (*at) {
        case 0xf2: case 0xf3:
            rep = true;
            continue;
        case 0x67:
            size = size == 4 ? 2 : 4;
            continue;
        case 0x66: case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x64: case 0x65:
            continue;
        case 0x6c: case 0x6d:
            if (rep)
                return size;
            break;
        default:
            if ((*at & 0xf0) == 0x40 && size != 2 && (hflags & X86_HF_CS64))
                continue;
        }
        break;
    }
    *known = ra;
    return 0;
}

static uint64_t port_io(void *env, int kind, uint32_t port, int size, uint32_t value, uintptr_t ra)
{
    struct cpu *c = x86_cpu_of(env);

    port &= 0xffff;
    check_port(c, port, size, ra);
    c->fill.ra = ra;
    if (kind == EV_PIO_READ)
        value = rep_ins(c, ra);
    value = (uint32_t)cpu_park(c, kind, port, (uint64_t)size, value);
    if (c->abandon)
        c->m->target->restore(c, ra);
    return size == 4 ? value : value & ((1u << (8 * size)) - 1);
}

uint64_t __wrap_helper_inb_x86_64(void *env, uint32_t port) { return port_io(env, EV_PIO_READ, port, 1, 0, RA); }
uint64_t __wrap_helper_inw_x86_64(void *env, uint32_t port) { return port_io(env, EV_PIO_READ, port, 2, 0, RA); }
uint64_t __wrap_helper_inl_x86_64(void *env, uint32_t port) { return port_io(env, EV_PIO_READ, port, 4, 0, RA); }
void __wrap_helper_outb_x86_64(void *env, uint32_t port, uint32_t v) { port_io(env, EV_PIO_WRITE, port, 1, v & 0xff, RA); }
void __wrap_helper_outw_x86_64(void *env, uint32_t port, uint32_t v) { port_io(env, EV_PIO_WRITE, port, 2, v & 0xffff, RA); }
void __wrap_helper_outl_x86_64(void *env, uint32_t port, uint32_t v) { port_io(env, EV_PIO_WRITE, port, 4, v, RA); }

/* MSRs: the ones that only the instructions themselves use are native, the rest is policy. */

#define MSR_EFER 0xc0000080
#define MSR_TSC 0x10
#define MSR_TSC_AUX 0xc0000103

bool x86_native_msr(uint32_t index)
{
    switch (index) {
    case 0x174: case 0x175: case 0x176: /* SYSENTER_CS, _ESP, _EIP */
    case 0x277: /* PAT */
    case MSR_EFER: case 0xc0000081: case 0xc0000082: case 0xc0000083: case 0xc0000084: /* STAR, LSTAR, CSTAR, FMASK */
    case 0xc0000100: case 0xc0000101: case 0xc0000102: /* FS_BASE, GS_BASE, KERNEL_GS_BASE */
    case MSR_TSC_AUX:
        return true;
    default:
        return false;
    }
}

static bool canonical(uint64_t va)
{
    return (uint64_t)((int64_t)(va << 16) >> 16) == va;
}

/* A value that WRMSR takes without a fault, for an MSR that is native. */
bool x86_msr_value_ok(uint32_t index, uint64_t v)
{
    bool address = index == 0x175 || index == 0x176 || index == 0xc0000082 || index == 0xc0000083 ||
                   (index >= 0xc0000100 && index <= 0xc0000102);

    return !(address && !canonical(v)) && !(index == MSR_EFER && (v & ~0xd01ul));
}

/* Unicorn's register interface comes through the same helpers, before there is a struct cpu too. */
static bool native_here(struct cpu *c, uint32_t index)
{
    return x86_native_msr(index) && !(c && c->x86.park_msrs && !c->x86.direct);
}

void __real_helper_rdmsr_x86_64(void *env);
void __wrap_helper_rdmsr_x86_64(void *env)
{
    struct cpu *c = x86_cpu_of(env);
    uint64_t *regs = x86_regs(env), v;
    uint32_t index = (uint32_t)regs[RCX];

    if (native_here(c, index)) {
        __real_helper_rdmsr_x86_64(env);
        return;
    }
    if (index == MSR_TSC) {
        v = x86_tsc(c);
    } else {
        v = cpu_park(c, EV_MSR_READ, index, 0, 0);
        if (c->abandon)
            c->m->target->restore(c, 0);
    }
    regs[RAX] = (uint32_t)v;
    regs[RDX] = v >> 32;
}

void __real_helper_wrmsr_x86_64(void *env);
void __wrap_helper_wrmsr_x86_64(void *env)
{
    struct cpu *c = x86_cpu_of(env);
    uint64_t *regs = x86_regs(env);
    uint32_t index = (uint32_t)regs[RCX];
    uint64_t v = (uint32_t)regs[RAX] | regs[RDX] << 32;

    if (native_here(c, index)) {
        if (!x86_msr_value_ok(index, v) ||
            (index == MSR_EFER && ((v ^ FIELD(env, X86_EFER, uint64_t)) & 0x100) &&
             (FIELD(env, X86_CR, uint64_t) >> 31 & 1)))
            raise_exception_err_x86_64(env, VECTOR_GP, 0);
        __real_helper_wrmsr_x86_64(env);
        return;
    }
    cpu_park(c, EV_MSR_WRITE, index, 0, v);
    if (c->abandon)
        c->m->target->restore(c, 0);
}

/* CPUID: what userspace said; without that, what the engine's cpu is. */
void __wrap_helper_cpuid_x86_64(void *env)
{
    struct cpu *c = x86_cpu_of(env);
    uint64_t *regs = x86_regs(env);
    uint32_t fn = (uint32_t)regs[RAX], index = (uint32_t)regs[RCX], out[4] = {0};

    if (!c->x86.ncpuid) {
        cpu_x86_cpuid_x86_64(env, fn, index, &out[0], &out[1], &out[2], &out[3]);
    } else {
        const uint32_t *found = NULL, *last = NULL;

        for (int i = 0; i < c->x86.ncpuid && !found; i++) {
            const uint32_t *e = c->x86.cpuid[i];

            if (e[0] == fn && (!(e[2] & 1) || e[1] == index))
                found = e;
            /* A leaf beyond the last basic one reads as the last, on Intel. */
            if (!(e[0] >> 30) && (!last || e[0] > last[0]))
                last = e;
        }
        if (!found && !(fn >> 30) && last && fn > last[0])
            found = last;
        if (found)
            memcpy(out, found + 3, sizeof(out));
    }
    if (fn == 1) {
        uint64_t cr4 = FIELD(env, X86_CR + 4 * 8, uint64_t);
        out[2] = (out[2] & ~(1u << 27)) | (cr4 & CR4_OSXSAVE ? 1u << 27 : 0);
    }
    regs[RAX] = out[0];
    regs[RBX] = out[1];
    regs[RCX] = out[2];
    regs[RDX] = out[3];
}

/* CR8 is the local APIC's task priority. */

uint64_t __real_helper_read_crN_x86_64(void *env, int n);
uint64_t __wrap_helper_read_crN_x86_64(void *env, int n)
{
    return n == 8 ? FIELD(env, X86_V_TPR, uint8_t) : __real_helper_read_crN_x86_64(env, n);
}

#define CR0_PG (1u << 31)
#define CR0_CD (1u << 30)
#define CR0_NW (1u << 29)
#define CR4_PAE (1u << 5)
#define EFER_LME 0x100u
#define EFER_LMA 0x400u
#define MAX_PHYSICAL_BITS 40

/* The bits of CR4 that this cpu has: CPUID's features decide. */
static uint64_t cr4_mask(void *env)
{
    uint32_t a, b, c, d;
    uint64_t mask = 0x7ff; /* VME to OSXMMEXCPT */

    cpu_x86_cpuid_x86_64(env, 1, 0, &a, &b, &c, &d);
    mask |= c & 1u << 26 ? CR4_OSXSAVE : 0;
    cpu_x86_cpuid_x86_64(env, 7, 0, &a, &b, &c, &d);
    mask |= b & 1u << 0 ? 1u << 16 : 0; /* FSGSBASE */
    mask |= b & 1u << 7 ? 1u << 20 : 0; /* SMEP */
    mask |= b & 1u << 20 ? 1u << 21 : 0; /* SMAP */
    mask |= c & 1u << 3 ? 1u << 22 : 0; /* PKE */
    return mask;
}

static bool cr_value_ok(void *env, int n, uint64_t v)
{
    uint64_t cr0 = FIELD(env, X86_CR, uint64_t), cr4 = FIELD(env, X86_CR + 4 * 8, uint64_t);
    uint64_t efer = FIELD(env, X86_EFER, uint64_t);

    switch (n) {
    case 0:
        return !(v >> 32) && !((v & CR0_PG) && !(v & CR0_PE)) && !((v & CR0_NW) && !(v & CR0_CD)) &&
               !((v & ~cr0 & CR0_PG) && (efer & EFER_LME) && !(cr4 & CR4_PAE)) &&
               !((cr0 & ~v & CR0_PG) && (efer & EFER_LMA) && (segment(env, 1)->flags & SEG_L));
    case 3:
        return !(efer & EFER_LMA) || !(v >> MAX_PHYSICAL_BITS);
    case 4:
        return !(v & ~cr4_mask(env)) && !((efer & EFER_LMA) && !(v & CR4_PAE));
    default:
        return true;
    }
}

void __real_helper_write_crN_x86_64(void *env, int n, uint64_t v);
void __wrap_helper_write_crN_x86_64(void *env, int n, uint64_t v)
{
    struct cpu *c = x86_cpu_of(env);

    if (n != 8) {
        if (!cr_value_ok(env, n, v))
            raise_exception_err_x86_64(env, VECTOR_GP, 0);
        __real_helper_write_crN_x86_64(env, n, v);
        x86_own_hflags(env);
        return;
    }
    cpu_restore_state_x86_64(c->cs, RA, false);
    if (v & ~0xful)
        raise_exception_err_x86_64(env, VECTOR_GP, 0);
    FIELD(env, X86_V_TPR, uint8_t) = (uint8_t)v;
    cpu_park(c, EV_CR8_WRITE, v, 0, 0);
    if (c->abandon)
        c->m->target->restore(c, 0);
}

/* The time-stamp counter is the host's, scaled. */

uint64_t x86_tsc(struct cpu *c)
{
    uint64_t ticks = host_ticks(), khz = c->x86.tsc_khz;

    if (khz && khz != host_tick_khz())
        ticks = (uint64_t)((unsigned __int128)ticks * khz / host_tick_khz());
    return ticks + (uint64_t)c->x86.tsc_offset;
}

static void read_tsc(void *env, uintptr_t ra)
{
    struct cpu *c = x86_cpu_of(env);
    uint64_t v;

    if ((FIELD(env, X86_CR + 4 * 8, uint64_t) & CR4_TSD) && (FIELD(env, X86_HFLAGS, uint32_t) & X86_HF_CPL)) {
        cpu_restore_state_x86_64(c->cs, ra, true);
        raise_exception_err_x86_64(env, VECTOR_GP, 0);
    }
    v = x86_tsc(c);
    x86_regs(env)[RAX] = (uint32_t)v;
    x86_regs(env)[RDX] = v >> 32;
}

void __wrap_helper_rdtsc_x86_64(void *env) { read_tsc(env, RA); }
void __wrap_helper_rdtscp_x86_64(void *env)
{
    read_tsc(env, RA);
    x86_regs(env)[RCX] = FIELD(env, X86_TSC_AUX, uint32_t);
}

/* Checks that Unicorn does not make. */

void x86_fault(void *env, int vector, uintptr_t ra)
{
    cpu_restore_state_x86_64(x86_cpu_of(env)->cs, ra, true);
    raise_exception_err_x86_64(env, vector, 0);
}

/* There is no performance counter, so every one of them is beyond the last. */
void __wrap_helper_rdpmc_x86_64(void *env)
{
    x86_fault(env, VECTOR_GP, RA);
}

/* INT, INT3 and INTO: their length leads back to them if their gate does not let them in. */
void __real_helper_raise_interrupt_x86_64(void *env, int vector, int length) __attribute__((noreturn));
void __wrap_helper_raise_interrupt_x86_64(void *env, int vector, int length)
{
    x86_cpu_of(env)->x86.int_length = length;
    __real_helper_raise_interrupt_x86_64(env, vector, length);
}

/* Fast system calls. The program counter is the instruction's; addend is its length. */

void __wrap_helper_syscall_x86_64(void *env, int addend)
{
    uint64_t *regs = x86_regs(env), *eip = &FIELD(env, X86_EIP, uint64_t);
    uint64_t star = FIELD(env, X86_STAR, uint64_t);
    uint32_t selector = star >> 32 & 0xfffc;

    if (!(FIELD(env, X86_EFER, uint64_t) & EFER_SCE))
        raise_exception_err_x86_64(env, VECTOR_UD, 0);
    if (FIELD(env, X86_HFLAGS, uint32_t) & X86_HF_LMA) {
        bool long_mode = segment(env, 1)->flags & SEG_L;

        regs[RCX] = *eip + (uint64_t)(int64_t)addend;
        regs[R11] = helper_read_eflags_x86_64(env) & ~(uint64_t)EFLAGS_RF;
        helper_write_eflags_x86_64(env, regs[R11] & ~FIELD(env, X86_FMASK, uint64_t), ~0u);
        flat(env, 1, selector, FLAT_CODE | SEG_L);
        flat(env, 2, selector + 8, FLAT_DATA);
        *eip = long_mode ? FIELD(env, X86_LSTAR, uint64_t) : FIELD(env, X86_CSTAR, uint64_t);
    } else {
        regs[RCX] = (uint32_t)(*eip + (uint64_t)(int64_t)addend);
        helper_write_eflags_x86_64(env, helper_read_eflags_x86_64(env) & ~(uint64_t)(EFLAGS_IF | EFLAGS_RF | EFLAGS_VM), ~0u);
        flat(env, 1, selector, FLAT_CODE | SEG_DB);
        flat(env, 2, selector + 8, FLAT_DATA);
        *eip = (uint32_t)star;
    }
    x86_update_hflags_x86_64(env);
}

void __wrap_helper_sysenter_x86_64(void *env, int addend)
{
    bool lma = FIELD(env, X86_HFLAGS, uint32_t) & X86_HF_LMA;
    uint32_t selector = FIELD(env, X86_SYSENTER_CS, uint32_t) & 0xfffc;

    (void)addend;
    if (!selector)
        x86_fault(env, VECTOR_GP, RA);
    helper_write_eflags_x86_64(env, helper_read_eflags_x86_64(env) & ~(uint64_t)(EFLAGS_VM | EFLAGS_IF | EFLAGS_RF), ~0u);
    flat(env, 1, selector, FLAT_CODE | (lma ? SEG_L : SEG_DB));
    flat(env, 2, selector + 8, FLAT_DATA);
    x86_regs(env)[RSP] = FIELD(env, X86_SYSENTER_ESP, uint64_t);
    FIELD(env, X86_EIP, uint64_t) = FIELD(env, X86_SYSENTER_EIP, uint64_t);
    x86_update_hflags_x86_64(env);
}
