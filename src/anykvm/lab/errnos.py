# SPDX-License-Identifier: GPL-2.0-only
"""Which errno the kernel gives where: the table the sweep judges by.

It says what the kernel does, from its sources and from calls on a real one, and is not made from the code that is
judged. ``virt/kvm/kvm_main.c``: a structure, a page or a node that cannot be had is ENOMEM; a file descriptor that
cannot be had is what get_unused_fd_flags and anon_inode_getfile say, EMFILE, ENFILE or ENOMEM; nothing is translated
on the way out. Userspace cannot tell which allocation failed.
"""

from __future__ import annotations

import errno
from typing import Final

_MEMORY: Final = frozenset({errno.ENOMEM})
_FD: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

RESOURCES: Final[dict[str, frozenset[int]]] = {
    "memory": _MEMORY,
    "lock": _MEMORY,
    "timer": _MEMORY,
    "map": _MEMORY,
    "machine": _MEMORY,
    "cpu": _MEMORY,
    "step": _MEMORY,
    "fd": _FD,
    # xa_insert, anon_inode_getfile.
    "publish": _FD,
    # A kernel thread that cannot be forked (kvm has none for irqfds; the host's clone says EAGAIN).
    "thread": frozenset({errno.EAGAIN, errno.ENOMEM}),
}
"""What a request that needs such a thing ends with when it cannot have it."""

REQUESTS: Final = frozenset(
    {
        "KVM_CREATE_VM",
        "KVM_CREATE_VCPU",
        "KVM_CREATE_DEVICE",
        "KVM_CREATE_IRQCHIP",
        "KVM_CREATE_PIT2",
        "KVM_ENABLE_CAP",
        "KVM_SET_USER_MEMORY_REGION",
        "KVM_SET_DEVICE_ATTR",
        "KVM_IRQFD",
        "KVM_IOEVENTFD",
        "KVM_REGISTER_COALESCED_MMIO",
        "KVM_GET_STATS_FD",
        "open",
    }
)
"""Requests that may acquire something; in any other one a point that can fail is a finding of its own."""

REFUSALS: Final[dict[str, int]] = {
    "id too large": errno.EINVAL,
    "id of 2**32": errno.EINVAL,
    "too many vCPUs": errno.EINVAL,
    "duplicate id": errno.EEXIST,
    "duplicate id after close": errno.EEXIST,
    "id beyond KVM_CAP_MAX_VCPU_ID": errno.EINVAL,
    "vgic initialised": errno.EBUSY,
    "id beyond the GIC's": errno.EINVAL,
    "irqchip after a vCPU": errno.EINVAL,
    "second irqchip": errno.EEXIST,
}
"""What KVM_CREATE_VCPU, and what must come before it, refuses without any fault."""


def wrong(request: str, kind: str, code: int, got: int) -> str:
    """Say what is wrong with an errno that came out of a request; empty if it is the kernel's."""
    name = errno.errorcode.get(got, str(got))
    if request not in REQUESTS:
        return f"{request} can fail with {name}: the kernel's acquires nothing there"
    allowed = RESOURCES.get(kind, frozenset())
    if code not in allowed:
        return f"{errno.errorcode.get(code, str(code))} for a {kind}: the kernel never gives that"
    if got != code:
        return f"{name}, and the kernel gives {errno.errorcode[code]}"
    return ""
