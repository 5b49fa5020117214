# SPDX-License-Identifier: GPL-2.0-only
"""Xen's event channels, of two levels: bits in the shared page, a selector and a flag in each vCPU's page.

The bits are the guest's too: every change stops the vCPUs for a moment, which makes it one access.
Source: Xen's public ``event_channel.h``; api.rst 4.52, 4.126, 4.129; ``arch/x86/kvm/xen.c``.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anykvm.uapi import x86 as uapi

if TYPE_CHECKING:
    from anykvm.virt.services import EventFd
    from anykvm.virt.vm import Vm

    from .vcpu import X86Vcpu
    from .vm import X86Vm

_PRIORITY: Final = uapi.KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL


class Port(NamedTuple):
    """Where what the guest sends to a port goes: to a port of its own, or to an eventfd."""

    type: int
    port: int = 0
    vcpu_id: int = 0
    event: EventFd | None = None


def check_priority(priority: int) -> None:
    """EINVAL for anything but channels of two levels."""
    if priority != _PRIORITY:
        raise OSError(errno.EINVAL, f"event channels of priority {priority} are not offered")


def _test_and_set(vm: X86Vm, address: int, bit: int) -> bool | None:
    """Set a bit, and tell whether it was set; None where no memory is. The vCPUs are stopped."""
    address, bit = address + (bit >> 3), bit & 7
    old = vm.read_guest(address, 1)
    if old is None or not vm.write_guest(address, bytes((old[0] | 1 << bit,))):
        return None
    return bool(old[0] >> bit & 1)


def raise_port(vm: X86Vm, vcpu_id: int, port: int) -> int:
    """Raise an event channel, from any thread: 1 if the guest is told, 0 if it was raised already.

    EINVAL for a vCPU or a port there is not, or without the pages; ENOTCONN while it is masked.
    """
    xen, layout = vm.xen, vm.xen.layout
    vcpu = next((one for one in vm.vcpus if one.vcpu_id == vcpu_id), None)
    shared = xen.shared_info
    if vcpu is None or vcpu.xen is None or vcpu.xen.info is None or shared is None or port >= layout.ports:
        raise OSError(errno.EINVAL, f"event channel {port} of vCPU {vcpu_id} cannot be raised")
    with vm.machine.stopped():
        raised = _test_and_set(vm, shared + layout.pending, port)
        masked = vm.read_guest(shared + layout.mask + (port >> 3), 1)
        if raised is None or masked is None:
            raise OSError(errno.EFAULT, "there is no memory for the shared page")
        if raised:
            return 0
        free = not masked[0] >> (port & 7) & 1
        news = free and select(vcpu, 1 << port // (layout.word * 8))
    if news:
        vcpu.xen.upcall()
    if free:
        return 1
    vcpu.xen.woken_by(port)
    raise OSError(errno.ENOTCONN, f"event channel {port} is masked")


def select(vcpu: X86Vcpu, words: int) -> bool:
    """Tell a vCPU in which words of the shared page there is something; what cannot be told waits.

    The vCPUs are stopped. True if that is news, for which there is to be an upcall.
    """
    own = vcpu.own_xen()
    vm = vcpu.vm
    size = vm.xen.layout.word
    address = own.info
    old = vm.read_guest(address + vm.xen.layout.selector, size) if address is not None else None
    if address is None or old is None:
        own.untold |= words
        vcpu.kick()
        return False
    selector = int.from_bytes(old, "little")
    vm.write_guest(address + vm.xen.layout.selector, (selector | words).to_bytes(size, "little"))
    vm.write_guest(address, b"\x01")
    return words & ~selector != 0


def set_port(vm: Vm, value: Any) -> None:
    """KVM_XEN_ATTR_TYPE_EVTCHN: what becomes of what the guest sends; EINVAL, ENOENT, EEXIST, EBADF; the VM's lock
    is held.
    """
    ports: dict[int, Port] = vm.arch.xen.ports
    most = vm.arch.xen.layout.ports
    sent = value.send_port
    if value.flags == uapi.KVM_XEN_EVTCHN_RESET:
        release(vm.arch)
        return
    if not 0 < sent < most:
        raise OSError(errno.EINVAL, f"there is no event channel {sent}")
    if value.flags == uapi.KVM_XEN_EVTCHN_DEASSIGN:
        if sent not in ports:
            raise OSError(errno.ENOENT, f"nothing is known of event channel {sent}")
        _release(vm.arch, sent)
    elif value.flags == uapi.KVM_XEN_EVTCHN_UPDATE:
        _update(ports, value)
    elif value.flags:
        raise OSError(errno.EINVAL, f"unknown flags {value.flags:#x} of an event channel")
    else:
        _assign(vm, ports, value, most)


def _update(ports: dict[int, Port], value: Any) -> None:
    """Only the vCPU may change."""
    old = ports.get(value.send_port)
    if old is None:
        raise OSError(errno.ENOENT, f"nothing is known of event channel {value.send_port}")
    target = value.deliver.port
    if not old.port or (old.type, old.port) != (value.type, target.port):
        raise OSError(errno.EINVAL, "only the vCPU of an event channel can be changed")
    check_priority(target.priority)
    ports[value.send_port] = old._replace(vcpu_id=target.vcpu)


def _assign(vm: Vm, ports: dict[int, Port], value: Any, most: int) -> None:
    sent, target = value.send_port, value.deliver.port
    to_eventfd = value.type == uapi.EVTCHNSTAT_INTERDOMAIN and not target.port
    if value.type == uapi.EVTCHNSTAT_IPI:
        wrong = target.port != sent
    else:
        wrong = value.type != uapi.EVTCHNSTAT_INTERDOMAIN or target.port >= most
    if wrong:
        raise OSError(errno.EINVAL, f"event channel {sent} cannot be of type {value.type}, to port {target.port}")
    if to_eventfd:
        event = vm.services.eventfd_get(value.deliver.eventfd.fd, "xen eventfd")
        one = Port(value.type, event=event)
    else:
        check_priority(target.priority)
        one = Port(value.type, target.port, target.vcpu)
    if sent in ports:
        if one.event is not None:
            vm.services.eventfd_put(one.event)
        raise OSError(errno.EEXIST, f"event channel {sent} is known already")
    ports[sent] = one


def _release(vm: X86Vm, sent: int) -> None:
    event = vm.xen.ports.pop(sent).event
    if event is not None:
        vm.vm.services.eventfd_put(event)


def release(vm: X86Vm) -> None:
    """Forget all of them."""
    for sent in list(vm.xen.ports):
        _release(vm, sent)


def send(vm: Vm, arg: int) -> int:
    """KVM_XEN_HVM_EVTCHN_SEND: EINVAL for a port, a vCPU or a priority that cannot be."""
    request = vm.services.read_struct(arg, uapi.KvmIrqRoutingXenEvtchn)
    if not 0 < request.port < vm.arch.xen.layout.ports:
        raise OSError(errno.EINVAL, f"there is no event channel {request.port}")
    check_priority(request.priority)
    vm.arch.machine.distrust()
    try:
        raise_port(vm.arch, request.vcpu, request.port)
    except OSError as error:
        # One that is masked has been sent all the same.
        if error.errno != errno.ENOTCONN:
            raise
    return 0


def send_by_guest(vm: X86Vm, sent: int) -> bool:
    """EVTCHNOP_send; False if it is userspace's."""
    one = vm.xen.ports.get(sent)
    if one is None:
        return False
    if one.event is not None:
        one.event.signal()
        return True
    try:
        raise_port(vm, one.vcpu_id, one.port)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return True
