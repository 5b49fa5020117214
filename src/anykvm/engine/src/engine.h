/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The engine: guest instructions on Unicorn's CPU, one engine and one host thread per cpu, over shared RAM.
 *
 * A cpu's guest runs on a coroutine. Whatever needs policy (a device access, a trapped system register, a hypercall,
 * idling) parks the coroutine and comes back to Python as an event; the next run() resumes it where it stood. No Python
 * frame is ever on the coroutine's stack, so the engine's longjmps never cross one.
 */
#ifndef ANYKVM_ENGINE_H
#define ANYKVM_ENGINE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <unicorn/unicorn.h>

#include "layout.h"

#define GUEST_PAGE 4096ul

enum event_kind {
    EV_NONE,
    EV_KICK,
    EV_MMIO_READ,
    EV_MMIO_WRITE,
    EV_SYSREG_READ,
    EV_SYSREG_WRITE,
    EV_HVC,
    EV_SMC,
    EV_WFI,
    EV_FETCH,
    EV_BREAK,
    EV_ERROR,
    /* Never seen by Python. */
    EV_PAUSED,
    EV_ABANDONED,
};

struct event {
    int kind;
    uint64_t a, b, c;
};

/* A range of guest-physical memory backed by host memory. */
struct region {
    uint64_t gpa, size;
    uint8_t *hva;
    uint64_t *dirty; /* one bit per page set by guest writes, or NULL */
    bool readonly;
    uint64_t id; /* differs for every map() */
    void *mr;    /* this cpu's MemoryRegion; in a cpu's copy only */
};

/* Maintenance another cpu asks for: done at a block boundary, or at once by a cpu that is itself waiting for others. */
enum op_kind { OP_FLUSH, OP_FLUSH_PAGE, OP_INVALIDATE, OP_FLUSH_CODE };
struct op {
    enum op_kind kind;
    uint64_t addr, arg;
};
#define QUEUE_LEN 32

struct coroutine {
    void *sp;        /* saved stack pointer of the side that is not running */
    void *stack;     /* mmap'd, lowest page is a guard */
    size_t stack_size;
};

struct machine;
struct cpu;

/* What differs between guest architectures. */
struct target {
    const char *name;
    int uc_arch, uc_mode, cpu_model;
    const char *(*verify)(uc_engine *uc);
    int (*setup)(struct cpu *c);
    int (*exec)(void *uc, void *cs);
    void (*reset)(struct cpu *c);
    void (*refresh)(struct cpu *c);
    void (*apply)(struct cpu *c, const struct op *op);
    bool (*sysreg)(struct cpu *c, uint32_t enc, uint64_t *value, bool write);
    void (*sync)(struct cpu *c, uintptr_t ra);
    void (*restore)(struct cpu *c, uintptr_t ra); /* state back to the parked instruction, then leave; no return */
};
extern const struct target target_arm64;

struct trap {
    struct machine *machine;
    uint32_t enc;
};
struct constant {
    uint32_t enc;
    uint64_t value;
};

struct machine {
    PyObject_HEAD
    const struct target *target;
    bool closed;
    struct trap *traps;
    int ntraps;
    struct constant *constants;
    int nconstants;

    pthread_mutex_t pauser;     /* one at a time changes the memory map */
    int pauses;                 /* how deep the holder of pauser is in stops */
    pthread_mutex_t stop_lock;  /* for the condition only */
    pthread_cond_t resumed;
    atomic_int stop;            /* no cpu enters the guest while set */
    struct region *regions;     /* changed only while stopped; sorted by gpa */
    int nregions;
    atomic_uint generation;
    uint64_t next_id;

    pthread_rwlock_t lock;      /* the list of cpus */
    struct cpu **cpus;
    int ncpus, capcpus;
};

struct cpu {
    PyObject_HEAD
    struct machine *m;
    uc_engine *uc;              /* NULL until first needed */
    char *cs, *env;             /* Unicorn's CPUState and target state */
    bool closed;
    atomic_int busy;            /* a thread is in run() */

    atomic_int in_guest;        /* set while the coroutine may run guest code */
    atomic_int kicked, ticked;
    atomic_uint lines;          /* bit n: interrupt line n is high */

    struct coroutine co;
    int parked;                 /* enum event_kind */
    bool abandon, synced;
    struct event ev;
    uint64_t answer;

    struct {                    /* the TLB fill under way, or the last one */
        uint64_t va, pa_page;
        uintptr_t ra;
        int access;
        bool active, nonram;
    } fill;
    bool fetch_fault;

    struct region *regions;     /* this cpu's copy of the machine's map */
    int nregions, last_region;
    unsigned generation;
    void *(*real_mapping)(void *uc, uint64_t pa);

    pthread_mutex_t qlock;
    struct op queue[QUEUE_LEN];
    int qlen;
    bool qoverflow;
    atomic_int pending;
    uint64_t posted;            /* under qlock; done follows it */
    _Atomic uint64_t done;
    bool unsynced;              /* asked others for something and has not waited yet */
    bool flush_code;            /* do it at the next block boundary */

    uint32_t insn;              /* being translated */
    void *exit_label;           /* of the block being translated: where its first check branches to */

    uint64_t n_runs, n_exits, n_kicks, n_shootdowns, n_blocks, guest_ns;
};

/* coroutine.c */
int coroutine_create(struct coroutine *co, void (*entry)(void *), void *arg);
void coroutine_switch(struct coroutine *co);
void coroutine_destroy(struct coroutine *co);

/* cpu.c */
int cpu_materialise(struct cpu *c);
void cpu_resume(struct cpu *c);
void cpu_close_engine(struct cpu *c);
uint64_t cpu_park(struct cpu *c, int kind, uint64_t a, uint64_t b, uint64_t v);
void cpu_force_exit(struct cpu *c);
struct region *cpu_region(struct cpu *c, uint64_t pa);
bool cpu_attention(struct cpu *c);
static inline struct cpu *cpu_of_uc(void *uc) { return FIELD(uc, UC_THREAD_DATA, struct cpu *); }
static inline struct cpu *cpu_of(void *cs) { return cpu_of_uc(FIELD(cs, CS_UC, void *)); }

/* pycpu.c, pymachine.c */
extern PyTypeObject *cpu_type, *machine_type;
int cpu_type_init(PyObject *module);
int machine_type_init(PyObject *module);

/* signals.c */
int signals_init(void);
bool signals_watch(struct cpu *c);
void signals_unwatch(struct cpu *c);

/* machine.c */
void machine_pause(struct machine *m);
void machine_resume(struct machine *m);
void machine_reprotect_all(struct machine *m);
void machine_add(struct machine *m, struct cpu *c);
void machine_remove(struct machine *m, struct cpu *c);
void machine_enter(struct machine *m, struct cpu *c);
void machine_post(struct machine *m, struct cpu *self, const struct op *op);
void machine_sync(struct machine *m, struct cpu *self);
void cpu_drain(struct cpu *c);

/* module.c */
extern unsigned long main_thread;
uint64_t monotonic_ns(void);

#endif
