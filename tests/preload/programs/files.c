/* SPDX-License-Identifier: GPL-2.0-only */
/* /dev/kvm as a file, and descriptors that are duplicated, sent, mapped and closed. */
#include "kvm.h"

#include <poll.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

static void send_fd(int socket, int fd)
{
    char space[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec data = {"x", 1};
    struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof(space)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);

    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof(int));
    CHECK(sendmsg(socket, &m, 0) == 1);
}

static int receive_fd(int socket)
{
    char space[CMSG_SPACE(sizeof(int))], byte;
    struct iovec data = {&byte, 1};
    struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof(space)};
    int fd;

    CHECK(recvmsg(socket, &m, 0) == 1);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
    return fd;
}

static int alive(int vm) { return ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY); }

int main(void)
{
    struct stat st;
    int fds[2], lowest, fd, status;

    /* Before anything is open. */
    CHECK(access("/dev/kvm", R_OK | W_OK) == 0 && access("/dev/kvm", F_OK) == 0);
    CHECK(access("/dev/kvm", X_OK) == -1 && errno == EACCES);
    CHECK(faccessat(AT_FDCWD, "/dev/kvm", R_OK, AT_EACCESS) == 0);
    CHECK(stat("/dev/kvm", &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(10, 232));
    CHECK(open("/dev/kvm/x", O_RDWR) == -1);
    CHECK(open("/dev/kvm", O_RDWR | O_DIRECTORY) == -1 && errno == ENOTDIR);
    CHECK(open("/dev/kvm", O_RDWR | O_CREAT | O_EXCL, 0600) == -1 && errno == EEXIST);

    /* The lowest free descriptor, with the flags that were asked for. */
    CHECK((lowest = dup(2)) >= 0 && close(lowest) == 0);
    CHECK((fd = open("/dev/kvm", O_RDWR)) == lowest && fcntl(fd, F_GETFD) == 0);
    CHECK(fstat(fd, &st) == 0 && S_ISCHR(st.st_mode));
    CHECK(close(fd) == 0 && ioctl(fd, KVM_GET_API_VERSION, 0) == -1 && errno == EBADF);
    int dev = open("/dev", O_RDONLY | O_DIRECTORY);
    CHECK(dev >= 0 && (fd = openat(dev, "kvm", O_RDWR | O_CLOEXEC)) >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
    CHECK(close(fd) == 0 && close(dev) == 0);
    CHECK((fd = (int)syscall(SYS_openat, AT_FDCWD, "/dev/kvm", O_RDWR)) >= 0);
    CHECK(syscall(SYS_ioctl, fd, KVM_GET_API_VERSION, 0) == 12);
    CHECK(close(fd) == 0);

    struct guest g = GUEST(OUT_FOREVER);
    CHECK(ioctl(g.vcpu, KVM_RUN, 0) == 0 && g.run->exit_reason == KVM_EXIT_IO);
    CHECK(*((char *)g.run + g.run->io.data_offset) == 'A');

    /* Duplicates are the same, and the last one to go is the last. */
    int copies[4] = {dup(g.vm), fcntl(g.vm, F_DUPFD_CLOEXEC, 100), dup2(g.vm, 60), dup3(g.vm, 61, O_CLOEXEC)};
    for (int i = 0; i < 4; i++)
        CHECK(copies[i] >= 0 && alive(copies[i]) == 1);
    CHECK(copies[1] >= 100);
    CHECK(close(g.vm) == 0);
    for (int i = 0; i < 4; i++) {
        CHECK(alive(copies[i]) == 1);
        if (i < 3)
            CHECK(close(copies[i]) == 0);
    }
    g.vm = copies[3];

    /* Replaced by dup2. */
    fd = ioctl(g.kvm, KVM_CREATE_VM, 0);
    CHECK(fd >= 0 && dup2(2, fd) == fd && alive(fd) == -1 && errno == ENOTTY && close(fd) == 0);

    /* poll says what it says of any file without a poll function. */
    struct pollfd p = {g.vm, POLLIN | POLLOUT, 0};
    CHECK(poll(&p, 1, 0) == 1 && p.revents == (POLLIN | POLLOUT));

    /* Through a socket, the only reference being in the message. */
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    fd = ioctl(g.kvm, KVM_CREATE_VM, 0);
    send_fd(fds[0], fd);
    CHECK(close(fd) == 0);
    fd = receive_fd(fds[1]);
    CHECK(alive(fd) == 1 && ioctl(fd, KVM_CREATE_VCPU, 0) >= 0 && close(fd) == 0);

    /* Another process can use /dev/kvm itself, and not a VM. */
    send_fd(fds[0], g.kvm);
    send_fd(fds[0], g.vm);
    pid_t child = fork();
    if (child == 0) {
        int kvm = receive_fd(fds[1]), vm = receive_fd(fds[1]);
        CHECK(ioctl(kvm, KVM_GET_API_VERSION, 0) == 12);
        CHECK(ioctl(kvm, KVM_CREATE_VM, 0) >= 0);
        CHECK(alive(vm) == -1 && errno == EIO);
        CHECK(alive(g.vm) == -1 && errno == EIO);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);

    /* What is not ours stays what it is. */
    CHECK(ioctl(fds[0], KVM_GET_API_VERSION, 0) == -1 && errno == ENOTTY);
    CHECK(ioctl(-1, KVM_GET_API_VERSION, 0) == -1 && errno == EBADF);
    fd = memfd_create("not ours", 0);
    CHECK(ioctl(fd, KVM_GET_API_VERSION, 0) == -1 && errno == ENOTTY && close(fd) == 0);

    /* A vCPU lives on without its descriptor, and its page too. */
    CHECK(close(g.vcpu) == 0 && g.run->exit_reason == KVM_EXIT_IO);
    CHECK(ioctl(g.vm, KVM_CREATE_VCPU, 0) == -1 && errno == EEXIST);

    /* A program that closes whatever it finds closes its own only. */
    for (int i = 3; i < 1024; i++)
        close(i);
    CHECK(close_range(3, ~0u, 0) == 0);
    g = GUEST(OUT_FOREVER);
    CHECK(g.kvm == 3 && ioctl(g.vcpu, KVM_RUN, 0) == 0 && g.run->exit_reason == KVM_EXIT_IO);
    CHECK(ioctl(g.vcpu, KVM_GET_REGS, 8) == -1 && errno == EFAULT);
    closefrom(3);
    CHECK(alive(g.vm) == -1 && errno == EBADF);
    puts("ok");
    return 0;
}
