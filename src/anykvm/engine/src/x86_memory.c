/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * x86's memory side: TLB fills, and stores to translated code.
 *
 * An x86 guest does no cache maintenance, so a page with translated code is watched: region->code counts the cpus that
 * hold code of it, and while it is not zero every cpu's TLB sends stores there to the slow path, which ends in
 * __wrap_tb_invalidate_phys_page_fast. The page is counted before its bytes are read, and the other cpus' TLBs are
 * known to watch it before translation goes on; so no store is missed.
 */
#include "x86.h"

#define TARGET_WRAP(name) __wrap_##name##_x86_64
#define TARGET_REAL(name) __real_##name##_x86_64
#include "physical.h"

PHYSICAL_LOAD(address_space_ldub, uint32_t)
PHYSICAL_LOAD(address_space_lduw, uint32_t)
PHYSICAL_LOAD(address_space_ldl, uint32_t)
PHYSICAL_LOAD(address_space_ldq, uint64_t)
PHYSICAL_STORE(address_space_stb, uint32_t)
PHYSICAL_STORE(address_space_stw, uint32_t)
PHYSICAL_STORE(address_space_stl, uint32_t)
PHYSICAL_STORE(address_space_stl_notdirty, uint32_t)
PHYSICAL_STORE(address_space_stq, uint64_t)

/* Where Unicorn looks for the code that a breakpoint is put into. */
uint64_t __real_x86_cpu_get_phys_page_attrs_debug_x86_64(void *cs, uint64_t va, uint32_t *attrs);
uint64_t __wrap_x86_cpu_get_phys_page_attrs_debug_x86_64(void *cs, uint64_t va, uint32_t *attrs)
{
    uint64_t pa = __real_x86_cpu_get_phys_page_attrs_debug_x86_64(cs, va, attrs);

    return pa == ~0ul ? pa : cpu_unicorn_address(cpu_of(cs), pa);
}

void tlb_flush_by_mmuidx_x86_64(void *cs, uint16_t idxmap);
void tlb_flush_page_by_mmuidx_x86_64(void *cs, uint64_t addr, uint16_t idxmap);
void tlb_reset_dirty_x86_64(void *cs, uint64_t host, uint64_t length);
void tb_invalidate_phys_range_x86_64(void *uc, uint64_t start, uint64_t end);
void tb_flush_x86_64(void *cs);

static const struct tlb_flags flags = {X86_TLB_INVALID, X86_TLB_NOTDIRTY, X86_TLB_MMIO};

static struct region *region_of_ram(struct cpu *c, uint64_t ram)
{
    int at = REGIONS_FIRST;

    return cpu_region_of_host(c, ram - c->ram_at, &at);
}

/* A new list of fetched pages: only with a TLB that is empty, or about to be. */
static void forget_fetched(struct cpu *c)
{
    c->x86.nfetched = 0;
    if (++c->x86.list)
        return;
    c->x86.list = 1;
    for (int i = 0; i < c->nregions; i++)
        if (c->regions[i].seen)
            memset(c->regions[i].seen, 0, c->regions[i].size / GUEST_PAGE * sizeof(*c->regions[i].seen));
}

/* This cpu has no code of the page any more. */
static void drop_page(struct cpu *c, struct region *r, uint64_t page)
{
    tb_invalidate_phys_range_x86_64(c->uc, r->ram + page * GUEST_PAGE, r->ram + (page + 1) * GUEST_PAGE);
    if (r->own[page]) {
        r->own[page] = 0;
        __atomic_fetch_sub(&r->code[page], 1, __ATOMIC_SEQ_CST);
    }
}

void x86_forget_code(struct cpu *c, struct region *r)
{
    (void)c;
    for (uint64_t page = 0; r->own && page < r->size / GUEST_PAGE; page++) {
        if (r->own[page]) {
            r->own[page] = 0;
            __atomic_fetch_sub(&r->code[page], 1, __ATOMIC_SEQ_CST);
        }
    }
}

