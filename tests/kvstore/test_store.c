/* Client and nodes together, over the network in this process, on a clock that the tests turn. */
#include "tests/kvstore/rig.h"

#include <stdlib.h>

static void put_all(rig *r, uint64_t context, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        block_id id = rig_id(r, context, i);
        status s = rig_put(r, &id);
        EXPECT_MSG(s == STATUS_OK, "put %u: %s", i, status_name(s));
    }
}

static status get_one(rig *r, uint64_t context, uint32_t block)
{
    block_id id = rig_id(r, context, block);
    status s;
    (void)rig_get(r, &id, 1, KV_DEMAND, &s);
    return s;
}

static kv_server_stats node_stats(rig *r, uint32_t i)
{
    kv_server_stats s;
    kv_server_stats_read(r->node[i].server, &s);
    return s;
}

static kv_client_stats client_stats(rig *r)
{
    kv_client_stats s;
    kv_client_stats_read(r->client, &s);
    return s;
}

/* Submit a get of one block without waiting. */
static status submit_get(rig *r, const block_id *id, kv_class class, uint64_t ns, kv_ticket *out)
{
    uint64_t digest = rig_digest(r, id);
    kv_get get = {id, &digest, 1, class, r->now_ns + ns, false};
    return kv_get_submit(r->client, &get, out);
}

TEST(what_was_put_is_read_back)
{
    rig *r = rig_create(&(rig_options){.nodes = 1, .replicas = 1});
    put_all(r, 1, 100);
    block_id id[100];
    status st[100];
    for (uint32_t i = 0; i < 100; i++)
        id[i] = rig_id(r, 1, i);
    kv_done done = rig_get(r, id, 100, KV_DEMAND, st);
    EXPECT(done.result == STATUS_OK && done.failed_over == 0 && done.hedged == 0);
    EXPECT_EQ_U64(node_stats(r, 0).class[KV_DEMAND].blocks_ok, 100);
    EXPECT_EQ_U64(client_stats(r).class[KV_DEMAND].blocks_ok, 100);
    rig_destroy(r);
}

TEST(a_put_is_acknowledged_only_after_r_nodes_verified_it)
{
    rig *r = rig_create(&(rig_options){.nodes = 3, .replicas = 2});
    put_all(r, 1, 64);
    uint64_t copies = 0;
    for (uint32_t i = 0; i < 3; i++)
        copies += node_stats(r, i).slots_used;
    EXPECT_EQ_U64(copies, 128);
    EXPECT_EQ_U64(client_stats(r).put_replicas_acked, 128);
    /* With all but one node silent there are not R: the put does not succeed. */
    r->node[0].paused = r->node[1].paused = true;
    block_id id = rig_id(r, 2, 0);
    EXPECT(rig_put(r, &id) == STATUS_DEADLINE);
    rig_destroy(r);
}

TEST(a_block_that_one_node_lacks_comes_from_the_next)
{
    rig *r = rig_create(&(rig_options){.nodes = 3, .replicas = 2});
    put_all(r, 1, 64);
    block_id first = rig_id(r, 1, 0);
    rig_node_kill(r, rig_rank(r, &first, 0));
    for (uint32_t i = 0; i < 64; i++)
        EXPECT(get_one(r, 1, i) == STATUS_OK);
    rig_check(r);
    rig_destroy(r);
}

TEST(a_node_restarted_empty_has_no_copies_and_the_others_serve)
{
    rig *r = rig_create(&(rig_options){.nodes = 3, .replicas = 2});
    put_all(r, 1, 32);
    rig_node_kill(r, 0);
    rig_run(r, 10 * RIG_MS);
    rig_node_start(r, 0);
    for (uint32_t i = 0; i < 4000 && !rig_ready(r); i++)
        rig_run(r, RIG_MS);
    EXPECT(rig_ready(r));
    for (uint32_t i = 0; i < 32; i++)
        EXPECT(get_one(r, 1, i) == STATUS_OK);
    EXPECT_EQ_U64(node_stats(r, 0).slots_used, 0);
    EXPECT(client_stats(r).reconnects > 0);
    rig_destroy(r);
}

