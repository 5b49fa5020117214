/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Random ioctls: fuzz SEED ROUNDS CALLS THREADS REQUESTS, the last a file with one request number on each line.
 *
 * Each round makes VMs and vCPUs, lets the threads make so many calls on them with random and boundary arguments, closes
 * everything and looks what is left: as many descriptors as before, and not more memory from round to round.
 */
#include "kvm.h"

#include <dirent.h>
#include <stdint.h>
#include <sys/syscall.h>

#define RAM (1 << 20)
#define BUFFER 65536
#define MOST 12

static uint64_t requests[512];
static int nrequests, fds[3][MOST], nfds[3], calls;
static unsigned char *ram;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned long answered, refused;

static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void quiet(int sig) { (void)sig; }

static uint64_t word(uint64_t *s)
{
    static const uint64_t edges[] = {0, 1, 2, 3, 4, 8, 64, 255, 4095, 4096, 0x1000000, 0x7fffffff, 0x80000000, 0xffffffff,
                                     0x100000000, 0xfee00000, 0xfec00000, 1ull << 47, 1ull << 63, ~0ull};
    switch (next(s) % 6) {
    case 0:
        return edges[next(s) % (sizeof(edges) / sizeof(*edges))];
    case 1:
        return (uint64_t)ram + (next(s) % RAM & ~4095ull);
    case 2:
        return next(s);
    case 3:
        return next(s) % (RAM + 1) & ~4095ull;
    default:
        return next(s) % 16;
    }
}

static void add(int kind, int fd)
{
    pthread_mutex_lock(&lock);
    if (nfds[kind] < MOST)
        fds[kind][nfds[kind]++] = fd;
    else
        close(fd);
    pthread_mutex_unlock(&lock);
}

static int take(int kind, uint64_t *s)
{
    int fd = -1;
    pthread_mutex_lock(&lock);
    if (nfds[kind])
        fd = fds[kind][next(s) % (unsigned)nfds[kind]];
    pthread_mutex_unlock(&lock);
    return fd;
}

static void *run(void *argument)
{
    uint64_t s = (uint64_t)argument;
    /* Ends at a page that is not there. */
    unsigned char *buffer = mmap(NULL, BUFFER + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1};
    struct itimerspec every = {{0, 2000000}, {0, 2000000}};
    timer_t timer;

    CHECK(buffer != MAP_FAILED && mprotect(buffer + BUFFER, 4096, PROT_NONE) == 0);
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &every, NULL) == 0);
    for (int i = 0; i < calls; i++) {
        int kind = (int)(next(&s) % 3), fd = take(kind, &s), result;
        uint64_t request = requests[next(&s) % (unsigned)nrequests], arg = 0;
        size_t size = request >> 16 & 0x3fff, at;

        if (next(&s) % 20 == 0)
            request = KVMIO << 8 | next(&s) % 256 | (next(&s) & 0xffff) << 16;
        if (kind == 2 && next(&s) % 4 == 0)
            request = KVM_RUN;
        if (request == KVM_CREATE_VM && nfds[1] >= 3)
            continue;
        if (request == KVM_CREATE_VCPU && nfds[2] >= MOST)
            continue;
        for (size_t n = 0; n < size + 64 && n + 8 <= 4096; n += 8) {
            uint64_t w = word(&s);
            memcpy(buffer + n, &w, 8);
        }
        if (request == KVM_SET_USER_MEMORY_REGION && next(&s) % 2) {
            struct kvm_userspace_memory_region region = {
                .slot = (unsigned)(next(&s) % 4), .flags = (unsigned)(next(&s) % 4),
                .guest_phys_addr = next(&s) % 4 * (RAM / 2), .memory_size = next(&s) % 3 * (RAM / 2),
                .userspace_addr = (uint64_t)ram};
            memcpy(buffer, &region, sizeof(region));
        }
        at = BUFFER - (size ? size : 8);
        switch (request == KVM_RUN ? next(&s) % 16 ? 0 : 5 : next(&s) % 8) {
        case 0:
            arg = 0;
            break;
        case 1: /* up to the last byte, and one beyond it */
            memcpy(buffer + at, buffer, size);
            arg = (uint64_t)buffer + at + (next(&s) % 4 == 0);
            break;
        case 2:
            arg = word(&s);
            break;
        default:
            arg = size ? (uint64_t)buffer : word(&s);
        }
        if (request == KVM_CREATE_VCPU)
            arg %= 64;
        if (request == KVM_SET_SIGNAL_MASK && arg) {
            /* What ends a run is let in. */
            arg = (uint64_t)buffer;
            buffer[4 + (SIGUSR1 - 1) / 8] &= (unsigned char)~(1 << (SIGUSR1 - 1) % 8);
        }
        errno = 0;
        result = ioctl(fd, request, arg);
        if (result < 0 && errno) {
            CHECK(errno < 134);
            __atomic_fetch_add(&refused, 1, __ATOMIC_RELAXED);
            continue;
        }
        __atomic_fetch_add(&answered, 1, __ATOMIC_RELAXED);
        if (kind == 0 && request == KVM_CREATE_VM)
            add(1, result);
        else if (kind == 1 && request == KVM_CREATE_VCPU)
            add(2, result);
        else if (kind && request == KVM_GET_STATS_FD)
            close(result);
        else if (kind == 1 && request == KVM_CREATE_DEVICE)
            close(((struct kvm_create_device *)arg)->fd);
    }
    timer_delete(timer);
    munmap(buffer, BUFFER + 4096);
    return NULL;
}

static int open_fds(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

static long resident_kib(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    long size, resident;
    CHECK(fscanf(file, "%ld %ld", &size, &resident) == 2);
    fclose(file);
    return resident * 4;
}

int main(int argc, char **argv)
{
    uint64_t seed = strtoull(argv[1], NULL, 0) * 0x9E3779B97F4A7C15u + 1;
    int rounds = atoi(argv[2]), threads = atoi(argv[4]), before = 0;
    struct sigaction action = {.sa_handler = quiet};
    FILE *list = fopen(argv[5], "r");
    pthread_t running[16];
    long early = 0;

    CHECK(argc == 6 && list && threads <= 16);
    calls = atoi(argv[3]);
    while (nrequests < 512 && fscanf(list, "%lu", &requests[nrequests]) == 1)
        nrequests++;
    fclose(list);
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int round = 0; round < rounds; round++) {
        add(0, open("/dev/kvm", O_RDWR | O_CLOEXEC));
        CHECK(fds[0][0] >= 0);
        for (int vm = 0; vm < 2; vm++) {
            add(1, ioctl(fds[0][0], KVM_CREATE_VM, 0));
            if (vm)
                ioctl(fds[1][vm], KVM_CREATE_IRQCHIP, 0);
            for (int vcpu = 0; vcpu < 2; vcpu++)
                add(2, ioctl(fds[1][vm], KVM_CREATE_VCPU, vcpu));
        }
        for (int i = 0; i < threads; i++)
            CHECK(pthread_create(&running[i], NULL, run, (void *)next(&seed)) == 0);
        for (int i = 0; i < threads; i++)
            CHECK(pthread_join(running[i], NULL) == 0);
        for (int kind = 2; kind >= 0; kind--) {
            for (int i = 0; i < nfds[kind]; i++)
                CHECK(close(fds[kind][i]) == 0);
            nfds[kind] = 0;
        }
        if (round == 0)
            before = open_fds();
        if (round == rounds / 3)
            early = resident_kib();
        CHECK(open_fds() <= before);
    }
    printf("%lu answered, %lu refused, %ld KiB more\n", answered, refused, resident_kib() - early);
    return 0;
}
