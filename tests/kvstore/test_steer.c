/* A client among nodes played by hand: what it counts, how long it sleeps, where it turns when a
 * connection is full, and what it makes of a node that takes another's place. */
#include "tests/kvstore/talk.h"

static void open_ready(uint32_t nodes, uint32_t replicas)
{
    cluster_map map = map_of(EPOCH, nodes, replicas);
    client_open(&map);
    for (kv_peer who = 1; who <= nodes; who++)
        ready(who);
    kv_client_poll(client);
}

static status get_of(const block_id *id, uint32_t count, uint64_t ns)
{
    uint64_t digest[SLOTS];
    for (uint32_t i = 0; i < count; i++)
        digest[i] = block_digest(&id[i], bytes, BLOCK);
    kv_get g = {id, digest, count, KV_DEMAND, p.now_ns + ns, false};
    kv_ticket ticket;
    return kv_get_submit(client, &g, &ticket);
}

static void get(block_id id, uint64_t ns)
{
    EXPECT(get_of(&id, 1, ns) == STATUS_OK);
    kv_client_poll(client);
}

static status put_of(block_id id, uint64_t ns)
{
    kv_put w = {id, bytes, block_digest(&id, bytes, BLOCK), KV_WRITE_BACK, p.now_ns + ns};
    kv_ticket ticket;
    return kv_put_submit(client, &w, &ticket);
}

static void put(block_id id, uint64_t ns)
{
    EXPECT(put_of(id, ns) == STATUS_OK);
    kv_client_poll(client);
}

/* The node that was last asked answers, in another way than with the block. */
static void answer(const peer_sent *asked, wire_kind kind, status s)
{
    wire_result r = {.epoch = EPOCH, .status = s};
    EXPECT(asked != NULL);
    peer_says(&p, asked->to, kind, &r, sizeof r, request_of(asked), NULL, 0);
}

/* It sends the block of the only open request, with these bytes. */
static void block_say(const peer_sent *asked, const uint8_t *body)
{
    EXPECT(asked != NULL);
    const client_ask *ask = &client->asks[request_of(asked) & client->ask_mask];
    wire_block w = {.epoch = EPOCH, .slot = ask->list.slot[0]};
    peer_says(&p, asked->to, WIRE_BLOCK, &w, sizeof w, request_of(asked), body, BLOCK);
}

static void not_found_say(const peer_sent *asked)
{
    wire_done d = {.epoch = EPOCH, .count = 1, .block_status = {STATUS_NOT_FOUND}};
    EXPECT(asked != NULL);
    peer_says(&p, asked->to, WIRE_DONE, &d, sizeof d, request_of(asked), NULL, 0);
}

static status completed(void)
{
    kv_done done;
    if (!kv_client_next(client, &done)) return STATUS_PENDING;
    if (done.kind == KV_KIND_GET && done.slot[0] >= 0) kv_slot_release(client, done.slot[0]);
    return done.result;
}

/* ---- counters -------------------------------------------------------------------------------- */

TEST(requests_are_counted_by_how_they_ended_and_timed)
{
    open_ready(1, 1);
    get(id_of(1, 0), 100 * MS);
    p.now_ns += 3 * MS;
    block_say(peer_last(&p, 1, WIRE_GET, 0), bytes);
    EXPECT(completed() == STATUS_OK);
    EXPECT(stats().class[KV_DEMAND].done_ok == 1 && stats().class[KV_DEMAND].done_failed == 0);
    EXPECT(stats().blocks_received == 1 && stats().late_ns_max == 0);
    EXPECT(stats().get_ns.count == 1 && stats().put_ns.count == 0);
    block_say(peer_last(&p, 1, WIRE_GET, 0), bytes); /* again: it came, and is nobody's */
    EXPECT(stats().blocks_received == 2 && stats().late_replies == 1);

    put(id_of(1, 1), 100 * MS);
    answer(peer_last(&p, 1, WIRE_PUT, 0), WIRE_PUT_DONE, STATUS_OK);
    EXPECT(completed() == STATUS_OK);
    EXPECT(stats().class[KV_WRITE_BACK].done_ok == 1 && stats().put_ns.count == 1);

    get(id_of(1, 2), 10 * MS);
    p.now_ns += 17 * MS; /* nobody looked in time */
    kv_client_poll(client);
    EXPECT(completed() == STATUS_DEADLINE);
    EXPECT(stats().class[KV_DEMAND].done_ok == 1 && stats().class[KV_DEMAND].done_failed == 1);
    EXPECT(stats().late_ns_max == 7 * MS && stats().get_ns.count == 2);
    get(id_of(1, 3), 10 * MS);
    p.now_ns += 12 * MS; /* less late: the longest stays */
    kv_client_poll(client);
    EXPECT(completed() == STATUS_DEADLINE && stats().late_ns_max == 7 * MS);
    client_close();
}

