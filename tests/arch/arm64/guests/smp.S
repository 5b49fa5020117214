/* SPDX-License-Identifier: GPL-2.0-only */
/* CPU 0 starts CPU 1 by PSCI, sends it an SGI through a GICv3, waits until it has switched itself off. */
    .include "guest.inc"
    begin
    mov     x20, #0x08000000
    mov     w0, #0x12
    str     w0, [x20]
    load    x0, 0xc4000003          // CPU_ON
    mov     x1, #1
    adr     x2, second
    mov     x3, #0x77
    hvc     #0
    report  x0
    adr     x10, mailbox
1:  ldar    x0, [x10]
    cbz     x0, 1b
    report  x0                      // the context, as CPU 1 found it in x0
    load    x0, 0xc4000003
    mov     x1, #1
    hvc     #0
    report  x0                      // already on
    load    x1, 0x03000002          // SGI 3 to Aff0 1
    msr     S3_0_C12_C11_5, x1
    add     x11, x10, #8
1:  ldar    x0, [x11]
    cbz     x0, 1b
    report  x0                      // what CPU 1 acknowledged
1:  load    x0, 0xc4000004          // AFFINITY_INFO
    mov     x1, #1
    mov     x2, #0
    hvc     #0
    cbz     x0, 1b
    report  x0                      // off
    load    x0, 0x84000009          // SYSTEM_RESET
    hvc     #0
    report  x0
    power_off

second:
    mov     x9, x0
    adr     x1, vectors
    msr     vbar_el1, x1
    mov     x1, #0xf0
    msr     S3_0_C4_C6_0, x1
    mov     x1, #1
    msr     S3_0_C12_C12_7, x1
    adr     x10, mailbox
    stlr    x9, [x10]
1:  wfi
    mrs     x1, S3_0_C12_C12_0      // masked in PSTATE, it wakes from WFI all the same
    cmp     x1, #1023
    b.eq    1b
    msr     S3_0_C12_C12_1, x1
    add     x11, x10, #8
    stlr    x1, [x11]
    psci    0x84000002              // CPU_OFF
    b       .
irq:
sync:
    b       .
    .balign 8
    .global mailbox
mailbox:
    .quad   0, 0
    make_vectors sync, irq
