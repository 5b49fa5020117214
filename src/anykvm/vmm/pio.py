# SPDX-License-Identifier: GPL-2.0-only
"""An x86 machine's ports: which device answers at a port number."""

from __future__ import annotations

from typing import Final

from .bus import MmioDevice

PORTS: Final = 1 << 16


class PortBus:
    """Finds the device by the port: one dictionary lookup per access.

    A device sees accesses of `width` bytes at most; wider ones reach it, or several, byte by byte, as on ISA. Where no
    device is, reads give all ones and writes do nothing; ``unclaimed`` counts them.
    """

    def __init__(self) -> None:
        self._ports: dict[int, tuple[int, int, MmioDevice]] = {}
        self.unclaimed = 0

    def attach(self, base: int, count: int, device: MmioDevice, *, width: int = 1) -> None:
        """Put a device at `count` ports from `base` on that no other has; ``ValueError`` otherwise."""
        ports = range(base, base + count)
        if count <= 0 or base < 0 or base + count > PORTS:
            raise ValueError(f"{count} ports at {base:#x} are not in the port space")
        if any(port in self._ports for port in ports):
            raise ValueError(f"the {count} ports at {base:#x} overlap another device's")
        for port in ports:
            self._ports[port] = (base, width, device)

    def read(self, port: int, size: int) -> int:
        """An IN of `size` bytes (1, 2 or 4)."""
        found = self._ports.get(port)
        if found is not None and size <= found[1]:
            return found[2].read(port - found[0], size)
        if size > 1:
            return sum(self.read((port + byte) % PORTS, 1) << 8 * byte for byte in range(size))
        self.unclaimed += 1
        return 0xFF

    def write(self, port: int, size: int, value: int) -> None:
        """An OUT of `size` bytes (1, 2 or 4)."""
        found = self._ports.get(port)
        if found is not None and size <= found[1]:
            found[2].write(port - found[0], size, value)
        elif size > 1:
            for byte in range(size):
                self.write((port + byte) % PORTS, 1, value >> 8 * byte & 0xFF)
        else:
            self.unclaimed += 1

    def read_items(self, port: int, size: int, count: int) -> bytes:
        """A REP INS: `count` items of `size` bytes."""
        return b"".join(self.read(port, size).to_bytes(size, "little") for _ in range(count))

    def write_items(self, port: int, size: int, data: bytes) -> None:
        """An OUT, or a REP OUTS: items of `size` bytes, one after the other."""
        for start in range(0, len(data), size):
            self.write(port, size, int.from_bytes(data[start : start + size], "little"))
