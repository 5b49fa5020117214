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
    EV_PIO_READ,
    EV_PIO_WRITE,
    EV_MSR_READ,
    EV_MSR_WRITE,
    EV_CR8_WRITE,
    EV_IRQ_ACK,
    EV_IRQ_WINDOW,
    EV_SHUTDOWN,
    EV_SIGNAL,
    EV_HYPERCALL,
    EV_RSM,
    /* Never seen by Python. */
    EV_PAUSED,
    EV_ABANDONED,
    EV_EXCLUSIVE,
};

struct event {
    int kind;
    uint64_t a, b, c;
};

/* A range of guest-physical memory backed by host memory. */
struct region {
    unsigned space; /* which of the machine's maps it is in */
    uint64_t gpa, size;
    uint8_t *hva;
    uint64_t *dirty; /* one bit per page set by guest writes, or NULL */
    bool readonly;
    uint32_t tag; /* the region's name in write rings */
    uint64_t id; /* differs for every map() */
    uint16_t *code; /* per page: how many cpus have translated code of it; NULL where the guest maintains caches */
    uint8_t **copy; /* per page with code: its bytes when the first of them looked, or NULL; good if copied says so */
    uint8_t *copied;
    /* In a cpu's copy only: */
    uint64_t ram;   /* Unicorn's number for the first byte */
    uint16_t *seen; /* per page: it is in the cpu's list of fetched pages of this number */
    uint8_t *own;   /* per page: this cpu is counted in code; of one allocation with seen */
};

/* Maintenance another cpu asks for: done at a block boundary, or at once by a cpu that is itself waiting for others. */
enum op_kind { OP_FLUSH, OP_FLUSH_PAGE, OP_INVALIDATE, OP_PROTECT, OP_RETRANSLATE, OP_FLUSH_CODE };
struct op {
    enum op_kind kind;
    uint64_t addr, arg;
};
#define QUEUE_LEN 32

/* How many pages of code a cpu looks through one by one when the host may have written: see x86_memory.c. */
#define FETCHED 24

/* x86: where an indirect jump went. */
struct x86_jump {
    uint64_t pc;
    uint64_t host;       /* host address of its code, or 0 */
    void *tb;
    uint32_t flags;      /* the cpu's, as blocks are translated for */
    uint32_t generation; /* cpu->x86.flushes of its half when it was last good */
};
#define X86_JUMPS 8192
#define X86_LOW 64

/* A cpu's log of the pages it writes: a ring in memory that is shared with its reader, who takes by moving tail. */
struct ring_entry {
    uint32_t flags; /* RING_DIRTY, written last; the reader adds its own */
    uint32_t tag;   /* the region's */
    uint64_t page;  /* in the region */
};
#define RING_DIRTY 1u
/* Once the soft limit is reached the cpu leaves at the end of the block: so many pages a block can never write. */
#define RING_SPILL 4096
struct ring {
    struct ring_entry *entries; /* NULL: there is none */
    _Atomic uint32_t *head, *tail; /* how many were written and taken in all; they wrap */
    uint32_t mask, soft;
    struct ring_entry *spill;   /* what found no room; written before the guest goes on */
    uint32_t nspill;
};

struct coroutine {
    void *sp;        /* saved stack pointer of the side that is not running */
    void *stack;     /* mmap'd, lowest page is a guard */
    size_t stack_size;
};

/* What a debugger outside an x86 guest wants. */
struct x86_insn;
struct x86_debug {
    bool step, int3, hardware, block_irq;
    bool again;    /* the instruction that met a data breakpoint is begun again */
    unsigned hits; /* which ones it met: bits of DR6 */
    uint64_t dr[8];
};

/* x86: an access that is not aligned. */
struct x86_unaligned {
    uint64_t va, value;
    uintptr_t ra;    /* where in translated code it is */
    unsigned size;   /* 0: there is none */
    bool asked[2];   /* its part in the first, in the second page has come out */
    uint64_t got[2]; /* and what it read */
};

struct machine;
struct cpu;

