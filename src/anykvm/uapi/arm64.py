# SPDX-License-Identifier: GPL-2.0-only
"""arm64's part of the KVM ABI: register ids, vCPU features, requests, the lines of KVM_IRQ_LINE.

The interrupt controllers' attributes are in ``arm64_vgic``, PSCI in ``psci``, SMCCC in ``smccc``; all of them can be
imported from here. Source: ``arch/arm64/include/uapi/asm/kvm.h``; ``Documentation/virt/kvm/api.rst``, sections 4.68
and 4.82 to 4.84.
"""

from __future__ import annotations

from ctypes import Structure, c_int, c_uint8, c_uint16, c_uint32, c_uint64
from typing import Final

from .arm64_vgic import *  # noqa: F403
from .constants import KVM_REG_ARM64, KVM_REG_SIZE_U32, KVM_REG_SIZE_U64, KVM_REG_SIZE_U128, KVM_REG_SIZE_U512
from .ioctl import _IOR, _IOW, KVMIO
from .psci import *  # noqa: F403
from .smccc import *  # noqa: F403

# Banked SPSRs in kvm_regs.spsr.
KVM_SPSR_EL1: Final = 0
KVM_SPSR_SVC: Final = 0
KVM_SPSR_ABT: Final = 1
KVM_SPSR_UND: Final = 2
KVM_SPSR_IRQ: Final = 3
KVM_SPSR_FIQ: Final = 4
KVM_NR_SPSR: Final = 5

KVM_COALESCED_MMIO_PAGE_OFFSET: Final = 1
KVM_DIRTY_LOG_PAGE_OFFSET: Final = 64
KVM_NR_IRQCHIPS: Final = 1


class UserPtRegs(Structure):
    """The general registers: x0 to x30, sp_el0, pc, pstate."""

    _fields_ = (("regs", c_uint64 * 31), ("sp", c_uint64), ("pc", c_uint64), ("pstate", c_uint64))


class UserFpsimdState(Structure):
    """The 32 vector registers (16 bytes each, as two words, low first) and the two control registers."""

    _fields_ = (("vregs", c_uint64 * 2 * 32), ("fpsr", c_uint32), ("fpcr", c_uint32), ("__reserved", c_uint32 * 2))


class KvmRegs(Structure):
    """What the offsets of the core registers' ids point into; no request carries it whole."""

    _fields_ = (
        ("regs", UserPtRegs),
        ("sp_el1", c_uint64),
        ("elr_el1", c_uint64),
        ("spsr", c_uint64 * KVM_NR_SPSR),
        ("_align", c_uint64),
        ("fp_regs", UserFpsimdState),
    )


class KvmVcpuInit(Structure):
    """KVM_ARM_VCPU_INIT and KVM_ARM_PREFERRED_TARGET: a target and 224 feature bits."""

    _fields_ = (("target", c_uint32), ("features", c_uint32 * 7))


class KvmVcpuEventsException(Structure):
    """The exceptions userspace can see pending or inject."""

    _fields_ = (
        ("serror_pending", c_uint8),
        ("serror_has_esr", c_uint8),
        ("ext_dabt_pending", c_uint8),
        ("pad", c_uint8 * 5),
        ("serror_esr", c_uint64),
    )


class KvmVcpuEvents(Structure):
    """KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS."""

    _fields_ = (("exception", KvmVcpuEventsException), ("reserved", c_uint32 * 12))


KVM_ARM_MAX_DBG_REGS: Final = 16


class KvmGuestDebugArch(Structure):
    """The hardware breakpoints and watchpoints of KVM_SET_GUEST_DEBUG."""

    _fields_ = (
        ("dbg_bcr", c_uint64 * KVM_ARM_MAX_DBG_REGS),
        ("dbg_bvr", c_uint64 * KVM_ARM_MAX_DBG_REGS),
        ("dbg_wcr", c_uint64 * KVM_ARM_MAX_DBG_REGS),
        ("dbg_wvr", c_uint64 * KVM_ARM_MAX_DBG_REGS),
    )


class KvmGuestDebug(Structure):
    """KVM_SET_GUEST_DEBUG."""

    _fields_ = (("control", c_uint32), ("pad", c_uint32), ("arch", KvmGuestDebugArch))


