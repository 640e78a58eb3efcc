#include "tests/test.h"

#include <pthread.h>
#include <sched.h>

typedef struct item {
    uint64_t number;
    uint64_t mixed; /* a function of number: a torn item does not match */
    uint32_t more[3];
} item;

static item item_of(uint64_t number)
{
    item i = {.number = number, .mixed = number * 0x9e3779b97f4a7c15u};
    for (uint32_t k = 0; k < 3; k++)
        i.more[k] = (uint32_t)number + k;
    return i;
}

TEST(a_full_ring_refuses_and_an_empty_one_gives_nothing)
{
    arena *a = arena_create("test");
    ring *r = ring_create(a, 4, sizeof(uint32_t));
    uint32_t out = 99;
    EXPECT(!ring_pop(r, &out));
    EXPECT_EQ_U64(out, 99);
    for (uint32_t round = 0; round < 10; round++) {
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t value = round * 10 + i;
            EXPECT_EQ_U64(ring_count(r), i);
            EXPECT(ring_push(r, &value));
        }
        const uint32_t extra = 1000;
        EXPECT(!ring_push(r, &extra));
        EXPECT_EQ_U64(ring_count(r), 4);
        for (uint32_t i = 0; i < 4; i++) {
            EXPECT(ring_pop(r, &out));
            EXPECT_EQ_U64(out, round * 10 + i);
        }
        EXPECT(!ring_pop(r, &out));
    }
    arena_destroy(a);
}

typedef struct pair {
    ring *r;
    uint64_t count;
    uint64_t refused;
} pair;

static void *produce(void *arg)
{
    pair *p = arg;
    for (uint64_t n = 0; n < p->count;) {
        const item i = item_of(n);
        if (ring_push(p->r, &i)) {
            n++;
        } else {
            p->refused++;
            sched_yield();
        }
    }
    return NULL;
}

TEST(two_threads_pass_every_item_once_in_order_and_whole)
{
    const uint32_t capacities[] = {1, 2, 64, 1024};
    for (size_t c = 0; c < 4; c++) {
        arena *a = arena_create("test");
        pair p = {.r = ring_create(a, capacities[c], sizeof(item)),
                  .count = capacities[c] < 64 ? 20000 : 300000};
        pthread_t producer;
        EXPECT_EQ_I64(pthread_create(&producer, NULL, produce, &p), 0);
        uint64_t wrong = 0, over = 0;
        for (uint64_t n = 0; n < p.count;) {
            item got;
            over += ring_count(p.r) > capacities[c];
            if (!ring_pop(p.r, &got)) {
                sched_yield();
                continue;
            }
            const item want = item_of(n++);
            wrong += memcmp(&got.more, &want.more, sizeof got.more) != 0 ||
                     got.number != want.number || got.mixed != want.mixed;
        }
        pthread_join(producer, NULL);
        EXPECT_EQ_U64(wrong, 0);
        EXPECT_EQ_U64(over, 0);
        EXPECT_EQ_U64(ring_count(p.r), 0);
        arena_destroy(a);
    }
}

static void create_odd(void *arg)
{
    ring_create(arg, 3, 8);
}

static void create_empty(void *arg)
{
    ring_create(arg, 4, 0);
}

TEST(a_capacity_that_is_no_power_of_two_is_a_failed_check)
{
    arena *a = arena_create("test");
    EXPECT(test_aborts(create_odd, a));
    EXPECT(test_aborts(create_empty, a));
    arena_destroy(a);
}

TEST_MAIN()
