# SPDX-License-Identifier: GPL-2.0-only
"""What KVM holds, and assertions about it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from anykvm.virt.services import Services

Held = dict[tuple[str, str], int]
"""(kind, name) to how many: ``("memory", "lapic"): 2``."""


def open_fds() -> frozenset[int]:
    """The file descriptors of this process, without the one that lists them."""
    return frozenset(fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{fd}"))


def difference(before: Held, after: Held) -> str:
    """Say in one line what is held more (+) or less (-) than before; empty if nothing."""
    changed = []
    for key in sorted(before.keys() | after.keys()):
        more = after.get(key, 0) - before.get(key, 0)
        if more:
            changed.append(f"{more:+d} {key[0]} {key[1]}")
    return ", ".join(changed)


class Ledger:
    """The ledger of one backend's services.

    >>> from anykvm.api import Kvm
    >>> from anykvm.testing import software
    >>> backend = software("x86", "KVM_CREATE_VCPU/memory:mce banks=ENOMEM")
    >>> ledger = Ledger(backend.services)
    >>> with Kvm(backend) as kvm, kvm.create_vm() as vm:
    ...     with ledger.unchanged():
    ...         try:
    ...             vm.create_vcpu(0)
    ...         except MemoryError:
    ...             pass
    ...         except OSError as error:
    ...             print(error.errno)
    12
    >>> ledger.assert_empty()
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    def held(self) -> Held:
        """What is held now."""
        return self._services.ledger()

    def count(self, kind: str, name: str | None = None) -> int:
        """How many of a kind are held now, or of a kind and name."""
        return sum(count for key, count in self.held().items() if key[0] == kind and name in (None, key[1]))

    def assert_empty(self) -> None:
        """Nothing is held; AssertionError says what is."""
        left = difference({}, self.held())
        assert not left, f"KVM still holds {left}"

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Inside, whatever is acquired is given back; AssertionError says what is not."""
        before = self.held()
        yield
        changed = difference(before, self.held())
        assert not changed, f"KVM holds something else than before: {changed}"
