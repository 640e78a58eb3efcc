/* The DRAM tier, the table of contexts and the heap of timers, each against a dumb model. */
#include "kvstore/contexts.h"
#include "kvstore/timer.h"
#include "tests/test.h"

enum { BLOCK = 8192 };

static block_id id_of(uint64_t context, uint32_t block)
{
    return (block_id){.context = {context, 1}, .layout = 1, .tenant = 2, .block = block};
}

static void conserved(kv_tier *t)
{
    kv_tier_usage u;
    t->ops->usage(t->self, &u);
    EXPECT_EQ_U64(u.free + u.reserved + u.published + u.quarantined, u.slots);
}

TEST(a_reserved_slot_is_found_only_after_it_was_published)
{
    arena *a = arena_create("test");
    kv_tier t;
    EXPECT(kv_tier_dram_create(a, 16 * BLOCK, &t) == STATUS_OK);
    EXPECT(t.ops->format(t.self, BLOCK) == STATUS_OK);
    kv_slot_info info = {id_of(1, 1), 42};
    uint32_t slot, again;
    EXPECT(t.ops->reserve(t.self, &info, &slot) == STATUS_OK);
    EXPECT(t.ops->find(t.self, &info.id) == KV_NO_SLOT);
    EXPECT(t.ops->reserve(t.self, &info, &again) == STATUS_OK);
    EXPECT(t.ops->publish(t.self, slot) == STATUS_OK);
    EXPECT(t.ops->publish(t.self, again) == STATUS_STALE);
    EXPECT(t.ops->find(t.self, &info.id) == slot);
    t.ops->discard(t.self, again);
    conserved(&t);
    kv_tier_dram_destroy(&t);
    EXPECT(t.self == NULL); /* unmapped */
    kv_tier_dram_destroy(&t);
    arena_destroy(a);
}

TEST(a_discarded_slot_is_not_reused_while_a_reply_reads_it)
{
    arena *a = arena_create("test");
    kv_tier t;
    EXPECT(kv_tier_dram_create(a, BLOCK, &t) == STATUS_OK);
    EXPECT(t.ops->format(t.self, BLOCK) == STATUS_OK);
    kv_slot_info info = {id_of(1, 1), 42};
    uint32_t slot, other;
    EXPECT(t.ops->reserve(t.self, &info, &slot) == STATUS_OK);
    EXPECT(t.ops->publish(t.self, slot) == STATUS_OK);
    t.ops->pin(t.self, slot, 1);
    t.ops->discard(t.self, slot);
    EXPECT(t.ops->find(t.self, &info.id) == KV_NO_SLOT);
    EXPECT(t.ops->reserve(t.self, &info, &other) == STATUS_NO_SPACE);
    conserved(&t);
    t.ops->pin(t.self, slot, -1);
    EXPECT(t.ops->reserve(t.self, &info, &other) == STATUS_OK);
    kv_tier_dram_destroy(&t);
    arena_destroy(a);
}

TEST(blocks_larger_than_memory_or_of_odd_size_are_refused)
{
    arena *a = arena_create("test");
    kv_tier t;
    EXPECT(kv_tier_dram_create(a, 100, &t) == STATUS_INVALID);
    EXPECT(kv_tier_dram_create(a, 4 * BLOCK, &t) == STATUS_OK);
    EXPECT(t.ops->format(t.self, 8 * BLOCK) == STATUS_NO_SPACE);
    EXPECT(t.ops->format(t.self, BLOCK + 1) == STATUS_UNSUPPORTED);
    EXPECT(t.ops->format(t.self, 64) == STATUS_UNSUPPORTED);
    kv_tier_dram_destroy(&t);
    arena_destroy(a);
}

