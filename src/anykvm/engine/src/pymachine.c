/* SPDX-License-Identifier: GPL-2.0-only */
/* The Machine type: the memory map, from Python. */
#include "engine.h"

#include <structmember.h>

PyTypeObject *machine_type;


static int usable(struct machine *m)
{
    if (m->closed) {
        PyErr_SetString(PyExc_RuntimeError, "the machine is closed");
        return 0;
    }
    return 1;
}

static PyObject *machine_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
    static char *names[] = {"target", "traps", "constants", NULL};
    const char *target;
    const struct target *const *found;
    pthread_mutexattr_t recursive;
    PyObject *traps = NULL, *constants = NULL, *seq = NULL, *key, *value;
    Py_ssize_t pos = 0;

    if (!PyArg_ParseTupleAndKeywords(args, kw, "s|OO!", names, &target, &traps, &PyDict_Type, &constants))
        return NULL;
    for (found = targets; *found && strcmp((*found)->name, target); found++)
        ;
    if (!*found) {
        PyErr_Format(PyExc_ValueError, "the engine has no target '%s'; it has: arm64, x86", target);
        return NULL;
    }
    struct machine *m = (struct machine *)type->tp_alloc(type, 0);
    if (!m)
        return NULL;
    m->target = *found;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&m->pauser, &recursive);
    pthread_mutexattr_destroy(&recursive);
    pthread_mutex_init(&m->stop_lock, NULL);
    pthread_mutex_init(&m->copies, NULL);
    pthread_rwlock_init(&m->lock, NULL);
    pthread_cond_init(&m->resumed, NULL);
    if (traps) {
        seq = PySequence_Fast(traps, "traps is a sequence of encodings");
        if (!seq)
            goto fail;
        m->traps = calloc((size_t)PySequence_Fast_GET_SIZE(seq) + 1, sizeof(*m->traps));
        for (; m->ntraps < PySequence_Fast_GET_SIZE(seq); m->ntraps++) {
            m->traps[m->ntraps].machine = m;
            m->traps[m->ntraps].enc =
                (uint32_t)PyLong_AsUnsignedLong(PySequence_Fast_GET_ITEM(seq, m->ntraps));
            if (PyErr_Occurred())
                goto fail;
        }
        Py_CLEAR(seq);
    }
    if (constants) {
        m->constants = calloc((size_t)PyDict_Size(constants) + 1, sizeof(*m->constants));
        while (PyDict_Next(constants, &pos, &key, &value)) {
            struct constant *k = &m->constants[m->nconstants++];
            k->enc = (uint32_t)PyLong_AsUnsignedLong(key);
            k->value = PyLong_AsUnsignedLongLong(value);
            if (PyErr_Occurred())
                goto fail;
        }
    }
    return (PyObject *)m;
fail:
    Py_XDECREF(seq);
    Py_DECREF(m);
    return NULL;
}

static void free_code(struct region *r)
{
    for (uint64_t page = 0; r->copy && page < r->size / GUEST_PAGE; page++)
        free(r->copy[page]);
    free(r->copy);
    free(r->copied);
    free(r->code);
}

static void machine_dealloc(struct machine *m)
{
    PyTypeObject *type = Py_TYPE(m);

    free(m->traps);
    free(m->constants);
    for (int i = 0; i < m->nregions; i++)
        free_code(&m->regions[i]);
    while (m->ndead)
        free_code(&m->dead[--m->ndead].region);
    free(m->dead);
    free(m->regions);
    free(m->spans);
    free(m->cpus);
    while (m->nretired)
        free(m->retired[--m->nretired]);
    pthread_mutex_destroy(&m->pauser);
    pthread_mutex_destroy(&m->stop_lock);
    pthread_mutex_destroy(&m->copies);
    pthread_rwlock_destroy(&m->lock);
    pthread_cond_destroy(&m->resumed);
    type->tp_free(m);
    Py_DECREF(type);
}

/* Give back what no cpu has in its copy of the map any more; with the machine stopped. */
static void bury(struct machine *m)
{
    uint64_t followed = m->generation;
    int n = 0;

    if (!m->ndead)
        return;
    pthread_rwlock_rdlock(&m->lock);
    for (int i = 0; i < m->ncpus; i++)
        if (m->cpus[i]->nregions && m->cpus[i]->generation < followed)
            followed = m->cpus[i]->generation;
    pthread_rwlock_unlock(&m->lock);
    /* The oldest are first. */
    while (n < m->ndead && m->dead[n].generation <= followed)
        free_code(&m->dead[n++].region);
    if (n)
        memmove(m->dead, m->dead + n, (size_t)(m->ndead -= n) * sizeof(*m->dead));
}

