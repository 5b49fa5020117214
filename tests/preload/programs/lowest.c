/* SPDX-License-Identifier: GPL-2.0-only */
/* Which descriptor the first open gets. */
#include <fcntl.h>
#include <stdio.h>

int main(void)
{
    printf("%d\n", open("/dev/kvm", O_RDWR));
    return 0;
}
