/* A client and nodes played by hand, frame by frame: greetings, refusals, answers out of the
 * ordinary, connections that end, maps that change. */
#include "tests/kvstore/talk.h"

static uint64_t next_context;

static void open_with(uint32_t nodes, uint32_t replicas)
{
    cluster_map map = map_of(EPOCH, nodes, replicas);
    client_open(&map);
}

static kv_peer peer_of(uint32_t node)
{
    for (kv_peer who = p.dials; who > 0; who--)
        if (node_behind(who) == node) return who;
    return 0;
}

static void all_ready(void)
{
    for (kv_peer who = 1; who <= p.dials; who++)
        ready(who);
}

static kv_ticket get(block_id id, kv_class class, uint64_t ns)
{
    uint64_t digest = block_digest(&id, bytes, BLOCK);
    kv_get g = {&id, &digest, 1, class, p.now_ns + ns, false};
    kv_ticket ticket = 0;
    EXPECT(kv_get_submit(client, &g, &ticket) == STATUS_OK);
    kv_client_poll(client);
    return ticket;
}

static kv_ticket put(block_id id, uint64_t ns)
{
    kv_put w = {id, bytes, block_digest(&id, bytes, BLOCK), KV_WRITE_BACK, p.now_ns + ns};
    kv_ticket ticket = 0;
    EXPECT(kv_put_submit(client, &w, &ticket) == STATUS_OK);
    kv_client_poll(client);
    return ticket;
}

static void result(kv_peer who, wire_kind kind, uint64_t request, status s, uint64_t hint_ns)
{
    wire_result r = {.epoch = EPOCH, .status = s, .hint_ns = hint_ns};
    peer_says(&p, who, kind, &r, sizeof r, request, NULL, 0);
}

static bool completed(status *out_result)
{
    kv_done done;
    if (!kv_client_next(client, &done)) return false;
    *out_result = done.result;
    if (done.kind == KV_KIND_GET && done.slot[0] >= 0) kv_slot_release(client, done.slot[0]);
    return true;
}

/* Where a BLOCK for the ask of the last GET to `who` would be read; its head is left in *out. */
static uint8_t *block_land(kv_peer who, const peer_sent *asked, wire_block *out)
{
    wire_get g;
    memcpy(&g, asked->head, sizeof g);
    const client_ask *ask = &client->asks[g.head.request & client->ask_mask];
    *out = (wire_block){.epoch = EPOCH, .slot = ask->list.slot[0]};
    return peer_land(&p, who, WIRE_BLOCK, out, sizeof *out, g.head.request, BLOCK);
}

TEST(one_reply_at_a_time_is_read_into_a_slot_and_none_once_the_block_is_done)
{
    wire_block first, second;
    status s;
    open_with(2, 1);
    all_ready();
    (void)get(id_of(1, 0), KV_DEMAND, 100 * MS);
    const peer_sent *one = peer_last(&p, 0, WIRE_GET, 0);
    EXPECT(one != NULL);
    uint32_t from = p.count;
    run(6 * MS); /* late: the other node is asked too */
    const peer_sent *two = peer_last(&p, 0, WIRE_GET, from);
    EXPECT(two != NULL && two->to != one->to);

    uint8_t *slot = block_land(one->to, one, &first);
    EXPECT(slot != NULL && block_land(one->to, one, &first) == slot);
    EXPECT(block_land(two->to, two, &second) == NULL); /* the slot is being written */
    memset(slot, 9, BLOCK / 2);                        /* and half of it is */
    peer_says(&p, two->to, WIRE_BLOCK, &second, sizeof second, second.head.request, bytes, BLOCK);
    EXPECT_EQ_MEM(slot, bytes, BLOCK);
    EXPECT(p.recalls == 1 && p.recalled == slot);     /* before it was copied there */
    EXPECT(block_land(one->to, one, &first) == NULL); /* withdrawn: the other was faster */
    peer_says(&p, one->to, WIRE_BLOCK, &first, sizeof first, first.head.request, NULL, 0);
    EXPECT(completed(&s) && s == STATUS_OK);
    EXPECT_EQ_U64(stats().slots_free, SLOTS);
    client_close();
}