static PyObject *machine_map(struct machine *m, PyObject *args, PyObject *kw)
{
    static char *names[] = {"gpa", "size", "hva", "readonly", "dirty", "tag", "space", NULL};
    unsigned long long gpa, size, hva, dirty = 0;
    unsigned int tag = 0, space = 0;
    int readonly = 0, i, overlap = 0, full = 0;

    if (!PyArg_ParseTupleAndKeywords(args, kw, "KKK|pKII", names, &gpa, &size, &hva, &readonly, &dirty, &tag,
                                     &space) ||
        !usable(m))
        return NULL;
    if (!size || ((gpa | size | hva) & (GUEST_PAGE - 1)) || gpa + size < gpa) {
        PyErr_SetString(PyExc_ValueError, "gpa, size and hva are multiples of 4096 bytes");
        return NULL;
    }
    if (!regions_host_ok(hva, size)) {
        PyErr_SetString(PyExc_ValueError, "hva is no address of user space");
        return NULL;
    }
    struct region r = {.gpa = gpa, .size = size, .hva = (uint8_t *)hva, .dirty = (uint64_t *)dirty, .readonly = readonly,
                       .tag = tag, .space = space};

    if (m->target->tracks_code) {
        r.code = calloc(size / GUEST_PAGE, sizeof(*r.code));
        r.copy = calloc(size / GUEST_PAGE, sizeof(*r.copy));
        r.copied = calloc(size / GUEST_PAGE, sizeof(*r.copied));
        if (!r.code || !r.copy || !r.copied) {
            free(r.code);
            free(r.copy);
            free(r.copied);
            return PyErr_NoMemory();
        }
    }
    Py_BEGIN_ALLOW_THREADS
    machine_pause(m);
    bury(m);
    i = regions_place(m->regions, m->nregions, space, gpa);
    overlap = (i > 0 && m->regions[i - 1].space == space && m->regions[i - 1].gpa + m->regions[i - 1].size > gpa) ||
              (i < m->nregions && m->regions[i].space == space && m->regions[i].gpa < gpa + size);
    full = !overlap && !regions_span(m, &r);
    if (!overlap && !full) {
        r.id = ++m->next_id;
        if (m->nregions == m->capregions) {
            m->capregions = m->capregions ? m->capregions * 2 : 8;
            m->regions = realloc(m->regions, (size_t)m->capregions * sizeof(r));
        }
        memmove(&m->regions[i + 1], &m->regions[i], (size_t)(m->nregions - i) * sizeof(r));
        m->regions[i] = r;
        m->nregions++;
        m->generation++;
    }
    machine_resume(m);
    Py_END_ALLOW_THREADS
    if (full) {
        free_code(&r);
        return PyErr_NoMemory();
    }
    if (overlap) {
        free_code(&r);
        PyErr_SetString(PyExc_ValueError, "the region overlaps another");
        return NULL;
    }
    Py_RETURN_NONE;
}

static struct region *region_at(struct machine *m, unsigned space, uint64_t gpa)
{
    int i = regions_place(m->regions, m->nregions, space, gpa);

    return i < m->nregions && m->regions[i].space == space && m->regions[i].gpa == gpa ? &m->regions[i] : NULL;
}

