/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A client's signals. The kernel lets a handler run when the thread leaves the kernel; here the thread is in Python,
 * which no handler may interrupt, let alone jump out of. So a signal that comes meanwhile is kept, ends KVM_RUN, and
 * is sent again when the call is over.
 */
#define _GNU_SOURCE
#include "preload.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define SIGNALS 64
#define BIT(sig) (1ull << ((sig) - 1))
/* These say what the thread itself did wrong; nothing can wait. */
#define SYNCHRONOUS (BIT(SIGSEGV) | BIT(SIGBUS) | BIT(SIGFPE) | BIT(SIGILL) | BIT(SIGTRAP) | BIT(SIGSYS))
#define UNTOUCHED (SYNCHRONOUS | BIT(SIGKILL) | BIT(SIGSTOP) | BIT(32) | BIT(33))
/* Whose default is not the end of the process. */
#define HARMLESS (BIT(SIGCHLD) | BIT(SIGURG) | BIT(SIGWINCH) | BIT(SIGCONT) | BIT(SIGTSTP) | BIT(SIGTTIN) | BIT(SIGTTOU))

/* What the client asked for, where the kernel has our handler. Readers may be signal handlers: they read again if
 * a writer was there, and a writer has all signals blocked. */
static struct wish {
    atomic_uint version;
    struct sigaction action;
} wishes[SIGNALS + 1];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool wrapping;

static void handler(int sig, siginfo_t *info, void *context);

static bool ours(const struct sigaction *a)
{
    return (a->sa_flags & SA_SIGINFO) && a->sa_sigaction == handler;
}

static bool is_function(const struct sigaction *a)
{
    return a->sa_handler != SIG_DFL && a->sa_handler != SIG_IGN;
}

static struct sigaction wish_get(int sig)
{
    struct wish *w = &wishes[sig];
    struct sigaction copy;
    unsigned version;

    do {
        version = atomic_load(&w->version);
        copy = w->action;
        atomic_thread_fence(memory_order_acquire);
    } while ((version & 1) || version != atomic_load(&w->version));
    return copy;
}

static void wish_set(int sig, const struct sigaction *action)
{
    atomic_fetch_add(&wishes[sig].version, 1);
    wishes[sig].action = *action;
    atomic_fetch_add(&wishes[sig].version, 1);
}

static void block_all(sigset_t *old)
{
    sigset_t all;

    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, old);
    pthread_mutex_lock(&lock);
}

static void unblock(const sigset_t *old)
{
    pthread_mutex_unlock(&lock);
    pthread_sigmask(SIG_SETMASK, old, NULL);
}

/* With all signals blocked. The default action stands behind our handler only while KVM_SET_SIGNAL_MASK needs it. */
static int install(int sig, const struct sigaction *action)
{
    struct sigaction mine = *action;

    wish_set(sig, action);
    mine.sa_sigaction = handler;
    mine.sa_flags = (mine.sa_flags | SA_SIGINFO) & ~(int)SA_RESETHAND;
    return real.sigaction(sig, &mine, NULL);
}

/* The first open of /dev/kvm: the handlers there are go behind ours. */
void signals_start(void)
{
    sigset_t old;

    block_all(&old);
    for (int sig = 1; sig <= SIGNALS; sig++) {
        struct sigaction action;
        if (BIT(sig) & UNTOUCHED || real.sigaction(sig, NULL, &action))
            continue;
        if (is_function(&action) && !ours(&action))
            install(sig, &action);
    }
    wrapping = true;
    unblock(&old);
}

EXPORT int sigaction(int sig, const struct sigaction *action, struct sigaction *old_action)
{
    struct sigaction before;
    int result;
    sigset_t old;

    real_init();
    if (!wrapping || sig < 1 || sig > SIGNALS || BIT(sig) & UNTOUCHED || inside())
        return real.sigaction(sig, action, old_action);
    block_all(&old);
    result = real.sigaction(sig, NULL, &before);
    if (!result && ours(&before))
        before = wish_get(sig);
    if (!result && action)
        result = is_function(action) ? install(sig, action) : real.sigaction(sig, action, NULL);
    unblock(&old);
    if (!result && old_action)
        *old_action = before;
    return result;
}

static void (*set_handler(int sig, void (*function)(int), int flags))(int)
{
    struct sigaction action = {.sa_handler = function, .sa_flags = flags}, old;

    sigemptyset(&action.sa_mask);
    return sigaction(sig, &action, &old) ? SIG_ERR : old.sa_handler;
}

EXPORT void (*signal(int sig, void (*function)(int)))(int)
{
    return set_handler(sig, function, SA_RESTART);
}

EXPORT void (*bsd_signal(int sig, void (*function)(int)))(int)
{
    return set_handler(sig, function, SA_RESTART);
}

EXPORT void (*__sysv_signal(int sig, void (*function)(int)))(int)
{
    return set_handler(sig, function, SA_RESETHAND | SA_NODEFER);
}

