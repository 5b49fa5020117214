/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A cpu: one Unicorn engine, and the coroutine its guest runs on.
 *
 * The Unicorn engine costs milliseconds and megabytes, so it is made when the cpu's registers are first touched or it
 * first runs. Every field is the running thread's own except the atomics and the queue.
 */
#include "engine.h"

/* Leave the guest at the next block boundary; from any thread. */
void cpu_force_exit(struct cpu *c)
{
    uint32_t *decr = FIELD(c->cs, CS_ICOUNT_DECR, uint32_t *);
    __atomic_store_n((uint16_t *)decr + 1, 0xffff, __ATOMIC_SEQ_CST);
}

/* Back to Python with an event; returns its answer when the cpu runs again. */
uint64_t cpu_park(struct cpu *c, int kind, uint64_t a, uint64_t b, uint64_t v)
{
    c->ev = (struct event){kind, a, b, v};
    c->parked = kind;
    c->synced = false;
    coroutine_switch(&c->co);
    c->parked = EV_NONE;
    return c->answer;
}

static void flush(struct cpu *c)
{
    struct op op = {OP_FLUSH_CODE, 0, 0};

    if (!c->flush_code)
        return;
    c->flush_code = false;
    c->m->target->apply(c, &op);
}

/* At a block boundary: do what others asked for; true when the guest must be left. */
bool cpu_attention(struct cpu *c)
{
    if (c->alone) {
        flush(c);
        /* One instruction, and out at the start of the block after it. */
        cpu_force_exit(c);
        return c->alone++ > 1;
    }
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&c->pending, memory_order_relaxed))
        cpu_drain(c);
    if (c->writes != atomic_load_explicit(&c->m->writes, memory_order_relaxed) && c->m->target->distrust)
        c->m->target->distrust(c);
    flush(c);
    return atomic_load_explicit(&c->kicked, memory_order_relaxed) ||
           atomic_load_explicit(&c->m->stop, memory_order_relaxed) ||
           atomic_load_explicit(&c->ticked, memory_order_relaxed);
}

/* Access to a hole in the memory map. A page-table walk cannot be a device access: it fails. */
static uint32_t hole_read(void *uc, void *opaque, uint64_t addr, uint64_t *data, unsigned size, uint32_t attrs)
{
    struct cpu *c = cpu_of_uc(uc);
    uint64_t pa = c->fill.pa_page | (addr & (GUEST_PAGE - 1));
    uintptr_t ra = c->fill.ra;

    (void)opaque, (void)attrs;
    if (c->fill.active) {
        *data = 0;
        return MEMTX_DECODE_ERROR;
    }
    if (c->m->target->device_piece && c->m->target->device_piece(c, pa, size, data, false))
        return MEMTX_OK;
    *data = cpu_park(c, EV_MMIO_READ, pa, size, 0);
    if (c->abandon)
        c->m->target->restore(c, ra);
    return MEMTX_OK;
}

static uint32_t hole_write(void *uc, void *opaque, uint64_t addr, uint64_t data, unsigned size, uint32_t attrs)
{
    struct cpu *c = cpu_of_uc(uc);
    uint64_t pa = c->fill.pa_page | (addr & (GUEST_PAGE - 1));
    uintptr_t ra = c->fill.ra;

    (void)opaque, (void)attrs;
    if (c->fill.active)
        return MEMTX_DECODE_ERROR;
    if (c->m->target->device_piece && c->m->target->device_piece(c, pa, size, &data, true))
        return MEMTX_OK;
    cpu_park(c, EV_MMIO_WRITE, pa, size, data);
    if (c->abandon)
        c->m->target->restore(c, ra);
    return MEMTX_OK;
}

/* MemoryRegionOps */
static const struct {
    void *read, *write, *read_with_attrs, *write_with_attrs;
    int endianness, pad;
    unsigned valid_min, valid_max;
    uint64_t valid_unaligned;
    void *accepts;
    unsigned impl_min, impl_max;
    uint64_t impl_unaligned;
} hole_ops = {NULL, NULL, hole_read, hole_write, 0 /* the guest's byte order */, 0, 1, 16, 1, NULL, 1, 8, 1};

