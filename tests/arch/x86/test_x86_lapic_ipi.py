# SPDX-License-Identifier: GPL-2.0-only
"""The local APIC: IPIs, destinations, INIT and start-up, LINT0, messages."""

from __future__ import annotations

import errno
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from x86_irq_rig import bits, get, make_lapic, make_lapics, put, side_of
from x86_lapic_rig import ALL, ASSERT, CLUSTER, FLAT, LEVEL, LOGICAL, MASKED, OTHERS, SELF, inject, ipi, one

from anykvm.arch.x86 import lapic_regs as R
from anykvm.arch.x86.apic_bus import (
    BROADCAST,
    DM_EXTINT,
    DM_FIXED,
    DM_INIT,
    DM_LOWEST,
    DM_NMI,
    DM_SMI,
    DM_STARTUP,
)
from anykvm.arch.x86.lapic import SPURIOUS, Lapic
from anykvm.arch.x86.lapic_init import EVENT_INIT, EVENT_SIPI
from anykvm.uapi.constants import KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED

# IPIs.


def test_a_physical_ipi_goes_to_one() -> None:
    _, _, lapics = make_lapics(3)
    ipi(lapics[0], ASSERT | 0x70, dest=2)
    assert [bits(lapic.irr) for lapic in lapics] == [[], [], [0x70]]
    ipi(lapics[0], ASSERT | 0x71, dest=9)
    assert [bits(lapic.irr) for lapic in lapics] == [[], [], [0x70]]


def test_a_physical_broadcast_goes_to_all() -> None:
    _, _, lapics = make_lapics(3)
    ipi(lapics[1], ASSERT | 0x70, dest=BROADCAST)
    assert [bits(lapic.irr) for lapic in lapics] == [[0x70]] * 3


@pytest.mark.parametrize(("shorthand", "who"), [(SELF, [1]), (ALL, [0, 1, 2]), (OTHERS, [0, 2])])
def test_shorthands(shorthand: int, who: list[int]) -> None:
    _, _, lapics = make_lapics(3)
    ipi(lapics[1], ASSERT | shorthand | 0x70, dest=0)
    assert [index for index, lapic in enumerate(lapics) if lapic.irr] == who
    assert [index for index, lapic in enumerate(lapics) if side_of(lapic).line] == who


def test_a_self_ipi_of_a_disabled_apic_is_dropped() -> None:
    lapic = one(on=False)
    ipi(lapic, ASSERT | SELF | 0x70)
    assert lapic.irr == 0


def test_flat_logical_destinations() -> None:
    _, _, lapics = make_lapics(4)
    for index, lapic in enumerate(lapics):
        put(lapic, R.APIC_LDR, 1 << 24 + index)
    ipi(lapics[0], ASSERT | LOGICAL | 0x70, dest=0b1010)
    assert [bool(lapic.irr) for lapic in lapics] == [False, True, False, True]


def test_cluster_logical_destinations() -> None:
    _, _, lapics = make_lapics(4)
    for lapic, ldr in zip(lapics, (0x11, 0x12, 0x21, 0x22), strict=True):
        put(lapic, R.APIC_DFR, CLUSTER)
        put(lapic, R.APIC_LDR, ldr << 24)
    ipi(lapics[0], ASSERT | LOGICAL | 0x70, dest=0x23)
    assert [bool(lapic.irr) for lapic in lapics] == [False, False, True, True]
    ipi(lapics[0], ASSERT | LOGICAL | 0x71, dest=0x12)
    assert bits(lapics[1].irr) == [0x71] and not lapics[0].irr


def test_an_unknown_model_matches_nobody_but_the_broadcast() -> None:
    _, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_DFR, 0x5FFFFFFF)
    put(lapic, R.APIC_LDR, 0xFF000000)
    ipi(lapic, ASSERT | LOGICAL | 0x70, dest=0x01)
    assert not lapic.irr
    ipi(lapic, ASSERT | LOGICAL | 0x70, dest=0xFF)
    assert lapic.irr


def test_a_change_of_destination_is_seen_at_once() -> None:
    _, _, lapics = make_lapics(2)
    put(lapics[0], R.APIC_LDR, 1 << 24)
    put(lapics[1], R.APIC_LDR, 2 << 24)
    ipi(lapics[0], ASSERT | LOGICAL | 0x70, dest=2)
    put(lapics[1], R.APIC_LDR, 4 << 24)
    ipi(lapics[0], ASSERT | LOGICAL | 0x71, dest=2)
    ipi(lapics[0], ASSERT | LOGICAL | 0x72, dest=4)
    put(lapics[1], R.APIC_ID, 0x40000000)
    ipi(lapics[0], ASSERT | 0x73, dest=1)
    ipi(lapics[0], ASSERT | 0x74, dest=0x40)
    lapics[1].set_base(0xFEE00000)
    ipi(lapics[0], ASSERT | 0x75, dest=0x40)
    assert bits(lapics[1].irr) == [0x70, 0x72, 0x74]


