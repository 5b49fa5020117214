/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which memfds are KVM's, by inode, so that a duplicate is recognised however it was made; and which descriptors are
 * our own business, so that a program that closes everything does not close those.
 */
#define _GNU_SOURCE
#include "preload.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Open addressing; a removed entry leaves inode 0 with `used` set, until the table is made anew. */
static struct slot {
    struct file file;
    bool used;
} *slots;
static size_t capacity, filled;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static dev_t memfd_device;

#define MAX_PROTECTED (1 << 20)
static _Atomic uint8_t protected[MAX_PROTECTED / 8];

void files_lock(void) { pthread_mutex_lock(&lock); }
void files_unlock(void) { pthread_mutex_unlock(&lock); }

int files_init(void)
{
    int fd = memfd_create("anykvm", MFD_CLOEXEC);
    struct stat st;

    if (fd < 0 || real.fstat(fd, &st))
        return -1;
    memfd_device = st.st_dev;
    real.close(fd);
    return 0;
}

bool files_is_memfd(const struct stat *st)
{
    return st->st_dev == memfd_device;
}

static struct slot *find(ino_t inode)
{
    if (!capacity)
        return NULL;
    for (size_t i = inode * 0x9E3779B97F4A7C15u % capacity; slots[i].used; i = (i + 1) % capacity)
        if (slots[i].file.inode == inode)
            return &slots[i];
    return NULL;
}

static void insert(struct slot *table, size_t size, const struct file *file)
{
    size_t i = file->inode * 0x9E3779B97F4A7C15u % size;

    while (table[i].used)
        i = (i + 1) % size;
    table[i] = (struct slot){*file, true};
}

static bool grow(void)
{
    size_t live = 0, size;
    struct slot *table;

    for (size_t i = 0; i < capacity; i++)
        live += slots[i].file.inode != 0;
    size = live * 4 < 64 ? 64 : live * 4;
    table = calloc(size, sizeof(*table));
    if (!table)
        return false;
    for (size_t i = 0; i < capacity; i++)
        if (slots[i].file.inode)
            insert(table, size, &slots[i].file);
    free(slots);
    slots = table;
    capacity = size;
    filled = live;
    return true;
}

/* Python says what a memfd stands for (NULL: nothing any more); the callable it was, or NULL. No memory: itself. */
EXPORT void *anykvm_file(uint64_t inode, void *ioctl, int system)
{
    void *old = NULL;
    struct slot *s;

    files_lock();
    s = find(inode);
    if (s) {
        old = s->file.ioctl;
        s->file.ioctl = ioctl;
        if (!ioctl)
            s->file.inode = 0;
    } else if (ioctl) {
        struct file file = {.inode = inode, .ioctl = ioctl, .system = system};
        if (filled * 2 < capacity || grow()) {
            insert(slots, capacity, &file);
            filled++;
        } else {
            old = ioctl;
        }
    }
    files_unlock();
    return old;
}

bool files_get(ino_t inode, struct file *copy)
{
    struct slot *s;

    files_lock();
    s = find(inode);
    if (s)
        *copy = s->file;
    files_unlock();
    return s;
}

/* A second descriptor of it is made, or it is sent away. */
void files_mark(int fd, int descriptors)
{
    struct stat st;
    struct slot *s;

    if (!python_started || inside() || real.fstat(fd, &st) || !files_is_memfd(&st))
        return;
    files_lock();
    s = find(st.st_ino);
    if (s && s->file.descriptors < descriptors)
        s->file.descriptors = descriptors;
    files_unlock();
}

void files_set_mask(ino_t inode, const uint64_t *mask)
{
    struct slot *s;

    files_lock();
    s = find(inode);
    if (s) {
        s->file.has_mask = mask != NULL;
        s->file.mask = mask ? *mask : 0;
    }
    files_unlock();
}

EXPORT void anykvm_protect(int fd, int on)
{
    if (fd < 0 || fd >= MAX_PROTECTED)
        return;
    if (on)
        protected[fd / 8] |= 1 << fd % 8;
    else
        protected[fd / 8] &= ~(1 << fd % 8);
}

bool files_protected(int fd)
{
    return fd >= 0 && fd < MAX_PROTECTED && protected[fd / 8] >> fd % 8 & 1 && !inside();
}

/* The first from this one on; UINT_MAX if there is none. */
unsigned files_next_protected(unsigned fd)
{
    for (; fd < MAX_PROTECTED; fd++) {
        if (!protected[fd / 8])
            fd |= 7;
        else if (files_protected((int)fd))
            return fd;
    }
    return UINT32_MAX;
}