void x86_leave_region(struct cpu *c, struct region *r)
{
    for (uint64_t page = 0; r->own && page < r->size / GUEST_PAGE; page++)
        if (r->own[page])
            drop_page(c, r, page);
}

void x86_apply(struct cpu *c, const struct op *op)
{
    int at = REGIONS_FIRST;

    switch (op->kind) {
    case OP_FLUSH:
        /* With every mode's entries all trust in code goes: it is looked at again as it is fetched. */
        if ((op->arg & ((1u << X86_MMU_MODES) - 1)) == (1u << X86_MMU_MODES) - 1)
            forget_fetched(c);
        tlb_flush_by_mmuidx_x86_64(c->cs, op->arg & ((1u << X86_MMU_MODES) - 1));
        break;
    case OP_FLUSH_PAGE:
        tlb_flush_page_by_mmuidx_x86_64(c->cs, op->addr, op->arg & ((1u << X86_MMU_MODES) - 1));
        break;
    case OP_PROTECT:
        tlb_reset_dirty_x86_64(c->cs, op->addr, op->arg);
        break;
    case OP_INVALIDATE:
        for (struct region *r; (r = cpu_region_of_host(c, op->addr, &at));) {
            uint64_t offset = op->addr - (uint64_t)r->hva;

            for (uint64_t page = offset / GUEST_PAGE; page <= (offset + op->arg - 1) / GUEST_PAGE; page++)
                if (page < r->size / GUEST_PAGE)
                    drop_page(c, r, page);
        }
        break;
    case OP_RETRANSLATE:
        tb_invalidate_phys_range_x86_64(c->uc, op->addr, op->addr + op->arg);
        break;
    case OP_FLUSH_CODE:
        tb_flush_x86_64(c->cs);
        break;
    }
}

/* No cpu has code of the page when this returns, or it drops it before it runs: then the copy is of no use either. */
static void drop_everywhere(struct cpu *c, struct region *r, uint64_t page)
{
    struct op op = {OP_INVALIDATE, (uint64_t)(r->hva + page * GUEST_PAGE), GUEST_PAGE};

    __atomic_store_n(&r->copied[page], 0, __ATOMIC_SEQ_CST);
    if (r->own[page])
        drop_page(c, r, page);
    if (__atomic_load_n(&r->code[page], __ATOMIC_SEQ_CST)) {
        machine_post(c->m, c, &op);
        if (c->unsynced)
            machine_sync(c->m, c);
    }
}

/*
 * The host's writes. Nothing tells of them, so the first cpu with code of a page keeps a copy of its bytes, and who goes
 * on with code that was translated before the host could write compares. The copy is older than any code of the page, and
 * made anew only when no cpu has any: so what is equal was not written between.
 *
 * Pages whose number in region->seen is that of the cpu's list were compared since the last distrust. A block is run only
 * if it was looked up by then, and each way to look one up comes by trust(): a fill of the TLB to fetch from the page,
 * get_page_addr_code, the jump cache. After a distrust the pages on the list are compared at once; if they are many, a new
 * list is begun, what the caches of blocks know is forgotten, and each page is compared when it is next looked up.
 */
static bool as_translated(struct region *r, uint64_t page)
{
    return r->copied[page] &&
           (!r->copy[page] || !memcmp(r->copy[page], r->hva + page * GUEST_PAGE, GUEST_PAGE));
}

/* This cpu is about to have code of the page. */
static void count_code(struct machine *m, struct region *r, uint64_t page)
{
    r->own[page] = 1;
    pthread_mutex_lock(&m->copies);
    if (!__atomic_fetch_add(&r->code[page], 1, __ATOMIC_SEQ_CST))
        r->copied[page] = 0;
    pthread_mutex_unlock(&m->copies);
}

/* With every guest store that was under way done: keep a copy, or compare; false if what others have is stale. */
static bool copy_or_compare(struct machine *m, struct region *r, uint64_t page)
{
    bool same = true;

    pthread_mutex_lock(&m->copies);
    if (r->copied[page]) {
        same = as_translated(r, page);
    } else {
        if (!r->copy[page])
            r->copy[page] = malloc(GUEST_PAGE);
        if (r->copy[page])
            memcpy(r->copy[page], r->hva + page * GUEST_PAGE, GUEST_PAGE);
        r->copied[page] = 1;
    }
    pthread_mutex_unlock(&m->copies);
    return same;
}

