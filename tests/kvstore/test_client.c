/* What a client holds against slow nodes and changing maps: the patience of puts, maps without a
 * node alive, acknowledgements of nodes that are out, leases on full connections; and what a node
 * holds against clients that ask and never listen. */
#include <stdlib.h>

#include "kvstore/client.h"
#include "tests/kvstore/rig.h"

/* ---- somebody who tells nodes of a map ------------------------------------------------------- */

typedef struct teller {
    arena *memory;
    kv_transport *transport;
    kv_maps maps;
    const cluster_map *map;
    bool told;
} teller;

static void teller_opened(void *owner, kv_peer peer)
{
    teller *t = owner;
    kv_maps_send(&t->maps, t->transport, peer, t->map);
    t->told = true;
}

static void teller_message(void *owner, kv_peer peer, const kv_message *m)
{
    (void)owner, (void)peer, (void)m;
}

static void teller_sent(void *owner, kv_peer peer, uint64_t cookie)
{
    (void)peer;
    kv_maps_sent(&((teller *)owner)->maps, cookie);
}

static void teller_closed(void *owner, kv_peer peer, status why)
{
    (void)owner, (void)peer, (void)why;
}

static const kv_events teller_events = {teller_opened, teller_message, teller_sent, teller_closed,
                                        NULL};

/* Node i learns of the map, and nobody else. */
static void tell(rig *r, uint32_t i, const cluster_map *map)
{
    teller t = {.memory = arena_create("teller"), .map = map};
    kv_peer peer;
    kv_maps_init(&t.maps, t.memory);
    EXPECT(kv_transport_local_open(t.memory, r->hub, &t.transport) == STATUS_OK);
    kv_transport_bind(t.transport, &teller_events, &t);
    EXPECT(t.transport->ops->dial(t.transport, map->node[i].data, &peer) == STATUS_OK);
    kv_server_stats s = {.epoch = 0};
    for (uint32_t n = 0; n < 100 && s.epoch < map->epoch; n++) {
        (void)t.transport->ops->poll(t.transport);
        kv_server_poll(r->node[i].server);
        kv_server_stats_read(r->node[i].server, &s);
    }
    EXPECT(t.told);
    EXPECT_EQ_U64(s.epoch, map->epoch);
    (void)t.transport->ops->poll(t.transport);
    kv_transport_close(t.transport);
    arena_destroy(t.memory);
}

/* The rig's map, newer, with these nodes alive. */
static cluster_map map_of(const rig *r, uint64_t epoch, uint32_t alive_set)
{
    cluster_map map = r->config.map;
    map.epoch = epoch;
    for (uint32_t i = 0; i < map.node_count; i++)
        map.node[i].alive = (alive_set >> i & 1) != 0;
    return map;
}

static uint64_t used(rig *r, uint32_t i)
{
    kv_server_stats s;
    kv_server_stats_read(r->node[i].server, &s);
    return s.slots_used;
}

static kv_client_stats stats_of(rig *r)
{
    kv_client_stats s;
    kv_client_stats_read(r->client, &s);
    return s;
}

static void put_submit(rig *r, const block_id *id, uint64_t ns)
{
    uint8_t *bytes = malloc(r->block_bytes);
    kv_ticket ticket;
    CHECK(bytes != NULL);
    rig_fill(r, id, bytes);
    kv_put put = {*id, bytes, rig_digest(r, id), KV_WRITE_BACK, r->now_ns + ns};
    EXPECT(kv_put_submit(r->client, &put, &ticket) == STATUS_OK);
    free(bytes);
}

static status get_one(rig *r, const block_id *id)
{
    status s;
    (void)rig_get(r, id, 1, KV_DEMAND, &s);
    return s;
}

/* ---- patience -------------------------------------------------------------------------------- */

TEST(a_put_waits_for_a_slow_node_longer_than_a_get_does)
{
    rig *r = rig_create(&(rig_options){.nodes = 3, .replicas = 2});
    block_id id = rig_id(r, 1, 0);
    uint32_t first = rig_rank(r, &id, 0);
    kv_done done;
    r->node[first].paused = true;
    put_submit(r, &id, r->config.put_deadline_ns);
    rig_run(r, r->config.hedge_after_ns * 2 * CLIENT_LATE_FACTOR);
    r->node[first].paused = false;
    EXPECT(rig_next(r, RIG_MS, &done) && done.result == STATUS_OK);
    EXPECT_EQ_U64(done.hedged, 0);
    EXPECT_EQ_U64(used(r, first), 1);
    EXPECT_EQ_U64(used(r, rig_rank(r, &id, 2)), 0);
    EXPECT_EQ_U64(stats_of(r).nodes_suspect, 0);
    rig_destroy(r);
}

