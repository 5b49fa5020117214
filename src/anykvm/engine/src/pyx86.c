/* SPDX-License-Identifier: GPL-2.0-only */
/* What only an x86 cpu has, from Python: events to deliver, CPUID, the time-stamp counter, mode changes. */
#include "x86.h"

#include <stddef.h>

void cpu_x86_update_cr0_x86_64(void *env, uint32_t v);
void cpu_x86_update_cr3_x86_64(void *env, uint64_t v);
void cpu_x86_update_cr4_x86_64(void *env, uint32_t v);
uint64_t helper_read_eflags_x86_64(void *env);
void helper_write_eflags_x86_64(void *env, uint64_t value, uint32_t mask);
void cpu_x86_cpuid_x86_64(void *env, uint32_t fn, uint32_t index, uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d);

void update_fp_status_x86_64(void *env);

static PyObject *raise_exception(struct cpu *c, PyObject *args)
{
    int vector, code = -1;

    if (!PyArg_ParseTuple(args, "i|i", &vector, &code))
        return NULL;
    if (vector < 0 || vector > 31) {
        PyErr_SetString(PyExc_ValueError, "an exception's vector is 0 to 31");
        return NULL;
    }
    c->x86.raise = vector;
    c->x86.raise_error = code;
    c->x86.own_ud = vector == VECTOR_UD;
    /* A parked instruction faults; else the exception is delivered before the next instruction. */
    if (cpu_mid_instruction(c))
        c->abandon = true;
    Py_RETURN_NONE;
}

static PyObject *set_debug(struct cpu *c, PyObject *args, PyObject *kw)
{
    static char *names[] = {"step", "int3", "dr", "block_irq", NULL};
    struct x86_debug wanted = {0};
    PyObject *dr = Py_None, *seq;
    int step = 0, int3 = 0, block = 0;

    if (!PyArg_ParseTupleAndKeywords(args, kw, "|$ppOp", names, &step, &int3, &dr, &block))
        return NULL;
    wanted.step = step;
    wanted.int3 = int3;
    wanted.block_irq = block;
    if (dr != Py_None) {
        if (!(seq = PySequence_Fast(dr, "dr is a sequence of 8 debug registers")))
            return NULL;
        wanted.hardware = PySequence_Fast_GET_SIZE(seq) == 8;
        for (Py_ssize_t i = 0; wanted.hardware && i < 8; i++)
            wanted.dr[i] = PyLong_AsUnsignedLongLongMask(PySequence_Fast_GET_ITEM(seq, i));
        Py_DECREF(seq);
        if (!wanted.hardware && !PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "there are 8 debug registers");
        if (PyErr_Occurred())
            return NULL;
    }
    if (cpu_claim(c))
        return NULL;
    x86_set_debug(c, &wanted);
    atomic_store(&c->busy, 0);
    Py_RETURN_NONE;
}

static PyObject *set_dr(struct cpu *c, PyObject *args)
{
    int n;
    unsigned long long value;

    if (!PyArg_ParseTuple(args, "iK", &n, &value))
        return NULL;
    if (n < 0 || n > 7) {
        PyErr_SetString(PyExc_IndexError, "a debug register is 0 to 7");
        return NULL;
    }
    if (cpu_materialise(c))
        return NULL;
    x86_set_dr(c, n, value);
    Py_RETURN_NONE;
}

static PyObject *inject(struct cpu *c, PyObject *arg)
{
    long vector = PyLong_AsLong(arg);

    if (PyErr_Occurred())
        return NULL;
    if (vector < -1 || vector > 255) {
        PyErr_SetString(PyExc_ValueError, "a vector is 0 to 255, or -1 for none");
        return NULL;
    }
    c->x86.inject = (int)vector;
    Py_RETURN_NONE;
}

static PyObject *nmi(struct cpu *c, PyObject *unused)
{
    (void)unused;
    atomic_store(&c->x86.nmi, 1);
    if (atomic_load(&c->in_guest))
        cpu_force_exit(c);
    Py_RETURN_NONE;
}

static PyObject *set_cpuid(struct cpu *c, PyObject *arg)
{
    PyObject *seq = PySequence_Fast(arg, "a sequence of (function, index, flags, eax, ebx, ecx, edx)");
    uint32_t(*table)[7];
    Py_ssize_t n;

    if (!seq)
        return NULL;
    n = PySequence_Fast_GET_SIZE(seq);
    table = calloc((size_t)n + 1, sizeof(*table));
    for (Py_ssize_t i = 0; table && i < n; i++) {
        uint32_t *e = table[i];

        if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(seq, i), "IIIIIII", &e[0], &e[1], &e[2], &e[3], &e[4], &e[5],
                              &e[6])) {
            free(table);
            Py_DECREF(seq);
            return NULL;
        }
    }
    Py_DECREF(seq);
    if (!table)
        return PyErr_NoMemory();
    free(c->x86.cpuid);
    c->x86.cpuid = table;
    c->x86.ncpuid = (int)n;
    Py_RETURN_NONE;
}