TEST(a_put_whose_acknowledging_node_was_restarted_is_put_again)
{
    rig *r = rig_create(&(rig_options){.nodes = 2, .replicas = 2});
    block_id id = rig_id(r, 1, 0);
    arena *a = arena_create("test");
    uint8_t *bytes = arena_alloc(a, r->block_bytes, 64);
    rig_fill(r, &id, bytes);
    r->node[1].paused = true;
    kv_put put = {id, bytes, rig_digest(r, &id), KV_WRITE_BACK,
                  r->now_ns + UINT64_C(5000) * RIG_MS};
    kv_ticket ticket;
    EXPECT(kv_put_submit(r->client, &put, &ticket) == STATUS_OK);
    rig_run(r, 5 * RIG_MS);
    EXPECT_EQ_U64(node_stats(r, 0).slots_used, 1);
    rig_node_kill(r, 0);
    rig_node_start(r, 0);
    rig_run(r, 200 * RIG_MS);
    r->node[1].paused = false;
    kv_done done;
    EXPECT(rig_next(r, UINT64_C(4000) * RIG_MS, &done));
    EXPECT(done.result == STATUS_OK);
    EXPECT_EQ_U64(node_stats(r, 0).slots_used, 1);
    EXPECT_EQ_U64(node_stats(r, 1).slots_used, 1);
    arena_destroy(a);
    rig_destroy(r);
}

TEST(a_request_ends_at_its_deadline_and_a_late_reply_is_dropped)
{
    rig *r = rig_create(&(rig_options){.nodes = 1, .replicas = 1});
    put_all(r, 1, 2);
    r->node[0].paused = true;
    block_id id = rig_id(r, 1, 0);
    kv_ticket ticket;
    EXPECT(submit_get(r, &id, KV_DEMAND, 10 * RIG_MS, &ticket) == STATUS_OK);
    uint64_t deadline = r->now_ns + 10 * RIG_MS;
    kv_done done;
    kv_client_poll(r->client);
    r->now_ns = deadline - 1;
    kv_client_poll(r->client);
    EXPECT(!kv_client_next(r->client, &done));
    r->now_ns = deadline;
    kv_client_poll(r->client);
    EXPECT(kv_client_next(r->client, &done));
    EXPECT(done.result == STATUS_DEADLINE && done.slot[0] == -1);
    EXPECT_EQ_U64(client_stats(r).slots_free, 128);
    /* The node wakes up and answers what nobody waits for. */
    memset(r->landing, 0x5a, (size_t)128 * r->block_bytes);
    r->node[0].paused = false;
    rig_run(r, 20 * RIG_MS);
    EXPECT(client_stats(r).late_replies > 0);
    for (uint32_t i = 0; i < 128 * r->block_bytes; i++)
        EXPECT(r->landing[i] == 0x5a);
    EXPECT(!kv_client_next(r->client, &done));
    rig_destroy(r);
}

TEST(a_late_answer_is_hedged_and_the_faster_replica_wins)
{
    rig *r = rig_create(&(rig_options){.nodes = 2, .replicas = 2});
    put_all(r, 1, 1);
    block_id id = rig_id(r, 1, 0);
    r->node[rig_rank(r, &id, 0)].paused = true;
    uint64_t before = r->now_ns;
    EXPECT(get_one(r, 1, 0) == STATUS_OK);
    EXPECT(r->now_ns - before >= r->config.hedge_after_ns);
    EXPECT(r->now_ns - before < r->config.hedge_after_ns + RIG_MS);
    EXPECT_EQ_U64(client_stats(r).hedged, 1);
    EXPECT_EQ_U64(client_stats(r).nodes_suspect, 1);
    /* A suspect is asked after the others: no waiting now. */
    before = r->now_ns;
    EXPECT(get_one(r, 1, 0) == STATUS_OK);
    EXPECT(r->now_ns - before < RIG_MS);
    /* And the answer of the slow one, when it comes, changes nothing. */
    r->node[rig_rank(r, &id, 0)].paused = false;
    rig_run(r, 20 * RIG_MS);
    rig_check(r);
    rig_destroy(r);
}

TEST(bytes_flipped_on_the_wire_fail_over_and_are_never_handed_out)
{
    rig *r = rig_create(&(rig_options){.nodes = 3, .replicas = 3, .faults = {.flip_wire = 0.3}});
    put_all(r, 1, 32);
    for (uint32_t n = 0; n < 10; n++)
        for (uint32_t i = 0; i < 32; i++) {
            status s = get_one(r, 1, i);
            EXPECT_MSG(s == STATUS_OK || s == STATUS_CORRUPT, "%s", status_name(s));
        }
    EXPECT(client_stats(r).corrupt > 20);
    EXPECT(client_stats(r).failed_over > 20);
    rig_destroy(r);
}

