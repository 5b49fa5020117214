/* SPDX-License-Identifier: GPL-2.0-only */
/* What a C program pays: the first open, small ioctls, a port's exit and back. Under exec, or on the machine's KVM. */
#include "kvm.h"

#define ROUNDS 100000
/* mov $0x3f8,%dx; in (%dx),%al; jmp to the in */
#define IN_FOREVER "\xba\xf8\x03\xec\xeb\xfd"

static void told(const char *what, double begin)
{
    printf("%s: %.2f us\n", what, (seconds() - begin) / ROUNDS * 1e6);
}

static void ports(const char *what, struct guest g, int direction)
{
    volatile unsigned char seen = 0;

    CHECK(ioctl(g.vcpu, KVM_RUN, 0) == 0);
    double begin = seconds();
    for (int i = 0; i < ROUNDS; i++) {
        unsigned char *data = (unsigned char *)g.run + g.run->io.data_offset;
        if (direction == KVM_EXIT_IO_IN)
            *data = (unsigned char)i;
        else
            seen = *data;
        CHECK(ioctl(g.vcpu, KVM_RUN, 0) == 0 && g.run->exit_reason == KVM_EXIT_IO);
        CHECK(g.run->io.direction == direction);
    }
    told(what, begin);
    (void)seen;
}

int main(void)
{
    struct kvm_regs regs;
    double begin = seconds();
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

    CHECK(kvm >= 0);
    printf("first open: %.1f ms\n", (seconds() - begin) * 1e3);
    begin = seconds();
    for (int i = 0; i < ROUNDS; i++)
        CHECK(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1);
    told("KVM_CHECK_EXTENSION", begin);
    struct guest g = GUEST(OUT_FOREVER);
    begin = seconds();
    for (int i = 0; i < ROUNDS; i++)
        CHECK(ioctl(g.vcpu, KVM_GET_REGS, &regs) == 0 && regs.rip == 0x1000);
    told("KVM_GET_REGS", begin);
    ports("port write", g, KVM_EXIT_IO_OUT);
    ports("port read", GUEST(IN_FOREVER), KVM_EXIT_IO_IN);
    return 0;
}
