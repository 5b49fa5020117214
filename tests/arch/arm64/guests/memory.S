/* SPDX-License-Identifier: GPL-2.0-only */
/* Reads commands from the port: an address to write 8 bytes to, or 1 for: read what follows. */
    .include "guest.inc"
    mov     x27, #0x07000000
next:
    ldr     x0, [x27]
    cbz     x0, done
    cmp     x0, #1
    b.eq    read
    str     x0, [x0]
    b       next
read:
    ldr     x1, [x27]
    ldr     x2, [x1]
    report  x2
    b       next
done:
    power_off
