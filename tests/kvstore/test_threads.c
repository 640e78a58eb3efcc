/* Nodes on threads of their own over the in-process network, with real time: for ThreadSanitizer.
 */
#include <pthread.h>
#include <stdlib.h>

#include "kvstore/kvstore.h"
#include "tests/test.h"

enum { NODES = 2, BLOCKS = 200, ROUNDS = 4 };

typedef struct node_thread {
    pthread_t thread;
    arena *memory;
    kv_transport *transport;
    kv_server *server;
    atomic_bool stop;
} node_thread;

static void *node_main(void *arg)
{
    node_thread *n = arg;
    while (!atomic_load(&n->stop)) {
        kv_server_poll(n->server);
        kv_server_wait(n->server, -1, clock_now(&clock_monotonic) + 5 * 1000 * 1000);
    }
    kv_transport_close(n->transport); /* with messages in flight, as likely as not */
    kv_server_destroy(n->server);
    return NULL;
}

static void node_start(node_thread *n, kv_hub *hub, uint32_t i)
{
    n->memory = arena_create("node");
    atomic_store(&n->stop, false);
    EXPECT(kv_transport_local_open(n->memory, hub, &n->transport) == STATUS_OK);
    kv_server_config config = {
        .memory = n->memory,
        .transport = n->transport,
        .clock = clock_monotonic,
        .seed = test_seed() + i,
        .memory_bytes = 16 << 20,
        .connections_max = 4,
        .epoch = 1,
        .lease_grace_ns = UINT64_C(1000000000),
    };
    snprintf(config.name, sizeof config.name, "n%u", i);
    snprintf(config.listen, sizeof config.listen, "local:%u", 100 + i);
    EXPECT(kv_server_create(&config, &n->server) == STATUS_OK);
    EXPECT(pthread_create(&n->thread, NULL, node_main, n) == 0);
}

static void node_stop(node_thread *n)
{
    atomic_store(&n->stop, true);
    EXPECT(pthread_join(n->thread, NULL) == 0);
    arena_destroy(n->memory);
}

static bool next(kv_client *c, kv_done *out)
{
    uint64_t end = clock_now(&clock_monotonic) + UINT64_C(10000000000);
    for (;;) {
        kv_client_poll(c);
        if (kv_client_next(c, out)) return true;
        if (clock_now(&clock_monotonic) >= end) return false;
        kv_client_wait(c, -1, end);
    }
}

static void name_node(cluster_node *n, uint32_t i)
{
    snprintf(n->name, sizeof n->name, "n%u", i);
    snprintf(n->data, sizeof n->data, "local:%u", 100 + i);
    snprintf(n->domain, sizeof n->domain, "d%u", i);
    n->weight = 1;
    n->alive = true;
}

static void serve_and_end(uint32_t card_threads)
{
    arena *a = arena_create("threads");
    kv_hub *hub = kv_hub_create(a, clock_monotonic, 20 * 1000, UINT64_C(4000000000));
    if (card_threads > 0) EXPECT_OK(kv_hub_card_start(hub, card_threads));
    static node_thread node[NODES];
    static cluster_config config;
    cluster_config_default(&config);
    config.map = (cluster_map){.epoch = 1, .replicas = 2, .node_count = NODES};
    for (uint32_t i = 0; i < NODES; i++) {
        node_start(&node[i], hub, i);
        name_node(&config.map.node[i], i);
    }
    kv_transport *transport;
    kv_client *client;
    block_layout layout = {64, 64, 2, 4, 2, 99};
    uint32_t block_bytes = block_layout_bytes(&layout);
    EXPECT(kv_transport_local_open(a, hub, &transport) == STATUS_OK);
    kv_client_config options = {
        .memory = a,
        .transport = transport,
        .clock = clock_monotonic,
        .seed = test_seed(),
        .layout = layout,
        .tenant = config.tenant,
        .config = &config,
        .landing = arena_alloc(a, 64 * (size_t)block_bytes, 64),
        .landing_slots = 64,
        .verify = true,
    };
    EXPECT(kv_client_create(&options, &client) == STATUS_OK);
    uint8_t *bytes = arena_alloc(a, block_bytes, 64);
    uint64_t digest[BLOCKS];
    block_id id[BLOCKS];
    kv_done done;
    kv_ticket ticket;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        id[i] = (block_id){{1, 2}, layout_hash(&layout), config.tenant, i, (uint16_t)(i % 4), 0};
        memset(bytes, (int)i, block_bytes);
        digest[i] = block_digest(&id[i], bytes, block_bytes);
        kv_put put = {id[i], bytes, digest[i], KV_WRITE_BACK,
                      clock_now(&clock_monotonic) + UINT64_C(5000000000)};
        EXPECT(kv_put_submit(client, &put, &ticket) == STATUS_OK);
        EXPECT(next(client, &done) && done.result == STATUS_OK);
    }
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t first = 0; first < BLOCKS; first += 40) {
            uint64_t deadline_ns = clock_now(&clock_monotonic) + UINT64_C(5000000000);
            kv_get get = {&id[first], &digest[first], 40, KV_DEMAND, deadline_ns, false};
            EXPECT(kv_get_submit(client, &get, &ticket) == STATUS_OK);
            if (round == ROUNDS - 2 && first == 80) node_stop(&node[0]);
            EXPECT(next(client, &done));
            EXPECT_MSG(done.result == STATUS_OK, "round %u block %u: %s", round, first,
                       status_name(done.result));
            for (uint32_t i = 0; i < done.count; i++)
                kv_slot_release(client, done.slot[i]);
        }
    }
    kv_hub_pace(hub, 30 * 1000 * 1000, 0); /* from now on a round trip takes 30 ms */
    uint64_t asked = clock_now(&clock_monotonic);
    kv_get late = {id, digest, 1, KV_DEMAND, asked + UINT64_C(5000000000), false};
    EXPECT(kv_get_submit(client, &late, &ticket) == STATUS_OK);
    EXPECT(next(client, &done) && done.result == STATUS_OK);
    EXPECT(clock_now(&clock_monotonic) - asked >= 30 * 1000 * 1000);
    kv_slot_release(client, done.slot[0]);
    kv_client_destroy(client);
    kv_transport_close(transport);
    node_stop(&node[1]);
    kv_hub_card_stop(hub);
    arena_destroy(a);
}

TEST(nodes_on_threads_serve_a_client_and_may_end_under_it)
{
    serve_and_end(0);
}

TEST(so_they_may_where_a_card_writes_to_the_landing_slots)
{
    serve_and_end(2);
}

TEST_MAIN()