TEST(a_reply_that_was_read_into_a_slot_counts_only_if_its_digest_is_right)
{
    wire_block w;
    status s;
    open_with(2, 1);
    all_ready();
    (void)get(id_of(1, 0), KV_DEMAND, 100 * MS);
    const peer_sent *one = peer_last(&p, 0, WIRE_GET, 0);
    uint32_t from = p.count;
    uint8_t *slot = block_land(one->to, one, &w);
    memcpy(slot, bytes, BLOCK);
    slot[BLOCK - 1] ^= 1;
    peer_says(&p, one->to, WIRE_BLOCK, &w, sizeof w, w.head.request, slot, BLOCK);
    EXPECT(!completed(&s) && stats().corrupt == 1 && p.recalls == 1);
    kv_client_poll(client);
    const peer_sent *two =
        peer_last(&p, 0, WIRE_GET, from); /* the next rank, and its turn to land */
    EXPECT(two != NULL && two->to != one->to && block_land(two->to, two, &w) == slot);
    memcpy(slot, bytes, BLOCK);
    peer_says(&p, two->to, WIRE_BLOCK, &w, sizeof w, w.head.request, slot, BLOCK);
    EXPECT(completed(&s) && s == STATUS_OK &&
           p.recalls == 1);                    /* it came there: nothing to recall */
    (void)get(id_of(1, 1), KV_DEMAND, 2 * MS); /* a landing ends with its request */
    from = p.count - 1;
    slot = block_land(p.sent[from].to, &p.sent[from], &w);
    EXPECT(slot != NULL);
    run(3 * MS);
    EXPECT(completed(&s) && s == STATUS_DEADLINE);
    EXPECT(p.recalls == 2 && p.recalled == slot);
    EXPECT(peer_land(&p, p.sent[from].to, WIRE_BLOCK, &w, sizeof w, w.head.request, BLOCK) == NULL);
    EXPECT_EQ_U64(stats().slots_free, SLOTS);
    client_close();
}

/* ---- greetings ------------------------------------------------------------------------------- */

TEST(a_client_greets_who_accepts_it_and_says_goodbye_to_who_is_ready)
{
    open_with(2, 1);
    peer_opened(&p, 1);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_HELLO, 0), 1);
    welcome(1, 11, EPOCH, STATUS_OK);
    EXPECT_EQ_U64(stats().nodes_connected, 1);
    EXPECT_EQ_U64(peer_count(&p, 0, WIRE_MAP, 0), 0);
    kv_client_destroy(client);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_BYE, 0), 1);
    EXPECT_EQ_U64(peer_count(&p, 2, WIRE_BYE, 0), 0);
    arena_destroy(memory);
}

TEST(a_node_with_an_older_map_is_sent_ours)
{
    open_with(1, 1);
    peer_opened(&p, 1);
    welcome(1, 11, EPOCH - 1, STATUS_OK);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_MAP, 0), 1);
    client_close();
}

TEST(a_fenced_client_greets_again_once_it_has_the_map_and_leaves_when_it_has_not)
{
    open_with(1, 1);
    peer_opened(&p, 1);
    welcome(1, 11, EPOCH, STATUS_FENCED);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_HELLO, 0), 2);
    EXPECT_EQ_U64(p.hang_ups, 0);
    welcome(1, 11, EPOCH + 1, STATUS_FENCED); /* of a map that did not come */
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_HELLO, 0), 2);
    EXPECT_EQ_U64(p.hang_ups, 1);
    EXPECT(client->node[0].state == NODE_DOWN);
    client_close();
}

TEST(a_node_without_room_is_asked_again_soon_and_one_that_refuses_is_not)
{
    open_with(2, 1);
    peer_opened(&p, 1);
    peer_opened(&p, 2);
    welcome(1, 11, EPOCH, STATUS_BUSY);
    welcome(2, 12, EPOCH, STATUS_REFUSED);
    EXPECT_EQ_U64(p.hang_ups, 2);
    EXPECT_EQ_U64(stats().nodes_refused, 1);
    uint64_t before = client->node[node_behind(1)].backoff_ns;
    peer_closed(&p, 1);
    peer_closed(&p, 2);
    EXPECT_EQ_U64(client->node[node_behind(1)].backoff_ns, before); /* counted once */
    run(100 * MS);
    EXPECT_EQ_U64(p.dials, 3);
    EXPECT(node_behind(3) == node_behind(1));
    run(UINT64_C(1600) * MS);
    EXPECT(p.dials > 3);
    client_close();
}

