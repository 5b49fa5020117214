# SPDX-License-Identifier: GPL-2.0-only
"""Starting a program with the preload library: the environment it finds, and the programs it cannot work in."""

from __future__ import annotations

import _ctypes
import errno
import os
import platform
import stat
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

from .program import Unsuitable, examine

HOST_ARCHES: Final = {"x86_64": "x86", "aarch64": "arm64"}
"""Which guests a program built for a host machine expects of /dev/kvm."""

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
"""The exit statuses of a shell for a program that is not there, and for one that cannot be executed."""


class CannotStart(Exception):
    """The program cannot be started; ``status`` is the exit status to end with, the message one line."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def host_arch() -> str:
    """Name the architecture of the guests that a program of this machine expects."""
    return HOST_ARCHES.get(platform.machine(), platform.machine())


def library() -> Path:
    """Find the preload library; :class:`CannotStart` if it has not been built."""
    name = f"_preload{sysconfig.get_config_var('EXT_SUFFIX')}"
    path = Path(__file__).parent / name
    if not path.exists():
        raise CannotStart(f"the preload library is not built ({path}): install anykvm again", 1)
    return path


def libpython() -> Path:
    """Find the shared library of the Python that runs this; :class:`CannotStart` if it has none."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = f"libpython{version}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib"]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    if multiarch:
        folders += [f"{sys.base_prefix}/lib/{multiarch}", f"/usr/lib/{multiarch}"]
    for folder in folders:
        if folder and (path := Path(folder) / name).exists():
            return path
    raise CannotStart(
        f"exec needs {name}, which this Python does not have: apt install libpython{version}, "
        "or use a Python built with --enable-shared",
        1,
    )


def environment(options: Mapping[str, str], base: Mapping[str, str], *, raw: bool = False) -> dict[str, str]:
    """Make the environment of a program under exec from ``base``.

    ``options`` are for ``client.py``; ``raw``: also serve ioctl system calls that do not go through libc.
    """
    home = Path(__file__).resolve().parents[2]
    preload = str(library())
    found = dict(base)
    before = found.get("LD_PRELOAD", "")
    # Ours first: what else is preloaded sees the calls that are not KVM's.
    others = [one for one in before.replace(":", " ").split() if Path(one).name != Path(preload).name]
    found["LD_PRELOAD"] = " ".join([preload, *others])
    found["ANYKVM_EXEC"] = "\n".join(f"{key}={value}" for key, value in options.items())
    found["ANYKVM_EXEC_HOME"] = str(home)
    found["ANYKVM_EXEC_LIBPYTHON"] = str(libpython())
    found["ANYKVM_EXEC_VERSION"] = f"{sys.version_info.major}.{sys.version_info.minor}"
    found["ANYKVM_EXEC_PYTHON"] = sys.executable
    found["ANYKVM_EXEC_PATH"] = ":".join([*_standard_library(), str(home)])
    found["ANYKVM_EXEC_RAW"] = "1" if raw else "0"
    return found


def _standard_library() -> list[str]:
    """Where this Python has its modules: Python's part, and the compiled part (a virtual environment has neither)."""
    compiled = Path(_ctypes.__file__).parent if hasattr(_ctypes, "__file__") else None
    return [sysconfig.get_paths()["stdlib"], *([str(compiled)] if compiled else [])]


def find(program: str, path: str) -> Path:
    """Find a program as a shell does, and see that it can be executed; :class:`CannotStart`."""
    candidates = [Path(program)] if "/" in program else [Path(one or ".") / program for one in path.split(":")]
    refused: Path | None = None
    for candidate in candidates:
        try:
            mode = candidate.stat().st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode) and os.access(candidate, os.X_OK):
            return candidate
        refused = refused or candidate
    if refused is None:
        raise CannotStart(f"{program}: not found", NOT_FOUND)
    what = "a directory" if refused.is_dir() else "not executable: chmod +x makes it so"
    raise CannotStart(f"{refused}: it is {what}", NOT_EXECUTABLE)


def run(arguments: list[str], options: Mapping[str, str], *, raw: bool = False) -> NoReturn:
    """Become the program ``arguments[0]`` with these arguments: its exit status is then ours.

    :class:`CannotStart` if it cannot be started, or would never see the /dev/kvm it is given.
    """
    program = find(arguments[0], os.environ.get("PATH", os.defpath))
    try:
        examine(program)
    except Unsuitable as reason:
        raise CannotStart(str(reason), NOT_EXECUTABLE) from None
    variables = environment(options, os.environ, raw=raw)
    try:
        os.execve(program, arguments, variables)
    except OSError as error:
        why = "it is not a program, and no script with a #! line" if error.errno == errno.ENOEXEC else error.strerror
        raise CannotStart(f"{program}: {why}", NOT_EXECUTABLE) from None