TEST(without_verification_a_flipped_block_gets_through)
{
    rig *r = rig_create(
        &(rig_options){.nodes = 1, .replicas = 1, .trust = true, .faults = {.flip_wire = 1}});
    put_all(r, 1, 1);
    block_id id = rig_id(r, 1, 0);
    kv_ticket ticket;
    kv_done done;
    EXPECT(submit_get(r, &id, KV_DEMAND, 50 * RIG_MS, &ticket) == STATUS_OK);
    EXPECT(rig_next(r, 60 * RIG_MS, &done));
    EXPECT(done.result == STATUS_OK);
    uint64_t digest = block_digest(&id, kv_slot_bytes(r->client, done.slot[0]), r->block_bytes);
    EXPECT(digest != rig_digest(r, &id));
    rig_destroy(r);
}

/* Whether the block that a get brings has its bytes; the get says OK. */
static bool comes_right(rig *r, const block_id *id, bool unchecked)
{
    uint64_t digest = rig_digest(r, id);
    kv_get get = {id, &digest, 1, KV_DEMAND, r->now_ns + 50 * RIG_MS, unchecked};
    kv_ticket ticket;
    kv_done done;
    EXPECT(kv_get_submit(r->client, &get, &ticket) == STATUS_OK);
    EXPECT(rig_next(r, 60 * RIG_MS, &done) && done.result == STATUS_OK);
    bool right = block_digest(id, kv_slot_bytes(r->client, done.slot[0]), r->block_bytes) == digest;
    kv_slot_release(r->client, done.slot[0]);
    return right;
}

TEST(an_unchecked_get_is_the_caller_s_to_compare_and_a_checked_one_goes_to_another_replica)
{
    rig *r = rig_create(&(rig_options){.nodes = 2, .replicas = 2});
    block_id id = rig_id(r, 1, 0);
    uint32_t first = rig_rank(r, &id, 0);
    rig_node_kill(r, first);
    r->node[first].faults.flip_wire = 1;
    rig_node_start(r, first);
    for (uint32_t i = 0; i < 4000 && !rig_ready(r); i++)
        rig_run(r, RIG_MS);
    rig_run(r, 100 * RIG_MS); /* no longer suspect */
    put_all(r, 1, 1);
    EXPECT(!comes_right(r, &id, true));
    EXPECT_EQ_U64(client_stats(r).corrupt + client_stats(r).failed_over, 0);
    EXPECT(comes_right(r, &id, false));
    EXPECT(client_stats(r).corrupt == 1 && client_stats(r).failed_over == 1);
    rig_check(r);
    rig_destroy(r);
}

/* Who asks compares; the node does so behind the reply, and has given the block up by the next. */
TEST(memory_that_lost_a_bit_is_served_once_by_the_node_and_by_another_replica_from_then_on)
{
    rig *r = rig_create(&(rig_options){.nodes = 2, .replicas = 2});
    rig_node_kill(r, 0);
    r->node[0].faults.flip_memory = 1;
    rig_node_start(r, 0);
    for (uint32_t i = 0; i < 4000 && !rig_ready(r); i++)
        rig_run(r, RIG_MS);
    rig_run(r, 100 * RIG_MS); /* no longer suspect */
    put_all(r, 1, 32);
    for (uint32_t i = 0; i < 32; i++)
        EXPECT(get_one(r, 1, i) == STATUS_OK);
    rig_run(r, RIG_MS);
    kv_server_stats s = node_stats(r, 0);
    EXPECT(s.corrupt > 0);
    EXPECT_EQ_U64(s.slots_used + s.corrupt, 32); /* what was found is given up */
    EXPECT_EQ_U64(client_stats(r).corrupt, s.corrupt);
    for (uint32_t i = 0; i < 32; i++)
        EXPECT(get_one(r, 1, i) == STATUS_OK);
    EXPECT_EQ_U64(client_stats(r).corrupt, s.corrupt);
    rig_destroy(r);
}

/* A request may end at its deadline only if node 0 was asked four times and every answer was lost:
 * what one word reached is OK. Returns how often it was asked more than once. */
static uint32_t asked_until_answered(rig *r, uint32_t block, bool is_put)
{
    block_id id = rig_id(r, 1, block);
    kv_class class = is_put ? KV_WRITE_BACK : KV_DEMAND;
    uint64_t asks = node_stats(r, 0).class[class].submitted;
    uint64_t told = client_stats(r).put_replicas_acked + client_stats(r).blocks_received;
    status s = is_put ? rig_put(r, &id) : get_one(r, 1, block);
    asks = node_stats(r, 0).class[class].submitted - asks;
    told = client_stats(r).put_replicas_acked + client_stats(r).blocks_received - told;
    EXPECT_MSG(s == (told > 0 ? STATUS_OK : STATUS_DEADLINE), "%u: %s", block, status_name(s));
    EXPECT_MSG(told > 0 || asks >= 4, "%u: only %u asks", block, (unsigned)asks);
    return (uint32_t)asks - 1;
}