static PyObject *supported_cpuid(struct cpu *c, PyObject *args)
{
    unsigned fn, index = 0;
    uint32_t r[4] = {0};

    if (!PyArg_ParseTuple(args, "I|I", &fn, &index) || cpu_materialise(c))
        return NULL;
    cpu_x86_cpuid_x86_64(c->env, fn, index, &r[0], &r[1], &r[2], &r[3]);
    return Py_BuildValue("(IIII)", r[0], r[1], r[2], r[3]);
}

static PyObject *set_cr(struct cpu *c, PyObject *args)
{
    int n;
    unsigned long long v;

    if (!PyArg_ParseTuple(args, "iK", &n, &v) || cpu_materialise(c))
        return NULL;
    switch (n) {
    case 0:
        cpu_x86_update_cr0_x86_64(c->env, (uint32_t)v);
        break;
    case 3:
        cpu_x86_update_cr3_x86_64(c->env, v);
        break;
    case 4:
        cpu_x86_update_cr4_x86_64(c->env, (uint32_t)v);
        break;
    case 2:
        FIELD(c->env, X86_CR + 16, uint64_t) = v;
        break;
    case 8:
        FIELD(c->env, X86_V_TPR, uint8_t) = v & 15;
        break;
    default:
        PyErr_SetString(PyExc_ValueError, "a control register is 0, 2, 3, 4 or 8");
        return NULL;
    }
    Py_RETURN_NONE;
}

/* The control words carry rounding modes that the engine caches. */
static PyObject *set_fp_control(struct cpu *c, PyObject *args)
{
    unsigned control, mxcsr;

    if (!PyArg_ParseTuple(args, "II", &control, &mxcsr) || cpu_materialise(c))
        return NULL;
    FIELD(c->env, X86_FPUC, uint16_t) = (uint16_t)control;
    FIELD(c->env, X86_MXCSR, uint32_t) = mxcsr;
    update_fp_status_x86_64(c->env);
    x86_mxcsr_written(c->env);
    Py_RETURN_NONE;
}

static PyObject *get_rflags(struct cpu *c, void *unused)
{
    (void)unused;
    if (cpu_materialise(c))
        return NULL;
    return PyLong_FromUnsignedLongLong(helper_read_eflags_x86_64(c->env));
}

static int set_rflags(struct cpu *c, PyObject *value, void *unused)
{
    uint64_t v = value ? PyLong_AsUnsignedLongLongMask(value) : 0;

    (void)unused;
    if (!value || PyErr_Occurred() || cpu_materialise(c))
        return -1;
    helper_write_eflags_x86_64(c->env, v, ~0u);
    x86_update_hflags_x86_64(c->env);
    return 0;
}

static PyObject *get_tsc(struct cpu *c, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(x86_tsc(c));
}

static int set_tsc(struct cpu *c, PyObject *value, void *unused)
{
    uint64_t v = value ? PyLong_AsUnsignedLongLongMask(value) : 0;

    (void)unused;
    if (!value || PyErr_Occurred())
        return -1;
    c->x86.tsc_offset += (int64_t)(v - x86_tsc(c));
    return 0;
}

static PyObject *get_tsc_khz(struct cpu *c, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(c->x86.tsc_khz ? c->x86.tsc_khz : host_tick_khz());
}

static int set_tsc_khz(struct cpu *c, PyObject *value, void *unused)
{
    uint64_t v = value ? PyLong_AsUnsignedLongLong(value) : 0;

    (void)unused;
    if (!value || PyErr_Occurred())
        return -1;
    if (!v || v > 1000000000) {
        PyErr_SetString(PyExc_ValueError, "tsc_khz is 1 to 1,000,000,000");
        return -1;
    }
    c->x86.tsc_khz = v;
    return 0;
}

static PyObject *get_tsc_offset(struct cpu *c, void *unused)
{
    (void)unused;
    return PyLong_FromLongLong(c->x86.tsc_offset);
}

static int set_tsc_offset(struct cpu *c, PyObject *value, void *unused)
{
    uint64_t v = value ? PyLong_AsUnsignedLongLongMask(value) : 0;

    (void)unused;
    if (!value || PyErr_Occurred())
        return -1;
    c->x86.tsc_offset = (int64_t)v;
    return 0;
}

/* Flags by their offset in struct cpu. */
static PyObject *get_flag(struct cpu *c, void *offset)
{
    return PyBool_FromLong(*(bool *)((char *)c + (uintptr_t)offset));
}

