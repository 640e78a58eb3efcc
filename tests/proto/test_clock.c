#include "tests/test.h"

#include <time.h>

TEST(the_monotonic_clock_never_goes_back_and_moves)
{
    const uint64_t start = clock_now(&clock_monotonic);
    uint64_t before = start;
    for (uint32_t i = 0; i < 100000 || before == start; i++) {
        const uint64_t now = clock_now(&clock_monotonic);
        EXPECT_GE_U64(now, before);
        before = now;
    }
}

TEST(the_wall_clock_is_in_milliseconds_since_1970)
{
    const uint64_t now_ms = clock_wall_ms();
    const uint64_t system_ms = (uint64_t)time(NULL) * 1000;
    EXPECT_LE_U64(now_ms, system_ms + 5000);
    EXPECT_GE_U64(now_ms + 5000, system_ms);
}

static uint64_t fixed_now(void *self)
{
    return *(uint64_t *)self;
}

TEST(a_clock_is_an_argument_and_can_be_any)
{
    uint64_t time_ns = 17;
    const clock_ops simulated = {.now_ns = fixed_now, .self = &time_ns};
    EXPECT_EQ_U64(clock_now(&simulated), 17);
    time_ns = 18;
    EXPECT_EQ_U64(clock_now(&simulated), 18);
}

TEST_MAIN()