TEST(a_put_leaves_a_silent_node_while_most_of_its_time_is_left)
{
    rig *r = rig_create(&(rig_options){.nodes = 3, .replicas = 2});
    block_id id = rig_id(r, 1, 0);
    kv_done done;
    r->node[rig_rank(r, &id, 0)].paused = true;
    put_submit(r, &id, r->config.put_deadline_ns);
    uint64_t patience = r->config.put_deadline_ns / CLIENT_PUT_SHARE;
    EXPECT(!rig_next(r, patience - RIG_MS, &done));
    EXPECT(rig_next(r, 2 * RIG_MS, &done) && done.result == STATUS_OK);
    EXPECT_EQ_U64(used(r, rig_rank(r, &id, 2)), 1);
    /* The next put does not wait for it again. */
    block_id other = rig_id(r, 1, 8);
    uint64_t before = r->now_ns;
    EXPECT(rig_put(r, &other) == STATUS_OK);
    EXPECT(r->now_ns - before < RIG_MS);
    rig_destroy(r);
}

TEST(a_late_get_does_not_send_copies_to_another_node)
{
    rig *r = rig_create(&(rig_options){.nodes = 3, .replicas = 2});
    block_id id = rig_id(r, 1, 0), other = rig_id(r, 1, 8);
    uint32_t first = rig_rank(r, &id, 0);
    EXPECT(rig_put(r, &id) == STATUS_OK);
    r->node[first].paused = true;
    EXPECT(get_one(r, &id) == STATUS_OK);
    EXPECT_EQ_U64(stats_of(r).hedged, 1);
    EXPECT_EQ_U64(stats_of(r).nodes_suspect, 1);
    r->node[first].paused = false;
    EXPECT(rig_put(r, &other) == STATUS_OK);
    EXPECT_EQ_U64(used(r, first), 2);
    EXPECT_EQ_U64(used(r, rig_rank(r, &id, 2)), 0);
    rig_destroy(r);
}

/* ---- maps ------------------------------------------------------------------------------------ */

TEST(a_client_of_a_map_without_a_node_alive_hears_of_the_next_map)
{
    rig *r = rig_create(&(rig_options){.nodes = 3, .replicas = 2});
    block_id id = rig_id(r, 1, 0);
    EXPECT(rig_put(r, &id) == STATUS_OK);
    cluster_map none = map_of(r, 2, 0), some = map_of(r, 3, 3);
    for (uint32_t i = 0; i < 3; i++)
        tell(r, i, &none);
    rig_run(r, r->config.lease_ns);
    EXPECT_EQ_U64(r->client->cluster.map.epoch, 2);
    /* Nobody is asked for anything... */
    uint64_t digest = rig_digest(r, &id);
    kv_get get = {&id, &digest, 1, KV_DEMAND, r->now_ns + r->config.fetch_deadline_ns, false};
    kv_ticket ticket;
    kv_done done;
    EXPECT(kv_get_submit(r->client, &get, &ticket) == STATUS_DEGRADED);
    EXPECT(rig_put(r, &id) == STATUS_DEGRADED);
    EXPECT(kv_drop_submit(r->client, rig_id(r, 9, 0).context, r->now_ns + RIG_MS, &ticket) ==
           STATUS_OK);
    EXPECT(rig_next(r, 0, &done) && done.result == STATUS_OK);
    /* ... and one node that learns of the next map is enough. */
    tell(r, 2, &some);
    rig_run(r, r->config.lease_ns);
    EXPECT_EQ_U64(r->client->cluster.map.epoch, 3);
    rig_run(r, 10 * RIG_MS);
    EXPECT_EQ_U64(stats_of(r).nodes_connected, 2);
    block_id other = rig_id(r, 1, 8);
    EXPECT(rig_put(r, &other) == STATUS_OK);
    EXPECT(get_one(r, &other) == STATUS_OK);
    rig_destroy(r);
}

TEST(scouts_that_do_not_answer_are_dialled_again_until_one_does)
{
    rig *r = rig_create(&(rig_options){.nodes = 2, .replicas = 1});
    cluster_map none = map_of(r, 2, 0);
    tell(r, 0, &none);
    rig_run(r, r->config.lease_ns);
    EXPECT_EQ_U64(r->client->cluster.map.epoch, 2);
    rig_node_kill(r, 0);
    rig_node_kill(r, 1);
    rig_run(r, UINT64_C(20000) * RIG_MS);
    EXPECT_EQ_U64(stats_of(r).nodes_connected, 0);
    r->config.map.epoch = 3; /* the node starts knowing of a newer one, and is told which */
    rig_node_start(r, 1);
    cluster_map some = map_of(r, 4, 2);
    tell(r, 1, &some);
    rig_run(r, UINT64_C(3000) * RIG_MS); /* the longest pause between two dials is 1.5 s */
    EXPECT_EQ_U64(r->client->cluster.map.epoch, 4);
    block_id id = rig_id(r, 1, 0);
    EXPECT(rig_put(r, &id) == STATUS_OK);
    rig_destroy(r);
}