TEST(the_index_agrees_with_a_list_over_a_hundred_thousand_random_steps)
{
    enum { SLOTS = 96, IDS = 160 };
    arena *a = arena_create("test");
    kv_tier t;
    EXPECT(kv_tier_dram_create(a, SLOTS * BLOCK, &t) == STATUS_OK);
    EXPECT(t.ops->format(t.self, BLOCK) == STATUS_OK);
    uint32_t where[IDS];
    for (uint32_t i = 0; i < IDS; i++)
        where[i] = KV_NO_SLOT;
    uint32_t kept = 0;
    rng g;
    rng_seed(&g, test_seed());
    for (uint32_t n = 0; n < 100000; n++) {
        uint32_t i = (uint32_t)rng_below(&g, IDS);
        kv_slot_info info = {id_of(i, i * 3), i};
        EXPECT(t.ops->find(t.self, &info.id) == where[i]);
        if (where[i] != KV_NO_SLOT) {
            kv_slot_info got;
            (void)t.ops->bytes(t.self, where[i], &got);
            EXPECT(got.digest == i && block_id_equal(&got.id, &info.id));
            t.ops->discard(t.self, where[i]);
            where[i] = KV_NO_SLOT;
            kept--;
        } else {
            status s = t.ops->reserve(t.self, &info, &where[i]);
            EXPECT(s == (kept < SLOTS ? STATUS_OK : STATUS_NO_SPACE));
            if (s == STATUS_OK) EXPECT(t.ops->publish(t.self, where[i]) == STATUS_OK);
            kept += s == STATUS_OK;
        }
    }
    conserved(&t);
    kv_tier_dram_destroy(&t);
    arena_destroy(a);
}

TEST(a_dropped_context_gives_each_of_its_slots_back_once)
{
    arena *a = arena_create("test");
    kv_contexts *c = kv_contexts_create(a, 4, 100);
    uint32_t owner = kv_owner_find(c, 77, 2, 0);
    kv_owner_renew(c, owner, 1000);
    for (uint32_t i = 0; i < 60; i++) {
        block_id id = id_of(i % 3, i);
        EXPECT(kv_context_attach(c, owner, i, &id) == STATUS_OK);
    }
    EXPECT_EQ_U64(kv_context_count(c), 3);
    EXPECT(kv_context_drop(c, 9, (context_id){1, 1}) == STATUS_NOT_FOUND); /* another tenant's */
    EXPECT(kv_context_drop(c, 2, (context_id){1, 1}) == STATUS_OK);
    EXPECT(!kv_context_alive(c, 1) && kv_context_alive(c, 0));
    uint64_t seen = 0;
    uint32_t given = 0;
    for (uint32_t slot; (slot = kv_context_reclaim(c)) != KV_NO_SLOT; given++) {
        EXPECT(slot % 3 == 1 && (seen >> slot & 1) == 0);
        seen |= UINT64_C(1) << slot;
    }
    EXPECT_EQ_U64(given, 20);
    block_id late = id_of(1, 5);
    EXPECT(kv_context_attach(c, owner, 70, &late) == STATUS_STALE);
    arena_destroy(a);
}

TEST(owners_expire_after_lease_and_grace_and_not_before)
{
    arena *a = arena_create("test");
    kv_contexts *c = kv_contexts_create(a, 4, 100);
    uint32_t one = kv_owner_find(c, 1, 2, 0), two = kv_owner_find(c, 2, 2, 0);
    kv_owner_renew(c, one, 1000);
    kv_owner_renew(c, two, 5000);
    block_id x = id_of(1, 0), y = id_of(2, 0);
    EXPECT(kv_context_attach(c, one, 0, &x) == STATUS_OK);
    EXPECT(kv_context_attach(c, two, 1, &y) == STATUS_OK);
    EXPECT_EQ_U64(kv_owner_expire(c, 1499, 500), 0);
    EXPECT_EQ_U64(kv_owner_expire(c, 1500, 500), 1);
    EXPECT(kv_context_reclaim(c) == 0 && kv_context_reclaim(c) == KV_NO_SLOT);
    EXPECT(kv_context_attach(c, one, 0, &x) == STATUS_OK); /* it only slept: it may put again */
    EXPECT_EQ_U64(kv_context_count(c), 2);
    arena_destroy(a);
}

