#include "tests/test.h"

TEST(allocations_are_zeroed_aligned_and_apart)
{
    arena *a = arena_create("test");
    rng r;
    rng_seed(&r, test_seed() + 11);
    struct {
        unsigned char *at;
        size_t bytes;
    } given[500];
    for (int i = 0; i < 500; i++) {
        const size_t bytes = (size_t)rng_below(&r, i % 50 == 0 ? 300000 : 700);
        const size_t align = (size_t)1 << rng_below(&r, 13);
        unsigned char *p = arena_alloc(a, bytes, align);
        EXPECT_EQ_U64((uintptr_t)p % align, 0);
        for (size_t j = 0; j < bytes; j++)
            EXPECT_MSG(p[j] == 0, "allocation %d has a dirty byte at %zu", i, j);
        memset(p, i % 255 + 1, bytes);
        given[i].at = p;
        given[i].bytes = bytes;
    }
    for (int i = 0; i < 500; i++) {
        for (size_t j = 0; j < given[i].bytes; j++)
            EXPECT_MSG(given[i].at[j] == i % 255 + 1, "allocation %d was overwritten", i);
    }
    arena_destroy(a);
}

TEST(arena_bytes_counts_what_came_from_the_system)
{
    arena *a = arena_create("test");
    EXPECT_EQ_U64(arena_bytes(a), 0);
    arena_alloc(a, 10, 8);
    const size_t small = arena_bytes(a);
    EXPECT_GE_U64(small, 10);
    arena_alloc(a, 10, 8);
    EXPECT_EQ_U64(arena_bytes(a), small);
    arena_alloc(a, 8u << 20, 4096);
    EXPECT_GE_U64(arena_bytes(a), small + (8u << 20));
    EXPECT_LE_U64(arena_bytes(a), small + (8u << 20) + 16384);
    arena_destroy(a);
    arena_destroy(NULL);
}

TEST(a_string_is_copied_whole)
{
    arena *a = arena_create("test");
    char source[] = "shoal";
    char *copy = arena_string(a, source);
    source[0] = 'X';
    EXPECT_EQ_STR(copy, "shoal");
    EXPECT_EQ_STR(arena_string(a, ""), "");
    arena_destroy(a);
}

typedef struct wide {
    alignas(128) uint64_t first;
} wide;

TEST(arena_new_gives_at_least_a_cache_line_and_the_types_own_alignment)
{
    arena *a = arena_create("test");
    arena_alloc(a, 3, 1);
    EXPECT_EQ_U64((uintptr_t)ARENA_NEW(a, uint32_t, 5) % 64, 0);
    arena_alloc(a, 3, 1);
    EXPECT_EQ_U64((uintptr_t)ARENA_NEW(a, wide, 2) % 128, 0);
    arena_destroy(a);
}

static void allocate_five(void *arg)
{
    arena_alloc(arg, 5, 1);
}

static void allocate_misaligned(void *arg)
{
    arena_alloc(arg, 5, 3);
}

static void allocate_the_world(void *arg)
{
    arena_alloc(arg, SIZE_MAX - 4, 8);
}

TEST(allocating_after_the_seal_is_a_failed_check)
{
    arena *a = arena_create("test");
    char *before = arena_string(a, "kept");
    EXPECT(!test_aborts(allocate_five, a));
    arena_seal(a);
    EXPECT(test_aborts(allocate_five, a));
    EXPECT_EQ_STR(before, "kept");
    arena_destroy(a);
}

TEST(an_alignment_that_is_no_power_of_two_or_an_absurd_size_is_a_failed_check)
{
    arena *a = arena_create("test");
    EXPECT(test_aborts(allocate_misaligned, a));
    EXPECT(test_aborts(allocate_the_world, a));
    arena_destroy(a);
}

TEST_MAIN()