class KvmDebugExitArch(Structure):
    """KVM_EXIT_DEBUG: the syndrome, and for watchpoints the address."""

    _fields_ = (("hsr", c_uint32), ("hsr_high", c_uint32), ("far", c_uint64))


class KvmSyncRegs(Structure):
    """The synchronised registers in the run page: levels of the in-kernel devices' outputs."""

    _fields_ = (("device_irq_level", c_uint64),)


class KvmPmuEventFilter(Structure):
    """A range of PMU events to allow or deny."""

    _fields_ = (("base_event", c_uint16), ("nevents", c_uint16), ("action", c_uint8), ("pad", c_uint8 * 3))


class KvmArmDeviceAddr(Structure):
    """KVM_ARM_SET_DEVICE_ADDR: where a device's registers are in guest-physical memory."""

    _fields_ = (("id", c_uint64), ("addr", c_uint64))


class KvmArmCounterOffset(Structure):
    """KVM_ARM_SET_COUNTER_OFFSET: what the guest's counters lag the host's by, in ticks."""

    _fields_ = (("counter_offset", c_uint64), ("reserved", c_uint64))


class KvmSmcccFilter(Structure):
    """KVM_ARM_VM_SMCCC_FILTER: what becomes of a range of hypercalls."""

    _fields_ = (("base", c_uint32), ("nr_functions", c_uint32), ("action", c_uint8), ("pad", c_uint8 * 15))


class RegMaskRange(Structure):
    """KVM_ARM_GET_REG_WRITABLE_MASKS: where to write the masks of the writable id register bits."""

    _fields_ = (("addr", c_uint64), ("range", c_uint32), ("reserved", c_uint32 * 13))


KVM_SET_GUEST_DEBUG: Final = _IOW(KVMIO, 0x9B, KvmGuestDebug)
KVM_GET_VCPU_EVENTS: Final = _IOR(KVMIO, 0x9F, KvmVcpuEvents)
KVM_SET_VCPU_EVENTS: Final = _IOW(KVMIO, 0xA0, KvmVcpuEvents)
KVM_ARM_SET_DEVICE_ADDR: Final = _IOW(KVMIO, 0xAB, KvmArmDeviceAddr)
KVM_ARM_VCPU_INIT: Final = _IOW(KVMIO, 0xAE, KvmVcpuInit)
KVM_ARM_PREFERRED_TARGET: Final = _IOR(KVMIO, 0xAF, KvmVcpuInit)
KVM_ARM_SET_COUNTER_OFFSET: Final = _IOW(KVMIO, 0xB5, KvmArmCounterOffset)
KVM_ARM_GET_REG_WRITABLE_MASKS: Final = _IOR(KVMIO, 0xB6, RegMaskRange)
KVM_ARM_VCPU_FINALIZE: Final = _IOW(KVMIO, 0xC2, c_int)

# KVM_ARM_VCPU_INIT: targets and feature bits.
KVM_ARM_TARGET_AEM_V8: Final = 0
KVM_ARM_TARGET_FOUNDATION_V8: Final = 1
KVM_ARM_TARGET_CORTEX_A57: Final = 2
KVM_ARM_TARGET_XGENE_POTENZA: Final = 3
KVM_ARM_TARGET_CORTEX_A53: Final = 4
KVM_ARM_TARGET_GENERIC_V8: Final = 5
KVM_ARM_NUM_TARGETS: Final = 6
KVM_ARM_VCPU_POWER_OFF: Final = 0
KVM_ARM_VCPU_EL1_32BIT: Final = 1
KVM_ARM_VCPU_PSCI_0_2: Final = 2
KVM_ARM_VCPU_PMU_V3: Final = 3
KVM_ARM_VCPU_SVE: Final = 4
KVM_ARM_VCPU_PTRAUTH_ADDRESS: Final = 5
KVM_ARM_VCPU_PTRAUTH_GENERIC: Final = 6
KVM_ARM_VCPU_HAS_EL2: Final = 7
KVM_ARM_VCPU_HAS_EL2_E2H0: Final = 8