TEST(the_place_of_an_owner_is_anothers_once_its_lease_is_over_and_it_has_no_context)
{
    arena *a = arena_create("test");
    kv_contexts *c = kv_contexts_create(a, 1, 100);
    uint32_t place = kv_owner_find(c, 1, 2, 0);
    kv_owner_renew(c, place, 1000);
    EXPECT(kv_owner_find(c, 2, 2, 999) == KV_NONE);
    EXPECT(kv_owner_find(c, 2, 2, 1001) == place);
    block_id x = id_of(1, 0);
    kv_owner_renew(c, place, 2000);
    EXPECT(kv_context_attach(c, place, 0, &x) == STATUS_OK);
    EXPECT(kv_owner_find(c, 3, 2, 9000) == KV_NONE); /* what it has is not given back yet */
    arena_destroy(a);
}

TEST(a_context_that_another_owner_puts_into_lives_by_that_owners_lease)
{
    arena *a = arena_create("test");
    kv_contexts *c = kv_contexts_create(a, 4, 100);
    uint32_t one = kv_owner_find(c, 1, 2, 0), two = kv_owner_find(c, 2, 2, 0);
    kv_owner_renew(c, one, 1000);
    kv_owner_renew(c, two, 5000);
    block_id x = id_of(1, 0), y = id_of(1, 1);
    EXPECT(kv_context_attach(c, one, 0, &x) == STATUS_OK);
    EXPECT(kv_context_attach(c, two, 1, &y) == STATUS_OK);
    EXPECT_EQ_U64(kv_owner_expire(c, 3000, 0), 0);
    EXPECT_EQ_U64(kv_owner_expire(c, 6000, 0), 1);
    arena_destroy(a);
}

TEST(dropped_ids_are_forgotten_oldest_first_and_chains_stay_whole)
{
    arena *a = arena_create("test");
    kv_contexts *c = kv_contexts_create(a, 4, 100);
    uint32_t owner = kv_owner_find(c, 77, 2, 0);
    for (uint64_t i = 0; i < 20000; i++)
        EXPECT(kv_context_drop(c, 2, (context_id){i, 1}) == STATUS_NOT_FOUND);
    block_id old = id_of(3, 0), recent = id_of(19999, 0);
    EXPECT(kv_context_attach(c, owner, 0, &recent) == STATUS_STALE);
    EXPECT(kv_context_attach(c, owner, 0, &old) == STATUS_OK);
    arena_destroy(a);
}

TEST(timers_fire_in_order_and_stopped_ones_never)
{
    enum { COUNT = 200 };
    arena *a = arena_create("test");
    kv_timers timers;
    kv_timers_init(&timers, a, COUNT);
    kv_timer timer[COUNT] = {0};
    rng g;
    rng_seed(&g, test_seed());
    for (uint32_t n = 0; n < 20000; n++) {
        kv_timer *t = &timer[rng_below(&g, COUNT)];
        if (rng_below(&g, 4) == 0)
            kv_timer_stop(&timers, t);
        else
            kv_timer_set(&timers, t, rng_below(&g, 1000));
    }
    uint32_t set = 0, fired = 0;
    for (uint32_t i = 0; i < COUNT; i++)
        set += timer[i].place != 0;
    for (uint64_t now = 0; now < 1000; now++)
        for (kv_timer *t; (t = kv_timer_due(&timers, now)) != NULL; fired++)
            EXPECT(t->at_ns == now && t->place == 0);
    EXPECT_EQ_U64(fired, set);
    EXPECT_EQ_U64(kv_timer_next(&timers), UINT64_MAX);
    arena_destroy(a);
}

TEST_MAIN()