TEST(a_drop_is_no_request_of_a_class)
{
    kv_ticket ticket;
    open_ready(1, 1);
    EXPECT_OK(kv_drop_submit(client, (context_id){1, 1}, p.now_ns + 100 * MS, &ticket));
    kv_client_poll(client);
    answer(peer_last(&p, 1, WIRE_DROP, 0), WIRE_DROP_DONE, STATUS_OK);
    EXPECT(completed() == STATUS_OK);
    for (uint32_t k = 0; k < KV_CLASSES; k++)
        EXPECT(stats().class[k].done_ok == 0 && stats().class[k].done_failed == 0);
    EXPECT(stats().get_ns.count == 0 && stats().put_ns.count == 0);
    client_close();
}

TEST(blocks_of_another_layout_tenant_layer_or_head_are_refused)
{
    open_ready(1, 1);
    block_id id[2] = {id_of(1, 0), id_of(1, 1)};
    for (uint32_t k = 0; k < 4; k++) {
        id[1] = id_of(1, 1); /* the second of two */
        if (k == 0) id[1].layout++;
        if (k == 1) id[1].tenant++;
        if (k == 2) id[1].layer = 200;
        if (k == 3) id[1].kv_head = 200;
        EXPECT_STATUS(get_of(id, 2, MS), STATUS_INVALID);
        EXPECT_STATUS(put_of(id[1], MS), STATUS_INVALID);
    }
    EXPECT(stats().class[KV_DEMAND].submitted == 0);
    client_close();
}

TEST(a_block_that_nobody_gave_ends_with_the_gravest_cause)
{
    static const uint8_t wrong[BLOCK] = {1};
    open_ready(2, 1);
    get(id_of(1, 0), 1000 * MS);
    block_say(peer_last(&p, 0, WIRE_GET, 0), wrong);
    kv_client_poll(client);
    not_found_say(peer_last(&p, 0, WIRE_GET, 0));
    kv_client_poll(client);
    EXPECT_STATUS(completed(), STATUS_CORRUPT);
    client_close();
}

/* ---- sleeping -------------------------------------------------------------------------------- */

static uint64_t slept(uint64_t until_ns)
{
    p.waited_ns = 0;
    kv_client_wait(client, -1, until_ns);
    return p.waited_ns;
}

TEST(a_client_sleeps_until_it_is_wanted_its_next_timer_or_not_at_all)
{
    open_ready(1, 1);
    EXPECT_EQ_U64(slept(p.now_ns + 10 * MS), 10 * MS);
    EXPECT_EQ_U64(slept(p.now_ns + 1000 * MS), 300 * MS); /* a third of the lease */
    EXPECT_EQ_U64(slept(p.now_ns), 0);
    get(id_of(1, 0), 2 * MS);
    kv_client_poll(client);
    EXPECT_EQ_U64(slept(p.now_ns + 10 * MS), 2 * MS); /* asked: nothing to do before its time */
    block_say(peer_last(&p, 1, WIRE_GET, 0), bytes);
    EXPECT_EQ_U64(slept(p.now_ns + 10 * MS), 0); /* a completion is to be had */
    EXPECT(completed() == STATUS_OK);
    p.full = true;
    get(id_of(1, 1), 8 * MS);
    uint64_t ns = slept(p.now_ns + 10 * MS); /* nobody says when there is room */
    EXPECT(ns > 0 && ns <= 100 * 1000);
    client_close();
}

/* ---- full connections ------------------------------------------------------------------------ */

/* A context whose first node is the one behind `who`. */
static uint64_t context_at(kv_peer who)
{
    uint64_t context = 1;
    while (node_behind(who) != client_place(client, id_of(context, 0).context, 0)->rank[0])
        context++;
    return context;
}