# KVM_ARM_SET_DEVICE_ADDR.
KVM_ARM_DEVICE_TYPE_SHIFT: Final = 0
KVM_ARM_DEVICE_TYPE_MASK: Final = 0xFFFF << KVM_ARM_DEVICE_TYPE_SHIFT
KVM_ARM_DEVICE_ID_SHIFT: Final = 16
KVM_ARM_DEVICE_ID_MASK: Final = 0xFFFF << KVM_ARM_DEVICE_ID_SHIFT
KVM_ARM_DEVICE_VGIC_V2: Final = 0

# KVM_SET_GUEST_DEBUG and KVM_EXIT_DEBUG.
KVM_DEBUG_ARCH_HSR_HIGH_VALID: Final = 1 << 0
KVM_GUESTDBG_USE_SW_BP: Final = 1 << 16
KVM_GUESTDBG_USE_HW: Final = 1 << 17

# kvm_sync_regs.device_irq_level.
KVM_ARM_DEV_EL1_VTIMER: Final = 1 << 0
KVM_ARM_DEV_EL1_PTIMER: Final = 1 << 1
KVM_ARM_DEV_PMU: Final = 1 << 2

# ONE_REG ids: the "coprocessor" says which kind of register.
KVM_REG_ARM_COPROC_MASK: Final = 0x000000000FFF0000
KVM_REG_ARM_COPROC_SHIFT: Final = 16
KVM_REG_ARM_CORE: Final = 0x0010 << KVM_REG_ARM_COPROC_SHIFT
KVM_REG_ARM_DEMUX: Final = 0x0011 << KVM_REG_ARM_COPROC_SHIFT
KVM_REG_ARM_DEMUX_ID_MASK: Final = 0x000000000000FF00
KVM_REG_ARM_DEMUX_ID_SHIFT: Final = 8
KVM_REG_ARM_DEMUX_ID_CCSIDR: Final = 0x00 << KVM_REG_ARM_DEMUX_ID_SHIFT
KVM_REG_ARM_DEMUX_VAL_MASK: Final = 0x00000000000000FF
KVM_REG_ARM_DEMUX_VAL_SHIFT: Final = 0
KVM_REG_ARM64_SYSREG: Final = 0x0013 << KVM_REG_ARM_COPROC_SHIFT
KVM_REG_ARM64_SYSREG_OP0_MASK: Final = 0x000000000000C000
KVM_REG_ARM64_SYSREG_OP0_SHIFT: Final = 14
KVM_REG_ARM64_SYSREG_OP1_MASK: Final = 0x0000000000003800
KVM_REG_ARM64_SYSREG_OP1_SHIFT: Final = 11
KVM_REG_ARM64_SYSREG_CRN_MASK: Final = 0x0000000000000780
KVM_REG_ARM64_SYSREG_CRN_SHIFT: Final = 7
KVM_REG_ARM64_SYSREG_CRM_MASK: Final = 0x0000000000000078
KVM_REG_ARM64_SYSREG_CRM_SHIFT: Final = 3
KVM_REG_ARM64_SYSREG_OP2_MASK: Final = 0x0000000000000007
KVM_REG_ARM64_SYSREG_OP2_SHIFT: Final = 0
KVM_REG_ARM_FW: Final = 0x0014 << KVM_REG_ARM_COPROC_SHIFT
KVM_REG_ARM64_SVE: Final = 0x0015 << KVM_REG_ARM_COPROC_SHIFT
KVM_REG_ARM64_SVE_VLS: Final = KVM_REG_ARM64 | KVM_REG_ARM64_SVE | KVM_REG_SIZE_U512 | 0xFFFF
KVM_REG_ARM_FW_FEAT_BMAP: Final = 0x0016 << KVM_REG_ARM_COPROC_SHIFT


