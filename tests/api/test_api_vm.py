# SPDX-License-Identifier: GPL-2.0-only
"""The system and VM handles: what each method asks of the backend, and what it makes of the answer."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest
from fake_backend import FakeBackend

from anykvm.api import GuestMemory, IrqchipRoute, Kvm, MsiRoute, Vm, arm64, dirty_pages
from anykvm.uapi import arm64 as uapi_arm64
from anykvm.uapi import common

PAGE = os.sysconf("SC_PAGE_SIZE")


def raising(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_system_requests(fake: FakeBackend, kvm: Kvm) -> None:
    fake.answers[common.KVM_GET_API_VERSION] = 12
    fake.answers[common.KVM_CHECK_EXTENSION] = lambda fd, arg: arg + 1
    assert kvm.api_version() == 12
    assert kvm.check_extension(common.KVM_CAP_ONE_REG) == 71
    assert kvm.vcpu_mmap_size() == 8192
    assert kvm.arch == "arm64"
    assert kvm.backend is fake


def test_create_vm_passes_the_type(fake: FakeBackend, kvm: Kvm) -> None:
    with kvm.create_vm(36) as vm:
        assert vm.fd in fake.open_fds
    assert fake.last(common.KVM_CREATE_VM) == 36


def test_handles_close_once_and_refuse_afterwards(fake: FakeBackend, kvm: Kvm) -> None:
    vm = kvm.create_vm()
    fd = vm.fd
    assert repr(vm) == f"<Vm fd {fd}>"
    vm.close()
    vm.close()
    assert vm.closed
    assert fd not in fake.open_fds
    assert repr(vm) == "<Vm closed>"
    with pytest.raises(OSError) as caught:
        vm.check_extension(1)
    assert caught.value.errno == errno.EBADF
    assert "Vm is closed" in str(caught.value)


def test_a_dropped_handle_is_closed(fake: FakeBackend, kvm: Kvm) -> None:
    before = set(fake.open_fds)
    vm = kvm.create_vm()
    assert fake.open_fds != before
    del vm
    assert fake.open_fds == before


def test_an_exception_closes_all(fake: FakeBackend) -> None:
    def fails() -> None:
        with Kvm(fake) as kvm, kvm.create_vm() as vm, vm.create_vcpu(0):
            raise RuntimeError("the test's own")

    with pytest.raises(RuntimeError, match="the test's own"):
        fails()
    assert not fake.open_fds


def test_create_vcpu_failing_to_map_closes_the_fd(fake: FakeBackend, vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, length: int) -> None:
        raise raising(errno.ENOMEM)

    monkeypatch.setattr(fake, "mmap", refuse)
    before = set(fake.open_fds)
    with pytest.raises(OSError) as caught:
        vm.create_vcpu(3)
    assert caught.value.errno == errno.ENOMEM
    assert fake.open_fds == before


def test_create_vcpu_error(fake: FakeBackend, vm: Vm) -> None:
    fake.answers[common.KVM_CREATE_VCPU] = raising(errno.EEXIST)
    with pytest.raises(OSError) as caught:
        vm.create_vcpu(0)
    assert caught.value.errno == errno.EEXIST


def test_memory_region(fake: FakeBackend, vm: Vm, memory: GuestMemory) -> None:
    vm.set_user_memory_region(2, 0x4000_0000, memory, flags=common.KVM_MEM_READONLY, offset=PAGE, size=4 * PAGE)
    region = fake.last(common.KVM_SET_USER_MEMORY_REGION, common.KvmUserspaceMemoryRegion)
    assert (region.slot, region.flags, region.guest_phys_addr) == (2, common.KVM_MEM_READONLY, 0x4000_0000)
    assert (region.memory_size, region.userspace_addr) == (4 * PAGE, memory.address + PAGE)


def test_memory_region_takes_the_rest_by_default(fake: FakeBackend, vm: Vm, memory: GuestMemory) -> None:
    vm.set_user_memory_region(0, 0, memory, offset=PAGE)
    region = fake.last(common.KVM_SET_USER_MEMORY_REGION, common.KvmUserspaceMemoryRegion)
    assert region.memory_size == memory.size - PAGE


@pytest.mark.parametrize(("offset", "size"), [(-PAGE, None), (0, (1 << 20) + PAGE), (1 << 20, None), (0, 0)])
def test_memory_region_outside_the_memory(
    fake: FakeBackend, vm: Vm, memory: GuestMemory, offset: int, size: int | None
) -> None:
    with pytest.raises(ValueError, match="are not in a memory of 0x100000 bytes"):
        vm.set_user_memory_region(0, 0, memory, offset=offset, size=size)
    assert all(request != common.KVM_SET_USER_MEMORY_REGION for _, request, _ in fake.calls)


def test_deleting_a_slot(fake: FakeBackend, vm: Vm, memory: GuestMemory) -> None:
    vm.set_user_memory_region(1, 0, memory)
    vm.set_user_memory_region(1, 0, None)
    region = fake.last(common.KVM_SET_USER_MEMORY_REGION, common.KvmUserspaceMemoryRegion)
    assert (region.slot, region.memory_size) == (1, 0)
    memory.close()
    assert memory.closed


def test_memory_stays_while_anything_keeps_the_vm(fake: FakeBackend, kvm: Kvm, memory: GuestMemory) -> None:
    vm = kvm.create_vm()
    vcpu, device = vm.create_vcpu(0), vm.create_device(common.KVM_DEV_TYPE_ARM_VGIC_V2)
    vm.set_user_memory_region(0, 0, memory)
    for handle in (vm, vcpu, device):
        with pytest.raises(OSError) as caught:
            memory.close()
        assert caught.value.errno == errno.EBUSY
        handle.close()
    memory.close()
    assert memory.closed


def test_a_refused_region_does_not_hold_the_memory(fake: FakeBackend, vm: Vm, memory: GuestMemory) -> None:
    fake.answers[common.KVM_SET_USER_MEMORY_REGION] = raising(errno.EEXIST)
    with pytest.raises(OSError):
        vm.set_user_memory_region(0, 0, memory)
    memory.close()


def test_dirty_log(fake: FakeBackend, vm: Vm, memory: GuestMemory) -> None:
    def fill(fd: int, arg: int) -> int:
        log = common.KvmDirtyLog.from_address(arg)
        assert log.slot == 5
        ctypes.memmove(log.dirty_bitmap, b"\x01\x80", 2)
        return 0

    fake.answers[common.KVM_GET_DIRTY_LOG] = fill
    vm.set_user_memory_region(5, 0, memory, size=65 * PAGE, flags=common.KVM_MEM_LOG_DIRTY_PAGES)
    bitmap = vm.get_dirty_log(5)
    assert len(bitmap) == 16
    assert list(dirty_pages(bitmap)) == [0, 15]


def test_dirty_log_of_no_slot(fake: FakeBackend, vm: Vm) -> None:
    fake.answers[common.KVM_GET_DIRTY_LOG] = raising(errno.ENOENT)
    with pytest.raises(OSError) as caught:
        vm.get_dirty_log(9)
    assert caught.value.errno == errno.ENOENT


def test_clear_dirty_log(fake: FakeBackend, vm: Vm) -> None:
    seen = []

    def look(fd: int, arg: int) -> int:
        log = common.KvmClearDirtyLog.from_address(arg)
        seen.append((log.slot, log.first_page, log.num_pages, ctypes.string_at(log.dirty_bitmap, 8)))
        return 0

    fake.answers[common.KVM_CLEAR_DIRTY_LOG] = look
    vm.clear_dirty_log(1, 64, 12, b"\xff\x0f")
    assert seen == [(1, 64, 12, b"\xff\x0f" + bytes(6))]
    with pytest.raises(ValueError, match="9 pages need 2 bytes of bitmap, not 1"):
        vm.clear_dirty_log(1, 0, 9, b"\xff")


def test_irq_line(fake: FakeBackend, vm: Vm) -> None:
    vm.irq_line(arm64.spi(40), 1)
    line = fake.last(common.KVM_IRQ_LINE, common.KvmIrqLevel)
    assert (line.irq, line.level) == (1 << 24 | 40, 1)


def test_irqfd(fake: FakeBackend, vm: Vm) -> None:
    vm.irqfd(7, 33)
    plain = fake.last(common.KVM_IRQFD, common.KvmIrqfd)
    vm.irqfd(7, 33, resamplefd=8, deassign=True)
    level = fake.last(common.KVM_IRQFD, common.KvmIrqfd)
    assert (plain.fd, plain.gsi, plain.flags) == (7, 33, 0)
    assert level.flags == common.KVM_IRQFD_FLAG_RESAMPLE | common.KVM_IRQFD_FLAG_DEASSIGN
    assert level.resamplefd == 8


def test_ioeventfd(fake: FakeBackend, vm: Vm) -> None:
    vm.ioeventfd(9, 0xA000, 4, datamatch=3, pio=True, deassign=True)
    io = fake.last(common.KVM_IOEVENTFD, common.KvmIoeventfd)
    assert (io.fd, io.addr, io.len, io.datamatch) == (9, 0xA000, 4, 3)
    assert io.flags == (
        common.KVM_IOEVENTFD_FLAG_DATAMATCH | common.KVM_IOEVENTFD_FLAG_PIO | common.KVM_IOEVENTFD_FLAG_DEASSIGN
    )
    vm.ioeventfd(9, 0xA000)
    assert fake.last(common.KVM_IOEVENTFD, common.KvmIoeventfd).flags == 0


def test_gsi_routing(fake: FakeBackend, vm: Vm) -> None:
    seen: list[tuple[int, ...]] = []

    def look(fd: int, arg: int) -> int:
        head = common.KvmIrqRouting.from_address(arg)
        entries = (common.KvmIrqRoutingEntry * head.nr).from_address(arg + ctypes.sizeof(head))
        for entry in entries:
            if entry.type == common.KVM_IRQ_ROUTING_IRQCHIP:
                seen.append((entry.gsi, entry.u.irqchip.irqchip, entry.u.irqchip.pin))
            else:
                msi = entry.u.msi
                seen.append((entry.gsi, entry.flags, msi.address_lo, msi.address_hi, msi.data, msi.devid))
        return 0

    fake.answers[common.KVM_SET_GSI_ROUTING] = look
    vm.set_gsi_routing([IrqchipRoute(3, 0, 9), MsiRoute(4, 0x1_0802_0040, 7), MsiRoute(5, 0, 1, devid=6)])
    assert seen == [
        (3, 0, 9),
        (4, 0, 0x0802_0040, 1, 7, 0),
        (5, common.KVM_MSI_VALID_DEVID, 0, 0, 1, 6),
    ]
    vm.set_gsi_routing([])
    assert len(seen) == 3


def test_signal_msi(fake: FakeBackend, vm: Vm) -> None:
    fake.answers[common.KVM_SIGNAL_MSI] = 1
    assert vm.signal_msi(0x2_0000_0040, 5, devid=1)
    msi = fake.last(common.KVM_SIGNAL_MSI, common.KvmMsi)
    assert (msi.address_lo, msi.address_hi, msi.data, msi.devid) == (0x40, 2, 5, 1)
    assert msi.flags == common.KVM_MSI_VALID_DEVID
    fake.answers[common.KVM_SIGNAL_MSI] = 0
    assert not vm.signal_msi(0x40, 5)


def test_create_device(fake: FakeBackend, vm: Vm) -> None:
    with vm.create_device(common.KVM_DEV_TYPE_ARM_VGIC_V3) as device:
        assert device.type == common.KVM_DEV_TYPE_ARM_VGIC_V3
        assert device.fd in fake.open_fds
    before = set(fake.open_fds)
    vm.create_device(common.KVM_DEV_TYPE_ARM_VGIC_V3, test=True)
    assert fake.open_fds == before
    assert fake.last(common.KVM_CREATE_DEVICE, common.KvmCreateDevice).flags == common.KVM_CREATE_DEVICE_TEST


def test_device_attributes(fake: FakeBackend, vm: Vm) -> None:
    store: dict[tuple[int, int], bytes] = {}

    def put(fd: int, arg: int) -> int:
        attr = common.KvmDeviceAttr.from_address(arg)
        store[attr.group, attr.attr] = ctypes.string_at(attr.addr, 4) if attr.addr else b""
        return 0

    def get(fd: int, arg: int) -> int:
        attr = common.KvmDeviceAttr.from_address(arg)
        ctypes.memmove(attr.addr, store[attr.group, attr.attr], 4)
        return 0

    fake.answers |= {
        common.KVM_SET_DEVICE_ATTR: put,
        common.KVM_GET_DEVICE_ATTR: get,
    }
    with vm.create_device(common.KVM_DEV_TYPE_ARM_VGIC_V2) as device:
        device.set_attr(3, 0, 64, size=4)
        assert store[3, 0] == b"\x40\0\0\0"
        assert device.get_attr(3, 0, size=4) == 64
        device.set_attr(1, 9, b"abcd")
        assert store[1, 9] == b"abcd"
        device.set_attr(4, 0)
        assert store[4, 0] == b""
        assert device.has_attr(3, 0)
        fake.answers[common.KVM_HAS_DEVICE_ATTR] = raising(errno.ENXIO)
        assert not device.has_attr(3, 1)
        fake.answers[common.KVM_HAS_DEVICE_ATTR] = raising(errno.EPERM)
        with pytest.raises(PermissionError):
            device.has_attr(3, 1)
        with pytest.raises(OverflowError):
            device.set_attr(3, 0, 1 << 32, size=4)


def test_enable_cap(fake: FakeBackend, vm: Vm) -> None:
    vm.enable_cap(common.KVM_CAP_DIRTY_LOG_RING, 4096, 7, flags=1)
    cap = fake.last(common.KVM_ENABLE_CAP, common.KvmEnableCap)
    assert (cap.cap, cap.flags, list(cap.args)) == (common.KVM_CAP_DIRTY_LOG_RING, 1, [4096, 7, 0, 0])
    with pytest.raises(ValueError, match="at most 4 arguments, not 5"):
        vm.enable_cap(1, 1, 2, 3, 4, 5)


def test_preferred_target(fake: FakeBackend, vm: Vm) -> None:
    def answer(fd: int, arg: int) -> int:
        uapi_arm64.KvmVcpuInit.from_address(arg).target = uapi_arm64.KVM_ARM_TARGET_GENERIC_V8
        return 0

    fake.answers[uapi_arm64.KVM_ARM_PREFERRED_TARGET] = answer
    assert vm.preferred_target().target == 5


def test_irqchip_and_device_address(fake: FakeBackend, vm: Vm) -> None:
    vm.create_irqchip()
    assert fake.last(common.KVM_CREATE_IRQCHIP) == 0
    vm.arm_set_device_addr(1, 0x0801_0000)
    addr = fake.last(uapi_arm64.KVM_ARM_SET_DEVICE_ADDR, uapi_arm64.KvmArmDeviceAddr)
    assert (addr.id, addr.addr) == (1, 0x0801_0000)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (arm64.spi(32), 0x0100_0020),
        (arm64.ppi(27, vcpu_index=0), 0x0200_001B),
        (arm64.ppi(30, vcpu_index=0x3A5), 0x32A5_001E),
        (arm64.cpu_irq(vcpu_index=1, fiq=True), 0x0001_0001),
    ],
)
def test_arm64_lines(line: int, value: int) -> None:
    assert line == value


def test_arm64_lines_there_are_not() -> None:
    with pytest.raises(ValueError, match="32 to 1019"):
        arm64.spi(31)
    with pytest.raises(ValueError, match="16 to 31"):
        arm64.ppi(32, vcpu_index=0)
    with pytest.raises(ValueError, match="0 to 4095"):
        arm64.cpu_irq(vcpu_index=4096)