TEST(an_acknowledgement_of_a_node_that_left_the_map_does_not_count)
{
    rig *r = rig_create(&(rig_options){.nodes = 3, .replicas = 2});
    block_id id = rig_id(r, 1, 0);
    uint32_t out = rig_rank(r, &id, 0), second = rig_rank(r, &id, 1), third = rig_rank(r, &id, 2);
    kv_done done;
    r->node[second].paused = r->node[third].paused = true;
    put_submit(r, &id, UINT64_C(20000) * RIG_MS);
    rig_run(r, RIG_MS);
    EXPECT_EQ_U64(used(r, out), 1);
    cluster_map without = map_of(r, 2, 7 & ~(1u << out));
    tell(r, out, &without);
    rig_run(r, r->config.lease_ns);
    EXPECT_EQ_U64(r->client->cluster.map.epoch, 2);
    r->node[second].paused = false;
    EXPECT(!rig_next(r, 100 * RIG_MS, &done)); /* two copies exist, one where the map says */
    EXPECT_EQ_U64(used(r, second), 1);
    r->node[third].paused = false;
    EXPECT(rig_next(r, UINT64_C(10000) * RIG_MS, &done) && done.result == STATUS_OK);
    EXPECT_EQ_U64(used(r, third), 1);
    rig_destroy(r);
}

/* ---- silence --------------------------------------------------------------------------------- */

TEST(a_node_that_owes_an_answer_and_says_nothing_is_dialled_anew)
{
    rig *r = rig_create(&(rig_options){.nodes = 1, .replicas = 1});
    block_id id = rig_id(r, 1, 0);
    EXPECT(rig_put(r, &id) == STATUS_OK);
    r->client->cluster.lease_ns = UINT64_C(20000) * RIG_MS; /* its copies outlive this */
    client_node_lease(r->client, 0);
    rig_run(r, RIG_MS);
    r->node[0].paused = true;
    uint64_t began = r->now_ns;
    while (r->client->node[0].state == NODE_READY && r->now_ns < began + UINT64_C(9000) * RIG_MS)
        EXPECT(get_one(r, &id) != STATUS_OK);
    EXPECT_GE_U64(r->now_ns - began, UINT64_C(4000) * RIG_MS);
    EXPECT_LE_U64(r->now_ns - began, UINT64_C(5000) * RIG_MS);
    r->node[0].paused = false;
    rig_run(r, UINT64_C(3000) * RIG_MS);
    EXPECT_EQ_U64(stats_of(r).reconnects, 1);
    EXPECT(get_one(r, &id) == STATUS_OK); /* the same process: its copies are there */
    rig_destroy(r);
}

TEST(a_node_that_owes_nothing_or_answers_in_the_end_keeps_its_connection)
{
    rig *r = rig_create(&(rig_options){.nodes = 1, .replicas = 1});
    block_id id = rig_id(r, 1, 0);
    EXPECT(rig_put(r, &id) == STATUS_OK);
    r->node[0].paused = true;
    rig_run(r, UINT64_C(2500) * RIG_MS); /* not a word, and nobody asked; its grace is 2 s */
    for (uint32_t i = 0; i < 4; i++) {
        EXPECT(get_one(r, &id) != STATUS_OK);
        r->node[0].paused = true;
        rig_run(r, UINT64_C(2000) * RIG_MS);
        r->node[0].paused = false; /* its late answer counts as a word */
        rig_run(r, UINT64_C(500) * RIG_MS);
        r->node[0].paused = true;
    }
    EXPECT_EQ_U64(stats_of(r).reconnects, 0);
    rig_destroy(r);
}

/* ---- leases ---------------------------------------------------------------------------------- */

TEST(a_full_connection_does_not_cost_a_lease)
{
    enum { LEASE_MS = 700, GRACE_MS = 2000 }; /* the rig's grace */
    rig *r = rig_create(&(rig_options){.nodes = 1, .replicas = 1, .landing_slots = 256});
    block_id id = rig_id(r, 1, 0);
    kv_done done;
    EXPECT(rig_put(r, &id) == STATUS_OK);
    r->client->cluster.lease_ns = (uint64_t)LEASE_MS * RIG_MS;
    rig_run(r, UINT64_C(1400) * RIG_MS); /* the lease in force is one of these */
    client_node_lease(r->client, 0);
    rig_run(r, RIG_MS);
    uint64_t heard = r->now_ns;
    r->node[0].paused = true;
    for (uint32_t i = 0; i < 400; i++) { /* gets that nobody reads fill the connection */
        uint64_t digest = rig_digest(r, &id);
        kv_get get = {&id, &digest, 1, KV_DEMAND, r->now_ns + RIG_MS, false};
        kv_ticket ticket;
        (void)kv_get_submit(r->client, &get, &ticket);
        kv_client_poll(r->client);
        if (r->client->node[0].full_since_ns != 0) break;
        rig_run(r, RIG_MS + RIG_US);
        while (kv_client_next(r->client, &done))
            continue;
    }
    EXPECT(r->client->node[0].full_since_ns != 0);
    /* Until 100 ms before lease and grace are over, and less than a heartbeat's distance. */
    rig_run(r, heard + (uint64_t)(LEASE_MS + GRACE_MS - 100) * RIG_MS - r->now_ns);
    EXPECT_EQ_U64(used(r, 0), 1);
    r->node[0].paused = false;
    rig_run(r, UINT64_C(1000) * RIG_MS);
    EXPECT_EQ_U64(used(r, 0), 1);
    rig_destroy(r);
}