TEST(a_node_of_another_version_is_refused_while_it_is_greeted)
{
    open_with(1, 1);
    peer_opened(&p, 1);
    wire_welcome w = {.incarnation = 1, .epoch = EPOCH, .name = "n0"};
    wire_head_set(&w.head, WIRE_WELCOME, 0, 0);
    w.head.version++;
    kv_message m = {&w, sizeof w, NULL, 0, 0};
    p.base.events->message(p.base.owner, 1, &m);
    EXPECT_EQ_U64(stats().nodes_refused, 1);
    EXPECT_EQ_U64(p.hang_ups, 1);
    EXPECT(client->node[0].state == NODE_DOWN);
    client_close();
    open_with(1, 1);
    all_ready();
    p.base.events->message(p.base.owner, 1, &m);
    EXPECT_EQ_U64(stats().nodes_refused, 0); /* it was agreed with: this is nonsense */
    EXPECT_EQ_U64(p.hang_ups, 1);
    client_close();
}

TEST(a_node_of_another_name_is_not_taken_for_the_one_in_the_map)
{
    open_with(1, 1);
    peer_opened(&p, 1);
    wire_welcome w = {.incarnation = 1, .epoch = EPOCH, .name = "other"};
    peer_says(&p, 1, WIRE_WELCOME, &w, sizeof w, 0, NULL, 0);
    EXPECT_EQ_U64(stats().nodes_connected, 0);
    EXPECT_EQ_U64(stats().nodes_refused, 1);
    EXPECT_EQ_U64(p.hang_ups, 1);
    client_close();
}

TEST(nonsense_and_goodbyes_of_a_node_end_the_connection)
{
    static const wire_kind kinds[] = {WIRE_BYE, WIRE_LEASE};
    for (uint32_t i = 0; i < 2; i++) {
        open_with(1, 1);
        all_ready();
        union {
            wire_bye bye;
            wire_lease lease;
        } frame = {.lease = {.epoch = EPOCH, .lease_ns = 1}};
        peer_says(&p, 1, kinds[i], &frame, i == 0 ? sizeof frame.bye : sizeof frame.lease, 0, NULL,
                  0);
        EXPECT_EQ_U64(p.hang_ups, 1);
        EXPECT_EQ_U64(client->stats.late_replies, 0);
        client_close();
    }
}

TEST(a_greeting_that_takes_too_long_is_given_up)
{
    open_with(1, 1);
    peer_opened(&p, 1);
    run(99 * MS);
    EXPECT_EQ_U64(p.hang_ups, 0);
    run(2 * MS);
    EXPECT_EQ_U64(p.hang_ups, 1);
    client_close();
}

TEST(a_lease_is_renewed_three_times_in_its_length_and_at_once_when_it_could_not_be_sent)
{
    open_with(1, 1);
    all_ready();
    run(299 * MS);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_LEASE, 0), 0);
    run(2 * MS);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_LEASE, 0), 1);
    run(290 * MS);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_LEASE, 0), 1);
    p.full = true;
    run(20 * MS);
    p.full = false;
    run(2 * MS);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_LEASE, 0), 2);
    client_close();
}

/* ---- connections that end -------------------------------------------------------------------- */

