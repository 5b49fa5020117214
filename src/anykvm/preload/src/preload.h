/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The preload library: what makes /dev/kvm appear in a program that knows nothing of anykvm.
 *
 * It finds the calls that are KVM's and passes them to Python; what they mean is decided there. It is loaded into every
 * program that `anykvm exec` starts, long before there is a Python in it, so it needs no symbol of Python's: those are
 * looked up when /dev/kvm is first opened. Until then every function here passes its call on.
 */
#ifndef PRELOAD_H
#define PRELOAD_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#define EXPORT __attribute__((visibility("default")))

#define KVM_IOCTL_TYPE 0xAE
#define KVM_RUN 0xAE80u
#define KVM_SET_SIGNAL_MASK 0x4004AE8Bu
#define DIRTY_RING_OFFSET (64l * 4096) /* KVM_DIRTY_LOG_PAGE_OFFSET */
#define IS_KVM_REQUEST(request) (((request) >> 8 & 0xff) == KVM_IOCTL_TYPE)

/* What a thread that has called us is doing. A signal handler may look at it between any two statements. */
struct thread {
    volatile int depth;           /* inside a call of ours: signals wait for its end */
    atomic_int pending;           /* a signal came meanwhile: KVM_RUN is to end */
    void (*volatile poke)(void *); /* ends what the thread is blocked in; from a signal handler */
    void *volatile poked;
    atomic_flag guard;            /* around poke, for other threads */
    int cancel_state;             /* the client's, while ours is "disabled" */
    volatile uint64_t deferred;   /* bit n - 1: signal n came and waits */
    sigset_t mask;                /* the client's, valid if masked or deferred */
    bool masked;                  /* KVM_SET_SIGNAL_MASK is in force */
    siginfo_t info[64];
    pthread_t id;
    void *state;                  /* the PyThreadState we made for it, or NULL */
    struct thread *next, **link;
};

/* thread.c */
extern __thread struct thread *current __attribute__((tls_model("initial-exec")));
extern __thread bool internal __attribute__((tls_model("initial-exec"))); /* a thread of Python's own */
int thread_init(void);
struct thread *thread_begin(void);
void thread_end(struct thread *t);
static inline bool inside(void) { return internal || (current && current->depth); }

/* signals.c */
void signals_init(void);
void signals_start(void);
void signals_mask(struct thread *t, const uint64_t *mask);
void signals_requeue(struct thread *t);
void signals_trap(void);

/* python.c */
extern atomic_bool python_started;
bool python_alive(void);
bool python_start(void);
void python_attach(struct thread *t);
void python_detach(struct thread *t);
void python_thread_gone(struct thread *t);
bool python_before_fork(struct thread *t);
void python_after_fork(struct thread *t, bool child);
int python_open(void);
long python_ioctl(struct thread *t, int fd, ino_t inode, unsigned request, unsigned long argument);
void python_closed(ino_t inode, int descriptors);
void python_sweep(void);

/* files.c: which memfds are KVM's */
enum { FILE_ONE, FILE_DUPLICATED, FILE_SENT };
struct file {
    ino_t inode;
    void *ioctl;                  /* a Python callable; touched with the GIL only */
    bool system;                  /* /dev/kvm itself */
    int descriptors;              /* how many it may have: enum */
    bool has_mask;
    uint64_t mask;                /* KVM_SET_SIGNAL_MASK's */
};
int files_init(void);
bool files_is_memfd(const struct stat *st);
bool files_get(ino_t inode, struct file *copy);
void files_mark(int fd, int descriptors);
unsigned files_next_protected(unsigned fd);
void files_set_mask(ino_t inode, const uint64_t *mask);
bool files_protected(int fd);
void files_lock(void);
void files_unlock(void);

/* calls.c */
int kvm_open(int flags);
long kvm_ioctl(int fd, unsigned request, unsigned long argument);
int kvm_close(int fd);
bool is_kvm_path(int directory, const char *path);

/* real.c: the functions of libc that ours hide */
#define REAL_FUNCTIONS(X)                                                                                             \
    X(int, open, (const char *, int, ...))                                                                            \
    X(int, openat, (int, const char *, int, ...))                                                                     \
    X(int, close, (int))                                                                                              \
    X(int, close_range, (unsigned, unsigned, int))                                                                    \
    X(int, dup, (int))                                                                                                \
    X(int, dup2, (int, int))                                                                                          \
    X(int, dup3, (int, int, int))                                                                                     \
    X(int, fcntl, (int, int, ...))                                                                                    \
    X(int, ioctl, (int, unsigned long, ...))                                                                          \
    X(long, syscall, (long, ...))                                                                                     \
    X(ssize_t, sendmsg, (int, const struct msghdr *, int))                                                            \
    X(void *, mmap, (void *, size_t, int, int, int, off_t))                                                           \
    X(int, access, (const char *, int))                                                                               \
    X(int, eaccess, (const char *, int))                                                                              \
    X(int, faccessat, (int, const char *, int, int))                                                                  \
    X(int, stat, (const char *, struct stat *))                                                                       \
    X(int, lstat, (const char *, struct stat *))                                                                      \
    X(int, fstat, (int, struct stat *))                                                                               \
    X(int, fstatat, (int, const char *, struct stat *, int))                                                          \
    X(int, statx, (int, const char *, int, unsigned, struct statx *))                                                 \
    X(int, sigaction, (int, const struct sigaction *, struct sigaction *))                                            \
    X(int, pthread_cancel, (pthread_t))

struct msghdr;
struct statx;
#define X(result, name, arguments) result(*name) arguments;
extern struct real_functions {
    REAL_FUNCTIONS(X)
} real;
#undef X
void real_init(void);

#endif
