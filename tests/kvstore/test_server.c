/* A node and clients played by hand, frame by frame: greetings, times, maps, queues, counters. */
#include "kvstore/server.h"
#include "tests/kvstore/peer.h"

enum { MS = 1000 * 1000, BLOCK = 8192, LAYOUT = 9, TENANT = 7, EPOCH = 3 };

static peer p;
static kv_server *node;
static arena *memory;
static uint8_t bytes[BLOCK];

static void node_open_with(const kv_server_config *want)
{
    peer_init(&p);
    memory = arena_create("test");
    kv_server_config config = *want;
    config.memory = memory;
    config.transport = &p.base;
    config.clock = p.clock;
    config.seed = test_seed();
    snprintf(config.name, sizeof config.name, "n0");
    snprintf(config.listen, sizeof config.listen, "test:0");
    if (config.memory_bytes == 0) config.memory_bytes = 16 * BLOCK;
    if (config.connections_max == 0) config.connections_max = 4;
    config.lease_grace_ns = 100 * MS;
    EXPECT(kv_server_create(&config, &node) == STATUS_OK);
    arena_seal(memory);
}

static void node_open(void)
{
    node_open_with(&(kv_server_config){.epoch = EPOCH});
}

static void node_close(void)
{
    kv_server_destroy(node);
    EXPECT(node->tier.self == NULL); /* its memory is the system's again */
    kv_server_destroy(NULL);
    arena_destroy(memory);
}

static kv_server_stats stats(void)
{
    kv_server_stats s;
    kv_server_stats_read(node, &s);
    return s;
}

/* What a node answered to a HELLO. */
static status hello(kv_peer who, uint32_t layout, uint32_t tenant, uint64_t epoch, uint64_t owner)
{
    wire_hello h = {.owner = owner,
                    .epoch = epoch,
                    .lease_ns = UINT64_C(1000) * MS,
                    .layout = layout,
                    .tenant = tenant,
                    .block_bytes = BLOCK};
    uint32_t from = p.count;
    peer_says(&p, who, WIRE_HELLO, &h, sizeof h, 0, NULL, 0);
    const peer_sent *s = peer_last(&p, who, WIRE_WELCOME, from);
    EXPECT(s != NULL);
    wire_welcome w;
    memcpy(&w, s->head, sizeof w);
    return (status)w.status;
}

static void client_open(kv_peer who)
{
    peer_opened(&p, who);
    EXPECT(hello(who, LAYOUT, TENANT, EPOCH, who + 100) == STATUS_OK);
}

static block_id id_of(uint64_t context, uint32_t block)
{
    return (block_id){.context = {context, 1}, .layout = LAYOUT, .tenant = TENANT, .block = block};
}

static void put_say(kv_peer who, uint64_t request, block_id id, uint64_t digest, uint64_t epoch)
{
    wire_put put = {.epoch = epoch, .id = id, .digest = digest, .class = KV_WRITE_BACK};
    peer_says(&p, who, WIRE_PUT, &put, sizeof put, request, bytes, BLOCK);
}

static wire_result answer_to(kv_peer who, wire_kind kind, uint64_t request)
{
    wire_result r = {.status = STATUS_PENDING};
    for (uint32_t i = 0; i < p.count; i++) {
        if (p.sent[i].to != who || p.sent[i].kind != kind) continue;
        wire_head h;
        memcpy(&h, p.sent[i].head, sizeof h);
        if (h.request == request) memcpy(&r, p.sent[i].head, sizeof r);
    }
    return r;
}

static wire_result put(kv_peer who, uint64_t request, block_id id)
{
    put_say(who, request, id, block_digest(&id, bytes, BLOCK), EPOCH);
    kv_server_poll(node);
    return answer_to(who, WIRE_PUT_DONE, request);
}

static void get_say(kv_peer who, uint64_t request, block_id id, kv_class class)
{
    static wire_get_list list;
    static uint8_t body[WIRE_GET_BODY_MAX];
    list.count = 1;
    list.id[0] = id;
    list.slot[0] = 5;
    wire_get get = {.epoch = EPOCH, .remaining_ns = UINT64_C(1000) * MS, .class = class};
    uint32_t n = wire_encode_get(&list, &get, body);
    peer_says(&p, who, WIRE_GET, &get, sizeof get, request, body, n);
}

