#include "cluster/cluster.h"
#include "cluster/units.h"
#include "tests/test.h"

TEST(sizes_and_times_are_read_with_their_unit)
{
    static const struct {
        const char *text;
        uint64_t value;
    } sizes[] = {{"0", 0},
                 {"0B", 0},
                 {"4096B", 4096},
                 {"512KiB", 512ull << 10},
                 {"64MiB", 64ull << 20},
                 {"1GiB", 1ull << 30},
                 {"3TiB", 3ull << 40},
                 {"18446744073709551615B", UINT64_MAX}},
      times[] = {{"10ns", 10}, {"300us", 300000}, {"5ms", 5000000}, {"2s", 2000000000}};
    uint64_t value = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        EXPECT_OK(cluster_parse_bytes(sizes[i].text, &value));
        EXPECT_EQ_U64(value, sizes[i].value);
    }
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        EXPECT_OK(cluster_parse_time(times[i].text, &value));
        EXPECT_EQ_U64(value, times[i].value);
    }
}

TEST(anything_else_is_refused_and_says_what_would_do)
{
    static const struct {
        const char *text, *words;
    } rows[] = {
        {"64", "has no unit"},
        {"64MB", "unknown unit"},
        {"64 MiB", "unknown unit"},
        {"1.5GiB", "unknown unit"},
        {"-1MiB", "not a whole number"},
        {"", "not a whole number"},
        {"MiB", "not a whole number"},
        {"64mib", "unknown unit"},
        {"64MiBx", "unknown unit"},
        {"16777216TiB", "64 bits"},
        {"99999999999999999999B", "not a whole number"},
        {"0x10B", "unknown unit"},
        {"5ms", "unknown unit"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint64_t value = 7;
        EXPECT_STATUS(cluster_parse_bytes(rows[i].text, &value), STATUS_INVALID);
        EXPECT_HAS_STR(log_last_error(), rows[i].words);
        EXPECT_EQ_U64(value, 7);
    }
    uint64_t value = 7;
    EXPECT_STATUS(cluster_parse_time("20", &value), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "200ms");
    EXPECT_STATUS(cluster_parse_time("1h", &value), STATUS_INVALID);
    EXPECT_STATUS(cluster_parse_time("18446744074s", &value), STATUS_INVALID);
    EXPECT_EQ_U64(value, 7);
}

TEST(what_is_printed_is_read_back)
{
    rng r;
    rng_seed(&r, test_seed());
    for (int i = 0; i < 2000; i++) {
        uint64_t value = rng_next(&r) >> rng_below(&r, 64) << rng_below(&r, 30), again = 0;
        char text[UNIT_TEXT_BYTES];
        for (unit_kind kind = UNIT_COUNT; kind <= UNIT_PERCENT; kind++) {
            EXPECT(unit_scan(kind, unit_print(kind, value, text), &again) == NULL);
            EXPECT_EQ_U64(again, value);
        }
    }
    char text[UNIT_TEXT_BYTES];
    EXPECT_EQ_STR(unit_print(UNIT_BYTES, 64 << 20, text), "64MiB");
    EXPECT_EQ_STR(unit_print(UNIT_BYTES, 0, text), "0B");
    EXPECT_EQ_STR(unit_print(UNIT_TIME, 1500000, text), "1500us");
    EXPECT_EQ_STR(unit_print(UNIT_TIME, 0, text), "0s");
}

TEST(percentages_and_truth_values_have_one_spelling)
{
    uint64_t value = 0;
    EXPECT(unit_scan(UNIT_PERCENT, "25%", &value) == NULL && value == 25);
    EXPECT(unit_scan(UNIT_PERCENT, "25", &value) != NULL);
    EXPECT(unit_scan(UNIT_PERCENT, "25%%", &value) != NULL);
    EXPECT(unit_scan(UNIT_BOOL, "true", &value) == NULL && value == 1);
    EXPECT(unit_scan(UNIT_BOOL, "yes", &value) != NULL);
    EXPECT(unit_scan(UNIT_COUNT, "12 ", &value) != NULL);
}

TEST(loopback_is_told_from_everything_else)
{
    static const char *const inside[] = {"127.0.0.1:7101", "127.9.8.7", "localhost:1",
                                         "[::1]:7101",     "::1",       "localhost"};
    static const char *const outside[] = {"0.0.0.0:7101",
                                          "10.0.0.1:7101",
                                          "[::]:7101",
                                          "",
                                          "128.0.0.1:1",
                                          "example.org:1",
                                          "localhost.example.org:1",
                                          "127.0.0.1.evil:1",
                                          "[fe80::1]:1",
                                          ":7101"};
    for (size_t i = 0; i < sizeof inside / sizeof *inside; i++)
        EXPECT_MSG(cluster_address_is_loopback(inside[i]), "%s", inside[i]);
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++)
        EXPECT_MSG(!cluster_address_is_loopback(outside[i]), "%s", outside[i]);
}

TEST_MAIN()
