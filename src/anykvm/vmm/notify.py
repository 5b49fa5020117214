# SPDX-License-Identifier: GPL-2.0-only
"""The thread that serves virtio queues when their ioeventfd is signalled, so that a vCPU does not wait for a disk."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

from anykvm.api import Vm

from .virtio import QUEUE_NOTIFY, Transport


class NotifyThread:
    """One thread for all queues. What the backend gives no ioeventfd for is served on the vCPU's thread as before."""

    def __init__(self, vm: Vm, failed: Callable[[BaseException], None]) -> None:
        self._vm = vm
        self._failed = failed
        self._served: dict[int, tuple[Transport, int]] = {}
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="virtio", daemon=True)

    def watch(self, transport: Transport, base: int) -> None:
        """Serve the queues of a transport whose registers are at `base`; before :meth:`start`."""
        for index in range(len(transport.device.queue_sizes)):
            event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            try:
                self._vm.ioeventfd(event, base + QUEUE_NOTIFY, 4, datamatch=index)
            except OSError:
                os.close(event)
            else:
                self._served[event] = (transport, index)

    def start(self) -> None:
        """Begin, if there is anything to serve."""
        if self._served:
            self._thread.start()

    def _run(self) -> None:
        try:
            poll = select.poll()
            for event in (*self._served, self._wake):
                poll.register(event, select.POLLIN)
            while True:
                for event, _ in poll.poll():
                    if self._stopping:
                        return
                    os.eventfd_read(event)
                    transport, index = self._served[event]
                    transport.notify(index)
        except BaseException as error:
            self._failed(error)

    def close(self) -> None:
        """End the thread and close the eventfds; a second time does nothing."""
        if self._wake < 0:
            return
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join()
        for event in (*self._served, self._wake):
            os.close(event)
        self._served.clear()
        self._wake = -1
