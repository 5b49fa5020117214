/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A cpu: one Unicorn engine, the coroutine its guest runs on, and the events that come back.
 *
 * The Unicorn engine costs milliseconds and megabytes, so it is made when the cpu's registers are first touched or it
 * first runs. Every field is the running thread's own except the atomics and the queue.
 */
#include "engine.h"

#include <structmember.h>
#include <time.h>

PyTypeObject *cpu_type;

/* The cpu in run() on Python's main thread, which has signal handlers to run. */
static struct cpu *_Atomic main_cpu;
static pthread_t ticker;
static pthread_mutex_t ticker_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ticker_wake = PTHREAD_COND_INITIALIZER;
static bool ticker_started;

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

struct region *cpu_region(struct cpu *c, uint64_t pa)
{
    struct region *r;

    if (c->last_region < c->nregions) {
        r = &c->regions[c->last_region];
        if (pa - r->gpa < r->size)
            return r;
    }
    for (int i = 0; i < c->nregions; i++) {
        r = &c->regions[i];
        if (pa - r->gpa < r->size) {
            c->last_region = i;
            return r;
        }
    }
    return NULL;
}

/* Unicorn asks which region an address is in: a hole is its unassigned region, never an error. */
static void *mapping(void *uc, uint64_t pa)
{
    struct region *r = cpu_region(cpu_of_uc(uc), pa);
    return r ? r->mr : (char *)uc + UC_IO_UNASSIGNED;
}

/* At a block boundary: do what others asked for; true when the guest must be left. */
bool cpu_attention(struct cpu *c)
{
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&c->pending, memory_order_relaxed))
        cpu_drain(c);
    if (c->flush_code) {
        struct op op = {OP_FLUSH_CODE, 0, 0};
        c->flush_code = false;
        c->m->target->apply(c, &op);
    }
    return atomic_load_explicit(&c->kicked, memory_order_relaxed) ||
           atomic_load_explicit(&c->m->stop, memory_order_relaxed) ||
           atomic_load_explicit(&c->ticked, memory_order_relaxed);
}

/* Access to a hole in the memory map. A page-table walk cannot be a device access: it fails. */
static uint32_t hole_read(void *uc, void *opaque, uint64_t addr, uint64_t *data, unsigned size, uint32_t attrs)
{
    struct cpu *c = cpu_of_uc(uc);
    uintptr_t ra = c->fill.ra;

    (void)opaque, (void)attrs;
    if (c->fill.active) {
        *data = 0;
        return MEMTX_DECODE_ERROR;
    }
    *data = cpu_park(c, EV_MMIO_READ, c->fill.pa_page | (addr & (GUEST_PAGE - 1)), size, 0);
    if (c->abandon)
        c->m->target->restore(c, ra);
    return MEMTX_OK;
}