void x86_distrust(struct cpu *c)
{
    c->writes = atomic_load(&c->m->writes);
    if (c->x86.nfetched > FETCHED) {
        forget_fetched(c);
        x86_jump_doubt(c);
        cpu_force_exit(c); /* a block that this one is linked to is looked up, too */
        return;
    }
    for (int i = 0; i < c->x86.nfetched; i++) {
        struct region *r = region_of_ram(c, c->x86.fetched[i].ram);
        uint64_t page = r ? (c->x86.fetched[i].ram - r->ram) / GUEST_PAGE : 0;

        if (r && r->own[page] && !as_translated(r, page))
            drop_everywhere(c, r, page);
    }
}

/* Code of the page goes on the list; false if what there was of it was stale, and is gone now. */
static bool trust(struct cpu *c, struct region *r, uint64_t page)
{
    if (r->seen[page] != c->x86.list) {
        r->seen[page] = c->x86.list;
        if (c->x86.nfetched < FETCHED)
            c->x86.fetched[c->x86.nfetched].ram = r->ram + page * GUEST_PAGE;
        if (c->x86.nfetched <= FETCHED)
            c->x86.nfetched++;
    }
    if (!r->own[page] || as_translated(r, page))
        return true;
    drop_everywhere(c, r, page);
    return false;
}

/* The same for a place in RAM; one that was compared since the last distrust is trusted, unless it is another page. */
static bool trust_ram(struct cpu *c, uint64_t ram, bool another)
{
    struct region *r = region_of_ram(c, ram);
    uint64_t page = r ? (ram - r->ram) / GUEST_PAGE : 0;

    return !r || !r->seen || (!another && r->seen[page] == c->x86.list) || trust(c, r, page);
}

/* A page was entered into the TLB to fetch from it. */
static bool fetched(struct cpu *c, uint64_t pa)
{
    struct region *r = cpu_region(c, pa);

    return !r || trust_ram(c, r->ram + (pa - r->gpa), true);
}

/* Code at this place in the host's memory is about to be looked up. */
bool x86_trust_host(struct cpu *c, uint64_t host)
{
    return trust_ram(c, host + c->ram_at, false);
}

/*
 * The cpu goes on in the middle of a block, at translated code that it was parked in: is the rest of it not what is in
 * memory any more?
 */
void *tcg_tb_lookup_x86_64(void *tcg, uintptr_t ra);
bool x86_stale(struct cpu *c, uintptr_t ra)
{
    char *tb = tcg_tb_lookup_x86_64(FIELD(c->uc, UC_TCG_CTX, void *), ra);

    for (int i = 0; tb && i < 2; i++) {
        uint64_t ram = FIELD(tb, TB_PAGES + 8 * i, uint64_t);

        if (ram != ~0ul)
            trust_ram(c, ram, false);
    }
    return tb && (FIELD(tb, TB_CFLAGS, uint32_t) & CF_INVALID);
}

/* Unicorn looks code up by its place in RAM: to run it, or to see whether a block's second page is this one. */
uint64_t __real_get_page_addr_code_x86_64(void *env, uint64_t va);
uint64_t __wrap_get_page_addr_code_x86_64(void *env, uint64_t va)
{
    struct cpu *c = x86_cpu_of(env);
    uint64_t ram = __real_get_page_addr_code_x86_64(env, va);

    if (ram != ~0ul && !trust_ram(c, ram, false)) {
        /* The lookup under way may have a block of it already. */
        FIELD(c->cs, CS_EXCEPTION_INDEX, int32_t) = -1;
        cpu_loop_exit_x86_64(c->cs);
    }
    return ram;
}

