# SPDX-License-Identifier: GPL-2.0-only
"""Record the answers of this machine's /dev/kvm: `python tests/differential/record.py [EXAMPLES]`.

Of the generated sequences those are kept whose last operation ends as none before did: in another errno, another exit,
or with other fields. The file goes to tests/differential/recorded/, named after the kernel; commit it.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from differential_cases import CASES
from differential_generate import sequences
from differential_player import Operation, Outcome, Player
from hypothesis import HealthCheck, Phase, given, seed, settings

from anykvm.host import HostBackend, host_arch, probe, virtualises

FOLDER = Path(__file__).parent / "recorded"


def kind(operation: Operation, outcome: Outcome) -> str:
    """What tells outcomes apart: operation and request, and the errno, the exit, or which fields are there."""
    what = str(operation[2] if operation[0] == "ioctl" else operation[3] if operation[0] in ("make", "modify") else "")
    if isinstance(outcome, list) and isinstance(outcome[-1], dict):
        found = outcome[-1]
        result = str(found.get("exit") or sorted(path.split(".")[0] for path in found))
    else:
        result = outcome if isinstance(outcome, str) else "number"
    argument = ""
    if operation[0] == "modify" and outcome == "EINVAL":
        argument = str(sorted(operation[4]))
    return f"{operation[0]} {what} {result} {argument}"


def vendor() -> str:
    """The CPU's vendor, as /proc/cpuinfo has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("vendor_id"):
            return line.split(":")[1].strip()
    return "unknown"


def record(examples: int) -> dict[str, Any]:
    """Play the written cases and generated ones; give what is kept."""
    player = Player(HostBackend())
    kept: list[dict[str, Any]] = []
    seen: set[str] = set()

    def take(name: str, sequence: list[Operation]) -> None:
        outcomes = player.play(sequence)
        kept.append({"name": name, "sequence": sequence, "outcomes": outcomes})
        seen.update(map(kind, sequence, outcomes))

    for name, sequence in CASES.items():
        take(name, sequence)

    @seed(0)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(sequences())
    def explore(sequence: list[Operation]) -> None:
        outcomes = player.play(sequence)
        new = [index for index, one in enumerate(map(kind, sequence, outcomes)) if one not in seen]
        if not new:
            return
        # As far as the last new outcome, without what changes nothing before it.
        part = sequence[: new[-1] + 1]
        wanted = {kind(sequence[index], outcomes[index]) for index in new}
        at = len(part) - 2
        while at >= 0:
            fewer = part[:at] + part[at + 1 :]
            if wanted <= set(map(kind, fewer, player.play(fewer))):
                part = fewer
            at -= 1
        take(f"generated {len(kept)}", part)

    explore()
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "vendor": vendor(),
        "virtualises": virtualises(),
        "note": "" if virtualises() else "no VMX or SVM: a kvm_pvm kernel, which takes guests through its emulator",
        "cases": kept,
    }


def main() -> int:
    reason = probe()
    if reason is not None or host_arch() != "x86":
        print(reason or "the sequences are x86's", file=sys.stderr)
        return 2
    found = record(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
    flavour = "x86" if found["virtualises"] else "x86-pvm"
    path = FOLDER / f"{flavour}-{'.'.join(found['kernel'].split('.')[:2])}.json"
    FOLDER.mkdir(exist_ok=True)
    head = {name: value for name, value in found.items() if name != "cases"}
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in found["cases"])
    path.write_text(f'{json.dumps(head)[:-1]}, "cases": [\n{lines}\n]}}\n')
    print(f"{len(found['cases'])} sequences in {os.path.relpath(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