/* ---- clients that do not listen -------------------------------------------------------------- */

enum { DEAF = 5, DEAF_BLOCKS = 64 };

typedef struct deaf {
    arena *memory;
    kv_transport *transport;
    kv_peer peer;
    bool opened;
    wire_get_list list;
    alignas(8) uint8_t body[WIRE_GET_BODY_MAX];
} deaf;

static void deaf_opened(void *owner, kv_peer peer)
{
    (void)peer;
    ((deaf *)owner)->opened = true;
}

static void deaf_sent(void *owner, kv_peer peer, uint64_t cookie)
{
    (void)owner, (void)peer, (void)cookie;
}

static const kv_events deaf_events = {deaf_opened, teller_message, deaf_sent, teller_closed, NULL};

/* Greets, then asks for 64 blocks as often as the connection takes it, and reads no answer. */
static void deaf_start(rig *r, deaf *d, uint64_t owner)
{
    d->memory = arena_create("deaf");
    EXPECT(kv_transport_local_open(d->memory, r->hub, &d->transport) == STATUS_OK);
    kv_transport_bind(d->transport, &deaf_events, d);
    const kv_transport_ops *ops = d->transport->ops;
    EXPECT(ops->dial(d->transport, r->config.map.node[0].data, &d->peer) == STATUS_OK);
    for (uint32_t i = 0; i < 100 && !d->opened; i++) {
        rig_run(r, 50 * RIG_US);
        (void)ops->poll(d->transport);
    }
    EXPECT(d->opened);
    wire_hello hello = {.owner = owner,
                        .epoch = 1,
                        .lease_ns = r->config.lease_ns,
                        .layout = layout_hash(&r->layout),
                        .tenant = r->config.tenant,
                        .block_bytes = r->block_bytes};
    wire_head_set(&hello.head, WIRE_HELLO, 0, 0);
    kv_message m = {.head = &hello, .head_bytes = sizeof hello};
    EXPECT(ops->send(d->transport, d->peer, &m) == STATUS_OK);
    for (d->list.count = 0; d->list.count < DEAF_BLOCKS; d->list.count++)
        d->list.id[d->list.count] = rig_id(r, 1, d->list.count);
    wire_get get = {.epoch = 1, .remaining_ns = UINT64_MAX, .class = KV_DEMAND};
    uint32_t bytes = wire_encode_get(&d->list, &get, d->body);
    uint64_t asked = 0;
    do {
        wire_head_set(&get.head, WIRE_GET, ++asked, bytes);
        m = (kv_message){.head = &get,
                         .head_bytes = sizeof get,
                         .body = d->body,
                         .body_bytes = bytes,
                         .cookie = asked};
    } while (ops->send(d->transport, d->peer, &m) == STATUS_OK);
    EXPECT(asked > 100);
}

TEST(clients_that_never_listen_do_not_starve_one_that_does)
{
    static deaf deafs[DEAF];
    rig *r = rig_create(&(rig_options){.nodes = 1, .replicas = 1});
    for (uint32_t i = 0; i < DEAF_BLOCKS; i++) {
        block_id id = rig_id(r, 1, i);
        EXPECT(rig_put(r, &id) == STATUS_OK);
    }
    for (uint32_t i = 0; i < DEAF; i++)
        deaf_start(r, &deafs[i], 100 + i);
    rig_run(r, 10 * RIG_MS);
    EXPECT(!kv_server_idle(r->node[0].server));
    block_id id = rig_id(r, 1, 0), fresh = rig_id(r, 2, 0);
    EXPECT(get_one(r, &id) == STATUS_OK);
    EXPECT(rig_put(r, &fresh) == STATUS_OK);
    rig_run(r, 100 * RIG_MS);
    EXPECT(kv_server_idle(r->node[0].server));
    for (uint32_t i = 0; i < DEAF; i++) {
        kv_transport_close(deafs[i].transport);
        arena_destroy(deafs[i].memory);
    }
    rig_destroy(r);
}

TEST_MAIN()
