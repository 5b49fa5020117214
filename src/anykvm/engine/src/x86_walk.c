/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The ordinary page-table walk, and what a write to CR3 forgets.
 *
 * Unicorn's walk reads each table entry through its memory map and its model of nested paging. In 64-bit mode with
 * four levels, tables in RAM and nothing to fault about, the same walk is four loads: x86_walk() does it, and says no to
 * everything else, which Unicorn's then does. (AMD64 manual, volume 2, "Long-Mode Page Translation".)
 *
 * Only this walk sees a page's global bit. While every page of the upper half that came into the TLB had it, a write to
 * CR3 leaves the upper half alone, as the architecture allows; Unicorn flushes all.
 */
#include "x86.h"

#include <string.h>

void __wrap_tlb_set_page_with_attrs_x86_64(void *cs, uint64_t va, uint64_t pa, uint32_t attrs, int prot, int mmu_idx,
                                           uint64_t size);
void __real_tlb_flush_by_mmuidx_x86_64(void *cs, uint16_t modes);

#define PTE_P 0x1ul
#define PTE_RW 0x2ul
#define PTE_US 0x4ul
#define PTE_A 0x20ul
#define PTE_D 0x40ul
#define PTE_PS 0x80ul
#define PTE_G 0x100ul
#define PTE_NX (1ul << 63)
#define PTE_RESERVED 0x000fff0000000000ul /* beyond 40 bits of physical address */
#define PTE_ADDRESS 0x000000fffffff000ul
#define CR0_WP 0x10000ul
#define CR0_PG 0x80000000ul
#define CR4_PGE 0x80ul
#define CR4_LA57 0x1000ul
#define CR4_SMEP 0x100000ul
#define CR4_PKE 0x400000ul
#define EFER_NXE 0x800ul
#define FULL_FLUSH_EVERY 256 /* writes to CR3: Unicorn fits its TLB's size to the use when it flushes */

/* A table entry; the word in memory, too, if there is one. */
static uint64_t load_entry(struct cpu *c, uint64_t pa, uint64_t **at)
{
    struct region *r = cpu_region(c, pa);

    if (!r || r->readonly)
        return 0;
    *at = (uint64_t *)(r->hva + (pa - r->gpa));
    return __atomic_load_n(*at, __ATOMIC_RELAXED);
}

