/* SPDX-License-Identifier: GPL-2.0-only */
/* Signals and KVM_RUN, as the kernel has them. */
#include "kvm.h"

#include <sys/time.h>

static volatile int caught;
static volatile pid_t sender;
static sigjmp_buf away;

static void count(int sig) { (void)sig, caught++; }
static void count_info(int sig, siginfo_t *info, void *context)
{
    (void)sig, (void)context;
    sender = info->si_pid;
    caught++;
}
static void jump(int sig)
{
    (void)sig;
    siglongjmp(away, 1);
}

static void catch(int sig, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    CHECK(sigaction(sig, &action, NULL) == 0);
}

/* Every so many microseconds, so that one comes in KVM_RUN, however late we get there; 0: no more. */
static void alarms(long us)
{
    struct itimerval every = {{0, us}, {0, us}};
    CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0);
}

static pthread_t runner;
static volatile int rounds, stop;

/* A storm of signals at every point of KVM_RUN: each one must end the run it comes in, or come before it. */
static void *storm(void *unused)
{
    (void)unused;
    while (!stop) {
        pthread_kill(runner, SIGUSR1);
        usleep(50 + (unsigned)rounds % 97);
    }
    return NULL;
}

int main(void)
{
    struct sigaction old;
    struct timespec zero = {0, 0};
    pthread_t other;
    sigset_t set;

    /* Set before /dev/kvm is opened, and seen as it was set. */
    catch(SIGALRM, count, 0);
    struct guest g = GUEST(SPIN);
    CHECK(sigaction(SIGALRM, NULL, &old) == 0 && old.sa_handler == count);

    /* A signal ends a run, soon. */
    for (int i = 0; i < 5; i++) {
        double begin = seconds();
        caught = 0;
        alarms(20000);
        CHECK(ioctl(g.vcpu, KVM_RUN, 0) == -1 && errno == EINTR);
        CHECK(g.run->exit_reason == KVM_EXIT_INTR && caught >= 1);
        CHECK(seconds() - begin < 5);
        alarms(0);
    }

    /* immediate_exit leaves the reason alone. */
    g.run->immediate_exit = 1;
    g.run->exit_reason = 99;
    CHECK(ioctl(g.vcpu, KVM_RUN, 0) == -1 && errno == EINTR && g.run->exit_reason == 99);
    g.run->immediate_exit = 0;

    /* siginfo is the sender's; SA_RESETHAND works once. */
    struct sigaction info = {.sa_sigaction = count_info, .sa_flags = SA_SIGINFO | SA_RESETHAND};
    char byte = 0;
    int go[2];
    CHECK(pipe(go) == 0);
    pid_t child = fork();
    if (child == 0) {
        CHECK(read(go[0], &byte, 1) == 1);
        pause_ms(200);
        kill(getppid(), SIGUSR2);
        _exit(0);
    }
    CHECK(sigaction(SIGUSR2, &info, NULL) == 0);
    caught = 0;
    CHECK(write(go[1], &byte, 1) == 1);
    CHECK(ioctl(g.vcpu, KVM_RUN, 0) == -1 && errno == EINTR && caught == 1 && sender == child);
    CHECK(sigaction(SIGUSR2, NULL, &old) == 0 && old.sa_handler == SIG_DFL);
    CHECK(waitpid(child, NULL, 0) == child);

    /* A handler may jump out, and everything works afterwards. */
    catch(SIGALRM, jump, SA_NODEFER);
    for (volatile int i = 0; i < 5; i++) {
        if (sigsetjmp(away, 1) == 0) {
            alarms(5000);
            ioctl(g.vcpu, KVM_RUN, 0);
            CHECK(!"the handler jumps");
        }
    }
    alarms(0);
    catch(SIGALRM, count, 0);

    /* An ignored signal ends nothing; a handled one does. */
    catch(SIGUSR1, SIG_IGN, 0);
    runner = pthread_self();
    CHECK(pthread_create(&other, NULL, storm, NULL) == 0);
    caught = 0;
    alarms(50000);
    CHECK(ioctl(g.vcpu, KVM_RUN, 0) == -1 && errno == EINTR && caught >= 1);
    alarms(0);
    caught = 0;
    catch(SIGUSR1, count, 0);
    for (rounds = 0; rounds < 300; rounds++) {
        int before = caught;
        CHECK(ioctl(g.vcpu, KVM_RUN, 0) == -1 && errno == EINTR);
        CHECK(caught > before);
    }
    stop = 1;
    pthread_join(other, NULL);

    /* KVM_SET_SIGNAL_MASK: what it lets in ends the run and stays pending; no handler runs. */
    struct {
        struct kvm_signal_mask head;
        unsigned char set[8];
    } mask = {{.len = 8}, {0}};
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 1); /* its action is the default one, the end of the process */
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    CHECK(ioctl(g.vcpu, KVM_SET_SIGNAL_MASK, &mask) == 0);
    caught = 0;
    for (int i = 0; i < 2; i++) {
        int wanted = i ? SIGRTMIN + 1 : SIGUSR1;
        pthread_kill(pthread_self(), wanted);
        CHECK(ioctl(g.vcpu, KVM_RUN, 0) == -1 && errno == EINTR && g.run->exit_reason == KVM_EXIT_INTR);
        CHECK(caught == 0);
        CHECK(sigtimedwait(&set, NULL, &zero) == wanted);
        CHECK(sigtimedwait(&set, NULL, &zero) == -1 && errno == EAGAIN);
    }
    sigset_t now;
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &now) == 0 && sigismember(&now, SIGUSR1) && !sigismember(&now, SIGALRM));

    /* What it keeps out does not. */
    CHECK(pthread_sigmask(SIG_UNBLOCK, &set, NULL) == 0);
    memset(mask.set, 0xff, 8);
    mask.set[(SIGALRM - 1) / 8] &= (unsigned char)~(1 << (SIGALRM - 1) % 8);
    CHECK(ioctl(g.vcpu, KVM_SET_SIGNAL_MASK, &mask) == 0);
    caught = 0;
    pthread_kill(pthread_self(), SIGALRM);
    CHECK(caught == 1);
    child = fork();
    if (child == 0) {
        CHECK(read(go[0], &byte, 1) == 1);
        pause_ms(200);
        for (int i = 0; i < 4; i++) {
            kill(getppid(), SIGUSR1);
            pause_ms(5);
        }
        kill(getppid(), SIGALRM);
        _exit(0);
    }
    CHECK(write(go[1], &byte, 1) == 1);
    CHECK(ioctl(g.vcpu, KVM_RUN, 0) == -1 && errno == EINTR && caught >= 2);
    CHECK(waitpid(child, NULL, 0) == child);
    CHECK(ioctl(g.vcpu, KVM_SET_SIGNAL_MASK, NULL) == 0);
    puts("ok");
    return 0;
}
