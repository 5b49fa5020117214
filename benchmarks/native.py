# SPDX-License-Identifier: GPL-2.0-only
"""The same loop of port-I/O exits in C, on the machine's own /dev/kvm: what the typed API costs beside it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from .vmms import BenchmarkError

_TIMEOUT: Final = 60.0

_SOURCE: Final = r"""
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

int main(int argc, char **argv)
{
    static const unsigned char program[] = {PROGRAM};
    long rounds = atol(argv[1]), warm = atol(argv[2]);
    int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0), vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    unsigned char *ram = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region slot = {0, 0, 0xfffff000, 4096, (uintptr_t)ram};
    int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    volatile unsigned char seen = 0;
    double begin = 0;

    memcpy(ram + 0xff0, program, sizeof(program));
    if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) || run == MAP_FAILED)
        return 1;
    for (long i = -warm; i < rounds; i++) {
        if (i == 0)
            begin = now();
        if (ioctl(vcpu, KVM_RUN, 0) || run->exit_reason != KVM_EXIT_IO)
            return 1;
        if (run->io.direction == KVM_EXIT_IO_OUT)
            seen = ((unsigned char *)run)[run->io.data_offset];
        else
            ((unsigned char *)run)[run->io.data_offset] = 0;
    }
    printf("%f\n", (now() - begin) / rounds);
    return 0;
}
"""


class Native:
    """The loop, compiled; microseconds for each round."""

    def __init__(self, program: bytes) -> None:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise BenchmarkError("no C compiler to compare with: Debian's package is gcc")
        self._folder = tempfile.TemporaryDirectory(prefix="anykvm-benchmark-")
        folder = Path(self._folder.name)
        source = folder / "loop.c"
        source.write_text(_SOURCE.replace("PROGRAM", ",".join(map(str, program))))
        self._program = folder / "loop"
        command = [compiler, "-O2", "-o", str(self._program), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        if done.returncode:
            raise BenchmarkError(f"the C loop does not compile: {done.stderr.strip().splitlines()[-1]}")

    def measure(self, rounds: int, warm: int) -> float:
        """Run it once."""
        command = [str(self._program), str(rounds), str(warm)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        if done.returncode:
            raise BenchmarkError("the C loop failed: the machine's /dev/kvm did not run its guest")
        return float(done.stdout)

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()
