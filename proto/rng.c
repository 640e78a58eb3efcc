/* xoshiro256** (Blackman and Vigna, "Scrambled linear pseudorandom number generators", 2018),
 * seeded by splitmix64 (Steele, Lea and Flood, 2014): the same seed gives the same numbers on every
 * machine. Not for secrets; those come from rng_system. */
#include "proto/base.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

static uint64_t splitmix64(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15u;
    uint64_t z = *state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t rotate_left(uint64_t x, int count)
{
    return (x << count) | (x >> (64 - count));
}

void rng_seed(rng *r, uint64_t seed)
{
    for (int i = 0; i < 4; i++)
        r->s[i] = splitmix64(&seed);
}

uint64_t rng_next(rng *r)
{
    uint64_t *s = r->s;
    const uint64_t result = rotate_left(s[1] * 5, 7) * 9;
    const uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

/* Multiply and shift, with the few low products that would favour some values drawn again
 * (Lemire, "Fast random integer generation in an interval", 2019). */
uint64_t rng_below(rng *r, uint64_t bound)
{
    CHECK(bound >= 1);
    const uint64_t threshold = (0 - bound) % bound;
    for (;;) {
        const unsigned __int128 product = (unsigned __int128)rng_next(r) * bound;
        if ((uint64_t)product >= threshold) return (uint64_t)(product >> 64);
    }
}

double rng_unit(rng *r)
{
    return (double)(rng_next(r) >> 11) * 0x1p-53;
}

status rng_system(void *out, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        const ssize_t got = getrandom((unsigned char *)out + done, bytes - done, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return FAIL(IO, "the kernel gave no random bytes (errno %d)", errno);
        done += (size_t)got;
    }
    return STATUS_OK;
}
