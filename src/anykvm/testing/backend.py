# SPDX-License-Identifier: GPL-2.0-only
"""Backends that fail as a plan says.

:class:`FaultyBackend` goes around any backend, the machine's own /dev/kvm too: whole requests fail. Over the software
backend with :class:`FaultyServices` everything inside KVM can fail as well, and a ledger says what is held.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from anykvm.virt.ladder import Ladder
from anykvm.virt.points import ACQUIRES, PUBLISHES, STEP_ERRNOS, Acquire
from anykvm.virt.services import Services

from .faults import Fault, Plan, plan_of
from .injector import Injector

if TYPE_CHECKING:
    from anykvm.api import Backend

T = TypeVar("T")


class FaultyLadder(Ladder):
    """A ladder whose every step is a point: it can fail before it does anything."""

    __slots__ = ("_injector", "_owner")

    def __init__(self, injector: Injector, owner: str) -> None:
        super().__init__()
        self._injector = injector
        self._owner = owner

    def step(self, name: str, do: Callable[..., T], undo: Callable[..., object] | None, *args: Any) -> T:
        """As :meth:`.Ladder.step`, or OSError."""
        self._injector.point("step", f"{self._owner}: {name}", STEP_ERRNOS)
        return super().step(name, do, undo, *args)

    def acquire(self, name: str, do: Callable[..., T], undo: Callable[[T], object], *args: Any) -> T:
        """As :meth:`.Ladder.acquire`, or OSError."""
        self._injector.point("step", f"{self._owner}: {name}", STEP_ERRNOS)
        return super().acquire(name, do, undo, *args)


class FaultyServices(Services):
    """Services whose every acquisition, publication and step asks the plan first.

    Over services of another kind it is a mixin: ``class Mine(FaultyServices, Others)`` takes an injector, and after it
    what ``Others`` takes.
    """

    def __init__(self, injector: Injector | None = None, *args: Any) -> None:
        super().__init__(*args)
        self.injector = injector if injector is not None else Injector()

    def ladder(self, owner: str) -> Ladder:
        """Make a ladder whose steps can fail."""
        return FaultyLadder(self.injector, owner)

    def publish(self, what: str) -> None:
        """Pass a point of publication."""
        self.injector.point("publish", what, PUBLISHES.get(what, ()))
        super().publish(what)


def _asking(method: str, spec: Acquire) -> Callable[..., Any]:
    def acquire(self: FaultyServices, *args: Any) -> Any:
        self.injector.point(spec.kind or args[0], args[spec.name], spec.errnos)
        return getattr(super(FaultyServices, self), method)(*args)

    acquire.__name__ = method
    acquire.__doc__ = getattr(Services, method).__doc__
    return acquire


for _method, _spec in ACQUIRES.items():
    setattr(FaultyServices, _method, _asking(_method, _spec))


def requests(arch: str) -> dict[int, str]:
    """Names of the requests of an architecture's KVM, by number."""
    modules = ["anykvm.uapi.requests"]
    if importlib.util.find_spec(f"anykvm.uapi.{arch}") is not None:
        modules.append(f"anykvm.uapi.{arch}")
    found: dict[int, str] = {}
    for name in modules:
        for key, value in vars(importlib.import_module(name)).items():
            # A request has KVM's ioctl type, 0xAE, in bits 8 to 15.
            if key.startswith("KVM_") and isinstance(value, int) and value >> 8 & 0xFF == _KVMIO and value != _KVMIO:
                found.setdefault(value, key)
    return found


_KVMIO: Final = 0xAE


class FaultyBackend:
    """A backend whose requests fail as the plan says: it goes wherever a backend does, ``Kvm(backend)`` first of all.

    The requests are known by name; one that has none cannot be failed, and is counted as ``"ioctl"``.
    """

    def __init__(self, backend: Backend, injector: Injector | None = None) -> None:
        self._backend = backend
        self.injector = injector if injector is not None else Injector()
        self.name = backend.name
        self.arch = backend.arch
        self._names = requests(backend.arch)

    def plan(self, plan: Plan | Fault | str | Iterable[Fault]) -> None:
        """Carry out this plan from now on, counted from here; an empty one ends all faults. PlanError."""
        self.injector.arm(plan_of(plan))

    @property
    def services(self) -> Services:
        """The software backend's services; AttributeError on another backend."""
        services: Services = self._backend.services  # type: ignore[attr-defined]
        return services

    def open(self) -> int:
        """Open the system fd; the point is called ``open``."""
        with self.injector.call("open"):
            return self._backend.open()

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        """Make a request; the point has the request's name."""
        with self.injector.call(self._names.get(request & 0xFFFFFFFF, "ioctl")):
            return self._backend.ioctl(fd, request, arg)

    def close(self, fd: int) -> None:
        """Close an fd, which cannot fail; what it ends may pass points."""
        with self.injector.call("close"):
            self._backend.close(fd)

    def mmap(self, fd: int, length: int, offset: int = 0) -> memoryview:
        """Map a vCPU; the point is called ``mmap``."""
        with self.injector.call("mmap"):
            return self._backend.mmap(fd, length, offset)

    def interrupt(self, fd: int) -> None:
        """As the backend's own."""
        self._backend.interrupt(fd)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def software(arch: str, plan: Plan | Fault | str | Iterable[Fault] = ()) -> FaultyBackend:
    """Make the software backend for an architecture, with a plan and a ledger; ValueError, PlanError.

    >>> from anykvm.api import Kvm
    >>> backend = software("arm64", "KVM_CREATE_VCPU#2=ENOMEM")
    >>> with Kvm(backend) as kvm, kvm.create_vm() as vm, vm.create_vcpu(0):
    ...     vm.create_vcpu(1)
    Traceback (most recent call last):
    OSError: [Errno 12] ...
    """
    injector = Injector(plan_of(plan))
    # By name: the kit is written over the ABI, and finds what answers it as the typed API does.
    module = importlib.import_module("anykvm.arch.software")
    return FaultyBackend(module.backend(arch, FaultyServices(injector)), injector)
