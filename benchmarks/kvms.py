# SPDX-License-Identifier: GPL-2.0-only
"""The KVMs that answer the typed API: anykvm's own for arm64, and the machine's /dev/kvm; and a first guest on each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from anykvm.api import BackendUnavailable, GuestMemory, Kvm, Vcpu, Vm
from anykvm.host import host_arch
from anykvm.uapi import arm64, common

from .context import Context
from .measure import OURS, Row, Samples, Target, alternate, rows

Say = Callable[[str], None]

_RAM: Final = 0x4000_0000  # arm64: where the program is
_PAGE: Final = 4096
_MMIO: Final = 0x0900_0000  # arm64: where no memory is
_REDISTRIBUTOR_BYTES: Final = 0x2_0000  # of one vCPU (Documentation/virt/kvm/devices/arm-vgic-v3.rst)
_GIC_DISTRIBUTOR: Final = 0x0800_0000
_GIC_REDISTRIBUTORS: Final = 0x1000_0000

# Endless, with one access to a device in each round. x1: the device.
_ARM64_PROGRAMS: Final = {
    "write": bytes.fromhex("20000039 ffffff17"),  # 1: strb w0, [x1]; b 1b
    "read": bytes.fromhex("20004039 ffffff17"),  # 1: ldrb w0, [x1]; b 1b
}
# In real mode, ds 0: no memory is at 0x8000.
_X86_PROGRAMS: Final = {
    "write": bytes.fromhex("a20080 ebfb"),  # 1: mov [0x8000], al; jmp 1b
    "read": bytes.fromhex("a00080 ebfb"),  # 1: mov al, [0x8000]; jmp 1b
    "out": bytes.fromhex("e680 ebfc"),  # 1: out 0x80, al; jmp 1b
    "in": bytes.fromhex("e480 ebfc"),  # 1: in al, 0x80; jmp 1b
}
_RESET_PAGE: Final = 0xFFFF_F000  # the page x86 CPUs start in, at offset 0xff0


@dataclass(frozen=True)
class Side:
    """One KVM."""

    name: str
    backend: str
    arch: str

    @contextmanager
    def vm(self) -> Iterator[Vm]:
        """A VM with nothing in it."""
        with Kvm(self.backend, arch=self.arch) as kvm, kvm.create_vm() as vm:
            yield vm

    @contextmanager
    def looping(self, access: str) -> Iterator[Vcpu]:
        """A vCPU about to run an endless loop of accesses to a device: "read", "write", on x86 also "in" and "out"."""
        with ExitStack() as stack:
            memory = stack.enter_context(GuestMemory(_PAGE))
            vm = stack.enter_context(self.vm())
            vcpu = stack.enter_context(vm.create_vcpu(0))
            if self.arch == "arm64":
                memory.write(0, _ARM64_PROGRAMS[access])
                vm.set_user_memory_region(0, _RAM, memory)
                vcpu.init(vm.preferred_target())
                vcpu.set_one_reg(arm64.REG_PC, _RAM)
                vcpu.set_one_reg(arm64.x_reg(1), _MMIO)
            else:
                memory.write(0xFF0, _X86_PROGRAMS[access])
                vm.set_user_memory_region(0, _RESET_PAGE, memory)
            yield vcpu


def x86_program(access: str) -> bytes:
    """The loop of an ``access``, for offset 0xff0 of the last page below 4 GiB."""
    return _X86_PROGRAMS[access]


def sides(say: Say, arch: str) -> list[Side]:
    """anykvm first; the machine's own /dev/kvm if it can be used, whatever its architecture."""
    found = [Side(OURS, "software", arch)]
    arch = host_arch()
    try:
        with Kvm("host", arch=arch):
            found.append(Side(f"/dev/kvm {arch}", "host", arch))
    except (BackendUnavailable, OSError) as error:
        say(f"no /dev/kvm to compare with: {error}")
    return found


def create_gic(vm: Vm, vcpus: int) -> None:
    """A GICv3 with room for `vcpus`; before the vCPUs, as VMMs do."""
    gic = vm.create_device(common.KVM_DEV_TYPE_ARM_VGIC_V3)
    group = arm64.KVM_DEV_ARM_VGIC_GRP_ADDR
    gic.set_attr(group, arm64.KVM_VGIC_V3_ADDR_TYPE_DIST, _GIC_DISTRIBUTOR)
    # The region that an address alone describes has room for all of them, at 128 KiB each.
    assert _GIC_REDISTRIBUTORS + vcpus * _REDISTRIBUTOR_BYTES < _RAM
    gic.set_attr(group, arm64.KVM_VGIC_V3_ADDR_TYPE_REDIST, _GIC_REDISTRIBUTORS)


def compare(
    context: Context, measure: Callable[[Side], dict[str, float]], *, unit: str, targets: dict[str, Target]
) -> list[Row]:
    """Let the KVMs take turns; rows with the machine's own as the peer, of what anykvm has on the architecture."""
    say = context.say
    found: Sequence[Side] = sides(say, context.arch)

    def told(side: Side) -> dict[str, float]:
        numbers = measure(side)
        say(f"{side.name}: " + ", ".join(f"{name} {number:.2f}" for name, number in numbers.items()))
        return numbers

    samples: Samples = alternate(found, context.repetitions, told)
    made = rows(samples, [side.name for side in found], unit=unit, targets=targets)
    return [row for row in made if row.ours]
