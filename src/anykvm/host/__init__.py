# SPDX-License-Identifier: GPL-2.0-only
"""The machine's own /dev/kvm behind the same ABI."""

from anykvm.host.backend import HostBackend, host_arch, probe, virtualises

__all__ = ["HostBackend", "host_arch", "probe", "virtualises"]