static bool done_to(kv_peer who, uint64_t request, status *out_status)
{
    for (uint32_t i = 0; i < p.count; i++) {
        wire_done d;
        memcpy(&d, p.sent[i].head, sizeof d);
        if (p.sent[i].to != who || p.sent[i].kind != WIRE_DONE || d.head.request != request)
            continue;
        *out_status = (status)d.block_status[0];
        return true;
    }
    return false;
}

/* ---- connections ----------------------------------------------------------------------------- */

TEST(the_first_word_is_hello_or_the_connection_ends)
{
    node_open();
    peer_opened(&p, 1);
    get_say(1, 7, id_of(1, 0), KV_DEMAND);
    EXPECT(p.hang_ups == 1 && p.hung_up == 1);
    kv_server_poll(node);
    EXPECT_EQ_U64(p.count, 0);
    node_close();
}

TEST(another_version_is_refused_by_name_and_nonsense_is_not_answered)
{
    node_open();
    peer_opened(&p, 1);
    wire_hello h = {.owner = 5};
    wire_head_set(&h.head, WIRE_HELLO, 0, 0);
    kv_message m = {&h, sizeof h - 8, NULL, 0, 0}; /* ours, but cut short */
    p.base.events->message(p.base.owner, 1, &m);
    EXPECT(p.hang_ups == 1 && p.count == 0);
    h.head.version++;
    p.base.events->message(p.base.owner, 1, &m);
    EXPECT(p.hang_ups == 2 && p.count == 1);
    wire_welcome w;
    memcpy(&w, p.sent[0].head, sizeof w);
    EXPECT(w.head.kind == WIRE_WELCOME && w.status == STATUS_REFUSED);
    h.head.kind = WIRE_LEASE; /* only HELLO is the same in every version */
    p.base.events->message(p.base.owner, 1, &m);
    EXPECT(p.hang_ups == 3 && p.count == 1);
    node_close();
}

TEST(who_says_nothing_for_five_seconds_is_hung_up_on)
{
    node_open();
    peer_opened(&p, 1);
    client_open(2);
    p.now_ns += UINT64_C(4900) * MS;
    kv_server_poll(node);
    EXPECT_EQ_U64(p.hang_ups, 0);
    p.now_ns += UINT64_C(200) * MS;
    kv_server_poll(node);
    EXPECT_EQ_U64(p.hang_ups, 1);
    EXPECT(p.hung_up == 1);
    node_close();
}

TEST(who_is_silent_for_its_lease_and_grace_is_hung_up_on_and_who_renews_is_not)
{
    node_open();
    client_open(1);
    client_open(2);
    wire_hello patient = {.owner = 300,
                          .epoch = EPOCH,
                          .lease_ns = UINT64_C(60000) * MS,
                          .layout = LAYOUT,
                          .tenant = TENANT,
                          .block_bytes = BLOCK};
    peer_opened(&p, 3);
    peer_says(&p, 3, WIRE_HELLO, &patient, sizeof patient, 0, NULL, 0);
    wire_lease lease = {.epoch = EPOCH, .lease_ns = UINT64_C(1000) * MS};
    for (uint32_t i = 0; i < 49; i++) {
        peer_says(&p, 2, WIRE_LEASE, &lease, sizeof lease, 0, NULL, 0);
        kv_server_poll(node);
        p.now_ns += UINT64_C(100) * MS;
    }
    kv_server_poll(node);
    EXPECT_EQ_U64(p.hang_ups, 0); /* five seconds at least, however short the lease */
    peer_says(&p, 2, WIRE_LEASE, &lease, sizeof lease, 0, NULL, 0);
    p.now_ns += UINT64_C(200) * MS;
    kv_server_poll(node);
    EXPECT(p.hang_ups == 1 && p.hung_up == 1);
    p.now_ns += UINT64_C(54000) * MS;
    peer_closed(&p, 1);
    peer_says(&p, 2, WIRE_LEASE, &lease, sizeof lease, 0, NULL, 0);
    kv_server_poll(node);
    EXPECT_EQ_U64(p.hang_ups, 1);
    p.now_ns += UINT64_C(950) * MS; /* the lease of 60 s is over, its grace is not */
    peer_says(&p, 2, WIRE_LEASE, &lease, sizeof lease, 0, NULL, 0);
    kv_server_poll(node);
    EXPECT_EQ_U64(p.hang_ups, 1);
    p.now_ns += UINT64_C(550) * MS;
    peer_says(&p, 2, WIRE_LEASE, &lease, sizeof lease, 0, NULL, 0);
    kv_server_poll(node);
    EXPECT(p.hang_ups == 2 && p.hung_up == 3);
    node_close();
}

