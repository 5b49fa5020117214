/* SPDX-License-Identifier: GPL-2.0-only */
/* Threads, forks, cancellation, and the process's end in the middle of KVM_RUN. */
#include "kvm.h"

static struct guest g;
static volatile int caught;

static void count(int sig) { (void)sig, caught++; }

static void *run_once(void *result)
{
    *(int *)result = ioctl(g.vcpu, KVM_RUN, 0) ? errno : 0;
    return NULL;
}

static void *run_async(void *unused)
{
    (void)unused;
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    for (;;)
        ioctl(g.vcpu, KVM_RUN, 0);
    return NULL;
}

static void *run_deferred(void *unused)
{
    (void)unused;
    while (ioctl(g.vcpu, KVM_RUN, 0) == 0 || errno == EINTR)
        pthread_testcancel();
    return NULL;
}

static void *short_lived(void *unused)
{
    (void)unused;
    CHECK(ioctl(g.vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1);
    return NULL;
}

static void cancel(void *(*body)(void *))
{
    pthread_t thread;
    void *end;

    CHECK(pthread_create(&thread, NULL, body, NULL) == 0);
    pause_ms(30);
    CHECK(pthread_cancel(thread) == 0);
    CHECK(pthread_join(thread, &end) == 0 && end == PTHREAD_CANCELED);
}

static int in_child(void)
{
    /* What was inherited is another process's; a new one works, also in threads. */
    CHECK(ioctl(g.vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == -1 && errno == EIO);
    CHECK(ioctl(g.vcpu, KVM_RUN, 0) == -1 && errno == EIO);
    CHECK(close(g.vcpu) == 0 && close(g.vm) == 0);
    g = GUEST(OUT_FOREVER);
    pthread_t thread;
    int result = -1;
    CHECK(pthread_create(&thread, NULL, run_once, &result) == 0 && pthread_join(thread, NULL) == 0);
    CHECK(result == 0 && g.run->exit_reason == KVM_EXIT_IO);
    return 0;
}

int main(int argc, char **argv)
{
    pthread_attr_t small;
    pthread_t thread, threads[8];
    int result = -1, status;

    g = GUEST(SPIN);
    if (argc > 1) {
        /* The end of the process while a thread is in the guest. */
        CHECK(pthread_create(&thread, NULL, run_once, &result) == 0);
        pause_ms(30);
        if (!strcmp(argv[1], "exit"))
            exit(7);
        if (!strcmp(argv[1], "_exit"))
            _exit(7);
        if (!strcmp(argv[1], "kill"))
            kill(getpid(), SIGTERM);
        if (!strcmp(argv[1], "abort"))
            abort();
        if (!strcmp(argv[1], "exec"))
            execl("/bin/sh", "sh", "-c", "exit 7", NULL);
        pthread_exit(NULL); /* the other goes on until it is killed */
    }

    /* Small stacks, many short lives. */
    CHECK(pthread_attr_init(&small) == 0 && pthread_attr_setstacksize(&small, 64 * 1024) == 0);
    for (int i = 0; i < 25; i++) {
        for (int j = 0; j < 8; j++)
            CHECK(pthread_create(&threads[j], &small, short_lived, NULL) == 0);
        for (int j = 0; j < 8; j++)
            CHECK(pthread_join(threads[j], NULL) == 0);
    }

    cancel(run_async);
    cancel(run_deferred);

    /* The vCPU is as it was: it runs, and a signal to its thread ends it. */
    struct sigaction action = {.sa_handler = count};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    CHECK(pthread_create(&thread, NULL, run_once, &result) == 0);
    pause_ms(20);

    /* Fork while it runs. */
    for (int i = 0; i < 5; i++) {
        pid_t child = fork();
        if (child == 0)
            _exit(in_child());
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    CHECK(pthread_kill(thread, SIGUSR1) == 0 && pthread_join(thread, NULL) == 0);
    CHECK(result == EINTR && caught == 1);

    /* A grandchild, and a shell in between. */
    CHECK(system("exit 3") == 3 << 8);
    pid_t child = fork();
    if (child == 0) {
        child = fork();
        if (child == 0)
            _exit(in_child());
        CHECK(waitpid(child, &status, 0) == child);
        _exit(status != 0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    puts("ok");
    return 0;
}
