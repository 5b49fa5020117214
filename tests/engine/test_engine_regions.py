# SPDX-License-Identifier: GPL-2.0-only
"""A map of many regions: each cpu follows it, and what a region costs does not grow with their number."""

from __future__ import annotations

import ctypes
import mmap
import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from x86_board import RAX, RBP, RBX, RDX, Runner

from anykvm.engine import Event

PAGE = 4096
MANY = 0x1000_0000  # above the board's memory
COUNT = 32_764  # as many as a VM has slots
EVERY = "1: mov (%rbx),%rax; add %rax,%rdx; incq (%rbx); add $8192,%rbx; dec %ecx; jnz 1b; hlt"


def host_memory(b, pages):
    ram = mmap.mmap(-1, pages * PAGE)
    b.kept.append(ram)
    return ram, ctypes.addressof(ctypes.c_char.from_buffer(ram))


def test_as_many_regions_as_a_vm_has_slots(x86):
    """Each has a page, behind each is a hole, and two cpus read and write all; then every other one goes."""
    b = x86(EVERY)
    ram, hva = host_memory(b, COUNT)
    order = list(range(COUNT))
    random.Random(1).shuffle(order)
    for number in order:
        ram[number * PAGE : number * PAGE + 8] = number.to_bytes(8, "little")
        b.machine.map(MANY + number * 2 * PAGE, PAGE, hva + number * PAGE)
    began = time.monotonic()
    for turn in range(2):
        c = b.long(rbx=MANY, rcx=COUNT, rdx=0)
        b.end(c)
        assert c.gpr[RDX] == sum(range(COUNT)) + turn * COUNT
    # It takes 0.05 s. Unicorn's own map takes hours, since each region costs the square of their number.
    assert time.monotonic() - began < 30
    for number in range(0, COUNT, 2):
        b.machine.unmap(MANY + number * 2 * PAGE)
    b.load("mov (%rbx),%rax; hlt")
    c = b.long()
    for number in (0, 2, COUNT - 2):
        c.rip, c.gpr[RBX] = 0x1000, MANY + number * 2 * PAGE
        assert c.run()[:2] == (Event.MMIO_READ, MANY + number * 2 * PAGE)
        assert c.run(0)[0] == Event.HLT
    for number in (1, 3, COUNT - 1):
        c.rip, c.gpr[RBX] = 0x1000, MANY + number * 2 * PAGE
        b.end(c)
        assert c.gpr[RAX] == number + 2


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_against_a_plain_map(x86, data):
    """Regions of the same few host pages come, go and move; the guest then sees at each address what a dict says."""
    pages = 8
    b = x86("mov (%rbx),%rax; hlt")
    ram, hva = host_memory(b, pages)
    for number in range(pages):
        ram[number * PAGE : number * PAGE + 8] = (number + 100).to_bytes(8, "little")
    c = b.long()
    model: dict[int, tuple[int, int]] = {}  # place, in pages: how many, and from which of the host's
    for _ in range(data.draw(st.integers(1, 6))):
        for _ in range(data.draw(st.integers(1, 4))):
            place, first = data.draw(st.integers(0, 7)), data.draw(st.integers(0, pages - 1))
            size = data.draw(st.integers(1, pages - first))
            overlap = [at for at, (n, _) in model.items() if at < place + size and place < at + n]
            if overlap:
                with pytest.raises(ValueError, match="overlaps"):
                    b.machine.map(MANY + place * PAGE, size * PAGE, hva + first * PAGE)
                b.machine.unmap(MANY + overlap[0] * PAGE)
                del model[overlap[0]]
            else:
                b.machine.map(MANY + place * PAGE, size * PAGE, hva + first * PAGE)
                model[place] = (size, first)
        backed = {at + i: first + i for at, (n, first) in model.items() for i in range(n)}
        for page in range(17):
            c.rip, c.gpr[RBX] = 0x1000, MANY + page * PAGE
            event = c.run()
            if page in backed:
                assert event[0] == Event.HLT
                assert c.gpr[RAX] == backed[page] + 100
            else:
                assert event[:2] == (Event.MMIO_READ, MANY + page * PAGE)
                assert c.run(7)[0] == Event.HLT
                assert c.gpr[RAX] == 7