TEST(one_more_connection_than_there_are_places_is_hung_up_on)
{
    node_open();
    for (kv_peer who = 1; who <= 4; who++)
        peer_opened(&p, who);
    EXPECT_EQ_U64(p.hang_ups, 0);
    peer_opened(&p, 5);
    EXPECT(p.hang_ups == 1 && p.hung_up == 5);
    EXPECT_EQ_U64(stats().connections, 4);
    peer_closed(&p, 2);
    EXPECT_EQ_U64(stats().connections, 3);
    peer_opened(&p, 6);
    EXPECT_EQ_U64(p.hang_ups, 1);
    EXPECT_EQ_U64(stats().connections_total, 5);
    node_close();
}

TEST(a_greeted_connection_does_not_change_its_owner_or_tenant)
{
    node_open();
    client_open(1);
    EXPECT(hello(1, LAYOUT, TENANT, EPOCH, 101) == STATUS_OK);
    EXPECT(hello(1, LAYOUT, TENANT, EPOCH, 999) == STATUS_REFUSED);
    EXPECT(hello(1, LAYOUT, TENANT + 1, EPOCH, 101) == STATUS_REFUSED);
    node_close();
}

TEST(another_layout_is_taken_only_by_a_node_that_nobody_uses)
{
    node_open();
    client_open(1);
    peer_opened(&p, 2);
    EXPECT(hello(2, LAYOUT + 1, TENANT, EPOCH, 5) == STATUS_REFUSED);
    EXPECT(put(1, 1, id_of(1, 0)).status == STATUS_OK);
    peer_closed(&p, 1);
    EXPECT(hello(2, LAYOUT + 1, TENANT, EPOCH, 5) == STATUS_REFUSED); /* a block is left */
    p.now_ns += UINT64_C(1200) * MS;                                  /* lease and grace end */
    kv_server_poll(node);
    kv_server_poll(node);
    EXPECT_EQ_U64(stats().leases_expired, 1);
    EXPECT(hello(2, LAYOUT + 1, TENANT, EPOCH, 5) == STATUS_OK);
    EXPECT_EQ_U64(stats().layout, LAYOUT + 1);
    node_close();
}

TEST(a_lease_that_is_renewed_keeps_what_one_that_is_not_would_lose)
{
    node_open();
    client_open(1);
    EXPECT(put(1, 1, id_of(1, 0)).status == STATUS_OK);
    p.now_ns += UINT64_C(900) * MS;
    wire_lease lease = {.epoch = EPOCH, .lease_ns = UINT64_C(1000) * MS};
    peer_says(&p, 1, WIRE_LEASE, &lease, sizeof lease, 0, NULL, 0);
    p.now_ns += UINT64_C(900) * MS;
    kv_server_poll(node);
    EXPECT_EQ_U64(stats().contexts, 1);
    p.now_ns += UINT64_C(300) * MS;
    kv_server_poll(node);
    EXPECT_EQ_U64(stats().contexts, 0);
    node_close();
}

/* ---- epochs and maps ------------------------------------------------------------------------- */

