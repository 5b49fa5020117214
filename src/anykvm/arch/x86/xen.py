# SPDX-License-Identifier: GPL-2.0-only
"""Xen's interface, for guests that userspace runs as Xen's: what the whole VM has of it.

Userspace is the hypervisor that the guest sees; here are the hypercall page, the shared information page's clock and
what of event channels, timers and times is worth doing without it. Event channels are :mod:`.xen_evtchn`, a vCPU's
part is :mod:`.xen_vcpu`, hypercalls are :mod:`.xen_calls`.

Source: api.rst 4.29, 4.126, 4.127, 8.31; ``arch/x86/kvm/xen.c``.
"""

from __future__ import annotations

import errno
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from anykvm.uapi import x86 as uapi

from . import cpuid, xen_evtchn

if TYPE_CHECKING:
    from anykvm.virt.vm import Vm

    from .vcpu import X86Vcpu
    from .vm import X86Vm
    from .xen_evtchn import Port

OFFERED: Final = (
    uapi.KVM_XEN_HVM_CONFIG_HYPERCALL_MSR
    | uapi.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL
    | uapi.KVM_XEN_HVM_CONFIG_SHARED_INFO
    | uapi.KVM_XEN_HVM_CONFIG_RUNSTATE
    | uapi.KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL
    | uapi.KVM_XEN_HVM_CONFIG_EVTCHN_SEND
)
"""KVM_CAP_XEN_HVM."""
_PERMITTED: Final = uapi.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | uapi.KVM_XEN_HVM_CONFIG_EVTCHN_SEND
_MSRS: Final = 4
_PAGE: Final = 4096
_STUB: Final = 32
"""Each call has so many bytes of the hypercall page."""
_NS: Final = 1_000_000_000
FIRST_VECTOR: Final = 0x10


class Layout(NamedTuple):
    """Where things are, in bytes, in a 64-bit guest's pages or in a 32-bit one's."""

    word: int
    """A word of Xen's bitmaps."""
    pending: int
    mask: int
    clock: int
    clock_high: int
    selector: int
    """In vcpu_info."""
    runstate_times: int
    """In vcpu_runstate_info: when the state began, and four times."""

    @property
    def ports(self) -> int:
        """How many event channels there are."""
        return (self.word * 8) ** 2


LONG: Final = Layout(8, 0x800, 0xA00, 0xC00, 0xC0C, 8, 8)
COMPAT: Final = Layout(4, 0x800, 0x880, 0x900, 0x924, 4, 4)


class Xen:
    """``vm.arch.xen``. ``msr`` is -1 while there is none, ``shared_info`` an address."""

    __slots__ = (
        "blobs",
        "flags",
        "long_mode",
        "msr",
        "ports",
        "shared_info",
        "upcall_vector",
        "version",
    )

    def __init__(self) -> None:
        self.msr = -1
        self.flags = 0
        self.blobs = ((0, 0), (0, 0))
        """Address and number of pages of userspace's hypercall pages, for 32 and for 64 bits."""
        self.long_mode = False
        self.shared_info: int | None = None
        self.upcall_vector = 0
        self.version = 0
        self.ports: dict[int, Port] = {}
        """By the port that the guest sends to."""

    @property
    def intercepts(self) -> bool:
        """Whether hypercalls are Xen's."""
        return self.msr >= 0 and bool(self.flags & uapi.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL)

    @property
    def layout(self) -> Layout:
        """How the guest's pages look."""
        return LONG if self.long_mode else COMPAT


def configure(vm: Vm, arg: int) -> int:
    """KVM_XEN_HVM_CONFIG: EINVAL for flags there are not, pages with calls that are intercepted, and an MSR that is not
    from 0x40000000 to 0x4fffffff, where no processor has any.
    """
    request = vm.services.read_struct(arg, uapi.KvmXenHvmConfig)
    blobs = ((request.blob_addr_32, request.blob_size_32), (request.blob_addr_64, request.blob_size_64))
    intercepts = request.flags & uapi.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL
    known = not request.msr or request.msr >> 28 == _MSRS
    if request.flags & ~_PERMITTED or (intercepts and any(map(any, blobs))) or not known:
        told = f"flags {request.flags:#x}, MSR {request.msr:#x}, hypercall pages {blobs}"
        raise OSError(errno.EINVAL, f"kvm_xen_hvm_config cannot be so: {told}")
    with vm.lock:
        xen = vm.arch.xen
        xen.flags, xen.blobs = request.flags, blobs
        xen.msr = request.msr or -1
    return 0


