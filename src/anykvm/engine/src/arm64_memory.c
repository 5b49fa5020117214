/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * arm64's memory side: TLB fills for RAM, holes, read-only and logged pages; TLB and instruction-cache maintenance on
 * every cpu; each block of code translated so that it can share memory with other cpus.
 *
 * The functions named __wrap_* take the place of Unicorn's own by the linker's --wrap (setup.py lists them); __real_*
 * is the original.
 */
#include "arm64.h"

uint32_t arm_mmu_idx_aarch64(void *env);
void tlb_flush_by_mmuidx_aarch64(void *cs, uint16_t idxmap);
void tlb_flush_page_by_mmuidx_aarch64(void *cs, uint64_t addr, uint16_t idxmap);
void *tlb_vaddr_to_host_aarch64(void *env, uint64_t addr, int access, int mmu_idx);
void tb_invalidate_phys_range_aarch64(void *uc, uint64_t start, uint64_t end);
void tb_flush_aarch64(void *cs);

#define ALL_IDX 0xffffu

#define TARGET_WRAP(name) __wrap_##name##_aarch64
#define TARGET_REAL(name) __real_##name##_aarch64
#include "physical.h"

PHYSICAL_LOAD(address_space_ldl_le, uint32_t)
PHYSICAL_LOAD(address_space_ldl_be, uint32_t)
PHYSICAL_LOAD(address_space_ldq_le, uint64_t)
PHYSICAL_LOAD(address_space_ldq_be, uint64_t)

void a64_leave_region(struct cpu *c, struct region *r)
{
    tb_invalidate_phys_range_aarch64(c->uc, r->ram, r->ram + r->size);
}

/* Applying what this or another cpu asked for. */

void a64_apply(struct cpu *c, const struct op *op)
{
    switch (op->kind) {
    case OP_FLUSH:
        tlb_flush_by_mmuidx_aarch64(c->cs, op->arg & ALL_IDX);
        break;
    case OP_FLUSH_PAGE:
        tlb_flush_page_by_mmuidx_aarch64(c->cs, op->addr, op->arg & ALL_IDX);
        break;
    case OP_INVALIDATE:
        tb_invalidate_phys_range_aarch64(c->uc, op->addr + c->ram_at, op->addr + c->ram_at + op->arg);
        break;
    case OP_PROTECT:
    case OP_RETRANSLATE:
        break;
    case OP_FLUSH_CODE:
        tb_flush_aarch64(c->cs);
        break;
    }
}

static void everywhere(struct cpu *c, enum op_kind kind, uint64_t addr, uint64_t arg)
{
    struct op op = {kind, addr, arg};
    machine_post(c->m, c, &op);
}

/* TLB maintenance the guest broadcasts: Unicorn does it on the issuing cpu only. The guest's DSB waits for the rest. */

void __wrap_tlb_flush_by_mmuidx_all_cpus_synced_aarch64(void *cs, uint16_t idxmap)
{
    tlb_flush_by_mmuidx_aarch64(cs, idxmap);
    everywhere(cpu_of(cs), OP_FLUSH, 0, idxmap);
}

void __wrap_tlb_flush_page_by_mmuidx_all_cpus_synced_aarch64(void *cs, uint64_t addr, uint16_t idxmap)
{
    tlb_flush_page_by_mmuidx_aarch64(cs, addr, idxmap);
    everywhere(cpu_of(cs), OP_FLUSH_PAGE, addr & ~(GUEST_PAGE - 1), idxmap);
}

void __wrap_tlb_flush_all_cpus_synced_aarch64(void *cs)
{
    tlb_flush_by_mmuidx_aarch64(cs, ALL_IDX);
    everywhere(cpu_of(cs), OP_FLUSH, 0, ALL_IDX);
}

/* Instruction-cache maintenance: this is how translated code learns of new code (by a guest or a device). */

void a64_ic_ivau(void *env, const cpreg *ri, uint64_t va)
{
    void *uc = FIELD(env, A64_ENV_UC, void *);
    struct cpu *c = cpu_of_uc(uc);
    char *host = tlb_vaddr_to_host_aarch64(env, va & ~(GUEST_PAGE - 1), ACCESS_LOAD, arm_mmu_idx_aarch64(env) & 0xf);

    (void)ri;
    if (host) {
        struct op op = {OP_INVALIDATE, (uint64_t)host, GUEST_PAGE};
        a64_apply(c, &op);
        machine_post(c->m, c, &op);
    } else {
        c->flush_code = true;
        everywhere(c, OP_FLUSH_CODE, 0, 0);
        cpu_force_exit(c);
    }
}

void a64_ic_iallu(void *env, const cpreg *ri, uint64_t unused)
{
    struct cpu *c = cpu_of_uc(FIELD(env, A64_ENV_UC, void *));

    (void)ri, (void)unused;
    /* The code buffer cannot go while a block of it runs: this block is the last one. */
    c->flush_code = true;
    cpu_force_exit(c);
    everywhere(c, OP_FLUSH_CODE, 0, 0);
}

/* Unicorn scans the whole TLB after each translation to catch writes to code; IC maintenance tells us. */
void __wrap_tlb_reset_dirty_by_vaddr_aarch64(void *cs, uint64_t start, uint64_t length)
{
    (void)cs, (void)start, (void)length;
}

/* TLB fills */

static const struct tlb_flags flags = {A64_TLB_INVALID, A64_TLB_NOTDIRTY, A64_TLB_MMIO};

bool __real_arm_cpu_tlb_fill_aarch64(void *cs, uint64_t va, int size, int access, int mmu_idx, bool probe, uintptr_t ra);
bool __wrap_arm_cpu_tlb_fill_aarch64(void *cs, uint64_t va, int size, int access, int mmu_idx, bool probe, uintptr_t ra)
{
    struct cpu *c = cpu_of(cs);
    bool ok;

    tlb_fill_begin(c, va, access, ra);
    ok = __real_arm_cpu_tlb_fill_aarch64(cs, va, size, access, mmu_idx, probe, ra);
    if (tlb_fill_end(c, ok, probe))
        cpu_loop_exit_aarch64(cs);
    return ok;
}

void __real_tlb_set_page_with_attrs_aarch64(void *cs, uint64_t va, uint64_t pa, uint32_t attrs, int prot, int mmu_idx,
                                            uint64_t size);
void __wrap_tlb_set_page_with_attrs_aarch64(void *cs, uint64_t va, uint64_t pa, uint32_t attrs, int prot, int mmu_idx,
                                            uint64_t size)
{
    struct cpu *c = cpu_of(cs);
    struct region *r = tlb_page_begin(c, pa, &prot);

    __real_tlb_set_page_with_attrs_aarch64(cs, va, pa, attrs, prot, mmu_idx, size);
    tlb_page_end(c, r, c->cs + A64_NEG + A64_TLB_FAST + 16 * mmu_idx, va, pa, prot, &flags);
}