static void map_say(kv_peer who, uint64_t epoch, const char *name, uint32_t alive)
{
    wire_node row = {.data = "a:1", .control = "a:2", .domain = "d", .weight = 1, .alive = alive};
    snprintf(row.name, sizeof row.name, "%s", name);
    wire_map map = {.epoch = epoch, .replicas = 1, .node_count = 1};
    peer_says(&p, who, WIRE_MAP, &map, sizeof map, 0, &row, sizeof row);
}

TEST(a_node_obeys_newer_maps_and_refuses_puts_while_it_is_out)
{
    node_open();
    client_open(1);
    map_say(1, EPOCH, "other", 1); /* the rows of the epoch that it only knew by number */
    EXPECT_EQ_U64(stats().epoch, EPOCH);
    EXPECT(put(1, 1, id_of(1, 0)).status == STATUS_FENCED);
    map_say(1, EPOCH, "n0", 1); /* rows it knows already: not again */
    EXPECT(put(1, 2, id_of(1, 0)).status == STATUS_FENCED);
    map_say(1, EPOCH - 1, "n0", 1);
    EXPECT(put(1, 3, id_of(1, 0)).status == STATUS_FENCED);
    map_say(1, EPOCH + 1, "n0", 0);
    EXPECT_EQ_U64(stats().epoch, EPOCH + 1);
    put_say(1, 4, id_of(1, 0), 5, EPOCH);
    kv_server_poll(node);
    EXPECT(answer_to(1, WIRE_PUT_DONE, 4).status == STATUS_FENCED);
    map_say(1, EPOCH + 2, "n0", 1);
    block_id id = id_of(1, 0);
    put_say(1, 5, id, block_digest(&id, bytes, BLOCK), EPOCH + 2);
    kv_server_poll(node);
    EXPECT(answer_to(1, WIRE_PUT_DONE, 5).status == STATUS_OK);
    node_close();
}

TEST(a_node_that_knows_an_epoch_by_number_takes_no_older_map)
{
    node_open();
    client_open(1);
    map_say(1, EPOCH - 1, "other", 1);
    EXPECT_EQ_U64(stats().epoch, EPOCH);
    EXPECT(put(1, 1, id_of(1, 0)).status == STATUS_OK);
    node_close();
}

TEST(an_older_epoch_is_fenced_and_told_the_map)
{
    node_open();
    client_open(1);
    map_say(1, EPOCH + 5, "n0", 1);
    uint32_t from = p.count;
    peer_opened(&p, 2);
    EXPECT(hello(2, LAYOUT, TENANT, EPOCH + 4, 5) == STATUS_FENCED);
    EXPECT_EQ_U64(peer_count(&p, 2, WIRE_MAP, from), 1);
    EXPECT(hello(2, LAYOUT, TENANT, EPOCH + 5, 5) == STATUS_OK);
    EXPECT_EQ_U64(peer_count(&p, 2, WIRE_MAP, from), 1);
    from = p.count;
    wire_lease lease = {.epoch = EPOCH, .lease_ns = UINT64_C(1000) * MS};
    peer_says(&p, 2, WIRE_LEASE, &lease, sizeof lease, 0, NULL, 0);
    EXPECT_EQ_U64(peer_count(&p, 2, WIRE_MAP, from), 1);
    wire_drop drop = {.epoch = EPOCH, .context = {1, 1}};
    peer_says(&p, 2, WIRE_DROP, &drop, sizeof drop, 6, NULL, 0);
    get_say(2, 7, id_of(1, 0), KV_DEMAND);
    kv_server_poll(node);
    EXPECT(answer_to(2, WIRE_DROP_DONE, 6).status == STATUS_FENCED);
    status s;
    EXPECT(done_to(2, 7, &s) && s == STATUS_FENCED);
    node_close();
}

TEST(a_map_older_than_the_epoch_that_a_node_starts_with_is_not_taken)
{
    cluster_map map = {.epoch = 5, .replicas = 1};
    node_open_with(&(kv_server_config){.epoch = 9, .map = &map});
    EXPECT_EQ_U64(stats().epoch, 9);
    node_close();
    map.epoch = 9;
    map.node_count = 1;
    node_open_with(&(kv_server_config){.epoch = 9, .map = &map});
    peer_opened(&p, 1);
    EXPECT(hello(1, LAYOUT, TENANT, 8, 5) == STATUS_FENCED);
    EXPECT_EQ_U64(peer_count(&p, 1, WIRE_MAP, 0), 1);
    node_close();
}

