/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A machine: guest-physical memory and the cpus that share it.
 *
 * Two protocols keep the cpus coherent. Both rest on cpu->in_guest, which a cpu sets before it may run guest code and
 * clears before it may not, with the flags it must honour read after the one and before the other:
 *   stop       machine_pause() sets m->stop and waits until no cpu is in the guest; a cpu that enters sees it and waits.
 *   post       an operation is queued on every other cpu; one in the guest does it at its next block boundary, one
 *              outside before it enters. The sender goes on, and waits when it must (a barrier): machine_sync().
 * A cpu that waits keeps serving its own queue, so two cannot wait for each other.
 */
#include "engine.h"

#include <time.h>

static inline void relax(unsigned *spins)
{
    if (++*spins < 2000) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#else
        __asm__ volatile("yield");
#endif
    } else {
        /* The other thread may need this core to get anywhere. */
        struct timespec t = {0, 20000};
        nanosleep(&t, NULL);
    }
}

/* Apply what other cpus asked for; on the owner's thread, at a block boundary or inside a broadcast. */
void cpu_drain(struct cpu *c)
{
    struct op ops[QUEUE_LEN];
    int n;
    bool overflow, code;
    uint64_t seq;

    pthread_mutex_lock(&c->qlock);
    n = c->qlen;
    memcpy(ops, c->queue, (size_t)n * sizeof(*ops));
    overflow = c->qoverflow;
    code = c->qcode;
    seq = c->posted;
    c->qlen = 0;
    c->qoverflow = c->qcode = false;
    atomic_store(&c->pending, 0);
    pthread_mutex_unlock(&c->qlock);
    if (overflow) {
        struct op all = {OP_FLUSH, 0, ~0ul};
        c->m->target->apply(c, &all);
        if (code)
            c->flush_code = true;
    }
    for (int i = 0; i < n; i++) {
        if (ops[i].kind == OP_FLUSH_CODE)
            c->flush_code = true;
        else
            c->m->target->apply(c, &ops[i]);
    }
    atomic_store(&c->done, seq);
}

static uint64_t enqueue(struct cpu *c, const struct op *op)
{
    uint64_t ticket;

    pthread_mutex_lock(&c->qlock);
    if (c->qlen < QUEUE_LEN)
        c->queue[c->qlen++] = *op;
    else {
        /* What concerns the TLB is done by a full flush; code is not lost with it. */
        c->qoverflow = true;
        c->qcode |= op->kind == OP_INVALIDATE || op->kind == OP_RETRANSLATE || op->kind == OP_FLUSH_CODE;
    }
    ticket = ++c->posted;
    atomic_store(&c->pending, 1);
    pthread_mutex_unlock(&c->qlock);
    return ticket;
}

/* At the next block boundary: for what cannot be done inside a block. */
void machine_post_self(struct cpu *c, const struct op *op)
{
    enqueue(c, op);
    cpu_force_exit(c);
}

/* The list of cpus, to read; a cpu that waits for it serves its own queue. */
static void list_lock(struct machine *m, struct cpu *self)
{
    unsigned spins = 0;

    while (pthread_rwlock_tryrdlock(&m->lock)) {
        if (self && atomic_load(&self->pending))
            cpu_drain(self);
        relax(&spins);
    }
}

/* Ask every other cpu for an operation; machine_sync() waits until all have done all that was asked. */
void machine_post(struct machine *m, struct cpu *self, const struct op *op)
{
    if (m->ncpus < 2 && self)
        return;
    list_lock(m, self);
    for (int i = 0; i < m->ncpus; i++) {
        struct cpu *o = m->cpus[i];

        if (o == self)
            continue;
        enqueue(o, op);
        if (atomic_load(&o->in_guest))
            cpu_force_exit(o);
    }
    pthread_rwlock_unlock(&m->lock);
    if (self) {
        self->unsynced = true;
        self->n_shootdowns++;
    }
}