TEST(what_was_asked_of_a_lost_node_is_asked_of_the_next_and_of_no_other)
{
    open_with(3, 1);
    all_ready();
    (void)get(id_of(1, 0), KV_DEMAND, UINT64_C(1000) * MS);
    (void)get(id_of(1, 1), KV_DEMAND, UINT64_C(1000) * MS);
    EXPECT_EQ_U64(peer_count(&p, 0, WIRE_GET, 0), 2);
    kv_peer asked = peer_last(&p, 0, WIRE_GET, 0)->to;
    uint32_t from = p.count;
    peer_closed(&p, asked % 3 + 1); /* somebody else's */
    kv_client_poll(client);
    EXPECT_EQ_U64(peer_count(&p, 0, WIRE_GET, from), 0);
    peer_closed(&p, asked);
    kv_client_poll(client);
    EXPECT(peer_count(&p, 0, WIRE_GET, from) > 0);
    EXPECT_EQ_U64(stats().failed_over, 2);
    client_close();
}

static uint32_t puts_to(uint32_t node, uint32_t from)
{
    uint32_t count = 0;
    for (kv_peer who = 1; who <= p.dials; who++)
        if (node_behind(who) == node) count += peer_count(&p, who, WIRE_PUT, from);
    return count;
}

/* A put acknowledged by the first of two nodes, whose connection then breaks and comes back. */
static void put_half_acknowledged(uint64_t incarnation)
{
    open_with(2, 2);
    all_ready();
    (void)put(id_of(1, 0), UINT64_C(5000) * MS);
    EXPECT_EQ_U64(peer_count(&p, 0, WIRE_PUT, 0), 2);
    result(1, WIRE_PUT_DONE, request_of(peer_last(&p, 1, WIRE_PUT, 0)), STATUS_OK, 0);
    peer_closed(&p, 1);
    run(10 * MS);
    kv_peer again = peer_of(node_behind(1));
    EXPECT(again == 3);
    peer_opened(&p, again);
    welcome(again, incarnation, EPOCH, STATUS_OK);
    kv_client_poll(client);
}

TEST(an_acknowledgement_outlives_a_connection)
{
    put_half_acknowledged(11);
    EXPECT_EQ_U64(puts_to(node_behind(1), 0), 1);
    EXPECT_EQ_U64(stats().reconnects, 1);
    result(2, WIRE_PUT_DONE, request_of(peer_last(&p, 2, WIRE_PUT, 0)), STATUS_OK, 0);
    status s;
    EXPECT(completed(&s) && s == STATUS_OK);
    client_close();
}

TEST(an_acknowledgement_does_not_outlive_its_node)
{
    put_half_acknowledged(99);
    EXPECT_EQ_U64(puts_to(node_behind(1), 0), 2);
    result(2, WIRE_PUT_DONE, request_of(peer_last(&p, 2, WIRE_PUT, 0)), STATUS_OK, 0);
    status s;
    EXPECT(!completed(&s));
    client_close();
}

TEST(a_drop_whose_node_is_lost_is_told_again_when_it_is_back)
{
    open_with(1, 1);
    all_ready();
    kv_ticket ticket;
    status s;
    EXPECT(kv_drop_submit(client, (context_id){1, 1}, p.now_ns + UINT64_C(2000) * MS, &ticket) ==
           STATUS_OK);
    kv_client_poll(client);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_DROP, 0), 1);
    peer_closed(&p, 1);
    run(10 * MS);
    EXPECT(p.dials == 2 && !completed(&s));
    peer_opened(&p, 2);
    welcome(2, 11, EPOCH, STATUS_OK);
    kv_client_poll(client);
    EXPECT_EQ_U64(peer_count(&p, 2, WIRE_DROP, 0), 1);
    result(2, WIRE_DROP_DONE, request_of(peer_last(&p, 2, WIRE_DROP, 0)), STATUS_NOT_FOUND, 0);
    EXPECT(completed(&s) && s == STATUS_OK);
    client_close();
}

TEST(a_drop_that_is_late_or_refused_is_told_again_after_a_pause)
{
    open_with(1, 1);
    all_ready();
    kv_ticket ticket;
    status s;
    EXPECT(kv_drop_submit(client, (context_id){1, 1}, p.now_ns + UINT64_C(2000) * MS, &ticket) ==
           STATUS_OK);
    kv_client_poll(client);
    result(1, WIRE_DROP_DONE, request_of(peer_last(&p, 1, WIRE_DROP, 0)), STATUS_FENCED, 0);
    kv_client_poll(client);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_DROP, 0), 1); /* not in the same moment */
    run(2 * MS);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_DROP, 0), 2);
    run(30 * MS); /* four times hedge_after, and the pause */
    EXPECT(peer_count(&p, 1, WIRE_DROP, 0) == 3 && !completed(&s));
    client_close();
}

