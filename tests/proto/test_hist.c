#include "tests/test.h"

#include <stdlib.h>

static hist h, other;
static uint64_t values[20000];

static int by_value(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

TEST(a_quantile_is_never_below_the_exact_one_and_at_most_1_64_above)
{
    rng r;
    rng_seed(&r, test_seed() + 5);
    for (uint32_t bits = 1; bits <= 64; bits += 7) {
        hist_reset(&h);
        const uint32_t count = 20000;
        for (uint32_t i = 0; i < count; i++) {
            values[i] = rng_next(&r) >> (64 - bits) >> rng_below(&r, bits);
            hist_add(&h, values[i]);
        }
        qsort(values, count, sizeof values[0], by_value);
        const double quantiles[] = {0, 0.001, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0};
        for (size_t k = 0; k < 8; k++) {
            const double exact_rank = quantiles[k] * count;
            uint64_t rank = (uint64_t)exact_rank;
            rank += (double)rank < exact_rank;
            const uint64_t exact = values[rank > 0 ? rank - 1 : 0];
            const uint64_t got = hist_quantile(&h, quantiles[k]);
            EXPECT_GE_U64(got, exact);
            EXPECT_LE_U64(got - exact, exact / 64);
        }
        EXPECT_EQ_U64(h.min, values[0]);
        EXPECT_EQ_U64(h.max, values[count - 1]);
        EXPECT_EQ_U64(hist_quantile(&h, 1.0), values[count - 1]);
    }
}

TEST(every_power_of_two_edge_falls_within_its_bound)
{
    for (uint32_t e = 0; e < 64; e++) {
        for (int d = -1; d <= 1; d++) {
            const uint64_t v = ((uint64_t)1 << e) + (uint64_t)(int64_t)d;
            hist_reset(&h);
            hist_add(&h, v);
            hist_add(&h, UINT64_MAX);
            const uint64_t got = hist_quantile(&h, 0.5);
            EXPECT_GE_U64(got, v);
            EXPECT_LE_U64(got - v, v / 64);
        }
    }
}

TEST(an_empty_histogram_has_quantile_zero)
{
    hist_reset(&h);
    EXPECT_EQ_U64(hist_quantile(&h, 0.5), 0);
    EXPECT_EQ_U64(h.count, 0);
}

TEST(merging_equals_adding_everything_to_one)
{
    static hist all;
    rng r;
    rng_seed(&r, test_seed() + 6);
    hist_reset(&h);
    hist_reset(&other);
    hist_reset(&all);
    for (int i = 0; i < 5000; i++) {
        const uint64_t v = rng_next(&r) >> rng_below(&r, 63);
        hist_add(i % 3 == 0 ? &h : &other, v);
        hist_add(&all, v);
    }
    static hist empty;
    hist_reset(&empty);
    hist_merge(&h, &other);
    hist_merge(&h, &empty);
    EXPECT_EQ_MEM(&h, &all, sizeof h);
    hist_merge(&empty, &all);
    EXPECT_EQ_MEM(&empty, &all, sizeof empty);
}

TEST_MAIN()