TEST(replies_that_never_come_are_asked_for_again_within_the_deadline)
{
    rig *r = rig_create(&(rig_options){.nodes = 1, .replicas = 1, .faults = {.drop_reply = 0.2}});
    r->config.put_deadline_ns = UINT64_C(2000) * RIG_MS;
    uint32_t puts = 0, gets = 0;
    for (uint32_t i = 0; i < 64; i++)
        puts += asked_until_answered(r, i, true);
    for (uint32_t i = 0; i < 64; i++)
        gets += asked_until_answered(r, i, false);
    EXPECT(puts > 0 && gets > 0);
    rig_destroy(r);
}

TEST(a_block_nobody_has_is_not_found_and_costs_no_waiting)
{
    rig *r = rig_create(&(rig_options){.nodes = 3, .replicas = 2});
    uint64_t before = r->now_ns;
    EXPECT(get_one(r, 9, 0) == STATUS_NOT_FOUND);
    EXPECT(r->now_ns - before < 2 * RIG_MS);
    rig_destroy(r);
}

TEST(with_every_copy_dead_the_block_ends_before_the_deadline)
{
    rig *r = rig_create(&(rig_options){.nodes = 1, .replicas = 1});
    put_all(r, 1, 1);
    rig_node_kill(r, 0);
    rig_run(r, 20 * RIG_MS);
    uint64_t before = r->now_ns;
    EXPECT(get_one(r, 1, 0) == STATUS_UNREACHABLE);
    EXPECT(r->now_ns - before < 20 * RIG_MS);
    rig_destroy(r);
}

TEST(a_full_store_refuses_and_keeps_what_it_acknowledged)
{
    rig *r = rig_create(&(rig_options){.nodes = 1, .replicas = 1, .memory_bytes = 20 * 16384});
    put_all(r, 1, 20);
    block_id id = rig_id(r, 1, 20);
    EXPECT(rig_put(r, &id) == STATUS_NO_SPACE);
    for (uint32_t i = 0; i < 20; i++)
        EXPECT(get_one(r, 1, i) == STATUS_OK);
    EXPECT_EQ_U64(node_stats(r, 0).slots_free, 0);
    /* A drop makes room. */
    kv_ticket ticket;
    kv_done done;
    EXPECT(kv_drop_submit(r->client, id.context, r->now_ns + 100 * RIG_MS, &ticket) == STATUS_OK);
    EXPECT(rig_next(r, 100 * RIG_MS, &done) && done.kind == KV_KIND_DROP);
    EXPECT(done.result == STATUS_OK);
    rig_run(r, RIG_MS);
    EXPECT_EQ_U64(node_stats(r, 0).slots_free, 20);
    EXPECT_EQ_U64(node_stats(r, 0).dropped_blocks, 20);
    EXPECT(get_one(r, 1, 0) == STATUS_NOT_FOUND);
    block_id other = rig_id(r, 2, 0);
    EXPECT(rig_put(r, &other) == STATUS_OK);
    /* A context that was dropped stays dead. */
    EXPECT(rig_put(r, &id) == STATUS_STALE);
    rig_destroy(r);
}

TEST(a_put_again_is_acknowledged_and_another_block_under_its_id_is_refused)
{
    rig *r = rig_create(&(rig_options){.nodes = 2, .replicas = 2});
    put_all(r, 1, 1);
    put_all(r, 1, 1);
    EXPECT_EQ_U64(node_stats(r, 0).slots_used, 1);
    block_id id = rig_id(r, 1, 0);
    arena *a = arena_create("test");
    uint8_t *bytes = arena_alloc(a, r->block_bytes, 64);
    kv_put put = {id, bytes, block_digest(&id, bytes, r->block_bytes), KV_WRITE_BACK,
                  r->now_ns + 100 * RIG_MS};
    kv_ticket ticket;
    kv_done done;
    EXPECT(kv_put_submit(r->client, &put, &ticket) == STATUS_OK);
    EXPECT(rig_next(r, 100 * RIG_MS, &done) && done.result == STATUS_REFUSED);
    /* Bytes that do not match their digest are never published. */
    put.id = rig_id(r, 1, 1);
    put.digest = 12345;
    put.deadline_ns = r->now_ns + 100 * RIG_MS;
    EXPECT(kv_put_submit(r->client, &put, &ticket) == STATUS_OK);
    EXPECT(rig_next(r, 101 * RIG_MS, &done) && done.result == STATUS_DEADLINE);
    EXPECT(get_one(r, 1, 1) == STATUS_NOT_FOUND);
    arena_destroy(a);
    rig_destroy(r);
}