/* The coroutine: guest code until something parks it. */
static void guest_main(void *arg)
{
    struct cpu *c = arg;

    for (;;) {
        int r, kind;
        bool stepped, single;

        FIELD(c->cs, CS_EXIT_REQUEST, bool) = false;
        FIELD(c->cs, CS_STOP, bool) = false;
        FIELD(c->cs, CS_STOPPED, bool) = false;
        FIELD(c->cs, CS_HALTED, uint32_t) = 0;
        FIELD(c->cs, CS_EXCEPTION_INDEX, int32_t) = -1;
        FIELD(c->cs, CS_INTERRUPT_REQUEST, uint32_t) |= INTERRUPT_HARD;
        FIELD(c->uc, UC_INVALID_ERROR, int32_t) = 0;
        FIELD(c->uc, UC_SIZE_RECUR_MEM, int32_t) = 0;
        c->fill.active = false;
        if (c->alone)
            FIELD(c->cs, CS_CFLAGS_NEXT, uint32_t) = CF_ALONE;
        if (c->x86.raise >= 0 && !c->abandon) {
            FIELD(c->cs, CS_EXCEPTION_INDEX, int32_t) = c->x86.raise;
            FIELD(c->env, X86_ERROR_CODE, int32_t) = c->x86.raise_error < 0 ? 0 : c->x86.raise_error;
            FIELD(c->env, X86_EXC_IS_INT, int32_t) = 0;
            c->x86.raise = c->x86.raise_error = -1;
        }
        r = c->m->target->exec(c->uc, c->cs);
        c->fill.active = false;
        stepped = c->x86.stepping && c->alone > 1;
        single = c->alone;
        c->alone = 0;
        c->x86.stepping = false;
        if (c->abandon) {
            c->abandon = false;
            cpu_park(c, EV_ABANDONED, 0, 0, 0);
        } else if (c->fetch_fault) {
            c->fetch_fault = false;
            /* At a page's start it may be a later instruction of the block that runs into it: one at a time. */
            if ((c->fill.va & (GUEST_PAGE - 1)) || single)
                cpu_park(c, EV_FETCH, c->fill.pa_page | (c->fill.va & (GUEST_PAGE - 1)), 0, 0);
            else
                cpu_park(c, EV_EXCLUSIVE, 0, 0, 0);
        } else if (FIELD(c->uc, UC_INVALID_ERROR, int32_t)) {
            cpu_park(c, EV_ERROR, FIELD(c->uc, UC_INVALID_ERROR, uint32_t), (uint32_t)r, 0);
        } else if ((kind = c->m->target->stopped(c, r)) != EV_NONE) {
            FIELD(c->cs, CS_HALTED, uint32_t) = 0;
            cpu_park(c, kind, 0, 0, 0);
        } else if (r == EXCP_DEBUG) {
            cpu_park(c, EV_BREAK, c->m->target->debug_code ? c->m->target->debug_code(c) : 0, 0, 0);
        } else if (r == EXCP_ATOMIC) {
            /* An atomic access the host has no instruction for: split, or to a device. */
            cpu_park(c, EV_EXCLUSIVE, 0, 0, 0);
        } else if (r == EXCP_INTERRUPT || r == EXCP_YIELD) {
            if (stepped)
                cpu_park(c, EV_BREAK, X86_DR6_BS, 0, 0);
            else if (atomic_exchange(&c->kicked, 0))
                cpu_park(c, EV_KICK, 0, 0, 0);
            else if (atomic_load(&c->ticked) || atomic_load(&c->m->stop))
                cpu_park(c, EV_PAUSED, 0, 0, 0);
        } else {
            cpu_park(c, EV_ERROR, 0, (uint32_t)r, 0);
        }
    }
}

/* Make the Unicorn engine; 0 or a Python error. */
int cpu_materialise(struct cpu *c)
{
    const struct target *t = c->m->target;
    uc_engine *uc = NULL;
    size_t page_size;
    uc_err err;

    if (c->closed || c->m->closed) {
        PyErr_SetString(PyExc_RuntimeError, "the cpu is closed");
        return -1;
    }
    if (c->uc)
        return 0;
    c->x86.inject = c->x86.raise = c->x86.raise_error = -1;
    err = uc_open(t->uc_arch, t->uc_mode, &uc);
    if (err == UC_ERR_OK)
        err = uc_ctl_set_cpu_model(uc, t->cpu_model);
    if (err == UC_ERR_OK && t->uc_arch == UC_ARCH_ARM64)
        err = uc_ctl_set_page_size(uc, GUEST_PAGE); /* elsewhere it is fixed */
    if (err == UC_ERR_OK)
        err = uc_ctl_set_tcg_buffer_size(uc, 64 * 1024 * 1024);
    if (err == UC_ERR_OK)
        err = uc_ctl_exits_enable(uc);
    if (err != UC_ERR_OK) {
        PyErr_Format(PyExc_MemoryError, "no engine for the cpu: %s", uc_strerror(err));
        if (uc)
            uc_close(uc);
        return -1;
    }
    /* The first access to a register makes Unicorn's cpu. */
    uc_query(uc, UC_QUERY_PAGE_SIZE, &page_size);
    if (!FIELD(uc, UC_CPU, char *)) {
        uc_close(uc);
        PyErr_NoMemory();
        return -1;
    }
    FIELD(uc, UC_THREAD_DATA, void *) = c;
    c->cs = FIELD(uc, UC_CPU, char *);
    c->env = FIELD(c->cs, CS_ENV, char *);
    c->uc = uc;
    FIELD(uc, UC_STOP_INTERRUPT, void *) = NULL;
    FIELD(uc, UC_NO_EXIT_REQUEST, bool) = true;
    FIELD(uc, UC_NESTED_LEVEL, int) = 1;
    FIELD((char *)uc + UC_IO_UNASSIGNED, MR_OPS, const void *) = &hole_ops;
    FIELD((char *)uc + UC_IO_UNASSIGNED, MR_PERMS, uint32_t) = UC_PROT_READ | UC_PROT_WRITE;
    c->behind = true;
    if (regions_begin(c) != UC_ERR_OK || t->setup(c) || coroutine_create(&c->co, guest_main, c))
        goto fail;
    t->reset(c);
    if (!machine_add(c->m, c))
        return 0;
    coroutine_destroy(&c->co);
fail:
    c->uc = NULL;
    FIELD(uc, UC_THREAD_DATA, void *) = NULL;
    FIELD(uc, UC_NESTED_LEVEL, int) = 0;
    uc_close(uc);
    PyErr_NoMemory();
    return -1;
}