/* Watch the page before its bytes are translated. */
void x86_protect_code(struct cpu *c, uint64_t ram)
{
    struct region *r = region_of_ram(c, ram);
    uint64_t page;
    struct op op = {OP_PROTECT, 0, GUEST_PAGE};

    if (!r)
        return;
    page = (ram - r->ram) / GUEST_PAGE;
    op.addr = (uint64_t)(r->hva + page * GUEST_PAGE);
    /* While this cpu waits it serves others, one of whom may store to the page: then it is to be watched anew. */
    while (!r->own[page]) {
        count_code(c->m, r, page);
        tlb_reset_dirty_x86_64(c->cs, op.addr, op.arg);
        machine_post(c->m, c, &op);
        if (c->unsynced)
            machine_sync(c->m, c);
        if (r->own[page] && !copy_or_compare(c->m, r, page))
            drop_everywhere(c, r, page);
    }
}

/* Unicorn links a block into a page: known already, unless the block ran into a second page. */
void __wrap_tlb_protect_code_x86_64(void *uc, uint64_t ram)
{
    struct cpu *c = cpu_of_uc(uc);
    struct region *r = region_of_ram(c, ram);

    if (r && !r->own[(ram - r->ram) / GUEST_PAGE]) {
        struct op op = {OP_RETRANSLATE, ram & ~(GUEST_PAGE - 1), GUEST_PAGE};

        /* Its bytes were read unwatched: watch, and translate again. */
        x86_protect_code(c, ram);
        machine_post_self(c, &op);
    }
}

void __wrap_tlb_reset_dirty_by_vaddr_x86_64(void *cs, uint64_t start, uint64_t length)
{
    (void)cs, (void)start, (void)length;
}

/* The whole code buffer goes, and with it every page's code. */
void __real_tcg_region_reset_all_x86_64(void *tcg);
void __wrap_tcg_region_reset_all_x86_64(void *tcg)
{
    struct cpu *c = cpu_of_uc(FIELD(tcg, X86_TCG_UC, void *));

    __real_tcg_region_reset_all_x86_64(tcg);
    if (c)
        x86_jump_forget(c);
    for (int i = 0; c && i < c->nregions; i++)
        x86_forget_code(c, &c->regions[i]);
}

/* Stores to the page are fast again in this cpu's TLB. */
static void unwatch(struct cpu *c, uint64_t host)
{
    for (int mode = 0; mode < X86_MMU_MODES; mode++) {
        char *fast = c->cs + X86_NEG + X86_TLB_FAST + 16 * mode;
        uint64_t bytes = FIELD(fast, 0, uint64_t) + (1 << TLB_ENTRY_BITS);

        for (uint64_t at = 0; at < bytes; at += 1 << TLB_ENTRY_BITS) {
            char *entry = FIELD(fast, 8, char *) + at;
            uint64_t *write = &FIELD(entry, TLBE_WRITE, uint64_t);

            if ((*write & (X86_TLB_INVALID | X86_TLB_NOTDIRTY | X86_TLB_MMIO)) == X86_TLB_NOTDIRTY &&
                (*write & ~(GUEST_PAGE - 1)) + FIELD(entry, TLBE_ADDEND, uint64_t) == host)
                *write &= ~X86_TLB_NOTDIRTY;
        }
    }
}

/* A store to a watched page, before it is done. */
void __real_tb_invalidate_phys_page_fast_x86_64(void *uc, void *pages, uint64_t ram, int len, uintptr_t ra);
void __wrap_tb_invalidate_phys_page_fast_x86_64(void *uc, void *pages, uint64_t ram, int len, uintptr_t ra)
{
    struct cpu *c = cpu_of_uc(uc);
    struct region *r;
    uint64_t page;

    /* If the block that stores overwrites itself this leaves, and the store comes again alone. */
    __real_tb_invalidate_phys_page_fast_x86_64(uc, pages, ram, len, ra);
    r = region_of_ram(c, ram);
    if (!r)
        return;
    page = (ram - r->ram) / GUEST_PAGE;
    drop_everywhere(c, r, page);
    if (!__atomic_load_n(&r->code[page], __ATOMIC_SEQ_CST))
        unwatch(c, (uint64_t)(r->hva + page * GUEST_PAGE));
}