def test_of_two_with_one_id_the_first_is_meant() -> None:
    clock, bus, (first,) = make_lapics(1)
    other = make_lapic(bus, clock, 256)
    ipi(first, ASSERT | 0x70, dest=0)
    assert first.irr and not other.irr


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([FLAT, CLUSTER]), st.integers(0, 255), st.booleans()), min_size=1, max_size=8),
    st.integers(0, 255),
    st.booleans(),
)
def test_destinations_against_the_model(setup: list[tuple[int, int, bool]], dest: int, logical: bool) -> None:
    _, bus, lapics = make_lapics(len(setup))
    for lapic, (dfr, ldr, on) in zip(lapics, setup, strict=True):
        put(lapic, R.APIC_DFR, dfr)
        put(lapic, R.APIC_LDR, ldr << 24)
        put(lapic, R.APIC_SVR, 0x1FF if on else 0xFF)

    def meant(index: int, dfr: int, ldr: int) -> bool:
        if dest == 0xFF:
            return True
        if not logical:
            return index == dest
        if dfr == FLAT:
            return ldr & dest != 0
        return ldr >> 4 == dest >> 4 and ldr & dest & 15 != 0

    expected = [index for index, (dfr, ldr, on) in enumerate(setup) if on and meant(index, dfr, ldr)]
    with bus.lock:
        taken = bus.deliver(dest, logical, DM_FIXED, 0x99, False)
    assert [index for index, lapic in enumerate(lapics) if lapic.irr] == expected
    assert max(taken, 0) == len(expected)


def test_lowest_priority_goes_to_exactly_one_that_is_enabled() -> None:
    _, bus, lapics = make_lapics(4)
    for index, lapic in enumerate(lapics):
        put(lapic, R.APIC_LDR, 1 << 24 + index)
    put(lapics[2], R.APIC_SVR, 0xFF)
    seen = set()
    for vector in range(0x40, 0x50):
        with bus.lock:
            assert bus.deliver(0x0F, True, DM_LOWEST, vector, False) == 1
        takers = [index for index, lapic in enumerate(lapics) if lapic.irr >> vector & 1]
        assert len(takers) == 1
        seen.update(takers)
    assert seen == {0, 1, 3}


def test_a_vector_of_lowest_priority_stays_where_it_is() -> None:
    _, bus, lapics = make_lapics(3)
    for lapic in lapics:
        put(lapic, R.APIC_LDR, 1 << 24)
    with bus.lock:
        for _ in range(5):
            bus.deliver(1, True, DM_LOWEST, 0x43, False)
    assert sum(bool(lapic.irr) for lapic in lapics) == 1


def test_lowest_priority_with_all_of_them_disabled_goes_nowhere() -> None:
    _, bus, lapics = make_lapics(2, on=False)
    with bus.lock:
        assert bus.deliver(BROADCAST, True, DM_LOWEST, 0x43, False) == -1
    assert not any(lapic.irr for lapic in lapics)


def test_a_physical_broadcast_cannot_be_of_lowest_priority() -> None:
    _, bus, lapics = make_lapics(3)
    with bus.lock:
        assert bus.deliver(BROADCAST, False, DM_LOWEST, 0x43, False) == 3
    assert all(lapic.irr for lapic in lapics)


def test_nmi_ipis_reach_disabled_apics_too() -> None:
    _, _, lapics = make_lapics(3, on=False)
    ipi(lapics[0], ASSERT | OTHERS | DM_NMI << 8)
    assert [side_of(lapic).nmis for lapic in lapics] == [0, 1, 1]


def test_smi_ipis_reach_disabled_apics_too() -> None:
    _, _, lapics = make_lapics(3, on=False)
    ipi(lapics[0], ASSERT | OTHERS | DM_SMI << 8)
    assert [side_of(lapic).smis for lapic in lapics] == [0, 1, 1]


