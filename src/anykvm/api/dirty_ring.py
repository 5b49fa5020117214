# SPDX-License-Identifier: GPL-2.0-only
"""A vCPU's dirty ring, as userspace sees it."""

from __future__ import annotations

import ctypes
from typing import Final, NamedTuple

from anykvm.uapi.constants import KVM_DIRTY_GFN_F_DIRTY, KVM_DIRTY_GFN_F_RESET
from anykvm.uapi.structs import KvmDirtyGfn

_WORDS: Final = ctypes.sizeof(KvmDirtyGfn) // 4


class DirtyPage(NamedTuple):
    """A page that a vCPU wrote: the slot's number (address space in the upper 16 bits), the page's number in it."""

    slot: int
    page: int


class DirtyRing:
    """The ring of one vCPU, from :meth:`Vcpu.dirty_ring`; one reader takes the entries, in order.

    >>> vm = kvm.create_vm()
    >>> vm.enable_dirty_ring(4096)
    >>> vm.create_vcpu(0).dirty_ring(4096).take()
    []
    """

    def __init__(self, view: memoryview) -> None:
        self._words = view.cast("B").cast("I")
        self._quads = view.cast("B").cast("Q")
        self._entries = len(self._words) // _WORDS
        self._next = 0

    def take(self) -> list[DirtyPage]:
        """Take every entry there is, and mark them: :meth:`Vm.reset_dirty_rings` gives them back.

        Read a page's content after that, not before: what the guest writes in between is no new entry.

        >>> vm = kvm.create_vm()
        >>> vm.enable_dirty_ring(4096)
        >>> ring = vm.create_vcpu(0).dirty_ring(4096)
        >>> ring.take(), vm.reset_dirty_rings()
        ([], 0)
        """
        taken: list[DirtyPage] = []
        while True:
            index = (self._next & self._entries - 1) * _WORDS
            flags = self._words[index]
            if not flags & KVM_DIRTY_GFN_F_DIRTY or flags & KVM_DIRTY_GFN_F_RESET:
                return taken
            taken.append(DirtyPage(self._words[index + 1], self._quads[index // 2 + 1]))
            self._words[index] = KVM_DIRTY_GFN_F_DIRTY | KVM_DIRTY_GFN_F_RESET
            self._next += 1
