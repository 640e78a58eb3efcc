/* kvstore/control.c - the Node service (Status, Stats, Drain) and grpc.health.v1.
 *
 * A call asks the data thread for its counters and is answered when they come back; calls are
 * answered in the order in which they asked, since the rings keep it. */
#include <string.h>

#include "kvstore/node.h"
#include "proto/rpc.h"
#include "proto/shoal_node.pb-c.h"

enum { PENDING_MAX = 64, NODE_METHODS = 3, DRAIN_GRACE_MS = 1000 };

typedef enum question { ASK_STATUS, ASK_STATS, ASK_DRAIN } question;

typedef struct pending {
    rpc_call *call;
    question question;
} pending;

struct control {
    node *node;
    arena *memory;
    rpc_server *server;
    rpc_health *health;
    char address[CLUSTER_ADDRESS_MAX];
    pending queue[PENDING_MAX]; /* ring of calls that wait for an answer */
    uint64_t asked, answered;
};

/* ---- answers --------------------------------------------------------------------------------- */

static Shoal__V1__NodeState state_of(const kv_server_stats *s)
{
    return s->draining ? SHOAL__V1__NODE_STATE__NODE_STATE_DRAINING
                       : SHOAL__V1__NODE_STATE__NODE_STATE_SERVING;
}

static void answer_status(control *c, rpc_call *call, const kv_server_stats *s)
{
    uint64_t uptime_ns = clock_now(&clock_monotonic) - c->node->started_ns;
    uint32_t layout = s->layout;
    Shoal__V1__NodeCapacity capacity = SHOAL__V1__NODE_CAPACITY__INIT;
    capacity.slots = s->slots;
    capacity.slots_free = s->slots_free;
    capacity.slots_used = s->slots_used - s->slots_quarantined;
    capacity.slots_reserved = s->slots_reserved;
    capacity.slots_quarantined = s->slots_quarantined;
    capacity.slot_bytes = s->block_bytes;
    capacity.memory_bytes = c->node->options->memory_bytes;
    capacity.used_bytes = s->slots_used * s->block_bytes;
    Shoal__V1__NodeStatus m = SHOAL__V1__NODE_STATUS__INIT;
    m.name = (char *)c->node->options->name;
    m.incarnation = s->incarnation;
    m.version = SHOAL_VERSION;
    m.protocol = PROTO_VERSION;
    m.n_layout = layout != 0;
    m.layout = &layout;
    m.epoch = s->epoch;
    m.state = state_of(s);
    m.uptime_ms = uptime_ns / 1000000;
    m.capacity = &capacity;
    m.connections = (uint32_t)s->connections;
    m.contexts = s->contexts;
    m.oldest_operation_us = s->oldest_operation_ns / 1000;
    m.data_address = (char *)kv_server_address(c->node->server);
    rpc_call_reply(call, &m.base);
}

static void answer_stats(rpc_call *call, const kv_server_stats *s)
{
    static const Shoal__V1__TrafficClass names[KV_CLASSES] = {
        [KV_DEMAND] = SHOAL__V1__TRAFFIC_CLASS__TRAFFIC_DEMAND,
        [KV_WRITE_BACK] = SHOAL__V1__TRAFFIC_CLASS__TRAFFIC_WRITE_BACK,
        [KV_PREFETCH] = SHOAL__V1__TRAFFIC_CLASS__TRAFFIC_PREFETCH,
        [KV_REPAIR] = SHOAL__V1__TRAFFIC_CLASS__TRAFFIC_REPAIR,
    };
    Shoal__V1__NodeStats m = SHOAL__V1__NODE_STATS__INIT;
    Shoal__V1__NodeClassStats class[KV_CLASSES];
    Shoal__V1__NodeClassStats *list[KV_CLASSES];
    for (uint32_t k = 0; k < KV_CLASSES; k++) {
        const kv_class_stats *from = &s->class[k];
        shoal__v1__node_class_stats__init(&class[k]);
        class[k].traffic_class = names[k];
        class[k].requests = from->submitted;
        class[k].blocks_ok = from->blocks_ok;
        class[k].blocks_failed = from->blocks_failed;
        class[k].bytes = from->bytes;
        class[k].busy = from->refused_busy;
        class[k].shed = from->shed;
        list[k] = &class[k];
        m.busy += from->refused_busy;
        bool put = k == KV_WRITE_BACK || k == KV_REPAIR;
        if (put) {
            m.puts += from->submitted;
            m.puts_stored += from->blocks_ok;
            m.bytes_stored += from->bytes;
        } else {
            m.gets += from->blocks_ok + from->blocks_failed;
            m.hits += from->blocks_ok;
            m.bytes_served += from->bytes;
        }
    }
    m.incarnation = s->incarnation;
    m.n_classes = KV_CLASSES;
    m.classes = list;
    m.misses = s->not_found;
    m.corrupt = s->corrupt;
    m.stale = s->stale;
    m.connections = s->connections;
    m.connections_total = s->connections_total;
    m.contexts = s->contexts;
    m.contexts_dropped = s->contexts_dropped;
    m.blocks_dropped = s->dropped_blocks;
    m.leases_expired = s->leases_expired;
    m.oldest_operation_us = s->oldest_operation_ns / 1000;
    rpc_call_reply(call, &m.base);
}

