// SPDX-License-Identifier: GPL-2.0-only
// One of each event, in order.
    ldr x1, =0x9000000
    mov w0, #5
    str w0, [x1]
    ldr w2, [x1, #4]
    ldr x3, [x1, #8]
    ldrb w4, [x1, #3]
    strh w0, [x1, #6]
    ldp w5, w6, [x1, #16]
    mov x7, #0x1234
    msr cntv_ctl_el0, x7
    mrs x8, cntv_ctl_el0
    mrs x9, ctr_el0
    mrs x10, mpidr_el1
    hvc #7
    wfi
    smc #9
spin:
    b spin