static uint32_t hole_write(void *uc, void *opaque, uint64_t addr, uint64_t data, unsigned size, uint32_t attrs)
{
    struct cpu *c = cpu_of_uc(uc);
    uintptr_t ra = c->fill.ra;

    (void)opaque, (void)attrs;
    if (c->fill.active)
        return MEMTX_DECODE_ERROR;
    cpu_park(c, EV_MMIO_WRITE, c->fill.pa_page | (addr & (GUEST_PAGE - 1)), size, data);
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
        int r;

        FIELD(c->cs, CS_EXIT_REQUEST, bool) = false;
        FIELD(c->cs, CS_STOP, bool) = false;
        FIELD(c->cs, CS_STOPPED, bool) = false;
        FIELD(c->cs, CS_HALTED, uint32_t) = 0;
        FIELD(c->cs, CS_EXCEPTION_INDEX, int32_t) = -1;
        FIELD(c->cs, CS_INTERRUPT_REQUEST, uint32_t) |= INTERRUPT_HARD;
        FIELD(c->uc, UC_INVALID_ERROR, int32_t) = 0;
        FIELD(c->uc, UC_SIZE_RECUR_MEM, int32_t) = 0;
        c->fill.active = false;
        r = c->m->target->exec(c->uc, c->cs);
        c->fill.active = false;
        if (c->abandon) {
            c->abandon = false;
            cpu_park(c, EV_ABANDONED, 0, 0, 0);
        } else if (c->fetch_fault) {
            c->fetch_fault = false;
            cpu_park(c, EV_FETCH, c->fill.pa_page | (c->fill.va & (GUEST_PAGE - 1)), 0, 0);
        } else if (FIELD(c->uc, UC_INVALID_ERROR, int32_t)) {
            cpu_park(c, EV_ERROR, FIELD(c->uc, UC_INVALID_ERROR, uint32_t), (uint32_t)r, 0);
        } else if (r == EXCP_HLT || r == EXCP_HALTED) {
            FIELD(c->cs, CS_HALTED, uint32_t) = 0;
            cpu_park(c, EV_WFI, 0, 0, 0);
        } else if (r == EXCP_DEBUG) {
            cpu_park(c, EV_BREAK, 0, 0, 0);
        } else if (r == EXCP_INTERRUPT || r == EXCP_YIELD) {
            if (atomic_exchange(&c->kicked, 0))
                cpu_park(c, EV_KICK, 0, 0, 0);
            else if (atomic_load(&c->ticked) || atomic_load(&c->m->stop))
                cpu_park(c, EV_PAUSED, 0, 0, 0);
        } else {
            cpu_park(c, EV_ERROR, 0, (uint32_t)r, 0);
        }
    }
}

static int sync_regions(struct cpu *c)
{
    struct machine *m = c->m;
    struct region *fresh = calloc((size_t)m->nregions + 1, sizeof(*fresh));
    struct op flush = {OP_FLUSH, 0, ~0ul};
    int bad = 0;

    if (!fresh)
        return -1;
    memcpy(fresh, m->regions, (size_t)m->nregions * sizeof(*fresh));
    FIELD(c->uc, UC_MEMORY_MAPPING, void *) = (void *)c->real_mapping;
    for (int i = 0; i < c->nregions; i++) {
        int j = 0;
        while (j < m->nregions && fresh[j].id != c->regions[i].id)
            j++;
        if (j < m->nregions)
            fresh[j].mr = c->regions[i].mr;
        else
            uc_mem_unmap(c->uc, c->regions[i].gpa, c->regions[i].size);
    }
    for (int j = 0; j < m->nregions && !bad; j++) {
        if (fresh[j].mr)
            continue;
        if (uc_mem_map_ptr(c->uc, fresh[j].gpa, fresh[j].size, UC_PROT_ALL, fresh[j].hva) != UC_ERR_OK)
            bad = 1;
        else
            fresh[j].mr = c->real_mapping(c->uc, fresh[j].gpa);
    }
    free(c->regions);
    c->regions = fresh;
    c->nregions = bad ? 0 : m->nregions;
    c->last_region = 0;
    c->generation = atomic_load(&m->generation);
    FIELD(c->uc, UC_MEMORY_MAPPING, void *) = (void *)mapping;
    m->target->apply(c, &flush);
    return bad ? -1 : 0;
}

/* Make the Unicorn engine; 0 or a Python error. */
static int materialise(struct cpu *c)
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
    err = uc_open(t->uc_arch, t->uc_mode, &uc);
    if (err == UC_ERR_OK)
        err = uc_ctl_set_cpu_model(uc, t->cpu_model);
    if (err == UC_ERR_OK)
        err = uc_ctl_set_page_size(uc, GUEST_PAGE);
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
    c->real_mapping = FIELD(uc, UC_MEMORY_MAPPING, void *(*)(void *, uint64_t));
    FIELD(uc, UC_MEMORY_MAPPING, void *) = (void *)mapping;
    FIELD((char *)uc + UC_IO_UNASSIGNED, MR_OPS, const void *) = &hole_ops;
    FIELD((char *)uc + UC_IO_UNASSIGNED, MR_PERMS, uint32_t) = UC_PROT_READ | UC_PROT_WRITE;
    c->generation = atomic_load(&c->m->generation) - 1;
    if (t->setup(c) || coroutine_create(&c->co, guest_main, c)) {
        c->uc = NULL;
        FIELD(uc, UC_THREAD_DATA, void *) = NULL;
        FIELD(uc, UC_NESTED_LEVEL, int) = 0;
        uc_close(uc);
        PyErr_NoMemory();
        return -1;
    }
    t->reset(c);
    /* Whoever changes the map holds a lock that this takes, and may want the GIL. */
    Py_BEGIN_ALLOW_THREADS
    machine_add(c->m, c);
    Py_END_ALLOW_THREADS
    return 0;
}