static void answer_drain(rpc_call *call, const kv_server_stats *s)
{
    Shoal__V1__NodeDrainReply m = SHOAL__V1__NODE_DRAIN_REPLY__INIT;
    m.state = state_of(s);
    rpc_call_reply(call, &m.base);
}

static void ask(control *c, rpc_call *call, question what)
{
    node_command command = what == ASK_DRAIN ? NODE_DRAIN : NODE_STATS;
    if (c->asked - c->answered == PENDING_MAX || node_tell(c->node, command) != STATUS_OK) {
        rpc_call_finish(call, STATUS_BUSY, NULL);
        return;
    }
    c->queue[c->asked++ % PENDING_MAX] = (pending){.call = call, .question = what};
}

static void on_status(rpc_call *call, const struct ProtobufCMessage *request, void *user)
{
    (void)request;
    ask(user, call, ASK_STATUS);
}

static void on_stats(rpc_call *call, const struct ProtobufCMessage *request, void *user)
{
    (void)request;
    ask(user, call, ASK_STATS);
}

static void on_drain(rpc_call *call, const struct ProtobufCMessage *request, void *user)
{
    const Shoal__V1__NodeDrainRequest *m = (const Shoal__V1__NodeDrainRequest *)request;
    control *c = user;
    LOG(INFO, "draining on request: %.100s", m->reason[0] != 0 ? m->reason : "no reason given");
    rpc_health_set(c->health, "", false);
    rpc_health_set(c->health, "shoal.v1.Node", false);
    ask(c, call, ASK_DRAIN);
}

/* ---- life ------------------------------------------------------------------------------------ */

status control_open(node *n, control **out_control)
{
    arena *a = arena_create("control");
    control *c = ARENA_NEW(a, control, 1);
    c->node = n;
    c->memory = a;
    c->health = rpc_health_create(a);
    rpc_method methods[NODE_METHODS + RPC_HEALTH_METHODS] = {
        {"/shoal.v1.Node/Status", &shoal__v1__node_status_request__descriptor, on_status, c},
        {"/shoal.v1.Node/Stats", &shoal__v1__node_stats_request__descriptor, on_stats, c},
        {"/shoal.v1.Node/Drain", &shoal__v1__node_drain_request__descriptor, on_drain, c},
    };
    rpc_health_methods(c->health, methods + NODE_METHODS);
    const cluster_config *from = &n->options->config;
    const rpc_tls tls = {from->tls_authority, from->tls_certificate, from->tls_key};
    rpc_server_config config = {
        .address = {n->options->control},
        .tls = from->tls_key[0] != 0 ? &tls : NULL,
        .methods = methods,
        .method_count = NODE_METHODS + RPC_HEALTH_METHODS,
    };
    status s = rpc_server_create(&config, &c->server);
    if (s != STATUS_OK) {
        arena_destroy(a);
        return s;
    }
    const char *colon = strrchr(n->options->control, ':');
    CHECK(colon != NULL); /* the server took the address */
    snprintf(c->address, sizeof c->address, "%.*s:%u", (int)(colon - n->options->control),
             n->options->control, rpc_server_port(c->server, 0));
    rpc_health_set(c->health, "", true);
    rpc_health_set(c->health, "shoal.v1.Node", true);
    *out_control = c;
    return STATUS_OK;
}

const char *control_address(const control *c)
{
    return c->address;
}

int control_fd(const control *c)
{
    return rpc_server_fd(c->server);
}

void control_poll(control *c)
{
    rpc_server_poll(c->server, 0);
    kv_server_stats stats;
    while (c->answered != c->asked && ring_pop(c->node->answers, &stats)) {
        pending p = c->queue[c->answered++ % PENDING_MAX];
        if (p.question == ASK_STATUS) answer_status(c, p.call, &stats);
        if (p.question == ASK_STATS) answer_stats(p.call, &stats);
        if (p.question == ASK_DRAIN) answer_drain(p.call, &stats);
    }
    rpc_server_poll(c->server, 0);
}

void control_drain(control *c)
{
    rpc_health_end(c->health);
    rpc_server_drain(c->server, DRAIN_GRACE_MS);
}

bool control_drained(const control *c)
{
    return c->asked == c->answered && rpc_server_drained(c->server);
}

void control_close(control *c)
{
    for (; c->answered != c->asked; c->answered++)
        rpc_call_finish(c->queue[c->answered % PENDING_MAX].call, STATUS_CANCELED, NULL);
    rpc_server_destroy(c->server);
    arena_destroy(c->memory);
}