static void go(struct cpu *c)
{
    if ((c->behind || c->generation != c->m->generation) && regions_follow(c)) {
        c->ev = (struct event){EV_ERROR, UC_ERR_NOMEM, 0, 0};
        return;
    }
    if (atomic_load(&c->pending))
        cpu_drain(c);
    if (c->writes != atomic_load(&c->m->writes) && c->m->target->distrust) {
        c->m->target->distrust(c);
        if ((c->parked == EV_MMIO_READ || c->parked == EV_MMIO_WRITE) && !c->abandon && !c->alone &&
            c->m->target->stale(c, c->fill.ra)) {
            c->stale = true;
            return;
        }
    }
    /* A line that rose while the cpu was out has not asked for this, and the parked instruction's block may be long. */
    if (atomic_load(&c->kicked) || atomic_load(&c->lines) || atomic_load(&c->x86.nmi) || c->flush_code ||
        atomic_load(&c->ticked))
        cpu_force_exit(c);
    coroutine_switch(&c->co);
}

/* One instruction, with every other cpu stopped. One that is half done is past its beginning. */
static void alone(struct cpu *c, bool step)
{
    machine_pause(c->m);
    if (!c->alone)
        c->alone = step && cpu_mid_instruction(c) ? 2 : 1;
    c->x86.stepping = step;
    go(c);
    machine_resume(c->m);
}

/*
 * The host wrote to the code behind the device access that the cpu is parked in. That instruction is given up and run
 * again in a block of its own, where the access is met again and answered; what follows is looked up.
 */
static void leave_block(struct cpu *c)
{
    struct event parked = c->ev;
    uint64_t answer = c->answer;

    c->abandon = true;
    do {
        cpu_resume(c);
    } while (c->ev.kind == EV_PAUSED);
    alone(c, false);
    if (c->ev.kind == parked.kind && c->ev.a == parked.a && c->ev.b == parked.b) {
        c->answer = answer;
        alone(c, false);
    }
}

/* Let the coroutine go until it parks. */
void cpu_resume(struct cpu *c)
{
    if (c->ring.nspill)
        ring_drain(c);
    if (c->x86.debug.step && !c->abandon) {
        alone(c, true);
    } else {
        machine_enter(c->m, c);
        go(c);
        atomic_store(&c->in_guest, 0);
        if (c->stale) {
            c->stale = false;
            leave_block(c);
            return;
        }
        if (c->ev.kind == EV_EXCLUSIVE)
            alone(c, false);
    }
}

/*
 * Complete the instruction parked in a device access, and nothing after it. The rest of its block cannot be kept from
 * running, so it is given up and run again in a block of its own, where the access is met again and answered. A kick
 * that comes meanwhile is the caller's to look for.
 */
void cpu_finish(struct cpu *c, uint64_t answer)
{
    struct event parked = c->ev;

    c->abandon = true;
    do {
        cpu_resume(c);
    } while (c->ev.kind == EV_PAUSED);
    machine_pause(c->m);
    atomic_store(&c->kicked, 1);
    c->alone = 1;
    go(c);
    if (c->ev.kind == parked.kind && c->ev.a == parked.a && c->ev.b == parked.b) {
        c->answer = answer;
        go(c);
    }
    /* It made another access: it starts from the beginning when the cpu runs. */
    if (c->parked >= EV_MMIO_READ && c->parked < EV_PAUSED && c->parked != EV_KICK) {
        c->abandon = true;
        go(c);
    }
    c->alone = 0;
    atomic_store(&c->kicked, 0);
    machine_resume(c->m);
}

void cpu_close_engine(struct cpu *c)
{
    c->closed = true;
    if (!c->uc)
        return;
    Py_BEGIN_ALLOW_THREADS
    /* While it is in the list of cpus what its regions point to is not given back. */
    for (int i = 0; i < c->nregions; i++) {
        if (c->m->target->forget_code)
            c->m->target->forget_code(c, &c->regions[i]);
        free(c->regions[i].seen);
    }
    machine_remove(c->m, c);
    FIELD(c->uc, UC_MEMORY_MAPPING, void *) = c->real_mapping;
    FIELD(c->uc, UC_NESTED_LEVEL, int) = 0;
    FIELD(c->uc, UC_THREAD_DATA, void *) = NULL;
    uc_close(c->uc);
    Py_END_ALLOW_THREADS
    c->uc = NULL;
    free(c->x86.jumps);
    c->x86.jumps = NULL;
    coroutine_destroy(&c->co);
    regions_end(c);
}