/* Let the coroutine go until it parks. */
static void resume(struct cpu *c)
{
    uint64_t begin = monotonic_ns();

    machine_enter(c->m, c);
    if (c->generation != atomic_load(&c->m->generation) && sync_regions(c)) {
        c->ev = (struct event){EV_ERROR, UC_ERR_NOMEM, 0, 0};
    } else {
        if (atomic_load(&c->pending))
            cpu_drain(c);
        if (atomic_load(&c->kicked) || c->flush_code)
            cpu_force_exit(c);
        coroutine_switch(&c->co);
    }
    atomic_store(&c->in_guest, 0);
    c->guest_ns += monotonic_ns() - begin;
}

/* Python */

static PyObject *cpu_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
    PyObject *machine;

    (void)kw;
    if (!PyArg_ParseTuple(args, "O!", machine_type, &machine))
        return NULL;
    if (((struct machine *)machine)->closed) {
        PyErr_SetString(PyExc_RuntimeError, "the machine is closed");
        return NULL;
    }
    struct cpu *c = (struct cpu *)type->tp_alloc(type, 0);
    if (!c)
        return NULL;
    c->m = (struct machine *)Py_NewRef(machine);
    pthread_mutex_init(&c->qlock, NULL);
    return (PyObject *)c;
}

static void close_engine(struct cpu *c)
{
    c->closed = true;
    if (!c->uc)
        return;
    Py_BEGIN_ALLOW_THREADS
    machine_remove(c->m, c);
    FIELD(c->uc, UC_MEMORY_MAPPING, void *) = (void *)c->real_mapping;
    FIELD(c->uc, UC_NESTED_LEVEL, int) = 0;
    FIELD(c->uc, UC_THREAD_DATA, void *) = NULL;
    uc_close(c->uc);
    Py_END_ALLOW_THREADS
    c->uc = NULL;
    coroutine_destroy(&c->co);
    free(c->regions);
    c->regions = NULL;
    c->nregions = 0;
}

static void cpu_dealloc(struct cpu *c)
{
    PyTypeObject *type = Py_TYPE(c);

    close_engine(c);
    pthread_mutex_destroy(&c->qlock);
    Py_DECREF(c->m);
    type->tp_free(c);
    Py_DECREF(type);
}

static int claim(struct cpu *c)
{
    if (atomic_exchange(&c->busy, 1)) {
        PyErr_SetString(PyExc_RuntimeError, "the cpu is running on another thread");
        return -1;
    }
    if (materialise(c)) {
        atomic_store(&c->busy, 0);
        return -1;
    }
    return 0;
}

static void *ticker_main(void *unused)
{
    (void)unused;
    for (;;) {
        struct timespec t = {0, 20000000};

        pthread_mutex_lock(&ticker_lock);
        while (!atomic_load(&main_cpu))
            pthread_cond_wait(&ticker_wake, &ticker_lock);
        struct cpu *c = atomic_load(&main_cpu);
        atomic_store(&c->ticked, 1);
        if (atomic_load(&c->in_guest))
            cpu_force_exit(c);
        pthread_mutex_unlock(&ticker_lock);
        nanosleep(&t, NULL);
    }
    return NULL;
}

/* On the main thread Python's signal handlers must get their turn while a guest runs. */
static bool watch_signals(struct cpu *c)
{
    if (PyThread_get_thread_ident() != main_thread)
        return false;
    pthread_mutex_lock(&ticker_lock);
    if (!ticker_started)
        ticker_started = !pthread_create(&ticker, NULL, ticker_main, NULL);
    atomic_store(&main_cpu, c);
    pthread_cond_signal(&ticker_wake);
    pthread_mutex_unlock(&ticker_lock);
    return true;
}