static int set_flag(struct cpu *c, PyObject *value, void *offset)
{
    int on = value ? PyObject_IsTrue(value) : -1;

    if (on < 0)
        return -1;
    *(bool *)((char *)c + (uintptr_t)offset) = on;
    return 0;
}

#define FLAG(name) (void *)offsetof(struct cpu, x86.name)

static PyObject *get_nmi(struct cpu *c, void *unused)
{
    (void)unused;
    return PyBool_FromLong(atomic_load(&c->x86.nmi));
}

/* One that waits can be taken back. */
static int set_nmi(struct cpu *c, PyObject *value, void *unused)
{
    int on = value ? PyObject_IsTrue(value) : -1;

    (void)unused;
    if (on < 0)
        return -1;
    atomic_store(&c->x86.nmi, on);
    return 0;
}

static PyObject *get_raised(struct cpu *c, void *unused)
{
    (void)unused;
    return PyLong_FromLong(c->x86.raise);
}

static PyObject *get_pending(struct cpu *c, void *unused)
{
    (void)unused;
    return PyLong_FromLong(c->x86.inject);
}

static PyMethodDef methods[] = {
    {"raise_exception", (PyCFunction)raise_exception, METH_VARARGS,
     "raise_exception(vector, error_code=-1)\n\nThe parked instruction faults, or the exception comes before the next one."},
    {"set_debug", (PyCFunction)(void *)set_debug, METH_VARARGS | METH_KEYWORDS,
     "set_debug(*, step=False, int3=False, dr=None, block_irq=False)\n\nWhat comes out as BREAK: each instruction, INT3, "
     "breakpoints of 8 debug registers that hide the guest's own; without interrupts if block_irq."},
    {"set_dr", (PyCFunction)set_dr, METH_VARARGS, "set_dr(n, value)\n\nDebug register n of the guest, 0 to 7."},
    {"inject", (PyCFunction)inject, METH_O, "inject(vector)\n\nDeliver an external interrupt when the guest is open to it."},
    {"nmi", (PyCFunction)nmi, METH_NOARGS, "nmi()\n\nA non-maskable interrupt; from any thread."},
    {"set_cpuid", (PyCFunction)set_cpuid, METH_O, "set_cpuid(entries)\n\nWhat CPUID says."},
    {"supported_cpuid", (PyCFunction)supported_cpuid, METH_VARARGS,
     "supported_cpuid(function, index=0) -> (eax, ebx, ecx, edx)\n\nWhat the engine's cpu has."},
    {"set_fp_control", (PyCFunction)set_fp_control, METH_VARARGS, "set_fp_control(fpu_control, mxcsr)"},
    {"set_cr", (PyCFunction)set_cr, METH_VARARGS, "set_cr(n, value)\n\nA control register, with what hangs on it."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getset[] = {
    {"rflags", (getter)get_rflags, (setter)set_rflags, "RFLAGS.", NULL},
    {"tsc", (getter)get_tsc, (setter)set_tsc, "The time-stamp counter now.", NULL},
    {"tsc_khz", (getter)get_tsc_khz, (setter)set_tsc_khz, "Its rate in kHz.", NULL},
    {"tsc_offset", (getter)get_tsc_offset, (setter)set_tsc_offset, "What it is ahead of the host's scaled clock.", NULL},
    {"want_window", (getter)get_flag, (setter)set_flag, "Come out when the guest can take an interrupt.",
     FLAG(want_window)},
    {"park_msrs", (getter)get_flag, (setter)set_flag, "Let RDMSR and WRMSR of NATIVE_MSRS come as events too.",
     FLAG(park_msrs)},
    {"idle_hints", (getter)get_flag, (setter)set_flag, "MONITOR and MWAIT do nothing, instead of being undefined.",
     FLAG(idle_hints)},
    {"smm", (getter)get_flag, (setter)set_flag, "RSM comes as an event, instead of being undefined.", FLAG(smm)},
    {"nmi_pending", (getter)get_nmi, (setter)set_nmi, "An NMI waits; set while the cpu does not run.", NULL},
    {"injected", (getter)get_pending, NULL, "The vector that waits to be delivered, or -1.", NULL},
    {"raised", (getter)get_raised, NULL, "The exception that waits to be delivered, or -1.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {Py_tp_doc, "X86Base(machine)\n\nWhat only an x86 cpu has."},
    {0, NULL},
};
static PyType_Spec spec = {"anykvm.engine._engine.X86Base", sizeof(struct cpu), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};

int x86_type_init(PyObject *module)
{
    PyObject *type = PyType_FromSpecWithBases(&spec, (PyObject *)cpu_type);
    int r = type ? PyModule_AddObjectRef(module, "X86Base", type) : -1;

    Py_XDECREF(type);
    return r;
}