/* ---- queues ---------------------------------------------------------------------------------- */

TEST(a_full_pool_sheds_the_newest_prefetch_that_has_not_begun)
{
    enum { HALF = SERVER_JOBS_MAX / 2 };
    node_open();
    client_open(1);
    p.full = true;
    for (uint32_t i = 0; i < HALF; i++)
        get_say(1, 1000 + i, id_of(1, i), KV_PREFETCH);
    get_say(1, 999, id_of(1, 0), KV_PREFETCH); /* more than PREFETCH may have */
    EXPECT_EQ_U64(stats().class[KV_PREFETCH].refused_busy, 1);
    for (uint32_t i = 0; i < HALF; i++)
        get_say(1, 2000 + i, id_of(1, i), KV_DEMAND);
    EXPECT_EQ_U64(stats().class[KV_PREFETCH].shed, 0);
    put_say(1, 2999, id_of(1, 0), 5, EPOCH); /* not for a write */
    EXPECT_EQ_U64(stats().class[KV_WRITE_BACK].refused_busy, 1);
    EXPECT_EQ_U64(stats().class[KV_PREFETCH].shed, 0);
    p.full = false;
    get_say(1, 3000, id_of(1, 0), KV_DEMAND);
    EXPECT_EQ_U64(stats().class[KV_PREFETCH].shed, 1);
    EXPECT(answer_to(1, WIRE_BUSY, 1000 + HALF - 1).status == STATUS_BUSY);
    EXPECT(answer_to(1, WIRE_BUSY, 1000 + HALF - 1).hint_ns > 0);
    EXPECT(stats().class[KV_DEMAND].refused_busy == 0);
    for (uint32_t n = 0; n < 20; n++)
        kv_server_poll(node);
    status s;
    EXPECT(done_to(1, 3000, &s) && s == STATUS_NOT_FOUND);
    EXPECT(done_to(1, 1000, &s) && !done_to(1, 1000 + HALF - 1, &s));
    EXPECT(kv_server_idle(node));
    node_close();
}

TEST(demand_is_answered_before_writes_and_writes_before_prefetch)
{
    node_open();
    client_open(1);
    get_say(1, 1, id_of(1, 0), KV_PREFETCH);
    put_say(1, 2, id_of(1, 0), 5, EPOCH);
    get_say(1, 3, id_of(1, 0), KV_DEMAND);
    uint32_t from = p.count;
    kv_server_poll(node);
    static const uint64_t order[] = {3, 2, 1};
    for (uint32_t i = 0; i < 3; i++) {
        wire_head h;
        memcpy(&h, p.sent[from + i].head, sizeof h);
        EXPECT_EQ_U64(h.request, order[i]);
    }
    node_close();
}

TEST(an_answer_that_is_delayed_by_a_fault_comes_then_and_not_before)
{
    node_open_with(&(kv_server_config){.epoch = EPOCH, .faults = {.delay_ns = 20 * MS}});
    client_open(1);
    status s;
    EXPECT(server_jobs_next(node) == UINT64_MAX);
    uint64_t start = p.now_ns;
    get_say(1, 1, id_of(1, 0), KV_PREFETCH);
    p.now_ns += 5 * MS;
    get_say(1, 2, id_of(1, 0), KV_DEMAND);
    EXPECT_EQ_U64(server_jobs_next(node), start + 20 * MS);
    kv_server_poll(node);
    EXPECT(!done_to(1, 1, &s) && !done_to(1, 2, &s));
    kv_server_wait(node, -1, UINT64_MAX);
    EXPECT_EQ_U64(p.waited_ns, 15 * MS);
    p.now_ns = start + 20 * MS;
    kv_server_poll(node);
    EXPECT(done_to(1, 1, &s) && !done_to(1, 2, &s));
    p.now_ns += 5 * MS;
    kv_server_poll(node);
    EXPECT(done_to(1, 2, &s));
    node_close();
}

