# SPDX-License-Identifier: GPL-2.0-only
"""x86's constants and structures against the kernel's own headers, and against what is known by heart."""

from __future__ import annotations

import ctypes
import doctest
import json
import re
from pathlib import Path

import pytest
import uapi_probe as probe

from anykvm.uapi import common, x86
from anykvm.uapi.ioctl import decode

HERE = Path(__file__).parent
HEADERS = ("/usr/include/x86_64-linux-gnu", "/usr/x86_64-linux-gnu/include")
RECORDED: probe.Facts = json.loads((HERE / "x86_linux_6_1.json").read_text())

# Defined inside the kernel, not in its uapi headers; or younger than Linux 6.1's.
NOT_IN_THE_HEADERS = {
    "KVM_MSR_FILTER_RANGE_VALID_MASK": 3,
    "KVM_MSR_FILTER_VALID_MASK": 1,
    "KVM_MSR_EXIT_REASON_VALID_MASK": 7,
    "KVM_EXIT_HYPERCALL_VALID_MASK": 1 << 12,
    "KVM_X2APIC_API_VALID_FLAGS": 3,
}


def headers() -> Path | None:
    return next((Path(one) for one in HEADERS if Path(one, "asm/kvm.h").exists()), None)


def facts() -> probe.Facts:
    return probe.python_facts(x86)


@pytest.fixture(autouse=True)
def probe_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe, with x86's further header, its MSRs and its structures of no name."""
    generate = probe.program

    def program(module: object) -> str:
        text = generate(module)  # type: ignore[arg-type]
        return text.replace("#include <linux/psci.h>", "#include <errno.h>\n#include <linux/kvm_para.h>")

    monkeypatch.setattr(probe, "program", program)
    monkeypatch.setattr(probe, "_CONSTANT", re.compile(r"(KVM|MSR_KVM)_[A-Z0-9a-z_]*$|[A-Z]{2,3}_VECTOR$"))
    # In the kernel's own headers only.
    monkeypatch.setattr(
        probe,
        "structures",
        lambda module, find=probe.structures: {
            name: kind for name, kind in find(module).items() if not name.startswith("pvclock")
        },
    )


def test_everything_is_as_recorded() -> None:
    found = facts()
    assert {name: found.get(name) for name in RECORDED} == RECORDED
    assert len(RECORDED) > 1000


def test_nothing_is_unchecked() -> None:
    assert set(facts()) - set(RECORDED) == set(NOT_IN_THE_HEADERS) | {"NMI_VECTOR"}
    assert {name: facts()[name] for name in NOT_IN_THE_HEADERS} == NOT_IN_THE_HEADERS


def test_against_the_machines_headers(tmp_path: Path) -> None:
    if headers() is None:
        pytest.skip("no x86 kernel headers here: install linux-libc-dev")
    c_facts = probe.c_facts(x86, tmp_path, headers())
    if c_facts is None:
        pytest.skip("no C compiler here: install gcc")
    found = facts()
    assert {name: found[name] for name in c_facts} == c_facts
    assert set(RECORDED) <= set(c_facts)


def test_requests_by_heart() -> None:
    assert x86.KVM_GET_REGS == 0x8090AE81
    assert x86.KVM_SET_REGS == 0x4090AE82
    assert x86.KVM_GET_SREGS == 0x8138AE83
    assert x86.KVM_SET_SREGS == 0x4138AE84
    assert x86.KVM_SET_CPUID2 == 0x4008AE90
    assert x86.KVM_GET_SUPPORTED_CPUID == 0xC008AE05
    assert x86.KVM_GET_MSRS == 0xC008AE88
    assert x86.KVM_SET_TSS_ADDR == 0xAE47
    assert x86.KVM_SET_IDENTITY_MAP_ADDR == 0x4008AE48
    assert x86.KVM_GET_LAPIC == 0x8400AE8E
    assert x86.KVM_CREATE_PIT2 == 0x4040AE77
    assert x86.KVM_GET_XSAVE == 0x9000AEA4
    assert x86.KVM_X86_SET_MSR_FILTER == 0x4188AEC6


def requests() -> dict[str, int]:
    names = (name for name in vars(x86) if re.match(r"KVM_(X86_)?(GET|SET|CREATE|SETUP)_|KVM_SMI$|KVM_KVMCLOCK", name))
    return {name: getattr(x86, name) for name in names}