def test_a_processor_in_smm_latches_init() -> None:
    _, _, (bsp, ap) = make_lapics(2, on=False)
    side = side_of(ap)
    side.latches_init = True
    ipi(bsp, ASSERT | OTHERS | DM_INIT << 8)
    ap.accept_events()
    ipi(bsp, ASSERT | OTHERS | DM_STARTUP << 8 | 0x9A)
    ap.accept_events()
    assert ap.pending_events == EVENT_INIT and side.log == []
    side.latches_init = False
    ap.accept_events()
    assert side.log == ["init"] and side.mp_state == KVM_MP_STATE_INIT_RECEIVED


def test_modes_that_do_nothing() -> None:
    lapic = one()
    with lapic.bus.lock:
        for mode in (3, DM_EXTINT):
            assert lapic.accept(mode, 0x40, False) == 0
    assert not lapic.irr and not side_of(lapic).events


# INIT and start-up.


def test_a_processor_is_started_as_linux_starts_it() -> None:
    _, _, (bsp, ap) = make_lapics(2, on=False)
    side = side_of(ap)
    assert side.mp_state == KVM_MP_STATE_UNINITIALIZED
    ipi(bsp, LEVEL | ASSERT | DM_INIT << 8, dest=1)
    assert ap.pending_events == EVENT_INIT and side.events == 1
    ap.accept_events()
    assert side.mp_state == KVM_MP_STATE_INIT_RECEIVED
    ipi(bsp, LEVEL | DM_INIT << 8, dest=1)
    assert ap.pending_events == 0, "taking INIT back does nothing"
    ipi(bsp, DM_STARTUP << 8 | 0x9A, dest=1)
    assert ap.pending_events == EVENT_SIPI
    ap.accept_events()
    assert side.mp_state == KVM_MP_STATE_RUNNABLE
    ipi(bsp, DM_STARTUP << 8 | 0x9B, dest=1)
    ap.accept_events()
    assert side.log == ["init", ("start", 0x9A)], "the second start-up IPI is for nobody"
    assert ap.pending_events == 0


def test_init_and_startup_before_the_vcpu_looked() -> None:
    _, _, (bsp, ap) = make_lapics(2, on=False)
    ipi(bsp, ASSERT | DM_INIT << 8, dest=1)
    ipi(bsp, DM_STARTUP << 8 | 0x10, dest=1)
    ap.accept_events()
    assert side_of(ap).log == ["init", ("start", 0x10)]


def test_init_forgets_a_startup_before_it() -> None:
    _, _, (bsp, ap) = make_lapics(2, on=False)
    ipi(bsp, DM_STARTUP << 8 | 0x10, dest=1)
    ipi(bsp, ASSERT | DM_INIT << 8, dest=1)
    ap.accept_events()
    assert side_of(ap).log == ["init"]
    assert side_of(ap).mp_state == KVM_MP_STATE_INIT_RECEIVED


def test_a_startup_ipi_for_a_running_processor_is_ignored() -> None:
    lapic = one()
    ipi(lapic, DM_STARTUP << 8 | 0x10, dest=0)
    lapic.accept_events()
    assert side_of(lapic).log == []
    assert side_of(lapic).mp_state == KVM_MP_STATE_RUNNABLE


def test_the_boot_processor_runs_on_after_init() -> None:
    lapic = one()
    ipi(lapic, ASSERT | DM_INIT << 8, dest=0)
    lapic.accept_events()
    assert side_of(lapic).log == ["init"]
    assert side_of(lapic).mp_state == KVM_MP_STATE_RUNNABLE


def test_init_keeps_the_id_and_the_base_and_resets_the_rest() -> None:
    clock, _, (_, lapic) = make_lapics(2)
    put(lapic, R.APIC_ID, 0x33000000)
    lapic.set_base(0xFEE01800)
    put(lapic, R.APIC_TPR, 0x20)
    put(lapic, R.APIC_LDR, 0x01000000)
    put(lapic, R.APIC_LVTT, 0x40)
    put(lapic, R.APIC_TMICT, 1000)
    inject(lapic, 0x41)
    lapic.ack()
    inject(lapic, 0x91)
    with lapic.bus.lock:
        lapic.accept(DM_INIT, 0, False)
    lapic.accept_events()
    assert lapic.base_msr == 0xFEE01800 and lapic.base == 0xFEE01000
    assert get(lapic, R.APIC_ID) == 0x33000000
    assert (lapic.irr, lapic.isr, lapic.tpr, lapic.ldr, get(lapic, R.APIC_SVR)) == (0, 0, 0, 0, 0xFF)
    assert not side_of(lapic).line
    clock.advance(10_000)
    assert lapic.irr == 0, "the timer has been stopped"


