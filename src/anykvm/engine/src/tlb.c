/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * TLB fills, the same for every target: what is RAM, a hole, read-only, logged or code is decided when a page enters a
 * cpu's TLB, so that the translated code's fast path knows nothing of it.
 */
#include "engine.h"

void tlb_fill_begin(struct cpu *c, uint64_t va, int access, uintptr_t ra)
{
    c->fill.va = va;
    c->fill.ra = ra;
    c->fill.access = access;
    c->fill.nonram = false;
    c->fill.active = true;
}

/* True when the guest fetched from where no memory is: the caller leaves the guest. */
bool tlb_fill_end(struct cpu *c, bool ok, bool probe)
{
    c->fill.active = false;
    if (!ok || probe || !c->fill.nonram || c->fill.access != ACCESS_FETCH)
        return false;
    c->fetch_fault = true;
    FIELD(c->cs, CS_EXCEPTION_INDEX, int32_t) = EXCP_INTERRUPT;
    return true;
}

static bool ring_put(struct ring *ring, const struct ring_entry *entry)
{
    uint32_t head = atomic_load_explicit(ring->head, memory_order_relaxed);
    struct ring_entry *slot = &ring->entries[head & ring->mask];

    if (head - atomic_load(ring->tail) > ring->mask)
        return false;
    slot->tag = entry->tag;
    slot->page = entry->page;
    __atomic_store_n(&slot->flags, RING_DIRTY, __ATOMIC_RELEASE);
    atomic_store(ring->head, head + 1);
    return true;
}

/* Before the guest goes on: what found no room when it was written. */
void ring_drain(struct cpu *c)
{
    uint32_t done = 0;

    while (done < c->ring.nspill && ring_put(&c->ring, &c->ring.spill[done]))
        done++;
    c->ring.nspill -= done;
    memmove(c->ring.spill, c->ring.spill + done, c->ring.nspill * sizeof(*c->ring.spill));
}

/* The reader has to be told when the soft limit is reached: the guest is left as by a kick. */
static void ring_log(struct cpu *c, const struct ring_entry *entry)
{
    struct ring *ring = &c->ring;

    if (!ring_put(ring, entry) && ring->nspill < RING_SPILL)
        ring->spill[ring->nspill++] = *entry;
    if (atomic_load(ring->head) - atomic_load(ring->tail) >= ring->soft) {
        atomic_store(&c->kicked, 1);
        cpu_force_exit(c);
    }
}

/* The bit of a page is set by the first write since it was cleared, and that write is the one that rings log. */
static bool log_page(struct cpu *c, struct region *r, uint64_t pa, bool write)
{
    uint64_t page = (pa - r->gpa) / GUEST_PAGE, bit = 1ul << (page % 64);

    if (write && !(__atomic_fetch_or(&r->dirty[page / 64], bit, __ATOMIC_RELAXED) & bit) && c->ring.entries) {
        struct ring_entry entry = {RING_DIRTY, r->tag, page};
        ring_log(c, &entry);
    }
    return write || (__atomic_load_n(&r->dirty[page / 64], __ATOMIC_RELAXED) & bit);
}

/* A write by the cpu itself, such as a page-table walk's accessed bit. */
void tlb_log_write(struct cpu *c, uint64_t pa)
{
    struct region *r = cpu_region(c, pa);

    if (r && r->dirty)
        log_page(c, r, pa, true);
}

/* Before Unicorn makes the entry: a clean page of a logged region stays unwritable until the fill for a write. */
struct region *tlb_page_begin(struct cpu *c, uint64_t pa, int *prot)
{
    struct region *r = cpu_region(c, pa);

    c->fill.pa_page = pa & ~(GUEST_PAGE - 1);
    if (r && r->dirty && (*prot & PAGE_WRITE) &&
        !log_page(c, r, pa, c->fill.active && c->fill.access == ACCESS_STORE))
        *prot &= ~PAGE_WRITE;
    return r;
}

/* After it: fast is the TLB's {mask, table} of the MMU mode. */
void tlb_page_end(struct cpu *c, struct region *r, char *fast, uint64_t va, uint64_t pa, int prot,
                  const struct tlb_flags *f)
{
    char *entry = FIELD(fast, 8, char *) + ((va >> (12 - TLB_ENTRY_BITS)) & FIELD(fast, 0, uint64_t));
    uint64_t *write = &FIELD(entry, TLBE_WRITE, uint64_t);

    if (!r) {
        /* Every access to a hole fills again, so that the fill tells its address and where to return to. */
        uint64_t hole = (va & ~(GUEST_PAGE - 1)) | f->invalid | f->mmio;

        FIELD(entry, TLBE_READ, uint64_t) = prot & PAGE_READ ? hole : ~0ul;
        FIELD(entry, TLBE_CODE, uint64_t) = prot & PAGE_EXEC ? hole : ~0ul;
        *write = prot & PAGE_WRITE ? hole : ~0ul;
        c->fill.nonram = true;
    } else if (prot & PAGE_WRITE) {
        if (r->readonly)
            *write = (*write & ~f->notdirty) | f->invalid | f->mmio;
        else if (!cpu_has_code(c, r, pa))
            *write &= ~f->notdirty;
    }
}