static void unwatch_signals(struct cpu *c)
{
    pthread_mutex_lock(&ticker_lock);
    atomic_store(&main_cpu, NULL);
    atomic_store(&c->ticked, 0);
    pthread_mutex_unlock(&ticker_lock);
}

static PyObject *cpu_run(struct cpu *c, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t answer = 0;
    PyObject *out = NULL;
    bool watched;

    if (nargs > 1) {
        PyErr_SetString(PyExc_TypeError, "run(value=0)");
        return NULL;
    }
    if (nargs) {
        answer = PyLong_AsUnsignedLongLongMask(args[0]);
        if (answer == ~0ull && PyErr_Occurred())
            return NULL;
    }
    if (claim(c))
        return NULL;
    c->answer = answer;
    c->n_runs++;
    watched = watch_signals(c);
    for (;;) {
        Py_BEGIN_ALLOW_THREADS
        resume(c);
        Py_END_ALLOW_THREADS
        if (c->ev.kind != EV_PAUSED)
            break;
        if (atomic_exchange(&c->ticked, 0) && PyErr_CheckSignals())
            goto done;
    }
    c->n_exits++;
    if (c->ev.kind == EV_KICK)
        c->n_kicks++;
    out = PyTuple_New(4);
    if (out) {
        PyTuple_SET_ITEM(out, 0, PyLong_FromLong(c->ev.kind));
        PyTuple_SET_ITEM(out, 1, PyLong_FromUnsignedLongLong(c->ev.a));
        PyTuple_SET_ITEM(out, 2, PyLong_FromUnsignedLongLong(c->ev.b));
        PyTuple_SET_ITEM(out, 3, PyLong_FromUnsignedLongLong(c->ev.c));
    }
done:
    if (watched)
        unwatch_signals(c);
    atomic_store(&c->busy, 0);
    return out;
}

static bool in_instruction(struct cpu *c)
{
    return c->parked >= EV_MMIO_READ && c->parked <= EV_SYSREG_WRITE;
}

/* With the cpu claimed. */
static void give_up_instruction(struct cpu *c)
{
    if (!in_instruction(c))
        return;
    c->abandon = true;
    Py_BEGIN_ALLOW_THREADS
    do {
        resume(c);
    } while (c->ev.kind == EV_PAUSED);
    Py_END_ALLOW_THREADS
}

static PyObject *cpu_abandon(struct cpu *c, PyObject *unused)
{
    (void)unused;
    if (claim(c))
        return NULL;
    give_up_instruction(c);
    atomic_store(&c->busy, 0);
    Py_RETURN_NONE;
}

static PyObject *cpu_reset(struct cpu *c, PyObject *unused)
{
    (void)unused;
    if (claim(c))
        return NULL;
    give_up_instruction(c);
    c->m->target->reset(c);
    atomic_store(&c->busy, 0);
    Py_RETURN_NONE;
}

static PyObject *cpu_refresh(struct cpu *c, PyObject *unused)
{
    (void)unused;
    if (materialise(c))
        return NULL;
    c->m->target->refresh(c);
    Py_RETURN_NONE;
}

/* In the middle of a device access the program counter is known only to the translation: look it up. */
static PyObject *cpu_sync(struct cpu *c, PyObject *unused)
{
    (void)unused;
    if (materialise(c))
        return NULL;
    if (!c->synced && (c->parked == EV_MMIO_READ || c->parked == EV_MMIO_WRITE))
        c->m->target->sync(c, c->fill.ra);
    c->synced = true;
    Py_RETURN_NONE;
}

static PyObject *cpu_kick(struct cpu *c, PyObject *unused)
{
    (void)unused;
    atomic_store(&c->kicked, 1);
    if (atomic_load(&c->in_guest))
        cpu_force_exit(c);
    Py_RETURN_NONE;
}

