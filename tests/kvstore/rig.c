#include "tests/kvstore/rig.h"

#include <stdlib.h>

static uint64_t rig_now(void *self)
{
    return ((rig *)self)->now_ns;
}

static void map_fill(rig *r, const rig_options *o)
{
    cluster_config_default(&r->config);
    cluster_map *map = &r->config.map;
    *map = (cluster_map){.epoch = 1, .replicas = o->replicas, .node_count = o->nodes};
    for (uint32_t i = 0; i < o->nodes; i++) {
        cluster_node *n = &map->node[i];
        snprintf(n->name, sizeof n->name, "n%u", i);
        snprintf(n->data, sizeof n->data, "local:%u", 1000 + i);
        snprintf(n->domain, sizeof n->domain, "d%u", i);
        n->weight = 1;
        n->alive = true;
    }
    r->config.tenant = 7;
    r->config.hedge_after_ns = 5 * RIG_MS;
    r->config.suspect_ns = 50 * RIG_MS;
    r->config.fetch_deadline_ns = 100 * RIG_MS;
    r->config.put_deadline_ns = 500 * RIG_MS;
    r->config.connect_deadline_ns = 100 * RIG_MS;
    r->config.lease_ns = 1000 * RIG_MS;
    for (uint32_t c = 0; c < KV_CLASSES; c++)
        r->config.inflight_max[c] = o->inflight != 0 ? o->inflight : 256;
}

void rig_node_start(rig *r, uint32_t i)
{
    rig_node *n = &r->node[i];
    CHECK(n->server == NULL);
    n->memory = arena_create("rig node");
    EXPECT(kv_transport_local_open(n->memory, r->hub, &n->transport) == STATUS_OK);
    kv_server_config config = {
        .memory = n->memory,
        .transport = n->transport,
        .clock = r->clock,
        .seed = test_seed() * 1000 + i * 17 + ++n->starts,
        .memory_bytes = n->memory_bytes,
        .lease_grace_ns = UINT64_C(2000) * RIG_MS,
        .connections_max = 8,
        .epoch = r->config.map.epoch,
        .faults = n->faults,
    };
    snprintf(config.name, sizeof config.name, "n%u", i);
    snprintf(config.listen, sizeof config.listen, "local:%u", 1000 + i);
    EXPECT(kv_server_create(&config, &n->server) == STATUS_OK);
    arena_seal(n->memory);
    n->paused = false;
}

void rig_node_kill(rig *r, uint32_t i)
{
    rig_node *n = &r->node[i];
    if (n->server == NULL) return;
    kv_transport_close(n->transport);
    kv_server_destroy(n->server);
    arena_destroy(n->memory);
    n->server = NULL;
}

rig *rig_create(const rig_options *o)
{
    rig *r = calloc(1, sizeof *r);
    CHECK(r != NULL && o->nodes <= RIG_NODES_MAX);
    r->now_ns = UINT64_C(1000) * RIG_MS;
    r->clock = (clock_ops){rig_now, r};
    r->memory = arena_create("rig");
    r->hub = kv_hub_create(r->memory, r->clock, o->rtt_ns, 0);
    if (o->card_threads > 0) EXPECT_OK(kv_hub_card_start(r->hub, o->card_threads));
    r->layout = (block_layout){64, 64, 2, 4, 2, 99};
    r->block_bytes = block_layout_bytes(&r->layout);
    r->nodes = o->nodes;
    map_fill(r, o);
    for (uint32_t i = 0; i < o->nodes; i++) {
        r->node[i].memory_bytes = o->memory_bytes != 0 ? o->memory_bytes : 16 << 20;
        r->node[i].faults = o->faults;
        r->node[i].faults.seed = test_seed() + i;
        rig_node_start(r, i);
    }
    EXPECT(kv_transport_local_open(r->memory, r->hub, &r->transport) == STATUS_OK);
    uint32_t slots = o->landing_slots != 0 ? o->landing_slots : 128;
    r->landing = arena_alloc(r->memory, (size_t)slots * r->block_bytes, 64);
    kv_client_config config = {
        .memory = r->memory,
        .transport = r->transport,
        .clock = r->clock,
        .seed = test_seed() * 31 + 5,
        .layout = r->layout,
        .tenant = r->config.tenant,
        .config = &r->config,
        .landing = r->landing,
        .landing_slots = slots,
        .verify = !o->trust,
    };
    EXPECT(kv_client_create(&config, &r->client) == STATUS_OK);
    arena_seal(r->memory);
    for (uint32_t i = 0; i < 2000 && !rig_ready(r); i++)
        rig_run(r, 50 * RIG_US);
    EXPECT(rig_ready(r));
    return r;
}

void rig_destroy(rig *r)
{
    if (r->transport != NULL) kv_client_destroy(r->client); /* a test may have closed it */
    kv_transport_close(r->transport);
    for (uint32_t i = 0; i < r->nodes; i++)
        rig_node_kill(r, i);
    kv_hub_card_stop(r->hub);
    arena_destroy(r->memory);
    free(r);
}

static void step(rig *r)
{
    kv_client_poll(r->client);
    for (uint32_t i = 0; i < r->nodes; i++)
        if (r->node[i].server != NULL && !r->node[i].paused) kv_server_poll(r->node[i].server);
    kv_client_poll(r->client);
}

