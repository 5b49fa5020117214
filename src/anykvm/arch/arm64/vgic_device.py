# SPDX-License-Identifier: GPL-2.0-only
"""The GICs as devices: KVM_CREATE_DEVICE and their attributes.

Source: ``Documentation/virt/kvm/devices/arm-vgic.rst`` and ``arm-vgic-v3.rst``; ``vgic-kvm-device.c``.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from anykvm.uapi import arm64 as uapi
from anykvm.virt.device import DeviceOps

from . import vgic_mmio, vgic_v2, vgic_v3, vgic_v3_cpuif
from .vgic import VGIC_MAX_RESERVED, VGIC_NR_PRIVATE_IRQS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .irqchip import InKernelVgic
    from .vcpu import Arm64Vcpu

REGION_INDEX_MASK: Final = 0xFFF
REGION_FLAGS_SHIFT: Final = 12
REGION_BASE_MASK: Final = 0x000FFFFFFFFF0000
REGION_COUNT_SHIFT: Final = 52

ADDR: Final = uapi.KVM_DEV_ARM_VGIC_GRP_ADDR
NR_IRQS: Final = uapi.KVM_DEV_ARM_VGIC_GRP_NR_IRQS
CTRL: Final = uapi.KVM_DEV_ARM_VGIC_GRP_CTRL
DIST_REGS: Final = uapi.KVM_DEV_ARM_VGIC_GRP_DIST_REGS
CPU_REGS: Final = uapi.KVM_DEV_ARM_VGIC_GRP_CPU_REGS
REDIST_REGS: Final = uapi.KVM_DEV_ARM_VGIC_GRP_REDIST_REGS
CPU_SYSREGS: Final = uapi.KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS
LEVEL_INFO: Final = uapi.KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO


def _unknown(group: int, attr: int) -> OSError:
    return OSError(errno.ENXIO, f"the GIC has no attribute {attr:#x} in group {group}")


def set_frame_address(chip: InKernelVgic, attr: int, base: int) -> None:
    """Set a distributor's or CPU interface's address; ENXIO for the other model's, EEXIST once set, EINVAL, E2BIG."""
    if attr == (uapi.KVM_VGIC_V3_ADDR_TYPE_DIST if chip.v3 else uapi.KVM_VGIC_V2_ADDR_TYPE_DIST):
        if chip.dist_base is not None:
            raise OSError(errno.EEXIST, "the distributor's address has been set")
        alignment = 0x10000 if chip.v3 else 0x1000
        chip.check_range(base, alignment, uapi.KVM_VGIC_V3_DIST_SIZE if chip.v3 else uapi.KVM_VGIC_V2_DIST_SIZE)
        chip.dist_base = base
    elif attr == uapi.KVM_VGIC_V2_ADDR_TYPE_CPU and not chip.v3:
        if chip.cpu_base is not None:
            raise OSError(errno.EEXIST, "the CPU interface's address has been set")
        chip.check_range(base, 0x1000, uapi.KVM_VGIC_V2_CPU_SIZE)
        chip.cpu_base = base
    else:
        raise _unknown(ADDR, attr)


