# SPDX-License-Identifier: GPL-2.0-only
"""A machine: a VM with memory, vCPUs, interrupt controller and devices, Linux in it, and threads that run it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextlib import ExitStack

from anykvm.api import BackendUnavailable, GuestMemory, Kvm, UnsupportedArchitecture, Vcpu, Vm
from anykvm.uapi.common import KVM_CAP_MAX_VCPUS

from . import image, memory, platform
from .blk import Disk
from .bus import Bus
from .config import MachineConfig, check_config
from .errors import VmmError
from .irq import IrqLine
from .notify import NotifyThread
from .outcome import Kind, Outcome
from .pio import PortBus
from .ram import Ram
from .rng import Entropy
from .vcpus import VcpuReport, VcpuThread
from .virtio import Transport, VirtioDevice


class Machine:
    """Built, then :meth:`start`, then :meth:`stop`, then :meth:`close`: afterwards no thread, file or mapping is left.

    `wake` is called, on any thread, when there is console output to take or the machine has ended. ``VmmError``: it
    cannot be built as asked.
    """

    def __init__(self, config: MachineConfig, wake: Callable[[], None], *, kvm: Kvm | None = None) -> None:
        check_config(config)
        self.config = config
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        """What was raised on a thread of the machine, for a traceback."""
        self.reports: list[VcpuReport] = []
        self._wake = wake
        self._lock = threading.Lock()
        self._threads: list[VcpuThread] = []
        self._started = False
        with ExitStack() as stack:
            self._build(stack, kvm)
            self._open = stack.pop_all()

    # Building. Every step puts its undoing on the stack: what was made last goes first, the VM before its memory.

    def _build(self, stack: ExitStack, kvm: Kvm | None) -> None:
        config = self.config
        self._platform = platform.create(config.arch)
        self._platform.load_kernel(config)
        initrd = None if config.initrd is None else image.find_file(config.initrd, "initrd")
        if kvm is None:
            kvm = stack.enter_context(self._kvm())
        self.backend_name = kvm.backend.name
        bits = self._platform.address_bits(kvm)
        memory.check_memory(config.memory, bits, memory.host_memory(), self._platform.not_ram)
        self._platform.place(0 if initrd is None else initrd.size, config.memory)
        ram = self._ram(stack)
        vm = self._vm(stack, kvm, ram)
        vcpus = self._vcpus(stack, kvm, vm)
        seen = Ram(ram, self._platform.ram_parts(config.memory))
        self._devices(stack, vm, seen)
        self._platform.load(seen, initrd, self.virtio_slots)
        self._platform.enter(vcpus[0])
        self._threads = [
            VcpuThread(vcpu, self.bus, self.ports, self.finish, self._platform.program_counter) for vcpu in vcpus
        ]

    def _kvm(self) -> Kvm:
        config = self.config
        try:
            return Kvm(config.backend, arch=config.arch)
        except (BackendUnavailable, UnsupportedArchitecture) as error:
            raise VmmError(f"{error}: see anykvm check, or use --backend software") from error

    def _ram(self, stack: ExitStack) -> GuestMemory:
        size = self.config.memory
        try:
            return stack.enter_context(GuestMemory(size))
        except OSError as error:
            raise VmmError(
                f"this host gives no {memory.format_size(size)} of memory ({error.strerror}): give less with --memory"
            ) from None

    def _vm(self, stack: ExitStack, kvm: Kvm, ram: GuestMemory) -> Vm:
        vm = stack.enter_context(kvm.create_vm())
        most = vm.check_extension(KVM_CAP_MAX_VCPUS)
        if self.config.vcpus > most:
            raise VmmError(f"{self.config.vcpus} vCPUs are more than this KVM has: give at most --smp {most}")
        for slot, (gpa, offset, size) in enumerate(self._platform.ram_parts(ram.size)):
            vm.set_user_memory_region(slot, gpa, ram, offset=offset, size=size)
        return vm

    def _vcpus(self, stack: ExitStack, kvm: Kvm, vm: Vm) -> list[Vcpu]:
        self._platform.create_interrupt_controller(stack, kvm, vm)
        vcpus: list[Vcpu] = []
        for vcpu_id in range(self.config.vcpus):
            try:
                vcpus.append(stack.enter_context(vm.create_vcpu(vcpu_id)))
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                    raise
                raise VmmError(
                    f"this host gives no vCPU {vcpu_id} ({error.strerror}): "
                    "raise the limit (ulimit -n), or give a smaller --smp"
                ) from None
        self._platform.init_vcpus(vm, vcpus)
        return vcpus

    def _devices(self, stack: ExitStack, vm: Vm, ram: Ram) -> None:
        self.bus = Bus()
        self.ports = PortBus()
        self.uart = self._platform.add_devices(platform.Board(vm, self.bus, self.ports, self._wake, self.finish))
        self._notify = NotifyThread(vm, self._failed)
        stack.callback(self._notify.close)
        devices: list[VirtioDevice] = [Entropy()]
        with ExitStack() as opened:
            for wanted in self.config.disks:
                disk = Disk(wanted.path, read_only=wanted.read_only)
                opened.callback(disk.close)
                devices.append(disk)
            self.virtio_slots = len(devices)
            for index, device in enumerate(devices):
                slot = self._platform.virtio_slot(index)
                transport = Transport(device, ram, IrqLine(vm, self._platform.virtio_irq(index)))
                self.bus.attach(slot, transport)
                if isinstance(device, Disk):
                    self._notify.watch(transport, slot.base)
                # Closed before the guest's memory, and after the thread that serves it.
                opened.callback(transport.close)
            stack.push(opened.pop_all())

    # Running.

    @property
    def first_instruction(self) -> float | None:
        """When the boot vCPU entered the guest (``time.monotonic``); ``None`` before."""
        return self._threads[0].started

    def start(self) -> None:
        """Let the guest run."""
        self._started = True
        self._notify.start()
        for thread in self._threads:
            thread.start()

    def finish(self, outcome: Outcome, error: BaseException | None = None) -> None:
        """The machine has ended; the first to say so counts. From any thread."""
        with self._lock:
            if self.outcome is not None:
                return
            self.outcome = outcome
            self.error = error
        self._wake()

    def _failed(self, error: BaseException) -> None:
        self.finish(Outcome(Kind.INTERNAL_ERROR, f"a device stopped: {type(error).__name__}: {error}"), error)

    def stop(self) -> None:
        """Take all vCPUs out of the guest and end their threads; a second time does nothing."""
        if not self._started:
            return
        self._started = False
        for thread in self._threads:
            thread.ask_to_stop()
        for thread in self._threads:
            thread.join()
            thread.read_stats()
        self.reports = [thread.report for thread in self._threads]

    def close(self) -> None:
        """Stop, and give everything back; a second time does nothing."""
        self.stop()
        self._open.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
