# SPDX-License-Identifier: GPL-2.0-only
"""What is not compared between two KVMs, and why; all else is.

MASKS are values that differ between two runs, or two machines, of the same kernel. CAPABILITIES are those whose value
says what the hardware has, or what is not offered yet: docs/status.md and docs/differences.md name them.
"""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

MASKS: dict[tuple[str, str], str] = {
    ("KVM_GET_CLOCK", "clock"): "time",
    ("KVM_GET_CLOCK", "realtime"): "time",
    ("KVM_GET_CLOCK", "host_tsc"): "time",
    ("KVM_GET_CLOCK", "flags"): "which clocks are stable depends on the host's",
    ("KVM_GET_PIT2", "channels.*.count_load_time"): "time",
    ("KVM_GET_PIT", "channels.*.count_load_time"): "time",
    ("KVM_GET_LAPIC", "regs.390"): "the timer's current count is time",
    ("KVM_GET_TSC_KHZ", "result"): "the host's TSC, or the engine's",
    ("KVM_GET_SUPPORTED_CPUID", "*"): "what the CPU has",
    ("KVM_GET_EMULATED_CPUID", "*"): "what the kernel emulates on its CPU",
    ("KVM_GET_MSR_INDEX_LIST", "*"): "what the CPU has",
    ("KVM_GET_MSR_FEATURE_INDEX_LIST", "*"): "what the CPU has",
    ("KVM_X86_GET_MCE_CAP_SUPPORTED", "*"): "what the CPU has",
    ("KVM_GET_XSAVE", "region"): "x87 and SSE are compared by KVM_GET_FPU; the rest is what the CPU has",
    ("KVM_GET_XSAVE2", "region"): "as KVM_GET_XSAVE",
    ("KVM_GET_DEVICE_ATTR", "*"): "the address is in it; the value is peeked",
    ("KVM_GET_NR_MMU_PAGES", "result"): "the kernel's shadow pages; there are none here",
    ("KVM_GET_CPUID2", "*.padding"): "not written",
    ("KVM_GET_STATS_FD", "*"): "each has the statistics it has",
    ("KVM_CLEAR_DIRTY_LOG", "_bitmap.*"): "an address",
    ("KVM_SET_TSC_KHZ", "*"): "only hardware that scales its TSC has other rates",
    ("KVM_GET_ONE_REG", "*"): "x86 has it since Linux 6.18, and not here",
    ("KVM_SET_ONE_REG", "*"): "as KVM_GET_ONE_REG",
    ("KVM_GET_REGS", "rflags"): "the kernel's emulator leaves undefined flags as its host's CPU does",
}

WHOLE = frozenset({"KVM_SET_TSC_KHZ", "KVM_GET_ONE_REG", "KVM_SET_ONE_REG"})
"""Requests of which not even the errno is compared."""


def mask(operation: list[Any], outcome: Any) -> Any:
    """The outcome without what may differ: "*" stands where something was."""
    if operation[0] != "ioctl":
        return outcome
    request = operation[2]
    if request in WHOLE:
        return "*"
    if not isinstance(outcome, int | list):
        return outcome
    if request == "KVM_GET_VCPU_EVENTS" and isinstance(outcome, list):
        return [outcome[0], stale(outcome[1])]
    if request == "KVM_GET_MSRS" and isinstance(outcome, list):
        return [outcome[0], {path: value for path, value in outcome[1].items() if not timely(path, outcome[1])}]
    if request in ("KVM_GET_SREGS", "KVM_GET_SREGS2") and isinstance(outcome, list):
        # VMX keeps both flags of a segment, SVM one.
        return [outcome[0], {path: value for path, value in outcome[1].items() if not hidden(path, outcome[1])}]
    rules = [field for (name, field) in MASKS if name == request]
    if not rules:
        return outcome
    if isinstance(outcome, int):
        return "*" if "result" in rules else outcome
    result, found = outcome
    kept = {path: value for path, value in found.items() if not any(fnmatch(path, rule) for rule in rules)}
    return [result, kept]


def timely(path: str, found: dict[str, Any]) -> bool:
    """Whether an MSR's value is time: the TSC."""
    entry, _, field = path.partition(".")
    return field == "data" and found.get(f"{entry}.index") in (0x10, 0x3B)


def hidden(path: str, found: dict[str, Any]) -> bool:
    """Whether a field says whether an unusable segment is present."""
    segment, _, field = path.partition(".")
    return field == "present" and bool(found.get(f"{segment}.unusable"))


def stale(found: dict[str, Any]) -> dict[str, Any]:
    """Of KVM_GET_VCPU_EVENTS what counts: the number of an event that is not on its way is a remainder."""
    gone = []
    if not found.get("exception.injected") and not found.get("exception.pending"):
        gone += ["exception.nr", "exception.has_error_code", "exception.error_code"]
    if not found.get("interrupt.injected"):
        gone += ["interrupt.nr", "interrupt.soft"]
    return {path: value for path, value in found.items() if path not in gone}
