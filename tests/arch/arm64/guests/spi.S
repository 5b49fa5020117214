/* SPDX-License-Identifier: GPL-2.0-only */
/* Waits for SPI 40 of a GICv3 twice; rings a doorbell after each. Its line is level triggered. */
    .include "guest.inc"
    begin
    mov     x20, #0x08000000
    mov     w0, #0x12
    str     w0, [x20]
    mov     w0, #(1 << 8)
    str     w0, [x20, #0x104]       // GICD_ISENABLER1
    mov     x0, #0xf0
    msr     S3_0_C4_C6_0, x0
    mov     x0, #1
    msr     S3_0_C12_C12_7, x0
    mov     x26, #0x06000000
    mov     x19, #2
next:
    wfi
    mrs     x0, S3_0_C12_C12_0      // ICC_IAR1_EL1
    cmp     x0, #1023
    b.eq    next
    report  x0
    str     w19, [x26]              // the doorbell
    msr     S3_0_C12_C12_1, x0      // ICC_EOIR1_EL1
    subs    x19, x19, #1
    b.ne    next
    power_off
irq:
sync:
    b       .
    make_vectors sync, irq