TEST(without_a_delay_an_answer_waits_for_nothing_and_sleep_ends_with_the_next_look_at_leases)
{
    node_open();
    client_open(1);
    status s;
    get_say(1, 1, id_of(1, 0), KV_DEMAND);
    EXPECT(server_jobs_next(node) == UINT64_MAX);
    kv_server_poll(node);
    EXPECT(done_to(1, 1, &s));
    kv_server_wait(node, -1, UINT64_MAX); /* the last poll did something: no sleep */
    EXPECT_EQ_U64(p.waited_ns, 0);
    kv_server_poll(node);
    kv_server_wait(node, -1, UINT64_MAX);
    EXPECT_EQ_U64(p.waited_ns, 100 * MS);
    kv_server_wait(node, -1, p.now_ns + 7 * MS);
    EXPECT_EQ_U64(p.waited_ns, 7 * MS);
    node_close();
}

TEST(a_full_connection_loses_no_answer_before_fifty_ms_on_a_clock_that_goes_on_within_a_poll)
{
    node_open();
    client_open(1);
    EXPECT(put(1, 1, id_of(1, 0)).status == STATUS_OK);
    p.tick_ns = 100;
    p.full = true;
    get_say(1, 2, id_of(1, 0), KV_DEMAND);
    kv_server_poll(node);
    kv_server_poll(node);
    EXPECT(!kv_server_idle(node));
    p.now_ns += 49 * MS;
    kv_server_poll(node);
    EXPECT(!kv_server_idle(node));
    p.full = false;
    kv_server_poll(node);
    status s;
    EXPECT(done_to(1, 2, &s) && s == STATUS_OK);
    p.full = true;
    get_say(1, 3, id_of(1, 0), KV_DEMAND);
    kv_server_poll(node);
    p.now_ns += 50 * MS;
    kv_server_poll(node);
    EXPECT(kv_server_idle(node) && !done_to(1, 3, &s));
    node_close();
}

TEST(a_get_after_its_time_is_answered_deadline)
{
    node_open();
    client_open(1);
    EXPECT(put(1, 1, id_of(1, 0)).status == STATUS_OK);
    p.full = true;
    get_say(1, 2, id_of(1, 0), KV_DEMAND);
    kv_server_poll(node);
    p.full = false;
    node->conn[0].full_since_ns = 0;
    p.now_ns += UINT64_C(1000) * MS;
    kv_server_poll(node);
    status s;
    EXPECT(done_to(1, 2, &s) && s == STATUS_DEADLINE);
    node_close();
}

/* ---- counters and hints ---------------------------------------------------------------------- */

TEST(puts_and_drops_are_counted_by_how_they_ended_and_a_full_store_hints)
{
    node_open();
    client_open(1);
    for (uint32_t i = 0; i < 16; i++) {
        wire_result r = put(1, 10 + i, id_of(1, i));
        EXPECT(r.status == STATUS_OK && r.hint_ns == 0);
    }
    wire_result full = put(1, 40, id_of(1, 16));
    EXPECT(full.status == STATUS_NO_SPACE && full.hint_ns == 100 * MS);
    EXPECT_EQ_U64(stats().class[KV_WRITE_BACK].done_ok, 16);
    EXPECT_EQ_U64(stats().class[KV_WRITE_BACK].done_failed, 1);
    EXPECT_EQ_U64(stats().class[KV_WRITE_BACK].blocks_ok, 16);
    wire_drop drop = {.epoch = EPOCH, .context = {1, 1}};
    peer_says(&p, 1, WIRE_DROP, &drop, sizeof drop, 50, NULL, 0);
    peer_says(&p, 1, WIRE_DROP, &drop, sizeof drop, 51, NULL, 0);
    peer_says(&p, 1, WIRE_DROP, &drop, sizeof drop, 52, NULL, 0);
    kv_server_poll(node);
    EXPECT(answer_to(1, WIRE_DROP_DONE, 50).status == STATUS_OK);
    EXPECT(answer_to(1, WIRE_DROP_DONE, 51).status == STATUS_NOT_FOUND);
    EXPECT_EQ_U64(stats().contexts_dropped, 1);
    EXPECT_EQ_U64(stats().dropped_blocks, 16);
    EXPECT(put(1, 60, id_of(1, 3)).status == STATUS_STALE);
    EXPECT_EQ_U64(stats().stale, 1);
    EXPECT(put(1, 61, id_of(2, 0)).status == STATUS_OK);
    EXPECT_EQ_U64(stats().stale, 1);
    EXPECT_EQ_U64(stats().class[KV_WRITE_BACK].done_failed, 2);
    node_close();
}