void rig_run(rig *r, uint64_t ns)
{
    uint64_t end = r->now_ns + ns;
    while (r->now_ns < end) {
        step(r);
        uint64_t tick = 50 * RIG_US;
        r->now_ns += end - r->now_ns < tick ? end - r->now_ns : tick;
    }
    step(r);
}

bool rig_next(rig *r, uint64_t ns, kv_done *out_done)
{
    uint64_t end = r->now_ns + ns;
    for (;;) {
        step(r);
        if (kv_client_next(r->client, out_done)) return true;
        if (r->now_ns >= end) return false;
        r->now_ns += 50 * RIG_US;
    }
}

bool rig_ready(rig *r)
{
    kv_client_stats stats;
    kv_client_stats_read(r->client, &stats);
    uint32_t living = 0;
    for (uint32_t i = 0; i < r->nodes; i++)
        living += r->node[i].server != NULL;
    return stats.nodes_connected == living;
}

block_id rig_id(const rig *r, uint64_t context, uint32_t block)
{
    return (block_id){
        .context = {context, context * 0x9e3779b97f4a7c15},
        .layout = layout_hash(&r->layout),
        .tenant = r->config.tenant,
        .block = block / 8,
        .layer = (uint16_t)(block % 4),
        .kv_head = (uint16_t)(block / 4 % 2),
    };
}

void rig_fill(const rig *r, const block_id *id, uint8_t *out_bytes)
{
    rng g;
    rng_seed(&g, block_id_hash(id));
    for (uint32_t i = 0; i < r->block_bytes; i += 8) {
        uint64_t word = rng_next(&g);
        memcpy(out_bytes + i, &word, 8);
    }
}

uint64_t rig_digest(const rig *r, const block_id *id)
{
    uint8_t *bytes = malloc(r->block_bytes);
    CHECK(bytes != NULL);
    rig_fill(r, id, bytes);
    uint64_t digest = block_digest(id, bytes, r->block_bytes);
    free(bytes);
    return digest;
}

status rig_put(rig *r, const block_id *id)
{
    uint8_t *bytes = malloc(r->block_bytes);
    CHECK(bytes != NULL);
    rig_fill(r, id, bytes);
    kv_put put = {
        .id = *id,
        .bytes = bytes,
        .digest = block_digest(id, bytes, r->block_bytes),
        .class = KV_WRITE_BACK,
        .deadline_ns = r->now_ns + r->config.put_deadline_ns,
    };
    kv_ticket ticket;
    kv_done done;
    status submitted = kv_put_submit(r->client, &put, &ticket);
    if (submitted == STATUS_OK) {
        EXPECT(rig_next(r, r->config.put_deadline_ns + RIG_MS, &done));
        EXPECT(done.kind == KV_KIND_PUT && done.ticket == ticket);
        submitted = done.result;
    }
    free(bytes);
    return submitted;
}

kv_done rig_get(rig *r, const block_id *id, uint32_t count, kv_class class, status *out_status)
{
    uint64_t *digest = malloc(count * sizeof *digest);
    uint8_t *bytes = malloc(r->block_bytes);
    CHECK(digest != NULL && bytes != NULL);
    for (uint32_t i = 0; i < count; i++)
        digest[i] = rig_digest(r, &id[i]);
    kv_get get = {
        .id = id,
        .digest = digest,
        .count = count,
        .class = class,
        .deadline_ns = r->now_ns + r->config.fetch_deadline_ns,
    };
    kv_ticket ticket;
    kv_done done = {.result = STATUS_INTERNAL};
    EXPECT(kv_get_submit(r->client, &get, &ticket) == STATUS_OK);
    EXPECT(rig_next(r, r->config.fetch_deadline_ns + RIG_MS, &done));
    EXPECT(done.kind == KV_KIND_GET && done.ticket == ticket && done.count == count);
    for (uint32_t i = 0; i < count; i++) {
        if (out_status != NULL) out_status[i] = done.block_status[i];
        EXPECT((done.block_status[i] == STATUS_OK) == (done.slot[i] >= 0));
        if (done.slot[i] < 0) continue;
        rig_fill(r, &id[i], bytes);
        EXPECT(memcmp(kv_slot_bytes(r->client, done.slot[i]), bytes, r->block_bytes) == 0);
        kv_slot_release(r->client, done.slot[i]);
    }
    free(bytes);
    free(digest);
    return done;
}

void rig_check(rig *r)
{
    kv_client_stats c;
    kv_client_stats_read(r->client, &c);
    EXPECT(c.slots_free + c.slots_posted + c.slots_filled + c.slots_held ==
           c.slots_free + c.slots_posted + c.slots_filled);
    for (uint32_t i = 0; i < r->nodes; i++) {
        if (r->node[i].server == NULL) continue;
        kv_server_stats s;
        kv_server_stats_read(r->node[i].server, &s);
        EXPECT(s.slots_free + s.slots_used + s.slots_reserved == s.slots);
    }
}

uint32_t rig_rank(const rig *r, const block_id *id, uint32_t rank)
{
    uint32_t list[RIG_NODES_MAX];
    uint32_t count = cluster_place(&r->config.map, id->context, id->layer, r->layout.layers, list,
                                   RIG_NODES_MAX);
    CHECK(rank < count);
    return list[rank];
}
