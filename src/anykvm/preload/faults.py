# SPDX-License-Identifier: GPL-2.0-only
"""``anykvm exec --faults PLAN``: the fault plans of :mod:`anykvm.testing.faults` in somebody else's process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anykvm.testing.backend import FaultyLadder, requests
from anykvm.testing.faults import Plan
from anykvm.testing.injector import Injector
from anykvm.virt.ladder import Ladder
from anykvm.virt.points import ACQUIRES, PUBLISHES, Acquire

from .services import ClientServices

Serve = Callable[[int, int], int]


class FaultyClientServices(ClientServices):
    """A client's services whose every acquisition, publication and step asks the plan first."""

    def __init__(self, injector: Injector, protect: Callable[[int, bool], None], internal: Callable[[], None]) -> None:
        super().__init__(protect, internal)
        self.injector = injector

    def ladder(self, owner: str) -> Ladder:
        """Make a ladder whose steps can fail."""
        return FaultyLadder(self.injector, owner)

    def publish(self, what: str) -> None:
        """Pass a point of publication."""
        self.injector.point("publish", what, PUBLISHES.get(what, ()))


def _asking(method: str, spec: Acquire) -> Callable[..., Any]:
    original: Callable[..., Any] = getattr(ClientServices, method)

    def acquire(self: FaultyClientServices, *args: Any) -> Any:
        self.injector.point(spec.kind or args[0], args[spec.name], spec.errnos)
        return original(self, *args)

    return acquire


for _method, _spec in ACQUIRES.items():
    setattr(FaultyClientServices, _method, _asking(_method, _spec))


class Faults:
    """A plan being carried out on the requests of one process."""

    def __init__(self, plan: str, arch: str) -> None:
        self.injector = Injector(Plan.parse(plan))
        self._names = requests(arch)

    def wrap(self, serve: Serve) -> Serve:
        """Give what serves the same file, or fails as the plan says."""

        def faulty(request: int, argument: int) -> int:
            with self.injector.call(self._names.get(request & 0xFFFFFFFF, "ioctl")):
                return serve(request, argument)

        return faulty

    def open(self, make: Callable[[], int]) -> int:
        """Open /dev/kvm, or fail."""
        with self.injector.call("open"):
            return make()
