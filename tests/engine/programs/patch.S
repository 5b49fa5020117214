// SPDX-License-Identifier: GPL-2.0-only
// Calls the function at x0 x1 times, adding what it returns to x10; between calls waits for a turn when x2 is set.
// x3: address of a flag another cpu sets; then one more call, with an ISB, and a hypercall.
1:  blr x0
    add x10, x10, x9
    subs x1, x1, #1
    b.ne 1b
    cbz x3, 3f
2:  blr x0
    ldr x4, [x3]
    cbz x4, 2b
    dmb ish
    isb
    mov x9, #0
    blr x0
3:  hvc #1
    .balign 4096
    .global function        // +0x1000
function:
    mov x9, #1
    ret
    .balign 4096
    .global patcher         // +0x2000: writes w1 at [x0], maintains the caches, sets the flag at x2
patcher:
    str w1, [x0]
    dc cvau, x0
    dsb ish
    ic ivau, x0
    dsb ish
    isb
    mov x3, #1
    str x3, [x2]
    hvc #2
    .balign 4096
    .global self            // +0x3000: patches its own function and calls it
self:
    blr x0
    mov x11, x9
    str w1, [x0]
    dc cvau, x0
    dsb ish
    cbz x2, 1f
    ic iallu
    b 2f
1:  ic ivau, x0
2:  dsb ish
    isb
    blr x0
    hvc #3