static PyObject *cpu_set_irq(struct cpu *c, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "set_irq(line, level)");
        return NULL;
    }
    long line = PyLong_AsLong(args[0]);
    int level = PyObject_IsTrue(args[1]);
    if (level < 0 || (line == -1 && PyErr_Occurred()))
        return NULL;
    if (line < 0 || line > 1) {
        PyErr_SetString(PyExc_ValueError, "a cpu has lines 0 and 1");
        return NULL;
    }
    unsigned bit = 1u << line;
    unsigned old = level ? atomic_fetch_or(&c->lines, bit) : atomic_fetch_and(&c->lines, ~bit);
    if (level && !(old & bit) && atomic_load(&c->in_guest))
        cpu_force_exit(c);
    Py_RETURN_NONE;
}

static PyObject *cpu_close(struct cpu *c, PyObject *unused)
{
    (void)unused;
    if (atomic_exchange(&c->busy, 1)) {
        PyErr_SetString(PyExc_RuntimeError, "the cpu is running on another thread");
        return NULL;
    }
    close_engine(c);
    atomic_store(&c->busy, 0);
    Py_RETURN_NONE;
}

static PyObject *cpu_reg_read(struct cpu *c, PyObject *args)
{
    int id;
    Py_buffer in;
    char buf[64];

    if (!PyArg_ParseTuple(args, "iy*", &id, &in))
        return NULL;
    Py_ssize_t n = in.len;
    if (n > (Py_ssize_t)sizeof(buf)) {
        PyBuffer_Release(&in);
        PyErr_SetString(PyExc_ValueError, "a register is at most 64 bytes");
        return NULL;
    }
    memcpy(buf, in.buf, (size_t)n);
    PyBuffer_Release(&in);
    if (materialise(c))
        return NULL;
    uc_err err = uc_reg_read(c->uc, id, buf);
    if (err != UC_ERR_OK) {
        PyErr_SetString(PyExc_KeyError, "no such register");
        return NULL;
    }
    return PyBytes_FromStringAndSize(buf, n);
}

