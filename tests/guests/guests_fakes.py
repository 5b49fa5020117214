# SPDX-License-Identifier: GPL-2.0-only
"""A Debian archive of a few bytes, with an apt-get, apt-cache, apt-config and dpkg-deb that serve it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import struct
import sys
import tarfile
from pathlib import Path

RELEASE = "6.1.0-1-cloud-arm64"
KERNEL = bytes(56) + b"ARM\x64" + bytes(100)

# A path with a space cannot follow #!: sh begins, and Python sees a string.
FAKE = r"""#!/bin/sh
''''exec "@PYTHON@" "$0" "$@" # '''
import json, os, shutil, sys, tarfile, time
home = os.environ["FAKE_HOME"]
program = os.path.basename(sys.argv[0])
args = sys.argv[1:]
with open(home + "/log", "a") as log:
    log.write(program + " " + " ".join(args) + "\n")
fail = json.load(open(home + "/fail.json"))
packages = json.load(open(home + "/packages.json"))
key = "update" if "update" in args else "download" if "download" in args else "show" if "show" in args else program
if key in fail:
    if fail[key].get("sleep"):
        for _ in range(int(fail[key]["sleep"] * 10)):
            print("dlstatus:1:20.0:Retrieving", flush=True)
            time.sleep(0.1)
    sys.stderr.write(fail[key]["stderr"])
    sys.exit(fail[key]["status"])
if program == "apt-config":
    print("LIST='" + home + "/etc/sources.list'")
    print("PARTS='" + home + "/etc/sources.list.d/'")
elif program == "apt-cache":
    names = args[args.index("--no-all-versions") + 1:]
    found = [packages[n] for n in names if n in packages]
    for p in found:
        print("\n".join(k + ": " + str(v) for k, v in p.items()) + "\n")
    if not found:
        sys.stderr.write("N: Unable to locate package\nE: No packages found\n")
        sys.exit(100)
elif key == "download":
    for word in args:
        name, _, version = word.partition("=")
        if name in packages and version:
            p = packages[name]
            shutil.copy(home + "/debs/" + name, "%s_%s_%s.deb" % (name, version.replace(":", "%3a"), p["Architecture"]))
            print("dlstatus:1:50.0:Retrieving", flush=True)
    print("dlstatus:1:100.0:Retrieving", flush=True)
elif program == "dpkg-deb":
    tarfile.open(args[1]).extractall(args[2])
"""


def tiny_elf(*, needed: tuple[str, ...] = (), interp: str | None = None, modinfo: bytes | None = None) -> bytes:
    """An ELF file for AArch64 with only what is read here: .dynamic, .interp, .modinfo."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    dynamic = b"".join(struct.pack("<QQ", 1, strings.index(b"\0" + name.encode() + b"\0") + 1) for name in needed)
    dynamic += struct.pack("<QQQQ", 5, 0, 0, 0)  # DT_STRTAB, DT_NULL
    sections = [("", 0, 0, b""), (".dynstr", 3, 0, strings), (".dynamic", 6, 1, dynamic)]
    if modinfo is not None:
        sections.append((".modinfo", 1, 0, modinfo))
    if interp is not None:
        sections.append((".interp", 1, 0, interp.encode() + b"\0"))
    names = b"".join(name.encode() + b"\0" for name, *_ in sections) + b".shstrtab\0"
    sections.append((".shstrtab", 3, 0, names))
    segments = 1 if interp is not None else 0
    position = 64 + 56 * segments
    body, headers, program = b"", b"", b""
    for name, kind, link, data in sections:
        entry = 16 if kind == 6 else 0
        where = names.index(name.encode() + b"\0") if name else 0
        headers += struct.pack("<IIQQQQIIQQ", where, kind, 0, 0, position + len(body), len(data), link, 0, 1, entry)
        if name == ".interp":
            program = struct.pack("<IIQQQQQQ", 3, 4, position + len(body), 0, 0, len(data), len(data), 1)
        body += data
    head = (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + struct.pack(
            "<HHIQQQIHHHHHH",
            3,
            183,
            1,
            0,
            64 if segments else 0,
            position + len(body),
            0,
            64,
            56,
            segments,
            64,
            len(sections),
            len(sections) - 1,
        )
    )
    return head + program + body + headers


def module(*, depends: str = "", aliases: tuple[str, ...] = ()) -> bytes:
    words = [f"depends={depends}", *(f"alias={alias}" for alias in aliases), "license=GPL"]
    return tiny_elf(modinfo=b"".join(word.encode() + b"\0" for word in words))


