# SPDX-License-Identifier: GPL-2.0-only
"""The request numbers every architecture shares.

Requests whose structure is the architecture's own (registers, vCPU events, guest debug) are in that architecture's
file. Source: ``include/uapi/linux/kvm.h``; section numbers are those of ``Documentation/virt/kvm/api.rst``.
"""

from __future__ import annotations

from typing import Final

from .ioctl import _IO, _IOR, _IOW, _IOWR, KVMIO
from .structs import (
    KvmClearDirtyLog,
    KvmCoalescedMmioZone,
    KvmCreateDevice,
    KvmCreateGuestMemfd,
    KvmDeviceAttr,
    KvmDirtyLog,
    KvmEnableCap,
    KvmInterrupt,
    KvmIoeventfd,
    KvmIrqchip,
    KvmIrqfd,
    KvmIrqLevel,
    KvmIrqRouting,
    KvmMemoryAttributes,
    KvmMpState,
    KvmMsi,
    KvmOneReg,
    KvmPreFaultMemory,
    KvmRegList,
    KvmSignalMask,
    KvmTranslation,
    KvmUserspaceMemoryRegion,
    KvmUserspaceMemoryRegion2,
)

KVM_API_VERSION: Final = 12

# The system fd (/dev/kvm).
KVM_GET_API_VERSION: Final = _IO(KVMIO, 0x00)  # 4.1
KVM_CREATE_VM: Final = _IO(KVMIO, 0x01)  # 4.2
KVM_CHECK_EXTENSION: Final = _IO(KVMIO, 0x03)  # 4.4, on a VM fd too
KVM_GET_VCPU_MMAP_SIZE: Final = _IO(KVMIO, 0x04)  # 4.5

# A VM fd.
KVM_CREATE_VCPU: Final = _IO(KVMIO, 0x41)  # 4.7
KVM_GET_DIRTY_LOG: Final = _IOW(KVMIO, 0x42, KvmDirtyLog)  # 4.8
KVM_SET_USER_MEMORY_REGION: Final = _IOW(KVMIO, 0x46, KvmUserspaceMemoryRegion)  # 4.35
KVM_SET_USER_MEMORY_REGION2: Final = _IOW(KVMIO, 0x49, KvmUserspaceMemoryRegion2)  # 4.140
KVM_CREATE_IRQCHIP: Final = _IO(KVMIO, 0x60)  # 4.24
KVM_IRQ_LINE: Final = _IOW(KVMIO, 0x61, KvmIrqLevel)  # 4.25
KVM_GET_IRQCHIP: Final = _IOWR(KVMIO, 0x62, KvmIrqchip)  # 4.26
KVM_SET_IRQCHIP: Final = _IOR(KVMIO, 0x63, KvmIrqchip)  # 4.27
KVM_IRQ_LINE_STATUS: Final = _IOWR(KVMIO, 0x67, KvmIrqLevel)
KVM_REGISTER_COALESCED_MMIO: Final = _IOW(KVMIO, 0x67, KvmCoalescedMmioZone)  # 4.116
KVM_UNREGISTER_COALESCED_MMIO: Final = _IOW(KVMIO, 0x68, KvmCoalescedMmioZone)  # 4.116
KVM_SET_GSI_ROUTING: Final = _IOW(KVMIO, 0x6A, KvmIrqRouting)  # 4.52
KVM_IRQFD: Final = _IOW(KVMIO, 0x76, KvmIrqfd)  # 4.75
KVM_SET_BOOT_CPU_ID: Final = _IO(KVMIO, 0x78)  # 4.41
KVM_IOEVENTFD: Final = _IOW(KVMIO, 0x79, KvmIoeventfd)  # 4.59
KVM_SIGNAL_MSI: Final = _IOW(KVMIO, 0xA5, KvmMsi)  # 4.71
KVM_CLEAR_DIRTY_LOG: Final = _IOWR(KVMIO, 0xC0, KvmClearDirtyLog)  # 4.117
KVM_RESET_DIRTY_RINGS: Final = _IO(KVMIO, 0xC7)  # 8.29
KVM_SET_MEMORY_ATTRIBUTES: Final = _IOW(KVMIO, 0xD2, KvmMemoryAttributes)  # 4.141
KVM_CREATE_GUEST_MEMFD: Final = _IOWR(KVMIO, 0xD4, KvmCreateGuestMemfd)  # 4.142
KVM_CREATE_DEVICE: Final = _IOWR(KVMIO, 0xE0, KvmCreateDevice)  # 4.79

# A device fd, and where the architecture offers attributes there, a VM or vCPU fd.
KVM_SET_DEVICE_ATTR: Final = _IOW(KVMIO, 0xE1, KvmDeviceAttr)  # 4.80
KVM_GET_DEVICE_ATTR: Final = _IOW(KVMIO, 0xE2, KvmDeviceAttr)  # 4.80
KVM_HAS_DEVICE_ATTR: Final = _IOW(KVMIO, 0xE3, KvmDeviceAttr)  # 4.81

# A vCPU fd.
KVM_RUN: Final = _IO(KVMIO, 0x80)  # 4.10
KVM_TRANSLATE: Final = _IOWR(KVMIO, 0x85, KvmTranslation)  # 4.15
KVM_INTERRUPT: Final = _IOW(KVMIO, 0x86, KvmInterrupt)  # 4.16
KVM_SET_SIGNAL_MASK: Final = _IOW(KVMIO, 0x8B, KvmSignalMask)  # 4.21
KVM_GET_MP_STATE: Final = _IOR(KVMIO, 0x98, KvmMpState)  # 4.38
KVM_SET_MP_STATE: Final = _IOW(KVMIO, 0x99, KvmMpState)  # 4.39
KVM_NMI: Final = _IO(KVMIO, 0x9A)  # 4.64
KVM_GET_ONE_REG: Final = _IOW(KVMIO, 0xAB, KvmOneReg)  # 4.69
KVM_SET_ONE_REG: Final = _IOW(KVMIO, 0xAC, KvmOneReg)  # 4.68
KVM_GET_REG_LIST: Final = _IOWR(KVMIO, 0xB0, KvmRegList)  # 4.84
KVM_PRE_FAULT_MEMORY: Final = _IOWR(KVMIO, 0xD5, KvmPreFaultMemory)  # 4.143

# Any of them, as the capability says.
KVM_ENABLE_CAP: Final = _IOW(KVMIO, 0xA3, KvmEnableCap)  # 4.37
KVM_GET_STATS_FD: Final = _IO(KVMIO, 0xCE)  # 4.133
