/* SPDX-License-Identifier: GPL-2.0-only */
/* Counts for ever at x1, without a lock. */
1:  ldr     x0, [x1]
    add     x0, x0, #1
    str     x0, [x1]
    b       1b