def write_hypercall_page(vcpu: X86Vcpu, value: int) -> None:
    """The guest wrote the configured MSR: an address, and which page in its lowest bits; ValueError."""
    vm = vcpu.vm
    xen = vm.xen
    number, address = value & _PAGE - 1, value & ~(_PAGE - 1)
    long_mode = bool(vcpu.cpu.efer & uapi.EFER_LMA)
    xen.long_mode = long_mode
    if xen.intercepts:
        if number:
            raise ValueError("there is one hypercall page")
        call = cpuid.hypercall_insn(vcpu.cpuid) + b"\xc3"
        stubs = (
            (b"\xb8" + index.to_bytes(4, "little") + call).ljust(_STUB, b"\xcc") for index in range(_PAGE // _STUB)
        )
        page = b"".join(stubs)
    else:
        start, pages = xen.blobs[long_mode]
        if number >= pages:
            raise ValueError(f"there are {pages} hypercall pages")
        try:
            page = vm.vm.services.copy_from_user(start + number * _PAGE, _PAGE)
        except OSError as error:
            raise ValueError(error.strerror) from None
    if not vm.write_guest(address, page):
        raise ValueError("there is no memory for the hypercall page")


# Attributes.


def _set_shared_info(vm: X86Vm, gfn: int) -> None:
    """Take the page, and write the clock into it; EFAULT where no memory is."""
    xen = vm.xen
    if gfn == uapi.XEN_INVALID:
        xen.shared_info = None
        return
    address = gfn << 12
    old = vm.read_guest(address + xen.layout.clock, 4)
    if old is None:
        raise OSError(errno.EFAULT, f"there is no memory at {address:#x}")
    seconds, nanoseconds = divmod(time.time_ns() - vm.clock.now(), _NS)
    version = (int.from_bytes(old, "little") + 1 | 1) & 0xFFFFFFFF
    clock = address + xen.layout.clock
    vm.write_guest(clock, struct.pack("<III", version, seconds & 0xFFFFFFFF, nanoseconds))
    vm.write_guest(address + xen.layout.clock_high, struct.pack("<I", seconds >> 32))
    vm.write_guest(clock, struct.pack("<I", version + 1 & 0xFFFFFFFF))
    xen.shared_info = address


def set_attr(vm: Vm, arg: int) -> int:
    """KVM_XEN_HVM_SET_ATTR: ENOENT for a type there is not, EINVAL; EEXIST, EBADF for an event channel."""
    request = vm.services.read_struct(arg, uapi.KvmXenHvmAttr)
    kind, value = request.type, request.u
    xen: Xen = vm.arch.xen
    with vm.lock:
        if kind == uapi.KVM_XEN_ATTR_TYPE_LONG_MODE:
            xen.long_mode = value.long_mode != 0
        elif kind == uapi.KVM_XEN_ATTR_TYPE_SHARED_INFO:
            _set_shared_info(vm.arch, value.shared_info.gfn)
        elif kind == uapi.KVM_XEN_ATTR_TYPE_UPCALL_VECTOR:
            xen.upcall_vector = check_vector(value.vector)
        elif kind == uapi.KVM_XEN_ATTR_TYPE_EVTCHN:
            xen_evtchn.set_port(vm, value.evtchn)
        elif kind == uapi.KVM_XEN_ATTR_TYPE_XEN_VERSION:
            xen.version = value.xen_version
        else:
            raise OSError(errno.ENOENT, f"there is no attribute {kind} of Xen's")
    return 0


def get_attr(vm: Vm, arg: int) -> int:
    """KVM_XEN_HVM_GET_ATTR: ENOENT for a type there is not."""
    request = vm.services.read_struct(arg, uapi.KvmXenHvmAttr)
    kind, value = request.type, request.u
    xen: Xen = vm.arch.xen
    if kind == uapi.KVM_XEN_ATTR_TYPE_LONG_MODE:
        value.long_mode = xen.long_mode
    elif kind == uapi.KVM_XEN_ATTR_TYPE_SHARED_INFO:
        value.shared_info.gfn = uapi.XEN_INVALID if xen.shared_info is None else xen.shared_info >> 12
    elif kind == uapi.KVM_XEN_ATTR_TYPE_UPCALL_VECTOR:
        value.vector = xen.upcall_vector
    elif kind == uapi.KVM_XEN_ATTR_TYPE_XEN_VERSION:
        value.xen_version = xen.version
    else:
        raise OSError(errno.ENOENT, f"attribute {kind} of Xen's cannot be read")
    vm.services.write_struct(arg, request)
    return 0


def check_vector(vector: int) -> int:
    """A vector for upcalls, 0 for none; EINVAL."""
    if vector and vector < FIRST_VECTOR:
        raise OSError(errno.EINVAL, f"an upcall cannot have vector {vector}")
    return vector