TEST(fewer_living_domains_than_replicas_is_degraded)
{
    rig *r = rig_create(&(rig_options){.nodes = 2, .replicas = 3});
    block_id id = rig_id(r, 1, 0);
    EXPECT(rig_put(r, &id) == STATUS_DEGRADED);
    EXPECT_EQ_U64(node_stats(r, 0).slots_used + node_stats(r, 1).slots_used, 0);
    rig_destroy(r);
}

TEST(a_put_walks_past_a_dead_node_to_the_next_rank)
{
    rig *r = rig_create(&(rig_options){.nodes = 3, .replicas = 2});
    block_id id = rig_id(r, 1, 0);
    rig_node_kill(r, rig_rank(r, &id, 0));
    rig_run(r, 10 * RIG_MS);
    EXPECT(rig_put(r, &id) == STATUS_OK);
    EXPECT_EQ_U64(node_stats(r, rig_rank(r, &id, 1)).slots_used, 1);
    EXPECT_EQ_U64(node_stats(r, rig_rank(r, &id, 2)).slots_used, 1);
    EXPECT(get_one(r, 1, 0) == STATUS_OK);
    rig_destroy(r);
}

TEST(a_silent_node_is_passed_over_by_a_put)
{
    rig *r = rig_create(&(rig_options){.nodes = 3, .replicas = 2});
    block_id id = rig_id(r, 1, 0);
    r->node[rig_rank(r, &id, 0)].paused = true;
    EXPECT(rig_put(r, &id) == STATUS_OK);
    EXPECT_EQ_U64(node_stats(r, rig_rank(r, &id, 2)).slots_used, 1);
    rig_destroy(r);
}

TEST(prefetch_takes_at_most_half_of_the_zone_and_the_rest_is_told_busy)
{
    rig *r = rig_create(&(rig_options){.nodes = 1, .replicas = 1, .landing_slots = 32});
    put_all(r, 1, 32);
    block_id id[24];
    uint64_t digest[24];
    for (uint32_t i = 0; i < 24; i++) {
        id[i] = rig_id(r, 1, i);
        digest[i] = rig_digest(r, &id[i]);
    }
    kv_get get = {id, digest, 24, KV_PREFETCH, r->now_ns + 50 * RIG_MS, false};
    kv_ticket ticket;
    kv_done done;
    EXPECT(kv_get_submit(r->client, &get, &ticket) == STATUS_OK);
    EXPECT(rig_next(r, 50 * RIG_MS, &done) && done.result == STATUS_BUSY);
    int32_t slots[24];
    for (uint32_t i = 0; i < 24; i++) {
        EXPECT(done.block_status[i] == (i < 16 ? STATUS_OK : STATUS_BUSY));
        slots[i] = done.slot[i];
    }
    EXPECT_EQ_U64(client_stats(r).class[KV_PREFETCH].shed, 8);
    /* DEMAND still has the other half. */
    status st[16];
    EXPECT(rig_get(r, id, 16, KV_DEMAND, st).result == STATUS_OK);
    for (uint32_t i = 0; i < 16; i++)
        kv_slot_release(r->client, slots[i]);
    EXPECT_EQ_U64(client_stats(r).slots_free, 32);
    rig_destroy(r);
}

TEST(demand_beyond_the_zone_waits_for_slots_to_be_released)
{
    rig *r = rig_create(&(rig_options){.nodes = 1, .replicas = 1, .landing_slots = 8});
    put_all(r, 1, 16);
    block_id id[16];
    uint64_t digest[16];
    for (uint32_t i = 0; i < 16; i++) {
        id[i] = rig_id(r, 1, i);
        digest[i] = rig_digest(r, &id[i]);
    }
    kv_ticket first, second;
    kv_get get = {id, digest, 8, KV_DEMAND, r->now_ns + 500 * RIG_MS, false};
    EXPECT(kv_get_submit(r->client, &get, &first) == STATUS_OK);
    get.id = id + 8;
    get.digest = digest + 8;
    EXPECT(kv_get_submit(r->client, &get, &second) == STATUS_OK);
    kv_done done;
    EXPECT(rig_next(r, 50 * RIG_MS, &done) && done.ticket == first && done.result == STATUS_OK);
    int32_t slots[8];
    memcpy(slots, done.slot, sizeof slots);
    EXPECT(!rig_next(r, 50 * RIG_MS, &done));
    for (uint32_t i = 0; i < 8; i++)
        kv_slot_release(r->client, slots[i]);
    EXPECT(rig_next(r, 50 * RIG_MS, &done) && done.ticket == second && done.result == STATUS_OK);
    get.count = 9; /* never possible: said at once */
    EXPECT(kv_get_submit(r->client, &get, &first) == STATUS_INVALID);
    rig_destroy(r);
}

