/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Signals, while a thread is in the guest or asleep.
 *
 * In a program of its own, Python's signal handlers run on its main thread only: a guest that runs there comes out 50
 * times a second for them. In somebody else's program whoever has the handlers tells us at once (struct watch).
 */
#define _GNU_SOURCE
#include "engine.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

/* Python writes a byte here for each signal, unless the program uses that facility itself. */
static int arrivals[2] = {-1, -1};
static bool asked;

/* The cpu in run() on the main thread; under the lock. */
static struct cpu *main_cpu;
static pthread_t ticker;
static pthread_mutex_t ticker_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ticker_wake = PTHREAD_COND_INITIALIZER;
static bool ticker_started;

static bool ticker_sleeps; /* under the lock */

static const struct watch *watch;

#define TICK_NS 20000000
#define TICKS_UNUSED 50 /* then it sleeps until it is needed */

static void *ticker_main(void *unused)
{
    struct timespec t = {0, TICK_NS};
    int idle = 0;

    (void)unused;
    for (;;) {
        nanosleep(&t, NULL);
        pthread_mutex_lock(&ticker_lock);
        idle = main_cpu ? 0 : idle + 1;
        while (!main_cpu && idle > TICKS_UNUSED) {
            ticker_sleeps = true;
            pthread_cond_wait(&ticker_wake, &ticker_lock);
            ticker_sleeps = false;
        }
        if (main_cpu && idle == 0) {
            atomic_store(&main_cpu->ticked, 1);
            if (atomic_load(&main_cpu->in_guest))
                cpu_force_exit(main_cpu);
        }
        pthread_mutex_unlock(&ticker_lock);
    }
    return NULL;
}

/* A forked child has no ticker, and nobody in run(). */
static void after_fork(void)
{
    pthread_mutex_init(&ticker_lock, NULL);
    pthread_cond_init(&ticker_wake, NULL);
    main_cpu = NULL;
    ticker_started = ticker_sleeps = false;
}

int signals_init(void)
{
    return pthread_atfork(NULL, NULL, after_fork);
}

/* signal.set_wakeup_fd(), once; a program that has its own keeps it, and then signals are not counted. */
static void ask_python(void)
{
    if (pipe2(arrivals, O_NONBLOCK | O_CLOEXEC))
        return;
    PyObject *module = PyImport_ImportModule("signal");
    PyObject *old = module ? PyObject_CallMethod(module, "set_wakeup_fd", "i", arrivals[1]) : NULL;

    if (old && PyLong_AsLong(old) != -1)
        Py_XDECREF(PyObject_CallMethod(module, "set_wakeup_fd", "O", old));
    Py_XDECREF(old);
    Py_XDECREF(module);
    PyErr_Clear();
}

/* Whether a signal (with a Python handler) came since this was last asked. */
bool signals_arrived(struct cpu *c)
{
    char bytes[64];
    bool any = false;

    if (watch)
        return c->signal && atomic_load(c->signal);
    while (read(arrivals[0], bytes, sizeof(bytes)) > 0)
        any = true;
    return any;
}

PyObject *signals_set_watch(PyObject *module, PyObject *address)
{
    void *given = PyLong_AsVoidPtr(address);

    (void)module;
    if (!given && PyErr_Occurred())
        return NULL;
    watch = given;
    Py_RETURN_NONE;
}

static void poke_cpu(void *who)
{
    struct cpu *c = who;

    atomic_store(&c->ticked, 1);
    if (atomic_load(&c->in_guest))
        cpu_force_exit(c);
}

atomic_int *signals_enter(void (*poke)(void *), void *who)
{
    return watch ? watch->enter(poke, who) : NULL;
}

void signals_leave(void)
{
    watch->leave();
}

/* On the main thread Python's signal handlers must get their turn while a guest runs. */
bool signals_watch(struct cpu *c)
{
    if (watch) {
        c->signal = watch->enter(poke_cpu, c);
        return c->signal != NULL;
    }
    if (PyThread_get_thread_ident() != main_thread)
        return false;
    if (!asked) {
        asked = true;
        ask_python();
    }
    signals_arrived(c);
    pthread_mutex_lock(&ticker_lock);
    main_cpu = c;
    if (!ticker_started)
        ticker_started = !pthread_create(&ticker, NULL, ticker_main, NULL);
    else if (ticker_sleeps)
        pthread_cond_signal(&ticker_wake);
    pthread_mutex_unlock(&ticker_lock);
    return true;
}

void signals_unwatch(struct cpu *c)
{
    if (watch) {
        watch->leave();
        atomic_store(&c->ticked, 0);
        return;
    }
    pthread_mutex_lock(&ticker_lock);
    main_cpu = NULL;
    atomic_store(&c->ticked, 0);
    pthread_mutex_unlock(&ticker_lock);
}
