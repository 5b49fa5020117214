# SPDX-License-Identifier: GPL-2.0-only
"""What a vCPU has in mind besides the engine's registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anykvm.uapi import x86 as uapi

from . import debug, smm, sysregs
from .half_done import Batch, HalfDone

if TYPE_CHECKING:
    from anykvm.virt.vcpu import Vcpu

    from ..sleep import Sleep
    from .engine import CpuidLeaf, CpuLike
    from .hyperv_vcpu import HypervVcpu
    from .lapic import Lapic
    from .vm import X86Vm
    from .xen_vcpu import XenVcpu

DEFAULT_MAXPHYADDR: Final = 36
APIC_BASE_RESET: Final = 0xFEE00000


class VcpuState(HalfDone):
    """What :class:`.vcpu.X86Vcpu` has.

    ``reply`` says where in the run page userspace's answer to a half-done instruction will be (offset and bytes), None
    if none is owed. ``attention`` makes the run loop look at everything that is not the guest itself: signals, NMIs,
    INIT, a moved clock.

    It has slots because a dictionary of so many names costs more memory, and time, than the rest of creating it.
    """

    __slots__ = (
        "bsp",
        "chip_line",
        "clock_stale",
        "cpuid",
        "debug_dr7",
        "eoi_vector",
        "exception",
        "exception_payload",
        "filter_stale",
        "guest_debug",
        "guest_stopped",
        "halted_unseen",
        "has_run",
        "hyperv",
        "hyperv_enabled",
        "injected_irq",
        "lapic",
        "live",
        "maxphyaddr",
        "mce_banks",
        "mcg_cap",
        "mcg_ctl",
        "mp_state",
        "msrs",
        "nmi_injected",
        "nmi_pending",
        "pv_enforced",
        "pv_features",
        "pv_unhalted",
        "reported",
        "run_flags",
        "sleep",
        "smm",
        "steal_msr",
        "steal_seen",
        "steal_written",
        "system_time",
        "tpr_access",
        "triple_fault",
        "tsc_khz",
        "user_apic_base",
        "user_cr8",
        "vapic_addr",
        "vcpu_id",
        "vm",
        "wbinvd_mask",
        "window",
        "words",
        "xen",
        "xen_line",
    )

    def __init__(self, vcpu: Vcpu, vm: X86Vm) -> None:
        self.vcpu = vcpu
        self.vm: X86Vm = vm
        self.vcpu_id = vcpu.vcpu_id
        self.cpu: CpuLike
        self.words: memoryview[int]
        self.lapic: Lapic | None = None
        self.bsp = vcpu.vcpu_id == vm.boot_cpu_id
        self.mp_state: int
        self.user_apic_base = APIC_BASE_RESET | uapi.MSR_IA32_APICBASE_ENABLE | self.bsp * uapi.MSR_IA32_APICBASE_BSP
        self.user_cr8 = 0
        self.sleep: Sleep
        self.live = False
        self.has_run = False
        self.attention = False
        self.cpuid: tuple[CpuidLeaf, ...] = ()
        self.maxphyaddr = DEFAULT_MAXPHYADDR
        self.msrs: dict[int, int] = {}
        self.mcg_cap: int = sysregs.KVM_MAX_MCE_BANKS
        self.mcg_ctl: int = 0
        self.mce_banks: memoryview[int]
        self.wbinvd_mask: memoryview[int]
        """The physical CPUs the vCPU has been on, a bit each."""
        # What is on its way to the guest.
        self.chip_line = False
        self.xen_line = False
        """Whether Xen's upcall waits."""
        self.injected_irq: int | None = None
        self.exception: tuple[int, int | None] | None = None
        self.nmi_pending = False
        self.nmi_injected = False
        """An NMI that userspace says had begun to be delivered."""
        self.smm = smm.Smm()
        self.run_flags = 0
        """``kvm_run.flags``."""
        self.pv_unhalted = False
        self.halted_unseen = False
        """Halted by a HLT that does not exit (KVM_CAP_X86_DISABLE_EXITS)."""
        self.window = False
        """Whether the engine has been asked to say when an interrupt can be taken."""
        self.triple_fault = False
        self.eoi_vector = -1
        self.reported = False
        """Whether the run page says already what it says after every KVM_RUN."""
        self.exception_payload: int | None = None
        """With an exception that is pending: what goes to CR2 or DR6 when it is delivered."""
        self.tpr_access: tuple[int, bool] | None = None
        self.vapic_addr = 0
        self.filter_stale = True
        """Whether the engine is to be told anew which instructions come to us: the MSR filter or the quirks changed."""
        self.pv_enforced = False
        """KVM_CAP_ENFORCE_PV_FEATURE_CPUID."""
        self.pv_features = 0
        self.hyperv_enabled = False
        self.hyperv: HypervVcpu | None = None
        """Made by :meth:`own_hyperv`, for the few that need it."""
        self.xen: XenVcpu | None = None
        """Made by :meth:`own_xen`, likewise."""
        self.steal_msr: int = 0
        self.steal_seen = 0
        self.steal_written = 0
        # A half-done instruction.
        self.reply: tuple[int, int] | None = None
        self.msr_exit = False
        self.rip_ahead = 0
        """How far RIP shows to be behind an OUT that userspace is told of (KVM_X86_QUIRK_OUT_7E_INC_RIP)."""
        self.batch: Batch | None = None
        self.hypercall_exit = 0
        """How userspace was last asked to serve one: KVM_EXIT_HYPERCALL, KVM_EXIT_HYPERV or KVM_EXIT_XEN."""
        self.hypercall_mask = 0
        """While it is asked: the bits of RAX that its answer fills."""
        self.owed: int | None = None
        """What an instruction that KVM_RUN left half done (EINTR) goes on with."""
        self.wanted_regs: tuple[bytes, bytes] | None = None
        self.finished: tuple[bytes, bytes] | None = None
        """The registers when an instruction was half done, and what userspace wrote then."""
        # kvmclock.
        self.system_time: int = 0
        self.clock_stale = False
        self.guest_stopped = False
        self.guest_debug = 0
        self.debug_dr7 = debug.DR7_RESET
        self.tsc_khz = vm.default_tsc_khz
