/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The host's time-stamp counter, where it runs at one rate for ever; elsewhere the monotonic clock, a tick being 1 ns.
 *
 * With it a guest's counter is the host's plus an offset, as on hardware, so that a program can compare the two. The
 * rate is measured once, against the clock, from the moment the module was loaded: over at least 10 ms, to about 1 in
 * 100,000.
 */
#include "engine.h"

#define BASELINE_NS 10000000u
#define DEFAULT_KHZ 1000000u

struct moment {
    uint64_t ns, ticks;
};

static bool usable;
static struct moment loaded;
static uint64_t khz = DEFAULT_KHZ;
static pthread_once_t measured = PTHREAD_ONCE_INIT;

#ifdef __x86_64__
#include <cpuid.h>
#include <x86intrin.h>

#define INVARIANT (1u << 8) /* CPUID 0x80000007, EDX */

static bool invariant(void)
{
    unsigned a, b, c, d;

    return __get_cpuid(0x80000007, &a, &b, &c, &d) && (d & INVARIANT);
}

/* Not before what the guest has read: its cpus compare their counters by way of memory. */
uint64_t host_ticks(void)
{
    if (!usable)
        return monotonic_ns();
    _mm_lfence();
    return __rdtsc();
}
#else
static bool invariant(void) { return false; }
uint64_t host_ticks(void) { return monotonic_ns(); }
#endif

/* Both clocks at one moment: of a few tries the one that was interrupted least. */
static struct moment now(void)
{
    struct moment best = {0, 0};
    uint64_t least = UINT64_MAX;

    for (int i = 0; i < 8; i++) {
        uint64_t before = host_ticks(), ns = monotonic_ns(), after = host_ticks();

        if (after - before < least) {
            least = after - before;
            best = (struct moment){ns, before + (after - before) / 2};
        }
    }
    return best;
}

void host_tsc_init(void)
{
    usable = invariant();
    loaded = now();
}

static void measure(void)
{
    struct moment end = now();

    if (!usable)
        return;
    while (end.ns - loaded.ns < BASELINE_NS)
        end = now();
    khz = (uint64_t)((unsigned __int128)(end.ticks - loaded.ticks) * 1000000u / (end.ns - loaded.ns));
}

uint64_t host_tick_khz(void)
{
    pthread_once(&measured, measure);
    return khz;
}

bool host_has_tsc(void) { return usable; }
