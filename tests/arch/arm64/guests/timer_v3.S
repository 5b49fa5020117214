/* SPDX-License-Identifier: GPL-2.0-only */
/* The physical timer through a GICv3. x28: the redistributor. */
    .include "guest.inc"
    begin
    mov     x20, #0x08000000
    load    x28, 0x080a0000
    mov     w0, #0x12
    str     w0, [x20]               // GICD_CTLR: ARE, group 1
    add     x1, x28, #0x10000
    mov     w0, #(1 << 30)
    str     w0, [x1, #0x100]        // GICR_ISENABLER0
    mrs     x0, S3_0_C12_C12_5      // ICC_SRE_EL1
    report  x0
    mov     x0, #0xf0
    msr     S3_0_C4_C6_0, x0        // ICC_PMR_EL1
    mov     x0, #1
    msr     S3_0_C12_C12_7, x0      // ICC_IGRPEN1_EL1
    mov     x19, #0
    msr     daifclr, #2
again:
    mrs     x0, cntpct_el0
    load    x1, 62500
    add     x0, x0, x1
    msr     cntp_cval_el0, x0
    mov     x0, #1
    msr     cntp_ctl_el0, x0
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
    mrs     x23, S3_0_C12_C12_0     // ICC_IAR1_EL1
    report  x23
    msr     cntp_ctl_el0, xzr
    msr     S3_0_C12_C12_1, x23     // ICC_EOIR1_EL1
    mov     x22, #1
    eret

sync:
    mrs     x0, esr_el1
    report  x0
    power_off
    make_vectors sync, irq
