# SPDX-License-Identifier: GPL-2.0-only
"""A VM to create vCPUs in, with its interrupt controller, and a small guest that runs to its end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

from anykvm.api import Device, Exit, GuestMemory, Kvm, MmioRead, MmioWrite, PioIn, PioOut, SystemEvent, Vcpu, Vm
from anykvm.uapi import arm64 as A
from anykvm.uapi import x86_msr as X
from anykvm.uapi.common import KVM_DEV_TYPE_ARM_VGIC_V3
from anykvm.uapi.x86_hyperv import HV_X64_MSR_TIME_REF_COUNT, HV_X64_MSR_TSC_FREQUENCY, HV_X64_MSR_VP_RUNTIME

from .backend import Flow, FlowBackend

_RAM: Final = 1 << 20
_BASE: Final = {"arm64": 0x4000_0000, "x86": 0}
_ENTRY: Final = 0x1000
_GIC_DISTRIBUTOR: Final = 0x0800_0000
_GIC_REDISTRIBUTORS: Final = 0x080A_0000
_UNUSED_BY_GUESTS: Final = 0xFFFB_D000
_END_PORT: Final = 0xF4
_ANSWER: Final = b"\x5a"

_ARM64_GUEST: Final = bytes.fromhex(
    "0120a1d2 0200a8d2 42084091 000080d2"  # x1 = a device; x2 = RAM + 0x2000; x0 = 0
    "830c80d2 0000038b 630400d1 c3ffffb5"  # x0 = 100 + 99 + ... + 1
    "400000f9 a40038d5 440400f9 20000039"  # store x0; store MPIDR_EL1; write a byte to the device
    "250440b9 451000b9"  # read a word of the device; store it
    "00018052 0080b072 020000d4"  # PSCI SYSTEM_OFF
)
_X86_GUEST: Final = bytes.fromhex(
    "b96400 31c0 01c8 e2fc a30020"  # ax = 100 + 99 + ... + 1; store it
    "bae900 ee ec a20220"  # write a byte to port 0xe9, read one, store it
    "d9eb dd1e0820"  # store pi
    "6631c0 0fa2 66891e1020"  # store what CPUID leaf 0 has in ebx
    "baf400 ef f4"  # write to port 0xf4: the end
)
_GUESTS: Final = {"arm64": _ARM64_GUEST, "x86": _X86_GUEST}


class Rig:
    """One VM of one architecture, whose vCPUs are created by one flow."""

    def __init__(self, kvm: Kvm, backend: FlowBackend, vm: Vm) -> None:
        self.arch = backend.arch
        self.kvm = kvm
        self.backend = backend
        self.services = backend.traced
        self.vm = vm
        self.core = backend.vm_of(vm.fd)
        self._gic = self._make_irqchip()

    def _make_irqchip(self) -> Device | None:
        if self.arch == "x86":
            self.vm.set_tss_addr(_UNUSED_BY_GUESTS)
            self.vm.create_irqchip()
            return None
        gic = self.vm.create_device(KVM_DEV_TYPE_ARM_VGIC_V3)
        gic.set_attr(A.KVM_DEV_ARM_VGIC_GRP_ADDR, A.KVM_VGIC_V3_ADDR_TYPE_DIST, _GIC_DISTRIBUTOR)
        gic.set_attr(A.KVM_DEV_ARM_VGIC_GRP_ADDR, A.KVM_VGIC_V3_ADDR_TYPE_REDIST, _GIC_REDISTRIBUTORS)
        return gic

    def close(self) -> None:
        """Close what the typed API's contexts do not."""
        if self._gic is not None:
            self._gic.close()

    def counters(self) -> dict[str, int]:
        """What a failed creation must leave as it was, besides the ledger."""
        core = self.core
        return {
            "created_vcpus": core.created_vcpus,
            "online_vcpus": core.online_vcpus,
            "vcpu_array": len(core.vcpu_array),
            "references to the VM": core.references,
            "file descriptors": len(self.backend.files.files()),
            "devices on the MMIO bus": len(core.mmio_bus),
        }

    def initialise(self, vcpu: Vcpu) -> None:
        """What userspace does with a new vCPU before it can be used."""
        if self.arch == "arm64":
            vcpu.init(self.vm.preferred_target(), [A.KVM_ARM_VCPU_PSCI_0_2])
        else:
            vcpu.set_cpuid2(self.kvm.get_supported_cpuid())

    def state(self, vcpu: Vcpu) -> dict[str, Any]:
        """Everything userspace can read of a vCPU that does not go with time."""
        made: dict[str, Any] = {"mp_state": vcpu.mp_state}
        if self.arch == "arm64":
            # The counters go with time.
            passing = {A.KVM_REG_ARM_TIMER_CNT, A.KVM_REG_ARM_PTIMER_CNT}
            made["vcpu_events"] = bytes(vcpu.events).hex()
            return made | {f"{one:#x}": f"{vcpu.get_one_reg(one):#x}" for one in vcpu.reg_list() if one not in passing}
        for name in ("regs", "sregs", "fpu", "xsave", "xcrs", "debugregs", "lapic", "vcpu_events"):
            made[name] = bytes(getattr(vcpu, f"get_{name}")()).hex()
        # The host's rate too: each process measures it.
        passing = {X.MSR_IA32_TSC, HV_X64_MSR_VP_RUNTIME, HV_X64_MSR_TIME_REF_COUNT, HV_X64_MSR_TSC_FREQUENCY}
        wanted = [one for one in self.kvm.get_msr_index_list() if one not in passing]
        return made | {f"msr {one:#x}": f"{value:#x}" for one, value in vcpu.get_msrs(wanted).items()}

    def page(self, vcpu: Vcpu) -> str:
        """A hash of the pages that userspace shares with a vCPU."""
        return hashlib.sha256(self.backend.mmap(vcpu.fd, self.kvm.vcpu_mmap_size())).hexdigest()[:16]

    def run(self, vcpu: Vcpu) -> dict[str, Any]:
        """Run the guest to its end: its exits, and the RAM it leaves."""
        base = _BASE[self.arch]
        if self._gic is not None:
            self._gic.set_attr(A.KVM_DEV_ARM_VGIC_GRP_CTRL, A.KVM_DEV_ARM_VGIC_CTRL_INIT, None)
        with GuestMemory(_RAM) as ram:
            ram.write(_ENTRY, _GUESTS[self.arch])
            self.vm.set_user_memory_region(0, base, ram)
            self._start(vcpu, base + _ENTRY)
            exits = list(_exits(vcpu))
            left = hashlib.sha256(ram.read(0, _RAM)).hexdigest()[:16]
            self.vm.set_user_memory_region(0, 0, None)
        return {"exits": exits, "ram": left}

    def _start(self, vcpu: Vcpu, entry: int) -> None:
        if self.arch == "arm64":
            vcpu.set_one_reg(A.REG_PC, entry)
            return
        sregs = vcpu.get_sregs()
        for name in ("cs", "ds"):
            segment = getattr(sregs, name)
            segment.base = segment.selector = 0
        vcpu.set_sregs(sregs)
        regs = vcpu.get_regs()
        regs.rip = entry
        vcpu.set_regs(regs)


def _exits(vcpu: Vcpu) -> Iterator[str]:
    while True:
        found: Exit = vcpu.run()
        match found:
            case SystemEvent():
                yield str(found)
                return
            case PioOut(port=port) if port == _END_PORT:
                yield str(found)
                return
            case MmioWrite() | PioOut():
                yield str(found)
            case MmioRead() | PioIn():
                found.reply(_ANSWER * found.size)
                yield str(found)
            case _:
                raise AssertionError(f"the lab's guest ended with {found}")


@contextmanager
def rig(arch: str, flow: Flow) -> Iterator[Rig]:
    """Make a VM with an interrupt controller, and nothing else; what a flow leaves behind is given back to the host."""
    backend = FlowBackend(arch, flow)
    try:
        with Kvm(backend) as kvm, kvm.create_vm() as vm, closing(Rig(kvm, backend, vm)) as made:
            yield made
    finally:
        backend.close_all()
        backend.services.close()