TEST(a_put_of_wrong_bytes_size_layout_or_tenant_is_not_kept)
{
    node_open();
    client_open(1);
    put_say(1, 1, id_of(1, 0), 12345, EPOCH);
    kv_server_poll(node);
    EXPECT(answer_to(1, WIRE_PUT_DONE, 1).status == STATUS_CORRUPT);
    EXPECT_EQ_U64(stats().corrupt, 1);
    block_id id = id_of(1, 0);
    id.layout++;
    EXPECT(put(1, 2, id).status == STATUS_REFUSED);
    id = id_of(1, 0);
    id.tenant++;
    EXPECT(put(1, 3, id).status == STATUS_REFUSED);
    id = id_of(1, 0);
    wire_put small = {.epoch = EPOCH, .id = id, .class = KV_WRITE_BACK};
    peer_says(&p, 1, WIRE_PUT, &small, sizeof small, 4, bytes, BLOCK - 64);
    kv_server_poll(node);
    EXPECT(answer_to(1, WIRE_PUT_DONE, 4).status == STATUS_REFUSED);
    EXPECT_EQ_U64(stats().slots_used + stats().slots_reserved, 0);
    EXPECT_EQ_U64(p.hang_ups, 0);
    wire_put demand = {.epoch = EPOCH, .id = id, .class = KV_DEMAND};
    peer_says(&p, 1, WIRE_PUT, &demand, sizeof demand, 5, bytes, BLOCK);
    EXPECT_EQ_U64(p.hang_ups, 1); /* a put is WRITE_BACK or REPAIR */
    node_close();
}

static uint8_t *put_land(kv_peer who, uint64_t request, block_id id, uint64_t epoch)
{
    wire_put w = {.epoch = epoch,
                  .id = id,
                  .digest = block_digest(&id, bytes, BLOCK),
                  .class = KV_WRITE_BACK};
    return peer_land(&p, who, WIRE_PUT, &w, sizeof w, request, BLOCK);
}

/* The rest of what put_land began: the body stands at `at`. */
static status put_landed(kv_peer who, uint64_t request, block_id id, const uint8_t *at)
{
    wire_put w = {.epoch = EPOCH,
                  .id = id,
                  .digest = block_digest(&id, bytes, BLOCK),
                  .class = KV_WRITE_BACK};
    peer_says(&p, who, WIRE_PUT, &w, sizeof w, request, at, BLOCK);
    kv_server_poll(node);
    return (status)answer_to(who, WIRE_PUT_DONE, request).status;
}