class FakeDebian:
    """The archive, its programs in `bin`, and what was asked of them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.bin = home / "bin"
        for folder in ("bin", "debs", "etc/sources.list.d"):
            (home / folder).mkdir(parents=True)
        (home / "etc/sources.list").write_text("deb http://archive.invalid/debian bookworm main\n")
        for program in ("apt-get", "apt-cache", "apt-config", "dpkg-deb"):
            path = self.bin / program
            path.write_text(FAKE.replace("@PYTHON@", sys.executable))
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        self.packages: dict[str, dict[str, str]] = {}
        self.fail()
        modules = f"lib/modules/{RELEASE}/kernel/drivers"
        self.add("linux-image-cloud-arm64", {}, depends=f"linux-image-{RELEASE} (= 6.1.1-1)")
        self.add(
            f"linux-image-{RELEASE}",
            {
                f"boot/vmlinuz-{RELEASE}": KERNEL,
                f"boot/config-{RELEASE}": b"CONFIG_SMP=y\n",
                f"{modules}/virtio/virtio.ko": module(),
                f"{modules}/virtio/virtio_ring.ko": module(),
                f"{modules}/virtio/virtio_mmio.ko": module(
                    depends="virtio,virtio_ring", aliases=("of:N*T*Cvirtio,mmio",)
                ),
                f"{modules}/block/virtio_blk.ko": module(depends="virtio,virtio_ring", aliases=("virtio:d00000002v*",)),
                f"{modules}/char/virtio-rng.ko": module(depends="virtio", aliases=("virtio:d00000004v*",)),
                f"{modules}/net/round.ko": module(depends="trip"),
                f"{modules}/net/trip.ko": module(depends="round"),
                f"{modules}/block/loop.ko": module(),
            },
            depends="kmod, linux-base (>= 4.3~)",
        )
        self.add("busybox-static", {"bin/busybox": tiny_elf()})
        hackbench = tiny_elf(needed=("libnuma.so.1", "libc.so.6"), interp="/lib/ld-linux-aarch64.so.1")
        self.add(
            "rt-tests", {"usr/bin/hackbench": hackbench}, depends="libc6 (>= 2.33), libnuma1, python3 | python3-any"
        )
        triplet = "lib/aarch64-linux-gnu"
        self.add(
            "libc6",
            {
                f"{triplet}/libc.so.6": tiny_elf(needed=("ld-linux-aarch64.so.1",)),
                f"{triplet}/ld-linux-aarch64.so.1": tiny_elf(),
                "lib/ld-linux-aarch64.so.1": "aarch64-linux-gnu/ld-linux-aarch64.so.1",
                f"{triplet}/libm.so.6": tiny_elf(),
            },
        )
        self.add(
            "libnuma1",
            {
                f"usr/{triplet}/libnuma.so.1.0.0": tiny_elf(needed=("libc.so.6",)),
                f"usr/{triplet}/libnuma.so.1": "libnuma.so.1.0.0",
            },
            depends="libc6",
        )
        self.add("python3", {"usr/bin/python3": b"#!"})

    def add(self, name: str, files: dict[str, bytes | str], *, depends: str = "", version: str = "1:6.1.1-1") -> None:
        """A package with `files`; a text as content is a link's target."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for path, data in files.items():
                info = tarfile.TarInfo(path)
                if isinstance(data, str):
                    info.type, info.linkname = tarfile.SYMTYPE, data
                    tar.addfile(info)
                else:
                    info.size, info.mode = len(data), 0o755
                    tar.addfile(info, io.BytesIO(data))
        deb = buffer.getvalue()
        (self.home / "debs" / name).write_bytes(deb)
        self.packages[name] = {
            "Package": name,
            "Version": version,
            "Architecture": "arm64",
            "Depends": depends,
            "Size": str(len(deb)),
            "SHA256": hashlib.sha256(deb).hexdigest(),
        }
        self._write()

    def remove(self, name: str) -> None:
        del self.packages[name]
        self._write()

    def fail(self, what: str | None = None, stderr: str = "", status: int = 100, sleep: float = 0) -> None:
        """Makes `what` (update, download, show, or a program) fail; without it everything works again."""
        content = {what: {"stderr": stderr, "status": status, "sleep": sleep}} if what else {}
        (self.home / "fail.json").write_text(json.dumps(content))

    @property
    def log(self) -> list[str]:
        path = self.home / "log"
        return path.read_text().splitlines() if path.exists() else []

    def _write(self) -> None:
        (self.home / "packages.json").write_text(json.dumps(self.packages))


def read_cpio(data: bytes) -> dict[str, tuple[dict[str, int], bytes]]:
    """A newc archive as path → (fields, content); checks what the kernel checks."""
    keys = ("ino", "mode", "uid", "gid", "nlink", "mtime", "size", "dmaj", "dmin", "rmaj", "rmin", "namesize", "check")
    members: dict[str, tuple[dict[str, int], bytes]] = {}
    position = 0
    while True:
        assert position % 4 == 0
        assert data[position : position + 6] == b"070701"
        fields = {key: int(data[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n, key in enumerate(keys)}
        end = position + 110 + fields["namesize"]
        name = data[position + 110 : end]
        assert name.endswith(b"\0")
        start = end + -end % 4
        content = data[start : start + fields["size"]]
        position = start + fields["size"]
        position += -position % 4
        if name == b"TRAILER!!!\0":
            assert not any(data[position:])
            assert len(data) % 512 == 0
            return members
        path = name[:-1].decode()
        assert path not in members
        assert os.path.dirname(path) in ("", *members)
        members[path] = (fields, content)
