# SPDX-License-Identifier: GPL-2.0-only
"""What every benchmark gets: the guest, the sides, how often; and the form of a benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from anykvm.guests import Extra, Guest, arguments, build_initramfs, pull

from . import quiet
from .measure import Row, Samples, Target, alternate, rows
from .vmms import ARCHITECTURES, Anykvm, Load, Qemu, Ran, Vmm, run_guest

ALIKE = "nokaslr mitigations=off"
"""Makes a guest's kernel take the same paths on both sides.

QEMU's device tree has a seed for KASLR, and with KASLR this kernel changes page tables at each entry and exit (KPTI),
which costs an emulator dearly; and each side's CPU has other mitigations switched on.
"""


@dataclass
class Context:
    """One run of the benchmarks."""

    repetitions: int = 5
    qemu: Qemu | None = None
    """``None``: there is none, or it is not to be measured."""
    words: str = ALIKE
    """More for the guest's command line."""
    say: Callable[[str], None] = field(default=lambda text: None)
    """Told of each single measurement."""
    arch: str = "arm64"
    """Of the guests."""
    _noise: list[float] = field(default_factory=list, init=False)

    @cached_property
    def guest(self) -> Guest:
        """From the cache, or fetched; never within a measured time."""
        return pull(ARCHITECTURES[self.arch])

    @property
    def vmms(self) -> list[Vmm]:
        """anykvm first."""
        return [Anykvm()] if self.qemu is None else [Anykvm(), self.qemu]

    @property
    def names(self) -> list[str]:
        """Of `vmms`."""
        return [vmm.name for vmm in self.vmms]

    def load(self, mode: str, *, vcpus: int = 1, args: tuple[str, ...] = (), script: str | None = None) -> Load:
        """A guest in one of init's modes; a script too long for the command line goes into the image."""
        extra = [Extra("anykvm.sh", script.encode())] if script is not None else []
        image: Path = build_initramfs(self.guest, extra=extra)
        return Load(self.guest, image, f"quiet {self.words} {arguments(mode, args=args)}", vcpus)

    def boot(self, vmm: Vmm, load: Load) -> Ran:
        """:func:`vmms.run_guest`, in a quiet moment if one comes soon; keeps how quiet it was."""
        quiet.wait()
        ran = run_guest(vmm, load)
        self._noise.append(ran.others)
        return ran

    def alternate(self, what: str, measure: Callable[[Vmm], dict[str, float]]) -> Samples:
        """:func:`measure.alternate` between `vmms`, telling of it."""
        self._noise.clear()

        def told(vmm: Vmm) -> dict[str, float]:
            numbers = measure(vmm)
            self.say(
                f"{what}: {vmm.name}: "
                + ", ".join(f"{name} {number:.3f}" for name, number in numbers.items())
                + self._noisy()
            )
            return numbers

        return alternate(self.vmms, self.repetitions, told)

    def rows(
        self, samples: Samples, *, unit: str | Mapping[str, str], targets: Mapping[str, Target] | None = None
    ) -> list[Row]:
        """Of what :meth:`alternate` gave."""
        made = rows(samples, self.names, unit=unit, targets=targets)
        for row in made:
            row.noise = statistics.fmean(self._noise) if self._noise else None
        return made

    def _noisy(self) -> str:
        """A word on the last boot, if others kept the machine busy."""
        noise = self._noise[-1] if self._noise else 0.0
        return f" (others used {noise:.1f} cores)" if noise > quiet.QUIET else ""


@dataclass(frozen=True)
class Benchmark:
    """A named measurement."""

    name: str
    summary: str
    run: Callable[[Context], list[Row]]
