/* SPDX-License-Identifier: GPL-2.0-only */
/* What a program sees that looks for /dev/kvm before it opens it: a character device, 10:232, that all may use. */
#define _GNU_SOURCE
#include "preload.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define KVM_DEVICE makedev(10, 232)

static int fill(struct stat *st)
{
    memset(st, 0, sizeof(*st));
    st->st_mode = S_IFCHR | 0666;
    st->st_nlink = 1;
    st->st_rdev = KVM_DEVICE;
    st->st_dev = 6;
    st->st_ino = 232;
    st->st_blksize = 4096;
    return 0;
}

/* An open /dev/kvm is the device, not the memfd behind it. */
static int correct(int result, struct stat *st)
{
    struct file file;

    if (!result && python_started && S_ISREG(st->st_mode) && !inside() && files_is_memfd(st) &&
        files_get(st->st_ino, &file) && file.system)
        fill(st);
    return result;
}

static int accessible(int mode)
{
    if (!(mode & X_OK))
        return 0;
    errno = EACCES;
    return -1;
}

EXPORT int access(const char *path, int mode)
{
    real_init();
    return is_kvm_path(AT_FDCWD, path) ? accessible(mode) : real.access(path, mode);
}

EXPORT int eaccess(const char *path, int mode)
{
    real_init();
    return is_kvm_path(AT_FDCWD, path) ? accessible(mode) : real.eaccess(path, mode);
}

EXPORT int euidaccess(const char *path, int mode) { return eaccess(path, mode); }

EXPORT int faccessat(int directory, const char *path, int mode, int flags)
{
    real_init();
    return is_kvm_path(directory, path) ? accessible(mode) : real.faccessat(directory, path, mode, flags);
}

static int stat_path(const char *path, struct stat *st)
{
    real_init();
    return is_kvm_path(AT_FDCWD, path) ? fill(st) : real.stat(path, st);
}

static int stat_link(const char *path, struct stat *st)
{
    real_init();
    return is_kvm_path(AT_FDCWD, path) ? fill(st) : real.lstat(path, st);
}

static int stat_fd(int fd, struct stat *st)
{
    real_init();
    return correct(real.fstat(fd, st), st);
}

static int stat_at(int directory, const char *path, struct stat *st, int flags)
{
    real_init();
    return is_kvm_path(directory, path) ? fill(st) : correct(real.fstatat(directory, path, st, flags), st);
}

EXPORT int stat(const char *path, struct stat *st) { return stat_path(path, st); }
EXPORT int lstat(const char *path, struct stat *st) { return stat_link(path, st); }
EXPORT int fstat(int fd, struct stat *st) { return stat_fd(fd, st); }
EXPORT int fstatat(int directory, const char *path, struct stat *st, int flags)
{
    return stat_at(directory, path, st, flags);
}

/* On 64-bit machines the two structures are one. */
_Static_assert(sizeof(struct stat) == sizeof(struct stat64), "struct stat64");
EXPORT int stat64(const char *path, struct stat64 *st) { return stat_path(path, (struct stat *)st); }
EXPORT int lstat64(const char *path, struct stat64 *st) { return stat_link(path, (struct stat *)st); }
EXPORT int fstat64(int fd, struct stat64 *st) { return stat_fd(fd, (struct stat *)st); }
EXPORT int fstatat64(int directory, const char *path, struct stat64 *st, int flags)
{
    return stat_at(directory, path, (struct stat *)st, flags);
}

#define ALIAS(name, function) EXPORT __typeof__(function) name __attribute__((alias(#function)))

/* Programs built before glibc 2.33 call these. */
EXPORT int __xstat(int version, const char *path, struct stat *st) { return (void)version, stat_path(path, st); }
EXPORT int __lxstat(int version, const char *path, struct stat *st) { return (void)version, stat_link(path, st); }
EXPORT int __fxstat(int version, int fd, struct stat *st) { return (void)version, stat_fd(fd, st); }
EXPORT int __fxstatat(int version, int directory, const char *path, struct stat *st, int flags)
{
    return (void)version, stat_at(directory, path, st, flags);
}
ALIAS(__xstat64, __xstat);
ALIAS(__lxstat64, __lxstat);
ALIAS(__fxstat64, __fxstat);
ALIAS(__fxstatat64, __fxstatat);

EXPORT int statx(int directory, const char *path, int flags, unsigned mask, struct statx *x)
{
    struct stat st;

    real_init();
    if (is_kvm_path(directory, path)) {
        fill(&st);
    } else {
        int result = real.statx(directory, path, flags, mask, x);
        struct file file;
        if (result || !python_started || !S_ISREG(x->stx_mode) || inside())
            return result;
        st.st_dev = makedev(x->stx_dev_major, x->stx_dev_minor);
        if (!files_is_memfd(&st) || !files_get(x->stx_ino, &file) || !file.system)
            return 0;
        fill(&st);
    }
    memset(x, 0, sizeof(*x));
    x->stx_mask = STATX_BASIC_STATS;
    x->stx_mode = (uint16_t)st.st_mode;
    x->stx_nlink = 1;
    x->stx_ino = st.st_ino;
    x->stx_blksize = 4096;
    x->stx_rdev_major = major(st.st_rdev);
    x->stx_rdev_minor = minor(st.st_rdev);
    x->stx_dev_minor = 6;
    return 0;
}
