/* SPDX-License-Identifier: GPL-2.0-only */
/* The extension module: refuses to load on any Unicorn but the one its layout table describes. */
#include "engine.h"

#include <time.h>

uint64_t monotonic_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

unsigned long main_thread;

/* The thread whose signal handlers Python runs; the same number after a fork. */
static int find_main_thread(void)
{
    PyObject *threading = PyImport_ImportModule("threading");
    PyObject *thread = threading ? PyObject_CallMethod(threading, "main_thread", NULL) : NULL;
    PyObject *ident = thread ? PyObject_GetAttrString(thread, "ident") : NULL;

    if (ident)
        main_thread = PyLong_AsUnsignedLong(ident);
    Py_XDECREF(ident);
    Py_XDECREF(thread);
    Py_XDECREF(threading);
    return PyErr_Occurred() ? -1 : 0;
}

const struct target *const targets[] = {&target_arm64, &target_x86, NULL};

static const char *verify(const struct target *t)
{
    uc_engine *uc;
    const char *wrong;

    if (uc_version(NULL, NULL) >> 8 != (UNICORN_MAJOR << 16 | UNICORN_MINOR << 8 | UNICORN_PATCH))
        return "version";
    if (uc_open(t->uc_arch, t->uc_mode, &uc) != UC_ERR_OK)
        return "uc_open";
    uc_ctl_set_cpu_model(uc, t->cpu_model);
    if (t->uc_arch == UC_ARCH_ARM64)
        uc_ctl_set_page_size(uc, GUEST_PAGE);
    uc_ctl_set_tcg_buffer_size(uc, 1024 * 1024);
    wrong = t->verify(uc);
    uc_close(uc);
    return wrong;
}

static PyObject *get_host_ticks(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyLong_FromUnsignedLongLong(host_ticks());
}

static PyObject *get_host_khz(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyLong_FromUnsignedLongLong(host_tick_khz());
}

static PyObject *get_host_has_tsc(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyBool_FromLong(host_has_tsc());
}

static PyMethodDef functions[] = {
    {"watch", signals_set_watch, METH_O,
     "watch(address)\n\nLet the struct watch at this address say when a signal came; 0: Python's own handlers."},
    {"host_ticks", get_host_ticks, METH_NOARGS, "The counter that guests' time-stamp counters are made of, now."},
    {"host_tick_khz", get_host_khz, METH_NOARGS, "Its rate in kHz."},
    {"host_has_tsc", get_host_has_tsc, METH_NOARGS, "Whether it is the host's own time-stamp counter."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_engine", "Runs guest instructions; knows nothing of KVM.", -1, functions, NULL, NULL, NULL,
    NULL,
};

PyMODINIT_FUNC PyInit__engine(void)
{
    const char *wrong = NULL;
    PyObject *module;

    for (int i = 0; targets[i] && !wrong; i++)
        wrong = verify(targets[i]);
    if (wrong) {
        PyErr_Format(PyExc_ImportError,
                     "this engine was linked with a Unicorn whose layout differs (%s): rebuild anykvm with unicorn==%d.%d.%d",
                     wrong, UNICORN_MAJOR, UNICORN_MINOR, UNICORN_PATCH);
        return NULL;
    }
    host_tsc_init();
    if (find_main_thread())
        return NULL;
    if (signals_init())
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    module = PyModule_Create(&definition);
    if (!module)
        return NULL;
    if (machine_type_init(module) || cpu_type_init(module) || x86_type_init(module) || sleeper_type_init(module)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
