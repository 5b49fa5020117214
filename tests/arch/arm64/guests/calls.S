/* SPDX-License-Identifier: GPL-2.0-only */
/* Makes the call in the words at x1 (function, three arguments) by HVC, reports x0 to x3, until a function of zero. */
    .include "guest.inc"
    mov     x27, #0x07000000
    adr     x19, table
next:
    ldp     x0, x1, [x19], #16
    ldp     x2, x3, [x19], #16
    cbz     x0, done
    hvc     #0
    report  x0
    report  x1
    report  x2
    report  x3
    b       next
done:
    ldp     x0, x1, [x19], #16
    smc     #0
    report  x0
    mov     x0, #0
    smc     #1
    report  x0
    power_off
    .balign 16
table:
