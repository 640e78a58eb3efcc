/* kvstore/server.c - a node: who may talk to it, and the loop that answers.
 *
 * Connection: accepted -> HELLO -> READY, or refused by name and left to the client to close. A
 * connection that says nothing sensible within a few seconds is closed, and so is one that was
 * silent for its client's lease and grace. The first accepted HELLO
 * fixes layout and block size; they may change when the store is empty and nobody is connected.
 *
 * A poll moves messages (which only queue jobs), answers jobs in order of class, gives slots of
 * dropped contexts back, and ten times a second looks for owners whose lease and grace are over.
 * Everything is bounded: connections, owners, jobs, slots, maps in flight. */
#include "kvstore/server.h"

#include <string.h>

enum {
    CHECK_EVERY_NS = 100 * 1000 * 1000,
    JOB_COST_NS = 50 * 1000, /* what a queued job costs, for hints only */
};
static const uint64_t hello_wait_ns = UINT64_C(5) * 1000 * 1000 * 1000;

static const kv_events server_events;

static status config_check(const kv_server_config *c)
{
    CHECK(c->memory != NULL && c->transport != NULL);
    if (c->name[0] == 0 || c->listen[0] == 0)
        return FAIL(INVALID, "a node needs a name and an address to listen on");
    if (c->connections_max < 1 || c->connections_max > 1024)
        return FAIL(INVALID, "connections must be 1 .. 1024, not %u", c->connections_max);
    return STATUS_OK;
}

status kv_server_create(const kv_server_config *config, kv_server **out_server)
{
    TRY(config_check(config));
    arena *a = config->memory;
    kv_tier tier;
    TRY(kv_tier_dram_create(a, config->memory_bytes, &tier));
    kv_server *s = ARENA_NEW(a, kv_server, 1);
    s->config = *config;
    s->transport = config->transport;
    s->tier = tier;
    s->contexts = kv_contexts_create(a, 2 * config->connections_max + 64,
                                     kv_tier_slots_max(config->memory_bytes));
    s->conn = ARENA_NEW(a, server_conn, config->connections_max);
    s->map_scratch = ARENA_NEW(a, wire_node, WIRE_NODES_MAX);
    kv_maps_init(&s->maps, a);
    server_jobs_init(s);
    rng_seed(&s->random, config->seed);
    rng_seed(&s->fault_random, config->faults.seed);
    do
        s->incarnation = rng_next(&s->random);
    while (s->incarnation == 0);
    s->map.epoch = config->epoch;
    if (config->map != NULL && config->map->epoch >= config->epoch) s->map = *config->map;
    for (uint32_t i = 0; i < SERVER_SCRATCH && config->faults.flip_wire > 0; i++)
        s->scratch[i] = ARENA_NEW(a, uint8_t, WIRE_BLOCK_BYTES_MAX);
    kv_transport_bind(s->transport, &server_events, s);
    status listening = s->transport->ops->listen(s->transport, config->listen, s->address);
    if (listening != STATUS_OK) {
        kv_transport_bind(s->transport, NULL, NULL);
        kv_tier_dram_destroy(&s->tier);
        return listening;
    }
    *out_server = s;
    return STATUS_OK;
}

void kv_server_destroy(kv_server *server)
{
    if (server == NULL) return;
    /* The transport may still lend our slots to a peer: it must be closed before this. */
    kv_tier_dram_destroy(&server->tier);
}

const char *kv_server_address(const kv_server *server)
{
    return server->address;
}

/* ---- sending --------------------------------------------------------------------------------- */

status server_send(kv_server *s, uint32_t conn, const kv_message *m)
{
    server_conn *c = &s->conn[conn];
    CHECK(c->peer != 0);
    status sent = s->transport->ops->send(s->transport, c->peer, m);
    if (sent != STATUS_BUSY)
        c->full_since_ns = 0;
    else if (c->full_since_ns == 0)
        c->full_since_ns = clock_now(&s->config.clock);
    return sent;
}

status server_send_result(kv_server *s, uint32_t conn, wire_kind kind, const wire_result *result)
{
    wire_result r = *result;
    wire_head_set(&r.head, kind, result->head.request, 0);
    r.epoch = s->map.epoch;
    kv_message m = {.head = &r, .head_bytes = sizeof r};
    return server_send(s, conn, &m);
}

uint64_t server_busy_hint(const kv_server *s, kv_class class)
{
    return ((uint64_t)s->queue[class].count + 1) * JOB_COST_NS;
}

bool server_epoch_old(kv_server *s, uint32_t conn, uint64_t epoch)
{
    if (epoch >= s->map.epoch || PLANT(EPOCH_UNCHECKED)) return false;
    if (s->map.node_count > 0) kv_maps_send(&s->maps, s->transport, s->conn[conn].peer, &s->map);
    return true;
}

void server_malformed(kv_server *s, uint32_t conn, const char *what)
{
    LOG(WARN, "closing a connection that sent a malformed %s", what);
    s->transport->ops->hang_up(s->transport, s->conn[conn].peer);
}

/* ---- connections ----------------------------------------------------------------------------- */

static uint32_t conn_find(kv_server *s, kv_peer peer)
{
    if (s->conn[s->conn_last].peer == peer) return s->conn_last;
    for (uint32_t i = 0; i < s->config.connections_max; i++)
        if (s->conn[i].peer == peer) return s->conn_last = i;
    return KV_NONE;
}

static void on_opened(void *owner, kv_peer peer)
{
    kv_server *s = owner;
    for (uint32_t i = 0; i < s->config.connections_max; i++) {
        if (s->conn[i].peer != 0) continue;
        uint64_t now = clock_now(&s->config.clock);
        s->conn[i] =
            (server_conn){.peer = peer, .since_ns = now, .heard_ns = now, .landing = KV_NO_SLOT};
        s->stats.connections++;
        s->stats.connections_total++;
        return;
    }
    LOG(WARN, "refusing a connection: all %u are taken", s->config.connections_max);
    s->transport->ops->hang_up(s->transport, peer);
}

static void on_closed(void *owner, kv_peer peer, status why)
{
    (void)why;
    kv_server *s = owner;
    uint32_t conn = conn_find(s, peer);
    if (conn == KV_NONE) return;
    server_jobs_forget(s, conn);
    server_put_land_end(s, conn);
    CHECK(s->conn[conn].pending == 0 && s->stats.connections > 0);
    s->conn[conn] = (server_conn){.peer = 0};
    s->stats.connections--;
}

static void on_sent(void *owner, kv_peer peer, uint64_t cookie)
{
    (void)peer;
    kv_server *s = owner;
    if (cookie >> KV_MAP_COOKIE_BIT != 0) {
        kv_maps_sent(&s->maps, cookie);
    } else if (cookie >> SERVER_SCRATCH_BIT != 0) {
        uint64_t i = cookie & ~(UINT64_C(1) << SERVER_SCRATCH_BIT);
        CHECK(i < SERVER_SCRATCH && (s->scratch_lent >> i & 1) != 0);
        s->scratch_lent &= ~(1u << i);
    } else {
        s->tier.ops->pin(s->tier.self, (uint32_t)cookie, -1);
    }
}

static void welcome(kv_server *s, uint32_t conn, status result)
{
    wire_welcome w = {
        .incarnation = s->incarnation,
        .epoch = s->map.epoch,
        .status = result,
    };
    wire_head_set(&w.head, WIRE_WELCOME, 0, 0);
    size_t length = strnlen(s->config.name, sizeof w.name - 1);
    memcpy(w.name, s->config.name, length);
    kv_message m = {.head = &w, .head_bytes = sizeof w};
    (void)server_send(s, conn, &m); /* a peer that takes no WELCOME says HELLO again or goes */
}

/* Layout and block size are fixed by the first HELLO and again when nothing is left of it. */
static status layout_agree(kv_server *s, const wire_hello *hello)
{
    if (s->layout == hello->layout && s->block_bytes == hello->block_bytes) return STATUS_OK;
    bool in_use = false;
    for (uint32_t i = 0; i < s->config.connections_max; i++)
        in_use |= s->conn[i].ready;
    kv_tier_usage usage;
    s->tier.ops->usage(s->tier.self, &usage);
    in_use |= usage.free != usage.slots;
    if (s->layout != 0 && in_use)
        return FAIL(REFUSED,
                    "refusing a client: its block layout %08x of %u bytes is not %08x of %u",
                    hello->layout, hello->block_bytes, s->layout, s->block_bytes);
    if (s->tier.ops->format(s->tier.self, hello->block_bytes) != STATUS_OK) return STATUS_REFUSED;
    s->layout = hello->layout;
    s->block_bytes = hello->block_bytes;
    return STATUS_OK;
}

static status hello_judge(kv_server *s, uint32_t conn, const wire_hello *hello, uint64_t now)
{
    server_conn *c = &s->conn[conn];
    if (c->ready && (c->owner != hello->owner || c->tenant != hello->tenant)) return STATUS_REFUSED;
    if (server_epoch_old(s, conn, hello->epoch)) return STATUS_FENCED;
    TRY(layout_agree(s, hello));
    uint32_t owner = kv_owner_find(s->contexts, hello->owner, hello->tenant, now);
    if (owner == KV_NONE) return STATUS_BUSY;
    kv_owner_renew(s->contexts, owner, now + hello->lease_ns);
    c->owner = hello->owner;
    c->tenant = hello->tenant;
    c->lease_ns = hello->lease_ns;
    c->ready = true;
    return STATUS_OK;
}

static void on_hello(kv_server *s, uint32_t conn, const kv_message *m)
{
    wire_hello hello;
    if (wire_decode_hello(m->head, m->head_bytes, &hello) != STATUS_OK) {
        server_malformed(s, conn, "HELLO");
        return;
    }
    welcome(s, conn, hello_judge(s, conn, &hello, clock_now(&s->config.clock)));
}

static void on_lease(kv_server *s, uint32_t conn, const kv_message *m)
{
    wire_lease lease;
    if (wire_decode_lease(m->head, m->head_bytes, &lease) != STATUS_OK) {
        server_malformed(s, conn, "LEASE");
        return;
    }
    server_conn *c = &s->conn[conn];
    uint64_t now = clock_now(&s->config.clock);
    uint32_t owner = kv_owner_find(s->contexts, c->owner, c->tenant, now);
    uint64_t until = lease.lease_ns > UINT64_MAX - now ? UINT64_MAX : now + lease.lease_ns;
    c->lease_ns = lease.lease_ns;
    if (owner != KV_NONE) kv_owner_renew(s->contexts, owner, until);
    (void)server_epoch_old(s, conn, lease.epoch);
}

static void on_map(kv_server *s, uint32_t conn, const kv_message *m)
{
    cluster_map map;
    if (kv_map_decode(m, s->map_scratch, &map) != STATUS_OK) {
        server_malformed(s, conn, "MAP");
        return;
    }
    if (map.epoch <= s->map.epoch && !(map.epoch == s->map.epoch && s->map.node_count == 0)) return;
    bool in = false;
    for (uint32_t i = 0; i < map.node_count; i++)
        in |= map.node[i].alive && strcmp(map.node[i].name, s->config.name) == 0;
    if (in == s->fenced)
        LOG(WARN, "map epoch %llu: this node is %s", (unsigned long long)map.epoch,
            in ? "in again" : "out, writes are refused from here on");
    s->map = map;
    s->fenced = !in;
}

/* A HELLO of another version cannot be decoded but can be refused by name. */
static bool foreign_version(const kv_message *m)
{
    const uint8_t *bytes = m->head;
    return m->head_bytes >= sizeof(wire_head) && bytes[0] == WIRE_HELLO &&
           bytes[1] != PROTO_VERSION;
}

static void on_message(void *owner, kv_peer peer, const kv_message *m)
{
    kv_server *s = owner;
    uint32_t conn = conn_find(s, peer);
    if (conn == KV_NONE) return; /* being closed */
    s->conn[conn].heard = true;
    wire_head head;
    if (wire_decode_head(m->head, m->head_bytes, m->body_bytes, &head) != STATUS_OK) {
        if (foreign_version(m)) welcome(s, conn, STATUS_REFUSED);
        server_malformed(s, conn, "frame");
        return;
    }
    if (head.kind == WIRE_HELLO)
        on_hello(s, conn, m);
    else if (!s->conn[conn].ready && head.kind != WIRE_BYE && head.kind != WIRE_MAP)
        server_malformed(s, conn, "greeting");
    else if (head.kind == WIRE_GET)
        server_get(s, conn, m);
    else if (head.kind == WIRE_PUT)
        server_put(s, conn, m);
    else if (head.kind == WIRE_DROP)
        server_drop(s, conn, m);
    else if (head.kind == WIRE_LEASE)
        on_lease(s, conn, m);
    else if (head.kind == WIRE_MAP)
        on_map(s, conn, m);
    else if (head.kind == WIRE_BYE)
        s->transport->ops->hang_up(s->transport, peer);
    else
        server_malformed(s, conn, "frame of a node"); /* WELCOME, BLOCK, ...: not from a client */
}

static void *on_land(void *owner, kv_peer peer, const kv_message *m)
{
    kv_server *s = owner;
    uint32_t conn = conn_find(s, peer);
    return conn == KV_NONE ? NULL : server_put_land(s, conn, m);
}

static const kv_events server_events = {
    .opened = on_opened,
    .message = on_message,
    .sent = on_sent,
    .closed = on_closed,
    .land = on_land,
};

/* ---- the loop -------------------------------------------------------------------------------- */

/* It never greeted, or its lease and grace went by without a word: a client renews on each
 * connection, so nobody is there. TCP alone would keep what it owes such a client, and the slots
 * that are being sent to it, for a quarter of an hour. */
static bool is_over(const kv_server *s, const server_conn *c, uint64_t now)
{
    if (!c->ready) return now - c->since_ns >= hello_wait_ns;
    uint64_t silent = now - c->heard_ns;
    return silent >= hello_wait_ns && silent >= c->lease_ns &&
           silent - c->lease_ns >= s->config.lease_grace_ns;
}

static void check_times(kv_server *s, uint64_t now)
{
    if (now < s->check_next_ns) return;
    s->check_next_ns = now + CHECK_EVERY_NS;
    uint32_t expired = kv_owner_expire(s->contexts, now, s->config.lease_grace_ns);
    s->stats.leases_expired += expired;
    if (expired > 0) LOG(INFO, "%u leases ended: their contexts go", expired);
    for (uint32_t i = 0; i < s->config.connections_max; i++) {
        server_conn *c = &s->conn[i];
        if (c->peer == 0) continue;
        if (c->heard) c->heard_ns = now;
        c->heard = false;
        if (!is_over(s, c, now)) continue;
        s->transport->ops->hang_up(s->transport, c->peer);
    }
}

void kv_server_poll(kv_server *server)
{
    kv_server *s = server;
    bool moved = s->transport->ops->poll(s->transport);
    uint64_t now = clock_now(&s->config.clock);
    moved |= server_jobs_run(s, now);
    kv_transport_flush(s->transport);
    moved |= server_reclaim(s);
    if (!moved) moved = server_look_behind(s);
    check_times(s, now);
    s->busy = moved;
}

void kv_server_wait(kv_server *server, int wake_fd, uint64_t until_ns)
{
    kv_server *s = server;
    if (s->busy) return;
    uint64_t now = clock_now(&s->config.clock);
    uint64_t next = server_jobs_next(s);
    if (next > s->check_next_ns) next = s->check_next_ns;
    if (next > until_ns) next = until_ns;
    if (next > now) s->transport->ops->wait(s->transport, wake_fd, next - now);
}

bool kv_server_idle(const kv_server *server)
{
    return server->jobs_used == 0;
}

void kv_server_drain(kv_server *server)
{
    server->stats.draining = true;
}

void kv_server_stats_read(const kv_server *server, kv_server_stats *out_stats)
{
    kv_tier_usage usage;
    server->tier.ops->usage(server->tier.self, &usage);
    *out_stats = server->stats;
    out_stats->incarnation = server->incarnation;
    out_stats->epoch = server->map.epoch;
    out_stats->slots = usage.slots;
    out_stats->slots_free = usage.free;
    out_stats->slots_used = usage.published + usage.quarantined; /* still holding bytes */
    out_stats->slots_reserved = usage.reserved;
    out_stats->block_bytes = usage.block_bytes;
    out_stats->contexts = kv_context_count(server->contexts);
    out_stats->slots_quarantined = usage.quarantined;
    out_stats->layout = server->layout;
    uint64_t now = clock_now(&server->config.clock), oldest = now;
    for (uint32_t k = 0; k < KV_CLASSES; k++) {
        uint32_t head = server->queue[k].head;
        if (head != KV_NONE && server->jobs[head].since_ns < oldest)
            oldest = server->jobs[head].since_ns;
    }
    out_stats->oldest_operation_ns = now - oldest;
}
