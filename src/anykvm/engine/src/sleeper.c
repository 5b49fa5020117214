/* SPDX-License-Identifier: GPL-2.0-only */
/* The Sleeper type: where an idle cpu's thread sleeps, until somebody wakes it or a signal comes. */
#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

struct sleeper {
    PyObject_HEAD
    _Atomic uint32_t word;      /* what the sleeper has not looked at yet */
    atomic_int asleep;
};
#define WOKEN 1u
#define SIGNALLED 2u

static long futex(struct sleeper *s, int operation, uint32_t value)
{
    return syscall(SYS_futex, &s->word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* From a signal handler. */
static void poke(void *who)
{
    struct sleeper *s = who;

    atomic_fetch_or(&s->word, SIGNALLED);
    futex(s, FUTEX_WAKE, 1);
}

static PyObject *sleeper_sleep(struct sleeper *s, PyObject *unused)
{
    uint32_t word;
    bool python = PyThread_get_thread_ident() == main_thread, watched = false, interrupted;

    (void)unused;
    do {
        interrupted = false;
        Py_BEGIN_ALLOW_THREADS
        watched = signals_enter(poke, s) != NULL;
        atomic_store(&s->asleep, 1);
        while (!atomic_load(&s->word) && !interrupted)
            interrupted = futex(s, FUTEX_WAIT, 0) && errno == EINTR && python && !watched;
        atomic_store(&s->asleep, 0);
        if (watched)
            signals_leave();
        word = atomic_exchange(&s->word, 0);
        Py_END_ALLOW_THREADS
        if (interrupted && PyErr_CheckSignals())
            return NULL;
    } while (!word);
    return PyBool_FromLong(word & SIGNALLED);
}

static PyObject *sleeper_wake(struct sleeper *s, PyObject *unused)
{
    (void)unused;
    atomic_fetch_or(&s->word, WOKEN);
    if (atomic_load(&s->asleep))
        futex(s, FUTEX_WAKE, 1);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"sleep", (PyCFunction)sleeper_sleep, METH_NOARGS,
     "sleep() -> bool\n\nSleep until wake(), also one before; True if it was for a signal."},
    {"wake", (PyCFunction)sleeper_wake, METH_NOARGS, "wake()\n\nEnd the sleep, or the next one; from any thread."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_methods, methods},
    {Py_tp_doc, "Sleeper()\n\nA place for one thread to sleep."},
    {0, NULL},
};
static PyType_Spec spec = {"anykvm.engine._engine.Sleeper", sizeof(struct sleeper), 0, Py_TPFLAGS_DEFAULT, slots};

int sleeper_type_init(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&spec);
    int result = type ? PyModule_AddObjectRef(module, "Sleeper", type) : -1;

    Py_XDECREF(type);
    return result;
}
