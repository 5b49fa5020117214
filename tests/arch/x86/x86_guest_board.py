# SPDX-License-Identifier: GPL-2.0-only
"""One VM with a small assembled guest, on the software backend or the machine's own /dev/kvm."""

from __future__ import annotations

import struct

import pytest

from anykvm.api import Backend, GuestMemory, Kvm, PioOut, Vcpu, Vm
from anykvm.guests.tools import Toolchain
from anykvm.host import HostBackend, host_arch, probe
from anykvm.uapi import x86 as X

SIZE = 1 << 20
CODE = 0x1000
STACK = 0x8000
PORT = 0xE9
DEVICE = 0xD000_0000


def software() -> Backend:
    engine = pytest.importorskip("anykvm.engine", reason="the engine is not built")
    if not hasattr(getattr(engine, "X86Cpu", None), "tsc_offset"):
        pytest.skip("the engine that is built has no x86 yet")
    from anykvm.arch.x86.hooks import X86Hooks
    from anykvm.virt.backend import SoftwareBackend

    return SoftwareBackend(X86Hooks())


def host() -> Backend:
    reason = probe()
    if reason is not None:
        pytest.skip(reason)
    if host_arch() not in ("x86", "x86_64"):
        pytest.skip("this machine's /dev/kvm is not x86's")
    return HostBackend()


class Board:
    """One VM with a megabyte at 0 and a program at 0x1000; ``seen`` is what it wrote to the port."""

    def __init__(self, backend: Backend, tools: Toolchain) -> None:
        self.backend = backend
        self.software = backend.name == "software"
        self.tools = tools
        self.memory = GuestMemory(SIZE)
        self.kvm = Kvm(backend)
        self.vm: Vm = self.kvm.create_vm()
        self.vm.set_tss_addr(0xFFFBD000)
        self.vm.set_user_memory_region(0, 0, self.memory)
        self.seen: list[int] = []
        self.vcpus: list[Vcpu] = []

    def vcpu(self) -> Vcpu:
        vcpu = self.vm.create_vcpu(len(self.vcpus))
        vcpu.set_cpuid2(self.kvm.get_supported_cpuid())
        self.vcpus.append(vcpu)
        return vcpu

    def load(self, source: str, at: int = CODE) -> None:
        self.memory.write(at, self.tools.assemble(source, base=at))

    def real(self, source: str) -> Vcpu:
        """A vCPU in real mode at the program."""
        self.load(".code16\n" + source)
        vcpu = self.vcpu()
        sregs = vcpu.get_sregs()
        sregs.cs.base = sregs.cs.selector = 0
        vcpu.set_sregs(sregs)
        vcpu.set_regs(X.KvmRegs(rip=CODE, rsp=STACK, rflags=2))
        return vcpu

    def long(self, source: str) -> Vcpu:
        """A vCPU in 64-bit mode at the program: the first GiB mapped one to one, a GDT, an empty IDT."""
        self.load(".code64\n" + source)
        self.memory.write(0x10000, struct.pack("<Q", 0x11003))
        self.memory.write(0x11000, struct.pack("<4Q", 0x12003, 0, 0, 0x13003))
        self.memory.write(0x12000, b"".join(struct.pack("<Q", page << 21 | 0x83) for page in range(512)))
        self.memory.write(0x13000, b"".join(struct.pack("<Q", 3 << 30 | page << 21 | 0x83) for page in range(512)))
        self.memory.write(0x14000, struct.pack("<3Q", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF))
        vcpu = self.vcpu()
        sregs = vcpu.get_sregs()
        sregs.cs = X.KvmSegment(0, 0xFFFFFFFF, 8, 11, 1, 0, 0, 1, 1, 1)
        data = X.KvmSegment(0, 0xFFFFFFFF, 16, 3, 1, 0, 1, 1, 0, 1)
        sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = data
        sregs.gdt.base, sregs.gdt.limit = 0x14000, 23
        sregs.idt.base, sregs.idt.limit = 0x15000, 0xFFF
        sregs.cr3, sregs.cr4, sregs.efer = 0x10000, X.X86_CR4_PAE, 0x501
        sregs.cr0 = X.X86_CR0_PE | X.X86_CR0_ET | X.X86_CR0_NE | X.X86_CR0_WP | X.X86_CR0_PG
        vcpu.set_sregs(sregs)
        vcpu.set_regs(X.KvmRegs(rip=CODE, rsp=STACK, rflags=2))
        return vcpu

    def gate(self, vector: int, address: int, ist: int = 0) -> None:
        """An interrupt gate of 64-bit mode."""
        entry = struct.pack("<HHBBHII", address & 0xFFFF, 8, ist, 0x8E, address >> 16 & 0xFFFF, 0, 0)
        self.memory.write(0x15000 + 16 * vector, entry)

    def until(self, vcpu: Vcpu, *kinds: type) -> object:
        """Run, collecting what is written to the port, until another exit of one of these kinds."""
        for _ in range(200):
            exit = vcpu.run()
            if isinstance(exit, PioOut) and exit.port == PORT:
                self.seen.append(int.from_bytes(exit.data, "little"))
            elif isinstance(exit, kinds):
                return exit
            else:
                raise AssertionError(f"{exit} after {self.seen}, at {vcpu.get_regs().rip:#x}")
        raise AssertionError(f"the guest does not end: {self.seen[-10:]}")

    def close(self) -> None:
        for handle in (*self.vcpus, self.vm, self.kvm):
            handle.close()
        self.memory.close()
