/* The machine's clocks. Code that decides by time takes a clock_ops; only main programs and the log
 * name these. */
#include "proto/base.h"

#include <time.h>

static uint64_t monotonic_ns(void *self)
{
    (void)self;
    struct timespec t;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &t) == 0);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

const clock_ops clock_monotonic = {.now_ns = monotonic_ns};

uint64_t clock_wall_ms(void)
{
    struct timespec t;
    CHECK(clock_gettime(CLOCK_REALTIME, &t) == 0);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}
