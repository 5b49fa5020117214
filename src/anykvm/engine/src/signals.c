/* SPDX-License-Identifier: GPL-2.0-only */
/* Python's signal handlers run on its main thread only: a guest that runs there comes out 50 times a second for them. */
#include "engine.h"

#include <time.h>

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
    return pthread_atfork(NULL, NULL, after_fork);
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
    return true;
}

void signals_unwatch(struct cpu *c)
{
    pthread_mutex_lock(&ticker_lock);
    atomic_store(&main_cpu, NULL);
    atomic_store(&c->ticked, 0);
    pthread_mutex_unlock(&ticker_lock);
}
