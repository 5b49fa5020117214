# SPDX-License-Identifier: GPL-2.0-only
"""GICv3's CPU interface: the ICC_* system registers, which trap to here.

One security state, so ICC_CTLR_EL1.CBPR works for the guest and group 0 is signalled as FIQ. ICC_SRE_EL1 reads as the
system register interface on and nothing else. Source: Arm IHI 0069, chapter 12.2; ``arch/arm64/kvm/vgic-sys-reg-v3.c``
for what userspace may set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from . import sysreg_ids as ids
from .vgic import INTID_SPURIOUS, Vgic, VgicCpu

if TYPE_CHECKING:
    from .sysregs import Reader, Writer
    from .vcpu import Arm64Vcpu

PRIBITS: Final = 5
IDBITS: Final = 0
"""16 bits of interrupt numbers."""
SRE: Final = 7
"""SRE, DFB, DIB: system registers only, no bypass."""
CTLR_CBPR: Final = 1 << 0
CTLR_EOIMODE: Final = 1 << 1
CTLR_SEIS: Final = 1 << 14
CTLR_A3V: Final = 1 << 15
CTLR_IDBITS: Final = 7 << 11
_CTLR_FIXED: Final = PRIBITS - 1 << 8 | IDBITS << 11

SGI_BROADCAST: Final = 1 << 40


def _locked(vcpu: Arm64Vcpu) -> tuple[Vgic, VgicCpu]:
    chip = vcpu.vm.vgic
    cpu = vcpu.vgic
    assert chip is not None and cpu is not None
    return chip.vgic, cpu


def _read_iar1(vcpu: Arm64Vcpu) -> int:
    vgic, cpu = _locked(vcpu)
    with vgic.lock:
        irq = cpu.best
        return vgic.acknowledge(cpu, irq) if irq is not None and irq.group else INTID_SPURIOUS


def _read_iar0(vcpu: Arm64Vcpu) -> int:
    vgic, cpu = _locked(vcpu)
    with vgic.lock:
        irq = cpu.best
        return vgic.acknowledge(cpu, irq) if irq is not None and not irq.group else INTID_SPURIOUS


def _write_eoir(vcpu: Arm64Vcpu, value: int) -> None:
    vgic, cpu = _locked(vcpu)
    intid = value & 0xFFFFFF
    if intid >= 1020:
        return
    with vgic.lock:
        acked = vgic.end(cpu, intid)
    if acked and vgic.on_ack is not None:
        vgic.on_ack(intid)


def _write_dir(vcpu: Arm64Vcpu, value: int) -> None:
    vgic, cpu = _locked(vcpu)
    intid = value & 0xFFFFFF
    if not cpu.eoimode or intid >= 1020:
        return
    with vgic.lock:
        acked = vgic.deactivate(cpu, intid)
    if acked and vgic.on_ack is not None:
        vgic.on_ack(intid)


def _read_hppir(vcpu: Arm64Vcpu, group: int) -> int:
    vgic, cpu = _locked(vcpu)
    with vgic.lock:
        irq = cpu.best
        return irq.intid if irq is not None and irq.group == group else INTID_SPURIOUS


def _read_rpr(vcpu: Arm64Vcpu) -> int:
    vgic, cpu = _locked(vcpu)
    with vgic.lock:
        return min(cpu.running_priority(), 0xFF)


def _send_sgi(vcpu: Arm64Vcpu, value: int, allow_group1: bool) -> None:
    vgic, sender = _locked(vcpu)
    intid = value >> 24 & 0xF
    with vgic.lock:
        if value & SGI_BROADCAST:
            targets = [cpu for cpu in vgic.vcpus if cpu is not sender]
        else:
            # Aff3 must be zero: no vCPU has another.
            if value >> 48 & 0xFF:
                return
            cluster = (value >> 32 & 0xFF) << 16 | (value >> 16 & 0xFF) << 8
            bits = value & 0xFFFF
            targets = []
            while bits:
                low = bits & -bits
                bits ^= low
                target = vgic.by_affinity.get(cluster | low.bit_length() - 1)
                if target is not None:
                    targets.append(target)
        for target in targets:
            if allow_group1 or not target.private[intid].group:
                vgic.send_sgi(None, target, intid)


def _read_ctlr(vcpu: Arm64Vcpu) -> int:
    cpu = _locked(vcpu)[1]
    return _CTLR_FIXED | (CTLR_CBPR if cpu.cbpr else 0) | (CTLR_EOIMODE if cpu.eoimode else 0)


def _write_ctlr(vcpu: Arm64Vcpu, value: int) -> None:
    vgic, cpu = _locked(vcpu)
    with vgic.lock:
        cpu.cbpr = value & CTLR_CBPR != 0
        cpu.eoimode = value & CTLR_EOIMODE != 0
        vgic.update(cpu)


def _write_pmr(vcpu: Arm64Vcpu, value: int) -> None:
    vgic, cpu = _locked(vcpu)
    with vgic.lock:
        cpu.pmr = value & 0xF8
        vgic.update(cpu)


def _write_bpr0(vcpu: Arm64Vcpu, value: int) -> None:
    _locked(vcpu)[1].bpr0 = max(value & 7, 2)


def _read_bpr1(vcpu: Arm64Vcpu) -> int:
    cpu = _locked(vcpu)[1]
    return min(cpu.bpr0 + 1, 7) if cpu.cbpr else cpu.bpr1


def _write_bpr1(vcpu: Arm64Vcpu, value: int) -> None:
    cpu = _locked(vcpu)[1]
    if not cpu.cbpr:
        cpu.bpr1 = max(value & 7, 3)


def _write_igrpen1(vcpu: Arm64Vcpu, value: int) -> None:
    vgic, cpu = _locked(vcpu)
    with vgic.lock:
        cpu.grpen1 = value & 1 != 0
        vgic.update(cpu)


def _write_igrpen0(vcpu: Arm64Vcpu, value: int) -> None:
    vgic, cpu = _locked(vcpu)
    with vgic.lock:
        cpu.grpen0 = value & 1 != 0
        vgic.update(cpu)


def _write_ap1r0(vcpu: Arm64Vcpu, value: int) -> None:
    vgic, cpu = _locked(vcpu)
    with vgic.lock:
        cpu.apr = value & 0xFFFFFFFF
        vgic.update(cpu)


def _write_ap0r0(vcpu: Arm64Vcpu, value: int) -> None:
    vgic, cpu = _locked(vcpu)
    with vgic.lock:
        cpu.ap0r = value & 0xFFFFFFFF
        vgic.update(cpu)


def _zero(vcpu: Arm64Vcpu) -> int:
    return 0


def _ignore(vcpu: Arm64Vcpu, value: int) -> None:
    pass


TRAPS: Final[dict[int, tuple[Reader | None, Writer | None]]] = {
    ids.ICC_PMR_EL1: (lambda vcpu: _locked(vcpu)[1].pmr, _write_pmr),
    ids.ICC_IAR0_EL1: (_read_iar0, None),
    ids.ICC_EOIR0_EL1: (None, _write_eoir),
    ids.ICC_HPPIR0_EL1: (lambda vcpu: _read_hppir(vcpu, 0), None),
    ids.ICC_BPR0_EL1: (lambda vcpu: _locked(vcpu)[1].bpr0, _write_bpr0),
    ids.ICC_AP0R0_EL1: (lambda vcpu: _locked(vcpu)[1].ap0r, _write_ap0r0),
    ids.ICC_AP1R0_EL1: (lambda vcpu: _locked(vcpu)[1].apr, _write_ap1r0),
    ids.ICC_DIR_EL1: (None, _write_dir),
    ids.ICC_RPR_EL1: (_read_rpr, None),
    ids.ICC_SGI1R_EL1: (None, lambda vcpu, value: _send_sgi(vcpu, value, True)),
    ids.ICC_ASGI1R_EL1: (None, lambda vcpu, value: _send_sgi(vcpu, value, False)),
    ids.ICC_SGI0R_EL1: (None, lambda vcpu, value: _send_sgi(vcpu, value, False)),
    ids.ICC_IAR1_EL1: (_read_iar1, None),
    ids.ICC_EOIR1_EL1: (None, _write_eoir),
    ids.ICC_HPPIR1_EL1: (lambda vcpu: _read_hppir(vcpu, 1), None),
    ids.ICC_BPR1_EL1: (_read_bpr1, _write_bpr1),
    ids.ICC_CTLR_EL1: (_read_ctlr, _write_ctlr),
    ids.ICC_SRE_EL1: (lambda vcpu: SRE, _ignore),
    ids.ICC_IGRPEN0_EL1: (lambda vcpu: int(_locked(vcpu)[1].grpen0), _write_igrpen0),
    ids.ICC_IGRPEN1_EL1: (lambda vcpu: int(_locked(vcpu)[1].grpen1), _write_igrpen1),
}
"""What the guest finds; with five bits of priority the other active-priority registers do not exist."""

_ABSENT: Final = (
    ids.ICC_AP0R1_EL1,
    ids.ICC_AP0R2_EL1,
    ids.ICC_AP0R3_EL1,
    ids.ICC_AP1R1_EL1,
    ids.ICC_AP1R2_EL1,
    ids.ICC_AP1R3_EL1,
)
SYSREGS: Final = (*TRAPS, *_ABSENT)
"""Everything that must trap, in every VM: without a GICv3 all of it is undefined."""


# Userspace: KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS.


def _user_write_ctlr(vcpu: Arm64Vcpu, value: int) -> None:
    if value >> 8 & 7 > PRIBITS - 1 or value & (CTLR_IDBITS | CTLR_A3V | CTLR_SEIS):
        raise ValueError("ICC_CTLR_EL1 names what this GIC does not have")
    _write_ctlr(vcpu, value)


def _user_write_sre(vcpu: Arm64Vcpu, value: int) -> None:
    if not value & 1:
        raise ValueError("ICC_SRE_EL1.SRE cannot be switched off")


USER: Final[dict[int, tuple[Reader, Writer]]] = {
    ids.ICC_PMR_EL1: (lambda vcpu: _locked(vcpu)[1].pmr, _write_pmr),
    ids.ICC_BPR0_EL1: (lambda vcpu: _locked(vcpu)[1].bpr0, _write_bpr0),
    ids.ICC_AP0R0_EL1: (lambda vcpu: _locked(vcpu)[1].ap0r, _write_ap0r0),
    ids.ICC_AP1R0_EL1: (lambda vcpu: _locked(vcpu)[1].apr, _write_ap1r0),
    ids.ICC_BPR1_EL1: (_read_bpr1, _write_bpr1),
    ids.ICC_CTLR_EL1: (_read_ctlr, _user_write_ctlr),
    ids.ICC_SRE_EL1: (lambda vcpu: SRE, _user_write_sre),
    ids.ICC_IGRPEN0_EL1: (lambda vcpu: int(_locked(vcpu)[1].grpen0), _write_igrpen0),
    ids.ICC_IGRPEN1_EL1: (lambda vcpu: int(_locked(vcpu)[1].grpen1), _write_igrpen1),
}