/*
 * An address that is not canonical is a stack fault if the stack is what it is in; Unicorn has #GP for all. Without a
 * place in the code an exception is being delivered, and what is stored then is its frame.
 */
static void check_canonical(struct cpu *c, uint64_t va, int access, uintptr_t ra)
{
    if ((uint64_t)((int64_t)(va << 16) >> 16) == va || access == ACCESS_FETCH ||
        !(FIELD(c->env, X86_HFLAGS, uint32_t) & X86_HF_LMA))
        return;
    if (ra) {
        cpu_restore_state_x86_64(c->cs, ra, true);
        if (!x86_uses_stack(c->env, FIELD(c->env, X86_EIP, uint64_t), access == ACCESS_STORE))
            return;
    } else if (access != ACCESS_STORE) {
        return;
    }
    raise_exception_err_x86_64(c->env, VECTOR_SS, 0);
}

bool __real_x86_cpu_tlb_fill_x86_64(void *cs, uint64_t va, int size, int access, int mmu_idx, bool probe, uintptr_t ra);
bool __wrap_x86_cpu_tlb_fill_x86_64(void *cs, uint64_t va, int size, int access, int mmu_idx, bool probe, uintptr_t ra)
{
    struct cpu *c = cpu_of(cs);
    bool ok;

    tlb_fill_begin(c, va, access, ra);
    ok = x86_walk(c, va, access, mmu_idx);
    if (!ok) {
        if (va >> 63)
            c->x86.nonglobal = true; /* who knows */
        if (!probe)
            check_canonical(c, va, access, ra);
        ok = __real_x86_cpu_tlb_fill_x86_64(cs, va, size, access, mmu_idx, probe, ra);
    }
    if (tlb_fill_end(c, ok, probe))
        cpu_loop_exit_x86_64(cs);
    if (ok && access == ACCESS_FETCH && !fetched(c, c->fill.pa_page) && !probe) {
        /* The lookup under way may have a block of it already. */
        FIELD(cs, CS_EXCEPTION_INDEX, int32_t) = -1;
        cpu_loop_exit_x86_64(cs);
    }
    return ok;
}

/* To fetch from the page is another fill, for fetched() to see. */
static void not_fetched(char *fast, uint64_t va)
{
    char *entry = FIELD(fast, 8, char *) + ((va >> (12 - TLB_ENTRY_BITS)) & FIELD(fast, 0, uint64_t));

    FIELD(entry, TLBE_CODE, uint64_t) = ~0ul;
}

void __real_tlb_set_page_with_attrs_x86_64(void *cs, uint64_t va, uint64_t pa, uint32_t attrs, int prot, int mmu_idx,
                                           uint64_t size);
void __wrap_tlb_set_page_with_attrs_x86_64(void *cs, uint64_t va, uint64_t pa, uint32_t attrs, int prot, int mmu_idx,
                                           uint64_t size)
{
    struct cpu *c = cpu_of(cs);
    struct region *r = tlb_page_begin(c, pa, &prot);

    __real_tlb_set_page_with_attrs_x86_64(cs, va, pa, attrs, prot, mmu_idx, size);
    x86_note_low(c, va, mmu_idx);
    tlb_page_end(c, r, c->cs + X86_NEG + X86_TLB_FAST + 16 * mmu_idx, va, pa, prot, &flags);
    if (r && (prot & PAGE_EXEC) && !(c->fill.active && c->fill.access == ACCESS_FETCH))
        not_fetched(c->cs + X86_NEG + X86_TLB_FAST + 16 * mmu_idx, va);
}

/* A page-table walk sets an accessed or dirty bit. */
void __real_x86_stl_phys_notdirty_x86_64(void *cs, uint64_t pa, uint32_t value);
void __wrap_x86_stl_phys_notdirty_x86_64(void *cs, uint64_t pa, uint32_t value)
{
    __real_x86_stl_phys_notdirty_x86_64(cs, pa, value);
    tlb_log_write(cpu_of(cs), pa);
}
