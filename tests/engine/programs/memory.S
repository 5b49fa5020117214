// SPDX-License-Identifier: GPL-2.0-only
// x0 address, x1 count, x2 stride: stores the count down at each step; then reads x3 into x4.
1:  str x1, [x0]
    add x0, x0, x2
    subs x1, x1, #1
    b.ne 1b
    cbz x3, 2f
    ldr x4, [x3]
2:  hvc #1
    b 1b
