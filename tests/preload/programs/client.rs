// SPDX-License-Identifier: GPL-2.0-only
// A Rust program through libc, which has never heard of anykvm.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::raw::{c_int, c_ulong, c_void};

extern "C" {
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn mmap(address: *mut c_void, length: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void;
}

fn call(fd: RawFd, request: c_ulong, argument: c_ulong) -> c_int {
    let result = unsafe { ioctl(fd, request, argument) };
    assert!(result >= 0, "{:#x}: {}", request, std::io::Error::last_os_error());
    result
}

fn main() {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").expect("/dev/kvm");
    assert_eq!(call(kvm.as_raw_fd(), 0xAE00, 0), 12);
    let vm = unsafe { OwnedFd::from_raw_fd(call(kvm.as_raw_fd(), 0xAE01, 0)) };
    // The same VM, by another descriptor.
    let vm = vm.try_clone().expect("a duplicate");
    let size = call(kvm.as_raw_fd(), 0xAE04, 0) as usize;
    let code = [0xba, 0xf8, 0x03, 0xee, 0xf4]; // mov $0x3f8, %dx; out %al, (%dx); hlt
    let memory = unsafe { mmap(std::ptr::null_mut(), 4096, 3, 0x21, -1, 0) } as *mut u8;
    unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), memory, code.len()) };
    let region: [u64; 4] = [0, 0x1000, 4096, memory as u64];
    call(vm.as_raw_fd(), 0x4020AE46, region.as_ptr() as c_ulong);
    let runners: Vec<_> = (0..4)
        .map(|id| {
            let vm = vm.try_clone().expect("a duplicate");
            std::thread::spawn(move || {
                let vcpu = unsafe { OwnedFd::from_raw_fd(call(vm.as_raw_fd(), 0xAE41, id)) };
                let page = unsafe { mmap(std::ptr::null_mut(), size, 3, 1, vcpu.as_raw_fd(), 0) } as *mut u8;
                let mut sregs = [0u8; 312];
                call(vcpu.as_raw_fd(), 0x8138AE83, sregs.as_mut_ptr() as c_ulong);
                sregs[0..8].fill(0);
                sregs[12..14].fill(0);
                call(vcpu.as_raw_fd(), 0x4138AE84, sregs.as_ptr() as c_ulong);
                let mut regs = [0u64; 18];
                regs[0] = 65 + id;
                regs[16] = 0x1000;
                regs[17] = 2;
                call(vcpu.as_raw_fd(), 0x4090AE82, regs.as_ptr() as c_ulong);
                call(vcpu.as_raw_fd(), 0xAE80, 0);
                let offset = unsafe { *(page.add(40) as *const u64) };
                assert_eq!(unsafe { *(page.add(8) as *const u32) }, 2);
                assert_eq!(unsafe { *page.add(offset as usize) }, 65 + id as u8);
                call(vcpu.as_raw_fd(), 0xAE80, 0);
                assert_eq!(unsafe { *(page.add(8) as *const u32) }, 5);
            })
        })
        .collect();
    for runner in runners {
        runner.join().expect("a vCPU");
    }
    println!("ok");
}
