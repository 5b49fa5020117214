/* SPDX-License-Identifier: GPL-2.0-only */
/* What the test programs share: a VM with one page of code at 0x1000, and a way to fail with a line. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition)                                                                                              \
    do {                                                                                                              \
        if (!(condition)) {                                                                                           \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, strerror(errno));                    \
            _exit(1);                                                                                                 \
        }                                                                                                             \
    } while (0)

/* mov $0x3f8,%dx; out %al,(%dx); jmp . */
#define OUT_THEN_SPIN "\xba\xf8\x03\xee\xeb\xfe"
/* jmp . */
#define SPIN "\xeb\xfe"
/* mov $0x3f8,%dx; out %al,(%dx); jmp to the out */
#define OUT_FOREVER "\xba\xf8\x03\xee\xeb\xfd"

struct guest {
    int kvm, vm, vcpu;
    struct kvm_run *run;
    unsigned char *memory;
};

static inline struct guest guest_make(const char *code, size_t size)
{
    struct guest g;
    struct kvm_sregs sregs;
    struct kvm_regs regs = {.rip = 0x1000, .rflags = 2, .rax = 'A'};

    CHECK((g.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC)) >= 0);
    CHECK((g.vm = ioctl(g.kvm, KVM_CREATE_VM, 0)) >= 0);
    g.memory = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(g.memory != MAP_FAILED);
    memcpy(g.memory, code, size);
    struct kvm_userspace_memory_region region = {
        .guest_phys_addr = 0x1000, .memory_size = 0x1000, .userspace_addr = (unsigned long)g.memory};
    CHECK(ioctl(g.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
    CHECK((g.vcpu = ioctl(g.vm, KVM_CREATE_VCPU, 0)) >= 0);
    g.run = mmap(NULL, (size_t)ioctl(g.kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, g.vcpu, 0);
    CHECK(g.run != MAP_FAILED);
    CHECK(ioctl(g.vcpu, KVM_GET_SREGS, &sregs) == 0);
    sregs.cs.base = sregs.cs.selector = 0;
    CHECK(ioctl(g.vcpu, KVM_SET_SREGS, &sregs) == 0);
    CHECK(ioctl(g.vcpu, KVM_SET_REGS, &regs) == 0);
    return g;
}
#define GUEST(code) guest_make(code, sizeof(code) - 1)

static inline double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static inline void pause_ms(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&t, &t))
        ;
}
