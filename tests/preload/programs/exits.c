/* SPDX-License-Identifier: GPL-2.0-only */
/* One exit, and one request that is refused. */
#include "kvm.h"

int main(void)
{
    struct guest g = GUEST(OUT_FOREVER);
    struct kvm_regs regs;

    CHECK(ioctl(g.kvm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1);
    CHECK(ioctl(g.vcpu, KVM_GET_REGS, &regs) == 0 && regs.rax == 'A');
    CHECK(ioctl(g.vcpu, KVM_RUN, 0) == 0 && g.run->exit_reason == KVM_EXIT_IO);
    CHECK(ioctl(g.vcpu, KVM_RUN, 1) == -1 && errno == EINVAL);
    puts("ok");
    return 0;
}
