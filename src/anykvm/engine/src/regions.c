/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A cpu's view of guest-physical memory.
 *
 * Unicorn's own memory map does not take many regions: each new one renders all of them anew, at a cost that grows with
 * their square. So Unicorn has one region for good, all memory that the process can have, at its own addresses; and
 * where it looks for a guest-physical address, wrappers (physical.h) lead it to the host address by our table, which is
 * sorted. A slot more is then an entry more in a table, and Unicorn is told nothing.
 *
 * Translated code is known by its place in Unicorn's RAM, which is the host address: code of a region that goes has to
 * be forgotten.
 */
#include "engine.h"

#include <stdlib.h>

/* What user space can have at all, but for the first page, on x86-64 and arm64 with four levels of tables. */
#define HOST_FIRST GUEST_PAGE
#define HOST_END (1ul << 48)
/* An address of Unicorn's where nothing is, for every hole. */
#define HOLE (1ul << 62)

/* Sorted by host address; reach is the furthest end of this one and of all before it. */
struct by_host {
    uint64_t host, reach;
    int region;
};

bool regions_host_ok(uint64_t host, uint64_t size)
{
    return host >= HOST_FIRST && host < HOST_END && size <= HOST_END - host;
}

/* Where a region with these is, or would be, in a table sorted by space and address. */
int regions_place(const struct region *table, int n, unsigned space, uint64_t gpa)
{
    int low = 0, high = n;

    while (low < high) {
        int middle = low + (high - low) / 2;
        const struct region *r = &table[middle];

        if (r->space < space || (r->space == space && r->gpa < gpa))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct region *cpu_region(struct cpu *c, uint64_t pa)
{
    struct region *r;
    int i;

    if (c->last_region < c->nregions) {
        r = &c->regions[c->last_region];
        if (pa - r->gpa < r->size)
            return r;
    }
    /* The last one that begins at or below the address. */
    i = regions_place(c->regions, c->nregions, c->space, pa);
    if (i == c->nregions || c->regions[i].gpa != pa)
        i--;
    if (i < 0 || pa - c->regions[i].gpa >= c->regions[i].size)
        return NULL;
    c->last_region = i;
    return &c->regions[i];
}

/* Unicorn's address of a guest-physical one; before the engine is ours there are none. */
uint64_t cpu_unicorn_address(struct cpu *c, uint64_t pa)
{
    struct region *r = c ? cpu_region(c, pa) : NULL;

    return r ? (uint64_t)r->hva + (pa - r->gpa) : HOLE | (pa & (GUEST_PAGE - 1));
}

/* Unicorn asks which region an address is in: a hole is its unassigned region, never an error. */
static void *mapping(void *uc, uint64_t pa)
{
    struct cpu *c = cpu_of_uc(uc);

    return cpu_region(c, pa) ? c->ram : (char *)uc + UC_IO_UNASSIGNED;
}

/* Give a new Unicorn engine its one region. */
uc_err regions_begin(struct cpu *c)
{
    void *(*find)(void *, uint64_t) = FIELD(c->uc, UC_MEMORY_MAPPING, void *(*)(void *, uint64_t));
    uc_err err = uc_mem_map_ptr(c->uc, HOST_FIRST, HOST_END - HOST_FIRST, UC_PROT_ALL, (void *)HOST_FIRST);

    if (err != UC_ERR_OK)
        return err;
    c->ram = find(c->uc, HOST_FIRST);
    c->ram_at = c->m->target->ram_of(c->uc, (void *)HOST_FIRST) - HOST_FIRST;
    c->real_mapping = (void *)find;
    FIELD(c->uc, UC_MEMORY_MAPPING, void *) = (void *)mapping;
    return UC_ERR_OK;
}

static int compare(const void *a, const void *b)
{
    const struct by_host *x = a, *y = b;

    if (x->host != y->host)
        return x->host < y->host ? -1 : 1;
    return y->region - x->region; /* the lowest of the guest's addresses is found first */
}

static void index_regions(struct cpu *c)
{
    uint64_t reach = 0;

    for (int i = 0; i < c->nregions; i++)
        c->by_host[i] = (struct by_host){(uint64_t)c->regions[i].hva, 0, i};
    qsort(c->by_host, (size_t)c->nregions, sizeof(*c->by_host), compare);
    for (int i = 0; i < c->nregions; i++) {
        uint64_t end = c->by_host[i].host + c->regions[c->by_host[i].region].size;

        reach = end > reach ? end : reach;
        c->by_host[i].reach = reach;
    }
    c->indexed = true;
}

/*
 * The regions that a host address is in, one after another, always in the same order: several, if the same memory is
 * at several places of the guest. *at is REGIONS_FIRST before the first.
 */
struct region *cpu_region_of_host(struct cpu *c, uint64_t host, int *at)
{
    int i = *at;

    if (!c->indexed)
        index_regions(c);
    if (i == REGIONS_FIRST) {
        int high = c->nregions;

        i = 0;
        while (i < high) {
            int middle = i + (high - i) / 2;

            if (c->by_host[middle].host <= host)
                i = middle + 1;
            else
                high = middle;
        }
    }
    while (--i >= 0 && c->by_host[i].reach > host) {
        struct region *r = &c->regions[c->by_host[i].region];

        *at = i;
        if (host - (uint64_t)r->hva < r->size)
            return r;
    }
    *at = 0;
    return NULL;
}

/*
 * Whether some cpu has code of a page of the region. Code is counted in the first of the regions that share its memory,
 * and a store may come by any. Few machines have such regions: only then are the others looked for.
 */
bool cpu_has_code(struct cpu *c, struct region *r, uint64_t pa)
{
    uint64_t host = (uint64_t)r->hva + (pa - r->gpa);
    int at = REGIONS_FIRST;

    if (!r->code)
        return false;
    if (c->m->shared)
        r = cpu_region_of_host(c, host, &at);
    return __atomic_load_n(&r->code[(host - (uint64_t)r->hva) / GUEST_PAGE], __ATOMIC_SEQ_CST);
}

static int span_place(const struct machine *m, uint64_t host)
{
    int low = 0, high = m->nregions;

    while (low < high) {
        int middle = low + (high - low) / 2;

        if (m->spans[middle].host < host)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* A region is about to be one more of the machine's: does it share memory? False if there is no memory for the note. */
bool regions_span(struct machine *m, const struct region *r)
{
    struct span span = {(uint64_t)r->hva, (uint64_t)r->hva + r->size};
    struct span *fresh;
    int i;

    if (m->shared)
        return true;
    i = span_place(m, span.host);
    m->shared = (i > 0 && m->spans[i - 1].end > span.host) || (i < m->nregions && m->spans[i].host < span.end);
    if (m->shared)
        return true;
    if (m->nregions == m->capspans) {
        fresh = realloc(m->spans, (size_t)(m->nregions * 2 + 8) * sizeof(*fresh));
        if (!fresh)
            return false;
        m->spans = fresh;
        m->capspans = m->nregions * 2 + 8;
    }
    memmove(&m->spans[i + 1], &m->spans[i], (size_t)(m->nregions - i) * sizeof(span));
    m->spans[i] = span;
    return true;
}

/* A region is about to go. */
void regions_unspan(struct machine *m, const struct region *r)
{
    int i;

    if (m->shared)
        return;
    i = span_place(m, (uint64_t)r->hva);
    memmove(&m->spans[i], &m->spans[i + 1], (size_t)(m->nregions - i - 1) * sizeof(*m->spans));
}

static void leave(struct cpu *c, struct region *r)
{
    c->m->target->leave_region(c, r);
    free(r->seen);
}

/*
 * Follow the machine's map. Both tables are sorted alike, so one walk over both finds what stayed; the cost is a copy of
 * the table and something for each region that came or went.
 */
int regions_follow(struct cpu *c)
{
    struct machine *m = c->m;
    struct region *end = m->regions + m->nregions;
    struct region *first = m->regions + regions_place(m->regions, m->nregions, c->space, 0);
    int n = regions_place(first, (int)(end - first), c->space + 1, 0), was = 0;
    struct region *fresh = malloc(((size_t)n + 1) * sizeof(*fresh));
    struct by_host *by_host = malloc(((size_t)n + 1) * sizeof(*by_host));
    struct op flush = {OP_FLUSH, 0, ~0ul};
    bool bad = !fresh || !by_host;

    if (bad)
        n = 0;
    else if (n)
        memcpy(fresh, first, (size_t)n * sizeof(*fresh));
    for (int i = 0; i < n; i++) {
        struct region *r = &fresh[i];

        while (was < c->nregions && c->regions[was].gpa < r->gpa)
            leave(c, &c->regions[was++]);
        if (was < c->nregions && c->regions[was].id == r->id) {
            r->seen = c->regions[was].seen;
            r->own = c->regions[was++].own;
        } else if (r->code) {
            r->seen = calloc(r->size / GUEST_PAGE, sizeof(*r->seen) + sizeof(*r->own));
            r->own = (uint8_t *)(r->seen + r->size / GUEST_PAGE);
            bad |= !r->seen;
        }
        r->ram = (uint64_t)r->hva + c->ram_at;
    }
    while (was < c->nregions)
        leave(c, &c->regions[was++]);
    for (int i = 0; bad && i < n; i++)
        if (fresh[i].seen)
            leave(c, &fresh[i]);
    regions_end(c);
    c->regions = fresh;
    c->by_host = by_host;
    c->nregions = bad ? 0 : n;
    c->generation = m->generation;
    c->behind = bad;
    c->m->target->apply(c, &flush);
    x86_jump_forget(c);
    return bad ? -1 : 0;
}

void regions_end(struct cpu *c)
{
    free(c->regions);
    free(c->by_host);
    c->regions = NULL;
    c->by_host = NULL;
    c->nregions = c->last_region = 0;
    c->indexed = false;
}
