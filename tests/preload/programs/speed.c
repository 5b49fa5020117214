/* SPDX-License-Identifier: GPL-2.0-only */
/* What a C program pays: the first open, a small ioctl, a port's exit and back. Under exec, or on the machine's KVM. */
#include "kvm.h"

#define ROUNDS 100000

int main(void)
{
    double begin = seconds();
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

    CHECK(kvm >= 0);
    printf("first open: %.1f ms\n", (seconds() - begin) * 1e3);
    begin = seconds();
    for (int i = 0; i < ROUNDS; i++)
        CHECK(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1);
    printf("ioctl: %.2f us\n", (seconds() - begin) / ROUNDS * 1e6);
    struct guest g = GUEST(OUT_FOREVER);
    CHECK(ioctl(g.vcpu, KVM_RUN, 0) == 0);
    begin = seconds();
    for (int i = 0; i < ROUNDS; i++)
        CHECK(ioctl(g.vcpu, KVM_RUN, 0) == 0 && g.run->exit_reason == KVM_EXIT_IO);
    printf("port exit: %.2f us\n", (seconds() - begin) / ROUNDS * 1e6);
    return 0;
}
