// SPDX-License-Identifier: GPL-2.0-only
// Installs vectors; each exception leaves ESR, FAR and ELR in x20-x22 and hypercalls with the vector's number.
    adr x0, vectors
    msr vbar_el1, x0
    isb
    cbz x1, 1f
    br x1
1:  hvc #0x100
    .global irqs
irqs:
    msr daifclr, #2
    mov x19, #0
2:  add x19, x19, #1
    b 2b
    .balign 2048
vectors:
    .rept 16
    .balign 128
    mrs x20, esr_el1
    mrs x21, far_el1
    mrs x22, elr_el1
    mrs x23, spsr_el1
    adr x24, .
    ubfx x24, x24, #7, #4
    hvc #0x200
    eret
    .endr
    .balign 2048
    .global undefined
undefined:                  // +0x1000
    .word 0
    .balign 128
    svc #3                  // +0x1080
    .balign 128
    ldr x2, =0x9000000      // +0x1100: device read
    ldr x3, [x2]
    hvc #3
    .balign 128
    ldr x2, =0x9000000      // +0x1180: jump to nowhere
    br x2