/* What differs between guest architectures. */
struct target {
    const char *name;
    int uc_arch, uc_mode, cpu_model;
    bool tracks_code; /* stores to translated code are caught: the guest does no cache maintenance */
    uint64_t (*ram_of)(void *uc, void *hva);
    void (*forget_code)(struct cpu *c, struct region *r); /* all code of all regions is gone already */
    void (*leave_region)(struct cpu *c, struct region *r); /* the region goes: drop code that was translated from it */
    unsigned (*debug_code)(struct cpu *c); /* which debug registers stopped the guest at its instruction */
    /* A piece of a larger access to a hole, done as part of that; false if it is an access of its own. */
    bool (*device_piece)(struct cpu *c, uint64_t pa, unsigned size, uint64_t *data, bool store);
    void (*distrust)(struct cpu *c); /* the host may have written to memory that holds code */
    bool (*stale)(struct cpu *c, uintptr_t ra); /* the block around this translated code is not what memory says */
    int (*stopped)(struct cpu *c, int r); /* the event a return from exec means, or EV_NONE */
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
extern const struct target target_arm64, target_x86;
extern const struct target *const targets[];

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
    struct region *regions;     /* changed only while stopped; sorted by space and gpa */
    int nregions, capregions;
    struct span {               /* the regions' host memory, sorted, as long as no two share any */
        uint64_t host, end;
    } *spans;
    int capspans;
    bool shared;                /* two have, or had: spans is not kept any more */
    uint64_t generation;        /* counts the changes of regions */
    atomic_uint writes;         /* counts up where the host may have written to the guest's memory */
    pthread_mutex_t copies;     /* a page's first code, and the copy of its bytes, are one */
    uint64_t next_id;
    struct dead {               /* gone, and cpus may still have it in their copies: for its code counts and copies */
        struct region region;
        uint64_t generation;    /* a cpu that has followed the map to here has it no more */
    } *dead;
    int ndead, capdead;

    pthread_rwlock_t lock;      /* the list of cpus */
    struct cpu **_Atomic cpus;  /* machine_add() alone changes it without the lock: it grows */
    atomic_int ncpus;           /* never more than cpus has, in this order */
    int capcpus, nretired;
    struct cpu **retired[32];   /* former cpus, half as long each */
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
    atomic_int *signal;         /* set when a signal came, or NULL */
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
    bool stale;                 /* it has not gone on: the block it is parked in is to be left first */
    int alone;                  /* 1: the next instruction runs with every other cpu stopped; 2: it has begun */

    struct ring ring;

    unsigned space;             /* which of the machine's maps it sees */
    struct region *regions;     /* its copy of that map */
    struct by_host *by_host;    /* the same by host address, made when first needed */
    int nregions, last_region;
    bool indexed;               /* by_host is good */
    bool behind;                /* regions is not to be used, whatever generation says */
    uint64_t generation;        /* of the map that regions is a copy of */
    unsigned writes;
    void *ram;                  /* Unicorn's one region */
    uint64_t ram_at;            /* Unicorn's number for a byte of it, less its host address */
    void *real_mapping;

    pthread_mutex_t qlock;
    struct op queue[QUEUE_LEN];
    int qlen;
    bool qoverflow, qcode; /* something was left out; and that was about code */
    atomic_int pending;
    uint64_t posted;            /* under qlock; done follows it */
    _Atomic uint64_t done;
    bool unsynced;              /* asked others for something and has not waited yet */
    bool flush_code;            /* do it at the next block boundary */

    /* x86 */
    struct {
        int inject;             /* vector to deliver, or -1 */
        atomic_int nmi;
        bool want_window;
        bool park_msrs;         /* also for those that are native */
        uintptr_t plain_io[64]; /* where in translated code there is port input that is not REP INS, by its low bits */
        bool own_ud;            /* the exception to deliver is an undefined instruction: not to be looked into */
        bool direct;            /* an MSR is read or written from outside */
        bool idle_hints;        /* MONITOR and MWAIT do nothing; else they are undefined */
        bool smm;               /* RSM parks; else it is undefined */
        int raise, raise_error; /* exception to deliver, or -1; error code, or -1 */
        uint32_t (*cpuid)[7];   /* function, index, flags, eax, ebx, ecx, edx */
        int ncpuid;
        struct fetched {
            uint64_t ram;
            uint8_t *hva;
        } fetched[FETCHED];     /* pages that were fetched from since the last distrust that was not checked one by one */
        int nfetched;           /* more than FETCHED: the list does not have them all */
        uint16_t list;
        struct x86_unaligned unaligned;
        struct x86_debug debug;
        struct x86_insn *insn;  /* being translated, NULL between */
        unsigned bad_bytes;     /* how many of UD2's bytes the translator has got in its place */
        uint32_t tb_flags;      /* of the block being translated */
        uint64_t sse_dest[2];   /* what an SSE instruction is about to change */
        uint8_t sse_flags;      /* the exceptions before it */
        int int_length;         /* of the INT that is being delivered, in bytes */
        bool stepping;          /* the instruction that runs alone is a debugger's single step */
        int64_t tsc_offset;
        uint64_t tsc_khz;
        struct x86_jump *jumps; /* X86_JUMPS of them */
        uint32_t flushes[2];    /* how often a TLB entry of the lower, of the upper half was flushed */
        bool nonglobal;         /* the TLB has a page of the upper half that is not global */
        uint32_t cr3_writes;
        int nlow;               /* pages of the lower half in the kernel's TLBs; beyond X86_LOW not listed */
        struct { uint64_t va; int mode; } low[X86_LOW];
        bool watched;           /* there was a data breakpoint: locked instructions ask for them */
        uint32_t task;          /* the task's selector when an instruction that may switch began, and a flag; 0 else */
        uint8_t iret;           /* words until the flags of an IRET that may not enter virtual-8086 mode; 0 else */
    } x86;

