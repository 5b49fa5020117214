# SPDX-License-Identifier: GPL-2.0-only
"""The interrupt side of a VM: lines, eventfds, routing, messages."""

from __future__ import annotations

from collections.abc import Sequence

from anykvm.api.handle import Handle
from anykvm.api.routing import Route, encode_msi, encode_routing
from anykvm.uapi.common import (
    KVM_CREATE_IRQCHIP,
    KVM_IOEVENTFD,
    KVM_IOEVENTFD_FLAG_DATAMATCH,
    KVM_IOEVENTFD_FLAG_DEASSIGN,
    KVM_IOEVENTFD_FLAG_PIO,
    KVM_IRQ_LINE,
    KVM_IRQFD,
    KVM_IRQFD_FLAG_DEASSIGN,
    KVM_IRQFD_FLAG_RESAMPLE,
    KVM_SET_GSI_ROUTING,
    KVM_SIGNAL_MSI,
    KvmIoeventfd,
    KvmIrqfd,
    KvmIrqLevel,
)


class Interrupts(Handle):
    """Interrupts into a VM, and notifications out of it."""

    def create_irqchip(self) -> None:
        """Make the architecture's default in-kernel interrupt controller (api.rst 4.24); on arm64 a GICv2.

        Errors: EEXIST when there is one, EBUSY when a vCPU has run, ENODEV or ENOTTY where there is none, EBADF.

        >>> vm.create_irqchip()
        """
        self.ioctl(KVM_CREATE_IRQCHIP)

    def irq_line(self, irq: int, level: int) -> None:
        """Drive an interrupt line high (1) or low (0) (api.rst 4.25).

        ``irq`` is the architecture's encoding: see :func:`anykvm.api.arm64.spi`, ``ppi`` and ``cpu_irq``; a GSI on
        x86. Errors: EINVAL for a line there is not, ENXIO without an interrupt controller, EBADF.

        >>> from anykvm.api import arm64
        >>> vm.irq_line(arm64.cpu_irq(vcpu_index=0), 1)
        """
        self.ioctl(KVM_IRQ_LINE, KvmIrqLevel(irq=irq, level=level))

    def irqfd(self, fd: int, gsi: int, *, resamplefd: int | None = None, deassign: bool = False) -> None:
        """Let every signal of the eventfd ``fd`` raise ``gsi`` (api.rst 4.75).

        With ``resamplefd`` the line is level-triggered: it stays high until the guest acknowledges it, which signals
        ``resamplefd``. ``deassign`` ends it. Errors: EAGAIN while the in-kernel interrupt controller is not initialised
        (arm64), EINVAL without one or for an fd that is no eventfd, EBUSY when this eventfd has it already, EBADF.

        >>> import os
        >>> from anykvm.uapi import arm64, common
        >>> first = vm.create_vcpu(0)
        >>> gic = vm.create_device(common.KVM_DEV_TYPE_ARM_VGIC_V2)
        >>> gic.set_attr(arm64.KVM_DEV_ARM_VGIC_GRP_CTRL, arm64.KVM_DEV_ARM_VGIC_CTRL_INIT)
        >>> event = os.eventfd(0)
        >>> vm.irqfd(event, 8)
        >>> vm.irqfd(event, 8, deassign=True)
        """
        flags = KVM_IRQFD_FLAG_DEASSIGN if deassign else 0
        if resamplefd is not None:
            flags |= KVM_IRQFD_FLAG_RESAMPLE
        self.ioctl(KVM_IRQFD, KvmIrqfd(fd=fd, gsi=gsi, flags=flags, resamplefd=resamplefd or 0))

    def ioeventfd(
        self,
        fd: int,
        address: int,
        length: int = 0,
        *,
        datamatch: int | None = None,
        pio: bool = False,
        deassign: bool = False,
    ) -> None:
        """Let guest writes to ``address`` signal the eventfd ``fd`` instead of exiting (api.rst 4.59).

        ``length`` is 1, 2, 4 or 8 bytes, 0 for any; ``datamatch`` limits it to one value, which needs a length;
        ``pio`` means a port instead of guest-physical memory. ``deassign`` ends it, given the same values. Errors:
        EINVAL, EEXIST when the same is there already, ENOENT when there is nothing to end, EBADF.

        >>> import os
        >>> event = os.eventfd(0)
        >>> vm.ioeventfd(event, 0x0A000050, 4, datamatch=1)
        >>> vm.ioeventfd(event, 0x0A000050, 4, datamatch=1, deassign=True)
        """
        flags = KVM_IOEVENTFD_FLAG_PIO if pio else 0
        if datamatch is not None:
            flags |= KVM_IOEVENTFD_FLAG_DATAMATCH
        if deassign:
            flags |= KVM_IOEVENTFD_FLAG_DEASSIGN
        self.ioctl(KVM_IOEVENTFD, KvmIoeventfd(datamatch=datamatch or 0, addr=address, len=length, fd=fd, flags=flags))

    def set_gsi_routing(self, routes: Sequence[Route]) -> None:
        """Replace the whole GSI routing table (api.rst 4.52).

        Errors: EINVAL without an in-kernel interrupt controller, for a route it cannot take or too many, EBADF.

        >>> from anykvm.api import IrqchipRoute
        >>> vm.create_irqchip()
        >>> vm.set_gsi_routing([IrqchipRoute(gsi=0, irqchip=0, pin=0)])
        """
        self.ioctl(KVM_SET_GSI_ROUTING, encode_routing(routes))

    def signal_msi(self, address: int, data: int, *, devid: int | None = None) -> bool:
        """Deliver a message-signalled interrupt now (api.rst 4.71).

        True if it was delivered, False if the guest blocked it. Errors: EINVAL where nothing in the VM takes
        messages, EBADF.

        >>> vm.signal_msi(0x08020040, 5)
        Traceback (most recent call last):
        OSError: [Errno 22] ...
        """
        return self.ioctl(KVM_SIGNAL_MSI, encode_msi(address, data, devid)) > 0
