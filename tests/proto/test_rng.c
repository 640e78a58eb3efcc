#include "tests/test.h"

/* First outputs from the state {1, 2, 3, 4}: the reference values that the generator's other
 * implementations test against (computed by hand: rotl(2*5, 7) * 9 = 11520). */
TEST(the_generator_is_xoshiro256_starstar)
{
    rng r = {{1, 2, 3, 4}};
    EXPECT_EQ_U64(rng_next(&r), 11520u);
    EXPECT_EQ_U64(rng_next(&r), 0u);
    EXPECT_EQ_U64(rng_next(&r), 1509978240u);
    EXPECT_EQ_U64(rng_next(&r), 1215971899390074240u);
}

/* splitmix64 of seed 1234567, widely published. */
TEST(seeding_is_splitmix64)
{
    rng r;
    rng_seed(&r, 1234567);
    EXPECT_EQ_U64(r.s[0], 6457827717110365317u);
    EXPECT_EQ_U64(r.s[1], 3203168211198807973u);
}

TEST(below_is_uniform_and_inside)
{
    rng r;
    rng_seed(&r, test_seed() + 3);
    enum { SIDES = 7, DRAWS = 70000 };
    uint32_t seen[SIDES] = {0};
    for (int i = 0; i < DRAWS; i++) {
        const uint64_t v = rng_below(&r, SIDES);
        EXPECT(v < SIDES);
        seen[v]++;
    }
    /* Ten thousand each; the standard deviation is about 93, six of them allowed. */
    for (int i = 0; i < SIDES; i++)
        EXPECT_NEAR(seen[i], 10000, 560);
    EXPECT_EQ_U64(rng_below(&r, 1), 0);
    const uint64_t large = ((uint64_t)1 << 63) + 1;
    for (int i = 0; i < 1000; i++)
        EXPECT(rng_below(&r, large) < large);
}

TEST(unit_stays_inside_zero_to_one)
{
    rng r;
    rng_seed(&r, test_seed() + 4);
    double sum = 0;
    for (int i = 0; i < 100000; i++) {
        const double v = rng_unit(&r);
        EXPECT(v >= 0.0 && v < 1.0);
        sum += v;
    }
    EXPECT_NEAR(sum / 100000, 0.5, 0.006);
    rng top = {{0, 0, 0, 0}};
    EXPECT_NEAR(rng_unit(&top), 0.0, 0.0);
}

TEST(system_bytes_differ_and_fill_the_buffer)
{
    unsigned char a[600] = {0}, b[600] = {0};
    EXPECT_OK(rng_system(a, sizeof a));
    EXPECT_OK(rng_system(b, sizeof b));
    EXPECT(memcmp(a, b, sizeof a) != 0);
    uint32_t zeros = 0;
    for (size_t i = 500; i < 600; i++)
        zeros += a[i] == 0;
    EXPECT_LE_U64(zeros, 20);
}

TEST_MAIN()