class VgicDevice(DeviceOps):
    """What both models' devices have in common."""

    def create(self) -> None:
        """Make the VM's GIC; EEXIST, EBUSY, E2BIG."""
        self.chip: InKernelVgic = self.vm.arch.create_vgic(self.device_type)

    def _get_u32(self, addr: int) -> int:
        return int.from_bytes(self.vm.services.copy_from_user(addr, 4), "little")

    def _put_u32(self, addr: int, value: int) -> None:
        self.vm.services.copy_to_user(addr, (value & 0xFFFFFFFF).to_bytes(4, "little"))

    def _get_u64(self, addr: int) -> int:
        return int.from_bytes(self.vm.services.copy_from_user(addr, 8), "little")

    def _put_u64(self, addr: int, value: int) -> None:
        self.vm.services.copy_to_user(addr, (value & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little"))

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Hold every vCPU's mutex, so that none is in KVM_RUN; EBUSY if one is (lock_all_vcpus)."""
        with self.vm.lock, ExitStack() as held:
            for vcpu in self.vm.vcpus():
                if not vcpu.mutex.acquire(blocking=False):
                    raise OSError(errno.EBUSY, "a vCPU is running")
                held.callback(vcpu.mutex.release)
            yield

    # The attributes both have.

    def set_attr(self, group: int, attr: int, addr: int) -> None:
        """KVM_SET_DEVICE_ATTR."""
        chip = self.chip
        if group == NR_IRQS:
            self._set_nr_irqs(self._get_u32(addr))
        elif group == CTRL and attr == uapi.KVM_DEV_ARM_VGIC_CTRL_INIT:
            with chip.arch.config_lock:
                chip.init()
        elif group == ADDR:
            self.set_address(attr, self._get_u64(addr))
        else:
            raise _unknown(group, attr)

    def _set_nr_irqs(self, number: int) -> None:
        if not VGIC_NR_PRIVATE_IRQS + 32 <= number <= VGIC_MAX_RESERVED + 1 or number % 32:
            raise OSError(errno.EINVAL, f"a GIC has 64 to 1024 interrupts, in steps of 32, not {number}")
        chip = self.chip
        with chip.arch.config_lock:
            if chip.ready or chip.vgic.nr_spis:
                raise OSError(errno.EBUSY, "the number of interrupts has been fixed")
            chip.vgic.nr_spis = number - VGIC_NR_PRIVATE_IRQS

    def set_address(self, attr: int, base: int) -> None:
        """KVM_DEV_ARM_VGIC_GRP_ADDR."""
        with self.vm.slots_lock, self.chip.arch.config_lock:
            set_frame_address(self.chip, attr, base)

    def get_attr(self, group: int, attr: int, addr: int) -> None:
        """KVM_GET_DEVICE_ATTR."""
        if group == NR_IRQS:
            self._put_u32(addr, self.chip.vgic.nr_spis + VGIC_NR_PRIVATE_IRQS)
        elif group == ADDR:
            self._put_u64(addr, self.get_address(attr, addr))
        else:
            raise _unknown(group, attr)

    def get_address(self, attr: int, addr: int) -> int:
        """What KVM_DEV_ARM_VGIC_GRP_ADDR holds; all ones if it has not been set."""
        chip = self.chip
        if attr == (uapi.KVM_VGIC_V3_ADDR_TYPE_DIST if chip.v3 else uapi.KVM_VGIC_V2_ADDR_TYPE_DIST):
            base = chip.dist_base
        elif attr == uapi.KVM_VGIC_V2_ADDR_TYPE_CPU and not chip.v3:
            base = chip.cpu_base
        else:
            raise _unknown(ADDR, attr)
        return -1 if base is None else base

    def has_attr(self, group: int, attr: int) -> None:
        """KVM_HAS_DEVICE_ATTR."""
        if group == NR_IRQS or (group == CTRL and attr == uapi.KVM_DEV_ARM_VGIC_CTRL_INIT):
            return
        raise _unknown(group, attr)


class VgicV2Device(VgicDevice):
    """KVM_DEV_TYPE_ARM_VGIC_V2."""

    name = "kvm-arm-vgic-v2"

    def _vcpu(self, attr: int) -> Arm64Vcpu:
        number = (attr & uapi.KVM_DEV_ARM_VGIC_CPUID_MASK) >> uapi.KVM_DEV_ARM_VGIC_CPUID_SHIFT
        vcpu = self.vm.get_vcpu_by_id(number)
        if vcpu is None:
            raise OSError(errno.EINVAL, f"the VM has no vCPU {number}")
        arch: Arm64Vcpu = vcpu.arch
        return arch

    def _offset(self, group: int, attr: int) -> int:
        offset = attr & uapi.KVM_DEV_ARM_VGIC_OFFSET_MASK
        if not (vgic_v2.DIST.has(offset) if group == DIST_REGS else vgic_v2.user_cpu_has(offset)):
            raise _unknown(group, attr)
        return offset

    def has_attr(self, group: int, attr: int) -> None:
        """KVM_HAS_DEVICE_ATTR."""
        if group == ADDR and attr in (uapi.KVM_VGIC_V2_ADDR_TYPE_DIST, uapi.KVM_VGIC_V2_ADDR_TYPE_CPU):
            return
        if group in (DIST_REGS, CPU_REGS):
            self._vcpu(attr)
            self._offset(group, attr)
            return
        super().has_attr(group, attr)

    def set_attr(self, group: int, attr: int, addr: int) -> None:
        """KVM_SET_DEVICE_ATTR."""
        if group not in (DIST_REGS, CPU_REGS):
            super().set_attr(group, attr, addr)
            return
        vcpu = self._vcpu(attr)
        value = self._get_u32(addr)
        with self.stopped():
            self.chip.lazy_init()
            offset = self._offset(group, attr)
            assert vcpu.vgic is not None
            with self.chip.vgic.lock:
                if group == CPU_REGS:
                    vgic_v2.user_cpu_write(self.chip.vgic, vcpu.vgic, offset, value)
                    return
                try:
                    vgic_v2.DIST.user_write(self.chip.vgic, vcpu.vgic, offset, 4, value)
                except ValueError as failure:
                    raise OSError(errno.EINVAL, str(failure)) from None

    def get_attr(self, group: int, attr: int, addr: int) -> None:
        """KVM_GET_DEVICE_ATTR."""
        if group not in (DIST_REGS, CPU_REGS):
            super().get_attr(group, attr, addr)
            return
        vcpu = self._vcpu(attr)
        with self.stopped():
            self.chip.lazy_init()
            offset = self._offset(group, attr)
            assert vcpu.vgic is not None
            with self.chip.vgic.lock:
                if group == CPU_REGS:
                    value = vgic_v2.user_cpu_read(self.chip.vgic, vcpu.vgic, offset)
                else:
                    value = vgic_v2.DIST.read(self.chip.vgic, vcpu.vgic, offset, 4)
        self._put_u32(addr, value)


class VgicV3Device(VgicDevice):
    """KVM_DEV_TYPE_ARM_VGIC_V3."""

    name = "kvm-arm-vgic-v3"

    def _vcpu(self, group: int, attr: int) -> Arm64Vcpu:
        if group == DIST_REGS:
            vcpus = self.chip.arch.vcpus
            found = vcpus[0] if vcpus else None
        else:
            # The attribute has the affinity fields side by side: Aff3, Aff2, Aff1, Aff0.
            packed = (attr & uapi.KVM_DEV_ARM_VGIC_V3_MPIDR_MASK) >> uapi.KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT
            found = self.chip.arch.vcpu_by_mpidr((packed & 0xFF000000) << 8 | packed & 0xFFFFFF)
        if found is None:
            raise OSError(errno.EINVAL, "the VM has no such vCPU")
        return found

    def _check(self, group: int, attr: int) -> int:
        """The register's offset or encoding; ENXIO for none."""
        if group == CPU_SYSREGS:
            found = attr & uapi.KVM_DEV_ARM_VGIC_SYSREG_INSTR_MASK
            if found not in vgic_v3_cpuif.USER:
                raise _unknown(group, attr)
        elif group == LEVEL_INFO:
            found = attr & uapi.KVM_DEV_ARM_VGIC_LINE_LEVEL_INTID_MASK
            info = attr & uapi.KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_MASK
            if info >> uapi.KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT != uapi.VGIC_LEVEL_INFO_LINE_LEVEL or found % 32:
                raise OSError(errno.EINVAL, "line levels are had by 32 interrupts at a time")
        else:
            found = attr & uapi.KVM_DEV_ARM_VGIC_OFFSET_MASK
            if not (vgic_v3.DIST if group == DIST_REGS else vgic_v3.REDIST).has(found):
                raise _unknown(group, attr)
        return found

    def has_attr(self, group: int, attr: int) -> None:
        """KVM_HAS_DEVICE_ATTR."""
        if group == ADDR and attr in (
            uapi.KVM_VGIC_V3_ADDR_TYPE_DIST,
            uapi.KVM_VGIC_V3_ADDR_TYPE_REDIST,
            uapi.KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION,
        ):
            return
        if group == LEVEL_INFO:
            info = attr & uapi.KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_MASK
            if info >> uapi.KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT == uapi.VGIC_LEVEL_INFO_LINE_LEVEL:
                return
        elif group in (DIST_REGS, REDIST_REGS, CPU_SYSREGS):
            self._vcpu(group, attr)
            self._check(group, attr)
            return
        elif group == CTRL and attr == uapi.KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES:
            return
        super().has_attr(group, attr)

    def set_address(self, attr: int, base: int) -> None:
        """KVM_DEV_ARM_VGIC_GRP_ADDR, with the redistributors' regions."""
        redists = self.chip.redists
        if attr == uapi.KVM_VGIC_V3_ADDR_TYPE_REDIST:
            with self.vm.slots_lock, self.chip.arch.config_lock:
                redists.add_region(0, base, 0)
        elif attr == uapi.KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION:
            count = base >> REGION_COUNT_SHIFT
            if not count or base >> REGION_FLAGS_SHIFT & 0xF:
                raise OSError(errno.EINVAL, "a redistributor region has a number of redistributors, and no flags")
            with self.vm.slots_lock, self.chip.arch.config_lock:
                redists.add_region(base & REGION_INDEX_MASK, base & REGION_BASE_MASK, count)
        else:
            super().set_address(attr, base)

    def get_address(self, attr: int, addr: int) -> int:
        """KVM_DEV_ARM_VGIC_GRP_ADDR; a region is asked for by its index, in the value."""
        regions = self.chip.redists.regions
        if attr == uapi.KVM_VGIC_V3_ADDR_TYPE_REDIST:
            return regions[0].base if regions else -1
        if attr == uapi.KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION:
            index = self._get_u64(addr) & REGION_INDEX_MASK
            for region in regions:
                if region.index == index:
                    return region.base | region.count << REGION_COUNT_SHIFT | index
            raise OSError(errno.ENOENT, f"there is no redistributor region {index}")
        return super().get_address(attr, addr)

    def set_attr(self, group: int, attr: int, addr: int) -> None:
        """KVM_SET_DEVICE_ATTR."""
        if group == CTRL and attr == uapi.KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES:
            # There are no LPIs: nothing is pending in tables.
            with self.stopped():
                return
        if group not in (DIST_REGS, REDIST_REGS, CPU_SYSREGS, LEVEL_INFO):
            super().set_attr(group, attr, addr)
            return
        vcpu = self._vcpu(group, attr)
        value = self._get_u64(addr) if group == CPU_SYSREGS else self._get_u32(addr)
        with self.stopped():
            self._initialized()
            self._write(vcpu, group, self._check(group, attr), value)

    def _write(self, vcpu: Arm64Vcpu, group: int, where: int, value: int) -> None:
        vgic, cpu = self.chip.vgic, vcpu.vgic
        assert cpu is not None
        try:
            if group == CPU_SYSREGS:
                vgic_v3_cpuif.USER[where][1](vcpu, value)
                return
            with vgic.lock:
                if group == LEVEL_INFO:
                    vgic_mmio.set_line_level(vgic, cpu, where, value)
                else:
                    (vgic_v3.DIST if group == DIST_REGS else vgic_v3.REDIST).user_write(vgic, cpu, where, 4, value)
        except ValueError as failure:
            raise OSError(errno.EINVAL, str(failure)) from None

    def get_attr(self, group: int, attr: int, addr: int) -> None:
        """KVM_GET_DEVICE_ATTR."""
        if group not in (DIST_REGS, REDIST_REGS, CPU_SYSREGS, LEVEL_INFO):
            super().get_attr(group, attr, addr)
            return
        vcpu = self._vcpu(group, attr)
        with self.stopped():
            self._initialized()
            value = self._read(vcpu, group, self._check(group, attr))
        if group == CPU_SYSREGS:
            self._put_u64(addr, value)
        else:
            self._put_u32(addr, value)

    def _read(self, vcpu: Arm64Vcpu, group: int, where: int) -> int:
        vgic, cpu = self.chip.vgic, vcpu.vgic
        assert cpu is not None
        if group == CPU_SYSREGS:
            return vgic_v3_cpuif.USER[where][0](vcpu)
        with vgic.lock:
            if group == LEVEL_INFO:
                return vgic_mmio.line_level(vgic, cpu, where)
            # Userspace sees the latch alone: the line's level is a group of its own.
            bank = where & ~0x7F if group == DIST_REGS else where - vgic_v3.SGI_FRAME & ~0x7F
            if bank == 0x200:
                return vgic_mmio.latched(vgic, cpu, where & 0x7F, 4)
            if bank == 0x280:
                return 0
            return (vgic_v3.DIST if group == DIST_REGS else vgic_v3.REDIST).read(vgic, cpu, where, 4)

    def _initialized(self) -> None:
        if not self.chip.vgic.initialized:
            raise OSError(errno.EBUSY, "the GICv3 has not been initialised (KVM_DEV_ARM_VGIC_CTRL_INIT)")
