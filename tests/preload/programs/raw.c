/* SPDX-License-Identifier: GPL-2.0-only */
/* An ioctl that no library sees. */
#include <fcntl.h>
#include <stdio.h>

int main(void)
{
    long result, fd = open("/dev/kvm", O_RDWR);

    __asm__ volatile("syscall" : "=a"(result) : "a"(16L), "D"(fd), "S"(0xAE00L), "d"(0L) : "rcx", "r11", "memory");
    printf("%ld\n", result);
    return 0;
}
