# SPDX-License-Identifier: GPL-2.0-only
"""KVM_CREATE_VCPU and its mirror image.

The order, the locks and the errno of each refusal are those of kvm_vm_ioctl_create_vcpu() in today's
``virt/kvm/kvm_main.c``. The invariant: ``vm.vcpu_array[x]`` is valid if and only if ``x < vm.online_vcpus``.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from .stats import VCPUS
from .vcpu import Vcpu, VcpuFile

if TYPE_CHECKING:
    from .vm import Vm


def create_vcpu(vm: Vm, vcpu_id: int) -> int:
    """KVM_CREATE_VCPU (api.rst 4.7); returns the vCPU's fd.

    EINVAL for an id or a number of vCPUs that is too large, EEXIST for an id in use, EMFILE and ENFILE without an fd,
    ENOMEM, and what the architecture's precreate and create say.
    """
    hooks = vm.hooks
    services = vm.services
    if vcpu_id >= hooks.max_vcpu_ids:
        raise OSError(errno.EINVAL, f"vcpu_id {vcpu_id} is too large: {hooks.name} has ids below {hooks.max_vcpu_ids}")
    with services.ladder("vcpu") as ladder:
        with vm.lock:
            if vm.created_vcpus >= vm.max_vcpus:
                raise OSError(errno.EINVAL, f"the VM has {vm.created_vcpus} vCPUs already, which is its limit")
            hooks.vcpu_precreate(vm, vcpu_id)
            ladder.step("created_vcpus", count, uncount, vm)
        vcpu = ladder.acquire("vcpu struct", Vcpu, Vcpu.free, vm, vcpu_id, ladder)
        ladder.step("run page", vcpu.alloc_run_page, vcpu.free_run_page)
        if vm.dirty_ring_size:
            # Made after the architecture's part, and freed after it too, since that may write to pages to the last.
            ladder.push("dirty ring", vcpu.free_dirty_ring)
        create_arch(vcpu)
        if vm.dirty_ring_size:
            vcpu.alloc_dirty_ring()
        with vm.lock, ladder.guard():
            if vm.get_vcpu_by_id(vcpu_id) is not None:
                raise OSError(errno.EEXIST, f"the VM has a vCPU with vcpu_id {vcpu_id} already")
            vcpu.vcpu_idx = vm.online_vcpus
            ladder.step("vcpu_array", insert, erase, vcpu)
            vm.coalesced.show(vcpu)
            # No ioctl on the new fd gets past this mutex until the vCPU is online.
            with vcpu.mutex, ladder.guard():
                ladder.step("VM reference", vm.get, vm.put_no_destroy)
                # Before the fd is there: who closes it at once takes this step off the ladder.
                ladder.push("fd", uninstall, vcpu)
                fd = install(vcpu)
                services.publish("vcpu online")
                ladder.step("online", set_online, set_offline, vcpu)
    hooks.vcpu_postcreate(vcpu)
    return fd


def create_arch(vcpu: Vcpu) -> None:
    """Call the one hook that builds. If it fails it has cleaned up; the nested ladder makes sure of its own steps."""
    ladder = vcpu.ladder
    vcpu.arch_ladder = inner = vcpu.services.ladder("arch")
    try:
        vcpu.hooks.vcpu_create(vcpu)
    except BaseException:
        inner.unwind()
        raise
    ladder.push("arch", vcpu.hooks.vcpu_destroy, vcpu, shows=inner)


def count(vm: Vm) -> None:
    """Count a vCPU that is being created; with the VM's lock held."""
    vm.services.publish("created_vcpus")
    vm.created_vcpus += 1


def uncount(vm: Vm) -> None:
    """Take the count back."""
    with vm.lock:
        vm.created_vcpus -= 1


def insert(vcpu: Vcpu) -> None:
    """Put a vCPU into the array; with the VM's lock held."""
    vcpu.services.publish("vcpu array")
    vcpu.vm.vcpu_array.append(vcpu)


def erase(vcpu: Vcpu) -> None:
    """Take it out; with the VM's lock held."""
    if vcpu.vm.vcpu_array.pop() is not vcpu:
        raise AssertionError("vCPUs leave the array newest first")


def install(vcpu: Vcpu) -> int:
    """Make the run page's memfd userspace's file descriptor; EMFILE, ENFILE."""
    if vcpu.fd_errno:
        raise OSError(vcpu.fd_errno, f"no file descriptor left for vCPU {vcpu.vcpu_id}")
    fd = vcpu.memfd
    vcpu.services.publish("vcpu fd")
    vcpu.vm.files.install(fd, VcpuFile(vcpu))
    # From here on the fd is userspace's; the mapping stays ours.
    vcpu.memfd = -1
    return fd


def uninstall(vcpu: Vcpu) -> None:
    """Take the file descriptor back."""
    for file in vcpu.vm.files.files():
        if isinstance(file, VcpuFile) and file.vcpu is vcpu:
            vcpu.vm.files.take(file.fd)
            vcpu.memfd = file.fd


def set_online(vcpu: Vcpu) -> None:
    """Let the vCPU be found."""
    vm = vcpu.vm
    vm.online_vcpus += 1
    vm.vcpu_by_id[vcpu.vcpu_id] = vcpu
    vm.stats.values[VCPUS] += 1


def set_offline(vcpu: Vcpu) -> None:
    """Let it be found no longer."""
    vm = vcpu.vm
    del vm.vcpu_by_id[vcpu.vcpu_id]
    vm.online_vcpus -= 1


def destroy_vcpu(vcpu: Vcpu) -> None:
    """Run a vCPU's ladder backwards, when its VM dies: nobody holds a reference to it any more."""
    vcpu.destroyed = True
    vcpu.ladder.unwind()
