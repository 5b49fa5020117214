# SPDX-License-Identifier: GPL-2.0-only
"""A virtio entropy device. Source: Virtual I/O Device (VIRTIO) Version 1.2, section 5.4."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar, Final

from .virtqueue import Chain

_MOST: Final = 1 << 16  # bytes for one request


class Entropy:
    """The device: the host's random numbers."""

    device_id: ClassVar[int] = 4
    name: ClassVar[str] = "rng"

    def __init__(self) -> None:
        self.features = 0
        self.queue_sizes: Sequence[int] = (8,)
        self.config = b""

    def serve(self, index: int, chain: Chain) -> int:
        """Fill the buffers, up to 64 KiB in all."""
        written = 0
        for view in chain.writable:
            count = min(len(view), _MOST - written)
            view[:count] = os.urandom(count)
            written += count
        return written

    def close(self) -> None:
        """Nothing to let go of."""