TEST(a_full_connection_does_not_hold_up_what_goes_elsewhere)
{
    open_ready(2, 1);
    block_id here = id_of(context_at(1), 0), there = id_of(context_at(2), 0);
    p.full_to = 1;
    EXPECT(get_of(&here, 1, 100 * MS) == STATUS_OK);
    EXPECT(get_of(&there, 1, 100 * MS) == STATUS_OK);
    kv_client_poll(client);
    EXPECT_EQ_U64(peer_count(&p, 2, WIRE_GET, 0), 1);
    client_close();
}

TEST(when_every_connection_is_full_requests_behind_the_first_hold_no_slot)
{
    open_ready(1, 1);
    block_id id[2] = {id_of(1, 0), id_of(2, 0)};
    p.full = true;
    EXPECT(get_of(&id[0], 1, 100 * MS) == STATUS_OK && get_of(&id[1], 1, 100 * MS) == STATUS_OK);
    kv_client_poll(client);
    EXPECT_EQ_U64(stats().slots_posted, 1);
    p.full = false;
    kv_client_poll(client);
    EXPECT(stats().slots_posted == 2 && peer_count(&p, 1, WIRE_GET, 0) == 2);
    client_close();
}

TEST(a_put_waits_for_its_full_node_and_does_not_go_to_another)
{
    open_ready(2, 1);
    p.full_to = 1;
    put(id_of(context_at(1), 0), 1000 * MS);
    EXPECT_EQ_U64(peer_count(&p, 2, WIRE_PUT, 0), 0);
    p.full_to = 0;
    kv_client_poll(client);
    EXPECT(peer_count(&p, 1, WIRE_PUT, 0) == 1 && peer_count(&p, 2, WIRE_PUT, 0) == 0);
    client_close();
}

TEST(blocks_of_one_get_and_node_travel_in_one_frame)
{
    open_ready(1, 1);
    block_id id[3] = {id_of(1, 0), id_of(1, 1), id_of(1, 2)};
    EXPECT(get_of(id, 3, 100 * MS) == STATUS_OK);
    kv_client_poll(client);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_GET, 0), 1);
    for (uint32_t i = 0; i < client->requests_max; i++) /* nothing of it is looked at again */
        EXPECT(client->requests[i].waiting == 0);
    client_close();
}

TEST(the_context_of_all_zeros_has_a_home_too)
{
    open_ready(1, 1);
    block_id id = id_of(0, 0);
    id.context = (context_id){0, 0};
    get(id, 100 * MS);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_GET, 0), 1);
    client_close();
}

/* ---- times ----------------------------------------------------------------------------------- */

TEST(a_dial_that_takes_too_long_is_given_up)
{
    cluster_map map = map_of(EPOCH, 1, 1);
    client_open(&map);
    run(99 * MS);
    EXPECT_EQ_U64(p.hang_ups, 0);
    run(2 * MS);
    EXPECT_EQ_U64(p.hang_ups, 1);
    client_close();
}

TEST(a_short_lease_that_could_not_be_renewed_is_tried_again_within_its_third)
{
    open_ready(1, 1);
    client->cluster.lease_ns = 1500 * 1000;
    p.full = true;
    client_node_lease(client, node_behind(1)); /* refused; the next in half a millisecond */
    p.full = false;
    run(600 * 1000);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_LEASE, 0), 1);
    client_close();
}

/* Two nodes that were dialled and a block that belongs on the second of them that `greets`. */
static kv_peer open_half(block_id *out_id)
{
    cluster_map map = map_of(EPOCH, 2, 1);
    client_open(&map);
    ready(1);
    uint32_t home = 0;
    for (uint64_t context = 1; context < 100; context++) {
        *out_id = id_of(context, 0);
        home = client_place(client, out_id->context, 0)->rank[0];
        if (home != node_behind(1)) break;
    }
    EXPECT(home == node_behind(2));
    return 2;
}

TEST(a_put_waits_for_the_first_connection_to_the_node_that_it_belongs_on)
{
    block_id id;
    kv_peer home = open_half(&id);
    put(id, 5000 * (uint64_t)MS);
    run(50 * MS);
    EXPECT_EQ_U64(peer_count(&p, 0, WIRE_PUT, 0), 0);
    ready(home);
    kv_client_poll(client);
    EXPECT_EQ_U64(peer_count(&p, home, WIRE_PUT, 0), 1);
    peer_closed(&p, home); /* known now: while it is dialled again copies go elsewhere */
    run(5 * MS);
    EXPECT(client_node_connecting(client, node_behind(home)));
    put(id_of(id.context.hi, 1), 5000 * (uint64_t)MS);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_PUT, 0), 2); /* and the first put went on there */
    client_close();
}

