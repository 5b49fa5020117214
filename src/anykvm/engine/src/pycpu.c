/* SPDX-License-Identifier: GPL-2.0-only */
/* The Cpu type: run a cpu, wake it, and see its registers from Python. */
#include "engine.h"

#include <structmember.h>

PyTypeObject *cpu_type;

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

static void cpu_dealloc(struct cpu *c)
{
    PyTypeObject *type = Py_TYPE(c);

    cpu_close_engine(c);
    free(c->x86.cpuid);
    free(c->ring.spill);
    pthread_mutex_destroy(&c->qlock);
    Py_DECREF(c->m);
    type->tp_free(c);
    Py_DECREF(type);
}

int cpu_claim(struct cpu *c)
{
    if (atomic_exchange(&c->busy, 1)) {
        PyErr_SetString(PyExc_RuntimeError, "the cpu is running on another thread");
        return -1;
    }
    if (cpu_materialise(c)) {
        atomic_store(&c->busy, 0);
        return -1;
    }
    return 0;
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
    if (cpu_claim(c))
        return NULL;
    c->answer = answer;
    c->n_runs++;
    watched = signals_watch(c);
    for (;;) {
        Py_BEGIN_ALLOW_THREADS
        cpu_resume(c);
        Py_END_ALLOW_THREADS
        if (c->ev.kind != EV_PAUSED)
            break;
        if (atomic_exchange(&c->ticked, 0) && PyErr_CheckSignals())
            goto done;
        if (watched && signals_arrived(c)) {
            c->ev = (struct event){EV_SIGNAL, 0, 0, 0};
            break;
        }
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
        signals_unwatch(c);
    atomic_store(&c->busy, 0);
    return out;
}

/* With the cpu claimed. */
static void give_up_instruction(struct cpu *c)
{
    if (!cpu_mid_instruction(c))
        return;
    c->abandon = true;
    Py_BEGIN_ALLOW_THREADS
    do {
        cpu_resume(c);
    } while (c->ev.kind == EV_PAUSED);
    Py_END_ALLOW_THREADS
}

static PyObject *cpu_abandon(struct cpu *c, PyObject *unused)
{
    (void)unused;
    if (cpu_claim(c))
        return NULL;
    give_up_instruction(c);
    atomic_store(&c->busy, 0);
    Py_RETURN_NONE;
}

static PyObject *cpu_finish_(struct cpu *c, PyObject *value)
{
    uint64_t answer = PyLong_AsUnsignedLongLongMask(value);

    if ((answer == ~0ull && PyErr_Occurred()) || cpu_claim(c))
        return NULL;
    if (c->parked != EV_MMIO_READ && c->parked != EV_MMIO_WRITE && c->parked != EV_PIO_READ &&
        c->parked != EV_PIO_WRITE) {
        atomic_store(&c->busy, 0);
        PyErr_SetString(PyExc_RuntimeError, "the cpu is not parked in a device access");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    cpu_finish(c, answer);
    Py_END_ALLOW_THREADS
    atomic_store(&c->busy, 0);
    Py_RETURN_NONE;
}

static PyObject *cpu_reset(struct cpu *c, PyObject *unused)
{
    (void)unused;
    if (cpu_claim(c))
        return NULL;
    give_up_instruction(c);
    c->m->target->reset(c);
    atomic_store(&c->busy, 0);
    Py_RETURN_NONE;
}

static PyObject *cpu_refresh(struct cpu *c, PyObject *unused)
{
    (void)unused;
    if (cpu_materialise(c))
        return NULL;
    c->m->target->refresh(c);
    Py_RETURN_NONE;
}

/* In the middle of a device access the program counter is known only to the translation: look it up. */
static PyObject *cpu_sync(struct cpu *c, PyObject *unused)
{
    (void)unused;
    if (cpu_materialise(c))
        return NULL;
    if (!c->synced && (c->parked == EV_MMIO_READ || c->parked == EV_MMIO_WRITE || c->parked == EV_PIO_READ ||
                       c->parked == EV_PIO_WRITE))
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
    cpu_close_engine(c);
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
    if (cpu_materialise(c))
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
    if (cpu_materialise(c))
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

    if (PyErr_Occurred() || cpu_materialise(c))
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
    if (PyErr_Occurred() || cpu_materialise(c))
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
    if (cpu_materialise(c))
        return NULL;
    return PyMemoryView_FromMemory(c->env + offset, size, PyBUF_WRITE);
}

static PyObject *cpu_stats(struct cpu *c, PyObject *unused)
{
    (void)unused;
    return Py_BuildValue("{sKsKsKsKsK}", "runs", c->n_runs, "exits", c->n_exits, "kicks", c->n_kicks, "shootdowns",
                         c->n_shootdowns, "blocks", c->n_blocks);
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

static PyObject *cpu_get_space(struct cpu *c, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(c->space);
}

/* The map is followed when the cpu enters the guest; until then it must not look at memory. */
static int cpu_set_space(struct cpu *c, PyObject *value, void *unused)
{
    unsigned long space = value ? PyLong_AsUnsignedLong(value) : 0;

    (void)unused;
    if (!value || PyErr_Occurred())
        return -1;
    if (cpu_mid_instruction(c)) {
        PyErr_SetString(PyExc_RuntimeError, "an instruction that is half done is in the space it began in");
        return -1;
    }
    if (space != c->space) {
        c->space = (unsigned)space;
        c->behind = true;
    }
    return 0;
}

static PyObject *cpu_get_running(struct cpu *c, void *unused)
{
    (void)unused;
    return PyBool_FromLong(atomic_load(&c->busy));
}

static PyObject *cpu_set_write_ring(struct cpu *c, PyObject *args)
{
    unsigned long long entries, counts;
    unsigned int size, soft;

    if (!PyArg_ParseTuple(args, "KKII", &entries, &counts, &size, &soft))
        return NULL;
    if (!entries || !counts || !size || (size & (size - 1)) || !soft || soft > size || (entries | counts) & 3) {
        PyErr_SetString(PyExc_ValueError, "a ring has a power of two of entries, and a soft limit that is not above it");
        return NULL;
    }
    if (!c->ring.spill && !(c->ring.spill = malloc(RING_SPILL * sizeof(*c->ring.spill))))
        return PyErr_NoMemory();
    c->ring.head = (_Atomic uint32_t *)(uintptr_t)counts;
    c->ring.tail = c->ring.head + 1;
    c->ring.mask = size - 1;
    c->ring.soft = soft;
    c->ring.entries = (struct ring_entry *)(uintptr_t)entries;
    Py_RETURN_NONE;
}

static PyMethodDef cpu_methods[] = {
    {"run", (PyCFunction)(void *)cpu_run, METH_FASTCALL,
     "run(value=0) -> (kind, a, b, c)\n\nRun the guest until an event; value answers the event that parked it."},
    {"abandon", (PyCFunction)cpu_abandon, METH_NOARGS,
     "abandon()\n\nGive up the instruction parked in a device or system register access: the state is back at its start."},
    {"finish", (PyCFunction)cpu_finish_, METH_O,
     "finish(value)\n\nComplete the instruction parked in a device access with this answer, and nothing after it."},
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
    {"set_write_ring", (PyCFunction)cpu_set_write_ring, METH_VARARGS,
     "set_write_ring(entries, counts, size, soft)\n\nLog first writes to pages of logged regions in a ring of size entries\n"
     "(flags, tag, page: 4, 4 and 8 bytes) at an address; counts are two 32-bit words, written and taken. With soft\n"
     "entries or more in it, run() returns a KICK. While the cpu does not run."},
    {"stats", (PyCFunction)cpu_stats, METH_NOARGS, "stats() -> dict\n\nWhat the cpu did."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef cpu_getset[] = {
    {"parked", (getter)cpu_get_parked, NULL, "The kind of event the cpu is parked in, or None.", NULL},
    {"fault_va", (getter)cpu_get_fault_va, NULL, "Virtual address of the device access the cpu is parked in.", NULL},
    {"space", (getter)cpu_get_space, (setter)cpu_set_space, "Which of the machine's maps the cpu sees.", NULL},
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
