# SPDX-License-Identifier: GPL-2.0-only
"""GICv3 redistributors: the regions userspace gives for them and each vCPU's place in one.

A region either has a fixed number of places (KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION) or is the only one and grows with the
vCPUs (KVM_VGIC_V3_ADDR_TYPE_REDIST). vCPUs made before the region get their place when it is set. Called with the VM's
slots_lock held, as the in-kernel bus needs.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from anykvm.uapi.arm64 import KVM_VGIC_V3_DIST_SIZE, KVM_VGIC_V3_REDIST_SIZE

from . import vgic_v3

if TYPE_CHECKING:
    from anykvm.virt.vcpu import Vcpu

    from .irqchip import InKernelVgic
    from .vgic import Vgic, VgicCpu


class Region:
    """A range of redistributors; ``count`` 0 is as many as there are vCPUs."""

    __slots__ = ("base", "count", "cpus", "index")

    def __init__(self, index: int, base: int, count: int) -> None:
        self.index = index
        self.base = base
        self.count = count
        self.cpus: list[VgicCpu] = []

    def size(self) -> int:
        """Bytes it takes now."""
        return (self.count or len(self.cpus)) * KVM_VGIC_V3_REDIST_SIZE


class RedistributorIo:
    """One redistributor on the in-kernel bus; every vCPU may access every one."""

    __slots__ = ("base", "cpu", "vgic")

    def __init__(self, vgic: Vgic, cpu: VgicCpu, base: int) -> None:
        self.vgic = vgic
        self.cpu = cpu
        self.base = base

    def read(self, vcpu: Vcpu, addr: int, size: int) -> int:
        """A guest's read."""
        return vgic_v3.redist_read(self.vgic, self.cpu, addr - self.base, size)

    def write(self, vcpu: Vcpu, addr: int, size: int, value: int) -> bool:
        """A guest's write."""
        vgic_v3.redist_write(self.vgic, self.cpu, addr - self.base, size, value)
        return True


class Redistributors:
    """All regions of a VM, by index."""

    def __init__(self, chip: InKernelVgic) -> None:
        self._chip = chip
        self.regions: list[Region] = []
        self._io: dict[VgicCpu, RedistributorIo] = {}

    def add_region(self, index: int, base: int, count: int) -> None:
        """Set a region: EINVAL for a wrong index, overlap or mixture of kinds, EEXIST for a second one, E2BIG."""
        chip = self._chip
        size = (count or chip.arch.vm.online_vcpus) * KVM_VGIC_V3_REDIST_SIZE
        if base + size > 1 << 64:
            raise OSError(errno.EINVAL, f"redistributor region {base:#x} is beyond all addresses")
        if not self.regions:
            if index:
                raise OSError(errno.EINVAL, "the first redistributor region has index 0")
        else:
            last = self.regions[-1]
            if not count:
                raise OSError(errno.EINVAL if last.count else errno.EEXIST, "the redistributors have a region already")
            if index != last.index + 1 or not last.count:
                raise OSError(errno.EINVAL, f"the next redistributor region has index {last.index + 1}")
        dist = chip.dist_base
        if not count and dist is not None and base < dist + KVM_VGIC_V3_DIST_SIZE and dist < base + size:
            raise OSError(errno.EINVAL, "the redistributors overlap the distributor")
        if self.overlaps(base, size):
            raise OSError(errno.EINVAL, "two redistributor regions overlap")
        chip.check_range(base, 0x10000, size)
        region = Region(index, base, count)
        self.regions.append(region)
        done: list[VgicCpu] = []
        try:
            for vcpu in chip.arch.vcpus:
                if vcpu.vgic is not None and vcpu.vgic not in self._io:
                    self.register(vcpu.vgic)
                    done.append(vcpu.vgic)
        except OSError:
            for cpu in reversed(done):
                self.unregister(cpu)
            self.regions.remove(region)
            raise

    def overlaps(self, base: int, size: int) -> bool:
        """Tell whether a range overlaps a region."""
        return any(base < region.base + region.size() and region.base < base + size for region in self.regions)

    def register(self, cpu: VgicCpu) -> None:
        """Give a vCPU its place, if there is one yet; EINVAL if a growing region would grow into something."""
        chip = self._chip
        region = next((one for one in self.regions if not one.count or len(one.cpus) < one.count), None)
        if region is None:
            return
        base = region.base + len(region.cpus) * KVM_VGIC_V3_REDIST_SIZE
        end = base + KVM_VGIC_V3_REDIST_SIZE
        dist = chip.dist_base
        if end > chip.arch.ipa_size or (dist is not None and base < dist + KVM_VGIC_V3_DIST_SIZE and dist < end):
            raise OSError(errno.EINVAL, f"there is no room for a redistributor at {base:#x}")
        io = RedistributorIo(chip.vgic, cpu, base)
        chip.arch.vm.mmio_bus.register(base, KVM_VGIC_V3_REDIST_SIZE, io)
        if region.cpus:
            region.cpus[-1].rd_last = False
        region.cpus.append(cpu)
        self._io[cpu] = io
        self._mark_last()

    def unregister(self, cpu: VgicCpu) -> None:
        """Take a vCPU's redistributor off the bus; the others stay where they are."""
        io = self._io.pop(cpu, None)
        if io is None:
            return
        self._chip.arch.vm.mmio_bus.unregister(io)
        for region in self.regions:
            if region.cpus and region.cpus[-1] is cpu:
                region.cpus.pop()
        self._mark_last()

    def check_complete(self) -> None:
        """Before the first run: every vCPU has its redistributor; ENXIO."""
        if any(vcpu.vgic is not None and vcpu.vgic not in self._io for vcpu in self._chip.arch.vcpus):
            raise OSError(errno.ENXIO, "not every vCPU has a redistributor: a region is missing or too small")

    def _mark_last(self) -> None:
        # GICR_TYPER.Last: the guest stops there when it walks a range of adjacent regions.
        starts = {region.base for region in self.regions if region.cpus}
        for region in self.regions:
            if region.cpus:
                full = region.count == len(region.cpus)
                region.cpus[-1].rd_last = not (full and region.base + region.size() in starts)
