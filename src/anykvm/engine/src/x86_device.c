/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Accesses to devices that are not aligned. Unicorn makes a store a byte at a time of them, and a load two aligned ones
 * that read more than the instruction does; here they come out as they are, one for each page. The first piece of a page
 * asks; the others take what it got.
 */
#include "x86.h"

void *probe_access_x86_64(void *env, uint64_t va, int size, int access, int mode, uintptr_t ra);

static void begin(void *env, uint64_t va, unsigned size, uint64_t value, uintptr_t ra)
{
    struct x86_unaligned *u = &x86_cpu_of(env)->x86.unaligned;

    u->size = 0;
    if (va & (size - 1))
        *u = (struct x86_unaligned){.va = va, .value = value, .ra = ra, .size = size};
}

/* Unicorn looks at both pages before it stores, and not before it loads: a device must not be asked in vain. */
static void begin_load(void *env, uint64_t va, unsigned size, uint32_t oi, uintptr_t ra)
{
    begin(env, va, size, 0, ra);
    if ((va & (GUEST_PAGE - 1)) > GUEST_PAGE - size)
        probe_access_x86_64(env, (va | (GUEST_PAGE - 1)) + 1, 1, ACCESS_LOAD, oi & 15, ra);
}

static uint64_t low_bytes(uint64_t v, uint64_t n)
{
    return n < 8 ? v & ((1ul << 8 * n) - 1) : v;
}

/* A piece of an access reaches a hole: false if the access is none of those. */
bool x86_device_piece(struct cpu *c, uint64_t pa, unsigned size, uint64_t *data, bool store)
{
    struct x86_unaligned *u = &c->x86.unaligned;
    uint64_t page = c->fill.va & ~(GUEST_PAGE - 1), va = page | (pa & (GUEST_PAGE - 1)), end = u->va + u->size, from, to;
    bool second;

    if (!u->size || c->fill.ra != u->ra || va + size <= u->va || va >= end)
        return false;
    second = page > u->va;
    from = second ? page : u->va;
    to = end < page + GUEST_PAGE ? end : page + GUEST_PAGE;
    if (!u->asked[second]) {
        uint64_t at = (pa & ~(GUEST_PAGE - 1)) | (from & (GUEST_PAGE - 1)), n = to - from;
        uint64_t value = store ? low_bytes(u->value >> 8 * (from - u->va), n) : 0;

        u->got[second] = cpu_park(c, store ? EV_MMIO_WRITE : EV_MMIO_READ, at, n, value);
        if (c->abandon)
            c->m->target->restore(c, u->ra);
        u->asked[second] = true;
    }
    if (store)
        return true;
    *data = 0;
    for (uint64_t a = va > from ? va : from; a < va + size && a < to; a++)
        *data |= (u->got[second] >> 8 * (a - from) & 0xff) << 8 * (a - va);
    return true;
}

uint64_t __real_helper_le_lduw_mmu_x86_64(void *env, uint64_t va, uint32_t oi, uintptr_t ra);
uint64_t __wrap_helper_le_lduw_mmu_x86_64(void *env, uint64_t va, uint32_t oi, uintptr_t ra)
{
    begin_load(env, va, 2, oi, ra);
    return __real_helper_le_lduw_mmu_x86_64(env, va, oi, ra);
}

uint64_t __real_helper_le_ldul_mmu_x86_64(void *env, uint64_t va, uint32_t oi, uintptr_t ra);
uint64_t __wrap_helper_le_ldul_mmu_x86_64(void *env, uint64_t va, uint32_t oi, uintptr_t ra)
{
    begin_load(env, va, 4, oi, ra);
    return __real_helper_le_ldul_mmu_x86_64(env, va, oi, ra);
}

uint64_t __real_helper_le_ldq_mmu_x86_64(void *env, uint64_t va, uint32_t oi, uintptr_t ra);
uint64_t __wrap_helper_le_ldq_mmu_x86_64(void *env, uint64_t va, uint32_t oi, uintptr_t ra)
{
    begin_load(env, va, 8, oi, ra);
    return __real_helper_le_ldq_mmu_x86_64(env, va, oi, ra);
}

void __real_helper_le_stw_mmu_x86_64(void *env, uint64_t va, uint16_t v, uint32_t oi, uintptr_t ra);
void __wrap_helper_le_stw_mmu_x86_64(void *env, uint64_t va, uint16_t v, uint32_t oi, uintptr_t ra)
{
    begin(env, va, 2, v, ra);
    __real_helper_le_stw_mmu_x86_64(env, va, v, oi, ra);
}

void __real_helper_le_stl_mmu_x86_64(void *env, uint64_t va, uint32_t v, uint32_t oi, uintptr_t ra);
void __wrap_helper_le_stl_mmu_x86_64(void *env, uint64_t va, uint32_t v, uint32_t oi, uintptr_t ra)
{
    begin(env, va, 4, v, ra);
    __real_helper_le_stl_mmu_x86_64(env, va, v, oi, ra);
}

void __real_helper_le_stq_mmu_x86_64(void *env, uint64_t va, uint64_t v, uint32_t oi, uintptr_t ra);
void __wrap_helper_le_stq_mmu_x86_64(void *env, uint64_t va, uint64_t v, uint32_t oi, uintptr_t ra)
{
    begin(env, va, 8, v, ra);
    __real_helper_le_stq_mmu_x86_64(env, va, v, oi, ra);
}
