# SPDX-License-Identifier: GPL-2.0-only
"""The points at which KVM can fail: every way to acquire something from the services, and with which errno.

A contributor who adds a method that acquires to :class:`~anykvm.virt.services.Services` adds a line here, and what is
acquired with it can be made to fail, is counted, and is swept by the lab.
"""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

_NO_FD: Final = (errno.EMFILE, errno.ENFILE)


class Acquire(NamedTuple):
    """One method of the services that acquires.

    ``kind`` is the ledger's, ``name`` the index of the argument that names what is acquired, ``errnos`` are what the
    kernel can answer there.
    """

    kind: str
    name: int
    errnos: tuple[int, ...]


ACQUIRES: Final[dict[str, Acquire]] = {
    "charge": Acquire("memory", 0, (errno.ENOMEM,)),
    "alloc": Acquire("memory", 0, (errno.ENOMEM,)),
    "mutex": Acquire("lock", 0, (errno.ENOMEM,)),
    "thread": Acquire("thread", 0, (errno.EAGAIN,)),
    "timer": Acquire("timer", 0, (errno.ENOMEM,)),
    "memfd": Acquire("fd", 0, (*_NO_FD, errno.ENOMEM)),
    "reopen": Acquire("fd", 1, _NO_FD),
    "epoll": Acquire("fd", 0, (*_NO_FD, errno.ENOMEM)),
    "eventfd": Acquire("fd", 0, (*_NO_FD, errno.ENOMEM)),
    "eventfd_get": Acquire("fd", 1, (errno.EMFILE,)),
    "map": Acquire("map", 2, (errno.ENOMEM,)),
    "obtain": Acquire("", 1, (errno.ENOMEM,)),
}
"""By the method's name. ``obtain`` has its kind as its first argument: "machine", "cpu"."""

PUBLISHES: Final[dict[str, tuple[int, ...]]] = {
    # Counted with the VM's lock held, after precreate.
    "created_vcpus": (),
    # xa_insert allocates nodes.
    "vcpu array": (errno.ENOMEM,),
    # anon_inode_getfile allocates an inode and a file.
    "vcpu fd": (*_NO_FD, errno.ENOMEM),
    "vm fd": (*_NO_FD, errno.ENOMEM),
    "device fd": (*_NO_FD, errno.ENOMEM),
    # Nothing is left that could fail; the ladder takes it back all the same.
    "vcpu online": (),
    "memory slots": (),
    "irq routing": (),
    "irqfd": (),
}
"""``Services.publish(what)``: what the kernel can still answer where something is about to become visible."""

STEP_ERRNOS: Final = (errno.ENOMEM,)
"""A step of a ladder that acquires nothing from the services itself."""