/* ---- answers --------------------------------------------------------------------------------- */

TEST(a_busy_node_sends_a_get_on_at_once_and_is_asked_again_after_its_hint)
{
    open_with(2, 1);
    all_ready();
    (void)get(id_of(1, 0), KV_DEMAND, UINT64_C(1000) * MS);
    kv_peer first = peer_last(&p, 0, WIRE_GET, 0)->to;
    uint32_t from = p.count;
    result(first, WIRE_BUSY, request_of(peer_last(&p, 0, WIRE_GET, 0)), STATUS_BUSY, 30 * MS);
    kv_client_poll(client);
    EXPECT_EQ_U64(peer_count(&p, 0, WIRE_GET, from), 1);
    kv_peer second = peer_last(&p, 0, WIRE_GET, from)->to;
    EXPECT(second != first);
    from = p.count;
    result(second, WIRE_BUSY, request_of(peer_last(&p, second, WIRE_GET, 0)), STATUS_BUSY, MS);
    run(29 * MS);
    EXPECT_EQ_U64(peer_count(&p, 0, WIRE_GET, from), 0);
    run(20 * MS);
    EXPECT(peer_count(&p, 0, WIRE_GET, from) > 0);
    client_close();
}

TEST(a_put_is_sent_again_after_the_hint_of_a_busy_node)
{
    open_with(1, 1);
    all_ready();
    (void)put(id_of(1, 0), UINT64_C(1000) * MS);
    result(1, WIRE_BUSY, request_of(peer_last(&p, 1, WIRE_PUT, 0)), STATUS_BUSY, 30 * MS);
    run(29 * MS);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_PUT, 0), 1);
    run(20 * MS);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_PUT, 0), 2);
    client_close();
}

TEST(a_prefetch_that_every_node_is_too_busy_for_ends_and_one_that_was_lost_is_tried_again)
{
    open_with(1, 1);
    all_ready();
    status s;
    (void)get(id_of(1, 0), KV_PREFETCH, UINT64_C(1000) * MS);
    result(1, WIRE_BUSY, request_of(peer_last(&p, 1, WIRE_GET, 0)), STATUS_BUSY, 0);
    kv_client_poll(client);
    EXPECT(completed(&s) && s == STATUS_BUSY);
    (void)get(id_of(1, 1), KV_PREFETCH, UINT64_C(1000) * MS);
    wire_done lost = {.epoch = EPOCH, .count = 1, .block_status = {STATUS_FENCED}};
    peer_says(&p, 1, WIRE_DONE, &lost, sizeof lost, request_of(peer_last(&p, 1, WIRE_GET, 0)), NULL,
              0);
    kv_client_poll(client);
    EXPECT(!completed(&s));
    run(5 * MS);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_GET, 0), 3);
    client_close();
}

TEST(an_answer_of_the_wrong_kind_node_or_request_changes_nothing)
{
    open_with(2, 1);
    all_ready();
    status s;
    (void)get(id_of(1, 0), KV_DEMAND, UINT64_C(1000) * MS);
    const peer_sent *g = peer_last(&p, 0, WIRE_GET, 0);
    uint64_t request = request_of(g), late = stats().late_replies;
    kv_peer asked = g->to, other = asked % 2 + 1;
    result(other, WIRE_BUSY, request, STATUS_BUSY, 0);
    result(asked, WIRE_PUT_DONE, request, STATUS_OK, 0);
    result(asked, WIRE_DROP_DONE, request, STATUS_OK, 0);
    result(asked, WIRE_BUSY, request + 1, STATUS_BUSY, 0);
    wire_done done = {.epoch = EPOCH, .count = 2};
    peer_says(&p, asked, WIRE_DONE, &done, sizeof done, request, NULL, 0);
    wire_block b = {.epoch = EPOCH, .slot = SLOTS - 1, .ordinal = 0};
    peer_says(&p, asked, WIRE_BLOCK, &b, sizeof b, request, bytes, BLOCK);
    EXPECT_EQ_U64(stats().late_replies - late, 6);
    EXPECT(!completed(&s) && stats().slots_posted == 1);
    b.slot = (uint32_t)client->blocks[client->requests[0].first_block].slot;
    b.ordinal = 1;
    peer_says(&p, asked, WIRE_BLOCK, &b, sizeof b, request, bytes, BLOCK);
    b.ordinal = 0;
    peer_says(&p, asked, WIRE_BLOCK, &b, sizeof b, request, bytes, BLOCK / 2);
    EXPECT_EQ_U64(stats().late_replies - late, 8);
    peer_says(&p, asked, WIRE_BLOCK, &b, sizeof b, request, bytes, BLOCK);
    EXPECT(completed(&s) && s == STATUS_OK);
    client_close();
}

