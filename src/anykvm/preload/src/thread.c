/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A client's threads: between thread_begin() and thread_end() a thread is ours. Its signals wait, as they do for a
 * thread in the kernel, and it cannot be cancelled, since Python's state would be left as it stands.
 */
#define _GNU_SOURCE
#include "preload.h"

#include <stdlib.h>

__thread struct thread *current __attribute__((tls_model("initial-exec")));
__thread bool internal __attribute__((tls_model("initial-exec")));

static pthread_key_t key;
static struct thread *threads;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void gone(void *argument)
{
    struct thread *t = argument;
    sigset_t mask;
    bool late;

    t->depth++;
    python_thread_gone(t);
    pthread_mutex_lock(&lock);
    *t->link = t->next;
    if (t->next)
        t->next->link = t->link;
    pthread_mutex_unlock(&lock);
    late = t->deferred;
    if (late)
        signals_requeue(t);
    mask = t->mask;
    current = NULL;
    free(t);
    if (late)
        pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

static struct thread *make(void)
{
    struct thread *t = calloc(1, sizeof(*t));

    if (!t)
        return NULL;
    t->id = pthread_self();
    if (pthread_setspecific(key, t)) {
        free(t);
        return NULL;
    }
    pthread_mutex_lock(&lock);
    t->next = threads;
    t->link = &threads;
    if (threads)
        threads->link = &t->next;
    threads = t;
    pthread_mutex_unlock(&lock);
    current = t;
    return t;
}

/* NULL: no memory. */
struct thread *thread_begin(void)
{
    struct thread *t = current;
    int state;

    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    if (!t && !(t = make())) {
        pthread_setcancelstate(state, NULL);
        return NULL;
    }
    t->cancel_state = state;
    /* In this order: from the second on, a signal sets the first. */
    t->pending = 0;
    atomic_signal_fence(memory_order_seq_cst);
    t->depth = 1;
    atomic_signal_fence(memory_order_seq_cst);
    return t;
}

static void restore_cancel(int state, bool pending)
{
    int type;

    /* Enabling a thread that has been cancelled ends it with the wrong result in glibc 2.36; changing the type does not. */
    if (pending)
        pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &type);
    pthread_setcancelstate(state, NULL);
    if (pending)
        pthread_setcanceltype(type, NULL);
}

/* Signals that came are delivered here, at the very end, and a handler may not return. */
void thread_end(struct thread *t)
{
    int state = t->cancel_state;
    bool pending = t->pending;

    if (t->deferred || t->masked) {
        sigset_t mask;
        signals_requeue(t);
        mask = t->mask;
        t->depth = 0;
        restore_cancel(state, pending);
        pthread_sigmask(SIG_SETMASK, &mask, NULL);
        return;
    }
    atomic_signal_fence(memory_order_seq_cst);
    t->depth = 0;
    atomic_signal_fence(memory_order_seq_cst);
    if (t->deferred) {
        /* One came after we looked. */
        t->depth = 1;
        thread_end(t);
        return;
    }
    restore_cancel(state, pending);
}

/* What the engine asks for while a thread is in the guest or sleeps (anykvm.engine's struct watch). */

static void guard(struct thread *t)
{
    while (atomic_flag_test_and_set_explicit(&t->guard, memory_order_acquire))
        ;
}

static void unguard(struct thread *t)
{
    atomic_flag_clear_explicit(&t->guard, memory_order_release);
}

static atomic_int *watch_enter(void (*poke)(void *), void *who)
{
    struct thread *t = current;

    if (!t || !t->depth)
        return NULL;
    guard(t);
    t->poked = who;
    atomic_signal_fence(memory_order_seq_cst);
    t->poke = poke;
    unguard(t);
    /* Either the handler sees poke, or we see that it has run. */
    atomic_signal_fence(memory_order_seq_cst);
    if (t->pending)
        poke(who);
    return &t->pending;
}

static void watch_leave(void)
{
    struct thread *t = current;

    guard(t);
    t->poke = NULL;
    unguard(t);
}

EXPORT const struct {
    atomic_int *(*enter)(void (*)(void *), void *);
    void (*leave)(void);
} anykvm_watch = {watch_enter, watch_leave};

/* The kernel ends KVM_RUN for a cancellation, whatever the thread makes of it; ours has been told not to react. */
EXPORT int pthread_cancel(pthread_t id)
{
    int result;

    real_init();
    result = real.pthread_cancel(id);
    if (result || !python_started)
        return result;
    pthread_mutex_lock(&lock);
    for (struct thread *t = threads; t; t = t->next) {
        if (!pthread_equal(t->id, id) || !t->depth || t->cancel_state != PTHREAD_CANCEL_ENABLE)
            continue;
        guard(t);
        t->pending = 1;
        if (t->poke)
            t->poke(t->poked);
        unguard(t);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

/* fork() */

static __thread bool attached;

static void before_fork(void)
{
    struct thread *t;

    attached = false;
    if (!python_alive() || inside())
        return;
    t = thread_begin();
    attached = t && python_before_fork(t);
    if (t && !attached)
        thread_end(t);
    files_lock();
    pthread_mutex_lock(&lock);
}

static void after_fork(bool child)
{
    struct thread *t = current;

    if (!python_alive() || (t && t->depth && !attached) || internal)
        return;
    if (child) {
        /* The others are not here. Their structures stay, as their stacks do. */
        pthread_mutex_init(&lock, NULL);
        threads = t;
        if (t) {
            t->next = NULL;
            t->link = &threads;
        }
    } else {
        pthread_mutex_unlock(&lock);
    }
    files_unlock();
    if (attached) {
        python_after_fork(t, child);
        attached = false;
        thread_end(t);
    }
}

static void after_fork_parent(void) { after_fork(false); }
static void after_fork_child(void) { after_fork(true); }

int thread_init(void)
{
    if (pthread_key_create(&key, gone))
        return -1;
    return pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}

/* Called by a thread of Python's own at its start: nothing it calls is the client's. */
EXPORT void anykvm_internal_thread(void)
{
    internal = true;
}