static PyObject *machine_unmap(struct machine *m, PyObject *args)
{
    unsigned long long gpa;
    unsigned space = 0;
    struct region *r;

    if (!PyArg_ParseTuple(args, "K|I", &gpa, &space) || !usable(m))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    machine_pause(m);
    r = region_at(m, space, gpa);
    if (r) {
        /* Cpus still look at it until they follow the change. */
        bury(m);
        if (m->ndead == m->capdead) {
            m->capdead = m->capdead ? m->capdead * 2 : 8;
            m->dead = realloc(m->dead, (size_t)m->capdead * sizeof(*m->dead));
        }
        m->dead[m->ndead++] = (struct dead){*r, m->generation + 1};
        regions_unspan(m, r);
        m->nregions--;
        memmove(r, r + 1, (size_t)(m->nregions - (r - m->regions)) * sizeof(*r));
        m->generation++;
    }
    machine_resume(m);
    Py_END_ALLOW_THREADS
    if (!r) {
        PyErr_SetString(PyExc_ValueError, "no region is mapped there");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *machine_reprotect(struct machine *m, PyObject *args)
{
    unsigned long long gpa, first, pages;

    if (!PyArg_ParseTuple(args, "KKK", &gpa, &first, &pages) || !usable(m))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    machine_pause(m);
    machine_reprotect_all(m);
    machine_resume(m);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *machine_harvest_dirty(struct machine *m, PyObject *args)
{
    unsigned long long gpa;
    unsigned space = 0;
    struct region *r;
    PyObject *out = NULL;

    if (!PyArg_ParseTuple(args, "K|I", &gpa, &space) || !usable(m))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    machine_pause(m);
    Py_END_ALLOW_THREADS
    r = region_at(m, space, gpa);
    if (r && r->dirty) {
        size_t bytes = (r->size / GUEST_PAGE + 63) / 64 * 8;
        out = PyBytes_FromStringAndSize((char *)r->dirty, (Py_ssize_t)bytes);
        if (out) {
            memset(r->dirty, 0, bytes);
            machine_reprotect_all(m);
        }
    } else {
        PyErr_SetString(PyExc_ValueError, "no region with a dirty log is mapped there");
    }
    machine_resume(m);
    return out;
}

static PyObject *machine_invalidate(struct machine *m, PyObject *args)
{
    unsigned long long gpa, size;

    if (!PyArg_ParseTuple(args, "KK", &gpa, &size) || !usable(m))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&m->pauser);
    for (int i = 0; i < m->nregions; i++) {
        struct region *r = &m->regions[i];
        uint64_t from = gpa > r->gpa ? gpa : r->gpa;
        uint64_t to = gpa + size < r->gpa + r->size ? gpa + size : r->gpa + r->size;

        if (from < to) {
            struct op op = {OP_INVALIDATE, (uint64_t)(r->hva + (from - r->gpa)), to - from};
            machine_post(m, NULL, &op);
            machine_sync(m, NULL);
        }
    }
    pthread_mutex_unlock(&m->pauser);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *machine_distrust(struct machine *m, PyObject *unused)
{
    (void)unused;
    atomic_fetch_add(&m->writes, 1);
    Py_RETURN_NONE;
}

static PyObject *machine_stop(struct machine *m, PyObject *unused)
{
    (void)unused;
    if (!usable(m))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    machine_pause(m);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *machine_go(struct machine *m, PyObject *unused)
{
    (void)unused;
    if (m->pauses)
        machine_resume(m);
    Py_RETURN_NONE;
}

static PyObject *machine_close(struct machine *m, PyObject *unused)
{
    (void)unused;
    if (m->ncpus) {
        PyErr_SetString(PyExc_RuntimeError, "close the machine's cpus first");
        return NULL;
    }
    m->closed = true;
    Py_RETURN_NONE;
}

static PyMethodDef machine_methods[] = {
    {"map", (PyCFunction)(void *)machine_map, METH_VARARGS | METH_KEYWORDS,
     "map(gpa, size, hva, readonly=False, dirty=0, tag=0, space=0)\n\nBack guest-physical memory (bytes, multiples of 4096) "
     "by host memory, in the view of the cpus whose space it is."},
    {"unmap", (PyCFunction)machine_unmap, METH_VARARGS, "unmap(gpa, space=0)\n\nTake away the region that begins at gpa."},
    {"reprotect", (PyCFunction)machine_reprotect, METH_VARARGS,
     "reprotect(gpa, first_page, pages)\n\nMake the next guest write to these pages set their dirty bit again."},
    {"harvest_dirty", (PyCFunction)machine_harvest_dirty, METH_VARARGS,
     "harvest_dirty(gpa, space=0) -> bytes\n\nTake and clear a region's dirty bitmap; a later guest write is in the next one."},
    {"invalidate", (PyCFunction)machine_invalidate, METH_VARARGS,
     "invalidate(gpa, size)\n\nForget code translated from these bytes: the host wrote there."},
    {"distrust", (PyCFunction)machine_distrust, METH_NOARGS,
     "distrust()\n\nThe host may have written anywhere: each cpu compares the code it goes on with, before it does."},
    {"stop", (PyCFunction)machine_stop, METH_NOARGS,
     "stop()\n\nNo cpu is in the guest from here to go(), which the same thread calls; they nest."},
    {"go", (PyCFunction)machine_go, METH_NOARGS, "go()\n\nLet the cpus enter the guest again."},
    {"close", (PyCFunction)machine_close, METH_NOARGS, "close()\n\nAfter its cpus are closed."},
    {NULL, NULL, 0, NULL},
};

static PyObject *machine_target(struct machine *m, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(m->target->name);
}

static PyGetSetDef machine_getset[] = {
    {"target", (getter)machine_target, NULL, "The name of the target.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef machine_members[] = {
    {"ncpus", T_INT, offsetof(struct machine, ncpus), READONLY, "How many cpus have an engine."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot machine_slots[] = {
    {Py_tp_new, machine_new},
    {Py_tp_dealloc, machine_dealloc},
    {Py_tp_methods, machine_methods},
    {Py_tp_members, machine_members},
    {Py_tp_getset, machine_getset},
    {Py_tp_doc, "Machine(target, traps=(), constants={})\n\nGuest-physical memory and the cpus that share it."},
    {0, NULL},
};
static PyType_Spec machine_spec = {"anykvm.engine._engine.Machine", sizeof(struct machine), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, machine_slots};

int machine_type_init(PyObject *module)
{
    machine_type = (PyTypeObject *)PyType_FromSpec(&machine_spec);
    return machine_type ? PyModule_AddObjectRef(module, "Machine", (PyObject *)machine_type) : -1;
}