TEST(a_get_that_cannot_be_sent_is_sent_when_the_connection_takes_it)
{
    open_with(2, 1);
    all_ready();
    p.full = true;
    (void)get(id_of(1, 0), KV_DEMAND, UINT64_C(1000) * MS);
    EXPECT_EQ_U64(client->asks_used, 0);
    p.full = false;
    kv_client_poll(client);
    EXPECT_EQ_U64(peer_count(&p, 0, WIRE_GET, 0), 1);
    /* The node was full, not lost: it still is the first choice, and nothing failed over. */
    EXPECT_EQ_U64(stats().failed_over, 0);
    const placement *home = client_place(client, id_of(1, 0).context, 0);
    EXPECT(node_behind(peer_last(&p, 0, WIRE_GET, 0)->to) == home->rank[0]);
    client_close();
}

/* ---- maps ------------------------------------------------------------------------------------ */

TEST(a_newer_map_lets_what_failed_be_tried_again_and_an_older_one_changes_nothing)
{
    open_with(3, 2);
    all_ready();
    (void)put(id_of(1, 0), UINT64_C(5000) * MS);
    uint32_t from = p.count;
    /* Both nodes asked refuse for the time being; the third takes it. */
    for (uint32_t i = 0; i < 2; i++) {
        const peer_sent *w = &p.sent[from - 1 - i];
        EXPECT(w->kind == WIRE_PUT);
        result(w->to, WIRE_PUT_DONE, request_of(w), STATUS_FENCED, 0);
    }
    kv_client_poll(client);
    EXPECT_EQ_U64(peer_count(&p, 0, WIRE_PUT, from), 1);
    from = p.count;
    run(50 * MS);
    EXPECT_EQ_U64(peer_count(&p, 0, WIRE_PUT, from), 0);
    cluster_map map = map_of(EPOCH, 3, 2);
    map_say(1, &map);
    kv_client_poll(client);
    EXPECT_EQ_U64(peer_count(&p, 0, WIRE_PUT, from), 0);
    map.epoch = EPOCH + 1;
    map_say(1, &map);
    kv_client_poll(client);
    EXPECT_EQ_U64(client->cluster.map.epoch, EPOCH + 1);
    EXPECT_EQ_U64(peer_count(&p, 0, WIRE_PUT, from), 1);
    client_close();
}

/* A put under the old map, a newer map, and then the answer of the first node to the old one. */
static uint32_t puts_after_answer(status s)
{
    open_with(2, 2);
    all_ready();
    (void)put(id_of(1, 0), UINT64_C(5000) * MS);
    uint64_t request = request_of(peer_last(&p, 1, WIRE_PUT, 0));
    cluster_map map = map_of(EPOCH + 1, 2, 2);
    map_say(2, &map);
    kv_client_poll(client);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_PUT, 0), 1);
    result(1, WIRE_PUT_DONE, request, s, 0);
    kv_client_poll(client);
    uint32_t count = peer_count(&p, 1, WIRE_PUT, 0);
    client_close();
    return count;
}

TEST(a_put_fenced_for_its_old_map_is_sent_again_under_the_new_one)
{
    EXPECT_EQ_U64(puts_after_answer(STATUS_FENCED), 2);
    EXPECT_EQ_U64(puts_after_answer(STATUS_NO_SPACE), 1);
}

