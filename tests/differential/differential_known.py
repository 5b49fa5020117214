# SPDX-License-Identifier: GPL-2.0-only
"""Where another KVM's outcome is known to differ from the software backend's, and why (docs/differences.md).

What a sequence does after such an operation is not compared: the two are in different states.
"""

from __future__ import annotations

from typing import Any


def known(sequence: list[Any], kernel: list[Any], software: list[Any]) -> str | None:
    """The reason why the outcomes of the last operation may differ, or None: they should not."""
    operation, theirs, ours = sequence[-1], kernel[-1], software[-1]
    if operation[0] == "run" or "KVM_RUN" in operation:
        return _known_run(sequence, software, theirs, ours)
    if _of_smm(operation) and theirs in ("EINVAL", "ENOTTY"):
        return "a kernel without CONFIG_KVM_SMM has no system management mode, and one address space"
    if operation[0] != "ioctl":
        return None
    request = operation[2]
    if request == "KVM_GET_REGS" and _amid_an_access(sequence, kernel):
        return "api.rst 5: with an I/O or MMIO exit, registers are consistent only after the next KVM_RUN"
    if request == "KVM_GET_VCPU_EVENTS" and differing(theirs, ours) == {"interrupt.shadow"}:
        return "the engine has one interrupt shadow for STI and for MOV SS"
    if request == "KVM_SET_MSRS" and isinstance(theirs, int) and isinstance(ours, int) and theirs > ours:
        refused = operation[3][2 + ours][1]["index"]
        if refused == 0x277:
            return "kvm_pvm takes any value for the PAT; the manual has #GP for a memory type there is not"
    if request == "KVM_SIGNAL_MSI" and theirs == 0 and ours == 1:
        return "the kernel has no route to a local APIC that nothing has touched since its vCPU was created"
    return None


def _known_run(sequence: list[Any], software: list[Any], theirs: Any, ours: Any) -> str | None:
    if theirs == "ENOSPC":
        return "kvm_pvm: a vCPU without memory under its first instruction; elsewhere an internal error"
    if exit_of(ours) == "KVM_EXIT_IRQ_WINDOW_OPEN":
        return "kvm_pvm looks for the window only when it leaves its emulator"
    if any(earlier[0] == "modify" and "cs.db" in earlier[4] for earlier in sequence):
        return "kvm_pvm's emulator takes 16-bit code in real mode, whatever CS.D says"
    vcpu = sequence[-1][1]
    injected = any(injects(earlier) and earlier[1] == vcpu for earlier in sequence)
    if injected and not _takes_interrupts(sequence[:-1], software[:-1], vcpu):
        return "an interrupt that userspace injects while IF is clear: VMX refuses the entry, kvm_pvm delivers it"
    return None


def _of_smm(operation: list[Any]) -> bool:
    """Whether an operation sends an SMI, sets a vCPU's SMI state, or is about address space 1."""
    if operation[0] == "modify":
        return any(path.startswith("smi.") and value for path, value in operation[4].items())
    if operation[0] != "ioctl":
        return False
    argument = operation[3]
    return operation[2] == "KVM_SMI" or (isinstance(argument, list) and argument[1].get("slot", 0) >> 16 == 1)


def _takes_interrupts(sequence: list[Any], outcomes: list[Any], vcpu: str) -> bool:
    """Whether IF was set when a vCPU was last seen: at its last exit, or when its registers were last written."""
    for operation, outcome in zip(reversed(sequence), reversed(outcomes), strict=True):
        if operation[1] != vcpu:
            continue
        if operation[0] == "run" and isinstance(outcome, list):
            return bool(outcome[1].get("if"))
        if operation[0] == "ioctl" and operation[2] == "KVM_SET_REGS" and outcome == 0:
            return bool(operation[3][1].get("rflags", 2) & 0x200)
    return False


def _amid_an_access(sequence: list[Any], outcomes: list[Any]) -> bool:
    """Whether the vCPU's last run ended with an access that is still to be finished."""
    for operation, outcome in zip(reversed(sequence), reversed(outcomes), strict=True):
        if operation[0] == "run" and operation[1] == sequence[-1][1] and outcome != "EINTR":
            return exit_of(outcome) in ("KVM_EXIT_IO", "KVM_EXIT_MMIO", "KVM_EXIT_X86_RDMSR", "KVM_EXIT_X86_WRMSR")
    return False


def exit_of(outcome: Any) -> Any:
    return outcome[1]["exit"] if isinstance(outcome, list) else None


def differing(one: Any, other: Any) -> set[str]:
    """The fields that two outcomes do not have in common."""
    if not isinstance(one, list) or not isinstance(other, list):
        return set()
    return {path for path in one[1].keys() | other[1].keys() if one[1].get(path) != other[1].get(path)}


def injects(operation: Any) -> bool:
    """Whether an operation puts an interrupt on its way to the guest."""
    if operation[0] == "modify":
        return any(path.startswith("interrupt") for path in operation[4])
    return operation[0] == "ioctl" and operation[2] == "KVM_INTERRUPT"
