# SPDX-License-Identifier: GPL-2.0-only
"""A machine: a VM with memory, vCPUs, interrupt controller and devices, Linux in it, and threads that run it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextlib import ExitStack

from anykvm.api import BackendUnavailable, GuestMemory, Kvm, UnsupportedArchitecture, Vcpu, Vm
from anykvm.api.arm64 import spi
from anykvm.uapi.common import KVM_CAP_MAX_VCPUS

from . import arm64, fdt, image, memory
from .blk import Disk
from .bus import Bus
from .config import MachineConfig, check_config
from .errors import VmmError
from .irq import IrqLine
from .notify import NotifyThread
from .outcome import Kind, Outcome
from .ram import Ram
from .rng import Entropy
from .serial import Pl011
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
        kernel = image.load_kernel(config.kernel)
        initrd = None if config.initrd is None else image.find_file(config.initrd, "initrd")
        if kvm is None:
            kvm = stack.enter_context(self._kvm())
        self.backend_name = kvm.backend.name
        memory.check_memory(config.memory, arm64.address_bits(kvm), memory.host_memory())
        layout = image.place(kernel, 0 if initrd is None else initrd.size, config.memory)
        ram = self._ram(stack)
        vm = self._vm(stack, kvm, ram)
        vcpus = self._vcpus(stack, vm)
        self._devices(stack, vm, Ram(ram, memory.RAM_BASE))
        self._load(Ram(ram, memory.RAM_BASE), kernel, initrd, layout, [arm64.mpidr(vcpu) for vcpu in vcpus])
        arm64.enter_linux(vcpus[0], layout.kernel, layout.device_tree)
        self._threads = [VcpuThread(vcpu, self.bus, self.finish) for vcpu in vcpus]

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
        vm.set_user_memory_region(0, memory.RAM_BASE, ram)
        return vm

    def _vcpus(self, stack: ExitStack, vm: Vm) -> list[Vcpu]:
        gic = stack.enter_context(arm64.create_gic(vm, self.config.gic))
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
        arm64.init_vcpus(vm, vcpus)
        arm64.finish_gic(gic, self.config.gic)
        return vcpus

    def _devices(self, stack: ExitStack, vm: Vm, ram: Ram) -> None:
        self.bus = Bus()
        self.uart = Pl011(IrqLine(vm, spi(32 + memory.UART_IRQ.spi)), self._wake)
        self.bus.attach(memory.UART, self.uart)
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
                line = IrqLine(vm, spi(32 + memory.virtio_irq(index).spi))
                transport = Transport(device, ram, line)
                self.bus.attach(memory.virtio_slot(index), transport)
                if isinstance(device, Disk):
                    self._notify.watch(transport, memory.virtio_slot(index).base)
                # Closed before the guest's memory, and after the thread that serves it.
                opened.callback(transport.close)
            stack.push(opened.pop_all())

    def _load(
        self,
        ram: Ram,
        kernel: image.KernelImage,
        initrd: image.Content | None,
        layout: image.Layout,
        mpidrs: list[int],
    ) -> None:
        tree = fdt.build(
            fdt.MachineDescription(
                mpidrs=mpidrs,
                ram_size=self.config.memory,
                gic=self.config.gic,
                command_line=self.config.command_line,
                initrd=(layout.initrd, layout.initrd + initrd.size) if initrd is not None else None,
                virtio_slots=self.virtio_slots,
            )
        )
        ram.write(layout.device_tree, tree)
        with ram.view(layout.kernel, kernel.content.size) as view:
            kernel.content.load(view)
        if initrd is not None:
            with ram.view(layout.initrd, initrd.size) as view:
                initrd.load(view)

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