TEST(a_drop_ends_the_puts_of_its_context)
{
    rig *r = rig_create(&(rig_options){.nodes = 2, .replicas = 2});
    r->node[0].paused = r->node[1].paused = true;
    block_id id = rig_id(r, 1, 0), other = rig_id(r, 2, 0);
    uint8_t *bytes = calloc(1, r->block_bytes);
    CHECK(bytes != NULL);
    kv_put put = {.id = id, .bytes = bytes, .class = KV_WRITE_BACK};
    put.deadline_ns = r->now_ns + 400 * RIG_MS;
    kv_ticket first, second, drop;
    EXPECT(kv_put_submit(r->client, &put, &first) == STATUS_OK);
    put.id = other;
    EXPECT(kv_put_submit(r->client, &put, &second) == STATUS_OK);
    free(bytes);
    EXPECT(kv_drop_submit(r->client, id.context, put.deadline_ns, &drop) == STATUS_OK);
    kv_done done;
    EXPECT(kv_client_next(r->client, &done) && done.ticket == first);
    EXPECT(done.result == STATUS_STALE);
    EXPECT(!kv_client_next(r->client, &done));
    rig_destroy(r);
}

TEST(a_node_whose_connection_is_full_holds_nobody_up)
{
    rig *r = rig_create(&(rig_options){.nodes = 3, .replicas = 2});
    put_all(r, 1, 4);
    block_id id = rig_id(r, 1, 0);
    r->node[rig_rank(r, &id, 0)].paused = true;
    for (uint32_t i = 0; i < 160; i++) { /* more than a connection takes */
        rig_run(r, 60 * RIG_MS);         /* until it is suspected no more */
        uint64_t before = r->now_ns;
        EXPECT(get_one(r, 1, 0) == STATUS_OK);
        EXPECT(r->now_ns - before < 50 * RIG_MS);
    }
    block_id other = id;
    other.block = 77;
    EXPECT(rig_put(r, &other) == STATUS_OK);
    rig_destroy(r);
}

TEST(credits_bound_what_is_in_flight)
{
    rig *r = rig_create(&(rig_options){.nodes = 1, .replicas = 1, .inflight = 4});
    put_all(r, 1, 8);
    kv_ticket ticket;
    for (uint32_t i = 0; i < 5; i++) {
        block_id id = rig_id(r, 1, i);
        EXPECT(submit_get(r, &id, KV_DEMAND, 50 * RIG_MS, &ticket) ==
               (i < 4 ? STATUS_OK : STATUS_BUSY));
    }
    EXPECT_EQ_U64(client_stats(r).class[KV_DEMAND].refused_busy, 1);
    kv_done done;
    for (uint32_t i = 0; i < 4; i++) {
        EXPECT(rig_next(r, 50 * RIG_MS, &done) && done.result == STATUS_OK);
        kv_slot_release(r->client, done.slot[0]);
    }
    EXPECT(get_one(r, 1, 5) == STATUS_OK);
    rig_destroy(r);
}

TEST(a_canceled_request_still_completes_once)
{
    rig *r = rig_create(&(rig_options){.nodes = 1, .replicas = 1});
    put_all(r, 1, 1);
    r->node[0].paused = true;
    block_id id = rig_id(r, 1, 0);
    kv_ticket ticket;
    kv_done done;
    EXPECT(submit_get(r, &id, KV_DEMAND, 50 * RIG_MS, &ticket) == STATUS_OK);
    rig_run(r, RIG_MS);
    kv_cancel(r->client, ticket);
    EXPECT(kv_client_next(r->client, &done) && done.result == STATUS_CANCELED);
    kv_cancel(r->client, ticket);
    r->node[0].paused = false;
    EXPECT(!rig_next(r, 100 * RIG_MS, &done));
    EXPECT_EQ_U64(client_stats(r).slots_free, 128);
    rig_destroy(r);
}

