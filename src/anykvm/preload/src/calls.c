/* SPDX-License-Identifier: GPL-2.0-only */
/* The calls on descriptors that a client makes: what is KVM's goes to Python, all else to libc. */
#define _GNU_SOURCE
#include "preload.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PATH "/dev/kvm"

/* Also "kvm" in an open /dev. */
bool is_kvm_path(int directory, const char *path)
{
    char link[32], target[16];
    ssize_t length;

    if (!path || inside())
        return false;
    if (path[0] == '/')
        return !strcmp(path, PATH);
    if (strcmp(path, "kvm"))
        return false;
    if (directory == AT_FDCWD)
        snprintf(link, sizeof(link), "/proc/self/cwd");
    else
        snprintf(link, sizeof(link), "/proc/self/fd/%d", directory);
    length = readlink(link, target, sizeof(target));
    return length == 4 && !memcmp(target, "/dev", 4);
}

int kvm_open(int flags)
{
    int fd;

    if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL)) {
        errno = EEXIST;
        return -1;
    }
    if (flags & O_DIRECTORY) {
        errno = ENOTDIR;
        return -1;
    }
    if (!python_start()) {
        errno = ENODEV;
        return -1;
    }
    fd = python_open();
    if (fd >= 0 && !(flags & O_CLOEXEC))
        real.fcntl(fd, F_SETFD, 0);
    return fd;
}

long kvm_ioctl(int fd, unsigned request, unsigned long argument)
{
    struct thread *t;
    struct stat st;
    long result;
    int error;

    if (real.fstat(fd, &st))
        return -1; /* EBADF */
    if (!python_started) {
        /* A descriptor that came from elsewhere: by exec, through a socket. */
        char link[32], target[20] = "";
        snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
        if (readlink(link, target, sizeof(target) - 1) < 0 || strncmp(target, "/memfd:kvm", 10) || !python_start()) {
            errno = ENOTTY;
            return -1;
        }
    }
    if (!files_is_memfd(&st) || !python_alive()) {
        errno = ENOTTY;
        return -1;
    }
    t = thread_begin();
    if (!t) {
        errno = ENOMEM;
        return -1;
    }
    result = python_ioctl(t, fd, st.st_ino, request, argument);
    error = errno;
    thread_end(t);
    errno = error;
    return result;
}

EXPORT int ioctl(int fd, unsigned long request, ...)
{
    unsigned long argument;
    va_list list;

    va_start(list, request);
    argument = va_arg(list, unsigned long);
    va_end(list);
    real_init();
    if (!IS_KVM_REQUEST(request) || inside())
        return real.ioctl(fd, request, argument);
    return (int)kvm_ioctl(fd, (unsigned)request, argument);
}

/* Opening */

#define MODE(flags, last)                                                                                             \
    mode_t mode = 0;                                                                                                  \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) {                                                    \
        va_list list;                                                                                                 \
        va_start(list, last);                                                                                         \
        mode = va_arg(list, mode_t);                                                                                  \
        va_end(list);                                                                                                 \
    }                                                                                                                 \
    real_init()

EXPORT int open(const char *path, int flags, ...)
{
    MODE(flags, flags);
    return is_kvm_path(AT_FDCWD, path) ? kvm_open(flags) : real.open(path, flags, mode);
}

EXPORT int open64(const char *path, int flags, ...)
{
    MODE(flags, flags);
    return is_kvm_path(AT_FDCWD, path) ? kvm_open(flags) : real.open(path, flags | O_LARGEFILE, mode);
}

EXPORT int openat(int directory, const char *path, int flags, ...)
{
    MODE(flags, flags);
    return is_kvm_path(directory, path) ? kvm_open(flags) : real.openat(directory, path, flags, mode);
}

EXPORT int openat64(int directory, const char *path, int flags, ...)
{
    MODE(flags, flags);
    return is_kvm_path(directory, path) ? kvm_open(flags) : real.openat(directory, path, flags | O_LARGEFILE, mode);
}

/* What programs built with _FORTIFY_SOURCE call. */
EXPORT int __open_2(const char *path, int flags) { return open(path, flags); }
EXPORT int __open64_2(const char *path, int flags) { return open64(path, flags); }
EXPORT int __openat_2(int directory, const char *path, int flags) { return openat(directory, path, flags); }
EXPORT int __openat64_2(int directory, const char *path, int flags) { return openat64(directory, path, flags); }

/* Closing */

/* Whether fd is one of ours, and which. */
static bool ours(int fd, struct file *file)
{
    struct stat st;

    return python_alive() && !inside() && !real.fstat(fd, &st) && files_is_memfd(&st) && files_get(st.st_ino, file);
}