TEST(an_acknowledgement_outlives_a_map_that_keeps_its_node)
{
    open_with(2, 2);
    all_ready();
    (void)put(id_of(1, 0), UINT64_C(5000) * MS);
    result(1, WIRE_PUT_DONE, request_of(peer_last(&p, 1, WIRE_PUT, 0)), STATUS_OK, 0);
    cluster_map map = map_of(EPOCH + 1, 2, 2);
    map_say(2, &map);
    kv_client_poll(client);
    EXPECT_EQ_U64(peer_count(&p, 0, WIRE_PUT, 0), 2);
    result(2, WIRE_PUT_DONE, request_of(peer_last(&p, 2, WIRE_PUT, 0)), STATUS_OK, 0);
    status s;
    EXPECT(completed(&s) && s == STATUS_OK);
    client_close();
}

TEST(a_get_that_every_node_answered_is_asked_anew_under_a_newer_map)
{
    open_with(2, 1);
    all_ready();
    (void)get(id_of(1, 0), KV_DEMAND, UINT64_C(1000) * MS);
    const peer_sent *g = peer_last(&p, 0, WIRE_GET, 0);
    kv_peer first = g->to;
    result(first, WIRE_BUSY, request_of(g), STATUS_BUSY, 500 * MS);
    kv_client_poll(client);
    g = peer_last(&p, 0, WIRE_GET, 0);
    result(g->to, WIRE_BUSY, request_of(g), STATUS_BUSY, 500 * MS);
    kv_client_poll(client);
    client_block *b = &client->blocks[client->requests[0].first_block];
    EXPECT(b->state == BLOCK_WAIT_TIME && b->asks_open == 0);
    b->tried = 3;
    cluster_map map = map_of(EPOCH + 1, 2, 1);
    map_say(1, &map);
    EXPECT_EQ_U64(b->tried, 0);
    client_close();
}

TEST(a_node_keeps_its_number_while_its_name_and_address_stay)
{
    open_with(3, 1);
    all_ready();
    uint64_t was = client->node[2].peer;
    cluster_map map = map_of(EPOCH + 1, 3, 1);
    map.node[0] = map.node[2]; /* n2 comes first now, n0 is gone, n1 moved elsewhere */
    map.node_count = 2;
    snprintf(map.node[1].data, sizeof map.node[1].data, "test:7");
    map_say(3, &map);
    EXPECT(client->node[2].peer == was && client->node[2].state == NODE_READY);
    EXPECT_EQ_STR(client->node[2].name, "n2");
    EXPECT(client->node[0].state == NODE_OUT);
    EXPECT_EQ_U64(client->number_of[0], 2);
    EXPECT_EQ_U64(client->nodes_alive, 2);
    EXPECT_EQ_U64(client->domains_alive, 2);
    EXPECT_EQ_U64(p.hang_ups, 2); /* n0, and n1 at its old address */
    client_close();
}

TEST(two_nodes_of_one_domain_count_once)
{
    open_with(3, 2);
    all_ready();
    cluster_map map = map_of(EPOCH + 1, 3, 2);
    memcpy(map.node[1].domain, map.node[0].domain, sizeof map.node[0].domain);
    map_say(1, &map);
    EXPECT_EQ_U64(client->domains_alive, 2);
    (void)put(id_of(++next_context, 0), UINT64_C(1000) * MS);
    EXPECT_EQ_U64(peer_count(&p, 0, WIRE_PUT, 0), 2);
    EXPECT_EQ_U64(peer_count(&p, peer_of(2), WIRE_PUT, 0), 1); /* the only one of its domain */
    client_close();
}

TEST(tables_hold_twice_what_credits_allow)
{
    open_with(1, 1);
    uint64_t credits = 0;
    for (uint32_t k = 0; k < KV_CLASSES; k++)
        credits += config.inflight_max[k];
    uint64_t wanted = 2 * credits < 4096 ? 2 * credits : 4096;
    EXPECT(client->ask_mask + UINT64_C(1) >= wanted && client->ask_mask < 2 * wanted + 256);
    client_close();
}

TEST_MAIN()
