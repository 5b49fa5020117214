# SPDX-License-Identifier: GPL-2.0-only
"""The machine's own /dev/kvm behind the same ABI."""

from anykvm.host.backend import DEV_KVM, EMULATES, HostBackend, host_arch, probe, virtualises

__all__ = ["DEV_KVM", "EMULATES", "HostBackend", "host_arch", "probe", "virtualises"]