def test_requests_are_kvms() -> None:
    assert len(requests()) > 40
    assert {decode(value).type for value in requests().values()} == {0xAE}


def test_requests_are_distinct() -> None:
    own = requests()
    assert len(set(own.values())) == len(own)
    shared = {value for name, value in vars(common).items() if name.startswith("KVM_") and isinstance(value, int)}
    assert not {name for name, value in own.items() if value in shared}


def test_sizes_by_heart() -> None:
    sizes = {kind: ctypes.sizeof(getattr(x86, kind)) for kind in vars(x86) if kind.startswith(("Kvm", "Pvclock"))}
    assert sizes["KvmRegs"] == 144
    assert sizes["KvmSegment"] == 24
    assert sizes["KvmSregs"] == 312
    assert sizes["KvmSregs2"] == 320
    assert sizes["KvmFpu"] == 416
    assert sizes["KvmXsave"] == 4096
    assert sizes["KvmVcpuEvents"] == 64
    assert sizes["KvmLapicState"] == 1024
    assert sizes["KvmPicState"] == 16
    assert sizes["KvmIoapicState"] == 216
    assert sizes["KvmPitState2"] == 112
    assert sizes["KvmCpuidEntry2"] == 40
    assert sizes["PvclockVcpuTimeInfo"] == 32
    assert sizes["PvclockWallClock"] == 12


def test_chips_fit_into_kvm_irqchip() -> None:
    room = common.KvmIrqchip.chip.size
    assert ctypes.sizeof(x86.KvmPicState) <= room
    assert ctypes.sizeof(x86.KvmIoapicState) <= room


def test_the_run_pages_union_holds_an_msr() -> None:
    assert ctypes.sizeof(x86.RunMsr) == 24
    assert x86.RunMsr.reason.offset == 8
    assert x86.RunMsr.index.offset == 12
    assert x86.RunMsr.data.offset == 16


def test_synchronised_registers_fit() -> None:
    assert ctypes.sizeof(x86.KvmSyncRegs) <= common.SYNC_REGS_SIZE_BYTES
    assert x86.KvmSyncRegs.sregs.offset == 144


def test_the_debug_exit_is_the_largest() -> None:
    assert ctypes.sizeof(x86.KvmDebugExitArch) == common.DEBUG_EXIT_ARCH_MAX


def test_a_redirection_entry_by_field() -> None:
    entry = x86.KvmIoapicState.Redirect(bits=0xAB000000_0001_A0D3)
    assert (entry.fields.vector, entry.fields.dest_id) == (0xD3, 0xAB)
    assert (entry.fields.mask, entry.fields.trig_mode, entry.fields.polarity) == (1, 1, 1)
    assert entry.fields.delivery_mode == 0


def test_the_signature_is_twelve_bytes() -> None:
    assert len(x86.KVM_SIGNATURE) == 12
    assert x86.KVM_SIGNATURE.startswith(b"KVMKVMKVM")


def test_a_filter_range_has_the_kernels_holes() -> None:
    assert x86.KvmMsrFilterRange.bitmap.offset == 16
    assert ctypes.sizeof(x86.KvmMsrFilter) == 8 + 16 * 24


def test_the_probe_notices_a_wrong_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(x86, "KVM_NR_IRQCHIPS", 1)
    assert facts()["KVM_NR_IRQCHIPS"] != RECORDED["KVM_NR_IRQCHIPS"]


@pytest.mark.parametrize(("name", "bit"), [("FPU", 0), ("MSR", 5), ("PAE", 6), ("APIC", 9), ("PAT", 16), ("SSE2", 26)])
def test_feature_bits(name: str, bit: int) -> None:
    assert getattr(x86, f"CPUID_1_EDX_{name}") == 1 << bit


@pytest.mark.parametrize(
    ("name", "index"),
    [("MSR_EFER", 0xC0000080), ("MSR_GS_BASE", 0xC0000101), ("MSR_IA32_CR_PAT", 0x277), ("MSR_IA32_APICBASE", 0x1B)],
)
def test_msr_indices(name: str, index: int) -> None:
    assert getattr(x86, name) == index


def test_examples() -> None:
    assert doctest.testmod(x86).failed == 0