def sys_reg(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """The ONE_REG id of a system register, from the fields of its MRS encoding (ARM64_SYS_REG).

    >>> hex(sys_reg(3, 0, 1, 0, 0))
    '0x603000000013c080'
    """
    return (
        KVM_REG_ARM64
        | KVM_REG_SIZE_U64
        | KVM_REG_ARM64_SYSREG
        | op0 << KVM_REG_ARM64_SYSREG_OP0_SHIFT & KVM_REG_ARM64_SYSREG_OP0_MASK
        | op1 << KVM_REG_ARM64_SYSREG_OP1_SHIFT & KVM_REG_ARM64_SYSREG_OP1_MASK
        | crn << KVM_REG_ARM64_SYSREG_CRN_SHIFT & KVM_REG_ARM64_SYSREG_CRN_MASK
        | crm << KVM_REG_ARM64_SYSREG_CRM_SHIFT & KVM_REG_ARM64_SYSREG_CRM_MASK
        | op2 << KVM_REG_ARM64_SYSREG_OP2_SHIFT & KVM_REG_ARM64_SYSREG_OP2_MASK
    )


def core_reg(offset: int, size: int = KVM_REG_SIZE_U64) -> int:
    """The ONE_REG id of a core register: its byte offset in KvmRegs and its KVM_REG_SIZE_*.

    >>> hex(core_reg(KvmRegs.sp_el1.offset))
    '0x6030000000100044'
    """
    return KVM_REG_ARM64 | size | KVM_REG_ARM_CORE | offset // 4


def fw_reg(number: int) -> int:
    """The ONE_REG id of a firmware register (KVM_REG_ARM_FW_REG)."""
    return KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_FW | number & 0xFFFF


def fw_feat_bmap_reg(number: int) -> int:
    """The ONE_REG id of a firmware feature bitmap (KVM_REG_ARM_FW_FEAT_BMAP_REG)."""
    return KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_FW_FEAT_BMAP | number & 0xFFFF


def x_reg(number: int) -> int:
    """The ONE_REG id of x0 to x30.

    >>> hex(x_reg(30))
    '0x603000000010003c'
    """
    if not 0 <= number <= 30:
        raise ValueError(f"the general registers are x0 to x30, there is no x{number}")
    return core_reg(number * 8)


def v_reg(number: int) -> int:
    """The ONE_REG id of v0 to v31 (16 bytes).

    >>> hex(v_reg(0))
    '0x6040000000100054'
    """
    if not 0 <= number <= 31:
        raise ValueError(f"the vector registers are v0 to v31, there is no v{number}")
    return core_reg(KvmRegs.fp_regs.offset + number * 16, KVM_REG_SIZE_U128)


# The core registers that have a name.
REG_SP: Final = core_reg(KvmRegs.regs.offset + UserPtRegs.sp.offset)
REG_PC: Final = core_reg(KvmRegs.regs.offset + UserPtRegs.pc.offset)
REG_PSTATE: Final = core_reg(KvmRegs.regs.offset + UserPtRegs.pstate.offset)
REG_SP_EL1: Final = core_reg(KvmRegs.sp_el1.offset)
REG_ELR_EL1: Final = core_reg(KvmRegs.elr_el1.offset)
REG_SPSR_EL1: Final = core_reg(KvmRegs.spsr.offset)
REG_FPSR: Final = core_reg(KvmRegs.fp_regs.offset + UserFpsimdState.fpsr.offset, KVM_REG_SIZE_U32)
REG_FPCR: Final = core_reg(KvmRegs.fp_regs.offset + UserFpsimdState.fpcr.offset, KVM_REG_SIZE_U32)

# Timers. The virtual timer's CVAL and CNT have each other's encoding, and that is the ABI.
KVM_REG_ARM_PTIMER_CTL: Final = sys_reg(3, 3, 14, 2, 1)
KVM_REG_ARM_PTIMER_CVAL: Final = sys_reg(3, 3, 14, 2, 2)
KVM_REG_ARM_PTIMER_CNT: Final = sys_reg(3, 3, 14, 0, 1)
KVM_REG_ARM_TIMER_CTL: Final = sys_reg(3, 3, 14, 3, 1)
KVM_REG_ARM_TIMER_CVAL: Final = sys_reg(3, 3, 14, 0, 2)
KVM_REG_ARM_TIMER_CNT: Final = sys_reg(3, 3, 14, 3, 2)

# KVM as firmware.
KVM_REG_ARM_PSCI_VERSION: Final = fw_reg(0)
KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1: Final = fw_reg(1)
KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1_NOT_AVAIL: Final = 0
KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1_AVAIL: Final = 1
KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1_NOT_REQUIRED: Final = 2
KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_2: Final = fw_reg(2)
KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_2_NOT_AVAIL: Final = 0
KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_2_UNKNOWN: Final = 1
KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_2_AVAIL: Final = 2
KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_2_NOT_REQUIRED: Final = 3
KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_2_ENABLED: Final = 1 << 4
KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_3: Final = fw_reg(3)
KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_3_NOT_AVAIL: Final = 0
KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_3_AVAIL: Final = 1
KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_3_NOT_REQUIRED: Final = 2
KVM_REG_ARM_STD_BMAP: Final = fw_feat_bmap_reg(0)
KVM_REG_ARM_STD_BIT_TRNG_V1_0: Final = 0
KVM_REG_ARM_STD_HYP_BMAP: Final = fw_feat_bmap_reg(1)
KVM_REG_ARM_STD_HYP_BIT_PV_TIME: Final = 0
KVM_REG_ARM_VENDOR_HYP_BMAP: Final = fw_feat_bmap_reg(2)
KVM_REG_ARM_VENDOR_HYP_BIT_FUNC_FEAT: Final = 0
KVM_REG_ARM_VENDOR_HYP_BIT_PTP: Final = 1

# Device attributes on a VM fd.
KVM_ARM_VM_SMCCC_CTRL: Final = 0
KVM_ARM_VM_SMCCC_FILTER: Final = 0

# Device attributes on a vCPU fd.
KVM_ARM_VCPU_PMU_V3_CTRL: Final = 0
KVM_ARM_VCPU_PMU_V3_IRQ: Final = 0
KVM_ARM_VCPU_PMU_V3_INIT: Final = 1
KVM_ARM_VCPU_PMU_V3_FILTER: Final = 2
KVM_ARM_VCPU_PMU_V3_SET_PMU: Final = 3
KVM_ARM_VCPU_TIMER_CTRL: Final = 1
KVM_ARM_VCPU_TIMER_IRQ_VTIMER: Final = 0
KVM_ARM_VCPU_TIMER_IRQ_PTIMER: Final = 1
KVM_ARM_VCPU_PVTIME_CTRL: Final = 2
KVM_ARM_VCPU_PVTIME_IPA: Final = 0

# KVM_IRQ_LINE: the irq field.
KVM_ARM_IRQ_VCPU2_SHIFT: Final = 28
KVM_ARM_IRQ_VCPU2_MASK: Final = 0xF
KVM_ARM_IRQ_TYPE_SHIFT: Final = 24
KVM_ARM_IRQ_TYPE_MASK: Final = 0xF
KVM_ARM_IRQ_VCPU_SHIFT: Final = 16
KVM_ARM_IRQ_VCPU_MASK: Final = 0xFF
KVM_ARM_IRQ_NUM_SHIFT: Final = 0
KVM_ARM_IRQ_NUM_MASK: Final = 0xFFFF
KVM_ARM_IRQ_TYPE_CPU: Final = 0
KVM_ARM_IRQ_TYPE_SPI: Final = 1
KVM_ARM_IRQ_TYPE_PPI: Final = 2
KVM_ARM_IRQ_CPU_IRQ: Final = 0
KVM_ARM_IRQ_CPU_FIQ: Final = 1
KVM_ARM_IRQ_GIC_MAX: Final = 127

# PSCI 0.1, whose function numbers are KVM's own.
KVM_PSCI_FN_BASE: Final = 0x95C1BA5E
KVM_PSCI_FN_CPU_SUSPEND: Final = KVM_PSCI_FN_BASE + 0
KVM_PSCI_FN_CPU_OFF: Final = KVM_PSCI_FN_BASE + 1
KVM_PSCI_FN_CPU_ON: Final = KVM_PSCI_FN_BASE + 2
KVM_PSCI_FN_MIGRATE: Final = KVM_PSCI_FN_BASE + 3

# Exits: flags of system events, hypercalls and failed entries.
KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2: Final = 1 << 0
KVM_SYSTEM_EVENT_SHUTDOWN_FLAG_PSCI_OFF2: Final = 1 << 0
KVM_HYPERCALL_EXIT_SMC: Final = 1 << 0
KVM_HYPERCALL_EXIT_16BIT: Final = 1 << 1
KVM_EXIT_FAIL_ENTRY_CPU_UNSUPPORTED: Final = 1 << 0