# The PICs' interrupts at LINT0 are in test_x86_pic.py. Userspace's (split irqchip):


def test_an_interrupt_of_userspace_comes_in_at_lint0() -> None:
    lapic = one(on=False)
    assert lapic.set_user_vector(0x20)
    assert not lapic.set_user_vector(0x21)
    assert side_of(lapic).line
    assert lapic.ack() == 0x20
    assert not side_of(lapic).line
    assert lapic.isr == 0, "no end of interrupt belongs to it"
    assert lapic.set_user_vector(0x21)


def test_an_interrupt_of_userspace_waits_for_lint0() -> None:
    lapic = one()
    put(lapic, R.APIC_LVT0, MASKED | DM_EXTINT << 8)
    assert lapic.set_user_vector(0x20)
    assert not side_of(lapic).line
    put(lapic, R.APIC_LVT0, DM_EXTINT << 8)
    assert side_of(lapic).line


def test_an_external_interrupt_is_taken_first() -> None:
    lapic = one()
    put(lapic, R.APIC_LVT0, DM_EXTINT << 8)
    inject(lapic, 0xF0)
    lapic.set_user_vector(0x20)
    assert lapic.ack() == 0x20
    assert side_of(lapic).line
    assert lapic.ack() == 0xF0


# LINT0 in NMI mode.


def test_the_nmi_watchdog_of_old_guests() -> None:
    _, bus, lapics = make_lapics(2)
    put(lapics[1], R.APIC_LVT0, DM_NMI << 8)
    bus.pulse_lint0()
    assert [side_of(lapic).nmis for lapic in lapics] == [0, 1]
    put(lapics[1], R.APIC_LVT0, DM_NMI << 8 | MASKED)
    bus.pulse_lint0()
    assert side_of(lapics[1]).nmis == 1
    assert bus.nmi_takers == []


# Messages.


def test_msi() -> None:
    _, bus, lapics = make_lapics(2)
    assert bus.send_msi(0xFEE01000, 0x4055) == 1
    assert bits(lapics[1].irr) == [0x55] and lapics[1].tmr == 0
    assert bus.send_msi(0xFEE01000, 0xC056) == 1
    assert bits(lapics[1].tmr) == [0x56]
    put(lapics[0], R.APIC_LDR, 1 << 24)
    assert bus.send_msi(0xFEE01004, 0x4057) == 1
    assert bits(lapics[0].irr) == [0x57]
    assert bus.send_msi(0xFEE00000, 0x400) == 1
    assert side_of(lapics[0]).nmis == 1


def test_msi_with_the_redirection_hint_goes_to_one() -> None:
    _, bus, lapics = make_lapics(3)
    for lapic in lapics:
        put(lapic, R.APIC_LDR, 1 << 24)
    assert bus.send_msi(0xFEE0100C, 0x58) == 1
    assert sum(bool(lapic.irr) for lapic in lapics) == 1


def test_msi_for_nobody() -> None:
    _, bus, lapics = make_lapics(1)
    assert bus.send_msi(0xFEE05000, 0x55) == 0
    assert bus.send_msi(0xFEE00004, 0x55) == 0
    put(lapics[0], R.APIC_SVR, 0xFF)
    assert bus.send_msi(0xFEE00000, 0x55) == 0
    lapics[0].close()
    with pytest.raises(OSError) as caught:
        bus.send_msi(0xFEE00000, 0x55)
    assert caught.value.errno == errno.EPERM


def test_senders_on_several_threads_lose_nothing() -> None:
    _, _, lapics = make_lapics(3)
    rounds = 500
    taken = {0x50: 0, 0x61: 0}
    last = threading.Barrier(3)

    def send(source: Lapic, vector: int) -> None:
        for number in range(rounds):
            ipi(source, ASSERT | vector, dest=2)
            while taken[vector] <= number:
                time.sleep(0)
        last.wait(30)

    threads = [
        threading.Thread(target=send, args=(lapics[index], vector), daemon=True) for index, vector in enumerate(taken)
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60
    while sum(taken.values()) < 2 * rounds:
        assert time.monotonic() < end, f"an interrupt was lost: {taken}"
        vector = lapics[2].ack()
        if vector != SPURIOUS:
            lapics[2].eoi()
            taken[vector] += 1
        else:
            time.sleep(0)
    last.wait(30)
    assert (lapics[2].irr, lapics[2].isr, side_of(lapics[2]).line) == (0, 0, False)