EXPORT void (*sysv_signal(int sig, void (*function)(int)))(int)
{
    return set_handler(sig, function, SA_RESETHAND | SA_NODEFER);
}

static void deliver(int sig, siginfo_t *info, void *context)
{
    struct sigaction wish = wish_get(sig), dfl = {.sa_handler = SIG_DFL};

    if (wish.sa_handler == SIG_IGN)
        return;
    if (wish.sa_handler == SIG_DFL) {
        /* Pending now, and taken when this handler returns. */
        real.sigaction(sig, &dfl, NULL);
        raise(sig);
        return;
    }
    if (wish.sa_flags & (int)SA_RESETHAND)
        real.sigaction(sig, &dfl, NULL);
    if (wish.sa_flags & SA_SIGINFO)
        wish.sa_sigaction(sig, info, context);
    else
        wish.sa_handler(sig);
}

static void handler(int sig, siginfo_t *info, void *context)
{
    struct thread *t = current;
    ucontext_t *interrupted = context;
    int error = errno;

    if (!t || !t->depth) {
        deliver(sig, info, context);
        return;
    }
    if (!t->deferred && !t->masked)
        t->mask = interrupted->uc_sigmask;
    t->deferred |= BIT(sig);
    t->info[sig - 1] = *info;
    /* The next of its kind waits in the kernel. */
    sigaddset(&interrupted->uc_sigmask, sig);
    t->pending = 1;
    atomic_signal_fence(memory_order_seq_cst);
    if (t->poke)
        t->poke(t->poked);
    errno = error;
}

/* KVM_RUN begins, and the vCPU has a signal mask. What it lets in and the thread does not stays pending afterwards,
 * its default action included. */
void signals_mask(struct thread *t, const uint64_t *mask)
{
    sigset_t now, old, all;

    sigemptyset(&now);
    memcpy(&now, mask, sizeof(*mask));
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    /* What came already is blocked by us, not by the client. */
    if (t->deferred)
        old = t->mask;
    for (int sig = 1; sig <= SIGNALS; sig++) {
        struct sigaction action;
        if (t->deferred & BIT(sig))
            sigaddset(&now, sig);
        if (!sigismember(&old, sig) || sigismember(&now, sig) || BIT(sig) & (UNTOUCHED | HARMLESS))
            continue;
        pthread_mutex_lock(&lock);
        if (!real.sigaction(sig, NULL, &action) && action.sa_handler == SIG_DFL)
            install(sig, &action);
        pthread_mutex_unlock(&lock);
    }
    t->mask = old;
    t->masked = true;
    pthread_sigmask(SIG_SETMASK, &now, NULL);
}

/* The call is over: what came meanwhile is sent again. All signals are blocked until signals_release(). */
void signals_requeue(struct thread *t)
{
    pid_t pid = getpid(), tid = (pid_t)syscall(SYS_gettid);
    sigset_t all;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    for (int sig = 1; sig <= SIGNALS; sig++) {
        if (!(t->deferred & BIT(sig)))
            continue;
        /* What stays blocked here may be another thread's to take, unless it was sent to this one. */
        if (sigismember(&t->mask, sig) && t->info[sig - 1].si_code != SI_TKILL)
            syscall(SYS_rt_sigqueueinfo, pid, sig, &t->info[sig - 1]);
        else
            syscall(SYS_rt_tgsigqueueinfo, pid, tid, sig, &t->info[sig - 1]);
    }
    t->deferred = 0;
    t->masked = false;
}

/* ioctl without libc: the host's kernel sends SIGSYS for those of KVM's type, and we answer. */

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#define ARGUMENT(u, n) ((u)->uc_mcontext.gregs[(int[]){REG_RDI, REG_RSI, REG_RDX}[n]])
#define RESULT(u) ((u)->uc_mcontext.gregs[REG_RAX])
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#define ARGUMENT(u, n) ((u)->uc_mcontext.regs[n])
#define RESULT(u) ((u)->uc_mcontext.regs[0])
#endif

#ifdef ARCH
static void trapped(int sig, siginfo_t *info, void *context)
{
    ucontext_t *u = context;
    int error = errno;
    long result;

    (void)sig, (void)info;
    errno = ENOTTY;
    result = inside() ? -1 : kvm_ioctl((int)ARGUMENT(u, 0), (unsigned)ARGUMENT(u, 1), (unsigned long)ARGUMENT(u, 2));
    RESULT(u) = result == -1 ? -errno : result;
    errno = error;
}

void signals_trap(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xff00),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, KVM_IOCTL_TYPE << 8, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
    };
    struct sock_fprog program = {sizeof(code) / sizeof(*code), code};
    struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_NODEFER};

    sigemptyset(&action.sa_mask);
    if (real.sigaction(SIGSYS, &action, NULL) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        dprintf(2, "anykvm: the host refuses a seccomp filter (%s): ioctls without libc will not be seen\n",
                strerror(errno));
}
#else
void signals_trap(void)
{
    dprintf(2, "anykvm: ioctls without libc are not seen on this architecture\n");
}
#endif
