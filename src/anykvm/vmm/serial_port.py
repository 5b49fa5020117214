# SPDX-License-Identifier: GPL-2.0-only
"""What all UARTs here have in common: the two directions between the guest's registers and whoever shows the console.

Output is collected and taken in chunks (:meth:`SerialPort.take`); the first character after that calls ``wake``. If
nobody takes it, the transmitter is full to the guest, which then waits, as with a slow terminal.

Input is handed to the guest only when its driver has had the receive interrupt enabled for some milliseconds. Linux
enables it for a moment and empties the FIFO when it opens the port: what was typed, or piped in, before that would be
lost otherwise.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from threading import Condition
from typing import Final

OUTPUT_LIMIT: Final = 1 << 16
"""Characters kept for a slow reader before the transmitter is full."""
_OUTPUT_HARD_LIMIT: Final = OUTPUT_LIMIT + 4096  # for writers that do not look at the flag
INPUT_LIMIT: Final = 1 << 12
"""Characters kept for a slow guest before no more are wanted."""
_SETTLE: Final = 0.02  # seconds
_FULL_PAUSE: Final = 0.01  # seconds a vCPU sleeps when it looks at a full transmitter, instead of spinning


class SerialPort:
    """Both ends' buffers. A UART says what its registers make of them, by the methods that raise here.

    `set_irq` gets the level of the interrupt line; `wake` is called when there is output to take, or room for input;
    `clock` gives seconds.
    """

    def __init__(
        self, set_irq: Callable[[bool], None], wake: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._set_irq = set_irq
        self._wake = wake
        self._clock = clock
        self._listening: float | None = None
        self._lock = Condition()
        self._line = False
        self._output = bytearray()
        self._fifo: deque[int] = deque()
        self._input = bytearray()

    # What a UART has to say, with the lock held.

    def _depth(self) -> int:
        """How many characters the receive FIFO holds."""
        raise NotImplementedError

    def _interrupts(self) -> bool:
        """Whether the interrupt line is high."""
        raise NotImplementedError

    def _arrived(self) -> None:
        """Characters came into the FIFO."""

    def _emptied(self) -> None:
        """The transmitter is no longer full."""

    # For a UART's registers.

    def _is_full(self) -> bool:
        """Whether the guest has to wait with output; called without the lock, it makes a full port's guest sleep."""
        if len(self._output) >= OUTPUT_LIMIT:
            with self._lock:
                self._lock.wait_for(lambda: len(self._output) < OUTPUT_LIMIT, _FULL_PAUSE)
        return len(self._output) >= OUTPUT_LIMIT

    def _put(self, character: int) -> bool:
        """Send a character; with the lock held. Tells whether there is room for another."""
        output = self._output
        if len(output) < _OUTPUT_HARD_LIMIT:
            output.append(character)
        if len(output) == 1:
            self._wake()
        return len(output) < OUTPUT_LIMIT

    def _listen(self, enabled: bool) -> None:
        """The driver has its receive interrupt enabled, or not; with the lock held."""
        if not enabled:
            self._listening = None
        elif self._listening is None:
            self._listening = self._clock()
            if self._input:
                self._wake()

    def _refill(self) -> None:
        """Move input into the FIFO; a character takes no time, so a receive timeout is over at once."""
        if self._listening is None or self._clock() - self._listening < _SETTLE:
            return
        count = min(self._depth() - len(self._fifo), len(self._input))
        if count > 0:
            self._fifo.extend(self._input[:count])
            del self._input[:count]
            self._arrived()
            if len(self._input) < INPUT_LIMIT <= len(self._input) + count:
                self._wake()

    def _update(self) -> None:
        line = self._interrupts()
        if line != self._line:
            self._line = line
            self._set_irq(line)

    # The other end of the line.

    def take(self) -> bytes:
        """All output there is; empty if there is none."""
        with self._lock:
            taken = bytes(self._output)
            self._output.clear()
            if len(taken) >= OUTPUT_LIMIT:
                self._emptied()
                self._update()
                self._lock.notify_all()
            return taken

    def room(self) -> int:
        """How many characters of input are wanted."""
        return max(INPUT_LIMIT - len(self._input), 0)

    def waiting(self) -> int:
        """How many characters of input the guest has not read yet."""
        return len(self._input) + len(self._fifo)

    def receive(self, data: bytes) -> None:
        """Input for the guest; what is more than :meth:`room` is kept all the same."""
        with self._lock:
            self._input += data
            self._refill()
            self._update()

    def deliver(self) -> float | None:
        """Hand over input that had to wait; returns the seconds after which to call again, if that may do more."""
        if not self._input or self._listening is None:
            return None
        with self._lock:
            self._refill()
            self._update()
            since = self._listening
        left = 0.0 if since is None else since + _SETTLE - self._clock()
        return left if left > 0 else None