TEST(a_put_waits_for_a_first_connection_no_longer_than_it_lasts_or_its_patience)
{
    block_id id;
    kv_peer home = open_half(&id);
    put(id, 5000 * (uint64_t)MS);
    peer_closed(&p, home);
    kv_client_poll(client);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_PUT, 0), 1);
    client_close();

    home = open_half(&id); /* it takes the dial and does not greet */
    put(id, 400 * MS);
    run(400 * MS / CLIENT_PUT_SHARE - MS);
    EXPECT_EQ_U64(peer_count(&p, 0, WIRE_PUT, 0), 0);
    run(2 * MS);
    EXPECT(client_node_new(client, node_behind(home)));
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_PUT, 0), 1);
    client_close();
}

TEST(a_late_put_is_waited_for_twice_as_long_as_its_patience_at_least)
{
    open_ready(1, 1);
    put(id_of(1, 0), UINT64_C(8000) * MS); /* a second of patience */
    run(UINT64_C(1999) * MS);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_PUT, 0), 1);
    EXPECT_EQ_U64(stats().hedged, 1);
    run(20 * MS);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_PUT, 0), 2);
    client_close();
}

/* ---- nodes ----------------------------------------------------------------------------------- */

/* A frame that cannot be decoded, in the version of this program: nonsense, not another version. */
static void nonsense_while_greeted(wire_kind kind, uint8_t version_more)
{
    cluster_map map = map_of(EPOCH, 1, 1);
    client_open(&map);
    peer_opened(&p, 1);
    wire_welcome w = {.incarnation = 1, .epoch = EPOCH, .name = "n0"};
    wire_head_set(&w.head, kind, 0, 0);
    w.head.body = 64; /* which does not come */
    w.head.version = (uint8_t)(w.head.version + version_more);
    kv_message m = {&w, sizeof w, NULL, 0, 0};
    p.base.events->message(p.base.owner, 1, &m);
    EXPECT_EQ_U64(stats().nodes_refused, 0);
    EXPECT_EQ_U64(p.hang_ups, 1);
    client_close();
}

TEST(nonsense_in_place_of_a_greeting_is_no_refusal)
{
    nonsense_while_greeted(WIRE_WELCOME, 0);
    nonsense_while_greeted(WIRE_DONE, 1);
}

TEST(a_put_goes_to_one_node_of_a_domain_even_if_the_only_other_domain_is_not_connected)
{
    cluster_map map = map_of(EPOCH, 3, 2);
    memcpy(map.node[1].domain, map.node[0].domain, sizeof map.node[0].domain);
    client_open(&map);
    for (kv_peer who = 1; who <= 3; who++)
        if (node_behind(who) != 2) ready(who);
    put(id_of(1, 0), 1000 * MS);
    EXPECT_EQ_U64(peer_count(&p, 0, WIRE_PUT, 0), 1);
    client_close();
}

/* n0 acknowledges, its connection breaks, and n2 takes its number in the next map. */
TEST(an_acknowledgement_does_not_pass_to_the_node_that_takes_the_number_of_one_that_left)
{
    open_ready(2, 2);
    kv_peer gone = node_behind(1) == 0 ? 1 : 2, stays = 3 - gone;
    put(id_of(1, 0), UINT64_C(5000) * MS);
    answer(peer_last(&p, gone, WIRE_PUT, 0), WIRE_PUT_DONE, STATUS_OK);
    peer_closed(&p, gone);
    cluster_map map = map_of(EPOCH + 1, 3, 2);
    map.node[0] = map.node[2];
    map.node_count = 2;
    map_say(stays, &map);
    EXPECT_EQ_STR(client->node[0].name, "n2");
    answer(peer_last(&p, stays, WIRE_PUT, 0), WIRE_PUT_DONE, STATUS_OK);
    EXPECT_STATUS(completed(), STATUS_PENDING); /* one copy is none too many */
    run(10 * MS);
    EXPECT(p.dials == 3 && node_behind(3) == 2);
    ready(3);
    kv_client_poll(client);
    answer(peer_last(&p, 3, WIRE_PUT, 0), WIRE_PUT_DONE, STATUS_OK);
    EXPECT_STATUS(completed(), STATUS_OK);
    client_close();
}

TEST_MAIN()
