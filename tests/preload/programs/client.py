# SPDX-License-Identifier: GPL-2.0-only
"""A Python program with fcntl and mmap, which has never heard of anykvm."""

import ctypes
import fcntl
import mmap
import os
import signal
import struct

kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
assert fcntl.ioctl(kvm, 0xAE00) == 12
vm = fcntl.ioctl(kvm, 0xAE01)
ram = mmap.mmap(-1, 4096)
ram[:6] = bytes.fromhex("baf803eeebfe")  # mov $0x3f8, %dx; out %al, (%dx); jmp .
address = ctypes.addressof(ctypes.c_char.from_buffer(ram))
fcntl.ioctl(vm, 0x4020AE46, struct.pack("IIQQQ", 0, 0, 0x1000, 4096, address))
vcpu = fcntl.ioctl(vm, 0xAE41)
run = mmap.mmap(vcpu, fcntl.ioctl(kvm, 0xAE04))
sregs = bytearray(312)
fcntl.ioctl(vcpu, 0x8138AE83, sregs)
sregs[0:8] = bytes(8)
sregs[12:14] = bytes(2)
fcntl.ioctl(vcpu, 0x4138AE84, sregs)
fcntl.ioctl(vcpu, 0x4090AE82, struct.pack("18Q", 65, *[0] * 15, 0x1000, 2))
fcntl.ioctl(vcpu, 0xAE80)
assert struct.unpack_from("I", run, 8) == (2,)
assert run[struct.unpack_from("Q", run, 40)[0]] == 65

pid = os.fork()
if pid == 0:
    try:
        fcntl.ioctl(vm, 0xAE03, 3)
    except OSError as error:
        assert error.errno == 5
        kvm = os.open("/dev/kvm", os.O_RDWR)
        os._exit(fcntl.ioctl(kvm, 0xAE01) < 0)
    os._exit(1)
assert os.waitpid(pid, 0)[1] == 0

heard = []
signal.signal(signal.SIGALRM, lambda *_: heard.append(True))
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    fcntl.ioctl(vcpu, 0xAE80)
except InterruptedError:
    assert heard == [True]
    print("ok")
