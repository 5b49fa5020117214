# SPDX-License-Identifier: GPL-2.0-only
"""The system handle: /dev/kvm, whoever provides it."""

from __future__ import annotations

from anykvm.api.backend import Backend, resolve
from anykvm.api.handle import Capable
from anykvm.api.vm import Vm
from anykvm.api.x86 import X86System
from anykvm.uapi.common import KVM_CREATE_VM, KVM_GET_API_VERSION, KVM_GET_VCPU_MMAP_SIZE


class Kvm(Capable, X86System):
    """The system handle.

    ``backend`` is ``"auto"`` (the machine's /dev/kvm where it runs guests of ``arch``, else software),
    ``"software"``, ``"host"``, or a :class:`Backend`, whose own architecture counts then.

    Errors: ValueError for an unknown backend, :class:`UnsupportedArchitecture`, :class:`BackendUnavailable`, OSError
    as opening /dev/kvm gives.

    >>> with Kvm("software", arch="arm64") as kvm:
    ...     kvm.api_version()
    12
    """

    def __init__(self, backend: str | Backend = "auto", arch: str = "arm64") -> None:
        answering = resolve(backend, arch) if isinstance(backend, str) else backend
        super().__init__(answering, answering.open())

    @property
    def backend(self) -> Backend:
        """What answers the ABI.

        >>> kvm.backend.name
        'software'
        """
        return self._backend

    @property
    def arch(self) -> str:
        """The architecture of the guests.

        >>> kvm.arch
        'arm64'
        """
        return self._backend.arch

    def api_version(self) -> int:
        """The version of the ABI, 12 since 2007 (api.rst 4.1). Errors: EBADF.

        >>> kvm.api_version()
        12
        """
        return self.ioctl(KVM_GET_API_VERSION)

    def vcpu_mmap_size(self) -> int:
        """How many bytes of a vCPU fd to map: the run page and what follows it (api.rst 4.5). Errors: EBADF.

        >>> kvm.vcpu_mmap_size() >= 4096
        True
        """
        return self.ioctl(KVM_GET_VCPU_MMAP_SIZE)

    def create_vm(self, type: int = 0) -> Vm:
        """Make a VM without memory and vCPUs (api.rst 4.2).

        ``type`` is the architecture's; on arm64 log2 of the guest-physical address size in bytes, 0 for 40 bits.
        Errors: EINVAL for a type there is not, EMFILE, ENOMEM, EBADF.

        >>> with kvm.create_vm() as vm:
        ...     vm.fd >= 0
        True
        """
        return Vm(self._backend, self.ioctl(KVM_CREATE_VM, type), self.vcpu_mmap_size())