TEST(contexts_of_a_client_that_went_away_are_given_back_after_lease_and_grace)
{
    rig *r = rig_create(&(rig_options){.nodes = 1, .replicas = 1});
    put_all(r, 1, 16);
    rig_run(r, UINT64_C(6000) * RIG_MS); /* twice lease and grace: heartbeats keep them alive */
    EXPECT_EQ_U64(node_stats(r, 0).slots_used, 16);
    EXPECT_EQ_U64(node_stats(r, 0).contexts, 1);
    kv_transport_close(r->transport);
    r->transport = NULL;
    for (uint64_t end = r->now_ns + UINT64_C(2600) * RIG_MS; r->now_ns < end; r->now_ns += RIG_MS)
        kv_server_poll(r->node[0].server);
    EXPECT_EQ_U64(node_stats(r, 0).slots_used, 16);
    for (uint64_t end = r->now_ns + UINT64_C(500) * RIG_MS; r->now_ns < end; r->now_ns += RIG_MS)
        kv_server_poll(r->node[0].server);
    EXPECT_EQ_U64(node_stats(r, 0).slots_used, 0);
    EXPECT_EQ_U64(node_stats(r, 0).leases_expired, 1);
    rig_destroy(r);
}

TEST(a_draining_node_serves_what_it_has_and_takes_nothing_new)
{
    rig *r = rig_create(&(rig_options){.nodes = 3, .replicas = 2});
    put_all(r, 1, 8);
    block_id id = rig_id(r, 1, 100);
    uint32_t out = rig_rank(r, &id, 0);
    uint64_t before = node_stats(r, out).slots_used;
    kv_server_drain(r->node[out].server);
    EXPECT(rig_put(r, &id) == STATUS_OK); /* by the other two */
    EXPECT_EQ_U64(node_stats(r, out).slots_used, before);
    for (uint32_t i = 0; i < 8; i++)
        EXPECT(get_one(r, 1, i) == STATUS_OK);
    EXPECT(node_stats(r, out).draining);
    rig_destroy(r);
}

/* ---- random operations ----------------------------------------------------------------------- */

enum { IDS = 256, HELD = 48, OPEN = 512 };

typedef struct storm {
    rig *r;
    rng g;
    uint8_t *bytes;
    int32_t held[HELD]; /* slots handed out and not released */
    block_id held_id[HELD];
    uint32_t held_count, submitted, completed;
    struct {
        kv_ticket ticket; /* 0: free */
        uint32_t id[8];
        uint32_t count;
    } open[OPEN];
} storm;

static block_id storm_id(const storm *s, uint32_t k)
{
    return rig_id(s->r, 1 + k / 64, k % 64);
}

static void storm_put(storm *s, uint32_t place)
{
    uint32_t k = (uint32_t)rng_below(&s->g, IDS);
    block_id id = storm_id(s, k);
    rig_fill(s->r, &id, s->bytes);
    kv_put put = {id, s->bytes, block_digest(&id, s->bytes, s->r->block_bytes), KV_WRITE_BACK,
                  s->r->now_ns + 1 + rng_below(&s->g, 100 * RIG_MS)};
    if (kv_put_submit(s->r->client, &put, &s->open[place].ticket) == STATUS_OK) s->submitted++;
}

static void storm_get(storm *s, uint32_t place, kv_class class)
{
    block_id id[8];
    uint64_t digest[8];
    uint32_t count = 1 + (uint32_t)rng_below(&s->g, 8);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t k = (uint32_t)rng_below(&s->g, IDS);
        s->open[place].id[i] = k;
        id[i] = storm_id(s, k);
        digest[i] = rig_digest(s->r, &id[i]);
    }
    s->open[place].count = count;
    kv_get get = {id,   digest, count, class, s->r->now_ns + 1 + rng_below(&s->g, 60 * RIG_MS),
                  false};
    if (kv_get_submit(s->r->client, &get, &s->open[place].ticket) == STATUS_OK) s->submitted++;
}

static void storm_act(storm *s)
{
    uint64_t what = rng_below(&s->g, 100);
    uint32_t place = 0, node = (uint32_t)rng_below(&s->g, 4);
    while (place < OPEN && s->open[place].ticket != 0)
        place++;
    EXPECT(place < OPEN);
    if (what < 35) {
        storm_put(s, place);
    } else if (what < 80) {
        storm_get(s, place, what < 60 ? KV_DEMAND : KV_PREFETCH);
    } else if (what < 84) {
        kv_cancel(s->r->client, s->open[rng_below(&s->g, OPEN)].ticket);
    } else if (what < 88) {
        s->r->node[node].paused = !s->r->node[node].paused;
    } else if (what < 89) {
        rig_node_kill(s->r, node);
        rig_node_start(s->r, node);
    }
}