    uint32_t insn;              /* being translated */
    void *exit_label;           /* of the block being translated: where its first check branches to */

    uint64_t n_runs, n_exits, n_kicks, n_shootdowns, n_blocks;
};

/* tlb.c */
struct tlb_flags {
    uint64_t invalid, notdirty, mmio;
};
void tlb_fill_begin(struct cpu *c, uint64_t va, int access, uintptr_t ra);
bool tlb_fill_end(struct cpu *c, bool ok, bool probe);
struct region *tlb_page_begin(struct cpu *c, uint64_t pa, int *prot);
void tlb_page_end(struct cpu *c, struct region *r, char *fast, uint64_t va, uint64_t pa, int prot,
                  const struct tlb_flags *f);
void tlb_log_write(struct cpu *c, uint64_t pa);
void ring_drain(struct cpu *c);

/* coroutine.c */
int coroutine_create(struct coroutine *co, void (*entry)(void *), void *arg);
void coroutine_switch(struct coroutine *co);
void coroutine_destroy(struct coroutine *co);

/* cpu.c */
int cpu_materialise(struct cpu *c);
void cpu_resume(struct cpu *c);
void cpu_finish(struct cpu *c, uint64_t answer);
void cpu_close_engine(struct cpu *c);
uint64_t cpu_park(struct cpu *c, int kind, uint64_t a, uint64_t b, uint64_t v);
void cpu_force_exit(struct cpu *c);
bool cpu_attention(struct cpu *c);
/* Parked with an instruction half done. */
static inline bool cpu_mid_instruction(const struct cpu *c)
{
    return (c->parked >= EV_MMIO_READ && c->parked <= EV_SYSREG_WRITE) ||
           (c->parked >= EV_PIO_READ && c->parked <= EV_CR8_WRITE);
}
static inline struct cpu *cpu_of_uc(void *uc) { return FIELD(uc, UC_THREAD_DATA, struct cpu *); }
static inline struct cpu *cpu_of(void *cs) { return cpu_of_uc(FIELD(cs, CS_UC, void *)); }

/* regions.c */
#define REGIONS_FIRST -1
bool regions_host_ok(uint64_t host, uint64_t size);
int regions_place(const struct region *table, int n, unsigned space, uint64_t gpa);
uc_err regions_begin(struct cpu *c);
int regions_follow(struct cpu *c);
bool regions_span(struct machine *m, const struct region *r);
void regions_unspan(struct machine *m, const struct region *r);
bool cpu_has_code(struct cpu *c, struct region *r, uint64_t pa);
void regions_end(struct cpu *c);
struct region *cpu_region(struct cpu *c, uint64_t pa);
struct region *cpu_region_of_host(struct cpu *c, uint64_t host, int *at);
uint64_t cpu_unicorn_address(struct cpu *c, uint64_t pa);

/* x86_jump.c */
void x86_jump_forget(struct cpu *c);

/* pycpu.c, pymachine.c */
extern PyTypeObject *cpu_type, *machine_type;
int x86_type_init(PyObject *module);
int cpu_claim(struct cpu *c);
int cpu_type_init(PyObject *module);
int machine_type_init(PyObject *module);

/* sleeper.c */
int sleeper_type_init(PyObject *module);

/* signals.c */

/* Who has the program's signal handlers. enter() gives a flag that says a signal came, or NULL for a thread that gets
 * none; between enter() and leave() a signal, also one before enter(), calls poke(who) in its handler. */
struct watch {
    atomic_int *(*enter)(void (*poke)(void *), void *who);
    void (*leave)(void);
};
PyObject *signals_set_watch(PyObject *module, PyObject *address);
atomic_int *signals_enter(void (*poke)(void *), void *who);
void signals_leave(void);
int signals_init(void);
bool signals_arrived(struct cpu *c);
bool signals_watch(struct cpu *c);
void signals_unwatch(struct cpu *c);

/* machine.c */
void machine_pause(struct machine *m);
void machine_resume(struct machine *m);
void machine_reprotect_all(struct machine *m);
int machine_add(struct machine *m, struct cpu *c);
void machine_remove(struct machine *m, struct cpu *c);
void machine_enter(struct machine *m, struct cpu *c);
void machine_post(struct machine *m, struct cpu *self, const struct op *op);
void machine_sync(struct machine *m, struct cpu *self);
void machine_post_self(struct cpu *c, const struct op *op);
void cpu_drain(struct cpu *c);

/* module.c */
extern unsigned long main_thread;
uint64_t monotonic_ns(void);

/* host_tsc.c */
void host_tsc_init(void);
uint64_t host_ticks(void);
uint64_t host_tick_khz(void);
bool host_has_tsc(void);

#endif
