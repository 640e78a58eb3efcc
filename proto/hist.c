/* Log-linear histogram: 64 equal buckets to each power of two.
 *
 * Values below 64 have a bucket each. Above, a value with top bit e falls into one of the 64
 * buckets that split [2^e, 2^(e+1)), so a bucket is 2^(e-6) wide and its upper edge is less than
 * 1/64 above every value in it. e runs from 6 to 63: 64 * 59 buckets cover all of uint64_t. */
#include "proto/base.h"

#include <string.h>

static uint32_t bucket_of(uint64_t value)
{
    if (value < 64) return (uint32_t)value;
    const uint32_t top = 63u - (uint32_t)__builtin_clzll(value);
    return 64 * (top - 5) + (uint32_t)((value >> (top - 6)) & 63);
}

static uint64_t bucket_upper(uint32_t bucket)
{
    if (bucket < 64) return bucket;
    const uint32_t shift = bucket / 64 - 1;
    const uint64_t lower = (uint64_t)(64 + bucket % 64) << shift;
    return lower + (((uint64_t)1 << shift) - 1);
}

void hist_reset(hist *h)
{
    memset(h, 0, sizeof *h);
    h->min = UINT64_MAX;
}

void hist_add(hist *h, uint64_t value)
{
    const uint32_t bucket = bucket_of(value);
    CHECK(bucket < HIST_BUCKETS);
    h->bucket[bucket]++;
    if (h->count == 0 || value < h->min) h->min = value;
    if (value > h->max) h->max = value;
    h->sum += value;
    h->count++;
}

void hist_merge(hist *into, const hist *from)
{
    if (from->count == 0) return;
    for (uint32_t i = 0; i < HIST_BUCKETS; i++)
        into->bucket[i] += from->bucket[i];
    if (into->count == 0 || from->min < into->min) into->min = from->min;
    if (from->max > into->max) into->max = from->max;
    into->sum += from->sum;
    into->count += from->count;
}

uint64_t hist_quantile(const hist *h, double q)
{
    CHECK(q >= 0.0 && q <= 1.0);
    if (h->count == 0) return 0;
    const double exact = q * (double)h->count;
    uint64_t rank = (uint64_t)exact;
    if ((double)rank < exact) rank++;
    if (rank < 1) rank = 1;
    uint64_t seen = 0;
    for (uint32_t i = 0; i < HIST_BUCKETS; i++) {
        seen += h->bucket[i];
        if (seen >= rank) {
            const uint64_t upper = bucket_upper(i);
            return upper < h->max ? upper : h->max;
        }
    }
    return h->max; /* a torn snapshot: count ran ahead of the buckets */
}
