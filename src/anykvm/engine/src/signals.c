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
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/*
 * Python writes a byte, the signal's number, to this file for each signal, unless the program uses that facility itself.
 * The file is mapped, so that asking for signals, which every run() does, is a look at memory and not a system call.
 */
static int arrivals = -1;
static volatile char *log_of; /* the file's first LOG bytes */
static unsigned logged;       /* how many of them have been seen */
static bool asked;
#define LOG 4096u

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

static int open_log(void)
{
    int fd = memfd_create("anykvm-signals", MFD_CLOEXEC);
    void *map = MAP_FAILED;

    if (fd >= 0 && !ftruncate(fd, LOG) && !fcntl(fd, F_SETFL, O_NONBLOCK))
        map = mmap(NULL, LOG, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        if (fd >= 0)
            close(fd);
        return -1;
    }
    log_of = map;
    logged = 0;
    return fd;
}

/* A forked child has no ticker, and nobody in run(); its signals are its own. */
static void after_fork(void)
{
    if (log_of) {
        void *old = (void *)log_of;
        int fd = open_log();

        if (fd >= 0) {
            munmap(old, LOG);
            dup3(fd, arrivals, O_CLOEXEC);
            close(fd);
        }
    }
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
    arrivals = open_log();
    if (arrivals < 0)
        return;
    PyObject *module = PyImport_ImportModule("signal");
    PyObject *old = module ? PyObject_CallMethod(module, "set_wakeup_fd", "i", arrivals) : NULL;

    if (old && PyLong_AsLong(old) != -1)
        Py_XDECREF(PyObject_CallMethod(module, "set_wakeup_fd", "O", old));
    Py_XDECREF(old);
    Py_XDECREF(module);
    PyErr_Clear();
}

/* Whether a signal (with a Python handler) came since this was last asked. */
bool signals_arrived(struct cpu *c)
{
    unsigned before = logged;

    if (watch)
        return c->signal && atomic_load(c->signal);
    if (!log_of)
        return false;
    while (logged < LOG && log_of[logged])
        logged++;
    if (logged < LOG / 2)
        return logged != before;
    /* From the start again. What was written up to here is seen; a byte that comes before lseek() is behind it. */
    memset((void *)log_of, 0, logged);
    lseek(arrivals, 0, SEEK_SET);
    memset((void *)(log_of + logged), 0, LOG - logged);
    logged = 0;
    return true;
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