/* Enter the page into the TLB; false, and nothing done, if that takes more than the ordinary. */
bool x86_walk(struct cpu *c, uint64_t va, int access, int mode)
{
    uint64_t cr4 = FIELD(c->env, X86_CR + 4 * 8, uint64_t), table = FIELD(c->env, X86_CR + 3 * 8, uint64_t);
    uint64_t entry, rights = PTE_RW | PTE_US, nx = 0, size, pa, *at;
    uint32_t hflags = FIELD(c->env, X86_HFLAGS, uint32_t);
    bool user = mode == X86_MMU_USER;
    int shift = 39, prot = PAGE_READ;

    if (!(hflags & X86_HF_LMA) || (hflags & (X86_HF_SMM | X86_HF_GUEST)) || (cr4 & (CR4_LA57 | CR4_PKE)) ||
        !(FIELD(c->env, X86_CR, uint64_t) & CR0_WP) || !(FIELD(c->env, X86_EFER, uint64_t) & EFER_NXE) ||
        (uint64_t)((int64_t)(va << 16) >> 16) != va)
        return false;
    for (;; shift -= 9) {
        entry = load_entry(c, (table & PTE_ADDRESS) + (va >> shift & 0x1ff) * 8, &at);
        if (!(entry & PTE_P) || (entry & PTE_RESERVED))
            return false;
        rights &= entry;
        nx |= entry & PTE_NX;
        if (shift == 12 || (entry & PTE_PS))
            break;
        if (!(entry & PTE_A))
            return false;
        table = entry;
    }
    size = 1ul << shift;
    if (shift == 39 || (shift > 12 && (entry & PTE_ADDRESS & (size - 1) & ~0x1000ul)))
        return false; /* reserved bits; bit 12 of a large page is its PAT */
    if ((user || mode == X86_MMU_SMAP) && !(rights & PTE_US) != !user)
        return false;
    if (rights & PTE_RW)
        prot |= PAGE_WRITE;
    if (!nx && (user || !((cr4 & CR4_SMEP) && (rights & PTE_US))))
        prot |= PAGE_EXEC;
    if (!(prot & (access == ACCESS_STORE ? PAGE_WRITE : access == ACCESS_FETCH ? PAGE_EXEC : PAGE_READ)))
        return false;
    if (~entry & (PTE_A | (access == ACCESS_STORE ? PTE_D : 0))) {
        uint64_t marked = entry | PTE_A | (access == ACCESS_STORE ? PTE_D : 0);

        if (!__atomic_compare_exchange_n(at, &entry, marked, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            return false; /* another cpu changed it: once more, by Unicorn */
        entry = marked;
        tlb_log_write(c, (table & PTE_ADDRESS) + (va >> shift & 0x1ff) * 8);
    }
    if (!(entry & PTE_D))
        prot &= ~PAGE_WRITE; /* the first store comes again, to set it */
    pa = (entry & PTE_ADDRESS & ~(size - 1)) | (va & (size - 1) & ~(GUEST_PAGE - 1));
    if ((va >> 63) && !(entry & PTE_G))
        c->x86.nonglobal = true;
    __wrap_tlb_set_page_with_attrs_x86_64(c->cs, va & ~(GUEST_PAGE - 1), pa, 0, prot, mode, size);
    return true;
}

/* A page of the lower half is in a TLB of the kernel's. */
void x86_note_low(struct cpu *c, uint64_t va, int mode)
{
    if (mode == X86_MMU_USER || (va >> 63))
        return;
    if (c->x86.nlow < X86_LOW)
        c->x86.low[c->x86.nlow].va = va, c->x86.low[c->x86.nlow].mode = mode;
    c->x86.nlow++;
}

static bool forget_entry(char *entry)
{
    uint64_t all = FIELD(entry, TLBE_READ, uint64_t) & FIELD(entry, TLBE_WRITE, uint64_t) & FIELD(entry, TLBE_CODE, uint64_t);

    if (all >> 63)
        return false; /* empty, or of the upper half */
    memset(entry, 0xff, 1 << TLB_ENTRY_BITS);
    return true;
}

/* Forget what is in the kernel's TLBs of the lower half. */
static void forget_low(struct cpu *c)
{
    for (int i = 0; i < c->x86.nlow; i++) {
        int mode = c->x86.low[i].mode;
        char *fast = c->cs + X86_NEG + X86_TLB_FAST + 16 * mode, *desc = c->cs + X86_NEG + X86_TLB_DESC(mode);

        if (forget_entry(FIELD(fast, 8, char *) + ((c->x86.low[i].va >> (12 - TLB_ENTRY_BITS)) & FIELD(fast, 0, uint64_t))))
            FIELD(desc, TLBD_USED, uint64_t)--;
    }
    for (int mode = 0; mode < X86_MMU_MODES; mode++)
        for (int i = 0; mode != X86_MMU_USER && i < TLB_VICTIMS; i++)
            forget_entry(c->cs + X86_NEG + X86_TLB_DESC(mode) + TLBD_VICTIMS + (i << TLB_ENTRY_BITS));
    c->x86.nlow = 0;
}

void x86_flushed_all(struct cpu *c)
{
    c->x86.flushes[0]++;
    c->x86.flushes[1]++;
    c->x86.nlow = 0;
    c->x86.nonglobal = false;
}

void __real_cpu_x86_update_cr3_x86_64(void *env, uint64_t value);
void __wrap_cpu_x86_update_cr3_x86_64(void *env, uint64_t value)
{
    struct cpu *c = x86_cpu_of(env);

    if (!c || !(FIELD(env, X86_CR, uint64_t) & CR0_PG) || !(FIELD(env, X86_HFLAGS, uint32_t) & X86_HF_LMA) ||
        !(FIELD(env, X86_CR + 4 * 8, uint64_t) & CR4_PGE) || c->x86.nonglobal || c->x86.nlow > X86_LOW ||
        ++c->x86.cr3_writes % FULL_FLUSH_EVERY == 0) {
        __real_cpu_x86_update_cr3_x86_64(env, value);
        return;
    }
    FIELD(env, X86_CR + 3 * 8, uint64_t) = value;
    c->x86.flushes[0]++;
    forget_low(c);
    __real_tlb_flush_by_mmuidx_x86_64(c->cs, 1u << X86_MMU_USER);
}
