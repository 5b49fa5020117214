# SPDX-License-Identifier: GPL-2.0-only
"""The device handle: what KVM_CREATE_DEVICE made."""

from __future__ import annotations

from anykvm.api.backend import Backend
from anykvm.api.handle import Attributed
from anykvm.api.memory import Slots


class Device(Attributed):
    """An in-kernel device, such as an interrupt controller; everything it does is in its attributes.

    The device lives on with the VM when its handle is closed.

    >>> from anykvm.uapi.common import KVM_DEV_TYPE_ARM_VGIC_V2
    >>> with vm.create_device(KVM_DEV_TYPE_ARM_VGIC_V2) as gic:
    ...     gic.type == KVM_DEV_TYPE_ARM_VGIC_V2
    True
    """

    def __init__(self, backend: Backend, fd: int, type: int, slots: Slots) -> None:
        super().__init__(backend, fd)
        self.type = type
        self._slots = slots.retain()

    def _release(self) -> None:
        self._slots.release()
