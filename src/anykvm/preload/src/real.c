/* SPDX-License-Identifier: GPL-2.0-only */
/* The functions of libc that ours hide, and the library's start in a program. */
#define _GNU_SOURCE
#include "preload.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

struct real_functions real;

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void find(void)
{
#define X(result, name, arguments) real.name = (result(*) arguments)dlsym(RTLD_NEXT, #name);
    REAL_FUNCTIONS(X)
#undef X
}

/* Another library's constructor may call us before ours has run. */
void real_init(void)
{
    pthread_once(&once, find);
}

__attribute__((constructor)) static void start(void)
{
    const char *raw = getenv("ANYKVM_EXEC_RAW");

    real_init();
    if (raw && !strcmp(raw, "1"))
        signals_trap();
}