TEST(a_put_that_is_read_into_its_slot_is_verified_there_and_its_slot_never_leaks)
{
    node_open();
    client_open(1);
    client_open(2);
    memset(bytes, 3, sizeof bytes);
    uint8_t *at = put_land(1, 1, id_of(1, 0), EPOCH);
    EXPECT(at != NULL && put_land(1, 1, id_of(1, 0), EPOCH) == at); /* asked again: the same */
    EXPECT(stats().slots_reserved == 1 && stats().slots_used == 0);
    memcpy(at, bytes, BLOCK);
    EXPECT(put_landed(1, 1, id_of(1, 0), at) == STATUS_OK);
    EXPECT(stats().slots_reserved == 0 && stats().slots_used == 1);
    EXPECT(put_land(1, 2, id_of(1, 0), EPOCH) == NULL); /* it is here */

    at = put_land(1, 3, id_of(1, 1), EPOCH);
    memset(at, 4, BLOCK); /* not what the digest says */
    EXPECT(put_landed(1, 3, id_of(1, 1), at) == STATUS_CORRUPT);
    EXPECT(stats().slots_reserved == 0 && stats().slots_used == 1);

    at = put_land(1, 4, id_of(1, 2), EPOCH); /* another client is faster */
    memcpy(at, bytes, BLOCK);
    EXPECT(put(2, 5, id_of(1, 2)).status == STATUS_OK);
    EXPECT(put_landed(1, 4, id_of(1, 2), at) == STATUS_OK);
    EXPECT(stats().slots_reserved == 0 && stats().slots_used == 2);

    EXPECT(put_land(1, 6, id_of(1, 3), EPOCH) != NULL);
    EXPECT(put_land(1, 7, id_of(1, 4), EPOCH) != NULL); /* 6 never came whole */
    EXPECT(stats().slots_reserved == 1);
    peer_closed(&p, 1); /* nor did 7 */
    EXPECT(stats().slots_reserved == 0 && stats().slots_used == 2);
    node_close();
}

TEST(a_put_that_is_read_into_the_slot_of_one_that_never_came_is_kept_as_itself)
{
    status s;
    node_open();
    client_open(1);
    memset(bytes, 5, sizeof bytes);
    EXPECT(put_land(1, 1, id_of(1, 0), EPOCH) != NULL);
    uint8_t *at = put_land(1, 2, id_of(1, 1), EPOCH); /* 1 never came whole */
    EXPECT(at != NULL);
    memcpy(at, bytes, BLOCK);
    EXPECT(put_landed(1, 2, id_of(1, 1), at) == STATUS_OK);
    get_say(1, 3, id_of(1, 0), KV_DEMAND);
    get_say(1, 4, id_of(1, 1), KV_DEMAND);
    kv_server_poll(node);
    EXPECT(done_to(1, 3, &s) && s == STATUS_NOT_FOUND);
    EXPECT(done_to(1, 4, &s) && s == STATUS_OK);
    node_close();
}

TEST(a_put_that_will_be_refused_is_not_read_into_a_slot)
{
    node_open();
    client_open(1);
    block_id foreign = id_of(1, 0), tenant = id_of(1, 0);
    foreign.layout++;
    tenant.tenant++;
    EXPECT(put_land(1, 1, foreign, EPOCH) == NULL);
    EXPECT(put_land(1, 2, tenant, EPOCH) == NULL);
    EXPECT(put_land(1, 3, id_of(1, 0), EPOCH - 1) == NULL);
    peer_opened(&p, 2); /* has not said HELLO */
    EXPECT(put_land(2, 4, id_of(1, 0), EPOCH) == NULL);
    for (uint32_t i = 0; i < 16; i++)
        EXPECT(put(1, 10 + i, id_of(1, i)).status == STATUS_OK);
    EXPECT(put_land(1, 5, id_of(1, 16), EPOCH) == NULL); /* full */
    kv_server_drain(node);
    EXPECT(put_land(1, 6, id_of(1, 17), EPOCH) == NULL);
    EXPECT_EQ_U64(stats().slots_reserved, 0);
    node_close();
}

TEST(the_oldest_operation_is_told_by_its_age)
{
    node_open();
    client_open(1);
    EXPECT_EQ_U64(stats().oldest_operation_ns, 0);
    p.full = true;
    get_say(1, 1, id_of(1, 0), KV_PREFETCH);
    p.now_ns += 3 * MS;
    get_say(1, 2, id_of(1, 0), KV_DEMAND);
    p.now_ns += 4 * MS;
    EXPECT_EQ_U64(stats().oldest_operation_ns, 7 * MS);
    EXPECT(!kv_server_idle(node));
    peer_closed(&p, 1);
    EXPECT(kv_server_idle(node));
    EXPECT_EQ_U64(stats().oldest_operation_ns, 0);
    node_close();
}

TEST_MAIN()
