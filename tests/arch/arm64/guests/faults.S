/* SPDX-License-Identifier: GPL-2.0-only */
/* Exceptions KVM injects, and those it must leave alone. Each reports ESR, FAR and the distance from its instruction. */
    .include "guest.inc"
    begin
    adr     x19, 1f
1:  mrs     x0, S3_0_C12_C12_0      // ICC_IAR1_EL1 without a GICv3: undefined
    adr     x19, 1f
1:  msr     S3_0_C0_C4_0, x0        // ID_AA64PFR0_EL1 is read-only
    load    x1, 0x06000008
    adr     x19, 1f
1:  ldr     w0, [x1]                // no device: userspace injects an abort
    load    x2, 0x50000000
    adr     x30, back
    mov     x19, x2
    br      x2                      // no memory: an instruction abort, from which the handler comes back
back:
    adr     x1, user
    msr     elr_el1, x1
    msr     spsr_el1, xzr
    eret
user:
    adr     x19, 1f
1:  mrs     x0, S3_0_C0_C4_0        // an identification register at EL0: undefined
    adr     x19, 1f
1:  svc     #5
    b       .

sync:
    mrs     x3, esr_el1
    report  x3
    mrs     x4, far_el1
    report  x4
    mrs     x5, elr_el1
    sub     x6, x5, x19
    report  x6
    lsr     x3, x3, #26
    cmp     x3, #0x15               // SVC: the end
    b.eq    end
    add     x5, x5, #4
    cmp     x3, #0x21
    csel    x5, x30, x5, eq
    msr     elr_el1, x5
    eret
irq:
    b       .
end:
    power_off
    make_vectors sync, irq
