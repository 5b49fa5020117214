# SPDX-License-Identifier: GPL-2.0-only
"""``anykvm boot``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from anykvm.vmm.config import ENTRIES, FIRMWARES, DiskConfig, MachineConfig
from anykvm.vmm.memory import parse_size
from anykvm.vmm.outcome import Kind
from anykvm.vmm.session import Session, standard

from . import debian, messages, options

_CONSOLES = {"arm64": "ttyAMA0", "x86": "ttyS0"}


@click.command()
@options.architecture
@click.option(
    "--kernel",
    metavar="FILE",
    help="Your own kernel (arm64: Image, plain, gzip or EFI zboot; x86: bzImage or vmlinux).",
)
@click.option("--initrd", metavar="FILE", help="Your own initramfs.")
@click.option("--append", default="", metavar="WORDS", help="Added to the kernel command line; the last word counts.")
@click.option("--disk", "disks", multiple=True, metavar="FILE[,ro]", help="A raw disk image; may be given again.")
@click.option("--no-reboot", is_flag=True, help="End when the guest reboots, instead of starting it again.")
@click.option(
    "--entry",
    type=click.Choice(ENTRIES),
    default="auto",
    show_default=True,
    help="x86: how the kernel is entered; auto is pvh for a vmlinux with such an entry.",
)
@click.option("--firmware", type=click.Choice(FIRMWARES), default="acpi", show_default=True, help="x86: its tables.")
@click.option("--force", is_flag=True, help="With --kernel: try a /dev/kvm that is known to be too little for Linux.")
@options.machine(smp=1, memory="512M")
@options.backend
@options.common
def boot(
    *,
    arch: str,
    kernel: str | None,
    initrd: str | None,
    append: str,
    disks: tuple[str, ...],
    no_reboot: bool,
    entry: str,
    firmware: str,
    force: bool,
    smp: int,
    memory: str,
    gic: str,
    timeout: float | None,
    backend: str,
    as_json: bool,
) -> int:
    """Boot Linux on ARCH; its console is this terminal.

    Without --kernel and --initrd it is a Debian kernel with a busybox shell, fetched on the first use. With --kernel
    alone there is no initrd. --json prints how it ended on standard error.

    \b
    Keys:  Ctrl-A x       end the machine
           Ctrl-A h       help
           Ctrl-A Ctrl-A  send one Ctrl-A to the guest
           Ctrl-C         goes to the guest; three within a second end the machine

    \b
    Exit status:  0 the guest powered off (or rebooted, with --no-reboot), or Ctrl-A x
                  1 nobody reads the console, or no guest could be fetched
                  2 what was asked for is not possible
                  3 the guest's kernel panicked
                  4 KVM could not run the guest
                  124 --timeout, 130 Ctrl-C, 128+N signal N
    """
    options.check_architecture(arch)
    options.check_backend(backend, arch, debian=kernel is None, force=force)
    config = MachineConfig(
        arch=arch,
        backend=backend,
        kernel=Path(kernel).expanduser() if kernel is not None else debian.guest(arch).kernel,
        initrd=_initrd(arch, kernel, initrd),
        command_line=f"console={_CONSOLES[arch]} panic=-1 {append}".strip(),
        vcpus=smp,
        memory=parse_size(memory),
        disks=[_disk(text) for text in disks],
        gic=gic,
        entry=entry,
        firmware=firmware,
    )
    session = Session(
        config,
        source=standard("stdin"),
        sink=standard("stdout"),
        reboot=not no_reboot,
        timeout=timeout,
        say=messages.line,
    )
    outcome = session.run()
    if session.error is not None:
        messages.trace(session.error)
    if as_json:
        result = {"outcome": outcome.kind.value, "message": outcome.message, "status": outcome.exit_status}
        print(json.dumps(result), file=sys.stderr)
    elif outcome.message:
        messages.error(outcome.message)
    elif outcome.kind is Kind.RESET:
        messages.line(f"the guest rebooted{' by a triple fault' if outcome.triple_fault else ''} (--no-reboot)")
    return outcome.exit_status


def _initrd(arch: str, kernel: str | None, initrd: str | None) -> Path | None:
    if initrd is not None:
        return Path(initrd).expanduser()
    return debian.initramfs(debian.guest(arch)) if kernel is None else None


def _disk(text: str) -> DiskConfig:
    """``FILE`` or ``FILE,ro``."""
    name, comma, flag = text.rpartition(",")
    read_only = bool(comma) and flag == "ro"
    return DiskConfig(Path(name if read_only else text).expanduser(), read_only)