static PyObject *cpu_reg_write(struct cpu *c, PyObject *args)
{
    int id;
    Py_buffer in;
    char buf[64] = {0};

    if (!PyArg_ParseTuple(args, "iy*", &id, &in))
        return NULL;
    if (in.len > (Py_ssize_t)sizeof(buf)) {
        PyBuffer_Release(&in);
        PyErr_SetString(PyExc_ValueError, "a register is at most 64 bytes");
        return NULL;
    }
    memcpy(buf, in.buf, (size_t)in.len);
    PyBuffer_Release(&in);
    if (materialise(c))
        return NULL;
    uc_err err = uc_reg_write(c->uc, id, buf);
    if (err != UC_ERR_OK) {
        PyErr_SetString(PyExc_KeyError, "no such register");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *cpu_get_sysreg(struct cpu *c, PyObject *arg)
{
    unsigned long enc = PyLong_AsUnsignedLong(arg);
    uint64_t v = 0;

    if (PyErr_Occurred() || materialise(c))
        return NULL;
    if (!c->m->target->sysreg(c, (uint32_t)enc, &v, false)) {
        PyErr_SetObject(PyExc_KeyError, arg);
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(v);
}

static PyObject *cpu_set_sysreg(struct cpu *c, PyObject *args)
{
    unsigned long enc;
    PyObject *value;
    uint64_t v;

    if (!PyArg_ParseTuple(args, "kO", &enc, &value))
        return NULL;
    v = PyLong_AsUnsignedLongLongMask(value);
    if (PyErr_Occurred() || materialise(c))
        return NULL;
    if (!c->m->target->sysreg(c, (uint32_t)enc, &v, true)) {
        PyErr_Format(PyExc_KeyError, "%lu", enc);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *cpu_state(struct cpu *c, PyObject *args)
{
    Py_ssize_t offset, size;

    if (!PyArg_ParseTuple(args, "nn", &offset, &size))
        return NULL;
    if (materialise(c))
        return NULL;
    return PyMemoryView_FromMemory(c->env + offset, size, PyBUF_WRITE);
}

static PyObject *cpu_stats(struct cpu *c, PyObject *unused)
{
    (void)unused;
    return Py_BuildValue("{sKsKsKsKsKsK}", "runs", c->n_runs, "exits", c->n_exits, "kicks", c->n_kicks, "shootdowns",
                         c->n_shootdowns, "blocks", c->n_blocks, "guest_ns", c->guest_ns);
}

static PyObject *cpu_get_parked(struct cpu *c, void *unused)
{
    (void)unused;
    int kind = c->parked;
    if (kind == EV_NONE || kind >= EV_PAUSED)
        Py_RETURN_NONE;
    return PyLong_FromLong(kind);
}

static PyObject *cpu_get_fault_va(struct cpu *c, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(c->fill.va);
}

static PyObject *cpu_get_running(struct cpu *c, void *unused)
{
    (void)unused;
    return PyBool_FromLong(atomic_load(&c->busy));
}

static PyMethodDef cpu_methods[] = {
    {"run", (PyCFunction)(void *)cpu_run, METH_FASTCALL,
     "run(value=0) -> (kind, a, b, c)\n\nRun the guest until an event; value answers the event that parked it."},
    {"abandon", (PyCFunction)cpu_abandon, METH_NOARGS,
     "abandon()\n\nGive up the instruction parked in a device or system register access: the state is back at its start."},
    {"reset", (PyCFunction)cpu_reset, METH_NOARGS, "reset()\n\nThe architecture's reset."},
    {"refresh", (PyCFunction)cpu_refresh, METH_NOARGS, "refresh()\n\nAfter state was written behind the engine's back."},
    {"sync", (PyCFunction)cpu_sync, METH_NOARGS, "sync()\n\nMake the program counter that of the parked instruction."},
    {"kick", (PyCFunction)cpu_kick, METH_NOARGS, "kick()\n\nMake run() return a KICK soon; from any thread; sticky."},
    {"set_irq", (PyCFunction)(void *)cpu_set_irq, METH_FASTCALL,
     "set_irq(line, level)\n\nDrive an interrupt line; from any thread."},
    {"close", (PyCFunction)cpu_close, METH_NOARGS, "close()\n\nFree the engine."},
    {"reg_read", (PyCFunction)cpu_reg_read, METH_VARARGS, "reg_read(id, initial) -> bytes"},
    {"reg_write", (PyCFunction)cpu_reg_write, METH_VARARGS, "reg_write(id, bytes)"},
    {"get_sysreg", (PyCFunction)cpu_get_sysreg, METH_O,
     "get_sysreg(enc) -> int\n\nWithout side effects; KeyError for one the engine does not hold (a trap, an action)."},
    {"set_sysreg", (PyCFunction)cpu_set_sysreg, METH_VARARGS,
     "set_sysreg(enc, value)\n\nWithout side effects; KeyError for one the engine does not hold or that is constant."},
    {"state", (PyCFunction)cpu_state, METH_VARARGS,
     "state(offset, size) -> memoryview\n\nA window on the target's state; valid until close()."},
    {"stats", (PyCFunction)cpu_stats, METH_NOARGS, "stats() -> dict\n\nWhat the cpu did."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef cpu_getset[] = {
    {"parked", (getter)cpu_get_parked, NULL, "The kind of event the cpu is parked in, or None.", NULL},
    {"fault_va", (getter)cpu_get_fault_va, NULL, "Virtual address of the device access the cpu is parked in.", NULL},
    {"running", (getter)cpu_get_running, NULL, "A thread is in run().", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef cpu_members[] = {
    {"machine", T_OBJECT, offsetof(struct cpu, m), READONLY, "The cpu's machine."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot cpu_slots[] = {
    {Py_tp_new, cpu_new},
    {Py_tp_dealloc, cpu_dealloc},
    {Py_tp_methods, cpu_methods},
    {Py_tp_getset, cpu_getset},
    {Py_tp_members, cpu_members},
    {Py_tp_doc, "Cpu(machine)\n\nOne cpu; its engine is made when first needed."},
    {0, NULL},
};
static PyType_Spec cpu_spec = {"anykvm.engine._engine.Cpu", sizeof(struct cpu), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, cpu_slots};

int cpu_type_init(PyObject *module)
{
    cpu_type = (PyTypeObject *)PyType_FromSpec(&cpu_spec);
    return cpu_type ? PyModule_AddObjectRef(module, "Cpu", (PyObject *)cpu_type) : -1;
}
