/* SPDX-License-Identifier: GPL-2.0-only */
/* The virtual timer through a GICv2: three interrupts, each waited for in WFI. */
    .include "guest.inc"
    begin
    mov     x20, #0x08000000
    mov     x21, #0x08010000
    mov     w0, #1
    str     w0, [x20]               // GICD_CTLR
    mov     w0, #(1 << 27)
    str     w0, [x20, #0x100]       // GICD_ISENABLER0
    mov     w0, #0xf0
    str     w0, [x21, #4]           // GICC_PMR
    mov     w0, #1
    str     w0, [x21]               // GICC_CTLR
    mov     x19, #0
    msr     daifclr, #2
again:
    load    x0, 62500               // 1 ms
    msr     cntv_tval_el0, x0
    mov     x0, #1
    msr     cntv_ctl_el0, x0
1:  msr     daifset, #2             // masked: the interrupt cannot come between the look and the sleep
    cbnz    x22, 2f
    wfi
    msr     daifclr, #2
    isb
    b       1b
2:  msr     daifclr, #2
    mov     x22, #0
    add     x19, x19, #1
    cmp     x19, #3
    b.ne    again
    report  x19
    power_off

irq:
    ldr     w23, [x21, #0xc]        // GICC_IAR
    report  x23
    mrs     x24, cntv_ctl_el0
    report  x24
    msr     cntv_ctl_el0, xzr
    str     w23, [x21, #0x10]       // GICC_EOIR
    mov     x22, #1
    eret

sync:
    mrs     x0, esr_el1
    report  x0
    power_off
    make_vectors sync, irq
