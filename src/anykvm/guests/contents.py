# SPDX-License-Identifier: GPL-2.0-only
"""What is in a guest's image: folders, devices, busybox and its applets, init, programs, kernel modules."""

from __future__ import annotations

from collections.abc import Sequence

from .cpio import Archive
from .elf import ModuleInfo, module_bytes, module_info
from .errors import GuestError
from .guest import Guest
from .init import APPLETS, INIT, MODULE_TABLE
from .machines import machine

_FOLDERS = ("dev", "proc", "sys", "run", "tmp", "root", "mnt", "sbin", "usr/sbin", "etc")
_NOT_APPLETS = ("busybox",)


def guest_archive(guest: Guest, modules: Sequence[str]) -> Archive:
    """The files every image has, and kernel `modules` by name, with what they depend on."""
    archive = Archive()
    for folder in _FOLDERS:
        archive.directory(folder)
    archive.directory("tmp", 0o1777)
    # The kernel opens /dev/console for init before anything is mounted on /dev.
    archive.character_device("dev/console", 5, 1, 0o600)
    archive.character_device("dev/null", 1, 3, 0o666)
    for path, file in guest.programs.items():
        archive.file(path, file.path.read_bytes(), 0o755)
    for applet in APPLETS:
        if applet not in _NOT_APPLETS:
            archive.symlink(f"bin/{applet}", "busybox")
    archive.file("init", INIT.encode(), 0o755)
    _add_modules(archive, guest, modules)
    return archive


def _add_modules(archive: Archive, guest: Guest, named: Sequence[str]) -> None:
    infos: dict[str, ModuleInfo] = {}
    always = [name.replace("-", "_") for name in named]
    by_device = [name for name in machine(guest.arch).modules if name not in always and name in guest.modules]
    table: list[str] = []
    for name in [*always, *by_device]:
        order = _order(archive, guest, name, infos, ())
        paths = " ".join(f"/lib/modules/{module}.ko" for module in order)
        if name in always:
            table.append(f"- {paths}")
        else:
            # The shell reads words: no pattern with a space could be told from paths. None of virtio's has one.
            table += [f"{alias} {paths}" for alias in infos[name].aliases if " " not in alias]
    if table:
        archive.file(MODULE_TABLE, ("\n".join(table) + "\n").encode())


def _order(
    archive: Archive, guest: Guest, name: str, infos: dict[str, ModuleInfo], above: tuple[str, ...]
) -> list[str]:
    """The modules to insert for `name`, dependencies first; adds their files to the archive."""
    if name in above:
        raise GuestError(f"kernel modules depend on each other in a circle: {' '.join((*above, name))}")
    path = guest.modules.get(name)
    if path is None:
        raise GuestError(
            f"kernel {guest.release} has no module {name}: it may be built in (see {guest.config}); leave it out"
        )
    if name not in infos:
        data = module_bytes(path)
        infos[name] = module_info(data)
        archive.file(f"lib/modules/{name}.ko", data)
    order = [
        module for depend in infos[name].depends for module in _order(archive, guest, depend, infos, (*above, name))
    ]
    return list(dict.fromkeys([*order, name]))