void machine_sync(struct machine *m, struct cpu *self)
{
    list_lock(m, self);
    for (int i = 0; i < m->ncpus; i++) {
        struct cpu *o = m->cpus[i];
        unsigned spins = 0;
        uint64_t ticket;

        if (o == self)
            continue;
        pthread_mutex_lock(&o->qlock);
        ticket = o->posted;
        pthread_mutex_unlock(&o->qlock);
        while (atomic_load(&o->in_guest) && atomic_load(&o->done) < ticket) {
            if (spins % 1000 == 999)
                cpu_force_exit(o);
            if (self && atomic_load(&self->pending))
                cpu_drain(self);
            relax(&spins);
        }
    }
    pthread_rwlock_unlock(&m->lock);
    if (self)
        self->unsynced = false;
}

/* Enter the guest: returns with in_guest set and the machine not stopped. */
void machine_enter(struct machine *m, struct cpu *c)
{
    for (;;) {
        atomic_store(&c->in_guest, 1);
        if (!atomic_load(&m->stop))
            return;
        atomic_store(&c->in_guest, 0);
        pthread_mutex_lock(&m->stop_lock);
        while (atomic_load(&m->stop))
            pthread_cond_wait(&m->resumed, &m->stop_lock);
        pthread_mutex_unlock(&m->stop_lock);
    }
}

/* Stops nest on one thread: the mutex is recursive. */
void machine_pause(struct machine *m)
{
    pthread_mutex_lock(&m->pauser);
    if (m->pauses++)
        return;
    atomic_store(&m->stop, 1);
    for (int i = 0;; i++) {
        struct cpu *o = NULL;
        unsigned spins = 0;

        pthread_rwlock_rdlock(&m->lock);
        if (i < m->ncpus)
            o = m->cpus[i];
        pthread_rwlock_unlock(&m->lock);
        if (!o)
            break;
        while (atomic_load(&o->in_guest)) {
            if (spins % 1000 == 0)
                cpu_force_exit(o);
            relax(&spins);
        }
    }
}

void machine_resume(struct machine *m)
{
    if (--m->pauses == 0) {
        pthread_mutex_lock(&m->stop_lock);
        atomic_store(&m->stop, 0);
        pthread_cond_broadcast(&m->resumed);
        pthread_mutex_unlock(&m->stop_lock);
    }
    pthread_mutex_unlock(&m->pauser);
}

/*
 * A cpu that waits for others holds the list, for as long as the host does not run them. Adding one waits for nobody: the
 * list only grows here, and what readers may still look at is kept.
 */
int machine_add(struct machine *m, struct cpu *c)
{
    int n, bad = 0;

    /* Whoever changes the map has this lock, and may want the GIL. Not to give that away without need: it comes back late. */
    if (pthread_mutex_trylock(&m->pauser)) {
        Py_BEGIN_ALLOW_THREADS
        pthread_mutex_lock(&m->pauser);
        Py_END_ALLOW_THREADS
    }
    n = m->ncpus;
    if (n == m->capcpus) {
        struct cpu **fresh = malloc((size_t)(n ? n * 2 : 8) * sizeof(*fresh));

        if (fresh) {
            if (n)
                memcpy(fresh, m->cpus, (size_t)n * sizeof(*fresh));
            m->retired[m->nretired++] = m->cpus;
            m->cpus = fresh;
            m->capcpus = n ? n * 2 : 8;
        } else {
            bad = -1;
        }
    }
    if (!bad) {
        m->cpus[n] = c;
        m->ncpus = n + 1;
    }
    pthread_mutex_unlock(&m->pauser);
    return bad;
}

void machine_remove(struct machine *m, struct cpu *c)
{
    pthread_mutex_lock(&m->pauser);
    pthread_rwlock_wrlock(&m->lock);
    for (int i = 0; i < m->ncpus; i++) {
        if (m->cpus[i] == c) {
            m->cpus[i] = m->cpus[--m->ncpus];
            break;
        }
    }
    pthread_rwlock_unlock(&m->lock);
    pthread_mutex_unlock(&m->pauser);
}

/* Flush every cpu's TLB before it goes on; with the machine stopped. */
void machine_reprotect_all(struct machine *m)
{
    struct op op = {OP_FLUSH, 0, ~0ul};

    pthread_rwlock_rdlock(&m->lock);
    for (int i = 0; i < m->ncpus; i++)
        enqueue(m->cpus[i], &op);
    pthread_rwlock_unlock(&m->lock);
}