/* Take a completion: nobody's twice, nobody's of a stranger, and every byte right. */
static void storm_take(storm *s, const kv_done *done)
{
    uint32_t at = 0;
    while (at < OPEN && s->open[at].ticket != done->ticket)
        at++;
    EXPECT(at < OPEN);
    s->open[at].ticket = 0;
    s->completed++;
    if (done->kind != KV_KIND_GET) return;
    EXPECT(done->count == s->open[at].count);
    for (uint32_t i = 0; i < done->count; i++) {
        if (done->slot[i] < 0) continue;
        block_id id = storm_id(s, s->open[at].id[i]);
        rig_fill(s->r, &id, s->bytes);
        EXPECT(memcmp(kv_slot_bytes(s->r->client, done->slot[i]), s->bytes, s->r->block_bytes) ==
               0);
        EXPECT(s->held_count < HELD);
        s->held_id[s->held_count] = id;
        s->held[s->held_count++] = done->slot[i];
    }
}

/* Nobody wrote there since it was handed out. */
static void storm_release(storm *s)
{
    int32_t slot = s->held[--s->held_count];
    rig_fill(s->r, &s->held_id[s->held_count], s->bytes);
    EXPECT(memcmp(kv_slot_bytes(s->r->client, slot), s->bytes, s->r->block_bytes) == 0);
    kv_slot_release(s->r->client, slot);
}

static void storm_run(uint32_t card_threads)
{
    static storm s;
    memset(&s, 0, sizeof s);
    rig *r = s.r = rig_create(&(rig_options){
        .card_threads = card_threads,
        .nodes = 4,
        .replicas = 2,
        .landing_slots = HELD,
        .rtt_ns = 200 * RIG_US,
        .memory_bytes = 512 * 16384,
        .inflight = 64,
        .faults = {.flip_wire = 0.02, .flip_memory = 0.01, .drop_reply = 0.01, .delay_ns = RIG_US},
    });
    rng_seed(&s.g, test_seed() * 77);
    arena *a = arena_create("test");
    s.bytes = arena_alloc(a, r->block_bytes, 64);
    kv_done done;
    for (uint32_t n = 0; n < 6000; n++) {
        storm_act(&s);
        rig_run(r, rng_below(&s.g, 2 * RIG_MS));
        while (kv_client_next(r->client, &done))
            storm_take(&s, &done);
        while (s.held_count > rng_below(&s.g, 24))
            storm_release(&s);
        rig_check(r);
    }
    for (uint32_t i = 0; i < 4; i++)
        r->node[i].paused = false;
    do {
        while (s.held_count > 0)
            storm_release(&s);
        if (s.completed == s.submitted || !rig_next(r, 500 * RIG_MS, &done)) break;
        storm_take(&s, &done);
    } while (true);
    EXPECT_EQ_U64(s.completed, s.submitted);
    EXPECT_EQ_U64(client_stats(r).slots_free, HELD);
    /* The clock does not wait for a card: what it has not written in time is asked for again. */
    EXPECT_GE_U64(client_stats(r).class[KV_DEMAND].blocks_ok, card_threads > 0 ? 100 : 1000);
    rig_run(r, 100 * RIG_MS);
    for (uint32_t i = 0; i < 4; i++) {
        EXPECT_EQ_U64(node_stats(r, i).slots_reserved, 0);
        EXPECT(kv_server_idle(r->node[i].server));
    }
    arena_destroy(a);
    rig_destroy(r);
}

TEST(thousands_of_random_operations_with_faults_lose_no_slot_and_serve_no_wrong_byte)
{
    storm_run(0);
}

TEST(nor_do_they_where_a_card_writes_to_the_landing_slots)
{
    storm_run(2);
}

TEST(a_node_that_asked_for_any_port_says_which_it_got)
{
    rig *r = rig_create(&(rig_options){.nodes = 1, .replicas = 1});
    arena *a = arena_create("test");
    kv_server_config config = {
        .memory = a,
        .clock = r->clock,
        .name = "any",
        .listen = "local:0",
        .memory_bytes = 1 << 20,
        .connections_max = 1,
    };
    kv_server *server;
    EXPECT(kv_transport_local_open(a, r->hub, &config.transport) == STATUS_OK);
    EXPECT(kv_server_create(&config, &server) == STATUS_OK);
    EXPECT_HAS_STR(kv_server_address(server), "local:");
    EXPECT(strcmp(kv_server_address(server), "local:0") != 0);
    kv_transport_close(config.transport);
    kv_server_destroy(server);
    arena_destroy(a);
    rig_destroy(r);
}

TEST_MAIN()