int kvm_close(int fd)
{
    struct file file;
    bool known;
    int result, error;

    if (files_protected(fd)) {
        errno = EBADF;
        return -1;
    }
    known = ours(fd, &file);
    result = real.close(fd);
    if (known) {
        error = errno;
        python_closed(file.inode, file.descriptors);
        errno = error;
    }
    return result;
}

EXPORT int close(int fd)
{
    real_init();
    return python_started ? kvm_close(fd) : real.close(fd);
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
    real_init();
    if (!python_started || flags || inside())
        return real.close_range(first, last, flags);
    if (first > last) {
        errno = EINVAL;
        return -1;
    }
    /* Around what is ours. */
    while (first <= last) {
        unsigned next = files_next_protected(first);
        if (first < next && real.close_range(first, next - 1 < last ? next - 1 : last, 0))
            return -1;
        if (next >= last)
            break;
        first = next + 1;
    }
    python_sweep();
    return 0;
}

EXPORT void closefrom(int first)
{
    close_range(first < 0 ? 0 : (unsigned)first, UINT_MAX, 0);
}

/* Mapping is the host's business, but for the pages of the dirty ring, which are never private and never code. */
EXPORT void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    struct file file;

    real_init();
    if (fd >= 0 && python_started && offset >= 0 && (size_t)offset + length > DIRTY_RING_OFFSET &&
        ((protection & PROT_EXEC) || (flags & MAP_TYPE) == MAP_PRIVATE) && ours(fd, &file) && !file.system) {
        errno = EINVAL;
        return MAP_FAILED;
    }
    return real.mmap(address, length, protection, flags, fd, offset);
}

EXPORT void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
    return mmap(address, length, protection, flags, fd, offset);
}

/* Duplicating */

EXPORT int dup(int fd)
{
    real_init();
    files_mark(fd, FILE_DUPLICATED);
    return real.dup(fd);
}

static int duplicate(int fd, int to, int flags, bool three)
{
    struct file file;
    bool known;
    int result;

    real_init();
    if (!python_started)
        return three ? real.dup3(fd, to, flags) : real.dup2(fd, to);
    if (files_protected(to)) {
        errno = EBUSY;
        return -1;
    }
    files_mark(fd, FILE_DUPLICATED);
    known = fd != to && ours(to, &file);
    result = three ? real.dup3(fd, to, flags) : real.dup2(fd, to);
    if (known && result >= 0)
        python_closed(file.inode, FILE_DUPLICATED);
    return result;
}

EXPORT int dup2(int fd, int to) { return duplicate(fd, to, 0, false); }
EXPORT int dup3(int fd, int to, int flags) { return duplicate(fd, to, flags, true); }

EXPORT int fcntl(int fd, int command, ...)
{
    unsigned long argument;
    va_list list;

    va_start(list, command);
    argument = va_arg(list, unsigned long);
    va_end(list);
    real_init();
    if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)
        files_mark(fd, FILE_DUPLICATED);
    return real.fcntl(fd, command, argument);
}

EXPORT int fcntl64(int fd, int command, ...)
{
    unsigned long argument;
    va_list list;

    va_start(list, command);
    argument = va_arg(list, unsigned long);
    va_end(list);
    return fcntl(fd, command, argument);
}

/* A descriptor in a message is a reference that nobody can see. */
EXPORT ssize_t sendmsg(int socket, const struct msghdr *message, int flags)
{
    real_init();
    if (python_started && message && message->msg_controllen) {
        struct msghdr *m = (struct msghdr *)message;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
            if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                continue;
            for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
                int fd;
                memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
                files_mark(fd, FILE_SENT);
            }
        }
    }
    return real.sendmsg(socket, message, flags);
}

/* System calls by number, through libc. */
EXPORT long syscall(long number, ...)
{
    long a[6];
    va_list list;

    va_start(list, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    real_init();
    if (!inside()) {
        if (number == SYS_ioctl && IS_KVM_REQUEST((unsigned long)a[1]))
            return kvm_ioctl((int)a[0], (unsigned)a[1], (unsigned long)a[2]);
        if (number == SYS_openat && is_kvm_path((int)a[0], (const char *)a[1]))
            return kvm_open((int)a[2]);
#ifdef SYS_open
        if (number == SYS_open && is_kvm_path(AT_FDCWD, (const char *)a[0]))
            return kvm_open((int)a[1]);
#endif
        if (number == SYS_close && python_started)
            return kvm_close((int)a[0]);
    }
    return real.syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
