/* SPDX-License-Identifier: GPL-2.0-only */
/* Python's signal handlers run on its main thread only: a guest that runs there comes out 50 times a second for them. */
#define _GNU_SOURCE
#include "engine.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

/* Python writes a byte here for each signal, unless the program uses that facility itself. */
static int arrivals[2] = {-1, -1};
static bool counting;
static PyObject *set_wakeup_fd; /* signal.set_wakeup_fd(fd) -> the one before */

static int wake_up_at(int fd)
{
    PyObject *type, *value, *traceback, *r;
    long old;

    /* A handler's exception may be on its way. */
    PyErr_Fetch(&type, &value, &traceback);
    r = PyObject_CallFunction(set_wakeup_fd, "i", fd);
    old = r ? PyLong_AsLong(r) : -1;
    Py_XDECREF(r);
    PyErr_Restore(type, value, traceback);
    return (int)old;
}

/* The cpu in run() on the main thread. */
static struct cpu *_Atomic main_cpu;
static pthread_t ticker;
static pthread_mutex_t ticker_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ticker_wake = PTHREAD_COND_INITIALIZER;
static bool ticker_started;

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

/* A forked child has no ticker, and nobody in run(). */
static void after_fork(void)
{
    pthread_mutex_init(&ticker_lock, NULL);
    pthread_cond_init(&ticker_wake, NULL);
    atomic_store(&main_cpu, NULL);
    ticker_started = false;
}

int signals_init(void)
{
    PyObject *module = PyImport_ImportModule("signal");

    set_wakeup_fd = module ? PyObject_GetAttrString(module, "set_wakeup_fd") : NULL;
    Py_XDECREF(module);
    if (!set_wakeup_fd)
        return -1;
    if (pipe2(arrivals, O_NONBLOCK | O_CLOEXEC))
        return -1;
    return pthread_atfork(NULL, NULL, after_fork);
}

/* Whether a signal with a Python handler came since signals_watch(). */
bool signals_arrived(void)
{
    char bytes[64];
    bool any = false;

    while (counting && read(arrivals[0], bytes, sizeof(bytes)) > 0)
        any = true;
    return any;
}

/* On the main thread Python's signal handlers must get their turn while a guest runs. */
bool signals_watch(struct cpu *c)
{
    if (PyThread_get_thread_ident() != main_thread)
        return false;
    pthread_mutex_lock(&ticker_lock);
    if (!ticker_started)
        ticker_started = !pthread_create(&ticker, NULL, ticker_main, NULL);
    atomic_store(&main_cpu, c);
    pthread_cond_signal(&ticker_wake);
    pthread_mutex_unlock(&ticker_lock);
    int other = wake_up_at(arrivals[1]);
    counting = other == -1;
    if (!counting)
        wake_up_at(other);
    return true;
}

void signals_unwatch(struct cpu *c)
{
    signals_arrived();
    if (counting)
        wake_up_at(-1);
    counting = false;
    pthread_mutex_lock(&ticker_lock);
    atomic_store(&main_cpu, NULL);
    atomic_store(&c->ticked, 0);
    pthread_mutex_unlock(&ticker_lock);
}
