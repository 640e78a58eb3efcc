/* tests/kvstore/talk.h - a client among nodes that the test plays by hand (peer.h): what test_talk
 * and test_steer begin with. One client a program, hence the file's own variables.
 *
 * Threads: one. Memory: client_close gives back what client_open took. */
#ifndef TESTS_KVSTORE_TALK_H
#define TESTS_KVSTORE_TALK_H

#include "kvstore/client.h"
#include "tests/kvstore/peer.h"

enum { MS = 1000 * 1000, BLOCK = 8192, EPOCH = 3, SLOTS = 16 };

static peer p;
static kv_client *client;
static arena *memory;
static cluster_config config;
static uint8_t bytes[BLOCK];

static inline cluster_map map_of(uint64_t epoch, uint32_t nodes, uint32_t replicas)
{
    cluster_map map = {.epoch = epoch, .replicas = replicas, .node_count = nodes};
    for (uint32_t i = 0; i < nodes; i++) {
        snprintf(map.node[i].name, sizeof map.node[i].name, "n%u", i);
        snprintf(map.node[i].data, sizeof map.node[i].data, "test:%u", i);
        snprintf(map.node[i].domain, sizeof map.node[i].domain, "d%u", i);
        map.node[i].weight = 1;
        map.node[i].alive = true;
    }
    return map;
}

/* A client of this map, which has dialled every node. */
static inline void client_open(const cluster_map *map)
{
    peer_init(&p);
    memory = arena_create("test");
    cluster_config_default(&config);
    config.map = *map;
    config.tenant = 7;
    config.hedge_after_ns = 5 * MS;
    config.suspect_ns = 50 * MS;
    config.connect_deadline_ns = 100 * MS;
    config.lease_ns = UINT64_C(900) * MS;
    kv_client_config c = {
        .memory = memory,
        .transport = &p.base,
        .clock = p.clock,
        .seed = test_seed(),
        .layout = {64, 32, 2, 4, 2, 99},
        .tenant = 7,
        .config = &config,
        .landing = arena_alloc(memory, (size_t)SLOTS * BLOCK, 64),
        .landing_slots = SLOTS,
        .verify = true,
    };
    EXPECT(kv_client_create(&c, &client) == STATUS_OK);
    EXPECT_EQ_U64(client->block_bytes, BLOCK);
    arena_seal(memory);
    kv_client_poll(client);
    EXPECT_EQ_U64(p.dials, map->node_count);
}

static inline void client_close(void)
{
    kv_client_destroy(client);
    arena_destroy(memory);
}

/* The node behind a peer: the one that its address names. */
static inline uint32_t node_behind(kv_peer who)
{
    return (uint32_t)(p.address[who - 1][5] - '0');
}

static inline void welcome(kv_peer who, uint64_t incarnation, uint64_t epoch, status s)
{
    wire_welcome w = {.incarnation = incarnation, .epoch = epoch, .status = s};
    snprintf(w.name, sizeof w.name, "n%u", node_behind(who));
    peer_says(&p, who, WIRE_WELCOME, &w, sizeof w, 0, NULL, 0);
}

static inline void ready(kv_peer who)
{
    peer_opened(&p, who);
    welcome(who, 10 + who, EPOCH, STATUS_OK);
}

static inline void map_say(kv_peer who, const cluster_map *map)
{
    wire_node rows[4] = {0};
    for (uint32_t i = 0; i < map->node_count; i++) {
        const cluster_node *n = &map->node[i];
        snprintf(rows[i].name, sizeof rows[i].name, "%s", n->name);
        snprintf(rows[i].data, sizeof rows[i].data, "%s", n->data);
        snprintf(rows[i].domain, sizeof rows[i].domain, "%s", n->domain);
        rows[i].weight = 1;
        rows[i].alive = n->alive;
    }
    wire_map head = {.epoch = map->epoch, .replicas = map->replicas, .node_count = map->node_count};
    peer_says(&p, who, WIRE_MAP, &head, sizeof head, 0, rows,
              map->node_count * (uint32_t)sizeof rows[0]);
}

static inline void run(uint64_t ns)
{
    for (uint64_t end = p.now_ns + ns; p.now_ns < end; p.now_ns += 100 * 1000)
        kv_client_poll(client);
    kv_client_poll(client);
}

static inline block_id id_of(uint64_t context, uint32_t block)
{
    return (block_id){
        .context = {context, 1}, .layout = client->layout, .tenant = 7, .block = block};
}

static inline uint64_t request_of(const peer_sent *s)
{
    wire_head h;
    EXPECT(s != NULL);
    memcpy(&h, s->head, sizeof h);
    return h.request;
}

static inline kv_client_stats stats(void)
{
    kv_client_stats s;
    kv_client_stats_read(client, &s);
    return s;
}

#endif