def test_regions_come_and_go_while_two_cpus_run(x86):
    """A region's code runs on one cpu, its data on another, while hundreds of others change around them."""
    b = x86("1: call *%rbx; incq (%rsi); jmp 1b")
    ram, hva = host_memory(b, 600)
    ram[0] = 0xC3  # ret
    b.machine.map(MANY, PAGE, hva)
    b.machine.map(MANY + 1000 * PAGE, PAGE, hva + PAGE)
    for n in range(2):
        Runner(b.long(rbx=MANY, rsi=MANY + 1000 * PAGE + 8 * n, rsp=0x80000 - n * 0x1000))
    for _ in range(3):
        for number in range(1, 500):
            b.machine.map(MANY + number * PAGE, PAGE, hva + number * PAGE)
        before = [int.from_bytes(ram[PAGE + 8 * n : PAGE + 8 * n + 8], "little") for n in range(2)]
        for number in range(1, 500):
            b.machine.unmap(MANY + number * PAGE)
        deadline = time.monotonic() + 20
        while any(int.from_bytes(ram[PAGE + 8 * n : PAGE + 8 * n + 8], "little") <= before[n] for n in range(2)):
            assert time.monotonic() < deadline, "a cpu stands still"
            time.sleep(0.001)


def test_code_of_a_region_that_goes_is_forgotten(x86):
    """The same memory at another address, with other code in it: nothing of the old is run."""
    b = x86("call *%rbx; hlt")
    ram, hva = host_memory(b, 1)
    c = b.long(rbx=MANY)
    for value, place in ((1, MANY), (2, MANY + 16 * PAGE), (3, MANY)):
        ram[0:6] = b"\xb8" + value.to_bytes(4, "little") + b"\xc3"  # mov $value, %eax; ret
        b.machine.map(place, PAGE, hva)
        c.rip, c.gpr[RBX] = 0x1000, place
        b.end(c)
        assert c.gpr[RAX] == value
        b.machine.unmap(place)


@pytest.mark.parametrize(("run", "store"), [(0, 1), (1, 0), (0, 2), (2, 0), (1, 1)])
@pytest.mark.parametrize("seen", [False, True])
def test_a_store_to_code_by_another_address_of_the_same_memory(x86, run, store, seen):
    """Two regions have the same page, and a third, larger one has it too."""
    b = x86("test %rcx,%rcx; jz 1f; movb $0,5000(%rsi); 1: call *%rbx; mov %eax,%ebp; movb $2,1(%rsi); call *%rbx; hlt")
    ram, hva = host_memory(b, 4)
    ram[2 * PAGE : 2 * PAGE + 6] = b"\xb8\x01\0\0\0\xc3"  # mov $1, %eax; ret
    b.machine.map(MANY, 2 * PAGE, hva + 2 * PAGE)
    b.machine.map(MANY + 16 * PAGE, 2 * PAGE, hva + 2 * PAGE)
    b.machine.map(MANY + 32 * PAGE, 4 * PAGE, hva)
    places = [MANY, MANY + 16 * PAGE, MANY + 34 * PAGE]
    c = b.long(rbx=places[run], rsi=places[store], rcx=int(seen))
    b.end(c)
    assert c.gpr[RBP] == 1
    assert c.gpr[RAX] == 2


def test_memory_that_no_process_can_have_is_refused(x86):
    b = x86("hlt")
    for hva in (0, 1 << 48, (1 << 64) - PAGE):
        with pytest.raises(ValueError, match="user space"):
            b.machine.map(MANY, PAGE, hva)
